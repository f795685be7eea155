//! Reads the path attributes of an UPDATE and judges each as RFC 7606 wants: all attributes are visited before
//! anything is decided, and the worst finding decides.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::attribute::{Aggregator, AsPath, Opaque, Origin, PathAttributes, flag, kind};
use super::notification::code;
use super::update::{DecodeContext, Fault, Treatment};
use super::{Nlri, Notification, Take, nlri};
use crate::types::Family;
use bytes::Bytes;

/// What the attributes said.
#[derive(Default)]
pub(super) struct Walked {
    pub(super) faults: Vec<Fault>,
    pub(super) mp_reach: Option<MpReach>,
    pub(super) mp_unreach: Option<(Option<Family>, Vec<Nlri>)>,
    pub(super) next_hop: Option<Ipv4Addr>,
    /// Whether any attribute besides MP_UNREACH_NLRI was there.
    pub(super) others_present: bool,
    origin: Option<Origin>,
    as_path: Option<AsPath>,
    as4_path: Option<AsPath>,
    as4_aggregator: Option<Aggregator>,
    med: Option<u32>,
    local_pref: Option<u32>,
    atomic_aggregate: bool,
    aggregator: Option<Aggregator>,
    originator_id: Option<Ipv4Addr>,
    cluster_list: Vec<Ipv4Addr>,
    opaque: Vec<Opaque>,
}

/// MP_REACH_NLRI of a family of ours.
pub(super) struct MpReach {
    pub(super) family: Family,
    pub(super) next_hop: IpAddr,
    pub(super) prefixes: Vec<Nlri>,
}

/// One attribute as it stands on the wire.
struct Raw {
    flags: u8,
    kind: u8,
    value: Bytes,
}

/// Visits all attributes.
///
/// # Errors
/// The NOTIFICATION where RFC 7606 leaves nothing but the reset: a repeated MP attribute (3 g), or an MP attribute
/// from which the prefixes cannot be told (5.3).
pub(super) fn walk(mut bytes: Bytes, context: &DecodeContext) -> Result<Walked, Notification> {
    let mut walked = Walked::default();
    let mut seen = [false; 256];
    while !bytes.is_empty() {
        let Some(raw) = next_attribute(&mut bytes) else {
            // RFC 7606 section 4: the attributes overrun their total length; what was read before still counts.
            walked.fault(Treatment::Withdraw, 0, "an attribute overruns the attributes' total length");
            break;
        };
        let mp = matches!(raw.kind, kind::MP_REACH | kind::MP_UNREACH);
        if std::mem::replace(&mut seen[usize::from(raw.kind)], true) {
            if mp {
                return Err(Notification::new(code::UPDATE, 1));
            }
            // RFC 7606 3 (g): all but the first are discarded.
            walked.fault(Treatment::Discard, raw.kind, "the attribute stands there twice");
            continue;
        }
        walked.others_present |= raw.kind != kind::MP_UNREACH;
        walked.visit(raw, context)?;
    }
    Ok(walked)
}

fn next_attribute(bytes: &mut Bytes) -> Option<Raw> {
    let flags = bytes.take_u8()?;
    let kind = bytes.take_u8()?;
    let len = if flags & flag::EXTENDED != 0 { bytes.take_u16()? } else { u16::from(bytes.take_u8()?) };
    Some(Raw { flags, kind, value: bytes.take(usize::from(len))? })
}

/// The Optional and Transitive bits that a known attribute must have.
fn flags_of(kind: u8) -> Option<u8> {
    Some(match kind {
        kind::ORIGIN | kind::AS_PATH | kind::NEXT_HOP | kind::LOCAL_PREF | kind::ATOMIC_AGGREGATE => {
            flag::TRANSITIVE
        }
        kind::MED | kind::ORIGINATOR_ID | kind::CLUSTER_LIST | kind::MP_REACH | kind::MP_UNREACH => {
            flag::OPTIONAL
        }
        kind::AGGREGATOR
        | kind::COMMUNITIES
        | kind::EXTENDED_COMMUNITIES
        | kind::AS4_PATH
        | kind::AS4_AGGREGATOR
        | kind::IPV6_EXTENDED_COMMUNITIES
        | kind::LARGE_COMMUNITIES
        | kind::OTC => flag::OPTIONAL | flag::TRANSITIVE,
        _ => return None,
    })
}

