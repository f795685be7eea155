//! What is let in and what is told, and with which attributes: each kind of neighbour, each option, each part of a
//! filter. What a neighbour gets is read from the octets that it gets.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests: a failure is a panic")]

use std::sync::Arc;

use podway_bgp::Event;
use podway_bgp::config::{
    Export, Import, LocalAs, Neighbour, NeighbourOptions, NextHop, Relation, Role, SpeakerConfig,
    SpeakerOptions,
};
use podway_bgp::filter::{AsPathMatch, Filter, Match, PrefixRange, Rule, Set, Source, Verdict};
use podway_bgp::message::attribute::{
    AsPath, GRACEFUL_SHUTDOWN, NO_ADVERTISE, NO_EXPORT, NO_EXPORT_SUBCONFED, Origin, PathAttributes, Segment,
    SegmentKind, kind,
};
use podway_bgp::message::update::DecodeContext;
use podway_bgp::types::Families;
use podway_model::ids::Asn;
use proptest::prelude::*;

mod rig;
use rig::{ASN, Rig, Table, attributes, internal, ip, neighbour, net, nlri, open, with};

/// As an external neighbour of ours reads.
const OUTSIDE: DecodeContext = DecodeContext { external: Some(ASN), ..DecodeContext::INTERNAL };

fn path(asns: &[u32]) -> AsPath {
    if asns.is_empty() {
        return AsPath::default();
    }
    AsPath(vec![Segment { kind: SegmentKind::Sequence, asns: asns.to_vec() }])
}

/// A route from outside.
fn external(next_hop: &str, asns: &[u32]) -> PathAttributes {
    PathAttributes { as_path: path(asns), ..PathAttributes::originated(ip(next_hop)) }
}

fn outside(asn: u32, options: NeighbourOptions) -> Neighbour {
    Neighbour { options, ..neighbour(Role::External, asn) }
}

/// What a neighbour of kind `to` is told of a route that a neighbour of kind `from` announced; `None`: nothing.
fn told(from: Neighbour, to: Neighbour, route: &PathAttributes) -> Option<PathAttributes> {
    told_with(SpeakerOptions::default(), from, to, route)
}

fn told_with(
    options: SpeakerOptions,
    from: Neighbour,
    to: Neighbour,
    route: &PathAttributes,
) -> Option<PathAttributes> {
    let (from_asn, to_asn) = (from.asn.number(), to.asn.number());
    let context = match to.role {
        Role::External => {
            let ours = to.options.local_as.map_or(ASN, |local| local.asn.number());
            DecodeContext { external: Some(ours), first_as: !to.options.route_server_client, ..OUTSIDE }
        }
        _ => DecodeContext::INTERNAL,
    };
    let config = SpeakerConfig { options, ..with([("10.0.0.1", from), ("10.0.0.2", to)]) };
    let mut rig = Rig::new(config);
    let sender = rig.establish_and_read("10.0.0.1", &open(from_asn, "10.0.0.1"));
    let reader = rig.establish_and_read("10.0.0.2", &open(to_asn, "10.0.0.2"));
    rig.announce(sender, route, &nlri("10.1.0.0/16"));
    rig.settle();
    let mut table = Table::default();
    let updates = rig.updates(reader, &context);
    assert!(updates.iter().all(|update| update.faults.is_empty()), "{updates:?}");
    table.take(updates);
    table.get("10.1.0.0/16").cloned()
}

#[test]
fn who_is_told_of_whose_routes() {
    // RFC 4271 9.2, RFC 4456 section 6. Rows: from; columns: to mesh, client, reflector, external.
    let kinds = [Role::Mesh, Role::Client, Role::Reflector, Role::External];
    let expected = [
        (Role::Mesh, [false, true, false, true]),
        (Role::Client, [true, true, true, true]),
        (Role::Reflector, [false, true, false, true]),
        (Role::External, [true, true, true, true]),
    ];
    for (from, row) in expected {
        for (to, wanted) in kinds.into_iter().zip(row) {
            let make = |role, asn| neighbour(role, if role == Role::External { asn } else { ASN });
            let route = match from {
                Role::External => external("10.0.0.1", &[65001]),
                _ => attributes("10.0.0.1"),
            };
            let found = told(make(from, 65001), make(to, 65002), &route);
            assert_eq!(found.is_some(), wanted, "{from:?} to {to:?}");
            let Some(found) = found else { continue };
            let reflected = from != Role::External && to != Role::External;
            let originator = reflected.then(|| "10.0.0.1".parse().unwrap());
            assert_eq!(found.originator_id, originator, "{from:?} to {to:?}");
            assert_eq!(found.cluster_list.len(), usize::from(reflected));
            let next_hop = if to == Role::External { "10.0.0.100" } else { "10.0.0.1" };
            assert_eq!(found.next_hop, ip(next_hop), "{from:?} to {to:?}");
            assert_eq!(found.local_pref, (to != Role::External).then_some(100));
            let mut expected = if to == Role::External { vec![ASN] } else { vec![] };
            expected.extend((from == Role::External).then_some(65001));
            assert_eq!(found.as_path.sequence().collect::<Vec<_>>(), expected);
        }
    }
}

