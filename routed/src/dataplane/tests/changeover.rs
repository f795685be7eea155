//! Changes of backend: several nodes, each with its own delay, under virtual time. At every instant every node's route to
//! every other leads by a way that the other takes; once quiet, nothing old is left.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use podway_kern::rtnl::RouteKey;
use podway_model::cluster::{Backend, Encapsulation};
use podway_model::ways::{Way, Ways};
use proptest::prelude::*;

use super::super::changeover::{Changeover, Step, way_of_device};
use super::super::desired::{Interface, Target};
use super::{Cluster, TIMES, ip, name, net};

const NODES: u8 = 3;
const BACKENDS: [Backend; 4] = [Backend::Vxlan, Backend::HostGw, Backend::Bgp, Backend::Wireguard];

fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

/// What the store tells, in its order.
#[derive(Debug, Clone)]
enum Entry {
    Backend(Backend),
    Ways(u8, Ways),
}

/// A node: what it has seen, and its kernel.
struct Node {
    cluster: Cluster,
    changeover: Changeover,
    /// How much of the store it has seen.
    seen: usize,
    devices: BTreeSet<Way>,
    takes_plain: bool,
    routes: BTreeMap<RouteKey, Way>,
    told: Option<Ways>,
    under_way: Option<String>,
    runs_bgp: bool,
}

struct World {
    now: Duration,
    store: Vec<Entry>,
    nodes: BTreeMap<u8, Node>,
    /// Sessions: who has heard of whom.
    heard: BTreeSet<(u8, u8)>,
}

/// The cluster as node `n<i>` sees it.
fn seen_by(i: u8, backend: Backend) -> Cluster {
    let mut cluster = Cluster::new(backend);
    cluster.node = name(&format!("n{i}"));
    cluster.facts.address_v4 = Some([192, 0, 2, i].into());
    cluster.facts.address_v6 = Some(format!("fd00:2::{i}").parse().unwrap());
    cluster.view.own_blocks[0].cidr = net(&format!("10.244.{i}.0/26"));
    cluster.view.own_blocks[1].cidr = net(&format!("fd00:244:{i}::/122"));
    cluster.view.tunnel_v4 = Some([10, 244, i, 0].into());
    cluster.view.tunnel_v6 = Some(format!("fd00:244:{i}::").parse().unwrap());
    cluster.bgp.routes.clear();
    cluster
}

fn ways(receives: &[Way], sends: &[Way]) -> Option<Ways> {
    Some(Ways { receives: receives.iter().copied().collect(), sends: sends.iter().copied().collect() })
}

/// The ways of the routes to other nodes' blocks.
fn leads(step: &Step) -> BTreeMap<RouteKey, Way> {
    let way = |interface| match interface {
        Interface::Underlay(_) => Way::Direct,
        Interface::Device(name) => way_of_device(name),
    };
    let routes = step.desired.routes.iter().filter_map(|(key, spec)| match spec.target {
        Target::Via(via) => Some((*key, way(via.interface))),
        Target::Blackhole | Target::Unreachable => None,
    });
    routes.collect()
}

impl World {
    fn new(backend: Backend) -> Self {
        let node = |i| Node {
            cluster: seen_by(i, backend),
            changeover: Changeover::resume(TIMES, vec![]),
            seen: 0,
            devices: BTreeSet::new(),
            takes_plain: false,
            routes: BTreeMap::new(),
            told: None,
            under_way: None,
            runs_bgp: backend == Backend::Bgp,
        };
        let nodes = (1..=NODES).map(|i| (i, node(i))).collect();
        let mut world = Self { now: Duration::ZERO, store: vec![], nodes, heard: BTreeSet::new() };
        world.become_quiet();
        world
    }

    /// The store shows a node everything, or one entry more.
    fn deliver(&mut self, i: u8, all: bool) {
        let node = self.nodes.get_mut(&i).unwrap();
        while node.seen < self.store.len() {
            match self.store[node.seen].clone() {
                Entry::Backend(backend) => node.cluster.view.config.backend = backend,
                Entry::Ways(of, ways) => node.cluster.record(of).ways = Some(ways),
            }
            node.seen += 1;
            if !all {
                break;
            }
        }
    }

