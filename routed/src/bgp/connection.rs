//! TCP: listeners, and one task per connection that moves bytes and nothing else.
//!
//! Bounds: what a task has read and the speaker has not taken waits in the shared event queue, which makes the task,
//! and so the peer, wait. What the speaker sends is bounded by the speaker's own window per peer; the queue of [`super::writer`]
//! is far above it, and a connection that fills it is closed.
//!
//! Close: the queue is written out, the write side shut down, and what the peer still sends is read and dropped, so that
//! its kernel does not answer with a reset that would take our NOTIFICATION with it.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use podway_bgp::{ConnId, Event};
use tokio::io::AsyncReadExt as _;
use tokio::net::tcp::OwnedReadHalf;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinSet};

use super::transport::{self, Carriage, Keys};
use super::writer::Rest;

/// Octets read at once.
const READ: usize = 16 << 10;
/// Connections that the kernel may hold for us (a whole cluster comes at once).
const BACKLOG: u32 = 4096;
/// How long a connection attempt may take: less than the speaker waits before it begins the next, so that the reason
/// is known.
const CONNECT: Duration = Duration::from_millis(3500);
/// How long a closed connection may take to end.
const LINGER: Duration = Duration::from_secs(3);

/// Opens a listener.
pub(super) fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = socket_for(address.ip())?;
    socket.set_reuseaddr(true)?;
    transport::listening(&socket, address.ip())?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

fn socket_for(address: IpAddr) -> io::Result<TcpSocket> {
    if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }
}

