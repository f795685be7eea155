//! `podwayctl delete`.

use podway_model::document::Kind;
use podway_model::keys::Key;
use podway_store::Store;
use serde::Serialize;

use crate::apply::{holders, names};
use crate::args::{DeleteArgs, StoreArgs};
use crate::get::not_found;
use crate::objects::{self, label};
use crate::outcome::Failure;
use crate::output::Output;
use crate::references;

/// One line of the result.
#[derive(Debug, Serialize)]
struct Deleted {
    object: String,
    deleted: bool,
}

/// An object to remove.
struct Target {
    key: Key,
    label: String,
    missing: String,
}

pub(crate) async fn run(store: &StoreArgs, args: &DeleteArgs, output: &Output) -> Result<(), Failure> {
    let targets = targets(args)?;
    let store = objects::open(store)?;
    check_pools(store.as_ref(), &targets).await?;
    references::check_delete(store.as_ref(), targets.iter().map(|target| &target.key)).await?;
    let mut deleted = Vec::new();
    let mut missing = Vec::new();
    for (i, target) in targets.iter().enumerate() {
        let was_there = store.delete(&target.key.to_string()).await?;
        if !was_there {
            missing.push(target.missing.clone());
        }
        deleted.push(Deleted { object: target.label.clone(), deleted: was_there });
        output.progress("deleted", i + 1, targets.len());
    }
    let lines = |_| {
        let gone = deleted.iter().filter(|line| line.deleted);
        gone.map(|line| format!("{} deleted\n", line.object)).collect::<String>()
    };
    output.show(lines, &deleted)?;
    if missing.is_empty() || args.ignore_not_found {
        Ok(())
    } else {
        Err(Failure::NotFound(missing.join("\n")))
    }
}

/// What to remove, in the order in which it can be: the reverse of `apply`.
fn targets(args: &DeleteArgs) -> Result<Vec<Target>, Failure> {
    if let (Some(kind), Some(name)) = (args.kind, &args.name) {
        let namespace = if kind.is_namespaced() { format!("{}/", args.namespace) } else { String::new() };
        return Ok(vec![Target {
            key: objects::key(kind, &args.namespace, name)?,
            label: format!("{}/{namespace}{name}", kind.name().to_lowercase()),
            missing: not_found(kind, &args.namespace, name),
        }]);
    }
    let mut given = objects::read_files(&args.filename)?;
    if given.is_empty() {
        return Err(Failure::bad_argument("--filename", "no object", "at least one"));
    }
    given.sort_by_key(|given| {
        std::cmp::Reverse(Kind::ALL.iter().position(|kind| *kind == given.document.kind()))
    });
    let target = |document: &podway_model::document::Document| Target {
        key: document.key(),
        label: label(document),
        missing: not_found(document.kind(), document.namespace().unwrap_or(""), document.name()),
    };
    Ok(given.iter().map(|given| target(&given.document)).collect())
}

/// A pool that nodes hold blocks of is in use: without it nobody knows whether their pods are masqueraded.
async fn check_pools(store: &dyn Store, targets: &[Target]) -> Result<(), Failure> {
    if !targets.iter().any(|target| matches!(target.key, Key::Pool(_))) {
        return Ok(());
    }
    let holders = holders(store).await?;
    let refused: Vec<String> = targets
        .iter()
        .filter_map(|target| match &target.key {
            Key::Pool(name) => holders.get(name).map(|nodes| (name, nodes)),
            _ => None,
        })
        .map(|(name, nodes)| {
            format!(
                "pool {name} is in use: {} hold blocks of it; set `disabled: true` in it, then release them \
                 (podwayctl node release NODE)",
                names(nodes)
            )
        })
        .collect();
    if refused.is_empty() { Ok(()) } else { Err(Failure::Failed(refused.join("\n"))) }
}
