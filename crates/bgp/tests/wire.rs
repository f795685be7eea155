//! A session as the other side sees it: what is said before each close, what becomes of broken messages on a live
//! session, collisions, refreshes, limits. One speaker, hand-made neighbours.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    reason = "tests: a failure is a panic, numbers are small"
)]

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use podway_bgp::config::{
    AddPath, AsRange, ConnectMode, MaxPrefixes, NeighbourOptions, Range, Relation, Role, SpeakerConfig,
    SpeakerOptions,
};
use podway_bgp::message::attribute::{Opaque, PathAttributes};
use podway_bgp::message::capability::{Capabilities, GracefulRestart, RoleSaid};
use podway_bgp::message::open::Open;
use podway_bgp::message::refresh::{self, Subtype};
use podway_bgp::message::update::{DecodeContext, Encoding};
use podway_bgp::message::{MAX_EXTENDED_LEN, MessageType, Nlri, Notification, keepalive};
use podway_bgp::session::State;
use podway_bgp::types::{Families, Family};
use podway_bgp::{AfterStop, Event};

mod rig;
use rig::{ASN, Rig, Table, attributes, internal, ip, neighbour, net, nlri, open, with};

const INTERNAL: DecodeContext = DecodeContext::INTERNAL;

fn message(kind: u8, body: &[u8]) -> Bytes {
    let mut out = BytesMut::new();
    out.put_bytes(0xff, 16);
    out.put_u16(u16::try_from(19 + body.len()).unwrap());
    out.put_u8(kind);
    out.put_slice(body);
    out.freeze()
}

fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
    let pair = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
    digits.chunks(2).map(pair).collect()
}

/// An UPDATE from its attributes and NLRI in hexadecimal.
fn raw_update(attributes: &str, nlri: &str) -> Bytes {
    let (attributes, nlri) = (hex(attributes), hex(nlri));
    let mut body = vec![0, 0];
    body.extend(u16::try_from(attributes.len()).unwrap().to_be_bytes());
    body.extend(attributes);
    body.extend(nlri);
    message(2, &body)
}

fn one_mesh_peer() -> Rig {
    Rig::new(with([("10.0.0.1", internal(Role::Mesh))]))
}

#[test]
fn an_open_that_cannot_be_accepted_is_told_why() {
    let good = open(ASN, "10.0.0.1").encode();
    let changed = |at: usize, octets: &[u8]| {
        let mut bytes = good.to_vec();
        bytes[19 + at..19 + at + octets.len()].copy_from_slice(octets);
        Bytes::from(bytes)
    };
    let cases: [(&str, Bytes, (u8, u8)); 9] = [
        ("version 3", changed(0, &[3]), (2, 1)),
        ("another AS", open(ASN + 1, "10.0.0.1").encode(), (2, 2)),
        ("AS 0", open(0, "10.0.0.1").encode(), (2, 2)),
        ("identifier 0", open(ASN, "0.0.0.0").encode(), (2, 3)),
        ("our identifier within the AS (RFC 6286)", open(ASN, "10.0.0.100").encode(), (2, 3)),
        ("hold time 1", changed(3, &[0, 1]), (2, 6)),
        (
            "a broken marker",
            {
                let mut b = good.to_vec();
                b[7] = 0;
                b.into()
            },
            (1, 1),
        ),
        ("an unknown message", message(9, &[]), (1, 3)),
        ("an UPDATE first", raw_update("", ""), (5, 1)),
    ];
    for (what, bytes, code) in cases {
        let mut rig = one_mesh_peer();
        let conn = rig.connect("10.0.0.1");
        rig.send(conn, bytes);
        assert_eq!(rig.said(conn), code, "{what}");
        let status = &rig.speaker.peers()[0];
        assert!(status.last_error.as_ref().is_some_and(|e| e.contains("we said")), "{what}: {status:?}");
    }
    // Outside the AS the same identifier is no mistake (RFC 6286 section 2.1).
    let mut rig = Rig::new(with([("10.0.0.1", neighbour(Role::External, 65001))]));
    rig.establish("10.0.0.1", &open(65001, "10.0.0.100"));
}

