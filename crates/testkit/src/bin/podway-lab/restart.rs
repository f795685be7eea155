//! Step 4: `routed` is killed with -9 and started again while packets flow, one each millisecond.

use std::time::{Duration, Instant};

use anyhow::Result;
use podway_model::cluster::Backend;
use podway_testkit::cluster::Cluster;
use podway_testkit::flow::Flow;
use podway_testkit::table::Table;
use podway_testkit::wait::wait_until_ok;

use crate::latency::milliseconds;
use crate::report::Report;

const INTERVAL: Duration = Duration::from_millis(1);
/// Packets before the kill, and after everything is well again.
const AROUND: u64 = 300;

pub(crate) fn show(cluster: &mut Cluster, report: &mut Report) -> Result<()> {
    report.section("4. routed killed with -9 under a 1 ms flow");
    let last = cluster.lab.nodes.len() - 1;
    let mut flows = vec![];
    for &v6 in cluster.families() {
        for (from, to) in [(0, last), (last, 0)] {
            let (from, to) = (cluster.pod_on(from)?, cluster.pod_on(to)?);
            if let Some(address) = to.address(v6) {
                let name = format!("{} to {} ({address})", from.full_name(), to.full_name());
                flows.push((name, Flow::start(from.net(), to.net(), address, INTERVAL)?));
            }
        }
    }
    for (_, flow) in &flows {
        flow.wait_for(AROUND)?;
    }
    let began = Instant::now();
    cluster.lab.nodes[0].kill_routed()?;
    cluster.lab.nodes[0].start_routed()?;
    cluster.lab.nodes[0].wait_ready(Duration::from_secs(30))?;
    if cluster.options.backend == Backend::Bgp {
        let node = cluster.node_at(0)?;
        wait_until_ok("BGP sessions are back and nothing is stale", Duration::from_secs(30), || {
            let peers = node.bgp_peers()?;
            let settled = peers.iter().all(|peer| peer.state == "Established" && peer.stale == 0);
            anyhow::ensure!(settled && !peers.is_empty(), "not settled");
            Ok(())
        })?;
    }
    let back = began.elapsed();
    for (_, flow) in &flows {
        flow.wait_for(AROUND)?;
    }
    let mut table = Table::new(["FLOW", "SENT", "LOST", "LONGEST GAP"]);
    for (name, flow) in flows {
        let seen = flow.stop()?;
        table.row([
            name.clone(),
            seen.sent.to_string(),
            seen.lost().to_string(),
            milliseconds(seen.longest_gap),
        ]);
        report.expect(seen.lost() == 0, || format!("{name}: {} packets lost", seen.lost()));
    }
    report.table(
        "Packets while routed of the first node was killed and came back (expected: none lost)",
        &table,
    );
    report.figure(
        "back after",
        back.as_secs_f64(),
        &format!("  ready again after {:.2} s", back.as_secs_f64()),
    );
    Ok(())
}
