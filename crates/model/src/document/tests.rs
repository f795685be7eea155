//! The door as a whole: what is read, what is refused and in which words, and that nothing makes it panic.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::cluster::{Backend, Topology};
use crate::config::{LogFormat, NodeAddresses, NodeConfig, StoreConfig};
use crate::k8s::{PolicyType, PortRef};

/// Everything that stands in one text, without mistakes.
const GOOD: &str = r#"
apiVersion: podway.io/v1
kind: ClusterConfig
metadata: {name: default}
spec:
  backend: bgp
  underlayMtu: 9000
  vxlan: {vni: 42, port: 4789, directRouting: true}
  ipip: {mode: crossSubnet}
  wireguard: {port: 4500, keepaliveSeconds: 25}
  bgp: {asn: 4200000000, topology: reflectors, port: 1790, holdTimeSeconds: 3, restartTimeSeconds: 0,
        communities: {blue: ['64512:7', no-export]}, nodeAsns: [{nodeSelector: {matchLabels: {a: b}}, asn: 7}]}
  masquerade: {enabled: false, exclude: [10.0.0.0/8, "fd00::/8"]}
  policy: {mode: none, onTimeout: closed}
  inventory: {nodes: [n1.example.com, n2], graceSeconds: 600}
---
apiVersion: podway.io/v1
kind: Pool
metadata: {name: v4}
spec: {cidr: 10.244.0.0/16, blockSize: 24, nat: false, encapsulation: ipipCrossSubnet}
---
apiVersion: podway.io/v1
kind: Pool
metadata: {name: v6}
spec:
  cidr: fd00:10:244::/64
  nodeSelector: {matchLabels: {zone: a}}
  namespaceSelector:
    matchExpressions: [{key: team, operator: In, values: [x, y]}]
  assignment: manual
  disabled: true
---
apiVersion: podway.io/v1
kind: BGPPeer
metadata: {name: tor-a}
spec: {address: 192.0.2.1, asn: 64512, passwordFile: /etc/podway/tor.key, ttlSecurity: 1, export: own}
---
apiVersion: podway.io/v1
kind: BGPPeer
metadata: {name: tor-b}
spec:
  address: 192.0.2.2
  asn: 64513
  importFilter: pods
  families: [ipv6, ipv4]
  maxPrefixesIpv4: {limit: 100, warnPercent: 80, restartSeconds: 60}
  nextHop: own
  localAs: 64999
  defaultOriginate: [ipv4]
  addPathSend: 4
  relation: customer
  bfd: {intervalMs: 100}
  shutdown: until Monday
---
apiVersion: podway.io/v1
kind: BGPFilter
metadata: {name: pods}
spec:
  rules:
  - match: [{prefix: [{within: 10.244.0.0/16, longest: 26}]}, {not: {community: [blue, no-export]}}]
    set: [{localPref: 200}, {addCommunity: '64512:0:9'}, {prepend: {asn: 64512, times: 2}}]
    verdict: accept
  - match: [{asPathFrom: [64513]}, {source: external}, {neighbour: [192.0.2.2]}, {nextHop: [192.0.2.0/24]}]
    verdict: reject
  otherwise: reject
---
apiVersion: podway.io/v1
kind: Reflector
metadata: {name: n1.example.com}
spec: {clusterId: 10.0.0.1}
---
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {team: x}}
---
apiVersion: v1
kind: Pod
metadata:
  name: web-0
  namespace: shop
  creationTimestamp: "2026-01-01T00:00:00Z"
  labels: {app: web}
spec:
  nodeName: n1
  containers:
  - name: web
    image: nginx
    ports: [{containerPort: 80, name: http}]
status: {phase: Running, podIP: 10.244.0.1, podIPs: [{ip: 10.244.0.1}, {ip: "fd00::0001"}]}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: allow}
spec:
  podSelector: {}
  policyTypes: [Ingress, Egress]
  ingress:
  - {}
  - from: [{namespaceSelector: {}, podSelector: {matchLabels: {app: web}}}]
    ports: [{port: http}, {protocol: UDP, port: 53, endPort: 60}, {protocol: SCTP}]
  egress:
  - to: [{ipBlock: {cidr: 10.1.2.3/8, except: [10.1.0.0/16]}}]
