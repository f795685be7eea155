//! From `main` to the end of a daemon.

use std::ffi::OsString;
use std::fs;
use std::future::Future;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::{Arg, Command};
use podway_model::config::{DaemonSection, NodeConfig};
use podway_model::document::parse_config;
use podway_model::mistakes::{EXIT_BAD_INPUT, Mistakes};
use podway_model::names::{CONFIG_FILE, RUN_DIR};
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use crate::health::HealthServer;
use crate::pidlock::{PidLock, PidLockError};
use crate::{EXIT_ALREADY_RUNNING, EXIT_FAILED, Shutdown, Tasks, logging, notify, shutdown};

/// How long tasks may take to end in good order: kubelet's default is 30 s, systemd's 90 s.
const GRACE: Duration = Duration::from_secs(8);

/// What differs between the daemons.
#[derive(Debug, Clone, Copy)]
pub struct Program {
    /// Name of the binary, of the pid file, and in log lines.
    pub name: &'static str,
    /// One line for `--help`.
    pub about: &'static str,
    /// Version of the binary.
    pub version: &'static str,
    /// Its part of the configuration file.
    pub section: fn(&NodeConfig) -> &DaemonSection,
    /// What it can do instead of running.
    pub actions: &'static [Action],
}

/// Something a daemon's program can do instead of running, by a flag of its own: clean up, for instance.
#[derive(Debug, Clone, Copy)]
pub struct Action {
    /// Its flag, without the dashes.
    pub name: &'static str,
    /// What it does, for `--help`.
    pub help: &'static str,
    /// Does it. The pid lock is held: the daemon itself does not run.
    pub run: fn(&NodeConfig) -> anyhow::Result<()>,
}

/// What the shell hands to the daemon. It comes back when everything is started.
#[derive(Debug)]
pub struct Process {
    /// The configuration file.
    pub config: NodeConfig,
    /// To be watched by every task.
    pub shutdown: Shutdown,
    /// Where the daemon's tasks are started.
    pub tasks: Tasks,
    /// Where the daemon registers its metrics. Names get the prefix `podway_<daemon>`.
    pub metrics: Registry,
    /// What is missing until the daemon is ready, in words; empty when it is.
    pub waiting_for: watch::Sender<Vec<String>>,
    /// What an operator should see to though it does not make the daemon unready; shown with readiness.
    pub remarks: watch::Sender<Vec<String>>,
}

/// Runs a daemon: `fn main() -> ExitCode { run(PROGRAM, start) }`.
///
/// `start` gets the [`Process`], opens what it needs, spawns its tasks and gives it back. It must not wait for
/// anything remote: a store that is away is a task's business.
pub fn run<F, R>(program: Program, start: F) -> ExitCode
where
    F: FnOnce(Process) -> R,
    R: Future<Output = anyhow::Result<Process>>,
{
    run_with(program, std::env::args_os(), start)
}

/// [`run`] with the command line as an argument, the program's name first: for a program that is a subcommand of
/// another one.
pub fn run_with<F, R>(program: Program, args: impl IntoIterator<Item = OsString>, start: F) -> ExitCode
where
    F: FnOnce(Process) -> R,
    R: Future<Output = anyhow::Result<Process>>,
{
    ExitCode::from(run_from(program, args, Path::new(RUN_DIR), start))
}

