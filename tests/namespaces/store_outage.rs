//! A store that is away at start, or goes away later, stops nothing.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use podway_model::cluster::Backend;
use podway_testkit::cluster::{Cluster, PodPlan};
use podway_testkit::objects;
use podway_testkit::probe::Kind;
use podway_testkit::wait::wait_until_ok;

use crate::{cluster_with_pods, run, two_nodes};

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
