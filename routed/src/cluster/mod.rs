//! The cluster as this node sees it, and this node's part in it: registration, sign of life, block claims, the
//! node file (DESIGN: the cluster store).
//!
//! | module | what |
//! |---|---|
//! | [`core`] | the pure core: one step per event |
//! | [`event`] | events and actions |
//! | [`table`] | the store's contents, decoded |
//! | [`claims`], [`pools`] | who wins a block; which pools can be used, which block comes next |
//! | [`own`] | the life of this node's blocks |
//! | [`flannel`] | flannel's nodes beside ours, on flannel's own keys |
//! | [`give_back`] | blocks that go back to their pool |
//! | [`register`] | record, sign of life, conflicts of installations |
//! | [`writes`] | writes under way |
//! | [`publish`] | the view and the node file |
//! | [`shell`] | [`run`]: store, files and time round the core |
//!
//! What it does not do: routes (`dataplane`), sessions (`bgp`), leases (`podway-ipam`). It never ends because of
//! the store: what was known stays in force, and everything is tried again.

mod claims;
mod core;
mod event;
mod flannel;
mod give_back;
mod own;
mod pools;
mod publish;
mod register;
mod shell;
mod table;
#[cfg(test)]
mod tests;
mod usage;
mod writes;

use std::collections::BTreeMap;
use std::path::PathBuf;

use podway_model::ids::{Asn, BootId, InstanceId, NodeName, WireguardKey};

pub(crate) use shell::run;

/// Who this node is, and where its files are.
#[derive(Debug, Clone)]
pub(crate) struct Identity {
    /// Its name.
    pub(crate) node: NodeName,
    /// This installation.
    pub(crate) instance_id: InstanceId,
    /// This boot.
    pub(crate) boot_id: BootId,
    /// Labels, for pool and peer selectors.
    pub(crate) labels: BTreeMap<String, String>,
    /// AS number, where it is not the cluster's.
    pub(crate) asn: Option<Asn>,
    /// Public key of its WireGuard device, where its kernel has WireGuard.
    pub(crate) wireguard_key: Option<WireguardKey>,
    /// Version of Podway, for people.
    pub(crate) version: String,
    /// The node file ([`podway_model::names::NODE_FILE`]).
    pub(crate) node_file: PathBuf,
    /// The folder of address leases ([`podway_model::names::IPAM_DIR`]).
    pub(crate) ipam_dir: PathBuf,
}

/// Why this node must not take part: shown, then the process ends.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Refusal(pub(crate) String);
