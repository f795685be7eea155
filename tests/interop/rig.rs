//! What a scenario consists of: places on one link, and a speaker in each.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use podway_testkit::lab::Programs;
use podway_testkit::lab::Underlay;
use podway_testkit::place::Place;
use podway_testkit::wait::wait_until;

/// How long anything may take; most takes a second.
pub(crate) const LIMIT: Duration = Duration::from_secs(45);
/// The key that all sessions are signed with.
pub(crate) const KEY: &str = "a-key-of-16-chars";
/// Destination that two speakers originate, for several paths.
pub(crate) const COMMON: &str = "10.77.0.0/24";
/// First half of communities that speakers put on what they originate; the other half is their number.
pub(crate) const MARK: u16 = 64999;

/// What the other end of a session is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// Plain iBGP.
    Mesh,
    /// We reflect to it.
    Client,
    /// It reflects to us.
    Reflector,
    /// eBGP.
    External,
}

impl Role {
    /// What we are to the other end.
    pub(crate) fn mirrored(self) -> Self {
        match self {
            Self::Client => Self::Reflector,
            Self::Reflector => Self::Client,
            same => same,
        }
    }

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Mesh => "mesh",
            Self::Client => "client",
            Self::Reflector => "reflector",
            Self::External => "external",
        }
    }
}

/// The other end of a session.
#[derive(Debug, Clone)]
pub(crate) struct Peer {
    pub(crate) v4: Ipv4Addr,
    pub(crate) asn: u32,
    pub(crate) role: Role,
}

/// A speaker as it is to be configured.
#[derive(Debug, Clone)]
pub(crate) struct Side {
    /// From 1; its communities carry it.
    pub(crate) number: u16,
    pub(crate) v4: Ipv4Addr,
    pub(crate) v6: Ipv6Addr,
    pub(crate) asn: u32,
    /// In order; the first is who the scenario is about.
    pub(crate) peers: Vec<Peer>,
    /// Where its files stand.
    pub(crate) dir: PathBuf,
    /// Whether it originates [`COMMON`] too.
    pub(crate) common: bool,
    /// Whether several paths per destination are offered both ways.
    pub(crate) add_path: bool,
    /// Whether neighbours are watched by BFD.
    pub(crate) bfd: bool,
}

impl Side {
    pub(crate) fn prefix4(&self) -> String {
        format!("10.70.{}.0/24", self.number)
    }

    pub(crate) fn prefix6(&self) -> String {
        format!("fd70:{}::/64", self.number)
    }

    /// IPv4 prefixes that it originates.
    pub(crate) fn prefixes4(&self) -> Vec<String> {
        std::iter::once(self.prefix4()).chain(self.common.then(|| COMMON.to_owned())).collect()
    }

    pub(crate) fn write(&self, name: &str, content: &str) -> Result<PathBuf> {
        let path = self.dir.join(name);
        std::fs::write(&path, content).with_context(|| format!("write {}", path.display()))?;
        Ok(path)
    }
}

/// A path as a speaker shows it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Route {
    pub(crate) prefix: String,
    pub(crate) next_hop: String,
    /// AS numbers with a blank between them.
    pub(crate) as_path: String,
    /// `64999:2`, `64999:0:2`; sorted.
    pub(crate) communities: Vec<String>,
}

/// A program that speaks BGP.
pub(crate) trait Speaker {
    fn name(&self) -> &'static str;

    /// Starts it, or starts it again after [`Speaker::kill`]: `again`.
    fn start(&mut self, again: bool) -> Result<()>;

    /// As `kill -9` does.
    fn kill(&mut self) -> Result<()>;

    /// Whether the session with that neighbour is established.
    fn is_up(&mut self, peer: Ipv4Addr) -> Result<bool>;

    /// All paths that it knows.
    fn routes(&mut self) -> Result<Vec<Route>>;

    /// Asks for the neighbour's table again.
    fn refresh(&mut self, peer: Ipv4Addr) -> Result<()>;

    /// UPDATE messages, or routes in them, that came from the neighbour: grows with each.
    fn updates(&mut self, peer: Ipv4Addr) -> Result<u64>;

