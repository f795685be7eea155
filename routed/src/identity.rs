//! Who this node is: its name, the machine's boot, the installation, its WireGuard key.

use std::fs;
use std::io::{self, Read as _};
use std::path::Path;

use anyhow::{Context as _, Result, anyhow};
use podway_kern::Errno;
use podway_kern::wireguard::{self, PrivateKey};
use podway_model::ids::{BootId, InstanceId, NodeName, WireguardKey};

/// The kernel's source of random bytes: full of them long before a daemon starts.
const RANDOM: &str = "/dev/urandom";
/// The kernel's source of random UUIDs (`drivers/char/random.c`).
const RANDOM_UUID: &str = "/proc/sys/kernel/random/uuid";

/// The name from the configuration, else the host name in lower case, as kubelet takes it.
pub(crate) fn node_name(configured: Option<&NodeName>) -> Result<NodeName> {
    if let Some(name) = configured {
        return Ok(name.clone());
    }
    let host = nix::unistd::gethostname().context("read the host name")?;
    let host = host.to_string_lossy().to_lowercase();
    host.parse().map_err(|error| anyhow!("the host name cannot name a node: {error}; set node.name"))
}

/// The kernel's boot id.
pub(crate) fn boot_id(path: &Path) -> Result<BootId> {
    podway_ipam::read_boot_id(path).with_context(|| format!("read the boot id from {}", path.display()))
}

/// The installation's id: read from its file, or made once and kept there for good.
///
/// A file that holds something else is an error, never overwritten: a node that changed its id would find its
/// own blocks taken by a stranger.
pub(crate) fn instance_id(path: &Path) -> Result<InstanceId> {
    match fs::read_to_string(path) {
        Ok(text) => text.trim().parse().map_err(|error| {
            anyhow!(
                "{}: {error}; put the id of this node's claims back (podwayctl node list -o json), \
                 or remove the file after `podwayctl node release`",
                path.display()
            )
        }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let made = fs::read_to_string(RANDOM_UUID).with_context(|| format!("read {RANDOM_UUID}"))?;
            let id: InstanceId = made.trim().parse().context("the kernel's UUID")?;
            podway_daemon::files::replace(path, format!("{id}\n").as_bytes(), 0o600, true)
                .with_context(|| format!("write {}", path.display()))?;
            Ok(id)
        }
        Err(error) => Err(error).with_context(|| format!("read {}", path.display())),
    }
}

/// This node's WireGuard key and its public part.
#[derive(Debug, Clone)]
pub(crate) struct WireguardKeys {
    /// The key.
    pub(crate) private: PrivateKey,
    /// What other nodes know it by.
    pub(crate) public: WireguardKey,
}

/// The key of this node's WireGuard device: read from its file, or made once and kept there, readable by root only.
/// The kernel computes its public part, so a node has keys only where its kernel has WireGuard: then they are there,
/// and published, before any backend needs them.
///
/// # Errors
/// Why there are none, in words: a node without WireGuard works with every other backend.
pub(crate) fn wireguard_keys(path: &Path) -> Result<WireguardKeys, String> {
    let private = private_key(path).map_err(|error| format!("{error:#}"))?;
    match wireguard::public_key(&private) {
        Ok(public) => Ok(WireguardKeys { private, public }),
        Err(error) if error.errno() == Some(Errno::EOPNOTSUPP) => {
            Err("this kernel has no WireGuard; install or load its module, then restart routed".to_owned())
        }
        Err(error) => Err(error.to_string()),
    }
}

/// A file that holds something else is an error, never overwritten: others know this node by its key.
fn private_key(path: &Path) -> Result<PrivateKey> {
    match fs::read_to_string(path) {
        Ok(text) => PrivateKey::from_base64(&text).with_context(|| {
            let path = path.display();
            format!("{path} holds no WireGuard key (32 bytes in base64); remove it, then restart routed")
        }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let mut bytes = [0; 32];
            let mut source = fs::File::open(RANDOM).with_context(|| format!("open {RANDOM}"))?;
            source.read_exact(&mut bytes).with_context(|| format!("read {RANDOM}"))?;
            let key = PrivateKey::from_random(bytes);
            podway_daemon::files::replace(path, format!("{}\n", key.to_base64()).as_bytes(), 0o600, true)
                .with_context(|| format!("write {}", path.display()))?;
            Ok(key)
        }
        Err(error) => Err(error).with_context(|| format!("read {}", path.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instance_id_is_made_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state/instance-id");
        fs::create_dir(dir.path().join("state")).unwrap();
        let made = instance_id(&path).unwrap();
        assert_eq!(instance_id(&path).unwrap(), made);
    }

    #[test]
    fn a_broken_instance_id_is_named_and_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("instance-id");
        fs::write(&path, "not an id\n").unwrap();
        let error = instance_id(&path).unwrap_err().to_string();
        assert!(error.contains("instance-id") && error.contains("not an id"), "{error}");
        assert_eq!(fs::read_to_string(&path).unwrap(), "not an id\n");
    }

    #[test]
    fn a_wireguard_key_is_made_once_for_root_only_and_a_broken_one_is_left_alone() {
        use std::os::unix::fs::PermissionsExt as _;

        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("wireguard.key");
        let made = private_key(&path).unwrap();
        assert_eq!(private_key(&path).unwrap(), made);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(!format!("{made:?}").contains(made.to_base64().as_str()), "a key never shows in messages");
        let other = private_key(&dir.path().join("other.key")).unwrap();
        assert_ne!(other, made);

        fs::write(&path, "secret\n").unwrap();
        let error = format!("{:#}", private_key(&path).unwrap_err());
        assert!(error.contains("wireguard.key") && !error.contains("secret"), "{error}");
        assert_eq!(fs::read_to_string(&path).unwrap(), "secret\n");
    }

    #[test]
    fn the_configured_name_comes_first() {
        let name: NodeName = "n7".parse().unwrap();
        assert_eq!(node_name(Some(&name)).unwrap(), name);
        assert!(node_name(None).is_ok());
    }
}
