//! The demo as a test: which options, and what must come of them.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use crate::tally::Tally;
use crate::tools::Tools;
use crate::watch::watched;
use crate::{build, demo, say};

/// Exit code of the demo when something differs from what is expected.
const DIFFERS: i32 = 2;

/// The demo as a newcomer starts it.
pub(crate) fn one(tools: &Tools, tally: &mut Tally) -> Result<()> {
    run(tools, tally, "demo", &[], 0)
}

/// Every backend, both stores, a run after a killed one, and both sabotages.
pub(crate) fn all(tools: &Tools, tally: &mut Tally) -> Result<()> {
    killed_half_way(tools, tally)?;
    run(tools, tally, "demo after one that was killed", &[], 0)?;
    run(tools, tally, "demo host-gw, IPv6 too", &["--backend", "host-gw", "--ipv6"], 0)?;
    run(tools, tally, "demo vxlan, IPv6 too", &["--ipv6"], 0)?;
    run(tools, tally, "demo bgp mesh, IPv6 too", &["--backend", "bgp", "--ipv6"], 0)?;
    run(tools, tally, "demo bgp with a reflector", &["--backend", "bgp", "--reflectors", "1"], 0)?;
    run(tools, tally, "demo on the file store", &["--store", "file"], 0)?;
    run(tools, tally, "demo notices a lost route", &["--sabotage", "route"], DIFFERS)?;
    run(tools, tally, "demo notices a lost nft element", &["--sabotage", "nft"], DIFFERS)
}

fn run(tools: &Tools, tally: &mut Tally, name: &str, options: &[&str], expected: i32) -> Result<()> {
    let mut command = demo::program(tools)?;
    command.args(options);
    let ended = watched(&name.replace([' ', ','], "-"), command, expected, |_| false)?;
    let held = ended.status.code() == Some(expected);
    let words = if held {
        "as expected".to_owned()
    } else {
        format!("{}, exit code {expected} expected", ended.words())
    };
    say(&format!("    {name}: {words} ({:.0} s)\n", ended.took.as_secs_f64()));
    tally.check(name, held);
    Ok(())
}

/// Starts a demo, waits until its cluster is up (its first table), and kills it with -9.
fn killed_half_way(tools: &Tools, tally: &mut Tally) -> Result<()> {
    let name = "demo killed half-way";
    let mut child =
        demo::program(tools)?.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
    let output = child.stdout.take().context("the demo's output")?;
    let mut lines = BufReader::new(output).lines();
    let up = lines.any(|line| line.is_ok_and(|line| line.contains("BLOCK")));
    let (child_id, bin) = (child.id(), build::bin_dir()?);
    let before = daemons_of(child_id, &bin)?;
    child.kill()?;
    child.wait()?;
    // The kernel kills them when the thread that started them ends; they may need a moment to go.
    let deadline = Instant::now() + Duration::from_secs(10);
    while before.iter().any(|pid| Path::new("/proc").join(pid).join("exe").read_link().is_ok())
        && Instant::now() < deadline
    {
        std::thread::sleep(Duration::from_millis(20));
    }
    let left: Vec<&String> =
        before.iter().filter(|pid| Path::new("/proc").join(pid).join("exe").read_link().is_ok()).collect();
    say(&format!("    {name}: {} daemons ran, {} of them are left\n", before.len(), left.len()));
    tally.check(name, up && !before.is_empty() && left.is_empty());
    Ok(())
}

/// Process ids of the daemons that a demo has started.
fn daemons_of(parent: u32, bin: &Path) -> Result<Vec<String>> {
    let mut found = vec![];
    for entry in std::fs::read_dir("/proc")? {
        let process = entry?;
        let status = std::fs::read_to_string(process.path().join("status")).unwrap_or_default();
        let child = status
            .lines()
            .any(|line| line.strip_prefix("PPid:").is_some_and(|id| id.trim() == parent.to_string()));
        if child && process.path().join("exe").read_link().is_ok_and(|exe| exe.starts_with(bin)) {
            found.push(process.file_name().to_string_lossy().into_owned());
        }
    }
    Ok(found)
}
