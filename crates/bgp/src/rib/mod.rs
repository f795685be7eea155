//! The routing information base: adj-RIB-in of all peers and the loc-RIB in one table (RFC 4271 section 3.2).
//!
//! A destination holds one path per source and the path that was chosen ([`destination`]). What changed is decided when all
//! that came has been taken in, so the order in which messages came does not matter to what is chosen.

pub(crate) mod decision;
#[cfg(test)]
mod decision_tests;
mod destination;
pub(crate) mod intern;
mod table;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::ops::Deref;
use std::sync::Arc;

use ipnet::IpNet;

pub(crate) use decision::Rules;
pub(crate) use destination::Destination;
use destination::Outcome;
pub(crate) use intern::{Attributes, Interner};

use crate::message::Nlri;
use crate::types::Family;
use table::PrefixMap;

/// What a session says about its peer, as far as the decision process cares.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Learned {
    pub(crate) peer: IpAddr,
    pub(crate) router_id: Ipv4Addr,
    pub(crate) external: bool,
}

/// What the paths have in common that came from one neighbour with the same attributes: kept once for all of them.
#[derive(Debug)]
pub(crate) struct Shared {
    /// From whom; none: originated here.
    pub(crate) learned: Option<Arc<Learned>>,
    /// As it came: what the import rule and the filter are applied to, again when they change.
    pub(crate) received: Arc<Attributes>,
    /// As it is used.
    pub(crate) attributes: Arc<Attributes>,
    /// Whether import rule and filter let it into the decision process.
    pub(crate) usable: bool,
}

impl Shared {
    /// The peer that it came from; none: originated here.
    pub(crate) fn source(&self) -> Option<IpAddr> {
        self.learned.as_ref().map(|learned| learned.peer)
    }
}

/// A path to a destination.
#[derive(Debug, Clone)]
pub(crate) struct Path {
    shared: Arc<Shared>,
    /// The path identifier that the peer gave it (RFC 7911).
    pub(crate) their_id: u32,
    /// The one that we give it: unique within the destination for as long as the path lives.
    pub(crate) our_id: u32,
}

impl Deref for Path {
    type Target = Shared;

    fn deref(&self) -> &Shared {
        &self.shared
    }
}

impl Path {
    /// One that [`Rib::announce`] will give a number.
    pub(crate) fn new(shared: Arc<Shared>, their_id: u32) -> Self {
        Self { shared, their_id, our_id: 0 }
    }

    /// One that we originate.
    pub(crate) fn own(attributes: Arc<Attributes>) -> Self {
        let received = Arc::clone(&attributes);
        Self::new(Arc::new(Shared { learned: None, received, attributes, usable: true }), 0)
    }

    /// Whether both say the same from the same source.
    pub(crate) fn same_as(&self, other: &Self) -> bool {
        self.attributes.id == other.attributes.id
            && self.our_id == other.our_id
            && self.learned == other.learned
    }

    fn is_of(&self, source: Option<IpAddr>, their_id: u32) -> bool {
        self.their_id == their_id && self.source() == source
    }
}

/// A destination that leads elsewhere now.
pub(crate) struct Change {
    pub(crate) prefix: IpNet,
    /// Its next hops now; empty: no route, or our own.
    pub(crate) next_hops: Vec<IpAddr>,
}

/// A path that was taken out.
pub(crate) struct Withdrawn {
    pub(crate) id: DestId,
    /// The source has no other path there.
    pub(crate) last: bool,
}

/// Number of a destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct DestId(u32);

impl DestId {
    /// As an index.
    pub(crate) fn at(self) -> usize {
        self.0 as usize
    }

    pub(crate) fn new(number: u32) -> Self {
        Self(number)
    }

    pub(crate) fn number(self) -> u32 {
        self.0
    }

    /// The one at an index.
    pub(crate) fn from_index(at: usize) -> Self {
        Self(u32::try_from(at).expect("an index of a destination is its number"))
    }
}

/// All destinations. Each has a number for as long as somebody has a path to it or is told of it, so that tables beside
/// this one need no prefixes of their own.
#[derive(Debug)]
pub(crate) struct Rib {
    numbers: PrefixMap<DestId>,
    destinations: Vec<Destination>,
    /// The next hops of those that have several.
    several: BTreeMap<DestId, Vec<IpAddr>>,
    free: Vec<DestId>,
    /// To be decided anew.
    changed: Vec<DestId>,
    /// Decided, and the groups have not been told.
    pending: Vec<DestId>,
}

impl Default for Rib {
    fn default() -> Self {
        let mut rib = Self {
            numbers: PrefixMap::default(),
            destinations: vec![],
            several: BTreeMap::new(),
            free: vec![],
            changed: vec![],
            pending: vec![],
        };
        for family in Family::ALL {
            rib.number(family.default_prefix());
        }
        rib
    }
}

