//! The parts of Kubernetes objects that a network needs, in Kubernetes' own JSON form.
//!
//! Fields that we do not use are left out and ignored on reading: the API grows. Strictness against typing
//! errors belongs to [`crate::document`], the door for what an operator wrote.
//! Source: `k8s.io/api` core/v1 and networking/v1 (`types.go`).

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::ids::InvalidId;

/// Labels of an object.
pub type Labels = BTreeMap<String, String>;

/// `metav1.ObjectMeta`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ObjectMeta {
    /// Name, unique in its namespace.
    pub name: String,
    /// Namespace; empty for objects without one.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub namespace: String,
    /// Unique id of this incarnation.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub uid: String,
    /// Labels.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: Labels,
    /// Annotations.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: Labels,
}

/// `v1.Namespace`. The label `kubernetes.io/metadata.name` is the API server's to set; where there is none,
/// [`crate::document`] sets it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Namespace {
    /// Name and labels.
    pub metadata: ObjectMeta,
}

/// `v1.Pod`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Pod {
    /// Name, namespace, labels.
    pub metadata: ObjectMeta,
    /// What was asked for.
    pub spec: PodSpec,
    /// What is.
    pub status: PodStatus,
}

/// `v1.PodSpec`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodSpec {
    /// Node that the pod was bound to; empty before.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub node_name: String,
    /// Whether the pod shares its node's network namespace.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub host_network: bool,
    /// Containers.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub containers: Vec<Container>,
    /// Init containers; sidecars are among them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub init_containers: Vec<Container>,
}

/// `v1.Container`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Container {
    /// Name.
    pub name: String,
    /// Declared ports; only their names matter to a policy.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<ContainerPort>,
    /// `Always` marks an init container that keeps running (a sidecar).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub restart_policy: Option<String>,
}

/// `v1.ContainerPort`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ContainerPort {
    /// Name that a policy may use.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// Port number.
    pub container_port: u16,
    /// Protocol; TCP where none is given.
    #[serde(default)]
    pub protocol: Protocol,
}

/// `v1.PodStatus`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodStatus {
    /// `Pending`, `Running`, `Succeeded`, `Failed`, `Unknown`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub phase: String,
    /// First address, as text.
    #[serde(rename = "podIP", skip_serializing_if = "String::is_empty")]
    pub pod_ip: String,
    /// All addresses.
    #[serde(rename = "podIPs", skip_serializing_if = "Vec::is_empty")]
    pub pod_ips: Vec<PodIp>,
}

/// `v1.PodIP`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodIp {
    /// The address as text.
    pub ip: String,
}

impl Pod {
    /// Every address of the pod: `status.podIPs`, or `status.podIP` where that is all there is. What does not
    /// parse is left out.
    pub fn addresses(&self) -> Vec<IpAddr> {
        let mut all: Vec<IpAddr> = self.status.pod_ips.iter().filter_map(|ip| ip.ip.parse().ok()).collect();
        if all.is_empty() {
            all.extend(self.status.pod_ip.parse::<IpAddr>());
        }
        all
    }

    /// Whether the pod has ended, so that its addresses may belong to somebody else by now.
    pub fn is_finished(&self) -> bool {
        matches!(self.status.phase.as_str(), "Succeeded" | "Failed")
    }
}

/// Transport protocol of a port.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Protocol {
    /// TCP.
    #[default]
    #[serde(rename = "TCP", alias = "tcp")]
    Tcp,
    /// UDP.
    #[serde(rename = "UDP", alias = "udp")]
    Udp,
    /// SCTP.
    #[serde(rename = "SCTP", alias = "sctp")]
    Sctp,
}

impl Protocol {
    /// All three.
    pub const ALL: [Self; 3] = [Self::Tcp, Self::Udp, Self::Sctp];

    /// IP protocol number (IANA).
    pub fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }
}
impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Sctp => "SCTP",
        })
    }
}
impl FromStr for Protocol {
    type Err = InvalidId;
    fn from_str(text: &str) -> Result<Self, InvalidId> {
        match text {
            "TCP" | "tcp" => Ok(Self::Tcp),
            "UDP" | "udp" => Ok(Self::Udp),
            "SCTP" | "sctp" => Ok(Self::Sctp),
            _ => Err(InvalidId { value: text.to_owned(), expected: "a protocol (TCP, UDP or SCTP)" }),
        }
    }
}

/// `networking/v1.NetworkPolicy`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct NetworkPolicy {
    /// Name, namespace.
    pub metadata: ObjectMeta,
    /// What it says.
    pub spec: NetworkPolicySpec,
}

/// `networking/v1.NetworkPolicySpec`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NetworkPolicySpec {
    /// Pods that it selects, in its own namespace; empty selects all.
    pub pod_selector: LabelSelector,
    /// Allowed sources.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ingress: Option<Vec<IngressRule>>,
    /// Allowed destinations.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub egress: Option<Vec<EgressRule>>,
    /// Directions in which it isolates. Where none are given: Ingress always, Egress if it has egress rules.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub policy_types: Vec<PolicyType>,
}

/// Direction in which a policy isolates.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum PolicyType {
    /// Traffic to the selected pods.
    Ingress,
    /// Traffic from the selected pods.
    Egress,
}

/// `networking/v1.NetworkPolicyIngressRule`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct IngressRule {
    /// Ports; empty means all ports and all protocols.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<PolicyPort>,
    /// Sources; empty means everybody.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub from: Vec<PolicyPeer>,
}

/// `networking/v1.NetworkPolicyEgressRule`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct EgressRule {
    /// Ports; empty means all ports and all protocols.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<PolicyPort>,
    /// Destinations; empty means everybody.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub to: Vec<PolicyPeer>,
}

