//! Every verb over the real binary, for IPv4, IPv6 and both.

use std::net::{IpAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};

use podway_kern::ns::NetNs;
use podway_kern::rtnl::{Request, VethEnd};
use podway_testkit::probe::{Kind, Outcome, Probe, probe_all};
use serde_json::{Value, json};

use crate::host::{Families, Host, attachment, host_name, ips};

/// Both directions between the node and a pod.
fn assert_reachable(host: &Host, pod: &NetNs, result: &Value) {
    for address in ips(result) {
        let gateway: IpAddr = if address.is_ipv4() { "169.254.1.1" } else { "fe80::1" }.parse().unwrap();
        let mut probes =
            vec![Probe { from: host.place.net(), to: address, kind: Kind::Icmp, expect_open: true }];
        if gateway.is_ipv4() {
            // The node answers on any of its addresses; a link-local IPv6 one needs a scope, which probes lack.
            let node =
                Probe { from: pod, to: "192.0.2.1".parse().unwrap(), kind: Kind::Icmp, expect_open: true };
            probes.push(node);
        }
        assert_eq!(
            probe_all(&probes).unwrap(),
            vec![Outcome::Open { answer: None }; probes.len()],
            "{address}"
        );
    }
}

fn add_check_del(families: Families, addresses: &[&str]) {
    let Some(host) = Host::new("add_check_del", families) else { return };
    host.ip("addr add 192.0.2.1/32 dev lo");
    let pod = host.sandbox("p");
    let result = host.add(&pod);
    let found: Vec<String> = ips(&result).iter().map(ToString::to_string).collect();
    assert_eq!(found, addresses);
    host.check(&pod, &result).done();
    assert_reachable(&host, &pod.net, &result);
    let leases = host.leases();
    assert_eq!(leases.len(), 1);
    assert_eq!(leases[0].attachment, attachment(&pod));
    let records = host.records();
    assert_eq!(records.len(), 1);
    assert_eq!(records[0].addresses, ips(&result));
    assert_eq!(records[0].pod.as_ref().unwrap().to_string(), "default/p");
    assert_eq!(host.pod_routes().len(), addresses.len());
    host.del(&pod);
    assert_eq!(host.leftovers(), Vec::<String>::new());
    let mut inside = podway_kern::rtnl::Rtnl::open_in(&pod.net).unwrap();
    assert_eq!(inside.link("eth0").unwrap(), None, "the pod's end is there");
}

#[test]
fn add_check_del_with_ipv4() {
    add_check_del(Families::V4, &["10.244.1.1"]);
}

#[test]
fn add_check_del_with_ipv6() {
    add_check_del(Families::V6, &["fd00:244::101"]);
}

#[test]
fn add_check_del_with_both_families() {
    add_check_del(Families::Dual, &["10.244.1.1", "fd00:244::101"]);
}

#[test]
fn every_version_gets_its_own_result_and_knows_its_verbs() {
    let Some(host) = Host::new("every_version_gets_its_own_result", Families::Dual) else { return };
    for (version, family, mtu, check) in [
        ("0.3.0", true, false, false),
        ("0.3.1", true, false, false),
        ("0.4.0", true, false, true),
        ("1.0.0", false, false, true),
        ("1.1.0", false, true, true),
    ] {
        let pod = host.sandbox("v");
        let call = |verb: &str| host.call(verb, &pod).with("cniVersion", json!(version));
        let result = call("ADD").run().result();
        assert_eq!(result["cniVersion"], version);
        let [node_end, pod_end] = [0, 1].map(|i| result["interfaces"][i].clone());
        assert_eq!(node_end["name"], host_name(&pod));
        assert_eq!(node_end["mac"], "02:70:77:00:00:01");
        assert!(node_end.get("sandbox").is_none());
        assert_eq!((&pod_end["name"], &pod_end["sandbox"]), (&json!("eth0"), &json!(pod.attachment.netns)));
        assert_eq!(pod_end.get("mtu"), mtu.then(|| json!(1450)).as_ref(), "{version}");
        for (i, (text, gateway)) in [("4", "169.254.1.1"), ("6", "fe80::1")].into_iter().enumerate() {
            let ip = &result["ips"][i];
            assert_eq!(ip.get("version"), family.then(|| json!(text)).as_ref(), "{version}");
            assert_eq!((&ip["gateway"], &ip["interface"]), (&json!(gateway), &json!(1)));
        }
        let checked = call("CHECK").with("prevResult", result.clone()).run();
        if check {
            checked.done();
        } else {
            assert!(checked.error(1).contains("does not know CHECK"));
        }
        let gc =
            host.bare("GC").with("cniVersion", json!(version)).with("cni.dev/valid-attachments", json!([]));
        let status = host.bare("STATUS").with("cniVersion", json!(version)).run();
        if version == "1.1.0" {
            status.done();
            gc.run().done();
            assert_eq!(host.leases().len(), 0);
        } else {
            assert!(status.error(1).contains("does not know STATUS"));
            assert!(gc.run().error(1).contains("does not know GC"));
            assert_eq!(host.leases().len(), 1, "a GC that was refused freed something");
        }
        call("DEL").with("prevResult", result).run().done();
        assert_eq!(host.leftovers(), Vec::<String>::new(), "{version}");
    }
}

