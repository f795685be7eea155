//! A network of speakers under virtual time: connections with delays, crashes, cuts, and what each node's kernel
//! would hold. Deterministic: everything comes from the seed.

#![allow(dead_code, unreachable_pub, reason = "each test file uses its part")]

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use ipnet::IpNet;
use podway_bgp::config::{
    Claims, ConnectMode, Export, GracefulRestart, Import, Neighbour, NeighbourOptions, Restarted, Role,
    SecondRestart, SpeakerConfig, SpeakerOptions,
};
use podway_bgp::session::State;
use podway_bgp::types::Families;
use podway_bgp::{Action, AfterStop, ConnId, Event, Speaker};
use podway_model::ids::Asn;

pub const ASN: u32 = 64512;

/// Address of node `i`.
pub fn v4(i: usize) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(10, 0, (i / 250) as u8, (i % 250 + 1) as u8))
}

/// IPv6 address of node `i`.
pub fn v6(i: usize) -> IpAddr {
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, i as u16 + 1))
}

/// The `k`th IPv4 block of node `i`.
pub fn block(i: usize, k: usize) -> IpNet {
    format!("10.{}.{}.{}/26", 100 + i / 64, i % 64 * 4 + k / 4, k % 4 * 64).parse().unwrap()
}

/// The IPv6 block of node `i`.
pub fn block6(i: usize) -> IpNet {
    format!("fd10::{:x}00/122", i + 1).parse().unwrap()
}

pub fn neighbour(i: usize, role: Role, connect: ConnectMode) -> Neighbour {
    Neighbour {
        name: format!("n{i}"),
        asn: Asn::try_from(ASN).unwrap(),
        role,
        connect,
        port: 179,
        local_address: None,
        families: Families::BOTH,
        import: Import::All,
        export: Export::All,
        options: NeighbourOptions::default(),
    }
}

/// Configuration of node `i` without neighbours: `blocks` IPv4 blocks and an IPv6 block of its own.
pub fn config(i: usize, blocks: usize) -> SpeakerConfig {
    let IpAddr::V4(router_id) = v4(i) else { unreachable!("v4") };
    let mut originated: BTreeMap<IpNet, IpAddr> = (0..blocks).map(|k| (block(i, k), v4(i))).collect();
    originated.insert(block6(i), v6(i));
    SpeakerConfig {
        asn: Asn::try_from(ASN).unwrap(),
        router_id,
        cluster_id: None,
        hold_time: Duration::from_secs(9),
        graceful_restart: Some(GracefulRestart {
            restart_time: Duration::from_secs(60),
            stale_time: Duration::from_secs(180),
            deferral_time: Duration::from_secs(30),
            second_restart: SecondRestart::Keep,
            notifications: false,
        }),
        neighbours: BTreeMap::new(),
        originated,
        own_addresses: BTreeSet::from([v4(i), v6(i)]),
        options: SpeakerOptions::default(),
    }
}

/// Everybody with everybody.
pub fn mesh(nodes: usize, blocks: usize, mode: impl Fn(usize, usize) -> ConnectMode) -> Vec<SpeakerConfig> {
    let one = |i: usize| {
        let mut config = config(i, blocks);
        for j in (0..nodes).filter(|j| *j != i) {
            config.neighbours.insert(v4(j), neighbour(j, Role::Mesh, mode(i, j)));
        }
        config
    };
    (0..nodes).map(one).collect()
}

/// The first `reflectors` nodes reflect to all others.
pub fn reflected(nodes: usize, reflectors: usize, blocks: usize) -> Vec<SpeakerConfig> {
    let one = |i: usize| {
        let mut config = config(i, blocks);
        for j in (0..nodes).filter(|j| *j != i) {
            let role = match (i < reflectors, j < reflectors) {
                (true, true) => Role::Mesh,
                (true, false) => Role::Client,
                (false, true) => Role::Reflector,
                (false, false) => continue,
            };
            config.neighbours.insert(v4(j), neighbour(j, role, ConnectMode::Both));
        }
        config
    };
    (0..nodes).map(one).collect()
}

