//! The plugin under other plugins' names, beside the real ones: same answers, same files, same devices; a chain that
//! the one began is one that the other finishes. And what theirs leaves undone.

use std::path::PathBuf;

use podway_testkit::cni::{Attachment, RawOutcome};
use podway_testkit::pod::Sandbox;
use podway_testkit::probe::Kind;
use serde_json::{Map, Value, json};

use crate::node::{self, NETWORK, Node, Pod, on_a_node};

/// The version of the real plugins whose behaviour we keep.
const VERSION: &str = "1.9.1";
pub(crate) const VERSIONS: [&str; 5] = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

/// Where set-up has put the real plugins.
pub(crate) fn real_plugins() -> Option<PathBuf> {
    let given = std::env::var_os("PODWAY_CNI_PLUGINS").map(PathBuf::from);
    let cache = || {
        let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
        let cache = cache.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache")))?;
        Some(cache.join("podway").join(format!("cni-plugins-{VERSION}")))
    };
    given.or_else(cache).filter(|folder| folder.join("bridge").is_file())
}

/// Runs a test on a node that has ours under each name, and the real ones as `real-<name>`; or says why not.
pub(crate) fn beside_the_real_ones(test: &str, run: impl FnOnce(&Node)) {
    let Some(folder) = real_plugins() else {
        println!("SKIP {test}: no containernetworking plugins {VERSION} (PODWAY_CNI_PLUGINS)");
        return;
    };
    on_a_node(test, |node| {
        install(node);
        for name in ["host-local", "loopback", "bandwidth", "portmap", "ptp"] {
            node.install_file(&format!("real-{name}"), &folder.join(name));
        }
        run(node);
    });
}

pub(crate) fn install(node: &Node) {
    for name in podway_model::names::OTHER_PLUGINS {
        node.install(name);
    }
}

fn attachment(container: &str) -> Attachment {
    Attachment {
        container_id: container.to_owned(),
        netns: "/run/netns/none".to_owned(),
        ifname: "eth0".to_owned(),
        namespace: String::new(),
        pod: String::new(),
        uid: String::new(),
        capability_args: Map::new(),
    }
}

/// An answer without what may differ: the words of an error, and whether an empty `dns` is written.
pub(crate) fn answer(outcome: &RawOutcome) -> Result<Value, ()> {
    if outcome.code != Some(0) {
        let error: Value = serde_json::from_str(&outcome.stdout).expect("an error is one JSON text");
        assert!(error["code"].is_u64() && error["msg"].is_string(), "{error}");
        return Err(());
    }
    if outcome.stdout.is_empty() {
        return Ok(Value::Null);
    }
    let mut result: Value = serde_json::from_str(&outcome.stdout).expect("an answer is one JSON text");
    if result["dns"] == json!({}) || result["dns"].is_null() {
        result.as_object_mut().unwrap().remove("dns");
    }
    Ok(result)
}

/// Files of a folder with their content.
fn files(node: &Node, folder: &str) -> String {
    node.sh(&format!(
        "mkdir -p {folder}; cd {folder}; grep -r . . 2>/dev/null | tr '\\r' '|' | sort; ls | sort"
    ))
}

const OURS: &str = "/var/lib/cni/ours";
const THEIRS: &str = "/var/lib/cni/theirs";

/// The same calls to both `host-local`s, each with a folder of its own: answers and files must be equal after each.
struct Pair<'a> {
    node: &'a Node,
    version: &'a str,
    ipam: Value,
}

impl Pair<'_> {
    fn input(&self, folder: &str, more: &Value) -> Value {
        let mut input = json!({"cniVersion": self.version, "name": NETWORK, "type": "x", "ipam": self.ipam});
        input["ipam"]["type"] = "host-local".into();
        input["ipam"]["dataDir"] = folder.into();
        input.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        input
    }

    /// Calls both; returns the common answer.
    fn call(&self, verb: &str, container: &str, args: &str, more: &Value) -> Result<Value, ()> {
        let one = |plugin: &str, folder: &str| {
            let input = self.input(folder, more);
            let outcome = self.node.call_with_args(plugin, verb, &attachment(container), args, &input);
            (answer(&outcome), outcome.stdout)
        };
        let (ours, our_text) = one("host-local", OURS);
        let (theirs, their_text) = one("real-host-local", THEIRS);
        assert_eq!(
            ours, theirs,
            "{verb} {container} {args} {more} with {}\n{our_text}\n{their_text}",
            self.ipam
        );
        let (our_files, their_files) = (files(self.node, OURS), files(self.node, THEIRS));
        assert_eq!(our_files, their_files, "after {verb} {container} with {}", self.ipam);
        ours
    }

    fn add(&self, container: &str) -> Result<Value, ()> {
        self.call("ADD", container, "", &json!({}))
    }

    fn del(&self, container: &str) {
        self.call("DEL", container, "", &json!({})).unwrap();
    }
}

