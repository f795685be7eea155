//! `podwayctl apply`: everything is checked first, then written in an order in which nothing refers to what is
//! not there yet.

use std::collections::{BTreeMap, BTreeSet};

use podway_model::cluster::{Claim, Pool, decode};
use podway_model::document::{Document, Kind};
use podway_model::ids::{NodeName, ObjectName};
use podway_model::keys::Key;
use podway_model::mistakes::Mistakes;
use podway_store::{Entry, Expect, Store, Written};
use serde::Serialize;

use crate::args::{ApplyArgs, StoreArgs};
use crate::objects::{self, Given, label};
use crate::outcome::Failure;
use crate::output::Output;
use crate::references;

/// Times that a write is tried again because somebody else wrote in between.
const CONFLICTS: usize = 8;

/// What was done with an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Action {
    Created,
    Configured,
    Unchanged,
}

/// One line of the result.
#[derive(Debug, Serialize)]
struct Applied {
    object: String,
    action: Action,
}

pub(crate) async fn run(store: &StoreArgs, args: &ApplyArgs, output: &Output) -> Result<(), Failure> {
    let mut given = objects::read_files(&args.filename)?;
    if given.is_empty() {
        return Err(Failure::bad_argument("--filename", "no object", "at least one"));
    }
    let store = objects::open(store)?;
    let store = store.as_ref();
    if given.iter().any(|given| given.document.kind() == Kind::Pool) {
        check_pools(store, &given).await?;
    }
    check_compat(store, &given)?;
    references::check_apply(store, &given).await?;
    given.sort_by_key(|given| Kind::ALL.iter().position(|kind| *kind == given.document.kind()));

    let mut stored: BTreeMap<String, Entry> = BTreeMap::new();
    let kinds: BTreeSet<&str> = given.iter().map(|given| objects::prefix(given.document.kind())).collect();
    for prefix in kinds {
        let entries = store.list(prefix).await?.entries;
        stored.extend(entries.into_iter().map(|entry| (entry.key.clone(), entry)));
    }
    let mut applied = Vec::new();
    let mut result = Ok(());
    for (i, Given { document, .. }) in given.iter().enumerate() {
        match write(store, document, stored.remove(&document.key().to_string())).await {
            Ok(action) => applied.push(Applied { object: label(document), action }),
            Err(failure) => {
                let done = format!("{} of {} objects were applied", applied.len(), given.len());
                result = Err(Failure::Failed(format!("{}: {failure}\n{done}", label(document))));
                break;
            }
        }
        output.progress("applied", i + 1, given.len());
    }
    let lines =
        |_| applied.iter().map(|line| format!("{} {}\n", line.object, word(line.action))).collect::<String>();
    output.show(lines, &applied)?;
    result
}

fn word(action: Action) -> &'static str {
    match action {
        Action::Created => "created",
        Action::Configured => "configured",
        Action::Unchanged => "unchanged",
    }
}

/// Writes one object if it differs from what is stored.
async fn write(store: &dyn Store, document: &Document, found: Option<Entry>) -> Result<Action, Failure> {
    let (key, value) = (document.key().to_string(), document.to_json());
    let mut found = found;
    for _ in 0..CONFLICTS {
        // Compared as objects: another version may have written the same thing in other words.
        if found.as_ref().and_then(|entry| objects::read(entry).ok()).as_ref() == Some(document) {
            return Ok(Action::Unchanged);
        }
        let (expect, action) = match &found {
            None => (Expect::Absent, Action::Created),
            Some(entry) => (Expect::Revision(entry.mod_revision), Action::Configured),
        };
        match store.put_if(&key, &value, expect).await? {
            Written::Done { .. } => return Ok(action),
            Written::Refused { found: now } => found = now,
        }
    }
    Err(Failure::Failed("somebody else keeps changing it; try again".to_owned()))
}

/// Checks the pools that are to be written against those in the store, and against the blocks that nodes hold.
async fn check_pools(store: &dyn Store, given: &[Given]) -> Result<(), Failure> {
    let (stored, _) = objects::list(store, Kind::Pool).await?;
    let stored: BTreeMap<ObjectName, Pool> = stored
        .into_iter()
        .filter_map(|(document, _)| match document {
            Document::Pool { name, spec } => Some((name, spec)),
            _ => None,
        })
        .collect();
    let holders = holders(store).await?;
    let mut mistakes = Mistakes::default();
    let new: BTreeMap<&ObjectName, (&str, &Pool)> = given
        .iter()
        .filter_map(|given| match &given.document {
            Document::Pool { name, spec } => Some((name, (given.source.as_str(), spec))),
            _ => None,
        })
        .collect();
    for (name, (source, pool)) in &new {
        let field = |field: &str| format!("pool {name}: spec.{field}");
        for (other, stored) in stored.iter().filter(|(other, _)| !new.contains_key(other)) {
            if stored.cidr.contains(&pool.cidr) || pool.cidr.contains(&stored.cidr) {
                let expected = format!("a prefix outside {} of pool {other} in the store", stored.cidr);
                mistakes.add(*source, field("cidr"), pool.cidr, expected);
            }
        }
        if let (Some(old), Some(holders)) = (stored.get(*name), holders.get(*name)) {
            let why = format!("while {} hold blocks of it", names(holders));
            if old.cidr != pool.cidr {
                mistakes.add(*source, field("cidr"), pool.cidr, format!("{} {why}", old.cidr));
            }
            if old.block_len() != pool.block_len() {
                let expected = format!("{} {why}", old.block_len());
                mistakes.add(*source, field("blockSize"), pool.block_len(), expected);
            }
        }
    }
    mistakes.into_result(()).map_err(Failure::from)
}

/// Checks that flannel's keys can be had where its nodes are to be talked with.
fn check_compat(store: &dyn Store, given: &[Given]) -> Result<(), Failure> {
    let mut mistakes = Mistakes::default();
    for Given { source, document } in given {
        let Document::ClusterConfig(config) = document else { continue };
        let Some(flannel) = &config.compat.flannel else { continue };
        if let Err(why) = store.takes_outside(flannel.prefix.as_str()) {
            let expected = format!("a prefix that this store has beside its own: {why}");
            mistakes.add(source, "spec.compat.flannel.prefix", &flannel.prefix, expected);
        }
    }
    mistakes.into_result(()).map_err(Failure::from)
}

/// Which nodes hold blocks of which pool.
pub(crate) async fn holders(store: &dyn Store) -> Result<BTreeMap<ObjectName, BTreeSet<NodeName>>, Failure> {
    let mut holders: BTreeMap<ObjectName, BTreeSet<NodeName>> = BTreeMap::new();
    for entry in store.list("claims/").await?.entries {
        if let (Ok(Key::Claim(node, _)), Ok(claim)) = (entry.key.parse(), decode::<Claim>(&entry.value)) {
            holders.entry(claim.pool).or_default().insert(node);
        }
    }
    Ok(holders)
}

/// `n1, n2, n3 and 4 more`: enough to know where to look.
pub(crate) fn names(nodes: &BTreeSet<NodeName>) -> String {
    let shown: Vec<&str> = nodes.iter().take(3).map(NodeName::as_str).collect();
    match nodes.len() - shown.len() {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}
