//! Route reflectors side by side: ours, BIRD, FRR and GoBGP under the same load, in one run.
//!
//! Every measurement has a network namespace of its own, in which the reflector listens and the load generator
//! (`podway-bgpload`) has its clients; where there are two processors, each has one of them. The runs of one row are
//! interleaved over the speakers. What counts is the median.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "its output is its purpose")]

mod measure;
mod report;
mod rows;
mod speakers;
mod watched;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result, ensure};
use clap::Parser;

use measure::Outcome;
use report::Report;
use rows::Row;
use speakers::Speaker;

/// Measures route reflectors side by side.
#[derive(Debug, Parser)]
struct Arguments {
    /// Runs of each row; the median counts.
    #[arg(long, default_value_t = 3)]
    runs: usize,
    /// Only the rows that are over within seconds, once each.
    #[arg(long)]
    quick: bool,
    /// Only rows whose name contains one of these.
    #[arg(long, value_name = "TEXT")]
    row: Vec<String>,
    /// Only these speakers.
    #[arg(long, value_enum)]
    speaker: Vec<Speaker>,
    /// Writes the report, with every single run, as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Writes the report as Markdown.
    #[arg(long, value_name = "FILE")]
    markdown: Option<PathBuf>,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<()> {
    ensure!(nix::unistd::geteuid().is_root(), "a network namespace for each run needs root");
    ensure!(arguments.runs > 0, "--runs 0: at least 1 expected");
    let wanted = |speaker: &Speaker| arguments.speaker.is_empty() || arguments.speaker.contains(speaker);
    let mut present = vec![];
    for speaker in Speaker::ALL.into_iter().filter(wanted) {
        match speaker.find() {
            Ok(found) => present.push(found),
            Err(error) => eprintln!("    without {speaker}: {error:#}"),
        }
    }
    ensure!(!present.is_empty(), "no speaker to measure");
    let rows: Vec<Row> = rows::all()
        .into_iter()
        .filter(|row| !arguments.quick || row.quick)
        .filter(|row| arguments.row.is_empty() || arguments.row.iter().any(|part| row.name().contains(part)))
        .collect();
    let with_bfd =
        arguments.row.is_empty() || arguments.row.iter().any(|part| watched::name().contains(part));
    ensure!(with_bfd || !rows.is_empty(), "no row has such a name");
    let runs = if arguments.quick { 1 } else { arguments.runs };
    let mut report = Report::new(&present, runs);
    for row in &rows {
        let mut outcomes: Vec<Vec<Outcome>> = vec![vec![]; present.len()];
        for _ in 0..runs {
            for (found, outcomes) in present.iter().zip(&mut outcomes) {
                // Who did not finish once is not asked again.
                if outcomes.iter().any(|outcome| !outcome.load.converged) {
                    continue;
                }
                let outcome = measure::measure(found, row)
                    .with_context(|| format!("{}, {}", row.name(), found.speaker))?;
                eprintln!("    {:24} {:8} {}", row.name(), found.speaker.to_string(), outcome.brief());
                outcomes.push(outcome);
            }
        }
        report.row(row, outcomes);
    }
    let ours = present.iter().find(|found| found.speaker == Speaker::Podway);
    if let Some(ours) = ours.filter(|_| with_bfd) {
        for _ in 0..runs {
            let watched = watched::measure(ours).with_context(watched::name)?;
            eprintln!("    {:24} {:8} {} of BFD's sessions lost", watched::name(), "Podway", watched.lost);
            report.watched(watched);
        }
    }
    println!("{}", report.text());
    if let Some(path) = &arguments.json {
        std::fs::write(path, report.json()?).with_context(|| format!("write {}", path.display()))?;
    }
    if let Some(path) = &arguments.markdown {
        std::fs::write(path, report.markdown()).with_context(|| format!("write {}", path.display()))?;
    }
    Ok(())
}
