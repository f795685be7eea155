//! CHECK: is the attachment still what ADD made? Everything that differs is said at once.

use std::collections::BTreeSet;
use std::net::IpAddr;

use podway_kern::KernelError;
use podway_kern::rtnl::{Link, RouteFilter, Rtnl};
use podway_kern::sysctl::Sysctl;
use podway_model::endpoint::EndpointRecord;
use podway_model::names::POD_GROUP;
use serde_json::{Map, Value};

use crate::conf::Network;
use crate::delegate::{Delegate, Mark};
use crate::env::Target;
use crate::error::{CniError, Code};
use crate::node::Node;
use crate::plugins::{bandwidth, ports};
use crate::settings::Settings;
use crate::tables::Tables;
use crate::wiring::Wiring;
use crate::{netns, result, teardown};

/// What differs, in words.
type Differences = Vec<String>;

/// Compares an attachment with what ADD made of it and with the result that it gave.
pub fn check(network: &Network, target: &Target) -> Result<(), CniError> {
    let previous = network.previous()?;
    let conf = network.for_add()?;
    let netns = netns::open(target)?;
    let node = Node::here()?;
    let mut wrong = Differences::new();
    // A pod that was made before addresses came from elsewhere, or after, is what its mark says.
    let mark = node.marks().read(&target.attachment)?;
    let delegated = match &mark {
        Some(mark) => Delegate::find(&mark.plugin)?.run("CHECK", network).err(),
        None => None,
    };
    let record = check_state(&node, network, target, previous, mark.as_ref(), &mut wrong)?;
    if let Some(record) = record {
        let mut settings = Settings { mac: Some(record.mac), ..conf.settings };
        let given = mark.and_then(|mark| mark.given).unwrap_or_default();
        if !given.routes.is_empty() {
            settings.routes.get_or_insert(given.routes);
        }
        let wiring = Wiring::new(&target.attachment, record.mtu, record.addresses.clone(), settings)
            .with_gateways(&given.gateways);
        let mut rtnl = Rtnl::open()?;
        let peer = check_host(&mut rtnl, target, &wiring, &mut wrong)?;
        wrong.extend(ports::differences(&mut rtnl, network, &record, peer.as_ref())?);
        wrong.extend(bandwidth::differences(&mut rtnl, network, &target.attachment, peer.as_ref())?);
        wrong.extend(netns.visit(|| check_pod(&wiring, peer))?);
    }
    if !Tables::look()?.has_guard() {
        wrong.push("nft table inet podway-guard is missing".to_owned());
    }
    if let Some(error) = delegated {
        return Err(wrong.into_iter().fold(error, CniError::with));
    }
    if wrong.is_empty() {
        return Ok(());
    }
    let message = format!("{}: {} differ from what ADD made: {}", target.attachment, wrong.len(), wrong[0]);
    Err(CniError::new(Code::Damaged, message).with(wrong.join("\n")))
}

/// Lease, record and previous result against each other.
fn check_state(
    node: &Node,
    network: &Network,
    target: &Target,
    previous: &Map<String, Value>,
    mark: Option<&Mark>,
    wrong: &mut Differences,
) -> Result<Option<EndpointRecord>, CniError> {
    let lease = node.look_at_leases()?.ledger().lease_of(&target.attachment).cloned();
    let record = match node.records().read(&target.attachment) {
        Ok(record) => record,
        Err(error) => {
            wrong.push(error.message);
            None
        }
    };
    let leased: Option<Vec<IpAddr>> = match mark {
        // The other plugin keeps its own books.
        Some(mark) => mark.given.as_ref().map(|given| given.addresses.clone()),
        None => lease.as_ref().map(|lease| lease.ips().collect()),
    };
    match &lease {
        None if mark.is_some() => {}
        None => wrong.push("address lease is missing".to_owned()),
        Some(lease) if lease.network != network.name => {
            wrong.push(format!("address lease: network {} found, {} expected", lease.network, network.name));
        }
        Some(_) => {}
    }
    match &record {
        None => wrong.push("endpoint record is missing".to_owned()),
        Some(record) => {
            compare("endpoint record: network", &record.network, &network.name, wrong);
            compare("endpoint record: boot id", &record.boot_id, node.boot(), wrong);
            if leased.as_ref().is_some_and(|leased| *leased != record.addresses) {
                wrong.push(format!(
                    "endpoint record: addresses {:?}, leased are {leased:?}",
                    record.addresses
                ));
            }
        }
    }
    match (result::addresses_of(previous, target.attachment.ifname.as_str()), leased) {
        (None, _) => wrong.push(format!("prevResult: interface {} is missing", target.attachment.ifname)),
        (Some(ips), Some(leased)) if ips != leased => {
            wrong.push(format!("prevResult: addresses {ips:?}, leased are {leased:?}"));
        }
        _ => {}
    }
    Ok(record)
}

