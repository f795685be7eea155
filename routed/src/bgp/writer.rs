//! The write side of a connection: what the kernel takes at once is written at once, without waking anybody; the rest
//! waits for the connection's task.
//!
//! A flush gives each of thousands of clients a few hundred octets, which nearly always fit into their sockets: a task
//! that is woken, a queue and an event for each would cost more than the writing itself.

use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use bytes::{Buf as _, Bytes};
use podway_bgp::{ConnId, Event};
use tokio::net::tcp::OwnedWriteHalf;
use tokio::sync::mpsc;

/// Messages that may wait for one connection's task.
const QUEUE: usize = 16 << 10;
/// Messages that are written with one call.
const AT_ONCE: usize = 64;

/// What both hold. The connection's write side is shut down when both have let go.
#[derive(Debug, Default)]
struct Shared {
    /// Set once the connection stands.
    half: OnceLock<OwnedWriteHalf>,
    /// Octets that were given to the task and are not written. Only the shell adds; while it is 0 the shell may write.
    queued: AtomicUsize,
}

/// The shell's end. Dropping it closes the connection, after what was given to it has been written.
#[derive(Debug)]
pub(super) struct Writer {
    shared: Arc<Shared>,
    queue: mpsc::Sender<Bytes>,
}

/// The task's end.
#[derive(Debug)]
pub(super) struct Rest {
    shared: Arc<Shared>,
    queue: mpsc::Receiver<Bytes>,
}

/// Both ends of a connection that does not stand yet.
pub(super) fn pair() -> (Writer, Rest) {
    let shared = Arc::<Shared>::default();
    let (queue, rest) = mpsc::channel(QUEUE);
    (Writer { shared: Arc::clone(&shared), queue }, Rest { shared, queue: rest })
}

impl Writer {
    /// Takes all of `pieces`, in order; returns how many octets are written already. None: the connection's task has
    /// more to write than it can hold.
    pub(super) fn send(&self, pieces: &mut Vec<Bytes>) -> Option<usize> {
        let mut written = 0;
        let mut pieces = pieces.drain(..).peekable();
        if self.shared.queued.load(Ordering::Acquire) == 0
            && let Some(half) = self.shared.half.get()
        {
            while pieces.peek().is_some() {
                let batch: Vec<Bytes> = pieces.by_ref().take(AT_ONCE).collect();
                let (count, left) = write_now(half, batch);
                written += count;
                if !left.is_empty() {
                    self.give(left.into_iter())?;
                    break;
                }
            }
        }
        self.give(pieces)?;
        Some(written)
    }

    /// Our end and theirs, once the connection stands.
    pub(super) fn ends(&self) -> Option<(SocketAddr, SocketAddr)> {
        let half = self.shared.half.get()?;
        half.local_addr().ok().zip(half.peer_addr().ok())
    }

    fn give(&self, pieces: impl Iterator<Item = Bytes>) -> Option<()> {
        for piece in pieces {
            self.shared.queued.fetch_add(piece.len(), Ordering::AcqRel);
            self.queue.try_send(piece).ok()?;
        }
        Some(())
    }
}

/// Writes what the kernel takes now; returns how much, and the rest. What goes wrong is left to the task, which meets it
/// again.
fn write_now(half: &OwnedWriteHalf, batch: Vec<Bytes>) -> (usize, Vec<Bytes>) {
    let slices: Vec<IoSlice<'_>> = batch.iter().map(|piece| IoSlice::new(piece)).collect();
    let Ok(count) = half.try_write_vectored(&slices) else { return (0, batch) };
    let mut gone = count;
    let left = batch.into_iter().filter_map(|mut piece| {
        let now = gone.min(piece.len());
        gone -= now;
        piece.advance(now);
        (!piece.is_empty()).then_some(piece)
    });
    (count, left.collect())
}

impl Rest {
    /// The connection stands.
    pub(super) fn connected(&self, half: OwnedWriteHalf) {
        // Set once: a connection is made once.
        drop(self.shared.half.set(half));
    }

    /// Waits until something is given before the connection stands, which is its end.
    pub(super) async fn ended(&mut self) {
        drop(self.queue.recv().await);
    }

    /// Writes what it is given until the shell lets go.
    pub(super) async fn run(&mut self, conn: ConnId, events: &mpsc::Sender<Event>) -> io::Result<()> {
        let Some(half) = self.shared.half.get() else { return Ok(()) };
        let mut waiting = Vec::new();
        while self.queue.recv_many(&mut waiting, AT_ONCE).await > 0 {
            let mut sent = 0;
            for piece in waiting.drain(..) {
                let mut rest = &piece[..];
                while !rest.is_empty() {
                    half.writable().await?;
                    match half.try_write(rest) {
                        Ok(count) => rest = &rest[count..],
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                        Err(error) => return Err(error),
                    }
                }
                self.shared.queued.fetch_sub(piece.len(), Ordering::AcqRel);
                sent += piece.len();
            }
            // Nobody to tell: the end is near anyway.
            let _ = events.send(Event::Sent { conn, bytes: sent }).await;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt as _;
    use tokio::net::{TcpListener, TcpStream};

    use super::*;

    /// Two ends of a connection.
    async fn connection() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        (stream, listener.accept().await.unwrap().0)
    }

    fn run<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
    }

    fn pieces(from: u32, to: u32) -> Vec<Bytes> {
        (from..to).map(|number| Bytes::from(number.to_be_bytes().repeat(250))).collect()
    }

    #[test]
    fn what_a_socket_takes_is_written_at_once_and_the_rest_in_order() {
        run(async {
            let (near, mut far) = connection().await;
            let (writer, mut rest) = pair();
            let (_read, half) = near.into_split();
            half.writable().await.unwrap();
            // Before it stands everything waits; then the task has to come first.
            assert_eq!(writer.send(&mut pieces(0, 2)), Some(0));
            rest.connected(half);
            assert_eq!(writer.send(&mut pieces(2, 3)), Some(0));
            let (events, mut told) = mpsc::channel(1000);
            let task = tokio::spawn(async move { rest.run(ConnId::Incoming(1), &events).await });
            let mut announced = 0;
            while announced < 3000 {
                let Some(Event::Sent { bytes, .. }) = told.recv().await else { panic!("the task ended") };
                announced += bytes;
            }
            assert_eq!(writer.send(&mut pieces(3, 103)), Some(100_000));
            // Far more than any socket holds: a part at once, the rest waits.
            let now = writer.send(&mut pieces(103, 16_000)).unwrap();
            assert!(now > 0 && now < 15_897_000, "{now}");
            assert_eq!(writer.send(&mut pieces(16_000, 16_001)), Some(0));
            drop(writer);
            let mut all = vec![];
            far.read_to_end(&mut all).await.unwrap();
            let expected: Vec<u8> = pieces(0, 16_001).concat();
            assert!(all == expected, "{} octets of {}", all.len(), expected.len());
            task.await.unwrap().unwrap();
        });
    }

    #[test]
    fn a_connection_that_does_not_read_is_refused_more_than_the_queue_holds() {
        run(async {
            let (near, _far) = connection().await;
            let (writer, rest) = pair();
            let (_read, half) = near.into_split();
            half.writable().await.unwrap();
            rest.connected(half);
            let mut refused = false;
            for _ in 0..1000 {
                refused |= writer.send(&mut pieces(0, 1000)).is_none();
            }
            assert!(refused);
        });
    }
}
