//! `cargo xtask bench routes`: routes into the kernel, and a cluster's start.

use std::os::unix::process::CommandExt as _;
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result};

use crate::build;
use crate::tools::{self, Tools};

/// Sets up, builds and measures; the exit code is the benchmark's.
pub(crate) fn run(options: &[String]) -> Result<ExitCode> {
    let tools = Tools::prepare(&tools::ALL)?;
    let programs = build::released(&tools)?;
    let mut command = Command::new(programs.join("podway-bench-routes"));
    command.current_dir(build::workspace()).envs(tools.environment()).args(options);
    let error = command.exec();
    Err(error).context("run the benchmark")
}
