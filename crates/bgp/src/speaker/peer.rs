//! A neighbour: its three connection slots, the session on one of them, and what it told us.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::monitor::Refused;
use crate::config::{ConnectMode, Neighbour, SpeakerConfig};
use crate::event::ConnId;
use crate::export::policy::GroupKey;
use crate::message::Nlri;
use crate::rib::{Attributes, DestId, Destination, Learned, Path, Rib, Shared, Withdrawn};
use crate::session::fsm::State;
use crate::session::negotiated::Negotiated;
use crate::session::slot::Slot;
use crate::timers::Armed;
use crate::types::{Families, Family};

/// The slot that connects.
pub(super) const OUTGOING: usize = 0;
/// The slots that are connected to.
pub(super) const INCOMING: [usize; 2] = [1, 2];

/// Number of an update group.
pub(super) type GroupId = u32;

/// An established session.
#[derive(Debug)]
pub(super) struct Session {
    /// The slot that it runs on.
    pub(super) slot: usize,
    pub(super) conn: ConnId,
    pub(super) learned: Arc<Learned>,
    pub(super) negotiated: Negotiated,
    pub(super) group: GroupId,
    /// No two sessions of a speaker have the same.
    pub(super) number: u64,
    pub(super) since: Duration,
    /// The OPENs that were sent and received, for monitoring stations.
    pub(super) opens: Option<Box<(Bytes, Bytes)>>,
    /// Paths that the peer has not told again since its BoRR (RFC 7313 section 4), per family, and until when it may.
    pub(super) refreshing: BTreeMap<Family, (BTreeSet<Nlri>, Duration)>,
    /// What its last path has in common with others.
    last: Option<Arc<Shared>>,
}

impl Session {
    pub(super) fn new(
        (slot, conn): (usize, ConnId),
        (number, since, opens): (u64, Duration, Option<Box<(Bytes, Bytes)>>),
        learned: Arc<Learned>,
        negotiated: Negotiated,
        group: GroupId,
    ) -> Self {
        Self {
            slot,
            conn,
            learned,
            negotiated,
            group,
            number,
            since,
            opens,
            refreshing: BTreeMap::new(),
            last: None,
        }
    }

    /// What a path has in common with those that came before it, if that is all.
    pub(super) fn shared(
        &mut self,
        received: &Arc<Attributes>,
        attributes: Arc<Attributes>,
        usable: bool,
    ) -> Arc<Shared> {
        let same = |last: &&Arc<Shared>| {
            Arc::ptr_eq(&last.received, received)
                && Arc::ptr_eq(&last.attributes, &attributes)
                && last.usable == usable
        };
        if let Some(last) = self.last.as_ref().filter(same) {
            return Arc::clone(last);
        }
        let (learned, received) = (Some(Arc::clone(&self.learned)), Arc::clone(received));
        let shared = Arc::new(Shared { learned, received, attributes, usable });
        self.last = Some(Arc::clone(&shared));
        shared
    }
}

/// A neighbour that may not have a session for now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Held {
    /// None: until the operator says so.
    pub(super) until: Option<Duration>,
    /// For people.
    pub(super) why: String,
}

#[derive(Debug)]
pub(super) struct Peer {
    pub(super) neighbour: Neighbour,
    /// It is known by a range or circle only, and forgotten when it is gone.
    pub(super) dynamic: bool,
    pub(super) slots: [Slot; 3],
    pub(super) session: Option<Session>,
    /// Until when it may come back after our own restart, before which its session was up: until then we look for it
    /// although nobody lists it, and it is what it was.
    pub(super) returning_until: Option<Duration>,
    /// Since when its session is to end.
    pub(super) leaving_since: Option<Duration>,
    /// We would lose nothing by the end of its session, and say so to it.
    pub(super) letting_go: bool,
    /// Paths that it gave us.
    pub(super) adj_in: AdjIn,
    /// Families whose count was warned about in this session.
    pub(super) warned: Families,
    /// Of the paths: kept over its restart and not refreshed yet (RFC 4724 section 4.2).
    pub(super) stale: BTreeSet<Nlri>,
    /// The restart timer: the session must be back by then.
    pub(super) restart_until: Option<Duration>,
    /// The upper bound for all stale routes, from the first loss on.
    pub(super) stale_until: Option<Duration>,
    /// How long its stale routes are kept beyond the restart time, per family (RFC 9494).
    pub(super) long_lived: BTreeMap<Family, Duration>,
    /// Families whose stale routes are a last resort now, and until when.
    pub(super) last_resort: BTreeMap<Family, Duration>,
    /// UPDATE messages that came from it.
    pub(super) updates: u64,
    /// Whether the session has been up in this life: the F bit may say so.
    pub(super) was_up: bool,
    pub(super) held: Option<Held>,
    pub(super) last_error: Option<String>,
    /// The last NOTIFICATION that it was sent, and when; it stays when a session is up again.
    pub(super) told: Option<(String, Duration)>,
    /// How much of what it sent was not used as it came (RFC 7606), over all its sessions.
    pub(super) ignored: u64,
    /// Of that: for which reason.
    pub(super) refused: Refused,
    /// The last remark about what it sent.
    pub(super) remark: Option<String>,
    /// What stands in the speaker's timers for it.
    pub(super) armed: Armed,
}