impl Walked {
    pub(super) fn fault(&mut self, treatment: Treatment, kind: u8, what: &'static str) {
        self.faults.push(Fault { treatment, kind, what });
    }

    fn visit(&mut self, raw: Raw, context: &DecodeContext) -> Result<(), Notification> {
        let class = flag::OPTIONAL | flag::TRANSITIVE;
        let Some(wanted) = flags_of(raw.kind) else {
            self.unknown(raw);
            return Ok(());
        };
        if raw.flags & class != wanted {
            // RFC 7606 3 (c). The prefixes of an MP attribute are located all the same.
            self.fault(Treatment::Withdraw, raw.kind, "the optional or transitive bit is wrong");
        }
        match raw.kind {
            kind::MP_REACH => return self.mp_reach(raw.value, context),
            kind::MP_UNREACH => return self.mp_unreach(raw.value, context),
            kind::LOCAL_PREF | kind::ORIGINATOR_ID | kind::CLUSTER_LIST if context.external.is_some() => {
                // RFC 7606 7.5, 7.9, 7.10: from an external neighbour these mean nothing.
                self.fault(Treatment::Discard, raw.kind, "an internal attribute from an external neighbour");
            }
            kind::AS4_PATH | kind::AS4_AGGREGATOR if context.four_octet_as => {
                // RFC 6793 section 4.1: not between speakers of four-octet numbers.
                self.fault(
                    Treatment::Discard,
                    raw.kind,
                    "not used between speakers of four-octet AS numbers",
                );
            }
            _ => {
                if let Err((treatment, what)) = self.known(&raw, context.four_octet_as) {
                    self.fault(treatment, raw.kind, what);
                }
            }
        }
        Ok(())
    }

    /// Reads a known attribute; the error is its treatment in RFC 7606 section 7 (or the RFC named).
    fn known(&mut self, raw: &Raw, four_octet: bool) -> Result<(), (Treatment, &'static str)> {
        let mut value = raw.value.clone();
        let withdraw = |what| (Treatment::Withdraw, what);
        let discard = |what| (Treatment::Discard, what);
        match raw.kind {
            kind::ORIGIN => {
                let origin = match value[..] {
                    [0] => Origin::Igp,
                    [1] => Origin::Egp,
                    [2] => Origin::Incomplete,
                    _ => return Err(withdraw("ORIGIN is not one of 0, 1 and 2")),
                };
                self.origin = Some(origin);
            }
            kind::AS_PATH => {
                let path = AsPath::read(value, four_octet).ok_or(withdraw("AS_PATH is malformed"))?;
                self.as_path = Some(path);
            }
            kind::NEXT_HOP => {
                self.next_hop = Some(address(&value).ok_or(withdraw("NEXT_HOP has not 4 octets"))?);
            }
            kind::MED => self.med = Some(exact_u32(value).ok_or(withdraw("MED has not 4 octets"))?),
            kind::LOCAL_PREF => {
                self.local_pref = Some(exact_u32(value).ok_or(withdraw("LOCAL_PREF has not 4 octets"))?);
            }
            kind::ATOMIC_AGGREGATE if value.is_empty() => self.atomic_aggregate = true,
            kind::ATOMIC_AGGREGATE => return Err(discard("ATOMIC_AGGREGATE has a value")),
            kind::AGGREGATOR => {
                let asn = match (four_octet, value.len()) {
                    (true, 8) => value.take_u32(),
                    (false, 6) => value.take_u16().map(u32::from),
                    _ => None,
                };
                self.aggregator =
                    Some(aggregator(asn, &value, raw.flags).ok_or(discard("AGGREGATOR is malformed"))?);
            }
            kind::AS4_AGGREGATOR => {
                let asn = (value.len() == 8).then(|| value.take_u32()).flatten();
                let read =
                    aggregator(asn, &value, raw.flags).ok_or(discard("AS4_AGGREGATOR is malformed"))?;
                self.as4_aggregator = Some(read);
            }
            kind::AS4_PATH => {
                let path = AsPath::read(value, true).ok_or(discard("AS4_PATH is malformed"))?;
                // RFC 6793 section 6: confederation segments in it are dropped.
                self.as4_path = Some(path.without_confederations());
            }
            kind::ORIGINATOR_ID => {
                self.originator_id = Some(address(&value).ok_or(withdraw("ORIGINATOR_ID has not 4 octets"))?);
            }
            kind::CLUSTER_LIST => {
                if value.is_empty() || !value.len().is_multiple_of(4) {
                    return Err(withdraw("CLUSTER_LIST is not a list of 4 octets"));
                }
                while let Some(cluster) = value.take_u32() {
                    self.cluster_list.push(Ipv4Addr::from(cluster));
                }
            }
            kind::COMMUNITIES => self.communities(raw, 4)?,
            kind::EXTENDED_COMMUNITIES => self.communities(raw, 8)?,
            kind::IPV6_EXTENDED_COMMUNITIES => self.communities(raw, 20)?,
            kind::LARGE_COMMUNITIES => self.communities(raw, 12)?,
            // RFC 9234 section 5.
            kind::OTC if value.len() != 4 => return Err(withdraw("OTC has not 4 octets")),
            kind::OTC => self.opaque(raw, 0),
            // Those of `flags_of` are all above or in `visit`.
            _ => {}
        }
        Ok(())
    }

