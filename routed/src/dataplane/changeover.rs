//! Changes of backend while packets flow: made before broken. Pure.
//!
//! Nodes do not follow a change at the same moment, and one whose connection to the store is away follows late. So a
//! node never sends by a way that the other end does not take yet, and never stops taking what somebody still sends:
//!
//! | step | what this node does | when |
//! |---|---|---|
//! | 1 | makes the new devices with their entries, keeps the old ones, publishes that it receives by both | at once |
//! | 2 | re-points its routes to a node | that node has published that it receives the new way |
//! | 3 | publishes that it receives by the new way only | no route of its own goes the old way, no other node says that it sends so, and that for [`Times::linger`] |
//! | 4 | takes the old device, its entries and old routes away | [`Times::withdraw`] later, and the store has shown step 3: whoever goes back to the old way after that has read it |
//!
//! What nodes publish are their [`Ways`](podway_model::ways::Ways), in their records. A node that publishes none, such as
//! one of an older version, is taken to follow within [`Times::prepare`]. A node without a sign of life is waited for
//! during [`Times::absent`]: it may be only its daemon, or its store, that is away.
//!
//! **BGP** is a way of its own: towards it, an old route stays until BGP is in sync and has a route for the same
//! destination; from it, sessions are kept ([`Step::bgp`]) until nobody's routes come from BGP any more.
//!
//! **A second change in the middle** is a further stage: a route goes by the newest one that the other end takes. The old
//! ways are received longer then ([`Times::overtaken`]).
//! **A restart in the middle** resumes from the stages, which are written down before anything is programmed; times
//! begin anew.
//!
//! While more than one stage is in force, routes carry the smallest of their MTUs.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use ipnet::IpNet;
use podway_kern::rtnl::RouteKey;
use podway_model::cluster::{
    Backend, BgpConfig, ClusterConfig, Encapsulation, IpipConfig, VxlanConfig, WireguardConfig,
};
use podway_model::ids::{Mtu, NodeName, ObjectName};
use podway_model::names::{IPIP_DEVICE, WIREGUARD_DEVICE};
use podway_model::ways::Way;
use serde::{Deserialize, Serialize};

use super::backends::count_neighbours;
use super::desired::{Desired, DeviceKind, Inputs, Interface, RouteSpec, Target, desired};
use super::encapsulation::{in_use, of_pool};
use super::mtu::pod_mtu;
use crate::view::{ClusterView, NodeView};

/// Nodes that are named in words; the others are counted.
const NODES_TOLD: usize = 3;

/// How long what takes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Times {
    /// After how long a node that does not publish its ways is taken to receive a new one: a change reaches all
    /// connected nodes within milliseconds, and making a device takes a few more.
    pub(crate) prepare: Duration,
    /// How long the old way is still received after its last use: for packets under way, and for nodes that do not
    /// publish their ways.
    pub(crate) linger: Duration,
    /// The same where a change was overtaken by another one before it was complete: a node that reads late sees the first
    /// change without the second for a moment, and may use a way that everybody else has given up. Longer than the
    /// connection to the store takes to come back.
    pub(crate) overtaken: Duration,
    /// Time for others to read that the old way is not received any more, before it is not.
    pub(crate) withdraw: Duration,
    /// How long a node without a sign of life keeps a change from ending. A day: it may be only its store that is away,
    /// and its pods would be cut off; without an end, a machine that is gone for good would keep the old devices of all
    /// others.
    pub(crate) absent: Duration,
}

impl Default for Times {
    fn default() -> Self {
        Self {
            prepare: Duration::from_secs(1),
            linger: Duration::from_secs(5),
            overtaken: Duration::from_secs(30),
            withdraw: Duration::from_secs(1),
            absent: Duration::from_secs(24 * 3600),
        }
    }
}

/// The part of the configuration that decides by which ways packets go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Routing {
    backend: Backend,
    vxlan: VxlanConfig,
    ipip: IpipConfig,
    wireguard: WireguardConfig,
    /// Sessions are kept as they were while a change away from BGP is under way.
    bgp: BgpConfig,
    /// Encapsulation of each pool, whoever says it.
    pools: BTreeMap<ObjectName, Encapsulation>,
}

