//! The data plane's task against the kernel, each test in a network namespace of its own. Needs root.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use podway_kern::fib::NetlinkKernel;
use podway_kern::monitor::{Change, Event, Monitor};
use podway_kern::ns;
use podway_kern::rtnl::{
    Address, FdbEntry, LinkChange, LinkRef, Neighbour, Request, Route, RouteFilter, Rtnl, TABLE_MAIN, VethEnd,
};
use podway_kern::sysctl::{Family, Sysctl};
use podway_model::cluster::Backend;
use podway_model::names::{ROUTE_PROTOCOL, VXLAN_DEVICE};
use podway_model::ways::{Way, Ways};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::super::actual::Actual;
use super::super::{DataplaneStatus, Kept, Told, cleanup, run};
use super::{Cluster, TIMES, ip, is_settled, net};
use crate::view::{BgpRoutes, ClusterView, LocalFacts};

/// More than anything here takes, on a machine that is busy with other things.
const PATIENCE: Duration = Duration::from_secs(30);

/// Runs a test as a node with one uplink, in a fresh network namespace; or says why not.
fn on_a_node<F: Future<Output = ()>>(test: &str, body: impl FnOnce(Node) -> F + Send) {
    if !nix::unistd::geteuid().is_root() {
        println!("SKIP {test}: needs root");
        return;
    }
    ns::in_new_netns(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let node = Node::new();
            tokio::time::timeout(PATIENCE, body(node)).await.expect("the condition came in time");
        });
    })
    .unwrap();
}

struct Node {
    rtnl: Rtnl,
    uplink: u32,
}

fn up(link: impl Into<LinkRef>) -> Request<'static> {
    Request::SetLink(link.into(), LinkChange { up: Some(true), ..LinkChange::default() })
}

fn down(link: impl Into<LinkRef>) -> Request<'static> {
    Request::SetLink(link.into(), LinkChange { up: Some(false), ..LinkChange::default() })
}

impl Node {
    fn new() -> Self {
        let mut rtnl = Rtnl::open().unwrap();
        let end = |name: &str| VethEnd { name: name.to_owned(), mtu: Some(1500), ..VethEnd::default() };
        let pair = Request::AddVeth { host: end("eth0"), peer: end("wire"), peer_netns: None };
        rtnl.run_all(&[up("lo"), pair, up("eth0"), up("wire")]).unwrap();
        let uplink = rtnl.link("eth0").unwrap().unwrap().index;
        let mut node = Self { rtnl, uplink };
        node.set_addresses();
        node
    }

    fn set_addresses(&mut self) {
        let requests = ["192.0.2.1/24", "fd00:2::1/64"].map(|text| {
            let address = Address { index: self.uplink, address: net(text), no_prefix_route: false };
            Request::ReplaceAddress(address)
        });
        self.rtnl.run_all(&requests).unwrap();
    }

    fn cluster(&self, backend: Backend) -> Cluster {
        let mut cluster = Cluster::new(backend);
        cluster.facts.ifindex = self.uplink;
        cluster.facts.on_link.iter_mut().for_each(|(index, _)| *index = self.uplink);
        cluster
    }

    fn actual(&self) -> Actual {
        Actual::read(&mut NetlinkKernel::open().unwrap()).unwrap()
    }

