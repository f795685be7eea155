//! Podway's node daemon for NetworkPolicy: compiles it into nftables.
//!
//! | module | what |
//! |---|---|
//! | [`app`] | the shell: task diagram, event loop |
//! | [`core`] | what is decided: events in, actions out |
//! | [`source`] | store values to engine events |
//! | [`records`], [`folder`] | endpoint records, and the folder that they lie in |
//! | [`kernel`] | nftables and connection tracking |
//! | [`trace`] | questions of people, and their answers |
//! | [`metrics`] | numbers for Prometheus |
//!
//! `policy-agent --cleanup` removes our nftables table and nothing else. Without it, everything stays in force when
//! the agent ends.

mod app;
mod core;
mod folder;
mod kernel;
mod metrics;
mod records;
mod source;
mod trace;

use std::process::ExitCode;

use podway_daemon::process::Action;
use podway_daemon::{Program, run};

const PROGRAM: Program = Program {
    name: "policy-agent",
    about: "Compiles NetworkPolicy into nftables on this node. What it did stays in force when it ends",
    version: env!("CARGO_PKG_VERSION"),
    section: |config| &config.policy_agent,
    actions: &[Action {
        name: "cleanup",
        help: "Remove our nftables table, and with it every restriction, instead of running",
        run: |_| Ok(kernel::Kernel::open()?.remove()?),
    }],
};

fn main() -> ExitCode {
    run(PROGRAM, app::start)
}
