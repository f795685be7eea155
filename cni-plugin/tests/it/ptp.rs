//! The plugin under the name `ptp`, beside the real one: same answers, addresses, routes and rules; a chain that the one
//! began is one that the other finishes. And what theirs leaves undone.

use podway_testkit::cni::{Attachment, RawOutcome};
use podway_testkit::pod::Sandbox;
use podway_testkit::wait::wait_until_ok;
use serde_json::{Value, json};

use crate::host::{Families, Host, PATIENCE, PLUGIN};
use crate::node::{NETWORK, Node, on_a_node};
use crate::trace;
use crate::upstream::{VERSIONS, answer, beside_the_real_ones, install};

const BOTH: [(&str, &str); 2] = [("ptp", "real-ptp"), ("real-ptp", "ptp")];

fn conf(version: &str, extra: &Value) -> Value {
    let mut conf = json!({
        "cniVersion": version, "name": NETWORK, "type": "ptp",
        "ipam": {
            "type": "host-local", "ranges": [[{"subnet": "10.1.0.0/24"}], [{"subnet": "fd00:1::/120"}]],
            "routes": [{"dst": "0.0.0.0/0"}, {"dst": "10.9.0.0/16", "gw": "10.1.0.1"}, {"dst": "::/0"}]
        }
    });
    conf.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    conf
}

fn with(conf: &Value, result: &Value) -> Value {
    let mut conf = conf.clone();
    conf["prevResult"] = result.clone();
    conf
}

/// A result without what is chosen at random, and without the MTU that theirs leaves out.
fn plain(result: &Value) -> Value {
    let mut result = result.clone();
    for interface in result["interfaces"].as_array_mut().unwrap() {
        let interface = interface.as_object_mut().unwrap();
        interface.remove("mtu");
        assert!(interface.remove("mac").unwrap().as_str().unwrap().len() == 17);
        if !interface.contains_key("sandbox") {
            let name = interface.remove("name").unwrap();
            assert!(
                name.as_str().unwrap().starts_with("veth") && name.as_str().unwrap().len() == 12,
                "{name}"
            );
        }
    }
    result
}

fn host_of(result: &Value) -> &str {
    result["interfaces"][0]["name"].as_str().unwrap()
}

/// Addresses and routes of both ends, forwarding, and the masquerade.
fn state(node: &Node, sandbox: &Sandbox, result: &Value) -> String {
    let host = host_of(result);
    let inside = format!("nsenter --net={} ", sandbox.attachment.netns);
    let of = |enter: &str, device: &str| {
        let addresses =
            format!("{enter}ip -o addr show dev {device} scope global | awk '{{print $4}}' | sort");
        let routes = format!(
            "{{ {enter}ip route show dev {device}; {enter}ip -6 route show dev {device} | grep -v fe80; }} \
             | sed 's/ *$//; s/ scope [a-z]*//' | sort"
        );
        let mtu = format!("{enter}ip -o link show dev {device} | grep -o 'mtu [0-9]*'");
        [addresses, routes, mtu].map(|line| node.sh(&line)).join("\n")
    };
    let masquerade = node.sh("nft list table inet cni_plugins_masquerade 2>/dev/null || true");
    // Theirs writes comments for the table and its chain.
    let rules = masquerade.lines().filter(|line| !line.trim_start().starts_with("comment \""));
    let rules: Vec<&str> = rules.collect();
    format!("{}\n-- node:\n{}\n{}", of(&inside, "eth0"), of("", host), rules.join("\n"))
}

/// Nothing of the container is left: addresses, interface, rules, marks.
fn nothing_left(node: &Node, when: &str) {
    let held =
        node.sh(&format!("ls /var/lib/cni/networks/{NETWORK} 2>/dev/null | grep -E '^(10\\.|fd00)' || true"));
    assert_eq!(held, "", "{when}: addresses");
    assert_eq!(node.sh("ip -br link | grep -o '^veth[0-9a-f]*' || true"), "", "{when}: interfaces");
    let rules =
        node.sh("nft list table inet cni_plugins_masquerade 2>/dev/null | grep comment.*net: || true");
    assert_eq!(rules, "", "{when}: rules");
    assert_eq!(node.sh("ls /run/podway/delegated 2>/dev/null || true"), "", "{when}: marks");
}

fn reaches(node: &Node, sandbox: &Sandbox, address: &str) {
    let line = format!("nsenter --net={} ping -c1 -W1 {address}", sandbox.attachment.netns);
    wait_until_ok(&format!("{address} is reached"), PATIENCE, || node.place.run("sh", &["-c", &line]))
        .unwrap();
}