#[test]
fn a_notification_goes_before_every_close_of_ours() {
    let established = |then: &dyn Fn(&mut Rig, podway_bgp::ConnId)| {
        let mut rig = one_mesh_peer();
        let conn = rig.establish_and_read("10.0.0.1", &open(ASN, "10.0.0.1"));
        then(&mut rig, conn);
        (rig.notification(conn), rig)
    };
    type Case<'a> = (&'a str, (u8, u8), &'a dyn Fn(&mut Rig, podway_bgp::ConnId));
    let cases: [Case<'_>; 13] = [
        ("garbage", (1, 1), &|rig, conn| rig.send(conn, vec![0; 19])),
        ("a KEEPALIVE with a body", (1, 2), &|rig, conn| rig.send(conn, message(4, &[0]))),
        ("an unknown message", (1, 3), &|rig, conn| rig.send(conn, message(7, &[]))),
        ("a second OPEN", (5, 3), &|rig, conn| rig.send(conn, open(ASN, "10.0.0.1").encode())),
        ("an MP_REACH_NLRI of 3 octets", (3, 9), &|rig, conn| {
            rig.send(conn, raw_update("80 0e 03 0002 01", ""));
        }),
        ("two MP_REACH_NLRI", (3, 1), &|rig, conn| {
            let one = "80 0e 09 0001 01 04 0a000001 00";
            rig.send(conn, raw_update(&format!("{one} {one}"), ""));
        }),
        ("attributes longer than the message", (3, 1), &|rig, conn| {
            rig.send(conn, message(2, &hex("0000 0100 40")))
        }),
        ("silence", (4, 0), &|rig, _| rig.pass(Duration::from_secs(91))),
        ("another configuration", (6, 6), &|rig, _| {
            let v4_only = podway_bgp::config::Neighbour { families: Families::IPV4, ..internal(Role::Mesh) };
            rig.configure(with([("10.0.0.1", v4_only)]));
        }),
        ("no configuration", (6, 3), &|rig, _| rig.configure(with([]))),
        ("a shutdown", (6, 2), &|rig, _| {
            let options = NeighbourOptions { shutdown: Some("new disks".to_owned()), ..Default::default() };
            let neighbour = podway_bgp::config::Neighbour { options, ..internal(Role::Mesh) };
            rig.configure(with([("10.0.0.1", neighbour)]));
        }),
        ("a reset", (6, 4), &|rig, _| {
            rig.step(Event::Reset { peer: ip("10.0.0.1"), words: "as agreed".to_owned() });
        }),
        ("the end", (6, 2), &|rig, _| rig.step(Event::Stopped { routes: AfterStop::Drop })),
    ];
    for (what, code, then) in cases {
        let (notification, _) = established(then);
        assert_eq!((notification.code, notification.subcode), code, "{what}");
        let words = match what {
            "a shutdown" => Some("new disks"),
            "a reset" => Some("as agreed"),
            _ => None,
        };
        assert_eq!(notification.communication(), words, "{what}");
    }
    // Whoever is not known is told so too.
    let mut rig = one_mesh_peer();
    let stranger = rig.connect("10.0.0.9");
    assert_eq!(rig.said(stranger), (6, 5));
}

#[test]
fn a_session_that_is_shut_down_stays_down_until_it_is_allowed() {
    let shut = |words: Option<&str>| {
        let options = NeighbourOptions { shutdown: words.map(str::to_owned), ..Default::default() };
        let connect = ConnectMode::Both;
        with([("10.0.0.1", podway_bgp::config::Neighbour { options, connect, ..internal(Role::Mesh) })])
    };
    let mut rig = Rig::new(shut(Some("later")));
    rig.pass(Duration::from_secs(600));
    assert_eq!(rig.asked, [], "we do not connect");
    let conn = rig.connect("10.0.0.1");
    assert_eq!(rig.said(conn), (6, 5), "nor may they");
    assert_eq!(rig.speaker.peers()[0].last_error.as_deref(), Some("shut down by the operator: later"));
    rig.configure(shut(None));
    assert_eq!(rig.asked.len(), 1);
    rig.establish("10.0.0.1", &open(ASN, "10.0.0.1"));
}

/// Good attributes of an internal route by way of 10.0.0.1.
const GOOD: &str = "40 01 01 00  40 02 00  40 03 04 0a000001  40 05 04 00000064";

