//! Messages on `/run/podway/*.sock`: a length (4 bytes, big-endian, at most [`MAX_MESSAGE`]) and that many bytes
//! of JSON, whose first field is the protocol version. One question, one answer; the connection may be used
//! again.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;
use serde::de::DeserializeOwned;
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

/// Why a message could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum MessageError {
    /// The connection broke, timed out, or ended inside a message.
    #[error("connection lost: {0}")]
    Io(#[from] io::Error),
    /// Longer than [`MAX_MESSAGE`]. What follows on the connection cannot be read.
    #[error("message of {length} bytes found, at most {MAX_MESSAGE} expected")]
    TooLong {
        /// Announced or encoded length in bytes.
        length: usize,
    },
    /// From a version of Podway that this one cannot talk to.
    #[error("message version {found} found, {VERSION} expected: binaries of different versions")]
    Version {
        /// What stands there.
        found: u32,
    },
    /// Not a message of this kind.
    #[error("not a valid message: {0}")]
    Json(#[from] serde_json::Error),
}

/// A message with its length before it, as it goes over the wire.
///
/// # Errors
/// The message is too long.
pub fn encode_message<T: Serialize>(message: &T) -> Result<Vec<u8>, MessageError> {
    let mut frame = vec![0; 4];
    serde_json::to_writer(&mut frame, &Envelope::new(message))?;
    let length = frame.len() - 4;
    match u32::try_from(length) {
        Ok(announced) if announced <= MAX_MESSAGE => frame[..4].copy_from_slice(&announced.to_be_bytes()),
        _ => return Err(MessageError::TooLong { length }),
    }
    Ok(frame)
}

/// Number of bytes that follow a message's first four.
///
/// # Errors
/// More than [`MAX_MESSAGE`].
pub fn message_length(head: [u8; 4]) -> Result<usize, MessageError> {
    let announced = u32::from_be_bytes(head);
    let length = usize::try_from(announced).unwrap_or(usize::MAX);
    if announced > MAX_MESSAGE { Err(MessageError::TooLong { length }) } else { Ok(length) }
}

/// Reads what follows the length.
///
/// # Errors
/// Another version, or not a message of this kind.
pub fn decode_message<T: DeserializeOwned>(body: &[u8]) -> Result<T, MessageError> {
    #[derive(Deserialize)]
    struct Versioned {
        version: u32,
    }
    // The version first: the message of another one may look different.
    let Versioned { version } = serde_json::from_slice(body)?;
    if version != VERSION {
        return Err(MessageError::Version { found: version });
    }
    Ok(serde_json::from_slice::<Envelope<T>>(body)?.message)
}

/// Writes one message to a blocking stream.
///
/// # Errors
/// The message is too long, or the stream fails.
pub fn write_message<T: Serialize>(output: &mut impl Write, message: &T) -> Result<(), MessageError> {
    output.write_all(&encode_message(message)?)?;
    Ok(output.flush()?)
}

/// Reads one message from a blocking stream; none if the stream ends before it begins.
///
/// # Errors
/// The stream fails or ends inside the message, or the message cannot be used.
pub fn read_message<T: DeserializeOwned>(input: &mut impl Read) -> Result<Option<T>, MessageError> {
    let mut head = Vec::with_capacity(4);
    input.by_ref().take(4).read_to_end(&mut head)?;
    let head: [u8; 4] = match head.try_into() {
        Ok(head) => head,
        Err(head) if head.is_empty() => return Ok(None),
        Err(_) => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
    };
    let length = message_length(head)?;
    // Grows with what arrives: a false length alone takes no memory.
    let mut body = Vec::new();
    input.by_ref().take(length as u64).read_to_end(&mut body)?;
    if body.len() < length {
        return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
    }
    decode_message(&body).map(Some)
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
    /// What becomes of a new connection, and why?
    Trace {
        /// `NAMESPACE/POD`, an address, or `node/NAME`.
        from: String,
        /// The same.
        to: String,
        /// `PORT`, `PROTOCOL/PORT` (tcp, udp, sctp) or `icmp`.
        traffic: String,
    },
    /// Policies, and the local pods that they isolate.
    List,
    /// Does the kernel hold what it should, and can everything be enforced as written?
    Check,
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
    /// What becomes of a new connection: one for each family in which both ends have an address.
    Traced {
        /// By family.
        flows: Vec<PolicyTrace>,
    },
    /// Policies, and the local pods that they isolate.
    Listed(PolicyList),
    /// What was compared.
    Checked(PolicyCheck),
    /// The question makes no sense, or names what is not known.
    Refused {
        /// Which part of it.
        field: String,
        /// What stands there.
        value: String,
        /// What was expected.
        expected: String,
    },
    /// It could not be done.
    Failed {
        /// Why, for people.
        reason: String,
    },
}

/// What becomes of a new connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PolicyTrace {
    /// Who opens it: `NAMESPACE/POD`, `node/NAME` or `outside`, with the address.
    pub from: String,
    /// Who is meant.
    pub to: String,
    /// What it carries.
    pub traffic: String,
    /// Whether both ends allow it.
    pub allowed: bool,
    /// What the source's end says.
    pub egress: PolicyJudgement,
    /// What the destination's end says.
    pub ingress: PolicyJudgement,
}

