//! The decision process (RFC 4271 9.1.2.2 and RFC 4456 section 9), step by step.
//!
//! Each step removes candidates from the whole set that the step before left, never by comparing in pairs, so the
//! result does not depend on the order of arrival, with MED as without it.

use std::net::{IpAddr, Ipv4Addr};

use super::Path;
use crate::config::{Med, Multipath};

/// LOCAL_PREF of a route that has none.
pub(crate) const DEFAULT_LOCAL_PREF: u32 = 100;

/// What configuration says about the decision.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Rules {
    pub(crate) med: Med,
    pub(crate) multipath: Multipath,
}

/// The best of the candidates, and behind it, in the order in which the last steps prefer them, those that are as good
/// for forwarding: equal up to step (e).
pub(crate) fn equal<'a>(candidates: impl Iterator<Item = &'a Path>, rules: &Rules) -> Vec<&'a Path> {
    let mut left: Vec<&Path> = candidates.collect();
    if left.len() < 2 {
        return left;
    }
    narrow(&mut left, rules);
    // (f): the lowest BGP identifier; RFC 4456 section 9: ORIGINATOR_ID stands for it, then the shortest CLUSTER_LIST.
    // (g): the lowest peer address. RFC 7911 says nothing of several paths from one peer: the lowest identifier.
    left.sort_by_key(|path| {
        let clusters = path.attributes.path.cluster_list.len();
        (identifier(path), clusters, path.source().map(canonical), path.their_id)
    });
    let best = left[0];
    let together = |path: &&Path| {
        let neighbour = |path: &Path| path.attributes.path.as_path.neighbour();
        rules.multipath.relax || neighbour(path) == neighbour(best)
    };
    left.retain(together);
    left
}

/// The best `limit` candidates: the best, then the best of the rest, and so on.
pub(crate) fn ranked<'a>(
    candidates: impl Iterator<Item = &'a Path>,
    rules: &Rules,
    limit: usize,
) -> Vec<&'a Path> {
    let mut left: Vec<&Path> = candidates.collect();
    let mut ranked = vec![];
    while ranked.len() < limit {
        let Some(best) = equal(left.iter().copied(), rules).first().copied() else { break };
        left.retain(|path| !std::ptr::eq(*path, best));
        ranked.push(best);
    }
    ranked
}

/// The steps up to (e), each on the whole set that the one before left.
fn narrow(left: &mut Vec<&Path>, rules: &Rules) {
    // What we originate ourselves wins: nobody knows it better.
    keep_least(left, |path| path.learned.is_some());
    // RFC 9494 section 4.3: what is kept over a long restart is the last resort.
    keep_least(left, |path| path.attributes.long_lived_stale);
    // RFC 4271 9.1.1: the degree of preference.
    keep_least(left, |path| u32::MAX - local_pref(path));
    // RFC 4271 9.1.2.2 (a): the shortest AS_PATH.
    keep_least(left, |path| path.attributes.path.as_path.len());
    // (b): the lowest ORIGIN.
    keep_least(left, |path| path.attributes.path.origin);
    // (c): the lowest MED, among routes from the same neighbouring AS.
    keep_lowest_med(left, rules.med);
    // (d): external before internal.
    keep_least(left, |path| path.learned.as_ref().is_some_and(|learned| !learned.external));
    // (e): the lowest interior cost. All next hops cost the same here: nodes are one hop away.
}

/// Degree of preference of a path.
pub(crate) fn local_pref(path: &Path) -> u32 {
    path.attributes.path.local_pref.unwrap_or(DEFAULT_LOCAL_PREF)
}

fn identifier(path: &Path) -> Ipv4Addr {
    let own = || path.learned.as_ref().map_or(Ipv4Addr::UNSPECIFIED, |learned| learned.router_id);
    path.attributes.path.originator_id.unwrap_or_else(own)
}

/// IPv4 before IPv6, each by number.
fn canonical(address: IpAddr) -> (bool, u128) {
    match address {
        IpAddr::V4(v4) => (false, u128::from(u32::from(v4))),
        IpAddr::V6(v6) => (true, u128::from(v6)),
    }
}

fn keep_least<K: Ord>(left: &mut Vec<&Path>, key: impl Fn(&&Path) -> K) {
    if left.len() > 1
        && let Some(least) = left.iter().map(&key).min()
    {
        left.retain(|path| key(path) == least);
    }
}

/// A path stays unless another one from the same neighbouring AS (`always`: any other one) has a lower MED.
fn keep_lowest_med(left: &mut Vec<&Path>, med: Med) {
    let missing = if med.missing_is_worst { u32::MAX } else { 0 };
    let key = |path: &&Path| {
        let attributes = &path.attributes.path;
        let group = if med.always { None } else { attributes.as_path.neighbour() };
        (group, attributes.med.unwrap_or(missing))
    };
    let all: Vec<(Option<u32>, u32)> = left.iter().map(key).collect();
    left.retain(|path| {
        let (neighbour, med) = key(path);
        !all.iter().any(|(other, lower)| *other == neighbour && *lower < med)
    });
}
