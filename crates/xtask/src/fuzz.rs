//! `cargo xtask fuzz`: builds the coverage-guided program and gives each target its time.
//!
//! The instrumentation is LLVM's, asked for by stable flags; libFuzzer's C++ part is compiled with the system's C++
//! compiler. Code with instrumentation has a target folder of its own, so that the tests keep theirs.
//!
//! Not here: the run without coverage that is part of the tests (`tests/fuzz/tests/corpora.rs`).

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Instant;

use anyhow::{Context as _, Result, bail};

use crate::{build, say};

/// Counters on every edge, a table of program counters, and the operands of comparisons. Unlike what we ship this
/// program is linked dynamically: libFuzzer watches the C library's comparisons by standing before them, which ends in
/// a null pointer where everything is linked statically.
const INSTRUMENTATION: [&str; 5] = [
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
];
/// Longest input in bytes, as in `podway_fuzz::MAX_INPUT`.
const MAX_INPUT: usize = 4096;
/// Most bytes of one target's corpus, and most files: all corpora together stay below 1 MiB.
const CORPUS: (u64, usize) = (32 << 10, 120);
/// Seconds after which one input counts as a hang.
const HANG: u32 = 20;

const HELP: &str = "\
Fuzzes the readers of outside bytes and the cores, guided by coverage.

Usage: cargo xtask fuzz [TARGET...] [OPTIONS]

  TARGET            which targets; default: all, one after another
  --seconds N       how long each of them runs (default 60)
  --jobs N          processes per target (default 1)
  --minimise        afterwards, takes what found new code into tests/fuzz/corpus
  --replay FILE     runs one input through the one TARGET, and nothing else
  --list            the targets
";

/// What the command line asks for.
#[derive(Debug, PartialEq, Eq)]
struct Options {
    targets: Vec<String>,
    seconds: u32,
    jobs: u32,
    minimise: bool,
    replay: Option<PathBuf>,
    list: bool,
}

impl Options {
    fn parse(arguments: &[String]) -> Result<Self> {
        let mut options =
            Self { targets: vec![], seconds: 60, jobs: 1, minimise: false, replay: None, list: false };
        let mut rest = arguments.iter();
        while let Some(argument) = rest.next() {
            let mut value = || rest.next().with_context(|| format!("{argument}: a value expected"));
            match argument.as_str() {
                "--seconds" => options.seconds = number(argument, value()?)?,
                "--jobs" => options.jobs = number(argument, value()?)?,
                "--replay" => options.replay = Some(value()?.into()),
                "--minimise" => options.minimise = true,
                "--list" => options.list = true,
                other if other.starts_with('-') => bail!("{other:?} found\n\n{HELP}"),
                target => options.targets.push(target.to_owned()),
            }
        }
        if options.replay.is_some() && options.targets.len() != 1 {
            bail!("--replay: {} targets found, one expected", options.targets.len());
        }
        Ok(options)
    }
}

fn number(option: &str, text: &str) -> Result<u32> {
    let number = text.parse().ok().filter(|number| *number > 0);
    number.with_context(|| format!("{option}: {text:?} found, a number from 1 on expected"))
}

/// Builds, then runs what the arguments ask for. Failure: an input that breaks something was found.
pub(crate) fn run(arguments: &[String]) -> Result<ExitCode> {
    if arguments.iter().any(|argument| argument == "--help" || argument == "-h") {
        say(HELP);
        return Ok(ExitCode::SUCCESS);
    }
    let mut options = Options::parse(arguments)?;
    let known = targets()?;
    if options.list {
        say(&known.iter().map(|target| format!("{target}\n")).collect::<String>());
        return Ok(ExitCode::SUCCESS);
    }
    if let Some(unknown) = options.targets.iter().find(|target| !known.contains(target)) {
        bail!("{unknown:?} is no target, one of these expected: {}", known.join(", "));
    }
    if options.targets.is_empty() {
        options.targets = known;
    }
    let program = program()?;
    if let (Some(input), [target]) = (&options.replay, options.targets.as_slice()) {
        let input = std::path::absolute(input)?;
        let status = libfuzzer(&program, target).arg(input).status().context("run the fuzzer")?;
        return Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE });
    }
    let mut broken = vec![];
    for target in &options.targets {
        let place = Place::of(target)?;
        if !fuzz(&program, target, &place, &options)? {
            broken.push(target.as_str());
        } else if options.minimise {
            minimise(&program, target, &place)?;
        }
    }
    if broken.is_empty() {
        say(&format!("\n{} targets, nothing found\n", options.targets.len()));
        return Ok(ExitCode::SUCCESS);
    }
    say(&format!("\nbroken: {}\n", broken.join(", ")));
    Ok(ExitCode::FAILURE)
}

