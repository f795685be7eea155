//! Both judges of a flow: the oracle, and the tables of the nodes that the packet passes.

use std::collections::BTreeMap;

use podway_model::names::POD_GROUP;
use podway_nft::eval::{Device, Fate, Nowhere, Packet, eval};
use podway_nft::{Hook, TableFlags, TableState};
use podway_policy::oracle::{End, Flow, Traffic};
use podway_policy::{Engine, Event, Limits};

use super::{NODES, World};

/// The table of every node.
pub type Tables = BTreeMap<&'static str, TableState>;

/// The engine of a node that has seen a cluster.
pub fn engine(world: &World, node: &str, limits: Limits) -> Engine {
    let mut engine = Engine::new(limits, TableFlags::default());
    world.namespaces.iter().cloned().map(Event::NamespacePut).for_each(|e| engine.on_event(e));
    world.pods.iter().cloned().map(Event::PodPut).for_each(|e| engine.on_event(e));
    world.policies.iter().cloned().map(Event::PolicyPut).for_each(|e| engine.on_event(e));
    for (id, endpoint) in world.endpoints(node) {
        engine.on_event(Event::EndpointPut(id, endpoint));
    }
    engine.on_synced();
    engine.flush();
    engine
}

/// Compiles a cluster for every node.
pub fn compile(world: &World, limits: Limits) -> Tables {
    NODES.into_iter().map(|(node, _)| (node, engine(world, node, limits).table())).collect()
}

/// Whether a table lets a packet pass. Scratch must be cleared where it does.
pub fn passes(table: &TableState, hook: Hook, packet: &Packet) -> bool {
    let walked = eval([table], hook, packet.clone(), &Nowhere).unwrap();
    if walked.fate != Fate::Accept {
        return false;
    }
    let mark = walked.packet.connection.entry().map_or(0, |entry| entry.mark);
    assert_eq!((walked.packet.priority, mark), (0, 0), "scratch is left behind: {packet:?}");
    true
}

/// A device, as the tables see it: pods' names begin with `pw`.
fn device(name: String) -> Device {
    let group = if name.starts_with("pw") { POD_GROUP } else { 0 };
    Device { index: 9, name, group }
}

/// Protocol, and beginning of the header, of an ordinary packet of this traffic. Of protocols without ports it has
/// what would be port 80.
fn header(traffic: Traffic) -> (u8, Vec<u8>) {
    match traffic {
        Traffic::Port(protocol, port) => (protocol.number(), Packet::ports(40_000, port)),
        Traffic::Other(number) => (number, vec![if number == 58 { 128 } else { 8 }, 0, 0, 80]),
    }
}

/// What a flow's first packet looks like on each node that it passes, and at which hook.
pub fn path(world: &World, flow: &Flow) -> Vec<(&'static str, Hook, Packet)> {
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
        let (protocol, transport) = header(flow.traffic);
        let first = Packet::new(flow.source.address(), flow.destination.address(), protocol, transport);
        let packet = Packet { input: iif.map(device), output: oif.map(device), ..first };
        path.push((node, hook, packet));
    }
    path
}

/// Whether the tables let a flow pass.
pub fn tables_allow(tables: &Tables, world: &World, flow: &Flow) -> bool {
    path(world, flow).iter().all(|(node, hook, packet)| passes(&tables[node], *hook, packet))
}

/// Where the judges differ, in words.
pub fn disagreement(tables: &Tables, world: &World, flow: &Flow) -> Option<String> {
    let decision = world.cluster().judge(flow);
    let allowed = tables_allow(tables, world, flow);
    (decision.allowed() != allowed).then(|| {
        format!("{flow:?}\n  oracle: {decision}\n  tables: {}", if allowed { "pass" } else { "drop" })
    })
}
