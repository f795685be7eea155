//! The speakers, and the configuration of a route reflector for each: one range or list of clients, no kernel routes,
//! nothing logged per route.

use std::fmt::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use clap::ValueEnum;
use podway_testkit::lab::{Programs, find_tool};

/// Where the reflector listens.
pub(crate) const ADDRESS: &str = "10.99.0.1";
/// Its port.
pub(crate) const PORT: u16 = 1790;

/// A BGP speaker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Speaker {
    /// `routed speaker`.
    Podway,
    /// BIRD 2.
    Bird,
    /// FRR's bgpd alone.
    Frr,
    /// GoBGP.
    Gobgp,
}

impl fmt::Display for Speaker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Podway => "Podway",
            Self::Bird => "BIRD",
            Self::Frr => "FRR",
            Self::Gobgp => "GoBGP",
        })
    }
}

/// A speaker that is there.
#[derive(Debug, Clone)]
pub(crate) struct Found {
    pub(crate) speaker: Speaker,
    pub(crate) program: PathBuf,
    pub(crate) version: String,
}

impl Speaker {
    pub(crate) const ALL: [Self; 4] = [Self::Podway, Self::Bird, Self::Frr, Self::Gobgp];

    /// Where it is, and which version.
    pub(crate) fn find(self) -> Result<Found> {
        let in_path = |name: &str| find_tool(name).with_context(|| format!("{name} is not in PATH"));
        let program = match self {
            Self::Podway => Programs::find()?.routed,
            Self::Bird => in_path("bird")?,
            Self::Frr => frr("bgpd")?,
            Self::Gobgp => in_path("gobgpd")?,
        };
        let output = program_of(&program).arg("--version").output().context("ask for the version")?;
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&said);
        let version = said
            .split_whitespace()
            .find(|word| word.starts_with(|first: char| first.is_ascii_digit()))
            .unwrap_or("?")
            .trim_end_matches([',', ';'])
            .to_owned();
        Ok(Found { speaker: self, program, version })
    }
}

/// A program of FRR: the machine's own, or that of `PODWAY_PACKAGES`.
fn frr(name: &str) -> Result<PathBuf> {
    let got = std::env::var_os("PODWAY_PACKAGES").map(|all| PathBuf::from(all).join("frr/usr/lib/frr"));
    let folders = [PathBuf::from("/usr/lib/frr")].into_iter().chain(got);
    let found = folders.map(|folder| folder.join(name)).find(|path| path.is_file());
    found.with_context(|| format!("{name} is neither in /usr/lib/frr nor below PODWAY_PACKAGES"))
}

/// The program, with libraries of its own that stand beside it: `usr/lib/<triple>/frr` beside `usr/lib/frr`.
fn program_of(program: &Path) -> Command {
    let mut command = Command::new(program);
    let triple = format!("{}-linux-gnu", std::env::consts::ARCH);
    let beside = program.ancestors().nth(2).map(|lib| lib.join(triple).join("frr"));
    if let Some(beside) = beside.filter(|folder| folder.is_dir()) {
        let given = std::env::var_os("LD_LIBRARY_PATH").unwrap_or_default();
        let all = [beside]
            .into_iter()
            .chain(std::env::split_paths(&given).filter(|dir| !dir.as_os_str().is_empty()));
        if let Ok(all) = std::env::join_paths(all) {
            command.env("LD_LIBRARY_PATH", all);
        }
    }
    command
}

impl Found {
    /// The command that runs it as a reflector for clients 10.99.0.2 and on; its files are in `folder`.
    pub(crate) fn command(&self, folder: &Path, clients: u32) -> Result<Command> {
        let (name, text) = match self.speaker {
            Speaker::Podway => ("podway.yaml", PODWAY.to_owned()),
            Speaker::Bird => ("bird.conf", bird(clients)?),
            Speaker::Frr => ("bgpd.conf", FRR.to_owned()),
            Speaker::Gobgp => ("gobgp.toml", GOBGP.to_owned()),
        };
        let config = folder.join(name);
        std::fs::write(&config, text).with_context(|| format!("write {}", config.display()))?;
        let mut command = program_of(&self.program);
        match self.speaker {
            Speaker::Podway => command.args(["speaker", "--config"]).arg(&config),
            Speaker::Bird => command.args(["-f", "-c"]).arg(&config).arg("-s").arg(folder.join("bird.ctl")),
            Speaker::Frr => command
                .args(["--no_zebra", "--no_kernel", "--skip_runas", "--vty_port", "0"])
                .args(["--listenon", ADDRESS, "--bgp_port", &PORT.to_string(), "--config_file"])
                .arg(&config)
                .arg("--pid_file")
                .arg(folder.join("bgpd.pid"))
                .arg("--vty_socket")
                .arg(folder),
            Speaker::Gobgp => command.args(["--config-type", "toml", "--config-file"]).arg(&config).args([
                "--log-level",
                "error",
                "--api-hosts",
                "127.0.0.1:50051",
            ]),
        };
        Ok(command)
    }
}

const PODWAY: &str = "\
asn: 64512
routerId: 10.99.0.1
listen: ['10.99.0.1:1790']
log: warn
ranges:
  - {prefix: 10.99.0.0/16, limit: 10000, options: {role: client, passive: true}}
";

const FRR: &str = "\
frr defaults datacenter
router bgp 64512
 bgp router-id 10.99.0.1
 bgp listen limit 10000
 neighbor clients peer-group
 neighbor clients remote-as internal
 bgp listen range 10.99.0.0/16 peer-group clients
 neighbor clients passive
 neighbor clients timers 30 90
 neighbor clients advertisement-interval 0
 address-family ipv4 unicast
  neighbor clients activate
  neighbor clients route-reflector-client
 exit-address-family
";

const GOBGP: &str = r#"
[global.config]
  as = 64512
  router-id = "10.99.0.1"
  port = 1790
  local-address-list = ["10.99.0.1"]
[[peer-groups]]
  [peer-groups.config]
    peer-group-name = "clients"
    peer-as = 64512
  [peer-groups.transport.config]
    passive-mode = true
  [peer-groups.route-reflector.config]
    route-reflector-client = true
    route-reflector-cluster-id = "10.99.0.1"
  [[peer-groups.afi-safis]]
    [peer-groups.afi-safis.config]
      afi-safi-name = "ipv4-unicast"
[[dynamic-neighbors]]
  [dynamic-neighbors.config]
    prefix = "10.99.0.0/16"
    peer-group = "clients"
"#;

/// BIRD with a protocol for each client, and a route by which their next hops resolve.
fn bird(clients: u32) -> Result<String> {
    if clients > 60_000 {
        bail!("{clients} clients: at most 60000");
    }
    let mut text = "\
router id 10.99.0.1;
protocol device {}
protocol static { ipv4; route 10.99.0.0/16 via \"lo\"; }
template bgp reflected {
  local 10.99.0.1 port 1790 as 64512;
  rr client;
  passive;
  multihop;
  ipv4 { import all; export where source = RTS_BGP; };
}
"
    .to_owned();
    for client in 0..clients {
        let address = std::net::Ipv4Addr::from(0x0a63_0002 + client);
        writeln!(text, "protocol bgp c{client} from reflected {{ neighbor {address} as 64512; }}")?;
    }
    Ok(text)
}
