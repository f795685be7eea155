//! The speaker: owns all sessions, the RIB and the export; everything happens in [`Speaker::step`].
//!
//! | file | what |
//! |---|---|
//! | `mod.rs` | events in, timers, selection, flush |
//! | `configure.rs` | a new configuration against the one in force |
//! | `connections.rs` | connections, messages, collisions (RFC 4271 6.8) |
//! | `sessions.rs` | a session comes up or goes; stale routes of the peer (RFC 4724 4.2) |
//! | `deferral.rs` | our own restart (RFC 4724 4.1) |
//! | `leaving.rs` | sessions that the topology needs no more |
//! | `monitor.rs` | what a monitoring station is told of |
//! | `pace.rs` | when changes go to the neighbours |
//! | `ranges.rs` | neighbours that nobody lists |
//! | `routes.rs` | UPDATEs into the RIB, import rule and filter, limits |
//! | `report.rs` | what people see |

mod configure;
mod connections;
mod deferral;
mod leaving;
pub(crate) mod monitor;
mod pace;
mod peer;
mod ranges;
mod report;
mod routes;
mod sessions;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;

use crate::config::{Claims, Restarted, SpeakerConfig};
use crate::event::{Action, AfterStop, ConnId, Event};
use crate::export::group::{Group, Limits, Out, Outs};
use crate::message::Notification;
use crate::message::notification::cease;
use crate::rib::{Change, DestId, Destination, Interner, Path, Rib, Rules};
use crate::session::fsm::FsmEvent;
use crate::session::negotiated::{RestartBits, our_open};
use crate::session::rng::Rng;
use crate::session::slot::{Cx, Effect};
use crate::timers::Timers;
use crate::types::{Families, Family};
use deferral::Deferral;
use monitor::Noted;
use pace::Pace;
use peer::{GroupId, Peer};

/// Prefixes that are brought into the groups' logs at once: neither what is needed for that nor what lies in the logs
/// before it can be written grows with what has changed.
const SLICE: usize = 16 << 10;

/// A BGP speaker without sockets, clock or randomness.
///
/// Total: any event in any state is handled without a panic. Deterministic: the same seed and the same events at the
/// same times give the same actions.
#[derive(Debug)]
pub struct Speaker {
    config: Arc<SpeakerConfig>,
    claims: Arc<Claims>,
    now: Duration,
    rng: Rng,
    peers: BTreeMap<IpAddr, Peer>,
    /// Whose connection and slot it is. Invariant: exactly the connections that slots hold (`tests/simulation.rs`).
    conns: BTreeMap<ConnId, (IpAddr, usize)>,
    next_conn: u64,
    timers: Timers,
    rib: Rib,
    interner: Interner,
    groups: BTreeMap<GroupId, Group>,
    limits: Limits,
    pace: Pace,
    /// Members have joined whose End-of-RIB goes after the next flush: what is pending belongs to their initial tables.
    owes_end_of_rib: bool,
    deferral: Option<Deferral>,
    /// Neighbours from ranges of which perhaps nothing is left.
    leaving: BTreeSet<IpAddr>,
    /// When sessions that the topology wants to end are looked at; none: there are none.
    look_at: Option<Duration>,
    /// Families whose deferral ended in this step.
    settling: Families,
    forwarding_preserved: bool,
    /// Sessions that have been up.
    sessions: u64,
    /// None: no station wants to know.
    monitor: Option<Noted>,
    stopped: bool,
    actions: Vec<Action>,
}

