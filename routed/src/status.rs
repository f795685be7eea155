//! What `routed` tells people: the answers on its socket, readiness, metrics. A pure summary of what the parts
//! publish.

use std::net::IpAddr;

use podway_model::ids::{InstanceId, NodeName};
use podway_model::socket::{BlockStatus, NodeStatus, RoutedStatus};

use crate::dataplane::DataplaneStatus;
use crate::underlay::UnderlayStatus;
use crate::view::{ClusterView, LocalFacts, NodeView, OwnBlockState};

/// The latest of everything that the parts publish.
pub(crate) struct Inputs<'a> {
    /// This node.
    pub(crate) node: &'a NodeName,
    /// This installation.
    pub(crate) instance_id: &'a InstanceId,
    /// The cluster.
    pub(crate) view: &'a ClusterView,
    /// The underlay, once known.
    pub(crate) facts: Option<&'a LocalFacts>,
    /// What is wrong with the underlay.
    pub(crate) underlay: &'a UnderlayStatus,
    /// The kernel.
    pub(crate) dataplane: &'a DataplaneStatus,
}

/// What is missing until the node is ready: in sync with the store, blocks claimed, kernel programmed.
pub(crate) fn waiting_for(inputs: &Inputs<'_>) -> Vec<String> {
    let mut missing = vec![];
    if inputs.facts.is_none() {
        missing.push(match inputs.underlay.problems.first() {
            Some(problem) => format!("underlay: {problem}"),
            None => "underlay: no address found yet".to_owned(),
        });
    }
    let view = inputs.view;
    if !view.synced {
        missing.push(format!("store: no snapshot yet ({})", view.store));
    } else if view.pools.is_empty() {
        missing.push("pools: none usable; make one with podwayctl apply -f".to_owned());
    } else if !view.own_blocks.iter().any(|block| block.state == OwnBlockState::Active) {
        missing.push("blocks: none confirmed for this node yet".to_owned());
    }
    if !inputs.dataplane.programmed {
        match inputs.dataplane.waiting_for.as_slice() {
            [] => missing.push("kernel: not programmed yet".to_owned()),
            reasons => missing.extend(reasons.iter().map(|reason| format!("kernel: {reason}"))),
        }
    }
    missing
}

/// What an operator should see to though the node does its part: shown with readiness, and never in its way. A node that is
/// not ready is taken out of service with all its pods, which no firewall between nodes and no other node's mistake deserves.
pub(crate) fn remarks(inputs: &Inputs<'_>) -> Vec<String> {
    let dataplane = inputs.dataplane;
    dataplane.foreign_firewalls.iter().chain(&dataplane.shared_addresses).cloned().collect()
}

/// The whole answer to `podwayctl status`. `held` are the addresses that are leased on this node.
pub(crate) fn status(inputs: &Inputs<'_>, held: &[IpAddr]) -> RoutedStatus {
    let view = inputs.view;
    let dataplane = inputs.dataplane;
    let tunnels = [view.tunnel_v4.map(IpAddr::V4), view.tunnel_v6.map(IpAddr::V6)];
    let mut problems = dataplane.problems.clone();
    problems.extend(inputs.underlay.problems.iter().cloned());
    problems.extend(view.problems.iter().cloned());
    RoutedStatus {
        node: inputs.node.clone(),
        instance_id: inputs.instance_id.clone(),
        pid: std::process::id(),
        ready: waiting_for(inputs).is_empty(),
        waiting_for: waiting_for(inputs),
        store: view.store.clone(),
        revision: view.revision,
        backend: dataplane.backend.clone(),
        topology: None,
        changeover: dataplane.changeover.clone(),
        addresses: inputs.facts.map(addresses).unwrap_or_default(),
        tunnel_addresses: tunnels.into_iter().flatten().collect(),
        mtu: dataplane.mtu.map_or(0, podway_model::ids::Mtu::bytes),
        blocks: view
            .own_blocks
            .iter()
            .map(|block| BlockStatus {
                cidr: block.cidr,
                pool: block.pool.to_string(),
                state: state_name(block.state).to_owned(),
                leased: saturating(held.iter().filter(|address| block.cidr.contains(*address)).count()),
            })
            .collect(),
        devices: dataplane.devices.clone(),
        nodes: view.nodes.iter().map(|(name, node)| node_status(name, node, dataplane)).collect(),
        routes: dataplane.routes,
        problems,
        counters: dataplane.counters.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect(),
    }
}

