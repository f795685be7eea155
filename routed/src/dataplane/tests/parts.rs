//! Sysctls and pod routes, over the fake kernel.

use podway_kern::fib::FakeKernel;
use podway_kern::rtnl::{Link, Route};
use podway_kern::sysctl::{Family, Sysctl};
use podway_model::cluster::Backend;
use podway_model::endpoint::EndpointRecord;
use podway_model::names::{POD_ROUTE_PROTOCOL, host_ifalias};

use super::super::desired::v6_forwarding;
use super::super::{pods, sysctls};
use super::{Cluster, ip, net};

fn machine() -> FakeKernel {
    let mut kernel = FakeKernel::with_uplink("eth0", 1500, &[net("192.0.2.1/24")]);
    for (sysctl, value) in [
        (Sysctl::new("net/ipv4/ip_forward"), "0"),
        (v6_forwarding(), "0"),
        (Sysctl::conf(Family::V6, "eth0", "accept_ra"), "1"),
        (Sysctl::conf(Family::V6, "lo", "accept_ra"), "1"),
        (Sysctl::neigh(Family::V4, "default", "gc_thresh3"), "1024"),
        (Sysctl::neigh(Family::V4, "default", "gc_thresh2"), "90000"),
    ] {
        kernel.sysctls.insert(sysctl, value.to_owned());
    }
    kernel
}

#[test]
fn forwarding_is_turned_on_and_advertised_routes_survive_it() {
    let mut kernel = machine();
    let advertised = Route { interface: Some(2), ..Route::to(net("::/0"), 9) };
    kernel.routes.insert(advertised.key(), advertised);
    assert_eq!(sysctls::ensure(&mut kernel, &Cluster::new(Backend::HostGw).desired()), Vec::<String>::new());
    assert_eq!(kernel.sysctls[&Sysctl::new("net/ipv4/ip_forward")], "1");
    assert_eq!(kernel.sysctls[&v6_forwarding()], "1");
    assert_eq!(kernel.sysctls[&Sysctl::conf(Family::V6, "eth0", "accept_ra")], "2");
    assert_eq!(kernel.sysctls[&Sysctl::conf(Family::V6, "lo", "accept_ra")], "1", "no advertised route");
}

#[test]
fn neighbour_limits_are_raised_for_many_peers_and_never_lowered() {
    let mut kernel = machine();
    let mut desired = Cluster::new(Backend::HostGw).desired();
    desired.neighbours_on_link = 5000;
    assert_eq!(sysctls::ensure(&mut kernel, &desired), Vec::<String>::new());
    assert_eq!(kernel.sysctls[&Sysctl::neigh(Family::V4, "default", "gc_thresh3")], "11024");
    assert_eq!(kernel.sysctls[&Sysctl::neigh(Family::V4, "default", "gc_thresh2")], "90000");
}

fn record(pod: &str, addresses: &[&str]) -> EndpointRecord {
    EndpointRecord {
        schema: podway_model::SCHEMA,
        id: "0123456789abcdef".to_owned(),
        boot_id: "00000000-0000-4000-8000-000000000001".parse().unwrap(),
        network: "podway".parse().unwrap(),
        container_id: pod.parse().unwrap(),
        ifname: "eth0".parse().unwrap(),
        host_ifname: format!("pw{pod}").parse().unwrap(),
        mac: podway_model::names::HOST_MAC,
        mtu: 1500.try_into().unwrap(),
        pod: None,
        addresses: addresses.iter().map(|a| ip(a)).collect(),
        host_ports: vec![],
        ipam: None,
        netns: String::new(),
    }
}

#[test]
fn pod_routes_are_added_where_the_pods_link_is_there_and_never_swept() {
    let mut kernel = machine();
    let mut link = |index: u32, pod: &str, alias: &str, up: bool| {
        let link =
            Link { index, name: format!("pw{pod}"), alias: Some(alias.to_owned()), up, ..Link::default() };
        kernel.links.insert(index, link);
    };
    link(11, "a", &host_ifalias("a", "eth0"), true);
    link(12, "b", &host_ifalias("other", "eth0"), true);
    link(13, "c", &host_ifalias("c", "eth0"), false);
    let without_record =
        Route { interface: Some(12), ..Route::to(net("10.244.1.99/32"), POD_ROUTE_PROTOCOL) };
    kernel.routes.insert(without_record.key(), without_record);
    let records = [
        record("a", &["10.244.1.1", "fd00:244:1::1"]),
        record("b", &["10.244.1.2"]),
        record("c", &["10.244.1.3"]),
        record("d", &["10.244.1.4"]),
    ];
    let (added, problems) = pods::repair(&mut kernel, &records).unwrap();
    assert_eq!((added, problems), (2, vec![]));
    let mut found: Vec<String> =
        kernel.routes.values().filter(|r| r.protocol == POD_ROUTE_PROTOCOL).map(Route::to_string).collect();
    found.sort();
    assert_eq!(
        found,
        ["10.244.1.1/32 dev 11", "10.244.1.99/32 dev 12", "fd00:244:1::1/128 dev 11 metric 1024"]
    );
    assert_eq!(pods::repair(&mut kernel, &records).unwrap(), (0, vec![]));
}

#[test]
fn the_way_back_of_a_loopback_host_port_is_a_route_of_the_pod() {
    let mut kernel = machine();
    for (index, pod) in [(11, "a"), (12, "b")] {
        let alias = Some(host_ifalias(pod, "eth0"));
        let link = Link { index, name: format!("pw{pod}"), alias, up: true, ..Link::default() };
        kernel.links.insert(index, link);
    }
    let port = |ip: &str| podway_model::endpoint::HostPort {
        host_ip: ip.parse().ok(),
        host_port: 80,
        container_port: 80,
        protocol: Default::default(),
    };
    let mut records = [record("a", &["fd00:244:1::1"]), record("b", &["fd00:244:1::2"])];
    records[0].host_ports = vec![port("")];
    records[1].host_ports = vec![port("::1")];
    assert_eq!(pods::repair(&mut kernel, &records).unwrap(), (4, vec![]));
    let mut found: Vec<String> = kernel.routes.values().map(Route::to_string).collect();
    found.retain(|route| route.starts_with("local"));
    found.sort();
    assert_eq!(found, ["local ::1/128 dev 11 metric 11", "local ::1/128 dev 12 metric 12"]);
    assert_eq!(pods::repair(&mut kernel, &records).unwrap(), (0, vec![]));
}

#[test]
fn records_are_read_and_broken_ones_named() {
    let folder = tempfile::tempdir().unwrap();
    let boot = std::fs::read_to_string(podway_model::names::BOOT_ID_FILE).unwrap();
    let mut good = record("a", &["10.244.1.1"]);
    good.boot_id = boot.trim().parse().unwrap();
    let write = |name: &str, text: &[u8]| std::fs::write(folder.path().join(name), text).unwrap();
    write("good.json", &serde_json::to_vec(&good).unwrap());
    write("old.json", &serde_json::to_vec(&record("b", &["10.244.1.2"])).unwrap());
    write("broken.json", b"{");
    write("good.json.tmp", b"half");
    let (records, problems) = pods::read_records(folder.path());
    assert_eq!(records, [good]);
    assert_eq!(problems.len(), 1);
    assert!(problems[0].contains("broken.json"), "{problems:?}");
    assert_eq!(pods::read_records(&folder.path().join("none")), (vec![], vec![]));
}
