//! Address leases of one node: a pure allocator, and the thin shell that keeps its state on disk.
//!
//! | module | what |
//! |---|---|
//! | [`lease`] | the vocabulary: attachment, request, lease, grant |
//! | [`ledger`] | pure: who holds what, what is free and since when, which address comes next |
//! | [`stale`] | pure: which leases nobody will ever end |
//! | [`rebuild`] | pure: leases from what the pods' interfaces and records say, after the journal was lost |
//! | [`journal`] | pure: the on-disk form, line by line, with its checksums |
//! | [`store`] | io: one lock, one file, the order of writes |
//! | [`node`] | io: reads the node file and the boot id |
//!
//! Used by the CNI plugin (leases), by `routed` (how full is a block; the address lock while it rewrites the
//! node file) and by `podwayctl` (shows what is there).
//!
//! # What it promises
//!
//! - **No address twice.** A lease is in the file before anybody hears of it (test
//!   `never_two_leases_of_one_address`).
//! - **No address lost.** A process killed at any byte of a write leaves a file that reads as before that write
//!   or as after it (test `every_prefix_of_a_write_is_before_or_after`).
//! - **Dual stack is all or nothing.** Both addresses of a pod stand in one line of the file.
//! - **Least recently used first**, clean before dirty, out of quarantine before in quarantine
//!   (test `order_of_choice`).
//! - **A lease of another boot means nothing**: the file names its boot, and another boot's file is replaced.
//!
//! No daemon is asked, nothing remote is waited for, nothing is synced to a disk: the folder is on tmpfs, because a
//! lease ends with the machine's run just as the pod does.
//!
//! # Example
//!
//! ```no_run
//! use std::path::Path;
//! use podway_ipam::{Attachment, LeaseStore, Request, node, store};
//! use podway_model::names;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let boot = node::read_boot_id(Path::new(names::BOOT_ID_FILE))?;
//! let mut leases = LeaseStore::open(Path::new(names::IPAM_DIR), &boot)?; // holds the lock until dropped
//! let file = node::read_node_file(Path::new(names::NODE_FILE), &boot)?; // under the lock: see `node`
//! let request = Request::new(Attachment::new("c1".parse()?, "eth0".parse()?), "podway".parse()?);
//! let grant = leases.lease(&file, &request, store::since_boot())?;
//! drop(leases);
//! // Before the link goes up: delete conntrack entries of `grant.dirty`.
//! # Ok(()) }
//! ```

pub mod journal;
pub mod lease;
pub mod ledger;
pub mod node;
pub mod rebuild;
pub mod stale;
pub mod store;

pub use lease::{Attachment, Condition, Family, Grant, Lease, LeaseKind, LeasedAddress, Request};
pub use ledger::{BlockUsage, Ledger, PoolUsage, Refusal};
pub use node::{NodeFileError, read_boot_id, read_node_file};
pub use store::{AddressLock, LeaseError, LeaseStore, StoreError};
