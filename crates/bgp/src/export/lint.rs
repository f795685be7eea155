//! Checks what leaves against the rules for the group it goes to. Runs on every message in builds with debug
//! assertions, so all tests run with it. It reads the octets, not what they were made from: what the encoder and the
//! policy think does not matter here.
//!
//! | rule | clause |
//! |---|---|
//! | whole messages, UPDATE only, no longer than agreed | RFC 4271 4.1, RFC 8654 section 4 |
//! | our own decoder finds no fault | RFC 7606 |
//! | attributes in the order of their types, MP_REACH_NLRI first, none twice | RFC 4271 section 5, RFC 7606 5.1 |
//! | no unknown attribute that is not transitive; Partial only on optional transitive ones | RFC 4271 section 5 |
//! | AS4 attributes towards two-octet speakers only | RFC 6793 4.1 |
//! | families as negotiated; next hop of a family that may carry the prefixes; not IPv4-mapped | RFC 4760, 8950 |
//! | NO_ADVERTISE to nobody; NO_EXPORT to nobody outside; LLGR_STALE only to those who know it | RFC 1997, 9494 |
//! | internal: LOCAL_PREF there, ORIGINATOR_ID and CLUSTER_LIST together, our CLUSTER_ID first | RFC 4271 5.1.5, 4456 |
//! | external: none of those, our AS in front; OTC as the role says | RFC 4271, 4456, 9234 |

use std::net::IpAddr;

use bytes::Buf;

use super::log::read;
use super::policy::{External, GroupKey, Side};
use crate::config::Relation;
use crate::message::attribute::{
    LLGR_STALE, NO_ADVERTISE, NO_EXPORT, NO_EXPORT_SUBCONFED, PathAttributes, flag, kind,
};
use crate::message::update::Update;
use crate::types::Family;

/// Whether all messages in `bytes`, about routes from `source`, may be sent to a group.
pub(crate) fn check(bytes: &[u8], key: &GroupKey, source: Option<IpAddr>) -> Result<(), String> {
    for (body, update) in read(bytes, key)? {
        check_order(&body, key.encoding.four_octet_as)?;
        check_update(&update, key, source)?;
    }
    Ok(())
}

/// The attributes as they stand on the wire.
fn check_order(body: &[u8], four_octet_as: bool) -> Result<(), String> {
    let mut rest = body;
    let withdrawn = usize::from(rest.get_u16());
    rest.advance(withdrawn);
    let len = usize::from(rest.get_u16());
    let mut rest = &rest[..len];
    let mut before = None;
    while rest.has_remaining() {
        let (flags, kind) = (rest.get_u8(), rest.get_u8());
        let len = if flags & flag::EXTENDED == 0 {
            usize::from(rest.get_u8())
        } else {
            usize::from(rest.get_u16())
        };
        rest.advance(len);
        let place = if kind == kind::MP_REACH { 0 } else { kind };
        if before.replace(place).is_some_and(|before| before >= place) {
            return Err(format!("attribute {kind} stands twice or out of order"));
        }
        let class = flags & (flag::OPTIONAL | flag::TRANSITIVE);
        if flags & flag::PARTIAL != 0 && class != flag::OPTIONAL | flag::TRANSITIVE {
            return Err(format!("attribute {kind} is partial but not optional and transitive"));
        }
        let known = matches!(kind, kind::MED | kind::ORIGINATOR_ID | kind::CLUSTER_LIST)
            || matches!(kind, kind::MP_REACH | kind::MP_UNREACH);
        if class == flag::OPTIONAL && !known {
            return Err(format!("attribute {kind} is unknown and not transitive"));
        }
        if four_octet_as && matches!(kind, kind::AS4_PATH | kind::AS4_AGGREGATOR) {
            return Err(format!("attribute {kind} towards a speaker of four-octet AS numbers"));
        }
    }
    Ok(())
}

fn check_update(update: &Update, key: &GroupKey, source: Option<IpAddr>) -> Result<(), String> {
    if let Some(fault) = update.faults.first() {
        return Err(format!("attribute {}: {}", fault.kind, fault.what));
    }
    let announced = update.announced.iter().flat_map(|(_, prefixes)| prefixes);
    let mut all = announced.chain(&update.withdrawn);
    if let Some(nlri) = all.find(|nlri| !key.families.contains(Family::of(&nlri.prefix))) {
        return Err(format!("{nlri} is of a family that was not negotiated"));
    }
    for (attributes, prefixes) in &update.announced {
        let by = Family::of_address(&attributes.next_hop);
        let carries = |family| family == by || (family == Family::Ipv4 && key.extended_next_hop);
        if prefixes.iter().any(|nlri| !carries(Family::of(&nlri.prefix))) {
            return Err(format!("next hop {} is of another family", attributes.next_hop));
        }
        if attributes.has_community(NO_ADVERTISE) && key.filter.is_none() {
            return Err("NO_ADVERTISE is told on".to_owned());
        }
        if attributes.has_community(LLGR_STALE) && !key.long_lived && key.filter.is_none() {
            return Err("LLGR_STALE towards a peer that does not know it".to_owned());
        }
        match &key.side {
            Side::Internal { .. } => check_internal(attributes, key, source)?,
            Side::External(external) => check_external(attributes, key, external, source)?,
        }
    }
    Ok(())
}

fn check_internal(attributes: &PathAttributes, key: &GroupKey, source: Option<IpAddr>) -> Result<(), String> {
    if attributes.local_pref.is_none() {
        return Err("no LOCAL_PREF towards an internal peer".to_owned());
    }
    if attributes.originator_id.is_none() != attributes.cluster_list.is_empty() {
        return Err("ORIGINATOR_ID and CLUSTER_LIST go together".to_owned());
    }
    if attributes.cluster_list.first().is_some_and(|first| *first != key.cluster_id) {
        return Err("CLUSTER_LIST does not begin with our CLUSTER_ID".to_owned());
    }
    if attributes.originator_id.is_some() && source.is_none() {
        return Err("a route of our own is reflected".to_owned());
    }
    Ok(())
}

fn check_external(
    attributes: &PathAttributes,
    key: &GroupKey,
    external: &External,
    source: Option<IpAddr>,
) -> Result<(), String> {
    let reflected = attributes.originator_id.is_some() || !attributes.cluster_list.is_empty();
    if reflected || attributes.local_pref.is_some() {
        return Err("an internal attribute towards an external peer".to_owned());
    }
    let passes = external.route_server && source.is_some();
    if !passes && attributes.as_path.neighbour() != Some(external.asn) {
        return Err("the AS path does not begin with our AS".to_owned());
    }
    let inside = [NO_EXPORT, NO_EXPORT_SUBCONFED].into_iter().any(|c| attributes.has_community(c));
    if inside && key.filter.is_none() {
        return Err("NO_EXPORT leaves the AS".to_owned());
    }
    let marked = attributes.only_to_customer();
    let downwards =
        matches!(external.relation, Some(Relation::Provider | Relation::Peer | Relation::RouteServer));
    let upwards = matches!(external.relation, Some(Relation::Customer | Relation::RouteServerClient));
    if (downwards && marked.is_none()) || (upwards && marked.is_some()) {
        return Err("OTC is not as the role says".to_owned());
    }
    Ok(())
}
