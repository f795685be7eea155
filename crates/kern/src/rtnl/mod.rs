//! NETLINK_ROUTE, blocking: links, addresses, routes, neighbours, forwarding entries, next-hop objects.
//!
//! A change is a [`Request`]. [`Rtnl::batch`] hands many to the kernel in one system call and says how each one
//! ended; the kernel works them off in order, so later ones may name what earlier ones made (by name: an index
//! is known only afterwards, unless the request chooses it).

mod address;
mod link;
mod neighbour;
mod nexthop;
mod request;
mod route;

use ipnet::IpNet;
use netlink_packet_core::{DecodeError, Emitable, Parseable as _};
use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::AddressMessage;
use netlink_packet_route::link::LinkMessage;
use netlink_packet_route::neighbour::{NeighbourAttribute, NeighbourMessage};
use netlink_packet_route::route::RouteMessage;

pub use address::{Address, AddressInfo};
pub use link::{Link, LinkChange, LinkRef, VethEnd, VxlanParams, VxlanSpec};
pub use neighbour::{FdbEntry, Neighbour};
pub use nexthop::{NextHop, NextHopInfo};
pub use request::Request;
pub use route::{Route, RouteFilter, RouteKey, RouteKind, TABLE_LOCAL, TABLE_MAIN, V6_DEFAULT_METRIC};

pub(crate) use address::decode as decode_address;
pub(crate) use link::decode as decode_link_message;
pub(crate) use nexthop::NextHopMessage;
pub(crate) use route::decode as decode_route;

use crate::KernelError;
use crate::netlink::{Connection, Message};

pub(crate) const RTM_NEWLINK: u16 = 16;
pub(crate) const RTM_DELLINK: u16 = 17;
pub(crate) const RTM_GETLINK: u16 = 18;
pub(crate) const RTM_SETLINK: u16 = 19;
pub(crate) const RTM_NEWADDR: u16 = 20;
pub(crate) const RTM_DELADDR: u16 = 21;
pub(crate) const RTM_GETADDR: u16 = 22;
pub(crate) const RTM_NEWROUTE: u16 = 24;
pub(crate) const RTM_DELROUTE: u16 = 25;
pub(crate) const RTM_GETROUTE: u16 = 26;
pub(crate) const RTM_NEWNEIGH: u16 = 28;
pub(crate) const RTM_DELNEIGH: u16 = 29;
pub(crate) const RTM_GETNEIGH: u16 = 30;
pub(crate) const RTM_NEWNEXTHOP: u16 = nexthop::RTM_NEWNEXTHOP;
pub(crate) const RTM_DELNEXTHOP: u16 = nexthop::RTM_DELNEXTHOP;

/// A NETLINK_ROUTE socket. It belongs to the network namespace in which it was opened.
#[derive(Debug)]
pub struct Rtnl {
    connection: Connection,
}

impl Rtnl {
    /// Opens a socket in the calling thread's network namespace.
    pub fn open() -> Result<Self, KernelError> {
        Connection::open(netlink_sys::protocols::NETLINK_ROUTE).map(|connection| Self { connection })
    }

    /// Opens a socket in another network namespace.
    pub fn open_in(netns: &crate::ns::NetNs) -> Result<Self, KernelError> {
        netns.run(Self::open)?
    }

    /// The socket's port id: notifications of what this socket changed carry it.
    pub fn port(&self) -> u32 {
        self.connection.port()
    }

    /// Makes one change.
    ///
    /// # Errors
    /// The kernel's refusal, naming the request.
    pub fn run(&mut self, request: Request<'_>) -> Result<(), KernelError> {
        self.batch(&[request])?.pop().unwrap_or(Ok(()))
    }

