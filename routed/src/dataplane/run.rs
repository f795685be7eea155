//! The data plane's task: waits for inputs, kernel changes and time, and brings the kernel to what is desired.
//!
//! | what | leads to |
//! |---|---|
//! | an input changes | a pass at once |
//! | somebody else changes something of ours | what is known is dropped; a pass after [`SETTLE`] |
//! | a step of a change of backend is due | a pass, if something else is desired then |
//! | a pod route is gone, a pod's link comes up | a look at the endpoint records after [`POD_SETTLE`]: routes, and who is masqueraded towards itself |
//! | a pass fails in part | another one after 1 s, then 2 s, up to [`RETRY_MOST`] |
//! | nothing | all that is known is dropped and compared again every [`FULL_COMPARISON`] |
//!
//! Nothing is programmed before the store was seen and the underlay found, nothing is removed before every input
//! has told all that it knows, and nothing is removed at exit.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use podway_kern::KernelError;
use podway_kern::fib::NetlinkKernel;
use podway_kern::monitor::{Change, Monitor, Notice};
use podway_kern::wireguard::PrivateKey;
use podway_model::cluster::BgpConfig;
use podway_model::ids::NodeName;
use podway_model::names::ENDPOINTS_DIR;
use podway_model::ways::{Way, Ways};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use super::changeover::way_of_device;
use super::desired::{Desired, Inputs};
use super::kept::Kept;
use super::notice::{Touched, touched};
use super::reconcile::{Outcome, Reconciler};
use super::{DataplaneStatus, pods, sysctls, tables};
use crate::view::{BgpRoutes, ClusterView, LocalFacts};

/// Changes by others come in bursts; one pass a burst.
const SETTLE: Duration = Duration::from_millis(20);
/// Time for an ADD or DEL to finish what it is at.
const POD_SETTLE: Duration = Duration::from_millis(300);
/// Full comparison without a reason.
const FULL_COMPARISON: Duration = Duration::from_secs(60);
/// First wait after a failure; doubles.
const RETRY_FIRST: Duration = Duration::from_secs(1);
/// Longest wait after a failure.
const RETRY_MOST: Duration = Duration::from_secs(60);

/// Keeps the kernel as the inputs want it, for ever. Runs in the network namespace of the calling thread.
///
/// Stop it by dropping the future: nothing is removed from the kernel at exit, and a half-done pass is finished
/// by the next start.
///
/// `wireguard`: this node's key, or why it has none. `kept`: what an earlier run was at.
///
/// # Errors
/// A netlink socket cannot be opened. Everything else is retried and shows in the status.
pub(crate) async fn run(
    node: NodeName,
    mut view: watch::Receiver<Arc<ClusterView>>,
    mut facts: watch::Receiver<Option<LocalFacts>>,
    mut bgp: watch::Receiver<Arc<BgpRoutes>>,
    wireguard: Result<PrivateKey, String>,
    kept: Kept,
    told: Told,
) -> Result<(), KernelError> {
    // Subscribed before the first look, so that no change falls between.
    let mut monitor = Monitor::open()?;
    let mut task = Task::new(NetlinkKernel::open()?, kept, told)?;
    loop {
        let (now_view, now_facts) = (view.borrow_and_update().clone(), facts.borrow_and_update().clone());
        let now_bgp = bgp.borrow_and_update().clone();
        let wireguard = wireguard.as_ref().map_err(String::as_str);
        task.want(&node, &now_view, now_facts.as_ref(), &now_bgp, wireguard);
        task.work(&mut monitor).await?;
        // Cancel-safe: `changed` only looks, `next` takes a datagram and returns it in one poll.
        loop {
            tokio::select! {
                // A closed channel: its task is gone, and the process is about to end.
                changed = view.changed() => if changed.is_err() { return Ok(()) } else { break },
                changed = facts.changed() => if changed.is_err() { return Ok(()) } else { break },
                changed = bgp.changed() => if changed.is_err() { return Ok(()) } else { break },
                notices = monitor.next() => task.on_notices(&notices?),
                () = sleep_until(task.deadline()) => break,
            }
        }
    }
}

