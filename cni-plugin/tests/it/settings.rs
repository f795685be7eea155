//! What a configuration, CNI_ARGS and annotations may say about a pod's interface: applied, checked, or refused.

use podway_kern::rtnl::{RouteFilter, Rtnl};
use serde_json::{Value, json};

use crate::host::{Families, Host, host_name, ips};

fn annotations(all: Value) -> Value {
    json!({ "io.kubernetes.cri.pod-annotations": all })
}

#[test]
fn an_ethernet_address_comes_from_where_it_is_said_first() {
    let Some(host) = Host::new("an_ethernet_address_comes_from_where_it_is_said_first", Families::Dual)
    else {
        return;
    };
    let pod = host.sandbox("p");
    let mac = |n: u8| format!("02:00:5e:10:00:{n:02x}");
    let args = host.call("ADD", &pod);
    let whole = args
        .with("podway", json!({"mac": mac(1)}))
        .with("args", json!({"cni": {"mac": mac(4)}}))
        .with("runtimeConfig", json!({"mac": mac(5)}));
    let annotated = annotations(json!({"cni.projectcalico.org/hwAddr": mac(2)}));
    for (call, expected) in [
        (host.call("ADD", &pod).with("podway", json!({"mac": mac(1)})), 1),
        (host.call("ADD", &pod).with("podway", json!({"mac": mac(1)})).with("runtimeConfig", annotated), 2),
        (
            host.call("ADD", &pod)
                .with("podway", json!({"mac": mac(1)}))
                .env("CNI_ARGS", &format!("MAC={}", mac(3))),
            3,
        ),
        (host.call("ADD", &pod).with("args", json!({"cni": {"mac": mac(4)}})), 4),
        (whole, 5),
    ] {
        let result = call.run().result();
        assert_eq!(result["interfaces"][1]["mac"], mac(expected));
        let link = Rtnl::open_in(&pod.net).unwrap().link("eth0").unwrap().unwrap();
        assert_eq!(link.mac.unwrap().to_string(), mac(expected));
        host.check(&pod, &result).done();
    }
    for bad in ["banana", "01:00:5e:00:00:01", "00:00:00:00:00:00"] {
        let said = host.call("ADD", &pod).with("podway", json!({"mac": bad})).run().error(7);
        assert!(said.contains("podway.mac") && said.contains(bad), "{said}");
    }
    host.del(&pod);
}

#[test]
fn mtu_and_queues_are_applied_and_checked() {
    let Some(host) = Host::new("mtu_and_queues_are_applied_and_checked", Families::Dual) else { return };
    let pod = host.sandbox("p");
    let wishes = json!({"mtu": 1400, "queues": 2});
    let result = host.call("ADD", &pod).with("podway", wishes.clone()).run().result();
    let outside = host.rtnl().link(host_name(&pod).as_str()).unwrap().unwrap();
    let inside = Rtnl::open_in(&pod.net).unwrap().link("eth0").unwrap().unwrap();
    assert_eq!((outside.mtu, inside.mtu), (1400, 1400));
    assert_eq!((outside.tx_queues, inside.tx_queues), (2, 2));
    let check = |wishes: Value| {
        host.call("CHECK", &pod).with("podway", wishes).with("prevResult", result.clone()).run()
    };
    check(wishes).done();
    assert!(check(json!({"queues": 4})).error(101).contains("queues: 2 found, 4 expected"));
    for bad in [json!({"queues": 0}), json!({"queues": 257}), json!({"queues": "two"}), json!({"mtu": 1279})]
    {
        host.call("ADD", &pod).with("podway", bad).run().error(7);
    }
    host.del(&pod);
}

