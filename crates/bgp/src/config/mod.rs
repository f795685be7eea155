//! What the speaker is told to do. A new configuration is compared with the one in force: what did not change
//! keeps its session.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use podway_model::ids::Asn;
use serde::{Deserialize, Serialize};

use crate::types::Families;

mod options;

pub use options::{
    AddPath, AsRange, Bfd, Circle, LocalAs, MaxPrefixes, Med, Multipath, NeighbourOptions, NextHop, Range,
    Relation, SpeakerOptions, Standing, Transport,
};

/// The whole configuration of a speaker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SpeakerConfig {
    /// Own AS number.
    pub asn: Asn,
    /// BGP identifier (RFC 6286: not zero, unique within the AS).
    pub router_id: Ipv4Addr,
    /// Cluster id as a reflector (RFC 4456 section 7); none: the BGP identifier.
    pub cluster_id: Option<Ipv4Addr>,
    /// Hold time that we propose: zero, or at least 3 s; whole seconds, at most 65535.
    pub hold_time: Duration,
    /// Graceful restart, as both roles (RFC 4724); none: off.
    pub graceful_restart: Option<GracefulRestart>,
    /// Neighbours by address. A connection from any other address is refused.
    pub neighbours: BTreeMap<IpAddr, Neighbour>,
    /// Prefixes that we originate, and the next hop that they are announced with (same family).
    pub originated: BTreeMap<IpNet, IpAddr>,
    /// Addresses that are ours: a route with one of them as next hop is not used (RFC 4271 5.1.3).
    pub own_addresses: BTreeSet<IpAddr>,
    /// The rest.
    pub options: SpeakerOptions,
}

/// Graceful restart settings (RFC 4724).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GracefulRestart {
    /// How long peers keep our routes: whole seconds, at most 4095.
    pub restart_time: Duration,
    /// How long we keep a peer's stale routes at most, from the loss of the session to its End-of-RIB
    /// (RFC 4724 section 4.2, the optional upper bound).
    pub stale_time: Duration,
    /// How long selection waits for the peers that were up, after a restart (Selection_Deferral_Timer).
    pub deferral_time: Duration,
    /// What happens to routes that are stale already when their session is lost again.
    pub second_restart: SecondRestart,
    /// Whether a NOTIFICATION and an expired hold timer count as a restart too, where the peer thinks so as well
    /// (RFC 8538).
    pub notifications: bool,
}

/// What happens to routes that are stale already when their session is lost again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum SecondRestart {
    /// They are deleted, as RFC 4724 section 4.2 says.
    Delete,
    /// They stay until [`GracefulRestart::stale_time`] after the first loss: a daemon that is restarted twice in
    /// a row cuts nobody off.
    Keep,
}

/// What a speaker that starts knows of its life before.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Restarted {
    /// Peers whose session was up: only these are waited for.
    pub peers: BTreeSet<IpAddr>,
    /// Of these: those that we reflected to. Where the topology says otherwise by now ([`Standing::Wanted`]), they rely on
    /// it all the same.
    #[serde(default)]
    pub clients: BTreeSet<IpAddr>,
    /// Whether the forwarding state was preserved (the F bit says so).
    pub forwarding_preserved: bool,
}

/// One neighbour.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Neighbour {
    /// For people: a node name or the name of a peer object.
    pub name: String,
    /// Its AS number.
    pub asn: Asn,
    /// What it is to us.
    pub role: Role,
    /// Who opens the connection.
    pub connect: ConnectMode,
    /// TCP port that it listens on.
    pub port: u16,
    /// Own address of the session; none: as the kernel chooses.
    pub local_address: Option<IpAddr>,
    /// Families that we offer it.
    pub families: Families,
    /// Which of its routes may be used.
    pub import: Import,
    /// What it is told.
    pub export: Export,
    /// The rest.
    pub options: NeighbourOptions,
}

/// What a neighbour is to us.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Role {
    /// Plain iBGP: a node of the mesh, or another reflector.
    Mesh,
    /// iBGP: we reflect to it (RFC 4456 "client").
    Client,
    /// iBGP: it reflects to us. To us it is a plain peer.
    Reflector,
    /// eBGP.
    External,
}

impl Role {
    /// The word for people and for the admin socket.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Mesh => "mesh",
            Self::Client => "client",
            Self::Reflector => "reflector",
            Self::External => "external",
        }
    }
}

/// Who opens the connection to a neighbour.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ConnectMode {
    /// Both sides; a collision is resolved (RFC 4271 6.8).
    Both,
    /// It does; we only listen.
    Passive,
}

/// Which routes of a neighbour may be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Import {
    /// None (RFC 8212: eBGP without a policy).
    None,
    /// Those whose prefix and next hop stand in the claims ([`Claims`]).
    Claimed,
    /// All.
    All,
}

