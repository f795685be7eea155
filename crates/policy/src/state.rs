//! The compiler's state: objects in, elements out, a change at a time.
//!
//! [`Engine::on_event`] only notes who is concerned; [`Engine::settle`] works the concerned out again, from the
//! objects down: policy sets of local pods, kinds of peers in use, segments, classes, verdicts. Nothing depends on
//! the order of events: an engine that saw a history holds what an engine that saw the outcome holds, up to the
//! choice of numbers (test `incremental_equals_full`).
//!
//! Everything new is counted in before anything old is counted out, so a number that is still needed never changes.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use podway_model::k8s::{Namespace, NetworkPolicy, Pod, PolicyType};

use crate::classes::{Classifier, NOTHING, Signature};
use crate::contents::{Contents, Difference, Key};
use crate::in_use::InUse;
use crate::intern::{Id, Interner, Use};
use crate::objects::{Endpoint, Objects, PodFacts};
use crate::rules::{Peer, Policy, PolicyKey, Tier};
use crate::segments::Segments;
use crate::sets::{self, OPEN, SetKey};
use crate::validity;
use crate::verdicts::{Limits, Verdicts};

/// What happens to the objects.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A namespace is new or changed.
    NamespacePut(Namespace),
    /// A namespace is gone.
    NamespaceDeleted(String),
    /// A pod is new or changed.
    PodPut(Pod),
    /// A pod is gone: namespace and name.
    PodDeleted(String, String),
    /// A policy is new or changed.
    PolicyPut(NetworkPolicy),
    /// A policy is gone: namespace and name.
    PolicyDeleted(String, String),
    /// A local attachment is new or changed: its id, and what it is. No two may have one interface.
    EndpointPut(String, Endpoint),
    /// A local attachment is gone.
    EndpointRemoved(String),
}

/// The engine in numbers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Local endpoints.
    pub endpoints: usize,
    /// Pods known in the cluster.
    pub pods: usize,
    /// Policies.
    pub policies: usize,
    /// Policy sets of local pods.
    pub policy_sets: usize,
    /// Classes of peers.
    pub classes: usize,
    /// Elements in all sets and maps.
    pub elements: usize,
}

/// Objects, what follows from them, and what has changed since.
#[derive(Debug, Clone, Default)]
pub(crate) struct State {
    objects: Objects,
    /// Parts of policies that cannot be used.
    problems: BTreeMap<PolicyKey, Vec<String>>,
    sets: Interner<SetKey>,
    local: BTreeMap<String, Local>,
    in_use: InUse,
    segments: Segments,
    segment_classes: BTreeMap<(IpAddr, IpAddr), Id>,
    address_classes: BTreeMap<IpAddr, Id>,
    classes: Interner<Signature>,
    verdicts: Verdicts,
    contents: Contents,
    concerned: Concerned,
    /// Addresses that a pod has lost since this was last asked for.
    released: BTreeSet<IpAddr>,
}

/// A local endpoint as it stands in the contents.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Local {
    endpoint: Endpoint,
    ingress: Id,
    egress: Id,
}

/// Who has to be worked out again.
#[derive(Debug, Clone, Default)]
struct Concerned {
    endpoints: BTreeSet<String>,
    policies: BTreeSet<PolicyKey>,
    addresses: BTreeSet<IpAddr>,
    segments: bool,
}

/// What began and what ceased during one [`State::settle`].
#[derive(Debug, Default)]
struct Turn {
    /// Sets whose accepted traffic is new.
    fresh_sets: BTreeSet<Id>,
    dead_sets: BTreeSet<Id>,
    fresh_classes: BTreeSet<Id>,
    /// Uses of classes to be counted out at the end.
    class_releases: Vec<Id>,
}

impl State {
    pub(crate) fn new(limits: Limits) -> Self {
        Self { verdicts: Verdicts::new(limits), ..Self::default() }
    }

