//! Who holds which address, what is free and since when, and which address comes next. Pure.
//!
//! The ledger is what a journal's entries add up to. Questions ([`Ledger::plan`], [`Ledger::usage`]) change
//! nothing; changes come as entries ([`Ledger::apply`]), which the shell writes before it applies them.
//!
//! # Choice of an address
//!
//! Among the free addresses of a family in the node's active blocks of the wanted pools, the first by:
//! out of quarantine before in quarantine, clean before dirty, the pool wanted first, least recently used
//! (never used counts as oldest), lowest. Tunnel addresses are never chosen, and those that the request names as
//! reserved only by who asks for them; nothing else is set aside: pods are routed as single addresses, so a block
//! has no network or broadcast address.
//!
//! The cost of a choice grows with the leases of this node's blocks, not with their size.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use ipnet::{IpAdd as _, IpNet};
use podway_model::cluster::Assignment;
use podway_model::ids::ObjectName;
use podway_model::node_file::{BlockState, NodeBlock, NodeFile};

use crate::journal::Entry;
use crate::lease::{Attachment, Condition, Family, Lease, LeasedAddress, Request};

/// How long an address that was given back is left alone if there is another choice. Within it every node has
/// forgotten the address's connections.
pub const QUARANTINE: Duration = Duration::from_secs(60);

/// Leases and free addresses of one node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ledger {
    leases: BTreeMap<Attachment, Lease>,
    taken: BTreeSet<IpAddr>,
    freed: BTreeMap<IpAddr, Freed>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Freed {
    at: Duration,
    condition: Condition,
}

/// An entry that cannot follow the ones before it: the journal is damaged.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Contradiction {
    /// An address would have two holders.
    #[error("{address} is leased to {attachment} while another holds it")]
    Taken {
        /// The address.
        address: IpAddr,
        /// Its second holder.
        attachment: Attachment,
    },
    /// An address would be free while it has a holder.
    #[error("{0} is said to be free while somebody holds it")]
    Held(IpAddr),
    /// An attachment would have two leases.
    #[error("{0} gets a second lease")]
    SecondLease(Attachment),
    /// A lease ends that never began.
    #[error("{0} ends a lease that it does not have")]
    NoLease(Attachment),
}

/// What [`Ledger::plan`] decided.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Plan {
    /// The attachment's lease is what it asks for.
    Keep(Lease),
    /// A new lease; the attachment's old one, if any, ends first.
    Make {
        /// The lease.
        lease: Lease,
        /// Addresses of it that conntrack may still know.
        dirty: Vec<IpAddr>,
        /// Whether the attachment has a lease that does not fit.
        replaces: bool,
    },
}

/// Why there is no lease.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// All addresses are leased.
    #[error("no free {family} address on this node: {}", list(pools))]
    Exhausted {
        /// The family that ran out; a pod gets all its addresses or none.
        family: Family,
        /// The pools that were tried.
        pools: Vec<PoolUsage>,
    },
    /// The node has no pool to choose from.
    #[error("this node has no address pool to choose from (pools of the cluster: podwayctl get pools)")]
    NoPool,
    /// A pool that the node does not know or may not use.
    #[error("pool {name}: not a pool of this node ({})", known_pools(known))]
    UnknownPool {
        /// Its name.
        name: ObjectName,
        /// The pools that the node may use.
        known: Vec<ObjectName>,
    },
    /// A requested address is in none of this node's active blocks of the wanted pools.
    #[error("requested address {address}: in no block of this node ({})", known_blocks(blocks))]
    Outside {
        /// The address.
        address: IpAddr,
        /// The blocks that it could lie in.
        blocks: Vec<IpNet>,
    },
    /// A requested address has a holder.
    #[error("requested address {address}: leased to {holder}")]
    Taken {
        /// The address.
        address: IpAddr,
        /// Who holds it.
        holder: Attachment,
    },
    /// A requested address is the node's own.
    #[error("requested address {0}: reserved for this node's tunnels")]
    Reserved(IpAddr),
    /// Two requested addresses of one family.
    #[error("requested addresses {0} and {1}: at most one per family")]
    TwoOfOneFamily(IpAddr, IpAddr),
}

/// How full a pool is on this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolUsage {
    /// Its name.
    pub pool: ObjectName,
    /// This node's blocks of it, draining ones included.
    pub blocks: usize,
    /// Their leases.
    pub leased: u64,
    /// Their addresses, without those reserved for the node.
    pub capacity: u64,
}

