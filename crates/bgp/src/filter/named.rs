//! Filters as operators write them ([`podway_model::bgp`]), with the names in them resolved.

use podway_model::bgp::{
    BgpFilter, Community, CommunitySets, FilterMatch, FilterRule, FilterSet, FilterVerdict, PrefixMatch,
    RouteOrigin, RouteSource,
};

use super::{AsPathMatch, Filter, Match, PrefixRange, Rule, Set, Source, Verdict};
use crate::config::Role;
use crate::message::attribute::Origin;

/// A part of a filter that means nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {found:?} found, {expected} expected")]
pub struct Meaningless {
    /// Which part: `rules[0].match`.
    pub field: String,
    /// What stands there.
    pub found: String,
    /// What was expected.
    pub expected: String,
}

/// Resolves a filter.
///
/// # Errors
/// Every part that means nothing.
pub fn resolve(filter: &BgpFilter, sets: &CommunitySets) -> Result<Filter, Vec<Meaningless>> {
    let mut wrong = vec![];
    let mut rules = Vec::with_capacity(filter.rules.len());
    for (at, rule) in filter.rules.iter().enumerate() {
        let mut resolver = Resolver { sets, field: format!("rules[{at}]"), wrong: &mut wrong };
        rules.push(resolver.rule(rule));
    }
    if wrong.is_empty() { Ok(Filter { rules, otherwise: verdict(filter.otherwise) }) } else { Err(wrong) }
}

fn verdict(verdict: FilterVerdict) -> Verdict {
    match verdict {
        FilterVerdict::Accept => Verdict::Accept,
        FilterVerdict::Reject => Verdict::Reject,
    }
}

struct Resolver<'a> {
    sets: &'a CommunitySets,
    field: String,
    wrong: &'a mut Vec<Meaningless>,
}

impl Resolver<'_> {
    fn rule(&mut self, rule: &FilterRule) -> Rule {
        let matches = rule.matches.iter().map(|one| self.condition(one)).collect();
        let set = rule.set.iter().flat_map(|one| self.setting(one)).collect();
        Rule { matches, set, verdict: rule.verdict.map(verdict) }
    }

    /// Communities by text or by the name of their set.
    fn communities(&mut self, part: &str, names: &[String]) -> (Vec<u32>, Vec<[u32; 3]>) {
        let (mut standard, mut large) = (vec![], vec![]);
        for name in names {
            let one = name.parse().ok().map(|one| vec![one]);
            let Some(all) = one.or_else(|| self.sets.get(name).cloned()) else {
                let known: Vec<&str> = self.sets.keys().map(String::as_str).collect();
                let expected =
                    format!("{}, or the name of a set ({})", Community::EXPECTED, known.join(", "));
                let field = format!("{}.{part}", self.field);
                self.wrong.push(Meaningless { field, found: name.clone(), expected });
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

    fn range(&mut self, one: &PrefixMatch) -> PrefixRange {
        let (shortest, longest) = one.lengths();
        if let Some(expected) = one.mistake() {
            let found = format!("{} from {shortest} to {longest}", one.within);
            self.wrong.push(Meaningless { field: format!("{}.match", self.field), found, expected });
        }
        PrefixRange { within: one.within.trunc(), shortest, longest }
    }

    fn condition(&mut self, condition: &FilterMatch) -> Match {
        match condition {
            FilterMatch::Prefix(ranges) => Match::Prefix(ranges.iter().map(|one| self.range(one)).collect()),
            FilterMatch::Community(names) => {
                let (standard, large) = self.communities("match", names);
                Match::Any(vec![Match::Community(standard), Match::LargeCommunity(large)])
            }
            FilterMatch::AsPathEmpty(yes) => {
                let empty = Match::AsPath(AsPathMatch::Empty);
                if *yes { empty } else { Match::Not(Box::new(empty)) }
            }
            FilterMatch::AsPathContains(any) => Match::AsPath(AsPathMatch::Contains(any.clone())),
            FilterMatch::AsPathFrom(any) => Match::AsPath(AsPathMatch::From(any.clone())),
            FilterMatch::AsPathOriginatedIn(any) => Match::AsPath(AsPathMatch::OriginatedIn(any.clone())),
            FilterMatch::AsPathLongerThan(length) => Match::AsPath(AsPathMatch::LongerThan(*length)),
            FilterMatch::AsPathBeginsWith(all) => Match::AsPath(AsPathMatch::BeginsWith(all.clone())),
            FilterMatch::NextHop(nets) => Match::NextHop(nets.clone()),
            FilterMatch::Source(source) => Match::Source(match source {
                RouteSource::Own => Source::Own,
                RouteSource::Internal => Source::Role(Role::Mesh),
                RouteSource::Client => Source::Role(Role::Client),
                RouteSource::Reflector => Source::Role(Role::Reflector),
                RouteSource::External => Source::Role(Role::External),
            }),
            FilterMatch::Neighbour(any) => Match::Source(Source::Neighbours(any.clone())),
            FilterMatch::Not(inner) => Match::Not(Box::new(self.condition(inner))),
        }
    }

    fn setting(&mut self, setting: &FilterSet) -> Vec<Set> {
        match setting {
            FilterSet::LocalPref(preference) => vec![Set::LocalPref(*preference)],
            FilterSet::Med(med) => vec![Set::Med(Some(*med))],
            FilterSet::NoMed(yes) => yes.then_some(Set::Med(None)).into_iter().collect(),
            FilterSet::Origin(origin) => vec![Set::Origin(match origin {
                RouteOrigin::Igp => Origin::Igp,
                RouteOrigin::Egp => Origin::Egp,
                RouteOrigin::Incomplete => Origin::Incomplete,
            })],
            FilterSet::AddCommunity(name) => {
                let (standard, large) = self.communities("set", std::slice::from_ref(name));
                let standard = standard.into_iter().map(Set::AddCommunity);
                standard.chain(large.into_iter().map(Set::AddLargeCommunity)).collect()
            }
            FilterSet::RemoveCommunity(name) => {
                let (standard, large) = self.communities("set", std::slice::from_ref(name));
                let standard = standard.into_iter().map(Set::RemoveCommunity);
                standard.chain(large.into_iter().map(Set::RemoveLargeCommunity)).collect()
            }
            FilterSet::ClearCommunities(yes) => yes.then_some(Set::ClearCommunities).into_iter().collect(),
            FilterSet::Prepend(one) => vec![Set::Prepend { asn: one.asn.number(), times: one.times }],
            FilterSet::NextHop(next_hop) => vec![Set::NextHop(*next_hop)],
        }
    }
}
