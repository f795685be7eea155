//! `podwayctl node list` and `node release`.

use std::time::{SystemTime, UNIX_EPOCH};

use podway_model::ids::NodeName;
use podway_model::keys::Key;
use podway_store::{Hold, Store, release_node};
use serde::Serialize;

use crate::args::{ReleaseArgs, StoreArgs};
use crate::cluster::{self, join};
use crate::objects;
use crate::outcome::Failure;
use crate::output::Output;

pub(crate) async fn list(store: &StoreArgs, output: &Output) -> Result<(), Failure> {
    let cluster = cluster::read(objects::open(store)?.as_ref()).await?;
    output.show(
        |colour| {
            let table = cluster.table(|_| true);
            if table.is_empty() { "no node has joined yet\n".to_owned() } else { table.render(colour, 0) }
        },
        &cluster.nodes,
    )?;
    if cluster.problems.is_empty() { Ok(()) } else { Err(Failure::Failed(cluster.problems.join("\n"))) }
}

/// What `node release` did.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Released {
    node: NodeName,
    blocks: Vec<ipnet::IpNet>,
    held: bool,
    /// Keys of flannel's subnets that were given up.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    subnets: Vec<String>,
}

pub(crate) async fn release(store: &StoreArgs, args: &ReleaseArgs, output: &Output) -> Result<(), Failure> {
    let node = node_name(&args.node)?;
    let store = objects::open(store)?;
    let store = store.as_ref();
    check(store, &node, args.force).await?;
    let hold = if args.now { Hold::None } else { Hold::Since(now()?) };
    let report = release_node(store, &node, hold).await?;
    for key in &report.malformed {
        output.warn(&format!("{key} named no block; removed"));
    }
    let released = Released { node, blocks: report.blocks, held: !args.now, subnets: report.subnets };
    output.show(|_| text(&released), &released)
}

fn text(released: &Released) -> String {
    let node = &released.node;
    if released.blocks.is_empty() && released.subnets.is_empty() {
        return format!("{node} released; it held no block\n");
    }
    let subnets = released.subnets.iter().map(|key| format!("flannel's {key}"));
    let blocks = join(released.blocks.iter().map(ToString::to_string).chain(subnets));
    let free = if released.held { "free again in 24 hours" } else { "free at once" };
    format!("{node} released: {blocks} ({free})\n")
}

/// Refuses a node that nobody knows, and one that is alive unless the operator insists.
async fn check(store: &dyn Store, node: &NodeName, force: bool) -> Result<(), Failure> {
    let live = store.get(&Key::Live(node.clone()).to_string()).await?.is_some();
    let record = store.get(&Key::Node(node.clone()).to_string()).await?.is_some();
    let claims = !store.list(&format!("claims/{node}/")).await?.entries.is_empty();
    if !(live || record || claims) {
        return Err(Failure::NotFound(format!("node {node} not found; `podwayctl node list` names all")));
    }
    if live && !force {
        return Err(Failure::Failed(format!(
            "node {node} is alive: it would claim other blocks, and its running pods would lose their network; \
             stop routed there and wait until `podwayctl node list` shows it down, or insist with --force"
        )));
    }
    Ok(())
}

/// A name as an argument.
pub(crate) fn node_name(text: &str) -> Result<NodeName, Failure> {
    let expected = "a node name (lower-case letters, digits, '-' and '.')";
    text.parse().map_err(|_| Failure::bad_argument("NODE", format!("{text:?}"), expected))
}

/// Seconds since 1970.
pub(crate) fn now() -> Result<u64, Failure> {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since
        .map(|since| since.as_secs())
        .map_err(|_| Failure::Failed("the clock shows a time before 1970".into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_released_is_said_with_when_it_is_free() {
        let node: NodeName = "n2".parse().unwrap();
        let blocks = vec!["10.244.0.0/26".parse().unwrap(), "10.244.0.64/26".parse().unwrap()];
        let released = |blocks, held| Released { node: node.clone(), blocks, held, subnets: vec![] };
        assert_eq!(
            text(&released(blocks.clone(), true)),
            "n2 released: 10.244.0.0/26, 10.244.0.64/26 (free again in 24 hours)\n"
        );
        assert_eq!(
            text(&released(blocks, false)),
            "n2 released: 10.244.0.0/26, 10.244.0.64/26 (free at once)\n"
        );
        assert_eq!(text(&released(vec![], true)), "n2 released; it held no block\n");
        let subnets = vec!["/coreos.com/network/subnets/10.5.3.0-24".to_owned()];
        assert_eq!(
            text(&Released { subnets, ..released(vec![], false) }),
            "n2 released: flannel's /coreos.com/network/subnets/10.5.3.0-24 (free at once)\n"
        );
    }
}
