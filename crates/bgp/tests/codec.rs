//! The codec: golden octets (those of BIRD captured from BIRD 2.0.12, the others written by hand from the RFCs'
//! figures), the treatment of every malformed attribute (RFC 7606), decode after encode, and that no octets at all make
//! a decoder panic.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    reason = "tests: a failure is a panic, numbers are small"
)]

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use ipnet::IpNet;
use podway_bgp::message::attribute::{
    Aggregator, AsPath, Opaque, Origin, PathAttributes, Segment, SegmentKind,
};
use podway_bgp::message::capability::{Capabilities, GracefulRestart, LongLived, Relation, RoleSaid};
use podway_bgp::message::open::Open;
use podway_bgp::message::refresh::{self, Subtype};
use podway_bgp::message::update::{self, DecodeContext, Encoding, Treatment, Update};
use podway_bgp::message::{Frame, MAX_LEN, MessageType, Nlri, Notification, keepalive};
use podway_bgp::types::{Families, Family};
use proptest::prelude::*;

const INTERNAL: DecodeContext = DecodeContext::INTERNAL;
const PLAIN: Encoding = Encoding::PLAIN;
const OLD: Encoding = Encoding { four_octet_as: false, ..Encoding::PLAIN };

fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
    let pair = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
    digits.chunks(2).map(pair).collect()
}

fn message(kind: u8, body: &[u8]) -> Vec<u8> {
    let mut out = vec![0xff; 16];
    out.extend(u16::try_from(19 + body.len()).unwrap().to_be_bytes());
    out.push(kind);
    out.extend(body);
    out
}

fn body_of(bytes: &[u8]) -> Bytes {
    let mut buffer = BytesMut::from(bytes);
    let frame = next_frame(&mut buffer).unwrap().unwrap();
    assert!(buffer.is_empty());
    frame.body
}

fn prefixes(text: &str) -> Vec<Nlri> {
    text.split_whitespace().map(|prefix| Nlri::from(prefix.parse::<IpNet>().unwrap())).collect()
}

fn next_frame(buffer: &mut BytesMut) -> Result<Option<Frame>, Notification> {
    podway_bgp::message::next_frame(buffer, MAX_LEN)
}

fn our_open() -> Open {
    Open {
        asn: 4_200_000_001,
        hold_time: 90,
        router_id: "10.0.0.1".parse().unwrap(),
        capabilities: Capabilities {
            families: Some(Families::BOTH),
            route_refresh: true,
            four_octet_as: Some(4_200_000_001),
            graceful_restart: Some(GracefulRestart {
                restarting: true,
                notification: false,
                time: 120,
                families: Families::BOTH,
                preserved: [Family::Ipv6].into_iter().collect(),
            }),
            ..Capabilities::default()
        },
    }
}

