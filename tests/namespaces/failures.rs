//! Nodes that die and daemons that restart, told apart: BFD between nodes, and the question to the peer's kernel.
//!
//! What a death takes is printed; that it is no graceful restart is proved by its restart time, which is longer than any
//! test waits.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use podway_model::cluster::Backend;
use podway_model::names;
use podway_model::socket::BgpPeerStatus;
use podway_testkit::cluster::{Cluster, ClusterOptions};
use podway_testkit::lab::Node;
use podway_testkit::objects;
use podway_testkit::wait::wait_until_ok;
use serde_json::{Value, json};

use crate::restarts::{connected, without_loss};
use crate::{run, with_pods};

const PATIENCE: Duration = Duration::from_secs(30);
/// Longer than any test: routes that go earlier went by a verdict.
const RESTART_TIME: u16 = 600;

/// Three nodes that watch each other at 3 x 100 ms, with pods. `prepare` runs before any daemon starts.
fn watched(test: &str, prepare: impl Fn(&Node) -> Result<()>) -> Result<Cluster> {
    watched_with(ClusterOptions::new(test, Backend::Bgp), ClusterOptions::documents, prepare)
}

fn watched_with(
    options: ClusterOptions,
    documents: impl Fn(&ClusterOptions) -> Vec<Value>,
    prepare: impl Fn(&Node) -> Result<()>,
) -> Result<Cluster> {
    let cluster = Cluster::without_daemons(options)?;
    for node in &cluster.lab.nodes {
        prepare(node)?;
    }
    let bgp = json!({"restartTimeSeconds": RESTART_TIME, "bfd": {"intervalMs": 100, "multiplier": 3}});
    let mut documents = documents(&cluster.options);
    documents[0]["spec"]["bgp"] = bgp;
    cluster.lab.apply(&objects::documents(documents))?;
    let mut cluster = cluster;
    cluster.lab.start_daemons()?;
    with_pods(cluster)
}

/// Waits until all sessions are up by BGP and BFD, nothing is stale, and kernels say what they shall.
fn settled(cluster: &Cluster, kernel: &str) -> Result<()> {
    sessions_are_watched(cluster, kernel)?;
    connected(cluster)
}

fn sessions_are_watched(cluster: &Cluster, kernel: &str) -> Result<()> {
    let others = cluster.lab.nodes.len() - 1;
    cluster.lab.wait_on_all("sessions and BFD are up", PATIENCE, |node| {
        let peers = node.bgp_peers()?;
        let good = |peer: &BgpPeerStatus| {
            peer.state == "Established"
                && peer.stale == 0
                && peer.bfd.as_deref() == Some("up")
                && peer.kernel.as_deref() == Some(kernel)
        };
        ensure!(peers.len() == others && peers.iter().all(good), "{peers:?}");
        Ok(())
    })
}

/// Waits until what `node` says of a peer is right.
fn peer_is(node: &Node, name: &str, right: impl Fn(&BgpPeerStatus) -> bool) -> Result<()> {
    wait_until_ok(&format!("{} knows what is with {name}", node.name()), PATIENCE, || {
        let peers = node.bgp_peers()?;
        let peer = peers.iter().find(|peer| peer.name == name).context("no such peer")?;
        ensure!(right(peer), "{peer:?}");
        Ok(())
    })
}

/// Whether the kernel of the first node sends packets for the last node's pod to that node.
fn leads_there(cluster: &Cluster) -> Result<bool> {
    let (first, last) = (cluster.node_at(0)?, cluster.node_at(2)?);
    let pod = cluster.pod_on(2)?.addresses[0].to_string();
    // Without any route the command fails: that is an answer too.
    let found = first.place.run("ip", &["route", "get", &pod]).unwrap_or_default();
    let (v4, v6) = (last.addresses.v4, last.addresses.v6);
    Ok(found.contains(&format!("via {v4} ")) || found.contains(&format!("via {v6} ")))
}

/// Waits until it no longer does, and prints how long that took.
#[expect(clippy::print_stdout, reason = "a measured time, for people")]
fn gone(cluster: &Cluster, what: &str, since: Instant) -> Result<()> {
    wait_until_ok("the routes of the last node are gone", PATIENCE, || {
        if leads_there(cluster)? { bail!("{:?}", cluster.node_at(0)?.bgp_peers()?) } else { Ok(()) }
    })?;
    println!("{what}: routes gone after {} ms", since.elapsed().as_millis());
    Ok(())
}

#[test]
fn a_killed_daemon_that_is_watched_loses_no_packet() {
    run("a_killed_daemon_that_is_watched_loses_no_packet", || {
        let mut cluster = watched("killed-watched", |_| Ok(()))?;
        settled(&cluster, "answers")?;
        without_loss(&mut cluster, |cluster| {
            cluster.lab.nodes[2].kill_routed()?;
            for node in &cluster.lab.nodes[..2] {
                // Its BFD is silent, its kernel is asked, and its routes stay.
                peer_is(node, "n3", |peer| {
                    let asked = peer.kernel.as_deref() == Some("asked while its daemon is away");
                    asked && peer.stale > 0 && peer.bfd.as_deref().is_some_and(|bfd| bfd.starts_with("down"))
                })?;
            }
            ensure!(leads_there(cluster)?, "the routes stay");
            cluster.lab.nodes[2].start_routed()?;
            cluster.lab.nodes[2].wait_ready(PATIENCE)?;
            settled(cluster, "answers")
        })
    });
}

