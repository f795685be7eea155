//! Who was up: a small file that says after a restart for whom to wait (RFC 4724 section 4.1).
//!
//! Best effort: without it, routes of the earlier life are swept as soon as the speaker runs, and come back with the
//! sessions. It is not synced to disk: after a reboot it means nothing anyway.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::PathBuf;

use podway_bgp::config::Restarted;
use podway_daemon::files;
use podway_model::ids::BootId;
use podway_model::{SCHEMA, accepts_schema};
use serde::{Deserialize, Serialize};

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Content {
    schema: u32,
    boot_id: BootId,
    peers: BTreeSet<IpAddr>,
    /// Of these: those that were reflected to.
    #[serde(default)]
    clients: BTreeSet<IpAddr>,
}

/// The file, and what we last wrote to it.
#[derive(Debug)]
pub(super) struct PeersFile {
    path: PathBuf,
    boot_id: BootId,
    written: Option<(BTreeSet<IpAddr>, BTreeSet<IpAddr>)>,
}

impl PeersFile {
    pub(super) fn new(path: PathBuf, boot_id: BootId) -> Self {
        Self { path, boot_id, written: None }
    }

    /// What is known of an earlier life in this boot. The kernel kept its routes, so forwarding was preserved.
    pub(super) fn read(&self) -> Option<Restarted> {
        let text = std::fs::read(&self.path).ok()?;
        match serde_json::from_slice::<Content>(&text) {
            Ok(content) if accepts_schema(content.schema) && content.boot_id == self.boot_id => {
                let Content { peers, clients, .. } = content;
                Some(Restarted { peers, clients, forwarding_preserved: true })
            }
            Ok(_) => None,
            Err(error) => {
                let path = self.path.display();
                tracing::warn!(%path, %error, "ignoring the list of BGP peers that were up: it is not readable");
                None
            }
        }
    }

    /// Writes the peers, and those of them that are reflected to, if they are others than before.
    pub(super) fn write(&mut self, peers: BTreeSet<IpAddr>, clients: BTreeSet<IpAddr>) {
        let now = (peers, clients);
        if self.written.as_ref() == Some(&now) {
            return;
        }
        let (peers, clients) = now;
        let content = Content { schema: SCHEMA, boot_id: self.boot_id.clone(), peers, clients };
        let json = serde_json::to_vec(&content).expect("addresses and a boot id always serialise");
        match files::replace(&self.path, &json, 0o600, false) {
            Ok(()) => self.written = Some((content.peers, content.clients)),
            Err(error) => {
                let path = self.path.display();
                tracing::warn!(%path, %error, "the list of BGP peers that are up was not written");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peers_are_remembered_within_a_boot_only() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("bgp-peers.json");
        let boot =
            |n: char| format!("{}-0000-4000-8000-000000000001", n.to_string().repeat(8)).parse().unwrap();
        let mut file = PeersFile::new(path.clone(), boot('a'));
        assert_eq!(file.read(), None);
        let peers = BTreeSet::from(["10.0.0.1".parse().unwrap(), "fd00::1".parse().unwrap()]);
        let clients = BTreeSet::from(["fd00::1".parse().unwrap()]);
        file.write(peers.clone(), clients.clone());
        let restarted = PeersFile::new(path.clone(), boot('a')).read();
        assert_eq!(restarted, Some(Restarted { peers, clients, forwarding_preserved: true }));
        assert_eq!(PeersFile::new(path.clone(), boot('b')).read(), None);
        std::fs::write(&path, "{").unwrap();
        assert_eq!(PeersFile::new(path, boot('a')).read(), None);
    }
}