fn fresh(node: &Node) {
    node.sh(&format!("rm -rf {OURS} {THEIRS}"));
}

#[test]
fn host_local_leases_as_the_real_one() {
    beside_the_real_ones("host_local_leases_as_the_real_one", |node| {
        for version in VERSIONS {
            for ipam in [
                json!({"subnet": "10.1.0.0/29"}),
                json!({"subnet": "10.1.0.0/24", "rangeStart": "10.1.0.20", "rangeEnd": "10.1.0.22", "gateway": "10.1.0.21"}),
                json!({"ranges": [[{"subnet": "10.1.0.0/30"}, {"subnet": "10.2.0.0/29"}]]}),
                json!({
                    "ranges": [[{"subnet": "10.1.0.0/29"}], [{"subnet": "fd00:1::/125", "gateway": "fd00:1::5"}]],
                    "routes": [{"dst": "0.0.0.0/0"}, {"dst": "10.9.0.0/16", "gw": "10.1.0.1"}, {"dst": "::/0"}]
                }),
                json!({"subnet": "10.1.0.0/29", "ranges": [[{"subnet": "10.3.0.0/29"}]]}),
            ] {
                fresh(node);
                let pair = Pair { node, version, ipam };
                for i in 0..4 {
                    let _ = pair.add(&format!("c{i}"));
                }
                pair.del("c1");
                pair.del("c1");
                pair.del("never-added");
                // Round and round: the freed address comes last. Then there is none.
                for i in 4..10 {
                    let _ = pair.add(&format!("c{i}"));
                }
                assert_eq!(pair.add("c0"), Err(()), "an attachment has its address already");
                for i in 0..10 {
                    pair.del(&format!("c{i}"));
                }
            }
        }
    });
}

#[test]
fn host_local_gives_requested_addresses_as_the_real_one() {
    beside_the_real_ones("host_local_gives_requested_addresses_as_the_real_one", |node| {
        node.sh("printf '# x\\nnameserver 10.0.0.53\\nsearch a b\\ndomain d\\noptions ndots:5\\n' > /var/lib/cni/resolv");
        let ranges = json!([[{"subnet": "10.1.0.0/24"}], [{"subnet": "fd00:1::/120"}]]);
        let pair = Pair {
            node,
            version: "1.0.0",
            ipam: json!({"ranges": ranges, "resolvConf": "/var/lib/cni/resolv"}),
        };
        let asked = |ips: &[&str]| json!({"runtimeConfig": {"ips": ips}});
        let first = pair.call("ADD", "a", "", &asked(&["10.1.0.9/24", "fd00:1::9"])).unwrap();
        assert_eq!(first["ips"][0]["address"], "10.1.0.9/24");
        assert_eq!(first["dns"]["nameservers"], json!(["10.0.0.53"]));
        pair.call("ADD", "b", "IgnoreUnknown=1;IP=10.1.0.50", &json!({})).unwrap();
        pair.call("ADD", "c", "", &json!({"args": {"cni": {"ips": ["10.1.0.60"]}}})).unwrap();
        for refused in ["10.1.0.9", "10.1.0.1", "10.7.0.1", "10.1.0.255", "banana"] {
            assert_eq!(pair.call("ADD", "d", "", &asked(&[refused])), Err(()), "{refused}");
        }
        let pair = Pair { ipam: json!({"ranges": ranges}), ..pair };
        let own =
            json!({"runtimeConfig": {"ipRanges": [[{"subnet": "10.5.0.0/24", "rangeStart": "10.5.0.7"}]]}});
        let result = pair.call("ADD", "e", "", &own).unwrap();
        assert_eq!(result["ips"][0]["address"], "10.5.0.7/24", "{result}");
        pair.call("CHECK", "e", "", &json!({"prevResult": result})).unwrap();
        assert_eq!(pair.call("CHECK", "nobody", "", &json!({"prevResult": result})), Err(()));
    });
}

