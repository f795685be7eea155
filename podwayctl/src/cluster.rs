//! The cluster as the store shows it: nodes, signs of life, blocks.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use podway_model::cluster::{Claim, ClusterConfig, NodeRecord, decode};
use podway_model::document::{Document, Kind};
use podway_model::ids::{NodeName, ObjectName};
use podway_model::keys::Key;
use podway_store::{Entry, Store};
use serde::Serialize;

use crate::objects;
use crate::outcome::Failure;
use crate::table::{Cell, Table, Tone};

/// The cluster.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Cluster {
    /// Backend and endpoints.
    pub(crate) store: String,
    /// How packets get from node to node.
    pub(crate) backend: String,
    /// Address pools: name and range.
    pub(crate) pools: BTreeMap<ObjectName, IpNet>,
    /// Every node that has a record, a sign of life or a claim.
    pub(crate) nodes: BTreeMap<NodeName, Node>,
    /// Blocks taken from nodes that are gone, and not yet free again.
    pub(crate) released_blocks: Vec<IpNet>,
    /// Values that cannot be read.
    pub(crate) problems: Vec<String>,
}

/// A node.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Node {
    /// Whether its sign of life is there.
    pub(crate) live: bool,
    /// Whether traffic shall leave it.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(crate) drained: bool,
    /// Whether it has a record; a node without one left claims behind.
    pub(crate) known: bool,
    /// Underlay addresses.
    pub(crate) addresses: Vec<IpAddr>,
    /// Confirmed blocks.
    pub(crate) blocks: Vec<IpNet>,
    /// Blocks claimed, and not yet seen to have won.
    pub(crate) pending_blocks: Vec<IpNet>,
    /// Version of Podway.
    pub(crate) version: String,
}

/// Reads it all.
pub(crate) async fn read(store: &dyn Store) -> Result<Cluster, Failure> {
    let mut cluster = Cluster { store: store.describe(), ..Cluster::default() };
    let config = match store.get("config").await? {
        None => ClusterConfig::default(),
        Some(entry) => decode(&entry.value).unwrap_or_else(|error| {
            cluster.problems.push(format!("config: {error}"));
            ClusterConfig::default()
        }),
    };
    cluster.backend = config.backend.to_string();
    let (pools, problems) = objects::list(store, Kind::Pool).await?;
    cluster.problems.extend(problems);
    for (document, _) in pools {
        if let Document::Pool { name, spec } = document {
            cluster.pools.insert(name, spec.cidr);
        }
    }
    for prefix in ["nodes/", "live/", "claims/", "released/", "drained/"] {
        for entry in store.list(prefix).await?.entries {
            cluster.add(&entry);
        }
    }
    Ok(cluster)
}

impl Cluster {
    fn add(&mut self, entry: &Entry) {
        let problem = |error: String| format!("{}: {error}", entry.key);
        match entry.key.parse() {
            Ok(Key::Node(name)) => {
                let node = self.nodes.entry(name).or_default();
                node.known = true;
                match decode::<NodeRecord>(&entry.value) {
                    Ok(record) => {
                        node.addresses = record.address_v4.map(IpAddr::V4).into_iter().collect();
                        node.addresses.extend(record.address_v6.map(IpAddr::V6));
                        node.version = record.version;
                    }
                    Err(error) => self.problems.push(problem(error.to_string())),
                }
            }
            Ok(Key::Live(name)) => self.nodes.entry(name).or_default().live = true,
            Ok(Key::Claim(name, block)) => {
                let node = self.nodes.entry(name).or_default();
                match decode::<Claim>(&entry.value) {
                    Ok(claim) if claim.confirmed => node.blocks.push(block),
                    Ok(_) => node.pending_blocks.push(block),
                    Err(error) => self.problems.push(problem(error.to_string())),
                }
            }
            // A node that has gone is drained no more.
            Ok(Key::Drained(name)) => {
                if let Some(node) = self.nodes.get_mut(&name) {
                    node.drained = true;
                }
            }
            Ok(Key::Released(block)) => self.released_blocks.push(block),
            Ok(_) => {}
            Err(error) => self.problems.push(error.to_string()),
        }
    }