    /// One pass of a node.
    fn pass(&mut self, i: u8) {
        let node = self.nodes.get_mut(&i).unwrap();
        node.cluster.bgp.routes = (1..=NODES)
            .filter(|other| self.heard.contains(&(i, *other)))
            .flat_map(|other| {
                [
                    (net(&format!("10.244.{other}.0/26")), vec![ip(&format!("192.0.2.{other}"))]),
                    (net(&format!("fd00:244:{other}::/122")), vec![ip(&format!("fd00:2::{other}"))]),
                ]
            })
            .collect();
        let step = node.changeover.step(self.now, node.cluster.inputs());
        let devices = step.desired.devices.keys().map(|name| way_of_device(name));
        if step.desired.prune {
            node.routes.clear();
            node.devices.clear();
        }
        node.routes.extend(leads(&step));
        node.devices.extend(devices);
        node.takes_plain = step.under_way.is_some() || step.receives.contains(&Way::Direct);
        let mut receives = step.receives.clone();
        receives.retain(|way| *way == Way::Direct || node.devices.contains(way));
        let told = Some(Ways { receives, sends: step.sends.clone() });
        if node.told != told {
            node.told.clone_from(&told);
            self.store.extend(told.map(|ways| Entry::Ways(i, ways)));
        }
        node.under_way = step.under_way;
        let begins = step.bgp.is_some() && !node.runs_bgp;
        node.runs_bgp = step.bgp.is_some();
        if begins {
            // Nobody was up before: there is nobody to wait for.
            node.cluster.bgp.synced = true;
        }
        if !node.runs_bgp {
            self.heard.retain(|(a, b)| *a != i && *b != i);
        }
    }

    /// `routed` is killed and started. `between`: after it has written down what it is about to do, and before doing it.
    fn restart(&mut self, i: u8, between: bool) {
        let node = self.nodes.get_mut(&i).unwrap();
        if between {
            node.changeover.step(self.now, node.cluster.inputs());
        }
        node.changeover = Changeover::resume(TIMES, node.changeover.stages());
        node.runs_bgp = node.changeover.bgp().is_some();
        if node.runs_bgp {
            // Others keep its routes (graceful restart); it has to hear theirs again.
            node.cluster.bgp.synced = false;
            self.heard.retain(|(a, _)| *a != i);
        }
    }

    /// A session comes up, if both want it.
    fn connect(&mut self, a: u8, b: u8) {
        if a != b && self.nodes[&a].runs_bgp && self.nodes[&b].runs_bgp {
            self.heard.extend([(a, b), (b, a)]);
        }
        for i in [a, b] {
            let missing = (1..=NODES)
                .any(|other| other != i && self.nodes[&other].runs_bgp && !self.heard.contains(&(i, other)));
            let node = self.nodes.get_mut(&i).unwrap();
            node.cluster.bgp.synced |= node.runs_bgp && !missing;
        }
    }

    fn become_quiet(&mut self) {
        for round in 0..40 {
            for a in 1..=NODES {
                self.deliver(a, true);
                (1..=NODES).for_each(|b| self.connect(a, b));
                self.pass(a);
            }
            // Once beyond the longest wait, of a change that was overtaken.
            self.now += if round == 20 { TIMES.overtaken } else { ms(50) };
        }
    }

    /// Routes that lead where nobody takes them.
    fn broken(&self) -> Vec<String> {
        let mut broken = vec![];
        for (a, node) in &self.nodes {
            for (b, other) in self.nodes.iter().filter(|(b, _)| *b != a) {
                for block in [format!("10.244.{b}.0/26"), format!("fd00:244:{b}::/122")] {
                    let route = node.routes.iter().find(|(key, _)| key.destination == net(&block));
                    let takes = |way: Way| match way {
                        Way::Direct => other.takes_plain,
                        way => other.devices.contains(&way),
                    };
                    match route {
                        Some((_, way)) if takes(*way) => {}
                        Some((_, way)) => broken.push(format!("n{a} sends to {block} by {way}")),
                        None => broken.push(format!("n{a} has no route to {block}")),
                    }
                }
            }
        }
        broken
    }
}

