//! Neighbours outside the cluster: the documents under `peers/` that select this node, with the filters that they name.
//!
//! A document that says what cannot be done is named with field and value, and its peer stays what it was; one that has
//! never been anything gets no session. A missing reference closes, it never opens.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use podway_bgp::config::{
    AddPath, Bfd, ConnectMode, Export, Import, LocalAs, MaxPrefixes, Neighbour, NeighbourOptions, NextHop,
    Relation, Role, SpeakerConfig, Transport,
};
use podway_bgp::filter::{Filter, Match, Rule, Source, Verdict, named};
use podway_bgp::types::{Families, Family};
use podway_model::bgp::{InternalRole, PeerFamily, PeerNextHop, PeerOptions, PeerRelation, PrefixLimit};
use podway_model::cluster::{BgpPeer, PeerExport, PeerImport, SourceAddress};
use podway_model::document::references;
use podway_model::ids::{NodeName, ObjectName};
use podway_model::keys::Key;

use crate::view::{ClusterView, LocalFacts};

/// What did not become a neighbour.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Added {
    /// What is not followed, and why.
    pub(super) problems: Vec<String>,
    /// Names of peers whose documents cannot be followed.
    pub(super) unfollowed: BTreeSet<String>,
}

/// Adds the peers of this node to its neighbours within the cluster.
pub(super) fn add(
    config: &mut SpeakerConfig,
    view: &ClusterView,
    node: &NodeName,
    facts: &LocalFacts,
) -> Added {
    let mut added = Added::default();
    let record = view.nodes.get(node).and_then(|node| node.record.as_ref());
    let nothing = BTreeMap::new();
    let labels = record.map_or(&nothing, |record| &record.labels);
    let selected = || view.peers.iter().filter(|(_, peer)| peer.node_selector.matches(labels));
    let (filters, bad) = filters(view, selected());
    added.problems.extend(bad);
    for (name, peer) in selected() {
        match one(name, peer, config, &filters, facts) {
            Ok(neighbour) => drop(config.neighbours.insert(peer.address, neighbour)),
            Err(Unusable::Taken(why)) => added.problems.push(format!("peers/{name}: {why}")),
            Err(Unusable::Wrong(why)) => {
                added.problems.push(format!("peers/{name}: {why}; the peer stays as it was"));
                added.unfollowed.insert(name.to_string());
            }
        }
    }
    added
}

/// Every filter that can be used, and what is wrong with names in the others and in peers.
fn filters<'a>(
    view: &ClusterView,
    peers: impl Iterator<Item = (&'a ObjectName, &'a BgpPeer)>,
) -> (BTreeMap<ObjectName, Arc<Filter>>, Vec<String>) {
    let sets = &view.config.bgp.communities;
    let wrong = references(sets, &view.filters, peers);
    let of_filters = wrong.iter().filter(|one| matches!(one.key, Key::Filter(_)));
    let mut said: Vec<String> = of_filters
        .map(|one| format!("{}: {}: {} found, {} expected", one.key, one.field, one.found, one.expected))
        .collect();
    let mut filters = BTreeMap::new();
    for (name, filter) in &view.filters {
        match named::resolve(filter, sets) {
            Ok(filter) => drop(filters.insert(name.clone(), Arc::new(filter))),
            Err(mistakes) if said.iter().all(|said| !said.starts_with(&format!("filters/{name}: "))) => {
                said.extend(mistakes.iter().map(|mistake| format!("filters/{name}: spec.{mistake}")));
            }
            Err(_) => {}
        }
    }
    (filters, said)
}

/// Why a document becomes no neighbour.
enum Unusable {
    /// The place is another one's.
    Taken(String),
    /// It says what cannot be done.
    Wrong(String),
}

fn one(
    name: &ObjectName,
    peer: &BgpPeer,
    config: &SpeakerConfig,
    filters: &BTreeMap<ObjectName, Arc<Filter>>,
    facts: &LocalFacts,
) -> Result<Neighbour, Unusable> {
    let address = peer.address;
    if let Some(other) = config.neighbour_at(address) {
        return Err(Unusable::Taken(format!("spec.address: {address} found, the address of {}", other.name)));
    }
    let own = match address {
        IpAddr::V4(_) => facts.address_v4.map(IpAddr::V4),
        IpAddr::V6(_) => facts.address_v6.map(IpAddr::V6),
    };
    if config.own_addresses.contains(&address) {
        return Err(Unusable::Taken(format!("spec.address: {address} found, this node's own address")));
    }
    if own.is_none() && peer.source_address == SourceAddress::Node {
        let why = format!("spec.address: {address} found, this node has no address of its family");
        return Err(Unusable::Taken(why));
    }
    let filter = |field: &str, name: &Option<ObjectName>| {
        let Some(name) = name else { return Ok(None) };
        let known = || filters.keys().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        let wrong = || {
            Unusable::Wrong(format!(
                "spec.{field}: {name} found, a BGPFilter that works ({}) expected",
                known()
            ))
        };
        filters.get(name).cloned().map(Some).ok_or_else(wrong)
    };
    let import = filter("importFilter", &peer.options.import_filter)?;
    let export = filter("exportFilter", &peer.options.export_filter)?;
    let local_address = own.filter(|_| peer.source_address == SourceAddress::Node);
    let neighbour = neighbour(name.to_string(), peer, local_address, config, import, export);
    // Alone, so that what is wrong with others is theirs.
    let alone = SpeakerConfig { neighbours: [(address, neighbour.clone())].into(), ..config.clone() };
    let mistakes: Vec<String> = alone.mistakes().iter().map(ToString::to_string).collect();
    if mistakes.is_empty() { Ok(neighbour) } else { Err(Unusable::Wrong(mistakes.join("; "))) }
}

