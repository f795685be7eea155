//! What the core hands out: the view for the other parts of `routed`, and the node file for the CNI plugin.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use podway_model::ids::{BootId, Mtu};
use podway_model::node_file::{BlockState, NodeBlock, NodeFile, NodePool};

use super::claims::ClaimIndex;
use super::core::Core;
use super::event::{Action, Severity};
use super::own::{Own, Phase};
use super::pools::Pools;
use super::table::Table;
use crate::dataplane::mtu::pod_mtu;
use crate::view::{ClusterView, NodeView, OwnBlock, OwnBlockState};

/// Delay before a node file that could not be written is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// State of the node file.
#[derive(Debug, Default)]
pub(crate) struct FileState {
    /// As it stands on the disk, in this boot.
    written: Option<NodeFile>,
    /// On its way to the disk.
    writing: Option<NodeFile>,
    /// An earlier boot's, until there is one of this boot.
    earlier: Option<NodeFile>,
    generation: u64,
    retry_at: Option<Duration>,
}

impl FileState {
    /// `found`: as it stands on the disk, if it is this installation's; `generation`: of whatever stands there.
    pub(crate) fn new(found: Option<NodeFile>, generation: u64, boot: &BootId) -> Self {
        let (written, earlier) = match found {
            Some(file) if file.boot_id == *boot => (Some(file), None),
            other => (None, other),
        };
        Self { written, earlier, generation, ..Self::default() }
    }

    /// Addresses that the file on the disk reserves for the node.
    pub(super) fn tunnel_addresses(&self) -> &[IpAddr] {
        self.written.as_ref().map_or(&[], |file| &file.tunnel_addresses)
    }

    /// Blocks of the boot before, until there is a file of this boot.
    pub(super) fn earlier_blocks(&self) -> &[NodeBlock] {
        self.earlier.as_ref().map_or(&[], |file| &file.blocks)
    }

    pub(super) fn retry_at(&self) -> Option<Duration> {
        self.retry_at
    }

    /// Whether nobody can have got a lease in `block` that a look at the leases does not show, which was made while
    /// the file of `seen` stood: the block is not active in the file.
    pub(super) fn is_closed(&self, block: IpNet, seen: u64) -> bool {
        let Some(file) = &self.written else { return self.writing.is_none() };
        let is_settled = self.writing.is_none() && self.generation == file.generation;
        let is_active = file.blocks.iter().any(|b| b.cidr == block && b.state == BlockState::Active);
        is_settled && file.generation <= seen && !is_active
    }

    /// Whether the file on the disk, or the one on its way there, lists a block.
    fn lists(&self, block: IpNet) -> bool {
        let files = self.written.iter().chain(&self.writing);
        files.flat_map(|file| &file.blocks).any(|listed| listed.cidr == block)
    }

    pub(super) fn on_written(
        &mut self,
        now: Duration,
        generation: u64,
        error: Option<String>,
        out: &mut Vec<Action>,
    ) {
        let Some(file) = self.writing.take_if(|file| file.generation == generation) else { return };
        match error {
            None => {
                self.written = Some(file);
                self.earlier = None;
                self.retry_at = None;
            }
            Some(error) => {
                out.push(Action::Report(Severity::Warn, format!("node file not written: {error}")));
                self.retry_at = Some(now + RETRY);
            }
        }
    }
}

impl Core {
    /// Hands out what has changed.
    pub(super) fn publish(&mut self, now: Duration, out: &mut Vec<Action>) {
        // What others are is taken from the latest view unless the store changed: most steps are about this node.
        let base = if std::mem::take(&mut self.is_view_stale) { Some(self.base_view()) } else { None };
        self.collect_problems();
        let own = self.own_view();
        if base.is_some() || !own.is_part_of(&self.view) {
            let mut view = base.unwrap_or_else(|| (*self.view).clone());
            own.put_into(&mut view);
            if *self.view != view {
                self.view = Arc::new(view);
                out.push(Action::Publish);
            }
        }
        self.write_node_file(now, out);
    }