impl Speaker {
    /// A speaker that begins at `now`. `restarted`: what is known of the life before, none for a first one. `seed`
    /// feeds the jitter of timers.
    pub fn new(
        config: Arc<SpeakerConfig>,
        restarted: Option<Restarted>,
        seed: u64,
        now: Duration,
        out: &mut Vec<Action>,
    ) -> Self {
        let idle = SpeakerConfig {
            neighbours: BTreeMap::new(),
            originated: BTreeMap::new(),
            ..SpeakerConfig::clone(&config)
        };
        let mut speaker = Self {
            config: Arc::new(idle),
            claims: Arc::default(),
            now,
            rng: Rng::new(seed),
            peers: BTreeMap::new(),
            conns: BTreeMap::new(),
            next_conn: 1,
            timers: Timers::default(),
            rib: Rib::default(),
            interner: Interner::default(),
            groups: BTreeMap::new(),
            limits: Limits::DEFAULT,
            pace: Pace::new(now),
            owes_end_of_rib: false,
            deferral: None,
            leaving: BTreeSet::new(),
            look_at: None,
            settling: Families::NONE,
            forwarding_preserved: restarted.as_ref().is_some_and(|r| r.forwarding_preserved),
            sessions: 0,
            monitor: None,
            stopped: false,
            actions: vec![],
        };
        let before = restarted.clone().unwrap_or_default();
        speaker.begin_deferral(&config, restarted);
        speaker.step(now, Event::Configured(Arc::clone(&config)), out);
        if let Some(restart) = &config.graceful_restart {
            speaker.look_for_returning(&config, &before, now + restart.restart_time);
            out.append(&mut speaker.actions);
        }
        speaker
    }

    /// Takes in what happened at `now` (monotonic; the zero point is the caller's) and appends what is to be done.
    pub fn step(&mut self, now: Duration, event: Event, out: &mut Vec<Action>) {
        self.now = self.now.max(now);
        match event {
            Event::Timer => {}
            Event::Configured(config) => self.on_configured(config),
            Event::Claimed(claims) => self.on_claimed(claims),
            Event::Accepted { conn, remote } => self.on_accepted(conn, remote),
            Event::Connected { conn } => self.on_connected(conn),
            Event::Received { conn, bytes } => self.on_received(conn, &bytes),
            Event::Sent { conn, bytes } => self.on_sent(conn, bytes),
            Event::Closed { conn, reason } => self.on_closed(conn, reason),
            Event::Reset { peer, words } => {
                self.stop_peer(peer, FsmEvent::AutomaticStop, &Notification::reset(&words));
                self.drop_routes(peer);
                self.release(peer);
            }
            Event::Refresh { peer } => self.ask_refresh(peer),
            Event::Lost { peer, purge, reason } => self.on_lost(peer, purge, reason),
            Event::Flushed { took } => self.pace.took(took),
            Event::Stopped { routes } => self.on_stopped(routes),
        }
        self.on_timers();
        self.forget_gone();
        self.settle();
        out.append(&mut self.actions);
    }

    /// When [`Event::Timer`] is due; none: not before something else happens.
    pub fn deadline(&self) -> Option<Duration> {
        let peers = self.timers.next();
        let flush = self.pace.due();
        let deferral = self.deferral.as_ref().map(|deferral| deferral.until);
        [peers, flush, deferral, self.look_at].into_iter().flatten().min()
    }

    /// Runs all timers that are due.
    fn on_timers(&mut self) {
        self.check_deferral_timer();
        self.check_leaving();
        while let Some(address) = self.timers.pop_due(self.now) {
            let Some(peer) = self.peers.get_mut(&address) else { continue };
            peer.armed = None;
            for slot in 0..peer.slots.len() {
                while let Some(event) =
                    self.peers.get_mut(&address).and_then(|p| p.slots[slot].expired(self.now))
                {
                    self.on_slot_timer(address, slot, event);
                }
            }
            self.check_stale_timers(address);
            self.check_returning(address);
            self.check_refresh_timers(address);
            self.check_held(address);
            self.rearm(address);
        }
    }

    /// Keeps the peer's entry in the timers right.
    fn rearm(&mut self, address: IpAddr) {
        let Some(peer) = self.peers.get_mut(&address) else { return };
        let deadline = if self.stopped { None } else { peer.deadline() };
        if peer.is_gone() {
            self.leaving.insert(address);
        }
        self.timers.arm(address, &mut peer.armed, deadline);
    }

