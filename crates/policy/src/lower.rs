//! From elements to nftables objects: the table, its fixed chains, and where each element goes.
//!
//! How a packet is judged (as `nft` lists it: `policy-agent/tests/golden/table.nft`). The number of rules that it meets depends on nothing:
//!
//! ```text
//! forward ── established, related, later packets of an unreplied flow ─────────────▶ accept
//!    │   ── no pod at either end · a pod and itself · neighbour discovery · errors ▶ accept
//!    │   ── untracked ──────────────────────────────────────────────────────────────▶ drop
//!    ├─ from a pod: egress ── (iifname, saddr) ─▶ policy set; none: drop (the fence)
//!    │                            └─ set 0: return; class of daddr ─▶ judge
//!    ├─ to a pod:  ingress ── (oifname, daddr) ─▶ policy set; none: drop (the fence)
//!    │                            └─ set 0: return; class of saddr ─▶ judge
//!    └─ scratch cleared, accept
//! judge: (set [, class] [, protocol [, port]]) in one of eight sets: return, else a log (some of them) and drop
//! input ── from a pod that is not classified: drop, neighbour discovery aside
//! ```
//!
//! The policy set travels in the packet's priority, which is the packet's own, so that packets without a connection
//! find their pod open too. The class travels in the connection's mark, which is safe only because no confirmed
//! entry comes that far; a packet without a connection has none and is not let into or out of an isolated pod.
//! A node reaches its pods without being judged, so the output hook has no chain.

use std::net::IpAddr;

use podway_model::k8s::PolicyType;
use podway_model::names::{POD_GROUP, POLICY_TABLE};
use podway_nft::{
    Chain, ChainKind, DataType, Element, Field, Hook, KeyType, MapData, NFPROTO_IPV4, NFPROTO_IPV6, Name,
    Policy, Priority, Rule, Set, Span, TableId, TableState, Target, Value, Verdict, ct_state, ct_status,
};

use crate::classes::NOTHING;
use crate::contents::{Atom, Contents, Key};
use crate::intern::Id;
use crate::sets::OPEN;

/// The table.
pub fn table_id() -> TableId {
    TableId::inet(TABLE)
}

/// The whole table with these elements.
pub(crate) fn table(contents: &Contents) -> TableState {
    let mut table = TableState::new(table_id());
    table.sets = sets();
    table.chains = chains();
    for (key, value) in contents.iter() {
        let (name, element) = element(key, value);
        if let Some(set) = table.set_mut(&name) {
            set.elements.insert(element.span, element.data);
        }
    }
    table
}

/// Where an element goes, and what it looks like there.
pub(crate) fn element(key: &Key, value: Id) -> (Name, Element) {
    match key {
        Key::Interface(ifname) => {
            let ifname = Value::ifname(ifname.as_str());
            (PODS, Element::key(Value::concat([ifname.clone(), ifname])))
        }
        Key::Local(direction, ifname, address) => {
            let key = Value::concat([Value::ifname(ifname.as_str()), (*address).into()]);
            (local_map(*direction, family_of(address)), Element::value(key, value))
        }
        Key::Class(address) => {
            let name = match family_of(address) {
                Version::V4 => CLS4,
                Version::V6 => CLS6,
            };
            (name, Element::value(Value::from(*address), value))
        }
        Key::Segment(first, last) => {
            let name = match family_of(first) {
                Version::V4 => NET4,
                Version::V6 => NET6,
            };
            let span = Span { from: (*first).into(), to: (first != last).then(|| (*last).into()) };
            (name, Element::value(span, value))
        }
        Key::Verdict(set, class, atom) => verdict_element(*set, *class, *atom),
    }
}

