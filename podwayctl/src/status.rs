//! `podwayctl status`: this node by its daemons' sockets, and the cluster by the store.

use std::fmt::Write as _;
use std::path::Path;

use podway_daemon::client::{Client, ClientError};
use podway_model::socket::{
    PolicyReply, PolicyRequest, PolicyStatus, RoutedReply, RoutedRequest, RoutedStatus,
};
use serde::Serialize;

use crate::args::{StatusArgs, StoreArgs};
use crate::bgp::{self, LIMIT};
use crate::cluster::{self, Cluster, join};
use crate::objects;
use crate::outcome::Failure;
use crate::output::Output;
use crate::table::{Table, Tone, paint};

/// What is shown.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Report {
    /// None where this is no Podway node: neither daemon runs here.
    #[serde(skip_serializing_if = "Option::is_none")]
    node: Option<ThisNode>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cluster: Option<Cluster>,
    /// Why the store could not be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    cluster_error: Option<String>,
}

/// The daemons of this node.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct ThisNode {
    routed: Asked<RoutedStatus>,
    policy_agent: Asked<PolicyStatus>,
}

/// An answer, or why there is none.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
enum Asked<T> {
    Answer(Box<T>),
    NotRunning,
    Error(String),
}

pub(crate) async fn run(store: &StoreArgs, args: &StatusArgs, output: &Output) -> Result<(), Failure> {
    let node = ThisNode {
        routed: ask_routed(&args.sockets.routed_socket),
        policy_agent: ask_policy(&args.sockets.policy_socket),
    };
    let here = !matches!((&node.routed, &node.policy_agent), (Asked::NotRunning, Asked::NotRunning));
    if args.node && !here {
        return Err(Failure::NotReady("neither routed nor policy-agent runs on this node".to_owned()));
    }
    let (cluster, cluster_error) = if args.node {
        (None, None)
    } else {
        match read_cluster(store).await {
            Ok(cluster) => (Some(cluster), None),
            // A wrong configuration is no matter of the cluster's health.
            Err(failure @ Failure::BadInput(_)) => return Err(failure),
            Err(failure) => (None, Some(failure.to_string())),
        }
    };
    let report = Report { node: here.then_some(node), cluster, cluster_error };
    output.show(|colour| text(&report, args.all, colour), &report)?;
    verdict(&report)
}

async fn read_cluster(store: &StoreArgs) -> Result<Cluster, Failure> {
    cluster::read(objects::open(store)?.as_ref()).await
}

fn ask_routed(socket: &Path) -> Asked<RoutedStatus> {
    match bgp::ask(socket, &RoutedRequest::Status) {
        Ok(RoutedReply::Status(status)) => Asked::Answer(status),
        Ok(RoutedReply::Failed { reason }) => Asked::Error(reason),
        Ok(_) => Asked::Error("answered something else than was asked".to_owned()),
        Err(error) => no_answer(&error),
    }
}

fn ask_policy(socket: &Path) -> Asked<PolicyStatus> {
    let ask = || Client::connect(socket, LIMIT)?.ask(&PolicyRequest::Status);
    match ask() {
        Ok(PolicyReply::Status(status)) => Asked::Answer(Box::new(status)),
        Ok(PolicyReply::Failed { reason }) => Asked::Error(reason),
        Ok(_) => Asked::Error("answered something else than was asked".to_owned()),
        Err(error) => no_answer(&error),
    }
}

fn no_answer<T>(error: &ClientError) -> Asked<T> {
    match error {
        ClientError::NotRunning { .. } => Asked::NotRunning,
        other => Asked::Error(other.to_string()),
    }
}

/// The exit code: this node first, then the store.
fn verdict(report: &Report) -> Result<(), Failure> {
    let mut not_ready = Vec::new();
    if let Some(node) = &report.node {
        match &node.routed {
            Asked::Answer(status) if status.ready => {}
            Asked::Answer(_) => not_ready.push("routed is not ready"),
            _ => not_ready.push("routed does not answer"),
        }
        match &node.policy_agent {
            Asked::Answer(status) if status.ready => {}
            Asked::Answer(_) => not_ready.push("policy-agent is not ready"),
            _ => not_ready.push("policy-agent does not answer"),
        }
    }
    match &report.cluster_error {
        _ if !not_ready.is_empty() => Err(Failure::NotReady(not_ready.join("; "))),
        Some(error) => Err(Failure::Failed(format!("the cluster store could not be read: {error}"))),
        None => Ok(()),
    }
}