"#;

/// What is wrong with `text`, one line each.
fn wrong(text: &str) -> Vec<String> {
    match parse_documents("f", text) {
        Ok(documents) => panic!("accepted: {documents:?}"),
        Err(mistakes) => mistakes.0.iter().map(ToString::to_string).collect(),
    }
}

/// `spec` (one line, flow style) of a kind of ours.
fn own(kind: &str, name: &str, spec: &str) -> String {
    format!("{{apiVersion: podway.io/v1, kind: {kind}, metadata: {{name: {name}}}, spec: {spec}}}")
}

fn policy(spec: &str) -> String {
    format!("{{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {{name: p}}, spec: {spec}}}")
}

#[test]
fn every_kind_is_read() {
    let documents = parse_documents("f", GOOD).unwrap_or_else(|mistakes| panic!("{mistakes}"));
    let keys: Vec<String> = documents.iter().map(|document| document.key().to_string()).collect();
    assert_eq!(
        keys,
        [
            "config",
            "pools/v4",
            "pools/v6",
            "peers/tor-a",
            "peers/tor-b",
            "filters/pods",
            "reflectors/n1.example.com",
            "objects/namespaces/shop",
            "objects/pods/shop/web-0",
            "objects/networkpolicies/default/allow",
        ]
    );
    let Document::ClusterConfig(config) = &documents[0] else { panic!() };
    assert_eq!((config.backend, config.bgp.topology), (Backend::Bgp, Topology::Reflectors));
    let inventory = config.inventory.as_ref().unwrap();
    assert_eq!((inventory.nodes.len(), inventory.grace_seconds), (2, 600));
    let Document::Namespace(namespace) = &documents[7] else { panic!() };
    assert_eq!(namespace.metadata.labels["kubernetes.io/metadata.name"], "shop");
    let Document::Pod(pod) = &documents[8] else { panic!() };
    assert_eq!(pod.addresses().len(), 2);
    assert_eq!(pod.status.pod_ips[1].ip, "fd00::1", "addresses are kept in their usual form");
    let Document::NetworkPolicy(policy) = &documents[9] else { panic!() };
    assert!(policy.spec.isolates(PolicyType::Egress));
    let rule = &policy.spec.ingress.as_ref().unwrap()[1];
    assert_eq!(rule.ports[0].port, Some(PortRef::Name("http".into())));
    let block = policy.spec.egress.as_ref().unwrap()[0].to[0].ip_block.as_ref().unwrap();
    assert_eq!(block.cidr.to_string(), "10.0.0.0/8", "host bits are cut off, as the API server does");
}

#[test]
fn a_list_is_its_items_and_json_is_yaml() {
    let text = r#"{"apiVersion": "v1", "kind": "List", "items": [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "a"}},
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "b"}}]}"#;
    let names: Vec<_> =
        parse_documents("f", text).unwrap().iter().map(|document| document.name().to_owned()).collect();
    assert_eq!(names, ["a", "b"]);
    assert_eq!(parse_documents("f", "").unwrap(), vec![]);
}

#[test]
fn stored_and_written_forms_read_back() {
    for document in parse_documents("f", GOOD).unwrap() {
        let stored = document.to_json();
        assert_eq!(Document::from_store(&document.key(), &stored).unwrap(), document);
        let yaml = document.to_yaml();
        assert_eq!(parse_documents("f", &yaml).unwrap_or_else(|m| panic!("{m}\n{yaml}")), [document]);
    }
    let claim: Key = "claims/n1/10.0.0.0-26".parse().unwrap();
    assert!(matches!(Document::from_store(&claim, b"{}"), Err(ValueError::NotADocument(_))));
    assert!(matches!(Document::from_store(&Key::Config, b"nonsense"), Err(ValueError::Decode(_))));
}

