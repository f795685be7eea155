//! Questions of people: what becomes of a connection, which policies there are, and whom they isolate.

use std::net::IpAddr;

use podway_model::k8s::{PolicyType, Protocol};
use podway_model::socket::{PolicyEntry, PolicyJudgement, PolicyList, PolicyPod, PolicyReply, PolicyTrace};
use podway_policy::Engine;
use podway_policy::oracle::{End, Flow, Judgement, Traffic};

/// What an end may look like.
const END: &str = "NAMESPACE/POD of a pod with an address, an address, or node/NAME";

/// What becomes of a new connection, in each family that both ends have. `here`: name of this node.
pub(crate) fn trace(engine: &Engine, here: &str, from: &str, to: &str, traffic: &str) -> PolicyReply {
    let (sources, destinations) = match (ends(engine, here, from), ends(engine, here, to)) {
        (Some(sources), Some(destinations)) => (sources, destinations),
        (None, _) => return refused("from", from, END),
        (_, None) => return refused("to", to, END),
    };
    let mut flows = Vec::new();
    for v6 in [false, true] {
        let Some(traffic) = parse_traffic(traffic, v6) else {
            return refused("traffic", traffic, "PORT, tcp/PORT, udp/PORT, sctp/PORT or icmp");
        };
        let of = |ends: &[Candidate]| ends.iter().find_map(|end| end.in_family(v6));
        if let (Some(source), Some(destination)) = (of(&sources), of(&destinations)) {
            flows.push(explain(engine, &Flow { source, destination, traffic }));
        }
    }
    if flows.is_empty() {
        return refused("to", to, "an address of the same family as the other end's");
    }
    // Two nodes have a flow in both families, and nothing to tell them apart by.
    flows.dedup();
    PolicyReply::Traced { flows }
}

/// An end, or a node whose address does not matter.
enum Candidate {
    Known(End),
    Node(String),
}

impl Candidate {
    fn in_family(&self, v6: bool) -> Option<End> {
        match self {
            Self::Known(end) => (end.address().is_ipv6() == v6).then(|| end.clone()),
            Self::Node(name) => {
                let address = if v6 { IpAddr::from([0_u16; 8]) } else { IpAddr::from([0_u8; 4]) };
                Some(End::Node { name: name.clone(), address })
            }
        }
    }
}

/// Whom a text names; none: nobody.
fn ends(engine: &Engine, here: &str, text: &str) -> Option<Vec<Candidate>> {
    if let Ok(address) = text.parse() {
        return Some(vec![Candidate::Known(engine.end_at(address, here))]);
    }
    let (namespace, name) = text.split_once('/').filter(|(_, name)| !name.is_empty())?;
    let pods = engine.pod_ends(namespace, name, here);
    match (pods.is_empty(), namespace) {
        (false, _) => Some(pods.into_iter().map(Candidate::Known).collect()),
        (true, "node") => Some(vec![Candidate::Node(name.to_owned())]),
        (true, _) => None,
    }
}

fn parse_traffic(text: &str, v6: bool) -> Option<Traffic> {
    if text == "icmp" {
        return Some(Traffic::Other(if v6 { 58 } else { 1 }));
    }
    let (protocol, port) = match text.split_once('/') {
        Some((protocol, port)) => (protocol.parse::<Protocol>().ok()?, port),
        None => (Protocol::default(), text),
    };
    Some(Traffic::Port(protocol, port.parse().ok().filter(|port| *port > 0)?))
}

fn refused(field: &str, value: &str, expected: &str) -> PolicyReply {
    PolicyReply::Refused { field: field.to_owned(), value: value.to_owned(), expected: expected.to_owned() }
}

fn explain(engine: &Engine, flow: &Flow) -> PolicyTrace {
    let decision = engine.explain(flow);
    PolicyTrace {
        from: end_text(&flow.source),
        to: end_text(&flow.destination),
        traffic: traffic_text(flow.traffic),
        allowed: decision.allowed(),
        egress: judgement(&decision.egress),
        ingress: judgement(&decision.ingress),
    }
}

/// Who an end is, for people.
pub(crate) fn end_text(end: &End) -> String {
    match end {
        End::Pod { namespace, name, address, .. } => format!("{namespace}/{name} ({address})"),
        End::Node { name, address } if address.is_unspecified() => format!("node/{name}"),
        End::Node { name, address } => format!("node/{name} ({address})"),
        End::Outside { address } => format!("outside ({address})"),
    }
}

/// What a flow carries, for people.
pub(crate) fn traffic_text(traffic: Traffic) -> String {
    match traffic {
        Traffic::Port(protocol, port) => format!("{}/{port}", protocol.to_string().to_lowercase()),
        Traffic::Other(1 | 58) => "icmp".to_owned(),
        Traffic::Other(number) => format!("protocol {number}"),
    }
}

fn judgement(judgement: &Judgement) -> PolicyJudgement {
    let (policies, rule) = match judgement {
        Judgement::Allowed { policy, rule } => (vec![policy.clone()], Some(*rule)),
        Judgement::Denied { isolated_by } => (isolated_by.clone(), None),
        _ => (Vec::new(), None),
    };
    PolicyJudgement { allowed: judgement.allows(), reason: judgement.to_string(), policies, rule }
}

/// Policies, and the local pods that they isolate.
pub(crate) fn list(engine: &Engine) -> PolicyList {
    let word = |direction: PolicyType| match direction {
        PolicyType::Ingress => "ingress".to_owned(),
        PolicyType::Egress => "egress".to_owned(),
    };
    let policies = engine.list_policies().into_iter().map(|policy| PolicyEntry {
        name: policy.name,
        directions: policy.directions.into_iter().map(word).collect(),
        pods: policy.pods,
    });
    let pods = engine.list_endpoints().into_iter().map(|endpoint| PolicyPod {
        pod: endpoint.pod,
        interface: endpoint.interface,
        addresses: endpoint.addresses,
        known: endpoint.known,
        ingress: endpoint.ingress.0,
        ingress_set: endpoint.ingress.1,
        egress: endpoint.egress.0,
        egress_set: endpoint.egress.1,
    });
    PolicyList { policies: policies.collect(), pods: pods.collect() }
}
