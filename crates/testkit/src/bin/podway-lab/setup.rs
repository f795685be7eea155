//! Step 1: the cluster, and what daemons and kernel say of it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context as _, Result};
use ipnet::IpNet;
use podway_model::cluster::Backend;
use podway_model::names::{POD_ROUTE_PROTOCOL, ROUTE_PROTOCOL};
use podway_testkit::cluster::{Cluster, ClusterOptions, PodPlan};
use podway_testkit::lab::{LabOptions, Node};
use podway_testkit::objects::HOLD_TIME_SECONDS;
use podway_testkit::table::Table;
use podway_testkit::wait::wait_until_ok;

use crate::latency::milliseconds;
use crate::options::Options;
use crate::report::Report;

/// Largest number of rows of a table that grows with the cluster.
const MOST_ROWS: usize = 30;

/// Brings everything up and shows it.
pub(crate) fn up(options: &Options, report: &mut Report) -> Result<Cluster> {
    let backend = Backend::from(options.backend);
    anyhow::ensure!(
        options.reflectors == 0 || backend == Backend::Bgp,
        "--reflectors is for --backend bgp, {backend} found"
    );
    anyhow::ensure!(options.reflectors < options.nodes, "fewer reflectors than nodes are needed");
    report.section(&format!("1. A cluster of {} nodes, backend {backend}", options.nodes));
    if backend == Backend::Bgp {
        let peering = match options.reflectors {
            0 => "full mesh".to_owned(),
            k => format!("{k} of the nodes reflect routes"),
        };
        report.say(&format!(
            "  BGP: {peering}; hold time {HOLD_TIME_SECONDS} s, set for this demo (the default is 90 s): \
             it bounds how long a dead node is believed alive"
        ));
    }
    let mut lab = LabOptions::new(&format!("demo-{backend}"));
    lab.nodes = usize::from(options.nodes);
    lab.store = options.store.into();
    let mut cluster = Cluster::without_daemons(ClusterOptions {
        lab,
        backend,
        reflectors: usize::from(options.reflectors),
        ipv6: options.ipv6,
    })?;
    report.say("  namespaces, underlay and store are up; applying configuration, starting daemons");
    let documents = cluster.options.documents();
    cluster.lab.apply(&podway_testkit::objects::documents(documents))?;
    cluster.lab.start_daemons()?;
    wait_converged(&cluster)?;
    report.say("  daemons are ready on all nodes; calling CNI ADD for the pods");
    cluster.add_namespaces(&[("demo", &[("team", "shop")]), ("ops", &[("team", "ops")])])?;
    cluster.add_pods(&plans(options))?;
    show_nodes(&cluster, report)?;
    show_pods(&cluster, report)?;
    match backend {
        Backend::Bgp => show_sessions(&cluster, report)?,
        Backend::Vxlan => show_tunnels(&cluster, report)?,
        Backend::Ipip | Backend::Wireguard => show_devices(&cluster, report)?,
        Backend::HostGw => {}
    }
    show_routes(&cluster, report)?;
    Ok(cluster)
}

/// Pods `a-1`, `b-1`, ... on node 1, and so on; the last one of each node from the second on lives in namespace
/// `ops` if it has company.
fn plans(options: &Options) -> Vec<PodPlan> {
    let mut plans = vec![];
    for node in 0..usize::from(options.nodes) {
        for pod in 0..usize::from(options.pods_per_node) {
            // a, b, a, b, ...: two applications, whatever the number of pods.
            let app = if pod % 2 == 0 { "a" } else { "b" };
            let in_ops = node > 0 && pod > 0 && pod + 1 == usize::from(options.pods_per_node);
            let letter = char::from(b'a' + u8::try_from(pod % 26).unwrap_or(0));
            let more = if pod < 26 { String::new() } else { (pod / 26).to_string() };
            plans.push(PodPlan {
                namespace: if in_ops { "ops" } else { "demo" }.to_owned(),
                name: format!("{letter}{more}-{}", node + 1),
                node,
                labels: vec![("app".to_owned(), app.to_owned())],
            });
        }
    }
    plans
}

/// Waits until every node has a block and every other node has routes to it.
pub(crate) fn wait_converged(cluster: &Cluster) -> Result<()> {
    cluster.lab.wait_on_all("every other node's blocks are routed", Duration::from_secs(20), |node| {
        let blocks = blocks_by_node(cluster)?;
        let missing = missing_routes(cluster, node, &blocks)?;
        anyhow::ensure!(missing.is_empty(), "no route to {}", join(&missing));
        Ok(())
    })
}

