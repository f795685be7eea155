//! What we ship: the network configuration declares what the plugin serves, and the page of keys is what the parser knows.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;

use cni_plugin::Answer;
use cni_plugin::conf::{CAPABILITIES, Network, OWN_KEYS};
use cni_plugin::error::Code;
use cni_plugin::ipam;
use podway_testkit::probe::Kind;
use serde_json::{Value, json};

use crate::node::{Node, answer, on_a_node};

const CONFLIST: &str = include_str!("../../../deploy/10-podway.conflist");
const README: &str = include_str!("../../README.md");

/// First cells of the README's tables, text between backticks.
fn documented() -> BTreeSet<&'static str> {
    let cells = README.lines().filter(|line| line.starts_with('|')).filter_map(|line| line.split('|').nth(1));
    cells.flat_map(|cell| cell.split('`').skip(1).step_by(2)).collect()
}

/// Keys of a section that the README documents.
fn of_section(section: &str) -> BTreeSet<&'static str> {
    // Annotations begin likewise.
    let keys = documented().into_iter().filter(|key| !key.contains('/'));
    keys.filter_map(|key| key.strip_prefix(section)?.strip_prefix('.')).collect()
}

fn network(section: &str, key: &str, value: &Value) -> Network {
    let conf = json!({"cniVersion": "1.1.0", "name": "podway", section: {key: value}});
    Network::parse(conf.to_string().as_bytes()).unwrap()
}

#[test]
fn the_page_of_keys_is_what_the_parser_knows() {
    assert_eq!(of_section("podway"), OWN_KEYS.into());
    let mut of_ipam: BTreeSet<&str> = ipam::OWN_KEYS.into();
    assert_eq!(of_section("ipam"), of_ipam);
    // And the lists are what the parser knows: a value that cannot be is named with its key, which is not unknown.
    of_ipam.remove("type");
    let refused = |section: &str, key: &str| match section {
        "podway" => network(section, key, &json!(true)).for_add().map(drop),
        _ => ipam::Conf::read(&network(section, key, &json!(true))).map(drop),
    };
    let known =
        OWN_KEYS.map(|key| ("podway", key)).into_iter().chain(of_ipam.into_iter().map(|key| ("ipam", key)));
    for (section, key) in known {
        let error = refused(section, key).unwrap_err();
        assert_eq!(error.code, Code::Config, "{section}.{key}");
        assert!(error.message.contains(&format!("{section}.{key}")), "{error}");
        assert!(!error.message.contains("this key found"), "{error}");
    }
    for section in ["podway", "ipam"] {
        assert!(refused(section, "colour").unwrap_err().message.contains("colour: this key found"));
    }
    // Capabilities: those that are not documented by their keys are by their names.
    for capability in CAPABILITIES {
        assert!(
            README.contains(&format!("`{capability}`"))
                || README.contains(&format!("runtimeConfig.{capability}`")),
            "{capability}"
        );
    }
}

/// The rows of the page's table of keys under other plugins' names: plugin, keys, what is said about errors.
fn keys_of_other_names() -> Vec<(&'static str, Vec<&'static str>, &'static str)> {
    let (_, rest) = README.split_once("\n## Keys under other plugins' names\n").unwrap();
    let (section, _) = rest.split_once("\n## ").unwrap();
    let rows = section.lines().filter(|line| line.starts_with("| `"));
    rows.map(|row| {
        let cells: Vec<&str> = row.trim_matches('|').split('|').map(str::trim).collect();
        assert_eq!(cells.len(), 5, "{row}");
        (cells[0].trim_matches('`'), cells[1].split('`').skip(1).step_by(2).collect(), cells[4])
    })
    .collect()
}

/// A configuration that would do, but for one value: a number where none can stand.
fn spoilt(plugin: &str, key: &str) -> Value {
    let mut conf = json!({"cniVersion": "1.1.0", "name": "n", "type": plugin, "prevResult": {}});
    match plugin {
        "host-local" => {
            // Where nothing can be written, should a value be overlooked.
            conf["ipam"] = json!({"type": plugin, "subnet": "10.1.0.0/24", "dataDir": "/proc/nowhere"});
        }
        "ptp" => conf["ipam"] = json!({"type": "host-local"}),
        _ => {}
    }
    let words = key.split('.');
    let place = words.fold(&mut conf, |place, word| &mut place[word]);
    *place = json!(7.5);
    conf
}

