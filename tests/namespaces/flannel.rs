//! Nodes of flannel's and of ours in one cluster, on flannel's own layout of etcd: real flannel, real pods, and a node
//! that moves from one to the other.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use ipnet::{IpNet, Ipv4Net};
use podway_kern::ns::NetNs;
use podway_model::cluster::Backend;
use podway_model::socket::RoutedStatus;
use podway_testkit::cluster::{Cluster, ClusterOptions, PodPlan};
use podway_testkit::echo::{Echo, EchoRuntime};
use podway_testkit::flow::Flow;
use podway_testkit::lab::{Lab, Node, find_tool};
use podway_testkit::pod::Sandbox;
use podway_testkit::probe::{Kind, probe};
use podway_testkit::process::Process;
use podway_testkit::wait::wait_until_ok;
use podway_testkit::{mounts, objects};

use crate::run;

const PATIENCE: Duration = Duration::from_secs(60);
const SUBNET_FILE: &str = "/run/flannel/subnet.env";
const SUBNETS: &str = "/coreos.com/network/subnets/";

#[expect(clippy::print_stdout, reason = "where the tally of skipped tests looks")]
fn flannel(test: &str) -> Option<PathBuf> {
    let program = std::env::var_os("PODWAY_FLANNEL").map(|folder| PathBuf::from(folder).join("flannel"));
    let program = program.filter(|program| program.is_file());
    if program.is_none() {
        println!("SKIP {test}: no flannel of Go modules (PODWAY_FLANNEL)");
    }
    if find_tool("etcdctl").is_none() {
        println!("SKIP {test}: needs etcdctl on PATH");
        return None;
    }
    program
}

/// A pod of flannel's, wired by hand as its CNI plugin does with `bridge`.
struct FlannelPod {
    sandbox: Sandbox,
    addresses: Vec<IpAddr>,
    _echo: Echo,
}

/// A node on which flannel runs.
struct FlannelNode {
    index: usize,
    daemon: Process,
    subnet: Ipv4Net,
    v6: Option<IpNet>,
    pod: FlannelPod,
}

impl FlannelNode {
    fn start(cluster: &Cluster, index: usize, program: &PathBuf) -> Result<Self> {
        let node = cluster.node_at(index)?;
        mounts::make_private(&node.place, &["/run/flannel"])?;
        node.place.sysctl("net.ipv4.ip_forward", "1")?;
        node.place.sysctl("net.ipv6.conf.all.forwarding", "1")?;
        let mut command = Command::new(program);
        command.args(["-etcd-endpoints", &Lab::etcd_url(), "-iface", "eth0"]);
        let log = cluster.lab.logs().join(node.name()).join("flannel.log");
        let mut daemon = Process::start(&node.place, "flannel", command, &log)?;
        let mut text = String::new();
        wait_until_ok(&format!("flannel on {} has a subnet", node.name()), PATIENCE, || {
            daemon.ensure_running()?;
            text = node.read_file(SUBNET_FILE)?;
            Ok(())
        })?;
        let value = |name: &str| text.lines().find_map(|line| line.strip_prefix(name));
        let subnet: Ipv4Net = value("FLANNEL_SUBNET=").context("FLANNEL_SUBNET")?.parse()?;
        let v6: Option<IpNet> = value("FLANNEL_IPV6_SUBNET=").map(str::parse).transpose()?;
        let gateways: Vec<IpNet> = [IpNet::V4(subnet)].into_iter().chain(v6).collect();
        let mtu = value("FLANNEL_MTU=").context("FLANNEL_MTU")?;
        let pod = FlannelPod::wire(node, &cluster.lab.echo, &gateways, mtu)?;
        Ok(Self { index, daemon, subnet: subnet.trunc(), v6: v6.map(|v6| v6.trunc()), pod })
    }

    fn name(&self) -> String {
        format!("n{}", self.index + 1)
    }

    fn key(&self) -> String {
        let v6 = self.v6.map(|v6| format!("&{}-{}", v6.addr(), v6.prefix_len())).unwrap_or_default();
        format!("{SUBNETS}{}-{}{v6}", self.subnet.addr(), self.subnet.prefix_len())
    }
}

