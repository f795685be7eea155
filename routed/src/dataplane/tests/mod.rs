//! Tests of the data plane: tables for what is desired, a fake kernel under random disturbance, and the kernel.

mod backends;
mod changeover;
mod fake;
mod forward;
mod kernel;
mod packets;
mod parts;
mod tables;

use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;
use podway_kern::wireguard::PrivateKey;
use podway_model::cluster::{Assignment, Backend, ClusterConfig, Encapsulation, NodeRecord, Pool};
use podway_model::ids::{NodeName, WireguardKey};
use podway_model::k8s::LabelSelector;
use podway_model::names::{VXLAN_DEVICE, vtep_mac};

use super::actual::Actual;
use super::changeover::Times;
use super::desired::{Desired, Inputs, desired};
use super::plan::{additions, removals, wireguard_additions, wireguard_removals};
use crate::view::{BgpRoutes, ClusterView, LocalFacts, NodeView, OwnBlock, OwnBlockState};

pub(super) fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

pub(super) fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

pub(super) fn name(text: &str) -> NodeName {
    text.parse().unwrap()
}

/// A change that nobody answers to takes this long.
pub(super) const TIMES: Times = Times {
    prepare: Duration::from_millis(200),
    linger: Duration::from_millis(200),
    overtaken: Duration::from_secs(60),
    withdraw: Duration::from_millis(100),
    absent: Duration::from_secs(600),
};

fn pool(cidr: &str) -> Pool {
    Pool {
        cidr: net(cidr),
        block_size: None,
        node_selector: LabelSelector::default(),
        namespace_selector: None,
        nat: true,
        assignment: Assignment::Automatic,
        encapsulation: None,
        disabled: false,
    }
}

/// Node `n<i>`: underlay 192.0.2.<i> and fd00:2::<i>, blocks 10.244.<i>.0/26 and fd00:244:<i>::/122, each
/// block's first address as tunnel address.
pub(super) fn node(i: u8) -> NodeView {
    let node = format!("n{i}");
    NodeView {
        record: Some(NodeRecord {
            instance_id: "00000000-0000-4000-8000-000000000001".parse().unwrap(),
            address_v4: Some([192, 0, 2, i].into()),
            address_v6: Some(format!("fd00:2::{i}").parse().unwrap()),
            tunnel_v4: Some([10, 244, i, 0].into()),
            tunnel_v6: Some(format!("fd00:244:{i}::").parse().unwrap()),
            labels: Default::default(),
            asn: None,
            vtep_mac: Some(vtep_mac(&node, VXLAN_DEVICE)),
            wireguard_key: Some(WireguardKey([i; 32])),
            version: "test".to_owned(),
            ways: None,
        }),
        live: true,
        blocks: [net(&format!("10.244.{i}.0/26")), net(&format!("fd00:244:{i}::/122"))].into(),
    }
}

/// Whether nothing is left to do.
pub(super) fn is_settled(desired: &Desired, actual: &Actual) -> bool {
    additions(desired, actual).is_empty()
        && removals(desired, actual).is_empty()
        && wireguard_additions(desired, actual).is_empty()
        && wireguard_removals(desired, actual).is_empty()
}

/// What this node, `n1`, knows of a cluster of `n1`, `n2` and `n3`.
#[derive(Debug, Clone)]
pub(super) struct Cluster {
    pub(super) node: NodeName,
    pub(super) view: ClusterView,
    pub(super) facts: LocalFacts,
    pub(super) bgp: BgpRoutes,
    pub(super) wireguard: Result<PrivateKey, String>,
}

impl Cluster {
    pub(super) fn new(backend: Backend) -> Self {
        let own = |cidr: &str, pool: &str| OwnBlock {
            cidr: net(cidr),
            pool: pool.parse().unwrap(),
            state: OwnBlockState::Active,
        };
        let mut view = ClusterView {
            synced: true,
            config: ClusterConfig { backend, ..ClusterConfig::default() },
            pools: [("v4", "10.244.0.0/16"), ("v6", "fd00:244::/32")]
                .map(|(name, cidr)| (name.parse().unwrap(), pool(cidr)))
                .into(),
            nodes: (1..=3).map(|i| (name(&format!("n{i}")), node(i))).collect(),
            own_blocks: vec![own("10.244.1.0/26", "v4"), own("fd00:244:1::/122", "v6")],
            tunnel_v4: Some([10, 244, 1, 0].into()),
            tunnel_v6: Some("fd00:244:1::".parse().unwrap()),
            ..ClusterView::default()
        };
        if backend == Backend::Ipip {
            // IPIP carries no IPv6.
            let v6 = view.pools.get_mut(&"v6".parse().unwrap()).unwrap();
            v6.encapsulation = Some(Encapsulation::Vxlan);
        }
        let bgp = BgpRoutes {
            synced: true,
            routes: [2, 3]
                .into_iter()
                .flat_map(|i| {
                    [
                        (net(&format!("10.244.{i}.0/26")), vec![ip(&format!("192.0.2.{i}"))]),
                        (net(&format!("fd00:244:{i}::/122")), vec![ip(&format!("fd00:2::{i}"))]),
                    ]
                })
                .collect(),
        };
        let facts = LocalFacts {
            address_v4: Some([192, 0, 2, 1].into()),
            address_v6: Some("fd00:2::1".parse().unwrap()),
            on_link: vec![(2, net("192.0.2.0/24")), (2, net("fd00:2::/64"))],
            interface: "eth0".parse().unwrap(),
            ifindex: 2,
            mtu: 1500.try_into().unwrap(),
        };
        let wireguard = Ok(PrivateKey::from_random([1; 32]));
        Self { node: name("n1"), view, facts, bgp, wireguard }
    }

    pub(super) fn desired(&self) -> Desired {
        desired(self.inputs())
    }

    pub(super) fn inputs(&self) -> Inputs<'_> {
        let wireguard = self.wireguard.as_ref().map_err(String::as_str);
        Inputs { node: &self.node, view: &self.view, facts: &self.facts, bgp: &self.bgp, wireguard }
    }

    pub(super) fn peer(&mut self, i: u8) -> &mut NodeView {
        self.view.nodes.get_mut(&name(&format!("n{i}"))).unwrap()
    }

    pub(super) fn record(&mut self, i: u8) -> &mut NodeRecord {
        self.peer(i).record.as_mut().unwrap()
    }
}
