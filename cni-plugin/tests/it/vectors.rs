//! Input that every plugin must survive: each gets the code of the specification, one JSON text, and leaves nothing.

use serde_json::json;

use crate::host::{Families, Host, ips};

#[test]
fn environments_that_cannot_be_used() {
    let Some(host) = Host::new("environments_that_cannot_be_used", Families::V4) else { return };
    let pod = host.sandbox("p");
    for (name, value, part) in [
        ("CNI_CONTAINERID", "a/../b", "CNI_CONTAINERID: \"a/../b\""),
        ("CNI_CONTAINERID", "-x", "CNI_CONTAINERID"),
        ("CNI_IFNAME", "sixteen-letters!", "CNI_IFNAME"),
        ("CNI_IFNAME", "a/b", "CNI_IFNAME"),
        ("CNI_IFNAME", "..", "CNI_IFNAME"),
        ("CNI_COMMAND", "DANCE", "CNI_COMMAND: \"DANCE\""),
        ("CNI_ARGS", "banana", "CNI_ARGS: \"banana\""),
        ("CNI_ARGS", "COLOUR=red", "COLOUR is not known"),
        ("CNI_ARGS", "IP=banana", "IP"),
    ] {
        let said = host.call("ADD", &pod).env(name, value).run().error(4);
        assert!(said.contains(part), "{name}={value}: {said}");
    }
    // Several at once in one error.
    let said = host.bare("ADD").run().error(4);
    for name in ["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"] {
        assert!(said.contains(&format!("{name} is missing")), "{said}");
    }
    let said = host.call("DEL", &pod).env("CNI_CONTAINERID", "").env("CNI_IFNAME", "a b").run().error(4);
    assert!(said.contains("CNI_CONTAINERID is missing") && said.contains("CNI_IFNAME: \"a b\""), "{said}");
    // CNI_PATH is asked for only where something is delegated.
    host.call("ADD", &pod).without_env("CNI_PATH").run().result();
    host.del(&pod);
    assert_eq!(host.leftovers(), Vec::<String>::new());
}

#[test]
fn namespaces_that_cannot_be_used() {
    let Some(host) = Host::new("namespaces_that_cannot_be_used", Families::V4) else { return };
    let pod = host.sandbox("p");
    host.write("/run/netns/file", "");
    for (path, part) in [
        ("/run/netns/nowhere", "nowhere"),
        ("/run/netns/file", "not a namespace"),
        ("/run/netns", "not a namespace"),
        ("/proc/self/ns/net", "own namespace"),
        ("/proc/self/ns/mnt", "not a network namespace"),
    ] {
        for verb in ["ADD", "CHECK"] {
            let call = host.call(verb, &pod).env("CNI_NETNS", path).with("prevResult", json!({}));
            let said = call.run().error(8);
            assert!(said.contains("CNI_NETNS") && said.contains(part), "{verb} {path}: {said}");
        }
    }
    assert_eq!(host.leftovers(), Vec::<String>::new());
}

#[test]
fn configurations_that_cannot_be_used() {
    let Some(host) = Host::new("configurations_that_cannot_be_used", Families::Dual) else { return };
    let pod = host.sandbox("p");
    for (text, code, part) in [
        ("", 6, "not JSON"),
        ("{", 6, "not JSON"),
        ("[]", 6, "an object expected"),
        ("{}", 1, "cniVersion: missing"),
        (r#"{"cniVersion":"9.9.9","name":"n","type":"podway"}"#, 1, "\"9.9.9\" found"),
        (r#"{"cniVersion":"0.1.0","name":"n","type":"podway"}"#, 1, "\"0.1.0\" found"),
        (r#"{"cniVersion":"1.0.0","type":"podway"}"#, 7, "name: nothing found"),
        (r#"{"cniVersion":"1.0.0","name":"-n","type":"podway"}"#, 7, "name: \"-n\" found"),
    ] {
        for verb in ["ADD", "DEL", "CHECK"] {
            let said = host.call(verb, &pod).input(text).run().error(code);
            assert!(said.contains(part), "{verb} {text}: {said}");
        }
    }
    for (key, value, code, part) in [
        ("podway", json!({"mtu": -1}), 7, "podway.mtu: -1 found"),
        ("podway", json!({"mtu": 9000}), 7, "podway.mtu: 9000 found, at most 1450"),
        ("podway", json!({"colour": "red"}), 7, "podway.colour"),
        ("podway", json!({"pools": ["nowhere"]}), 7, "pool nowhere: not a pool of this node"),
        ("podway", json!([]), 7, "podway: a list found, an object expected"),
        ("runtimeConfig", json!({"ips": ["banana"]}), 7, "runtimeConfig.ips[0]"),
        ("runtimeConfig", json!({"ips": ["10.0.0.1"]}), 7, "10.0.0.1: in no block of this node"),
        ("runtimeConfig", json!({"ips": ["10.244.1.0"]}), 7, "reserved for this node"),
        ("runtimeConfig", json!({"ips": ["10.244.1.5", "10.244.1.6"]}), 7, "at most one per family"),
    ] {
        let said = host.call("ADD", &pod).with(key, value.clone()).run().error(code);
        assert!(said.contains(part), "{key}: {value}: {said}");
        assert_eq!(host.leftovers(), Vec::<String>::new(), "{key}: {value}");
    }
    // More than anybody sends.
    let long = format!("{{\"x\":\"{}\"}}", "a".repeat(5 << 20));
    assert!(host.call("ADD", &pod).input(&long).run().error(6).contains("more than"));
    // CHECK must be given the result of the ADD.
    assert!(host.call("CHECK", &pod).run().error(7).contains("prevResult: nothing found"));
}

#[test]
fn an_error_carries_the_version_of_the_question() {
    let Some(host) = Host::new("an_error_carries_the_version", Families::V4) else { return };
    let pod = host.sandbox("p");
    for version in ["0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
        let call = host.call("ADD", &pod).with("cniVersion", json!(version)).env("CNI_IFNAME", "a/b");
        assert_eq!(call.run().text.unwrap()["cniVersion"], version);
    }
}

#[test]
fn requested_addresses_are_given_or_refused() {
    let Some(host) = Host::new("requested_addresses_are_given_or_refused", Families::Dual) else { return };
    let (a, b) = (host.sandbox("a"), host.sandbox("b"));
    let text = |result| ips(&result).iter().map(ToString::to_string).collect::<Vec<_>>();
    let runtime = json!({"ips": ["10.244.1.9/32", "fd00:244::109"]});
    let given = host.call("ADD", &a).with("runtimeConfig", runtime).run().result();
    assert_eq!(text(given), ["10.244.1.9", "fd00:244::109"]);
    let taken = json!({"cni": {"ips": ["10.244.1.9"]}});
    let said = host.call("ADD", &b).with("args", taken).run().error(11);
    assert!(said.contains(&format!("leased to {}", a.attachment.container_id)), "{said}");
    let given = host.call("ADD", &b).env("CNI_ARGS", "IP=10.244.1.11").run().result();
    assert_eq!(text(given), ["10.244.1.11", "fd00:244::101"]);
}

#[test]
fn a_person_is_told_what_the_program_is_for() {
    let Some(host) = Host::new("a_person_is_told", Families::V4) else { return };
    let mut command = std::process::Command::new(crate::host::PLUGIN);
    command.env_clear();
    let output = host.place.output(command, b"").unwrap();
    assert!(output.status.success() && output.stdout.is_empty());
    assert!(String::from_utf8_lossy(&output.stderr).contains("a CNI plugin"));
}
