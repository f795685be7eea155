//! Every pair of pods, pods and the outside world, nodes and pods: per backend, both families.

use std::time::Duration;

use anyhow::{Result, ensure};
use podway_model::cluster::Backend;
use podway_testkit::cluster::{Cluster, ClusterOptions};
use podway_testkit::matrix::Matrix;
use podway_testkit::probe::Kind;
use podway_testkit::wait::wait_until_ok;

use crate::{cluster_with_pods, run, two_nodes};

const KINDS: [Kind; 3] = [Kind::Icmp, Kind::Tcp(80), Kind::Udp(80)];

/// Waits until the whole matrix is as expected: routes may still be on their way after the first ADD.
fn wait_as_expected(look: impl Fn() -> Result<Matrix>) -> Result<()> {
    wait_until_ok("everything is reached as expected", Duration::from_secs(15), || {
        let matrix = look()?;
        ensure!(!matrix.cells.is_empty(), "nothing was tried");
        let differences = matrix.differences();
        ensure!(differences.is_empty(), "{}", differences.join("\n"));
        Ok(())
    })
}

fn everybody_reaches_everybody(cluster: &Cluster) -> Result<()> {
    wait_as_expected(|| cluster.pods_to_pods(&KINDS))?;
    wait_as_expected(|| cluster.pods_to_outside(&KINDS))?;
    wait_as_expected(|| cluster.nodes_to_pods(&KINDS))
}

fn backend(test: &str, options: ClusterOptions) {
    run(test, || everybody_reaches_everybody(&cluster_with_pods(ClusterOptions { ipv6: true, ..options })?));
}

#[test]
fn vxlan_connects_everybody() {
    backend("vxlan_connects_everybody", two_nodes("connect-vxlan", Backend::Vxlan));
}

#[test]
fn host_gw_connects_everybody() {
    backend("host_gw_connects_everybody", two_nodes("connect-host-gw", Backend::HostGw));
}

#[test]
fn bgp_mesh_connects_everybody() {
    backend("bgp_mesh_connects_everybody", ClusterOptions::new("connect-bgp-mesh", Backend::Bgp));
}

#[test]
fn bgp_reflector_connects_everybody() {
    let options = ClusterOptions::new("connect-bgp-reflector", Backend::Bgp);
    backend("bgp_reflector_connects_everybody", ClusterOptions { reflectors: 1, ..options });
}

#[test]
fn a_deleted_pod_leaves_nothing_on_its_node() {
    run("a_deleted_pod_leaves_nothing_on_its_node", || {
        let mut cluster = cluster_with_pods(two_nodes("deleted-pod", Backend::HostGw))?;
        let pods = std::mem::take(&mut cluster.pods);
        for pod in pods {
            let node = cluster.lab.node(&pod.node)?;
            pod.check(&node.place)??;
            let address = pod.addresses[0].to_string();
            let interface = pod.result["interfaces"][0]["name"].as_str().unwrap_or_default().to_owned();
            ensure!(!interface.is_empty(), "the result names the host interface: {}", pod.result);
            ensure!(node.place.ip_json(&["link"])?.iter().any(|link| link["ifname"] == *interface));
            pod.delete(&node.place)?;
            ensure!(!node.place.ip_json(&["link"])?.iter().any(|link| link["ifname"] == *interface));
            let routes = node.place.ip_json(&["route", "show", "table", "all"])?;
            ensure!(!routes.iter().any(|route| route["dst"] == *address), "route to {address} is left");
        }
        for node in &cluster.lab.nodes {
            let records = node.read_folder(podway_model::names::ENDPOINTS_DIR)?;
            ensure!(records.is_empty(), "{}: endpoint records are left: {records:?}", node.name());
            wait_until_ok("no address is leased", Duration::from_secs(5), || {
                let (routed, policy) = node.status()?;
                ensure!(routed.blocks.iter().all(|block| block.leased == 0), "{:?}", routed.blocks);
                ensure!(policy.endpoints == 0, "{} endpoints", policy.endpoints);
                Ok(())
            })?;
        }
        Ok(())
    });
}
