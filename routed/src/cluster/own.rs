//! The life of this node's blocks.
//!
//! ```text
//!              create           seen in own watch     confirmed=true seen
//!   (free) ───────────▶ Claiming ───────────▶ Pending ───────────▶ Active
//!                          │ refused, failed     │ loser, gone       │ claim lost: released, or
//!                          ▼                     ▼                   │ somebody was earlier
//!                       (free)                (free)    no pods      ▼
//!                                                (free) ◀──────── Stranded ──▶ Active, if claimed
//!                                                        pods gone             anew while free
//!
//!              idle for long      draining in the file,    claim gone
//!   Active ──────────────▶ returning ──────────▶ Leaving ──────────▶ (free)
//!      ▲                     │      still idle
//!      └─────────────────────┘ not idle after all, or needed
//! ```
//!
//! A block is confirmed only when the own watch has delivered the claim and it has the lowest create revision: the
//! watch delivers in the order of revisions, so every claim that was made before is known then.
//!
//! A block that was lost before this process began stands in no file; the leases of its pods show it
//! ([`Core::find_stranded`]), and it goes on as stranded.
//!
//! Whether pods live in a block is known from a look at the leases, which may be older than the latest lease. So a
//! block ends only after a look that was made when the node file did not offer it any more
//! ([`FileState::is_closed`](super::publish::FileState::is_closed)). How a block goes back: [`super::give_back`].

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use podway_model::cidr::{block_size, overlap};
use podway_model::cluster::{Assignment, Claim, Pool, encode};
use podway_model::ids::ObjectName;
use podway_model::keys::Key;
use podway_model::node_file::{BlockState, NodeBlock};
use podway_store::{Expect, Guard, HOLD_SECONDS};

use super::claims::ClaimIndex;
use super::core::Core;
use super::event::{Action, Operation, Severity};
use super::flannel::Room;
use super::pools::{Taken, candidate, first_free};

/// Another block is claimed when fewer addresses than this can be leased, or than a quarter of a block.
const LOW_WATER: u64 = 16;
/// Blocks that one node may hold: 16,000 pods with blocks of the default size.
const MAX_BLOCKS: usize = 256;

/// A block of this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Own {
    pub(crate) pool: ObjectName,
    pub(crate) phase: Phase,
    /// Create revision of the claim; from a node file: negative, in its order.
    pub(crate) order: i64,
    /// The store was wiped: claim it anew, and keep it meanwhile.
    pub(crate) republish: bool,
    /// Marked draining, on its way back to the pool. A restart goes on from the mark in the node file.
    pub(crate) returning: bool,
    /// Since when nobody has held an address in it.
    pub(crate) idle_since: Option<Duration>,
}

/// How far a block's life has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// The claim is being written.
    Claiming,
    /// The claim stands in the store, unconfirmed.
    Pending,
    /// Ours.
    Active,
    /// Lost; pods live in it, or may.
    Stranded,
    /// Empty and not offered any more: the claim is being deleted.
    Leaving,
}

impl Own {
    /// A block of a node file of this boot: ours until the store says otherwise.
    pub(crate) fn from_file(block: &NodeBlock, place: usize) -> Self {
        let order = i64::MIN.saturating_add_unsigned(place as u64);
        let returning = block.state == BlockState::Draining;
        Self { returning, ..Self::new(block.pool.clone(), Phase::Active, order) }
    }

    fn new(pool: ObjectName, phase: Phase, order: i64) -> Self {
        Self { pool, phase, order, republish: false, returning: false, idle_since: None }
    }
}

impl Core {
    /// Compares the own blocks with the claims in the store.
    pub(super) fn follow_claims(&mut self, out: &mut Vec<Action>) {
        let derived = Arc::clone(&self.derived);
        let mine = self.table.claims_of(&self.me.node);
        let blocks: BTreeSet<IpNet> = self.own.keys().copied().chain(mine).collect();
        for block in blocks {
            self.follow_block(block, &derived.claims, out);
        }
    }

    /// Pods hold addresses of pools in blocks that are not ours: lost before this process began.
    pub(super) fn find_stranded(&mut self, out: &mut Vec<Action>) {
        let derived = Arc::clone(&self.derived);
        let lost = self.elsewhere.iter().filter_map(|address| {
            let mut pools = derived.pools.usable.iter();
            // What was asked for by hand is single addresses, which are no block's.
            let (name, pool) = pools
                .find(|(_, pool)| pool.assignment == Assignment::Automatic && pool.cidr.contains(address))?;
            Some((IpNet::new(*address, pool.block_len()).ok()?.trunc(), name.clone()))
        });
        for (block, pool) in lost.collect::<BTreeMap<IpNet, ObjectName>>() {
            if self.own.keys().any(|own| overlap(*own, block)) {
                continue;
            }
            let text = format!("block {block} is not this node's any more, and pods live in it");
            out.push(Action::Report(Severity::Warn, text));
            self.own.insert(block, Own::new(pool, Phase::Stranded, i64::MAX));
        }
    }

