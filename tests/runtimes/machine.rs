//! A node on which a container runtime runs.
//!
//! Runtimes leave processes behind that are nobody's children, and make control groups. So everything of theirs runs in
//! a process namespace of its own, whose end is theirs, and below one control group, which is removed.

use std::ffi::OsStr;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use podway_model::cluster::Backend;
use podway_model::endpoint::EndpointRecord;
use podway_model::names;
use podway_testkit::cluster::{Cluster, ClusterOptions};
use podway_testkit::lab::Node;
use podway_testkit::process::Process;
use podway_testkit::wait::{wait_until, wait_until_ok};

/// Long enough for a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// A cluster whose first node has a container runtime.
pub(crate) struct Machine {
    /// Ends first: all processes of the runtime end with it.
    init: Process,
    init_pid: u32,
    programs: Vec<PathBuf>,
    files: PathBuf,
    cgroup: String,
    pub(crate) cluster: Cluster,
}

impl Machine {
    /// A cluster of so many nodes with our daemons, and a place for a runtime on the first one. The folders of `programs`
    /// stand before all others in the runtime's `PATH`.
    pub(crate) fn new(name: &str, nodes: usize, programs: &[&Path]) -> Result<Self> {
        let mut options = ClusterOptions::new(name, Backend::HostGw);
        options.lab.nodes = nodes;
        options.ipv6 = true;
        let cluster = Cluster::up(options)?;
        let files = cluster.lab.logs().join("files");
        std::fs::create_dir_all(&files)?;
        let node = cluster.node_at(0)?;
        // The first process of a process namespace: it takes in orphans, and its end is everybody's. The new /proc would
        // have the machine's boot id, where the node has one of its own.
        let boot = files.join("boot-id");
        std::fs::write(&boot, node.read_file(names::BOOT_ID_FILE)?)?;
        let ready = files.join("ready");
        let script = "mount --bind \"$0\" \"$1\" && : > \"$2\" && while :; do sleep 1000 & wait $!; done";
        let mut command = Command::new("unshare");
        command.args(["--pid", "--fork", "--kill-child", "--mount", "--propagation", "unchanged"]);
        command.args(["--mount-proc", "sh", "-c", script]).arg(&boot).arg(names::BOOT_ID_FILE).arg(&ready);
        let mut init = Process::start(&node.place, "init", command, &files.join("init.log"))?;
        wait_until("the process namespace is there", PATIENCE, || {
            init.ensure_running()?;
            Ok(ready.exists().then_some(()))
        })?;
        let init_pid = child_of(&init)?;
        let folders = programs.iter().filter_map(|program| program.parent()).map(Path::to_owned).collect();
        let cgroup = format!("podway-lab-{name}-{}", std::process::id());
        Ok(Self { init, init_pid, programs: folders, files, cgroup, cluster })
    }

    pub(crate) fn node(&self) -> Result<&Node> {
        self.cluster.node_at(0)
    }

    /// A folder on the host's disk for what the runtime needs.
    pub(crate) fn files(&self) -> &Path {
        &self.files
    }

    /// Name of the control group below which the runtime is to make its own.
    pub(crate) fn cgroup(&self) -> &str {
        &self.cgroup
    }