#[test]
fn all_mistakes_of_all_documents_come_at_once_with_their_lines() {
    let text = "apiVersion: podway.io/v1\nkind: Pool\nmetadata: {name: A}\nspec:\n  cidr: 10.0.0.1/8\n  \
                blockSizes: 26\n---\nkind: Pol\n---\n- 1\n---\napiVersion: v2\nkind: Namespace\nmetadata: {}\n";
    assert_eq!(
        wrong(text),
        [
            "f:3: metadata.name: \"A\" found, a name (lower-case letters, digits, '-' and '.', at most 253 \
             characters) expected",
            "f:5: spec.cidr: \"10.0.0.1/8\" found, a prefix whose host bits are zero (10.0.0.0/8) expected",
            "f:6: spec.blockSizes: unknown key found, \"blockSize\" (did you mean this?) expected",
            "f:8: apiVersion: nothing found, the version of the kind expected",
            "f:8: kind: \"Pol\" found, \"ClusterConfig\", \"Pool\", \"Reflector\", \"BGPFilter\", \"BGPPeer\", \"Namespace\", \
             \"NetworkPolicy\" or \"Pod\" (did you mean \"Pod\"?) expected",
            "f:10: a list found, a mapping with apiVersion, kind and metadata expected",
            "f:12: apiVersion: \"v2\" found, \"v1\" for a Namespace expected",
            "f:14: metadata.name: nothing found, a namespace name (lower-case letters, digits and '-', at most 63 \
             characters) expected",
        ]
    );
}