/// What one end of a connection says.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PolicyJudgement {
    /// Whether it lets the connection pass.
    pub allowed: bool,
    /// Why, in words.
    pub reason: String,
    /// The policy that allows it, or those that isolate the pod, as `NAMESPACE/NAME`.
    pub policies: Vec<String>,
    /// The rule that allows it, counted from 0.
    pub rule: Option<usize>,
}

/// Policies, and the local pods that they isolate.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PolicyList {
    /// All policies of the cluster.
    pub policies: Vec<PolicyEntry>,
    /// All pods of this node.
    pub pods: Vec<PolicyPod>,
}

/// A policy.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PolicyEntry {
    /// `NAMESPACE/NAME`.
    pub name: String,
    /// `ingress`, `egress`: the directions in which it isolates.
    pub directions: Vec<String>,
    /// Pods of this node that it selects.
    pub pods: Vec<String>,
}

/// A pod of this node.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PolicyPod {
    /// `NAMESPACE/NAME`; empty: the runtime named no pod.
    pub pod: String,
    /// Host side of its veth.
    pub interface: String,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Whether its object is known.
    pub known: bool,
    /// Policies that isolate it for ingress.
    pub ingress: Vec<String>,
    /// Number of its policy set for ingress, as it stands in the table; 0: open.
    pub ingress_set: u32,
    /// Policies that isolate it for egress.
    pub egress: Vec<String>,
    /// Number of its policy set for egress; 0: open.
    pub egress_set: u32,
}

/// Whether the kernel holds what it should, and everything can be enforced as written.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PolicyCheck {
    /// How the kernel's table differs from what it should be; none: it does not.
    pub difference: Option<String>,
    /// Objects that cannot be used or enforced as written, and why.
    pub problems: Vec<String>,
    /// Pods of this node whose object is not known: closed where their namespace has policies.
    pub unknown_pods: Vec<String>,
}

impl PolicyCheck {
    /// Whether nothing is wrong. A pod whose object is not known yet is no mistake.
    pub fn is_clean(&self) -> bool {
        self.difference.is_none() && self.problems.is_empty()
    }
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
    /// Monitoring stations.
    BgpStations,
    /// What a neighbour has told, as it came.
    BgpReceived {
        /// Its address.
        peer: IpAddr,
    },
    /// What a neighbour has been told.
    BgpAdvertised {
        /// Its address.
        peer: IpAddr,
    },
    /// End a neighbour's session, and begin it anew.
    BgpReset {
        /// Its address.
        peer: IpAddr,
        /// For the operator at the other end (RFC 9003).
        words: String,
    },
    /// Ask a neighbour for its whole table again (RFC 2918).
    BgpRefresh {
        /// Its address.
        peer: IpAddr,
    },
    /// What is wrong with this node's leases, endpoint records and interfaces?
    IpamCheck {
        /// Mend what can be mended without harm.
        mend: bool,
    },
    /// End the lease that holds an address of this node.
    IpamRelease {
        /// The address.
        address: IpAddr,
        /// Also while its pod's interface is there.
        force: bool,
    },
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
    /// Monitoring stations.
    BgpStations {
        /// One per station.
        stations: Vec<BgpStationStatus>,
    },
    /// Routes in the loc-RIB.
    BgpRoutes {
        /// One per path.
        routes: Vec<BgpRouteStatus>,
    },
    /// What a neighbour has told or been told.
    BgpPaths {
        /// One per path.
        paths: Vec<BgpPathStatus>,
    },
    /// It is done.
    Done,
    /// What is wrong.
    IpamFindings {
        /// This node.
        node: NodeName,
        /// One for each.
        findings: Vec<IpamFinding>,
    },
    /// The lease has ended.
    IpamReleased {
        /// `CONTAINER/INTERFACE` that held it.
        holder: String,
        /// All addresses of the lease.
        addresses: Vec<IpAddr>,
    },
    /// Nobody on this node holds the address.
    IpamNotHeld {
        /// This node.
        node: NodeName,
    },
    /// It could not be done.
    Failed {
        /// Why, for people.
        reason: String,
    },
}

/// Something that is wrong with addresses.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct IpamFinding {
    /// What it is about: an attachment, a block, a node, a store key.
    pub subject: String,
    /// What is wrong, in words.
    pub problem: String,
    /// What mends it: done by `--mend`, or what else to do.
    pub remedy: IpamRemedy,
}

