//! A destination: its paths, and the one that was chosen.
//!
//! There may be a million of them, nearly all with one path, so what is here is small: the chosen path is the first one, and
//! of what it was before, nothing is kept but whether it has become another.

use std::net::IpAddr;
use std::ops::Deref;

use ipnet::IpNet;

use super::{Path, Rules, decision};

/// A destination.
#[derive(Debug)]
pub(crate) struct Destination {
    pub(crate) prefix: IpNet,
    /// It waits for a decision.
    pub(super) changed: bool,
    /// The groups wait to be told.
    pub(super) pending: bool,
    /// A path is chosen: the first one.
    chosen: bool,
    /// Since the last decision, what was chosen was taken out or says something else.
    touched: bool,
    /// The same, and it leads elsewhere.
    moved: bool,
    /// The last decision gave several next hops; the RIB knows them.
    pub(super) several: bool,
    paths: Paths,
}

impl Destination {
    pub(super) fn new(prefix: IpNet) -> Self {
        Self {
            prefix,
            changed: false,
            pending: false,
            chosen: false,
            touched: false,
            moved: false,
            several: false,
            paths: Paths::default(),
        }
    }

    /// Whether nobody has a path to it and nobody waits for news of it.
    pub(super) fn is_idle(&self) -> bool {
        self.paths.is_empty() && !self.changed && !self.pending
    }

    pub(crate) fn paths(&self) -> &[Path] {
        &self.paths
    }

    /// The chosen path; none: none may be used, or what was chosen is gone and nothing has been decided since.
    pub(crate) fn best(&self) -> Option<&Path> {
        self.paths.first().filter(|_| self.chosen)
    }

    /// The best `limit` paths, the best first; as selection left them.
    pub(crate) fn ranked(&self, rules: &Rules, limit: usize) -> Vec<&Path> {
        if self.best().is_none() {
            return vec![];
        }
        decision::ranked(self.paths.iter().filter(|path| path.usable), rules, limit)
    }

    /// One more path.
    pub(super) fn push(&mut self, path: Path) {
        self.paths.push(path);
    }

    /// Another path in place of one.
    pub(super) fn replace(&mut self, at: usize, path: Path) {
        if self.chosen && at == 0 {
            let old = &self.paths[0];
            self.touched |= !old.same_as(&path);
            self.moved |= next_hop(old) != next_hop(&path);
        }
        self.paths.set(at, path);
    }

    /// Takes a path out.
    pub(super) fn remove(&mut self, at: usize) {
        if self.chosen && at == 0 {
            (self.chosen, self.touched, self.moved) = (false, true, true);
        }
        self.paths.remove(at);
    }

    /// Decides, among the paths that `may` be used. `several`: the next hops of the last decision, if they were several; those
    /// of this one afterwards.
    pub(super) fn select(
        &mut self,
        rules: &Rules,
        several: &mut Option<Vec<IpAddr>>,
        may: impl Fn(&&Path) -> bool,
    ) -> Outcome {
        let before = self.best().and_then(next_hop);
        let (best, hops) = match &self.paths[..] {
            [] => (None, None),
            [only] => (may(&only).then_some(0), None),
            paths => {
                let equal = decision::equal(paths.iter().filter(may), rules);
                let mut hops: Vec<IpAddr> = vec![];
                for hop in equal.iter().filter_map(|path| next_hop(path)) {
                    if !hops.contains(&hop) && hops.len() < rules.multipath.limit {
                        hops.push(hop);
                    }
                }
                hops.sort_unstable();
                let at = |best: &&Path| paths.iter().position(|path| std::ptr::eq(path, *best));
                (equal.first().and_then(at), (hops.len() > 1).then_some(hops))
            }
        };
        let stays = self.chosen && best == Some(0) || !self.chosen && best.is_none();
        let same = stays && !self.touched;
        self.chosen = best.is_some();
        if let Some(best) = best {
            self.paths.put_first(best);
        }
        let one = self.best().and_then(next_hop);
        let moved = hops != *several || hops.is_none() && (self.moved || one != before);
        let next_hops = moved.then(|| hops.clone().unwrap_or_else(|| one.into_iter().collect()));
        (self.touched, self.moved, self.several) = (false, false, hops.is_some());
        *several = hops;
        Outcome { same, next_hops }
    }
}

/// What a decision came to.
pub(super) struct Outcome {
    /// The best path is the one that it was.
    pub(super) same: bool,
    /// Its next hops, if they are others now; or perhaps the same, where what was chosen had been taken out meanwhile.
    pub(super) next_hops: Option<Vec<IpAddr>>,
}

/// Where a path leads; none: here.
fn next_hop(path: &Path) -> Option<IpAddr> {
    path.learned.is_some().then_some(path.attributes.path.next_hop)
}

/// Some paths, nearly always one: that takes no allocation, and all of it no more than the path does.
#[derive(Debug)]
enum Paths {
    One(Path),
    #[allow(clippy::box_collection, reason = "one word")]
    Others(Option<Box<Vec<Path>>>),
}

impl Default for Paths {
    fn default() -> Self {
        Self::Others(None)
    }
}

impl Deref for Paths {
    type Target = [Path];

