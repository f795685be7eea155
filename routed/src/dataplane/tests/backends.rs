//! What each backend wants, as tables.

use std::collections::BTreeMap;
use std::net::IpAddr;

use podway_model::cluster::{Backend, Encapsulation, IpipMode};
use podway_model::ids::{MacAddr, WireguardKey};
use podway_model::names::{IPIP_DEVICE, VXLAN_DEVICE, WIREGUARD_DEVICE, vtep_mac};

use super::super::backends::{VXLAN_DEVICE6, link_local};
use super::super::desired::{Desired, DeviceKind, Interface, Target};
use super::super::mtu::pod_mtu;
use super::{Cluster, ip, name, net};
use crate::view::OwnBlockState;

/// Forwarding entries of a VXLAN device.
fn fdb(desired: &Desired, device: &str) -> BTreeMap<MacAddr, IpAddr> {
    match &desired.devices[device].kind {
        DeviceKind::Vxlan { fdb, .. } => fdb.clone(),
        other => panic!("{other:?}"),
    }
}

/// Peers of the WireGuard device: endpoint and prefixes of each.
fn peers(desired: &Desired) -> Vec<(WireguardKey, String, Vec<String>)> {
    match &desired.devices[WIREGUARD_DEVICE].kind {
        DeviceKind::Wireguard { peers, .. } => peers
            .iter()
            .map(|(key, peer)| {
                let allowed = peer.allowed.iter().map(ToString::to_string).collect();
                (*key, peer.endpoint.unwrap().to_string(), allowed)
            })
            .collect(),
        other => panic!("{other:?}"),
    }
}

fn encapsulate(cluster: &mut Cluster, pool: &str, encapsulation: Encapsulation) {
    let pool = cluster.view.pools.get_mut(&pool.parse().unwrap()).unwrap();
    pool.encapsulation = Some(encapsulation);
}

/// Routes as text, in the order of their keys.
fn routes(desired: &Desired) -> Vec<String> {
    desired
        .routes
        .iter()
        .map(|(key, spec)| {
            let target = match spec.target {
                Target::Via(via) => match via.interface {
                    Interface::Device(name) => format!("via {} dev {name} onlink", via.gateway),
                    Interface::Underlay(index) => format!("via {} dev {index}", via.gateway),
                },
                Target::Blackhole => "blackhole".to_owned(),
                Target::Unreachable => "unreachable".to_owned(),
            };
            let source = spec.source.map(|s| format!(" src {s}")).unwrap_or_default();
            let mtu = spec.mtu.map(|m| format!(" mtu {m}")).unwrap_or_default();
            format!("{} {target}{source}{mtu}", key.destination)
        })
        .collect()
}

#[test]
fn host_gw_routes_via_the_peers_addresses_of_each_family() {
    let desired = Cluster::new(Backend::HostGw).desired();
    assert_eq!(
        routes(&desired),
        [
            "10.244.0.0/16 unreachable",
            "10.244.1.0/26 blackhole",
            "10.244.2.0/26 via 192.0.2.2 dev 2 mtu 1500",
            "10.244.3.0/26 via 192.0.2.3 dev 2 mtu 1500",
            "fd00:244::/32 unreachable",
            "fd00:244:1::/122 blackhole",
            "fd00:244:2::/122 via fd00:2::2 dev 2 mtu 1500",
            "fd00:244:3::/122 via fd00:2::3 dev 2 mtu 1500",
        ]
    );
    assert!(desired.devices.is_empty() && desired.node_problems.is_empty() && desired.prune);
    assert_eq!(desired.neighbours_on_link, 4);
}

#[test]
fn host_gw_refuses_a_peer_that_is_not_on_link_and_keeps_the_others() {
    let mut cluster = Cluster::new(Backend::HostGw);
    cluster.record(2).address_v4 = Some([198, 51, 100, 2].into());
    cluster.record(3).address_v6 = None;
    let desired = cluster.desired();
    let problem = |node: &str| desired.node_problems[&name(node)].as_str();
    assert_eq!(
        problem("n2"),
        "its address 198.51.100.2 is not on a link of this node; use the vxlan, ipip, wireguard or bgp backend"
    );
    assert_eq!(problem("n3"), "it has no IPv6 underlay address for its block fd00:244:3::/122");
    let all = routes(&desired);
    assert!(all.contains(&"10.244.3.0/26 via 192.0.2.3 dev 2 mtu 1500".to_owned()), "{all:?}");
    assert!(all.contains(&"fd00:244:2::/122 via fd00:2::2 dev 2 mtu 1500".to_owned()), "{all:?}");
    assert!(!all.iter().any(|route| route.starts_with("10.244.2.0/26")), "{all:?}");
}