fn verdict_element(set: Id, class: Option<Id>, atom: Atom) -> (Name, Element) {
    let key = |rest: &[Value]| {
        let head = [Some(Value::from(set)), class.map(Value::from)].into_iter().flatten();
        let parts: Vec<Value> = head.chain(rest.iter().cloned()).collect();
        match <[Value; 1]>::try_from(parts) {
            Ok([one]) => one,
            Err(parts) => Value::concat(parts),
        }
    };
    let (at, span): (usize, Span) = match atom {
        Atom::All => (0, key(&[]).into()),
        Atom::Whole(protocol) => (1, key(&[protocol.number().into()]).into()),
        Atom::Port(protocol, port) => (2, key(&[protocol.number().into(), port.into()]).into()),
        Atom::Range(protocol, first, last) => {
            let end = |port: u16| key(&[protocol.number().into(), port.into()]);
            (RANGE, Span::range(end(first), end(last)))
        }
    };
    let names = if class.is_none() { ANY } else { OK };
    (names[at].clone(), Element::key(span))
}

/// Sets and maps, empty. Their number is fixed: the kernel finds a set by walking a list.
pub(crate) fn sets() -> Vec<Set> {
    use DataType::{ClassId, IfName, InetProto, InetService, Ipv4Addr, Ipv6Addr, Mark};
    let policy_set = MapData::Value(ClassId);
    let class = MapData::Value(Mark);
    let mut sets = vec![
        Set::new(PODS, [IfName, IfName]),
        Set::map(LOC_EG4, [IfName, Ipv4Addr], policy_set),
        Set::map(LOC_EG6, [IfName, Ipv6Addr], policy_set),
        Set::map(LOC_IN4, [IfName, Ipv4Addr], policy_set),
        Set::map(LOC_IN6, [IfName, Ipv6Addr], policy_set),
        Set::map(NET4, [Ipv4Addr], class).with_interval(),
        Set::map(NET6, [Ipv6Addr], class).with_interval(),
        Set::map(CLS4, [Ipv4Addr], class),
        Set::map(CLS6, [Ipv6Addr], class),
    ];
    let tails: [&[DataType]; 4] = [&[], &[InetProto], &[InetProto, InetService], &[InetProto, InetService]];
    for (names, head) in [(ANY, &[ClassId][..]), (OK, &[ClassId, Mark])] {
        for (i, (name, tail)) in names.into_iter().zip(tails).enumerate() {
            let set = Set::new(name, KeyType(head.iter().chain(tail).copied().collect()));
            sets.push(if i == RANGE { set.with_interval() } else { set });
        }
    }
    sets
}

fn chains() -> Vec<Chain> {
    use PolicyType::{Egress, Ingress};
    use Version::{V4, V6};
    let mut chains = vec![judge()];
    for (direction, version) in [(Egress, V4), (Egress, V6), (Ingress, V4), (Ingress, V6)] {
        chains.push(classify(direction, version));
    }
    chains.extend([local(Egress), local(Ingress), forward(), input()]);
    chains
}

/// Ends with a drop unless the set accepts this.
fn judge() -> Chain {
    let tails: [&[Field]; 4] =
        [&[], &[Field::L4Proto], &[Field::L4Proto, Field::ThDport], &[Field::L4Proto, Field::ThDport]];
    let mut chain = Chain::regular(JUDGE);
    for (names, head) in [(ANY, &[Field::Priority][..]), (OK, &[Field::Priority, Field::CtMark])] {
        for (set, tail) in names.into_iter().zip(tails) {
            let key: Vec<Field> = head.iter().chain(tail).copied().collect();
            chain = chain.rule(Rule::new("").in_set(key, set).verdict(Verdict::Return));
        }
    }
    chain
        .rule(Rule::new("").limit(DROPS_PER_SECOND, DROPS_AT_ONCE).log(DROP_PREFIX, Some(DROP_GROUP)))
        .rule(Rule::new("isolated, and no rule of its policies matched").counter().drop())
}

