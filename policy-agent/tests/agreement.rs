//! Oracle, evaluator and kernel on random clusters: what the specification says of a flow, what the compiled table says
//! of its first packet, and what becomes of a real packet between namespaces must be one. `PODWAY_SEEDS` sets how many
//! clusters there are. Needs root.
//!
//! One node is real, with a veth for each of its pods; everybody else (the other node, its pods, the world) is one
//! namespace behind an uplink, so only the real node's part of a decision is compared.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    unreachable_pub,
    dead_code,
    reason = "tests, and modules of their own"
)]

#[path = "../../crates/policy/tests/common/mod.rs"]
mod common;
mod node;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use common::World;
use common::judges::{Tables, compile, passes, path};
use common::random::{flow_seed, seeded_flow, world};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockProtocol, SockType, SockaddrStorage, bind, connect, socket,
};
use node::{Node, Pod, on_a_node, run, sh};
use podway_kern::conntrack::Conntrack;
use podway_kern::nft::NftSocket;
use podway_kern::ns::NetNs;
use podway_model::k8s::Protocol;
use podway_nft::{Nftables as _, Transaction};
use podway_policy::Limits;
use podway_policy::oracle::{End, Flow, Traffic};
use proptest::collection::vec;
use proptest::strategy::{Strategy as _, ValueTree as _};
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

/// The real node, as the clusters name it.
const HERE: &str = "n1";
/// Flows tried in each cluster.
const FLOWS: usize = 60;
/// Port of the packet that proves that an earlier one is not on its way any more.
const MARKER: u16 = 9;
/// Ethernet addresses of the uplink's ends.
const NEAR: &str = "02:00:00:00:00:e1";
const FAR: &str = "02:00:00:00:00:e2";
/// Addresses of everybody who is not here.
const ELSEWHERE: [&str; 15] = [
    "10.244.2.4",
    "10.244.2.7",
    "10.244.2.10",
    "10.244.2.41",
    "192.0.2.7",
    "192.0.2.200",
    "198.51.100.1",
    "172.18.0.2",
    "fd00:10:244:2::4",
    "fd00:10:244:2::7",
    "fd00:10:244:2::a",
    "fd00:10:244:2::29",
    "2001:db8::7",
    "2001:db8:1::1",
    "2a00::1",
];

static NUMBER: AtomicU16 = AtomicU16::new(1);

/// The namespaces that packets travel between.
struct Net {
    here: NetNs,
    elsewhere: NetNs,
    /// By namespace and name.
    pods: BTreeMap<(String, String), Pod>,
}

impl Net {
    fn new(node: &Node) -> Self {
        sh("ip netns add elsewhere");
        sh(&format!(
            "ip link add eth0 address {NEAR} type veth peer name eth0 address {FAR} netns elsewhere"
        ));
        let inside = |command: &str| sh(&format!("ip -n elsewhere {command}"));
        for (version, own, other) in
            [("-4", "172.30.0.1/30", "172.30.0.2/30"), ("-6", "fd00:30::1/64", "fd00:30::2/64")]
        {
            let nodad = if version == "-6" { "nodad" } else { "" };
            sh(&format!("ip {version} address add {own} dev eth0 {nodad}"));
            inside(&format!("{version} address add {other} dev eth0 {nodad}"));
        }
        sh("ip link set eth0 up");
        inside("link set lo up");
        inside("link set eth0 up");
        // Nobody waits for a neighbour to be found.
        for (near, far) in [("172.30.0.1", "172.30.0.2"), ("fd00:30::1", "fd00:30::2")] {
            sh(&format!("ip neighbour replace {far} lladdr {FAR} dev eth0 nud permanent"));
            inside(&format!("neighbour replace {near} lladdr {NEAR} dev eth0 nud permanent"));
        }
        inside("route add default via 172.30.0.1");
        inside("-6 route add default via fd00:30::1");
        for address in ELSEWHERE.into_iter().chain(["fd00:172:18::2"]) {
            let (length, via) = if address.contains(':') { (128, "fd00:30::2") } else { (32, "172.30.0.2") };
            inside(&format!("address add {address}/{length} dev lo"));
            sh(&format!("ip route add {address}/{length} via {via}"));
        }
        let mut pods = BTreeMap::new();
        for number in (0..9_u8).filter(|number| number % 3 != 2) {
            let (namespace, name) = (["x", "y", "z"][usize::from(number / 3)], format!("pod{number}"));
            pods.insert((namespace.to_owned(), name.clone()), node.wire(namespace, &name, 2 + number));
        }
        pods.insert(("x".to_owned(), "ghost".to_owned()), node.wire("x", "ghost", 40));
        let elsewhere = NetNs::open("/run/netns/elsewhere").unwrap();
        Self { here: NetNs::current().unwrap(), elsewhere, pods }
    }

