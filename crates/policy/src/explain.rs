//! Why: what the engine's own policies say of one flow, with the policy and rule that decide.
//!
//! It reads what the engine compiles from (`rules`, `objects`), not the Kubernetes objects, so it answers for what is
//! enforced. That it says what the oracle says, word for word, is shown by `explanations_are_the_oracles`.

use std::net::IpAddr;

use podway_model::k8s::PolicyType;

use crate::objects::{Objects, PodFacts};
use crate::oracle::{Decision, End, Flow, Judgement, Traffic};
use crate::ports::{Grant, PortSet};
use crate::rules::{Block, Peer, Peers, PolicyKey, Rule, Tier};

impl Objects {
    /// Judges a flow.
    pub(crate) fn explain(&self, flow: &Flow) -> Decision {
        Decision {
            egress: self.explain_end(PolicyType::Egress, &flow.source, &flow.destination, flow),
            ingress: self.explain_end(PolicyType::Ingress, &flow.destination, &flow.source, flow),
        }
    }

    fn explain_end(&self, direction: PolicyType, subject: &End, peer: &End, flow: &Flow) -> Judgement {
        let End::Pod { namespace, name, node, .. } = subject else { return Judgement::NotAPod };
        if matches!(peer, End::Pod { namespace: n, name: m, .. } if n == namespace && m == name) {
            return Judgement::Itself;
        }
        let Some(pod) = self.facts(namespace, name) else {
            if self.node_of(peer) == Some(node) {
                return Judgement::OwnNode;
            }
            return match self.policies_in(Tier::Network, namespace).next() {
                Some(_) => Judgement::Unknown,
                None => Judgement::NotIsolated,
            };
        };
        if pod.host_network {
            return Judgement::NotAPod;
        }
        if self.node_of(peer) == Some(&pod.node) {
            return Judgement::OwnNode;
        }
        let isolating: Vec<(&PolicyKey, &[Rule])> = self
            .policies_in(Tier::Network, namespace)
            .filter(|(_, policy)| policy.subject.matches(&pod.labels))
            .filter_map(|(key, policy)| Some((key, policy.rules(direction)?)))
            .collect();
        if isolating.is_empty() {
            return Judgement::NotIsolated;
        }
        for (key, rules) in &isolating {
            let matching = rules.iter().position(|rule| self.allows(rule, direction, peer, flow));
            if let Some(rule) = matching {
                return Judgement::Allowed { policy: title(key), rule };
            }
        }
        Judgement::Denied { isolated_by: isolating.iter().map(|(key, _)| title(key)).collect() }
    }

    fn allows(&self, rule: &Rule, direction: PolicyType, peer: &End, flow: &Flow) -> bool {
        let fixed = covers(&rule.ports.fixed, flow.traffic);
        let named = || self.names_match(rule, flow);
        match &rule.peers {
            Peers::Everybody => fixed || named(),
            Peers::These(these) => these.iter().any(|item| {
                // Egress: a name belongs to a pod, and a block names no pod.
                let by_name = direction == PolicyType::Ingress || matches!(item, Peer::Pods { .. });
                self.is_peer(item, peer) && (fixed || (by_name && named()))
            }),
        }
    }

    /// Whether a port name of the rule stands for the flow's port on the pod that it goes to.
    fn names_match(&self, rule: &Rule, flow: &Flow) -> bool {
        let Traffic::Port(protocol, port) = flow.traffic else { return false };
        let End::Pod { namespace, name, .. } = &flow.destination else { return false };
        let Some(pod) = self.facts(namespace, name) else { return false };
        let stands_for = |name| pod.ports.get(name).is_some_and(|numbers| numbers.contains(&port));
        rule.ports.names.iter().any(|name| name.1 == protocol && stands_for(name))
    }

    fn is_peer(&self, item: &Peer, end: &End) -> bool {
        match (item, end) {
            (Peer::Block(block), end) => contains(block, end.address()),
            (Peer::Pods { namespaces, pods }, End::Pod { namespace, name, .. }) => {
                self.facts(namespace, name).is_some_and(|pod| {
                    pod.is_peer && self.is_in(namespace, namespaces) && pods.matches(&pod.labels)
                })
            }
            (Peer::Pods { .. }, End::Node { .. } | End::Outside { .. }) => false,
        }
    }

    fn facts(&self, namespace: &str, name: &str) -> Option<&PodFacts> {
        self.pods.get(&(namespace.to_owned(), name.to_owned()))
    }

    /// The node that an end is, if it is one.
    fn node_of<'a>(&'a self, end: &'a End) -> Option<&'a String> {
        match end {
            End::Node { name, .. } => Some(name),
            End::Pod { namespace, name, .. } => {
                self.facts(namespace, name).filter(|pod| pod.host_network).map(|pod| &pod.node)
            }
            End::Outside { .. } => None,
        }
    }

    /// Policies that isolate the pod of a namespace and name in a direction; empty where none does.
    pub(crate) fn isolating(&self, namespace: &str, name: &str, direction: PolicyType) -> Vec<String> {
        let Some(pod) = self.facts(namespace, name) else { return Vec::new() };
        self.policies_in(Tier::Network, namespace)
            .filter(|(_, policy)| policy.rules(direction).is_some() && policy.subject.matches(&pod.labels))
            .map(|(key, _)| title(key))
            .collect()
    }
}

fn covers(ports: &PortSet, traffic: Traffic) -> bool {
    let mut wanted = PortSet::default();
    match traffic {
        Traffic::Port(protocol, port) => wanted.insert(Grant::Range(protocol, port, port)),
        Traffic::Other(_) => wanted.insert(Grant::All),
    }
    ports.covers(&wanted)
}

fn contains(block: &Block, address: IpAddr) -> bool {
    block.cidr.contains(&address) && !block.except.iter().any(|hole| hole.contains(&address))
}

pub(crate) fn title(key: &PolicyKey) -> String {
    format!("{}/{}", key.namespace, key.name)
}
