//! Step 5: a node dies without a word, and comes back.

use std::time::{Duration, Instant};

use anyhow::Result;
use podway_model::cluster::Backend;
use podway_testkit::cluster::{Cluster, PodPlan};
use podway_testkit::lab::{LEASE_SECONDS, StoreKind};
use podway_testkit::objects::HOLD_TIME_SECONDS;
use podway_testkit::wait::{wait_until, wait_until_ok};

use crate::report::Report;
use crate::setup::{blocks_by_node, join, routed_prefixes, wait_converged};
use crate::{policy, reach};

/// How much longer than the hold time the others' routes may stay: the death came somewhere between two keepalives.
const BEYOND_HOLD_TIME: Duration = Duration::from_secs(1);
/// After `podwayctl node release`.
const RELEASE_LIMIT: Duration = Duration::from_secs(1);

pub(crate) fn show(cluster: &mut Cluster, report: &mut Report) -> Result<()> {
    report.section("5. A node's death and return");
    let last = cluster.lab.nodes.len() - 1;
    let name = cluster.node_at(last)?.name().to_owned();
    let blocks = blocks_by_node(cluster)?.remove(&name).unwrap_or_default();
    let plans: Vec<PodPlan> = cluster
        .objects
        .pods
        .iter()
        .filter(|pod| pod.spec.node_name == name)
        .map(|pod| PodPlan {
            namespace: pod.metadata.namespace.clone(),
            name: pod.metadata.name.clone(),
            node: last,
            labels: pod.metadata.labels.clone().into_iter().collect(),
        })
        .collect();
    report.say(&format!("  {name} (blocks {}) loses its cable, then its power", join(&blocks)));
    let died = Instant::now();
    cluster.lab.kill_node(last)?;

    let gone = |cluster: &Cluster| -> Result<bool> {
        for node in &cluster.lab.nodes[..last] {
            if routed_prefixes(cluster, node)?.iter().any(|route| blocks.contains(route)) {
                return Ok(false);
            }
        }
        Ok(true)
    };
    if cluster.options.backend == Backend::Bgp {
        let hold = Duration::from_secs(HOLD_TIME_SECONDS.into());
        wait_until("nobody has a route to it any more", hold * 5, || Ok(gone(cluster)?.then_some(())))?;
        let took = died.elapsed();
        report.figure(
            "routes gone after",
            took.as_secs_f64(),
            &format!(
                "  the others' routes to it are gone after {:.2} s (hold time {HOLD_TIME_SECONDS} s)",
                took.as_secs_f64()
            ),
        );
        report.expect(took <= hold + BEYOND_HOLD_TIME, || {
            format!("routes to the dead node stayed for {:.2} s", took.as_secs_f64())
        });
    } else {
        show_down_and_release(cluster, report, &name, died, gone)?;
    }

    report.say(&format!("  {name} boots: new boot id, empty kernel, empty /run"));
    let came = Instant::now();
    cluster.forget_pods_of(&name)?;
    cluster.lab.boot_node(last)?;
    cluster.lab.nodes[last].start_daemons()?;
    cluster.lab.nodes[last].wait_ready(Duration::from_secs(30))?;
    wait_converged(cluster)?;
    let took = came.elapsed();
    report.figure(
        "back after",
        took.as_secs_f64(),
        &format!("  it is ready, and routed on all nodes, {:.2} s after its boot", took.as_secs_f64()),
    );
    cluster.add_pods(&plans)?;
    policy::wait_known(cluster)?;
    let matrix = cluster.pods_to_pods(&reach::KINDS)?;
    reach::matrix(report, "Pods to pods after its return", cluster.pods.len(), &matrix);
    Ok(())
}

/// host-gw and vxlan: a missing sign of life is shown and removes nothing; the operator releases the node.
fn show_down_and_release(
    cluster: &Cluster,
    report: &mut Report,
    name: &str,
    died: Instant,
    gone: impl Fn(&Cluster) -> Result<bool>,
) -> Result<()> {
    let first = cluster.node_at(0)?;
    if cluster.options.lab.store == StoreKind::Etcd {
        wait_until_ok("the node is shown down", Duration::from_secs(u64::from(LEASE_SECONDS) * 5), || {
            let (routed, _) = first.status()?;
            let down = routed.nodes.iter().any(|node| node.node.as_str() == name && !node.live);
            anyhow::ensure!(down, "{name} is shown as alive");
            Ok(())
        })?;
        let took = died.elapsed();
        report.figure(
            "shown down after",
            took.as_secs_f64(),
            &format!("  shown down after {:.2} s (its lease: {LEASE_SECONDS} s)", took.as_secs_f64()),
        );
    } else {
        report.say("  the file store knows no sign of life: a dead node is not shown down");
    }
    let stay = !gone(cluster)?;
    report.figure(
        "routes stay",
        stay,
        "  the others' routes to it stay: a missing sign of life removes nothing",
    );
    report.expect(stay, || "routes were removed though nobody released the node".to_owned());

    let mut command = vec!["node", "release", name];
    if cluster.options.lab.store == StoreKind::File {
        command.push("--force");
    }
    let released = Instant::now();
    first.podwayctl_ok(&command, "")?;
    let answered = Instant::now();
    wait_until("nobody has a route to it any more", RELEASE_LIMIT * 10, || Ok(gone(cluster)?.then_some(())))?;
    let took = answered.elapsed();
    report.figure(
        "routes gone after release",
        took.as_secs_f64(),
        &format!(
            "  podwayctl {}: done after {:.2} s, the others' routes are gone {:.2} s later",
            command.join(" "),
            (answered - released).as_secs_f64(),
            took.as_secs_f64()
        ),
    );
    report.expect(took <= RELEASE_LIMIT, || {
        format!("routes stayed for {:.2} s after the release", took.as_secs_f64())
    });
    Ok(())
}