    /// Where an end is.
    fn place(&self, end: &End) -> &NetNs {
        match end {
            End::Pod { namespace, name, .. } => {
                self.pods.get(&(namespace.clone(), name.clone())).map_or(&self.elsewhere, |pod| &pod.netns)
            }
            End::Node { name, .. } if name == HERE => &self.here,
            End::Node { .. } | End::Outside { .. } => &self.elsewhere,
        }
    }

    /// Whether the first packet of a flow arrives. Proven without waiting: behind it the node sends one of its own,
    /// which nothing may hold up.
    fn arrives(&self, flow: &Flow) -> bool {
        let (from, to) = (flow.source.address(), flow.destination.address());
        let (here, there) = (self.place(&flow.source), self.place(&flow.destination));
        let marker = there.run(|| UdpSocket::bind((to, MARKER)).unwrap()).unwrap();
        marker.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let ear = there.run(|| raw(to, flow.traffic)).unwrap();
        // Kept until the end, so that nothing of the flow is closed before its packet is counted.
        let _mouth = here.run(|| send(from, to, flow.traffic, number)).unwrap();
        let own = if to.is_ipv6() { "[fd00:172:18::1]:0" } else { "172.18.0.1:0" };
        let own = UdpSocket::bind(own).unwrap();
        own.send_to(&number.to_be_bytes(), (to, MARKER)).unwrap();
        let mut buffer = [0; 2];
        loop {
            marker.recv(&mut buffer).expect("the node reaches everybody");
            if buffer == number.to_be_bytes() {
                break;
            }
        }
        heard(&ear, from, flow.traffic, number)
    }
}

/// A socket that hears every packet of a protocol to that address.
fn raw(at: IpAddr, traffic: Traffic) -> UdpSocket {
    let (family, protocol) = match (at, traffic) {
        (IpAddr::V4(_), Traffic::Other(_)) => (AddressFamily::Inet, SockProtocol::Icmp),
        (IpAddr::V6(_), Traffic::Other(_)) => (AddressFamily::Inet6, SockProtocol::IcmpV6),
        (IpAddr::V4(_), Traffic::Port(Protocol::Tcp, _)) => (AddressFamily::Inet, SockProtocol::Tcp),
        (IpAddr::V6(_), Traffic::Port(Protocol::Tcp, _)) => (AddressFamily::Inet6, SockProtocol::Tcp),
        (IpAddr::V4(_), Traffic::Port(..)) => (AddressFamily::Inet, SockProtocol::Udp),
        (IpAddr::V6(_), Traffic::Port(..)) => (AddressFamily::Inet6, SockProtocol::Udp),
    };
    let fd = socket(family, SockType::Raw, SockFlag::SOCK_NONBLOCK, protocol).unwrap();
    bind(fd.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(at, 0))).unwrap();
    UdpSocket::from(fd)
}

/// Sends the first packet of a flow; its source port, or its echo's number, is the number.
fn send(from: IpAddr, to: IpAddr, traffic: Traffic, number: u16) -> OwnedFd {
    let source = SocketAddr::new(from, port_of(number));
    match traffic {
        Traffic::Port(Protocol::Udp, port) => {
            let socket = UdpSocket::bind(source).unwrap();
            socket.send_to(b"x", (to, port)).unwrap();
            socket.into()
        }
        Traffic::Port(_, port) => {
            let family = if to.is_ipv6() { AddressFamily::Inet6 } else { AddressFamily::Inet };
            let fd = socket(family, SockType::Stream, SockFlag::SOCK_NONBLOCK, SockProtocol::Tcp).unwrap();
            bind(fd.as_raw_fd(), &SockaddrStorage::from(source)).unwrap();
            // Sends the SYN; what comes of it is nobody's business.
            let _ = connect(fd.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(to, port)));
            TcpStream::from(fd).into()
        }
        Traffic::Other(_) => {
            let socket = raw(from, traffic);
            let [high, low] = number.to_be_bytes();
            let mut echo = [if to.is_ipv6() { 128 } else { 8 }, 0, 0, 0, high, low, 0, 1];
            if to.is_ipv4() {
                // RFC 1071; of ICMPv6 the kernel does it.
                let sum: u32 = echo.chunks(2).map(|two| u32::from(two[0]) << 8 | u32::from(two[1])).sum();
                let folded = (sum & 0xffff) + (sum >> 16);
                let checksum = !u16::try_from((folded & 0xffff) + (folded >> 16)).unwrap();
                echo[2..4].copy_from_slice(&checksum.to_be_bytes());
            }
            socket.send_to(&echo, (to, 0)).unwrap();
            socket.into()
        }
    }
}

