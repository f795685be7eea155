//! UPDATE (RFC 4271 4.3, errors as RFC 7606 revises 6.3).
//!
//! ```text
//! | withdrawn length (2) | withdrawn ... | attributes' total length (2) | attributes ... | NLRI ...
//! ```
//!
//! Every prefix that an UPDATE names has exactly one outcome: announced or withdrawn. Nothing is "ignored" so
//! that an older route would stay.

use std::collections::BTreeSet;
use std::net::IpAddr;

use bytes::{BufMut, Bytes, BytesMut};

use super::attribute::{PathAttributes, flag, kind, write_one};
use super::notification::code;
use super::{MAX_LEN, MessageType, Nlri, Notification, Take, finish, nlri, patch_len, start, walk};
use crate::types::{Families, Family, SAFI_UNICAST};

/// What the session says about how to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DecodeContext {
    /// Whether AS numbers have four octets (RFC 6793).
    pub four_octet_as: bool,
    /// An external neighbour's AS number; none: the neighbour is internal.
    pub external: Option<u32>,
    /// Families that were negotiated.
    pub families: Families,
    /// Of these: those whose prefixes come with a path identifier (RFC 7911).
    pub add_path: Families,
    /// Whether IPv4 prefixes may have IPv6 next hops (RFC 8950).
    pub extended_next_hop: bool,
    /// Whether an external neighbour's AS_PATH must begin with its AS (RFC 4271 6.3: "MAY check"; a route server's
    /// does not).
    pub first_as: bool,
}

impl DecodeContext {
    /// An internal neighbour with both families and four octets, nothing else.
    pub const INTERNAL: Self = Self {
        four_octet_as: true,
        external: None,
        families: Families::BOTH,
        add_path: Families::NONE,
        extended_next_hop: false,
        first_as: true,
    };
}

/// What the session says about how to write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Encoding {
    /// Whether AS numbers have four octets (RFC 6793).
    pub four_octet_as: bool,
    /// Families whose prefixes go with a path identifier (RFC 7911).
    pub add_path: Families,
    /// Longest message.
    pub max_len: usize,
}

impl Encoding {
    /// Four octets, nothing else.
    pub const PLAIN: Self = Self { four_octet_as: true, add_path: Families::NONE, max_len: MAX_LEN };
}

/// How an error is treated (RFC 7606 section 2), the mildest first. "Session reset" is a NOTIFICATION instead.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Treatment {
    /// The attribute is dropped, the route lives.
    Discard,
    /// The announced prefixes are withdrawn.
    Withdraw,
}

/// Something wrong in an UPDATE that does not cost the session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// What is done about it.
    pub treatment: Treatment,
    /// Type of the attribute; 0: none in particular.
    pub kind: u8,
    /// What is wrong, for people.
    pub what: &'static str,
}

/// An UPDATE as the RIB wants it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Update {
    /// Prefixes that are withdrawn, those of treat-as-withdraw included. To be applied first.
    pub withdrawn: Vec<Nlri>,
    /// Prefixes that are announced, with their attributes: each in one entry only.
    pub announced: Vec<(PathAttributes, Vec<Nlri>)>,
    /// End-of-RIB (RFC 4724 section 2).
    pub end_of_rib: Option<Family>,
    /// What was wrong.
    pub faults: Vec<Fault>,
}

