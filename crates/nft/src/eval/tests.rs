//! Packets through rules, case by case.

use std::net::{IpAddr, Ipv4Addr};

use super::*;
use crate::expr::fib_type;
use crate::object::{Chain, Element, MapData, Priority, Rule};
use crate::tables::{Masquerade, guard, masquerade};

const T: Name = Name::literal("t");
const LEAF: Name = Name::literal("leaf");
const MAP: Name = Name::literal("map");
const BASE: Name = Name::literal("base");

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn device(name: &str, group: u32) -> Option<Device> {
    Some(Device { index: 7, name: name.to_owned(), group })
}

fn udp() -> Packet {
    let packet = Packet::new(ip("10.0.0.1"), ip("10.0.0.2"), 17, Packet::ports(1000, 53));
    Packet { input: device("pw1", 112), output: device("eth0", 0), ..packet }
}

fn filter(hook: Hook, priority: Priority, policy: Policy) -> Chain {
    Chain::base(BASE, ChainKind::Filter, hook, priority, policy)
}

fn table(chains: Vec<Chain>) -> TableState {
    TableState { chains, ..TableState::new(TableId::inet(T)) }
}

fn at(table: &TableState, hook: Hook, packet: Packet) -> Walked {
    eval([table], hook, packet, &Nowhere).unwrap()
}

#[test]
fn verdicts_go_where_the_kernel_goes() {
    use Verdict::{Accept, Continue, Drop, Goto, Jump, Return};
    // In the base chain, in the leaf, what became of it, rules that matched.
    let cases = [
        (vec![Accept, Drop], vec![], Fate::Accept, 1),
        (vec![Continue, Drop], vec![], Fate::Drop, 2),
        (vec![Return, Accept], vec![], Fate::Drop, 1),
        (vec![Jump(LEAF), Accept], vec![Return, Drop], Fate::Accept, 3),
        (vec![Jump(LEAF), Accept], vec![], Fate::Accept, 2),
        (vec![Jump(LEAF), Accept], vec![Drop], Fate::Drop, 2),
        (vec![Goto(LEAF), Accept], vec![Return], Fate::Drop, 2),
        (vec![Goto(LEAF), Drop], vec![Accept], Fate::Accept, 2),
        (vec![], vec![], Fate::Drop, 0),
    ];
    for (base, leaf, fate, path) in cases {
        let chain = |chain: Chain, verdicts: &[Verdict]| {
            verdicts.iter().fold(chain, |chain, verdict| chain.rule(Rule::new("").verdict(verdict.clone())))
        };
        let first = chain(filter(Hook::Forward, Priority::FILTER, Policy::Drop), &base);
        let walked = at(&table(vec![first, chain(Chain::regular(LEAF), &leaf)]), Hook::Forward, udp());
        assert_eq!((walked.fate, walked.path.len()), (fate, path), "{base:?} {leaf:?}");
    }
}

#[test]
fn chains_are_asked_by_priority_until_one_ends_it() {
    let log = |priority: i32, text: &str, end: Rule| {
        filter(Hook::Forward, Priority(priority), Policy::Accept)
            .rule(Rule::new("").log(text, None))
            .rule(end)
    };
    let names = |tables: &[TableState]| -> Vec<String> {
        let walked = eval(tables, Hook::Forward, udp(), &Nowhere).unwrap();
        walked.logged.into_iter().map(|log| log.prefix).collect()
    };
    let late = table(vec![log(10, "late", Rule::new("").accept())]);
    let early = table(vec![log(-10, "early", Rule::new("").accept())]);
    let end = table(vec![log(0, "end", Rule::new("").drop())]);
    assert_eq!(names(&[late.clone(), early.clone()]), ["early", "late"], "an accept is not final");
    assert_eq!(names(&[late, end, early]), ["early", "end"], "a drop is");
    let other_hook = table(vec![filter(Hook::Input, Priority::FILTER, Policy::Drop)]);
    assert_eq!(at(&other_hook, Hook::Forward, udp()).fate, Fate::Accept);
    let mut other_family = table(vec![filter(Hook::Forward, Priority::FILTER, Policy::Drop)]);
    other_family.id.family = Family::Ip6;
    assert_eq!(at(&other_family, Hook::Forward, udp()).fate, Fate::Accept);
}

