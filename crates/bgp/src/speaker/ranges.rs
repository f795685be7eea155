//! Neighbours that nobody lists: whoever connects from a range or is in a circle is one, by the template, until it is
//! gone.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use podway_model::ids::Asn;

use super::Speaker;
use super::peer::{OUTGOING, Peer};
use crate::config::{Neighbour, Restarted, Role, SpeakerConfig, Standing};
use crate::event::Action;
use crate::session::fsm::{FsmEvent, State};

impl Speaker {
    /// A connection from an address that is not known yet.
    pub(super) fn add_from_range(&mut self, address: IpAddr) {
        let config = Arc::clone(&self.config);
        let Some(neighbour) = config.neighbour_at(address) else { return };
        if config.is_in_circle(address) {
            return self.add_dynamic(address, neighbour.into_owned());
        }
        let Some(range) = config.range_of(address) else { return };
        let same = |other: &&IpAddr| config.range_of(**other).is_some_and(|r| r.prefix == range.prefix);
        let dynamic = self.peers.iter().filter(|(_, peer)| peer.dynamic).map(|(other, _)| other);
        if dynamic.filter(same).count() >= range.limit {
            let what = format!("range {} has its {} neighbours", range.prefix, range.limit);
            self.actions.push(Action::Ignoring { peer: address, what });
            return;
        }
        self.add_dynamic(address, neighbour.into_owned());
    }

    fn add_dynamic(&mut self, address: IpAddr, neighbour: Neighbour) {
        let peer = Peer { dynamic: true, ..Peer::new(neighbour, self.now) };
        self.start_peer(address, peer);
    }

    /// After our own restart: members of circles whose session was up are looked for until they are waited for no longer,
    /// and whom we reflected to is reflected to.
    pub(super) fn look_for_returning(&mut self, config: &SpeakerConfig, before: &Restarted, until: Duration) {
        for address in before.peers.iter().filter(|address| config.is_in_circle(**address)) {
            if let (false, Some(neighbour)) =
                (self.peers.contains_key(address), config.neighbour_at(*address))
            {
                let peer = Peer::new(neighbour.into_owned(), self.now);
                self.start_peer(*address, Peer { dynamic: true, ..peer });
            }
        }
        for address in &before.peers {
            let Some(peer) = self.peers.get_mut(address) else { continue };
            peer.returning_until = Some(until);
            let internal = peer.neighbour.role != Role::External;
            if internal
                && peer.neighbour.options.standing != Standing::Firm
                && before.clients.contains(address)
            {
                peer.neighbour.role = Role::Client;
            }
            if peer.should_wake() {
                self.fire(*address, OUTGOING, FsmEvent::AutomaticStart, None);
            }
            self.rearm(*address);
        }
    }

    /// A member of a circle that has not come back is looked for no longer.
    pub(super) fn check_returning(&mut self, address: IpAddr) {
        let now = self.now;
        let Some(peer) = self.peers.get_mut(&address) else { return };
        if peer.returning_until.is_some_and(|until| until <= now) {
            peer.returning_until = None;
            self.take_configured_role(address);
        }
        let Some(peer) = self.peers.get(&address) else { return };
        let is_idle = peer.slots[OUTGOING].state == State::Idle && peer.slots[OUTGOING].rests();
        if peer.dynamic && !peer.may_connect() && peer.slots[OUTGOING].state < State::OpenSent && !is_idle {
            self.fire(address, OUTGOING, FsmEvent::ManualStop, None);
        }
    }

    /// A neighbour from a range with several AS numbers has the one that its OPEN says, if that may be.
    pub(super) fn take_as_from_range(&mut self, address: IpAddr, asn: u32) {
        let config = Arc::clone(&self.config);
        let Some(range) = config.range_of(address).filter(|range| range.accepts(asn, config.asn)) else {
            return;
        };
        // A second connection must not change a session under way.
        if let Some(peer) = self.peers.get_mut(&address).filter(|peer| peer.dynamic && peer.session.is_none())
            && range.asns.is_some()
            && let Ok(asn) = Asn::try_from(asn)
        {
            peer.neighbour.asn = asn;
        }
    }

    /// A new configuration: neighbours from ranges follow their template.
    pub(super) fn follow_ranges(&mut self, config: &SpeakerConfig) {
        let dynamic: Vec<IpAddr> =
            self.peers.iter().filter(|(_, peer)| peer.dynamic).map(|(address, _)| *address).collect();
        for address in dynamic {
            let Some(neighbour) = config.neighbour_at(address) else { continue };
            let mut neighbour = neighbour.into_owned();
            let Some(peer) = self.peers.get(&address) else { continue };
            let accepts =
                |range: &crate::config::Range| range.accepts(peer.neighbour.asn.number(), config.asn);
            if !config.is_in_circle(address) && config.range_of(address).is_some_and(accepts) {
                neighbour.asn = peer.neighbour.asn;
            }
            if peer.neighbour != neighbour {
                self.change_peer(address, neighbour);
            }
        }
    }

    /// Forgets neighbours from ranges of which nothing is left.
    pub(super) fn forget_gone(&mut self) {
        for address in std::mem::take(&mut self.leaving) {
            if self.peers.get(&address).is_some_and(Peer::is_gone) {
                self.remove_peer(address);
            }
        }
    }
}
