//! The shell round the BGP speaker of `podway-bgp`: listener, connections, one task with one sleep that owns the
//! speaker.
//!
//! ```text
//!  ClusterView ─┐                    ┌─▶ BgpRoutes ──▶ dataplane
//!  LocalFacts ──┼─▶ run (Speaker) ───┤
//!  Query ───────┘    ▲ bytes ▼       └─▶ bgp-peers.json (who was up, for graceful restart)
//!                 TCP connections
//! ```
//!
//! | file | what |
//! |---|---|
//! | `mod.rs` | when a speaker runs, and who asks |
//! | `desired.rs` | what it shall do: a pure function of the cluster |
//! | `topology.rs` | the other nodes as neighbours |
//! | `announced.rs` | service ranges and pools, for peers outside |
//! | `peers.rs` | neighbours outside the cluster |
//! | `fallback.rs` | the claims in the store, while no reflector is up |
//! | `shell.rs` | events in, actions out |
//! | `connection.rs` | sockets |
//! | `writer.rs` | what the kernel takes at once, and what waits |
//! | `transport.rs` | signatures, TTL security, class of service |
//! | `bfd.rs` | the thread that watches neighbours by BFD |
//! | `bmp.rs` | monitoring stations |
//! | `echo.rs` | asks other nodes' kernels whether they live |
//! | `peers_file.rs` | who was up before a restart |
//! | `standalone/` | the speaker alone: `routed speaker` |
//! | `answers.rs` | its state for the admin socket |
//!
//! At the end of the process connections are closed without a NOTIFICATION, so that peers keep our routes until we are
//! back (RFC 4724); when the backend has become another one, a Cease ends them and the routes with them. That is when no
//! route in any kernel is BGP's any more: the data plane says so (`dataplane::changeover`).

mod announced;
#[cfg(test)]
mod announced_tests;
mod answers;
mod bfd;
mod bmp;
mod connection;
mod desired;
mod echo;
mod fallback;
#[cfg(test)]
mod operator_tests;
mod peers;
mod peers_file;
mod shell;
pub(crate) mod standalone;
#[cfg(test)]
mod tests;
mod topology;
mod transport;
#[cfg(test)]
mod transport_tests;
mod writer;

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use podway_bgp::AfterStop;
use podway_bgp::topology::{Chooser, Rule, View};
use podway_daemon::Shutdown;
use podway_model::cluster::{Backend, BgpConfig};
use podway_model::ids::{BootId, NodeName};
use podway_model::socket::{
    BgpPathStatus, BgpPeerStatus, BgpRouteStatus, BgpStationStatus, RoutedReply, RoutedRequest,
};
use tokio::sync::{mpsc, oneshot, watch};

use crate::view::{BgpRoutes, ClusterView, LocalFacts};
use desired::desired_bgp;
use peers_file::PeersFile;
use shell::{Shell, Wake};

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
    /// Settings under which sessions are kept, where the backend is not bgp: a change from it is under way.
    pub(crate) kept: watch::Receiver<Option<BgpConfig>>,
    /// Routes for the kernel. `synced` is true where the backend is not bgp.
    pub(crate) routes: watch::Sender<Arc<BgpRoutes>>,
    /// Questions from the admin socket.
    pub(crate) queries: mpsc::Receiver<Query>,
    /// The wish to end.
    pub(crate) shutdown: Shutdown,
}

