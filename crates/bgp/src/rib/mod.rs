//! The routing information base: adj-RIB-in of all peers and the loc-RIB in one table (RFC 4271 section 3.2).
//!
//! A destination holds one path per source and the path that was chosen. What changed since the last selection
//! stands in a set, so the order in which messages came does not matter to what is chosen.

pub(crate) mod decision;
#[cfg(test)]
mod decision_tests;
pub(crate) mod intern;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use ipnet::IpNet;

pub(crate) use intern::{Attributes, Interner};

/// What a session says about its peer, as far as the decision process cares.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Learned {
    pub(crate) peer: IpAddr,
    pub(crate) router_id: Ipv4Addr,
    pub(crate) external: bool,
}

/// A path to a destination.
#[derive(Debug, Clone)]
pub(crate) struct Path {
    /// From whom; none: originated here.
    pub(crate) learned: Option<Arc<Learned>>,
    pub(crate) attributes: Arc<Attributes>,
    /// Whether the import rule lets it into the decision process.
    pub(crate) usable: bool,
}

impl Path {
    /// The peer that it came from; none: originated here.
    pub(crate) fn source(&self) -> Option<IpAddr> {
        self.learned.as_ref().map(|learned| learned.peer)
    }

    /// Whether both say the same from the same source.
    pub(crate) fn same_as(&self, other: &Self) -> bool {
        self.attributes.id == other.attributes.id && self.source() == other.source()
    }
}

/// A destination.
#[derive(Debug, Default)]
pub(crate) struct Destination {
    paths: Vec<Path>,
    best: Option<Path>,
}

impl Destination {
    pub(crate) fn paths(&self) -> &[Path] {
        &self.paths
    }

    pub(crate) fn best(&self) -> Option<&Path> {
        self.best.as_ref()
    }
}

/// A best path that changed.
pub(crate) struct Change {
    pub(crate) prefix: IpNet,
    pub(crate) old: Option<Path>,
    pub(crate) new: Option<Path>,
}

#[derive(Debug, Default)]
pub(crate) struct Rib {
    destinations: BTreeMap<IpNet, Destination>,
    changed: BTreeSet<IpNet>,
}

impl Rib {
    /// Puts a path in, in place of an earlier one from the same source.
    pub(crate) fn announce(&mut self, prefix: IpNet, path: Path) {
        let destination = self.destinations.entry(prefix).or_default();
        match destination.paths.iter_mut().find(|old| old.source() == path.source()) {
            Some(old) if old.same_as(&path) && old.usable == path.usable && old.learned == path.learned => {
                return;
            }
            Some(old) => *old = path,
            None => destination.paths.push(path),
        }
        self.changed.insert(prefix);
    }

    /// Takes the path of a source out.
    pub(crate) fn withdraw(&mut self, prefix: IpNet, source: Option<IpAddr>) {
        if let Some(destination) = self.destinations.get_mut(&prefix) {
            let before = destination.paths.len();
            destination.paths.retain(|path| path.source() != source);
            if destination.paths.len() != before {
                self.changed.insert(prefix);
            }
        }
    }

    /// Judges the learned paths of a prefix again.
    pub(crate) fn judge(&mut self, prefix: IpNet, usable: impl Fn(&Path) -> bool) {
        let Some(destination) = self.destinations.get_mut(&prefix) else { return };
        for path in destination.paths.iter_mut().filter(|path| path.learned.is_some()) {
            let now = usable(path);
            if std::mem::replace(&mut path.usable, now) != now {
                self.changed.insert(prefix);
            }
        }
    }

    /// Has a prefix decided again although nothing about its paths changed.
    pub(crate) fn reconsider(&mut self, prefix: IpNet) {
        self.changed.insert(prefix);
    }

    /// Phase 2 of the decision process (RFC 4271 9.1.2) for all that changed. Learned paths of prefixes for which
    /// `deferred` holds are left for later (RFC 4724 section 4.1); the caller reconsiders them.
    pub(crate) fn select(&mut self, deferred: impl Fn(&IpNet) -> bool) -> Vec<Change> {
        let mut changes = vec![];
        for prefix in std::mem::take(&mut self.changed) {
            let Some(destination) = self.destinations.get_mut(&prefix) else { continue };
            let later = deferred(&prefix);
            let candidates =
                destination.paths.iter().filter(|path| path.usable && (!later || path.learned.is_none()));
            let new = decision::best(candidates).cloned();
            let same = match (&destination.best, &new) {
                (None, None) => true,
                (Some(old), Some(new)) => old.same_as(new) && old.learned == new.learned,
                _ => false,
            };
            if !same {
                let old = std::mem::replace(&mut destination.best, new.clone());
                changes.push(Change { prefix, old, new });
            }
            if destination.paths.is_empty() {
                self.destinations.remove(&prefix);
            }
        }
        changes
    }

    /// Whether anything waits for [`Rib::select`].
    pub(crate) fn is_settled(&self) -> bool {
        self.changed.is_empty()
    }

    pub(crate) fn best(&self, prefix: &IpNet) -> Option<&Path> {
        self.destinations.get(prefix)?.best()
    }

    pub(crate) fn path(&self, prefix: &IpNet, source: Option<IpAddr>) -> Option<&Path> {
        self.destinations.get(prefix)?.paths.iter().find(|path| path.source() == source)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&IpNet, &Destination)> {
        self.destinations.iter()
    }
}
