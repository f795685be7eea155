//! Echo servers inside namespaces: they answer with their own name and the source address that they see.
//!
//! All servers of a lab are served by one background thread; their sockets stay in the namespace in which they
//! were opened. They end when the lab drops the [`EchoRuntime`], or one by one with their [`Echo`].

use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};

use anyhow::{Context as _, Result};
use podway_kern::ns::NetNs;
use tokio::io::AsyncWriteExt as _;
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

/// Ports on which every server answers, TCP and UDP alike.
pub const PORTS: [u16; 2] = [80, 81];

/// The thread that serves.
#[derive(Debug)]
pub struct EchoRuntime {
    handle: Handle,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl EchoRuntime {
    /// Starts it.
    pub fn start() -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::Builder::new().name("echo".to_owned()).spawn(move || {
            // Either way of ending the wait means: stop.
            let _ = runtime.block_on(stopped);
        })?;
        Ok(Self { handle, stop: Some(stop), thread: Some(thread) })
    }

    /// Opens a server called `name` in the network namespace `net`, on all [`PORTS`].
    pub fn serve(&self, net: &NetNs, name: &str) -> Result<Echo> {
        let open = || -> io::Result<(Vec<TcpListener>, Vec<UdpSocket>)> {
            let (mut listeners, mut sockets) = (vec![], vec![]);
            for port in PORTS {
                // One IPv6 socket serves both families (net.ipv6.bindv6only is 0 in a new namespace).
                let any = SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
                let (listener, socket) = (TcpListener::bind(any)?, UdpSocket::bind(any)?);
                listener.set_nonblocking(true)?;
                socket.set_nonblocking(true)?;
                listeners.push(listener);
                sockets.push(socket);
            }
            Ok((listeners, sockets))
        };
        let (listeners, sockets) = net.run(open)?.with_context(|| format!("open the echo server {name}"))?;
        let _entered = self.handle.enter();
        let mut tasks = vec![];
        for listener in listeners {
            let listener = tokio::net::TcpListener::from_std(listener)?;
            tasks.push(self.handle.spawn(serve_tcp(listener, name.to_owned())));
        }
        for socket in sockets {
            let socket = tokio::net::UdpSocket::from_std(socket)?;
            tasks.push(self.handle.spawn(serve_udp(socket, name.to_owned())));
        }
        Ok(Echo { tasks })
    }
}

impl Drop for EchoRuntime {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A running server; it ends when dropped.
#[derive(Debug)]
pub struct Echo {
    tasks: Vec<JoinHandle<()>>,
}

impl Drop for Echo {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

/// The answer's text.
fn answer(name: &str, peer: SocketAddr) -> String {
    format!("{name} {}\n", peer.ip().to_canonical())
}

/// Reads an answer: the server's name and the source address that it saw.
pub(crate) fn parse_answer(text: &[u8]) -> Option<(String, IpAddr)> {
    let (name, seen) = std::str::from_utf8(text).ok()?.strip_suffix('\n')?.split_once(' ')?;
    Some((name.to_owned(), seen.parse().ok()?))
}

async fn serve_tcp(listener: tokio::net::TcpListener, name: String) {
    loop {
        // A connection that failed before it was accepted concerns its client only.
        let Ok((mut stream, peer)) = listener.accept().await else { continue };
        let answer = answer(&name, peer);
        tokio::spawn(async move {
            let _ = stream.write_all(answer.as_bytes()).await;
            let _ = stream.shutdown().await;
        });
    }
}

async fn serve_udp(socket: tokio::net::UdpSocket, name: String) {
    let mut buffer = [0; 64];
    loop {
        // Errors are ICMP answers to what was sent before.
        let Ok((_, peer)) = socket.recv_from(&mut buffer).await else { continue };
        let _ = socket.send_to(answer(&name, peer).as_bytes(), peer).await;
    }
}
