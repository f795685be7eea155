//! What the kernel holds of ours: read back, then kept by noting what was changed.
//!
//! The copy is trusted until somebody else changes something ([`super::run`] drops it then), so a pass over an
//! undisturbed kernel reads nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use podway_kern::KernelError;
use podway_kern::fib::Kernel;
use podway_kern::rtnl::{Link, LinkRef, NextHopInfo, Request, Route, RouteKey};
use podway_kern::wireguard::{WireguardChange, WireguardDevice};
use podway_model::ids::MacAddr;
use podway_model::names::{
    IPIP_DEVICE, NEXT_HOP_ID_MAX, NEXT_HOP_ID_MIN, ROUTE_PROTOCOL, VXLAN_DEVICE, WIREGUARD_DEVICE,
};

use super::backends::VXLAN_DEVICE6;

/// Names of the devices that are ours.
pub(crate) const DEVICES: [&str; 4] = [VXLAN_DEVICE, VXLAN_DEVICE6, IPIP_DEVICE, WIREGUARD_DEVICE];

/// Kind of WireGuard devices.
const WIREGUARD_KIND: &str = "wireguard";

/// What the kernel holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Actual {
    /// Our devices, by name.
    pub(crate) devices: BTreeMap<&'static str, ActualDevice>,
    /// Next-hop objects with our protocol number and an id of our range.
    pub(crate) next_hops: BTreeMap<u32, NextHopInfo>,
    /// Ids of our range that somebody else uses.
    pub(crate) foreign_ids: BTreeSet<u32>,
    /// Routes with our protocol number.
    pub(crate) routes: BTreeMap<RouteKey, Route>,
}

/// One of our devices.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ActualDevice {
    /// The link.
    pub(crate) link: Link,
    /// Its addresses, IPv6 link-local ones left out.
    pub(crate) addresses: BTreeSet<IpNet>,
    /// Its neighbour entries.
    pub(crate) neighbours: BTreeMap<IpAddr, MacAddr>,
    /// Its forwarding entries; more than one remote per MAC address is possible, though never of our making.
    pub(crate) fdb: BTreeMap<MacAddr, BTreeSet<IpAddr>>,
    /// Key, port and peers of a WireGuard device.
    pub(crate) wireguard: Option<WireguardDevice>,
}

impl Actual {
    /// Reads everything.
    pub(crate) fn read(kernel: &mut impl Kernel) -> Result<Self, KernelError> {
        let mut actual = Self::default();
        for link in kernel.links()? {
            let Some(name) = DEVICES.into_iter().find(|name| *name == link.name) else { continue };
            let index = link.index;
            let mut device = ActualDevice {
                addresses: kernel.addresses(index)?.into_iter().filter(|a| !is_link_local(a)).collect(),
                neighbours: kernel.neighbours(index)?.into_iter().map(|n| (n.address, n.mac)).collect(),
                fdb: BTreeMap::new(),
                wireguard: None,
                link,
            };
            if device.link.vxlan.is_some() {
                for entry in kernel.fdb(index)? {
                    device.fdb.entry(entry.mac).or_default().insert(entry.remote);
                }
            }
            if device.link.kind.as_deref() == Some(WIREGUARD_KIND) {
                device.wireguard = Some(kernel.wireguard(index)?);
            }
            actual.devices.insert(name, device);
        }
        for next_hop in kernel.next_hops()? {
            if (NEXT_HOP_ID_MIN..=NEXT_HOP_ID_MAX).contains(&next_hop.id) {
                if next_hop.protocol == ROUTE_PROTOCOL {
                    actual.next_hops.insert(next_hop.id, next_hop);
                } else {
                    actual.foreign_ids.insert(next_hop.id);
                }
            }
        }
        actual.routes = kernel.routes(ROUTE_PROTOCOL)?.into_iter().map(|r| (r.key(), r)).collect();
        Ok(actual)
    }

    /// Takes over a change that the kernel has made, with what it deletes along. Says whether this copy is
    /// still whole: where not, read again.
    #[must_use]
    pub(crate) fn note(&mut self, request: &Request<'_>) -> bool {
        match request {
            Request::AddRoute(route) | Request::ReplaceRoute(route) => {
                self.routes.insert(route.key(), route.clone());
            }
            Request::DeleteRoute(route) => {
                self.routes.remove(&route.key());
            }
            Request::ReplaceNextHop(n) => {
                let info = NextHopInfo { id: n.id, protocol: n.protocol, next_hop: Some(*n) };
                self.next_hops.insert(n.id, info);
            }
            Request::DeleteNextHop(id) => {
                self.next_hops.remove(id);
                self.routes.retain(|_, route| route.next_hop != Some(*id));
            }
            Request::ReplaceNeighbour(n) => {
                if let Some(device) = self.device(n.index) {
                    device.neighbours.insert(n.address, n.mac);
                }
            }
            Request::DeleteNeighbour(n) => {
                if let Some(device) = self.device(n.index) {
                    device.neighbours.remove(&n.address);
                }
            }
            Request::ReplaceFdb(entry) => {
                if let Some(device) = self.device(entry.index) {
                    device.fdb.insert(entry.mac, [entry.remote].into());
                }
            }
            Request::DeleteFdb(entry) => {
                if let Some(device) = self.device(entry.index)
                    && let Some(remotes) = device.fdb.get_mut(&entry.mac)
                {
                    remotes.remove(&entry.remote);
                    if remotes.is_empty() {
                        device.fdb.remove(&entry.mac);
                    }
                }
            }
            Request::ReplaceAddress(address) => {
                if let Some(device) = self.device(address.index) {
                    device.addresses.insert(address.address);
                }
            }
            // Links come with an index that the kernel chose, and take much along when they go.
            Request::DeleteAddress(_)
            | Request::AddVxlan(_)
            | Request::AddIpip { .. }
            | Request::AddWireguard { .. }
            | Request::SetLink(LinkRef::Index(_) | LinkRef::Name(_), _)
            | Request::DeleteLink(_)
            | Request::AddVeth { .. }
            | Request::AddBridge(_)
            | Request::AddIfb { .. } => return false,
        }
        true
    }

    /// Takes over a change of a WireGuard device that the kernel has made.
    pub(crate) fn note_wireguard(&mut self, index: u32, change: &WireguardChange) {
        if let Some(wireguard) = self.device(index).and_then(|device| device.wireguard.as_mut()) {
            wireguard.apply(change);
        }
    }

    fn device(&mut self, index: u32) -> Option<&mut ActualDevice> {
        self.devices.values_mut().find(|device| device.link.index == index)
    }
}

fn is_link_local(address: &IpNet) -> bool {
    matches!(address, IpNet::V6(net) if net.addr().is_unicast_link_local())
}
