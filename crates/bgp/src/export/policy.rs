//! What a group of neighbours is told, and with which attributes.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use ipnet::IpNet;
use podway_model::ids::Asn;

use crate::config::{Export, Neighbour, NextHop, Relation, Role, SpeakerConfig};
use crate::filter::{self, Filter, Subject, Verdict};
use crate::message::attribute::{
    GRACEFUL_SHUTDOWN, NO_ADVERTISE, NO_EXPORT, NO_EXPORT_SUBCONFED, PathAttributes, kind, released,
};
use crate::message::update::Encoding;
use crate::rib::Path;
use crate::rib::decision::{DEFAULT_LOCAL_PREF, local_pref};
use crate::session::negotiated::Negotiated;
use crate::types::{Families, Family};

/// What neighbours have in common that are told the same in the same octets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct GroupKey {
    pub(crate) side: Side,
    pub(crate) encoding: Encoding,
    pub(crate) families: Families,
    pub(crate) export: Export,
    pub(crate) filter: Option<Arc<Filter>>,
    pub(crate) cluster_id: Ipv4Addr,
    /// How many paths per destination; more than one only for the families of [`Encoding::add_path`].
    pub(crate) paths: usize,
    pub(crate) next_hop: NextHop,
    pub(crate) own_v4: Option<Ipv4Addr>,
    pub(crate) own_v6: Option<Ipv6Addr>,
    /// IPv4 prefixes may have IPv6 next hops (RFC 8950).
    pub(crate) extended_next_hop: bool,
    pub(crate) default_originate: Families,
    /// Whether they know what LLGR_STALE means (RFC 9494).
    pub(crate) long_lived: bool,
    pub(crate) maintenance: bool,
    /// We need no session with them any more: internal neighbours in the same cluster.
    pub(crate) letting_go: bool,
    /// Our AS number.
    pub(crate) asn: Asn,
}

/// Which rules hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Side {
    /// iBGP.
    Internal {
        /// We reflect to them.
        client: bool,
    },
    /// eBGP.
    External(External),
}

/// What is done to AS paths on the way out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct External {
    /// Our number, as they know it.
    pub(crate) asn: u32,
    /// Our true one, if it stands behind.
    pub(crate) behind: Option<u32>,
    /// The number that ours takes the place of.
    pub(crate) overridden: Option<u32>,
    pub(crate) remove_private: bool,
    pub(crate) route_server: bool,
    /// Our role (RFC 9234).
    pub(crate) relation: Option<Relation>,
}

impl GroupKey {
    pub(crate) fn new(config: &SpeakerConfig, neighbour: &Neighbour, negotiated: &Negotiated) -> Self {
        let options = &neighbour.options;
        let own = |family| {
            let session = neighbour.local_address.filter(|address| Family::of_address(address) == family);
            session.or_else(|| config.own_addresses.iter().find(|a| Family::of_address(a) == family).copied())
        };
        let asn = config.asn.number();
        let side = match neighbour.role {
            Role::Mesh | Role::Reflector => Side::Internal { client: false },
            Role::Client => Side::Internal { client: true },
            Role::External => Side::External(External {
                asn: options.local_as.map_or(asn, |local| local.asn.number()),
                behind: options.local_as.filter(|local| !local.alone).map(|_| asn),
                overridden: options.as_override.then(|| neighbour.asn.number()),
                remove_private: options.remove_private,
                route_server: options.route_server_client,
                relation: options.relation,
            }),
        };
        Self {
            side,
            encoding: negotiated.encoding,
            families: negotiated.families,
            export: neighbour.export,
            filter: options.export.clone(),
            cluster_id: config.effective_cluster_id(),
            paths: if negotiated.encoding.add_path.is_empty() { 1 } else { options.add_path.send.max(1) },
            next_hop: options.next_hop,
            own_v4: own(Family::Ipv4).and_then(|a| if let IpAddr::V4(v4) = a { Some(v4) } else { None }),
            own_v6: own(Family::Ipv6).and_then(|a| if let IpAddr::V6(v6) = a { Some(v6) } else { None }),
            extended_next_hop: negotiated.extended_next_hop,
            default_originate: options.default_originate.and(negotiated.families),
            long_lived: negotiated.understands_long_lived(),
            maintenance: options.maintenance || config.options.maintenance,
            letting_go: false,
            asn: config.asn,
        }
    }

    /// How many paths of a family a member is told.
    pub(crate) fn paths_of(&self, family: Family) -> usize {
        if self.encoding.add_path.contains(family) { self.paths } else { 1 }
    }

    /// Whether routes from a neighbour of this role (none: our own) are told to the group at all.
    pub(crate) fn hears(&self, from: Option<Role>) -> bool {
        match (&self.side, from) {
            (Side::External(_), _) | (_, None | Some(Role::External | Role::Client)) => true,
            // RFC 4456 section 6 (1): from a non-client to clients only; RFC 4271 9.2: never else.
            (Side::Internal { client }, Some(Role::Mesh | Role::Reflector)) => *client,
        }
    }

    fn own_next_hop(&self, family: Family) -> Option<IpAddr> {
        let (v4, v6) = (self.own_v4.map(IpAddr::V4), self.own_v6.map(IpAddr::V6));
        match family {
            Family::Ipv4 => v4.or_else(|| v6.filter(|_| self.extended_next_hop)),
            Family::Ipv6 => v6,
        }
    }

