//! One change, typed; what it looks like on the wire and in words.

use std::fmt;
use std::net::Ipv4Addr;
use std::os::fd::BorrowedFd;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};

use super::{
    Address, FdbEntry, LinkChange, LinkRef, Neighbour, NextHop, NextHopMessage, RTM_DELADDR, RTM_DELLINK,
    RTM_DELNEIGH, RTM_DELNEXTHOP, RTM_DELROUTE, RTM_NEWADDR, RTM_NEWLINK, RTM_NEWNEIGH, RTM_NEWNEXTHOP,
    RTM_NEWROUTE, RTM_SETLINK, Route, VethEnd, VxlanSpec, address, emit, link, neighbour, route,
};
use crate::netlink::Message;

/// One change. `Add` fails where the object exists, `Replace` makes or changes it.
#[derive(Debug, Clone)]
pub enum Request<'ns> {
    /// A veth pair; the peer is born in `peer_netns` under its final name.
    AddVeth {
        /// The end in the socket's own namespace.
        host: VethEnd,
        /// The other end.
        peer: VethEnd,
        /// Namespace of the other end; none: the socket's own.
        peer_netns: Option<BorrowedFd<'ns>>,
    },
    /// A VXLAN device, down.
    AddVxlan(VxlanSpec),
    /// An IPIP device without a remote end, down.
    AddIpip {
        /// Name.
        name: String,
        /// Underlay address of this end.
        local: Ipv4Addr,
        /// MTU in bytes.
        mtu: u32,
    },
    /// A WireGuard device, down, without key and peers: see [`crate::wireguard`].
    AddWireguard {
        /// Name.
        name: String,
        /// MTU in bytes.
        mtu: u32,
    },
    /// A bridge, down.
    AddBridge(String),
    /// An intermediate functional block, down: a device whose queueing discipline sees what others receive.
    AddIfb {
        /// Name.
        name: String,
        /// MTU in bytes.
        mtu: u32,
    },
    /// Changes a link.
    SetLink(LinkRef, LinkChange),
    /// Deletes a link; of a veth pair both ends.
    DeleteLink(LinkRef),
    /// An address.
    ReplaceAddress(Address),
    /// Deletes an address.
    DeleteAddress(Address),
    /// A route, made or changed. IPv4: changes the first route with this destination and metric, whoever made
    /// it; see [`Request::AddRoute`].
    ReplaceRoute(Route),
    /// A route that must not exist yet.
    AddRoute(Route),
    /// Deletes the route with this destination, table, metric, kind and protocol: never somebody else's.
    DeleteRoute(Route),
    /// A permanent neighbour entry.
    ReplaceNeighbour(Neighbour),
    /// Deletes a neighbour entry.
    DeleteNeighbour(Neighbour),
    /// A forwarding entry of a VXLAN device.
    ReplaceFdb(FdbEntry),
    /// Deletes a forwarding entry.
    DeleteFdb(FdbEntry),
    /// A next-hop object, made or changed in place: routes that use it follow at once.
    ReplaceNextHop(NextHop),
    /// Deletes a next-hop object. The kernel deletes the routes that use it, IPv4 ones without a word.
    DeleteNextHop(u32),
}