fn neighbour(
    name: String,
    peer: &BgpPeer,
    local_address: Option<IpAddr>,
    config: &SpeakerConfig,
    import: Option<Arc<Filter>>,
    export: Option<Arc<Filter>>,
) -> Neighbour {
    let options = &peer.options;
    let internal = match options.internal {
        None | Some(InternalRole::Peer) => Role::Mesh,
        Some(InternalRole::Client) => Role::Client,
        Some(InternalRole::Reflector) => Role::Reflector,
    };
    let ours = options.local_as.unwrap_or(config.asn);
    // A role that is given and does not go with the AS number is a mistake that the speaker's own rules find.
    let is_internal = peer.asn == ours || options.internal.is_some();
    let export = match peer.export {
        PeerExport::Own => Some(own_only(export.as_deref())),
        PeerExport::None | PeerExport::All => export,
    };
    let mut read = read_options(options);
    read.import = import;
    read.export = export;
    read.transport =
        Transport { md5_file: peer.password_file.clone(), ttl_security: peer.ttl_security, dscp: peer.dscp };
    Neighbour {
        name,
        asn: peer.asn,
        role: if is_internal { internal } else { Role::External },
        connect: if peer.passive { ConnectMode::Passive } else { ConnectMode::Both },
        port: peer.port,
        local_address,
        families: options.families.as_deref().map_or(Families::BOTH, families),
        import: match peer.import {
            PeerImport::None => Import::None,
            PeerImport::All => Import::All,
        },
        export: match peer.export {
            PeerExport::None => Export::None,
            PeerExport::Own | PeerExport::All => Export::All,
        },
        options: read,
    }
}

fn read_options(options: &PeerOptions) -> NeighbourOptions {
    let seconds = |seconds: u32| Duration::from_secs(seconds.into());
    let maximum = |max: &PrefixLimit| MaxPrefixes {
        limit: max.limit,
        warn_percent: max.warn_percent,
        restart: max.restart_seconds.map(seconds),
    };
    let max = [(Family::Ipv4, &options.max_prefixes_ipv4), (Family::Ipv6, &options.max_prefixes_ipv6)];
    NeighbourOptions {
        hold_time: options.hold_time_seconds.map(u32::from).map(seconds),
        send_hold: options.send_hold_seconds.map(u32::from).map(seconds),
        extended_next_hop: options.extended_next_hop,
        add_path: AddPath { receive: options.add_path_receive, send: options.add_path_send.into() },
        relation: options.relation.map(|relation| match relation {
            PeerRelation::Provider => Relation::Provider,
            PeerRelation::RouteServer => Relation::RouteServer,
            PeerRelation::RouteServerClient => Relation::RouteServerClient,
            PeerRelation::Customer => Relation::Customer,
            PeerRelation::Peer => Relation::Peer,
        }),
        relation_strict: options.relation_strict,
        long_lived: options.long_lived_seconds.map(seconds),
        max_prefixes: max.into_iter().filter_map(|(f, max)| Some((f, maximum(max.as_ref()?)))).collect(),
        next_hop: match options.next_hop {
            PeerNextHop::Auto => NextHop::Auto,
            PeerNextHop::Own => NextHop::Own,
            PeerNextHop::Keep => NextHop::Keep,
        },
        allow_own_as: options.allow_own_as.into(),
        local_as: options.local_as.map(|asn| LocalAs { asn, alone: options.local_as_alone }),
        as_override: options.as_override,
        remove_private: options.remove_private_as,
        first_as: !options.is_route_server,
        default_originate: families(&options.default_originate),
        bfd: options.bfd.map(|bfd| Bfd {
            interval: Duration::from_millis(bfd.interval_ms.into()),
            multiplier: bfd.multiplier,
            multihop: bfd.multihop,
        }),
        shutdown: options.shutdown.clone(),
        ..NeighbourOptions::default()
    }
}

fn families(all: &[PeerFamily]) -> Families {
    let family = |family: &PeerFamily| match family {
        PeerFamily::Ipv4 => Family::Ipv4,
        PeerFamily::Ipv6 => Family::Ipv6,
    };
    all.iter().map(family).collect()
}

/// Lets through what we originate, as the other filter says.
fn own_only(then: Option<&Filter>) -> Arc<Filter> {
    let foreign = Match::Not(Box::new(Match::Source(Source::Own)));
    let keep_back = Rule { matches: vec![foreign], set: vec![], verdict: Some(Verdict::Reject) };
    let then = then.cloned().unwrap_or_else(Filter::accept);
    Arc::new(Filter {
        rules: std::iter::once(keep_back).chain(then.rules).collect(),
        otherwise: then.otherwise,
    })
}
