//! Values of the cluster store. Keys: [`crate::keys`].
//!
//! Every value is JSON with a `schema`. Read one with [`decode`], write one with [`encode`]: a value that does
//! not decode is reported and skipped by the reader, it stops nobody.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;

use ipnet::IpNet;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::bgp::{CommunitySets, NodeAsn, PeerOptions};
use crate::ids::{Asn, InstanceId, MacAddr, Mtu, NodeName, ObjectName, Vni, WireguardKey};
use crate::k8s::LabelSelector;
use crate::ways::Ways;
use crate::{SCHEMA, accepts_schema, flannel};

/// Why a stored value cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// Not the JSON that this kind of value has.
    #[error("not a valid value: {0}")]
    Json(#[from] serde_json::Error),
    /// From a version of Podway that this one cannot read.
    #[error(
        "schema {found} found, {SCHEMA} or the one before expected: written by another version of Podway"
    )]
    Schema {
        /// What stands there.
        found: u32,
    },
}

/// Reads a stored value, its `schema` first.
pub fn decode<T: DeserializeOwned>(json: &[u8]) -> Result<T, DecodeError> {
    #[derive(Deserialize)]
    struct Versioned {
        schema: u32,
    }
    let Versioned { schema } = serde_json::from_slice(json)?;
    if !accepts_schema(schema) {
        return Err(DecodeError::Schema { found: schema });
    }
    Ok(serde_json::from_slice(json)?)
}

/// Writes a stored value, its `schema` first.
pub fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    #[derive(Serialize)]
    struct Versioned<'a, T> {
        schema: u32,
        #[serde(flatten)]
        value: &'a T,
    }
    serde_json::to_vec(&Versioned { schema: SCHEMA, value }).expect("store values have string keys only")
}

/// `config`: what holds for the whole cluster. Every field has a default.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ClusterConfig {
    /// How packets get from node to node.
    pub backend: Backend,
    /// MTU of the underlay; none: as found on the interface that has the node's address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub underlay_mtu: Option<Mtu>,
    /// VXLAN settings.
    pub vxlan: VxlanConfig,
    /// IPIP settings.
    pub ipip: IpipConfig,
    /// WireGuard settings.
    pub wireguard: WireguardConfig,
    /// BGP settings.
    pub bgp: BgpConfig,
    /// Masquerade of pods that leave the cluster.
    pub masquerade: MasqueradeConfig,
    /// Whether nodes keep rules in iptables' chain FORWARD that let pods through.
    #[serde(skip_serializing_if = "Switch::is_on")]
    pub forward_rules: Switch,
    /// NetworkPolicy settings.
    pub policy: PolicyConfig,
    /// The nodes that there are; none: only operators free nodes that are gone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub inventory: Option<Inventory>,
    /// Nodes of other networks that are talked with, during a migration.
    #[serde(skip_serializing_if = "Compat::is_none")]
    pub compat: Compat,
}

/// Nodes of other networks that are talked with.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Compat {
    /// Flannel's, on flannel's own layout of etcd.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub flannel: Option<FlannelCompat>,
}

impl Compat {
    /// Whether there are none.
    pub fn is_none(&self) -> bool {
        self.flannel.is_none()
    }
}

/// Where flannel's nodes are found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct FlannelCompat {
    /// Flannel's prefix in etcd.
    pub prefix: flannel::Prefix,
}

/// Something that is on unless it is turned off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Switch(pub bool);

impl Default for Switch {
    fn default() -> Self {
        Self(true)
    }
}

impl Switch {
    /// Whether it is on.
    pub fn is_on(&self) -> bool {
        self.0
    }
}

/// The nodes that there are. `routed controller` frees one that is missing here for longer than the grace period.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Inventory {
    /// Their names, at least one.
    pub nodes: BTreeSet<NodeName>,
    /// How long a node is missing before it is freed, in seconds.
    #[serde(default = "hour")]
    pub grace_seconds: u32,
}

impl Inventory {
    /// Grace period where none is given.
    pub const GRACE_SECONDS: u32 = 3600;
}

