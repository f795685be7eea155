//! What the store holds, decoded. Values that cannot be used are skipped and named; where a good value stood
//! before, it stays in force.

use std::collections::BTreeMap;

use ipnet::IpNet;
use podway_model::bgp::BgpFilter;
use podway_model::cluster::{
    BgpPeer, Claim, ClusterConfig, Drained, Liveness, NodeRecord, Pool, Reflector, Released, decode,
};
use podway_model::ids::{NodeName, ObjectName};
use podway_model::keys::Key;
use podway_store::{Change, Entry};

/// What is watched.
pub(crate) const PREFIXES: [&str; 10] = [
    "config",
    "pools/",
    "nodes/",
    "live/",
    "claims/",
    "released/",
    "filters/",
    "peers/",
    "reflectors/",
    "drained/",
];

/// A value and where it stands in the store's history.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Stored<T> {
    pub(crate) value: T,
    /// Revision at which the key came to be.
    pub(crate) create: i64,
    /// Revision of the last change.
    pub(crate) modified: i64,
}

/// A value that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Bad {
    pub(crate) reason: String,
    pub(crate) create: i64,
    pub(crate) modified: i64,
}

/// The store's contents.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Table {
    pub(crate) revision: i64,
    pub(crate) config: Option<Stored<ClusterConfig>>,
    pub(crate) pools: BTreeMap<ObjectName, Stored<Pool>>,
    pub(crate) nodes: BTreeMap<NodeName, Stored<NodeRecord>>,
    pub(crate) live: BTreeMap<NodeName, Stored<Liveness>>,
    pub(crate) claims: BTreeMap<(NodeName, IpNet), Stored<Claim>>,
    pub(crate) released: BTreeMap<IpNet, Stored<Released>>,
    pub(crate) filters: BTreeMap<ObjectName, Stored<BgpFilter>>,
    pub(crate) peers: BTreeMap<ObjectName, Stored<BgpPeer>>,
    pub(crate) reflectors: BTreeMap<NodeName, Stored<Reflector>>,
    pub(crate) drained: BTreeMap<NodeName, Stored<Drained>>,
    /// By key.
    pub(crate) bad: BTreeMap<String, Bad>,
}

impl Table {
    /// The table that a snapshot makes; `before` has the last good values of what is bad now.
    pub(crate) fn from_snapshot(entries: &[Entry], revision: i64, before: &Self) -> Self {
        let mut table = Self { revision, ..Self::default() };
        for entry in entries {
            table.put(entry);
        }
        let bad: Vec<String> = table.bad.keys().cloned().collect();
        for key in bad.iter().filter_map(|key| key.parse().ok()) {
            table.keep_from(before, &key);
        }
        table
    }

    /// Takes over a batch of changes.
    pub(crate) fn change(&mut self, changes: &[Change], revision: i64) {
        for change in changes {
            match change {
                Change::Put(entry) => self.put(entry),
                Change::Delete { key } => self.remove(key),
            }
        }
        self.revision = self.revision.max(revision);
    }

    fn put(&mut self, entry: &Entry) {
        self.bad.remove(&entry.key);
        let result = match entry.key.parse() {
            Ok(key) => self.put_value(key, entry).map_err(|error| error.to_string()),
            Err(error) => Err(error.to_string()),
        };
        if let Err(reason) = result {
            let bad = Bad { reason, create: entry.create_revision, modified: entry.mod_revision };
            self.bad.insert(entry.key.clone(), bad);
            // A good value of an earlier life of the key says nothing about this one.
            if let Ok(Key::Claim(node, block)) = entry.key.parse() {
                let key = (node, block);
                if self.claims.get(&key).is_some_and(|stored| stored.create != entry.create_revision) {
                    self.claims.remove(&key);
                }
            }
        }
    }

    /// Claims whose values cannot be used and never could: their keys name block and claimant all the same, so
    /// nobody else may take the block. With their create revisions.
    pub(crate) fn unreadable_claims(&self) -> impl Iterator<Item = (NodeName, IpNet, i64)> {
        self.bad.iter().filter_map(|(key, bad)| match key.parse() {
            Ok(Key::Claim(node, block)) if !self.claims.contains_key(&(node.clone(), block)) => {
                Some((node, block, bad.create))
            }
            _ => None,
        })
    }

