//! What a monitoring station is told of ([`crate::bmp`]): which sessions and prefixes have changed, and what is there now.
//! Without a station nothing is noted.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use ipnet::IpNet;

use super::Speaker;
use super::peer::Session;
use crate::bmp::Ended;
use crate::event::ConnId;
use crate::message::Nlri;
use crate::rib::{Attributes, DestId};
use crate::types::{Families, Family};

/// Changes of each kind that are noted between two looks. More are no list any more: all of that kind is told anew.
const MOST: usize = 64 << 10;

/// What was noted since somebody looked. The order between the kinds does not matter: a station is told what is.
#[derive(Debug, Default)]
pub(crate) struct Noted {
    /// Sessions that came up.
    pub(crate) up: Vec<IpAddr>,
    /// Sessions that went down: whose, which, why, and when.
    pub(crate) down: Vec<(IpAddr, u64, Ended, Duration)>,
    /// Paths of neighbours that may be others, or gone.
    pub(crate) paths: Changes<(IpAddr, Nlri)>,
    /// Prefixes whose best path may be another one, or gone.
    pub(crate) best: Changes<IpNet>,
}

/// What may have changed.
#[derive(Debug)]
pub(crate) enum Changes<T> {
    /// These.
    Some(Vec<T>),
    /// More than a list holds.
    Any,
}

impl<T> Default for Changes<T> {
    fn default() -> Self {
        Self::Some(vec![])
    }
}

impl<T> Changes<T> {
    fn push(&mut self, one: T) {
        match self {
            Self::Some(all) if all.len() < MOST => all.push(one),
            _ => *self = Self::Any,
        }
    }
}

/// How often what a neighbour told was not used, for one reason each.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Refused {
    pub(crate) cluster_loop: u32,
    pub(crate) as_loop: u32,
    pub(crate) originator_loop: u32,
    /// UPDATEs with something in them that was treated as withdrawn (RFC 7606).
    pub(crate) withdrawn: u32,
}

/// A session as a station is told of it.
pub(crate) struct Watched<'a> {
    pub(crate) session: u64,
    pub(crate) since: Duration,
    pub(crate) conn: ConnId,
    pub(crate) asn: u32,
    pub(crate) router_id: Ipv4Addr,
    /// The OPENs that were sent and received.
    pub(crate) opens: Option<&'a (Bytes, Bytes)>,
    pub(crate) families: Families,
    /// Families whose prefixes come with a path identifier.
    pub(crate) add_path: Families,
}

/// Numbers of a neighbour.
pub(crate) struct Numbers {
    pub(crate) refused: Refused,
    /// Paths in the adj-RIB-in, by family.
    pub(crate) received: Vec<(Family, u64)>,
}

/// A path before and after policy.
pub(crate) struct Monitored {
    pub(crate) received: Arc<Attributes>,
    /// None: policy does not let it in.
    pub(crate) used: Option<Arc<Attributes>>,
}

impl Speaker {
    /// Begins or ends to note what changes.
    pub fn monitor(&mut self, on: bool) {
        self.monitor = on.then(|| self.monitor.take().unwrap_or_default());
    }

    /// What was noted since the last look.
    pub(crate) fn take_noted(&mut self) -> Noted {
        self.monitor.as_mut().map(std::mem::take).unwrap_or_default()
    }

    pub(super) fn note_up(&mut self, peer: IpAddr) {
        self.monitor.iter_mut().for_each(|noted| noted.up.push(peer));
    }

    pub(super) fn note_down(&mut self, peer: IpAddr, session: u64, ended: Ended) {
        if let Some(noted) = &mut self.monitor {
            noted.down.push((peer, session, ended, self.now));
        }
    }

    pub(super) fn note_path(&mut self, peer: IpAddr, nlri: Nlri) {
        self.monitor.iter_mut().for_each(|noted| noted.paths.push((peer, nlri)));
    }

    pub(super) fn note_best(&mut self, prefix: IpNet) {
        self.monitor.iter_mut().for_each(|noted| noted.best.push(prefix));
    }