fn hour() -> u32 {
    Inventory::GRACE_SECONDS
}

/// How packets get from node to node.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Backend {
    /// Routes via the peers' addresses; all nodes on one link.
    HostGw,
    /// VXLAN tunnels; works over any IP underlay.
    #[default]
    Vxlan,
    /// IPIP tunnels: IPv4 pods over an IPv4 underlay.
    Ipip,
    /// WireGuard tunnels: encrypted, over any IP underlay.
    Wireguard,
    /// Routes learnt by BGP.
    Bgp,
}

impl std::fmt::Display for Backend {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::HostGw => "host-gw",
            Self::Vxlan => "vxlan",
            Self::Ipip => "ipip",
            Self::Wireguard => "wireguard",
            Self::Bgp => "bgp",
        })
    }
}

/// What packets to pods are wrapped in on their way to another node. Of a pool; the backend says it for pools that
/// do not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Encapsulation {
    /// Nothing: the other node is on one of this node's links.
    None,
    /// IPIP. IPv4 pools only.
    Ipip,
    /// Nothing towards a node on the same link, IPIP towards others. IPv4 pools only.
    IpipCrossSubnet,
    /// VXLAN.
    Vxlan,
    /// Nothing towards a node on the same link, VXLAN towards others.
    VxlanCrossSubnet,
    /// WireGuard.
    Wireguard,
}

impl Encapsulation {
    /// All of them, with their names.
    pub const ALL: [(&'static str, Self); 6] = [
        ("none", Self::None),
        ("ipip", Self::Ipip),
        ("ipipCrossSubnet", Self::IpipCrossSubnet),
        ("vxlan", Self::Vxlan),
        ("vxlanCrossSubnet", Self::VxlanCrossSubnet),
        ("wireguard", Self::Wireguard),
    ];

    /// Whether it carries packets of that family.
    pub fn carries(self, cidr: &IpNet) -> bool {
        cidr.addr().is_ipv4() || !matches!(self, Self::Ipip | Self::IpipCrossSubnet)
    }
}

impl std::fmt::Display for Encapsulation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(Self::ALL.iter().find(|(_, one)| one == self).map_or("", |(name, _)| name))
    }
}

impl ClusterConfig {
    /// The encapsulation of pools that name none.
    pub fn encapsulation(&self) -> Encapsulation {
        match self.backend {
            Backend::HostGw | Backend::Bgp => Encapsulation::None,
            Backend::Vxlan if self.vxlan.direct_routing => Encapsulation::VxlanCrossSubnet,
            Backend::Vxlan => Encapsulation::Vxlan,
            Backend::Ipip => match self.ipip.mode {
                IpipMode::Always => Encapsulation::Ipip,
                IpipMode::CrossSubnet => Encapsulation::IpipCrossSubnet,
            },
            Backend::Wireguard => Encapsulation::Wireguard,
        }
    }
}

/// VXLAN settings. The defaults are flannel's, for migration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct VxlanConfig {
    /// Network identifier.
    pub vni: Vni,
    /// UDP port.
    pub port: u16,
    /// Route plainly, without a tunnel, to peers on the same link.
    pub direct_routing: bool,
}

impl Default for VxlanConfig {
    fn default() -> Self {
        Self { vni: Vni::DEFAULT, port: 8472, direct_routing: false }
    }
}

/// IPIP settings.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct IpipConfig {
    /// Towards whom packets are wrapped.
    pub mode: IpipMode,
}

/// Towards whom packets are wrapped in IPIP.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum IpipMode {
    /// Every node.
    #[default]
    Always,
    /// Nodes that are not on the same link.
    CrossSubnet,
}

/// WireGuard settings.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct WireguardConfig {
    /// UDP port on every node.
    pub port: u16,
    /// Seconds between signs of life to each peer, which keep a firewall's or a translator's state between nodes;
    /// 0: none.
    pub keepalive_seconds: u16,
}

impl Default for WireguardConfig {
    fn default() -> Self {
        Self { port: 51820, keepalive_seconds: 0 }
    }
}

