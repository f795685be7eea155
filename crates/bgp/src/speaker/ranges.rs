//! Neighbours that nobody lists: whoever connects from a range or is in a circle is one, by the template, until it is
//! gone.

use std::net::IpAddr;
use std::sync::Arc;

use podway_model::ids::Asn;

use super::Speaker;
use crate::config::{Neighbour, SpeakerConfig};
use crate::event::Action;

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
        self.add_peer(address, neighbour);
        if let Some(peer) = self.peers.get_mut(&address) {
            peer.dynamic = true;
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
            if self.peers.get(&address).is_some_and(super::Peer::is_gone) {
                self.remove_peer(address);
            }
        }
    }
}