    /// Runs one event through a slot's state machine and sees to what follows.
    fn fire(&mut self, address: IpAddr, at: usize, event: FsmEvent, notification: Option<Notification>) {
        let bits = RestartBits {
            restarting: self.deferral.is_some(),
            preserved: self.forwarding_preserved || self.peers.get(&address).is_some_and(|peer| peer.was_up),
        };
        let Some(peer) = self.peers.get_mut(&address) else { return };
        let mut effects = vec![];
        let mut cx = Cx {
            now: self.now,
            rng: &mut self.rng,
            neighbour: &peer.neighbour,
            address,
            our_open: &our_open(&self.config, &peer.neighbour, bits),
            next_conn: &mut self.next_conn,
            out: &mut self.actions,
        };
        let slot = &mut peer.slots[at];
        // A connection that loses against another one says nothing about the peer (RFC 4271 6.8).
        let collision = notification.as_ref().is_some_and(Notification::is_collision);
        slot.fire(event, notification, &mut cx, &mut effects);
        if let Some(error) = slot.last_error.as_ref().filter(|_| !collision) {
            peer.last_error = Some(error.clone());
        }
        if let Some(told) = slot.told.take() {
            peer.told = Some((told, self.now));
        }
        for effect in effects {
            match effect {
                Effect::Released(conn) => drop(self.conns.remove(&conn)),
                Effect::Requested(conn) => drop(self.conns.insert(conn, (address, at))),
                Effect::Up => self.on_session_up(address, at),
                Effect::Down(loss) => self.on_session_down(address, at, &loss),
            }
        }
        if !self.stopped && self.peers.get(&address).is_some_and(Peer::should_wake) {
            self.fire(address, peer::OUTGOING, FsmEvent::AutomaticStartDamped, None);
        }
        self.rearm(address);
    }

    /// Selects, tells the kernel side, and flushes if it is time.
    fn settle(&mut self) {
        if !self.rib.is_settled() || !self.settling.is_empty() {
            self.select();
        }
        if !self.settling.is_empty() {
            self.append_all_pending();
        }
        if !self.settling.is_empty() || self.pace.due().is_some_and(|due| due <= self.now) {
            self.flush();
        }
        for family in std::mem::take(&mut self.settling).iter() {
            self.groups.values_mut().for_each(|group| group.settle(family));
            self.pull_all();
            if self.deferral.is_none() {
                self.actions.push(Action::Synced);
            }
        }
    }

    fn select(&mut self) {
        let deferred = self.deferral.as_ref().map_or(Families::NONE, Deferral::families);
        let rules = self.rules();
        let several = self.several_paths();
        for change in self.rib.select(&rules, several, |prefix| deferred.contains(Family::of(prefix))) {
            let Change { prefix, next_hops } = change;
            self.actions.push(Action::RouteChanged { prefix, next_hops });
        }
        if self.rib.is_pending() {
            self.pace.pending(self.now);
        }
    }

    fn rules(&self) -> Rules {
        Rules { med: self.config.options.med, multipath: self.config.options.multipath }
    }

    /// Whether somebody is told more than the best path.
    fn several_paths(&self) -> bool {
        self.groups.values().any(|group| !group.key().encoding.add_path.is_empty())
    }

    /// Brings pending changes into all groups' logs, as many as are good for one go, and gives every member what it may have.
    fn flush(&mut self) {
        self.append_pending(SLICE);
        let goes_on = self.rib.is_pending();
        self.pace.flushed(self.now, goes_on);
        if !goes_on && std::mem::take(&mut self.owes_end_of_rib) {
            let settled = |group: &Group| self.settled_families(group.key());
            let all: Vec<(GroupId, Families)> =
                self.groups.iter().map(|(id, group)| (*id, settled(group))).collect();
            for (id, families) in all {
                if let Some(group) = self.groups.get_mut(&id) {
                    families.iter().for_each(|family| group.settle(family));
                }
            }
        }
        self.pull_all();
    }