fn text(report: &Report, all: bool, colour: bool) -> String {
    let mut text = String::new();
    match &report.node {
        Some(node) => {
            routed_text(&mut text, &node.routed, colour);
            policy_text(&mut text, &node.policy_agent, colour);
        }
        None => text += "This node: neither routed nor policy-agent runs here\n",
    }
    if let Some(cluster) = &report.cluster {
        cluster_text(&mut text, cluster, all, colour);
    }
    text
}

/// Adds `  name: value`, unless there is no value.
fn line(text: &mut String, name: &str, value: &str) {
    if !value.is_empty() {
        let _ = writeln!(text, "  {:<17}{value}", format!("{name}:"));
    }
}

/// Adds one line per problem.
fn problems(text: &mut String, problems: &[String], colour: bool) {
    for problem in problems {
        let _ = writeln!(text, "  {} {problem}", paint("!", Tone::Bad, colour));
    }
}

fn ready(ready: bool, colour: bool) -> String {
    if ready { paint("ready", Tone::Good, colour) } else { paint("not ready", Tone::Bad, colour) }
}

fn without_answer<T>(text: &mut String, daemon: &str, asked: &Asked<T>, colour: bool) {
    let why = match asked {
        Asked::Answer(_) => return,
        Asked::NotRunning => "does not run",
        Asked::Error(error) => error,
    };
    let _ = writeln!(text, "{daemon}: {}", paint(why, Tone::Bad, colour));
}

fn routed_text(text: &mut String, asked: &Asked<RoutedStatus>, colour: bool) {
    let Asked::Answer(status) = asked else { return without_answer(text, "routed", asked, colour) };
    let _ = writeln!(
        text,
        "Node {}: routed {} (process {})",
        status.node,
        ready(status.ready, colour),
        status.pid
    );
    line(text, "waiting for", &status.waiting_for.join("; "));
    line(text, "store", &format!("{} (revision {})", status.store, status.revision));
    line(text, "backend", &format!("{}, MTU {}", status.backend, status.mtu));
    line(text, "topology", status.topology.as_deref().unwrap_or_default());
    line(text, "under way", status.changeover.as_deref().unwrap_or_default());
    line(text, "addresses", &join(status.addresses.iter().map(ToString::to_string)));
    line(text, "tunnel", &join(status.tunnel_addresses.iter().map(ToString::to_string)));
    let devices = status.devices.iter().map(|device| format!("{} ({} peers)", device.name, device.peers));
    line(text, "devices", &join(devices));
    let routes = &status.routes;
    let failed = if routes.failed == 0 { String::new() } else { format!(", {} refused", routes.failed) };
    line(text, "kernel routes", &format!("{} wanted, {} there{failed}", routes.desired, routes.actual));
    problems(text, &status.problems, colour);
    if !status.blocks.is_empty() {
        let mut table = Table::new(&["BLOCK", "POOL", "STATE", "LEASED"]);
        for block in &status.blocks {
            let (cidr, leased) = (block.cidr.to_string(), block.leased.to_string());
            table.row(vec![
                cidr.into(),
                block.pool.clone().into(),
                block.state.clone().into(),
                leased.into(),
            ]);
        }
        *text += &table.render(colour, 2);
    }
    for node in status.nodes.iter().filter(|node| node.problem.is_some()) {
        let problem = node.problem.as_deref().unwrap_or_default();
        let _ = writeln!(text, "  {} node {}: {problem}", paint("!", Tone::Bad, colour), node.node);
    }
}

fn policy_text(text: &mut String, asked: &Asked<PolicyStatus>, colour: bool) {
    let Asked::Answer(status) = asked else { return without_answer(text, "policy-agent", asked, colour) };
    let _ = writeln!(text, "policy-agent {}", ready(status.ready, colour));
    line(text, "store", &format!("{} (revision {})", status.store, status.revision));
    line(text, "in the kernel", &format!("{} local pods, {} elements", status.endpoints, status.elements));
    line(
        text,
        "compiled",
        &format!(
            "{} policies, {} pods, {} classes, {} policy sets",
            status.policies, status.pods, status.classes, status.policy_sets
        ),
    );
    if status.repairs > 0 {
        line(text, "repairs", &format!("{} foreign changes to our table", status.repairs));
    }
    line(text, "unknown pods", &status.unknown_pods.join(", "));
    problems(text, &status.problems, colour);
}

