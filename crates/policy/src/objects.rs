//! The cluster's objects as the engine needs them, with the indexes that answer who is concerned by a change.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use podway_model::endpoint::{EndpointRecord, PodRef};
use podway_model::ids::IfName;
use podway_model::k8s::{Labels, Pod};

use crate::named_ports;
use crate::rules::{Namespaces, Policy, PolicyKey, PortName, Tier};

/// Namespace and name of a pod.
pub(crate) type PodKey = (String, String);

/// What a policy can see of a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PodFacts {
    /// Its incarnation; empty: not known.
    pub(crate) uid: String,
    /// Its labels.
    pub(crate) labels: Labels,
    /// Its addresses; none for pods in the host's network and for pods that have ended.
    pub(crate) addresses: Vec<IpAddr>,
    /// Whether it can be a peer: not in the host's network, and not ended.
    pub(crate) is_peer: bool,
    /// Ports by name.
    pub(crate) ports: BTreeMap<PortName, BTreeSet<u16>>,
    /// Node that it was bound to; empty before.
    pub(crate) node: String,
    /// Whether it is in its node's network.
    pub(crate) host_network: bool,
}

impl PodFacts {
    /// Reads a pod.
    pub(crate) fn of(pod: &Pod) -> Self {
        let is_peer = !pod.spec.host_network && !pod.is_finished();
        let mut ports: BTreeMap<PortName, BTreeSet<u16>> = BTreeMap::new();
        for port in named_ports(pod).filter(|_| is_peer) {
            ports.entry((port.name.clone(), port.protocol)).or_default().insert(port.container_port);
        }
        Self {
            uid: pod.metadata.uid.clone(),
            labels: pod.metadata.labels.clone(),
            addresses: if is_peer { pod.addresses() } else { Vec::new() },
            is_peer,
            ports,
            node: pod.spec.node_name.clone(),
            host_network: pod.spec.host_network,
        }
    }
}

/// An attachment of a local pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// Host side of its veth.
    pub ifname: IfName,
    /// Its addresses.
    pub addresses: BTreeSet<IpAddr>,
    /// The pod; none: the runtime named none, so no policy can select it.
    pub pod: Option<PodRef>,
}

impl From<&EndpointRecord> for Endpoint {
    fn from(record: &EndpointRecord) -> Self {
        Self {
            ifname: record.host_ifname.clone(),
            addresses: record.addresses.iter().copied().collect(),
            pod: record.pod.clone(),
        }
    }
}

/// Everything that came in.
#[derive(Debug, Clone, Default)]
pub(crate) struct Objects {
    pub(crate) namespaces: BTreeMap<String, Labels>,
    pub(crate) pods: BTreeMap<PodKey, PodFacts>,
    pub(crate) policies: BTreeMap<PolicyKey, Policy>,
    pub(crate) endpoints: BTreeMap<String, Endpoint>,
    /// Pods by the addresses in their status.
    pods_at: BTreeMap<IpAddr, BTreeSet<PodKey>>,
    /// Endpoints by their addresses.
    endpoints_at: BTreeMap<IpAddr, BTreeSet<String>>,
    /// Endpoints by the pod that they belong to.
    endpoints_of: BTreeMap<PodKey, BTreeSet<String>>,
}

impl Objects {
    /// Replaces or removes a pod.
    pub(crate) fn set_pod(&mut self, key: &PodKey, facts: Option<PodFacts>) {
        let old = match facts {
            Some(facts) => {
                for address in &facts.addresses {
                    self.pods_at.entry(*address).or_default().insert(key.clone());
                }
                self.pods.insert(key.clone(), facts)
            }
            None => self.pods.remove(key),
        };
        let kept = self.pods.get(key).map(|pod| pod.addresses.clone()).unwrap_or_default();
        for address in old.iter().flat_map(|pod| &pod.addresses).filter(|a| !kept.contains(a)) {
            remove_from(&mut self.pods_at, address, key);
        }
    }