/// Confirmed blocks, as each node says of itself.
pub(crate) fn blocks_by_node(cluster: &Cluster) -> Result<BTreeMap<String, BTreeSet<IpNet>>> {
    let mut blocks = BTreeMap::new();
    for node in cluster.lab.nodes.iter().filter(|node| node.routed.is_some()) {
        let (routed, _) = node.status()?;
        let own: BTreeSet<IpNet> =
            routed.blocks.iter().filter(|b| b.state == "active").map(|b| b.cidr).collect();
        anyhow::ensure!(!own.is_empty(), "{} has no block yet", node.name());
        blocks.insert(node.name().to_owned(), own);
    }
    Ok(blocks)
}

/// Other nodes' blocks to which a node's kernel has no route of ours.
pub(crate) fn missing_routes(
    cluster: &Cluster,
    node: &Node,
    blocks: &BTreeMap<String, BTreeSet<IpNet>>,
) -> Result<BTreeSet<IpNet>> {
    let routed = routed_prefixes(cluster, node)?;
    let others = blocks.iter().filter(|(owner, _)| *owner != node.name()).flat_map(|(_, all)| all);
    Ok(others.filter(|block| !routed.contains(block)).copied().collect())
}

/// Destinations of the routes of `routed` in a node's kernel that lead somewhere.
pub(crate) fn routed_prefixes(cluster: &Cluster, node: &Node) -> Result<BTreeSet<IpNet>> {
    let protocol = ROUTE_PROTOCOL.to_string();
    let mut found = BTreeSet::new();
    for v6 in cluster.families() {
        let family = if *v6 { "-6" } else { "-4" };
        for route in node.place.ip_json(&[family, "route", "show", "proto", &protocol])? {
            let leads_nowhere = route["type"].as_str().is_some_and(|kind| kind != "unicast");
            if let (false, Some(destination)) = (leads_nowhere, route["dst"].as_str()) {
                found.extend(parse_destination(destination));
            }
        }
    }
    Ok(found)
}

/// `ip` writes a host route without its prefix length.
fn parse_destination(text: &str) -> Option<IpNet> {
    text.parse().ok().or_else(|| Some(IpNet::from(text.parse::<std::net::IpAddr>().ok()?)))
}

fn show_nodes(cluster: &Cluster, report: &mut Report) -> Result<()> {
    let mut table =
        Table::new(["NODE", "ADDRESSES", "BLOCKS", "TUNNEL ADDRESS", "MTU", "PODS", "ROUTED", "POLICY"]);
    for node in cluster.lab.nodes.iter().take(MOST_ROWS) {
        let (routed, policy) = node.status()?;
        let pods = cluster.pods.iter().filter(|pod| pod.node == node.name()).count();
        report.expect(policy.endpoints == pods, || {
            format!("{}: policy-agent knows {} local pods, {pods} expected", node.name(), policy.endpoints)
        });
        let leased: u32 = routed.blocks.iter().map(|block| block.leased).sum();
        let wanted = u32::try_from(pods * cluster.families().len()).unwrap_or(u32::MAX);
        report.expect(leased == wanted, || {
            format!("{}: {leased} leased addresses, {wanted} expected", node.name())
        });
        table.row([
            node.name().to_owned(),
            join(&routed.addresses),
            join(routed.blocks.iter().map(|block| block.cidr)),
            join(&routed.tunnel_addresses),
            routed.mtu.to_string(),
            pods.to_string(),
            if routed.ready { "ready" } else { "not ready" }.to_owned(),
            if policy.ready { "ready" } else { "not ready" }.to_owned(),
        ]);
    }
    report.table("Nodes and their address BLOCKs (podwayctl status)", &table);
    Ok(())
}

fn show_pods(cluster: &Cluster, report: &mut Report) -> Result<()> {
    let blocks = blocks_by_node(cluster)?;
    let mut table = Table::new(["POD", "NODE", "ADDRESSES", "CNI ADD"]);
    for (row, pod) in cluster.pods.iter().enumerate() {
        if row < MOST_ROWS {
            table.row([pod.full_name(), pod.node.clone(), join(&pod.addresses), milliseconds(pod.add_took)]);
        }
        let own = blocks.get(&pod.node).with_context(|| format!("blocks of {}", pod.node))?;
        report.expect(pod.addresses.len() == cluster.families().len(), || {
            format!("{} has {} addresses, one per family expected", pod.full_name(), pod.addresses.len())
        });
        for address in pod.addresses.iter().filter(|a| !own.iter().any(|block| block.contains(*a))) {
            report.differ(format!("{}: {address} is in no block of {}", pod.full_name(), pod.node));
        }
    }
    report.table("Pods", &table);
    Ok(())
}

