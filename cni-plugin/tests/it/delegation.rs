//! Our interface, another plugin's addresses (`ipam.type`): the real `host-local` and `static`, and a script that writes
//! down how it was called.

use podway_testkit::pod::Sandbox;
use serde_json::{Value, json};

use crate::host::{Call, Families, Host, PLUGIN, host_name, ips};
use crate::trace;
use crate::upstream::real_plugins;

const MARKS: &str = "/run/podway/delegated";
/// Where a node's own plugins stand.
pub(crate) const BIN: &str = "/opt/cni/bin";

/// A node with the real plugins in `CNI_PATH`; or says why not.
pub(crate) fn with_real_plugins(test: &str, families: Families) -> Option<(Host, String)> {
    let Some(folder) = real_plugins() else {
        println!("SKIP {test}: no containernetworking plugins (PODWAY_CNI_PLUGINS)");
        return None;
    };
    let host = Host::new(test, families)?;
    host.place.run("ln", &["-s", PLUGIN, &format!("{BIN}/podway-ipam")]).unwrap();
    Some((host, format!("{BIN}:{}", folder.display())))
}

/// A plugin of ours for tests: a shell script under this name.
fn script(host: &Host, name: &str, text: &str) {
    host.write(&format!("{BIN}/{name}"), &format!("#!/bin/sh\n{text}\n"));
    host.place.run("chmod", &["755", &format!("{BIN}/{name}")]).unwrap();
}

/// Writes down verb, environment and input of each call; then does what `verbs` says.
fn recorder(host: &Host, verbs: &str) {
    let text = format!(
        "cat > /run/podway/input.$CNI_COMMAND\n\
         echo \"$CNI_COMMAND $CNI_CONTAINERID $CNI_IFNAME ${{CNI_NETNS:-none}} ${{CNI_ARGS:-none}} $CNI_PATH\" \
         >> /run/podway/calls\ncase $CNI_COMMAND in\n{verbs}\nesac"
    );
    script(host, "recorder", &text);
}

fn calls(host: &Host) -> Vec<String> {
    let text = host.place.run("sh", &["-c", "cat /run/podway/calls; rm -f /run/podway/calls"]).unwrap();
    text.lines().map(str::to_owned).collect()
}

fn verbs(host: &Host) -> Vec<String> {
    calls(host).iter().map(|line| line.split(' ').next().unwrap().to_owned()).collect()
}

const GIVES: &str =
    r#"ADD) echo '{"cniVersion": "1.1.0", "ips": [{"address": "10.1.0.9/24", "gateway": "10.1.0.1"}]}';;"#;

fn call<'a>(host: &'a Host, path: &str, verb: &str, pod: &Sandbox, ipam: &Value) -> Call<'a> {
    host.call(verb, pod).env("CNI_PATH", path).with("ipam", ipam.clone())
}

fn gc<'a>(host: &'a Host, path: &str, ipam: &Value, valid: Value) -> Call<'a> {
    host.bare("GC").env("CNI_PATH", path).with("ipam", ipam.clone()).with("cni.dev/valid-attachments", valid)
}

/// What of pods is left, marks included.
fn leftovers(host: &Host) -> Vec<String> {
    let marks = host.list(MARKS);
    host.leftovers().into_iter().chain(marks.iter().map(|mark| format!("mark {mark}"))).collect()
}

/// Addresses that `host-local` holds.
fn held(host: &Host) -> Vec<String> {
    let mut all = host.list("/var/lib/cni/networks/podway");
    all.retain(|name| name.parse::<std::net::IpAddr>().is_ok());
    all.sort();
    all
}

fn host_local() -> Value {
    json!({
        "type": "host-local",
        "ranges": [[{"subnet": "10.1.0.0/29"}], [{"subnet": "fd00:1::/125"}]],
        "routes": [{"dst": "0.0.0.0/0"}, {"dst": "10.9.0.0/16", "gw": "10.1.0.1"}, {"dst": "::/0"}]
    })
}

