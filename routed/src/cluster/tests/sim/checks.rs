//! The invariants.
//!
//! DESIGN section 5 does not promise that a block is in one node file only: a node that is cut off cannot learn that
//! an operator gave its block away. What it promises, and what is checked after every step, is:
//!
//! 1. **Files.** If the confirmed node files of two nodes (of their current boots) offer overlapping blocks, then one
//!    of the two had its claim taken away by somebody else - an operator's release, a wiped or restored store; never
//!    by its own doing or by the other node - and could not act on it yet: its daemon is down, or its watch has
//!    delivered neither the loss nor the other's claim, or the new node file is on its way to the disk.
//! 2. **Store.** No two overlapping claims are both confirmed.
//! 3. **Views.** While a node is out of sync, no other node's record or block leaves its view, nor does one of its own
//!    blocks; in sync, only what was deleted from the store leaves.
//! 4. **Signs of life** that end change nothing but the hint.
//! 5. **End.** Once quiet, every live node has a block per family; views, claims and node files agree; no pod lives in
//!    a block of which its node does not speak.
//! 6. No deadline is in the past.
//! 7. **Holds.** No claim is made or confirmed at a moment at which its block is held back, unless by a node whose
//!    clock was a day ahead, or for a block that was its own before the store was wiped or restored.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use podway_model::cluster::{Claim, decode};
use podway_model::ids::NodeName;
use podway_model::keys::Key;
use podway_store::{Change, Entry, Event as StoreEvent};

use super::node::Node;
use super::world::World;
use crate::cluster::claims::overlap;
use crate::cluster::event::Event;
use crate::view::{ClusterView, OwnBlockState};

/// A claim in the store: create revision and value.
type Claims = BTreeMap<(NodeName, IpNet), (i64, Option<Claim>)>;

impl World {
    fn claims(&self) -> Claims {
        let entries = self.mem.list(&["claims/".to_owned()]).entries.into_iter();
        let claims = entries.filter_map(|entry| match entry.key.parse() {
            Ok(Key::Claim(node, block)) => {
                Some(((node, block), (entry.create_revision, decode(&entry.value).ok())))
            }
            _ => None,
        });
        claims.collect()
    }

    /// Invariant 2.
    pub(super) fn check_store(&mut self) {
        let claims = self.claims();
        let mut confirmed: Vec<(IpNet, &NodeName)> = claims
            .iter()
            .filter(|(_, (_, claim))| claim.as_ref().is_some_and(|claim| claim.confirmed))
            .map(|((node, block), _)| (*block, node))
            .collect();
        confirmed.sort();
        let both = confirmed.windows(2).find(|pair| overlap(pair[0].0, pair[1].0));
        if let Some([(block, a), (other, b)]) = both {
            let text = format!("claims {block} of {a} and {other} of {b} are both confirmed");
            self.fail(text);
        }
    }

    /// Invariant 7: a write of `node` that was just done; `before`: what stood at the key.
    pub(super) fn check_hold(&mut self, node: usize, key: &str, before: Option<Entry>) {
        let Ok(Key::Claim(_, block)) = key.parse() else { return };
        let is_new = match before {
            None => true,
            Some(entry) => decode::<Claim>(&entry.value).is_ok_and(|claim| !claim.confirmed),
        };
        let is_held = self.mem.entry(&Key::Released(block).to_string()).is_some();
        let is_ahead = self.nodes[node].most_skew >= 23 * 3600;
        if is_new && is_held && !is_ahead && !self.was_wiped {
            self.fail(format!("n{node} writes {key}, whose block is held back"));
        }
    }

    /// Invariant 1.
    pub(super) fn check_files(&mut self) {
        if std::mem::take(&mut self.are_files_new) {
            let mut offered: Vec<(IpNet, usize)> = self
                .nodes
                .iter()
                .enumerate()
                .flat_map(|(i, node)| node.offered().map(move |block| (block, i)))
                .collect();
            offered.sort();
            // All blocks of a family are of one size, so only neighbours can overlap; three nodes are three pairs.
            let mut conflicts = vec![];
            for (place, (block, node)) in offered.iter().enumerate() {
                let rest = offered[place + 1..].iter().take_while(|(other, _)| overlap(*block, *other));
                conflicts.extend(rest.map(|(other, second)| (*node, *block, *second, *other)));
            }
            self.conflicts = conflicts;
        }
        if self.conflicts.is_empty() {
            return;
        }
        let claims = self.claims();
        let bad = self.conflicts.iter().find(|(a, block, b, other)| {
            !self.is_excused((*a, *block), (*b, *other), &claims)
                && !self.is_excused((*b, *other), (*a, *block), &claims)
        });
        if let Some((a, block, b, other)) = bad {
            let text = format!("{block} of n{a} and {other} of n{b} are in two node files at once");
            self.fail(text);
        }
    }

