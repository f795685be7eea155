//! The shell over real sockets, in a network namespace of its own: two of ours against each other, and ours against
//! BIRD 2 where that is installed (`bird` and `birdc` on `PATH`).
//!
//! All speakers of a test live in one namespace, each on an address of the loopback device.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use podway_daemon::shutdown::{ShutdownTrigger, shutdown};
use podway_kern::ns::in_new_netns;
use podway_model::cluster::{Backend, NodeRecord};
use podway_model::ids::{Mtu, NodeName};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;

use super::{Bgp, Query};
use crate::view::{BgpRoutes, ClusterView, LocalFacts, NodeView, OwnBlock, OwnBlockState};

/// How long anything may take; what is waited for takes milliseconds.
pub(super) const LIMIT: Duration = Duration::from_secs(30);
pub(super) const BIRD: u8 = 100;

pub(super) fn v4(i: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 9, 0, i)
}

pub(super) fn v6(i: u8) -> Ipv6Addr {
    Ipv6Addr::new(0xfd09, 0, 0, 0, 0, 0, 0, u16::from(i))
}

pub(super) fn blocks(i: u8) -> [IpNet; 2] {
    [format!("10.244.{i}.0/26").parse().unwrap(), format!("fd10:{i:x}::/122").parse().unwrap()]
}

fn name(i: u8) -> NodeName {
    format!("n{i}").parse().unwrap()
}

/// Runs `test` in a namespace whose loopback device has the addresses of nodes 1 to 3 and of BIRD.
pub(super) fn in_lab(title: &str, test: impl AsyncFnOnce() + Send) {
    if !nix::unistd::geteuid().is_root() {
        println!("SKIP {title}: needs root");
        return;
    }
    let run = || {
        let mut script = "ip link set lo up".to_owned();
        for i in [1, 2, 3, BIRD] {
            let _ = write!(
                script,
                " && ip addr add {}/32 dev lo && ip addr add {}/128 dev lo nodad",
                v4(i),
                v6(i)
            );
        }
        assert!(Command::new("sh").args(["-c", &script]).status().unwrap().success());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(test());
    };
    in_new_netns(run).unwrap();
}

/// A cluster of these nodes; port 1790, a hold time of 30 s.
pub(super) fn cluster(nodes: &[u8]) -> ClusterView {
    let mut view = ClusterView { synced: true, ..ClusterView::default() };
    view.config.backend = Backend::Bgp;
    view.config.bgp.port = 1790;
    view.config.bgp.hold_time_seconds = 30;
    for i in nodes {
        let record = NodeRecord {
            instance_id: "00000000-0000-4000-8000-000000000001".parse().unwrap(),
            address_v4: Some(v4(*i)),
            address_v6: Some(v6(*i)),
            tunnel_v4: None,
            tunnel_v6: None,
            labels: BTreeMap::new(),
            asn: None,
            vtep_mac: None,
            wireguard_key: None,
            version: "test".to_owned(),
            ways: None,
        };
        let node = NodeView { record: Some(record), live: true, blocks: blocks(*i).into() };
        view.nodes.insert(name(*i), node);
    }
    view
}

/// One of ours under way.
pub(super) struct Daemon {
    pub(super) view: watch::Sender<Arc<ClusterView>>,
    pub(super) routes: watch::Receiver<Arc<BgpRoutes>>,
    pub(super) queries: mpsc::Sender<Query>,
    trigger: ShutdownTrigger,
    task: JoinHandle<()>,
    _facts: watch::Sender<Option<LocalFacts>>,
}

