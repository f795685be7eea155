//! Filters and communities as a file names them.

use std::collections::BTreeMap;

use podway_bgp::filter::{Filter, named};
use podway_model::bgp::{BgpFilter, Community, CommunitySets, FilterRule, FilterVerdict};
use podway_model::mistakes::Mistakes;
use serde::Deserialize;

/// A filter, as a document of the cluster has it in its `spec`.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct FilterFile {
    #[serde(default)]
    rules: Vec<FilterRule>,
    otherwise: FilterVerdict,
}

/// Everything that has a name.
#[derive(Debug, Default)]
pub(super) struct Named {
    filters: BTreeMap<String, Filter>,
}

impl Named {
    pub(super) fn read(
        source: &str,
        communities: &BTreeMap<String, Vec<String>>,
        filters: BTreeMap<String, FilterFile>,
        mistakes: &mut Mistakes,
    ) -> Self {
        let mut sets = CommunitySets::new();
        for (name, members) in communities {
            let mut set = vec![];
            for member in members {
                match member.parse() {
                    Ok(community) => set.push(community),
                    Err(_) => {
                        mistakes.add(source, format!("communities.{name}"), member, Community::EXPECTED)
                    }
                }
            }
            sets.insert(name.clone(), set);
        }
        let mut named = Self::default();
        for (name, FilterFile { rules, otherwise }) in filters {
            // One with mistakes is known by name all the same: nobody is told that it does not exist.
            let resolved = named::resolve(&BgpFilter { rules, otherwise }, &sets).unwrap_or_else(|wrong| {
                for one in wrong {
                    mistakes.add(source, format!("filters.{name}.{}", one.field), one.found, one.expected);
                }
                Filter::reject()
            });
            named.filters.insert(name, resolved);
        }
        named
    }

    /// A filter by name; one that does not exist is a mistake.
    pub(super) fn filter(
        &self,
        source: &str,
        field: &str,
        name: &str,
        mistakes: &mut Mistakes,
    ) -> Option<Filter> {
        let found = self.filters.get(name).cloned();
        if found.is_none() {
            let known: Vec<&str> = self.filters.keys().map(String::as_str).collect();
            mistakes.add(source, field, name, format!("one of the filters ({})", known.join(", ")));
        }
        found
    }
}
