//! The shell round the BFD core: one thread with sockets and timers of its own, so that a busy speaker delays no packet
//! and no detection. It takes the list of neighbours to watch and gives back changes of state, nothing else.
//!
//! ```text
//!  Shell ──neighbours──▶ thread: Monitor, sockets ──changes──▶ Shell
//! ```
//!
//! For each own address there is a socket that receives on port 3784 (RFC 5881) or 4784 (RFC 5883), and one that sends
//! from a port of 49152 or above, as RFC 5881 section 4 demands. What does not carry TTL 255 over one hop is discarded
//! by the core.

use std::collections::BTreeMap;
use std::io::{self, IoSliceMut};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, AsRawFd};
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, setsockopt, sockopt};
use podway_bgp::bfd::{Action, Diagnostic, Event, LEN, MULTIHOP_PORT, Monitor, PORT, State, TTL, Timers};
use tokio::sync::mpsc;

/// Source ports (RFC 5881 section 4).
const SOURCE_PORTS: std::ops::RangeInclusive<u16> = 49152..=65535;
/// How long the thread may be without looking at its orders: they are rare, and a poll is cheap.
const ORDERS: Duration = Duration::from_millis(100);
/// When an address that could not be bound is tried again.
const BIND_RETRY: Duration = Duration::from_secs(2);
/// Changes that may wait for the speaker; a session changes twice in a detection time at most.
const CHANGES: usize = 1024;

/// A session with a neighbour came up or went down.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Change {
    /// Whose.
    pub(super) peer: IpAddr,
    /// Whether the way to it is lost: it was up, and nobody has shut it down.
    pub(super) lost: bool,
    /// For people.
    pub(super) what: String,
}

/// Neighbours to watch, each with our own address towards it.
pub(super) type Watched = BTreeMap<IpAddr, (IpAddr, Timers)>;

/// The thread. Dropping it tells all neighbours AdminDown and ends it.
pub(super) struct Watch {
    orders: Option<Sender<Watched>>,
    changes: mpsc::Receiver<Change>,
    thread: Option<JoinHandle<()>>,
}

impl Watch {
    /// Starts the thread. `seed` feeds discriminators and jitter.
    pub(super) fn start(seed: u64) -> io::Result<Self> {
        let (orders, ordered) = channel();
        let (changed, changes) = mpsc::channel(CHANGES);
        let run = move || Thread::new(seed, changed).run(&ordered);
        let thread = std::thread::Builder::new().name("bfd".to_owned()).spawn(run)?;
        Ok(Self { orders: Some(orders), changes, thread: Some(thread) })
    }

    /// Watches exactly these neighbours.
    pub(super) fn watch(&self, wanted: Watched) {
        // The thread ends only with us, or with the process.
        let _ = self.orders.as_ref().map(|orders| orders.send(wanted));
    }

