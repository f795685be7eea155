//! The shell: waits for something to happen, steps the core, does what it says.
//!
//! ```text
//!  store watch (queue: 1 event, coalesced by the store) ──┐
//!  inotify on /run/podway/endpoints (kernel's queue) ─────┤
//!  nftables monitor (kernel's queue) ─────────────────────┼─▶ task "policy": Core ─▶ kernel (blocking, µs to ms)
//!  dropped packets (kernel's queue, at most 10 a second) ─┤
//!  task "socket": questions (queue: 64) ──────────────────┤
//!  core's deadline: the only sleep ───────────────────────┘
//! ```
//!
//! Two tasks: `policy` owns the core and the kernel sockets; `socket` owns `/run/podway/policy.sock`, and each
//! question carries the channel for its answer. When the queue of questions is full, their askers wait.
//! Cancel-safety: every branch of the select takes from a queue that keeps what was not taken.

use std::collections::{BTreeMap, VecDeque};
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};
use podway_daemon::admin::AdminSocket;
use podway_daemon::{Process, Shutdown};
use podway_kern::nft::{Logged, NftLog};
use podway_model::ids::BootId;
use podway_model::names::{BOOT_ID_FILE, ENDPOINTS_DIR, POLICY_SOCKET};
use podway_model::socket::{PolicyReply, PolicyRequest};
use podway_policy::{DROP_GROUP, Limits};
use podway_store::Watch;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep_until};

use crate::core::{Action, Core, Event, Ticket, Why};
use crate::folder::Folder;
use crate::kernel::{Kernel, Monitor, Touch};
use crate::metrics::Metrics;
use crate::source;

/// Questions that may wait for the core; it takes one in microseconds.
const QUESTIONS: usize = 64;

/// Where the kernel tells the host name, which is the node's where the configuration has none.
const HOST_NAME: &str = "/proc/sys/kernel/hostname";

/// A question, and where its answer goes.
type Question = (PolicyRequest, oneshot::Sender<PolicyReply>);

/// Opens what the agent needs and starts its tasks.
pub(crate) async fn start(mut process: Process) -> Result<Process> {
    let boot = fs::read_to_string(BOOT_ID_FILE).with_context(|| format!("read {BOOT_ID_FILE}"))?;
    let boot: BootId = boot.trim().parse().with_context(|| BOOT_ID_FILE)?;
    let node = match &process.config.node.name {
        Some(name) => name.to_string(),
        None => {
            fs::read_to_string(HOST_NAME).with_context(|| format!("read {HOST_NAME}"))?.trim().to_lowercase()
        }
    };
    let kernel = Kernel::open()?;
    let store = podway_store::open(&process.config.store)?;
    let folder = Folder::watch(Path::new(ENDPOINTS_DIR)).with_context(|| format!("watch {ENDPOINTS_DIR}"))?;
    let socket =
        AdminSocket::bind(Path::new(POLICY_SOCKET)).with_context(|| format!("bind {POLICY_SOCKET}"))?;
    let (ask, questions) = mpsc::channel(QUESTIONS);
    let policy = Agent {
        started: Instant::now(),
        core: Core::new(boot, node, Limits::default(), kernel.table_flags()),
        monitor: kernel.monitor()?,
        drops: match NftLog::open(DROP_GROUP) {
            Ok(drops) => Some(drops),
            Err(error) => {
                tracing::warn!(%error, "dropped packets are not told: the kernel's packet log cannot be opened");
                None
            }
        },
        kernel,
        store: store.watch(&[source::PREFIX]),
        folder,
        questions,
        answers: BTreeMap::new(),
        next_ticket: 0,
        metrics: Metrics::register(&mut process.metrics),
        waiting_for: process.waiting_for.clone(),
    };
    tracing::info!(store = %store.describe(), "watching the store");
    process.tasks.spawn("policy", policy.run(process.shutdown.clone()));
    process.tasks.spawn("socket", serve(socket, ask, process.shutdown.clone()));
    Ok(process)
}

/// Hands every question over and waits for its answer.
async fn serve(socket: AdminSocket, ask: mpsc::Sender<Question>, shutdown: Shutdown) -> std::io::Result<()> {
    socket
        .serve(shutdown, |question: PolicyRequest| {
            let ask = ask.clone();
            async move {
                let (answer, answered) = oneshot::channel();
                let ending = || PolicyReply::Failed { reason: "policy-agent is ending".to_owned() };
                match ask.send((question, answer)).await {
                    Ok(()) => answered.await.unwrap_or_else(|_| ending()),
                    Err(_) => ending(),
                }
            }
        })
        .await
}

/// What the task `policy` owns.
struct Agent {
    started: Instant,
    core: Core,
    kernel: Kernel,
    monitor: Monitor,
    /// Packets that policies dropped; none where the kernel has no packet log.
    drops: Option<NftLog>,
    store: Watch,
    folder: Folder,
    questions: mpsc::Receiver<Question>,
    answers: BTreeMap<Ticket, oneshot::Sender<PolicyReply>>,
    next_ticket: Ticket,
    metrics: Metrics,
    waiting_for: watch::Sender<Vec<String>>,
}