#[test]
fn a_prefix_of_the_cluster_is_used_as_claimed_whoever_tells_it() {
    let options = SpeakerOptions { claimed_only: [net("10.244.0.0/16")].into(), ..SpeakerOptions::default() };
    let rack = outside(65000, NeighbourOptions::default());
    let mut rig = Rig::new(SpeakerConfig { options, ..with([("10.0.0.1", rack)]) });
    let conn = rig.establish_and_read("10.0.0.1", &open(65000, "10.0.0.1"));
    // A block, the pool itself, what covers it, and what lies elsewhere.
    let all = ["10.244.7.0/26", "10.244.0.0/16", "0.0.0.0/0", "10.245.0.0/16"];
    rig.announce(conn, &external("10.0.0.7", &[65000]), &nlri(&all.join(" ")));
    rig.settle();
    let used = |rig: &Rig| all.map(|prefix| rig.next_hop(prefix).is_some());
    assert_eq!(used(&rig), [false, false, true, true]);
    let claimed = |by: &str| Event::Claimed(Arc::new([(net("10.244.7.0/26"), [ip(by)].into())].into()));
    rig.step(claimed("10.0.0.8"));
    rig.settle();
    assert_eq!(used(&rig), [false, false, true, true], "claimed by another node");
    rig.step(claimed("10.0.0.7"));
    rig.settle();
    assert_eq!(used(&rig), [true, false, true, true]);
    // The pool goes: nothing is reserved any more.
    let rack = outside(65000, NeighbourOptions::default());
    rig.configure(with([("10.0.0.1", rack)]));
    rig.settle();
    assert_eq!(used(&rig), [true; 4]);
}

#[test]
fn without_a_policy_nothing_passes_the_border() {
    let closed = Neighbour { import: Import::None, export: Export::None, ..neighbour(Role::External, 65001) };
    let mut rig = Rig::new(with([("10.0.0.1", closed)]));
    let conn = rig.establish_and_read("10.0.0.1", &open(65001, "10.0.0.1"));
    rig.announce(conn, &external("10.0.0.1", &[65001]), &nlri("10.1.0.0/16"));
    rig.settle();
    assert_eq!(rig.routes.len(), 0, "RFC 8212");
    assert_eq!(rig.speaker.peers()[0].received, 1, "what came is known all the same");
    assert_eq!(rig.speaker.advertised(ip("10.0.0.1")), []);
}

#[test]
fn well_known_communities_are_honoured() {
    let marked = |community: u32| {
        let mut route = attributes("10.0.0.1");
        route.add_member(kind::COMMUNITIES, community.to_be_bytes());
        route
    };
    let client = || internal(Role::Client);
    let cases = [(NO_EXPORT, true, false), (NO_EXPORT_SUBCONFED, true, false), (NO_ADVERTISE, false, false)];
    for (community, inside, across) in cases {
        let route = marked(community);
        assert_eq!(told(client(), client(), &route).is_some(), inside, "{community:x}");
        assert_eq!(
            told(client(), neighbour(Role::External, 65002), &route).is_some(),
            across,
            "{community:x}"
        );
    }
    // RFC 8326 section 4.1: from outside the border lowers the preference.
    let mut leaving = external("10.0.0.1", &[65001]);
    leaving.add_member(kind::COMMUNITIES, GRACEFUL_SHUTDOWN.to_be_bytes());
    let found = told(neighbour(Role::External, 65001), client(), &leaving).unwrap();
    assert_eq!(found.local_pref, Some(0));
    assert!(found.has_community(GRACEFUL_SHUTDOWN));
}

