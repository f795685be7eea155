//! Random clusters and flows: few names, few labels, few numbers, so that they meet.

use podway_model::k8s::{
    Container, ContainerPort, EgressRule, IngressRule, IpBlock, LabelRequirement, LabelSelector, Labels,
    Namespace, NetworkPolicy, Pod, PolicyPeer, PolicyPort, PolicyType, PortRef, Protocol, SelectorOperator,
};
use podway_policy::oracle::{Flow, Traffic};
use proptest::collection::{btree_map, vec};
use proptest::option;
use proptest::prelude::*;
use proptest::sample::{Index, select};

use super::{World, flow, namespace, pod};

const NAMESPACES: [&str; 3] = ["x", "y", "z"];

fn labels() -> impl Strategy<Value = Labels> {
    btree_map(
        select(vec!["app", "tier"]).prop_map(str::to_owned),
        select(vec!["a", "b", "c"]).prop_map(str::to_owned),
        0..=2,
    )
}

fn requirement() -> impl Strategy<Value = LabelRequirement> {
    use SelectorOperator::{DoesNotExist, Exists, In, NotIn};
    let values = vec(select(vec!["a", "b", "c"]).prop_map(str::to_owned), 1..=2);
    (select(vec!["app", "tier"]), select(vec![In, NotIn, Exists, DoesNotExist]), values).prop_map(
        |(key, operator, values)| LabelRequirement {
            key: key.to_owned(),
            operator,
            values: if matches!(operator, In | NotIn) { values } else { vec![] },
        },
    )
}

fn selector() -> impl Strategy<Value = LabelSelector> {
    prop_oneof![
        2 => Just(LabelSelector::default()),
        3 => labels().prop_map(|match_labels| LabelSelector { match_labels, match_expressions: vec![] }),
        2 => vec(requirement(), 1..=2)
            .prop_map(|match_expressions| LabelSelector { match_labels: Labels::new(), match_expressions }),
    ]
}

fn block() -> impl Strategy<Value = IpBlock> {
    let blocks = [
        ("0.0.0.0/0", vec!["10.244.0.0/16", "192.0.2.0/24", "10.244.1.2/32"]),
        ("10.244.0.0/16", vec!["10.244.1.0/24", "10.244.2.3/32"]),
        ("10.244.1.0/28", vec!["10.244.1.2/31"]),
        ("192.0.2.0/24", vec!["192.0.2.128/25"]),
        ("172.18.0.0/24", vec!["172.18.0.2/32"]),
        ("::/0", vec!["fd00:10:244::/48", "2001:db8::/32"]),
        ("fd00:10:244:1::/64", vec!["fd00:10:244:1::2/128"]),
        ("2001:db8::/32", vec!["2001:db8:1::/48"]),
    ];
    (select(blocks.to_vec()), any::<[bool; 3]>()).prop_map(|((cidr, holes), use_hole)| IpBlock {
        cidr: cidr.parse().unwrap(),
        except: holes
            .iter()
            .zip(use_hole)
            .filter(|(_, used)| *used)
            .map(|(h, _)| h.parse().unwrap())
            .collect(),
    })
}

fn peer() -> impl Strategy<Value = PolicyPeer> {
    prop_oneof![
        2 => selector().prop_map(|s| PolicyPeer { pod_selector: Some(s), ..PolicyPeer::default() }),
        2 => (selector(), option::of(selector())).prop_map(|(n, p)| PolicyPeer {
            namespace_selector: Some(n),
            pod_selector: p,
            ip_block: None,
        }),
        2 => block().prop_map(|b| PolicyPeer { ip_block: Some(b), ..PolicyPeer::default() }),
    ]
}

fn protocol() -> impl Strategy<Value = Protocol> {
    select(Protocol::ALL.as_slice())
}

fn port() -> impl Strategy<Value = PolicyPort> {
    let number = select(vec![53u16, 80, 81, 1000, 8080]);
    let range = select(vec![(80u16, 81u16), (53, 90), (1000, 2000), (1, 65535)]);
    let name = select(vec!["http", "dns"]).prop_map(|n| PortRef::Name(n.to_owned()));
    let what = prop_oneof![
        1 => Just((None, None)),
        3 => number.prop_map(|n| (Some(PortRef::Number(n)), None)),
        2 => range.prop_map(|(a, b)| (Some(PortRef::Number(a)), Some(b))),
        3 => name.prop_map(|n| (Some(n), None)),
    ];
    (option::of(protocol()), what).prop_map(|(protocol, (port, end_port))| PolicyPort {
        protocol,
        port,
        end_port,
    })
}

fn rule() -> impl Strategy<Value = (Vec<PolicyPort>, Vec<PolicyPeer>)> {
    (vec(port(), 0..=2), vec(peer(), 0..=2))
}

/// A policy in one of the namespaces, under one of four names.
pub fn policy() -> impl Strategy<Value = NetworkPolicy> {
    let types = select(vec![
        vec![],
        vec![PolicyType::Ingress],
        vec![PolicyType::Egress],
        vec![PolicyType::Ingress, PolicyType::Egress],
    ]);
    let rules = || option::of(vec(rule(), 0..=2));
    (select(&NAMESPACES[..]), 0..4u8, selector(), types, rules(), rules()).prop_map(
        |(namespace, number, pod_selector, policy_types, ingress, egress)| {
            let mut policy = NetworkPolicy::default();
            policy.metadata.namespace = namespace.to_owned();
            policy.metadata.name = format!("p{number}");
            policy.spec.pod_selector = pod_selector;
            policy.spec.policy_types = policy_types;
            let ingress =
                ingress.map(|r| r.into_iter().map(|(ports, from)| IngressRule { ports, from }).collect());
            let egress = egress.map(|r| r.into_iter().map(|(ports, to)| EgressRule { ports, to }).collect());
            policy.spec.ingress = ingress;
            policy.spec.egress = egress;
            policy
        },
    )
}

