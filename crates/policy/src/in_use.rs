//! What the policy sets of local pods accept, and so which kinds of peers and which port names are in use.
//!
//! Only what is in use tells peers apart: a label that no selector of a local pod's policies names makes no class.

use std::collections::{BTreeMap, BTreeSet};

use crate::classes::Signature;
use crate::intern::{Id, Interner, Use};
use crate::objects::Objects;
use crate::rules::{Peer, PolicyKey, PortName};
use crate::sets::{self, Accepts, SetKey};

/// Accepted traffic by set, with the indexes that lead back to sets.
#[derive(Debug, Clone, Default)]
pub(crate) struct InUse {
    accepts: BTreeMap<Id, Accepts>,
    peers: Interner<Peer>,
    /// Port names that depend on the peer, with the number of sets that use them.
    names: BTreeMap<PortName, usize>,
    /// Sets by the policies in them.
    sets_with: BTreeMap<PolicyKey, BTreeSet<Id>>,
    /// Sets that accept something towards a kind of peer.
    sets_towards: BTreeMap<Id, BTreeSet<Id>>,
    /// Sets that accept a port name towards everybody.
    sets_naming: BTreeMap<PortName, BTreeSet<Id>>,
}

/// What came into use or went out of it. May name what did neither.
#[derive(Debug, Default)]
pub(crate) struct Edges {
    /// Kinds of peers.
    pub(crate) peers: BTreeSet<Peer>,
    /// Port names.
    pub(crate) names: BTreeSet<PortName>,
}

impl InUse {
    /// Kinds of peers with their numbers.
    pub(crate) fn peers(&self) -> &Interner<Peer> {
        &self.peers
    }

    /// Whether a port name's meaning on peers matters.
    pub(crate) fn is_name_used(&self, name: &PortName) -> bool {
        self.names.contains_key(name)
    }

    /// What a set accepts.
    pub(crate) fn accepts(&self, set: Id) -> Option<&Accepts> {
        self.accepts.get(&set)
    }

    /// Sets that a policy is in.
    pub(crate) fn sets_with(&self, policy: &PolicyKey) -> impl Iterator<Item = Id> {
        self.sets_with.get(policy).into_iter().flatten().copied()
    }

    /// Sets that may accept something towards a class, besides what they accept towards everybody.
    pub(crate) fn sets_towards(&self, signature: &Signature) -> BTreeSet<Id> {
        let towards = signature.peers.iter().filter_map(|peer| self.sets_towards.get(peer));
        let naming = signature.ports.keys().filter_map(|name| self.sets_naming.get(name));
        towards.chain(naming).flatten().copied().collect()
    }

    /// Takes in sets that are new or whose policies changed, and forgets dead ones.
    pub(crate) fn update(
        &mut self,
        fresh: &BTreeSet<Id>,
        dead: &BTreeSet<Id>,
        keys: &Interner<SetKey>,
        objects: &Objects,
    ) -> Edges {
        let mut edges = Edges::default();
        let mut added = Vec::new();
        for (set, key) in fresh.iter().filter_map(|set| Some((*set, keys.get(*set)?))) {
            let (accepts, new_peers) = sets::accepts(key, objects, &mut self.peers);
            edges.peers.extend(new_peers.iter().filter_map(|id| self.peers.get(*id).cloned()));
            if let SetKey::Isolated { policies, .. } = key {
                for policy in policies {
                    self.sets_with.entry(policy.clone()).or_default().insert(set);
                }
            }
            added.push((set, accepts));
        }
        for (_, accepts) in &added {
            self.count_names_in(accepts, &mut edges);
        }
        for set in dead.iter().copied().chain(added.iter().map(|(set, _)| *set)) {
            self.remove(set, &mut edges);
        }
        for (set, accepts) in added {
            for peer in accepts.peers.keys() {
                self.sets_towards.entry(*peer).or_default().insert(set);
            }
            for name in &accepts.everybody_names {
                self.sets_naming.entry(name.clone()).or_default().insert(set);
            }
            self.accepts.insert(set, accepts);
        }
        if !dead.is_empty() {
            self.sets_with.retain(|_, sets| {
                sets.retain(|set| !dead.contains(set));
                !sets.is_empty()
            });
        }
        edges
    }

    /// Takes a set and its uses out.
    fn remove(&mut self, set: Id, edges: &mut Edges) {
        let Some(old) = self.accepts.remove(&set) else { return };
        for peer in old.peers.keys() {
            remove_user(&mut self.sets_towards, peer, set);
            let value = self.peers.get(*peer).cloned();
            if self.peers.release(*peer) == Use::Edge {
                edges.peers.extend(value);
            }
        }
        for name in &old.everybody_names {
            remove_user(&mut self.sets_naming, name, set);
        }
        for name in old.names() {
            if let Some(users) = self.names.get_mut(&name) {
                *users -= 1;
                if *users == 0 {
                    self.names.remove(&name);
                    edges.names.insert(name);
                }
            }
        }
    }

    fn count_names_in(&mut self, accepts: &Accepts, edges: &mut Edges) {
        for name in accepts.names() {
            let users = self.names.entry(name.clone()).or_insert(0);
            *users += 1;
            if *users == 1 {
                edges.names.insert(name);
            }
        }
    }
}

fn remove_user<K: Ord>(index: &mut BTreeMap<K, BTreeSet<Id>>, key: &K, set: Id) {
    if let Some(sets) = index.get_mut(key) {
        sets.remove(&set);
        if sets.is_empty() {
            index.remove(key);
        }
    }
}
