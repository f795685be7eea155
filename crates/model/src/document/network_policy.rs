//! `networking.k8s.io/v1 NetworkPolicy`, with the checks of the API server
//! (`pkg/apis/networking/validation/validation.go`). A typing error in a policy opens or closes more than was
//! meant, so unknown keys of the `spec` are refused, as `kubectl` does with `--validate=strict`.

use ipnet::IpNet;

use super::kubernetes::{self, port_number};
use super::labels;
use super::reader::{Field, Map};
use crate::k8s::{
    EgressRule, IngressRule, IpBlock, LabelSelector, NetworkPolicy, NetworkPolicySpec, PolicyPeer,
    PolicyPort, PolicyType, PortRef,
};

const PEERS: &str = "a list of peers (podSelector, namespaceSelector or ipBlock)";
const PORTS: &str = "a list of ports (protocol, port, endPort)";
const PORT_REF: &str = "a port from 1 to 65535, or the name of a container port (at most 15 lower-case letters, \
                        digits and '-', with a letter)";

/// Reads an object whose `apiVersion` and `kind` were read already.
pub(super) fn read(map: &Map<'_>) -> Option<NetworkPolicy> {
    let metadata =
        map.required("metadata", "a mapping with a name").and_then(|f| kubernetes::metadata(&f, true));
    let spec = map.required("spec", "a mapping with a podSelector").and_then(|f| read_spec(&f));
    // Written by API servers up to 1.27; says nothing.
    map.has("status");
    map.refuse_unknown();
    Some(NetworkPolicy { metadata: metadata?, spec: spec? })
}

fn read_spec(field: &Field<'_>) -> Option<NetworkPolicySpec> {
    let map = field.map("a policy's spec")?;
    let pod_selector = map.or("podSelector", LabelSelector::default(), labels::selector);
    let ingress = map.maybe("ingress", |f| f.list("a list of rules", ingress_rule));
    let egress = map.maybe("egress", |f| f.list("a list of rules", egress_rule));
    let policy_types = map.or("policyTypes", vec![], |f| {
        let words = [("Ingress", PolicyType::Ingress), ("Egress", PolicyType::Egress)];
        let types = f.list("a list of Ingress and Egress", |item| item.one_of(&words))?;
        if types.len() > 2 {
            f.note(format!("{} entries", types.len()), "at most two of them");
            return None;
        }
        Some(types)
    });
    map.refuse_unknown();
    Some(NetworkPolicySpec {
        pod_selector: pod_selector?,
        ingress: ingress?,
        egress: egress?,
        policy_types: policy_types?,
    })
}

fn ingress_rule(field: &Field<'_>) -> Option<IngressRule> {
    let map = field.map("a rule ({} allows everything)")?;
    let ports = map.or("ports", vec![], |f| f.list(PORTS, port));
    let from = map.or("from", vec![], |f| f.list(PEERS, peer));
    map.refuse_unknown();
    Some(IngressRule { ports: ports?, from: from? })
}

fn egress_rule(field: &Field<'_>) -> Option<EgressRule> {
    let map = field.map("a rule ({} allows everything)")?;
    let ports = map.or("ports", vec![], |f| f.list(PORTS, port));
    let to = map.or("to", vec![], |f| f.list(PEERS, peer));
    map.refuse_unknown();
    Some(EgressRule { ports: ports?, to: to? })
}

fn peer(field: &Field<'_>) -> Option<PolicyPeer> {
    let map = field.map("a peer (podSelector, namespaceSelector or ipBlock)")?;
    let pod_selector = map.maybe("podSelector", labels::selector);
    let namespace_selector = map.maybe("namespaceSelector", labels::selector);
    let ip_block = map.maybe("ipBlock", ip_block);
    let (pods, namespaces, block) =
        (map.has("podSelector"), map.has("namespaceSelector"), map.has("ipBlock"));
    map.refuse_unknown();
    // ValidateNetworkPolicyPeer.
    if !pods && !namespaces && !block {
        field.note("no peer", "podSelector, namespaceSelector or ipBlock");
        return None;
    }
    if block && (pods || namespaces) {
        field.note("ipBlock beside a selector", "either ipBlock, or podSelector and namespaceSelector");
        return None;
    }
    Some(PolicyPeer {
        pod_selector: pod_selector?,
        namespace_selector: namespace_selector?,
        ip_block: ip_block?,
    })
}

/// `ValidateIPBlock`.
fn ip_block(field: &Field<'_>) -> Option<IpBlock> {
    let map = field.map("an ipBlock (cidr, except)")?;
    let cidr = map.required("cidr", CIDR).and_then(|f| cidr(&f));
    let except = map.or("except", vec![], |f| {
        f.list("a list of prefixes", |item| {
            let except = self::cidr(item)?;
            let Some(outer) = cidr else { return Some(except) };
            let inside = outer.contains(&except) && outer != except;
            if !inside {
                item.wrong(format!("a prefix inside {outer}, and smaller"));
            }
            inside.then_some(except)
        })
    });
    map.refuse_unknown();
    Some(IpBlock { cidr: cidr?, except: except? })
}

const CIDR: &str = "an IPv4 or IPv6 prefix (10.0.0.0/8)";

/// A prefix. Host bits are cut off, as Go's `net.ParseCIDR` does for the API server's users.
fn cidr(field: &Field<'_>) -> Option<IpNet> {
    field.parse::<IpNet>(CIDR).map(|net| net.trunc())
}

/// `ValidateNetworkPolicyPort`.
fn port(field: &Field<'_>) -> Option<PolicyPort> {
    let map = field.map("a port (protocol, port, endPort)")?;
    let protocol = map.maybe("protocol", kubernetes::protocol);
    let port = map.maybe("port", port_ref);
    let end_port = map.maybe("endPort", |f| {
        let end = port_number(f)?;
        let start = map.optional("port");
        match start.as_ref().map(Field::as_integer) {
            None => f.wrong("no endPort without a port"),
            Some(None) => f.wrong("no endPort beside a port name"),
            Some(Some(start)) if i128::from(end) < start => f.wrong(format!("a port from {start} to 65535")),
            Some(Some(_)) => return Some(end),
        }
        None
    });
    map.refuse_unknown();
    Some(PolicyPort { protocol: protocol?, port: port?, end_port: end_port? })
}

fn port_ref(field: &Field<'_>) -> Option<PortRef> {
    let Some(name) = field.as_text() else {
        let number = field.integer_in(1..=65535, PORT_REF)?;
        return u16::try_from(number).ok().map(PortRef::Number);
    };
    if !is_port_name(name) {
        field.wrong(PORT_REF);
        return None;
    }
    Some(PortRef::Name(name.to_owned()))
}

/// `IsValidPortName` of apimachinery (RFC 6335 section 5.1, lower case).
fn is_port_name(name: &str) -> bool {
    let bytes = name.as_bytes();
    (1..=15).contains(&bytes.len())
        && bytes.iter().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-')
        && bytes.iter().any(u8::is_ascii_lowercase)
        && !name.starts_with('-')
        && !name.ends_with('-')
        && !name.contains("--")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn port_names_follow_the_api_server() {
        for good in ["http", "a", "web-1", "123456789012345".replace('1', "a").as_str()] {
            assert!(is_port_name(good), "{good}");
        }
        for bad in ["", "80", "HTTP", "-a", "a-", "a--b", "a_b", "abcdefghijklmnop"] {
            assert!(!is_port_name(bad), "{bad}");
        }
    }
}