    /// Makes many changes, in order and in as few system calls as they fit. One result per request: a refusal
    /// does not keep the later ones from being tried.
    ///
    /// # Errors
    /// The socket itself failed; how the requests ended is not known.
    pub fn batch(&mut self, requests: &[Request<'_>]) -> Result<Vec<Result<(), KernelError>>, KernelError> {
        let messages: Vec<Message> = requests.iter().map(Request::encode).collect();
        let results = self.connection.batch(&messages)?;
        Ok(results
            .into_iter()
            .zip(requests)
            .map(|(result, request)| result.map_err(|refusal| refusal.into_error(request.to_string())))
            .collect())
    }

    /// Makes changes that belong together: the first refusal is returned. Later ones were tried all the same.
    pub fn run_all(&mut self, requests: &[Request<'_>]) -> Result<(), KernelError> {
        self.batch(requests)?.into_iter().collect()
    }

    /// One link; `None` if there is no such link.
    pub fn link(&mut self, link: impl Into<LinkRef>) -> Result<Option<Link>, KernelError> {
        let link = link.into();
        let attempted = format!("look up {link}");
        let message = Message { kind: RTM_GETLINK, flags: 0, payload: emit(&link::query(Some(&link))) };
        match self.connection.query(message, &attempted, decode_link) {
            Ok(mut found) => Ok(found.pop()),
            Err(e) if e.is_missing() => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// All links.
    pub fn links(&mut self) -> Result<Vec<Link>, KernelError> {
        let query = emit(&link::query(None));
        self.connection.dump(RTM_GETLINK, &query, "list links", decode_link)
    }

    /// All links of an interface group.
    pub fn links_in_group(&mut self, group: u32) -> Result<Vec<Link>, KernelError> {
        let mut links = self.links()?;
        links.retain(|link| link.group == group);
        Ok(links)
    }

    /// All addresses, of one interface or of all.
    pub fn addresses(&mut self, interface: Option<u32>) -> Result<Vec<AddressInfo>, KernelError> {
        let mut query = AddressMessage::default();
        query.header.index = interface.unwrap_or(0);
        let query = emit(&query);
        self.connection.dump(RTM_GETADDR, &query, "list addresses", |kind, payload| {
            if kind != RTM_NEWADDR {
                return Ok(None);
            }
            Ok(AddressMessage::parse(payload).map(address::decode).unwrap_or_default())
        })
    }

    /// Routes of both families. Kinds that we never make (multipath without a next-hop object, local, cloned)
    /// are left out.
    pub fn routes(&mut self, filter: RouteFilter) -> Result<Vec<Route>, KernelError> {
        let mut all = Vec::new();
        for v6 in [false, true] {
            let query = emit(&route::query(v6, filter));
            all.extend(self.connection.dump(RTM_GETROUTE, &query, "list routes", |kind, payload| {
                if kind != RTM_NEWROUTE {
                    return Ok(None);
                }
                let route = RouteMessage::parse(payload).ok().and_then(route::decode);
                // The kernel filters; this guards against one that does not.
                Ok(route.filter(|r| {
                    filter.table.is_none_or(|t| r.table == t)
                        && filter.protocol.is_none_or(|p| r.protocol == p)
                }))
            })?);
        }
        Ok(all)
    }

    /// Permanent neighbour entries of both families, of one interface.
    pub fn neighbours(&mut self, interface: u32) -> Result<Vec<Neighbour>, KernelError> {
        let mut all = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut query = neighbour::query(family);
            query.attributes.push(NeighbourAttribute::IfIndex(interface));
            all.extend(self.connection.dump(
                RTM_GETNEIGH,
                &emit(&query),
                "list neighbours",
                |_, payload| Ok(NeighbourMessage::parse(payload).ok().as_ref().and_then(neighbour::decode)),
            )?);
        }
        all.retain(|entry| entry.index == interface);
        Ok(all)
    }

    /// Forwarding entries, of one VXLAN device, that name a remote.
    pub fn fdb(&mut self, interface: u32) -> Result<Vec<FdbEntry>, KernelError> {
        let mut query = neighbour::query(AddressFamily::Bridge);
        query.header.ifindex = interface;
        let mut all =
            self.connection.dump(RTM_GETNEIGH, &emit(&query), "list forwarding entries", |_, payload| {
                Ok(NeighbourMessage::parse(payload).ok().as_ref().and_then(neighbour::decode_fdb))
            })?;
        all.retain(|entry| entry.index == interface);
        Ok(all)
    }

    /// Next-hop objects, whoever made them, sorted by id.
    pub fn next_hops(&mut self) -> Result<Vec<NextHopInfo>, KernelError> {
        let query = emit(&NextHopMessage::default());
        let mut all =
            self.connection.dump(nexthop::RTM_GETNEXTHOP, &query, "list next hops", |_, payload| {
                Ok(NextHopMessage::parse(payload).ok().and_then(|message| message.info()))
            })?;
        all.sort_unstable();
        Ok(all)
    }

    /// The route that the kernel would take to `destination`.
    pub fn route_to(&mut self, destination: std::net::IpAddr) -> Result<Route, KernelError> {
        let mut query = route::query(destination.is_ipv6(), RouteFilter::default());
        let net = IpNet::from(destination);
        query.header.destination_prefix_length = net.prefix_len();
        query.attributes.push(netlink_packet_route::route::RouteAttribute::Destination(destination.into()));
        let attempted = format!("look up the route to {destination}");
        let message = Message { kind: RTM_GETROUTE, flags: 0, payload: emit(&query) };
        let mut found = self.connection.query(message, &attempted, |_, payload| {
            let mut message = RouteMessage::parse(payload).map_err(|e| malformed(&attempted, e))?;
            // A lookup's answer is a clone of the route.
            message.header.flags.remove(netlink_packet_route::route::RouteFlags::Cloned);
            Ok(route::decode(message))
        })?;
        found.pop().ok_or_else(|| KernelError::refused(attempted, nix::errno::Errno::ENETUNREACH))
    }
}

fn malformed(attempted: &str, error: DecodeError) -> KernelError {
    KernelError::malformed(attempted, error)
}

fn decode_link(kind: u16, payload: &[u8]) -> Result<Option<Link>, KernelError> {
    if kind != RTM_NEWLINK {
        return Ok(None);
    }
    LinkMessage::parse(payload)
        .map(|message| Some(link::decode(message)))
        .map_err(|e| KernelError::malformed("read a link", e))
}

pub(crate) fn emit(message: &impl Emitable) -> Vec<u8> {
    let mut payload = vec![0; message.buffer_len()];
    message.emit(&mut payload);
    payload
}