impl Rib {
    /// The number of a prefix, a new one if it has none.
    fn number(&mut self, prefix: IpNet) -> DestId {
        let Self { numbers, destinations, free, .. } = self;
        *numbers.or_insert_with(prefix, || {
            let id = free.pop().unwrap_or_else(|| DestId::from_index(destinations.len()));
            match destinations.get_mut(id.at()) {
                Some(free) => *free = Destination::new(prefix),
                None => destinations.push(Destination::new(prefix)),
            }
            id
        })
    }

    /// Lets go of a destination that nobody has a path to or is told of. The default routes stay: a group may originate one.
    fn release(&mut self, id: DestId) {
        let destination = &self.destinations[id.at()];
        if destination.is_idle() && !Self::is_default(id) {
            self.numbers.remove(&destination.prefix);
            self.free.push(id);
        }
    }

    /// Whether it is a default route: those have the first numbers.
    fn is_default(id: DestId) -> bool {
        id.at() < Family::ALL.len()
    }

    /// Puts a path in, in place of an earlier one from the same source with the same identifier. True: there was none.
    pub(crate) fn announce(&mut self, prefix: IpNet, mut path: Path) -> (DestId, bool) {
        let id = self.number(prefix);
        let destination = &mut self.destinations[id.at()];
        let all = destination.paths();
        let known = all.iter().position(|old| old.is_of(path.source(), path.their_id));
        if let Some(at) = known {
            path.our_id = all[at].our_id;
            let same = all[at].same_as(&path) && all[at].usable == path.usable;
            destination.replace(at, path);
            if same {
                return (id, false);
            }
        } else {
            let taken = |id: &u32| all.iter().any(|other| other.our_id == *id);
            path.our_id = (1..).find(|id| !taken(id)).expect("there are more numbers than paths");
            destination.push(path);
        }
        self.reconsider(id);
        (id, known.is_none())
    }

    /// Takes a path of a source out; none: there was none.
    pub(crate) fn withdraw(&mut self, nlri: &Nlri, source: Option<IpAddr>) -> Option<Withdrawn> {
        let id = self.find(&nlri.prefix)?;
        let destination = &mut self.destinations[id.at()];
        let at = destination.paths().iter().position(|path| path.is_of(source, nlri.id))?;
        destination.remove(at);
        let last = !destination.paths().iter().any(|path| path.source() == source);
        self.reconsider(id);
        Some(Withdrawn { id, last })
    }

    /// Judges the learned paths of a prefix again: whether they are usable, and with which attributes.
    pub(crate) fn judge(&mut self, prefix: &IpNet, mut judge: impl FnMut(&Path) -> (bool, Arc<Attributes>)) {
        let Some(id) = self.find(prefix) else { return };
        let destination = &mut self.destinations[id.at()];
        let mut changed = false;
        for at in 0..destination.paths().len() {
            let path = &destination.paths()[at];
            if path.learned.is_none() {
                continue;
            }
            let (usable, attributes) = judge(path);
            if path.usable != usable || path.attributes.id != attributes.id {
                let (learned, received) = (path.learned.clone(), Arc::clone(&path.received));
                let shared = Arc::new(Shared { learned, received, attributes, usable });
                let (their_id, our_id) = (path.their_id, path.our_id);
                destination.replace(at, Path { shared, their_id, our_id });
                changed = true;
            }
        }
        if changed {
            self.reconsider(id);
        }
    }

    /// Has a destination decided again.
    pub(crate) fn reconsider(&mut self, id: DestId) {
        let destination = &mut self.destinations[id.at()];
        if !std::mem::replace(&mut destination.changed, true) {
            self.changed.push(id);
        }
    }

    /// Has all destinations decided again for which `which` holds.
    pub(crate) fn reconsider_all(&mut self, which: impl Fn(&IpNet) -> bool) {
        let all: Vec<DestId> = self.iter().filter(|(_, one)| which(&one.prefix)).map(|(id, _)| id).collect();
        all.into_iter().for_each(|id| self.reconsider(id));
    }

