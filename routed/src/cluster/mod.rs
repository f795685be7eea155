//! The cluster as this node sees it, and this node's part in it: registration, sign of life, block claims, the
//! node file.
//!
//! A pure core and a thin shell ([`run`]).

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::path::PathBuf;
use std::sync::Arc;

use podway_model::ids::{Asn, BootId, InstanceId, NodeName};
use podway_store::Store;
use tokio::sync::watch;

use crate::view::{ClusterView, LocalFacts};

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

/// Runs for the life of the process; publishes every change of the view. Ends only with a [`Refusal`].
pub(crate) async fn run(
    identity: Identity,
    store: Arc<dyn Store>,
    facts: watch::Receiver<Option<LocalFacts>>,
    view: watch::Sender<Arc<ClusterView>>,
) -> Result<Infallible, Refusal> {
    let _ = (identity, store, facts, view);
    std::future::pending().await
}
