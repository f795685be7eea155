//! What goes into the core and what comes out.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use podway_model::flannel::Prefix;
use podway_model::node_file::NodeFile;
use podway_model::ways::Ways;
use podway_store::{Event as StoreEvent, Expect, Guard, StoreError, Written};

use super::Refusal;
use crate::view::LocalFacts;

/// What the core is told.
#[derive(Debug, Clone)]
pub(crate) enum Event {
    /// From the watch of the store.
    Store(StoreEvent),
    /// From the watch of flannel's keys below this prefix, or why they cannot be had.
    Flannel(Prefix, Result<StoreEvent, String>),
    /// The kernel's facts, when they change.
    Facts(LocalFacts),
    /// By which ways packets go, when it changes.
    Ways(Ways),
    /// How full this node's blocks are, when it changes.
    Usage {
        /// By block.
        blocks: BTreeMap<IpNet, Usage>,
        /// [`NodeFile::generation`] of the file that stood when the leases were looked at, under the address lock:
        /// blocks that are not active in it cannot have got a lease since. 0: there was none of this boot.
        generation: u64,
        /// Addresses that pods hold and that are in none of these blocks.
        elsewhere: Vec<IpAddr>,
    },
    /// A write has ended.
    Written {
        /// [`Write::id`].
        id: u64,
        /// How.
        result: Result<Written, StoreError>,
    },
    /// The node file was written, or could not be.
    NodeFileWritten {
        /// [`NodeFile::generation`] of the file.
        generation: u64,
        /// The error, for people.
        error: Option<String>,
    },
    /// The wall clock, once in a while: seconds since 1970.
    Clock(u64),
    /// The deadline has come.
    Tick,
}

/// How full a block is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Usage {
    /// Addresses that can be leased without breaking quarantine.
    pub(crate) available: u64,
    /// Addresses that pods hold.
    pub(crate) leased: u64,
    /// Free addresses that pods held not long ago.
    pub(crate) quarantined: u64,
    /// Whether a pod holds the block's first address, so that it cannot become the node's.
    pub(crate) first_leased: bool,
}

impl Usage {
    /// Whether the block can go back to its pool: nobody holds an address, and none is in quarantine.
    pub(crate) fn is_idle(self) -> bool {
        self.leased == 0 && self.quarantined == 0
    }
}

/// What the core wants done.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Action {
    /// Write to the store; answer with [`Event::Written`].
    Write(Write),
    /// Replace the node file, under the address lock; answer with [`Event::NodeFileWritten`].
    WriteNodeFile(Box<NodeFile>),
    /// Forget what the leases remember about the free addresses of a block: it went back to its pool.
    ForgetLeases(IpNet),
    /// The view has changed: hand it out.
    Publish,
    /// This node must not take part. The last action ever.
    Refuse(Refusal),
    /// Tell people, once.
    Report(Severity, String),
}

/// How loud a report is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Severity {
    /// Something was done.
    Info,
    /// Somebody should look.
    Warn,
}

/// One write to the store, with its condition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Write {
    /// Tells it from other writes.
    pub(crate) id: u64,
    /// The key.
    pub(crate) key: String,
    /// What to do.
    pub(crate) operation: Operation,
}

/// What a write does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Operation {
    /// Put.
    Put(Vec<u8>, Expect),
    /// Put, if nothing has changed of other keys either.
    PutGuarded(Vec<u8>, Expect, Vec<Guard>),
    /// Put, and gone after so many seconds unless it is put again.
    PutFor(Vec<u8>, Expect, u32),
    /// Put, bound to the process's lease.
    PutLeased(Vec<u8>, Expect),
    /// Delete what was last changed at this revision.
    Delete(i64),
}
