//! Interface addresses.

use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::{
    AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage, AddressScope,
};

/// An address of an interface. Made without duplicate address detection (IPv6: `nodad`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Address {
    /// Interface index.
    pub index: u32,
    /// Address and prefix length of its link.
    pub address: IpNet,
    /// Whether the kernel leaves out the route to the prefix (`noprefixroute`).
    pub no_prefix_route: bool,
}

impl Address {
    /// A single address (/32, /128) without a route to a prefix.
    pub fn host(index: u32, address: IpAddr) -> Self {
        Self { index, address: IpNet::from(address), no_prefix_route: false }
    }
}

pub(super) fn encode(address: &Address) -> AddressMessage {
    let ip = address.address.addr();
    let mut message = AddressMessage::default();
    message.header.index = address.index;
    message.header.prefix_len = address.address.prefix_len();
    let mut flags = AddressFlags::empty();
    flags.set(AddressFlags::Noprefixroute, address.no_prefix_route);
    message.attributes.push(AddressAttribute::Local(ip));
    message.attributes.push(AddressAttribute::Address(ip));
    match ip {
        IpAddr::V4(ip) => {
            message.header.family = AddressFamily::Inet;
            message.header.scope =
                if ip.is_link_local() { AddressScope::Link } else { AddressScope::Universe };
        }
        IpAddr::V6(_) => {
            message.header.family = AddressFamily::Inet6;
            message.header.flags = AddressHeaderFlags::Nodad;
            flags.insert(AddressFlags::Nodad);
        }
    }
    message.attributes.push(AddressAttribute::Flags(flags));
    message
}

/// An address as the kernel shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AddressInfo {
    /// Interface index.
    pub index: u32,
    /// Address and prefix length of its link.
    pub address: IpNet,
    /// Whether it has global scope.
    pub global: bool,
    /// Whether duplicate address detection has not ended, or has failed.
    pub tentative: bool,
    /// Whether it is deprecated, or another address of the same prefix stands before it.
    pub secondary: bool,
}

pub(crate) fn decode(message: AddressMessage) -> Option<AddressInfo> {
    let mut local = None;
    let mut remote = None;
    let mut flags = AddressFlags::from_bits_retain(u32::from(message.header.flags.bits()));
    for attribute in message.attributes {
        match attribute {
            AddressAttribute::Local(ip) => local = Some(ip),
            AddressAttribute::Address(ip) => remote = Some(ip),
            AddressAttribute::Flags(all) => flags = all,
            _ => {}
        }
    }
    Some(AddressInfo {
        index: message.header.index,
        address: IpNet::new(local.or(remote)?, message.header.prefix_len).ok()?,
        global: message.header.scope == AddressScope::Universe,
        tentative: flags.intersects(AddressFlags::Tentative | AddressFlags::Dadfailed),
        secondary: flags.intersects(AddressFlags::Secondary | AddressFlags::Deprecated),
    })
}
