//! `podway-ipam`: our addresses for interfaces of other plugins; alone, and under the real `bridge`, `ptp` and
//! `macvlan`.

use podway_ipam::LeaseKind;
use podway_testkit::pod::Sandbox;
use podway_testkit::wait::wait_until_ok;
use serde_json::{Value, json};

use crate::delegation::{BIN, with_real_plugins};
use crate::host::{Answer, Call, Families, Host, PATIENCE, PLUGIN, ips};
use crate::trace;

const GATEWAYS: usize = 2;

/// A call of `podway-ipam` alone.
fn ipam_call<'a>(host: &'a Host, verb: &str, pod: &Sandbox, ipam: Value) -> Call<'a> {
    host.call(verb, pod)
        .program(&format!("{BIN}/podway-ipam"))
        .with("type", "bridge".into())
        .with("ipam", ipam)
}

/// A call of a real plugin with addresses of ours.
fn real<'a>(host: &'a Host, path: &str, plugin: &str, verb: &str, pod: &Sandbox, conf: &Value) -> Call<'a> {
    let folder = path.split(':').nth(1).unwrap();
    let mut call = host.call(verb, pod).program(&format!("{folder}/{plugin}")).env("CNI_PATH", path);
    // `ptp` and `bridge` run `nft` or `iptables` for masquerade only.
    for (key, value) in conf.as_object().unwrap() {
        call = call.with(key, value.clone());
    }
    call.with("type", plugin.into())
}

fn own_name(host: &Host) {
    host.place.run("ln", &["-s", PLUGIN, &format!("{BIN}/podway-ipam")]).unwrap();
}

/// Addresses that pods have from us, without gateways.
fn leased(host: &Host) -> Vec<String> {
    let leases = host.leases();
    let of_pods = leases.iter().filter(|lease| !cni_plugin::ipam::is_gateway(&lease.attachment));
    of_pods
        .flat_map(|lease| {
            assert_eq!(lease.kind, LeaseKind::AddressOnly);
            lease.ips().map(|ip| ip.to_string()).collect::<Vec<_>>()
        })
        .collect()
}

fn reach(from: &Sandbox, to: &str) -> bool {
    let ping = || std::process::Command::new("ping").args(["-c1", "-W5", to]).output();
    from.net.run(ping).unwrap().unwrap().status.success()
}

fn gc(host: &Host, network: &str, valid: Value) -> Answer {
    host.bare("GC")
        .program(&format!("{BIN}/podway-ipam"))
        .with("name", network.into())
        .with("ipam", json!({"type": "podway-ipam"}))
        .with("cni.dev/valid-attachments", valid)
        .run()
}

#[test]
fn each_version_of_an_answer_has_addresses_of_the_block_and_its_gateway() {
    let test = "each_version_of_an_answer_has_addresses_of_the_block_and_its_gateway";
    let Some(host) = Host::new(test, Families::Dual) else { return };
    own_name(&host);
    let ipam = json!({"type": "podway-ipam", "routes": [{"dst": "0.0.0.0/0"}], "dns": {"nameservers": ["10.0.0.53"]}});
    for version in ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
        let pod = host.sandbox("p");
        let call = |verb: &str| ipam_call(&host, verb, &pod, ipam.clone()).with("cniVersion", version.into());
        let result = call("ADD").run().result();
        let first = result["ips"][0]["address"].as_str().unwrap();
        assert!(first.starts_with("10.244.1.") && first.ends_with("/26"), "{result}");
        assert_eq!(result["ips"][0]["gateway"], "10.244.1.1");
        assert_eq!(result["ips"][1]["gateway"], "fd00:244::101");
        assert!(result["ips"][1]["address"].as_str().unwrap().ends_with("/122"), "{result}");
        assert_eq!(result["ips"][0]["version"].is_string(), version < "1.0.0");
        assert_eq!((&result["routes"], &result["dns"]), (&ipam["routes"], &ipam["dns"]));
        assert!(result.get("interfaces").is_none());
        if version >= "0.4.0" {
            call("CHECK").with("prevResult", result.clone()).run().done();
            let mut other = result.clone();
            other["ips"] = json!([]);
            assert!(call("CHECK").with("prevResult", other).run().error(101).contains("is missing"));
        }
        // An ADD that was killed behind the lease, and comes again: the same addresses.
        assert_eq!(call("ADD").run().result(), result);
        call("DEL").run().done();
        call("DEL").run().done();
        if version >= "0.4.0" {
            let said = call("CHECK").with("prevResult", result).run().error(101);
            assert!(said.contains("address lease is missing"), "{said}");
        }
    }
    let version = host.bare("VERSION").program(&format!("{BIN}/podway-ipam")).run().result();
    assert_eq!(version["supportedVersions"].as_array().unwrap().len(), 5);
    assert_eq!(leased(&host), Vec::<String>::new());
    assert_eq!(host.leases().len(), GATEWAYS, "gateways stay: a bridge keeps its address");
}

