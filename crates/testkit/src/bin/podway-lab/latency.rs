//! Step 6: how long ADD and DEL take, as a runtime sees it.

use std::time::Duration;

use anyhow::Result;
use podway_testkit::cluster::Cluster;
use podway_testkit::pod::Pod;
use podway_testkit::table::Table;

use crate::report::Report;

/// Pods that are made and taken away, one after the other.
const ROUNDS: usize = 30;

pub(crate) fn show(cluster: &Cluster, report: &mut Report) -> Result<()> {
    report.section("6. CNI latency");
    let node = cluster.node_at(0)?;
    let (mut adds, mut dels) = (vec![], vec![]);
    for round in 0..ROUNDS {
        let pod = Pod::add(&node.place, &cluster.lab.echo, "demo", &format!("latency-{round}"))?;
        adds.push(pod.add_took);
        dels.push(pod.delete(&node.place)?);
    }
    let mut table = Table::new(["VERB", "MEDIAN", "90 %", "SLOWEST"]);
    for (verb, mut times) in [("ADD", adds), ("DEL", dels)] {
        times.sort();
        let at = |share: usize| milliseconds(times[(times.len() - 1) * share / 100]);
        table.row([verb.to_owned(), at(50), at(90), at(100)]);
    }
    report.table(&format!("{ROUNDS} pods on {}, one at a time, process start included", node.name()), &table);
    Ok(())
}

/// A duration in milliseconds, for people.
pub(crate) fn milliseconds(time: Duration) -> String {
    format!("{:.1} ms", time.as_secs_f64() * 1e3)
}