#[test]
fn a_broken_update_on_a_live_session_leaves_no_old_route_and_hurts_no_other() {
    // Section G of the reference: each was seen to keep an old route, to reset, or to end the daemon elsewhere.
    let cases = [
        ("ORIGIN that does not exist", "40 01 01 07 40 02 00 40 03 04 0a000001 40 05 04 00000064"),
        ("no LOCAL_PREF length", "40 01 01 00 40 02 00 40 03 04 0a000001 40 05 00"),
        ("wrong flags", "c0 01 01 00 40 02 00 40 03 04 0a000001 40 05 04 00000064"),
        ("a path with AS 0", "40 01 01 00 40 02 06 02 01 00000000 40 03 04 0a000001 40 05 04 00000064"),
        ("a looped path", "40 01 01 00 40 02 06 02 01 0000fc00 40 03 04 0a000001 40 05 04 00000064"),
        ("a confederation's path", "40 01 01 00 40 02 06 03 01 0000fde8 40 03 04 0a000001 40 05 04 00000064"),
        ("next hop 0", "40 01 01 00 40 02 00 40 03 04 00000000 40 05 04 00000064"),
        ("next hop multicast", "40 01 01 00 40 02 00 40 03 04 e0000001 40 05 04 00000064"),
        ("no next hop", "40 01 01 00 40 02 00 40 05 04 00000064"),
        (
            "our identifier as originator",
            "40 01 01 00 40 02 00 40 03 04 0a000001 40 05 04 00000064 80 09 04 0a000064 80 0a 04 01010101",
        ),
        (
            "our cluster in the list",
            "40 01 01 00 40 02 00 40 03 04 0a000001 40 05 04 00000064 80 09 04 0a000063 80 0a 04 0a000064",
        ),
        ("communities cut off", "40 01 01 00 40 02 00 40 03 04 0a000001 40 05 04 00000064 c0 08 03 ffffff"),
        (
            "an attribute that overruns",
            "40 01 01 00 40 02 00 40 03 04 0a000001 40 05 04 00000064 c0 63 09 00",
        ),
        (
            "an unknown well-known attribute",
            "40 01 01 00 40 02 00 40 03 04 0a000001 40 05 04 00000064 40 63 00",
        ),
        ("OTC of three octets", "40 01 01 00 40 02 00 40 03 04 0a000001 40 05 04 00000064 c0 23 03 000001"),
    ];
    for (what, broken) in cases {
        let mut rig =
            Rig::new(with([("10.0.0.1", internal(Role::Client)), ("10.0.0.2", internal(Role::Client))]));
        let sender = rig.establish_and_read("10.0.0.1", &open(ASN, "10.0.0.1"));
        let other = rig.establish_and_read("10.0.0.2", &open(ASN, "10.0.0.2"));
        rig.send(sender, raw_update(GOOD, "10 0a01 10 0a02"));
        rig.settle();
        let mut table = Table::default();
        table.take(rig.updates(other, &INTERNAL));
        assert_eq!(table.prefixes(), ["10.1.0.0/16", "10.2.0.0/16"], "{what}");

        rig.send(sender, raw_update(broken, "10 0a01"));
        rig.settle();
        assert_eq!(rig.next_hop("10.1.0.0/16"), None, "{what}: the old route is gone");
        assert_eq!(rig.next_hop("10.2.0.0/16"), Some(ip("10.0.0.1")), "{what}: the other one lives");
        table.take(rig.updates(other, &INTERNAL));
        assert_eq!(table.prefixes(), ["10.2.0.0/16"], "{what}: the neighbours know");
        assert!(rig.closed.is_empty(), "{what}: the session lives");
        // What several reflectors tell each other is nothing that anybody should look into.
        let is_reflection = what.starts_with("our ");
        assert_eq!(rig.ignored.is_empty(), is_reflection, "{what}: it was said why, where it is a fault");
        rig.send(sender, raw_update(GOOD, "10 0a01"));
        rig.settle();
        assert_eq!(rig.next_hop("10.1.0.0/16"), Some(ip("10.0.0.1")), "{what}: the next good one is taken");
    }
}

#[test]
fn what_we_do_not_know_passes_and_never_resets() {
    let mut rig =
        Rig::new(with([("10.0.0.1", internal(Role::Client)), ("10.0.0.2", internal(Role::Client))]));
    let sender = rig.establish_and_read("10.0.0.1", &open(ASN, "10.0.0.1"));
    let other = rig.establish_and_read("10.0.0.2", &open(ASN, "10.0.0.2"));
    // Broken AIGP, PREFIX_SID, ATTR_SET and BGP-LS attributes: features that we do not have.
    let odd = "80 1a 02 01ff  c0 28 01 00  c0 80 01 00  80 1d 00";
    rig.send(sender, raw_update(&format!("{GOOD} {odd}"), "10 0a01"));
    rig.settle();
    let updates = rig.updates(other, &INTERNAL);
    let passed: Vec<(u8, u8)> = updates[0].announced[0].0.others.iter().map(|o| (o.kind, o.flags)).collect();
    assert_eq!(
        passed,
        [(40, 0xe0), (128, 0xe0)],
        "transitive ones with the Partial bit, the others end here"
    );
}

#[test]
fn extended_messages_go_where_both_have_them_and_what_no_longer_fits_is_withdrawn_elsewhere() {
    let mut rig = Rig::new(with([
        ("10.0.0.1", internal(Role::Client)),
        ("10.0.0.2", internal(Role::Client)),
        ("10.0.0.3", internal(Role::Client)),
    ]));
    let extended = |asn, id| {
        let mut open = open(asn, id);
        open.capabilities.extended_messages = true;
        open
    };
    let sender = rig.establish_and_read("10.0.0.1", &extended(ASN, "10.0.0.1"));
    let long = rig.establish_and_read("10.0.0.2", &extended(ASN, "10.0.0.2"));
    let short = rig.establish_and_read("10.0.0.3", &open(ASN, "10.0.0.3"));
    let all = nlri("10.1.0.0/16");
    let encoding = Encoding { max_len: MAX_EXTENDED_LEN, ..Encoding::PLAIN };
    let (mut at_long, mut at_short) = (Table::default(), Table::default());
    for (len, fits) in [(10, true), (9000, false), (60000, false), (20, true)] {
        let mut big = attributes("10.0.0.1");
        big.others = vec![Opaque { kind: 99, flags: 0xe0, value: Bytes::from(vec![7; len]) }];
        rig.announce_as(sender, &big, &all, &encoding);
        rig.settle();
        at_long.take(rig.updates(long, &INTERNAL));
        at_short.take(rig.updates(short, &INTERNAL));
        assert_eq!(at_long.get("10.1.0.0/16").map(|a| a.others[0].value.len()), Some(len));
        assert_eq!(at_short.get("10.1.0.0/16").is_some(), fits, "{len}: no older route stays in its place");
    }
    // Where we did not offer it, such a message is too long.
    let options = NeighbourOptions { extended_messages: false, ..Default::default() };
    let plain = podway_bgp::config::Neighbour { options, ..internal(Role::Client) };
    let mut rig = Rig::new(with([("10.0.0.1", plain)]));
    let sender = rig.establish_and_read("10.0.0.1", &extended(ASN, "10.0.0.1"));
    rig.send(sender, message(2, &[0; 5000]));
    assert_eq!(rig.said(sender), (1, 2));
}