#[test]
fn other_plugins_get_the_addresses_that_a_pod_of_ours_would_get() {
    let test = "other_plugins_get_the_addresses_that_a_pod_of_ours_would_get";
    let Some(host) = Host::new(test, Families::Dual) else { return };
    own_name(&host);
    host.edit_node_file(|file| {
        let push = |list: &mut Value, value| list.as_array_mut().unwrap().push(value);
        push(&mut file["pools"], json!({"name": "lan", "cidr": "10.8.0.0/24", "assignment": "automatic"}));
        push(&mut file["blocks"], json!({"cidr": "10.8.0.64/28", "pool": "lan", "state": "active"}));
        file["namespacePools"] = json!({"default": ["lan"]});
    });
    let pod = host.sandbox("p");
    let own = |extra: Value| {
        let mut ipam = json!({"type": "podway-ipam"});
        ipam.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        ipam
    };
    let first = |call: Call<'_>| {
        let result = call.run().result();
        ipam_call(&host, "DEL", &pod, own(json!({}))).run().done();
        result["ips"][0].clone()
    };
    let add = |extra: Value| ipam_call(&host, "ADD", &pod, own(extra));
    let annotated = |annotations: Value| json!({"io.kubernetes.cri.pod-annotations": annotations});
    // The namespace's pool; a pool of the pod's; a pool of the configuration for a pod that has neither.
    assert_eq!(first(add(json!({}))), json!({"address": "10.8.0.66/28", "gateway": "10.8.0.65"}));
    let wish = annotated(json!({"cni.projectcalico.org/ipv4pools": "[\"v4\"]"}));
    assert_eq!(first(add(json!({})).with("runtimeConfig", wish))["address"], "10.244.1.2/26");
    let nobody = add(json!({"pools": ["v4"]})).env("CNI_ARGS", "IgnoreUnknown=1");
    assert_eq!(first(nobody)["gateway"], "10.244.1.1");
    // Addresses asked for, in each of the ways; ranges; reserved ones.
    let asked = |call: Call<'_>, expected: &str| assert_eq!(first(call)["address"], expected);
    asked(add(json!({})).with("runtimeConfig", json!({"ips": ["10.8.0.70"]})), "10.8.0.70/28");
    asked(add(json!({})).with("args", json!({"cni": {"ips": ["10.8.0.71/28"]}})), "10.8.0.71/28");
    asked(add(json!({})).env("CNI_ARGS", "IgnoreUnknown=1;IP=10.244.1.9"), "10.244.1.9/26");
    let wish = annotated(json!({"cni.projectcalico.org/ipAddrs": "[\"10.8.0.72\"]"}));
    asked(add(json!({})).with("runtimeConfig", wish), "10.8.0.72/28");
    let ranges = json!({"ipRanges": [[{"subnet": "10.8.0.64/28", "rangeStart": "10.8.0.76"}]]});
    asked(add(json!({})).with("runtimeConfig", ranges), "10.8.0.76/28");
    asked(add(json!({"reserved": ["10.8.0.64/29"]})), "10.8.0.73/28");
    // A subnet that exists outside: the pool's, with the gateway that is there.
    let lan = json!({"subnet": "pool", "gateways": ["10.8.0.1"]});
    let result = first(add(lan));
    assert!(result["address"].as_str().unwrap().ends_with("/24"), "{result}");
    assert_eq!(result["gateway"], "10.8.0.1");
    assert_eq!(first(add(json!({"subnet": "pool"}))).get("gateway"), None);
    // What cannot be: ends of the subnet, the gateway, what is not there; nothing is leased.
    for (ip, code, part) in [
        ("10.8.0.64", 7, "one between the ends of 10.8.0.64/28 expected"),
        ("10.8.0.79", 7, "one between the ends"),
        ("10.8.0.65", 11, "leased to gateway.10.8.0.64-28/gateway"),
        ("10.9.0.1", 7, "in no block of this node"),
    ] {
        let said = add(json!({})).with("runtimeConfig", json!({"ips": [ip]})).run().error(code);
        assert!(said.contains(part), "{said}");
    }
    assert!(
        add(json!({"pools": ["nope"]}))
            .env("CNI_ARGS", "")
            .run()
            .error(7)
            .contains("not a pool of this node")
    );
    assert!(add(json!({"ranges": []})).run().error(7).contains("ipam.ranges: this key found"));
    assert_eq!(leased(&host), Vec::<String>::new());
}