#[test]
fn host_local_refuses_what_the_real_one_refuses() {
    beside_the_real_ones("host_local_refuses_what_the_real_one_refuses", |node| {
        for ipam in [
            json!({}),
            json!({"ranges": []}),
            json!({"ranges": [[]]}),
            json!({"subnet": "10.1.0.0"}),
            json!({"subnet": "10.1.0.1/24"}),
            json!({"subnet": "10.1.0.0/31"}),
            json!({"subnet": "10.1.0.0/24", "rangeStart": "10.2.0.0"}),
            json!({"subnet": "10.1.0.0/24", "rangeEnd": "10.2.0.0"}),
            json!({"subnet": "10.1.0.0/24", "rangeStart": "10.1.0.9", "rangeEnd": "10.1.0.8"}),
            json!({"ranges": [[{"subnet": "10.1.0.0/24"}, {"subnet": "fd00::/64"}]]}),
            json!({"ranges": [[{"subnet": "10.1.0.0/24"}, {"subnet": "10.1.0.0/25"}]]}),
            json!({"ranges": [[{"subnet": "10.1.0.0/24"}], [{"subnet": "10.1.0.0/16"}]]}),
        ] {
            fresh(node);
            assert_eq!(Pair { node, version: "1.0.0", ipam: ipam.clone() }.add("c"), Err(()), "{ipam}");
        }
    });
}

#[test]
fn a_host_local_chain_that_one_began_the_other_finishes() {
    beside_the_real_ones("a_host_local_chain_that_one_began_the_other_finishes", |node| {
        let pair = Pair { node, version: "1.0.0", ipam: json!({"subnet": "10.1.0.0/29"}) };
        let input = |more: Value| pair.input(OURS, &more);
        for (first, second) in [("host-local", "real-host-local"), ("real-host-local", "host-local")] {
            let added = answer(&node.call(first, "ADD", &attachment("c"), &input(json!({})))).unwrap();
            let checked = node.call(second, "CHECK", &attachment("c"), &input(json!({"prevResult": added})));
            assert_eq!(checked.code, Some(0), "{}", checked.stdout);
            assert_eq!(node.call(second, "ADD", &attachment("c"), &input(json!({}))).code, Some(1));
            assert_eq!(node.call(second, "DEL", &attachment("c"), &input(json!({}))).code, Some(0));
            let left = files(node, &format!("{OURS}/{NETWORK}"));
            assert!(!left.contains("c|"), "{left}");
        }
    });
}

#[test]
fn host_local_does_what_the_real_one_leaves_undone() {
    on_a_node("host_local_does_what_the_real_one_leaves_undone", |node| {
        install(node);
        let folder = format!("{OURS}/{NETWORK}");
        let pair = Pair { node, version: "1.1.0", ipam: json!({"subnet": "10.1.0.0/29"}) };
        let input = |more: Value| pair.input(OURS, &more);
        let call = |verb: &str, container: &str, more: Value| {
            node.call("host-local", verb, &attachment(container), &input(more))
        };
        let held = || node.sh(&format!("cd {folder}; ls | grep -c '^10\\.' || true")).trim().to_owned();
        // Of two addresses in one range the first counts, and nothing is leased; an attachment has one.
        let two = json!({"runtimeConfig": {"ips": ["10.1.0.3", "10.1.0.4"]}});
        let error = call("ADD", "a", two);
        assert!(error.stdout.contains("10.1.0.4") && !error.stdout.contains("10.1.0.3,"), "{}", error.stdout);
        assert_eq!(held(), "0");
        assert_eq!(call("ADD", "a", json!({})).code, Some(0));
        assert_eq!(call("ADD", "a", json!({"runtimeConfig": {"ips": ["10.1.0.5"]}})).code, Some(1));
        assert_eq!(held(), "1");
        // A file that a killed ADD left empty is nobody's.
        node.sh(&format!("touch {folder}/10.1.0.5"));
        assert_eq!(answer(&call("ADD", "b", json!({}))).unwrap()["ips"][0]["address"], "10.1.0.5/29");
        node.sh(&format!("touch {folder}/10.1.0.6"));
        let valid = json!([{"containerID": "b", "ifname": "eth0"}]);
        assert_eq!(call("GC", "x", json!({"cni.dev/valid-attachments": valid})).code, Some(0));
        assert_eq!(node.sh(&format!("cd {folder}; ls | grep '^10\\.'")).trim(), "10.1.0.5");
        assert_eq!(
            call("GC", "x", json!({"cni.dev/valid-attachments": "all"})).code,
            Some(1),
            "a malformed list"
        );
        assert_eq!(call("STATUS", "x", json!({})).code, Some(0));
        for container in ["c", "d", "e", "f"] {
            assert_eq!(call("ADD", container, json!({})).code, Some(0));
        }
        let status: Value = serde_json::from_str(&call("STATUS", "x", json!({})).stdout).unwrap();
        assert_eq!(status["code"], 50, "{status}");
        // CHECK compares with what ADD answered; DEL works whatever the rest of the configuration says.
        let wrong = json!({"prevResult": {"cniVersion": "1.1.0", "ips": [{"address": "10.1.0.5/29"}]}});
        let error = call("CHECK", "c", wrong).stdout;
        assert!(error.contains("10.1.0.5 is leased to b/eth0, not to c/eth0"), "{error}");
        let broken = json!({"ipam": {"dataDir": OURS, "ranges": "banana"}, "prevResult": 7});
        assert_eq!(call("DEL", "c", broken).code, Some(0));
        assert_eq!(held(), "4");
    });
}