#[test]
fn refresh_is_answered_in_every_combination() {
    for bits in 0..8 {
        let (restart, enhanced, early) = (bits & 1 != 0, bits & 2 != 0, bits & 4 != 0);
        let mut rig = one_mesh_peer();
        let mut theirs = open(ASN, "10.0.0.1");
        theirs.capabilities.enhanced_refresh = enhanced;
        theirs.capabilities.graceful_restart =
            restart.then(|| GracefulRestart { time: 60, families: Families::BOTH, ..Default::default() });
        let conn = rig.establish("10.0.0.1", &theirs);
        if !early {
            rig.settle();
            rig.frames(conn);
        }
        rig.send(conn, refresh::encode(Subtype::Request, Family::Ipv4));
        rig.settle();
        let mut seen = vec![];
        for frame in rig.frames(conn) {
            match frame.kind {
                MessageType::RouteRefresh => {
                    seen.push(format!("{:?}", refresh::decode(frame.body).unwrap().0))
                }
                MessageType::Update => {
                    let update = podway_bgp::message::update::Update::decode(frame.body, &INTERNAL).unwrap();
                    seen.extend(update.end_of_rib.map(|family| format!("EoR {family}")));
                    let all = update.announced.iter().flat_map(|(_, prefixes)| prefixes);
                    seen.extend(all.map(ToString::to_string));
                }
                _ => {}
            }
        }
        let again: &[&str] = if enhanced { &["Begin", "10.244.0.0/26", "End"] } else { &["10.244.0.0/26"] };
        let (table, end) = (["10.244.0.0/26", "fd10::/122"], ["EoR ipv4-unicast", "EoR ipv6-unicast"]);
        let expected: Vec<&str> = match (early, enhanced) {
            (false, _) => again.to_vec(),
            (true, true) => [&table, &end, again].concat(),
            // Only markers have to wait for the End-of-RIB, which is held until what is pending has gone out.
            (true, false) => [&table, again, &end].concat(),
        };
        assert_eq!(seen, expected, "restart {restart}, enhanced {enhanced}, early {early}");
    }
}

#[test]
fn an_enhanced_refresh_sweeps_what_was_not_told_again() {
    let enhanced = |enhanced: bool| {
        let mut open = open(ASN, "10.0.0.1");
        open.capabilities.enhanced_refresh = enhanced;
        open
    };
    let mut rig = one_mesh_peer();
    let conn = rig.establish_and_read("10.0.0.1", &enhanced(true));
    rig.announce(conn, &attributes("10.0.0.1"), &nlri("10.1.0.0/16 10.2.0.0/16"));
    rig.announce(conn, &attributes("fd00::1"), &nlri("fd20::/64"));
    rig.step(Event::Refresh { peer: ip("10.0.0.1") });
    let asked: Vec<_> =
        rig.frames(conn).into_iter().filter_map(|frame| refresh::decode(frame.body)).collect();
    assert_eq!(asked, [(Subtype::Request, Family::Ipv4), (Subtype::Request, Family::Ipv6)]);
    rig.send(conn, refresh::encode(Subtype::Begin, Family::Ipv4));
    rig.announce(conn, &attributes("10.0.0.1"), &nlri("10.2.0.0/16"));
    rig.settle();
    assert_eq!(rig.routes.len(), 3, "nothing goes before the end");
    rig.send(conn, refresh::encode(Subtype::End, Family::Ipv4));
    assert_eq!(rig.routes.keys().copied().collect::<Vec<_>>(), [net("10.2.0.0/16"), net("fd20::/64")]);
    // A refresh that never ends is taken for ended.
    rig.send(conn, refresh::encode(Subtype::Begin, Family::Ipv6));
    for _ in 0..7 {
        rig.send(conn, keepalive());
        rig.pass(Duration::from_secs(60));
    }
    assert_eq!(rig.routes.keys().copied().collect::<Vec<_>>(), [net("10.2.0.0/16")]);
    // Markers of the wrong length end the session with their own code; of a peer that never offered them, as any
    // message of a wrong length.
    rig.send(conn, message(5, &hex("0001 01 01 00")));
    assert_eq!(rig.notification(conn), Notification::with_data(7, 1, &message(5, &hex("0001 01 01 00"))));
    let mut rig = one_mesh_peer();
    let conn = rig.establish_and_read("10.0.0.1", &enhanced(false));
    rig.announce(conn, &attributes("10.0.0.1"), &nlri("10.1.0.0/16"));
    rig.send(conn, refresh::encode(Subtype::Begin, Family::Ipv4));
    rig.send(conn, refresh::encode(Subtype::End, Family::Ipv4));
    rig.send(conn, message(5, &hex("0001 07 01")));
    assert_eq!(rig.routes.len(), 1, "ignored");
    rig.send(conn, message(5, &hex("0001 01 01 00")));
    assert_eq!(rig.said(conn), (1, 2));
}

