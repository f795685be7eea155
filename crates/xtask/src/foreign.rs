//! What others made and ours is tried with: CNI plugins, container runtimes and BGP speakers. Debian's packages are
//! unpacked, Go modules built; both stand in the cache, under their versions. What is not to be had is told, and the
//! tests that use it are skipped.

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
/// Programs that are built of Go modules: the module's `go.mod` and `go.sum` say of which versions.
struct GoModule {
    /// Its folder.
    folder: &'static str,
    /// Name of the cache's folders, one for each version.
    cache: &'static str,
    /// What a version is.
    sources: &'static [&'static str],
    /// What is built.
    programs: &'static [&'static str],
    /// What that is, for people.
    title: &'static str,
}

/// Container runtimes: two of ours, and others as they are.
const GO_RUNTIMES: GoModule = GoModule {
    folder: "tests/runtimes/go",
    cache: "go-programs",
    sources: &["go.mod", "go.sum", "cri/image.go", "cri/main.go", "libcni/main.go"],
    programs: &[
        "./cri",
        "./libcni",
        "github.com/containernetworking/cni/cnitool",
        "github.com/containerd/containerd/v2/cmd/containerd",
        "github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2",
        "github.com/containerd/containerd/v2/cmd/ctr",
    ],
    title: "container runtimes",
};
/// Flannel's daemon, of flannel's own packages.
const GO_FLANNEL: GoModule = GoModule {
    folder: "tests/namespaces/go",
    cache: "flannel",
    sources: &["go.mod", "go.sum", "flannel/main.go"],
    programs: &["./flannel"],
    title: "flannel",
};

/// Decoders of somebody else, that judge what ours says.
const GO_JUDGES: GoModule = GoModule {
    folder: "tests/interop/go",
    cache: "judges",
    sources: &["go.mod", "go.sum", "bmpd/main.go"],
    programs: &["./bmpd"],
    title: "GoBGP's BMP decoder",
};

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
        self.prepare_go(&GO_JUDGES);
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
        self.prepare_go(&GO_RUNTIMES);
    }

    /// Builds flannel. Without Go or network the tests that use it are skipped.
    pub(crate) fn prepare_flannel(&self) {
        self.prepare_go(&GO_FLANNEL);
    }

    /// Builds the programs of a Go module, unless they are there.
    fn prepare_go(&self, module: &GoModule) {
        let Ok(folder) = module.built_to() else { return };
        if module.programs.iter().all(|package| folder.join(last_part(package)).is_file()) {
            return;
        }
        complain(&format!("==> building {} of Go modules (minutes the first time)\n", module.title));
        let mut target = folder.into_os_string();
        target.push("/");
        let mut command = Command::new("nice");
        command.args(["-n", "10", "go", "build", "-mod=readonly", "-o"]).arg(target);
        command.args(module.programs).current_dir(build::workspace().join(module.folder));
        run_go(command.env("CGO_ENABLED", "0").envs(self.environment()));
    }

    /// Where the plugins are built to.
    fn cni_plugins() -> Result<PathBuf> {
        Ok(cache_dir()?.join(format!("cni-plugins-{CNI_PLUGINS_VERSION}")))
    }

    /// How programs that are run find all this.
    pub(crate) fn foreign_environment(&self) -> Vec<(&'static str, OsString)> {
        let mut environment = vec![("PODWAY_PACKAGES", self.apart().into())];
        environment.extend(Self::cni_plugins().ok().map(|dir| ("PODWAY_CNI_PLUGINS", dir.into())));
        environment.extend(GO_JUDGES.built_to().ok().map(|dir| ("PODWAY_JUDGES", dir.into())));
        environment.extend(GO_RUNTIMES.built_to().ok().map(|dir| ("PODWAY_GO_PROGRAMS", dir.into())));
        environment.extend(GO_FLANNEL.built_to().ok().map(|dir| ("PODWAY_FLANNEL", dir.into())));
        environment
    }
}

impl GoModule {
    /// Where its programs are built to: a folder for each version of the module.
    fn built_to(&self) -> Result<PathBuf> {
        let module = build::workspace().join(self.folder);
        let mut hash = Fnv::default();
        for file in self.sources {
            let path = module.join(file);
            hash.write(&std::fs::read(&path).with_context(|| format!("read {}", path.display()))?);
        }
        Ok(cache_dir()?.join(format!("{}-{:016x}", self.cache, hash.finish())))
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