#[test]
fn loopback_answers_as_the_real_one() {
    beside_the_real_ones("loopback_answers_as_the_real_one", |node| {
        let sandbox = node.sandbox("p", json!({}));
        let up = || {
            node.sh(&format!("nsenter --net={} ip -br link show lo", sandbox.attachment.netns)).contains("UP")
        };
        for version in VERSIONS {
            let mut input = json!({"cniVersion": version, "name": "lo", "type": "loopback"});
            let mut results = Vec::new();
            for plugin in ["loopback", "real-loopback"] {
                assert!(!up());
                results.push(answer(&node.call(plugin, "ADD", &sandbox.attachment, &input)).unwrap());
                assert!(up());
                if version >= "0.4.0" {
                    let mut input = input.clone();
                    input["prevResult"] = results[0].clone();
                    assert_eq!(node.call(plugin, "CHECK", &sandbox.attachment, &input).code, Some(0));
                    let again = answer(&node.call(plugin, "ADD", &sandbox.attachment, &input)).unwrap();
                    assert_eq!(again, results[0], "a previous result is passed on");
                }
                assert_eq!(node.call(plugin, "DEL", &sandbox.attachment, &input).code, Some(0));
                assert!(!up());
            }
            input["prevResult"] = results[0].clone();
            for ip in results[0]["ips"].as_array_mut().unwrap() {
                // The specification wants it below 1.0.0; the real one leaves it out.
                let family = ip.as_object_mut().unwrap().remove("version");
                assert_eq!(family.is_some(), version < "1.0.0");
            }
            assert_eq!(results[0], results[1], "{version}");
            for plugin in ["loopback", "real-loopback"] {
                let gone = Attachment { netns: "/run/netns/gone".to_owned(), ..sandbox.attachment.clone() };
                assert_eq!(node.call(plugin, "DEL", &gone, &input).code, Some(0));
            }
            if version >= "0.4.0" {
                assert_eq!(
                    node.call("loopback", "CHECK", &sandbox.attachment, &input).code,
                    Some(1),
                    "it is down"
                );
            }
        }
        // A path that is no namespace keeps no container from going.
        node.sh("touch /run/netns/file");
        let file = Attachment { netns: "/run/netns/file".to_owned(), ..sandbox.attachment.clone() };
        let input = json!({"cniVersion": "1.0.0", "name": "lo", "type": "loopback"});
        assert_eq!(node.call("loopback", "DEL", &file, &input).code, Some(0));
    });
}

/// What traffic control there is on a device, and where its filters lead. Numbers that the kernel gives as it comes to
/// it (handles, preferences, references) are left out: they depend on what else it has at hand, and on when.
fn rates_of(node: &Node, device: &str) -> Vec<String> {
    const NUMBERED: [&str; 8] = ["refcnt", "pref", "fh", "ht", "key", "bkt", "index", "order"];
    let ifb = node.sh("ip -br link | grep -o '^bwp[0-9a-f]*' || true");
    let of = |device: &str| {
        node.sh(&format!("tc -d qdisc show dev {device}; tc filter show dev {device} ingress"))
    };
    let all = format!("{}{}", of(device), if ifb.is_empty() { String::new() } else { of(ifb.trim()) });
    // Theirs asks for the redirection twice; the first one takes the packet.
    let once = all.split("\n\n").filter(|part| !part.contains("action order 2"));
    let plain = |line: &str| {
        let mut words = Vec::new();
        let mut rest = line.split_whitespace();
        while let Some(word) = rest.next() {
            if NUMBERED.contains(&word) {
                rest.next();
            } else {
                words.push(word);
            }
        }
        words.join(" ")
    };
    let lines: Vec<String> = once.flat_map(str::lines).map(plain).collect();
    // The line of references and bindings.
    lines.into_iter().filter(|line| !line.is_empty() && !line.starts_with("ref ")).collect()
}