impl fmt::Display for PoolUsage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { pool, blocks, leased, capacity } = self;
        if *blocks == 0 {
            return write!(f, "pool {pool} has no block on this node yet");
        }
        write!(f, "pool {pool} has {leased} of {capacity} addresses leased in {blocks} blocks")
    }
}

/// How full a block is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct BlockUsage {
    /// Addresses, without those reserved for the node. Saturates at the largest number.
    pub capacity: u64,
    /// Leased.
    pub leased: u64,
    /// Free, and in quarantine.
    pub quarantined: u64,
    /// Free, and conntrack may still know them.
    pub dirty: u64,
}

impl BlockUsage {
    /// Addresses that can be leased without breaking quarantine: what claim-ahead counts.
    pub fn available(&self) -> u64 {
        self.capacity.saturating_sub(self.leased).saturating_sub(self.quarantined)
    }

    /// Whether the block can go back to its pool: nobody holds an address, and none is in quarantine.
    pub fn is_idle(&self) -> bool {
        self.leased == 0 && self.quarantined == 0
    }
}

impl Ledger {
    /// Adds up entries; the error says which one (counted from 0) contradicts the ones before.
    pub fn replay(entries: &[Entry]) -> Result<Self, (usize, Contradiction)> {
        let mut ledger = Self::default();
        for (i, entry) in entries.iter().enumerate() {
            ledger.apply(entry).map_err(|contradiction| (i, contradiction))?;
        }
        Ok(ledger)
    }

    /// Applies one entry.
    pub fn apply(&mut self, entry: &Entry) -> Result<(), Contradiction> {
        match entry {
            Entry::Lease(lease) => self.on_lease(lease)?,
            Entry::Free { attachment, at, condition } => {
                let lease = self
                    .leases
                    .remove(attachment)
                    .ok_or_else(|| Contradiction::NoLease(attachment.clone()))?;
                for address in lease.ips() {
                    self.taken.remove(&address);
                    self.freed.insert(address, Freed { at: *at, condition: *condition });
                }
            }
            Entry::Clean(addresses) => {
                for address in addresses {
                    if let Some(freed) = self.freed.get_mut(address) {
                        freed.condition = Condition::Clean;
                    }
                }
            }
            Entry::Freed { address, at, condition } => {
                if self.taken.contains(address) {
                    return Err(Contradiction::Held(*address));
                }
                self.freed.insert(*address, Freed { at: *at, condition: *condition });
            }
            Entry::Forget(block) => self.freed.retain(|address, _| !block.contains(address)),
        }
        Ok(())
    }

    fn on_lease(&mut self, lease: &Lease) -> Result<(), Contradiction> {
        let attachment = &lease.attachment;
        if self.leases.contains_key(attachment) {
            return Err(Contradiction::SecondLease(attachment.clone()));
        }
        if let Some(address) = lease.ips().find(|address| self.taken.contains(address)) {
            return Err(Contradiction::Taken { address, attachment: attachment.clone() });
        }
        for address in lease.ips() {
            self.taken.insert(address);
            self.freed.remove(&address);
        }
        self.leases.insert(attachment.clone(), lease.clone());
        Ok(())
    }

