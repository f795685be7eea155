//! Calls cargo. One profile and one target folder for tests, demo and everything else, so that nothing is
//! compiled twice.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::say;
use crate::tools::Tools;

/// Profile of everything that is built here.
pub(crate) const PROFILE: &str = "ci";

/// Root of the workspace: of the one in which `cargo xtask` was typed. Checkouts that share a target folder may share
/// this program as well.
pub(crate) fn workspace() -> PathBuf {
    let own =
        std::env::var_os("CARGO_MANIFEST_DIR").map(PathBuf::from).filter(|dir| dir.ends_with("crates/xtask"));
    own.as_deref()
        .unwrap_or(Path::new(env!("CARGO_MANIFEST_DIR")))
        .ancestors()
        .nth(2)
        .map_or_else(|| PathBuf::from("."), Path::to_path_buf)
}

/// Cargo's target folder.
pub(crate) fn target_dir() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR")
        .filter(|dir| !dir.is_empty())
        .map_or_else(|| workspace().join("target"), |dir| workspace().join(dir))
}

/// Folder of the built programs. This program was built with the same target and profile and stands there.
pub(crate) fn bin_dir() -> Result<PathBuf> {
    let own = std::env::current_exe().context("find this program")?;
    Ok(own.parent().context("this program stands in no folder")?.to_path_buf())
}

/// Cargo, in the workspace, with the tools' environment.
pub(crate) fn cargo(tools: &Tools) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(workspace()).envs(tools.environment());
    command
}

/// Builds every program of the workspace.
pub(crate) fn programs(tools: &Tools) -> Result<()> {
    say("==> building (minutes the first time)\n");
    let status = cargo(tools)
        .args(["build", "--locked", "--profile", PROFILE, "--workspace", "--bins"])
        .status()
        .context("run cargo build")?;
    if !status.success() {
        bail!("cargo build ended with {status}");
    }
    Ok(())
}

/// Builds every program of the workspace as it is shipped, without the checks of [`PROFILE`], and says where they
/// stand. Only what is measured is built twice.
pub(crate) fn released(tools: &Tools) -> Result<PathBuf> {
    say("==> building as shipped (minutes the first time)\n");
    let status = cargo(tools)
        .args(["build", "--locked", "--release", "--workspace", "--bins"])
        .status()
        .context("run cargo build")?;
    if !status.success() {
        bail!("cargo build ended with {status}");
    }
    // <target>/<triple>/<profile>
    let own = bin_dir()?;
    Ok(own.parent().context("programs stand below a triple")?.join("release"))
}

/// A test program that was built.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TestProgram {
    /// Package it belongs to.
    pub(crate) package: String,
    /// Name of its target.
    pub(crate) name: String,
    /// The program.
    pub(crate) path: PathBuf,
    /// Folder of the package, in which cargo would run it.
    pub(crate) folder: PathBuf,
}

impl TestProgram {
    /// Name for people and log files.
    pub(crate) fn title(&self) -> String {
        if self.package == self.name { self.name.clone() } else { format!("{}-{}", self.package, self.name) }
    }

    /// The program as cargo runs it. Tests that pass show their output too, for the lines that say what was skipped.
    pub(crate) fn command(&self, tools: &Tools) -> Command {
        let mut command = Command::new(&self.path);
        command.arg("--show-output").current_dir(&self.folder).envs(tools.environment());
        command.env("CARGO_MANIFEST_DIR", &self.folder).env("CARGO_PKG_NAME", &self.package);
        command
    }
}

/// Builds the tests of the given packages (`--workspace`, or several `--package` …), once for all layers: with
/// other packages cargo would choose other features, and compile most things again.
pub(crate) fn tests(tools: &Tools, packages: &[&str]) -> Result<Vec<TestProgram>> {
    say("==> building the tests\n");
    let mut child = cargo(tools)
        .args(["test", "--locked", "--profile", PROFILE, "--no-run"])
        .args(["--lib", "--bins", "--tests", "--message-format", "json-render-diagnostics"])
        .args(packages)
        .stdout(Stdio::piped())
        .spawn()
        .context("run cargo test --no-run")?;
    let output = child.stdout.take().context("cargo's output")?;
    let mut programs = vec![];
    for line in BufReader::new(output).lines() {
        programs.extend(test_program(&line.context("read cargo's output")?));
    }
    let status = child.wait().context("wait for cargo")?;
    if !status.success() {
        bail!("cargo test --no-run ended with {status}");
    }
    if programs.is_empty() {
        bail!("cargo test --no-run built no test program");
    }
    programs.sort_by_key(TestProgram::title);
    Ok(programs)
}

/// Reads one of cargo's messages; none if it is not about a test program.
fn test_program(line: &str) -> Option<TestProgram> {
    let message: Value = serde_json::from_str(line).ok()?;
    if message["reason"] != "compiler-artifact" || message["profile"]["test"] != true {
        return None;
    }
    let folder = Path::new(message["manifest_path"].as_str()?).parent()?.to_path_buf();
    // `path+file:///…/crates/bgp#podway-bgp@0.1.0`, or `…/routed#0.1.0` where folder and package have one name.
    let (place, id) = message["package_id"].as_str()?.rsplit_once('#')?;
    let package = match id.split_once('@') {
        Some((package, _)) => package,
        None => place.rsplit('/').next()?,
    };
    Some(TestProgram {
        package: package.to_owned(),
        name: message["target"]["name"].as_str()?.to_owned(),
        path: PathBuf::from(message["executable"].as_str()?),
        folder,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_programs_are_told_from_other_artifacts() {
        let message = |id: &str, test: bool, executable: &str| {
            format!(
                r#"{{"reason":"compiler-artifact","package_id":"{id}","manifest_path":"/w/crates/bgp/Cargo.toml",
                    "target":{{"name":"codec"}},"profile":{{"test":{test}}},"executable":{executable}}}"#
            )
        };
        let found =
            test_program(&message("path+file:///w/crates/bgp#podway-bgp@0.1.0", true, "\"/t/codec\""))
                .unwrap();
        assert_eq!((found.package.as_str(), found.name.as_str()), ("podway-bgp", "codec"));
        assert_eq!((found.path, found.folder), ("/t/codec".into(), "/w/crates/bgp".into()));
        let same = test_program(&message("path+file:///w/routed#0.1.0", true, "\"/t/x\"")).unwrap();
        assert_eq!(same.package, "routed");
        assert_eq!(test_program(&message("path+file:///w/routed#0.1.0", false, "\"/t/x\"")), None);
        assert_eq!(test_program(&message("path+file:///w/routed#0.1.0", true, "null")), None);
        assert_eq!(test_program("{\"reason\":\"build-finished\"}"), None);
        assert_eq!(test_program("text of a build script"), None);
    }
}
