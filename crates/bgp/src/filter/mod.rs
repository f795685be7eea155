//! Import and export filters: an ordered list of rules. The first rule whose matches all hold and whose verdict is
//! accept or reject decides; what a rule sets on its way is seen by the rules after it.
//!
//! Pure data: a filter has no effects, and the same route with the same filter always gives the same answer. Named
//! sets are resolved by [`named`].

pub mod named;

use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::config::Role;
use crate::message::attribute::{Origin, PathAttributes, kind};

/// A list of rules.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Filter {
    /// In order.
    pub rules: Vec<Rule>,
    /// What holds for a route that no rule has decided.
    pub otherwise: Verdict,
}

/// Whether a route passes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Verdict {
    /// It does.
    Accept,
    /// It does not.
    Reject,
}

/// One rule.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Rule {
    /// All of them must hold; none: the rule holds always.
    pub matches: Vec<Match>,
    /// What is changed, in order.
    pub set: Vec<Set>,
    /// None: the next rule goes on with what was set.
    pub verdict: Option<Verdict>,
}

/// A condition.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Match {
    /// The prefix is in one of these.
    Prefix(Vec<PrefixRange>),
    /// One of these communities (RFC 1997) is there.
    Community(Vec<u32>),
    /// One of these extended communities (RFC 4360) is there.
    ExtendedCommunity(Vec<[u8; 8]>),
    /// One of these large communities (RFC 8092) is there.
    LargeCommunity(Vec<[u32; 3]>),
    /// About the AS path.
    AsPath(AsPathMatch),
    /// The next hop is in one of these.
    NextHop(Vec<IpNet>),
    /// Where the route comes from.
    Source(Source),
    /// One of these holds; of none, none.
    Any(Vec<Self>),
    /// The condition does not hold.
    Not(Box<Self>),
}

/// A prefix and the lengths that count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PrefixRange {
    /// The route's prefix is this one or lies inside.
    pub within: IpNet,
    /// Its length is at least this.
    pub shortest: u8,
    /// And at most this.
    pub longest: u8,
}

impl PrefixRange {
    /// This prefix and nothing else.
    pub fn exactly(prefix: IpNet) -> Self {
        Self { within: prefix, shortest: prefix.prefix_len(), longest: prefix.prefix_len() }
    }

    /// This prefix and all that lie inside.
    pub fn all_of(prefix: IpNet) -> Self {
        Self { within: prefix, shortest: prefix.prefix_len(), longest: prefix.max_prefix_len() }
    }

    /// Whether a prefix is in the range.
    pub fn contains(&self, prefix: &IpNet) -> bool {
        (self.shortest..=self.longest).contains(&prefix.prefix_len()) && self.within.contains(prefix)
    }
}

/// A condition about the AS path.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum AsPathMatch {
    /// It is empty: the route is of our own AS.
    Empty,
    /// One of these stands in it.
    Contains(Vec<u32>),
    /// It begins with one of these.
    From(Vec<u32>),
    /// It ends with one of these: the route was originated there.
    OriginatedIn(Vec<u32>),
    /// It is longer than this (RFC 4271 9.1.2.2 a counts).
    LongerThan(usize),
    /// The numbers, sets aside, begin with these.
    BeginsWith(Vec<u32>),
}

/// Where a route comes from.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Source {
    /// We originate it.
    Own,
    /// A neighbour of this role.
    Role(Role),
    /// One of these neighbours.
    Neighbours(Vec<IpAddr>),
}

/// A change.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Set {
    /// LOCAL_PREF.
    LocalPref(u32),
    /// MED; none: taken out.
    Med(Option<u32>),
    /// ORIGIN.
    Origin(Origin),
    /// A community (RFC 1997) is added.
    AddCommunity(u32),
    /// A community is taken out.
    RemoveCommunity(u32),
    /// An extended community is added.
    AddExtendedCommunity([u8; 8]),
    /// An extended community is taken out.
    RemoveExtendedCommunity([u8; 8]),
    /// A large community is added.
    AddLargeCommunity([u32; 3]),
    /// A large community is taken out.
    RemoveLargeCommunity([u32; 3]),
    /// Communities of all three kinds are taken out.
    ClearCommunities,
    /// An AS number is put in front so many times.
    Prepend {
        /// Which.
        asn: u32,
        /// How often.
        times: u8,
    },
    /// The next hop, of the family that it has now (else nothing happens).
    NextHop(IpAddr),
}

/// A route as a filter sees it, besides its attributes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Subject<'a> {
    /// Its destination.
    pub prefix: &'a IpNet,
    /// The neighbour that it comes from, and its role; none: we originate it.
    pub from: Option<(IpAddr, Role)>,
}

impl Filter {
    /// Everything passes as it is.
    pub fn accept() -> Self {
        Self { rules: vec![], otherwise: Verdict::Accept }
    }

    /// Nothing passes.
    pub fn reject() -> Self {
        Self { rules: vec![], otherwise: Verdict::Reject }
    }

    /// Judges a route and changes its attributes. Attributes of a rejected route are not to be used.
    pub fn apply(&self, subject: Subject<'_>, attributes: &mut PathAttributes) -> Verdict {
        self.decide(subject, attributes).0
    }

