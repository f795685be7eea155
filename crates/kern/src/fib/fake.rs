//! A kernel in memory: keeps state, refuses what the kernel refuses, deletes what the kernel deletes unasked.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;

use super::Kernel;
use crate::rtnl::{
    Address, FdbEntry, IpipParams, Link, LinkChange, LinkRef, Neighbour, NextHop, NextHopInfo, Request,
    Route, RouteKey, RouteKind, TABLE_LOCAL, TABLE_MAIN, VxlanParams, VxlanSpec,
};
use crate::sysctl::Sysctl;
use crate::wireguard::{WireguardChange, WireguardDevice};
use crate::{Errno, KernelError};

/// A kernel in memory. Its tables are open to tests, which play the other programs on the machine.
#[derive(Debug, Clone, Default)]
pub struct FakeKernel {
    /// Links by index.
    pub links: BTreeMap<u32, Link>,
    /// Addresses: interface index, address and prefix length.
    pub addresses: BTreeSet<(u32, IpNet)>,
    /// Permanent neighbour entries.
    pub neighbours: BTreeMap<(u32, IpAddr), Neighbour>,
    /// Forwarding entries, by device and Ethernet address.
    pub fdb: BTreeMap<(u32, podway_model::ids::MacAddr), FdbEntry>,
    /// WireGuard devices by index.
    pub wireguard: BTreeMap<u32, WireguardDevice>,
    /// Next-hop objects by id.
    pub next_hops: BTreeMap<u32, NextHop>,
    /// Routes, whoever made them.
    pub routes: BTreeMap<RouteKey, Route>,
    /// Sysctls. Those not listed do not exist.
    pub sysctls: BTreeMap<Sysctl, String>,
    /// Requests worked off since the start, in words, refused ones too.
    pub log: Vec<String>,
    /// The next so many requests are refused with ENOMEM.
    pub refuse_next: usize,
}

impl FakeKernel {
    /// A machine with `lo` (index 1) and one interface (index 2, up) that has `addresses`.
    pub fn with_uplink(name: &str, mtu: u32, addresses: &[IpNet]) -> Self {
        let mut kernel = Self::default();
        let link = |index, name: &str, mtu, loopback| Link {
            index,
            name: name.to_owned(),
            mtu,
            up: true,
            lower_up: true,
            operational: true,
            loopback,
            ..Link::default()
        };
        kernel.links.insert(1, link(1, "lo", 65536, true));
        kernel.links.insert(2, link(2, name, mtu, false));
        kernel.addresses = addresses.iter().map(|address| (2, *address)).collect();
        kernel
    }

    /// Sets a link up or down, with what the kernel does then.
    pub fn set_up(&mut self, index: u32, up: bool) {
        if let Some(link) = self.links.get_mut(&index) {
            link.up = up;
            link.lower_up = up;
            link.operational = up;
        }
        if !up {
            self.forget_forwarding(index);
            self.addresses.retain(|(i, address)| *i != index || address.addr().is_ipv4());
        }
    }

    /// Deletes a link, with what the kernel does then.
    pub fn delete_link(&mut self, index: u32) {
        self.forget_forwarding(index);
        self.links.remove(&index);
        self.addresses.retain(|(i, _)| *i != index);
        self.fdb.retain(|(i, _), _| *i != index);
        self.wireguard.remove(&index);
    }

    /// Deletes a next-hop object, with what the kernel does then.
    pub fn delete_next_hop(&mut self, id: u32) {
        self.next_hops.remove(&id);
        self.routes.retain(|_, route| route.next_hop != Some(id));
    }

    /// Deletes an address, with what the kernel does then.
    pub fn delete_address(&mut self, index: u32, address: IpNet) {
        self.addresses.remove(&(index, address));
        let gone = address.addr();
        if !self.is_local(gone) {
            self.routes.retain(|_, route| route.source != Some(gone));
        }
        let last = !self.addresses.iter().any(|(i, a)| *i == index && a.addr().is_ipv4());
        if gone.is_ipv4() && last {
            self.routes.retain(|key, r| r.interface != Some(index) || key.destination.addr().is_ipv6());
        }
    }