fn with_rates(sandbox: &Sandbox, node: &Node, rates: &Value) -> (Value, String) {
    let wired = node.try_add(sandbox).unwrap().result;
    let host = wired["interfaces"][0]["name"].as_str().unwrap().to_owned();
    let mut input = json!({"cniVersion": "1.1.0", "name": NETWORK, "type": "bandwidth", "prevResult": wired});
    input.as_object_mut().unwrap().extend(rates.as_object().unwrap().clone());
    (input, host)
}

#[test]
fn bandwidth_limits_as_the_real_one() {
    beside_the_real_ones("bandwidth_limits_as_the_real_one", |node| {
        let sandbox = node.sandbox("p", json!({}));
        let both = json!({"ingressRate": 8_000_000, "ingressBurst": 800_000, "egressRate": 16_000_000, "egressBurst": 1_600_000});
        let ingress = json!({"ingressRate": 123_457, "ingressBurst": 765_432});
        for rates in [both, json!({"runtimeConfig": {"bandwidth": ingress}}), json!({})] {
            let (input, host) = with_rates(&sandbox, node, &rates);
            let mut seen = Vec::new();
            for (plugin, other) in [("bandwidth", "real-bandwidth"), ("real-bandwidth", "bandwidth")] {
                let added = node.call(plugin, "ADD", &sandbox.attachment, &input);
                let mut result = answer(&added).unwrap_or_else(|()| panic!("{plugin}: {}", added.stdout));
                let mut check = input.clone();
                check["prevResult"] = result.clone();
                if let Some(ifb) = result["interfaces"].as_array_mut().unwrap().get_mut(2) {
                    ifb.as_object_mut().unwrap().remove("mac").unwrap();
                }
                let listed = rates_of(node, &host);
                for plugin in [plugin, other] {
                    let checked = node.call(plugin, "CHECK", &sandbox.attachment, &check);
                    assert_eq!(checked.code, Some(0), "{plugin}: {}\n{listed:?}", checked.stdout);
                }
                seen.push((result, listed));
                let ended = node.call(other, "DEL", &sandbox.attachment, &check);
                assert_eq!(ended.code, Some(0), "{other}: {}", ended.stdout);
                assert!(!node.sh("ip -br link").contains("bwp"), "{other}");
                node.sh(&format!("tc qdisc del dev {host} root 2>/dev/null; tc qdisc del dev {host} ingress 2>/dev/null; true"));
            }
            assert_eq!(seen[0], seen[1], "{rates}");
            // What is compared is there to be compared.
            let listed = seen[0].1.join("\n");
            for (key, part) in [("egress", "Redirect to device bwp"), ("ingress", "tbf 1: root rate ")] {
                assert_eq!(listed.contains(part), rates.to_string().contains(key), "{rates}: {listed}");
            }
        }
    });
}

#[test]
fn bandwidth_does_what_the_real_one_leaves_undone() {
    on_a_node("bandwidth_does_what_the_real_one_leaves_undone", |node| {
        install(node);
        let sandbox = node.sandbox("p", json!({}));
        let egress = json!({"egressRate": 16_000_000, "egressBurst": 1_600_000});
        let (input, host) = with_rates(&sandbox, node, &egress);
        let devices = || node.sh("ip -br link | grep -c ^bwp || true").trim().to_owned();
        // Without a previous result there is nothing to limit, with rates or without.
        for rates in [egress, json!({})] {
            let mut alone = json!({"cniVersion": "1.0.0", "name": NETWORK, "type": "bandwidth"});
            alone.as_object_mut().unwrap().extend(rates.as_object().unwrap().clone());
            let refused = node.call("bandwidth", "ADD", &sandbox.attachment, &alone);
            assert!(refused.stdout.contains("prevResult: nothing found"), "{}", refused.stdout);
        }
        // DEL takes the redirection along: the pod is not cut off. It needs neither rates nor result.
        let result = answer(&node.call("bandwidth", "ADD", &sandbox.attachment, &input)).unwrap();
        let broken =
            json!({"cniVersion": "1.0.0", "name": NETWORK, "type": "bandwidth", "ingressRate": "banana"});
        assert_eq!(node.call("bandwidth", "DEL", &sandbox.attachment, &broken).code, Some(0));
        assert_eq!(
            (devices().as_str(), node.sh(&format!("tc qdisc show dev {host} ingress")).as_str()),
            ("0", "")
        );
        // CHECK sees what is gone.
        node.call("bandwidth", "ADD", &sandbox.attachment, &input);
        let mut check = input;
        check["prevResult"] = result;
        for damage in [
            format!("tc filter del dev {host} ingress"),
            "ip link set $(ip -br link | grep -o '^bwp[0-9a-f]*') down".to_owned(),
        ] {
            node.sh(&damage);
            assert_eq!(
                node.call("bandwidth", "CHECK", &sandbox.attachment, &check).code,
                Some(1),
                "{damage}"
            );
        }
        // GC ends what is not valid, and nothing of another network.
        let gc = |network: &str, valid: Value| {
            let input = json!({"cniVersion": "1.1.0", "name": network, "type": "bandwidth", "cni.dev/valid-attachments": valid});
            assert_eq!(node.call("bandwidth", "GC", &sandbox.attachment, &input).code, Some(0));
        };
        gc("other", json!([]));
        let own = &sandbox.attachment;
        gc(NETWORK, json!([{"containerID": own.container_id, "ifname": own.ifname}]));
        assert_eq!(devices(), "1");
        gc(NETWORK, json!([]));
        assert_eq!(devices(), "0");
    });
}

