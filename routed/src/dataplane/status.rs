//! What the data plane tells others of itself, for `podwayctl status`, readiness and metrics.

use std::collections::BTreeMap;

use podway_model::ids::{Mtu, NodeName};
use podway_model::socket::{DeviceStatus, RouteCounts};

/// State of the data plane. Published in a `watch` after each pass that changed it.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct DataplaneStatus {
    /// Whether the kernel held everything wanted after the last pass, at least once since start.
    pub(crate) programmed: bool,
    /// What is waited for before anything can be programmed.
    pub(crate) waiting_for: Vec<String>,
    /// Backend in force, in words; empty until one is.
    pub(crate) backend: String,
    /// A change to this backend that is under way, in words.
    pub(crate) changeover: Option<String>,
    /// MTU of pods.
    pub(crate) mtu: Option<Mtu>,
    /// Devices that we made.
    pub(crate) devices: Vec<DeviceStatus>,
    /// Kernel routes in numbers.
    pub(crate) routes: RouteCounts,
    /// Nodes that this backend cannot reach, and why.
    pub(crate) node_problems: BTreeMap<NodeName, String>,
    /// Other problems, the most important first.
    pub(crate) problems: Vec<String>,
    /// Firewalls of others that are in the way of pods; they are among the problems.
    pub(crate) foreign_firewalls: Vec<String>,
    /// Addresses that several nodes publish; they are among the problems.
    pub(crate) shared_addresses: Vec<String>,
    /// Counters, by name.
    pub(crate) counters: BTreeMap<&'static str, u64>,
}
