//! What a change of backend must not forget over a restart: the routings in force, and the reverse-path filters that were
//! loosened for it. One file in `/run`, which a reboot clears as it clears the kernel.
//!
//! **Reverse path filter.** While nodes change one after the other, packets come by one way and answers go by another. Our
//! own devices are loose anyway; an underlay interface that is strict (1) would drop what comes plainly from a pod whose
//! route still leads into a tunnel. So it is loose (2) until the change is over, and then as it was.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use podway_daemon::files;
use podway_kern::fib::Kernel;
use podway_kern::sysctl::{Family, Sysctl};
use podway_model::cluster::BgpConfig;
use podway_model::{SCHEMA, accepts_schema};
use serde::{Deserialize, Serialize};

use super::changeover::{Changeover, Routing, Times};

/// Strict and loose, as the kernel writes them (RFC 3704).
const STRICT: &str = "1";
const LOOSE: &str = "2";

/// The file.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Content {
    schema: u32,
    /// The newest last.
    stages: Vec<Routing>,
    /// Reverse path filter of interfaces before it was loosened.
    #[serde(default)]
    loosened: BTreeMap<String, String>,
}

/// A change of backend, and its file.
#[derive(Debug)]
pub(crate) struct Kept {
    path: PathBuf,
    /// As it stands on the disk.
    written: Content,
    loosened: BTreeMap<String, String>,
    pub(super) changeover: Changeover,
}

impl Kept {
    /// Resumes what an earlier run of this boot was at. A file that cannot be read is said and ignored: the kernel then
    /// changes at once.
    pub(crate) fn read(path: &Path, times: Times) -> Self {
        let content = match std::fs::read(path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Content::default()),
            Err(error) => Err(error.to_string()),
            Ok(text) => match serde_json::from_slice::<Content>(&text) {
                Ok(content) if accepts_schema(content.schema) => Ok(content),
                Ok(content) => Err(format!("schema {} is of another version of Podway", content.schema)),
                Err(error) => Err(error.to_string()),
            },
        };
        let written = content.unwrap_or_else(|error| {
            tracing::warn!("ignoring {}: {error}", path.display());
            Content::default()
        });
        let changeover = Changeover::resume(times, written.stages.clone());
        Self { path: path.to_owned(), loosened: written.loosened.clone(), written, changeover }
    }

    /// Forgets all, with the filters as they were. Returns what went wrong.
    pub(super) fn forget(mut self, kernel: &mut impl Kernel) -> Vec<String> {
        let mut problems = self.filter(kernel, false, &[]);
        match std::fs::remove_file(&self.path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                problems.push(format!("{}: {error}", self.path.display()));
            }
            _ => {}
        }
        problems
    }

    /// Settings of BGP's sessions, if they may be in use.
    pub(crate) fn bgp(&self) -> Option<BgpConfig> {
        self.changeover.bgp()
    }

    /// Writes down what is in force. Before it is programmed.
    pub(super) fn write(&mut self) -> Result<(), String> {
        let content =
            Content { schema: SCHEMA, stages: self.changeover.stages(), loosened: self.loosened.clone() };
        if content == self.written {
            return Ok(());
        }
        let text = serde_json::to_vec_pretty(&content).map_err(|error| error.to_string())?;
        files::replace(&self.path, &text, 0o600, false).map_err(|error| {
            let path = self.path.display();
            format!("{path}: {error}; a restart in the middle of a change of backend would lose packets")
        })?;
        self.written = content;
        Ok(())
    }

    /// Loosens the reverse path filter of the underlay's interfaces during a change, and puts it back afterwards.
    /// Returns what went wrong.
    pub(super) fn filter(
        &mut self,
        kernel: &mut impl Kernel,
        is_change: bool,
        underlay: &[u32],
    ) -> Vec<String> {
        let mut problems = vec![];
        if is_change {
            let links = match kernel.links() {
                Ok(links) => links,
                Err(error) => return vec![error.to_string()],
            };
            let mut found = BTreeMap::new();
            for link in links.iter().filter(|link| underlay.contains(&link.index)) {
                if let Some(before) = strict(kernel, &link.name) {
                    found.insert(link.name.clone(), before);
                }
            }
            for (interface, before) in &found {
                self.loosened.entry(interface.clone()).or_insert_with(|| before.clone());
            }
            problems.extend(self.write().err());
            for interface in found.keys() {
                problems
                    .extend(kernel.write_sysctl(&filter_of(interface), LOOSE).err().map(|e| e.to_string()));
            }
        } else if !self.loosened.is_empty() {
            for (interface, before) in std::mem::take(&mut self.loosened) {
                let sysctl = filter_of(&interface);
                // Whoever has changed it meanwhile meant it; an interface that is gone needs nothing.
                if kernel.read_sysctl(&sysctl).is_ok_and(|now| now == LOOSE) {
                    problems.extend(kernel.write_sysctl(&sysctl, &before).err().map(|e| e.to_string()));
                }
            }
            problems.extend(self.write().err());
        }
        problems
    }
}

/// The interface's own value, if packets that come by it are filtered strictly.
fn strict(kernel: &mut impl Kernel, interface: &str) -> Option<String> {
    let own = kernel.read_sysctl(&filter_of(interface)).ok()?;
    let all = kernel.read_sysctl(&filter_of("all")).ok()?;
    // The greater of both counts.
    (own.as_str().max(all.as_str()) == STRICT).then_some(own)
}

fn filter_of(interface: &str) -> Sysctl {
    Sysctl::conf(Family::V4, interface, "rp_filter")
}
