//! Bidirectional forwarding detection (RFC 5880) as a pure core of its own: asynchronous mode, without authentication
//! and without echo, one hop (RFC 5881) or many (RFC 5883). It shares no state with the BGP speaker; the shell runs it
//! in a thread of its own and passes changes of state on.
//!
//! | RFC 5880 | state |
//! |---|---|
//! | 6.1, 6.2 three-way handshake and state machine | done (`session.rs`), both sides active |
//! | 6.5 poll sequence, 6.8.3 timer changes | done |
//! | 6.8.2 to 6.8.4 timers and detection | done |
//! | 6.8.6 reception, 6.8.7 transmission, jitter | done |
//! | 6.8.16 administrative control | done |
//! | 6.4, 6.6, 6.7 echo, demand mode, authentication | refused: a packet with the A bit is discarded |

mod packet;
mod session;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

pub use packet::{Diagnostic, LEN, Packet, State};
use session::Session;

pub use crate::config::Bfd as Timers;
use crate::session::rng::Rng;

/// UDP port for one hop (RFC 5881 section 4).
pub const PORT: u16 = 3784;
/// UDP port for many hops (RFC 5883 section 5).
pub const MULTIHOP_PORT: u16 = 4784;
/// TTL or hop limit of packets over one hop, sent and demanded (RFC 5881 section 5).
pub const TTL: u8 = 255;

/// Shortest interval that is taken.
pub const SHORTEST: Duration = Duration::from_millis(10);
/// Longest interval that is taken.
pub const LONGEST: Duration = Duration::from_secs(60);

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event<'a> {
    /// [`Monitor::deadline`] has come.
    Timer,
    /// These are the neighbours to watch, each with its timers. Others are told AdminDown and forgotten.
    Configured(BTreeMap<IpAddr, Timers>),
    /// A packet came.
    Received {
        /// Who sent it.
        from: IpAddr,
        /// Its TTL or hop limit.
        ttl: u8,
        /// Whether it came to the port for many hops.
        multihop: bool,
        /// Its octets.
        bytes: &'a [u8],
    },
    /// The daemon ends: everybody is told AdminDown, so that nobody takes the silence for a failure.
    Stopped,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Send this packet.
    Send {
        /// To whom.
        to: IpAddr,
        /// Whether to the port for many hops.
        multihop: bool,
        /// Its octets.
        bytes: [u8; LEN],
    },
    /// A session is up, or no longer.
    Changed {
        /// Whose.
        peer: IpAddr,
        /// Its state.
        state: State,
        /// Why it went down. `AdminDown` at the other side is no failure: what depends on the session stays.
        diagnostic: Diagnostic,
        /// What the other side said last.
        remote: State,
    },
}

/// All sessions.
#[derive(Debug)]
pub struct Monitor {
    sessions: BTreeMap<IpAddr, Session>,
    discriminators: BTreeMap<u32, IpAddr>,
    rng: Rng,
    stopped: bool,
    /// Packets that were discarded.
    discarded: u64,
}

impl Monitor {
    /// One that watches nobody. `seed` feeds discriminators and jitter.
    pub fn new(seed: u64) -> Self {
        Self {
            sessions: BTreeMap::new(),
            discriminators: BTreeMap::new(),
            rng: Rng::new(seed),
            stopped: false,
            discarded: 0,
        }
    }

    /// Takes in what happened at `now` and appends what is to be done.
    pub fn step(&mut self, now: Duration, event: Event<'_>, out: &mut Vec<Action>) {
        match event {
            Event::Timer => {}
            Event::Configured(wanted) => self.on_configured(now, &wanted, out),
            Event::Received { from, ttl, multihop, bytes } => {
                if self.on_received(now, from, ttl, multihop, bytes, out).is_none() {
                    self.discarded += 1;
                }
            }
            Event::Stopped => {
                self.stopped = true;
                for (peer, session) in &mut self.sessions {
                    session.stop(*peer, out);
                }
            }
        }
        if !self.stopped {
            for (peer, session) in &mut self.sessions {
                session.run_timers(now, *peer, &mut self.rng, out);
            }
        }
    }

    /// When [`Event::Timer`] is due; none: not before something else happens.
    pub fn deadline(&self) -> Option<Duration> {
        if self.stopped {
            return None;
        }
        self.sessions.values().filter_map(Session::deadline).min()
    }

    /// State of all sessions, with the time after which silence means down.
    pub fn sessions(&self) -> impl Iterator<Item = (IpAddr, State, Duration)> {
        self.sessions.iter().map(|(peer, session)| (*peer, session.state(), session.detection_time()))
    }

    /// Packets that were discarded since the beginning.
    pub fn discarded(&self) -> u64 {
        self.discarded
    }

    fn on_configured(&mut self, now: Duration, wanted: &BTreeMap<IpAddr, Timers>, out: &mut Vec<Action>) {
        let differs = |peer: &IpAddr, session: &Session| {
            wanted.get(peer).is_none_or(|timers| timers.multihop != session.timers().multihop)
        };
        let gone: Vec<IpAddr> =
            self.sessions.iter().filter(|(peer, session)| differs(peer, session)).map(|(p, _)| *p).collect();
        for peer in gone {
            if let Some(mut session) = self.sessions.remove(&peer) {
                session.stop(peer, out);
                self.discriminators.remove(&session.discriminator());
            }
        }
        for (peer, timers) in wanted {
            let timers = &within_bounds(*timers);
            if let Some(session) = self.sessions.get_mut(peer) {
                session.retime(*timers);
                continue;
            }
            let discriminator = loop {
                // RFC 5880 section 6.8.1: unique, not zero, and hard to guess.
                let number = u32::try_from(self.rng.next() >> 32).unwrap_or(1);
                if number != 0 && !self.discriminators.contains_key(&number) {
                    break number;
                }
            };
            self.discriminators.insert(discriminator, *peer);
            self.sessions.insert(*peer, Session::new(*timers, discriminator, now));
        }
    }

    /// `None`: the packet is discarded.
    fn on_received(
        &mut self,
        now: Duration,
        from: IpAddr,
        ttl: u8,
        multihop: bool,
        bytes: &[u8],
        out: &mut Vec<Action>,
    ) -> Option<()> {
        let packet = Packet::decode(bytes).ok()?;
        // RFC 5880 section 6.8.6: by discriminator, or by source while the other side does not know it yet.
        let peer = if packet.your == 0 { from } else { *self.discriminators.get(&packet.your)? };
        // RFC 5881 section 5: one hop means the very neighbour.
        let session = self.sessions.get_mut(&peer).filter(|session| {
            let timers = session.timers();
            peer == from && timers.multihop == multihop && (multihop || ttl == TTL)
        })?;
        if !self.stopped {
            session.on_packet(now, peer, &packet, &mut self.rng, out);
        }
        Some(())
    }
}

/// Timers that work whatever was configured: a multiplier of 0 is none, and no interval at all would be a busy loop.
fn within_bounds(timers: Timers) -> Timers {
    let interval = timers.interval.clamp(SHORTEST, LONGEST);
    Timers { interval, multiplier: timers.multiplier.max(1), ..timers }
}