    /// Whether the first node cannot have acted yet on the loss of its block.
    fn is_excused(&self, mine: (usize, IpNet), theirs: (usize, IpNet), claims: &Claims) -> bool {
        let Some(taken_at) = self.taken.get(&mine) else { return false };
        let node: &Node = &self.nodes[mine.0];
        let Some(core) = &node.core else { return true };
        if node.seen_claims < *taken_at || !node.is_synced || core.suspicion.is_some() {
            return true;
        }
        if !node.holds(mine.1) {
            return node.is_filing;
        }
        // After a wipe it keeps its block until it sees that somebody else claimed it.
        let key = (self.nodes[theirs.0].me.node.clone(), theirs.1);
        claims.get(&key).is_none_or(|(create, _)| node.seen_claims < (self.restores, *create))
    }

    /// Invariants 3 and 4: what one event did to a view.
    pub(super) fn check_view(&mut self, node: usize, before: &ClusterView, event: &Event) {
        let it = &self.nodes[node];
        let after = &it.view;
        if before == &**after {
            return;
        }
        let gone = gone(before, after);
        if !gone.is_empty() && (!it.is_synced || it.is_away) {
            let text = format!("{gone:?} left the view of n{node}, which is out of sync");
            return self.fail(text);
        }
        let lost: Vec<&OwnGone> = gone.iter().filter(|key| !self.deleted.contains_key(*key)).collect();
        if !lost.is_empty() {
            let text = format!("{lost:?} left the view of n{node} and was never deleted");
            return self.fail(text);
        }
        let Event::Store(StoreEvent::Changes { changes, .. }) = event else { return };
        let only_life =
            changes.iter().all(|c| matches!(c, Change::Delete { key } if key.starts_with("live/")));
        if only_life && !gone.is_empty() {
            let text = format!("{gone:?} left the view of n{node} with a sign of life");
            self.fail(text);
        }
    }

    /// Invariant 5.
    pub(super) fn check_end(&mut self) -> Result<(), String> {
        let claims = self.claims();
        let mut expected: BTreeMap<&NodeName, BTreeSet<IpNet>> = BTreeMap::new();
        for ((node, block), (_, claim)) in &claims {
            if !claim.as_ref().is_some_and(|claim| claim.confirmed) {
                return Err(format!("the claim of {node} for {block} is not confirmed"));
            }
            expected.entry(node).or_default().insert(*block);
        }
        let first = &self.nodes[0].view;
        for i in 0..self.nodes.len() {
            let node = &self.nodes[i];
            let name = node.name();
            let mine = expected.get(&node.me.node).cloned().unwrap_or_default();
            for v6 in [false, true].into_iter().take(if self.is_dual { 2 } else { 1 }) {
                if !node
                    .view
                    .own_blocks
                    .iter()
                    .any(|own| own.state == OwnBlockState::Active && own.cidr.addr().is_ipv6() == v6)
                {
                    return Err(format!("{name} has no block, IPv6: {v6}: {:?}", node.view.problems));
                }
            }
            let held = node.view.own_blocks.iter().filter(|own| own.state != OwnBlockState::Stranded);
            let held: BTreeSet<IpNet> = held.map(|own| own.cidr).collect();
            if held != mine {
                return Err(format!("{name} holds {held:?}, which is not what the store says: {mine:?}"));
            }
            if let Some(block) = node.pods.keys().find(|block| !node.shows(**block)) {
                return Err(format!("{name} says nothing of {block}, in which it has pods"));
            }
            let file = node.disk.as_ref().filter(|file| file.confirmed && file.boot_id == node.me.boot_id);
            let listed: BTreeSet<IpNet> =
                file.iter().flat_map(|file| &file.blocks).map(|block| block.cidr).collect();
            if listed != mine {
                return Err(format!(
                    "{name}'s file has {listed:?}, which is not what the store says: {mine:?}"
                ));
            }
            let (a, b) = (&node.view, first);
            if (&a.nodes, &a.pools, &a.config, a.synced) != (&b.nodes, &b.pools, &b.config, b.synced) {
                let other = a.nodes.iter().find(|(name, view)| b.nodes.get(*name) != Some(*view));
                return Err(format!("views of {name} and n0 differ: {other:?}"));
            }
        }
        for (name, view) in &first.nodes {
            if expected.get(name).cloned().unwrap_or_default() != view.blocks {
                return Err(format!("the view of {name}, {view:?}, is not what the store says"));
            }
            if !view.live || view.record.is_none() {
                return Err(format!("{name} is not registered: {view:?}"));
            }
        }
        Ok(())
    }
}

/// The store key of something that left a view.
type OwnGone = String;

/// Records, blocks and pools that are in the first view only.
fn gone(before: &ClusterView, after: &ClusterView) -> Vec<OwnGone> {
    let mut gone = vec![];
    for (name, view) in &before.nodes {
        let now = after.nodes.get(name);
        if view.record.is_some() && now.is_none_or(|now| now.record.is_none()) {
            gone.push(Key::Node(name.clone()).to_string());
        }
        let blocks = now.map(|now| now.blocks.clone()).unwrap_or_default();
        let lost = view.blocks.difference(&blocks);
        gone.extend(lost.map(|block| Key::Claim(name.clone(), *block).to_string()));
    }
    let pools = before.pools.keys().filter(|name| !after.pools.contains_key(*name));
    gone.extend(pools.map(|name| Key::Pool(name.clone()).to_string()));
    gone
}