    /// Replaces or removes an endpoint.
    pub(crate) fn set_endpoint(&mut self, id: &str, endpoint: Option<Endpoint>) {
        let old = self.endpoints.remove(id);
        if let Some(old) = &old {
            for address in &old.addresses {
                remove_from(&mut self.endpoints_at, address, id);
            }
            if let Some(pod) = &old.pod {
                remove_from(&mut self.endpoints_of, &(pod.namespace.clone(), pod.name.clone()), id);
            }
        }
        if let Some(endpoint) = endpoint {
            for address in &endpoint.addresses {
                self.endpoints_at.entry(*address).or_default().insert(id.to_owned());
            }
            if let Some(pod) = &endpoint.pod {
                let key = (pod.namespace.clone(), pod.name.clone());
                self.endpoints_of.entry(key).or_default().insert(id.to_owned());
            }
            self.endpoints.insert(id.to_owned(), endpoint);
        }
    }

    /// The pod of an endpoint, if its object is known: same name, and the same incarnation where both say theirs.
    pub(crate) fn pod_of(&self, endpoint: &Endpoint) -> Option<&PodFacts> {
        let wanted = endpoint.pod.as_ref()?;
        let pod = self.pods.get(&(wanted.namespace.clone(), wanted.name.clone()))?;
        let same =
            wanted.uid.as_deref().is_none_or(|uid| uid.is_empty() || pod.uid.is_empty() || uid == pod.uid);
        same.then_some(pod)
    }

    /// Policies of a namespace in a tier.
    pub(crate) fn policies_in(
        &self,
        tier: Tier,
        namespace: &str,
    ) -> impl Iterator<Item = (&PolicyKey, &Policy)> {
        let first = PolicyKey { tier, namespace: namespace.to_owned(), name: String::new() };
        let namespace = namespace.to_owned();
        self.policies
            .range(first..)
            .take_while(move |(key, _)| key.tier == tier && key.namespace == namespace)
    }

    /// Endpoints of the pods of a namespace.
    pub(crate) fn endpoints_in(&self, namespace: &str) -> impl Iterator<Item = &String> {
        let namespace = namespace.to_owned();
        self.endpoints_of
            .range((namespace.clone(), String::new())..)
            .take_while(move |((n, _), _)| *n == namespace)
            .flat_map(|(_, ids)| ids)
    }

    /// Endpoints of a pod.
    pub(crate) fn endpoints_of(&self, pod: &PodKey) -> impl Iterator<Item = &String> {
        self.endpoints_of.get(pod).into_iter().flatten()
    }

    /// Addresses of the pods of a namespace, from their status and from their endpoints.
    pub(crate) fn addresses_in(&self, namespace: &str) -> BTreeSet<IpAddr> {
        let first = (namespace.to_owned(), String::new());
        let pods = self.pods.range(first..).take_while(|((n, _), _)| n == namespace);
        let local = self.endpoints_in(namespace).filter_map(|id| self.endpoints.get(id));
        pods.flat_map(|(_, pod)| pod.addresses.iter().copied())
            .chain(local.flat_map(|endpoint| endpoint.addresses.iter().copied()))
            .collect()
    }

    /// Addresses of the pods of all namespaces that match.
    pub(crate) fn addresses_in_all(&self, namespaces: &Namespaces) -> BTreeSet<IpAddr> {
        match namespaces {
            Namespaces::Named(name) => self.addresses_in(name),
            Namespaces::Selected(_) => {
                let names: BTreeSet<&String> = self
                    .pods
                    .keys()
                    .chain(self.endpoints_of.keys())
                    .map(|(namespace, _)| namespace)
                    .collect();
                names
                    .into_iter()
                    .filter(|name| self.is_in(name, namespaces))
                    .flat_map(|name| self.addresses_in(name))
                    .collect()
            }
        }
    }

    /// All addresses that belong to some pod.
    pub(crate) fn owned_addresses(&self) -> impl Iterator<Item = IpAddr> {
        let local = self.endpoints_at.keys().filter(|a| !self.pods_at.contains_key(a));
        self.pods_at.keys().chain(local).copied()
    }

