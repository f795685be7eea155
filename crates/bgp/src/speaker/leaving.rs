//! Sessions that the topology of the cluster needs no more: make before break.
//!
//! Views of the topology differ for a while between nodes, and no node knows what another one would lose. So a session
//! ends when both sides have said that they would lose nothing:
//!
//! - A side is *covered* when every route that it uses and has from the other side has a usable path by a session that is
//!   to stay. From then on it tells its own routes to the other side with [`released`] and the lowest preference, as
//!   RFC 8326 has it; when that ceases to be true it tells them as before.
//! - It ends the session when it is covered and the other side's own routes carry that mark.
//!
//! Until then the session goes on as it is, with its role. A client that became a plain peer still is told everything:
//! what differing views cost is duplicates, never routes.

use std::net::IpAddr;
use std::time::Duration;

use super::Speaker;
use super::peer::Peer;
use crate::config::{Neighbour, Role, Standing};
use crate::message::Notification;
use crate::message::attribute::{kind, released};
use crate::message::notification::cease;
use crate::session::fsm::FsmEvent;

/// How often the sessions that are to end are looked at: a change of topology is no hurry.
const LOOK: Duration = Duration::from_secs(1);
/// How long a session that nobody needs waits for all sessions that are wanted, so that not all depends on the first of
/// several reflectors.
const PATIENCE: Duration = Duration::from_secs(120);

impl Speaker {
    /// Sessions that are to end are looked at soon, if this is one.
    pub(super) fn expect_leaving(&mut self, address: IpAddr) {
        if self.peers.get(&address).is_some_and(Peer::is_leaving) {
            self.look_at.get_or_insert(self.now + LOOK);
        }
    }

    pub(super) fn check_leaving(&mut self) {
        if self.look_at.is_none_or(|at| at > self.now) {
            return;
        }
        let leaving: Vec<IpAddr> =
            self.peers.iter().filter(|(_, peer)| peer.is_leaving()).map(|(address, _)| *address).collect();
        self.look_at = (!leaving.is_empty()).then_some(self.now + LOOK);
        // What peers have not told yet after our own restart is not missed yet either.
        if self.deferral.is_some() {
            return;
        }
        let complete = self.wanted_are_up();
        for address in leaving {
            let Some(peer) = self.peers.get_mut(&address) else { continue };
            let since = *peer.leaving_since.get_or_insert(self.now);
            let waited = complete || self.now >= since + PATIENCE;
            let covered = waited && self.uncovered(address) == 0;
            if self.peers.get(&address).is_some_and(|peer| peer.letting_go != covered) {
                if let Some(peer) = self.peers.get_mut(&address) {
                    peer.letting_go = covered;
                }
                self.regroup(address);
            }
            if covered && self.is_released(address) {
                self.let_go(address);
            }
        }
    }

    /// Whether every session that the topology wants is up.
    fn wanted_are_up(&self) -> bool {
        let mut wanted =
            self.config.neighbours.iter().filter(|(_, n)| n.options.standing == Standing::Wanted);
        wanted.all(|(address, _)| self.peers.get(address).is_some_and(|peer| peer.session.is_some()))
    }

    /// Destinations that a peer has a usable path to, and nobody else whose session is to stay.
    pub(super) fn uncovered(&self, address: IpAddr) -> usize {
        let stays = |source: IpAddr| {
            source != address
                && self.peers.get(&source).is_some_and(|peer| peer.session.is_some() && !peer.is_leaving())
        };
        let Some(peer) = self.peers.get(&address) else { return 0 };
        let mut without = 0;
        for (_, path, destination) in peer.adj_in.entries(&self.rib, address) {
            let covers = |other: &crate::rib::Path| other.usable && other.source().is_none_or(stays);
            if path.usable && !destination.paths().iter().any(covers) {
                without += 1;
            }
        }
        without
    }

    /// When a session ends, for people.
    pub(super) fn why_it_stays(&self, address: IpAddr) -> String {
        match self.uncovered(address) {
            0 if self.peers.get(&address).is_some_and(|peer| peer.letting_go) => {
                "the other side needs it no more".to_owned()
            }
            0 => "all sessions that are wanted are up".to_owned(),
            1 => "1 prefix has another way".to_owned(),
            count => format!("{count} prefixes have another way"),
        }
    }

    /// Whether the other side has said that it would lose nothing. Who has no routes of its own cannot say so, and is
    /// left to end the session itself, unless there is nothing to lose.
    fn is_released(&self, address: IpAddr) -> bool {
        let Some(peer) = self.peers.get(&address) else { return false };
        let mark = released(self.config.asn);
        let mut own = 0;
        for (_, path, _) in peer.adj_in.entries(&self.rib, address) {
            let attributes = &path.received.path;
            if attributes.originator_id.is_none() {
                own += 1;
                if !attributes.members(kind::LARGE_COMMUNITIES).any(|member| member == mark) {
                    return false;
                }
            }
        }
        own > 0 || (peer.adj_in.is_empty() && self.config.originated.is_empty())
    }

    /// Ends a session that neither side needs.
    fn let_go(&mut self, address: IpAddr) {
        self.stop_peer(address, FsmEvent::ManualStop, &Notification::cease(cease::DECONFIGURED));
        self.drop_routes(address);
        self.leaving.insert(address);
    }
}

impl Peer {
    /// Whether it has a session that the topology wants to end.
    pub(super) fn is_leaving(&self) -> bool {
        self.neighbour.options.standing == Standing::Leaving && self.session.is_some()
    }

    /// The role that a session under way has when `now` is configured.
    pub(super) fn role_of(&self, now: &Neighbour) -> Role {
        let before = self.neighbour.role;
        let crosses = before == Role::External || now.role == Role::External;
        // Over a restart it relies on what it was told before.
        let is_over = self.session.is_none() && self.stale.is_empty() && self.returning_until.is_none();
        if is_over || crosses {
            return now.role;
        }
        match now.options.standing {
            Standing::Firm => now.role,
            // It is never told less than before while its session is up.
            Standing::Wanted if before == Role::Client => before,
            Standing::Wanted => now.role,
            Standing::Leaving => before,
        }
    }
}
