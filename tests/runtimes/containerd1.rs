//! containerd 1.6 and its `ctr run --cni`: it calls ADD when a task starts, and no DEL when somebody deletes the task.

use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use podway_testkit::pod::Pod;
use podway_testkit::probe::{Kind, probe};
use podway_testkit::process::Process;
use podway_testkit::wait::wait_until_ok;

use crate::machine::{Machine, PATIENCE, child_of, get};
use crate::{foreign, run};

/// A machine on which containerd runs.
struct Containerd {
    _daemon: Process,
    machine: Machine,
    busybox: std::path::PathBuf,
}

impl Containerd {
    fn start(test: &str, name: &str, nodes: usize) -> Result<Option<Self>> {
        let Some(containerd) = foreign::packaged(test, "containerd/usr/bin/containerd") else {
            return Ok(None);
        };
        let Some(runc) = foreign::packaged(test, "containerd/usr/sbin/runc") else { return Ok(None) };
        let Some(busybox) = foreign::packaged(test, "busybox-static/bin/busybox") else { return Ok(None) };
        let machine = Machine::new(name, nodes, &[&containerd, &runc])?;
        let config = machine.files().join("config.toml");
        std::fs::write(&config, "version = 2\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n")?;
        let mut daemon = machine.start("containerd", &[Path::new("--config"), &config])?;
        wait_until_ok("containerd answers", PATIENCE, || {
            daemon.ensure_running()?;
            machine.run("ctr", &["version"])
        })?;
        Ok(Some(Self { _daemon: daemon, machine, busybox }))
    }

    /// A container that serves a page with its name.
    fn run(&self, name: &str) -> Result<Vec<IpAddr>> {
        let root = self.machine.rootfs(name, &self.busybox)?;
        let cgroup = format!("{}/{name}", self.machine.cgroup());
        let root = root.to_string_lossy();
        let server = ["/bin/busybox", "httpd", "-f", "-p", "80", "-h", "/www"];
        let args = ["run", "--detach", "--cni", "--cgroup", &cgroup, "--rootfs", &root, name];
        self.machine.run("ctr", &[&args[..], &server[..]].concat())?;
        Ok(self.machine.record(name)?.addresses)
    }

    /// What busybox says in a container.
    fn busybox(&self, name: &str, args: &[&str]) -> Result<String> {
        let all = [&["tasks", "exec", "--exec-id", "look", name, "/bin/busybox"], args].concat();
        self.machine.run("ctr", &all)
    }

    /// Ends a container as somebody does who has never heard of networks.
    fn delete(&self, name: &str) -> Result<()> {
        self.machine.run("ctr", &["tasks", "kill", "--signal", "SIGKILL", name])?;
        wait_until_ok("the task has ended", PATIENCE, || {
            let tasks = self.machine.run("ctr", &["tasks", "ls"])?;
            let runs = |line: &str| line.starts_with(name) && line.contains("RUNNING");
            ensure!(!tasks.lines().any(runs), "{tasks}");
            Ok(())
        })?;
        // Exit code 137 is the container's own.
        self.machine.output("ctr", &["tasks", "delete", name])?;
        self.machine.run("ctr", &["containers", "delete", name]).map(drop)
    }
}

#[test]
fn containerd_1_runs_containers_on_our_network() {
    const TEST: &str = "containerd_1_runs_containers_on_our_network";
    run(TEST, || {
        let Some(containerd) = Containerd::start(TEST, "containerd-1", 2)? else { return Ok(()) };
        let cluster = &containerd.machine.cluster;
        let far = Pod::add(&cluster.node_at(1)?.place, &cluster.lab.echo, "demo", "far")?;
        let (one, two) = (containerd.run("one")?, containerd.run("two")?);
        ensure!(one.len() == 2 && two.len() == 2, "both families: {one:?} {two:?}");
        for (from, to, name) in [("one", &two, "two"), ("two", &one, "one")] {
            for address in to {
                let page = containerd.busybox(from, &["sh", "-c", &get(*address, 80)])?;
                ensure!(page.trim() == name, "{from} to {address}: {page:?}");
                containerd.busybox(from, &["ping", "-c", "1", "-W", "10", &address.to_string()])?;
            }
        }
        // And across to a pod of another node, both ways.
        for address in &far.addresses {
            wait_until_ok("the other node is reached", PATIENCE, || {
                containerd.busybox("one", &["ping", "-c", "1", "-W", "1", &address.to_string()])
            })?;
        }
        for address in &one {
            let outcome = probe(far.net(), *address, Kind::Icmp, true)?;
            ensure!(outcome.is_open(), "{address}: {outcome}");
        }
        // The interface is what was promised.
        let record = containerd.machine.record("one")?;
        let link = containerd.busybox("one", &["ip", "link", "show", "dev", "eth0"])?;
        ensure!(link.contains(&record.mac.to_string()), "{link}");
        ensure!(link.contains(&format!("mtu {}", record.mtu)), "{link}");
        Ok(())
    });
}