/// Where the task tells what it knows.
#[derive(Debug)]
pub(crate) struct Told {
    /// For people and machines.
    pub(crate) status: watch::Sender<DataplaneStatus>,
    /// By which ways packets go, for this node's record; none: not known yet.
    pub(crate) ways: watch::Sender<Option<Ways>>,
    /// Settings under which sessions of BGP are kept, whatever the backend; none: they are not needed.
    pub(crate) bgp: watch::Sender<Option<BgpConfig>>,
}

/// When what is due.
#[derive(Debug)]
struct Due {
    changeover: Option<Instant>,
    tables: Option<Instant>,
    pods: Option<Instant>,
    retry: Option<Instant>,
    full: Instant,
    nft: Instant,
}

struct Task {
    reconciler: Reconciler<NetlinkKernel>,
    tables: tables::Tables,
    port: u32,
    /// Indices of our devices, as last seen.
    devices: Vec<u32>,
    kept: Kept,
    began: Instant,
    /// By which ways packets are to go, and whether the kernel refused a part.
    ways: Ways,
    refused: bool,
    /// Interfaces of the underlay.
    underlay: Vec<u32>,
    kept_problems: Vec<String>,
    desired: Option<Desired>,
    /// Whether `desired` differs from what the last pass was about.
    fresh: bool,
    due: Due,
    backoff: Duration,
    /// Failures of the last pass, to tell each only once.
    told: Vec<String>,
    pod_problems: Vec<String>,
    /// Addresses of this node's pods, as their records say.
    local_pods: BTreeSet<IpAddr>,
    shown: DataplaneStatus,
    out: Told,
}

impl Task {
    fn new(kernel: NetlinkKernel, kept: Kept, out: Told) -> Result<Self, KernelError> {
        let now = Instant::now();
        let counters =
            ["passes", "changes", "repairs", "refusals", "overruns", "pod_routes", "table_repairs"];
        Ok(Self {
            port: kernel.port(),
            reconciler: Reconciler::new(kernel),
            tables: tables::Tables::open()?,
            devices: Vec::new(),
            kept,
            began: now,
            ways: Ways::default(),
            refused: false,
            underlay: Vec::new(),
            kept_problems: Vec::new(),
            desired: None,
            fresh: false,
            due: Due { changeover: None, tables: None, pods: Some(now), retry: None, full: now, nft: now },
            backoff: RETRY_FIRST,
            told: Vec::new(),
            pod_problems: Vec::new(),
            local_pods: BTreeSet::new(),
            shown: DataplaneStatus { counters: counters.map(|name| (name, 0)).into(), ..Default::default() },
            out,
        })
    }

    /// Takes the inputs in.
    fn want(
        &mut self,
        node: &NodeName,
        view: &ClusterView,
        facts: Option<&LocalFacts>,
        bgp: &BgpRoutes,
        wireguard: Result<&PrivateKey, &str>,
    ) {
        self.shown.waiting_for.clear();
        if !view.synced {
            self.shown.waiting_for.push("a first look at the whole store".to_owned());
        }
        let Some(facts) = facts else {
            self.shown.waiting_for.push("an underlay address".to_owned());
            return;
        };
        if !view.synced {
            return;
        }
        let now = Instant::now() - self.began;
        let step = self.kept.changeover.step(now, Inputs { node, view, facts, bgp, wireguard });
        self.shown.mtu = Some(step.mtu);
        self.shown.backend = view.config.backend.to_string();
        self.follow(step.under_way);
        self.due.changeover = step.deadline.map(|at| self.began + at);
        self.ways = Ways { receives: step.receives, sends: step.sends };
        self.underlay = facts.on_link.iter().map(|(index, _)| *index).collect();
        self.kept_problems = self.kept.write().err().into_iter().collect();
        self.out.bgp.send_if_modified(|kept| std::mem::replace(kept, step.bgp.clone()) != step.bgp);
        let wanted = step.desired;
        self.fresh |= self.desired.as_ref() != Some(&wanted);
        self.desired = Some(wanted);
    }

