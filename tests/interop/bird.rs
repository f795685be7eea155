//! BIRD 2.

use std::fmt::Write as _;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::Command;
use std::rc::Rc;

use anyhow::{Context as _, Result};
use podway_testkit::lab::find_tool;
use podway_testkit::process::{Process, tail};

use crate::rig::{self, KEY, Link, MARK, Role, Route, Side, Speaker, What};

pub(crate) struct Bird {
    link: Rc<Link>,
    place: usize,
    side: Side,
    programs: [PathBuf; 2],
    process: Option<Process>,
}

impl Bird {
    pub(crate) fn new(link: &Rc<Link>, place: usize, side: Side) -> Option<Self> {
        let programs = [find_tool("bird")?, find_tool("birdc")?];
        Some(Self { link: Rc::clone(link), place, side, programs, process: None })
    }

    fn config(&self) -> String {
        let Side { number, v4, v6, asn, .. } = &self.side;
        let marks = format!(
            "{{ bgp_community.add(({MARK},{number})); bgp_large_community.add(({MARK},0,{number})); }}"
        );
        let mut text = format!(
            "router id {v4};\nlog stderr all;\ngraceful restart wait 20;\nprotocol device {{}}\n\
             protocol bfd {{ interface \"*\" {{ interval 100 ms; multiplier 5; }}; }}\nprotocol static {{ ipv4;\n"
        );
        for prefix in self.side.prefixes4() {
            let _ = writeln!(text, " route {prefix} blackhole {marks};");
        }
        let _ = writeln!(
            text,
            "}}\nprotocol static {{ ipv6; route {} blackhole {marks}; }}",
            self.side.prefix6()
        );
        for (at, peer) in self.side.peers.iter().enumerate() {
            let client = if peer.role == Role::Client { "rr client;" } else { "" };
            let paths = if self.side.add_path { "add paths on;" } else { "" };
            // Directly, it would tell its link-local address beside the global one, which not everybody shows.
            let bfd = if self.side.bfd { "direct; bfd on;" } else { "multihop;" };
            let _ = writeln!(
                text,
                "protocol bgp peer{at} {{\n local {v4} as {asn};\n neighbor {} as {};\n {client} {bfd}\n\
                 strict bind on; connect delay time 1; connect retry time 1; error wait time 1, 2; hold time 9;\n\
                 graceful restart on; password \"{KEY}\";\n\
                 ipv4 {{ import all; export all; {paths} }};\n\
                 ipv6 {{ import all; export all; next hop address {v6}; {paths} }};\n}}",
                peer.v4, peer.asn
            );
        }
        text
    }

    fn ask(&self, question: &str) -> Result<String> {
        let socket = self.side.dir.join("s").display().to_string();
        let arguments: Vec<&str> = ["-s", &socket].into_iter().chain(question.split(' ')).collect();
        rig::ask(&self.link.places[self.place].0, &self.programs[1], &arguments)
    }

    fn protocol(&self, peer: Ipv4Addr) -> Result<String> {
        let at = self.side.peers.iter().position(|one| one.v4 == peer).context("no such neighbour")?;
        Ok(format!("peer{at}"))
    }
}

impl Speaker for Bird {
    fn name(&self) -> &'static str {
        "bird"
    }

    fn start(&mut self, again: bool) -> Result<()> {
        let config = self.side.write("bird.conf", &self.config())?;
        let mut command = Command::new(&self.programs[0]);
        command.arg("-f").arg("-c").arg(config).arg("-s").arg(self.side.dir.join("s"));
        command.arg("-P").arg(self.side.dir.join("pid"));
        if again {
            command.arg("-R");
        }
        let log = self.side.dir.join("log");
        self.process = Some(Process::start(&self.link.places[self.place].0, "bird", command, &log)?);
        Ok(())
    }

    fn kill(&mut self) -> Result<()> {
        self.process.take().context("it does not run")?.kill()
    }

    fn is_up(&mut self, peer: Ipv4Addr) -> Result<bool> {
        if let Some(process) = &mut self.process {
            process.ensure_running()?;
        }
        Ok(self.ask(&format!("show protocols {}", self.protocol(peer)?))?.contains("Established"))
    }

    fn routes(&mut self) -> Result<Vec<Route>> {
        Ok(parse_routes(&self.ask("show route all")?))
    }

    fn refresh(&mut self, peer: Ipv4Addr) -> Result<()> {
        self.ask(&format!("reload in {}", self.protocol(peer)?)).map(drop)
    }

    fn updates(&mut self, peer: Ipv4Addr) -> Result<u64> {
        let text = self.ask(&format!("show protocols all {}", self.protocol(peer)?))?;
        let received = |line: &str| {
            line.trim().strip_prefix("Import updates:")?.split_whitespace().next()?.parse::<u64>().ok()
        };
        Ok(text.lines().filter_map(received).sum())
    }

    fn bfd_is_up(&mut self, peer: Ipv4Addr) -> Result<bool> {
        let text = self.ask("show bfd sessions")?;
        Ok(text.lines().any(|line| line.starts_with(&peer.to_string()) && line.contains(" Up ")))
    }

    fn lacks(&self, _what: What) -> Option<&'static str> {
        None
    }

    fn log(&self) -> String {
        tail(&self.side.dir.join("log"), 30)
    }
}

/// Reads `show route all`: a line per path that begins with the prefix (or blanks for a further one), then attributes.
fn parse_routes(text: &str) -> Vec<Route> {
    let mut routes: Vec<Route> = vec![];
    let mut prefix = String::new();
    for line in text.lines() {
        let trimmed = line.trim();
        // What the kernel would do with it; that is all the same here.
        if ["unicast [", "blackhole [", "unreachable ["].iter().any(|kind| line.contains(kind)) {
            if !line.starts_with(char::is_whitespace) {
                prefix = line.split_whitespace().next().unwrap_or_default().to_owned();
            }
            routes.push(Route {
                prefix: prefix.clone(),
                next_hop: String::new(),
                as_path: String::new(),
                communities: vec![],
            });
            continue;
        }
        let Some(route) = routes.last_mut() else { continue };
        let value = |key: &str| trimmed.strip_prefix(key).map(str::trim);
        if let Some(hop) = value("BGP.next_hop:") {
            route.next_hop = hop.split_whitespace().next().unwrap_or_default().to_owned();
        } else if let Some(path) = value("BGP.as_path:") {
            route.as_path = path.to_owned();
        } else if let Some(all) = value("BGP.community:").or_else(|| value("BGP.large_community:")) {
            // `(64999,1) (64999,0,1)`, with a blank behind the comma in large ones.
            let each = all.split('(').skip(1).map(|one| one.replace([')', ' '], "").replace(',', ":"));
            route.communities.extend(each);
        }
    }
    routes
}