    fn deref(&self) -> &[Path] {
        match self {
            Self::One(path) => std::slice::from_ref(path),
            Self::Others(None) => &[],
            Self::Others(Some(paths)) => paths,
        }
    }
}

impl Paths {
    fn all_mut(&mut self) -> &mut [Path] {
        match self {
            Self::One(path) => std::slice::from_mut(path),
            Self::Others(None) => &mut [],
            Self::Others(Some(paths)) => paths,
        }
    }

    fn push(&mut self, path: Path) {
        *self = match std::mem::take(self) {
            Self::Others(None) => Self::One(path),
            Self::One(first) => Self::Others(Some(Box::new(vec![first, path]))),
            Self::Others(Some(mut paths)) => {
                paths.push(path);
                Self::Others(Some(paths))
            }
        };
    }

    fn set(&mut self, at: usize, path: Path) {
        self.all_mut()[at] = path;
    }

    fn remove(&mut self, at: usize) {
        *self = match std::mem::take(self) {
            Self::Others(Some(mut paths)) => {
                paths.remove(at);
                match <[Path; 1]>::try_from(*paths) {
                    Ok([last]) => Self::One(last),
                    Err(paths) => Self::Others(Some(Box::new(paths))),
                }
            }
            Self::One(_) | Self::Others(None) => Self::Others(None),
        };
    }

    fn put_first(&mut self, at: usize) {
        self.all_mut()[..=at].rotate_right(1);
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;
    use std::sync::Arc;

    use super::*;
    use crate::message::attribute::PathAttributes;
    use crate::rib::{Interner, Learned, Shared};

    fn path(interner: &mut Interner, peer: u8, hop: u8, local_pref: u32) -> Path {
        let mut attributes = PathAttributes::originated(IpAddr::from([10, 0, 0, hop]));
        attributes.local_pref = Some(local_pref);
        let attributes = interner.intern(attributes);
        let (peer, router_id) = (IpAddr::from([10, 9, 9, peer]), Ipv4Addr::new(10, 9, 9, peer));
        let learned = Some(Arc::new(Learned { peer, router_id, external: false }));
        let received = Arc::clone(&attributes);
        Path::new(Arc::new(Shared { learned, received, attributes, usable: true }), u32::from(peer_id(peer)))
    }

    fn peer_id(peer: IpAddr) -> u8 {
        match peer {
            IpAddr::V4(peer) => peer.octets()[3],
            IpAddr::V6(_) => 0,
        }
    }

    #[test]
    fn a_million_destinations_are_small() {
        assert_eq!((size_of::<Paths>(), size_of::<Destination>()), (16, 40));
    }

    /// Whatever is done between two decisions, the outcome says what a comparison of the two says, or more.
    #[test]
    fn an_outcome_never_misses_a_change() {
        let mut interner = Interner::default();
        let mut rng = crate::session::rng::Rng::new(7);
        let mut draw = |below: u32| u32::try_from(rng.next() % u64::from(below)).unwrap();
        let rules = Rules::default();
        let mut one = Destination::new("10.1.0.0/24".parse().unwrap());
        let mut several = None;
        let mut model: Vec<Path> = vec![];
        let (mut told, mut hops): (Option<Path>, Vec<IpAddr>) = (None, vec![]);
        let (mut changes, mut moves) = (0, 0);
        for round in 0..20_000 {
            for _ in 0..draw(4) {
                let peer = u8::try_from(draw(3)).unwrap();
                let known = one.paths().iter().position(|path| path.their_id == u32::from(peer));
                model.retain(|path| path.their_id != u32::from(peer));
                match (known, draw(3) == 0) {
                    (Some(at), true) => one.remove(at),
                    (None, true) => {}
                    (at, false) => {
                        let new = path(&mut interner, peer, u8::try_from(draw(2)).unwrap(), draw(2));
                        model.push(new.clone());
                        match at {
                            Some(at) => one.replace(at, new),
                            None => one.push(new),
                        }
                    }
                }
            }
            let outcome = one.select(&rules, &mut several, |_| true);
            let best = decision::equal(model.iter(), &rules).first().map(|path| (*path).clone());
            let same = |a: &Option<Path>, b: &Option<Path>| match (a, b) {
                (Some(a), Some(b)) => a.same_as(b),
                (a, b) => a.is_none() && b.is_none(),
            };
            assert!(same(&one.best().cloned(), &best), "round {round}");
            assert_eq!(one.paths().len(), model.len());
            if !same(&told, &best) {
                assert!(!outcome.same, "round {round}");
                changes += 1;
            }
            let now: Vec<IpAddr> = best.as_ref().and_then(next_hop).into_iter().collect();
            if now != hops {
                assert_eq!(outcome.next_hops.as_ref(), Some(&now), "round {round}");
                moves += 1;
            }
            // What is said without need is said for a reason: something was chosen and taken out.
            assert!(outcome.next_hops.is_none_or(|said| said == now));
            (told, hops) = (best, now);
        }
        assert!(changes > 1000 && moves > 1000, "{changes} {moves}");
        let quiet = one.select(&rules, &mut several, |_| true);
        assert!(quiet.same && quiet.next_hops.is_none());
    }
}
