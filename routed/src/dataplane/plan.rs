//! What to change: the difference between desired and actual, in the order in which the kernel takes it. Pure.
//!
//! Making: device, WireGuard peer, address, neighbour, forwarding entry, next hop, route. Removing, the reverse. Removals are
//! planned apart, from what the kernel holds *after* the making: a next hop goes only when no route uses it any
//! more, a device only when nothing leads over it. So a route that could not be re-pointed keeps its next hop,
//! and a change of backend takes the old device away last.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use podway_kern::rtnl::{
    Address, FdbEntry, IpipParams, LinkChange, LinkRef, Neighbour, NextHop, Request, Route, RouteKey,
    RouteKind, VxlanParams, VxlanSpec,
};
use podway_kern::wireguard::{PeerChange, WireguardChange, WireguardDevice};
use podway_model::names::{NEXT_HOP_ID_MAX, NEXT_HOP_ID_MIN, ROUTE_PROTOCOL};

use super::actual::{Actual, ActualDevice};
use super::desired::{Desired, Device, DeviceKind, Interface, RouteSpec, Target, Via};

/// Requests that bring the kernel closer to `desired`: empty when nothing is missing. A device that is not there
/// yet has no index, so what depends on it follows in the next round.
pub(crate) fn additions(desired: &Desired, actual: &Actual) -> Vec<Request<'static>> {
    let mut out = Vec::new();
    for (name, device) in &desired.devices {
        match actual.devices.get(name) {
            Some(there) if fits(there, device) => {
                adjust_link(there, device, &mut out);
                fill_device(there, device, &mut out);
            }
            Some(_) => {
                out.push(Request::DeleteLink(LinkRef::Name((*name).to_owned())));
                add_device(name, device, &mut out);
            }
            None => add_device(name, device, &mut out),
        }
    }
    let ids = next_hop_ids(desired, actual, &mut out);
    for (key, spec) in &desired.routes {
        let Some(route) = route(key, spec, &ids) else { continue };
        match actual.routes.get(key) {
            None => out.push(Request::AddRoute(route)),
            Some(there) if *there != route => out.push(Request::ReplaceRoute(route)),
            Some(_) => {}
        }
    }
    out
}

/// Requests that remove what is ours and not wanted. Empty unless `desired.prune`.
pub(crate) fn removals(desired: &Desired, actual: &Actual) -> Vec<Request<'static>> {
    let mut out = Vec::new();
    if !desired.prune {
        return out;
    }
    let (kept, gone): (Vec<&Route>, Vec<&Route>) =
        actual.routes.values().partition(|route| desired.routes.contains_key(&route.key()));
    out.extend(gone.into_iter().map(|route| Request::DeleteRoute(route.clone())));

    let in_use: BTreeSet<u32> = kept.iter().filter_map(|route| route.next_hop).collect();
    let mut busy_links: BTreeSet<u32> = kept.iter().filter_map(|route| route.interface).collect();
    for (id, info) in &actual.next_hops {
        if in_use.contains(id) {
            busy_links.extend(info.next_hop.map(|n| n.interface));
        } else {
            out.push(Request::DeleteNextHop(*id));
        }
    }
    for (name, there) in &actual.devices {
        match desired.devices.get(name) {
            Some(device) => empty_device(there, device, &mut out),
            None if busy_links.contains(&there.link.index) => {}
            None => out.push(Request::DeleteLink(LinkRef::Index(there.link.index))),
        }
    }
    out
}

/// What WireGuard devices lack: key, port, peers and their prefixes. It comes before the routes that lead there.
pub(crate) fn wireguard_additions(desired: &Desired, actual: &Actual) -> Vec<(u32, WireguardChange)> {
    let change = |there: &WireguardDevice, device: &Device| {
        let DeviceKind::Wireguard { port, key, peers } = &device.kind else { return None };
        let peers = peers.iter().filter_map(|(public, wanted)| {
            let exactly = match there.peers.get(public) {
                Some(found) if found == wanted => return None,
                Some(found) => !found.allowed.is_subset(&wanted.allowed),
                None => true,
            };
            Some((*public, PeerChange::Set { peer: wanted.clone(), exactly }))
        });
        Some(WireguardChange {
            private_key: (there.private_key.as_ref() != Some(key)).then(|| key.clone()),
            port: (there.port != *port).then_some(*port),
            peers: peers.collect(),
        })
    };
    wireguard(desired, actual, change)
}