fn cluster_text(text: &mut String, cluster: &Cluster, all: bool, colour: bool) {
    let _ = writeln!(text, "Cluster: {}", cluster.summary());
    line(text, "store", &cluster.store);
    line(text, "backend", &cluster.backend);
    line(text, "pools", &join(cluster.pools.iter().map(|(name, cidr)| format!("{name} {cidr}"))));
    if cluster.pools.is_empty() {
        problems(text, &["no pool: pods get no address; apply a Pool".to_owned()], colour);
    }
    line(text, "released blocks", &join(cluster.released_blocks.iter().map(ToString::to_string)));
    problems(text, &cluster.problems, colour);
    let table = cluster.table(|node| all || !node.live);
    if !table.is_empty() {
        *text += &table.render(colour, 2);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use podway_model::socket::{BlockStatus, DeviceStatus, NodeStatus, RouteCounts};

    use super::*;

    fn routed(ready: bool) -> RoutedStatus {
        RoutedStatus {
            node: "n1".parse().unwrap(),
            instance_id: "00000000-0000-4000-8000-000000000001".parse().unwrap(),
            pid: 4711,
            ready,
            waiting_for: if ready { vec![] } else { vec!["store: not synced".into()] },
            store: "etcd at http://127.0.0.1:2379".into(),
            revision: 42,
            backend: "vxlan".into(),
            topology: None,
            changeover: None,
            addresses: vec!["10.0.0.1".parse().unwrap()],
            tunnel_addresses: vec!["10.244.0.0".parse().unwrap()],
            mtu: 1450,
            blocks: vec![BlockStatus {
                cidr: "10.244.0.0/26".parse().unwrap(),
                pool: "v4".into(),
                state: "active".into(),
                leased: 3,
            }],
            devices: vec![DeviceStatus { name: "podway.vxlan".into(), mac: None, mtu: 1450, peers: 2 }],
            nodes: vec![NodeStatus {
                node: "n3".parse().unwrap(),
                addresses: vec![],
                live: false,
                blocks: vec![],
                problem: Some("no underlay address".into()),
            }],
            routes: RouteCounts { desired: 4, actual: 3, failed: 1 },
            problems: vec!["pools a and b overlap".into()],
            counters: BTreeMap::new(),
        }
    }

    fn report(routed_ready: bool, policy: Asked<PolicyStatus>) -> Report {
        Report {
            node: Some(ThisNode {
                routed: Asked::Answer(Box::new(routed(routed_ready))),
                policy_agent: policy,
            }),
            cluster: Some(cluster::tests::sample()),
            cluster_error: None,
        }
    }

    fn policy(ready: bool) -> Asked<PolicyStatus> {
        Asked::Answer(Box::new(PolicyStatus {
            ready,
            store: "etcd at http://127.0.0.1:2379".into(),
            endpoints: 3,
            unknown_pods: vec!["shop/new-0".into()],
            policies: 2,
            pods: 9,
            classes: 4,
            policy_sets: 2,
            elements: 31,
            revision: 42,
            repairs: 1,
            problems: vec![],
        }))
    }

    #[test]
    fn the_whole_report_as_text() {
        insta::assert_snapshot!(text(&report(true, policy(true)), true, false));
    }

    #[test]
    fn what_is_missing_is_said() {
        insta::assert_snapshot!(text(&report(false, Asked::NotRunning), false, false));
    }

    #[test]
    fn the_exit_code_follows_this_node_first() {
        assert!(verdict(&report(true, policy(true))).is_ok());
        for (report, words) in [
            (report(false, policy(true)), "routed is not ready"),
            (report(true, policy(false)), "policy-agent is not ready"),
            (report(true, Asked::NotRunning), "policy-agent does not answer"),
        ] {
            let failure = verdict(&report).unwrap_err();
            assert_eq!((failure.code(), failure.to_string().as_str()), (4, words));
        }
        let store = Report { cluster_error: Some("refused".into()), ..report(true, policy(true)) };
        assert_eq!(verdict(&store).unwrap_err().code(), 1);
        let nowhere = Report { node: None, ..report(true, policy(true)) };
        assert!(verdict(&nowhere).is_ok(), "an operator's own machine is no node");
    }
}
