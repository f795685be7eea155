//! Blocks that go back to their pool, in steps that a crash cannot break: marked draining in the node file, so that
//! nobody gets a lease in them; looked at once more; claim deleted; forgotten. A restart finds the mark in the node
//! file and goes on.
//!
//! A block goes back when it has been idle for long and enough addresses are left without it, or when it is idle and
//! its pool serves this node no more. The one with the node's own address stays.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use podway_model::cidr::block_size;
use podway_model::ids::ObjectName;
use podway_model::keys::Key;

use super::core::Core;
use super::event::{Action, Operation, Severity};
use super::own::{Phase, low_water};

/// How long a block that could be needed again is idle before it goes back: pods are replaced, nodes are drained and
/// filled again, and each time claims would be written that every node reads.
const IDLE: Duration = Duration::from_secs(600);
/// Addresses that must be left, in low-water marks: a block that goes must not be missed at once.
const LEFT: u64 = 2;

impl Core {
    /// Begins with the next block, and takes each that is on its way one step further.
    pub(super) fn give_back(&mut self, now: Duration, out: &mut Vec<Action>) {
        self.give_back_at = None;
        self.note_idle(now);
        if !self.is_synced() || !self.can_write() || self.past.is_some() {
            return;
        }
        let derived = Arc::clone(&self.derived);
        let pools = &derived.pools;
        for v6 in [false, true] {
            let serving: BTreeSet<&ObjectName> =
                pools.for_node(v6, &self.me.labels).into_iter().map(|(name, _)| name).collect();
            self.begin(now, v6, &serving, out);
            self.go_on(v6, &serving, out);
        }
    }

    fn note_idle(&mut self, now: Duration) {
        for (block, own) in &mut self.own {
            let is_idle = self.usage.get(block).is_some_and(|usage| usage.is_idle());
            own.idle_since = own.idle_since.or(Some(now)).filter(|_| is_idle);
        }
    }

    /// Blocks that are marked: deleted once nobody can have got a lease in them, unmarked if somebody has.
    fn go_on(&mut self, v6: bool, serving: &BTreeSet<&ObjectName>, out: &mut Vec<Action>) {
        let marked = self.own.iter().filter(|(block, own)| {
            own.phase == Phase::Active && own.returning && block.addr().is_ipv6() == v6
        });
        let marked: Vec<IpNet> = marked.map(|(block, _)| *block).collect();
        for block in marked {
            let is_needed = self.own.get(&block).is_some_and(|own| serving.contains(&own.pool))
                && self.available(serving) < low_water_of(block);
            let is_closed = self.file.is_closed(block, self.usage_generation);
            let is_idle = self.usage.get(&block).is_some_and(|usage| usage.is_idle());
            let key = Key::Claim(self.me.node.clone(), block);
            let is_node_in = self.is_node_in(block);
            let Some(own) = self.own.get_mut(&block) else { continue };
            if is_node_in || is_needed || (is_closed && !is_idle && self.usage.contains_key(&block)) {
                own.returning = false;
                own.idle_since = None;
            } else if is_closed
                && is_idle
                && let Some(modified) = self.table.modified(&key)
                && self.writes.propose(key.to_string(), Operation::Delete(modified), out)
            {
                // No way back: the write may happen whatever its answer is.
                own.phase = Phase::Leaving;
            }
        }
    }

    /// Marks one more block, if none is on its way: how much is left is known for certain only then.
    fn begin(&mut self, now: Duration, v6: bool, serving: &BTreeSet<&ObjectName>, out: &mut Vec<Action>) {
        let of_family = |block: &IpNet| block.addr().is_ipv6() == v6;
        if self.own.iter().any(|(block, own)| {
            of_family(block) && (own.returning || !matches!(own.phase, Phase::Active | Phase::Stranded))
        }) {
            return;
        }
        let available = self.available(serving);
        let (mut due, mut chosen) = (None::<Duration>, None);
        for (block, own) in self.own.iter().filter(|(block, _)| of_family(block)) {
            let Some(since) =
                own.idle_since.filter(|_| own.phase == Phase::Active && !self.is_node_in(*block))
            else {
                continue;
            };
            let at = if serving.contains(&own.pool) {
                let without =
                    available.saturating_sub(self.usage.get(block).map_or(0, |usage| usage.available));
                if without < low_water_of(*block).saturating_mul(LEFT) {
                    continue;
                }
                since + IDLE
            } else {
                since
            };
            if now < at {
                due = Some(due.map_or(at, |due| due.min(at)));
            } else if chosen.is_none_or(|(order, _)| order < own.order) {
                chosen = Some((own.order, *block));
            }
        }
        self.give_back_at = self.give_back_at.into_iter().chain(due).min();
        if let Some((_, block)) = chosen
            && let Some(own) = self.own.get_mut(&block)
        {
            own.returning = true;
            let text = format!("block {block} is idle and goes back to pool {}", own.pool);
            out.push(Action::Report(Severity::Info, text));
        }
    }

    /// Whether the node's own address is in a block, or is about to be.
    fn is_node_in(&self, block: IpNet) -> bool {
        let shown = [self.view.tunnel_v4.map(IpAddr::V4), self.view.tunnel_v6.map(IpAddr::V6)];
        let written = self.file.tunnel_addresses().iter().copied();
        shown.into_iter().flatten().chain(written).any(|address| block.contains(&address))
    }
}

fn low_water_of(block: IpNet) -> u64 {
    low_water(block_size(block.prefix_len(), block.max_prefix_len()))
}
