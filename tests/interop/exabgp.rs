//! ExaBGP: it keeps no table, so what it heard is read from its events.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::Command;
use std::rc::Rc;

use anyhow::{Context as _, Result};
use podway_testkit::lab::find_tool;
use podway_testkit::process::{Process, tail};
use serde_json::Value;

use crate::rig::{self, KEY, Link, MARK, Route, Side, Speaker, What};

pub(crate) struct Exabgp {
    link: Rc<Link>,
    place: usize,
    side: Side,
    python: PathBuf,
    packages: PathBuf,
    process: Option<Process>,
}

impl Exabgp {
    pub(crate) fn new(link: &Rc<Link>, place: usize, side: Side) -> Option<Self> {
        let packages = rig::program("exabgp", "usr/lib/python3/dist-packages")?;
        let python = find_tool("python3")?;
        Some(Self { link: Rc::clone(link), place, side, python, packages, process: None })
    }

    fn config(&self, script: &str) -> String {
        let Side { number, v4, v6, asn, .. } = &self.side;
        let mut text = format!("process watch {{\n run {script};\n encoder json;\n}}\n");
        let marks = format!("community [{MARK}:{number}] large-community [{MARK}:0:{number}]");
        for peer in &self.side.peers {
            let paths = if self.side.add_path { "add-path send/receive;" } else { "" };
            let _ = writeln!(
                text,
                "neighbor {} {{\n router-id {v4}; local-address {v4}; local-as {asn}; peer-as {}; hold-time 9;\n md5-password \"{KEY}\";\n\
                 capability {{ graceful-restart 60; route-refresh enable; asn4 enable; {paths} }}\n\
                 family {{ ipv4 unicast; ipv6 unicast; }}\n\
                 api {{ processes [ watch ]; neighbor-changes; receive {{ parsed; update; }} }}\n static {{",
                peer.v4, peer.asn
            );
            for prefix in self.side.prefixes4() {
                let _ = writeln!(text, "  route {prefix} next-hop {v4} {marks};");
            }
            let _ = writeln!(text, "  route {} next-hop {v6} {marks};\n }}\n}}", self.side.prefix6());
        }
        text
    }

    /// What came from a neighbour, in order.
    fn events(&self) -> Vec<Value> {
        let text = std::fs::read_to_string(self.side.dir.join("events")).unwrap_or_default();
        text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }
}

impl Speaker for Exabgp {
    fn name(&self) -> &'static str {
        "exabgp"
    }

    fn start(&mut self, _again: bool) -> Result<()> {
        let (events, orders) = (self.side.dir.join("events"), self.side.dir.join("orders"));
        let _ = std::fs::remove_file(&events);
        let script = format!(
            "#!{python}\nimport os, sys, threading\norders, events = {orders:?}, {events:?}\n\
             if not os.path.exists(orders):\n    os.mkfifo(orders)\n\
             def pass_on():\n    while True:\n        with open(orders) as fifo:\n            \
             sys.stdout.write(fifo.read())\n            sys.stdout.flush()\n\
             threading.Thread(target=pass_on, daemon=True).start()\n\
             with open(events, 'a', buffering=1) as out:\n    for line in sys.stdin:\n        out.write(line)\n\
             os._exit(0)\n",
            python = self.python.display(),
            orders = orders.display().to_string(),
            events = events.display().to_string(),
        );
        let script = self.side.write("watch.py", &script)?;
        std::fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
        let config = self.side.write("exabgp.conf", &self.config(&script.display().to_string()))?;
        let mut command = Command::new(&self.python);
        command.args(["-m", "exabgp"]).arg(config).env("PYTHONPATH", &self.packages);
        command
            .env("exabgp.daemon.user", "root")
            .env("exabgp.log.destination", "stderr")
            .env("exabgp.api.ack", "false");
        command
            .env("exabgp.tcp.bind", self.side.v4.to_string())
            .env("exabgp.tcp.port", "179")
            .env("exabgp.api.cli", "false");
        let log = self.side.dir.join("log");
        self.process = Some(Process::start(&self.link.places[self.place].0, "exabgp", command, &log)?);
        Ok(())
    }

    fn kill(&mut self) -> Result<()> {
        self.process.take().context("it does not run")?.kill()
    }

    fn is_up(&mut self, peer: Ipv4Addr) -> Result<bool> {
        if let Some(process) = &mut self.process {
            process.ensure_running()?;
        }
        let mut states = self.events().into_iter().filter(|event| {
            event["type"] == "state" && event["neighbor"]["address"]["peer"] == peer.to_string()
        });
        Ok(states.next_back().is_some_and(|event| event["neighbor"]["state"] == "up"))
    }

    fn routes(&mut self) -> Result<Vec<Route>> {
        let mut routes: BTreeMap<(String, String), Route> = BTreeMap::new();
        for event in self.events() {
            let update = &event["neighbor"]["message"]["update"];
            let attributes = &update["attribute"];
            let path = rig::words(&attributes["as-path"]).join(" ");
            let pairs = |key: &str| {
                let all = attributes[key].as_array().cloned().unwrap_or_default();
                all.iter().map(|one| rig::words(one).join(":")).collect::<Vec<String>>()
            };
            let communities = [pairs("community"), pairs("large-community")].concat();
            for (_, hops) in update["announce"].as_object().into_iter().flatten() {
                for (hop, prefixes) in hops.as_object().into_iter().flatten() {
                    for one in prefixes.as_array().into_iter().flatten() {
                        let prefix = one["nlri"].as_str().unwrap_or("").to_owned();
                        let id = one["path-information"].to_string();
                        let route = Route {
                            prefix: prefix.clone(),
                            next_hop: hop.clone(),
                            as_path: path.clone(),
                            communities: communities.clone(),
                        };
                        routes.insert((prefix, id), route);
                    }
                }
            }
            for (_, prefixes) in update["withdraw"].as_object().into_iter().flatten() {
                for one in prefixes.as_array().into_iter().flatten() {
                    let prefix = one["nlri"].as_str().unwrap_or("").to_owned();
                    routes.remove(&(prefix, one["path-information"].to_string()));
                }
            }
        }
        Ok(routes.into_values().collect())
    }

    fn refresh(&mut self, peer: Ipv4Addr) -> Result<()> {
        let order = format!("neighbor {peer} announce route-refresh ipv4 unicast\n");
        std::fs::write(self.side.dir.join("orders"), order).context("tell exabgp")
    }

    fn updates(&mut self, _peer: Ipv4Addr) -> Result<u64> {
        Ok(self.events().iter().filter(|event| event["type"] == "update").count() as u64)
    }

    fn bfd_is_up(&mut self, _peer: Ipv4Addr) -> Result<bool> {
        Ok(false)
    }

    fn lacks(&self, what: What) -> Option<&'static str> {
        match what {
            What::Bfd => Some("no BFD (its README: no FIB, no BFD)"),
            What::Reflect | What::AddPathSend => Some("passes no route on (its README: it keeps no table)"),
            What::Helper => Some("keeps no route over a restart (its README: it keeps no table)"),
            _ => None,
        }
    }

    fn log(&self) -> String {
        tail(&self.side.dir.join("log"), 30)
    }
}
