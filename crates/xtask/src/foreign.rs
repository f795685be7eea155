//! What others made and ours is tried with: CNI plugins, container runtimes and BGP speakers. Debian's packages are
//! unpacked, Go modules built; both stand in the cache, under their versions. What is not to be had is told, and the
//! tests that use it are skipped.

mod judges;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::tools::{Tools, cache_dir};
use crate::{build, complain};

/// Container runtimes of somebody else, in which the plugin is tried, and what they need: each package in a folder of its
/// own, with others beside it.
const RUNTIMES: [(&str, &[&str]); 4] = [
    ("busybox-static", &[]),
    ("containerd", &["runc"]),
    ("containernetworking-plugins", &[]),
    ("podman", &["conmon", "golang-github-containers-common", "runc"]),
];
/// BGP speakers of somebody else. BIRD and GoBGP are among the ordinary tools; these have a folder each, since two of them
/// bring a program `bgpd`.
const SPEAKERS: [(&str, &[&str]); 3] = [("frr", &[]), ("openbgpd", &[]), ("exabgp", &["python3-exabgp"])];
/// Module of the programs that are built of Go modules: its `go.mod` and `go.sum` say of which versions.
const GO_MODULE: &str = "tests/runtimes/go";
/// What is built of them: two of ours, and runtimes as they are.
const GO_PROGRAMS: [&str; 6] = [
    "./cri",
    "./libcni",
    "github.com/containernetworking/cni/cnitool",
    "github.com/containerd/containerd/v2/cmd/containerd",
    "github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2",
    "github.com/containerd/containerd/v2/cmd/ctr",
];

/// CNI plugins of somebody else, with which ours is compared: a Go module, built into the cache.
const CNI_PLUGINS: &str = "github.com/containernetworking/plugins/plugins";
/// Their version: the one whose keys, results and files we keep.
const CNI_PLUGINS_VERSION: &str = "1.9.1";
/// Those that tests use.
const CNI_PLUGINS_USED: [&str; 9] = [
    "ipam/host-local",
    "ipam/static",
    "main/bridge",
    "main/loopback",
    "main/macvlan",
    "main/ptp",
    "meta/bandwidth",
    "meta/portmap",
    "meta/tuning",
];

impl Tools {
    /// Builds the CNI plugins of somebody else, unless they are there. Without Go or network the tests that use them
    /// are skipped.
    pub(crate) fn prepare_cni_plugins(&self) {
        let Ok(folder) = Self::cni_plugins() else { return };
        if CNI_PLUGINS_USED.iter().all(|plugin| folder.join(last_part(plugin)).is_file()) {
            return;
        }
        complain(&format!("==> building containernetworking plugins {CNI_PLUGINS_VERSION}\n"));
        let packages =
            CNI_PLUGINS_USED.map(|plugin| format!("{CNI_PLUGINS}/{plugin}@v{CNI_PLUGINS_VERSION}"));
        run_go(
            Command::new("go")
                .arg("install")
                .args(packages)
                .env("GOBIN", &folder)
                .env("CGO_ENABLED", "0")
                .envs(self.environment()),
        );
    }

    /// Gets BGP speakers of somebody else. Without packages the tests that use them are skipped.
    pub(crate) fn prepare_speakers(&self) {
        self.prepare_packages(&SPEAKERS);
        self.prepare_judges();
    }

    /// Gets packages, each with others beside it; says which are not to be had.
    fn prepare_packages(&self, all: &[(&str, &[&str])]) {
        for (package, beside) in all {
            if let Err(error) = self.unpacked(package, beside) {
                complain(&format!("    {package}: {error:#}\n"));
            }
        }
    }

    /// Gets container runtimes of somebody else: Debian's packages, and what is built of Go modules. What is not to be had
    /// is told, and the tests that use it are skipped.
    pub(crate) fn prepare_runtimes(&self) {
        self.prepare_packages(&RUNTIMES);
        let Ok(folder) = Self::go_programs() else { return };
        if GO_PROGRAMS.iter().all(|package| folder.join(last_part(package)).is_file()) {
            return;
        }
        complain("==> building container runtimes of Go modules (minutes the first time)\n");
        let mut target = folder.into_os_string();
        target.push("/");
        let mut command = Command::new("nice");
        command.args(["-n", "10", "go", "build", "-mod=readonly", "-o"]).arg(target);
        command.args(GO_PROGRAMS).current_dir(build::workspace().join(GO_MODULE));
        run_go(command.env("CGO_ENABLED", "0").envs(self.environment()));
    }

    /// Where they are built to: a folder for each version of the module.
    fn go_programs() -> Result<PathBuf> {
        let module = build::workspace().join(GO_MODULE);
        let sources = ["go.mod", "go.sum", "cri/image.go", "cri/main.go", "libcni/main.go"];
        let mut hash = Fnv::default();
        for file in sources {
            let path = module.join(file);
            hash.write(&std::fs::read(&path).with_context(|| format!("read {}", path.display()))?);
        }
        Ok(cache_dir()?.join(format!("go-programs-{:016x}", hash.finish())))
    }

    /// Where the plugins are built to.
    fn cni_plugins() -> Result<PathBuf> {
        Ok(cache_dir()?.join(format!("cni-plugins-{CNI_PLUGINS_VERSION}")))
    }

    /// How programs that are run find all this.
    pub(crate) fn foreign_environment(&self) -> Vec<(&'static str, OsString)> {
        let mut environment = vec![("PODWAY_PACKAGES", self.apart().into())];
        environment.extend(Self::cni_plugins().ok().map(|dir| ("PODWAY_CNI_PLUGINS", dir.into())));
        environment.extend(Self::judges().ok().map(|dir| ("PODWAY_JUDGES", dir.into())));
        environment.extend(Self::go_programs().ok().map(|dir| ("PODWAY_GO_PROGRAMS", dir.into())));
        environment
    }
}

/// The last part of a path: a Go program's name.
fn last_part(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

/// Runs Go; what it complains of is told.
fn run_go(command: &mut Command) {
    match command.output() {
        Ok(output) if output.status.success() => {}
        Ok(output) => complain(&format!("    {}\n", String::from_utf8_lossy(&output.stderr).trim())),
        Err(error) => complain(&format!("    go: {error}\n")),
    }
}

/// FNV-1a: tells versions apart, guards against nobody.
struct Fnv(u64);

impl Default for Fnv {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Fnv {
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }

    fn finish(&self) -> u64 {
        self.0
    }
}
