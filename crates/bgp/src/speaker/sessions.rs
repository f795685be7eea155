//! A session comes up or goes: export groups, and the helper's side of graceful restart (RFC 4724 section 4.2,
//! RFC 8538, RFC 9494).

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use super::peer::{GroupId, OUTGOING, Peer, Session};
use super::{Speaker, outs};
use crate::bmp::Ended;
use crate::config::{Role, SecondRestart};
use crate::event::Action;
use crate::export::group::Group;
use crate::export::policy::GroupKey;
use crate::message::notification::cease;
use crate::message::{Nlri, Notification};
use crate::rib::Learned;
use crate::session::fsm::{FsmEvent, State};
use crate::session::negotiated::Negotiated;
use crate::session::slot::Loss;
use crate::types::{Families, Family};

impl Speaker {
    pub(super) fn on_session_up(&mut self, address: IpAddr, at: usize) {
        self.pace.greeted(self.now);
        let Some(peer) = self.peers.get_mut(&address) else { return };
        let slot = &peer.slots[at];
        let (Some(conn), Some(negotiated)) = (slot.conn, slot.negotiated.clone()) else { return };
        let learned = Arc::new(Learned {
            peer: address,
            router_id: negotiated.router_id,
            external: peer.neighbour.role == Role::External,
        });
        let key = peer.group_key(&self.config, &negotiated);
        let long_lived = |family: Family| {
            let said = negotiated.long_lived.iter().flatten().find(|one| one.family == family);
            // RFC 9494 section 4.2: the F bit of the phase in which the routes are.
            peer.last_resort.contains_key(&family) && said.is_some_and(|one| one.preserved)
        };
        let not_preserved: Families = Family::ALL
            .into_iter()
            .filter(|family| !negotiated.preserved(*family) && !long_lived(*family))
            .collect();
        let connecting = at != OUTGOING && peer.slots[OUTGOING].state == State::Connect;

        // RFC 4724 section 4.2: without the F bit, or without the family, its stale routes go at once.
        self.sweep(address, not_preserved);
        if connecting {
            self.fire(address, OUTGOING, FsmEvent::ManualStop, None);
        }
        let group = self.join(address, key, &negotiated);
        let Some(peer) = self.peers.get_mut(&address) else { return };
        self.sessions += 1;
        let opened = (self.sessions, self.now, peer.slots[at].opens.take());
        peer.session = Some(Session::new((at, conn), opened, learned, negotiated, group));
        peer.was_up = true;
        peer.returning_until = None;
        peer.warned = Families::NONE;
        peer.last_error = None;
        peer.restart_until = None;
        self.note_up(address);
        self.deferral_session_up(address);
        self.expect_leaving(address);
        self.pull(address);
        let reason = "established".to_owned();
        self.actions.push(Action::PeerChanged { peer: address, up: true, silent: false, reason });
    }

    /// Puts a peer into its group, which is made if it is the first.
    fn join(&mut self, address: IpAddr, key: GroupKey, negotiated: &Negotiated) -> GroupId {
        self.select();
        let settled = if self.rib.is_pending() {
            self.owes_end_of_rib = true;
            Families::NONE
        } else {
            self.settled_families(&key)
        };
        let id = self.group(key);
        if let Some(group) = self.groups.get_mut(&id) {
            group.join(&self.rib, address, negotiated.families, settled, negotiated.enhanced_refresh);
        }
        id
    }

    /// The number of the group of a key, with the whole loc-RIB in it.
    pub(super) fn group(&mut self, key: GroupKey) -> GroupId {
        if let Some((id, _)) = self.groups.iter().find(|(_, group)| *group.key() == key) {
            return *id;
        }
        let id = self.groups.last_key_value().map_or(0, |(id, _)| id + 1);
        let limit = if key.encoding.add_path.is_empty() { 1 } else { usize::MAX };
        let mut group = Group::new(key, self.limits);
        let (rules, peers) = (self.rules(), &self.peers);
        group.update(self.rib.iter().map(|(id, dest)| (id, dest.prefix, outs(peers, dest, &rules, limit))));
        self.groups.insert(id, group);
        id
    }

    /// Lets go of a group without members.
    pub(super) fn prune(&mut self, id: GroupId) {
        if self.groups.get(&id).is_some_and(Group::is_empty) {
            self.groups.remove(&id);
        }
    }

