//! GoBGP.

use std::fmt::Write as _;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::Command;
use std::rc::Rc;

use anyhow::{Context as _, Result};
use podway_testkit::lab::find_tool;
use podway_testkit::process::{Process, tail};
use serde_json::Value;

use crate::rig::{self, KEY, Link, MARK, Role, Route, Side, Speaker, What};

/// `SESSION_STATE_ESTABLISHED` of its API.
const ESTABLISHED: u64 = 6;

pub(crate) struct Gobgp {
    link: Rc<Link>,
    place: usize,
    side: Side,
    programs: [PathBuf; 2],
    process: Option<Process>,
}

impl Gobgp {
    pub(crate) fn new(link: &Rc<Link>, place: usize, side: Side) -> Option<Self> {
        let programs = [find_tool("gobgpd")?, find_tool("gobgp")?];
        Some(Self { link: Rc::clone(link), place, side, programs, process: None })
    }

    fn config(&self) -> String {
        let Side { v4, asn, .. } = &self.side;
        let mut text = format!(
            "[global.config]\nas = {asn}\nrouter-id = \"{v4}\"\nport = 179\nlocal-address-list = [\"{v4}\"]\n"
        );
        for peer in &self.side.peers {
            let _ = write!(
                text,
                "[[neighbors]]\n[neighbors.config]\nneighbor-address = \"{}\"\npeer-as = {}\nauth-password = \"{KEY}\"\n\
                 [neighbors.transport.config]\nlocal-address = \"{v4}\"\n\
                 [neighbors.timers.config]\nconnect-retry = 5\nhold-time = 9\nkeepalive-interval = 3\nidle-hold-time-after-reset = 1\n\
                 [neighbors.graceful-restart.config]\nenabled = true\nrestart-time = 60\ndeferral-time = 20\n",
                peer.v4, peer.asn
            );
            if peer.role == Role::Client {
                let _ = writeln!(
                    text,
                    "[neighbors.route-reflector.config]\nroute-reflector-client = true\nroute-reflector-cluster-id = \"{v4}\""
                );
            }
            for family in ["ipv4-unicast", "ipv6-unicast"] {
                let _ = writeln!(
                    text,
                    "[[neighbors.afi-safis]]\n[neighbors.afi-safis.config]\nafi-safi-name = \"{family}\"\n\
                     [neighbors.afi-safis.mp-graceful-restart.config]\nenabled = true"
                );
                if self.side.add_path {
                    text.push_str("[neighbors.afi-safis.add-paths.config]\nreceive = true\nsend-max = 4\n");
                }
            }
        }
        text
    }

    fn ask(&self, arguments: &[&str]) -> Result<String> {
        rig::ask(&self.link.places[self.place].0, &self.programs[1], arguments)
    }

    fn neighbour(&self, peer: Ipv4Addr) -> Result<Value> {
        let text = self.ask(&["-j", "neighbor", &peer.to_string()])?;
        serde_json::from_str(&text).with_context(|| text)
    }

    fn announce(&self) -> Result<()> {
        let Side { number, v4, v6, .. } = &self.side;
        let v4_routes = self.side.prefixes4().into_iter().map(|prefix| (prefix, v4.to_string(), "ipv4"));
        let v6_route = (self.side.prefix6(), v6.to_string(), "ipv6");
        for (prefix, hop, family) in v4_routes.chain([v6_route]) {
            let (community, large) = (format!("{MARK}:{number}"), format!("{MARK}:0:{number}"));
            let arguments = [
                "global",
                "rib",
                "add",
                &prefix,
                "nexthop",
                &hop,
                "community",
                &community,
                "large-community",
                &large,
                "-a",
                family,
            ];
            rig::until("the route is added", || self.ask(&arguments).map(|_| true))?;
        }
        Ok(())
    }
}

