//! The configuration file of a node: text in, [`NodeConfig`] out. Keys stand in [`crate::config`].

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use super::cluster_kinds::asn;
use super::labels;
use super::node::parse_text;
use super::reader::{Field, Map, Notes};
use crate::config::{
    DaemonSection, EtcdConfig, FileConfig, LogConfig, LogFormat, NamePattern, NodeAddresses, NodeConfig,
    NodeSection, StoreConfig,
};
use crate::mistakes::Mistakes;

/// Reads the file. An empty one gives every default. `source` names it in messages.
///
/// # Errors
/// Every mistake, with its line: unknown keys, wrong types, values that cannot be.
pub fn parse_config(source: &str, text: &str) -> Result<NodeConfig, Mistakes> {
    let notes = Notes::new(source);
    let config = match parse_text(text) {
        Err(error) => {
            notes.add(error.line, "", "", format!("YAML expected: {}", error.message));
            None
        }
        Ok(nodes) => match nodes.as_slice() {
            [] => Some(NodeConfig::default()),
            [node] => read(&Field::document(&notes, node)),
            [_, second, ..] => {
                notes.add(Some(second.line), "", "a second document", "one");
                None
            }
        },
    };
    notes.finish().into_result(config.unwrap_or_default())
}

fn read(field: &Field<'_>) -> Option<NodeConfig> {
    let map = field.map("a mapping with node, store, log, routed, policyAgent")?;
    let node = map.or("node", NodeSection::default(), node_section);
    let store = map.or("store", StoreConfig::default(), store_config);
    let log = map.or("log", LogConfig::default(), log_config);
    let routed = map.or("routed", DaemonSection::default(), daemon_section);
    let policy_agent = map.or("policyAgent", DaemonSection::default(), daemon_section);
    let listens = [&routed, &policy_agent].map(|section| section.as_ref().and_then(|s| s.health_listen));
    if let [Some(first), Some(second)] = listens
        && first == second
        && first.port() != 0
    {
        field
            .note(format!("routed.healthListen and policyAgent.healthListen {first}"), "two different ports");
    }
    map.refuse_unknown();
    Some(NodeConfig { node: node?, store: store?, log: log?, routed: routed?, policy_agent: policy_agent? })
}

fn node_addresses(field: &Field<'_>, map: &Map<'_>) -> Option<NodeAddresses> {
    let these = map.maybe("addresses", addresses);
    let environment = map.maybe("addressesFromEnvironment", |f| {
        let expected = "the name of an environment variable (letters, digits, '_')";
        let text = f.text(expected)?;
        let is_name = !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
        if !is_name {
            f.wrong(expected);
        }
        is_name.then(|| text.to_owned())
    });
    let interface = map.maybe("interface", |f| f.parse("an interface name (at most 15 characters)"));
    let pattern = map.maybe("interfacePattern", |f| {
        let expected = "a regular expression for names of interfaces";
        let parsed = f.text(expected)?.parse::<NamePattern>();
        parsed.map_err(|error| f.wrong(format!("{expected} ({error})"))).ok()
    });
    let reach = map.maybe("canReach", addresses);
    let ways = [
        ("addresses", these?.filter(|these| !these.is_empty()).map(NodeAddresses::These)),
        ("addressesFromEnvironment", environment?.map(NodeAddresses::Environment)),
        ("interface", interface?.map(NodeAddresses::Interface)),
        ("interfacePattern", pattern?.map(NodeAddresses::Pattern)),
        ("canReach", reach?.filter(|these| !these.is_empty()).map(NodeAddresses::CanReach)),
    ];
    let keys = ways.each_ref().map(|(key, _)| *key).join(", ");
    let given: Vec<(&str, NodeAddresses)> =
        ways.into_iter().filter_map(|(key, way)| Some((key, way?))).collect();
    if given.len() > 1 {
        let given: Vec<&str> = given.iter().map(|(key, _)| *key).collect();
        field.note(given.join(" and "), format!("at most one of {keys}"));
        return None;
    }
    Some(given.into_iter().next().map(|(_, way)| way).unwrap_or_default())
}

fn node_section(field: &Field<'_>) -> Option<NodeSection> {
    let map = field.map("a mapping")?;
    let name = map.maybe("name", |f| f.parse("a node name (lower-case letters, digits, '-' and '.')"));
    let addresses = node_addresses(field, &map);
    let labels = map.or("labels", BTreeMap::new(), labels::read);
    let asn = map.maybe("asn", asn);
    map.refuse_unknown();
    Some(NodeSection { name: name?, addresses: addresses?, labels: labels?, asn: asn? })
}

