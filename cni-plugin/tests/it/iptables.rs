//! Rules that upstream's iptables backends made, and that end with our DEL and GC: the real plugins and the real iptables
//! beside ours, compared by `iptables-save`.

use podway_testkit::cni::Attachment;
use podway_testkit::pod::Sandbox;
use serde_json::{Value, json};

use crate::node::{FIREWALL_DIR as FOLDER, NETWORK, Node};
use crate::upstream::beside_the_real_ones;

/// Puts one kind of iptables into the node's path, under the names by which plugins call it; or says why not.
fn install(test: &str, node: &Node, kind: &str) -> bool {
    let program = format!("iptables-{kind}");
    let program = node.sh(&format!("{program} -t nat -S >/dev/null 2>&1 && command -v {program} || true"));
    if program.is_empty() {
        println!("SKIP {test}: no iptables-{kind} here");
        return false;
    }
    node.sh(&format!(
        "mkdir -p {FOLDER} && for n in iptables iptables-save ip6tables ip6tables-save; do \
         ln -sf $(realpath {}) {FOLDER}/$n; done",
        program.trim()
    ));
    true
}

/// Both families as `iptables-save` writes them, without the time and the counters.
fn saved(node: &Node) -> String {
    // What only warns of tables of another kind goes to standard error.
    let save =
        |program: &str| format!("{FOLDER}/{program} -t nat 2>/dev/null | grep -v '^#' | sed 's/ \\[.*//'");
    node.sh(&format!("{}; {}", save("iptables-save"), save("ip6tables-save")))
}

fn ptp(network: &str) -> Value {
    json!({
        "cniVersion": "1.1.0", "name": network, "type": "ptp", "ipMasq": true, "ipMasqBackend": "iptables",
        "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.1.0.0/24"}], [{"subnet": "fd00:1::/120"}]]}
    })
}

fn portmap(network: &str, port: u16, result: &Value) -> Value {
    let ports = json!([
        {"hostPort": port, "containerPort": 80, "protocol": "tcp"},
        {"hostPort": port, "containerPort": 80, "protocol": "udp"}
    ]);
    json!({
        "cniVersion": "1.1.0", "name": network, "type": "portmap", "backend": "iptables", "snat": true,
        "runtimeConfig": {"portMappings": ports}, "prevResult": result
    })
}

fn call(node: &Node, plugin: &str, verb: &str, own: &Attachment, input: &Value) -> (String, String) {
    let outcome = node.call(plugin, verb, own, input);
    assert_eq!(outcome.code, Some(0), "{plugin} {verb}: {}{}", outcome.stdout, outcome.stderr);
    (outcome.stdout, outcome.stderr)
}

/// Adds a container by upstream's plugins, and returns what ADD answered.
fn add(node: &Node, network: &str, pod: &Sandbox, port: u16) -> Value {
    let own = &pod.attachment;
    let result = serde_json::from_str(&call(node, "real-ptp", "ADD", own, &ptp(network)).0).unwrap();
    call(node, "real-portmap", "ADD", own, &portmap(network, port, &result));
    result
}

/// Removes a container by the plugins that have these names.
fn del(node: &Node, [ptp_name, portmap_name]: [&str; 2], pod: &Sandbox, port: u16, result: &Value) {
    call(node, portmap_name, "DEL", &pod.attachment, &portmap(NETWORK, port, result));
    let mut conf = ptp(NETWORK);
    conf["prevResult"] = result.clone();
    call(node, ptp_name, "DEL", &pod.attachment, &conf);
}

/// Runs GC with these valid attachments, and returns what went to standard error.
fn gc(node: &Node, plugin: &str, mut conf: Value, own: &Sandbox, valid: &[&Sandbox]) -> String {
    conf.as_object_mut().unwrap().remove("prevResult");
    let one = |pod: &&Sandbox| json!({"containerID": pod.attachment.container_id, "ifname": "eth0"});
    conf["cni.dev/valid-attachments"] = valid.iter().map(one).collect();
    call(node, plugin, "GC", &own.attachment, &conf).1
}

