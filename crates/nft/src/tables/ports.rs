//! `inet podway-ports`: ports of the node that lead to pods. The CNI plugin is its writer; `routed` makes it anew
//! from the endpoint records after somebody flushed it.
//!
//! Fixed chains, and one map element for each host port and family: opening a port is one element, whatever the
//! number of ports. Ports of one node address come before ports of all addresses; a packet's destination must be
//! the node's own in both.
//!
//! | comes from | seen at | source that the pod sees |
//! |---|---|---|
//! | outside, another node, another pod | prerouting | its own |
//! | the node | output | its own |
//! | the node's loopback | output | the node's: an answer to 127.0.0.1 would never leave the pod |
//! | the pod itself | prerouting | the node's: an answer to itself would pass by the translation |
//!
//! The last two are masqueraded. That a connection is a pod's own is known from a set of (address, address) of the
//! pods that have host ports, because nf_tables cannot compare two fields.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net};
use podway_model::endpoint::{EndpointRecord, HostPort};
use podway_model::names::{POD_GROUP, PORTS_TABLE};

use crate::expr::{Field, NFPROTO_IPV4, NFPROTO_IPV6, ct_status, fib_type};
use crate::kernel::TableDump;
use crate::name::Name;
use crate::object::{
    Chain, ChainKind, Datum, Element, Family, Hook, MapData, Policy, Priority, Rule, Set, TableId, TableState,
};
use crate::transaction::{SetId, Transaction};
use crate::value::{DataType, Value};

const TABLE: Name = Name::literal(PORTS_TABLE);
const PREROUTING: Name = Name::literal("prerouting");
const OUTPUT: Name = Name::literal("output");
const POSTROUTING: Name = Name::literal("postrouting");
const AT4: Name = Name::literal("at4");
const AT6: Name = Name::literal("at6");
const ANY4: Name = Name::literal("any4");
const ANY6: Name = Name::literal("any6");
const HAIRPIN4: Name = Name::literal("hairpin4");
const HAIRPIN6: Name = Name::literal("hairpin6");

/// What names the table.
pub const fn ports_id() -> TableId {
    TableId::inet(TABLE)
}

/// The whole table, with the host ports of these attachments.
pub fn ports<'a>(records: impl IntoIterator<Item = &'a EndpointRecord>) -> TableState {
    let mut table = TableState::new(ports_id());
    table.sets = sets().into();
    for record in records {
        for (name, element) in elements(record) {
            // Elements are of this module's own sets.
            if let Some(set) = table.set_mut(&name) {
                set.elements.insert(element.span, element.data);
            }
        }
    }
    let translate = |name, hook| {
        let place = Priority::DSTNAT.plus(-10);
        let v4 = |comment| Rule::new(comment).is(Field::NfProto, NFPROTO_IPV4);
        let v6 = |comment| Rule::new(comment).is(Field::NfProto, NFPROTO_IPV6);
        let own = |rule: Rule| rule.is(Field::FibDaddrType, fib_type::LOCAL);
        let port = [Field::L4Proto, Field::ThDport];
        let at = |address| [address, Field::L4Proto, Field::ThDport];
        let one = "port of one address";
        let all = "port of all addresses";
        Chain::base(name, ChainKind::Nat, hook, place, Policy::Accept)
            .rule(own(v4(one)).dnat_from_map(Family::Ip, at(Field::IpDaddr), AT4))
            .rule(own(v4(all)).dnat_from_map(Family::Ip, port, ANY4))
            .rule(own(v6(one)).dnat_from_map(Family::Ip6, at(Field::Ip6Daddr), AT6))
            .rule(own(v6(all)).dnat_from_map(Family::Ip6, port, ANY6))
    };
    let dnat = |comment| Rule::new(comment).any_bit(Field::CtStatus, ct_status::DNAT);
    let to_pod = |comment| dnat(comment).is(Field::OifGroup, POD_GROUP);
    let (own, loopback) = ("a pod and itself", "loopback of the node");
    let place = Priority::SRCNAT.plus(-10);
    let masquerade = Chain::base(POSTROUTING, ChainKind::Nat, Hook::Postrouting, place, Policy::Accept)
        .rule(
            dnat(own)
                .is(Field::NfProto, NFPROTO_IPV4)
                .in_set([Field::IpSaddr, Field::IpDaddr], HAIRPIN4)
                .masquerade(),
        )
        .rule(
            dnat(own)
                .is(Field::NfProto, NFPROTO_IPV6)
                .in_set([Field::Ip6Saddr, Field::Ip6Daddr], HAIRPIN6)
                .masquerade(),
        )
        .rule(
            to_pod(loopback)
                .is(Field::NfProto, NFPROTO_IPV4)
                .in_net(Field::IpSaddr, loopback4())
                .masquerade(),
        )
        .rule(
            to_pod(loopback)
                .is(Field::NfProto, NFPROTO_IPV6)
                .is(Field::Ip6Saddr, std::net::Ipv6Addr::LOCALHOST)
                .masquerade(),
        );
    table.chains = vec![translate(PREROUTING, Hook::Prerouting), translate(OUTPUT, Hook::Output), masquerade];
    table
}