    fn forget_forwarding(&mut self, index: u32) {
        let dead: Vec<u32> = self.next_hops.values().filter(|n| n.interface == index).map(|n| n.id).collect();
        for id in dead {
            self.delete_next_hop(id);
        }
        self.routes.retain(|_, route| route.interface != Some(index));
        self.neighbours.retain(|(i, _), _| *i != index);
    }

    fn is_local(&self, address: IpAddr) -> bool {
        self.addresses.iter().any(|(_, a)| a.addr() == address)
    }

    fn find(&self, link: &LinkRef) -> Result<u32, Errno> {
        match link {
            LinkRef::Index(index) => self.links.get(index).map(|link| link.index),
            LinkRef::Name(name) => self.links.values().find(|l| l.name == *name).map(|link| link.index),
        }
        .ok_or(Errno::ENODEV)
    }

    fn add_vxlan(&mut self, spec: &VxlanSpec) -> Result<(), Errno> {
        let params = VxlanParams { vni: spec.vni, port: spec.port, local: Some(spec.local), learning: false };
        let clash = |other: &VxlanParams| {
            (other.vni, other.port) == (params.vni, params.port)
                && other.local.map(|l| l.is_ipv6()) == Some(spec.local.is_ipv6())
        };
        if self.links.values().any(|l| l.vxlan.as_ref().is_some_and(clash)) {
            return Err(Errno::EEXIST);
        }
        let link = Link { mac: Some(spec.mac), vxlan: Some(params), ..Link::default() };
        self.add_link(&spec.name, "vxlan", spec.mtu, link).map(drop)
    }

    fn add_link(&mut self, name: &str, kind: &str, mtu: u32, link: Link) -> Result<u32, Errno> {
        if self.links.values().any(|link| link.name == name) {
            return Err(Errno::EEXIST);
        }
        let index = self.links.keys().next_back().map_or(1, |last| last + 1);
        let (name, kind) = (name.to_owned(), Some(kind.to_owned()));
        self.links.insert(index, Link { index, name, kind, mtu, ..link });
        Ok(index)
    }

    fn set_link(&mut self, link: &LinkRef, change: &LinkChange) -> Result<(), Errno> {
        let index = self.find(link)?;
        let link = self.links.get_mut(&index).ok_or(Errno::ENODEV)?;
        link.mtu = change.mtu.unwrap_or(link.mtu);
        link.mac = change.mac.or(link.mac);
        link.group = change.group.unwrap_or(link.group);
        if change.alias.is_some() {
            link.alias.clone_from(&change.alias);
        }
        if let Some(up) = change.up
            && link.up != up
        {
            self.set_up(index, up);
        }
        Ok(())
    }

    /// `fib_check_nh`, `fib6_nh_init`: the device is up and the gateway is on its link, or said to be.
    fn check_gateway(&self, index: u32, gateway: IpAddr, onlink: bool) -> Result<(), Errno> {
        let link = self.links.get(&index).ok_or(Errno::ENODEV)?;
        if !link.up {
            return Err(Errno::ENETDOWN);
        }
        if self.is_local(gateway) {
            return Err(Errno::EINVAL);
        }
        if let IpAddr::V6(v6) = gateway
            && !v6.is_unicast_link_local()
            && self.v6_way(gateway).is_some_and(|way| way != index)
        {
            return Err(Errno::EINVAL);
        }
        let reached = self.addresses.iter().any(|(i, net)| *i == index && net.contains(&gateway));
        if onlink || reached {
            Ok(())
        } else if gateway.is_ipv6() {
            Err(Errno::EHOSTUNREACH)
        } else {
            Err(Errno::ENETUNREACH)
        }
    }

    /// The interface over which an IPv6 address is routed now, the default route left out: an on-link gateway
    /// must not be routed over another one (`ip6_route_check_nh_onlink`).
    fn v6_way(&self, address: IpAddr) -> Option<u32> {
        let route = self
            .routes
            .values()
            .filter(|route| route.destination.prefix_len() > 0 && route.destination.contains(&address))
            .filter(|route| route.kind == RouteKind::Unicast)
            .max_by_key(|route| (route.destination.prefix_len(), std::cmp::Reverse(route.metric)))?;
        match route.next_hop {
            Some(id) => self.next_hops.get(&id).map(|next_hop| next_hop.interface),
            None => route.interface,
        }
    }

