//! The backends: how packets get to the other nodes' pods. Pure.
//!
//! | encapsulation | route to a peer's block | refuses a peer |
//! |---|---|---|
//! | none | via the peer's underlay address of the block's family | that is not on one of our links |
//! | VXLAN | via the peer's VTEP, on a tunnel device | without a common underlay family |
//! | IPIP | via the peer's IPv4 underlay address, on a tunnel device | whose block or underlay is IPv6 |
//! | WireGuard | via the peer's tunnel address, on a tunnel device | without a key, or a common underlay family |
//!
//! A pool names its encapsulation, else the cluster's backend says it ([`ClusterConfig::encapsulation`]); with
//! `crossSubnet` a peer on one of our links gets none. With the backend `bgp` routes come from BGP, whatever the
//! pool's encapsulation then does with them; with all others, from the claims.
//!
//! A dead node keeps its routes here: liveness is a hint, only its claims count.
//!
//! **One tunnel per pair of nodes carries both families**, IPIP's aside. It runs over IPv4 where both nodes have an
//! IPv4 underlay address, else over IPv6: with VXLAN on a device of its own (`podway.vxlan6`), with WireGuard on the
//! same one, whose peers have an endpoint of either family each. A node has the devices that its own addresses allow.
//! So a cluster whose underlay has only one family still has dual-stack pods, and an IPv4-only and an IPv6-only node
//! are told that they cannot reach each other.
//!
//! **Gateways on a tunnel device** mean something to this node only: on VXLAN's a neighbour entry gives them their MAC
//! address, on WireGuard's nothing looks at them (the prefixes of its peers decide). IPv4 takes the peer's tunnel
//! address. IPv6 takes the link-local address that the VTEP's MAC address makes: the kernel refuses an on-link IPv6
//! gateway that it routes over another device at the moment (`ip6_route_check_nh_onlink`), so with the tunnel address
//! no route could ever move from another backend to this one.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use ipnet::IpNet;
use podway_kern::wireguard::WireguardPeer;
use podway_model::cluster::{Backend, Encapsulation, NodeRecord};
use podway_model::ids::{MacAddr, Mtu, NodeName};
use podway_model::names::{IPIP_DEVICE, VXLAN_DEVICE, WIREGUARD_DEVICE, WIREGUARD_KEY_FILE, vtep_mac};

use super::desired::{Desired, Device, DeviceKind, Inputs, Interface, RouteSpec, Target, Via, key};
use super::encapsulation::{Underlay, common_underlay, in_use, of_block, vxlan6_needed};
use crate::view::{LocalFacts, OwnBlockState};

/// VXLAN device over an IPv6 underlay.
pub(crate) const VXLAN_DEVICE6: &str = "podway.vxlan6";

/// A peer's block that is to be routed.
struct PeerBlock<'a> {
    node: &'a NodeName,
    record: &'a NodeRecord,
    /// All blocks of the node.
    blocks: &'a BTreeSet<IpNet>,
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
            if let Some(address) = underlay.iter().flatten().find(|a| ours.contains(&Some(**a))) {
                // More than its problem: no tunnel and no gateway leads to oneself.
                out.node_problems.insert(
                    node.clone(),
                    format!(
                        "it publishes this node's own address {address}: there is no way to it from here"
                    ),
                );
            } else if let Some(address) = underlay.iter().chain(&ours).flatten().find(|a| block.contains(*a))
            {
                refuse(out, node, format!("its block {block} contains the underlay address {address}"));
            } else if let Some(owner) = owners.insert(*block, node) {
                // While a claim moves both may show it; the first one keeps it, and it is never shared.
                owners.insert(*block, owner);
                refuse(out, node, format!("its block {block} is also held by {owner}"));
            } else {
                all.push(PeerBlock { node, record, blocks: &seen.blocks, block: *block });
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
        format!(
            "its address {address} is not on a link of this node; use the vxlan, ipip, wireguard or bgp backend"
        )
    })
}

