//! `podwayctl topology`: the nodes, the BGP sessions that they are to have, reflectors, and peers outside the cluster,
//! as the store has them. Whether sessions are up is each node's to say: `podwayctl bgp peers` there.

mod dot;
mod svg;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use podway_bgp::config::{Role, Standing};
use podway_bgp::topology::{Chooser, Link, Member, Rule, View, ZONE};
use podway_model::cluster::{Backend, BgpPeer, ClusterConfig, NodeRecord, decode};
use podway_model::document::{Document, Kind};
use podway_model::ids::{NodeName, ObjectName};
use podway_model::keys::Key;
use podway_store::Store;
use serde::Serialize;

use crate::args::{Drawing, StoreArgs, TopologyArgs};
use crate::cluster::join;
use crate::objects;
use crate::outcome::Failure;
use crate::output::Output;
use crate::table::{Cell, Table, Tone};

/// The picture.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Graph {
    backend: String,
    /// In words; none: the backend has no sessions.
    topology: Option<String>,
    nodes: Vec<Node>,
    peers: Vec<Peer>,
    sessions: Vec<Session>,
}

/// A node.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Node {
    name: NodeName,
    addresses: Vec<IpAddr>,
    asn: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    zone: Option<String>,
    reflector: bool,
    live: bool,
    drained: bool,
}

/// A peer outside the cluster.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Peer {
    name: ObjectName,
    address: IpAddr,
    asn: u32,
}

/// A session that is to be.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Session {
    /// Number of the node in the list.
    #[serde(skip)]
    from: usize,
    #[serde(rename = "from")]
    from_name: String,
    #[serde(skip)]
    to: End,
    #[serde(rename = "to")]
    to_name: String,
    kind: SessionKind,
    /// Whether both ends are alive, as far as the store knows.
    live: bool,
}

/// The other end of a session, by its number in its list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Node(usize),
    Peer(usize),
}

/// What the ends are to each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum SessionKind {
    /// Equals.
    Mesh,
    /// The first reflects to the second.
    Client,
    /// Nodes of different ASes, or a peer outside.
    External,
}

pub(crate) async fn run(store: &StoreArgs, args: &TopologyArgs, output: &Output) -> Result<(), Failure> {
    let store = objects::open(store)?;
    let (graph, problems) = read(store.as_ref()).await?;
    match args.draw {
        Some(Drawing::Svg) => output.print(&svg::draw(&graph))?,
        Some(Drawing::Dot) => output.print(&dot::draw(&graph))?,
        None => output.show(|colour| text(&graph, colour), &graph)?,
    }
    if problems.is_empty() { Ok(()) } else { Err(Failure::Failed(problems.join("\n"))) }
}

/// What the store has of it.
#[derive(Debug, Default)]
struct Found {
    config: ClusterConfig,
    records: BTreeMap<NodeName, NodeRecord>,
    live: BTreeSet<NodeName>,
    drained: BTreeSet<NodeName>,
    reflectors: BTreeSet<NodeName>,
    peers: BTreeMap<ObjectName, BgpPeer>,
}

async fn read(store: &dyn Store) -> Result<(Graph, Vec<String>), Failure> {
    let (mut found, mut problems) = (Found::default(), vec![]);
    for kind in [Kind::ClusterConfig, Kind::BgpPeer, Kind::Reflector] {
        let (documents, wrong) = objects::list(store, kind).await?;
        problems.extend(wrong);
        for (document, _) in documents {
            match document {
                Document::ClusterConfig(config) => found.config = config,
                Document::BgpPeer { name, spec } => drop(found.peers.insert(name, spec)),
                Document::Reflector { node, .. } => drop(found.reflectors.insert(node)),
                _ => {}
            }
        }
    }
    for prefix in ["nodes/", "live/", "drained/"] {
        for entry in store.list(prefix).await?.entries {
            match entry.key.parse() {
                Ok(Key::Node(name)) => match decode(&entry.value) {
                    Ok(record) => drop(found.records.insert(name, record)),
                    Err(error) => problems.push(format!("{}: {error}", entry.key)),
                },
                Ok(Key::Live(name)) => drop(found.live.insert(name)),
                Ok(Key::Drained(name)) => drop(found.drained.insert(name)),
                Ok(_) => {}
                Err(error) => problems.push(error.to_string()),
            }
        }
    }
    Ok((graph(&found), problems))
}

