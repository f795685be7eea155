//! Claims lost, released, wiped, restored, or not seen for long: what becomes of a node and of its pods. What an
//! operator does to etcd is done with `etcdctl`.

use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use podway_model::names;
use podway_model::socket::RoutedStatus;
use podway_testkit::cluster::{Cluster, PodPlan};
use podway_testkit::lab::Node;
use podway_testkit::objects;
use podway_testkit::wait::wait_until_ok;
use serde_json::Value;

use crate::restarts::{connected, without_loss};
use crate::{cluster_with_pods, run, run_with_etcdctl, two_nodes};
use podway_model::cluster::Backend;

const PATIENCE: Duration = Duration::from_secs(60);

fn status(node: &Node) -> Result<RoutedStatus> {
    Ok(node.status()?.0)
}

/// Its blocks as `routed` tells them: block, state, leased addresses.
fn blocks(node: &Node) -> Result<Vec<(String, String, u32)>> {
    let blocks = status(node)?.blocks.into_iter();
    Ok(blocks.map(|block| (block.cidr.to_string(), block.state, block.leased)).collect())
}

/// The one block that is in use.
fn active(node: &Node) -> Result<String> {
    let all = blocks(node)?;
    let mut active = all.iter().filter(|(_, state, _)| state == "active");
    match (active.next(), active.next()) {
        (Some((block, ..)), None) => Ok(block.clone()),
        _ => bail!("one active block expected: {all:?}"),
    }
}

/// Blocks of the node file, by state.
fn listed(node: &Node) -> Result<Vec<String>> {
    let file: Value = serde_json::from_str(&node.read_file(names::NODE_FILE)?)?;
    let blocks = file["blocks"].as_array().context("blocks")?.iter();
    Ok(blocks.filter_map(|block| block["cidr"].as_str()).map(str::to_owned).collect())
}

fn has_state(node: &Node, block: &str, wanted: &str) -> Result<()> {
    wait_until_ok(&format!("{block} is {wanted} on {}", node.name()), PATIENCE, || {
        let all = blocks(node)?;
        ensure!(all.iter().any(|(cidr, state, _)| cidr == block && state == wanted), "{all:?}");
        Ok(())
    })
}

/// Waits until a node's sign of life has ended; then an operator may release it.
fn is_down(cluster: &Cluster, node: &str) -> Result<()> {
    wait_until_ok(&format!("{node} is down"), PATIENCE, || {
        let live = cluster.lab.etcdctl(&["get", &format!("/podway/v1/live/{node}")])?;
        ensure!(live.is_empty(), "{live}");
        Ok(())
    })
}

/// Keys below the store's prefix that begin so.
fn keys(cluster: &Cluster, prefix: &str) -> Result<Vec<String>> {
    let full = format!("{}{prefix}", names::ETCD_PREFIX);
    let text = cluster.lab.etcdctl(&["get", "--prefix", "--keys-only", &full])?;
    let lines = text.lines().filter_map(|line| line.strip_prefix(names::ETCD_PREFIX));
    Ok(lines.map(str::to_owned).collect())
}

fn key(kind: &str, block: &str) -> String {
    format!("{kind}/{}", block.replace('/', "-"))
}

/// How many routes a node has to a block.
fn routes(node: &Node, block: &str) -> Result<usize> {
    let routes = node.place.ip_json(&["route", "show", block])?;
    Ok(routes.iter().filter(|route| route["type"] != "blackhole").count())
}

#[test]
fn a_node_that_comes_back_after_its_claims_were_released_takes_other_blocks() {
    const NAME: &str = "a_node_that_comes_back_after_its_claims_were_released_takes_other_blocks";
    run_with_etcdctl(NAME, || {
        let mut cluster = cluster_with_pods(two_nodes("released-away", Backend::HostGw))?;
        let mut block = active(cluster.node_at(1)?)?;
        for hold in [true, false] {
            cluster.lab.kill_node(1)?;
            cluster.forget_pods_of("n2")?;
            is_down(&cluster, "n2")?;
            let n1 = cluster.node_at(0)?;
            ensure!(routes(n1, &block)? == 1, "a node that is down keeps its routes");
            let args = ["node", "release", "n2", "--now"];
            n1.podwayctl_ok(if hold { &args[..3] } else { &args }, "")?;
            wait_until_ok("its routes go", PATIENCE, || {
                ensure!(routes(n1, &block)? == 0, "still there");
                Ok(())
            })?;
            ensure!(keys(&cluster, &key("released", &block))?.len() == usize::from(hold), "hold: {hold}");
            cluster.lab.boot_node(1)?;
            cluster.lab.nodes[1].start_daemons()?;
            cluster.lab.wait_ready()?;
            let now = active(cluster.node_at(1)?)?;
            // Held: another one. Free: the one that it had before, which it asks for first.
            ensure!((now != block) == hold, "{now} after {block}, hold: {hold}");
            ensure!(
                !listed(cluster.node_at(1)?)?.contains(&block) || !hold,
                "the file of before is no claim"
            );
            block = now;
            let name = format!("again-{hold}");
            let plan = PodPlan { namespace: "demo".to_owned(), name, node: 1, labels: vec![] };
            cluster.add_pods(&[plan])?;
            connected(&cluster)?;
        }
        Ok(())
    });
}

