//! `host-local`: leases addresses of ranges, one file for each address, below a folder for each network.
//!
//! | file in `<dataDir>/<network>/` | what |
//! |---|---|
//! | `10.0.0.5` | container id, CR LF, interface name |
//! | `last_reserved_ip.0` | the address that was leased last from the first range set |
//! | `lock` | locked (flock) for as long as somebody looks or writes |
//!
//! Where upstream's leaves things undone: an attachment gets one address of each range set, whatever it asks for; of
//! several addresses asked for, the first in the list counts; a file that a killed ADD left empty is nobody's; DEL
//! reads folder and network name of the configuration and nothing else; an ADD that fails leaves no address leased.

pub mod ranges;
mod store;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use podway_ipam::Attachment;
use podway_model::mistakes::Mistakes;
use serde_json::{Map, Value, json};

use crate::conf::Network;
use crate::env::Target;
use crate::error::{CniError, Code};
use crate::version::SpecVersion;
use ranges::{RangeSet, SOURCE, parse_address};
use store::{Holder, Store};

const DEFAULT_DIR: &str = "/var/lib/cni/networks";

/// What ADD, CHECK and STATUS need of the configuration.
#[derive(Debug)]
struct Conf {
    sets: Vec<RangeSet>,
    /// Addresses asked for, in the order in which they are tried.
    asked: Vec<IpAddr>,
    routes: Vec<Value>,
    resolv_conf: Option<PathBuf>,
}

fn ipam(network: &Network) -> Result<&Map<String, Value>, CniError> {
    match network.key("ipam") {
        Some(Value::Object(ipam)) => Ok(ipam),
        other => {
            let mut mistakes = Mistakes::default();
            mistakes.add(SOURCE, "ipam", other.unwrap_or(&Value::Null), "an object");
            Err(CniError::config(&mistakes))
        }
    }
}

/// The folder of a network. DEL takes what it can get: without a folder of its own, the default.
fn folder(network: &Network) -> PathBuf {
    let own = network.key("ipam").and_then(|ipam| ipam.get("dataDir")).and_then(Value::as_str);
    Path::new(own.filter(|dir| !dir.is_empty()).unwrap_or(DEFAULT_DIR)).join(network.name.as_str())
}

/// A list that may be missing.
fn list<'a>(value: Option<&'a Value>, field: &str, mistakes: &mut Mistakes) -> &'a [Value] {
    match value {
        None | Some(Value::Null) => &[],
        Some(Value::Array(list)) => list,
        Some(other) => {
            mistakes.add(SOURCE, field, other, "a list");
            &[]
        }
    }
}

fn read(network: &Network, from_args: &[IpAddr]) -> Result<Conf, CniError> {
    let ipam = ipam(network)?;
    let mut mistakes = Mistakes::default();
    let mut sets = Vec::new();
    if let Some(list) = network.runtime("ipRanges") {
        sets.extend(ranges::parse_sets(list, "runtimeConfig.ipRanges", &mut mistakes));
    }
    // A single range beside the list, as configurations had it before there was a list.
    if ipam.get("subnet").is_some_and(|subnet| !subnet.is_null()) {
        sets.extend(ranges::parse_set(&json!([ipam]), "ipam", &mut mistakes));
    }
    if let Some(list) = ipam.get("ranges").filter(|list| !list.is_null()) {
        sets.extend(ranges::parse_sets(list, "ipam.ranges", &mut mistakes));
    }
    if sets.is_empty() && mistakes.is_empty() {
        mistakes.add(SOURCE, "ipam.ranges", "nothing", "at least one range set");
    }
    ranges::refuse_overlaps(&sets, &mut mistakes);
    let mut asked = from_args.to_vec();
    let of_args = network.key("args").and_then(|args| args.get("cni")).and_then(|cni| cni.get("ips"));
    for (field, ips) in [("args.cni.ips", of_args), ("runtimeConfig.ips", network.runtime("ips"))] {
        for (i, item) in list(ips, field, &mut mistakes).iter().enumerate() {
            match parse_address(item) {
                Some(ip) if asked.contains(&ip) => {}
                Some(ip) => asked.push(ip),
                None => {
                    mistakes.add(SOURCE, format!("{field}[{i}]"), item, "an address, 10.0.0.5 or 10.0.0.5/24")
                }
            }
        }
    }
    let mut routes = Vec::new();
    for (i, route) in list(ipam.get("routes"), "ipam.routes", &mut mistakes).iter().enumerate() {
        let dst = route.get("dst").and_then(Value::as_str).and_then(|dst| dst.parse::<ipnet::IpNet>().ok());
        if dst.is_none() {
            mistakes.add(SOURCE, format!("ipam.routes[{i}].dst"), route, "a prefix");
        }
        routes.push(route.clone());
    }
    let mut path = |key: &str| match ipam.get(key) {
        None | Some(Value::Null) => None,
        Some(Value::String(path)) => Some(path).filter(|path| !path.is_empty()),
        Some(other) => {
            mistakes.add(SOURCE, format!("ipam.{key}"), other, "a path");
            None
        }
    };
    // `folder` reads it: DEL takes what it can get, the other verbs refuse what is no path.
    let _ = path("dataDir");
    let resolv_conf = path("resolvConf").map(PathBuf::from);
    let conf = Conf { sets, asked, routes, resolv_conf };
    if mistakes.is_empty() { Ok(conf) } else { Err(CniError::config(&mistakes)) }
}