/// Something that happens.
#[derive(Debug, Clone)]
enum Happening {
    Change(usize),
    Deliver(u8, bool),
    Pass(u8),
    Restart(u8, bool),
    Connect(u8, u8),
    Wait(u64),
}

fn happening() -> impl Strategy<Value = Happening> {
    let node = || 1..=NODES;
    prop_oneof![
        1 => (0..BACKENDS.len()).prop_map(Happening::Change),
        6 => (node(), any::<bool>()).prop_map(|(i, all)| Happening::Deliver(i, all)),
        6 => node().prop_map(Happening::Pass),
        1 => (node(), any::<bool>()).prop_map(|(i, between)| Happening::Restart(i, between)),
        3 => (node(), node()).prop_map(|(a, b)| Happening::Connect(a, b)),
        4 => (1..400u64).prop_map(Happening::Wait),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]

    #[test]
    fn at_every_instant_of_a_change_packets_go_where_they_are_taken(
        first in 0..BACKENDS.len(), happenings in prop::collection::vec(happening(), 1..80),
    ) {
        let mut world = World::new(BACKENDS[first]);
        prop_assert_eq!(world.broken(), Vec::<String>::new());
        let mut newest = BACKENDS[first];
        for happening in happenings {
            match happening {
                Happening::Change(to) => {
                    newest = BACKENDS[to];
                    world.store.push(Entry::Backend(newest));
                }
                Happening::Deliver(i, all) => world.deliver(i, all),
                Happening::Pass(i) => world.pass(i),
                Happening::Restart(i, between) => world.restart(i, between),
                Happening::Connect(a, b) => world.connect(a, b),
                Happening::Wait(time) => world.now += ms(time),
            }
            prop_assert_eq!(world.broken(), Vec::<String>::new());
        }
        world.become_quiet();
        prop_assert_eq!(world.broken(), Vec::<String>::new());
        for node in world.nodes.values() {
            prop_assert_eq!(&node.under_way, &None);
            let expected = match newest {
                Backend::HostGw | Backend::Bgp => Way::Direct,
                Backend::Wireguard => Way::Wireguard,
                Backend::Vxlan | Backend::Ipip => Way::Vxlan,
            };
            prop_assert!(node.routes.values().all(|way| *way == expected), "{:?}", node.routes);
            let devices: BTreeSet<Way> = [expected].into_iter().filter(|way| *way != Way::Direct).collect();
            prop_assert_eq!(&node.devices, &devices);
            prop_assert_eq!(node.runs_bgp, newest == Backend::Bgp);
        }
    }
}

/// A node in the middle of a change, and the step that it takes.
fn changed(from: Backend, to: Backend, prepare: impl Fn(&mut Cluster)) -> (Cluster, Changeover) {
    let mut cluster = Cluster::new(from);
    let mut changeover = Changeover::resume(TIMES, vec![]);
    changeover.step(ms(0), cluster.inputs());
    cluster.view.config.backend = to;
    prepare(&mut cluster);
    (cluster, changeover)
}