#[test]
fn of_two_connections_the_higher_identifiers_lives() {
    for (theirs, ours_lives) in [("10.0.0.1", true), ("10.0.0.200", false)] {
        for ours_first in [true, false] {
            let connect = ConnectMode::Both;
            let peer = podway_bgp::config::Neighbour { connect, ..internal(Role::Mesh) };
            let mut rig = Rig::new(with([("10.0.0.1", peer)]));
            let outgoing = rig.asked[0].0;
            let incoming = rig.connect("10.0.0.1");
            rig.step(Event::Connected { conn: outgoing });
            let order = if ours_first { [outgoing, incoming] } else { [incoming, outgoing] };
            for conn in order {
                if !rig.closed.contains(&conn) {
                    rig.send(conn, open(ASN, theirs).encode());
                }
            }
            let (lives, dies) = if ours_lives { (outgoing, incoming) } else { (incoming, outgoing) };
            assert_eq!(rig.said(dies), (6, 7), "{theirs} {ours_first}");
            assert!(!rig.closed.contains(&lives), "{theirs} {ours_first}");
            rig.send(lives, keepalive());
            assert_eq!(rig.speaker.peers()[0].state, State::Established);
        }
    }
}

#[test]
fn a_late_second_connection_does_not_take_the_session() {
    let mut rig = one_mesh_peer();
    let first = rig.establish_and_read("10.0.0.1", &open(ASN, "10.0.0.1"));
    rig.pass(Duration::from_secs(20));
    let second = rig.connect("10.0.0.1");
    rig.send(second, open(ASN, "10.0.0.1").encode());
    assert_eq!(rig.said(second), (6, 7));
    assert!(!rig.closed.contains(&first));
    // With graceful restart it is the peer come back (RFC 4724 section 5): its routes stay.
    let mut rig = one_mesh_peer();
    let mut theirs = open(ASN, "10.0.0.1");
    theirs.capabilities.graceful_restart = Some(GracefulRestart {
        time: 60,
        families: Families::BOTH,
        preserved: Families::BOTH,
        ..Default::default()
    });
    let first = rig.establish_and_read("10.0.0.1", &theirs);
    rig.announce(first, &attributes("10.0.0.1"), &nlri("10.1.0.0/16"));
    rig.pass(Duration::from_secs(20));
    let second = rig.establish("10.0.0.1", &theirs);
    assert!(rig.closed.contains(&first) && !rig.closed.contains(&second));
    assert_eq!(rig.next_hop("10.1.0.0/16"), Some(ip("10.0.0.1")));
    rig.end_of_rib(second, Families::BOTH);
    assert_eq!(rig.next_hop("10.1.0.0/16"), None, "not told again: gone with the End-of-RIB");
}

#[test]
fn reconnects_are_damped_and_recover() {
    let connect = ConnectMode::Both;
    let peer = podway_bgp::config::Neighbour { connect, ..internal(Role::Mesh) };
    let mut rig = Rig::new(with([("10.0.0.1", peer)]));
    let mut pauses = vec![];
    for _ in 0..12 {
        let (conn, _) = rig.asked.remove(0);
        rig.step(Event::Connected { conn });
        rig.send(conn, open(ASN, "10.0.0.1").encode());
        rig.send(conn, keepalive());
        rig.send(conn, Notification::cease(4).encode());
        let begin = rig.now;
        while rig.asked.is_empty() {
            rig.now = rig.speaker.deadline().unwrap();
            rig.step(Event::Timer);
        }
        pauses.push(rig.now - begin);
    }
    assert!(pauses[0] < Duration::from_secs(1), "{pauses:?}");
    assert!(pauses[11] >= Duration::from_secs(40) && pauses[11] <= Duration::from_secs(60), "{pauses:?}");
    assert!(pauses.windows(2).all(|two| two[1] * 10 > two[0] * 7), "never much shorter: {pauses:?}");
    // A session that lasts makes up for it.
    let (conn, _) = rig.asked.remove(0);
    rig.step(Event::Connected { conn });
    rig.send(conn, open(ASN, "10.0.0.1").encode());
    for _ in 0..4 {
        rig.send(conn, keepalive());
        rig.pass(Duration::from_secs(30));
    }
    rig.send(conn, Notification::cease(4).encode());
    let begin = rig.now;
    while rig.asked.is_empty() {
        rig.now = rig.speaker.deadline().unwrap();
        rig.step(Event::Timer);
    }
    assert!(rig.now - begin < Duration::from_secs(1));
}

