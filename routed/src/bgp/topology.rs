//! Nodes as neighbours: who they are to this one in the topology that it sees.
//!
//! Nodes of one AS follow the topology. Between nodes of different ASes there is always a session: what one node told
//! another one across the border would lead by way of that one, and no claim allows it.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use podway_bgp::config::{
    Bfd, Circle, Export, Import, Neighbour, NeighbourOptions, Role, SpeakerConfig, Standing, Transport,
};
use podway_bgp::topology::{Link, Member, Rule, View};
use podway_bgp::types::Families;
use podway_model::cluster::{BgpConfig, NodeRecord};
use podway_model::ids::{Asn, NodeName};

use crate::view::{ClusterView, LocalFacts};

/// What the operator wants.
pub(super) fn rule(view: &ClusterView) -> Rule {
    Rule::new(&view.config.bgp, view.reflectors.keys().cloned().collect())
}

/// The nodes of this one's AS, this one included.
pub(super) fn members(view: &ClusterView, node: &NodeName, facts: &LocalFacts) -> BTreeMap<NodeName, Member> {
    let bgp = &view.config.bgp;
    let asn = asn_of(view, node);
    let mut members = BTreeMap::new();
    for (name, other) in &view.nodes {
        let Some(record) = other.record.as_ref().filter(|record| bgp.asn_of(record) == asn) else { continue };
        let reaches = name == node || session_addresses(facts, record).is_some();
        let can_reflect = reaches && !view.drained.contains_key(name);
        let member = Member::new(record, other.live || name == node, can_reflect);
        members.insert(name.clone(), member);
    }
    members
}

/// AS number of a node; of one without a record, the cluster's.
pub(super) fn asn_of(view: &ClusterView, node: &NodeName) -> Asn {
    let record = view.nodes.get(node).and_then(|node| node.record.as_ref());
    record.map_or(view.config.bgp.asn, |record| view.config.bgp.asn_of(record))
}

/// Address of the session with another node.
pub(super) fn address_of(view: &ClusterView, facts: &LocalFacts, other: &NodeName) -> Option<IpAddr> {
    let record = view.nodes.get(other)?.record.as_ref()?;
    session_addresses(facts, record).map(|(_, theirs)| theirs)
}

/// Puts the other nodes into the speaker's configuration.
pub(super) fn add(
    config: &mut SpeakerConfig,
    view: &ClusterView,
    node: &NodeName,
    facts: &LocalFacts,
    topology: &View,
) {
    let bgp = &view.config.bgp;
    // By role, standing, who connects, and family of the session: what their members have in common.
    let mut circles: BTreeMap<(Role, Standing, bool, bool), Circle> = BTreeMap::new();
    for (name, other) in view.nodes.iter().filter(|(name, _)| *name != node) {
        let Some(record) = &other.record else { continue };
        let Some((ours, theirs)) = session_addresses(facts, record) else { continue };
        let (is_lower, their_asn) = (ours < theirs, bgp.asn_of(record));
        let link = if their_asn == config.asn {
            Link::new(topology, node, name, is_lower)
        } else {
            // As in a mesh: the lower address connects.
            Link { role: Role::External, ..Link::new(&View::Mesh, node, name, is_lower) }
        };
        if link.listed {
            let neighbour = neighbour(name.to_string(), their_asn, ours, bgp, link);
            config.neighbours.insert(theirs, neighbour);
        } else {
            let common = (link.role, link.standing, is_lower, ours.is_ipv4());
            let circle = circles.entry(common).or_insert_with(|| {
                let template = neighbour(String::new(), their_asn, ours, bgp, link);
                Circle { members: BTreeMap::new(), template }
            });
            circle.members.insert(theirs, name.to_string());
        }
    }
    config.options.circles = circles.into_values().collect();
}

fn neighbour(name: String, asn: Asn, local_address: IpAddr, bgp: &BgpConfig, link: Link) -> Neighbour {
    Neighbour {
        name,
        asn,
        role: link.role,
        connect: link.connect,
        port: bgp.port,
        local_address: Some(local_address),
        families: Families::BOTH,
        import: Import::Claimed,
        export: Export::All,
        options: NeighbourOptions {
            transport: Transport { md5_file: bgp.password_file.clone(), ttl_security: None, dscp: bgp.dscp },
            bfd: bgp.bfd.map(|bfd| Bfd {
                interval: Duration::from_millis(bfd.interval_ms.into()),
                multiplier: bfd.multiplier,
                multihop: true,
            }),
            // A silent node is dead or restarts: its kernel is asked, so neither is mistaken for the other.
            notifications_restart: Some(true),
            standing: link.standing,
            ..NeighbourOptions::default()
        },
    }
}

/// Own and other address of a session: IPv4 if both have it, else IPv6. Routes of both families go over it.
fn session_addresses(facts: &LocalFacts, record: &NodeRecord) -> Option<(IpAddr, IpAddr)> {
    let v4 = facts.address_v4.zip(record.address_v4).map(|(a, b)| (IpAddr::V4(a), IpAddr::V4(b)));
    let v6 = || facts.address_v6.zip(record.address_v6).map(|(a, b)| (IpAddr::V6(a), IpAddr::V6(b)));
    v4.or_else(v6).filter(|(ours, theirs)| ours != theirs)
}
