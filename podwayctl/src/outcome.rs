//! How a command can fail, and the exit code for each.

use std::fmt;
use std::io;

use podway_daemon::client::ClientError;
use podway_model::mistakes::{EXIT_BAD_INPUT, Mistakes};
use podway_store::StoreError;

/// Why a command did not do what was asked. Its text goes to standard error, as it is.
#[derive(Debug)]
pub(crate) enum Failure {
    /// Exit 64: nothing was changed.
    BadInput(Mistakes),
    /// Exit 2: a connection is denied. All was said already.
    Denied,
    /// Exit 3.
    NotFound(String),
    /// Exit 4.
    NotReady(String),
    /// Exit 1: the store.
    Store(StoreError),
    /// Exit 1: a daemon.
    Daemon(ClientError),
    /// Exit 1: a file, or the output.
    Io(io::Error),
    /// Exit 1: anything else, said in full.
    Failed(String),
}

impl Failure {
    /// Exit code, as `--help` lists them.
    pub(crate) fn code(&self) -> u8 {
        match self {
            Self::BadInput(_) => EXIT_BAD_INPUT,
            Self::Denied => 2,
            Self::NotFound(_) => 3,
            Self::NotReady(_) => 4,
            Self::Store(_) | Self::Daemon(_) | Self::Io(_) | Self::Failed(_) => 1,
        }
    }

    /// One mistake in what was typed.
    pub(crate) fn bad_argument(argument: &str, value: impl fmt::Display, expected: &str) -> Self {
        let mut mistakes = Mistakes::default();
        mistakes.add("podwayctl", argument, value, expected);
        Self::BadInput(mistakes)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BadInput(mistakes) => mistakes.fmt(f),
            Self::Denied => f.write_str("denied"),
            Self::NotFound(text) | Self::NotReady(text) | Self::Failed(text) => f.write_str(text),
            Self::Store(error) => error.fmt(f),
            Self::Daemon(error) => error.fmt(f),
            Self::Io(error) => error.fmt(f),
        }
    }
}

impl From<Mistakes> for Failure {
    fn from(mistakes: Mistakes) -> Self {
        Self::BadInput(mistakes)
    }
}
impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}
impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        Self::Daemon(error)
    }
}
impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}
