//! The examples of `deploy/speaker.md`, run as written: the page's files in their places, the programs that they are for,
//! what the page tells an operator to type, and its answers. Beside them what the page promises of `routed speaker` as a
//! process: bad configurations, SIGHUP, `kill -9`.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use podway_daemon::client::Client;
use podway_model::socket::{BgpPeerStatus, BgpRouteStatus, RoutedReply, RoutedRequest};
use podway_testkit::lab::{Programs, find_tool};
use podway_testkit::mounts;
use podway_testkit::place::Place;
use podway_testkit::process::{Process, tail};
use podway_testkit::root_or_skip;

use crate::page::{Section, matches};
use crate::rig::{self, LIMIT, Link, until};
use crate::{MISSING, say};

const CONFIG: &str = "/etc/podway/speaker.yaml";
const BIRD: &str = "/etc/bird/bird.conf";
const FRR: &str = "/etc/frr/frr.conf";
/// Where the page has the speakers answer.
const SOCKET: &str = "/run/podway/speaker.sock";
/// Folders that a machine has for itself.
const PRIVATE: [&str; 7] =
    ["/etc/podway", "/run/podway", "/var/lib/podway", "/etc/bird", "/run/bird", "/etc/frr", "/run/frr"];

/// The machines of a section.
pub(crate) struct Scene {
    link: Rc<Link>,
    pub(crate) section: Section,
    frr: Option<PathBuf>,
    /// By machine: what runs there.
    pub(crate) running: BTreeMap<String, Vec<Process>>,
}

impl Scene {
    /// Machines with the files of the page on them; nothing runs. None: a program is not there.
    fn new(test: &str, heading: &str) -> Result<Option<Self>> {
        let section = Section::read(heading)?;
        let needs = |path: &str| section.files.iter().any(|file| file.path == path);
        let frr = rig::program("frr", "");
        if (needs(FRR) && frr.is_none()) || (needs(BIRD) && find_tool("bird").is_none()) {
            return Ok(None);
        }
        let link = Rc::new(Link::new(test, section.machines.len())?);
        for ((_, address), (place, ..)) in section.machines.iter().zip(&link.places) {
            place.ip(&format!("addr add {address}/16 dev eth0"))?;
            mounts::make_private(place, &PRIVATE)?;
        }
        let scene = Self { link, section, frr, running: BTreeMap::new() };
        for file in &scene.section.files {
            scene.put(&file.machine, &file.path, &file.text)?;
        }
        Ok(Some(scene))
    }

    pub(crate) fn place(&self, machine: &str) -> Result<&Place> {
        let at = self.section.machines.iter().position(|(name, _)| name == machine);
        Ok(&self.link.places[at.with_context(|| format!("who is {machine}?"))?].0)
    }

    pub(crate) fn put(&self, machine: &str, path: &str, text: &str) -> Result<()> {
        let written = self.place(machine)?.enter(|| std::fs::write(path, text))?;
        written.with_context(|| format!("write {path} on {machine}"))
    }

    pub(crate) fn log(&self, machine: &str) -> PathBuf {
        self.link.dir.join(format!("{machine}.log"))
    }