#[test]
fn vxlan_carries_both_families_over_the_ipv4_underlay() {
    let desired = Cluster::new(Backend::Vxlan).desired();
    let (mac2, mac3) = (vtep_mac("n2", VXLAN_DEVICE), vtep_mac("n3", VXLAN_DEVICE));
    assert_eq!(
        routes(&desired),
        [
            "10.244.0.0/16 unreachable".to_owned(),
            "10.244.1.0/26 blackhole".to_owned(),
            "10.244.2.0/26 via 10.244.2.0 dev podway.vxlan onlink src 10.244.1.0 mtu 1450".to_owned(),
            "10.244.3.0/26 via 10.244.3.0 dev podway.vxlan onlink src 10.244.1.0 mtu 1450".to_owned(),
            "fd00:244::/32 unreachable".to_owned(),
            "fd00:244:1::/122 blackhole".to_owned(),
            format!(
                "fd00:244:2::/122 via {} dev podway.vxlan onlink src fd00:244:1:: mtu 1450",
                link_local(mac2)
            ),
            format!(
                "fd00:244:3::/122 via {} dev podway.vxlan onlink src fd00:244:1:: mtu 1450",
                link_local(mac3)
            ),
        ]
    );
    assert_eq!(desired.devices.keys().collect::<Vec<_>>(), [&VXLAN_DEVICE]);
    let device = &desired.devices[VXLAN_DEVICE];
    let DeviceKind::Vxlan { port, local, mac, neighbours, fdb, .. } = &device.kind else { panic!() };
    assert_eq!(*fdb, [(mac2, ip("192.0.2.2")), (mac3, ip("192.0.2.3"))].into());
    assert_eq!(
        *neighbours,
        [
            (ip("10.244.2.0"), mac2),
            (link_local(mac2).into(), mac2),
            (ip("10.244.3.0"), mac3),
            (link_local(mac3).into(), mac3)
        ]
        .into()
    );
    assert_eq!(device.addresses, [ip("10.244.1.0"), ip("fd00:244:1::")].into());
    assert_eq!((*local, device.mtu.bytes(), *port), (ip("192.0.2.1"), 1450, 8472));
    assert_eq!(*mac, vtep_mac("n1", VXLAN_DEVICE));
}

#[test]
fn vxlan_reaches_a_node_without_ipv4_over_the_ipv6_underlay() {
    let mut cluster = Cluster::new(Backend::Vxlan);
    cluster.record(3).address_v4 = None;
    let desired = cluster.desired();
    assert_eq!(desired.devices.keys().collect::<Vec<_>>(), [&VXLAN_DEVICE, &VXLAN_DEVICE6]);
    let mac3 = vtep_mac("n3", VXLAN_DEVICE);
    assert_eq!(fdb(&desired, VXLAN_DEVICE6), [(mac3, ip("fd00:2::3"))].into());
    assert!(!fdb(&desired, VXLAN_DEVICE).contains_key(&mac3));
    // The largest overhead in use counts everywhere: a pod's MTU is one number.
    let all = routes(&desired);
    let v4 = "10.244.3.0/26 via 10.244.3.0 dev podway.vxlan6 onlink src 10.244.1.0 mtu 1430";
    assert!(all.contains(&v4.to_owned()), "{all:?}");
    assert!(desired.devices.values().all(|device| device.mtu.bytes() == 1430));
    assert_eq!(pod_mtu(&cluster.view, &cluster.facts).bytes(), 1430);

    cluster.facts.address_v6 = None;
    let desired = cluster.desired();
    assert_eq!(
        desired.node_problems[&name("n3")],
        "it has no underlay address of a family that this node has too"
    );
}

