//! What a monitoring station is told: compared, message by message read, with what the speaker holds.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    reason = "tests: a failure is a panic, numbers are small"
)]

mod rig;
mod station;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use podway_bgp::bmp::{Ended, Station, StationOptions, message};
use podway_bgp::config::{Import, Role, SpeakerConfig};
use podway_bgp::filter::{Filter, Verdict};
use podway_bgp::message::attribute::PathAttributes;
use podway_bgp::message::{Nlri, Notification, keepalive};
use podway_bgp::types::Families;
use podway_bgp::{ConnId, Event};
use rig::{ASN, Rig, attributes, config, internal, ip, neighbour, net, nlri, open, with};

const MESH: (u8, &str) = (0, "10.0.0.1");
const OUTSIDE: u32 = 65001;

fn key((kind, address): (u8, &str)) -> station::Key {
    (kind, ip(address))
}

/// A speaker, its side of a station, and the station.
struct Watched {
    rig: Rig,
    ours: Station,
    theirs: station::Station,
}

fn options() -> StationOptions {
    StationOptions {
        name: "n1".to_owned(),
        description: "podway".to_owned(),
        pre_policy: true,
        post_policy: true,
        loc_rib: true,
        statistics: Some(Duration::from_secs(60)),
    }
}

/// Of every connection: our port says which.
fn ends(conn: ConnId) -> Option<(SocketAddr, SocketAddr)> {
    let (ConnId::Incoming(number) | ConnId::Outgoing(number)) = conn;
    let port = 1000 + u16::try_from(number).ok()?;
    Some((SocketAddr::new(ip("10.0.0.100"), 179), SocketAddr::new(ip("10.0.0.1"), port)))
}

impl Watched {
    fn new(config: SpeakerConfig) -> Self {
        let mut rig = Rig::new(config);
        rig.speaker.monitor(true);
        let mut watched = Self {
            rig,
            ours: Station::new(options(), Duration::from_secs(1_000_000)),
            theirs: station::Station::default(),
        };
        watched.connect();
        watched
    }

    fn connect(&mut self) {
        Station::note(&mut self.rig.speaker, &mut [&mut self.ours]);
        self.ours.connected(self.rig.now, &self.rig.speaker);
        self.theirs = station::Station::default();
    }

    /// The station reads what there is, in pieces.
    fn read(&mut self) {
        Station::note(&mut self.rig.speaker, &mut [&mut self.ours]);
        for _ in 0..100_000 {
            let octets = self.ours.fill(self.rig.now, &self.rig.speaker, &ends, 1000);
            if octets.is_empty() {
                return;
            }
            self.theirs.read(&octets);
        }
        panic!("it does not end");
    }

    /// Reads, and compares with what the speaker holds.
    fn agree(&mut self) {
        // As a shell does, which looks after each event.
        for _ in 0..100 {
            self.rig.pass(Duration::from_millis(1));
            Station::note(&mut self.rig.speaker, &mut [&mut self.ours]);
        }
        self.read();
        agree(&self.rig.speaker, &self.theirs);
    }
}

/// Whether a station that has read everything knows what the speaker holds.
fn agree(speaker: &podway_bgp::Speaker, station: &station::Station) {
    let peers = speaker.peers();
    let up: Vec<IpAddr> = peers
        .iter()
        .filter(|peer| peer.state == podway_bgp::session::State::Established)
        .map(|peer| peer.address)
        .collect();
    let known: Vec<IpAddr> =
        station.peers.keys().filter(|(kind, _)| *kind == 0).map(|(_, one)| *one).collect();
    assert_eq!(known, up);
    for address in up {
        let peer = &station.peers[&(0, address)];
        let held = speaker.received_paths(address);
        let pre: Vec<(Nlri, PathAttributes)> = held.iter().map(|(n, a, ..)| (*n, a.clone())).collect();
        assert_eq!(peer.pre.clone().into_iter().collect::<Vec<_>>(), pre, "{address} before policy");
        let usable: Vec<Nlri> = held.iter().filter(|(.., usable, _)| *usable).map(|(n, ..)| *n).collect();
        assert_eq!(peer.post.keys().copied().collect::<Vec<_>>(), usable, "{address} after policy");
    }
    if let Some(loc) = station.peers.get(&(3, ip("0.0.0.0"))) {
        let best: Vec<String> = speaker
            .routes()
            .into_iter()
            .filter(|route| route.best)
            .map(|route| route.prefix.to_string())
            .collect();
        let known: Vec<String> = loc.pre.keys().map(ToString::to_string).collect();
        assert_eq!(known, best, "loc-RIB");
    }
}