#[test]
fn a_full_pool_is_named_with_its_usage_also_through_another_plugin() {
    let test = "a_full_pool_is_named_with_its_usage_also_through_another_plugin";
    let Some((host, path)) = with_real_plugins(test, Families::V4) else { return };
    host.edit_node_file(|file| {
        file["blocks"] = json!([{"cidr": "10.244.1.8/29", "pool": "v4", "state": "active"}]);
        file["tunnelAddresses"] = json!([]);
    });
    let status = || {
        let ipam = json!({"type": "podway-ipam"});
        host.bare("STATUS").program(&format!("{BIN}/podway-ipam")).with("ipam", ipam).run()
    };
    status().done();
    // Of eight: lowest, highest and gateway are not pods'.
    let pods: Vec<Sandbox> = (0..5).map(|i| host.sandbox(&format!("p{i}"))).collect();
    for pod in &pods {
        ipam_call(&host, "ADD", pod, json!({"type": "podway-ipam"})).run().result();
    }
    let late = host.sandbox("late");
    let expected = "no free IPv4 address on this node: pool v4 has 6 of 8 addresses leased in 1 blocks";
    let said = ipam_call(&host, "ADD", &late, json!({"type": "podway-ipam"})).run().error(11);
    assert!(said.contains(expected), "{said}");
    assert!(status().error(50).contains(expected));
    let conf = json!({"bridge": "br0", "isGateway": true, "ipam": {"type": "podway-ipam"}});
    let said = real(&host, &path, "bridge", "ADD", &late, &conf).run_theirs().error(11);
    // That left its interface.
    let late = host.sandbox("later");
    assert!(said.contains(expected), "{said}");
    ipam_call(&host, "DEL", &pods[0], json!({})).run().done();
    real(&host, &path, "bridge", "ADD", &late, &conf).run_theirs().result();
}

