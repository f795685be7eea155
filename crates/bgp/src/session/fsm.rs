//! The session state machine of RFC 4271 section 8 as a pure, total function: a state and an event give the next
//! state and the operations in their order. Timers, connections and messages are the driver's ([`super::slot`]).
//!
//! Clauses: 8.1 (all 28 events, ROUTE-REFRESH of RFC 2918, the send hold timer of RFC 9687), 8.2.2 (all six states). Where this is not the
//! letter of the text:
//!
//! - One machine per connection (8.2 allows it), so a second connection never meets a busy machine: events 14, 16
//!   and 17 change nothing there. Collisions (6.8) arrive as event 23.
//! - Header and OPEN errors in Established are answered with their own code, as sections 6.1 and 6.2 demand, and
//!   not with the FSM error that 8.2.2 lists for events 21 and 22.
//! - A second OPEN on one connection is an FSM error: event 19 of 8.2.2 speaks of another connection's.

use std::fmt;

use serde::{Deserialize, Serialize};

/// States of RFC 4271 section 8.2.2, in the order in which a session comes up.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum State {
    /// Nothing is tried.
    #[default]
    Idle,
    /// Waiting for our TCP connection.
    Connect,
    /// Waiting for theirs.
    Active,
    /// OPEN sent.
    OpenSent,
    /// OPEN received and accepted.
    OpenConfirm,
    /// Up.
    Established,
}

impl State {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Idle, Self::Connect, Self::Active, Self::OpenSent, Self::OpenConfirm, Self::Established];
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// Events of RFC 4271 section 8.1, with their numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum FsmEvent {
    /// The operator starts the session.
    ManualStart = 1,
    /// The operator stops it.
    ManualStop = 2,
    /// The system starts it.
    AutomaticStart = 3,
    /// The operator starts it, listening only.
    ManualStartPassive = 4,
    /// The system starts it, listening only.
    AutomaticStartPassive = 5,
    /// The system starts it after its idle hold time.
    AutomaticStartDamped = 6,
    /// The same, listening only.
    AutomaticStartDampedPassive = 7,
    /// The system stops it.
    AutomaticStop = 8,
    /// Time to try again.
    ConnectRetryExpired = 9,
    /// The peer was silent for too long.
    HoldExpired = 10,
    /// Time to say that we are here.
    KeepaliveExpired = 11,
    /// Waited long enough for the peer's OPEN before sending ours.
    DelayOpenExpired = 12,
    /// The idle hold time is over.
    IdleHoldExpired = 13,
    /// A connection request came in.
    TcpConnectionValid = 14,
    /// A connection request came in that must not be accepted.
    TcpRequestInvalid = 15,
    /// Our connection stands.
    TcpRequestAcked = 16,
    /// Their connection stands.
    TcpConnectionConfirmed = 17,
    /// The connection is gone or never came.
    TcpConnectionFails = 18,
    /// A good OPEN.
    Open = 19,
    /// A good OPEN while the DelayOpen timer runs.
    OpenWithDelay = 20,
    /// A bad message header.
    HeaderError = 21,
    /// A bad OPEN.
    OpenError = 22,
    /// This connection lost a collision.
    CollisionDump = 23,
    /// NOTIFICATION with a version error.
    NotificationVersion = 24,
    /// Another NOTIFICATION.
    Notification = 25,
    /// KEEPALIVE.
    Keepalive = 26,
    /// A good UPDATE.
    Update = 27,
    /// An UPDATE that resets the session.
    UpdateError = 28,
    /// ROUTE-REFRESH (RFC 2918; not in RFC 4271's list).
    RouteRefresh = 29,
    /// The peer's TCP has taken nothing for too long (RFC 9687, which numbers it 29).
    SendHoldExpired = 30,
}

impl FsmEvent {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 30] = [
        Self::ManualStart,
        Self::ManualStop,
        Self::AutomaticStart,
        Self::ManualStartPassive,
        Self::AutomaticStartPassive,
        Self::AutomaticStartDamped,
        Self::AutomaticStartDampedPassive,
        Self::AutomaticStop,
        Self::ConnectRetryExpired,
        Self::HoldExpired,
        Self::KeepaliveExpired,
        Self::DelayOpenExpired,
        Self::IdleHoldExpired,
        Self::TcpConnectionValid,
        Self::TcpRequestInvalid,
        Self::TcpRequestAcked,
        Self::TcpConnectionConfirmed,
        Self::TcpConnectionFails,
        Self::Open,
        Self::OpenWithDelay,
        Self::HeaderError,
        Self::OpenError,
        Self::CollisionDump,
        Self::NotificationVersion,
        Self::Notification,
        Self::Keepalive,
        Self::Update,
        Self::UpdateError,
        Self::RouteRefresh,
        Self::SendHoldExpired,
    ];
}