    /// The shortest entries that add up to this ledger.
    pub fn compacted(&self) -> impl Iterator<Item = Entry> + '_ {
        let freed = self.freed.iter().map(|(address, freed)| Entry::Freed {
            address: *address,
            at: freed.at,
            condition: freed.condition,
        });
        freed.chain(self.leases.values().cloned().map(Entry::Lease))
    }

    /// Number of entries of [`Self::compacted`].
    pub fn compacted_len(&self) -> usize {
        self.leases.len() + self.freed.len()
    }

    /// The lease of an attachment.
    pub fn lease_of(&self, attachment: &Attachment) -> Option<&Lease> {
        self.leases.get(attachment)
    }

    /// Who holds an address.
    pub fn holder(&self, address: IpAddr) -> Option<&Lease> {
        if !self.taken.contains(&address) {
            return None;
        }
        self.leases.values().find(|lease| lease.ips().any(|ip| ip == address))
    }

    /// All leases, by attachment.
    pub fn leases(&self) -> impl Iterator<Item = &Lease> {
        self.leases.values()
    }

    /// How full a block is. `reserved` are the node's own addresses ([`NodeFile::tunnel_addresses`]).
    pub fn usage(&self, block: IpNet, reserved: &[IpAddr], now: Duration) -> BlockUsage {
        let range = block.network()..=block.broadcast();
        let mut usage = BlockUsage {
            capacity: capacity(block, reserved),
            leased: self.taken.range(range.clone()).count() as u64,
            ..BlockUsage::default()
        };
        for freed in self.freed.range(range).map(|(_, freed)| freed) {
            usage.quarantined += u64::from(freed.in_quarantine(now));
            usage.dirty += u64::from(freed.condition == Condition::Dirty);
        }
        usage
    }

    /// Whether a pool that `request` chooses from has less than a tenth of its addresses left on this node.
    pub fn is_nearly_full(&self, node: &NodeFile, request: &Request, now: Duration) -> bool {
        let pools = wanted_pools(node, request).unwrap_or_default();
        pools.iter().map(|pool| self.pool_usage(node, pool, now)).any(|usage| {
            usage.blocks > 0 && usage.capacity - usage.leased.min(usage.capacity) <= usage.capacity / 10
        })
    }

    /// How full a pool is on this node.
    pub fn pool_usage(&self, node: &NodeFile, pool: &ObjectName, now: Duration) -> PoolUsage {
        let mut total = PoolUsage { pool: pool.clone(), blocks: 0, leased: 0, capacity: 0 };
        for block in node.blocks.iter().filter(|block| block.pool == *pool) {
            let usage = self.usage(block.cidr, &node.tunnel_addresses, now);
            total.blocks += 1;
            total.leased += usage.leased;
            total.capacity = total.capacity.saturating_add(usage.capacity);
        }
        total
    }

    /// Decides which addresses `request` gets.
    pub fn plan(&self, node: &NodeFile, request: &Request, now: Duration) -> Result<Plan, Refusal> {
        let pools = wanted_pools(node, request)?;
        let requested = requested_by_family(request)?;
        let families = wanted_families(node, &pools, &requested);
        if families.is_empty() {
            return Err(Refusal::NoPool);
        }
        let own = self.leases.get(&request.attachment);
        if let Some(lease) = own.filter(|lease| fits(lease, node, request, &pools, &families)) {
            return Ok(Plan::Keep(lease.clone()));
        }
        let mut addresses = Vec::new();
        let mut dirty = Vec::new();
        for family in families {
            let choice = match requested.get(&family) {
                Some(address) => self.take_requested(node, request, &pools, *address)?,
                None => self.choose(node, request, &pools, family, now)?,
            };
            // The attachment's own old addresses were in use up to now.
            let known = own.is_some_and(|lease| lease.ips().any(|ip| ip == choice.address));
            if known || self.freed.get(&choice.address).is_some_and(|f| f.condition == Condition::Dirty) {
                dirty.push(choice.address);
            }
            addresses.push(choice);
        }
        let lease = Lease {
            attachment: request.attachment.clone(),
            network: request.network.clone(),
            addresses,
            kind: request.kind,
            since: Duration::from_millis(u64::try_from(now.as_millis()).unwrap_or(u64::MAX)),
        };
        Ok(Plan::Make { lease, dirty, replaces: own.is_some() })
    }

    fn take_requested(
        &self,
        node: &NodeFile,
        request: &Request,
        pools: &[ObjectName],
        address: IpAddr,
    ) -> Result<LeasedAddress, Refusal> {
        if node.tunnel_addresses.contains(&address) {
            return Err(Refusal::Reserved(address));
        }
        // A pool with manual assignment gives addresses only to those who ask for them.
        let usable = |block: &&NodeBlock| {
            pools.contains(&block.pool) || (request.pools.is_empty() && is_manual(node, &block.pool))
        };
        let mut blocks = active_blocks(node).filter(usable);
        let limits = Limits::of(node, request, Family::of(address));
        let holds = |block: &&NodeBlock| block.cidr.contains(&address) && limits.allow(address);
        let Some(block) = blocks.clone().find(holds) else {
            let family = Family::of(address);
            let blocks =
                blocks.by_ref().map(|b| b.cidr).filter(|c| Family::of(c.network()) == family).collect();
            return Err(Refusal::Outside { address, blocks });
        };
        match self.holder(address).filter(|lease| lease.attachment != request.attachment) {
            Some(lease) => Err(Refusal::Taken { address, holder: lease.attachment.clone() }),
            None => Ok(LeasedAddress { address, pool: block.pool.clone() }),
        }
    }

    fn choose(
        &self,
        node: &NodeFile,
        request: &Request,
        pools: &[ObjectName],
        family: Family,
        now: Duration,
    ) -> Result<LeasedAddress, Refusal> {
        let own = self.leases.get(&request.attachment);
        let limits = Limits::of(node, request, family);
        let limits = &limits;
        let best = pools
            .iter()
            .enumerate()
            .flat_map(|(rank, pool)| {
                active_blocks(node)
                    .filter(move |b| b.pool == *pool && Family::of(b.cidr.network()) == family)
                    .flat_map(move |b| limits.parts(b.cidr))
                    .filter_map(move |part| self.best_in(part, limits, now))
                    .map(move |candidate| (candidate.class(), rank, candidate.age(), candidate.address, pool))
            })
            .min();
        if let Some((.., address, pool)) = best {
            return Ok(LeasedAddress { address, pool: pool.clone() });
        }
        // A lease that does not fit any more still frees its addresses for its own successor.
        let own_address = own.and_then(|lease| {
            lease.addresses.iter().find(|leased| {
                Family::of(leased.address) == family
                    && pools.contains(&leased.pool)
                    && limits.allow(leased.address)
                    && active_blocks(node).any(|b| b.cidr.contains(&leased.address))
            })
        });
        own_address.cloned().ok_or_else(|| Refusal::Exhausted {
            family,
            pools: pools
                .iter()
                .filter(|pool| pool_family(node, pool) == Some(family))
                .map(|pool| self.pool_usage(node, pool, now))
                .collect(),
        })
    }

    /// The first free address from the first to the last one of a range, in the order of choice.
    fn best_in(&self, range: (IpAddr, IpAddr), limits: &Limits<'_>, now: Duration) -> Option<Candidate> {
        if let Some(address) = self.never_used(range, limits) {
            return Some(Candidate { address, freed: None, quarantined: false });
        }
        self.freed
            .range(range.0..=range.1)
            .filter(|(address, _)| limits.reserved_until(**address).is_none())
            .map(|(address, freed)| Candidate {
                address: *address,
                freed: Some(*freed),
                quarantined: freed.in_quarantine(now),
            })
            .min_by_key(|candidate| (candidate.class(), candidate.age(), candidate.address))
    }

    /// The lowest address of a range that is neither leased, nor was it ever, nor reserved.
    fn never_used(&self, (first, last): (IpAddr, IpAddr), limits: &Limits<'_>) -> Option<IpAddr> {
        let mut address = first;
        loop {
            let known = self.taken.contains(&address) || self.freed.contains_key(&address);
            let behind = match limits.reserved_until(address) {
                Some(end) => end,
                None if known => address,
                None => return Some(address),
            };
            if behind >= last {
                return None;
            }
            address = next(behind);
        }
    }
}

