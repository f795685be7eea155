//! The reconciler over the fake kernel: every backend, random disturbance, foreign objects, adoption.

use ipnet::IpNet;
use podway_kern::fib::{FakeKernel, Kernel as _};
use podway_kern::rtnl::{NextHop, Route, RouteKind};
use podway_model::cluster::Backend;
use podway_model::ids::WireguardKey;
use podway_model::names::{NEXT_HOP_ID_MIN, ROUTE_PROTOCOL, VXLAN_DEVICE};
use proptest::prelude::*;

use super::super::actual::{Actual, DEVICES};
use super::super::desired::{Desired, DeviceKind, Interface, Target};
use super::super::reconcile::{Outcome, Reconciler};
use super::{Cluster, ip, is_settled, net};

const BACKENDS: [Backend; 5] =
    [Backend::HostGw, Backend::Vxlan, Backend::Ipip, Backend::Wireguard, Backend::Bgp];

fn machine() -> Reconciler<FakeKernel> {
    let addresses = [net("192.0.2.1/24"), net("fd00:2::1/64")];
    Reconciler::new(FakeKernel::with_uplink("eth0", 1500, &addresses))
}

fn pass(reconciler: &mut Reconciler<FakeKernel>, desired: &Desired) -> Outcome {
    futures::executor::block_on(reconciler.reconcile(desired))
}

/// Says what differs between the kernel and what is desired, by its own reading of the kernel's tables.
fn differences(kernel: &FakeKernel, desired: &Desired) -> Vec<String> {
    let mut wrong = Vec::new();
    let ours: Vec<&Route> = kernel.routes.values().filter(|r| r.protocol == ROUTE_PROTOCOL).collect();
    for route in &ours {
        if !desired.routes.contains_key(&route.key()) {
            wrong.push(format!("not wanted: {route}"));
        }
    }
    let index_of = |name: &str| kernel.links.values().find(|link| link.name == name).map(|link| link.index);
    for (key, spec) in &desired.routes {
        let Some(route) = ours.iter().find(|route| route.key() == *key) else {
            wrong.push(format!("missing: {}", key.destination));
            continue;
        };
        let fits = match spec.target {
            Target::Blackhole => route.kind == RouteKind::Blackhole,
            Target::Unreachable => route.kind == RouteKind::Unreachable,
            Target::Via(via) => {
                let hop = route.next_hop.and_then(|id| kernel.next_hops.get(&id));
                let index = match via.interface {
                    Interface::Device(name) => index_of(name),
                    Interface::Underlay(index) => Some(index),
                };
                hop.is_some_and(|hop| hop.gateway == via.gateway && Some(hop.interface) == index)
            }
        };
        if !fits || route.source != spec.source || route.mtu != spec.mtu.map(|mtu| mtu.bytes()) {
            wrong.push(format!("wrong: {route}"));
        }
    }
    for hop in kernel.next_hops.values().filter(|hop| hop.protocol == ROUTE_PROTOCOL) {
        if !ours.iter().any(|route| route.next_hop == Some(hop.id)) {
            wrong.push(format!("unused: {hop}"));
        }
    }
    for name in DEVICES {
        match (desired.devices.get(name), index_of(name)) {
            (None, None) => {}
            (None, Some(_)) | (Some(_), None) => wrong.push(format!("device {name}")),
            (Some(device), Some(index)) => {
                let link = &kernel.links[&index];
                if !link.up || link.mtu != device.mtu.bytes() {
                    wrong.push(format!("state of {name}"));
                }
                let addresses: Vec<IpNet> =
                    kernel.addresses.iter().filter(|(i, _)| *i == index).map(|(_, a)| *a).collect();
                if addresses != device.addresses.iter().copied().map(IpNet::from).collect::<Vec<_>>() {
                    wrong.push(format!("addresses of {name}: {addresses:?}"));
                }
                let held = match &device.kind {
                    DeviceKind::Vxlan { mac, fdb, neighbours, .. } => {
                        let there = kernel.fdb.values().filter(|e| e.index == index);
                        let held = there.map(|e| (e.mac, e.remote)).eq(fdb.clone());
                        let there = kernel.neighbours.values().filter(|n| n.index == index);
                        link.mac == Some(*mac)
                            && held
                            && there.map(|n| (n.address, n.mac)).eq(neighbours.clone())
                    }
                    DeviceKind::Ipip { local } => link.ipip.unwrap().local == Some(*local),
                    DeviceKind::Wireguard { port, key, peers } => {
                        let there = &kernel.wireguard[&index];
                        there.port == *port
                            && there.private_key.as_ref() == Some(key)
                            && there.peers == *peers
                    }
                };
                if !held {
                    wrong.push(format!("contents of {name}"));
                }
            }
        }
    }
    wrong
}