    /// Phase 2 of the decision process (RFC 4271 9.1.2) for all that changed. Learned paths of prefixes for which
    /// `deferred` holds are left for later (RFC 4724 section 4.1); the caller reconsiders them. `all`: destinations
    /// whose best path stays the same are told too, since somebody wants more than the best. Returns those whose next hops
    /// are others now.
    pub(crate) fn select(
        &mut self,
        rules: &Rules,
        all: bool,
        deferred: impl Fn(&IpNet) -> bool,
    ) -> Vec<Change> {
        let mut changes = vec![];
        for id in std::mem::take(&mut self.changed) {
            let destination = &mut self.destinations[id.at()];
            destination.changed = false;
            let later = deferred(&destination.prefix);
            let may = |path: &&Path| path.usable && (!later || path.learned.is_none());
            let mut several = if destination.several { self.several.remove(&id) } else { None };
            let Outcome { same, next_hops } = destination.select(rules, &mut several, may);
            if let Some(several) = several {
                self.several.insert(id, several);
            }
            let tell = all || !same || next_hops.is_some();
            if let Some(next_hops) = next_hops {
                changes.push(Change { prefix: destination.prefix, next_hops });
            }
            if tell {
                self.tell(id);
            } else {
                self.release(id);
            }
        }
        changes.sort_unstable_by_key(|change| change.prefix);
        changes
    }

    /// Has the groups told of a destination with the next flush.
    pub(crate) fn tell(&mut self, id: DestId) {
        let destination = &mut self.destinations[id.at()];
        if !std::mem::replace(&mut destination.pending, true) {
            self.pending.push(id);
        }
    }

    /// Whether there is something to tell the groups.
    pub(crate) fn is_pending(&self) -> bool {
        !self.pending.is_empty()
    }

    /// What the groups are to be told next, at most so many; [`Rib::told`] follows for each.
    pub(crate) fn take_pending(&mut self, limit: usize) -> Vec<DestId> {
        if self.pending.len() <= limit {
            return std::mem::take(&mut self.pending);
        }
        self.pending.drain(..limit).collect()
    }

    /// All groups have been told of a destination.
    pub(crate) fn told(&mut self, id: DestId) {
        self.destinations[id.at()].pending = false;
        self.release(id);
    }

    /// Whether nothing waits for [`Rib::select`].
    pub(crate) fn is_settled(&self) -> bool {
        self.changed.is_empty()
    }

    /// The number of a prefix.
    pub(crate) fn find(&self, prefix: &IpNet) -> Option<DestId> {
        self.numbers.get(prefix).copied()
    }

    /// One more than the largest number.
    pub(crate) fn len(&self) -> usize {
        self.destinations.len()
    }

    /// A destination that has its number.
    pub(crate) fn at(&self, id: DestId) -> &Destination {
        &self.destinations[id.at()]
    }

    pub(crate) fn get(&self, prefix: &IpNet) -> Option<&Destination> {
        Some(self.at(self.find(prefix)?))
    }

    pub(crate) fn path(&self, nlri: &Nlri, source: Option<IpAddr>) -> Option<&Path> {
        self.get(&nlri.prefix)?.paths().iter().find(|path| path.is_of(source, nlri.id))
    }

    /// By prefix.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (DestId, &Destination)> {
        self.numbers.values().map(|id| (*id, self.at(*id)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::attribute::PathAttributes;

    #[test]
    fn a_number_is_given_again_when_nobody_has_a_path_and_everybody_was_told() {
        let (mut rib, mut interner) = (Rib::default(), Interner::default());
        let attributes = interner.intern(PathAttributes::originated(Ipv4Addr::new(10, 0, 0, 1).into()));
        let net = |n: u8| IpNet::from(IpAddr::from([10, n, 0, 0]));
        let settle = |rib: &mut Rib| drop(rib.select(&Rules::default(), false, |_| false));
        let flush = |rib: &mut Rib| rib.take_pending(9).into_iter().for_each(|id| rib.told(id));
        let own = || Path::own(Arc::clone(&attributes));
        let (first, is_new) = rib.announce(net(1), own());
        assert!(is_new && !rib.announce(net(1), own()).1);
        settle(&mut rib);
        flush(&mut rib);
        assert!(rib.find(&net(1)) == Some(first) && rib.withdraw(&Nlri::from(net(1)), None).unwrap().last);
        assert!(rib.withdraw(&Nlri::from(net(1)), None).is_none());
        // Not decided, then not told.
        let (second, _) = rib.announce(net(2), own());
        settle(&mut rib);
        let (third, _) = rib.announce(net(3), own());
        assert!(first != second && second != third && first != third);
        assert_eq!(rib.find(&net(1)), Some(first));
        flush(&mut rib);
        assert_eq!((rib.find(&net(1)), rib.announce(net(4), own()).0), (None, first));
        // One that came and went before anybody decided.
        let (fifth, _) = rib.announce(net(5), own());
        rib.withdraw(&Nlri::from(net(5)), None);
        settle(&mut rib);
        assert_eq!((rib.find(&net(5)), rib.announce(net(6), own()).0), (None, fifth));
        // The default routes keep theirs.
        let default = Family::Ipv4.default_prefix();
        rib.announce(default, own());
        rib.withdraw(&Nlri::from(default), None);
        settle(&mut rib);
        flush(&mut rib);
        assert!(rib.find(&default).is_some());
    }
}
