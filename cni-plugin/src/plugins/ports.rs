//! Host ports: `runtimeConfig.portMappings` (CNI CONVENTIONS, "Well-known Capabilities").
//!
//! What is open stands in the endpoint record, and the record is what DEL and GC close, what CHECK compares with,
//! what says who holds a port, and what `routed` makes the table from when somebody flushed it. So a port is
//! reserved by writing the record and free when the record is gone; both happen under the address lock. What the
//! table looks like is `podway_nft::tables::ports`.
//!
//! ```text
//!  ADD   lock: is a port held? record ── pair, routes, up ── lock: table or elements; flows that were sent elsewhere
//!  DEL   lock: elements ── link ── flows ── record ── lease
//! ```
//!
//! A port that is open on all addresses is open on 127.0.0.1 and ::1 too. The kernel keeps such addresses from
//! leaving the machine and coming back; the pod's own interface is made an exception (`route_localnet`, and a route
//! that takes ::1 for local there), and the guard lets no packet of a pod use it.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv6Addr};

use ipnet::IpNet;
use podway_kern::conntrack::{Conntrack, Destination};
use podway_kern::nft::NftSocket;
use podway_kern::rtnl::{Link, Route, RouteFilter, RouteKind, Rtnl, TABLE_LOCAL};
use podway_kern::sysctl::{Family, Sysctl};
use podway_model::endpoint::{EndpointRecord, HostPort};
use podway_model::k8s::Protocol;
use podway_model::mistakes::Mistakes;
use podway_model::names::POD_ROUTE_PROTOCOL;
use podway_nft::{CommitError, Errno, Nftables as _, Transaction, tables};
use serde_json::Value;

use crate::conf::Network;
use crate::error::{CniError, Code};
use crate::node::Node;

/// Most host ports of one attachment.
pub const MAX_PORTS: usize = 4096;

const SOURCE: &str = "network configuration";
const FIELD: &str = "runtimeConfig.portMappings";

/// Reads the list. Ports that are asked for twice are one; two that cannot both be are a mistake.
pub fn parse(list: Option<&Value>, mistakes: &mut Mistakes) -> Vec<HostPort> {
    let list = match list {
        None | Some(Value::Null) => return Vec::new(),
        Some(Value::Array(list)) => list,
        Some(other) => {
            mistakes.add(SOURCE, FIELD, other, "a list of port mappings");
            return Vec::new();
        }
    };
    if list.len() > MAX_PORTS {
        mistakes.add(SOURCE, FIELD, format!("{} entries", list.len()), format!("at most {MAX_PORTS}"));
        return Vec::new();
    }
    let mut ports: Vec<HostPort> = Vec::with_capacity(list.len());
    for (i, entry) in list.iter().enumerate() {
        let field = |key: &str| format!("{FIELD}[{i}].{key}");
        let mut port = |key: &str| {
            let value = entry.get(key).unwrap_or(&Value::Null);
            let port = value.as_u64().and_then(|n| u16::try_from(n).ok()).filter(|n| *n > 0);
            if port.is_none() {
                mistakes.add(SOURCE, field(key), value, "a port from 1 to 65535");
            }
            port
        };
        let (host_port, container_port) = (port("hostPort"), port("containerPort"));
        let protocol = match entry.get("protocol") {
            None | Some(Value::Null) => Some(Protocol::Tcp),
            Some(value) => protocol(value).or_else(|| {
                mistakes.add(SOURCE, field("protocol"), value, "tcp, udp or sctp");
                None
            }),
        };
        let host_ip = match entry.get("hostIP") {
            None | Some(Value::Null) => Some(None),
            Some(Value::String(text)) if text.is_empty() => Some(None),
            Some(value) => match value.as_str().and_then(|text| text.parse::<IpAddr>().ok()) {
                Some(ip) => Some(Some(ip.to_canonical())),
                None => {
                    mistakes.add(SOURCE, field("hostIP"), value, "an address, or nothing for all addresses");
                    None
                }
            },
        };
        let (Some(host_port), Some(container_port)) = (host_port, container_port) else { continue };
        let (Some(protocol), Some(host_ip)) = (protocol, host_ip) else { continue };
        let wanted = HostPort { host_ip, host_port, container_port, protocol };
        if ports.contains(&wanted) {
            continue;
        }
        match ports.iter().find(|other| overlap(other, &wanted)) {
            Some(other) => {
                let expected = format!("a port that {} does not hold", tables::describe_port(other));
                mistakes.add(SOURCE, field("hostPort"), host_port, expected);
            }
            None => ports.push(wanted),
        }
    }
    ports
}

fn protocol(value: &Value) -> Option<Protocol> {
    match value.as_str()?.to_ascii_lowercase().as_str() {
        "" | "tcp" => Some(Protocol::Tcp),
        "udp" => Some(Protocol::Udp),
        "sctp" => Some(Protocol::Sctp),
        _ => None,
    }
}