    /// Waits until the kernel holds what is desired and nothing else of ours.
    async fn settled(&self, cluster: &Cluster) {
        let desired = cluster.desired();
        loop {
            let actual = self.actual();
            if is_settled(&desired, &actual) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
}

/// A running data plane and its inputs.
struct Running {
    view: watch::Sender<Arc<ClusterView>>,
    facts: watch::Sender<Option<LocalFacts>>,
    bgp: watch::Sender<Arc<BgpRoutes>>,
    status: watch::Receiver<DataplaneStatus>,
    ways: watch::Receiver<Option<Ways>>,
    task: JoinHandle<Result<(), podway_kern::KernelError>>,
    _folder: Option<tempfile::TempDir>,
}

impl Running {
    /// With a file that nobody knows.
    fn start(cluster: &Cluster) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let running = Self::resume(cluster, &folder.path().join("routing.json"));
        Self { _folder: Some(folder), ..running }
    }

    /// Goes on where the run before ended, as the file says.
    fn resume(cluster: &Cluster, state: &Path) -> Self {
        let (view, view_in) = watch::channel(Arc::new(cluster.view.clone()));
        let (facts, facts_in) = watch::channel(Some(cluster.facts.clone()));
        let (bgp, bgp_in) = watch::channel(Arc::new(cluster.bgp.clone()));
        let (status_out, status) = watch::channel(DataplaneStatus::default());
        let (ways_out, ways) = watch::channel(None);
        let told = Told { status: status_out, ways: ways_out, bgp: watch::channel(None).0 };
        let task = tokio::spawn(run(
            cluster.node.clone(),
            view_in,
            facts_in,
            bgp_in,
            cluster.wireguard.clone(),
            Kept::read(state, TIMES),
            told,
        ));
        Self { view, facts, bgp, status, ways, task, _folder: None }
    }

    fn send(&self, cluster: &Cluster) {
        self.facts.send(Some(cluster.facts.clone())).unwrap();
        self.bgp.send(Arc::new(cluster.bgp.clone())).unwrap();
        self.view.send(Arc::new(cluster.view.clone())).unwrap();
    }

    async fn programmed(&mut self) {
        self.status.wait_for(|status| status.programmed).await.unwrap();
    }

    async fn stop(self) {
        self.task.abort();
        assert!(self.task.await.unwrap_err().is_cancelled(), "the task ended by itself");
    }
}

#[test]
fn every_backend_is_programmed_and_shown() {
    on_a_node("every_backend_is_programmed_and_shown", |node| async move {
        for backend in [Backend::HostGw, Backend::Vxlan, Backend::Bgp] {
            let cluster = node.cluster(backend);
            let mut running = Running::start(&cluster);
            running.programmed().await;
            node.settled(&cluster).await;
            let status = running.status.borrow().clone();
            assert_eq!(status.backend, backend.to_string());
            assert_eq!((status.routes.desired, status.routes.actual, status.routes.failed), (8, 8, 0));
            assert_eq!(status.problems, Vec::<String>::new());
            assert_eq!(status.devices.len(), usize::from(backend == Backend::Vxlan));
            assert_eq!(Sysctl::new("net/ipv4/ip_forward").read().unwrap(), "1");
            running.stop().await;
        }
    });
}

#[test]
fn nothing_is_programmed_before_the_store_was_seen() {
    on_a_node("nothing_is_programmed_before_the_store_was_seen", |node| async move {
        let mut cluster = node.cluster(Backend::Vxlan);
        cluster.view.synced = false;
        let mut running = Running::start(&cluster);
        running.status.wait_for(|status| !status.waiting_for.is_empty()).await.unwrap();
        assert_eq!(node.actual(), Actual::default());
        cluster.view.synced = true;
        running.send(&cluster);
        running.programmed().await;
        node.settled(&cluster).await;
        running.stop().await;
    });
}

#[test]
fn what_others_delete_is_repaired_and_what_is_theirs_stays() {
    on_a_node("what_others_delete_is_repaired_and_what_is_theirs_stays", |mut node| async move {
        let cluster = node.cluster(Backend::Vxlan);
        let foreign = Route {
            gateway: Some(ip("192.0.2.9")),
            interface: Some(node.uplink),
            ..Route::to(net("10.9.0.0/16"), 4)
        };
        node.rtnl.run(Request::AddRoute(foreign)).unwrap();
        let mut running = Running::start(&cluster);
        running.programmed().await;
        node.settled(&cluster).await;

        let index = |node: &Node| node.actual().devices[VXLAN_DEVICE].link.index;
        let device = index(&node);
        let actual = node.actual();
        let (mac, remotes) = actual.devices[VXLAN_DEVICE].fdb.first_key_value().unwrap();
        let remote = *remotes.first().unwrap();
        let (address, neighbour_mac) = actual.devices[VXLAN_DEVICE].neighbours.first_key_value().unwrap();
        let route = actual.routes.values().find(|route| route.next_hop.is_some()).unwrap();
        let blackhole = actual.routes.values().find(|route| route.next_hop.is_none()).unwrap();
        let next_hop = *actual.next_hops.first_key_value().unwrap().0;
        let stray = Route::blackhole(net("10.99.0.0/24"), ROUTE_PROTOCOL);
        let host = |text: &str| Address::host(device, ip(text));
        let mac_change = LinkChange { mac: Some(podway_model::names::HOST_MAC), ..LinkChange::default() };
        let disturbances = [
            Request::DeleteRoute(route.clone()),
            Request::DeleteRoute(blackhole.clone()),
            Request::DeleteNextHop(next_hop),
            Request::DeleteFdb(FdbEntry { index: device, mac: *mac, remote }),
            Request::DeleteNeighbour(Neighbour { index: device, address: *address, mac: *neighbour_mac }),
            Request::DeleteAddress(host("10.244.1.0")),
            Request::DeleteAddress(host("fd00:244:1::")),
            Request::SetLink(device.into(), mac_change),
            down(device),
            Request::AddRoute(stray),
            Request::DeleteLink(device.into()),
        ];
        for disturbance in disturbances {
            let name = disturbance.to_string();
            node.rtnl.run(disturbance).unwrap_or_else(|e| panic!("{e}"));
            let desired = cluster.desired();
            let actual = node.actual();
            assert!(!is_settled(&desired, &actual), "{name}: nothing was disturbed");
            node.settled(&cluster).await;
        }
        // The uplink goes and comes back: the kernel has dropped nothing of the tunnel's, all of host-gw's.
        let others = RouteFilter { table: Some(TABLE_MAIN), protocol: Some(4) };
        assert_eq!(node.rtnl.routes(others).unwrap().len(), 1);
        assert!(running.status.borrow().counters["repairs"] > 0);
        running.stop().await;
    });
}

#[test]
fn a_flapping_uplink_gets_its_routes_back() {
    on_a_node("a_flapping_uplink_gets_its_routes_back", |mut node| async move {
        let cluster = node.cluster(Backend::HostGw);
        let mut running = Running::start(&cluster);
        running.programmed().await;
        node.settled(&cluster).await;
        node.rtnl.run(down(node.uplink)).unwrap();
        assert!(node.actual().next_hops.is_empty(), "the kernel drops next hops of a link that is down");
        node.rtnl.run(up(node.uplink)).unwrap();
        node.set_addresses();
        node.settled(&cluster).await;
        running.stop().await;
    });
}

#[test]
fn a_route_put_in_our_place_is_left_alone_until_it_goes() {
    on_a_node("a_route_put_in_our_place_is_left_alone_until_it_goes", |mut node| async move {
        let cluster = node.cluster(Backend::HostGw);
        let mut running = Running::start(&cluster);
        running.programmed().await;
        // `ip route replace` takes our route's place, and the kernel says so only by the new route.
        let theirs = Route {
            gateway: Some(ip("192.0.2.9")),
            interface: Some(node.uplink),
            ..Route::to(net("10.244.2.0/26"), 4)
        };
        node.rtnl.run(Request::ReplaceRoute(theirs.clone())).unwrap();
        let told = |status: &DataplaneStatus| status.problems.iter().any(|p| p.contains("is in the way"));
        running.status.wait_for(told).await.unwrap();
        let others = RouteFilter { table: Some(TABLE_MAIN), protocol: Some(4) };
        assert_eq!(node.rtnl.routes(others).unwrap(), std::slice::from_ref(&theirs));
        node.rtnl.run(Request::DeleteRoute(theirs)).unwrap();
        node.settled(&cluster).await;
        running.status.wait_for(|status| status.problems.is_empty()).await.unwrap();
        running.stop().await;
    });
}

#[test]
fn a_restart_adopts_what_is_there_without_a_single_deletion() {
    on_a_node("a_restart_adopts_what_is_there_without_a_single_deletion", |mut node| async move {
        for backend in [Backend::HostGw, Backend::Vxlan, Backend::Bgp] {
            let cluster = node.cluster(backend);
            let mut first = Running::start(&cluster);
            first.programmed().await;
            node.settled(&cluster).await;
            first.stop().await;

            let mut monitor = Monitor::open().unwrap();
            let mut unsynced = cluster.clone();
            unsynced.view.synced = false;
            unsynced.bgp = BgpRoutes::default();
            let mut second = Running::start(&unsynced);
            second.status.wait_for(|status| !status.waiting_for.is_empty()).await.unwrap();
            second.send(&cluster);
            second.programmed().await;
            second.stop().await;

            let sentinel = Route::blackhole(net("198.18.0.0/15"), 4);
            node.rtnl.run(Request::AddRoute(sentinel.clone())).unwrap();
            let mut seen = Vec::new();
            while !seen.contains(&Change::Route(Event::Present, Box::new(sentinel.clone()))) {
                seen.extend(monitor.next().await.unwrap().into_iter().map(|notice| notice.change));
            }
            let touched: Vec<&Change> = seen
                .iter()
                .filter(|change| match change {
                    Change::Route(_, route) => route.protocol == ROUTE_PROTOCOL,
                    Change::NextHop(..) | Change::Overrun => true,
                    Change::Link(event, _) | Change::Address(event, ..) | Change::Neighbour(event, _) => {
                        *event == Event::Gone
                    }
                })
                .collect();
            assert_eq!(touched, Vec::<&Change>::new(), "{backend}");
            node.rtnl.run(Request::DeleteRoute(sentinel)).unwrap();
        }
    });
}

#[test]
fn a_change_of_backend_leaves_nothing_old() {
    on_a_node("a_change_of_backend_leaves_nothing_old", |mut node| async move {
        let mut running = Running::start(&node.cluster(Backend::Vxlan));
        running.programmed().await;
        for backend in [Backend::HostGw, Backend::Vxlan, Backend::Bgp, Backend::Vxlan] {
            let cluster = node.cluster(backend);
            running.send(&cluster);
            node.settled(&cluster).await;
            let device = node.rtnl.link(VXLAN_DEVICE).unwrap();
            assert_eq!(device.is_some(), backend == Backend::Vxlan, "{backend}");
            // A change that another one overtakes is complete much later.
            running.status.wait_for(|status| status.changeover.is_none()).await.unwrap();
        }
        running.stop().await;
    });
}

/// Waits until the kernel receives by both ways, and says so.
async fn both_ways(running: &mut Running) {
    let both: Ways = Ways { receives: [Way::Direct, Way::Vxlan].into(), sends: [Way::Vxlan].into() };
    running.ways.wait_for(|ways| ways.as_ref() == Some(&both)).await.unwrap();
}

#[test]
fn a_restart_in_the_middle_of_a_change_goes_on_where_it_was() {
    on_a_node("a_restart_in_the_middle_of_a_change_goes_on_where_it_was", |mut node| async move {
        let folder = tempfile::tempdir().unwrap();
        let state = folder.path().join("routing.json");
        let filter = Sysctl::conf(Family::V4, "eth0", "rp_filter");
        filter.write("1").unwrap();
        let waiting = |cluster: &mut Cluster| {
            for i in [2, 3] {
                cluster.record(i).ways =
                    Some(Ways { receives: [Way::Vxlan].into(), sends: [Way::Vxlan].into() });
            }
        };
        let mut cluster = node.cluster(Backend::Vxlan);
        let mut running = Running::resume(&cluster, &state);
        running.programmed().await;
        node.settled(&cluster).await;
        let before = node.actual();

        // Nobody else has seen the change: nothing is re-pointed, and a strict filter lets plain packets in.
        cluster.view.config.backend = Backend::HostGw;
        waiting(&mut cluster);
        running.send(&cluster);
        both_ways(&mut running).await;
        assert_eq!(filter.read().unwrap(), "2");
        running.stop().await;

        // Killed, and started again: still so, whatever the configuration says.
        let mut running = Running::resume(&cluster, &state);
        both_ways(&mut running).await;
        assert!(running.status.borrow().changeover.as_ref().is_some_and(|words| words.contains("n2")));
        let now = node.actual();
        assert_eq!((&now.next_hops, &now.devices), (&before.next_hops, &before.devices));

        // The others follow: the old side goes, and the filter is as it was.
        for i in [2, 3] {
            cluster.record(i).ways =
                Some(Ways { receives: [Way::Direct].into(), sends: [Way::Direct].into() });
        }
        running.send(&cluster);
        node.settled(&cluster).await;
        running.status.wait_for(|status| status.changeover.is_none()).await.unwrap();
        assert_eq!(node.rtnl.link(VXLAN_DEVICE).unwrap(), None);
        assert_eq!(filter.read().unwrap(), "1");
        running.stop().await;
    });
}

#[test]
fn cleanup_leaves_nothing_of_ours_and_all_of_others() {
    on_a_node("cleanup_leaves_nothing_of_ours_and_all_of_others", |mut node| async move {
        let cluster = node.cluster(Backend::Vxlan);
        let mut running = Running::start(&cluster);
        running.programmed().await;
        running.stop().await;
        let pod = Route {
            interface: Some(node.uplink),
            scope_link: true,
            ..Route::to(net("10.244.1.5/32"), podway_model::names::POD_ROUTE_PROTOCOL)
        };
        let foreign = Route::blackhole(net("10.9.0.0/16"), 4);
        node.rtnl.run_all(&[Request::AddRoute(pod.clone()), Request::AddRoute(foreign.clone())]).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let state = folder.path().join("routing.json");
        std::fs::write(&state, r#"{"schema":1,"stages":[],"loosened":{"eth0":"1"}}"#).unwrap();
        let filter = Sysctl::conf(Family::V4, "eth0", "rp_filter");
        filter.write("2").unwrap();
        cleanup(&state).unwrap();
        assert_eq!((filter.read().unwrap().as_str(), state.exists()), ("1", false));
        assert_eq!(node.actual(), Actual::default());
        let left = |protocol| RouteFilter { table: Some(TABLE_MAIN), protocol: Some(protocol) };
        assert_eq!(node.rtnl.routes(left(pod.protocol)).unwrap(), [pod]);
        assert_eq!(node.rtnl.routes(left(4)).unwrap(), [foreign]);
    });
}
