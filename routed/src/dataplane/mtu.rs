//! MTU of pods and of cluster routes: the underlay's, less the largest overhead in use.
//!
//! | over | overhead of VXLAN in bytes |
//! |---|---|
//! | IPv4 | 50: outer IPv4 20, UDP 8, VXLAN 8, inner Ethernet 14 |
//! | IPv6 | 70: outer IPv6 40, UDP 8, VXLAN 8, inner Ethernet 14 |
//!
//! Running pods cannot be changed, so cluster routes carry the value too, and follow the underlay.

use podway_model::cluster::Backend;
use podway_model::ids::Mtu;

use crate::view::{ClusterView, LocalFacts};

/// VXLAN over IPv4.
pub(crate) const VXLAN_V4_OVERHEAD: u32 = 50;
/// VXLAN over IPv6.
pub(crate) const VXLAN_V6_OVERHEAD: u32 = 70;

/// MTU of pods of this node, and of its routes to other nodes' pods.
pub(crate) fn pod_mtu(view: &ClusterView, facts: &LocalFacts) -> Mtu {
    let underlay = view.config.underlay_mtu.unwrap_or(facts.mtu);
    underlay.less(match view.config.backend {
        Backend::HostGw | Backend::Bgp => 0,
        Backend::Vxlan if v6_tunnels(view, facts) => VXLAN_V6_OVERHEAD,
        Backend::Vxlan => VXLAN_V4_OVERHEAD,
    })
}

/// Whether a tunnel over an IPv6 underlay is needed: some node, or this one, has no IPv4 underlay address.
fn v6_tunnels(view: &ClusterView, facts: &LocalFacts) -> bool {
    facts.address_v4.is_none()
        || view
            .nodes
            .values()
            .filter_map(|node| node.record.as_ref())
            .any(|record| record.address_v4.is_none())
}