fn addresses(field: &Field<'_>) -> Option<Vec<IpAddr>> {
    let addresses: Vec<IpAddr> = field.list("a list of addresses", |item| {
        let address: IpAddr = item.parse("an IPv4 or IPv6 address")?;
        let usable = !(address.is_unspecified() || address.is_multicast() || address.is_loopback());
        if !usable {
            item.wrong("an address by which other nodes reach this one");
        }
        usable.then_some(address)
    })?;
    let v4 = addresses.iter().filter(|address| address.is_ipv4()).count();
    if v4 > 1 || addresses.len() - v4 > 1 {
        field.note(format!("{} addresses", addresses.len()), "at most one IPv4 and one IPv6 address");
        return None;
    }
    Some(addresses)
}

fn store_config(field: &Field<'_>) -> Option<StoreConfig> {
    let map = field.map("a mapping with etcd or file")?;
    let etcd = map.maybe("etcd", etcd_config);
    let file = map.maybe("file", file_config);
    map.refuse_unknown();
    match (etcd?, file?) {
        (Some(etcd), None) => Some(StoreConfig::Etcd(etcd)),
        (None, Some(file)) => Some(StoreConfig::File(file)),
        (Some(_), Some(_)) => {
            field.note("etcd and file", "one of them");
            None
        }
        (None, None) => {
            field.note("neither etcd nor file", "one of them");
            None
        }
    }
}

fn etcd_config(field: &Field<'_>) -> Option<EtcdConfig> {
    let default = EtcdConfig::default();
    let map = field.map("a mapping with endpoints")?;
    let endpoints = map.or("endpoints", default.endpoints, |f| {
        let endpoints = f.list("a list of URLs", endpoint)?;
        if endpoints.is_empty() {
            f.note("no URL", "at least one");
        }
        Some(endpoints)
    });
    let prefix = map.or("prefix", default.prefix, |f| {
        let expected = "a prefix of keys that begins and ends with '/'";
        let text = f.text(expected)?;
        let good = text.starts_with('/') && text.ends_with('/');
        if !good {
            f.wrong(expected);
        }
        good.then(|| text.to_owned())
    });
    let ca_file = map.maybe("caFile", path);
    let cert_file = map.maybe("certFile", path);
    let key_file = map.maybe("keyFile", path);
    let username = map.maybe("username", |f| f.text("a user name").map(str::to_owned));
    let password_file = map.maybe("passwordFile", path);
    let lease_seconds = map.or("leaseSeconds", default.lease_seconds, |f| {
        f.integer_in(5..=3600, "5 to 3600 seconds").and_then(|n| u32::try_from(n).ok())
    });
    both_or_none(&map, "certFile", "keyFile");
    both_or_none(&map, "username", "passwordFile");
    map.refuse_unknown();
    Some(EtcdConfig {
        endpoints: endpoints?,
        prefix: prefix?,
        ca_file: ca_file?,
        cert_file: cert_file?,
        key_file: key_file?,
        username: username?,
        password_file: password_file?,
        lease_seconds: lease_seconds?,
    })
}

/// One without the other cannot work.
fn both_or_none(map: &Map<'_>, first: &'static str, second: &'static str) {
    let (present, missing) = match (map.has(first), map.has(second)) {
        (true, false) => (first, second),
        (false, true) => (second, first),
        _ => return,
    };
    map.field().note(format!("{present} without {missing}"), "both or none");
}

/// `http://host:port` or `https://host:port`.
fn endpoint(field: &Field<'_>) -> Option<String> {
    let expected = "a URL (https://10.0.0.1:2379)";
    let text = field.text(expected)?;
    let host = text.strip_prefix("http://").or_else(|| text.strip_prefix("https://"));
    let good = host.is_some_and(|host| !host.is_empty() && !host.contains(char::is_whitespace));
    if !good {
        field.wrong(expected);
    }
    good.then(|| text.to_owned())
}

fn file_config(field: &Field<'_>) -> Option<FileConfig> {
    let map = field.map("a mapping with a path")?;
    let path = map.required("path", "a file or folder").and_then(|f| path(&f));
    map.refuse_unknown();
    Some(FileConfig { path: path? })
}

fn path(field: &Field<'_>) -> Option<PathBuf> {
    let expected = "an absolute path";
    let path = PathBuf::from(field.text(expected)?);
    if !path.is_absolute() {
        field.wrong(expected);
        return None;
    }
    Some(path)
}

fn log_config(field: &Field<'_>) -> Option<LogConfig> {
    let default = LogConfig::default();
    let map = field.map("a mapping with level and format")?;
    let level = map.or("level", default.level, |f| {
        f.text("error, warn, info, debug, trace, or a filter").map(str::to_owned)
    });
    let format = map
        .or("format", default.format, |f| f.one_of(&[("text", LogFormat::Text), ("json", LogFormat::Json)]));
    map.refuse_unknown();
    Some(LogConfig { level: level?, format: format? })
}

fn daemon_section(field: &Field<'_>) -> Option<DaemonSection> {
    let map = field.map("a mapping with healthListen")?;
    let health_listen = map.maybe("healthListen", |f| {
        f.parse::<SocketAddr>("an address and a port (127.0.0.1:9121, [::1]:9121)")
    });
    map.refuse_unknown();
    Some(DaemonSection { health_listen: health_listen? })
}
