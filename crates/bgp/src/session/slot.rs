//! Drives the state machine for one connection: its timers, its messages in and out.
//!
//! A neighbour has three slots: one that connects, and two that are connected to; two, because a peer that
//! restarted comes back on a new connection while the old one still looks alive (RFC 4724 section 5).

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use bytes::{Bytes, BytesMut};

use super::fsm::{FsmEvent, Op, State, transition};
use super::negotiated::Negotiated;
use super::rng::Rng;
use crate::bmp::Ended;
use crate::config::Neighbour;
use crate::event::{Action, ConnId};
use crate::message::notification::{cease, code};
use crate::message::open::Open;
use crate::message::{Frame, Notification, keepalive, next_frame};

/// "A HoldTimer value of 4 minutes is suggested" (RFC 4271 8.2.2).
const LARGE_HOLD: Duration = Duration::from_secs(240);
/// How long a TCP connection may take before it is tried anew.
const CONNECT_RETRY: Duration = Duration::from_secs(5);
/// First and longest pause before a connection that did not come about is tried again; doubled each time.
const IDLE_HOLD: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(5));
/// Longest pause after a session that ended for a reason (RFC 4271 section 8.1.1, DampPeerOscillations).
const DAMPED: Duration = Duration::from_secs(60);
/// A session that was up for so long ended for a new reason: the pauses begin anew.
const STABLE: Duration = Duration::from_secs(60);

/// What the surroundings lend for one call.
pub(crate) struct Cx<'a> {
    pub(crate) now: Duration,
    pub(crate) rng: &'a mut Rng,
    pub(crate) neighbour: &'a Neighbour,
    pub(crate) address: IpAddr,
    pub(crate) our_open: &'a Open,
    pub(crate) next_conn: &'a mut u64,
    pub(crate) out: &'a mut Vec<Action>,
}

/// What a transition means for the neighbour as a whole.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Effect {
    /// The slot has let go of this connection.
    Released(ConnId),
    /// The slot has asked for this connection.
    Requested(ConnId),
    /// The session is up.
    Up,
    /// It is no longer.
    Down(Loss),
}

/// How a session was lost.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Loss {
    /// The connection ended without a NOTIFICATION: perhaps a restart (RFC 4724 section 4.2).
    Connection(String),
    /// A NOTIFICATION was sent or received: the routes go, unless both sides take that for
    /// a restart (RFC 8538).
    Notified(String),
    /// The hold timer expired: treated as a NOTIFICATION, and told apart by whoever knows more of the peer.
    Silence(String),
    /// A Hard Reset, or what we say means the end for good: the routes go.
    Hard(String),
}

/// One connection's state machine.
#[derive(Debug)]
pub(crate) struct Slot {
    passive: bool,
    pub(crate) state: State,
    pub(crate) since: Duration,
    pub(crate) conn: Option<ConnId>,
    buffer: BytesMut,
    /// Set from OpenConfirm on.
    pub(crate) negotiated: Option<Negotiated>,
    /// ConnectRetryCounter (RFC 4271 section 8).
    counter: u32,
    /// Connections in a row that did not come about, for the length of the pause.
    failures: u32,
    /// Sessions in a row that ended soon and for a reason.
    flaps: u32,
    connect_retry: Option<Duration>,
    hold: Option<Duration>,
    keepalive: Option<Duration>,
    idle_hold: Option<Duration>,
    send_hold: Option<Duration>,
    hold_time: Duration,
    /// Octets given to the shell and not written yet.
    unsent: usize,
    /// When octets were last written, or began to wait.
    progress: Duration,
    pub(crate) last_error: Option<String>,
    /// The NOTIFICATION that was sent last, for people; whoever keeps it takes it.
    pub(crate) told: Option<String>,
    /// The OPENs that were sent and received on this connection, whole.
    pub(crate) opens: Option<Box<(Bytes, Bytes)>>,
    /// How the session ended, for a monitoring station; whoever tells it takes it.
    pub(crate) ended: Option<Box<Ended>>,
}