/// Peers of WireGuard devices that are not wanted. Empty unless `desired.prune`.
pub(crate) fn wireguard_removals(desired: &Desired, actual: &Actual) -> Vec<(u32, WireguardChange)> {
    let change = |there: &WireguardDevice, device: &Device| {
        let DeviceKind::Wireguard { peers, .. } = &device.kind else { return None };
        let gone = there.peers.keys().filter(|public| !peers.contains_key(public));
        let peers = gone.map(|public| (*public, PeerChange::Remove)).collect();
        Some(WireguardChange { peers, ..WireguardChange::default() })
    };
    if desired.prune { wireguard(desired, actual, change) } else { Vec::new() }
}

fn wireguard(
    desired: &Desired,
    actual: &Actual,
    change: impl Fn(&WireguardDevice, &Device) -> Option<WireguardChange>,
) -> Vec<(u32, WireguardChange)> {
    let present = desired.devices.iter().filter_map(|(name, device)| {
        let there = actual.devices.get(name)?;
        let change = change(there.wireguard.as_ref()?, device)?;
        (!change.is_empty()).then_some((there.link.index, change))
    });
    present.collect()
}

/// Whether the device's unchangeable parameters are the wanted ones.
fn fits(there: &ActualDevice, device: &Device) -> bool {
    match &device.kind {
        DeviceKind::Vxlan { vni, port, local, .. } => {
            let wanted = VxlanParams { vni: vni.number(), port: *port, local: Some(*local), learning: false };
            there.link.vxlan == Some(wanted)
        }
        DeviceKind::Ipip { local } => {
            let wanted = IpipParams { local: Some(*local), remote: None };
            there.link.kind.as_deref() == Some("ipip") && there.link.ipip == Some(wanted)
        }
        DeviceKind::Wireguard { .. } => there.wireguard.is_some(),
    }
}

fn add_device(name: &str, device: &Device, out: &mut Vec<Request<'static>>) {
    let link = LinkRef::Name(name.to_owned());
    let (name, mtu) = (name.to_owned(), device.mtu.bytes());
    out.push(match &device.kind {
        DeviceKind::Vxlan { vni, port, local, mac, .. } => Request::AddVxlan(VxlanSpec {
            name,
            vni: vni.number(),
            port: *port,
            local: *local,
            mac: *mac,
            mtu,
        }),
        DeviceKind::Ipip { local } => Request::AddIpip { name, local: *local, mtu },
        DeviceKind::Wireguard { .. } => Request::AddWireguard { name, mtu },
    });
    let quiet = LinkChange { no_link_local: Some(true), ..LinkChange::default() };
    out.push(Request::SetLink(link.clone(), quiet));
    out.push(Request::SetLink(link, LinkChange { up: Some(true), ..LinkChange::default() }));
}

fn adjust_link(there: &ActualDevice, device: &Device, out: &mut Vec<Request<'static>>) {
    let link = &there.link;
    let mac = match &device.kind {
        DeviceKind::Vxlan { mac, .. } => Some(*mac),
        DeviceKind::Ipip { .. } | DeviceKind::Wireguard { .. } => None,
    };
    let change = LinkChange {
        up: (!link.up).then_some(true),
        mtu: (link.mtu != device.mtu.bytes()).then_some(device.mtu.bytes()),
        mac: mac.filter(|mac| link.mac != Some(*mac)),
        ..LinkChange::default()
    };
    if change != LinkChange::default() {
        out.push(Request::SetLink(LinkRef::Index(link.index), change));
    }
}

