//! The engine as its user sees it: events in, and out what the kernel has to do.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use podway_model::k8s::PolicyType;
use podway_nft::{Element, SetId, TableFlags, TableState, Transaction};

use crate::contents::Difference;
use crate::explain::title;
use crate::lower;
use crate::oracle::{Decision, End, Flow};
use crate::state::{Event, State, Statistics};
use crate::verdicts::Limits;

/// NetworkPolicy of one node, from objects to elements.
///
/// Until [`Engine::on_synced`] it only collects. The first [`Engine::flush`] after that is a whole table, every
/// further one a transaction of the few elements that differ; [`Engine::table`] is the whole at any time.
#[derive(Debug, Clone, Default)]
pub struct Engine {
    state: State,
    flags: TableFlags,
    synced: bool,
    loaded: bool,
}

/// What the kernel has to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Flush {
    /// Nothing: nothing differs, or the sources have not synced yet.
    Nothing,
    /// Put this table in the place of what an earlier run left.
    Replace(Box<TableState>),
    /// Change these elements.
    Change(Transaction),
}

/// A policy as the engine holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedPolicy {
    /// `namespace/name`.
    pub name: String,
    /// Directions in which it isolates.
    pub directions: Vec<PolicyType>,
    /// Local pods that it selects, as `namespace/name`.
    pub pods: Vec<String>,
}

/// A local endpoint as the engine holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedEndpoint {
    /// `namespace/name` of its pod; empty: the runtime named none.
    pub pod: String,
    /// Host side of its veth.
    pub interface: String,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Whether the pod's object is known.
    pub known: bool,
    /// Policies that isolate it, and the number of its policy set, for ingress.
    pub ingress: (Vec<String>, u32),
    /// The same for egress.
    pub egress: (Vec<String>, u32),
}

impl Engine {
    /// An empty engine; the table that it makes gets these flags.
    pub fn new(limits: Limits, flags: TableFlags) -> Self {
        Self { state: State::new(limits), flags, synced: false, loaded: false }
    }

    /// Takes an event in. Cheap: the work is done by [`Engine::flush`].
    pub fn on_event(&mut self, event: Event) {
        self.state.on_event(event);
    }

    /// Everything that exists has come in: from now on what is not known does not exist.
    pub fn on_synced(&mut self) {
        self.synced = true;
    }

    /// Whether [`Engine::on_synced`] was called.
    pub fn is_synced(&self) -> bool {
        self.synced
    }

    /// Works out what follows from the events since the last time.
    pub fn flush(&mut self) -> Flush {
        if !self.synced {
            return Flush::Nothing;
        }
        let differences = self.state.settle();
        if !self.loaded {
            self.loaded = true;
            return Flush::Replace(Box::new(self.table()));
        }
        if differences.is_empty() { Flush::Nothing } else { Flush::Change(transaction(&differences)) }
    }

    /// The whole table as of the last [`Engine::flush`].
    pub fn table(&self) -> TableState {
        TableState { flags: self.flags, ..lower::table(self.state.contents()) }
    }

    /// The engine in numbers.
    pub fn statistics(&self) -> Statistics {
        self.state.statistics()
    }

    /// Local pods whose object is not known, as `namespace/name`.
    pub fn unknown_pods(&self) -> Vec<String> {
        self.state.unknown_pods()
    }

    /// Whether the object of this attachment's pod is known.
    pub fn is_pod_known(&self, endpoint: &str) -> bool {
        self.state.is_pod_known(endpoint)
    }

    /// What cannot be used or enforced as written, in words.
    pub fn problems(&self) -> Vec<String> {
        self.state.problems()
    }

    /// What the policies say of a flow, and which policy and rule decide. Whether a flow's ends are local does not
    /// matter: every node knows all policies.
    pub fn explain(&self, flow: &Flow) -> Decision {
        self.state.objects().explain(flow)
    }

