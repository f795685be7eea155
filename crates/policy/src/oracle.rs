//! What Kubernetes says about one new connection: naive, slow and meant to be read beside the specification.
//!
//! No index, no cache, no id: for a flow it walks every policy, every rule and every peer. The engine and the
//! kernel are judged by it, so it shares nothing with them but [`podway_model::k8s`] and [`crate::validity`].
//! A flow is judged by its first packet, after destination NAT and before source NAT; replies follow the
//! connection.
//!
//! Source: `networking/v1` `types.go`, and the Kubernetes documentation on network policies. Where they leave
//! a choice: ipBlocks match any address, pods included; a pod and its own node always reach each other; pods in
//! the host's network and pods that have ended are not pods to a policy.

use std::fmt;
use std::net::IpAddr;

use podway_model::k8s::{
    IpBlock, Namespace, NetworkPolicy, Pod, PolicyPeer, PolicyPort, PolicyType, PortRef, Protocol,
};

use crate::validity;

/// The objects of a cluster.
#[derive(Debug, Clone, Copy)]
pub struct Cluster<'a> {
    /// All namespaces. A pod whose namespace is not among them lives in one without labels.
    pub namespaces: &'a [Namespace],
    /// All pods.
    pub pods: &'a [Pod],
    /// All policies.
    pub policies: &'a [NetworkPolicy],
}

/// One end of a flow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// A pod. One that is not among the objects is closed if any policy exists in its namespace, to all but its
    /// own node, as a pod is that a policy isolates and nothing is allowed to.
    Pod {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
        /// The node that wired it: known also where its object is not.
        node: String,
        /// The address of the pod that the packet carries.
        address: IpAddr,
    },
    /// A node, or a pod in its host network.
    Node {
        /// Its name.
        name: String,
        /// The address of the node that the packet carries.
        address: IpAddr,
    },
    /// Anybody else.
    Outside {
        /// The address that the packet carries.
        address: IpAddr,
    },
}

impl End {
    /// The address that the packet carries for this end.
    pub fn address(&self) -> IpAddr {
        match self {
            Self::Pod { address, .. } | Self::Node { address, .. } | Self::Outside { address } => *address,
        }
    }
}

/// What a flow carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Traffic {
    /// A protocol with ports, and the destination port.
    Port(Protocol, u16),
    /// Any other IP protocol by its number, ICMP (1) and ICMPv6 (58) echo among them. Matched only by rules
    /// without ports.
    Other(u8),
}

/// A new connection, or the first packet of what counts as one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flow {
    /// Who opens it.
    pub source: End,
    /// Who is meant.
    pub destination: End,
    /// What it carries.
    pub traffic: Traffic,
}

/// What became of a flow, per direction of policy, in words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// As egress of the source.
    pub egress: Judgement,
    /// As ingress of the destination.
    pub ingress: Judgement,
}

impl Decision {
    /// Whether both ends allow the flow.
    pub fn allowed(&self) -> bool {
        self.egress.allows() && self.ingress.allows()
    }
}

impl fmt::Display for Decision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = if self.allowed() { "allowed" } else { "denied" };
        write!(f, "{word}: egress {}; ingress {}", self.egress, self.ingress)
    }
}

/// What one end says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Judgement {
    /// This end is not a pod.
    NotAPod,
    /// No policy isolates the pod in this direction.
    NotIsolated,
    /// The other end is the pod's own node.
    OwnNode,
    /// A pod and itself.
    Itself,
    /// A rule matches.
    Allowed {
        /// `namespace/name` of the policy.
        policy: String,
        /// Which of its rules in this direction, counted from 0.
        rule: usize,
    },
    /// Policies isolate the pod and no rule of theirs matches.
    Denied {
        /// `namespace/name` of the policies that isolate it.
        isolated_by: Vec<String>,
    },
    /// The pod's object is not known, and its namespace has policies.
    Unknown,
}

impl Judgement {
    /// Whether this end lets the flow pass.
    pub fn allows(&self) -> bool {
        !matches!(self, Self::Denied { .. } | Self::Unknown)
    }
}

impl fmt::Display for Judgement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotAPod => f.write_str("not a pod"),
            Self::NotIsolated => f.write_str("not isolated"),
            Self::OwnNode => f.write_str("own node"),
            Self::Itself => f.write_str("the pod itself"),
            Self::Allowed { policy, rule } => write!(f, "allowed by {policy} rule {rule}"),
            Self::Denied { isolated_by } => {
                write!(f, "isolated by {}, no rule matched", isolated_by.join(", "))
            }
            Self::Unknown => f.write_str("pod object unknown, and its namespace has policies"),
        }
    }
}