#[test]
fn sysctls_are_set_where_they_are_allowed() {
    let Some(host) = Host::new("sysctls_are_set_where_they_are_allowed", Families::V4) else { return };
    let pod = host.sandbox("p");
    let read = |path: &str| pod.net.run(|| std::fs::read_to_string(path)).unwrap().unwrap();
    let usual = json!({"sysctls": {
        "net.ipv4.conf.IFNAME.arp_filter": "1", "net.ipv4.ip_unprivileged_port_start": 80
    }});
    let result = host.call("ADD", &pod).with("podway", usual.clone()).run().result();
    assert_eq!(read("/proc/sys/net/ipv4/conf/eth0/arp_filter"), "1\n");
    assert_eq!(read("/proc/sys/net/ipv4/ip_unprivileged_port_start"), "80\n");
    let check =
        || host.call("CHECK", &pod).with("podway", usual.clone()).with("prevResult", result.clone()).run();
    check().done();
    pod.net.run(|| std::fs::write("/proc/sys/net/ipv4/conf/eth0/arp_filter", "0")).unwrap().unwrap();
    assert!(check().error(101).contains("net/ipv4/conf/eth0/arp_filter: 0 found, 1 expected"));
    host.del(&pod);
    // Not allowed, from outside of what is the pod's, and by a pod that was not asked.
    for bad in [
        json!({"sysctls": {"kernel.panic": 1}}),
        json!({"sysctls": {"net.ipv4.conf.all.forwarding": 1}}),
        json!({"sysctlAllow": [], "sysctls": {"net.ipv4.conf.IFNAME.arp_filter": 1}}),
        json!({"sysctlAllow": "all"}),
    ] {
        host.call("ADD", &pod).with("podway", bad.clone()).run().error(7);
        assert_eq!(host.leftovers(), Vec::<String>::new(), "{bad}");
    }
    let wish = annotations(json!({"podway.io/sysctls": "net.ipv4.conf.IFNAME.arp_announce=2"}));
    let call = || host.call("ADD", &pod).with("runtimeConfig", wish.clone());
    assert!(call().run().error(7).contains("podway.sysctlAllow lets pods set"));
    call().with("podway", json!({"sysctlAllow": ["net.ipv4.conf.IFNAME.arp_*"]})).run().result();
    assert_eq!(read("/proc/sys/net/ipv4/conf/eth0/arp_announce"), "2\n");
    host.del(&pod);
    // One that the kernel does not have: refused with its path, nothing left.
    let missing = json!({"sysctlAllow": ["net.*"], "sysctls": {"net.ipv4.conf.IFNAME.nonsense": 1}});
    let said = host.call("ADD", &pod).with("podway", missing).run().error(100);
    assert!(said.contains("/proc/sys/net/ipv4/conf/eth0/nonsense"), "{said}");
    assert_eq!(host.leftovers(), Vec::<String>::new());
}

#[test]
fn routes_are_what_the_configuration_says() {
    let Some(host) = Host::new("routes_are_what_the_configuration_says", Families::Dual) else { return };
    let pod = host.sandbox("p");
    let wishes = json!({"routes": [
        {"dst": "10.0.0.0/8", "mtu": 1300, "advmss": 1200, "priority": 7},
        {"dst": "fd00::/8", "table": 100}
    ]});
    let result = host.call("ADD", &pod).with("podway", wishes.clone()).run().result();
    assert_eq!(
        result["routes"],
        json!([
            {"dst": "10.0.0.0/8", "gw": "169.254.1.1", "mtu": 1300, "advmss": 1200, "priority": 7},
            {"dst": "fd00::/8", "gw": "fe80::1", "table": 100}
        ])
    );
    let routes = Rtnl::open_in(&pod.net).unwrap().routes(RouteFilter::default()).unwrap();
    let find = |dst: &str| routes.iter().find(|r| r.destination.to_string() == dst);
    let ten = find("10.0.0.0/8").unwrap();
    assert_eq!((ten.mtu, ten.advmss, ten.metric), (Some(1300), Some(1200), 7));
    assert_eq!(find("fd00::/8").unwrap().table, 100);
    assert!(find("0.0.0.0/0").is_none() && find("::/0").is_none());
    let check = |wishes: &Value| {
        host.call("CHECK", &pod).with("podway", wishes.clone()).with("prevResult", result.clone()).run()
    };
    check(&wishes).done();
    assert!(check(&json!({})).error(101).contains("route 0.0.0.0/0 is missing"));
    host.del(&pod);
    let none = host.call("ADD", &pod).with("podway", json!({"routes": []})).run().result();
    assert_eq!(none["routes"], json!([]));
    host.del(&pod);
    for (bad, part) in [
        (json!([{"dst": "banana"}]), "podway.routes[0].dst"),
        (json!([{"dst": "10.0.0.0/8", "gw": "10.0.0.1"}]), "podway.routes[0].gw"),
        (json!([{"dst": "10.0.0.0/8", "mtu": -1}]), "podway.routes[0].mtu: -1 found"),
        (json!("x"), "podway.routes: text found"),
    ] {
        let said = host.call("ADD", &pod).with("podway", json!({ "routes": bad })).run().error(7);
        assert!(said.contains(part), "{said}");
    }
    assert_eq!(host.leftovers(), Vec::<String>::new());
}

#[test]
fn a_second_interface_leaves_the_default_routes_to_the_first() {
    let Some(host) = Host::new("a_second_interface_leaves_the_default_routes", Families::Dual) else {
        return;
    };
    let mut pod = host.sandbox("p");
    host.add(&pod);
    pod.attachment.ifname = "net1".to_owned();
    host.add(&pod);
    let mut inside = Rtnl::open_in(&pod.net).unwrap();
    let eth0 = inside.link("eth0").unwrap().unwrap().index;
    for address in ["192.0.2.1", "2001:db8::1"] {
        assert_eq!(inside.route_to(address.parse().unwrap()).unwrap().interface, Some(eth0), "{address}");
    }
}