    fn check_route(&self, route: &Route) -> Result<(), Errno> {
        let table = if route.kind == RouteKind::Local { TABLE_LOCAL } else { TABLE_MAIN };
        if route.destination.trunc() != route.destination || route.table != table {
            return Err(Errno::EINVAL);
        }
        if route.kind == RouteKind::Local && !route.interface.is_some_and(|i| self.links.contains_key(&i)) {
            return Err(Errno::ENODEV);
        }
        if route.kind == RouteKind::Unicast {
            match (route.next_hop, route.interface, route.gateway) {
                (Some(id), None, None) if self.next_hops.contains_key(&id) => {}
                (None, Some(index), Some(gateway)) => self.check_gateway(index, gateway, route.onlink)?,
                (None, Some(index), None) => match self.links.get(&index) {
                    Some(link) if link.up => {}
                    Some(_) => return Err(Errno::ENETDOWN),
                    None => return Err(Errno::ENODEV),
                },
                _ => return Err(Errno::EINVAL),
            }
        }
        match route.source {
            Some(source) if !self.is_local(source) => Err(Errno::EINVAL),
            _ => Ok(()),
        }
    }

    fn set_next_hop(&mut self, next_hop: &NextHop) -> Result<(), Errno> {
        self.check_gateway(next_hop.interface, next_hop.gateway, next_hop.onlink)?;
        // An IPv4 object cannot become an IPv6 one while routes use it.
        let family_changes = self
            .next_hops
            .get(&next_hop.id)
            .is_some_and(|old| old.gateway.is_ipv6() != next_hop.gateway.is_ipv6());
        if family_changes && self.routes.values().any(|r| r.next_hop == Some(next_hop.id)) {
            return Err(Errno::EINVAL);
        }
        self.next_hops.insert(next_hop.id, *next_hop);
        Ok(())
    }

    fn work(&mut self, request: &Request<'_>) -> Result<(), Errno> {
        match request {
            Request::AddVxlan(spec) => self.add_vxlan(spec),
            Request::AddIpip { name, local, mtu } => {
                let ends = IpipParams { local: Some(*local), remote: None };
                if self.links.values().any(|link| link.ipip == Some(ends)) {
                    return Err(Errno::EEXIST);
                }
                self.add_link(name, "ipip", *mtu, Link { ipip: Some(ends), ..Link::default() }).map(drop)
            }
            Request::AddWireguard { name, mtu } => {
                let index = self.add_link(name, "wireguard", *mtu, Link::default())?;
                self.wireguard.insert(index, WireguardDevice::default());
                Ok(())
            }
            Request::SetLink(link, change) => self.set_link(link, change),
            Request::DeleteLink(link) => {
                let index = self.find(link)?;
                self.delete_link(index);
                Ok(())
            }
            Request::ReplaceAddress(Address { index, address, .. }) => {
                self.find(&LinkRef::Index(*index))?;
                self.addresses.insert((*index, *address));
                Ok(())
            }
            Request::DeleteAddress(Address { index, address, .. }) => {
                if !self.addresses.contains(&(*index, *address)) {
                    return Err(Errno::EADDRNOTAVAIL);
                }
                self.delete_address(*index, *address);
                Ok(())
            }
            Request::AddRoute(route) | Request::ReplaceRoute(route) => {
                if matches!(request, Request::AddRoute(_)) && self.routes.contains_key(&route.key()) {
                    return Err(Errno::EEXIST);
                }
                self.check_route(route)?;
                self.routes.insert(route.key(), route.clone());
                Ok(())
            }
            Request::DeleteRoute(route) => match self.routes.get(&route.key()) {
                Some(found) if (found.protocol, found.kind) == (route.protocol, route.kind) => {
                    self.routes.remove(&route.key());
                    Ok(())
                }
                _ => Err(Errno::ESRCH),
            },
            Request::ReplaceNeighbour(entry) => {
                self.find(&LinkRef::Index(entry.index))?;
                self.neighbours.insert((entry.index, entry.address), *entry);
                Ok(())
            }
            Request::DeleteNeighbour(entry) => {
                self.neighbours.remove(&(entry.index, entry.address)).map(drop).ok_or(Errno::ENOENT)
            }
            Request::ReplaceFdb(entry) => match self.links.get(&entry.index) {
                Some(link) if link.vxlan.is_some() => {
                    self.fdb.insert((entry.index, entry.mac), *entry);
                    Ok(())
                }
                Some(_) => Err(Errno::EOPNOTSUPP),
                None => Err(Errno::ENODEV),
            },
            Request::DeleteFdb(entry) => {
                self.fdb.remove(&(entry.index, entry.mac)).map(drop).ok_or(Errno::ENOENT)
            }
            Request::ReplaceNextHop(next_hop) => self.set_next_hop(next_hop),
            Request::DeleteNextHop(id) => {
                if !self.next_hops.contains_key(id) {
                    return Err(Errno::ENOENT);
                }
                self.delete_next_hop(*id);
                Ok(())
            }
            Request::AddVeth { .. } | Request::AddBridge(_) | Request::AddIfb { .. } => {
                Err(Errno::EOPNOTSUPP)
            }
        }
    }
}

