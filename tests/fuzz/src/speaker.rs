//! A BGP speaker under any sequence of events: no panic, nothing is sent on a connection that is gone, time does not
//! stand still, what was told of routes is what people are shown, and the same events give the same actions.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use arbitrary::{Result, Unstructured};
use bytes::{BufMut as _, Bytes, BytesMut};
use ipnet::IpNet;
use podway_bgp::bmp::{Station, StationOptions};
use podway_bgp::config::{
    Circle, Claims, ConnectMode, Export, GracefulRestart, Import, Neighbour, NeighbourOptions, Restarted,
    Role, SecondRestart, SpeakerConfig, SpeakerOptions, Standing,
};
use podway_bgp::message::attribute::{Origin, PathAttributes};
use podway_bgp::message::capability::{self, Capabilities};
use podway_bgp::message::open::Open;
use podway_bgp::message::update::Encoding;
use podway_bgp::message::{Nlri, Notification, keepalive, refresh, update};
use podway_bgp::types::{Families, Family};
use podway_bgp::{Action, AfterStop, ConnId, Event, Speaker};
use podway_model::ids::Asn;

/// The station of the core's own tests.
#[path = "../../../crates/bgp/tests/station/mod.rs"]
mod station;

/// Own AS number.
const ASN: u32 = 64512;
/// The external neighbour's.
const EXTERNAL: u32 = 4_200_000_001;

fn address(number: u8) -> IpAddr {
    match number {
        4 => IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, 5]),
        _ => IpAddr::from([10, 0, 0, number + 1]),
    }
}

fn neighbour(number: u8) -> Neighbour {
    let (role, connect) = match number {
        1 => (Role::Mesh, ConnectMode::Both),
        2 => (Role::Client, ConnectMode::Both),
        3 => (Role::External, ConnectMode::Both),
        _ => (Role::Client, ConnectMode::Passive),
    };
    Neighbour {
        name: format!("n{number}"),
        asn: Asn::try_from(asn(number)).expect("the constants are AS numbers"),
        role,
        connect,
        port: 179,
        local_address: None,
        families: if number == 2 { Families::IPV4 } else { Families::BOTH },
        import: if number == 1 { Import::Claimed } else { Import::All },
        export: Export::All,
        options: NeighbourOptions::default(),
    }
}

fn asn(number: u8) -> u32 {
    if number == 3 { EXTERNAL } else { ASN }
}

/// A configuration whose parts the bits choose.
fn config(bits: u16) -> SpeakerConfig {
    let bit = |at: u16| bits >> at & 1 == 1;
    let restart = GracefulRestart {
        restart_time: Duration::from_secs(60),
        stale_time: Duration::from_secs(90),
        deferral_time: Duration::from_secs(30),
        second_restart: if bit(0) { SecondRestart::Keep } else { SecondRestart::Delete },
        notifications: bit(10),
    };
    // Whoever is not listed may be known all the same, and leave or not.
    let circle = |standing| {
        let mut template = neighbour(2);
        (template.role, template.options.standing) = (Role::Client, standing);
        let missing = (1..=4u8).filter(|n| bit(1 + u16::from(*n)));
        Circle { members: missing.map(|n| (address(n), format!("n{n}"))).collect(), template }
    };
    let standing = if bit(11) { Standing::Leaving } else { Standing::Wanted };
    let mut neighbours: BTreeMap<IpAddr, Neighbour> =
        (1..=4u8).filter(|n| !bit(1 + u16::from(*n))).map(|n| (address(n), neighbour(n))).collect();
    if bit(12) {
        neighbours.values_mut().for_each(|neighbour| neighbour.options.standing = standing);
    }
    let own = [(prefix(0), address(0)), (prefix(9), IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, 1]))];
    SpeakerConfig {
        asn: Asn::try_from(ASN).expect("the constant is an AS number"),
        router_id: if bit(9) { Ipv4Addr::UNSPECIFIED } else { Ipv4Addr::new(10, 0, 0, 1) },
        cluster_id: bit(8).then_some(Ipv4Addr::new(9, 9, 9, 9)),
        hold_time: Duration::from_secs(if bit(7) { 0 } else { 9 }),
        graceful_restart: (!bit(1)).then_some(restart),
        neighbours,
        originated: own.into_iter().filter(|_| !bit(6)).collect(),
        own_addresses: BTreeSet::from([address(0)]),
        options: SpeakerOptions {
            circles: if bit(13) { vec![circle(standing)] } else { vec![] },
            ..SpeakerOptions::default()
        },
    }
}

