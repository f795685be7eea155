//! The `podway` binary: reads the environment and standard input, prints the answer.

use std::io::{Write as _, stdin, stdout};
use std::process::ExitCode;

use cni_plugin::{Answer, run_as};

const ABOUT: &str = concat!(
    "podway ",
    env!("CARGO_PKG_VERSION"),
    ": a CNI plugin. Container runtimes start it with CNI_COMMAND set and a network configuration on\n",
    "standard input; it serves the CNI versions 0.3.0, 0.3.1, 0.4.0, 1.0.0 and 1.1.0.\n"
);

fn main() -> ExitCode {
    let program = std::env::args_os().next().unwrap_or_default();
    let (text, code) = match run_as(&program, |name| std::env::var_os(name), stdin().lock()) {
        Answer::Done(None) => return ExitCode::SUCCESS,
        Answer::Done(Some(result)) => (result, ExitCode::SUCCESS),
        Answer::Failed(error) => (error, ExitCode::FAILURE),
        Answer::About => {
            let _ = std::io::stderr().write_all(ABOUT.as_bytes());
            return ExitCode::SUCCESS;
        }
    };
    match writeln!(stdout().lock(), "{text}") {
        Ok(()) => code,
        Err(_) => ExitCode::FAILURE,
    }
}
