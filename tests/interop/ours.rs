//! `routed speaker`.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr};
use std::process::Command;
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use podway_daemon::client::Client;
use podway_model::socket::{BgpPeerStatus, RoutedReply, RoutedRequest};
use podway_testkit::lab::Programs;
use podway_testkit::process::{Process, tail};

use crate::rig::{KEY, Link, MARK, Role, Route, Side, Speaker, What};

pub(crate) struct Ours {
    link: Rc<Link>,
    place: usize,
    side: Side,
    process: Option<Process>,
}

impl Ours {
    pub(crate) fn new(link: &Rc<Link>, place: usize, side: Side) -> Self {
        Self { link: Rc::clone(link), place, side, process: None }
    }

    fn config(&self) -> String {
        let Side { number, v4, v6, asn, dir, .. } = &self.side;
        let mut text = format!(
            "asn: {asn}\nrouterId: {v4}\nlisten: ['{v4}:179', '[{v6}]:179']\nsocket: {socket}\nholdTime: 9\nlog: debug\n\
             gracefulRestart: {{restartTime: 60, deferralTime: 20, peersFile: {peers}}}\n\
             filters:\n  own:\n    rules:\n      - match: [{{source: own}}]\n        \
             set: [{{addCommunity: '{MARK}:{number}'}}, {{addCommunity: '{MARK}:0:{number}'}}]\n        verdict: accept\n    \
             otherwise: accept\n  everything: {{otherwise: accept}}\n\
             originate:\n",
            socket = self.socket().display(),
            peers = dir.join("peers.json").display(),
        );
        for prefix in self.side.prefixes4() {
            let _ = writeln!(text, "  - {{prefix: {prefix}, nextHop: {v4}}}");
        }
        let _ = writeln!(text, "  - {{prefix: '{}', nextHop: '{v6}'}}", self.side.prefix6());
        text.push_str("neighbours:\n");
        for peer in &self.side.peers {
            let role = if peer.role == Role::Mesh { "internal" } else { peer.role.as_str() };
            let paths = if self.side.add_path { ", addPathReceive: true, addPathSend: 4" } else { "" };
            let bfd = if self.side.bfd { ", bfd: {intervalMs: 100, multiplier: 5}" } else { "" };
            let _ = writeln!(
                text,
                "  - {{address: {}, options: {{asn: {}, role: {role}, localAddress: {v4}, md5File: {}, \
                 import: everything, export: own{paths}{bfd}}}}}",
                peer.v4,
                peer.asn,
                dir.join("key").display(),
            );
        }
        text
    }

    fn socket(&self) -> std::path::PathBuf {
        self.side.dir.join("s")
    }

    fn ask(&self, question: &RoutedRequest) -> Result<RoutedReply> {
        Ok(Client::connect(&self.socket(), Duration::from_secs(5))?.ask(question)?)
    }

    fn peer(&self, peer: Ipv4Addr) -> Result<BgpPeerStatus> {
        let RoutedReply::BgpPeers { peers } = self.ask(&RoutedRequest::BgpPeers)? else {
            bail!("no answer about peers");
        };
        peers.into_iter().find(|one| one.address == IpAddr::V4(peer)).context("no such neighbour")
    }
}

impl Speaker for Ours {
    fn name(&self) -> &'static str {
        "podway"
    }

    fn start(&mut self, _again: bool) -> Result<()> {
        self.side.write("key", KEY)?;
        let config = self.side.write("speaker.yaml", &self.config())?;
        let mut command = Command::new(Programs::find()?.routed);
        command.arg("speaker").arg("--config").arg(config);
        let log = self.side.dir.join("log");
        self.process =
            Some(Process::start(&self.link.places[self.place].0, "routed speaker", command, &log)?);
        Ok(())
    }

    fn kill(&mut self) -> Result<()> {
        self.process.take().context("it does not run")?.kill()
    }

    fn is_up(&mut self, peer: Ipv4Addr) -> Result<bool> {
        if let Some(process) = &mut self.process {
            process.ensure_running()?;
        }
        Ok(self.peer(peer)?.state == "Established")
    }

    fn routes(&mut self) -> Result<Vec<Route>> {
        let RoutedReply::BgpRoutes { routes } = self.ask(&RoutedRequest::BgpRoutes)? else {
            bail!("no answer about routes");
        };
        let route = |one: podway_model::socket::BgpRouteStatus| Route {
            prefix: one.prefix.to_string(),
            next_hop: one.next_hop.to_string(),
            as_path: one.as_path,
            communities: one.communities,
        };
        Ok(routes.into_iter().map(route).collect())
    }

    fn refresh(&mut self, peer: Ipv4Addr) -> Result<()> {
        match self.ask(&RoutedRequest::BgpRefresh { peer: peer.into() })? {
            RoutedReply::Done => Ok(()),
            other => bail!("{other:?}"),
        }
    }

    fn updates(&mut self, peer: Ipv4Addr) -> Result<u64> {
        Ok(self.peer(peer)?.updates)
    }

    fn bfd_is_up(&mut self, peer: Ipv4Addr) -> Result<bool> {
        Ok(self.peer(peer)?.bfd.as_deref() == Some("up"))
    }

    fn lacks(&self, _what: What) -> Option<&'static str> {
        None
    }

    fn log(&self) -> String {
        tail(&self.side.dir.join("log"), 30)
    }
}