    /// The same, with the rule that decided, counted from 0; none: no rule did.
    pub fn decide(&self, subject: Subject<'_>, attributes: &mut PathAttributes) -> (Verdict, Option<usize>) {
        for (at, rule) in self.rules.iter().enumerate() {
            if !rule.matches.iter().all(|condition| condition.holds(subject, attributes)) {
                continue;
            }
            if rule.verdict == Some(Verdict::Reject) {
                return (Verdict::Reject, Some(at));
            }
            rule.set.iter().for_each(|set| set.apply(attributes));
            if let Some(verdict) = rule.verdict {
                return (verdict, Some(at));
            }
        }
        (self.otherwise, None)
    }
}

impl Match {
    fn holds(&self, subject: Subject<'_>, attributes: &PathAttributes) -> bool {
        match self {
            Self::Prefix(ranges) => ranges.iter().any(|range| range.contains(subject.prefix)),
            Self::Community(any) => {
                let wanted = |member: [u8; 4]| any.contains(&u32::from_be_bytes(member));
                attributes.members(kind::COMMUNITIES).any(wanted)
            }
            Self::ExtendedCommunity(any) => {
                attributes.members(kind::EXTENDED_COMMUNITIES).any(|member| any.contains(&member))
            }
            Self::LargeCommunity(any) => {
                let any: Vec<[u8; 12]> = any.iter().map(large).collect();
                attributes.members(kind::LARGE_COMMUNITIES).any(|member| any.contains(&member))
            }
            Self::AsPath(condition) => condition.holds(attributes),
            Self::NextHop(nets) => nets.iter().any(|net| net.contains(&attributes.next_hop)),
            Self::Source(source) => match (source, subject.from) {
                (Source::Own, from) => from.is_none(),
                (Source::Role(role), Some((_, from))) => *role == from,
                (Source::Neighbours(any), Some((from, _))) => any.contains(&from),
                (Source::Role(_) | Source::Neighbours(_), None) => false,
            },
            Self::Any(any) => any.iter().any(|condition| condition.holds(subject, attributes)),
            Self::Not(condition) => !condition.holds(subject, attributes),
        }
    }
}

impl AsPathMatch {
    fn holds(&self, attributes: &PathAttributes) -> bool {
        let path = &attributes.as_path;
        let is_one_of = |any: &[u32], asn: Option<u32>| asn.is_some_and(|asn| any.contains(&asn));
        match self {
            Self::Empty => path.is_empty(),
            Self::Contains(any) => any.iter().any(|asn| path.contains(*asn)),
            Self::From(any) => is_one_of(any, path.neighbour()),
            Self::OriginatedIn(any) => is_one_of(any, path.origin()),
            Self::LongerThan(length) => path.len() > *length,
            Self::BeginsWith(numbers) => path.sequence().take(numbers.len()).eq(numbers.iter().copied()),
        }
    }
}

impl Set {
    /// Changes a route's attributes.
    pub fn apply(&self, attributes: &mut PathAttributes) {
        match self {
            Self::LocalPref(preference) => attributes.local_pref = Some(*preference),
            Self::Med(med) => attributes.med = *med,
            Self::Origin(origin) => attributes.origin = *origin,
            Self::AddCommunity(community) => {
                attributes.add_member(kind::COMMUNITIES, community.to_be_bytes());
            }
            Self::RemoveCommunity(community) => {
                let gone = community.to_be_bytes();
                attributes.remove_members::<4>(kind::COMMUNITIES, |member| *member == gone);
            }
            Self::AddExtendedCommunity(community) => {
                attributes.add_member(kind::EXTENDED_COMMUNITIES, *community);
            }
            Self::RemoveExtendedCommunity(community) => {
                attributes.remove_members::<8>(kind::EXTENDED_COMMUNITIES, |member| member == community);
            }
            Self::AddLargeCommunity(community) => {
                attributes.add_member(kind::LARGE_COMMUNITIES, large(community));
            }
            Self::RemoveLargeCommunity(community) => {
                let gone = large(community);
                attributes.remove_members::<12>(kind::LARGE_COMMUNITIES, |member| *member == gone);
            }
            Self::ClearCommunities => {
                for kind in [kind::COMMUNITIES, kind::EXTENDED_COMMUNITIES, kind::LARGE_COMMUNITIES] {
                    attributes.set_other(kind, bytes::Bytes::new());
                }
            }
            Self::Prepend { asn, times } => (0..*times).for_each(|_| attributes.as_path.prepend(*asn)),
            Self::NextHop(next_hop) if next_hop.is_ipv4() == attributes.next_hop.is_ipv4() => {
                attributes.next_hop = *next_hop;
            }
            Self::NextHop(_) => {}
        }
    }
}

fn large(community: &[u32; 3]) -> [u8; 12] {
    let mut octets = [0; 12];
    for (part, number) in octets.chunks_exact_mut(4).zip(community) {
        part.copy_from_slice(&number.to_be_bytes());
    }
    octets
}

/// Whether an AS number is for private use (RFC 6996 section 5).
pub(crate) fn is_private(asn: u32) -> bool {
    matches!(asn, 64512..=65534 | 4_200_000_000..=4_294_967_294)
}

/// Whether an address can be the next hop of a route that we announce.
pub(crate) fn is_host(address: IpAddr) -> bool {
    !(address.is_unspecified() || address.is_multicast() || address.is_loopback())
        && address != IpAddr::V4(Ipv4Addr::BROADCAST)
}
