//! What documents say of BGP: `BGPFilter`, the options of a `BGPPeer`, communities and AS numbers of nodes.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::cluster_kinds::{asn, number, prefix};
use super::labels;
use super::reader::{Field, Map};
use crate::bgp::{
    Announced, BgpFilter, Community, CommunitySets, FilterMatch, FilterRule, FilterSet, FilterVerdict,
    InternalRole, NodeAsn, PeerBfd, PeerFamily, PeerNextHop, PeerOptions, PeerRelation, PrefixLimit,
    PrefixMatch, Prepend, RouteOrigin, RouteSource,
};
use crate::cluster::{NodeBfd, PeerExport, PeerImport};

const ASN: &str = "an AS number (1 to 4294967294, not 23456)";
const ADDRESS: &str = "an IPv4 or IPv6 address";
const FILTER: &str = "the name of a BGPFilter";
const LEVELS: usize = 8;

/// A filter's `spec`.
pub(super) fn filter(field: &Field<'_>) -> Option<BgpFilter> {
    let map = field.map("a filter (rules, otherwise)")?;
    let rules = map.or("rules", vec![], |f| f.list("a list of rules", rule));
    let otherwise = map.required("otherwise", "accept or reject").and_then(|f| verdict(&f));
    map.refuse_unknown();
    Some(BgpFilter { rules: rules?, otherwise: otherwise? })
}

fn verdict(field: &Field<'_>) -> Option<FilterVerdict> {
    field.one_of(&[("accept", FilterVerdict::Accept), ("reject", FilterVerdict::Reject)])
}

fn rule(field: &Field<'_>) -> Option<FilterRule> {
    let map = field.map("a rule (match, set, verdict)")?;
    let matches = map.or("match", vec![], |f| f.list("a list of conditions", |f| condition(f, LEVELS)));
    let set = map.or("set", vec![], |f| f.list("a list of changes", setting));
    let verdict = map.maybe("verdict", verdict);
    map.refuse_unknown();
    Some(FilterRule { matches: matches?, set: set?, verdict: verdict? })
}

/// The only key of a mapping that has one of many.
fn only<T>(field: &Field<'_>, map: &Map<'_>, read: Vec<Option<Option<T>>>, expected: &str) -> Option<T> {
    let whole = map.refuse_unknown() && read.iter().all(Option::is_some);
    let mut found: Vec<T> = read.into_iter().flatten().flatten().collect();
    match (found.len(), whole) {
        (1, true) => found.pop(),
        (_, false) => None,
        (0, true) => {
            field.note("nothing", expected);
            None
        }
        (_, true) => {
            field.note("several keys", expected);
            None
        }
    }
}

fn condition(field: &Field<'_>, levels: usize) -> Option<FilterMatch> {
    let expected = "one condition (prefix, community, nextHop, source, neighbour, not, or one of asPath…)";
    let map = field.map(expected)?;
    let numbers = |f: &Field<'_>| f.list("a list of AS numbers", |f| asn(f).map(crate::ids::Asn::number));
    let sources = [
        ("own", RouteSource::Own),
        ("internal", RouteSource::Internal),
        ("client", RouteSource::Client),
        ("reflector", RouteSource::Reflector),
        ("external", RouteSource::External),
    ];
    let read = vec![
        map.maybe("prefix", |f| f.list("a list of prefixes", prefix_match).map(FilterMatch::Prefix)),
        map.maybe("community", |f| f.list("a list of communities", community).map(FilterMatch::Community)),
        map.maybe("asPathEmpty", |f| f.boolean().map(FilterMatch::AsPathEmpty)),
        map.maybe("asPathContains", |f| numbers(f).map(FilterMatch::AsPathContains)),
        map.maybe("asPathFrom", |f| numbers(f).map(FilterMatch::AsPathFrom)),
        map.maybe("asPathOriginatedIn", |f| numbers(f).map(FilterMatch::AsPathOriginatedIn)),
        map.maybe("asPathLongerThan", |f| {
            number(f, "a length from 0 to 65535", |n: u16| Some(n.into())).map(FilterMatch::AsPathLongerThan)
        }),
        map.maybe("asPathBeginsWith", |f| numbers(f).map(FilterMatch::AsPathBeginsWith)),
        map.maybe("nextHop", |f| f.list("a list of prefixes", prefix).map(FilterMatch::NextHop)),
        map.maybe("source", |f| f.one_of(&sources).map(FilterMatch::Source)),
        map.maybe("neighbour", |f| {
            f.list("a list of addresses", |f| f.parse::<IpAddr>(ADDRESS)).map(FilterMatch::Neighbour)
        }),
        map.maybe("not", |f| {
            if levels == 0 {
                f.note("not", format!("at most {LEVELS} of them inside of each other"));
                return None;
            }
            Some(FilterMatch::Not(Box::new(condition(f, levels - 1)?)))
        }),
    ];
    only(field, &map, read, expected)
}

