//! What an ADD and a DEL cost, beside what a user would pick instead and beside the bare netlink calls: one run, side by
//! side, round after round.
//!
//! | module | what |
//! |---|---|
//! | [`options`] | the command line |
//! | [`contender`] | plugins and how they are called |
//! | [`measure`] | latencies, pods per second, resident set, system calls |
//! | [`budget`] | what the figures are held against |
//! | [`report`] | the tables, for people and as JSON |
//!
//! Every contender has a node of its own, made anew in every round. Network namespaces of pods are made before the clock
//! starts, as runtimes make them before they call.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "its output is its purpose")]

mod budget;
mod contender;
mod measure;
mod options;
mod report;

use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::Parser as _;
use podway_testkit::lab;

use contender::Contender;
use measure::{Figures, Plan};
use options::Options;
use report::{Machine, Report};

fn main() -> ExitCode {
    let options = match Options::try_parse() {
        Ok(options) => options,
        Err(error) => {
            // Nothing can be done where even the complaint cannot be written.
            let _ = error.print();
            return if error.use_stderr() {
                ExitCode::from(podway_model::mistakes::EXIT_BAD_INPUT)
            } else {
                ExitCode::SUCCESS
            };
        }
    };
    match run(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<()> {
    lab::check_tools()?;
    let files = options.files()?;
    let machine = Machine::look(&options.note);
    let all = contender::all(options, &files)?;
    let plan = Plan::new(options.quick);
    let mut figures: Vec<Figures> = all.iter().map(|one| Figures::new(one.name)).collect();
    let ceiling = options.bare.as_deref().map(measure::ceiling).transpose()?;
    for round in 1..=options.rounds() {
        for (one, figures) in all.iter().zip(&mut figures) {
            eprintln!("    round {round} of {}: {}", options.rounds(), one.name);
            measure_one(one, &plan, figures).with_context(|| one.name.to_owned())?;
        }
    }
    for (one, figures) in all.iter().zip(&mut figures) {
        figures.costs = measure::costs(one, options, &files).with_context(|| one.name.to_owned())?;
    }
    let report = Report { machine: machine.close(), rounds: options.rounds(), plan, ceiling, figures };
    println!("{report}");
    if let Some(path) = &options.json {
        let text = format!("{:#}\n", report.to_json());
        std::fs::write(path, text).with_context(|| format!("write {}", path.display()))?;
    }
    if let Some(path) = &options.record {
        let text = report.page();
        std::fs::write(path, text).with_context(|| format!("write {}", path.display()))?;
    }
    Ok(())
}

fn measure_one(one: &Contender, plan: &Plan, figures: &mut Figures) -> Result<()> {
    let node = one.node()?;
    measure::round(one, &node, plan, figures)
}