    /// The attributes of the default route that we originate for the group.
    pub(crate) fn default_route(&self, family: Family) -> Option<PathAttributes> {
        let wanted = self.default_originate.contains(family);
        let mut told = self.own_next_hop(family).filter(|_| wanted).map(PathAttributes::originated)?;
        match &self.side {
            Side::Internal { .. } => told.local_pref = Some(DEFAULT_LOCAL_PREF),
            Side::External(external) => external.leave(&mut told, false),
        }
        Some(told)
    }

    /// The attributes with which the group is told of a path that came from a neighbour of this role (none: our own);
    /// `None`: it is not told.
    pub(crate) fn tell(&self, prefix: &IpNet, path: &Path, from: Option<Role>) -> Option<PathAttributes> {
        let family = Family::of(prefix);
        let attributes = &path.attributes.path;
        let sent_by = path.source().zip(from);
        let withheld = self.export == Export::None
            || !self.families.contains(family)
            || !self.hears(from)
            || attributes.has_community(NO_ADVERTISE)
            // RFC 9494 section 4.3: not to those who would take it for fresh.
            || (path.attributes.long_lived_stale && !self.long_lived);
        if withheld {
            return None;
        }
        let mut told = attributes.clone();
        let subject = Subject { prefix, from: sent_by };
        match &self.side {
            Side::Internal { .. } => self.tell_internal(&mut told, family, path, from, subject)?,
            Side::External(external) => self.tell_external(&mut told, family, path, external, subject)?,
        }
        let fits = match (family, told.next_hop) {
            (Family::Ipv4, IpAddr::V4(_)) | (Family::Ipv6, IpAddr::V6(_)) => true,
            (Family::Ipv4, IpAddr::V6(_)) => self.extended_next_hop,
            (Family::Ipv6, IpAddr::V4(_)) => false,
        };
        (fits && filter::is_host(told.next_hop)).then_some(told)
    }

    fn passes(&self, subject: Subject<'_>, told: &mut PathAttributes) -> Option<()> {
        let verdict = self.filter.as_ref().map_or(Verdict::Accept, |filter| filter.apply(subject, told));
        (verdict == Verdict::Accept).then_some(())
    }

    fn tell_internal(
        &self,
        told: &mut PathAttributes,
        family: Family,
        path: &Path,
        from: Option<Role>,
        subject: Subject<'_>,
    ) -> Option<()> {
        // RFC 4271 5.1.5: LOCAL_PREF is in every UPDATE to an internal peer.
        told.local_pref = Some(local_pref(path));
        let reflected = matches!(from, Some(Role::Mesh | Role::Reflector | Role::Client));
        if !reflected {
            if self.next_hop == NextHop::Own {
                told.next_hop = self.own_next_hop(family)?;
            }
            if self.maintenance {
                // RFC 8326 section 4.2: what leads through us is the last resort.
                told.add_member(kind::COMMUNITIES, GRACEFUL_SHUTDOWN.to_be_bytes());
                told.local_pref = Some(0);
            }
            if self.letting_go {
                told.add_member(kind::LARGE_COMMUNITIES, released(self.asn));
                told.local_pref = Some(0);
            }
        }
        self.passes(subject, told)?;
        if let (Some(learned), true) = (&path.learned, reflected) {
            // RFC 4456 section 8: ORIGINATOR_ID is set once, our CLUSTER_ID goes in front. Nothing else changes.
            told.originator_id.get_or_insert(learned.router_id);
            told.cluster_list.insert(0, self.cluster_id);
        }
        Some(())
    }

    fn tell_external(
        &self,
        told: &mut PathAttributes,
        family: Family,
        path: &Path,
        external: &External,
        subject: Subject<'_>,
    ) -> Option<()> {
        if told.has_community(NO_EXPORT) || told.has_community(NO_EXPORT_SUBCONFED) {
            return None;
        }
        // RFC 9234 section 5, egress (2): what is only for customers goes to no provider, peer or route server.
        let upwards = matches!(
            external.relation,
            Some(Relation::Customer | Relation::Peer | Relation::RouteServerClient)
        );
        if upwards && told.only_to_customer().is_some() {
            return None;
        }
        // RFC 4271 5.1.4, 5.1.5; RFC 4456 section 8: none of these leaves the AS.
        if path.learned.is_some() && !external.route_server {
            told.med = None;
        }
        told.local_pref = None;
        told.originator_id = None;
        told.cluster_list.clear();
        let ours = released(self.asn);
        told.remove_members(kind::LARGE_COMMUNITIES, |member| *member == ours);
        let keeps = external.route_server || self.next_hop == NextHop::Keep;
        if !(keeps && path.learned.is_some()) {
            told.next_hop = self.own_next_hop(family)?;
        }
        if self.maintenance {
            told.add_member(kind::COMMUNITIES, GRACEFUL_SHUTDOWN.to_be_bytes());
        }
        self.passes(subject, told)?;
        told.local_pref = None;
        external.leave(told, path.learned.is_some());
        Some(())
    }
}

impl External {
    /// What crossing the border does to the AS path and to OTC.
    fn leave(&self, told: &mut PathAttributes, learned: bool) {
        if self.remove_private {
            told.as_path.remove(filter::is_private);
        }
        if let Some(theirs) = self.overridden {
            told.as_path.replace(theirs, self.asn);
        }
        if !(self.route_server && learned) {
            self.behind.into_iter().for_each(|asn| told.as_path.prepend(asn));
            told.as_path.prepend(self.asn);
        }
        // RFC 9234 section 5, egress (1).
        let downwards =
            matches!(self.relation, Some(Relation::Provider | Relation::Peer | Relation::RouteServer));
        if downwards && told.only_to_customer().is_none() {
            told.set_other(kind::OTC, bytes::Bytes::copy_from_slice(&self.asn.to_be_bytes()));
        }
    }
}