#[test]
fn ptp_wires_as_the_real_one() {
    beside_the_real_ones("ptp_wires_as_the_real_one", |node| {
        let masquerade = json!({"ipMasq": true, "ipMasqBackend": "nftables", "mtu": 1400});
        let dns = json!({"dns": {"nameservers": ["10.0.0.53"], "search": ["a"]}, "mtu": 0});
        let v4 = json!({"ipam": {"type": "host-local", "subnet": "10.1.0.0/29"}});
        for version in VERSIONS {
            for extra in [&masquerade, &dns, &v4] {
                let conf = conf(version, extra);
                let mut seen = Vec::new();
                for (plugin, other) in BOTH {
                    let sandbox = node.sandbox("p", json!({}));
                    let own = &sandbox.attachment;
                    let added = node.call(plugin, "ADD", own, &conf);
                    let result = answer(&added).unwrap_or_else(|()| panic!("{plugin}: {}", added.stdout));
                    let looks = state(node, &sandbox, &result).replace(&own.container_id, "ID");
                    // The hash of a container's id.
                    let looks = looks.lines().map(|line| match line.split_once("comment \"") {
                        Some((rule, comment)) => {
                            let (network, rest) = comment.split_once('-').unwrap();
                            format!("{rule}comment {network} {}", rest.split_once(',').unwrap().1)
                        }
                        None => line.to_owned(),
                    });
                    let looks: Vec<String> = looks.collect();
                    reaches(node, &sandbox, "10.1.0.1");
                    if conf["ipam"].get("routes").is_some() {
                        reaches(node, &sandbox, &node.addresses[0].to_string());
                    }
                    if version >= "0.4.0" {
                        for who in [plugin, other] {
                            let checked = node.call(who, "CHECK", own, &with(&conf, &result));
                            assert_eq!(checked.code, Some(0), "{plugin}, {who}: {}", checked.stdout);
                        }
                    }
                    for _ in 0..2 {
                        let ended = node.call(other, "DEL", own, &with(&conf, &result));
                        assert_eq!(ended.code, Some(0), "{plugin}, {other}: {}", ended.stdout);
                    }
                    let mut result = plain(&result);
                    result["interfaces"][1]["sandbox"] = "netns".into();
                    seen.push((result, looks));
                    // Theirs leaves the mark that it does not know.
                    assert_eq!(node.call("ptp", "DEL", own, &conf).code, Some(0));
                    nothing_left(node, plugin);
                    node.sh(&format!(
                        "nft delete table inet cni_plugins_masquerade 2>/dev/null; rm -rf /var/lib/cni/networks/{NETWORK}"
                    ));
                }
                assert_eq!(seen[0], seen[1], "{version} {extra}");
            }
        }
    });
}

#[test]
fn ptp_refuses_what_the_real_one_refuses_and_more() {
    beside_the_real_ones("ptp_refuses_what_the_real_one_refuses_and_more", |node| {
        let sandbox = node.sandbox("p", json!({}));
        let own = &sandbox.attachment;
        let code = |outcome: &RawOutcome| {
            let error: Value = serde_json::from_str(&outcome.stdout).unwrap();
            (error["code"].as_u64().unwrap(), error["msg"].as_str().unwrap().to_owned())
        };
        for (extra, both, part) in [
            (json!({"mtu": "big"}), true, "mtu: \"big\" found"),
            (json!({"mtu": -1}), false, "mtu: -1 found"),
            (json!({"ipMasq": "yes"}), true, "ipMasq: \"yes\" found, true or false"),
            (json!({"ipMasq": true, "ipMasqBackend": "ebtables"}), true, "ipMasqBackend: \"ebtables\" found"),
            (json!({"ipam": {}}), true, "ipam.type: null found"),
            (json!({"ipam": {"type": "absent"}}), true, "\"absent\" found, a program in CNI_PATH"),
            (json!({"ipam": {"type": "ptp"}}), false, "the name of an address plugin"),
            (json!({"dns": 7}), true, "dns: a number found"),
        ] {
            let conf = conf("1.0.0", &extra);
            let refused = node.call("ptp", "ADD", own, &conf);
            let (number, message) = code(&refused);
            assert_eq!(number, 7, "{extra}: {message}");
            assert!(message.contains(part), "{extra}: {message}");
            if both {
                assert_eq!(node.call("real-ptp", "ADD", own, &conf).code, Some(1), "{extra}");
                // Theirs leaves its interface behind.
                node.sh(&format!("nsenter --net={} ip link del eth0 2>/dev/null || true", own.netns));
                node.call("ptp", "DEL", own, &conf);
            }
            nothing_left(node, &extra.to_string());
        }
        // The address plugin's own code; STATUS says 50 where it is not there.
        let full = json!({"ipam": {"type": "host-local", "subnet": "10.1.0.0/30"}});
        let other = node.sandbox("other", json!({}));
        assert_eq!(node.call("ptp", "ADD", &other.attachment, &conf("1.1.0", &full)).code, Some(0));
        let (number, message) = code(&node.call("ptp", "ADD", own, &conf("1.1.0", &full)));
        assert_eq!(number, 11, "{message}");
        let status = |extra: &Value| node.call("ptp", "STATUS", own, &conf("1.1.0", extra));
        assert_eq!(code(&status(&full)).0, 50);
        assert_eq!(code(&status(&json!({"ipam": {"type": "absent"}}))).0, 50);
        assert_eq!(node.call("ptp", "DEL", &other.attachment, &conf("1.1.0", &full)).code, Some(0));
        assert_eq!(status(&full).code, Some(0));
        nothing_left(node, "the end");
    });
}

