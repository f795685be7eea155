//! What stands above figures: when they were measured, of which commit, on which machine.

use std::fmt;
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::build;

/// When, what and where.
#[derive(Debug)]
pub(crate) struct Measured {
    date: String,
    commit: String,
    machine: String,
}

impl Measured {
    /// Now, the checked-out commit, this machine.
    pub(crate) fn now() -> Result<Self> {
        let changed = !output("git", &["status", "--porcelain", "--untracked-files=no"])?.is_empty();
        let commit = output("git", &["rev-parse", "--short=12", "HEAD"])?;
        let read = |path: &str| std::fs::read_to_string(path).with_context(|| format!("read {path}"));
        let kernel = read("/proc/sys/kernel/osrelease")?;
        // `6.18.44-fc-v657`: what the vendor added says nothing to others.
        let kernel = kernel.trim().split('-').next().unwrap_or_default().to_owned();
        let cores = std::thread::available_parallelism().map_or(0, usize::from);
        let kib: u64 = read("/proc/meminfo")?
            .lines()
            .find_map(|line| line.strip_prefix("MemTotal:")?.trim().strip_suffix("kB")?.trim().parse().ok())
            .unwrap_or(0);
        Ok(Self {
            date: output("date", &["-u", "+%F"])?,
            commit: format!("{commit}{}", if changed { " with uncommitted changes" } else { "" }),
            machine: format!("Linux {kernel}, {cores} cores, {} GiB", (kib + (1 << 19)) >> 20),
        })
    }

    /// A line for each.
    pub(crate) fn lines(&self) -> String {
        format!("date: {}\ncommit: {}\nmachine: {}\n", self.date, self.commit, self.machine)
    }
}

impl fmt::Display for Measured {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, commit {}; {}", self.date, self.commit, self.machine)
    }
}

pub(crate) fn output(program: &str, arguments: &[&str]) -> Result<String> {
    let output = Command::new(program)
        .args(arguments)
        .current_dir(build::workspace())
        .output()
        .with_context(|| format!("run {program}"))?;
    if !output.status.success() {
        bail!("{program} {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