/// What the driver does, in the order given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Op {
    /// ConnectRetryCounter := 0.
    ZeroCounter,
    /// ConnectRetryCounter += 1.
    BumpCounter,
    /// (Re)start the ConnectRetryTimer.
    StartConnectRetry,
    /// Stop it.
    StopConnectRetry,
    /// Open a TCP connection.
    Connect,
    /// Close the TCP connection, if there is one; stop the session's timers.
    Drop,
    /// Send OPEN.
    SendOpen,
    /// Send KEEPALIVE and restart the KeepaliveTimer.
    SendKeepalive,
    /// Start the HoldTimer at 4 minutes.
    LargeHold,
    /// Take the negotiated hold time: start HoldTimer and KeepaliveTimer, or neither if it is zero.
    NegotiatedHold,
    /// Restart the HoldTimer.
    RestartHold,
    /// Send the NOTIFICATION that the event brought (or Cease).
    Notify,
    /// Send NOTIFICATION "Hold Timer Expired".
    NotifyHold,
    /// Send NOTIFICATION "Send Hold Timer Expired" (RFC 9687); it hardly gets through.
    NotifySendHold,
    /// Send NOTIFICATION "Finite State Machine Error" with the state's subcode (RFC 6608).
    NotifyFsm,
    /// The session is up.
    Up,
    /// The session is no longer up: see to its routes.
    Down,
    /// The message is the session's to process.
    Process,
    /// Damp oscillation: start the IdleHoldTimer, after which the machine starts again.
    Damp,
}

/// The transition of RFC 4271 section 8.2.2. `passive` is PassiveTcpEstablishment.
pub fn transition(state: State, event: FsmEvent, passive: bool) -> (State, &'static [Op]) {
    match state {
        State::Idle => idle(event, passive),
        State::Connect => connect(event),
        State::Active => active(event),
        State::OpenSent => open_sent(event),
        State::OpenConfirm => open_confirm(event),
        State::Established => established(event),
    }
}

const NOTHING: &[Op] = &[];
const START: (State, &[Op]) = (State::Connect, &[Op::ZeroCounter, Op::StartConnectRetry, Op::Connect]);
const START_PASSIVE: (State, &[Op]) = (State::Active, &[Op::ZeroCounter, Op::StartConnectRetry]);

fn idle(event: FsmEvent, passive: bool) -> (State, &'static [Op]) {
    use FsmEvent as E;
    match event {
        E::ManualStart | E::AutomaticStart => START,
        E::ManualStartPassive | E::AutomaticStartPassive => START_PASSIVE,
        E::AutomaticStartDamped | E::AutomaticStartDampedPassive => (State::Idle, &[Op::Damp]),
        E::IdleHoldExpired if passive => START_PASSIVE,
        E::IdleHoldExpired => START,
        // "In this state, BGP FSM refuses all incoming BGP connections for this peer."
        E::TcpConnectionValid | E::TcpRequestAcked | E::TcpConnectionConfirmed => (State::Idle, &[Op::Drop]),
        E::ManualStop
        | E::AutomaticStop
        | E::ConnectRetryExpired
        | E::HoldExpired
        | E::KeepaliveExpired
        | E::DelayOpenExpired
        | E::TcpRequestInvalid
        | E::TcpConnectionFails
        | E::Open
        | E::OpenWithDelay
        | E::HeaderError
        | E::OpenError
        | E::CollisionDump
        | E::NotificationVersion
        | E::Notification
        | E::Keepalive
        | E::Update
        | E::UpdateError
        | E::RouteRefresh
        | E::SendHoldExpired => (State::Idle, NOTHING),
    }
}

const OPENED: (State, &[Op]) = (State::OpenSent, &[Op::StopConnectRetry, Op::SendOpen, Op::LargeHold]);
const OPENED_LATE: (State, &[Op]) =
    (State::OpenConfirm, &[Op::StopConnectRetry, Op::SendOpen, Op::SendKeepalive, Op::NegotiatedHold]);
const STOP_SILENTLY: (State, &[Op]) = (State::Idle, &[Op::Drop, Op::ZeroCounter, Op::StopConnectRetry]);
const FAIL_SILENTLY: (State, &[Op]) =
    (State::Idle, &[Op::StopConnectRetry, Op::Drop, Op::BumpCounter, Op::Damp]);

