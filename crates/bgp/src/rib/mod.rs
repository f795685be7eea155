//! The routing information base: adj-RIB-in of all peers and the loc-RIB in one table (RFC 4271 section 3.2).
//!
//! A destination holds one path per source and the path that was chosen. What changed since the last selection
//! stands in a set, so the order in which messages came does not matter to what is chosen.

pub(crate) mod decision;
#[cfg(test)]
mod decision_tests;
pub(crate) mod intern;
pub(crate) mod table;

use std::net::{IpAddr, Ipv4Addr};
use std::ops::Deref;
use std::sync::Arc;

use ipnet::IpNet;
use smallvec::SmallVec;

pub(crate) use decision::Rules;
pub(crate) use intern::{Attributes, Interner};
pub(crate) use table::{NlriMap, NlriSet, PrefixMap, PrefixSet};

use crate::message::Nlri;

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

/// A destination.
#[derive(Debug, Default)]
pub(crate) struct Destination {
    /// Nearly always one.
    paths: SmallVec<[Path; 1]>,
    best: Option<Path>,
    /// Its next hops where there are several; else it is that of the best path, unless that is our own.
    several: Option<Box<[IpAddr]>>,
}

impl Destination {
    pub(crate) fn paths(&self) -> &[Path] {
        &self.paths
    }

    pub(crate) fn best(&self) -> Option<&Path> {
        self.best.as_ref()
    }

    /// The best `limit` paths, the best first; as selection left them.
    pub(crate) fn ranked(&self, rules: &Rules, limit: usize) -> Vec<&Path> {
        if self.best.is_none() {
            return vec![];
        }
        decision::ranked(self.paths.iter().filter(|path| path.usable), rules, limit)
    }

    /// Decides, among the paths that `may` be used.
    fn select(&mut self, rules: &Rules, may: impl Fn(&&Path) -> bool) -> Outcome {
        let (new, several): (Option<Path>, Option<Box<[IpAddr]>>) = match &self.paths[..] {
            [] => (None, None),
            [only] => (may(&only).then(|| only.clone()), None),
            paths => {
                let equal = decision::equal(paths.iter().filter(may), rules);
                let mut hops: Vec<IpAddr> = vec![];
                for hop in equal.iter().filter_map(|path| next_hop(path)) {
                    if !hops.contains(&hop) && hops.len() < rules.multipath.limit {
                        hops.push(hop);
                    }
                }
                hops.sort_unstable();
                (equal.first().map(|path| (*path).clone()), (hops.len() > 1).then(|| hops.into()))
            }
        };
        let one = |path: &Option<Path>| path.as_ref().and_then(next_hop);
        let moved = several != self.several || (several.is_none() && one(&new) != one(&self.best));
        let same = match (&self.best, &new) {
            (None, None) => true,
            (Some(old), Some(new)) => old.same_as(new),
            _ => false,
        };
        let hops = || several.as_deref().map_or_else(|| one(&new).into_iter().collect(), <[IpAddr]>::to_vec);
        let next_hops = moved.then(hops);
        if !same {
            self.best = new;
        }
        self.several = several;
        Outcome { same, next_hops }
    }
}

/// What a decision came to.
struct Outcome {
    /// The best path is the one that it was.
    same: bool,
    /// As in [`Change`].
    next_hops: Option<Vec<IpAddr>>,
}

/// Where a path leads; none: here.
fn next_hop(path: &Path) -> Option<IpAddr> {
    path.learned.is_some().then_some(path.attributes.path.next_hop)
}

/// A destination that was decided anew.
pub(crate) struct Change {
    pub(crate) prefix: IpNet,
    /// Its next hops, if they are others now; empty: no route, or our own.
    pub(crate) next_hops: Option<Vec<IpAddr>>,
}

#[derive(Debug, Default)]
pub(crate) struct Rib {
    destinations: PrefixMap<Destination>,
    changed: PrefixSet,
}

impl Rib {
    /// Puts a path in, in place of an earlier one from the same source with the same identifier.
    pub(crate) fn announce(&mut self, prefix: IpNet, mut path: Path) {
        let destination = self.destinations.or_default(prefix);
        let old = destination.paths.iter_mut().find(|old| old.is_of(path.source(), path.their_id));
        if let Some(old) = old {
            path.our_id = old.our_id;
            let same = old.same_as(&path) && old.usable == path.usable;
            *old = path;
            if same {
                return;
            }
        } else {
            let taken = |id: &u32| destination.paths.iter().any(|other| other.our_id == *id);
            path.our_id = (1..).find(|id| !taken(id)).expect("there are more numbers than paths");
            destination.paths.push(path);
        }
        self.changed.insert(prefix, ());
    }

    /// Takes a path of a source out.
    pub(crate) fn withdraw(&mut self, prefix: IpNet, source: Option<IpAddr>, their_id: u32) {
        if let Some(destination) = self.destinations.get_mut(&prefix) {
            let before = destination.paths.len();
            destination.paths.retain(|path| !path.is_of(source, their_id));
            if destination.paths.len() != before {
                self.changed.insert(prefix, ());
            }
        }
    }

    /// Judges the learned paths of a prefix again: whether they are usable, and with which attributes.
    pub(crate) fn judge(&mut self, prefix: IpNet, mut judge: impl FnMut(&Path) -> (bool, Arc<Attributes>)) {
        let Some(destination) = self.destinations.get_mut(&prefix) else { return };
        for path in destination.paths.iter_mut().filter(|path| path.learned.is_some()) {
            let (usable, attributes) = judge(path);
            if path.usable != usable || path.attributes.id != attributes.id {
                let (learned, received) = (path.learned.clone(), Arc::clone(&path.received));
                path.shared = Arc::new(Shared { learned, received, attributes, usable });
                self.changed.insert(prefix, ());
            }
        }
    }

    /// Has a prefix decided again although nothing about its paths changed.
    pub(crate) fn reconsider(&mut self, prefix: IpNet) {
        self.changed.insert(prefix, ());
    }

    /// Phase 2 of the decision process (RFC 4271 9.1.2) for all that changed. Learned paths of prefixes for which
    /// `deferred` holds are left for later (RFC 4724 section 4.1); the caller reconsiders them. `all`: destinations
    /// whose best path stays the same are told too, since somebody wants more than the best.
    pub(crate) fn select(
        &mut self,
        rules: &Rules,
        all: bool,
        deferred: impl Fn(&IpNet) -> bool,
    ) -> Vec<Change> {
        let mut changes = vec![];
        while let Some((prefix, ())) = self.changed.pop_first() {
            let Some(destination) = self.destinations.get_mut(&prefix) else { continue };
            let later = deferred(&prefix);
            let Outcome { same, next_hops } =
                destination.select(rules, |path| path.usable && (!later || path.learned.is_none()));
            if all || !same || next_hops.is_some() {
                changes.push(Change { prefix, next_hops });
            }
            if destination.paths.is_empty() {
                self.destinations.remove(&prefix);
            }
        }
        changes
    }

    /// Whether nothing waits for [`Rib::select`].
    pub(crate) fn is_settled(&self) -> bool {
        self.changed.is_empty()
    }

    pub(crate) fn get(&self, prefix: &IpNet) -> Option<&Destination> {
        self.destinations.get(prefix)
    }

    pub(crate) fn path(&self, nlri: &Nlri, source: Option<IpAddr>) -> Option<&Path> {
        self.destinations.get(&nlri.prefix)?.paths.iter().find(|path| path.is_of(source, nlri.id))
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (IpNet, &Destination)> {
        self.destinations.iter()
    }
}