fn graph(found: &Found) -> Graph {
    let bgp = &found.config.bgp;
    let is_bgp = found.config.backend == Backend::Bgp;
    let rule = Rule::new(bgp, found.reflectors.clone());
    // Each AS has a topology of its own. All sessions count as up: what a node takes besides is its own affair.
    let mut members: BTreeMap<u32, BTreeMap<NodeName, Member>> = BTreeMap::new();
    for (name, record) in &found.records {
        let member = Member::new(record, found.live.contains(name), !found.drained.contains(name));
        members.entry(bgp.asn_of(record).number()).or_default().insert(name.clone(), member);
    }
    let mut views: BTreeMap<u32, View> = BTreeMap::new();
    for (asn, members) in members {
        let Some(one) = members.keys().next().cloned() else { continue };
        let live = found.live.clone();
        let mut chooser = Chooser::new(one);
        chooser.follow(rule.clone(), members);
        views.insert(asn, chooser.view(Duration::ZERO, |node| live.contains(node)));
    }
    let node = |(name, record): (&NodeName, &NodeRecord)| {
        let asn = bgp.asn_of(record).number();
        Node {
            name: name.clone(),
            addresses: addresses(record),
            asn,
            zone: record.labels.get(ZONE).cloned(),
            reflector: is_bgp && views.get(&asn).is_some_and(|view| view.reflects(name)),
            live: found.live.contains(name),
            drained: found.drained.contains(name),
        }
    };
    let nodes: Vec<Node> = found.records.iter().map(node).collect();
    let peer = |(name, peer): (&ObjectName, &BgpPeer)| Peer {
        name: name.clone(),
        address: peer.address,
        asn: peer.asn.number(),
    };
    let peers: Vec<Peer> = found.peers.iter().map(peer).collect();
    let sessions = if is_bgp { sessions(found, &nodes, &views) } else { vec![] };
    let words: Vec<String> = match views.len() {
        0 | 1 => views.values().map(|view| view.words(&rule)).collect(),
        _ => views.iter().map(|(asn, view)| format!("AS {asn}: {}", view.words(&rule))).collect(),
    };
    Graph {
        backend: found.config.backend.to_string(),
        topology: is_bgp.then(|| words.join("; ")),
        nodes,
        peers,
        sessions,
    }
}

fn addresses(record: &NodeRecord) -> Vec<IpAddr> {
    let v4 = record.address_v4.map(IpAddr::V4);
    v4.into_iter().chain(record.address_v6.map(IpAddr::V6)).collect()
}

fn sessions(found: &Found, nodes: &[Node], views: &BTreeMap<u32, View>) -> Vec<Session> {
    let session = |from: usize, to: End, to_name: String, kind, live| Session {
        from,
        from_name: nodes[from].name.to_string(),
        to,
        to_name,
        kind,
        live,
    };
    let mut all = vec![];
    for (i, one) in nodes.iter().enumerate() {
        for (j, other) in nodes.iter().enumerate().skip(i + 1) {
            // A session has one address family.
            if !one.addresses.iter().any(|a| other.addresses.iter().any(|b| a.is_ipv4() == b.is_ipv4())) {
                continue;
            }
            let (from, to, kind) = if one.asn == other.asn {
                let Some(view) = views.get(&one.asn) else { continue };
                let link = Link::new(view, &one.name, &other.name, true);
                match (link.role, link.standing) {
                    (_, Standing::Leaving) => continue,
                    (Role::Client, _) => (i, j, SessionKind::Client),
                    (Role::Reflector, _) => (j, i, SessionKind::Client),
                    (Role::Mesh | Role::External, _) => (i, j, SessionKind::Mesh),
                }
            } else {
                (i, j, SessionKind::External)
            };
            let name = nodes[to].name.to_string();
            all.push(session(from, End::Node(to), name, kind, one.live && other.live));
        }
        let Some(record) = found.records.get(&one.name) else { continue };
        for (at, (name, peer)) in found.peers.iter().enumerate() {
            if peer.node_selector.matches(&record.labels) {
                let internal = peer.asn.number() == one.asn;
                let kind = if internal { SessionKind::Mesh } else { SessionKind::External };
                all.push(session(i, End::Peer(at), name.to_string(), kind, one.live));
            }
        }
    }
    all
}

