//! FRR: zebra, bfdd and bgpd.

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

pub(crate) struct Frr {
    link: Rc<Link>,
    place: usize,
    side: Side,
    root: PathBuf,
    others: Vec<Process>,
    bgpd: Option<Process>,
}

impl Frr {
    pub(crate) fn new(link: &Rc<Link>, place: usize, side: Side) -> Result<Option<Self>> {
        let Some(root) = rig::program("frr", "") else { return Ok(None) };
        let here = &link.places[place].0;
        mounts::make_private(here, &["/run/frr", "/etc/frr"])?;
        let open = || std::fs::write("/etc/frr/vtysh.conf", "username root nopassword\n");
        here.enter(open)?.context("write vtysh.conf")?;
        // The package's users, which nothing was installed for.
        for (file, line) in [
            ("/etc/passwd", "frr:x:990:990::/:/bin/false"),
            ("/etc/group", "frr:x:990:root\nfrrvty:x:991:root"),
        ] {
            let text = std::fs::read_to_string(file).with_context(|| format!("read {file}"))?;
            mounts::cover_file(here, file, &format!("{}\n{line}\n", text.trim_end()))?;
        }
        Ok(Some(Self { link: Rc::clone(link), place, side, root, others: vec![], bgpd: None }))
    }

    fn config(&self) -> String {
        let Side { number, v4, v6, asn, .. } = &self.side;
        // Route maps come first: a network that is read before its map is not announced.
        let mut text = format!(
            "log stdout\ndebug bgp neighbor-events\n\
             route-map OWN permit 10\n set community {MARK}:{number}\n set large-community {MARK}:0:{number}\nexit\n\
             ipv6 prefix-list OWN6 seq 5 permit {}\n\
             route-map NEXTHOP permit 10\n match ipv6 address prefix-list OWN6\n set ipv6 next-hop global {v6}\nexit\n\
             route-map NEXTHOP permit 20\nexit\n\
             router bgp {asn}\n bgp router-id {v4}\n no bgp ebgp-requires-policy\n\
             no bgp default ipv4-unicast\n no bgp network import-check\n bgp graceful-restart\n \
             bgp graceful-restart preserve-fw-state\n bgp graceful-restart select-defer-time 20\n \
             bgp graceful-restart stalepath-time 60\n",
            self.side.prefix6()
        );
        for peer in &self.side.peers {
            let _ = write!(
                text,
                " neighbor {0} remote-as {1}\n neighbor {0} password {KEY}\n neighbor {0} timers 3 9\n \
                 neighbor {0} timers connect 1\n neighbor {0} advertisement-interval 0\n",
                peer.v4, peer.asn
            );
            if self.side.bfd {
                let _ = writeln!(text, " neighbor {0} bfd\n neighbor {0} bfd 5 100 100", peer.v4);
            }
        }
        for family in ["ipv4", "ipv6"] {
            let _ = writeln!(text, " address-family {family} unicast");
            let own = if family == "ipv4" { self.side.prefixes4() } else { vec![self.side.prefix6()] };
            for prefix in own {
                let _ = writeln!(text, "  network {prefix} route-map OWN");
            }
            for peer in &self.side.peers {
                let _ = writeln!(text, "  neighbor {} activate", peer.v4);
                if peer.role == Role::Client {
                    let _ = writeln!(text, "  neighbor {} route-reflector-client", peer.v4);
                }
                if self.side.add_path {
                    let _ = writeln!(text, "  neighbor {} addpath-tx-all-paths", peer.v4);
                }
                if family == "ipv6" {
                    let _ = writeln!(text, "  neighbor {} route-map NEXTHOP out", peer.v4);
                }
            }
            text.push_str(" exit-address-family\n");
        }
        text.push_str("exit\n");
        text
    }

    fn libraries(&self) -> String {
        let given = std::env::var("LD_LIBRARY_PATH").unwrap_or_default();
        format!("{}:{given}", self.root.join("usr/lib/x86_64-linux-gnu/frr").display())
    }

    fn daemon(&self, name: &str, arguments: &[&str]) -> Result<Process> {
        let mut command = Command::new(self.root.join("usr/lib/frr").join(name));
        command.args(["-u", "root", "-g", "root", "-A", "127.0.0.1", "--log", "stdout"]);
        command.args(arguments).env("LD_LIBRARY_PATH", self.libraries());
        Process::start(
            &self.link.places[self.place].0,
            name,
            command,
            &self.side.dir.join(format!("{name}.log")),
        )
    }