fn prefix_match(field: &Field<'_>) -> Option<PrefixMatch> {
    let map = field.map("a prefix and lengths (within, shortest, longest)")?;
    let within = map.required("within", "an IPv4 or IPv6 prefix (10.244.0.0/16)").and_then(|f| prefix(&f));
    let length = |f: &Field<'_>| number(f, "a length from 0 to 128", |n: u8| (n <= 128).then_some(n));
    let (shortest, longest) = (map.maybe("shortest", length), map.maybe("longest", length));
    map.refuse_unknown();
    let read = PrefixMatch { within: within?, shortest: shortest?, longest: longest? };
    if let Some(expected) = read.mistake() {
        let (shortest, longest) = read.lengths();
        field.note(format!("{} from {shortest} to {longest}", read.within), expected);
        return None;
    }
    Some(read)
}

/// A community, or the name of a set: whether there is one is known where all documents are.
fn community(field: &Field<'_>) -> Option<String> {
    let expected = format!("{}, or the name of a set of ClusterConfig bgp.communities", Community::EXPECTED);
    let text = field.text(&expected)?;
    if text.parse::<Community>().is_err() && !is_set_name(text) {
        field.wrong(expected);
        return None;
    }
    Some(text.to_owned())
}

fn is_set_name(text: &str) -> bool {
    let begins = text.starts_with(|c: char| c.is_ascii_alphabetic());
    begins && text.len() <= 63 && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
}

fn setting(field: &Field<'_>) -> Option<FilterSet> {
    let expected = "one change (localPref, med, noMed, origin, addCommunity, removeCommunity, clearCommunities, \
                    prepend, nextHop)";
    let map = field.map(expected)?;
    let number32 = |f: &Field<'_>| number(f, "a number from 0 to 4294967295", |n: u32| Some(n));
    let origins =
        [("igp", RouteOrigin::Igp), ("egp", RouteOrigin::Egp), ("incomplete", RouteOrigin::Incomplete)];
    let read = vec![
        map.maybe("localPref", |f| number32(f).map(FilterSet::LocalPref)),
        map.maybe("med", |f| number32(f).map(FilterSet::Med)),
        map.maybe("noMed", |f| f.boolean().map(FilterSet::NoMed)),
        map.maybe("origin", |f| f.one_of(&origins).map(FilterSet::Origin)),
        map.maybe("addCommunity", |f| community(f).map(FilterSet::AddCommunity)),
        map.maybe("removeCommunity", |f| community(f).map(FilterSet::RemoveCommunity)),
        map.maybe("clearCommunities", |f| f.boolean().map(FilterSet::ClearCommunities)),
        map.maybe("prepend", |f| {
            let map = f.map("an AS number and how often (asn, times)")?;
            let asn = map.required("asn", ASN).and_then(|f| asn(&f));
            let times = map
                .or("times", 1, |f| number(f, "1 to 32 times", |n: u8| (1..=32).contains(&n).then_some(n)));
            map.refuse_unknown();
            Some(FilterSet::Prepend(Prepend { asn: asn?, times: times? }))
        }),
        map.maybe("nextHop", |f| f.parse::<IpAddr>(ADDRESS).map(FilterSet::NextHop)),
    ];
    only(field, &map, read, expected)
}

/// `ClusterConfig` `bgp.communities`: sets by name.
pub(super) fn communities(field: &Field<'_>) -> Option<CommunitySets> {
    let entries = field.text_map("a mapping of names to lists of communities")?;
    let read = entries.into_iter().map(|(name, value)| {
        let good = is_set_name(name) && name.parse::<Community>().is_err();
        if !good {
            value.note(
                format!("{name:?}"),
                "a name (letters, digits, '-', '_' and '.') that is no community itself",
            );
        }
        let members = value.list("a list of communities", |f| f.parse::<Community>(Community::EXPECTED))?;
        if members.is_empty() {
            value.wrong("at least one community");
        }
        (good && !members.is_empty()).then(|| (name.to_owned(), members))
    });
    read.collect::<Vec<Option<_>>>().into_iter().collect()
}