/// The names of the targets, as they stand in their table.
fn targets() -> Result<Vec<String>> {
    let path = build::workspace().join("tests/fuzz/src/lib.rs");
    let text = std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    Ok(names(&text))
}

fn names(text: &str) -> Vec<String> {
    let entry = |line: &str| {
        let (name, _) = line.trim().strip_prefix("(\"")?.split_once("\", ")?;
        Some(name.to_owned())
    };
    text.lines().filter_map(entry).collect()
}

/// Builds the program, with instrumentation.
fn program() -> Result<PathBuf> {
    say("==> building with instrumentation (minutes the first time)\n");
    let folder = build::target_dir().join("fuzz");
    let status = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .current_dir(build::workspace())
        .env("CARGO_ENCODED_RUSTFLAGS", INSTRUMENTATION.join("\x1f"))
        .args(["build", "--locked", "--profile", build::PROFILE, "--package", "podway-fuzz"])
        .args(["--bin", "podway-fuzz", "--features", "guided", "--target-dir"])
        .arg(&folder)
        .status()
        .context("run cargo build")?;
    if !status.success() {
        bail!("cargo build ended with {status}: a C++ compiler is needed as well (Debian: g++)");
    }
    // Below the folder of the target triple, like this very program below its own.
    let own = build::bin_dir()?;
    let triple = own.parent().and_then(Path::file_name).context("this program's folder has no target")?;
    Ok(folder.join(triple).join(build::PROFILE).join("podway-fuzz"))
}

/// Where a target's files are.
struct Place {
    /// Inputs that stay, in the repository.
    corpus: PathBuf,
    /// Inputs of earlier and of this run.
    work: PathBuf,
    /// Inputs that broke something.
    found: PathBuf,
}

impl Place {
    fn of(target: &str) -> Result<Self> {
        let base = build::target_dir().join("fuzz");
        let place = Self {
            corpus: build::workspace().join("tests/fuzz/corpus").join(target),
            work: base.join("corpus").join(target),
            found: base.join("found").join(target),
        };
        for folder in [&place.corpus, &place.work, &place.found] {
            std::fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
        }
        Ok(place)
    }
}

fn libfuzzer(program: &Path, target: &str) -> Command {
    let mut command = Command::new(program);
    command.env("PODWAY_FUZZ_TARGET", target).arg(format!("-timeout={HANG}"));
    command
}

/// Gives a target its time. Whether nothing was found.
fn fuzz(program: &Path, target: &str, place: &Place, options: &Options) -> Result<bool> {
    say(&format!("==> {target}: {} s\n", options.seconds));
    let log = place.found.join("log");
    let output = std::fs::File::create(&log).with_context(|| format!("create {}", log.display()))?;
    let began = Instant::now();
    let mut command = libfuzzer(program, target);
    command
        .current_dir(&place.found)
        .env("PODWAY_FUZZ_SEEDS", &place.work)
        .arg(format!("-max_total_time={}", options.seconds))
        .arg(format!("-max_len={MAX_INPUT}"))
        .arg(format!("-artifact_prefix={}/", place.found.display()))
        .args(["-print_final_stats=1", "-use_value_profile=1"]);
    if options.jobs > 1 {
        command.arg(format!("-fork={}", options.jobs));
    }
    let status = command
        .args([&place.work, &place.corpus])
        .stdout(output.try_clone()?)
        .stderr(output)
        .status()
        .context("run the fuzzer")?;
    let text = std::fs::read(&log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned())?;
    if status.success() {
        say(&format!("    {}, {:.0} s\n", summary(&text), began.elapsed().as_secs_f64()));
        return Ok(true);
    }
    say(&format!("    {status}; the end of {}\n", log.display()));
    let lines: Vec<&str> = text.lines().collect();
    for line in &lines[lines.len().saturating_sub(60)..] {
        say(&format!("    | {line}\n"));
    }
    let written = "Test unit written to ";
    for line in lines.iter().filter_map(|line| line.split_once(written)) {
        let input = line.1.trim();
        say(&format!(
            "    input:  {input}\n    replay: cargo xtask fuzz {target} --replay {input}\n    \
             keep:   cp {input} tests/fuzz/regressions/{target}/<what it is>\n"
        ));
    }
    Ok(false)
}

