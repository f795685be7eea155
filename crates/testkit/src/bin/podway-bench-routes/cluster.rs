//! A real etcd that holds thousands of nodes, and real `routed`s: from their start to the last route in the kernel, and
//! from one node's change to every kernel.

use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use ipnet::{IpNet, Ipv4Net};
use podway_kern::rtnl::{RouteFilter, Rtnl};
use podway_model::cluster::{Claim, Liveness, NodeRecord, encode};
use podway_model::config::{EtcdConfig, StoreConfig};
use podway_model::keys::Key;
use podway_model::names::{self, ROUTE_PROTOCOL};
use podway_store::Store;
use podway_testkit::lab::{Lab, LabOptions};
use podway_testkit::objects;
use podway_testkit::wait::wait_until;
use serde_json::json;

use crate::report::{Budget, Unit, Values};

const PATIENCE: Duration = Duration::from_secs(120);
/// Real nodes to which changes go.
const WATCHERS: usize = 3;
/// Changes that are followed.
const CHANGES: usize = 40;

/// Rows: title, budget, values.
pub(crate) type Rows = Vec<(String, Budget, Vec<Values>)>;

/// Starts with `nodes` others, `runs` times; then changes.
pub(crate) fn measure(nodes: usize, runs: usize) -> Result<Rows> {
    let mut rows = Rows::new();
    for backend in ["host-gw", "vxlan"] {
        let mut options = LabOptions::new("bench-routes");
        options.nodes = WATCHERS;
        let mut lab = Lab::up(options)?;
        lab.apply(&objects::documents([
            objects::podway_document("ClusterConfig", "default", json!({"backend": backend})),
            objects::podway_document("Pool", "default-v4", json!({"cidr": "10.0.0.0/8"})),
        ]))?;
        in_underlay(&lab, move |store| Box::pin(fill(store, nodes)))?;
        let mut seconds = Values::new("to the last route", Unit::Seconds);
        let mut cpu = Values::new("CPU", Unit::Seconds);
        let mut memory = Values::new("peak resident set", Unit::Mebibytes);
        for _ in 0..runs {
            let start = one_start(&mut lab, nodes)?;
            seconds.push(start.seconds);
            cpu.push(start.cpu_seconds);
            memory.push(start.mebibytes);
        }
        let title = format!("{nodes} nodes in etcd to kernel routes, {backend}");
        rows.push((title.clone(), Budget::Seconds(3.0), vec![seconds]));
        rows.push((format!("{title}: CPU"), Budget::None, vec![cpu]));
        rows.push((format!("{title}: memory"), Budget::Mebibytes(40.0), vec![memory]));
        let (middle, most) = changes(&mut lab, nodes)?;
        let title = format!("one node's change to {WATCHERS} kernels, {nodes} nodes, {backend}");
        rows.push((format!("{title}: p50"), Budget::None, vec![middle]));
        rows.push((format!("{title}: p99"), Budget::None, vec![most]));
    }
    Ok(rows)
}

/// What one start took.
struct Start {
    seconds: f64,
    cpu_seconds: f64,
    mebibytes: f64,
}

type Work<'a, T> = std::pin::Pin<Box<dyn Future<Output = Result<T>> + 'a>>;

/// Runs a client of the store where etcd listens.
fn in_underlay<T: Send>(
    lab: &Lab,
    work: impl for<'a> FnOnce(&'a dyn Store) -> Work<'a, T> + Send,
) -> Result<T> {
    lab.underlay.place.net().run(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let store = podway_store::open(&StoreConfig::Etcd(EtcdConfig::default()))?;
            work(store.as_ref()).await
        })
    })?
}

async fn put(store: &dyn Store, key: String, value: Vec<u8>) -> Result<()> {
    store.put(&key, &value).await?;
    Ok(())
}

/// Its blocks; the real nodes' own are elsewhere in the pool.
fn block(node: usize, number: usize) -> Result<IpNet> {
    let place = u32::try_from((node * 8 + number) << 6)?;
    Ok(Ipv4Net::new((u32::from(Ipv4Addr::new(10, 128, 0, 0)) + place).into(), 26)?.into())
}

/// Its underlay address, on the real nodes' link.
fn address(node: usize) -> Result<Ipv4Addr> {
    let number = u16::try_from(node + 5000)?.to_be_bytes();
    Ok(Ipv4Addr::new(172, 30, number[0], number[1]))
}

fn claim(node: usize, number: usize) -> Result<(String, Vec<u8>)> {
    let name = format!("other-{node}").parse()?;
    let instance_id = format!("00000000-0000-4000-8000-{node:012}").parse()?;
    let claim = Claim { instance_id, pool: "default-v4".parse()?, confirmed: true };
    Ok((Key::Claim(name, block(node, number)?).to_string(), encode(&claim)))
}

