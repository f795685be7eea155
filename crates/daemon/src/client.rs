//! Blocking client of an admin socket, for `podwayctl` and tests. The CNI plugin does the same with
//! [`podway_model::socket`] alone.

use std::io;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use podway_model::socket::{self, MessageError};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// A connection.
#[derive(Debug)]
pub struct Client {
    stream: UnixStream,
    path: PathBuf,
    limit: Duration,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens.
    #[error("{}: nobody answers; is the daemon running on this node?", path.display())]
    NotRunning {
        /// The socket.
        path: PathBuf,
    },
    /// The socket is root's.
    #[error("{}: permission denied; only root may ask the daemons", path.display())]
    Denied {
        /// The socket.
        path: PathBuf,
    },
    /// The daemon took longer than the limit.
    #[error("{}: no answer within {} ms", path.display(), limit.as_millis())]
    TimedOut {
        /// The socket.
        path: PathBuf,
        /// The limit.
        limit: Duration,
    },
    /// Anything else.
    #[error("{}: {source}", path.display())]
    Message {
        /// The socket.
        path: PathBuf,
        /// What went wrong.
        source: MessageError,
    },
}

impl Client {
    /// Connects to the socket at `path`. Each question waits at most `limit` for its answer.
    ///
    /// # Errors
    /// Nobody listens, or this user may not.
    pub fn connect(path: &Path, limit: Duration) -> Result<Self, ClientError> {
        let open = || -> io::Result<UnixStream> {
            let stream = UnixStream::connect(path)?;
            stream.set_read_timeout(Some(limit))?;
            stream.set_write_timeout(Some(limit))?;
            Ok(stream)
        };
        match open() {
            Ok(stream) => Ok(Self { stream, path: path.to_owned(), limit }),
            Err(error) => Err(match error.kind() {
                io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                    ClientError::NotRunning { path: path.to_owned() }
                }
                io::ErrorKind::PermissionDenied => ClientError::Denied { path: path.to_owned() },
                _ => ClientError::Message { path: path.to_owned(), source: error.into() },
            }),
        }
    }

    /// Asks one question and waits for its answer. After an error the connection is of no use any more.
    ///
    /// # Errors
    /// No answer in time, or one that cannot be read.
    pub fn ask<Q: Serialize, A: DeserializeOwned>(&mut self, question: &Q) -> Result<A, ClientError> {
        let exchange = |stream: &mut UnixStream| -> Result<Option<A>, MessageError> {
            socket::write_message(stream, question)?;
            socket::read_message(stream)
        };
        let path = || self.path.clone();
        match exchange(&mut self.stream) {
            Ok(Some(answer)) => Ok(answer),
            Ok(None) => Err(ClientError::Message {
                path: path(),
                source: io::Error::from(io::ErrorKind::UnexpectedEof).into(),
            }),
            Err(MessageError::Io(error))
                if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) =>
            {
                Err(ClientError::TimedOut { path: path(), limit: self.limit })
            }
            Err(source) => Err(ClientError::Message { path: path(), source }),
        }
    }
}