    /// Addresses of the pods that have a port of one of these names.
    pub(crate) fn addresses_naming(&self, names: &BTreeSet<PortName>) -> BTreeSet<IpAddr> {
        let has_one = |pod: &PodFacts| pod.ports.keys().any(|name| names.contains(name));
        let mut addresses = BTreeSet::new();
        if names.is_empty() {
            return addresses;
        }
        for (key, pod) in self.pods.iter().filter(|(_, pod)| has_one(pod)) {
            addresses.extend(&pod.addresses);
            let local = self.endpoints_of(key).filter_map(|id| self.endpoints.get(id));
            addresses.extend(local.flat_map(|endpoint| &endpoint.addresses));
        }
        addresses
    }

    /// Whether a namespace is among those.
    pub(crate) fn is_in(&self, namespace: &str, namespaces: &Namespaces) -> bool {
        static NONE: Labels = Labels::new();
        match namespaces {
            Namespaces::Named(name) => name == namespace,
            Namespaces::Selected(selector) => {
                selector.matches(self.namespaces.get(namespace).unwrap_or(&NONE))
            }
        }
    }

    /// Whether an address belongs to any pod.
    pub(crate) fn is_owned(&self, address: IpAddr) -> bool {
        self.endpoints_at.contains_key(&address) || self.pods_at.contains_key(&address)
    }

    /// Who has an address: local endpoints where there are any, else the pods whose status says so.
    pub(crate) fn holders(&self, address: IpAddr) -> Vec<Holder> {
        if let Some(ids) = self.endpoints_at.get(&address) {
            let holder = |id: &String| match self.endpoints.get(id)?.pod.as_ref() {
                Some(pod) => Some(Holder {
                    namespace: pod.namespace.clone(),
                    name: pod.name.clone(),
                    uid: pod.uid.clone().unwrap_or_default(),
                }),
                None => Some(Holder { namespace: String::new(), name: id.clone(), uid: String::new() }),
            };
            return ids.iter().filter_map(holder).collect();
        }
        let keys = self.pods_at.get(&address).into_iter().flatten();
        keys.filter_map(|key| {
            let uid = self.pods.get(key)?.uid.clone();
            Some(Holder { namespace: key.0.clone(), name: key.1.clone(), uid })
        })
        .collect()
    }

    /// Namespace and name of the pod that has an address, if exactly one has it.
    pub(crate) fn owner_name(&self, address: IpAddr) -> Option<PodKey> {
        match self.holders(address).as_slice() {
            [Holder { namespace, name, .. }] if !namespace.is_empty() => {
                Some((namespace.clone(), name.clone()))
            }
            _ => None,
        }
    }

    /// The pods that an address belongs to, by namespace; none in the second place: a pod of which nothing is
    /// known, or that cannot be a peer. A local endpoint outranks what any pod's status says: it is the lease.
    pub(crate) fn owners(&self, address: IpAddr) -> Vec<(&str, Option<&PodFacts>)> {
        if let Some(ids) = self.endpoints_at.get(&address) {
            return ids
                .iter()
                .filter_map(|id| self.endpoints.get(id))
                .map(|endpoint| {
                    let namespace = endpoint.pod.as_ref().map_or("", |pod| pod.namespace.as_str());
                    (namespace, self.pod_of(endpoint).filter(|pod| pod.is_peer))
                })
                .collect();
        }
        let keys = self.pods_at.get(&address).into_iter().flatten();
        keys.filter_map(|key| Some((key.0.as_str(), Some(self.pods.get(key)?)))).collect()
    }
}

/// Who has an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Holder {
    namespace: String,
    name: String,
    uid: String,
}

impl Holder {
    /// Whether the two are one: same name, and the same incarnation where both say theirs.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        (&self.namespace, &self.name) == (&other.namespace, &other.name)
            && (self.uid.is_empty() || other.uid.is_empty() || self.uid == other.uid)
    }
}

fn remove_from<K: Ord, V: Ord + std::borrow::Borrow<B>, B: Ord + ?Sized>(
    index: &mut BTreeMap<K, BTreeSet<V>>,
    key: &K,
    value: &B,
) {
    if let Some(values) = index.get_mut(key) {
        values.remove(value);
        if values.is_empty() {
            index.remove(key);
        }
    }
}