#[test]
fn keys_under_other_plugins_names_are_refused_as_the_page_says() {
    let mut seen: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for (plugin, keys, errors) in keys_of_other_names() {
        seen.entry(plugin).or_default().extend(&keys);
        let Some((code, _)) = errors.split_once(':').filter(|(code, _)| *code != "none") else { continue };
        for key in keys {
            let environment = |name: &str| {
                let value = match name {
                    "CNI_COMMAND" => "ADD",
                    "CNI_CONTAINERID" => "c1",
                    "CNI_NETNS" => "/run/netns/nowhere",
                    "CNI_IFNAME" => "eth0",
                    "CNI_PATH" => "/nowhere",
                    _ => return None,
                };
                Some(OsString::from(value))
            };
            let input = spoilt(plugin, key).to_string();
            let Answer::Failed(error) = cni_plugin::run_as(plugin.as_ref(), environment, input.as_bytes())
            else {
                panic!("{plugin}: {key} is overlooked")
            };
            assert_eq!(error["code"].to_string(), code, "{plugin}: {key}: {error}");
            let last = key.rsplit('.').next().unwrap();
            assert!(error["msg"].as_str().unwrap().contains(last), "{plugin}: {key}: {error}");
        }
    }
    let names: Vec<&str> = seen.keys().copied().collect();
    assert_eq!(names, podway_model::names::OTHER_PLUGINS);
    // Upstream's keys of this version, so that none is forgotten on the page.
    let known = [
        ("bandwidth", "ingressRate ingressBurst egressRate egressBurst runtimeConfig.bandwidth"),
        (
            "host-local",
            "ipam.ranges ipam.subnet ipam.rangeStart ipam.rangeEnd ipam.gateway ipam.routes ipam.dataDir \
             ipam.resolvConf runtimeConfig.ipRanges runtimeConfig.ips args.cni.ips",
        ),
        ("loopback", ""),
        (
            "portmap",
            "backend snat masqAll conditionsV4 conditionsV6 externalSetMarkChain markMasqBit \
             runtimeConfig.portMappings",
        ),
        ("ptp", "ipMasq ipMasqBackend mtu dns ipam.type"),
    ];
    for (plugin, keys) in known {
        assert_eq!(seen[plugin], keys.split(' ').filter(|key| !key.is_empty()).collect(), "{plugin}");
    }
}

#[test]
fn the_shipped_configuration_declares_every_capability_that_is_served() {
    let list: Value = serde_json::from_str(CONFLIST).unwrap();
    let declared = list["plugins"][0]["capabilities"].as_object().unwrap();
    let names: BTreeSet<&str> = declared.keys().map(String::as_str).collect();
    assert_eq!(names, CAPABILITIES.into());
    assert!(declared.values().all(|on| *on == true));
}

/// Makes what we ship the node's network.
fn ship(node: &Node) {
    node.enter(|| std::fs::write("/etc/cni/net.d/10-podway.conflist", CONFLIST).unwrap());
}

#[test]
fn every_capability_is_served_through_the_shipped_configuration() {
    on_a_node("every_capability_is_served_through_the_shipped_configuration", |node| {
        ship(node);
        let port = json!([{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]);
        let pod = node.pod("ports", json!({ "portMappings": port }));
        assert_eq!(answer(node.other.net(), node.addresses[0], Kind::Tcp(8080)).unwrap().0, "ports");
        node.check(&pod).unwrap();
        let rates = json!({"ingressRate": 8_000_000, "ingressBurst": 800_000});
        let pod = node.pod("rates", json!({ "bandwidth": rates }));
        assert!(node.sh(&format!("tc qdisc show dev {}", pod.host_ifname())).contains("rate 8Mbit"));
        node.check(&pod).unwrap();
        let pod = node.pod("ips", json!({"ips": ["10.244.0.40", "fd00:244::20"]}));
        let texts: Vec<String> = pod.addresses.iter().map(ToString::to_string).collect();
        assert_eq!(texts, ["10.244.0.40", "fd00:244::20"]);
        let pod = node
            .pod("ranges", json!({"ipRanges": [[{"subnet": "10.244.0.0/26", "rangeStart": "10.244.0.50"}]]}));
        assert_eq!(pod.addresses[0].to_string(), "10.244.0.50");
        let pod = node.pod("mac", json!({"mac": "02:00:5e:10:00:07"}));
        assert_eq!(pod.result["interfaces"][1]["mac"], "02:00:5e:10:00:07");
        node.check(&pod).unwrap();
        let pod = node.pod("dns", json!({"dns": {"servers": ["10.96.0.10"], "searches": ["a.example"]}}));
        assert_eq!(pod.result["dns"], json!({"nameservers": ["10.96.0.10"], "search": ["a.example"]}));
        let annotations =
            json!({"podway.io/ipAddrs": "[\"10.244.0.41\"]", "podway.io/hwAddr": "02:00:5e:10:00:08"});
        let pod = node.pod("annotations", json!({"io.kubernetes.cri.pod-annotations": annotations}));
        assert_eq!(pod.addresses[0].to_string(), "10.244.0.41");
        assert_eq!(pod.result["interfaces"][1]["mac"], "02:00:5e:10:00:08");
        node.check(&pod).unwrap();
    });
}
