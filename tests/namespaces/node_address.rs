//! How a node finds its addresses, with real daemons: each key that says so, changes while `routed` runs, and two nodes that
//! publish one address.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use podway_model::cluster::Backend;
use podway_testkit::cluster::{Cluster, ClusterOptions};
use podway_testkit::lab::Node;
use podway_testkit::wait::{wait_until, wait_until_ok};

use crate::{run, two_nodes};

const PATIENCE: Duration = Duration::from_secs(30);
/// A second uplink of a node, with one address of each family.
const UPLINK: [&str; 2] = ["192.0.2.7", "fd00:2::7"];

fn add_uplink(node: &Node) -> Result<()> {
    node.place.ip("link add eth7 type veth peer name wire7\n\
         link set wire7 up\n\
         link set eth7 up\n\
         address add 192.0.2.7/24 dev eth7\n\
         address add fd00:2::7/64 dev eth7 nodad")
}

/// Starts `routed` anew with these keys below `node:`, and waits until it publishes these addresses.
fn finds(
    node: &mut Node,
    before: &str,
    keys: &str,
    environment: &[(&str, &str)],
    expected: &[&str],
) -> Result<()> {
    node.write_file(podway_model::names::CONFIG_FILE, before)?;
    node.configure(keys, "")?;
    if node.routed.is_some() {
        node.kill_routed()?;
    }
    node.routed = Some(node.spawn_daemon_with("routed", environment)?);
    wait_until_ok(&format!("addresses by {}", keys.trim()), PATIENCE, || {
        let (status, _) = node.status()?;
        let found: Vec<String> = status.addresses.iter().map(ToString::to_string).collect();
        ensure!(found == expected, "{found:?}, problems {:?}", status.problems);
        let own = status.nodes.iter().find(|one| one.node.as_str() == node.name()).context("it is listed")?;
        ensure!(own.addresses == status.addresses, "published are {:?}", own.addresses);
        Ok(())
    })
}

#[test]
fn each_way_to_a_nodes_address_finds_it() {
    run("each_way_to_a_nodes_address_finds_it", || {
        let mut options = two_nodes("node-address", Backend::Vxlan);
        options.lab.nodes = 1;
        let mut cluster = Cluster::up(ClusterOptions { ipv6: true, ..options })?;
        let node = cluster.lab.nodes.first_mut().context("there is one")?;
        add_uplink(node)?;
        let before = node.read_file(podway_model::names::CONFIG_FILE)?;
        let (v4, v6) = (node.addresses.v4.to_string(), node.addresses.v6.to_string());
        let uplink = [
            "eth7 by name",
            "eth7 by pattern",
            "eth7 by what is reached",
            "eth7 by addresses",
            "eth7 by variable",
        ];
        let keys = [
            "  interface: eth7\n",
            "  interfacePattern: \"^eth[5-9]$\"\n",
            "  canReach: [192.0.2.99, \"fd00:2::99\"]\n",
            "  addresses: [192.0.2.7, \"fd00:2::7\"]\n",
            "  addressesFromEnvironment: NODE_IPS\n",
        ];
        for (what, keys) in uplink.into_iter().zip(keys) {
            finds(node, &before, keys, &[("NODE_IPS", "192.0.2.7,fd00:2::7")], &UPLINK).context(what)?;
        }
        // Without any of them it is the default route's.
        finds(node, &before, "", &[], &[&v4, &v6])
    });
}

/// Where the first node's tunnel to the second one ends.
fn remote(cluster: &Cluster) -> Result<String> {
    let entries = cluster.node_at(0)?.place.run("bridge", &["fdb", "show", "dev", "podway.vxlan"])?;
    let words: Vec<&str> = entries.split_whitespace().collect();
    let at = words.iter().position(|word| *word == "dst").context("no entry yet")?;
    Ok(words.get(at + 1).context("dst has a value")?.to_string())
}

/// Waits until that is so, and says after how long.
fn followed(cluster: &Cluster, address: &str) -> Result<Duration> {
    let since = Instant::now();
    wait_until(&format!("the other node sends to {address}"), PATIENCE, || {
        Ok((remote(cluster).ok().as_deref() == Some(address)).then_some(()))
    })?;
    Ok(since.elapsed())
}

