//! Load for a route reflector: many clients, each with some prefixes of its own, in one thread. It says how long it
//! took until every client had every other one's prefixes, and what that cost the reflector.
//!
//! Clients have the addresses 10.99.0.2 and on, which must be ours (`ip route add local 10.99.0.0/16 dev lo`), and
//! speak plain BGP: IPv4 unicast, four-octet AS numbers, route refresh. The octets that they send are made before the
//! clock starts; what they get is read for prefixes and for nothing else.

#![allow(clippy::print_stdout, reason = "its output is its purpose")]

use std::cell::{Cell, RefCell};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use clap::Parser;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpSocket;
use tokio::sync::{Notify, Semaphore, mpsc};
use tokio::task::LocalSet;

/// Clients of a route reflector, and how long it takes to serve them all.
#[derive(Debug, Parser)]
struct Arguments {
    /// The reflector.
    #[arg(long, default_value = "10.99.0.1:1790")]
    target: SocketAddrV4,
    /// Its process, for CPU time and memory.
    #[arg(long)]
    pid: Option<u32>,
    /// How many clients.
    #[arg(long, default_value_t = 100)]
    clients: u32,
    /// Prefixes per client.
    #[arg(long, default_value_t = 8)]
    prefixes: u32,
    /// AS number of all.
    #[arg(long, default_value_t = 64512)]
    asn: u32,
    /// All clients connect at once, instead of four at a time.
    #[arg(long)]
    storm: bool,
    /// Then so many single routes are announced, one after the other, by the last client.
    #[arg(long, default_value_t = 0)]
    news: u32,
    /// Then the first client's connection is closed, and everybody must forget its prefixes.
    #[arg(long)]
    close: bool,
    /// One line of JSON instead of text.
    #[arg(long)]
    json: bool,
    /// When to give up, in seconds.
    #[arg(long, default_value_t = 150)]
    limit: u64,
}

/// What all clients share.
struct Shared {
    arguments: Arguments,
    /// Bits per client: one per prefix of all clients, then one per single route.
    bits: usize,
    /// Prefixes that somebody lacks still.
    missing: Cell<u64>,
    /// Single routes that somebody lacks still, and withdrawals.
    news_missing: Cell<u64>,
    withdrawals_missing: Cell<u64>,
    established: Cell<u32>,
    messages: Cell<u64>,
    octets: Cell<u64>,
    changed: Notify,
    failed: RefCell<Option<String>>,
}

enum Order {
    Send(Vec<u8>),
    Close,
}

const FIRST_PREFIX: u32 = 0x1400_0000; // 20.0.0.0, a /26 each

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    LocalSet::new().block_on(&runtime, run(arguments))
}

