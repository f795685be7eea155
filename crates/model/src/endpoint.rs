//! Endpoint records `/run/podway/endpoints/<id>.json`: what the CNI plugin tells the daemons.
//!
//! One per attachment; written by ADD before the link exists, removed last by DEL or GC. `policy-agent` and
//! `routed` watch the folder, so a local pod is known before its address reaches any API server.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::ids::{BootId, ContainerId, IfName, MacAddr, Mtu, NetworkName};

/// One attachment of one pod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EndpointRecord {
    /// Version of this form.
    pub schema: u32,
    /// [`crate::names::attachment_id`]: also the file's name.
    pub id: String,
    /// The boot in which it was written; a record of another boot means nothing.
    pub boot_id: BootId,
    /// CNI network name.
    pub network: NetworkName,
    /// CNI container id.
    pub container_id: ContainerId,
    /// Interface inside the pod.
    pub ifname: IfName,
    /// Host side of the veth.
    pub host_ifname: IfName,
    /// MAC address of the interface inside the pod.
    pub mac: MacAddr,
    /// MTU of both sides.
    pub mtu: Mtu,
    /// The pod, where the runtime named one.
    pub pod: Option<PodRef>,
    /// Addresses of the pod's interface, one or two, one per family.
    pub addresses: Vec<IpAddr>,
    /// Ports of the node that lead to this pod.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub host_ports: Vec<HostPort>,
    /// The address plugin that gave the addresses, where it is another one than ours: then there is no lease.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ipam: Option<String>,
    /// The pod's network namespace as the runtime named it: for people, never a criterion.
    pub netns: String,
}

/// A pod as the runtime named it in `CNI_ARGS`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PodRef {
    /// `K8S_POD_NAMESPACE`.
    pub namespace: String,
    /// `K8S_POD_NAME`.
    pub name: String,
    /// `K8S_POD_UID`, where given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<String>,
}

impl std::fmt::Display for PodRef {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// A port of the node that leads to a pod.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HostPort {
    /// Node address, or none for every address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_ip: Option<IpAddr>,
    /// Port of the node.
    pub host_port: u16,
    /// Port of the pod.
    pub container_port: u16,
    /// `tcp`, `udp` or `sctp`.
    pub protocol: crate::k8s::Protocol,
}