    /// The part that follows from the store alone.
    fn base_view(&mut self) -> ClusterView {
        let table = self.table_in_force();
        let pools = match &self.past {
            Some(_) => Arc::new(Pools::new(&table)),
            None => Arc::new(self.derived.pools.clone()),
        };
        let view = ClusterView {
            revision: table.revision,
            nodes: self.nodes(&table),
            config: table.config.as_ref().map(|stored| stored.value.clone()).unwrap_or_default(),
            pools: pools.usable.clone(),
            reflectors: table
                .reflectors
                .iter()
                .map(|(node, stored)| (node.clone(), stored.value.clone()))
                .collect(),
            drained: table
                .drained
                .iter()
                .map(|(node, stored)| (node.clone(), stored.value.clone()))
                .collect(),
            filters: table
                .filters
                .iter()
                .map(|(name, stored)| (name.clone(), stored.value.clone()))
                .collect(),
            peers: table.peers.iter().map(|(name, stored)| (name.clone(), stored.value.clone())).collect(),
            ..ClusterView::default()
        };
        self.in_force = pools;
        view
    }

    fn own_view(&self) -> OwnView {
        let in_order = self.blocks_in_order();
        let own_blocks = in_order.iter().map(|(block, own)| OwnBlock {
            cidr: *block,
            pool: own.pool.clone(),
            state: self.state(own, &self.in_force),
        });
        let (tunnel_v4, tunnel_v6) = (self.tunnel(&in_order, false), self.tunnel(&in_order, true));
        OwnView {
            synced: self.is_synced() && self.is_flannel_synced(),
            store: self.store_in_words(),
            own_blocks: own_blocks.collect(),
            tunnel_v4: tunnel_v4.and_then(|address| match address {
                IpAddr::V4(v4) => Some(v4),
                IpAddr::V6(_) => None,
            }),
            tunnel_v6: tunnel_v6.and_then(|address| match address {
                IpAddr::V4(_) => None,
                IpAddr::V6(v6) => Some(v6),
            }),
            problems: self.problems.iter().cloned().collect(),
        }
    }

    fn state(&self, own: &Own, pools: &Pools) -> OwnBlockState {
        match own.phase {
            Phase::Claiming | Phase::Pending => OwnBlockState::Pending,
            Phase::Stranded => OwnBlockState::Stranded,
            Phase::Leaving => OwnBlockState::Draining,
            Phase::Active if own.returning => OwnBlockState::Draining,
            Phase::Active => match pools.usable.get(&own.pool) {
                Some(pool) if pool.disabled => OwnBlockState::Draining,
                Some(_) => OwnBlockState::Active,
                // Deleted by an operator, or not known: not yet, or not any more since the store was wiped.
                None if self.is_synced() && self.past.is_none() => OwnBlockState::Draining,
                None => OwnBlockState::Active,
            },
        }
    }

    fn collect_problems(&mut self) {
        let pools = Arc::clone(&self.in_force);
        for (key, bad) in &self.table.bad {
            self.problems.insert(format!("{key}: ignoring it: {}", bad.reason));
        }
        self.problems.extend(pools.problems.iter().cloned());
        self.problems.extend(self.store_problems.iter().cloned());
        if !self.is_synced() && self.has_snapshot {
            self.problems
                .insert("config cannot be used, and no earlier one is known: nothing is changed".into());
        }
        if self.past.is_some() && self.table.pools.is_empty() {
            self.problems.insert("the store was wiped: apply pools and configuration again".into());
        }
        for (block, own) in &self.own {
            let is_empty = self.usage.get(block).is_some_and(|usage| usage.leased == 0);
            if own.phase == Phase::Stranded {
                if is_empty {
                    continue;
                }
                self.problems.insert(format!("block {block} is lost, and pods live in it"));
            } else if self.state(own, &pools) == OwnBlockState::Draining
                && !pools.usable.contains_key(&own.pool)
            {
                let text = "is not usable any more: no new pods in it";
                self.problems.insert(format!("block {block}: its pool {} {text}", own.pool));
            }
        }
    }