impl Routing {
    fn of(view: &ClusterView) -> Self {
        let config = &view.config;
        Self {
            backend: config.backend,
            vxlan: config.vxlan.clone(),
            ipip: config.ipip.clone(),
            wireguard: config.wireguard.clone(),
            bgp: config.bgp.clone(),
            pools: view.pools.iter().map(|(name, pool)| (name.clone(), of_pool(view, pool))).collect(),
        }
    }

    /// The view as it would be with this routing.
    fn put_into(&self, view: &ClusterView) -> ClusterView {
        let mut view = view.clone();
        view.config = ClusterConfig {
            backend: self.backend,
            vxlan: self.vxlan.clone(),
            ipip: self.ipip.clone(),
            wireguard: self.wireguard.clone(),
            bgp: self.bgp.clone(),
            ..view.config
        };
        for (name, pool) in &mut view.pools {
            pool.encapsulation = self.pools.get(name).copied().or(pool.encapsulation);
        }
        view
    }

    /// Whether packets go the same ways with both. A pool that only one of them knows does not count.
    fn leads_alike(&self, other: &Self) -> bool {
        let is_bgp = |one: &Self| one.backend == Backend::Bgp;
        let default = |one: &Self| {
            let Self { backend, vxlan, ipip, .. } = one.clone();
            ClusterConfig { backend, vxlan, ipip, ..ClusterConfig::default() }.encapsulation()
        };
        let same = |(name, encapsulation)| other.pools.get(name).is_none_or(|there| there == encapsulation);
        is_bgp(self) == is_bgp(other) && default(self) == default(other) && self.pools.iter().all(same)
    }
}

/// A routing, and when it was first seen.
#[derive(Debug)]
struct Stage {
    routing: Routing,
    since: Duration,
}

/// The routings in force: one, or while a change is under way the old ones before it.
#[derive(Debug)]
pub(crate) struct Changeover {
    times: Times,
    /// The newest last.
    stages: Vec<Stage>,
    /// Whether a change came before the one before it was complete.
    is_overtaken: bool,
    /// Since when nothing goes by an old way.
    settled: Option<Duration>,
    /// Since when nodes have shown no sign of life.
    silent: BTreeMap<NodeName, Duration>,
}

/// What follows at a moment.
#[derive(Debug)]
pub(crate) struct Step {
    /// What the kernel shall hold.
    pub(crate) desired: Desired,
    /// By which ways packets are to be received, as far as the devices can be made.
    pub(crate) receives: BTreeSet<Way>,
    /// By which ways the desired routes send.
    pub(crate) sends: BTreeSet<Way>,
    /// Smallest MTU of the routings in force.
    pub(crate) mtu: Mtu,
    /// BGP settings under which sessions are to be kept; none: BGP is not among the routings in force.
    pub(crate) bgp: Option<BgpConfig>,
    /// What is under way, in words.
    pub(crate) under_way: Option<String>,
    /// When to look again, whatever happens.
    pub(crate) deadline: Option<Duration>,
}

impl Changeover {
    /// `stages`: the routings that were in force when an earlier run ended, the newest last.
    pub(crate) fn resume(times: Times, stages: Vec<Routing>) -> Self {
        let stages: Vec<Stage> =
            stages.into_iter().map(|routing| Stage { routing, since: Duration::ZERO }).collect();
        Self { times, is_overtaken: stages.len() > 2, stages, settled: None, silent: BTreeMap::new() }
    }

    /// The routings in force: to be written down before what follows from them is programmed.
    pub(crate) fn stages(&self) -> Vec<Routing> {
        self.stages.iter().map(|stage| stage.routing.clone()).collect()
    }

    /// Settings of the sessions of BGP, if it is among the routings in force.
    pub(crate) fn bgp(&self) -> Option<BgpConfig> {
        let mut stages = self.stages.iter().rev().map(|stage| &stage.routing);
        stages.find(|routing| routing.backend == Backend::Bgp).map(|routing| routing.bgp.clone())
    }

    /// Takes over what the configuration says.
    fn aim(&mut self, now: Duration, view: &ClusterView) {
        let target = Routing::of(view);
        match self.stages.last_mut() {
            Some(newest) if newest.routing.leads_alike(&target) => newest.routing = target,
            _ => {
                // Who comes back to what he had in the middle of a change needs it once; what is in force is the first.
                let last = self.stages.len();
                self.is_overtaken |= last > 1;
                let mut at = 0..last;
                self.stages.retain(|stage| at.next() == Some(0) || !stage.routing.leads_alike(&target));
                self.stages.push(Stage { routing: target, since: now });
                self.settled = None;
            }
        }
    }