/// What libFuzzer says of a run, in few words: inputs tried, edges reached.
fn summary(log: &str) -> String {
    let counted =
        log.lines().filter_map(|line| line.strip_prefix("stat::number_of_executed_units:")).next_back();
    // Several processes together are counted by the head of each line: `#1234: cov: ...`.
    let head = |line: &str| Some(line.strip_prefix('#')?.split_once(": cov: ")?.0.to_owned());
    let tried =
        counted.map(|number| number.trim().to_owned()).or_else(|| log.lines().filter_map(head).next_back());
    let after = |line: &str| Some(line.split_once(" cov: ")?.1.split_whitespace().next()?.to_owned());
    let reached = log.lines().filter_map(after).next_back();
    let unknown = || "?".to_owned();
    let (tried, reached) = (tried.unwrap_or_else(unknown), reached.unwrap_or_else(unknown));
    format!("{tried} inputs, {reached} edges")
}

/// Replaces the corpus by the fewest inputs that reach what all reach, within the limits.
fn minimise(program: &Path, target: &str, place: &Place) -> Result<()> {
    let merged = place.found.join("merged");
    if merged.exists() {
        std::fs::remove_dir_all(&merged)?;
    }
    std::fs::create_dir_all(&merged)?;
    let output = libfuzzer(program, target)
        .current_dir(&place.found)
        .args(["-merge=1", "-set_cover_merge=1", "-use_counters=0"])
        .arg(format!("-max_len={MAX_INPUT}"))
        .args([&merged, &place.corpus, &place.work])
        .output()
        .context("run the fuzzer")?;
    if !output.status.success() {
        bail!("{target}: merging ended with {}: {}", output.status, String::from_utf8_lossy(&output.stderr));
    }
    let mut inputs = vec![];
    for entry in std::fs::read_dir(&merged)? {
        let path = entry?.path();
        inputs.push((std::fs::metadata(&path)?.len(), path));
    }
    // The short ones first: they say most per byte.
    inputs.sort();
    let mut total = 0;
    let kept: Vec<&PathBuf> = inputs
        .iter()
        .take(CORPUS.1)
        .take_while(|(len, _)| {
            total += len;
            total <= CORPUS.0
        })
        .map(|(_, path)| path)
        .collect();
    if kept.is_empty() {
        bail!("{target}: merging left nothing");
    }
    std::fs::remove_dir_all(&place.corpus)?;
    std::fs::create_dir_all(&place.corpus)?;
    for path in &kept {
        let name = path.file_name().context("a file has a name")?;
        std::fs::copy(path, place.corpus.join(name))?;
    }
    say(&format!("    corpus: {} of {} inputs kept\n", kept.len(), inputs.len()));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(arguments: &[&str]) -> Result<Options> {
        Options::parse(&arguments.iter().map(|argument| (*argument).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn options_are_read_and_mistakes_named() {
        let options = parse(&["bgp_open", "--seconds", "5", "--jobs", "2", "--minimise"]).unwrap();
        assert_eq!((options.targets, options.seconds, options.jobs), (vec!["bgp_open".to_owned()], 5, 2));
        assert!(options.minimise && options.replay.is_none() && !options.list);
        for (arguments, part) in [
            (vec!["--seconds"], "--seconds: a value expected"),
            (vec!["--seconds", "x"], "\"x\" found, a number from 1 on"),
            (vec!["--jobs", "0"], "\"0\" found"),
            (vec!["--colour"], "\"--colour\" found"),
            (vec!["--replay", "file"], "0 targets found, one expected"),
        ] {
            let error = parse(&arguments).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn the_names_are_those_of_the_table() {
        let text = "pub const X: &[T] = &[\n    (\"bgp_open\", bgp::open),\n    (\"names\", a::names),\n];\n";
        assert_eq!(names(text), ["bgp_open", "names"]);
        let all = targets().unwrap();
        assert!(all.len() > 20 && all.iter().any(|target| target == "store_values"), "{all:?}");
    }

    #[test]
    fn the_summary_takes_the_last_numbers() {
        let log = "#2 INITED cov: 10 ft: 11\n#9 DONE   cov: 25 ft: 30\nstat::number_of_executed_units: 9\n";
        assert_eq!(summary(log), "9 inputs, 25 edges");
        assert_eq!(summary("#7: cov: 25 ft: 30\n#12: cov: 26 ft: 31\n"), "12 inputs, 26 edges");
        assert_eq!(summary(""), "? inputs, ? edges");
    }
}