fn connect(event: FsmEvent) -> (State, &'static [Op]) {
    use FsmEvent as E;
    match event {
        E::ManualStart
        | E::AutomaticStart
        | E::ManualStartPassive
        | E::AutomaticStartPassive
        | E::AutomaticStartDamped
        | E::AutomaticStartDampedPassive
        | E::TcpConnectionValid
        | E::TcpRequestInvalid => (State::Connect, NOTHING),
        E::ManualStop => STOP_SILENTLY,
        E::ConnectRetryExpired => (State::Connect, &[Op::Drop, Op::StartConnectRetry, Op::Connect]),
        E::DelayOpenExpired => (State::OpenSent, &[Op::SendOpen, Op::LargeHold]),
        E::TcpRequestAcked | E::TcpConnectionConfirmed => OPENED,
        E::TcpConnectionFails => (State::Idle, &[Op::StopConnectRetry, Op::Drop, Op::Damp]),
        E::OpenWithDelay => OPENED_LATE,
        E::AutomaticStop
        | E::HoldExpired
        | E::KeepaliveExpired
        | E::IdleHoldExpired
        | E::Open
        | E::HeaderError
        | E::OpenError
        | E::CollisionDump
        | E::NotificationVersion
        | E::Notification
        | E::Keepalive
        | E::Update
        | E::UpdateError
        | E::RouteRefresh
        | E::SendHoldExpired => FAIL_SILENTLY,
    }
}

fn active(event: FsmEvent) -> (State, &'static [Op]) {
    use FsmEvent as E;
    match event {
        E::ManualStart
        | E::AutomaticStart
        | E::ManualStartPassive
        | E::AutomaticStartPassive
        | E::AutomaticStartDamped
        | E::AutomaticStartDampedPassive
        | E::TcpConnectionValid
        | E::TcpRequestInvalid => (State::Active, NOTHING),
        E::ManualStop => STOP_SILENTLY,
        E::ConnectRetryExpired => (State::Connect, &[Op::StartConnectRetry, Op::Connect]),
        E::DelayOpenExpired | E::TcpRequestAcked | E::TcpConnectionConfirmed => OPENED,
        E::OpenWithDelay => OPENED_LATE,
        E::AutomaticStop
        | E::HoldExpired
        | E::KeepaliveExpired
        | E::IdleHoldExpired
        | E::TcpConnectionFails
        | E::Open
        | E::HeaderError
        | E::OpenError
        | E::CollisionDump
        | E::NotificationVersion
        | E::Notification
        | E::Keepalive
        | E::Update
        | E::UpdateError
        | E::RouteRefresh
        | E::SendHoldExpired => FAIL_SILENTLY,
    }
}

const STOP_OPEN: (State, &[Op]) =
    (State::Idle, &[Op::Notify, Op::StopConnectRetry, Op::Drop, Op::ZeroCounter]);
const FAIL_OPEN: (State, &[Op]) =
    (State::Idle, &[Op::Notify, Op::StopConnectRetry, Op::Drop, Op::BumpCounter, Op::Damp]);
const HOLD_OPEN: (State, &[Op]) =
    (State::Idle, &[Op::NotifyHold, Op::StopConnectRetry, Op::Drop, Op::BumpCounter, Op::Damp]);
const FSM_OPEN: (State, &[Op]) =
    (State::Idle, &[Op::NotifyFsm, Op::StopConnectRetry, Op::Drop, Op::BumpCounter, Op::Damp]);

fn open_sent(event: FsmEvent) -> (State, &'static [Op]) {
    use FsmEvent as E;
    match event {
        E::ManualStart
        | E::AutomaticStart
        | E::ManualStartPassive
        | E::AutomaticStartPassive
        | E::AutomaticStartDamped
        | E::AutomaticStartDampedPassive
        | E::TcpConnectionValid
        | E::TcpRequestInvalid
        | E::TcpRequestAcked
        | E::TcpConnectionConfirmed => (State::OpenSent, NOTHING),
        E::ManualStop => STOP_OPEN,
        E::AutomaticStop | E::HeaderError | E::OpenError | E::CollisionDump => FAIL_OPEN,
        E::HoldExpired => HOLD_OPEN,
        // Back to Active, still listening; the driver may try again when ConnectRetryTimer expires.
        E::TcpConnectionFails => (State::Active, &[Op::Drop, Op::StartConnectRetry]),
        E::Open => {
            (State::OpenConfirm, &[Op::StopConnectRetry, Op::SendKeepalive, Op::NegotiatedHold, Op::Process])
        }
        E::NotificationVersion => (State::Idle, &[Op::StopConnectRetry, Op::Drop, Op::Damp]),
        E::ConnectRetryExpired
        | E::KeepaliveExpired
        | E::DelayOpenExpired
        | E::IdleHoldExpired
        | E::OpenWithDelay
        | E::Notification
        | E::Keepalive
        | E::Update
        | E::UpdateError
        | E::RouteRefresh => FSM_OPEN,
        // RFC 9687 section 3.1: the timer runs in Established only.
        E::SendHoldExpired => (State::OpenSent, NOTHING),
    }
}

