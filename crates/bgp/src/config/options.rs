//! What a neighbour, and the speaker as a whole, may be told beyond the necessary. Every option has a default, so that
//! whoever does not care writes `..Default::default()`.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use podway_model::ids::Asn;
use serde::{Deserialize, Serialize};

use super::Neighbour;
use crate::filter::Filter;
pub use crate::message::capability::Relation;
use crate::types::{Families, Family};

/// Options of the speaker as a whole.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SpeakerOptions {
    /// Neighbours that nobody lists: whoever connects from one of these ranges is one, by the template.
    pub ranges: Vec<Range>,
    /// Neighbours that are known and not looked for: they may connect, and a session that they have goes on.
    pub circles: Vec<Circle>,
    /// Several next hops for one destination.
    pub multipath: Multipath,
    /// How MED is compared.
    pub med: Med,
    /// Maintenance: everything is announced with GRACEFUL_SHUTDOWN and the lowest preference (RFC 8326), so that
    /// traffic leaves before the sessions do.
    pub maintenance: bool,
    /// Prefixes that belong to the cluster: what lies inside of one is used only as [`super::Import::Claimed`] says,
    /// whoever tells it.
    pub claimed_only: BTreeSet<IpNet>,
}

/// Neighbours by range. The most specific range counts; they are passive, and forgotten when their session has ended
/// and none of their routes is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Range {
    /// Addresses that may connect.
    pub prefix: IpNet,
    /// What such a neighbour is told. Its address and, with `asns`, its AS number come from the connection.
    pub template: Neighbour,
    /// AS numbers that are accepted in the OPEN; none: the template's only. The template's role must be
    /// [`super::Role::External`] if there are any, and our own number makes no neighbour.
    pub asns: Option<AsRange>,
    /// How many neighbours at most; more are rejected.
    pub limit: usize,
}

/// Neighbours that have much in common and are not looked for: they connect, and are forgotten when their session has
/// ended and none of their routes is kept. While some are kept over a restart, theirs or ours, we connect too where the
/// template says so: views of who looks for whom may differ. What one costs while it is not there is an entry in a map.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Circle {
    /// Who they are: names by address, for people.
    pub members: BTreeMap<IpAddr, String>,
    /// What they have in common.
    pub template: Neighbour,
}

/// How a neighbour stands in the topology of a cluster, whose changes lose no route: make before break.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Standing {
    /// What is configured holds at once.
    #[default]
    Firm,
    /// It is wanted. What it is told is never less than before while its session is up: a client stays one.
    Wanted,
    /// It is not wanted any more, or not yet: a session goes on as it is until neither side would lose a route by its
    /// end. Both sides say so to each other, then either ends it.
    Leaving,
}

/// AS numbers from one to another, both included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct AsRange {
    /// The lowest.
    pub first: u32,
    /// The highest.
    pub last: u32,
}

/// Several next hops for one destination: the paths that are equal up to step (e) of the decision process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Multipath {
    /// How many next hops at most; 1: the best path's alone.
    pub limit: usize,
    /// External paths of equal length count as equal although they lead through different neighbouring ASes.
    pub relax: bool,
}

impl Default for Multipath {
    fn default() -> Self {
        Self { limit: 1, relax: false }
    }
}

/// How MED is compared (RFC 4271 9.1.2.2 c leaves both to configuration).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Med {
    /// Among all paths, not only among those from one neighbouring AS.
    pub always: bool,
    /// A missing MED is the worst, not the best.
    pub missing_is_worst: bool,
}

