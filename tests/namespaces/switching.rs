//! A running cluster changes its backend while packets flow: a TCP stream and a UDP packet each millisecond for every pair
//! of nodes, both families. None is lost, no connection ends, and nothing of the old backend is left.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use podway_model::cluster::Backend;
use podway_testkit::cluster::{Cluster, ClusterOptions};
use podway_testkit::flow::Flow;
use podway_testkit::lab::Node;
use podway_testkit::objects;
use podway_testkit::pod::Pod;
use podway_testkit::wait::{wait_until, wait_until_ok};

use crate::restarts::connected;
use crate::{cluster_with_pods, run};

/// A change that was overtaken by another one takes half a minute.
const PATIENCE: Duration = Duration::from_secs(90);
/// Pieces of a TCP stream: large enough to meet the smaller MTU.
const PIECE: usize = 4000;

/// A TCP connection that is never silent: a piece each five milliseconds, each answered by one octet.
struct Stream {
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicU64>,
    threads: Vec<JoinHandle<Result<()>>>,
}

impl Stream {
    fn start(from: &Pod, into: &Pod, to: IpAddr) -> Result<Self> {
        let listener = into.net().run(|| TcpListener::bind(SocketAddr::new(to, 0)))??;
        let port = listener.local_addr()?.port();
        let client = from.net().run(|| TcpStream::connect((to, port)))??;
        let (server, _) = listener.accept()?;
        for end in [&client, &server] {
            end.set_nodelay(true)?;
            // Longer than any retransmission that one lost packet costs; a connection that hangs ends the test.
            end.set_read_timeout(Some(Duration::from_secs(20)))?;
        }
        let (stop, answered) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
        let mut threads = vec![];
        threads.push(std::thread::spawn(move || serve(server)));
        let (stopped, count) = (stop.clone(), answered.clone());
        threads.push(std::thread::spawn(move || talk(client, &stopped, &count)));
        Ok(Self { stop, answered, threads })
    }

    /// Ends it; an error if it had ended before. Returns the pieces that were answered.
    fn end(self) -> Result<u64> {
        let before = self.answered.load(Ordering::Relaxed);
        wait_until("the stream goes on", PATIENCE, || {
            Ok((self.answered.load(Ordering::Relaxed) > before + 10).then_some(()))
        })?;
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads {
            thread.join().ok().context("a stream's thread does not panic")??;
        }
        Ok(self.answered.load(Ordering::Relaxed))
    }
}