/// Whether two host ports want the same packets.
fn overlap(a: &HostPort, b: &HostPort) -> bool {
    let addresses = match (a.host_ip, b.host_ip) {
        (Some(a), Some(b)) => {
            a == b || a.is_ipv4() == b.is_ipv4() && (a.is_unspecified() || b.is_unspecified())
        }
        _ => true,
    };
    a.protocol == b.protocol && a.host_port == b.host_port && addresses
}

/// Writes the record of an attachment with host ports, unless another one holds a port.
///
/// # Errors
/// A port is held; the message says by whom. Or a port asks for an address family that the pod does not have.
pub fn reserve(node: &Node, record: &EndpointRecord) -> Result<(), CniError> {
    let mut mistakes = Mistakes::default();
    for port in record.host_ports.iter().filter(|port| tables::pods_behind(port, record).next().is_none()) {
        let ip = port.host_ip.map(|ip| ip.to_string()).unwrap_or_default();
        let expected = "an address of a family that the pod has";
        mistakes.add(SOURCE, format!("{FIELD}: hostIP of port {}", port.host_port), ip, expected);
    }
    if !mistakes.is_empty() {
        return Err(CniError::config(&mistakes));
    }
    let _lock = node.lock()?;
    // A record that cannot be read holds nothing that could be named; CHECK of that pod reports it.
    let (others, _) = node.records().list()?;
    let others: Vec<_> =
        others.into_iter().filter(|other| other.boot_id == record.boot_id && other.id != record.id).collect();
    for port in &record.host_ports {
        let holds = |other: &&EndpointRecord| other.host_ports.iter().any(|held| overlap(held, port));
        if let Some(holder) = others.iter().find(holds) {
            let pod = holder.pod.as_ref().map(|pod| format!("pod {pod}, ")).unwrap_or_default();
            let message = format!(
                "{FIELD}: host port {} is held by {pod}container {}",
                tables::describe_port(port),
                holder.container_id
            );
            return Err(CniError::new(Code::TryAgain, message));
        }
    }
    node.records().write(record)
}

/// Opens the host ports of an attachment, and makes flows that know nothing of it yet look again.
pub fn open(node: &Node, rtnl: &mut Rtnl, record: &EndpointRecord) -> Result<(), CniError> {
    let mut socket = connect()?;
    {
        let _lock = node.lock()?;
        match socket.commit(&tables::open_ports(record)) {
            // There is no table yet, or somebody flushed it, or an element stands in the way that belongs to nobody's
            // record: the table is made of what the records say.
            Err(error) if matches!(error.errno(), Some(Errno::NOENT | Errno::EXIST | Errno::BUSY)) => {
                let (records, _) = node.records().list()?;
                let of_boot = records.iter().filter(|other| other.boot_id == record.boot_id);
                commit(&mut socket, &Transaction::replace(&tables::ports(of_boot)))?;
            }
            other => other.map_err(|error| failed(&error))?,
        }
    }
    forget_flows(rtnl, &record.host_ports)
}

/// Deletes the connection tracking entries of flows to these ports. A TCP connection begins with a packet that is
/// looked at anew; a UDP sender may use one pair of ports for ever, and would be sent on to where it was sent before.
fn forget_flows(rtnl: &mut Rtnl, ports: &[HostPort]) -> Result<(), CniError> {
    let lasting: Vec<_> = ports.iter().filter(|port| port.protocol != Protocol::Tcp).collect();
    if lasting.is_empty() {
        return Ok(());
    }
    let own: BTreeSet<IpAddr> = rtnl.addresses(None)?.into_iter().map(|info| info.address.addr()).collect();
    let is_own = |ip: IpAddr| ip.is_loopback() || own.contains(&ip);
    let wanted = |to: &Destination| {
        lasting.iter().any(|port| {
            let address = match port.host_ip {
                Some(ip) if !ip.is_unspecified() => ip == to.address,
                Some(ip) => ip.is_ipv4() == to.address.is_ipv4() && is_own(to.address),
                None => is_own(to.address),
            };
            address && port.host_port == to.port && port.protocol.number() == to.protocol
        })
    };
    Conntrack::open()?.delete_to(wanted)?;
    Ok(())
}

/// Closes the host ports of an attachment. Hold the address lock until the record is removed.
pub fn close(record: &EndpointRecord) -> Result<(), CniError> {
    if record.host_ports.is_empty() {
        return Ok(());
    }
    let mut socket = connect()?;
    match socket.commit(&tables::close_ports(record)) {
        // Not all of them are open: ADD was killed, or somebody flushed.
        Err(error) if error.errno() == Some(Errno::NOENT) => {
            close_found(&mut socket, &record.addresses.iter().copied().collect())
        }
        other => other.map_err(|error| failed(&error)),
    }
}