    fn put_value(&mut self, key: Key, entry: &Entry) -> Result<(), podway_model::cluster::DecodeError> {
        fn stored<T: serde::de::DeserializeOwned>(
            entry: &Entry,
        ) -> Result<Stored<T>, podway_model::cluster::DecodeError> {
            let value = decode(&entry.value)?;
            Ok(Stored { value, create: entry.create_revision, modified: entry.mod_revision })
        }
        match key {
            Key::Config => self.config = Some(stored(entry)?),
            Key::Pool(name) => drop(self.pools.insert(name, stored(entry)?)),
            Key::Node(node) => drop(self.nodes.insert(node, stored(entry)?)),
            Key::Live(node) => drop(self.live.insert(node, stored(entry)?)),
            Key::Claim(node, block) => drop(self.claims.insert((node, block), stored(entry)?)),
            Key::Released(block) => drop(self.released.insert(block, stored(entry)?)),
            Key::Filter(name) => drop(self.filters.insert(name, stored(entry)?)),
            Key::Peer(name) => drop(self.peers.insert(name, stored(entry)?)),
            Key::Reflector(node) => drop(self.reflectors.insert(node, stored(entry)?)),
            Key::Drained(node) => drop(self.drained.insert(node, stored(entry)?)),
            Key::Usage(_) | Key::Namespace(_) | Key::Pod(..) | Key::NetworkPolicy(..) => {}
        }
        Ok(())
    }

    fn remove(&mut self, key: &str) {
        self.bad.remove(key);
        match key.parse() {
            Ok(Key::Config) => self.config = None,
            Ok(Key::Pool(name)) => drop(self.pools.remove(&name)),
            Ok(Key::Node(node)) => drop(self.nodes.remove(&node)),
            Ok(Key::Live(node)) => drop(self.live.remove(&node)),
            Ok(Key::Claim(node, block)) => drop(self.claims.remove(&(node, block))),
            Ok(Key::Released(block)) => drop(self.released.remove(&block)),
            Ok(Key::Filter(name)) => drop(self.filters.remove(&name)),
            Ok(Key::Peer(name)) => drop(self.peers.remove(&name)),
            Ok(Key::Reflector(node)) => drop(self.reflectors.remove(&node)),
            Ok(Key::Drained(node)) => drop(self.drained.remove(&node)),
            Ok(Key::Usage(_) | Key::Namespace(_) | Key::Pod(..) | Key::NetworkPolicy(..)) | Err(_) => {}
        }
    }

    /// A key of the past that was made anew since and is gone now is past for good.
    pub(crate) fn forget(&mut self, changes: &[Change]) {
        for change in changes {
            let Change::Delete { key } = change else { continue };
            match key.parse() {
                Ok(Key::Node(node)) => drop(self.nodes.remove(&node)),
                Ok(Key::Claim(node, block)) => drop(self.claims.remove(&(node, block))),
                _ => {}
            }
        }
    }

    /// Whether a batch of changes could take the last pool, node or claim away.
    pub(crate) fn may_be_emptied_by(&self, changes: &[Change]) -> bool {
        let kinds =
            [("pools/", self.pools.len()), ("nodes/", self.nodes.len()), ("claims/", self.claims.len())];
        kinds.into_iter().any(|(prefix, held)| {
            let is_gone =
                |change: &&Change| matches!(change, Change::Delete { key } if key.starts_with(prefix));
            held > 0 && changes.iter().filter(is_gone).count() >= held
        })
    }

    /// Whether the last pool, node or claim has gone since `before`, in a store that held all three.
    pub(crate) fn is_emptied_since(&self, before: &Self) -> bool {
        let was_whole = !before.pools.is_empty() && !before.nodes.is_empty() && !before.claims.is_empty();
        was_whole && (self.pools.is_empty() || self.nodes.is_empty() || self.claims.is_empty())
    }