impl FlannelPod {
    fn wire(node: &Node, echo: &EchoRuntime, gateways: &[IpNet], mtu: &str) -> Result<Self> {
        let name = format!("f-{}", node.name());
        let sandbox = Sandbox::new(&node.place, "demo", &name)?;
        let netns = &sandbox.attachment.netns;
        node.place.ip(&format!(
            "link add cni0 type bridge\n\
             link set cni0 mtu {mtu} up\n\
             link add vethf type veth peer name eth0 netns {netns}\n\
             link set vethf mtu {mtu} master cni0 up\n"
        ))?;
        let mut inside = vec!["link set lo up".to_owned(), format!("link set eth0 mtu {mtu} up")];
        let mut addresses = vec![];
        for gateway in gateways {
            let address: IpAddr = match gateway.addr() {
                IpAddr::V4(v4) => Ipv4Addr::from(u32::from(v4) + 1).into(),
                IpAddr::V6(v6) => Ipv6Addr::from(u128::from(v6) + 1).into(),
            };
            let nodad = if address.is_ipv6() { " nodad" } else { "" };
            node.place.ip(&format!("addr add {gateway} dev cni0{nodad}\n"))?;
            inside.push(format!("addr add {address}/{} dev eth0{nodad}", gateway.prefix_len()));
            inside.push(format!("route add default via {}", gateway.addr()));
            addresses.push(address);
        }
        for line in inside {
            let arguments = format!("--net={netns} ip {line}");
            node.place.run("nsenter", &arguments.split_whitespace().collect::<Vec<_>>())?;
        }
        let server = echo.serve(&sandbox.net, &name)?;
        Ok(Self { sandbox, addresses, _echo: server })
    }

    fn net(&self) -> &NetNs {
        &self.sandbox.net
    }
}

fn status(node: &Node) -> Result<RoutedStatus> {
    Ok(node.status()?.0)
}

