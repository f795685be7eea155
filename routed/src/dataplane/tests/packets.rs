//! Packets between pods of several nodes, for every encapsulation: each node a network namespace with a data plane of
//! its own, joined by an underlay of two subnets that knows no pod. Needs root, and a kernel that has the devices.
//!
//! ```text
//!   pod ── n1      n2 ── pod            n3 ── pod
//!           └──┬───┘                     │
//!    192.0.2.0/24, fd00:2::/64     198.51.100.0/24, fd00:3::/64
//!              └───────── router ────────┘
//! ```

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use podway_kern::Errno;
use podway_kern::fib::NetlinkKernel;
use podway_kern::ns::{self, NetNs};
use podway_kern::rtnl::{Address, LinkChange, LinkRef, Neighbour, Request, Route, Rtnl, VethEnd};
use podway_kern::sysctl::Sysctl;
use podway_kern::wireguard::{PrivateKey, public_key};
use podway_model::cluster::{Backend, Encapsulation, IpipMode};
use podway_model::ids::MacAddr;
use podway_model::names::{
    GATEWAY_V4, GATEWAY_V6, HOST_MAC, IPIP_DEVICE, POD_ROUTE_PROTOCOL, VXLAN_DEVICE, WIREGUARD_DEVICE,
};
use tokio::sync::watch;

use super::super::actual::Actual;
use super::super::backends::VXLAN_DEVICE6;
use super::super::mtu::pod_mtu;
use super::super::{DataplaneStatus, Kept, Told, run};
use super::{Cluster, TIMES, ip, is_settled, name, net, node};
use crate::view::{ClusterView, OwnBlockState};

/// More than anything here takes, under emulation too.
const PATIENCE: Duration = Duration::from_secs(60);
const NODES: [u8; 3] = [1, 2, 3];

/// Runs a test where the kernel has the devices that it needs; or says why not.
fn with_kernel(test: &str, needed: &[&str], body: impl FnOnce() + Send) {
    if !nix::unistd::geteuid().is_root() {
        println!("SKIP {test}: needs root");
        return;
    }
    ns::in_new_netns(|| {
        let mut rtnl = Rtnl::open().unwrap();
        for kind in needed {
            let name = "probe".to_owned();
            let device = match *kind {
                "ipip" => Request::AddIpip { name, local: [192, 0, 2, 1].into(), mtu: 1400 },
                _ => Request::AddWireguard { name, mtu: 1400 },
            };
            match rtnl.run(device) {
                Ok(()) => rtnl.run(Request::DeleteLink("probe".into())).unwrap(),
                Err(e) if e.errno() == Some(Errno::EOPNOTSUPP) => {
                    println!("SKIP {test}: no {kind} in this kernel");
                    return;
                }
                Err(e) => panic!("{e}"),
            }
        }
        body();
    })
    .unwrap();
}

fn wait_for(what: &str, condition: impl Fn() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < PATIENCE, "{what}: not in time");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn up(link: impl Into<LinkRef>) -> Request<'static> {
    Request::SetLink(link.into(), LinkChange { up: Some(true), ..LinkChange::default() })
}

fn address(index: u32, text: &str) -> Request<'static> {
    Request::ReplaceAddress(Address { index, address: net(text), no_prefix_route: false })
}

fn end(name: String) -> VethEnd {
    VethEnd { name, mtu: Some(1500), ..VethEnd::default() }
}

/// A node: its namespace, a pod, and a data plane in a thread.
struct Host {
    netns: NetNs,
    pod: NetNs,
    cluster: Cluster,
    running: Option<Running>,
}

/// A data plane at work.
struct Running {
    view: watch::Sender<Arc<ClusterView>>,
    status: watch::Receiver<DataplaneStatus>,
    stop: Arc<tokio::sync::Notify>,
    thread: JoinHandle<()>,
}

/// A cluster of three nodes.
struct World {
    hosts: Vec<Host>,
    _underlay: NetNs,
}