    /// Takes an event in. Cheap: the work is done by [`State::settle`].
    pub(crate) fn on_event(&mut self, event: Event) {
        match event {
            Event::NamespacePut(namespace) => {
                let name = namespace.metadata.name;
                let labels = namespace.metadata.labels;
                if self.objects.namespaces.get(&name) != Some(&labels) {
                    self.objects.namespaces.insert(name.clone(), labels);
                    self.concerned.addresses.extend(self.objects.addresses_in(&name));
                }
            }
            Event::NamespaceDeleted(name) => {
                if self.objects.namespaces.remove(&name).is_some() {
                    self.concerned.addresses.extend(self.objects.addresses_in(&name));
                }
            }
            Event::PodPut(pod) => {
                let key = (pod.metadata.namespace.clone(), pod.metadata.name.clone());
                self.on_pod(&key, Some(PodFacts::of(&pod)));
            }
            Event::PodDeleted(namespace, name) => self.on_pod(&(namespace, name), None),
            Event::PolicyPut(policy) => {
                let key = PolicyKey {
                    tier: Tier::Network,
                    namespace: policy.metadata.namespace.clone(),
                    name: policy.metadata.name.clone(),
                };
                let problems = validity::problems(&policy);
                if problems.is_empty() {
                    self.problems.remove(&key);
                } else {
                    self.problems.insert(key.clone(), problems);
                }
                self.on_policy(key, Some(Policy::from_network_policy(&policy)));
            }
            Event::PolicyDeleted(namespace, name) => {
                let key = PolicyKey { tier: Tier::Network, namespace, name };
                self.problems.remove(&key);
                self.on_policy(key, None);
            }
            Event::EndpointPut(id, endpoint) => self.on_endpoint(&id, Some(endpoint)),
            Event::EndpointRemoved(id) => self.on_endpoint(&id, None),
        }
    }

    fn on_pod(&mut self, key: &(String, String), facts: Option<PodFacts>) {
        let old = self.objects.pods.get(key);
        if old == facts.as_ref() {
            return;
        }
        let mut addresses: BTreeSet<IpAddr> = [old, facts.as_ref()]
            .into_iter()
            .flatten()
            .flat_map(|pod| pod.addresses.iter().copied())
            .collect();
        for id in self.objects.endpoints_of(key) {
            self.concerned.endpoints.insert(id.clone());
            addresses.extend(self.objects.endpoints.get(id).into_iter().flat_map(|e| &e.addresses));
        }
        self.change(addresses, |objects| objects.set_pod(key, facts));
    }

    fn on_policy(&mut self, key: PolicyKey, policy: Option<Policy>) {
        if self.objects.policies.get(&key) == policy.as_ref() {
            return;
        }
        self.concerned.endpoints.extend(self.objects.endpoints_in(&key.namespace).cloned());
        match policy {
            Some(policy) => self.objects.policies.insert(key.clone(), policy),
            None => self.objects.policies.remove(&key),
        };
        self.concerned.policies.insert(key);
    }

    fn on_endpoint(&mut self, id: &str, endpoint: Option<Endpoint>) {
        let old = self.objects.endpoints.get(id);
        if old == endpoint.as_ref() {
            return;
        }
        let addresses = [old, endpoint.as_ref()]
            .into_iter()
            .flatten()
            .flat_map(|e| e.addresses.iter().copied())
            .collect();
        self.concerned.endpoints.insert(id.to_owned());
        self.change(addresses, |objects| objects.set_endpoint(id, endpoint));
    }

    /// Changes objects that concern these addresses; notes which of them a holder has lost.
    fn change(&mut self, addresses: BTreeSet<IpAddr>, change: impl FnOnce(&mut Objects)) {
        let before: Vec<_> = addresses.iter().map(|a| (*a, self.objects.holders(*a))).collect();
        change(&mut self.objects);
        for (address, holders) in before {
            let now = self.objects.holders(address);
            if holders.iter().any(|holder| !now.iter().any(|other| holder.is_same(other))) {
                self.released.insert(address);
            }
        }
        self.concerned.addresses.extend(addresses);
    }

    /// Works out what follows and returns the elements that differ from those of the last time.
    pub(crate) fn settle(&mut self) -> Vec<Difference> {
        let mut turn = Turn::default();
        self.settle_endpoints(&mut turn);
        self.settle_sets(&mut turn);
        self.settle_segments(&mut turn);
        self.settle_addresses(&mut turn);
        self.settle_verdicts(turn);
        self.contents.take_changes()
    }