/// Starts `routed` as if the machine had been running for so many seconds more.
fn routed_later(machine: &Machine, seconds: u32) -> Result<Process> {
    let mut command = Command::new("unshare");
    command.args(["--time", "--fork", "--kill-child", "--boottime", &seconds.to_string()]);
    command.arg(&machine.cluster.lab.programs.routed);
    let log = machine.files().join("routed-later.log");
    Process::start(&machine.node()?.place, "routed", command, &log)
}

#[test]
fn what_containerd_1_forgets_is_collected() {
    const TEST: &str = "what_containerd_1_forgets_is_collected";
    run(TEST, || {
        let Some(mut containerd) = Containerd::start(TEST, "containerd-1-forgets", 1)? else {
            return Ok(());
        };
        let lives = containerd.run("lives")?;
        containerd.run("gone")?;
        containerd.delete("gone")?;
        // No DEL came: the namespace went and took the interface along, address and record stay.
        let record = containerd.machine.record("gone")?;
        ensure!(containerd.machine.leased()? == 4, "{} leased", containerd.machine.leased()?);
        wait_until_ok("the interface is gone with its namespace", PATIENCE, || {
            let links = containerd.machine.node()?.place.ip_json(&["link"])?;
            ensure!(!links.iter().any(|link| link["ifname"] == *record.host_ifname.as_str()), "{links:?}");
            Ok(())
        })?;
        // `routed` looks when it starts and then every minute. Time passes for it alone: a look after five minutes
        // raises the suspicion, one more than a minute later ends the lease.
        containerd.machine.cluster.lab.nodes[0].kill_routed()?;
        let machine = &containerd.machine;
        let mut routed = routed_later(machine, 400)?;
        let suspects = "/run/podway/ipam/suspects";
        let id = record.container_id.as_str();
        wait_until_ok("the lease is suspected", PATIENCE, || {
            routed.ensure_running()?;
            let text = machine.node()?.read_file(suspects)?;
            ensure!(text.contains(id) && !text.contains("lives"), "{text}");
            Ok(())
        })?;
        ensure!(machine.record("gone").is_ok(), "one look ends nothing");
        let pid = child_of(&routed)?;
        routed.kill()?;
        wait_until_ok("it is gone", PATIENCE, || {
            ensure!(!Path::new(&format!("/proc/{pid}")).exists(), "process {pid} is there");
            Ok(())
        })?;
        let mut routed = routed_later(machine, 500)?;
        wait_until_ok("the lease has ended", PATIENCE, || {
            routed.ensure_running()?;
            ensure!(machine.record("gone").is_err(), "its record is there");
            let leased = machine.leased()?;
            ensure!(leased == 2, "{leased} addresses are leased");
            Ok(())
        })?;
        // Who lives was never in doubt.
        ensure!(machine.record("lives")?.addresses == lives, "the record of one that lives changed");
        let page = containerd.busybox("lives", &["sh", "-c", &get(Ipv4Addr::LOCALHOST.into(), 80)])?;
        ensure!(page.trim() == "lives", "{page:?}");
        let address = lives.first().context("it has an address")?;
        let outcome = probe(machine.node()?.place.net(), *address, Kind::Icmp, true)?;
        ensure!(outcome.is_open(), "{outcome}");
        Ok(())
    });
}