/// A question from the admin socket.
pub(crate) enum Query {
    /// The sessions.
    Peers(oneshot::Sender<Vec<BgpPeerStatus>>),
    /// Monitoring stations.
    Stations(oneshot::Sender<Vec<BgpStationStatus>>),
    /// The paths in the RIB.
    Routes(oneshot::Sender<Vec<BgpRouteStatus>>),
    /// What a neighbour has told; none: there is no such neighbour.
    Received(IpAddr, oneshot::Sender<Option<Vec<BgpPathStatus>>>),
    /// What a neighbour has been told.
    Advertised(IpAddr, oneshot::Sender<Option<Vec<BgpPathStatus>>>),
    /// Ask a neighbour for its table again; the answer: whether there is such a neighbour, with a session.
    Refresh(IpAddr, oneshot::Sender<bool>),
    /// Begin a neighbour's session anew; the answer: whether there is such a neighbour.
    Reset(IpAddr, String, oneshot::Sender<bool>),
    /// What of the operator's wishes is not followed, and why.
    Problems(oneshot::Sender<Vec<String>>),
    /// The topology that this node sees, in words; none: another backend.
    Topology(oneshot::Sender<Option<String>>),
}

impl Bgp {
    /// Runs until the end of the process; then closes all connections so that peers keep our routes.
    pub(crate) async fn run(mut self) {
        let mut shell = None;
        let mut problems = vec![];
        let mut moved = true;
        let mut topology = Seen::new(self.node.clone());
        loop {
            if !moved && topology.is_due(shell.as_mut()) {
                moved = self.look(&mut topology, shell.as_ref());
            }
            if std::mem::take(&mut moved) {
                self.follow(&mut shell, &mut problems, &mut topology).await;
            }
            self.publish(shell.as_mut());
            let deadline = topology.deadline();
            // Every branch is cancel-safe: what it took it returns. A closed channel ends the process elsewhere.
            tokio::select! {
                () = self.shutdown.requested() => break,
                Ok(()) = self.view.changed() => moved = true,
                Ok(()) = self.facts.changed() => moved = true,
                Ok(()) = self.kept.changed() => moved = true,
                Some(query) = self.queries.recv() => match query {
                    Query::Problems(asker) => {
                        let keys = shell.as_ref().map(Shell::problems).unwrap_or_default();
                        let _ = asker.send(problems.iter().cloned().chain(keys).collect());
                    }
                    Query::Topology(asker) => {
                        let _ = asker.send(shell.as_ref().map(|_| topology.words()));
                    }
                    query => answer(query, shell.as_mut()),
                },
                () = at(deadline) => {}
                wake = next(shell.as_mut()) => if let Some(shell) = &mut shell { shell.handle(wake) },
            }
        }
        if let Some(shell) = shell {
            shell.stop(AfterStop::Keep).await;
        }
    }

    /// Starts, reconfigures or stops the speaker as the cluster wants it.
    async fn follow(&mut self, shell: &mut Option<Shell>, problems: &mut Vec<String>, topology: &mut Seen) {
        let view = Arc::clone(&self.view.borrow_and_update());
        let view = as_kept(view, self.kept.borrow_and_update().as_ref());
        let facts = self.facts.borrow_and_update().clone();
        let Some(facts) = facts.filter(|_| view.synced) else { return };
        topology.follow(&view, &facts);
        let _ = topology.look(&view, &facts, shell.as_ref());
        let mut desired = desired_bgp(&view, &self.node, &facts, &topology.view);
        if let (Some(shell), Some(desired)) = (&shell, &mut desired) {
            desired.keep_unfollowed(shell.config());
        }
        let clash = |clash: String| format!("{clash}: they cannot have a BGP session");
        let found: Vec<String> = desired.as_ref().map_or(vec![], |desired| {
            desired::router_id_clashes(&view).into_iter().map(clash).chain(desired.problems.clone()).collect()
        });
        if found != *problems {
            found.iter().filter(|new| !problems.contains(new)).for_each(|new| tracing::error!("{new}"));
            *problems = found;
        }
        match (shell.as_mut(), desired) {
            (Some(shell), Some(desired)) => shell.follow(desired),
            (None, Some(desired)) => {
                let file = PeersFile::new(self.peers_file.clone(), self.boot_id.clone());
                let restarted = file.read();
                tracing::info!(asn = %desired.config.asn, neighbours = desired.config.neighbours.len(), "BGP begins");
                *shell = Some(Shell::new(desired, restarted, Some(file)));
            }
            (Some(_), None) => {
                if let Some(shell) = shell.take() {
                    tracing::info!("BGP ends: the backend is another one");
                    shell.stop(AfterStop::Drop).await;
                }
            }
            (None, None) => {}
        }
    }

