//! `cargo xtask test`: layers in order, minutes for each, and a tally that hides nothing.

use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::build::TestProgram;
use crate::tally::Tally;
use crate::tools::{self, Tools};
use crate::watch::watched;
use crate::{build, demos, matrix, say, skips, vm};

/// After this long `--full` starts no further layer: CI ends a run after 90 minutes, and a run that names what
/// is missing is worth more than one that was cut off.
const LAST_START: Duration = Duration::from_secs(80 * 60);

/// Package of the suites that need the built programs.
pub(crate) const SUITES_PACKAGE: &str = "podway-tests";
/// The one of its suites that needs neither root nor programs.
const ARCHITECTURE: &str = "architecture";
/// Those that need container runtimes and BGP speakers of somebody else.
const WITH_OTHERS: [&str; 2] = ["runtimes", "interop"];

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
    /// The layers that are named.
    Named,
}

/// What the layers work with.
struct Run {
    tools: Tools,
    programs: Vec<TestProgram>,
    tally: Tally,
}

/// One layer: its name, and what it does.
#[derive(Clone, Copy)]
struct Layer {
    name: &'static str,
    run: fn(&mut Run) -> Result<()>,
}

const CRATES: Layer = Layer { name: "crates", run: |run| run.programs_of(|p| p.package != SUITES_PACKAGE) };
const QUICK: Layer = Layer {
    name: "crates (quick)",
    run: |run| run.programs_of(|p| p.package != SUITES_PACKAGE || p.name == ARCHITECTURE),
};
const SUITES: Layer = Layer {
    name: "suites",
    run: |run| {
        run.tools.prepare_flannel();
        run.programs_of(|p| p.package == SUITES_PACKAGE && !WITH_OTHERS.contains(&p.name.as_str()))
    },
};
const INTEROP: Layer = Layer {
    name: "interop",
    run: |run| {
        run.tools.prepare_runtimes();
        run.tools.prepare_speakers();
        run.programs_of(|p| p.package == SUITES_PACKAGE && WITH_OTHERS.contains(&p.name.as_str()))
    },
};
const DEMO: Layer = Layer { name: "demo", run: |run| demos::one(&run.tools, &mut run.tally) };
const DEMOS: Layer = Layer { name: "demos", run: |run| demos::all(&run.tools, &mut run.tally) };

const VM: Layer = Layer { name: "vm", run: |run| vm::layer(&run.tools, &run.programs, &mut run.tally) };

/// What CI runs, in order.
const FULL: [Layer; 5] = [CRATES, SUITES, INTEROP, DEMOS, VM];

/// Runs the layers that the options ask for.
pub(crate) fn run(options: &[String]) -> Result<ExitCode> {
    let extent = match options {
        [] => Extent::Default,
        [one] if one == "--quick" => Extent::Quick,
        [one] if one == "--full" => Extent::Full,
        names if names.iter().all(|name| FULL.iter().any(|layer| layer.name == name)) => Extent::Named,
        _ => bail!(
            "{:?} found; --quick, --full, nothing, or layers expected: {}",
            options.join(" "),
            FULL.map(|layer| layer.name).join(", ")
        ),
    };
    if extent != Extent::Quick && !is_root() {
        bail!("root is needed to make namespaces; without it: cargo xtask test --quick");
    }
    let start = Instant::now();
    let mut run = prepare(extent)?;
    let mut minutes = vec![("set-up and build", start.elapsed())];
    let layers = match extent {
        Extent::Quick => vec![QUICK],
        Extent::Default => vec![CRATES, SUITES, DEMO],
        Extent::Full => FULL.to_vec(),
        Extent::Named => FULL.into_iter().filter(|layer| options.iter().any(|o| o == layer.name)).collect(),
    };
    for layer in layers {
        let began = Instant::now();
        if extent == Extent::Full && start.elapsed() > LAST_START {
            let minutes = LAST_START.as_secs() / 60;
            say(&format!("==> {}: not started, {minutes} minutes are over\n", layer.name));
            run.tally.fail(&format!("layer {}: not started", layer.name));
            continue;
        }
        say(&format!("==> {}\n", layer.name));
        if let Err(error) = (layer.run)(&mut run) {
            run.tally.fail(&format!("layer {}: {error:#}", layer.name));
        }
        minutes.push((layer.name, began.elapsed()));
    }
    say("\nminutes per layer\n");
    for (layer, time) in &minutes {
        say(&format!("  {layer:18} {:6.1}\n", time.as_secs_f64() / 60.0));
    }
    if extent == Extent::Full {
        say(&format!("{}\n", matrix::age()));
        for skip in skips::unknown(&run.tally.skipped, &build::workspace())? {
            run.tally.fail(&format!("{skip}: skipped for a reason that tests/skips.toml does not name"));
        }
    }
    Ok(close(&run.tally))
}