/// Loads the class of the other end, and judges.
fn classify(direction: PolicyType, version: Version) -> Chain {
    let peer = match (direction, version) {
        (PolicyType::Egress, Version::V4) => Field::IpDaddr,
        (PolicyType::Egress, Version::V6) => Field::Ip6Daddr,
        (PolicyType::Ingress, Version::V4) => Field::IpSaddr,
        (PolicyType::Ingress, Version::V6) => Field::Ip6Saddr,
    };
    let (net, cls) = match version {
        Version::V4 => (NET4, CLS4),
        Version::V6 => (NET6, CLS6),
    };
    let class =
        |map| Rule::new("").is(Field::NfProto, version.nfproto()).set_from_map(Target::CtMark, [peer], map);
    Chain::regular(classify_chain(direction, version))
        .rule(Rule::new("not isolated").is(Field::Priority, OPEN).verdict(Verdict::Return))
        .rule(Rule::new("").set(Target::CtMark, NOTHING))
        .rule(class(net))
        .rule(class(cls))
        .rule(Rule::new("").verdict(Verdict::Goto(JUDGE)))
}

/// Loads the policy set of the local pod. One that has none is not classified yet: closed.
fn local(direction: PolicyType) -> Chain {
    let (name, v4, v6) = match direction {
        PolicyType::Egress => (EGRESS, [Field::IifName, Field::IpSaddr], [Field::IifName, Field::Ip6Saddr]),
        PolicyType::Ingress => (INGRESS, [Field::OifName, Field::IpDaddr], [Field::OifName, Field::Ip6Daddr]),
    };
    let load = |version: Version, key: [Field; 2]| {
        Rule::new("")
            .is(Field::NfProto, version.nfproto())
            .set_from_map(Target::Priority, key, local_map(direction, version))
            .verdict(Verdict::Goto(classify_chain(direction, version)))
    };
    Chain::regular(name).rule(load(Version::V4, v4)).rule(load(Version::V6, v6)).rule(fence())
}

fn forward() -> Chain {
    base(FORWARD, Hook::Forward)
        .rule(Rule::new("").any_bit(Field::CtState, ct_state::ESTABLISHED | ct_state::RELATED).accept())
        // The mark of a confirmed entry is shared by packets in flight: no scratch.
        .rule(
            Rule::new("later packets of an unreplied flow")
                .any_bit(Field::CtStatus, ct_status::CONFIRMED)
                .accept(),
        )
        .rule(
            Rule::new("no pod")
                .is_not(Field::IifGroup, POD_GROUP)
                .is_not(Field::OifGroup, POD_GROUP)
                .accept(),
        )
        .rule(
            Rule::new("a pod and itself, through a service")
                .in_set([Field::IifName, Field::OifName], PODS)
                .accept(),
        )
        .rule(neighbour_discovery())
        .rule(icmp("unreachable").is(Field::IcmpType, 3_u8).accept())
        .rule(icmp("time exceeded, parameter problem").within(Field::IcmpType, 11_u8, 12_u8).accept())
        .rule(icmpv6("errors").within(Field::Icmpv6Type, 1_u8, 4_u8).accept())
        .rule(Rule::new("untracked").any_bit(Field::CtState, ct_state::UNTRACKED).counter().drop())
        .rule(Rule::new("").is(Field::IifGroup, POD_GROUP).jump(EGRESS))
        .rule(Rule::new("").is(Field::OifGroup, POD_GROUP).jump(INGRESS))
        .rule(Rule::new("").set(Target::CtMark, NOTHING).set(Target::Priority, OPEN).accept())
}

/// Between a pod and its own node nothing is judged; only the fence stands.
fn input() -> Chain {
    base(INPUT, Hook::Input)
        .rule(Rule::new("no pod").is_not(Field::IifGroup, POD_GROUP).accept())
        .rule(neighbour_discovery())
        .rule(Rule::new("a pod and its own node").in_set([Field::IifName, Field::IifName], PODS).accept())
        .rule(fence())
}

fn fence() -> Rule {
    Rule::new("fence: not classified yet").counter().drop()
}

