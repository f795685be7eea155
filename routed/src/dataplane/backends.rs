//! The backends: how packets get to the other nodes' pods. Pure.
//!
//! | backend | route to a peer's block | refuses a peer |
//! |---|---|---|
//! | `host-gw` | via the peer's underlay address of the block's family | that is not on one of our links |
//! | `vxlan` | via the peer's VTEP, on a tunnel device | without a common underlay family |
//! | `bgp` | via the next hop that BGP says | whose next hop is not on one of our links |
//!
//! A dead node keeps its routes here: liveness is a hint, only its claims count.
//!
//! **One tunnel per pair of nodes carries both families.** It runs over IPv4 where both nodes have an IPv4
//! underlay address (device `podway.vxlan`), else over IPv6 (`podway.vxlan6`). A node has the devices that its
//! own addresses allow. So a cluster whose underlay has only one family still has dual-stack pods, and an
//! IPv4-only and an IPv6-only node are told that they cannot reach each other.
//!
//! **Gateways on a tunnel device** mean something to this node only: a neighbour entry gives them their MAC
//! address. IPv4 takes the peer's tunnel address. IPv6 takes the link-local address that the VTEP's MAC address
//! makes: the kernel refuses an on-link IPv6 gateway that it routes over another device at the moment
//! (`ip6_route_check_nh_onlink`), so with the tunnel address no route could ever move from another backend to
//! this one.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv6Addr};

use ipnet::IpNet;
use podway_model::cluster::NodeRecord;
use podway_model::ids::{MacAddr, Mtu, NodeName};
use podway_model::names::{VXLAN_DEVICE, vtep_mac};

use super::desired::{Desired, Device, Inputs, Interface, RouteSpec, Target, Via, key};
use super::mtu::pod_mtu;
use crate::view::{LocalFacts, OwnBlockState};

/// VXLAN device over an IPv6 underlay.
pub(crate) const VXLAN_DEVICE6: &str = "podway.vxlan6";

/// A peer's block that is to be routed.
struct PeerBlock<'a> {
    node: &'a NodeName,
    record: &'a NodeRecord,
    block: IpNet,
}

/// The peers' blocks that can be routed at all. A problem for each one that cannot.
fn peer_blocks<'a>(inputs: Inputs<'a>, out: &mut Desired) -> Vec<PeerBlock<'a>> {
    let own: BTreeSet<IpNet> = inputs
        .view
        .own_blocks
        .iter()
        .filter(|block| matches!(block.state, OwnBlockState::Active | OwnBlockState::Draining))
        .map(|block| block.cidr)
        .collect();
    let mut owners: BTreeMap<IpNet, &NodeName> = own.iter().map(|block| (*block, inputs.node)).collect();
    let mut all = Vec::new();
    for (node, seen) in inputs.view.nodes.iter().filter(|(node, _)| *node != inputs.node) {
        let Some(record) = &seen.record else {
            if !seen.blocks.is_empty() {
                refuse(out, node, "it holds blocks but has published no addresses");
            }
            continue;
        };
        for block in &seen.blocks {
            let underlay = [record.address_v4.map(IpAddr::V4), record.address_v6.map(IpAddr::V6)];
            let ours = [inputs.facts.address_v4.map(IpAddr::V4), inputs.facts.address_v6.map(IpAddr::V6)];
            if let Some(address) = underlay.iter().chain(&ours).flatten().find(|a| block.contains(*a)) {
                refuse(out, node, format!("its block {block} contains the underlay address {address}"));
            } else if let Some(owner) = owners.insert(*block, node) {
                // While a claim moves both may show it; the first one keeps it, and it is never shared.
                owners.insert(*block, owner);
                refuse(out, node, format!("its block {block} is also held by {owner}"));
            } else {
                all.push(PeerBlock { node, record, block: *block });
            }
        }
    }
    all
}

/// The first problem of a node is the one that is shown.
fn refuse(out: &mut Desired, node: &NodeName, problem: impl Into<String>) {
    out.node_problems.entry(node.clone()).or_insert_with(|| problem.into());
}

