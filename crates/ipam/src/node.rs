//! Reads what `routed` and the kernel say about this node: the node file, and the boot id.
//!
//! Whoever allocates reads the node file **while holding the address lock** ([`crate::LeaseStore`]): `routed` takes
//! blocks out of it under the same lock, so a block that it gave back cannot be allocated from any more.

use std::io;
use std::path::{Path, PathBuf};

use podway_model::ids::BootId;
use podway_model::node_file::NodeFile;
use podway_model::{SCHEMA, accepts_schema};

/// Why the node file cannot be used. Each is a reason to try again later: `routed` writes the file anew.
#[derive(Debug, thiserror::Error)]
pub enum NodeFileError {
    /// Not there.
    #[error("{}: not there yet (routed writes it once the store has confirmed this node's blocks; is it running?)", path.display())]
    Missing {
        /// The file.
        path: PathBuf,
    },
    /// Written before the machine's last start.
    #[error("{}: bootId: {found} found, {expected} expected (routed has not written it since this boot)", path.display())]
    OtherBoot {
        /// The file.
        path: PathBuf,
        /// The boot that it names.
        found: BootId,
        /// This boot.
        expected: BootId,
    },
    /// Of a version that this build does not read.
    #[error("{}: schema: {found} found, {SCHEMA} expected (the plugin and routed are too far apart)", path.display())]
    Schema {
        /// The file.
        path: PathBuf,
        /// The version that it names.
        found: u32,
    },
    /// Not what the contract says.
    #[error("{}: {reason} (restart routed: it writes the file anew)", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Where and what.
        reason: String,
    },
    /// Cannot be read.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
}

/// Reads the node file and checks that it is of this boot.
pub fn read_node_file(path: &Path, boot: &BootId) -> Result<NodeFile, NodeFileError> {
    let at = || path.to_path_buf();
    let text = std::fs::read(path).map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => NodeFileError::Missing { path: at() },
        _ => NodeFileError::Io { path: at(), source },
    })?;
    let file: NodeFile = serde_json::from_slice(&text)
        .map_err(|e| NodeFileError::Malformed { path: at(), reason: e.to_string() })?;
    if !accepts_schema(file.schema) {
        return Err(NodeFileError::Schema { path: at(), found: file.schema });
    }
    if file.boot_id != *boot {
        return Err(NodeFileError::OtherBoot { path: at(), found: file.boot_id, expected: boot.clone() });
    }
    Ok(file)
}

/// Reads the kernel's boot id, at [`podway_model::names::BOOT_ID_FILE`].
pub fn read_boot_id(path: &Path) -> io::Result<BootId> {
    let text = std::fs::read_to_string(path)
        .map_err(|e| io::Error::new(e.kind(), format!("{}: {e}", path.display())))?;
    text.trim_end()
        .parse()
        .map_err(|e| io::Error::new(io::ErrorKind::InvalidData, format!("{}: {e}", path.display())))
}