#[test]
fn a_node_that_does_not_tell_is_followed_after_a_while_and_the_old_way_lingers() {
    let (cluster, mut changeover) = changed(Backend::Vxlan, Backend::HostGw, |_| {});
    let mut at = |time| changeover.step(ms(time), cluster.inputs());
    let step = at(1000);
    assert!(leads(&step).values().all(|way| *way == Way::Vxlan));
    assert_eq!((step.receives.clone(), step.deadline), ([Way::Direct, Way::Vxlan].into(), Some(ms(1200))));
    // The smallest MTU counts from the first moment on, so that flows have learnt it when the way changes.
    assert_eq!(step.mtu.bytes(), 1450);
    let step = at(1200);
    assert!(leads(&step).values().all(|way| *way == Way::Direct));
    assert!(step.desired.routes.values().filter_map(|route| route.mtu).all(|mtu| mtu.bytes() == 1450));
    assert_eq!((step.desired.devices.len(), step.deadline), (1, Some(ms(1400))));
    assert_eq!(at(1400).receives, [Way::Direct].into());
    assert_eq!(at(1499).desired.devices.len(), 1, "announced, and still there");
    at(1500);
    let step = at(1500);
    assert_eq!((step.desired.devices.len(), step.under_way, step.deadline), (0, None, None));
    assert_eq!(step.mtu.bytes(), 1500);
}

#[test]
fn a_node_that_is_late_is_waited_for_and_named_and_one_that_is_gone_is_not() {
    let late = |cluster: &mut Cluster| {
        cluster.record(2).ways = ways(&[Way::Vxlan, Way::Direct], &[Way::Direct]);
        cluster.record(3).ways = ways(&[Way::Vxlan], &[Way::Vxlan]);
    };
    let (mut cluster, mut changeover) = changed(Backend::Vxlan, Backend::HostGw, late);
    let step = changeover.step(ms(60_000), cluster.inputs());
    let by = |step: &Step, block: &str| leads(step)[&super::super::desired::key(net(block), None)];
    assert_eq!((by(&step, "10.244.2.0/26"), by(&step, "10.244.3.0/26")), (Way::Direct, Way::Vxlan));
    let words = step.under_way.unwrap();
    assert_eq!(words, "from vxlan to host-gw: waiting for n3 (does not receive plain routes yet)");
    // It is ready, and its own routes have not moved yet.
    cluster.record(3).ways = ways(&[Way::Vxlan, Way::Direct], &[Way::Vxlan]);
    let step = changeover.step(ms(70_000), cluster.inputs());
    assert_eq!(by(&step, "10.244.3.0/26"), Way::Direct);
    assert!(step.under_way.unwrap().contains("n3 (sends by vxlan)"));
    // Without a sign of life it is named so, and keeps the old device for its time, no longer.
    cluster.peer(3).live = false;
    let words = changeover.step(ms(71_000), cluster.inputs()).under_way.unwrap();
    assert!(words.contains("n3 (sends by vxlan, and shows no sign of life)"), "{words}");
    assert!(changeover.step(ms(670_999), cluster.inputs()).under_way.unwrap().contains("n3"));
    changeover.step(ms(671_000), cluster.inputs());
    changeover.step(ms(671_300), cluster.inputs());
    assert_eq!(changeover.step(ms(671_300), cluster.inputs()).under_way, None);
}

#[test]
fn towards_bgp_no_route_goes_before_its_replacement_is_there() {
    let ready = |cluster: &mut Cluster| {
        for i in [2, 3] {
            cluster.record(i).ways = ways(&[Way::Vxlan, Way::Direct], &[Way::Direct, Way::Bgp]);
        }
        cluster.bgp.synced = false;
        cluster
            .bgp
            .routes
            .retain(|net, _| net.to_string().contains("244:2") || net.to_string().contains("244.2"));
    };
    let (mut cluster, mut changeover) = changed(Backend::Vxlan, Backend::Bgp, ready);
    let step = changeover.step(ms(0), cluster.inputs());
    assert!(
        leads(&step).values().all(|way| *way == Way::Vxlan) && leads(&step).len() == 4 && !step.desired.prune
    );
    assert!(step.bgp.is_some());
    cluster.bgp.synced = true;
    let step = changeover.step(ms(10_000), cluster.inputs());
    assert_eq!(leads(&step).values().filter(|way| **way == Way::Direct).count(), 2);
    assert_eq!(leads(&step).len(), 4);
    assert!(step.under_way.unwrap().ends_with("waiting for n3 (no route to 10.244.3.0/26 by BGP yet)"));
    // The same after a restart, from what was written down.
    let mut again = Changeover::resume(TIMES, changeover.stages());
    assert_eq!(leads(&again.step(ms(0), cluster.inputs())).len(), 4);
}