/// The namespaces, with labels of `keys`.
pub fn any_namespace() -> impl Strategy<Value = Namespace> {
    (select(&NAMESPACES[..]), labels()).prop_map(|(name, labels)| {
        let mut made = namespace(name, &[]);
        made.metadata.labels.extend(labels);
        made
    })
}

/// One of nine pods: three a namespace, on either node; in the host's network or at its end once in a while.
pub fn any_pod() -> impl Strategy<Value = Pod> {
    let port = (select(vec!["http", "dns"]), select(vec![53u16, 80, 8080]), protocol()).prop_map(
        |(name, container_port, protocol)| ContainerPort { name: name.to_owned(), container_port, protocol },
    );
    (0..9u8, labels(), vec(port, 0..=3), 0..20u8).prop_map(|(number, labels, ports, kind)| {
        let node = if number % 3 == 2 { "n2" } else { "n1" };
        let mut made =
            pod(NAMESPACES[usize::from(number / 3)], &format!("pod{number}"), node, 2 + number, &[]);
        made.metadata.labels = labels;
        made.spec.containers = vec![Container { name: "main".to_owned(), ports, restart_policy: None }];
        match kind {
            0 => made.status.phase = "Failed".to_owned(),
            1 => {
                made.spec.host_network = true;
                let node = super::NODES.iter().find(|(n, _)| *n == node).unwrap();
                made.status.pod_ips.iter_mut().zip(node.1).for_each(|(ip, at)| ip.ip = at.to_owned());
            }
            _ => {}
        }
        made
    })
}

/// A cluster. Some namespaces and pods may be missing.
pub fn world() -> impl Strategy<Value = World> {
    (vec(any_namespace(), 0..=4), vec(any_pod(), 1..=9), vec(policy(), 0..=5)).prop_map(
        |(namespaces, pods, policies)| {
            let mut world = World::default();
            for namespace in namespaces {
                put(&mut world.namespaces, namespace, |n| n.metadata.name.clone());
            }
            for pod in pods {
                put(&mut world.pods, pod, |p| p.metadata.name.clone());
            }
            for policy in policies {
                put(&mut world.policies, policy, |p| (p.metadata.namespace.clone(), p.metadata.name.clone()));
            }
            world.ghosts = vec![pod("x", "ghost", "n1", 40, &[]), pod("w", "ghost", "n2", 41, &[])];
            world
        },
    )
}

/// Puts an object among its likes, in the place of one with the same key.
pub fn put<T, K: PartialEq>(all: &mut Vec<T>, one: T, key: impl Fn(&T) -> K) {
    all.retain(|other| key(other) != key(&one));
    all.push(one);
}

/// What a flow is made of, before the cluster is known.
#[derive(Debug, Clone)]
pub struct FlowSeed {
    ends: [Index; 2],
    v6: bool,
    traffic: u8,
}

pub fn flow_seed() -> impl Strategy<Value = FlowSeed> {
    (any::<[Index; 2]>(), any::<bool>(), any::<u8>()).prop_map(|(ends, v6, traffic)| FlowSeed {
        ends,
        v6,
        traffic,
    })
}

/// The flow of a seed in a cluster; none where both ends are nodes or outside, or where it cannot be told.
pub fn seeded_flow(world: &World, seed: &FlowSeed) -> Option<Flow> {
    let wired = world.wired().filter(|p| !p.is_finished());
    let mut ends: Vec<String> =
        wired.map(|p| format!("{}/{}", p.metadata.namespace, p.metadata.name)).collect();
    let pods = ends.len();
    let outside = match seed.v6 {
        false => ["out:192.0.2.7", "out:192.0.2.200", "out:198.51.100.1"],
        true => ["out:2001:db8::7", "out:2001:db8:1::1", "out:2a00::1"],
    };
    ends.extend(outside.map(str::to_owned));
    ends.extend(["node:n1".to_owned(), "node:n2".to_owned()]);
    let [from, to] = seed.ends.map(|index| index.index(ends.len()));
    if from.min(to) >= pods {
        return None;
    }
    let ports = [53, 54, 80, 81, 90, 91, 1000, 1500, 2000, 2001, 8080, 65535];
    // Of a pod that nobody has heard of the oracle does not know the node.
    let unknown = |end: &str, node: &str| {
        let ghost =
            world.ghosts.iter().find(|g| format!("{}/{}", g.metadata.namespace, g.metadata.name) == end);
        ghost.is_some_and(|ghost| node.strip_prefix("node:") == Some(&ghost.spec.node_name))
    };
    if unknown(&ends[from], &ends[to]) || unknown(&ends[to], &ends[from]) {
        return None;
    }
    let traffic = match seed.traffic {
        n @ 0..=219 => {
            let n = usize::from(n);
            Traffic::Port(Protocol::ALL[n % 3], ports[n / 3 % ports.len()])
        }
        220..=245 => Traffic::Other(if seed.v6 { 58 } else { 1 }),
        _ => Traffic::Other(47),
    };
    Some(flow(world.end(&ends[from], seed.v6), world.end(&ends[to], seed.v6), traffic))
}
