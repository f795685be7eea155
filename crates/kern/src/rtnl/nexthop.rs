//! Next-hop objects (`RTM_NEWNEXTHOP` and friends, `include/uapi/linux/nexthop.h`).
//!
//! ```text
//!  struct nhmsg:  0        8        16       24       32
//!                 +--------+--------+--------+--------+
//!                 | family | scope  | proto  |  zero  |
//!                 +--------+--------+--------+--------+
//!                 |        flags (RTNH_F_*)           |
//!                 +-----------------------------------+
//!  attributes:    NHA_ID u32 · NHA_BLACKHOLE flag · NHA_OIF u32 · NHA_GATEWAY address
//! ```

use std::net::IpAddr;

use netlink_packet_core::{DecodeError, DefaultNla, Emitable, NlaBuffer, NlasIterator, parse_ip, parse_u32};

pub(super) const RTM_NEWNEXTHOP: u16 = 104;
pub(super) const RTM_DELNEXTHOP: u16 = 105;
pub(super) const RTM_GETNEXTHOP: u16 = 106;
const HEADER: usize = 8;
const NHA_ID: u16 = 1;
const NHA_GROUP: u16 = 2;
const NHA_BLACKHOLE: u16 = 4;
const NHA_OIF: u16 = 5;
const NHA_GATEWAY: u16 = 6;
const RTNH_F_ONLINK: u32 = 4;

/// A next-hop object with a gateway.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct NextHop {
    /// Its id, chosen by us: [`podway_model::names::NEXT_HOP_ID_MIN`] and above.
    pub id: u32,
    /// Who made it.
    pub protocol: u8,
    /// Interface index.
    pub interface: u32,
    /// Gateway.
    pub gateway: IpAddr,
    /// The gateway is taken to be on the interface's link whatever the addresses say.
    pub onlink: bool,
}

impl std::fmt::Display for NextHop {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "next hop {} via {} dev {}", self.id, self.gateway, self.interface)?;
        if self.onlink { f.write_str(" onlink") } else { Ok(()) }
    }
}

/// A next-hop object as the kernel shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct NextHopInfo {
    /// Its id.
    pub id: u32,
    /// Who made it.
    pub protocol: u8,
    /// What it is; none: a group, a blackhole, a device without gateway: nothing that we make.
    pub next_hop: Option<NextHop>,
}

/// A next-hop object as it is on the wire.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct NextHopMessage {
    pub(crate) family: u8,
    pub(crate) protocol: u8,
    pub(crate) flags: u32,
    pub(crate) id: Option<u32>,
    pub(crate) interface: Option<u32>,
    pub(crate) gateway: Option<IpAddr>,
    /// A blackhole or a group: nothing that we make.
    pub(crate) foreign_kind: bool,
}

impl NextHopMessage {
    pub(crate) fn new(next_hop: &NextHop) -> Self {
        Self {
            family: family(next_hop.gateway),
            protocol: next_hop.protocol,
            flags: if next_hop.onlink { RTNH_F_ONLINK } else { 0 },
            id: Some(next_hop.id),
            interface: Some(next_hop.interface),
            gateway: Some(next_hop.gateway),
            foreign_kind: false,
        }
    }

    pub(crate) fn by_id(id: u32) -> Self {
        Self { id: Some(id), ..Self::default() }
    }

    pub(crate) fn info(&self) -> Option<NextHopInfo> {
        let (id, protocol) = (self.id?, self.protocol);
        let next_hop = match (self.interface, self.gateway) {
            (Some(interface), Some(gateway)) if !self.foreign_kind => {
                let onlink = self.flags & RTNH_F_ONLINK != 0;
                Some(NextHop { id, protocol, interface, gateway, onlink })
            }
            _ => None,
        };
        Some(NextHopInfo { id, protocol, next_hop })
    }

    fn attributes(&self) -> Vec<DefaultNla> {
        let mut all = Vec::with_capacity(3);
        all.extend(self.id.map(|id| DefaultNla::new(NHA_ID, id.to_ne_bytes().to_vec())));
        all.extend(self.interface.map(|index| DefaultNla::new(NHA_OIF, index.to_ne_bytes().to_vec())));
        all.extend(self.gateway.map(|gateway| {
            DefaultNla::new(
                NHA_GATEWAY,
                match gateway {
                    IpAddr::V4(ip) => ip.octets().to_vec(),
                    IpAddr::V6(ip) => ip.octets().to_vec(),
                },
            )
        }));
        all
    }

    pub(crate) fn parse(payload: &[u8]) -> Result<Self, DecodeError> {
        let Some((header, rest)) = payload.split_first_chunk::<HEADER>() else {
            return Err(DecodeError::from("next-hop message shorter than its header"));
        };
        let mut message = Self {
            family: header[0],
            protocol: header[2],
            flags: u32::from_ne_bytes([header[4], header[5], header[6], header[7]]),
            ..Self::default()
        };
        for attribute in NlasIterator::new(rest) {
            let attribute: NlaBuffer<&[u8]> = attribute?;
            match attribute.kind() {
                NHA_ID => message.id = Some(parse_u32(attribute.value())?),
                NHA_OIF => message.interface = Some(parse_u32(attribute.value())?),
                NHA_GATEWAY => message.gateway = Some(parse_ip(attribute.value())?),
                NHA_GROUP | NHA_BLACKHOLE => message.foreign_kind = true,
                _ => {}
            }
        }
        Ok(message)
    }
}

fn family(gateway: IpAddr) -> u8 {
    u8::from(if gateway.is_ipv6() {
        netlink_packet_route::AddressFamily::Inet6
    } else {
        netlink_packet_route::AddressFamily::Inet
    })
}

impl Emitable for NextHopMessage {
    fn buffer_len(&self) -> usize {
        HEADER + self.attributes().as_slice().buffer_len()
    }

    fn emit(&self, buffer: &mut [u8]) {
        buffer[..HEADER].copy_from_slice(&[self.family, 0, self.protocol, 0, 0, 0, 0, 0]);
        buffer[4..HEADER].copy_from_slice(&self.flags.to_ne_bytes());
        self.attributes().as_slice().emit(&mut buffer[HEADER..]);
    }
}
