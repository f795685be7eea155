//! `podwayctl node drain` and `node undrain`: traffic leaves a node as far as there is another way.

use podway_model::cluster::{Backend, ClusterConfig, Drained, decode, encode};
use podway_model::ids::NodeName;
use podway_model::keys::Key;
use podway_store::Store;
use serde::Serialize;

use crate::args::{DrainArgs, StoreArgs, UndrainArgs};
use crate::node::{node_name, now};
use crate::objects;
use crate::outcome::Failure;
use crate::output::Output;

/// What is so now.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Done {
    node: NodeName,
    drained: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

pub(crate) async fn drain(store: &StoreArgs, args: &DrainArgs, output: &Output) -> Result<(), Failure> {
    let node = node_name(&args.node)?;
    let store = objects::open(store)?;
    let store = store.as_ref();
    if store.get(&Key::Node(node.clone()).to_string()).await?.is_none() {
        return Err(Failure::NotFound(format!("node {node} not found; `podwayctl node list` names all")));
    }
    let drained = Drained { since_unix_seconds: now()?, reason: args.reason.clone() };
    store.put(&Key::Drained(node.clone()).to_string(), &encode(&drained)).await?;
    let backend = backend(store).await?;
    if backend != Backend::Bgp {
        output.warn(&format!(
            "nothing moves by it: the backend is {backend}, and each pod has one node that leads to it"
        ));
    }
    let reason = args.reason.as_ref().map(|reason| format!(" ({reason})")).unwrap_or_default();
    let text = format!(
        "{node} is drained{reason}: neighbours outside the cluster prefer other ways, and it is chosen as a reflector no \
         more; its pods go on\n"
    );
    output.show(|_| text, &Done { node, drained: true, reason: args.reason.clone() })
}

pub(crate) async fn undrain(store: &StoreArgs, args: &UndrainArgs, output: &Output) -> Result<(), Failure> {
    let node = node_name(&args.node)?;
    let store = objects::open(store)?;
    if !store.delete(&Key::Drained(node.clone()).to_string()).await? {
        return Err(Failure::NotFound(format!("node {node} is not drained")));
    }
    let text = format!("{node} is drained no longer\n");
    output.show(|_| text, &Done { node, drained: false, reason: None })
}

async fn backend(store: &dyn Store) -> Result<Backend, Failure> {
    let Some(entry) = store.get(&Key::Config.to_string()).await? else { return Ok(Backend::default()) };
    let config: ClusterConfig =
        decode(&entry.value).map_err(|error| Failure::Failed(format!("config in the store: {error}")))?;
    Ok(config.backend)
}