#[test]
fn maintenance_makes_us_the_last_resort() {
    let mut config = with([
        ("10.0.0.1", internal(Role::Client)),
        ("10.0.0.2", internal(Role::Client)),
        ("10.0.0.3", neighbour(Role::External, 65003)),
    ]);
    let mut rig = Rig::new(config.clone());
    let sender = rig.establish_and_read("10.0.0.1", &open(ASN, "10.0.0.1"));
    let inside = rig.establish_and_read("10.0.0.2", &open(ASN, "10.0.0.2"));
    let across = rig.establish_and_read("10.0.0.3", &open(65003, "10.0.0.3"));
    rig.announce(sender, &attributes("10.0.0.1"), &nlri("10.1.0.0/16"));
    rig.settle();
    rig.frames(inside);
    rig.frames(across);
    config.options.maintenance = true;
    rig.configure(config.clone());
    rig.settle();
    let (mut at_inside, mut at_across) = (Table::default(), Table::default());
    at_inside.take(rig.updates(inside, &DecodeContext::INTERNAL));
    at_across.take(rig.updates(across, &OUTSIDE));
    let ours = at_inside.get("10.244.0.0/26").unwrap();
    assert!(ours.has_community(GRACEFUL_SHUTDOWN) && ours.local_pref == Some(0));
    let reflected = at_inside.get("10.1.0.0/16").unwrap();
    assert!(
        !reflected.has_community(GRACEFUL_SHUTDOWN) && reflected.local_pref == Some(100),
        "not by way of us"
    );
    assert!(at_across.routes.values().all(|route| route.has_community(GRACEFUL_SHUTDOWN)));
    assert!(rig.closed.is_empty(), "no session was touched");
    config.options.maintenance = false;
    rig.configure(config);
    rig.settle();
    at_inside.take(rig.updates(inside, &DecodeContext::INTERNAL));
    assert!(!at_inside.get("10.244.0.0/26").unwrap().has_community(GRACEFUL_SHUTDOWN));
}

#[test]
fn next_hops_as_configured() {
    let with_mode = |role, asn, next_hop| {
        let options = NeighbourOptions { next_hop, ..Default::default() };
        Neighbour { options, ..neighbour(role, asn) }
    };
    let from_outside = || neighbour(Role::External, 65001);
    let route = external("10.0.0.1", &[65001]);
    let cases = [
        (Role::Client, NextHop::Auto, "10.0.0.1"),
        (Role::Client, NextHop::Own, "10.0.0.100"),
        (Role::Client, NextHop::Keep, "10.0.0.1"),
        (Role::External, NextHop::Auto, "10.0.0.100"),
        (Role::External, NextHop::Own, "10.0.0.100"),
        (Role::External, NextHop::Keep, "10.0.0.1"),
    ];
    for (role, mode, expected) in cases {
        let asn = if role == Role::External { 65002 } else { ASN };
        let found = told(from_outside(), with_mode(role, asn, mode), &route).unwrap();
        assert_eq!(found.next_hop, ip(expected), "{role:?} {mode:?}");
    }
    // RFC 4456 section 8: what is reflected keeps its next hop in any case.
    let found =
        told(internal(Role::Client), with_mode(Role::Client, ASN, NextHop::Own), &attributes("10.0.0.1"));
    assert_eq!(found.unwrap().next_hop, ip("10.0.0.1"));
}

#[test]
fn as_paths_as_configured() {
    let from = |options| outside(65001, options);
    let to = |options| outside(65002, options);
    let plain = NeighbourOptions::default;
    let sequence = |from, to, asns: &[u32]| {
        told(from, to, &external("10.0.0.1", asns)).map(|found| found.as_path.to_string())
    };
    assert_eq!(sequence(from(plain()), to(plain()), &[65001]).unwrap(), "64512 65001");
    // Our own number in the path: a loop, unless it may stand there so often.
    let allowing = |allow_own_as| from(NeighbourOptions { allow_own_as, ..plain() });
    assert_eq!(sequence(from(plain()), to(plain()), &[65001, ASN]), None);
    assert_eq!(sequence(allowing(1), to(plain()), &[65001, ASN]).unwrap(), "64512 65001 64512");
    assert_eq!(sequence(allowing(1), to(plain()), &[65001, ASN, ASN]), None);
    // Private numbers go, ours stays in front.
    let hiding = || to(NeighbourOptions { remove_private: true, ..plain() });
    assert_eq!(sequence(from(plain()), hiding(), &[65001, 3356, 4_200_000_007]).unwrap(), "64512 3356");
    // Its own number is replaced by ours.
    let overriding = || to(NeighbourOptions { as_override: true, ..plain() });
    assert_eq!(sequence(from(plain()), overriding(), &[65001, 65002]).unwrap(), "64512 65001 64512");
    // A route server is not in the path; next hop and MED stay.
    let client = to(NeighbourOptions { route_server_client: true, ..plain() });
    let route = PathAttributes { med: Some(7), ..external("10.0.0.1", &[65001]) };
    let found = told(from(plain()), client, &route).unwrap();
    assert_eq!((found.as_path, found.next_hop, found.med), (path(&[65001]), ip("10.0.0.1"), Some(7)));
    // A path that does not begin with the neighbour is a route server's, where configuration says so.
    let server = from(NeighbourOptions { first_as: false, ..plain() });
    assert_eq!(sequence(from(plain()), to(plain()), &[65009]), None);
    assert_eq!(sequence(server, to(plain()), &[65009]).unwrap(), "64512 65009");
}