    /// A program as an operator starts it: those that were only unpacked find their libraries.
    fn command(&self, program: impl AsRef<Path>) -> Result<Command> {
        let ours = Programs::find()?.routed.parent().context("programs lie in a folder")?.to_owned();
        let mut paths = vec![ours];
        let mut libraries = std::env::var_os("LD_LIBRARY_PATH").unwrap_or_default();
        if let Some(frr) = &self.frr {
            paths.extend([frr.join("usr/bin"), frr.join("usr/lib/frr")]);
            let mut first = OsString::from(frr.join("usr/lib/x86_64-linux-gnu/frr"));
            first.push(":");
            first.push(libraries);
            libraries = first;
        }
        paths.extend(std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()));
        let mut command = Command::new("/usr/bin/env");
        command.env("PATH", std::env::join_paths(paths)?).env("LD_LIBRARY_PATH", libraries);
        command.arg(program.as_ref());
        Ok(command)
    }

    pub(crate) fn begin(&mut self, machine: &str, program: &str, arguments: &[&str]) -> Result<()> {
        let mut command = self.command(program)?;
        command.args(arguments);
        let process = Process::start(self.place(machine)?, program, command, &self.log(machine))?;
        self.running.entry(machine.to_owned()).or_default().push(process);
        Ok(())
    }

    /// Starts what the machine's file is for.
    pub(crate) fn start(&mut self, machine: &str) -> Result<()> {
        match self.section.file(machine)?.path.as_str() {
            CONFIG => self.begin(machine, "routed", &["speaker", "--config", CONFIG]),
            BIRD => self.begin(machine, "bird", &["-f", "-c", BIRD, "-s", "/run/bird/bird.ctl"]),
            FRR => self.start_frr(machine),
            other => bail!("nobody knows what {other} is for"),
        }
    }

    /// As the package's service does: the daemons, and then the one file for all of them.
    fn start_frr(&mut self, machine: &str) -> Result<()> {
        let place = self.place(machine)?;
        rig::add_users(place, "frr:x:990:990::/:/bin/false", "frr:x:990:root\nfrrvty:x:991:root")?;
        self.put(machine, "/etc/frr/vtysh.conf", "username root nopassword\n")?;
        for daemon in ["zebra", "staticd", "bfdd", "bgpd"] {
            self.begin(machine, daemon, &["-u", "root", "-g", "root", "-A", "127.0.0.1", "--log", "stdout"])?;
            let (place, socket) = (self.place(machine)?, format!("/run/frr/{daemon}.vty"));
            until(&format!("{daemon} listens"), || place.enter(|| Ok(Path::new(&socket).exists()))?)?;
        }
        let output = self.run(machine, "vtysh -b")?;
        ensure!(output.status.success(), "vtysh -b: {}", text(&output));
        Ok(())
    }

    pub(crate) fn start_all(&mut self) -> Result<()> {
        let machines: Vec<String> = self.section.files.iter().map(|file| file.machine.clone()).collect();
        machines.iter().try_for_each(|machine| self.start(machine))
    }

    /// Types something on a machine.
    pub(crate) fn run(&self, machine: &str, line: &str) -> Result<Output> {
        let mut command = self.command("sh")?;
        command.args(["-c", line]);
        self.place(machine)?.output(command, b"")
    }

    /// Types everything that the page says, until the answers are the page's.
    pub(crate) fn answers_are_the_pages(&self) -> Result<()> {
        ensure!(!self.section.commands.is_empty(), "the page asks for nothing");
        for asked in &self.section.commands {
            let wanted =
                asked.answer.as_deref().with_context(|| format!("{} without an answer", asked.command))?;
            let mut last = String::new();
            let came =
                until(&format!("{} answers {:?} as the page says", asked.machine, asked.command), || {
                    last = text(&self.run(&asked.machine, &asked.command)?);
                    Ok(matches(wanted, &last))
                });
            came.with_context(|| {
                format!("wanted:\n{wanted}\ncame:\n{last}\n{}", tail(&self.log(&asked.machine), 15))
            })?;
        }
        Ok(())
    }

    pub(crate) fn ask(&self, machine: &str, question: &RoutedRequest) -> Result<RoutedReply> {
        let ask = || Ok(Client::connect(Path::new(SOCKET), Duration::from_secs(5))?.ask(question)?);
        self.place(machine)?.enter(ask)?
    }

    fn peers(&self, machine: &str) -> Result<Vec<BgpPeerStatus>> {
        match self.ask(machine, &RoutedRequest::BgpPeers)? {
            RoutedReply::BgpPeers { peers } => Ok(peers),
            other => bail!("an answer to another question: {other:?}"),
        }
    }

    pub(crate) fn routes(&self, machine: &str) -> Result<Vec<BgpRouteStatus>> {
        match self.ask(machine, &RoutedRequest::BgpRoutes)? {
            RoutedReply::BgpRoutes { routes } => Ok(routes),
            other => bail!("an answer to another question: {other:?}"),
        }
    }

    /// What `routed speaker` says of a configuration, and its exit code.
    fn check(&self, machine: &str, options: &str, config: &str) -> Result<(i32, String)> {
        self.put(machine, "/etc/podway/other.yaml", config)?;
        let output =
            self.run(machine, &format!("routed speaker {options} --config /etc/podway/other.yaml"))?;
        Ok((output.status.code().context("it was killed")?, text(&output)))
    }

    /// Has the machine's speaker read its file again.
    fn reload(&self, machine: &str) -> Result<()> {
        let process = self.running.get(machine).and_then(|all| all.first());
        let pid = process.with_context(|| format!("nothing runs on {machine}"))?.pid();
        let output = self.run(machine, &format!("kill -HUP {pid}"))?;
        ensure!(output.status.success(), "{}", text(&output));
        Ok(())
    }

    fn logged(&self, machine: &str, words: &str) -> bool {
        std::fs::read_to_string(self.log(machine)).unwrap_or_default().contains(words)
    }
}