async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let (clients, prefixes) = (arguments.clients, arguments.prefixes);
    let total = u64::from(clients) * u64::from(prefixes);
    ensure!(clients >= 2 && total < 1 << 24, "2 clients at least, 16 million prefixes at most");
    let limit = Duration::from_secs(arguments.limit);
    let others = u64::from(clients) - 1;
    let shared = Rc::new(Shared {
        bits: usize::try_from(total)? + usize::try_from(arguments.news)?,
        missing: Cell::new(others * total),
        news_missing: Cell::new(0),
        withdrawals_missing: Cell::new(0),
        established: Cell::new(0),
        messages: Cell::new(0),
        octets: Cell::new(0),
        changed: Notify::new(),
        failed: RefCell::new(None),
        arguments,
    });
    let gate = Rc::new(Semaphore::new(if shared.arguments.storm { clients as usize } else { 4 }));
    let messages: Vec<(Vec<u8>, Vec<u8>)> = (0..clients)
        .map(|i| (open(&shared.arguments, i), announce(i, i * prefixes..(i + 1) * prefixes)))
        .collect();
    let before = Usage::of(shared.arguments.pid)?;
    let begin = Instant::now();
    let mut orders = vec![];
    for (i, (open, routes)) in (0..clients).zip(messages) {
        let (order, ordered) = mpsc::unbounded_channel();
        orders.push(order);
        let (shared, gate) = (Rc::clone(&shared), Rc::clone(&gate));
        tokio::task::spawn_local(async move {
            if let Err(error) = client(i, &shared, &gate, open, routes, ordered).await {
                *shared.failed.borrow_mut() = Some(format!("client {i}: {error:#}"));
                shared.changed.notify_one();
            }
        });
    }
    let alive = {
        let orders = orders.clone();
        tokio::task::spawn_local(async move {
            loop {
                tokio::time::sleep(Duration::from_secs(20)).await;
                orders.iter().for_each(|order| drop(order.send(Order::Send(message(4, &[])))));
            }
        })
    };
    let up = until(&shared, limit, || shared.established.get() == clients).await?;
    let all_up = begin.elapsed();
    let complete = up && until(&shared, limit, || shared.missing.get() == 0).await?;
    let (took, after) = (begin.elapsed(), Usage::of(shared.arguments.pid)?);
    let mut outcome = Outcome {
        converged: complete,
        seconds: took.as_secs_f64(),
        all_up_seconds: all_up.as_secs_f64(),
        updates: shared.messages.get(),
        octets: shared.octets.get(),
        cpu_seconds: after.cpu - before.cpu,
        peak_kib: after.peak_kib,
        missing: shared.missing.get(),
        up: shared.established.get(),
        news_ms: vec![],
        close_ms: None,
    };
    if complete {
        outcome.news_ms = news(&shared, &orders, limit).await?;
    }
    if complete && shared.arguments.close {
        shared.withdrawals_missing.set(others * u64::from(prefixes));
        let begin = Instant::now();
        orders[0].send(Order::Close)?;
        let done = until(&shared, limit, || shared.withdrawals_missing.get() == 0).await?;
        ensure!(done, "withdrawals are missing");
        outcome.close_ms = Some(begin.elapsed().as_secs_f64() * 1e3);
    }
    alive.abort();
    if shared.arguments.json {
        println!("{}", serde_json::to_string(&outcome)?);
        return Ok(());
    }
    outcome.print(&shared.arguments);
    ensure!(complete, "{} prefixes are missing, {} sessions are up", outcome.missing, outcome.up);
    Ok(())
}

/// What came out.
#[derive(Debug, serde::Serialize)]
struct Outcome {
    /// Whether everybody got everything in time.
    converged: bool,
    /// From the first connect until everybody had everything, or until patience ended.
    seconds: f64,
    /// From the first connect until the last session was up.
    all_up_seconds: f64,
    /// UPDATEs and octets that all clients got together.
    updates: u64,
    octets: u64,
    /// What the target used until `seconds`, and its peak of resident memory.
    cpu_seconds: f64,
    peak_kib: u64,
    /// Prefixes that somebody lacks, and sessions that are up.
    missing: u64,
    up: u32,
    /// For each single route, the milliseconds until the last client had it, in order of size.
    news_ms: Vec<f64>,
    /// Milliseconds from a client's close until nobody has its prefixes.
    close_ms: Option<f64>,
}

impl Outcome {
    fn print(&self, arguments: &Arguments) {
        println!(
            "{} x {} {}: {} in {:.3} s, all up after {:.3} s; {} UPDATEs, {:.1} MB; target {:.2} CPU-s, {:.1} MB \
             peak",
            arguments.clients,
            arguments.prefixes,
            if arguments.storm { "storm" } else { "trickle" },
            if self.converged { "converged" } else { "DID NOT CONVERGE" },
            self.seconds,
            self.all_up_seconds,
            self.updates,
            self.octets as f64 / 1e6,
            self.cpu_seconds,
            self.peak_kib as f64 / 1024.0,
        );
        let times = &self.news_ms;
        if let (Some(middle), Some(late)) = (times.get(times.len() / 2), times.get(times.len() * 99 / 100)) {
            println!("one new route to the last client: p50 {middle:.1} ms, p99 {late:.1} ms");
        }
        if let Some(close) = self.close_ms {
            println!("a client's close: everybody knows after {close:.1} ms");
        }
    }
}

