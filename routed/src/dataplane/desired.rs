//! What the kernel of this node shall hold: a pure function of its inputs.
//!
//! Common to all backends: a blackhole for every own block, so that a packet to an address without a pod ends
//! here; an `unreachable` route for every pool at the worst metric, so that a packet to an unclaimed address
//! never loops over the default route; masquerade; forwarding. The rest is in [`super::backends`].

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;
use podway_kern::rtnl::{RouteKey, TABLE_MAIN, V6_DEFAULT_METRIC};
use podway_kern::sysctl::{Family, Sysctl};
use podway_kern::wireguard::{PrivateKey, WireguardPeer};
use podway_model::cluster::Backend;
use podway_model::ids::{MacAddr, Mtu, NodeName, Vni, WireguardKey};
use podway_model::names::UNREACHABLE_METRIC;

use super::forward::Forward;
use super::{backends, mtu, shared};
use crate::view::{BgpRoutes, ClusterView, LocalFacts, OwnBlockState};

/// Metric of an own block's blackhole: worse than the route of a pod to whom the whole block belongs, better
/// than the pool's `unreachable`.
pub(crate) const BLACKHOLE_METRIC: u32 = UNREACHABLE_METRIC - 1;

/// Everything that decides.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Inputs<'a> {
    /// This node.
    pub(crate) node: &'a NodeName,
    /// The cluster. Must be synced: nothing is wanted of a cluster that has not been seen.
    pub(crate) view: &'a ClusterView,
    /// The underlay.
    pub(crate) facts: &'a LocalFacts,
    /// Routes learnt by BGP; used by that backend only.
    pub(crate) bgp: &'a BgpRoutes,
    /// This node's WireGuard key, or why it has none.
    pub(crate) wireguard: Result<&'a PrivateKey, &'a str>,
}

/// What the kernel shall hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Desired {
    /// Tunnel devices by name.
    pub(crate) devices: BTreeMap<&'static str, Device>,
    /// Routes. The next-hop objects are those that they use.
    pub(crate) routes: BTreeMap<RouteKey, RouteSpec>,
    /// Sysctls and their values.
    pub(crate) sysctls: Vec<(Sysctl, &'static str)>,
    /// Masquerade; none: not wanted.
    pub(crate) masquerade: Option<Masquerade>,
    /// What foreign forward chains shall let through; none: not known yet.
    pub(crate) forward: Option<Forward>,
    /// Nodes that can be reached through a neighbour on one of our links: the kernel's neighbour table must
    /// hold so many.
    pub(crate) neighbours_on_link: usize,
    /// Whether what is not wanted may be removed. False until every input has told all that it knows.
    pub(crate) prune: bool,
    /// Nodes that cannot be reached, and why.
    pub(crate) node_problems: BTreeMap<NodeName, String>,
    /// Addresses that several nodes publish, in words.
    pub(crate) shared_addresses: Vec<String>,
    /// Other problems.
    pub(crate) problems: Vec<String>,
}

/// A tunnel device with everything static on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Device {
    /// What it is.
    pub(crate) kind: DeviceKind,
    /// MTU.
    pub(crate) mtu: Mtu,
    /// Addresses, each a /32 or /128.
    pub(crate) addresses: BTreeSet<IpAddr>,
}

/// The kinds of tunnel devices.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum DeviceKind {
    /// VXLAN.
    Vxlan {
        /// Network identifier.
        vni: Vni,
        /// UDP port.
        port: u16,
        /// Underlay address of this end.
        local: IpAddr,
        /// Ethernet address.
        mac: MacAddr,
        /// Neighbour entries: gateway address of a peer to the MAC address of its VTEP.
        neighbours: BTreeMap<IpAddr, MacAddr>,
        /// Forwarding entries: MAC address of a peer's VTEP to the peer's underlay address.
        fdb: BTreeMap<MacAddr, IpAddr>,
    },
    /// IPIP: a route's gateway is the other end.
    Ipip {
        /// Underlay address of this end.
        local: Ipv4Addr,
    },
    /// WireGuard.
    Wireguard {
        /// UDP port.
        port: u16,
        /// This node's key.
        key: PrivateKey,
        /// Peers.
        peers: BTreeMap<WireguardKey, WireguardPeer>,
    },
}