pub(super) fn add(network: &Network, target: &Target) -> Result<Value, CniError> {
    let conf = read(network, &target.ips)?;
    let dns = conf.resolv_conf.as_deref().map(resolv_conf).transpose()?.unwrap_or_default();
    let store = Store::open(&folder(network))?;
    let mut leased: Vec<IpAddr> = Vec::new();
    let ips = match lease_all(&store, &conf, &target.attachment, &mut leased) {
        Ok(ips) => ips,
        Err(error) => {
            return Err(leased.iter().fold(error, |error, ip| match store.free(*ip) {
                Ok(()) => error,
                Err(undo) => error.with(format_args!("and undoing it failed: {undo}")),
            }));
        }
    };
    let ips: Vec<Value> = ips
        .into_iter()
        .map(|(address, gateway)| {
            let mut ip = json!({"address": address.to_string(), "gateway": gateway.to_string()});
            if network.version < SpecVersion::V100 {
                ip["version"] = if address.addr().is_ipv4() { "4" } else { "6" }.into();
            }
            ip
        })
        .collect();
    let mut result = json!({"cniVersion": network.version.as_str(), "ips": ips, "dns": dns});
    if !conf.routes.is_empty() {
        result["routes"] = conf.routes.into();
    }
    Ok(result)
}

type Address = (ipnet::IpNet, IpAddr);

/// One address of each range set. `leased` holds what was leased, also where it ends in an error.
fn lease_all(
    store: &Store,
    conf: &Conf,
    attachment: &Attachment,
    leased: &mut Vec<IpAddr>,
) -> Result<Vec<Address>, CniError> {
    let mut asked = conf.asked.clone();
    let held = store.held()?;
    let mut ips = Vec::new();
    for (i, set) in conf.sets.iter().enumerate() {
        if let Some((ip, _)) = held.iter().find(|(ip, holder)| holder.is(attachment) && set.holds(**ip)) {
            let message =
                format!("{ip} of range set {i} is leased to {attachment} already; one ADD, one address");
            return Err(CniError::new(Code::Config, message));
        }
        let ip = match asked.iter().position(|ip| set.holds(*ip)) {
            Some(at) => {
                let ip = asked.remove(at);
                let gateway = set.of(ip).map(|range| range.gateway);
                if gateway == Some(ip) {
                    return Err(CniError::new(
                        Code::Config,
                        format!("requested address {ip} is the gateway"),
                    ));
                }
                if let Some(holder) = held.get(&ip) {
                    let message = format!("requested address {ip} is leased to {holder}");
                    return Err(CniError::new(Code::TryAgain, message));
                }
                ip
            }
            None => set.next_free(store.last(i), |ip| held.contains_key(&ip)).ok_or_else(|| {
                CniError::new(Code::TryAgain, format!("no address is free in range set {i}: {set}"))
            })?,
        };
        leased.push(ip);
        store.lease(ip, attachment, i)?;
        let range = set.of(ip).expect("the address was chosen from this set");
        ips.push((range.address(ip), range.gateway));
    }
    if !asked.is_empty() {
        let asked: Vec<String> = asked.iter().map(IpAddr::to_string).collect();
        let message =
            format!("requested addresses that lie in no range, or in one of another: {}", asked.join(", "));
        return Err(CniError::new(Code::Config, message));
    }
    Ok(ips)
}

