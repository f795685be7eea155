//! One run of one speaker.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result};
use podway_testkit::lab::Programs;
use podway_testkit::place::Place;
use podway_testkit::process::Process;
use podway_testkit::wait::wait_until;
use serde::{Deserialize, Serialize};

use crate::rows::Row;
use crate::speakers::{ADDRESS, Found, PORT};

/// Patience with a speaker.
pub(crate) const LIMIT: Duration = Duration::from_secs(30);

/// What `podway-bgpload` says.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Load {
    pub(crate) converged: bool,
    pub(crate) seconds: f64,
    pub(crate) all_up_seconds: f64,
    pub(crate) updates: u64,
    pub(crate) octets: u64,
    pub(crate) cpu_seconds: f64,
    pub(crate) peak_kib: u64,
    pub(crate) missing: u64,
    pub(crate) up: u32,
    pub(crate) news_ms: Vec<f64>,
    pub(crate) close_ms: Option<f64>,
}

/// A run.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Outcome {
    pub(crate) load: Load,
    /// Share of the machine's time, in percent, that neither the speaker nor its load used while it ran.
    pub(crate) foreign_percent: f64,
}

impl Load {
    pub(crate) fn mebibytes(&self) -> f64 {
        self.peak_kib as f64 / 1024.0
    }

    /// The 99th percentile of a new route's way to the last client.
    pub(crate) fn news_p99(&self) -> Option<f64> {
        self.news_ms.get(self.news_ms.len() * 99 / 100).copied()
    }

    pub(crate) fn news_p50(&self) -> Option<f64> {
        self.news_ms.get(self.news_ms.len() / 2).copied()
    }
}

impl Outcome {
    /// In a line.
    pub(crate) fn brief(&self) -> String {
        let load = &self.load;
        if !load.converged {
            return format!(
                "not finished after {:.0} s: {} sessions, {} prefixes missing",
                LIMIT.as_secs_f64(),
                load.up,
                load.missing
            );
        }
        let mut text =
            format!("{:.3} s, {:.2} CPU-s, {:.1} MiB", load.seconds, load.cpu_seconds, load.mebibytes());
        if let Some(p99) = load.news_p99() {
            text += &format!(", a new route {p99:.1} ms");
        }
        if let Some(close) = load.close_ms {
            text += &format!(", a close {close:.1} ms");
        }
        if self.foreign_percent > 10.0 {
            text += &format!(" (others used {:.0} % of the machine)", self.foreign_percent);
        }
        text
    }
}

/// Runs the speaker under the row's load.
pub(crate) fn measure(found: &Found, row: &Row) -> Result<Outcome> {
    let programs = Programs::find()?;
    let folder = programs.lab_dir().join("bench-bgp").join(found.speaker.to_string());
    std::fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
    let log = folder.join("log");
    drop(std::fs::remove_file(&log));
    let place = place()?;
    let several = std::thread::available_parallelism()?.get() > 1;
    let command = on_processor(several.then_some("0"), found.command(&folder, row.clients)?);
    let mut speaker = Process::start(&place, &found.speaker.to_string(), command, &log)?;
    wait_until("the speaker listens", Duration::from_secs(20), || {
        speaker.ensure_running()?;
        let sockets = place.net().run(|| std::fs::read_to_string("/proc/thread-self/net/tcp"))??;
        Ok(listens(&sockets).then_some(()))
    })?;

    let (before, own_before) = (Machine::now()?, children_seconds()?);
    let load = apply(&programs, &place, &mut speaker, row)?;
    let (after, own_after) = (Machine::now()?, children_seconds()?);
    let own = load.cpu_seconds + (own_after - own_before);
    let foreign = (after.busy - before.busy - own).max(0.0) / (after.all - before.all).max(0.01);
    speaker.kill()?;
    Ok(Outcome { load, foreign_percent: foreign * 100.0 })
}

/// Where a run takes place: all addresses of 10.98.0.0/16 and 10.99.0.0/16 are its own.
pub(crate) fn place() -> Result<Place> {
    let place = Place::new("bench")?;
    place.ip("route add local 10.98.0.0/16 dev lo\nroute add local 10.99.0.0/16 dev lo\n")?;
    place.sysctl("net.core.somaxconn", "8192")?;
    place.sysctl("net.ipv4.tcp_max_syn_backlog", "8192")?;
    Ok(place)
}

/// Puts a row's load on a speaker.
pub(crate) fn apply(programs: &Programs, place: &Place, speaker: &mut Process, row: &Row) -> Result<Load> {
    let several = std::thread::available_parallelism()?.get() > 1;
    let mut load = Command::new(programs.routed.with_file_name("podway-bgpload"));
    load.args(["--target", &format!("{ADDRESS}:{PORT}"), "--pid", &speaker.pid().to_string(), "--json"]);
    load.args(["--clients", &row.clients.to_string(), "--prefixes", &row.prefixes.to_string(), "--close"]);
    load.args(["--news", &row.news.to_string(), "--limit", &LIMIT.as_secs().to_string()]);
    if row.storm {
        load.arg("--storm");
    }
    let output = place.output(on_processor(several.then_some("1"), load), b"")?;
    speaker.ensure_running()?;
    anyhow::ensure!(
        output.status.success(),
        "podway-bgpload: {}: {}; log of the speaker: {}",
        output.status,
        String::from_utf8_lossy(&output.stderr).trim(),
        speaker.log_path().display()
    );
    serde_json::from_slice(&output.stdout).context("what podway-bgpload says")
}

/// The same command, held to one processor.
pub(crate) fn on_processor(processor: Option<&str>, command: Command) -> Command {
    let Some(processor) = processor else { return command };
    let mut pinned = Command::new("taskset");
    pinned.args(["--cpu-list", processor]).arg(PathBuf::from(command.get_program())).args(command.get_args());
    pinned.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    pinned
}

/// Whether somebody listens on our port (`/proc/net/tcp`, proc(5): state 0A is LISTEN).
fn listens(sockets: &str) -> bool {
    let port = format!(":{PORT:04X}");
    sockets.lines().any(|line| {
        let mut words = line.split_whitespace().skip(1);
        words.next().is_some_and(|local| local.ends_with(&port)) && words.nth(1) == Some("0A")
    })
}

/// Seconds of processor time of the whole machine (`/proc/stat`, proc(5)).
struct Machine {
    busy: f64,
    all: f64,
}

impl Machine {
    fn now() -> Result<Self> {
        let text = std::fs::read_to_string("/proc/stat")?;
        let first = text.lines().next().context("/proc/stat has a first line")?;
        let hundredths: Vec<f64> =
            first.split_whitespace().skip(1).filter_map(|word| word.parse().ok()).collect();
        let idle: f64 = hundredths.iter().skip(3).take(2).sum();
        // Guest time is part of user time already.
        let all: f64 = hundredths.iter().take(8).sum();
        Ok(Self { busy: (all - idle) / 100.0, all: all / 100.0 })
    }
}

/// Seconds of processor time of the children that ended: the load generator among them.
fn children_seconds() -> Result<f64> {
    let usage = nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_CHILDREN)?;
    let seconds = |time: nix::sys::time::TimeVal| time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6;
    Ok(seconds(usage.user_time()) + seconds(usage.system_time()))
}