fn external() -> podway_bgp::config::Neighbour {
    neighbour(Role::External, OUTSIDE)
}

#[test]
fn a_station_is_told_of_sessions_and_routes_as_they_are() {
    let mut watched = Watched::new(with([("10.0.0.1", internal(Role::Mesh)), ("10.0.0.2", external())]));
    watched.agree();
    assert_eq!(watched.theirs.name.as_deref(), Some("n1"));
    let conn = watched.rig.establish_and_read("10.0.0.1", &open(ASN, "10.0.0.1"));
    watched.agree();
    let peer = &watched.theirs.peers[&key(MESH)];
    assert_eq!((peer.asn, peer.router_id.to_string()), (ASN, "10.0.0.1".to_owned()));
    assert_eq!((peer.local, peer.remote_port), ((ip("10.0.0.100"), 179), 1001));
    assert_eq!(peer.received, open(ASN, "10.0.0.1"), "their OPEN is the one that came");
    assert_eq!(peer.sent.router_id.to_string(), "10.0.0.100");
    assert_eq!(peer.ends, [Families::BOTH; 2], "a first table has its end, empty or not");
    watched.rig.announce(conn, &attributes("10.0.0.1"), &nlri("10.1.0.0/24 10.2.0.0/24"));
    watched.rig.announce(conn, &attributes("fd00::1"), &nlri("fd01::/64"));
    watched.agree();
    assert_eq!(watched.theirs.peers[&key(MESH)].pre.len(), 3);
    assert_eq!(watched.theirs.times.last(), Some(&1_001_000), "when it came, since 1970");
    watched.rig.withdraw(conn, &nlri("10.1.0.0/24"));
    watched.rig.announce(
        conn,
        &PathAttributes { med: Some(7), ..attributes("10.0.0.1") },
        &nlri("10.2.0.0/24"),
    );
    watched.agree();
    let peer = &watched.theirs.peers[&key(MESH)];
    assert_eq!(peer.pre[&Nlri::from(net("10.2.0.0/24"))].med, Some(7));
    // One outside, whose routes an import filter changes; then it lets nothing in.
    let mut path = attributes("10.0.0.2");
    path.local_pref = None;
    path.as_path.prepend(OUTSIDE);
    let outside = watched.rig.establish_and_read("10.0.0.2", &open(OUTSIDE, "10.0.0.2"));
    watched.rig.announce(outside, &path, &nlri("10.3.0.0/24"));
    watched.agree();
    assert_eq!(watched.theirs.peers[&(0, ip("10.0.0.2"))].post.len(), 1);
    let mut closed = external();
    closed.options.import = Some(Arc::new(Filter { rules: vec![], otherwise: Verdict::Reject }));
    watched.rig.configure(with([("10.0.0.1", internal(Role::Mesh)), ("10.0.0.2", closed)]));
    watched.agree();
    let peer = &watched.theirs.peers[&(0, ip("10.0.0.2"))];
    assert_eq!((peer.pre.len(), peer.post.len()), (1, 0), "policy took it out");
}

#[test]
fn each_end_of_a_session_has_its_reason() {
    let mut watched = Watched::new(with([("10.0.0.1", internal(Role::Mesh))]));
    let reason = |watched: &mut Watched| {
        watched.agree();
        let (key, (reason, notification, _)) = watched.theirs.downs.pop().expect("it is down");
        assert!(key == (0, ip("10.0.0.1")) && watched.theirs.downs.is_empty());
        (reason, notification.map(|n| (n.code, n.subcode)))
    };
    let establish = |watched: &mut Watched| {
        let conn = watched.rig.establish_and_read("10.0.0.1", &open(ASN, "10.0.0.1"));
        watched.agree();
        conn
    };
    let conn = establish(&mut watched);
    watched.rig.send(conn, Notification::cease(2).encode());
    assert_eq!(reason(&mut watched), (3, Some((6, 2))), "it said so");
    let conn = establish(&mut watched);
    watched.rig.cut(conn);
    assert_eq!(reason(&mut watched), (4, None), "it was gone");
    let conn = establish(&mut watched);
    watched.rig.send(conn, open(ASN, "10.0.0.1").encode());
    assert_eq!(reason(&mut watched), (1, Some((5, 3))), "an OPEN in Established: we said so");
    establish(&mut watched);
    watched.rig.step(Event::Reset { peer: ip("10.0.0.1"), words: "again".to_owned() });
    assert_eq!(reason(&mut watched), (1, Some((6, 4))), "the operator said so");
    establish(&mut watched);
    watched.rig.pass(Duration::from_secs(100));
    assert_eq!(reason(&mut watched), (1, Some((4, 0))), "the hold timer said so");
    establish(&mut watched);
    watched.rig.configure(config());
    let (number, _) = reason(&mut watched);
    assert_eq!(number, 1, "it is no neighbour any more");
}