fn fill_device(there: &ActualDevice, device: &Device, out: &mut Vec<Request<'static>>) {
    let index = there.link.index;
    for address in &device.addresses {
        if !there.addresses.contains(&IpNet::from(*address)) {
            out.push(Request::ReplaceAddress(Address::host(index, *address)));
        }
    }
    let DeviceKind::Vxlan { neighbours, fdb, .. } = &device.kind else { return };
    for (address, mac) in neighbours {
        if there.neighbours.get(address) != Some(mac) {
            out.push(Request::ReplaceNeighbour(Neighbour { index, address: *address, mac: *mac }));
        }
    }
    for (mac, remote) in fdb {
        if !there.fdb.get(mac).is_some_and(|remotes| remotes.len() == 1 && remotes.contains(remote)) {
            out.push(Request::ReplaceFdb(FdbEntry { index, mac: *mac, remote: *remote }));
        }
    }
}

fn empty_device(there: &ActualDevice, device: &Device, out: &mut Vec<Request<'static>>) {
    let index = there.link.index;
    if let DeviceKind::Vxlan { neighbours, fdb, .. } = &device.kind {
        for (mac, remotes) in &there.fdb {
            for remote in remotes.iter().filter(|remote| fdb.get(mac) != Some(remote)) {
                out.push(Request::DeleteFdb(FdbEntry { index, mac: *mac, remote: *remote }));
            }
        }
        for (address, mac) in &there.neighbours {
            if !neighbours.contains_key(address) {
                out.push(Request::DeleteNeighbour(Neighbour { index, address: *address, mac: *mac }));
            }
        }
    }
    for address in &there.addresses {
        if !device.addresses.iter().any(|wanted| IpNet::from(*wanted) == *address) {
            out.push(Request::DeleteAddress(Address { index, address: *address, no_prefix_route: false }));
        }
    }
}

/// The id of every next hop that the desired routes use. An object that says the same is kept under its id, so
/// a restart changes nothing; a new one gets the lowest id that is free.
fn next_hop_ids(desired: &Desired, actual: &Actual, out: &mut Vec<Request<'static>>) -> BTreeMap<Via, u32> {
    let wanted: BTreeSet<Via> = desired
        .routes
        .values()
        .filter_map(|spec| match spec.target {
            Target::Via(via) => Some(via),
            Target::Blackhole | Target::Unreachable => None,
        })
        .collect();
    let there: BTreeMap<(u32, std::net::IpAddr, bool), u32> = actual
        .next_hops
        .values()
        .filter_map(|info| info.next_hop)
        .map(|n| ((n.interface, n.gateway, n.onlink), n.id))
        .collect();
    let mut free = (NEXT_HOP_ID_MIN..=NEXT_HOP_ID_MAX)
        .filter(|id| !actual.next_hops.contains_key(id) && !actual.foreign_ids.contains(id));
    let mut ids = BTreeMap::new();
    for via in wanted {
        let (interface, onlink) = match via.interface {
            Interface::Underlay(index) => (index, false),
            Interface::Device(name) => match actual.devices.get(name) {
                Some(device) => (device.link.index, true),
                None => continue,
            },
        };
        if let Some(id) = there.get(&(interface, via.gateway, onlink)) {
            ids.insert(via, *id);
        } else if let Some(id) = free.next() {
            let next_hop = NextHop { id, protocol: ROUTE_PROTOCOL, interface, gateway: via.gateway, onlink };
            out.push(Request::ReplaceNextHop(next_hop));
            ids.insert(via, id);
        }
    }
    ids
}

/// `None` while the route's device is not there.
fn route(key: &RouteKey, spec: &RouteSpec, ids: &BTreeMap<Via, u32>) -> Option<Route> {
    let (kind, next_hop) = match spec.target {
        Target::Via(via) => (RouteKind::Unicast, Some(*ids.get(&via)?)),
        Target::Blackhole => (RouteKind::Blackhole, None),
        Target::Unreachable => (RouteKind::Unreachable, None),
    };
    Some(Route {
        table: key.table,
        metric: key.metric,
        kind,
        next_hop,
        source: spec.source,
        mtu: spec.mtu.map(|mtu| mtu.bytes()),
        ..Route::to(key.destination, ROUTE_PROTOCOL)
    })
}