impl Slot {
    pub(crate) fn new(passive: bool, now: Duration) -> Self {
        Self {
            passive,
            state: State::Idle,
            since: now,
            conn: None,
            buffer: BytesMut::new(),
            negotiated: None,
            counter: 0,
            failures: 0,
            flaps: 0,
            connect_retry: None,
            hold: None,
            keepalive: None,
            idle_hold: None,
            send_hold: None,
            hold_time: Duration::ZERO,
            unsent: 0,
            progress: now,
            last_error: None,
            told: None,
            opens: None,
            ended: None,
        }
    }

    /// When something falls due.
    pub(crate) fn deadline(&self) -> Option<Duration> {
        let timers = [self.connect_retry, self.hold, self.keepalive, self.idle_hold, self.send_hold];
        timers.into_iter().flatten().min()
    }

    /// The timer that has expired at `now`; it is stopped.
    pub(crate) fn expired(&mut self, now: Duration) -> Option<FsmEvent> {
        let stuck = self.send_hold_expired(now);
        let due = |timer: &mut Option<Duration>| timer.take_if(|at| *at <= now).is_some();
        // Hold before keepalive: a peer that is gone needs none.
        if due(&mut self.hold) {
            Some(FsmEvent::HoldExpired)
        } else if stuck {
            Some(FsmEvent::SendHoldExpired)
        } else if due(&mut self.keepalive) {
            Some(FsmEvent::KeepaliveExpired)
        } else if due(&mut self.connect_retry) {
            Some(FsmEvent::ConnectRetryExpired)
        } else if due(&mut self.idle_hold) {
            Some(FsmEvent::IdleHoldExpired)
        } else {
            None
        }
    }

    /// Whether the machine is idle with nothing to wake it.
    pub(crate) fn rests(&self) -> bool {
        self.state == State::Idle && self.idle_hold.is_none()
    }

    /// Whether this is the slot's connection: events of an earlier one are void.
    pub(crate) fn is_on(&self, conn: ConnId) -> bool {
        self.conn == Some(conn)
    }

    /// Takes in bytes; [`Slot::next_frame`] gives the messages.
    pub(crate) fn receive(&mut self, bytes: &Bytes) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole message, or why the stream is broken.
    pub(crate) fn next_frame(&mut self, max_len: usize) -> Result<Option<Frame>, Notification> {
        next_frame(&mut self.buffer, max_len)
    }

    /// The shell has been given octets for the connection. True: a timer has been started.
    pub(crate) fn gave(&mut self, octets: usize, now: Duration) -> bool {
        if self.unsent == 0 {
            self.progress = now;
        }
        self.unsent += octets;
        let time = self.negotiated.as_ref().map_or(Duration::ZERO, |n| n.send_hold);
        let starts = self.send_hold.is_none() && self.state == State::Established && !time.is_zero();
        if starts {
            self.send_hold = Some(now + time);
        }
        starts
    }

    /// The shell has written octets: the peer reads. The timer is left alone, it looks at the progress when it expires:
    /// this happens for every client after every flush.
    pub(crate) fn wrote(&mut self, octets: usize, now: Duration) {
        self.unsent = self.unsent.saturating_sub(octets);
        self.progress = now;
    }

    /// RFC 9687 section 3.2: the timer counts while something waits and nothing moves. True: for too long.
    fn send_hold_expired(&mut self, now: Duration) -> bool {
        if self.send_hold.take_if(|at| *at <= now).is_none() || self.unsent == 0 {
            return false;
        }
        let due = self.progress + self.negotiated.as_ref().map_or(Duration::ZERO, |n| n.send_hold);
        if due > now {
            self.send_hold = Some(due);
        }
        due <= now
    }

