//! Who has BGP sessions with whom changes while packets flow, one each millisecond; reflectors die; nodes are drained.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use podway_model::cluster::Backend;
use podway_model::socket::BgpPeerStatus;
use podway_testkit::cluster::{Cluster, ClusterOptions};
use podway_testkit::flow::{Flow, FlowReport};
use podway_testkit::objects;
use podway_testkit::wait::wait_until_ok;
use serde_json::{Value, json};

use crate::restarts::connected;
use crate::{run, with_pods};

/// A change of topology looks once a second, and a reflector that is gone is waited for.
const PATIENCE: Duration = Duration::from_secs(60);
/// Longer than any test: what goes earlier went for another reason.
const RESTART_TIME: u16 = 600;

/// A cluster of so many nodes with these settings of BGP and with these reflectors, and with pods.
fn cluster(test: &str, nodes: usize, ipv6: bool, bgp: &Value, reflectors: &[&str]) -> Result<Cluster> {
    let mut options = ClusterOptions::new(test, Backend::Bgp);
    (options.lab.nodes, options.ipv6) = (nodes, ipv6);
    let mut cluster = Cluster::without_daemons(options)?;
    let mut documents = cluster.options.documents();
    documents[0]["spec"]["bgp"] = bgp.clone();
    documents.extend(reflectors.iter().map(|node| objects::podway_document("Reflector", node, json!({}))));
    cluster.lab.apply(&objects::documents(documents))?;
    cluster.lab.start_daemons()?;
    with_pods(cluster)
}

/// Applies other settings of BGP.
fn configure(cluster: &Cluster, bgp: &Value) -> Result<()> {
    let mut config = cluster.options.documents().remove(0);
    config["spec"]["bgp"] = bgp.clone();
    cluster.lab.apply(&objects::documents([config]))
}

/// Waits until every node has the sessions of the topology and no others: with `reflectors` or, if there are none, with
/// everybody.
fn has_sessions(cluster: &Cluster, reflectors: &[&str]) -> Result<()> {
    let names: Vec<&str> = cluster.lab.nodes.iter().map(|node| node.name()).collect();
    cluster.lab.wait_on_all("the sessions of the topology, and no others", PATIENCE, |node| {
        let wanted: BTreeSet<&str> = names
            .iter()
            .copied()
            .filter(|other| *other != node.name())
            .filter(|other| {
                reflectors.is_empty() || reflectors.contains(&node.name()) || reflectors.contains(other)
            })
            .collect();
        let peers = node.bgp_peers()?;
        let up: BTreeSet<&str> =
            peers.iter().filter(|p| p.state == "Established").map(|p| p.name.as_str()).collect();
        ensure!(up == wanted && peers.iter().all(|p| p.stale == 0), "{peers:?}");
        Ok(())
    })
}

/// Runs `act` while packets flow from every node to the next, and answers what became of them, by pair.
fn under_flows(
    cluster: &mut Cluster,
    act: impl FnOnce(&mut Cluster) -> Result<()>,
) -> Result<Vec<(String, FlowReport)>> {
    let nodes = cluster.lab.nodes.len();
    let pairs: Vec<(usize, usize)> = (0..nodes).map(|from| (from, (from + 1) % nodes)).collect();
    while_flowing(cluster, &pairs, act)
}

/// Runs `act` while packets flow between pods of these nodes, in all their families.
fn while_flowing(
    cluster: &mut Cluster,
    pairs: &[(usize, usize)],
    act: impl FnOnce(&mut Cluster) -> Result<()>,
) -> Result<Vec<(String, FlowReport)>> {
    let mut flows = vec![];
    for (from, to) in pairs {
        let (one, other) = (cluster.pod_on(*from)?, cluster.pod_on(*to)?);
        for address in &other.addresses {
            let flow = Flow::start(one.net(), other.net(), *address, Duration::from_millis(1))?;
            flows.push((format!("n{} to n{} at {address}", from + 1, to + 1), flow));
        }
    }
    for (_, flow) in &flows {
        flow.wait_for(100)?;
    }
    act(cluster)?;
    let mut reports = vec![];
    for (pair, flow) in flows {
        flow.wait_for(100)?;
        reports.push((pair, flow.stop()?));
    }
    Ok(reports)
}

#[expect(clippy::print_stdout, reason = "measured losses, for people")]
fn nothing_lost(what: &str, reports: &[(String, FlowReport)]) -> Result<()> {
    for (pair, report) in reports {
        println!("{what}: {pair}: {} sent, {} lost", report.sent, report.lost());
    }
    ensure!(reports.iter().all(|(_, report)| report.lost() == 0), "packets were lost: {reports:?}");
    Ok(())
}

