//! Inputs to begin with: what our own encoders make of typical values, and texts as an operator writes them.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use bytes::BytesMut;
use ipnet::IpNet;
use podway_bgp::message::attribute::{Aggregator, Opaque, PathAttributes, flag, kind};
use podway_bgp::message::capability::{Capabilities, GracefulRestart};
use podway_bgp::message::open::Open;
use podway_bgp::message::update::Encoding;
use podway_bgp::message::{HEADER_LEN, Nlri, Notification, keepalive, refresh, update};
use podway_bgp::types::{Families, Family};
use podway_ipam::journal::Entry;
use podway_ipam::{Attachment, Condition, Lease, LeaseKind, LeasedAddress};
use podway_model::document::{Document, parse_documents};
use podway_model::socket::{PolicyReply, PolicyRequest, RoutedRequest, encode_message};
use podway_nft::Transaction;
use podway_nft::encode::encode;
use podway_nft::tables::{Masquerade, guard, masquerade};
use serde_json::json;

use crate::leases;
use crate::mutate::Random;

/// Events of [`crate::speaker`] that bring up sessions of our own connections with the neighbours 1 to 3, announce and
/// withdraw, and end one session: each octet is a choice there.
fn sessions() -> Vec<u8> {
    let mut all = vec![0];
    for neighbour in 0..3u8 {
        let conn = [5, neighbour];
        all.extend([5].iter().chain(&conn));
        // An OPEN of that neighbour, and a KEEPALIVE.
        all.extend([7, neighbour, 0].iter().chain(&conn));
        all.extend([9].iter().chain(&conn));
    }
    for round in 0..3u8 {
        for neighbour in 0..3u8 {
            let conn = [5, neighbour];
            for prefix in 1..6u8 {
                // One prefix, announced with other attributes each time.
                all.extend([10, prefix, 0, 1, neighbour + 1, round * 8, 0].iter().chain(&conn));
            }
            all.extend([10, 1 + round, 0, 0].iter().chain(&conn));
        }
        // Time passes.
        all.extend([0, 8]);
    }
    // The last connection is closed.
    all.extend([17, 5, 2]);
    // So that a station has read it all before the last changes.
    all.extend([0, 8].repeat(12));
    for neighbour in 0..2u8 {
        all.extend([10, 4, 0, 0, 5, neighbour]);
        all.extend([10, 5, 0, 1, neighbour + 1, 40, 0, 5, neighbour]);
    }
    all
}

/// The seeds of a target: at least one each.
pub fn seeds(target: &str) -> Vec<Vec<u8>> {
    match target {
        "bgp_framing" => bgp_messages(),
        "bgp_notification" => bodies(&[Notification::shutdown("maintenance").encode().to_vec()]),
        "bgp_open" => bodies(&opens()),
        "bgp_refresh" => {
            let all = [refresh::Subtype::Request, refresh::Subtype::Begin, refresh::Subtype::End];
            bodies(&all.map(|subtype| refresh::encode(subtype, Family::Ipv6).to_vec()))
        }
        "bgp_update" => {
            bodies(&updates()).into_iter().map(|body| [&[0], body.as_slice()].concat()).collect()
        }
        "bgp_station" => vec![sessions()],
        "cni_config" => cni_configurations(),
        "cni_environment" => vec![
            b"CNI_COMMAND=ADD\nCNI_CONTAINERID=c1\nCNI_NETNS=/run/netns/x\nCNI_IFNAME=eth0\nCNI_PATH=/opt/cni/bin\n\
              CNI_ARGS=K8S_POD_NAMESPACE=default;K8S_POD_NAME=web-0;K8S_POD_UID=u1;IgnoreUnknown=1;IP=10.0.0.5/24"
                .to_vec(),
            b"CNI_COMMAND=DEL\nCNI_CONTAINERID=c1\nCNI_IFNAME=eth0".to_vec(),
            b"CNI_COMMAND=VERSION".to_vec(),
        ],
        "documents" | "policy_objects" => documents(),
        "endpoint_record" => vec![endpoint_record().to_string().into_bytes()],
        "flannel" => FLANNEL.iter().map(|text| text.as_bytes().to_vec()).collect(),
        "kern_conntrack" => vec![conntrack()],
        "kern_refusals" => refusals(),
        "kern_rtnetlink" => rtnetlink(),
        "lease_journal" => journals(),
        "names" => vec![b"podway/c1/eth0".to_vec(), b"02:70:77:00:00:01".to_vec(), b"10.244.0.0/26".to_vec()],
        "nft_dump" => tables(),
        "node_config" => vec![NODE_CONFIG.as_bytes().to_vec()],
        "node_file" => node_files(),
        "selectors" => vec![
            b"{\"matchLabels\":{\"app\":\"a\"},\"matchExpressions\":[{\"key\":\"tier\",\"operator\":\"In\",\
              \"values\":[\"x\",\"y\"]},{\"key\":\"z\",\"operator\":\"DoesNotExist\"}]}\n{\"app\":\"a\",\"tier\":\"x\"}"
                .to_vec(),
            b"{}\n{}".to_vec(),
        ],
        "socket_framing" => messages(),
        "socket_messages" => messages().into_iter().map(|message| message[4..].to_vec()).collect(),
        "store_keys" => KEYS.iter().map(|key| key.as_bytes().to_vec()).collect(),
        "store_values" => store_values(),
        // Sequences of steps: any bytes are one.
        _ => (1..=4).map(|seed| noise(seed, 64 << seed)).collect(),
    }
}