/// BGP settings of the cluster's own sessions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct BgpConfig {
    /// AS number of every node that has none of its own.
    pub asn: Asn,
    /// Who has sessions with whom.
    pub topology: Topology,
    /// Up to how many nodes [`Topology::Auto`] is a mesh.
    pub mesh_up_to: u32,
    /// TCP port.
    pub port: u16,
    /// Hold time in seconds (RFC 4271 section 4.2): 0, or 3 to 65535.
    pub hold_time_seconds: u16,
    /// How long peers keep our routes over a restart, in seconds (RFC 4724): at most 4095; 0 turns it off.
    pub restart_time_seconds: u16,
    /// File on every node with the key that sessions within the cluster are signed with (RFC 2385).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub password_file: Option<PathBuf>,
    /// Differentiated services code point of the cluster's own sessions; none: CS6.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dscp: Option<u8>,
    /// Whether nodes watch each other by BFD, and with which timers; none: they do not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bfd: Option<NodeBfd>,
    /// Monitoring stations of every node.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub bmp: Vec<crate::bmp::BmpStation>,
    /// Prefixes that nodes announce to peers outside the cluster, such as service ranges.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub announce: Vec<crate::bgp::Announced>,
    /// Communities by name, for filters.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub communities: CommunitySets,
    /// AS numbers of nodes that have none in their own configuration; the first whose selector picks a node counts.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub node_asns: Vec<NodeAsn>,
}

impl BgpConfig {
    /// AS number of a node: its own, that of the first selector that picks it, the cluster's.
    pub fn asn_of(&self, record: &NodeRecord) -> Asn {
        let selected = || self.node_asns.iter().find(|one| one.node_selector.matches(&record.labels));
        record.asn.or_else(|| selected().map(|one| one.asn)).unwrap_or(self.asn)
    }
}

impl Default for BgpConfig {
    fn default() -> Self {
        Self {
            asn: Asn::DEFAULT,
            topology: Topology::Mesh,
            mesh_up_to: 50,
            port: 179,
            hold_time_seconds: 90,
            restart_time_seconds: 120,
            password_file: None,
            dscp: None,
            bfd: None,
            bmp: vec![],
            announce: vec![],
            communities: CommunitySets::new(),
            node_asns: vec![],
        }
    }
}

/// BFD timers between nodes (RFC 5880). Nodes may be many hops apart, so it is always that of RFC 5883.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeBfd {
    /// Interval in milliseconds, both ways.
    pub interval_ms: u32,
    /// Detection multiplier.
    pub multiplier: u8,
}

/// Who has BGP sessions with whom inside the cluster.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Topology {
    /// Everybody with everybody.
    #[default]
    Mesh,
    /// Everybody with the nodes that stand under `reflectors/`; those with everybody.
    Reflectors,
    /// A mesh of up to [`BgpConfig::mesh_up_to`] nodes of an AS; beyond that every node chooses the same three as
    /// reflectors, or takes those under `reflectors/`, if there are any.
    Auto,
}

impl std::fmt::Display for Topology {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Mesh => "mesh",
            Self::Reflectors => "reflectors",
            Self::Auto => "auto",
        })
    }
}

/// Masquerade of pods that leave the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct MasqueradeConfig {
    /// Whether it is done at all.
    pub enabled: bool,
    /// Destinations that see pods' own addresses, besides the pools and multicast.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub exclude: Vec<IpNet>,
}

impl Default for MasqueradeConfig {
    fn default() -> Self {
        Self { enabled: true, exclude: vec![] }
    }
}

/// NetworkPolicy settings.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PolicyConfig {
    /// Whether pods need the policy agent.
    pub mode: PolicyMode,
    /// What an ADD does when the agent does not answer in time.
    pub on_timeout: PolicyTimeout,
}

/// Whether pods need the policy agent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PolicyMode {
    /// Yes: no pod starts before it is classified.
    #[default]
    Required,
    /// No: there is no fence and no wait.
    None,
}

