//! Numbers for Prometheus.

use std::sync::atomic::AtomicU64;

use podway_model::socket::PolicyStatus;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// The agent's metrics.
#[derive(Debug, Default)]
pub(crate) struct Metrics {
    endpoints: Gauge,
    unknown_pods: Gauge,
    policies: Gauge,
    pods: Gauge,
    classes: Gauge,
    policy_sets: Gauge,
    elements: Gauge,
    problems: Gauge,
    revision: Gauge,
    repairs: Counter<u64, AtomicU64>,
    commits: Counter<u64, AtomicU64>,
    refusals: Counter<u64, AtomicU64>,
    told_drops: Counter<u64, AtomicU64>,
}

impl Metrics {
    /// Makes and registers them.
    pub(crate) fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        for (name, help, gauge) in [
            ("endpoints", "Local endpoints in the kernel's maps", &metrics.endpoints),
            ("unknown_pods", "Local endpoints without a known pod object", &metrics.unknown_pods),
            ("policies", "Network policies in force", &metrics.policies),
            ("pods", "Pods known in the cluster", &metrics.pods),
            ("classes", "Classes of peers that policies in use can tell apart", &metrics.classes),
            ("policy_sets", "Distinct sets of policies on local pods", &metrics.policy_sets),
            ("elements", "Elements in our nftables sets and maps", &metrics.elements),
            ("problems", "Things that the status lists as problems", &metrics.problems),
            ("revision", "Store revision that the kernel reflects", &metrics.revision),
        ] {
            registry.register(name, help, gauge.clone());
        }
        for (name, help, counter) in [
            ("repairs", "Foreign changes to our nftables table that were repaired", &metrics.repairs),
            ("commits", "nftables transactions that the kernel took", &metrics.commits),
            ("refusals", "nftables transactions that the kernel refused", &metrics.refusals),
            ("told_drops", "Packets dropped by policies that the log tells of", &metrics.told_drops),
        ] {
            registry.register(name, help, counter.clone());
        }
        metrics
    }

    /// Shows a status.
    pub(crate) fn show(&self, status: &PolicyStatus) {
        let show = |gauge: &Gauge, number: usize| {
            gauge.set(i64::try_from(number).unwrap_or(i64::MAX));
        };
        show(&self.endpoints, status.endpoints);
        show(&self.unknown_pods, status.unknown_pods.len());
        show(&self.policies, status.policies);
        show(&self.pods, status.pods);
        show(&self.classes, status.classes);
        show(&self.policy_sets, status.policy_sets);
        show(&self.elements, status.elements);
        show(&self.problems, status.problems.len());
        self.revision.set(status.revision);
        self.repairs.inner().store(status.repairs, std::sync::atomic::Ordering::Relaxed);
    }

    /// Counts a dropped packet that the log tells of.
    pub(crate) fn count_told_drop(&self) {
        self.told_drops.inc();
    }

    /// Counts an answer of the kernel.
    pub(crate) fn count_commit(&self, taken: bool) {
        if taken {
            self.commits.inc()
        } else {
            self.refusals.inc()
        };
    }
}
