//! BFD: golden octets, every pair of states, and two or many monitors under virtual time with loss and cuts.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests: a failure is a panic")]

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use podway_bgp::bfd::{Action, Diagnostic, Event, LEN, Monitor, Packet, State, TTL, Timers};
use proptest::prelude::*;

const MS: fn(u64) -> Duration = Duration::from_millis;

fn ip(i: usize) -> IpAddr {
    format!("10.0.0.{}", i + 1).parse().unwrap()
}

fn timers(interval: u64, multiplier: u8) -> Timers {
    Timers { interval: MS(interval), multiplier, multihop: false }
}

fn packet(state: State, your: u32) -> Packet {
    Packet {
        diagnostic: Diagnostic::NONE,
        state,
        poll: false,
        last: false,
        independent: false,
        multiplier: 3,
        my: 77,
        your,
        desired_tx: MS(100),
        required_rx: MS(100),
    }
}

#[test]
fn golden_packet() {
    let full = Packet {
        diagnostic: Diagnostic::EXPIRED,
        poll: true,
        independent: true,
        my: 0x0102_0304,
        ..packet(State::Up, 0x0506_0708)
    };
    let golden = [0x21, 0xe8, 3, 24, 1, 2, 3, 4, 5, 6, 7, 8, 0, 1, 0x86, 0xa0, 0, 1, 0x86, 0xa0, 0, 0, 0, 0];
    assert_eq!(full.encode(), golden);
    assert_eq!(Packet::decode(&golden), Ok(full));
    let answer = Packet { last: true, ..packet(State::Down, 0) };
    assert_eq!(answer.encode()[..4], [0x20, 0x50, 3, 24]);
    // RFC 5880 section 6.8.6, each reason to discard.
    let changed = |at: usize, octet: u8| {
        let mut bytes = golden;
        bytes[at] = octet;
        Packet::decode(&bytes).unwrap_err()
    };
    assert_eq!(changed(0, 0x01), "not version 1");
    assert_eq!(changed(1, 0xe4), "authenticated, which was not agreed");
    assert_eq!(changed(1, 0xe1), "multipoint");
    assert_eq!(changed(2, 0), "detection multiplier 0");
    assert_eq!(changed(3, 23), "the length does not fit");
    assert_eq!(changed(3, 25), "the length does not fit");
    assert_eq!(Packet::decode(&golden[..23]), Err("too short"));
    assert_eq!(Packet::decode(&Packet { my: 0, ..full }.encode()), Err("my discriminator 0"));
    for (state, wrong) in
        [(State::AdminDown, false), (State::Down, false), (State::Init, true), (State::Up, true)]
    {
        assert_eq!(Packet::decode(&packet(state, 0).encode()).is_err(), wrong, "{state:?}");
    }
}

/// A monitor with one session that has been brought into `state`; answers its discriminator too.
fn in_state(state: State) -> (Monitor, u32) {
    let mut monitor = Monitor::new(1);
    let mut out = vec![];
    monitor.step(MS(0), Event::Configured(BTreeMap::from([(ip(1), timers(100, 3))])), &mut out);
    let sent = out.iter().find_map(|action| match action {
        Action::Send { bytes, .. } => Some(Packet::decode(bytes).unwrap()),
        Action::Changed { .. } => None,
    });
    let mine = sent.unwrap().my;
    let path: &[State] = match state {
        State::AdminDown | State::Down => &[],
        State::Init => &[State::Down],
        State::Up => &[State::Down, State::Up],
    };
    for step in path {
        receive(&mut monitor, MS(1), &packet(*step, mine), &mut vec![]);
    }
    assert_eq!(monitor.sessions().next().unwrap().1, state);
    (monitor, mine)
}

fn receive(monitor: &mut Monitor, now: Duration, packet: &Packet, out: &mut Vec<Action>) {
    let bytes = packet.encode();
    monitor.step(now, Event::Received { from: ip(1), ttl: TTL, multihop: false, bytes: &bytes }, out);
}

#[test]
fn every_pair_of_states_moves_as_rfc_5880_6_8_6_says() {
    use State::{AdminDown, Down, Init, Up};
    let table = [
        (Down, [(AdminDown, Down), (Down, Init), (Init, Up), (Up, Down)]),
        (Init, [(AdminDown, Down), (Down, Init), (Init, Up), (Up, Up)]),
        (Up, [(AdminDown, Down), (Down, Down), (Init, Up), (Up, Up)]),
    ];
    for (ours, row) in table {
        for (theirs, next) in row {
            let (mut monitor, mine) = in_state(ours);
            let mut out = vec![];
            receive(&mut monitor, MS(2), &packet(theirs, mine), &mut out);
            assert_eq!(monitor.sessions().next().unwrap().1, next, "{ours:?} hears {theirs:?}");
            let told = out.iter().any(|action| matches!(action, Action::Changed { .. }));
            assert_eq!(told, (ours == Up) != (next == Up), "{ours:?} hears {theirs:?}: {out:?}");
        }
    }
}