    /// What is to be at this moment. The view must be synced.
    pub(crate) fn step(&mut self, now: Duration, inputs: Inputs<'_>) -> Step {
        self.aim(now, inputs.view);
        let view = inputs.view;
        for (name, node) in view.nodes.iter().filter(|(name, _)| *name != inputs.node) {
            if node.live {
                self.silent.remove(name);
            } else {
                self.silent.entry(name.clone()).or_insert(now);
            }
        }
        self.silent.retain(|name, _| view.nodes.contains_key(name));
        if self.stages.len() > 1 {
            let step = self.between(now, inputs);
            if self.stages.len() > 1 {
                return step;
            }
        }
        let desired = desired(inputs);
        let is_bgp = view.config.backend == Backend::Bgp;
        Step {
            receives: ways_of(view),
            sends: sends(&desired, is_bgp),
            mtu: pod_mtu(view, inputs.facts),
            desired,
            bgp: is_bgp.then(|| view.config.bgp.clone()),
            under_way: None,
            deadline: None,
        }
    }

    /// The same while there is more than one stage; it may leave one.
    fn between(&mut self, now: Duration, inputs: Inputs<'_>) -> Step {
        let views: Vec<ClusterView> =
            self.stages.iter().map(|stage| stage.routing.put_into(inputs.view)).collect();
        let plans: Vec<Desired> = views.iter().map(|view| desired(Inputs { view, ..inputs })).collect();
        let mtu = views.iter().map(|view| pod_mtu(view, inputs.facts)).min().unwrap_or(Mtu::ETHERNET);
        let last = plans.len() - 1;
        let Chosen { mut routes, mut sends, mut waiting } = self.choose(now, inputs, &plans);
        for route in routes.values_mut().filter(|route| matches!(route.target, Target::Via(_))) {
            route.mtu = Some(mtu);
        }
        let newest_ways = all_ways(&views[last]);
        let old_ways: BTreeSet<Way> = views[..last].iter().flat_map(all_ways).collect();
        for (name, way) in self.still_used(now, inputs, &old_ways - &newest_ways) {
            waiting.entry(name).or_insert_with(|| format!("sends by {way}"));
        }
        for (name, why) in &mut waiting {
            if self.silent.contains_key(name) {
                *why += ", and shows no sign of life";
            }
        }
        if waiting.is_empty() {
            self.settled.get_or_insert(now);
        } else {
            self.settled = None;
        }
        let linger = if self.is_overtaken { self.times.overtaken } else { self.times.linger };
        let withdraw_at = self.settled.map(|since| since + linger);
        let end_at = withdraw_at.map(|at| at + self.times.withdraw);
        let is_withdrawn = withdraw_at.is_some_and(|at| at <= now);
        let is_confirmed = self.is_withdrawal_shown(inputs, &views);
        let from_to =
            format!("from {} to {}", self.stages[0].routing.backend, self.stages[last].routing.backend);
        let later = |at: Duration| (at > now).then_some(at);
        let times = self.stages.iter().map(|stage| stage.since + self.times.prepare);
        let times = times.chain(self.silent.values().map(|since| *since + self.times.absent));
        let deadline = times.chain(withdraw_at).chain(end_at).filter_map(later).min();
        let received = if is_withdrawn { &views[last..] } else { &views[..] };
        let step = Step {
            receives: received.iter().flat_map(ways_of).collect(),
            sends: std::mem::take(&mut sends),
            mtu,
            desired: merge(plans, std::mem::take(&mut routes)),
            bgp: self.bgp(),
            under_way: Some(match waiting.is_empty() {
                true => format!(
                    "{from_to}: all routes go the new way, the old one is received for some seconds more"
                ),
                false => format!("{from_to}: waiting for {}", list(&waiting)),
            }),
            deadline,
        };
        if is_confirmed && end_at.is_some_and(|at| at <= now) {
            self.stages.drain(..last);
            (self.settled, self.is_overtaken) = (None, false);
        }
        step
    }