    /// Whether BFD says that the neighbour is there.
    fn bfd_is_up(&mut self, peer: Ipv4Addr) -> Result<bool>;

    /// What it cannot do, with the place where that is said.
    fn lacks(&self, what: What) -> Option<&'static str>;

    /// The end of its log, for errors.
    fn log(&self) -> String;
}

/// What a cell of the matrix is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum What {
    /// The session, signed, with AS numbers of four octets.
    Md5,
    V4,
    V6,
    As4,
    Communities,
    /// It asks for the other's table again.
    Ask,
    /// It tells its table again when it is asked.
    Refresh,
    /// Several paths for a destination, from this side.
    AddPathSend,
    AddPathReceive,
    /// As a reflector.
    Reflect,
    /// It restarts, and the other keeps its routes.
    Restart,
    /// The other restarts, and it keeps the routes.
    Helper,
    Bfd,
}

impl What {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Md5 => "md5",
            Self::V4 => "v4",
            Self::V6 => "v6",
            Self::As4 => "4-octet AS",
            Self::Communities => "communities",
            Self::Ask => "ask",
            Self::Refresh => "refresh",
            Self::AddPathSend => "add-path send",
            Self::AddPathReceive => "add-path receive",
            Self::Reflect => "reflect",
            Self::Restart => "restart",
            Self::Helper => "helper",
            Self::Bfd => "bfd",
        }
    }
}

/// Places on one link.
pub(crate) struct Link {
    /// The bridge between them.
    _underlay: Underlay,
    pub(crate) places: Vec<(Place, Ipv4Addr, Ipv6Addr)>,
    pub(crate) dir: PathBuf,
}

impl Link {
    /// `count` places; files go to a folder of the test.
    pub(crate) fn new(test: &str, count: usize) -> Result<Self> {
        let dir = Programs::find()?.lab_dir().join("interop").join(test);
        // What an earlier run left is only in the way.
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::create_dir_all(&dir).with_context(|| format!("create {}", dir.display()))?;
        let underlay = Underlay::new()?;
        let mut places = vec![];
        for index in 0..count {
            let place = Place::new(&format!("s{}", index + 1))?;
            let (v4, v6) = underlay.join(&place, index)?;
            places.push((place, v4, v6));
        }
        Ok(Self { _underlay: underlay, places, dir })
    }
}

/// Waits until `look` is true; errors of it count as "not yet".
pub(crate) fn until(what: &str, mut look: impl FnMut() -> Result<bool>) -> Result<()> {
    let mut last = None;
    let waited = wait_until(what, LIMIT, || match look() {
        Ok(true) => Ok(Some(())),
        Ok(false) => {
            last = None;
            Ok(None)
        }
        Err(error) => {
            last = Some(error);
            Ok(None)
        }
    });
    match (waited, last) {
        (Err(timeout), Some(last)) => Err(last.context(timeout.to_string())),
        (other, _) => other,
    }
}

/// A program of somebody else's: on `PATH`, or in the folder of packages that stand apart.
pub(crate) fn program(package: &str, path: &str) -> Option<PathBuf> {
    let apart = std::env::var_os("PODWAY_PACKAGES").map(PathBuf::from)?;
    let found = apart.join(package).join(path);
    found.exists().then_some(found)
}

/// Runs a program to its end in a place; its standard output.
pub(crate) fn ask(place: &Place, program: &Path, arguments: &[&str]) -> Result<String> {
    let mut command = std::process::Command::new(program);
    command.args(arguments);
    let output = place.output(command, b"")?;
    if !output.status.success() {
        bail!("{} {arguments:?}: {}", program.display(), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The same, read as JSON.
pub(crate) fn ask_json(place: &Place, program: &Path, arguments: &[&str]) -> Result<serde_json::Value> {
    let text = ask(place, program, arguments)?;
    serde_json::from_str(&text).with_context(|| format!("{} {arguments:?}: {text}", program.display()))
}

/// Texts of a JSON list, whatever they are.
pub(crate) fn words(value: &serde_json::Value) -> Vec<String> {
    value
        .as_array()
        .into_iter()
        .flatten()
        .map(|one| one.as_str().map_or_else(|| one.to_string(), str::to_owned))
        .collect()
}