#[test]
fn what_is_not_there_ends_the_rule_and_keeps_what_was_written() {
    let mut state = table(vec![
        filter(Hook::Output, Priority::FILTER, Policy::Accept)
            .rule(Rule::new("").set(Target::Mark, 5).is(Field::IifGroup, 0_u32).drop())
            .rule(Rule::new("").set_from_map(Target::Priority, [Field::IpDaddr], MAP).drop())
            .rule(Rule::new("").set_bits(Target::Mark, 0x10).set(Target::CtMark, 9)),
    ]);
    state.sets = vec![
        Set::map(MAP, [DataType::Ipv4Addr], MapData::Value(DataType::ClassId))
            .with_elements([Element::value(Ipv4Addr::new(10, 0, 0, 9), 3_u32)]),
    ];
    let packet = Packet { input: None, ..udp() };
    let walked = at(&state, Hook::Output, packet.clone());
    assert_eq!(walked.fate, Fate::Accept, "no input device, no element");
    assert_eq!((walked.packet.mark, walked.packet.priority), (0x15, 0));
    assert_eq!(walked.packet.connection.entry().unwrap().mark, 9);
    let lost = at(&state, Hook::Output, Packet { connection: Connection::Invalid, ..packet.clone() });
    assert_eq!(lost.packet.connection, Connection::Invalid, "without a connection there is no mark");
    let mapped = at(&state, Hook::Output, Packet { destination: ip("10.0.0.9"), ..packet });
    assert_eq!((mapped.fate, mapped.packet.priority), (Fate::Drop, 3));
}

#[test]
fn fragments_and_short_headers_match_no_port() {
    let state = table(vec![
        filter(Hook::Forward, Priority::FILTER, Policy::Drop)
            .rule(Rule::new("").is_not(Field::ThDport, 1_u16).accept()),
    ]);
    assert_eq!(at(&state, Hook::Forward, udp()).fate, Fate::Accept);
    assert_eq!(at(&state, Hook::Forward, Packet { transport: vec![], ..udp() }).fate, Fate::Drop);
}

#[test]
fn ranges_in_concatenations_compare_part_by_part() {
    let key = crate::object::KeyType(vec![DataType::Mark, DataType::InetService]);
    let of = |mark: u32, port: u16| Value::concat([mark.into(), port.into()]);
    let set = Set::new(MAP, key)
        .with_interval()
        .with_elements([Element::key(Span { from: of(0x0100, 80), to: Some(of(0x0200, 90)) })]);
    // 0x0180 lies between as a number, but not in the machine's byte order.
    for (mark, port, inside) in
        [(0x0100, 80, true), (0x0180, 85, true), (0x0200, 90, true), (0x0201, 85, false), (0x0180, 91, false)]
    {
        assert_eq!(lookup(&set, &of(mark, port)).is_some(), inside, "{mark:x} {port}");
    }
}

#[test]
fn no_chain_before_connection_tracking_sees_a_connection() {
    let raw = table(vec![
        filter(Hook::Prerouting, Priority::RAW, Policy::Accept)
            .rule(Rule::new("").any_bit(Field::CtState, ct_state::NEW).drop())
            .rule(Rule::new("").set(Target::CtMark, 1))
            .rule(Rule::new("").is(Field::ThDport, 53_u16).notrack()),
    ]);
    let walked = at(&raw, Hook::Prerouting, udp());
    assert_eq!((walked.fate, walked.packet.connection), (Fate::Accept, Connection::Untracked));
    let other = Packet { transport: Packet::ports(1, 2), ..udp() };
    assert_eq!(at(&raw, Hook::Prerouting, other).packet.connection, Connection::NEW);
}