/// Record, sign of life and claim of every other node.
async fn fill(store: &dyn Store, nodes: usize) -> Result<()> {
    let mut all = vec![];
    for node in 0..nodes {
        let name: podway_model::ids::NodeName = format!("other-{node}").parse()?;
        let claimed = claim(node, 0)?;
        let IpAddr::V4(tunnel) = block(node, 0)?.network() else { continue };
        let instance_id: podway_model::ids::InstanceId =
            format!("00000000-0000-4000-8000-{node:012}").parse()?;
        let record = NodeRecord {
            instance_id: instance_id.clone(),
            address_v4: Some(address(node)?),
            address_v6: None,
            tunnel_v4: Some(tunnel),
            tunnel_v6: None,
            labels: [("zone".to_owned(), format!("z{}", node % 3))].into(),
            asn: None,
            vtep_mac: Some(names::vtep_mac(name.as_str(), names::VXLAN_DEVICE)),
            wireguard_key: None,
            version: "0.1.0".to_owned(),
            ways: None,
        };
        let life = Liveness { instance_id, addresses: vec![address(node)?.into()] };
        all.push((Key::Node(name.clone()).to_string(), encode(&record)));
        all.push((Key::Live(name).to_string(), encode(&life)));
        all.push(claimed);
    }
    for some in all.chunks(256) {
        let puts = some.iter().map(|(key, value)| store.put(key, value));
        for put in futures::future::join_all(puts).await {
            put?;
        }
    }
    Ok(())
}

fn routes(rtnl: &mut Rtnl) -> Result<usize> {
    let filter = RouteFilter { protocol: Some(ROUTE_PROTOCOL), ..RouteFilter::default() };
    Ok(rtnl.routes(filter)?.into_iter().filter(|route| route.destination.prefix_len() == 26).count())
}

/// The first node starts on an empty kernel.
fn one_start(lab: &mut Lab, nodes: usize) -> Result<Start> {
    lab.boot_node(0)?;
    let node = lab.nodes.first_mut().context("a lab has nodes")?;
    let mut rtnl = Rtnl::open_in(node.place.net())?;
    let start = Instant::now();
    node.start_routed()?;
    wait_until("the routes of all nodes are in the kernel", PATIENCE, || {
        let there = routes(&mut rtnl)?;
        Ok((there >= nodes).then_some(()))
    })?;
    let seconds = start.elapsed().as_secs_f64();
    let pid = node.routed.as_ref().context("it runs")?.pid();
    wait_until("it says that it is ready", PATIENCE, || {
        let text = node.podwayctl(&["status", "--node", "-o", "json"], "")?.stdout;
        let status: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
        Ok((status["node"]["routed"]["answer"]["ready"] == true).then_some(()))
    })?;
    let usage = Start { seconds, cpu_seconds: cpu_seconds(pid)?, mebibytes: peak(pid)? };
    node.kill_routed()?;
    Ok(usage)
}

fn cpu_seconds(pid: u32) -> Result<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let (_, rest) = stat.rsplit_once(')').context("a name in brackets")?;
    // proc_pid_stat(5): utime and stime are fields 14 and 15, in ticks of 10 ms.
    let ticks = rest.split_whitespace().skip(11).take(2).map(str::parse::<f64>);
    Ok(ticks.sum::<Result<f64, _>>()? / 100.0)
}

fn peak(pid: u32) -> Result<f64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("VmHWM")?;
    let kib: f64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kib / 1024.0)
}

/// Milliseconds from the write of a claim to the route in the last of the kernels: the middle and the 99th of a
/// hundred.
fn changes(lab: &mut Lab, nodes: usize) -> Result<(Values, Values)> {
    for node in &mut lab.nodes {
        node.start_routed()?;
    }
    let mut kernels: Vec<Rtnl> =
        lab.nodes.iter().map(|node| Ok(Rtnl::open_in(node.place.net())?)).collect::<Result<_>>()?;
    for rtnl in &mut kernels {
        wait_until("the routes of all nodes are in every kernel", PATIENCE, || {
            Ok((routes(rtnl)? >= nodes + WATCHERS).then_some(()))
        })?;
    }
    let mut times = vec![];
    for number in 0..CHANGES {
        let (node, number) = (number % nodes.max(1), 1 + number / nodes.max(1));
        let (key, value) = claim(node, number)?;
        let inside = block(node, number)?.broadcast();
        let before: Vec<_> = kernels.iter_mut().map(|rtnl| rtnl.route_to(inside).ok()).collect();
        in_underlay(lab, move |store| Box::pin(put(store, key, value)))?;
        // The write has been answered: what follows is the way to the kernels.
        let start = Instant::now();
        for (rtnl, before) in kernels.iter_mut().zip(before) {
            while rtnl.route_to(inside).ok() == before {
                ensure!(start.elapsed() < PATIENCE, "no route to {inside}");
                std::thread::sleep(Duration::from_micros(200));
            }
        }
        times.push(start.elapsed().as_secs_f64() * 1000.0);
    }
    for node in &mut lab.nodes {
        node.kill_routed()?;
    }
    times.sort_by(f64::total_cmp);
    let at = |share: usize| {
        times.get((times.len() * share / 100).min(times.len() - 1)).copied().unwrap_or(f64::NAN)
    };
    let mut both = (Values::new("p50", Unit::Milliseconds), Values::new("p99", Unit::Milliseconds));
    both.0.push(at(50));
    both.1.push(at(99));
    Ok(both)
}