/// What a neighbour is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Export {
    /// Nothing (RFC 8212: eBGP without a policy).
    None,
    /// All that the rules of BGP allow.
    All,
}

/// Who holds which prefix: per prefix the next hops that are right.
pub type Claims = BTreeMap<IpNet, BTreeSet<IpAddr>>;

/// A configuration that cannot work.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// RFC 6286 section 2.1.
    #[error("router id 0.0.0.0 found, a non-zero identifier expected")]
    RouterId,
    /// RFC 4271 section 4.2.
    #[error("hold time {0:?} found, 0 or 3 to 65535 whole seconds expected")]
    HoldTime(Duration),
    /// The same of one neighbour.
    #[error("neighbour {address}: hold time {time:?} found, 0 or 3 to 65535 whole seconds expected")]
    NeighbourHoldTime {
        /// The neighbour.
        address: IpAddr,
        /// Its hold time.
        time: Duration,
    },
    /// An option that does not go with what else is said of the neighbour.
    #[error("neighbour {address}: {option} found, which {why}")]
    Option {
        /// The neighbour, or the range's first address.
        address: IpAddr,
        /// Which option.
        option: &'static str,
        /// What is wrong with it.
        why: &'static str,
    },
    /// Two ranges are one.
    #[error("range {0} found twice")]
    RangeTwice(IpNet),
    /// RFC 4271 has no destination without a next hop.
    #[error("multipath limit 0 found, at least 1 expected")]
    MultipathLimit,
    /// RFC 4724 section 3: twelve bits of seconds.
    #[error("restart time {0:?} found, at most 4095 whole seconds expected")]
    RestartTime(Duration),
    /// An iBGP role with another AS number, or eBGP with our own.
    #[error("neighbour {address}: AS {asn} found, which does not go with role {role}")]
    RoleAsn {
        /// The neighbour.
        address: IpAddr,
        /// Its AS number.
        asn: Asn,
        /// Its role.
        role: &'static str,
    },
    /// Prefix and next hop differ in family.
    #[error("originated {prefix}: next hop {next_hop} found, one of the same family expected")]
    NextHopFamily {
        /// The prefix.
        prefix: IpNet,
        /// Its next hop.
        next_hop: IpAddr,
    },
}

impl SpeakerConfig {
    /// Everything that is wrong with it.
    pub fn mistakes(&self) -> Vec<ConfigError> {
        let mut found = vec![];
        if self.router_id.is_unspecified() {
            found.push(ConfigError::RouterId);
        }
        let whole = |time: Duration| time.subsec_nanos() == 0;
        let hold = self.hold_time.as_secs();
        if !whole(self.hold_time) || hold == 1 || hold == 2 || hold > 65535 {
            found.push(ConfigError::HoldTime(self.hold_time));
        }
        if let Some(restart) = &self.graceful_restart
            && (!whole(restart.restart_time) || restart.restart_time.as_secs() > 4095)
        {
            found.push(ConfigError::RestartTime(restart.restart_time));
        }
        for (address, neighbour) in &self.neighbours {
            self.neighbour_mistakes(*address, neighbour, true, &mut found);
            // The kernel takes the most specific key that there is: none is not to be had inside of a range that signs.
            let signs = |range: &Range| range.template.options.transport.md5_file.is_some();
            if neighbour.options.transport.md5_file.is_none() && self.range_of(*address).is_some_and(signs) {
                let (option, why) = ("no TCP MD5 key", "cannot be inside of a range that has one");
                found.push(ConfigError::Option { address: *address, option, why });
            }
        }
        for range in &self.options.ranges {
            self.neighbour_mistakes(
                range.prefix.network(),
                &range.template,
                range.asns.is_none(),
                &mut found,
            );
            if range.asns.is_some() && range.template.role != Role::External {
                let (address, why) = (range.prefix.network(), "goes with role external only");
                found.push(ConfigError::Option { address, option: "a range of AS numbers", why });
            }
        }
        for circle in &self.options.circles {
            if let Some(first) = circle.members.keys().next() {
                self.neighbour_mistakes(*first, &circle.template, true, &mut found);
            }
        }
        found.extend(options::doubled(&self.options.ranges).map(ConfigError::RangeTwice));
        if self.options.multipath.limit == 0 {
            found.push(ConfigError::MultipathLimit);
        }
        for (prefix, next_hop) in &self.originated {
            if matches!(prefix, IpNet::V4(_)) != next_hop.is_ipv4() {
                found.push(ConfigError::NextHopFamily { prefix: *prefix, next_hop: *next_hop });
            }
        }
        found
    }

