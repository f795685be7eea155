//! One speaker and hand-made neighbours: a test writes the octets that a neighbour sends and reads those that it gets.

#![allow(dead_code, unreachable_pub, reason = "each test file uses its part")]

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use ipnet::IpNet;
use podway_bgp::config::{
    ConnectMode, Export, GracefulRestart, Import, Neighbour, NeighbourOptions, Role, SecondRestart,
    SpeakerConfig, SpeakerOptions,
};
use podway_bgp::message::attribute::PathAttributes;
use podway_bgp::message::capability::Capabilities;
use podway_bgp::message::open::Open;
use podway_bgp::message::update::{self, DecodeContext, Encoding, Update};
use podway_bgp::message::{Frame, MAX_EXTENDED_LEN, MessageType, Nlri, Notification, keepalive, next_frame};
use podway_bgp::types::Families;
use podway_bgp::{Action, ConnId, Event, Speaker};
use podway_model::ids::Asn;

/// Our AS number.
pub const ASN: u32 = 64512;

pub fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

pub fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

pub fn nlri(text: &str) -> Vec<Nlri> {
    text.split_whitespace().map(|prefix| Nlri::from(net(prefix))).collect()
}

/// A neighbour of that role; outside, AS 65000 plus the last octet of its address.
pub fn neighbour(role: Role, asn: u32) -> Neighbour {
    Neighbour {
        name: "test".to_owned(),
        asn: Asn::try_from(asn).unwrap(),
        role,
        connect: ConnectMode::Passive,
        port: 179,
        local_address: None,
        families: Families::BOTH,
        import: Import::All,
        export: Export::All,
        options: NeighbourOptions::default(),
    }
}

pub fn internal(role: Role) -> Neighbour {
    neighbour(role, ASN)
}

/// We are 10.0.0.100 (also the identifier) and fd00::100, with one prefix of each family.
pub fn config() -> SpeakerConfig {
    let (v4, v6) = (ip("10.0.0.100"), ip("fd00::100"));
    SpeakerConfig {
        asn: Asn::try_from(ASN).unwrap(),
        router_id: Ipv4Addr::new(10, 0, 0, 100),
        cluster_id: None,
        hold_time: Duration::from_secs(90),
        graceful_restart: Some(GracefulRestart {
            restart_time: Duration::from_secs(120),
            stale_time: Duration::from_secs(360),
            deferral_time: Duration::from_secs(30),
            second_restart: SecondRestart::Keep,
            notifications: false,
        }),
        neighbours: BTreeMap::new(),
        originated: BTreeMap::from([(net("10.244.0.0/26"), v4), (net("fd10::/122"), v6)]),
        own_addresses: BTreeSet::from([v4, v6]),
        options: SpeakerOptions::default(),
    }
}

