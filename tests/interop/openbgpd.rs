//! OpenBGPD.

use std::fmt::Write as _;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::Command;
use std::rc::Rc;

use anyhow::{Context as _, Result};
use podway_testkit::mounts;
use podway_testkit::process::{Process, tail};
use serde_json::Value;

use crate::rig::{self, KEY, Link, MARK, Role, Route, Side, Speaker, What};

pub(crate) struct Openbgpd {
    link: Rc<Link>,
    place: usize,
    side: Side,
    root: PathBuf,
    process: Option<Process>,
}

impl Openbgpd {
    pub(crate) fn new(link: &Rc<Link>, place: usize, side: Side) -> Result<Option<Self>> {
        let Some(root) = rig::program("openbgpd", "usr/sbin") else { return Ok(None) };
        let here = &link.places[place].0;
        mounts::make_private(here, &["/run/openbgpd"])?;
        for (file, line) in [
            ("/etc/passwd", "_openbgpd:x:990:990::/run/openbgpd:/bin/false"),
            ("/etc/group", "_openbgpd:x:990:"),
        ] {
            let text = std::fs::read_to_string(file).with_context(|| format!("read {file}"))?;
            mounts::cover_file(here, file, &format!("{}\n{line}\n", text.trim_end()))?;
        }
        Ok(Some(Self { link: Rc::clone(link), place, side, root, process: None }))
    }

    fn config(&self) -> String {
        let Side { number, v4, v6, asn, .. } = &self.side;
        let mut text = format!(
            "AS {asn}\nrouter-id {v4}\nlisten on {v4}\nfib-update no\nnexthop qualify via default\nholdtime 9\nconnect-retry 1\n"
        );
        let marks = format!("community {MARK}:{number} large-community {MARK}:0:{number}");
        for prefix in self.side.prefixes4() {
            let _ = writeln!(text, "network {prefix} set {{ {marks} nexthop {v4} }}");
        }
        let _ = writeln!(text, "network {} set {{ {marks} nexthop {v6} }}", self.side.prefix6());
        for peer in &self.side.peers {
            let reflects = if peer.role == Role::Client { "route-reflector" } else { "" };
            let paths = if self.side.add_path {
                "announce add-path recv yes\nannounce add-path send all"
            } else {
                ""
            };
            let _ = writeln!(
                text,
                "neighbor {} {{\nremote-as {}\nlocal-address {v4}\ntcp md5sig password \"{KEY}\"\nannounce IPv4 unicast\n\
                 announce IPv6 unicast\nannounce restart yes\nannounce enhanced refresh yes\n{reflects}\n{paths}\n}}",
                peer.v4, peer.asn
            );
        }
        let _ = write!(
            text,
            "allow from any\nallow to any\nmatch to any prefix {} set nexthop {v6}\n",
            self.side.prefix6()
        );
        text
    }

    fn ask(&self, arguments: &[&str]) -> Result<Value> {
        let arguments: Vec<&str> = ["-j"].iter().chain(arguments).copied().collect();
        rig::ask_json(&self.link.places[self.place].0, &self.root.join("bgpctl"), &arguments)
    }

    fn neighbour(&self, peer: Ipv4Addr) -> Result<Value> {
        let answer = self.ask(&["show", "neighbor", &peer.to_string()])?;
        Ok(answer["neighbors"][0].clone())
    }
}

impl Speaker for Openbgpd {
    fn name(&self) -> &'static str {
        "openbgpd"
    }

    fn start(&mut self, _again: bool) -> Result<()> {
        let config = self.side.write("bgpd.conf", &self.config())?;
        std::fs::set_permissions(&config, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
        let mut command = Command::new(self.root.join("bgpd"));
        command.arg("-d").arg("-v").arg("-f").arg(config);
        let log = self.side.dir.join("log");
        self.process = Some(Process::start(&self.link.places[self.place].0, "openbgpd", command, &log)?);
        Ok(())
    }

    fn kill(&mut self) -> Result<()> {
        // Its other processes end with it, by their closed pipes.
        self.process.take().context("it does not run")?.kill()
    }

    fn is_up(&mut self, peer: Ipv4Addr) -> Result<bool> {
        if let Some(process) = &mut self.process {
            process.ensure_running()?;
        }
        Ok(self.neighbour(peer)?["state"] == "Established")
    }

    fn routes(&mut self) -> Result<Vec<Route>> {
        let answer = self.ask(&["show", "rib", "detail"])?;
        let route = |one: &Value| {
            let communities =
                [rig::words(&one["communities"]), rig::words(&one["large_communities"])].concat();
            Route {
                prefix: one["prefix"].as_str().unwrap_or("").to_owned(),
                next_hop: one["exit_nexthop"].as_str().unwrap_or("").to_owned(),
                as_path: one["aspath"].as_str().unwrap_or("").to_owned(),
                communities,
            }
        };
        Ok(answer["rib"].as_array().into_iter().flatten().map(route).collect())
    }

    fn refresh(&mut self, peer: Ipv4Addr) -> Result<()> {
        let arguments = ["neighbor", &peer.to_string(), "refresh"];
        rig::ask(&self.link.places[self.place].0, &self.root.join("bgpctl"), &arguments).map(drop)
    }

    fn updates(&mut self, peer: Ipv4Addr) -> Result<u64> {
        let neighbour = self.neighbour(peer)?;
        neighbour["stats"]["message"]["received"]["updates"]
            .as_u64()
            .with_context(|| format!("no count of updates: {neighbour}"))
    }

    fn bfd_is_up(&mut self, _peer: Ipv4Addr) -> Result<bool> {
        Ok(false)
    }

    fn lacks(&self, what: What) -> Option<&'static str> {
        match what {
            What::Bfd => Some("no BFD (bgpd.conf(5) has no such option)"),
            What::Refresh => Some("7.7 ignores ROUTE-REFRESH (openbgpd-portable issue 46)"),
            What::Restart => {
                Some("restarts without the R and F bits (bgpd.conf(5), announce restart: End-of-RIB only)")
            }
            What::V6 if self.side.peers[0].role == Role::External => Some(
                "7.7 tells ::1 as IPv6 next hop over an IPv4 session with another AS (bird_and_openbgpd::as_neighbour_outside: to BIRD too)",
            ),
            _ => None,
        }
    }

    fn log(&self) -> String {
        tail(&self.side.dir.join("log"), 30)
    }
}