#[test]
fn vxlan_routes_directly_to_peers_on_link_if_told_so() {
    let mut cluster = Cluster::new(Backend::Vxlan);
    cluster.view.config.vxlan.direct_routing = true;
    cluster.record(3).address_v4 = Some([198, 51, 100, 3].into());
    let all = routes(&cluster.desired());
    assert!(all.contains(&"10.244.2.0/26 via 192.0.2.2 dev 2 mtu 1450".to_owned()), "{all:?}");
    let far = "10.244.3.0/26 via 10.244.3.0 dev podway.vxlan onlink src 10.244.1.0 mtu 1450";
    assert!(all.contains(&far.to_owned()), "{all:?}");
}

#[test]
fn vxlan_tells_of_peers_that_cannot_be_told_apart() {
    let mut cluster = Cluster::new(Backend::Vxlan);
    cluster.record(3).vtep_mac = Some(vtep_mac("n2", VXLAN_DEVICE));
    let desired = cluster.desired();
    assert!(desired.node_problems[&name("n3")].contains("already in use for 192.0.2.2"));
    assert!(!desired.node_problems.contains_key(&name("n2")));

    let mut cluster = Cluster::new(Backend::Vxlan);
    cluster.record(2).tunnel_v4 = None;
    cluster.peer(3).record = None;
    let desired = cluster.desired();
    assert_eq!(desired.node_problems[&name("n2")], "it has published no IPv4 tunnel address");
    assert_eq!(desired.node_problems[&name("n3")], "it holds blocks but has published no addresses");
}

#[test]
fn nodes_that_publish_one_address_are_told_with_both_names_and_keep_their_routes() {
    for backend in [Backend::HostGw, Backend::Vxlan, Backend::Wireguard, Backend::Bgp] {
        let mut cluster = Cluster::new(backend);
        let before = cluster.desired();
        assert_eq!(before.shared_addresses, Vec::<String>::new());
        cluster.record(3).address_v4 = Some([192, 0, 2, 2].into());
        if backend == Backend::Bgp {
            cluster.bgp.routes.insert(net("10.244.3.0/26"), vec![ip("192.0.2.2")]);
        }
        let desired = cluster.desired();
        let [told] = &desired.shared_addresses[..] else { panic!("{:?}", desired.shared_addresses) };
        assert!(told.starts_with("nodes n2, n3 publish the same address 192.0.2.2"), "{told}");
        assert!(told.contains("node.addresses or node.interface"), "{told}");
        for (node, other) in [("n2", "n3"), ("n3", "n2")] {
            let problem = &desired.node_problems[&name(node)];
            assert!(problem.ends_with(&format!("192.0.2.2 as {other}")), "{backend}: {problem}");
        }
        let keys = |desired: &Desired| desired.routes.keys().copied().collect::<Vec<_>>();
        assert_eq!(keys(&desired), keys(&before), "{backend}: nothing is taken away");
        assert_eq!(routes(&desired), routes(&cluster.desired()));
        cluster.peer(3).live = false;
        assert!(cluster.desired().shared_addresses[0].contains("`podwayctl node release n3`"));
    }
}

#[test]
fn an_address_that_is_this_nodes_own_leads_nowhere_and_is_told() {
    for backend in [Backend::HostGw, Backend::Vxlan] {
        let mut cluster = Cluster::new(backend);
        cluster.record(3).address_v4 = Some([192, 0, 2, 1].into());
        let desired = cluster.desired();
        assert!(desired.shared_addresses[0].starts_with("nodes n1, n3 publish the same address 192.0.2.1"));
        assert!(desired.node_problems[&name("n3")].contains("this node's own address 192.0.2.1"));
        let all = routes(&desired);
        assert!(!all.iter().any(|route| route.starts_with("10.244.3.0/26 via")), "{all:?}");
        assert!(all.iter().any(|route| route.starts_with("10.244.2.0/26 via")), "{all:?}");
    }
}