/// Single routes, one after the other; the milliseconds that each took, in order of size.
async fn news(
    shared: &Shared,
    orders: &[mpsc::UnboundedSender<Order>],
    limit: Duration,
) -> anyhow::Result<Vec<f64>> {
    let (clients, prefixes) = (shared.arguments.clients, shared.arguments.prefixes);
    let mut times = vec![];
    for k in 0..shared.arguments.news {
        tokio::time::sleep(Duration::from_millis(30)).await;
        shared.news_missing.set(u64::from(clients) - 1);
        let last = clients - 1;
        let at = clients * prefixes + k;
        let begin = Instant::now();
        orders[last as usize].send(Order::Send(announce(last, at..at + 1)))?;
        ensure!(until(shared, limit, || shared.news_missing.get() == 0).await?, "a single route is missing");
        times.push(begin.elapsed().as_secs_f64() * 1e3);
    }
    times.sort_by(f64::total_cmp);
    Ok(times)
}

/// Waits for a condition; false: it took too long.
async fn until(shared: &Shared, limit: Duration, done: impl Fn() -> bool) -> anyhow::Result<bool> {
    let waiting = async {
        loop {
            if let Some(failed) = shared.failed.borrow_mut().take() {
                bail!(failed);
            }
            if done() {
                return Ok(true);
            }
            shared.changed.notified().await;
        }
    };
    tokio::time::timeout(limit, waiting).await.unwrap_or(Ok(false))
}

async fn client(
    i: u32,
    shared: &Shared,
    gate: &Semaphore,
    open: Vec<u8>,
    routes: Vec<u8>,
    mut orders: mpsc::UnboundedReceiver<Order>,
) -> anyhow::Result<()> {
    let permit = gate.acquire().await?;
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    let own = address(i);
    socket.bind(SocketAddr::from((own, 0))).with_context(|| format!("bind {own}"))?;
    let mut stream = socket.connect(shared.arguments.target.into()).await.context("connect")?;
    stream.set_nodelay(true)?;
    stream.write_all(&open).await?;
    let mut seen = vec![0u64; shared.bits.div_ceil(64)];
    let own_range = i * shared.arguments.prefixes..(i + 1) * shared.arguments.prefixes;
    let mut buffer = vec![0; 256 << 10];
    let (mut filled, mut up, mut permit) = (0, false, Some(permit));
    loop {
        let read = tokio::select! {
            read = stream.read(&mut buffer[filled..]) => read?,
            order = orders.recv() => match order {
                Some(Order::Send(bytes)) => {
                    stream.write_all(&bytes).await?;
                    continue;
                }
                Some(Order::Close) | None => return Ok(()),
            },
        };
        ensure!(read > 0, "the reflector closed the connection");
        filled += read;
        shared.octets.set(shared.octets.get() + read as u64);
        let mut at = 0;
        while let Some(length) = frame_length(&buffer[at..filled]) {
            let body = &buffer[at + 19..at + length];
            match buffer[at + 18] {
                1 => stream.write_all(&message(4, &[])).await?,
                2 => {
                    shared.messages.set(shared.messages.get() + 1);
                    take_update(shared, body, &mut seen, &own_range)?;
                }
                3 => bail!("NOTIFICATION {body:?}"),
                4 if !up => {
                    up = true;
                    permit.take();
                    stream.write_all(&routes).await?;
                    shared.established.set(shared.established.get() + 1);
                    shared.changed.notify_one();
                }
                _ => {}
            }
            at += length;
        }
        buffer.copy_within(at..filled, 0);
        filled -= at;
    }
}

/// Length of the whole message at the beginning, if it is there.
fn frame_length(bytes: &[u8]) -> Option<usize> {
    let length = usize::from(u16::from_be_bytes([*bytes.get(16)?, *bytes.get(17)?]));
    (bytes.len() >= length && length >= 19).then_some(length)
}

