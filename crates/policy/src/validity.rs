//! Which parts of a policy can be used. The API server and `podwayctl apply` refuse the others; where one gets
//! through all the same, that part matches nothing: a policy then allows less than was meant, never more.
//!
//! Source: `pkg/apis/networking/validation` and `apimachinery` `ValidateLabelSelector` of Kubernetes.

use podway_model::k8s::{LabelSelector, NetworkPolicy, PolicyPeer, PolicyPort, PortRef, SelectorOperator};

/// Whether a peer says what it wants: an ipBlock alone, or selectors.
pub fn peer_is_valid(peer: &PolicyPeer) -> bool {
    let selectors = [&peer.pod_selector, &peer.namespace_selector];
    match &peer.ip_block {
        Some(block) => {
            selectors.iter().all(|s| s.is_none())
                && block.except.iter().all(|except| block.cidr.contains(except) && *except != block.cidr)
        }
        None => {
            selectors.iter().any(|s| s.is_some()) && selectors.into_iter().flatten().all(selector_is_valid)
        }
    }
}

/// Whether `In` and `NotIn` have values, and `Exists` and `DoesNotExist` have none.
pub fn selector_is_valid(selector: &LabelSelector) -> bool {
    selector.match_expressions.iter().all(|requirement| match requirement.operator {
        SelectorOperator::In | SelectorOperator::NotIn => !requirement.values.is_empty(),
        SelectorOperator::Exists | SelectorOperator::DoesNotExist => requirement.values.is_empty(),
    })
}

/// Whether a port is one: numbers start at 1, `endPort` needs a number that is not above it.
pub fn port_is_valid(port: &PolicyPort) -> bool {
    match (&port.port, port.end_port) {
        (None, None) => true,
        (Some(PortRef::Number(first)), None) => *first > 0,
        (Some(PortRef::Number(first)), Some(last)) => *first > 0 && *first <= last,
        (Some(PortRef::Name(name)), None) => !name.is_empty(),
        (None | Some(PortRef::Name(_)), Some(_)) => false,
    }
}

/// What cannot be used in a policy, one line each, with the path of the field.
pub fn problems(policy: &NetworkPolicy) -> Vec<String> {
    let title = format!("{}/{}", policy.metadata.namespace, policy.metadata.name);
    let mut lines = Vec::new();
    if !selector_is_valid(&policy.spec.pod_selector) {
        lines.push(format!(
            "{title}: spec.podSelector: an operator without its values, or with values it cannot have"
        ));
    }
    for (i, rule) in policy.spec.ingress.iter().flatten().enumerate() {
        rule_problems(&format!("{title}: spec.ingress[{i}]"), &rule.ports, "from", &rule.from, &mut lines);
    }
    for (i, rule) in policy.spec.egress.iter().flatten().enumerate() {
        rule_problems(&format!("{title}: spec.egress[{i}]"), &rule.ports, "to", &rule.to, &mut lines);
    }
    lines
}

fn rule_problems(
    rule: &str,
    ports: &[PolicyPort],
    peers_field: &str,
    peers: &[PolicyPeer],
    lines: &mut Vec<String>,
) {
    for (j, _) in ports.iter().enumerate().filter(|(_, port)| !port_is_valid(port)) {
        lines.push(format!("{rule}.ports[{j}]: ignoring it: not a port, a name or a range"));
    }
    for (j, _) in peers.iter().enumerate().filter(|(_, peer)| !peer_is_valid(peer)) {
        lines.push(format!("{rule}.{peers_field}[{j}]: ignoring it: neither selectors nor an ipBlock alone"));
    }
}