#[test]
fn rules_of_upstreams_iptables_backend_end_with_del_and_gc() {
    let test = "rules_of_upstreams_iptables_backend_end_with_del_and_gc";
    beside_the_real_ones(test, |node| {
        if !install(test, node, "nft") {
            return;
        }
        let [gone, lives, elsewhere] =
            ["gone", "lives", "elsewhere"].map(|name| node.sandbox(name, json!({})));
        let id = |pod: &Sandbox| format!("\"{}\\\"", pod.attachment.container_id);
        add(node, NETWORK, &lives, 8081);
        add(node, "other", &elsewhere, 8082);
        // A stranger's, which says what it likes in its comment.
        let stranger = gone.attachment.container_id.as_str();
        node.sh(&format!(
            "{FOLDER}/iptables -t nat -A POSTROUTING -s 192.0.2.1 -m comment \
             --comment 'name: \"{NETWORK}\" id: \"{stranger}\"' -j RETURN"
        ));
        // What upstream's own DEL leaves is what ours has to leave.
        let result = add(node, NETWORK, &gone, 8080);
        let whole = saved(node);
        del(node, ["real-ptp", "real-portmap"], &gone, 8080, &result);
        let expected = saved(node);
        for (text, there, left) in [("--dports 8080", 4, 0), ("--dports 8081", 4, 4), ("--dports 8082", 4, 4)]
        {
            assert_eq!(whole.matches(text).count(), there, "{text}: {whole}");
            assert_eq!(expected.matches(text).count(), left, "{text}: {expected}");
        }
        // Of each: the rule in POSTROUTING, two in the chain, for each family. The stranger's comment stays.
        assert_eq!(
            whole.matches(&id(&gone)).count() - expected.matches(&id(&gone)).count(),
            4 + 6,
            "{whole}"
        );

        let result = add(node, NETWORK, &gone, 8080);
        assert_ne!(saved(node), expected);
        for _ in 0..2 {
            del(node, ["ptp", "portmap"], &gone, 8080, &result);
            assert_eq!(saved(node), expected, "after DEL");
        }
        // iptables reads its tables, and goes on with them.
        node.sh(&format!("{FOLDER}/iptables -t nat -S && {FOLDER}/ip6tables -t nat -S"));
        let result = add(node, NETWORK, &gone, 8080);
        gc(node, "portmap", portmap(NETWORK, 1, &result), &gone, &[&lives]);
        gc(node, "ptp", ptp(NETWORK), &gone, &[&lives]);
        assert_eq!(saved(node), expected, "after GC");
        // Each plugin ends its own: of ptp's chains portmap knows nothing.
        gc(node, "portmap", portmap(NETWORK, 1, &result), &gone, &[]);
        let left = saved(node);
        assert!(!left.contains("--dports 8081") && left.contains(&id(&lives)), "{left}");
        gc(node, "ptp", ptp(NETWORK), &gone, &[]);
        let left = saved(node);
        assert!(!left.contains(&id(&lives)) && left.contains(&id(&elsewhere)), "{left}");
        assert_eq!(left.matches("--dports 8082").count(), 4, "{left}");
        assert_eq!(left.matches(stranger).count(), 1, "{left}");
        // Nothing to do is nothing to do, also where there is no table.
        node.sh("nft delete table ip nat; nft delete table ip6 nat");
        del(node, ["ptp", "portmap"], &lives, 8081, &result);
        gc(node, "ptp", ptp(NETWORK), &gone, &[]);
        assert_eq!(node.sh("nft list tables | grep -w nat || true"), "");
    });
}

#[test]
fn rules_of_iptables_legacy_are_reported_and_left() {
    let test = "rules_of_iptables_legacy_are_reported_and_left";
    beside_the_real_ones(test, |node| {
        if !install(test, node, "legacy") {
            return;
        }
        let [gone, lives] = ["gone", "lives"].map(|name| node.sandbox(name, json!({})));
        let result = add(node, NETWORK, &gone, 8080);
        add(node, NETWORK, &lives, 8081);
        let before = saved(node);
        assert!(before.contains("--dports 8080"), "{before}");
        let own = &gone.attachment;
        for (plugin, prefix, conf) in
            [("portmap", "CNI-DN-", portmap(NETWORK, 8080, &result)), ("ptp", "CNI-", ptp(NETWORK))]
        {
            let said = gc(node, plugin, conf.clone(), &gone, &[&lives]);
            assert!(said.contains(&format!("rules of container {} stays", own.container_id)), "{said}");
            assert!(!said.contains(&lives.attachment.container_id), "{said}");
            let said = call(node, plugin, "DEL", own, &conf).1;
            for program in ["iptables-legacy", "ip6tables-legacy"] {
                let part = format!(" of {}/eth0 stays in table nat of {program}", own.container_id);
                let line = said.lines().find(|line| line.contains(&part));
                assert!(line.is_some_and(|line| line.contains(&format!("chain {prefix}"))), "{said}");
            }
        }
        assert_eq!(saved(node), before);
        // Whose rules are not there is not spoken of.
        let other = node.sandbox("other", json!({}));
        assert_eq!(call(node, "portmap", "DEL", &other.attachment, &portmap(NETWORK, 1, &result)).1, "");
    });
}
