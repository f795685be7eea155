//! Server of a unix socket with the messages of [`podway_model::socket`]: one question, one answer, in order,
//! as often as the client likes.
//!
//! The socket is in a folder of root's, mode 0700, and is itself mode 0700: whoever can open it is root. A file
//! left by an earlier run is replaced in one step; the pid lock makes sure that nobody listens on it.

use std::fs::{self, DirBuilder, Permissions};
use std::future::Future;
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use podway_model::socket::{self, MessageError};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::time::timeout;

use crate::Shutdown;

/// Connections served at once: every CNI ADD in flight has one, and a kubelet starts pods by the dozen. Further
/// ones wait in the kernel's backlog.
pub const MAX_CONNECTIONS: usize = 256;
/// How long a connection may be silent before it is closed and its place given to the next.
pub const IDLE_LIMIT: Duration = Duration::from_secs(30);

/// A bound socket.
#[derive(Debug)]
pub struct AdminSocket {
    listener: UnixListener,
    path: PathBuf,
}

impl AdminSocket {
    /// Binds `path`, making its folder and replacing what an earlier run left.
    ///
    /// # Errors
    /// The folder cannot be made or written to, or the path is longer than 100 bytes.
    pub fn bind(path: &Path) -> io::Result<Self> {
        if let Some(dir) = path.parent() {
            DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        }
        // Bound beside its place and moved there, so that its mode is right from the first moment.
        let temporary = path.with_extension("new");
        match fs::remove_file(&temporary) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(&temporary)?;
        fs::set_permissions(&temporary, Permissions::from_mode(0o700))?;
        fs::rename(&temporary, path)?;
        Ok(Self { listener, path: path.to_owned() })
    }

    /// Answers until the process ends. `answer` is called once per question; answers of different connections
    /// may be in the making at once, and one that nobody waits for any more is dropped.
    ///
    /// # Errors
    /// The listening socket fails.
    pub async fn serve<Q, A, F>(self, mut shutdown: Shutdown, answer: impl Fn(Q) -> F) -> io::Result<()>
    where
        Q: DeserializeOwned,
        A: Serialize,
        F: Future<Output = A>,
    {
        let mut connections = FuturesUnordered::new();
        loop {
            // Cancel-safe: `accept` and `next` lose nothing, and `connections` outlives the turn.
            tokio::select! {
                () = shutdown.requested() => return Ok(()),
                Some(end) = connections.next() => log_end(&self.path, end),
                accepted = self.listener.accept(), if connections.len() < MAX_CONNECTIONS => match accepted {
                    Ok((stream, _)) => connections.push(serve_one(stream, &answer)),
                    // The client is gone already.
                    Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                    Err(error) => return Err(error),
                },
            }
        }
    }
}

fn log_end(path: &Path, end: Result<(), MessageError>) {
    if let Err(error) = end {
        tracing::debug!(socket = %path.display(), %error, "connection closed");
    }
}

async fn serve_one<Q, A, F>(mut stream: UnixStream, answer: &impl Fn(Q) -> F) -> Result<(), MessageError>
where
    Q: DeserializeOwned,
    A: Serialize,
    F: Future<Output = A>,
{
    loop {
        let Ok(question) = timeout(IDLE_LIMIT, read_message(&mut stream)).await else { return Ok(()) };
        let Some(question) = question? else { return Ok(()) };
        let frame = socket::encode_message(&answer(question).await)?;
        match timeout(IDLE_LIMIT, stream.write_all(&frame)).await {
            Ok(written) => written?,
            Err(_) => return Err(io::Error::from(io::ErrorKind::TimedOut).into()),
        }
    }
}

/// Reads one message; none if the stream ends before it begins.
async fn read_message<T: DeserializeOwned>(stream: &mut UnixStream) -> Result<Option<T>, MessageError> {
    let mut head = [0; 4];
    match stream.read(&mut head).await? {
        0 => return Ok(None),
        seen => stream.read_exact(&mut head[seen..]).await?,
    };
    let length = socket::message_length(head)?;
    let mut body = Vec::new();
    stream.take(length as u64).read_to_end(&mut body).await?;
    if body.len() < length {
        return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
    }
    socket::decode_message(&body).map(Some)
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::net::UnixStream as StdStream;

    use podway_model::socket::{RoutedReply, RoutedRequest};

    use super::*;
    use crate::client::{Client, ClientError};
    use crate::shutdown::{ShutdownTrigger, shutdown};

    async fn answer(question: RoutedRequest) -> RoutedReply {
        match question {
            RoutedRequest::BgpPeers => RoutedReply::BgpPeers { peers: vec![] },
            RoutedRequest::Status => std::future::pending().await,
            other => RoutedReply::Failed { reason: format!("{other:?}") },
        }
    }

    fn start(path: &Path) -> (ShutdownTrigger, tokio::task::JoinHandle<io::Result<()>>) {
        let (trigger, shutdown) = shutdown();
        let socket = AdminSocket::bind(path).unwrap();
        (trigger, tokio::spawn(socket.serve(shutdown, answer)))
    }

    /// Runs blocking client code beside the server.
    async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
        tokio::task::spawn_blocking(work).await.unwrap()
    }

    #[tokio::test]
    async fn questions_are_answered_in_order_on_one_connection() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run/routed.sock");
        let (trigger, serving) = start(&path);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o700);
        let client_path = path.clone();
        blocking(move || {
            let mut client = Client::connect(&client_path, Duration::from_secs(5)).unwrap();
            let peers: RoutedReply = client.ask(&RoutedRequest::BgpPeers).unwrap();
            assert_eq!(peers, RoutedReply::BgpPeers { peers: vec![] });
            let failed: RoutedReply = client.ask(&RoutedRequest::BgpRoutes).unwrap();
            assert_eq!(failed, RoutedReply::Failed { reason: "BgpRoutes".into() });
        })
        .await;
        trigger.request();
        serving.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn garbage_and_silence_disturb_nobody_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("routed.sock");
        let (_trigger, _serving) = start(&path);
        blocking(move || {
            let mut garbage = StdStream::connect(&path).unwrap();
            garbage.write_all(&[0xff; 64]).unwrap();
            let mut half = StdStream::connect(&path).unwrap();
            half.write_all(&[0, 0]).unwrap();
            let mut waiting = Client::connect(&path, Duration::from_millis(20)).unwrap();
            let slow = waiting.ask::<_, RoutedReply>(&RoutedRequest::Status).unwrap_err();
            assert!(matches!(slow, ClientError::TimedOut { .. }), "{slow}");
            let mut client = Client::connect(&path, Duration::from_secs(5)).unwrap();
            assert!(client.ask::<_, RoutedReply>(&RoutedRequest::BgpPeers).is_ok());
        })
        .await;
    }

    #[tokio::test]
    async fn what_an_earlier_run_left_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("routed.sock");
        drop(AdminSocket::bind(&path).unwrap());
        assert!(path.exists(), "a killed process leaves its socket");
        let refused = Client::connect(&path, Duration::from_secs(5)).unwrap_err();
        assert!(matches!(refused, ClientError::NotRunning { .. }), "{refused}");
        let (_trigger, _serving) = start(&path);
        blocking(move || {
            let mut client = Client::connect(&path, Duration::from_secs(5)).unwrap();
            assert!(client.ask::<_, RoutedReply>(&RoutedRequest::BgpPeers).is_ok());
        })
        .await;
    }
}