/// [`run`] with what it takes from its surroundings as arguments. Answers the exit code.
fn run_from<F, R>(program: Program, args: impl IntoIterator<Item = OsString>, run_dir: &Path, start: F) -> u8
where
    F: FnOnce(Process) -> R,
    R: Future<Output = anyhow::Result<Process>>,
{
    let (path, action) = match arguments(program, args) {
        Ok(arguments) => arguments,
        Err(error) => {
            let _ = error.print();
            return if error.use_stderr() { EXIT_BAD_INPUT } else { 0 };
        }
    };
    let source = path.display().to_string();
    let config = match load(&path).and_then(|config| {
        logging::start(&source, &config.log)?;
        Ok(config)
    }) {
        Ok(config) => config,
        Err(mistakes) => {
            let _ = writeln!(io::stderr(), "{mistakes}");
            return EXIT_BAD_INPUT;
        }
    };
    logging::abort_on_panic();
    let _lock = match PidLock::take(run_dir, program.name) {
        Ok(lock) => lock,
        Err(error @ PidLockError::Running { .. }) => {
            tracing::error!("{error}");
            return EXIT_ALREADY_RUNNING;
        }
        Err(error) => {
            tracing::error!("{error}");
            return EXIT_FAILED;
        }
    };
    if let Some(action) = action {
        return match (action.run)(&config) {
            Ok(()) => 0,
            Err(error) => {
                tracing::error!("{} --{} failed: {error:#}", program.name, action.name);
                EXIT_FAILED
            }
        };
    }
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::error!(%error, "no event loop");
            return EXIT_FAILED;
        }
    };
    tracing::info!(version = program.version, config = source, "{} starts", program.name);
    let code = match runtime.block_on(supervise(program, config, start)) {
        Ok(()) => 0,
        Err(error) => match error.downcast_ref::<Mistakes>() {
            Some(mistakes) => {
                let _ = writeln!(io::stderr(), "{mistakes}");
                EXIT_BAD_INPUT
            }
            None => {
                tracing::error!("{} ends: {error:#}", program.name);
                EXIT_FAILED
            }
        },
    };
    // Blocking threads (name look-ups) are not waited for.
    runtime.shutdown_background();
    code
}

/// The path of the configuration file, and what to do instead of running.
fn arguments(
    program: Program,
    args: impl IntoIterator<Item = OsString>,
) -> Result<(PathBuf, Option<Action>), clap::Error> {
    let flags = program.actions.iter().map(|action| {
        Arg::new(action.name).long(action.name).help(action.help).action(clap::ArgAction::SetTrue)
    });
    let command = Command::new(program.name)
        .about(program.about)
        .version(program.version)
        .arg(
            Arg::new("config")
                .long("config")
                .value_name("FILE")
                .value_parser(clap::value_parser!(PathBuf))
                .default_value(CONFIG_FILE)
                .help("Configuration of this node"),
        )
        .args(flags)
        .after_help(
            "Exit codes: 0 asked to end (SIGTERM, SIGINT); 1 failed; 64 bad input, every mistake on standard \
             error;\n75 another process of this kind runs on the node.",
        );
    let mut matches = command.try_get_matches_from(args)?;
    let action = program.actions.iter().find(|action| matches.get_flag(action.name)).copied();
    let path = matches.remove_one::<PathBuf>("config").unwrap_or_else(|| PathBuf::from(CONFIG_FILE));
    Ok((path, action))
}

/// Reads and checks the configuration file. The default file may be missing: then the defaults hold.
///
/// # Errors
/// Every mistake in it, or that it cannot be read.
pub fn load(path: &Path) -> Result<NodeConfig, Mistakes> {
    let source = path.display().to_string();
    match fs::read_to_string(path) {
        Ok(text) => parse_config(&source, &text),
        Err(error) if error.kind() == io::ErrorKind::NotFound && path == Path::new(CONFIG_FILE) => {
            Ok(NodeConfig::default())
        }
        Err(error) => {
            let mut mistakes = Mistakes::default();
            mistakes.add(source, "", error, "a configuration file");
            Err(mistakes)
        }
    }
}

