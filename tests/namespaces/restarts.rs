//! Daemons die and come back while packets flow, one each millisecond: none is lost.

use std::time::Duration;

use anyhow::{Result, ensure};
use podway_model::cluster::Backend;
use podway_testkit::cluster::{Cluster, ClusterOptions};
use podway_testkit::flow::Flow;
use podway_testkit::probe::Kind;
use podway_testkit::wait::wait_until_ok;

use crate::{cluster_with_pods, run, two_nodes};

const PATIENCE: Duration = Duration::from_secs(30);

/// Runs `act` while packets flow both ways between the first and the last node, and expects all to arrive.
pub(crate) fn without_loss(
    cluster: &mut Cluster,
    act: impl FnOnce(&mut Cluster) -> Result<()>,
) -> Result<()> {
    let last = cluster.lab.nodes.len() - 1;
    let mut flows = vec![];
    for (from, to) in [(0, last), (last, 0)] {
        let (from, to) = (cluster.pod_on(from)?, cluster.pod_on(to)?);
        flows.push(Flow::start(from.net(), to.net(), to.addresses[0], Duration::from_millis(1))?);
    }
    for flow in &flows {
        flow.wait_for(200)?;
    }
    act(cluster)?;
    for flow in flows {
        flow.wait_for(200)?;
        let report = flow.stop()?;
        ensure!(report.lost() == 0, "packets were lost: {report:?}");
    }
    Ok(())
}

fn kill_and_return(test: &str, options: ClusterOptions) {
    run(test, || {
        let mut cluster = cluster_with_pods(options)?;
        if cluster.options.backend == Backend::Bgp {
            sessions_are_up(&cluster)?;
        }
        // A flow counts from its first packet on, so there must be a way before it starts.
        connected(&cluster)?;
        without_loss(&mut cluster, |cluster| {
            for index in 0..cluster.lab.nodes.len() {
                let node = &mut cluster.lab.nodes[index];
                node.kill_routed()?;
                node.start_routed()?;
                node.wait_ready(PATIENCE)?;
                node.kill_policy_agent()?;
                node.start_policy_agent()?;
                node.wait_ready(PATIENCE)?;
                if cluster.options.backend == Backend::Bgp {
                    sessions_are_up(cluster)?;
                }
            }
            Ok(())
        })?;
        let matrix = cluster.pods_to_pods(&[Kind::Icmp, Kind::Tcp(80)])?;
        ensure!(matrix.differences().is_empty(), "{}", matrix.differences().join("\n"));
        Ok(())
    });
}

pub(crate) fn connected(cluster: &Cluster) -> Result<()> {
    wait_until_ok("pods reach each other", PATIENCE, || {
        let differences = cluster.pods_to_pods(&[Kind::Icmp])?.differences();
        ensure!(differences.is_empty(), "{}", differences.join("\n"));
        Ok(())
    })
}

fn sessions_are_up(cluster: &Cluster) -> Result<()> {
    cluster.lab.wait_on_all("BGP sessions are up and nothing is stale", PATIENCE, |node| {
        let peers = node.bgp_peers()?;
        let settled = !peers.is_empty() && peers.iter().all(|p| p.state == "Established" && p.stale == 0);
        ensure!(settled, "{peers:?}");
        Ok(())
    })
}

#[test]
fn killed_daemons_lose_no_packet_with_vxlan() {
    kill_and_return("killed_daemons_lose_no_packet_with_vxlan", two_nodes("killed-vxlan", Backend::Vxlan));
}

#[test]
fn killed_daemons_lose_no_packet_with_host_gw() {
    kill_and_return(
        "killed_daemons_lose_no_packet_with_host_gw",
        two_nodes("killed-host-gw", Backend::HostGw),
    );
}

#[test]
fn killed_daemons_lose_no_packet_with_bgp() {
    let options = ClusterOptions::new("killed-bgp", Backend::Bgp);
    kill_and_return("killed_daemons_lose_no_packet_with_bgp", ClusterOptions { reflectors: 1, ..options });
}

#[test]
fn the_data_path_lives_without_daemons_and_store() {
    run("the_data_path_lives_without_daemons_and_store", || {
        let mut cluster = cluster_with_pods(two_nodes("no-daemons", Backend::Vxlan))?;
        connected(&cluster)?;
        without_loss(&mut cluster, |cluster| {
            for node in &mut cluster.lab.nodes {
                node.kill_routed()?;
                node.kill_policy_agent()?;
            }
            cluster.lab.kill_etcd()
        })?;
        let matrix = cluster.pods_to_pods(&[Kind::Icmp, Kind::Tcp(80), Kind::Udp(80)])?;
        ensure!(matrix.differences().is_empty(), "{}", matrix.differences().join("\n"));
        // DEL needs nothing but local state.
        let pods = std::mem::take(&mut cluster.pods);
        for pod in pods {
            let node = cluster.lab.node(&pod.node)?;
            pod.delete(&node.place)?;
        }
        Ok(())
    });
}

#[test]
fn a_daemon_started_twice_refuses_with_the_first_ones_pid() {
    run("a_daemon_started_twice_refuses_with_the_first_ones_pid", || {
        let mut options = two_nodes("started-twice", Backend::HostGw);
        options.lab.nodes = 1;
        let cluster = Cluster::up(options)?;
        let node = cluster.node_at(0)?;
        for (daemon, first) in [("routed", &node.routed), ("policy-agent", &node.policy_agent)] {
            let pid = first.as_ref().expect("it runs").pid();
            let (code, log) = node.run_daemon_to_end(daemon, PATIENCE)?;
            ensure!(code.is_some_and(|code| code != 0), "{daemon}: exit code {code:?}");
            ensure!(log.contains(&format!("process {pid}")), "{daemon}: no pid {pid} in {log:?}");
        }
        wait_until_ok("the first ones run on", PATIENCE, || {
            let (routed, policy) = node.status()?;
            ensure!(routed.ready && policy.ready, "not ready");
            Ok(())
        })
    });
}
