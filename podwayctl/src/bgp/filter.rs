//! `podwayctl bgp filter test`: what a filter makes of a route, by the code that `routed` uses.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use podway_bgp::config::Role;
use podway_bgp::filter::{Set, Subject, Verdict, named};
use podway_bgp::message::attribute::PathAttributes;
use podway_model::bgp::{BgpFilter, Community, CommunitySets};
use podway_model::cluster::{ClusterConfig, decode};
use podway_model::document::Document;
use podway_model::ids::ObjectName;
use podway_model::keys::Key;
use podway_model::mistakes::Mistakes;
use serde::Serialize;

use crate::args::{FilterTestArgs, PeerRole, StoreArgs};
use crate::objects;
use crate::outcome::Failure;
use crate::output::Output;

/// What became of the route.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Judged {
    route: IpNet,
    accepted: bool,
    /// Counted from 0, as in messages about fields; none: `otherwise` decided.
    rule: Option<usize>,
    /// Of an accepted route.
    #[serde(skip_serializing_if = "Option::is_none")]
    attributes: Option<Attributes>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Attributes {
    next_hop: IpAddr,
    as_path: String,
    local_pref: Option<u32>,
    med: Option<u32>,
    communities: Vec<String>,
}

pub(crate) async fn test(store: &StoreArgs, args: &FilterTestArgs, output: &Output) -> Result<(), Failure> {
    let (filter, sets) = find(store, args).await?;
    let filter = named::resolve(&filter, &sets).map_err(|wrong| {
        let mut mistakes = Mistakes::default();
        for one in wrong {
            mistakes.add(
                format!("filter {}", args.filter),
                format!("spec.{}", one.field),
                one.found,
                one.expected,
            );
        }
        Failure::BadInput(mistakes)
    })?;
    let mut attributes = attributes(args);
    let role = match args.role {
        PeerRole::Internal => Role::Mesh,
        PeerRole::Client => Role::Client,
        PeerRole::Reflector => Role::Reflector,
        PeerRole::External => Role::External,
    };
    let subject = Subject { prefix: &args.route.trunc(), from: args.from.map(|from| (from, role)) };
    let (verdict, rule) = filter.decide(subject, &mut attributes);
    let accepted = verdict == Verdict::Accept;
    let judged = Judged {
        route: args.route.trunc(),
        accepted,
        rule,
        attributes: accepted.then(|| Attributes {
            next_hop: attributes.next_hop,
            as_path: attributes.as_path.to_string(),
            local_pref: attributes.local_pref,
            med: attributes.med,
            communities: attributes.communities(),
        }),
    };
    output.show(|_| text(&judged), &judged)?;
    if accepted { Ok(()) } else { Err(Failure::Denied) }
}

/// The filter, and the communities that it may name.
async fn find(store: &StoreArgs, args: &FilterTestArgs) -> Result<(BgpFilter, CommunitySets), Failure> {
    let name: ObjectName = args.filter.parse().map_err(|_| {
        Failure::bad_argument("FILTER", format!("{:?}", args.filter), "the name of a BGPFilter")
    })?;
    let not_found = || Failure::NotFound(format!("BGPFilter {name} not found"));
    if let Some(file) = &args.filename {
        let (mut filter, mut sets) = (None, CommunitySets::new());
        for given in objects::read_files(std::slice::from_ref(file))? {
            match given.document {
                Document::BgpFilter { name: found, spec } if found == name => filter = Some(spec),
                Document::ClusterConfig(config) => sets = config.bgp.communities,
                _ => {}
            }
        }
        return filter.map(|filter| (filter, sets)).ok_or_else(not_found);
    }
    let store = objects::open(store)?;
    let entry = store.get(&Key::Filter(name.clone()).to_string()).await?.ok_or_else(not_found)?;
    let broken = |key: &str, error| Failure::Failed(format!("{key}: {error}"));
    let filter = decode::<BgpFilter>(&entry.value).map_err(|error| broken(&entry.key, error))?;
    let sets = match store.get(&Key::Config.to_string()).await? {
        None => CommunitySets::new(),
        Some(entry) => {
            decode::<ClusterConfig>(&entry.value).map_err(|error| broken("config", error))?.bgp.communities
        }
    };
    Ok((filter, sets))
}

/// The route's attributes before the filter.
fn attributes(args: &FilterTestArgs) -> PathAttributes {
    let documentation: IpAddr = match args.route {
        IpNet::V4(_) => Ipv4Addr::new(192, 0, 2, 1).into(),
        IpNet::V6(_) => Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).into(),
    };
    let from = args.from.filter(|from| from.is_ipv4() == documentation.is_ipv4());
    let mut attributes = PathAttributes::originated(args.next_hop.or(from).unwrap_or(documentation));
    args.as_path.iter().rev().for_each(|asn| attributes.as_path.prepend(*asn));
    attributes.med = args.med;
    attributes.local_pref = args.local_pref;
    for community in &args.community {
        let set = match community {
            Community::Standard(number) => Set::AddCommunity(*number),
            Community::Large(parts) => Set::AddLargeCommunity(*parts),
        };
        set.apply(&mut attributes);
    }
    attributes
}

fn text(judged: &Judged) -> String {
    let by = judged.rule.map_or("otherwise".to_owned(), |rule| format!("rules[{rule}]"));
    let Some(attributes) = &judged.attributes else {
        return format!("{} is rejected by {by}\n", judged.route);
    };
    let mut text = format!("{} is accepted by {by}\n  next hop:     {}\n", judged.route, attributes.next_hop);
    let mut line = |name: &str, value: String| {
        if !value.is_empty() {
            text += &format!("  {:<13} {value}\n", format!("{name}:"));
        }
    };
    line("AS path", attributes.as_path.clone());
    line("local pref", attributes.local_pref.map(|n| n.to_string()).unwrap_or_default());
    line("MED", attributes.med.map(|n| n.to_string()).unwrap_or_default());
    line("communities", attributes.communities.join(" "));
    text
}