    /// Looks at the topology again; true: it is another one.
    fn look(&self, topology: &mut Seen, shell: Option<&Shell>) -> bool {
        let (view, facts) = (Arc::clone(&self.view.borrow()), self.facts.borrow().clone());
        let view = as_kept(view, self.kept.borrow().as_ref());
        facts.is_some_and(|facts| topology.look(&view, &facts, shell))
    }

    /// Tells the data plane, if there is something new.
    fn publish(&self, shell: Option<&mut Shell>) {
        let nothing = || {
            let view = self.view.borrow();
            let synced = view.synced && view.config.backend != Backend::Bgp;
            Arc::new(BgpRoutes { synced, ..BgpRoutes::default() })
        };
        let routes = shell.map_or_else(nothing, Shell::routes);
        self.routes.send_if_modified(|published| {
            let changed = !Arc::ptr_eq(published, &routes) && *published != routes;
            if changed {
                *published = routes;
            }
            changed
        });
    }
}

/// The topology as this node sees it, and when it looks again.
struct Seen {
    chooser: Chooser,
    rule: Rule,
    began: tokio::time::Instant,
    view: View,
}

impl Seen {
    fn new(node: NodeName) -> Self {
        let (chooser, began) = (Chooser::new(node), tokio::time::Instant::now());
        Self { chooser, rule: Rule::Mesh, began, view: View::Mesh }
    }

    /// Nodes or settings have changed.
    fn follow(&mut self, view: &ClusterView, facts: &LocalFacts) {
        self.rule = topology::rule(view);
        let node = self.chooser.node().clone();
        self.chooser.follow(self.rule.clone(), topology::members(view, &node, facts));
    }

    /// Sessions have changed, or time has passed; true: another topology is to be followed.
    fn look(&mut self, view: &ClusterView, facts: &LocalFacts, shell: Option<&Shell>) -> bool {
        let is_up = |other: &NodeName| {
            let address = topology::address_of(view, facts, other);
            address.zip(shell).is_some_and(|(address, shell)| shell.speaker().is_established(address))
        };
        let now = self.chooser.view(self.began.elapsed(), is_up);
        let changed = now != self.view;
        if changed && shell.is_some() {
            tracing::info!("BGP topology: {}; {} before", now.words(&self.rule), self.words());
        }
        self.view = now;
        changed
    }

    /// Whether there is a reason to look.
    fn is_due(&self, shell: Option<&mut Shell>) -> bool {
        let passed = self.deadline().is_some_and(|at| at <= tokio::time::Instant::now());
        shell.is_some_and(Shell::take_sessions_changed) || passed
    }

    fn deadline(&self) -> Option<tokio::time::Instant> {
        self.chooser.deadline().map(|at| self.began + at)
    }

    fn words(&self) -> String {
        self.view.words(&self.rule)
    }
}

