//! What changes in the kernel, as an async stream of [`Change`]s.
//!
//! Notifications say what was touched; they are hints to look again, not a log to replay: the kernel drops them
//! when nobody reads fast enough ([`Change::Overrun`]), and deletes some things without any (see `fib`).

use std::io;
use std::net::IpAddr;
use std::os::fd::AsFd as _;

use netlink_packet_core::Parseable as _;
use netlink_packet_route::address::AddressMessage;
use netlink_packet_route::link::LinkMessage;
use netlink_packet_route::neighbour::NeighbourMessage;
use netlink_packet_route::route::RouteMessage;
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{AsyncSocket as _, AsyncSocketExt as _, SocketAddr, TokioSocket};
use nix::sys::socket::{setsockopt, sockopt};

use crate::rtnl::{
    self, Link, NextHopMessage, RTM_DELADDR, RTM_DELLINK, RTM_DELNEIGH, RTM_DELNEXTHOP, RTM_DELROUTE,
    RTM_NEWADDR, RTM_NEWLINK, RTM_NEWNEIGH, RTM_NEWNEXTHOP, RTM_NEWROUTE, Route,
};
use crate::{Errno, KernelError, netlink};

/// Receive buffer in bytes: about 8,000 notifications may wait.
const RECEIVE_BUFFER: usize = 8 << 20;
/// `enum rtnetlink_groups`.
const GROUPS: [u32; 7] = [
    1,  // RTNLGRP_LINK
    3,  // RTNLGRP_NEIGH
    5,  // RTNLGRP_IPV4_IFADDR
    7,  // RTNLGRP_IPV4_ROUTE
    9,  // RTNLGRP_IPV6_IFADDR
    11, // RTNLGRP_IPV6_ROUTE
    32, // RTNLGRP_NEXTHOP
];

/// Whether an object came (or changed) or went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// It is there, new or changed.
    Present,
    /// It is gone.
    Gone,
}

/// One change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// A link. `Present` with `up == false` means that the kernel has dropped the routes through it.
    Link(Event, Box<Link>),
    /// An address of this interface.
    Address(Event, u32, IpAddr),
    /// A route of a kind that we might make.
    Route(Event, Box<Route>),
    /// A neighbour or forwarding entry of this interface.
    Neighbour(Event, u32),
    /// A next-hop object, with its id and its protocol.
    NextHop(Event, u32, u8),
    /// The kernel dropped notifications: look at everything again.
    Overrun,
}

/// A change, and who caused it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notice {
    /// What changed.
    pub change: Change,
    /// Port id of the socket that asked for it ([`rtnl::Rtnl::port`]); 0: the kernel did it by itself.
    pub cause: u32,
}

/// A subscription to changes in one network namespace.
pub struct Monitor {
    socket: TokioSocket,
}

impl Monitor {
    /// Subscribes, in the calling thread's network namespace. Everything that changes from now on is reported,
    /// so subscribe first and look at the state then.
    pub fn open() -> Result<Self, KernelError> {
        let fail = |e: io::Error| KernelError::io("subscribe to kernel changes", e);
        let mut socket = TokioSocket::new(NETLINK_ROUTE).map_err(fail)?;
        let inner = socket.socket_mut();
        inner.bind(&SocketAddr::new(0, 0)).map_err(fail)?;
        for group in GROUPS {
            inner.add_membership(group).map_err(fail)?;
        }
        // Best effort: a smaller buffer means more overruns, and each of those is followed by a full look.
        let _ = setsockopt(&inner.as_fd(), sockopt::RcvBufForce, &RECEIVE_BUFFER);
        Ok(Self { socket })
    }

    /// Waits for changes; returns at least one unless all that came means nothing to us. Cancel safe: a
    /// datagram is taken from the socket and returned in one poll.
    ///
    /// # Errors
    /// The socket is broken; open a new one.
    pub async fn next(&mut self) -> Result<Vec<Notice>, KernelError> {
        let datagram = match self.socket.recv_from_full().await {
            Ok((datagram, _)) => datagram,
            Err(e) if e.raw_os_error() == Some(Errno::ENOBUFS as i32) => {
                return Ok(vec![Notice { change: Change::Overrun, cause: 0 }]);
            }
            Err(e) => return Err(KernelError::io("receive kernel changes", e)),
        };
        notices(&datagram)
    }
}

/// What a datagram of the kernel tells, without what means nothing to us.
///
/// # Errors
/// It is not a row of netlink messages.
pub fn notices(datagram: &[u8]) -> Result<Vec<Notice>, KernelError> {
    let mut notices = Vec::new();
    netlink::split(datagram, |header, payload| {
        let change = decode(header.kind, payload);
        notices.extend(change.map(|change| Notice { change, cause: header.port }));
        Ok(())
    })?;
    Ok(notices)
}

fn decode(kind: u16, payload: &[u8]) -> Option<Change> {
    let event = match kind {
        RTM_NEWLINK | RTM_NEWADDR | RTM_NEWROUTE | RTM_NEWNEIGH | RTM_NEWNEXTHOP => Event::Present,
        RTM_DELLINK | RTM_DELADDR | RTM_DELROUTE | RTM_DELNEIGH | RTM_DELNEXTHOP => Event::Gone,
        _ => return None,
    };
    Some(match kind {
        RTM_NEWLINK | RTM_DELLINK => {
            let message = LinkMessage::parse(payload).ok()?;
            Change::Link(event, Box::new(rtnl::decode_link_message(message)))
        }
        RTM_NEWADDR | RTM_DELADDR => {
            let info = rtnl::decode_address(AddressMessage::parse(payload).ok()?)?;
            Change::Address(event, info.index, info.address.addr())
        }
        RTM_NEWROUTE | RTM_DELROUTE => {
            let message = RouteMessage::parse(payload).ok()?;
            Change::Route(event, Box::new(rtnl::decode_route(message)?))
        }
        RTM_NEWNEIGH | RTM_DELNEIGH => {
            Change::Neighbour(event, NeighbourMessage::parse(payload).ok()?.header.ifindex)
        }
        _ => {
            let message = NextHopMessage::parse(payload).ok()?;
            Change::NextHop(event, message.id?, message.protocol)
        }
    })
}