impl Kernel for FakeKernel {
    fn links(&mut self) -> Result<Vec<Link>, KernelError> {
        Ok(self.links.values().cloned().collect())
    }

    fn addresses(&mut self, interface: u32) -> Result<Vec<IpNet>, KernelError> {
        Ok(self.addresses.iter().filter(|(i, _)| *i == interface).map(|(_, a)| *a).collect())
    }

    fn neighbours(&mut self, interface: u32) -> Result<Vec<Neighbour>, KernelError> {
        Ok(self.neighbours.values().filter(|n| n.index == interface).copied().collect())
    }

    fn fdb(&mut self, interface: u32) -> Result<Vec<FdbEntry>, KernelError> {
        Ok(self.fdb.values().filter(|e| e.index == interface).copied().collect())
    }

    fn next_hops(&mut self) -> Result<Vec<NextHopInfo>, KernelError> {
        Ok(self
            .next_hops
            .values()
            .map(|n| NextHopInfo { id: n.id, protocol: n.protocol, next_hop: Some(*n) })
            .collect())
    }

    fn routes(&mut self, protocol: u8) -> Result<Vec<Route>, KernelError> {
        Ok(self
            .routes
            .values()
            .filter(|r| r.table == TABLE_MAIN && r.protocol == protocol)
            .cloned()
            .collect())
    }

    fn apply(&mut self, requests: &[Request<'_>]) -> Result<Vec<Result<(), KernelError>>, KernelError> {
        let mut results = Vec::with_capacity(requests.len());
        for request in requests {
            self.log.push(request.to_string());
            let result = if self.refuse_next > 0 {
                self.refuse_next -= 1;
                Err(Errno::ENOMEM)
            } else {
                self.work(request)
            };
            results.push(result.map_err(|errno| KernelError::refused(request.to_string(), errno)));
        }
        Ok(results)
    }

    fn wireguard(&mut self, interface: u32) -> Result<WireguardDevice, KernelError> {
        let found = self.wireguard.get(&interface).cloned();
        found.ok_or_else(|| KernelError::refused(format!("read wireguard device {interface}"), Errno::ENODEV))
    }

    fn set_wireguard(&mut self, interface: u32, change: &WireguardChange) -> Result<(), KernelError> {
        let attempted = format!("set wireguard device {interface}");
        self.log.push(attempted.clone());
        if self.refuse_next > 0 {
            self.refuse_next -= 1;
            return Err(KernelError::refused(attempted, Errno::ENOMEM));
        }
        match self.wireguard.get_mut(&interface) {
            Some(device) => device.apply(change),
            None => return Err(KernelError::refused(attempted, Errno::ENODEV)),
        }
        Ok(())
    }

    fn read_sysctl(&mut self, sysctl: &Sysctl) -> Result<String, KernelError> {
        self.sysctls
            .get(sysctl)
            .cloned()
            .ok_or_else(|| KernelError::refused(format!("read {sysctl}"), Errno::ENOENT))
    }

    fn write_sysctl(&mut self, sysctl: &Sysctl, value: &str) -> Result<(), KernelError> {
        self.read_sysctl(sysctl)?;
        self.sysctls.insert(sysctl.clone(), value.to_owned());
        Ok(())
    }
}
