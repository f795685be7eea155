//! One BFD session: state machine (RFC 5880 section 6.8.6), timers and poll sequences.

use std::net::IpAddr;
use std::time::Duration;

use super::packet::{Diagnostic, Packet, State};
use super::{Action, Timers};
use crate::session::rng::Rng;

/// RFC 5880 section 6.8.3: not more often as long as the session is not up.
const SLOW: Duration = Duration::from_secs(1);

/// What the other side said last.
#[derive(Debug, Clone, Copy)]
struct Remote {
    state: State,
    discriminator: u32,
    multiplier: u8,
    desired_tx: Duration,
    required_rx: Duration,
}

#[derive(Debug)]
pub(super) struct Session {
    timers: Timers,
    discriminator: u32,
    state: State,
    diagnostic: Diagnostic,
    remote: Option<Remote>,
    /// We have changed our timers, and the other side has not confirmed it.
    polling: bool,
    /// The timers that hold until it has (RFC 5880 section 6.8.3).
    before_poll: Option<Timers>,
    send_at: Duration,
    detect_at: Option<Duration>,
}

impl Session {
    pub(super) fn new(timers: Timers, discriminator: u32, now: Duration) -> Self {
        Self {
            timers,
            discriminator,
            state: State::Down,
            diagnostic: Diagnostic::NONE,
            remote: None,
            polling: false,
            before_poll: None,
            send_at: now,
            detect_at: None,
        }
    }

    pub(super) fn state(&self) -> State {
        self.state
    }

    pub(super) fn timers(&self) -> Timers {
        self.timers
    }

    pub(super) fn discriminator(&self) -> u32 {
        self.discriminator
    }

    pub(super) fn deadline(&self) -> Option<Duration> {
        let sends = self.transmits().then_some(self.send_at);
        sends.into_iter().chain(self.detect_at).min()
    }

    /// Other timers; the other side is asked to confirm them.
    pub(super) fn retime(&mut self, timers: Timers) {
        if self.timers == timers {
            return;
        }
        let before = std::mem::replace(&mut self.timers, timers);
        if self.state == State::Up {
            self.before_poll.get_or_insert(before);
            self.polling = true;
        }
    }

    /// RFC 5880 section 6.8.16: AdminDown is said once more by the last packet.
    pub(super) fn stop(&mut self, peer: IpAddr, out: &mut Vec<Action>) {
        self.state = State::AdminDown;
        self.diagnostic = Diagnostic::ADMINISTRATIVE;
        self.send(peer, false, out);
    }

    pub(super) fn run_timers(&mut self, now: Duration, peer: IpAddr, rng: &mut Rng, out: &mut Vec<Action>) {
        if self.detect_at.is_some_and(|at| at <= now) {
            self.detect_at = None;
            // RFC 5880 section 6.8.1: what the other side said holds no longer than the detection time.
            if let Some(remote) = &mut self.remote {
                remote.discriminator = 0;
            }
            if self.state >= State::Init {
                self.go(State::Down, Diagnostic::EXPIRED, peer, out);
            }
        }
        if self.transmits() && self.send_at <= now {
            self.send(peer, false, out);
            self.schedule(now, rng);
        }
    }

    pub(super) fn on_packet(
        &mut self,
        now: Duration,
        peer: IpAddr,
        packet: &Packet,
        rng: &mut Rng,
        out: &mut Vec<Action>,
    ) {
        let interval_before = self.interval();
        self.remote = Some(Remote {
            state: packet.state,
            discriminator: packet.my,
            multiplier: packet.multiplier,
            desired_tx: packet.desired_tx,
            required_rx: packet.required_rx,
        });
        if packet.last && self.polling {
            self.polling = false;
            self.before_poll = None;
        }
        match (self.state, packet.state) {
            (State::AdminDown, _) => return,
            (State::Init | State::Up, State::AdminDown) | (State::Up, State::Down) => {
                self.go(State::Down, Diagnostic::SIGNALED, peer, out);
            }
            (State::Down, State::Down) => self.go(State::Init, self.diagnostic, peer, out),
            (State::Down, State::Init) | (State::Init, State::Init | State::Up) => {
                self.go(State::Up, Diagnostic::NONE, peer, out);
                // RFC 5880 section 6.8.3: from one second to what was configured.
                self.polling = true;
            }
            (State::Down, State::AdminDown | State::Up)
            | (State::Init, State::Down)
            | (State::Up, State::Init | State::Up) => {}
        }
        self.detect_at = Some(now + self.detection_time());
        if packet.poll {
            self.send(peer, true, out);
        }
        if self.interval() < interval_before {
            // What was waited for at the slow pace goes at the new one.
            self.schedule(now, rng);
        }
    }

    fn go(&mut self, state: State, diagnostic: Diagnostic, peer: IpAddr, out: &mut Vec<Action>) {
        let was_up = self.state == State::Up;
        (self.state, self.diagnostic) = (state, diagnostic);
        if state != State::Up {
            self.polling = false;
            self.before_poll = None;
        }
        if was_up || state == State::Up {
            let remote = self.remote.map_or(State::Down, |remote| remote.state);
            out.push(Action::Changed { peer, state, diagnostic, remote });
        }
    }

    /// Whether periodic packets are wanted (RFC 5880 section 6.8.7).
    fn transmits(&self) -> bool {
        self.state != State::AdminDown && self.remote.is_none_or(|remote| !remote.required_rx.is_zero())
    }

    /// What we say that we would like to send at.
    fn desired_tx(&self) -> Duration {
        if self.state == State::Up { self.timers.interval } else { self.timers.interval.max(SLOW) }
    }

    /// How often we send.
    fn interval(&self) -> Duration {
        // A longer interval does not hold before it is confirmed.
        let before = self.before_poll.map_or(Duration::MAX, |timers| timers.interval);
        let theirs = self.remote.map_or(Duration::ZERO, |remote| remote.required_rx);
        self.desired_tx().min(before).max(theirs)
    }

    /// How long silence is no failure (RFC 5880 section 6.8.4).
    pub(super) fn detection_time(&self) -> Duration {
        // A shorter interval does not hold before it is confirmed.
        let before = self.before_poll.map_or(Duration::ZERO, |timers| timers.interval);
        let ours = self.timers.interval.max(before);
        let remote = self.remote.map(|remote| (remote.multiplier, remote.desired_tx));
        let (multiplier, theirs) = remote.unwrap_or((self.timers.multiplier, SLOW));
        ours.max(theirs) * u32::from(multiplier)
    }

    /// RFC 5880 section 6.8.7: 75 to 100 percent of the interval, at most 90 where one packet may be missing.
    fn schedule(&mut self, now: Duration, rng: &mut Rng) {
        let most = if self.timers.multiplier == 1 { 15 } else { 25 };
        let percent = 75 + u32::try_from(rng.next() % (most + 1)).unwrap_or(0);
        self.send_at = now + self.interval() * percent / 100;
    }

    fn send(&self, peer: IpAddr, answer: bool, out: &mut Vec<Action>) {
        let packet = Packet {
            diagnostic: self.diagnostic,
            state: self.state,
            poll: self.polling && !answer,
            last: answer,
            // It ends with the daemon that the control plane is part of.
            independent: false,
            multiplier: self.timers.multiplier,
            my: self.discriminator,
            your: self.remote.map_or(0, |remote| remote.discriminator),
            desired_tx: self.desired_tx(),
            required_rx: self.timers.interval,
        };
        out.push(Action::Send { to: peer, multihop: self.timers.multihop, bytes: packet.encode() });
    }
}
