//! The speaker alone, without store and data path: `routed speaker --config FILE`. A dedicated reflector, a route
//! server, or a lab. Neighbours are listed or come from ranges; an API socket answers what `podwayctl` asks a node's
//! `routed` about BGP.
//!
//! SIGHUP reads the file again: what did not change keeps its session, and a file with mistakes leaves all as it was.
//! SIGTERM closes connections without a NOTIFICATION where the neighbour does graceful restart, and with a Cease
//! elsewhere.

pub(super) mod config;
mod filters;
mod stations;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Arg, Command};
use podway_bgp::AfterStop;
use podway_bgp::config::Restarted;
use podway_daemon::admin::AdminSocket;
use podway_daemon::shutdown::shutdown;
use podway_daemon::{EXIT_FAILED, logging};
use podway_model::mistakes::{EXIT_BAD_INPUT, Mistakes};
use podway_model::names;
use podway_model::socket::{RoutedReply, RoutedRequest};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use super::peers_file::PeersFile;
use super::shell::Shell;
use super::{Query, answer};
use config::{Standalone, parse};

/// Questions that may wait; a client waits for its answer before it asks again.
const QUERIES: usize = 16;

/// Runs to the end of the process.
pub(crate) fn main() -> ExitCode {
    let config = Arg::new("config")
        .long("config")
        .value_name("FILE")
        .required(true)
        .value_parser(clap::value_parser!(PathBuf))
        .help("Configuration of the speaker");
    let check = Arg::new("check")
        .long("check")
        .action(clap::ArgAction::SetTrue)
        .help("Read the configuration, say what is wrong with it, and end");
    let command = Command::new("routed speaker")
        .about("A BGP speaker alone: reflector, route server or lab. No store, no routes in the kernel")
        .version(env!("CARGO_PKG_VERSION"))
        .arg(config)
        .arg(check)
        .after_help("SIGHUP reads the file again. Exit codes: 0 asked to end; 1 failed; 64 bad input.");
    let arguments = std::env::args_os().skip(1);
    let matches = match command.try_get_matches_from(arguments) {
        Ok(matches) => matches,
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { EXIT_BAD_INPUT } else { 0 });
        }
    };
    let path = matches.get_one::<PathBuf>("config").expect("it is required");
    match start(path, matches.get_flag("check")) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Without a log there is standard error; nothing can be done about a failure to write there.
            let _ = std::io::Write::write_all(&mut std::io::stderr(), format!("{error:#}\n").as_bytes());
            let bad = error.downcast_ref::<Mistakes>().is_some();
            ExitCode::from(if bad { EXIT_BAD_INPUT } else { EXIT_FAILED })
        }
    }
}

fn start(path: &Path, check: bool) -> anyhow::Result<()> {
    let standalone = load(path)?;
    if check {
        return Ok(());
    }
    logging::start(&path.display().to_string(), &standalone.log)?;
    logging::abort_on_panic();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(run(path, standalone))
}

fn load(path: &Path) -> Result<Standalone, Mistakes> {
    let source = path.display().to_string();
    let text = std::fs::read_to_string(path).map_err(|error| {
        let mut mistakes = Mistakes::default();
        mistakes.add(&source, "", error, "a configuration file");
        mistakes
    })?;
    parse(&source, &text)
}

async fn run(path: &Path, standalone: Standalone) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hang_up = signal(SignalKind::hangup())?;
    let (trigger, stop) = shutdown();
    let (queries, mut asked) = mpsc::channel(QUERIES);
    let socket = match &standalone.socket {
        Some(path) => {
            let socket = AdminSocket::bind(path)?;
            Some(tokio::spawn(socket.serve(stop, move |request| reply(queries.clone(), request))))
        }
        None => None,
    };
    let Standalone { desired, restart_file, .. } = standalone;
    tracing::info!(asn = %desired.config.asn, neighbours = desired.config.neighbours.len(), "BGP begins");
    let file = restart_file.map(|path| {
        let boot = podway_ipam::read_boot_id(Path::new(names::BOOT_ID_FILE));
        boot.map(|boot| PeersFile::new(path, boot)).with_context(|| format!("read {}", names::BOOT_ID_FILE))
    });
    let file = file.transpose()?;
    // It forwards nothing itself, so no restart of it has ever lost forwarding state: whoever has its routes shall go
    // on with them until it has told its table again (RFC 4724 section 4.1, the F bit).
    let restarted = Restarted {
        forwarding_preserved: true,
        ..file.as_ref().and_then(PeersFile::read).unwrap_or_default()
    };
    let mut shell = Shell::new(desired, Some(restarted), file);
    loop {
        // Every branch is cancel-safe: what it took it returns.
        tokio::select! {
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            _ = hang_up.recv() => match load(path) {
                Ok(standalone) => {
                    tracing::info!("the configuration was read again");
                    shell.follow(standalone.desired);
                }
                Err(mistakes) => tracing::error!("ignoring the new configuration, the one before stays: {mistakes}"),
            },
            Some(query) = asked.recv() => answer(query, Some(&mut shell)),
            wake = shell.wake() => shell.handle(wake),
        }
    }
    trigger.request();
    shell.stop(AfterStop::Keep).await;
    if let Some(socket) = socket {
        socket.await??;
    }
    Ok(())
}

async fn reply(queries: mpsc::Sender<Query>, request: RoutedRequest) -> RoutedReply {
    let nothing = || RoutedReply::Failed { reason: "this is a speaker alone: it has no node".to_owned() };
    super::reply(&queries, request).await.unwrap_or_else(nothing)
}