/// Underlay addresses of a node, and its router's.
fn underlay(number: u8) -> [(String, &'static str); 2] {
    if number < 3 {
        [(format!("192.0.2.{number}/24"), "192.0.2.254"), (format!("fd00:2::{number}/64"), "fd00:2::ff")]
    } else {
        [
            (format!("198.51.100.{number}/24"), "198.51.100.254"),
            (format!("fd00:3::{number}/64"), "fd00:3::ff"),
        ]
    }
}

fn pod_address(number: u8, v6: bool) -> IpAddr {
    if v6 { ip(&format!("fd00:244:{number}::5")) } else { ip(&format!("10.244.{number}.5")) }
}

impl World {
    /// Brings namespaces, wires and pods up, and starts the data planes. `change` makes each node's view what the test
    /// is about.
    fn up(backend: Backend, v4_underlay: bool, change: impl Fn(&mut Cluster)) -> Self {
        let router = NetNs::create().unwrap();
        let mut rtnl = Rtnl::open_in(&router).unwrap();
        rtnl.run_all(&[up("lo"), Request::AddBridge("lan2".into()), Request::AddBridge("lan3".into())])
            .unwrap();
        rtnl.run_all(&[up("lan2"), up("lan3")]).unwrap();
        for number in [2, 3] {
            let index = rtnl.link(format!("lan{number}").as_str()).unwrap().unwrap().index;
            for (own, gateway) in underlay(number) {
                let length = own.split('/').nth(1).unwrap().to_owned();
                rtnl.run(address(index, &format!("{gateway}/{length}"))).unwrap();
            }
        }
        router
            .run(|| {
                Sysctl::new("net/ipv4/ip_forward").write("1").unwrap();
                Sysctl::new("net/ipv6/conf/all/forwarding").write("1").unwrap();
            })
            .unwrap();
        let keys: BTreeMap<u8, PrivateKey> =
            NODES.iter().map(|n| (*n, PrivateKey::from_random([*n; 32]))).collect();
        let mut hosts = Vec::new();
        for number in NODES {
            let netns = NetNs::create().unwrap();
            let lan = if number < 3 { "lan2" } else { "lan3" };
            let wire = format!("n{number}");
            let pair = Request::AddVeth {
                host: end(wire.clone()),
                peer: end("eth0".to_owned()),
                peer_netns: Some(netns.as_fd()),
            };
            let master = rtnl.link(lan).unwrap().unwrap().index;
            let join = LinkChange { master: Some(master), up: Some(true), ..LinkChange::default() };
            rtnl.run_all(&[pair, Request::SetLink(wire.as_str().into(), join)]).unwrap();
            let mut inside = Rtnl::open_in(&netns).unwrap();
            inside.run_all(&[up("lo"), up("eth0")]).unwrap();
            let eth0 = inside.link("eth0").unwrap().unwrap().index;
            for (own, gateway) in underlay(number) {
                inside.run(address(eth0, &own)).unwrap();
                let default = if own.contains(':') { "::/0" } else { "0.0.0.0/0" };
                let route =
                    Route { gateway: Some(ip(gateway)), interface: Some(eth0), ..Route::to(net(default), 4) };
                inside.run(Request::AddRoute(route)).unwrap();
            }
            let mut cluster = cluster_of(number, backend, eth0, v4_underlay, &keys);
            change(&mut cluster);
            let mtu = pod_mtu(&cluster.view, &cluster.facts).bytes();
            let pod = wire_pod(&mut inside, number, mtu);
            hosts.push(Host { netns, pod, cluster, running: None });
        }
        let mut world = Self { hosts, _underlay: router };
        for host in &mut world.hosts {
            host.start();
        }
        world.settled();
        world
    }

    /// Waits until every node's kernel holds what is desired and nothing else of ours.
    fn settled(&self) {
        for host in &self.hosts {
            host.settled();
        }
    }

    fn host(&self, number: u8) -> &Host {
        &self.hosts[usize::from(number) - 1]
    }

    /// Gives every node another view.
    fn change(&mut self, change: impl Fn(&mut Cluster)) {
        for host in &mut self.hosts {
            change(&mut host.cluster);
            let running = host.running.as_ref().unwrap();
            running.view.send(Arc::new(host.cluster.view.clone())).unwrap();
        }
        self.settled();
    }

    /// Every pair of pods talks both ways, in packets as large as a pod may send, unmasqueraded.
    fn everybody_talks(&self, families: &[bool]) {
        for (from, to) in [(1, 2), (1, 3), (2, 3)] {
            for v6 in families {
                self.talk(from, to, *v6);
            }
        }
    }

    fn talk(&self, from: u8, to: u8, v6: bool) {
        let (a, b) = (self.host(from), self.host(to));
        let headers = if v6 { 48 } else { 28 };
        let mtu = pod_mtu(&a.cluster.view, &a.cluster.facts).bytes() as usize;
        let seen = exchange(&a.pod, Some(pod_address(from, v6)), &b.pod, pod_address(to, v6), mtu - headers);
        assert_eq!(seen, pod_address(from, v6), "n{from} to n{to}: the other pod's own address");
    }

    /// A node reaches another node's pod through its tunnel address, which the pod answers to.
    fn node_reaches_pod(&self, from: u8, to: u8, v6: bool) {
        let (a, b) = (self.host(from), self.host(to));
        let seen = exchange(&a.netns, None, &b.pod, pod_address(to, v6), 100);
        let view = &a.cluster.view;
        let tunnel = if v6 { view.tunnel_v6.map(IpAddr::V6) } else { view.tunnel_v4.map(IpAddr::V4) };
        assert_eq!(Some(seen), tunnel, "n{from} to a pod of n{to}");
    }

    /// Packets that left over a device while `talk` ran.
    fn sent_over(&self, number: u8, device: &str, talk: impl FnOnce()) -> u64 {
        let before = self.host(number).sent(device);
        talk();
        self.host(number).sent(device) - before
    }
}

impl Drop for World {
    fn drop(&mut self) {
        for host in &mut self.hosts {
            if let Some(running) = host.running.take() {
                running.stop.notify_one();
                let _ = running.thread.join();
            }
        }
    }
}

impl Host {
    fn start(&mut self) {
        let (view, view_in) = watch::channel(Arc::new(self.cluster.view.clone()));
        let (status_out, status) = watch::channel(DataplaneStatus::default());
        let stop = Arc::new(tokio::sync::Notify::new());
        let (cluster, stopped) = (self.cluster.clone(), Arc::clone(&stop));
        let netns = self.netns.run(NetNs::current).unwrap().unwrap();
        let thread = std::thread::spawn(move || {
            netns
                .run(|| {
                    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                    runtime.block_on(async {
                        let (_facts, facts_in) = watch::channel(Some(cluster.facts.clone()));
                        let folder = tempfile::tempdir().unwrap();
                        let told = Told {
                            status: status_out,
                            ways: watch::channel(None).0,
                            bgp: watch::channel(None).0,
                        };
                        let (_bgp, bgp_in) = watch::channel(Arc::new(cluster.bgp.clone()));
                        let task = run(
                            cluster.node.clone(),
                            view_in,
                            facts_in,
                            bgp_in,
                            cluster.wireguard.clone(),
                            Kept::read(&folder.path().join("routing.json"), TIMES),
                            told,
                        );
                        tokio::select! {
                            end = task => panic!("the data plane ended by itself: {end:?}"),
                            () = stopped.notified() => {}
                        }
                    });
                })
                .unwrap();
        });
        self.running = Some(Running { view, status, stop, thread });
    }

    fn stop(&mut self) {
        let running = self.running.take().unwrap();
        running.stop.notify_one();
        running.thread.join().unwrap();
    }

    fn actual(&self) -> Actual {
        loop {
            match self.netns.run(|| Actual::read(&mut NetlinkKernel::open().unwrap())).unwrap() {
                Ok(actual) => return actual,
                // A device that is taken away between two questions.
                Err(error) => assert!(error.is_missing(), "{error}"),
            }
        }
    }

    fn settled(&self) {
        let desired = self.cluster.desired();
        assert_eq!(desired.node_problems, BTreeMap::new(), "{}", self.cluster.node);
        let status = &self.running.as_ref().unwrap().status;
        wait_for(&format!("{} is programmed", self.cluster.node), || {
            is_settled(&desired, &self.actual()) && status.borrow().programmed
        });
    }

    /// Packets sent over a device since it was made; 0 without one.
    fn sent(&self, device: &str) -> u64 {
        let table = self.netns.run(|| std::fs::read_to_string("/proc/thread-self/net/dev").unwrap()).unwrap();
        let line = table.lines().find_map(|line| line.trim().strip_prefix(&format!("{device}:")));
        line.map_or(0, |line| line.split_whitespace().nth(9).unwrap().parse().unwrap())
    }
}

/// What node `number` knows.
fn cluster_of(
    number: u8,
    backend: Backend,
    eth0: u32,
    v4_underlay: bool,
    keys: &BTreeMap<u8, PrivateKey>,
) -> Cluster {
    let mut cluster = Cluster::new(backend);
    cluster.node = name(&format!("n{number}"));
    cluster.wireguard = Ok(keys[&number].clone());
    for other in NODES {
        let mut seen = node(other);
        let record = seen.record.as_mut().unwrap();
        let [v4, v6] = underlay(other).map(|(own, _)| net(&own).addr());
        record.address_v4 = match v4 {
            IpAddr::V4(v4) if v4_underlay => Some(v4),
            _ => None,
        };
        record.address_v6 = if let IpAddr::V6(v6) = v6 { Some(v6) } else { None };
        // Without WireGuard in the kernel nothing needs the key.
        record.wireguard_key = public_key(&keys[&other]).ok();
        if other == number {
            cluster.view.tunnel_v4 = record.tunnel_v4;
            cluster.view.tunnel_v6 = record.tunnel_v6;
            cluster.facts.address_v4 = record.address_v4;
            cluster.facts.address_v6 = record.address_v6;
            cluster.facts.on_link = underlay(other).map(|(own, _)| (eth0, net(&own).trunc())).to_vec();
            cluster.facts.ifindex = eth0;
        }
        cluster.view.nodes.insert(name(&format!("n{other}")), seen);
    }
    let blocks = cluster.view.nodes[&cluster.node].blocks.clone();
    for (own, block) in cluster.view.own_blocks.iter_mut().zip(blocks) {
        (own.cidr, own.state) = (block, OwnBlockState::Active);
    }
    cluster
}

/// A pod as the CNI plugin wires it, without its marks.
fn wire_pod(node: &mut Rtnl, number: u8, mtu: u32) -> NetNs {
    let pod = NetNs::create().unwrap();
    let pod_mac = MacAddr([2, 0, 0, 0, 0, number]);
    let host = VethEnd { mac: Some(HOST_MAC), mtu: Some(mtu), ..end("pod".to_owned()) };
    let peer = VethEnd { mac: Some(pod_mac), mtu: Some(mtu), ..end("eth0".to_owned()) };
    node.run_all(&[Request::AddVeth { host, peer, peer_netns: Some(pod.as_fd()) }, up("pod")]).unwrap();
    let mut inside = Rtnl::open_in(&pod).unwrap();
    inside.run_all(&[up("lo"), up("eth0")]).unwrap();
    let (out, eth0) = (node.link("pod").unwrap().unwrap().index, inside.link("eth0").unwrap().unwrap().index);
    for v6 in [false, true] {
        let own = pod_address(number, v6);
        let gateway: IpAddr = if v6 { GATEWAY_V6.into() } else { GATEWAY_V4.into() };
        let to_pod =
            Route { interface: Some(out), scope_link: !v6, ..Route::to(own.into(), POD_ROUTE_PROTOCOL) };
        let neighbour = |index, address, mac| Request::ReplaceNeighbour(Neighbour { index, address, mac });
        node.run_all(&[Request::AddRoute(to_pod), neighbour(out, own, pod_mac)]).unwrap();
        let default = Route {
            gateway: Some(gateway),
            interface: Some(eth0),
            onlink: true,
            ..Route::to(net(if v6 { "::/0" } else { "0.0.0.0/0" }), POD_ROUTE_PROTOCOL)
        };
        inside
            .run_all(&[
                Request::ReplaceAddress(Address::host(eth0, own)),
                neighbour(eth0, gateway, HOST_MAC),
                Request::AddRoute(default),
            ])
            .unwrap();
    }
    pod
}

/// One datagram there and one back, however often it takes. Returns the source that the other end saw.
fn exchange(from: &NetNs, source: Option<IpAddr>, to: &NetNs, target: IpAddr, size: usize) -> IpAddr {
    let any: IpAddr = if target.is_ipv6() { ip("::") } else { ip("0.0.0.0") };
    let bind = |netns: &NetNs, address: IpAddr| {
        let socket = netns.run(|| UdpSocket::bind(SocketAddr::new(address, 0)).unwrap()).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        socket
    };
    let (a, b) = (bind(from, source.unwrap_or(any)), bind(to, target));
    let there = SocketAddr::new(target, b.local_addr().unwrap().port());
    let (payload, mut buffer) = (vec![7; size], vec![0; 2048]);
    let start = Instant::now();
    loop {
        assert!(start.elapsed() < PATIENCE, "no answer from {there} in packets of {size} bytes");
        // A refusal (no route yet, no answer to a neighbour's question) is like a loss.
        if a.send_to(&payload, there).is_err() {
            std::thread::sleep(Duration::from_millis(20));
            continue;
        }
        let Ok((length, seen)) = b.recv_from(&mut buffer) else { continue };
        assert_eq!(length, size);
        b.send_to(&payload, seen).unwrap();
        if a.recv_from(&mut buffer).is_ok_and(|(length, by)| length == size && by == there) {
            return seen.ip();
        }
    }
}

const BOTH: &[bool] = &[false, true];
const V4: &[bool] = &[false];

/// Direct to the neighbour, through the tunnel to the node behind the router.
fn tunnels_across_subnets_only(world: &World, device: &str, families: &[bool]) {
    world.everybody_talks(families);
    for v6 in families {
        assert_eq!(world.sent_over(1, device, || world.talk(1, 2, *v6)), 0, "on the same link");
        assert!(world.sent_over(1, device, || world.talk(1, 3, *v6)) > 0, "behind the router");
    }
}

/// Every pair uses the tunnel.
fn tunnels_always(world: &World, device: &str, families: &[bool]) {
    world.everybody_talks(families);
    for v6 in families {
        for other in [2, 3] {
            assert!(world.sent_over(1, device, || world.talk(1, other, *v6)) > 0, "to n{other}");
            world.node_reaches_pod(1, other, *v6);
        }
    }
}

#[test]
fn vxlan_tunnels_packets_of_both_families_across_subnets() {
    with_kernel("vxlan_tunnels_packets_of_both_families_across_subnets", &[], || {
        tunnels_always(&World::up(Backend::Vxlan, true, |_| ()), VXLAN_DEVICE, BOTH);
        tunnels_always(&World::up(Backend::Vxlan, false, |_| ()), VXLAN_DEVICE6, BOTH);
    });
}

#[test]
fn vxlan_with_direct_routing_tunnels_across_subnets_only() {
    with_kernel("vxlan_with_direct_routing_tunnels_across_subnets_only", &[], || {
        let world =
            World::up(Backend::Vxlan, true, |cluster| cluster.view.config.vxlan.direct_routing = true);
        tunnels_across_subnets_only(&world, VXLAN_DEVICE, BOTH);
    });
}

#[test]
fn ipip_tunnels_packets_always_or_across_subnets() {
    with_kernel("ipip_tunnels_packets_always_or_across_subnets", &["ipip"], || {
        // IPv6 goes by VXLAN: see `Cluster::new`.
        let mut world = World::up(Backend::Ipip, true, |_| ());
        tunnels_always(&world, IPIP_DEVICE, V4);
        world.everybody_talks(&[true]);
        world.change(|cluster| cluster.view.config.ipip.mode = IpipMode::CrossSubnet);
        tunnels_across_subnets_only(&world, IPIP_DEVICE, V4);
    });
}

#[test]
fn wireguard_tunnels_packets_over_either_underlay() {
    with_kernel("wireguard_tunnels_packets_over_either_underlay", &["wireguard"], || {
        tunnels_always(&World::up(Backend::Wireguard, true, |_| ()), WIREGUARD_DEVICE, BOTH);
        tunnels_always(&World::up(Backend::Wireguard, false, |_| ()), WIREGUARD_DEVICE, BOTH);
    });
}

#[test]
fn a_wireguard_device_is_adopted_and_follows_its_peers_keys() {
    let test = "a_wireguard_device_is_adopted_and_follows_its_peers_keys";
    with_kernel(test, &["wireguard"], || {
        let mut world = World::up(Backend::Wireguard, true, |_| ());
        world.everybody_talks(V4);
        let before = world.host(1).actual();
        world.hosts[0].stop();
        // The device works without its daemon.
        world.talk(1, 2, false);
        world.hosts[0].start();
        world.settled();
        let after = world.host(1).actual();
        assert_eq!(after, before, "everything was adopted as it was");
        assert_eq!(world.host(1).running.as_ref().unwrap().status.borrow().counters["changes"], 0);
        world.talk(1, 2, false);

        // n2 was installed anew.
        let key = PrivateKey::from_random([77; 32]);
        let public = public_key(&key).unwrap();
        world.hosts[1].stop();
        world.hosts[1].cluster.wireguard = Ok(key);
        world.hosts[1].start();
        world.change(|cluster| cluster.record(2).wireguard_key = Some(public));
        world.everybody_talks(BOTH);
        let peers = &world.host(1).actual().devices[WIREGUARD_DEVICE].wireguard.clone().unwrap().peers;
        assert!(peers.contains_key(&public) && peers.len() == 2, "the old key is gone: {:?}", peers.keys());
    });
}

#[test]
fn pools_of_one_cluster_have_an_encapsulation_each() {
    let test = "pools_of_one_cluster_have_an_encapsulation_each";
    with_kernel(test, &["ipip", "wireguard"], || {
        let choose = |v4, v6| {
            move |cluster: &mut Cluster| {
                for (pool, encapsulation) in [("v4", v4), ("v6", v6)] {
                    let pool = cluster.view.pools.get_mut(&pool.parse().unwrap()).unwrap();
                    pool.encapsulation = Some(encapsulation);
                }
            }
        };
        let mut world =
            World::up(Backend::HostGw, true, choose(Encapsulation::Ipip, Encapsulation::Wireguard));
        tunnels_always(&world, IPIP_DEVICE, V4);
        tunnels_always(&world, WIREGUARD_DEVICE, &[true]);
        world.change(choose(Encapsulation::Wireguard, Encapsulation::VxlanCrossSubnet));
        tunnels_always(&world, WIREGUARD_DEVICE, V4);
        tunnels_across_subnets_only(&world, VXLAN_DEVICE, &[true]);
        let devices = world.host(1).actual().devices;
        assert!(!devices.contains_key(IPIP_DEVICE), "what no pool uses is gone");
    });
}