#[test]
fn a_poll_is_answered_at_once() {
    for state in [State::Down, State::Init, State::Up] {
        let (mut monitor, mine) = in_state(state);
        let mut out = vec![];
        receive(&mut monitor, MS(2), &Packet { poll: true, ..packet(state, mine) }, &mut out);
        let answers = out.iter().filter(|action| match action {
            Action::Send { bytes, .. } => Packet::decode(bytes).unwrap().last,
            Action::Changed { .. } => false,
        });
        assert_eq!(answers.count(), 1, "{state:?}");
    }
}

#[test]
fn strangers_and_forwarded_packets_are_discarded() {
    let (mut monitor, mine) = in_state(State::Up);
    let down = packet(State::Down, mine).encode();
    let mut out = vec![];
    let mut give = |from, ttl, multihop, bytes: &[u8]| {
        monitor.step(MS(3), Event::Received { from, ttl, multihop, bytes }, &mut out);
        monitor.discarded()
    };
    assert_eq!(give(ip(1), 254, false, &down), 1, "RFC 5881 section 5: it was forwarded");
    assert_eq!(give(ip(2), TTL, false, &down), 2, "another sender");
    assert_eq!(give(ip(1), TTL, true, &down), 3, "the port for many hops");
    assert_eq!(give(ip(1), TTL, false, &packet(State::Down, mine ^ 1).encode()), 4, "another session's");
    assert_eq!(give(ip(1), TTL, false, &down[..20]), 5);
    assert_eq!(monitor.sessions().next().unwrap().1, State::Up);
}

/// Monitors that send to each other.
struct Net {
    now: Duration,
    monitors: Vec<Monitor>,
    /// When, to whom, from whom, octets.
    wire: BTreeMap<(Duration, u64), (usize, usize, [u8; LEN])>,
    sequence: u64,
    delay: Duration,
    cut: BTreeSet<(usize, usize)>,
    /// Of a thousand packets, so many are lost.
    loss: u64,
    seed: u64,
    changes: Vec<(Duration, usize, State, Diagnostic)>,
    sent: u64,
}

impl Net {
    fn new(nodes: usize, timers: impl Fn(usize) -> Timers) -> Self {
        let monitors = (0..nodes).map(|i| Monitor::new(i as u64 + 1)).collect();
        let mut net = Self {
            now: MS(0),
            monitors,
            wire: BTreeMap::new(),
            sequence: 0,
            delay: MS(1),
            cut: BTreeSet::new(),
            loss: 0,
            seed: 7,
            changes: vec![],
            sent: 0,
        };
        for i in 0..nodes {
            let all = (0..nodes).filter(|j| *j != i).map(|j| (ip(j), timers(i))).collect();
            net.step(i, Event::Configured(all));
        }
        net
    }

    fn random(&mut self) -> u64 {
        self.seed = self.seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.seed >> 33
    }

    fn step(&mut self, i: usize, event: Event<'_>) {
        let mut out = vec![];
        self.monitors[i].step(self.now, event, &mut out);
        for action in out {
            match action {
                Action::Send { to, bytes, .. } => {
                    self.sent += 1;
                    let to = (0..self.monitors.len()).find(|j| ip(*j) == to).unwrap();
                    if !self.cut.contains(&(i, to)) && self.random() % 1000 >= self.loss {
                        self.sequence += 1;
                        self.wire.insert((self.now + self.delay, self.sequence), (to, i, bytes));
                    }
                }
                Action::Changed { state, diagnostic, .. } => {
                    self.changes.push((self.now, i, state, diagnostic));
                }
            }
        }
    }

    fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        loop {
            let timers = self.monitors.iter().filter_map(Monitor::deadline).min();
            let next = self.wire.keys().next().map(|(at, _)| *at).into_iter().chain(timers).min();
            let Some(at) = next.filter(|at| *at <= end) else { break };
            self.now = self.now.max(at);
            while let Some(entry) = self.wire.first_entry().filter(|entry| entry.key().0 <= self.now) {
                let (to, from, bytes) = entry.remove();
                let event = Event::Received { from: ip(from), ttl: TTL, multihop: false, bytes: &bytes };
                self.step(to, event);
            }
            for i in 0..self.monitors.len() {
                if self.monitors[i].deadline().is_some_and(|at| at <= self.now) {
                    self.step(i, Event::Timer);
                }
            }
        }
        self.now = end;
    }

    fn all_up(&self) -> bool {
        self.monitors.iter().flat_map(Monitor::sessions).all(|(_, state, _)| state == State::Up)
    }
}

