//! Which pools can be used, and which block of a pool to claim next.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use podway_model::cidr::overlap;
use podway_model::cluster::{Assignment, Pool};
use podway_model::ids::{NodeName, ObjectName};
use podway_model::k8s::Labels;

use super::claims::ClaimIndex;
use super::table::{Stored, Table};

/// The pools as every reader sees them alike.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Pools {
    /// Usable ones.
    pub(crate) usable: BTreeMap<ObjectName, Pool>,
    /// Usable ones that nobody claims from any more: their block size changed while claims exist.
    pub(crate) closed: BTreeSet<ObjectName>,
    /// What is wrong with the others, and with the closed ones.
    pub(crate) problems: Vec<String>,
}

impl Pools {
    /// Judges the pools of a table. Of pools that overlap the one made first stays: a later mistake must not
    /// take the addresses of running pods away.
    pub(crate) fn new(table: &Table) -> Self {
        let mut pools = Self::default();
        let mut by_age: Vec<(&ObjectName, &Stored<Pool>)> = table.pools.iter().collect();
        by_age.sort_by_key(|(name, stored)| (stored.create, *name));
        for (name, Stored { value: pool, .. }) in by_age {
            if let Err(reason) = check(pool) {
                pools.problems.push(format!("pools/{name}: {reason}"));
                continue;
            }
            if let Some((first, other)) =
                pools.usable.iter().find(|(_, other)| overlap(pool.cidr, other.cidr))
            {
                let text =
                    format!("pools/{name}: {} overlaps {} of pool {first}; not used", pool.cidr, other.cidr);
                pools.problems.push(text);
                continue;
            }
            if pool.namespace_selector.is_some() {
                let text = "has a namespaceSelector, which is not served yet; no blocks are claimed from it";
                pools.problems.push(format!("pools/{name}: {text}"));
                pools.closed.insert(name.clone());
            }
            let of_other_size = table.claims.iter().find(|((_, block), stored)| {
                stored.value.pool == *name
                    && overlap(pool.cidr, *block)
                    && block.prefix_len() != pool.block_len()
            });
            if let Some(((node, block), _)) = of_other_size {
                pools.problems.push(format!(
                    "pools/{name}: block size /{} found, but claims exist ({node} has {block}): set it back, or release them; no new blocks are claimed",
                    pool.block_len()
                ));
                pools.closed.insert(name.clone());
            }
            pools.usable.insert(name.clone(), pool.clone());
        }
        pools
    }

    /// Pools of one family from which a node with these labels may claim, in order of preference.
    pub(crate) fn for_node(&self, v6: bool, labels: &Labels) -> Vec<(&ObjectName, &Pool)> {
        let mine = self.usable.iter().filter(|(name, pool)| {
            !pool.disabled
                && pool.assignment == Assignment::Automatic
                && matches!(pool.cidr, IpNet::V6(_)) == v6
                && pool.node_selector.matches(labels)
                && !self.closed.contains(*name)
        });
        mine.collect()
    }
}

fn check(pool: &Pool) -> Result<(), String> {
    let (length, lengths) =
        (pool.block_len(), if pool.cidr.max_prefix_len() == 32 { 20..=32 } else { 116..=128 });
    if pool.cidr != pool.cidr.trunc() {
        return Err(format!("cidr {} found, {} expected", pool.cidr, pool.cidr.trunc()));
    }
    if !lengths.contains(&length) {
        let (first, last) = (lengths.start(), lengths.end());
        return Err(format!("block size /{length} found, /{first} to /{last} expected"));
    }
    if length < pool.cidr.prefix_len() {
        return Err(format!("block size /{length} found, at most the pool {} expected", pool.cidr));
    }
    Ok(())
}

/// What must not be claimed.
pub(crate) struct Taken<'a> {
    /// Claims of anybody.
    pub(crate) claims: &'a ClaimIndex,
    /// Claims that stood before the store was wiped.
    pub(crate) past: Option<&'a ClaimIndex>,
    /// Blocks held back after a release, and blocks of this node.
    pub(crate) others: &'a BTreeSet<IpNet>,
}

impl Taken<'_> {
    /// Whether nobody has an address of `block`.
    pub(crate) fn is_free(&self, block: IpNet) -> bool {
        self.claims.overlapping(block).next().is_none()
            && self.past.is_none_or(|past| past.overlapping(block).next().is_none())
            && !self.others.iter().any(|other| overlap(*other, block))
    }
}

/// A free block of the pool. Nodes begin to look at different places, so that many that start at once collide
/// little; `attempt` moves the place after a collision.
pub(crate) fn candidate(
    node: &NodeName,
    name: &ObjectName,
    pool: &Pool,
    taken: &Taken<'_>,
    attempt: u64,
) -> Option<IpNet> {
    let bits = u32::from(pool.block_len().checked_sub(pool.cidr.prefix_len())?);
    // A pool of more than 2^64 blocks: the first 2^64 are enough.
    let count = 1u128 << bits.min(64);
    let start = u128::from(spread(&[node.as_str(), name.as_str(), &attempt.to_string()])) % count;
    (0..count.min(PROBES)).map(|i| (start + i) % count).find_map(|index| {
        let block = nth_block(pool, index)?;
        taken.is_free(block).then_some(block)
    })
}

/// The first free block of the pool.
pub(crate) fn first_free(pool: &Pool, taken: &Taken<'_>) -> Option<IpNet> {
    let bits = u32::from(pool.block_len().checked_sub(pool.cidr.prefix_len())?);
    let count = 1u128 << bits.min(64);
    (0..count.min(PROBES)).filter_map(|index| nth_block(pool, index)).find(|block| taken.is_free(*block))
}

/// Blocks looked at in one search of a pool: more than there are claims in any cluster that one store can carry.
const PROBES: u128 = 1 << 20;

fn nth_block(pool: &Pool, index: u128) -> Option<IpNet> {
    let length = pool.block_len();
    let shift = u32::from(pool.cidr.max_prefix_len() - length);
    let offset = index.checked_shl(shift).unwrap_or(0);
    Some(match pool.cidr {
        IpNet::V4(net) => {
            let address = u32::from(net.network()).checked_add(u32::try_from(offset).ok()?)?;
            IpNet::new(std::net::Ipv4Addr::from(address).into(), length).ok()?
        }
        IpNet::V6(net) => {
            let address = u128::from(net.network()).checked_add(offset)?;
            IpNet::new(std::net::Ipv6Addr::from(address).into(), length).ok()?
        }
    })
}

/// A number that looks random and is the same each time: FNV-1a, then the finisher of splitmix64.
pub(crate) fn spread(parts: &[&str]) -> u64 {
    let bytes = parts.iter().flat_map(|part| part.bytes().chain([0]));
    let mut hash = bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    hash ^ (hash >> 31)
}