/// Which addresses of the node's blocks a request may get without asking for them.
struct Limits<'a> {
    tunnel: &'a [IpAddr],
    reserved: &'a [IpNet],
    /// Of the family in question; empty: all.
    ranges: Vec<(IpAddr, IpAddr)>,
}

impl<'a> Limits<'a> {
    fn of(node: &'a NodeFile, request: &'a Request, family: Family) -> Self {
        let ranges = request.ranges.iter().filter(|(first, _)| Family::of(*first) == family).copied();
        Self { tunnel: &node.tunnel_addresses, reserved: &request.reserved, ranges: ranges.collect() }
    }

    /// Whether an address lies in one of the ranges.
    fn allow(&self, address: IpAddr) -> bool {
        self.ranges.is_empty() || self.ranges.iter().any(|(first, last)| (*first..=*last).contains(&address))
    }

    /// The parts of a block that lie in the ranges.
    fn parts(&self, block: IpNet) -> Vec<(IpAddr, IpAddr)> {
        let (low, high) = (block.network(), block.broadcast());
        if self.ranges.is_empty() {
            return vec![(low, high)];
        }
        let cut = self.ranges.iter().map(|(first, last)| ((*first).max(low), (*last).min(high)));
        cut.filter(|(first, last)| first <= last).collect()
    }

    /// The end of what is reserved at an address; `None` if nothing is.
    fn reserved_until(&self, address: IpAddr) -> Option<IpAddr> {
        if self.tunnel.contains(&address) {
            return Some(address);
        }
        self.reserved.iter().filter(|net| net.contains(&address)).map(IpNet::broadcast).max()
    }
}

impl Freed {
    fn in_quarantine(&self, now: Duration) -> bool {
        now.saturating_sub(self.at) < QUARANTINE
    }
}

struct Candidate {
    address: IpAddr,
    freed: Option<Freed>,
    quarantined: bool,
}

impl Candidate {
    /// Whether it is in quarantine, and whether it is dirty.
    fn class(&self) -> (bool, bool) {
        (self.quarantined, self.freed.is_some_and(|f| f.condition == Condition::Dirty))
    }

