//! Types of fields and set keys, and values in the byte form that the kernel compares.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Size of an interface name in a register, with its closing zero byte (`IFNAMSIZ`).
pub(crate) const IFNAMSIZ: usize = 16;

/// Type of a field, of a set key's part, or of map data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DataType {
    /// IPv4 address.
    Ipv4Addr,
    /// IPv6 address.
    Ipv6Addr,
    /// Layer 4 protocol number.
    InetProto,
    /// Port.
    InetService,
    /// Packet or connection mark, host byte order.
    Mark,
    /// Interface name.
    IfName,
    /// Interface index, host byte order.
    IfIndex,
    /// Traffic class, the type of `meta priority`; host byte order, printed `major:minor` in hexadecimal.
    ClassId,
    /// Interface group, host byte order.
    DevGroup,
    /// Layer 3 protocol as netfilter counts them.
    NfProto,
    /// ICMP message type.
    IcmpType,
    /// ICMPv6 message type.
    Icmpv6Type,
    /// Bits of a connection's state, host byte order.
    CtState,
    /// Bits of a connection's status, host byte order.
    CtStatus,
    /// What kind of address a routing table says it is, host byte order.
    FibAddrType,
    /// Present or missing.
    Boolean,
}

impl DataType {
    /// Size of a value in bytes, without padding.
    pub const fn size(self) -> usize {
        match self {
            Self::Ipv6Addr | Self::IfName => 16,
            Self::Ipv4Addr
            | Self::Mark
            | Self::IfIndex
            | Self::ClassId
            | Self::DevGroup
            | Self::CtState
            | Self::CtStatus
            | Self::FibAddrType => 4,
            Self::InetService => 2,
            Self::InetProto | Self::NfProto | Self::IcmpType | Self::Icmpv6Type | Self::Boolean => 1,
        }
    }

    /// Size of a value as a part of a concatenation: registers are four bytes wide.
    pub const fn padded(self) -> usize {
        self.size().next_multiple_of(4)
    }

    /// Whether the bytes are in the order of the machine. Such values have no order as byte strings, so they
    /// cannot be the key of an interval set, except as an exact part of a concatenation.
    pub const fn is_host_order(self) -> bool {
        matches!(
            self,
            Self::Mark
                | Self::IfIndex
                | Self::ClassId
                | Self::DevGroup
                | Self::CtState
                | Self::CtStatus
                | Self::FibAddrType
        )
    }
}

/// A value in the kernel's bytes: one field, or a concatenation with each part padded to four bytes.
///
/// Made with `From` for single fields. Numbers: `u8` is one byte (protocols, ICMP types), `u16` is a **port** in
/// network order, `u32` is in **host order** (marks, classes, groups, state bits).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Value(Box<[u8]>);

impl Value {
    /// Raw bytes, already in the kernel's order.
    pub fn from_bytes(bytes: impl Into<Box<[u8]>>) -> Self {
        Self(bytes.into())
    }

    /// An interface name, padded with zero bytes; what is longer than 15 bytes can be no interface and is cut.
    pub fn ifname(name: &str) -> Self {
        let mut bytes = vec![0; IFNAMSIZ];
        let len = name.len().min(IFNAMSIZ - 1);
        bytes[..len].copy_from_slice(&name.as_bytes()[..len]);
        Self(bytes.into())
    }

    /// The beginning of an interface name, `pw*`: for [`crate::Expr::Cmp`] only.
    pub fn ifname_prefix(prefix: &str) -> Self {
        let len = prefix.len().min(IFNAMSIZ - 1);
        Self(prefix.as_bytes()[..len].into())
    }

    /// Several values as one key, each padded to four bytes.
    pub fn concat(parts: impl IntoIterator<Item = Value>) -> Self {
        let mut bytes = Vec::with_capacity(48);
        for part in parts {
            bytes.extend_from_slice(&part.0);
            bytes.resize(bytes.len().next_multiple_of(4), 0);
        }
        Self(bytes.into())
    }

    /// The bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The value as a number in host order, if it is four bytes long.
    pub fn to_u32(&self) -> Option<u32> {
        Some(u32::from_ne_bytes((*self.0).try_into().ok()?))
    }
}

impl From<u8> for Value {
    fn from(number: u8) -> Self {
        Self([number].into())
    }
}

impl From<u16> for Value {
    fn from(port: u16) -> Self {
        Self(port.to_be_bytes().into())
    }
}

impl From<u32> for Value {
    fn from(number: u32) -> Self {
        Self(number.to_ne_bytes().into())
    }
}

impl From<Ipv4Addr> for Value {
    fn from(address: Ipv4Addr) -> Self {
        Self(address.octets().into())
    }
}

impl From<Ipv6Addr> for Value {
    fn from(address: Ipv6Addr) -> Self {
        Self(address.octets().into())
    }
}

impl From<IpAddr> for Value {
    fn from(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(v4) => v4.into(),
            IpAddr::V6(v6) => v6.into(),
        }
    }
}