impl Peer {
    pub(super) fn new(neighbour: Neighbour, now: Duration) -> Self {
        let why = |words: &String| format!("shut down by the operator: {words}");
        let held = neighbour.options.shutdown.as_ref().map(|words| Held { until: None, why: why(words) });
        Self {
            neighbour,
            dynamic: false,
            slots: [Slot::new(false, now), Slot::new(true, now), Slot::new(true, now)],
            session: None,
            returning_until: None,
            leaving_since: None,
            letting_go: false,
            adj_in: AdjIn::default(),
            warned: Families::NONE,
            stale: BTreeSet::new(),
            restart_until: None,
            stale_until: None,
            long_lived: BTreeMap::new(),
            last_resort: BTreeMap::new(),
            updates: 0,
            told: None,
            ignored: 0,
            refused: Refused::default(),
            remark: None,
            was_up: false,
            last_error: held.as_ref().map(|held| held.why.clone()),
            held,
            armed: None,
        }
    }

    /// When something falls due.
    pub(super) fn deadline(&self) -> Option<Duration> {
        let timers = self.slots.iter().filter_map(Slot::deadline);
        let held = self.held.as_ref().and_then(|held| held.until);
        let refreshing = self.session.iter().flat_map(|session| session.refreshing.values());
        timers
            .chain(self.restart_until)
            .chain(self.stale_until)
            .chain(self.returning_until)
            .chain(self.last_resort.values().copied())
            .chain(held)
            .chain(refreshing.map(|(_, until)| *until))
            .min()
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
        self.may_connect()
            && self.slots[OUTGOING].rests()
            && INCOMING.into_iter().all(|at| self.slots[at].state < State::OpenSent)
    }

    /// Whether we may open a connection to it.
    pub(super) fn may_connect(&self) -> bool {
        let looked_for = !self.dynamic || !self.stale.is_empty() || self.returning_until.is_some();
        self.neighbour.connect == ConnectMode::Both && self.held.is_none() && looked_for
    }

    /// Number of the session's group and its connection, if up.
    pub(super) fn up(&self) -> Option<(GroupId, ConnId)> {
        self.session.as_ref().map(|session| (session.group, session.conn))
    }

    /// What its group has in common, with a session.
    pub(super) fn group_key(&self, config: &SpeakerConfig, negotiated: &Negotiated) -> GroupKey {
        let key = GroupKey::new(config, &self.neighbour, negotiated);
        GroupKey { letting_go: self.letting_go, ..key }
    }

    /// Whether its routes are in use, or ours with it.
    pub(super) fn is_relied_on(&self) -> bool {
        self.session.is_some() || !self.stale.is_empty() || self.returning_until.is_some()
    }

    /// Whether nothing is left of a neighbour that came from a range or circle.
    pub(super) fn is_gone(&self) -> bool {
        let idle = self.slots.iter().all(|slot| slot.conn.is_none());
        let empty = self.session.is_none() && self.adj_in.is_empty() && self.held.is_none();
        self.dynamic && idle && empty && self.returning_until.is_none()
    }
}

/// Adj-RIB-in (RFC 4271 section 3.2): where a peer has paths. The paths themselves stand in the RIB.
#[derive(Debug, Default)]
pub(super) struct AdjIn {
    /// Numbers of destinations, sixty-four to a word: those of one peer mostly lie side by side.
    words: BTreeMap<u32, u64>,
    /// Paths of IPv4, and of IPv6.
    counts: [u32; 2],
}