impl Daemon {
    pub(super) fn start(i: u8, view: &ClusterView, state: &Path) -> Self {
        let block = |cidr| OwnBlock { cidr, pool: "default".parse().unwrap(), state: OwnBlockState::Active };
        let view = ClusterView { own_blocks: blocks(i).map(block).into(), ..view.clone() };
        let (view, view_out) = watch::channel(Arc::new(view));
        let (facts, facts_out) = watch::channel(Some(LocalFacts {
            address_v4: Some(v4(i)),
            address_v6: Some(v6(i)),
            on_link: vec![],
            interface: "lo".parse().unwrap(),
            ifindex: 1,
            mtu: Mtu::ETHERNET,
        }));
        let (routes, routes_out) = watch::channel(Arc::default());
        let (queries, asked) = mpsc::channel(4);
        let (trigger, shutdown) = shutdown();
        let bgp = Bgp {
            node: name(i),
            boot_id: "00000000-0000-4000-8000-00000000000b".parse().unwrap(),
            peers_file: state.join(format!("peers-{i}.json")),
            view: view_out,
            facts: facts_out,
            kept: watch::channel(None).1,
            routes,
            queries: asked,
            shutdown,
        };
        let task = tokio::spawn(bgp.run());
        Self { view, routes: routes_out, queries, trigger, task, _facts: facts }
    }

    /// What `kill -9` does to its sockets.
    async fn kill(self) {
        self.task.abort();
        assert!(self.task.await.unwrap_err().is_cancelled());
    }

    pub(super) async fn stop(self) {
        self.trigger.request();
        self.task.await.unwrap();
    }

    pub(super) async fn until(&mut self, what: &str, done: impl FnMut(&Arc<BgpRoutes>) -> bool) {
        let waited = tokio::time::timeout(LIMIT, self.routes.wait_for(done)).await.map(|r| r.is_ok());
        assert_eq!(waited, Ok(true), "{what}: {:?}", self.routes.borrow());
    }

    fn reaches(&self, i: u8) -> bool {
        has(&self.routes.borrow(), i)
    }

    pub(super) async fn peers(&self) -> Vec<podway_model::socket::BgpPeerStatus> {
        let (send, receive) = oneshot::channel();
        assert!(self.queries.send(Query::Peers(send)).await.is_ok());
        receive.await.unwrap()
    }
}

/// Whether both blocks of node `i` are reached by way of its addresses.
fn has(routes: &BgpRoutes, i: u8) -> bool {
    let [first, second] = blocks(i);
    routes.routes.get(&first) == Some(&vec![IpAddr::V4(v4(i))])
        && routes.routes.get(&second) == Some(&vec![IpAddr::V6(v6(i))])
}

#[test]
fn two_nodes_exchange_routes_and_a_killed_one_loses_none() {
    in_lab("two_nodes_exchange_routes_and_a_killed_one_loses_none", async || {
        let dir = tempfile::tempdir().unwrap();
        let view = cluster(&[1, 2]);
        let mut one = Daemon::start(1, &view, dir.path());
        let mut two = Daemon::start(2, &view, dir.path());
        one.until("routes at 1", |routes| routes.synced && has(routes, 2)).await;
        two.until("routes at 2", |routes| routes.synced && has(routes, 1)).await;

        two.kill().await;
        // The loss is seen when the session is no longer up; the routes are there all the same.
        let begin = tokio::time::Instant::now();
        while one.peers().await[0].stale != 2 {
            assert!(begin.elapsed() < LIMIT, "{:?}", one.peers().await);
            tokio::task::yield_now().await;
        }
        assert!(one.reaches(2));
        let mut two = Daemon::start(2, &view, dir.path());
        assert!(!two.routes.borrow().synced, "it was up: it waits for its peer");
        two.until("back at 2", |routes| routes.synced && has(routes, 1)).await;
        assert!(one.reaches(2), "never gone");

        // An orderly end says nothing that would cost routes either.
        one.routes.mark_unchanged();
        two.stop().await;
        let two = Daemon::start(2, &view, dir.path());
        let begin = tokio::time::Instant::now();
        while !one.peers().await.iter().any(|peer| peer.state == "Established" && peer.stale == 0) {
            assert!(begin.elapsed() < LIMIT, "{:?}", one.peers().await);
            tokio::task::yield_now().await;
        }
        assert!(one.reaches(2) && !one.routes.has_changed().unwrap(), "the kernel's routes never changed");

        // Another backend: a Cease takes the routes away.
        let mut other = ClusterView::clone(&two.view.borrow());
        other.config.backend = Backend::HostGw;
        two.view.send_replace(Arc::new(other));
        one.until("routes go", |routes| routes.routes.is_empty()).await;
    });
}