#[test]
fn each_backend_is_programmed_whole_and_a_second_pass_changes_nothing() {
    for backend in BACKENDS {
        let desired = Cluster::new(backend).desired();
        let mut machine = machine();
        let outcome = pass(&mut machine, &desired);
        assert_eq!(outcome.failures, Vec::<String>::new(), "{backend}");
        assert_eq!(differences(machine.kernel(), &desired), Vec::<String>::new(), "{backend}");
        assert_eq!((outcome.routes.desired, outcome.routes.actual, outcome.routes.failed), (8, 8, 0));
        let (reads, log) = (machine.reads, machine.kernel().log.len());
        assert_eq!(pass(&mut machine, &desired).changed, 0);
        assert_eq!((machine.reads, machine.kernel().log.len()), (reads, log), "{backend}: not quiet");
    }
}

#[test]
fn one_next_hop_object_per_peer_and_family() {
    let mut cluster = Cluster::new(Backend::HostGw);
    cluster.peer(2).blocks.insert(net("10.244.2.64/26"));
    cluster.peer(2).blocks.insert(net("10.244.2.128/26"));
    let mut machine = machine();
    pass(&mut machine, &cluster.desired());
    assert_eq!(machine.kernel().next_hops.len(), 4);
}

#[test]
fn a_restart_adopts_everything_and_deletes_nothing() {
    for backend in BACKENDS {
        let desired = Cluster::new(backend).desired();
        let mut before = machine();
        pass(&mut before, &desired);
        let mut kernel = before.kernel().clone();
        kernel.log.clear();
        let mut after = Reconciler::new(kernel);
        assert_eq!(pass(&mut after, &desired).changed, 0, "{backend}");
        assert_eq!(after.kernel().log, Vec::<String>::new(), "{backend}");
    }
}

#[test]
fn nothing_is_removed_while_inputs_are_not_in_sync() {
    let mut cluster = Cluster::new(Backend::Bgp);
    let mut machine = machine();
    pass(&mut machine, &cluster.desired());
    cluster.bgp = Default::default();
    pass(&mut machine, &cluster.desired());
    assert_eq!(machine.kernel().routes(ROUTE_PROTOCOL).unwrap().len(), 8);
    cluster.bgp.synced = true;
    let desired = cluster.desired();
    pass(&mut machine, &desired);
    assert_eq!(differences(machine.kernel(), &desired), Vec::<String>::new());
    assert_eq!(machine.kernel().routes(ROUTE_PROTOCOL).unwrap().len(), 4);
}

#[test]
fn a_change_of_backend_repoints_every_route_and_takes_the_old_device_away_last() {
    for from in BACKENDS {
        for to in BACKENDS {
            let mut machine = machine();
            pass(&mut machine, &Cluster::new(from).desired());
            machine.kernel().log.clear();
            let desired = Cluster::new(to).desired();
            pass(&mut machine, &desired);
            assert_eq!(differences(machine.kernel(), &desired), Vec::<String>::new(), "{from} to {to}");
            let log = machine.kernel().log.clone();
            assert!(!log.iter().any(|line| line.starts_with("delete route")), "{from} to {to}: {log:?}");
            if from == Backend::Vxlan && !desired.devices.contains_key(VXLAN_DEVICE) {
                assert!(log.last().unwrap().starts_with("delete link"), "{log:?}");
            }
        }
    }
}

#[test]
fn a_route_that_cannot_be_repointed_keeps_its_old_way() {
    let mut cluster = Cluster::new(Backend::HostGw);
    let mut machine = machine();
    pass(&mut machine, &cluster.desired());
    // Node n2 moves to an address that the kernel refuses as a gateway: off link, though we believe otherwise.
    cluster.facts.on_link.push((2, net("198.51.100.0/24")));
    cluster.record(2).address_v4 = Some([198, 51, 100, 2].into());
    let outcome = pass(&mut machine, &cluster.desired());
    assert!(outcome.failures[0].contains("via 198.51.100.2"), "{:?}", outcome.failures);
    let kernel = machine.kernel();
    let route = kernel.routes.values().find(|r| r.destination == net("10.244.2.0/26")).unwrap();
    assert_eq!(kernel.next_hops[&route.next_hop.unwrap()].gateway, ip("192.0.2.2"));
}

