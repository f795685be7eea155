//! The lab: nodes joined by an underlay, an outside world behind it, a real etcd, real daemons.
//!
//! ```text
//!   n1        n2        n3          outside (echo server)
//!    eth0      eth0      eth0          eth0 198.51.100.10
//!      └────────┴────┬────┘              │
//!                  br0 172.30.0.1 ── underlay (router, etcd) ── 198.51.100.1
//! ```
//!
//! The underlay knows no pod address: what leaves a node towards the outside with a pod's own source address gets
//! no answer.

mod node;
mod programs;
mod underlay;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use podway_model::names;

pub use node::{Node, PodwayctlOutput};
pub use programs::{Programs, find_tool};
pub use underlay::{Outside, Underlay};

use crate::echo::EchoRuntime;
use crate::mounts;
use crate::place::Place;
use crate::process::Process;
use crate::wait::{wait_until, wait_until_ok};

/// Where the cluster's state is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StoreKind {
    /// A real etcd in the underlay.
    Etcd,
    /// A folder of documents that all nodes share.
    File,
}

/// What a lab is made of.
#[derive(Debug, Clone)]
pub struct LabOptions {
    /// Name of its log folder below `target/lab`.
    pub name: String,
    /// Number of nodes, at least 1.
    pub nodes: usize,
    /// Where the cluster's state is kept.
    pub store: StoreKind,
    /// Whether etcd runs from the start; if not, [`Lab::start_etcd`] starts it.
    pub start_etcd: bool,
    /// Further arguments of etcd.
    pub etcd_args: Vec<String>,
    /// Log level of the daemons.
    pub log_level: String,
}

impl LabOptions {
    /// Three nodes and etcd.
    pub fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            nodes: 3,
            store: StoreKind::Etcd,
            start_etcd: true,
            etcd_args: vec![],
            log_level: "info".to_owned(),
        }
    }
}

/// Seconds that a node counts as alive after its last sign of life, in a lab.
pub const LEASE_SECONDS: u32 = 5;

/// A running lab. Everything ends when it is dropped, or when its process dies.
#[derive(Debug)]
pub struct Lab {
    /// Nodes, `n1` first.
    pub nodes: Vec<Node>,
    /// The outside world.
    pub outside: Outside,
    /// What joins them.
    pub underlay: Underlay,
    /// Programs under test and their tools.
    pub programs: Programs,
    /// Serves the echo servers of outside and pods.
    pub echo: EchoRuntime,
    etcd: Option<Process>,
    logs: PathBuf,
    options: LabOptions,
}

