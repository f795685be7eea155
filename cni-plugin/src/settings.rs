//! What a network configuration and a pod's annotations may say about one pod's interface and addresses.
//!
//! | wish | sources, the first one that says something wins |
//! |---|---|
//! | Ethernet address | `runtimeConfig.mac`, `args.cni.mac`, `MAC` in `CNI_ARGS`, annotation `hwAddr`, `podway.mac` |
//! | addresses | `runtimeConfig.ips` with `args.cni.ips` and `IP` in `CNI_ARGS`, annotation `ipAddrs` |
//! | pools | annotations `ipv4pools` and `ipv6pools`, the namespace's pools, `podway.pools` |
//!
//! Annotations come through the capability `io.kubernetes.cri.pod-annotations` and are read under two prefixes:
//! `podway.io/`, and the one that Calico's users know, `cni.projectcalico.org/`.

use std::net::IpAddr;

use ipnet::IpNet;
use podway_ipam::Family;
use podway_kern::sysctl::Sysctl;
use podway_model::ids::{IfName, MacAddr, ObjectName};
use podway_model::mistakes::Mistakes;
use podway_model::node_file::NodeFile;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::conf::{SOURCE, kind};

/// The capability by which container runtimes hand annotations on.
pub const ANNOTATIONS: &str = "io.kubernetes.cri.pod-annotations";
const PREFIXES: [&str; 2] = ["podway.io/", "cni.projectcalico.org/"];
/// Stands for the pod's interface in the name of a sysctl.
const IFNAME: &str = "IFNAME";
/// Sysctls that may be set where `podway.sysctlAllow` does not say otherwise: they belong to the pod's namespace.
const ALLOWED: [&str; 8] = [
    "net.ipv4.conf.IFNAME.*",
    "net.ipv6.conf.IFNAME.*",
    "net.ipv4.tcp_*",
    "net.ipv4.ip_forward",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ping_group_range",
    "net.core.somaxconn",
];
/// Most queues of a veth's end.
const MOST_QUEUES: u64 = 256;

/// How a pod's interface shall look.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Settings {
    /// Ethernet address of the pod's end; none: derived from the attachment.
    pub mac: Option<MacAddr>,
    /// Transmit and receive queues of both ends; none: one.
    pub queues: Option<u32>,
    /// Sysctls of the pod's namespace, as their names are written, and their values.
    pub sysctls: Vec<(String, String)>,
    /// Routes through the interface; none: the default route of each family that the pod has.
    pub routes: Option<Vec<PodRoute>>,
}

/// A route of the pod. Its gateway is always the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodRoute {
    /// Destination.
    pub destination: IpNet,
    /// MTU metric.
    pub mtu: Option<u32>,
    /// Advertised maximum segment size.
    pub advmss: Option<u32>,
    /// Metric.
    pub priority: Option<u32>,
    /// Routing table.
    pub table: Option<u32>,
}

impl PodRoute {
    /// A route with a destination only.
    pub fn to(destination: IpNet) -> Self {
        Self { destination, mtu: None, advmss: None, priority: None, table: None }
    }
}

/// What annotations wish.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Annotations {
    /// Ethernet address.
    pub mac: Option<MacAddr>,
    /// Addresses.
    pub ips: Vec<IpAddr>,
    /// IPv4 pools: names or prefixes.
    pub v4_pools: Vec<String>,
    /// IPv6 pools: names or prefixes.
    pub v6_pools: Vec<String>,
    /// Sysctls, as they are written.
    pub sysctls: Vec<(String, String)>,
}

impl Annotations {
    /// Reads the annotations among a runtime's capability values.
    pub fn read(runtime: &Map<String, Value>, mistakes: &mut Mistakes) -> Self {
        let mut wishes = Self::default();
        let all = match runtime.get(ANNOTATIONS) {
            None | Some(Value::Null) => return wishes,
            Some(Value::Object(all)) => all,
            Some(other) => {
                mistakes.add(SOURCE, format!("runtimeConfig.{ANNOTATIONS}"), kind(other), "an object");
                return wishes;
            }
        };
        for (name, value) in all {
            let Some(key) = PREFIXES.iter().find_map(|prefix| name.strip_prefix(prefix)) else { continue };
            let Some(text) = value.as_str().filter(|text| !text.is_empty()) else { continue };
            let field = format!("annotation {name}");
            match key {
                "hwAddr" => wishes.mac = mac(text, &field, mistakes),
                "ipAddrs" => {
                    for item in list(text, &field, mistakes) {
                        match item.parse() {
                            Ok(ip) => wishes.ips.push(ip),
                            Err(_) => mistakes.add(SOURCE, &field, format!("{item:?}"), "an address"),
                        }
                    }
                }
                "ipv4pools" => wishes.v4_pools = list(text, &field, mistakes),
                "ipv6pools" => wishes.v6_pools = list(text, &field, mistakes),
                "sysctls" if name.starts_with(PREFIXES[0]) => {
                    for pair in text.split(',') {
                        match pair.split_once('=') {
                            Some((key, value)) => {
                                wishes.sysctls.push((key.trim().to_owned(), value.trim().to_owned()));
                            }
                            None => mistakes.add(SOURCE, &field, format!("{pair:?}"), "name=value"),
                        }
                    }
                }
                // Others of Calico's are about what we do not do.
                _ => {}
            }
        }
        wishes
    }

