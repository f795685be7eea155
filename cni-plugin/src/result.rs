//! The result of ADD in the form of each version (CNI SPEC 1.1.0, section 5, "Add Success", and its forerunners).
//!
//! | version | `ips[].version` | `interfaces[].mtu`, `routes[].mtu` and so on |
//! |---|---|---|
//! | 0.3.0, 0.3.1, 0.4.0 | yes | no |
//! | 1.0.0 | no | no |
//! | 1.1.0 | no | yes |
//!
//! In a chain, what the plugin before us answered comes first and ours is added.

use std::net::IpAddr;

use ipnet::IpNet;
use podway_ipam::Family;
use serde_json::{Map, Value, json};

use crate::settings::PodRoute;
use crate::version::SpecVersion;
use crate::wiring::{Wiring, gateway_of};

/// The result of wiring a pod.
pub fn form(
    wiring: &Wiring,
    netns: &str,
    dns: &Map<String, Value>,
    version: SpecVersion,
    previous: Option<&Map<String, Value>>,
) -> Value {
    let mut result = previous.cloned().unwrap_or_default();
    result.insert("cniVersion".to_owned(), version.as_str().into());
    let first = result.get("interfaces").and_then(Value::as_array).map_or(0, Vec::len);
    let pod = first + 1;
    let interfaces = [
        interface(&wiring.host_name, &wiring.host_mac().to_string(), wiring, None, version),
        interface(wiring.ifname.as_str(), &wiring.pod_mac.to_string(), wiring, Some(netns), version),
    ];
    extend(&mut result, "interfaces", interfaces);
    extend(&mut result, "ips", wiring.addresses.iter().map(|address| ip(wiring, *address, pod, version)));
    extend(&mut result, "routes", wiring.routes().into_iter().map(|wanted| route(&wanted, version)));
    let all = result.entry("dns").or_insert_with(|| json!({}));
    if let Value::Object(all) = all {
        all.extend(dns.clone());
    }
    Value::Object(result)
}

/// Addresses that a result gives to interface `ifname` of a sandbox, for CHECK. `None` if the result does not
/// have that interface.
pub fn addresses_of(result: &Map<String, Value>, ifname: &str) -> Option<Vec<IpAddr>> {
    let interfaces = result.get("interfaces")?.as_array()?;
    let text = |value: &Value, key: &str| value.get(key).and_then(Value::as_str).unwrap_or("").to_owned();
    let index =
        interfaces.iter().position(|i| text(i, "name") == ifname && !text(i, "sandbox").is_empty())?;
    let ips = result.get("ips")?.as_array()?.iter();
    let ours = ips.filter(|ip| ip.get("interface").and_then(Value::as_u64) == u64::try_from(index).ok());
    Some(ours.filter_map(|ip| text(ip, "address").parse::<IpNet>().ok()).map(|net| net.addr()).collect())
}

fn extend(result: &mut Map<String, Value>, key: &str, ours: impl IntoIterator<Item = Value>) {
    let list = result.entry(key).or_insert_with(|| json!([]));
    if !list.is_array() {
        *list = json!([]);
    }
    if let Value::Array(list) = list {
        list.extend(ours);
    }
}

fn interface(name: &str, mac: &str, wiring: &Wiring, sandbox: Option<&str>, version: SpecVersion) -> Value {
    let mut interface = json!({ "name": name, "mac": mac });
    if version >= SpecVersion::V110 {
        interface["mtu"] = wiring.mtu.bytes().into();
    }
    if let Some(sandbox) = sandbox {
        interface["sandbox"] = sandbox.into();
    }
    interface
}

fn ip(wiring: &Wiring, address: IpAddr, interface: usize, version: SpecVersion) -> Value {
    let net = IpNet::from(address).to_string();
    let mut ip = json!({ "address": net, "gateway": wiring.gateway_of(address), "interface": interface });
    if version < SpecVersion::V100 {
        ip["version"] = if Family::of(address) == Family::V4 { "4" } else { "6" }.into();
    }
    ip
}

fn route(wanted: &PodRoute, version: SpecVersion) -> Value {
    let mut route = json!({ "dst": wanted.destination, "gw": gateway_of(wanted.destination.addr()) });
    if version >= SpecVersion::V110 {
        let PodRoute { mtu, advmss, priority, table, .. } = wanted;
        for (key, value) in [("mtu", mtu), ("advmss", advmss), ("priority", priority), ("table", table)] {
            if let Some(value) = value {
                route[key] = (*value).into();
            }
        }
    }
    route
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::Settings;

    fn wiring() -> Wiring {
        let attachment = podway_ipam::Attachment::new("c1".parse().unwrap(), "eth0".parse().unwrap());
        let addresses = vec!["10.0.0.5".parse().unwrap(), "fd00::5".parse().unwrap()];
        Wiring::new(&attachment, 1450.try_into().unwrap(), addresses, Settings::default())
    }

    fn golden(version: SpecVersion, mtu: bool, family: bool) -> Value {
        let mut value = json!({
            "cniVersion": version.as_str(),
            "interfaces": [
                {"name": "pwb5aceea42a7", "mac": "02:70:77:00:00:01"},
                {"name": "eth0", "mac": "02:e7:3d:e7:dc:83", "sandbox": "/run/netns/x"}
            ],
            "ips": [
                {"address": "10.0.0.5/32", "gateway": "169.254.1.1", "interface": 1},
                {"address": "fd00::5/128", "gateway": "fe80::1", "interface": 1}
            ],
            "routes": [{"dst": "0.0.0.0/0", "gw": "169.254.1.1"}, {"dst": "::/0", "gw": "fe80::1"}],
            "dns": {"nameservers": ["10.96.0.10"]}
        });
        for i in 0..2 {
            if mtu {
                value["interfaces"][i]["mtu"] = 1450.into();
            }
            if family {
                value["ips"][i]["version"] = ["4", "6"][i].into();
            }
        }
        value
    }

    #[test]
    fn each_version_has_its_form() {
        let dns = json!({"nameservers": ["10.96.0.10"]});
        for (version, mtu, family) in [
            (SpecVersion::V030, false, true),
            (SpecVersion::V031, false, true),
            (SpecVersion::V040, false, true),
            (SpecVersion::V100, false, false),
            (SpecVersion::V110, true, false),
        ] {
            let result = form(&wiring(), "/run/netns/x", dns.as_object().unwrap(), version, None);
            assert_eq!(result, golden(version, mtu, family), "{}", version.as_str());
        }
    }

    #[test]
    fn in_a_chain_ours_is_added() {
        let previous = json!({
            "cniVersion": "1.0.0", "dns": {"domain": "d"}, "routes": [{"dst": "10.9.0.0/16"}], "x": 1,
            "interfaces": [{"name": "a", "sandbox": "/run/netns/x"}],
            "ips": [{"address": "10.9.0.1/16", "interface": 0}]
        });
        let result = form(&wiring(), "/run/netns/x", &Map::new(), SpecVersion::V100, previous.as_object());
        assert_eq!(result["interfaces"].as_array().unwrap().len(), 3);
        assert_eq!(result["interfaces"][0], previous["interfaces"][0]);
        assert_eq!(result["ips"][1]["interface"], 2);
        assert_eq!(result["routes"].as_array().unwrap().len(), 3);
        assert_eq!((&result["dns"]["domain"], &result["x"]), (&json!("d"), &json!(1)));
        let ours = addresses_of(result.as_object().unwrap(), "eth0").unwrap();
        assert_eq!(ours, wiring().addresses);
        assert_eq!(addresses_of(result.as_object().unwrap(), "net1"), None);
    }
}