/// Options of a neighbour.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NeighbourOptions {
    /// Hold time for this neighbour; none: the speaker's.
    pub hold_time: Option<Duration>,
    /// How long sent octets may lie unacknowledged by its TCP before the session ends (RFC 9687); none: eight minutes
    /// or twice the hold time, whichever is longer; zero: for ever.
    pub send_hold: Option<Duration>,
    /// Offer extended messages (RFC 8654).
    pub extended_messages: bool,
    /// Offer enhanced route refresh (RFC 7313).
    pub enhanced_refresh: bool,
    /// Offer IPv4 prefixes with IPv6 next hops (RFC 8950).
    pub extended_next_hop: bool,
    /// Several paths per destination (RFC 7911).
    pub add_path: AddPath,
    /// Our role towards it (RFC 9234), external neighbours only.
    pub relation: Option<Relation>,
    /// Whether a neighbour that says nothing about its role is refused (RFC 9234 section 4.2, strict mode).
    pub relation_strict: bool,
    /// Long-lived graceful restart (RFC 9494): how long its routes are kept as a last resort; none: not offered.
    pub long_lived: Option<Duration>,
    /// How many prefixes it may send, per family.
    pub max_prefixes: BTreeMap<Family, MaxPrefixes>,
    /// Which next hop it is told.
    pub next_hop: NextHop,
    /// How often our own AS number may stand in a path that it sends.
    pub allow_own_as: usize,
    /// Another AS number that we pretend to have.
    pub local_as: Option<LocalAs>,
    /// Put our AS number in the place of its own in paths that it is told: sites of one AS that know each other
    /// through us only.
    pub as_override: bool,
    /// Take private AS numbers (RFC 6996) out of paths that it is told; external neighbours only.
    pub remove_private: bool,
    /// Whether an external neighbour's paths must begin with its AS (RFC 4271 6.3); a route server's do not.
    pub first_as: bool,
    /// We are a route server to it (RFC 7947): AS path, MED and next hop pass as they are.
    pub route_server_client: bool,
    /// Families in which it is told a default route by way of us.
    pub default_originate: Families,
    /// Which of its routes are used, and with which attributes.
    pub import: Option<Arc<Filter>>,
    /// What it is told, and with which attributes.
    pub export: Option<Arc<Filter>>,
    /// The session is shut down by the operator; the words go with the Cease (RFC 9003).
    pub shutdown: Option<String>,
    /// Maintenance towards this neighbour (RFC 8326).
    pub maintenance: bool,
    /// Whether NOTIFICATIONs and an expired hold timer count as a restart (RFC 8538); none: as
    /// [`super::GracefulRestart::notifications`] says.
    pub notifications_restart: Option<bool>,
    /// Whether the shell shall watch it by BFD (RFC 5882), and with which timers.
    pub bfd: Option<Bfd>,
    /// How a change of topology treats its session.
    pub standing: Standing,
    /// How the shell shall carry the session.
    pub transport: Transport,
}

/// How the shell carries a session over TCP. Connections that stand keep what they began with.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Transport {
    /// File with the key of RFC 2385; none: segments are not signed.
    pub md5_file: Option<PathBuf>,
    /// The neighbour is at most that many hops away, and packets from farther are dropped (RFC 5082); none: from
    /// anywhere. We send with TTL 255.
    pub ttl_security: Option<u8>,
    /// Differentiated services code point; none: CS6, network control.
    pub dscp: Option<u8>,
}

impl Default for NeighbourOptions {
    fn default() -> Self {
        Self {
            hold_time: None,
            send_hold: None,
            extended_messages: true,
            enhanced_refresh: true,
            extended_next_hop: false,
            add_path: AddPath::default(),
            relation: None,
            relation_strict: false,
            long_lived: None,
            max_prefixes: BTreeMap::new(),
            next_hop: NextHop::Auto,
            allow_own_as: 0,
            local_as: None,
            as_override: false,
            remove_private: false,
            first_as: true,
            route_server_client: false,
            default_originate: Families::NONE,
            import: None,
            export: None,
            shutdown: None,
            maintenance: false,
            notifications_restart: None,
            bfd: None,
            standing: Standing::Firm,
            transport: Transport::default(),
        }
    }
}

/// Several paths per destination (RFC 7911).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddPath {
    /// We can receive them.
    pub receive: bool,
    /// We send up to this many; 0: not at all.
    pub send: usize,
}

/// How many prefixes a neighbour may send.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct MaxPrefixes {
    /// The most; one more ends the session (RFC 4486 section 4).
    pub limit: u32,
    /// From which percentage on it is warned about, once; 0: not at all.
    pub warn_percent: u8,
    /// When the session may come again; none: when the operator says so.
    pub restart: Option<Duration>,
}

/// Which next hop a neighbour is told.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum NextHop {
    /// Internal neighbours the route's, external ones ours (RFC 4271 5.1.3).
    #[default]
    Auto,
    /// Ours.
    Own,
    /// The route's.
    Keep,
}

/// Another AS number that we pretend to have towards a neighbour, as after a merger.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LocalAs {
    /// The number.
    pub asn: Asn,
    /// Whether our true number, and on import the other one, stays out of the paths.
    pub alone: bool,
}

/// BFD timers (RFC 5880).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bfd {
    /// Desired Min TX Interval and Required Min RX Interval.
    pub interval: Duration,
    /// Detection multiplier.
    pub multiplier: u8,
    /// The neighbour is more than one hop away (RFC 5883).
    pub multihop: bool,
}

impl SpeakerOptions {
    /// Whether a prefix belongs to the cluster.
    pub fn is_claimed_only(&self, prefix: &IpNet) -> bool {
        self.claimed_only.iter().any(|whole| whole.contains(prefix))
    }
}

impl Range {
    /// Whether a neighbour of this range may have that AS number.
    pub fn accepts(&self, asn: u32, own: Asn) -> bool {
        match self.asns {
            Some(range) => (range.first..=range.last).contains(&asn) && asn != own.number(),
            None => asn == self.template.asn.number(),
        }
    }
}

/// Ranges that overlap without one being inside the other do not exist; equal ones are a mistake.
pub(super) fn doubled(ranges: &[Range]) -> Option<IpNet> {
    let mut seen = BTreeSet::new();
    ranges.iter().map(|range| range.prefix.trunc()).find(|prefix| !seen.insert(*prefix))
}