impl Agent {
    async fn run(mut self, mut shutdown: Shutdown) -> Result<()> {
        let all = self.folder.read_all()?;
        self.handle(all);
        loop {
            let deadline = self.core.deadline().map(|at| self.started + at);
            let tick = async {
                match deadline {
                    Some(at) => sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            let event = tokio::select! {
                biased;
                () = shutdown.requested() => return Ok(()),
                touch = self.monitor.touched() => match touch? {
                    Touch::Touched => Event::TableTouched,
                    Touch::Unclear => Event::TableUnclear,
                },
                event = self.folder.next() => event?,
                Some((question, answer)) = self.questions.recv() => self.ticket(question, answer),
                event = self.store.next() => match event {
                    Some(event) => Event::Store(event),
                    None => return Ok(()),
                },
                dropped = next_drop(&mut self.drops) => match dropped {
                    Ok(dropped) => Event::Dropped(dropped),
                    Err(error) => {
                        tracing::warn!(%error, "dropped packets are not told any more");
                        self.drops = None;
                        continue;
                    }
                },
                () = tick => Event::Tick,
            };
            self.handle(event);
        }
    }

    fn ticket(&mut self, question: PolicyRequest, answer: oneshot::Sender<PolicyReply>) -> Event {
        // Whoever gave up waiting needs no place here.
        self.answers.retain(|_, answer| !answer.is_closed());
        self.next_ticket += 1;
        self.answers.insert(self.next_ticket, answer);
        match question {
            PolicyRequest::Announce { endpoint } => Event::Announced(self.next_ticket, endpoint),
            PolicyRequest::Status => Event::AskedStatus(self.next_ticket),
            PolicyRequest::Trace { from, to, traffic } => {
                Event::AskedTrace(self.next_ticket, [from, to, traffic])
            }
            PolicyRequest::List => Event::AskedList(self.next_ticket),
            PolicyRequest::Check => Event::AskedCheck(self.next_ticket),
        }
    }

    /// Steps the core, and again with what its actions lead to, until there is nothing left to do.
    fn handle(&mut self, event: Event) {
        let mut events = VecDeque::from([event]);
        let mut actions = Vec::new();
        while let Some(event) = events.pop_front() {
            self.core.step(self.started.elapsed(), event, &mut actions);
            for action in actions.drain(..) {
                events.extend(Self::execute(action, &mut self.kernel, &mut self.answers, &self.metrics));
            }
        }
        self.metrics.show(&self.core.status());
        let waiting_for = self.core.waiting_for();
        self.waiting_for.send_if_modified(|shown| {
            let changed = *shown != waiting_for;
            if changed && waiting_for.is_empty() {
                tracing::info!("ready: the kernel holds every known endpoint and policy");
            }
            *shown = waiting_for;
            changed
        });
    }

    /// Does one thing; what it leads to is the next event.
    fn execute(
        action: Action,
        kernel: &mut Kernel,
        answers: &mut BTreeMap<Ticket, oneshot::Sender<PolicyReply>>,
        metrics: &Metrics,
    ) -> Option<Event> {
        match action {
            Action::Replace(table, why) => {
                let elements: usize = table.sets.iter().map(|set| set.elements.len()).sum();
                match why {
                    Why::FirstLoad => tracing::info!(elements, "loading our nftables table"),
                    Why::Repair => {
                        tracing::warn!(elements, "somebody changed our nftables table: replacing it")
                    }
                    Why::Retry => tracing::info!(elements, "loading our nftables table again"),
                }
                Some(committed(kernel.replace(&table), metrics))
            }
            Action::Change(transaction) => Some(committed(kernel.commit(&transaction), metrics)),
            Action::Audit(table) => match kernel.difference(&table) {
                Ok(difference) => Some(Event::Audited(difference)),
                Err(error) => {
                    tracing::warn!(%error, "our nftables table cannot be read back");
                    None
                }
            },
            Action::Compare(ticket, table) => {
                let difference = kernel
                    .difference(&table)
                    .unwrap_or_else(|error| Some(format!("the kernel's table cannot be read back: {error}")));
                Some(Event::Compared(ticket, difference))
            }
            Action::ForgetFlows(addresses) => {
                match kernel.forget_flows(&addresses) {
                    Ok(flows) => tracing::debug!(?addresses, flows, "forgot the flows of ended pods"),
                    Err(error) => tracing::warn!(%error, ?addresses, "flows of ended pods stay"),
                }
                None
            }
            Action::Answer(ticket, reply) => {
                if let Some(answer) = answers.remove(&ticket) {
                    // Nobody may be waiting any more.
                    let _ = answer.send(reply);
                }
                None
            }
            Action::TellDrop { from, to, traffic, why } => {
                metrics.count_told_drop();
                tracing::info!(from, to, traffic, "dropped: {why}");
                None
            }
            Action::Warn(line) => {
                tracing::warn!("{line}");
                None
            }
        }
    }
}

/// The next dropped packet; never, where they are not told. Cancel safe.
async fn next_drop(drops: &mut Option<NftLog>) -> std::io::Result<Logged> {
    match drops {
        Some(drops) => drops.next().await,
        None => std::future::pending().await,
    }
}

fn committed(result: Result<(), podway_nft::CommitError>, metrics: &Metrics) -> Event {
    metrics.count_commit(result.is_ok());
    match result {
        Ok(()) => Event::Committed,
        Err(error) => Event::CommitFailed(error.to_string()),
    }
}

#[cfg(test)]
mod tests;
