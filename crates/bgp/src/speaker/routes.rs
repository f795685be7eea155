//! UPDATEs into the RIB (RFC 4271 9.1.1), loop rules (RFC 4456 section 8), import rule and filter, limits.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;

use super::Speaker;
use super::peer::{Held, Peer};
use crate::config::{Claims, Import, Neighbour, Relation, Role, SpeakerConfig};
use crate::event::Action;
use crate::filter::{Subject, Verdict};
use crate::message::attribute::{GRACEFUL_SHUTDOWN, LLGR_STALE, PathAttributes, kind};
use crate::message::refresh::{self, Subtype};
use crate::message::update::{Treatment, Update};
use crate::message::{Nlri, Notification};
use crate::rib::{Attributes, Interner, Path};
use crate::session::fsm::FsmEvent;
use crate::types::{Families, Family};

/// How long a peer may take from its BoRR to its EoRR (RFC 7313 section 4 asks for an upper bound).
const REFRESH_TIME: Duration = Duration::from_secs(360);

impl Speaker {
    /// Part of what a peer sent is not used as it came.
    fn ignore(&mut self, address: IpAddr, what: String) {
        if let Some(peer) = self.peers.get_mut(&address) {
            peer.ignored += 1;
            peer.remark = Some(what.clone());
        }
        self.actions.push(Action::Ignoring { peer: address, what });
    }

    pub(super) fn on_update(&mut self, address: IpAddr, update: Update) {
        if let Some(peer) = self.peers.get_mut(&address) {
            peer.updates += 1;
        }
        if let Some(peer) = self.peers.get_mut(&address)
            && update.faults.iter().any(|fault| fault.treatment == Treatment::Withdraw)
        {
            peer.refused.withdrawn = peer.refused.withdrawn.wrapping_add(1);
        }
        for fault in &update.faults {
            let what = format!("attribute {}: {} ({:?})", fault.kind, fault.what, fault.treatment);
            self.ignore(address, what);
        }
        self.remove_routes(address, update.withdrawn);
        for (attributes, prefixes) in update.announced {
            match self.loop_in(address, &attributes) {
                // The prefix has no longer the route that it had: it is withdrawn, never left as it was.
                Some(looped) => {
                    self.count_loop(address, looped);
                    // What several reflectors tell each other is nothing that anybody should look into.
                    if looped == Looped::As {
                        let what = format!("{} prefixes: our AS number is in the AS path", prefixes.len());
                        self.ignore(address, what);
                    }
                    self.remove_routes(address, prefixes);
                }
                None => self.announce(address, attributes, prefixes),
            }
        }
        if let Some(family) = update.end_of_rib {
            // RFC 4724 section 4.2: what was not announced again is gone.
            self.sweep(address, Families::from_iter([family]));
            self.stop_waiting(address, family);
        }
    }

    /// Why a route has come back to where it was.
    fn loop_in(&self, address: IpAddr, attributes: &PathAttributes) -> Option<Looped> {
        let options = self.peers.get(&address).map(|peer| &peer.neighbour.options);
        let allowed = options.map_or(0, |options| options.allow_own_as);
        let local = options.and_then(|options| options.local_as).map(|local| local.asn.number());
        let mut ours = std::iter::once(self.config.asn.number()).chain(local);
        if ours.any(|asn| attributes.as_path.count(asn) > allowed) {
            return Some(Looped::As); // RFC 4271 9.1.2
        }
        if attributes.originator_id == Some(self.config.router_id) {
            return Some(Looped::Originator); // RFC 4456 section 8
        }
        if attributes.cluster_list.contains(&self.config.effective_cluster_id()) {
            return Some(Looped::Cluster); // RFC 4456 section 8
        }
        None
    }

    fn count_loop(&mut self, address: IpAddr, looped: Looped) {
        let Some(peer) = self.peers.get_mut(&address) else { return };
        let counter = match looped {
            Looped::As => &mut peer.refused.as_loop,
            Looped::Originator => &mut peer.refused.originator_loop,
            Looped::Cluster => &mut peer.refused.cluster_loop,
        };
        *counter = counter.wrapping_add(1);
    }