impl AdjIn {
    /// A path to a destination is there that was not there before.
    pub(super) fn insert(&mut self, nlri: &Nlri, destination: DestId) {
        let (word, bit) = Self::place(destination);
        *self.words.entry(word).or_default() |= bit;
        self.counts[Self::slot(Family::of(&nlri.prefix))] += 1;
    }

    /// A path is there no more.
    pub(super) fn remove(&mut self, nlri: &Nlri, withdrawn: &Withdrawn) {
        let (word, bit) = Self::place(withdrawn.id);
        if withdrawn.last
            && let Entry::Occupied(mut bits) = self.words.entry(word)
        {
            *bits.get_mut() &= !bit;
            if *bits.get() == 0 {
                bits.remove();
            }
        }
        self.counts[Self::slot(Family::of(&nlri.prefix))] -= 1;
    }

    fn place(destination: DestId) -> (u32, u64) {
        let number = destination.number();
        (number / u64::BITS, 1 << (number % u64::BITS))
    }

    fn slot(family: Family) -> usize {
        usize::from(family == Family::Ipv6)
    }

    /// Paths of a family.
    pub(super) fn count(&self, family: Family) -> u32 {
        self.counts[Self::slot(family)]
    }

    /// Paths.
    pub(super) fn len(&self) -> usize {
        self.counts.iter().map(|count| *count as usize).sum()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.words.is_empty()
    }

    pub(super) fn destinations(&self) -> impl Iterator<Item = DestId> {
        self.destinations_from(DestId::from_index(0))
    }

    /// Those from a number on.
    pub(super) fn destinations_from(&self, from: DestId) -> impl Iterator<Item = DestId> {
        let of = |(word, bits): (&u32, &u64)| {
            let (first, bits) = (word * u64::BITS, *bits);
            (0..u64::BITS).filter(move |bit| bits >> bit & 1 == 1).map(move |bit| DestId::new(first + bit))
        };
        let words = self.words.range(Self::place(from).0..);
        words.flat_map(of).skip_while(move |id| *id < from)
    }

    /// The paths of `peer`, whose adj-RIB-in this is, each with what stands in the RIB.
    pub(super) fn entries<'a>(
        &'a self,
        rib: &'a Rib,
        peer: IpAddr,
    ) -> impl Iterator<Item = (Nlri, &'a Path, &'a Destination)> {
        self.destinations().flat_map(move |id| {
            let destination = rib.at(id);
            let theirs = destination.paths().iter().filter(move |path| path.source() == Some(peer));
            theirs
                .map(move |path| (Nlri { prefix: destination.prefix, id: path.their_id }, path, destination))
        })
    }

    /// The same without what stands there.
    pub(super) fn paths<'a>(&'a self, rib: &'a Rib, peer: IpAddr) -> impl Iterator<Item = Nlri> + 'a {
        self.entries(rib, peer).map(|(nlri, _, _)| nlri)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_adj_rib_in_is_a_set_of_numbers_in_order() {
        let nlri = Nlri::from(Family::Ipv4.default_prefix());
        let mut rng = crate::session::rng::Rng::new(3);
        let (mut adj_in, mut expected) = (AdjIn::default(), BTreeSet::new());
        for _ in 0..20_000 {
            let id = DestId::from_index(usize::try_from(rng.next() % 700).unwrap());
            if expected.insert(id) {
                adj_in.insert(&nlri, id);
            } else {
                // One of two paths, then the other.
                adj_in.insert(&nlri, id);
                adj_in.remove(&nlri, &Withdrawn { id, last: false });
                if rng.next().is_multiple_of(2) {
                    expected.remove(&id);
                    adj_in.remove(&nlri, &Withdrawn { id, last: true });
                }
            }
            assert!(adj_in.len() == expected.len() && adj_in.is_empty() == expected.is_empty());
        }
        assert!(adj_in.destinations().eq(expected.iter().copied()) && expected.len() > 200);
        for from in [0, 1, 63, 64, 65, 128, 699, 700] {
            let from = DestId::from_index(from);
            assert!(adj_in.destinations_from(from).eq(expected.range(from..).copied()), "{from:?}");
        }
        for id in expected {
            adj_in.remove(&nlri, &Withdrawn { id, last: true });
        }
        assert!(adj_in.is_empty() && adj_in.destinations().next().is_none());
    }
}