#[test]
fn the_masquerade_is_asked_once_and_for_first_packets_only() {
    let net = |text: &str| text.parse().unwrap();
    let state = masquerade(&Masquerade {
        sources: [net("10.0.0.0/24")].into(),
        exclude: [net("10.0.0.0/16")].into(),
        local_pods: [ip("10.0.0.1")].into(),
    });
    let to = |destination: &str| Packet { destination: ip(destination), ..udp() };
    let translated = |packet: Packet| at(&state, Hook::Postrouting, packet).translation.is_some();
    assert!(translated(to("192.0.2.1")), "leaves the cluster");
    assert!(!translated(to("10.0.0.2")) && !translated(to("224.0.0.1")), "stays in it");
    assert!(translated(to("10.0.0.1")), "a pod and itself");
    assert!(!translated(Packet { source: ip("10.1.0.1"), ..to("192.0.2.1") }), "another source");
    for later in [Connection::UNREPLIED, Connection::ESTABLISHED, Connection::Untracked] {
        assert!(!translated(Packet { connection: later, ..to("192.0.2.1") }), "{later:?}");
    }
    // Nat chains stand together at the kernel's own nat hook, whatever their priority says: a filter chain
    // between the two priorities comes after both.
    let mut between = table(vec![filter(Hook::Postrouting, Priority::SRCNAT.plus(2), Policy::Drop)]);
    between.id.name = Name::literal("between");
    let walked = eval([&between, &state], Hook::Postrouting, to("192.0.2.1"), &Nowhere).unwrap();
    assert_eq!((walked.fate, walked.translation.is_some()), (Fate::Drop, true));
}

#[test]
fn the_guard_lets_pods_send_what_is_theirs() {
    struct Routes;
    impl Surroundings for Routes {
        fn comes_back(&self, source: IpAddr, _: &Device) -> bool {
            [ip("10.0.0.1"), ip("fd00::1")].contains(&source)
        }
        fn address_type(&self, _: IpAddr) -> u32 {
            fib_type::UNICAST
        }
    }
    let state = guard(&["10.9.0.0/16".parse().unwrap()]);
    let passes =
        |packet: Packet| eval([&state], Hook::Prerouting, packet, &Routes).unwrap().fate == Fate::Accept;
    let v4 = |from: &str, to: &str| {
        let packet = Packet::new(ip(from), ip(to), 17, Packet::ports(1, 2));
        Packet { input: device("pw1", 112), ..packet }
    };
    let icmp6 = |from: &str, kind: u8| {
        let packet = Packet::new(ip(from), ip("fe80::1"), 58, Packet::icmp(kind, 0));
        Packet { input: device("pw1", 112), ..packet }
    };
    assert!(passes(v4("10.0.0.1", "192.0.2.1")) && passes(v4("fd00::1", "2001:db8::1")));
    assert!(!passes(v4("10.0.0.2", "192.0.2.1")), "not its own");
    assert!(passes(v4("10.9.1.1", "192.0.2.1")), "allowed besides");
    assert!(!passes(v4("10.0.0.1", "127.0.0.1")) && !passes(v4("fd00::1", "::1")), "the node's loopback");
    assert!(passes(icmp6("::", 135)) && !passes(icmp6("fd00::1", 134)) && !passes(icmp6("fd00::1", 137)));
    let foreign = Packet { input: device("eth0", 0), ..v4("10.0.0.2", "127.0.0.1") };
    assert!(passes(foreign), "what does not come from a pod is not asked");
}

#[test]
fn tables_that_make_no_sense_are_told() {
    let forward = || filter(Hook::Forward, Priority::FILTER, Policy::Accept);
    let error = |chain: Chain| eval([&table(vec![chain])], Hook::Forward, udp(), &Nowhere).unwrap_err();
    let unasked = error(forward().rule(Rule::new("").is(Field::Ip6Saddr, std::net::Ipv6Addr::LOCALHOST)));
    assert!(matches!(unasked, EvalError::Unasked { field: Field::Ip6Saddr, .. }), "{unasked}");
    let missing = error(forward().rule(Rule::new("").jump(LEAF)));
    assert_eq!(missing.to_string(), "inet t base rule 0: there is no leaf");
    let endless = table(vec![
        forward().rule(Rule::new("").jump(LEAF)),
        Chain::regular(LEAF).rule(Rule::new("").jump(LEAF)),
    ]);
    let deep = eval([&endless], Hook::Forward, udp(), &Nowhere).unwrap_err();
    assert!(matches!(deep, EvalError::TooDeep { .. }), "{deep}");
}
