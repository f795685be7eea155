//! Connections from inside namespaces, many at once.
//!
//! A socket belongs for ever to the network namespace in which it was opened. So the sockets of all probes of one
//! source are opened in one visit, and a single-threaded runtime drives them together: a matrix takes as long as
//! its slowest probe.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result};
use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket};
use podway_kern::ns::NetNs;
use tokio::io::AsyncReadExt as _;
use tokio::net::{TcpSocket, UdpSocket};

use crate::echo::parse_answer;

/// What a probe speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// ICMP or ICMPv6 echo.
    Icmp,
    /// TCP connection to this port, and an answer read.
    Tcp(u16),
    /// UDP datagram to this port, and an answer read.
    Udp(u16),
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Icmp => f.write_str("ICMP"),
            Self::Tcp(port) => write!(f, "TCP/{port}"),
            Self::Udp(port) => write!(f, "UDP/{port}"),
        }
    }
}

/// One connection to try.
#[derive(Debug, Clone)]
pub struct Probe<'a> {
    /// Where it starts.
    pub from: &'a NetNs,
    /// Where it goes.
    pub to: IpAddr,
    /// What it speaks.
    pub kind: Kind,
    /// Whether it is expected to get through: then it is tried more patiently before it counts as closed.
    pub expect_open: bool,
}

/// What became of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// An answer came.
    Open {
        /// The echo server that answered, and the source address that it saw; none for ICMP.
        answer: Option<(String, IpAddr)>,
    },
    /// Somebody said no: a reset, or an ICMP error.
    Refused(String),
    /// No answer in time.
    Silent,
}

impl Outcome {
    /// Whether an answer came.
    pub fn is_open(&self) -> bool {
        matches!(self, Self::Open { .. })
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Open { answer: None } => f.write_str("open"),
            Self::Open { answer: Some((name, seen)) } => {
                write!(f, "open, answered by {name}, seen as {seen}")
            }
            Self::Refused(why) => write!(f, "refused: {why}"),
            Self::Silent => f.write_str("no answer"),
        }
    }
}

/// Patience of each attempt. What is expected closed gets the first two only.
const ATTEMPTS: [Duration; 3] =
    [Duration::from_millis(400), Duration::from_millis(800), Duration::from_secs(3)];
const ATTEMPTS_IF_CLOSED: usize = 2;
/// Probes in the air at one time: stays below the usual limit of 1024 open files.
const AT_ONCE: usize = 400;

/// Tries all of them and returns the outcomes in the same order.
pub fn probe_all(probes: &[Probe<'_>]) -> Result<Vec<Outcome>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut outcomes = vec![Outcome::Silent; probes.len()];
    for (attempt, patience) in ATTEMPTS.into_iter().enumerate() {
        let due: Vec<usize> = (0..probes.len())
            .filter(|&i| !outcomes[i].is_open() && (probes[i].expect_open || attempt < ATTEMPTS_IF_CLOSED))
            .collect();
        for chunk in due.chunks(AT_ONCE) {
            let sockets = open_sockets(probes, chunk)?;
            let seen = runtime.block_on(async {
                let tasks: Vec<_> = sockets
                    .into_iter()
                    .map(|(i, opened)| {
                        let (to, kind) = (probes[i].to, probes[i].kind);
                        (i, tokio::spawn(attempt_one(opened, to, kind, patience)))
                    })
                    .collect();
                let mut seen = vec![];
                for (i, task) in tasks {
                    seen.push((i, task.await?));
                }
                anyhow::Ok(seen)
            })?;
            for (i, outcome) in seen {
                outcomes[i] = outcome;
            }
        }
    }
    Ok(outcomes)
}

/// Tries one.
pub fn probe(from: &NetNs, to: IpAddr, kind: Kind, expect_open: bool) -> Result<Outcome> {
    let outcomes = probe_all(&[Probe { from, to, kind, expect_open }])?;
    outcomes.into_iter().next().context("one probe has one outcome")
}

enum Opened {
    Tcp(TcpSocket),
    /// A UDP or raw ICMP socket: both send and receive datagrams.
    Datagram(std::net::UdpSocket),
}

/// Opens the sockets of `chunk`, one visit per source namespace.
fn open_sockets(probes: &[Probe<'_>], chunk: &[usize]) -> Result<Vec<(usize, io::Result<Opened>)>> {
    let mut by_source: BTreeMap<(u64, u64), Vec<usize>> = BTreeMap::new();
    for &i in chunk {
        by_source.entry(probes[i].from.identity()?).or_default().push(i);
    }
    let mut all = vec![];
    for group in by_source.values() {
        let open =
            || group.iter().map(|&i| (i, open_socket(probes[i].to, probes[i].kind))).collect::<Vec<_>>();
        all.extend(probes[group[0]].from.run(open)?);
    }
    Ok(all)
}

fn open_socket(to: IpAddr, kind: Kind) -> io::Result<Opened> {
    Ok(match kind {
        Kind::Tcp(_) => Opened::Tcp(if to.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? }),
        Kind::Udp(_) => {
            let any: IpAddr =
                if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
            let socket = bind_fresh(any)?;
            socket.set_nonblocking(true)?;
            Opened::Datagram(socket)
        }
        Kind::Icmp => {
            let (family, protocol) = if to.is_ipv4() {
                (AddressFamily::Inet, SockProtocol::Icmp)
            } else {
                (AddressFamily::Inet6, SockProtocol::IcmpV6)
            };
            let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
            Opened::Datagram(socket(family, SockType::Raw, flags, protocol)?.into())
        }
    })
}

/// A UDP socket on a port from which this program did not probe for thousands of probes. A port that the kernel chose
/// may be the one of an earlier probe of the same pair, and a flow that connection tracking knows as established
/// outlives a policy that would not let it begin: the probe would find open what is closed.
fn bind_fresh(any: IpAddr) -> io::Result<std::net::UdpSocket> {
    /// Below the kernel's own choices, and above what servers listen on in a node.
    const PORTS: std::ops::Range<u16> = 10_000..32_768;
    static NEXT: AtomicU16 = AtomicU16::new(PORTS.start);
    let next = |port: u16| Some(if port + 1 < PORTS.end { port + 1 } else { PORTS.start });
    let mut taken = io::Error::from(io::ErrorKind::AddrInUse);
    for _ in PORTS {
        let (Ok(port) | Err(port)) = NEXT.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next);
        match std::net::UdpSocket::bind((any, port)) {
            Err(e) if e.kind() == io::ErrorKind::AddrInUse => taken = e,
            bound => return bound,
        }
    }
    Err(taken)
}