    pub(super) fn on_session_down(&mut self, address: IpAddr, at: usize, loss: &Loss) {
        let Some(peer) = self.peers.get_mut(&address) else { return };
        let Some(session) = peer.session.take_if(|session| session.slot == at) else { return };
        (peer.leaving_since, peer.letting_go) = (None, false);
        let ended = peer.slots[at].ended.take().map_or(Ended::Remote, |ended| *ended);
        self.note_down(address, session.number, ended);
        if let Some(group) = self.groups.get_mut(&session.group) {
            group.leave(address);
        }
        self.prune(session.group);
        if self.stopped {
            // The kernel's routes stay as they are.
            return;
        }
        let restart = session.negotiated.restart_families();
        let (kept, why) = match loss {
            Loss::Connection(why) => (restart, why),
            // RFC 8538 section 4: a NOTIFICATION other than Hard Reset, and the hold timer, are a restart too.
            Loss::Notified(why) | Loss::Silence(why) if session.negotiated.notifications_restart => {
                (restart, why)
            }
            Loss::Notified(why) | Loss::Silence(why) | Loss::Hard(why) => (Families::NONE, why),
        };
        let silent = matches!(loss, Loss::Silence(_));
        if kept == Families::NONE {
            self.take_configured_role(address);
        }
        self.keep_stale(address, kept, &session.negotiated);
        let reason = match self.peers.get(&address).map_or(0, |peer| peer.stale.len()) {
            0 => why.clone(),
            stale => format!("{why}; {stale} routes are kept for its restart"),
        };
        self.actions.push(Action::PeerChanged { peer: address, up: false, silent, reason });
    }

    /// What only the session held back holds now: it has ended for good.
    pub(super) fn take_configured_role(&mut self, address: IpAddr) {
        let Some(peer) = self.peers.get_mut(&address).filter(|peer| peer.session.is_none()) else { return };
        if let Some(now) = self.config.neighbour_at(address).filter(|_| peer.neighbour.role != Role::External)
        {
            peer.neighbour.role = now.role;
        }
    }

    /// Marks the routes of the families in `kept` stale and drops all others.
    fn keep_stale(&mut self, address: IpAddr, kept: Families, negotiated: &Negotiated) {
        let Some(restart) = self.config.graceful_restart.clone() else { return self.drop_routes(address) };
        let Some(peer) = self.peers.get_mut(&address) else { return };
        let deletes = |nlri: &Nlri, already: bool| {
            !kept.contains(Family::of(&nlri.prefix))
                || (already && restart.second_restart == SecondRestart::Delete)
        };
        let (gone, stale): (Vec<Nlri>, Vec<Nlri>) =
            peer.adj_in.paths(&self.rib, address).partition(|nlri| deletes(nlri, peer.stale.contains(nlri)));
        peer.stale = stale.into_iter().collect();
        if !peer.stale.is_empty() {
            let seconds = negotiated.graceful_restart.as_ref().map_or(0, |restart| restart.time);
            peer.restart_until = Some(self.now + Duration::from_secs(u64::from(seconds)));
            // From the first loss on: restart after restart does not keep a route for ever.
            peer.stale_until.get_or_insert(self.now + restart.stale_time);
            // RFC 9494 section 4.2: the peer's time, unless configuration says less.
            let most = peer.neighbour.options.long_lived.unwrap_or_default();
            let time = |family: Family| negotiated.long_lived_time(family).min(most);
            let all = kept.iter().map(|family| (family, time(family))).filter(|(_, time)| !time.is_zero());
            peer.long_lived = all.collect();
        }
        self.remove_routes(address, gone);
    }

    /// Drops everything that a peer told us.
    pub(super) fn drop_routes(&mut self, address: IpAddr) {
        let all = self.peers.get(&address).map(|peer| peer.adj_in.paths(&self.rib, address).collect());
        self.remove_routes(address, all.unwrap_or_default());
    }

    /// Drops the stale routes of some families.
    pub(super) fn sweep(&mut self, address: IpAddr, families: Families) {
        let Some(peer) = self.peers.get_mut(&address) else { return };
        let of = |nlri: &&Nlri| families.contains(Family::of(&nlri.prefix));
        let swept = peer.stale.iter().filter(of).copied().collect();
        peer.last_resort.retain(|family, _| !families.contains(*family));
        self.remove_routes(address, swept);
    }

    /// Takes paths out of the adj-RIB-in and the RIB; with the last stale one their timers stop.
    pub(super) fn remove_routes(&mut self, address: IpAddr, paths: Vec<Nlri>) {
        let monitored = if self.is_monitored() { paths.clone() } else { vec![] };
        let Some(peer) = self.peers.get_mut(&address) else { return };
        for nlri in paths {
            peer.stale.remove(&nlri);
            if let Some(withdrawn) = self.rib.withdraw(&nlri, Some(address)) {
                peer.adj_in.remove(&nlri, &withdrawn);
            }
        }
        monitored.into_iter().for_each(|nlri| self.note_path(address, nlri));
        let Some(peer) = self.peers.get_mut(&address) else { return };
        if peer.stale.is_empty() {
            peer.restart_until = None;
            peer.stale_until = None;
            peer.long_lived.clear();
            peer.last_resort.clear();
        }
    }