/// Starts the daemon and waits for its end.
async fn supervise<F, R>(program: Program, config: NodeConfig, start: F) -> anyhow::Result<()>
where
    F: FnOnce(Process) -> R,
    R: Future<Output = anyhow::Result<Process>>,
{
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let (trigger, shutdown) = shutdown::shutdown();
    let (waiting_for, mut seen) = watch::channel(vec!["the daemon starts".to_owned()]);
    let (remarks, remarked) = watch::channel(vec![]);
    let mut metrics = Registry::with_prefix(format!("podway_{}", program.name.replace('-', "_")));
    metrics.register("build", "Version that runs", Info::new(vec![("version", program.version)]));
    let listen = (program.section)(&config).health_listen;

    let process = Process {
        config,
        shutdown: shutdown.clone(),
        tasks: Tasks::default(),
        metrics,
        waiting_for,
        remarks,
    };
    let started = tokio::select! {
        started = start(process) => started?,
        _ = terminate.recv() => return Ok(()),
        _ = interrupt.recv() => return Ok(()),
    };
    let Process { mut tasks, metrics, waiting_for, remarks, .. } = started;
    // The daemon keeps its own clones; this one keeps the channel open for the health server.
    let _open = (waiting_for, remarks);
    if let Some(listen) = listen {
        let server = HealthServer::bind(listen, seen.clone(), remarked, Arc::new(metrics))
            .await
            .map_err(|error| anyhow::anyhow!("healthListen {listen}: {error}"))?;
        tasks.spawn("health", server.serve(shutdown));
    }

    let ready = async {
        if seen.wait_for(Vec::is_empty).await.is_ok() {
            tell_systemd("READY=1");
        }
        std::future::pending::<()>().await;
    };
    let ended = tokio::select! {
        end = tasks.first_end() => Some(end),
        _ = terminate.recv() => None,
        _ = interrupt.recv() => None,
        () = ready => None,
    };
    tell_systemd("STOPPING=1");
    trigger.request();
    if ended.is_none() {
        tracing::info!("{} was asked to end", program.name);
    }
    for failure in tasks.finish(GRACE).await {
        tracing::warn!("{failure}");
    }
    match ended {
        Some(end) => Err(end.into()),
        None => Ok(()),
    }
}