pub(crate) fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[expect(clippy::panic, reason = "a test's way to fail")]
pub(crate) fn run(test: &str, heading: &str, then: impl FnOnce(&mut Scene) -> Result<()>) {
    if !root_or_skip(test) {
        return;
    }
    let ran = Scene::new(test, heading).and_then(|scene| match scene {
        Some(mut scene) => then(&mut scene),
        None => {
            say(&format!("SKIP {test}: {MISSING}"));
            Ok(())
        }
    });
    if let Err(error) = ran {
        panic!("{test}: {error:?}");
    }
}

fn as_written(test: &str, heading: &str) {
    run(test, heading, |scene| {
        scene.start_all()?;
        scene.answers_are_the_pages()
    });
}

#[test]
fn the_mesh_of_the_page_runs_as_written() {
    as_written("the_mesh_of_the_page_runs_as_written", "A mesh");
}

#[test]
fn the_reflectors_of_the_page_run_as_written() {
    as_written("the_reflectors_of_the_page_run_as_written", "Reflectors");
}

#[test]
fn the_top_of_rack_routers_of_the_page_run_as_written() {
    as_written("the_top_of_rack_routers_of_the_page_run_as_written", "A pair of top-of-rack routers");
}

/// A speaker that is killed and comes back costs nobody a route, and has all of its own again.
#[test]
fn a_killed_speaker_of_the_pages_mesh_loses_no_route() {
    run("a_killed_speaker_of_the_pages_mesh_loses_no_route", "A mesh", |scene| {
        scene.start_all()?;
        scene.answers_are_the_pages()?;
        let all = ["10.244.1.0/24", "10.244.2.0/24", "10.244.3.0/24"];
        let has_all = |scene: &Scene, machine: &str| -> Result<bool> {
            let routes = scene.routes(machine)?;
            Ok(all
                .iter()
                .all(|prefix| routes.iter().any(|route| route.best && route.prefix.to_string() == *prefix)))
        };
        let up = |scene: &Scene, machine: &str, peer: &str| -> Result<BgpPeerStatus> {
            let found = scene.peers(machine)?.into_iter().find(|one| one.name == peer);
            found.with_context(|| format!("{machine} has no {peer}"))
        };
        scene.running.get_mut("mesh-b").and_then(|all| all.first_mut()).context("it runs")?.kill()?;
        scene.running.remove("mesh-b");
        for machine in ["mesh-a", "mesh-c"] {
            until(
                &format!("{machine} notices"),
                || Ok(up(scene, machine, "mesh-b")?.state != "Established"),
            )?;
            ensure!(has_all(scene, machine)?, "{machine} lost a route");
            ensure!(up(scene, machine, "mesh-b")?.stale == 1, "its route is kept for its restart");
        }
        scene.start("mesh-b")?;
        for machine in ["mesh-a", "mesh-c"] {
            let mut lost = false;
            until(&format!("{machine} has mesh-b again"), || {
                lost |= !has_all(scene, machine)?;
                let peer = up(scene, machine, "mesh-b")?;
                Ok(peer.state == "Established" && peer.stale == 0)
            })?;
            ensure!(!lost && has_all(scene, machine)?, "{machine} lost a route");
        }
        until("mesh-b has everything", || has_all(scene, "mesh-b"))?;
        scene.answers_are_the_pages()
    });
}