    fn store_in_words(&self) -> String {
        match (&self.away, self.has_snapshot) {
            (Some(reason), _) => format!("away: {reason}"),
            (None, true) if !self.is_flannel_synced() => "in sync, but for flannel's keys".to_owned(),
            (None, true) => "in sync".to_owned(),
            (None, false) => "connecting".to_owned(),
        }
    }

    fn blocks_in_order(&self) -> Vec<(IpNet, Own)> {
        let mut blocks: Vec<(IpNet, Own)> =
            self.own.iter().map(|(block, own)| (*block, own.clone())).collect();
        blocks.sort_by_key(|(block, own)| (own.order, *block));
        blocks
    }

    fn nodes(&self, table: &Table) -> BTreeMap<podway_model::ids::NodeName, NodeView> {
        let mut nodes: BTreeMap<_, NodeView> = BTreeMap::new();
        for (node, stored) in &table.nodes {
            let live = table.live.contains_key(node);
            let view = NodeView { record: Some(stored.value.clone()), live, ..NodeView::default() };
            nodes.insert(node.clone(), view);
        }
        let index = ClaimIndex::new(table);
        for ((node, block), stored) in &table.claims {
            let view = nodes.entry(node.clone()).or_default();
            view.live = table.live.contains_key(node);
            // While a claim moves, the loser's route is ignored.
            if stored.value.confirmed && index.wins(node, *block, stored.create) {
                view.blocks.insert(*block);
            }
        }
        self.add_flannels_nodes(&mut nodes);
        nodes
    }

    /// The node's own address in its first block of a family. It stays for as long as its block is held.
    fn tunnel(&self, blocks: &[(IpNet, Own)], v6: bool) -> Option<IpAddr> {
        let held: Vec<IpNet> = blocks
            .iter()
            .filter(|(block, own)| own.phase == Phase::Active && block.addr().is_ipv6() == v6)
            .map(|(block, _)| *block)
            .collect();
        let now = match v6 {
            false => self.view.tunnel_v4.map(IpAddr::V4),
            true => self.view.tunnel_v6.map(IpAddr::V6),
        };
        let reserved = self.file.tunnel_addresses().iter().copied().find(|address| address.is_ipv6() == v6);
        let kept = now.or(reserved).filter(|address| held.iter().any(|block| block.contains(address)));
        kept.or_else(|| {
            // Pods can hold addresses of a block as soon as the node file lists it.
            let free = |block: &&IpNet| match self.usage.get(block) {
                Some(usage) => !usage.first_leased,
                None => !self.file.lists(**block),
            };
            held.iter().find(free).map(IpNet::network)
        })
    }

    fn write_node_file(&mut self, now: Duration, out: &mut Vec<Action>) {
        if self.file.writing.is_some() || self.file.retry_at.is_some_and(|at| now < at) {
            return;
        }
        self.file.retry_at = None;
        let Some(mut file) = self.node_file() else { return };
        // After a failure the generations differ: what stands on the disk is not certain.
        file.generation = self.file.generation;
        if self.file.written.as_ref() == Some(&file) {
            return;
        }
        self.file.generation += 1;
        file.generation = self.file.generation;
        self.file.writing = Some(file.clone());
        out.push(Action::WriteNodeFile(Box::new(file)));
    }

    /// What the node file should be; `None` while there is nothing to say.
    fn node_file(&self) -> Option<NodeFile> {
        if !self.has_snapshot {
            return self.unconfirmed_file();
        }
        if !self.is_synced() {
            return self.reduced_file();
        }
        let view = &self.view;
        let blocks: Vec<NodeBlock> = view.own_blocks.iter().filter_map(node_block).collect();
        // A first file without a block would turn pods away that a moment later have one.
        if blocks.is_empty() && self.file.written.is_none() {
            return None;
        }
        let pools = [false, true].into_iter().flat_map(|v6| self.node_pools(v6));
        let tunnels = [view.tunnel_v4.map(IpAddr::V4), view.tunnel_v6.map(IpAddr::V6)];
        Some(NodeFile {
            schema: podway_model::SCHEMA,
            boot_id: self.me.boot_id.clone(),
            instance_id: self.me.instance_id.clone(),
            generation: 0,
            node: self.me.node.clone(),
            confirmed: true,
            mtu: self.mtu()?,
            policy: view.config.policy.mode,
            policy_timeout: view.config.policy.on_timeout,
            masquerade: view.config.masquerade.enabled,
            pools: pools.collect(),
            blocks,
            tunnel_addresses: tunnels.into_iter().flatten().collect(),
            namespace_pools: BTreeMap::new(),
        })
    }

