//! The speaker's state in the words of the admin socket.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use podway_bgp::Speaker;
use podway_model::socket::{BgpPeerStatus, BgpRouteStatus};

/// All sessions. `bfd`: what BFD has last said of them.
pub(super) fn peers(speaker: &Speaker, now: Duration, bfd: &BTreeMap<IpAddr, String>) -> Vec<BgpPeerStatus> {
    let one = |peer: podway_bgp::event::PeerStatus| BgpPeerStatus {
        name: peer.name,
        address: peer.address,
        asn: peer.asn,
        state: peer.state.to_string(),
        role: peer.role.as_str().to_owned(),
        since_seconds: now.saturating_sub(peer.since).as_secs(),
        received: peer.usable,
        advertised: peer.advertised,
        stale: peer.stale,
        updates: peer.updates,
        bfd: bfd.get(&peer.address).cloned(),
        last_error: peer.last_error,
    };
    speaker.peers().into_iter().map(one).collect()
}

/// All paths in use or waiting for their claim.
pub(super) fn routes(speaker: &Speaker) -> Vec<BgpRouteStatus> {
    let one = |route: podway_bgp::event::RouteStatus| BgpRouteStatus {
        prefix: route.prefix,
        next_hop: route.next_hop,
        from: route.from,
        originator_id: route.originator_id,
        local_pref: route.local_pref,
        as_path: route.as_path,
        med: route.med,
        communities: route.communities,
        best: route.best,
        stale: route.stale,
    };
    speaker.routes().into_iter().map(one).collect()
}