    fn announce(&mut self, address: IpAddr, attributes: PathAttributes, prefixes: Vec<Nlri>) {
        let received = self.interner.intern(attributes);
        let monitored = if self.is_monitored() { prefixes.clone() } else { vec![] };
        let Some(peer) = self.peers.get_mut(&address) else { return };
        let Some(session) = &mut peer.session else { return };
        let mut importer =
            Importer { claims: &self.claims, config: &self.config, interner: &mut self.interner };
        for nlri in &prefixes {
            if let Some((waiting, _)) = session.refreshing.get_mut(&Family::of(&nlri.prefix)) {
                waiting.remove(nlri);
            }
        }
        let mut exceeded = None;
        for nlri in prefixes {
            peer.stale.remove(&nlri);
            let (usable, attributes) = importer.import(&peer.neighbour, address, &nlri.prefix, &received);
            let Some(session) = &mut peer.session else { break };
            let shared = session.shared(&received, attributes, usable);
            let (destination, is_new) = self.rib.announce(nlri.prefix, Path::new(shared, nlri.id));
            if is_new {
                peer.adj_in.insert(&nlri, destination);
                let family = Family::of(&nlri.prefix);
                let over = |max: &&crate::config::MaxPrefixes| peer.adj_in.count(family) > max.limit;
                if let Some(max) = peer.neighbour.options.max_prefixes.get(&family).filter(over) {
                    exceeded = Some((family, *max));
                    break;
                }
            }
        }
        if peer.stale.is_empty() {
            peer.stale_until = None;
            peer.last_resort.clear();
        }
        monitored.into_iter().for_each(|nlri| self.note_path(address, nlri));
        match exceeded {
            Some((family, max)) => self.on_too_many(address, family, max),
            None => self.warn_of_many(address),
        }
    }

    /// RFC 4486 section 4: the session ends, and comes again when the restart timer says so.
    fn on_too_many(&mut self, address: IpAddr, family: Family, max: crate::config::MaxPrefixes) {
        let why = format!("more than {} prefixes of {family}", max.limit);
        if let Some(peer) = self.peers.get_mut(&address) {
            peer.held = Some(Held { until: max.restart.map(|time| self.now + time), why });
        }
        self.stop_peer(address, FsmEvent::AutomaticStop, &Notification::max_prefixes(family, max.limit));
        self.drop_routes(address);
    }

    fn warn_of_many(&mut self, address: IpAddr) {
        let Some(peer) = self.peers.get_mut(&address) else { return };
        for (family, max) in &peer.neighbour.options.max_prefixes {
            let (count, percent) = (peer.adj_in.count(*family), u64::from(max.warn_percent));
            let many = u64::from(count) * 100 >= u64::from(max.limit) * percent;
            if percent > 0 && many && !peer.warned.contains(*family) {
                peer.warned.insert(*family);
                let what = format!("{count} prefixes of {family}, {} are allowed", max.limit);
                peer.remark = Some(what.clone());
                self.actions.push(Action::Warned { peer: address, what });
            }
        }
    }

    /// Claims changed: routes that came before their claim become usable now, others cease to be.
    pub(super) fn on_claimed(&mut self, claims: Arc<Claims>) {
        let before = std::mem::replace(&mut self.claims, claims);
        let now = Arc::clone(&self.claims);
        let differs = |prefix: &&IpNet| before.get(*prefix) != now.get(*prefix);
        let gone = before.keys().filter(|prefix| !now.contains_key(*prefix));
        for prefix in now.keys().filter(differs).chain(gone) {
            self.judge(*prefix);
        }
    }

    /// Applies import rule and filters to a prefix again.
    pub(super) fn judge(&mut self, prefix: IpNet) {
        let mut importer =
            Importer { claims: &self.claims, config: &self.config, interner: &mut self.interner };
        let peers = &self.peers;
        self.rib.judge(&prefix, |path| {
            let Some((address, peer)) = path.source().and_then(|source| Some((source, peers.get(&source)?)))
            else {
                return (false, Arc::clone(&path.received));
            };
            let (usable, attributes) = importer.import(&peer.neighbour, address, &prefix, &path.received);
            if is_last_resort(peer, &Nlri { prefix, id: path.their_id }) {
                return (usable, importer.changed(&attributes.path, mark_long_lived));
            }
            (usable, attributes)
        });
        self.note_paths(prefix);
    }