    /// Runs one event through the machine. `notification` is what it brought, or what `Op::Notify` shall send.
    pub(crate) fn fire(
        &mut self,
        event: FsmEvent,
        notification: Option<Notification>,
        cx: &mut Cx<'_>,
        effects: &mut Vec<Effect>,
    ) {
        let before = self.state;
        let (next, ops) = transition(self.state, event, self.passive);
        self.state = next;
        if before == State::Established && next != before && cx.now >= self.since + STABLE {
            self.flaps = 0;
        }
        if next != before {
            self.since = cx.now;
            self.idle_hold = None;
        }
        if next < before && before > State::Active {
            self.note(event, before, ops, notification.as_ref());
        }
        for op in ops {
            self.apply(*op, event, before, notification.as_ref(), cx, effects);
        }
    }

    fn apply(
        &mut self,
        op: Op,
        event: FsmEvent,
        before: State,
        notification: Option<&Notification>,
        cx: &mut Cx<'_>,
        effects: &mut Vec<Effect>,
    ) {
        match op {
            Op::ZeroCounter => self.counter = 0,
            Op::BumpCounter => self.counter = self.counter.saturating_add(1),
            // PassiveTcpEstablishment: nothing to retry.
            Op::StartConnectRetry if self.passive => {}
            Op::StartConnectRetry => self.connect_retry = Some(cx.now + cx.rng.jitter(CONNECT_RETRY)),
            Op::StopConnectRetry => self.connect_retry = None,
            Op::Connect => self.connect(cx, effects),
            Op::Drop => self.drop_connection(cx, effects),
            Op::SendOpen => {
                let open = cx.our_open.encode();
                self.opens = Some(Box::new((open.clone(), Bytes::new())));
                self.send(open, cx);
            }
            Op::SendKeepalive => {
                self.send(keepalive(), cx);
                self.start_keepalive(cx);
            }
            Op::LargeHold => self.hold = Some(cx.now + LARGE_HOLD),
            Op::NegotiatedHold => {
                self.hold_time = self.negotiated.as_ref().map_or(Duration::ZERO, |n| n.hold_time);
                self.restart_hold(cx.now);
                self.start_keepalive(cx);
            }
            Op::RestartHold => self.restart_hold(cx.now),
            Op::Notify => {
                let cease = Notification::cease(cease::SHUTDOWN);
                self.tell(notification.unwrap_or(&cease), cx);
            }
            Op::NotifyHold => self.tell(&Notification::new(code::HOLD, 0), cx),
            Op::NotifySendHold => self.tell(&Notification::new(code::SEND_HOLD, 0), cx),
            Op::NotifyFsm => self.tell(&fsm_error(before), cx),
            Op::Up => {
                self.failures = 0;
                self.last_error = None;
                self.ended = None;
                effects.push(Effect::Up);
            }
            Op::Down => {
                self.ended.get_or_insert_with(|| {
                    Box::new(match (event, notification) {
                        (FsmEvent::Notification | FsmEvent::NotificationVersion, Some(heard)) => {
                            Ended::Heard(heard.clone())
                        }
                        (FsmEvent::TcpConnectionFails, _) => Ended::Remote,
                        (event, _) => Ended::Local(u16::from(event as u8)),
                    })
                });
                let why = self.last_error.clone().unwrap_or_default();
                // A lost collision is no end of the session: another connection goes on with it.
                let survives = matches!(event, FsmEvent::TcpConnectionFails | FsmEvent::SendHoldExpired)
                    || notification.is_some_and(Notification::is_collision);
                effects.push(Effect::Down(if survives {
                    Loss::Connection(why)
                } else if notification.is_some_and(Notification::is_hard) {
                    Loss::Hard(why)
                } else if event == FsmEvent::HoldExpired {
                    Loss::Silence(why)
                } else {
                    Loss::Notified(why)
                }));
            }
            // The caller has the message and processes it when it sees the state.
            Op::Process => {}
            Op::Damp => {
                // A connection that broke may come back at once; a session that one side ended will end again.
                let reason = !matches!(event, FsmEvent::TcpConnectionFails | FsmEvent::CollisionDump);
                let (count, longest) = if before >= State::OpenSent && reason {
                    (&mut self.flaps, DAMPED)
                } else {
                    (&mut self.failures, IDLE_HOLD.1)
                };
                let pause = (IDLE_HOLD.0 * 2u32.saturating_pow((*count).min(10))).min(longest);
                *count = count.saturating_add(1);
                let pause = if self.passive { Duration::ZERO } else { cx.rng.jitter(pause) };
                self.idle_hold = Some(cx.now + pause);
            }
        }
    }