    /// The pools that `base` becomes: of a family for which an annotation names pools, those.
    ///
    /// # Errors
    /// The name or prefix that is no pool of this node.
    pub fn pools(&self, base: &[ObjectName], file: &NodeFile) -> Result<Vec<ObjectName>, String> {
        if self.v4_pools.is_empty() && self.v6_pools.is_empty() {
            return Ok(base.to_vec());
        }
        let automatic = podway_model::cluster::Assignment::Automatic;
        let usual = |pool: &&podway_model::node_file::NodePool| {
            if base.is_empty() { pool.assignment == automatic } else { base.contains(&pool.name) }
        };
        let mut pools = Vec::new();
        for (family, named) in [(Family::V4, &self.v4_pools), (Family::V6, &self.v6_pools)] {
            let of_family = || file.pools.iter().filter(|pool| Family::of(pool.cidr.addr()) == family);
            if named.is_empty() {
                pools.extend(of_family().filter(usual).map(|pool| pool.name.clone()));
            }
            for text in named {
                let found = of_family().find(|pool| {
                    pool.name.as_str() == text || text.parse::<IpNet>().is_ok_and(|net| net == pool.cidr)
                });
                pools.push(found.ok_or_else(|| text.clone())?.name.clone());
            }
        }
        Ok(pools)
    }
}

/// Reads what stands under `podway` about the interface. Returns `false` for a key that is none of these.
pub fn read_own(
    key: &str,
    value: &Value,
    settings: &mut Settings,
    allow: &mut Option<Vec<String>>,
    mistakes: &mut Mistakes,
) -> bool {
    let field = format!("podway.{key}");
    match key {
        "mac" => match value.as_str() {
            Some(text) => settings.mac = mac(text, &field, mistakes),
            None => mistakes.add(SOURCE, field, kind(value), "text"),
        },
        "queues" => match value.as_u64().filter(|n| (1..=MOST_QUEUES).contains(n)) {
            Some(queues) => settings.queues = u32::try_from(queues).ok(),
            None => mistakes.add(SOURCE, field, value, format!("a number from 1 to {MOST_QUEUES}")),
        },
        "sysctls" => match value.as_object() {
            Some(all) => {
                for (name, value) in all {
                    match value {
                        Value::String(text) => settings.sysctls.push((name.clone(), text.clone())),
                        Value::Number(number) => settings.sysctls.push((name.clone(), number.to_string())),
                        other => {
                            mistakes.add(SOURCE, format!("{field}.{name}"), kind(other), "text or a number")
                        }
                    }
                }
            }
            None => mistakes.add(SOURCE, field, kind(value), "an object"),
        },
        "sysctlAllow" => {
            let texts = value.as_array().map(|list| list.iter().map(|item| item.as_str().map(str::to_owned)));
            match texts.and_then(|texts| texts.collect::<Option<Vec<_>>>()) {
                Some(patterns) => *allow = Some(patterns),
                None => mistakes.add(SOURCE, field, value, "a list of names, which may end in *"),
            }
        }
        "routes" => settings.routes = Some(routes(value, &field, mistakes)),
        _ => return false,
    }
    true
}

/// Checks every sysctl against what is allowed; those of annotations need a list that was written for them.
pub fn check_sysctls(
    settings: &mut Settings,
    annotations: &Annotations,
    allow: Option<&[String]>,
    mistakes: &mut Mistakes,
) {
    let usual = ALLOWED.map(str::to_owned);
    let patterns = allow.unwrap_or(&usual);
    let matches = |name: &str, pattern: &String| match pattern.strip_suffix('*') {
        Some(start) => name.starts_with(start),
        None => name == pattern,
    };
    for (name, value) in &settings.sysctls {
        if !patterns.iter().any(|pattern| matches(name, pattern)) {
            let expected = format!("one that is allowed ({})", patterns.join(", "));
            mistakes.add(SOURCE, format!("podway.sysctls.{name}"), value, expected);
        }
    }
    for (name, value) in &annotations.sysctls {
        if allow.is_some_and(|patterns| patterns.iter().any(|pattern| matches(name, pattern))) {
            settings.sysctls.push((name.clone(), value.clone()));
        } else {
            let expected = "one that podway.sysctlAllow lets pods set";
            mistakes.add(SOURCE, format!("annotation podway.io/sysctls: {name}"), value, expected);
        }
    }
}