    /// Judges all routes of a neighbour again.
    pub(super) fn judge_all_of(&mut self, address: IpAddr) {
        let all: Vec<IpNet> = self
            .peers
            .get(&address)
            .map(|peer| peer.adj_in.destinations().map(|id| self.rib.at(id).prefix).collect())
            .unwrap_or_default();
        all.into_iter().for_each(|prefix| self.judge(prefix));
    }

    /// The restart time is over and the peer is not back: its routes become a last resort (RFC 9494 section 4.2).
    pub(super) fn begin_last_resort(&mut self, address: IpAddr) {
        let now = self.now;
        let Some(peer) = self.peers.get_mut(&address) else { return };
        peer.restart_until = None;
        peer.stale_until = None;
        let short: Families =
            Family::ALL.into_iter().filter(|family| !peer.long_lived.contains_key(family)).collect();
        for (family, time) in std::mem::take(&mut peer.long_lived) {
            peer.last_resort.insert(family, now + time);
        }
        // RFC 9494 section 4.2: what says NO_LLGR is not kept.
        let never = |nlri: &&Nlri| {
            let path = self.rib.path(nlri, Some(address));
            path.is_some_and(|p| p.received.path.has_community(crate::message::attribute::NO_LLGR))
        };
        let gone: Vec<Nlri> = peer.stale.iter().filter(never).copied().collect();
        let kept: Vec<IpNet> = peer.stale.iter().map(|nlri| nlri.prefix).collect();
        self.remove_routes(address, gone);
        self.sweep(address, short);
        kept.into_iter().for_each(|prefix| self.judge(prefix));
    }

    pub(super) fn on_refresh_message(&mut self, address: IpAddr, subtype: Subtype, family: Family) {
        let Some(peer) = self.peers.get_mut(&address) else { return };
        let Some(session) = &mut peer.session else { return };
        if !session.negotiated.families.contains(family) {
            return;
        }
        match subtype {
            // RFC 2918: the peer is told everything of a family again.
            Subtype::Request => {
                let group = session.group;
                if let Some(group) = self.groups.get_mut(&group) {
                    group.refresh(address, family);
                    self.pull(address);
                }
            }
            // RFC 7313 section 4: markers of a peer that did not offer them are ignored.
            Subtype::Begin | Subtype::End if !session.negotiated.enhanced_refresh => {}
            Subtype::Begin => {
                let all =
                    peer.adj_in.paths(&self.rib, address).filter(|nlri| Family::of(&nlri.prefix) == family);
                session.refreshing.insert(family, (all.collect(), self.now + REFRESH_TIME));
            }
            Subtype::End => {
                if let Some((gone, _)) = session.refreshing.remove(&family) {
                    self.remove_routes(address, gone.into_iter().collect());
                }
            }
        }
        self.rearm(address);
    }

    /// A refresh that has not ended in time is taken for ended.
    pub(super) fn check_refresh_timers(&mut self, address: IpAddr) {
        let now = self.now;
        let session = self.peers.get(&address).and_then(|peer| peer.session.as_ref());
        let due = session.into_iter().flat_map(|session| &session.refreshing);
        let due: Vec<Family> =
            due.filter(|(_, (_, until))| *until <= now).map(|(family, _)| *family).collect();
        due.into_iter().for_each(|family| self.on_refresh_message(address, Subtype::End, family));
    }

