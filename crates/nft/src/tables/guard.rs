//! `inet podway-guard`: what a pod may never send, whatever the policies say. One chain, prerouting raw, no state
//! for any pod: what may come through an interface is what is routed through it.
//!
//! The fixed text is written by whoever comes first (the CNI plugin or `routed`) and repaired by `routed`.
//!
//! - `fib saddr . iif oif missing` asks the routing table for the way back through the very interface: pod routes
//!   are /32 and /128, so that only the pod's own address passes. Link-local sources pass because the host end
//!   has fe80::1/64, which makes fe80::/64 a route of every pod's interface; so do multicast answers to them.
//! - `::` is nobody's address; neighbour discovery and multicast listener reports use it before there is one.
//! - A router advertisement or redirect from a pod could change the node's routes.
//! - The kernel tracks connections only in namespaces where some rule asks for their state. The last rule does,
//!   and matches nothing: raw comes before connections are looked up, so no packet is `established` there.
//!   Thereby connections are tracked from the first pod on, and a policy agent that comes later finds them.

use ipnet::IpNet;
use podway_model::names::{GUARD_TABLE, POD_GROUP};

use super::prefixes;
use crate::expr::{Field, NFPROTO_IPV4, NFPROTO_IPV6, ct_state};
use crate::name::Name;
use crate::object::{Chain, ChainKind, Hook, Policy, Priority, Rule, Set, TableId, TableState};
use crate::value::DataType;

/// Set of IPv4 sources that any pod may use besides its own address.
pub const ALLOWED4: Name = Name::literal("allowed4");
/// Set of IPv6 sources that any pod may use besides its own address.
pub const ALLOWED6: Name = Name::literal("allowed6");

const TABLE: Name = Name::literal(GUARD_TABLE);
const CHAIN: Name = Name::literal("prerouting");
const ICMPV6: u8 = 58;
const ROUTER_ADVERTISEMENT: u8 = 134;
const REDIRECT: u8 = 137;

/// The whole table. `allowed`: prefixes that any pod may use as source besides its own address.
pub fn guard(allowed: &[IpNet]) -> TableState {
    let mut table = TableState::new(TableId::inet(TABLE));
    table.sets = vec![
        Set::new(ALLOWED4, [DataType::Ipv4Addr]).with_interval().with_elements(prefixes(allowed, true)),
        Set::new(ALLOWED6, [DataType::Ipv6Addr]).with_interval().with_elements(prefixes(allowed, false)),
    ];
    let pod = |comment| Rule::new(comment).is(Field::IifGroup, POD_GROUP);
    let v4 = |comment| pod(comment).is(Field::NfProto, NFPROTO_IPV4);
    let v6 = |comment| pod(comment).is(Field::NfProto, NFPROTO_IPV6);
    let icmpv6 = |comment| v6(comment).is(Field::L4Proto, ICMPV6);
    let loopback6 = std::net::Ipv6Addr::LOCALHOST;
    let unspecified6 = std::net::Ipv6Addr::UNSPECIFIED;
    let filter = Chain::base(CHAIN, ChainKind::Filter, Hook::Prerouting, Priority::RAW, Policy::Accept)
        .rule(v4("loopback of the node").in_net(Field::IpDaddr, loopback4()).counter().drop())
        .rule(v6("loopback of the node").is(Field::Ip6Daddr, loopback6).counter().drop())
        .rule(icmpv6("a pod is no router").is(Field::Icmpv6Type, ROUTER_ADVERTISEMENT).counter().drop())
        .rule(icmpv6("a pod is no router").is(Field::Icmpv6Type, REDIRECT).counter().drop())
        .rule(
            pod("before it has an address")
                .is(Field::L4Proto, ICMPV6)
                .is(Field::NfProto, NFPROTO_IPV6)
                .is(Field::Ip6Saddr, unspecified6)
                .accept(),
        )
        .rule(v4("allowed besides its own").in_set([Field::IpSaddr], ALLOWED4).accept())
        .rule(v6("allowed besides its own").in_set([Field::Ip6Saddr], ALLOWED6).accept())
        .rule(pod("not its own address").is(Field::FibSaddrIif, 0_u8).counter().drop())
        .rule(pod("turns connection tracking on").any_bit(Field::CtState, ct_state::ESTABLISHED).accept());
    table.chains = vec![filter];
    table
}

fn loopback4() -> IpNet {
    IpNet::V4(ipnet::Ipv4Net::new_assert(std::net::Ipv4Addr::new(127, 0, 0, 0), 8))
}
