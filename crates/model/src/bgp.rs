//! What operators say of BGP beyond an address and an AS number: route filters, communities, options of a peer.
//!
//! The same words serve documents of the cluster and the file of a speaker alone. Filters refuse keys that they do not
//! know even in the store: a filter of which a part is not understood would let through what it should hold back.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::ids::{Asn, ObjectName};

/// `filters/<name>`: an ordered list of rules. The first rule whose matches all hold and that has a verdict decides;
/// what a rule sets on its way is seen by those after it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BgpFilter {
    /// In order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rules: Vec<FilterRule>,
    /// What becomes of a route that no rule has decided.
    pub otherwise: FilterVerdict,
}

/// Whether a route passes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum FilterVerdict {
    /// It does.
    Accept,
    /// It does not.
    Reject,
}

/// One rule.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct FilterRule {
    /// All of them must hold; none: the rule holds always.
    #[serde(default, rename = "match", skip_serializing_if = "Vec::is_empty")]
    pub matches: Vec<FilterMatch>,
    /// What is changed, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub set: Vec<FilterSet>,
    /// None: the next rule goes on with what was set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verdict: Option<FilterVerdict>,
}

/// A condition.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum FilterMatch {
    /// The destination is in one of these.
    Prefix(Vec<PrefixMatch>),
    /// One of these communities, or of the sets of these names, is there.
    Community(Vec<String>),
    /// The AS path is empty, or is not.
    AsPathEmpty(bool),
    /// One of these stands in the AS path.
    AsPathContains(Vec<u32>),
    /// It begins with one of these: the neighbour's AS.
    AsPathFrom(Vec<u32>),
    /// It ends with one of these.
    AsPathOriginatedIn(Vec<u32>),
    /// It is longer than this.
    AsPathLongerThan(usize),
    /// It begins with all of these.
    AsPathBeginsWith(Vec<u32>),
    /// The next hop is in one of these.
    NextHop(Vec<IpNet>),
    /// Where the route comes from.
    Source(RouteSource),
    /// It comes from one of these neighbours.
    Neighbour(Vec<IpAddr>),
    /// The condition does not hold.
    Not(Box<Self>),
}

/// Destinations: a prefix and the lengths that count.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PrefixMatch {
    /// The destination is this prefix or lies inside.
    pub within: IpNet,
    /// Shortest length; none: that of `within`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shortest: Option<u8>,
    /// Longest length; none: the shortest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub longest: Option<u8>,
}

impl PrefixMatch {
    /// Shortest and longest length.
    pub fn lengths(&self) -> (u8, u8) {
        let own = self.within.prefix_len();
        (self.shortest.unwrap_or(own), self.longest.or(self.shortest).unwrap_or(own))
    }

    /// Why no prefix can be meant.
    pub fn mistake(&self) -> Option<String> {
        let (shortest, longest) = self.lengths();
        let (least, most) = (self.within.prefix_len(), self.within.max_prefix_len());
        let fits = least <= shortest && shortest <= longest && longest <= most;
        (!fits).then(|| format!("lengths in order, from {least} to {most}"))
    }
}

/// Where a route comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum RouteSource {
    /// This speaker originates it.
    Own,
    /// A plain internal neighbour: a node of the mesh.
    Internal,
    /// A client of ours as a reflector.
    Client,
    /// A reflector of ours.
    Reflector,
    /// Another AS.
    External,
}

/// ORIGIN (RFC 4271 section 4.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum RouteOrigin {
    /// `IGP`.
    Igp,
    /// `EGP`.
    Egp,
    /// `INCOMPLETE`.
    Incomplete,
}

/// A change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum FilterSet {
    /// LOCAL_PREF.
    LocalPref(u32),
    /// MED.
    Med(u32),
    /// MED is taken out.
    NoMed(bool),
    /// ORIGIN.
    Origin(RouteOrigin),
    /// A community, or a set of them by name, is added.
    AddCommunity(String),
    /// A community, or a set of them by name, is taken out.
    RemoveCommunity(String),
    /// All communities are taken out.
    ClearCommunities(bool),
    /// An AS number is put before the path.
    Prepend(Prepend),
    /// The next hop, of the family that it has (else nothing happens).
    NextHop(IpAddr),
}

/// An AS number put before the path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Prepend {
    /// The number.
    pub asn: Asn,
    /// How often.
    pub times: u8,
}

/// Communities by the name of their set.
pub type CommunitySets = BTreeMap<String, Vec<Community>>;

/// A community of one of the kinds that have a text form.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Community {
    /// RFC 1997.
    Standard(u32),
    /// RFC 8092.
    Large([u32; 3]),
}