#[test]
fn bandwidth_gc_takes_devices_of_the_real_one_that_limit_nobody() {
    beside_the_real_ones("bandwidth_gc_takes_devices_of_the_real_one_that_limit_nobody", |node| {
        let sandbox = node.sandbox("p", json!({}));
        let own = &sandbox.attachment;
        let (input, _) =
            with_rates(&sandbox, node, &json!({"egressRate": 16_000_000, "egressBurst": 1_600_000}));
        assert_eq!(node.call("real-bandwidth", "ADD", own, &input).code, Some(0));
        // Neither a device that limits somebody, nor one that only looks like one of theirs.
        node.sh("ip link add bwp-lan type ifb && ip link add bwp0123456789zz type ifb 2>/dev/null || true");
        let gc = || {
            let input = json!({
                "cniVersion": "1.1.0", "name": NETWORK, "type": "bandwidth", "cni.dev/valid-attachments": []
            });
            assert_eq!(node.call("bandwidth", "GC", own, &input).code, Some(0));
            node.sh("ip -br link | grep -o '^bwp[0-9a-z-]*' | sort")
                .split_whitespace()
                .map(str::len)
                .collect::<Vec<_>>()
        };
        let with_theirs = gc();
        assert!(with_theirs.contains(&15), "{with_theirs:?}");
        // Its container ends without a DEL of this plugin.
        node.del(own);
        let without = gc();
        assert_eq!(without.len() + 1, with_theirs.len(), "{without:?}");
    });
}

fn with_ports(pod: &Pod, mappings: &Value) -> Value {
    json!({
        "cniVersion": "1.1.0", "name": NETWORK, "type": "portmap", "backend": "nftables",
        "runtimeConfig": {"portMappings": mappings}, "prevResult": pod.result
    })
}

fn mapping(protocol: &str, port: u16) -> Value {
    json!({"hostPort": port, "containerPort": 80, "protocol": protocol})
}

/// Both tables without what only one writes: the table's comment, and what lets ::1 through.
fn hostport_tables(node: &Node) -> String {
    let all = node.sh("for f in ip ip6; do nft list table $f cni_hostport 2>/dev/null; done; true");
    all.lines().filter(|line| !line.contains("CNI portmap plugin") && !line.contains("saddr ::1 ")).fold(
        String::new(),
        |mut text, line| {
            text.push_str(line);
            text.push('\n');
            text
        },
    )
}

#[test]
fn portmap_writes_the_rules_of_the_real_one() {
    beside_the_real_ones("portmap_writes_the_rules_of_the_real_one", |node| {
        let pod = node.pod("p", json!({}));
        let own = pod.sandbox.attachment.clone();
        for mappings in [
            json!([mapping("tcp", 8080), mapping("udp", 8080)]),
            json!([
                {"hostPort": 8081, "containerPort": 80, "protocol": "tcp", "hostIP": node.addresses[0].to_string()},
                {"hostPort": 8081, "containerPort": 80, "protocol": "tcp", "hostIP": node.addresses[1].to_string()},
                {"hostPort": 8082, "containerPort": 80, "protocol": "sctp", "hostIP": "0.0.0.0"}
            ]),
            json!([]),
        ] {
            let input = with_ports(&pod, &mappings);
            let mut seen = Vec::new();
            for (plugin, other) in [("portmap", "real-portmap"), ("real-portmap", "portmap")] {
                let result = answer(&node.call(plugin, "ADD", &own, &input)).unwrap();
                let listed = hostport_tables(node);
                for plugin in [plugin, other] {
                    let checked = node.call(plugin, "CHECK", &own, &input);
                    assert_eq!(checked.code, Some(0), "{plugin}: {}\n{listed}", checked.stdout);
                }
                for (from, to) in [(&node.other, node.addresses[0]), (&node.place, node.addresses[1])] {
                    let open = node::answer(from.net(), to, Kind::Tcp(8080)).is_some();
                    assert_eq!(open, mappings.to_string().contains("8080"), "{plugin} {to}");
                }
                seen.push((result, listed));
                assert_eq!(node.call(other, "DEL", &own, &input).code, Some(0));
                let left = hostport_tables(node);
                assert!(!left.contains(&own.container_id), "{left}");
                node.sh("for f in ip ip6; do nft delete table $f cni_hostport 2>/dev/null; done; true");
            }
            assert_eq!(seen[0], seen[1], "{mappings}");
        }
    });
}