#[test]
fn a_route_is_used_when_its_claim_arrives_and_nodes_come_and_go() {
    in_lab("a_route_is_used_when_its_claim_arrives_and_nodes_come_and_go", async || {
        let dir = tempfile::tempdir().unwrap();
        let full = cluster(&[1, 2]);
        let mut unclaimed = full.clone();
        unclaimed.nodes.get_mut(&name(2)).unwrap().blocks.clear();
        let mut one = Daemon::start(1, &unclaimed, dir.path());
        let two = Daemon::start(2, &full, dir.path());
        let begin = tokio::time::Instant::now();
        while one.peers().await[0].state != "Established" {
            assert!(begin.elapsed() < LIMIT, "{:?}", one.peers().await);
            tokio::task::yield_now().await;
        }
        assert!(!one.reaches(2));
        let claimed = ClusterView { own_blocks: one.view.borrow().own_blocks.clone(), ..full.clone() };
        one.view.send_replace(Arc::new(claimed));
        one.until("the claim is there", |routes| has(routes, 2)).await;

        // A third node: the session with the second stays.
        let since = one.peers().await[0].since_seconds;
        let three_view = cluster(&[1, 2, 3]);
        let mut three = Daemon::start(3, &three_view, dir.path());
        for daemon in [&one, &two] {
            let own_blocks = daemon.view.borrow().own_blocks.clone();
            daemon.view.send_replace(Arc::new(ClusterView { own_blocks, ..three_view.clone() }));
        }
        one.until("three at one", |routes| has(routes, 3) && has(routes, 2)).await;
        three.until("all at three", |routes| has(routes, 1) && has(routes, 2)).await;
        assert!(one.peers().await[0].since_seconds >= since);
        // And it leaves the cluster.
        let own_blocks = one.view.borrow().own_blocks.clone();
        one.view.send_replace(Arc::new(ClusterView { own_blocks, ..full }));
        one.until("three is gone", |routes| !has(routes, 3)).await;
        assert!(one.reaches(2));
    });
}

/// BIRD with node 1 as its iBGP neighbour, and the blocks of node 100.
pub(super) struct Bird {
    child: Child,
    dir: PathBuf,
}

impl Bird {
    fn start(dir: &Path, recover: bool) -> Option<Self> {
        let [block4, block6] = blocks(BIRD);
        let config = format!(
            "router id {us};\ngraceful restart wait 20;\nprotocol device {{}}\n\
             protocol static {{ ipv4; route {block4} blackhole; }}\n\
             protocol static {{ ipv6; route {block6} blackhole; }}\n\
             protocol bgp node1 {{\n local {us} port 1790 as 64512;\n neighbor {them} port 1790 as 64512;\n\
             strict bind on;\n connect delay time 1;\n connect retry time 1;\n error wait time 1, 2;\n graceful restart on;\n\
             ipv4 {{ import all; export where source = RTS_STATIC; }};\n\
             ipv6 {{ import all; export where source = RTS_STATIC; next hop address {us6}; }};\n}}\n",
            us = v4(BIRD),
            us6 = v6(BIRD),
            them = v4(1),
        );
        Self::with_config(dir, &config, recover)
    }

    pub(super) fn with_config(dir: &Path, config: &str, recover: bool) -> Option<Self> {
        std::fs::write(dir.join("bird.conf"), config).unwrap();
        let mut command = Command::new("bird");
        command.arg("-f").arg("-c").arg(dir.join("bird.conf")).arg("-s").arg(dir.join("bird.ctl"));
        command.args(recover.then_some("-R")).stdout(Stdio::null()).stderr(Stdio::null());
        let child = command.spawn().ok()?;
        Some(Self { child, dir: dir.to_owned() })
    }