/// Communities that have a name for everybody (RFC 1997, 3765, 7999, 8326).
const WELL_KNOWN: [(&str, u32); 6] = [
    ("graceful-shutdown", 0xffff_0000),
    ("blackhole", 0xffff_029a),
    ("no-export", 0xffff_ff01),
    ("no-advertise", 0xffff_ff02),
    ("no-export-subconfed", 0xffff_ff03),
    ("no-peer", 0xffff_ff04),
];

impl Community {
    /// What a community looks like, for messages.
    pub const EXPECTED: &str =
        "a community (64512:7, 64512:0:9, no-export, no-advertise, graceful-shutdown, …)";
}

/// Text that is no community.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} found, {expected} expected", expected = Community::EXPECTED)]
pub struct NoCommunity(pub String);

impl FromStr for Community {
    type Err = NoCommunity;

    fn from_str(text: &str) -> Result<Self, NoCommunity> {
        if let Some((_, number)) = WELL_KNOWN.iter().find(|(name, _)| *name == text) {
            return Ok(Self::Standard(*number));
        }
        let digits =
            |part: &str| part.bytes().all(|b| b.is_ascii_digit()).then(|| part.parse().ok()).flatten();
        let parts: Option<Vec<u32>> = text.split(':').map(digits).collect();
        match parts.as_deref() {
            Some(&[high, low]) if high <= 0xffff && low <= 0xffff => Ok(Self::Standard((high << 16) | low)),
            Some(&[a, b, c]) => Ok(Self::Large([a, b, c])),
            _ => Err(NoCommunity(text.to_owned())),
        }
    }
}

impl fmt::Display for Community {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Standard(number) => match WELL_KNOWN.iter().find(|(_, known)| known == number) {
                Some((name, _)) => f.write_str(name),
                None => write!(f, "{}:{}", number >> 16, number & 0xffff),
            },
            Self::Large([a, b, c]) => write!(f, "{a}:{b}:{c}"),
        }
    }
}

impl TryFrom<String> for Community {
    type Error = NoCommunity;

    fn try_from(text: String) -> Result<Self, NoCommunity> {
        text.parse()
    }
}

impl From<Community> for String {
    fn from(community: Community) -> Self {
        community.to_string()
    }
}

/// Another AS number for nodes that a selector picks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeAsn {
    /// Which nodes.
    pub node_selector: crate::k8s::LabelSelector,
    /// Their AS number.
    pub asn: Asn,
}

/// A prefix that nodes announce to peers outside the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Announced {
    /// What.
    pub prefix: IpNet,
    /// Which nodes; every node by default.
    #[serde(default, skip_serializing_if = "is_default")]
    pub node_selector: crate::k8s::LabelSelector,
}

/// What a `BGPPeer` may say beyond who it is. Every key has a default.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PeerOptions {
    /// Filter of its routes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub import_filter: Option<ObjectName>,
    /// Filter of what it is told.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub export_filter: Option<ObjectName>,
    /// Families; none: both.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub families: Option<Vec<PeerFamily>>,
    /// What an internal peer is to us.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub internal: Option<InternalRole>,
    /// Hold time in seconds; none: the cluster's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hold_time_seconds: Option<u16>,
    /// Send hold time in seconds (RFC 9687); none: 480, or twice the hold time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub send_hold_seconds: Option<u16>,
    /// Long-lived graceful restart (RFC 9494), in seconds; none: not offered.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub long_lived_seconds: Option<u32>,
    /// How many IPv4 prefixes it may send.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_prefixes_ipv4: Option<PrefixLimit>,
    /// How many IPv6 prefixes it may send.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_prefixes_ipv6: Option<PrefixLimit>,
    /// Which next hop it is told.
    #[serde(skip_serializing_if = "is_default")]
    pub next_hop: PeerNextHop,
    /// How often our own AS number may stand in its paths.
    #[serde(skip_serializing_if = "is_default")]
    pub allow_own_as: u8,
    /// Another AS number that we pretend to have.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub local_as: Option<Asn>,
    /// Our true number stays out of the paths.
    #[serde(skip_serializing_if = "is_default")]
    pub local_as_alone: bool,
    /// Our AS number takes the place of its own in paths that it is told.
    #[serde(skip_serializing_if = "is_default")]
    pub as_override: bool,
    /// Private AS numbers are taken out of paths that it is told.
    #[serde(skip_serializing_if = "is_default")]
    pub remove_private_as: bool,
    /// It is a route server: its paths need not begin with its AS number.
    #[serde(skip_serializing_if = "is_default")]
    pub is_route_server: bool,
    /// Families in which it is told a default route by way of us.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub default_originate: Vec<PeerFamily>,
    /// It is told a pool of which the node has a block in place of the blocks in it.
    #[serde(skip_serializing_if = "is_default")]
    pub aggregate: bool,
    /// Several of its paths per destination are taken (RFC 7911).
    #[serde(skip_serializing_if = "is_default")]
    pub add_path_receive: bool,
    /// So many paths per destination are sent; 0: one, without RFC 7911.
    #[serde(skip_serializing_if = "is_default")]
    pub add_path_send: u8,
    /// Our role towards it (RFC 9234).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub relation: Option<PeerRelation>,
    /// A peer that says nothing about its role is refused.
    #[serde(skip_serializing_if = "is_default")]
    pub relation_strict: bool,
    /// IPv4 prefixes with IPv6 next hops (RFC 8950) are offered.
    #[serde(skip_serializing_if = "is_default")]
    pub extended_next_hop: bool,
    /// BFD (RFC 5880); none: it is not watched.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bfd: Option<PeerBfd>,
    /// The session is shut down; the words go with the Cease (RFC 9003).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shutdown: Option<String>,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// An address family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum PeerFamily {
    /// IPv4 unicast.
    Ipv4,
    /// IPv6 unicast.
    Ipv6,
}

