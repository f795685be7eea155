//! The vocabulary of address leases. Types only.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;
use podway_model::ids::{ContainerId, IfName, NetworkName, ObjectName};

/// What holds a lease: one interface of one container (CNI SPEC 1.1.0, "attachment").
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Attachment {
    /// `CNI_CONTAINERID`.
    pub container_id: ContainerId,
    /// `CNI_IFNAME`.
    pub ifname: IfName,
}

impl Attachment {
    /// The attachment of interface `ifname` of container `container_id`.
    pub fn new(container_id: ContainerId, ifname: IfName) -> Self {
        Self { container_id, ifname }
    }

    /// The name of its files ([`podway_model::names::attachment_id`]).
    pub fn id(&self) -> String {
        podway_model::names::attachment_id(self.container_id.as_str(), self.ifname.as_str())
    }

    /// The attachments that interface aliases name. Those of other interfaces name none.
    pub fn of_aliases<'a>(aliases: impl IntoIterator<Item = &'a str>) -> BTreeSet<Self> {
        aliases.into_iter().filter_map(Self::from_alias).collect()
    }

    /// The attachment that an interface alias names ([`podway_model::names::host_ifalias`]).
    pub fn from_alias(alias: &str) -> Option<Self> {
        let (container_id, ifname) = podway_model::names::parse_ifalias(alias)?;
        Some(Self { container_id: container_id.parse().ok()?, ifname: ifname.parse().ok()? })
    }
}

impl fmt::Display for Attachment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.container_id, self.ifname)
    }
}

/// An address family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// The family of an address.
    pub fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}

/// What an attachment wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// Who asks.
    pub attachment: Attachment,
    /// CNI network in whose name it asks; garbage collection touches only its own network's leases.
    pub network: NetworkName,
    /// Pools to choose from, in order of preference. Empty: every pool of the node file whose assignment is
    /// automatic, in the file's order.
    pub pools: Vec<ObjectName>,
    /// Addresses asked for by value, at most one per family. A family without one is served automatically if
    /// the pools have it.
    pub addresses: Vec<IpAddr>,
    /// Ranges to choose from (first and last address); a family without one is not limited.
    pub ranges: Vec<(IpAddr, IpAddr)>,
    /// Addresses that are given only to those who ask for them by value.
    pub reserved: Vec<IpNet>,
    /// What the lease is for.
    pub kind: LeaseKind,
}

/// What a lease is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LeaseKind {
    /// An interface that we make: without its veth the lease is a leftover.
    Wired,
    /// An address for an interface that somebody else makes: only its owner knows when it ends.
    AddressOnly,
}

impl Request {
    /// A request for whatever the node has: one address per family of its automatic pools.
    pub fn new(attachment: Attachment, network: NetworkName) -> Self {
        Self {
            attachment,
            network,
            pools: Vec::new(),
            addresses: Vec::new(),
            ranges: Vec::new(),
            reserved: Vec::new(),
            kind: LeaseKind::Wired,
        }
    }
}

/// An address and the pool that it came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeasedAddress {
    /// The address.
    pub address: IpAddr,
    /// Its pool at the time of the lease.
    pub pool: ObjectName,
}

/// One attachment's addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// The holder.
    pub attachment: Attachment,
    /// CNI network in whose name it was made.
    pub network: NetworkName,
    /// One or two addresses, one per family, IPv4 first.
    pub addresses: Vec<LeasedAddress>,
    /// When it was made: time since boot, whole milliseconds.
    pub since: Duration,
    /// What it is for.
    pub kind: LeaseKind,
}

impl Lease {
    /// The bare addresses, IPv4 first.
    pub fn ips(&self) -> impl Iterator<Item = IpAddr> + '_ {
        self.addresses.iter().map(|leased| leased.address)
    }
}

/// A lease that was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    /// The lease.
    pub lease: Lease,
    /// Those of its addresses that conntrack may still know from an earlier holder. Their entries must be
    /// deleted before the link goes up, or the new pod receives what was meant for the old one.
    pub dirty: Vec<IpAddr>,
    /// Whether the attachment held this lease already: an earlier ADD of it was cut off, or is repeated.
    pub kept: bool,
}

/// State of an address that is given back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Condition {
    /// No conntrack entry carries it any more.
    Clean,
    /// Conntrack may still know it: the next holder cleans it before its link goes up.
    Dirty,
}
