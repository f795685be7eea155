//! A destination: its paths, and the one that was chosen.

use std::net::IpAddr;

use ipnet::IpNet;
use smallvec::SmallVec;

use super::{Path, Rules, decision};

/// A destination.
#[derive(Debug)]
pub(crate) struct Destination {
    pub(crate) prefix: IpNet,
    /// It waits for a decision.
    pub(super) changed: bool,
    /// The groups wait to be told.
    pub(super) pending: bool,
    /// Nearly always one.
    pub(super) paths: SmallVec<[Path; 1]>,
    best: Option<Path>,
    /// Its next hops where there are several; else it is that of the best path, unless that is our own.
    #[allow(clippy::box_collection, reason = "one word, since it is nearly always none")]
    several: Option<Box<Vec<IpAddr>>>,
}

impl Destination {
    pub(super) fn new(prefix: IpNet) -> Self {
        Self { prefix, changed: false, pending: false, paths: SmallVec::new(), best: None, several: None }
    }

    /// Whether nobody has a path to it and nobody waits for news of it.
    pub(super) fn is_idle(&self) -> bool {
        self.paths.is_empty() && self.best.is_none() && !self.changed && !self.pending
    }

    pub(crate) fn paths(&self) -> &[Path] {
        &self.paths
    }

    pub(crate) fn best(&self) -> Option<&Path> {
        self.best.as_ref()
    }

    /// The best `limit` paths, the best first; as selection left them.
    pub(crate) fn ranked(&self, rules: &Rules, limit: usize) -> Vec<&Path> {
        if self.best.is_none() {
            return vec![];
        }
        decision::ranked(self.paths.iter().filter(|path| path.usable), rules, limit)
    }

    /// Decides, among the paths that `may` be used.
    pub(super) fn select(&mut self, rules: &Rules, may: impl Fn(&&Path) -> bool) -> Outcome {
        let (new, several): (Option<Path>, Option<Vec<IpAddr>>) = match &self.paths[..] {
            [] => (None, None),
            [only] => (may(&only).then(|| only.clone()), None),
            paths => {
                let equal = decision::equal(paths.iter().filter(may), rules);
                let mut hops: Vec<IpAddr> = vec![];
                for hop in equal.iter().filter_map(|path| next_hop(path)) {
                    if !hops.contains(&hop) && hops.len() < rules.multipath.limit {
                        hops.push(hop);
                    }
                }
                hops.sort_unstable();
                (equal.first().map(|path| (*path).clone()), (hops.len() > 1).then_some(hops))
            }
        };
        let one = |path: &Option<Path>| path.as_ref().and_then(next_hop);
        let moved = several.as_ref() != self.several.as_deref()
            || (several.is_none() && one(&new) != one(&self.best));
        let same = match (&self.best, &new) {
            (None, None) => true,
            (Some(old), Some(new)) => old.same_as(new),
            _ => false,
        };
        let hops = || several.clone().unwrap_or_else(|| one(&new).into_iter().collect());
        let next_hops = moved.then(hops);
        if !same {
            self.best = new;
        }
        self.several = several.map(Box::new);
        Outcome { same, next_hops }
    }
}

/// What a decision came to.
pub(super) struct Outcome {
    /// The best path is the one that it was.
    pub(super) same: bool,
    /// Its next hops, if they are others now.
    pub(super) next_hops: Option<Vec<IpAddr>>,
}

/// Where a path leads; none: here.
fn next_hop(path: &Path) -> Option<IpAddr> {
    path.learned.is_some().then_some(path.attributes.path.next_hop)
}