const KEYS: [&str; 12] = [
    "config",
    "pools/default",
    "nodes/node-1",
    "live/node-1",
    "claims/node-1/10.244.0.0-26",
    "claims/node-1/fd00:10:244::-122",
    "released/10.244.0.0-26",
    "usage/node-1",
    "peers/tor",
    "reflectors/node-1",
    "objects/namespaces/default",
    "objects/networkpolicies/default/web",
];

/// Configurations and leases as flannel 0.28 has them.
const FLANNEL: [&str; 5] = [
    "config\n{\"Network\":\"10.5.0.0/16\",\"Backend\":{\"Type\":\"vxlan\"}}",
    "config\n{\"Network\":\"10.5.0.0/16\",\"SubnetLen\":26,\"SubnetMin\":\"10.5.1.0\",\"SubnetMax\":\"10.5.9.0\",\
     \"EnableIPv6\":true,\"IPv6Network\":\"fd00:5::/48\",\"IPv6SubnetLen\":64,\
     \"Backend\":{\"Type\":\"vxlan\",\"VNI\":7,\"Port\":4789,\"DirectRouting\":true}}",
    "10.5.3.0-24\n{\"PublicIP\":\"192.168.64.3\",\"PublicIPv6\":null,\"BackendType\":\"vxlan\",\
     \"BackendData\":{\"VNI\":1,\"VtepMAC\":\"c6:d2:32:6f:8f:44\"}}",
    "10.5.3.0-24&fd00:5:3::-64\n{\"PublicIP\":\"10.0.0.1\",\"PublicIPv6\":\"fd00::1\",\"BackendType\":\"vxlan\",\
     \"BackendData\":{\"VNI\":1,\"VtepMAC\":\"02:00:00:00:00:01\"},\
     \"BackendV6Data\":{\"VNI\":1,\"VtepMAC\":\"02:00:00:00:00:02\"},\
     \"Podway\":{\"Node\":\"n1\",\"InstanceID\":\"00000000-0000-4000-8000-000000000001\"}}",
    "10.5.3.0-24\n{\"PublicIP\":\"10.0.0.1\",\"PublicIPv6\":null,\"BackendType\":\"host-gw\"}",
];

/// A usual one, and some with blocks at the ends of what an address can be.
fn node_files() -> Vec<Vec<u8>> {
    let usual: String = leases::NODE.split_whitespace().collect();
    let odd = [
        ("10.0.0.0/30", "0.0.0.0/0"),
        ("fd00::/126", "::/0"),
        ("fd00::/126", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:fff0/124"),
        ("10.0.0.8/31", "255.255.255.252/30"),
        ("10.0.0.8/31", "10.0.0.0/30"),
    ];
    let others = odd.map(|(block, other)| usual.replace(block, other).into_bytes());
    [usual.into_bytes()].into_iter().chain(others).collect()
}

fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut random = Random::new(seed);
    (0..len).map(|_| random.number().to_le_bytes()[0]).collect()
}

fn bodies(messages: &[Vec<u8>]) -> Vec<Vec<u8>> {
    messages.iter().map(|message| message[HEADER_LEN..].to_vec()).collect()
}