    /// The next change. Cancel-safe.
    pub(super) async fn next(&mut self) -> Option<Change> {
        self.changes.recv().await
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.orders = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Sockets of one own address.
struct Sockets {
    multihop: bool,
    receive: UdpSocket,
    send: UdpSocket,
}

struct Thread {
    began: Instant,
    monitor: Monitor,
    wanted: Watched,
    sockets: BTreeMap<(IpAddr, bool), Sockets>,
    bind_at: Option<Instant>,
    said: Option<String>,
    changed: mpsc::Sender<Change>,
}

impl Thread {
    fn new(seed: u64, changed: mpsc::Sender<Change>) -> Self {
        Self {
            began: Instant::now(),
            monitor: Monitor::new(seed),
            wanted: Watched::new(),
            sockets: BTreeMap::new(),
            bind_at: None,
            said: None,
            changed,
        }
    }

    fn run(mut self, ordered: &Receiver<Watched>) {
        loop {
            match ordered.try_recv() {
                Ok(wanted) => self.follow(wanted),
                Err(TryRecvError::Empty) => {}
                Err(TryRecvError::Disconnected) => return self.step(Event::Stopped),
            }
            if self.bind_at.is_some_and(|at| at <= Instant::now()) {
                self.bind();
            }
            self.wait();
            self.receive();
            self.step(Event::Timer);
        }
    }

    fn follow(&mut self, wanted: Watched) {
        let timers = wanted.iter().map(|(peer, (_, timers))| (*peer, *timers)).collect();
        self.wanted = wanted;
        self.bind();
        self.step(Event::Configured(timers));
        let wanted = &self.wanted;
        let needed = |(own, multihop): &(IpAddr, bool)| {
            wanted.values().any(|(address, timers)| address == own && timers.multihop == *multihop)
        };
        self.sockets.retain(|key, _| needed(key));
    }

    /// Opens what is missing.
    fn bind(&mut self) {
        self.bind_at = None;
        for (own, timers) in self.wanted.values() {
            let key = (*own, timers.multihop);
            if self.sockets.contains_key(&key) {
                continue;
            }
            match open(*own, timers.multihop) {
                Ok(sockets) => drop(self.sockets.insert(key, sockets)),
                Err(error) => {
                    let error = error.to_string();
                    if self.said.as_ref() != Some(&error) {
                        tracing::warn!(address = %own, error, "cannot open BFD's sockets; is another BFD running?");
                        self.said = Some(error);
                    }
                    self.bind_at = Some(Instant::now() + BIND_RETRY);
                }
            }
        }
    }

    /// Until a packet comes, the core's deadline, or it is time to look at the orders.
    fn wait(&self) {
        let now = self.began.elapsed();
        let due = self.monitor.deadline().map_or(ORDERS, |at| at.saturating_sub(now));
        let micros = due.min(ORDERS).as_micros();
        // Rounded up: else the last fraction of a millisecond would be a busy loop.
        let timeout = u8::try_from(micros.div_ceil(1000)).unwrap_or(u8::MAX);
        let mut fds: Vec<PollFd<'_>> = self
            .sockets
            .values()
            .map(|sockets| PollFd::new(sockets.receive.as_fd(), PollFlags::POLLIN))
            .collect();
        // An interrupted wait is as good as one that is over.
        let _ = poll(&mut fds, PollTimeout::from(timeout));
    }

    fn receive(&mut self) {
        let mut packets = vec![];
        for sockets in self.sockets.values() {
            while let Some((from, ttl, bytes)) = receive_one(&sockets.receive) {
                packets.push((from, ttl, sockets.multihop, bytes));
            }
        }
        for (from, ttl, multihop, bytes) in packets {
            self.step(Event::Received { from, ttl, multihop, bytes: &bytes });
        }
    }

    fn step(&mut self, event: Event<'_>) {
        let mut actions = vec![];
        self.monitor.step(self.began.elapsed(), event, &mut actions);
        for action in actions {
            match action {
                Action::Send { to, multihop, bytes } => self.send(to, multihop, &bytes),
                Action::Changed { peer, state, diagnostic, remote } => {
                    // RFC 5882 section 4.2: who was shut down has not failed.
                    let shut = diagnostic == Diagnostic::SIGNALED && remote == State::AdminDown;
                    let lost = state != State::Up && !shut;
                    let what = match state {
                        State::Up => "BFD: up".to_owned(),
                        _ => format!("BFD: down, {diagnostic}"),
                    };
                    // A speaker that does not take changes for so long has other worries.
                    let _ = self.changed.try_send(Change { peer, lost, what });
                }
            }
        }
    }

    /// A packet that cannot be sent is one that is lost.
    fn send(&self, to: IpAddr, multihop: bool, bytes: &[u8; LEN]) {
        let own = self.wanted.get(&to).map(|(own, _)| *own);
        let by = |own: IpAddr| self.sockets.get(&(own, multihop));
        // A neighbour that is no longer watched is told so by a socket of its family.
        let any = || self.sockets.iter().find(|((a, m), _)| a.is_ipv4() == to.is_ipv4() && *m == multihop);
        if let Some(sockets) = own.and_then(by).or_else(|| any().map(|(_, sockets)| sockets)) {
            let port = if multihop { MULTIHOP_PORT } else { PORT };
            let _ = sockets.send.send_to(bytes, SocketAddr::new(to, port));
        }
    }
}

fn open(own: IpAddr, multihop: bool) -> io::Result<Sockets> {
    let receive = UdpSocket::bind((own, if multihop { MULTIHOP_PORT } else { PORT }))?;
    receive.set_nonblocking(true)?;
    let send = SOURCE_PORTS.into_iter().find_map(|port| UdpSocket::bind((own, port)).ok());
    let send = send.ok_or_else(|| io::Error::other("no port of 49152 to 65535 is free"))?;
    send.set_nonblocking(true)?;
    match own {
        IpAddr::V4(_) => {
            setsockopt(&receive, sockopt::Ipv4RecvTtl, &true)?;
            setsockopt(&send, sockopt::Ipv4Ttl, &i32::from(TTL))?;
        }
        IpAddr::V6(_) => {
            setsockopt(&receive, sockopt::Ipv6RecvHopLimit, &true)?;
            setsockopt(&send, sockopt::Ipv6Ttl, &i32::from(TTL))?;
        }
    }
    Ok(Sockets { multihop, receive, send })
}

/// The next packet that waits: who sent it, its TTL or hop limit, its octets.
fn receive_one(socket: &UdpSocket) -> Option<(IpAddr, u8, Vec<u8>)> {
    let mut buffer = [0; 64];
    let mut space = nix::cmsg_space!(i32);
    let mut slices = [IoSliceMut::new(&mut buffer)];
    let message =
        recvmsg::<SockaddrStorage>(socket.as_raw_fd(), &mut slices, Some(&mut space), MsgFlags::MSG_DONTWAIT)
            .ok()?;
    let address = message.address?;
    let v4 = address.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip()));
    let from = v4.or_else(|| address.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip())))?;
    let mut ttl = 0;
    for control in message.cmsgs().ok()? {
        if let ControlMessageOwned::Ipv4Ttl(found) | ControlMessageOwned::Ipv6HopLimit(found) = control {
            ttl = u8::try_from(found).unwrap_or(0);
        }
    }
    let bytes = message.bytes;
    Some((from, ttl, buffer[..bytes.min(64)].to_vec()))
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use podway_kern::ns::in_new_netns;

    use super::*;

    /// How long anything may take; what is waited for takes two seconds.
    const LIMIT: Duration = Duration::from_secs(30);

    async fn until(watch: &mut Watch, wanted: impl Fn(&Change) -> bool) -> Change {
        let next = async {
            loop {
                let change = watch.next().await.unwrap();
                if wanted(&change) {
                    return change;
                }
            }
        };
        tokio::time::timeout(LIMIT, next).await.unwrap()
    }

    fn run(test: impl AsyncFnOnce() + Send) {
        in_new_netns(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(test());
        })
        .unwrap();
    }

    fn ip(arguments: &str) {
        assert!(Command::new("ip").args(arguments.split(' ')).status().unwrap().success(), "ip {arguments}");
    }

    #[test]
    fn a_shut_down_neighbour_is_told_apart_from_one_that_is_cut_off() {
        if !nix::unistd::geteuid().is_root() {
            println!("SKIP a_shut_down_neighbour_is_told_apart_from_one_that_is_cut_off: needs root");
            return;
        }
        run(async || {
            for (multihop, one, two) in [(false, "127.0.0.1", "127.0.0.2"), (true, "fd09::1", "fd09::2")] {
                ip("link set lo up");
                ip("addr replace fd09::1/128 dev lo nodad");
                ip("addr replace fd09::2/128 dev lo nodad");
                let (one, two): (IpAddr, IpAddr) = (one.parse().unwrap(), two.parse().unwrap());
                let timers = Timers { interval: Duration::from_millis(100), multiplier: 10, multihop };
                let mut here = Watch::start(1).unwrap();
                let mut there = Watch::start(2).unwrap();
                here.watch(Watched::from([(two, (one, timers))]));
                there.watch(Watched::from([(one, (two, timers))]));
                until(&mut here, |change| change.what == "BFD: up").await;
                until(&mut there, |change| change.what == "BFD: up").await;
                drop(there);
                let change = until(&mut here, |change| change.what != "BFD: up").await;
                assert!(!change.lost, "{change:?}");
                // The other side is back, and then nothing gets through any more.
                let there = Watch::start(3).unwrap();
                there.watch(Watched::from([(one, (two, timers))]));
                until(&mut here, |change| change.what == "BFD: up").await;
                ip("link set lo down");
                let change = until(&mut here, |change| change.what != "BFD: up").await;
                assert!(change.lost && change.what.contains("expired"), "{change:?}");
            }
        });
    }
}