#[test]
fn addresses_of_host_local_are_wired_checked_and_given_back() {
    let test = "addresses_of_host_local_are_wired_checked_and_given_back";
    let Some((host, path)) = with_real_plugins(test, Families::Dual) else { return };
    let ipam = host_local();
    host.place.sysctl("net.ipv4.ip_forward", "1").unwrap();
    host.place.sysctl("net.ipv6.conf.all.forwarding", "1").unwrap();
    for version in ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
        let (pod, other) = (host.sandbox("p"), host.sandbox("other"));
        let with = |verb: &str, pod: &Sandbox| {
            call(&host, &path, verb, pod, &ipam).with("cniVersion", version.into())
        };
        let result = with("ADD", &pod).run().result();
        let second = with("ADD", &other).run().result();
        assert_eq!(host.leases(), [], "{version}: our allocator is not asked");
        assert_eq!(held(&host).len(), 4);
        for (pod, result) in [(&pod, &result), (&other, &second)] {
            let all = ips(result);
            assert_eq!(all.len(), 2, "{result}");
            assert_eq!(result["routes"].as_array().unwrap().len(), 3, "{result}");
            // The node reaches the pod, the pods reach each other.
            for address in &all {
                host.place.run("ping", &["-c1", "-W5", &address.to_string()]).unwrap();
                let from = &other.net;
                let line = format!("ping -c1 -W5 {address}");
                let words: Vec<&str> = line.split(' ').collect();
                let done = from
                    .run(|| std::process::Command::new(words[0]).args(&words[1..]).output())
                    .unwrap()
                    .unwrap();
                assert!(done.status.success(), "{version}: {line}");
            }
            if version >= "0.4.0" {
                let checked = with("CHECK", pod).with("prevResult", result.clone()).run();
                checked.done();
            }
        }
        let record =
            host.records().into_iter().find(|r| r.container_id.as_str() == pod.attachment.container_id);
        let record = record.unwrap();
        assert_eq!(record.ipam.as_deref(), Some("host-local"));
        assert_eq!(record.addresses, ips(&result));
        for pod in [&pod, &other] {
            with("DEL", pod).run().done();
            with("DEL", pod).run().done();
        }
        assert_eq!((held(&host), leftovers(&host)), (vec![], vec![]), "{version}");
    }
}

#[test]
fn check_sees_what_the_address_plugin_lost() {
    let test = "check_sees_what_the_address_plugin_lost";
    let Some((host, path)) = with_real_plugins(test, Families::V4) else { return };
    let ipam = json!({"type": "host-local", "subnet": "10.1.0.0/29", "routes": [{"dst": "10.0.0.0/8", "mtu": 1300}]});
    let pod = host.sandbox("p");
    let result = call(&host, &path, "ADD", &pod, &ipam).run().result();
    assert_eq!(result["routes"], json!([{"dst": "10.0.0.0/8", "gw": "169.254.1.1", "mtu": 1300}]));
    let check = || call(&host, &path, "CHECK", &pod, &ipam).with("prevResult", result.clone()).run();
    check().done();
    host.ip_in(&pod.net, "route del 10.0.0.0/8");
    assert!(check().error(101).contains("route 10.0.0.0/8 is missing"));
    // Its error has its code, and what we found besides is in the details.
    host.remove("/var/lib/cni/networks/podway/10.1.0.2");
    let said = check();
    assert_ne!(said.text.as_ref().unwrap()["code"], 101);
    let said = said.text.unwrap().to_string();
    assert!(said.contains("address plugin host-local: ") && said.contains("route 10.0.0.0/8"), "{said}");
    call(&host, &path, "DEL", &pod, &ipam).run().done();
    assert_eq!(leftovers(&host), Vec::<String>::new());
}

