//! The cluster store: the only channel between nodes, besides BGP itself. One trait, [`Store`]; three backends.
//!
//! | backend | module | for |
//! |---|---|---|
//! | etcd | `etcd` | clusters: TLS, user and password, several endpoints |
//! | file | `file` | a single node, a lab or a static cluster: operator documents and a folder of keys, watched |
//! | fake | [`fake`] | tests: in memory, deterministic, with fault injection |
//!
//! Keys are text relative to the store's prefix ([`podway_model::keys::Key`]), values are bytes
//! ([`podway_model::cluster::decode`]). Nothing here looks into a value. A key that begins with a slash is a whole one,
//! somebody else's outside of the prefix: only where [`Store::takes_outside`] says so.
//!
//! What a consumer can rely on:
//! - [`open`] never waits for a server. A watch retries for ever and says so once ([`Event::Unavailable`]).
//! - A watch begins with a [`Event::Snapshot`], the whole of its prefixes. Another one may come at any time
//!   (history compacted, store restored from a backup): the consumer compares it with what it had.
//! - Changes come in the order of their revisions within one prefix. What a slow consumer has not taken yet is
//!   kept once per key, never more.
//! - A write that fails with [`StoreError::is_unsure`] may have happened.
//!
//! What is not here: which keys exist and what they mean (`podway-model`), and decisions about them (`routed`), but
//! for the freeing of nodes that are gone: [`release_node`], and [`controller`], which calls it.

mod coalesce;
#[cfg(test)]
mod conformance;
pub mod controller;
mod error;
mod etcd;
pub mod fake;
mod file;
mod open;
mod release;
mod retry;

use async_trait::async_trait;
use tokio::sync::mpsc;

pub use error::{StoreError, TAKES_NO_MORE};
pub use open::{open, require};
pub use release::{HOLD_SECONDS, Hold, ReleaseReport, release_block, release_node};
pub use retry::Backoff;

/// A key with its value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Key, relative to the store's prefix.
    pub key: String,
    /// Value as stored.
    pub value: Vec<u8>,
    /// Revision at which the key came to be. Unique per key and growing: who came first has the lower one.
    /// 0: the entry stands in an operator's document and is not the store's to change.
    pub create_revision: i64,
    /// Revision of the last change. 0 as above.
    pub mod_revision: i64,
}

/// One change of one key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// The key has this value now.
    Put(Entry),
    /// The key is gone.
    Delete {
        /// The key.
        key: String,
    },
}

impl Change {
    /// The key that changed.
    pub fn key(&self) -> &str {
        match self {
            Self::Put(entry) => &entry.key,
            Self::Delete { key } => key,
        }
    }
}

/// What a watch tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// All that is under the watched prefixes; what is not in it is gone.
    Snapshot {
        /// Every entry, sorted by key.
        entries: Vec<Entry>,
        /// Revision that it reflects.
        revision: i64,
    },
    /// What changed since the event before; at most one change per key.
    Changes {
        /// The changes.
        changes: Vec<Change>,
        /// Revision that the watcher has reached with them.
        revision: i64,
    },
    /// The store cannot be reached or read; what was told before stays in force.
    Unavailable {
        /// Endpoint and cause, for people.
        reason: String,
    },
    /// It can again. Changes that were missed follow.
    Available,
    /// Parts of the store that cannot be used, each with its place and the reason, and what keeps it from taking
    /// writes; the last good state stays in force, the rest is up to date. Always the whole list; empty when all is
    /// well again.
    Problems {
        /// One line each.
        problems: Vec<String>,
    },
}

/// The receiving end of a watch. Dropping it ends the watcher's task.
#[derive(Debug)]
pub struct Watch {
    events: mpsc::Receiver<Event>,
}

impl Watch {
    /// The next event. Cancel-safe. `None` only when the runtime is going down.
    pub async fn next(&mut self) -> Option<Event> {
        self.events.recv().await
    }
}

/// What a backend can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capabilities {
    /// Values can be written.
    pub writable: bool,
    /// [`Store::put_leased`] works: a key that goes when its process does.
    pub leases: bool,
    /// Several nodes can share it.
    pub shared: bool,
}

