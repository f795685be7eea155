//! What nodes announce beyond their blocks, to peers outside the cluster only: service ranges (`bgp.announce`), and a pool
//! in place of its blocks where a peer asks for that (`aggregate`).
//!
//! Within the cluster routes come from claims, so other nodes are told of neither: each node that is to announce a range does
//! so itself. A pool is announced by nodes that hold a block of it; the blocks in it, also those of other nodes, are kept from
//! the peer then. Packets that follow the pool to a node without the block go on by that node's own routes.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use podway_bgp::config::{Import, Neighbour, SpeakerConfig};
use podway_bgp::filter::{Filter, Match, PrefixRange, Rule, Source, Verdict};
use podway_model::ids::NodeName;

use crate::view::{ClusterView, LocalFacts};

/// Adds what this node announces, and keeps it from whom it is not for; returns what is not announced, and why.
pub(super) fn add(
    config: &mut SpeakerConfig,
    view: &ClusterView,
    node: &NodeName,
    facts: &LocalFacts,
) -> Vec<String> {
    let nothing = BTreeMap::new();
    let record = view.nodes.get(node).and_then(|node| node.record.as_ref());
    let labels = record.map_or(&nothing, |record| &record.labels);
    let (mut ranges, mut problems) = (BTreeSet::new(), vec![]);
    for (at, one) in view.config.bgp.announce.iter().enumerate() {
        let overlaps = |cidr: &IpNet| cidr.contains(&one.prefix) || one.prefix.contains(cidr);
        if let Some((name, pool)) = view.pools.iter().find(|(_, pool)| overlaps(&pool.cidr)) {
            problems.push(format!(
                "config: bgp.announce[{at}].prefix: {} found, a prefix beside pool {name} ({}) expected",
                one.prefix, pool.cidr
            ));
        } else if one.node_selector.matches(labels) {
            ranges.insert(one.prefix);
        }
    }
    let aggregates = |address: &IpAddr, neighbour: &Neighbour| {
        let peer = || view.peers.values().find(|peer| peer.address == *address);
        !is_node(neighbour) && peer().is_some_and(|peer| peer.options.aggregate)
    };
    let wanted = config.neighbours.iter().any(|(address, neighbour)| aggregates(address, neighbour));
    let held = |pool: &IpNet| config.originated.keys().any(|block| pool.contains(block) && block != pool);
    let pools: BTreeSet<IpNet> =
        view.pools.values().map(|pool| pool.cidr).filter(|pool| wanted && held(pool)).collect();

    for (address, neighbour) in &mut config.neighbours {
        let kept = if is_node(neighbour) {
            ranges.union(&pools).map(exactly).collect()
        } else if aggregates(address, neighbour) {
            pools.iter().map(within).collect()
        } else {
            pools.iter().map(exactly).collect()
        };
        keep_back(neighbour, kept, is_node(neighbour));
    }
    for circle in &mut config.options.circles {
        keep_back(&mut circle.template, ranges.union(&pools).map(exactly).collect(), true);
    }
    for prefix in ranges.union(&pools) {
        match super::desired::address_like(facts, prefix) {
            Some(hop) => drop(config.originated.insert(*prefix, hop)),
            None => problems.push(format!(
                "config: bgp.announce: {prefix} found, this node has no address of its family"
            )),
        }
    }
    problems
}

/// Whether a neighbour is a node of the cluster.
fn is_node(neighbour: &Neighbour) -> bool {
    neighbour.import == Import::Claimed
}

fn exactly(prefix: &IpNet) -> PrefixRange {
    PrefixRange { within: *prefix, shortest: prefix.prefix_len(), longest: prefix.prefix_len() }
}

/// What lies inside, but not the prefix itself.
fn within(prefix: &IpNet) -> PrefixRange {
    PrefixRange { within: *prefix, shortest: prefix.prefix_len() + 1, longest: prefix.max_prefix_len() }
}

/// Puts a rule before the neighbour's own that rejects these. `own`: only what we originate, so that a node may still
/// reflect what it learnt.
fn keep_back(neighbour: &mut Neighbour, kept: Vec<PrefixRange>, own: bool) {
    if kept.is_empty() {
        return;
    }
    let mut matches = vec![Match::Prefix(kept)];
    matches.extend(own.then_some(Match::Source(Source::Own)));
    let rule = Rule { matches, set: vec![], verdict: Some(Verdict::Reject) };
    let then = neighbour.options.export.as_deref().cloned().unwrap_or_else(Filter::accept);
    let rules = std::iter::once(rule).chain(then.rules).collect();
    neighbour.options.export = Some(Arc::new(Filter { rules, otherwise: then.otherwise }));
}