#[test]
fn addresses_routes_and_dns_of_static_are_honoured() {
    let test = "addresses_routes_and_dns_of_static_are_honoured";
    let Some((host, path)) = with_real_plugins(test, Families::V4) else { return };
    let ipam = json!({
        "type": "static",
        "addresses": [{"address": "10.7.0.9/24", "gateway": "10.7.0.1"}, {"address": "fd07::9/64", "gateway": "fd07::1"}],
        "routes": [{"dst": "192.0.2.0/24"}, {"dst": "0.0.0.0/0", "gw": "10.7.0.1"}, {"dst": "::/0"}],
        "dns": {"nameservers": ["10.7.0.53"], "domain": "example"}
    });
    let pod = host.sandbox("p");
    let conf = json!({"nameservers": ["192.0.2.53"]});
    let add = || call(&host, &path, "ADD", &pod, &ipam).with("dns", conf.clone());
    let result = add().run().result();
    assert_eq!(ips(&result).iter().map(ToString::to_string).collect::<Vec<_>>(), ["10.7.0.9", "fd07::9"]);
    assert_eq!(result["dns"], json!({"nameservers": ["192.0.2.53"], "domain": "example"}));
    let listed =
        pod.net.run(|| std::process::Command::new("ip").args(["-4", "route"]).output()).unwrap().unwrap();
    let listed = String::from_utf8(listed.stdout).unwrap();
    assert!(
        listed.contains("default via 169.254.1.1") && listed.contains("192.0.2.0/24 via 169.254.1.1"),
        "{listed}"
    );
    // An ADD again (of a runtime that sent no DEL) begins anew.
    let again = add().run().result();
    assert_eq!(again, result);
    let check = || call(&host, &path, "CHECK", &pod, &ipam).with("prevResult", again.clone()).run();
    check().done();
    // The gateway is the node's end: the pod reaches it, and CHECK sees when it is gone.
    assert_eq!(
        (&result["ips"][0]["gateway"], &result["ips"][1]["gateway"]),
        (&json!("10.7.0.1"), &json!("fd07::1"))
    );
    for gateway in ["10.7.0.1", "fd07::1"] {
        let ping = || std::process::Command::new("ping").args(["-c1", "-W5", gateway]).output();
        assert!(pod.net.run(ping).unwrap().unwrap().status.success(), "{gateway}");
    }
    host.ip(&format!("addr del 10.7.0.1/32 dev {}", host_name(&pod)));
    assert!(check().error(101).contains("address 10.7.0.1/32 is missing"));
    // Routes of the configuration come first.
    let own = add().with("podway", json!({"routes": [{"dst": "198.51.100.0/24"}]})).run().result();
    assert_eq!(own["routes"], json!([{"dst": "198.51.100.0/24", "gw": "169.254.1.1"}]));
    call(&host, &path, "DEL", &pod, &ipam).run().done();
    assert_eq!(leftovers(&host), Vec::<String>::new());
    // What lies in a pool of ours, or behind a gateway that is no neighbour, is refused and given back.
    let mut ours = ipam.clone();
    ours["addresses"] = json!([{"address": "10.244.1.9/26"}]);
    ours["routes"] = json!([]);
    let said = call(&host, &path, "ADD", &pod, &ours).run().error(7);
    assert!(said.contains("gave 10.244.1.9, which lies in pool v4 (10.244.0.0/16)"), "{said}");
    let mut behind = ipam.clone();
    behind["routes"] = json!([{"dst": "192.0.2.0/24", "gw": "10.7.0.254"}]);
    let said = call(&host, &path, "ADD", &pod, &behind).run().error(102);
    assert!(said.contains("192.0.2.0/24 has gateway \"10.7.0.254\""), "{said}");
    assert_eq!(leftovers(&host), Vec::<String>::new());
}