/// What is on its way to a node.
enum Arrival {
    Connection { conn: usize },
    Established { conn: usize },
    Bytes { conn: usize, side: usize, bytes: Bytes },
    Sent { conn: usize, side: usize, bytes: usize },
    Closed { conn: usize, side: usize, reason: &'static str },
}

struct Conn {
    /// Node and name of the connection there; side 0 opened it.
    ends: [(usize, Option<ConnId>); 2],
    /// Whether that side may still be told something.
    open: [bool; 2],
}

pub struct Node {
    pub config: Arc<SpeakerConfig>,
    pub speaker: Option<Speaker>,
    /// What the kernel holds: survives the speaker.
    pub kernel: BTreeMap<IpNet, Vec<IpAddr>>,
    /// What the speaker said since it began.
    said: BTreeMap<IpNet, Vec<IpAddr>>,
    pub synced: bool,
    pub up: BTreeSet<IpAddr>,
    pub log: Vec<String>,
    pub claims: Option<Arc<Claims>>,
    lives: u64,
}

pub struct Net {
    pub now: Duration,
    pub nodes: Vec<Node>,
    conns: Vec<Conn>,
    queue: BTreeMap<(Duration, u64), Arrival>,
    seq: u64,
    seed: u64,
    /// Pairs of nodes between which nothing passes.
    pub cut: BTreeSet<(usize, usize)>,
    pub messages: usize,
}

impl Net {
    pub fn new(configs: Vec<SpeakerConfig>, seed: u64) -> Self {
        let node = |config: SpeakerConfig| Node {
            config: Arc::new(config),
            speaker: None,
            kernel: BTreeMap::new(),
            said: BTreeMap::new(),
            synced: false,
            up: BTreeSet::new(),
            log: vec![],
            claims: None,
            lives: 0,
        };
        let nodes: Vec<Node> = configs.into_iter().map(node).collect();
        let mut net = Self {
            now: Duration::ZERO,
            nodes,
            conns: vec![],
            queue: BTreeMap::new(),
            seq: 0,
            seed,
            cut: BTreeSet::new(),
            messages: 0,
        };
        for i in 0..net.nodes.len() {
            net.start(i, None);
        }
        net
    }

    pub fn random(&mut self) -> u64 {
        // Lehmer's generator, modulus 2^61 - 1.
        self.seed = (u128::from(self.seed | 1) * 1_000_003 % ((1 << 61) - 1)) as u64;
        self.seed >> 8
    }

    pub fn start(&mut self, i: usize, restarted: Option<Restarted>) {
        let mut out = vec![];
        let seed = self.random();
        let node = &mut self.nodes[i];
        node.synced = false;
        node.said.clear();
        node.lives += 1;
        let mut speaker = Speaker::new(Arc::clone(&node.config), restarted, seed, self.now, &mut out);
        if let Some(claims) = &node.claims {
            speaker.step(self.now, Event::Claimed(Arc::clone(claims)), &mut out);
        }
        node.speaker = Some(speaker);
        self.perform(i, out);
    }

    /// What `kill -9` does: the kernel closes the connections, its routes stay.
    pub fn kill(&mut self, i: usize) -> Restarted {
        self.nodes[i].up.clear();
        let peers = self.nodes[i].speaker.as_ref().map(Speaker::relied_on).unwrap_or_default();
        let clients = self.nodes[i].speaker.as_ref().map(Speaker::reflected_to).unwrap_or_default();
        self.nodes[i].speaker = None;
        for conn in 0..self.conns.len() {
            for side in 0..2 {
                if self.conns[conn].ends[side].0 == i && self.conns[conn].open[side] {
                    self.close(conn, side, "connection reset");
                }
            }
        }
        Restarted { peers, clients, forwarding_preserved: true }
    }

    /// The power goes: nobody is told.
    pub fn vanish(&mut self, i: usize) {
        self.nodes[i].speaker = None;
        self.nodes[i].kernel.clear();
        self.nodes[i].up.clear();
        for conn in &mut self.conns {
            for side in 0..2 {
                if conn.ends[side].0 == i {
                    conn.open[side] = false;
                }
            }
        }
    }