#[test]
fn ptp_does_what_the_real_one_leaves_undone() {
    on_a_node("ptp_does_what_the_real_one_leaves_undone", |node| {
        install(node);
        let masq = conf("1.1.0", &json!({"ipMasq": true}));
        let (sandbox, next) = (node.sandbox("p", json!({})), node.sandbox("next", json!({})));
        let own = &sandbox.attachment;
        let add = |attachment: &Attachment, conf: &Value| node.call("ptp", "ADD", attachment, conf);
        // The result before ours in the chain is kept, the MTU is said.
        let before = json!({"cniVersion": "1.1.0", "interfaces": [{"name": "x"}], "ips": [], "dns": {}});
        let result = answer(&add(own, &with(&masq, &before))).unwrap();
        assert_eq!(result["interfaces"][0]["name"], "x");
        assert_eq!(
            (&result["interfaces"][2]["mtu"], &result["ips"][0]["interface"]),
            (&json!(1500), &json!(2))
        );
        // A second interface of the container: behind the first one.
        let second = Attachment { ifname: "net1".to_owned(), ..own.clone() };
        assert_eq!(add(&second, &masq).code, Some(0));
        assert_eq!(node.call("ptp", "DEL", &second, &masq).code, Some(0));
        // An ADD again does not take the address from who has it.
        assert!(add(own, &masq).stdout.contains("eth0 exists in"));
        // CHECK sees what is gone, each by name.
        let check = || node.call("ptp", "CHECK", own, &with(&masq, &result)).stdout;
        assert_eq!(check(), "");
        let host = result["interfaces"][1]["name"].as_str().unwrap();
        let inside = |line: &str| format!("nsenter --net={} {line}", own.netns);
        for (damage, mend, part) in [
            (format!("ip link set {host} mtu 1300"), format!("ip link set {host} mtu 1500"), ""),
            (
                inside("ip link set eth0 mtu 1300"),
                inside("ip link set eth0 mtu 1500"),
                "eth0: mtu 1300 found",
            ),
            (
                format!("ip addr del 10.1.0.1/32 dev {host}"),
                // The kernel takes an interface's routes away with its last address.
                format!("ip addr add 10.1.0.1/32 dev {host} && ip route add 10.1.0.2 dev {host}"),
                "address 10.1.0.1/32 is missing",
            ),
            (
                format!("ip route del 10.1.0.2 dev {host}"),
                format!("ip route add 10.1.0.2 dev {host}"),
                "route 10.1.0.2/32 is missing",
            ),
            (
                inside("ip route del 10.9.0.0/16"),
                inside("ip route add 10.9.0.0/16 via 10.1.0.1"),
                "route 10.9.0.0/16 is missing",
            ),
            (
                "sysctl -qw net.ipv4.ip_forward=0".to_owned(),
                "sysctl -qw net.ipv4.ip_forward=1".to_owned(),
                "ip_forward: is off",
            ),
            (
                "nft flush chain inet cni_plugins_masquerade masq_checks".to_owned(),
                String::new(),
                "masquerade of",
            ),
        ] {
            node.sh(&damage);
            let said = check();
            assert!(said.contains(part), "{damage}: {said}");
            node.sh(&mend);
        }
        // DEL: without the namespace; of a namespace that is another's by now; whatever the rest of the input says.
        assert_eq!(add(&next.attachment, &masq).code, Some(0));
        let stranger = Attachment { netns: next.attachment.netns.clone(), ..own.clone() };
        let broken =
            json!({"cniVersion": "1.1.0", "name": NETWORK, "type": "ptp", "mtu": "x", "prevResult": 7});
        assert_eq!(node.call("ptp", "DEL", &stranger, &broken).code, Some(0));
        assert!(node.sh(&format!("nsenter --net={} ip -br link", next.attachment.netns)).contains("eth0"));
        let rules =
            || node.sh("nft list table inet cni_plugins_masquerade | grep -c 'comment.*net: ' || true");
        assert_eq!(rules().trim(), "2", "one for each address of the other");
        let nowhere = Attachment { netns: "/run/netns/gone".to_owned(), ..next.attachment.clone() };
        assert_eq!(node.call("ptp", "DEL", &nowhere, &broken).code, Some(0));
        nothing_left(node, "DEL");
        // GC: what is not valid, of this network.
        for sandbox in [&sandbox, &next] {
            assert_eq!(add(&sandbox.attachment, &masq).code, Some(0));
        }
        let gc = |name: &str, valid: Value| {
            let mut conf = masq.clone();
            (conf["name"], conf["cni.dev/valid-attachments"]) = (name.into(), valid);
            node.call("ptp", "GC", own, &conf).code
        };
        assert_eq!(gc(NETWORK, json!("all")), Some(1));
        assert_eq!(gc("other", json!([])), Some(0));
        assert_eq!(rules().trim(), "4");
        assert_eq!(gc(NETWORK, json!([{"containerID": own.container_id, "ifname": "eth0"}])), Some(0));
        assert_eq!(rules().trim(), "2");
        assert_eq!(gc(NETWORK, json!([])), Some(0));
        nothing_left(node, "GC");
        // With addresses of ours: a route of a family that the container has not is left out.
        node.install("podway-ipam");
        let ours = json!({"ipam": {"type": "podway-ipam", "pools": ["p0"], "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]}});
        let result = answer(&add(own, &conf("1.0.0", &ours))).unwrap();
        assert_eq!(result["routes"], json!([{"dst": "0.0.0.0/0"}]));
        assert_eq!(result["ips"].as_array().unwrap().len(), 1);
        reaches(node, &sandbox, &node.addresses[0].to_string());
        assert_eq!(node.call("ptp", "DEL", own, &conf("1.0.0", &ours)).code, Some(0));
        nothing_left(node, "podway-ipam");
    });
}

#[test]
fn ptp_killed_anywhere_leaves_nothing() {
    let test = "ptp_killed_anywhere_leaves_nothing";
    let Some(host) = Host::new(test, Families::Dual) else { return };
    for name in ["ptp", "host-local"] {
        host.place.run("ln", &["-s", PLUGIN, &format!("/opt/cni/bin/{name}")]).unwrap();
    }
    let sh = |line: &str| host.place.run("sh", &["-c", line]).unwrap();
    let pod = host.sandbox("p");
    let conf = conf("1.1.0", &json!({"ipMasq": true}));
    let call = |verb: &str| {
        let call = host.call(verb, &pod).program("/opt/cni/bin/ptp").env("CNI_PATH", "/opt/cni/bin");
        call.input(&conf.to_string())
    };
    let with_key = |verb: &str, key: &str, value: &Value| {
        let mut conf = conf.clone();
        conf[key] = value.clone();
        call(verb).input(&conf.to_string())
    };
    let left = || {
        let held = "ls /var/lib/cni/networks/podway 2>/dev/null | grep -E '^(10[.]|fd00)'";
        let links = "ip -br link | grep -o '^veth[0-9a-f]*'";
        let rules = "nft list table inet cni_plugins_masquerade 2>/dev/null | grep 'comment.*net: '";
        let routes = "ip route | grep 10.1.0; ip -6 route | grep fd00:1:";
        sh(&format!("({held}; {links}; {rules}; {routes}; ls /run/podway/delegated 2>/dev/null) || true"))
    };
    // The address plugin is not killed with its caller; what comes next waits for it, by its lock.
    let quiet = || sh("while pgrep -x host-local >/dev/null; do :; done");
    for verb in ["ADD", "DEL"] {
        for n in 1.. {
            if verb == "DEL" {
                call("ADD").run().result();
                assert_ne!(left(), "");
            }
            let run = trace::run(&host, &call(verb), Some(n));
            quiet();
            // What a runtime does next: in turns, so that each comes behind every step.
            let next = ["DEL", "GC", "ADD"][n % 3];
            let when = format!("{verb} killed at system call {n}, then {next}");
            match next {
                "GC" => with_key("GC", "cni.dev/valid-attachments", &json!([])).run().done(),
                "ADD" if verb == "ADD" && run.code.is_none() => {
                    // An interface that an ADD left may be alive: a runtime has to say DEL first.
                    let added = call("ADD").run();
                    let result = if added.code == Some(0) {
                        added.result()
                    } else {
                        assert!(added.error(4).contains("eth0 exists in"), "{when}");
                        call("DEL").run().done();
                        call("ADD").run().result()
                    };
                    with_key("CHECK", "prevResult", &result).run().done();
                    call("DEL").run().done();
                }
                _ => call("DEL").run().done(),
            }
            assert_eq!(left(), "", "{when}");
            if run.code.is_some() {
                assert_eq!(run.code, Some(0), "{:?}", run.stdout);
                println!("{verb} by the name ptp: {} kill points", n - 1);
                assert!(n > 50, "{verb}: {n}");
                break;
            }
        }
    }
}
