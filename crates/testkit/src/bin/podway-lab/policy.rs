//! Step 3: NetworkPolicy: who reaches whom before and after, and how long it takes from apply to enforcement.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use podway_model::k8s::NetworkPolicy;
use podway_testkit::cluster::Cluster;
use podway_testkit::matrix::{Cell, Matrix};
use podway_testkit::probe::Kind;
use podway_testkit::table::Table;
use podway_testkit::wait::wait_until_ok;

use crate::latency::milliseconds;
use crate::options::Sabotage;
use crate::report::Report;
use crate::watch::{Turn, Watch};
use crate::{reach, sabotage};

/// Both ports, so that a rule about one of them shows.
const KINDS: [Kind; 5] = [Kind::Icmp, Kind::Tcp(80), Kind::Tcp(81), Kind::Udp(80), Kind::Udp(81)];

/// Pods, namespaces and blocks as peers, ports, both directions.
const POLICIES: &str = r#"[
  {"metadata": {"namespace": "demo", "name": "a-ingress"},
   "spec": {"podSelector": {"matchLabels": {"app": "a"}}, "policyTypes": ["Ingress"],
            "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": "a"}}}]},
                        {"from": [{"namespaceSelector": {"matchLabels": {"team": "ops"}}}],
                         "ports": [{"protocol": "TCP", "port": 80}]}]}},
  {"metadata": {"namespace": "demo", "name": "b-egress"},
   "spec": {"podSelector": {"matchLabels": {"app": "b"}}, "policyTypes": ["Egress"],
            "egress": [{"to": [{"podSelector": {}}], "ports": [{"protocol": "TCP", "port": 80, "endPort": 81}]},
                       {"to": [{"ipBlock": {"cidr": "198.51.100.0/24", "except": ["198.51.100.128/25"]}}],
                        "ports": [{"protocol": "UDP", "port": 80}]}]}},
  {"metadata": {"namespace": "ops", "name": "ops-ingress"},
   "spec": {"podSelector": {}, "policyTypes": ["Ingress"],
            "ingress": [{"from": [{"podSelector": {}, "namespaceSelector": {}}],
                         "ports": [{"protocol": "UDP", "port": 81}]}]}}
]"#;

pub(crate) fn show(cluster: &mut Cluster, sabotaged: Option<Sabotage>, report: &mut Report) -> Result<()> {
    report.section("3. NetworkPolicy");
    report.say(&format!("  {}", Matrix::legend(&KINDS)));
    let before = cluster.pods_to_pods(&KINDS)?;
    reach::matrix(report, "Before", cluster.pods.len(), &before);
    if sabotaged == Some(Sabotage::Route) {
        // Timing a policy over a broken route would only wait in vain.
        return Ok(());
    }

    let policies: Vec<NetworkPolicy> = serde_json::from_str(POLICIES).context("the demo's policies")?;
    // One connection for each node whose end the policies close.
    let closing = closing(cluster, &before, &policies)?;
    let watches = closing
        .iter()
        .map(|cell| Watch::start(cluster.pod(&cell.from)?.net(), cell, Turn::Closes))
        .collect::<Result<Vec<_>>>()?;
    let began = Instant::now();
    cluster.apply_policies(policies)?;
    let applied = began.elapsed();
    let mut table = Table::new(["CONNECTION", "CLOSED AFTER"]);
    let mut slowest = Duration::ZERO;
    for (cell, watch) in closing.iter().zip(watches) {
        let took = watch.turned_at()?.saturating_duration_since(began);
        slowest = slowest.max(took);
        table.row([format!("{} to {} {}", cell.from, cell.to, cell.kind), milliseconds(took)]);
    }
    report.table(
        &format!(
            "Three policies, from the start of podwayctl apply (which took {}) to enforcement",
            milliseconds(applied)
        ),
        &table,
    );
    report.expect(!closing.is_empty(), || "the policies close nothing".to_owned());
    report.figure(
        "slowest, ms",
        slowest.as_secs_f64() * 1e3,
        &format!("  enforced everywhere after {}", milliseconds(slowest)),
    );
    if sabotaged == Some(Sabotage::Nft) {
        sabotage::drop_element(cluster, report)?;
    }
    let after = cluster.pods_to_pods(&KINDS)?;
    reach::matrix(report, "After", cluster.pods.len(), &after);
    let outside = cluster.pods_to_outside(&KINDS)?;
    reach::matrix(report, "Pods to outside, after", 1, &outside);
    if sabotaged.is_some() {
        return Ok(());
    }

    let reopening: Vec<Cell> = closing.into_iter().map(|cell| Cell { expected: true, ..cell }).collect();
    let watches = reopening
        .iter()
        .map(|cell| Watch::start(cluster.pod(&cell.from)?.net(), cell, Turn::Opens))
        .collect::<Result<Vec<_>>>()?;
    let began = Instant::now();
    cluster.delete_policies()?;
    let mut slowest = Duration::ZERO;
    for watch in watches {
        slowest = slowest.max(watch.turned_at()?.saturating_duration_since(began));
    }
    report.figure(
        "deleted, ms",
        slowest.as_secs_f64() * 1e3,
        &format!("  policies deleted with podwayctl delete: open again after {}", milliseconds(slowest)),
    );
    Ok(())
}

/// For each node, one connection by UDP to a pod there that is open now and that the policies will close.
fn closing(cluster: &Cluster, before: &Matrix, policies: &[NetworkPolicy]) -> Result<Vec<Cell>> {
    let mut chosen: Vec<Cell> = vec![];
    for node in &cluster.lab.nodes {
        for cell in before.cells.iter().filter(|cell| matches!(cell.kind, Kind::Udp(_))) {
            let (from, to) = (cluster.pod(&cell.from)?, cluster.pod(&cell.to)?);
            // Pods of one node see its agent alone: what is timed must be this node's doing.
            if to.node != node.name() || !cell.seen.is_open() {
                continue;
            }
            if !cluster.judge_with(policies, from, to, cell.kind, cell.address).ingress.allows() {
                chosen.push(cell.clone());
                break;
            }
        }
    }
    Ok(chosen)
}

/// Waits until every node's agent knows every pod.
pub(crate) fn wait_known(cluster: &Cluster) -> Result<()> {
    let pods = cluster.objects.pods.len();
    cluster.lab.wait_on_all("the policy agent knows all pods", Duration::from_secs(10), |node| {
        let (_, policy) = node.status()?;
        anyhow::ensure!(policy.pods == pods, "{} of {pods} pods known", policy.pods);
        Ok(())
    })?;
    wait_until_ok("the plugin of the first node answers STATUS", Duration::from_secs(5), || {
        cluster.node_at(0)?.runtime().status()?.map(drop).map_err(Into::into)
    })
}