    /// Policy sets of the local endpoints concerned.
    fn settle_endpoints(&mut self, turn: &mut Turn) {
        let mut releases = Vec::new();
        for id in std::mem::take(&mut self.concerned.endpoints) {
            let new = self.objects.endpoints.get(&id).cloned().map(|endpoint| Local {
                ingress: acquire_set(&self.objects, &endpoint, PolicyType::Ingress, &mut self.sets, turn),
                egress: acquire_set(&self.objects, &endpoint, PolicyType::Egress, &mut self.sets, turn),
                endpoint,
            });
            let old = match new.clone() {
                Some(local) => self.local.insert(id, local),
                None => self.local.remove(&id),
            };
            if let Some(old) = old {
                releases.extend([old.ingress, old.egress]);
                old.elements().into_iter().for_each(|(key, _)| self.contents.set(key, None));
            }
            if let Some(new) = new {
                new.elements().into_iter().for_each(|(key, value)| self.contents.set(key, Some(value)));
            }
        }
        for set in releases.into_iter().filter(|set| *set != OPEN) {
            if self.sets.release(set) == Use::Edge {
                turn.dead_sets.insert(set);
            }
        }
    }

    /// What the policy sets accept that are new or whose policies changed, and with it the peers in use.
    fn settle_sets(&mut self, turn: &mut Turn) {
        for policy in std::mem::take(&mut self.concerned.policies) {
            turn.fresh_sets.extend(self.in_use.sets_with(&policy));
        }
        turn.fresh_sets.retain(|set| self.sets.get(*set).is_some());
        let edges = self.in_use.update(&turn.fresh_sets, &turn.dead_sets, &self.sets, &self.objects);
        let concerned = &mut self.concerned;
        for peer in &edges.peers {
            match peer {
                Peer::Pods { namespaces, .. } => {
                    concerned.addresses.extend(self.objects.addresses_in_all(namespaces));
                }
                Peer::Block(block) => {
                    concerned.segments = true;
                    concerned
                        .addresses
                        .extend(self.objects.owned_addresses().filter(|a| block.cidr.contains(a)));
                }
            }
        }
        concerned.addresses.extend(self.objects.addresses_naming(&edges.names));
    }

    /// Segments of the blocks in use, and their classes.
    fn settle_segments(&mut self, turn: &mut Turn) {
        if !std::mem::take(&mut self.concerned.segments) {
            return;
        }
        let blocks = self.in_use.peers().iter().filter_map(|(id, peer)| match peer {
            Peer::Block(block) => Some((id, block)),
            Peer::Pods { .. } => None,
        });
        self.segments = Segments::cut(blocks);
        let mut classes = BTreeMap::new();
        for segment in self.segments.iter() {
            let class = acquire_class(&mut self.classes, &Signature::of_blocks(segment.blocks.clone()), turn);
            classes.insert((segment.first, segment.last), class);
        }
        let old = std::mem::replace(&mut self.segment_classes, classes);
        for ((first, last), class) in old {
            turn.class_releases.push(class);
            if !self.segment_classes.contains_key(&(first, last)) {
                self.contents.set(Key::Segment(first, last), None);
            }
        }
        for ((first, last), class) in &self.segment_classes {
            self.contents.set(Key::Segment(*first, *last), Some(*class));
        }
    }

    /// Classes of the addresses concerned.
    fn settle_addresses(&mut self, turn: &mut Turn) {
        let concerned = std::mem::take(&mut self.concerned.addresses);
        let mut classifier = Classifier::new(&self.objects, &self.in_use, &self.segments);
        for address in concerned {
            let mut class = NOTHING;
            let mut element = None;
            if self.objects.is_owned(address) {
                let signature = classifier.signature(address);
                class = acquire_class(&mut self.classes, &signature, turn);
                let blocks = self.segments.blocks_of(address).cloned().unwrap_or_default();
                // What its segment's class says already needs no element of its own.
                element = (signature != Signature::of_blocks(blocks)).then_some(class);
            }
            let old = match class {
                NOTHING => self.address_classes.remove(&address),
                class => self.address_classes.insert(address, class),
            };
            turn.class_releases.extend(old);
            self.contents.set(Key::Class(address), element);
        }
    }

