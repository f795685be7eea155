//! A new configuration against the one in force: what did not change keeps its session.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::Speaker;
use super::peer::{INCOMING, OUTGOING, Peer};
use crate::config::{ConnectMode, Neighbour, Role, SpeakerConfig};
use crate::event::Action;
use crate::export::policy::GroupKey;
use crate::message::Notification;
use crate::message::attribute::PathAttributes;
use crate::message::notification::cease;
use crate::rib::Path;
use crate::session::fsm::{FsmEvent, State};
use crate::types::Family;

impl Speaker {
    pub(super) fn on_configured(&mut self, config: Arc<SpeakerConfig>) {
        let mistakes: Vec<String> = config.mistakes().iter().map(ToString::to_string).collect();
        if !mistakes.is_empty() {
            self.actions.push(Action::Refused { mistakes });
            return;
        }
        if self.stopped {
            return;
        }
        let before = std::mem::replace(&mut self.config, Arc::clone(&config));
        self.configure_originated(&before);
        let gone: Vec<IpAddr> =
            self.peers.keys().filter(|address| !config.neighbours.contains_key(address)).copied().collect();
        gone.into_iter().for_each(|address| self.remove_peer(address));
        if differs_for_all(&before, &config) {
            let all: Vec<IpAddr> = self.peers.keys().copied().collect();
            all.into_iter().for_each(|address| self.reset(address));
        }
        for (address, neighbour) in &config.neighbours {
            match self.peers.get(address) {
                None => self.add_peer(*address, neighbour.clone()),
                Some(peer) if peer.neighbour == *neighbour => {}
                Some(_) => self.change_peer(*address, neighbour.clone()),
            }
        }
        if before.own_addresses != config.own_addresses {
            let all: Vec<IpNet> = self.rib.iter().map(|(prefix, _)| *prefix).collect();
            all.into_iter().for_each(|prefix| self.judge(prefix));
        }
    }

    fn configure_originated(&mut self, before: &SpeakerConfig) {
        let now = Arc::clone(&self.config);
        for prefix in before.originated.keys().filter(|prefix| !now.originated.contains_key(prefix)) {
            self.rib.withdraw(*prefix, None);
        }
        for (prefix, next_hop) in &now.originated {
            if before.originated.get(prefix) != Some(next_hop) {
                let attributes = self.interner.intern(PathAttributes::originated(*next_hop));
                self.rib.announce(*prefix, Path { learned: None, attributes, usable: true });
            }
        }
    }

    fn add_peer(&mut self, address: IpAddr, neighbour: Neighbour) {
        let connects = neighbour.connect == ConnectMode::Both;
        self.peers.insert(address, Peer::new(neighbour, self.now));
        for at in INCOMING {
            self.fire(address, at, FsmEvent::AutomaticStartPassive, None);
        }
        if connects && self.peers.get(&address).is_some_and(|p| p.slots[OUTGOING].state == State::Idle) {
            self.fire(address, OUTGOING, FsmEvent::AutomaticStart, None);
        }
    }

    fn remove_peer(&mut self, address: IpAddr) {
        if let Some(peer) = self.peers.get_mut(&address) {
            // Nothing shall wake it again.
            peer.neighbour.connect = ConnectMode::Passive;
        }
        for at in 0..3 {
            self.fire(address, at, FsmEvent::ManualStop, Some(Notification::cease(cease::DECONFIGURED)));
        }
        self.drop_routes(address);
        if let Some(old) = self.peers.remove(&address).and_then(|peer| peer.armed) {
            self.timers.remove(&(old, address));
        }
        Family::ALL.into_iter().for_each(|family| self.stop_waiting(address, family));
    }

    /// Ends all connections of a peer; they come again with what is configured now.
    fn reset(&mut self, address: IpAddr) {
        for at in 0..3 {
            if self.peers.get(&address).is_some_and(|peer| peer.slots[at].state >= State::OpenSent) {
                let cease = Notification::cease(cease::CONFIG_CHANGE);
                self.fire(address, at, FsmEvent::AutomaticStop, Some(cease));
            }
        }
        self.drop_routes(address);
    }

    fn change_peer(&mut self, address: IpAddr, neighbour: Neighbour) {
        let Some(peer) = self.peers.get_mut(&address) else { return };
        let before = std::mem::replace(&mut peer.neighbour, neighbour.clone());
        let external = |role| role == Role::External;
        if before.asn != neighbour.asn
            || before.families != neighbour.families
            || external(before.role) != external(neighbour.role)
        {
            self.reset(address);
        } else {
            self.change_live(address, &before, &neighbour);
        }
        if before.connect != neighbour.connect
            || before.port != neighbour.port
            || before.local_address != neighbour.local_address
        {
            self.change_connecting(address, &neighbour);
        }
    }

    /// What a running session can follow: its role within the AS, import and export.
    fn change_live(&mut self, address: IpAddr, before: &Neighbour, now: &Neighbour) {
        let routes: Vec<IpNet> =
            self.peers.get(&address).map(|peer| peer.adj_in.iter().copied().collect()).unwrap_or_default();
        if before.import != now.import {
            routes.iter().for_each(|prefix| self.judge(*prefix));
        }
        if before.role != now.role {
            // Who else is told of its routes has changed.
            self.pending.extend(routes);
        }
        let Some(session) = self.peers.get(&address).and_then(|peer| peer.session.as_ref()) else { return };
        let (old, new) = (session.group.clone(), GroupKey::new(&self.config, now, &session.negotiated));
        if old == new {
            return;
        }
        self.select();
        self.append_pending();
        if let Some((unsent, told)) = self.leave(address, &old) {
            self.group(new.clone()).join_from(address, told, unsent);
        }
        if let Some(session) = self.peers.get_mut(&address).and_then(|peer| peer.session.as_mut()) {
            session.group = new;
        }
        self.pull(address);
    }

    /// How we connect has changed: an attempt under way begins anew, a session stays.
    fn change_connecting(&mut self, address: IpAddr, now: &Neighbour) {
        let Some(peer) = self.peers.get(&address) else { return };
        if peer.slots[OUTGOING].state >= State::OpenSent {
            return;
        }
        self.fire(address, OUTGOING, FsmEvent::ManualStop, None);
        let free = |peer: &Peer| peer.session.is_none() && peer.slots[OUTGOING].state == State::Idle;
        if now.connect == ConnectMode::Both && self.peers.get(&address).is_some_and(free) {
            self.fire(address, OUTGOING, FsmEvent::AutomaticStart, None);
        }
    }
}

/// Whether what every OPEN or every reflected route says has changed.
fn differs_for_all(before: &SpeakerConfig, now: &SpeakerConfig) -> bool {
    before.asn != now.asn
        || before.router_id != now.router_id
        || before.effective_cluster_id() != now.effective_cluster_id()
        || before.graceful_restart.is_some() != now.graceful_restart.is_some()
}