    pub fn stop(&mut self, i: usize, routes: AfterStop) -> Restarted {
        let peers = self.nodes[i].speaker.as_ref().map(Speaker::relied_on).unwrap_or_default();
        let clients = self.nodes[i].speaker.as_ref().map(Speaker::reflected_to).unwrap_or_default();
        self.step(i, Event::Stopped { routes });
        self.nodes[i].up.clear();
        self.nodes[i].speaker = None;
        Restarted { peers, clients, forwarding_preserved: true }
    }

    /// Resets one random open connection.
    pub fn reset_one(&mut self) {
        let open: Vec<usize> = (0..self.conns.len()).filter(|c| self.conns[*c].open == [true; 2]).collect();
        if !open.is_empty() {
            let conn = open[self.random() as usize % open.len()];
            self.queue_now(Arrival::Closed { conn, side: 0, reason: "connection reset" });
            self.queue_now(Arrival::Closed { conn, side: 1, reason: "connection reset" });
        }
    }

    pub fn configure(&mut self, i: usize, config: SpeakerConfig) {
        let config = Arc::new(config);
        self.nodes[i].config = Arc::clone(&config);
        self.step(i, Event::Configured(config));
    }

    pub fn step(&mut self, i: usize, event: Event) {
        let mut out = vec![];
        if let Some(speaker) = &mut self.nodes[i].speaker {
            speaker.step(self.now, event, &mut out);
            self.perform(i, out);
        }
    }

    fn node_at(&self, address: IpAddr) -> Option<usize> {
        (0..self.nodes.len()).find(|i| v4(*i) == address)
    }

    fn queue_now(&mut self, arrival: Arrival) {
        self.seq += 1;
        self.queue.insert((self.now, self.seq), arrival);
    }

    /// After a delay that depends on the pair alone, so that a connection keeps its order.
    fn queue_later(&mut self, a: usize, b: usize, arrival: Arrival) {
        self.seq += 1;
        let delay = Duration::from_micros(200 + ((a * 31 + b * 17) % 13) as u64 * 150);
        self.queue.insert((self.now + delay, self.seq), arrival);
    }

    fn is_cut(&self, a: usize, b: usize) -> bool {
        self.cut.contains(&(a.min(b), a.max(b)))
    }

    fn close(&mut self, conn: usize, side: usize, reason: &'static str) {
        self.conns[conn].open[side] = false;
        let (me, other) = (self.conns[conn].ends[side].0, self.conns[conn].ends[1 - side].0);
        self.queue_later(me, other, Arrival::Closed { conn, side: 1 - side, reason });
    }

    fn find(&self, i: usize, id: ConnId) -> Option<(usize, usize)> {
        let at = |(c, conn): (usize, &Conn)| {
            (0..2).find(|s| conn.ends[*s] == (i, Some(id)) && conn.open[*s]).map(|s| (c, s))
        };
        self.conns.iter().enumerate().rev().find_map(at)
    }