fn prefix(number: u8) -> IpNet {
    let (address, len) = match number % 16 {
        n @ 0..=7 => (IpAddr::from([10, 244, n, 0]), 24),
        n => (IpAddr::from([0xfd10, u16::from(n), 0, 0, 0, 0, 0, 0]), 64),
    };
    IpNet::new(address, len).expect("the lengths are those of the families")
}

/// The world of one speaker: connections, what is on them, and the kernel's routes.
struct World {
    speaker: Speaker,
    now: Duration,
    /// Connections that the speaker holds, as it must see it.
    open: BTreeMap<ConnId, usize>,
    incoming: u64,
    routes: BTreeMap<IpNet, Vec<IpAddr>>,
    log: Vec<Action>,
    config: u16,
    station: Option<Watching>,
}

/// A monitoring station: its side of the speaker's, and what it has read.
struct Watching {
    ours: Station,
    theirs: station::Station,
    turn: u32,
}

impl Default for Watching {
    fn default() -> Self {
        let options = StationOptions {
            name: "n".to_owned(),
            description: "podway".to_owned(),
            pre_policy: true,
            post_policy: true,
            loc_rib: true,
            statistics: Some(Duration::from_secs(5)),
        };
        let ours = Station::new(options, Duration::from_secs(1_000_000));
        Self { ours, theirs: station::Station::default(), turn: 0 }
    }
}

/// A sequence of events, twice.
pub fn speaker(bytes: &[u8]) {
    let first = run(bytes);
    assert!(first == run(bytes), "the same events gave other actions");
}

/// A sequence of events, beside which a monitoring station reads now and then, goes and comes.
pub fn station(bytes: &[u8]) {
    drop(run_with(bytes, Some(Watching::default())));
}

fn run(bytes: &[u8]) -> Vec<Action> {
    run_with(bytes, None)
}

fn run_with(bytes: &[u8], station: Option<Watching>) -> Vec<Action> {
    let mut u = Unstructured::new(bytes);
    let start: u8 = u.arbitrary().unwrap_or_default();
    let restarted = (start & 1 == 1).then(|| Restarted {
        peers: (1..=4).filter(|n| start >> n & 1 == 1).map(address).collect(),
        clients: (1..=4).filter(|n| start >> (5 - n) & 1 == 1).map(address).collect(),
        forwarding_preserved: start & 0x20 != 0,
    });
    let (mut actions, now) = (vec![], Duration::from_secs(1));
    let bits = u16::from(start >> 6);
    let speaker = Speaker::new(Arc::new(config(bits)), restarted, u64::from(start), now, &mut actions);
    let mut world = World {
        speaker,
        now,
        open: BTreeMap::new(),
        incoming: 0,
        routes: BTreeMap::new(),
        log: vec![],
        config: bits,
        station,
    };
    world.speaker.monitor(world.station.is_some());
    world.perform(actions);
    // The end of the bytes ends the sequence.
    while !u.is_empty() {
        if world.event(&mut u).is_err() {
            break;
        }
        world.judge();
        world.watch();
    }
    world.compare();
    world.log
}