fn opens() -> Vec<Vec<u8>> {
    let families = Families::BOTH;
    let restart = GracefulRestart {
        restarting: true,
        notification: true,
        time: 120,
        families,
        preserved: Families::IPV4,
    };
    let capabilities = Capabilities {
        families: Some(families),
        route_refresh: true,
        enhanced_refresh: true,
        extended_next_hop: true,
        extended_messages: true,
        four_octet_as: Some(4_200_000_001),
        graceful_restart: Some(restart),
        add_path_receive: families,
        add_path_send: Families::IPV4,
        ..Capabilities::default()
    };
    let router_id = Ipv4Addr::new(10, 0, 0, 2);
    let whole = Open { asn: 4_200_000_001, hold_time: 90, router_id, capabilities };
    let plain = Open { asn: 64512, hold_time: 0, router_id, capabilities: Capabilities::default() };
    vec![whole.encode().to_vec(), plain.encode().to_vec()]
}

fn prefix(text: &str) -> Nlri {
    text.parse::<IpNet>().expect("a prefix").into()
}

fn updates() -> Vec<Vec<u8>> {
    let v4 = ["10.244.0.0/26", "10.244.1.64/26"].map(prefix);
    let v6 = ["fd00:10:244::/122"].map(prefix);
    let mut attributes = PathAttributes::originated(IpAddr::from([10, 0, 0, 2]));
    attributes.local_pref = Some(100);
    let mut full = attributes.clone();
    for asn in [65001, 4_200_000_001] {
        full.as_path.prepend(asn);
    }
    full.med = Some(5);
    full.atomic_aggregate = true;
    let router_id = Ipv4Addr::new(10, 0, 0, 9);
    full.aggregator = Some(Aggregator { asn: 4_200_000_001, router_id, partial: false });
    full.originator_id = Some(router_id);
    full.cluster_list = vec![router_id, Ipv4Addr::new(9, 9, 9, 9)];
    let flags = flag::OPTIONAL | flag::TRANSITIVE;
    let value = |bytes: &'static [u8]| bytes::Bytes::from_static(bytes);
    full.others = vec![
        Opaque { kind: kind::COMMUNITIES, flags, value: value(&[0xff, 0xff, 0xff, 1]) },
        Opaque { kind: kind::EXTENDED_COMMUNITIES, flags, value: value(&[0, 2, 0, 1, 0, 0, 0, 1]) },
        Opaque { kind: kind::LARGE_COMMUNITIES, flags, value: value(&[0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 3]) },
        Opaque { kind: 99, flags: flags | flag::PARTIAL, value: value(&[1, 2, 3]) },
    ];
    let six = PathAttributes { next_hop: "fd00::2".parse().expect("an address"), ..full.clone() };
    let mut all = vec![];
    for four_octet in [true, false] {
        for (attributes, prefixes) in [(&attributes, &v4[..]), (&full, &v4[..]), (&six, &v6[..])] {
            let mut out = BytesMut::new();
            let encoding = Encoding { four_octet_as: four_octet, ..Encoding::PLAIN };
            if update::announce(&mut out, attributes, prefixes, &encoding).is_ok() {
                all.push(out.to_vec());
            }
        }
    }
    for prefixes in [&v4[..], &v6[..]] {
        let mut out = BytesMut::new();
        update::withdraw(&mut out, prefixes, &Encoding::PLAIN);
        all.push(out.to_vec());
    }
    for family in Family::ALL {
        let mut out = BytesMut::new();
        update::end_of_rib(&mut out, family);
        all.push(out.to_vec());
    }
    all
}

fn bgp_messages() -> Vec<Vec<u8>> {
    let mut all = opens();
    all.extend(updates());
    all.push(keepalive().to_vec());
    all.push(Notification::cease(4).encode().to_vec());
    all.push(
        [refresh::encode(refresh::Subtype::Request, Family::Ipv6).to_vec(), keepalive().to_vec()].concat(),
    );
    all
}