/// What an ADD does when the policy agent does not answer in time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PolicyTimeout {
    /// Undoes itself and answers 11: the runtime tries again.
    #[default]
    Undo,
    /// Keeps the pod, closed until the agent has classified it.
    Closed,
}

/// `pools/<name>`: a range from which nodes claim blocks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Pool {
    /// The range.
    pub cidr: IpNet,
    /// Prefix length of its blocks; none: 26 or 122.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub block_size: Option<u8>,
    /// Nodes that may claim from it.
    #[serde(default)]
    pub node_selector: LabelSelector,
    /// Namespaces whose pods get addresses from it; none: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace_selector: Option<LabelSelector>,
    /// Whether pods are masqueraded when they leave the cluster.
    #[serde(default = "yes")]
    pub nat: bool,
    /// Whether addresses are handed out without being asked for.
    #[serde(default)]
    pub assignment: Assignment,
    /// What packets to its pods are wrapped in between nodes; none: as the cluster's backend says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encapsulation: Option<Encapsulation>,
    /// No new blocks and no new leases.
    #[serde(default)]
    pub disabled: bool,
}

fn yes() -> bool {
    true
}

impl Pool {
    /// Prefix length of the pool's blocks.
    pub fn block_len(&self) -> u8 {
        self.block_size.unwrap_or(match self.cidr {
            IpNet::V4(_) => 26,
            IpNet::V6(_) => 122,
        })
    }
}

/// Whether a pool's addresses are handed out without being asked for by address.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Assignment {
    /// To any pod.
    #[default]
    Automatic,
    /// Only to a pod that asks for this very address; blocks are single addresses claimed on demand.
    Manual,
}

/// `nodes/<node>`: what a node says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeRecord {
    /// Installation of the node.
    pub instance_id: InstanceId,
    /// Address on the underlay.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address_v4: Option<Ipv4Addr>,
    /// Address on the underlay.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address_v6: Option<Ipv6Addr>,
    /// Address reserved for the node in its first IPv4 block.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tunnel_v4: Option<Ipv4Addr>,
    /// Address reserved for the node in its first IPv6 block.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tunnel_v6: Option<Ipv6Addr>,
    /// Labels, for pool and peer selectors.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// AS number, where it is not the cluster's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub asn: Option<Asn>,
    /// MAC address of the VTEP, where the node has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vtep_mac: Option<MacAddr>,
    /// Public key of its WireGuard device, where its kernel has WireGuard.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wireguard_key: Option<WireguardKey>,
    /// Version of Podway, for people.
    pub version: String,
    /// The ways of its packets; none: it does not tell, such as an older version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ways: Option<Ways>,
}

impl NodeRecord {
    /// The node's underlay address of the same family as `of`.
    pub fn address_like(&self, of: &IpNet) -> Option<IpAddr> {
        match of {
            IpNet::V4(_) => self.address_v4.map(IpAddr::V4),
            IpNet::V6(_) => self.address_v6.map(IpAddr::V6),
        }
    }

    /// The node's tunnel address of the same family as `of`.
    pub fn tunnel_like(&self, of: &IpNet) -> Option<IpAddr> {
        match of {
            IpNet::V4(_) => self.tunnel_v4.map(IpAddr::V4),
            IpNet::V6(_) => self.tunnel_v6.map(IpAddr::V6),
        }
    }
}

/// `live/<node>`: sign of life, bound to the node's lease in the store. A hint: its end removes nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Liveness {
    /// Installation that is alive under this node's name.
    pub instance_id: InstanceId,
    /// Its addresses, so that two installations under one name can both be named.
    pub addresses: Vec<IpAddr>,
}

/// `claims/<node>/<addr>-<len>`: a block that a node claims. Created if absent; among identical or overlapping
/// claims the lowest create revision wins.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Claim {
    /// Installation that claims.
    pub instance_id: InstanceId,
    /// Pool that the block is cut from.
    pub pool: ObjectName,
    /// Whether the claimant has seen its own claim win. Others route to confirmed claims only.
    pub confirmed: bool,
}

