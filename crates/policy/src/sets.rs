//! Policy sets: what the policies that select a pod accept together, per direction.
//!
//! Pods that the same policies select share a set, and with it all of its verdicts. A set is closed where no rule
//! of it matches: nothing has to be written for that.

use std::collections::{BTreeMap, BTreeSet};

use podway_model::k8s::PolicyType;

use crate::intern::{Id, Interner, Use};
use crate::objects::{Endpoint, Objects};
use crate::ports::{Grant, PortSet};
use crate::rules::{Peer, Peers, PolicyKey, PortName, Rule, Tier};

/// Number of the set that isolates from nothing.
pub(crate) const OPEN: Id = 0;

/// What makes a policy set.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum SetKey {
    /// Nothing is known of the pod, and its namespace has policies: closed.
    Unknown,
    /// These policies isolate the pod in this direction.
    Isolated {
        /// Direction.
        direction: PolicyType,
        /// The policies, ordered by tier.
        policies: BTreeSet<PolicyKey>,
        /// Ingress: the numbers that the port names in those policies have on this pod.
        ports: BTreeMap<PortName, BTreeSet<u16>>,
    },
}

/// What a set accepts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Accepts {
    /// From or to everybody.
    pub(crate) everybody: PortSet,
    /// Towards every peer that has ports of these names (egress only).
    pub(crate) everybody_names: BTreeSet<PortName>,
    /// From or to peers of these kinds.
    pub(crate) peers: BTreeMap<Id, Towards>,
}

/// What a set accepts towards one kind of peer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Towards {
    /// Protocols and numbers.
    pub(crate) ports: PortSet,
    /// Names, to be looked up on the peer (egress only).
    pub(crate) names: BTreeSet<PortName>,
}

/// The set of a local endpoint in a direction; none: open.
pub(crate) fn key_of(objects: &Objects, endpoint: &Endpoint, direction: PolicyType) -> Option<SetKey> {
    let namespace = &endpoint.pod.as_ref()?.namespace;
    let Some(pod) = objects.pod_of(endpoint) else {
        return objects.policies_in(Tier::Network, namespace).next().map(|_| SetKey::Unknown);
    };
    let mut policies = BTreeSet::new();
    let mut ports = BTreeMap::new();
    for (key, policy) in objects.policies_in(Tier::Network, namespace) {
        let Some(rules) = policy.rules(direction).filter(|_| policy.subject.matches(&pod.labels)) else {
            continue;
        };
        policies.insert(key.clone());
        if direction == PolicyType::Ingress {
            for name in rules.iter().flat_map(|rule| &rule.ports.names) {
                ports.extend(pod.ports.get(name).map(|numbers| (name.clone(), numbers.clone())));
            }
        }
    }
    (!policies.is_empty()).then_some(SetKey::Isolated { direction, policies, ports })
}

/// Works out what a set accepts. Becomes a user of every peer in it and says which of them are new.
///
/// With one tier that only accepts, tiers need no weighing: what any policy accepts is accepted. A tier that
/// denies is weighed here, so that the kernel only ever sees the outcome.
pub(crate) fn accepts(key: &SetKey, objects: &Objects, peers: &mut Interner<Peer>) -> (Accepts, Vec<Id>) {
    let mut accepts = Accepts::default();
    let mut new_peers = Vec::new();
    let SetKey::Isolated { direction, policies, ports } = key else { return (accepts, new_peers) };
    let rules = policies.iter().filter_map(|key| objects.policies.get(key)?.rules(*direction)).flatten();
    for rule in rules {
        let (mut fixed, mut names) = (rule.ports.fixed.clone(), rule.ports.names.clone());
        if *direction == PolicyType::Ingress {
            resolve(&names, ports, &mut fixed);
            names.clear();
        }
        add(rule, fixed, names, &mut accepts, peers, &mut new_peers);
    }
    (accepts, new_peers)
}

fn add(
    rule: &Rule,
    fixed: PortSet,
    names: BTreeSet<PortName>,
    accepts: &mut Accepts,
    peers: &mut Interner<Peer>,
    new_peers: &mut Vec<Id>,
) {
    let these = match &rule.peers {
        Peers::Everybody => {
            accepts.everybody.union(&fixed);
            accepts.everybody_names.extend(names);
            return;
        }
        Peers::These(these) => these,
    };
    for peer in these {
        let (id, used) = peers.acquire(peer);
        if accepts.peers.contains_key(&id) {
            // One use per set is enough.
            peers.release(id);
        } else if used == Use::Edge {
            new_peers.push(id);
        }
        let towards = accepts.peers.entry(id).or_default();
        towards.ports.union(&fixed);
        if matches!(peer, Peer::Pods { .. }) {
            // A name belongs to a pod, and an ipBlock names no pod.
            towards.names.extend(names.iter().cloned());
        }
    }
}

/// Adds the numbers that names stand for.
pub(crate) fn resolve(
    names: &BTreeSet<PortName>,
    table: &BTreeMap<PortName, BTreeSet<u16>>,
    ports: &mut PortSet,
) {
    for name in names {
        for number in table.get(name).into_iter().flatten() {
            ports.insert(Grant::Range(name.1, *number, *number));
        }
    }
}

impl Accepts {
    /// Every port name whose numbers depend on the peer, once.
    pub(crate) fn names(&self) -> BTreeSet<PortName> {
        self.peers.values().flat_map(|towards| &towards.names).chain(&self.everybody_names).cloned().collect()
    }
}