#[test]
fn a_local_as_stands_in_opens_and_paths() {
    let local = |alone| NeighbourOptions {
        local_as: Some(LocalAs { asn: Asn::try_from(65100).unwrap(), alone }),
        ..Default::default()
    };
    for (alone, out, through) in [(false, "65100 64512", "64512 65100 65001"), (true, "65100", "64512 65001")]
    {
        let mut rig = Rig::new(with([
            ("10.0.0.1", outside(65001, local(alone))),
            ("10.0.0.2", neighbour(Role::External, 65002)),
        ]));
        let conn = rig.connect("10.0.0.1");
        let ours = rig.frames(conn).remove(0);
        assert_eq!(podway_bgp::message::open::Open::decode(ours.body).unwrap().asn, 65100);
        rig.send(conn, open(65001, "10.0.0.1").encode());
        rig.send(conn, podway_bgp::message::keepalive());
        let other = rig.establish_and_read("10.0.0.2", &open(65002, "10.0.0.2"));
        let mut table = Table::default();
        table.take(rig.updates(conn, &DecodeContext { external: Some(65100), ..OUTSIDE }));
        assert_eq!(table.get("10.244.0.0/26").unwrap().as_path.to_string(), out);
        rig.announce(conn, &external("10.0.0.1", &[65001]), &nlri("10.1.0.0/16"));
        rig.settle();
        let mut table = Table::default();
        table.take(rig.updates(other, &OUTSIDE));
        assert_eq!(table.get("10.1.0.0/16").unwrap().as_path.to_string(), through);
        // The pretended number in a path is a loop too.
        rig.announce(conn, &external("10.0.0.1", &[65001, 65100]), &nlri("10.1.0.0/16"));
        assert_eq!(rig.next_hop("10.1.0.0/16"), None);
    }
}

#[test]
fn only_to_customer_follows_rfc_9234() {
    use Relation::{Customer, Peer, Provider, RouteServer, RouteServerClient};
    let role = |asn, relation| {
        let options = NeighbourOptions { relation: Some(relation), ..Default::default() };
        outside(asn, options)
    };
    let marked = |asn: Option<u32>| {
        let mut route = external("10.0.0.1", &[65001]);
        if let Some(asn) = asn {
            route.set_other(kind::OTC, bytes::Bytes::copy_from_slice(&asn.to_be_bytes()));
        }
        route
    };
    // Ingress: our role, what came, what an internal neighbour is told of it.
    let ingress = [
        (Provider, None, Some(None)),
        (Provider, Some(1), None),
        (RouteServer, None, Some(None)),
        (RouteServer, Some(1), None),
        (Peer, None, Some(Some(65001))),
        (Peer, Some(65001), Some(Some(65001))),
        (Peer, Some(1), None),
        (Customer, None, Some(Some(65001))),
        (Customer, Some(1), Some(Some(1))),
        (RouteServerClient, None, Some(Some(65001))),
        (RouteServerClient, Some(1), Some(Some(1))),
    ];
    for (ours, came, wanted) in ingress {
        let found = told(role(65001, ours), internal(Role::Client), &marked(came));
        assert_eq!(found.map(|route| route.only_to_customer()), wanted, "{ours:?} {came:?}");
    }
    // Egress: our role, what the route carries, what goes out.
    let egress = [
        (Provider, None, Some(Some(ASN))),
        (Provider, Some(1), Some(Some(1))),
        (RouteServer, None, Some(Some(ASN))),
        (Peer, None, Some(Some(ASN))),
        (Peer, Some(1), None),
        (Customer, None, Some(None)),
        (Customer, Some(1), None),
        (RouteServerClient, None, Some(None)),
        (RouteServerClient, Some(1), None),
    ];
    for (ours, carries, wanted) in egress {
        let found = told(neighbour(Role::External, 65001), role(65002, ours), &marked(carries));
        assert_eq!(found.map(|route| route.only_to_customer()), wanted, "{ours:?} {carries:?}");
    }
}

