//! What NetworkPolicy v1 says, case by case: every rule and every edge that a source or a user's pain names.
//!
//! The fixture: namespaces `x` (team=red), `y` (team=blue) and `z` (no label); pods `x/a`, `x/b`, `y/a` on node
//! `n1`, `x/c`, `y/b`, `z/a` on `n2`, each labelled `app=<its name>`; port `http` is TCP 80 on pods named `b` and
//! 8080 on the others, `dns` is UDP 53; `x/b` has a sidecar with `metrics` (TCP 9090) and an init container with
//! `setup` (TCP 7000); `y/host` is in the network of `n1`; `x/done` has ended, its address is now that of `z/a`.

use podway_model::k8s::{Container, ContainerPort, NetworkPolicy, Pod, Protocol};

use super::{World, namespace, pod};

/// One expectation: families (`4`, `6` or `46`), source, destination, traffic, allowed.
pub type Check = (&'static str, &'static str, &'static str, &'static str, bool);

/// Policies, and what follows.
pub struct Case {
    pub name: &'static str,
    pub policies: &'static str,
    pub checks: &'static [Check],
}

/// The fixture with a case's policies.
pub fn world(case: &Case) -> World {
    let policies = serde_saphyr::from_str::<Vec<NetworkPolicy>>(case.policies);
    World { policies: policies.unwrap_or_else(|e| panic!("{}: {e}", case.name)), ..fixture() }
}

pub fn fixture() -> World {
    let port = |name: &str, number: u16, protocol| ContainerPort {
        name: name.to_owned(),
        container_port: number,
        protocol,
    };
    let with_ports = |mut pod: Pod| {
        let http = if pod.metadata.name == "b" { 80 } else { 8080 };
        pod.spec.containers = vec![Container {
            name: "main".to_owned(),
            ports: vec![port("http", http, Protocol::Tcp), port("dns", 53, Protocol::Udp)],
            restart_policy: None,
        }];
        pod
    };
    let mut pods: Vec<Pod> = [
        ("x", "a", "n1", 2),
        ("x", "b", "n1", 3),
        ("x", "c", "n2", 4),
        ("y", "a", "n1", 12),
        ("y", "b", "n2", 13),
        ("z", "a", "n2", 22),
    ]
    .into_iter()
    .map(|(ns, name, node, number)| with_ports(pod(ns, name, node, number, &[("app", name)])))
    .collect();
    pods[1].spec.init_containers = vec![
        Container {
            name: "sidecar".to_owned(),
            ports: vec![port("metrics", 9090, Protocol::Tcp)],
            restart_policy: Some("Always".to_owned()),
        },
        Container {
            name: "init".to_owned(),
            ports: vec![port("setup", 7000, Protocol::Tcp)],
            restart_policy: None,
        },
    ];
    let mut host = pod("y", "host", "n1", 99, &[("app", "host")]);
    host.spec.host_network = true;
    host.status.pod_ips.iter_mut().zip(super::NODES[0].1).for_each(|(ip, node)| ip.ip = node.to_owned());
    let mut done = pod("x", "done", "n2", 22, &[("app", "done")]);
    done.status.phase = "Succeeded".to_owned();
    pods.extend([host, done]);
    let mut namespaces = vec![namespace("x", &[("team", "red")]), namespace("y", &[("team", "blue")])];
    namespaces.push(namespace("z", &[]));
    let ghosts = vec![pod("x", "ghost", "n1", 40, &[]), pod("w", "ghost", "n1", 41, &[])];
    World { namespaces, pods, policies: vec![], ghosts }
}