#[test]
fn one_mistake_in_each_field_is_found() {
    for (text, field) in [
        (own("ClusterConfig", "other", "{}"), "metadata.name"),
        (own("ClusterConfig", "default", "{backend: ipsec}"), "spec.backend"),
        (own("ClusterConfig", "default", "{ipip: {mode: never}}"), "spec.ipip.mode"),
        (own("ClusterConfig", "default", "{wireguard: {port: 0}}"), "spec.wireguard.port"),
        (
            own("ClusterConfig", "default", "{wireguard: {keepaliveSeconds: 65536}}"),
            "spec.wireguard.keepaliveSeconds",
        ),
        (own("Pool", "p", "{cidr: 10.0.0.0/16, encapsulation: gre}"), "spec.encapsulation"),
        (own("Pool", "p", "{cidr: \"fd00::/64\", encapsulation: ipip}"), "spec.encapsulation"),
        (own("ClusterConfig", "default", "{underlayMtu: 1000}"), "spec.underlayMtu"),
        (own("ClusterConfig", "default", "{vxlan: {vni: 0}}"), "spec.vxlan.vni"),
        (own("ClusterConfig", "default", "{vxlan: {port: 65536}}"), "spec.vxlan.port"),
        (own("ClusterConfig", "default", "{bgp: {holdTimeSeconds: 2}}"), "spec.bgp.holdTimeSeconds"),
        (own("ClusterConfig", "default", "{bgp: {restartTimeSeconds: 4096}}"), "spec.bgp.restartTimeSeconds"),
        (own("ClusterConfig", "default", "{bgp: {asn: 23456}}"), "spec.bgp.asn"),
        (
            own("ClusterConfig", "default", "{masquerade: {exclude: [10.0.0.1/8]}}"),
            "spec.masquerade.exclude[0]",
        ),
        (own("ClusterConfig", "default", "{policy: {mode: off}}"), "spec.policy.mode"),
        (own("ClusterConfig", "default", "{polcy: {}}"), "spec.polcy"),
        (own("ClusterConfig", "default", "{inventory: {nodes: []}}"), "spec.inventory.nodes"),
        (own("ClusterConfig", "default", "{compat: calico}"), "spec.compat"),
        (own("ClusterConfig", "default", "{compat: {flannel: {prefix: x/}}}"), "spec.compat.flannel.prefix"),
        (own("ClusterConfig", "default", "{compat: flannel, backend: ipip}"), "spec.backend"),
        (own("ClusterConfig", "default", "{inventory: {nodes: [No_Name]}}"), "spec.inventory.nodes[0]"),
        (
            own("ClusterConfig", "default", "{inventory: {nodes: [n1], graceSeconds: 59}}"),
            "spec.inventory.graceSeconds",
        ),
        (own("Pool", "p", "{}"), "spec.cidr"),
        (own("Pool", "p", "{cidr: 10.0.0.0/16, blockSize: 19}"), "spec.blockSize"),
        (own("Pool", "p", "{cidr: 'fd00::/64', blockSize: 64}"), "spec.blockSize"),
        (own("Pool", "p", "{cidr: 10.0.0.0/24, blockSize: 23}"), "spec.blockSize"),
        (own("Pool", "p", "{cidr: 10.0.0.0/28}"), "spec.cidr"),
        (own("Pool", "p", "{cidr: 127.0.0.0/16}"), "spec.cidr"),
        (own("Pool", "p", "{cidr: 0.0.0.0/0}"), "spec.cidr"),
        (own("Pool", "p", "{cidr: 10.0.0.0/16, nat: 'true'}"), "spec.nat"),
        (own("Pool", "p", "{cidr: 10.0.0.0/16, nodeSelector: {zone: a}}"), "spec.nodeSelector.zone"),
        (own("BGPPeer", "p", "{address: 10.0.0.256, asn: 1}"), "spec.address"),
        (own("BGPPeer", "p", "{address: 10.0.0.1}"), "spec.asn"),
        (own("BGPPeer", "p", "{address: 10.0.0.1, asn: 1, dscp: 64}"), "spec.dscp"),
        (own("BGPPeer", "p", "{address: 10.0.0.1, asn: 1, ttlSecurity: 0}"), "spec.ttlSecurity"),
        (own("BGPPeer", "p", "{address: 10.0.0.1, asn: 1, passwordFile: key}"), "spec.passwordFile"),
        (own("BGPPeer", "p", "{address: 10.0.0.1, asn: 1, export: some}"), "spec.export"),
        (own("BGPPeer", "p", "{address: 10.0.0.1, asn: 1, sourceAddress: 10.0.0.2}"), "spec.sourceAddress"),
        (own("ClusterConfig", "default", "{bgp: {passwordFile: ''}}"), "spec.bgp.passwordFile"),
        (
            own("ClusterConfig", "default", "{bgp: {communities: {blue: [65536:1]}}}"),
            "spec.bgp.communities.blue[0]",
        ),
        (own("ClusterConfig", "default", "{bgp: {communities: {blue: []}}}"), "spec.bgp.communities.blue"),
        (
            own("ClusterConfig", "default", "{bgp: {communities: {no-peer: ['1:2']}}}"),
            "spec.bgp.communities.no-peer",
        ),
        (
            own("ClusterConfig", "default", "{bgp: {nodeAsns: [{nodeSelector: {}, asn: 0}]}}"),
            "spec.bgp.nodeAsns[0].asn",
        ),
        (own("ClusterConfig", "default", "{bgp: {bmp: [{}]}}"), "spec.bgp.bmp[0].address"),
        (own("ClusterConfig", "default", "{bgp: {bmp: [{address: '10.0.0.9:0'}]}}"), "spec.bgp.bmp[0]"),
        (
            own("ClusterConfig", "default", "{bgp: {bmp: [{address: '10.0.0.9:1', statisticsSeconds: 4}]}}"),
            "spec.bgp.bmp[0].statisticsSeconds",
        ),
        (
            own("ClusterConfig", "default", "{bgp: {bmp: [{address: '10.0.0.9:1', views: [adjOut]}]}}"),
            "spec.bgp.bmp[0].views[0]",
        ),
        (
            own("ClusterConfig", "default", "{bgp: {bmp: [{address: '1.1.1.1:1'}, {address: '1.1.1.1:1'}]}}"),
            "spec.bgp.bmp[1]",
        ),
        (
            own("ClusterConfig", "default", "{bgp: {announce: [{prefix: 0.0.0.0/0}]}}"),
            "spec.bgp.announce[0].prefix",
        ),
        (
            own("ClusterConfig", "default", "{bgp: {announce: [{prefix: 10.96.0.1/12}]}}"),
            "spec.bgp.announce[0].prefix",
        ),
        (
            own(
                "ClusterConfig",
                "default",
                "{bgp: {announce: [{prefix: 10.96.0.0/12}, {prefix: 10.96.0.0/12}]}}",
            ),
            "spec.bgp.announce",
        ),
        (own("BGPPeer", "p", "{address: 10.0.0.1, asn: 1, aggregate: 4}"), "spec.aggregate"),
        (own("BGPPeer", "p", "{address: 10.0.0.1, asn: 0}"), "spec.asn"),
        (own("BGPPeer", "p", "{address: 10.0.0.1, asn: 1, import: none, importFilter: x}"), "spec.import"),
        (own("BGPPeer", "p", "{address: 10.0.0.1, asn: 1, exportFilter: A_b}"), "spec.exportFilter"),
        (own("BGPPeer", "p", "{address: 10.0.0.1, asn: 1, families: []}"), "spec.families"),
        (own("BGPPeer", "p", "{address: 10.0.0.1, asn: 1, holdTimeSeconds: 2}"), "spec.holdTimeSeconds"),
        (
            own("BGPPeer", "p", "{address: 10.0.0.1, asn: 1, maxPrefixesIpv6: {limit: 0}}"),
            "spec.maxPrefixesIpv6.limit",
        ),
        (own("BGPPeer", "p", "{address: 10.0.0.1, asn: 1, bfd: {intervalMs: 5}}"), "spec.bfd.intervalMs"),
        (own("BGPPeer", "p", "{address: 10.0.0.1, asn: 1, relation: friend}"), "spec.relation"),
        (own("BGPPeer", "p", "{address: 10.0.0.1, asn: 1, importfilter: a}"), "spec.importfilter"),
        (own("BGPFilter", "f", "{rules: []}"), "spec.otherwise"),
        (own("BGPFilter", "f", "{otherwise: accept, rules: [{match: [{}]}]}"), "spec.rules[0].match[0]"),
        (
            own(
                "BGPFilter",
                "f",
                "{otherwise: accept, rules: [{match: [{asPathEmpty: true, source: own}]}]}",
            ),
            "spec.rules[0].match[0]",
        ),
        (
            own(
                "BGPFilter",
                "f",
                "{otherwise: accept, rules: [{match: [{prefix: [{within: 10.0.0.0/8, longest: 4}]}]}]}",
            ),
            "spec.rules[0].match[0].prefix[0]",
        ),
        (
            own(
                "BGPFilter",
                "f",
                "{otherwise: accept, rules: [{match: [{prefix: [{within: 10.0.0.1/8}]}]}]}",
            ),
            "spec.rules[0].match[0].prefix[0].within",
        ),
        (
            own("BGPFilter", "f", "{otherwise: accept, rules: [{match: [{not: {community: ['1:2:3:4']}}]}]}"),
            "spec.rules[0].match[0].not.community[0]",
        ),
        (
            own("BGPFilter", "f", "{otherwise: accept, rules: [{set: [{prepend: {asn: 0}}]}]}"),
            "spec.rules[0].set[0].prepend.asn",
        ),
        (
            own("BGPFilter", "f", "{otherwise: accept, rules: [{set: [{localpref: 1}]}]}"),
            "spec.rules[0].set[0].localpref",
        ),
        (own("BGPFilter", "f", "{otherwise: accept, rules: [{verdict: maybe}]}"), "spec.rules[0].verdict"),
        (own("Reflector", "n", "{clusterId: 0.0.0.0}"), "spec.clusterId"),
        (policy("{podSelector: {matchLabels: {app: 1}}}"), "spec.podSelector.matchLabels.app"),
        (policy("{podselector: {}}"), "spec.podselector"),
        (policy("{policyTypes: [ingress]}"), "spec.policyTypes[0]"),
        (policy("{policyTypes: [Ingress, Egress, Egress]}"), "spec.policyTypes"),
        (policy("{ingress: [{to: []}]}"), "spec.ingress[0].to"),
        (policy("{ingress: [{from: [{}]}]}"), "spec.ingress[0].from[0]"),
        (
            policy("{ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8}, podSelector: {}}]}]}"),
            "spec.ingress[0].from[0]",
        ),
        (
            policy("{egress: [{to: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.0.0.0/8]}}]}]}"),
            "spec.egress[0].to[0].ipBlock.except[0]",
        ),
        (
            policy("{egress: [{to: [{ipBlock: {cidr: 10.0.0.0/8, except: [11.0.0.0/16]}}]}]}"),
            "spec.egress[0].to[0].ipBlock.except[0]",
        ),
        (policy("{egress: [{ports: [{protocol: tcp}]}]}"), "spec.egress[0].ports[0].protocol"),
        (policy("{egress: [{ports: [{port: 0}]}]}"), "spec.egress[0].ports[0].port"),
        (policy("{egress: [{ports: [{port: '80'}]}]}"), "spec.egress[0].ports[0].port"),
        (policy("{egress: [{ports: [{endPort: 80}]}]}"), "spec.egress[0].ports[0].endPort"),
        (policy("{egress: [{ports: [{port: http, endPort: 80}]}]}"), "spec.egress[0].ports[0].endPort"),
        (policy("{egress: [{ports: [{port: 81, endPort: 80}]}]}"), "spec.egress[0].ports[0].endPort"),
        (
            policy("{podSelector: {matchExpressions: [{key: a, operator: In}]}}"),
            "spec.podSelector.matchExpressions[0]",
        ),
        (
            policy("{podSelector: {matchExpressions: [{key: a, operator: Exists, values: [b]}]}}"),
            "spec.podSelector.matchExpressions[0]",
        ),
        (
            policy("{podSelector: {matchExpressions: [{key: a, operator: Equals}]}}"),
            "spec.podSelector.matchExpressions[0].operator",
        ),
        ("{apiVersion: v1, kind: Namespace, metadata: {name: a, namespace: b}}".into(), "metadata.namespace"),
        (
            "{apiVersion: v1, kind: Pod, metadata: {name: a, labels: {b/c/d: e}}}".into(),
            "metadata.labels[\"b/c/d\"]",
        ),
        (
            "{apiVersion: v1, kind: Pod, metadata: {name: a}, status: {podIPs: [{ip: x}]}}".into(),
            "status.podIPs[0].ip",
        ),
    ] {
        let mistakes = parse_documents("f", &text).expect_err(&text);
        let fields: Vec<_> = mistakes.0.iter().map(|mistake| mistake.field.as_str()).collect();
        assert_eq!(fields, [field], "{text}\n{mistakes}");
    }
}