/// What becomes of a finding.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum IpamRemedy {
    /// It was mended now.
    Mended,
    /// Asked to, it is mended.
    CanBeMended,
    /// Something that a person has to do, in words.
    ByHand(String),
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
    /// Who has BGP sessions with whom, in words; none: another backend.
    #[serde(default)]
    pub topology: Option<String>,
    /// A change to this backend that is under way, in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub changeover: Option<String>,
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
    /// UPDATE messages that it has sent, over all its sessions.
    #[serde(default)]
    pub updates: u64,
    /// BFD's word, where the peer is watched: `up`, or why it is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bfd: Option<String>,
    /// What the peer's kernel says to echoes, where it is another node: `answers`, or why a dead node could not be told
    /// from a restarted daemon.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel: Option<String>,
    /// Why the session is not, or was last not, established.
    pub last_error: Option<String>,
    /// The last NOTIFICATION that the peer was sent; it stays when a session is up again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub told: Option<String>,
    /// Seconds since then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub told_seconds: Option<u64>,
    /// How much of what it sent was not used as it came (RFC 7606), over all its sessions.
    #[serde(default)]
    pub ignored: u64,
    /// Its session is to end for a change of topology, and when: "3 prefixes have another way".
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub leaving: Option<String>,
    /// The last remark about what it sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remark: Option<String>,
}

/// A path as a neighbour told it, or was told it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BgpPathStatus {
    /// Destination.
    pub prefix: IpNet,
    /// Path identifier (RFC 7911); 0 without add-path.
    #[serde(default)]
    pub path_id: u32,
    /// Next hop.
    pub next_hop: IpAddr,
    /// AS path as text.
    pub as_path: String,
    /// LOCAL_PREF, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub local_pref: Option<u32>,
    /// MED, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub med: Option<u32>,
    /// Originator id (RFC 4456), where reflected.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub originator_id: Option<Ipv4Addr>,
    /// Communities (`64512:7`) and large ones (`64512:0:9`).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub communities: Vec<String>,
    /// Of a path that came: `best`, `used` (let in, and another one is better), or `rejected` (by filter, claim or
    /// rule). Of one that was sent: `sent`.
    pub state: String,
}

/// A monitoring station (BMP).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BgpStationStatus {
    /// Its name.
    pub name: String,
    /// Where it listens.
    pub address: std::net::SocketAddr,
    /// Whether there is a connection.
    pub connected: bool,
    /// For how long it has been so.
    pub since_seconds: u64,
    /// Messages that it was given, over all connections.
    pub messages: u64,
    /// Changed prefixes that wait for it.
    pub waiting: usize,
    /// Changes that it was not told one by one, because too many waited.
    pub dropped: u64,
    /// Neighbours that it was told anew for that.
    pub told_anew: u64,
    /// Why there is, or was last, no connection.
    #[serde(default, skip_serializing_if = "Option::is_none")]
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
    /// MED, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub med: Option<u32>,
    /// Communities (`64512:7`) and large ones (`64512:0:9`).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub communities: Vec<String>,
    /// Whether it is the best path.
    pub best: bool,
    /// Whether it is kept over its peer's restart, not refreshed yet.
    pub stale: bool,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn messages_follow_each_other_on_one_stream() {
        let mut wire = Vec::new();
        write_message(&mut wire, &RoutedRequest::Status).unwrap();
        write_message(&mut wire, &RoutedRequest::BgpRoutes).unwrap();
        assert!(wire[4..].starts_with(br#"{"version":1,"message":{"ask":"status"}}"#));
        let mut input = wire.as_slice();
        assert_eq!(read_message::<RoutedRequest>(&mut input).unwrap(), Some(RoutedRequest::Status));
        assert_eq!(read_message::<RoutedRequest>(&mut input).unwrap(), Some(RoutedRequest::BgpRoutes));
        assert_eq!(read_message::<RoutedRequest>(&mut input).unwrap(), None);
    }

    #[test]
    fn another_version_and_too_long_messages_are_told_apart() {
        let body = br#"{"version":2,"message":{"ask":"somethingNew"}}"#;
        assert!(matches!(decode_message::<RoutedRequest>(body), Err(MessageError::Version { found: 2 })));
        let mut wire: &[u8] = &[0xff; 8];
        assert!(matches!(read_message::<RoutedRequest>(&mut wire), Err(MessageError::TooLong { .. })));
        let long = "x".repeat(MAX_MESSAGE as usize);
        assert!(matches!(encode_message(&long), Err(MessageError::TooLong { .. })));
    }

    proptest! {
        #[test]
        fn a_message_survives_the_wire_and_a_part_of_it_does_not(text in any::<String>(), cut in 0usize..64) {
            let wire = encode_message(&text).unwrap();
            prop_assert_eq!(read_message::<String>(&mut wire.as_slice()).unwrap(), Some(text));
            let part = &wire[..wire.len() - 1 - cut.min(wire.len() - 2)];
            prop_assert!(matches!(read_message::<String>(&mut &part[..]), Err(MessageError::Io(_))));
        }

        #[test]
        fn no_bytes_make_the_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = read_message::<RoutedRequest>(&mut bytes.as_slice());
        }
    }
}
