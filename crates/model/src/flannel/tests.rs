//! Flannel's own texts, and what is wrong with others.

use super::*;
use crate::ids::{InstanceId, MacAddr};

fn config(text: &str) -> Result<NetworkConfig, String> {
    NetworkConfig::parse("config", text.as_bytes()).map_err(|mistakes| mistakes.to_string())
}

fn lease(text: &str) -> Result<LeaseAttrs, String> {
    LeaseAttrs::parse("lease", text.as_bytes()).map_err(|mistakes| mistakes.to_string())
}

#[test]
fn flannels_network_is_read_with_flannels_defaults() {
    let vxlan = config(r#"{"Network": "10.5.0.0/16", "Backend": {"Type": "vxlan"}}"#).unwrap();
    assert_eq!(vxlan.backend, Backend::Vxlan { vni: Vni::DEFAULT, port: 8472, direct_routing: false });
    // The first subnet is left out: an interface would have the network's address.
    assert_eq!((vxlan.nth_v4(0), vxlan.count_v4()), ("10.5.1.0/24".parse().ok(), 255));
    assert_eq!((vxlan.nth_v4(254), vxlan.nth_v4(255)), ("10.5.255.0/24".parse().ok(), None));
    assert_eq!((vxlan.v6, vxlan.count_v6(), vxlan.nth_v6(0)), (None, 0, None));

    let small = config(r#"{"network": "192.168.1.0/24", "backend": {"type": "host-gw"}}"#).unwrap();
    assert_eq!((small.backend, small.v4.subnet_len, small.count_v4()), (Backend::HostGw, 26, 3));

    let dual = config(
        r#"{"Network": "10.5.0.0/16", "SubnetMin": "10.5.8.0", "SubnetMax": "10.5.9.0", "EnableIPv6": true,
            "IPv6Network": "fd00:5::/48", "IPv6SubnetMin": "fd00:5:0:7::",
            "Backend": {"Type": "vxlan", "VNI": 7, "Port": 4789, "DirectRouting": true, "MTU": 1400}}"#,
    )
    .unwrap();
    assert_eq!(
        dual.backend,
        Backend::Vxlan { vni: Vni::try_from(7).unwrap(), port: 4789, direct_routing: true }
    );
    assert_eq!((dual.count_v4(), dual.count_v6()), (2, 0x1_0000 - 7));
    assert_eq!((dual.nth_v6(1), dual.nth_v6(u64::MAX)), ("fd00:5:0:8::/64".parse().ok(), None));
}

#[test]
fn what_is_wrong_with_flannels_network_is_named() {
    let head = r#""Backend": {"Type": "vxlan"}"#;
    for (text, expected) in [
        ("[]".to_owned(), "config: [] found, a JSON object expected"),
        ("{}".to_owned(), "config: Network: nothing found, an IPv4 prefix (10.5.0.0/16) expected"),
        (r#"{"Network": "10.5.0.0/16"}"#.to_owned(), "Backend: nothing, which is udp found"),
        (
            r#"{"Network": "10.5.0.0/16", "Backend": {"Type": "wireguard"}}"#.to_owned(),
            "Backend.Type: wireguard found, vxlan or host-gw",
        ),
        (
            r#"{"Network": "10.5.0.0/16", "Backend": {"Type": "vxlan", "GBP": true}}"#.to_owned(),
            "Backend.GBP: true found",
        ),
        (
            r#"{"Network": "10.5.0.0/16", "Backend": {"Type": "vxlan", "VNI": 0}}"#.to_owned(),
            "Backend.VNI: 0 found",
        ),
        (
            r#"{"Network": "10.5.0.0/16", "Backend": {"Type": "vxlan", "Port": 65536}}"#.to_owned(),
            "Backend.Port: 65536 found",
        ),
        (
            format!(r#"{{"Network": "10.5.0.0/29", {head}}}"#),
            "Network: /29 found, a prefix of at most 28 bits",
        ),
        (
            format!(r#"{{"Network": "10.5.0.0/16", "SubnetLen": 17, {head}}}"#),
            "SubnetLen: 17 found, a prefix length from 18 to 30",
        ),
        (
            format!(r#"{{"Network": "10.5.0.0/16", "SubnetMin": "10.6.0.0", {head}}}"#),
            "SubnetMin: 10.6.0.0 found, the first address of a /24 in 10.5.0.0/16",
        ),
        (
            format!(r#"{{"Network": "10.5.0.0/16", "SubnetMax": "10.5.0.1", {head}}}"#),
            "SubnetMax: 10.5.0.1 found",
        ),
        (
            format!(r#"{{"Network": "10.5.0.0/16", "SubnetMax": "10.5.0.0", {head}}}"#),
            "SubnetMax: 10.5.0.0 found, an address not before the first subnet, 10.5.1.0",
        ),
        (format!(r#"{{"Network": "10.5.0.0/16", "EnableIPv4": false, {head}}}"#), "EnableIPv4: false found"),
        (
            format!(r#"{{"Network": "10.5.0.0/16", "EnableIPv6": true, {head}}}"#),
            "IPv6Network: nothing found",
        ),
        (
            format!(r#"{{"Network": "10.5.0.0/16", "EnableIPv6": 1, {head}}}"#),
            "EnableIPv6: 1 found, true or false expected",
        ),
    ] {
        let error = config(&text).unwrap_err();
        assert!(error.contains(expected), "{text}: {error}");
    }
}

#[test]
fn subnets_are_flannels_keys() {
    let prefix = Prefix::default();
    for text in ["10.5.3.0-24", "10.5.3.0-24&fd00:5:3::-64"] {
        let subnet: Subnet = text.parse().unwrap();
        assert_eq!(prefix.subnet(&subnet), format!("/coreos.com/network/subnets/{text}"));
        assert_eq!(subnet.net(true).is_some(), text.contains('&'));
        assert!(
            subnet.overlaps("10.5.3.64/26".parse().unwrap())
                && !subnet.overlaps("10.5.4.0/26".parse().unwrap())
        );
    }
    for text in
        ["", "10.5.3.0", "10.5.3.1-24", "10.5.3.0-33", "fd00::-64", "10.5.3.0-24&", "10.5.3.0-24&10.5.4.0-24"]
    {
        assert!(text.parse::<Subnet>().unwrap_err().to_string().contains("a subnet expected"), "{text}");
    }
    for text in ["", "/", "coreos.com", "/a/", "/a//b", "/a b"] {
        assert_eq!(text.parse::<Prefix>(), Err(()), "{text}");
    }
    assert_eq!(
        (prefix.config().as_str(), prefix.subnets().as_str()),
        ("/coreos.com/network/config", "/coreos.com/network/subnets/")
    );
}

#[test]
fn a_subnet_is_a_nodes_if_it_is_of_the_network() {
    let config =
        config(r#"{"Network": "10.5.0.0/16", "SubnetLen": 26, "Backend": {"Type": "host-gw"}}"#).unwrap();
    for (text, expected) in [
        ("10.5.0.64-26", true),
        ("10.5.255.192-26", true),
        ("10.5.0.0-26", false),
        ("10.5.1.0-24", false),
        ("10.6.1.0-26", false),
        ("10.5.0.64-26&fd00::-64", false),
    ] {
        assert_eq!(config.fits(&text.parse().unwrap()), expected, "{text}");
    }
}

#[test]
fn a_lease_of_flannels_is_read_as_flannel_writes_it() {
    let text = r#"{"PublicIP":"192.168.64.3","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:44"}}"#;
    let mac: MacAddr = "c6:d2:32:6f:8f:44".parse().unwrap();
    let read = lease(text).unwrap();
    let expected = LeaseAttrs {
        public_v4: Some(Ipv4Addr::new(192, 168, 64, 3)),
        public_v6: None,
        reach: Reach::Vxlan { vni: Vni::DEFAULT, v4: Some(mac), v6: None },
        mark: None,
    };
    assert_eq!(read, expected);
    let text = r#"{"PublicIP":"10.0.0.1","PublicIPv6":"fd00::1","BackendType":"host-gw"}"#;
    assert_eq!(lease(text).unwrap().reach, Reach::HostGw);
}

#[test]
fn a_lease_of_ours_is_flannels_with_our_mark() {
    let mark = Mark {
        node: "n1".parse().unwrap(),
        instance_id: "00000000-0000-4000-8000-000000000001".parse::<InstanceId>().unwrap(),
    };
    let mac = |last| Some(MacAddr([2, 0, 0, 0, 0, last]));
    for (reach, public_v6) in [
        (Reach::HostGw, None),
        (Reach::Vxlan { vni: Vni::DEFAULT, v4: mac(1), v6: None }, None),
        (Reach::Vxlan { vni: Vni::DEFAULT, v4: mac(1), v6: mac(2) }, "fd00::1".parse().ok()),
    ] {
        let attrs = LeaseAttrs {
            public_v4: Some(Ipv4Addr::new(10, 0, 0, 1)),
            public_v6,
            reach,
            mark: Some(mark.clone()),
        };
        let text = String::from_utf8(attrs.encode()).unwrap();
        assert_eq!(lease(&text).unwrap(), attrs);
        assert!(text.contains(r#""PublicIP":"10.0.0.1""#) && text.contains("PublicIPv6"), "{text}");
    }
}

#[test]
fn what_is_wrong_with_a_lease_is_named() {
    for (text, expected) in [
        ("x", "lease: x found, a JSON object ("),
        ("{}", "BackendType: nothing found, vxlan or host-gw expected"),
        (r#"{"BackendType":"udp"}"#, "BackendType: udp found"),
        (r#"{"BackendType":"vxlan"}"#, "BackendData: nothing found, VNI and VtepMAC expected"),
        (
            r#"{"BackendType":"vxlan","BackendData":{"VNI":1}}"#,
            "BackendData: {\"VNI\":1} found, VNI (1 to 16777215) and VtepMAC",
        ),
        (
            r#"{"BackendType":"host-gw","PublicIP":"::1"}"#,
            "PublicIP: \"::1\" found, an IPv4 address expected",
        ),
        (r#"{"BackendType":"host-gw","PublicIPv6":7}"#, "PublicIPv6: 7 found"),
        (r#"{"BackendType":"host-gw","Podway":{"Node":"n1"}}"#, "Podway: "),
        (
            r#"{"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"02:00:00:00:00:01"},"BackendV6Data":{"VNI":2,"VtepMAC":"02:00:00:00:00:01"}}"#,
            "BackendV6Data.VNI: another one found",
        ),
    ] {
        let error = lease(text).unwrap_err();
        assert!(error.contains(expected), "{text}: {error}");
    }
}
