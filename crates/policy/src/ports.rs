//! Sets of (protocol, destination port) in a normal form: equal sets are equal values.

use std::collections::{BTreeMap, BTreeSet};

use podway_model::k8s::Protocol;

/// What rules allow towards one kind of peer.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct PortSet {
    /// Every protocol, those without ports included; then the rest is empty.
    all: bool,
    /// Protocols with all their ports; they have no entry in `ranges`.
    whole: BTreeSet<Protocol>,
    /// Ranges, ascending, neither touching nor overlapping each other.
    ranges: BTreeMap<Protocol, Vec<(u16, u16)>>,
}

/// A part of a [`PortSet`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Grant {
    /// Every protocol.
    All,
    /// All ports of a protocol.
    Whole(Protocol),
    /// Ports from the first to the last, both included.
    Range(Protocol, u16, u16),
}

impl PortSet {
    /// Whether it allows nothing.
    pub(crate) fn is_empty(&self) -> bool {
        !self.all && self.whole.is_empty() && self.ranges.is_empty()
    }

    /// Adds a grant.
    pub(crate) fn insert(&mut self, grant: Grant) {
        if self.all {
            return;
        }
        match grant {
            Grant::All => *self = Self { all: true, ..Self::default() },
            Grant::Whole(protocol) => {
                self.ranges.remove(&protocol);
                self.whole.insert(protocol);
            }
            Grant::Range(protocol, first, last) => {
                if !self.whole.contains(&protocol) {
                    merge(self.ranges.entry(protocol).or_default(), first, last);
                }
            }
        }
    }

    /// Adds all of another set.
    pub(crate) fn union(&mut self, other: &Self) {
        for grant in other.grants() {
            self.insert(grant);
        }
    }

    /// Its parts, in order.
    pub(crate) fn grants(&self) -> impl Iterator<Item = Grant> + '_ {
        let ranges = self
            .ranges
            .iter()
            .flat_map(|(protocol, ranges)| ranges.iter().map(|(a, b)| Grant::Range(*protocol, *a, *b)));
        self.all
            .then_some(Grant::All)
            .into_iter()
            .chain(self.whole.iter().copied().map(Grant::Whole))
            .chain(ranges)
    }

    /// Whether everything in `other` is in here too.
    pub(crate) fn covers(&self, other: &Self) -> bool {
        other.grants().all(|grant| match grant {
            Grant::All => self.all,
            Grant::Whole(protocol) => self.all || self.whole.contains(&protocol),
            Grant::Range(protocol, first, last) => {
                self.all
                    || self.whole.contains(&protocol)
                    || self
                        .ranges
                        .get(&protocol)
                        .is_some_and(|ranges| ranges.iter().any(|(a, b)| *a <= first && last <= *b))
            }
        })
    }
}

/// Adds a range to an ascending list without touching or overlapping members.
fn merge(ranges: &mut Vec<(u16, u16)>, mut first: u16, mut last: u16) {
    let touches = |a: u16, b: u16| a <= last.saturating_add(1) && first <= b.saturating_add(1);
    for (a, b) in ranges.iter().filter(|(a, b)| touches(*a, *b)).copied().collect::<Vec<_>>() {
        first = first.min(a);
        last = last.max(b);
    }
    ranges.retain(|(a, b)| *b < first || last < *a);
    let at = ranges.partition_point(|(a, _)| *a < first);
    ranges.insert(at, (first, last));
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::oracle::Traffic;

    fn of(grant: Grant) -> PortSet {
        let mut set = PortSet::default();
        set.insert(grant);
        set
    }

    fn contains(set: &PortSet, traffic: Traffic) -> bool {
        match traffic {
            Traffic::Other(_) => set.all,
            Traffic::Port(protocol, port) => set.covers(&of(Grant::Range(protocol, port, port))),
        }
    }

    fn grant() -> impl Strategy<Value = Grant> {
        let protocol = prop::sample::select(Protocol::ALL.as_slice());
        prop_oneof![
            1 => Just(Grant::All),
            2 => protocol.clone().prop_map(Grant::Whole),
            12 => (protocol, prop_oneof![0u16..40, 65500u16..=65535], 0u16..6)
                .prop_map(|(p, a, n)| Grant::Range(p, a, a.saturating_add(n))),
        ]
    }

    fn naive(grants: &[Grant], traffic: Traffic) -> bool {
        grants.iter().any(|grant| match (grant, traffic) {
            (Grant::All, _) => true,
            (Grant::Whole(p), Traffic::Port(q, _)) => *p == q,
            (Grant::Range(p, a, b), Traffic::Port(q, port)) => *p == q && (*a..=*b).contains(&port),
            (_, Traffic::Other(_)) => false,
        })
    }

    proptest! {
        #[test]
        fn a_set_holds_what_was_put_in_and_has_one_form(
            grants in prop::collection::vec(grant(), 0..12).prop_shuffle(),
            ports in prop::collection::vec(prop_oneof![0u16..50, 65490u16..=65535], 1..20),
        ) {
            let mut set = PortSet::default();
            grants.iter().for_each(|g| set.insert(*g));
            for port in ports {
                for protocol in Protocol::ALL {
                    let traffic = Traffic::Port(protocol, port);
                    prop_assert_eq!(contains(&set, traffic), naive(&grants, traffic), "{:?} in {:?}", traffic, set);
                }
            }
            prop_assert_eq!(contains(&set, Traffic::Other(1)), naive(&grants, Traffic::Other(1)));
            let mut reversed = PortSet::default();
            grants.iter().rev().for_each(|g| reversed.insert(*g));
            prop_assert_eq!(&reversed, &set);
            prop_assert!(grants.iter().all(|g| set.covers(&of(*g))));
        }
    }
}
