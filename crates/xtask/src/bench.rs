//! `cargo xtask bench`: figures beside those of others, in one run. Never part of the tests: machines are noisy.

mod bgp;
mod cni;
mod routes;

use std::process::ExitCode;

use anyhow::{Result, bail};

/// Runs a benchmark.
pub(crate) fn run(arguments: &[String]) -> Result<ExitCode> {
    match arguments.split_first() {
        Some((name, options)) if name == "bgp" => bgp::run(options),
        Some((name, options)) if name == "cni" => cni::run(options),
        Some((name, options)) if name == "routes" => routes::run(options),
        Some((name, _)) => bail!("bench {name:?}: one of bgp, cni, routes expected"),
        None => bail!("bench: one of bgp, cni, routes expected"),
    }
}