    /// One row per node that `wanted` picks.
    pub(crate) fn table(&self, wanted: impl Fn(&Node) -> bool) -> Table {
        let mut table = Table::new(&["NODE", "STATE", "ADDRESSES", "BLOCKS", "VERSION"]);
        for (name, node) in self.nodes.iter().filter(|(_, node)| wanted(node)) {
            let state = match (node.live, node.known) {
                (true, _) if node.drained => Cell::toned("live, drained", Tone::Warning),
                (true, _) => Cell::toned("live", Tone::Good),
                (false, true) => Cell::toned("down", Tone::Bad),
                (false, false) => Cell::toned("gone", Tone::Bad),
            };
            let confirmed = node.blocks.iter().map(ToString::to_string);
            let pending = node.pending_blocks.iter().map(|block| format!("{block} (pending)"));
            table.row(vec![
                name.as_str().into(),
                state,
                join(node.addresses.iter().map(ToString::to_string)).into(),
                join(confirmed.chain(pending)).into(),
                node.version.clone().into(),
            ]);
        }
        table
    }

    /// `3 nodes (2 live), 4 blocks, version 0.1.0`.
    pub(crate) fn summary(&self) -> String {
        let live = self.nodes.values().filter(|node| node.live).count();
        let blocks: usize = self.nodes.values().map(|node| node.blocks.len()).sum();
        let mut versions: Vec<&str> = self
            .nodes
            .values()
            .map(|node| node.version.as_str())
            .filter(|version| !version.is_empty())
            .collect();
        versions.sort_unstable();
        versions.dedup();
        let versions = match versions.as_slice() {
            [] => String::new(),
            [version] => format!(", version {version}"),
            several => format!(", versions {}", several.join(" and ")),
        };
        format!("{} nodes ({live} live), {blocks} blocks{versions}", self.nodes.len())
    }
}

/// `a, b`.
pub(crate) fn join(items: impl Iterator<Item = String>) -> String {
    items.collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
pub(crate) mod tests {
    use podway_model::cluster::{Liveness, Released, encode};

    use super::*;

    fn entry(key: &str, value: Vec<u8>) -> Entry {
        Entry { key: key.to_owned(), value, create_revision: 1, mod_revision: 1 }
    }

    /// Two nodes that are fine or down, one that left a claim, one value that is broken.
    pub(crate) fn sample() -> Cluster {
        let instance = "00000000-0000-4000-8000-000000000001";
        let record = |address: &str| NodeRecord {
            instance_id: instance.parse().unwrap(),
            address_v4: Some(address.parse().unwrap()),
            address_v6: None,
            tunnel_v4: None,
            tunnel_v6: None,
            labels: BTreeMap::new(),
            asn: None,
            vtep_mac: None,
            wireguard_key: None,
            version: "0.1.0".into(),
            ways: None,
        };
        let claim = |confirmed| Claim {
            instance_id: instance.parse().unwrap(),
            pool: "v4".parse().unwrap(),
            confirmed,
        };
        let live = Liveness { instance_id: instance.parse().unwrap(), addresses: vec![] };
        let released = Released { at_unix_seconds: 1, former_owner: "n9".parse().unwrap() };
        let mut cluster = Cluster {
            store: "etcd at http://127.0.0.1:2379".into(),
            backend: "vxlan".into(),
            ..Default::default()
        };
        cluster.pools.insert("v4".parse().unwrap(), "10.244.0.0/16".parse().unwrap());
        for entry in [
            entry("nodes/n1", encode(&record("10.0.0.1"))),
            entry("nodes/n2", encode(&record("10.0.0.2"))),
            entry("live/n1", encode(&live)),
            entry("claims/n1/10.244.0.0-26", encode(&claim(true))),
            entry("claims/n1/10.244.0.64-26", encode(&claim(false))),
            entry("claims/n2/10.244.1.0-26", encode(&claim(true))),
            entry("claims/n3/10.244.2.0-26", encode(&claim(true))),
            entry("released/10.244.9.0-26", encode(&released)),
            entry("nodes/n4", b"nonsense".to_vec()),
        ] {
            cluster.add(&entry);
        }
        cluster
    }

    #[test]
    fn nodes_as_a_table() {
        insta::assert_snapshot!(sample().table(|_| true).render(false, 0));
        assert_eq!(sample().summary(), "4 nodes (1 live), 3 blocks, version 0.1.0");
        assert_eq!(sample().problems.len(), 1);
    }
}
