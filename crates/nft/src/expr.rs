//! What a rule is made of. Each [`Expr`] is one statement of the nft language; the encoder turns it into the
//! register operations that `nft` itself would send, the evaluator walks it as it is.

use std::net::IpAddr;

use crate::name::Name;
use crate::object::Family;
use crate::value::{DataType, Value};

/// Something that a packet, its connection or the routing table can be asked for.
///
/// IPv4 and IPv6 fields read raw header bytes: a rule asks [`Field::NfProto`] before it uses them, and
/// [`Field::L4Proto`] before it uses ICMP types or ports (the text form leaves out what `nft` implies).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Field {
    /// `iif`: index of the input interface.
    Iif,
    /// `iifname`.
    IifName,
    /// `oif`: index of the output interface.
    Oif,
    /// `oifname`.
    OifName,
    /// `iifgroup`.
    IifGroup,
    /// `oifgroup`.
    OifGroup,
    /// `meta nfproto`: [`NFPROTO_IPV4`] or [`NFPROTO_IPV6`].
    NfProto,
    /// `meta l4proto`.
    L4Proto,
    /// `meta priority`.
    Priority,
    /// `meta mark`.
    Mark,
    /// `ip saddr`.
    IpSaddr,
    /// `ip daddr`.
    IpDaddr,
    /// `ip6 saddr`.
    Ip6Saddr,
    /// `ip6 daddr`.
    Ip6Daddr,
    /// `icmp type`.
    IcmpType,
    /// `icmpv6 type`.
    Icmpv6Type,
    /// `th sport`.
    ThSport,
    /// `th dport`.
    ThDport,
    /// `ct state`: bits of [`ct_state`].
    CtState,
    /// `ct status`: bits of [`ct_status`].
    CtStatus,
    /// `ct mark`.
    CtMark,
    /// `fib saddr . iif oif`: 1 where the reverse path of the source leads through the input interface.
    FibSaddrIif,
    /// `fib saddr type`: one of [`fib_type`].
    FibSaddrType,
    /// `fib daddr type`: one of [`fib_type`].
    FibDaddrType,
}

/// `meta nfproto ipv4`.
pub const NFPROTO_IPV4: u8 = 2;
/// `meta nfproto ipv6`.
pub const NFPROTO_IPV6: u8 = 10;

/// Bits of `ct state` (`NF_CT_STATE_*_BIT` in the kernel).
pub mod ct_state {
    /// Belongs to no connection that makes sense.
    pub const INVALID: u32 = 0x01;
    /// Part of a connection that has seen packets both ways.
    pub const ESTABLISHED: u32 = 0x02;
    /// Belongs to another connection: an ICMP error, an expected connection.
    pub const RELATED: u32 = 0x04;
    /// First packet of a connection, or one that saw packets one way only.
    pub const NEW: u32 = 0x08;
    /// Not tracked.
    pub const UNTRACKED: u32 = 0x40;
}

/// Bits of `ct status` (`IPS_*` in `nf_conntrack_common.h`).
pub mod ct_status {
    /// Its connection came from an expectation.
    pub const EXPECTED: u32 = 0x01;
    /// Packets were seen both ways.
    pub const SEEN_REPLY: u32 = 0x02;
    /// Will not be dropped early.
    pub const ASSURED: u32 = 0x04;
    /// The entry is in the table: its first packet has left the machine.
    pub const CONFIRMED: u32 = 0x08;
    /// Source is translated.
    pub const SNAT: u32 = 0x10;
    /// Destination is translated.
    pub const DNAT: u32 = 0x20;
}

/// Results of a fib type lookup (`RTN_*` in `rtnetlink.h`).
pub mod fib_type {
    /// Routed elsewhere.
    pub const UNICAST: u32 = 1;
    /// An address of this machine.
    pub const LOCAL: u32 = 2;
    /// A broadcast address.
    pub const BROADCAST: u32 = 3;
    /// A multicast address.
    pub const MULTICAST: u32 = 5;
    /// Dropped by the routing table.
    pub const BLACKHOLE: u32 = 6;
    /// Refused by the routing table.
    pub const UNREACHABLE: u32 = 7;
}

impl Field {
    /// The source address of packets of an address's family.
    pub const fn saddr(of: IpAddr) -> Self {
        if of.is_ipv4() { Self::IpSaddr } else { Self::Ip6Saddr }
    }

    /// The destination address of packets of an address's family.
    pub const fn daddr(of: IpAddr) -> Self {
        if of.is_ipv4() { Self::IpDaddr } else { Self::Ip6Daddr }
    }

    /// Type of what it yields.
    pub const fn data_type(self) -> DataType {
        match self {
            Self::Iif | Self::Oif => DataType::IfIndex,
            Self::IifName | Self::OifName => DataType::IfName,
            Self::IifGroup | Self::OifGroup => DataType::DevGroup,
            Self::NfProto => DataType::NfProto,
            Self::L4Proto => DataType::InetProto,
            Self::Priority => DataType::ClassId,
            Self::Mark | Self::CtMark => DataType::Mark,
            Self::IpSaddr | Self::IpDaddr => DataType::Ipv4Addr,
            Self::Ip6Saddr | Self::Ip6Daddr => DataType::Ipv6Addr,
            Self::IcmpType => DataType::IcmpType,
            Self::Icmpv6Type => DataType::Icmpv6Type,
            Self::ThSport | Self::ThDport => DataType::InetService,
            Self::CtState => DataType::CtState,
            Self::CtStatus => DataType::CtStatus,
            Self::FibSaddrIif => DataType::Boolean,
            Self::FibSaddrType | Self::FibDaddrType => DataType::FibAddrType,
        }
    }
}

