//! `cargo xtask test`: layers in order, minutes for each, and a tally that hides nothing.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use crate::tally::Tally;
use crate::tools::{self, Tools};
use crate::{build, demo, say, skips};

/// After this long `--full` starts no further layer: CI ends a run after 90 minutes, and a run that names what
/// is missing is worth more than one that was cut off.
const LAST_START: Duration = Duration::from_secs(80 * 60);

/// Crates that build without the protobuf compiler.
const WITHOUT_PROTOC: [&str; 10] = [
    "podway-model",
    "podway-bgp",
    "podway-nft",
    "podway-policy",
    "podway-ipam",
    "podway-kern",
    "podway-kube",
    "podway-daemon",
    "cni-plugin",
    "xtask",
];

/// How much to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Extent {
    /// Neither root nor packages.
    Quick,
    /// Everything but the further demos.
    Default,
    /// What CI runs.
    Full,
}

/// One layer: its name, and what it does to the tally.
struct Layer {
    name: &'static str,
    run: fn(&Tools, &mut Tally) -> Result<()>,
}

const CRATES: Layer = Layer { name: "crates", run: crates };
const QUICK: Layer = Layer { name: "crates (quick)", run: quick };
const SUITES: Layer = Layer { name: "suites", run: suites };
const DEMO: Layer = Layer { name: "demo", run: one_demo };
const DEMOS: Layer = Layer { name: "demos", run: all_demos };

