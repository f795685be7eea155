//! `inet podway-masq`: pods that leave the cluster get the node's address. Owned by `routed`, replaced as a whole.
//!
//! A nat chain sees the first packet of a connection only, so a connection into a pod from outside is not touched
//! on its way back. It runs after everybody else's srcnat (kube-proxy's among them); a connection that was
//! translated there does not come here any more.
//!
//! A pod that reaches itself through a translated address (a host port, a service) would answer itself without
//! the translation being undone: such a connection gets the node's address too. nf_tables cannot compare two
//! fields, so the set holds (address, address) of each local pod.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use podway_model::names::MASQ_TABLE;

use super::prefixes;
use crate::expr::{Field, NFPROTO_IPV4, NFPROTO_IPV6};
use crate::name::Name;
use crate::object::{Chain, ChainKind, Element, Hook, Policy, Priority, Rule, Set, TableId, TableState};
use crate::value::{DataType, Value};

/// Set of (address, address) of local IPv4 pods.
pub const HAIRPIN4: Name = Name::literal("hairpin4");
/// Set of (address, address) of local IPv6 pods.
pub const HAIRPIN6: Name = Name::literal("hairpin6");

const TABLE: Name = Name::literal(MASQ_TABLE);
const CHAIN: Name = Name::literal("postrouting");
const SOURCES4: Name = Name::literal("sources4");
const SOURCES6: Name = Name::literal("sources6");
const KEEP4: Name = Name::literal("keep4");
const KEEP6: Name = Name::literal("keep6");

/// What the masquerade depends on. Prefixes may overlap.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Masquerade {
    /// Sources that are masqueraded: pools with NAT.
    pub sources: BTreeSet<IpNet>,
    /// Destinations that see the pods' own addresses: all pools, and what the configuration excludes. Multicast
    /// is always among them.
    pub exclude: BTreeSet<IpNet>,
    /// Addresses of this node's pods, for connections of a pod to itself.
    pub local_pods: BTreeSet<IpAddr>,
}

/// The whole table.
pub fn masquerade(wanted: &Masquerade) -> TableState {
    let multicast = [
        IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(224, 0, 0, 0), 4)),
        IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0), 8)),
    ];
    let keep = || wanted.exclude.iter().chain(&multicast);
    let hairpin = |v4: bool| {
        let pods = wanted.local_pods.iter().filter(move |pod| pod.is_ipv4() == v4);
        pods.map(|pod| Element::key(Value::concat([(*pod).into(), (*pod).into()])))
    };
    let nets =
        |name, kind, elements: Vec<Element>| Set::new(name, [kind]).with_interval().with_elements(elements);
    let mut table = TableState::new(TableId::inet(TABLE));
    table.sets = vec![
        nets(SOURCES4, DataType::Ipv4Addr, prefixes(&wanted.sources, true)),
        nets(SOURCES6, DataType::Ipv6Addr, prefixes(&wanted.sources, false)),
        nets(KEEP4, DataType::Ipv4Addr, prefixes(keep(), true)),
        nets(KEEP6, DataType::Ipv6Addr, prefixes(keep(), false)),
        Set::new(HAIRPIN4, [DataType::Ipv4Addr, DataType::Ipv4Addr]).with_elements(hairpin(true)),
        Set::new(HAIRPIN6, [DataType::Ipv6Addr, DataType::Ipv6Addr]).with_elements(hairpin(false)),
    ];
    let v4 = |comment| Rule::new(comment).is(Field::NfProto, NFPROTO_IPV4);
    let v6 = |comment| Rule::new(comment).is(Field::NfProto, NFPROTO_IPV6);
    let place = Priority::SRCNAT.plus(5);
    let nat = Chain::base(CHAIN, ChainKind::Nat, Hook::Postrouting, place, Policy::Accept)
        .rule(
            v4("a pod leaves the cluster")
                .in_set([Field::IpSaddr], SOURCES4)
                .not_in_set([Field::IpDaddr], KEEP4)
                .masquerade(),
        )
        .rule(
            v6("a pod leaves the cluster")
                .in_set([Field::Ip6Saddr], SOURCES6)
                .not_in_set([Field::Ip6Daddr], KEEP6)
                .masquerade(),
        )
        .rule(v4("a pod and itself").in_set([Field::IpSaddr, Field::IpDaddr], HAIRPIN4).masquerade())
        .rule(v6("a pod and itself").in_set([Field::Ip6Saddr, Field::Ip6Daddr], HAIRPIN6).masquerade());
    table.chains = vec![nat];
    table
}
