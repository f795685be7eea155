//! Breaks one thing behind the daemons' backs, so that the demo has to fail: a demo that cannot fail shows nothing.
//!
//! The daemon that would repair it is stopped first, because repairing is its job.

use anyhow::{Context as _, Result};
use nix::sys::signal::Signal;
use podway_model::names::{POLICY_TABLE, ROUTE_PROTOCOL};
use podway_testkit::cluster::Cluster;
use serde_json::{Value, json};

use crate::report::Report;
use crate::setup::routed_prefixes;

/// Stops `routed` of the first node and drops its route to the last node's block.
pub(crate) fn drop_route(cluster: &Cluster, report: &mut Report) -> Result<()> {
    report.section("Sabotage: one route is dropped");
    let node = cluster.node_at(0)?;
    let pod = cluster.pod_on(cluster.lab.nodes.len() - 1)?;
    let address = pod.addresses.first().context("a pod has an address")?;
    let route = routed_prefixes(cluster, node)?
        .into_iter()
        .find(|route| route.contains(address))
        .with_context(|| format!("{} has no route to {address}", node.name()))?;
    node.routed.as_ref().context("routed runs")?.signal(Signal::SIGSTOP)?;
    node.place.ip(&format!("route del {route} proto {ROUTE_PROTOCOL}\n"))?;
    report.say(&format!("  {}: routed stopped, route to {route} deleted", node.name()));
    Ok(())
}

/// Kills the policy agent of the last node and drops an element of one of its maps.
pub(crate) fn drop_element(cluster: &mut Cluster, report: &mut Report) -> Result<()> {
    report.section("Sabotage: one nft element is dropped");
    let last = cluster.lab.nodes.len() - 1;
    // The table belongs to the agent's socket while that lives; it stays when the agent dies.
    cluster.lab.nodes[last].kill_policy_agent()?;
    let node = cluster.node_at(last)?;
    let address = cluster.pod_on(last)?.addresses.first().context("a pod has an address")?.to_string();
    let listing = node.place.run("nft", &["-j", "list", "table", "inet", POLICY_TABLE])?;
    let listing: Value = serde_json::from_str(&listing).context("output of nft -j")?;
    let (map, element) = find_element(&listing, &address)
        .with_context(|| format!("no map of inet {POLICY_TABLE} has an element with {address}"))?;
    let delete = json!({"nftables": [{"delete": {"element":
        {"family": "inet", "table": POLICY_TABLE, "name": map, "elem": [element]}}}]});
    let mut command = std::process::Command::new("nft");
    command.args(["-j", "-f", "-"]);
    let output = node.place.output(command, delete.to_string().as_bytes())?;
    anyhow::ensure!(output.status.success(), "nft: {}", String::from_utf8_lossy(&output.stderr).trim());
    report.say(&format!("  {}: policy-agent killed, element of {address} in {map} deleted", node.name()));
    Ok(())
}

/// The first element whose key is a concatenation with this address: it makes the pod a policy's subject. Returns
/// the map's name and the element.
fn find_element(listing: &Value, address: &str) -> Option<(String, Value)> {
    for object in listing["nftables"].as_array()? {
        let Some(map) = object.get("map") else { continue };
        for element in map["elem"].as_array().into_iter().flatten() {
            // A map's element is [key, value].
            let key = element.get(0)?;
            let parts = key["concat"].as_array().into_iter().flatten();
            if parts.into_iter().any(|part| part.as_str() == Some(address)) {
                return Some((map["name"].as_str()?.to_owned(), element.clone()));
            }
        }
    }
    None
}