/// Runs the layers that the options ask for.
pub(crate) fn run(options: &[String]) -> Result<ExitCode> {
    let extent = match options {
        [] => Extent::Default,
        [one] if one == "--quick" => Extent::Quick,
        [one] if one == "--full" => Extent::Full,
        _ => bail!("{:?} found, --quick, --full or nothing expected", options.join(" ")),
    };
    let start = Instant::now();
    let (tools, layers) = match extent {
        // Without root nothing else is needed; the protobuf compiler is used where it can be had.
        Extent::Quick => {
            let wanted = [tools::PROTOC, tools::PROTOC_INCLUDE];
            (Tools::prepare(&wanted.map(|need| tools::Need { required: false, ..need }))?, vec![QUICK])
        }
        Extent::Default => (Tools::prepare(&tools::ALL)?, vec![CRATES, SUITES, DEMO]),
        Extent::Full => (Tools::prepare(&tools::ALL)?, vec![CRATES, SUITES, DEMOS]),
    };
    if extent != Extent::Quick && !nix_is_root() {
        bail!("root is needed to make namespaces; without it: cargo xtask test --quick");
    }
    std::fs::create_dir_all(log_dir())?;
    let mut tally = Tally::default();
    let mut minutes = vec![];
    if extent != Extent::Quick {
        build::programs(&tools)?;
        minutes.push(("set-up and build", start.elapsed()));
    }
    for layer in layers {
        if start.elapsed() > LAST_START {
            say(&format!(
                "==> {}: not started, {} minutes are over\n",
                layer.name,
                LAST_START.as_secs() / 60
            ));
            tally.fail(&format!("layer {} did not run", layer.name));
            continue;
        }
        say(&format!("==> {}\n", layer.name));
        let began = Instant::now();
        if let Err(error) = (layer.run)(&tools, &mut tally) {
            say(&format!("    {error:#}\n"));
            tally.fail(&format!("layer {}: {error:#}", layer.name));
        }
        minutes.push((layer.name, began.elapsed()));
    }
    say("\nminutes per layer\n");
    for (layer, time) in &minutes {
        say(&format!("  {layer:18} {:6.1}\n", time.as_secs_f64() / 60.0));
    }
    if extent == Extent::Full {
        for skip in skips::unknown(&tally.skipped, &build::workspace())? {
            tally.fail(&format!("{skip}: skipped for a reason that tests/skips.toml does not name"));
        }
    }
    for failure in &tally.failures {
        say(&format!("FAILED {failure}\n"));
    }
    for (test, reason) in &tally.skipped {
        say(&format!("SKIPPED {test}: {reason}\n"));
    }
    say(&format!("\n{} passed, {} failed, {} skipped\n", tally.passed(), tally.failed, tally.skipped.len()));
    Ok(if tally.failed == 0 && tally.passed() > 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Whether we are root, read from the kernel's own account of this process.
fn nix_is_root() -> bool {
    std::fs::read_to_string("/proc/self/status")
        .unwrap_or_default()
        .lines()
        .find_map(|line| line.strip_prefix("Uid:"))
        .and_then(|ids| ids.split_whitespace().nth(1).map(|effective| effective == "0"))
        .unwrap_or(false)
}

fn log_dir() -> std::path::PathBuf {
    build::target_dir().join("xtask")
}

fn cargo_test(tools: &Tools) -> Command {
    let mut cargo = build::cargo(tools);
    cargo.args(["test", "--locked", "--profile", build::PROFILE, "--no-fail-fast"]);
    cargo
}

fn crates(tools: &Tools, tally: &mut Tally) -> Result<()> {
    let mut cargo = cargo_test(tools);
    cargo.args(["--workspace", "--exclude", "podway-tests", "--lib", "--bins", "--tests"]);
    harness("crates", cargo, tally)
}

fn suites(tools: &Tools, tally: &mut Tally) -> Result<()> {
    let mut cargo = cargo_test(tools);
    cargo.args(["--package", "podway-tests"]);
    harness("suites", cargo, tally)
}

fn quick(tools: &Tools, tally: &mut Tally) -> Result<()> {
    let mut cargo = cargo_test(tools);
    if [tools::PROTOC, tools::PROTOC_INCLUDE].iter().all(|need| tools.path_of(need.program).is_some()) {
        cargo.args(["--workspace", "--exclude", "podway-tests"]);
    } else {
        for package in WITHOUT_PROTOC {
            cargo.args(["--package", package]);
        }
        tally.skip("podway-store, routed, policy-agent, podwayctl, podway-testkit", "needs protoc to build");
    }
    cargo.args(["--lib", "--bins", "--tests"]);
    harness("quick", cargo, tally)
}

/// Runs a command of Rust's test harness: everything goes to a log, a person sees what matters.
fn harness(name: &str, mut cargo: Command, tally: &mut Tally) -> Result<()> {
    cargo.args(["--", "--show-output"]);
    let failed_before = tally.failed;
    let status = watched(name, cargo, 0, |line| tally.take(line))?;
    if !status.success() && tally.failed == failed_before {
        bail!("cargo test ended with {status}, see {}", log_dir().join(format!("{name}.log")).display());
    }
    Ok(())
}

/// Runs a command; its output goes to `<name>.log`, and the lines that `wanted` picks to the terminal. If it
/// ends otherwise than `expected`, the end of the log follows.
fn watched(
    name: &str,
    mut command: Command,
    expected: i32,
    mut wanted: impl FnMut(&str) -> bool,
) -> Result<std::process::ExitStatus> {
    let path = log_dir().join(format!("{name}.log"));
    let mut log = File::create(&path).with_context(|| format!("create {}", path.display()))?;
    let (reader, writer) = std::io::pipe()?;
    command.stdin(Stdio::null()).stdout(writer.try_clone()?).stderr(writer);
    let mut child = command.spawn().with_context(|| format!("run {command:?}"))?;
    // The writing ends in `command` would keep the pipe open.
    drop(command);
    let mut tail = std::collections::VecDeque::new();
    for line in BufReader::new(reader).split(b'\n') {
        let line = line?;
        let line = String::from_utf8_lossy(&line).into_owned();
        writeln!(log, "{line}")?;
        if wanted(&line) {
            say(&format!("    {line}\n"));
        }
        if tail.len() == 150 {
            tail.pop_front();
        }
        tail.push_back(line);
    }
    let status = child.wait()?;
    if status.code() != Some(expected) {
        say(&format!("    --- the end of {}\n", path.display()));
        for line in tail {
            say(&format!("    | {line}\n"));
        }
    }
    Ok(status)
}

fn one_demo(tools: &Tools, tally: &mut Tally) -> Result<()> {
    demo_run(tools, tally, "demo", &[], 0)
}

/// Exit code of the demo when something differs from what is expected.
const DIFFERS: i32 = 2;

fn all_demos(tools: &Tools, tally: &mut Tally) -> Result<()> {
    killed_half_way(tools, tally)?;
    demo_run(tools, tally, "demo after one that was killed", &[], 0)?;
    demo_run(tools, tally, "demo host-gw, IPv6 too", &["--backend", "host-gw", "--ipv6"], 0)?;
    demo_run(tools, tally, "demo vxlan, IPv6 too", &["--ipv6"], 0)?;
    demo_run(tools, tally, "demo bgp mesh, IPv6 too", &["--backend", "bgp", "--ipv6"], 0)?;
    demo_run(tools, tally, "demo bgp with a reflector", &["--backend", "bgp", "--reflectors", "1"], 0)?;
    demo_run(tools, tally, "demo on the file store", &["--store", "file"], 0)?;
    demo_run(tools, tally, "demo notices a lost route", &["--sabotage", "route"], DIFFERS)?;
    demo_run(tools, tally, "demo notices a lost nft element", &["--sabotage", "nft"], DIFFERS)
}

fn demo_run(tools: &Tools, tally: &mut Tally, name: &str, options: &[&str], expected: i32) -> Result<()> {
    let mut command = demo::program(tools)?;
    command.args(options);
    let began = Instant::now();
    let status = watched(&name.replace([' ', ','], "-"), command, expected, |_| false)?;
    let held = status.code() == Some(expected);
    say(&format!(
        "    {name}: {} ({:.0} s)\n",
        if held { "as expected".to_owned() } else { format!("{status}, exit code {expected} expected") },
        began.elapsed().as_secs_f64()
    ));
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
