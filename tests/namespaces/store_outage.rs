//! A store that is away at start, or goes away later, stops nothing.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use podway_model::cluster::Backend;
use podway_testkit::cluster::{Cluster, PodPlan};
use podway_testkit::objects;
use podway_testkit::probe::Kind;
use podway_testkit::wait::wait_until_ok;

use crate::restarts::{connected, without_loss};
use crate::{cluster_with_pods, run, run_with_etcdctl, two_nodes};

#[test]
fn daemons_wait_for_an_etcd_that_comes_later() {
    run("daemons_wait_for_an_etcd_that_comes_later", || {
        let mut options = two_nodes("late-etcd", Backend::Vxlan);
        options.lab.start_etcd = false;
        let mut cluster = Cluster::without_daemons(options)?;
        for node in &mut cluster.lab.nodes {
            node.start_daemons()?;
        }
        // Both run, answer, and say what they wait for.
        for node in &cluster.lab.nodes {
            wait_until_ok("the daemons answer without a store", Duration::from_secs(10), || {
                let (routed, policy) = node.status()?;
                ensure!(!routed.ready && !policy.ready, "ready without a store");
                ensure!(!routed.waiting_for.is_empty(), "routed says what it waits for");
                Ok(())
            })?;
        }
        cluster.lab.start_etcd()?;
        cluster.lab.apply(&objects::documents(cluster.options.documents()))?;
        cluster.lab.wait_ready()?;
        for node in &mut cluster.lab.nodes {
            for daemon in [&mut node.routed, &mut node.policy_agent].into_iter().flatten() {
                daemon.ensure_running()?;
                // Said once, and not again for each of the many tries.
                let complaints = daemon.log().lines().filter(|l| l.contains("cannot be reached")).count();
                ensure!(complaints <= 1, "{complaints} complaints in\n{}", daemon.log());
            }
        }
        Ok(())
    });
}

#[test]
fn pods_come_and_go_while_etcd_is_away() {
    run("pods_come_and_go_while_etcd_is_away", || {
        let mut cluster = cluster_with_pods(two_nodes("etcd-away", Backend::HostGw))?;
        cluster.lab.kill_etcd()?;
        // ADD and DEL use blocks that were claimed before; no network is in their path.
        let node = cluster.node_at(0)?;
        let pod = podway_testkit::pod::Pod::add(&node.place, &cluster.lab.echo, "demo", "orphan")?;
        pod.check(&node.place)??;
        node.runtime().status()?.context("STATUS: a node without a store is ready for pods")?;
        pod.delete(&node.place)?;
        cluster.lab.start_etcd()?;
        cluster.add_pods(&[PodPlan {
            namespace: "demo".to_owned(),
            name: "after".to_owned(),
            node: 1,
            labels: vec![],
        }])?;
        wait_until_ok("everybody reaches everybody again", Duration::from_secs(20), || {
            let matrix = cluster.pods_to_pods(&[Kind::Icmp, Kind::Tcp(80)])?;
            ensure!(matrix.differences().is_empty(), "{}", matrix.differences().join("\n"));
            Ok(())
        })
    });
}

/// The script that the documentation names, run as written.
const MAKE_ROOM: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/etcd/make-room.sh");

#[test]
fn an_etcd_at_its_quota_stops_nothing_is_said_once_and_is_used_again_when_there_is_room() {
    const NAME: &str = "an_etcd_at_its_quota_stops_nothing_is_said_once_and_is_used_again_when_there_is_room";
    run_with_etcdctl(NAME, || {
        let mut options = two_nodes("nospace", Backend::Vxlan);
        options.lab.etcd_args = vec!["--quota-backend-bytes=4000000".to_owned()];
        let mut cluster = cluster_with_pods(options)?;
        connected(&cluster)?;
        let full = |cluster: &Cluster| -> anyhow::Result<()> {
            // Revisions of one key that nobody watches, until etcd has had enough.
            let value = "x".repeat(100_000);
            for _ in 0..100 {
                if let Err(error) = cluster.lab.etcdctl(&["put", "/elsewhere", &value]) {
                    ensure!(error.to_string().contains("space exceeded"), "{error:?}");
                    return Ok(());
                }
            }
            anyhow::bail!("the quota was not reached")
        };
        let told = |cluster: &Cluster, wanted: bool| {
            cluster.lab.wait_on_all(
                "status tells of the alarm, or of none",
                Duration::from_secs(90),
                |node| {
                    let text = node.podwayctl(&["status", "--node"], "")?.stdout;
                    ensure!(text.contains("takes no more data") == wanted, "{text}");
                    Ok(())
                },
            )
        };
        without_loss(&mut cluster, |cluster| {
            full(cluster)?;
            told(cluster, true)?;
            // A daemon that starts meanwhile goes on with what it had.
            let node = &mut cluster.lab.nodes[1];
            node.kill_routed()?;
            node.start_routed()?;
            node.wait_ready(Duration::from_secs(60))
        })?;
        for node in &cluster.lab.nodes {
            ensure!(node.status()?.0.ready, "{} is not ready", node.name());
        }
        // Pods come and go: their addresses are local.
        let node = cluster.node_at(0)?;
        let pod = podway_testkit::pod::Pod::add(&node.place, &cluster.lab.echo, "demo", "meanwhile")?;
        pod.check(&node.place)??;
        pod.delete(&node.place)?;

        let path = std::env::var("PATH")?;
        cluster.lab.underlay.place.run("env", &[&format!("PATH={path}"), "sh", MAKE_ROOM])?;
        told(&cluster, false)?;
        wait_until_ok("n2 is alive again", Duration::from_secs(60), || {
            let live = cluster.lab.etcdctl(&["get", "/podway/v1/live/n2"])?;
            ensure!(!live.is_empty(), "no sign of life");
            Ok(())
        })?;
        for node in &cluster.lab.nodes {
            let log = node.routed.as_ref().context("it runs")?.log();
            // Once per process.
            let said = log.lines().filter(|line| line.contains("takes no more data")).count();
            let processes = if node.name() == "n2" { 2 } else { 1 };
            ensure!((1..=processes).contains(&said), "said {said} times:\n{log}");
        }
        connected(&cluster)
    });
}