    /// When it was used last; `None`, never, sorts first.
    fn age(&self) -> Option<Duration> {
        self.freed.map(|f| f.at)
    }
}

fn next(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(a) => IpAddr::V4(a.saturating_add(1)),
        IpAddr::V6(a) => IpAddr::V6(a.saturating_add(1)),
    }
}

fn capacity(block: IpNet, reserved: &[IpAddr]) -> u64 {
    let host_bits = u32::from(block.max_prefix_len() - block.prefix_len());
    let all = 1u64.checked_shl(host_bits).unwrap_or(u64::MAX);
    all.saturating_sub(reserved.iter().filter(|address| block.contains(*address)).count() as u64)
}

fn active_blocks(node: &NodeFile) -> impl Iterator<Item = &NodeBlock> + Clone {
    node.blocks.iter().filter(|block| block.state == BlockState::Active)
}

fn is_manual(node: &NodeFile, pool: &ObjectName) -> bool {
    node.pools.iter().any(|p| p.name == *pool && p.assignment == Assignment::Manual)
}

fn pool_family(node: &NodeFile, pool: &ObjectName) -> Option<Family> {
    node.pools.iter().find(|p| p.name == *pool).map(|p| Family::of(p.cidr.network()))
}

fn wanted_pools(node: &NodeFile, request: &Request) -> Result<Vec<ObjectName>, Refusal> {
    if request.pools.is_empty() {
        let automatic = node.pools.iter().filter(|pool| pool.assignment == Assignment::Automatic);
        return Ok(automatic.map(|pool| pool.name.clone()).collect());
    }
    match request.pools.iter().find(|name| pool_family(node, name).is_none()) {
        Some(name) => Err(Refusal::UnknownPool {
            name: name.clone(),
            known: node.pools.iter().map(|pool| pool.name.clone()).collect(),
        }),
        None => Ok(request.pools.clone()),
    }
}

fn requested_by_family(request: &Request) -> Result<BTreeMap<Family, IpAddr>, Refusal> {
    let mut by_family = BTreeMap::new();
    for address in &request.addresses {
        if let Some(other) = by_family.insert(Family::of(*address), *address) {
            return Err(Refusal::TwoOfOneFamily(other, *address));
        }
    }
    Ok(by_family)
}

/// Families that the pod gets: those of the wanted pools that this node holds blocks of, and those asked for by
/// address. If it holds none at all, those of the wanted pools, so that the refusal names them.
fn wanted_families(
    node: &NodeFile,
    pools: &[ObjectName],
    requested: &BTreeMap<Family, IpAddr>,
) -> BTreeSet<Family> {
    let with_blocks = pools.iter().filter(|pool| node.blocks.iter().any(|block| block.pool == **pool));
    let mut families: BTreeSet<Family> = with_blocks.filter_map(|pool| pool_family(node, pool)).collect();
    families.extend(requested.keys());
    if families.is_empty() {
        families = pools.iter().filter_map(|pool| pool_family(node, pool)).collect();
    }
    families
}

/// Whether a lease that the attachment holds is what it asks for now.
fn fits(
    lease: &Lease,
    node: &NodeFile,
    request: &Request,
    pools: &[ObjectName],
    families: &BTreeSet<Family>,
) -> bool {
    lease.network == request.network
        && lease.kind == request.kind
        && lease.ips().all(|ip| Limits::of(node, request, Family::of(ip)).allow(ip))
        && lease.ips().map(Family::of).collect::<BTreeSet<_>>() == *families
        && request.addresses.iter().all(|address| lease.ips().any(|ip| ip == *address))
        && lease.addresses.iter().all(|leased| {
            let asked_for = request.addresses.contains(&leased.address);
            (asked_for || pools.contains(&leased.pool))
                && !node.tunnel_addresses.contains(&leased.address)
                && active_blocks(node).any(|b| b.pool == leased.pool && b.cidr.contains(&leased.address))
        })
}

fn list(pools: &[PoolUsage]) -> String {
    pools.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

fn known_pools(known: &[ObjectName]) -> String {
    match known {
        [] => "it has none".to_owned(),
        names => {
            format!("it has {}", names.iter().map(ObjectName::as_str).collect::<Vec<_>>().join(", "))
        }
    }
}

fn known_blocks(blocks: &[IpNet]) -> String {
    match blocks {
        [] => "it has none of that family in the wanted pools".to_owned(),
        blocks => {
            format!("it has {}", blocks.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "))
        }
    }
}

#[cfg(test)]
mod tests;