fn text(graph: &Graph, colour: bool) -> String {
    let mut shown = match &graph.topology {
        Some(words) => format!("{words}\n"),
        None => format!("the backend is {}: nodes have no BGP sessions\n", graph.backend),
    };
    let mut table = Table::new(&["NODE", "STATE", "ROLE", "AS", "ZONE", "SESSIONS", "PEERS OUTSIDE"]);
    for (at, node) in graph.nodes.iter().enumerate() {
        let within = graph.sessions.iter().filter(|session| match session.to {
            End::Node(to) => session.from == at || to == at,
            End::Peer(_) => false,
        });
        let outside =
            graph.sessions.iter().filter(|session| session.from == at && matches!(session.to, End::Peer(_)));
        let state = match (node.live, node.drained) {
            (true, false) => Cell::toned("live", Tone::Good),
            (true, true) => Cell::toned("live, drained", Tone::Warning),
            (false, _) => Cell::toned("down", Tone::Bad),
        };
        table.row(vec![
            node.name.as_str().into(),
            state,
            if node.reflector { "reflector" } else { "" }.into(),
            node.asn.to_string().into(),
            node.zone.clone().unwrap_or_default().into(),
            within.count().to_string().into(),
            join(outside.map(|session| session.to_name.clone())).into(),
        ]);
    }
    shown += &table.render(colour, 0);
    shown
}

#[cfg(test)]
mod tests {
    use podway_model::cluster::Topology;
    use podway_model::k8s::LabelSelector;

    use super::*;

    fn name(text: &str) -> NodeName {
        text.parse().unwrap()
    }

    fn record(i: usize) -> NodeRecord {
        let zone = (ZONE.to_owned(), format!("z{}", i % 3));
        serde_json::from_value(serde_json::json!({
            "instanceId": "00000000-0000-4000-8000-000000000001",
            "addressV4": format!("10.0.0.{i}"),
            "labels": {zone.0: zone.1},
            "version": "0.1.0",
        }))
        .unwrap()
    }

    /// Seven nodes, of which one is down and one is drained, and a router that two of them know.
    fn found(topology: Topology) -> Found {
        let mut found = Found::default();
        found.config.backend = Backend::Bgp;
        found.config.bgp.topology = topology;
        found.config.bgp.mesh_up_to = 5;
        for i in 1..8 {
            found.records.insert(name(&format!("n{i}")), record(i));
            found.live.insert(name(&format!("n{i}")));
        }
        found.live.remove(&name("n7"));
        found.drained.insert(name("n3"));
        let selector = LabelSelector {
            match_labels: [(ZONE.to_owned(), "z1".to_owned())].into(),
            ..LabelSelector::default()
        };
        let peer = serde_json::json!({"address": "192.0.2.1", "asn": 64999, "nodeSelector": selector});
        found.peers.insert("tor1".parse().unwrap(), serde_json::from_value(peer).unwrap());
        found
    }

    #[test]
    fn a_mesh_and_reflectors_as_tables() {
        let mut shown = String::new();
        for topology in [Topology::Mesh, Topology::Auto] {
            shown += &text(&graph(&found(topology)), false);
            shown.push('\n');
        }
        let mut by_hand = found(Topology::Reflectors);
        by_hand.reflectors.insert(name("n2"));
        by_hand.records.get_mut(&name("n5")).unwrap().asn = Some(65005.try_into().unwrap());
        shown += &text(&graph(&by_hand), false);
        let mut none = found(Topology::Mesh);
        none.config.backend = Backend::Vxlan;
        shown += &text(&graph(&none), false);
        insta::assert_snapshot!(shown);
    }

    #[test]
    fn the_sessions_are_those_that_the_nodes_look_for() {
        let graph = graph(&found(Topology::Auto));
        let reflectors = graph.nodes.iter().filter(|node| node.reflector).count();
        let within = graph.sessions.iter().filter(|session| matches!(session.to, End::Node(_))).count();
        assert_eq!((reflectors, within), (3, 3 + 3 * 4));
        assert!(graph.nodes.iter().all(|node| !(node.reflector && node.drained)));
    }

    #[test]
    fn drawings_name_everybody_and_stay_as_they_are() {
        let graph = graph(&found(Topology::Auto));
        let (dot, svg) = (dot::draw(&graph), svg::draw(&graph));
        for node in &graph.nodes {
            assert!(dot.contains(node.name.as_str()) && svg.contains(&format!(">{}<", node.name)));
        }
        assert_eq!(svg.matches("<line").count(), graph.sessions.len());
        insta::assert_snapshot!("dot", dot);
        insta::assert_snapshot!("svg", svg);
    }
}