#[test]
fn topologies_change_under_flows_and_lose_no_packet() {
    run("topologies_change_under_flows_and_lose_no_packet", || {
        let mesh = json!({"topology": "mesh", "restartTimeSeconds": RESTART_TIME});
        let mut cluster = cluster("topologies", 5, true, &mesh, &["n1", "n2"])?;
        has_sessions(&cluster, &[])?;
        connected(&cluster)?;
        let reports = under_flows(&mut cluster, |cluster| {
            configure(cluster, &json!({"topology": "reflectors", "restartTimeSeconds": RESTART_TIME}))?;
            // In the midst of it daemons are killed, one of a reflector among them.
            for index in [0, 2] {
                cluster.lab.nodes[index].kill_routed()?;
                cluster.lab.nodes[index].start_routed()?;
            }
            has_sessions(cluster, &["n1", "n2"])?;
            let ctl = |args: &[&str]| cluster.lab.nodes[0].podwayctl_ok(args, "");
            // By hand: another one comes, one goes.
            ctl(&["bgp", "reflector", "add", "n4", "--cluster-id", "10.9.9.9"])?;
            has_sessions(cluster, &["n1", "n2", "n4"])?;
            ctl(&["bgp", "reflector", "remove", "n1"])?;
            has_sessions(cluster, &["n2", "n4"])?;
            // Every node chooses the same ones by itself, and is a mesh again where few are enough.
            let auto = json!({"topology": "auto", "meshUpTo": 4, "restartTimeSeconds": RESTART_TIME});
            configure(cluster, &auto)?;
            ctl(&["bgp", "reflector", "remove", "n2"])?;
            ctl(&["bgp", "reflector", "remove", "n4"])?;
            let chosen = chosen(cluster)?;
            ensure!(chosen.len() == 3, "three of five reflect: {chosen:?}");
            has_sessions(cluster, &chosen.iter().map(String::as_str).collect::<Vec<_>>())?;
            let shown = ctl(&["topology"])?;
            ensure!(shown.starts_with(&format!("auto: reflectors {}\n", chosen.join(", "))), "{shown}");
            configure(cluster, &mesh)?;
            has_sessions(cluster, &[])
        })?;
        nothing_lost("mesh, reflectors, others, auto, mesh", &reports)?;
        connected(&cluster)
    });
}

/// The reflectors that all nodes see, once they see the same.
fn chosen(cluster: &Cluster) -> Result<Vec<String>> {
    let mut found = vec![];
    wait_until_ok("all nodes see the same reflectors, which they chose", PATIENCE, || {
        let mut seen = BTreeSet::new();
        for node in &cluster.lab.nodes {
            seen.insert(node.status()?.0.topology.context("BGP runs")?);
        }
        ensure!(seen.len() == 1, "{seen:?}");
        let one = seen.pop_first().unwrap_or_default();
        let names = one.strip_prefix("auto: reflectors ").with_context(|| format!("{one:?}"))?;
        found = names.split(", ").map(str::to_owned).collect();
        Ok(())
    })?;
    Ok(found)
}

#[test]
fn a_reflector_that_dies_costs_its_clients_nothing_but_what_it_carried() {
    run("a_reflector_that_dies_costs_its_clients_nothing_but_what_it_carried", || {
        let bgp = json!({
            "topology": "reflectors", "restartTimeSeconds": RESTART_TIME,
            "bfd": {"intervalMs": 100, "multiplier": 3},
        });
        let mut cluster = cluster("reflector-dies", 4, false, &bgp, &["n1", "n2"])?;
        has_sessions(&cluster, &["n1", "n2"])?;
        connected(&cluster)?;
        is_watched(&cluster)?;
        let dead = cluster.lab.nodes[0].addresses.v4;
        let reports = while_flowing(&mut cluster, &CLIENTS, |cluster| {
            // The daemon alone is killed, and comes back; then the node is cut off for good.
            cluster.lab.nodes[0].kill_routed()?;
            cluster.lab.nodes[0].start_routed()?;
            cluster.lab.nodes[0].wait_ready(PATIENCE)?;
            has_sessions(cluster, &["n1", "n2"])?;
            is_watched(cluster)?;
            let since = Instant::now();
            cluster.lab.underlay.set_cable("n1", false)?;
            wait_until_ok("routes by way of the dead reflector are gone", PATIENCE, || {
                for node in &cluster.lab.nodes[1..] {
                    let routes = node.place.run("ip", &["route"])?;
                    ensure!(!routes.contains(&format!("via {dead} ")), "{routes}");
                }
                Ok(())
            })?;
            took("a reflector that is cut off: its routes are gone from everybody", since);
            Ok(())
        })?;
        nothing_lost("reflector killed, then cut off", &reports)
    });
}