impl World {
    /// The station takes a little; each seventeenth time its connection ends instead.
    fn watch(&mut self) {
        let Some(watching) = &mut self.station else { return };
        Station::note(&mut self.speaker, &mut [&mut watching.ours]);
        watching.turn += 1;
        if watching.turn % 17 == 0 {
            watching.ours.disconnected();
        } else if watching.turn % 17 == 3 {
            watching.ours.connected(self.now, &self.speaker);
            watching.theirs = station::Station::default();
        } else if watching.turn % 3 == 0 {
            let octets = watching.ours.fill(self.now, &self.speaker, &|_| None, 300);
            watching.theirs.read(&octets);
        }
    }

    /// What the station knows once it has read everything is what the speaker holds.
    fn compare(&mut self) {
        let Some(watching) = &mut self.station else { return };
        Station::note(&mut self.speaker, &mut [&mut watching.ours]);
        let mut octets = watching.ours.fill(self.now, &self.speaker, &|_| None, 300);
        if octets.is_empty() {
            watching.ours.connected(self.now, &self.speaker);
            watching.theirs = station::Station::default();
            octets = watching.ours.fill(self.now, &self.speaker, &|_| None, 300);
        }
        while !octets.is_empty() {
            watching.theirs.read(&octets);
            octets = watching.ours.fill(self.now, &self.speaker, &|_| None, 300);
        }
        let up = |peer: &podway_bgp::event::PeerStatus| peer.state == podway_bgp::session::State::Established;
        let up: Vec<IpAddr> = self.speaker.peers().into_iter().filter(up).map(|peer| peer.address).collect();
        let neighbours = watching.theirs.peers.iter().filter(|((kind, _), _)| *kind == 0);
        let known: Vec<IpAddr> = neighbours.map(|((_, address), _)| *address).collect();
        assert_eq!(known, up, "sessions that the station knows");
        for address in up {
            let (held, peer) = (self.speaker.received_paths(address), &watching.theirs.peers[&(0, address)]);
            let pre: BTreeMap<Nlri, PathAttributes> = held.iter().map(|(n, a, ..)| (*n, a.clone())).collect();
            assert_eq!(peer.pre, pre, "what {address} told, before policy");
            let post: Vec<Nlri> = held.iter().filter(|(.., usable, _)| *usable).map(|(n, ..)| *n).collect();
            assert_eq!(
                peer.post.keys().copied().collect::<Vec<_>>(),
                post,
                "what {address} told, after policy"
            );
        }
    }

    fn step(&mut self, event: Event) {
        let mut actions = vec![];
        self.speaker.step(self.now, event, &mut actions);
        self.perform(actions);
    }

    fn perform(&mut self, actions: Vec<Action>) {
        for action in &actions {
            match action {
                Action::Connect { conn, remote, .. } => {
                    assert!(self.open.insert(*conn, 0).is_none(), "{conn} exists");
                    assert!(remote.port() == 179);
                }
                Action::Send { conn, bytes } => {
                    crate::bgp::own_frames(bytes);
                    let waiting = self.open.get_mut(conn);
                    *waiting.expect("sent on a connection that is open") += bytes.len();
                }
                Action::Close { conn } => {
                    assert!(self.open.remove(conn).is_some(), "{conn} is closed and was not open");
                }
                Action::RouteChanged { prefix, next_hops } if next_hops.is_empty() => {
                    self.routes.remove(prefix);
                }
                Action::RouteChanged { prefix, next_hops } => {
                    self.routes.insert(*prefix, next_hops.clone());
                }
                Action::Refused { mistakes } => assert!(!mistakes.is_empty()),
                Action::PeerChanged { .. }
                | Action::Ignoring { .. }
                | Action::Warned { .. }
                | Action::Synced => {}
            }
        }
        self.log.extend(actions);
    }

    /// What must hold after each step.
    fn judge(&mut self) {
        let deadline = self.speaker.deadline();
        assert!(deadline.is_none_or(|at| at > self.now), "{deadline:?} is due at {:?}", self.now);
        let shown: BTreeMap<IpNet, Vec<IpAddr>> = self
            .speaker
            .routes()
            .into_iter()
            .filter(|route| route.best && route.from.is_some())
            .map(|route| (route.prefix, vec![route.next_hop]))
            .collect();
        if self.speaker.is_synced() {
            assert_eq!(self.routes, shown, "routes that were told, and those that are");
        }
        for peer in self.speaker.peers() {
            assert!(peer.usable <= peer.received && peer.stale <= peer.received, "{peer:?}");
        }
    }