#[test]
fn the_address_plugin_gets_the_callers_environment_and_input() {
    let Some(host) = Host::new("the_address_plugin_gets_the_callers_environment_and_input", Families::V4)
    else {
        return;
    };
    recorder(&host, GIVES);
    let (pod, ipam) = (host.sandbox("p"), json!({"type": "recorder", "anything": {"of": ["its", "own"]}}));
    let own = &pod.attachment;
    let result = call(&host, BIN, "ADD", &pod, &ipam).run().result();
    // Without routes of its own: the default route, as always.
    assert_eq!(result["routes"], json!([{"dst": "0.0.0.0/0", "gw": "169.254.1.1"}]));
    call(&host, BIN, "CHECK", &pod, &ipam).with("prevResult", result.clone()).run().done();
    host.bare("STATUS").env("CNI_PATH", BIN).with("ipam", ipam.clone()).run().done();
    let valid = json!([{"containerID": own.container_id, "ifname": "eth0"}]);
    gc(&host, BIN, &ipam, valid.clone()).run().done();
    call(&host, BIN, "DEL", &pod, &ipam).with("prevResult", result.clone()).run().done();
    let seen = calls(&host);
    let about = format!("{} eth0 {}", own.container_id, own.netns);
    for (line, verb) in seen.iter().zip(["ADD", "CHECK", "STATUS", "GC", "DEL"]) {
        let expected = match verb {
            "STATUS" | "GC" => format!("{verb}   none none {BIN}"),
            _ => format!("{verb} {about} IgnoreUnknown=1;K8S_POD_NAMESPACE=default;"),
        };
        assert!(line.starts_with(&expected), "{line}\n{expected}");
    }
    assert_eq!(seen.len(), 5);
    for (verb, extra) in [
        ("ADD", json!({})),
        ("CHECK", json!({"prevResult": result})),
        ("DEL", json!({"prevResult": result})),
        ("STATUS", json!({})),
        ("GC", json!({"cni.dev/valid-attachments": valid})),
    ] {
        let mut expected = json!({"cniVersion": "1.1.0", "name": "podway", "type": "podway", "ipam": ipam});
        expected.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        let input: Value = serde_json::from_str(&host.read(&format!("/run/podway/input.{verb}"))).unwrap();
        assert_eq!(input, expected, "{verb}");
    }
    // The configuration of the ADD counts at the end, whatever stands there by then; nobody is asked twice.
    call(&host, BIN, "ADD", &pod, &ipam).run().result();
    host.call("DEL", &pod).env("CNI_PATH", BIN).run().done();
    assert_eq!(verbs(&host), ["ADD", "DEL"]);
    let input: Value = serde_json::from_str(&host.read("/run/podway/input.DEL")).unwrap();
    assert_eq!(input["ipam"], ipam);
    host.call("DEL", &pod).env("CNI_PATH", BIN).run().done();
    assert_eq!(leftovers(&host), Vec::<String>::new());
}

