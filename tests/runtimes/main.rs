//! Container runtimes of others with our plugin in them, unchanged and as an operator installs it: the shipped conflist,
//! the shipped paths, the daemons running. Needs root.
//!
//! | module | runtime |
//! |---|---|
//! | `libcni` | the reference library and `cnitool`, of which every Go runtime is made |
//! | `containerd1` | containerd 1.6 with `ctr run --cni`, which forgets its DELs |
//! | `containerd2` | containerd 2 by its CRI socket, as a kubelet uses it |
//! | `podman` | podman 4 with its CNI backend |
//!
//! `cargo xtask tools --runtimes` gets them; what is missing is skipped.

mod containerd1;
mod containerd2;
mod foreign;
mod libcni;
mod machine;
mod podman;

use anyhow::Result;
use podway_testkit::root_or_skip;

/// Runs the body of a test with its error as the test's failure, or skips it without root.
#[expect(clippy::panic, reason = "a test's way to fail")]
fn run(test: &str, body: impl FnOnce() -> Result<()>) {
    if !root_or_skip(test) {
        return;
    }
    if let Err(error) = body() {
        panic!("{error:?}");
    }
}