    fn conn(&self, u: &mut Unstructured<'_>) -> Result<ConnId> {
        let known: Vec<ConnId> = self.open.keys().copied().collect();
        if known.is_empty() || u.ratio(1, 16)? {
            let number = u64::from(u.int_in_range(0..=20u8)?);
            return Ok(if u.arbitrary()? { ConnId::Outgoing(number) } else { ConnId::Incoming(number) });
        }
        Ok(*u.choose(&known)?)
    }

    fn receive(&mut self, u: &mut Unstructured<'_>, bytes: impl Into<Bytes>) -> Result<()> {
        let conn = self.conn(u)?;
        self.step(Event::Received { conn, bytes: bytes.into() });
        Ok(())
    }

    fn event(&mut self, u: &mut Unstructured<'_>) -> Result<()> {
        match u.int_in_range(0..=19u8)? {
            0 | 1 => {
                self.now += Duration::from_millis(1 << u.int_in_range(0..=17u8)?);
                self.step(Event::Timer);
            }
            2 => {
                if let Some(at) = self.speaker.deadline() {
                    self.now = at;
                }
                self.step(Event::Timer);
            }
            3 | 4 => {
                self.incoming += 1;
                let (conn, remote) = (ConnId::Incoming(self.incoming), address(u.int_in_range(0..=5u8)?));
                self.open.insert(conn, 0);
                self.step(Event::Accepted { conn, remote });
            }
            5 | 6 => {
                let conn = self.conn(u)?;
                self.step(Event::Connected { conn });
            }
            7 | 8 => {
                let open = open(u)?;
                self.receive(u, open.encode())?;
            }
            9 => self.receive(u, keepalive())?,
            10..=12 => {
                let bytes = routes(u)?;
                self.receive(u, bytes)?;
            }
            13 => {
                let family = if u.arbitrary()? { Family::Ipv4 } else { Family::Ipv6 };
                let mut out = BytesMut::new();
                match u.arbitrary()? {
                    true => update::end_of_rib(&mut out, family),
                    false => out.put_slice(&refresh::encode(refresh::Subtype::Request, family)),
                }
                self.receive(u, out)?;
            }
            14 => {
                let len = usize::from(u.int_in_range(0..=40u8)?);
                let body = u.bytes(len.min(u.len()))?.to_vec();
                let bytes = if u.arbitrary()? { framed(u.int_in_range(1..=5u8)?, &body) } else { body };
                self.receive(u, bytes)?;
            }
            15 => {
                let notification = Notification::new(u.int_in_range(1..=7u8)?, u.int_in_range(0..=8u8)?);
                self.receive(u, notification.encode())?;
            }
            16 => {
                let conn = self.conn(u)?;
                let waiting = self.open.get(&conn).copied().unwrap_or(5);
                let bytes = if u.arbitrary()? { waiting } else { waiting / 2 };
                self.open.entry(conn).and_modify(|waiting| *waiting -= bytes);
                self.step(Event::Sent { conn, bytes });
            }
            17 => {
                let conn = self.conn(u)?;
                self.open.remove(&conn);
                self.step(Event::Closed { conn, reason: "reset".to_owned() });
            }
            18 => {
                self.config ^= 1 << u.int_in_range(0..=9u16)?;
                self.step(Event::Configured(Arc::new(config(self.config))));
            }
            _ => match u.int_in_range(0..=8u8)? {
                0 => {
                    let routes = if u.arbitrary()? { AfterStop::Keep } else { AfterStop::Drop };
                    self.step(Event::Stopped { routes });
                }
                1 | 2 => {
                    self.step(Event::Flushed { took: Duration::from_micros(u.arbitrary::<u16>()?.into()) })
                }
                _ => {
                    let mut claims = Claims::new();
                    for _ in 0..u.int_in_range(0..=4u8)? {
                        let next_hop = address(u.int_in_range(0..=4u8)?);
                        claims.entry(prefix(u.arbitrary()?)).or_default().insert(next_hop);
                    }
                    self.step(Event::Claimed(Arc::new(claims)));
                }
            },
        }
        Ok(())
    }
}

