//! Calls cargo. One profile and one target folder for tests, demo and everything else, so that nothing is
//! compiled twice.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::say;
use crate::tools::Tools;

/// Profile of everything that is built here.
pub(crate) const PROFILE: &str = "ci";

/// Root of the workspace.
pub(crate) fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
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