#[test]
fn a_foreign_route_in_the_way_is_left_alone_and_told() {
    let desired = Cluster::new(Backend::HostGw).desired();
    let mut machine = machine();
    let foreign = Route { interface: Some(2), ..Route::to(net("10.244.2.0/26"), 4) };
    machine.kernel().routes.insert(foreign.key(), foreign.clone());
    let taken =
        NextHop { id: NEXT_HOP_ID_MIN, protocol: 4, interface: 2, gateway: ip("192.0.2.77"), onlink: false };
    machine.kernel().next_hops.insert(taken.id, taken);
    let outcome = pass(&mut machine, &desired);
    assert_eq!((outcome.failed, outcome.routes.failed), (1, 1));
    assert!(outcome.failures[0].contains("not ours is in the way"), "{:?}", outcome.failures);
    assert_eq!(machine.kernel().routes[&foreign.key()], foreign);
    assert_eq!(machine.kernel().next_hops[&taken.id], taken);
    // Once it is gone, ours comes.
    machine.kernel().routes.remove(&foreign.key());
    machine.invalidate();
    assert_eq!(pass(&mut machine, &desired).failed, 0);
}

#[test]
fn another_programs_tunnel_with_our_vni_is_named() {
    let desired = Cluster::new(Backend::Vxlan).desired();
    let mut machine = machine();
    let mut flannel = machine.kernel().links[&2].clone();
    (flannel.index, flannel.name) = (9, "flannel.1".to_owned());
    flannel.vxlan = Some(podway_kern::rtnl::VxlanParams {
        vni: 1,
        port: 8472,
        local: Some(ip("192.0.2.1")),
        learning: false,
    });
    machine.kernel().links.insert(9, flannel);
    let outcome = pass(&mut machine, &desired);
    assert!(outcome.failures[0].contains("such as flannel.1"), "{:?}", outcome.failures);
    assert!(machine.kernel().links.contains_key(&9));
    machine.kernel().delete_link(9);
    machine.invalidate();
    pass(&mut machine, &desired);
    assert_eq!(differences(machine.kernel(), &desired), Vec::<String>::new());
}

/// Something that another program, or fate, does to the kernel.
#[derive(Debug, Clone)]
enum Disturbance {
    LoseRoute(prop::sample::Index),
    LoseNextHop(prop::sample::Index),
    LoseAddress(prop::sample::Index),
    LoseNeighbour(prop::sample::Index),
    LoseForwarding(prop::sample::Index),
    LosePeer(prop::sample::Index),
    LoseDevice(prop::sample::Index),
    FlapLink(u8),
    ChangeMac,
    Stray(u8),
    Refuse(u8),
    Backend(u8),
    PeerLeaves(u8),
    PeerReturns(u8),
    PeerMoves(u8),
}

fn disturbance() -> impl Strategy<Value = Disturbance> {
    let any = any::<prop::sample::Index>;
    prop_oneof![
        any().prop_map(Disturbance::LoseRoute),
        any().prop_map(Disturbance::LoseNextHop),
        any().prop_map(Disturbance::LoseAddress),
        any().prop_map(Disturbance::LoseNeighbour),
        any().prop_map(Disturbance::LoseForwarding),
        any().prop_map(Disturbance::LosePeer),
        any().prop_map(Disturbance::LoseDevice),
        (1..4u8).prop_map(Disturbance::FlapLink),
        Just(Disturbance::ChangeMac),
        (0..8u8).prop_map(Disturbance::Stray),
        (1..9u8).prop_map(Disturbance::Refuse),
        (0..5u8).prop_map(Disturbance::Backend),
        (2..4u8).prop_map(Disturbance::PeerLeaves),
        (2..4u8).prop_map(Disturbance::PeerReturns),
        (2..4u8).prop_map(Disturbance::PeerMoves),
    ]
}

fn pick<T: Clone>(index: &prop::sample::Index, from: impl IntoIterator<Item = T>) -> Option<T> {
    let all: Vec<T> = from.into_iter().collect();
    (!all.is_empty()).then(|| index.get(&all).clone())
}