/// Waits until all sessions are watched, and all kernels known to answer.
fn is_watched(cluster: &Cluster) -> Result<()> {
    cluster.lab.wait_on_all("BFD is up with everybody", PATIENCE, |node| {
        let peers = node.bgp_peers()?;
        let good = |peer: &BgpPeerStatus| {
            peer.bfd.as_deref() == Some("up") && peer.kernel.as_deref() == Some("answers")
        };
        ensure!(peers.iter().all(good), "{peers:?}");
        Ok(())
    })
}

#[expect(clippy::print_stdout, reason = "a measured time, for people")]
fn took(what: &str, since: Instant) {
    println!("{what} after {} ms", since.elapsed().as_millis());
}

/// Two nodes that do not reflect, both ways.
const CLIENTS: [(usize, usize); 2] = [(2, 3), (3, 2)];

#[test]
fn claims_in_the_store_lead_where_no_reflector_is_up() {
    run("claims_in_the_store_lead_where_no_reflector_is_up", || {
        // Without graceful restart: what a reflector told is gone with its session.
        let bgp = json!({"topology": "reflectors", "restartTimeSeconds": 0});
        let mut cluster = cluster("no-reflector", 4, true, &bgp, &["n1"])?;
        has_sessions(&cluster, &["n1"])?;
        connected(&cluster)?;
        let reports = while_flowing(&mut cluster, &CLIENTS, |cluster| {
            cluster.lab.nodes[0].kill_routed()?;
            for node in &cluster.lab.nodes[1..] {
                wait_until_ok("its clients have no session", PATIENCE, || {
                    ensure!(node.bgp_peers()?.iter().all(|p| p.state != "Established"), "one is up");
                    Ok(())
                })?;
            }
            // A daemon that begins now has nothing but the store.
            cluster.lab.nodes[2].kill_routed()?;
            cluster.lab.nodes[2].start_routed()?;
            cluster.lab.nodes[2].wait_ready(PATIENCE)?;
            connected(cluster)?;
            cluster.lab.nodes[0].start_routed()?;
            cluster.lab.nodes[0].wait_ready(PATIENCE)?;
            has_sessions(cluster, &["n1"])
        })?;
        nothing_lost("no reflector", &reports)?;
        connected(&cluster)
    });
}

#[test]
fn a_drained_node_says_so_in_its_routes_and_goes_on() {
    run("a_drained_node_says_so_in_its_routes_and_goes_on", || {
        let mut cluster = cluster("drained", 3, false, &json!({"topology": "mesh"}), &[])?;
        has_sessions(&cluster, &[])?;
        connected(&cluster)?;
        let reports = under_flows(&mut cluster, |cluster| {
            says_it_is_drained(cluster, false)?;
            let node = &cluster.lab.nodes[0];
            node.podwayctl_ok(&["node", "drain", "n1", "--reason", "new disk"], "")?;
            says_it_is_drained(cluster, true)?;
            let nodes = cluster.lab.nodes[0].podwayctl_ok(&["node", "list"], "")?;
            ensure!(nodes.contains("live, drained"), "{nodes}");
            // It holds over a restart.
            cluster.lab.nodes[0].kill_routed()?;
            cluster.lab.nodes[0].start_routed()?;
            cluster.lab.nodes[0].wait_ready(PATIENCE)?;
            has_sessions(cluster, &[])?;
            says_it_is_drained(cluster, true)?;
            cluster.lab.nodes[0].podwayctl_ok(&["node", "undrain", "n1"], "")?;
            says_it_is_drained(cluster, false)
        })?;
        nothing_lost("drained, restarted, undrained", &reports)
    });
}

/// Waits until the others hear of the first node's routes that traffic shall leave it, or hear that no longer.
fn says_it_is_drained(cluster: &Cluster, drained: bool) -> Result<()> {
    wait_until_ok("the others hear whether it is drained", PATIENCE, || {
        for node in &cluster.lab.nodes[1..] {
            let routes = node.podwayctl_ok(&["bgp", "received", "n1", "-o", "json"], "")?;
            let routes: Value = serde_json::from_str(&routes)?;
            let routes = routes.as_array().context("a list")?;
            ensure!(!routes.is_empty(), "n1 tells nothing");
            for route in routes {
                let communities = route["communities"].as_array();
                let said = communities.is_some_and(|all| all.iter().any(|one| one == "65535:0"));
                ensure!(said == drained && (route["localPref"] == 0) == drained, "{route}");
            }
        }
        Ok(())
    })
}