/// A port that nothing else uses, of its own for each flow.
fn port_of(number: u16) -> u16 {
    20_000 + number % 40_000
}

/// Whether that flow's packet was heard.
fn heard(ear: &UdpSocket, from: IpAddr, traffic: Traffic, number: u16) -> bool {
    let mut buffer = [0; 256];
    while let Ok((length, source)) = ear.recv_from(&mut buffer) {
        // IPv4 raw sockets tell the IP header too.
        let skip = if from.is_ipv4() { usize::from(buffer[0] & 0xf) * 4 } else { 0 };
        let packet = &buffer[skip..length];
        let is_it = match traffic {
            Traffic::Port(_, port) => {
                packet.starts_with(&[port_of(number).to_be_bytes(), port.to_be_bytes()].concat())
            }
            Traffic::Other(_) => [8, 128].contains(&packet[0]) && packet[4..6] == number.to_be_bytes(),
        };
        if is_it && source.ip() == from {
            return true;
        }
    }
    false
}

/// What can be sent here, and has an end here.
fn is_real(net: &Net, flow: &Flow) -> bool {
    let sendable = !matches!(flow.traffic, Traffic::Port(Protocol::Sctp, _) | Traffic::Other(47));
    let is_pod = |end: &End| matches!(end, End::Pod { .. }) && !std::ptr::eq(net.place(end), &net.elsewhere);
    sendable
        && (is_pod(&flow.source) || is_pod(&flow.destination))
        && flow.source.address() != flow.destination.address()
}

/// What the real node's part of the decision must be.
fn oracle_allows(world: &World, flow: &Flow) -> bool {
    let decision = world.cluster().judge(flow);
    let is_here = |end: &End| world.node_of(end).as_deref() == Some(HERE);
    (!is_here(&flow.source) || decision.egress.allows())
        && (!is_here(&flow.destination) || decision.ingress.allows())
}

fn eval_allows(tables: &Tables, world: &World, flow: &Flow) -> bool {
    path(world, flow)
        .iter()
        .filter(|(node, ..)| *node == HERE)
        .all(|(node, hook, packet)| passes(&tables[node], *hook, packet))
}

fn seeds() -> u64 {
    std::env::var("PODWAY_SEEDS").ok().and_then(|seeds| seeds.parse().ok()).unwrap_or(12)
}

#[test]
fn oracle_evaluator_and_kernel_agree() {
    on_a_node("oracle_evaluator_and_kernel_agree", |node| {
        let net = Net::new(node);
        let mut nft = NftSocket::open().unwrap();
        let mut conntrack = Conntrack::open().unwrap();
        let addresses: BTreeSet<IpAddr> =
            net.pods.values().flat_map(|pod| pod.record.addresses.iter().copied()).collect();
        let (mut allowed, mut denied) = (0, 0);
        for seed in 0..seeds() {
            let mut bytes = [0; 32];
            bytes[..8].copy_from_slice(&seed.to_le_bytes());
            let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
            let mut runner = TestRunner::new_with_rng(Config::default(), rng);
            let strategy = (world(), vec(flow_seed(), FLOWS));
            let (world, flows) = strategy.new_tree(&mut runner).unwrap().current();
            let tables = compile(&world, Limits::default());
            nft.commit(&Transaction::replace(&tables[HERE])).unwrap();
            conntrack.delete(&addresses).unwrap();
            for flow in flows.iter().filter_map(|seed| seeded_flow(&world, seed)) {
                if !is_real(&net, &flow) {
                    continue;
                }
                let judges =
                    (oracle_allows(&world, &flow), eval_allows(&tables, &world, &flow), net.arrives(&flow));
                let all = [judges.0, judges.1, judges.2];
                assert!(
                    all == [true; 3] || all == [false; 3],
                    "seed {seed}: oracle, evaluator, kernel say {judges:?}: {flow:#?}\n{}\n{}",
                    world.cluster().judge(&flow),
                    run("nft list table inet podway-policy").1
                );
                *if judges.2 { &mut allowed } else { &mut denied } += 1;
            }
        }
        println!("{allowed} flows allowed, {denied} denied");
        assert!(allowed > 50 && denied > 50, "{allowed} allowed, {denied} denied: too one-sided");
    });
}