impl Cluster<'_> {
    /// Judges a flow.
    pub fn judge(&self, flow: &Flow) -> Decision {
        Decision {
            egress: self.judge_end(PolicyType::Egress, &flow.source, &flow.destination, flow),
            ingress: self.judge_end(PolicyType::Ingress, &flow.destination, &flow.source, flow),
        }
    }

    /// What the policies of `subject` say in this direction, when `peer` is at the other end.
    fn judge_end(&self, direction: PolicyType, subject: &End, peer: &End, flow: &Flow) -> Judgement {
        let End::Pod { namespace, name, node: own_node, .. } = subject else { return Judgement::NotAPod };
        if matches!(peer, End::Pod { namespace: n, name: m, .. } if n == namespace && m == name) {
            return Judgement::Itself;
        }
        let Some(pod) = self.pod(namespace, name) else {
            if self.node_of(peer).is_some_and(|node| node == own_node) {
                return Judgement::OwnNode;
            }
            return match self.policies.iter().any(|p| p.metadata.namespace == *namespace) {
                true => Judgement::Unknown,
                false => Judgement::NotIsolated,
            };
        };
        if pod.spec.host_network {
            return Judgement::NotAPod;
        }
        if self.node_of(peer).is_some_and(|node| node == pod.spec.node_name) {
            return Judgement::OwnNode;
        }
        let isolating: Vec<&NetworkPolicy> = self
            .policies
            .iter()
            .filter(|p| p.metadata.namespace == *namespace)
            .filter(|p| p.spec.isolates(direction))
            .filter(|p| p.spec.pod_selector.matches(&pod.metadata.labels))
            .collect();
        if isolating.is_empty() {
            return Judgement::NotIsolated;
        }
        for policy in &isolating {
            for (rule, (ports, peers)) in rules(policy, direction).into_iter().enumerate() {
                let by_name = |peer: Option<&PolicyPeer>| {
                    // Egress: a name belongs to a pod, and an ipBlock names no pod.
                    direction == PolicyType::Ingress || peer.is_none_or(|p| p.ip_block.is_none())
                };
                let ports_match = |names: bool| {
                    ports.is_empty()
                        || ports.iter().any(|p| self.matches_port(p, names, flow.traffic, &flow.destination))
                };
                let matches = match peers {
                    [] => ports_match(by_name(None)),
                    some => some
                        .iter()
                        .any(|p| self.matches_peer(p, policy, peer) && ports_match(by_name(Some(p)))),
                };
                if matches {
                    return Judgement::Allowed { policy: title(policy), rule };
                }
            }
        }
        Judgement::Denied { isolated_by: isolating.into_iter().map(title).collect() }
    }

    /// Whether one `from` or `to` item of a policy matches that end.
    fn matches_peer(&self, item: &PolicyPeer, policy: &NetworkPolicy, end: &End) -> bool {
        if !validity::peer_is_valid(item) {
            return false;
        }
        if let Some(block) = &item.ip_block {
            return block_contains(block, end.address());
        }
        let End::Pod { namespace, name, .. } = end else { return false };
        let Some(pod) = self.pod(namespace, name) else { return false };
        if pod.spec.host_network || pod.is_finished() {
            return false;
        }
        let namespace_matches = match &item.namespace_selector {
            Some(selector) => selector.matches(self.namespace_labels(namespace)),
            None => *namespace == policy.metadata.namespace,
        };
        namespace_matches && item.pod_selector.as_ref().is_none_or(|s| s.matches(&pod.metadata.labels))
    }

    /// Whether one `ports` item matches; items with a name only where `names` says so.
    fn matches_port(&self, item: &PolicyPort, names: bool, traffic: Traffic, destination: &End) -> bool {
        let Traffic::Port(protocol, port) = traffic else { return false };
        if !validity::port_is_valid(item) || protocol != item.protocol.unwrap_or_default() {
            return false;
        }
        match (&item.port, item.end_port) {
            (None, _) => true,
            (Some(PortRef::Number(first)), None) => port == *first,
            (Some(PortRef::Number(first)), Some(last)) => (*first..=last).contains(&port),
            (Some(PortRef::Name(wanted)), _) => {
                // The name is looked up on the destination pod; who is no pod has no names.
                let End::Pod { namespace, name, .. } = destination else { return false };
                let Some(pod) = self.pod(namespace, name) else { return false };
                names
                    && !pod.spec.host_network
                    && !pod.is_finished()
                    && crate::named_ports(pod)
                        .any(|p| p.name == *wanted && p.protocol == protocol && p.container_port == port)
            }
        }
    }

    fn pod(&self, namespace: &str, name: &str) -> Option<&Pod> {
        self.pods.iter().find(|p| p.metadata.namespace == namespace && p.metadata.name == name)
    }

    /// The node that an end is, if it is one.
    fn node_of<'e>(&'e self, end: &'e End) -> Option<&'e str> {
        match end {
            End::Node { name, .. } => Some(name),
            End::Pod { namespace, name, .. } => {
                self.pod(namespace, name).filter(|p| p.spec.host_network).map(|p| p.spec.node_name.as_str())
            }
            End::Outside { .. } => None,
        }
    }

    fn namespace_labels(&self, name: &str) -> &podway_model::k8s::Labels {
        static NONE: podway_model::k8s::Labels = podway_model::k8s::Labels::new();
        self.namespaces.iter().find(|n| n.metadata.name == name).map_or(&NONE, |n| &n.metadata.labels)
    }
}

/// The rules of a policy in one direction, as (ports, peers).
fn rules(policy: &NetworkPolicy, direction: PolicyType) -> Vec<(&[PolicyPort], &[PolicyPeer])> {
    match direction {
        PolicyType::Ingress => policy
            .spec
            .ingress
            .iter()
            .flatten()
            .map(|rule| (rule.ports.as_slice(), rule.from.as_slice()))
            .collect(),
        PolicyType::Egress => policy
            .spec
            .egress
            .iter()
            .flatten()
            .map(|rule| (rule.ports.as_slice(), rule.to.as_slice()))
            .collect(),
    }
}

fn block_contains(block: &IpBlock, address: IpAddr) -> bool {
    block.cidr.contains(&address) && !block.except.iter().any(|except| except.contains(&address))
}

fn title(policy: &NetworkPolicy) -> String {
    format!("{}/{}", policy.metadata.namespace, policy.metadata.name)
}