    fn follow_block(&mut self, block: IpNet, index: &ClaimIndex, out: &mut Vec<Action>) {
        let key = Key::Claim(self.me.node.clone(), block);
        let stored = self.table.claims.get(&(self.me.node.clone(), block));
        let Some(stored) = stored.filter(|s| s.value.instance_id == self.me.instance_id).cloned() else {
            if let Some(other) = stored {
                self.problems.insert(format!(
                    "{key} is held by installation {} of this node; `podwayctl node release {}` frees it",
                    other.value.instance_id, self.me.node
                ));
            }
            return self.follow_missing(block, stored.is_some(), index, out);
        };
        let wins = index.wins(&self.me.node, block, stored.create);
        let modified =
            self.table.modified(&Key::Claim(self.me.node.clone(), block)).unwrap_or(stored.modified);
        let pool = stored.value.pool.clone();
        let own = self.own.entry(block).or_insert_with(|| Own::new(pool, Phase::Pending, stored.create));
        own.republish = false;
        if own.phase == Phase::Leaving {
            return self.delete_claim(&key, modified, out);
        }
        if !wins {
            self.delete_claim(&key, modified, out);
            return self.lose(block, "another node claimed it earlier", out);
        }
        let is_offered = self.own.get(&block).is_some_and(|own| own.phase == Phase::Active);
        if let Some(why) = self.flannel_holder(block).or_else(|| self.flannel_forbids(block, is_offered)) {
            self.delete_claim(&key, modified, out);
            return self.lose(block, &why, out);
        }
        let own =
            self.own.entry(block).or_insert_with(|| Own::new(stored.value.pool.clone(), Phase::Pending, 0));
        own.order = stored.create;
        if own.phase == Phase::Claiming {
            own.phase = Phase::Pending;
        }
        let phase = own.phase;
        if stored.value.confirmed {
            if phase != Phase::Active {
                own.phase = Phase::Active;
                let text = format!("block {block} of pool {} is ours", own.pool);
                out.push(Action::Report(Severity::Info, text));
            }
            if self.table.bad.contains_key(&key.to_string()) {
                self.write_again(&key, stored.value, modified, out);
            }
        } else if matches!(phase, Phase::Pending | Phase::Stranded) && self.is_held(block) {
            // A write of before the release, or one that did not know of it.
            self.delete_claim(&key, modified, out);
            self.lose(block, "it was released", out);
        } else if phase == Phase::Active {
            // Written anew after the store was wiped or restored: what it says of holds is of another time.
            self.write_again(&key, stored.value, modified, out);
        } else if self.can_write() && self.flannel_allows(block) {
            let confirmed = encode(&Claim { confirmed: true, ..stored.value });
            let operation = Operation::PutGuarded(confirmed, Expect::Revision(modified), self.guards(block));
            self.writes.propose(key.to_string(), operation, out);
        }
    }

    /// Puts a confirmed claim of ours where it is not what it should be.
    fn write_again(&mut self, key: &Key, claim: Claim, modified: i64, out: &mut Vec<Action>) {
        if self.can_write() {
            let confirmed = encode(&Claim { confirmed: true, ..claim });
            let expect = Expect::Revision(modified);
            self.writes.propose(key.to_string(), Operation::Put(confirmed, expect), out);
        }
    }

    /// The condition that no hold on `block` has come that this node does not know: prefixes are delivered
    /// independently of each other, so a release may have taken the claim away in our view and not yet have held
    /// the block. A hold that is known is over; of one on another prefix length only the watch tells.
    fn no_hold(&self, block: IpNet) -> Guard {
        let known = self.table.modified(&Key::Released(block));
        Guard {
            key: Key::Released(block).to_string(),
            expect: known.map_or(Expect::Absent, Expect::Revision),
        }
    }

    /// What must hold besides for a claim of `block` to be made or confirmed.
    fn guards(&self, block: IpNet) -> Vec<Guard> {
        [self.no_hold(block)].into_iter().chain(self.flannel_guard(block)).collect()
    }

    fn delete_claim(&mut self, key: &Key, modified: i64, out: &mut Vec<Action>) {
        if self.can_write() {
            self.writes.propose(key.to_string(), Operation::Delete(modified), out);
        }
    }