    /// Asks a peer for its whole table again.
    pub(super) fn ask_refresh(&mut self, address: IpAddr) {
        let Some(peer) = self.peers.get_mut(&address) else { return };
        let Some(session) = peer.session.as_ref().filter(|session| session.negotiated.route_refresh) else {
            let what = "it does not answer route refreshes, or has no session".to_owned();
            self.actions.push(Action::Warned { peer: address, what });
            return;
        };
        let (conn, slot) = (session.conn, session.slot);
        for family in session.negotiated.families.iter() {
            let bytes = refresh::encode(Subtype::Request, family);
            let _ = peer.slots[slot].gave(bytes.len(), self.now);
            self.actions.push(Action::Send { conn, bytes });
        }
    }
}

/// How a route has come back to where it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Looped {
    As,
    Originator,
    Cluster,
}

fn is_last_resort(peer: &Peer, nlri: &Nlri) -> bool {
    peer.last_resort.contains_key(&Family::of(&nlri.prefix)) && peer.stale.contains(nlri)
}

fn mark_long_lived(attributes: &mut PathAttributes) {
    attributes.add_member(kind::COMMUNITIES, LLGR_STALE.to_be_bytes());
}

/// What happens to a route between the adj-RIB-in and the decision process.
struct Importer<'a> {
    claims: &'a Claims,
    config: &'a SpeakerConfig,
    interner: &'a mut Interner,
}

impl Importer<'_> {
    /// Whether a route is used, and with which attributes.
    fn import(
        &mut self,
        neighbour: &Neighbour,
        address: IpAddr,
        prefix: &IpNet,
        received: &Arc<Attributes>,
    ) -> (bool, Arc<Attributes>) {
        let as_it_came = || Arc::clone(received);
        let next_hop = received.path.next_hop;
        let claimed = || self.claims.get(prefix).is_some_and(|holders| holders.contains(&next_hop));
        let rule = match neighbour.import {
            Import::None => false,
            Import::All => !self.config.options.is_claimed_only(prefix) || claimed(),
            Import::Claimed => claimed(),
        };
        // RFC 4271 5.1.3: never by way of ourselves.
        if !rule || self.config.own_addresses.contains(&next_hop) {
            return (false, as_it_came());
        }
        let options = &neighbour.options;
        if neighbour.role != Role::External && options.import.is_none() {
            return (true, as_it_came());
        }
        let mut attributes = received.path.clone();
        if neighbour.role == Role::External && !enters(neighbour, &mut attributes) {
            return (false, as_it_came());
        }
        if let Some(filter) = &options.import {
            let subject = Subject { prefix, from: Some((address, neighbour.role)) };
            if filter.apply(subject, &mut attributes) == Verdict::Reject {
                return (false, as_it_came());
            }
            if self.config.own_addresses.contains(&attributes.next_hop) {
                return (false, as_it_came());
            }
        }
        let same = attributes == received.path;
        (true, if same { as_it_came() } else { self.interner.intern(attributes) })
    }

    fn changed(
        &mut self,
        attributes: &PathAttributes,
        change: impl FnOnce(&mut PathAttributes),
    ) -> Arc<Attributes> {
        let mut attributes = attributes.clone();
        change(&mut attributes);
        self.interner.intern(attributes)
    }
}

/// What crossing the border does to a route; false: it may not cross it.
fn enters(neighbour: &Neighbour, attributes: &mut PathAttributes) -> bool {
    let theirs = neighbour.asn.number();
    // RFC 9234 section 5, ingress (1) to (3): our role says what theirs is.
    match (neighbour.options.relation, attributes.only_to_customer()) {
        (Some(Relation::Provider | Relation::RouteServer), Some(_)) => return false,
        (Some(Relation::Peer), Some(asn)) if asn != theirs => return false,
        (Some(Relation::Customer | Relation::Peer | Relation::RouteServerClient), None) => {
            attributes.set_other(kind::OTC, bytes::Bytes::copy_from_slice(&theirs.to_be_bytes()));
        }
        _ => {}
    }
    if let Some(local) = neighbour.options.local_as.filter(|local| !local.alone) {
        attributes.as_path.prepend(local.asn.number());
    }
    // RFC 8326 section 4.1: whoever is about to go is the last resort.
    if attributes.has_community(GRACEFUL_SHUTDOWN) {
        attributes.local_pref = Some(0);
    }
    true
}