fn family(address: &IpNet) -> &'static str {
    if address.addr().is_ipv6() { "IPv6" } else { "IPv4" }
}

/// The interface on whose link `address` is: the longest prefix decides.
fn on_link(facts: &LocalFacts, address: IpAddr) -> Option<Via> {
    facts
        .on_link
        .iter()
        .filter(|(_, net)| net.contains(&address))
        .max_by_key(|(_, net)| net.prefix_len())
        .map(|(index, _)| Via { interface: Interface::Underlay(*index), gateway: address })
}

/// Straight to the peer, or why not.
fn direct(facts: &LocalFacts, peer: &PeerBlock<'_>) -> Result<Via, String> {
    let address = peer.record.address_like(&peer.block).ok_or_else(|| {
        format!("it has no {} underlay address for its block {}", family(&peer.block), peer.block)
    })?;
    on_link(facts, address).ok_or_else(|| {
        format!("its address {address} is not on a link of this node; use the vxlan or bgp backend")
    })
}

fn count_neighbours(out: &mut Desired) {
    let gateways: BTreeSet<IpAddr> = out
        .routes
        .values()
        .filter_map(|route| match route.target {
            Target::Via(Via { interface: Interface::Underlay(_), gateway }) => Some(gateway),
            _ => None,
        })
        .collect();
    out.neighbours_on_link = gateways.len();
}

pub(super) fn host_gw(inputs: Inputs<'_>, out: &mut Desired) {
    let mtu = Some(pod_mtu(inputs.view, inputs.facts));
    for peer in peer_blocks(inputs, out) {
        match direct(inputs.facts, &peer) {
            Ok(via) => {
                let spec = RouteSpec { target: Target::Via(via), source: None, mtu };
                out.routes.insert(key(peer.block, None), spec);
            }
            Err(problem) => refuse(out, peer.node, problem),
        }
    }
    count_neighbours(out);
}

pub(super) fn bgp(inputs: Inputs<'_>, out: &mut Desired) {
    let mtu = Some(pod_mtu(inputs.view, inputs.facts));
    let mut off_link: BTreeMap<IpAddr, usize> = BTreeMap::new();
    for (destination, next_hops) in &inputs.bgp.routes {
        let own = inputs.view.own_blocks.iter().any(|block| {
            block.cidr == *destination
                && matches!(block.state, OwnBlockState::Active | OwnBlockState::Draining)
        });
        if own {
            continue;
        }
        // One path per destination: the first next hop that is on a link.
        match next_hops.iter().find_map(|next_hop| on_link(inputs.facts, *next_hop)) {
            Some(via) => {
                let spec = RouteSpec { target: Target::Via(via), source: None, mtu };
                out.routes.insert(key(*destination, None), spec);
            }
            None => {
                for next_hop in next_hops {
                    *off_link.entry(*next_hop).or_default() += 1;
                }
            }
        }
    }
    for (next_hop, routes) in off_link {
        let text = format!("its next hop {next_hop} ({routes} routes) is not on a link of this node");
        let owner = inputs.view.nodes.iter().find(|(_, seen)| {
            seen.record.as_ref().is_some_and(|record| {
                [record.address_v4.map(IpAddr::V4), record.address_v6.map(IpAddr::V6)]
                    .contains(&Some(next_hop))
            })
        });
        match owner {
            Some((node, _)) => refuse(out, node, text),
            None => out
                .problems
                .push(format!("BGP next hop {next_hop} ({routes} routes) is not on a link of this node")),
        }
    }
    count_neighbours(out);
}

