//! A session comes up or goes: export groups, and the helper's side of graceful restart (RFC 4724 section 4.2).

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;

use super::peer::{OUTGOING, Session};
use super::{Speaker, out};
use crate::config::{Role, SecondRestart};
use crate::event::Action;
use crate::export::group::Group;
use crate::export::policy::GroupKey;
use crate::rib::Learned;
use crate::session::fsm::{FsmEvent, State};
use crate::session::slot::Loss;
use crate::types::{Families, Family};

impl Speaker {
    pub(super) fn on_session_up(&mut self, address: IpAddr, at: usize) {
        let Some(peer) = self.peers.get_mut(&address) else { return };
        let slot = &peer.slots[at];
        let (Some(conn), Some(negotiated)) = (slot.conn, slot.negotiated.clone()) else { return };
        let learned = Arc::new(Learned {
            peer: address,
            router_id: negotiated.router_id,
            external: peer.neighbour.role == Role::External,
        });
        let group = GroupKey::new(&self.config, &peer.neighbour, &negotiated);
        let families = negotiated.families;
        let not_preserved: Families =
            Family::ALL.into_iter().filter(|family| !negotiated.preserved(*family)).collect();
        peer.session = Some(Session { slot: at, conn, learned, negotiated, group: group.clone() });
        peer.was_up = true;
        peer.last_error = None;
        peer.restart_until = None;
        let connecting = at != OUTGOING && peer.slots[OUTGOING].state == State::Connect;

        // RFC 4724 section 4.2: without the F bit, or without the family, its stale routes go at once.
        self.sweep(address, not_preserved);
        if connecting {
            self.fire(address, OUTGOING, FsmEvent::ManualStop, None);
        }
        self.deferral_session_up(address);
        self.join(address, group, families);
        self.actions.push(Action::PeerChanged { peer: address, up: true, reason: "established".to_owned() });
    }

    /// Puts a peer into its group, which is made if it is the first.
    fn join(&mut self, address: IpAddr, key: GroupKey, families: Families) {
        self.select();
        self.append_pending();
        let settled = self.settled_families(&key);
        self.group(key).join(address, families, settled);
        self.pull(address);
    }

    /// The group of a key, with the whole loc-RIB in it.
    pub(super) fn group(&mut self, key: GroupKey) -> &mut Group {
        let (rib, peers, limits) = (&self.rib, &self.peers, self.limits);
        self.groups.entry(key.clone()).or_insert_with(|| {
            let mut group = Group::new(key, limits);
            group
                .update(rib.iter().map(|(prefix, dest)| (*prefix, dest.best().map(|path| out(peers, path)))));
            group
        })
    }

    /// Takes a peer out of its group; returns what it may have been told, and what is unsent.
    pub(super) fn leave(
        &mut self,
        address: IpAddr,
        key: &GroupKey,
    ) -> Option<(usize, std::collections::BTreeSet<IpNet>)> {
        let group = self.groups.get_mut(key)?;
        let left = group.leave(address);
        if group.is_empty() {
            self.groups.remove(key);
        }
        left
    }

    pub(super) fn on_session_down(&mut self, address: IpAddr, at: usize, loss: &Loss) {
        let Some(peer) = self.peers.get_mut(&address) else { return };
        let Some(session) = peer.session.take_if(|session| session.slot == at) else { return };
        self.leave(address, &session.group);
        if self.stopped {
            // The kernel's routes stay as they are.
            return;
        }
        let (kept, why) = match loss {
            Loss::Connection(why) => (session.negotiated.restart_families(), why),
            Loss::Notified(why) => (Families::NONE, why),
        };
        self.keep_stale(address, kept, session.negotiated.graceful_restart.map_or(0, |restart| restart.time));
        let reason = match self.peers.get(&address).map_or(0, |peer| peer.stale.len()) {
            0 => why.clone(),
            stale => format!("{why}; {stale} routes are kept for its restart"),
        };
        self.actions.push(Action::PeerChanged { peer: address, up: false, reason });
    }

    /// Marks the routes of the families in `kept` stale and drops all others.
    fn keep_stale(&mut self, address: IpAddr, kept: Families, restart_seconds: u16) {
        let Some(restart) = self.config.graceful_restart.clone() else { return self.drop_routes(address) };
        let Some(peer) = self.peers.get_mut(&address) else { return };
        let deletes = |prefix: &IpNet, already: bool| {
            !kept.contains(Family::of(prefix)) || (already && restart.second_restart == SecondRestart::Delete)
        };
        let (gone, stale): (Vec<IpNet>, Vec<IpNet>) =
            peer.adj_in.iter().partition(|prefix| deletes(prefix, peer.stale.contains(prefix)));
        peer.stale = stale.into_iter().collect();
        if !peer.stale.is_empty() {
            peer.restart_until = Some(self.now + Duration::from_secs(u64::from(restart_seconds)));
            // From the first loss on: restart after restart does not keep a route for ever.
            peer.stale_until.get_or_insert(self.now + restart.stale_time);
        }
        self.remove_routes(address, gone);
    }

    /// Drops everything that a peer told us.
    pub(super) fn drop_routes(&mut self, address: IpAddr) {
        let all = self.peers.get(&address).map(|peer| peer.adj_in.iter().copied().collect());
        self.remove_routes(address, all.unwrap_or_default());
    }

    /// Drops the stale routes of some families.
    pub(super) fn sweep(&mut self, address: IpAddr, families: Families) {
        let Some(peer) = self.peers.get(&address) else { return };
        let swept =
            peer.stale.iter().filter(|prefix| families.contains(Family::of(prefix))).copied().collect();
        self.remove_routes(address, swept);
    }

    /// Takes paths out of the adj-RIB-in and the RIB; with the last stale one their timers stop.
    pub(super) fn remove_routes(&mut self, address: IpAddr, prefixes: Vec<IpNet>) {
        let Some(peer) = self.peers.get_mut(&address) else { return };
        for prefix in prefixes {
            peer.stale.remove(&prefix);
            if peer.adj_in.remove(&prefix) {
                self.rib.withdraw(prefix, Some(address));
            }
        }
        if peer.stale.is_empty() {
            peer.restart_until = None;
            peer.stale_until = None;
        }
    }

    /// RFC 4724 section 4.2: the restart timer while the session is down, the upper bound in any case.
    pub(super) fn check_stale_timers(&mut self, address: IpAddr) {
        let now = self.now;
        let due = |timer: Option<Duration>| timer.is_some_and(|at| at <= now);
        let expired = |peer: &super::Peer| due(peer.restart_until) || due(peer.stale_until);
        if self.peers.get(&address).is_some_and(expired) {
            self.sweep(address, Families::BOTH);
        }
    }
}
