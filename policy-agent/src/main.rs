//! Podway's node daemon for NetworkPolicy: compiles it into nftables.
//!
//! | module | what |
//! |---|---|
//! | [`app`] | the shell: task diagram, event loop |
//! | [`core`] | what is decided: events in, actions out |
//! | [`source`] | store values to engine events |
//! | [`records`], [`folder`] | endpoint records, and the folder that they lie in |
//! | [`kernel`] | nftables and connection tracking |
//! | [`metrics`] | numbers for Prometheus |
//!
//! `policy-agent cleanup` removes our nftables table and nothing else. Without it, everything stays in force when
//! the agent ends.

mod app;
mod core;
mod folder;
mod kernel;
mod metrics;
mod records;
mod source;

use std::io::Write as _;
use std::process::ExitCode;

use podway_daemon::{EXIT_FAILED, Program, run};

const PROGRAM: Program = Program {
    name: "policy-agent",
    about: "Compiles NetworkPolicy into nftables on this node.\n`policy-agent cleanup` removes our nftables table \
            instead, and with it every restriction; run it when the agent has ended.",
    version: env!("CARGO_PKG_VERSION"),
    section: |config| &config.policy_agent,
};

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    if arguments.next().is_some_and(|word| word == "cleanup") && arguments.next().is_none() {
        return cleanup();
    }
    run(PROGRAM, app::start)
}

/// Removes our table.
fn cleanup() -> ExitCode {
    match kernel::Kernel::open().and_then(|mut kernel| Ok(kernel.remove()?)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "policy-agent cleanup: {error:#}");
            ExitCode::from(EXIT_FAILED)
        }
    }
}