#[test]
fn too_many_prefixes_end_the_session_until_the_restart_time() {
    let max = MaxPrefixes { limit: 4, warn_percent: 75, restart: Some(Duration::from_secs(60)) };
    let options =
        NeighbourOptions { max_prefixes: BTreeMap::from([(Family::Ipv4, max)]), ..Default::default() };
    let peer = podway_bgp::config::Neighbour { options, ..internal(Role::Mesh) };
    let mut rig = Rig::new(with([("10.0.0.1", peer)]));
    let conn = rig.establish_and_read("10.0.0.1", &open(ASN, "10.0.0.1"));
    rig.announce(conn, &attributes("10.0.0.1"), &nlri("10.1.0.0/16 10.2.0.0/16"));
    rig.announce(conn, &attributes("fd00::1"), &nlri("fd20::/64 fd21::/64 fd22::/64 fd23::/64 fd24::/64"));
    assert_eq!(rig.warned.len(), 0, "the limit is per family");
    rig.announce(conn, &attributes("10.0.0.1"), &nlri("10.3.0.0/16 10.4.0.0/16"));
    rig.announce(conn, &attributes("10.0.0.1"), &nlri("10.3.0.0/16 10.4.0.0/16"));
    assert_eq!(rig.warned, ["4 prefixes of ipv4-unicast, 4 are allowed"], "warned about once");
    rig.announce(conn, &attributes("10.0.0.1"), &nlri("10.5.0.0/16"));
    assert_eq!(rig.notification(conn), Notification::with_data(6, 1, &hex("0001 01 00000004")));
    assert_eq!(rig.routes.len(), 0);
    let refused = rig.connect("10.0.0.1");
    assert_eq!(rig.said(refused), (6, 5), "not before the restart time is over");
    assert_eq!(rig.speaker.peers()[0].last_error.as_deref(), Some("more than 4 prefixes of ipv4-unicast"));
    rig.pass(Duration::from_secs(61));
    rig.establish("10.0.0.1", &open(ASN, "10.0.0.1"));
}

#[test]
fn a_peer_that_does_not_read_is_given_up() {
    let options = NeighbourOptions { send_hold: Some(Duration::from_secs(100)), ..Default::default() };
    let deaf = podway_bgp::config::Neighbour { options, ..internal(Role::Client) };
    let mut rig = Rig::new(with([("10.0.0.1", deaf), ("10.0.0.2", internal(Role::Client))]));
    let conn = rig.establish_and_read("10.0.0.1", &open(ASN, "10.0.0.1"));
    rig.reads = false;
    for _ in 0..3 {
        // It talks, so the hold timer does not end it.
        rig.send(conn, keepalive());
        rig.pass(Duration::from_secs(29));
        assert!(!rig.closed.contains(&conn));
    }
    rig.send(conn, keepalive());
    rig.pass(Duration::from_secs(60));
    assert_eq!(rig.said(conn), (8, 0), "RFC 9687");
    // One that takes a little now and then is slow, not gone.
    rig.reads = true;
    let conn = rig.establish_and_read("10.0.0.1", &open(ASN, "10.0.0.1"));
    rig.reads = false;
    for _ in 0..12 {
        rig.send(conn, keepalive());
        rig.pass(Duration::from_secs(60));
        rig.step(Event::Sent { conn, bytes: 19 });
    }
    assert!(!rig.closed.contains(&conn));
}

fn ranges() -> SpeakerConfig {
    let range = |prefix: &str, role, asn, asns, limit| Range {
        prefix: net(prefix),
        template: neighbour(role, asn),
        asns,
        limit,
    };
    let outside = Some(AsRange { first: 65000, last: 65010 });
    let ranges = vec![
        range("10.0.0.0/16", Role::Client, ASN, None, 2),
        range("10.0.7.0/24", Role::External, 65000, outside, 100),
        range("fd00::/64", Role::Client, ASN, None, 100),
    ];
    SpeakerConfig { options: SpeakerOptions { ranges, ..Default::default() }, ..with([]) }
}

#[test]
fn neighbours_from_a_range_come_and_go() {
    let mut rig = Rig::new(ranges());
    assert!(rig.speaker.peers().is_empty());
    let one = rig.establish_and_read("10.0.0.1", &open(ASN, "10.0.0.1"));
    let two = rig.establish_and_read("10.0.0.2", &open(ASN, "10.0.0.2"));
    rig.announce(one, &attributes("10.0.0.1"), &nlri("10.1.0.0/16"));
    rig.settle();
    assert_eq!(rig.updates(two, &INTERNAL)[0].announced[0].1, nlri("10.1.0.0/16"), "they are clients");
    let third = rig.connect("10.0.0.3");
    assert_eq!(rig.said(third), (6, 5), "the range is full");
    let stranger = rig.connect("192.0.2.1");
    assert_eq!(rig.said(stranger), (6, 5));
    // The most specific range counts, and its AS numbers.
    let outside = rig.establish_and_read("10.0.7.1", &open(65003, "10.0.7.1"));
    let wrong = rig.connect("10.0.7.2");
    rig.send(wrong, open(65020, "10.0.7.2").encode());
    assert_eq!(rig.said(wrong), (2, 2));
    let ours = rig.connect("10.0.7.3");
    rig.send(ours, open(ASN, "10.0.7.3").encode());
    assert_eq!(rig.said(ours), (2, 2), "our own number makes no external neighbour");
    let states: BTreeMap<_, _> =
        rig.speaker.peers().into_iter().map(|p| (p.address, (p.asn, p.role))).collect();
    assert_eq!(states[&ip("10.0.7.1")], (65003, Role::External));
    // Gone is gone, and the place is free.
    rig.cut(one);
    rig.cut(outside);
    assert_eq!(rig.routes.len(), 0);
    rig.establish("10.0.0.3", &open(ASN, "10.0.0.3"));
    let mut left: Vec<_> = rig.speaker.peers().into_iter().map(|peer| peer.address).collect();
    left.retain(|address| *address != ip("10.0.7.2") && *address != ip("10.0.7.3"));
    assert_eq!(left, [ip("10.0.0.2"), ip("10.0.0.3")]);
    // Without the range they are no neighbours.
    rig.configure(with([]));
    assert_eq!(rig.said(two), (6, 3));
    assert!(rig.speaker.peers().is_empty());
}

