//! Which destination has which number: a table of numbers alone, since the destinations know their prefixes.
//!
//! One octet and a number each, where a tree of prefixes takes four times as much. Nothing depends on its order.

use hashbrown::{DefaultHashBuilder, HashTable};
use ipnet::IpNet;
use std::hash::BuildHasher as _;

use super::{DestId, Destination};

/// The numbers of the destinations that have one.
#[derive(Debug, Default)]
pub(super) struct Numbers {
    table: HashTable<DestId>,
    hasher: DefaultHashBuilder,
}

impl Numbers {
    /// The number of a prefix.
    pub(super) fn get(&self, destinations: &[Destination], prefix: &IpNet) -> Option<DestId> {
        let hash = self.hasher.hash_one(prefix);
        self.table.find(hash, |id| destinations[id.at()].prefix == *prefix).copied()
    }

    /// A prefix that has no number gets one; its destination stands where that says.
    pub(super) fn insert(&mut self, destinations: &[Destination], id: DestId) {
        let Self { table, hasher } = self;
        let hash = |id: &DestId| hasher.hash_one(destinations[id.at()].prefix);
        table.insert_unique(hash(&id), id, hash);
    }

    /// The number of a destination is free.
    pub(super) fn remove(&mut self, destinations: &[Destination], id: DestId) {
        let hash = self.hasher.hash_one(destinations[id.at()].prefix);
        if let Ok(entry) = self.table.find_entry(hash, |other| *other == id) {
            entry.remove();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_has_its_number_until_that_is_free_however_many_there_are() {
        let net = |n: u32, len: u8| IpNet::new(std::net::Ipv4Addr::from(n << 8).into(), len).unwrap();
        let all = (0..5000_u32).flat_map(|n| [net(n, 24), net(n, 25)]);
        let all = all.chain([net(0, 0), "::/0".parse().unwrap(), "fd00::/64".parse().unwrap()]);
        let destinations: Vec<Destination> = all.map(Destination::new).collect();
        let ids = || (0..destinations.len()).map(DestId::from_index);
        let mut numbers = Numbers::default();
        for id in ids() {
            let prefix = &destinations[id.at()].prefix;
            assert_eq!(numbers.get(&destinations, prefix), None, "{prefix}");
            numbers.insert(&destinations, id);
            assert_eq!(numbers.get(&destinations, prefix), Some(id), "{prefix}");
        }
        let odd = |id: &DestId| id.at() % 2 == 1;
        ids().filter(odd).for_each(|id| numbers.remove(&destinations, id));
        for id in ids() {
            let expected = (!odd(&id)).then_some(id);
            assert_eq!(numbers.get(&destinations, &destinations[id.at()].prefix), expected);
        }
    }
}