    /// No claim of ours stands in the store. `foreign`: another installation's does, under our name.
    fn follow_missing(&mut self, block: IpNet, foreign: bool, index: &ClaimIndex, out: &mut Vec<Action>) {
        let Some(own) = self.own.get(&block).cloned() else { return };
        let key = Key::Claim(self.me.node.clone(), block);
        if let Some(bad) = self.table.bad.get(&key.to_string()) {
            return self.follow_unreadable(&key, block, &own, (bad.create, bad.modified), index, out);
        }
        let is_free = !foreign && index.overlapping(block).next().is_none();
        match own.phase {
            Phase::Claiming => {
                if !self.writes.is_busy(&key.to_string()) {
                    self.own.remove(&block);
                }
            }
            Phase::Pending => drop(self.own.remove(&block)),
            Phase::Leaving => self.end(block, "went back to its pool", out),
            Phase::Active if own.republish && is_free => self.write_claim(block, &own.pool, false, out),
            Phase::Active => {
                let former =
                    self.table.released.get(&block).is_some_and(|r| r.value.former_owner == self.me.node);
                let why = match (own.returning, former) {
                    (true, _) => "it was on its way back to its pool",
                    (false, true) => "it was released",
                    (false, false) => "its claim is gone from the store",
                };
                self.lose(block, why, out);
            }
            Phase::Stranded => {
                let is_empty = self.usage.get(&block).is_some_and(|usage| usage.leased == 0);
                if is_empty && self.file.is_closed(block, self.usage_generation) {
                    self.end(block, "was lost, and no pod is in it", out);
                } else if !is_empty
                    && is_free
                    && !self.is_held(block)
                    && self.flannel_allows(block)
                    && self.is_registered()
                {
                    self.write_claim(block, &own.pool, true, out);
                }
            }
        }
    }

    /// Our own claim cannot be read. What is in use is written again; what is not, an operator has to look at.
    fn follow_unreadable(
        &mut self,
        key: &Key,
        block: IpNet,
        own: &Own,
        (create, modified): (i64, i64),
        index: &ClaimIndex,
        out: &mut Vec<Action>,
    ) {
        match own.phase {
            Phase::Claiming | Phase::Pending => drop(self.own.remove(&block)),
            Phase::Leaving => self.delete_claim(key, modified, out),
            Phase::Active | Phase::Stranded if index.wins(&self.me.node, block, create) => {
                let instance_id = self.me.instance_id.clone();
                let claim = Claim { instance_id, pool: own.pool.clone(), confirmed: true };
                self.write_again(key, claim, modified, out);
            }
            Phase::Active | Phase::Stranded => {
                self.delete_claim(key, modified, out);
                self.lose(block, "another node claimed it earlier", out);
            }
        }
    }

    /// Nothing of the block is left on this node.
    fn end(&mut self, block: IpNet, how: &str, out: &mut Vec<Action>) {
        self.own.remove(&block);
        out.push(Action::Report(Severity::Info, format!("block {block} {how}")));
        out.push(Action::ForgetLeases(block));
    }

    /// `guarded`: only if nobody holds the block back; not so for one that was ours before the store was wiped.
    fn write_claim(&mut self, block: IpNet, pool: &ObjectName, guarded: bool, out: &mut Vec<Action>) {
        if !self.can_write() || !self.is_registered() {
            return;
        }
        let claim = Claim { instance_id: self.me.instance_id.clone(), pool: pool.clone(), confirmed: false };
        let key = Key::Claim(self.me.node.clone(), block).to_string();
        let operation = match guarded {
            true => Operation::PutGuarded(encode(&claim), Expect::Absent, self.guards(block)),
            false => Operation::Put(encode(&claim), Expect::Absent),
        };
        self.writes.propose(key, operation, out);
    }

    /// A block is not ours any more. Where pods live in it, or may, it is stranded.
    fn lose(&mut self, block: IpNet, why: &str, out: &mut Vec<Action>) {
        let Some(own) = self.own.get_mut(&block) else { return };
        match own.phase {
            Phase::Claiming | Phase::Pending => {
                self.own.remove(&block);
                self.attempt += 1;
            }
            Phase::Active | Phase::Leaving => {
                let is_empty = self.usage.get(&block).is_some_and(|usage| usage.leased == 0);
                let (severity, what) = match (own.returning, is_empty) {
                    (true, _) => (Severity::Info, "no pod should be in it"),
                    (false, true) => (Severity::Warn, "no pod is in it"),
                    (false, false) => (
                        Severity::Warn,
                        "its pods keep running, cut off from other nodes until they are made anew or the block can \
                         be claimed again",
                    ),
                };
                out.push(Action::Report(severity, format!("block {block} lost: {why}; {what}")));
                own.phase = Phase::Stranded;
                own.republish = false;
                own.returning = false;
            }
            Phase::Stranded => {}
        }
    }

    /// Whether a block was released not long ago.
    fn is_held(&self, block: IpNet) -> bool {
        self.holds().any(|held| overlap(held, block))
    }