pub(super) fn count_neighbours(out: &mut Desired) {
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

/// Routes to the peers' blocks, and the devices that they need.
pub(super) fn to_peers(inputs: Inputs<'_>, mtu: Mtu, out: &mut Desired) {
    devices(inputs, mtu, out);
    if inputs.view.config.backend == Backend::Bgp {
        from_bgp(inputs, mtu, out);
    } else {
        for peer in peer_blocks(inputs, out) {
            match way(inputs, &peer, mtu, out) {
                Ok(spec) => drop(out.routes.insert(key(peer.block, None), spec)),
                Err(problem) => refuse(out, peer.node, problem),
            }
        }
    }
    count_neighbours(out);
}

/// The tunnel devices of the encapsulations in use, with nobody on them yet.
fn devices(inputs: Inputs<'_>, mtu: Mtu, out: &mut Desired) {
    let Inputs { view, facts, .. } = inputs;
    let addresses: BTreeSet<IpAddr> =
        view.tunnel_v4.map(IpAddr::V4).into_iter().chain(view.tunnel_v6.map(IpAddr::V6)).collect();
    let device = |kind, addresses: &BTreeSet<IpAddr>| Device { kind, mtu, addresses: addresses.clone() };
    let vxlan = |local| DeviceKind::Vxlan {
        vni: view.config.vxlan.vni,
        port: view.config.vxlan.port,
        local,
        mac: vtep_mac(inputs.node.as_str(), VXLAN_DEVICE),
        neighbours: BTreeMap::new(),
        fdb: BTreeMap::new(),
    };
    for encapsulation in in_use(view) {
        match encapsulation {
            Encapsulation::None => {}
            Encapsulation::Vxlan | Encapsulation::VxlanCrossSubnet => {
                if let Some(local) = facts.address_v4 {
                    out.devices.insert(VXLAN_DEVICE, device(vxlan(local.into()), &addresses));
                }
                if let Some(local) = facts.address_v6.filter(|_| vxlan6_needed(view, facts)) {
                    out.devices.insert(VXLAN_DEVICE6, device(vxlan(local.into()), &addresses));
                }
            }
            Encapsulation::Ipip | Encapsulation::IpipCrossSubnet => match facts.address_v4 {
                Some(local) => {
                    let v4 = addresses.iter().copied().filter(IpAddr::is_ipv4).collect();
                    out.devices.insert(IPIP_DEVICE, device(DeviceKind::Ipip { local }, &v4));
                }
                None => out.problems.push(format!(
                    "encapsulation {encapsulation} needs an IPv4 underlay address, and this node has none"
                )),
            },
            Encapsulation::Wireguard => match inputs.wireguard {
                Ok(key) => {
                    let port = view.config.wireguard.port;
                    let kind = DeviceKind::Wireguard { port, key: key.clone(), peers: BTreeMap::new() };
                    out.devices.insert(WIREGUARD_DEVICE, device(kind, &addresses));
                }
                Err(problem) => {
                    out.problems.push(format!("WireGuard cannot be used on this node: {problem}"))
                }
            },
        }
    }
}

/// How packets get to a peer's block, with the entries that the tunnel device needs; or why not.
fn way(inputs: Inputs<'_>, peer: &PeerBlock<'_>, mtu: Mtu, out: &mut Desired) -> Result<RouteSpec, String> {
    let Inputs { view, facts, .. } = inputs;
    let plain = |via| RouteSpec { target: Target::Via(via), source: None, mtu: Some(mtu) };
    let encapsulation = of_block(view, &peer.block);
    let across = match encapsulation {
        Encapsulation::None => return direct(facts, peer).map(plain),
        Encapsulation::VxlanCrossSubnet | Encapsulation::IpipCrossSubnet => direct(facts, peer).ok(),
        Encapsulation::Vxlan | Encapsulation::Ipip | Encapsulation::Wireguard => None,
    };
    if let Some(via) = across {
        return Ok(plain(via));
    }
    let via = match encapsulation {
        Encapsulation::Ipip | Encapsulation::IpipCrossSubnet => ipip(facts, peer)?,
        Encapsulation::Wireguard => wireguard(inputs, peer, out)?,
        Encapsulation::None | Encapsulation::Vxlan | Encapsulation::VxlanCrossSubnet => {
            vxlan(facts, peer, out)?
        }
    };
    let source = match peer.block {
        IpNet::V4(_) => view.tunnel_v4.map(IpAddr::V4),
        IpNet::V6(_) => view.tunnel_v6.map(IpAddr::V6),
    };
    Ok(RouteSpec { target: Target::Via(via), source, mtu: Some(mtu) })
}

fn from_bgp(inputs: Inputs<'_>, mtu: Mtu, out: &mut Desired) {
    let Inputs { view, facts, .. } = inputs;
    type Owner<'a> = (&'a NodeName, &'a NodeRecord, &'a BTreeSet<IpNet>);
    let mut owners: BTreeMap<IpAddr, Vec<Owner<'_>>> = BTreeMap::new();
    for (node, seen) in view.nodes.iter().filter(|(node, _)| *node != inputs.node) {
        let Some(record) = &seen.record else { continue };
        let addresses = [record.address_v4.map(IpAddr::V4), record.address_v6.map(IpAddr::V6)];
        for address in addresses.into_iter().flatten() {
            owners.entry(address).or_default().push((node, record, &seen.blocks));
        }
    }
    let mut off_link: BTreeMap<IpAddr, usize> = BTreeMap::new();
    for (destination, next_hops) in &inputs.bgp.routes {
        let own = view.own_blocks.iter().any(|block| {
            block.cidr == *destination
                && matches!(block.state, OwnBlockState::Active | OwnBlockState::Draining)
        });
        if own {
            continue;
        }
        // A route to a node goes as the pool's encapsulation says, any other one plainly.
        // Of nodes that share an address, the one that holds the block.
        let owner = next_hops.iter().filter_map(|next_hop| owners.get(next_hop)).find_map(|nodes| {
            nodes.iter().find(|(.., blocks)| blocks.contains(destination)).or_else(|| nodes.first())
        });
        if let Some((node, record, blocks)) = owner
            && of_block(view, destination) != Encapsulation::None
        {
            let peer = PeerBlock { node, record, blocks, block: *destination };
            match way(inputs, &peer, mtu, out) {
                Ok(spec) => drop(out.routes.insert(key(*destination, None), spec)),
                Err(problem) => refuse(out, node, problem),
            }
            continue;
        }
        // One path per destination: the first next hop that is on a link.
        match next_hops.iter().find_map(|next_hop| on_link(facts, *next_hop)) {
            Some(via) => {
                let spec = RouteSpec { target: Target::Via(via), source: None, mtu: Some(mtu) };
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
        match owners.get(&next_hop) {
            Some(nodes) => nodes.iter().for_each(|(node, ..)| refuse(out, node, text.clone())),
            None => out
                .problems
                .push(format!("BGP next hop {next_hop} ({routes} routes) is not on a link of this node")),
        }
    }
}

fn vxlan(facts: &LocalFacts, peer: &PeerBlock<'_>, out: &mut Desired) -> Result<Via, String> {
    let record = peer.record;
    let (name, remote): (_, IpAddr) = match common_underlay(facts, record)? {
        Underlay::V4(remote) => (VXLAN_DEVICE, remote.into()),
        Underlay::V6(remote) => (VXLAN_DEVICE6, remote.into()),
    };
    let peer_mac = record.vtep_mac.unwrap_or_else(|| vtep_mac(peer.node.as_str(), VXLAN_DEVICE));
    let gateway = tunnel_gateway(peer)?;
    let missing = || format!("this node has no device {name}");
    let device = out.devices.get_mut(name).ok_or_else(missing)?;
    let DeviceKind::Vxlan { fdb, neighbours, .. } = &mut device.kind else { return Err(missing()) };
    insert(fdb, peer_mac, remote).map_err(|other| taken(peer_mac, other))?;
    insert(neighbours, gateway, peer_mac).map_err(|other| taken(gateway, other))?;
    Ok(Via { interface: Interface::Device(name), gateway })
}

fn ipip(facts: &LocalFacts, peer: &PeerBlock<'_>) -> Result<Via, String> {
    let block = peer.block;
    if block.addr().is_ipv6() {
        return Err(format!(
            "its block {block} is IPv6, which IPIP does not carry: give its pool the encapsulation none, vxlan \
             or wireguard"
        ));
    }
    facts.address_v4.ok_or("IPIP needs an IPv4 underlay address, and this node has none")?;
    let gateway = peer.record.address_v4.ok_or("it has no IPv4 underlay address, which IPIP needs")?;
    Ok(Via { interface: Interface::Device(IPIP_DEVICE), gateway: gateway.into() })
}

fn wireguard(inputs: Inputs<'_>, peer: &PeerBlock<'_>, out: &mut Desired) -> Result<Via, String> {
    let Inputs { view, facts, .. } = inputs;
    let record = peer.record;
    let public = record
        .wireguard_key
        .ok_or("it has published no WireGuard key: its kernel has no WireGuard, or its routed is older")?;
    let own = view.nodes.get(inputs.node).and_then(|own| own.record.as_ref()?.wireguard_key);
    if own == Some(public) {
        return Err(same_key("this node"));
    }
    let address: IpAddr = match common_underlay(facts, record)? {
        Underlay::V4(remote) => remote.into(),
        Underlay::V6(remote) => remote.into(),
    };
    let endpoint = SocketAddr::new(address, view.config.wireguard.port);
    let gateway = tunnel_gateway(peer)?;
    let missing = || format!("this node has no device {WIREGUARD_DEVICE}");
    let device = out.devices.get_mut(WIREGUARD_DEVICE).ok_or_else(missing)?;
    let DeviceKind::Wireguard { peers, .. } = &mut device.kind else { return Err(missing()) };
    let there = peers.entry(public).or_insert_with(|| WireguardPeer {
        endpoint: Some(endpoint),
        keepalive_seconds: view.config.wireguard.keepalive_seconds,
        // What the node itself sends, wherever its first block leads.
        allowed: [record.tunnel_v4.map(IpAddr::V4), record.tunnel_v6.map(IpAddr::V6)]
            .into_iter()
            .flatten()
            .filter(|tunnel| peer.blocks.iter().any(|block| block.contains(tunnel)))
            .map(IpNet::from)
            .collect(),
    });
    if let Some(other) = there.endpoint.filter(|other| *other != endpoint) {
        return Err(same_key(&format!("the node at {}", other.ip())));
    }
    there.allowed.insert(peer.block);
    Ok(Via { interface: Interface::Device(WIREGUARD_DEVICE), gateway })
}

fn same_key(whose: &str) -> String {
    format!(
        "its WireGuard key is also that of {whose}, such as a copied machine's: remove {WIREGUARD_KEY_FILE} on one \
         of them and restart routed there"
    )
}

/// The gateway that stands for a peer on a tunnel device.
fn tunnel_gateway(peer: &PeerBlock<'_>) -> Result<IpAddr, String> {
    let record = peer.record;
    match peer.block {
        IpNet::V4(_) => Ok(record.tunnel_v4.ok_or("it has published no IPv4 tunnel address")?.into()),
        IpNet::V6(_) => {
            let derived = || vtep_mac(peer.node.as_str(), VXLAN_DEVICE);
            Ok(link_local(record.vtep_mac.unwrap_or_else(derived)).into())
        }
    }
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
