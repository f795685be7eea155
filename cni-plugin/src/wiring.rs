//! What a wired pod looks like: names, addresses, neighbours, routes and sysctls of both ends of its veth.
//!
//! ADD makes this, CHECK compares with it, so both cannot drift apart. Nothing here talks to the kernel.
//!
//! ```text
//!   node                                          │ pod
//!   pw<hash>  02:70:77:00:00:01                   │ eth0  02:<hash>
//!   fe80::1/64, proxy_arp, group 112, alias       │ 10.0.0.5/32  fd00::5/128
//!   10.0.0.5 dev pw<hash>   (protocol 113)        │ default via 169.254.1.1 onlink
//!   fd00::5  dev pw<hash>   (protocol 113)        │ default via fe80::1
//!   neighbour 10.0.0.5, fd00::5 → the pod's MAC   │ neighbour 169.254.1.1, fe80::1 → 02:70:77:00:00:01
//! ```
//!
//! No bridge, no ARP, no duplicate address detection: the first packet passes at once.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::BorrowedFd;

use ipnet::IpNet;
use podway_ipam::Attachment;
use podway_kern::rtnl::{Address, Ipv4Setting, LinkChange, LinkRef, Neighbour, Request, Route, VethEnd};
use podway_kern::sysctl::{Family, Sysctl};
use podway_model::ids::{IfName, MacAddr, Mtu};
use podway_model::names::{
    GATEWAY_V4, GATEWAY_V6, HOST_MAC, POD_GROUP, POD_ROUTE_PROTOCOL, host_ifalias, host_ifname, pod_mac,
};

/// Protocol of routes inside the pod: RTPROT_BOOT, what `ip route` uses and programs in pods expect.
const PROTOCOL_IN_POD: u8 = 3;
/// IPv4 settings of the node's end. It answers for the gateway, so that bridges inside of pods can ask for it; it
/// checks sources by the guard, not by reverse path; it neither takes nor gives advice about routes.
const HOST_V4: [(Ipv4Setting, u32); 4] = [
    (Ipv4Setting::ProxyArp, 1),
    (Ipv4Setting::RpFilter, 0),
    (Ipv4Setting::AcceptRedirects, 0),
    (Ipv4Setting::SendRedirects, 0),
];

/// A pod's interface, and the node's end of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wiring {
    /// Name of the node's end.
    pub host_name: String,
    /// Alias of the node's end: says whose it is.
    pub host_alias: String,
    /// Name of the pod's end.
    pub ifname: IfName,
    /// Ethernet address of the pod's end.
    pub pod_mac: MacAddr,
    /// MTU of both ends.
    pub mtu: Mtu,
    /// The pod's addresses, IPv4 first.
    pub addresses: Vec<IpAddr>,
}

impl Wiring {
    /// The wiring of an attachment.
    pub fn new(attachment: &Attachment, mtu: Mtu, addresses: Vec<IpAddr>) -> Self {
        let (id, ifname) = (attachment.container_id.as_str(), attachment.ifname.as_str());
        Self {
            host_name: host_ifname(id, ifname),
            host_alias: host_ifalias(id, ifname),
            ifname: attachment.ifname.clone(),
            pod_mac: pod_mac(id, ifname),
            mtu,
            addresses,
        }
    }

    /// Ethernet address of the node's end: the same for every pod.
    pub fn host_mac(&self) -> MacAddr {
        HOST_MAC
    }

    /// Whether the pod has an IPv6 address.
    pub fn has_v6(&self) -> bool {
        self.addresses.iter().any(IpAddr::is_ipv6)
    }