fn open(u: &mut Unstructured<'_>) -> Result<Open> {
    let number = u.int_in_range(1..=4u8)?;
    let bits: u8 = u.arbitrary()?;
    let families = if bits & 1 == 0 { Families::BOTH } else { Families::IPV4 };
    let restart = capability::GracefulRestart {
        restarting: bits & 2 != 0,
        notification: bits & 1 != 0,
        time: 20,
        families,
        preserved: if bits & 4 == 0 { families } else { Families::NONE },
    };
    Ok(Open {
        asn: asn(number),
        hold_time: if bits & 8 == 0 { 9 } else { 0 },
        router_id: Ipv4Addr::new(10, 0, 0, if bits & 16 == 0 { number + 1 } else { 77 }),
        capabilities: Capabilities {
            families: (bits & 32 == 0).then_some(families),
            route_refresh: true,
            four_octet_as: (bits & 64 == 0 || number == 3).then_some(asn(number)),
            graceful_restart: (bits & 128 == 0).then_some(restart),
            enhanced_refresh: bits & 1 == 0,
            ..Capabilities::default()
        },
    })
}

/// UPDATEs that announce or withdraw a few prefixes of one family.
fn routes(u: &mut Unstructured<'_>) -> Result<BytesMut> {
    let first = prefix(u.arbitrary()?);
    let mut prefixes = vec![first];
    for _ in 0..u.int_in_range(0..=3u8)? {
        let next = prefix(u.arbitrary()?);
        if Family::of(&next) == Family::of(&first) && !prefixes.contains(&next) {
            prefixes.push(next);
        }
    }
    let prefixes: Vec<Nlri> = prefixes.into_iter().map(Nlri::from).collect();
    let mut out = BytesMut::new();
    if u.ratio(1, 3)? {
        update::withdraw(&mut out, &prefixes, &Encoding::PLAIN);
        return Ok(out);
    }
    let number = u.int_in_range(0..=4u8)?;
    let next_hop = match Family::of(&first) {
        Family::Ipv4 => IpAddr::from([10, 0, 0, number + 1]),
        Family::Ipv6 => IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, u16::from(number) + 1]),
    };
    let mut attributes = PathAttributes::originated(next_hop);
    let bits: u8 = u.arbitrary()?;
    attributes.local_pref = (bits & 1 == 0).then_some(100 + u32::from(bits & 6));
    attributes.med = (bits & 8 != 0).then_some(u32::from(bits >> 4));
    attributes.origin = if bits & 16 == 0 { Origin::Igp } else { Origin::Incomplete };
    if bits & 32 != 0 {
        attributes.as_path.prepend(EXTERNAL);
    }
    if bits & 64 != 0 {
        attributes.originator_id = Some(Ipv4Addr::new(10, 0, 0, number + 1));
        attributes.cluster_list = vec![Ipv4Addr::new(9, 9, 9, 9 - (bits >> 7))];
    }
    let _ = update::announce(
        &mut out,
        &attributes,
        &prefixes,
        &Encoding { four_octet_as: u.ratio(7, 8)?, ..Encoding::PLAIN },
    );
    Ok(out)
}

/// A body under a good header.
fn framed(kind: u8, body: &[u8]) -> Vec<u8> {
    let mut out = vec![0xff; 16];
    let len = u16::try_from(19 + body.len()).unwrap_or(u16::MAX);
    out.extend_from_slice(&len.to_be_bytes());
    out.push(kind);
    out.extend_from_slice(body);
    out
}