/// `controller`: which replica of `routed controller` is at work, bound to its lease in the store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Leader {
    /// Tells the process from others.
    pub holder: String,
}

/// `released/<addr>-<len>`: a block taken from a node that is gone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Released {
    /// When, in seconds since 1970.
    pub at_unix_seconds: u64,
    /// From whom.
    pub former_owner: NodeName,
}

/// `drained/<node>`: a node that traffic shall leave as far as there is another way: it announces all with
/// GRACEFUL_SHUTDOWN (RFC 8326), and is no reflector by [`Topology::Auto`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Drained {
    /// Since when, in seconds since 1970.
    pub since_unix_seconds: u64,
    /// Why, in the operator's words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// `usage/<node>`: address use by block, for `podwayctl`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Usage {
    /// Per block: the number of leases.
    pub blocks: BTreeMap<IpNet, u32>,
}

/// `peers/<name>`: a BGP peer outside the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BgpPeer {
    /// Nodes that have this session.
    #[serde(default)]
    pub node_selector: LabelSelector,
    /// The peer's address.
    pub address: IpAddr,
    /// The peer's TCP port.
    #[serde(default = "bgp_port")]
    pub port: u16,
    /// The peer's AS number.
    pub asn: Asn,
    /// Which of its routes are used.
    #[serde(default)]
    pub import: PeerImport,
    /// What it is told.
    #[serde(default)]
    pub export: PeerExport,
    /// Which own address the session has.
    #[serde(default)]
    pub source_address: SourceAddress,
    /// Whether only the peer connects.
    #[serde(default)]
    pub passive: bool,
    /// File on the nodes with the key of RFC 2385.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password_file: Option<PathBuf>,
    /// The peer is at most that many hops away (RFC 5082).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl_security: Option<u8>,
    /// Differentiated services code point; none: CS6.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dscp: Option<u8>,
    /// The rest.
    #[serde(flatten)]
    pub options: PeerOptions,
}

/// Which routes of a peer are used. Whatever it says, a prefix within a pool is used only by way of the node that
/// claimed it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum PeerImport {
    /// None (RFC 8212: nothing crosses the border without a policy).
    #[default]
    None,
    /// All.
    All,
}

/// What a peer is told.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum PeerExport {
    /// Nothing (RFC 8212).
    #[default]
    None,
    /// The node's own blocks.
    Own,
    /// All that the rules of BGP allow.
    All,
}

/// Own address of a session.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum SourceAddress {
    /// The node's address of the peer's family.
    #[default]
    Node,
    /// As the kernel's routes choose.
    Any,
}

fn bgp_port() -> u16 {
    179
}

/// `reflectors/<node>`: a reflector role given by hand.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Reflector {
    /// Cluster id (RFC 4456 section 7); none: the node's BGP identifier.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cluster_id: Option<Ipv4Addr>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_carry_their_schema_and_round_trip() {
        let claim = Claim {
            instance_id: "00000000-0000-4000-8000-000000000001".parse().unwrap(),
            pool: "default".parse().unwrap(),
            confirmed: true,
        };
        let json = encode(&claim);
        assert!(json.starts_with(br#"{"schema":1,"#), "{}", String::from_utf8_lossy(&json));
        assert_eq!(decode::<Claim>(&json).unwrap(), claim);
    }

    #[test]
    fn newer_and_broken_values_are_told_apart() {
        assert!(matches!(decode::<Reflector>(br#"{"schema":7}"#), Err(DecodeError::Schema { found: 7 })));
        assert!(matches!(decode::<Reflector>(br#"{"schema":1,"clusterId":"x"}"#), Err(DecodeError::Json(_))));
        assert!(matches!(decode::<Reflector>(b"{}"), Err(DecodeError::Json(_))));
    }

    #[test]
    fn an_empty_configuration_is_the_default() {
        assert_eq!(decode::<ClusterConfig>(br#"{"schema":1}"#).unwrap(), ClusterConfig::default());
    }
}