#[test]
fn ipip_routes_via_the_peers_underlay_addresses_and_says_what_it_cannot_carry() {
    let mut cluster = Cluster::new(Backend::Ipip);
    cluster.view.pools.get_mut(&"v6".parse().unwrap()).unwrap().encapsulation = None;
    cluster.record(3).address_v4 = Some([198, 51, 100, 3].into());
    let desired = cluster.desired();
    assert_eq!(
        routes(&desired),
        [
            "10.244.0.0/16 unreachable",
            "10.244.1.0/26 blackhole",
            "10.244.2.0/26 via 192.0.2.2 dev podway.ipip onlink src 10.244.1.0 mtu 1480",
            "10.244.3.0/26 via 198.51.100.3 dev podway.ipip onlink src 10.244.1.0 mtu 1480",
            "fd00:244::/32 unreachable",
            "fd00:244:1::/122 blackhole",
        ]
    );
    let device = &desired.devices[IPIP_DEVICE];
    assert_eq!(device.kind, DeviceKind::Ipip { local: [192, 0, 2, 1].into() });
    assert_eq!(device.addresses, [ip("10.244.1.0")].into(), "no IPv6 goes through it");
    assert_eq!(
        desired.node_problems[&name("n2")],
        "its block fd00:244:2::/122 is IPv6, which IPIP does not carry: give its pool the encapsulation none, \
         vxlan or wireguard"
    );

    // Across subnets only.
    cluster.view.config.ipip.mode = IpipMode::CrossSubnet;
    let all = routes(&cluster.desired());
    assert!(all.contains(&"10.244.2.0/26 via 192.0.2.2 dev 2 mtu 1480".to_owned()), "{all:?}");
    let far = "10.244.3.0/26 via 198.51.100.3 dev podway.ipip onlink src 10.244.1.0 mtu 1480";
    assert!(all.contains(&far.to_owned()), "{all:?}");

    // Without IPv4 on the underlay, here or there.
    cluster.record(3).address_v4 = None;
    let problem = cluster.desired().node_problems[&name("n3")].clone();
    assert_eq!(problem, "it has no IPv4 underlay address, which IPIP needs");
    cluster.facts.address_v4 = None;
    let desired = cluster.desired();
    assert!(desired.devices.is_empty());
    let problem = "encapsulation ipipCrossSubnet needs an IPv4 underlay address, and this node has none";
    assert_eq!(desired.problems, [problem]);
}

#[test]
fn wireguard_carries_both_families_to_peers_known_by_their_keys() {
    let mut cluster = Cluster::new(Backend::Wireguard);
    cluster.view.config.wireguard.keepalive_seconds = 25;
    cluster.peer(2).blocks.insert(net("10.244.2.64/26"));
    let desired = cluster.desired();
    assert_eq!(desired.node_problems, BTreeMap::new());
    let all = routes(&desired);
    let v4 = "10.244.2.64/26 via 10.244.2.0 dev podway.wg onlink src 10.244.1.0 mtu 1440";
    assert!(all.contains(&v4.to_owned()), "{all:?}");
    let gateway = link_local(vtep_mac("n3", VXLAN_DEVICE));
    let v6 = format!("fd00:244:3::/122 via {gateway} dev podway.wg onlink src fd00:244:1:: mtu 1440");
    assert!(all.contains(&v6), "{all:?}");
    let text = |all: &[&str]| all.iter().map(|one| (*one).to_owned()).collect::<Vec<_>>();
    let n2 =
        text(&["10.244.2.0/26", "10.244.2.0/32", "10.244.2.64/26", "fd00:244:2::/122", "fd00:244:2::/128"]);
    let n3 = text(&["10.244.3.0/26", "10.244.3.0/32", "fd00:244:3::/122", "fd00:244:3::/128"]);
    assert_eq!(
        peers(&desired),
        [
            (WireguardKey([2; 32]), "192.0.2.2:51820".to_owned(), n2),
            (WireguardKey([3; 32]), "192.0.2.3:51820".to_owned(), n3.clone()),
        ]
    );
    let device = &desired.devices[WIREGUARD_DEVICE];
    assert_eq!(device.addresses, [ip("10.244.1.0"), ip("fd00:244:1::")].into());
    let DeviceKind::Wireguard { peers: all, .. } = &device.kind else { panic!() };
    assert!(all.values().all(|peer| peer.keepalive_seconds == 25));

    // A peer without IPv4 is reached over IPv6, on the same device.
    cluster.record(3).address_v4 = None;
    let desired = cluster.desired();
    assert_eq!(peers(&desired)[1], (WireguardKey([3; 32]), "[fd00:2::3]:51820".to_owned(), n3));
    assert_eq!(desired.devices[WIREGUARD_DEVICE].mtu.bytes(), 1420);
}