impl Speaker for Gobgp {
    fn name(&self) -> &'static str {
        "gobgp"
    }

    fn start(&mut self, again: bool) -> Result<()> {
        let config = self.side.write("gobgpd.toml", &self.config())?;
        let mut command = Command::new(&self.programs[0]);
        command.arg("-f").arg(config).args(["--log-level", "info", "--api-hosts", "127.0.0.1:50051"]);
        command.arg("--pprof-disable");
        if again {
            command.arg("-r");
        }
        let log = self.side.dir.join("log");
        self.process = Some(Process::start(&self.link.places[self.place].0, "gobgpd", command, &log)?);
        self.announce()
    }

    fn kill(&mut self) -> Result<()> {
        self.process.take().context("it does not run")?.kill()
    }

    fn is_up(&mut self, peer: Ipv4Addr) -> Result<bool> {
        if let Some(process) = &mut self.process {
            process.ensure_running()?;
        }
        Ok(self.neighbour(peer)?["state"]["session_state"].as_u64() == Some(ESTABLISHED))
    }

    fn routes(&mut self) -> Result<Vec<Route>> {
        let mut routes = vec![];
        for family in ["ipv4", "ipv6"] {
            let text = self.ask(&["-j", "global", "rib", "-a", family])?;
            let table: Value = serde_json::from_str(&text).with_context(|| text)?;
            for (prefix, paths) in table.as_object().into_iter().flatten() {
                for path in paths.as_array().into_iter().flatten() {
                    routes.push(route(prefix, path));
                }
            }
        }
        Ok(routes)
    }

    fn refresh(&mut self, peer: Ipv4Addr) -> Result<()> {
        self.ask(&["neighbor", &peer.to_string(), "softresetin"]).map(drop)
    }

    fn updates(&mut self, peer: Ipv4Addr) -> Result<u64> {
        self.neighbour(peer)?["state"]["messages"]["received"]["update"]
            .as_u64()
            .context("no count of updates")
    }

    fn bfd_is_up(&mut self, _peer: Ipv4Addr) -> Result<bool> {
        Ok(false)
    }

    fn lacks(&self, what: What) -> Option<&'static str> {
        match what {
            What::Bfd => Some("no BFD before 4.0 (its docs/sources list none)"),
            What::Ask => Some(
                "judges its own adj-RIB-in again, and sends no ROUTE-REFRESH (softResetIn of pkg/server/server.go)",
            ),
            _ => None,
        }
    }

    fn log(&self) -> String {
        tail(&self.side.dir.join("log"), 30)
    }
}

/// A path of its JSON: attributes by their type numbers.
fn route(prefix: &str, path: &Value) -> Route {
    let mut route = Route {
        prefix: prefix.to_owned(),
        next_hop: String::new(),
        as_path: String::new(),
        communities: vec![],
    };
    for attribute in path["attrs"].as_array().into_iter().flatten() {
        match attribute["type"].as_u64() {
            Some(2) => {
                let segments = attribute["as_paths"].as_array().cloned().unwrap_or_default();
                let asns = segments.iter().flat_map(|segment| rig::words(&segment["asns"]));
                route.as_path = asns.collect::<Vec<_>>().join(" ");
            }
            Some(3 | 14) => {
                if let Some(hop) = attribute["nexthop"].as_str() {
                    route.next_hop = hop.to_owned();
                }
            }
            Some(8) => {
                let numbers = attribute["communities"].as_array().cloned().unwrap_or_default();
                let text = |number: &Value| number.as_u64().map(|n| format!("{}:{}", n >> 16, n & 0xffff));
                route.communities.extend(numbers.iter().filter_map(text));
            }
            Some(32) => {
                let all = attribute["value"].as_array().cloned().unwrap_or_default();
                let text =
                    |one: &Value| format!("{}:{}:{}", one["ASN"], one["LocalData1"], one["LocalData2"]);
                route.communities.extend(all.iter().map(text));
            }
            _ => {}
        }
    }
    route
}
