//! Tables by prefix, with a tree for each family: a key takes what its family needs, 5 octets for an IPv4 prefix where one of
//! either family takes 18.
//!
//! In order: IPv4 before IPv6, by address, length and path identifier, as [`Nlri`] is ordered.

use std::collections::BTreeMap;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::message::Nlri;
use crate::types::Family;

/// Something for each prefix.
#[derive(Debug, Clone)]
pub(crate) struct PrefixMap<V> {
    v4: BTreeMap<Ipv4Net, V>,
    v6: BTreeMap<Ipv6Net, V>,
}

/// Prefixes.
pub(crate) type PrefixSet = PrefixMap<()>;

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

    pub(crate) fn get_mut(&mut self, prefix: &IpNet) -> Option<&mut V> {
        match prefix {
            IpNet::V4(prefix) => self.v4.get_mut(prefix),
            IpNet::V6(prefix) => self.v6.get_mut(prefix),
        }
    }

    /// What is there for a prefix, or what is new.
    pub(crate) fn or_default(&mut self, prefix: IpNet) -> &mut V
    where
        V: Default,
    {
        match prefix {
            IpNet::V4(prefix) => self.v4.entry(prefix).or_default(),
            IpNet::V6(prefix) => self.v6.entry(prefix).or_default(),
        }
    }

    pub(crate) fn insert(&mut self, prefix: IpNet, value: V) -> Option<V> {
        match prefix {
            IpNet::V4(prefix) => self.v4.insert(prefix, value),
            IpNet::V6(prefix) => self.v6.insert(prefix, value),
        }
    }

    pub(crate) fn remove(&mut self, prefix: &IpNet) -> Option<V> {
        match prefix {
            IpNet::V4(prefix) => self.v4.remove(prefix),
            IpNet::V6(prefix) => self.v6.remove(prefix),
        }
    }

    pub(crate) fn pop_first(&mut self) -> Option<(IpNet, V)> {
        let v4 = self.v4.pop_first().map(|(prefix, value)| (IpNet::V4(prefix), value));
        v4.or_else(|| self.v6.pop_first().map(|(prefix, value)| (IpNet::V6(prefix), value)))
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.v4.is_empty() && self.v6.is_empty()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (IpNet, &V)> {
        let v4 = self.v4.iter().map(|(prefix, value)| (IpNet::V4(*prefix), value));
        v4.chain(self.v6.iter().map(|(prefix, value)| (IpNet::V6(*prefix), value)))
    }
}

/// Something for each path to a prefix.
#[derive(Debug, Clone)]
pub(crate) struct NlriMap<V> {
    v4: BTreeMap<(Ipv4Net, u32), V>,
    v6: BTreeMap<(Ipv6Net, u32), V>,
}

/// Paths.
pub(crate) type NlriSet = NlriMap<()>;

impl<V> Default for NlriMap<V> {
    fn default() -> Self {
        Self { v4: BTreeMap::new(), v6: BTreeMap::new() }
    }
}

impl<V> NlriMap<V> {
    pub(crate) fn get(&self, nlri: &Nlri) -> Option<&V> {
        match nlri.prefix {
            IpNet::V4(prefix) => self.v4.get(&(prefix, nlri.id)),
            IpNet::V6(prefix) => self.v6.get(&(prefix, nlri.id)),
        }
    }

    pub(crate) fn insert(&mut self, nlri: Nlri, value: V) -> Option<V> {
        match nlri.prefix {
            IpNet::V4(prefix) => self.v4.insert((prefix, nlri.id), value),
            IpNet::V6(prefix) => self.v6.insert((prefix, nlri.id), value),
        }
    }

    pub(crate) fn remove(&mut self, nlri: &Nlri) -> Option<V> {
        match nlri.prefix {
            IpNet::V4(prefix) => self.v4.remove(&(prefix, nlri.id)),
            IpNet::V6(prefix) => self.v6.remove(&(prefix, nlri.id)),
        }
    }