#[test]
fn errors_of_the_address_plugin_pass_with_their_code_and_leave_nothing() {
    let test = "errors_of_the_address_plugin_pass_with_their_code_and_leave_nothing";
    let Some(host) = Host::new(test, Families::V4) else { return };
    let (pod, ipam) = (host.sandbox("p"), json!({"type": "recorder"}));
    let fails = r#"{"cniVersion": "1.0.0", "code": 142, "msg": "no room", "details": "at all"}"#;
    let add = || call(&host, BIN, "ADD", &pod, &ipam);
    // It fails: its code and words, and it is told to take back what it may have given.
    recorder(&host, &format!("ADD) echo '{fails}'; exit 1;;"));
    let said = add().run().error(142);
    assert!(said.contains("address plugin recorder: no room") && said.contains("at all"), "{said}");
    assert_eq!(verbs(&host), ["ADD", "DEL"]);
    // It ends without a word, or says nonsense.
    for (text, code, part) in [
        ("ADD) exit 3;;", 102, "address plugin recorder: ADD: exit status: 3"),
        ("ADD) echo banana;;", 102, "its result is not JSON"),
        ("ADD) echo '{}';;", 102, "its result has no address"),
    ] {
        recorder(&host, text);
        let said = add().run().error(code);
        assert!(said.contains(part), "{said}");
        assert_eq!(verbs(&host), ["ADD", "DEL"]);
    }
    // What fails behind it gives its addresses back, the address last.
    recorder(&host, GIVES);
    host.ip_in(&pod.net, "link add eth0 type veth peer name other");
    let said = add().run().error(4);
    assert!(said.contains("exists in"), "{said}");
    assert_eq!(verbs(&host), ["ADD", "DEL"]);
    host.ip_in(&pod.net, "link del eth0");
    assert_eq!(leftovers(&host), Vec::<String>::new());
    // It does not take them back: both are said, and its mark stays until somebody succeeds.
    recorder(&host, &format!("ADD) echo '{{}}';; DEL) echo '{fails}'; exit 1;;"));
    let said = add().run().error(102);
    assert!(
        said.contains("no address") && said.contains("undoing it failed") && said.contains("no room"),
        "{said}"
    );
    assert_eq!(host.list(MARKS).len(), 1);
    call(&host, BIN, "DEL", &pod, &ipam).run().error(142);
    recorder(&host, GIVES);
    call(&host, BIN, "DEL", &pod, &ipam).run().done();
    assert_eq!(leftovers(&host), Vec::<String>::new());
    // One that fails at DEL does not keep the interface.
    add().run().result();
    recorder(&host, &format!("DEL) echo '{fails}'; exit 1;;"));
    call(&host, BIN, "DEL", &pod, &ipam).run().error(142);
    assert_eq!(host.rtnl().link(host_name(&pod).as_str()).unwrap(), None);
    // STATUS: its own codes for it pass, others become 50; a plugin that is not there, too.
    let status = |ipam: &Value| host.bare("STATUS").env("CNI_PATH", BIN).with("ipam", ipam.clone()).run();
    for (code, expected) in [(51, 51), (50, 50), (999, 50)] {
        recorder(&host, &format!("STATUS) echo '{{\"code\": {code}, \"msg\": \"x\"}}'; exit 1;;"));
        status(&ipam).error(expected);
    }
    assert!(status(&json!({"type": "absent"})).error(50).contains("\"absent\" found, a program in CNI_PATH"));
    let said = call(&host, BIN, "ADD", &pod, &json!({"type": "absent"})).run().error(7);
    assert!(said.contains("CNI_PATH is /opt/cni/bin"), "{said}");
    let said = add().without_env("CNI_PATH").run().error(4);
    assert!(said.contains("CNI_PATH is missing"), "{said}");
    for kind in ["podway", "portmap", "../recorder"] {
        call(&host, BIN, "ADD", &pod, &json!({ "type": kind })).run().error(7);
    }
}

#[test]
fn an_address_plugin_that_is_gone_keeps_no_pod_from_ending() {
    let test = "an_address_plugin_that_is_gone_keeps_no_pod_from_ending";
    let Some((host, path)) = with_real_plugins(test, Families::Dual) else { return };
    let ipam = host_local();
    let (pod, late) = (host.sandbox("p"), host.sandbox("late"));
    for pod in [&pod, &late] {
        call(&host, &path, "ADD", pod, &ipam).run().result();
    }
    for pod in [&pod, &late] {
        let (answer, said) = call(&host, BIN, "DEL", pod, &ipam).run_with_stderr();
        answer.done();
        assert!(
            said.contains("of address plugin host-local are not given back") && said.contains(MARKS),
            "{said}"
        );
        assert!(said.contains("fd00:1::"), "{said}");
    }
    assert_eq!((host.leftovers(), held(&host).len(), host.list(MARKS).len()), (vec![], 4, 2));
    // GC says so, too, and does it once the plugin is there; so does DEL.
    let said = gc(&host, BIN, &ipam, json!([])).run().error(102);
    assert!(said.contains("are not given back"), "{said}");
    call(&host, &path, "DEL", &pod, &ipam).run().done();
    assert_eq!(held(&host).len(), 2);
    gc(&host, &path, &ipam, json!([])).run().done();
    assert_eq!((held(&host), leftovers(&host)), (vec![], vec![]));
}

