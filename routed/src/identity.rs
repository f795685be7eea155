//! Who this node is: its name, the machine's boot, and the installation.

use std::fs;
use std::io;
use std::path::Path;

use anyhow::{Context as _, Result, anyhow};
use podway_model::ids::{BootId, InstanceId, NodeName};

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
    fn the_configured_name_comes_first() {
        let name: NodeName = "n7".parse().unwrap();
        assert_eq!(node_name(Some(&name)).unwrap(), name);
        assert!(node_name(None).is_ok());
    }
}