#[test]
fn the_same_object_twice_and_overlapping_pools_are_refused() {
    let namespace = "apiVersion: v1\nkind: Namespace\nmetadata: {name: a}\n";
    assert_eq!(
        wrong(&format!("{namespace}---\n{namespace}")),
        ["f:5: metadata.name: Namespace \"a\" again found, it once (line 1 has it) expected"]
    );
    let first = own("Pool", "a", "{cidr: 10.0.0.0/16}");
    let second = own("Pool", "b", "{cidr: 10.0.128.0/20}");
    assert_eq!(
        wrong(&format!("{first}\n---\n{second}\n")),
        ["f:3: spec.cidr: 10.0.128.0/20 found, a prefix outside 10.0.0.0/16 of pool \"a\" expected"]
    );
}

#[test]
fn an_empty_node_file_is_the_default_and_a_full_one_is_read() {
    assert_eq!(parse_config("f", "").unwrap(), NodeConfig::default());
    let config = parse_config(
        "f",
        "node: {name: n1, addresses: [10.0.0.1, 'fd00::1'], labels: {zone: a}, asn: 65001}\n\
         store:\n  etcd: {endpoints: ['https://10.0.0.9:2379'], prefix: /x/, caFile: /ca, certFile: /c, keyFile: /k,\n\
         \x20   username: u, passwordFile: /p, leaseSeconds: 10}\n\
         log: {level: debug, format: json}\n\
         routed: {healthListen: '127.0.0.1:9121'}\npolicyAgent: {healthListen: '[::1]:9122'}\n",
    )
    .unwrap_or_else(|mistakes| panic!("{mistakes}"));
    let StoreConfig::Etcd(etcd) = &config.store else { panic!("{config:?}") };
    assert_eq!((etcd.prefix.as_str(), etcd.lease_seconds), ("/x/", 10));
    let NodeAddresses::These(addresses) = &config.node.addresses else { panic!("{config:?}") };
    assert_eq!((addresses.len(), config.log.format), (2, LogFormat::Json));
    assert_eq!(config.policy_agent.health_listen.map(|listen| listen.port()), Some(9122));
}

