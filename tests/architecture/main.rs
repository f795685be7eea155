//! What ARCHITECTURE.md and DESIGN say of the workspace, read from `cargo metadata` and the sources.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use cargo_metadata::{DependencyKind, Metadata, MetadataCommand, Package};

mod pains;

/// Kinds of crates, the lowest first. Dependencies point to the same or a lower kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    /// The shared vocabulary.
    Model,
    /// No clock, no environment, no file, no socket.
    Pure,
    /// Kernel, store, process.
    Io,
    /// What operators install.
    Binary,
    /// The lab, the tests, xtask.
    Dev,
}

const KINDS: [(&str, Kind); 17] = [
    ("podway-model", Kind::Model),
    ("podway-bgp", Kind::Pure),
    ("podway-policy", Kind::Pure),
    ("podway-nft", Kind::Pure),
    ("podway-ipam", Kind::Io),
    ("podway-kern", Kind::Io),
    ("podway-store", Kind::Io),
    ("podway-kube", Kind::Io),
    ("podway-daemon", Kind::Io),
    ("cni-plugin", Kind::Binary),
    ("routed", Kind::Binary),
    ("policy-agent", Kind::Binary),
    ("podwayctl", Kind::Binary),
    ("podway-testkit", Kind::Dev),
    ("podway-tests", Kind::Dev),
    ("podway-fuzz", Kind::Dev),
    ("xtask", Kind::Dev),
];

/// Crates whose files must pass the checks of a pure one: the pure ones, and the core of `ipam`.
const WITH_BANS: [&str; 5] = ["podway-model", "podway-bgp", "podway-policy", "podway-nft", "podway-ipam"];

/// What lets a crate reach the world.
const WORLDLY: [&str; 11] = [
    "tokio",
    "nix",
    "libc",
    "rustix",
    "socket2",
    "netlink-sys",
    "rtnetlink",
    "etcd-client",
    "axum",
    "inotify",
    "tempfile",
];

/// The one crate that links a binary's library: the readers of the CNI plugin are reached by bytes from outside too.
const LINKS_A_BINARY: (&str, &str) = ("podway-fuzz", "cni-plugin");

/// No file is longer without a reason in its first lines.
const LONGEST_FILE: usize = 800;

fn metadata() -> Metadata {
    MetadataCommand::new()
        .manifest_path(root().join("Cargo.toml"))
        .other_options(["--locked".to_owned()])
        .exec()
        .expect("cargo metadata")
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ lies in the workspace").to_owned()
}

fn kinds() -> BTreeMap<&'static str, Kind> {
    KINDS.into_iter().collect()
}

/// What a package needs when it is built for use (not for its own tests).
fn dependencies(package: &Package) -> impl Iterator<Item = &str> {
    package.dependencies.iter().filter(|d| d.kind != DependencyKind::Development).map(|d| d.name.as_str())
}

#[test]
fn every_crate_has_its_place() {
    let metadata = metadata();
    let mut found: Vec<&str> = metadata.workspace_packages().iter().map(|p| p.name.as_str()).collect();
    let mut known: Vec<&str> = KINDS.iter().map(|(name, _)| *name).collect();
    found.sort_unstable();
    known.sort_unstable();
    assert_eq!(found, known, "a crate that is new or gone: give it its place in KINDS");
}

#[test]
fn dependencies_point_downwards() {
    let (metadata, kinds) = (metadata(), kinds());
    let mut wrong = vec![];
    for package in metadata.workspace_packages() {
        let own = kinds[package.name.as_str()];
        for dependency in dependencies(package) {
            let Some(&other) = kinds.get(dependency) else { continue };
            // Binaries never depend on each other; dev crates run binaries and never link them.
            let linked = other == Kind::Binary && (package.name.as_str(), dependency) != LINKS_A_BINARY;
            if other > own || linked {
                wrong.push(format!("{} ({own:?}) depends on {dependency} ({other:?})", package.name));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn pure_crates_cannot_reach_the_world() {
    let (metadata, kinds) = (metadata(), kinds());
    let mut wrong = vec![];
    for package in metadata.workspace_packages() {
        if kinds[package.name.as_str()] > Kind::Pure {
            continue;
        }
        for dependency in dependencies(package).filter(|d| WORLDLY.contains(d)) {
            wrong.push(format!("{} depends on {dependency}", package.name));
        }
    }
    for name in WITH_BANS {
        let package = metadata.workspace_packages().into_iter().find(|p| p.name.as_str() == name);
        let manifest = &package.expect("a known crate").manifest_path;
        if !manifest.with_file_name("clippy.toml").exists() {
            wrong.push(format!("{name} has no clippy.toml that bans clocks and the environment"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn xtask_links_no_crate_of_the_workspace() {
    let (metadata, kinds) = (metadata(), kinds());
    let xtask = metadata.workspace_packages().into_iter().find(|p| p.name.as_str() == "xtask");
    let linked: Vec<&str> = xtask
        .expect("xtask is a crate")
        .dependencies
        .iter()
        .map(|d| d.name.as_str())
        .filter(|name| kinds.contains_key(name))
        .collect();
    assert!(linked.is_empty(), "{linked:?}: xtask gets the tools that building them needs");
}

#[test]
fn every_crate_takes_the_workspace_lints() {
    for package in metadata().workspace_packages() {
        let manifest = std::fs::read_to_string(&package.manifest_path).unwrap();
        assert!(manifest.contains("[lints]\nworkspace = true"), "{}", package.manifest_path);
    }
}

/// Every Rust file of the workspace, with its path below the root.
fn sources() -> Vec<(String, String)> {
    fn collect(dir: &Path, below: &str, all: &mut Vec<(String, String)>) -> std::io::Result<()> {
        for entry in std::fs::read_dir(dir)? {
            let entry = entry?;
            let (path, name) = (entry.path(), entry.file_name().to_string_lossy().into_owned());
            if path.is_dir() && !name.starts_with('.') && !name.starts_with("target") {
                collect(&path, &format!("{below}{name}/"), all)?;
            } else if name.ends_with(".rs") {
                all.push((format!("{below}{name}"), std::fs::read_to_string(&path)?));
            }
        }
        Ok(())
    }
    let mut all = vec![];
    collect(&root(), "", &mut all).expect("the sources are readable");
    assert!(all.len() > KINDS.len(), "the sources were found");
    all
}

#[test]
fn every_file_says_what_it_is_for() {
    let silent: Vec<_> =
        sources().into_iter().filter(|(_, text)| !text.starts_with("//!")).map(|(path, _)| path).collect();
    assert!(silent.is_empty(), "no `//!` on the first line: {silent:?}");
}

#[test]
fn no_file_is_a_giant() {
    let giants: Vec<_> = sources()
        .into_iter()
        .map(|(path, text)| (path, text.lines().count()))
        .filter(|(_, lines)| *lines > LONGEST_FILE)
        .collect();
    assert!(giants.is_empty(), "over {LONGEST_FILE} lines: {giants:?}");
}

#[test]
fn unsafe_stands_in_kern_only_and_says_why() {
    for (path, text) in sources() {
        // Split so that this file does not find itself.
        let keyword = concat!("uns", "afe {");
        let lines: Vec<&str> = text.lines().collect();
        for (number, _) in lines.iter().enumerate().filter(|(_, line)| line.contains(keyword)) {
            assert!(path.starts_with("crates/kern/"), "{path}:{}", number + 1);
            let above = &lines[number.saturating_sub(6)..number];
            assert!(
                above.iter().any(|line| line.contains("SAFETY:")),
                "{path}:{}: no SAFETY comment above",
                number + 1
            );
        }
    }
}