/// Closes whatever leads to these addresses, for an attachment whose record cannot be read. Hold the address lock.
pub fn close_leading_to(pods: &BTreeSet<IpAddr>) -> Result<(), CniError> {
    close_found(&mut connect()?, pods)
}

fn close_found(socket: &mut NftSocket, pods: &BTreeSet<IpAddr>) -> Result<(), CniError> {
    match socket.dump(&tables::ports_id()).map_err(|error| failed(&error))? {
        Some(found) => commit(socket, &tables::close_found(&found, pods)),
        None => Ok(()),
    }
}

/// What of an attachment's host ports is not as ADD made it, or not as CHECK is told that ADD was told, in words.
/// `host`: the node's end, if it is there.
pub fn differences(
    rtnl: &mut Rtnl,
    network: &Network,
    record: &EndpointRecord,
    host: Option<&Link>,
) -> Result<Vec<String>, CniError> {
    let mut wrong = Vec::new();
    if let Some(list) = network.runtime("portMappings") {
        let mut mistakes = Mistakes::default();
        let asked: BTreeSet<HostPort> = parse(Some(list), &mut mistakes).into_iter().collect();
        if !mistakes.is_empty() {
            return Err(CniError::config(&mistakes));
        }
        let recorded: BTreeSet<HostPort> = record.host_ports.iter().cloned().collect();
        wrong.extend(
            asked
                .difference(&recorded)
                .map(|port| format!("endpoint record: host port {} is missing", tables::describe_port(port))),
        );
        wrong.extend(recorded.difference(&asked).map(|port| {
            format!("endpoint record: host port {} was not asked for", tables::describe_port(port))
        }));
    }
    if record.host_ports.is_empty() {
        return Ok(wrong);
    }
    match connect()?.dump(&tables::ports_id()).map_err(|error| failed(&error))? {
        Some(found) => {
            wrong.extend(tables::missing_ports(&found, record));
            // Elements were looked at one by one; of the rest only rules can differ.
            let mut rules = tables::ports([]);
            rules.sets.clone_from(&found.sets);
            wrong.extend(
                found.difference(&rules).map(|text| format!("nft table {}: {text}", tables::ports_id())),
            );
        }
        None => wrong.push(format!("nft table {} is missing", tables::ports_id())),
    }
    for (sysctl, expected) in sysctls(record) {
        match sysctl.read() {
            Ok(found) if found == expected => {}
            Ok(found) => wrong.push(format!("{sysctl}: {found} found, {expected} expected")),
            Err(e) => wrong.push(e.to_string()),
        }
    }
    let Some(host) = host else { return Ok(wrong) };
    let filter = RouteFilter { table: Some(TABLE_LOCAL), protocol: Some(POD_ROUTE_PROTOCOL) };
    for route in routes(record, host.index) {
        if !rtnl.routes(filter)?.contains(&route) {
            wrong.push(format!("{}: route {route} in table local is missing", host.name));
        }
    }
    Ok(wrong)
}

/// Sysctls of the node's end that loopback host ports need.
pub fn sysctls(record: &EndpointRecord) -> Vec<(Sysctl, String)> {
    if !tables::serves_loopback(record, true) {
        return Vec::new();
    }
    vec![(Sysctl::conf(Family::V4, record.host_ifname.as_str(), "route_localnet"), "1".to_owned())]
}

/// Routes of the node that loopback host ports need. `index`: of the node's end, and the metric, so that each pod's
/// is another route to the kernel.
pub fn routes(record: &EndpointRecord, index: u32) -> Vec<Route> {
    if !tables::serves_loopback(record, false) {
        return Vec::new();
    }
    let loopback = IpNet::from(IpAddr::from(Ipv6Addr::LOCALHOST));
    vec![Route {
        kind: RouteKind::Local,
        table: TABLE_LOCAL,
        interface: Some(index),
        metric: index,
        ..Route::to(loopback, POD_ROUTE_PROTOCOL)
    }]
}

fn connect() -> Result<NftSocket, CniError> {
    NftSocket::open().map_err(|error| failed(&CommitError::Io(error)))
}

fn commit(socket: &mut NftSocket, transaction: &Transaction) -> Result<(), CniError> {
    socket.commit(transaction).map_err(|error| failed(&error))
}