#[test]
fn a_nodes_addresses_are_found_in_one_way() {
    let node = |text: &str| parse_config("f", &format!("node: {{{text}}}\n"));
    let found = |text: &str| node(text).unwrap_or_else(|mistakes| panic!("{mistakes}")).node.addresses;
    let address = |text: &str| text.parse::<std::net::IpAddr>().unwrap();
    assert_eq!(found("addresses: []"), NodeAddresses::DefaultRoute);
    assert_eq!(found("interface: eth0"), NodeAddresses::Interface("eth0".parse().unwrap()));
    assert_eq!(found("interfacePattern: '^(eth|ens)[0-9]+$'"), {
        NodeAddresses::Pattern("^(eth|ens)[0-9]+$".parse().unwrap())
    });
    let reach = vec![address("10.0.0.1"), address("fd00::1")];
    assert_eq!(found("canReach: [10.0.0.1, 'fd00::1']"), NodeAddresses::CanReach(reach));
    assert_eq!(
        found("addressesFromEnvironment: NODE_IPS"),
        NodeAddresses::Environment("NODE_IPS".to_owned())
    );
    for (text, part) in [
        (
            "interface: eth0, canReach: [10.0.0.1]",
            "node: interface and canReach found, at most one of addresses, ",
        ),
        (
            "interfacePattern: '('",
            "node.interfacePattern: ( found, a regular expression for names of interfaces (",
        ),
        ("canReach: [10.0.0.1, 10.0.0.2]", "node.canReach: 2 addresses found"),
        ("canReach: [127.0.0.1]", "node.canReach[0]: 127.0.0.1 found"),
        ("addressesFromEnvironment: 'A B'", "node.addressesFromEnvironment: A B found, the name of"),
    ] {
        let mistakes = node(text).unwrap_err().to_string().replace('"', "");
        assert!(mistakes.contains(part), "{text}: {mistakes}");
    }
}

