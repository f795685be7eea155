//! Where the programs of others are, or the line that says that they are not there.

use std::path::PathBuf;

/// Programs of Debian's packages, each below a folder with its package's name.
const PACKAGES: &str = "PODWAY_PACKAGES";
/// Programs that were built of Go modules.
const GO_PROGRAMS: &str = "PODWAY_GO_PROGRAMS";
/// CNI plugins of containernetworking/plugins.
const CNI_PLUGINS: &str = "PODWAY_CNI_PLUGINS";

/// A program of a Debian package: `containerd/usr/bin/ctr`.
pub(crate) fn packaged(test: &str, path: &str) -> Option<PathBuf> {
    found(test, PACKAGES, path, "no Debian packages of container runtimes (PODWAY_PACKAGES)")
}

/// A program that was built of a Go module.
pub(crate) fn built(test: &str, program: &str) -> Option<PathBuf> {
    found(test, GO_PROGRAMS, program, "no container runtimes of Go modules (PODWAY_GO_PROGRAMS)")
}

/// A CNI plugin of containernetworking/plugins 1.9.1.
pub(crate) fn plugin(test: &str, name: &str) -> Option<PathBuf> {
    found(test, CNI_PLUGINS, name, "no containernetworking plugins 1.9.1 (PODWAY_CNI_PLUGINS)")
}

#[expect(clippy::print_stdout, reason = "the line is what the test runner reads")]
fn found(test: &str, variable: &str, path: &str, reason: &str) -> Option<PathBuf> {
    let program = std::env::var_os(variable).map(|folder| PathBuf::from(folder).join(path));
    let program = program.filter(|program| program.is_file());
    if program.is_none() {
        println!("SKIP {test}: {reason}");
    }
    program
}
