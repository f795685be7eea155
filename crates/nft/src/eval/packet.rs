//! What is walked: a packet as it comes to a hook, with what the kernel knows about it.

use std::net::IpAddr;

use crate::expr::{ct_state, ct_status, fib_type};

/// A network device.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Device {
    /// Index.
    pub index: u32,
    /// Name.
    pub name: String,
    /// Interface group.
    pub group: u32,
}

/// What connection tracking says of a packet, once it was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Connection {
    /// It belongs to this connection.
    Tracked(Entry),
    /// It belongs to none that makes sense.
    Invalid,
    /// It is not tracked.
    Untracked,
}

/// A connection, as one of its packets sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// State of this packet in it: one of [`ct_state`].
    pub state: u32,
    /// Bits of [`ct_status`].
    pub status: u32,
    /// Mark.
    pub mark: u32,
}

impl Connection {
    /// The first packet of a connection.
    pub const NEW: Self = Self::Tracked(Entry { state: ct_state::NEW, status: 0, mark: 0 });
    /// A later packet of a connection that has seen no answer yet.
    pub const UNREPLIED: Self =
        Self::Tracked(Entry { state: ct_state::NEW, status: ct_status::CONFIRMED, mark: 0 });
    /// A packet of a connection that has seen packets both ways.
    pub const ESTABLISHED: Self = Self::Tracked(Entry {
        state: ct_state::ESTABLISHED,
        status: ct_status::CONFIRMED | ct_status::SEEN_REPLY,
        mark: 0,
    });

    /// Its entry, if there is one.
    pub const fn entry(&self) -> Option<&Entry> {
        match self {
            Self::Tracked(entry) => Some(entry),
            Self::Invalid | Self::Untracked => None,
        }
    }

    /// What `ct state` yields.
    pub(super) const fn state(&self) -> u32 {
        match self {
            Self::Tracked(entry) => entry.state,
            Self::Invalid => ct_state::INVALID,
            Self::Untracked => ct_state::UNTRACKED,
        }
    }
}

/// A packet at a hook. Both addresses are of one family.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packet {
    /// Where it came in; none at the output hook.
    pub input: Option<Device>,
    /// Where it goes out; none before routing and at the input hook.
    pub output: Option<Device>,
    /// Source address.
    pub source: IpAddr,
    /// Destination address.
    pub destination: IpAddr,
    /// Layer 4 protocol number.
    pub protocol: u8,
    /// Beginning of the layer 4 header; empty in later fragments.
    pub transport: Vec<u8>,
    /// Packet mark.
    pub mark: u32,
    /// Priority.
    pub priority: u32,
    /// Its connection.
    pub connection: Connection,
}

impl Packet {
    /// The first packet of a connection, without devices.
    pub fn new(source: IpAddr, destination: IpAddr, protocol: u8, transport: Vec<u8>) -> Self {
        Self {
            input: None,
            output: None,
            source,
            destination,
            protocol,
            transport,
            mark: 0,
            priority: 0,
            connection: Connection::NEW,
        }
    }

    /// Beginning of the header of a protocol with ports.
    pub fn ports(source: u16, destination: u16) -> Vec<u8> {
        [source.to_be_bytes(), destination.to_be_bytes()].concat()
    }

    /// Beginning of an ICMP or ICMPv6 message.
    pub fn icmp(kind: u8, code: u8) -> Vec<u8> {
        vec![kind, code, 0, 0]
    }
}

/// What the rules ask besides the packet.
pub trait Surroundings {
    /// `fib saddr . iif oif exists`: whether the way back to `source` leads through `input`.
    fn comes_back(&self, source: IpAddr, input: &Device) -> bool {
        let _ = (source, input);
        false
    }

    /// `fib saddr type`, `fib daddr type`: one of [`fib_type`].
    fn address_type(&self, address: IpAddr) -> u32 {
        let _ = address;
        fib_type::UNICAST
    }

    /// Whether a `limit` is not reached yet.
    fn is_under_limit(&self) -> bool {
        true
    }
}

/// Surroundings of tables that ask nothing: no way leads back, every address is somebody else's, no limit is
/// reached.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Nowhere;

impl Surroundings for Nowhere {}