    /// RFC 4724 section 4.2: the restart timer while the session is down, the upper bound in any case. RFC 9494 goes on
    /// from there.
    pub(super) fn check_stale_timers(&mut self, address: IpAddr) {
        let now = self.now;
        let due = |timer: Option<Duration>| timer.is_some_and(|at| at <= now);
        let Some(peer) = self.peers.get(&address) else { return };
        let over: Families =
            peer.last_resort.iter().filter(|(_, until)| **until <= now).map(|(family, _)| *family).collect();
        let restart_over = due(peer.restart_until);
        let all_over = due(peer.stale_until);
        let long_lived = !peer.long_lived.is_empty();
        if !over.is_empty() {
            self.sweep(address, over);
        }
        if (restart_over || all_over) && long_lived {
            self.begin_last_resort(address);
        } else if restart_over || all_over {
            self.sweep(address, Families::BOTH);
            self.take_configured_role(address);
        }
    }

    /// Ends all connections of a peer, each with a NOTIFICATION that the peer understands as we mean it.
    pub(super) fn stop_peer(&mut self, address: IpAddr, event: FsmEvent, why: &Notification) {
        for at in 0..3 {
            let slot = self.peers.get(&address).map(|peer| &peer.slots[at]);
            let restarts = slot.and_then(|slot| slot.negotiated.as_ref());
            let hard = restarts.is_some_and(|negotiated| negotiated.notifications_restart);
            let ends = slot.is_some_and(|slot| slot.state >= State::OpenSent);
            if event == FsmEvent::AutomaticStop && !ends {
                continue;
            }
            // RFC 8538 section 3: only this ends the session for good where other NOTIFICATIONs do not.
            let notification = if hard { why.hard() } else { why.clone() };
            self.fire(address, at, event, Some(notification));
        }
    }

    /// Somebody else knows that the way to a peer is gone.
    pub(super) fn on_lost(&mut self, address: IpAddr, purge: bool, reason: String) {
        let Some(peer) = self.peers.get_mut(&address) else { return };
        let restarts = peer.session.as_ref().map(|session| session.negotiated.notifications_restart);
        for at in 0..3 {
            if let Some(peer) = self.peers.get_mut(&address).filter(|p| p.slots[at].state >= State::OpenSent)
            {
                peer.slots[at].last_error = Some(reason.clone());
                // RFC 9384; a NOTIFICATION that the other side takes for a restart, or none.
                let bfd = Notification::cease(cease::BFD_DOWN);
                match (purge, restarts) {
                    (true, Some(true)) => self.fire(address, at, FsmEvent::AutomaticStop, Some(bfd.hard())),
                    (true, _) | (false, Some(true)) => {
                        self.fire(address, at, FsmEvent::AutomaticStop, Some(bfd));
                    }
                    (false, _) => self.fire(address, at, FsmEvent::TcpConnectionFails, None),
                }
            }
        }
        if purge {
            self.bury(address);
            self.take_configured_role(address);
        }
        self.rearm(address);
    }

    /// A peer's forwarding is gone, and its routes with it. What it reflected leads to others: while no other reflector
    /// is there to speak for them, the last that is known of them stays until the restart timer ends it.
    fn bury(&mut self, address: IpAddr) {
        let reflects = |peer: &Peer| peer.neighbour.role == Role::Reflector;
        let others = self
            .peers
            .iter()
            .any(|(other, peer)| *other != address && reflects(peer) && peer.session.is_some());
        if others || !self.peers.get(&address).is_some_and(reflects) {
            return self.drop_routes(address);
        }
        let Some(peer) = self.peers.get(&address) else { return };
        let is_own = |nlri: &&Nlri| {
            let path = self.rib.path(nlri, Some(address));
            path.is_none_or(|path| path.received.path.originator_id.is_none())
        };
        let own = peer.stale.iter().filter(is_own).copied().collect();
        self.remove_routes(address, own);
    }

    /// A peer that was held may come again.
    pub(super) fn check_held(&mut self, address: IpAddr) {
        let now = self.now;
        let over = |peer: &Peer| peer.held.as_ref().and_then(|held| held.until).is_some_and(|at| at <= now);
        if self.peers.get(&address).is_some_and(over) {
            self.release(address);
        }
    }

    /// Lets a held peer come again.
    pub(super) fn release(&mut self, address: IpAddr) {
        let Some(peer) = self.peers.get_mut(&address) else { return };
        peer.held = None;
        if peer.may_connect() && peer.slots[OUTGOING].state == State::Idle && peer.session.is_none() {
            self.fire(address, OUTGOING, FsmEvent::AutomaticStart, None);
        }
    }
}