#[test]
fn an_address_that_changes_is_followed_within_a_second() {
    run("an_address_that_changes_is_followed_within_a_second", || {
        let mut cluster = Cluster::without_daemons(two_nodes("address-changes", Backend::Vxlan))?;
        add_uplink(cluster.node_at(1)?)?;
        cluster.node_at(1)?.configure("  interface: eth7\n", "")?;
        cluster.lab.apply(&podway_testkit::objects::documents(cluster.options.documents()))?;
        cluster.lab.start_daemons()?;
        followed(&cluster, "192.0.2.7")?;
        let place = &cluster.node_at(1)?.place;
        // As systemd sets it everywhere: a second address stays when the first one goes.
        place.sysctl("net.ipv4.conf.eth7.promote_secondaries", "1")?;
        let changes = [
            ("address delete 192.0.2.7/24 dev eth7\naddress add 192.0.2.8/24 dev eth7", "192.0.2.8"),
            ("address add 192.0.2.9/24 dev eth7\naddress delete 192.0.2.8/24 dev eth7", "192.0.2.9"),
        ];
        for (change, address) in changes {
            place.ip(change)?;
            let took = followed(&cluster, address)?;
            println!("{address}: the other node's kernel followed after {} ms", took.as_millis());
            ensure!(took <= Duration::from_secs(1), "it took {took:?}");
        }
        Ok(())
    });
}

#[test]
fn nodes_that_publish_one_address_are_told_by_both_names_until_it_is_mended() {
    run("nodes_that_publish_one_address_are_told_by_both_names_until_it_is_mended", || {
        let mut cluster = Cluster::without_daemons(ClusterOptions::new("one-address", Backend::Vxlan))?;
        let shared = cluster.node_at(1)?.addresses.v4.to_string();
        let copy = cluster.node_at(2)?;
        copy.place.ip("link add eth7 type veth peer name wire7\nlink set wire7 up\nlink set eth7 up")?;
        copy.place.ip(&format!("address add {shared}/32 dev eth7"))?;
        let before = copy.read_file(podway_model::names::CONFIG_FILE)?;
        copy.configure(&format!("  addresses: [{shared}]\n"), "")?;
        cluster.node_at(0)?.configure("", "routed:\n  healthListen: 127.0.0.1:9121\n")?;
        cluster.lab.apply(&podway_testkit::objects::documents(cluster.options.documents()))?;
        cluster.lab.start_daemons()?;
        let told = format!("nodes n2, n3 publish the same address {shared}");
        let node = cluster.node_at(0)?;
        wait_until_ok("the first node tells of it", PATIENCE, || {
            let (status, _) = node.status()?;
            ensure!(
                status.problems.iter().any(|problem| problem.starts_with(&told)),
                "{:?}",
                status.problems
            );
            for (name, other) in [("n2", "n3"), ("n3", "n2")] {
                let one =
                    status.nodes.iter().find(|one| one.node.as_str() == name).context("it is listed")?;
                let problem = one.problem.as_deref().unwrap_or_default();
                ensure!(problem.contains(&format!("{shared} as {other}")), "{name}: {problem}");
            }
            Ok(())
        })?;
        ensure!(node.routed.as_ref().context("it runs")?.log().contains(&told), "in the log");
        let (_, metrics) = node.health(9121, "/metrics")?;
        ensure!(metrics.contains("podway_routed_shared_addresses 1\n"), "{metrics}");
        let (status, remarks) = node.health(9121, "/readyz")?;
        ensure!(status.contains("200") && remarks.contains(&told), "{status}: {remarks}");
        // All packets for both go to that address, and stay there: what is desired does not change by itself.
        let entries = || node.place.run("bridge", &["fdb", "show", "dev", "podway.vxlan"]);
        ensure!(entries()?.matches(&format!("dst {shared} ")).count() == 2, "{}", entries()?);
        // Mended: the copy gets its own address back.
        cluster.lab.nodes[2].write_file(podway_model::names::CONFIG_FILE, &before)?;
        cluster.lab.nodes[2].kill_routed()?;
        cluster.lab.nodes[2].start_routed()?;
        wait_until_ok("nothing is told any more", PATIENCE, || {
            let (status, _) = cluster.node_at(0)?.status()?;
            ensure!(status.problems.is_empty(), "{:?}", status.problems);
            ensure!(status.nodes.iter().all(|one| one.problem.is_none()), "{:?}", status.nodes);
            Ok(())
        })
    });
}
