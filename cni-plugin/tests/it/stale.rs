//! Leases that nobody will ever end: found by ADD when the blocks are nearly full. Time is a time namespace's.

use podway_testkit::pod::Sandbox;
use serde_json::json;

use crate::host::{Answer, Families, Host, host_name};

/// ADD at so many seconds from now.
fn add_later(host: &Host, pod: &Sandbox, seconds: u64) -> Answer {
    let offset = seconds.to_string();
    host.call("ADD", pod).under(&["unshare", "--time", "--fork", "--boottime", &offset]).run()
}

#[test]
fn add_ends_leases_whose_pods_are_gone_when_blocks_are_nearly_full() {
    let Some(host) = Host::new("add_ends_leases_whose_pods_are_gone", Families::V4) else { return };
    host.edit_node_file(|file| file["blocks"][0]["cidr"] = json!("10.244.1.0/30"));
    let pods: Vec<_> = (0..3).map(|i| host.sandbox(&format!("p{i}"))).collect();
    let results: Vec<_> = pods.iter().map(|pod| host.add(pod)).collect();
    // One pod vanishes without a DEL: its namespace ended, and its link with it.
    host.ip(&format!("link del {}", host_name(&pods[1])));
    let next = host.sandbox("next");
    let full = "pool v4 has 3 of 3 addresses leased";
    // Looks while the lease is young end nothing.
    for seconds in [0, 100, 200, 290] {
        assert!(add_later(&host, &next, seconds).error(11).contains(full), "{seconds} s");
    }
    // Its link was missing in every look since the first.
    let result = add_later(&host, &next, 310).result();
    assert_eq!(result["ips"][0]["address"], "10.244.1.2/32");
    assert_eq!((host.leases().len(), host.records().len(), host.pod_links().len()), (3, 3, 3));
    // Those that live were never in doubt, however often and late one looks.
    let one_more = host.sandbox("more");
    for seconds in [400, 1000, 5000] {
        assert!(add_later(&host, &one_more, seconds).error(11).contains(full));
    }
    host.check(&pods[0], &results[0]).done();
    host.check(&pods[2], &results[2]).done();
    // The late DEL of the one that is gone does not touch its successor.
    host.del(&pods[1]);
    host.call("CHECK", &next).with("prevResult", result).run().done();
}
