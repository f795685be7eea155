//! A node: its place, its configuration file, its daemons, its command line.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use podway_model::names;
use podway_model::socket::{BgpPeerStatus, PolicyStatus, RoutedStatus};
use serde_json::Value;

use super::{Addresses, Programs};
use crate::cni::Runtime;
use crate::place::Place;
use crate::process::{Process, tail};
use crate::wait::wait_until;

/// A node of the lab.
#[derive(Debug)]
pub struct Node {
    /// Its namespaces.
    pub place: Place,
    /// Its underlay addresses.
    pub addresses: Addresses,
    /// `routed`, while it is supposed to run.
    pub routed: Option<Process>,
    /// `policy-agent`, while it is supposed to run.
    pub policy_agent: Option<Process>,
    programs: Programs,
    logs: PathBuf,
}

/// What `podwayctl` did.
#[derive(Debug, Clone)]
pub struct PodwayctlOutput {
    /// Exit code; none: a signal.
    pub code: Option<i32>,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Node {
    /// Installs the plugin, its conflist and the configuration file in a place.
    pub fn new(
        place: Place,
        v4: Ipv4Addr,
        v6: Ipv6Addr,
        config: String,
        programs: Programs,
        logs: &Path,
    ) -> Result<Self> {
        let logs = logs.join(place.name());
        std::fs::create_dir_all(&logs)?;
        let node =
            Self { place, addresses: Addresses { v4, v6 }, routed: None, policy_agent: None, programs, logs };
        node.write_file(names::CONFIG_FILE, &config)?;
        // Plugin and conflist, as an operator installs them.
        node.podwayctl_ok(&["node", "install"], "")?;
        Ok(node)
    }

    /// Its name.
    pub fn name(&self) -> &str {
        self.place.name()
    }

    /// A container runtime on it.
    pub fn runtime(&self) -> Runtime<'_> {
        Runtime::new(&self.place)
    }

    /// Writes a file as the node sees it.
    pub fn write_file(&self, path: &str, text: &str) -> Result<()> {
        self.place.enter(|| std::fs::write(path, text))?.with_context(|| format!("write {path}"))
    }

    /// Puts further keys into the configuration: lines of YAML below `node:`, and whole sections behind all others.
    pub fn configure(&self, node: &str, sections: &str) -> Result<()> {
        let text = self.read_file(names::CONFIG_FILE)?;
        let text = text.replacen("node:\n", &format!("node:\n{node}"), 1) + sections;
        self.write_file(names::CONFIG_FILE, &text)
    }

    /// What a daemon answers on its health port: status line and body.
    pub fn health(&self, port: u16, path: &str) -> Result<(String, String)> {
        use std::io::{Read as _, Write as _};
        let mut stream = self.place.net().run(|| std::net::TcpStream::connect(("127.0.0.1", port)))??;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let (head, body) = answer.split_once("\r\n\r\n").context("an answer has a head")?;
        Ok((head.lines().next().unwrap_or_default().to_owned(), body.to_owned()))
    }

    /// Reads a file as the node sees it.
    pub fn read_file(&self, path: &str) -> Result<String> {
        self.place.enter(|| std::fs::read_to_string(path))?.with_context(|| format!("read {path}"))
    }

    /// The plain files of a folder, by name.
    pub fn read_folder(&self, path: &str) -> Result<Vec<(String, String)>> {
        let read = || -> std::io::Result<Vec<(String, String)>> {
            let mut files = vec![];
            for entry in std::fs::read_dir(path)? {
                let entry = entry?;
                if entry.file_type()?.is_file() {
                    let name = entry.file_name().to_string_lossy().into_owned();
                    files.push((name, std::fs::read_to_string(entry.path())?));
                }
            }
            Ok(files)
        };
        self.place.enter(read)?.with_context(|| format!("read folder {path}"))
    }

    /// Whether a path exists as the node sees it.
    pub fn exists(&self, path: &str) -> Result<bool> {
        self.place.enter(|| Path::new(path).exists())
    }

    /// Starts both daemons; does not wait for them.
    pub fn start_daemons(&mut self) -> Result<()> {
        self.start_routed()?;
        self.start_policy_agent()
    }

    /// Starts `routed`.
    pub fn start_routed(&mut self) -> Result<()> {
        let process = self.spawn_daemon("routed")?;
        self.routed = Some(process);
        Ok(())
    }

    /// Starts `policy-agent`.
    pub fn start_policy_agent(&mut self) -> Result<()> {
        let process = self.spawn_daemon("policy-agent")?;
        self.policy_agent = Some(process);
        Ok(())
    }

    /// Starts a daemon (`routed` or `policy-agent`) that the caller keeps.
    pub fn spawn_daemon(&self, daemon: &str) -> Result<Process> {
        self.spawn_daemon_with(daemon, &[])
    }

