//! Policies in the engine's own terms: tiers of rules over peers and ports.
//!
//! Every kind of policy becomes these. Kubernetes' NetworkPolicy is one tier: it isolates the pods that it
//! selects and only ever accepts. The kinds with priorities and denials come before and behind it, as further
//! variants of [`Tier`].

use std::collections::BTreeSet;

use ipnet::IpNet;
use podway_model::k8s::{
    LabelSelector, NetworkPolicy, PolicyPeer, PolicyPort, PolicyType, PortRef, Protocol,
};

use crate::ports::{Grant, PortSet};
use crate::validity;

/// Where a kind of policy stands: what an earlier tier decides, a later one never sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Tier {
    /// NetworkPolicy: final for the pods that it isolates.
    Network,
}

/// Name of a policy, ordered by tier.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct PolicyKey {
    /// Its tier.
    pub(crate) tier: Tier,
    /// Its namespace.
    pub(crate) namespace: String,
    /// Its name.
    pub(crate) name: String,
}

/// A policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Policy {
    /// Pods that it selects, in its namespace.
    pub(crate) subject: LabelSelector,
    /// What it accepts as ingress; none: it does not isolate in this direction.
    pub(crate) ingress: Option<Vec<Rule>>,
    /// What it accepts as egress; none: it does not isolate in this direction.
    pub(crate) egress: Option<Vec<Rule>>,
}

/// A rule that accepts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Rule {
    /// Who may be at the other end.
    pub(crate) peers: Peers,
    /// What may be carried.
    pub(crate) ports: RulePorts,
}

/// Who may be at the other end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Peers {
    /// Anybody, in and out of the cluster.
    Everybody,
    /// Who matches one of these; nobody, if there are none.
    These(Vec<Peer>),
}

/// One kind of peer. What selectors in use say about a pod or an address is the set of peers that it matches.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Peer {
    /// Pods by their labels.
    Pods {
        /// In which namespaces.
        namespaces: Namespaces,
        /// Which pods there.
        pods: LabelSelector,
    },
    /// Addresses.
    Block(Block),
}

/// Which namespaces.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Namespaces {
    /// This one.
    Named(String),
    /// Those with such labels.
    Selected(LabelSelector),
}

/// An address range with holes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Block {
    /// The range.
    pub(crate) cidr: IpNet,
    /// The holes, all of them inside it.
    pub(crate) except: BTreeSet<IpNet>,
}

/// A port name and its protocol.
pub(crate) type PortName = (String, Protocol);

/// What may be carried: numbers, and names that depend on the destination pod.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct RulePorts {
    /// Protocols and numbers.
    pub(crate) fixed: PortSet,
    /// Names.
    pub(crate) names: BTreeSet<PortName>,
}

impl Policy {
    /// The rules in a direction, if it isolates there.
    pub(crate) fn rules(&self, direction: PolicyType) -> Option<&[Rule]> {
        match direction {
            PolicyType::Ingress => self.ingress.as_deref(),
            PolicyType::Egress => self.egress.as_deref(),
        }
    }

    /// Reads a NetworkPolicy. What is not valid in it matches nothing ([`crate::validity`]).
    pub(crate) fn from_network_policy(policy: &NetworkPolicy) -> Self {
        let namespace = &policy.metadata.namespace;
        let spec = &policy.spec;
        let ingress = || spec.ingress.iter().flatten().map(|r| rule(namespace, &r.ports, &r.from)).collect();
        let egress = || spec.egress.iter().flatten().map(|r| rule(namespace, &r.ports, &r.to)).collect();
        Self {
            subject: spec.pod_selector.clone(),
            ingress: spec.isolates(PolicyType::Ingress).then(ingress),
            egress: spec.isolates(PolicyType::Egress).then(egress),
        }
    }
}

fn rule(namespace: &str, ports: &[PolicyPort], peers: &[PolicyPeer]) -> Rule {
    let peers = match peers {
        [] => Peers::Everybody,
        some => Peers::These(some.iter().filter_map(|p| peer(namespace, p)).collect()),
    };
    let mut read = RulePorts::default();
    if ports.is_empty() {
        read.fixed.insert(Grant::All);
    }
    for port in ports.iter().filter(|p| validity::port_is_valid(p)) {
        let protocol = port.protocol.unwrap_or_default();
        match &port.port {
            None => read.fixed.insert(Grant::Whole(protocol)),
            Some(PortRef::Number(first)) => {
                read.fixed.insert(Grant::Range(protocol, *first, port.end_port.unwrap_or(*first)));
            }
            Some(PortRef::Name(name)) => {
                read.names.insert((name.clone(), protocol));
            }
        }
    }
    Rule { peers, ports: read }
}

fn peer(namespace: &str, peer: &PolicyPeer) -> Option<Peer> {
    if !validity::peer_is_valid(peer) {
        return None;
    }
    if let Some(block) = &peer.ip_block {
        let except = block.except.iter().map(IpNet::trunc).collect();
        return Some(Peer::Block(Block { cidr: block.cidr.trunc(), except }));
    }
    let namespaces = match &peer.namespace_selector {
        Some(selector) => Namespaces::Selected(selector.clone()),
        None => Namespaces::Named(namespace.to_owned()),
    };
    Some(Peer::Pods { namespaces, pods: peer.pod_selector.clone().unwrap_or_default() })
}
