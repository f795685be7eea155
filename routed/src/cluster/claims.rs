//! Who owns which block: the lowest create revision wins among identical or overlapping claims.

use std::collections::BTreeMap;

use ipnet::IpNet;
use podway_model::ids::NodeName;

use super::table::Table;

/// All claims, by block.
#[derive(Debug, Default)]
pub(crate) struct ClaimIndex {
    /// Create revision and claimant.
    by_block: BTreeMap<IpNet, Vec<(i64, NodeName)>>,
    /// Prefix lengths in use: each is one look for a block that contains another.
    lengths: Vec<u8>,
}

impl ClaimIndex {
    /// Of every claim in the table.
    pub(crate) fn new(table: &Table) -> Self {
        let mut index = Self::default();
        for ((node, block), stored) in &table.claims {
            index.add(node.clone(), *block, stored.create);
        }
        for (node, block, create) in table.unreadable_claims() {
            index.add(node, block, create);
        }
        index
    }

    pub(crate) fn add(&mut self, node: NodeName, block: IpNet, create: i64) {
        self.by_block.entry(block).or_default().push((create, node));
        if !self.lengths.contains(&block.prefix_len()) {
            self.lengths.push(block.prefix_len());
        }
    }

    /// Claims that share an address with `block`: the claimed block, create revision, claimant.
    pub(crate) fn overlapping(&self, block: IpNet) -> impl Iterator<Item = (IpNet, i64, &NodeName)> {
        let within = range_within(block);
        let smaller = self.by_block.range(within).filter(move |(net, _)| block.contains(*net));
        let larger = self
            .lengths
            .iter()
            .filter(move |length| **length < block.prefix_len())
            .filter_map(move |length| IpNet::new(block.addr(), *length).ok())
            .filter_map(|net| self.by_block.get_key_value(&net.trunc()));
        smaller
            .chain(larger)
            .flat_map(|(net, claims)| claims.iter().map(|(create, node)| (*net, *create, node)))
    }

    /// Whether `node`'s claim of `block`, made at `create`, wins against every other.
    pub(crate) fn wins(&self, node: &NodeName, block: IpNet, create: i64) -> bool {
        // Two keys never share a create revision, unless one transaction made both: then the order of keys decides.
        self.overlapping(block).all(|(other_block, other_create, other)| {
            (create, node, block) <= (other_create, other, other_block)
        })
    }
}

/// Keys of all blocks whose first address is in `block`.
pub(crate) fn range_within(block: IpNet) -> std::ops::RangeInclusive<IpNet> {
    let longest = block.max_prefix_len();
    let first = IpNet::new(block.network(), 0).unwrap_or(block);
    let last = IpNet::new(block.broadcast(), longest).unwrap_or(block);
    first..=last
}

#[cfg(test)]
mod tests {
    use podway_model::cluster::Claim;

    use super::*;
    use crate::cluster::table::Stored;

    fn table(claims: &[(&str, &str, i64)]) -> Table {
        let mut table = Table::default();
        for (node, block, create) in claims {
            let value = Claim {
                instance_id: "00000000-0000-4000-8000-000000000001".parse().unwrap(),
                pool: "p".parse().unwrap(),
                confirmed: true,
            };
            let key = (node.parse().unwrap(), block.parse().unwrap());
            table.claims.insert(key, Stored { value, create: *create, modified: *create });
        }
        table
    }

    #[test]
    fn the_lowest_create_revision_wins_among_overlapping_claims() {
        for (claims, winners) in [
            (&[("a", "10.0.0.0/26", 5), ("b", "10.0.0.0/26", 4)][..], &["b"][..]),
            (&[("a", "10.0.0.0/24", 5), ("b", "10.0.0.64/26", 4)], &["b"]),
            (&[("a", "10.0.0.0/24", 3), ("b", "10.0.0.64/26", 4)], &["a"]),
            (&[("a", "10.0.0.0/26", 3), ("b", "10.0.0.64/26", 4)], &["a", "b"]),
            (&[("a", "fd00::/122", 3), ("b", "fd00::/120", 4), ("c", "10.0.0.0/26", 9)], &["a", "c"]),
            // A loser still stands in the way until it has deleted its key.
            (&[("a", "10.0.0.0/26", 1), ("b", "10.0.0.0/24", 2), ("c", "10.0.0.128/26", 3)], &["a"]),
        ] {
            let table = table(claims);
            let index = ClaimIndex::new(&table);
            let won = table.claims.iter().filter(|((node, block), s)| index.wins(node, *block, s.create));
            let won: Vec<&str> = won.map(|((node, _), _)| node.as_str()).collect();
            assert_eq!(won, winners, "{claims:?}");
        }
    }
}
