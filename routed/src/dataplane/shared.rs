//! Nodes that publish one underlay address: copied machines, two leases of one address, or a node that came back under
//! another name while its old record stands. Pure.
//!
//! They are told, and no route is taken away for it: which of them is the right one only an operator knows. Packets to the
//! blocks of both go to that address, so to whichever machine answers for it, by every backend alike; that machine forwards
//! what is for its own pods and refuses the rest. An address that is also this node's own leads nowhere: the blocks of the
//! other node have no route here.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use podway_model::ids::NodeName;

use super::desired::{Desired, Inputs};

/// Tells of them, in words: once for each address, and with each of the nodes.
pub(super) fn tell(inputs: Inputs<'_>, out: &mut Desired) {
    let mut holders: BTreeMap<IpAddr, BTreeSet<&NodeName>> = BTreeMap::new();
    for (name, node) in &inputs.view.nodes {
        let Some(record) = &node.record else { continue };
        let addresses = [record.address_v4.map(IpAddr::V4), record.address_v6.map(IpAddr::V6)];
        for address in addresses.into_iter().flatten() {
            holders.entry(address).or_default().insert(name);
        }
    }
    for (address, names) in holders.into_iter().filter(|(_, names)| names.len() > 1) {
        let list = |names: Vec<&NodeName>| {
            let names: Vec<&str> = names.into_iter().map(NodeName::as_str).collect();
            names.join(", ")
        };
        let silent = names.iter().find(|name| inputs.view.nodes.get(**name).is_some_and(|node| !node.live));
        let mend = match silent {
            Some(gone) => format!(
                "{gone} shows no sign of life: if it is gone, `podwayctl node release {gone}`; if not, give one of them \
                 another address (node.addresses or node.interface in its {})",
                podway_model::names::CONFIG_FILE
            ),
            None => format!(
                "give one of them another address, or name the right one (node.addresses or node.interface in its {})",
                podway_model::names::CONFIG_FILE
            ),
        };
        out.shared_addresses.push(format!(
            "nodes {} publish the same address {address}: packets to the pods of all of them go to whichever machine \
             answers for it; {mend}",
            list(names.iter().copied().collect())
        ));
        for name in &names {
            let others = list(names.iter().copied().filter(|other| other != name).collect());
            let problem = format!("it publishes the same address {address} as {others}");
            out.node_problems.entry((*name).clone()).or_insert(problem);
        }
    }
}