fn tell_systemd(state: &str) {
    if let Err(error) = notify::notify(state) {
        tracing::warn!(%error, "systemd was not told {state}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PROGRAM: Program = Program {
        name: "routed",
        about: "",
        version: "1",
        section: |config| &config.routed,
        actions: &[Action { name: "cleanup", help: "Remove everything", run: |_| Ok(()) }],
    };

    fn args(args: &[&str]) -> Result<(PathBuf, Option<Action>), clap::Error> {
        arguments(PROGRAM, ["routed"].iter().chain(args).map(OsString::from))
    }

    #[test]
    fn one_argument_is_known_besides_the_actions() {
        assert_eq!(args(&[]).unwrap().0, Path::new(CONFIG_FILE));
        let (path, action) = args(&["--config", "/x"]).unwrap();
        assert!(path == Path::new("/x") && action.is_none());
        assert!(args(&["--confg", "/x"]).unwrap_err().use_stderr());
        assert!(!args(&["--help"]).unwrap_err().use_stderr());
    }

    #[test]
    fn an_action_has_its_flag() {
        let (path, action) = args(&["--cleanup", "--config", "/x"]).unwrap();
        assert_eq!((path.as_path(), action.map(|action| action.name)), (Path::new("/x"), Some("cleanup")));
    }

    #[test]
    fn a_named_file_must_be_there_and_right() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("podway.yaml");
        let missing = load(&path).unwrap_err().to_string();
        assert!(missing.starts_with(&path.display().to_string()), "{missing}");
        fs::write(&path, "log: {levl: info}\nnode: {asn: 0}\n").unwrap();
        assert_eq!(load(&path).unwrap_err().0.len(), 2);
        fs::write(&path, "log: {level: debug}\n").unwrap();
        assert_eq!(load(&path).unwrap().log.level, "debug");
    }

    #[tokio::test]
    async fn a_task_that_ends_ends_the_process() {
        let end = supervise(PROGRAM, NodeConfig::default(), |mut process| async {
            process.tasks.spawn("lasting", {
                let mut shutdown = process.shutdown.clone();
                async move { shutdown.requested().await }
            });
            process.tasks.spawn("cluster", async { Err::<(), _>("boom") });
            Ok(process)
        })
        .await;
        assert_eq!(end.unwrap_err().to_string(), "task cluster failed: boom");
    }

    #[tokio::test]
    async fn a_health_port_in_use_is_named() {
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let listen = taken.local_addr().unwrap();
        let mut config = NodeConfig::default();
        config.routed.health_listen = Some(listen);
        let end = supervise(PROGRAM, config, |process| async { Ok(process) }).await;
        let text = end.unwrap_err().to_string();
        assert!(text.contains(&format!("healthListen {listen}")), "{text}");
    }

    /// Not a test but the process of the tests below, which start this binary again with `CHILD` set.
    #[test]
    fn child() {
        let Some(dir) = std::env::var_os(CHILD).map(PathBuf::from) else { return };
        let args = ["routed".into(), "--config".into(), dir.join("podway.yaml").into_os_string()];
        let code = run_from(PROGRAM, args, &dir.join("run"), |mut process| async {
            let mut shutdown = process.shutdown.clone();
            let panics = process.config.node.labels.contains_key("panic");
            process.tasks.spawn("lasting", async move {
                assert!(!panics, "a task that panics");
                shutdown.requested().await;
            });
            process.waiting_for.send_replace(vec![]);
            Ok(process)
        });
        std::process::exit(code.into());
    }

    const CHILD: &str = "PODWAY_DAEMON_TEST_CHILD";

    /// Starts the child in `dir`, telling its readiness to a socket there.
    fn spawn(dir: &Path) -> std::process::Child {
        std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "process::tests::child", "--nocapture"])
            .env(CHILD, dir)
            .env("NOTIFY_SOCKET", dir.join("notify"))
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::piped())
            .spawn()
            .unwrap()
    }

    #[test]
    fn bad_input_exits_with_64_and_every_mistake() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("podway.yaml"), "nod: {}\nlog: {format: xml}\n").unwrap();
        let output = spawn(dir.path()).wait_with_output().unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!((output.status.code(), text.lines().count()), (Some(64), 2), "{text}");
        fs::write(dir.path().join("podway.yaml"), "log: {level: loud}\n").unwrap();
        assert_eq!(spawn(dir.path()).wait_with_output().unwrap().status.code(), Some(64));
    }

    #[test]
    fn a_second_start_is_refused_and_a_signal_ends_the_first() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("podway.yaml"), "").unwrap();
        let notified = std::os::unix::net::UnixDatagram::bind(dir.path().join("notify")).unwrap();
        notified.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        let mut buffer = [0; 32];
        let first = spawn(dir.path());
        let length = notified.recv(&mut buffer).unwrap();
        assert_eq!(&buffer[..length], b"READY=1");

        let second = spawn(dir.path()).wait_with_output().unwrap();
        let text = String::from_utf8(second.stderr).unwrap();
        assert_eq!(second.status.code(), Some(75), "{text}");
        assert!(text.contains(&format!("routed runs already as process {}", first.id())), "{text}");

        let pid = nix::unistd::Pid::from_raw(first.id().try_into().unwrap());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
        let length = notified.recv(&mut buffer).unwrap();
        assert_eq!(&buffer[..length], b"STOPPING=1");
        let ended = first.wait_with_output().unwrap();
        assert_eq!(ended.status.code(), Some(0), "{}", String::from_utf8_lossy(&ended.stderr));
    }

    #[test]
    fn a_panic_anywhere_is_logged_and_ends_the_process() {
        use std::os::unix::process::ExitStatusExt;
        let dir = tempfile::tempdir().unwrap();
        let config = "node: {labels: {panic: 'yes'}}\nlog: {format: json}\n";
        fs::write(dir.path().join("podway.yaml"), config).unwrap();
        let output = spawn(dir.path()).wait_with_output().unwrap();
        assert_eq!(output.status.signal(), Some(nix::sys::signal::Signal::SIGABRT as i32));
        let text = String::from_utf8(output.stderr).unwrap();
        let last: serde_json::Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
        assert_eq!(
            (&last["level"], &last["message"]),
            (&"ERROR".into(), &"panic: a task that panics".into())
        );
    }
}