    fn neighbour_mistakes(
        &self,
        address: IpAddr,
        neighbour: &Neighbour,
        one_as: bool,
        found: &mut Vec<ConfigError>,
    ) {
        let options = &neighbour.options;
        let external = neighbour.role == Role::External;
        let ours = options.local_as.map_or(self.asn, |local| local.asn);
        if one_as && external == (neighbour.asn == ours) {
            let (asn, role) = (neighbour.asn, neighbour.role.as_str());
            found.push(ConfigError::RoleAsn { address, asn, role });
        }
        if let Some(time) = options.hold_time
            && (time.subsec_nanos() != 0 || matches!(time.as_secs(), 1 | 2 | 65536..))
        {
            found.push(ConfigError::NeighbourHoldTime { address, time });
        }
        let mut mistake = |wrong: bool, option, why| {
            if wrong {
                found.push(ConfigError::Option { address, option, why });
            }
        };
        let outside = "goes with role external only";
        mistake(options.local_as.is_some() && !external, "local AS", outside);
        mistake(options.as_override && !external, "AS override", outside);
        mistake(options.remove_private && !external, "remove private AS", outside);
        mistake(options.relation.is_some() && !external, "a role of RFC 9234", outside);
        mistake(options.route_server_client && !external, "route server client", outside);
        let no_role = options.relation_strict && options.relation.is_none();
        mistake(no_role, "strict role", "needs a role of RFC 9234");
        let unkept = options.long_lived.is_some() && self.graceful_restart.is_none();
        mistake(unkept, "long-lived graceful restart", "needs graceful restart");
        let slow = |bfd: &Bfd| {
            bfd.multiplier == 0 || !(crate::bfd::SHORTEST..=crate::bfd::LONGEST).contains(&bfd.interval)
        };
        let bfd = options.bfd.as_ref().is_some_and(slow);
        mistake(bfd, "BFD", "has no multiplier, or an interval not from 10 ms to 60 s");
        let transport = &options.transport;
        mistake(transport.ttl_security == Some(0), "TTL security", "is zero hops, 1 to 255 expected");
        mistake(transport.dscp.is_some_and(|dscp| dscp > 63), "DSCP", "is above 63");
        let local = neighbour.local_address.is_some_and(|local| local.is_ipv4() != address.is_ipv4());
        mistake(local, "local address", "is of another family than the neighbour's");
        mistake(neighbour.port == 0, "port", "is 0");
        let warned = |max: &MaxPrefixes| max.limit == 0 || max.warn_percent > 100;
        let maximum = options.max_prefixes.values().any(warned);
        mistake(maximum, "maximum prefixes", "is zero, or warns above 100 percent");
    }

    /// What is known of an address: its own entry, its circle, or the most specific range that it is in.
    pub fn neighbour_at(&self, address: IpAddr) -> Option<std::borrow::Cow<'_, Neighbour>> {
        use std::borrow::Cow;
        let listed = self.neighbours.get(&address).map(Cow::Borrowed);
        let in_circle = || {
            let mut circles = self.options.circles.iter();
            let (name, circle) = circles.find_map(|circle| Some((circle.members.get(&address)?, circle)))?;
            Some(Cow::Owned(Neighbour { name: name.clone(), ..circle.template.clone() }))
        };
        listed.or_else(in_circle).or_else(|| {
            let range = self.range_of(address)?;
            let name = format!("{} {address}", range.template.name);
            let connect = ConnectMode::Passive;
            Some(Cow::Owned(Neighbour { name, connect, ..range.template.clone() }))
        })
    }

    /// Addresses that sign their segments, each with the file of its key (RFC 2385).
    pub fn md5_files(&self) -> impl Iterator<Item = (IpNet, &PathBuf)> {
        let listed = self.neighbours.iter().map(|(address, neighbour)| (IpNet::from(*address), neighbour));
        let ranges = self.options.ranges.iter().map(|range| (range.prefix.trunc(), &range.template));
        let circles = self.options.circles.iter().flat_map(|circle| {
            circle.members.keys().map(|address| (IpNet::from(*address), &circle.template))
        });
        listed
            .chain(ranges)
            .chain(circles)
            .filter_map(|(of, neighbour)| Some((of, neighbour.options.transport.md5_file.as_ref()?)))
    }

    /// Whether a circle has this address.
    pub fn is_in_circle(&self, address: IpAddr) -> bool {
        self.options.circles.iter().any(|circle| circle.members.contains_key(&address))
    }

    /// The most specific range that an address is in.
    pub fn range_of(&self, address: IpAddr) -> Option<&Range> {
        let of = self.options.ranges.iter().filter(|range| range.prefix.contains(&address));
        of.max_by_key(|range| range.prefix.prefix_len())
    }

    /// The cluster id in force.
    pub fn effective_cluster_id(&self) -> Ipv4Addr {
        self.cluster_id.unwrap_or(self.router_id)
    }
}
