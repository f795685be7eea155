//! A new configuration against the one in force: what did not change keeps its session.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::Speaker;
use super::peer::{Held, INCOMING, OUTGOING, Peer};
use crate::config::{ConnectMode, Neighbour, NeighbourOptions, Role, SpeakerConfig, Standing};
use crate::event::Action;
use crate::message::Nlri;
use crate::message::Notification;
use crate::message::attribute::PathAttributes;
use crate::message::notification::cease;
use crate::rib::{DestId, Path};
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
            self.peers.keys().filter(|address| config.neighbour_at(**address).is_none()).copied().collect();
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
        for (address, peer) in &mut self.peers {
            peer.dynamic = !config.neighbours.contains_key(address);
            if peer.is_gone() {
                self.leaving.insert(*address);
            }
        }
        self.follow_ranges(&config);
        if before.own_addresses != config.own_addresses
            || before.options.claimed_only != config.options.claimed_only
        {
            let all: Vec<IpNet> = self.rib.iter().map(|(_, destination)| destination.prefix).collect();
            all.into_iter().for_each(|prefix| self.judge(prefix));
        }
        let rules = (before.options.med, before.options.multipath);
        if rules != (config.options.med, config.options.multipath) {
            self.rib.reconsider_all(|_| true);
        }
        if before.effective_cluster_id() != config.effective_cluster_id() {
            self.drop_loops(config.effective_cluster_id());
        }
        if before.options.maintenance != config.options.maintenance
            || before.effective_cluster_id() != config.effective_cluster_id()
            || before.own_addresses != config.own_addresses
        {
            let all: Vec<IpAddr> = self.peers.keys().copied().collect();
            all.into_iter().for_each(|address| self.regroup(address));
        }
    }

    /// RFC 4456 section 8, for what came before the cluster id was ours.
    fn drop_loops(&mut self, cluster_id: std::net::Ipv4Addr) {
        for address in self.peers.keys().copied().collect::<Vec<IpAddr>>() {
            let Some(peer) = self.peers.get(&address) else { continue };
            let entries = peer.adj_in.entries(&self.rib, address);
            let loops = entries.filter(|(_, path, _)| path.received.path.cluster_list.contains(&cluster_id));
            let loops: Vec<Nlri> = loops.map(|(nlri, ..)| nlri).collect();
            self.remove_routes(address, loops);
        }
    }

    fn configure_originated(&mut self, before: &SpeakerConfig) {
        let now = Arc::clone(&self.config);
        for prefix in before.originated.keys().filter(|prefix| !now.originated.contains_key(prefix)) {
            self.rib.withdraw(&Nlri::from(*prefix), None);
        }
        for (prefix, next_hop) in &now.originated {
            if before.originated.get(prefix) != Some(next_hop) {
                let attributes = self.interner.intern(PathAttributes::originated(*next_hop));
                self.rib.announce(*prefix, Path::own(attributes));
            }
        }
    }

    pub(super) fn add_peer(&mut self, address: IpAddr, neighbour: Neighbour) {
        self.start_peer(address, Peer::new(neighbour, self.now));
    }

    pub(super) fn start_peer(&mut self, address: IpAddr, peer: Peer) {
        let connects = peer.may_connect();
        self.peers.insert(address, peer);
        for at in INCOMING {
            self.fire(address, at, FsmEvent::AutomaticStartPassive, None);
        }
        if connects && self.peers.get(&address).is_some_and(|p| p.slots[OUTGOING].state == State::Idle) {
            self.fire(address, OUTGOING, FsmEvent::AutomaticStart, None);
        }
    }

    pub(super) fn remove_peer(&mut self, address: IpAddr) {
        if let Some(peer) = self.peers.get_mut(&address) {
            // Nothing shall wake it again.
            peer.neighbour.connect = ConnectMode::Passive;
        }
        self.stop_peer(address, FsmEvent::ManualStop, &Notification::cease(cease::DECONFIGURED));
        self.drop_routes(address);
        if let Some(mut peer) = self.peers.remove(&address) {
            self.timers.arm(address, &mut peer.armed, None);
        }
        Family::ALL.into_iter().for_each(|family| self.stop_waiting(address, family));
    }

    /// Ends all connections of a peer; they come again with what is configured now.
    fn reset(&mut self, address: IpAddr) {
        self.stop_peer(address, FsmEvent::AutomaticStop, &Notification::cease(cease::CONFIG_CHANGE));
        self.drop_routes(address);
    }

    pub(super) fn change_peer(&mut self, address: IpAddr, neighbour: Neighbour) {
        let Some(peer) = self.peers.get_mut(&address) else { return };
        let neighbour = Neighbour { role: peer.role_of(&neighbour), ..neighbour };
        if neighbour.options.standing != Standing::Leaving {
            (peer.leaving_since, peer.letting_go) = (None, false);
        }
        let before = std::mem::replace(&mut peer.neighbour, neighbour.clone());
        let external = |role| role == Role::External;
        if before.asn != neighbour.asn
            || before.families != neighbour.families
            || external(before.role) != external(neighbour.role)
            || needs_new_open(&before.options, &neighbour.options)
        {
            self.reset(address);
        } else {
            self.change_live(address, &before, &neighbour);
        }
        if before.options.shutdown != neighbour.options.shutdown {
            self.change_shutdown(address, neighbour.options.shutdown.as_deref());
        }
        if before.connect != neighbour.connect
            || before.port != neighbour.port
            || before.local_address != neighbour.local_address
            || before.options.transport != neighbour.options.transport
        {
            self.change_connecting(address, &neighbour);
        }
        self.expect_leaving(address);
    }

    /// What a running session can follow: its role within the AS, import and export.
    fn change_live(&mut self, address: IpAddr, before: &Neighbour, now: &Neighbour) {
        let enters = |options: &NeighbourOptions| {
            (options.import.clone(), options.allow_own_as, options.local_as, options.relation)
        };
        if before.import != now.import || enters(&before.options) != enters(&now.options) {
            self.judge_all_of(address);
        }
        if before.role != now.role {
            // Who else is told of its routes has changed.
            let routes = self.peers.get(&address).map(|peer| peer.adj_in.destinations());
            let routes: Vec<DestId> = routes.into_iter().flatten().collect();
            for id in routes {
                self.rib.tell(id);
                self.pace.pending(self.now);
            }
        }
        self.regroup(address);
    }

    /// Moves a peer to the group that it belongs to now; it is told the difference.
    pub(super) fn regroup(&mut self, address: IpAddr) {
        let Some(peer) = self.peers.get(&address) else { return };
        let Some(session) = peer.session.as_ref() else { return };
        let (old, key) = (session.group, peer.group_key(&self.config, &session.negotiated));
        if self.groups.get(&old).is_some_and(|group| *group.key() == key) {
            return;
        }
        self.select();
        self.append_all_pending();
        let moved = self.groups.get_mut(&old).and_then(|group| group.move_out(&self.rib, address));
        let new = self.group(key);
        if let (Some(moved), Some(group)) = (moved, self.groups.get_mut(&new)) {
            group.join_from(&self.rib, address, moved);
        }
        if let Some(session) = self.peers.get_mut(&address).and_then(|peer| peer.session.as_mut()) {
            session.group = new;
        }
        self.prune(old);
        self.pull(address);
    }

    /// The operator has shut a session down, or lets it come again.
    fn change_shutdown(&mut self, address: IpAddr, words: Option<&str>) {
        let Some(words) = words else { return self.release(address) };
        if let Some(peer) = self.peers.get_mut(&address) {
            let why = format!("shut down by the operator: {words}");
            peer.last_error = Some(why.clone());
            peer.held = Some(Held { until: None, why });
        }
        self.stop_peer(address, FsmEvent::AutomaticStop, &Notification::shutdown(words));
        self.fire(address, OUTGOING, FsmEvent::ManualStop, None);
        self.drop_routes(address);
    }

    /// How we connect has changed: an attempt under way begins anew, a session stays.
    fn change_connecting(&mut self, address: IpAddr, now: &Neighbour) {
        let Some(peer) = self.peers.get(&address) else { return };
        if peer.slots[OUTGOING].state >= State::OpenSent {
            return;
        }
        self.fire(address, OUTGOING, FsmEvent::ManualStop, None);
        let free = |peer: &Peer| {
            peer.session.is_none() && peer.slots[OUTGOING].state == State::Idle && peer.held.is_none()
        };
        if now.connect == ConnectMode::Both && self.peers.get(&address).is_some_and(free) {
            self.fire(address, OUTGOING, FsmEvent::AutomaticStart, None);
        }
    }
}

/// Whether what our OPEN to a neighbour says, or what its routes were read with, has changed.
fn needs_new_open(before: &NeighbourOptions, now: &NeighbourOptions) -> bool {
    let said = |options: &NeighbourOptions| {
        (
            (options.hold_time, options.send_hold, options.extended_messages, options.enhanced_refresh),
            (options.extended_next_hop, options.add_path.receive, options.add_path.send > 0),
            (options.relation, options.relation_strict, options.long_lived),
            (options.local_as.map(|local| local.asn), options.first_as, options.notifications_restart),
        )
    };
    said(before) != said(now)
}

/// Whether what every OPEN says has changed.
fn differs_for_all(before: &SpeakerConfig, now: &SpeakerConfig) -> bool {
    before.asn != now.asn
        || before.router_id != now.router_id
        || before.graceful_restart.is_some() != now.graceful_restart.is_some()
        || notifications(before) != notifications(now)
}

fn notifications(config: &SpeakerConfig) -> bool {
    config.graceful_restart.as_ref().is_some_and(|restart| restart.notifications)
}