    pub(super) fn ask(&self, question: &str) -> String {
        let mut command = Command::new("birdc");
        let output =
            command.arg("-s").arg(self.dir.join("bird.ctl")).args(question.split(' ')).output().unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    pub(super) async fn until(&self, what: &str, question: &str, done: impl Fn(&str) -> bool) {
        let begin = tokio::time::Instant::now();
        loop {
            let answer = self.ask(question);
            if done(&answer) {
                return;
            }
            assert!(begin.elapsed() < LIMIT, "{what}: {answer}");
            tokio::task::yield_now().await;
        }
    }
}

impl Drop for Bird {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn bird_exchanges_both_families_and_both_sides_restart_gracefully() {
    let title = "bird_exchanges_both_families_and_both_sides_restart_gracefully";
    if Command::new("bird").arg("--version").stderr(Stdio::null()).status().is_err() {
        println!("SKIP {title}: no bird on PATH (Debian package bird2)");
        return;
    }
    in_lab(title, async || {
        let dir = tempfile::tempdir().unwrap();
        let view = cluster(&[1, BIRD]);
        let mut one = Daemon::start(1, &view, dir.path());
        let bird = Bird::start(dir.path(), false).unwrap();
        one.until("BIRD's routes", |routes| has(routes, BIRD)).await;
        let [block4, block6] = blocks(1);
        let ours = |answer: &str| {
            answer.contains(&format!("BGP.next_hop: {}", v4(1)))
                && answer.contains(&format!("BGP.next_hop: {}", v6(1)))
                && answer.contains(&block4.to_string())
                && answer.contains(&block6.to_string())
                && answer.contains("BGP.local_pref: 100")
        };
        bird.until("our routes", "show route all protocol node1", ours).await;
        let session = bird.ask("show protocols all node1");
        assert!(session.contains("4-octet AS numbers") && session.contains("Graceful restart"), "{session}");

        // We are killed and come back: BIRD keeps our routes all the time.
        one.kill().await;
        bird.until("BIRD sees it", "show protocols node1", |answer| !answer.contains("Established")).await;
        let kept = bird.ask("show route all protocol node1");
        assert!(ours(&kept), "{kept}");
        let mut one = Daemon::start(1, &view, dir.path());
        assert!(!one.routes.borrow().synced);
        one.until("synced by BIRD's End-of-RIB", |routes| routes.synced && has(routes, BIRD)).await;
        bird.until("up again", "show protocols node1", |answer| answer.contains("Established")).await;
        let kept = bird.ask("show route all protocol node1");
        assert!(ours(&kept), "{kept}");

        // BIRD is killed and comes back: we keep its routes.
        drop(bird);
        let begin = tokio::time::Instant::now();
        while one.peers().await[0].stale != 2 {
            assert!(begin.elapsed() < LIMIT, "{:?}", one.peers().await);
            tokio::task::yield_now().await;
        }
        assert!(one.reaches(BIRD));
        let bird = Bird::start(dir.path(), true).unwrap();
        let begin = tokio::time::Instant::now();
        while !one.peers().await.iter().any(|peer| peer.state == "Established" && peer.stale == 0) {
            assert!(begin.elapsed() < LIMIT * 2, "{:?}", one.peers().await);
            assert!(one.reaches(BIRD), "never gone");
            tokio::task::yield_now().await;
        }
        bird.until("our routes again", "show route all protocol node1", ours).await;

        // BIRD shuts the session down: it says so, and the routes go.
        bird.ask("disable node1");
        one.until("routes go", |routes| !has(routes, BIRD)).await;
        let error = one.peers().await[0].last_error.clone().unwrap_or_default();
        assert!(error.contains("administrative shutdown"), "{error}");
    });
}
