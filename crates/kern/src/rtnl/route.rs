//! Routes.

use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteMetric, RouteProtocol,
    RouteScope, RouteType,
};

/// The main routing table (RT_TABLE_MAIN).
pub const TABLE_MAIN: u32 = 254;
/// The routing table of what is for this machine (RT_TABLE_LOCAL).
pub const TABLE_LOCAL: u32 = 255;
/// Metric that the kernel gives an IPv6 route that asks for none (IP6_RT_PRIO_USER).
pub const V6_DEFAULT_METRIC: u32 = 1024;

/// What a route does with a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum RouteKind {
    /// Sends it on.
    Unicast,
    /// Drops it in silence.
    Blackhole,
    /// Drops it and answers with an ICMP unreachable.
    Unreachable,
    /// Takes it for this machine, where it comes in through the route's interface. The kernel makes one for each
    /// address of its own; those are never read back.
    Local,
}

/// A route.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Route {
    /// Destination, host bits zero.
    pub destination: IpNet,
    /// Routing table.
    pub table: u32,
    /// Metric. IPv6 has no metric 0: it becomes [`V6_DEFAULT_METRIC`], here as in the kernel.
    pub metric: u32,
    /// Who made it (`rtm_protocol`).
    pub protocol: u8,
    /// What it does.
    pub kind: RouteKind,
    /// Scope is link: the destination is reached without a gateway. Always false when read back for IPv6.
    pub scope_link: bool,
    /// Next-hop object. If set, `gateway`, `interface` and `onlink` belong to the object and are empty here.
    pub next_hop: Option<u32>,
    /// Gateway.
    pub gateway: Option<IpAddr>,
    /// Interface index.
    pub interface: Option<u32>,
    /// The gateway is taken to be on the interface's link whatever the addresses say.
    pub onlink: bool,
    /// Preferred source address.
    pub source: Option<IpAddr>,
    /// MTU metric in bytes.
    pub mtu: Option<u32>,
}

impl Route {
    /// A unicast route of the main table with nothing but a destination; set the rest with struct update syntax.
    pub fn to(destination: IpNet, protocol: u8) -> Self {
        Self {
            destination: destination.trunc(),
            table: TABLE_MAIN,
            metric: if destination.addr().is_ipv6() { V6_DEFAULT_METRIC } else { 0 },
            protocol,
            kind: RouteKind::Unicast,
            scope_link: false,
            next_hop: None,
            gateway: None,
            interface: None,
            onlink: false,
            source: None,
            mtu: None,
        }
    }

    /// A blackhole in the main table.
    pub fn blackhole(destination: IpNet, protocol: u8) -> Self {
        Self { kind: RouteKind::Blackhole, ..Self::to(destination, protocol) }
    }

    /// What the kernel tells routes apart by: at most one of ours may have each.
    pub fn key(&self) -> RouteKey {
        RouteKey { table: self.table, destination: self.destination, metric: self.metric }
    }
}

/// What the kernel tells routes apart by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct RouteKey {
    /// Routing table.
    pub table: u32,
    /// Destination.
    pub destination: IpNet,
    /// Metric.
    pub metric: u32,
}

impl std::fmt::Display for Route {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.kind {
            RouteKind::Unicast => {}
            RouteKind::Blackhole => f.write_str("blackhole ")?,
            RouteKind::Unreachable => f.write_str("unreachable ")?,
            RouteKind::Local => f.write_str("local ")?,
        }
        write!(f, "{}", self.destination)?;
        if let Some(id) = self.next_hop {
            write!(f, " nhid {id}")?;
        }
        if let Some(via) = self.gateway {
            write!(f, " via {via}")?;
        }
        if let Some(index) = self.interface {
            write!(f, " dev {index}")?;
        }
        if self.onlink {
            f.write_str(" onlink")?;
        }
        if let Some(source) = self.source {
            write!(f, " src {source}")?;
        }
        if self.metric != 0 {
            write!(f, " metric {}", self.metric)?;
        }
        Ok(())
    }
}

