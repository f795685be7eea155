//! `cargo xtask bench cni`: ADD and DEL beside bridge and ptp with host-local, and beside the bare netlink calls.

use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result, bail};

use crate::tools::{self, Need, Tools};
use crate::{build, complain, test};

/// Counts system calls.
const STRACE: Need =
    Need { program: "strace", package: "strace", what_for: "counting system calls", required: false };
/// Debian's package of the plugins that a user would pick instead.
const OTHERS: &str = "containernetworking-plugins";
/// The bare calls.
const BARE: &str = "tests/bench/bare.c";
/// Where `--record` writes.
const PAGE: &str = "tests/bench/cni.md";

/// Sets up, builds and measures; the exit code is the benchmark's.
pub(crate) fn run(options: &[String]) -> Result<ExitCode> {
    if !test::is_root() {
        bail!("root is needed to make namespaces");
    }
    let needs: Vec<Need> = tools::ALL.into_iter().chain([STRACE]).collect();
    let tools = Tools::prepare(&needs)?;
    let programs = build::released(&tools)?;
    let mut command = Command::new(programs.join("podway-bench-cni"));
    command.current_dir(build::workspace()).envs(tools.environment());
    command.arg("--podway").arg(programs.join("podway"));
    let mut notes = vec![format!("commit {}, built as shipped", commit())];
    match tools.unpacked(OTHERS, &[]) {
        Ok(folder) => {
            command.arg("--others").arg(folder.join("usr/lib/cni"));
            notes.push(format!("{OTHERS} {}", version_of(OTHERS)));
        }
        Err(error) => complain(&format!("    {OTHERS}: {error:#}: not compared with\n")),
    }
    match compile(&build::workspace().join(BARE), &programs) {
        Ok((bare, compiler)) => {
            command.arg("--bare").arg(bare);
            notes.push(format!("{BARE} by {compiler}"));
        }
        Err(error) => complain(&format!("    {error:#}: not compared with bare calls, no resident sets\n")),
    }
    command.arg("--note").arg(notes.join("; "));
    for option in options {
        command.arg(option);
        if option == "--record" {
            command.arg(build::workspace().join(PAGE));
        }
    }
    let error = command.exec();
    Err(error).context("run the benchmark")
}

/// Compiles a C program, static; where it is, and the compiler's name and version.
fn compile(source: &Path, folder: &Path) -> Result<(PathBuf, String)> {
    let program = folder.join("podway-bench-bare");
    let output = Command::new("cc")
        .args(["-std=gnu11", "-O2", "-static", "-Wall", "-Werror", "-o"])
        .arg(&program)
        .arg(source)
        .output()
        .context("no C compiler")?;
    if !output.status.success() {
        bail!("cc {}: {}", source.display(), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok((program, first_line(Command::new("cc").arg("--version"))))
}

/// The commit that is measured, and whether it is all.
fn commit() -> String {
    let git =
        |arguments: &[&str]| first_line(Command::new("git").args(arguments).current_dir(build::workspace()));
    let changed =
        if git(&["status", "--porcelain", "--untracked-files=no"]).is_empty() { "" } else { " and changes" };
    format!("{}{changed}", git(&["rev-parse", "--short", "HEAD"]))
}

/// The version of a Debian package that the machine would install.
fn version_of(package: &str) -> String {
    let output = Command::new("apt-cache").args(["show", "--no-all-versions", package]).output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    text.lines().find_map(|line| line.strip_prefix("Version: ")).unwrap_or("of unknown version").to_owned()
}

/// What a program says first; nothing where it is not there.
fn first_line(command: &mut Command) -> String {
    let output = command.output().map(|output| output.stdout).unwrap_or_default();
    String::from_utf8_lossy(&output).lines().next().unwrap_or_default().trim().to_owned()
}
