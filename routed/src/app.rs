//! Wires `routed` together.
//!
//! ```text
//!                ┌────────────┐ ClusterView ┌───────────┐
//!   store ◀─────▶│  cluster   ├──────┬─────▶│ dataplane │──▶ kernel
//!                └────▲───────┘      │      └─▲───▲───┬─┘
//!                     │ LocalFacts   │        │   │   │ DataplaneStatus
//!                ┌────┴───────┐      │        │   │   ▼
//!   kernel ─────▶│  underlay  ├──────┼────────┘   │  summary ──▶ readiness, metrics
//!                └────────────┘      ▼            │   ▲
//!                                ┌───────┐ BgpRoutes  │
//!   peers ◀─────────────────────▶│  bgp  ├────────┘   │
//!                                └───▲───┘            │
//!                                    │ Query       ┌──┴─────┐
//!                                    └─────────────┤ socket │◀── podwayctl
//!                                                  └────────┘
//! ```
//!
//! Six tasks in one thread (cluster, underlay, bgp, dataplane, summary, socket) and the health server. Values
//! travel in `watch` channels: only the latest counts, and nobody can fall behind. No task may end: the end of one
//! is the end of the process, and nothing in the kernel changes by it.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, Result};
use podway_daemon::admin::AdminSocket;
use podway_daemon::{Process, Shutdown};
use podway_ipam::LeaseStore;
use podway_model::names;
use podway_model::socket::{RoutedReply, RoutedRequest};
use tokio::sync::{mpsc, watch};

use crate::bgp::{Bgp, Query};
use crate::cluster::Identity;
use crate::dataplane::changeover::Times;
use crate::dataplane::{DataplaneStatus, Kept, Told};
use crate::metrics::Metrics;
use crate::status::Inputs;
use crate::underlay::UnderlayStatus;
use crate::view::{BgpRoutes, ClusterView, LocalFacts};
use crate::{cluster, dataplane, identity, ipam, status, underlay};

/// Questions to `bgp` under way: each is a person's, and each waits for its answer.
const QUERIES: usize = 16;

/// Opens what the daemon needs and starts its tasks.
pub(crate) async fn start(mut process: Process) -> Result<Process> {
    let section = process.config.node.clone();
    let wireguard = identity::wireguard_keys(Path::new(names::WIREGUARD_KEY_FILE));
    if let Err(problem) = &wireguard {
        // Told again, and as a problem, where it is needed.
        tracing::debug!("no WireGuard on this node: {problem}");
    }
    let identity = Identity {
        node: identity::node_name(section.name.as_ref())?,
        instance_id: identity::instance_id(Path::new(names::INSTANCE_FILE))?,
        boot_id: identity::boot_id(Path::new(names::BOOT_ID_FILE))?,
        labels: section.labels.clone(),
        asn: section.asn,
        wireguard_key: wireguard.as_ref().ok().map(|keys| keys.public),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        node_file: PathBuf::from(names::NODE_FILE),
        ipam_dir: PathBuf::from(names::IPAM_DIR),
    };
    let store = podway_store::open(&process.config.store)?;
    podway_store::require(store.as_ref())?;
    let socket = AdminSocket::bind(Path::new(names::ROUTED_SOCKET))
        .with_context(|| format!("listen on {}", names::ROUTED_SOCKET))?;

    let (view_out, view) = watch::channel(Arc::new(ClusterView::default()));
    let (facts_out, facts) = watch::channel(None);
    let (underlay_out, underlay_status) = watch::channel(UnderlayStatus::default());
    let (bgp_out, bgp_routes) = watch::channel(Arc::new(BgpRoutes::default()));
    let (dataplane_out, dataplane_status) = watch::channel(DataplaneStatus::default());
    let (ways_out, ways) = watch::channel(None);
    let kept = Kept::read(Path::new(names::ROUTING_FILE), Times::default());
    // Known before the configuration is: sessions of a change that is under way are kept over a restart.
    let (kept_out, kept_bgp) = watch::channel(kept.bgp());
    let (queries, asked) = mpsc::channel(QUERIES);

    let summary = Summary {
        identity: identity.clone(),
        view: view.clone(),
        facts: facts.clone(),
        underlay: underlay_status,
        dataplane: dataplane_status,
    };
    let bgp = Bgp {
        node: identity.node.clone(),
        boot_id: identity.boot_id.clone(),
        peers_file: Path::new(names::STATE_DIR).join("bgp-peers.json"),
        view: view.clone(),
        facts: facts.clone(),
        kept: kept_bgp,
        routes: bgp_out,
        queries: asked,
        shutdown: process.shutdown.clone(),
    };
    let shutdown = process.shutdown.clone();
    let tasks = &mut process.tasks;
    tasks.spawn("underlay", until(shutdown.clone(), underlay::run(section, facts_out, underlay_out)));
    tasks.spawn(
        "cluster",
        until(shutdown.clone(), cluster::run(identity.clone(), store, facts.clone(), ways, view_out)),
    );
    tasks.spawn("bgp", bgp.run());
    tasks.spawn(
        "dataplane",
        until(
            shutdown.clone(),
            dataplane::run(
                identity.node,
                view,
                facts,
                bgp_routes,
                wireguard.map(|keys| keys.private),
                kept,
                Told { status: dataplane_out, ways: ways_out, bgp: kept_out },
            ),
        ),
    );
    let metrics = Metrics::register(&mut process.metrics);
    let (waiting_for, remarks) = (process.waiting_for.clone(), process.remarks.clone());
    tasks.spawn("summary", until(shutdown.clone(), summary.clone().follow(metrics, waiting_for, remarks)));
    tasks.spawn(
        "socket",
        socket.serve(shutdown, move |question| answer(question, summary.clone(), queries.clone())),
    );
    Ok(process)
}

