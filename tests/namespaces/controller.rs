//! `routed controller`: two replicas as processes, with etcd's lock, under an inventory.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use podway_model::cluster::Backend;
use podway_model::names;
use podway_testkit::cluster::Cluster;
use podway_testkit::process::Process;
use podway_testkit::wait::wait_until_ok;

use crate::{run_with_etcdctl, two_nodes};

/// Looks are a minute apart, and what came after one waits for the next.
const PATIENCE: Duration = Duration::from_secs(150);
/// Seconds for which a node must be missing, here.
const GRACE: u64 = 4;

fn start(cluster: &Cluster, node: usize) -> Result<Process> {
    let node = cluster.node_at(node)?;
    let mut command = Command::new(&cluster.lab.programs.routed);
    command.arg("controller");
    let log = cluster.lab.logs().join(format!("controller-{}.log", node.name()));
    Process::start(&node.place, "controller", command, &log)
}

/// The cluster's configuration with these nodes in its inventory; past `podwayctl`, which wants a minute at least.
fn inventory(cluster: &Cluster, nodes: &[&str]) -> Result<()> {
    let config = serde_json::json!({
        "schema": 1, "backend": "host-gw", "inventory": {"nodes": nodes, "graceSeconds": GRACE},
    });
    let key = format!("{}config", names::ETCD_PREFIX);
    cluster.lab.etcdctl(&["put", &key, &config.to_string()]).map(drop)
}

fn get(cluster: &Cluster, key: &str) -> Result<String> {
    cluster.lab.etcdctl(&["get", "--prefix", &format!("{}{key}", names::ETCD_PREFIX)])
}

fn put_claim(cluster: &Cluster, node: &str, block: &str) -> Result<()> {
    let key = format!("{}claims/{node}/{block}", names::ETCD_PREFIX);
    let claim = r#"{"schema":1,"instanceId":"00000000-0000-4000-8000-000000000009","pool":"default-v4","confirmed":true}"#;
    cluster.lab.etcdctl(&["put", &key, claim]).map(drop)
}

fn is_freed(cluster: &Cluster, node: &str) -> Result<()> {
    wait_until_ok(&format!("{node} is freed"), PATIENCE, || {
        let left = get(cluster, &format!("claims/{node}/"))?;
        ensure!(left.is_empty(), "{left}");
        Ok(())
    })
}

#[test]
fn of_two_controllers_one_works_and_the_other_goes_on_when_it_is_killed() {
    run_with_etcdctl("of_two_controllers_one_works_and_the_other_goes_on_when_it_is_killed", || {
        let mut cluster = Cluster::up(two_nodes("controller", Backend::HostGw))?;
        // Released a day ago and longer.
        let old = format!("{}released/10.9.0.0-26", names::ETCD_PREFIX);
        cluster.lab.etcdctl(&["put", &old, r#"{"schema":1,"atUnixSeconds":1000,"formerOwner":"n7"}"#])?;
        put_claim(&cluster, "n8", "10.9.8.0-26")?;
        let mut replicas = [Some(start(&cluster, 0)?), Some(start(&cluster, 1)?)];
        wait_until_ok("an old hold is ended, with or without an inventory", PATIENCE, || {
            let left = get(&cluster, "released/")?;
            ensure!(left.is_empty(), "{left}");
            Ok(())
        })?;
        ensure!(!get(&cluster, "claims/n8/")?.is_empty(), "nobody is missing where there is no inventory");

        inventory(&cluster, &["n1"])?;
        is_freed(&cluster, "n8")?;
        ensure!(get(&cluster, "released/10.9.8.0-26")?.contains("n8"), "held back");

        let leader = get(&cluster, "controller")?;
        let first = usize::from(!leader.contains("n1/"));
        let mut killed = replicas[first].take().context("it runs")?;
        let log = killed.log();
        ensure!(log.contains("node n8 freed"), "{log}");
        killed.kill()?;
        put_claim(&cluster, "n9", "10.9.9.0-26")?;
        is_freed(&cluster, "n9")?;
        let second = replicas[1 - first].as_ref().context("it runs")?;
        ensure!(second.log().contains("node n9 freed"), "{}", second.log());

        // n2 is missing from the inventory all the while, and alive: reported, and left alone.
        let logs = log + &second.log();
        ensure!(logs.contains("node n2 is missing from the inventory and alive"), "{logs}");
        ensure!(!get(&cluster, "claims/n2/")?.is_empty() && !get(&cluster, "nodes/n2")?.is_empty(), "kept");
        // Stopped, it is freed like any other, by whoever is at work where the store can be reached.
        let _third = if first == 0 { Some(start(&cluster, 0)?) } else { None };
        cluster.lab.kill_node(1)?;
        is_freed(&cluster, "n2")?;
        ensure!(get(&cluster, "nodes/n2")?.is_empty(), "its record too");
        ensure!(!get(&cluster, "claims/n1/")?.is_empty(), "n1 is in the inventory");
        Ok(())
    });
}
