//! The command line.

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use clap::Parser;
use podway_testkit::lab::Programs;

/// Measures CNI plugins side by side: `cargo xtask bench cni` calls it with everything that it needs.
#[derive(Debug, Parser)]
#[command(name = "podway-bench-cni", max_term_width = 100)]
pub(crate) struct Options {
    /// Our plugin, as operators run it
    #[arg(long)]
    pub(crate) podway: PathBuf,

    /// Folder with bridge, ptp and host-local
    #[arg(long)]
    pub(crate) others: Option<PathBuf>,

    /// The program that makes the bare netlink calls; without it nothing is compared with it, and nobody's resident set
    /// is measured
    #[arg(long)]
    pub(crate) bare: Option<PathBuf>,

    /// Three rounds of fewer calls: under eight minutes
    #[arg(long)]
    pub(crate) quick: bool,

    /// Five rounds instead of three
    #[arg(long, conflicts_with = "quick")]
    pub(crate) full: bool,

    /// Also write the figures as JSON to this file
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,

    /// Also write the tables as a page to this file
    #[arg(long, value_name = "FILE")]
    pub(crate) record: Option<PathBuf>,

    /// What else the reader must know: versions, profile
    #[arg(long, default_value = "")]
    pub(crate) note: String,
}

impl Options {
    pub(crate) fn rounds(&self) -> usize {
        if self.full { 5 } else { 3 }
    }

    /// A folder for configurations and traces.
    pub(crate) fn files(&self) -> Result<PathBuf> {
        let files = Programs::find()?.lab_dir().join("cni-bench-files");
        std::fs::create_dir_all(&files).with_context(|| format!("create {}", files.display()))?;
        Ok(files)
    }
}
