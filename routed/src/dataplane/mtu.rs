//! MTU of pods and of cluster routes: the underlay's, less the largest overhead in use.
//!
//! | encapsulation | over IPv4 | over IPv6 | bytes |
//! |---|---|---|---|
//! | none | 0 | 0 | |
//! | IPIP | 20 | | outer IPv4 20 |
//! | VXLAN | 50 | 70 | outer IPv4 20 or IPv6 40, UDP 8, VXLAN 8, inner Ethernet 14 |
//! | WireGuard | 60 | 80 | outer IPv4 20 or IPv6 40, UDP 8, header 16, tag 16 |
//!
//! Running pods cannot be changed, so cluster routes carry the value too, and follow the underlay.

use podway_model::cluster::Encapsulation;
use podway_model::ids::Mtu;

use super::encapsulation::{in_use, v6_tunnels};
use crate::view::{ClusterView, LocalFacts};

/// MTU of pods of this node, and of its routes to other nodes' pods.
pub(crate) fn pod_mtu(view: &ClusterView, facts: &LocalFacts) -> Mtu {
    let underlay = view.config.underlay_mtu.unwrap_or(facts.mtu);
    let v6 = v6_tunnels(view, facts);
    underlay.less(in_use(view).into_iter().map(|one| overhead(one, v6)).max().unwrap_or(0))
}

/// Bytes that an encapsulation adds.
fn overhead(encapsulation: Encapsulation, over_v6: bool) -> u32 {
    match (encapsulation, over_v6) {
        (Encapsulation::None, _) => 0,
        (Encapsulation::Ipip | Encapsulation::IpipCrossSubnet, _) => 20,
        (Encapsulation::Vxlan | Encapsulation::VxlanCrossSubnet, false) => 50,
        (Encapsulation::Vxlan | Encapsulation::VxlanCrossSubnet, true) => 70,
        (Encapsulation::Wireguard, false) => 60,
        (Encapsulation::Wireguard, true) => 80,
    }
}
