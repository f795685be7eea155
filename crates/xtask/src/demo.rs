//! `cargo xtask demo`: set-up, build, and then the lab's own program with the given options.

use std::os::unix::process::CommandExt as _;
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result, bail};

use crate::tools::{self, Tools};
use crate::{build, say};

/// Sets up, builds and runs the demo; its exit code is ours.
pub(crate) fn run(options: &[String]) -> Result<ExitCode> {
    let tools = Tools::prepare(&tools::ALL)?;
    build::programs(&tools)?;
    // The demo takes this process over: whoever kills it, kills the lab.
    let error = program(&tools)?.args(with_store(&tools, options)).exec();
    Err(error).context("run the demo")
}

/// The demo program.
pub(crate) fn program(tools: &Tools) -> Result<Command> {
    let path = build::bin_dir()?.join("podway-lab");
    if !path.is_file() {
        bail!("{} is missing: the build should have made it", path.display());
    }
    let mut command = Command::new(path);
    command.current_dir(build::workspace()).envs(tools.environment());
    Ok(command)
}

/// The options, with the file store where there is no etcd and the caller did not choose.
fn with_store(tools: &Tools, options: &[String]) -> Vec<String> {
    let mut options = options.to_vec();
    let chosen =
        options.iter().any(|option| option.starts_with("--store") || option == "--help" || option == "-h");
    if !chosen && tools.path_of("etcd").is_none() {
        say("==> no etcd: the cluster state is kept in a folder\n");
        options.extend(["--store".to_owned(), "file".to_owned()]);
    }
    options
}