    fn append_pending(&mut self, limit: usize) {
        let pending = self.rib.take_pending(limit);
        let (rules, several) = (self.rules(), self.several_paths());
        let deferred = self.deferral.as_ref().map_or(Families::NONE, Deferral::families);
        let (rib, peers) = (&self.rib, &self.peers);
        let limit = |prefix: &IpNet| {
            if several && !deferred.contains(Family::of(prefix)) { usize::MAX } else { 1 }
        };
        let paths = |id: &DestId| {
            let destination = rib.at(*id);
            (*id, destination.prefix, outs(peers, destination, &rules, limit(&destination.prefix)))
        };
        for group in self.groups.values_mut() {
            group.update(pending.iter().map(paths));
        }
        if self.is_monitored() {
            let prefixes: Vec<IpNet> = pending.iter().map(|id| self.rib.at(*id).prefix).collect();
            prefixes.into_iter().for_each(|prefix| self.note_best(prefix));
        }
        pending.into_iter().for_each(|id| self.rib.told(id));
    }

    /// Brings all pending changes into all groups' logs.
    fn append_all_pending(&mut self) {
        while self.rib.is_pending() {
            self.append_pending(SLICE);
        }
    }

    fn pull_all(&mut self) {
        let members: Vec<IpAddr> = self.groups.values().flat_map(Group::members).collect();
        members.into_iter().for_each(|member| self.pull(member));
        self.groups.values_mut().for_each(Group::trim);
    }

    /// Gives one member what it may have.
    fn pull(&mut self, member: IpAddr) {
        let Some(peer) = self.peers.get_mut(&member) else { return };
        let Some(session) = &peer.session else { return };
        let Some(group) = self.groups.get_mut(&session.group) else { return };
        let pieces = group.pull(&self.rib, member);
        if !pieces.is_empty() {
            let (conn, slot) = (session.conn, session.slot);
            let starts = peer.slots[slot].gave(pieces.iter().map(bytes::Bytes::len).sum(), self.now);
            self.actions.extend(pieces.into_iter().map(|bytes| Action::Send { conn, bytes }));
            if starts {
                self.rearm(member);
            }
        }
    }

    fn on_sent(&mut self, conn: ConnId, bytes: usize) {
        let Some((address, at)) = self.conns.get(&conn).copied() else { return };
        let Some(peer) = self.peers.get_mut(&address) else { return };
        peer.slots[at].wrote(bytes, self.now);
        if let Some((group, session)) = peer.up()
            && session == conn
            && self.groups.get_mut(&group).is_some_and(|group| group.wrote(address, bytes))
        {
            self.pull(address);
        }
    }

    fn on_stopped(&mut self, routes: AfterStop) {
        self.stopped = true;
        let addresses: Vec<IpAddr> = self.peers.keys().copied().collect();
        for address in addresses {
            let keeps = |peer: &Peer| {
                let session = peer.session.as_ref()?;
                let kept = !session.negotiated.restart_families().is_empty();
                (routes == AfterStop::Keep && kept).then_some(session.slot)
            };
            let kept = self.peers.get(&address).and_then(keeps);
            for at in 0..3 {
                if kept == Some(at) {
                    // RFC 4724: only an end without a NOTIFICATION lets the peer keep our routes.
                    self.fire(address, at, FsmEvent::TcpConnectionFails, None);
                } else {
                    let negotiated = self.peers.get(&address).and_then(|p| p.slots[at].negotiated.as_ref());
                    let hard = negotiated.is_some_and(|negotiated| negotiated.notifications_restart);
                    let cease = Notification::cease(cease::SHUTDOWN);
                    let cease = if hard { cease.hard() } else { cease };
                    self.fire(address, at, FsmEvent::ManualStop, Some(cease));
                }
            }
        }
        self.timers = Timers::default();
        self.look_at = None;
        self.pace.flushed(self.now, false);
        self.deferral = None;
    }
}

/// The best paths as the groups want them: with the role of the neighbour that each came from, as it is now.
fn outs(peers: &BTreeMap<IpAddr, Peer>, of: &Destination, rules: &Rules, limit: usize) -> Outs {
    let role = |path: &Path| path.source().and_then(|source| peers.get(&source)).map(|p| p.neighbour.role);
    let out = |path: &Path| Out { path: path.clone(), from: role(path) };
    if limit == 1 {
        return of.best().map(out).into_iter().collect();
    }
    of.ranked(rules, limit).into_iter().map(out).collect()
}
