//! Path attributes (RFC 4271 4.3 and section 5): the values, and how they are written.
//!
//! ```text
//! | flags (1): O T P E . . . . | type (1) | length (1, or 2 with E) | value ...
//! ```
//!
//! Read by [`super::walk`], which also judges them (RFC 7606).

use std::net::{IpAddr, Ipv4Addr};

use bytes::{BufMut, Bytes, BytesMut};
use podway_model::ids::Asn;
use serde::{Deserialize, Serialize};

pub use super::as_path::{AsPath, Segment, SegmentKind};
use super::open::AS_TRANS;

/// Attribute flags.
pub mod flag {
    /// Optional, as opposed to well-known.
    pub const OPTIONAL: u8 = 0x80;
    /// Transitive.
    pub const TRANSITIVE: u8 = 0x40;
    /// Partial: somebody on the way did not know it.
    pub const PARTIAL: u8 = 0x20;
    /// The length takes two octets.
    pub const EXTENDED: u8 = 0x10;
}

/// Attribute types (IANA "BGP Path Attributes").
pub mod kind {
    /// ORIGIN.
    pub const ORIGIN: u8 = 1;
    /// AS_PATH.
    pub const AS_PATH: u8 = 2;
    /// NEXT_HOP.
    pub const NEXT_HOP: u8 = 3;
    /// MULTI_EXIT_DISC.
    pub const MED: u8 = 4;
    /// LOCAL_PREF.
    pub const LOCAL_PREF: u8 = 5;
    /// ATOMIC_AGGREGATE.
    pub const ATOMIC_AGGREGATE: u8 = 6;
    /// AGGREGATOR.
    pub const AGGREGATOR: u8 = 7;
    /// COMMUNITIES (RFC 1997).
    pub const COMMUNITIES: u8 = 8;
    /// ORIGINATOR_ID (RFC 4456).
    pub const ORIGINATOR_ID: u8 = 9;
    /// CLUSTER_LIST (RFC 4456).
    pub const CLUSTER_LIST: u8 = 10;
    /// MP_REACH_NLRI (RFC 4760).
    pub const MP_REACH: u8 = 14;
    /// MP_UNREACH_NLRI (RFC 4760).
    pub const MP_UNREACH: u8 = 15;
    /// EXTENDED COMMUNITIES (RFC 4360).
    pub const EXTENDED_COMMUNITIES: u8 = 16;
    /// AS4_PATH (RFC 6793).
    pub const AS4_PATH: u8 = 17;
    /// AS4_AGGREGATOR (RFC 6793).
    pub const AS4_AGGREGATOR: u8 = 18;
    /// IPv6 Address Specific Extended Communities (RFC 5701).
    pub const IPV6_EXTENDED_COMMUNITIES: u8 = 25;
    /// LARGE_COMMUNITY (RFC 8092).
    pub const LARGE_COMMUNITIES: u8 = 32;
    /// Only to Customer (RFC 9234).
    pub const OTC: u8 = 35;
}

/// NO_EXPORT (RFC 1997): not to leave the AS.
pub const NO_EXPORT: u32 = 0xffff_ff01;
/// NO_ADVERTISE (RFC 1997): not to be told to anybody.
pub const NO_ADVERTISE: u32 = 0xffff_ff02;
/// NO_EXPORT_SUBCONFED (RFC 1997): not to any external peer; without confederations the same as NO_EXPORT.
pub const NO_EXPORT_SUBCONFED: u32 = 0xffff_ff03;

/// GRACEFUL_SHUTDOWN (RFC 8326): the sender is about to go, prefer anything else.
pub const GRACEFUL_SHUTDOWN: u32 = 0xffff_0000;
/// The large community with which a node of the cluster tells its routes to one that it needs no session with any more:
/// of its own AS, function `pw`, 1.
pub(crate) fn released(asn: Asn) -> [u8; 12] {
    let mut member = [0; 12];
    member[..4].copy_from_slice(&asn.number().to_be_bytes());
    member[4..].copy_from_slice(&[0, 0, b'p', b'w', 0, 0, 0, 1]);
    member
}

/// LLGR_STALE (RFC 9494): kept over a long restart, prefer anything else.
pub const LLGR_STALE: u32 = 0xffff_0006;
/// NO_LLGR (RFC 9494): not to be kept over a long restart.
pub const NO_LLGR: u32 = 0xffff_0007;

/// ORIGIN. The order is that of preference.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[repr(u8)]
pub enum Origin {
    /// From within the AS.
    Igp = 0,
    /// From the EGP protocol.
    Egp = 1,
    /// From elsewhere.
    Incomplete = 2,
}

/// AGGREGATOR.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Aggregator {
    /// AS that aggregated.
    pub asn: u32,
    /// Its router.
    pub router_id: Ipv4Addr,
    /// Whether the Partial bit is set.
    pub partial: bool,
}

