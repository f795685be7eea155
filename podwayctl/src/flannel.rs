//! What flannel leaves on a node when its daemon ends, and its removal: `podwayctl node install --replace-flannel`.
//!
//! A device of flannel's has the VXLAN network and port that ours wants, `cni0` has a route to the whole subnet of the
//! node, and routes of the backend host-gw stand where ours belong. Nothing is touched while pods are on `cni0`.
//! Firewall rules of flannel's stay: they do no harm, and the node's next boot has none.

use std::fs;
use std::io;
use std::path::Path;

use ipnet::IpNet;
use podway_kern::rtnl::{Link, LinkRef, Request, Route, RouteFilter, Rtnl, TABLE_MAIN};
use podway_kern::{KernelError, MissingIsFine as _};

use crate::outcome::Failure;

/// What flannel tells the CNI plugin: its network among it.
const SUBNET_FILE: &str = "/run/flannel/subnet.env";
/// The bridge of flannel's pods, as flannel's network configuration names it.
const BRIDGE: &str = "cni0";
/// Protocol of routes that a program made without saying who it is (`RTPROT_BOOT`): flannel's.
const PROTOCOL_BOOT: u8 = 3;
/// What is put behind the name of a configuration that is set aside: runtimes do not read such files.
const ASIDE: &str = "replaced-by-podway";

/// Removes devices and routes; answers what was removed.
pub(crate) fn remove_devices() -> Result<Vec<String>, Failure> {
    let networks = match fs::read_to_string(SUBNET_FILE) {
        Ok(text) => networks(&text),
        Err(error) if error.kind() == io::ErrorKind::NotFound => vec![],
        Err(error) => return Err(Failure::Failed(format!("{SUBNET_FILE}: {error}"))),
    };
    let mut rtnl = Rtnl::open().map_err(failed)?;
    let links = rtnl.links().map_err(failed)?;
    let devices = flannels(&links).map_err(Failure::Failed)?;
    let filter = RouteFilter { table: Some(TABLE_MAIN), protocol: Some(PROTOCOL_BOOT) };
    let mut routes = rtnl.routes(filter).map_err(failed)?;
    routes.retain(|route| is_flannels(route, &networks));
    let mut removed = vec![];
    for route in routes {
        removed.push(format!("route to {}", route.destination));
        rtnl.run(Request::DeleteRoute(route)).missing_is_fine().map_err(failed)?;
    }
    for device in devices {
        rtnl.run(Request::DeleteLink(LinkRef::Index(device.index))).missing_is_fine().map_err(failed)?;
        removed.push(format!("device {}", device.name));
    }
    Ok(removed)
}

fn failed(error: KernelError) -> Failure {
    Failure::Failed(error.to_string())
}

/// Flannel's networks, as its file for the CNI plugin names them.
fn networks(text: &str) -> Vec<IpNet> {
    let value = |line: &str| {
        let value =
            line.strip_prefix("FLANNEL_NETWORK=").or_else(|| line.strip_prefix("FLANNEL_IPV6_NETWORK="))?;
        value.trim().parse().ok()
    };
    text.lines().filter_map(value).collect()
}

/// Devices of flannel's; an error that names the pods on its bridge.
fn flannels(links: &[Link]) -> Result<Vec<&Link>, String> {
    let is_numbered = |name: &str, before: &str| {
        name.strip_prefix(before)
            .is_some_and(|rest| !rest.is_empty() && rest.bytes().all(|b| b.is_ascii_digit()))
    };
    let is_tunnel = |link: &Link| {
        let name = link.name.as_str();
        link.vxlan.is_some() && (is_numbered(name, "flannel.") || is_numbered(name, "flannel-v6."))
    };
    let is_bridge = |link: &Link| link.name == BRIDGE && link.kind.as_deref() == Some("bridge");
    if let Some(bridge) = links.iter().find(|link| is_bridge(link)) {
        let ports: Vec<&str> = links
            .iter()
            .filter(|link| link.master == Some(bridge.index))
            .map(|link| link.name.as_str())
            .collect();
        if !ports.is_empty() {
            return Err(format!(
                "{BRIDGE} has pods of flannel's ({}): drain this node first; nothing was changed",
                ports.join(", ")
            ));
        }
    }
    Ok(links.iter().filter(|link| is_tunnel(link) || is_bridge(link)).collect())
}