/// `networking/v1.NetworkPolicyPeer`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PolicyPeer {
    /// Pods: of the policy's own namespace, or of the namespaces that the other selector picks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod_selector: Option<LabelSelector>,
    /// Namespaces.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace_selector: Option<LabelSelector>,
    /// Addresses; excludes the other two.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ip_block: Option<IpBlock>,
}

/// `networking/v1.IPBlock`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IpBlock {
    /// Range.
    pub cidr: IpNet,
    /// Parts of the range that are left out.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub except: Vec<IpNet>,
}

/// `networking/v1.NetworkPolicyPort`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PolicyPort {
    /// Protocol; TCP where none is given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub protocol: Option<Protocol>,
    /// Number or name; none means all ports of the protocol.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<PortRef>,
    /// Last port of a range that starts at a numeric `port`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub end_port: Option<u16>,
}

/// A port by number or by the name of a container port (`intstr.IntOrString`).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(untagged)]
pub enum PortRef {
    /// By number.
    Number(u16),
    /// By name, resolved on the destination pod.
    Name(String),
}

/// `metav1.LabelSelector`: all requirements must hold; an empty one matches everything.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct LabelSelector {
    /// Labels that must have this very value.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub match_labels: Labels,
    /// Further requirements.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub match_expressions: Vec<LabelRequirement>,
}

/// `metav1.LabelSelectorRequirement`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct LabelRequirement {
    /// Label.
    pub key: String,
    /// What must hold.
    pub operator: SelectorOperator,
    /// Values, for `In` and `NotIn`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub values: Vec<String>,
}

/// `metav1.LabelSelectorOperator`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum SelectorOperator {
    /// The label is there and has one of the values.
    In,
    /// The label is missing, or has none of the values.
    NotIn,
    /// The label is there.
    Exists,
    /// The label is missing.
    DoesNotExist,
}

impl LabelSelector {
    /// Whether an object with these labels is selected (`labels.Selector.Matches` of apimachinery).
    pub fn matches(&self, labels: &Labels) -> bool {
        self.match_labels.iter().all(|(key, value)| labels.get(key) == Some(value))
            && self.match_expressions.iter().all(|requirement| requirement.matches(labels))
    }
}

impl LabelRequirement {
    /// Whether an object with these labels meets the requirement.
    pub fn matches(&self, labels: &Labels) -> bool {
        let value = labels.get(&self.key);
        match self.operator {
            SelectorOperator::In => value.is_some_and(|v| self.values.contains(v)),
            SelectorOperator::NotIn => !value.is_some_and(|v| self.values.contains(v)),
            SelectorOperator::Exists => value.is_some(),
            SelectorOperator::DoesNotExist => value.is_none(),
        }
    }
}

impl NetworkPolicySpec {
    /// Whether the policy isolates in this direction. Without `policyTypes`: Ingress always, Egress if there
    /// are egress rules (`types.go`, `PolicyTypes`).
    pub fn isolates(&self, direction: PolicyType) -> bool {
        if self.policy_types.is_empty() {
            direction == PolicyType::Ingress || self.egress.as_ref().is_some_and(|rules| !rules.is_empty())
        } else {
            self.policy_types.contains(&direction)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> Labels {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    fn requirement(operator: SelectorOperator, values: &[&str]) -> LabelRequirement {
        LabelRequirement {
            key: "app".into(),
            operator,
            values: values.iter().map(|v| (*v).to_owned()).collect(),
        }
    }

    #[test]
    fn negative_operators_match_objects_without_the_label() {
        use SelectorOperator::{DoesNotExist, Exists, In, NotIn};
        let (with, other, without) = (labels(&[("app", "a")]), labels(&[("app", "b")]), labels(&[]));
        for (operator, values, expected) in [
            (In, &["a"][..], [true, false, false]),
            (NotIn, &["a"][..], [false, true, true]),
            (Exists, &[][..], [true, true, false]),
            (DoesNotExist, &[][..], [false, false, true]),
        ] {
            let requirement = requirement(operator, values);
            let seen = [&with, &other, &without].map(|l| requirement.matches(l));
            assert_eq!(seen, expected, "{operator:?}");
        }
    }

    #[test]
    fn missing_policy_types_mean_ingress_and_egress_only_with_rules() {
        let mut spec = NetworkPolicySpec::default();
        assert!(spec.isolates(PolicyType::Ingress) && !spec.isolates(PolicyType::Egress));
        spec.egress = Some(vec![]);
        assert!(!spec.isolates(PolicyType::Egress));
        spec.egress = Some(vec![EgressRule::default()]);
        assert!(spec.isolates(PolicyType::Ingress) && spec.isolates(PolicyType::Egress));
        spec.policy_types = vec![PolicyType::Egress];
        assert!(!spec.isolates(PolicyType::Ingress));
    }

    #[test]
    fn reads_kubernetes_json() {
        let policy: NetworkPolicy = serde_json::from_str(
            r#"{"apiVersion":"networking.k8s.io/v1","kind":"NetworkPolicy","metadata":{"name":"p","namespace":"d"},
                "spec":{"podSelector":{},"ingress":[{"ports":[{"port":"http"},{"protocol":"UDP","port":53,"endPort":60}],
                "from":[{"ipBlock":{"cidr":"10.0.0.0/8","except":["10.1.0.0/16"]}}]}]}}"#,
        )
        .unwrap();
        let rule = &policy.spec.ingress.as_ref().unwrap()[0];
        assert_eq!(rule.ports[0].port, Some(PortRef::Name("http".into())));
        assert_eq!(
            (rule.ports[1].port.clone(), rule.ports[1].end_port),
            (Some(PortRef::Number(53)), Some(60))
        );
        assert_eq!(rule.from[0].ip_block.as_ref().unwrap().except.len(), 1);
    }
}
