//! Where the plugin finds the node's state, and what it knows about the node.

use std::path::PathBuf;

use podway_ipam::{AddressLock, LeaseStore, NodeFileError, read_boot_id, read_node_file};
use podway_model::ids::BootId;
use podway_model::names;
use podway_model::node_file::NodeFile;

use crate::error::{CniError, Code};
use crate::record::Records;

/// Paths of the node's state, and the boot in which we are.
#[derive(Debug, Clone)]
pub struct Node {
    boot: BootId,
    node_file: PathBuf,
    ipam: PathBuf,
    policy_socket: PathBuf,
    records: Records,
}

impl Node {
    /// The node on which the program runs.
    pub fn here() -> Result<Self, CniError> {
        let boot = read_boot_id(names::BOOT_ID_FILE.as_ref())
            .map_err(|e| CniError::new(Code::Io, format!("cannot read the boot id: {e}")))?;
        Ok(Self {
            boot,
            node_file: names::NODE_FILE.into(),
            ipam: names::IPAM_DIR.into(),
            policy_socket: names::POLICY_SOCKET.into(),
            records: Records::new(names::ENDPOINTS_DIR),
        })
    }

    /// This boot.
    pub fn boot(&self) -> &BootId {
        &self.boot
    }

    /// Endpoint records.
    pub fn records(&self) -> &Records {
        &self.records
    }

    /// Socket of the policy agent.
    pub fn policy_socket(&self) -> &std::path::Path {
        &self.policy_socket
    }

    /// The lock of the leases alone: records with host ports are written and removed under it.
    pub fn lock(&self) -> Result<AddressLock, CniError> {
        Ok(AddressLock::acquire(&self.ipam)?)
    }

    /// The leases, under a lock that is held already.
    pub fn leases_under(&self, lock: AddressLock) -> Result<LeaseStore, CniError> {
        Ok(LeaseStore::open_locked(lock, &self.ipam, &self.boot)?)
    }

    /// The leases, locked until the value is dropped.
    pub fn leases(&self) -> Result<LeaseStore, CniError> {
        Ok(LeaseStore::open(&self.ipam, &self.boot)?)
    }

    /// The node file of this boot. Who allocates reads it under the lock of [`Self::leases`].
    pub fn file(&self) -> Result<NodeFile, NodeFileError> {
        read_node_file(&self.node_file, &self.boot)
    }
}
