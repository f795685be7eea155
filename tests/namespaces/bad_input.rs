//! Malformed input: one message with source, field, value and what was expected; all mistakes at once; exit code
//! 64, or a CNI error with the right code.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use podway_model::cluster::Backend;
use podway_model::mistakes::EXIT_BAD_INPUT;
use podway_model::names::{CONFIG_FILE, PLUGIN};
use podway_testkit::cluster::Cluster;
use podway_testkit::cni::{RawOutcome, read_error};
use podway_testkit::objects;
use podway_testkit::pod::Sandbox;

use crate::{run, two_nodes};

fn one_node(test: &str) -> Result<Cluster> {
    let mut options = two_nodes(test, Backend::HostGw);
    options.lab.nodes = 1;
    Cluster::without_daemons(options)
}

fn contains_all(text: &str, wanted: &[&str]) -> Result<()> {
    for want in wanted {
        ensure!(text.contains(want), "{want:?} is not in:\n{text}");
    }
    Ok(())
}

#[test]
fn a_malformed_config_file_stops_every_program_with_all_mistakes() {
    run("a_malformed_config_file_stops_every_program_with_all_mistakes", || {
        let cluster = one_node("bad-config")?;
        let node = cluster.node_at(0)?;
        node.write_file(
            CONFIG_FILE,
            "node:\n  name: Not_A_Name\n  addresses: [10.0.0.300]\nstore:\n  etcd:\n    endpoint: x\nlog:\n  format: xml\n",
        )?;
        let wanted = [
            CONFIG_FILE,
            "node.name",
            "Not_A_Name",
            "node.addresses",
            "10.0.0.300",
            "store.etcd.endpoint",
            "log.format",
            "xml",
            "expected",
        ];
        for daemon in ["routed", "policy-agent"] {
            let (code, log) = node.run_daemon_to_end(daemon, Duration::from_secs(10))?;
            ensure!(code == Some(EXIT_BAD_INPUT.into()), "{daemon}: exit code {code:?}\n{log}");
            contains_all(&log, &wanted).with_context(|| daemon)?;
        }
        let output = node.podwayctl(&["get", "pools"], "")?;
        ensure!(output.code == Some(EXIT_BAD_INPUT.into()), "podwayctl: exit code {:?}", output.code);
        contains_all(&output.stderr, &wanted)
    });
}

#[test]
fn malformed_documents_are_refused_whole_with_all_mistakes() {
    run("malformed_documents_are_refused_whole_with_all_mistakes", || {
        let cluster = one_node("bad-documents")?;
        let node = cluster.node_at(0)?;
        let good = objects::documents(objects::pools(false));
        let bad = r"---
apiVersion: podway.io/v1
kind: Pool
metadata: {name: odd}
spec: {cidr: 10.0.0.0/33, blokSize: 26}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: p, namespace: demo}
spec:
  podSelector: {}
  ingress:
  - ports: [{port: 90000}]
    from: [{ipBlock: {cidr: not-a-cidr}}]
";
        let output = node.podwayctl(&["apply", "-f", "-"], &format!("{good}{bad}"))?;
        ensure!(output.code == Some(EXIT_BAD_INPUT.into()), "exit code {:?}: {}", output.code, output.stderr);
        contains_all(
            &output.stderr,
            &[
                "spec.cidr",
                "10.0.0.0/33",
                "spec.blokSize",
                "spec.ingress[0].ports[0].port",
                "90000",
                "spec.ingress[0].from[0].ipBlock.cidr",
                "not-a-cidr",
                "expected",
            ],
        )?;
        // Nothing was written: not even the good pool of the same text.
        let pools = node.podwayctl_ok(&["get", "pools", "-o", "json"], "")?;
        ensure!(!pools.contains("default-v4"), "a part of a refused text was applied: {pools}");
        Ok(())
    });
}

/// Calls ADD with this standard input, the environment otherwise right.
fn add_with(cluster: &Cluster, sandbox: &Sandbox, stdin: &str) -> Result<RawOutcome> {
    let (node, attachment) = (cluster.node_at(0)?, &sandbox.attachment);
    node.runtime().exec(
        PLUGIN,
        &[
            ("CNI_COMMAND", "ADD"),
            ("CNI_CONTAINERID", &attachment.container_id),
            ("CNI_NETNS", &attachment.netns),
            ("CNI_IFNAME", "eth0"),
            ("CNI_PATH", "/opt/cni/bin"),
        ],
        stdin.as_bytes(),
    )
}

#[test]
fn malformed_cni_input_gets_the_right_error_code() {
    run("malformed_cni_input_gets_the_right_error_code", || {
        let cluster = one_node("bad-cni")?;
        let node = cluster.node_at(0)?;
        let sandbox = Sandbox::new(&node.place, "demo", "p")?;
        // CNI SPEC 1.1.0, section "Error": 1 version, 4 environment, 6 decoding, 7 network configuration, 11 later.
        for (stdin, code, words) in [
            ("{", 6, "network configuration: not JSON"),
            (r#"{"cniVersion": "9.0.0", "name": "podway", "type": "podway"}"#, 1, "9.0.0"),
            (r#"{"cniVersion": "1.0.0", "name": "bad/name", "type": "podway"}"#, 7, "bad/name"),
            (r#"{"cniVersion": "1.0.0", "name": "podway", "type": "podway"}"#, 11, "node.json"),
        ] {
            let outcome = add_with(&cluster, &sandbox, stdin)?;
            ensure!(outcome.code != Some(0), "{stdin}: success");
            let error = read_error(&outcome).with_context(|| stdin.to_owned())?;
            ensure!(error.code == code, "{stdin}: code {code} expected: {error}");
            ensure!(error.to_string().contains(words), "{stdin}: {words:?} expected in: {error}");
        }
        let outcome = node.runtime().exec(PLUGIN, &[("CNI_COMMAND", "ADD")], b"{}")?;
        let error = read_error(&outcome)?;
        ensure!(error.code == 4, "{error}");
        // All that is missing, at once.
        contains_all(&error.to_string(), &["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"])
    });
}
