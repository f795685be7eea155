//! Properties of the contracts: what is written can be read back, and no input makes a reader panic.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use podway_model::cluster::{self, Backend, BgpConfig, Claim, ClusterConfig, Liveness, NodeRecord, Pool};
use podway_model::endpoint::EndpointRecord;
use podway_model::ids::{Asn, IfName, MacAddr, Mtu, NodeName, Vni};
use podway_model::keys::Key;
use podway_model::node_file::NodeFile;
use podway_model::socket::{Envelope, PolicyRequest, RoutedReply};
use podway_model::ways::Way;
use podway_model::{k8s, names};
use proptest::prelude::*;

fn prefix() -> impl Strategy<Value = IpNet> {
    prop_oneof![
        (any::<u32>(), 0..=32u8).prop_map(|(bits, len)| IpNet::new(IpAddr::V4(Ipv4Addr::from(bits)), len)
            .expect("a length up to 32")
            .trunc()),
        (any::<u128>(), 0..=128u8).prop_map(|(bits, len)| IpNet::new(IpAddr::V6(Ipv6Addr::from(bits)), len)
            .expect("a length up to 128")
            .trunc()),
    ]
}

fn node() -> impl Strategy<Value = NodeName> {
    "[a-z0-9]([a-z0-9-]{0,20}[a-z0-9])?(\\.[a-z0-9]{1,10})?"
        .prop_map(|name| name.parse().expect("by the rule"))
}

fn key() -> impl Strategy<Value = Key> {
    let object = "[a-z0-9][a-z0-9.-]{0,20}[a-z0-9]"
        .prop_filter("a name", |n| !n.contains("..") && !n.contains(".-") && !n.contains("-."));
    let name = "[a-z]{1,10}";
    prop_oneof![
        Just(Key::Config),
        object.prop_map(|n| Key::Pool(n.parse().expect("by the rule"))),
        node().prop_map(Key::Node),
        node().prop_map(Key::Live),
        (node(), prefix()).prop_map(|(n, p)| Key::Claim(n, p)),
        prefix().prop_map(Key::Released),
        node().prop_map(Key::Usage),
        node().prop_map(Key::Reflector),
        node().prop_map(Key::Drained),
        name.prop_map(Key::Namespace),
        (name, name).prop_map(|(ns, n)| Key::Pod(ns, n)),
        (name, name).prop_map(|(ns, n)| Key::NetworkPolicy(ns, n)),
    ]
}

proptest! {
    #[test]
    fn every_key_reads_back(key in key()) {
        prop_assert_eq!(key.to_string().parse::<Key>(), Ok(key));
    }

    #[test]
    fn different_keys_have_different_texts(a in key(), b in key()) {
        prop_assert_eq!(a == b, a.to_string() == b.to_string());
    }

    #[test]
    fn pools_nodes_and_configurations_read_back(
        cidr in prefix(), len in any::<u8>(), asn in 1u32..23456, mtu in 1280u32..65536, vni in 1u32..1 << 24,
        v4 in any::<[u8; 4]>(), mac in any::<[u8; 6]>(), live in any::<bool>(),
    ) {
        let instance_id: podway_model::ids::InstanceId = "6f2c1c1e-0000-4000-8000-0123456789ab".parse().expect("a UUID");
        let pool = Pool {
            cidr, block_size: live.then_some(len), node_selector: k8s::LabelSelector::default(), namespace_selector: None,
            nat: live, assignment: cluster::Assignment::Manual, encapsulation: Some(cluster::Encapsulation::Wireguard), disabled: !live,
        };
        prop_assert_eq!(cluster::decode::<Pool>(&cluster::encode(&pool)).expect("own form"), pool);
        let config = ClusterConfig {
            backend: Backend::Bgp,
            underlay_mtu: Some(Mtu::try_from(mtu).expect("in range")),
            vxlan: cluster::VxlanConfig { vni: Vni::try_from(vni).expect("in range"), ..Default::default() },
            bgp: BgpConfig { asn: Asn::try_from(asn).expect("in range"), ..Default::default() },
            ..Default::default()
        };
        prop_assert_eq!(cluster::decode::<ClusterConfig>(&cluster::encode(&config)).expect("own form"), config);
        let record = NodeRecord {
            instance_id: instance_id.clone(), address_v4: Some(v4.into()), address_v6: None, tunnel_v4: None, tunnel_v6: None,
            labels: [("zone".to_owned(), "a".to_owned())].into(), asn: None, vtep_mac: Some(MacAddr(mac)),
            wireguard_key: Some(podway_model::ids::WireguardKey([mac[0]; 32])), version: "0.1.0".into(),
            ways: live.then(|| podway_model::ways::Ways {
                receives: [Way::Direct, Way::Vxlan].into(), sends: [Way::Bgp].into(),
            }),
        };
        prop_assert_eq!(cluster::decode::<NodeRecord>(&cluster::encode(&record)).expect("own form"), record);
        let liveness = Liveness { instance_id, addresses: vec![IpAddr::from(v4)] };
        prop_assert_eq!(cluster::decode::<Liveness>(&cluster::encode(&liveness)).expect("own form"), liveness);
    }

    #[test]
    fn readers_never_panic_on_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..256)) {
        let _ = cluster::decode::<Claim>(&bytes);
        let _ = cluster::decode::<ClusterConfig>(&bytes);
        let _ = serde_json::from_slice::<NodeFile>(&bytes);
        let _ = serde_json::from_slice::<EndpointRecord>(&bytes);
        let _ = serde_json::from_slice::<Envelope<PolicyRequest>>(&bytes);
        let _ = serde_json::from_slice::<Envelope<RoutedReply>>(&bytes);
        let _ = serde_json::from_slice::<k8s::NetworkPolicy>(&bytes);
    }

    #[test]
    fn readers_never_panic_on_text(text in "\\PC{0,64}") {
        let _ = text.parse::<Key>();
        let _ = text.parse::<MacAddr>();
        let _ = text.parse::<NodeName>();
        let _ = text.parse::<IfName>();
        let _ = names::parse_ifalias(&text);
    }

    #[test]
    fn host_interface_names_are_names(container in "[a-zA-Z0-9][a-zA-Z0-9_.-]{0,80}", ifname in "[a-z0-9]{1,15}") {
        let name = names::host_ifname(&container, &ifname);
        prop_assert!(name.parse::<IfName>().is_ok());
        let alias = names::host_ifalias(&container, &ifname);
        prop_assert_eq!(names::parse_ifalias(&alias), Some((container.as_str(), ifname.as_str())));
    }
}