#[test]
fn a_bad_node_file_lists_every_mistake() {
    let text = "node:\n  nmae: x\n  addresses: [10.0.0.1, 10.0.0.2]\nstore:\n  etcd: {endpoints: [], certFile: c}\n  \
                file: {}\nlog: {format: xml}\nrouted: {healthListen: 9121}\n";
    let mistakes = parse_config("podway.yaml", text).unwrap_err();
    let fields: Vec<_> =
        mistakes.0.iter().map(|mistake| (mistake.source.as_str(), mistake.field.as_str())).collect();
    assert_eq!(
        fields,
        [
            ("podway.yaml:3", "node.addresses"),
            ("podway.yaml:2", "node.nmae"),
            ("podway.yaml:5", "store.etcd.endpoints"),
            ("podway.yaml:5", "store.etcd.certFile"),
            ("podway.yaml:5", "store.etcd"),
            ("podway.yaml:6", "store.file.path"),
            ("podway.yaml:7", "log.format"),
            ("podway.yaml:8", "routed.healthListen"),
        ],
        "{mistakes}"
    );
    for text in
        ["store: {}", "store: {etcd: {}, file: {path: /x}}", "a: 1\n---\nb: 2", "[]", "node: {name: N}"]
    {
        assert!(parse_config("f", text).is_err(), "{text}");
    }
    let same = "routed: {healthListen: '127.0.0.1:1'}\npolicyAgent: {healthListen: '127.0.0.1:1'}\n";
    assert!(parse_config("f", same).unwrap_err().to_string().contains("two different ports"));
}

/// Text that gets far into the parser: lines of real documents, cut and shuffled.
fn shuffled_lines() -> impl Strategy<Value = String> {
    let lines: Vec<&'static str> = GOOD.lines().collect();
    proptest::collection::vec((proptest::sample::select(lines), 0usize..80), 0..30).prop_map(|lines| {
        lines.iter().map(|(line, cut)| line.chars().take(*cut).collect::<String>() + "\n").collect()
    })
}

const STRANGE: &[&str] = &[
    "",
    "null",
    "-1",
    "1e99",
    "99999999999999999999",
    "[]",
    "{}",
    "[[]]",
    "\"\"",
    "ä",
    "&a x",
    "*a",
    "!!int x",
    "<<: x",
];