pub const CASES: &[Case] = &[
    Case {
        name: "no policy: everything flows",
        policies: "[]",
        checks: &[
            ("46", "x/a", "y/b", "tcp:80", true),
            ("46", "y/b", "x/a", "sctp:7", true),
            ("46", "x/a", "x/b", "icmp", true),
            ("4", "out:192.0.2.1", "x/a", "udp:9", true),
            ("6", "x/a", "out:2001:db8::1", "tcp:443", true),
            ("46", "x/a", "x/b", "proto:47", true),
        ],
    },
    Case {
        name: "policyTypes missing: ingress always, egress not without egress rules",
        policies: "[{metadata: {name: p, namespace: x}, spec: {podSelector: {}}}]",
        checks: &[
            ("46", "y/a", "x/a", "tcp:80", false),
            ("46", "x/a", "x/b", "tcp:80", false),
            ("46", "x/a", "y/a", "tcp:80", true),
        ],
    },
    Case {
        name: "policyTypes missing: egress too where there are egress rules",
        policies: "[{metadata: {name: p, namespace: x}, spec: {podSelector: {}, \
                    egress: [{to: [{namespaceSelector: {matchLabels: {team: blue}}}]}]}}]",
        checks: &[
            ("46", "x/a", "y/a", "tcp:80", true),
            ("46", "x/a", "z/a", "tcp:80", false),
            ("46", "z/a", "x/a", "tcp:80", false),
        ],
    },
    Case {
        name: "egress only: ingress stays open",
        policies: "[{metadata: {name: p, namespace: x}, spec: {podSelector: {}, policyTypes: [Egress]}}]",
        checks: &[
            ("46", "y/a", "x/a", "tcp:80", true),
            ("46", "x/a", "y/a", "tcp:80", false),
            ("4", "x/a", "out:192.0.2.1", "tcp:80", false),
        ],
    },
    Case {
        name: "podSelector absent selects the whole namespace, and no other",
        policies: "[{metadata: {name: p, namespace: x}, spec: {policyTypes: [Ingress]}}]",
        checks: &[
            ("46", "y/a", "x/c", "tcp:80", false),
            ("46", "x/a", "y/a", "tcp:80", true),
            ("46", "x/a", "z/a", "tcp:80", true),
        ],
    },
    Case {
        name: "an empty list of rules isolates",
        policies: "[{metadata: {name: p, namespace: x}, spec: {policyTypes: [Ingress, Egress], ingress: [], egress: []}}]",
        checks: &[
            ("46", "y/a", "x/a", "tcp:80", false),
            ("46", "y/a", "x/a", "udp:53", false),
            ("46", "y/a", "x/a", "sctp:5", false),
            ("46", "y/a", "x/a", "icmp", false),
            ("46", "x/a", "y/a", "tcp:80", false),
        ],
    },
    Case {
        name: "an empty rule allows all peers, ports and protocols",
        policies: "[{metadata: {name: p, namespace: x}, spec: {policyTypes: [Ingress, Egress], ingress: [{}]}}]",
        checks: &[
            ("46", "y/a", "x/a", "tcp:80", true),
            ("46", "y/a", "x/a", "sctp:80", true),
            ("46", "y/a", "x/a", "icmp", true),
            ("46", "y/a", "x/a", "proto:47", true),
            ("4", "out:192.0.2.1", "x/a", "udp:1", true),
            ("46", "x/a", "y/a", "tcp:80", false),
        ],
    },
    Case {
        name: "no ports: all ports and all protocols, towards those peers only",
        policies: "[{metadata: {name: p, namespace: x}, spec: {ingress: [{from: [{podSelector: {matchLabels: {app: a}}}]}]}}]",
        checks: &[
            ("46", "x/a", "x/b", "tcp:1", true),
            ("46", "x/a", "x/b", "icmp", true),
            ("46", "x/a", "x/b", "proto:50", true),
            ("46", "x/c", "x/b", "icmp", false),
            ("46", "y/a", "x/b", "tcp:1", false),
        ],
    },
    Case {
        name: "no peers: all peers, in and out of the cluster, on those ports only",
        policies: "[{metadata: {name: p, namespace: x}, spec: {ingress: [{ports: [{port: 80}]}]}}]",
        checks: &[
            ("46", "y/a", "x/a", "tcp:80", true),
            ("4", "out:192.0.2.1", "x/a", "tcp:80", true),
            ("6", "out:2001:db8::1", "x/a", "tcp:80", true),
            ("46", "y/a", "x/a", "tcp:81", false),
            ("46", "y/a", "x/a", "udp:80", false),
            ("46", "y/a", "x/a", "icmp", false),
        ],
    },
    Case {
        name: "peer: podSelector alone means the policy's own namespace",
        policies: "[{metadata: {name: p, namespace: x}, spec: {ingress: [{from: [{podSelector: {}}]}]}}]",
        checks: &[
            ("46", "x/c", "x/a", "tcp:80", true),
            ("46", "y/a", "x/a", "tcp:80", false),
            ("4", "out:192.0.2.1", "x/a", "tcp:80", false),
        ],
    },
    Case {
        name: "peer: namespaceSelector alone means all pods there",
        policies: "[{metadata: {name: p, namespace: x}, spec: {ingress: [{from: [{namespaceSelector: {matchLabels: {team: blue}}}]}]}}]",
        checks: &[
            ("46", "y/a", "x/a", "tcp:80", true),
            ("46", "y/b", "x/a", "tcp:80", true),
            ("46", "z/a", "x/a", "tcp:80", false),
            ("46", "x/c", "x/a", "tcp:80", false),
        ],
    },
    Case {
        name: "peer: an empty namespaceSelector means all pods of the cluster, and nobody outside",
        policies: "[{metadata: {name: p, namespace: x}, spec: {ingress: [{from: [{namespaceSelector: {}}]}]}}]",
        checks: &[
            ("46", "z/a", "x/a", "tcp:80", true),
            ("46", "x/b", "x/a", "tcp:80", true),
            ("4", "out:192.0.2.1", "x/a", "tcp:80", false),
            ("46", "node:n2", "x/a", "tcp:80", false),
        ],
    },
    Case {
        name: "peer: both selectors in one item are AND",
        policies: "[{metadata: {name: p, namespace: x}, spec: {ingress: [{from: [\
                    {namespaceSelector: {matchLabels: {team: blue}}, podSelector: {matchLabels: {app: a}}}]}]}}]",
        checks: &[
            ("46", "y/a", "x/c", "tcp:80", true),
            ("46", "y/b", "x/c", "tcp:80", false),
            ("46", "x/a", "x/c", "tcp:80", false),
        ],
    },
    Case {
        name: "peer: two items are OR",
        policies: "[{metadata: {name: p, namespace: x}, spec: {ingress: [{from: [\
                    {namespaceSelector: {matchLabels: {team: blue}}}, {podSelector: {matchLabels: {app: a}}}]}]}}]",
        checks: &[
            ("46", "y/b", "x/c", "tcp:80", true),
            ("46", "x/a", "x/c", "tcp:80", true),
            ("46", "x/b", "x/c", "tcp:80", false),
            ("46", "z/a", "x/c", "tcp:80", false),
        ],
    },
    Case {
        name: "namespace by its name",
        policies: "[{metadata: {name: p, namespace: x}, spec: {ingress: [{from: [\
                    {namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: z}}}]}]}}]",
        checks: &[("46", "z/a", "x/a", "tcp:80", true), ("46", "y/a", "x/a", "tcp:80", false)],
    },
    Case {
        name: "negative operators match what lacks the label",
        policies: "[{metadata: {name: p, namespace: x}, spec: {podSelector: {matchExpressions: [\
                    {key: app, operator: NotIn, values: [b, c]}]}, ingress: [{from: [\
                    {namespaceSelector: {matchExpressions: [{key: team, operator: DoesNotExist}]}}]}]}}]",
        checks: &[
            ("46", "z/a", "x/a", "tcp:80", true),
            ("46", "y/a", "x/a", "tcp:80", false),
            ("46", "y/a", "x/b", "tcp:80", true),
        ],
    },
    Case {
        name: "In and Exists need the label",
        policies: "[{metadata: {name: p, namespace: x}, spec: {ingress: [{from: [\
                    {namespaceSelector: {matchExpressions: [{key: team, operator: Exists}]}, \
                     podSelector: {matchExpressions: [{key: app, operator: In, values: [a, c]}]}}]}]}}]",
        checks: &[
            ("46", "y/a", "x/b", "tcp:80", true),
            ("46", "x/c", "x/b", "tcp:80", true),
            ("46", "y/b", "x/b", "tcp:80", false),
            ("46", "z/a", "x/b", "tcp:80", false),
        ],
    },
    Case {
        name: "ipBlock: an outside range, with a hole",
        policies: "[{metadata: {name: p, namespace: x}, spec: {policyTypes: [Ingress, Egress], \
                    ingress: [{from: [{ipBlock: {cidr: 192.0.2.0/24, except: [192.0.2.128/25]}}]}], \
                    egress: [{to: [{ipBlock: {cidr: '2001:db8::/32', except: ['2001:db8:1::/48']}}]}]}}]",
        checks: &[
            ("4", "out:192.0.2.1", "x/a", "tcp:80", true),
            ("4", "out:192.0.2.1", "x/a", "icmp", true),
            ("4", "out:192.0.2.129", "x/a", "tcp:80", false),
            ("4", "out:198.51.100.1", "x/a", "tcp:80", false),
            ("46", "y/a", "x/a", "tcp:80", false),
            ("6", "x/a", "out:2001:db8::1", "tcp:80", true),
            ("6", "x/a", "out:2001:db8:1::1", "tcp:80", false),
            ("4", "x/a", "out:192.0.2.1", "tcp:80", false),
        ],
    },
    Case {
        name: "ipBlock matches any address, pods included",
        policies: "[{metadata: {name: p, namespace: x}, spec: {ingress: [{from: [\
                    {ipBlock: {cidr: 10.244.2.0/24, except: [10.244.2.13/32]}}]}]}}]",
        checks: &[
            ("4", "x/c", "x/a", "tcp:80", true),
            ("4", "z/a", "x/a", "tcp:80", true),
            ("4", "y/b", "x/a", "tcp:80", false),
            ("4", "y/a", "x/a", "tcp:80", false),
            ("6", "x/c", "x/a", "tcp:80", false),
        ],
    },
    Case {
        name: "ipBlock: a hole is a hole in that block only",
        policies: "[{metadata: {name: p, namespace: x}, spec: {ingress: [{from: [\
                    {ipBlock: {cidr: 0.0.0.0/0, except: [192.0.2.0/24]}}, {ipBlock: {cidr: 192.0.2.1/32}}]}]}}, \
                    {metadata: {name: q, namespace: x}, spec: {podSelector: {matchLabels: {app: b}}, \
                    ingress: [{from: [{ipBlock: {cidr: 192.0.2.0/30}}]}]}}]",
        checks: &[
            ("4", "out:192.0.2.1", "x/a", "tcp:80", true),
            ("4", "out:192.0.2.2", "x/a", "tcp:80", false),
            ("4", "out:192.0.2.2", "x/b", "tcp:80", true),
            ("4", "out:8.8.8.8", "x/a", "tcp:80", true),
            ("6", "out:2001:db8::1", "x/a", "tcp:80", false),
        ],
    },
    Case {
        name: "a pod in an ipBlock keeps what its labels give",
        policies: "[{metadata: {name: p, namespace: x}, spec: {ingress: [\
                    {from: [{ipBlock: {cidr: 10.244.0.0/16}}], ports: [{port: 80}]}, \
                    {from: [{namespaceSelector: {matchLabels: {team: blue}}}], ports: [{port: 81}]}]}}]",
        checks: &[
            ("4", "y/a", "x/a", "tcp:80", true),
            ("46", "y/a", "x/a", "tcp:81", true),
            ("4", "z/a", "x/a", "tcp:81", false),
            ("4", "z/a", "x/a", "tcp:80", true),
            ("6", "y/a", "x/a", "tcp:80", false),
        ],
    },
    Case {
        name: "port: protocol defaults to TCP",
        policies: "[{metadata: {name: p, namespace: x}, spec: {ingress: [{ports: [{port: 53}]}]}}]",
        checks: &[
            ("46", "y/a", "x/a", "tcp:53", true),
            ("46", "y/a", "x/a", "udp:53", false),
            ("46", "y/a", "x/a", "sctp:53", false),
        ],
    },
    Case {
        name: "port: each protocol for itself, SCTP too",
        policies: "[{metadata: {name: p, namespace: x}, spec: {ingress: [{ports: [\
                    {port: 53, protocol: UDP}, {port: 7, protocol: SCTP}]}]}}]",
        checks: &[
            ("46", "y/a", "x/a", "udp:53", true),
            ("46", "y/a", "x/a", "sctp:7", true),
            ("46", "y/a", "x/a", "tcp:53", false),
            ("46", "y/a", "x/a", "udp:7", false),
            ("46", "y/a", "x/a", "sctp:53", false),
        ],
    },
    Case {
        name: "port: a protocol without a number is all its ports, and no other protocol",
        policies: "[{metadata: {name: p, namespace: x}, spec: {policyTypes: [Ingress, Egress], \
                    ingress: [{ports: [{protocol: UDP}], from: [{podSelector: {}}]}], egress: [{ports: [{protocol: SCTP}]}]}}]",
        checks: &[
            ("46", "x/a", "x/b", "udp:1", false),
            ("46", "x/a", "y/b", "sctp:65535", true),
            ("46", "x/a", "y/b", "tcp:65535", false),
            ("46", "x/a", "y/b", "icmp", false),
        ],
    },
    Case {
        name: "port: a protocol without a number, towards some",
        policies: "[{metadata: {name: p, namespace: x}, spec: {ingress: [\
                    {ports: [{protocol: UDP}], from: [{podSelector: {}}]}]}}]",
        checks: &[
            ("46", "x/a", "x/b", "udp:1", true),
            ("46", "x/a", "x/b", "udp:65535", true),
            ("46", "x/a", "x/b", "tcp:1", false),
            ("46", "x/a", "x/b", "icmp", false),
            ("46", "y/a", "x/b", "udp:1", false),
        ],
    },
    Case {
        name: "port: endPort is included, small and large ranges",
        policies: "[{metadata: {name: p, namespace: x}, spec: {ingress: [\
                    {ports: [{port: 80, endPort: 90}, {protocol: UDP, port: 1000, endPort: 2000}], from: [{podSelector: {}}]}, \
                    {ports: [{protocol: SCTP, port: 1, endPort: 65535}]}]}}]",
        checks: &[
            ("46", "x/a", "x/b", "tcp:79", false),
            ("46", "x/a", "x/b", "tcp:80", true),
            ("46", "x/a", "x/b", "tcp:90", true),
            ("46", "x/a", "x/b", "tcp:91", false),
            ("46", "x/a", "x/b", "udp:999", false),
            ("46", "x/a", "x/b", "udp:1000", true),
            ("46", "x/a", "x/b", "udp:2000", true),
            ("46", "x/a", "x/b", "udp:2001", false),
            ("46", "y/a", "x/b", "udp:1000", false),
            ("46", "y/a", "x/b", "sctp:1", true),
            ("46", "y/a", "x/b", "sctp:65535", true),
            ("46", "y/a", "x/b", "tcp:1000", false),
        ],
    },
    Case {
        name: "named port, ingress: resolved on each selected pod",
        policies: "[{metadata: {name: p, namespace: x}, spec: {ingress: [{ports: [{port: http}]}]}}]",
        checks: &[
            ("46", "y/a", "x/b", "tcp:80", true),
            ("46", "y/a", "x/b", "tcp:8080", false),
            ("46", "y/a", "x/a", "tcp:8080", true),
            ("46", "y/a", "x/a", "tcp:80", false),
            ("46", "y/a", "x/a", "udp:8080", false),
        ],
    },
    Case {
        name: "named port, egress: resolved on each peer",
        policies: "[{metadata: {name: p, namespace: x}, spec: {policyTypes: [Egress], egress: [\
                    {ports: [{port: http}], to: [{namespaceSelector: {}}]}]}}]",
        checks: &[
            ("46", "x/a", "y/b", "tcp:80", true),
            ("46", "x/a", "y/b", "tcp:8080", false),
            ("46", "x/a", "y/a", "tcp:8080", true),
            ("46", "x/a", "y/a", "tcp:80", false),
            ("46", "x/a", "x/b", "tcp:80", true),
        ],
    },
    Case {
        name: "named port, egress to everybody: who is no pod has no names",
        policies: "[{metadata: {name: p, namespace: x}, spec: {policyTypes: [Egress], egress: [{ports: [{port: http}]}]}}]",
        checks: &[
            ("46", "x/a", "y/b", "tcp:80", true),
            ("46", "x/a", "z/a", "tcp:80", false),
            ("4", "x/a", "out:192.0.2.1", "tcp:80", false),
        ],
    },
    Case {
        name: "named port, egress to an ipBlock never matches",
        policies: "[{metadata: {name: p, namespace: x}, spec: {policyTypes: [Egress], egress: [\
                    {ports: [{port: http}], to: [{ipBlock: {cidr: 0.0.0.0/0}}, {ipBlock: {cidr: '::/0'}}]}]}}]",
        checks: &[("46", "x/a", "y/b", "tcp:80", false), ("4", "x/a", "out:192.0.2.1", "tcp:80", false)],
    },
    Case {
        name: "named port, ingress from an ipBlock: the name is the selected pod's",
        policies: "[{metadata: {name: p, namespace: x}, spec: {ingress: [\
                    {ports: [{port: http}], from: [{ipBlock: {cidr: 192.0.2.0/24}}]}]}}]",
        checks: &[
            ("4", "out:192.0.2.1", "x/b", "tcp:80", true),
            ("4", "out:192.0.2.1", "x/a", "tcp:80", false),
            ("4", "out:192.0.2.1", "x/a", "tcp:8080", true),
        ],
    },
    Case {
        name: "named port: the protocol must match too",
        policies: "[{metadata: {name: p, namespace: x}, spec: {ingress: [{ports: [{port: dns}, {port: http, protocol: UDP}]}]}}]",
        checks: &[("46", "y/a", "x/b", "tcp:53", false), ("46", "y/a", "x/b", "udp:80", false)],
    },
    Case {
        name: "named port: sidecars count, init containers that end do not",
        policies: "[{metadata: {name: p, namespace: x}, spec: {ingress: [{ports: [{port: metrics}, {port: setup}]}]}}]",
        checks: &[("46", "y/a", "x/b", "tcp:9090", true), ("46", "y/a", "x/b", "tcp:7000", false)],
    },
    Case {
        name: "policies only add",
        policies: "[{metadata: {name: deny, namespace: x}, spec: {}}, \
                    {metadata: {name: one, namespace: x}, spec: {podSelector: {matchLabels: {app: a}}, \
                    ingress: [{from: [{podSelector: {matchLabels: {app: b}}}], ports: [{port: 80}]}]}}, \
                    {metadata: {name: two, namespace: x}, spec: {podSelector: {matchLabels: {app: a}}, \
                    ingress: [{from: [{namespaceSelector: {}}], ports: [{port: 81}]}]}}]",
        checks: &[
            ("46", "x/b", "x/a", "tcp:80", true),
            ("46", "x/b", "x/a", "tcp:81", true),
            ("46", "y/b", "x/a", "tcp:81", true),
            ("46", "y/b", "x/a", "tcp:80", false),
            ("46", "x/a", "x/b", "tcp:80", false),
        ],
    },
    Case {
        name: "both ends must allow",
        policies: "[{metadata: {name: out, namespace: x}, spec: {policyTypes: [Egress], egress: [\
                    {to: [{namespaceSelector: {matchLabels: {team: blue}}}], ports: [{port: 80}]}]}}, \
                    {metadata: {name: in, namespace: y}, spec: {ingress: [\
                    {from: [{namespaceSelector: {matchLabels: {team: red}}, podSelector: {matchLabels: {app: a}}}]}]}}]",
        checks: &[
            ("46", "x/a", "y/a", "tcp:80", true),
            ("46", "x/a", "y/b", "tcp:80", true),
            ("46", "x/a", "y/a", "tcp:81", false),
            ("46", "x/b", "y/a", "tcp:80", false),
            ("46", "z/a", "y/a", "tcp:80", false),
        ],
    },
    Case {
        name: "a pod and its own node always reach each other; other nodes are anybody",
        policies: "[{metadata: {name: p, namespace: x}, spec: {policyTypes: [Ingress, Egress]}}]",
        checks: &[
            ("46", "node:n1", "x/a", "tcp:80", true),
            ("46", "node:n2", "x/c", "tcp:80", true),
            ("46", "node:n2", "x/a", "tcp:80", false),
            ("46", "x/a", "node:n1", "tcp:10250", true),
            ("46", "x/a", "node:n2", "tcp:10250", false),
        ],
    },
    Case {
        name: "other nodes are matched by their addresses",
        policies: "[{metadata: {name: p, namespace: x}, spec: {policyTypes: [Ingress, Egress], \
                    ingress: [{from: [{ipBlock: {cidr: 172.18.0.2/32}}]}], egress: [{to: [{ipBlock: {cidr: 172.18.0.0/16}}]}]}}]",
        checks: &[
            ("4", "node:n2", "x/a", "tcp:80", true),
            ("4", "x/a", "node:n2", "tcp:80", true),
            ("4", "node:n1", "x/c", "tcp:80", false),
            ("6", "node:n2", "x/a", "tcp:80", false),
        ],
    },
    Case {
        name: "pods in the host's network are their node: not selected, not selectable",
        policies: "[{metadata: {name: p, namespace: y}, spec: {policyTypes: [Ingress, Egress]}}, \
                    {metadata: {name: q, namespace: x}, spec: {ingress: [{from: [\
                    {namespaceSelector: {}, podSelector: {matchLabels: {app: host}}}]}]}}]",
        checks: &[
            ("46", "x/a", "node:n1", "tcp:80", true),
            ("46", "node:n1", "x/a", "tcp:80", true),
            ("46", "node:n1", "x/c", "tcp:80", false),
        ],
    },
    Case {
        name: "a pod that has ended lends its address nothing",
        policies: "[{metadata: {name: p, namespace: x}, spec: {ingress: [{from: [{podSelector: {matchLabels: {app: done}}}]}]}}]",
        checks: &[("46", "z/a", "x/a", "tcp:80", false), ("46", "x/c", "x/a", "tcp:80", false)],
    },
    Case {
        name: "a pod and itself through a service",
        policies: "[{metadata: {name: p, namespace: x}, spec: {policyTypes: [Ingress, Egress]}}]",
        checks: &[("46", "x/a", "x/a", "tcp:80", true), ("46", "x/a", "x/b", "tcp:80", false)],
    },
    Case {
        name: "a pod whose object is unknown is closed where its namespace has policies, else open",
        policies: "[{metadata: {name: p, namespace: x}, spec: {podSelector: {matchLabels: {app: nobody}}}}]",
        checks: &[
            ("46", "x/ghost", "y/a", "tcp:80", false),
            ("46", "y/a", "x/ghost", "tcp:80", false),
            ("46", "w/ghost", "x/a", "tcp:80", true),
            ("46", "y/b", "w/ghost", "tcp:80", true),
        ],
    },
    Case {
        name: "a pod whose object is unknown matches no selector",
        policies: "[{metadata: {name: p, namespace: y}, spec: {ingress: [{from: [{namespaceSelector: {}}]}]}}]",
        checks: &[("46", "w/ghost", "y/a", "tcp:80", false), ("46", "z/a", "y/a", "tcp:80", true)],
    },
    Case {
        name: "what is not valid matches nothing",
        policies: "[{metadata: {name: p, namespace: x}, spec: {ingress: [\
                    {from: [{}]}, {ports: [{endPort: 90}]}, {ports: [{port: 90, endPort: 80}]}, \
                    {ports: [{port: http, endPort: 90}]}, \
                    {from: [{podSelector: {matchExpressions: [{key: app, operator: NotIn}]}}]}, \
                    {from: [{ipBlock: {cidr: 10.0.0.0/8, except: [0.0.0.0/0]}}]}, \
                    {from: [{podSelector: {}, ipBlock: {cidr: 10.0.0.0/8}}]}]}}]",
        checks: &[
            ("46", "x/a", "x/b", "tcp:80", false),
            ("46", "y/b", "x/b", "tcp:85", false),
            ("46", "z/a", "x/b", "tcp:90", false),
        ],
    },
    Case {
        name: "several rules and peers of one policy are OR",
        policies: "[{metadata: {name: p, namespace: x}, spec: {podSelector: {matchLabels: {app: c}}, ingress: [\
                    {from: [{podSelector: {matchLabels: {app: a}}}, {podSelector: {matchLabels: {app: b}}}], ports: [{port: 1}, {port: 2}]}, \
                    {from: [{podSelector: {matchLabels: {app: b}}}], ports: [{protocol: UDP}]}]}}]",
        checks: &[
            ("46", "x/a", "x/c", "tcp:2", true),
            ("46", "x/b", "x/c", "tcp:1", true),
            ("46", "x/b", "x/c", "udp:1", true),
            ("46", "x/a", "x/c", "udp:1", false),
            ("46", "x/a", "x/c", "tcp:3", false),
        ],
    },
];
