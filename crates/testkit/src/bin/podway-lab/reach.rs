//! Step 2: who reaches whom.

use anyhow::Result;
use podway_testkit::cluster::Cluster;
use podway_testkit::matrix::Matrix;
use podway_testkit::probe::Kind;

use crate::report::Report;

/// What every pair speaks.
pub(crate) const KINDS: [Kind; 3] = [Kind::Icmp, Kind::Tcp(80), Kind::Udp(80)];
/// A larger matrix is shown as numbers, and its differences by name.
const LARGEST_TABLE: usize = 14;

pub(crate) fn show(cluster: &Cluster, report: &mut Report) -> Result<()> {
    report.section("2. Who reaches whom, no policy");
    report.say(&format!("  {}", Matrix::legend(&KINDS)));
    matrix(report, "Pods to pods", cluster.pods.len(), &cluster.pods_to_pods(&KINDS)?);
    let outside = cluster.pods_to_outside(&KINDS)?;
    matrix(report, "Pods to outside, which must see the node's address", 1, &outside);
    matrix(report, "Nodes to pods", cluster.pods.len(), &cluster.nodes_to_pods(&KINDS)?);
    Ok(())
}

/// Prints a matrix and takes note of its differences.
pub(crate) fn matrix(report: &mut Report, caption: &str, columns: usize, matrix: &Matrix) {
    let (expected, seen) = matrix.open();
    let caption =
        format!("{caption}: {} connections, {expected} expected open, {seen} seen open", matrix.cells.len());
    if columns <= LARGEST_TABLE {
        report.table(&caption, &matrix.table());
    } else {
        report.say(&format!("\n{caption}"));
    }
    for difference in matrix.differences() {
        report.differ(difference);
    }
}