/// Runs a task that knows no end until the process is to end; then drops it.
async fn until<T, E>(mut shutdown: Shutdown, task: impl Future<Output = Result<T, E>>) -> Result<(), E> {
    tokio::select! {
        () = shutdown.requested() => Ok(()),
        end = task => end.map(drop),
    }
}

/// The receiving ends of what the parts publish.
#[derive(Clone)]
struct Summary {
    identity: Identity,
    view: watch::Receiver<Arc<ClusterView>>,
    facts: watch::Receiver<Option<LocalFacts>>,
    underlay: watch::Receiver<UnderlayStatus>,
    dataplane: watch::Receiver<DataplaneStatus>,
}

impl Summary {
    /// Looks at the latest of everything. The closure must not wait: the values are borrowed.
    fn with<T>(&self, look: impl FnOnce(&Inputs<'_>) -> T) -> T {
        let (view, facts) = (self.view.borrow(), self.facts.borrow());
        let (underlay, dataplane) = (self.underlay.borrow(), self.dataplane.borrow());
        look(&Inputs {
            node: &self.identity.node,
            instance_id: &self.identity.instance_id,
            view: &view,
            facts: facts.as_ref(),
            underlay: &underlay,
            dataplane: &dataplane,
        })
    }

    /// Keeps readiness and metrics up to date.
    async fn follow(
        mut self,
        metrics: Metrics,
        waiting_for: watch::Sender<Vec<String>>,
        remarks: watch::Sender<Vec<String>>,
    ) -> Result<()> {
        loop {
            let (missing, remarked) = self.with(|inputs| {
                metrics.set(inputs);
                (status::waiting_for(inputs), status::remarks(inputs))
            });
            remarks.send_replace(remarked);
            waiting_for.send_if_modified(|shown| {
                let changed = *shown != missing;
                if changed {
                    if missing.is_empty() {
                        tracing::info!("ready: in sync with the store, kernel programmed");
                    } else {
                        tracing::info!("waiting for {}", missing.join("; "));
                    }
                    *shown = missing;
                }
                changed
            });
            // Cancel-safe: `changed` only looks. A closed channel means that its task is gone, which ends the
            // process by itself.
            tokio::select! {
                change = self.view.changed() => change.context("cluster is gone")?,
                change = self.facts.changed() => change.context("underlay is gone")?,
                change = self.underlay.changed() => change.context("underlay is gone")?,
                change = self.dataplane.changed() => change.context("dataplane is gone")?,
            }
        }
    }
}

/// Answers one question on the socket.
async fn answer(question: RoutedRequest, summary: Summary, queries: mpsc::Sender<Query>) -> RoutedReply {
    match question {
        RoutedRequest::Status => {
            match LeaseStore::open(&summary.identity.ipam_dir, &summary.identity.boot_id) {
                Ok(leases) => {
                    let held: Vec<IpAddr> = leases.ledger().leases().flat_map(|lease| lease.ips()).collect();
                    drop(leases);
                    let mut status = summary.with(|inputs| status::status(inputs, &held));
                    status.topology = crate::bgp::ask(&queries, Query::Topology).await.flatten();
                    status
                        .problems
                        .extend(crate::bgp::ask(&queries, Query::Problems).await.unwrap_or_default());
                    RoutedReply::Status(Box::new(status))
                }
                Err(error) => RoutedReply::Failed { reason: error.to_string() },
            }
        }
        RoutedRequest::IpamCheck { mend } => {
            let identity = summary.identity;
            // It waits for the address lock.
            let check = tokio::task::spawn_blocking(move || {
                ipam::check(&identity, mend)
                    .map(|findings| RoutedReply::IpamFindings { node: identity.node, findings })
            });
            answered(check.await)
        }
        RoutedRequest::IpamRelease { address, force } => {
            let identity = summary.identity;
            let release = tokio::task::spawn_blocking(move || ipam::release(&identity, address, force));
            answered(release.await)
        }
        question => match crate::bgp::reply(&queries, question).await {
            Some(reply) => reply,
            None => RoutedReply::Failed { reason: "a question that nobody answers".to_owned() },
        },
    }
}

fn answered(done: Result<Result<RoutedReply, String>, tokio::task::JoinError>) -> RoutedReply {
    let reply = done.unwrap_or_else(|error| Err(error.to_string()));
    reply.unwrap_or_else(|reason| RoutedReply::Failed { reason })
}