/// An attribute that passes through as it is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Opaque {
    /// Type.
    pub kind: u8,
    /// Optional, Transitive and Partial bits.
    pub flags: u8,
    /// Value.
    pub value: Bytes,
}

/// The attributes of a route, in one form whatever the session's options are: AS numbers have four octets, the
/// next hop is an address whether it came in NEXT_HOP or in MP_REACH_NLRI.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PathAttributes {
    /// NEXT_HOP, or the global address of MP_REACH_NLRI.
    pub next_hop: IpAddr,
    /// ORIGIN.
    pub origin: Origin,
    /// AS_PATH.
    pub as_path: AsPath,
    /// MULTI_EXIT_DISC.
    pub med: Option<u32>,
    /// LOCAL_PREF.
    pub local_pref: Option<u32>,
    /// ATOMIC_AGGREGATE.
    pub atomic_aggregate: bool,
    /// AGGREGATOR.
    pub aggregator: Option<Aggregator>,
    /// ORIGINATOR_ID.
    pub originator_id: Option<Ipv4Addr>,
    /// CLUSTER_LIST, the latest cluster first.
    pub cluster_list: Vec<Ipv4Addr>,
    /// Communities of all kinds, and what we do not know, in the order of their types.
    pub others: Vec<Opaque>,
}

impl PathAttributes {
    /// Those of a route of our own.
    pub fn originated(next_hop: IpAddr) -> Self {
        Self {
            next_hop,
            origin: Origin::Igp,
            as_path: AsPath::default(),
            med: None,
            local_pref: None,
            atomic_aggregate: false,
            aggregator: None,
            originator_id: None,
            cluster_list: vec![],
            others: vec![],
        }
    }