#[test]
fn a_default_route_is_originated_for_whom_it_is_wanted() {
    let options = NeighbourOptions { default_originate: Families::BOTH, ..Default::default() };
    let mut rig =
        Rig::new(with([("10.0.0.1", outside(65001, options)), ("10.0.0.2", internal(Role::Client))]));
    let wants = rig.establish("10.0.0.1", &open(65001, "10.0.0.1"));
    let other = rig.establish("10.0.0.2", &open(ASN, "10.0.0.2"));
    rig.settle();
    let (mut at_wants, mut at_other) = (Table::default(), Table::default());
    at_wants.take(rig.updates(wants, &OUTSIDE));
    at_other.take(rig.updates(other, &DecodeContext::INTERNAL));
    assert_eq!(at_wants.get("0.0.0.0/0").unwrap().next_hop, ip("10.0.0.100"));
    assert_eq!(at_wants.get("::/0").unwrap().next_hop, ip("fd00::100"));
    assert_eq!(at_other.get("0.0.0.0/0"), None);
    // A learned default route changes nothing about it.
    rig.announce(other, &attributes("10.0.0.2"), &nlri("0.0.0.0/0"));
    rig.settle();
    assert!(rig.updates(wants, &OUTSIDE).is_empty());
    assert_eq!(rig.next_hop("0.0.0.0/0"), Some(ip("10.0.0.2")));
}

fn filter(rules: Vec<Rule>, otherwise: Verdict) -> Option<Arc<Filter>> {
    Some(Arc::new(Filter { rules, otherwise }))
}

/// Whether a filter that accepts what matches lets the route in; with `not` in front the opposite must hold.
fn lets_in(condition: &Match, prefix: &str, route: &PathAttributes) -> bool {
    let try_one = |condition: Match| {
        let rule = Rule { matches: vec![condition], set: vec![], verdict: Some(Verdict::Accept) };
        let import = filter(vec![rule], Verdict::Reject);
        let options = NeighbourOptions { import, ..Default::default() };
        let mut rig = Rig::new(with([("10.0.0.1", outside(65001, options))]));
        let conn = rig.establish_and_read("10.0.0.1", &open(65001, "10.0.0.1"));
        rig.announce(conn, route, &nlri(prefix));
        rig.next_hop(prefix).is_some()
    };
    let found = try_one(condition.clone());
    assert_eq!(try_one(Match::Not(Box::new(condition.clone()))), !found, "{condition:?}");
    found
}