pub(super) fn vxlan(inputs: Inputs<'_>, mtu: Mtu, out: &mut Desired) {
    let Inputs { view, facts, .. } = inputs;
    let own_tunnels: BTreeSet<IpAddr> =
        view.tunnel_v4.map(IpAddr::V4).into_iter().chain(view.tunnel_v6.map(IpAddr::V6)).collect();
    let device = |local: IpAddr| Device {
        vni: view.config.vxlan.vni,
        port: view.config.vxlan.port,
        local,
        mac: vtep_mac(inputs.node.as_str(), VXLAN_DEVICE),
        mtu,
        addresses: own_tunnels.clone(),
        neighbours: BTreeMap::new(),
        fdb: BTreeMap::new(),
    };
    if let Some(local) = facts.address_v4 {
        out.devices.insert(VXLAN_DEVICE, device(local.into()));
    }
    if let Some(local) = facts.address_v6 {
        let v6_peer = |record: &NodeRecord| record.address_v4.is_none() && record.address_v6.is_some();
        let needed = view.nodes.values().filter_map(|node| node.record.as_ref()).any(v6_peer);
        if needed || facts.address_v4.is_none() {
            out.devices.insert(VXLAN_DEVICE6, device(local.into()));
        }
    }
    for peer in peer_blocks(inputs, out) {
        let via = if view.config.vxlan.direct_routing { direct(facts, &peer).ok() } else { None };
        let (via, source) = match via {
            Some(via) => (via, None),
            None => match tunnel(facts, &peer, out) {
                Ok(via) => {
                    let v6 = peer.block.addr().is_ipv6();
                    (via, own_tunnels.iter().find(|address| address.is_ipv6() == v6).copied())
                }
                Err(problem) => {
                    refuse(out, peer.node, problem);
                    continue;
                }
            },
        };
        let spec = RouteSpec { target: Target::Via(via), source, mtu: Some(mtu) };
        out.routes.insert(key(peer.block, None), spec);
    }
    count_neighbours(out);
}

/// Through the tunnel to the peer, with the entries that it needs on the device; or why not.
fn tunnel(facts: &LocalFacts, peer: &PeerBlock<'_>, out: &mut Desired) -> Result<Via, String> {
    let record = peer.record;
    let (name, remote): (_, IpAddr) = match (facts.address_v4, record.address_v4) {
        (Some(_), Some(remote)) => (VXLAN_DEVICE, remote.into()),
        _ => match (facts.address_v6, record.address_v6) {
            (Some(_), Some(remote)) => (VXLAN_DEVICE6, remote.into()),
            _ => return Err("it has no underlay address of a family that this node has too".to_owned()),
        },
    };
    let mac = record.vtep_mac.unwrap_or_else(|| vtep_mac(peer.node.as_str(), VXLAN_DEVICE));
    let gateway: IpAddr = match peer.block {
        IpNet::V4(_) => record.tunnel_v4.ok_or("it has published no IPv4 tunnel address")?.into(),
        IpNet::V6(_) => link_local(mac).into(),
    };
    let device = out.devices.get_mut(name).ok_or_else(|| format!("this node has no device {name}"))?;
    insert(&mut device.fdb, mac, remote).map_err(|other| taken(mac, other))?;
    insert(&mut device.neighbours, gateway, mac).map_err(|other| taken(gateway, other))?;
    Ok(Via { interface: Interface::Device(name), gateway })
}

/// The link-local address of an Ethernet address (RFC 4291 appendix A).
pub(super) fn link_local(mac: MacAddr) -> Ipv6Addr {
    let [a, b, c, d, e, f] = mac.0;
    let half = |high, low| u16::from_be_bytes([high, low]);
    Ipv6Addr::new(0xfe80, 0, 0, 0, half(a ^ 2, b), half(c, 0xff), half(0xfe, d), half(e, f))
}

fn taken(what: impl std::fmt::Display, holder: impl std::fmt::Display) -> String {
    format!("its {what} is already in use for {holder}: two nodes claim it")
}

/// Inserts, or gives back the different value that is there.
fn insert<K: Ord, V: Copy + PartialEq>(map: &mut BTreeMap<K, V>, key: K, value: V) -> Result<(), V> {
    match *map.entry(key).or_insert(value) {
        there if there == value => Ok(()),
        other => Err(other),
    }
}
