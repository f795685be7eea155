//! Host ports in a cluster: daemons running, policy required, pods and nodes of two nodes.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use podway_model::cluster::Backend;
use podway_testkit::cluster::Cluster;
use podway_testkit::pod::{Sandbox, add_patiently};
use podway_testkit::probe::{Kind, Outcome, Probe, probe_all};
use podway_testkit::wait::wait_until_ok;
use serde_json::json;

use crate::{cluster_with_pods, run, two_nodes};

const PATIENCE: Duration = Duration::from_secs(30);
const KINDS: [Kind; 2] = [Kind::Tcp(8080), Kind::Udp(8080)];

/// Everybody reaches the port of the first node: its own pods and those of the other node, both nodes, outside.
fn everybody_reaches_the_port(cluster: &Cluster) -> Result<()> {
    let node = cluster.node_at(0)?;
    let [v4, v6] = [node.addresses.v4.into(), node.addresses.v6.into()];
    let mut probes = Vec::new();
    for kind in KINDS {
        for to in [v4, v6] {
            let mut from =
                vec![node.place.net(), cluster.node_at(1)?.place.net(), cluster.lab.outside.place.net()];
            from.extend(cluster.pods.iter().map(|pod| pod.net()));
            probes.extend(from.into_iter().map(|from| Probe { from, to, kind, expect_open: true }));
        }
        for loopback in ["127.0.0.1", "::1"] {
            probes.push(Probe { from: node.place.net(), to: loopback.parse()?, kind, expect_open: true });
        }
    }
    for (probe, outcome) in probes.iter().zip(probe_all(&probes)?) {
        let by_the_pod = matches!(&outcome, Outcome::Open { answer: Some((name, _)) } if name == "ports");
        ensure!(by_the_pod, "{} {}: {outcome}", probe.to, probe.kind);
    }
    Ok(())
}

#[test]
fn host_ports_serve_a_cluster_and_outlive_a_foreign_flush() {
    run("host_ports_serve_a_cluster_and_outlive_a_foreign_flush", || {
        let mut options = two_nodes("host-ports", Backend::HostGw);
        options.ipv6 = true;
        let cluster = cluster_with_pods(options)?;
        let node = cluster.node_at(0)?;
        let mut sandbox = Sandbox::new(&node.place, "demo", "ports")?;
        let mapping = |protocol: &str| json!({"hostPort": 8080, "containerPort": 80, "protocol": protocol});
        let mappings = json!([mapping("tcp"), mapping("udp")]);
        sandbox.attachment.capability_args.insert("portMappings".to_owned(), mappings);
        let added = add_patiently(&node.place, &sandbox.attachment, PATIENCE)??;
        let _echo = cluster.lab.echo.serve(&sandbox.net, "ports")?;
        wait_until_ok("everybody reaches the port", PATIENCE, || everybody_reaches_the_port(&cluster))?;

        // Somebody flushes; nobody but the daemons does anything.
        node.place.run("nft", &["flush", "ruleset"])?;
        wait_until_ok("host ports are back", PATIENCE, || everybody_reaches_the_port(&cluster))?;
        node.runtime().check(&sandbox.attachment, &added.result)?.context("CHECK after the flush")?;

        node.runtime().del(&sandbox.attachment, None)??;
        let left = node.place.run("nft", &["list", "table", "inet", "podway-ports"])?;
        ensure!(!left.contains("8080"), "{left}");
        Ok(())
    });
}
