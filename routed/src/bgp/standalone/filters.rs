//! Filters and communities as a file names them.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use podway_bgp::config::Role;
use podway_bgp::filter::{AsPathMatch, Filter, Match, PrefixRange, Rule, Set, Source, Verdict};
use podway_bgp::message::attribute::{GRACEFUL_SHUTDOWN, NO_ADVERTISE, NO_EXPORT, Origin};
use podway_model::mistakes::Mistakes;
use serde::Deserialize;

/// A community as text: `64512:7`, `64512:0:9`, a well-known name, or the name of a set.
pub(super) type CommunityFile = String;

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct FilterFile {
    #[serde(default)]
    rules: Vec<RuleFile>,
    otherwise: VerdictFile,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "camelCase")]
enum VerdictFile {
    Accept,
    Reject,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct RuleFile {
    #[serde(default, rename = "match")]
    matches: Vec<MatchFile>,
    #[serde(default)]
    set: Vec<SetFile>,
    verdict: Option<VerdictFile>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct PrefixFile {
    within: IpNet,
    shortest: Option<u8>,
    longest: Option<u8>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
enum MatchFile {
    Prefix(Vec<PrefixFile>),
    Community(Vec<CommunityFile>),
    AsPathEmpty(bool),
    AsPathContains(Vec<u32>),
    AsPathFrom(Vec<u32>),
    AsPathOriginatedIn(Vec<u32>),
    AsPathLongerThan(usize),
    AsPathBeginsWith(Vec<u32>),
    NextHop(Vec<IpNet>),
    Source(SourceFile),
    Neighbour(Vec<IpAddr>),
    Not(Box<MatchFile>),
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "camelCase")]
enum SourceFile {
    Own,
    Internal,
    Client,
    Reflector,
    External,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "camelCase")]
enum OriginFile {
    Igp,
    Egp,
    Incomplete,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct PrependFile {
    asn: u32,
    times: u8,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
enum SetFile {
    LocalPref(u32),
    Med(u32),
    NoMed(bool),
    Origin(OriginFile),
    AddCommunity(CommunityFile),
    RemoveCommunity(CommunityFile),
    ClearCommunities(bool),
    Prepend(PrependFile),
    NextHop(IpAddr),
}

/// A community of one of the kinds that have a text form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Community {
    Standard(u32),
    Large([u32; 3]),
}

/// Everything that has a name.
#[derive(Debug, Default)]
pub(super) struct Named {
    sets: BTreeMap<String, Vec<Community>>,
    filters: BTreeMap<String, Filter>,
}

impl Named {
    pub(super) fn read(
        source: &str,
        communities: &BTreeMap<String, Vec<CommunityFile>>,
        filters: &BTreeMap<String, FilterFile>,
        mistakes: &mut Mistakes,
    ) -> Self {
        let mut named = Self::default();
        for (name, members) in communities {
            let mut set = vec![];
            for member in members {
                match community(member) {
                    Some(community) => set.push(community),
                    None => mistakes.add(source, format!("communities.{name}"), member, EXPECTED),
                }
            }
            named.sets.insert(name.clone(), set);
        }
        for (name, file) in filters {
            let mut rules = vec![];
            for (at, rule) in file.rules.iter().enumerate() {
                let mut reader = RuleReader {
                    source,
                    field: format!("filters.{name}.rules[{at}]"),
                    named: &named,
                    mistakes: &mut *mistakes,
                };
                rules.push(reader.rule(rule));
            }
            let filter = Filter { rules, otherwise: verdict(file.otherwise) };
            named.filters.insert(name.clone(), filter);
        }
        named
    }

    /// A filter by name; one that does not exist is a mistake.
    pub(super) fn filter(
        &self,
        source: &str,
        field: &str,
        name: &str,
        mistakes: &mut Mistakes,
    ) -> Option<Filter> {
        let found = self.filters.get(name).cloned();
        if found.is_none() {
            let known: Vec<&str> = self.filters.keys().map(String::as_str).collect();
            mistakes.add(source, field, name, format!("one of the filters ({})", known.join(", ")));
        }
        found
    }
}

const EXPECTED: &str = "64512:7, 64512:0:9, no-export, no-advertise or graceful-shutdown";

fn community(text: &str) -> Option<Community> {
    let well_known = match text {
        "no-export" => Some(NO_EXPORT),
        "no-advertise" => Some(NO_ADVERTISE),
        "graceful-shutdown" => Some(GRACEFUL_SHUTDOWN),
        _ => None,
    };
    if let Some(number) = well_known {
        return Some(Community::Standard(number));
    }
    let parts: Vec<u32> = text.split(':').map(str::parse).collect::<Result<_, _>>().ok()?;
    match parts[..] {
        [high, low] if high <= 0xffff && low <= 0xffff => Some(Community::Standard((high << 16) | low)),
        [a, b, c] => Some(Community::Large([a, b, c])),
        _ => None,
    }
}

fn verdict(file: VerdictFile) -> Verdict {
    match file {
        VerdictFile::Accept => Verdict::Accept,
        VerdictFile::Reject => Verdict::Reject,
    }
}

struct RuleReader<'a> {
    source: &'a str,
    field: String,
    named: &'a Named,
    mistakes: &'a mut Mistakes,
}

impl RuleReader<'_> {
    fn rule(&mut self, file: &RuleFile) -> Rule {
        let matches = file.matches.iter().map(|one| self.condition(one)).collect();
        let set = file.set.iter().flat_map(|one| self.setting(one)).collect();
        Rule { matches, set, verdict: file.verdict.map(verdict) }
    }