#[test]
fn sessions_that_come_and_go_unread_are_told_by_what_is_left() {
    let mut watched = Watched::new(with([("10.0.0.1", internal(Role::Mesh))]));
    let conn = watched.rig.establish_and_read("10.0.0.1", &open(ASN, "10.0.0.1"));
    watched.rig.announce(conn, &attributes("10.0.0.1"), &nlri("10.1.0.0/24"));
    watched.agree();
    // Down with a reason, up, down with another, up.
    watched.rig.send(conn, Notification::cease(2).encode());
    let conn = watched.rig.establish_and_read("10.0.0.1", &open(ASN, "10.0.0.1"));
    watched.rig.cut(conn);
    let conn = watched.rig.establish_and_read("10.0.0.1", &open(ASN, "10.0.0.1"));
    watched.rig.announce(conn, &attributes("10.0.0.1"), &nlri("10.9.0.0/24"));
    watched.agree();
    assert_eq!((watched.theirs.ups, watched.theirs.downs.len()), (3, 1), "the loc-RIB and two sessions");
    assert_eq!(watched.theirs.downs[0].1.0, 3, "the reason of the session that it knew");
    assert_eq!(watched.theirs.peers[&key(MESH)].remote_port, 1003);
    // A session that the station never saw.
    watched.rig.cut(conn);
    watched.agree();
    let conn = watched.rig.establish_and_read("10.0.0.1", &open(ASN, "10.0.0.1"));
    watched.rig.cut(conn);
    watched.agree();
    assert_eq!((watched.theirs.ups, watched.theirs.downs.len()), (3, 2));
}

#[test]
fn a_station_that_comes_back_is_told_everything_again() {
    let mut watched = Watched::new(with([("10.0.0.1", internal(Role::Mesh))]));
    let conn = watched.rig.establish_and_read("10.0.0.1", &open(ASN, "10.0.0.1"));
    watched.rig.announce(conn, &attributes("10.0.0.1"), &nlri("10.1.0.0/24 10.2.0.0/24"));
    watched.agree();
    watched.ours.disconnected();
    assert_eq!(watched.ours.fill(watched.rig.now, &watched.rig.speaker, &ends, 1000).len(), 0);
    watched.rig.withdraw(conn, &nlri("10.1.0.0/24"));
    Station::note(&mut watched.rig.speaker, &mut [&mut watched.ours]);
    assert_eq!(watched.ours.status().waiting, 0, "a station that is gone costs nothing");
    watched.connect();
    watched.agree();
    assert_eq!(watched.theirs.peers[&key(MESH)].pre.len(), 1);
    watched.theirs.read(&watched.ours.farewell());
    assert_eq!(watched.theirs.terminated, Some(0));
}

/// Many prefixes of one neighbour.
fn many(count: u32) -> Vec<Nlri> {
    let prefix = |n: u32| format!("{}/32", std::net::Ipv4Addr::from(0x0b00_0000 + n));
    (0..count).map(|n| Nlri::from(net(&prefix(n)))).collect()
}