fn talk(mut stream: TcpStream, stop: &AtomicBool, answered: &AtomicU64) -> Result<()> {
    let piece = vec![7; PIECE];
    let mut answer = [0];
    while !stop.load(Ordering::Relaxed) {
        stream.write_all(&piece)?;
        stream.read_exact(&mut answer)?;
        answered.fetch_add(1, Ordering::Relaxed);
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

fn serve(mut stream: TcpStream) -> Result<()> {
    let mut piece = vec![0; PIECE];
    loop {
        match stream.read_exact(&mut piece) {
            Ok(()) => stream.write_all(&[1])?,
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
}

/// What flows between all pairs of nodes, in both directions and all families of the pods.
struct Traffic {
    flows: Vec<(String, Flow)>,
    streams: Vec<(String, Stream)>,
}

impl Traffic {
    fn start(cluster: &Cluster) -> Result<Self> {
        let mut traffic = Self { flows: vec![], streams: vec![] };
        let nodes = cluster.lab.nodes.len();
        for (from, to) in (0..nodes).flat_map(|from| (0..nodes).map(move |to| (from, to))) {
            if from == to {
                continue;
            }
            let (from, to) = (cluster.pod_on(from)?, cluster.pod_on(to)?);
            for address in &to.addresses {
                let family = if address.is_ipv4() { "IPv4" } else { "IPv6" };
                let pair = format!("{} to {} {family}", from.node, to.node);
                let flow = Flow::start(from.net(), to.net(), *address, Duration::from_millis(1))?;
                traffic.flows.push((pair.clone(), flow));
                traffic.streams.push((pair, Stream::start(from, to, *address)?));
            }
        }
        traffic.go_on(200)?;
        Ok(traffic)
    }

    fn go_on(&self, packets: u64) -> Result<()> {
        self.flows.iter().try_for_each(|(_, flow)| flow.wait_for(packets))
    }

    /// Stops all, prints the loss of each pair, and expects none.
    #[expect(clippy::print_stdout, reason = "measured loss, for people")]
    fn end(self, what: &str) -> Result<()> {
        self.go_on(200)?;
        let (mut lost, mut flows) = (0, vec![]);
        for (pair, flow) in self.flows {
            let report = flow.stop()?;
            lost += report.lost();
            flows.push(format!(
                "{what}: {pair}: {} of {} lost, longest gap {} ms",
                report.lost(),
                report.sent,
                report.longest_gap.as_millis()
            ));
        }
        for (pair, stream) in self.streams {
            let pieces = stream.end().with_context(|| format!("{what}: TCP {pair}"))?;
            flows.push(format!("{what}: {pair}: TCP goes on, {pieces} pieces of {PIECE} octets answered"));
        }
        println!("{}", flows.join("\n"));
        ensure!(lost == 0, "{lost} packets were lost:\n{}", flows.join("\n"));
        Ok(())
    }
}

/// Changes the configuration document, as an operator does.
fn change(cluster: &mut Cluster, to: Backend) -> Result<()> {
    cluster.options.backend = to;
    let config = cluster.options.documents().into_iter().next();
    // The last node is not the one whose store may be away.
    cluster.node_at(0)?.apply(&objects::documents(config))
}

/// Waits until a node has changed, and has nothing of another backend.
fn changed(node: &Node, to: Backend) -> Result<()> {
    wait_until_ok(&format!("{} has changed to {to}", node.name()), PATIENCE, || {
        let (status, _) = node.status()?;
        ensure!(status.backend == to.to_string(), "backend {}", status.backend);
        ensure!(status.changeover.is_none(), "{:?}", status.changeover);
        ensure!(status.problems.is_empty(), "{:?}", status.problems);
        Ok(())
    })?;
    let text = node.podwayctl_ok(&["status", "--node"], "")?;
    ensure!(!text.contains("under way"), "{text}");
    let links = node.place.ip_json(&["link", "show"])?;
    let ours: Vec<&str> = links
        .iter()
        .filter_map(|link| link["ifname"].as_str())
        .filter(|name| name.starts_with("podway."))
        .collect();
    let expected: &[&str] = if to == Backend::Vxlan { &["podway.vxlan"] } else { &[] };
    ensure!(ours == expected, "{}: devices {ours:?}", node.name());
    let fdb = node.place.run("bridge", &["fdb", "show"])?;
    ensure!(fdb.contains("podway.vxlan") == (to == Backend::Vxlan), "{}: {fdb}", node.name());
    let mut left = vec![];
    for family in ["-4", "-6"] {
        for route in node.place.ip_json(&[family, "route", "show", "proto", "112"])? {
            let over = route["dev"].as_str().unwrap_or_default().to_owned();
            let is_plain = route["type"] == "unicast" && (over == "podway.vxlan") != (to == Backend::Vxlan);
            if is_plain {
                left.push(route.to_string());
            }
        }
    }
    ensure!(left.is_empty(), "{}: old routes {left:?}", node.name());
    let peers = node.bgp_peers()?.len();
    ensure!((peers > 0) == (to == Backend::Bgp), "{}: {peers} BGP peers", node.name());
    Ok(())
}

fn all_changed(cluster: &Cluster, to: Backend) -> Result<()> {
    cluster.lab.nodes.iter().try_for_each(|node| changed(node, to))
}

fn options(test: &str, backend: Backend) -> ClusterOptions {
    ClusterOptions { ipv6: true, ..ClusterOptions::new(test, backend) }
}

/// Switches through these backends under flow.
#[expect(clippy::print_stdout, reason = "a measured time, for people")]
fn switch_through(test: &str, first: Backend, then: &[Backend]) {
    run(test, || {
        let mut cluster = cluster_with_pods(options(test, first))?;
        for node in &cluster.lab.nodes {
            // What a distribution may have set: it would drop what comes by another way than answers go.
            node.place.sysctl("net.ipv4.conf.eth0.rp_filter", "1")?;
        }
        connected(&cluster)?;
        for to in then {
            let what = format!("{} to {to}", cluster.options.backend);
            let traffic = Traffic::start(&cluster)?;
            let since = Instant::now();
            change(&mut cluster, *to)?;
            wait_until_ok("podwayctl status says it", PATIENCE, || {
                let text = cluster.node_at(0)?.podwayctl(&["status", "--node"], "")?.stdout;
                ensure!(text.contains("under way") || changed(cluster.node_at(0)?, *to).is_ok(), "{text}");
                Ok(())
            })?;
            all_changed(&cluster, *to)?;
            println!("{what}: all nodes have changed after {} ms", since.elapsed().as_millis());
            traffic.end(&what)?;
            for node in &cluster.lab.nodes {
                let filter = node.place.run("cat", &["/proc/sys/net/ipv4/conf/eth0/rp_filter"])?;
                ensure!(filter.trim() == "1", "{}: rp_filter {filter}", node.name());
            }
        }
        Ok(())
    });
}

#[test]
fn a_cluster_switches_backends_and_loses_no_packet() {
    let then = [Backend::HostGw, Backend::Vxlan];
    switch_through("a_cluster_switches_backends_and_loses_no_packet", Backend::Vxlan, &then);
}

#[test]
fn a_cluster_switches_to_bgp_and_back_and_loses_no_packet() {
    let then = [Backend::Bgp, Backend::Vxlan, Backend::HostGw, Backend::Bgp, Backend::HostGw];
    switch_through("a_cluster_switches_to_bgp_and_back_and_loses_no_packet", Backend::Vxlan, &then);
}

/// Cuts a node off from etcd, or joins it again. Other nodes are reached all the time.
fn store_away(cluster: &Cluster, node: usize, away: bool) -> Result<()> {
    let place = &cluster.node_at(node)?.place;
    if !away {
        return place.run("nft", &["delete", "table", "inet", "cut"]).map(drop);
    }
    let rules = "table inet cut {
        chain from { type filter hook input priority 0; tcp sport 2379 drop; }
        chain to { type filter hook output priority 0; tcp dport 2379 drop; }
    }";
    let mut command = Command::new("nft");
    command.args(["-f", "-"]);
    let output = place.output(command, rules.as_bytes())?;
    ensure!(output.status.success(), "nft: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

#[test]
fn a_node_that_follows_late_and_a_daemon_that_is_killed_lose_no_packet() {
    let test = "a_node_that_follows_late_and_a_daemon_that_is_killed_lose_no_packet";
    run(test, || {
        let mut cluster = cluster_with_pods(options(test, Backend::Vxlan))?;
        connected(&cluster)?;
        let traffic = Traffic::start(&cluster)?;
        store_away(&cluster, 2, true)?;
        change(&mut cluster, Backend::HostGw)?;
        let waits = |node: &Node| -> Result<()> {
            let (status, _) = node.status()?;
            let words = status.changeover.context("no change is under way")?;
            ensure!(words.contains("n3 (does not receive plain routes yet)"), "{words}");
            Ok(())
        };
        for node in &cluster.lab.nodes[..2] {
            wait_until_ok(&format!("{} waits for n3", node.name()), PATIENCE, || waits(node))?;
        }
        // Killed in the middle, and started again: it goes on where it was.
        cluster.lab.nodes[0].kill_routed()?;
        cluster.lab.nodes[0].start_routed()?;
        cluster.lab.nodes[0].wait_ready(PATIENCE)?;
        wait_until_ok("n1 waits for n3 again", PATIENCE, || waits(cluster.node_at(0)?))?;
        // A second change in the middle, and back again.
        change(&mut cluster, Backend::Bgp)?;
        wait_until_ok("n1 has a session with n2", PATIENCE, || {
            let peers = cluster.node_at(0)?.bgp_peers()?;
            ensure!(peers.iter().any(|peer| peer.state == "Established"), "{peers:?}");
            Ok(())
        })?;
        change(&mut cluster, Backend::HostGw)?;
        traffic.go_on(1000)?;
        if cluster.node_at(2)?.status()?.0.backend != "vxlan" {
            bail!("n3 has followed without the store");
        }
        store_away(&cluster, 2, false)?;
        all_changed(&cluster, Backend::HostGw)?;
        traffic.end("vxlan to host-gw, one node late, one killed")
    });
}