#[test]
fn wireguard_refuses_peers_without_a_key_and_keys_of_two_nodes() {
    let mut cluster = Cluster::new(Backend::Wireguard);
    cluster.record(2).wireguard_key = None;
    cluster.record(3).wireguard_key = Some(WireguardKey([1; 32]));
    let desired = cluster.desired();
    let problem = |desired: &Desired, node: &str| desired.node_problems[&name(node)].clone();
    assert!(problem(&desired, "n2").contains("has published no WireGuard key"));
    assert!(problem(&desired, "n3").contains("also that of this node"), "{:?}", desired.node_problems);
    assert!(peers(&desired).is_empty());

    let mut cluster = Cluster::new(Backend::Wireguard);
    cluster.record(3).wireguard_key = Some(WireguardKey([2; 32]));
    let desired = cluster.desired();
    assert!(problem(&desired, "n3").contains("also that of the node at 192.0.2.2"));
    assert!(problem(&desired, "n3").contains("/var/lib/podway/wireguard.key"));
    assert_eq!(peers(&desired).len(), 1);

    // A tunnel address that has left its node with the block stays with its new holder.
    let mut cluster = Cluster::new(Backend::Wireguard);
    cluster.peer(2).blocks = [net("10.244.9.0/26")].into();
    assert_eq!(peers(&cluster.desired())[0].2, ["10.244.9.0/26"]);

    let mut cluster = Cluster::new(Backend::Wireguard);
    cluster.wireguard = Err("this kernel has no WireGuard".to_owned());
    let desired = cluster.desired();
    assert_eq!(desired.problems, ["WireGuard cannot be used on this node: this kernel has no WireGuard"]);
    assert_eq!(problem(&desired, "n2"), "this node has no device podway.wg");
}

#[test]
fn each_pool_has_the_encapsulation_that_it_names() {
    let mut cluster = Cluster::new(Backend::HostGw);
    encapsulate(&mut cluster, "v4", Encapsulation::Ipip);
    encapsulate(&mut cluster, "v6", Encapsulation::Wireguard);
    let desired = cluster.desired();
    assert_eq!(desired.devices.keys().collect::<Vec<_>>(), [&IPIP_DEVICE, &WIREGUARD_DEVICE]);
    let all = routes(&desired);
    // The largest overhead in use counts everywhere: a pod's MTU is one number.
    let v4 = "10.244.2.0/26 via 192.0.2.2 dev podway.ipip onlink src 10.244.1.0 mtu 1440";
    assert!(all.contains(&v4.to_owned()), "{all:?}");
    let v6 = "dev podway.wg onlink src fd00:244:1:: mtu 1440";
    assert!(all.iter().any(|r| r.starts_with("fd00:244:2::/122 via fe80::") && r.ends_with(v6)), "{all:?}");

    // A pool without encapsulation, whatever the backend says.
    let mut cluster = Cluster::new(Backend::Vxlan);
    encapsulate(&mut cluster, "v4", Encapsulation::None);
    encapsulate(&mut cluster, "v6", Encapsulation::VxlanCrossSubnet);
    cluster.record(3).address_v6 = Some("fd00:3::3".parse().unwrap());
    let all = routes(&cluster.desired());
    assert!(all.contains(&"10.244.2.0/26 via 192.0.2.2 dev 2 mtu 1450".to_owned()), "{all:?}");
    assert!(all.contains(&"fd00:244:2::/122 via fd00:2::2 dev 2 mtu 1450".to_owned()), "{all:?}");
    let across = "dev podway.vxlan onlink src fd00:244:1:: mtu 1450";
    assert!(all.iter().any(|r| r.starts_with("fd00:244:3::/122") && r.ends_with(across)), "{all:?}");
    // A block that is left of a pool that is gone goes as the backend says.
    cluster.view.pools.remove(&"v4".parse().unwrap());
    let all = routes(&cluster.desired());
    let left = "10.244.2.0/26 via 10.244.2.0 dev podway.vxlan onlink src 10.244.1.0 mtu 1450";
    assert!(all.contains(&left.to_owned()), "{all:?}");
}

