//! A neighbour: its three connection slots, the session on one of them, and what it told us.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;

use crate::config::{ConnectMode, Neighbour};
use crate::event::ConnId;
use crate::export::policy::GroupKey;
use crate::rib::Learned;
use crate::session::fsm::State;
use crate::session::negotiated::Negotiated;
use crate::session::slot::Slot;

/// The slot that connects.
pub(super) const OUTGOING: usize = 0;
/// The slots that are connected to.
pub(super) const INCOMING: [usize; 2] = [1, 2];

/// An established session.
#[derive(Debug)]
pub(super) struct Session {
    /// The slot that it runs on.
    pub(super) slot: usize,
    pub(super) conn: ConnId,
    pub(super) learned: Arc<Learned>,
    pub(super) negotiated: Negotiated,
    pub(super) group: GroupKey,
}

#[derive(Debug)]
pub(super) struct Peer {
    pub(super) neighbour: Neighbour,
    pub(super) slots: [Slot; 3],
    pub(super) session: Option<Session>,
    /// Prefixes of which it gave us a path.
    pub(super) adj_in: BTreeSet<IpNet>,
    /// Of these: kept over its restart and not refreshed yet (RFC 4724 section 4.2).
    pub(super) stale: BTreeSet<IpNet>,
    /// The restart timer: the session must be back by then.
    pub(super) restart_until: Option<Duration>,
    /// The upper bound for all stale routes, from the first loss on.
    pub(super) stale_until: Option<Duration>,
    /// Whether the session has been up in this life: the F bit may say so.
    pub(super) was_up: bool,
    pub(super) last_error: Option<String>,
    /// What stands in the speaker's timers for it.
    pub(super) armed: Option<Duration>,
}

impl Peer {
    pub(super) fn new(neighbour: Neighbour, now: Duration) -> Self {
        Self {
            neighbour,
            slots: [Slot::new(false, now), Slot::new(true, now), Slot::new(true, now)],
            session: None,
            adj_in: BTreeSet::new(),
            stale: BTreeSet::new(),
            restart_until: None,
            stale_until: None,
            was_up: false,
            last_error: None,
            armed: None,
        }
    }

    /// When something falls due.
    pub(super) fn deadline(&self) -> Option<Duration> {
        let timers = self.slots.iter().filter_map(Slot::deadline);
        timers.chain(self.restart_until).chain(self.stale_until).min()
    }

    /// The slot that has come furthest.
    pub(super) fn furthest(&self) -> &Slot {
        self.slots.iter().max_by_key(|slot| slot.state).unwrap_or(&self.slots[OUTGOING])
    }

    /// The slot for a new incoming connection: a free one, else the one that has waited longest for its handshake;
    /// never the one with the session.
    pub(super) fn slot_for_incoming(&self) -> usize {
        let candidates = INCOMING.into_iter().filter(|at| self.slots[*at].state != State::Established);
        candidates
            .min_by_key(|at| (self.slots[*at].conn.is_some(), self.slots[*at].since))
            .unwrap_or(INCOMING[0])
    }

    /// Whether the connecting slot should be woken: it rests, it may connect, and no other connection is on its way.
    pub(super) fn should_wake(&self) -> bool {
        self.neighbour.connect == ConnectMode::Both
            && self.slots[OUTGOING].rests()
            && INCOMING.into_iter().all(|at| self.slots[at].state < State::OpenSent)
    }

    /// Address of the session's group and connection, if up.
    pub(super) fn up(&self) -> Option<(&GroupKey, ConnId)> {
        self.session.as_ref().map(|session| (&session.group, session.conn))
    }
}
