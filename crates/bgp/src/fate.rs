//! Dead node or restarted daemon? BFD and BGP share the daemon's fate, so when they fall silent the peer's kernel is
//! asked, by echoes to its node address. This is a pure core of its own; the shell carries echoes and passes the verdict
//! on as [`crate::Event::Lost`].
//!
//! ```text
//!            Up                 answered              Down             answered
//!  (nothing) ──▶ checked every 30 s ──▶ known to answer ──▶ 3 x 50 ms ──▶ every 200 ms while stale
//!                     │ Down                                   │ none          │ 3 in a row missed
//!                     ▼                                        ▼               ▼
//!            plain graceful restart                          dead            dead
//! ```
//!
//! - Only a peer that has answered while its session was up is judged by its answers: whoever has a firewall that drops
//!   echoes is not dead. Two checks in a row without an answer, and it is no longer known to answer; one may fall into
//!   the moment before its death is noticed.
//! - Any other peer gets plain graceful restart (RFC 4724): a closed connection keeps its routes, an expired hold timer
//!   does not.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use crate::session::rng::Rng;
use crate::timers::{Armed, Timers};

/// How often a peer with a session is asked.
pub const CHECK: Duration = Duration::from_secs(30);
/// Between questions until the first answer.
pub const QUICK: Duration = Duration::from_millis(50);
/// Between questions while its routes are stale.
pub const AGAIN: Duration = Duration::from_millis(200);
/// How long the last question may be without an answer.
pub const PATIENCE: Duration = Duration::from_millis(150);
/// So many questions in a row without an answer are a silence.
pub const QUESTIONS: u16 = 3;
/// So many silences in a row while the session is up mean that a peer does not answer echoes.
const SILENT_CHECKS: u8 = 2;

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// [`Fate::deadline`] has come. Answers that wait are passed on before.
    Timer,
    /// These peers are asked; others are forgotten.
    Configured(BTreeSet<IpAddr>),
    /// A session came up.
    Up(IpAddr),
    /// A session ended, or BFD says that the way is lost.
    Down {
        /// Whose.
        peer: IpAddr,
        /// The hold timer expired.
        silent: bool,
    },
    /// None of its routes is stale any more.
    Settled(IpAddr),
    /// It answered a question.
    Answered {
        /// Who.
        peer: IpAddr,
        /// Which question.
        number: u16,
    },
}

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Send an echo request.
    Ask {
        /// To whom.
        peer: IpAddr,
        /// The number of the question.
        number: u16,
    },
    /// The first answer after its session ended: its daemon restarts, its kernel forwards.
    Alive(IpAddr),
    /// Its routes go, now.
    Dead(IpAddr),
}

/// What is known of a peer's kernel.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Kernel {
    /// Nothing yet.
    #[default]
    Unknown,
    /// It answers while the session is up.
    Answers,
    /// It does not, although the session is up: echoes are filtered.
    Filtered,
    /// The session is down, and it is asked.
    Asked,
    /// The session is down, and it does not answer.
    Dead,
}

impl Kernel {
    /// The words for people.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unknown => "not asked yet",
            Self::Answers => "answers",
            Self::Filtered => "does not answer echoes",
            Self::Asked => "asked while its daemon is away",
            Self::Dead => "dead",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Purpose {
    /// Whether it can be judged by its answers.
    Check,
    /// Whether it lives.
    Verdict,
}

/// Questions under way.
#[derive(Debug, Clone, Copy)]
struct Series {
    purpose: Purpose,
    /// The last question that was answered, at the beginning the one before the first.
    answered: u16,
    any: bool,
    send_at: Option<Duration>,
    judge_at: Option<Duration>,
}

#[derive(Debug, Default)]
struct Peer {
    up: bool,
    kernel: Kernel,
    silent_checks: u8,
    /// The last question.
    asked: u16,
    series: Option<Series>,
    check_at: Option<Duration>,
    /// What stands in the timers for it.
    armed: Armed,
}

impl Peer {
    fn deadline(&self) -> Option<Duration> {
        let series = self.series.iter().flat_map(|series| [series.send_at, series.judge_at]);
        series.chain([self.check_at]).flatten().min()
    }

    fn begin(&mut self, purpose: Purpose, now: Duration) {
        let answered = self.asked;
        self.series = Some(Series { purpose, answered, any: false, send_at: Some(now), judge_at: None });
    }
}

/// All peers that are judged by their kernels' answers.
#[derive(Debug)]
pub struct Fate {
    peers: BTreeMap<IpAddr, Peer>,
    timers: Timers,
    /// Peers that are [`Kernel::Asked`].
    stale: BTreeSet<IpAddr>,
    rng: Rng,
}

impl Fate {
    /// One that asks nobody. `seed` spreads the checks.
    pub fn new(seed: u64) -> Self {
        Self {
            peers: BTreeMap::new(),
            timers: Timers::default(),
            stale: BTreeSet::new(),
            rng: Rng::new(seed),
        }
    }

    /// Takes in what happened at `now` and appends what is to be done.
    pub fn step(&mut self, now: Duration, event: Event, out: &mut Vec<Action>) {
        match event {
            Event::Timer => {}
            Event::Configured(wanted) => self.on_configured(wanted),
            Event::Up(peer) => self.on_up(now, peer),
            Event::Down { peer, silent } => self.on_down(now, peer, silent, out),
            Event::Settled(peer) => self.on_settled(peer),
            Event::Answered { peer, number } => self.on_answered(now, peer, number, out),
        }
        while let Some(peer) = self.timers.pop_due(now) {
            if let Some(known) = self.peers.get_mut(&peer) {
                known.armed = None;
                run(known, peer, now, &mut self.rng, out);
            }
            self.rearm(peer);
        }
    }

