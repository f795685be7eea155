//! The decision process (RFC 4271 9.1.2.2 and RFC 4456 section 9), step by step.
//!
//! Each step removes candidates from the whole set that the step before left, never by comparing in pairs, so the
//! result does not depend on the order of arrival, with MED as without it.

use std::net::{IpAddr, Ipv4Addr};

use super::Path;

/// LOCAL_PREF of a route that has none.
pub(crate) const DEFAULT_LOCAL_PREF: u32 = 100;

/// The best of the candidates.
pub(crate) fn best<'a>(candidates: impl Iterator<Item = &'a Path>) -> Option<&'a Path> {
    let mut left: Vec<&Path> = candidates.collect();
    if left.len() < 2 {
        return left.pop();
    }
    // What we originate ourselves wins: nobody knows it better.
    keep_least(&mut left, |path| path.learned.is_some());
    // RFC 4271 9.1.1: the degree of preference.
    keep_least(&mut left, |path| u32::MAX - local_pref(path));
    // RFC 4271 9.1.2.2 (a): the shortest AS_PATH.
    keep_least(&mut left, |path| path.attributes.path.as_path.len());
    // (b): the lowest ORIGIN.
    keep_least(&mut left, |path| path.attributes.path.origin);
    // (c): the lowest MED, among routes from the same neighbouring AS.
    keep_lowest_med(&mut left);
    // (d): external before internal.
    keep_least(&mut left, |path| path.learned.as_ref().is_some_and(|learned| !learned.external));
    // (e): the lowest interior cost. All next hops cost the same here: nodes are one hop away.
    // (f): the lowest BGP identifier; RFC 4456 section 9: ORIGINATOR_ID stands for it.
    keep_least(&mut left, identifier);
    // RFC 4456 section 9: the shortest CLUSTER_LIST.
    keep_least(&mut left, |path| path.attributes.path.cluster_list.len());
    // (g): the lowest peer address.
    keep_least(&mut left, |path| path.source().map(canonical));
    left.pop()
}

/// Degree of preference of a path.
pub(crate) fn local_pref(path: &Path) -> u32 {
    path.attributes.path.local_pref.unwrap_or(DEFAULT_LOCAL_PREF)
}

fn identifier(path: &&Path) -> Ipv4Addr {
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

/// A path stays unless another one from the same neighbouring AS has a lower MED; a missing MED is the lowest.
fn keep_lowest_med(left: &mut Vec<&Path>) {
    let key = |path: &&Path| {
        let attributes = &path.attributes.path;
        (attributes.as_path.neighbour(), attributes.med.unwrap_or(0))
    };
    let all: Vec<(Option<u32>, u32)> = left.iter().map(key).collect();
    left.retain(|path| {
        let (neighbour, med) = key(path);
        !all.iter().any(|(other, lower)| *other == neighbour && *lower < med)
    });
}