impl Lab {
    /// Brings it up: namespaces, addresses, etcd, files. Daemons are started by [`Node::start_daemons`].
    pub fn up(options: LabOptions) -> Result<Self> {
        let programs = Programs::find()?;
        let logs = programs.lab_dir().join(&options.name);
        // Logs of an earlier run with this name, killed or not.
        match std::fs::remove_dir_all(&logs) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                return Err(e).with_context(|| format!("clear {}", logs.display()));
            }
            _ => {}
        }
        std::fs::create_dir_all(&logs).with_context(|| format!("create {}", logs.display()))?;
        let echo = EchoRuntime::start()?;
        let underlay = Underlay::new()?;
        let outside = Outside::new(&underlay, &echo)?;
        let mut lab = Self { nodes: vec![], outside, underlay, programs, echo, etcd: None, logs, options };
        if lab.options.store == StoreKind::Etcd && lab.options.start_etcd {
            lab.start_etcd()?;
        }
        for index in 0..lab.options.nodes {
            let node = lab.new_node(index)?;
            lab.nodes.push(node);
        }
        Ok(lab)
    }

    /// The node called `name`.
    pub fn node(&self, name: &str) -> Result<&Node> {
        self.nodes.iter().find(|n| n.name() == name).with_context(|| format!("no node {name}"))
    }

    /// Folder of the lab's log files.
    pub fn logs(&self) -> &Path {
        &self.logs
    }

    /// URL of the lab's etcd, whether it runs or not.
    pub fn etcd_url() -> String {
        format!("http://{}:2379", underlay::ROUTER_V4)
    }

    /// Starts etcd in the underlay and waits until it answers.
    pub fn start_etcd(&mut self) -> Result<()> {
        let place = &self.underlay.place;
        let etcd = self.programs.etcd.as_ref().context("etcd is not installed")?;
        let (url, peer) = (Self::etcd_url(), "http://127.0.0.1:2380");
        let mut command = Command::new(etcd);
        command.args(["--name", "lab", "--data-dir", "/var/lib/etcd/lab", "--log-level", "warn"]);
        command.args(["--listen-client-urls", &format!("{url},http://127.0.0.1:2379")]);
        command.args(["--advertise-client-urls", &url, "--listen-peer-urls", peer]);
        command.args(["--initial-advertise-peer-urls", peer, "--initial-cluster", &format!("lab={peer}")]);
        // One member: it elects itself, so it need not wait long; a short election also allows short leases.
        command.args(["--heartbeat-interval", "50", "--election-timeout", "500"]);
        command.args(&self.options.etcd_args);
        let mut process = Process::start(place, "etcd", command, &self.logs.join("etcd.log"))?;
        let address = (IpAddr::V4(underlay::ROUTER_V4), 2379).into();
        wait_until("etcd is healthy", Duration::from_secs(20), || {
            process.ensure_running()?;
            place.net().run(|| Ok(http_health(address).then_some(())))?
        })?;
        self.etcd = Some(process);
        Ok(())
    }

    /// Runs `etcdctl` in the underlay, as an operator does, and returns what it printed.
    pub fn etcdctl(&self, args: &[&str]) -> Result<String> {
        let program = find_tool("etcdctl").context("etcdctl is not installed")?;
        self.underlay.place.run(&program.display().to_string(), args)
    }

    /// Kills etcd, as a crash would. Its data stay.
    pub fn kill_etcd(&mut self) -> Result<()> {
        self.etcd.take().context("etcd does not run")?.kill()
    }

    /// Starts both daemons on all nodes and waits until they say that they are ready.
    pub fn start_daemons(&mut self) -> Result<()> {
        for node in &mut self.nodes {
            node.start_daemons()?;
        }
        self.wait_ready()
    }

    /// Waits until the daemons of all nodes say that they are ready.
    pub fn wait_ready(&mut self) -> Result<()> {
        for node in &mut self.nodes {
            node.wait_ready(Duration::from_secs(30))?;
        }
        Ok(())
    }

    /// Applies documents with the real `podwayctl apply -f`, run on the first node.
    pub fn apply(&self, documents: &str) -> Result<()> {
        self.nodes.first().context("a lab has nodes")?.apply(documents)
    }

    /// Waits until `look` finds the same on every node; for conditions that the daemons reach on their own.
    pub fn wait_on_all(
        &self,
        what: &str,
        patience: Duration,
        look: impl Fn(&Node) -> Result<()>,
    ) -> Result<()> {
        for node in &self.nodes {
            wait_until_ok(&format!("{what} on {}", node.name()), patience, || look(node))?;
        }
        Ok(())
    }

    /// A node's sudden death: its cable is pulled first, so that nobody hears a goodbye, then all its programs
    /// are killed.
    pub fn kill_node(&mut self, index: usize) -> Result<()> {
        let node = self.nodes.get_mut(index).with_context(|| format!("no node number {index}"))?;
        self.underlay.set_cable(node.name(), false)?;
        node.routed = None;
        node.policy_agent = None;
        Ok(())
    }

    /// Boots a node that was killed: an empty kernel, a new boot id, `/run` empty; `/var/lib/podway` is as it was.
    /// The daemons are not started yet.
    pub fn boot_node(&mut self, index: usize) -> Result<()> {
        let old = self.nodes.get(index).with_context(|| format!("no node number {index}"))?;
        let persistent = old.read_folder(names::STATE_DIR)?;
        self.underlay.leave(old.name())?;
        let node = self.new_node(index)?;
        for (name, text) in persistent {
            node.write_file(&format!("{}/{name}", names::STATE_DIR), &text)?;
        }
        self.nodes[index] = node;
        Ok(())
    }

    fn new_node(&self, index: usize) -> Result<Node> {
        let name = format!("n{}", index + 1);
        let place = Place::new(&name)?;
        let (v4, v6) = self.underlay.join(&place, index)?;
        mounts::make_private(&place, mounts::PRIVATE)?;
        let boot_id = std::fs::read_to_string("/proc/sys/kernel/random/uuid").context("make a boot id")?;
        mounts::cover_file(&place, names::BOOT_ID_FILE, &boot_id)?;
        let store = match self.options.store {
            StoreKind::Etcd => format!(
                "store:\n  etcd:\n    endpoints: [\"{}\"]\n    leaseSeconds: {LEASE_SECONDS}\n",
                Self::etcd_url()
            ),
            StoreKind::File => {
                let shared = self.logs.join("store");
                std::fs::create_dir_all(&shared)?;
                // The same folder on the host's disk for all nodes.
                format!("store:\n  file:\n    path: {}\n", shared.display())
            }
        };
        let config = format!("node:\n  name: {name}\n{store}log:\n  level: {}\n", self.options.log_level);
        Node::new(place, v4, v6, config, self.programs.clone(), &self.logs)
    }
}

/// One `GET /health`: whether etcd says that it is healthy.
fn http_health(address: std::net::SocketAddr) -> bool {
    use std::io::{Read as _, Write as _};
    let ask = || -> std::io::Result<String> {
        let mut stream = std::net::TcpStream::connect_timeout(&address, Duration::from_millis(200))?;
        stream.set_read_timeout(Some(Duration::from_secs(1)))?;
        stream.write_all(b"GET /health HTTP/1.0\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    };
    ask().is_ok_and(|answer| answer.contains(r#""health":"true""#))
}

/// The address of each family that a node or the outside world has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Addresses {
    /// IPv4.
    pub v4: Ipv4Addr,
    /// IPv6.
    pub v6: Ipv6Addr,
}

impl Addresses {
    /// The one of the same family as `other`.
    pub fn like(&self, other: IpAddr) -> IpAddr {
        if other.is_ipv4() { self.v4.into() } else { self.v6.into() }
    }
}

/// An error if the machine lacks what every lab needs.
pub fn check_tools() -> Result<()> {
    if !nix::unistd::geteuid().is_root() {
        bail!("a lab makes network namespaces: run it as root");
    }
    for tool in ["ip", "nft"] {
        find_tool(tool).with_context(|| format!("{tool} is not in PATH"))?;
    }
    Ok(())
}