    /// Communities (`64512:7`) and large ones (`64512:0:9`) as text, in their order.
    pub fn communities(&self) -> Vec<String> {
        let standard = self
            .members::<4>(kind::COMMUNITIES)
            .map(|[a, b, c, d]| format!("{}:{}", u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d])));
        let large = self.members::<12>(kind::LARGE_COMMUNITIES).map(|all| {
            let part = |at: usize| u32::from_be_bytes([all[at], all[at + 1], all[at + 2], all[at + 3]]);
            format!("{}:{}:{}", part(0), part(4), part(8))
        });
        standard.chain(large).collect()
    }

    /// Whether a standard community (RFC 1997) is attached.
    pub fn has_community(&self, community: u32) -> bool {
        let wanted = community.to_be_bytes();
        self.others
            .iter()
            .filter(|other| other.kind == kind::COMMUNITIES)
            .any(|other| other.value.chunks_exact(4).any(|chunk| chunk == wanted))
    }

    /// The value of an attribute that is kept as it came.
    pub fn other(&self, kind: u8) -> Option<&Opaque> {
        self.others.iter().find(|other| other.kind == kind)
    }

    /// Puts an attribute in, in its place by type; an empty value takes it out.
    pub fn set_other(&mut self, kind: u8, value: Bytes) {
        let at = self.others.partition_point(|other| other.kind < kind);
        let there = self.others.get(at).is_some_and(|other| other.kind == kind);
        match (there, value.is_empty()) {
            (true, true) => drop(self.others.remove(at)),
            // RFC 4271 section 5: who changes a value may clear the Partial bit only if it made the attribute.
            (true, false) => self.others[at].value = value,
            (false, true) => {}
            (false, false) => {
                let flags = flag::OPTIONAL | flag::TRANSITIVE;
                self.others.insert(at, Opaque { kind, flags, value });
            }
        }
    }

    /// The members of a list of communities, each `N` octets.
    pub fn members<const N: usize>(&self, kind: u8) -> impl Iterator<Item = [u8; N]> + '_ {
        let value = self.other(kind).map_or(&[][..], |other| &other.value[..]);
        value.chunks_exact(N).filter_map(|chunk| chunk.try_into().ok())
    }

    /// Adds a member to a list of communities, if it is not there: sorted by value (RFC 8092 section 5 asks for a
    /// canonical form, the others do not mind).
    pub fn add_member<const N: usize>(&mut self, kind: u8, member: [u8; N]) {
        let mut all: Vec<[u8; N]> = self.members(kind).collect();
        if !all.contains(&member) {
            let at = all.partition_point(|other| *other < member);
            all.insert(at, member);
            self.set_other(kind, Bytes::from(all.concat()));
        }
    }

    /// Takes members out of a list of communities.
    pub fn remove_members<const N: usize>(&mut self, kind: u8, gone: impl Fn(&[u8; N]) -> bool) {
        if self.members::<N>(kind).any(|member| gone(&member)) {
            let kept: Vec<[u8; N]> = self.members(kind).filter(|member| !gone(member)).collect();
            self.set_other(kind, Bytes::from(kept.concat()));
        }
    }

    /// Only to Customer (RFC 9234): the AS that said so.
    pub fn only_to_customer(&self) -> Option<u32> {
        self.members(kind::OTC).next().map(u32::from_be_bytes)
    }

    /// Writes all attributes, in the order of their types (RFC 4271 section 5), save MP_REACH_NLRI and, unless
    /// `with_next_hop`, NEXT_HOP.
    pub(super) fn write(&self, out: &mut BytesMut, four_octet: bool, with_next_hop: bool) {
        write_one(out, flag::TRANSITIVE, kind::ORIGIN, |out| out.put_u8(self.origin as u8));
        write_one(out, flag::TRANSITIVE, kind::AS_PATH, |out| self.as_path.write(out, four_octet));
        if let (true, IpAddr::V4(next_hop)) = (with_next_hop, self.next_hop) {
            write_one(out, flag::TRANSITIVE, kind::NEXT_HOP, |out| out.put_slice(&next_hop.octets()));
        }
        if let Some(med) = self.med {
            write_one(out, flag::OPTIONAL, kind::MED, |out| out.put_u32(med));
        }
        if let Some(local_pref) = self.local_pref {
            write_one(out, flag::TRANSITIVE, kind::LOCAL_PREF, |out| out.put_u32(local_pref));
        }
        if self.atomic_aggregate {
            write_one(out, flag::TRANSITIVE, kind::ATOMIC_AGGREGATE, |_| {});
        }
        self.write_aggregator(out, four_octet);
        let (communities, later) =
            self.others.split_at(self.others.partition_point(|other| other.kind <= kind::COMMUNITIES));
        let (before_as4, later) = later.split_at(later.partition_point(|other| other.kind < kind::AS4_PATH));
        communities.iter().for_each(|other| write_opaque(out, other));
        if let Some(originator) = self.originator_id {
            write_one(out, flag::OPTIONAL, kind::ORIGINATOR_ID, |out| out.put_slice(&originator.octets()));
        }
        if !self.cluster_list.is_empty() {
            write_one(out, flag::OPTIONAL, kind::CLUSTER_LIST, |out| {
                self.cluster_list.iter().for_each(|cluster| out.put_slice(&cluster.octets()));
            });
        }
        before_as4.iter().for_each(|other| write_opaque(out, other));
        if !four_octet {
            self.write_as4(out);
        }
        later.iter().for_each(|other| write_opaque(out, other));
    }

    fn write_aggregator(&self, out: &mut BytesMut, four_octet: bool) {
        let Some(aggregator) = self.aggregator else { return };
        let partial = if aggregator.partial { flag::PARTIAL } else { 0 };
        write_one(out, flag::OPTIONAL | flag::TRANSITIVE | partial, kind::AGGREGATOR, |out| {
            if four_octet {
                out.put_u32(aggregator.asn);
            } else {
                out.put_u16(u16::try_from(aggregator.asn).unwrap_or(AS_TRANS));
            }
            out.put_slice(&aggregator.router_id.octets());
        });
    }

    /// AS4_PATH and AS4_AGGREGATOR, where two octets lose something (RFC 6793 4.2.2).
    fn write_as4(&self, out: &mut BytesMut) {
        let flags = flag::OPTIONAL | flag::TRANSITIVE;
        if self.as_path.needs_four_octets() {
            let path = self.as_path.without_confederations();
            write_one(out, flags, kind::AS4_PATH, |out| path.write(out, true));
        }
        if let Some(aggregator) = self.aggregator.filter(|a| a.asn > u32::from(u16::MAX)) {
            write_one(out, flags, kind::AS4_AGGREGATOR, |out| {
                out.put_u32(aggregator.asn);
                out.put_slice(&aggregator.router_id.octets());
            });
        }
    }
}

fn write_opaque(out: &mut BytesMut, other: &Opaque) {
    write_one(out, other.flags, other.kind, |out| out.put_slice(&other.value));
}

/// Writes one attribute; the length takes two octets where it must.
pub(super) fn write_one(out: &mut BytesMut, flags: u8, kind: u8, value: impl FnOnce(&mut BytesMut)) {
    let at = out.len();
    out.put_slice(&[flags, kind, 0]);
    value(out);
    let len = out.len() - at - 3;
    if let Ok(short) = u8::try_from(len) {
        out[at + 2] = short;
        return;
    }
    // A second length octet: everything behind it moves by one. An attribute comes from a message or holds a
    // bounded number of values, so its length fits.
    out[at] |= flag::EXTENDED;
    out.put_u8(0);
    let end = out.len();
    out.copy_within(at + 3..end - 1, at + 4);
    super::patch_len(out, at + 2, len);
}