#[test]
fn the_routes_of_a_node_that_is_cut_off_go_at_once() {
    run("the_routes_of_a_node_that_is_cut_off_go_at_once", || {
        let cluster = watched("cut-off", |_| Ok(()))?;
        settled(&cluster, "answers")?;
        ensure!(leads_there(&cluster)?, "there is a route to lose");
        let since = Instant::now();
        cluster.lab.underlay.set_cable("n3", false)?;
        gone(&cluster, "link cut", since)?;
        peer_is(cluster.node_at(0)?, "n3", |peer| peer.kernel.as_deref() == Some("dead"))?;
        ensure!(cluster.node_at(0)?.podwayctl_ok(&["bgp", "peers"], "")?.contains("KERNEL"), "shown");
        // It was alive all the time, and comes back by itself.
        cluster.lab.underlay.set_cable("n3", true)?;
        settled(&cluster, "answers")
    });
}

#[test]
fn the_routes_of_a_node_that_is_shut_down_stay_until_its_last_packet() {
    run("the_routes_of_a_node_that_is_shut_down_stay_until_its_last_packet", || {
        let mut cluster = watched("shut-down", |_| Ok(()))?;
        settled(&cluster, "answers")?;
        cluster.lab.nodes[2].routed.as_mut().context("it runs")?.terminate(PATIENCE)?;
        peer_is(cluster.node_at(0)?, "n3", |peer| peer.state != "Established" && peer.stale > 0)?;
        ensure!(leads_there(&cluster)?, "its kernel forwards");
        let since = Instant::now();
        cluster.lab.underlay.set_cable("n3", false)?;
        gone(&cluster, "orderly shutdown", since)?;
        peer_is(cluster.node_at(0)?, "n3", |peer| peer.kernel.as_deref() == Some("dead"))
    });
}

#[test]
fn a_restart_loses_no_packet_where_echoes_are_filtered() {
    run("a_restart_loses_no_packet_where_echoes_are_filtered", || {
        let deaf = |node: &Node| node.place.sysctl("net.ipv4.icmp_echo_ignore_all", "1");
        let mut cluster = watched("filtered", deaf)?;
        settled(&cluster, "does not answer echoes")?;
        without_loss(&mut cluster, |cluster| {
            cluster.lab.nodes[2].kill_routed()?;
            for node in &cluster.lab.nodes[..2] {
                peer_is(node, "n3", |peer| {
                    peer.stale > 0 && peer.bfd.as_deref().is_some_and(|bfd| bfd.starts_with("down"))
                })?;
            }
            cluster.lab.nodes[2].start_routed()?;
            cluster.lab.nodes[2].wait_ready(PATIENCE)?;
            settled(cluster, "does not answer echoes")
        })
    });
}

/// Nodes that have IPv6 addresses only, and pods too.
#[test]
fn all_of_it_holds_over_ipv6() {
    run("all_of_it_holds_over_ipv6", || {
        let pools = |options: &ClusterOptions| {
            let config = options.documents().remove(0);
            vec![config, objects::podway_document("Pool", "default-v6", json!({"cidr": objects::POOL_V6}))]
        };
        let only_v6 = |node: &Node| {
            let config = node.read_file(names::CONFIG_FILE)?;
            let addresses = format!("node:\n  addresses: [\"{}\"]\n", node.addresses.v6);
            node.write_file(names::CONFIG_FILE, &config.replacen("node:\n", &addresses, 1))
        };
        let mut cluster = watched_with(ClusterOptions::new("over-ipv6", Backend::Bgp), pools, only_v6)?;
        let settled = |cluster: &Cluster| {
            sessions_are_watched(cluster, "answers")?;
            for node in &cluster.lab.nodes {
                let peers = node.bgp_peers()?;
                ensure!(peers.iter().all(|peer| peer.address.is_ipv6()), "{peers:?}");
            }
            wait_until_ok("the route is there", PATIENCE, || {
                ensure!(leads_there(cluster)?, "not yet");
                Ok(())
            })
        };
        settled(&cluster)?;
        ensure!(
            cluster.pods.iter().all(|pod| pod.addresses.iter().all(std::net::IpAddr::is_ipv6)),
            "IPv6 only"
        );
        without_loss(&mut cluster, |cluster| {
            cluster.lab.nodes[2].kill_routed()?;
            peer_is(cluster.node_at(0)?, "n3", |peer| peer.stale > 0)?;
            cluster.lab.nodes[2].start_routed()?;
            cluster.lab.nodes[2].wait_ready(PATIENCE)?;
            settled(cluster)
        })?;
        let since = Instant::now();
        cluster.lab.underlay.set_cable("n3", false)?;
        gone(&cluster, "link cut, IPv6", since)?;
        peer_is(cluster.node_at(0)?, "n3", |peer| peer.kernel.as_deref() == Some("dead"))?;
        // From a mesh to reflectors and back, without n3.
        cluster.lab.underlay.set_cable("n3", true)?;
        settled(&cluster)?;
        let reflect = |topology: &str| {
            let mut config = cluster.options.documents().remove(0);
            config["spec"]["bgp"] = json!({
                "topology": topology, "restartTimeSeconds": RESTART_TIME,
                "bfd": {"intervalMs": 100, "multiplier": 3},
            });
            config
        };
        let reflector = objects::podway_document("Reflector", "n2", json!({}));
        cluster.lab.apply(&objects::documents([reflect("reflectors"), reflector]))?;
        wait_until_ok("n1 and n3 have no session with each other", PATIENCE, || {
            let peers = cluster.node_at(0)?.bgp_peers()?;
            ensure!(peers.len() == 1 && peers[0].name == "n2" && leads_there(&cluster)?, "{peers:?}");
            Ok(())
        })
    });
}