/// What a route does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RouteSpec {
    /// Where it leads.
    pub(crate) target: Target,
    /// Preferred source address.
    pub(crate) source: Option<IpAddr>,
    /// MTU metric.
    pub(crate) mtu: Option<Mtu>,
}

/// Where a route leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Target {
    /// To a next-hop object.
    Via(Via),
    /// Nowhere, in silence.
    Blackhole,
    /// Nowhere, with an ICMP unreachable.
    Unreachable,
}

/// A next-hop object, identified by what it says. One per peer and family, shared by the peer's blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Via {
    /// Interface.
    pub(crate) interface: Interface,
    /// Gateway.
    pub(crate) gateway: IpAddr,
}

/// An interface of ours by name, or the underlay's by index.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Interface {
    /// A tunnel device: its gateways are on link whatever the addresses say.
    Device(&'static str),
    /// An interface of the underlay.
    Underlay(u32),
}

/// Whose packets get the node's address when they leave the cluster.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Masquerade {
    /// Sources: pools with `nat`.
    pub(crate) sources: BTreeSet<IpNet>,
    /// Destinations that see pods' own addresses: all pools, and what the configuration excludes.
    pub(crate) exclude: BTreeSet<IpNet>,
}

/// The key of a route of ours in the main table.
pub(crate) fn key(destination: IpNet, metric: Option<u32>) -> RouteKey {
    let default = if destination.addr().is_ipv6() { V6_DEFAULT_METRIC } else { 0 };
    RouteKey { table: TABLE_MAIN, destination: destination.trunc(), metric: metric.unwrap_or(default) }
}

/// What the kernel shall hold.
pub(crate) fn desired(inputs: Inputs<'_>) -> Desired {
    let Inputs { view, bgp, .. } = inputs;
    let backend = view.config.backend;
    let mut out = Desired {
        prune: view.synced && (backend != Backend::Bgp || bgp.synced),
        masquerade: view.config.masquerade.enabled.then(|| masquerade(view)),
        forward: Some(Forward {
            pools: view.pools.values().map(|pool| pool.cidr.trunc()).collect(),
            rules: view.config.forward_rules.is_on(),
        }),
        ..Desired::default()
    };
    let reject = |target| RouteSpec { target, source: None, mtu: None };
    for pool in view.pools.values() {
        out.routes.insert(key(pool.cidr, Some(UNREACHABLE_METRIC)), reject(Target::Unreachable));
    }
    for block in &view.own_blocks {
        if matches!(block.state, OwnBlockState::Active | OwnBlockState::Draining) {
            out.routes.insert(key(block.cidr, Some(BLACKHOLE_METRIC)), reject(Target::Blackhole));
        }
    }
    out.sysctls.push((Sysctl::new("net/ipv4/ip_forward"), "1"));
    if view.pools.values().any(|pool| pool.cidr.addr().is_ipv6()) {
        out.sysctls.push((v6_forwarding(), "1"));
    }
    shared::tell(inputs, &mut out);
    backends::to_peers(inputs, mtu::pod_mtu(view, inputs.facts), &mut out);
    for name in out.devices.keys() {
        // The greater of this and `all` counts: 2 turns a strict `all` into a loose one for this device, where
        // packets may come from addresses to which we route directly.
        out.sysctls.push((Sysctl::conf(Family::V4, name, "rp_filter"), "2"));
        out.sysctls.push((Sysctl::conf(Family::V4, name, "send_redirects"), "0"));
        out.sysctls.push((Sysctl::conf(Family::V6, name, "accept_ra"), "0"));
    }
    out
}

/// The switch of IPv6 forwarding. Turning it on makes the kernel drop what it learnt from router
/// advertisements on interfaces whose `accept_ra` is not 2: see `sysctls`.
pub(crate) fn v6_forwarding() -> Sysctl {
    Sysctl::new("net/ipv6/conf/all/forwarding")
}

fn masquerade(view: &ClusterView) -> Masquerade {
    let pools = || view.pools.values();
    Masquerade {
        sources: pools().filter(|pool| pool.nat).map(|pool| pool.cidr.trunc()).collect(),
        exclude: pools()
            .map(|pool| pool.cidr.trunc())
            .chain(view.config.masquerade.exclude.iter().map(IpNet::trunc))
            .collect(),
    }
}