/// Hands accepted connections on, for ever. A failing accept (out of file descriptors) is tried again in a while.
pub(super) async fn accept(listener: Arc<TcpListener>, accepted: mpsc::Sender<(TcpStream, IpAddr)>) {
    loop {
        match listener.accept().await {
            Ok((stream, remote)) => {
                if accepted.send((stream, remote.ip().to_canonical())).await.is_err() {
                    return;
                }
            }
            Err(error) => {
                tracing::warn!(%error, "a BGP connection could not be accepted");
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        }
    }
}

/// Opens a connection and runs it. `queue` closed means: close.
pub(super) async fn outgoing(
    conn: ConnId,
    remote: SocketAddr,
    local: Option<IpAddr>,
    carriage: Result<Carriage, String>,
    mut rest: Rest,
    events: mpsc::Sender<Event>,
) {
    let attempt = async {
        let socket = socket_for(remote.ip())?;
        carriage.map_err(io::Error::other)?.before_connect(&socket, remote.ip())?;
        if let Some(local) = local {
            socket.set_reuseaddr(true)?;
            socket.bind(SocketAddr::new(local, 0))?;
        }
        let silence = |_| io::Error::new(io::ErrorKind::TimedOut, "no answer");
        tokio::time::timeout(CONNECT, socket.connect(remote)).await.map_err(silence)?
    };
    // Nothing is sent before the connection stands, so anything from the queue is its end.
    let stream = tokio::select! {
        stream = attempt => stream,
        () = rest.ended() => return,
    };
    match stream {
        Ok(stream) => {
            let read = begin(stream, &rest);
            if events.send(Event::Connected { conn }).await.is_ok() {
                run(conn, read, rest, events).await;
            }
        }
        Err(error) => {
            let reason = format!("connect to {remote}: {error}");
            // The speaker is gone if nobody listens: then nobody needs to know.
            let _ = events.send(Event::Closed { conn, reason }).await;
        }
    }
}

/// A connection that stands: its write side goes to those who write.
pub(super) fn begin(stream: TcpStream, rest: &Rest) -> OwnedReadHalf {
    // Small messages must not wait for an acknowledgement. A socket that refuses this is as good as any.
    let _ = stream.set_nodelay(true);
    let (read, write) = stream.into_split();
    rest.connected(write);
    read
}

/// Runs a connection to its end.
pub(super) async fn run(conn: ConnId, mut read: OwnedReadHalf, mut rest: Rest, events: mpsc::Sender<Event>) {
    // Both are dropped together when one ends; a half-written message does not matter on a connection that ends.
    let end = tokio::select! {
        reason = receive(conn, &read, &events) => Some(reason),
        result = rest.run(conn, &events) => result.err().map(|error| format!("connection lost: {error}")),
    };
    match end {
        Some(reason) => {
            let _ = events.send(Event::Closed { conn, reason }).await;
        }
        None => {
            // The shell has let go as well: this shuts the write side down.
            drop(rest);
            drop(tokio::time::timeout(LINGER, drain(&mut read)).await);
        }
    }
}

/// Hands on what comes in; returns why nothing comes any more. A connection that is silent holds no buffer.
async fn receive(conn: ConnId, read: &OwnedReadHalf, events: &mpsc::Sender<Event>) -> String {
    loop {
        let received = match read.readable().await {
            Ok(()) => read_now(read),
            Err(error) => Err(error),
        };
        match received {
            Ok(bytes) if bytes.is_empty() => return "connection closed by the peer".to_owned(),
            Ok(bytes) => {
                if events.send(Event::Received { conn, bytes }).await.is_err() {
                    return "the speaker is gone".to_owned();
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return format!("connection lost: {error}"),
        }
    }
}

/// What is there now, in as much memory as it needs.
fn read_now(read: &OwnedReadHalf) -> io::Result<Bytes> {
    let mut buffer = [0; READ];
    let count = read.try_read(&mut buffer)?;
    Ok(Bytes::copy_from_slice(&buffer[..count]))
}

async fn drain(read: &mut OwnedReadHalf) {
    let mut scrap = [0; 4096];
    while matches!(read.read(&mut scrap).await, Ok(n) if n > 0) {}
}

/// Listeners by address; dropping them ends their tasks.
#[derive(Default)]
pub(super) struct Listeners {
    open: BTreeMap<SocketAddr, Listening>,
    tasks: JoinSet<()>,
    failed: BTreeMap<SocketAddr, String>,
}

struct Listening {
    listener: Arc<TcpListener>,
    task: AbortHandle,
    /// The keys that it holds.
    keys: Keys,
}

impl Listeners {
    /// Opens and closes so that exactly `wanted` are open, each with these keys. False: some could not be opened, or not
    /// be given their keys; those are closed.
    pub(super) fn set(
        &mut self,
        wanted: &BTreeSet<SocketAddr>,
        keys: &Keys,
        accepted: &mpsc::Sender<(TcpStream, IpAddr)>,
    ) -> bool {
        self.open.retain(|address, listening| {
            let keep = wanted.contains(address);
            if !keep {
                listening.task.abort();
            }
            keep
        });
        self.failed.retain(|address, _| wanted.contains(address));
        for address in wanted {
            let done = match self.open.get_mut(address) {
                Some(listening) => listening.follow(address.ip(), keys),
                None => self.begin(*address, keys, accepted),
            };
            match done {
                Ok(()) => drop(self.failed.remove(address)),
                Err(error) => {
                    // Without its keys it would take whoever comes.
                    if let Some(listening) = self.open.remove(address) {
                        listening.task.abort();
                    }
                    // Said once per reason: it is tried again and again.
                    let error = error.to_string();
                    if self.failed.insert(*address, error.clone()) != Some(error.clone()) {
                        tracing::warn!(%address, error, "cannot listen for BGP; is another speaker running?");
                    }
                }
            }
        }
        self.failed.is_empty()
    }

    fn begin(
        &mut self,
        address: SocketAddr,
        keys: &Keys,
        accepted: &mpsc::Sender<(TcpStream, IpAddr)>,
    ) -> io::Result<()> {
        let listener = Arc::new(listen(address)?);
        keys.follow(&*listener, address.ip(), &Keys::default())?;
        tracing::info!(%address, "listening for BGP");
        let task = self.tasks.spawn(accept(Arc::clone(&listener), accepted.clone()));
        self.open.insert(address, Listening { listener, task, keys: keys.clone() });
        Ok(())
    }
}

impl Listening {
    fn follow(&mut self, own: IpAddr, keys: &Keys) -> io::Result<()> {
        if self.keys != *keys {
            keys.follow(&*self.listener, own, &self.keys)?;
            self.keys = keys.clone();
        }
        Ok(())
    }
}