    /// Verdicts of sets and classes that are new, and of those that are gone.
    fn settle_verdicts(&mut self, turn: Turn) {
        for class in turn.class_releases.into_iter().filter(|class| *class != NOTHING) {
            if self.classes.release(class) == Use::Edge {
                self.verdicts.remove_class(class);
            }
        }
        for set in turn.dead_sets {
            self.verdicts.remove_set(set);
        }
        for set in &turn.fresh_sets {
            let Some(accepts) = self.in_use.accepts(*set) else { continue };
            self.verdicts.replace_set(*set, accepts, self.classes.iter());
        }
        for class in turn.fresh_classes {
            let Some(signature) = self.classes.get(class) else { continue };
            let sets = self.in_use.sets_towards(signature);
            for set in sets.into_iter().filter(|set| !turn.fresh_sets.contains(set)) {
                let Some(accepts) = self.in_use.accepts(set) else { continue };
                self.verdicts.put(set, accepts, class, signature);
            }
        }
        self.verdicts.write(&mut self.contents);
    }
}

impl State {
    /// All elements.
    pub(crate) fn contents(&self) -> &Contents {
        &self.contents
    }

    /// The objects.
    pub(crate) fn objects(&self) -> &Objects {
        &self.objects
    }

    /// Numbers of the policy sets of a local endpoint: ingress, egress.
    pub(crate) fn sets_of(&self, endpoint: &str) -> Option<(Id, Id)> {
        self.local.get(endpoint).map(|local| (local.ingress, local.egress))
    }

    /// Numbers for status and metrics.
    pub(crate) fn statistics(&self) -> Statistics {
        Statistics {
            endpoints: self.local.len(),
            pods: self.objects.pods.len(),
            policies: self.objects.policies.len(),
            policy_sets: self.sets.len(),
            classes: self.classes.len(),
            elements: self.contents.len(),
        }
    }

    /// Local pods whose object is not known, as `namespace/name`.
    pub(crate) fn unknown_pods(&self) -> Vec<String> {
        let unknown = self.objects.endpoints.values().filter(|e| self.objects.pod_of(e).is_none());
        unknown.filter_map(|e| e.pod.as_ref()).map(ToString::to_string).collect()
    }

    /// Whether the object of this endpoint's pod is known.
    pub(crate) fn is_pod_known(&self, id: &str) -> bool {
        self.objects.endpoints.get(id).is_some_and(|e| self.objects.pod_of(e).is_some())
    }

    /// Addresses that a pod has lost since this was last asked.
    pub(crate) fn take_released(&mut self) -> BTreeSet<IpAddr> {
        std::mem::take(&mut self.released)
    }

    /// What cannot be used or enforced as written, in words.
    pub(crate) fn problems(&self) -> Vec<String> {
        let closed = self.verdicts.closed().filter_map(|set| match self.sets.get(set)? {
            SetKey::Unknown => None,
            SetKey::Isolated { direction, policies, .. } => {
                let names: Vec<_> = policies.iter().map(|p| format!("{}/{}", p.namespace, p.name)).collect();
                Some(format!(
                    "{direction:?} of pods under {} is closed: the policies need more elements than the limit",
                    names.join(", ")
                ))
            }
        });
        self.problems.values().flatten().cloned().chain(closed).collect()
    }
}

impl Local {
    fn elements(&self) -> Vec<(Key, Id)> {
        let ifname = &self.endpoint.ifname;
        let mut elements = vec![(Key::Interface(ifname.clone()), 0)];
        for address in &self.endpoint.addresses {
            elements.push((Key::Local(PolicyType::Ingress, ifname.clone(), *address), self.ingress));
            elements.push((Key::Local(PolicyType::Egress, ifname.clone(), *address), self.egress));
        }
        elements
    }
}

fn acquire_set(
    objects: &Objects,
    endpoint: &Endpoint,
    direction: PolicyType,
    sets: &mut Interner<SetKey>,
    turn: &mut Turn,
) -> Id {
    let Some(key) = sets::key_of(objects, endpoint, direction) else { return OPEN };
    let (set, used) = sets.acquire(&key);
    if used == Use::Edge {
        turn.fresh_sets.insert(set);
    }
    set
}

fn acquire_class(classes: &mut Interner<Signature>, signature: &Signature, turn: &mut Turn) -> Id {
    if signature.is_nothing() {
        return NOTHING;
    }
    let (class, used) = classes.acquire(signature);
    if used == Use::Edge {
        turn.fresh_classes.insert(class);
    }
    class
}
