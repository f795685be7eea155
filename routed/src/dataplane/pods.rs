//! Repairs the CNI plugin's pod routes (protocol 113) from endpoint records. Adds what is missing; sweeps
//! nothing: a route without a record belongs to an ADD or DEL that is at work.
//!
//! A route is repaired only where the pod's veth is there under the alias of the record and up, so a record that
//! outlived its pod changes nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv6Addr};
use std::path::Path;

use ipnet::IpNet;
use podway_kern::KernelError;
use podway_kern::fib::Kernel;
use podway_kern::rtnl::{Request, Route, RouteKey, RouteKind, TABLE_LOCAL};
use podway_model::endpoint::EndpointRecord;
use podway_model::ids::BootId;
use podway_model::names::{POD_ROUTE_PROTOCOL, host_ifalias};
use podway_model::{accepts_schema, names};

/// Reads the endpoint records of this boot. Unreadable ones are told in words; a record that is being replaced
/// or removed just now is passed over.
pub(crate) fn read_records(folder: &Path) -> (Vec<EndpointRecord>, Vec<String>) {
    let (mut records, mut problems) = (Vec::new(), Vec::new());
    let boot =
        std::fs::read_to_string(names::BOOT_ID_FILE).ok().and_then(|id| id.trim().parse::<BootId>().ok());
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        // Before the first pod of a boot.
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return (records, problems),
        Err(e) => return (records, vec![format!("read {}: {e}", folder.display())]),
    };
    for path in entries.filter_map(Result::ok).map(|entry| entry.path()) {
        if path.extension().is_none_or(|extension| extension != "json") {
            continue;
        }
        let text = match std::fs::read(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => continue,
            Err(e) => {
                problems.push(format!("read {}: {e}", path.display()));
                continue;
            }
        };
        match serde_json::from_slice::<EndpointRecord>(&text) {
            Ok(record) if !accepts_schema(record.schema) => {
                problems.push(format!("{}: schema {} is not understood", path.display(), record.schema));
            }
            Ok(record) if Some(&record.boot_id) == boot.as_ref() => records.push(record),
            Ok(_) => {}
            Err(e) => problems.push(format!("{}: {e}", path.display())),
        }
    }
    (records, problems)
}

/// Adds the routes that are missing. Returns how many, and what could not be added, in words.
pub(crate) fn repair(
    kernel: &mut impl Kernel,
    records: &[EndpointRecord],
) -> Result<(usize, Vec<String>), KernelError> {
    if records.is_empty() {
        return Ok((0, Vec::new()));
    }
    let links = kernel.links()?;
    let by_name: BTreeMap<&str, _> = links.iter().map(|link| (link.name.as_str(), link)).collect();
    let there: BTreeSet<RouteKey> = kernel.routes(POD_ROUTE_PROTOCOL)?.iter().map(Route::key).collect();
    let mut requests = Vec::new();
    for record in records {
        let alias = host_ifalias(record.container_id.as_str(), record.ifname.as_str());
        let Some(link) = by_name.get(record.host_ifname.as_str()) else { continue };
        if link.alias.as_deref() != Some(alias.as_str()) || !link.up {
            continue;
        }
        for address in &record.addresses {
            let route = Route {
                interface: Some(link.index),
                scope_link: address.is_ipv4(),
                ..Route::to((*address).into(), POD_ROUTE_PROTOCOL)
            };
            if !there.contains(&route.key()) {
                requests.push(Request::AddRoute(route));
            }
        }
        // A loopback host port: several interfaces have such a route, each with a metric of its own.
        if podway_nft::tables::serves_loopback(record, false) {
            let loopback = IpNet::from(IpAddr::from(Ipv6Addr::LOCALHOST));
            let route = Route {
                kind: RouteKind::Local,
                table: TABLE_LOCAL,
                interface: Some(link.index),
                metric: link.index,
                ..Route::to(loopback, POD_ROUTE_PROTOCOL)
            };
            if !there.contains(&route.key()) {
                requests.push(Request::AddRoute(route));
            }
        }
    }
    let (mut added, mut problems) = (0, Vec::new());
    for result in kernel.apply(&requests)? {
        match result {
            Ok(()) => added += 1,
            // The plugin was faster, or the pod is gone.
            Err(e) if e.is_exists() || e.is_missing() => {}
            Err(e) => problems.push(e.to_string()),
        }
    }
    Ok((added, problems))
}