#[test]
fn away_from_bgp_sessions_stay_until_nobodys_routes_are_bgps() {
    let (mut cluster, mut changeover) = changed(Backend::Bgp, Backend::Vxlan, |cluster| {
        cluster.record(2).ways = ways(&[Way::Vxlan, Way::Direct], &[Way::Vxlan]);
        cluster.record(3).ways = ways(&[Way::Direct], &[Way::Direct, Way::Bgp]);
    });
    let step = changeover.step(ms(0), cluster.inputs());
    assert_eq!(step.sends, [Way::Direct, Way::Vxlan, Way::Bgp].into());
    assert!(changeover.step(ms(60_000), cluster.inputs()).bgp.is_some());
    cluster.record(3).ways = ways(&[Way::Vxlan, Way::Direct], &[Way::Vxlan]);
    assert_eq!(changeover.step(ms(60_000), cluster.inputs()).sends, [Way::Vxlan].into());
    changeover.step(ms(61_000), cluster.inputs());
    assert_eq!(changeover.step(ms(61_000), cluster.inputs()).bgp, None);
}

#[test]
fn what_the_new_backend_cannot_reach_is_told_and_keeps_no_change_from_ending() {
    let (cluster, mut changeover) = changed(Backend::Vxlan, Backend::HostGw, |cluster| {
        cluster.record(3).address_v4 = Some([198, 51, 100, 3].into());
    });
    for time in [0, 200, 400, 500, 500] {
        let step = changeover.step(ms(time), cluster.inputs());
        assert!(step.desired.node_problems.contains_key(&name("n3")));
        assert_eq!(step.under_way.is_some(), leads(&step).len() == 4, "{time}");
    }
    assert_eq!(leads(&changeover.step(ms(501), cluster.inputs())).len(), 3);
}

#[test]
fn a_change_that_is_overtaken_keeps_its_way_for_who_reads_late() {
    let (mut cluster, mut changeover) = changed(Backend::Vxlan, Backend::HostGw, |_| {});
    changeover.step(ms(1), cluster.inputs());
    cluster.view.config.backend = Backend::Vxlan;
    let step = changeover.step(ms(2), cluster.inputs());
    assert!(leads(&step).values().all(|way| *way == Way::Vxlan));
    // Two stages suffice, but they are not forgotten by a restart either.
    let mut again = Changeover::resume(TIMES, changeover.stages());
    for (now, changeover) in [(500, &mut changeover), (500, &mut again)] {
        changeover.step(ms(0), cluster.inputs());
        assert_eq!(changeover.step(ms(now), cluster.inputs()).receives.len(), 2);
        changeover.step(ms(61_000), cluster.inputs());
        changeover.step(ms(61_000), cluster.inputs());
        assert_eq!(changeover.step(ms(61_000), cluster.inputs()).under_way, None);
    }
}

#[test]
fn a_pools_encapsulation_is_changed_in_the_same_way_and_others_settings_are_no_change() {
    let (mut cluster, mut changeover) = changed(Backend::HostGw, Backend::HostGw, |cluster| {
        cluster.view.config.wireguard.keepalive_seconds = 25;
        cluster.view.config.bgp.port = 1179;
    });
    assert_eq!(changeover.step(ms(1), cluster.inputs()).under_way, None);
    let pool = cluster.view.pools.get_mut(&"v4".parse().unwrap()).unwrap();
    pool.encapsulation = Some(Encapsulation::Vxlan);
    let step = changeover.step(ms(2), cluster.inputs());
    assert!(step.under_way.is_some() && leads(&step).values().all(|way| *way == Way::Direct));
    let step = changeover.step(ms(202), cluster.inputs());
    assert_eq!(leads(&step).values().filter(|way| **way == Way::Vxlan).count(), 2);
}
