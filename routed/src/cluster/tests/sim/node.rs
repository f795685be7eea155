//! One node of the simulation.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use podway_model::node_file::{BlockState, NodeFile};
use podway_store::fake::mem::LeaseId;

use super::super::rig::identity;
use crate::cluster::Identity;
use crate::cluster::core::Core;
use crate::cluster::event::Usage;
use crate::view::{ClusterView, OwnBlockState};

/// A place in the store's history: how often it was restored, and the revision.
pub(super) type Place = (u32, i64);

pub(super) struct Node {
    pub(super) me: Identity,
    /// None while the daemon is down.
    pub(super) core: Option<Core>,
    /// Counts processes: what was meant for an earlier one is dropped.
    pub(super) life: u64,
    pub(super) started: Duration,
    pub(super) disk: Option<NodeFile>,
    /// Writes of the node file under way, or the last one failed.
    pub(super) is_filing: bool,
    pub(super) lease: Option<LeaseId>,
    /// Cut off from the store.
    pub(super) is_cut: bool,
    /// Was told that the store is away.
    pub(super) is_away: bool,
    /// Per prefix, up to where the watch has delivered; none: a snapshot comes next.
    pub(super) seen: Option<Vec<i64>>,
    /// The same for the claims, kept over restarts and restores: what this node has acted upon.
    pub(super) seen_claims: Place,
    /// Whether a snapshot was delivered in this life.
    pub(super) is_synced: bool,
    pub(super) is_delivery_due: bool,
    pub(super) is_look_due: bool,
    pub(super) wake_at: Option<Duration>,
    /// Leased addresses per block.
    pub(super) pods: BTreeMap<IpNet, u64>,
    /// How many pods it is about to have.
    pub(super) load: u64,
    /// Wall clock against the true time, in seconds.
    pub(super) skew: i64,
    /// The furthest that its clock was ever ahead.
    pub(super) most_skew: i64,
    pub(super) view: Arc<ClusterView>,
}

impl Node {
    pub(super) fn new(i: usize) -> Self {
        Self {
            me: identity(i),
            core: None,
            life: 0,
            started: Duration::ZERO,
            disk: None,
            is_filing: false,
            lease: None,
            is_cut: false,
            is_away: false,
            seen: None,
            seen_claims: (0, 0),
            is_synced: false,
            is_delivery_due: false,
            is_look_due: false,
            wake_at: None,
            pods: BTreeMap::new(),
            load: 0,
            skew: 0,
            most_skew: 0,
            view: Arc::default(),
        }
    }

    pub(super) fn name(&self) -> &str {
        self.me.node.as_str()
    }

    /// The node file that the plugin would use.
    fn file(&self) -> Option<&NodeFile> {
        self.disk.as_ref().filter(|file| file.boot_id == self.me.boot_id)
    }

    /// Blocks from which pods get addresses by a confirmed file.
    pub(super) fn offered(&self) -> impl Iterator<Item = IpNet> {
        let blocks = self.file().filter(|file| file.confirmed).map(|file| file.blocks.as_slice());
        let active = blocks.unwrap_or_default().iter().filter(|block| block.state == BlockState::Active);
        active.map(|block| block.cidr)
    }

    /// Whether the core counts the block as its own.
    pub(super) fn holds(&self, block: IpNet) -> bool {
        let is_held = |state| matches!(state, OwnBlockState::Active | OwnBlockState::Draining);
        self.view.own_blocks.iter().any(|own| own.cidr == block && is_held(own.state))
    }

    /// Whether people are told of the block as this node's, lost or not.
    pub(super) fn shows(&self, block: IpNet) -> bool {
        self.view.own_blocks.iter().any(|own| own.cidr == block)
    }

    /// Pods come and go towards the load; where they come is what the plugin would do.
    pub(super) fn move_pods(&mut self, step: u64) {
        let total: u64 = self.pods.values().sum();
        if total < self.load {
            let reserved: Vec<IpAddr> =
                self.file().iter().flat_map(|file| &file.tunnel_addresses).copied().collect();
            let active = self.file().into_iter().flat_map(|file| &file.blocks);
            let active: Vec<IpNet> =
                active.filter(|block| block.state == BlockState::Active).map(|block| block.cidr).collect();
            let mut left = step.min(self.load - total);
            for block in active {
                let pods = self.pods.entry(block).or_default();
                let room = capacity(block, &reserved).saturating_sub(*pods).min(left);
                *pods += room;
                left -= room;
            }
        } else {
            let mut left = step.min(total - self.load);
            for pods in self.pods.values_mut().rev() {
                let go = left.min(*pods);
                *pods -= go;
                left -= go;
            }
        }
        self.pods.retain(|_, pods| *pods > 0);
    }

    /// A look at the leases, under the address lock.
    pub(super) fn look(&self) -> (BTreeMap<IpNet, Usage>, u64, Vec<IpAddr>) {
        let reserved = self.file().map(|file| file.tunnel_addresses.clone()).unwrap_or_default();
        let usage = |block: IpNet| {
            let leased = self.pods.get(&block).copied().unwrap_or(0);
            let available = capacity(block, &reserved).saturating_sub(leased);
            Usage { available, leased, quarantined: 0, first_leased: false }
        };
        let blocks = self.view.own_blocks.iter().map(|own| (own.cidr, usage(own.cidr))).collect();
        let lost = self.pods.keys().filter(|block| !self.shows(**block));
        let elsewhere = lost.map(IpNet::broadcast).collect();
        (blocks, self.file().map_or(0, |file| file.generation), elsewhere)
    }
}

fn capacity(block: IpNet, reserved: &[IpAddr]) -> u64 {
    let size = 1u64 << (block.max_prefix_len() - block.prefix_len());
    size - reserved.iter().filter(|address| block.contains(*address)).count() as u64
}
