//! `routed controller`: frees nodes that are missing from the inventory, and ends holds of released blocks. Two
//! replicas; a lock in the store says which one works. Decisions and loop: [`podway_store::controller`].
//!
//! It reads the same configuration file as the daemon of a node (`store:`, `log:`, `routed:` for the health address),
//! so that one image and one set of manifests do; it needs neither root nor a node.

use std::ffi::OsString;
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use podway_daemon::{Process, Program, run_with};
use podway_store::controller;

const PROGRAM: Program = Program {
    name: "routed-controller",
    about: "Podway's controller: frees the blocks of nodes that are missing from the cluster's inventory for longer \
            than the grace period, and ends the hold on released blocks. Run two; one of them works",
    version: env!("CARGO_PKG_VERSION"),
    section: |config| &config.routed,
    actions: &[],
};

/// `args`: what follows the subcommand.
pub(crate) fn main(args: impl Iterator<Item = OsString>) -> ExitCode {
    run_with(PROGRAM, std::iter::once(OsString::from(PROGRAM.name)).chain(args), start)
}

async fn start(mut process: Process) -> anyhow::Result<Process> {
    let store = podway_store::open(&process.config.store)?;
    podway_store::require(store.as_ref())?;
    let name = nix::unistd::gethostname().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let started = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    // Another process of the same name is another holder: it may not go on with this one's lock.
    let holder = format!("{name}/{}/{}", std::process::id(), started.as_nanos());
    let waiting_for = process.waiting_for.clone();
    let mut shutdown = process.shutdown.clone();
    process.tasks.spawn("controller", async move {
        tokio::select! {
            () = shutdown.requested() => Ok::<(), std::convert::Infallible>(()),
            never = controller::run(store, holder, controller::Times::default(), move |missing| {
                waiting_for.send_replace(missing);
            }) => match never {},
        }
    });
    Ok(process)
}
