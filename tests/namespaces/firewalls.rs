//! Nodes with another firewall, made by the real iptables-nft: pods talk where FORWARD drops, and what cannot be mended is
//! told at readiness, in status, metrics and log, with the command that mends it.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use podway_model::cluster::Backend;
use podway_testkit::cluster::{Cluster, ClusterOptions};
use podway_testkit::lab::{Node, find_tool};
use podway_testkit::objects;
use podway_testkit::probe::Kind;
use podway_testkit::wait::wait_until_ok;

use crate::restarts::connected;
use crate::{run, two_nodes, with_pods};

const PATIENCE: Duration = Duration::from_secs(30);
const PORT: u16 = 9121;

/// The same for a test that needs iptables.
#[expect(clippy::print_stdout, reason = "where the tally of skipped tests looks")]
fn run_with_iptables(test: &str, body: impl FnOnce() -> Result<()>) {
    if find_tool("iptables-nft").is_none() {
        println!("SKIP {test}: needs iptables-nft on PATH");
        return;
    }
    run(test, body);
}

/// Two nodes with pods of both families; on the second one these commands of iptables have run before any daemon.
fn with_firewall(test: &str, commands: &[&str]) -> Result<Cluster> {
    let options = ClusterOptions { ipv6: true, ..two_nodes(test, Backend::Vxlan) };
    let mut cluster = Cluster::without_daemons(options)?;
    for node in &cluster.lab.nodes {
        node.configure("", &format!("routed:\n  healthListen: 127.0.0.1:{PORT}\n"))?;
    }
    for command in commands {
        iptables(cluster.node_at(1)?, command)?;
    }
    cluster.lab.apply(&objects::documents(cluster.options.documents()))?;
    cluster.lab.start_daemons()?;
    with_pods(cluster)
}

/// Runs `iptables` or `ip6tables` as a line says, by its nft variant.
fn iptables(node: &Node, line: &str) -> Result<String> {
    let words: Vec<&str> = line.split(' ').collect();
    let (program, args) = words.split_first().context("a command has a program")?;
    node.place.run(&program.replacen("tables", "tables-nft", 1), args)
}

/// Readiness, with its remarks; the gauge of foreign firewalls; the problems of `podwayctl status`.
fn told(node: &Node) -> Result<(Vec<String>, String, Vec<String>)> {
    let (status, body) = node.health(PORT, "/readyz")?;
    ensure!(status.contains("200") && body.starts_with("ready\n"), "{status}: {body}");
    let remarks = body.lines().filter_map(|line| line.strip_prefix("remark: ")).map(str::to_owned).collect();
    let (_, metrics) = node.health(PORT, "/metrics")?;
    let gauge = metrics.lines().find_map(|line| line.strip_prefix("podway_routed_foreign_firewalls "));
    Ok((remarks, gauge.context("no such metric")?.to_owned(), node.status()?.0.problems))
}

/// Waits until nothing is said of other firewalls.
fn nothing_is_told(node: &Node) -> Result<()> {
    wait_until_ok("nothing is said of other firewalls", PATIENCE, || {
        let told = told(node)?;
        ensure!(told == (vec![], "0".to_owned(), vec![]), "{told:?}");
        Ok(())
    })
}

#[test]
fn pods_talk_on_a_node_whose_forward_chain_drops() {
    run_with_iptables("pods_talk_on_a_node_whose_forward_chain_drops", || {
        let drop = ["iptables -P FORWARD DROP", "ip6tables -P FORWARD DROP", "iptables -N DOCKER-USER"];
        let cluster = with_firewall("forward-drops", &drop)?;
        let node = cluster.node_at(1)?;
        connected(&cluster)?;
        let matrix = cluster.pods_to_pods(&[Kind::Icmp, Kind::Tcp(80), Kind::Udp(80)])?;
        ensure!(matrix.differences().is_empty(), "{}", matrix.differences().join("\n"));
        nothing_is_told(node)?;
        // The operator's own programs go on working, and show whose rules these are.
        for program in ["iptables", "ip6tables"] {
            let rules = iptables(node, &format!("{program} -S"))?;
            ensure!(rules.contains("-P FORWARD DROP") && rules.contains("podway pods"), "{rules}");
            let saved = node.place.run(&format!("{program}-nft-save"), &[] as &[&str])?;
            ensure!(saved.contains("podway pods") && !saved.contains("incompatible"), "{saved}");
        }
        // A reload, as Docker and ufw do it: emptied, and made again.
        iptables(node, "iptables -F FORWARD")?;
        wait_until_ok("our rules are back", PATIENCE, || {
            let rules = iptables(node, "iptables -S FORWARD")?;
            ensure!(rules.contains("podway pods"), "{rules}");
            Ok(())
        })?;
        connected(&cluster)
    });
}

#[test]
fn a_rule_that_refuses_all_is_told_at_readiness_with_what_mends_it() {
    run_with_iptables("a_rule_that_refuses_all_is_told_at_readiness_with_what_mends_it", || {
        let reject = ["iptables -A FORWARD -j REJECT --reject-with icmp-host-prohibited"];
        let cluster = with_firewall("forward-rejects", &reject)?;
        let node = cluster.node_at(1)?;
        let mut remark = String::new();
        wait_until_ok("the rule is told", PATIENCE, || {
            let (remarks, gauge, problems) = told(node)?;
            let [one] = &remarks[..] else { anyhow::bail!("{remarks:?}") };
            ensure!(gauge == "1" && problems.contains(one), "{gauge}: {problems:?}");
            remark.clone_from(one);
            Ok(())
        })?;
        ensure!(remark.contains("refuses by a rule"), "{remark}");
        let log = node.routed.as_ref().context("it runs")?.log();
        ensure!(log.contains(&remark), "not in the log: {remark}");
        let differences = cluster.pods_to_pods(&[Kind::Icmp])?.differences();
        ensure!(!differences.is_empty(), "the firewall is one");
        nothing_is_told(cluster.node_at(0)?)?;
        // The commands are good as they stand.
        for command in remark.split('`').nth(1).context("a command")?.split("; ") {
            iptables(node, command)?;
        }
        connected(&cluster)?;
        nothing_is_told(node)?;
        ensure!(iptables(node, "iptables -S FORWARD")?.contains("REJECT"), "their rule is theirs");
        Ok(())
    });
}
