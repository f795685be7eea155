//! What can go wrong with a store. Each text says the endpoint and the cause.

use std::time::Duration;

/// What every report of a store that is full says, whether a write or a watch found it.
pub const TAKES_NO_MORE: &str = "takes no more data";

/// Why a call to the store failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// Not reachable, or not able to answer now. A write may have happened.
    #[error("{endpoint}: not available: {cause}")]
    Unavailable {
        /// URL or path.
        endpoint: String,
        /// What the attempt ended with.
        cause: String,
    },
    /// No answer in time. A write may have happened.
    #[error("{endpoint}: no answer within {} s", after.as_secs_f32())]
    Timeout {
        /// URL or path.
        endpoint: String,
        /// How long was waited.
        after: Duration,
    },
    /// User, password or certificate are not accepted, or may not do this.
    #[error(
        "{endpoint}: {what} denied: {cause} (check user, password, client certificate and the role's keys)"
    )]
    Denied {
        /// URL or path.
        endpoint: String,
        /// What was attempted, with the key.
        what: String,
        /// What the store says.
        cause: String,
    },
    /// The store takes no more data.
    #[error("{endpoint} {TAKES_NO_MORE}, {key} was not written: {cause}")]
    Full {
        /// URL or path.
        endpoint: String,
        /// The key.
        key: String,
        /// What the store says.
        cause: String,
    },
    /// The key stands in an operator's document, which is not the store's to change.
    #[error("{endpoint}: {key} is set by the document {document}: change it there")]
    InDocument {
        /// Path of the store.
        endpoint: String,
        /// The key.
        key: String,
        /// The document's file.
        document: String,
    },
    /// What is stored cannot be read.
    #[error("{endpoint}: {cause}")]
    Corrupt {
        /// URL or path.
        endpoint: String,
        /// What is wrong, and the way out.
        cause: String,
    },
    /// This backend, as configured, cannot do that.
    #[error("{endpoint}: cannot {what}: {why}")]
    Unsupported {
        /// URL or path.
        endpoint: String,
        /// What was asked for.
        what: &'static str,
        /// Why not.
        why: &'static str,
    },
    /// The request is not one that the store accepts.
    #[error("{endpoint}: {key:?} refused: {cause}")]
    Refused {
        /// URL or path.
        endpoint: String,
        /// The key.
        key: String,
        /// What the store says.
        cause: String,
    },
}

impl StoreError {
    /// Whether a write that ended with this error may have happened all the same.
    pub fn is_unsure(&self) -> bool {
        matches!(self, Self::Unavailable { .. } | Self::Timeout { .. })
    }
}