#[test]
fn golden_open() {
    let golden = message(
        1,
        &hex("04 5ba0 005a 0a000001 22  02 20
              01 04 0001 00 01   01 04 0002 00 01   02 00
              40 0a 8078 0001 01 00 0002 01 80      41 04 fa56ea01"),
    );
    assert_eq!(our_open().encode(), golden);
    assert_eq!(Open::decode(body_of(&golden)).unwrap(), our_open());
}

#[test]
fn golden_small_messages() {
    assert_eq!(keepalive(), message(4, &[]));
    assert_eq!(refresh::encode(Subtype::Request, Family::Ipv6), message(5, &hex("0002 00 01")));
    assert_eq!(refresh::encode(Subtype::End, Family::Ipv4), message(5, &hex("0001 02 01")));
    let refresh = |body: &str| refresh::decode(Bytes::from(hex(body)));
    assert_eq!(refresh("0001 00 01"), Some((Subtype::Request, Family::Ipv4)));
    assert_eq!(refresh("0001 01 01"), Some((Subtype::Begin, Family::Ipv4)));
    assert_eq!((refresh("0001 00 80"), refresh("0001 03 01"), refresh("0001 00 01 00")), (None, None, None));
    let shutdown = Notification::shutdown("upgrade at 12:00");
    assert_eq!(shutdown.encode(), message(3, &[&hex("06 02 10")[..], b"upgrade at 12:00"].concat()));
    assert_eq!(shutdown.communication(), Some("upgrade at 12:00"));
    assert_eq!(shutdown.to_string(), "cease, administrative shutdown (6/2): \"upgrade at 12:00\"");
    let long = Notification::shutdown(&"ä".repeat(200));
    assert_eq!(long.communication().map(str::len), Some(254), "cut between characters");
    let mut out = BytesMut::new();
    update::end_of_rib(&mut out, Family::Ipv4);
    update::end_of_rib(&mut out, Family::Ipv6);
    let golden = [message(2, &hex("0000 0000")), message(2, &hex("0000 0006 80 0f 03 0002 01"))].concat();
    assert_eq!(out, golden);
}

#[test]
fn golden_updates() {
    let mut attributes = PathAttributes::originated("10.0.0.1".parse().unwrap());
    attributes.local_pref = Some(100);
    let mut out = BytesMut::new();
    update::announce(&mut out, &attributes, &prefixes("10.244.1.0/26 10.244.0.0/17"), &PLAIN).unwrap();
    let golden = message(
        2,
        &hex("0000 0015  40 01 01 00  40 02 00  40 03 04 0a000001  40 05 04 00000064
              1a 0af40100  11 0af400"),
    );
    assert_eq!(out, golden);

    // Reflected, IPv6: MP_REACH_NLRI first, no NEXT_HOP.
    let mut attributes = PathAttributes::originated("fd00::1".parse().unwrap());
    attributes.local_pref = Some(100);
    attributes.originator_id = Some("10.0.0.2".parse().unwrap());
    attributes.cluster_list = vec!["10.0.0.9".parse().unwrap(), "10.0.0.8".parse().unwrap()];
    let mut out = BytesMut::new();
    update::announce(&mut out, &attributes, &prefixes("fd10::100/122"), &PLAIN).unwrap();
    let golden = message(
        2,
        &hex("0000 0049
              80 0e 26 0002 01 10 fd000000000000000000000000000001 00 7a fd100000000000000000000000000100
              40 01 01 00  40 02 00  40 05 04 00000064  80 09 04 0a000002  80 0a 08 0a000009 0a000008"),
    );
    assert_eq!(out, golden);

    let mut out = BytesMut::new();
    update::withdraw(&mut out, &prefixes("10.244.1.0/26"), &PLAIN);
    update::withdraw(&mut out, &prefixes("fd10::/64"), &PLAIN);
    let golden = [
        message(2, &hex("0005 1a 0af40100 0000")),
        message(2, &hex("0000 000f 80 0f 0c 0002 01 40 fd10000000000000")),
    ];
    assert_eq!(out, golden.concat());
}

#[test]
fn four_octet_numbers_cross_an_old_speaker() {
    // RFC 6793: to an old speaker, AS_TRANS and the AS4 attributes.
    let mut attributes = PathAttributes::originated("10.0.0.1".parse().unwrap());
    attributes.as_path = AsPath(vec![Segment { kind: SegmentKind::Sequence, asns: vec![65536, 100] }]);
    attributes.aggregator = Some(Aggregator { asn: 65537, router_id: Ipv4Addr::LOCALHOST, partial: false });
    let mut out = BytesMut::new();
    update::announce(&mut out, &attributes, &prefixes("10.0.0.0/8"), &OLD).unwrap();
    let golden = message(
        2,
        &hex("0000 0035  40 01 01 00  40 02 06 02 02 5ba0 0064  40 03 04 0a000001
              c0 07 06 5ba0 7f000001  c0 11 0a 02 02 00010000 00000064  c0 12 08 00010001 7f000001
              08 0a"),
    );
    assert_eq!(out, golden);
    let old = DecodeContext { four_octet_as: false, ..INTERNAL };
    let read = Update::decode(body_of(&golden), &old).unwrap();
    assert_eq!(read.announced, [(attributes.clone(), prefixes("10.0.0.0/8"))]);

    // An old speaker in between has prepended itself: AS_PATH is longer than AS4_PATH.
    let prepended = message(
        2,
        &hex("0000 0023  40 01 01 00  40 02 08 02 03 00c8 5ba0 0064  40 03 04 0a000001
              c0 11 0a 02 02 00010000 00000064  08 0a"),
    );
    let read = Update::decode(body_of(&prepended), &old).unwrap();
    assert_eq!(read.announced[0].0.as_path.to_string(), "200 65536 100");
}

#[test]
fn frames_are_judged_by_rfc_4271_6_1() {
    let refused = |bytes: &[u8]| {
        let n = next_frame(&mut BytesMut::from(bytes)).unwrap_err();
        (n.code, n.subcode, n.data.to_vec())
    };
    let mut bad = message(4, &[]);
    bad[3] = 0;
    assert_eq!(refused(&bad), (1, 1, vec![]));
    assert_eq!(refused(&message(4, &[0])), (1, 2, vec![0, 20]), "KEEPALIVE with a body");
    assert_eq!(refused(&message(1, &[0; 9])), (1, 2, vec![0, 28]));
    assert_eq!(refused(&message(2, &[0; 3])), (1, 2, vec![0, 22]));
    assert_eq!(refused(&message(3, &[0])), (1, 2, vec![0, 20]));
    assert_eq!(refused(&message(5, &[0; 3])), (1, 2, vec![0, 22]));
    assert_eq!(refused(&message(6, &[])), (1, 3, vec![6]));
    assert_eq!(refused(&message(0, &[])), (1, 3, vec![0]));
    assert_eq!(refused(&message(2, &[0; 4078])), (1, 2, vec![0x10, 0x01]), "4,097 octets");
    // The header is judged before the body is there: nobody makes us wait for 64 KiB.
    assert_eq!(refused(&message(2, &[0; 5000])[..19]), (1, 2, vec![0x13, 0x9b]));
    let whole = message(2, &[0; 4077]);
    let mut part = BytesMut::from(&whole[..4095]);
    assert_eq!(next_frame(&mut part), Ok(None));
    part.extend_from_slice(&whole[4095..]);
    assert_eq!(next_frame(&mut part).unwrap().unwrap().kind, MessageType::Update);
}

#[test]
fn opens_are_judged_by_rfc_4271_6_2() {
    let decode = |body: &str| Open::decode(Bytes::from(hex(body))).map_err(|n| (n.code, n.subcode));
    let plain = decode("04 fde9 00b4 0a000001 00").unwrap();
    assert_eq!((plain.asn, plain.hold_time, plain.capabilities), (65001, 180, Capabilities::default()));
    assert_eq!(decode("03 fde9 00b4 0a000001 00"), Err((2, 1)));
    assert_eq!(decode("04 0000 00b4 0a000001 00"), Err((2, 2)), "AS 0 (RFC 7607)");
    assert_eq!(decode("04 5ba0 00b4 0a000001 08 02 06 41 04 00000000"), Err((2, 2)));
    assert_eq!(decode("04 fde9 00b4 00000000 00"), Err((2, 3)));
    assert_eq!(decode("04 fde9 00b4 0a000001 03 01 01 00"), Err((2, 4)), "a parameter that is no capability");
    assert_eq!(decode("04 fde9 0001 0a000001 00"), Err((2, 6)));
    assert_eq!(decode("04 fde9 0002 0a000001 00"), Err((2, 6)));
    assert!(decode("04 fde9 0000 0a000001 00").is_ok() && decode("04 fde9 0003 0a000001 00").is_ok());
    assert_eq!(decode("04 fde9 00b4 0a000001 05 02 06 41 04 00"), Err((2, 0)));
    assert_eq!(decode("04 fde9 00b4 0a000001 02 00"), Err((2, 0)));
    // An unknown capability, and known ones of wrong length, are as good as absent.
    let odd = decode("04 fde9 00b4 0a000001 0b 02 09 63 02 0102 41 00 40 01 00").unwrap();
    assert_eq!(odd.capabilities, Capabilities::default());
}

/// Mandatory attributes of an iBGP route.
const GOOD: &str = "40 01 01 00  40 02 00  40 03 04 0a000001  40 05 04 00000064";

fn decode(context: &DecodeContext, attributes: &str, nlri: &str) -> Result<Update, (u8, u8)> {
    let (attributes, nlri) = (hex(attributes), hex(nlri));
    let mut body = vec![0, 0];
    body.extend(u16::try_from(attributes.len()).unwrap().to_be_bytes());
    body.extend(attributes);
    body.extend(nlri);
    Update::decode(Bytes::from(body), context).map_err(|n| (n.code, n.subcode))
}

#[test]
fn every_attribute_gets_its_treatment_of_rfc_7606() {
    use Treatment::{Discard, Withdraw};
    let external = DecodeContext { external: Some(65001), ..INTERNAL };
    let rest = |skip: &str| GOOD.split("  ").filter(|a| !a.starts_with(skip)).collect::<Vec<_>>().join(" ");
    // Attributes without one of the mandatory ones, plus the bad one.
    let cases: &[(&str, &str, Treatment)] = &[
        ("40 01", "40 01 00", Withdraw),
        ("40 01", "40 01 02 00 00", Withdraw),
        ("40 01", "40 01 01 03", Withdraw),
        ("40 01", "80 01 01 00", Withdraw),                // flags
        ("40 01", "c0 01 01 00", Withdraw),                // flags
        ("40 01", "", Withdraw),                           // missing
        ("40 02", "40 02 01 02", Withdraw),                // a header cut off
        ("40 02", "40 02 02 02 00", Withdraw),             // an empty segment
        ("40 02", "40 02 06 05 01 00000001", Withdraw),    // an unknown segment type
        ("40 02", "40 02 06 02 02 00000001", Withdraw),    // overrun
        ("40 02", "40 02 07 02 01 00000001 02", Withdraw), // underrun
        ("40 02", "40 02 06 02 01 00000000", Withdraw),    // AS 0
        ("40 02", "", Withdraw),
        ("40 03", "40 03 03 0a0000", Withdraw),
        ("40 03", "40 03 04 00000000", Withdraw),
        ("40 03", "40 03 04 e0000001", Withdraw),
        ("40 03", "40 03 04 7f000001", Withdraw),
        ("40 03", "40 03 04 ffffffff", Withdraw),
        ("40 03", "", Withdraw),
        ("40 05", "40 05 03 000064", Withdraw),
        ("-", "80 04 03 000000", Withdraw),
        ("-", "40 06 01 00", Discard),
        ("-", "c0 07 06 0001 7f000001", Discard),
        ("-", "c0 07 08 00000000 7f000001", Discard), // AS 0
        ("-", "c0 08 00", Withdraw),
        ("-", "c0 08 05 0000000000", Withdraw),
        ("-", "80 09 03 000000", Withdraw),
        ("-", "80 0a 00", Withdraw),
        ("-", "80 0a 05 0000000000", Withdraw),
        ("-", "c0 10 07 00000000000000", Withdraw),
        ("-", "c0 19 03 000000", Withdraw),
        ("-", "c0 19 00", Withdraw),
        ("-", "c0 23 03 000001", Withdraw),
        ("-", "80 23 04 00000001", Withdraw),           // flags
        ("40 02", "40 02 06 03 01 00000001", Withdraw), // a confederation's
        ("40 02", "40 02 06 04 01 00000001", Withdraw),
        ("-", "c0 11 06 02 01 00000001", Discard), // AS4_PATH between new speakers
        ("-", "c0 12 08 00000001 7f000001", Discard),
        ("-", "c0 20 0b 0000000000000000000000", Withdraw),
        ("-", "40 63 00", Withdraw),    // an unknown well-known one
        ("-", "40 01 01 01", Discard),  // a second ORIGIN
        ("-", "80 63 05 00", Withdraw), // overruns the total length
        ("-", "80", Withdraw),          // a header cut off
        ("-", "d0 63 00", Withdraw),
    ];
    for (without, bad, treatment) in cases {
        let attributes = format!("{} {bad}", rest(without));
        let update = decode(&INTERNAL, &attributes, "08 0a 08 0b").unwrap();
        let worst = update.faults.iter().map(|fault| fault.treatment).max();
        assert_eq!(worst, Some(*treatment), "{bad}: {:?}", update.faults);
        let both = prefixes("10.0.0.0/8 11.0.0.0/8");
        if *treatment == Withdraw {
            assert_eq!((update.withdrawn, update.announced), (both, vec![]), "{bad}");
        } else {
            assert_eq!((&update.withdrawn, &update.announced[0].1), (&vec![], &both), "{bad}");
            // What is discarded leaves no trace.
            let clean = decode(&INTERNAL, GOOD, "08 0a 08 0b").unwrap();
            assert_eq!(update.announced, clean.announced, "{bad}");
        }
        // The session lives in any case, unless there is nothing to withdraw (RFC 7606 5.2). What an attribute means,
        // or that it is missing, does not matter then.
        let meaning = ["40 03 04", "40 02 06 03", "40 02 06 04"].iter().any(|start| bad.starts_with(start));
        let malformed = *treatment == Withdraw && !bad.is_empty() && !meaning;
        let alone = decode(&INTERNAL, &attributes, "");
        assert_eq!(alone.err(), malformed.then_some((3, 1)), "{bad}");
    }
    // Internal attributes from outside are discarded; a path that does not begin with the neighbour is withdrawn.
    let path = "40 02 06 02 01 0000fde9";
    let outside = format!("{} {path} 80 09 04 01020304 80 0a 04 01020304", rest("40 02"));
    let update = decode(&external, &outside, "08 0a").unwrap();
    assert_eq!(update.faults.len(), 3);
    let read = &update.announced[0].0;
    assert_eq!((read.local_pref, read.originator_id, read.cluster_list.len()), (None, None, 0));
    let foreign = format!("{} 40 02 06 02 01 0000fdea", rest("40 02"));
    assert_eq!(decode(&external, &foreign, "08 0a").unwrap().withdrawn.len(), 1);
    assert_eq!(decode(&external, GOOD, "08 0a").unwrap().withdrawn.len(), 1);
}

#[test]
fn multiprotocol_attributes_reset_only_where_prefixes_cannot_be_told() {
    let v6 = "fd000000000000000000000000000001";
    let base = "40 01 01 00 40 02 00 40 05 04 00000064";
    let with = |mp: &str| decode(&INTERNAL, &format!("{mp} {base}"), "");
    let good = with(&format!("80 0e 17 0002 01 10 {v6} 00 08 fd")).unwrap();
    assert_eq!(good.announced[0].1, prefixes("fd00::/8"));
    // A link-local address may follow (RFC 2545).
    let local = "fe800000000000000000000000000001";
    let two = with(&format!("80 0e 27 0002 01 20 {v6} {local} 00 08 fd")).unwrap();
    assert_eq!(two.announced, good.announced);
    for reset in [
        "80 0e 03 0002 01".to_owned(),
        "80 0e 00".to_owned(),
        format!("80 0e 13 0002 01 0f {} 00", &v6[..30]),
        format!("80 0e 14 0002 01 10 {v6}"),
        format!("80 0e 17 0002 01 10 {v6} 00 81 fd"),
        format!("80 0e 17 0002 01 10 {v6} 00 10 fd"),
        "80 0f 02 0002".to_owned(),
        "80 0f 05 0002 01 81 00".to_owned(),
    ] {
        let code = with(&reset).unwrap_err();
        assert!(code == (3, 9) || code == (3, 1), "{reset}: {code:?}");
    }
    assert_eq!(with(&format!("80 0e 17 0002 01 10 {v6} 00 08 fd 80 0e 00")).unwrap_err(), (3, 1), "twice");
    // Wrong flags: the prefixes can be told, so they are withdrawn.
    let flags = with(&format!("c0 0e 17 0002 01 10 {v6} 00 08 fd")).unwrap();
    assert_eq!((flags.withdrawn, flags.announced), (prefixes("fd00::/8"), vec![]));
    let mapped = with("80 0e 17 0002 01 10 00000000000000000000ffff0a000001 00 08 fd").unwrap();
    assert_eq!((mapped.withdrawn, mapped.announced), (prefixes("fd00::/8"), vec![]));
    // Families that we do not have, or did not negotiate, are nobody's business.
    assert_eq!(with("80 0e 09 0019 46 04 00000000 00").unwrap().announced, []);
    let v4_only = DecodeContext { families: Families::IPV4, ..INTERNAL };
    let unasked = decode(&v4_only, &format!("80 0e 17 0002 01 10 {v6} 00 08 fd {base}"), "").unwrap();
    assert_eq!((unasked.announced, unasked.withdrawn), (vec![], vec![]));
    // MP_REACH_NLRI of IPv4 gives the same route as the classic form.
    let classic = decode(&INTERNAL, GOOD, "08 0a").unwrap();
    assert_eq!(with("80 0e 0b 0001 01 04 0a000001 00 08 0a").unwrap().announced, classic.announced);
}

#[test]
fn prefixes_have_one_outcome() {
    let classic = |withdrawn: &str, nlri: &str| {
        let (withdrawn, attributes) = (hex(withdrawn), hex(GOOD));
        let mut body = u16::try_from(withdrawn.len()).unwrap().to_be_bytes().to_vec();
        body.extend(withdrawn);
        body.extend(u16::try_from(attributes.len()).unwrap().to_be_bytes());
        body.extend([attributes, hex(nlri)].concat());
        Update::decode(Bytes::from(body), &INTERNAL).map_err(|n| (n.code, n.subcode))
    };
    let both = classic("08 0a 08 0b", "08 0a").unwrap();
    assert_eq!((both.withdrawn, &both.announced[0].1), (prefixes("11.0.0.0/8"), &prefixes("10.0.0.0/8")));
    assert_eq!(classic("21 0a00000000", "08 0a").unwrap_err(), (3, 10));
    assert_eq!(classic("", "21 0a00000000").unwrap_err(), (3, 10));
    assert_eq!(classic("", "20 0a").unwrap_err(), (3, 10));
    // Host bits are cut (RFC 4271 4.3: trailing bits are irrelevant), multicast is no destination.
    assert_eq!(classic("", "09 0aff").unwrap().announced[0].1, prefixes("10.128.0.0/9"));
    let multicast = classic("", "08 0a 04 e0").unwrap();
    assert_eq!(
        (multicast.withdrawn, &multicast.announced[0].1),
        (prefixes("224.0.0.0/4"), &prefixes("10.0.0.0/8"))
    );
    // Lengths that overrun the message reset.
    assert_eq!(Update::decode(Bytes::from(hex("0009 08 0a 0000")), &INTERNAL).unwrap_err().subcode, 1);
    assert_eq!(Update::decode(Bytes::from(hex("0000 0009 40 01")), &INTERNAL).unwrap_err().subcode, 1);
}

#[test]
fn unknown_attributes_pass_by_their_bits() {
    let unknown = "c0 63 02 abcd  80 64 01 00  e0 65 01 01  c0 08 04 ffffff01";
    let update = decode(&INTERNAL, &format!("{GOOD} {unknown}"), "08 0a").unwrap();
    assert_eq!(update.faults, []);
    let kept: Vec<(u8, u8)> = update.announced[0].0.others.iter().map(|o| (o.kind, o.flags)).collect();
    // Transitive ones with the Partial bit, the others not at all; a known one keeps its bits.
    assert_eq!(kept, [(8, 0xc0), (99, 0xe0), (101, 0xe0)]);
    assert!(update.announced[0].0.has_community(podway_bgp::message::attribute::NO_EXPORT));
}

#[test]
fn what_does_not_fit_is_refused_and_long_attributes_get_two_length_octets() {
    let mut attributes = PathAttributes::originated("10.0.0.1".parse().unwrap());
    let opaque = |len: usize| Opaque { kind: 99, flags: 0xe0, value: Bytes::from(vec![7; len]) };
    for (len, fits) in [(255, true), (256, true), (4000, true), (4051, true), (4052, false), (9000, false)] {
        attributes.others = vec![opaque(len)];
        let mut out = BytesMut::new();
        let result = update::announce(&mut out, &attributes, &prefixes("10.1.2.0/24"), &PLAIN);
        assert_eq!(result.is_ok(), fits, "{len}");
        if fits {
            assert!(out.len() <= 4096);
            let read = Update::decode(body_of(&out), &INTERNAL).unwrap();
            assert_eq!(read.announced[0].0, attributes, "{len}");
        }
    }
}

fn any_prefix(family: Family) -> BoxedStrategy<IpNet> {
    match family {
        Family::Ipv4 => (0..0xe000_0000u32, 0..=32u8)
            .prop_map(|(a, len)| IpNet::new(IpAddr::V4(a.into()), len).unwrap().trunc())
            .boxed(),
        Family::Ipv6 => (0..(0xff00u128 << 112), 0..=128u8)
            .prop_map(|(a, len)| IpNet::new(IpAddr::V6(a.into()), len).unwrap().trunc())
            .boxed(),
    }
}

fn any_attributes(next_hop: IpAddr) -> impl Strategy<Value = PathAttributes> {
    let asn = prop_oneof![1..65536u32, 65536..u32::MAX];
    let segment = (0..2u8, prop::collection::vec(asn.clone(), 1..6)).prop_map(|(kind, asns)| Segment {
        kind: if kind == 0 { SegmentKind::Sequence } else { SegmentKind::Set },
        asns,
    });
    let path = prop::collection::vec(segment, 0..3).prop_map(AsPath);
    let origin = prop_oneof![Just(Origin::Igp), Just(Origin::Egp), Just(Origin::Incomplete)];
    let other = (100..120u8, prop::collection::vec(any::<u8>(), 0..400)).prop_map(|(kind, value)| Opaque {
        kind,
        flags: 0xe0,
        value: value.into(),
    });
    let number = || prop::option::of(any::<u32>());
    let aggregator =
        prop::option::of((asn, any::<u32>(), any::<bool>()).prop_map(|(asn, id, partial)| Aggregator {
            asn,
            router_id: id.into(),
            partial,
        }));
    let lists = (prop::collection::vec(any::<u32>(), 0..4), prop::collection::vec(other, 0..3));
    (path, origin, number(), number(), any::<bool>(), aggregator, number(), lists).prop_map(
        move |(
            as_path,
            origin,
            med,
            local_pref,
            atomic_aggregate,
            aggregator,
            originator,
            (clusters, mut others),
        )| {
            others.sort_by_key(|other| other.kind);
            others.dedup_by_key(|other| other.kind);
            PathAttributes {
                next_hop,
                origin,
                as_path,
                med,
                local_pref,
                atomic_aggregate,
                aggregator,
                originator_id: originator.map(Ipv4Addr::from),
                cluster_list: clusters.into_iter().map(Ipv4Addr::from).collect(),
                others,
            }
        },
    )
}

fn any_route() -> impl Strategy<Value = (PathAttributes, Vec<Nlri>)> {
    prop_oneof![
        (
            any_attributes("10.0.0.1".parse().unwrap()),
            prop::collection::btree_set(any_prefix(Family::Ipv4), 1..900)
        ),
        (
            any_attributes("fd00::1".parse().unwrap()),
            prop::collection::btree_set(any_prefix(Family::Ipv6), 1..500)
        ),
    ]
    .prop_map(|(attributes, prefixes)| (attributes, prefixes.into_iter().map(Nlri::from).collect()))
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(96) })]

    #[test]
    fn announcements_come_back_as_they_were(route in any_route(), four_octet in any::<bool>()) {
        let (attributes, prefixes) = route;
        // AS_TRANS itself means "look elsewhere"; it cannot come back as a path's own number.
        prop_assume!(four_octet || !attributes.as_path.contains(23456));
        let mut out = BytesMut::new();
        update::announce(&mut out, &attributes, &prefixes, if four_octet { &PLAIN } else { &OLD }).unwrap();
        let context = DecodeContext { four_octet_as: four_octet, ..INTERNAL };
        let mut read = vec![];
        while let Some(frame) = next_frame(&mut out).unwrap() {
            let update = Update::decode(frame.body, &context).unwrap();
            prop_assert_eq!(&update.faults, &[]);
            for (found, more) in update.announced {
                prop_assert_eq!(&found.to_owned().as_path.to_string(), &attributes.as_path.to_string());
                prop_assert_eq!(found, attributes.clone());
                read.extend(more);
            }
        }
        prop_assert_eq!(read, prefixes);
    }

    #[test]
    fn withdrawals_come_back_as_they_were(set in prop::collection::btree_set(any_prefix(Family::Ipv6), 1..900)) {
        let prefixes: Vec<Nlri> = set.into_iter().map(Nlri::from).collect();
        let mut out = BytesMut::new();
        update::withdraw(&mut out, &prefixes, &PLAIN);
        let mut read = vec![];
        while let Some(frame) = next_frame(&mut out).unwrap() {
            read.extend(Update::decode(frame.body, &INTERNAL).unwrap().withdrawn);
        }
        prop_assert_eq!(read, prefixes);
    }

    #[test]
    fn opens_come_back_as_they_were(
        asn in 1..u32::MAX, hold in prop_oneof![Just(0u16), 3..=u16::MAX], id in 1..=u32::MAX,
        time in 0..4096u16, bits in 0..64u8, gr in any::<bool>(),
    ) {
        let set = |bit: u8| -> Families {
            Family::ALL.into_iter().zip([bit, bit << 1]).filter(|(_, b)| bits & b != 0).map(|(f, _)| f).collect()
        };
        let families = set(4);
        let open = Open {
            asn,
            hold_time: hold,
            router_id: id.into(),
            capabilities: Capabilities {
                families: (!set(1).is_empty()).then(|| set(1)),
                route_refresh: bits & 16 != 0,
                four_octet_as: Some(asn),
                graceful_restart: gr.then_some(GracefulRestart {
                    restarting: bits & 32 != 0, notification: bits & 2 != 0, time, families,
                    preserved: families.and(set(8)),
                }),
                enhanced_refresh: bits & 1 != 0,
                extended_next_hop: bits & 2 != 0,
                extended_messages: bits & 4 != 0,
                role: (bits & 8 != 0).then_some(RoleSaid::One(Relation::RouteServerClient)),
                add_path_receive: set(1),
                add_path_send: set(16),
                long_lived: (bits & 4 != 0).then(|| families.iter().map(|family| LongLived {
                    family, preserved: bits & 1 != 0, time: Duration::from_secs(u64::from(time) * 4000),
                }).collect()),
            },
        };
        prop_assert_eq!(Open::decode(body_of(&open.encode())).unwrap(), open);
    }

    #[test]
    fn no_octets_make_a_decoder_panic(bytes in prop::collection::vec(any::<u8>(), 0..300), old in any::<bool>()) {
        feed(&bytes, old);
    }
}

/// Gives octets to every decoder.
fn feed(bytes: &[u8], old: bool) {
    let body = Bytes::copy_from_slice(bytes);
    for external in [None, Some(65001)] {
        let context = DecodeContext { four_octet_as: !old, external, ..INTERNAL };
        if let Ok(update) = Update::decode(body.clone(), &context) {
            let mut seen = std::collections::BTreeSet::new();
            let announced = update.announced.iter().flat_map(|(_, prefixes)| prefixes);
            seen.extend(announced.copied());
            assert!(
                update.withdrawn.iter().all(|prefix| !seen.contains(prefix)),
                "two outcomes for a prefix"
            );
        }
    }
    let _ = Open::decode(body.clone());
    let _ = Notification::decode(&body).to_string();
    let _ = refresh::decode(body);
    let mut stream = BytesMut::from(bytes);
    while let Ok(Some(_)) = next_frame(&mut stream) {}
}

/// Good messages, changed in some octets, many thousand times: what a fuzzer would find first.
#[test]
fn mutated_messages_never_panic() {
    let mut corpus: Vec<Vec<u8>> = vec![our_open().encode().to_vec()];
    for family in Family::ALL {
        let next_hop = if family == Family::Ipv4 { "10.0.0.1" } else { "fd00::1" };
        let mut attributes = PathAttributes::originated(next_hop.parse().unwrap());
        attributes.local_pref = Some(100);
        attributes.as_path = AsPath(vec![Segment { kind: SegmentKind::Sequence, asns: vec![65001, 70000] }]);
        attributes.aggregator =
            Some(Aggregator { asn: 70000, router_id: Ipv4Addr::LOCALHOST, partial: true });
        attributes.cluster_list = vec![Ipv4Addr::LOCALHOST; 2];
        attributes.originator_id = Some(Ipv4Addr::LOCALHOST);
        let list = if family == Family::Ipv4 { "10.0.0.0/8 10.1.1.0/25" } else { "fd00::/8 fd01::/127" };
        for four_octet in [true, false] {
            let mut out = BytesMut::new();
            update::announce(&mut out, &attributes, &prefixes(list), if four_octet { &PLAIN } else { &OLD })
                .unwrap();
            corpus.push(out.to_vec());
        }
        let mut out = BytesMut::new();
        update::withdraw(&mut out, &prefixes(list), &PLAIN);
        corpus.push(out.to_vec());
    }
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut random = |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        usize::try_from(state >> 33).unwrap() % below
    };
    let mut decoded = 0;
    for _ in 0..60_000 {
        let mut bytes = corpus[random(corpus.len())].clone();
        for _ in 0..=random(4) {
            let at = 19 + random(bytes.len() - 19);
            match random(4) {
                0 => bytes[at] = u8::try_from(random(256)).unwrap(),
                1 => bytes[at] ^= 1 << random(8),
                2 => drop(bytes.remove(at)),
                _ => bytes.insert(at, u8::try_from(random(256)).unwrap()),
            }
            if bytes.len() < 21 {
                break;
            }
        }
        decoded += usize::from(Update::decode(Bytes::copy_from_slice(&bytes[19..]), &INTERNAL).is_ok());
        feed(&bytes[19..], random(2) == 0);
        feed(&bytes, false);
    }
    assert!(decoded > 1000, "the mutations are not all trivially refused: {decoded}");
}