    /// The paths of a prefix.
    pub(crate) fn paths(&self, prefix: &IpNet) -> Vec<Nlri> {
        let path = |id: &u32| Nlri { prefix: *prefix, id: *id };
        match *prefix {
            IpNet::V4(v4) => self.v4.range((v4, 0)..=(v4, u32::MAX)).map(|((_, id), _)| path(id)).collect(),
            IpNet::V6(v6) => self.v6.range((v6, 0)..=(v6, u32::MAX)).map(|((_, id), _)| path(id)).collect(),
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.v4.is_empty() && self.v6.is_empty()
    }

    /// How many there are of a family.
    pub(crate) fn count(&self, family: Family) -> usize {
        match family {
            Family::Ipv4 => self.v4.len(),
            Family::Ipv6 => self.v6.len(),
        }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (Nlri, &V)> {
        let v4 =
            self.v4.iter().map(|((prefix, id), value)| (Nlri { prefix: (*prefix).into(), id: *id }, value));
        let v6 =
            self.v6.iter().map(|((prefix, id), value)| (Nlri { prefix: (*prefix).into(), id: *id }, value));
        v4.chain(v6)
    }

    pub(crate) fn keys(&self) -> impl Iterator<Item = Nlri> {
        self.iter().map(|(nlri, _)| nlri)
    }

    pub(crate) fn values(&self) -> impl Iterator<Item = &V> {
        self.v4.values().chain(self.v6.values())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn nlri(text: &str, id: u32) -> Nlri {
        Nlri { prefix: text.parse().unwrap(), id }
    }

    #[test]
    fn tables_hold_what_one_tree_would_in_its_order() {
        let all = [
            nlri("fd00::/64", 0),
            nlri("10.0.0.0/8", 7),
            nlri("10.0.0.0/8", 0),
            nlri("10.0.0.0/24", 1),
            nlri("0.0.0.0/0", u32::MAX),
            nlri("::/0", 3),
            nlri("192.168.0.0/16", 0),
        ];
        let (mut paths, mut prefixes) = (NlriMap::default(), PrefixMap::default());
        let (mut paths_expected, mut prefixes_expected) = (BTreeMap::new(), BTreeMap::new());
        for (value, nlri) in all.into_iter().enumerate() {
            assert_eq!(paths.insert(nlri, value), paths_expected.insert(nlri, value));
            assert_eq!(prefixes.insert(nlri.prefix, value), prefixes_expected.insert(nlri.prefix, value));
        }
        let check = |paths: &NlriMap<usize>, expected: &BTreeMap<Nlri, usize>| {
            assert!(paths.iter().eq(expected.iter().map(|(nlri, value)| (*nlri, value))));
            assert!(paths.keys().eq(expected.keys().copied()) && paths.values().eq(expected.values()));
            let count = |family| expected.keys().filter(|nlri| Family::of(&nlri.prefix) == family).count();
            assert!(Family::ALL.into_iter().all(|family| paths.count(family) == count(family)));
        };
        check(&paths, &paths_expected);
        assert_eq!(
            paths.paths(&nlri("10.0.0.0/8", 0).prefix),
            [nlri("10.0.0.0/8", 0), nlri("10.0.0.0/8", 7)]
        );
        assert_eq!(paths.paths(&nlri("::/0", 0).prefix), [nlri("::/0", 3)]);
        assert_eq!(paths.paths(&nlri("10.0.0.0/9", 0).prefix), []);
        for nlri in [all[1], all[1], all[5], nlri("10.0.0.0/8", 1)] {
            assert_eq!(paths.get(&nlri), paths_expected.get(&nlri));
            assert_eq!(paths.remove(&nlri), paths_expected.remove(&nlri));
            check(&paths, &paths_expected);
        }
        assert!(prefixes.iter().eq(prefixes_expected.iter().map(|(prefix, value)| (*prefix, value))));
        *prefixes.or_default(all[1].prefix) += 10;
        *prefixes.or_default(nlri("fd01::/64", 0).prefix) += 10;
        assert_eq!(prefixes.get(&all[1].prefix), Some(&12));
        assert_eq!(prefixes.get_mut(&nlri("fd01::/64", 0).prefix), Some(&mut 10));
        assert_eq!(prefixes.remove(&all[0].prefix), Some(0));
        let mut left = vec![];
        while let Some((prefix, _)) = prefixes.pop_first() {
            left.push(prefix.to_string());
        }
        assert_eq!(left, ["0.0.0.0/0", "10.0.0.0/8", "10.0.0.0/24", "192.168.0.0/16", "::/0", "fd01::/64"]);
        assert!(prefixes.is_empty() && !paths.is_empty());
    }
}
