//! Our own restart (RFC 4724 section 4.1): learned routes are not selected before the peers that were up have sent
//! their tables, End-of-RIB is not sent before that, and the R bit says so. Our own routes are announced at once.
//!
//! Only peers that were up are waited for. Speakers that restart together must not wait for each other in a circle.
//! RFC 4724 breaks it by not waiting for a peer that has restarted too, which loses routes: selection then begins
//! before that peer has said anything. Within the AS there is a better way: a neighbour that hears nothing of what we
//! wait for (a plain peer of a node without clients) gets its End-of-RIB at once, so nodes complete each other, then
//! reflectors, then their clients. Only external peers that have restarted are not waited for.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use super::Speaker;
use crate::config::{Restarted, Role, SpeakerConfig};
use crate::event::Action;
use crate::export::policy::GroupKey;
use crate::types::{Families, Family};

#[derive(Debug)]
pub(super) struct Deferral {
    /// Selection_Deferral_Timer.
    pub(super) until: Duration,
    /// Who is waited for at the beginning.
    expected: BTreeSet<IpAddr>,
    /// Per family: who has not sent its End-of-RIB.
    waiting: BTreeMap<Family, BTreeSet<IpAddr>>,
}

impl Deferral {
    /// Families whose selection is deferred.
    pub(super) fn families(&self) -> Families {
        self.waiting.keys().copied().collect()
    }
}

impl Speaker {
    /// Begins to wait, if there is somebody to wait for.
    pub(super) fn begin_deferral(&mut self, config: &SpeakerConfig, restarted: Option<Restarted>) {
        let known = |peer: &IpAddr| config.neighbour_at(*peer).is_some();
        let peers: BTreeSet<IpAddr> =
            restarted.into_iter().flat_map(|restarted| restarted.peers).filter(known).collect();
        match &config.graceful_restart {
            Some(restart) if !peers.is_empty() => {
                let offers = |family: Family| {
                    let speaks = |peer: &&IpAddr| {
                        config.neighbour_at(**peer).is_some_and(|n| n.families.contains(family))
                    };
                    let all = peers.iter().filter(speaks);
                    (family, all.copied().collect::<BTreeSet<IpAddr>>())
                };
                let waiting = Family::ALL.into_iter().map(offers).filter(|(_, p)| !p.is_empty()).collect();
                let until = self.now + restart.deferral_time;
                self.deferral = Some(Deferral { until, expected: peers, waiting });
            }
            _ => self.actions.push(Action::Synced),
        }
    }

    /// Families of which a group's initial table is complete.
    pub(super) fn settled_families(&self, key: &GroupKey) -> Families {
        let Some(deferral) = &self.deferral else { return Families::BOTH };
        let role = |peer: &IpAddr| self.config.neighbour_at(*peer).map(|neighbour| neighbour.role);
        let hears = deferral.expected.iter().filter_map(role).any(|role| key.hears(Some(role)));
        let deferred = if hears { deferral.families() } else { Families::NONE };
        Family::ALL.into_iter().filter(|family| !deferred.contains(*family)).collect()
    }

    /// A peer without graceful restart, an external one that restarted too, and one that has not got a family, are not
    /// waited for.
    pub(super) fn deferral_session_up(&mut self, address: IpAddr) {
        let Some(peer) = self.peers.get(&address) else { return };
        let Some(negotiated) = peer.session.as_ref().map(|session| &session.negotiated) else { return };
        let circle = negotiated.restarting() && peer.neighbour.role == Role::External;
        let waited_for = if negotiated.graceful_restart.is_none() || circle {
            Families::NONE
        } else {
            negotiated.families
        };
        for family in Family::ALL.into_iter().filter(|family| !waited_for.contains(*family)) {
            self.stop_waiting(address, family);
        }
    }

    /// Whatever `peer` had to say about `family` is said.
    pub(super) fn stop_waiting(&mut self, peer: IpAddr, family: Family) {
        let Some(deferral) = &mut self.deferral else { return };
        if let Some(waiting) = deferral.waiting.get_mut(&family) {
            waiting.remove(&peer);
            if waiting.is_empty() {
                self.end_deferral(family);
            }
        }
    }

    pub(super) fn check_deferral_timer(&mut self) {
        if let Some(deferral) = self.deferral.as_ref().filter(|deferral| deferral.until <= self.now) {
            for family in deferral.families().iter() {
                self.end_deferral(family);
            }
        }
    }

    /// Selection of `family` begins; [`Speaker::settle`] does the rest.
    fn end_deferral(&mut self, family: Family) {
        let Some(deferral) = &mut self.deferral else { return };
        deferral.waiting.remove(&family);
        if deferral.waiting.is_empty() {
            self.deferral = None;
        }
        self.settling.insert(family);
        self.rib.reconsider_all(|prefix| Family::of(prefix) == family);
    }
}
