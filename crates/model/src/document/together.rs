//! What must hold between documents.

use std::collections::BTreeMap;

use super::Document;
use super::reader::Notes;
use crate::cidr::overlap;
use crate::cluster::Pool;
use crate::ids::ObjectName;
use crate::keys::Key;

/// Pairs of pools that share addresses, each pair once, in the order of names. A node could give the same
/// address to two pods, so every reader leaves such pools out.
pub fn overlapping_pools<'a>(
    pools: impl IntoIterator<Item = (&'a ObjectName, &'a Pool)>,
) -> Vec<(&'a ObjectName, &'a ObjectName)> {
    let pools: Vec<_> = pools.into_iter().collect();
    let mut pairs = Vec::new();
    for (i, (name, pool)) in pools.iter().enumerate() {
        for (other_name, other) in &pools[i + 1..] {
            if overlap(pool.cidr, other.cidr) {
                pairs.push((*name, *other_name));
            }
        }
    }
    pairs
}

/// Checks the documents of one text, each with its line, against each other.
pub(super) fn check(notes: &Notes<'_>, documents: &[(u64, Document)]) {
    let mut seen: BTreeMap<Key, u64> = BTreeMap::new();
    for (line, document) in documents {
        if let Some(first) = seen.get(&document.key()) {
            let found = format!("{} {:?} again", document.kind().name(), document.name());
            notes.add(Some(*line), "metadata.name", found, format!("it once (line {first} has it)"));
        } else {
            seen.insert(document.key(), *line);
        }
    }
    let pools = || {
        documents.iter().filter_map(|(line, document)| match document {
            Document::Pool { name, spec } => Some((line, name, spec)),
            _ => None,
        })
    };
    for (name, other) in overlapping_pools(pools().map(|(_, name, pool)| (name, pool))) {
        // The same name twice was reported above.
        if name == other {
            continue;
        }
        let find = |wanted: &ObjectName| pools().find(|(_, name, _)| *name == wanted);
        if let (Some((line, _, pool)), Some((_, _, first))) = (find(other), find(name)) {
            let expected = format!("a prefix outside {} of pool {:?}", first.cidr, name.as_str());
            notes.add(Some(*line), "spec.cidr", pool.cidr, expected);
        }
    }
}