/// Four nodes: `n1` and `n2` ours, `n3` and `n4` flannel's, each with a pod.
fn mixed(name: &str, backend: Backend, ipv6: bool, program: &PathBuf) -> Result<(Cluster, Vec<FlannelNode>)> {
    let mut options = ClusterOptions::new(name, backend);
    options.lab.nodes = 4;
    let mut cluster = Cluster::without_daemons(options)?;
    cluster.options.ipv6 = ipv6;
    let v6 = format!(r#""EnableIPv6": true, "IPv6Network": "{}","#, objects::POOL_V6);
    let v6 = if ipv6 { v6.as_str() } else { "" };
    let network =
        format!(r#"{{"Network": "{}", {v6} "Backend": {{"Type": "{backend}"}}}}"#, objects::POOL_V4);
    cluster.lab.etcdctl(&["put", "/coreos.com/network/config", &network])?;
    // As in a migration: flannel is there first.
    let flannels: Vec<FlannelNode> = [2, 3]
        .into_iter()
        .map(|index| FlannelNode::start(&cluster, index, program))
        .collect::<Result<_>>()?;
    let mut documents = cluster.options.documents();
    documents[0]["spec"]["compat"] = "flannel".into();
    cluster.lab.apply(&objects::documents(documents))?;
    cluster.add_namespaces(&[("demo", &[])])?;
    for index in [0, 1] {
        start(&mut cluster, index)?;
    }
    Ok((cluster, flannels))
}

/// Starts our daemons on a node and gives it a pod.
fn start(cluster: &mut Cluster, index: usize) -> Result<()> {
    let node = &mut cluster.lab.nodes[index];
    node.start_daemons()?;
    node.wait_ready(PATIENCE)?;
    let name = format!("p-{}", index + 1);
    cluster.add_pods(&[PodPlan { namespace: "demo".to_owned(), name, node: index, labels: vec![] }])
}

/// Every pod: whose it is, its namespace and its addresses.
fn everybody<'a>(
    cluster: &'a Cluster,
    flannels: &'a [FlannelNode],
) -> Vec<(String, &'a NetNs, &'a [IpAddr])> {
    let ours = cluster.pods.iter().map(|pod| (pod.full_name(), pod.net(), pod.addresses.as_slice()));
    let theirs = flannels.iter().map(|node| (node.name(), node.pod.net(), node.pod.addresses.as_slice()));
    ours.chain(theirs).collect()
}

/// Every pod reaches every other one, whoever wired it, and every node every pod.
fn all_talk(cluster: &Cluster, flannels: &[FlannelNode]) -> Result<()> {
    wait_until_ok("pods on both kinds of node talk", PATIENCE, || {
        let all = everybody(cluster, flannels);
        for (from, net, _) in &all {
            for (to, _, addresses) in all.iter().filter(|(to, ..)| to != from) {
                ensure!(addresses.len() == cluster.families().len(), "{to}: {addresses:?}");
                for (address, kind) in addresses.iter().flat_map(|a| [(a, Kind::Icmp), (a, Kind::Tcp(80))]) {
                    let outcome = probe(net, *address, kind, true)?;
                    ensure!(outcome.is_open(), "{from} to {to} ({address}), {kind:?}: {outcome:?}");
                }
            }
        }
        for node in &cluster.lab.nodes {
            for (to, address) in all.iter().flat_map(|(to, _, all)| all.iter().map(move |a| (to, a))) {
                let outcome = probe(node.place.net(), *address, Kind::Icmp, true)?;
                ensure!(outcome.is_open(), "node {} to {to} ({address}): {outcome:?}", node.name());
            }
        }
        Ok(())
    })
}

/// The subnets that are taken, by address of their holder: nobody has two, no two overlap.
fn leases(cluster: &Cluster) -> Result<Vec<(String, String)>> {
    let text = cluster.lab.etcdctl(&["get", "--prefix", SUBNETS])?;
    let lines: Vec<&str> = text.lines().collect();
    let pairs = lines.chunks(2).map(|pair| {
        let value: serde_json::Value = serde_json::from_str(pair.get(1).context("a value")?)?;
        Ok((value["PublicIP"].as_str().context("PublicIP")?.to_owned(), pair[0].to_owned()))
    });
    pairs.collect()
}

fn talk_and_move(test: &str, name: &str, backend: Backend) {
    let Some(program) = flannel(test) else { return };
    run(test, || {
        let (mut cluster, mut flannels) = mixed(name, backend, false, &program)?;
        all_talk(&cluster, &flannels)?;
        let taken = leases(&cluster)?;
        ensure!(taken.len() == 4, "each node has one subnet: {taken:?}");
        for index in [0, 1] {
            let node = cluster.node_at(index)?;
            let own = status(node)?;
            let key = taken.iter().find(|(holder, _)| *holder == node.addresses.v4.to_string());
            let key = &key.with_context(|| format!("a lease of {}: {taken:?}", node.name()))?.1;
            // What flannel's nodes send to is this node's own address.
            ensure!(own.tunnel_addresses.iter().any(|a| key.contains(&format!("/{a}-"))), "{key}: {own:?}");
            for flannel in &flannels {
                let peer = cluster.node_at(flannel.index)?;
                let shown = own.nodes.iter().find(|n| n.addresses.contains(&peer.addresses.v4.into()));
                let shown = shown.with_context(|| format!("{} in {:?}", flannel.name(), own.nodes))?;
                ensure!(shown.blocks == [flannel.subnet.into()] && shown.problem.is_none(), "{shown:?}");
            }
        }
        move_node(&mut cluster, &mut flannels)?;
        go_back(&mut cluster, &mut flannels, &program)?;
        lease_ends(&cluster, flannels.remove(0))
    });
}

/// `n3` becomes one of ours while pods of the others talk.
fn move_node(cluster: &mut Cluster, flannels: &mut Vec<FlannelNode>) -> Result<()> {
    let mut gone = flannels.remove(0);
    let (one, two, four) = (cluster.pod_on(0)?, cluster.pod_on(1)?, &flannels[0].pod);
    let every = Duration::from_millis(1);
    let flows = [
        ("n1 to n2", Flow::start(one.net(), two.net(), two.addresses[0], every)?),
        ("n2 to n4", Flow::start(two.net(), four.net(), four.addresses[0], every)?),
        ("n4 to n1", Flow::start(four.net(), one.net(), one.addresses[0], every)?),
    ];
    for (_, flow) in &flows {
        flow.wait_for(200)?;
    }
    let node = cluster.node_at(gone.index)?;
    node.write_file(
        "/etc/cni/net.d/10-flannel.conflist",
        r#"{"cniVersion": "0.3.1", "name": "cbr0", "plugins": [{"type": "flannel"}]}"#,
    )?;
    // Too early: its pods are there.
    let install = ["node", "install", "--replace-flannel"];
    let refused = node.podwayctl(&install, "")?;
    ensure!(refused.code != Some(0) && refused.stderr.contains("vethf"), "{refused:?}");
    ensure!(node.exists("/etc/cni/net.d/10-flannel.conflist")?, "nothing was changed");
    // Drained, flannel's daemon ended, ours installed and started.
    node.place.ip("link del vethf\n")?;
    gone.daemon.kill()?;
    let done = node.podwayctl_ok(&install, "")?;
    ensure!(done.contains("device cni0 removed") && done.contains("10-flannel.conflist removed"), "{done}");
    let left = node.place.ip_json(&["link"])?;
    let is_flannels = |name: &str| name == "cni0" || name.starts_with("flannel");
    ensure!(!left.iter().any(|link| is_flannels(link["ifname"].as_str().unwrap_or(""))), "{left:?}");
    let routes = node.place.ip_json(&["route", "show", "root", objects::POOL_V4])?;
    ensure!(routes.is_empty(), "{routes:?}");
    let again = node.podwayctl_ok(&install, "")?;
    ensure!(!again.contains("removed"), "the second time nothing is left: {again}");
    start(cluster, gone.index)?;
    // It keeps the subnet that flannel had here.
    let own = status(cluster.node_at(gone.index)?)?;
    let kept = IpNet::V4(gone.subnet);
    ensure!(!own.blocks.is_empty() && own.blocks.iter().all(|block| kept.contains(&block.cidr)), "{own:?}");
    all_talk(cluster, flannels)?;
    // Our daemons may end and come back meanwhile.
    for node in &mut cluster.lab.nodes[..3] {
        node.kill_routed()?;
        node.start_routed()?;
        node.wait_ready(PATIENCE)?;
    }
    for (name, flow) in flows {
        flow.wait_for(200)?;
        let report = flow.stop()?;
        ensure!(report.lost() == 0, "{name}: packets were lost: {report:?}");
    }
    let value = cluster.lab.etcdctl(&["get", "--print-value-only", &gone.key()])?;
    ensure!(value.contains(r#""Podway""#), "{value}");
    Ok(())
}

/// `n3` is flannel's again, as the page on migrations says it.
fn go_back(cluster: &mut Cluster, flannels: &mut Vec<FlannelNode>, program: &PathBuf) -> Result<()> {
    let index = 2;
    let place = cluster.pods.iter().position(|pod| pod.node == "n3").context("a pod on n3")?;
    cluster.pods.remove(place).delete(&cluster.node_at(index)?.place)?;
    let routed = cluster.lab.programs.routed.display().to_string();
    let node = &mut cluster.lab.nodes[index];
    node.kill_routed()?;
    node.kill_policy_agent()?;
    node.place.run(&routed, &["--cleanup"])?;
    wait_until_ok("n3 is down", PATIENCE, || {
        let live = cluster.lab.etcdctl(&["get", "/podway/v1/live/n3"])?;
        ensure!(live.is_empty(), "{live}");
        Ok(())
    })?;
    let released = cluster.node_at(0)?.podwayctl_ok(&["node", "release", "n3", "--now"], "")?;
    ensure!(released.contains(SUBNETS) && released.contains("free at once"), "{released}");
    flannels.push(FlannelNode::start(cluster, index, program)?);
    all_talk(cluster, flannels)
}

/// A lease that goes takes its node out of our kernels, and its subnet is free.
fn lease_ends(cluster: &Cluster, mut last: FlannelNode) -> Result<()> {
    last.daemon.kill()?;
    cluster.lab.etcdctl(&["del", &last.key()])?;
    for index in [0, 1] {
        let node = cluster.node_at(index)?;
        wait_until_ok(&format!("{} forgets {}", node.name(), last.name()), PATIENCE, || {
            let routes = node.place.ip_json(&["route", "show", &last.subnet.to_string()])?;
            ensure!(routes.is_empty(), "{routes:?}");
            let nodes = status(node)?.nodes;
            ensure!(!nodes.iter().any(|node| node.blocks.contains(&last.subnet.into())), "{nodes:?}");
            Ok(())
        })?;
    }
    Ok(())
}

#[test]
fn nodes_of_flannels_talk_over_vxlan_and_one_moves() {
    let test = "nodes_of_flannels_talk_over_vxlan_and_one_moves";
    talk_and_move(test, "flannel-vxlan", Backend::Vxlan);
}

#[test]
fn nodes_of_flannels_talk_over_host_gw_and_one_moves() {
    let test = "nodes_of_flannels_talk_over_host_gw_and_one_moves";
    talk_and_move(test, "flannel-host-gw", Backend::HostGw);
}

fn both_families(test: &str, name: &str, backend: Backend) {
    let Some(program) = flannel(test) else { return };
    run(test, || {
        let (cluster, flannels) = mixed(name, backend, true, &program)?;
        all_talk(&cluster, &flannels)?;
        let taken = leases(&cluster)?;
        ensure!(taken.len() == 4 && taken.iter().all(|(_, key)| key.contains('&')), "{taken:?}");
        Ok(())
    });
}

#[test]
fn both_families_talk_with_nodes_of_flannels_over_vxlan() {
    let test = "both_families_talk_with_nodes_of_flannels_over_vxlan";
    both_families(test, "flannel-dual-vxlan", Backend::Vxlan);
}

#[test]
fn both_families_talk_with_nodes_of_flannels_over_host_gw() {
    let test = "both_families_talk_with_nodes_of_flannels_over_host_gw";
    both_families(test, "flannel-dual-host-gw", Backend::HostGw);
}
