//! Checks what leaves against the rules for the group it goes to. Runs on every message in builds with debug
//! assertions, so all tests run with it.

use bytes::BytesMut;

use super::policy::{GroupKey, Side};
use crate::message::update::{DecodeContext, Update};
use crate::message::{MessageType, next_frame};
use crate::types::Family;

/// Whether all messages in `bytes` may be sent to a group.
pub(crate) fn check(bytes: &[u8], key: &GroupKey) -> Result<(), String> {
    let mut rest = BytesMut::from(bytes);
    loop {
        // The longest message is 4,096 octets: RFC 8654 is not negotiated.
        match next_frame(&mut rest).map_err(|n| n.to_string())? {
            Some(frame) if frame.kind == MessageType::Update => {
                let context = DecodeContext {
                    four_octet_as: key.four_octet_as,
                    external: match key.side {
                        Side::Internal { .. } => None,
                        Side::External { .. } => Some(key.asn),
                    },
                    families: key.families,
                };
                check_update(&Update::decode(frame.body, &context).map_err(|n| n.to_string())?, key)?;
            }
            Some(frame) => return Err(format!("a {:?} among the updates", frame.kind)),
            None if rest.is_empty() => return Ok(()),
            None => return Err("a message is cut off".to_owned()),
        }
    }
}

fn check_update(update: &Update, key: &GroupKey) -> Result<(), String> {
    if let Some(fault) = update.faults.first() {
        return Err(format!("attribute {}: {}", fault.kind, fault.what));
    }
    let announced = update.announced.iter().flat_map(|(_, prefixes)| prefixes);
    if let Some(prefix) = announced.chain(&update.withdrawn).find(|p| !key.families.contains(Family::of(p))) {
        return Err(format!("{prefix} is of a family that was not negotiated"));
    }
    for (attributes, prefixes) in &update.announced {
        if prefixes.iter().any(|prefix| Family::of(prefix) != Family::of_address(&attributes.next_hop)) {
            return Err(format!("next hop {} is of another family", attributes.next_hop));
        }
        let reflected = attributes.originator_id.is_some() || !attributes.cluster_list.is_empty();
        match key.side {
            Side::Internal { .. } if attributes.local_pref.is_none() => {
                return Err("no LOCAL_PREF towards an internal peer".to_owned());
            }
            Side::Internal { .. }
                if attributes.originator_id.is_none() != attributes.cluster_list.is_empty() =>
            {
                return Err("ORIGINATOR_ID and CLUSTER_LIST go together".to_owned());
            }
            Side::External { .. } if reflected || attributes.local_pref.is_some() => {
                return Err("an internal attribute towards an external peer".to_owned());
            }
            Side::External { .. } if attributes.as_path.neighbour() != Some(key.asn) => {
                return Err("the AS path does not begin with our AS".to_owned());
            }
            Side::Internal { .. } | Side::External { .. } => {}
        }
    }
    Ok(())
}
