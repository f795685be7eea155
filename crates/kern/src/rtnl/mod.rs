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
use netlink_packet_route::route::{RouteAttribute, RouteMessage, RouteType};

pub use address::{Address, AddressInfo};
pub use link::{IpipParams, Ipv4Setting, Link, LinkChange, LinkRef, VethEnd, VxlanParams, VxlanSpec};
pub use neighbour::{FdbEntry, Neighbour};
pub use nexthop::{NextHop, NextHopInfo};
pub use request::Request;
pub use route::{Route, RouteFilter, RouteKey, RouteKind, TABLE_LOCAL, TABLE_MAIN, V6_DEFAULT_METRIC};

pub(crate) use address::decode as decode_address;
pub(crate) use link::decode as decode_link_message;
pub(crate) use nexthop::NextHopMessage;
pub(crate) use route::decode as decode_route;

use crate::netlink::{Connection, Message};
use crate::{Errno, KernelError, MissingIsFine as _};

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

    /// Deletes a link without waiting for the kernel to let go of its memory.
    ///
    /// For everybody but the one who asked, a link is gone when the kernel has taken it off its lists: no name, no
    /// route, no packet, a fraction of a millisecond. The one who asked waits until no processor can hold a pointer
    /// to it any more (`rcu_barrier` in `netdev_run_todo`), 4 to 30 ms, and cannot be interrupted meanwhile. So a
    /// child process asks, and this returns once the link is gone; the child ends by itself.
    ///
    /// It becomes an orphan where the caller ends first. In the machine's own process namespace that is fine: its
    /// process 1 buries orphans. Elsewhere process 1 may be anything, so the caller itself asks and waits. It also
    /// does so where no child can be made, or none did its work.
    ///
    /// # Errors
    /// The kernel's refusal. A link that is not there is fine.
    pub fn delete_link_at_once(&mut self, index: u32) -> Result<(), KernelError> {
        /// Times that the link is looked up; each look waits its turn behind the deletion.
        const LOOKS: usize = 50;
        let request = Request::DeleteLink(LinkRef::Index(index));
        if crate::ns::in_initial_pid_namespace() && self.connection.send_from_child(request.encode()).is_ok()
        {
            for _ in 0..LOOKS {
                if self.link(index)?.is_none() {
                    return Ok(());
                }
                std::thread::yield_now();
            }
        }
        self.run(request).missing_is_fine()
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

    /// Whether the kernel takes packets to `address` for its own: a new IPv6 address is one only when a kernel
    /// worker has been at it (`addrconf_dad_work`), even where nothing is to be detected.
    pub fn is_local(&mut self, address: std::net::IpAddr) -> Result<bool, KernelError> {
        let attempted = format!("look up {address}");
        let found = self.connection.query(lookup(address), &attempted, |_, payload| {
            let message = RouteMessage::parse(payload).map_err(|e| malformed(&attempted, e))?;
            Ok(Some(message.header.kind == RouteType::Local))
        });
        match found {
            Ok(found) => Ok(found.contains(&true)),
            Err(e) if matches!(e.errno(), Some(Errno::ENETUNREACH | Errno::EHOSTUNREACH)) => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// The route that the kernel would take to `destination`.
    pub fn route_to(&mut self, destination: std::net::IpAddr) -> Result<Route, KernelError> {
        let attempted = format!("look up the route to {destination}");
        let mut found = self.connection.query(lookup(destination), &attempted, |_, payload| {
            let mut message = RouteMessage::parse(payload).map_err(|e| malformed(&attempted, e))?;
            // A lookup's answer is a clone of the route.
            message.header.flags.remove(netlink_packet_route::route::RouteFlags::Cloned);
            Ok(route::decode(message))
        })?;
        found.pop().ok_or_else(|| KernelError::refused(attempted, Errno::ENETUNREACH))
    }
}

fn lookup(destination: std::net::IpAddr) -> Message {
    let mut query = route::query(destination.is_ipv6(), RouteFilter::default());
    query.header.destination_prefix_length = IpNet::from(destination).prefix_len();
    query.attributes.push(RouteAttribute::Destination(destination.into()));
    Message { kind: RTM_GETROUTE, flags: 0, payload: emit(&query) }
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