/// Comparison.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum CmpOp {
    /// `==`, unwritten.
    Eq,
    /// `!=`.
    Ne,
}

/// What a `set` statement writes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Target {
    /// `meta priority`.
    Priority,
    /// `meta mark`.
    Mark,
    /// `ct mark`.
    CtMark,
}

impl Target {
    /// The field that reads it back.
    pub const fn field(self) -> Field {
        match self {
            Self::Priority => Field::Priority,
            Self::Mark => Field::Mark,
            Self::CtMark => Field::CtMark,
        }
    }
}

/// Where a `set` statement takes its value from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// A constant.
    Const(u32),
    /// A data map; no element for the key ends the rule, without effect.
    Map {
        /// Fields that make the key.
        key: Vec<Field>,
        /// The map.
        map: Name,
    },
    /// `(FIELD & mask) ^ xor`.
    Bits {
        /// A four-byte field.
        field: Field,
        /// Bits kept.
        mask: u32,
        /// Bits flipped afterwards.
        xor: u32,
    },
}

/// What is done with a packet.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Verdict {
    /// Passes this base chain; later base chains still see it.
    Accept,
    /// Ends here, for good.
    Drop,
    /// Goes on with the next rule.
    Continue,
    /// Goes back to where the chain was jumped from.
    Return,
    /// Goes through another chain and comes back.
    Jump(Name),
    /// Goes to another chain and does not come back.
    Goto(Name),
}

impl Verdict {
    /// The chain where a packet goes on.
    pub fn target(&self) -> Option<&Name> {
        match self {
            Self::Jump(chain) | Self::Goto(chain) => Some(chain),
            Self::Accept | Self::Drop | Self::Continue | Self::Return => None,
        }
    }
}

/// How a `reject` statement answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reject {
    /// ICMP or ICMPv6, port unreachable.
    PortUnreachable,
    /// ICMP or ICMPv6, administratively prohibited.
    AdminProhibited,
    /// TCP reset; the rule must have asked for TCP.
    TcpReset,
}

/// A `log` statement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Log {
    /// Text before each line, at most 127 bytes.
    pub prefix: String,
    /// NFLOG group; none: the kernel log.
    pub group: Option<u16>,
}

/// One statement of a rule. A rule's statements are walked in order until one does not match or decides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expr {
    /// `FIELD [!=] VALUE`.
    Cmp {
        /// What is compared.
        field: Field,
        /// How.
        op: CmpOp,
        /// With what, of the field's type (or a name's beginning, [`Value::ifname_prefix`]).
        value: Value,
    },
    /// `FIELD [!=] FROM-TO`, both ends included; network-order fields only.
    Range {
        /// What is compared.
        field: Field,
        /// [`CmpOp::Ne`]: outside of the range.
        op: CmpOp,
        /// First value inside.
        from: Value,
        /// Last value inside.
        to: Value,
    },
    /// `FIELD & MASK [!=] VALUE`: an address prefix, or flags (`ct state new,related` is `& 0xc != 0`).
    Masked {
        /// What is compared.
        field: Field,
        /// Bits that count, as long as the field.
        mask: Value,
        /// How.
        op: CmpOp,
        /// With what, as long as the field.
        value: Value,
    },
    /// `FIELD . FIELD [!=] @SET`.
    Lookup {
        /// Fields that make the key.
        key: Vec<Field>,
        /// [`CmpOp::Ne`]: not in the set.
        op: CmpOp,
        /// The set (or a map, used as one). Where it has `flags interval` and host-order parts, the transaction
        /// that adds the rule also adds the set ([`crate::Op::AddSet`], no change if it is there): such sets
        /// compare in network order, so the encoder must know the set to turn those parts round.
        set: Name,
    },
    /// `FIELD . FIELD vmap @MAP`; no element: the rule goes on.
    VerdictMap {
        /// Fields that make the key.
        key: Vec<Field>,
        /// A map with verdicts.
        map: Name,
    },
    /// `TARGET set SOURCE`.
    Set {
        /// What is written.
        target: Target,
        /// Where the value comes from.
        source: Source,
    },
    /// `counter`.
    Counter,
    /// `limit rate N/second burst M packets`: matches while under the limit.
    Limit {
        /// Packets in a second.
        per_second: u32,
        /// Packets above that before it stops.
        burst: u32,
    },
    /// `log`.
    Log(Log),
    /// A verdict.
    Verdict(Verdict),
    /// `reject`.
    Reject(Reject),
    /// `masquerade`: nat chains at postrouting only.
    Masquerade {
        /// `fully-random`: the source port is chosen by chance, so that two packets racing for one cannot
        /// collide (`NF_NAT_RANGE_PROTO_RANDOM_FULLY`).
        fully_random: bool,
    },
    /// `dnat FAMILY to FIELD . FIELD map @MAP`: nat chains at prerouting and output only. No element for the key:
    /// the rule ends here, without effect.
    Dnat {
        /// Family of the new destination: [`Family::Ip`] or [`Family::Ip6`]; the rule must have asked for it.
        family: Family,
        /// Fields that make the key.
        key: Vec<Field>,
        /// A map with an address and a port ([`crate::MapData::Pair`]).
        map: Name,
    },
    /// `dnat to ADDRESS:PORT`, as it is written in tables of family ip or ip6: nat chains that are reached from
    /// prerouting and output only. The rule must have asked for a protocol with ports.
    DnatTo(std::net::SocketAddr),
    /// `notrack`: raw chains only.
    Notrack,
}