    fn connect(&mut self, cx: &mut Cx<'_>, effects: &mut Vec<Effect>) {
        let conn = ConnId::Outgoing(*cx.next_conn);
        *cx.next_conn += 1;
        self.conn = Some(conn);
        effects.push(Effect::Requested(conn));
        cx.out.push(Action::Connect {
            conn,
            remote: SocketAddr::new(cx.address, cx.neighbour.port),
            local: cx.neighbour.local_address,
        });
    }

    fn drop_connection(&mut self, cx: &mut Cx<'_>, effects: &mut Vec<Effect>) {
        if let Some(conn) = self.conn.take() {
            effects.push(Effect::Released(conn));
            cx.out.push(Action::Close { conn });
        }
        self.buffer = BytesMut::new();
        self.opens = None;
        self.negotiated = None;
        self.hold = None;
        self.keepalive = None;
        self.send_hold = None;
        self.unsent = 0;
    }

    /// Sends a NOTIFICATION. One that ends a collision says nothing about the peer.
    fn tell(&mut self, notification: &Notification, cx: &mut Cx<'_>) {
        if !notification.is_collision() && self.conn.is_some() {
            self.told = Some(notification.to_string());
        }
        if self.conn.is_some() {
            self.ended = Some(Box::new(Ended::Said(notification.clone())));
        }
        self.send(notification.encode(), cx);
    }

    pub(crate) fn send(&mut self, bytes: Bytes, cx: &mut Cx<'_>) {
        if let Some(conn) = self.conn {
            let _ = self.gave(bytes.len(), cx.now);
            cx.out.push(Action::Send { conn, bytes });
        }
    }

    fn restart_hold(&mut self, now: Duration) {
        self.hold = (!self.hold_time.is_zero()).then(|| now + self.hold_time);
    }

    /// RFC 4271 4.4: a third of the hold time, jittered (section 10); none if the hold time is zero.
    fn start_keepalive(&mut self, cx: &mut Cx<'_>) {
        let hold = self.negotiated.as_ref().map_or(Duration::ZERO, |n| n.hold_time);
        self.keepalive = (!hold.is_zero()).then(|| cx.now + cx.rng.jitter(hold / 3));
    }

    /// Remembers why the session failed, for people.
    fn note(&mut self, event: FsmEvent, before: State, ops: &[Op], notification: Option<&Notification>) {
        self.last_error = Some(match (event, notification) {
            (FsmEvent::Notification | FsmEvent::NotificationVersion, Some(n)) => format!("peer said: {n}"),
            (_, Some(n)) => format!("we said: {n}"),
            (FsmEvent::SendHoldExpired, None) => "send hold timer expired: the peer does not read".to_owned(),
            (FsmEvent::HoldExpired, None) => "hold timer expired: nothing came from the peer".to_owned(),
            (FsmEvent::TcpConnectionFails, None) => {
                self.last_error.take().unwrap_or_else(|| "connection lost".to_owned())
            }
            (event, None) if ops.contains(&Op::NotifyFsm) => {
                format!("we said: {} on {event:?}", fsm_error(before))
            }
            (event, None) => format!("{event:?} in {before}"),
        });
    }
}

/// RFC 6608 section 3: the subcode names the state.
fn fsm_error(state: State) -> Notification {
    let subcode = match state {
        State::OpenSent => 1,
        State::OpenConfirm => 2,
        State::Established => 3,
        State::Idle | State::Connect | State::Active => 0,
    };
    Notification::new(code::FSM, subcode)
}
