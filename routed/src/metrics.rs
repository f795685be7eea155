//! Numbers for machines: gauges that follow the status, under `podway_routed_`.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use crate::status::{Inputs, waiting_for};
use crate::view::OwnBlockState;

/// Label of the kernel routes' gauge.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct State {
    state: &'static str,
}

/// Label of the counters that the data plane keeps.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Event {
    event: &'static str,
}

/// The gauges.
#[derive(Debug, Default)]
pub(crate) struct Metrics {
    ready: Gauge,
    store_synced: Gauge,
    store_revision: Gauge,
    nodes: Family<State, Gauge>,
    blocks: Family<State, Gauge>,
    routes: Family<State, Gauge>,
    problems: Gauge,
    foreign_firewalls: Gauge,
    shared_addresses: Gauge,
    changeover: Gauge,
    events: Family<Event, Gauge>,
}

impl Metrics {
    /// Registers them.
    pub(crate) fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        registry.register(
            "ready",
            "1 when in sync with the store and the kernel is programmed",
            metrics.ready.clone(),
        );
        registry.register(
            "store_synced",
            "1 when a whole snapshot of the store has been read since start",
            metrics.store_synced.clone(),
        );
        registry.register(
            "store_revision",
            "Store revision that this node reflects",
            metrics.store_revision.clone(),
        );
        registry.register("nodes", "Nodes in the store, by sign of life", metrics.nodes.clone());
        registry.register("blocks", "Own address blocks, by state", metrics.blocks.clone());
        registry.register(
            "routes",
            "Kernel routes of our protocol number: desired, actual, failed",
            metrics.routes.clone(),
        );
        registry.register("problems", "Problems that podwayctl status lists", metrics.problems.clone());
        registry.register(
            "foreign_firewalls",
            "Forward chains of others that drop packets of pods",
            metrics.foreign_firewalls.clone(),
        );
        registry.register(
            "shared_addresses",
            "Underlay addresses that more than one node publishes",
            metrics.shared_addresses.clone(),
        );
        registry.register(
            "backend_change_under_way",
            "1 while the node changes from one backend to another",
            metrics.changeover.clone(),
        );
        registry.register(
            "dataplane_events",
            "What the data plane counted since start",
            metrics.events.clone(),
        );
        metrics
    }

    /// Takes over the latest values.
    pub(crate) fn set(&self, inputs: &Inputs<'_>) {
        let view = inputs.view;
        self.ready.set(waiting_for(inputs).is_empty().into());
        self.store_synced.set(view.synced.into());
        self.store_revision.set(view.revision);
        let live = view.nodes.values().filter(|node| node.live).count();
        set(&self.nodes, "live", live);
        set(&self.nodes, "silent", view.nodes.len() - live);
        for (name, state) in [
            ("pending", OwnBlockState::Pending),
            ("active", OwnBlockState::Active),
            ("draining", OwnBlockState::Draining),
            ("stranded", OwnBlockState::Stranded),
        ] {
            set(&self.blocks, name, view.own_blocks.iter().filter(|block| block.state == state).count());
        }
        let routes = inputs.dataplane.routes;
        set(&self.routes, "desired", routes.desired);
        set(&self.routes, "actual", routes.actual);
        set(&self.routes, "failed", routes.failed);
        let dataplane = inputs.dataplane;
        let problems = dataplane.problems.len() + inputs.underlay.problems.len() + view.problems.len();
        self.problems.set(saturating(problems));
        self.foreign_firewalls.set(saturating(dataplane.foreign_firewalls.len()));
        self.shared_addresses.set(saturating(dataplane.shared_addresses.len()));
        self.changeover.set(dataplane.changeover.is_some().into());
        for (event, count) in &dataplane.counters {
            let count = i64::try_from(*count).unwrap_or(i64::MAX);
            self.events.get_or_create(&Event { event }).set(count);
        }
    }
}

fn set(family: &Family<State, Gauge>, state: &'static str, count: usize) {
    family.get_or_create(&State { state }).set(saturating(count));
}

fn saturating(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}