    fn perform(&mut self, i: usize, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::Connect { conn, remote, .. } => {
                    let to = self.node_at(remote.ip()).expect("neighbours are nodes");
                    self.conns.push(Conn { ends: [(i, Some(conn)), (to, None)], open: [true, false] });
                    let conn = self.conns.len() - 1;
                    self.queue_later(i, to, Arrival::Connection { conn });
                }
                Action::Send { conn, bytes } => {
                    if let Some((conn, side)) = self.find(i, conn) {
                        let other = self.conns[conn].ends[1 - side].0;
                        self.messages += 1;
                        self.queue_later(i, other, Arrival::Sent { conn, side, bytes: bytes.len() });
                        self.queue_later(i, other, Arrival::Bytes { conn, side: 1 - side, bytes });
                    }
                }
                Action::Close { conn } => {
                    if let Some((conn, side)) = self.find(i, conn) {
                        self.close(conn, side, "closed by the peer");
                    }
                }
                Action::RouteChanged { prefix, next_hops } => {
                    let node = &mut self.nodes[i];
                    if next_hops.is_empty() {
                        node.said.remove(&prefix);
                        if node.synced {
                            node.kernel.remove(&prefix);
                        }
                    } else {
                        node.said.insert(prefix, next_hops.clone());
                        node.kernel.insert(prefix, next_hops);
                    }
                }
                Action::PeerChanged { peer, up, reason, .. } => {
                    assert!(!reason.contains("unexpected message"), "n{i}: {peer}: {reason}");
                    let node = &mut self.nodes[i];
                    if up {
                        node.up.insert(peer)
                    } else {
                        node.up.remove(&peer)
                    };
                    node.log.push(format!("{:?} n{i}: {peer} {up}: {reason}", self.now));
                }
                Action::Ignoring { peer, what } => {
                    self.nodes[i].log.push(format!("{:?} n{i}: ignoring {peer}: {what}", self.now));
                }
                Action::Warned { peer, what } => {
                    self.nodes[i].log.push(format!("{:?} n{i}: warning {peer}: {what}", self.now));
                }
                Action::Refused { mistakes } => panic!("{mistakes:?}"),
                Action::Synced => {
                    let node = &mut self.nodes[i];
                    node.synced = true;
                    node.kernel = node.said.clone();
                }
            }
        }
    }

    fn arrive(&mut self, arrival: Arrival) {
        match arrival {
            Arrival::Connection { conn } => {
                let [(from, _), (to, _)] = self.conns[conn].ends;
                if self.is_cut(from, to) || !self.conns[conn].open[0] {
                    return;
                }
                if self.nodes[to].speaker.is_none() {
                    self.queue_later(
                        to,
                        from,
                        Arrival::Closed { conn, side: 0, reason: "connection refused" },
                    );
                    return;
                }
                let id = ConnId::Incoming(conn as u64);
                self.conns[conn].ends[1].1 = Some(id);
                self.conns[conn].open[1] = true;
                self.queue_later(to, from, Arrival::Established { conn });
                self.step(to, Event::Accepted { conn: id, remote: v4(from) });
            }
            Arrival::Established { conn } => {
                if let (true, (node, Some(id))) = (self.conns[conn].open[0], self.conns[conn].ends[0]) {
                    self.step(node, Event::Connected { conn: id });
                }
            }
            Arrival::Bytes { conn, side, bytes } => {
                let cut = self.is_cut(self.conns[conn].ends[0].0, self.conns[conn].ends[1].0);
                if let (false, true, (node, Some(id))) =
                    (cut, self.conns[conn].open[side], self.conns[conn].ends[side])
                {
                    self.step(node, Event::Received { conn: id, bytes });
                }
            }
            Arrival::Sent { conn, side, bytes } => {
                if let (true, (node, Some(id))) = (self.conns[conn].open[side], self.conns[conn].ends[side]) {
                    self.step(node, Event::Sent { conn: id, bytes });
                }
            }
            Arrival::Closed { conn, side, reason } => {
                let cut = self.is_cut(self.conns[conn].ends[0].0, self.conns[conn].ends[1].0);
                if let (false, true, (node, Some(id))) =
                    (cut, self.conns[conn].open[side], self.conns[conn].ends[side])
                {
                    self.conns[conn].open[side] = false;
                    self.step(node, Event::Closed { conn: id, reason: reason.to_owned() });
                }
            }
        }
    }

    /// No node ever tells another one that it did not expect a message: all of them are ours.
    pub fn nobody_is_surprised(&self) {
        for (i, node) in self.nodes.iter().enumerate() {
            for peer in node.speaker.as_ref().map(Speaker::peers).unwrap_or_default() {
                let told = peer.told.map(|(told, _)| told).unwrap_or_default();
                assert!(
                    !told.contains("unexpected message"),
                    "n{i} to {}: {told}\n{}",
                    peer.name,
                    self.report()
                );
            }
        }
    }

    /// One arrival or timer; false: nothing will ever happen again.
    pub fn advance(&mut self) -> bool {
        let arrival = self.queue.first_key_value().map(|((at, _), _)| *at);
        let timer = (0..self.nodes.len())
            .filter_map(|i| self.nodes[i].speaker.as_ref()?.deadline().map(|at| (at, i)))
            .min();
        match (arrival, timer) {
            (Some(at), timer) if timer.is_none_or(|(t, _)| at <= t) => {
                self.now = self.now.max(at);
                let (_, arrival) = self.queue.pop_first().unwrap();
                self.arrive(arrival);
            }
            (_, Some((at, i))) => {
                self.now = self.now.max(at);
                self.step(i, Event::Timer);
            }
            _ => return false,
        }
        true
    }

    /// Runs until `done`, at most `limit` of virtual time; the time it took.
    pub fn until(&mut self, what: &str, limit: Duration, done: impl Fn(&Self) -> bool) -> Duration {
        self.until_while(what, limit, done, |_| {})
    }

    /// The same, with something that must hold at every instant.
    pub fn until_while(
        &mut self,
        what: &str,
        limit: Duration,
        done: impl Fn(&Self) -> bool,
        always: impl Fn(&Self),
    ) -> Duration {
        let begin = self.now;
        while !done(self) {
            always(self);
            assert!(self.now < begin + limit, "not in {limit:?}: {what}\n{}", self.report());
            assert!(self.advance(), "nothing happens any more: {what}\n{}", self.report());
        }
        self.now - begin
    }

    pub fn run(&mut self, time: Duration) {
        self.run_while(time, |_| {});
    }

    /// Lets time pass, with something that must hold at every instant.
    pub fn run_while(&mut self, time: Duration, always: impl Fn(&Self)) {
        let end = self.now + time;
        while self.next_at().is_some_and(|at| at <= end) {
            self.advance();
            always(self);
        }
        self.now = end;
    }

    fn next_at(&self) -> Option<Duration> {
        let arrival = self.queue.first_key_value().map(|((at, _), _)| *at);
        let timers = self.nodes.iter().filter_map(|node| node.speaker.as_ref()?.deadline());
        arrival.into_iter().chain(timers).min()
    }

    /// Whether all live nodes have all sessions up and exactly the routes of all live nodes.
    pub fn converged(&self) -> bool {
        let live = |node: &&Node| node.speaker.is_some();
        let address = |a: &IpAddr| self.node_at(*a).is_some_and(|j| self.nodes[j].speaker.is_some());
        let all: BTreeMap<IpNet, IpAddr> =
            self.nodes.iter().filter(live).flat_map(|n| n.config.originated.clone()).collect();
        self.nodes.iter().filter(live).all(|node| {
            let wanted = all.iter().filter(|(prefix, _)| !node.config.originated.contains_key(*prefix));
            node.synced
                && node.config.neighbours.keys().filter(|a| address(a)).all(|a| node.up.contains(a))
                && node.kernel.len() == all.len() - node.config.originated.len()
                && wanted.into_iter().all(|(prefix, hop)| node.kernel.get(prefix) == Some(&vec![*hop]))
        })
    }

    /// Whether node `i`'s kernel has all routes of node `j`.
    pub fn reaches(&self, i: usize, j: usize) -> bool {
        let hops = |(prefix, hop): (&IpNet, &IpAddr)| self.nodes[i].kernel.get(prefix) == Some(&vec![*hop]);
        self.nodes[j].config.originated.iter().all(hops)
    }

    pub fn is_established(&self, i: usize, j: usize) -> bool {
        let peers = self.nodes[i].speaker.as_ref().map(Speaker::peers).unwrap_or_default();
        peers.iter().any(|peer| peer.address == v4(j) && peer.state == State::Established)
    }

    pub fn report(&self) -> String {
        let mut text = format!("now {:?}\n", self.now);
        for (i, node) in self.nodes.iter().enumerate().take(10) {
            text += &format!("n{i}: synced {} kernel {} up {:?}\n", node.synced, node.kernel.len(), node.up);
            for peer in node.speaker.as_ref().map(Speaker::peers).unwrap_or_default().iter().take(10) {
                text += &format!(
                    "   {} {} {} received {} stale {} advertised {} error {:?}\n",
                    peer.name,
                    peer.role.as_str(),
                    peer.state,
                    peer.received,
                    peer.stale,
                    peer.advertised,
                    peer.last_error
                );
            }
            for line in node.log.iter().rev().take(12).rev() {
                text += &format!("   {line}\n");
            }
        }
        text
    }
}