pub(super) fn del(network: &Network, attachment: &Attachment) -> Result<(), CniError> {
    let Some(store) = Store::open_if_there(&folder(network))? else { return Ok(()) };
    let held = store.held()?;
    let own = |exactly: bool| {
        let of = held
            .iter()
            .filter(move |(_, holder)| holder.ifname.is_some() == exactly && holder.is(attachment));
        of.map(|(ip, _)| *ip).collect::<Vec<_>>()
    };
    // Files of old versions hold the container's id alone: they go where there is no newer one.
    let doomed = Some(own(true)).filter(|own| !own.is_empty()).unwrap_or_else(|| own(false));
    doomed.into_iter().try_for_each(|ip| store.free(ip))
}

pub(super) fn check(network: &Network, target: &Target) -> Result<(), CniError> {
    let conf = read(network, &[])?;
    let damaged = |message: String| Err(CniError::new(Code::Damaged, message));
    let Some(store) = Store::open_if_there(&folder(network))? else {
        return damaged(format!("{}: is missing", folder(network).display()));
    };
    let held = store.held()?;
    let own: BTreeSet<IpAddr> =
        held.iter().filter(|(_, holder)| holder.is(&target.attachment)).map(|(ip, _)| *ip).collect();
    if own.is_empty() {
        return damaged(format!("no address is leased to {}", target.attachment));
    }
    let previous = network.key("prevResult").and_then(|result| result.get("ips")).and_then(Value::as_array);
    for ip in previous.into_iter().flatten().filter_map(|ip| parse_address(ip.get("address")?)) {
        if conf.sets.iter().any(|set| set.holds(ip)) && !own.contains(&ip) {
            let holder = held.get(&ip).map_or("nobody".to_owned(), Holder::to_string);
            return damaged(format!("prevResult: {ip} is leased to {holder}, not to {}", target.attachment));
        }
    }
    Ok(())
}

pub(super) fn gc(network: &Network) -> Result<(), CniError> {
    let valid = network.valid_attachments()?;
    let Some(store) = Store::open_if_there(&folder(network))? else { return Ok(()) };
    let mut errors = store.sweep()?;
    for (ip, holder) in store.held()? {
        if !valid.iter().any(|attachment| holder.is(attachment)) {
            errors.extend(store.free(ip).err());
        }
    }
    let mut errors = errors.into_iter();
    errors.next().map_or(Ok(()), |first| Err(errors.fold(first, CniError::with)))
}

pub(super) fn status(network: &Network) -> Result<(), CniError> {
    let conf = read(network, &[])?;
    let unready = |message: String| CniError::new(Code::NotAvailable, message);
    let store = Store::open(&folder(network)).map_err(|error| unready(error.to_string()))?;
    let held = store.held().map_err(|error| unready(error.to_string()))?;
    for (i, set) in conf.sets.iter().enumerate() {
        if set.next_free(None, |ip| held.contains_key(&ip)).is_none() {
            return Err(unready(format!("no address is free in range set {i}: {set}")));
        }
    }
    Ok(())
}

/// The name servers of a `resolv.conf`, as a result's `dns`.
fn resolv_conf(path: &Path) -> Result<Map<String, Value>, CniError> {
    let text =
        std::fs::read_to_string(path).map_err(|e| CniError::io(path, "read the resolver's file", &e))?;
    let mut dns = Map::new();
    for line in text.lines().map(str::trim).filter(|line| !line.starts_with(['#', ';'])) {
        let mut words = line.split_whitespace();
        let (Some(key), rest) = (words.next(), words.collect::<Vec<_>>()) else { continue };
        let Some(first) = rest.first() else { continue };
        let mut extend = |key: &str, more: &[&str]| {
            if let Value::Array(list) = dns.entry(key).or_insert_with(|| json!([])) {
                list.extend(more.iter().map(|word| Value::from(*word)));
            }
        };
        match key {
            "nameserver" => extend("nameservers", &[first]),
            "search" => extend("search", &rest),
            "options" => extend("options", &rest),
            "domain" => drop(dns.insert("domain".to_owned(), (*first).into())),
            _ => {}
        }
    }
    Ok(dns)
}