/// Waits until then; none: for ever.
async fn at(deadline: Option<tokio::time::Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

/// The cluster with BGP as its backend for as long as sessions are kept.
fn as_kept(view: Arc<ClusterView>, kept: Option<&BgpConfig>) -> Arc<ClusterView> {
    match kept {
        Some(bgp) if view.config.backend != Backend::Bgp => {
            let mut view = (*view).clone();
            (view.config.backend, view.config.bgp) = (Backend::Bgp, bgp.clone());
            Arc::new(view)
        }
        _ => view,
    }
}

/// What the speaker waits for; without one, nothing.
async fn next(shell: Option<&mut Shell>) -> Wake {
    match shell {
        Some(shell) => shell.wake().await,
        None => std::future::pending().await,
    }
}

/// Answers a question about BGP from a socket; none: it is about something else.
pub(crate) async fn reply(queries: &mpsc::Sender<Query>, request: RoutedRequest) -> Option<RoutedReply> {
    let unknown = |peer| RoutedReply::Failed { reason: format!("there is no BGP peer {peer}") };
    let paths = |peer, paths: Option<Vec<BgpPathStatus>>| match paths {
        Some(paths) => RoutedReply::BgpPaths { paths },
        None => unknown(peer),
    };
    let reply = match request {
        RoutedRequest::Status | RoutedRequest::IpamCheck { .. } | RoutedRequest::IpamRelease { .. } => {
            return None;
        }
        RoutedRequest::BgpPeers => {
            ask(queries, Query::Peers).await.map(|peers| RoutedReply::BgpPeers { peers })
        }
        RoutedRequest::BgpStations => {
            ask(queries, Query::Stations).await.map(|stations| RoutedReply::BgpStations { stations })
        }
        RoutedRequest::BgpRoutes => {
            ask(queries, Query::Routes).await.map(|routes| RoutedReply::BgpRoutes { routes })
        }
        RoutedRequest::BgpReceived { peer } => {
            ask(queries, |asker| Query::Received(peer, asker)).await.map(|found| paths(peer, found))
        }
        RoutedRequest::BgpAdvertised { peer } => {
            ask(queries, |asker| Query::Advertised(peer, asker)).await.map(|found| paths(peer, found))
        }
        RoutedRequest::BgpRefresh { peer } => {
            ask(queries, |asker| Query::Refresh(peer, asker)).await.map(|found| match found {
                true => RoutedReply::Done,
                false => RoutedReply::Failed { reason: format!("there is no session with {peer}") },
            })
        }
        RoutedRequest::BgpReset { peer, words } => {
            let found = ask(queries, |asker| Query::Reset(peer, words, asker)).await;
            found.map(|found| if found { RoutedReply::Done } else { unknown(peer) })
        }
    };
    Some(reply.unwrap_or_else(|| RoutedReply::Failed { reason: "BGP is about to end".to_owned() }))
}

/// Asks the task that owns the speaker; none: it has ended.
pub(crate) async fn ask<T>(
    queries: &mpsc::Sender<Query>,
    query: impl FnOnce(oneshot::Sender<T>) -> Query,
) -> Option<T> {
    let (send, receive) = oneshot::channel();
    queries.send(query(send)).await.ok()?;
    receive.await.ok()
}

/// The asker may have gone: then nobody needs the answer.
fn answer(query: Query, shell: Option<&mut Shell>) {
    match query {
        Query::Peers(asker) => {
            let peers = shell
                .map(|shell| answers::peers(shell.speaker(), shell.now(), shell.bfd(), shell.fate()))
                .unwrap_or_default();
            let _ = asker.send(peers);
        }
        Query::Stations(asker) => {
            let _ = asker.send(shell.map(|shell| shell.stations()).unwrap_or_default());
        }
        Query::Routes(asker) => {
            let _ = asker.send(shell.map(|shell| answers::routes(shell.speaker())).unwrap_or_default());
        }
        Query::Received(peer, asker) => {
            let _ = asker.send(shell.and_then(|shell| answers::received(shell.speaker(), peer)));
        }
        Query::Advertised(peer, asker) => {
            let _ = asker.send(shell.and_then(|shell| answers::advertised(shell.speaker(), peer)));
        }
        Query::Reset(peer, words, asker) => {
            let _ = asker.send(shell.is_some_and(|shell| shell.reset(peer, words)));
        }
        Query::Topology(asker) => {
            let _ = asker.send(None);
        }
        Query::Problems(asker) => {
            let _ = asker.send(shell.map(|shell| shell.problems()).unwrap_or_default());
        }
        Query::Refresh(peer, asker) => {
            let _ = asker.send(shell.is_some_and(|shell| shell.refresh(peer)));
        }
    }
}
