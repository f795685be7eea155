//! `cargo xtask matrix`: every combination, long runs, larger clusters: what takes hours and so has no place in the
//! gate. Its table is committed, with date, commit and machine; `cargo xtask test --full` says how old it is.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::build::{self, TestProgram};
use crate::machine::{Measured, output};
use crate::tally::Tally;
use crate::tools::{self, Tools};
use crate::watch::watched;
use crate::{demo, say, test};

/// Times that the suites run, one after the other: what fails once in ten is found here.
const ROUNDS: usize = 10;
/// Seeds of each simulation and property where [`SEEDS_VARIABLE`] does not say otherwise; the gate runs as many as it
/// has minutes for.
const SEEDS: &str = "2000";
/// Variable that the simulations read, and this program too.
const SEEDS_VARIABLE: &str = "PODWAY_SEEDS";
/// Test programs that count seeds: package, target, filter.
const SEEDED: [(&str, &str, &str); 4] = [
    ("podway-bgp", "simulation", ""),
    ("podway-policy", "properties", ""),
    ("podway-nft", "podway_nft", "seed"),
    ("routed", "routed", "simulation"),
];

/// One row of the table.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Row {
    group: &'static str,
    scenario: String,
    held: bool,
    seconds: u64,
    figures: String,
}

/// Runs the groups that are named, or all of them. The table is written anew behind each, with those that ran.
pub(crate) fn run(arguments: &[String]) -> Result<ExitCode> {
    const GROUPS: [&str; 4] = ["demos", "bgp", "suites", "seeds"];
    if let Some(unknown) = arguments.iter().find(|name| !GROUPS.contains(&name.as_str())) {
        bail!("{unknown:?} found, nothing or some of {} expected", GROUPS.join(", "));
    }
    if !test::is_root() {
        bail!("root is needed to make namespaces");
    }
    let wanted = |group: &str| arguments.is_empty() || arguments.iter().any(|name| name == group);
    let tools = Tools::prepare(&tools::ALL)?;
    tools.prepare_speakers();
    build::programs(&tools)?;
    let programs = build::tests(&tools, &["--workspace"])?;
    let head = Measured::now()?.lines();
    let mut rows = vec![];
    for group in GROUPS.into_iter().filter(|group| wanted(group)) {
        match group {
            "demos" => demos(&tools, &mut rows)?,
            "bgp" => bgp(&tools, &programs, &mut rows)?,
            "suites" => suites(&tools, &programs, &mut rows)?,
            _ => seeds(&tools, &programs, &mut rows)?,
        }
        let path = table_path();
        std::fs::write(&path, table(&rows, &head)).with_context(|| format!("write {}", path.display()))?;
        say(&format!("    {} written\n", path.display()));
    }
    let failed = rows.iter().filter(|row| !row.held).count();
    say(&format!("\n{} passed, {failed} failed\n", rows.len() - failed));
    Ok(if failed == 0 && !rows.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The whole demo with every backend, topology, family and store, and with more nodes and pods.
fn demos(tools: &Tools, rows: &mut Vec<Row>) -> Result<()> {
    say("==> demos\n");
    let backends: [&[&str]; 5] = [
        &["--backend", "host-gw"],
        &["--backend", "vxlan"],
        &["--backend", "bgp"],
        &["--backend", "bgp", "--reflectors", "1"],
        &["--backend", "bgp", "--reflectors", "2"],
    ];
    let variants: [&[&str]; 3] = [&[], &["--store", "file"], &["--nodes", "8", "--pods-per-node", "3"]];
    for backend in backends {
        for family in [&[] as &[&str], &["--ipv6"]] {
            for more in variants {
                rows.push(one_demo(tools, &[backend, family, more].concat())?);
            }
        }
    }
    Ok(())
}

fn one_demo(tools: &Tools, options: &[&str]) -> Result<Row> {
    let mut command = demo::program(tools)?;
    command.args(options).arg("--json");
    let scenario = options.join(" ");
    // The document comes last and begins at the start of a line; progress lines never do so with a brace.
    let (mut document, mut inside) = (String::new(), false);
    let ended = watched("matrix-demo", command, 0, |line| {
        inside |= line == "{";
        if inside {
            document.push_str(line);
            document.push('\n');
        }
        false
    })?;
    let report: Value = serde_json::from_str(&document).unwrap_or_default();
    let held = ended.status.code() == Some(0) && report["asExpected"] == true;
    // The log is overwritten by the next one.
    for difference in report["differences"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        say(&format!("    differs: {difference}\n"));
    }
    Ok(told(Row { group: "demo", scenario, held, seconds: seconds(ended.took), figures: figures(&report) }))
}

/// What an operator asks first of a demo's report: packets lost, time to enforcement, latency of ADD.
fn figures(report: &Value) -> String {
    let mut parts = vec![];
    let lost: Vec<u64> = strings(report, "LOST").iter().filter_map(|text| text.parse().ok()).collect();
    if !lost.is_empty() {
        parts.push(format!("{} packets lost", lost.iter().sum::<u64>()));
    }
    let facts = report["sections"].as_array().into_iter().flatten().map(|section| &section["facts"]);
    if let Some(slowest) = facts.filter_map(|facts| facts["slowest, ms"].as_f64()).next() {
        parts.push(format!("policy in force after {slowest:.0} ms"));
    }
    if let Some(add) = strings(report, "MEDIAN").first() {
        parts.push(format!("ADD {add}"));
    }
    parts.join(", ")
}

/// All texts under a key, wherever it stands, in the order of the document.
fn strings(value: &Value, key: &str) -> Vec<String> {
    match value {
        Value::Object(map) => map
            .iter()
            .flat_map(|(name, inner)| match inner {
                Value::String(text) if name == key => vec![text.clone()],
                inner => strings(inner, key),
            })
            .collect(),
        Value::Array(list) => list.iter().flat_map(|inner| strings(inner, key)).collect(),
        _ => vec![],
    }
}

/// BGP with others: a row for each pair of speakers and role, with its scenarios as figures.
fn bgp(tools: &Tools, programs: &[TestProgram], rows: &mut Vec<Row>) -> Result<()> {
    say("==> bgp\n");
    let interop =
        |program: &&TestProgram| program.package == test::SUITES_PACKAGE && program.name == "interop";
    for program in programs.iter().filter(interop) {
        let began = Instant::now();
        let mut cells = vec![];
        let ended = watched("matrix-bgp", program.command(tools), 0, |line| {
            cells.extend(cell(line));
            false
        })?;
        let titles: std::collections::BTreeSet<String> =
            cells.iter().map(|(title, _, _)| title.clone()).collect();
        let figures = format!("{} pairs and roles, {} cells", titles.len(), cells.len());
        let (held, seconds) = (ended.status.success() && !cells.is_empty(), seconds(began.elapsed()));
        rows.push(told(Row { group: "bgp", scenario: "all".to_owned(), held, seconds, figures }));
        for title in titles {
            let of: Vec<&(String, String, String)> = cells.iter().filter(|(of, _, _)| *of == title).collect();
            let held = of.iter().all(|(_, _, result)| result != "FAILED");
            let figures = of.iter().map(|(_, scenario, result)| format!("{scenario} {result}"));
            let figures = figures.collect::<Vec<_>>().join("; ");
            rows.push(told(Row { group: "bgp", scenario: title, held, seconds: 0, figures }));
        }
    }
    Ok(())
}

/// `CELL | podway with bird as mesh | v4 | ok |`: who, what, result.
fn cell(line: &str) -> Option<(String, String, String)> {
    let rest = line.trim_start().strip_prefix("CELL | ")?.trim_end().strip_suffix(" |")?;
    let mut parts = rest.splitn(3, " | ").map(str::to_owned);
    Some((parts.next()?, parts.next()?, parts.next()?))
}

/// The suites of the gate, again and again.
fn suites(tools: &Tools, programs: &[TestProgram], rows: &mut Vec<Row>) -> Result<()> {
    say("==> suites\n");
    tools.prepare_runtimes();
    tools.prepare_flannel();
    for program in programs.iter().filter(|program| program.package == test::SUITES_PACKAGE) {
        let began = Instant::now();
        let mut tally = Tally::default();
        for _ in 0..ROUNDS {
            tests(tools, program, "", &[], &mut tally)?;
        }
        if tally.passed() + tally.failed == 0 {
            // A library without tests of its own.
            continue;
        }
        let figures = format!("{ROUNDS} rounds, {} passed, {} failed", tally.passed(), tally.failed);
        let (held, seconds) = (tally.failed == 0, seconds(began.elapsed()));
        rows.push(told(Row { group: "suites", scenario: program.name.clone(), held, seconds, figures }));
    }
    Ok(())
}

/// Simulations and properties with many seeds.
fn seeds(tools: &Tools, programs: &[TestProgram], rows: &mut Vec<Row>) -> Result<()> {
    say("==> seeds\n");
    let count = std::env::var(SEEDS_VARIABLE).unwrap_or_else(|_| SEEDS.to_owned());
    for (package, target, filter) in SEEDED {
        for program in programs.iter().filter(|p| p.package == package && p.name == target) {
            let began = Instant::now();
            let mut tally = Tally::default();
            tests(tools, program, filter, &[(SEEDS_VARIABLE, count.as_str())], &mut tally)?;
            let figures = format!("{count} seeds, {} passed, {} failed", tally.passed(), tally.failed);
            let scenario = format!("{package} {target} {filter}").trim_end().to_owned();
            // Nothing under that filter yet is no failure, and no row.
            if tally.passed() + tally.failed > 0 {
                let (held, seconds) = (tally.failed == 0, seconds(began.elapsed()));
                rows.push(told(Row { group: "seeds", scenario, held, seconds, figures }));
            }
        }
    }
    Ok(())
}

fn tests(
    tools: &Tools,
    program: &TestProgram,
    filter: &str,
    variables: &[(&str, &str)],
    tally: &mut Tally,
) -> Result<()> {
    let mut command = program.command(tools);
    command.args((!filter.is_empty()).then_some(filter)).envs(variables.iter().copied());
    test::run_program(&format!("matrix-{}", program.title()), command, tally, false)
}

fn told(row: Row) -> Row {
    let word = if row.held { "ok" } else { "FAILED" };
    say(&format!("    {word:6} {:4} s  {} {}  {}\n", row.seconds, row.group, row.scenario, row.figures));
    row
}

fn seconds(time: Duration) -> u64 {
    (time + Duration::from_millis(500)).as_secs()
}

fn table_path() -> PathBuf {
    build::workspace().join("tests/matrix/table.md")
}

fn table(rows: &[Row], head: &str) -> String {
    let mut text = format!(
        "# Matrix\n\nWhat `cargo xtask matrix` found: every combination, long runs, larger clusters. It takes hours; \
         the gate runs a part.\n\n```text\n{head}```\n\n| group | scenario | result | seconds | figures |\n\
         |---|---|---|---|---|\n"
    );
    for row in rows {
        let result = if row.held { "ok" } else { "**failed**" };
        let _ = writeln!(
            text,
            "| {} | `{}` | {result} | {} | {} |",
            row.group, row.scenario, row.seconds, row.figures
        );
    }
    text
}

/// How old the committed table is, in words.
pub(crate) fn age() -> String {
    let Ok(text) = std::fs::read_to_string(table_path()) else {
        return "matrix: no table in tests/matrix yet (cargo xtask matrix)".to_owned();
    };
    let line = |key: &str| text.lines().find_map(|line| line.strip_prefix(key)).map(str::trim);
    let (Some(date), Some(commit)) = (line("date:"), line("commit:").and_then(|c| c.split(' ').next()))
    else {
        return "matrix: tests/matrix/table.md names neither date nor commit".to_owned();
    };
    match output("git", &["rev-list", "--count", &format!("{commit}..HEAD")]) {
        Ok(count) => format!("matrix: of {date}, {count} commits old"),
        Err(_) => format!("matrix: of {date}, from commit {commit}, which is not in this history"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn figures_are_read_from_wherever_they_stand() {
        let report = json!({"sections": [
            {"facts": {"slowest, ms": 10.6, "a": [{"LOST": "0"}, {"LOST": "2"}]}},
            {"facts": {"c": [{"VERB": "ADD", "MEDIAN": "4.2 ms"}, {"VERB": "DEL", "MEDIAN": "9 ms"}]}},
        ]});
        assert_eq!(figures(&report), "2 packets lost, policy in force after 11 ms, ADD 4.2 ms");
        assert_eq!(figures(&Value::Null), "");
    }

    #[test]
    fn a_cell_has_who_what_and_result() {
        let read = cell("CELL | podway with bird as mesh | v4 | empty: why |").unwrap();
        assert_eq!(read, ("podway with bird as mesh".into(), "v4".into(), "empty: why".into()));
        assert_eq!(cell("test bird ... ok"), None);
    }

    #[test]
    fn a_table_names_date_commit_and_failures() {
        let row = |scenario: &str, held| Row {
            group: "demo",
            scenario: scenario.to_owned(),
            held,
            seconds: 12,
            figures: "x".to_owned(),
        };
        let text = table(&[row("a", true), row("b", false)], "date: 2026-01-01\ncommit: abc\n");
        assert!(text.contains("\ndate: 2026-01-01\ncommit: abc\n"), "{text}");
        assert!(
            text.contains("| demo | `a` | ok | 12 | x |\n| demo | `b` | **failed** | 12 | x |\n"),
            "{text}"
        );
    }
}
