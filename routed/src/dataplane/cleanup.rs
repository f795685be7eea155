//! `routed --cleanup`: takes everything of ours out of the kernel.

use std::path::Path;

use podway_kern::KernelError;
use podway_kern::fib::{Kernel, NetlinkKernel};

use super::changeover::Times;
use super::desired::Desired;
use super::kept::Kept;
use super::reconcile::Reconciler;
use super::tables::Tables;

/// What could not be removed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CleanupError {
    /// The kernel cannot be asked.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// It refused.
    #[error("not everything could be removed: {}", .0.join("; "))]
    Left(Vec<String>),
}

/// Removes the routes, next hops, devices and tables that `routed` makes, and forgets which routings were in force
/// (`state`), a reverse path filter that was loosened for a change of backend put back. Pods' links and routes stay: they
/// belong to the CNI plugin; so do sysctls, which others may have come to need.
pub(crate) fn cleanup(state: &Path) -> Result<(), CleanupError> {
    let mut left = remove(NetlinkKernel::open()?);
    left.extend(Kept::read(state, Times::default()).forget(&mut NetlinkKernel::open()?));
    left.extend(Tables::open()?.remove());
    if left.is_empty() { Ok(()) } else { Err(CleanupError::Left(left)) }
}

/// Returns what could not be removed.
fn remove(kernel: impl Kernel) -> Vec<String> {
    let nothing = Desired { prune: true, ..Desired::default() };
    futures::executor::block_on(Reconciler::new(kernel).reconcile(&nothing)).failures
}
