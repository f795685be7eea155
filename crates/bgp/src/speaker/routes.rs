//! UPDATEs into the RIB (RFC 4271 9.1.1), loop rules (RFC 4456 section 8), and the import rule.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::Speaker;
use crate::config::{Claims, Import};
use crate::event::Action;
use crate::message::attribute::PathAttributes;
use crate::message::update::Update;
use crate::rib::Path;
use crate::types::{Families, Family};

impl Speaker {
    pub(super) fn on_update(&mut self, address: IpAddr, update: Update) {
        for fault in &update.faults {
            let what = format!("attribute {}: {} ({:?})", fault.kind, fault.what, fault.treatment);
            self.actions.push(Action::Ignoring { peer: address, what });
        }
        self.remove_routes(address, update.withdrawn);
        for (attributes, prefixes) in update.announced {
            match self.loop_in(&attributes) {
                // The prefix has no longer the route that it had: it is withdrawn, never left as it was.
                Some(what) => {
                    let what = format!("{} prefixes: {what}", prefixes.len());
                    self.actions.push(Action::Ignoring { peer: address, what });
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
    fn loop_in(&self, attributes: &PathAttributes) -> Option<&'static str> {
        if attributes.as_path.contains(self.config.asn.number()) {
            return Some("our AS number is in the AS path"); // RFC 4271 9.1.2
        }
        if attributes.originator_id == Some(self.config.router_id) {
            return Some("we are the originator"); // RFC 4456 section 8
        }
        if attributes.cluster_list.contains(&self.config.effective_cluster_id()) {
            return Some("our cluster id is in the cluster list"); // RFC 4456 section 8
        }
        None
    }

    fn announce(&mut self, address: IpAddr, attributes: PathAttributes, prefixes: Vec<IpNet>) {
        let attributes = self.interner.intern(attributes);
        let Some(peer) = self.peers.get_mut(&address) else { return };
        let Some(session) = &peer.session else { return };
        for prefix in prefixes {
            let usable = usable(&self.claims, peer.neighbour.import, &prefix, &attributes.path)
                && !self.config.own_addresses.contains(&attributes.path.next_hop);
            peer.adj_in.insert(prefix);
            peer.stale.remove(&prefix);
            let (learned, attributes) = (Some(Arc::clone(&session.learned)), Arc::clone(&attributes));
            self.rib.announce(prefix, Path { learned, attributes, usable });
        }
        if peer.stale.is_empty() {
            peer.stale_until = None;
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

    /// Applies the import rule to a prefix again.
    pub(super) fn judge(&mut self, prefix: IpNet) {
        let (claims, peers, own) = (&self.claims, &self.peers, &self.config.own_addresses);
        self.rib.judge(prefix, |path| {
            let import =
                path.source().and_then(|source| peers.get(&source)).map(|peer| peer.neighbour.import);
            let attributes = &path.attributes.path;
            usable(claims, import.unwrap_or(Import::None), &prefix, attributes)
                && !own.contains(&attributes.next_hop)
        });
    }

    /// RFC 2918: the peer is told everything of a family again.
    pub(super) fn on_refresh(&mut self, address: IpAddr, family: Family) {
        let Some((key, _)) = self.peers.get(&address).and_then(super::Peer::up) else { return };
        if let Some(group) = self.groups.get_mut(key) {
            group.refresh(address, family);
            self.pull(address);
        }
    }
}

fn usable(claims: &Claims, import: Import, prefix: &IpNet, attributes: &PathAttributes) -> bool {
    match import {
        Import::None => false,
        Import::All => true,
        Import::Claimed => claims.get(prefix).is_some_and(|holders| holders.contains(&attributes.next_hop)),
    }
}