/// Whether a route is one that flannel's backend host-gw made: to a part of its network, by way of another node.
fn is_flannels(route: &Route, networks: &[IpNet]) -> bool {
    let is_part = |network: &IpNet| {
        network.contains(&route.destination) && network.prefix_len() < route.destination.prefix_len()
    };
    route.gateway.is_some() && networks.iter().any(is_part)
}

/// Renames network configurations of flannel's; answers their names.
pub(crate) fn set_aside(folder: &Path) -> Result<Vec<String>, Failure> {
    let named = |path: &Path, error: io::Error| Failure::Failed(format!("{}: {error}", path.display()));
    let mut aside = vec![];
    for entry in fs::read_dir(folder).map_err(|error| named(folder, error))?.flatten() {
        let path = entry.path();
        let is_read = path.extension().is_some_and(|end| end == "conf" || end == "conflist" || end == "json");
        if is_read && fs::read(&path).is_ok_and(|text| names_flannel(&text)) {
            let mut new = path.clone().into_os_string();
            new.push(format!(".{ASIDE}"));
            fs::rename(&path, new).map_err(|error| named(&path, error))?;
            aside.push(path.display().to_string());
        }
    }
    aside.sort();
    Ok(aside)
}

/// Whether a network configuration has a plugin of type `flannel`.
fn names_flannel(text: &[u8]) -> bool {
    let Ok(value) = serde_json::from_slice::<serde_json::Value>(text) else { return false };
    let is_type = |value: &serde_json::Value| value["type"] == "flannel";
    is_type(&value) || value["plugins"].as_array().is_some_and(|plugins| plugins.iter().any(is_type))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flannels_networks_are_read_from_its_file() {
        let text = "FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=10.5.3.1/24\nFLANNEL_IPV6_NETWORK=fd00:5::/48\nFLANNEL_MTU=1450\n";
        let expected: Vec<IpNet> = ["10.5.0.0/16", "fd00:5::/48"].map(|net| net.parse().unwrap()).into();
        assert_eq!((networks(text), networks("FLANNEL_NETWORK=x")), (expected, vec![]));
    }

    #[test]
    fn only_routes_to_parts_of_flannels_network_by_way_of_a_node_are_flannels() {
        let networks: Vec<IpNet> = vec!["10.5.0.0/16".parse().unwrap()];
        let route = |to: &str, gateway: bool| Route {
            gateway: gateway.then(|| "192.0.2.1".parse().unwrap()),
            ..Route::to(to.parse().unwrap(), PROTOCOL_BOOT)
        };
        for (to, gateway, expected) in [
            ("10.5.3.0/24", true, true),
            ("10.5.3.0/24", false, false),
            ("10.5.0.0/16", true, false),
            ("10.6.3.0/24", true, false),
            ("0.0.0.0/0", true, false),
        ] {
            assert_eq!(is_flannels(&route(to, gateway), &networks), expected, "{to}");
        }
    }

    #[test]
    fn flannels_configuration_is_set_aside_and_no_other_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        fs::write(path("10-flannel.conflist"), r#"{"plugins": [{"type": "flannel"}, {"type": "portmap"}]}"#)
            .unwrap();
        fs::write(path("10-podway.conflist"), r#"{"plugins": [{"type": "podway"}]}"#).unwrap();
        fs::write(path("20-flannel.conflist"), "no JSON").unwrap();
        assert_eq!(set_aside(folder.path()).unwrap(), [path("10-flannel.conflist").display().to_string()]);
        assert!(
            path("10-flannel.conflist.replaced-by-podway").is_file() && path("20-flannel.conflist").is_file()
        );
        assert_eq!(set_aside(folder.path()).unwrap(), Vec::<String>::new());
    }
}
