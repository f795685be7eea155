//! Both judges of a flow: the oracle, and the tables of the nodes that the packet passes.

use std::collections::BTreeMap;

use podway_nft::{Hook, TableFlags, TableState};
use podway_policy::oracle::{End, Flow};
use podway_policy::{Engine, Event, Limits};

use super::walk::{Packet, Tracked, echo_type, passes};
use super::{NODES, World};

/// The table of every node.
pub type Tables = BTreeMap<&'static str, TableState>;

/// Compiles a cluster for every node.
pub fn compile(world: &World, limits: Limits) -> Tables {
    let compile = |node: &'static str| {
        let mut engine = Engine::new(limits, TableFlags::default());
        world.namespaces.iter().cloned().map(Event::NamespacePut).for_each(|e| engine.on_event(e));
        world.pods.iter().cloned().map(Event::PodPut).for_each(|e| engine.on_event(e));
        world.policies.iter().cloned().map(Event::PolicyPut).for_each(|e| engine.on_event(e));
        for (id, endpoint) in world.endpoints(node) {
            engine.on_event(Event::EndpointPut(id, endpoint));
        }
        engine.on_synced();
        engine.flush();
        (node, engine.table())
    };
    NODES.into_iter().map(|(node, _)| compile(node)).collect()
}

/// What a flow's first packet looks like on each node that it passes.
pub fn path(world: &World, flow: &Flow) -> Vec<(&'static str, Packet)> {
    let place = |end: &End| {
        let node = world.node_of(end)?;
        let (name, _) = NODES.into_iter().find(|(n, _)| *n == node)?;
        Some((name, world.interface_of(end)))
    };
    let (from, to) = (place(&flow.source), place(&flow.destination));
    let mut path = Vec::new();
    for (node, _) in NODES {
        let (from, to) = [&from, &to].map(|end| end.clone().filter(|(n, _)| *n == node)).into();
        let underlay = || Some("eth0".to_owned());
        // (input interface, output interface); a local end without an interface is the node itself.
        let (hook, iif, oif) = match (from, to) {
            (None, None) => continue,
            (Some((_, None)), to) => (Hook::Output, None, to.and_then(|(_, veth)| veth).or_else(underlay)),
            (from, Some((_, None))) => (Hook::Input, from.and_then(|(_, veth)| veth).or_else(underlay), None),
            (from, to) => {
                let veth =
                    |end: Option<(&str, Option<String>)>| end.and_then(|(_, veth)| veth).or_else(underlay);
                (Hook::Forward, veth(from), veth(to))
            }
        };
        let packet = Packet {
            hook,
            iif,
            oif,
            source: flow.source.address(),
            destination: flow.destination.address(),
            traffic: flow.traffic,
            icmp_type: echo_type(flow.traffic),
            tracked: Tracked::New,
        };
        path.push((node, packet));
    }
    path
}

/// Whether the tables let a flow pass.
pub fn tables_allow(tables: &Tables, world: &World, flow: &Flow) -> bool {
    path(world, flow).iter().all(|(node, packet)| passes(&tables[node], packet))
}

/// Where the judges differ, in words.
pub fn disagreement(tables: &Tables, world: &World, flow: &Flow) -> Option<String> {
    let decision = world.cluster().judge(flow);
    let allowed = tables_allow(tables, world, flow);
    (decision.allowed() != allowed).then(|| {
        format!("{flow:?}\n  oracle: {decision}\n  tables: {}", if allowed { "pass" } else { "drop" })
    })
}