#[test]
fn bgp_routes_to_nodes_take_their_pools_encapsulation_and_others_go_plainly() {
    let mut cluster = Cluster::new(Backend::Bgp);
    encapsulate(&mut cluster, "v4", Encapsulation::VxlanCrossSubnet);
    cluster.record(3).address_v4 = Some([198, 51, 100, 3].into());
    cluster.bgp.routes.insert(net("10.244.3.0/26"), vec![ip("198.51.100.3")]);
    cluster.bgp.routes.insert(net("203.0.113.0/24"), vec![ip("192.0.2.9")]);
    let desired = cluster.desired();
    assert_eq!(desired.node_problems, BTreeMap::new());
    let all = routes(&desired);
    assert!(all.contains(&"10.244.2.0/26 via 192.0.2.2 dev 2 mtu 1450".to_owned()), "{all:?}");
    let far = "10.244.3.0/26 via 10.244.3.0 dev podway.vxlan onlink src 10.244.1.0 mtu 1450";
    assert!(all.contains(&far.to_owned()), "{all:?}");
    assert!(all.contains(&"203.0.113.0/24 via 192.0.2.9 dev 2 mtu 1450".to_owned()), "{all:?}");
    assert_eq!(fdb(&desired, VXLAN_DEVICE), [(vtep_mac("n3", VXLAN_DEVICE), ip("198.51.100.3"))].into());
}

#[test]
fn bgp_takes_the_first_next_hop_on_link_and_tells_of_the_rest() {
    let mut cluster = Cluster::new(Backend::Bgp);
    cluster.bgp.routes.insert(net("203.0.113.0/24"), vec![ip("198.51.100.9"), ip("192.0.2.9")]);
    cluster.bgp.routes.insert(net("203.0.114.0/24"), vec![ip("198.51.100.9")]);
    cluster.bgp.routes.insert(net("10.244.3.0/26"), vec![ip("198.51.100.3")]);
    cluster.record(3).address_v4 = Some([198, 51, 100, 3].into());
    // Somebody announces our own block: it stays ours.
    cluster.bgp.routes.insert(net("10.244.1.0/26"), vec![ip("192.0.2.2")]);
    let desired = cluster.desired();
    let all = routes(&desired);
    assert!(all.contains(&"203.0.113.0/24 via 192.0.2.9 dev 2 mtu 1500".to_owned()), "{all:?}");
    assert!(all.contains(&"10.244.2.0/26 via 192.0.2.2 dev 2 mtu 1500".to_owned()), "{all:?}");
    assert_eq!(
        all.iter().filter(|r| r.starts_with("10.244.1.0/26")).collect::<Vec<_>>(),
        ["10.244.1.0/26 blackhole"]
    );
    assert_eq!(desired.problems, ["BGP next hop 198.51.100.9 (1 routes) is not on a link of this node"]);
    assert_eq!(
        desired.node_problems[&name("n3")],
        "its next hop 198.51.100.3 (1 routes) is not on a link of this node"
    );
}

#[test]
fn nothing_is_removed_before_every_input_has_told_all() {
    let mut cluster = Cluster::new(Backend::Bgp);
    cluster.bgp.synced = false;
    assert!(!cluster.desired().prune);
    cluster.bgp.synced = true;
    assert!(cluster.desired().prune);
    // The other backends do not depend on BGP.
    let mut cluster = Cluster::new(Backend::Vxlan);
    cluster.bgp.synced = false;
    assert!(cluster.desired().prune);
    cluster.view.synced = false;
    assert!(!cluster.desired().prune);
}