#[test]
fn a_stale_node_file_loses_what_the_store_gave_to_others_and_the_loss_outlives_a_restart() {
    const NAME: &str =
        "a_stale_node_file_loses_what_the_store_gave_to_others_and_the_loss_outlives_a_restart";
    run_with_etcdctl(NAME, || {
        let mut cluster = cluster_with_pods(two_nodes("stale-file", Backend::HostGw))?;
        connected(&cluster)?;
        let block = active(cluster.node_at(1)?)?;
        // The daemon is away while its pods live; an operator believes it gone, and another node gets the block.
        cluster.lab.nodes[1].kill_routed()?;
        is_down(&cluster, "n2")?;
        cluster.node_at(0)?.podwayctl_ok(&["node", "release", "n2", "--now"], "")?;
        let theirs = format!("{}{}", names::ETCD_PREFIX, key("claims/n9", &block));
        let claim = r#"{"schema":1,"instanceId":"00000000-0000-4000-8000-000000000009","pool":"default-v4","confirmed":true}"#;
        cluster.lab.etcdctl(&["put", &theirs, claim])?;
        for start in 0..2 {
            let node = &mut cluster.lab.nodes[1];
            node.start_routed()?;
            node.wait_ready(PATIENCE)?;
            let node = cluster.node_at(1)?;
            has_state(node, &block, "stranded")?;
            let all = blocks(node)?;
            ensure!(all.iter().any(|(cidr, _, leased)| *cidr == block && *leased >= 2), "{all:?}");
            ensure!(!listed(node)?.contains(&block), "offered to nobody");
            ensure!(active(node)? != block, "another block is claimed");
            let text = node.podwayctl(&["status", "--node"], "")?.stdout;
            ensure!(text.contains("stranded") && text.contains("is lost, and pods live in it"), "{text}");
            if start == 0 {
                cluster.lab.nodes[1].kill_routed()?;
            }
        }
        // Pods of one node reach each other all the while: their routes are theirs.
        let (a, b) = (cluster.pod("demo/a-2")?, cluster.pod("ops/b-2")?);
        podway_testkit::flow::Flow::start(a.net(), b.net(), b.addresses[0], Duration::from_millis(1))?
            .wait_for(50)?;
        // Free again: claimed again, for the pods in it.
        cluster.lab.etcdctl(&["del", &theirs])?;
        has_state(cluster.node_at(1)?, &block, "active")?;
        ensure!(keys(&cluster, &key("claims/n2", &block))?.len() == 1, "claimed");
        connected(&cluster)
    });
}

#[test]
fn a_clone_does_not_start_and_names_both_addresses() {
    run("a_clone_does_not_start_and_names_both_addresses", || {
        let mut cluster = cluster_with_pods(two_nodes("clone", Backend::HostGw))?;
        let before = blocks(cluster.node_at(0)?)?;
        cluster.lab.nodes[1].kill_routed()?;
        let (first, clone) = (cluster.node_at(0)?, cluster.node_at(1)?);
        let config = clone.read_file(names::CONFIG_FILE)?.replace("name: n2", "name: n1");
        clone.write_file(names::CONFIG_FILE, &config)?;
        let (code, log) = clone.run_daemon_to_end("routed", PATIENCE)?;
        ensure!(code.is_some_and(|code| code != 0), "exit code {code:?}");
        for node in [first, clone] {
            ensure!(
                log.contains(&node.addresses.v4.to_string()),
                "{} is not named: {log}",
                node.addresses.v4
            );
        }
        ensure!(log.contains("node name n1 is taken"), "{log}");
        ensure!(blocks(first)? == before && status(first)?.ready, "the first one is as it was");
        Ok(())
    });
}