impl Update {
    /// Reads the body of an UPDATE.
    ///
    /// # Errors
    /// The NOTIFICATION where the session must be reset.
    pub fn decode(mut body: Bytes, context: &DecodeContext) -> Result<Self, Notification> {
        let malformed = || Notification::new(code::UPDATE, 1);
        let network = || Notification::new(code::UPDATE, 10);
        let len = body.take_u16().ok_or_else(malformed)?;
        let withdrawn = body.take(usize::from(len)).ok_or_else(malformed)?;
        let len = body.take_u16().ok_or_else(malformed)?;
        let attributes = body.take(usize::from(len)).ok_or_else(malformed)?;
        let mut update = Self::default();
        if withdrawn.is_empty() && attributes.is_empty() && body.is_empty() {
            update.end_of_rib = Some(Family::Ipv4);
            return Ok(update);
        }
        let only_attribute = withdrawn.is_empty() && body.is_empty();
        let add_path = context.add_path.contains(Family::Ipv4);
        let withdrawn = nlri::read(withdrawn, Family::Ipv4, add_path).ok_or_else(network)?;
        let announced = nlri::read(body, Family::Ipv4, add_path).ok_or_else(network)?;
        let mut walked = walk::walk(attributes, context)?;

        let unreach = walked.mp_unreach.take();
        if let (true, Some((Some(family), prefixes)), false) =
            (only_attribute, &unreach, walked.others_present)
            && prefixes.is_empty()
            && walked.faults.is_empty()
        {
            update.end_of_rib = Some(*family);
            return Ok(update);
        }
        update.withdrawn = withdrawn;
        update.withdrawn.extend(unreach.into_iter().flat_map(|(_, prefixes)| prefixes));

        let mut reach: Vec<(Option<IpAddr>, Vec<Nlri>)> = vec![];
        if !announced.is_empty() {
            reach.push((walked.next_hop.map(IpAddr::V4), announced));
        }
        if let Some(mp) = walked.mp_reach.take() {
            debug_assert!(mp.prefixes.iter().all(|nlri| Family::of(&nlri.prefix) == mp.family));
            if !mp.prefixes.is_empty() {
                reach.push((Some(mp.next_hop), mp.prefixes));
            }
        }
        if reach.is_empty() {
            // RFC 7606 5.2: nothing to withdraw, so an error that is worth a withdrawal is worth the session.
            let worst = walked.faults.iter().map(|fault| fault.treatment).max();
            if walked.others_present && worst == Some(Treatment::Withdraw) {
                return Err(malformed());
            }
            update.faults = walked.faults;
            return Ok(update);
        }
        let attributes = walked.finish(context);
        for (next_hop, _) in &reach {
            if let Some(what) = next_hop_mistake(*next_hop) {
                walked.fault(Treatment::Withdraw, kind::NEXT_HOP, what);
            }
        }
        let usable = !walked.faults.iter().any(|fault| fault.treatment == Treatment::Withdraw);
        update.faults = walked.faults;
        for (next_hop, prefixes) in reach {
            let (good, bad): (Vec<Nlri>, Vec<Nlri>) = prefixes.into_iter().partition(is_unicast);
            if !bad.is_empty() {
                // RFC 4271 6.3: a semantically wrong prefix is logged and not used.
                let what = "a prefix that is not unicast";
                update.faults.push(Fault { treatment: Treatment::Withdraw, kind: 0, what });
                update.withdrawn.extend(bad);
            }
            match (&attributes, next_hop) {
                (Some(attributes), Some(next_hop)) if usable && !good.is_empty() => {
                    update.announced.push((PathAttributes { next_hop, ..attributes.clone() }, good));
                }
                _ => update.withdrawn.extend(good),
            }
        }
        update.settle();
        Ok(update)
    }

    /// A prefix both withdrawn and announced is announced (RFC 4271 4.3, last paragraph). One that stands in NLRI and
    /// in MP_REACH_NLRI is announced once, with the next hop of the latter.
    fn settle(&mut self) {
        if let [(_, classic), (_, mp)] = self.announced.as_mut_slice() {
            let mp: BTreeSet<Nlri> = mp.iter().copied().collect();
            classic.retain(|prefix| !mp.contains(prefix));
            self.announced.retain(|(_, prefixes)| !prefixes.is_empty());
        }
        if !self.withdrawn.is_empty() && !self.announced.is_empty() {
            let announced: BTreeSet<Nlri> = self.announced.iter().flat_map(|(_, p)| p).copied().collect();
            self.withdrawn.retain(|prefix| !announced.contains(prefix));
        }
    }
}

/// Why an address cannot be a next hop (RFC 4271 6.3: "a valid IP host address").
fn next_hop_mistake(next_hop: Option<IpAddr>) -> Option<&'static str> {
    match next_hop {
        None => Some("NEXT_HOP is missing"),
        Some(address) if address.is_unspecified() => Some("the next hop is zero"),
        Some(address) if address.is_multicast() => Some("the next hop is multicast"),
        Some(address) if address.is_loopback() => Some("the next hop is a loopback address"),
        Some(IpAddr::V4(v4)) if v4.octets()[0] >= 240 => Some("the next hop is of class E"),
        Some(IpAddr::V4(v4)) if v4.octets()[0] == 0 => Some("the next hop is in 0.0.0.0/8"),
        Some(IpAddr::V6(v6)) if v6.to_ipv4_mapped().is_some() => Some("the next hop is IPv4-mapped"),
        Some(_) => None,
    }
}

fn is_unicast(nlri: &Nlri) -> bool {
    !nlri.prefix.network().is_multicast()
}

/// One announced prefix alone is longer than a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the attributes leave no room for a prefix")]
pub struct TooLong;