fn open_confirm(event: FsmEvent) -> (State, &'static [Op]) {
    use FsmEvent as E;
    match event {
        E::ManualStart
        | E::AutomaticStart
        | E::ManualStartPassive
        | E::AutomaticStartPassive
        | E::AutomaticStartDamped
        | E::AutomaticStartDampedPassive
        | E::TcpConnectionValid
        | E::TcpRequestInvalid
        | E::TcpRequestAcked
        | E::TcpConnectionConfirmed => (State::OpenConfirm, NOTHING),
        E::ManualStop => STOP_OPEN,
        E::AutomaticStop | E::HeaderError | E::OpenError | E::CollisionDump => FAIL_OPEN,
        E::HoldExpired => HOLD_OPEN,
        E::KeepaliveExpired => (State::OpenConfirm, &[Op::SendKeepalive]),
        E::TcpConnectionFails | E::Notification => FAIL_SILENTLY,
        E::NotificationVersion => (State::Idle, &[Op::StopConnectRetry, Op::Drop, Op::Damp]),
        E::Keepalive => (State::Established, &[Op::RestartHold, Op::Up]),
        E::ConnectRetryExpired
        | E::DelayOpenExpired
        | E::IdleHoldExpired
        | E::Open
        | E::OpenWithDelay
        | E::Update
        | E::UpdateError
        | E::RouteRefresh => FSM_OPEN,
        // RFC 9687 section 3.1: the timer runs in Established only.
        E::SendHoldExpired => (State::OpenConfirm, NOTHING),
    }
}

const STOP_UP: (State, &[Op]) =
    (State::Idle, &[Op::Notify, Op::StopConnectRetry, Op::Down, Op::Drop, Op::ZeroCounter]);
const FAIL_UP: (State, &[Op]) =
    (State::Idle, &[Op::Notify, Op::StopConnectRetry, Op::Down, Op::Drop, Op::BumpCounter, Op::Damp]);
const HOLD_UP: (State, &[Op]) =
    (State::Idle, &[Op::NotifyHold, Op::StopConnectRetry, Op::Down, Op::Drop, Op::BumpCounter, Op::Damp]);
const SEND_HOLD_UP: (State, &[Op]) =
    (State::Idle, &[Op::NotifySendHold, Op::StopConnectRetry, Op::Down, Op::Drop, Op::BumpCounter, Op::Damp]);
const FSM_UP: (State, &[Op]) =
    (State::Idle, &[Op::NotifyFsm, Op::StopConnectRetry, Op::Down, Op::Drop, Op::BumpCounter, Op::Damp]);
const LOST_UP: (State, &[Op]) =
    (State::Idle, &[Op::StopConnectRetry, Op::Down, Op::Drop, Op::BumpCounter, Op::Damp]);

fn established(event: FsmEvent) -> (State, &'static [Op]) {
    use FsmEvent as E;
    match event {
        E::ManualStart
        | E::AutomaticStart
        | E::ManualStartPassive
        | E::AutomaticStartPassive
        | E::AutomaticStartDamped
        | E::AutomaticStartDampedPassive
        | E::TcpConnectionValid
        | E::TcpRequestInvalid
        | E::TcpRequestAcked
        | E::TcpConnectionConfirmed => (State::Established, NOTHING),
        E::ManualStop => STOP_UP,
        E::AutomaticStop | E::HeaderError | E::OpenError | E::CollisionDump | E::UpdateError => FAIL_UP,
        E::HoldExpired => HOLD_UP,
        E::SendHoldExpired => SEND_HOLD_UP,
        E::KeepaliveExpired => (State::Established, &[Op::SendKeepalive]),
        E::TcpConnectionFails | E::NotificationVersion | E::Notification => LOST_UP,
        E::Keepalive => (State::Established, &[Op::RestartHold]),
        E::Update | E::RouteRefresh => (State::Established, &[Op::RestartHold, Op::Process]),
        E::ConnectRetryExpired | E::DelayOpenExpired | E::IdleHoldExpired | E::Open | E::OpenWithDelay => {
            FSM_UP
        }
    }
}