    /// Takes over what is said of a change of backend.
    fn follow(&mut self, under_way: Option<String>) {
        if self.shown.changeover == under_way {
            return;
        }
        match &under_way {
            Some(words) => tracing::info!("change of backend {words}"),
            None => tracing::info!(backend = self.shown.backend, "change of backend is complete"),
        }
        self.shown.changeover = under_way;
        // The reverse path filter follows with the next pass.
        self.fresh = true;
    }

    fn deadline(&self) -> Instant {
        let due = &self.due;
        [due.changeover, due.tables, due.pods, due.retry, Some(due.nft)]
            .into_iter()
            .flatten()
            .fold(due.full, Instant::min)
    }

    fn count(&mut self, name: &'static str, more: usize) {
        *self.shown.counters.entry(name).or_default() += more as u64;
    }

    fn on_notices(&mut self, notices: &[Notice]) {
        let nothing = Desired::default();
        let desired = self.desired.as_ref().unwrap_or(&nothing);
        let mut sum = Touched::default();
        for notice in notices {
            sum.add(touched(notice, self.port, &self.devices, desired));
        }
        if sum.ours {
            self.reconciler.invalidate();
            self.due.tables.get_or_insert(Instant::now() + SETTLE);
        }
        if sum.pods {
            self.due.pods.get_or_insert(Instant::now() + POD_SETTLE);
        }
        let overruns = notices.iter().filter(|notice| notice.change == Change::Overrun).count();
        if overruns > 0 {
            tracing::warn!("kernel notifications were lost, comparing everything");
            self.count("overruns", overruns);
        }
    }

    /// Does what is due.
    async fn work(&mut self, monitor: &mut Monitor) -> Result<(), KernelError> {
        let now = Instant::now();
        let is_due = |at: Option<Instant>| at.is_some_and(|at| at <= now);
        let full = self.due.full <= now;
        if full {
            self.due.full = now + FULL_COMPARISON;
            self.reconciler.invalidate();
        }
        if is_due(self.due.pods) || full {
            self.due.pods = None;
            self.repair_pods();
        }
        let disturbed = is_due(self.due.tables);
        let inputs = std::mem::take(&mut self.fresh);
        if inputs || disturbed || full || is_due(self.due.retry) {
            (self.due.tables, self.due.retry) = (None, None);
            self.pass(monitor, disturbed && !inputs).await?;
        }
        if inputs || self.due.nft <= Instant::now() {
            self.due.nft = now + tables::LOOK_EVERY;
            let masquerade = self.desired.as_ref().map(|desired| desired.masquerade.as_ref());
            let forward = self.desired.as_ref().and_then(|desired| desired.forward.as_ref());
            let before = self.tables.in_the_way().to_vec();
            let repaired = self.tables.ensure(masquerade, &self.local_pods, forward);
            self.count("table_repairs", repaired);
            for problem in self.tables.in_the_way().iter().filter(|problem| !before.contains(problem)) {
                tracing::warn!("{problem}");
            }
            self.shown.foreign_firewalls = self.tables.in_the_way().to_vec();
        }
        self.publish();
        Ok(())
    }

    /// One pass. The monitor is read meanwhile: our own changes alone can fill its buffer.
    async fn pass(&mut self, monitor: &mut Monitor, repair: bool) -> Result<(), KernelError> {
        let Some(desired) = self.desired.clone() else { return Ok(()) };
        let is_change = self.shown.changeover.is_some();
        let filter = self.kept.filter(self.reconciler.kernel(), is_change, &self.underlay);
        let mut problems = sysctls::ensure(self.reconciler.kernel(), &desired);
        let mut meanwhile = Vec::new();
        let outcome = {
            let pass = self.reconciler.reconcile(&desired);
            tokio::pin!(pass);
            loop {
                tokio::select! {
                    biased;
                    notices = monitor.next() => {
                        meanwhile.extend(notices?.into_iter().filter(|n| n.cause != self.port));
                    }
                    outcome = &mut pass => break outcome,
                }
            }
        };
        // Sysctls of a device exist only once the device does.
        if outcome.changed > 0 {
            problems = sysctls::ensure(self.reconciler.kernel(), &desired);
        }
        problems.extend(filter);
        self.devices = self.reconciler.device_indices();
        self.on_notices(&meanwhile);
        self.finish(desired, outcome, problems, repair);
        Ok(())
    }