/// RFC 4861: router and neighbour solicitation and advertisement, redirect.
fn neighbour_discovery() -> Rule {
    icmpv6("neighbour discovery").within(Field::Icmpv6Type, 133_u8, 137_u8).accept()
}

fn icmp(comment: &str) -> Rule {
    Rule::new(comment).is(Field::NfProto, NFPROTO_IPV4).is(Field::L4Proto, ICMP)
}

fn icmpv6(comment: &str) -> Rule {
    Rule::new(comment).is(Field::NfProto, NFPROTO_IPV6).is(Field::L4Proto, ICMPV6)
}

fn base(name: Name, hook: Hook) -> Chain {
    Chain::base(name, ChainKind::Filter, hook, Priority::FILTER.plus(-5), Policy::Accept)
}

/// IP version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Version {
    V4,
    V6,
}

impl Version {
    fn nfproto(self) -> u8 {
        match self {
            Self::V4 => NFPROTO_IPV4,
            Self::V6 => NFPROTO_IPV6,
        }
    }
}

fn family_of(address: &IpAddr) -> Version {
    match address {
        IpAddr::V4(_) => Version::V4,
        IpAddr::V6(_) => Version::V6,
    }
}

fn local_map(direction: PolicyType, version: Version) -> Name {
    match (direction, version) {
        (PolicyType::Egress, Version::V4) => LOC_EG4,
        (PolicyType::Egress, Version::V6) => LOC_EG6,
        (PolicyType::Ingress, Version::V4) => LOC_IN4,
        (PolicyType::Ingress, Version::V6) => LOC_IN6,
    }
}

fn classify_chain(direction: PolicyType, version: Version) -> Name {
    match (direction, version) {
        (PolicyType::Egress, Version::V4) => EGRESS4,
        (PolicyType::Egress, Version::V6) => EGRESS6,
        (PolicyType::Ingress, Version::V4) => INGRESS4,
        (PolicyType::Ingress, Version::V6) => INGRESS6,
    }
}

/// Group of the kernel's packet log to which dropped packets go.
pub const DROP_GROUP: u16 = 112;
/// What stands before each of them.
const DROP_PREFIX: &str = "podway-policy";
/// How many of them are logged.
const DROPS_PER_SECOND: u32 = 10;
const DROPS_AT_ONCE: u32 = 20;

const ICMP: u8 = 1;
const ICMPV6: u8 = 58;

const TABLE: Name = Name::literal(POLICY_TABLE);
const PODS: Name = Name::literal("pods");
const LOC_EG4: Name = Name::literal("loc_eg4");
const LOC_EG6: Name = Name::literal("loc_eg6");
const LOC_IN4: Name = Name::literal("loc_in4");
const LOC_IN6: Name = Name::literal("loc_in6");
const NET4: Name = Name::literal("net4");
const NET6: Name = Name::literal("net6");
const CLS4: Name = Name::literal("cls4");
const CLS6: Name = Name::literal("cls6");
/// What a policy set accepts from or to everybody: anything, a protocol, a port, a range of ports.
const ANY: [Name; 4] = [
    Name::literal("any_any"),
    Name::literal("any_proto"),
    Name::literal("any_port"),
    Name::literal("any_range"),
];
/// The same, from or to a class.
const OK: [Name; 4] =
    [Name::literal("ok_any"), Name::literal("ok_proto"), Name::literal("ok_port"), Name::literal("ok_range")];
/// Place of the ranges in [`ANY`] and [`OK`].
const RANGE: usize = 3;
const FORWARD: Name = Name::literal("forward");
const INPUT: Name = Name::literal("input");
const EGRESS: Name = Name::literal("egress");
const INGRESS: Name = Name::literal("ingress");
const EGRESS4: Name = Name::literal("egress4");
const EGRESS6: Name = Name::literal("egress6");
const INGRESS4: Name = Name::literal("ingress4");
const INGRESS6: Name = Name::literal("ingress6");
const JUDGE: Name = Name::literal("judge");