/// Opens the host ports of an attachment. What is open already stays open.
pub fn open_ports(record: &EndpointRecord) -> Transaction {
    by_set(elements(record), Transaction::add_elements)
}

/// Closes the host ports of an attachment; each must be open. See [`close_found`].
pub fn close_ports(record: &EndpointRecord) -> Transaction {
    by_set(elements(record), Transaction::delete_elements)
}

/// Closes what leads to one of these pod addresses, as far as it is in the table.
pub fn close_found(found: &TableDump, pods: &BTreeSet<IpAddr>) -> Transaction {
    let mut doomed = Vec::new();
    for set in &found.sets {
        for (span, data) in &set.elements {
            let of = match data {
                Some(Datum::Value(pod)) => pod,
                _ => &span.from,
            };
            if leading_address(&set.name, of).is_some_and(|pod| pods.contains(&pod)) {
                doomed.push((set.name.clone(), Element { span: span.clone(), data: data.clone() }));
            }
        }
    }
    by_set(doomed, Transaction::delete_elements)
}

/// What of an attachment's host ports the table lacks, in words.
pub fn missing_ports(found: &TableDump, record: &EndpointRecord) -> Vec<String> {
    let there = |name: &Name, element: &Element| {
        let set = found.sets.iter().find(|set| set.name == *name);
        set.and_then(|set| set.elements.get(&element.span)).is_some_and(|data| *data == element.data)
    };
    let mut missing = Vec::new();
    for port in &record.host_ports {
        for pod in pods_behind(port, record) {
            let (name, element) = element(port, pod);
            if !there(&name, &element) {
                let family = if pod.is_ipv4() { "IPv4" } else { "IPv6" };
                missing.push(format!("host port {}, {family}, is not open", describe_port(port)));
            }
        }
    }
    let hairpins = elements(record).into_iter().filter(|(_, element)| element.data.is_none());
    for (name, element) in hairpins.filter(|(name, element)| !there(name, element)) {
        if let Some(pod) = leading_address(&name, &element.span.from) {
            missing.push(format!("host ports: {pod} is not known to reach itself"));
        }
    }
    missing
}

/// A host port in words: `tcp 127.0.0.1:8080`, `udp 53`.
pub fn describe_port(port: &HostPort) -> String {
    let protocol = port.protocol.to_string().to_lowercase();
    match port.host_ip {
        Some(ip) => format!("{protocol} {}", std::net::SocketAddr::new(ip, port.host_port)),
        None => format!("{protocol} {}", port.host_port),
    }
}

/// Addresses of the attachment to which a host port leads: 0.0.0.0 stands for all IPv4 addresses of the node, ::
/// for all IPv6 addresses, none for both.
pub fn pods_behind<'a>(port: &'a HostPort, record: &'a EndpointRecord) -> impl Iterator<Item = IpAddr> + 'a {
    let fits = |pod: &&IpAddr| port.host_ip.is_none_or(|ip| ip.is_ipv4() == pod.is_ipv4());
    record.addresses.iter().filter(fits).copied()
}

