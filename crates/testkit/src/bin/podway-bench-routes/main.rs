//! Routes: into the kernel beside `ip -batch`, and from a real etcd with thousands of nodes through a real `routed` into
//! the kernel. Run by `cargo xtask bench routes`; machines are noisy, so nothing here is a test.
//!
//! | module | what |
//! |---|---|
//! | [`kernel`] | the same routes by our batches and by `ip -batch`, each in a fresh namespace |
//! | [`cluster`] | a lab whose etcd holds 5,000 nodes: a start of `routed`, and one node's change |
//! | [`report`] | medians, ratios, budgets |

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "its output is its purpose")]

mod cluster;
mod kernel;
mod report;

use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;

use report::{Budget, Report};

/// Routes into the kernel, beside `ip -batch`; a cluster's start from a real etcd. Needs root.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask bench routes")]
struct Options {
    /// Runs per row; the median counts.
    #[arg(long, default_value_t = 3)]
    runs: usize,
    /// Nodes in etcd.
    #[arg(long, default_value_t = 5000)]
    nodes: usize,
    /// Write the tables to this file too.
    #[arg(long)]
    write: Option<std::path::PathBuf>,
}

fn main() -> Result<ExitCode> {
    let options = Options::parse();
    podway_testkit::lab::check_tools()?;
    let mut report = Report::new(options.runs)?;
    for (title, routes, gateways, budget) in [
        ("100,000 routes over one gateway", 100_000, 1, Budget::Peer(1.0)),
        ("40,000 routes over 5,000 gateways", 40_000, 5_000, Budget::Seconds(1.0)),
    ] {
        report.row(title, budget, kernel::measure(routes, gateways, options.runs)?);
    }
    let cluster = cluster::measure(options.nodes, options.runs)?;
    for (title, budget, values) in cluster {
        report.row(&title, budget, values);
    }
    let text = report.text();
    println!("{text}");
    if let Some(path) = &options.write {
        std::fs::write(path, &text)?;
    }
    Ok(if report.is_within_budget() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