#[test]
fn each_condition_holds_exactly_where_it_should() {
    let plain = external("10.0.0.1", &[65001, 7]);
    let prefix = |within: &str, shortest, longest| {
        Match::Prefix(vec![PrefixRange { within: net(within), shortest, longest }])
    };
    let mut tagged = plain.clone();
    tagged.add_member(kind::COMMUNITIES, 0x0001_0002u32.to_be_bytes());
    tagged.add_member(kind::EXTENDED_COMMUNITIES, [0, 2, 0, 1, 0, 0, 0, 5]);
    tagged.add_member(kind::LARGE_COMMUNITIES, [0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 3]);
    let cases = [
        (Match::Prefix(vec![PrefixRange::exactly(net("10.1.0.0/16"))]), "10.1.0.0/16", &plain, true),
        (Match::Prefix(vec![PrefixRange::exactly(net("10.1.0.0/16"))]), "10.1.0.0/17", &plain, false),
        (Match::Prefix(vec![PrefixRange::all_of(net("10.1.0.0/16"))]), "10.1.128.0/17", &plain, true),
        (Match::Prefix(vec![PrefixRange::all_of(net("10.1.0.0/16"))]), "10.0.0.0/15", &plain, false),
        (prefix("10.0.0.0/8", 16, 24), "10.2.0.0/15", &plain, false),
        (prefix("10.0.0.0/8", 16, 24), "10.1.0.0/16", &plain, true),
        (prefix("10.0.0.0/8", 16, 24), "10.1.1.0/24", &plain, true),
        (prefix("10.0.0.0/8", 16, 24), "10.1.1.0/25", &plain, false),
        (prefix("10.0.0.0/8", 16, 24), "11.1.0.0/16", &plain, false),
        (Match::Community(vec![9, 0x0001_0002]), "10.1.0.0/16", &tagged, true),
        (Match::Community(vec![9]), "10.1.0.0/16", &tagged, false),
        (Match::Community(vec![9]), "10.1.0.0/16", &plain, false),
        (Match::ExtendedCommunity(vec![[0, 2, 0, 1, 0, 0, 0, 5]]), "10.1.0.0/16", &tagged, true),
        (Match::ExtendedCommunity(vec![[0; 8]]), "10.1.0.0/16", &tagged, false),
        (Match::LargeCommunity(vec![[1, 2, 3]]), "10.1.0.0/16", &tagged, true),
        (Match::LargeCommunity(vec![[1, 2, 4]]), "10.1.0.0/16", &tagged, false),
        (Match::AsPath(AsPathMatch::Empty), "10.1.0.0/16", &plain, false),
        (Match::AsPath(AsPathMatch::Contains(vec![7])), "10.1.0.0/16", &plain, true),
        (Match::AsPath(AsPathMatch::Contains(vec![8])), "10.1.0.0/16", &plain, false),
        (Match::AsPath(AsPathMatch::From(vec![65001])), "10.1.0.0/16", &plain, true),
        (Match::AsPath(AsPathMatch::From(vec![7])), "10.1.0.0/16", &plain, false),
        (Match::AsPath(AsPathMatch::OriginatedIn(vec![7])), "10.1.0.0/16", &plain, true),
        (Match::AsPath(AsPathMatch::OriginatedIn(vec![65001])), "10.1.0.0/16", &plain, false),
        (Match::AsPath(AsPathMatch::LongerThan(1)), "10.1.0.0/16", &plain, true),
        (Match::AsPath(AsPathMatch::LongerThan(2)), "10.1.0.0/16", &plain, false),
        (Match::AsPath(AsPathMatch::BeginsWith(vec![65001, 7])), "10.1.0.0/16", &plain, true),
        (Match::AsPath(AsPathMatch::BeginsWith(vec![65001, 7, 8])), "10.1.0.0/16", &plain, false),
        (Match::NextHop(vec![net("10.0.0.0/24")]), "10.1.0.0/16", &plain, true),
        (Match::NextHop(vec![net("10.0.1.0/24")]), "10.1.0.0/16", &plain, false),
        (Match::Source(Source::Own), "10.1.0.0/16", &plain, false),
        (Match::Source(Source::Role(Role::External)), "10.1.0.0/16", &plain, true),
        (Match::Source(Source::Role(Role::Mesh)), "10.1.0.0/16", &plain, false),
        (Match::Source(Source::Neighbours(vec![ip("10.0.0.1")])), "10.1.0.0/16", &plain, true),
        (Match::Source(Source::Neighbours(vec![ip("10.0.0.2")])), "10.1.0.0/16", &plain, false),
    ];
    for (condition, prefix, route, wanted) in cases {
        assert_eq!(lets_in(&condition, prefix, route), wanted, "{condition:?} {prefix}");
    }
}

