//! `podwayctl bgp reflector`: which nodes are route reflectors.

use std::net::Ipv4Addr;

use podway_model::cluster::{Backend, ClusterConfig, Reflector, Topology, decode};
use podway_model::document::{Document, Kind};
use podway_model::ids::NodeName;
use podway_model::keys::Key;
use podway_store::Store;
use serde::Serialize;

use crate::args::{AddReflectorArgs, ReflectorCommand, RemoveReflectorArgs, StoreArgs};
use crate::node::node_name;
use crate::objects;
use crate::outcome::Failure;
use crate::output::Output;
use crate::references;
use crate::table::{Cell, Table, Tone};

/// A reflector.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Line {
    node: NodeName,
    /// None: the node's router id.
    cluster_id: Option<Ipv4Addr>,
    /// `live`, `down`, or `unknown`: no node of this name has ever joined.
    state: &'static str,
    /// Whether the topology makes use of it.
    used: bool,
}

pub(crate) async fn run(
    store: &StoreArgs,
    command: &ReflectorCommand,
    output: &Output,
) -> Result<(), Failure> {
    let store = objects::open(store)?;
    match command {
        ReflectorCommand::List => list(store.as_ref(), output).await,
        ReflectorCommand::Add(args) => add(store.as_ref(), args, output).await,
        ReflectorCommand::Remove(args) => remove(store.as_ref(), args, output).await,
    }
}

async fn list(store: &dyn Store, output: &Output) -> Result<(), Failure> {
    let used = is_used(store).await?;
    let (documents, problems) = objects::list(store, Kind::Reflector).await?;
    let mut lines = vec![];
    for (document, _) in documents {
        if let Document::Reflector { node, spec } = document {
            let state = state(store, &node).await?;
            lines.push(Line { node, cluster_id: spec.cluster_id, state, used });
        }
    }
    output.show(|colour| text(&lines, colour), &lines)?;
    if problems.is_empty() { Ok(()) } else { Err(Failure::Failed(problems.join("\n"))) }
}

fn text(lines: &[Line], colour: bool) -> String {
    if lines.is_empty() {
        return "no node is a reflector\n".to_owned();
    }
    let mut table = Table::new(&["NODE", "CLUSTER ID", "STATE", "USED"]);
    for line in lines {
        table.row(vec![
            line.node.as_str().into(),
            line.cluster_id.map_or("(router id)".to_owned(), |id| id.to_string()).into(),
            Cell::toned(line.state, if line.state == "live" { Tone::Good } else { Tone::Bad }),
            if line.used { "yes".into() } else { Cell::toned("no: the topology is mesh", Tone::Warning) },
        ]);
    }
    table.render(colour, 0)
}

async fn state(store: &dyn Store, node: &NodeName) -> Result<&'static str, Failure> {
    let live = store.get(&Key::Live(node.clone()).to_string()).await?.is_some();
    let known = store.get(&Key::Node(node.clone()).to_string()).await?.is_some();
    Ok(match (live, known) {
        (true, _) => "live",
        (false, true) => "down",
        (false, false) => "unknown",
    })
}

/// Whether the topology makes use of reflectors.
async fn is_used(store: &dyn Store) -> Result<bool, Failure> {
    let config = match store.get(&Key::Config.to_string()).await? {
        None => ClusterConfig::default(),
        Some(entry) => {
            decode(&entry.value).map_err(|error| Failure::Failed(format!("config in the store: {error}")))?
        }
    };
    Ok(config.backend == Backend::Bgp && config.bgp.topology != Topology::Mesh)
}

async fn add(store: &dyn Store, args: &AddReflectorArgs, output: &Output) -> Result<(), Failure> {
    let node = node_name(&args.node)?;
    if args.cluster_id.is_some_and(|id| id.is_unspecified()) {
        return Err(Failure::bad_argument("--cluster-id", "0.0.0.0", "a cluster id other than 0.0.0.0"));
    }
    if state(store, &node).await? == "unknown" {
        return Err(Failure::NotFound(format!("node {node} not found; `podwayctl node list` names all")));
    }
    let document = Document::Reflector { node, spec: Reflector { cluster_id: args.cluster_id } };
    store.put(&document.key().to_string(), &document.to_json()).await?;
    done(output, &document, "is a reflector")?;
    if !is_used(store).await? {
        output.warn("it reflects nothing yet: the topology is mesh (ClusterConfig bgp.topology)");
    }
    Ok(())
}

async fn remove(store: &dyn Store, args: &RemoveReflectorArgs, output: &Output) -> Result<(), Failure> {
    let node = node_name(&args.node)?;
    let key = Key::Reflector(node.clone());
    references::check_delete(store, std::iter::once(&key)).await?;
    if !store.delete(&key.to_string()).await? {
        return Err(Failure::NotFound(format!("node {node} is no reflector")));
    }
    let document = Document::Reflector { node, spec: Reflector::default() };
    done(output, &document, "is a reflector no longer")
}

fn done(output: &Output, document: &Document, what: &str) -> Result<(), Failure> {
    #[derive(Serialize)]
    struct Done<'a> {
        node: &'a str,
        reflector: bool,
    }
    let value = Done { node: document.name(), reflector: !what.ends_with("longer") };
    output.show(|_| format!("{} {what}\n", document.name()), &value)
}
