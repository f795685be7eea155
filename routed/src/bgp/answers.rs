//! The speaker's state in the words of the admin socket.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use podway_bgp::Speaker;
use podway_bgp::fate::Fate;
use podway_bgp::message::Nlri;
use podway_bgp::message::attribute::PathAttributes;
use podway_model::socket::{BgpPathStatus, BgpPeerStatus, BgpRouteStatus};

/// All sessions. `bfd`: what BFD has last said of them; `fate`: what is known of their kernels.
pub(super) fn peers(
    speaker: &Speaker,
    now: Duration,
    bfd: &BTreeMap<IpAddr, String>,
    fate: &Fate,
) -> Vec<BgpPeerStatus> {
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
        kernel: fate.kernel(peer.address).map(|kernel| kernel.as_str().to_owned()),
        last_error: peer.last_error,
        told_seconds: peer.told.as_ref().map(|(_, at)| now.saturating_sub(*at).as_secs()),
        told: peer.told.map(|(told, _)| told),
        ignored: peer.ignored,
        remark: peer.remark,
        leaving: peer.leaving,
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

/// What a neighbour has told; none: there is no such neighbour.
pub(super) fn received(speaker: &Speaker, peer: IpAddr) -> Option<Vec<BgpPathStatus>> {
    let one = |(nlri, attributes, usable, best): (Nlri, PathAttributes, bool, bool)| {
        let state = match (usable, best) {
            (false, _) => "rejected",
            (true, false) => "used",
            (true, true) => "best",
        };
        path(nlri, &attributes, state)
    };
    is_known(speaker, peer).then(|| speaker.received_paths(peer).into_iter().map(one).collect())
}

/// What a neighbour has been told; none: there is no such neighbour.
pub(super) fn advertised(speaker: &Speaker, peer: IpAddr) -> Option<Vec<BgpPathStatus>> {
    let one = |(nlri, attributes): (Nlri, PathAttributes)| path(nlri, &attributes, "sent");
    is_known(speaker, peer).then(|| speaker.advertised(peer).into_iter().map(one).collect())
}

/// Whether there is such a neighbour, with or without a session.
pub(super) fn is_known(speaker: &Speaker, peer: IpAddr) -> bool {
    speaker.peers().iter().any(|status| status.address == peer)
}

fn path(nlri: Nlri, attributes: &PathAttributes, state: &str) -> BgpPathStatus {
    BgpPathStatus {
        prefix: nlri.prefix,
        path_id: nlri.id,
        next_hop: attributes.next_hop,
        as_path: attributes.as_path.to_string(),
        local_pref: attributes.local_pref,
        med: attributes.med,
        originator_id: attributes.originator_id,
        communities: attributes.communities(),
        state: state.to_owned(),
    }
}