#[test]
fn each_setting_does_what_it_says_in_and_out() {
    let from = |set: Vec<Set>| {
        let rule = Rule { matches: vec![], set, verdict: None };
        outside(65001, NeighbourOptions { import: filter(vec![rule], Verdict::Accept), ..Default::default() })
    };
    let mut route = PathAttributes { med: Some(5), ..external("10.0.0.1", &[65001]) };
    route.add_member(kind::COMMUNITIES, 7u32.to_be_bytes());
    let set = |set: Set| told(from(vec![set]), internal(Role::Client), &route).unwrap();
    let communities = |found: &PathAttributes| {
        found.members::<4>(kind::COMMUNITIES).map(u32::from_be_bytes).collect::<Vec<_>>()
    };
    assert_eq!(set(Set::LocalPref(300)).local_pref, Some(300));
    assert_eq!((set(Set::Med(Some(9))).med, set(Set::Med(None)).med), (Some(9), None));
    assert_eq!(set(Set::Origin(Origin::Incomplete)).origin, Origin::Incomplete);
    assert_eq!(communities(&set(Set::AddCommunity(3))), [3, 7]);
    assert_eq!(communities(&set(Set::AddCommunity(7))), [7]);
    assert!(communities(&set(Set::RemoveCommunity(7))).is_empty());
    assert_eq!(communities(&set(Set::RemoveCommunity(8))), [7]);
    let tags = [Set::AddLargeCommunity([1, 2, 3]), Set::AddExtendedCommunity([9; 8]), Set::AddCommunity(1)];
    let found = told(from(tags.to_vec()), internal(Role::Client), &route).unwrap();
    let kinds: Vec<u8> = found.others.iter().map(|other| other.kind).collect();
    assert_eq!(kinds, [kind::COMMUNITIES, kind::EXTENDED_COMMUNITIES, kind::LARGE_COMMUNITIES]);
    let cleared = [tags.to_vec(), vec![Set::ClearCommunities]].concat();
    assert_eq!(told(from(cleared), internal(Role::Client), &route).unwrap().others, []);
    let gone =
        [tags.to_vec(), vec![Set::RemoveLargeCommunity([1, 2, 3]), Set::RemoveExtendedCommunity([9; 8])]];
    assert_eq!(told(from(gone.concat()), internal(Role::Client), &route).unwrap().others.len(), 1);
    assert_eq!(set(Set::Prepend { asn: 9, times: 2 }).as_path, path(&[9, 9, 65001]));
    assert_eq!(set(Set::NextHop(ip("10.0.0.7"))).next_hop, ip("10.0.0.7"));
    assert_eq!(set(Set::NextHop(ip("fd00::7"))).next_hop, ip("10.0.0.1"), "of another family: nothing");
    // On the way out: before our own number goes in front; LOCAL_PREF never leaves.
    let out = |set: Vec<Set>| {
        let rule = Rule { matches: vec![], set, verdict: Some(Verdict::Accept) };
        let export = filter(vec![rule], Verdict::Reject);
        let to = outside(65002, NeighbourOptions { export, ..Default::default() });
        told(neighbour(Role::External, 65001), to, &route).unwrap()
    };
    let found = out(vec![
        Set::Prepend { asn: ASN, times: 2 },
        Set::LocalPref(9),
        Set::Med(Some(1)),
        Set::NextHop(ip("10.0.0.9")),
        Set::AddCommunity(NO_EXPORT),
    ]);
    assert_eq!(found.as_path, path(&[ASN, ASN, ASN, 65001]));
    assert_eq!((found.local_pref, found.med, found.next_hop), (None, Some(1), ip("10.0.0.9")));
    assert!(found.has_community(NO_EXPORT), "it is for the neighbour, not for us");
}

#[test]
fn the_first_verdict_counts_and_later_rules_see_what_was_set() {
    let rule = |matches, set, verdict| Rule { matches, set, verdict };
    let import = filter(
        vec![
            rule(
                vec![Match::Prefix(vec![PrefixRange::all_of(net("10.9.0.0/16"))])],
                vec![],
                Some(Verdict::Reject),
            ),
            rule(vec![], vec![Set::AddCommunity(1)], None),
            rule(vec![Match::Community(vec![1])], vec![Set::LocalPref(200)], Some(Verdict::Accept)),
            rule(vec![], vec![Set::LocalPref(300)], Some(Verdict::Accept)),
        ],
        Verdict::Reject,
    );
    let options = NeighbourOptions { import, ..Default::default() };
    let mut config = with([("10.0.0.1", outside(65001, options))]);
    let mut rig = Rig::new(config.clone());
    let conn = rig.establish_and_read("10.0.0.1", &open(65001, "10.0.0.1"));
    rig.announce(conn, &external("10.0.0.1", &[65001]), &nlri("10.1.0.0/16 10.9.1.0/24"));
    let routes: Vec<_> = rig.speaker.routes().into_iter().filter(|route| route.from.is_some()).collect();
    assert_eq!(
        routes.iter().map(|route| (route.usable, route.local_pref)).collect::<Vec<_>>(),
        [(true, 200), (false, 100)]
    );
    // Another filter is applied to what came, without asking the neighbour and without touching the session.
    let reject = NeighbourOptions { import: Some(Arc::new(Filter::reject())), ..Default::default() };
    config.neighbours.insert(ip("10.0.0.1"), outside(65001, reject));
    rig.configure(config.clone());
    assert_eq!((rig.routes.len(), rig.closed.len()), (0, 0));
    config.neighbours.insert(ip("10.0.0.1"), outside(65001, NeighbourOptions::default()));
    rig.configure(config);
    assert_eq!((rig.routes.len(), rig.closed.len()), (2, 0));
    assert!(
        rig.speaker.routes().iter().filter(|r| r.from.is_some()).all(|r| r.local_pref == 100),
        "as it came"
    );
}