    /// The same with these variables in its environment.
    pub fn spawn_daemon_with(&self, daemon: &str, environment: &[(&str, &str)]) -> Result<Process> {
        let program = if daemon == "routed" { &self.programs.routed } else { &self.programs.policy_agent };
        let mut command = Command::new(program);
        command.envs(environment.iter().copied());
        Process::start(&self.place, daemon, command, &self.logs.join(format!("{daemon}.log")))
    }

    /// Kills `routed` with -9.
    pub fn kill_routed(&mut self) -> Result<()> {
        self.routed.take().context("routed does not run")?.kill()
    }

    /// Kills `policy-agent` with -9.
    pub fn kill_policy_agent(&mut self) -> Result<()> {
        self.policy_agent.take().context("policy-agent does not run")?.kill()
    }

    /// Waits until both daemons run and say that they are ready.
    pub fn wait_ready(&mut self, patience: Duration) -> Result<()> {
        let what = format!("{} is ready", self.name());
        let mut last = String::new();
        let waited = wait_until(&what, patience, || {
            for daemon in [&mut self.routed, &mut self.policy_agent].into_iter().flatten() {
                daemon.ensure_running()?;
            }
            last = match self.status() {
                Ok((routed, _)) if !routed.ready => {
                    format!("routed waits for {}", routed.waiting_for.join(", "))
                }
                Ok((_, policy)) if !policy.ready => format!("policy-agent is not ready: {}", policy.store),
                Ok(_) => return Ok(Some(())),
                Err(error) => error.to_string(),
            };
            Ok(None)
        });
        waited.with_context(|| {
            let logs = ["routed", "policy-agent"].map(|d| tail(&self.logs.join(format!("{d}.log")), 10));
            format!("{last}\n{}", logs.join("\n"))
        })
    }

    /// What both daemons answer to `podwayctl status --node -o json`.
    pub fn status(&self) -> Result<(RoutedStatus, PolicyStatus)> {
        let output = self.podwayctl(&["status", "--node", "-o", "json"], "")?;
        // Exit code 4 says that the node is not ready; the status itself says why.
        if !matches!(output.code, Some(0 | 4)) || output.stdout.trim().is_empty() {
            bail!("podwayctl status: {}", output.stderr.trim());
        }
        let status: Value =
            serde_json::from_str(&output.stdout).context("output of podwayctl status -o json")?;
        let answer = |daemon: &str| {
            let asked = &status["node"][daemon];
            asked.get("answer").cloned().with_context(|| format!("{daemon} does not answer: {asked}"))
        };
        Ok((serde_json::from_value(answer("routed")?)?, serde_json::from_value(answer("policyAgent")?)?))
    }

    /// What `podwayctl bgp peers -o json` lists.
    pub fn bgp_peers(&self) -> Result<Vec<BgpPeerStatus>> {
        let text = self.podwayctl_ok(&["bgp", "peers", "-o", "json"], "")?;
        serde_json::from_str(&text).context("output of podwayctl bgp peers -o json")
    }

    /// `podwayctl apply -f -` with these documents.
    pub fn apply(&self, documents: &str) -> Result<()> {
        self.podwayctl_ok(&["apply", "-f", "-"], documents).map(drop)
    }

    /// `podwayctl delete -f -` with these documents.
    pub fn delete(&self, documents: &str) -> Result<()> {
        self.podwayctl_ok(&["delete", "-f", "-"], documents).map(drop)
    }

    /// Runs `podwayctl` on the node.
    pub fn podwayctl(&self, args: &[&str], stdin: &str) -> Result<PodwayctlOutput> {
        let mut command = Command::new(&self.programs.podwayctl);
        command.args(args);
        let output = self.place.output(command, stdin.as_bytes())?;
        Ok(PodwayctlOutput {
            code: output.status.code(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }

    /// Runs `podwayctl` on the node; an exit code other than 0 is an error.
    pub fn podwayctl_ok(&self, args: &[&str], stdin: &str) -> Result<String> {
        let output = self.podwayctl(args, stdin)?;
        if output.code != Some(0) {
            bail!("podwayctl {}: exit code {:?}: {}", args.join(" "), output.code, output.stderr.trim());
        }
        Ok(output.stdout)
    }

    /// Runs one of the daemons to its end, with its configuration file as given, and returns exit code and log.
    pub fn run_daemon_to_end(&self, daemon: &str, patience: Duration) -> Result<(Option<i32>, String)> {
        let before = std::fs::read_to_string(self.logs.join(format!("{daemon}.log"))).unwrap_or_default();
        let mut process = self.spawn_daemon(daemon)?;
        let status = process.wait_exit(patience)?;
        let log = process.log();
        Ok((status.code(), log.strip_prefix(before.as_str()).unwrap_or(&log).to_owned()))
    }
}
