//! The vocabulary between `routed`'s parts: what each part owns and tells the others.
//!
//! ```text
//!  store ──▶ cluster ──ClusterView──▶ dataplane ──▶ kernel
//!               ▲  └────ClusterView──▶ bgp ──BgpRoutes──▶ dataplane
//!               └──────── LocalFacts ◀── underlay (kernel)
//! ```
//!
//! Each value has one owner and travels in a `tokio::sync::watch`: only the latest counts.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use podway_model::bgp::BgpFilter;
use podway_model::cluster::{BgpPeer, ClusterConfig, Drained, NodeRecord, Pool, Reflector};
use podway_model::ids::{IfName, Mtu, NodeName, ObjectName};

/// The cluster as this node sees it. Owner: `cluster`.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct ClusterView {
    /// Whether a whole snapshot of the store has been read since start. Nothing may be removed from the kernel
    /// before this is true.
    pub(crate) synced: bool,
    /// Store revision that this view reflects.
    pub(crate) revision: i64,
    /// State of the connection to the store, in words.
    pub(crate) store: String,
    /// The cluster's configuration.
    pub(crate) config: ClusterConfig,
    /// Usable pools: those that overlap others or are invalid are left out and stand in `problems`.
    pub(crate) pools: BTreeMap<ObjectName, Pool>,
    /// All nodes that have a record or a claim, this one included.
    pub(crate) nodes: BTreeMap<NodeName, NodeView>,
    /// This node's own blocks, in the order in which they were claimed.
    pub(crate) own_blocks: Vec<OwnBlock>,
    /// Address reserved for this node in its first IPv4 block.
    pub(crate) tunnel_v4: Option<Ipv4Addr>,
    /// Address reserved for this node in its first IPv6 block.
    pub(crate) tunnel_v6: Option<Ipv6Addr>,
    /// Reflector roles given by hand.
    pub(crate) reflectors: BTreeMap<NodeName, Reflector>,
    /// Nodes that traffic shall leave.
    pub(crate) drained: BTreeMap<NodeName, Drained>,
    /// Filters of BGP routes.
    pub(crate) filters: BTreeMap<ObjectName, BgpFilter>,
    /// BGP peers outside the cluster.
    pub(crate) peers: BTreeMap<ObjectName, BgpPeer>,
    /// Store values that cannot be used, and why.
    pub(crate) problems: Vec<String>,
}

/// A node as the store shows it.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct NodeView {
    /// What it says of itself; none: only claims are there.
    pub(crate) record: Option<NodeRecord>,
    /// Whether its sign of life is there. A hint: never a reason to remove anything.
    pub(crate) live: bool,
    /// Blocks whose claim it has won and confirmed.
    pub(crate) blocks: BTreeSet<IpNet>,
}

/// A block of this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct OwnBlock {
    /// Its range.
    pub(crate) cidr: IpNet,
    /// Its pool.
    pub(crate) pool: ObjectName,
    /// How far its life has come.
    pub(crate) state: OwnBlockState,
}

/// Life of an own block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum OwnBlockState {
    /// Claimed, not yet seen to have won: not in the node file, not routed, not announced.
    Pending,
    /// Ours.
    Active,
    /// On its way back: no new leases.
    Draining,
    /// Lost while pods live in it: withdrawn, no blackhole, the pods' own routes stay.
    Stranded,
}

/// What the kernel says of this node's underlay. Owner: `underlay`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LocalFacts {
    /// Address on the underlay.
    pub(crate) address_v4: Option<Ipv4Addr>,
    /// Address on the underlay.
    pub(crate) address_v6: Option<Ipv6Addr>,
    /// Prefixes on link, by interface index: who is in one of them needs no gateway.
    pub(crate) on_link: Vec<(u32, IpNet)>,
    /// The interface that has the address.
    pub(crate) interface: IfName,
    /// Its index.
    pub(crate) ifindex: u32,
    /// Its MTU.
    pub(crate) mtu: Mtu,
}

/// Routes that BGP wants in the kernel. Owner: `bgp`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct BgpRoutes {
    /// Whether every peer that was up has sent its whole table, or the deferral time is over. Routes of an
    /// earlier run must not be swept before this is true.
    pub(crate) synced: bool,
    /// Best paths: destination to next hops, stale ones included.
    pub(crate) routes: BTreeMap<IpNet, Vec<IpAddr>>,
}