/// Writes `prefixes`, all of one family, with their attributes in as few messages as they need.
///
/// # Errors
/// When not even one prefix fits: the caller withdraws.
pub fn announce(
    out: &mut BytesMut,
    attributes: &PathAttributes,
    prefixes: &[Nlri],
    encoding: &Encoding,
) -> Result<(), TooLong> {
    let Some(first) = prefixes.first() else { return Ok(()) };
    let family = Family::of(&first.prefix);
    let add_path = encoding.add_path.contains(family);
    let classic = family == Family::Ipv4 && attributes.next_hop.is_ipv4();
    let mut common = BytesMut::with_capacity(128);
    attributes.write(&mut common, encoding.four_octet_as, classic);
    let next_hop_len = match attributes.next_hop {
        IpAddr::V4(_) => 4,
        IpAddr::V6(_) => 16,
    };
    // Header, two lengths, attributes; MP_REACH_NLRI: flags, type, two of length, AFI, SAFI, length, next hop, reserved.
    let overhead = super::HEADER_LEN + 4 + common.len() + if classic { 0 } else { 4 + 5 + next_hop_len };
    let room = encoding.max_len.checked_sub(overhead).ok_or(TooLong)?;
    if prefixes.iter().map(|nlri| nlri::wire_len(nlri, add_path)).max().unwrap_or(0) > room {
        return Err(TooLong);
    }
    for batch in batches(prefixes, room, add_path) {
        let at = start(out, MessageType::Update);
        out.put_u16(0);
        let length_at = out.len();
        out.put_u16(0);
        if classic {
            out.put_slice(&common);
            patch_len(out, length_at, common.len());
            batch.iter().for_each(|nlri| nlri::write(out, nlri, add_path));
        } else {
            // RFC 7606 5.1: MP_REACH_NLRI should come first.
            write_mp(out, kind::MP_REACH, family, |out| {
                match attributes.next_hop {
                    IpAddr::V4(next_hop) => {
                        out.put_u8(4);
                        out.put_slice(&next_hop.octets());
                    }
                    IpAddr::V6(next_hop) => {
                        out.put_u8(16);
                        out.put_slice(&next_hop.octets());
                    }
                }
                out.put_u8(0);
                batch.iter().for_each(|nlri| nlri::write(out, nlri, add_path));
            });
            out.put_slice(&common);
            let len = out.len() - length_at - 2;
            patch_len(out, length_at, len);
        }
        finish(out, at);
    }
    Ok(())
}

/// Withdraws `prefixes`, all of one family, in as few messages as they need.
pub fn withdraw(out: &mut BytesMut, prefixes: &[Nlri], encoding: &Encoding) {
    let Some(first) = prefixes.first() else { return };
    let family = Family::of(&first.prefix);
    let add_path = encoding.add_path.contains(family);
    for batch in batches(prefixes, encoding.max_len - super::HEADER_LEN - 4 - 7, add_path) {
        let at = start(out, MessageType::Update);
        if family == Family::Ipv4 {
            let length_at = out.len();
            out.put_u16(0);
            batch.iter().for_each(|nlri| nlri::write(out, nlri, add_path));
            let len = out.len() - length_at - 2;
            patch_len(out, length_at, len);
            out.put_u16(0);
        } else {
            out.put_u16(0);
            let length_at = out.len();
            out.put_u16(0);
            write_mp(out, kind::MP_UNREACH, family, |out| {
                batch.iter().for_each(|nlri| nlri::write(out, nlri, add_path))
            });
            let len = out.len() - length_at - 2;
            patch_len(out, length_at, len);
        }
        finish(out, at);
    }
}

/// End-of-RIB (RFC 4724 section 2): an empty UPDATE, or an empty MP_UNREACH_NLRI.
pub fn end_of_rib(out: &mut BytesMut, family: Family) {
    let at = start(out, MessageType::Update);
    out.put_u16(0);
    match family {
        Family::Ipv4 => out.put_u16(0),
        Family::Ipv6 => {
            out.put_u16(6);
            write_mp(out, kind::MP_UNREACH, family, |_| {});
        }
    }
    finish(out, at);
}

fn write_mp(out: &mut BytesMut, kind: u8, family: Family, rest: impl FnOnce(&mut BytesMut)) {
    write_one(out, flag::OPTIONAL, kind, |out| {
        out.put_u16(family.afi());
        out.put_u8(SAFI_UNICAST);
        rest(out);
    });
}

/// Cuts `prefixes` into runs of at most `room` octets each.
fn batches(prefixes: &[Nlri], room: usize, add_path: bool) -> impl Iterator<Item = &[Nlri]> {
    let mut rest = prefixes;
    std::iter::from_fn(move || {
        let mut used = 0;
        let fits = rest
            .iter()
            .take_while(|prefix| {
                used += nlri::wire_len(prefix, add_path);
                used <= room
            })
            .count();
        let (batch, later) = rest.split_at(fits);
        rest = later;
        (!batch.is_empty()).then_some(batch)
    })
}
