//! Real daemons, plugin, etcd and kernel in a cluster of namespaces. Needs root.
//!
//! Every test brings up a lab of its own; nothing of the host is touched. Logs of daemons lie in
//! `target/lab/<test>`.

mod addresses;
mod bad_input;
mod claims;
mod connectivity;
mod controller;
mod enforcement;
mod failures;
mod firewalls;
mod flannel;
mod host_ports;
mod node_address;
mod pmtu;
mod restarts;
mod store_outage;
mod switching;
mod topologies;

use anyhow::Result;
use podway_model::cluster::Backend;
use podway_testkit::cluster::{Cluster, ClusterOptions, PodPlan};
use podway_testkit::root_or_skip;

/// Runs the body of a test with its error as the test's failure, or skips it without root.
#[expect(clippy::panic, reason = "a test's way to fail")]
fn run(test: &str, body: impl FnOnce() -> Result<()>) {
    if !root_or_skip(test) {
        return;
    }
    if let Err(error) = body() {
        panic!("{error:?}");
    }
}

/// The same for a test that does to etcd what an operator does with `etcdctl`.
#[expect(clippy::print_stdout, reason = "where the tally of skipped tests looks")]
fn run_with_etcdctl(test: &str, body: impl FnOnce() -> Result<()>) {
    if podway_testkit::lab::find_tool("etcdctl").is_none() {
        println!("SKIP {test}: needs etcdctl on PATH");
        return;
    }
    run(test, body);
}

/// A cluster with two pods per node, `a-<n>` in namespace `demo` and `b-<n>` in namespace `ops`.
fn cluster_with_pods(options: ClusterOptions) -> Result<Cluster> {
    with_pods(Cluster::up(options)?)
}

/// Puts them into a cluster that runs.
fn with_pods(mut cluster: Cluster) -> Result<Cluster> {
    cluster.add_namespaces(&[("demo", &[("team", "shop")]), ("ops", &[("team", "ops")])])?;
    let plans: Vec<PodPlan> = (0..cluster.lab.nodes.len())
        .flat_map(|node| [("demo", "a", node), ("ops", "b", node)])
        .map(|(namespace, app, node)| PodPlan {
            namespace: namespace.to_owned(),
            name: format!("{app}-{}", node + 1),
            node,
            labels: vec![("app".to_owned(), app.to_owned())],
        })
        .collect();
    cluster.add_pods(&plans)?;
    Ok(cluster)
}

/// Two nodes on this backend: the least that has an "across".
fn two_nodes(test: &str, backend: Backend) -> ClusterOptions {
    let mut options = ClusterOptions::new(test, backend);
    options.lab.nodes = 2;
    options
}