fn saturating(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

fn addresses(facts: &LocalFacts) -> Vec<IpAddr> {
    [facts.address_v4.map(IpAddr::V4), facts.address_v6.map(IpAddr::V6)].into_iter().flatten().collect()
}

fn node_status(name: &NodeName, node: &NodeView, dataplane: &DataplaneStatus) -> NodeStatus {
    let addresses = node
        .record
        .iter()
        .flat_map(|record| [record.address_v4.map(IpAddr::V4), record.address_v6.map(IpAddr::V6)])
        .flatten()
        .collect();
    NodeStatus {
        node: name.clone(),
        addresses,
        live: node.live,
        blocks: node.blocks.iter().copied().collect(),
        problem: dataplane.node_problems.get(name).cloned(),
    }
}

fn state_name(state: OwnBlockState) -> &'static str {
    match state {
        OwnBlockState::Pending => "pending",
        OwnBlockState::Active => "active",
        OwnBlockState::Draining => "draining",
        OwnBlockState::Stranded => "stranded",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::view::OwnBlock;

    struct Parts {
        node: NodeName,
        instance_id: InstanceId,
        view: ClusterView,
        facts: Option<LocalFacts>,
        underlay: UnderlayStatus,
        dataplane: DataplaneStatus,
    }

    impl Parts {
        fn new() -> Self {
            Self {
                node: "n1".parse().unwrap(),
                instance_id: "6f2c1c1e-0000-4000-8000-0123456789ab".parse().unwrap(),
                view: ClusterView::default(),
                facts: None,
                underlay: UnderlayStatus::default(),
                dataplane: DataplaneStatus::default(),
            }
        }

        fn ready() -> Self {
            let mut parts = Self::new();
            let pool = serde_json::from_str(r#"{"cidr":"10.244.0.0/16"}"#).unwrap();
            parts.view.synced = true;
            parts.view.pools.insert("default".parse().unwrap(), pool);
            parts.view.own_blocks.push(OwnBlock {
                cidr: "10.244.0.0/26".parse().unwrap(),
                pool: "default".parse().unwrap(),
                state: OwnBlockState::Active,
            });
            parts.facts = Some(LocalFacts {
                address_v4: Some([192, 168, 0, 1].into()),
                address_v6: None,
                on_link: vec![],
                interface: "eth0".parse().unwrap(),
                ifindex: 2,
                mtu: podway_model::ids::Mtu::ETHERNET,
            });
            parts.dataplane.programmed = true;
            parts
        }

        fn inputs(&self) -> Inputs<'_> {
            Inputs {
                node: &self.node,
                instance_id: &self.instance_id,
                view: &self.view,
                facts: self.facts.as_ref(),
                underlay: &self.underlay,
                dataplane: &self.dataplane,
            }
        }
    }

    #[test]
    fn each_missing_part_has_its_own_words() {
        let fresh = waiting_for(&Parts::new().inputs());
        assert_eq!(fresh.len(), 3, "{fresh:?}");
        assert!(waiting_for(&Parts::ready().inputs()).is_empty());

        let mut parts = Parts::ready();
        parts.view.own_blocks[0].state = OwnBlockState::Pending;
        assert_eq!(waiting_for(&parts.inputs()), ["blocks: none confirmed for this node yet"]);

        let mut parts = Parts::ready();
        parts.view.pools.clear();
        assert!(waiting_for(&parts.inputs())[0].starts_with("pools: none usable"));

        let mut parts = Parts::ready();
        parts.facts = None;
        parts.underlay.problems.push("interface eth7 found, an existing one expected".into());
        assert!(waiting_for(&parts.inputs())[0].contains("eth7"));
    }

    #[test]
    fn status_joins_leases_problems_and_nodes() {
        let mut parts = Parts::ready();
        parts.view.nodes.insert("n2".parse().unwrap(), NodeView { live: true, ..Default::default() });
        parts.dataplane.node_problems.insert("n2".parse().unwrap(), "not on link".into());
        parts.dataplane.problems.push("first".into());
        parts.view.problems.push("last".into());
        let held = ["10.244.0.1", "10.244.0.63", "10.244.0.64"].map(|ip| ip.parse().unwrap());
        let status = status(&parts.inputs(), &held);
        assert!(status.ready);
        assert_eq!(status.blocks[0].leased, 2);
        assert_eq!(status.problems, ["first", "last"]);
        assert_eq!(status.nodes[0].problem.as_deref(), Some("not on link"));
        assert_eq!(status.addresses, [IpAddr::from([192, 168, 0, 1])]);
    }
}