fn failed(error: &CommitError) -> CniError {
    CniError::new(Code::Kernel, format!("host ports: nftables: {error}"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(list: Value) -> Result<Vec<HostPort>, String> {
        let mut mistakes = Mistakes::default();
        let ports = parse(Some(&list), &mut mistakes);
        if mistakes.is_empty() { Ok(ports) } else { Err(mistakes.to_string()) }
    }

    fn record(addresses: &[&str], list: Value) -> EndpointRecord {
        let mut record: EndpointRecord = serde_json::from_value(json!({
            "schema": 1, "id": "1", "bootId": "00000000-0000-0000-0000-000000000001", "network": "podway",
            "containerId": "c1", "ifname": "eth0", "hostIfname": "pw1", "mac": "02:00:00:00:00:01",
            "mtu": 1500, "pod": null, "addresses": addresses, "netns": "/run/netns/x"
        }))
        .unwrap();
        record.host_ports = read(list).unwrap();
        record
    }

    #[test]
    fn what_runtimes_send_is_read() {
        let ports = read(json!([
            {"hostPort": 80, "containerPort": 8080, "protocol": "TCP", "hostIP": ""},
            {"hostPort": 80, "containerPort": 8080},
            {"hostPort": 80, "containerPort": 8080, "protocol": "udp", "hostIP": "::ffff:10.0.0.1", "name": "x"},
            {"hostPort": 81, "containerPort": 81, "protocol": "Sctp", "hostIP": "::1"}
        ]));
        let texts: Vec<String> = ports.unwrap().iter().map(tables::describe_port).collect();
        assert_eq!(texts, ["tcp 80", "udp 10.0.0.1:80", "sctp [::1]:81"]);
        assert_eq!(parse(None, &mut Mistakes::default()), []);
    }

    #[test]
    fn what_cannot_be_is_named_with_field_and_value() {
        for (list, part) in [
            (json!({}), "runtimeConfig.portMappings: {} found, a list of port mappings expected"),
            (
                json!([{"hostPort": 0, "containerPort": 1}]),
                "portMappings[0].hostPort: 0 found, a port from 1",
            ),
            (json!([{"hostPort": 1, "containerPort": 65536}]), "portMappings[0].containerPort: 65536 found"),
            (json!([{"hostPort": 1}]), "portMappings[0].containerPort: null found"),
            (
                json!([{"hostPort": 1, "containerPort": 1, "protocol": "icmp"}]),
                "[0].protocol: \"icmp\" found",
            ),
            (
                json!([{"hostPort": 1, "containerPort": 1, "hostIP": "banana"}]),
                "portMappings[0].hostIP: \"banana\" found, an address, or nothing for all addresses expected",
            ),
            (
                json!([{"hostPort": 1, "containerPort": 1}, {"hostPort": 1, "containerPort": 2}]),
                "portMappings[1].hostPort: 1 found, a port that tcp 1 does not hold expected",
            ),
        ] {
            let error = read(list).unwrap_err();
            assert!(error.contains(part), "{part} is not in {error}");
        }
        let many = Value::Array(vec![json!({"hostPort": 1, "containerPort": 1}); MAX_PORTS + 1]);
        assert!(read(many).unwrap_err().contains("4097 entries found, at most 4096 expected"));
    }

    #[test]
    fn ports_overlap_where_a_packet_could_go_to_both() {
        let port = |ip: &str, number: u16, protocol| HostPort {
            host_ip: ip.parse().ok(),
            host_port: number,
            container_port: 1,
            protocol,
        };
        let any = port("", 80, Protocol::Tcp);
        for (other, expected) in [
            (port("", 80, Protocol::Tcp), true),
            (port("10.0.0.1", 80, Protocol::Tcp), true),
            (port("::1", 80, Protocol::Tcp), true),
            (port("", 80, Protocol::Udp), false),
            (port("", 81, Protocol::Tcp), false),
        ] {
            assert_eq!((overlap(&any, &other), overlap(&other, &any)), (expected, expected), "{other:?}");
        }
        let one = port("10.0.0.1", 80, Protocol::Tcp);
        for (other, expected) in [("0.0.0.0", true), ("::", false), ("10.0.0.2", false), ("10.0.0.1", true)] {
            assert_eq!(overlap(&one, &port(other, 80, Protocol::Tcp)), expected, "{other}");
        }
    }

    #[test]
    fn only_ports_that_loopback_reaches_open_the_way_back() {
        let both = ["10.0.0.5", "fd00::5"];
        let with = |ip: &str| json!([{"hostPort": 1, "containerPort": 1, "hostIP": ip}]);
        for (addresses, ip, v4, v6) in [
            (&both[..], "", 1, 1),
            (&both[..], "0.0.0.0", 1, 0),
            (&both[..], "::", 0, 1),
            (&both[..], "127.0.0.1", 1, 0),
            (&both[..], "::1", 0, 1),
            (&both[..], "172.30.0.1", 0, 0),
            (&both[..1], "", 1, 0),
            (&both[1..], "", 0, 1),
        ] {
            let record = record(addresses, with(ip));
            assert_eq!((sysctls(&record).len(), routes(&record, 7).len()), (v4, v6), "{addresses:?} {ip}");
        }
    }
}