/// Whether the node's loopback addresses of a family lead to the attachment.
pub fn serves_loopback(record: &EndpointRecord, v4: bool) -> bool {
    record.host_ports.iter().any(|port| {
        let own = port.host_ip.is_none_or(|ip| ip.is_unspecified() || ip.is_loopback());
        own && pods_behind(port, record).any(|pod| pod.is_ipv4() == v4)
    })
}

fn loopback4() -> IpNet {
    IpNet::V4(Ipv4Net::new_assert(std::net::Ipv4Addr::new(127, 0, 0, 0), 8))
}

fn sets() -> [Set; 6] {
    use DataType::{InetProto, InetService, Ipv4Addr, Ipv6Addr};
    let (pod4, pod6) = (MapData::Pair(Ipv4Addr, InetService), MapData::Pair(Ipv6Addr, InetService));
    [
        Set::map(AT4, [Ipv4Addr, InetProto, InetService], pod4),
        Set::map(ANY4, [InetProto, InetService], pod4),
        Set::map(AT6, [Ipv6Addr, InetProto, InetService], pod6),
        Set::map(ANY6, [InetProto, InetService], pod6),
        Set::new(HAIRPIN4, [Ipv4Addr, Ipv4Addr]),
        Set::new(HAIRPIN6, [Ipv6Addr, Ipv6Addr]),
    ]
}

/// All elements of an attachment: of its ports, and of its addresses that ports lead to.
fn elements(record: &EndpointRecord) -> Vec<(Name, Element)> {
    let mut all = Vec::new();
    let mut pods = BTreeSet::new();
    for port in &record.host_ports {
        for pod in pods_behind(port, record) {
            all.push(element(port, pod));
            pods.insert(pod);
        }
    }
    all.extend(pods.into_iter().map(|pod| {
        let name = if pod.is_ipv4() { HAIRPIN4 } else { HAIRPIN6 };
        (name, Element::key(Value::concat([pod.into(), pod.into()])))
    }));
    all
}

fn element(port: &HostPort, pod: IpAddr) -> (Name, Element) {
    let (protocol, number) = (Value::from(port.protocol.number()), Value::from(port.host_port));
    let to = Value::concat([pod.into(), port.container_port.into()]);
    match port.host_ip.filter(|ip| !ip.is_unspecified()) {
        Some(ip) => {
            let name = if pod.is_ipv4() { AT4 } else { AT6 };
            (name, Element::value(Value::concat([ip.into(), protocol, number]), to))
        }
        None => {
            let name = if pod.is_ipv4() { ANY4 } else { ANY6 };
            (name, Element::value(Value::concat([protocol, number]), to))
        }
    }
}

/// The address with which a value of one of our sets begins.
fn leading_address(set: &Name, value: &Value) -> Option<IpAddr> {
    let bytes = value.as_bytes();
    if [AT4, ANY4, HAIRPIN4].contains(set) {
        Some(IpAddr::from(*bytes.first_chunk::<4>()?))
    } else {
        Some(IpAddr::from(*bytes.first_chunk::<16>()?))
    }
}