fn show_sessions(cluster: &Cluster, report: &mut Report) -> Result<()> {
    let mut table = Table::new(["NODE", "PEER", "ADDRESS", "AS", "STATE", "ROLE", "RECEIVED", "ADVERTISED"]);
    let (nodes, reflectors) = (cluster.lab.nodes.len(), cluster.options.reflectors);
    for (index, node) in cluster.lab.nodes.iter().enumerate() {
        // Full mesh: all others. With reflectors: they have everybody, the rest has them.
        let expected = if reflectors == 0 || index < reflectors { nodes - 1 } else { reflectors };
        let expected = expected * sessions_per_peer();
        let up = wait_until_ok("BGP sessions are established", Duration::from_secs(10), || {
            let peers = node.bgp_peers()?;
            let up = peers.iter().filter(|p| p.state == "Established").count();
            anyhow::ensure!(up == expected, "{}: {up} sessions of {expected}", node.name());
            Ok(peers)
        });
        let peers = match up {
            Ok(peers) => peers,
            Err(error) => {
                report.differ(format!("{error:#}"));
                node.bgp_peers()?
            }
        };
        for peer in peers.iter().take(MOST_ROWS) {
            table.row([
                node.name().to_owned(),
                peer.name.clone(),
                peer.address.to_string(),
                peer.asn.to_string(),
                peer.state.clone(),
                peer.role.clone(),
                peer.received.to_string(),
                peer.advertised.to_string(),
            ]);
        }
    }
    report.table("BGP sessions (podwayctl bgp peers)", &table);
    Ok(())
}

/// Nodes speak BGP over IPv4 and carry both families in one session.
fn sessions_per_peer() -> usize {
    1
}

fn show_tunnels(cluster: &Cluster, report: &mut Report) -> Result<()> {
    let mut table = Table::new(["NODE", "DEVICE", "MAC", "MTU", "VNI", "PORT", "FDB ENTRIES"]);
    for node in cluster.lab.nodes.iter().take(MOST_ROWS) {
        for link in node.place.ip_json(&["link", "show", "type", "vxlan"])? {
            let name = link["ifname"].as_str().context("name of a vxlan device")?;
            let fdb = node.place.run("bridge", &["-j", "fdb", "show", "dev", name])?;
            let entries: Vec<serde_json::Value> = serde_json::from_str(&fdb).context("output of bridge")?;
            let peers = entries.iter().filter(|entry| entry["dst"].is_string()).count();
            let data = &link["linkinfo"]["info_data"];
            report.expect(peers == cluster.lab.nodes.len() - 1, || {
                format!("{}: {name} has {peers} FDB entries", node.name())
            });
            table.row([
                node.name().to_owned(),
                name.to_owned(),
                link["address"].as_str().unwrap_or_default().to_owned(),
                link["mtu"].to_string(),
                data["id"].to_string(),
                data["port"].to_string(),
                peers.to_string(),
            ]);
        }
    }
    report.table("Tunnel devices (kernel)", &table);
    Ok(())
}

/// Devices that the kernel's own tools tell little of: what the daemon read back from the kernel.
fn show_devices(cluster: &Cluster, report: &mut Report) -> Result<()> {
    let mut table = Table::new(["NODE", "DEVICE", "MTU", "PEERS"]);
    for node in cluster.lab.nodes.iter().take(MOST_ROWS) {
        let (routed, _) = node.status()?;
        report.expect(!routed.devices.is_empty(), || format!("{} has no tunnel device", node.name()));
        for device in routed.devices {
            // One next hop per peer and family, or one peer for both.
            report.expect(device.peers == cluster.lab.nodes.len() - 1, || {
                format!("{}: {} has {} peers", node.name(), device.name, device.peers)
            });
            table.row([
                node.name().to_owned(),
                device.name,
                device.mtu.to_string(),
                device.peers.to_string(),
            ]);
        }
    }
    report.table("Tunnel devices (podwayctl status)", &table);
    Ok(())
}

fn show_routes(cluster: &Cluster, report: &mut Report) -> Result<()> {
    let blocks = blocks_by_node(cluster)?;
    for node in &cluster.lab.nodes {
        for block in missing_routes(cluster, node, &blocks)? {
            report.differ(format!("{} has no route to {block}", node.name()));
        }
    }
    let node = cluster.node_at(0)?;
    let mut table = Table::new(["DESTINATION", "KIND", "VIA", "DEVICE", "SET BY"]);
    for v6 in cluster.families() {
        let family = if *v6 { "-6" } else { "-4" };
        for (protocol, who) in [(ROUTE_PROTOCOL, "routed"), (POD_ROUTE_PROTOCOL, "CNI plugin")] {
            let routes = node.place.ip_json(&[family, "route", "show", "proto", &protocol.to_string()])?;
            for route in routes.iter().take(MOST_ROWS) {
                let text = |key: &str| route[key].as_str().unwrap_or("-").to_owned();
                table.row([text("dst"), text("type"), text("gateway"), text("dev"), who.to_owned()]);
            }
        }
    }
    report.table(&format!("Routes on {} (kernel)", node.name()), &table);
    Ok(())
}

/// Comma-separated.
pub(crate) fn join<T: ToString>(all: impl IntoIterator<Item = T>) -> String {
    let texts: Vec<String> = all.into_iter().map(|one| one.to_string()).collect();
    if texts.is_empty() { "-".to_owned() } else { texts.join(", ") }
}
