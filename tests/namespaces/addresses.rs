//! `podwayctl ipam` on a cluster: what the store says of all nodes, what routed finds on its own, and freeing an address.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use podway_model::cluster::Backend;
use podway_model::names::host_ifname;
use podway_testkit::lab::Node;
use podway_testkit::wait::wait_until_ok;
use serde_json::Value;

use crate::{cluster_with_pods, run, two_nodes};

const PATIENCE: Duration = Duration::from_secs(30);

fn show(node: &Node) -> Result<Value> {
    let text = node.podwayctl_ok(&["ipam", "show", "-o", "json"], "")?;
    serde_json::from_str(&text).context("output of podwayctl ipam show")
}

/// Problems and remedies.
type Findings = Vec<(String, Value)>;

/// What `ipam check` finds, and its exit code.
fn check(node: &Node, more: &[&str]) -> Result<(Findings, Option<i32>)> {
    let output = node.podwayctl(&[&["ipam", "check", "-o", "json"], more].concat(), "")?;
    let findings: Vec<Value> = serde_json::from_str(&output.stdout)
        .with_context(|| format!("output of podwayctl ipam check: {}", output.stderr))?;
    let one = |finding: &Value| {
        (finding["problem"].as_str().unwrap_or_default().to_owned(), finding["remedy"].clone())
    };
    Ok((findings.iter().map(one).collect(), output.code))
}

#[test]
fn leaks_are_found_mended_when_told_to_and_addresses_freed_on_their_node() {
    run("leaks_are_found_mended_when_told_to_and_addresses_freed_on_their_node", || {
        let cluster = cluster_with_pods(two_nodes("addresses", Backend::HostGw))?;
        let (first, second) = (cluster.node_at(0)?, cluster.node_at(1)?);
        // The first pod of each node is told at once; what comes later, in time.
        wait_until_ok("the use of both nodes is told", PATIENCE, || {
            let shown = show(first)?;
            let blocks = shown["blocks"].as_array().context("blocks")?;
            for node in [first, second] {
                let used: u64 = blocks
                    .iter()
                    .filter(|block| block["node"] == node.place.name())
                    .filter_map(|block| block["used"].as_u64())
                    .sum();
                ensure!(used >= 1, "{}: {shown}", node.place.name());
            }
            ensure!(shown["pools"].as_array().is_some_and(|pools| !pools.is_empty()), "{shown}");
            Ok(())
        })?;
        let (found, code) = check(first, &[])?;
        ensure!(found.is_empty() && code == Some(0), "{found:?}");

        // A pod whose interface somebody deletes: its lease leaks.
        let pod = cluster.pod("demo/a-1")?;
        let attachment = &pod.sandbox.attachment;
        let address = pod.addresses[0].to_string();
        let refused = first.podwayctl(&["ipam", "release", &address], "")?;
        ensure!(refused.code == Some(1) && refused.stderr.contains("while it lives"), "{}", refused.stderr);
        let host = host_ifname(&attachment.container_id, &attachment.ifname);
        first.place.ip(&format!("link del {host}"))?;
        // A lease that young may be one of an ADD that is at work.
        wait_until_ok("the leak is found", PATIENCE, || {
            let (found, code) = check(first, &[])?;
            let leak = |(problem, remedy): &(String, Value)| {
                problem.contains(&address) && problem.contains("no interface") && remedy == "canBeMended"
            };
            ensure!(found.iter().any(leak) && code == Some(1), "{found:?} {code:?}");
            Ok(())
        })?;
        // Another node's: named, and refused here.
        let elsewhere = second.podwayctl(&["ipam", "release", &address], "")?;
        let expected = format!("a block of node {}; run this there", first.place.name());
        ensure!(elsewhere.code == Some(3) && elsewhere.stderr.contains(&expected), "{}", elsewhere.stderr);
        let (found, code) = check(first, &["--mend"])?;
        ensure!(found.iter().all(|(_, remedy)| remedy == "mended") && code == Some(0), "{found:?}");
        let (found, code) = check(first, &[])?;
        ensure!(found.is_empty() && code == Some(0), "{found:?}");

        // The same by hand: one address, with its dual-stack sister.
        let pod = cluster.pod("ops/b-1")?;
        let attachment = &pod.sandbox.attachment;
        first.place.ip(&format!("link del {}", host_ifname(&attachment.container_id, &attachment.ifname)))?;
        let freed = first.podwayctl_ok(&["ipam", "release", &pod.addresses[0].to_string()], "")?;
        ensure!(freed.contains(&attachment.container_id), "{freed}");
        let again = first.podwayctl(&["ipam", "release", &pod.addresses[0].to_string()], "")?;
        ensure!(again.code == Some(3), "{}", again.stderr);
        let (found, _) = check(first, &[])?;
        ensure!(found.is_empty(), "{found:?}");
        Ok(())
    });
}