/// The configuration with these neighbours.
pub fn with(neighbours: impl IntoIterator<Item = (&'static str, Neighbour)>) -> SpeakerConfig {
    let neighbours = neighbours.into_iter().map(|(address, n)| (ip(address), n)).collect();
    SpeakerConfig { neighbours, ..config() }
}

/// An OPEN with both families, four octets, route refresh and nothing else.
pub fn open(asn: u32, router_id: &str) -> Open {
    Open {
        asn,
        hold_time: 90,
        router_id: router_id.parse().unwrap(),
        capabilities: Capabilities {
            families: Some(Families::BOTH),
            route_refresh: true,
            four_octet_as: Some(asn),
            ..Capabilities::default()
        },
    }
}

/// Attributes of a plain internal route.
pub fn attributes(next_hop: &str) -> PathAttributes {
    PathAttributes { local_pref: Some(100), ..PathAttributes::originated(ip(next_hop)) }
}

pub struct Rig {
    pub speaker: Speaker,
    pub now: Duration,
    inbox: BTreeMap<ConnId, BytesMut>,
    pub closed: BTreeSet<ConnId>,
    /// Connections that the speaker asked for, and not yet answered.
    pub asked: Vec<(ConnId, IpAddr)>,
    pub routes: BTreeMap<IpNet, Vec<IpAddr>>,
    pub ignored: Vec<String>,
    pub warned: Vec<String>,
    pub refused: Vec<String>,
    pub ups: BTreeMap<IpAddr, usize>,
    /// Whether what is sent counts as written at once.
    pub reads: bool,
    live: Vec<(ConnId, IpAddr)>,
    next: u64,
}

impl Rig {
    pub fn new(config: SpeakerConfig) -> Self {
        let mut out = vec![];
        let now = Duration::from_secs(1000);
        let speaker = Speaker::new(Arc::new(config), None, 1, now, &mut out);
        let mut rig = Self {
            speaker,
            now,
            inbox: BTreeMap::new(),
            closed: BTreeSet::new(),
            asked: vec![],
            routes: BTreeMap::new(),
            ignored: vec![],
            warned: vec![],
            refused: vec![],
            ups: BTreeMap::new(),
            reads: true,
            live: vec![],
            next: 0,
        };
        rig.perform(out);
        rig
    }

    pub fn step(&mut self, event: Event) {
        let mut out = vec![];
        self.speaker.step(self.now, event, &mut out);
        self.perform(out);
    }

    fn perform(&mut self, actions: Vec<Action>) {
        let mut sent = vec![];
        for action in actions {
            match action {
                Action::Connect { conn, remote, .. } => self.asked.push((conn, remote.ip())),
                Action::Send { conn, bytes } => {
                    assert!(!self.closed.contains(&conn), "nothing is sent on a closed connection");
                    self.inbox.entry(conn).or_default().extend_from_slice(&bytes);
                    sent.push((conn, bytes.len()));
                }
                Action::Close { conn } => assert!(self.closed.insert(conn), "closed twice"),
                Action::RouteChanged { prefix, next_hops } if next_hops.is_empty() => {
                    self.routes.remove(&prefix);
                }
                Action::RouteChanged { prefix, next_hops } => {
                    self.routes.insert(prefix, next_hops);
                }
                Action::PeerChanged { peer, up, .. } => {
                    *self.ups.entry(peer).or_default() += usize::from(up);
                }
                Action::Ignoring { what, .. } => self.ignored.push(what),
                Action::Warned { what, .. } => self.warned.push(what),
                Action::Refused { mistakes } => self.refused.extend(mistakes),
                Action::Synced => {}
            }
        }
        if self.reads {
            for (conn, bytes) in sent {
                self.step(Event::Sent { conn, bytes });
            }
        }
    }

    /// Lets time pass, timer by timer.
    pub fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        while let Some(at) = self.speaker.deadline().filter(|at| *at <= end) {
            self.now = self.now.max(at);
            self.step(Event::Timer);
        }
        self.now = end;
    }

    /// Lets pending changes be flushed.
    pub fn settle(&mut self) {
        self.pass(Duration::from_millis(100));
    }

    pub fn connect(&mut self, from: &str) -> ConnId {
        self.next += 1;
        let conn = ConnId::Incoming(self.next);
        self.live.push((conn, ip(from)));
        self.step(Event::Accepted { conn, remote: ip(from) });
        conn
    }

    pub fn send(&mut self, conn: ConnId, bytes: impl Into<Bytes>) {
        self.step(Event::Received { conn, bytes: bytes.into() });
    }

    /// The connection is gone without a word.
    pub fn cut(&mut self, conn: ConnId) {
        self.step(Event::Closed { conn, reason: "cut".to_owned() });
        self.closed.insert(conn);
    }

    /// Brings up a session from `from` with this OPEN.
    pub fn establish(&mut self, from: &str, open: &Open) -> ConnId {
        let before = self.ups.get(&ip(from)).copied().unwrap_or(0);
        let conn = self.connect(from);
        self.send(conn, open.encode());
        self.send(conn, keepalive());
        let frames = self.frames(conn);
        assert_eq!(self.ups.get(&ip(from)), Some(&(before + 1)), "{from}: {frames:?}");
        self.inbox.entry(conn).or_default().extend(frames.iter().flat_map(raw));
        conn
    }

    /// The same when there is a session: it is cut first.
    pub fn establish_again(&mut self, from: &str, open: &Open) -> ConnId {
        let (conn, _) = self.live.iter().rev().find(|(_, peer)| *peer == ip(from)).copied().unwrap();
        self.cut(conn);
        self.establish(from, open)
    }

    /// The same, until its first table and End-of-RIB have come.
    pub fn establish_and_read(&mut self, from: &str, open: &Open) -> ConnId {
        let conn = self.establish(from, open);
        self.settle();
        self.frames(conn);
        conn
    }

    pub fn frames(&mut self, conn: ConnId) -> Vec<Frame> {
        let buffer = self.inbox.entry(conn).or_default();
        let mut all = vec![];
        while let Some(frame) = next_frame(buffer, MAX_EXTENDED_LEN).unwrap() {
            all.push(frame);
        }
        assert!(buffer.is_empty(), "whole messages");
        all
    }

    /// The NOTIFICATION that came last, before the connection was closed.
    pub fn notification(&mut self, conn: ConnId) -> Notification {
        assert!(self.closed.contains(&conn), "closed");
        let last = self.frames(conn).pop().expect("something came");
        assert_eq!(last.kind, MessageType::Notification);
        Notification::decode(&last.body)
    }

    pub fn said(&mut self, conn: ConnId) -> (u8, u8) {
        let notification = self.notification(conn);
        (notification.code, notification.subcode)
    }

    /// UPDATEs that came, decoded.
    pub fn updates(&mut self, conn: ConnId, context: &DecodeContext) -> Vec<Update> {
        let frames = self.frames(conn).into_iter().filter(|frame| frame.kind == MessageType::Update);
        frames.map(|frame| Update::decode(frame.body, context).unwrap()).collect()
    }

    /// Announces prefixes as a neighbour of four-octet numbers and no options would.
    pub fn announce(&mut self, conn: ConnId, attributes: &PathAttributes, prefixes: &[Nlri]) {
        self.announce_as(conn, attributes, prefixes, &Encoding::PLAIN);
    }

    pub fn announce_as(
        &mut self,
        conn: ConnId,
        attributes: &PathAttributes,
        prefixes: &[Nlri],
        encoding: &Encoding,
    ) {
        let mut out = BytesMut::new();
        update::announce(&mut out, attributes, prefixes, encoding).unwrap();
        self.send(conn, out.freeze());
    }

    pub fn withdraw(&mut self, conn: ConnId, prefixes: &[Nlri]) {
        let mut out = BytesMut::new();
        update::withdraw(&mut out, prefixes, &Encoding::PLAIN);
        self.send(conn, out.freeze());
    }

    pub fn end_of_rib(&mut self, conn: ConnId, families: Families) {
        let mut out = BytesMut::new();
        families.iter().for_each(|family| update::end_of_rib(&mut out, family));
        self.send(conn, out.freeze());
    }

    pub fn configure(&mut self, config: SpeakerConfig) {
        self.step(Event::Configured(Arc::new(config)));
    }

    pub fn next_hop(&self, prefix: &str) -> Option<IpAddr> {
        self.routes.get(&net(prefix)).and_then(|next_hops| next_hops.first().copied())
    }
}

/// A message as it stood on the wire.
fn raw(frame: &Frame) -> Vec<u8> {
    let mut out = vec![0xff; 16];
    out.extend(u16::try_from(19 + frame.body.len()).unwrap().to_be_bytes());
    out.push(frame.kind as u8);
    out.extend(&frame.body);
    out
}

/// A table as a neighbour builds it from what it is told.
#[derive(Debug, Default)]
pub struct Table {
    pub routes: BTreeMap<Nlri, PathAttributes>,
    pub end_of_rib: Families,
}

impl Table {
    pub fn take(&mut self, updates: Vec<Update>) {
        for update in updates {
            for gone in update.withdrawn {
                self.routes.remove(&gone);
            }
            for (attributes, prefixes) in update.announced {
                self.routes.extend(prefixes.into_iter().map(|nlri| (nlri, attributes.clone())));
            }
            update.end_of_rib.into_iter().for_each(|family| self.end_of_rib.insert(family));
        }
    }

    pub fn get(&self, prefix: &str) -> Option<&PathAttributes> {
        self.routes.get(&Nlri::from(net(prefix)))
    }

    pub fn prefixes(&self) -> Vec<String> {
        self.routes.keys().map(ToString::to_string).collect()
    }
}