/// A route only names its protocol where the caller deletes by key: other attributes must not narrow the match
/// beyond what is ours.
pub(super) fn encode(route: &Route) -> RouteMessage {
    let mut message = RouteMessage::default();
    let v6 = route.destination.addr().is_ipv6();
    message.header.address_family = if v6 { AddressFamily::Inet6 } else { AddressFamily::Inet };
    message.header.destination_prefix_length = route.destination.prefix_len();
    message.header.table = u8::try_from(route.table).unwrap_or(RouteHeader::RT_TABLE_UNSPEC);
    message.header.protocol = RouteProtocol::from(route.protocol);
    message.header.kind = match route.kind {
        RouteKind::Unicast => RouteType::Unicast,
        RouteKind::Blackhole => RouteType::BlackHole,
        RouteKind::Unreachable => RouteType::Unreachable,
        RouteKind::Local => RouteType::Local,
    };
    message.header.scope = if route.scope_link && !v6 { RouteScope::Link } else { RouteScope::Universe };
    if route.onlink {
        message.header.flags = RouteFlags::Onlink;
    }
    let attributes = &mut message.attributes;
    attributes.push(RouteAttribute::Destination(route.destination.addr().into()));
    attributes.push(RouteAttribute::Table(route.table));
    if route.metric != 0 {
        attributes.push(RouteAttribute::Priority(route.metric));
    }
    attributes.extend(route.next_hop.map(RouteAttribute::NhId));
    attributes.extend(route.gateway.map(|ip| RouteAttribute::Gateway(ip.into())));
    attributes.extend(route.interface.map(RouteAttribute::Oif));
    attributes.extend(route.source.map(|ip| RouteAttribute::PrefSource(ip.into())));
    attributes.extend(route.mtu.map(|mtu| RouteAttribute::Metrics(vec![RouteMetric::Mtu(mtu)])));
    message
}

/// The key and protocol only: what a deletion must match.
pub(super) fn encode_key(route: &Route) -> RouteMessage {
    encode(&Route {
        scope_link: route.scope_link,
        kind: route.kind,
        metric: route.metric,
        table: route.table,
        ..Route::to(route.destination, route.protocol)
    })
}

/// Which routes a dump returns: filtered by the kernel (strict checking).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RouteFilter {
    /// Only this table.
    pub table: Option<u32>,
    /// Only this protocol.
    pub protocol: Option<u8>,
}

pub(super) fn query(v6: bool, filter: RouteFilter) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = if v6 { AddressFamily::Inet6 } else { AddressFamily::Inet };
    message.header.protocol = RouteProtocol::from(filter.protocol.unwrap_or(0));
    message.attributes.extend(filter.table.map(RouteAttribute::Table));
    message
}

/// `None` for what we never make: multipath, multicast, cloned and cache entries, broadcast routes and the kernel's own local ones.
pub(crate) fn decode(message: RouteMessage) -> Option<Route> {
    let header = message.header;
    if header.flags.contains(RouteFlags::Cloned) {
        return None;
    }
    let kind = match header.kind {
        RouteType::Unicast => RouteKind::Unicast,
        RouteType::BlackHole => RouteKind::Blackhole,
        RouteType::Unreachable => RouteKind::Unreachable,
        RouteType::Local if header.protocol != RouteProtocol::Kernel => RouteKind::Local,
        _ => return None,
    };
    let unspecified: IpAddr = match header.address_family {
        AddressFamily::Inet => std::net::Ipv4Addr::UNSPECIFIED.into(),
        AddressFamily::Inet6 => std::net::Ipv6Addr::UNSPECIFIED.into(),
        _ => return None,
    };
    let mut destination = unspecified;
    let mut route = Route {
        table: u32::from(header.table),
        metric: 0,
        kind,
        scope_link: header.scope == RouteScope::Link,
        onlink: header.flags.contains(RouteFlags::Onlink),
        ..Route::to(IpNet::from(unspecified), header.protocol.into())
    };
    for attribute in message.attributes {
        match attribute {
            RouteAttribute::Destination(address) => destination = ip(&address)?,
            RouteAttribute::Table(table) => route.table = table,
            RouteAttribute::Priority(metric) => route.metric = metric,
            RouteAttribute::NhId(id) => route.next_hop = Some(id),
            RouteAttribute::Gateway(address) => route.gateway = ip(&address),
            RouteAttribute::Oif(index) => route.interface = Some(index),
            RouteAttribute::PrefSource(address) => route.source = ip(&address),
            RouteAttribute::Metrics(metrics) => {
                route.mtu = metrics.iter().find_map(|metric| match metric {
                    RouteMetric::Mtu(mtu) => Some(*mtu),
                    _ => None,
                });
            }
            RouteAttribute::MultiPath(_) if route.next_hop.is_none() => return None,
            _ => {}
        }
    }
    route.destination = IpNet::new(destination, header.destination_prefix_length).ok()?;
    // The kernel shows what a next-hop object holds, and hangs IPv6 reject routes on the loopback device.
    if route.next_hop.is_some() || matches!(kind, RouteKind::Blackhole | RouteKind::Unreachable) {
        route.gateway = None;
        route.interface = None;
        route.onlink = false;
        route.scope_link = false;
    }
    Some(route)
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(ip) => Some(IpAddr::V4(*ip)),
        RouteAddress::Inet6(ip) => Some(IpAddr::V6(*ip)),
        _ => None,
    }
}
