//! A table by prefix, with a tree for each family: a key takes what its family needs, 5 octets for an IPv4 prefix where one of
//! either family takes 18.
//!
//! In order: IPv4 before IPv6, by address and length, as [`IpNet`] is ordered.

use std::collections::BTreeMap;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// Something for each prefix.
#[derive(Debug, Clone)]
pub(crate) struct PrefixMap<V> {
    v4: BTreeMap<Ipv4Net, V>,
    v6: BTreeMap<Ipv6Net, V>,
}

impl<V> Default for PrefixMap<V> {
    fn default() -> Self {
        Self { v4: BTreeMap::new(), v6: BTreeMap::new() }
    }
}

impl<V> PrefixMap<V> {
    pub(crate) fn get(&self, prefix: &IpNet) -> Option<&V> {
        match prefix {
            IpNet::V4(prefix) => self.v4.get(prefix),
            IpNet::V6(prefix) => self.v6.get(prefix),
        }
    }

    /// What is there for a prefix, or what is new.
    pub(crate) fn or_insert_with(&mut self, prefix: IpNet, new: impl FnOnce() -> V) -> &mut V {
        match prefix {
            IpNet::V4(prefix) => self.v4.entry(prefix).or_insert_with(new),
            IpNet::V6(prefix) => self.v6.entry(prefix).or_insert_with(new),
        }
    }

    pub(crate) fn remove(&mut self, prefix: &IpNet) -> Option<V> {
        match prefix {
            IpNet::V4(prefix) => self.v4.remove(prefix),
            IpNet::V6(prefix) => self.v6.remove(prefix),
        }
    }

    /// By prefix.
    pub(crate) fn values(&self) -> impl Iterator<Item = &V> {
        self.v4.values().chain(self.v6.values())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn a_table_holds_what_one_tree_would_in_its_order() {
        let net = |text: &str| text.parse::<IpNet>().unwrap();
        let all =
            ["fd00::/64", "10.0.0.0/8", "10.0.0.0/24", "0.0.0.0/0", "::/0", "192.168.0.0/16", "9.0.0.0/8"]
                .map(net);
        let (mut table, mut expected) = (PrefixMap::default(), BTreeMap::new());
        for (value, prefix) in all.into_iter().enumerate() {
            assert_eq!(*table.or_insert_with(prefix, || value), value);
            assert_eq!(*table.or_insert_with(prefix, || 99), value);
            expected.insert(prefix, value);
            assert!(table.values().eq(expected.values()), "{prefix}");
        }
        for prefix in [all[1], all[1], all[4], net("10.0.0.0/9")] {
            assert_eq!(table.get(&prefix), expected.get(&prefix));
            assert_eq!(table.remove(&prefix), expected.remove(&prefix));
            assert!(table.values().eq(expected.values()), "{prefix}");
        }
    }
}