/// What a peer of our own AS is to us.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum InternalRole {
    /// A plain peer.
    Peer,
    /// We reflect to it.
    Client,
    /// It reflects to us.
    Reflector,
}

/// How many prefixes a peer may send.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PrefixLimit {
    /// One more ends the session.
    pub limit: u32,
    /// From which percentage on it is warned about; 0: not at all.
    #[serde(default)]
    pub warn_percent: u8,
    /// When the session may come again, in seconds; none: when the operator says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restart_seconds: Option<u32>,
}

/// Which next hop a peer is told.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum PeerNextHop {
    /// An internal peer the route's, an external one ours.
    #[default]
    Auto,
    /// Ours.
    Own,
    /// The route's.
    Keep,
}

/// Our role towards a peer (RFC 9234).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum PeerRelation {
    /// We provide transit.
    Provider,
    /// We are a route server.
    RouteServer,
    /// We are a route server's client.
    RouteServerClient,
    /// We buy transit.
    Customer,
    /// Neither buys from the other.
    Peer,
}

/// BFD timers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PeerBfd {
    /// Interval in milliseconds, both ways.
    pub interval_ms: u32,
    /// Detection multiplier.
    pub multiplier: u8,
    /// The peer is more than one hop away (RFC 5883).
    #[serde(default)]
    pub multihop: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn communities_read_as_they_are_written() {
        for (text, community) in [
            ("64512:7", Community::Standard(0xfc00_0007)),
            ("64512:0:9", Community::Large([64512, 0, 9])),
            ("no-export", Community::Standard(0xffff_ff01)),
            ("graceful-shutdown", Community::Standard(0xffff_0000)),
        ] {
            assert_eq!(text.parse(), Ok(community));
            assert_eq!(community.to_string(), text);
        }
        for text in ["", "1", "65536:1", "1:65536", "1:2:3:4", "+1:2", " 1:2", "1:2:4294967296", "No-Export"]
        {
            assert!(text.parse::<Community>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_filter_that_is_not_understood_whole_is_not_read() {
        let good = r#"{"otherwise":"reject","rules":[{"match":[{"prefix":[{"within":"10.0.0.0/8","longest":24}]}],"verdict":"accept"}]}"#;
        let filter: BgpFilter = serde_json::from_str(good).unwrap();
        assert_eq!(
            serde_json::from_str::<BgpFilter>(&serde_json::to_string(&filter).unwrap()).unwrap(),
            filter
        );
        for (known, unknown) in
            [("\"match\"", "\"matches\""), ("\"prefix\"", "\"prefixes\""), ("longest", "longer")]
        {
            assert!(serde_json::from_str::<BgpFilter>(&good.replace(known, unknown)).is_err(), "{unknown}");
        }
    }

    #[test]
    fn lengths_are_those_of_the_prefix_where_nothing_is_said() {
        let lengths = |shortest, longest| {
            let one = PrefixMatch { within: "10.0.0.0/8".parse().unwrap(), shortest, longest };
            (one.lengths(), one.mistake().is_some())
        };
        assert_eq!(lengths(None, None), ((8, 8), false));
        assert_eq!(lengths(None, Some(24)), ((8, 24), false));
        assert_eq!(lengths(Some(16), None), ((16, 16), false));
        assert_eq!(lengths(Some(7), None), ((7, 7), true));
        assert_eq!(lengths(Some(25), Some(24)), ((25, 24), true));
        assert_eq!(lengths(None, Some(33)), ((8, 33), true));
    }
}