    fn ask(&self, question: &str) -> Result<Value> {
        let mut command = Command::new(self.root.join("usr/bin/vtysh"));
        command.args(["-d", "bgpd", "-c", question]);
        if question.contains("bfd") {
            command = Command::new(self.root.join("usr/bin/vtysh"));
            command.args(["-d", "bfdd", "-c", question]);
        }
        command.env("LD_LIBRARY_PATH", self.libraries());
        let output = self.link.places[self.place].0.output(command, b"")?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        if question.ends_with("json") {
            return serde_json::from_str(&text).with_context(|| {
                format!("vtysh {question:?}: {text} {}", String::from_utf8_lossy(&output.stderr))
            });
        }
        Ok(Value::String(text))
    }
}

impl Speaker for Frr {
    fn name(&self) -> &'static str {
        "frr"
    }

    fn start(&mut self, again: bool) -> Result<()> {
        let config = self.side.write("bgpd.conf", &self.config())?;
        let nothing = self.side.write("nothing.conf", "")?.display().to_string();
        if !again {
            self.others.push(self.daemon("zebra", &["-f", &nothing])?);
            let socket = std::path::Path::new("/run/frr/zserv.api");
            let place = &self.link.places[self.place].0;
            rig::until("zebra listens", || place.enter(|| Ok(socket.exists()))?)?;
            self.others.push(self.daemon("bfdd", &["-f", &nothing])?);
        }
        let own = self.side.v4.to_string();
        self.bgpd = Some(self.daemon("bgpd", &["-n", "-f", &config.display().to_string(), "-l", &own])?);
        Ok(())
    }

    fn kill(&mut self) -> Result<()> {
        self.bgpd.take().context("it does not run")?.kill()
    }

    fn is_up(&mut self, peer: Ipv4Addr) -> Result<bool> {
        if let Some(process) = &mut self.bgpd {
            process.ensure_running()?;
        }
        let answer = self.ask(&format!("show bgp neighbors {peer} json"))?;
        Ok(answer[peer.to_string()]["bgpState"] == "Established")
    }

    fn routes(&mut self) -> Result<Vec<Route>> {
        let mut routes = vec![];
        for family in ["ipv4", "ipv6"] {
            let table = self.ask(&format!("show bgp {family} unicast json"))?;
            for prefix in table["routes"].as_object().into_iter().flat_map(|routes| routes.keys()) {
                let one = self.ask(&format!("show bgp {family} unicast {prefix} json"))?;
                for path in one["paths"].as_array().into_iter().flatten() {
                    let hops = path["nexthops"].as_array().cloned().unwrap_or_default();
                    let hop = hops
                        .iter()
                        .find(|hop| hop["scope"] != "link-local")
                        .map_or("", |hop| hop["ip"].as_str().unwrap_or(""));
                    let list = |key: &str| rig::words(&path[key]["list"]);
                    routes.push(Route {
                        prefix: prefix.clone(),
                        next_hop: hop.to_owned(),
                        as_path: path["aspath"]["string"].as_str().unwrap_or("").replace("Local", ""),
                        communities: [list("community"), list("largeCommunity")].concat(),
                    });
                }
            }
        }
        Ok(routes)
    }

    fn refresh(&mut self, peer: Ipv4Addr) -> Result<()> {
        self.ask(&format!("clear bgp {peer} soft in")).map(drop)
    }

    fn updates(&mut self, peer: Ipv4Addr) -> Result<u64> {
        let answer = self.ask(&format!("show bgp neighbors {peer} json"))?;
        answer[peer.to_string()]["messageStats"]["updatesRecv"].as_u64().context("no count of updates")
    }

    fn bfd_is_up(&mut self, peer: Ipv4Addr) -> Result<bool> {
        let answer = self.ask("show bfd peers json")?;
        let peers = answer.as_array().cloned().unwrap_or_default();
        Ok(peers.iter().any(|one| one["peer"] == peer.to_string() && one["status"] == "up"))
    }

    fn lacks(&self, _what: What) -> Option<&'static str> {
        None
    }

    fn log(&self) -> String {
        tail(&self.side.dir.join("bgpd.log"), 30)
    }
}
