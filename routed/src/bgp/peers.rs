//! Neighbours outside the cluster: the documents under `peers/` that select this node.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use podway_bgp::config::{ConnectMode, Export, Import, Neighbour, NeighbourOptions, Role, Transport};
use podway_bgp::filter::{Filter, Match, Rule, Source, Verdict};
use podway_bgp::types::Families;
use podway_model::cluster::{BgpPeer, PeerExport, PeerImport, SourceAddress};
use podway_model::ids::{Asn, NodeName};

use crate::view::{ClusterView, LocalFacts};

/// Adds the peers of this node to its neighbours within the cluster; gives what is not followed, and why.
pub(super) fn add(
    neighbours: &mut BTreeMap<IpAddr, Neighbour>,
    view: &ClusterView,
    node: &NodeName,
    facts: &LocalFacts,
    own_asn: Asn,
) -> Vec<String> {
    let mut problems = vec![];
    let record = view.nodes.get(node).and_then(|node| node.record.as_ref());
    let nothing = BTreeMap::new();
    let labels = record.map_or(&nothing, |record| &record.labels);
    for (name, peer) in view.peers.iter().filter(|(_, peer)| peer.node_selector.matches(labels)) {
        if let Some(other) = neighbours.get(&peer.address) {
            problems
                .push(format!("BGP peer {name}: {} is the address of {} already", peer.address, other.name));
            continue;
        }
        let own = match peer.address {
            IpAddr::V4(_) => facts.address_v4.map(IpAddr::V4),
            IpAddr::V6(_) => facts.address_v6.map(IpAddr::V6),
        };
        if own == Some(peer.address) {
            problems.push(format!("BGP peer {name}: {} is this node's own address", peer.address));
            continue;
        }
        if own.is_none() && peer.source_address == SourceAddress::Node {
            problems
                .push(format!("BGP peer {name}: this node has no address of the family of {}", peer.address));
            continue;
        }
        let local_address = own.filter(|_| peer.source_address == SourceAddress::Node);
        neighbours.insert(peer.address, neighbour(name.to_string(), peer, local_address, own_asn));
    }
    problems
}

fn neighbour(name: String, peer: &BgpPeer, local_address: Option<IpAddr>, own_asn: Asn) -> Neighbour {
    let transport =
        Transport { md5_file: peer.password_file.clone(), ttl_security: peer.ttl_security, dscp: peer.dscp };
    Neighbour {
        name,
        asn: peer.asn,
        role: if peer.asn == own_asn { Role::Mesh } else { Role::External },
        connect: if peer.passive { ConnectMode::Passive } else { ConnectMode::Both },
        port: peer.port,
        local_address,
        families: Families::BOTH,
        import: match peer.import {
            PeerImport::None => Import::None,
            PeerImport::All => Import::All,
        },
        export: match peer.export {
            PeerExport::None => Export::None,
            PeerExport::Own | PeerExport::All => Export::All,
        },
        options: NeighbourOptions {
            export: (peer.export == PeerExport::Own).then(|| Arc::new(own_only())),
            transport,
            ..NeighbourOptions::default()
        },
    }
}

/// Lets through what we originate.
fn own_only() -> Filter {
    let own = Rule { matches: vec![Match::Source(Source::Own)], set: vec![], verdict: Some(Verdict::Accept) };
    Filter { rules: vec![own], otherwise: Verdict::Reject }
}
