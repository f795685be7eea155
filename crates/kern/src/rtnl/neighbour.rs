//! Neighbour entries, and forwarding database entries of VXLAN devices.

use std::net::IpAddr;

use netlink_packet_route::AddressFamily;
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use podway_model::ids::MacAddr;

/// A permanent neighbour entry: who answers for `address` on the link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Neighbour {
    /// Interface index.
    pub index: u32,
    /// Address.
    pub address: IpAddr,
    /// Its Ethernet address.
    pub mac: MacAddr,
}

/// A permanent entry of a VXLAN device's forwarding database: behind which underlay address `mac` lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct FdbEntry {
    /// Index of the VXLAN device.
    pub index: u32,
    /// Ethernet address of the remote VTEP.
    pub mac: MacAddr,
    /// Underlay address of the remote VTEP.
    pub remote: IpAddr,
}

pub(super) fn encode(entry: &Neighbour) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = if entry.address.is_ipv6() { AddressFamily::Inet6 } else { AddressFamily::Inet };
    message.header.ifindex = entry.index;
    message.header.state = NeighbourState::Permanent;
    message.attributes.push(NeighbourAttribute::Destination(entry.address.into()));
    message.attributes.push(NeighbourAttribute::LinkLayerAddress(entry.mac.0.to_vec()));
    message
}

pub(super) fn encode_fdb(entry: &FdbEntry) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Bridge;
    message.header.ifindex = entry.index;
    message.header.state = NeighbourState::Permanent;
    message.header.flags = NeighbourFlags::Own;
    message.attributes.push(NeighbourAttribute::LinkLayerAddress(entry.mac.0.to_vec()));
    message.attributes.push(NeighbourAttribute::Destination(entry.remote.into()));
    message
}

pub(super) fn query(family: AddressFamily) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = family;
    message
}

/// Permanent entries only; the kernel's own guesses come and go.
pub(crate) fn decode(message: &NeighbourMessage) -> Option<Neighbour> {
    if message.header.state != NeighbourState::Permanent || message.header.family == AddressFamily::Bridge {
        return None;
    }
    let (address, mac) = parts(message);
    Some(Neighbour { index: message.header.ifindex, address: address?, mac: mac? })
}

/// Entries of tunnel devices that name a remote; the kernel answers with the address family unspecified.
pub(crate) fn decode_fdb(message: &NeighbourMessage) -> Option<FdbEntry> {
    let (remote, mac) = parts(message);
    Some(FdbEntry { index: message.header.ifindex, mac: mac?, remote: remote? })
}

fn parts(message: &NeighbourMessage) -> (Option<IpAddr>, Option<MacAddr>) {
    let mut address = None;
    let mut mac = None;
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(ip)) => address = Some(IpAddr::V4(*ip)),
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(ip)) => address = Some(IpAddr::V6(*ip)),
            // An FDB entry's remote: the message's family is AF_BRIDGE, so only the length tells.
            NeighbourAttribute::Destination(NeighbourAddress::Other(bytes)) => {
                address = <[u8; 4]>::try_from(bytes.as_slice())
                    .map(IpAddr::from)
                    .or_else(|_| <[u8; 16]>::try_from(bytes.as_slice()).map(IpAddr::from))
                    .ok();
            }
            NeighbourAttribute::LinkLayerAddress(bytes) => {
                mac = <[u8; 6]>::try_from(bytes.as_slice()).ok().map(MacAddr);
            }
            _ => {}
        }
    }
    (address, mac)
}