#[test]
fn an_etcd_that_is_restored_or_wiped_tears_nothing_down() {
    run_with_etcdctl("an_etcd_that_is_restored_or_wiped_tears_nothing_down", || {
        let options = two_nodes("restored", Backend::Vxlan);
        let mut cluster = Cluster::without_daemons(options)?;
        cluster.lab.apply(&objects::documents(cluster.options.documents()))?;
        // A backup of before any node came.
        let (data, backup) = ("/var/lib/etcd/lab", "/var/lib/etcd/backup");
        cluster.lab.kill_etcd()?;
        cluster.lab.underlay.place.run("cp", &["-a", data, backup])?;
        cluster.lab.start_etcd()?;
        cluster.lab.start_daemons()?;
        for (node, name) in [(0, "a-1"), (1, "a-2")] {
            let (namespace, name) = ("demo".to_owned(), name.to_owned());
            cluster.add_pods(&[PodPlan { namespace, name, node, labels: vec![] }])?;
        }
        connected(&cluster)?;
        let claims = keys(&cluster, "claims/")?;
        let claimed_again = |cluster: &Cluster| {
            wait_until_ok("every node has written its own again", PATIENCE, || {
                let now = keys(cluster, "claims/")?;
                ensure!(now == claims, "{now:?}, {claims:?} expected");
                ensure!(keys(cluster, "nodes/")?.len() == 2 && keys(cluster, "live/")?.len() == 2, "records");
                Ok(())
            })
        };
        without_loss(&mut cluster, |cluster| {
            cluster.lab.kill_etcd()?;
            cluster.lab.underlay.place.run("rm", &["-r", data])?;
            cluster.lab.underlay.place.run("mv", &[backup, data])?;
            cluster.lab.start_etcd()?;
            claimed_again(cluster)
        })?;
        without_loss(&mut cluster, |cluster| {
            cluster.lab.etcdctl(&["del", "--prefix", names::ETCD_PREFIX])?;
            claimed_again(cluster)?;
            cluster.lab.apply(&objects::documents(cluster.options.documents()))
        })?;
        cluster.lab.wait_ready()?;
        for (node, said) in [(0, "restored to an older state"), (1, "the store was wiped")] {
            let log = cluster.lab.nodes[node].routed.as_ref().context("it runs")?.log();
            ensure!(log.contains(said), "{said:?} is not in\n{log}");
        }
        connected(&cluster)
    });
}

#[test]
fn hours_of_absence_and_a_compaction_are_caught_up_with() {
    run_with_etcdctl("hours_of_absence_and_a_compaction_are_caught_up_with", || {
        let cluster = cluster_with_pods(two_nodes("absent", Backend::Vxlan))?;
        connected(&cluster)?;
        let block = active(cluster.node_at(1)?)?;
        cluster.lab.underlay.set_cable("n2", false)?;
        is_down(&cluster, "n2")?;
        wait_until_ok("n2 knows that it is cut off", PATIENCE, || {
            let store = status(cluster.node_at(1)?)?.store;
            ensure!(store.contains("away"), "{store}");
            Ok(())
        })?;
        // What happens meanwhile is not to be had from history any more.
        cluster.lab.apply(&objects::documents([serde_json::json!({
            "apiVersion": "podway.io/v1", "kind": "Pool", "metadata": {"name": "more"},
            "spec": {"cidr": "10.99.0.0/16", "disabled": true},
        })]))?;
        let answer = cluster.lab.etcdctl(&["get", "-w", "json", "x"])?;
        let answer: Value = serde_json::from_str(&answer)?;
        let revision = answer["header"]["revision"].as_i64().context("a revision")?;
        cluster.lab.etcdctl(&["compact", &revision.to_string()])?;
        cluster.lab.underlay.set_cable("n2", true)?;
        wait_until_ok("n2 has caught up", PATIENCE, || {
            let file = cluster.node_at(1)?.read_file(names::NODE_FILE)?;
            ensure!(file.contains("10.99.0.0/16"), "{file}");
            ensure!(keys(&cluster, "live/")?.len() == 2, "it is not alive");
            Ok(())
        })?;
        ensure!(active(cluster.node_at(1)?)? == block, "it kept its block");
        let log = cluster.lab.nodes[1].routed.as_ref().context("it runs")?.log();
        ensure!(log.contains("reading the store anew"), "{log}");
        connected(&cluster)
    });
}
