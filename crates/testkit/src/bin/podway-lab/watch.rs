//! Watches one connection until it turns from open to closed, or back.

use std::net::{IpAddr, UdpSocket};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use podway_kern::ns::NetNs;
use podway_testkit::matrix::Cell;
use podway_testkit::probe::Kind;

/// How a watched connection is expected to change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Turn {
    /// Open becomes closed.
    Closes,
    /// Closed becomes open.
    Opens,
}

/// A connection under watch: a thread that opens it anew again and again.
#[derive(Debug)]
pub(crate) struct Watch {
    thread: JoinHandle<Result<Instant>>,
    what: String,
}

/// How long an answer may take before the try counts as closed.
const ANSWER: Duration = Duration::from_millis(20);
/// So many tries in a row must have the new state.
const IN_A_ROW: usize = 5;
const PATIENCE: Duration = Duration::from_secs(15);

impl Watch {
    /// Starts watching a cell's connection by UDP from inside `from`, each time from a new port.
    pub(crate) fn start(from: &NetNs, cell: &Cell, turn: Turn) -> Result<Self> {
        let Kind::Udp(port) = cell.kind else { bail!("only UDP is watched, {} found", cell.kind) };
        let what = format!("{} to {} {} {turn:?}", cell.from, cell.to, cell.kind);
        let (to, thread_what) = (cell.address, what.clone());
        let inside = NetNs::open(format!(
            "/proc/self/fd/{}",
            std::os::fd::AsRawFd::as_raw_fd(&std::os::fd::AsFd::as_fd(from))
        ))?;
        let thread = std::thread::Builder::new().name("watch".to_owned()).spawn(move || {
            inside.run(|| watch(to, port, turn)).context("enter the pod")?.with_context(|| thread_what)
        })?;
        Ok(Self { thread, what })
    }

    /// Waits for the turn, and returns when the first try that saw the new state began.
    pub(crate) fn turned_at(self) -> Result<Instant> {
        self.thread.join().ok().with_context(|| format!("the watch on {} panicked", self.what))?
    }
}

fn watch(to: IpAddr, port: u16, turn: Turn) -> Result<Instant> {
    let deadline = Instant::now() + PATIENCE;
    let mut first: Option<Instant> = None;
    let mut in_a_row = 0;
    while Instant::now() < deadline {
        let began = Instant::now();
        let open = answers(to, port)?;
        if open == (turn == Turn::Opens) {
            first.get_or_insert(began);
            in_a_row += 1;
            if let (true, Some(first)) = (in_a_row >= IN_A_ROW, first) {
                return Ok(first);
            }
        } else {
            (first, in_a_row) = (None, 0);
        }
        // At most a try each millisecond.
        std::thread::sleep(Duration::from_millis(1).saturating_sub(began.elapsed()));
    }
    bail!("no turn within {} s", PATIENCE.as_secs())
}

fn answers(to: IpAddr, port: u16) -> Result<bool> {
    let socket = UdpSocket::bind(if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" })?;
    socket.set_read_timeout(Some(ANSWER))?;
    socket.connect((to, port))?;
    let mut buffer = [0; 64];
    Ok(socket.send(b"?").is_ok() && socket.recv(&mut buffer).is_ok())
}