/// `ClusterConfig` `bgp.announce`.
pub(super) fn announced(field: &Field<'_>) -> Option<Vec<Announced>> {
    let read = field.list("a list of prefixes (prefix, nodeSelector)", |field| {
        let map = field.map("a prefix that nodes announce (prefix, nodeSelector)")?;
        let expected = "an IPv4 or IPv6 prefix (10.96.0.0/12), not a default route";
        let net = map.required("prefix", expected).and_then(|f| {
            let net = prefix(&f)?;
            let odd = net.prefix_len() == 0 || net.addr().is_multicast() || net.addr().is_loopback();
            if odd {
                f.wrong(expected);
            }
            (!odd).then_some(net)
        });
        let node_selector = map.or("nodeSelector", Default::default(), labels::selector);
        map.refuse_unknown();
        Some(Announced { prefix: net?, node_selector: node_selector? })
    })?;
    let all: BTreeSet<_> = read.iter().map(|one| one.prefix).collect();
    if all.len() < read.len() {
        field.note(format!("{} prefixes", read.len()), "prefixes that stand there once");
        return None;
    }
    Some(read)
}

/// `ClusterConfig` `bgp.nodeAsns`.
pub(super) fn node_asns(field: &Field<'_>) -> Option<Vec<NodeAsn>> {
    field.list("a list of AS numbers of nodes", |field| {
        let map = field.map("an AS number of nodes (nodeSelector, asn)")?;
        let node_selector =
            map.required("nodeSelector", "a label selector").and_then(|f| labels::selector(&f));
        let asn = map.required("asn", ASN).and_then(|f| asn(&f));
        map.refuse_unknown();
        Some(NodeAsn { node_selector: node_selector?, asn: asn? })
    })
}

/// Which routes of a peer are used and what it is told: with a filter and no other word, what the filter says.
pub(super) fn directions(map: &Map<'_>) -> (Option<PeerImport>, Option<PeerExport>) {
    let (filtered_in, filtered_out) = (map.has("importFilter"), map.has("exportFilter"));
    let default_in = if filtered_in { PeerImport::All } else { PeerImport::None };
    let default_out = if filtered_out { PeerExport::All } else { PeerExport::None };
    let contradiction = |f: &Field<'_>, filtered: bool, none: bool| {
        if filtered && none {
            f.wrong("something else beside a filter");
        }
        !(filtered && none)
    };
    let import = map.or("import", default_in, |f| {
        let read = f.one_of(&[("none", PeerImport::None), ("all", PeerImport::All)])?;
        contradiction(f, filtered_in, read == PeerImport::None).then_some(read)
    });
    let export = map.or("export", default_out, |f| {
        let words = [("none", PeerExport::None), ("own", PeerExport::Own), ("all", PeerExport::All)];
        let read = f.one_of(&words)?;
        contradiction(f, filtered_out, read == PeerExport::None).then_some(read)
    });
    (import, export)
}