    /// Chooses for every destination the newest stage that the other end takes.
    fn choose(&self, now: Duration, inputs: Inputs<'_>, plans: &[Desired]) -> Chosen {
        let others = inputs.view.nodes.iter().filter(|(name, _)| *name != inputs.node);
        let owners: BTreeMap<IpNet, (&NodeName, &NodeView)> = others
            .flat_map(|(name, node)| node.blocks.iter().map(move |block| (*block, (name, node))))
            .collect();
        let last = plans.len() - 1;
        let is_bgp = |at: usize| self.stages[at].routing.backend == Backend::Bgp;
        let mut chosen = Chosen::default();
        let keys: BTreeSet<&RouteKey> = plans.iter().flat_map(|plan| plan.routes.keys()).collect();
        for key in keys {
            let owner = owners.get(&key.destination);
            let mut reason = None;
            let mut ready = |at: usize, spec: &RouteSpec| {
                let (Target::Via(via), Some((name, node))) = (spec.target, owner) else { return true };
                if is_bgp(at) && !inputs.bgp.synced {
                    reason.get_or_insert_with(|| "BGP is not in sync yet".to_owned());
                    return false;
                }
                let way = way_of(via.interface);
                let takes = match node.record.as_ref().and_then(|record| record.ways.as_ref()) {
                    Some(ways) => ways.receives.contains(&way) || self.is_absent(now, name),
                    None => self.stages[at].since + self.times.prepare <= now,
                };
                if !takes {
                    reason.get_or_insert_with(|| format!("does not receive {way} yet"));
                }
                takes
            };
            let Some(lowest) = plans.iter().position(|plan| plan.routes.contains_key(key)) else { continue };
            let found = (lowest..=last).rev().find_map(|at| {
                let spec = plans[at].routes.get(key)?;
                let is_ready = ready(at, spec);
                // A route that BGP gave before this daemon was restarted stays until BGP has spoken.
                let is_old =
                    !is_ready && at == lowest && !(0..lowest).any(|at| is_bgp(at) && !inputs.bgp.synced);
                (is_ready || is_old).then_some((at, *spec))
            });
            if let Some((at, spec)) = found {
                chosen.routes.insert(*key, spec);
                if let Target::Via(via) = spec.target {
                    chosen.sends.insert(way_of(via.interface));
                    if is_bgp(at) {
                        chosen.sends.insert(Way::Bgp);
                    }
                }
            }
            let Some((name, _)) = owner else { continue };
            // What the new backend cannot reach at all is told as a problem, and not waited for.
            let has_way = plans[last].routes.contains_key(key);
            let is_awaited = has_way || is_bgp(last) && !plans[last].node_problems.contains_key(*name);
            if found.is_none_or(|(at, _)| at != last) && is_awaited && !self.is_absent(now, name) {
                let none = || format!("no route to {} by BGP yet", key.destination);
                chosen.waiting.entry((*name).clone()).or_insert_with(|| reason.unwrap_or_else(none));
            }
        }
        chosen
    }

    /// Whether the store shows no more that this node receives an old way. A node that publishes no ways has time alone.
    fn is_withdrawal_shown(&self, inputs: Inputs<'_>, views: &[ClusterView]) -> bool {
        let own = inputs.view.nodes.get(inputs.node).and_then(|node| node.record.as_ref()?.ways.as_ref());
        let Some((newest, old)) = views.split_last() else { return true };
        let newest = ways_of(newest);
        let mut gone = old.iter().flat_map(ways_of).filter(|way| !newest.contains(way));
        own.is_none_or(|ways| !gone.any(|way| ways.receives.contains(&way)))
    }

    /// Other nodes that say that they send by one of these ways.
    fn still_used<'a>(
        &'a self,
        now: Duration,
        inputs: Inputs<'a>,
        ways: BTreeSet<Way>,
    ) -> impl Iterator<Item = (NodeName, Way)> + 'a {
        let others = inputs.view.nodes.iter().filter(move |(name, _)| *name != inputs.node);
        others.filter(move |(name, _)| !self.is_absent(now, name)).filter_map(move |(name, node)| {
            let sends = &node.record.as_ref()?.ways.as_ref()?.sends;
            sends.intersection(&ways).next().map(|way| (name.clone(), *way))
        })
    }

    fn is_absent(&self, now: Duration, name: &NodeName) -> bool {
        self.silent.get(name).is_some_and(|since| *since + self.times.absent <= now)
    }
}