    /// When [`Event::Timer`] is due; none: not before something else happens.
    pub fn deadline(&self) -> Option<Duration> {
        self.timers.next()
    }

    /// What is known of a peer; none: it is not asked.
    pub fn kernel(&self, peer: IpAddr) -> Option<Kernel> {
        self.peers.get(&peer).map(|peer| peer.kernel)
    }

    /// Peers that are asked because their routes are stale: for them, [`Event::Settled`] is waited for.
    pub fn asked(&self) -> impl Iterator<Item = IpAddr> {
        self.stale.iter().copied()
    }

    fn on_configured(&mut self, wanted: BTreeSet<IpAddr>) {
        let gone: Vec<IpAddr> = self.peers.keys().filter(|peer| !wanted.contains(peer)).copied().collect();
        for peer in gone {
            self.stale.remove(&peer);
            if let Some(mut known) = self.peers.remove(&peer) {
                self.timers.arm(peer, &mut known.armed, None);
            }
        }
        for peer in wanted {
            self.peers.entry(peer).or_default();
        }
    }

    fn on_up(&mut self, now: Duration, address: IpAddr) {
        let Some(peer) = self.peers.get_mut(&address) else { return };
        peer.up = true;
        // What it did in an earlier session counts no longer: it may be another machine by now.
        peer.kernel = Kernel::Unknown;
        peer.silent_checks = 0;
        peer.check_at = None;
        peer.begin(Purpose::Check, now);
        self.rearm(address);
    }

    fn on_down(&mut self, now: Duration, address: IpAddr, silent: bool, out: &mut Vec<Action>) {
        let Some(peer) = self.peers.get_mut(&address).filter(|peer| peer.up) else { return };
        peer.up = false;
        peer.check_at = None;
        match peer.kernel {
            Kernel::Answers => {
                peer.kernel = Kernel::Asked;
                peer.begin(Purpose::Verdict, now);
            }
            Kernel::Unknown | Kernel::Filtered | Kernel::Asked | Kernel::Dead => {
                peer.series = None;
                if silent {
                    out.push(Action::Dead(address));
                }
            }
        }
        self.rearm(address);
    }

    fn on_settled(&mut self, address: IpAddr) {
        let Some(peer) = self.peers.get_mut(&address).filter(|peer| peer.kernel == Kernel::Asked) else {
            return;
        };
        peer.kernel = Kernel::Unknown;
        peer.series = None;
        self.rearm(address);
    }

    fn on_answered(&mut self, now: Duration, address: IpAddr, number: u16, out: &mut Vec<Action>) {
        let Some(peer) = self.peers.get_mut(&address) else { return };
        let Some(series) = &mut peer.series else { return };
        // Answers to questions before this series, and such that were answered already, say nothing new.
        let open = peer.asked.wrapping_sub(series.answered);
        if peer.asked.wrapping_sub(number) >= open {
            return;
        }
        series.answered = number;
        let first = !std::mem::replace(&mut series.any, true);
        match series.purpose {
            Purpose::Check => {
                peer.kernel = Kernel::Answers;
                peer.silent_checks = 0;
                peer.series = None;
                peer.check_at = Some(now + self.rng.jitter(CHECK));
            }
            Purpose::Verdict => {
                if first {
                    out.push(Action::Alive(address));
                }
                if first || series.judge_at.is_some() {
                    series.send_at = Some(now + AGAIN);
                }
                series.judge_at = None;
            }
        }
        self.rearm(address);
    }

    fn rearm(&mut self, address: IpAddr) {
        let Some(peer) = self.peers.get_mut(&address) else { return };
        let deadline = peer.deadline();
        if peer.kernel == Kernel::Asked {
            self.stale.insert(address);
        } else {
            self.stale.remove(&address);
        }
        self.timers.arm(address, &mut peer.armed, deadline);
    }
}

/// What is due for one peer.
fn run(peer: &mut Peer, address: IpAddr, now: Duration, rng: &mut Rng, out: &mut Vec<Action>) {
    let due = |at: Option<Duration>| at.is_some_and(|at| at <= now);
    if due(peer.check_at) {
        peer.check_at = None;
        peer.begin(Purpose::Check, now);
    }
    let Some(series) = &mut peer.series else { return };
    if due(series.send_at) {
        peer.asked = peer.asked.wrapping_add(1);
        out.push(Action::Ask { peer: address, number: peer.asked });
        if peer.asked.wrapping_sub(series.answered) >= QUESTIONS {
            (series.send_at, series.judge_at) = (None, Some(now + PATIENCE));
        } else {
            series.send_at = Some(now + if series.any { AGAIN } else { QUICK });
        }
        return;
    }
    if !due(series.judge_at) {
        return;
    }
    match series.purpose {
        Purpose::Check => {
            peer.silent_checks = peer.silent_checks.saturating_add(1);
            if peer.kernel == Kernel::Unknown || peer.silent_checks >= SILENT_CHECKS {
                peer.kernel = Kernel::Filtered;
            }
            peer.check_at = Some(now + rng.jitter(CHECK));
        }
        Purpose::Verdict => {
            peer.kernel = Kernel::Dead;
            out.push(Action::Dead(address));
        }
    }
    peer.series = None;
}