fn by_set(
    elements: Vec<(Name, Element)>,
    change: impl Fn(&mut Transaction, &SetId, Vec<Element>),
) -> Transaction {
    let mut transaction = Transaction::new();
    for set in sets() {
        let of_set = elements.iter().filter(|(name, _)| *name == set.name);
        let of_set = of_set.map(|(_, element)| element.clone()).collect();
        change(&mut transaction, &SetId::of(&ports_id(), &set), of_set);
    }
    transaction
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(addresses: &[&str], ports: serde_json::Value) -> EndpointRecord {
        serde_json::from_value(serde_json::json!({
            "schema": 1, "id": "1", "bootId": "00000000-0000-0000-0000-000000000001", "network": "podway",
            "containerId": "c1", "ifname": "eth0", "hostIfname": "pw1", "mac": "02:00:00:00:00:01",
            "mtu": 1500, "pod": null, "addresses": addresses, "hostPorts": ports, "netns": "/run/netns/x"
        }))
        .unwrap()
    }

    fn dual() -> EndpointRecord {
        record(
            &["10.0.0.5", "fd00::5"],
            serde_json::json!([
                {"hostPort": 8080, "containerPort": 80, "protocol": "TCP"},
                {"hostPort": 53, "containerPort": 5353, "protocol": "UDP", "hostIp": "127.0.0.1"},
                {"hostPort": 9, "containerPort": 9, "protocol": "SCTP", "hostIp": "::"}
            ]),
        )
    }

    fn dump(table: &TableState) -> TableDump {
        TableDump { id: table.id.clone(), flags: table.flags, chains: vec![], sets: table.sets.clone() }
    }

    #[test]
    fn one_element_for_each_port_and_family() {
        let text = ports([&dual()]).to_string();
        for part in [
            "elements = { tcp . 8080 : 10.0.0.5 . 80 }",
            "elements = { 127.0.0.1 . udp . 53 : 10.0.0.5 . 5353 }",
            "elements = { tcp . 8080 : fd00::5 . 80,\n\t\t\t     sctp . 9 : fd00::5 . 9 }",
            "elements = { 10.0.0.5 . 10.0.0.5 }",
            "elements = { fd00::5 . fd00::5 }",
            "type inet_proto . inet_service : ipv6_addr . inet_service",
            "meta nfproto ipv4 fib daddr type local dnat ip to meta l4proto . th dport map @any4",
            "fib daddr type local dnat ip6 to ip6 daddr . meta l4proto . th dport map @at6",
        ] {
            assert!(text.contains(part), "{part} is not in\n{text}");
        }
    }

    #[test]
    fn what_is_opened_is_what_is_closed_and_missed() {
        let (empty, whole) = (dump(&ports([])), dump(&ports([&dual()])));
        assert_eq!(open_ports(&dual()).ops.len(), close_ports(&dual()).ops.len());
        assert_eq!(missing_ports(&whole, &dual()), [] as [&str; 0]);
        let missing = missing_ports(&empty, &dual());
        assert_eq!(missing.len(), 6, "{missing:?}");
        assert!(missing.contains(&"host port udp 127.0.0.1:53, IPv4, is not open".to_owned()), "{missing:?}");
        // An element that leads to somebody else is not ours.
        let other = record(
            &["10.0.0.6"],
            serde_json::json!([{"hostPort": 8080, "containerPort": 80, "protocol": "TCP"}]),
        );
        assert_eq!(missing_ports(&whole, &other).len(), 2);
    }

    #[test]
    fn leftovers_are_found_by_the_address_they_lead_to() {
        let other = record(
            &["10.0.0.6"],
            serde_json::json!([{"hostPort": 81, "containerPort": 80, "protocol": "TCP"}]),
        );
        let whole = dump(&ports([&dual(), &other]));
        let count = |transaction: Transaction| -> usize {
            let elements = |op: &crate::Op| match op {
                crate::Op::DeleteElements { elements, .. } => elements.len(),
                _ => 0,
            };
            transaction.ops.iter().map(elements).sum()
        };
        assert_eq!(count(close_found(&whole, &["10.0.0.5".parse().unwrap()].into())), 3);
        assert_eq!(count(close_found(&whole, &dual().addresses.into_iter().collect())), 6);
        assert_eq!(count(close_found(&whole, &["10.0.0.7".parse().unwrap()].into())), 0);
    }

    #[test]
    fn a_port_without_an_address_of_its_family_leads_nowhere() {
        let v6 = record(
            &["fd00::5"],
            serde_json::json!([{"hostPort": 1, "containerPort": 2, "protocol": "TCP", "hostIp": "0.0.0.0"}]),
        );
        assert!(open_ports(&v6).is_empty());
    }
}