#[test]
fn a_dead_node_keeps_its_routes_until_its_claims_go() {
    for backend in [Backend::HostGw, Backend::Vxlan] {
        let mut cluster = Cluster::new(backend);
        let before = cluster.desired();
        cluster.peer(2).live = false;
        assert_eq!(cluster.desired(), before);
        cluster.peer(2).blocks.clear();
        let all = routes(&cluster.desired());
        assert!(
            !all.iter().any(|r| r.contains("10.244.2.0/26") || r.contains("fd00:244:2::/122")),
            "{all:?}"
        );
    }
}

#[test]
fn own_blocks_are_blackholed_only_while_they_are_ours() {
    for (state, there) in [
        (OwnBlockState::Pending, false),
        (OwnBlockState::Active, true),
        (OwnBlockState::Draining, true),
        (OwnBlockState::Stranded, false),
    ] {
        let mut cluster = Cluster::new(Backend::HostGw);
        cluster.view.own_blocks[0].state = state;
        let all = routes(&cluster.desired());
        assert_eq!(all.contains(&"10.244.1.0/26 blackhole".to_owned()), there, "{state:?}");
    }
}

#[test]
fn a_block_that_two_nodes_show_is_never_shared() {
    let mut cluster = Cluster::new(Backend::HostGw);
    cluster.peer(3).blocks.insert(net("10.244.2.0/26"));
    cluster.peer(3).blocks.insert(net("10.244.1.0/26"));
    let desired = cluster.desired();
    let all = routes(&desired);
    assert!(all.contains(&"10.244.2.0/26 via 192.0.2.2 dev 2 mtu 1500".to_owned()), "{all:?}");
    assert!(all.contains(&"10.244.1.0/26 blackhole".to_owned()), "{all:?}");
    assert_eq!(desired.node_problems[&name("n3")], "its block 10.244.1.0/26 is also held by n1");
    // The block moves: lost here, the other node's route is taken at once.
    cluster.view.own_blocks[0].state = OwnBlockState::Stranded;
    let all = routes(&cluster.desired());
    assert!(all.contains(&"10.244.1.0/26 via 192.0.2.3 dev 2 mtu 1500".to_owned()), "{all:?}");
}

#[test]
fn a_block_that_swallows_the_underlay_is_refused() {
    let mut cluster = Cluster::new(Backend::Vxlan);
    cluster.peer(2).blocks.insert(net("192.0.2.0/26"));
    let desired = cluster.desired();
    assert_eq!(
        desired.node_problems[&name("n2")],
        "its block 192.0.2.0/26 contains the underlay address 192.0.2.2"
    );
    assert!(!routes(&desired).iter().any(|route| route.starts_with("192.0.2.0/26")));
}

#[test]
fn mtu_follows_the_underlay_and_the_configuration() {
    for (backend, underlay, configured, expected) in [
        (Backend::HostGw, 1500, None, 1500),
        (Backend::Bgp, 9000, None, 9000),
        (Backend::Vxlan, 1500, None, 1450),
        (Backend::Vxlan, 1500, Some(1400), 1350),
        (Backend::Vxlan, 1300, None, 1280),
        (Backend::Wireguard, 1500, None, 1440),
    ] {
        let mut cluster = Cluster::new(backend);
        cluster.facts.mtu = underlay.try_into().unwrap();
        cluster.view.config.underlay_mtu = configured.map(|mtu: u32| mtu.try_into().unwrap());
        assert_eq!(pod_mtu(&cluster.view, &cluster.facts).bytes(), expected, "{backend} over {underlay}");
    }
}

#[test]
fn masquerade_is_for_pools_with_nat_and_spares_all_pools() {
    let mut cluster = Cluster::new(Backend::HostGw);
    cluster.view.config.masquerade.exclude.push(net("172.16.0.0/12"));
    cluster.view.pools.get_mut(&"v6".parse().unwrap()).unwrap().nat = false;
    let masquerade = cluster.desired().masquerade.unwrap();
    assert_eq!(masquerade.sources, [net("10.244.0.0/16")].into());
    let exclude = [net("10.244.0.0/16"), net("172.16.0.0/12"), net("fd00:244::/32")];
    assert_eq!(masquerade.exclude, exclude.into());
    cluster.view.config.masquerade.enabled = false;
    assert_eq!(cluster.desired().masquerade, None);
}
