//! The demo: brings a lab up, shows the main job, compares what is seen with what is expected, leaves nothing.
//!
//! | module | what |
//! |---|---|
//! | [`options`] | the command line |
//! | [`report`] | progress, tables, differences; for people or as JSON |
//! | [`setup`] | step 1: the cluster, and what daemons and kernel say of it |
//! | [`reach`] | step 2: who reaches whom |
//! | [`policy`] | step 3: NetworkPolicy |
//! | [`restart`] | step 4: `kill -9` of `routed` under a flow |
//! | [`death`] | step 5: a node's death and return |
//! | [`latency`] | step 6: CNI latencies |
//! | [`watch`] | a connection under watch until it opens or closes |
//! | [`sabotage`] | breaks one thing, so that the demo has to fail |
//!
//! Exit codes: 0 all as expected; 2 something differs; 1 the demo could not run; 64 bad options.

mod death;
mod latency;
mod options;
mod policy;
mod reach;
mod report;
mod restart;
mod sabotage;
mod setup;
mod watch;

use std::process::ExitCode;

use anyhow::Result;
use clap::Parser as _;
use podway_testkit::cluster::Cluster;
use podway_testkit::lab;

use options::{Options, Sabotage};
use report::Report;

/// Something was not as expected.
const DIFFERS: u8 = 2;

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
    let mut report = Report::new(options.json);
    match run(&options, &mut report) {
        Ok(()) => {
            report.finish();
            if report.differences().is_empty() { ExitCode::SUCCESS } else { ExitCode::from(DIFFERS) }
        }
        Err(error) => {
            report.failed(&error);
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options, report: &mut Report) -> Result<()> {
    lab::check_tools()?;
    let mut cluster = setup::up(options, report)?;
    if options.sabotage == Some(Sabotage::Route) {
        sabotage::drop_route(&cluster, report)?;
    }
    reach::show(&cluster, report)?;
    policy::show(&mut cluster, options.sabotage, report)?;
    if options.sabotage.is_none() {
        // What was broken on purpose is found by now; the steps below would only wait for it in vain.
        restart::show(&mut cluster, report)?;
        death::show(&mut cluster, report)?;
        latency::show(&cluster, report)?;
    }
    if options.keep {
        keep(&cluster, report)?;
    }
    Ok(())
}

/// Prints how to step inside and waits for Ctrl-C.
fn keep(cluster: &Cluster, report: &mut Report) -> Result<()> {
    report.section("The lab stays until Ctrl-C");
    for node in &cluster.lab.nodes {
        report.say(&format!("  node {}: nsenter -t {} -n -m -u", node.name(), node.place.tid()));
    }
    for pod in &cluster.pods {
        let node = cluster.lab.node(&pod.node)?;
        let (tid, netns) = (node.place.tid(), &pod.sandbox.attachment.netns);
        report.say(&format!("  pod {}: nsenter -t {tid} -m -u nsenter --net={netns}", pod.full_name()));
    }
    report.say(&format!("  podwayctl: {}", cluster.lab.programs.podwayctl.display()));
    report.say(&format!("  logs: {}", cluster.lab.logs().display()));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(tokio::signal::ctrl_c())?;
    Ok(())
}