    /// Communities by text or by the name of their set.
    fn communities(&mut self, part: &str, names: &[CommunityFile]) -> (Vec<u32>, Vec<[u32; 3]>) {
        let (mut standard, mut large) = (vec![], vec![]);
        for name in names {
            let one = community(name).map(|one| vec![one]);
            let Some(all) = one.or_else(|| self.named.sets.get(name).cloned()) else {
                let expected = format!("{EXPECTED}, or the name of a set");
                self.mistakes.add(self.source, format!("{}.{part}", self.field), name, expected);
                continue;
            };
            for one in all {
                match one {
                    Community::Standard(number) => standard.push(number),
                    Community::Large(parts) => large.push(parts),
                }
            }
        }
        (standard, large)
    }

    fn condition(&mut self, file: &MatchFile) -> Match {
        match file {
            MatchFile::Prefix(ranges) => {
                let range = |one: &PrefixFile| PrefixRange {
                    within: one.within.trunc(),
                    shortest: one.shortest.unwrap_or(one.within.prefix_len()),
                    longest: one.longest.or(one.shortest).unwrap_or(one.within.prefix_len()),
                };
                Match::Prefix(ranges.iter().map(range).collect())
            }
            MatchFile::Community(names) => {
                let (standard, large) = self.communities("match", names);
                Match::Any(vec![Match::Community(standard), Match::LargeCommunity(large)])
            }
            MatchFile::AsPathEmpty(yes) => {
                let empty = Match::AsPath(AsPathMatch::Empty);
                if *yes { empty } else { Match::Not(Box::new(empty)) }
            }
            MatchFile::AsPathContains(any) => Match::AsPath(AsPathMatch::Contains(any.clone())),
            MatchFile::AsPathFrom(any) => Match::AsPath(AsPathMatch::From(any.clone())),
            MatchFile::AsPathOriginatedIn(any) => Match::AsPath(AsPathMatch::OriginatedIn(any.clone())),
            MatchFile::AsPathLongerThan(length) => Match::AsPath(AsPathMatch::LongerThan(*length)),
            MatchFile::AsPathBeginsWith(all) => Match::AsPath(AsPathMatch::BeginsWith(all.clone())),
            MatchFile::NextHop(nets) => Match::NextHop(nets.clone()),
            MatchFile::Source(source) => Match::Source(match source {
                SourceFile::Own => Source::Own,
                SourceFile::Internal => Source::Role(Role::Mesh),
                SourceFile::Client => Source::Role(Role::Client),
                SourceFile::Reflector => Source::Role(Role::Reflector),
                SourceFile::External => Source::Role(Role::External),
            }),
            MatchFile::Neighbour(any) => Match::Source(Source::Neighbours(any.clone())),
            MatchFile::Not(inner) => Match::Not(Box::new(self.condition(inner))),
        }
    }

    fn setting(&mut self, file: &SetFile) -> Vec<Set> {
        match file {
            SetFile::LocalPref(preference) => vec![Set::LocalPref(*preference)],
            SetFile::Med(med) => vec![Set::Med(Some(*med))],
            SetFile::NoMed(yes) => yes.then_some(Set::Med(None)).into_iter().collect(),
            SetFile::Origin(origin) => vec![Set::Origin(match origin {
                OriginFile::Igp => Origin::Igp,
                OriginFile::Egp => Origin::Egp,
                OriginFile::Incomplete => Origin::Incomplete,
            })],
            SetFile::AddCommunity(name) => {
                let (standard, large) = self.communities("set", std::slice::from_ref(name));
                let standard = standard.into_iter().map(Set::AddCommunity);
                standard.chain(large.into_iter().map(Set::AddLargeCommunity)).collect()
            }
            SetFile::RemoveCommunity(name) => {
                let (standard, large) = self.communities("set", std::slice::from_ref(name));
                let standard = standard.into_iter().map(Set::RemoveCommunity);
                standard.chain(large.into_iter().map(Set::RemoveLargeCommunity)).collect()
            }
            SetFile::ClearCommunities(yes) => yes.then_some(Set::ClearCommunities).into_iter().collect(),
            SetFile::Prepend(one) => vec![Set::Prepend { asn: one.asn, times: one.times }],
            SetFile::NextHop(next_hop) => vec![Set::NextHop(*next_hop)],
        }
    }
}