async fn attempt_one(opened: io::Result<Opened>, to: IpAddr, kind: Kind, patience: Duration) -> Outcome {
    let tried = async {
        match (opened?, kind) {
            (Opened::Tcp(socket), Kind::Tcp(port)) => tcp(socket, (to, port).into()).await,
            (Opened::Datagram(socket), Kind::Udp(port)) => udp(socket, (to, port).into()).await,
            (Opened::Datagram(socket), _) => icmp(socket, to).await,
            (Opened::Tcp(_), _) => Err(io::Error::other("a TCP socket for another protocol")),
        }
    };
    match tokio::time::timeout(patience, tried).await {
        Err(_) => Outcome::Silent,
        Ok(Ok(answer)) => Outcome::Open { answer },
        Ok(Err(e)) => Outcome::Refused(e.to_string()),
    }
}

type Answer = io::Result<Option<(String, IpAddr)>>;

fn read_answer(text: &[u8]) -> Answer {
    match parse_answer(text) {
        Some(answer) => Ok(Some(answer)),
        None => Err(io::Error::other(format!("not an echo server: {:?}", String::from_utf8_lossy(text)))),
    }
}

async fn tcp(socket: TcpSocket, to: SocketAddr) -> Answer {
    let mut stream = socket.connect(to).await?;
    let mut text = vec![];
    (&mut stream).take(256).read_to_end(&mut text).await?;
    read_answer(&text)
}

async fn udp(socket: std::net::UdpSocket, to: SocketAddr) -> Answer {
    let socket = UdpSocket::from_std(socket)?;
    socket.connect(to).await?;
    socket.send(b"who are you").await?;
    let mut text = [0; 256];
    let length = socket.recv(&mut text).await?;
    read_answer(&text[..length])
}

/// Echo request and reply (RFC 792, RFC 4443 section 4). A raw socket hears every ICMP message of its namespace:
/// only the reply with our identifier from the probed address counts.
async fn icmp(socket: std::net::UdpSocket, to: IpAddr) -> Answer {
    let socket = UdpSocket::from_std(socket)?;
    let identifier = next_identifier();
    let request_type = if to.is_ipv4() { 8 } else { 128 };
    let reply_type = if to.is_ipv4() { 0 } else { 129 };
    let [id_high, id_low] = identifier.to_be_bytes();
    let mut message = [request_type, 0, 0, 0, id_high, id_low, 0, 1];
    if to.is_ipv4() {
        // ICMPv6's checksum is the kernel's work (RFC 3542 section 3.1).
        let checksum = internet_checksum(&message);
        message[2..4].copy_from_slice(&checksum.to_be_bytes());
    }
    socket.send_to(&message, (to, 0)).await?;
    let mut buffer = [0; 256];
    loop {
        let (length, from) = socket.recv_from(&mut buffer).await?;
        let mut packet = &buffer[..length];
        if to.is_ipv4() {
            // An IPv4 raw socket delivers the IP header too: its length in words is in the low half of byte 0.
            let header = packet.first().map_or(0, |first| usize::from(first & 0x0f) * 4);
            packet = packet.get(header..).unwrap_or_default();
        }
        if from.ip() == to
            && packet.first() == Some(&reply_type)
            && packet.get(4..6) == Some(&[id_high, id_low])
        {
            return Ok(None);
        }
    }
}

fn next_identifier() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// RFC 1071.
fn internet_checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 =
        bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    let [_, _, high, low] = sum.to_be_bytes();
    !u16::from_be_bytes([high, low])
}
