//! The plugin first, in the middle and last in a chain: what others answered is passed on, what is ours is added.

use serde_json::{Value, json};

use crate::host::{Families, Host, ips};

fn neighbour(version: &str) -> Value {
    json!({
        "cniVersion": version, "vendor": {"x": 1}, "dns": {"domain": "example.com"},
        "interfaces": [{"name": "dummy0", "mac": "02:00:00:00:00:09", "sandbox": "/run/netns/elsewhere"}],
        "ips": [{"address": "192.0.2.7/24", "gateway": "192.0.2.1", "interface": 0}],
        "routes": [{"dst": "198.51.100.0/24", "gw": "192.0.2.1"}]
    })
}

#[test]
fn first_middle_and_last_in_a_chain() {
    let Some(host) = Host::new("first_middle_and_last_in_a_chain", Families::Dual) else { return };
    let pod = host.sandbox("p");
    let before = neighbour("1.1.0");
    let result = host.call("ADD", &pod).with("prevResult", before.clone()).run().result();
    assert_eq!(result["vendor"], before["vendor"]);
    assert_eq!(result["dns"]["domain"], "example.com");
    assert_eq!(result["interfaces"].as_array().unwrap().len(), 3);
    assert_eq!(result["interfaces"][0], before["interfaces"][0]);
    assert_eq!(result["ips"][0], before["ips"][0]);
    assert_eq!((&result["ips"][1]["interface"], &result["ips"][2]["interface"]), (&json!(2), &json!(2)));
    assert_eq!(result["routes"].as_array().unwrap().len(), 3);

    // Whoever came behind us changed and added things of their own; CHECK and DEL get the end of the chain.
    let mut last = result.clone();
    last["interfaces"].as_array_mut().unwrap().push(json!({"name": "ifb0"}));
    last["vendor"]["y"] = json!(2);
    host.check(&pod, &last).done();
    host.check(&pod, &result).done();
    // A result in which our interface or its address is not what it was is told.
    let mut wrong = last.clone();
    wrong["ips"][1]["address"] = json!("10.244.1.9/32");
    assert!(host.check(&pod, &wrong).error(101).contains("prevResult: addresses"));
    wrong["interfaces"].as_array_mut().unwrap().remove(2);
    assert!(host.check(&pod, &wrong).error(101).contains("prevResult: interface eth0 is missing"));
    host.call("DEL", &pod).with("prevResult", last).run().done();
    assert_eq!(host.leftovers(), Vec::<String>::new());
}

#[test]
fn a_chain_without_a_result_before_us_begins_with_ours() {
    let Some(host) = Host::new("a_chain_begins_with_ours", Families::V4) else { return };
    let pod = host.sandbox("p");
    let result = host.add(&pod);
    assert_eq!((result["interfaces"].as_array().unwrap().len(), ips(&result).len()), (2, 1));
    let refused = host.call("ADD", &host.sandbox("q")).with("prevResult", json!("x")).run().error(7);
    assert!(refused.contains("prevResult: text found, an object expected"), "{refused}");
    assert_eq!(host.leases().len(), 1);
}

#[test]
fn dns_goes_into_the_result() {
    let Some(host) = Host::new("dns_goes_into_the_result", Families::V4) else { return };
    let pod = host.sandbox("p");
    let conf = host.call("ADD", &pod).with("dns", json!({"nameservers": ["10.96.0.1"], "domain": "d"}));
    let runtime = json!({"dns": {"servers": ["10.96.0.10"], "searches": ["svc"], "options": ["ndots:5"]}});
    let result = conf.with("runtimeConfig", runtime).run().result();
    let expected = json!({
        "domain": "d", "nameservers": ["10.96.0.10"], "search": ["svc"], "options": ["ndots:5"]
    });
    assert_eq!(result["dns"], expected);
}
