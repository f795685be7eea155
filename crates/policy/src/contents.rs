//! What stands in the sets and maps, and what has changed in them since the kernel was last told.

use std::collections::BTreeMap;
use std::net::IpAddr;

use podway_model::ids::IfName;
use podway_model::k8s::{PolicyType, Protocol};

use crate::intern::Id;

/// Key of an element. The order of the variants is the order of the sets in listings.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Key {
    /// A classified interface.
    Interface(IfName),
    /// A local pod in one direction: its policy set.
    Local(PolicyType, IfName, IpAddr),
    /// A peer: its class, where that is not its segment's.
    Class(IpAddr),
    /// A segment of addresses, first to last: its class.
    Segment(IpAddr, IpAddr),
    /// A policy set allows something to everybody (no class) or to a class.
    Verdict(Id, Option<Id>, Atom),
}

/// What one verdict element allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Atom {
    /// Every protocol.
    All,
    /// All ports of a protocol.
    Whole(Protocol),
    /// One port.
    Port(Protocol, u16),
    /// More than [`crate::EXPANDED_PORTS`] ports in a row.
    Range(Protocol, u16, u16),
}

/// Elements with their data (policy set or class; 0 where the element has none).
#[derive(Debug, Clone, Default)]
pub(crate) struct Contents {
    now: BTreeMap<Key, Id>,
    /// What stood there when the kernel was last told, for every key touched since.
    before: BTreeMap<Key, Option<Id>>,
}

/// A change of one element.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Difference {
    /// Its key.
    pub(crate) key: Key,
    /// What the kernel has.
    pub(crate) old: Option<Id>,
    /// What it should have.
    pub(crate) new: Option<Id>,
}

impl Contents {
    /// Sets an element, or removes it.
    pub(crate) fn set(&mut self, key: Key, value: Option<Id>) {
        let old = match value {
            Some(value) => self.now.insert(key.clone(), value),
            None => self.now.remove(&key),
        };
        if old != value {
            self.before.entry(key).or_insert(old);
        }
    }

    /// All elements, in order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&Key, Id)> {
        self.now.iter().map(|(key, value)| (key, *value))
    }

    /// How many elements there are.
    pub(crate) fn len(&self) -> usize {
        self.now.len()
    }

    /// What has changed since this was last asked, in order of the keys.
    pub(crate) fn take_changes(&mut self) -> Vec<Difference> {
        std::mem::take(&mut self.before)
            .into_iter()
            .map(|(key, old)| Difference { new: self.now.get(&key).copied(), key, old })
            .filter(|difference| difference.old != difference.new)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_came_and_went_between_two_looks_is_no_change() {
        let key = |n: u8| Key::Class(IpAddr::from([10, 0, 0, n]));
        let mut contents = Contents::default();
        contents.set(key(1), Some(1));
        contents.set(key(2), Some(2));
        assert_eq!(contents.take_changes().len(), 2);
        contents.set(key(3), Some(3));
        contents.set(key(3), None);
        contents.set(key(1), Some(9));
        contents.set(key(1), Some(1));
        contents.set(key(2), Some(5));
        contents.set(key(2), Some(6));
        assert_eq!(contents.take_changes(), [Difference { key: key(2), old: Some(2), new: Some(6) }]);
        assert!(contents.take_changes().is_empty());
        assert_eq!(contents.len(), 2);
    }
}
