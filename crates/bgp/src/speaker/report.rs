//! What people see of the speaker.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::Speaker;
use super::peer::Peer;
use crate::event::{PeerStatus, RouteStatus};
use crate::rib::decision::local_pref;

impl Speaker {
    /// All sessions, by address.
    pub fn peers(&self) -> Vec<PeerStatus> {
        let mut all = Vec::with_capacity(self.peers.len());
        for (address, peer) in &self.peers {
            let slot = peer.furthest();
            let group = peer.session.as_ref().and_then(|session| self.groups.get(&session.group));
            let usable = |prefix: &&ipnet::IpNet| {
                self.rib.path(prefix, Some(*address)).is_some_and(|path| path.usable)
            };
            all.push(PeerStatus {
                name: peer.neighbour.name.clone(),
                address: *address,
                asn: peer.neighbour.asn.number(),
                role: peer.neighbour.role,
                state: slot.state,
                since: slot.since,
                received: peer.adj_in.len(),
                usable: peer.adj_in.iter().filter(usable).count(),
                stale: peer.stale.len(),
                advertised: group.map_or(0, |group| group.advertised(*address)),
                last_error: peer.last_error.clone(),
            });
        }
        all
    }

    /// All paths, by prefix.
    pub fn routes(&self) -> Vec<RouteStatus> {
        let mut all = vec![];
        for (prefix, destination) in self.rib.iter() {
            for path in destination.paths() {
                let from = path.source();
                let attributes = &path.attributes.path;
                let peer = from.and_then(|from| self.peers.get(&from));
                all.push(RouteStatus {
                    prefix: *prefix,
                    next_hop: attributes.next_hop,
                    from,
                    originator_id: attributes.originator_id,
                    local_pref: local_pref(path),
                    as_path: attributes.as_path.to_string(),
                    best: destination.best().is_some_and(|best| best.source() == from),
                    usable: path.usable,
                    stale: peer.is_some_and(|peer| peer.stale.contains(prefix)),
                });
            }
        }
        all
    }

    /// Peers whose routes are in use: with a session, or with routes kept over their restart. After a restart of our
    /// own, these are the ones to wait for ([`crate::config::Restarted`]).
    pub fn relied_on(&self) -> BTreeSet<IpAddr> {
        let relied = |(address, peer): (&IpAddr, &Peer)| {
            (peer.session.is_some() || !peer.stale.is_empty()).then_some(*address)
        };
        self.peers.iter().filter_map(relied).collect()
    }

    /// Whether a restart is still waiting for peers' tables.
    pub fn is_synced(&self) -> bool {
        self.deferral.is_none()
    }
}