fn cni_configurations() -> Vec<Vec<u8>> {
    let plain = json!({"cniVersion": "1.0.0", "name": "podway", "type": "podway"});
    let full = json!({
        "cniVersion": "1.1.0", "name": "podway", "type": "podway", "podway": {"mtu": 1400, "pools": ["default"]},
        "runtimeConfig": {"ips": ["10.0.0.5/24", "fd00::5"], "dns": {"servers": ["10.0.0.10"], "searches": ["x"]}},
        "args": {"cni": {"ips": ["10.0.0.6"]}}, "dns": {"nameservers": ["10.0.0.1"]},
        "cni.dev/valid-attachments": [{"containerID": "c1", "ifname": "eth0"}],
        "prevResult": {
            "cniVersion": "1.1.0", "interfaces": [{"name": "pw0"}, {"name": "eth0", "sandbox": "/run/netns/x"}],
            "ips": [{"address": "10.0.0.5/32", "interface": 1}], "routes": [{"dst": "0.0.0.0/0"}], "dns": {},
        },
    });
    vec![plain.to_string().into_bytes(), full.to_string().into_bytes()]
}

const DOCUMENTS: [&str; 3] = [
    "apiVersion: podway.io/v1\nkind: ClusterConfig\nmetadata: {name: default}\nspec:\n  backend: bgp\n  underlayMtu: 9000\n\
     \x20 bgp: {asn: 64512}\n  vxlan: {vni: 7}\n---\napiVersion: podway.io/v1\nkind: Pool\nmetadata: {name: default}\nspec:\n\
     \x20 cidr: 10.244.0.0/16\n  blockSize: 26\n  nat: true\n  nodeSelector: {matchLabels: {zone: a}}\n",
    "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: web, namespace: x}\nspec:\n  podSelector: {}\n\
     \x20 policyTypes: [Ingress, Egress]\n  ingress:\n  - from:\n    - podSelector: {matchLabels: {app: a}}\n\
     \x20   - namespaceSelector: {matchExpressions: [{key: t, operator: NotIn, values: [b]}]}\n\
     \x20   - ipBlock: {cidr: 10.0.0.0/8, except: [10.1.0.0/16]}\n    ports:\n    - {protocol: TCP, port: http}\n\
     \x20   - {protocol: UDP, port: 53, endPort: 60}\n  egress: []\n",
    "apiVersion: v1\nkind: List\nitems:\n- apiVersion: v1\n  kind: Namespace\n  metadata: {name: x, labels: {t: a}}\n\
     - apiVersion: v1\n  kind: Pod\n  metadata: {name: p, namespace: x, uid: u1, labels: {app: a}}\n  spec:\n\
     \x20   nodeName: n1\n    containers:\n    - {name: c, ports: [{name: http, containerPort: 80, protocol: TCP}]}\n\
     \x20 status: {phase: Running, podIP: 10.0.0.1, podIPs: [{ip: 10.0.0.1}, {ip: 'fd00::1'}]}\n",
];

fn documents() -> Vec<Vec<u8>> {
    let mut all: Vec<Vec<u8>> = DOCUMENTS.iter().map(|text| text.as_bytes().to_vec()).collect();
    all.push(DOCUMENTS[1..].join("---\n").into_bytes());
    // Depth and repetition have limits.
    all.push(["[".repeat(2000), "]".repeat(2000)].concat().into_bytes());
    all.push("{a: ".repeat(1000).into_bytes());
    let doubled: String = (1..20).map(|n| format!("a{n}: &a{n} [*a{}, *a{}]\n", n - 1, n - 1)).collect();
    all.push(format!("a0: &a0 [x, x]\n{doubled}").into_bytes());
    all
}

fn store_values() -> Vec<Vec<u8>> {
    let value =
        |document: &Document| [document.key().to_string().as_bytes(), b"\n", &document.to_json()].concat();
    let read = |text: &&str| parse_documents("seed", text).unwrap_or_default();
    let mut all: Vec<Vec<u8>> = DOCUMENTS.iter().flat_map(read).map(|document| value(&document)).collect();
    let id = "6f2c1c1e-0000-4000-8000-0123456789ab";
    for other in [
        json!({"schema": 1, "instanceId": id, "addressV4": "10.0.0.1", "addressV6": "fd00::1", "labels": {"a": "b"},
            "vtepMac": "02:70:77:00:00:01", "version": "0.1.0", "asn": 64512}),
        json!({"schema": 1, "instanceId": id, "addresses": ["10.0.0.1"]}),
        json!({"schema": 1, "instanceId": id, "pool": "default", "confirmed": true}),
        json!({"schema": 1, "atUnixSeconds": 1, "formerOwner": "node-1"}),
        json!({"schema": 1, "blocks": {"10.244.0.0/26": 3}}),
        json!({"schema": 1, "nodeSelector": {}, "address": "10.0.0.254", "port": 179, "asn": 64513}),
        json!({"schema": 1, "clusterId": "1.1.1.1"}),
    ] {
        all.push(format!("config\n{other}").into_bytes());
    }
    all
}