#[test]
fn a_station_that_does_not_read_keeps_little_and_is_told_anew() {
    let mut watched =
        Watched::new(with([("10.0.0.1", internal(Role::Mesh)), ("10.0.0.3", internal(Role::Mesh))]));
    let conn = watched.rig.establish_and_read("10.0.0.1", &open(ASN, "10.0.0.1"));
    let quiet = watched.rig.establish_and_read("10.0.0.3", &open(ASN, "10.0.0.3"));
    watched.rig.announce(quiet, &attributes("10.0.0.3"), &nlri("10.3.0.0/24"));
    watched.agree();
    // The same prefixes over and over: they wait once.
    let few = many(1000);
    for med in 0..50 {
        watched.rig.announce(conn, &PathAttributes { med: Some(med), ..attributes("10.0.0.1") }, &few);
        Station::note(&mut watched.rig.speaker, &mut [&mut watched.ours]);
    }
    assert!(watched.ours.status().waiting <= 2000, "{:?}", watched.ours.status());
    assert_eq!(watched.ours.status().dropped, 0);
    // More than may wait, in batches as a shell sees them; half is withdrawn again.
    let all = many(100_000);
    for batch in all.chunks(1000) {
        watched.rig.announce(conn, &attributes("10.0.0.1"), batch);
        Station::note(&mut watched.rig.speaker, &mut [&mut watched.ours]);
        assert!(watched.ours.status().waiting <= 64 << 10);
    }
    for batch in all[..50_000].chunks(1000) {
        watched.rig.withdraw(conn, batch);
        Station::note(&mut watched.rig.speaker, &mut [&mut watched.ours]);
    }
    let before = watched.ours.status();
    assert!(before.dropped > 60_000, "{before:?}");
    watched.agree();
    assert_eq!(watched.theirs.peers[&key(MESH)].pre.len(), 50_000);
    let anew: Vec<_> = watched.theirs.downs.iter().map(|(key, down)| (key.0, key.1, down.0)).collect();
    assert!(anew.contains(&(0, ip("10.0.0.1"), 5)), "{anew:?}");
    assert!(!anew.contains(&(0, ip("10.0.0.3"), 5)), "who changed little is not told anew: {anew:?}");
    assert_eq!(watched.ours.status().waiting, 0);
    // One step that changes more than a list holds.
    watched.rig.cut(conn);
    let conn = watched.rig.establish_and_read("10.0.0.1", &open(ASN, "10.0.0.1"));
    watched.rig.announce(conn, &attributes("10.0.0.1"), &all);
    watched.agree();
    let hidden = SpeakerConfig {
        neighbours: [(
            ip("10.0.0.1"),
            podway_bgp::config::Neighbour { import: Import::None, ..internal(Role::Mesh) },
        )]
        .into_iter()
        .collect(),
        ..config()
    };
    watched.rig.configure(hidden);
    watched.agree();
    assert!(watched.theirs.peers[&key(MESH)].post.is_empty());
}

#[test]
fn statistics_come_in_their_time() {
    let mut watched = Watched::new(with([("10.0.0.1", internal(Role::Mesh))]));
    let conn = watched.rig.establish_and_read("10.0.0.1", &open(ASN, "10.0.0.1"));
    watched.rig.announce(conn, &attributes("10.0.0.1"), &nlri("10.1.0.0/24 10.2.0.0/24"));
    let mut looped = attributes("10.0.0.1");
    looped.originator_id = Some("10.0.0.100".parse().unwrap());
    watched.rig.announce(conn, &looped, &nlri("10.5.0.0/24"));
    watched.agree();
    assert!(watched.theirs.peers[&key(MESH)].statistics.is_empty(), "not yet");
    let at = watched.ours.deadline().expect("there is a time for them");
    watched.rig.send(conn, keepalive());
    watched.rig.now = at;
    watched.read();
    let all = &watched.theirs.peers[&key(MESH)].statistics;
    assert_eq!((all[&7], all[&6], all[&5], all[&4], all[&11]), (2, 1, 0, 0, 0), "{all:?}");
    assert_eq!((all[&911], all[&921]), (2, 0), "by family: {all:?}");
    let all = &watched.theirs.peers[&(3, ip("0.0.0.0"))].statistics;
    assert_eq!((all[&8], all[&1011], all[&1021]), (4, 3, 1), "{all:?}");
    assert_eq!(watched.ours.deadline(), Some(at + Duration::from_secs(60)));
}

/// Numbers that look random and are the same each time.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        // xorshift64 (Marsaglia 2003).
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