#[test]
fn gc_gives_back_what_the_address_plugin_gave() {
    let test = "gc_gives_back_what_the_address_plugin_gave";
    let Some((host, path)) = with_real_plugins(test, Families::Dual) else { return };
    let ipam = host_local();
    let (alive, gone) = (host.sandbox("alive"), host.sandbox("gone"));
    let result = call(&host, &path, "ADD", &alive, &ipam).run().result();
    call(&host, &path, "ADD", &gone, &ipam).run().result();
    let valid = json!([{"containerID": alive.attachment.container_id, "ifname": "eth0"}]);
    gc(&host, &path, &json!({}), json!("all")).run().error(7);
    gc(&host, &path, &ipam, valid.clone()).with("name", "other".into()).run().done();
    assert_eq!(held(&host).len(), 4, "another network's");
    gc(&host, &path, &ipam, valid).run().done();
    assert_eq!((held(&host).len(), host.pod_links().len(), host.list(MARKS).len()), (2, 1, 1));
    call(&host, &path, "CHECK", &alive, &ipam).with("prevResult", result).run().done();
    // Also where the configuration has changed since.
    host.bare("GC").env("CNI_PATH", &path).with("cni.dev/valid-attachments", json!([])).run().done();
    assert_eq!((held(&host), leftovers(&host)), (vec![], vec![]));
}

#[test]
fn a_lease_file_that_is_lost_takes_no_foreign_address_for_ours() {
    let test = "a_lease_file_that_is_lost_takes_no_foreign_address_for_ours";
    let Some((host, path)) = with_real_plugins(test, Families::Dual) else { return };
    let (own, pod) = (host.sandbox("own"), host.sandbox("p"));
    let ipam = host_local();
    host.add(&own);
    let result = call(&host, &path, "ADD", &pod, &ipam).run().result();
    for without_record in [false, true] {
        if without_record {
            let id = podway_model::names::attachment_id(&pod.attachment.container_id, "eth0");
            host.remove(&format!("/run/podway/endpoints/{id}.json"));
        }
        host.remove("/run/podway/ipam/leases");
        let (answer, said) = host.bare("STATUS").run_with_stderr();
        answer.done();
        assert!(said.contains("rebuilt with 1 leases"), "{said}");
        let held: Vec<String> = host.leases().iter().map(|lease| lease.attachment.to_string()).collect();
        assert_eq!(held, [format!("{}/eth0", own.attachment.container_id)]);
    }
    assert_eq!(ips(&result).len(), 2);
    call(&host, &path, "DEL", &pod, &ipam).run().done();
    host.del(&own);
    assert_eq!((held(&host), leftovers(&host)), (vec![], vec![]));
}

#[test]
fn an_add_or_del_with_an_address_plugin_killed_anywhere_leaves_nothing() {
    let test = "an_add_or_del_with_an_address_plugin_killed_anywhere_leaves_nothing";
    let Some((host, path)) = with_real_plugins(test, Families::Dual) else { return };
    let (ipam, pod) = (host_local(), host.sandbox("p"));
    let call = |verb: &str| call(&host, &path, verb, &pod, &ipam);
    // Its own process is not killed with ours; what comes next waits for it, by its lock.
    let quiet = || host.place.run("sh", &["-c", "while pgrep -x host-local >/dev/null; do :; done"]).unwrap();
    for verb in ["ADD", "DEL"] {
        for n in 1.. {
            if verb == "DEL" {
                call("ADD").run().result();
            }
            let run = trace::run(&host, &call(verb), Some(n));
            quiet();
            // What a runtime does next: in turns, so that each comes behind every step.
            let next = ["DEL", "GC", "ADD"][n % 3];
            let when = format!("{verb} killed at system call {n}, then {next}");
            match next {
                "GC" => gc(&host, &path, &ipam, json!([])).run().done(),
                "ADD" => {
                    let result = call("ADD").run();
                    assert_eq!(result.code, Some(0), "{when}: {:?}", result.text);
                    call("CHECK").with("prevResult", result.result()).run().done();
                    call("DEL").run().done();
                }
                _ => call("DEL").run().done(),
            }
            assert_eq!((held(&host), leftovers(&host)), (vec![], vec![]), "{when}");
            if run.code.is_some() {
                println!("{verb} with an address plugin: {} kill points", n - 1);
                assert!(n > 50, "{verb}: {n}");
                break;
            }
        }
    }
}