fn endpoint_record() -> serde_json::Value {
    json!({
        "schema": 1, "id": "0123456789abcdef", "bootId": "00000000-0000-0000-0000-000000000001", "network": "podway",
        "containerId": "c1", "ifname": "eth0", "hostIfname": "pw0123456789a", "mac": "02:70:77:00:00:02", "mtu": 1500,
        "pod": {"namespace": "default", "name": "web-0", "uid": "u1"}, "addresses": ["10.244.0.1", "fd00::1"],
        "hostPorts": [{"hostPort": 80, "containerPort": 8080, "protocol": "TCP"}], "netns": "/run/netns/x",
    })
}

fn messages() -> Vec<Vec<u8>> {
    let endpoint = serde_json::from_value(endpoint_record()).ok();
    let announced = endpoint.map(|endpoint| PolicyRequest::Announce { endpoint });
    let mut all: Vec<Vec<u8>> =
        announced.iter().chain([&PolicyRequest::Status]).flat_map(encode_message).collect();
    all.extend(encode_message(&PolicyReply::Programmed { pod_known: true }));
    all.extend(encode_message(&RoutedRequest::Status));
    all
}

fn journals() -> Vec<Vec<u8>> {
    let literal = "the literal is a name";
    let lease = |number: u8, ips: &[&str]| Lease {
        attachment: Attachment::new(
            format!("c{number}").parse().expect(literal),
            "eth0".parse().expect(literal),
        ),
        network: "podway".parse().expect(literal),
        addresses: ips
            .iter()
            .map(|ip| LeasedAddress {
                address: ip.parse().expect("an address"),
                pool: "v4".parse().expect(literal),
            })
            .collect(),
        since: Duration::from_millis(81234),
        kind: LeaseKind::Wired,
    };
    let first = lease(1, &["10.0.0.1", "fd00::1"]);
    let entries = [
        Entry::Freed {
            address: IpAddr::from([10, 0, 0, 9]),
            at: Duration::from_secs(1),
            condition: Condition::Clean,
        },
        Entry::Lease(first.clone()),
        Entry::Lease(lease(2, &["10.0.0.2"])),
        Entry::Free { attachment: first.attachment, at: Duration::from_secs(9), condition: Condition::Dirty },
        Entry::Clean(vec![IpAddr::from([10, 0, 0, 1])]),
        Entry::Forget("10.0.0.0/30".parse().expect("a prefix")),
    ];
    let boot = "00000000-0000-0000-0000-000000000001".parse().expect(literal);
    let whole = leases::journal_of(&boot, &entries);
    // The same without checksums, which the target puts in.
    let text = String::from_utf8_lossy(&whole);
    let bare: String =
        text.lines().filter_map(|line| line.split_once(' ')).map(|(_, body)| format!("{body}\n")).collect();
    vec![format!("+{bare}").into_bytes(), whole]
}

fn tables() -> Vec<Vec<u8>> {
    let masquerade = masquerade(&Masquerade::default());
    [guard(&["10.0.0.0/8".parse().expect("a prefix")]), masquerade]
        .iter()
        .map(|table| encode(&Transaction::create(table), 1).bytes)
        .flat_map(|bytes| bytes.chunks(crate::MAX_INPUT).next().map(<[u8]>::to_vec))
        .collect()
}

/// A netlink message: length, type, flags, sequence number, port, body.
fn message(kind: u16, flags: u16, body: &[u8]) -> Vec<u8> {
    let mut out = u32::try_from(16 + body.len()).unwrap_or(u32::MAX).to_ne_bytes().to_vec();
    out.extend_from_slice(&kind.to_ne_bytes());
    out.extend_from_slice(&flags.to_ne_bytes());
    out.extend_from_slice(&7u32.to_ne_bytes());
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(body);
    out.resize(out.len().next_multiple_of(4), 0);
    out
}

fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let mut out = u16::try_from(4 + value.len()).unwrap_or(u16::MAX).to_ne_bytes().to_vec();
    out.extend_from_slice(&kind.to_ne_bytes());
    out.extend_from_slice(value);
    out.resize(out.len().next_multiple_of(4), 0);
    out
}

fn conntrack() -> Vec<u8> {
    let tuple = |kind: u16, from: u8, to: u8| {
        let ip = [attribute(1, &[10, 0, 0, from]), attribute(2, &[10, 0, 0, to])].concat();
        attribute(
            kind | 0x8000,
            &[attribute(1 | 0x8000, &ip), attribute(2 | 0x8000, &attribute(1, &[6]))].concat(),
        )
    };
    [vec![2, 0, 0, 0], tuple(1, 1, 2), tuple(2, 2, 1), attribute(12, &[0, 0, 0, 9]), attribute(18, &[0, 5])]
        .concat()
}

fn refusals() -> Vec<Vec<u8>> {
    let errno = (-17i32).to_ne_bytes();
    let request = message(24, 5, &[]);
    let capped = [&errno[..], &request[..16], &attribute(1, b"File exists\0")].concat();
    vec![message(2, 0x300, &capped), message(2, 0, &[0; 20]), message(3, 2, &errno)]
}

fn rtnetlink() -> Vec<Vec<u8>> {
    let link = [
        &[0, 0, 1, 0, 3, 0, 0, 0, 0x43, 0, 1, 0, 0, 0, 0, 0][..],
        &attribute(3, b"pw0\0"),
        &attribute(4, &1500u32.to_ne_bytes()),
        &attribute(1, &[2, 0x70, 0x77, 0, 0, 1]),
        &attribute(27, &112u32.to_ne_bytes()),
        &attribute(20, b"podway/c1/eth0\0"),
        &attribute(
            18 | 0x8000,
            &[
                attribute(1, b"vxlan\0"),
                attribute(
                    2 | 0x8000,
                    &[
                        attribute(1, &7u32.to_ne_bytes()),
                        attribute(15, &4789u16.to_be_bytes()),
                        attribute(2, &[10, 0, 0, 1]),
                    ]
                    .concat(),
                ),
            ]
            .concat(),
        ),
    ]
    .concat();
    let address =
        [&[2, 24, 0x80, 0, 3, 0, 0, 0][..], &attribute(1, &[10, 0, 0, 1]), &attribute(2, &[10, 0, 0, 1])]
            .concat();
    let route = [
        &[2, 24, 0, 0, 254, 112, 0, 1, 0, 0, 0, 0][..],
        &attribute(1, &[10, 0, 1, 0]),
        &attribute(5, &[10, 0, 0, 2]),
        &attribute(4, &3u32.to_ne_bytes()),
        &attribute(30, &9u32.to_ne_bytes()),
        &attribute(8 | 0x8000, &attribute(2, &1400u32.to_ne_bytes())),
    ]
    .concat();
    let neighbour = [
        &[2, 0, 0, 0, 3, 0, 0, 0, 0x80, 0, 0, 0][..],
        &attribute(1, &[10, 0, 0, 9]),
        &attribute(2, &[2, 0, 0, 0, 0, 9]),
    ]
    .concat();
    let next_hop = [
        &[2, 0, 112, 0, 0, 0, 0, 0][..],
        &attribute(1, &9u32.to_ne_bytes()),
        &attribute(5, &3u32.to_ne_bytes()),
        &attribute(6, &[10, 0, 0, 2]),
    ]
    .concat();
    let all = [
        message(16, 0, &link),
        message(20, 0, &address),
        message(24, 0, &route),
        message(28, 0, &neighbour),
        message(104, 0, &next_hop),
    ];
    all.iter().cloned().chain([all.concat()]).collect()
}

const NODE_CONFIG: &str = "\
node:\n  name: node-1\n\
store:\n  etcd:\n    endpoints: [https://10.0.0.1:2379]\n    prefix: /podway/v1/\n    caFile: /etc/podway/ca.pem\n\
\x20   certFile: /c.pem\n    keyFile: /k.pem\n    username: u\n    passwordFile: /p\n    leaseSeconds: 20\n\
log:\n  format: json\n  level: info\n\
routed:\n  healthListen: 127.0.0.1:9100\n\
policyAgent:\n  healthListen: '[::1]:9101'\n";
