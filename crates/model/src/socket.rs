//! Messages on `/run/podway/*.sock`: a length (4 bytes, big-endian, at most [`MAX_MESSAGE`]) and that many bytes
//! of JSON, whose first field is the protocol version. One question, one answer; the connection may be used
//! again.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::endpoint::EndpointRecord;
use crate::ids::{InstanceId, MacAddr, NodeName};

/// Version of these messages.
pub const VERSION: u32 = 1;
/// Longest message in bytes.
pub const MAX_MESSAGE: u32 = 16 << 20;

/// A message with its version first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Envelope<T> {
    /// [`VERSION`].
    pub version: u32,
    /// The message.
    pub message: T,
}

impl<T> Envelope<T> {
    /// Wraps a message of this version.
    pub fn new(message: T) -> Self {
        Self { version: VERSION, message }
    }
}

/// Questions to `policy-agent`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "camelCase")]
pub enum PolicyRequest {
    /// From ADD: this endpoint exists; answer when the kernel has classified it.
    Announce {
        /// Its record, as written to the endpoints folder.
        endpoint: Box<EndpointRecord>,
    },
    /// How are you?
    Status,
}

/// Answers of `policy-agent`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "camelCase")]
pub enum PolicyReply {
    /// The endpoint is in the kernel's maps.
    Programmed {
        /// Whether its pod object was known. Without one the pod is closed if any policy exists in its
        /// namespace, else open.
        pod_known: bool,
    },
    /// Status.
    Status(PolicyStatus),
    /// It could not be done.
    Failed {
        /// Why, for people.
        reason: String,
    },
}

/// State of `policy-agent`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PolicyStatus {
    /// Whether the sources have synced and the kernel holds the result.
    pub ready: bool,
    /// Store state in words.
    pub store: String,
    /// Local endpoints in the kernel's maps.
    pub endpoints: usize,
    /// Local endpoints of which no pod object is known.
    pub unknown_pods: Vec<String>,
    /// Network policies in force.
    pub policies: usize,
    /// Pods known in the cluster.
    pub pods: usize,
    /// Classes of peers.
    pub classes: usize,
    /// Policy sets.
    pub policy_sets: usize,
    /// Elements in our sets and maps.
    pub elements: usize,
    /// Store revision up to which the kernel is up to date.
    pub revision: i64,
    /// Times that a foreign change to our table was repaired.
    pub repairs: u64,
    /// Objects that cannot be used, and why.
    pub problems: Vec<String>,
}

/// Questions to `routed`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "camelCase")]
pub enum RoutedRequest {
    /// How are you?
    Status,
    /// BGP sessions.
    BgpPeers,
    /// Routes in the loc-RIB.
    BgpRoutes,
}

/// Answers of `routed`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "camelCase")]
pub enum RoutedReply {
    /// Status.
    Status(Box<RoutedStatus>),
    /// BGP sessions.
    BgpPeers {
        /// One per session.
        peers: Vec<BgpPeerStatus>,
    },
    /// Routes in the loc-RIB.
    BgpRoutes {
        /// One per path.
        routes: Vec<BgpRouteStatus>,
    },
    /// It could not be done.
    Failed {
        /// Why, for people.
        reason: String,
    },
}

/// State of `routed`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RoutedStatus {
    /// This node.
    pub node: NodeName,
    /// This installation.
    pub instance_id: InstanceId,
    /// Process id.
    pub pid: u32,
    /// Whether the store is in sync and the kernel programmed.
    pub ready: bool,
    /// What is missing until then.
    pub waiting_for: Vec<String>,
    /// Store state in words.
    pub store: String,
    /// Store revision up to which the node is up to date.
    pub revision: i64,
    /// Backend in force.
    pub backend: String,
    /// Underlay addresses.
    pub addresses: Vec<IpAddr>,
    /// Addresses reserved for the node in its own blocks.
    pub tunnel_addresses: Vec<IpAddr>,
    /// MTU of pods.
    pub mtu: u32,
    /// Own blocks, and how many addresses are leased in each.
    pub blocks: Vec<BlockStatus>,
    /// Devices that we made.
    pub devices: Vec<DeviceStatus>,
    /// Nodes that are known, this one included.
    pub nodes: Vec<NodeStatus>,
    /// Kernel routes: wanted, and found with our protocol number.
    pub routes: RouteCounts,
    /// Problems, in words, the most important first.
    pub problems: Vec<String>,
    /// Counters, by name.
    pub counters: BTreeMap<String, u64>,
}

/// An own block.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BlockStatus {
    /// Its range.
    pub cidr: IpNet,
    /// Its pool.
    pub pool: String,
    /// `pending`, `active`, `draining`, `stranded`.
    pub state: String,
    /// Addresses leased in it.
    pub leased: u32,
}

/// A device of ours.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DeviceStatus {
    /// Its name.
    pub name: String,
    /// Its MAC address, where it has one.
    pub mac: Option<MacAddr>,
    /// Its MTU.
    pub mtu: u32,
    /// Peers behind it.
    pub peers: usize,
}

/// A node as another one sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeStatus {
    /// Its name.
    pub node: NodeName,
    /// Its underlay addresses.
    pub addresses: Vec<IpAddr>,
    /// Whether its sign of life is there.
    pub live: bool,
    /// Its confirmed blocks.
    pub blocks: Vec<IpNet>,
    /// Why it cannot be reached by this backend, if so.
    pub problem: Option<String>,
}

/// Kernel routes in numbers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteCounts {
    /// Wanted.
    pub desired: usize,
    /// Found in the kernel with our protocol number.
    pub actual: usize,
    /// Refused by the kernel.
    pub failed: usize,
}

/// A BGP session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BgpPeerStatus {
    /// Node name, or name of the peer object.
    pub name: String,
    /// Peer address.
    pub address: IpAddr,
    /// Peer AS number.
    pub asn: u32,
    /// State of RFC 4271 section 8: `Idle`, `Connect`, ..., `Established`.
    pub state: String,
    /// `mesh`, `client`, `reflector`, `external`.
    pub role: String,
    /// Seconds in this state.
    pub since_seconds: u64,
    /// Prefixes received and in use.
    pub received: usize,
    /// Prefixes advertised.
    pub advertised: usize,
    /// Routes kept over the peer's restart, not refreshed yet.
    pub stale: usize,
    /// Why the session is not, or was last not, established.
    pub last_error: Option<String>,
}

/// A path in the loc-RIB.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BgpRouteStatus {
    /// Destination.
    pub prefix: IpNet,
    /// Next hop.
    pub next_hop: IpAddr,
    /// Peer that it came from; none: originated here.
    pub from: Option<IpAddr>,
    /// Originator id (RFC 4456), where reflected.
    pub originator_id: Option<Ipv4Addr>,
    /// Local preference.
    pub local_pref: u32,
    /// AS path as text.
    pub as_path: String,
    /// Whether it is the best path.
    pub best: bool,
    /// Whether it is kept over its peer's restart, not refreshed yet.
    pub stale: bool,
}