#[test]
fn annotations_ask_for_addresses_and_pools() {
    let Some(host) = Host::new("annotations_ask_for_addresses_and_pools", Families::Dual) else { return };
    host.edit_node_file(|file| {
        let push = |list: &mut Value, value| list.as_array_mut().unwrap().push(value);
        push(&mut file["pools"], json!({"name": "other", "cidr": "10.9.0.0/16", "assignment": "automatic"}));
        push(&mut file["blocks"], json!({"cidr": "10.9.1.0/26", "pool": "other", "state": "active"}));
        push(&mut file["pools"], json!({"name": "ns", "cidr": "10.8.0.0/16", "assignment": "manual"}));
        push(&mut file["blocks"], json!({"cidr": "10.8.1.0/26", "pool": "ns", "state": "active"}));
        file["namespacePools"] = json!({"default": ["ns"]});
    });
    let pod = host.sandbox("p");
    let add = |all: Value, own: Value| {
        let call = host.call("ADD", &pod).with("runtimeConfig", annotations(all)).with("podway", own);
        let result = call.run();
        host.del(&pod);
        result
    };
    let text = |answer: crate::host::Answer| -> Vec<String> {
        ips(&answer.result()).iter().map(ToString::to_string).collect()
    };
    let none = json!({});
    // The namespace's pool comes before the configuration's; the pod's annotation before both, for its family.
    assert_eq!(text(add(json!({}), json!({"pools": ["other"]}))), ["10.8.1.0"]);
    let by_name = json!({"cni.projectcalico.org/ipv4pools": "[\"other\"]", "unrelated": "x"});
    assert_eq!(text(add(by_name, none.clone())), ["10.9.1.0"]);
    let by_cidr = json!({"podway.io/ipv4pools": "[\"10.9.0.0/16\"]", "podway.io/ipv6pools": "[\"v6\"]"});
    assert_eq!(text(add(by_cidr, none.clone())), ["10.9.1.1", "fd00:244::101"]);
    let asked = json!({"cni.projectcalico.org/ipAddrs": "[\"10.8.1.9\"]"});
    assert_eq!(text(add(asked, none.clone())), ["10.8.1.9"]);
    for (bad, part) in [
        (json!({"cni.projectcalico.org/ipAddrs": "10.0.0.1"}), "annotation cni.projectcalico.org/ipAddrs"),
        (json!({"cni.projectcalico.org/ipAddrs": "[\"x\"]"}), "\"x\" found, an address expected"),
        (json!({"podway.io/ipv4pools": "[\"nowhere\"]"}), "\"nowhere\" found, a pool of this node"),
        (json!({"podway.io/ipv4pools": "[\"v6\"]"}), "\"v6\" found, a pool of this node"),
        (json!({"podway.io/hwAddr": "x"}), "annotation podway.io/hwAddr"),
    ] {
        let said = add(bad, none.clone()).error(7);
        assert!(said.contains(part), "{said}");
    }
    assert_eq!(host.leftovers(), Vec::<String>::new());
}

#[test]
fn ranges_and_reserved_addresses_are_respected() {
    let Some(host) = Host::new("ranges_and_reserved_addresses_are_respected", Families::Dual) else { return };
    let pod = host.sandbox("p");
    let text = |result: Value| ips(&result).iter().map(ToString::to_string).collect::<Vec<_>>();
    let range = json!({"subnet": "10.244.1.0/26", "rangeStart": "10.244.1.20", "rangeEnd": "10.244.1.29"});
    let result = host.call("ADD", &pod).with("runtimeConfig", json!({"ipRanges": [[range]]})).run().result();
    assert_eq!(text(result), ["10.244.1.20", "fd00:244::101"]);
    host.del(&pod);
    let reserved = json!({"reserved": ["10.244.1.0/28", "10.244.1.16"]});
    let result = host.call("ADD", &pod).with("podway", reserved.clone()).run().result();
    assert_eq!(text(result)[0], "10.244.1.17");
    host.del(&pod);
    let asked = json!({"ips": ["10.244.1.5"]});
    let result = host.call("ADD", &pod).with("podway", reserved).with("runtimeConfig", asked).run().result();
    assert_eq!(text(result)[0], "10.244.1.5");
    for bad in [
        json!("x"),
        json!(["x"]),
        json!([[{"subnet": "x"}]]),
        json!([[{"subnet": "10.0.0.0/24", "rangeStart": "10.1.0.0"}]]),
    ] {
        let said = host.call("ADD", &pod).with("runtimeConfig", json!({"ipRanges": bad})).run().error(7);
        assert!(said.contains("runtimeConfig.ipRanges"), "{said}");
    }
}
