//! podman 4 with its CNI backend: our network beside its own, by name.

use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use podway_testkit::probe::{Kind, probe};
use podway_testkit::wait::wait_until_ok;

use crate::machine::{Machine, PATIENCE, get};
use crate::{foreign, run};

/// podman, its configuration, and what keeps its state in the test's own folder.
struct Podman {
    machine: Machine,
    busybox: PathBuf,
}

impl Podman {
    fn new(test: &str, name: &str) -> Result<Option<Self>> {
        let package = |path: &str| foreign::packaged(test, path);
        let Some(podman) = package("podman/usr/bin/podman") else { return Ok(None) };
        let Some(runc) = package("podman/usr/sbin/runc") else { return Ok(None) };
        let Some(conmon) = package("podman/usr/bin/conmon") else { return Ok(None) };
        let Some(busybox) = package("busybox-static/bin/busybox") else { return Ok(None) };
        let machine = Machine::new(name, 1, &[&podman, &runc])?;
        let files = machine.files().display();
        let (conmon, runc) = (conmon.display(), runc.display());
        // Locks in files: those in memory stand where the host's podman has its own.
        let containers = format!(
            "[containers]\ndefault_ulimits = [\"nofile=1024:1024\", \"nproc=1024:1024\"]\n\
             [engine]\ncgroup_manager = \"cgroupfs\"\nevents_logger = \"none\"\nlock_type = \"file\"\n\
             runtime = \"runc\"\nconmon_path = [\"{conmon}\"]\ntmp_dir = \"{files}/tmp\"\n\
             static_dir = \"{files}/static\"\nvolume_path = \"{files}/volumes\"\n\
             [engine.runtimes]\nrunc = [\"{runc}\"]\n\
             [network]\nnetwork_backend = \"cni\"\ncni_plugin_dirs = [\"/opt/cni/bin\"]\n\
             network_config_dir = \"/etc/cni/net.d\"\n"
        );
        std::fs::write(machine.files().join("containers.conf"), containers)?;
        let storage = format!(
            "[storage]\ndriver = \"vfs\"\nrunroot = \"{files}/run\"\ngraphroot = \"{files}/graph\"\n"
        );
        std::fs::write(machine.files().join("storage.conf"), storage)?;
        Ok(Some(Self { machine, busybox }))
    }

    fn call(&self, args: &[&str]) -> Result<String> {
        let setting = |name: &str, file: &str| format!("{name}={}/{file}", self.machine.files().display());
        let containers = setting("CONTAINERS_CONF", "containers.conf");
        let storage = setting("CONTAINERS_STORAGE_CONF", "storage.conf");
        self.machine.run("env", &[&[containers.as_str(), &storage, "podman"], args].concat())
    }

    /// A container on our network that serves a page with its name.
    fn run(&self, name: &str, more: &[&str]) -> Result<()> {
        let root = self.machine.rootfs(name, &self.busybox)?;
        let (root, cgroup) = (root.to_string_lossy(), format!("/{}", self.machine.cgroup()));
        let first = ["run", "--detach", "--name", name, "--network", "podway", "--cgroup-parent", &cgroup];
        let last = ["--rootfs", &root, "/bin/busybox", "httpd", "-f", "-p", "80", "-h", "/www"];
        self.call(&[&first[..], more, &last[..]].concat()).map(drop)
    }
}

#[test]
fn podman_runs_containers_on_our_network() {
    const TEST: &str = "podman_runs_containers_on_our_network";
    run(TEST, || {
        let Some(podman) = Podman::new(TEST, "podman")? else { return Ok(()) };
        let networks = podman.call(&["network", "ls"])?;
        ensure!(networks.lines().any(|line| line.contains(" podway ")), "{networks}");
        podman.run("one", &[])?;
        podman.run("two", &["--publish", "8081:80"])?;
        // What podman shows is what we leased.
        let shown = podman.call(&["inspect", "two"])?;
        let shown: serde_json::Value = serde_json::from_str(&shown).context("podman inspect")?;
        let network = &shown[0]["NetworkSettings"]["Networks"]["podway"];
        let id = shown[0]["Id"].as_str().context("its id")?;
        let record = podman.machine.record(id)?;
        for (key, address) in [("IPAddress", record.addresses[0]), ("GlobalIPv6Address", record.addresses[1])]
        {
            ensure!(network[key] == address.to_string(), "{key}: {network}");
        }
        // Container to container, and to the published port by the node's address.
        let node = podman.machine.node()?;
        let [v4, v6] = [record.addresses[0], record.addresses[1]];
        for (address, port) in [(v4, 80), (v6, 80), (node.addresses.v4.into(), 8081)] {
            let page = wait_until_ok("the page comes", PATIENCE, || {
                podman.call(&["exec", "one", "/bin/busybox", "sh", "-c", &get(address, port)])
            })?;
            ensure!(page.trim() == "two", "{address} {port}: {page:?}");
        }
        let outcome = probe(node.place.net(), record.addresses[0], Kind::Icmp, true)?;
        ensure!(outcome.is_open(), "{outcome}");
        // A restart is a DEL and an ADD.
        podman.call(&["restart", "--time", "0", "two"])?;
        ensure!(podman.machine.records()?.len() == 2, "{:?}", podman.machine.records()?);
        podman.call(&["rm", "--force", "--time", "0", "one", "two"])?;
        let rules = node.place.run("nft", &["list", "table", "inet", "podway-ports"])?;
        ensure!(!rules.contains("8081"), "{rules}");
        podman.machine.expect_nothing_left()
    });
}