    /// The pod of a namespace and name as an end of a flow, for each of its addresses; empty: no such pod is known, or
    /// it has no address. `here`: name of this node, for pods whose object is not known.
    pub fn pod_ends(&self, namespace: &str, name: &str, here: &str) -> Vec<End> {
        let objects = self.state.objects();
        let key = (namespace.to_owned(), name.to_owned());
        let facts = objects.pods.get(&key);
        let local = objects.endpoints_of(&key).filter_map(|id| objects.endpoints.get(id));
        let mut addresses: Vec<IpAddr> =
            local.flat_map(|endpoint| endpoint.addresses.iter().copied()).collect();
        let node = if addresses.is_empty() { facts.map_or("", |pod| pod.node.as_str()) } else { here };
        if addresses.is_empty() {
            addresses.extend(facts.into_iter().flat_map(|pod| pod.addresses.iter().copied()));
        }
        let end = |address| End::Pod {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            node: node.to_owned(),
            address,
        };
        addresses.into_iter().map(end).collect()
    }

    /// Who an address belongs to: a pod, if one is known to have it, else somebody outside.
    pub fn end_at(&self, address: IpAddr, here: &str) -> End {
        let owner = self.state.objects().owner_name(address);
        owner
            .and_then(|(namespace, name)| {
                let ends = self.pod_ends(&namespace, &name, here);
                ends.into_iter().find(|end| end.address() == address)
            })
            .unwrap_or(End::Outside { address })
    }

    /// Policies with the local pods that they select, by name.
    pub fn list_policies(&self) -> Vec<ListedPolicy> {
        let objects = self.state.objects();
        let directions = [PolicyType::Ingress, PolicyType::Egress];
        let list = |(key, policy): (&_, &crate::rules::Policy)| ListedPolicy {
            name: title(key),
            directions: directions.into_iter().filter(|d| policy.rules(*d).is_some()).collect(),
            pods: objects
                .endpoints_in(&key.namespace)
                .filter_map(|id| objects.endpoints.get(id))
                .filter(|e| objects.pod_of(e).is_some_and(|pod| policy.subject.matches(&pod.labels)))
                .filter_map(|endpoint| endpoint.pod.as_ref().map(ToString::to_string))
                .collect(),
        };
        objects.policies.iter().map(list).collect()
    }

    /// Local endpoints with the policies that isolate them, by pod.
    pub fn list_endpoints(&self) -> Vec<ListedEndpoint> {
        let objects = self.state.objects();
        let mut listed: Vec<ListedEndpoint> = objects
            .endpoints
            .iter()
            .map(|(id, endpoint)| {
                let (ingress, egress) = self.state.sets_of(id).unwrap_or_default();
                let isolating = |direction| match &endpoint.pod {
                    Some(pod) if objects.pod_of(endpoint).is_some() => {
                        objects.isolating(&pod.namespace, &pod.name, direction)
                    }
                    _ => Vec::new(),
                };
                ListedEndpoint {
                    pod: endpoint.pod.as_ref().map(ToString::to_string).unwrap_or_default(),
                    interface: endpoint.ifname.to_string(),
                    addresses: endpoint.addresses.iter().copied().collect(),
                    known: objects.pod_of(endpoint).is_some(),
                    ingress: (isolating(PolicyType::Ingress), ingress),
                    egress: (isolating(PolicyType::Egress), egress),
                }
            })
            .collect();
        listed.sort_by(|a, b| (&a.pod, &a.interface).cmp(&(&b.pod, &b.interface)));
        listed
    }

    /// Addresses that belonged to a pod and do not belong to it any more, since this was last asked: whatever the
    /// kernel remembers of their connections is somebody else's now.
    pub fn take_released(&mut self) -> BTreeSet<IpAddr> {
        self.state.take_released()
    }
}

/// Deletions first: an element with new data must go before it comes, and so must a segment that another overlaps.
fn transaction(differences: &[Difference]) -> Transaction {
    let table = lower::table_id();
    let sets: BTreeMap<_, _> =
        lower::sets().iter().map(|set| (set.name.clone(), SetId::of(&table, set))).collect();
    let gather = |value: fn(&Difference) -> Option<u32>| {
        let mut elements: BTreeMap<_, Vec<Element>> = BTreeMap::new();
        for difference in differences {
            if let Some(value) = value(difference) {
                let (set, element) = lower::element(&difference.key, value);
                elements.entry(set).or_default().push(element);
            }
        }
        elements
    };
    let mut transaction = Transaction::new();
    for (name, elements) in gather(|difference| difference.old) {
        if let Some(set) = sets.get(&name) {
            transaction.delete_elements(set, elements);
        }
    }
    for (name, elements) in gather(|difference| difference.new) {
        if let Some(set) = sets.get(&name) {
            transaction.add_elements(set, elements);
        }
    }
    transaction
}
