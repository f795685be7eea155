//! `cargo xtask bench bgp`: route reflectors.

use std::os::unix::process::CommandExt as _;
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result};

use crate::tools::{self, Need, Tools, need};
use crate::{build, complain};

const GOBGP: Need = need("gobgpd", "gobgpd", false, "benchmarks beside another implementation");

/// Sets up, builds and measures; the exit code is the benchmark's.
pub(crate) fn run(options: &[String]) -> Result<ExitCode> {
    let needs: Vec<Need> = tools::ALL.into_iter().chain([GOBGP]).collect();
    let tools = Tools::prepare(&needs)?;
    build::programs(&tools)?;
    let mut command = Command::new(build::bin_dir()?.join("podway-bench-bgp"));
    command.current_dir(build::workspace()).envs(tools.environment()).args(options);
    // Its daemons are not on PATH: OpenBGPD has one of the same name.
    match tools.unpacked("frr", &[]) {
        Ok(folder) => drop(command.env("PODWAY_FRR", folder.join("usr/lib/frr"))),
        Err(error) => complain(&format!("    frr: {error:#}\n")),
    }
    let error = command.exec();
    Err(error).context("run the benchmark")
}