#[test]
fn portmap_does_what_the_real_one_leaves_undone() {
    on_a_node("portmap_does_what_the_real_one_leaves_undone", |node| {
        install(node);
        let (pod, late) = (node.pod("p", json!({})), node.pod("late", json!({})));
        let (own, other) = (pod.sandbox.attachment.clone(), late.sandbox.attachment.clone());
        let input = with_ports(&pod, &json!([mapping("tcp", 8080), mapping("udp", 8080)]));
        let add = |attachment: &Attachment, input: &Value| node.call("portmap", "ADD", attachment, input);
        assert_eq!(add(&own, &input).code, Some(0));
        let loopback: [std::net::IpAddr; 2] = ["127.0.0.1".parse().unwrap(), "::1".parse().unwrap()];
        for to in loopback.into_iter().chain(node.addresses) {
            for kind in [Kind::Tcp(8080), Kind::Udp(8080)] {
                assert_eq!(node::answer(node.place.net(), to, kind).unwrap().0, "p", "{to} {kind}");
            }
        }
        assert_eq!(node::answer(pod.net(), node.addresses[0], Kind::Tcp(8080)).unwrap().0, "p", "itself");
        // A port that is held, and what cannot be served, is refused by name.
        let taken = add(&other, &with_ports(&late, &json!([mapping("tcp", 8080)])));
        assert!(
            taken.stdout.contains(&format!("host port tcp 8080 is held by container {}", own.container_id)),
            "{}",
            taken.stdout
        );
        let banana = json!([{"hostPort": 1, "containerPort": 1, "hostIP": "banana"}]);
        assert!(add(&other, &with_ports(&late, &banana)).stdout.contains("hostIP: \\\"banana\\\" found"));
        // Conditions: those that mean the same in a rule of ours hold, others are refused by name.
        let mut from_nobody = with_ports(&late, &json!([mapping("tcp", 8095)]));
        for (words, open) in [
            (json!(["-s", "192.0.2.0/24"]), false),
            (json!(["ip", "saddr", "!=", "192.0.2.0/24"]), true),
            (json!(["!", "-i", "nosuch0"]), true),
        ] {
            from_nobody["conditionsV4"] = words.clone();
            assert_eq!(add(&other, &from_nobody).code, Some(0), "{words}");
            assert_eq!(node.call("portmap", "CHECK", &other, &from_nobody).code, Some(0), "{words}");
            let reached = node::answer(node.other.net(), node.addresses[0], Kind::Tcp(8095)).is_some();
            assert_eq!(reached, open, "{words}");
        }
        for (key, words, part) in [
            ("conditionsV4", json!(["-m", "set"]), "conditionsV4: \\\"-m\\\" is not supported"),
            ("conditionsV6", json!(["-s", "10.0.0.0/8"]), "-s 10.0.0.0/8"),
            ("conditionsV4", json!("-s"), "a list of words is expected"),
            ("externalSetMarkChain", json!("MARK"), "names a chain of iptables"),
        ] {
            let mut refused = input.clone();
            refused[key] = words;
            let said = add(&other, &refused).stdout;
            assert!(said.contains("\"code\":2") && said.contains(part), "{said}");
        }
        // Everybody masqueraded, where that is asked for.
        let mut all = with_ports(&late, &json!([mapping("tcp", 8090)]));
        let seen = || node::answer(node.other.net(), node.addresses[0], Kind::Tcp(8090)).unwrap().1;
        assert_eq!(add(&other, &all).code, Some(0));
        assert_eq!(seen(), node.others[0]);
        all["masqAll"] = true.into();
        assert_eq!(add(&other, &all).code, Some(0), "an ADD again begins anew");
        assert_eq!(seen(), node.addresses[0]);
        // CHECK sees a rule that is gone.
        assert_eq!(node.call("portmap", "CHECK", &own, &input).code, Some(0));
        node.sh("nft flush chain ip cni_hostport hostports");
        let checked = node.call("portmap", "CHECK", &own, &input);
        assert!(checked.stdout.contains("host port tcp 8080 is not open"), "{}", checked.stdout);
        // GC ends what is not valid; DEL needs not be told of the ports.
        let gc = json!({
            "cniVersion": "1.1.0", "name": NETWORK, "type": "portmap",
            "cni.dev/valid-attachments": [{"containerID": own.container_id, "ifname": "eth0"}]
        });
        assert_eq!(node.call("portmap", "GC", &own, &gc).code, Some(0));
        let left = hostport_tables(node);
        assert!(left.contains(&own.container_id) && !left.contains(&other.container_id), "{left}");
        let bare = json!({"cniVersion": "1.1.0", "name": NETWORK, "type": "portmap"});
        assert_eq!(node.call("portmap", "DEL", &own, &bare).code, Some(0));
        assert_eq!(node.call("portmap", "DEL", &own, &bare).code, Some(0));
        assert!(!hostport_tables(node).contains("comment"), "{}", hostport_tables(node));
        assert_eq!(node.sh("ls /run/podway/portmap").trim(), "lock");
    });
}