impl Request<'_> {
    pub(super) fn encode(&self) -> Message {
        const ADD: u16 = NLM_F_CREATE | NLM_F_EXCL;
        const REPLACE: u16 = NLM_F_CREATE | NLM_F_REPLACE;
        let (kind, flags, payload) = match self {
            Self::AddVeth { host, peer, peer_netns } => {
                (RTM_NEWLINK, ADD, emit(&link::veth(host, peer, *peer_netns)))
            }
            Self::AddVxlan(spec) => (RTM_NEWLINK, ADD, emit(&link::vxlan(spec))),
            Self::AddIpip { name, local, mtu } => (RTM_NEWLINK, ADD, emit(&link::ipip(name, *local, *mtu))),
            Self::AddWireguard { name, mtu } => (RTM_NEWLINK, ADD, emit(&link::wireguard(name, *mtu))),
            Self::AddBridge(name) => (RTM_NEWLINK, ADD, emit(&link::bridge(name))),
            Self::AddIfb { name, mtu } => (RTM_NEWLINK, ADD, emit(&link::ifb(name, *mtu))),
            Self::SetLink(link, change) => (RTM_SETLINK, 0, emit(&link::change(link, change))),
            Self::DeleteLink(link) => (RTM_DELLINK, 0, emit(&link::by_ref(link))),
            Self::ReplaceAddress(address) => (RTM_NEWADDR, REPLACE, emit(&address::encode(address))),
            Self::DeleteAddress(address) => (RTM_DELADDR, 0, emit(&address::encode(address))),
            Self::ReplaceRoute(route) => (RTM_NEWROUTE, REPLACE, emit(&route::encode(route))),
            Self::AddRoute(route) => (RTM_NEWROUTE, ADD, emit(&route::encode(route))),
            Self::DeleteRoute(route) => (RTM_DELROUTE, 0, emit(&route::encode_key(route))),
            Self::ReplaceNeighbour(entry) => (RTM_NEWNEIGH, REPLACE, emit(&neighbour::encode(entry))),
            Self::DeleteNeighbour(entry) => (RTM_DELNEIGH, 0, emit(&neighbour::encode(entry))),
            Self::ReplaceFdb(entry) => (RTM_NEWNEIGH, REPLACE, emit(&neighbour::encode_fdb(entry))),
            Self::DeleteFdb(entry) => (RTM_DELNEIGH, 0, emit(&neighbour::encode_fdb(entry))),
            Self::ReplaceNextHop(next_hop) => (RTM_NEWNEXTHOP, REPLACE, emit(&NextHopMessage::new(next_hop))),
            Self::DeleteNextHop(id) => (RTM_DELNEXTHOP, 0, emit(&NextHopMessage::by_id(*id))),
        };
        Message { kind, flags, payload }
    }
}

impl fmt::Display for Request<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AddVeth { host, peer, .. } => write!(f, "add veth {} with peer {}", host.name, peer.name),
            Self::AddVxlan(spec) => {
                write!(f, "add vxlan {} id {} local {} port {}", spec.name, spec.vni, spec.local, spec.port)
            }
            Self::AddIpip { name, local, .. } => write!(f, "add ipip {name} local {local}"),
            Self::AddWireguard { name, .. } => write!(f, "add wireguard {name}"),
            Self::AddBridge(name) => write!(f, "add bridge {name}"),
            Self::AddIfb { name, .. } => write!(f, "add ifb {name}"),
            Self::SetLink(link, _) => write!(f, "change {link}"),
            Self::DeleteLink(link) => write!(f, "delete {link}"),
            Self::ReplaceAddress(a) => write!(f, "set address {} dev {}", a.address, a.index),
            Self::DeleteAddress(a) => write!(f, "delete address {} dev {}", a.address, a.index),
            Self::ReplaceRoute(route) => write!(f, "set route {route}"),
            Self::AddRoute(route) => write!(f, "add route {route}"),
            Self::DeleteRoute(route) => write!(f, "delete route {route}"),
            Self::ReplaceNeighbour(n) => {
                write!(f, "set neighbour {} lladdr {} dev {}", n.address, n.mac, n.index)
            }
            Self::DeleteNeighbour(n) => write!(f, "delete neighbour {} dev {}", n.address, n.index),
            Self::ReplaceFdb(e) => write!(f, "set fdb {} dst {} dev {}", e.mac, e.remote, e.index),
            Self::DeleteFdb(e) => write!(f, "delete fdb {} dst {} dev {}", e.mac, e.remote, e.index),
            Self::ReplaceNextHop(next_hop) => write!(f, "set {next_hop}"),
            Self::DeleteNextHop(id) => write!(f, "delete next hop {id}"),
        }
    }
}
