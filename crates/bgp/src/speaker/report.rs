//! What people see of the speaker.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::Speaker;
use super::peer::Peer;
use crate::config::{Role, SpeakerConfig};
use crate::event::{PeerStatus, RouteStatus};
use crate::message::Nlri;
use crate::message::attribute::PathAttributes;
use crate::rib::decision::local_pref;

impl Speaker {
    /// The configuration in force.
    pub fn config(&self) -> &SpeakerConfig {
        &self.config
    }

    /// All sessions, by address.
    pub fn peers(&self) -> Vec<PeerStatus> {
        let mut all = Vec::with_capacity(self.peers.len());
        for (address, peer) in &self.peers {
            let slot = peer.furthest();
            let group = peer.session.as_ref().and_then(|session| self.groups.get(&session.group));
            let entries = peer.adj_in.entries(&self.rib, *address);
            all.push(PeerStatus {
                name: peer.neighbour.name.clone(),
                address: *address,
                asn: peer.neighbour.asn.number(),
                role: peer.neighbour.role,
                state: slot.state,
                since: slot.since,
                received: peer.adj_in.len(),
                usable: entries.filter(|(_, path, _)| path.usable).count(),
                stale: peer.stale.len(),
                advertised: group.map_or(0, |group| group.advertised(*address)),
                updates: peer.updates,
                last_error: peer.held.as_ref().map(|held| held.why.clone()).or(peer.last_error.clone()),
                told: peer.told.clone(),
                ignored: peer.ignored,
                remark: peer.remark.clone(),
                leaving: peer.is_leaving().then(|| self.why_it_stays(*address)),
            });
        }
        all
    }

    /// Whether there is a session with a neighbour.
    pub fn is_established(&self, peer: IpAddr) -> bool {
        self.peers.get(&peer).is_some_and(|peer| peer.session.is_some())
    }

    /// Neighbours that nobody lists, and of whom something is there: a session, or routes that are kept.
    pub fn dynamic_peers(&self) -> impl Iterator<Item = IpAddr> {
        self.peers.iter().filter(|(_, peer)| peer.dynamic).map(|(address, _)| *address)
    }

    /// Whether routes of a neighbour are kept over its restart.
    pub fn is_stale(&self, peer: IpAddr) -> bool {
        self.peers.get(&peer).is_some_and(|peer| !peer.stale.is_empty())
    }

    /// All paths, by prefix.
    pub fn routes(&self) -> Vec<RouteStatus> {
        let mut all = vec![];
        for (_, destination) in self.rib.iter() {
            let prefix = destination.prefix;
            for path in destination.paths() {
                let from = path.source();
                let attributes = &path.attributes.path;
                let peer = from.and_then(|from| self.peers.get(&from));
                all.push(RouteStatus {
                    prefix,
                    next_hop: attributes.next_hop,
                    from,
                    originator_id: attributes.originator_id,
                    local_pref: local_pref(path),
                    as_path: attributes.as_path.to_string(),
                    med: attributes.med,
                    communities: attributes.communities(),
                    best: destination.best().is_some_and(|best| best.same_as(path)),
                    usable: path.usable,
                    stale: peer.is_some_and(|peer| peer.stale.contains(&Nlri { prefix, id: path.their_id })),
                });
            }
        }
        all
    }

    /// What a peer has been told, when it has read all; nothing without a session.
    pub fn advertised(&self, peer: IpAddr) -> Vec<(Nlri, PathAttributes)> {
        let session = self.peers.get(&peer).and_then(|peer| peer.session.as_ref());
        let group = session.and_then(|session| self.groups.get(&session.group));
        let told = group.into_iter().flat_map(|group| group.told_to(&self.rib, peer));
        told.map(|(nlri, attributes)| (nlri, attributes.clone())).collect()
    }

    /// Paths that a peer has told us, as they came, each with whether it is let in and whether it is the best one.
    pub fn received_paths(&self, peer: IpAddr) -> Vec<(Nlri, PathAttributes, bool, bool)> {
        let all = self.peers.get(&peer).into_iter().flat_map(|known| known.adj_in.entries(&self.rib, peer));
        let mut all: Vec<_> = all
            .map(|(nlri, path, destination)| {
                let is_best = destination.best().is_some_and(|best| best.same_as(path));
                (nlri, path.received.path.clone(), path.usable, is_best)
            })
            .collect();
        all.sort_unstable_by_key(|(nlri, ..)| *nlri);
        all
    }

    /// Peers whose routes are in use: with a session, with routes kept over their restart, or with routes of ours kept over
    /// our own, from which they are not back yet. After a restart, these are the ones to wait for
    /// ([`crate::config::Restarted`]).
    pub fn relied_on(&self) -> BTreeSet<IpAddr> {
        self.peers.iter().filter(|(_, peer)| peer.is_relied_on()).map(|(address, _)| *address).collect()
    }

    /// Of the peers whose routes are in use: those that we reflect to.
    pub fn reflected_to(&self) -> BTreeSet<IpAddr> {
        let is_client = |peer: &Peer| peer.is_relied_on() && peer.neighbour.role == Role::Client;
        self.peers.iter().filter(|(_, peer)| is_client(peer)).map(|(address, _)| *address).collect()
    }

    /// Whether a restart is still waiting for peers' tables.
    pub fn is_synced(&self) -> bool {
        self.deferral.is_none()
    }
}