/// Prints what failed and what was skipped, and the closing line.
pub(crate) fn close(tally: &Tally) -> ExitCode {
    for failure in &tally.failures {
        say(&format!("FAILED {failure}\n"));
    }
    for (test, reason) in &tally.skipped {
        say(&format!("SKIPPED {test}: {reason}\n"));
    }
    say(&format!("\n{} passed, {} failed, {} skipped\n", tally.passed(), tally.failed, tally.skipped.len()));
    if tally.failed == 0 && tally.passed() > 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Gets what is missing and builds.
fn prepare(extent: Extent) -> Result<Run> {
    let mut tally = Tally::default();
    if extent != Extent::Quick {
        let tools = Tools::prepare(&tools::ALL)?;
        tools.prepare_cni_plugins();
        build::programs(&tools)?;
        let programs = build::tests(&tools, &["--workspace"])?;
        return Ok(Run { tools, programs, tally });
    }
    // Without root nothing else is needed; the protobuf compiler is used where it can be had.
    let wanted = [tools::PROTOC, tools::PROTOC_INCLUDE];
    let tools = Tools::prepare(&wanted.map(|need| tools::Need { required: false, ..need }))?;
    let programs = if wanted.iter().all(|need| tools.path_of(need.program).is_some()) {
        build::tests(&tools, &["--workspace"])?
    } else {
        tally.skip("podway-store, routed, policy-agent, podwayctl, podway-testkit", "needs protoc to build");
        let packages: Vec<&str> = WITHOUT_PROTOC.iter().flat_map(|package| ["--package", *package]).collect();
        build::tests(&tools, &packages)?
    };
    Ok(Run { tools, programs, tally })
}

impl Run {
    /// Runs some of the test programs, one after the other.
    fn programs_of(&mut self, wanted: impl Fn(&TestProgram) -> bool) -> Result<()> {
        for program in self.programs.iter().filter(|program| wanted(program)) {
            let title = program.title();
            say(&format!("    {title}\n"));
            run_program(&title, program.command(&self.tools), &mut self.tally, true)?;
        }
        Ok(())
    }
}

/// Runs a test program and counts what it prints; the lines that a person wants to see are `shown`, or only counted. One
/// that ends badly without a failed test is a failure of its own.
pub(crate) fn run_program(title: &str, command: Command, tally: &mut Tally, shown: bool) -> Result<()> {
    let failed_before = tally.failed;
    let ended = watched(title, command, 0, |line| tally.take(line) && shown)?;
    if !ended.status.success() && tally.failed == failed_before {
        tally.fail(&format!("{title}: {}, see {}", ended.words(), ended.log.display()));
    }
    Ok(())
}

/// Whether we are root, read from the kernel's own account of this process.
pub(crate) fn is_root() -> bool {
    std::fs::read_to_string("/proc/self/status")
        .unwrap_or_default()
        .lines()
        .find_map(|line| line.strip_prefix("Uid:"))
        .and_then(|ids| ids.split_whitespace().nth(1).map(|effective| effective == "0"))
        .unwrap_or(false)
}