#[test]
fn whatever_happens_a_station_that_reads_knows_what_is_held() {
    for seed in 1..=150 {
        let mut random = Random(0x9e37_79b9_7f4a_7c15 ^ seed);
        let addresses = ["10.0.0.1", "10.0.0.2", "10.0.0.3"];
        let open_of = |address: &str| open(if address == "10.0.0.2" { OUTSIDE } else { ASN }, address);
        let all = |closed: bool| {
            let mut outside = external();
            let filter = Filter { rules: vec![], otherwise: Verdict::Reject };
            outside.options.import = closed.then(|| Arc::new(filter));
            with([
                ("10.0.0.1", internal(Role::Mesh)),
                ("10.0.0.2", outside),
                ("10.0.0.3", internal(Role::Client)),
            ])
        };
        let mut watched = Watched::new(all(false));
        let mut conns: std::collections::BTreeMap<&str, ConnId> = std::collections::BTreeMap::new();
        for _ in 0..80 {
            let address = addresses[random.below(3) as usize];
            let prefixes: Vec<Nlri> = (0..=random.below(3))
                .map(|n| nlri(&format!("10.{}.0.0/16", n * 5 + random.below(5)))[0])
                .collect();
            let mut path = attributes(address);
            path.med = Some(u32::try_from(random.below(3)).unwrap());
            if address == "10.0.0.2" {
                path.local_pref = None;
                path.as_path.prepend(OUTSIDE);
            }
            match (random.below(12), conns.get(address).copied()) {
                (0..=6, None) => {
                    conns.insert(address, watched.rig.establish(address, &open_of(address)));
                }
                (0..=3, Some(conn)) => watched.rig.announce(conn, &path, &prefixes),
                (4 | 5, Some(conn)) => watched.rig.withdraw(conn, &prefixes),
                (6, Some(conn)) => {
                    watched.rig.cut(conn);
                    conns.remove(address);
                }
                (7, _) => watched.rig.configure(all(random.below(2) == 0)),
                (8, _) => watched.ours.disconnected(),
                (9, Some(conn)) => watched.rig.end_of_rib(conn, Families::BOTH),
                (10, _) => {
                    // A little is read, if there is a connection.
                    Station::note(&mut watched.rig.speaker, &mut [&mut watched.ours]);
                    let octets = watched.ours.fill(watched.rig.now, &watched.rig.speaker, &ends, 150);
                    watched.theirs.read(&octets);
                }
                _ => watched.rig.pass(Duration::from_millis(random.below(3000))),
            }
            if random.below(10) == 0 {
                if watched.ours.deadline().is_none() {
                    watched.connect();
                }
                watched.agree();
            }
            // A hold timer may have ended one.
            conns.retain(|_, conn| !watched.rig.closed.contains(conn));
        }
        watched.ours.disconnected();
        watched.connect();
        watched.agree();
    }
}

/// Octet by octet, from the layouts of RFC 7854 section 4.
#[test]
fn messages_are_those_of_the_rfc() {
    let mut out = bytes::BytesMut::new();
    message::initiation(&mut out, "d", "nn");
    assert_eq!(out[..], [3, 0, 0, 0, 17, 4, 0, 1, 0, 1, b'd', 0, 2, 0, 2, b'n', b'n']);
    out.clear();
    message::termination(&mut out);
    assert_eq!(out[..], [3, 0, 0, 0, 12, 5, 0, 1, 0, 2, 0, 0]);
    let peer = message::PeerHeader {
        kind: message::PeerType::Global,
        address: Some(ip("10.0.0.1")),
        asn: 0x0001_0203,
        router_id: "9.8.7.6".parse().unwrap(),
    };
    let header = |flags: u8| {
        let mut all = vec![0, flags, 0, 0, 0, 0, 0, 0, 0, 0];
        all.extend([0; 12]);
        all.extend([10, 0, 0, 1, 0, 1, 2, 3, 9, 8, 7, 6, 0, 0, 0, 5, 0, 0, 0, 7]);
        all
    };
    let at = Duration::new(5, 7000);
    for (ended, tail) in [
        (Ended::Local(18), vec![2, 0, 18]),
        (Ended::Remote, vec![4]),
        (Ended::Anew, vec![5]),
        (Ended::Said(Notification::new(6, 2)), [vec![1], vec![0xff; 16], vec![0, 21, 3, 6, 2]].concat()),
        (Ended::Heard(Notification::new(6, 2)), [vec![3], vec![0xff; 16], vec![0, 21, 3, 6, 2]].concat()),
    ] {
        out.clear();
        message::peer_down(&mut out, &peer, at, &ended);
        let len = u32::try_from(6 + 42 + tail.len()).unwrap();
        let wanted = [vec![3], len.to_be_bytes().to_vec(), vec![2], header(0), tail].concat();
        assert_eq!(out[..], wanted, "{ended:?}");
    }
    out.clear();
    message::route_monitoring(&mut out, &peer, true, at, b"update");
    assert_eq!(out[..], [vec![3, 0, 0, 0, 54, 0], header(0x40), b"update".to_vec()].concat());
    out.clear();
    let all = [
        message::Statistic::Counter(5, 9),
        message::Statistic::Family(9, podway_bgp::types::Family::Ipv6, 4),
    ];
    message::statistics(&mut out, &peer, at, &all);
    let counters = vec![0, 0, 0, 2, 0, 5, 0, 4, 0, 0, 0, 9, 0, 9, 0, 11, 0, 2, 1, 0, 0, 0, 0, 0, 0, 0, 4];
    assert_eq!(out[..], [vec![3, 0, 0, 0, 75, 1], header(0), counters].concat());
}
