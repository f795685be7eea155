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

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::BorrowedFd;

use ipnet::IpNet;
use podway_ipam::Attachment;
use podway_kern::rtnl::{
    Address, Ipv4Setting, LinkChange, LinkRef, Neighbour, Request, Route, RouteKind, TABLE_LOCAL, VethEnd,
};
use podway_kern::sysctl::{Family, Sysctl};
use podway_model::ids::{IfName, MacAddr, Mtu};
use podway_model::names::{
    GATEWAY_V4, GATEWAY_V6, HOST_MAC, POD_GROUP, POD_ROUTE_PROTOCOL, host_ifalias, host_ifname, pod_mac,
};

use crate::settings::{PodRoute, Settings, sysctl};

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
    /// Gateways that another address plugin names.
    gateways: Vec<IpAddr>,
    settings: Settings,
}

impl Wiring {
    /// The wiring of an attachment.
    pub fn new(attachment: &Attachment, mtu: Mtu, addresses: Vec<IpAddr>, settings: Settings) -> Self {
        let (id, ifname) = (attachment.container_id.as_str(), attachment.ifname.as_str());
        Self {
            host_name: host_ifname(id, ifname),
            host_alias: host_ifalias(id, ifname),
            ifname: attachment.ifname.clone(),
            pod_mac: settings.mac.unwrap_or_else(|| pod_mac(id, ifname)),
            mtu,
            addresses,
            gateways: Vec::new(),
            settings,
        }
    }

    /// The same, and the node's end answers to these addresses.
    #[must_use]
    pub fn with_gateways(mut self, gateways: &[IpAddr]) -> Self {
        self.gateways = gateways.to_vec();
        self
    }

    /// The gateway that a pod is told of: the one that an address plugin names, else the node as every pod sees it.
    pub fn gateway_of(&self, address: IpAddr) -> IpAddr {
        let named = self.gateways.iter().find(|gateway| gateway.is_ipv4() == address.is_ipv4());
        named.copied().unwrap_or_else(|| gateway_of(address))
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
            queues: self.settings.queues,
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
        let wished = self.settings.sysctls.iter();
        let wished = wished.map(|(name, value)| (sysctl(name, &self.ifname), value.clone()));
        let own = (Sysctl::conf(Family::V6, self.ifname.as_str(), "accept_dad"), "0".to_owned());
        wished.chain([own]).collect()
    }

    /// Addresses of the node's end. Its prefix becomes a route, by which the guard lets link-local sources pass.
    pub fn host_addresses(&self, index: u32) -> Vec<Address> {
        let gateway = IpNet::new(GATEWAY_V6.into(), 64).expect("64 is a prefix length of IPv6");
        let v6 = self.has_v6().then_some(Address { index, address: gateway, no_prefix_route: false });
        v6.into_iter().chain(self.gateways.iter().map(|gateway| Address::host(index, *gateway))).collect()
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

    /// Queues that the configuration asks for.
    pub fn queues(&self) -> Option<u32> {
        self.settings.queues
    }

    /// Destinations that the pod reaches through the interface, of the families that it has.
    pub fn routes(&self) -> Vec<PodRoute> {
        let has = |route: &PodRoute| {
            let v4 = route.destination.addr().is_ipv4();
            self.addresses.iter().any(|address| address.is_ipv4() == v4)
        };
        match &self.settings.routes {
            Some(routes) => routes.iter().copied().filter(has).collect(),
            None => {
                let everywhere: [IpAddr; 2] = [Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()];
                let default = |any| IpNet::new(any, 0).expect("0 is a prefix length");
                everywhere.map(|any| PodRoute::to(default(any))).into_iter().filter(has).collect()
            }
        }
    }

    /// The pod's routes. `metric`: of a second interface, whose routes must not take the first one's place, where the
    /// configuration does not name one; `None` is the kernel's default.
    pub fn pod_routes(&self, index: u32, metric: Option<u32>) -> Vec<Route> {
        let route = |wanted: PodRoute| {
            let route = Route::to(wanted.destination, PROTOCOL_IN_POD);
            let gateway = gateway_of(wanted.destination.addr());
            Route {
                interface: Some(index),
                gateway: Some(gateway),
                onlink: gateway.is_ipv4(),
                metric: wanted.priority.or(metric).unwrap_or(route.metric),
                table: wanted.table.unwrap_or(route.table),
                mtu: wanted.mtu,
                advmss: wanted.advmss,
                ..route
            }
        };
        self.routes().into_iter().map(route).collect()
    }

    /// Makes packets to an address the pod's own. The kernel makes a better one, but not always at once.
    pub fn local_route(&self, address: IpAddr, index: u32) -> Route {
        let to = Route::to(IpNet::from(address), PROTOCOL_IN_POD);
        Route { kind: RouteKind::Local, table: TABLE_LOCAL, interface: Some(index), ..to }
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
        let families: BTreeSet<IpAddr> = self.addresses.iter().map(|address| gateway_of(*address)).collect();
        families.into_iter()
    }
}

/// The node, as a pod sees it in the family of an address.
pub fn gateway_of(address: IpAddr) -> IpAddr {
    if address.is_ipv4() { GATEWAY_V4.into() } else { GATEWAY_V6.into() }
}

fn up(index: u32) -> Request<'static> {
    Request::SetLink(LinkRef::Index(index), LinkChange { up: Some(true), ..LinkChange::default() })
}