#[test]
fn sessions_come_up_go_fast_and_notice_a_cut_in_time() {
    let mut net = Net::new(2, |_| timers(100, 3));
    net.pass(MS(4000));
    assert!(net.all_up());
    assert_eq!(net.monitors[0].sessions().next().unwrap().2, MS(300));
    let before = net.sent;
    net.pass(MS(10_000));
    assert!((200..=270).contains(&(net.sent - before)), "75 to 100 ms each: {}", net.sent - before);
    net.changes.clear();
    // One way only: the side that hears nothing says so, and the other one knows.
    net.cut.insert((0, 1));
    let cut_at = net.now;
    net.pass(MS(1000));
    let [(at, 1, State::Down, Diagnostic::EXPIRED), (then, 0, State::Down, Diagnostic::SIGNALED)] =
        net.changes[..]
    else {
        panic!("{:?}", net.changes);
    };
    assert!(at - cut_at <= MS(301) && at - cut_at >= MS(200), "{:?}", at - cut_at);
    assert!(then - at <= MS(1001), "the next packet says so: {:?}", then - at);
    net.cut.clear();
    net.pass(MS(6000));
    assert!(net.all_up(), "it heals");
}

#[test]
fn the_slower_side_decides_and_changes_are_negotiated() {
    let mut net = Net::new(2, |i| if i == 0 { timers(50, 3) } else { timers(400, 5) });
    net.pass(MS(10_000));
    assert!(net.all_up());
    let detection = |net: &Net, i: usize| net.monitors[i].sessions().next().unwrap().2;
    assert_eq!((detection(&net, 0), detection(&net, 1)), (MS(2000), MS(1200)));
    net.changes.clear();
    net.step(1, Event::Configured(BTreeMap::from([(ip(0), timers(60, 5))])));
    net.pass(MS(3000));
    assert_eq!((detection(&net, 0), detection(&net, 1)), (MS(300), MS(180)));
    net.step(1, Event::Configured(BTreeMap::from([(ip(0), timers(900, 5))])));
    net.pass(MS(5000));
    assert_eq!((detection(&net, 0), detection(&net, 1)), (MS(4500), MS(2700)));
    assert_eq!(net.changes, [], "no change of timers costs the session");
}

#[test]
fn an_administrative_end_is_told_apart_from_a_failure() {
    let mut net = Net::new(2, |_| timers(100, 3));
    net.pass(MS(4000));
    net.changes.clear();
    net.step(0, Event::Stopped);
    net.pass(MS(50));
    assert_eq!(
        net.changes,
        [(net.changes[0].0, 1, State::Down, Diagnostic::SIGNALED)],
        "before the detection time"
    );
    // Without a session there is nothing to send, and nobody is forgotten silently.
    let mut net = Net::new(2, |_| timers(100, 3));
    net.pass(MS(4000));
    net.changes.clear();
    net.step(0, Event::Configured(BTreeMap::new()));
    net.pass(MS(50));
    assert_eq!((net.changes.len(), net.monitors[0].deadline()), (1, None));
}

#[test]
fn two_hundred_sessions_stay_up_over_a_lossy_network() {
    let mut net = Net::new(15, |_| timers(100, 3));
    net.pass(MS(5000));
    assert!(net.all_up(), "210 sessions");
    net.changes.clear();
    net.loss = 10;
    net.pass(MS(10_000));
    let fell: Vec<_> = net.changes.iter().filter(|(_, _, state, _)| *state != State::Up).collect();
    assert!(fell.len() <= 2, "three of a hundred lost in a row is rare: {fell:?}");
    net.loss = 0;
    net.pass(MS(5000));
    assert!(net.all_up());
}

proptest! {
    #[test]
    fn no_octets_and_no_order_of_events_make_a_monitor_panic(
        steps in prop::collection::vec((0..4u8, any::<u32>(), prop::collection::vec(any::<u8>(), 0..30)), 0..60),
    ) {
        let (mut monitor, mine) = in_state(State::Up);
        let mut now = MS(1);
        for (kind, number, mut bytes) in steps {
            now += Duration::from_micros(u64::from(number % 1_000_000));
            let mut out = vec![];
            match kind {
                0 => monitor.step(now, Event::Timer, &mut out),
                1 => {
                    let all = [(ip(1), timers(u64::from(number % 1000), (number % 7) as u8)), (ip(2), timers(10, 1))];
                    monitor.step(now, Event::Configured(all.into_iter().take((number % 3) as usize).collect()), &mut out);
                }
                _ => {
                    if kind == 3 && bytes.len() >= LEN {
                        bytes[0] = 0x20;
                        bytes[1] &= 0xf8;
                        bytes[3] = 24;
                        bytes[8..12].copy_from_slice(&mine.to_be_bytes());
                    }
                    let event = Event::Received { from: ip(1), ttl: TTL, multihop: false, bytes: &bytes };
                    monitor.step(now, event, &mut out);
                }
            }
            for action in out {
                if let Action::Send { bytes, .. } = action {
                    prop_assert!(Packet::decode(&bytes).is_ok());
                }
            }
        }
    }
}