    /// Makes the pair, both ends down, the pod's end in its namespace under its final name. `indexes`: of
    /// the node's end and of the pod's, where the kernel shall not choose them.
    pub fn create<'ns>(&self, netns: BorrowedFd<'ns>, indexes: Option<(u32, u32)>) -> Request<'ns> {
        let end = |name: &str, mac| VethEnd {
            name: name.to_owned(),
            mac: Some(mac),
            mtu: Some(self.mtu.bytes()),
            ..VethEnd::default()
        };
        let index = indexes.map(|(host, _)| host);
        let host = VethEnd { group: POD_GROUP, index, ..end(&self.host_name, HOST_MAC) };
        let index = indexes.map(|(_, pod)| pod);
        let peer = VethEnd { index, ..end(self.ifname.as_str(), self.pod_mac) };
        Request::AddVeth { host, peer, peer_netns: Some(netns) }
    }

    /// Says whose the node's end is, and prepares it: alias, address generation, IPv4 settings.
    pub fn mark(&self) -> Request<'static> {
        let mark = LinkChange {
            alias: Some(self.host_alias.clone()),
            no_link_local: Some(true),
            ipv4: HOST_V4.to_vec(),
            ..LinkChange::default()
        };
        Request::SetLink(LinkRef::Name(self.host_name.clone()), mark)
    }

    /// Sysctls of the node's end that are set by writing files, before it goes up.
    pub fn host_v6_sysctls(&self) -> Vec<(Sysctl, String)> {
        ["accept_ra", "accept_redirects"]
            .map(|key| (Sysctl::conf(Family::V6, &self.host_name, key), "0".to_owned()))
            .to_vec()
    }

    /// All sysctls of the node's end; those of IPv4 are set when the pair is made.
    pub fn host_sysctls(&self) -> Vec<(Sysctl, String)> {
        let v4 = HOST_V4.map(|(setting, value)| {
            (Sysctl::conf(Family::V4, &self.host_name, setting.sysctl_name()), value.to_string())
        });
        v4.into_iter().chain(self.host_v6_sysctls()).collect()
    }

    /// Sysctls of the pod's end, in its namespace, to be set before it goes up.
    pub fn pod_sysctls(&self) -> Vec<(Sysctl, String)> {
        vec![(Sysctl::conf(Family::V6, self.ifname.as_str(), "accept_dad"), "0".to_owned())]
    }

    /// Addresses of the node's end. Its prefix becomes a route, by which the guard lets link-local sources pass.
    pub fn host_addresses(&self, index: u32) -> Vec<Address> {
        let gateway = IpNet::new(GATEWAY_V6.into(), 64).expect("64 is a prefix length of IPv6");
        let v6 = self.has_v6().then_some(Address { index, address: gateway, no_prefix_route: false });
        v6.into_iter().collect()
    }

    /// Neighbours of the node's end: the pod.
    pub fn host_neighbours(&self, index: u32) -> Vec<Neighbour> {
        self.addresses
            .iter()
            .map(|address| Neighbour { index, address: *address, mac: self.pod_mac })
            .collect()
    }

    /// The node's routes to the pod.
    pub fn host_routes(&self, index: u32) -> Vec<Route> {
        let route = |address: &IpAddr| Route {
            interface: Some(index),
            scope_link: true,
            ..Route::to(IpNet::from(*address), POD_ROUTE_PROTOCOL)
        };
        self.addresses.iter().map(route).collect()
    }

    /// Addresses of the pod's end.
    pub fn pod_addresses(&self, index: u32) -> Vec<Address> {
        self.addresses.iter().map(|address| Address::host(index, *address)).collect()
    }

    /// Neighbours of the pod's end: the gateways.
    pub fn pod_neighbours(&self, index: u32) -> Vec<Neighbour> {
        self.gateways().map(|address| Neighbour { index, address, mac: HOST_MAC }).collect()
    }

    /// The pod's routes. `metric`: of a second interface, whose default routes must not take the first one's
    /// place; `None` is the kernel's default.
    pub fn pod_routes(&self, index: u32, metric: Option<u32>) -> Vec<Route> {
        let route = |gateway: IpAddr| {
            let everywhere = match gateway {
                IpAddr::V4(_) => IpNet::from(IpAddr::from(Ipv4Addr::UNSPECIFIED)),
                IpAddr::V6(_) => IpNet::from(IpAddr::from(Ipv6Addr::UNSPECIFIED)),
            };
            let everywhere = IpNet::new(everywhere.addr(), 0).expect("0 is a prefix length");
            let route = Route::to(everywhere, PROTOCOL_IN_POD);
            let metric = metric.unwrap_or(route.metric);
            let onlink = gateway.is_ipv4();
            Route { interface: Some(index), gateway: Some(gateway), onlink, metric, ..route }
        };
        self.gateways().map(route).collect()
    }

    /// Brings the node's end up with everything that it needs. It has no carrier until the pod's end is up.
    pub fn host_requests(&self, index: u32) -> Vec<Request<'static>> {
        let mut all: Vec<_> = self.host_addresses(index).into_iter().map(Request::ReplaceAddress).collect();
        all.extend(self.host_neighbours(index).into_iter().map(Request::ReplaceNeighbour));
        all.push(up(index));
        all.extend(self.host_routes(index).into_iter().map(Request::ReplaceRoute));
        all
    }

    /// Brings the pod's end up, routes aside, and its loopback device.
    pub fn pod_requests(&self, index: u32) -> Vec<Request<'static>> {
        /// Index of `lo` in every namespace (LOOPBACK_IFINDEX).
        const LOOPBACK: u32 = 1;
        let mut all: Vec<_> = self.pod_addresses(index).into_iter().map(Request::ReplaceAddress).collect();
        all.extend(self.pod_neighbours(index).into_iter().map(Request::ReplaceNeighbour));
        all.extend([up(LOOPBACK), up(index)]);
        all
    }

    fn gateways(&self) -> impl Iterator<Item = IpAddr> + '_ {
        self.addresses.iter().map(|a| if a.is_ipv4() { GATEWAY_V4.into() } else { GATEWAY_V6.into() })
    }
}

fn up(index: u32) -> Request<'static> {
    Request::SetLink(LinkRef::Index(index), LinkChange { up: Some(true), ..LinkChange::default() })
}