/// The node's end. Returns it, if it is there.
fn check_host(
    rtnl: &mut Rtnl,
    target: &Target,
    wiring: &Wiring,
    wrong: &mut Differences,
) -> Result<Option<Link>, CniError> {
    let name = wiring.host_name.as_str();
    let Some(link) = rtnl.link(name)? else {
        wrong.push(format!("{name}: is missing"));
        return Ok(None);
    };
    if !teardown::is_of(&link, &target.attachment) || link.alias.is_none() {
        wrong.push(format!("{name}: alias {:?} found, {:?} expected", link.alias, wiring.host_alias));
        return Ok(None);
    }
    check_link(&link, wiring.mtu.bytes(), wiring.host_mac(), wrong);
    compare(&format!("{name}: group"), &link.group, &POD_GROUP, wrong);
    if let Some(queues) = wiring.queues() {
        compare(&format!("{name}: queues"), &link.tx_queues, &queues, wrong);
    }
    check_tables(rtnl, wiring, Side::Host, &link, wrong)?;
    check_sysctls(name, &wiring.host_sysctls(), wrong);
    Ok(Some(link))
}

/// The pod's end, in its namespace. `host`: the node's end, whose peer it must be.
fn check_pod(wiring: &Wiring, host: Option<Link>) -> Result<Differences, CniError> {
    let mut wrong = Differences::new();
    let name = wiring.ifname.as_str();
    let mut rtnl = Rtnl::open()?;
    let Some(link) = rtnl.link(name)? else {
        return Ok(vec![format!("pod: {name}: is missing")]);
    };
    check_link(&link, wiring.mtu.bytes(), wiring.pod_mac, &mut wrong);
    if host.is_some_and(|host| host.link != Some(link.index)) {
        wrong.push(format!("{name}: is not the peer of {}", wiring.host_name));
    }
    match rtnl.link("lo")? {
        Some(lo) if lo.up => {}
        _ => wrong.push("lo: is down".to_owned()),
    }
    check_tables(&mut rtnl, wiring, Side::Pod, &link, &mut wrong)?;
    check_sysctls(name, &wiring.pod_sysctls(), &mut wrong);
    Ok(wrong.into_iter().map(|difference| format!("pod: {difference}")).collect())
}

/// The two ends of the wiring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Host,
    Pod,
}

/// Addresses, neighbours and routes of one end.
fn check_tables(
    rtnl: &mut Rtnl,
    wiring: &Wiring,
    side: Side,
    link: &Link,
    wrong: &mut Differences,
) -> Result<(), KernelError> {
    let (index, name) = (link.index, &link.name);
    let (addresses, neighbours, routes) = match side {
        Side::Host => {
            (wiring.host_addresses(index), wiring.host_neighbours(index), wiring.host_routes(index))
        }
        Side::Pod => {
            (wiring.pod_addresses(index), wiring.pod_neighbours(index), wiring.pod_routes(index, None))
        }
    };
    let found: BTreeSet<_> = rtnl.addresses(Some(index))?.into_iter().map(|info| info.address).collect();
    for address in addresses.iter().filter(|wanted| !found.contains(&wanted.address)) {
        wrong.push(format!("{name}: address {} is missing", address.address));
    }
    let found: BTreeSet<_> = rtnl.neighbours(index)?.into_iter().collect();
    for neighbour in neighbours.iter().filter(|wanted| !found.contains(wanted)) {
        wrong.push(format!("{name}: neighbour {} lladdr {} is missing", neighbour.address, neighbour.mac));
    }
    let found = rtnl.routes(RouteFilter { table: None, protocol: None })?;
    for route in &routes {
        // The metric may be a second interface's.
        let there = found.iter().any(|r| {
            r.destination == route.destination
                && r.table == route.table
                && r.interface == Some(index)
                && r.gateway == route.gateway
                && (r.mtu, r.advmss) == (route.mtu, route.advmss)
        });
        if !there {
            wrong.push(format!("{name}: route {} is missing", route.destination));
        }
    }
    Ok(())
}

fn check_link(link: &Link, mtu: u32, mac: podway_model::ids::MacAddr, wrong: &mut Differences) {
    match (link.up, link.operational) {
        (false, _) => wrong.push(format!("{}: is down", link.name)),
        (true, false) => wrong.push(format!("{}: has no carrier", link.name)),
        (true, true) => {}
    }
    compare(&format!("{}: mtu", link.name), &link.mtu, &mtu, wrong);
    if link.mac != Some(mac) {
        wrong.push(format!("{}: mac {:?} found, {mac} expected", link.name, link.mac));
    }
}

fn check_sysctls(name: &str, sysctls: &[(Sysctl, String)], wrong: &mut Differences) {
    for (sysctl, expected) in sysctls {
        match sysctl.read() {
            Ok(found) => compare(&sysctl.to_string(), &found, expected, wrong),
            // Without IPv6 in the kernel, ADD did not set it either.
            Err(e) if e.is_missing() => {}
            Err(e) => wrong.push(format!("{name}: {e}")),
        }
    }
}

fn compare<T: PartialEq + std::fmt::Display>(what: &str, found: &T, expected: &T, wrong: &mut Differences) {
    if found != expected {
        wrong.push(format!("{what}: {found} found, {expected} expected"));
    }
}
