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

/// Changes that are noted between two looks. More are no list any more: everything is looked at anew.
const MOST: usize = 64 << 10;

/// Something that a station may want to know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Noted {
    /// A session came up.
    Up(IpAddr),
    /// A session went down: whose, which, why, and when.
    Down(IpAddr, u64, Ended, Duration),
    /// A path of a neighbour may be another one, or gone.
    Path(IpAddr, Nlri),
    /// The best path of a prefix may be another one, or gone.
    Best(IpNet),
}

/// What was noted since somebody looked.
#[derive(Debug, Default)]
pub(super) struct Monitor {
    noted: Vec<Noted>,
    overflown: bool,
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

    /// What was noted since the last look, and whether that was too much: then every path may have changed.
    pub(crate) fn take_noted(&mut self) -> (Vec<Noted>, bool) {
        let Monitor { noted, overflown } = self.monitor.as_mut().map(std::mem::take).unwrap_or_default();
        (noted, overflown)
    }

    pub(super) fn note(&mut self, noted: Noted) {
        let Some(monitor) = &mut self.monitor else { return };
        let forgets = matches!(noted, Noted::Path(..) | Noted::Best(_));
        if forgets && monitor.noted.len() >= MOST {
            // Sessions are still noted: a reason is nowhere else.
            monitor.noted.retain(|noted| !matches!(noted, Noted::Path(..) | Noted::Best(_)));
            monitor.overflown = true;
        }
        if !(forgets && monitor.overflown) {
            monitor.noted.push(noted);
        }
    }

    /// All paths of a prefix may be others.
    pub(super) fn note_paths(&mut self, prefix: IpNet) {
        if self.monitor.is_none() {
            return;
        }
        let paths = self.rib.get(&prefix).map(|destination| destination.paths());
        let of = |path: &crate::rib::Path| Some((path.source()?, Nlri { prefix, id: path.their_id }));
        let all: Vec<(IpAddr, Nlri)> = paths.into_iter().flatten().filter_map(of).collect();
        all.into_iter().for_each(|(peer, nlri)| self.note(Noted::Path(peer, nlri)));
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
            // A number that nobody has may still hold what it held.
            let stands = self.rib.find(&destination.prefix).is_some_and(|id| id.at() == at);
            if stands && destination.best().is_some() {
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
