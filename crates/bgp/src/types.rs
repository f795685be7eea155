//! Small vocabulary of the whole crate: address families and sets of them.

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// An address family with SAFI unicast: what this speaker carries (RFC 4760, IANA "Address Family Numbers").
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Family {
    /// AFI 1, SAFI 1.
    Ipv4,
    /// AFI 2, SAFI 1.
    Ipv6,
}

/// SAFI for unicast forwarding (RFC 4760 section 6).
pub const SAFI_UNICAST: u8 = 1;

impl Family {
    /// Both, in order.
    pub const ALL: [Self; 2] = [Self::Ipv4, Self::Ipv6];

    /// The destination of everything.
    pub fn default_prefix(self) -> IpNet {
        match self {
            Self::Ipv4 => IpNet::V4(ipnet::Ipv4Net::default()),
            Self::Ipv6 => IpNet::V6(ipnet::Ipv6Net::default()),
        }
    }

    /// The AFI on the wire.
    pub fn afi(self) -> u16 {
        match self {
            Self::Ipv4 => 1,
            Self::Ipv6 => 2,
        }
    }

    /// The family that `(afi, safi)` names, if it is one of ours.
    pub fn from_wire(afi: u16, safi: u8) -> Option<Self> {
        match (afi, safi) {
            (1, SAFI_UNICAST) => Some(Self::Ipv4),
            (2, SAFI_UNICAST) => Some(Self::Ipv6),
            _ => None,
        }
    }

    /// The family of a prefix.
    pub fn of(prefix: &IpNet) -> Self {
        match prefix {
            IpNet::V4(_) => Self::Ipv4,
            IpNet::V6(_) => Self::Ipv6,
        }
    }

    /// The family of an address.
    pub fn of_address(address: &IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::Ipv4,
            IpAddr::V6(_) => Self::Ipv6,
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ipv4 => "ipv4-unicast",
            Self::Ipv6 => "ipv6-unicast",
        })
    }
}

/// A set of families.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Families(u8);

impl Families {
    /// None.
    pub const NONE: Self = Self(0);
    /// IPv4 unicast alone.
    pub const IPV4: Self = Self(1);
    /// IPv4 and IPv6 unicast.
    pub const BOTH: Self = Self(3);

    fn bit(family: Family) -> u8 {
        match family {
            Family::Ipv4 => 1,
            Family::Ipv6 => 2,
        }
    }

    /// Whether `family` is in the set.
    pub fn contains(self, family: Family) -> bool {
        self.0 & Self::bit(family) != 0
    }

    /// Adds a family.
    pub fn insert(&mut self, family: Family) {
        self.0 |= Self::bit(family);
    }

    /// Takes a family out.
    pub fn remove(&mut self, family: Family) {
        self.0 &= !Self::bit(family);
    }

    /// What is in both sets.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// Whether nothing is in the set.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The families in the set, in order.
    pub fn iter(self) -> impl Iterator<Item = Family> {
        Family::ALL.into_iter().filter(move |family| self.contains(*family))
    }
}

impl FromIterator<Family> for Families {
    fn from_iter<I: IntoIterator<Item = Family>>(families: I) -> Self {
        let mut set = Self::NONE;
        families.into_iter().for_each(|family| set.insert(family));
        set
    }
}
