//! What packets to other nodes' pods are wrapped in, and what follows from it for both ends. Pure.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use podway_model::cluster::{Encapsulation, NodeRecord, Pool};

use crate::view::{ClusterView, LocalFacts};

/// The encapsulation of a pool.
pub(crate) fn of_pool(view: &ClusterView, pool: &Pool) -> Encapsulation {
    pool.encapsulation.unwrap_or_else(|| view.config.encapsulation())
}

/// The encapsulation of a block: its pool's. A block whose pool is gone goes as the cluster's backend says.
pub(crate) fn of_block(view: &ClusterView, block: &IpNet) -> Encapsulation {
    let pool = view.pools.values().find(|pool| pool.cidr.contains(block));
    pool.map_or_else(|| view.config.encapsulation(), |pool| of_pool(view, pool))
}

/// The encapsulations of all pools; without a pool, the backend's.
pub(crate) fn in_use(view: &ClusterView) -> BTreeSet<Encapsulation> {
    if view.pools.is_empty() {
        return [view.config.encapsulation()].into();
    }
    view.pools.values().map(|pool| of_pool(view, pool)).collect()
}

/// Where a tunnel to a peer ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Underlay {
    /// Both nodes have IPv4.
    V4(Ipv4Addr),
    /// One of them has not.
    V6(Ipv6Addr),
}

/// The underlay that this node and a peer share, IPv4 before IPv6; or that there is none.
pub(crate) fn common_underlay(facts: &LocalFacts, record: &NodeRecord) -> Result<Underlay, String> {
    match (facts.address_v4, record.address_v4) {
        (Some(_), Some(remote)) => Ok(Underlay::V4(remote)),
        _ => match (facts.address_v6, record.address_v6) {
            (Some(_), Some(remote)) => Ok(Underlay::V6(remote)),
            _ => Err("it has no underlay address of a family that this node has too".to_owned()),
        },
    }
}

/// Whether a tunnel of this node runs over IPv6: some node, or this one, has no IPv4 underlay address.
pub(crate) fn v6_tunnels(view: &ClusterView, facts: &LocalFacts) -> bool {
    let mut records = view.nodes.values().filter_map(|node| node.record.as_ref());
    facts.address_v4.is_none() || records.any(|record| record.address_v4.is_none())
}

/// Whether VXLAN needs its device over IPv6: this node has no IPv4 underlay address, or a peer has IPv6 only.
pub(crate) fn vxlan6_needed(view: &ClusterView, facts: &LocalFacts) -> bool {
    let v6_only = |record: &NodeRecord| record.address_v4.is_none() && record.address_v6.is_some();
    facts.address_v4.is_none() || view.nodes.values().filter_map(|node| node.record.as_ref()).any(v6_only)
}