/// What was chosen.
#[derive(Debug, Default)]
struct Chosen {
    routes: BTreeMap<RouteKey, RouteSpec>,
    sends: BTreeSet<Way>,
    /// Nodes whose routes do not go the newest way yet, and why.
    waiting: BTreeMap<NodeName, String>,
}

fn list(waiting: &BTreeMap<NodeName, String>) -> String {
    let told: Vec<String> =
        waiting.iter().take(NODES_TOLD).map(|(name, why)| format!("{name} ({why})")).collect();
    match waiting.len().saturating_sub(NODES_TOLD) {
        0 => told.join(", "),
        more => format!("{} and {more} more", told.join(", ")),
    }
}

/// The way of a route over an interface.
fn way_of(interface: Interface) -> Way {
    match interface {
        Interface::Underlay(_) => Way::Direct,
        Interface::Device(name) => way_of_device(name),
    }
}

/// The way that one of our devices stands for.
pub(crate) fn way_of_device(name: &str) -> Way {
    match name {
        IPIP_DEVICE => Way::Ipip,
        WIREGUARD_DEVICE => Way::Wireguard,
        _ => Way::Vxlan,
    }
}

/// Ways by which packets come with a configuration.
fn ways_of(view: &ClusterView) -> BTreeSet<Way> {
    let ways = in_use(view).into_iter().flat_map(|one| match one {
        Encapsulation::None => vec![Way::Direct],
        Encapsulation::Vxlan => vec![Way::Vxlan],
        Encapsulation::VxlanCrossSubnet => vec![Way::Vxlan, Way::Direct],
        Encapsulation::Ipip => vec![Way::Ipip],
        Encapsulation::IpipCrossSubnet => vec![Way::Ipip, Way::Direct],
        Encapsulation::Wireguard => vec![Way::Wireguard],
    });
    ways.collect()
}

/// The same with BGP.
fn all_ways(view: &ClusterView) -> BTreeSet<Way> {
    let bgp = (view.config.backend == Backend::Bgp).then_some(Way::Bgp);
    ways_of(view).into_iter().chain(bgp).collect()
}

fn sends(desired: &Desired, is_bgp: bool) -> BTreeSet<Way> {
    let ways = desired.routes.values().filter_map(|route| match route.target {
        Target::Via(via) => Some(way_of(via.interface)),
        Target::Blackhole | Target::Unreachable => None,
    });
    ways.chain(is_bgp.then_some(Way::Bgp)).collect()
}

/// The newest plan with these routes, and with the devices of all.
fn merge(plans: Vec<Desired>, routes: BTreeMap<RouteKey, RouteSpec>) -> Desired {
    let mut plans = plans.into_iter().rev();
    let mut merged = plans.next().unwrap_or_default();
    for plan in plans {
        merged.prune &= plan.prune;
        for sysctl in plan.sysctls {
            if !merged.sysctls.iter().any(|(name, _)| *name == sysctl.0) {
                merged.sysctls.push(sysctl);
            }
        }
        for (name, old) in plan.devices {
            let Some(device) = merged.devices.get_mut(name) else {
                merged.devices.insert(name, old);
                continue;
            };
            device.addresses.extend(old.addresses);
            match (&mut device.kind, old.kind) {
                (
                    DeviceKind::Vxlan { neighbours, fdb, .. },
                    DeviceKind::Vxlan { neighbours: more, fdb: further, .. },
                ) => {
                    add(neighbours, more);
                    add(fdb, further);
                }
                (DeviceKind::Wireguard { peers, .. }, DeviceKind::Wireguard { peers: more, .. }) => {
                    for (key, peer) in more {
                        match peers.get_mut(&key) {
                            Some(there) => there.allowed.extend(peer.allowed),
                            None => drop(peers.insert(key, peer)),
                        }
                    }
                }
                _ => {}
            }
        }
    }
    merged.routes = routes;
    count_neighbours(&mut merged);
    merged
}

fn add<K: Ord, V>(into: &mut BTreeMap<K, V>, more: BTreeMap<K, V>) {
    for (key, value) in more {
        into.entry(key).or_insert(value);
    }
}