/// One part of a real document replaced by something else, in place.
fn mutated() -> impl Strategy<Value = String> {
    (0..GOOD.len(), 0usize..20, proptest::sample::select(STRANGE)).prop_map(|(at, length, value)| {
        format!("{}{value}{}", &GOOD[..at], &GOOD[(at + length).min(GOOD.len())..])
    })
}

proptest! {
    #[test]
    fn no_text_makes_the_parsers_panic(text in prop_oneof![any::<String>(), shuffled_lines(), mutated()]) {
        match parse_documents("f", &text) {
            Ok(documents) => {
                // What was accepted can be stored, and written so that it is accepted again.
                for document in documents {
                    prop_assert_eq!(&Document::from_store(&document.key(), &document.to_json()).unwrap(), &document);
                    prop_assert_eq!(document.key().to_string().parse::<Key>().unwrap(), document.key());
                    let yaml = document.to_yaml();
                    prop_assert_eq!(parse_documents("f", &yaml), Ok(vec![document]), "{}", yaml);
                }
            }
            Err(mistakes) => prop_assert!(!mistakes.is_empty() && !mistakes.to_string().is_empty()),
        }
        if let Err(mistakes) = parse_config("f", &text) {
            prop_assert!(!mistakes.is_empty());
        }
    }
}

#[test]
fn names_of_filters_and_communities_that_do_not_exist_are_found() {
    let text = format!(
        "{}\n---\n{}\n---\n{}",
        own(
            "BGPFilter",
            "f",
            "{otherwise: reject, rules: [{match: [{not: {community: [blue, '1:2', green]}}]}, \
             {set: [{addCommunity: red}, {removeCommunity: no-export}]}]}"
        ),
        own("BGPPeer", "a", "{address: 10.0.0.1, asn: 1, importFilter: f, exportFilter: g}"),
        own("BGPPeer", "b", "{address: 10.0.0.2, asn: 1}"),
    );
    let (mut filters, mut peers) = (BTreeMap::new(), BTreeMap::new());
    for document in parse_documents("f", &text).unwrap_or_else(|mistakes| panic!("{mistakes}")) {
        match document {
            Document::BgpFilter { name, spec } => drop(filters.insert(name, spec)),
            Document::BgpPeer { name, spec } => drop(peers.insert(name, spec)),
            other => panic!("{other:?}"),
        }
    }
    let communities = [("blue".to_owned(), vec!["64512:7".parse().unwrap()])].into();
    let found = references(&communities, &filters, &peers);
    let said: Vec<String> = found
        .iter()
        .map(|one| format!("{} {}: {} found, {} expected", one.key, one.field, one.found, one.expected))
        .collect();
    assert_eq!(
        said,
        [
            "filters/f spec.rules[0].match[0].community: green found, a set of ClusterConfig bgp.communities (blue) \
             expected",
            "filters/f spec.rules[1].set[0].addCommunity: red found, a set of ClusterConfig bgp.communities (blue) \
             expected",
            "peers/a spec.exportFilter: g found, a BGPFilter (f) expected",
        ]
    );
}

#[test]
fn flannels_nodes_are_talked_with_where_flannel_is_named() {
    let compat = |spec: &str| {
        let text = format!(
            "apiVersion: podway.io/v1\nkind: ClusterConfig\nmetadata: {{name: default}}\nspec: {spec}"
        );
        let documents = parse_documents("test", &text).unwrap();
        let Document::ClusterConfig(config) = &documents[0] else { panic!() };
        config.compat.flannel.as_ref().map(|flannel| flannel.prefix.to_string())
    };
    let usual = Some("/coreos.com/network".to_owned());
    assert_eq!(compat("{compat: flannel}"), usual);
    assert_eq!(compat("{compat: {flannel: {}}, backend: host-gw}"), usual);
    assert_eq!(compat("{compat: {flannel: {prefix: /flannel/blue}}}"), Some("/flannel/blue".to_owned()));
    assert_eq!((compat("{compat: {}}"), compat("{backend: bgp}")), (None, None));
}