    pub(super) fn holds(&self) -> impl Iterator<Item = IpNet> {
        let wall = self.wall_offset.map(|offset| offset.saturating_add_unsigned(self.now().as_secs()));
        let held = self.table.released.iter().filter(move |(_, released)| {
            let end = released.value.at_unix_seconds.saturating_add(HOLD_SECONDS);
            // A clock that was never told or is slow holds longer, which is the safe side.
            wall.is_none_or(|wall| i64::try_from(end).is_ok_and(|end| wall < end))
        });
        held.map(|(block, _)| *block)
    }

    /// Claims another block per family where few addresses are left.
    pub(super) fn claim_ahead(&mut self, now: Duration, out: &mut Vec<Action>) {
        if !self.is_synced() || self.doubt.is_some() {
            return;
        }
        let derived = Arc::clone(&self.derived);
        let pools = &derived.pools;
        if pools.usable.is_empty() {
            let text = "no usable pool in the store: no block can be claimed; `podwayctl apply` one";
            self.problems.insert(text.to_owned());
            return;
        }
        for v6 in [false, true] {
            let mine = pools.for_node(v6, &self.me.labels);
            if let Some((_, first)) = mine.first() {
                let size = block_size(first.block_len(), first.cidr.max_prefix_len());
                let low_water = low_water(size);
                let available = self.available(&mine.iter().map(|(name, _)| *name).collect());
                if available < low_water && now >= self.claim_not_before {
                    self.claim_one(&mine, available, out);
                }
            }
        }
    }

    /// Addresses that can be leased, or soon will be, in blocks of these pools.
    pub(super) fn available(&self, pools: &BTreeSet<&ObjectName>) -> u64 {
        let is_offered = |own: &Own| !own.returning && !matches!(own.phase, Phase::Stranded | Phase::Leaving);
        let blocks = self.own.iter().filter(|(_, own)| is_offered(own) && pools.contains(&own.pool));
        let each = blocks.map(|(block, own)| {
            let known = self.usage.get(block).filter(|_| own.phase == Phase::Active);
            known.map_or(block_size(block.prefix_len(), block.max_prefix_len()), |usage| usage.available)
        });
        each.fold(0, u64::saturating_add)
    }

    fn claim_one(&mut self, pools: &[(&ObjectName, &Pool)], available: u64, out: &mut Vec<Action>) {
        if !self.can_write() || !self.is_registered() {
            return;
        }
        if self.own.len() >= MAX_BLOCKS {
            self.problems.insert(format!("this node has {MAX_BLOCKS} blocks, the most that are allowed"));
            return;
        }
        let derived = Arc::clone(&self.derived);
        let past = self.past.as_ref().map(ClaimIndex::new);
        let others: BTreeSet<IpNet> = self.holds().chain(self.own.keys().copied()).collect();
        let taken = Taken { claims: &derived.claims, past: past.as_ref(), others: &others };
        let found = pools.iter().find_map(|(name, pool)| {
            let range = match self.flannel_room(pool) {
                Room::Pool => pool.cidr,
                Room::Subnet(net) => net,
                Room::Nowhere => return None,
            };
            let fits = |block: &IpNet| range.contains(block) && block.prefix_len() == pool.block_len();
            if range != pool.cidr {
                // The first one has the address by which flannel's nodes send: the subnet's own.
                let within = Pool { cidr: range, ..(*pool).clone() };
                return first_free(&within, &taken).map(|block| (block, (*name).clone()));
            }
            let earlier =
                self.hints.iter().map(|(block, _)| *block).filter(fits).find(|block| taken.is_free(*block));
            let block = earlier.or_else(|| candidate(&self.me.node, name, pool, &taken, self.attempt))?;
            Some((block, (*name).clone()))
        });
        let Some((block, pool)) = found else {
            if pools.iter().all(|(_, pool)| self.flannel_room(pool) == Room::Nowhere) {
                // What is in the way stands among the problems.
                return;
            }
            let names: Vec<&str> = pools.iter().map(|(name, _)| name.as_str()).collect();
            self.problems.insert(format!(
                "no free block left in {}, and {available} addresses left on this node: add a pool",
                names.join(", ")
            ));
            return;
        };
        self.hints.retain(|(hint, _)| *hint != block);
        self.write_claim(block, &pool, true, out);
        if self.writes.is_busy(&Key::Claim(self.me.node.clone(), block).to_string()) {
            self.own.insert(block, Own::new(pool, Phase::Claiming, i64::MAX));
        }
    }
}

/// Available addresses below which another block of this size is claimed.
pub(super) fn low_water(block_size: u64) -> u64 {
    LOW_WATER.min(block_size / 4).max(1)
}