#[test]
fn a_new_export_filter_tells_the_difference_on_the_live_session() {
    let to = |export: Option<Arc<Filter>>| outside(65002, NeighbourOptions { export, ..Default::default() });
    let only = |prefix: &str| {
        let matches = vec![Match::Prefix(vec![PrefixRange::all_of(net(prefix))])];
        filter(vec![Rule { matches, set: vec![], verdict: Some(Verdict::Accept) }], Verdict::Reject)
    };
    let config = |export| with([("10.0.0.1", internal(Role::Client)), ("10.0.0.2", to(export))]);
    let mut rig = Rig::new(config(only("10.1.0.0/16")));
    let sender = rig.establish_and_read("10.0.0.1", &open(ASN, "10.0.0.1"));
    let reader = rig.establish("10.0.0.2", &open(65002, "10.0.0.2"));
    rig.announce(sender, &attributes("10.0.0.1"), &nlri("10.1.1.0/24 10.2.0.0/16 10.3.0.0/16"));
    let mut table = Table::default();
    let mut look = |rig: &mut Rig| {
        rig.settle();
        table.take(rig.updates(reader, &OUTSIDE));
        table.prefixes().join(" ")
    };
    assert_eq!(look(&mut rig), "10.1.1.0/24");
    rig.configure(config(only("10.2.0.0/15")));
    assert_eq!(look(&mut rig), "10.2.0.0/16 10.3.0.0/16");
    rig.withdraw(sender, &nlri("10.3.0.0/16"));
    assert_eq!(look(&mut rig), "10.2.0.0/16");
    rig.configure(config(None));
    assert_eq!(look(&mut rig), "10.1.1.0/24 10.2.0.0/16 10.244.0.0/26 fd10::/122");
    assert!(rig.closed.is_empty());
}

#[test]
fn equal_paths_are_used_together_where_configuration_says_so() {
    let mut config = with([
        ("10.0.0.1", neighbour(Role::External, 65001)),
        ("10.0.0.2", neighbour(Role::External, 65001)),
        ("10.0.0.3", neighbour(Role::External, 65003)),
    ]);
    let mut rig = Rig::new(config.clone());
    for (address, asn) in [("10.0.0.1", 65001), ("10.0.0.2", 65001), ("10.0.0.3", 65003)] {
        let conn = rig.establish_and_read(address, &open(asn, address));
        rig.announce(conn, &external(address, &[asn]), &nlri("10.1.0.0/16"));
    }
    let mut look = |limit, relax| {
        config.options.multipath.limit = limit;
        config.options.multipath.relax = relax;
        rig.configure(config.clone());
        let mut all: Vec<String> = rig.routes[&net("10.1.0.0/16")].iter().map(ToString::to_string).collect();
        all.sort();
        all.join(" ")
    };
    assert_eq!(look(1, false), "10.0.0.1");
    assert_eq!(look(8, false), "10.0.0.1 10.0.0.2");
    assert_eq!(look(8, true), "10.0.0.1 10.0.0.2 10.0.0.3");
    assert_eq!(look(2, true), "10.0.0.1 10.0.0.2");
    assert_eq!(look(1, true), "10.0.0.1");
}

proptest! {
    #[test]
    fn a_prefix_is_in_a_range_if_its_bits_and_length_are(
        base in any::<u32>(), bits in 0..=32u8, other in any::<u32>(), length in 0..=32u8,
        bounds in (0..=32u8, 0..=32u8), near in any::<bool>(),
    ) {
        let net = |address: u32, bits| ipnet::IpNet::V4(ipnet::Ipv4Net::new(address.into(), bits).unwrap().trunc());
        let other = if near { base ^ (other & 3) } else { other };
        let range = PrefixRange { within: net(base, bits), shortest: bounds.0, longest: bounds.1 };
        let prefix = net(other, length);
        let mask = |bits: u8| u32::MAX.checked_shl(32 - u32::from(bits)).unwrap_or(0);
        let inside = length >= bits && (base ^ other) & mask(bits) == 0;
        prop_assert_eq!(range.contains(&prefix), inside && bounds.0 <= length && length <= bounds.1);
    }
}