fn take_update(
    shared: &Shared,
    body: &[u8],
    seen: &mut [u64],
    own: &std::ops::Range<u32>,
) -> anyhow::Result<()> {
    let word = |at: usize| {
        let octets = body.get(at..at + 2).context("an UPDATE that is too short")?;
        Ok::<usize, anyhow::Error>(usize::from(u16::from_be_bytes([octets[0], octets[1]])))
    };
    let withdrawn = word(0)?;
    let attributes = word(2 + withdrawn)?;
    let regular = shared.arguments.clients * shared.arguments.prefixes;
    each_prefix(&body[2..2 + withdrawn], |index| {
        let (at, bit) = (index as usize / 64, 1 << (index % 64));
        if seen.get(at).is_some_and(|word| word & bit != 0) {
            seen[at] &= !bit;
            shared.withdrawals_missing.set(shared.withdrawals_missing.get().saturating_sub(1));
        }
    });
    each_prefix(&body[4 + withdrawn + attributes..], |index| {
        let (at, bit) = (index as usize / 64, 1 << (index % 64));
        if own.contains(&index) || seen.get(at).is_none_or(|word| word & bit != 0) {
            return;
        }
        seen[at] |= bit;
        let left = if index < regular { &shared.missing } else { &shared.news_missing };
        left.set(left.get().saturating_sub(1));
    });
    if shared.missing.get() == 0 || shared.news_missing.get() == 0 || shared.withdrawals_missing.get() == 0 {
        shared.changed.notify_one();
    }
    Ok(())
}

/// Calls back with the number of each of our prefixes.
fn each_prefix(mut bytes: &[u8], mut found: impl FnMut(u32)) {
    while let Some((bits, rest)) = bytes.split_first() {
        let len = usize::from(bits.div_ceil(8)).min(rest.len());
        let mut octets = [0; 4];
        octets[..len.min(4)].copy_from_slice(&rest[..len.min(4)]);
        let address = u32::from_be_bytes(octets);
        if *bits == 26 && address >= FIRST_PREFIX {
            found((address - FIRST_PREFIX) >> 6);
        }
        bytes = &rest[len..];
    }
}

/// Address of client `i`: 10.99.0.2 and on.
fn address(i: u32) -> Ipv4Addr {
    Ipv4Addr::from(0x0a63_0002 + i)
}

fn message(kind: u8, body: &[u8]) -> Vec<u8> {
    let mut out = vec![0xff; 16];
    out.extend(u16::try_from(19 + body.len()).unwrap_or(u16::MAX).to_be_bytes());
    out.push(kind);
    out.extend(body);
    out
}

fn open(arguments: &Arguments, i: u32) -> Vec<u8> {
    let short = u16::try_from(arguments.asn).unwrap_or(23456);
    let mut body = vec![4];
    body.extend(short.to_be_bytes());
    body.extend(240u16.to_be_bytes());
    body.extend(address(i).octets());
    let mut capabilities = vec![1, 4, 0, 1, 0, 1, 2, 0, 65, 4];
    capabilities.extend(arguments.asn.to_be_bytes());
    let len = u8::try_from(capabilities.len()).unwrap_or(0);
    body.extend([len + 2, 2, len]);
    body.extend(capabilities);
    message(1, &body)
}

/// UPDATEs that announce prefixes with the client's own next hop, as many as fit into each.
fn announce(i: u32, prefixes: std::ops::Range<u32>) -> Vec<u8> {
    let mut out = vec![];
    let all: Vec<u32> = prefixes.collect();
    for batch in all.chunks(700) {
        let mut body = vec![0, 0, 0, 21, 0x40, 1, 1, 0, 0x40, 2, 0, 0x40, 3, 4];
        body.extend(address(i).octets());
        body.extend([0x40, 5, 4, 0, 0, 0, 100]);
        for index in batch {
            body.push(26);
            body.extend((FIRST_PREFIX + (index << 6)).to_be_bytes());
        }
        out.extend(message(2, &body));
    }
    out
}

/// What a process has used.
#[derive(Debug, Clone, Copy, Default)]
struct Usage {
    cpu: f64,
    peak_kib: u64,
}

impl Usage {
    fn of(pid: Option<u32>) -> anyhow::Result<Self> {
        let Some(pid) = pid else { return Ok(Self::default()) };
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or("").split_whitespace().collect();
        let ticks = |at: usize| fields.get(at).and_then(|field| field.parse::<f64>().ok()).unwrap_or(0.0);
        let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let peak = peak.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).unwrap_or(0);
        // The kernel counts in hundredths of a second, whatever its own tick.
        Ok(Self { cpu: (ticks(11) + ticks(12)) / 100.0, peak_kib: peak })
    }
}
