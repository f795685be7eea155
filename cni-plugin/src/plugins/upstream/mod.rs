//! The plugin under other plugins' names: `loopback`, `host-local`, `portmap`, `bandwidth` and `ptp` of
//! containernetworking/plugins.
//!
//! Keys, results and what lies on disk or in the kernel are those of version 1.9.1, so a chain that the one began is
//! one that the other finishes. What differs is what theirs leaves undone: GC frees, STATUS says when ADD would fail,
//! CHECK sees what is gone, DEL needs nothing but the container's id and the state of the node.
//!
//! Versions from 0.3.0 on are served. State is the node's: nothing here reads a node file or a lease of Podway.

mod bandwidth;
mod conditions;
pub mod host_local;
mod iptables;
mod loopback;
mod masquerade;
mod portmap;
mod ptp;

use std::ffi::{OsStr, OsString};
use std::io::Read;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::Answer;
use crate::conf::Network;
use crate::env::{Call, Target};
use crate::error::CniError;

/// A plugin whose job this program does when it is called by its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Plugin {
    /// Brings the loopback device up.
    Loopback,
    /// Leases addresses of ranges, one file for each.
    HostLocal,
    /// Limits an interface of the plugin before it in the chain.
    Bandwidth,
    /// Leads ports of the node to an interface of the plugin before it in the chain.
    Portmap,
    /// Makes an interface, with addresses of another plugin.
    Ptp,
}

impl Plugin {
    /// All of them, by the names that `podwayctl node install` links.
    pub const ALL: [(&'static str, Self); 5] = [
        ("loopback", Self::Loopback),
        ("host-local", Self::HostLocal),
        ("bandwidth", Self::Bandwidth),
        ("portmap", Self::Portmap),
        ("ptp", Self::Ptp),
    ];

    /// The plugin of that name: the last part of the path by which the program was started.
    pub fn named(program: &OsStr) -> Option<Self> {
        let name = Path::new(program).file_name()?;
        Self::ALL.into_iter().find(|(known, _)| name == *known).map(|(_, plugin)| plugin)
    }
}

/// Serves one call as that plugin.
pub fn run(plugin: Plugin, lookup: impl Fn(&str) -> Option<OsString>, input: impl Read) -> Answer {
    let netns = lookup("CNI_NETNS").filter(|path| !path.is_empty()).map(PathBuf::from);
    crate::answer(lookup, input, |call, network| serve(plugin, call, network, netns.as_deref()))
}

fn serve(
    plugin: Plugin,
    call: &Call,
    network: &Network,
    netns: Option<&Path>,
) -> Result<Option<Value>, CniError> {
    let nothing = |()| None;
    match (plugin, call) {
        (Plugin::Loopback, Call::Add(target)) => loopback::add(network, target).map(Some),
        (Plugin::Loopback, Call::Check(target)) => loopback::check(target).map(nothing),
        (Plugin::Loopback, Call::Del { .. }) => loopback::del(netns).map(nothing),
        (Plugin::HostLocal, Call::Add(target)) => host_local::add(network, target).map(Some),
        (Plugin::HostLocal, Call::Check(target)) => host_local::check(network, target).map(nothing),
        (Plugin::HostLocal, Call::Del { attachment }) => host_local::del(network, attachment).map(nothing),
        (Plugin::HostLocal, Call::Gc) => host_local::gc(network).map(nothing),
        (Plugin::HostLocal, Call::Status) => host_local::status(network).map(nothing),
        (Plugin::Bandwidth, Call::Add(target)) => bandwidth::add(network, target).map(Some),
        (Plugin::Bandwidth, Call::Check(target)) => bandwidth::check(network, target).map(nothing),
        (Plugin::Bandwidth, Call::Del { attachment }) => bandwidth::del(network, attachment).map(nothing),
        (Plugin::Bandwidth, Call::Gc) => bandwidth::gc(network).map(nothing),
        (Plugin::Portmap, Call::Add(target)) => portmap::add(network, target).map(Some),
        (Plugin::Portmap, Call::Check(target)) => portmap::check(network, target).map(nothing),
        (Plugin::Portmap, Call::Del { attachment }) => portmap::del(network, attachment).map(nothing),
        (Plugin::Portmap, Call::Gc) => portmap::gc(network).map(nothing),
        (Plugin::Ptp, Call::Add(target)) => ptp::add(network, target).map(Some),
        (Plugin::Ptp, Call::Check(target)) => ptp::check(network, target).map(nothing),
        (Plugin::Ptp, Call::Del { attachment }) => ptp::del(network, attachment, netns).map(nothing),
        (Plugin::Ptp, Call::Gc) => ptp::gc(network).map(nothing),
        (Plugin::Ptp, Call::Status) => ptp::status(network).map(nothing),
        (Plugin::Loopback, Call::Gc)
        | (Plugin::Loopback | Plugin::Bandwidth | Plugin::Portmap, Call::Status) => Ok(None),
        // `answer` of the library answers it.
        (_, Call::Version) => Ok(None),
    }
}

/// What the plugin before in the chain answered, in the version that is asked for.
fn passed_on(network: &Network, mut previous: Map<String, Value>) -> Map<String, Value> {
    previous.insert("cniVersion".to_owned(), network.version.as_str().into());
    previous
}

/// Runs `f` in the target's namespace.
fn visit<T>(target: &Target, f: impl FnOnce() -> Result<T, CniError>) -> Result<T, CniError> {
    crate::netns::open(target)?.visit(f)
}

#[cfg(test)]
mod tests {
    use podway_model::names::{OTHER_PLUGINS, PLUGIN};

    use super::*;

    #[test]
    fn every_name_that_is_linked_is_served_and_no_other() {
        let mut names = Plugin::ALL.map(|(name, _)| name);
        names.sort_unstable();
        assert_eq!(names, OTHER_PLUGINS);
        for (name, plugin) in Plugin::ALL {
            assert_eq!(Plugin::named(format!("/opt/cni/bin/{name}").as_ref()), Some(plugin));
        }
        for other in [PLUGIN, "", "/", "loopback2", "/loopback/podway"] {
            assert_eq!(Plugin::named(other.as_ref()), None, "{other}");
        }
    }
}