/// SIGHUP: a file with mistakes changes nothing and all of them are named; a good one changes what it changes.
#[test]
fn a_reload_that_fails_leaves_the_running_state() {
    run("a_reload_that_fails_leaves_the_running_state", "A mesh", |scene| {
        scene.start_all()?;
        scene.answers_are_the_pages()?;
        // Not how many UPDATEs came: markers of the end may be on their way still.
        let sessions = |scene: &Scene| -> Result<Vec<(String, String, usize)>> {
            Ok(scene.peers("mesh-a")?.into_iter().map(|one| (one.name, one.state, one.received)).collect())
        };
        let (before, good) = (sessions(scene)?, scene.section.file("mesh-a")?.text.clone());
        let bad = good
            .replace("asn: 64512", "asn: 0")
            .replace("name: mesh-c", "name: mesh-c, options: {export: nobody}")
            .replace("10.244.1.0/24", "10.244.9.0/24");
        scene.put("mesh-a", CONFIG, &bad)?;
        scene.reload("mesh-a")?;
        until("the reload is refused", || {
            Ok(scene.logged("mesh-a", "ignoring the new configuration, the one before stays"))
        })?;
        for part in ["asn: 0", "neighbours[1].export: nobody"] {
            ensure!(scene.logged("mesh-a", part), "{part} is not named");
        }
        // The next answer comes after whatever the reload could have done.
        ensure!(sessions(scene)? == before, "sessions changed: {before:?}, {:?}", sessions(scene)?);
        ensure!(!scene.logged("mesh-a", "BGP session is down"), "a session fell");
        scene.answers_are_the_pages()?;
        // And a good one is followed, with the sessions that stand.
        scene.put("mesh-a", CONFIG, &good.replace("10.244.1.0/24", "10.244.9.0/24"))?;
        scene.reload("mesh-a")?;
        until("mesh-c has the other prefix and not the first", || {
            let routes = scene.routes("mesh-c")?;
            let has = |prefix: &str| routes.iter().any(|route| route.prefix.to_string() == prefix);
            Ok(has("10.244.9.0/24") && !has("10.244.1.0/24"))
        })?;
        let states: Vec<(String, u64)> =
            sessions(scene)?.into_iter().map(|(name, state, _)| (format!("{name} {state}"), 0)).collect();
        let same: Vec<(String, u64)> =
            before.iter().map(|(name, state, _)| (format!("{name} {state}"), 0)).collect();
        ensure!(states == same, "sessions fell: {states:?}");
        ensure!(!scene.logged("mesh-a", "BGP session is down"), "a session fell");
        Ok(())
    });
}

/// Exit code 64 and every mistake by field and value; nothing starts.
#[test]
fn a_bad_configuration_exits_and_names_every_mistake() {
    run("a_bad_configuration_exits_and_names_every_mistake", "A pair of top-of-rack routers", |scene| {
        let good = scene.section.file("reflector")?.text.clone();
        for machine in ["reflector", "node-1"] {
            let text = &scene.section.file(machine)?.text;
            let (code, said) = scene.check(machine, "--check", text)?;
            ensure!(code == 0 && said.is_empty(), "{machine}: {code}: {said}");
        }
        let bad = good
            .replace("asn: 64512", "asn: 0")
            .replace("import: from-rack", "import: from-racks")
            .replace("[internal]", "[external]")
            .replace("bfd: {intervalMs: 100, multiplier: 3}", "md5File: /etc/podway/no-such-key")
            .replace(
                "address: 10.0.0.2, name: rack-b, group: rack",
                "address: 10.0.0.1, name: rack-b, group: racks",
            );
        for options in ["--check", ""] {
            let (code, said) = scene.check("reflector", options, &bad)?;
            ensure!(code == 64, "exit code {code}: {said}");
            for part in [
                "/etc/podway/other.yaml",
                "asn: 0",
                "neighbours[0].import: from-racks",
                "external",
                "neighbours[0].md5File",
                "no-such-key",
                "neighbours[1].address: 10.0.0.1",
                "neighbours[1].group: racks",
            ] {
                ensure!(said.contains(part), "{part} is not named: {said}");
            }
        }
        for (what, text, part) in [
            ("a key that nobody knows", good.replace("nextHop: keep", "nexthop: keep"), "nexthop"),
            ("a hold time below three seconds", format!("{good}holdTime: 2\n"), "hold time 2s"),
            (
                "ranges that overlap",
                good.replace("ranges:\n", "ranges:\n  - {prefix: 10.0.0.0/16, limit: 1}\n"),
                "10.0.0.0/16",
            ),
            ("an empty file", String::new(), "end of input"),
        ] {
            let (code, said) = scene.check("reflector", "", &text)?;
            ensure!(code == 64 && said.contains(part), "{what}: {code}: {said}");
        }
        let output = scene.run("reflector", "routed speaker --config /etc/podway/nothing.yaml")?;
        ensure!(
            output.status.code() == Some(64) && text(&output).contains("nothing.yaml"),
            "{}",
            text(&output)
        );
        // SIGTERM is no failure.
        scene.start("node-1")?;
        until("it answers", || Ok(scene.peers("node-1").is_ok()))?;
        let process = scene.running.get_mut("node-1").and_then(|all| all.first_mut()).context("it runs")?;
        let status = process.terminate(LIMIT)?;
        ensure!(status.success(), "ended by SIGTERM with {status}");
        Ok(())
    });
}
