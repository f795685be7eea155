//! What a group of neighbours is told, and with which attributes.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::config::{Export, Neighbour, Role, SpeakerConfig};
use crate::message::attribute::{NO_ADVERTISE, NO_EXPORT, NO_EXPORT_SUBCONFED, PathAttributes};
use crate::rib::Path;
use crate::rib::decision::local_pref;
use crate::session::negotiated::Negotiated;
use crate::types::{Families, Family};

/// What neighbours have in common that are told the same in the same octets.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct GroupKey {
    pub(crate) side: Side,
    pub(crate) four_octet_as: bool,
    pub(crate) families: Families,
    pub(crate) export: Export,
    pub(crate) asn: u32,
    pub(crate) cluster_id: Ipv4Addr,
}

/// Which rules hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Side {
    /// iBGP.
    Internal {
        /// We reflect to them.
        client: bool,
    },
    /// eBGP, with the next hops that we put in.
    External { next_hop_v4: Option<Ipv4Addr>, next_hop_v6: Option<Ipv6Addr> },
}

impl GroupKey {
    pub(crate) fn new(config: &SpeakerConfig, neighbour: &Neighbour, negotiated: &Negotiated) -> Self {
        let own = |family| {
            let session = neighbour.local_address.filter(|address| Family::of_address(address) == family);
            session.or_else(|| config.own_addresses.iter().find(|a| Family::of_address(a) == family).copied())
        };
        let side = match neighbour.role {
            Role::Mesh | Role::Reflector => Side::Internal { client: false },
            Role::Client => Side::Internal { client: true },
            Role::External => Side::External {
                next_hop_v4: own(Family::Ipv4)
                    .and_then(|a| if let IpAddr::V4(v4) = a { Some(v4) } else { None }),
                next_hop_v6: own(Family::Ipv6)
                    .and_then(|a| if let IpAddr::V6(v6) = a { Some(v6) } else { None }),
            },
        };
        Self {
            side,
            four_octet_as: negotiated.four_octet_as,
            families: negotiated.families,
            export: neighbour.export,
            asn: config.asn.number(),
            cluster_id: config.effective_cluster_id(),
        }
    }

    /// Whether the group is told of a best path that came from a neighbour of this role (none: our own).
    pub(crate) fn tells(&self, family: Family, path: &Path, from: Option<Role>) -> bool {
        let attributes = &path.attributes.path;
        if self.export == Export::None
            || !self.families.contains(family)
            || attributes.has_community(NO_ADVERTISE)
        {
            return false;
        }
        match self.side {
            Side::Internal { .. } => self.hears(from),
            Side::External { .. } => {
                self.hears(from)
                    && !attributes.has_community(NO_EXPORT)
                    && !attributes.has_community(NO_EXPORT_SUBCONFED)
                    && self.own_next_hop(family).is_some()
            }
        }
    }

    /// Whether routes from a neighbour of this role (none: our own) are told to the group at all.
    pub(crate) fn hears(&self, from: Option<Role>) -> bool {
        match (self.side, from) {
            (Side::External { .. }, _) | (_, None | Some(Role::External | Role::Client)) => true,
            // RFC 4456 section 6 (1): from a non-client to clients only; RFC 4271 9.2: never else.
            (Side::Internal { client }, Some(Role::Mesh | Role::Reflector)) => client,
        }
    }

    fn own_next_hop(&self, family: Family) -> Option<IpAddr> {
        match (self.side, family) {
            (Side::External { next_hop_v4, .. }, Family::Ipv4) => next_hop_v4.map(IpAddr::V4),
            (Side::External { next_hop_v6, .. }, Family::Ipv6) => next_hop_v6.map(IpAddr::V6),
            (Side::Internal { .. }, _) => None,
        }
    }

    /// The attributes with which the group is told.
    pub(crate) fn attributes(&self, family: Family, path: &Path, from: Option<Role>) -> PathAttributes {
        let mut attributes = path.attributes.path.clone();
        match self.side {
            Side::Internal { .. } => {
                // RFC 4271 5.1.5: LOCAL_PREF is in every UPDATE to an internal peer.
                attributes.local_pref = Some(local_pref(path));
                if let (Some(learned), Some(Role::Mesh | Role::Reflector | Role::Client)) =
                    (&path.learned, from)
                {
                    // RFC 4456 section 8: ORIGINATOR_ID is set once, our CLUSTER_ID goes in front. Nothing else changes.
                    attributes.originator_id.get_or_insert(learned.router_id);
                    attributes.cluster_list.insert(0, self.cluster_id);
                }
            }
            Side::External { .. } => {
                attributes.as_path.prepend(self.asn);
                // RFC 4271 5.1.4, 5.1.5; RFC 4456 section 8: none of these leaves the AS.
                if path.learned.is_some() {
                    attributes.med = None;
                }
                attributes.local_pref = None;
                attributes.originator_id = None;
                attributes.cluster_list.clear();
                if let Some(next_hop) = self.own_next_hop(family) {
                    attributes.next_hop = next_hop;
                }
            }
        }
        attributes
    }
}