    /// Whether a key was changed last at an earlier revision than `before` shows it: no store goes that way, so it was
    /// restored from a backup.
    pub(crate) fn goes_back_behind(&self, before: &Self) -> bool {
        fn any<K: Ord, V>(now: &BTreeMap<K, Stored<V>>, before: &BTreeMap<K, Stored<V>>) -> bool {
            let is_back = |(key, then): (&K, &Stored<V>)| {
                now.get(key).is_some_and(|stored| stored.modified < then.modified)
            };
            before.iter().any(is_back)
        }
        any(&self.claims, &before.claims)
            || any(&self.nodes, &before.nodes)
            || any(&self.live, &before.live)
            || any(&self.pools, &before.pools)
    }

    /// Whether it shows that a cluster is, or was, there.
    pub(crate) fn is_empty(&self) -> bool {
        self.pools.is_empty() && self.nodes.is_empty() && self.claims.is_empty()
    }

    fn keep_from(&mut self, before: &Self, key: &Key) {
        fn keep<K: Ord + Clone, V: Clone>(now: &mut BTreeMap<K, V>, before: &BTreeMap<K, V>, key: &K) {
            if let Some(value) = before.get(key) {
                now.insert(key.clone(), value.clone());
            }
        }
        match key {
            Key::Config => self.config.clone_from(&before.config),
            Key::Pool(name) => keep(&mut self.pools, &before.pools, name),
            Key::Node(node) => keep(&mut self.nodes, &before.nodes, node),
            Key::Claim(node, block) => {
                let place = (node.clone(), *block);
                let create = self.bad.get(&key.to_string()).map(|bad| bad.create);
                if before.claims.get(&place).map(|stored| stored.create) == create {
                    keep(&mut self.claims, &before.claims, &place);
                }
            }
            Key::Filter(name) => keep(&mut self.filters, &before.filters, name),
            Key::Peer(name) => keep(&mut self.peers, &before.peers, name),
            Key::Reflector(node) => keep(&mut self.reflectors, &before.reflectors, node),
            Key::Drained(node) => keep(&mut self.drained, &before.drained, node),
            _ => {}
        }
    }

    /// Blocks that a node claims.
    pub(crate) fn claims_of(&self, node: &NodeName) -> impl Iterator<Item = IpNet> {
        // 0.0.0.0/0 is the lowest block: keys are in the order of nodes, then blocks.
        let first = (node.clone(), IpNet::from(ipnet::Ipv4Net::default()));
        self.claims.range(first..).take_while(move |((n, _), _)| n == node).map(|((_, block), _)| *block)
    }

    /// Revision of the last change of a key, whether its value can be used or not.
    pub(crate) fn modified(&self, key: &Key) -> Option<i64> {
        if let Some(bad) = self.bad.get(&key.to_string()) {
            return Some(bad.modified);
        }
        match key {
            Key::Node(node) => self.nodes.get(node).map(|s| s.modified),
            Key::Live(node) => self.live.get(node).map(|s| s.modified),
            Key::Claim(node, block) => self.claims.get(&(node.clone(), *block)).map(|s| s.modified),
            Key::Released(block) => self.released.get(block).map(|s| s.modified),
            _ => None,
        }
    }

    /// This table with what is only in `past` added: all but signs of life and holds. A claim of the past that
    /// overlaps one of now is over; one that its node is just making anew goes on as confirmed.
    pub(crate) fn with_past(&self, past: &Self) -> Self {
        fn add<K: Ord + Clone, V: Clone>(now: &mut BTreeMap<K, V>, past: &BTreeMap<K, V>) {
            for (key, value) in past {
                now.entry(key.clone()).or_insert_with(|| value.clone());
            }
        }
        let mut both = self.clone();
        if both.config.is_none() {
            both.config.clone_from(&past.config);
        }
        if both.pools.is_empty() {
            both.pools.clone_from(&past.pools);
        }
        add(&mut both.nodes, &past.nodes);
        add(&mut both.filters, &past.filters);
        add(&mut both.peers, &past.peers);
        add(&mut both.reflectors, &past.reflectors);
        add(&mut both.drained, &past.drained);
        let now = super::claims::ClaimIndex::new(self);
        for (key, stored) in &past.claims {
            if let Some(anew) = both.claims.get_mut(key) {
                let same = anew.value.instance_id == stored.value.instance_id;
                anew.value.confirmed |= same && stored.value.confirmed;
            } else if now.overlapping(key.1).next().is_none() {
                both.claims.insert(key.clone(), stored.clone());
            }
        }
        both
    }
}
