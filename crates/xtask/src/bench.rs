//! `cargo xtask bench`: figures beside those of others, in one run. Never part of the tests: machines are noisy.

mod cni;

use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result, bail};

use crate::machine::Measured;
use crate::tools::{self, Need, Tools};
use crate::{build, test};

/// Runs a benchmark; its exit code is ours.
pub(crate) fn run(arguments: &[String]) -> Result<ExitCode> {
    let (name, options) = match arguments.split_first() {
        Some((name, options)) => (name.as_str(), options),
        None => ("", arguments),
    };
    let error = match name {
        "bgp" => bgp(options)?.exec(),
        "cni" => cni::command(options)?.exec(),
        "routes" => {
            let mut command = prepared("podway-bench-routes", &[])?.1;
            command.args(options).exec()
        }
        _ => bail!("bench {name:?}: one of bgp, cni, routes expected"),
    };
    Err(error).context("run the benchmark")
}

/// Route reflectors beside those of others.
fn bgp(options: &[String]) -> Result<Command> {
    let (tools, mut command) = prepared("podway-bench-bgp", &[])?;
    tools.prepare_speakers();
    command.args(options);
    Ok(command)
}

/// Sets up, builds everything as it is shipped, and gives the benchmark's command.
fn prepared(program: &str, more: &[Need]) -> Result<(Tools, Command)> {
    if !test::is_root() {
        bail!("root is needed to make namespaces");
    }
    let needs: Vec<Need> = tools::ALL.into_iter().chain(more.iter().copied()).collect();
    let tools = Tools::prepare(&needs)?;
    let program = build::released(&tools)?.join(program);
    let mut command = Command::new(program);
    command.current_dir(build::workspace()).envs(tools.environment());
    command.env("PODWAY_MEASURED", format!("{}; built as shipped", Measured::now()?));
    Ok((tools, command))
}

/// Where the programs stand that a benchmark measures: beside it.
fn beside(command: &Command) -> Result<&Path> {
    Path::new(command.get_program()).parent().context("a program lies in a folder")
}