    /// After a boot without the store: the earlier boot's file, said to be unconfirmed. Nobody frees a node's
    /// blocks but an operator, so they are still ours unless somebody released them.
    fn unconfirmed_file(&self) -> Option<NodeFile> {
        self.away.as_ref()?;
        let earlier = self.file.earlier.clone()?;
        Some(NodeFile { boot_id: self.me.boot_id.clone(), confirmed: false, ..earlier })
    }

    /// While the configuration cannot be used: the file as it is, without the blocks that were lost.
    fn reduced_file(&self) -> Option<NodeFile> {
        let mut file = self.file.written.clone()?;
        let is_held = |block: &NodeBlock| {
            self.own.get(&block.cidr).is_some_and(|own| matches!(own.phase, Phase::Active | Phase::Leaving))
        };
        file.blocks.retain(is_held);
        file.tunnel_addresses.retain(|address| file.blocks.iter().any(|block| block.cidr.contains(address)));
        Some(file)
    }

    /// The blocks of an unconfirmed file are this node's until the store says otherwise.
    pub(super) fn adopt_unconfirmed(&mut self) {
        if self.has_snapshot {
            return;
        }
        for (place, block) in self.unconfirmed_file().iter().flat_map(|file| &file.blocks).enumerate() {
            self.own.entry(block.cidr).or_insert_with(|| Own::from_file(block, place));
        }
    }

    fn mtu(&self) -> Option<Mtu> {
        match &self.facts {
            Some(facts) => Some(pod_mtu(&self.view, facts)),
            None => self.file.written.as_ref().map(|file| file.mtu),
        }
    }

    fn node_pools(&self, v6: bool) -> Vec<NodePool> {
        let mine = self.view.pools.iter().filter(|(_, pool)| {
            pool.cidr.addr().is_ipv6() == v6
                && pool.namespace_selector.is_none()
                && pool.node_selector.matches(&self.me.labels)
        });
        let pools = mine.map(|(name, pool)| NodePool {
            name: name.clone(),
            cidr: pool.cidr,
            assignment: pool.assignment,
        });
        pools.collect()
    }
}

/// The part of the view that is about this node, or changes without the store.
struct OwnView {
    synced: bool,
    store: String,
    own_blocks: Vec<OwnBlock>,
    tunnel_v4: Option<Ipv4Addr>,
    tunnel_v6: Option<Ipv6Addr>,
    problems: Vec<String>,
}

impl OwnView {
    fn is_part_of(&self, view: &ClusterView) -> bool {
        let Self { synced, store, own_blocks, tunnel_v4, tunnel_v6, problems } = self;
        (synced, store, own_blocks) == (&view.synced, &view.store, &view.own_blocks)
            && (tunnel_v4, tunnel_v6, problems) == (&view.tunnel_v4, &view.tunnel_v6, &view.problems)
    }

    fn put_into(self, view: &mut ClusterView) {
        let Self { synced, store, own_blocks, tunnel_v4, tunnel_v6, problems } = self;
        (view.synced, view.store, view.own_blocks) = (synced, store, own_blocks);
        (view.tunnel_v4, view.tunnel_v6, view.problems) = (tunnel_v4, tunnel_v6, problems);
    }
}

fn node_block(own: &OwnBlock) -> Option<NodeBlock> {
    let state = match own.state {
        OwnBlockState::Active => BlockState::Active,
        OwnBlockState::Draining => BlockState::Draining,
        OwnBlockState::Pending | OwnBlockState::Stranded => return None,
    };
    Some(NodeBlock { cidr: own.cidr, pool: own.pool.clone(), state })
}