#[test]
fn pods_on_a_bridge_have_our_addresses_and_reach_each_other() {
    let test = "pods_on_a_bridge_have_our_addresses_and_reach_each_other";
    let Some((host, path)) = with_real_plugins(test, Families::Dual) else { return };
    let conf = json!({
        "bridge": "br0", "isGateway": true, "ipam": {"type": "podway-ipam", "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]}
    });
    for plugin in ["bridge", "ptp"] {
        let pods = [host.sandbox("a"), host.sandbox("b")];
        let call = |verb: &str, pod: &Sandbox| real(&host, &path, plugin, verb, pod, &conf);
        let results = pods.each_ref().map(|pod| call("ADD", pod).run_theirs().result());
        assert_eq!(leased(&host).len(), 4, "{plugin}");
        for (from, to) in [(0, 1), (1, 0)] {
            for address in ips(&results[to]) {
                assert!(reach(&pods[from], &address.to_string()), "{plugin}: {address}");
                // The bridge's own new IPv6 address is tentative for a moment.
                let ping = || host.place.run("ping", &["-c1", "-W1", &address.to_string()]);
                wait_until_ok(&format!("{address} answers the node"), PATIENCE, ping).unwrap();
            }
        }
        assert!(reach(&pods[0], "10.244.1.1") && reach(&pods[0], "fd00:244::101"), "{plugin}: the gateway");
        for (pod, result) in pods.iter().zip(&results) {
            call("CHECK", pod).with("prevResult", result.clone()).run_theirs().done();
        }
        // An ADD again fails in the plugin, because its interface is there; its address stays the pod's.
        let said = call("ADD", &pods[0]).run_theirs().text.unwrap().to_string();
        // `bridge` looks before it asks for addresses, `ptp` afterwards, and then it would give them back.
        let expected = if plugin == "ptp" { "one ADD, then DEL" } else { "already exists" };
        assert!(said.contains(expected), "{plugin}: {said}");
        assert_eq!(leased(&host).len(), 4);
        // GC: what is not valid, of this network, and not the gateway.
        let alive = json!([{"containerID": pods[0].attachment.container_id, "ifname": "eth0"}]);
        gc(&host, "podway", json!("all")).error(7);
        gc(&host, "other", json!([])).done();
        // Of the main plugin's: addresses only, so not its business.
        host.bare("GC").with("cni.dev/valid-attachments", json!([])).run().done();
        assert_eq!(leased(&host).len(), 4);
        gc(&host, "podway", alive).done();
        assert_eq!((leased(&host).len(), host.leases().len()), (2, 1 + GATEWAYS));
        for (pod, result) in pods.iter().zip(&results) {
            call("DEL", pod).with("prevResult", result.clone()).run_theirs().done();
        }
        assert_eq!(leased(&host), Vec::<String>::new());
    }
}

#[test]
fn pods_on_macvlan_have_our_addresses_and_reach_each_other() {
    let test = "pods_on_macvlan_have_our_addresses_and_reach_each_other";
    let Some((host, path)) = with_real_plugins(test, Families::Dual) else { return };
    host.ip("link add uplink0 type veth peer name lan0\nlink set uplink0 up\nlink set lan0 up");
    let routes = json!([{"dst": "10.9.0.0/16"}, {"dst": "fd09::/64"}]);
    let conf = json!({
        "master": "uplink0", "mode": "bridge", "mtu": 1400, "ipam": {"type": "podway-ipam", "routes": routes}
    });
    let pods = [host.sandbox("a"), host.sandbox("b")];
    let call = |verb: &str, pod: &Sandbox| real(&host, &path, "macvlan", verb, pod, &conf);
    let results = pods.each_ref().map(|pod| call("ADD", pod).run_theirs().result());
    assert_eq!(leased(&host).len(), 4);
    for (from, to) in [(0, 1), (1, 0)] {
        for address in ips(&results[to]) {
            assert!(reach(&pods[from], &address.to_string()), "{address}");
        }
    }
    for (pod, result) in pods.iter().zip(&results) {
        call("CHECK", pod).with("prevResult", result.clone()).run_theirs().done();
    }
    // What ends without a DEL is found by GC.
    let alive = json!([{"containerID": pods[0].attachment.container_id, "ifname": "eth0"}]);
    gc(&host, "podway", alive).done();
    assert_eq!(leased(&host), ips(&results[0]).iter().map(ToString::to_string).collect::<Vec<_>>());
    for (pod, result) in pods.iter().zip(&results) {
        call("DEL", pod).with("prevResult", result.clone()).run_theirs().done();
    }
    assert_eq!(leased(&host), Vec::<String>::new());
}

#[test]
fn an_attachment_has_addresses_from_one_network_only() {
    let Some(host) = Host::new("an_attachment_has_addresses_from_one_network_only", Families::V4) else {
        return;
    };
    own_name(&host);
    let (pod, ipam) = (host.sandbox("p"), json!({"type": "podway-ipam"}));
    host.add(&pod);
    let said = ipam_call(&host, "ADD", &pod, ipam.clone()).run().error(4);
    assert!(said.contains("belongs to network podway"), "{said}");
    ipam_call(&host, "DEL", &pod, ipam.clone()).run().done();
    assert_eq!(host.leases().len(), 1, "the main plugin's stays");
    host.del(&pod);
    ipam_call(&host, "ADD", &pod, ipam.clone()).run().result();
    let said = host.call("ADD", &pod).run().error(4);
    assert!(said.contains("belongs to network podway"), "{said}");
    let said = ipam_call(&host, "ADD", &pod, ipam.clone()).with("name", "other".into()).run().error(4);
    assert!(said.contains("belongs to network podway"), "{said}");
    host.del(&pod);
    ipam_call(&host, "DEL", &pod, ipam.clone()).with("name", "other".into()).run().done();
    assert_eq!(leased(&host).len(), 1, "neither the main plugin's DEL nor another network's ends it");
    ipam_call(&host, "DEL", &pod, ipam).run().done();
    assert_eq!(leased(&host), Vec::<String>::new());
}

#[test]
fn an_add_or_del_of_addresses_killed_anywhere_leaves_nothing() {
    let test = "an_add_or_del_of_addresses_killed_anywhere_leaves_nothing";
    let Some(host) = Host::new(test, Families::Dual) else { return };
    own_name(&host);
    let (pod, ipam) = (host.sandbox("p"), json!({"type": "podway-ipam"}));
    let call = |verb: &str| ipam_call(&host, verb, &pod, ipam.clone());
    for verb in ["ADD", "DEL"] {
        for next in ["DEL", "GC", "ADD"] {
            for n in 1.. {
                if n == 1 || verb == "ADD" {
                    // The first one of a boot: gateways and all.
                    host.place.run("sh", &["-c", "rm -rf /run/podway/ipam"]).unwrap();
                }
                if verb == "DEL" {
                    call("ADD").run().result();
                }
                let run = trace::run(&host, &call(verb), Some(n));
                let when = format!("{verb} killed at system call {n}, then {next}");
                match next {
                    "GC" => gc(&host, "podway", json!([])).done(),
                    "ADD" => {
                        let result = call("ADD").run().result();
                        call("CHECK").with("prevResult", result).run().done();
                        call("DEL").run().done();
                    }
                    _ => call("DEL").run().done(),
                }
                assert_eq!(leased(&host), Vec::<String>::new(), "{when}");
                assert!(host.leases().len() <= GATEWAYS, "{when}");
                if run.code.is_some() {
                    println!("{verb} of addresses: {} kill points", n - 1);
                    assert!(n > 20, "{verb}: {n}");
                    break;
                }
            }
        }
    }
}
