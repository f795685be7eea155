//! What the specification asks and no other module shows: the table "What the specification asks" of ARCHITECTURE.md
//! names the test of each row.

use podway_kern::rtnl::{RouteFilter, Rtnl};
use serde_json::{Value, json};

use crate::host::{Families, Host};

#[test]
fn gc_with_an_empty_list_frees_everything_of_its_network() {
    let Some(host) = Host::new("gc_with_an_empty_list_frees_everything", Families::Dual) else { return };
    let (a, b, other) = (host.sandbox("a"), host.sandbox("b"), host.sandbox("other"));
    host.call("ADD", &other).with("name", json!("other")).run().result();
    // The second is how the reference library writes a list that was never filled.
    for empty in [json!([]), Value::Null] {
        host.add(&a);
        host.add(&b);
        host.bare("GC").with("cni.dev/valid-attachments", empty).run().done();
        let left: Vec<_> =
            host.leases().iter().map(|lease| lease.attachment.container_id.to_string()).collect();
        assert_eq!(left, [other.attachment.container_id.as_str()]);
        assert_eq!((host.pod_links().len(), host.records().len()), (1, 1));
    }
    host.call("DEL", &other).with("name", json!("other")).run().done();
    assert_eq!(host.leftovers(), Vec::<String>::new());
}

#[test]
fn a_route_of_a_family_that_the_pod_lacks_is_in_neither_result_nor_kernel() {
    let Some(host) = Host::new("a_route_of_a_family_that_the_pod_lacks", Families::V4) else { return };
    let pod = host.sandbox("p");
    let wishes = json!({"routes": [{"dst": "10.0.0.0/8"}, {"dst": "fd00::/8"}]});
    let result = host.call("ADD", &pod).with("podway", wishes.clone()).run().result();
    assert_eq!(result["routes"], json!([{"dst": "10.0.0.0/8", "gw": "169.254.1.1"}]));
    let routes = Rtnl::open_in(&pod.net).unwrap().routes(RouteFilter::default()).unwrap();
    assert!(!routes.iter().any(|route| route.destination.to_string() == "fd00::/8"));
    host.call("CHECK", &pod).with("podway", wishes).with("prevResult", result).run().done();
}

#[test]
fn a_result_of_version_1_1_has_what_only_that_version_has_and_older_ones_do_not() {
    let Some(host) = Host::new("a_result_of_version_1_1_has_what_only_it_has", Families::Dual) else {
        return;
    };
    let pod = host.sandbox("p");
    let wishes = json!({"routes": [{"dst": "10.0.0.0/8", "mtu": 1300, "priority": 7}]});
    for (version, has) in [("1.1.0", true), ("1.0.0", false), ("0.4.0", false)] {
        let call = host.call("ADD", &pod).with("cniVersion", json!(version));
        let result = call.with("podway", wishes.clone()).run().result();
        assert_eq!(result["interfaces"][1].get("mtu").is_some(), has, "{version}: {result}");
        assert_eq!(result["routes"][0].get("priority").is_some(), has, "{version}: {result}");
        // Whatever the result can say, the kernel has it.
        let routes = Rtnl::open_in(&pod.net).unwrap().routes(RouteFilter::default()).unwrap();
        let ten = routes.iter().find(|route| route.destination.to_string() == "10.0.0.0/8").unwrap();
        assert_eq!((ten.mtu, ten.metric), (Some(1300), 7), "{version}");
        host.del(&pod);
    }
}