/// The sysctl behind a name, `IFNAME` replaced by the pod's interface.
pub fn sysctl(name: &str, ifname: &IfName) -> Sysctl {
    // An interface name may hold dots, so it is put in place after the name was taken apart.
    let separator = if name.contains('/') { '/' } else { '.' };
    let path: Vec<&str> =
        name.split(separator).map(|part| if part == IFNAME { ifname.as_str() } else { part }).collect();
    Sysctl::new(&path.join("/"))
}

/// Reads an Ethernet address of one interface: unicast, and not all zeros.
pub fn mac(text: &str, field: &str, mistakes: &mut Mistakes) -> Option<MacAddr> {
    let mac = text.parse::<MacAddr>().ok().filter(|mac| mac.0[0] & 1 == 0 && mac.0 != [0; 6]);
    if mac.is_none() {
        mistakes.add(SOURCE, field, format!("{text:?}"), "a unicast MAC address, 02:00:5e:10:00:01");
    }
    mac
}

/// Ranges of the capability `ipRanges`: a list of sets, each a list of ranges.
pub fn ranges(value: &Value, mistakes: &mut Mistakes) -> Vec<(IpAddr, IpAddr)> {
    const FIELD: &str = "runtimeConfig.ipRanges";
    let mut all = Vec::new();
    let Some(sets) = value.as_array() else {
        mistakes.add(SOURCE, FIELD, kind(value), "a list of lists of ranges");
        return all;
    };
    for (i, set) in sets.iter().enumerate() {
        let Some(set) = set.as_array() else {
            mistakes.add(SOURCE, format!("{FIELD}[{i}]"), kind(set), "a list of ranges");
            continue;
        };
        for (j, range) in set.iter().enumerate() {
            match one_range(range) {
                Some(range) => all.push(range),
                None => mistakes.add(
                    SOURCE,
                    format!("{FIELD}[{i}][{j}]"),
                    range,
                    "a subnet, and rangeStart and rangeEnd in it, in this order",
                ),
            }
        }
    }
    all
}

fn one_range(range: &Value) -> Option<(IpAddr, IpAddr)> {
    let subnet: IpNet = range.get("subnet")?.as_str()?.parse().ok()?;
    let bound = |key: &str, otherwise: IpAddr| match range.get(key) {
        None => Some(otherwise),
        Some(text) => text.as_str()?.parse().ok().filter(|address| subnet.contains(address)),
    };
    let first = bound("rangeStart", subnet.network())?;
    let last = bound("rangeEnd", subnet.broadcast())?;
    (first <= last).then_some((first, last))
}

/// Reads routes: of `podway.routes`, or of an address plugin's result.
pub fn routes(value: &Value, field: &str, mistakes: &mut Mistakes) -> Vec<PodRoute> {
    let Some(list) = value.as_array() else {
        mistakes.add(SOURCE, field, kind(value), "a list of routes");
        return Vec::new();
    };
    let mut routes = Vec::with_capacity(list.len());
    for (i, item) in list.iter().enumerate() {
        let field = format!("{field}[{i}]");
        let Some(item) = item.as_object() else {
            mistakes.add(SOURCE, field, kind(item), "an object");
            continue;
        };
        let destination = item.get("dst").and_then(Value::as_str).and_then(|text| text.parse::<IpNet>().ok());
        let Some(destination) = destination else {
            let found = item.get("dst").unwrap_or(&Value::Null);
            mistakes.add(SOURCE, format!("{field}.dst"), found, "a prefix, 10.0.0.0/8");
            continue;
        };
        let mut route = PodRoute::to(destination.trunc());
        for (key, value) in item {
            let number = value.as_u64().and_then(|n| u32::try_from(n).ok()).filter(|n| *n > 0);
            let slot = match key.as_str() {
                "mtu" => &mut route.mtu,
                "advmss" => &mut route.advmss,
                "priority" => &mut route.priority,
                "table" => &mut route.table,
                _ => {
                    if key != "dst" {
                        let expected = "one of dst, mtu, advmss, priority, table (the gateway is the node)";
                        mistakes.add(SOURCE, format!("{field}.{key}"), "this key", expected);
                    }
                    continue;
                }
            };
            *slot = number;
            if number.is_none() {
                mistakes.add(SOURCE, format!("{field}.{key}"), value, "a number above 0");
            }
        }
        routes.push(route);
    }
    routes
}

/// A list in an annotation is JSON: `["a", "b"]`.
fn list(text: &str, field: &str, mistakes: &mut Mistakes) -> Vec<String> {
    serde_json::from_str(text).unwrap_or_else(|_| {
        mistakes.add(SOURCE, field, format!("{text:?}"), "a list, [\"…\"]");
        Vec::new()
    })
}
