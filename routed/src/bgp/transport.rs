//! What goes round a session on the wire: signatures (RFC 2385), TTL security (RFC 5082), class of service.
//!
//! Keys stand in files, which are read again while the speaker runs: a new key is used by the next connection, one that
//! stands goes on with the key that it began with. Whoever shall sign and has no usable key gets no connection at all.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ipnet::IpNet;
use podway_bgp::config::{SpeakerConfig, Transport};
use podway_kern::tcp;

/// CS6, network control: what other speakers use.
const DSCP: u8 = 48;

/// A key of RFC 2385. Never printed.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Key(Arc<[u8]>);

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(…)")
    }
}

/// Reads a key: the file's content without line breaks at its end.
///
/// # Errors
/// The file cannot be read, or its content is no key. The text does not show it.
pub(super) fn read_key(path: &Path) -> Result<Key, String> {
    let content = std::fs::read(path).map_err(|error| format!("{}: {error}", path.display()))?;
    let end = content.iter().rposition(|octet| !matches!(octet, b'\n' | b'\r')).map_or(0, |last| last + 1);
    match end {
        1..=tcp::LONGEST_KEY => Ok(Key(content[..end].into())),
        0 => Err(format!("{}: empty, a key expected", path.display())),
        _ => Err(format!(
            "{}: {end} octets found, a key of at most {} expected",
            path.display(),
            tcp::LONGEST_KEY
        )),
    }
}

/// The keys of a configuration, by who signs with them.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Keys {
    files: BTreeMap<PathBuf, Result<Key, String>>,
    /// Of all that can be used.
    by_peer: BTreeMap<IpNet, Key>,
}

impl Keys {
    /// Reads all files that a configuration names.
    pub(super) fn read(config: &SpeakerConfig) -> Self {
        let mut keys = Self::default();
        for (peers, file) in config.md5_files() {
            let key = keys.files.entry(file.clone()).or_insert_with(|| read_key(file));
            if let Ok(key) = key {
                keys.by_peer.insert(peers, key.clone());
            }
        }
        keys
    }

    /// Why some cannot be used.
    pub(super) fn problems(&self) -> impl Iterator<Item = &str> {
        self.files.values().filter_map(|key| key.as_ref().err().map(String::as_str))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.files.is_empty()
    }

    /// Gives a listener what has changed since `before`.
    ///
    /// # Errors
    /// The kernel refuses a key.
    pub(super) fn follow(&self, listener: impl AsFd, own: IpAddr, before: &Self) -> io::Result<()> {
        // A socket of IPv6 serves IPv4 too if it listens on every address.
        let concerns =
            |peers: &IpNet| own.is_ipv4() == peers.addr().is_ipv4() || own.is_unspecified() && own.is_ipv6();
        for peers in
            before.by_peer.keys().filter(|peers| concerns(peers) && !self.by_peer.contains_key(peers))
        {
            tcp::set_md5_key(&listener, *peers, b"").map_err(io::Error::other)?;
        }
        for (peers, key) in self.by_peer.iter().filter(|(peers, _)| concerns(peers)) {
            if before.by_peer.get(peers) != Some(key) {
                tcp::set_md5_key(&listener, *peers, &key.0).map_err(io::Error::other)?;
            }
        }
        Ok(())
    }

    /// How a connection with a neighbour is carried.
    ///
    /// # Errors
    /// It shall sign, and its key cannot be used.
    pub(super) fn carriage(&self, transport: &Transport) -> Result<Carriage, String> {
        let key = match &transport.md5_file {
            None => None,
            Some(file) => match self.files.get(file) {
                Some(key) => Some(key.clone().map_err(|error| format!("TCP MD5 key {error}"))?),
                None => return Err(format!("TCP MD5 key {}: not read yet", file.display())),
            },
        };
        let (ttl_security, dscp) = (transport.ttl_security, transport.dscp.unwrap_or(DSCP));
        Ok(Carriage { key, ttl_security, dscp })
    }
}

/// How one connection is carried.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Carriage {
    key: Option<Key>,
    ttl_security: Option<u8>,
    dscp: u8,
}

impl Carriage {
    /// Before the socket connects to `remote`.
    ///
    /// # Errors
    /// The kernel refuses an option.
    pub(super) fn before_connect(&self, socket: impl AsFd, remote: IpAddr) -> io::Result<()> {
        if let Some(key) = &self.key {
            tcp::set_md5_key(&socket, IpNet::from(remote), &key.0).map_err(io::Error::other)?;
        }
        self.accepted(socket, remote.is_ipv4())
    }

    /// After a connection was accepted: the kernel has seen to its signatures. `v4`: it came to a socket of IPv4.
    ///
    /// # Errors
    /// The kernel refuses an option.
    pub(super) fn accepted(&self, socket: impl AsFd, v4: bool) -> io::Result<()> {
        let options = || {
            tcp::set_dscp(&socket, v4, self.dscp)?;
            if let Some(hops) = self.ttl_security {
                tcp::set_ttl(&socket, v4, u8::MAX)?;
                // RFC 5082 section 3: at most `hops - 1` routers have taken one off.
                tcp::set_least_ttl(&socket, v4, u8::MAX - hops.saturating_sub(1))?;
            }
            Ok(())
        };
        options().map_err(|error: podway_kern::KernelError| io::Error::other(error))
    }
}

/// What every listener has: answers to a SYN must already look right to a peer with TTL security.
///
/// # Errors
/// The kernel refuses an option.
pub(super) fn listening(socket: impl AsFd, own: IpAddr) -> io::Result<()> {
    let v4 = own.is_ipv4();
    tcp::set_ttl(&socket, v4, u8::MAX)
        .and_then(|()| tcp::set_dscp(&socket, v4, DSCP))
        .map_err(io::Error::other)?;
    if !v4 && own.is_unspecified() {
        // For IPv4 that comes to it.
        tcp::set_ttl(&socket, true, u8::MAX)
            .and_then(|()| tcp::set_dscp(&socket, true, DSCP))
            .map_err(io::Error::other)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_lines_of_a_file_and_errors_do_not_show_them() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        let read = |content: &[u8]| {
            std::fs::write(&path, content).unwrap();
            read_key(&path)
        };
        assert_eq!(read(b"secret\r\n").unwrap(), Key(b"secret".as_slice().into()));
        assert_eq!(format!("{:?}", read(b" a b ").unwrap()), "Key(…)");
        assert!(read(b"\n").unwrap_err().contains("empty"));
        assert!(read(&[b'x'; 81]).unwrap_err().contains("81 octets found"));
        assert!(read_key(&dir.path().join("none")).unwrap_err().contains("none"));
    }
}