/// Outcome of a conditional write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Written {
    /// Done, at this revision.
    Done {
        /// The new revision of the store.
        revision: i64,
    },
    /// The condition did not hold; nothing was written.
    Refused {
        /// What stands there instead.
        found: Option<Entry>,
    },
}

/// What must hold for a conditional write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expect {
    /// The key does not exist.
    Absent,
    /// The key exists and was last changed at this revision.
    Revision(i64),
}

impl Expect {
    /// Whether it holds for what stands at the key.
    pub(crate) fn holds(self, found: Option<&Entry>) -> bool {
        match self {
            Self::Absent => found.is_none(),
            Self::Revision(revision) => found.is_some_and(|entry| entry.mod_revision == revision),
        }
    }
}

/// A second condition of a write, on another key than the one that is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Guard {
    /// The other key.
    pub key: String,
    /// What must hold for it.
    pub expect: Expect,
}

/// All that is under a prefix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listing {
    /// Every entry, sorted by key.
    pub entries: Vec<Entry>,
    /// Revision that it reflects.
    pub revision: i64,
}

/// A cluster store. Each call makes one attempt (reads: one per endpoint) and is bounded in time by the backend;
/// who wants to try again does so with [`Backoff`].
#[async_trait]
pub trait Store: Send + Sync + std::fmt::Debug {
    /// Backend and endpoints, for people: `etcd at https://a:2379, https://b:2379`.
    fn describe(&self) -> String;

    /// What this backend can do, as configured.
    fn capabilities(&self) -> Capabilities;

    /// Watches all keys that begin with one of `prefixes` (`nodes/`) or are one of them (`config`). Returns at
    /// once; must be called within a tokio runtime.
    fn watch(&self, prefixes: &[&str]) -> Watch;

    /// One key; `None` if it is not there.
    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError>;

    /// All keys that begin with `prefix`, which ends with a slash; all keys for an empty one.
    async fn list(&self, prefix: &str) -> Result<Listing, StoreError>;

    /// Writes whatever stands there. Answers the store's new revision.
    async fn put(&self, key: &str, value: &[u8]) -> Result<i64, StoreError>;

    /// Writes if `expect` holds.
    async fn put_if(&self, key: &str, value: &[u8], expect: Expect) -> Result<Written, StoreError>;

    /// Writes if `expect` holds and each of `guards` holds for its key, judged and written at one moment. A refusal says
    /// what stands at the key that was to be written, which may be what was expected.
    async fn put_guarded(
        &self,
        key: &str,
        value: &[u8],
        expect: Expect,
        guards: &[Guard],
    ) -> Result<Written, StoreError>;

    /// Writes if `expect` holds, bound to this process's lease: the key goes when the process has been gone for
    /// the lease's time. The lease is made on first use and kept alive in the background. If it is lost all the
    /// same, the key goes, a watch tells, and the next call makes a new lease.
    async fn put_leased(&self, key: &str, value: &[u8], expect: Expect) -> Result<Written, StoreError>;

    /// Writes if `expect` holds, bound to a lease of its own that nobody keeps alive: the key goes after `seconds`
    /// unless it is written again.
    async fn put_for(
        &self,
        key: &str,
        value: &[u8],
        expect: Expect,
        seconds: u32,
    ) -> Result<Written, StoreError>;

    /// Whether keys that begin with `prefix`, which begins with a slash, can be read and written as whole keys, outside
    /// of the store's own; or why not.
    fn takes_outside(&self, prefix: &str) -> Result<(), String>;

    /// Removes a key. Answers whether it was there.
    async fn delete(&self, key: &str) -> Result<bool, StoreError>;

    /// Removes a key if it was last changed at `mod_revision`.
    async fn delete_if(&self, key: &str, mod_revision: i64) -> Result<Written, StoreError>;
}

/// Whether `key` is under one of the prefixes: begins with one that ends with a slash (or is empty), or is one.
pub(crate) fn is_watched(prefixes: &[String], key: &str) -> bool {
    prefixes.iter().any(
        |prefix| {
            if is_folder(prefix) { key.starts_with(prefix.as_str()) } else { key == prefix }
        },
    )
}

/// Whether a prefix names all keys below it, not one key.
pub(crate) fn is_folder(prefix: &str) -> bool {
    prefix.is_empty() || prefix.ends_with('/')
}