#[test]
fn version_needs_no_input_and_echoes_what_it_is_asked() {
    let Some(host) = Host::new("version_needs_no_input", Families::V4) else { return };
    let supported = json!(["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"]);
    for (input, version) in [
        ("", "1.1.0"),
        ("{", "1.1.0"),
        ("{}", "1.1.0"),
        (r#"{"cniVersion":"0.4.0"}"#, "0.4.0"),
        (r#"{"cniVersion":"1.0.0","name":"n"}"#, "1.0.0"),
    ] {
        let answer = host.bare("VERSION").input(input).run().result();
        assert_eq!(answer, json!({"cniVersion": version, "supportedVersions": supported}), "{input}");
    }
}

#[test]
fn del_may_be_called_often_and_with_little() {
    let Some(host) = Host::new("del_may_be_called_often_and_with_little", Families::Dual) else { return };
    let pod = host.sandbox("p");
    let nothing = Vec::<String>::new();
    // Never added.
    host.del(&pod);
    // Twice.
    let result = host.add(&pod);
    host.del(&pod);
    host.del(&pod);
    assert_eq!(host.leftovers(), nothing);
    // Without a namespace path, without the result, with one that cannot be used.
    host.add(&pod);
    host.call("DEL", &pod).without_env("CNI_NETNS").run().done();
    assert_eq!(host.leftovers(), nothing);
    for bad in [json!("x"), json!({"interfaces": "none"}), json!([]), json!({"cniVersion": "9"}), Value::Null]
    {
        host.add(&pod);
        host.call("DEL", &pod).with("prevResult", bad.clone()).run().done();
        assert_eq!(host.leftovers(), nothing, "{bad}");
    }
    // With a path that is an ordinary file, a folder, nothing at all.
    host.write("/run/netns/file", "");
    for path in ["/run/netns/file", "/run/netns", "/run/netns/nowhere"] {
        host.add(&pod);
        host.call("DEL", &pod).env("CNI_NETNS", path).run().done();
        assert_eq!(host.leftovers(), nothing, "{path}");
    }
    // With settings that ADD would refuse.
    host.add(&pod);
    let runtime = json!({"ips": ["banana"], "mac": 7, "bandwidth": {"ingressRate": -1}});
    host.call("DEL", &pod).with("runtimeConfig", runtime).with("podway", json!({"x": 1})).run().done();
    assert_eq!(host.leftovers(), nothing);
    // With the result of the ADD.
    let again = host.add(&pod);
    host.call("DEL", &pod).with("prevResult", again).run().done();
    assert_eq!(host.leftovers(), nothing);
    assert_ne!(result, Value::Null);
}

#[test]
fn del_of_a_pod_whose_namespace_is_gone() {
    let Some(host) = Host::new("del_of_a_pod_whose_namespace_is_gone", Families::Dual) else { return };
    let pod = host.sandbox("p");
    host.add(&pod);
    let attachment = pod.attachment.clone();
    pod.remove(&host.place).unwrap();
    let del = host
        .bare("DEL")
        .env("CNI_CONTAINERID", &attachment.container_id)
        .env("CNI_NETNS", &attachment.netns)
        .env("CNI_IFNAME", "eth0");
    // The kernel may still be at it: DEL does not care.
    del.run().done();
    del.run().done();
    assert_eq!(host.leftovers(), Vec::<String>::new());
}

#[test]
fn del_with_the_path_of_another_container_leaves_that_one_alone() {
    let Some(host) = Host::new("del_with_the_path_of_another_container", Families::Dual) else { return };
    let (mine, other) = (host.sandbox("mine"), host.sandbox("other"));
    host.add(&mine);
    let result = host.add(&other);
    host.call("DEL", &mine).env("CNI_NETNS", &other.attachment.netns).run().done();
    host.check(&other, &result).done();
    assert_eq!(host.leases().len(), 1);
    assert_eq!(host.records().len(), 1);
    // A stranger's interface under our name on the node: it stays, what is ours goes.
    host.add(&mine);
    let name = host_name(&mine);
    host.ip(&format!("link del {name}"));
    host.ip(&format!("link add {name} type bridge"));
    host.del(&mine);
    assert!(host.rtnl().link(name.as_str()).unwrap().is_some(), "a stranger's link was deleted");
    assert_eq!(host.leases().len(), 1);
    let refused = host.call("ADD", &mine).run().error(100);
    assert!(refused.contains(&name) && refused.contains("not ours"), "{refused}");
    assert_eq!(host.leases().len(), 1, "a refused ADD kept its address");
    host.check(&other, &result).done();
}

#[test]
fn add_again_makes_the_attachment_anew_under_the_same_addresses() {
    let Some(host) = Host::new("add_again_makes_the_attachment_anew", Families::Dual) else { return };
    let pod = host.sandbox("p");
    let first = host.add(&pod);
    let second = host.add(&pod);
    assert_eq!(first, second);
    host.check(&pod, &second).done();
    assert_eq!((host.leases().len(), host.records().len(), host.pod_links().len()), (1, 1, 1));
    // In another namespace: the runtime made the sandbox anew and did not say DEL.
    let moved = host.sandbox("p2");
    let third = host.call("ADD", &pod).env("CNI_NETNS", &moved.attachment.netns).run().result();
    assert_eq!(ips(&third), ips(&first));
    let mut old = podway_kern::rtnl::Rtnl::open_in(&pod.net).unwrap();
    assert_eq!(old.link("eth0").unwrap(), None);
    assert_eq!(host.pod_links().len(), 1);
    // After its leases were wiped out from under it.
    host.remove("/run/podway/ipam/leases");
    host.add(&pod);
    assert_eq!((host.leases().len(), host.pod_links().len()), (1, 1));
}

#[test]
fn two_interfaces_of_one_container() {
    let Some(host) = Host::new("two_interfaces_of_one_container", Families::Dual) else { return };
    let mut pod = host.sandbox("p");
    let first = host.add(&pod);
    pod.attachment.ifname = "net1".to_owned();
    let second = host.add(&pod);
    assert_eq!(host.leases().len(), 2);
    host.check(&pod, &second).done();
    // The same interface on another network is a stranger to that network.
    let refused = host.call("ADD", &pod).with("name", json!("other")).run().error(4);
    assert!(refused.contains("CNI_IFNAME: net1") && refused.contains("network podway"), "{refused}");
    host.call("DEL", &pod).with("name", json!("other")).run().done();
    host.check(&pod, &second).done();
    host.del(&pod);
    pod.attachment.ifname = "eth0".to_owned();
    host.check(&pod, &first).done();
    host.del(&pod);
    assert_eq!(host.leftovers(), Vec::<String>::new());
}

#[test]
fn an_occupied_interface_name_is_refused_and_leaves_no_trace() {
    let Some(host) = Host::new("an_occupied_interface_name_is_refused", Families::Dual) else { return };
    let pod = host.sandbox("p");
    host.ip_in(&pod.net, "link add eth0 type bridge");
    let refused = host.call("ADD", &pod).run().error(4);
    assert!(refused.contains("CNI_IFNAME: eth0 exists in"), "{refused}");
    assert_eq!(host.leftovers(), Vec::<String>::new());
    let mut inside = podway_kern::rtnl::Rtnl::open_in(&pod.net).unwrap();
    assert_eq!(inside.link("eth0").unwrap().unwrap().kind.as_deref(), Some("bridge"));
}

#[test]
fn gc_frees_what_is_not_valid_of_its_own_network_and_nothing_else() {
    let Some(host) = Host::new("gc_frees_what_is_not_valid", Families::Dual) else { return };
    let pods: Vec<_> = ["a", "b", "c", "d"].iter().map(|name| host.sandbox(name)).collect();
    let results: Vec<_> = pods[..3].iter().map(|pod| host.add(pod)).collect();
    let other = |verb: &str| host.call(verb, &pods[3]).with("name", json!("other"));
    let result = other("ADD").run().result();
    let valid = |pods: &[&podway_testkit::pod::Sandbox]| -> Value {
        let one = |pod: &&podway_testkit::pod::Sandbox| json!({"containerID": pod.attachment.container_id, "ifname": "eth0"});
        pods.iter().map(one).collect()
    };
    let gc = |list: Value| host.bare("GC").with("cni.dev/valid-attachments", list).run();
    for malformed in [json!("none"), json!([{"containerID": "x"}]), json!([[]])] {
        gc(malformed).error(7);
    }
    host.bare("GC").run().error(7);
    assert_eq!(host.leases().len(), 4);
    gc(valid(&[&pods[0], &pods[2]])).done();
    assert_eq!(host.leases().len(), 3);
    assert_eq!((host.pod_links().len(), host.records().len()), (3, 3));
    host.check(&pods[0], &results[0]).done();
    host.check(&pods[2], &results[2]).done();
    // A valid attachment without anything is no mistake; a record of an earlier boot goes.
    let mut record: Value = serde_json::to_value(&host.records()[0]).unwrap();
    record["bootId"] = json!("00000000-0000-0000-0000-00000000000f");
    let id = podway_model::names::attachment_id("of-another-boot", "eth0");
    record["id"] = json!(id);
    record["containerId"] = json!("of-another-boot");
    host.write(&format!("/run/podway/endpoints/{id}.json"), &record.to_string());
    gc(valid(&[&pods[1]])).done();
    assert_eq!((host.leases().len(), host.records().len()), (1, 1));
    other("CHECK").with("prevResult", result).run().done();
    other("DEL").run().done();
    assert_eq!(host.leftovers(), Vec::<String>::new());
}

#[test]
fn status_says_what_add_would_meet() {
    let Some(host) = Host::new("status_says_what_add_would_meet", Families::V4) else { return };
    let status = || host.bare("STATUS").run();
    status().done();
    let good = host.read("/var/lib/podway/node.json");
    let pod = host.sandbox("p");
    for (text, part) in [
        (None, "not there yet"),
        (Some("{".to_owned()), "node.json"),
        (Some(good.replace(host.boot().as_str(), "00000000-0000-0000-0000-00000000000f")), "bootId"),
        (Some(good.replace("\"active\"", "\"draining\"")), "pool v4"),
        (Some(good.replace("\"policy\":\"none\"", "\"policy\":\"required\"")), "podway-policy"),
    ] {
        match text {
            Some(text) => host.write("/var/lib/podway/node.json", &text),
            None => host.remove("/var/lib/podway/node.json"),
        }
        let said = status().error(50);
        assert!(said.contains(part), "{said}");
        let refused = host.call("ADD", &pod).run().error(11);
        assert!(refused.contains(part), "{refused}");
        assert_eq!(host.leftovers(), Vec::<String>::new(), "{part}");
    }
    host.write("/var/lib/podway/node.json", &good);
    status().done();
}

#[test]
fn a_full_pool_is_named_with_its_usage() {
    let Some(host) = Host::new("a_full_pool_is_named_with_its_usage", Families::V4) else { return };
    host.edit_node_file(|file| file["blocks"][0]["cidr"] = json!("10.244.1.0/30"));
    let pods: Vec<_> = (0..3).map(|i| host.sandbox(&format!("p{i}"))).collect();
    pods.iter().for_each(|pod| drop(host.add(pod)));
    let one_more = host.sandbox("more");
    let full = "pool v4 has 3 of 3 addresses leased in 1 blocks";
    assert!(host.call("ADD", &one_more).run().error(11).contains(full));
    assert!(host.bare("STATUS").run().error(50).contains(full));
    // Who has its address still gets it.
    host.add(&pods[0]);
    host.del(&pods[1]);
    host.add(&one_more);
    assert_eq!(host.leases().len(), 3);
}

/// Sends one datagram to the pod and one back, no second try.
fn assert_first_packets_pass(host: &Host, pod: &NetNs, result: &Value) {
    for address in ips(result) {
        let open = |net: &NetNs| {
            let socket = net.run(|| UdpSocket::bind("[::]:0")).unwrap().unwrap();
            socket.set_read_timeout(Some(crate::host::PATIENCE)).unwrap();
            socket
        };
        let (inside, outside) = (open(pod), open(host.place.net()));
        let port = inside.local_addr().unwrap().port();
        let to = if let IpAddr::V4(v4) = address { v4.to_ipv6_mapped().into() } else { address };
        outside.send_to(b"there", (to, port)).unwrap();
        let mut buffer = [0; 16];
        let arrived = inside.recv_from(&mut buffer);
        let (_, from) = arrived.unwrap_or_else(|e| panic!("the first packet to {address} was lost: {e}"));
        inside.send_to(b"back", from).unwrap();
        let answered = outside.recv_from(&mut buffer);
        assert!(answered.is_ok(), "the first packet of the pod from {address} to {from} was lost");
    }
}

/// The kernel works carrier events off under its big lock: others hold it here all the time.
#[test]
fn the_first_packets_pass_when_add_returns() {
    let Some(host) = Host::new("the_first_packets_pass", Families::Dual) else { return };
    host.ip("addr add 192.0.2.1/32 dev lo\naddr add 2001:db8::1/128 dev lo");
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let busy = NetNs::create().unwrap();
            let mut rtnl = podway_kern::rtnl::Rtnl::open_in(&busy).unwrap();
            while !over.load(Ordering::Relaxed) {
                let end = |name: &str| VethEnd { name: name.to_owned(), ..VethEnd::default() };
                let pair = Request::AddVeth { host: end("a"), peer: end("b"), peer_netns: None };
                rtnl.run_all(&[pair, Request::DeleteLink("a".into())]).unwrap();
            }
        });
        let stop = StopOnDrop(&over);
        for round in 0..12 {
            let pod = host.sandbox(&format!("p{round}"));
            assert_first_packets_pass(&host, &pod.net, &host.add(&pod));
            host.del(&pod);
        }
        drop(stop);
    });
}

