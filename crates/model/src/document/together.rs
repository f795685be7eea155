//! What must hold between documents.

use std::collections::BTreeMap;

use super::Document;
use super::reader::Notes;
use crate::bgp::{BgpFilter, Community, CommunitySets, FilterMatch, FilterSet};
use crate::cidr::overlap;
use crate::cluster::{BgpPeer, Pool};
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

/// A name in a document of BGP that means nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reference {
    /// The document in which it stands.
    pub key: Key,
    /// The field, `spec` included.
    pub field: String,
    /// The name.
    pub found: String,
    /// What was expected.
    pub expected: String,
}

/// Names that peers and filters use and that do not exist, in the order of names.
pub fn references<'a>(
    communities: &CommunitySets,
    filters: &BTreeMap<ObjectName, BgpFilter>,
    peers: impl IntoIterator<Item = (&'a ObjectName, &'a BgpPeer)>,
) -> Vec<Reference> {
    let mut found = vec![];
    for (name, filter) in filters {
        for (at, rule) in filter.rules.iter().enumerate() {
            let mut look = |part: String, texts: Vec<&String>| {
                for text in texts {
                    if text.parse::<Community>().is_err() && !communities.contains_key(text) {
                        found.push(Reference {
                            key: Key::Filter(name.clone()),
                            field: format!("spec.rules[{at}].{part}"),
                            found: text.clone(),
                            expected: known("a set of ClusterConfig bgp.communities", communities.keys()),
                        });
                    }
                }
            };
            for (i, one) in rule.matches.iter().enumerate() {
                look(format!("match[{i}].community"), matched(one));
            }
            for (i, one) in rule.set.iter().enumerate() {
                match one {
                    FilterSet::AddCommunity(text) => look(format!("set[{i}].addCommunity"), vec![text]),
                    FilterSet::RemoveCommunity(text) => look(format!("set[{i}].removeCommunity"), vec![text]),
                    _ => {}
                }
            }
        }
    }
    for (name, peer) in peers {
        let options = &peer.options;
        for (field, filter) in
            [("importFilter", &options.import_filter), ("exportFilter", &options.export_filter)]
        {
            let Some(filter) = filter.as_ref().filter(|filter| !filters.contains_key(*filter)) else {
                continue;
            };
            found.push(Reference {
                key: Key::Peer(name.clone()),
                field: format!("spec.{field}"),
                found: filter.to_string(),
                expected: known("a BGPFilter", filters.keys()),
            });
        }
    }
    found
}

/// Communities that a condition names.
fn matched(condition: &FilterMatch) -> Vec<&String> {
    match condition {
        FilterMatch::Community(all) => all.iter().collect(),
        FilterMatch::Not(inner) => matched(inner),
        _ => vec![],
    }
}

/// `a BGPFilter (a, b)`.
fn known(what: &str, names: impl Iterator<Item = impl ToString>) -> String {
    let names: Vec<String> = names.map(|name| name.to_string()).collect();
    if names.is_empty() {
        format!("{what} (there is none)")
    } else {
        format!("{what} ({})", names.join(", "))
    }
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