    fn communities(&mut self, raw: &Raw, each: usize) -> Result<(), (Treatment, &'static str)> {
        if raw.value.is_empty() || !raw.value.len().is_multiple_of(each) {
            return Err((Treatment::Withdraw, "communities have the wrong length"));
        }
        self.opaque(raw, 0);
        Ok(())
    }

    /// RFC 4271 section 5: unknown optional attributes pass with the Partial bit if transitive, else end here.
    fn unknown(&mut self, raw: Raw) {
        if raw.flags & flag::OPTIONAL == 0 {
            self.fault(Treatment::Withdraw, raw.kind, "an unknown well-known attribute");
        } else if raw.flags & flag::TRANSITIVE != 0 {
            self.opaque(&raw, flag::PARTIAL);
        }
    }

    fn opaque(&mut self, raw: &Raw, add: u8) {
        let flags = (raw.flags & (flag::OPTIONAL | flag::TRANSITIVE | flag::PARTIAL)) | add;
        // A slice would keep the whole received buffer alive for as long as the route lives.
        let value = Bytes::copy_from_slice(&raw.value);
        self.opaque.push(Opaque { kind: raw.kind, flags, value });
    }

    /// ```text
    /// | AFI (2) | SAFI (1) | next hop's length (1) | next hop | reserved (1) | NLRI ...      RFC 4760 section 3
    /// ```
    fn mp_reach(&mut self, mut value: Bytes, context: &DecodeContext) -> Result<(), Notification> {
        let reset = || Notification::new(code::UPDATE, 9);
        let afi = value.take_u16().ok_or_else(reset)?;
        let safi = value.take_u8().ok_or_else(reset)?;
        let Some(family) = Family::from_wire(afi, safi) else {
            // Not ours and never negotiated: what it announces cannot have been announced before either.
            self.fault(Treatment::Discard, kind::MP_REACH, "a family that is not ours");
            return Ok(());
        };
        let len = value.take_u8().ok_or_else(reset)?;
        let next_hop = value.take(usize::from(len)).ok_or_else(reset)?;
        let _reserved = value.take_u8().ok_or_else(reset)?;
        // RFC 7606 7.11: with a next hop of the wrong length the prefixes cannot be told reliably.
        let next_hop = match (family, len) {
            (Family::Ipv4, 4) => IpAddr::V4(address(&next_hop).ok_or_else(reset)?),
            // RFC 2545 section 3: a link-local address may follow the global one.
            // RFC 8950 section 4: the same for IPv4 prefixes, where negotiated.
            (Family::Ipv6, 16 | 32) | (Family::Ipv4, 16 | 32)
                if family == Family::Ipv6 || context.extended_next_hop =>
            {
                let octets: [u8; 16] = next_hop[..16].try_into().map_err(|_| reset())?;
                IpAddr::V6(Ipv6Addr::from(octets))
            }
            _ => return Err(reset()),
        };
        let add_path = context.add_path.contains(family);
        let prefixes = nlri::read(value, family, add_path).ok_or_else(reset)?;
        if context.families.contains(family) {
            self.mp_reach = Some(MpReach { family, next_hop, prefixes });
        } else {
            self.fault(Treatment::Discard, kind::MP_REACH, "a family that was not negotiated");
        }
        Ok(())
    }