#[test]
fn roles_must_fit_each_other() {
    use Relation::{Customer, Peer, Provider, RouteServer, RouteServerClient};
    let all = [Provider, RouteServer, RouteServerClient, Customer, Peer];
    for ours in all {
        for theirs in
            [None, Some(Provider), Some(RouteServer), Some(RouteServerClient), Some(Customer), Some(Peer)]
        {
            for strict in [false, true] {
                let options =
                    NeighbourOptions { relation: Some(ours), relation_strict: strict, ..Default::default() };
                let peer = podway_bgp::config::Neighbour { options, ..neighbour(Role::External, 65001) };
                let mut rig = Rig::new(with([("10.0.0.1", peer)]));
                let conn = rig.connect("10.0.0.1");
                let mut open = open(65001, "10.0.0.1");
                open.capabilities.role = theirs.map(RoleSaid::One);
                rig.send(conn, open.encode());
                // RFC 9234 section 4.2, table 2.
                let fits = matches!(
                    (ours, theirs),
                    (Provider, Some(Customer))
                        | (Customer, Some(Provider))
                        | (RouteServer, Some(RouteServerClient))
                        | (RouteServerClient, Some(RouteServer))
                        | (Peer, Some(Peer))
                ) || (theirs.is_none() && !strict);
                assert_eq!(!rig.closed.contains(&conn), fits, "{ours:?} {theirs:?} {strict}");
                if !fits {
                    assert_eq!(rig.said(conn), (2, 11));
                }
            }
        }
    }
}

#[test]
fn several_paths_are_received_and_sent() {
    let add_path =
        |receive, send| NeighbourOptions { add_path: AddPath { receive, send }, ..Default::default() };
    let client = |options| podway_bgp::config::Neighbour { options, ..internal(Role::Client) };
    let mut rig = Rig::new(with([
        ("10.0.0.1", client(add_path(true, 0))),
        ("10.0.0.2", client(add_path(true, 0))),
        ("10.0.0.3", client(add_path(false, 2))),
        ("10.0.0.4", client(Default::default())),
    ]));
    let sends = |id| {
        let mut open = open(ASN, id);
        open.capabilities.add_path_send = Families::IPV4;
        open
    };
    let receives = |id| {
        let mut open = open(ASN, id);
        open.capabilities.add_path_receive = Families::IPV4;
        open
    };
    let one = rig.establish_and_read("10.0.0.1", &sends("10.0.0.1"));
    let two = rig.establish_and_read("10.0.0.2", &sends("10.0.0.2"));
    let several = rig.establish_and_read("10.0.0.3", &receives("10.0.0.3"));
    let plain = rig.establish_and_read("10.0.0.4", &receives("10.0.0.4"));
    let with_ids = Encoding { add_path: Families::IPV4, ..Encoding::PLAIN };
    let context = DecodeContext { add_path: Families::IPV4, ..INTERNAL };
    let path = |id| vec![Nlri { prefix: net("10.1.0.0/16"), id }];
    let (mut at_several, mut at_plain) = (Table::default(), Table::default());
    let mut look = |rig: &mut Rig| {
        rig.settle();
        at_several.take(rig.updates(several, &context));
        at_plain.take(rig.updates(plain, &INTERNAL));
        let hops = |table: &Table| {
            let mut all: Vec<String> = table.routes.values().map(|a| a.next_hop.to_string()).collect();
            all.sort();
            all.join(" ")
        };
        (hops(&at_several), hops(&at_plain))
    };
    let pref =
        |next_hop: &str, local_pref| PathAttributes { local_pref: Some(local_pref), ..attributes(next_hop) };
    // Two paths of one neighbour, one of another: the best two are told, and the best alone to the plain one.
    rig.announce_as(one, &pref("10.0.0.1", 100), &path(1), &with_ids);
    rig.announce_as(one, &pref("10.0.1.1", 300), &path(7), &with_ids);
    rig.announce_as(two, &pref("10.0.0.2", 200), &path(1), &with_ids);
    assert_eq!(look(&mut rig), ("10.0.0.2 10.0.1.1".to_owned(), "10.0.1.1".to_owned()));
    assert_eq!(rig.speaker.peers()[0].received, 2);
    // A path is replaced by its identifier,
    rig.announce_as(one, &pref("10.0.2.1", 50), &path(7), &with_ids);
    assert_eq!(look(&mut rig), ("10.0.0.1 10.0.0.2".to_owned(), "10.0.0.2".to_owned()));
    // and withdrawn by it.
    let mut out = BytesMut::new();
    podway_bgp::message::update::withdraw(&mut out, &path(1), &with_ids);
    rig.send(two, out.clone().freeze());
    assert_eq!(look(&mut rig), ("10.0.0.1 10.0.2.1".to_owned(), "10.0.0.1".to_owned()));
    rig.cut(one);
    assert_eq!(look(&mut rig), (String::new(), String::new()));
    // A late joiner gets the same as those who were there.
    let two_paths = [pref("10.0.0.2", 200), pref("10.0.2.2", 100)];
    rig.announce_as(two, &two_paths[0], &path(1), &with_ids);
    rig.announce_as(two, &two_paths[1], &path(2), &with_ids);
    look(&mut rig);
    rig.cut(several);
    let late = rig.establish("10.0.0.3", &receives("10.0.0.3"));
    rig.settle();
    let mut table = Table::default();
    table.take(rig.updates(late, &context));
    let of_prefix = table.routes.keys().filter(|nlri| nlri.prefix == net("10.1.0.0/16")).count();
    assert_eq!(of_prefix, 2);
}