    /// A program of the runtime, in its process namespace.
    pub(crate) fn command(&self, program: &str) -> Result<Command> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let folders = self.programs.iter().cloned().chain(std::env::split_paths(&path));
        let pid = self.init_pid.to_string();
        let mut command = Command::new("nsenter");
        command.args(["--target", &pid, "--pid", "--mount", "--", program]);
        command.env("PATH", std::env::join_paths(folders)?);
        Ok(command)
    }

    /// Starts a daemon of the runtime.
    pub(crate) fn start<S: AsRef<OsStr>>(&self, program: &str, args: &[S]) -> Result<Process> {
        let mut command = self.command(program)?;
        command.args(args);
        Process::start(&self.node()?.place, program, command, &self.files.join(format!("{program}.log")))
    }

    /// Runs a program of the runtime to its end.
    pub(crate) fn output<S: AsRef<OsStr>>(&self, program: &str, args: &[S]) -> Result<Output> {
        let mut command = self.command(program)?;
        command.args(args);
        self.node()?.place.output(command, b"")
    }

    /// Runs a program of the runtime, which must succeed; what it wrote.
    pub(crate) fn run<S: AsRef<OsStr>>(&self, program: &str, args: &[S]) -> Result<String> {
        let output = self.output(program, args)?;
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        if !output.status.success() {
            let args: Vec<_> = args.iter().map(|arg| arg.as_ref().to_string_lossy()).collect();
            bail!("{program} {}: {}: {out}{err}", args.join(" "), output.status);
        }
        Ok(out.into_owned())
    }

    /// A root file system with busybox in it and a page that says `name`.
    pub(crate) fn rootfs(&self, name: &str, busybox: &Path) -> Result<PathBuf> {
        let root = self.files.join("roots").join(name);
        for folder in ["bin", "dev", "etc", "proc", "sys", "tmp", "run", "www"] {
            std::fs::create_dir_all(root.join(folder))?;
        }
        std::fs::copy(busybox, root.join("bin/busybox")).context("copy busybox")?;
        std::os::unix::fs::symlink("busybox", root.join("bin/sh"))?;
        std::fs::write(root.join("www/index.html"), format!("{name}\n"))?;
        Ok(root)
    }

    /// The endpoint records of the node.
    pub(crate) fn records(&self) -> Result<Vec<EndpointRecord>> {
        let files = self.node()?.read_folder(names::ENDPOINTS_DIR)?;
        files
            .iter()
            .filter(|(name, _)| name.ends_with(".json"))
            .map(|(name, text)| serde_json::from_str(text).with_context(|| format!("record {name}")))
            .collect()
    }

    /// The record of an attachment whose container id ends like this.
    pub(crate) fn record(&self, container: &str) -> Result<EndpointRecord> {
        let ends = |record: &EndpointRecord| record.container_id.as_str().ends_with(container);
        self.records()?.into_iter().find(ends).with_context(|| format!("no record of {container}"))
    }

    /// Addresses leased on the node, as `routed` tells.
    pub(crate) fn leased(&self) -> Result<u64> {
        let (routed, _) = self.node()?.status()?;
        Ok(routed.blocks.iter().map(|block| u64::from(block.leased)).sum())
    }

    /// Nothing is left of any pod: no record, veth, route or lease.
    pub(crate) fn expect_nothing_left(&self) -> Result<()> {
        let node = self.node()?;
        let records = self.records()?;
        ensure!(records.is_empty(), "endpoint records are left: {records:?}");
        let links = node.place.ip_json(&["link", "show", "group", &names::POD_GROUP.to_string()])?;
        ensure!(links.is_empty(), "links are left: {links:?}");
        for family in ["-4", "-6"] {
            let protocol = names::POD_ROUTE_PROTOCOL.to_string();
            let args = [family, "route", "show", "table", "all", "protocol", &protocol];
            let routes = node.place.ip_json(&args)?;
            ensure!(routes.is_empty(), "routes are left: {routes:?}");
        }
        wait_until_ok("no address is leased", PATIENCE, || {
            let leased = self.leased()?;
            ensure!(leased == 0, "{leased} addresses are leased");
            Ok(())
        })
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // Both are tried whatever comes of the other; a test that failed has said why already.
        let _ = self.init.kill();
        remove_cgroups(&self.cgroup);
    }
}

/// The process that `unshare` has forked.
pub(crate) fn child_of(unshare: &Process) -> Result<u32> {
    let children = std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", unshare.pid()))?;
    Ok(children.split_whitespace().next().context("a child of unshare")?.parse()?)
}

/// Script for busybox's shell that shows the page at an address. Its `wget` looks for the name of a port and, linked
/// statically, dies of it.
pub(crate) fn get(address: IpAddr, port: u16) -> String {
    format!("printf 'GET / HTTP/1.0\\r\\n\\r\\n' | busybox nc -w 10 {address} {port} | busybox tail -n 1")
}

/// Removes a control group and those below it, in every hierarchy. The kernel refuses while one has processes, which
/// takes a moment after their end.
fn remove_cgroups(name: &str) {
    let root = Path::new("/sys/fs/cgroup");
    let hierarchies = std::fs::read_dir(root).into_iter().flatten().flatten().map(|entry| entry.path());
    for folder in hierarchies.chain([root.to_owned()]).map(|path| path.join(name)) {
        let _ = wait_until("the control group is gone", Duration::from_secs(5), || {
            remove_tree(&folder);
            Ok((!folder.exists()).then_some(()))
        });
    }
}

/// Control groups have files that cannot be removed, and go without.
fn remove_tree(folder: &Path) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_tree(&entry.path());
        }
    }
    let _ = std::fs::remove_dir(folder);
}
