//! `cargo xtask`: set-up, demo and tests of Podway, each in one command on a fresh machine.
//!
//! Links no crate of the workspace: it gets the tools that are missing (also the protobuf compiler that a
//! dependency's build needs), builds, and runs what was built.
//!
//! | module | what |
//! |---|---|
//! | [`tools`] | finds programs; unpacks Debian packages of the missing ones into a cache |
//! | [`foreign`] | gets what others made and ours is tried with: CNI plugins, container runtimes, BGP speakers |
//! | [`build`] | calls cargo, one profile for everything |
//! | [`demo`] | `cargo xtask demo` |
//! | [`test`] | `cargo xtask test`: layers, their minutes, the closing tally |
//! | [`demos`] | the demo as a test |
//! | [`fuzz`] | `cargo xtask fuzz`: the coverage-guided fuzzer |
//! | [`bench`] | `cargo xtask bench`: figures beside those of others |
//! | [`machine`] | what stands above figures |
//! | [`matrix`] | `cargo xtask matrix`: what takes hours, and its table |
//! | [`vm`], [`cpio`] | the tests on Debian's kernel, under emulation |
//! | [`watch`] | runs a program with a log and a time limit |
//! | [`skips`] | reasons for which a test may be skipped |
//! | [`tally`] | counts what test runners print |

mod bench;
mod build;
mod cpio;
mod demo;
mod demos;
mod foreign;
mod fuzz;
mod machine;
mod matrix;
mod skips;
mod tally;
mod test;
mod tools;
mod vm;
mod watch;

use std::process::ExitCode;

const HELP: &str = "\
Set-up, demo and tests of Podway.

Usage: cargo xtask <COMMAND>

Commands:
  demo [OPTIONS]   set up, build, and show a cluster of namespaces whose pods talk
                   (`cargo xtask demo --help` lists the demo's own options)
  test             set up, build, and run the tests: crates, namespaces, one demo
  test --quick     what needs neither root nor packages
  test --full      everything that CI runs: real container runtimes, every demo, another kernel under
                   emulation
  test LAYER..     some layers of --full: crates, suites, interop, demos, vm
  matrix [GROUP..] every combination and long runs (demos, bgp, suites, seeds): hours; writes
                   tests/matrix/table.md
  bench bgp|cni|routes  figures beside other implementations, in one run
                   (`cargo xtask bench bgp --help` lists its options)
  fuzz [TARGET]    run the coverage-guided fuzzer (`cargo xtask fuzz --help` lists its options)
  tools            only the set-up: say what is there and get what is missing
  tools --runtimes the same, and the container runtimes of the layer interop
  tools --env      the same, then the environment as a shell reads it
  help             this text

Set-up changes nothing on the machine: Debian packages of missing tools are unpacked into
$XDG_CACHE_HOME/podway (default ~/.cache/podway). Delete that folder to start afresh.
Everything but `test --quick` needs root, because a pod is a network namespace.
";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let outcome = match arguments.first().map(String::as_str) {
        Some("demo") => demo::run(&arguments[1..]),
        Some("bench") => bench::run(&arguments[1..]),
        Some("fuzz") => fuzz::run(&arguments[1..]),
        // `demo`, `bench` and `fuzz` have options, and so a help, of their own.
        Some("test" | "matrix" | "tools")
            if arguments[1..].iter().any(|argument| argument == "--help" || argument == "-h") =>
        {
            say(HELP);
            return ExitCode::SUCCESS;
        }
        Some("test") => test::run(&arguments[1..]),
        Some("matrix") => matrix::run(&arguments[1..]),
        Some("tools") if arguments.len() == 1 => tools::Tools::prepare(&tools::ALL).map(|tools| {
            tools.prepare_speakers();
            tools.print_table();
            ExitCode::SUCCESS
        }),
        Some("tools") if arguments[1..] == ["--env"] => tools::Tools::prepare(&tools::ALL).map(|tools| {
            tools.prepare_speakers();
            tools.print_environment();
            ExitCode::SUCCESS
        }),
        Some("tools") if arguments[1..] == ["--runtimes"] => {
            tools::Tools::prepare(&tools::ALL).map(|tools| {
                tools.prepare_cni_plugins();
                tools.prepare_runtimes();
                tools.prepare_flannel();
                tools.print_table();
                ExitCode::SUCCESS
            })
        }
        None | Some("help" | "--help" | "-h") => {
            say(HELP);
            return ExitCode::SUCCESS;
        }
        Some(_) => {
            complain(&format!("unknown arguments: {}\n\n{HELP}", arguments.join(" ")));
            return ExitCode::from(64);
        }
    };
    outcome.unwrap_or_else(|error| {
        complain(&format!("error: {error:#}\n"));
        ExitCode::FAILURE
    })
}

/// Writes to standard output; a closed pipe is nobody's problem.
pub(crate) fn say(text: &str) {
    use std::io::Write as _;
    let _ = std::io::stdout().write_all(text.as_bytes());
    let _ = std::io::stdout().flush();
}

/// Writes to standard error.
pub(crate) fn complain(text: &str) {
    use std::io::Write as _;
    let _ = std::io::stderr().write_all(text.as_bytes());
}