/// Does it. The uplink's own addresses come back, as its own manager would see to.
fn disturb(kernel: &mut FakeKernel, cluster: &mut Cluster, what: &Disturbance) {
    let ours = |route: &Route| route.protocol == ROUTE_PROTOCOL;
    match what {
        Disturbance::LoseRoute(i) => {
            if let Some(key) = pick(i, kernel.routes.values().filter(|r| ours(r)).map(Route::key)) {
                kernel.routes.remove(&key);
            }
        }
        Disturbance::LoseNextHop(i) => {
            let ids = kernel.next_hops.values().filter(|n| n.protocol == ROUTE_PROTOCOL).map(|n| n.id);
            if let Some(id) = pick(i, ids) {
                kernel.delete_next_hop(id);
            }
        }
        Disturbance::LoseAddress(i) => {
            if let Some((index, address)) = pick(i, kernel.addresses.clone()) {
                kernel.delete_address(index, address);
            }
        }
        Disturbance::LoseNeighbour(i) => {
            if let Some(key) = pick(i, kernel.neighbours.keys().copied()) {
                kernel.neighbours.remove(&key);
            }
        }
        Disturbance::LoseForwarding(i) => {
            if let Some(key) = pick(i, kernel.fdb.keys().copied()) {
                kernel.fdb.remove(&key);
            }
        }
        Disturbance::LosePeer(i) => {
            for device in kernel.wireguard.values_mut() {
                if let Some(key) = pick(i, device.peers.keys().copied()) {
                    device.peers.remove(&key);
                }
                // Somebody sets another key, and adds a peer of his own.
                device.private_key = None;
                device.peers.insert(WireguardKey([99; 32]), Default::default());
            }
        }
        Disturbance::LoseDevice(i) => {
            let ours = kernel.links.values().filter(|link| DEVICES.contains(&link.name.as_str()));
            if let Some(index) = pick(i, ours.map(|link| link.index)) {
                kernel.delete_link(index);
            }
        }
        Disturbance::FlapLink(n) => {
            let indices: Vec<u32> = kernel.links.keys().copied().filter(|i| *i != 1).collect();
            let index = indices[usize::from(*n) % indices.len()];
            kernel.set_up(index, false);
            kernel.set_up(index, true);
        }
        Disturbance::ChangeMac => {
            for link in kernel.links.values_mut().filter(|l| l.name == VXLAN_DEVICE) {
                link.mac = Some(podway_model::names::HOST_MAC);
            }
        }
        Disturbance::Stray(n) => {
            let stray = Route::blackhole(net(&format!("10.99.{n}.0/24")), ROUTE_PROTOCOL);
            kernel.routes.insert(stray.key(), stray);
        }
        Disturbance::Refuse(n) => kernel.refuse_next = usize::from(*n),
        Disturbance::Backend(n) => cluster.view.config.backend = BACKENDS[usize::from(*n)],
        Disturbance::PeerLeaves(i) => {
            cluster.peer(*i).blocks.clear();
            cluster.bgp.routes.retain(|net, _| !net.to_string().starts_with(&format!("10.244.{i}.")));
        }
        Disturbance::PeerReturns(i) => {
            let fresh = Cluster::new(Backend::HostGw);
            *cluster.peer(*i) = super::node(*i);
            cluster.bgp.routes.extend(fresh.bgp.routes);
        }
        Disturbance::PeerMoves(i) => {
            cluster.record(*i).address_v4 = Some([192, 0, 2, 100 + *i].into());
        }
    }
    kernel.addresses.extend([(2, net("192.0.2.1/24")), (2, net("fd00:2::1/64"))]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Whatever happens, the kernel ends as desired, and what is not ours is as it was.
    #[test]
    fn after_any_disturbance_the_kernel_ends_as_desired(
        backend in 0..5usize,
        storms in prop::collection::vec(prop::collection::vec(disturbance(), 1..5), 1..6),
    ) {
        let mut cluster = Cluster::new(BACKENDS[backend]);
        let mut machine = machine();
        let route = Route { gateway: Some(ip("192.0.2.9")), interface: Some(2), ..Route::to(net("10.9.0.0/16"), 4) };
        let pods = [net("10.244.1.5/32"), net("10.244.1.6/32")]
            .map(|pod| Route { interface: Some(1), ..Route::to(pod, 113) });
        let hop = NextHop { id: 7, protocol: 4, interface: 1, gateway: ip("192.0.2.9"), onlink: true };
        let foreign = [route, pods[0].clone(), pods[1].clone()];
        for storm in &storms {
            // Foreign things too are put back by whoever owns them; what counts is that we do not touch them.
            machine.kernel().routes.extend(foreign.iter().map(|route| (route.key(), route.clone())));
            machine.kernel().next_hops.insert(hop.id, hop);
            for what in storm {
                let kernel = machine.kernel();
                let mut moved = kernel.clone();
                disturb(&mut moved, &mut cluster, what);
                *kernel = moved;
            }
            let present: Vec<Route> =
                foreign.iter().filter(|r| machine.kernel().routes.contains_key(&r.key())).cloned().collect();
            machine.invalidate();
            let desired = cluster.desired();
            pass(&mut machine, &desired);
            // A refusal passes, and the task makes another pass then.
            machine.kernel().refuse_next = 0;
            let outcome = pass(&mut machine, &desired);
            prop_assert_eq!(outcome.failures, Vec::<String>::new());
            prop_assert_eq!(differences(machine.kernel(), &desired), Vec::<String>::new());
            for route in present {
                prop_assert_eq!(machine.kernel().routes.get(&route.key()), Some(&route));
            }
            prop_assert_eq!(machine.kernel().next_hops.get(&hop.id), Some(&hop));
            // What was noted along the way is what a fresh look finds.
            let fresh = Actual::read(machine.kernel()).unwrap();
            prop_assert!(is_settled(&desired, &fresh));
        }
    }
}