    /// ```text
    /// | AFI (2) | SAFI (1) | withdrawn prefixes ...                                           RFC 4760 section 4
    /// ```
    fn mp_unreach(&mut self, mut value: Bytes, context: &DecodeContext) -> Result<(), Notification> {
        let reset = || Notification::new(code::UPDATE, 9);
        let afi = value.take_u16().ok_or_else(reset)?;
        let safi = value.take_u8().ok_or_else(reset)?;
        let family = Family::from_wire(afi, safi);
        let prefixes = match family {
            Some(family) => nlri::read(value, family, context.add_path.contains(family)).ok_or_else(reset)?,
            None => vec![],
        };
        self.mp_unreach = Some((family, prefixes));
        Ok(())
    }

    /// Completes the attributes once the next hop is known: mandatory ones (RFC 7606 3 d), and the true AS path
    /// behind an old speaker (RFC 6793 4.2.3). A missing one is a fault.
    pub(super) fn finish(&mut self, context: &DecodeContext) -> Option<PathAttributes> {
        let (origin, as_path) = (self.origin, self.as_path.take());
        if origin.is_none() {
            self.fault(Treatment::Withdraw, kind::ORIGIN, "ORIGIN is missing");
        }
        if as_path.is_none() {
            self.fault(Treatment::Withdraw, kind::AS_PATH, "AS_PATH is missing");
        }
        let (mut as_path, mut aggregator) = (as_path?, self.aggregator);
        let trans = u32::from(super::open::AS_TRANS);
        // RFC 6793 4.2.3: with both attributes there, an AGGREGATOR that is not AS_TRANS was made by somebody who does
        // not know the AS4 attributes: they are stale.
        let stale = self.as4_aggregator.is_some() && aggregator.is_some_and(|a| a.asn != trans);
        if !stale {
            if let (Some(short), Some(full)) = (aggregator, self.as4_aggregator) {
                aggregator = Some(Aggregator { partial: short.partial, ..full });
            }
            if let Some(as4) = self.as4_path.take() {
                as_path = as_path.merged_with(&as4);
            }
        }
        if as_path.has_confederations() {
            // RFC 5065 section 5: nobody is in a confederation with us.
            self.fault(Treatment::Withdraw, kind::AS_PATH, "AS_PATH has confederation segments");
        }
        if context.first_as && context.external.is_some() && as_path.neighbour() != context.external {
            // RFC 4271 6.3: the leftmost AS must be the neighbour's.
            self.fault(
                Treatment::Withdraw,
                kind::AS_PATH,
                "an external neighbour's AS_PATH does not begin with its AS",
            );
        }
        let mut others = std::mem::take(&mut self.opaque);
        others.sort_by_key(|other| other.kind);
        Some(PathAttributes {
            next_hop: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            origin: origin?,
            as_path,
            med: self.med,
            local_pref: self.local_pref,
            atomic_aggregate: self.atomic_aggregate,
            aggregator,
            originator_id: self.originator_id,
            cluster_list: std::mem::take(&mut self.cluster_list),
            others,
        })
    }
}

fn exact_u32(mut value: Bytes) -> Option<u32> {
    (value.len() == 4).then(|| value.take_u32()).flatten()
}

fn address(value: &Bytes) -> Option<Ipv4Addr> {
    exact_u32(value.clone()).map(Ipv4Addr::from)
}

/// AGGREGATOR from its parts; none: a wrong length, or AS 0 (RFC 7607 section 2).
fn aggregator(asn: Option<u32>, router: &Bytes, flags: u8) -> Option<Aggregator> {
    let asn = asn.filter(|asn| *asn != 0)?;
    Some(Aggregator { asn, router_id: address(router)?, partial: flags & flag::PARTIAL != 0 })
}