    fn finish(&mut self, desired: Desired, outcome: Outcome, problems: Vec<String>, repair: bool) {
        self.count("passes", 1);
        self.count("changes", outcome.changed);
        self.count("refusals", outcome.failed);
        if repair && outcome.changed > 0 {
            self.count("repairs", outcome.changed);
            tracing::info!(changes = outcome.changed, "repaired what somebody else had changed");
        } else if outcome.changed > 0 {
            tracing::debug!(changes = outcome.changed, "kernel programmed");
        }
        self.refused = outcome.failed > 0;
        if outcome.failed == 0 {
            self.backoff = RETRY_FIRST;
            self.shown.programmed = true;
        } else {
            self.due.retry = Some(Instant::now() + self.backoff);
            self.backoff = (self.backoff * 2).min(RETRY_MOST);
        }
        let mut all = outcome.failures;
        if outcome.failed > all.len() {
            all.push(format!("{} more changes were refused by the kernel", outcome.failed - all.len()));
        }
        all.extend(problems);
        all.extend(desired.problems);
        all.extend(desired.shared_addresses.iter().cloned());
        self.shown.shared_addresses = desired.shared_addresses;
        for problem in all.iter().filter(|problem| !self.told.contains(problem)) {
            tracing::warn!("{problem}");
        }
        for (node, problem) in &desired.node_problems {
            if self.shown.node_problems.get(node) != Some(problem) {
                tracing::warn!(%node, "node cannot be reached: {problem}");
            }
        }
        self.told = all;
        self.shown.node_problems = desired.node_problems;
        self.shown.routes = outcome.routes;
        self.shown.devices = outcome.devices;
    }

    fn repair_pods(&mut self) {
        let (records, mut problems) = pods::read_records(Path::new(ENDPOINTS_DIR));
        match pods::repair(self.reconciler.kernel(), &records) {
            Ok((0, more)) => problems.extend(more),
            Ok((added, more)) => {
                tracing::info!(routes = added, "repaired routes of pods");
                self.count("pod_routes", added);
                problems.extend(more);
            }
            Err(e) => problems.push(e.to_string()),
        }
        let mut addresses: BTreeSet<IpAddr> =
            records.iter().flat_map(|record| &record.addresses).copied().collect();
        if !problems.is_empty() {
            // A record that cannot be read says nothing of its pod being gone.
            addresses.extend(&self.local_pods);
        }
        if addresses != self.local_pods {
            self.local_pods = addresses;
            self.due.nft = Instant::now();
        }
        self.pod_problems = problems;
    }

    fn publish(&mut self) {
        self.shown.problems = self.told.clone();
        self.shown.problems.extend(self.tables.problems().cloned());
        self.shown.problems.extend(self.pod_problems.iter().cloned());
        self.shown.problems.extend(self.kept_problems.iter().cloned());
        self.shown.counters.insert("reads", self.reconciler.reads);
        self.out.status.send_if_modified(|status| {
            let changed = *status != self.shown;
            if changed {
                status.clone_from(&self.shown);
            }
            changed
        });
        self.tell_ways();
    }

    /// Tells other nodes by which ways packets go now: after the pass that made it so.
    fn tell_ways(&self) {
        if self.desired.is_none() || !self.shown.programmed {
            return;
        }
        let is_made = |way: &Way| {
            let mut devices = self.shown.devices.iter();
            *way == Way::Direct || devices.any(|device| way_of_device(&device.name) == *way)
        };
        let mut ways = self.ways.clone();
        ways.receives.retain(is_made);
        self.out.ways.send_if_modified(|told| {
            if let Some(before) = told.as_ref().filter(|_| self.refused) {
                // A route that could not be re-pointed still goes its old way.
                ways.sends.extend(&before.sends);
            }
            let ways = Some(ways);
            let changed = *told != ways;
            *told = ways;
            changed
        });
    }
}