#[test]
fn portmap_closes_a_shared_interface_behind_the_last_container_with_ports() {
    on_a_node("portmap_closes_a_shared_interface_behind_the_last_container_with_ports", |node| {
        install(node);
        node.sh(
            "ip link add br0 type bridge && ip link add a0 type veth peer name b0 && ip link set a0 master br0 up \
             && ip link set b0 up && ip link set br0 up && ip addr add 10.7.0.1/24 dev br0 \
             && ip addr add fd07::1/64 dev br0 nodad",
        );
        let input = |host: u8| {
            json!({
                "cniVersion": "1.1.0", "name": NETWORK, "type": "portmap",
                "runtimeConfig": {"portMappings": [mapping("tcp", 8000 + u16::from(host))]},
                "prevResult": {
                    "cniVersion": "1.1.0", "interfaces": [{"name": "eth0", "sandbox": "/run/netns/none"}],
                    "ips": [{"interface": 0, "address": format!("10.7.0.{host}/24")},
                            {"interface": 0, "address": format!("fd07::{host}/64")}]
                }
            })
        };
        let (first, second) = (attachment("c1"), attachment("c2"));
        let add = |who: &Attachment, host: u8| {
            let added = node.call("portmap", "ADD", who, &input(host));
            assert_eq!(added.code, Some(0), "{}", added.stdout);
        };
        let bare = json!({"cniVersion": "1.1.0", "name": NETWORK, "type": "portmap"});
        let del = |who: &Attachment| assert_eq!(node.call("portmap", "DEL", who, &bare).code, Some(0));
        let open = || {
            let localnet = node.sh("cat /proc/sys/net/ipv4/conf/br0/route_localnet");
            let route = node.sh("ip -6 route show table local dev br0 proto 113");
            (localnet.trim().to_owned(), route.lines().map(|line| line[..9].to_owned()).collect::<String>())
        };
        let closed = ("0".to_owned(), String::new());
        let both = ("1".to_owned(), "local ::1".to_owned());
        assert_eq!(open(), closed);
        add(&first, 2);
        add(&second, 3);
        assert_eq!(open(), both);
        // Again, as after an ADD that was killed.
        add(&first, 2);
        del(&first);
        assert_eq!(open(), both, "the second one is there");
        del(&second);
        assert_eq!(open(), closed);
        // By GC, and of the last of two networks.
        add(&first, 2);
        let mut elsewhere = input(3);
        elsewhere["name"] = "other".into();
        assert_eq!(node.call("portmap", "ADD", &second, &elsewhere).code, Some(0));
        let gc = |network: &str| {
            let mut conf = bare.clone();
            (conf["name"], conf["cni.dev/valid-attachments"]) = (network.into(), json!([]));
            assert_eq!(node.call("portmap", "GC", &first, &conf).code, Some(0));
        };
        gc(NETWORK);
        assert_eq!(open(), both);
        gc("other");
        assert_eq!(open(), closed);
        // What somebody else had opened stays.
        node.sh("sysctl -qw net.ipv4.conf.br0.route_localnet=1");
        add(&first, 2);
        del(&first);
        assert_eq!(open(), ("1".to_owned(), String::new()));
        // The interface may be gone before the last DEL.
        node.sh("sysctl -qw net.ipv4.conf.br0.route_localnet=0");
        add(&first, 2);
        node.sh("ip link del br0");
        del(&first);
        assert_eq!(node.sh("ls /run/podway/portmap").trim(), "lock");
    });
}