#[test]
fn ipv4_goes_over_ipv6_next_hops_where_both_say_so() {
    let options = NeighbourOptions { extended_next_hop: true, ..Default::default() };
    let over = podway_bgp::config::Neighbour { options, ..internal(Role::Client) };
    let mut rig =
        Rig::new(with([("fd00::1", over.clone()), ("fd00::2", over), ("fd00::3", internal(Role::Client))]));
    let extended = |id| {
        let mut open = open(ASN, id);
        open.capabilities.extended_next_hop = true;
        open
    };
    let sender = rig.establish_and_read("fd00::1", &extended("10.0.0.1"));
    let with_it = rig.establish_and_read("fd00::2", &extended("10.0.0.2"));
    let without = rig.establish_and_read("fd00::3", &extended("10.0.0.3"));
    rig.announce(sender, &attributes("fd00::1"), &nlri("10.1.0.0/16"));
    rig.settle();
    assert_eq!(rig.next_hop("10.1.0.0/16"), Some(ip("fd00::1")));
    let context = DecodeContext { extended_next_hop: true, ..INTERNAL };
    let told = rig.updates(with_it, &context);
    assert_eq!(
        (told[0].announced[0].0.next_hop, &told[0].announced[0].1),
        (ip("fd00::1"), &nlri("10.1.0.0/16"))
    );
    assert_eq!(rig.updates(without, &context), [], "who cannot use it is not told");
    // From whom did not offer it, the prefixes cannot be told from the next hop.
    let mut out = BytesMut::new();
    podway_bgp::message::update::announce(
        &mut out,
        &attributes("fd00::3"),
        &nlri("10.3.0.0/16"),
        &Encoding::PLAIN,
    )
    .unwrap();
    rig.send(without, out.freeze());
    assert_eq!(rig.said(without), (3, 9));
}

#[test]
fn the_extended_form_of_optional_parameters_is_read() {
    // RFC 9072: 255, 255, then two octets of length everywhere.
    let mut body = hex("04 fc00 005a 0a000001 ff ff 0015");
    body.extend(hex("02 000c 01 04 0001 00 01  41 04 0000fc00  02 0003 02 00 46"));
    let short = Open::decode(Bytes::from(body.clone()));
    assert!(short.is_err(), "a capability that is cut off");
    body.truncate(body.len() - 6);
    body.extend(hex("02 0003 63 01 00"));
    let open = Open::decode(Bytes::from(body)).unwrap();
    let expected =
        Capabilities { families: Some(Families::IPV4), four_octet_as: Some(ASN), ..Capabilities::default() };
    assert_eq!((open.asn, open.capabilities), (ASN, expected));
}

#[test]
fn configurations_that_cannot_work_are_refused_with_field_and_value() {
    let mut rig = one_mesh_peer();
    let options = NeighbourOptions {
        hold_time: Some(Duration::from_secs(2)),
        as_override: true,
        relation_strict: true,
        ..Default::default()
    };
    let bad = podway_bgp::config::Neighbour { options, ..internal(Role::Mesh) };
    let mut config = with([("10.0.0.1", bad), ("10.0.0.2", neighbour(Role::External, ASN))]);
    config.options.ranges = [ranges().options.ranges, ranges().options.ranges].concat();
    config.options.multipath.limit = 0;
    rig.configure(config);
    let expected = [
        "neighbour 10.0.0.1: hold time 2s found, 0 or 3 to 65535 whole seconds expected",
        "neighbour 10.0.0.1: AS override found, which goes with role external only",
        "neighbour 10.0.0.1: strict role found, which needs a role of RFC 9234",
        "neighbour 10.0.0.2: AS 64512 found, which does not go with role external",
        "range 10.0.0.0/16 found twice",
        "multipath limit 0 found, at least 1 expected",
    ];
    assert_eq!(rig.refused, expected);
    rig.establish("10.0.0.1", &open(ASN, "10.0.0.1"));
}