    /// All paths of a prefix may be others.
    pub(super) fn note_paths(&mut self, prefix: IpNet) {
        if self.monitor.is_none() {
            return;
        }
        let paths = self.rib.get(&prefix).map(|destination| destination.paths());
        let of = |path: &crate::rib::Path| Some((path.source()?, Nlri { prefix, id: path.their_id }));
        let all: Vec<(IpAddr, Nlri)> = paths.into_iter().flatten().filter_map(of).collect();
        all.into_iter().for_each(|(peer, nlri)| self.note_path(peer, nlri));
    }

    pub(super) fn is_monitored(&self) -> bool {
        self.monitor.is_some()
    }

    /// Neighbours with a session.
    pub(crate) fn watched_peers(&self) -> impl Iterator<Item = IpAddr> {
        self.peers.iter().filter(|(_, peer)| peer.session.is_some()).map(|(address, _)| *address)
    }

    /// A neighbour's session.
    pub(crate) fn watched(&self, peer: IpAddr) -> Option<Watched<'_>> {
        let session: &Session = self.peers.get(&peer)?.session.as_ref()?;
        Some(Watched {
            session: session.number,
            since: session.since,
            conn: session.conn,
            asn: session.negotiated.asn,
            router_id: session.negotiated.router_id,
            opens: session.opens.as_deref(),
            families: session.negotiated.families,
            add_path: session.negotiated.decode.add_path,
        })
    }

    pub(crate) fn numbers(&self, peer: IpAddr) -> Option<Numbers> {
        let peer = self.peers.get(&peer)?;
        let count = |family: Family| (family, u64::from(peer.adj_in.count(family)));
        Some(Numbers { refused: peer.refused, received: Family::ALL.into_iter().map(count).collect() })
    }

    /// A path of a neighbour.
    pub(crate) fn monitored(&self, peer: IpAddr, nlri: &Nlri) -> Option<Monitored> {
        let path = self.rib.path(nlri, Some(peer))?;
        let used = path.usable.then(|| Arc::clone(&path.attributes));
        Some(Monitored { received: Arc::clone(&path.received), used })
    }

    /// Some paths of a neighbour, from a place in its table on; none as the next place: these are the last ones.
    pub(crate) fn some_paths(&self, peer: IpAddr, from: usize, count: usize) -> (Vec<Nlri>, Option<usize>) {
        let Some(known) = self.peers.get(&peer) else { return (vec![], None) };
        let mut all = vec![];
        for id in known.adj_in.destinations_from(DestId::from_index(from)) {
            if all.len() >= count {
                return (all, Some(id.at()));
            }
            let destination = self.rib.at(id);
            let theirs = destination.paths().iter().filter(|path| path.source() == Some(peer));
            all.extend(theirs.map(|path| Nlri { prefix: destination.prefix, id: path.their_id }));
        }
        (all, None)
    }

    /// The best path of a prefix, as it is used.
    pub(crate) fn best(&self, prefix: &IpNet) -> Option<Arc<Attributes>> {
        Some(Arc::clone(&self.rib.get(prefix)?.best()?.attributes))
    }

    /// Some prefixes with a best path, as [`Speaker::some_paths`].
    pub(crate) fn some_best(&self, from: usize, count: usize) -> (Vec<IpNet>, Option<usize>) {
        let mut all = vec![];
        for at in from..self.rib.len() {
            if all.len() >= count {
                return (all, Some(at));
            }
            let destination = self.rib.at(DestId::from_index(at));
            if destination.best().is_some() {
                all.push(destination.prefix);
            }
        }
        (all, None)
    }

    /// How many prefixes have a best path.
    pub(crate) fn best_count(&self, family: Family) -> u64 {
        let all = self.rib.iter().map(|(_, destination)| destination);
        let count = all.filter(|one| one.best().is_some() && Family::of(&one.prefix) == family).count();
        u64::try_from(count).unwrap_or(u64::MAX)
    }

    pub(crate) fn now(&self) -> Duration {
        self.now
    }
}