/// Ends the background work also where an assertion fails.
struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Equal interface indexes at both ends make the kernel hold back the carrier event: see `add::make_pair`.
#[test]
fn the_first_packet_passes_also_where_both_ends_have_equal_indexes() {
    let Some(host) = Host::new("the_first_packet_passes", Families::Dual) else { return };
    host.ip("addr add 192.0.2.1/32 dev lo\naddr add 2001:db8::1/128 dev lo");
    // Indexes count up in each namespace; bring the pod's next one to where the node's is.
    let pod = host.sandbox("p");
    host.ip("link add probe type bridge");
    let next = host.rtnl().link("probe").unwrap().unwrap().index + 1;
    for i in 0.. {
        host.ip_in(&pod.net, &format!("link add d{i} type bridge"));
        let mut inside = podway_kern::rtnl::Rtnl::open_in(&pod.net).unwrap();
        if inside.link(format!("d{i}").as_str()).unwrap().unwrap().index + 1 >= next {
            break;
        }
    }
    let result = host.add(&pod);
    let index = |mut rtnl: podway_kern::rtnl::Rtnl, name: &str| rtnl.link(name).unwrap().unwrap().index;
    let inside = index(podway_kern::rtnl::Rtnl::open_in(&pod.net).unwrap(), "eth0");
    assert_ne!(index(host.rtnl(), &host_name(&pod)), inside);
    assert_first_packets_pass(&host, &pod.net, &result);
}