/// The options of a `BGPPeer`, which stand beside its other keys.
pub(super) fn peer_options(map: &Map<'_>) -> Option<PeerOptions> {
    let families = |f: &Field<'_>| {
        let words = [("ipv4", PeerFamily::Ipv4), ("ipv6", PeerFamily::Ipv6)];
        let mut all = f.list("a list of ipv4 and ipv6", |f| f.one_of(&words))?;
        all.sort_unstable();
        all.dedup();
        if all.is_empty() {
            f.wrong("ipv4, ipv6, or both");
        }
        (!all.is_empty()).then_some(all)
    };
    let internal = [
        ("peer", InternalRole::Peer),
        ("client", InternalRole::Client),
        ("reflector", InternalRole::Reflector),
    ];
    let next_hops = [("auto", PeerNextHop::Auto), ("own", PeerNextHop::Own), ("keep", PeerNextHop::Keep)];
    let relations = [
        ("provider", PeerRelation::Provider),
        ("routeServer", PeerRelation::RouteServer),
        ("routeServerClient", PeerRelation::RouteServerClient),
        ("customer", PeerRelation::Customer),
        ("peer", PeerRelation::Peer),
    ];
    let default = PeerOptions::default();
    let import_filter = map.maybe("importFilter", |f| f.parse(FILTER));
    let export_filter = map.maybe("exportFilter", |f| f.parse(FILTER));
    let family = map.maybe("families", families);
    let internal = map.maybe("internal", |f| f.one_of(&internal));
    let hold_time_seconds = map.maybe("holdTimeSeconds", |f| {
        number(f, "0 (never), or 3 to 65535 seconds", |n: u16| (n == 0 || n >= 3).then_some(n))
    });
    let send_hold_seconds =
        map.maybe("sendHoldSeconds", |f| number(f, "0 (for ever) to 65535 seconds", |n: u16| Some(n)));
    let long_lived_seconds = map.maybe("longLivedSeconds", |f| {
        // RFC 9494 section 3.1: 24 bits.
        number(f, "1 to 16777215 seconds", |n: u32| (1..1 << 24).contains(&n).then_some(n))
    });
    let max_prefixes_ipv4 = map.maybe("maxPrefixesIpv4", limit);
    let max_prefixes_ipv6 = map.maybe("maxPrefixesIpv6", limit);
    let next_hop = map.or("nextHop", default.next_hop, |f| f.one_of(&next_hops));
    let allow_own_as =
        map.or("allowOwnAs", 0, |f| number(f, "0 to 10 times", |n: u8| (n <= 10).then_some(n)));
    let local_as = map.maybe("localAs", asn);
    let local_as_alone = map.or("localAsAlone", false, Field::boolean);
    let as_override = map.or("asOverride", false, Field::boolean);
    let remove_private_as = map.or("removePrivateAs", false, Field::boolean);
    let is_route_server = map.or("isRouteServer", false, Field::boolean);
    let default_originate = map.or("defaultOriginate", vec![], families);
    let aggregate = map.or("aggregate", false, Field::boolean);
    let add_path_receive = map.or("addPathReceive", false, Field::boolean);
    let add_path_send =
        map.or("addPathSend", 0, |f| number(f, "0 to 64 paths", |n: u8| (n <= 64).then_some(n)));
    let relation = map.maybe("relation", |f| f.one_of(&relations));
    let relation_strict = map.or("relationStrict", false, Field::boolean);
    let extended_next_hop = map.or("extendedNextHop", false, Field::boolean);
    let bfd = map.maybe("bfd", bfd);
    // RFC 9003 section 2: at most 255 octets.
    let shutdown = map.maybe("shutdown", |f| {
        let expected = "words for the other side's operator, at most 255 octets";
        let words = f.text(expected)?;
        if words.len() > 255 {
            f.wrong(expected);
        }
        (words.len() <= 255).then(|| words.to_owned())
    });
    Some(PeerOptions {
        import_filter: import_filter?,
        export_filter: export_filter?,
        families: family?,
        internal: internal?,
        hold_time_seconds: hold_time_seconds?,
        send_hold_seconds: send_hold_seconds?,
        long_lived_seconds: long_lived_seconds?,
        max_prefixes_ipv4: max_prefixes_ipv4?,
        max_prefixes_ipv6: max_prefixes_ipv6?,
        next_hop: next_hop?,
        allow_own_as: allow_own_as?,
        local_as: local_as?,
        local_as_alone: local_as_alone?,
        as_override: as_override?,
        remove_private_as: remove_private_as?,
        is_route_server: is_route_server?,
        default_originate: default_originate?,
        aggregate: aggregate?,
        add_path_receive: add_path_receive?,
        add_path_send: add_path_send?,
        relation: relation?,
        relation_strict: relation_strict?,
        extended_next_hop: extended_next_hop?,
        bfd: bfd?,
        shutdown: shutdown?,
    })
}

fn limit(field: &Field<'_>) -> Option<PrefixLimit> {
    let map = field.map("a limit (limit, warnPercent, restartSeconds)")?;
    let expected = "at least 1 prefix";
    let limit =
        map.required("limit", expected).and_then(|f| number(&f, expected, |n: u32| (n > 0).then_some(n)));
    let warn_percent =
        map.or("warnPercent", 0, |f| number(f, "0 (never) to 100 percent", |n: u8| (n <= 100).then_some(n)));
    let restart_seconds =
        map.maybe("restartSeconds", |f| number(f, "1 second or more", |n: u32| (n > 0).then_some(n)));
    map.refuse_unknown();
    Some(PrefixLimit { limit: limit?, warn_percent: warn_percent?, restart_seconds: restart_seconds? })
}

/// BFD timers between nodes.
pub(super) fn node_bfd(field: &Field<'_>) -> Option<NodeBfd> {
    let map = field.map("BFD timers (intervalMs, multiplier)")?;
    let (interval_ms, multiplier) = timers(&map);
    map.refuse_unknown();
    Some(NodeBfd { interval_ms: interval_ms?, multiplier: multiplier? })
}

fn timers(map: &Map<'_>) -> (Option<u32>, Option<u8>) {
    let interval_ms = map.or("intervalMs", 300, |f| {
        number(f, "10 to 60000 milliseconds", |n: u32| (10..=60_000).contains(&n).then_some(n))
    });
    let multiplier = map.or("multiplier", 3, |f| number(f, "1 to 255", |n: u8| (n > 0).then_some(n)));
    (interval_ms, multiplier)
}

fn bfd(field: &Field<'_>) -> Option<PeerBfd> {
    let map = field.map("BFD timers (intervalMs, multiplier, multihop)")?;
    let (interval_ms, multiplier) = timers(&map);
    let multihop = map.or("multihop", false, Field::boolean);
    map.refuse_unknown();
    Some(PeerBfd { interval_ms: interval_ms?, multiplier: multiplier?, multihop: multihop? })
}
