//! The node file `/var/lib/podway/node.json`: what `routed` tells the CNI plugin.
//!
//! `routed` is its only writer and replaces it atomically. The plugin allocates only from a file of this boot
//! ([`NodeFile::boot_id`]); a missing file or one of another boot means error 11 for ADD and 50 for STATUS.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::cluster::{Assignment, PolicyMode, PolicyTimeout};
use crate::ids::{BootId, InstanceId, Mtu, NamespaceName, NodeName, ObjectName};

/// The whole file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeFile {
    /// Version of this form.
    pub schema: u32,
    /// The boot in which it was written.
    pub boot_id: BootId,
    /// The installation of this node.
    pub instance_id: InstanceId,
    /// Grows with every change.
    pub generation: u64,
    /// This node.
    pub node: NodeName,
    /// Whether the store confirmed the blocks in this boot.
    pub confirmed: bool,
    /// MTU of pod interfaces.
    pub mtu: Mtu,
    /// Whether ADD needs the policy agent.
    pub policy: PolicyMode,
    /// What ADD does when the agent's acknowledgement does not come.
    pub policy_timeout: PolicyTimeout,
    /// Whether pods leaving the cluster are masqueraded on this node.
    pub masquerade: bool,
    /// Pools that this node may use, in order of preference.
    pub pools: Vec<NodePool>,
    /// Blocks that this node holds.
    pub blocks: Vec<NodeBlock>,
    /// Addresses reserved for the node itself, one per family; never leased.
    pub tunnel_addresses: Vec<IpAddr>,
    /// Pools by namespace, where a pool's namespace selector or a namespace's annotation chose.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub namespace_pools: BTreeMap<NamespaceName, Vec<ObjectName>>,
}

/// A pool as a node sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodePool {
    /// Its name.
    pub name: ObjectName,
    /// Its range.
    pub cidr: IpNet,
    /// Whether addresses are handed out without being asked for by address.
    pub assignment: Assignment,
}

/// A block that this node holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeBlock {
    /// Its range.
    pub cidr: IpNet,
    /// The pool that it was cut from.
    pub pool: ObjectName,
    /// Whether new leases may be made in it.
    pub state: BlockState,
}

/// Whether new leases may be made in a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BlockState {
    /// Yes.
    Active,
    /// No: it is on its way back to the pool.
    Draining,
}
