//! What our speaker shall do, as a pure function of the cluster and of this node's addresses.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use ipnet::IpNet;
use podway_bgp::config::{
    Claims, GracefulRestart, Import, Neighbour, SecondRestart, SpeakerConfig, SpeakerOptions,
};
use podway_bgp::topology::View;
use podway_model::cluster::{Backend, BgpConfig};
use podway_model::ids::NodeName;
use podway_model::names;

use super::{peers, topology};
use crate::view::{ClusterView, LocalFacts, OwnBlockState};

/// Longest wait for peers that were up before a restart. Until it is over, new routes are not used: it is short
/// because a peer that is back at all is back within seconds.
const DEFERRAL: Duration = Duration::from_secs(30);
/// Least time that stale routes may stay, from the loss of a session to its End-of-RIB.
const STALE_FLOOR: Duration = Duration::from_secs(360);
/// RFC 4724 section 3: twelve bits.
const MOST_RESTART_SECONDS: u16 = 4095;

/// All that follows from the cluster's state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Desired {
    /// The speaker's configuration.
    pub(crate) config: SpeakerConfig,
    /// Who holds which block.
    pub(crate) claims: Claims,
    /// Where to listen.
    pub(crate) listen: BTreeSet<SocketAddr>,
    /// Documents that are not followed, and why.
    pub(crate) problems: Vec<String>,
    /// Names of peers whose documents say what cannot be done: they stay as they are.
    pub(crate) unfollowed: BTreeSet<String>,
    /// It is a speaker alone: nobody asks for its routes.
    pub(crate) alone: bool,
    /// Who is told what neighbours tell.
    pub(crate) stations: Vec<podway_model::bmp::BmpStation>,
}

impl Desired {
    /// Addresses of other nodes, whose kernels may be asked.
    pub(super) fn nodes(&self) -> BTreeSet<IpAddr> {
        let is_node = |neighbour: &Neighbour| neighbour.import == Import::Claimed;
        let neighbours = self.config.neighbours.iter();
        let listed = neighbours.filter(|(_, neighbour)| is_node(neighbour)).map(|(address, _)| *address);
        let circles = self.config.options.circles.iter().filter(|circle| is_node(&circle.template));
        listed.chain(circles.flat_map(|circle| circle.members.keys().copied())).collect()
    }

    /// Whoever cannot be what documents say of it now stays what it was: a mistake ends no session that works.
    pub(super) fn keep_unfollowed(&mut self, before: &SpeakerConfig) {
        // A node of that name is told apart by its import rule.
        let is_kept = |neighbour: &Neighbour| {
            self.unfollowed.contains(&neighbour.name) && neighbour.import != Import::Claimed
        };
        for (address, neighbour) in before.neighbours.iter().filter(|(_, neighbour)| is_kept(neighbour)) {
            self.config.neighbours.entry(*address).or_insert_with(|| neighbour.clone());
        }
    }
}

/// What the speaker shall do; none: it shall not run (another backend), or this node has no address yet. `chosen`: the
/// topology that this node sees.
pub(crate) fn desired_bgp(
    view: &ClusterView,
    node: &NodeName,
    facts: &LocalFacts,
    chosen: &View,
) -> Option<Desired> {
    if view.config.backend != Backend::Bgp {
        return None;
    }
    let own: BTreeSet<IpAddr> =
        facts.address_v4.map(IpAddr::V4).into_iter().chain(facts.address_v6.map(IpAddr::V6)).collect();
    if own.is_empty() {
        return None;
    }
    let bgp = &view.config.bgp;
    let mut config = SpeakerConfig {
        asn: topology::asn_of(view, node),
        router_id: facts.address_v4.unwrap_or_else(|| names::router_id(node.as_str())),
        cluster_id: view.reflectors.get(node).and_then(|reflector| reflector.cluster_id),
        hold_time: Duration::from_secs(u64::from(bgp.hold_time_seconds)),
        graceful_restart: graceful_restart(bgp),
        neighbours: BTreeMap::new(),
        originated: originated(view, facts),
        own_addresses: own.clone(),
        options: SpeakerOptions {
            claimed_only: view.pools.values().map(|pool| pool.cidr).collect(),
            maintenance: view.drained.contains_key(node),
            ..SpeakerOptions::default()
        },
    };
    topology::add(&mut config, view, node, facts, chosen);
    let peers::Added { mut problems, unfollowed } = peers::add(&mut config, view, node, facts);
    problems.extend(super::announced::add(&mut config, view, node, facts));
    let listen = own.into_iter().map(|address| SocketAddr::new(address, bgp.port)).collect();
    Some(Desired {
        config,
        claims: claims(view),
        listen,
        problems,
        unfollowed,
        alone: false,
        stations: bgp.bmp.clone(),
    })
}

fn graceful_restart(bgp: &BgpConfig) -> Option<GracefulRestart> {
    let seconds = bgp.restart_time_seconds.min(MOST_RESTART_SECONDS);
    let restart_time = Duration::from_secs(u64::from(seconds));
    (seconds > 0).then(|| GracefulRestart {
        restart_time,
        stale_time: STALE_FLOOR.max(restart_time * 2),
        deferral_time: DEFERRAL.min(restart_time),
        // A daemon that is restarted twice in a row must not cut its node off.
        second_restart: SecondRestart::Keep,
        // Only between nodes, whose kernels can be asked: see their options.
        notifications: false,
    })
}

/// Own confirmed blocks, each by way of our address of its family.
fn originated(view: &ClusterView, facts: &LocalFacts) -> BTreeMap<IpNet, IpAddr> {
    // Pods live in a draining block as in an active one.
    let is_ours = |state| matches!(state, OwnBlockState::Active | OwnBlockState::Draining);
    let ours = view.own_blocks.iter().filter(|block| is_ours(block.state));
    ours.filter_map(|block| Some((block.cidr, address_like(facts, &block.cidr)?))).collect()
}

pub(super) fn address_like(facts: &LocalFacts, prefix: &IpNet) -> Option<IpAddr> {
    match prefix {
        IpNet::V4(_) => facts.address_v4.map(IpAddr::V4),
        IpNet::V6(_) => facts.address_v6.map(IpAddr::V6),
    }
}

/// Confirmed claims of all nodes: which next hop is right for which block.
fn claims(view: &ClusterView) -> Claims {
    let mut claims = Claims::new();
    for node in view.nodes.values() {
        let Some(record) = &node.record else { continue };
        for block in &node.blocks {
            if let Some(address) = record.address_like(block) {
                claims.entry(*block).or_default().insert(address);
            }
        }
    }
    claims
}

/// Router ids that two nodes share: neither would accept the other's session (RFC 6286).
pub(crate) fn router_id_clashes(view: &ClusterView) -> Vec<String> {
    let mut owners: BTreeMap<Ipv4Addr, Vec<&NodeName>> = BTreeMap::new();
    for (name, node) in &view.nodes {
        if let Some(record) = &node.record {
            let id = record.address_v4.unwrap_or_else(|| names::router_id(name.as_str()));
            owners.entry(id).or_default().push(name);
        }
    }
    let shared = owners.into_iter().filter(|(_, names)| names.len() > 1);
    let words = |(id, names): (Ipv4Addr, Vec<&NodeName>)| {
        let names: Vec<String> = names.into_iter().map(ToString::to_string).collect();
        format!("nodes {} share the BGP identifier {id}", names.join(", "))
    };
    shared.map(words).collect()
}

#[cfg(test)]
mod tests {
    use podway_model::bgp::{BgpFilter, InternalRole, NodeAsn, PeerOptions};
    use podway_model::cluster::{
        Assignment, BgpPeer, NodeBfd, PeerExport, PeerImport, Pool, Reflector, SourceAddress,
    };
    use podway_model::ids::{IfName, Mtu};
    use podway_model::k8s::LabelSelector;

    use std::time::Duration;

    use podway_bgp::config::{Bfd, ConnectMode, Role, Standing};
    use podway_bgp::topology::Chooser;
    use podway_model::cluster::{Drained, NodeRecord, Topology};

    use super::*;
    use crate::view::{NodeView, OwnBlock};

    fn name(text: &str) -> NodeName {
        text.parse().unwrap()
    }

    fn facts() -> LocalFacts {
        LocalFacts {
            address_v4: Some("10.0.0.2".parse().unwrap()),
            address_v6: Some("fd00::2".parse().unwrap()),
            on_link: vec![],
            interface: "eth0".parse::<IfName>().unwrap(),
            ifindex: 2,
            mtu: Mtu::ETHERNET,
        }
    }

    /// What node n2 does when it has just begun.
    fn wanted(view: &ClusterView, facts: &LocalFacts) -> Option<Desired> {
        let mut chooser = Chooser::new(name("n2"));
        chooser.follow(topology::rule(view), topology::members(view, &name("n2"), facts));
        desired_bgp(view, &name("n2"), facts, &chooser.view(Duration::ZERO, |_| true))
    }

    fn record(v4: Option<&str>, v6: Option<&str>) -> NodeRecord {
        NodeRecord {
            instance_id: "00000000-0000-4000-8000-000000000001".parse().unwrap(),
            address_v4: v4.map(|a| a.parse().unwrap()),
            address_v6: v6.map(|a| a.parse().unwrap()),
            tunnel_v4: None,
            tunnel_v6: None,
            labels: BTreeMap::new(),
            asn: None,
            vtep_mac: None,
            wireguard_key: None,
            version: "test".to_owned(),
            ways: None,
        }
    }

    /// Nodes n1 (10.0.0.1), n2 (us), n3 (10.0.0.3), n6 (IPv6 only), and a claim without a record (n9).
    fn view(topology: Topology) -> ClusterView {
        let mut view = ClusterView { synced: true, ..ClusterView::default() };
        view.config.backend = Backend::Bgp;
        view.config.bgp.topology = topology;
        let blocks = |text: &str| text.split(' ').map(|b| b.parse::<IpNet>().unwrap()).collect();
        for (node, v4, v6, claimed) in [
            ("n1", Some("10.0.0.1"), Some("fd00::1"), "10.244.1.0/26 fd10::100/122"),
            ("n2", Some("10.0.0.2"), Some("fd00::2"), "10.244.2.0/26"),
            ("n3", Some("10.0.0.3"), None, "10.244.3.0/26 fd10::300/122"),
            ("n6", None, Some("fd00::6"), "fd10::600/122"),
        ] {
            let node_view = NodeView { record: Some(record(v4, v6)), live: true, blocks: blocks(claimed) };
            view.nodes.insert(name(node), node_view);
        }
        let gone = NodeView { record: None, live: false, blocks: blocks("10.244.9.0/26") };
        view.nodes.insert(name("n9"), gone);
        let block = |cidr: &str, state| OwnBlock {
            cidr: cidr.parse().unwrap(),
            pool: "default".parse().unwrap(),
            state,
        };
        view.own_blocks = vec![
            block("10.244.2.0/26", OwnBlockState::Active),
            block("10.244.2.64/26", OwnBlockState::Pending),
            block("10.244.2.128/26", OwnBlockState::Stranded),
            block("10.244.2.192/26", OwnBlockState::Draining),
            block("fd10::200/122", OwnBlockState::Active),
        ];
        view
    }

    fn sessions(view: &ClusterView) -> Vec<(String, String, Role, ConnectMode)> {
        let desired = wanted(view, &facts()).unwrap();
        assert_eq!(desired.config.mistakes(), []);
        let one =
            |(address, n): (&IpAddr, &Neighbour)| (n.name.clone(), address.to_string(), n.role, n.connect);
        desired.config.neighbours.iter().map(one).collect()
    }

    #[test]
    fn other_backends_and_nodes_without_address_run_no_speaker() {
        let mut view = view(Topology::Mesh);
        let nowhere = LocalFacts { address_v4: None, address_v6: None, ..facts() };
        assert_eq!(wanted(&view, &nowhere), None);
        view.config.backend = Backend::HostGw;
        assert_eq!(wanted(&view, &facts()), None);
    }

    #[test]
    fn a_mesh_has_every_node_with_a_record_and_the_lower_address_connects() {
        let expected = [
            ("n1", "10.0.0.1", Role::Mesh, ConnectMode::Passive),
            ("n3", "10.0.0.3", Role::Mesh, ConnectMode::Both),
            ("n6", "fd00::6", Role::Mesh, ConnectMode::Both),
        ];
        let expected = expected.map(|(n, a, r, c)| (n.to_owned(), a.to_owned(), r, c));
        assert_eq!(sessions(&view(Topology::Mesh)), expected);
    }

    #[test]
    fn reflectors_have_clients_and_mesh_among_themselves_others_have_reflectors() {
        let mut view = view(Topology::Reflectors);
        assert_eq!(sessions(&view), []);
        view.reflectors.insert(name("n1"), Reflector::default());
        // A client connects to its reflectors, whoever has the lower address.
        let n1 = ("n1".to_owned(), "10.0.0.1".to_owned(), Role::Reflector, ConnectMode::Both);
        assert_eq!(sessions(&view), [n1]);
        assert_eq!(
            others(&view),
            [("n3", Role::Client, Standing::Leaving), ("n6", Role::Client, Standing::Leaving)].map(owned)
        );
        let cluster_id = Some("9.9.9.9".parse().unwrap());
        view.reflectors.insert(name("n2"), Reflector { cluster_id });
        let n1 = ("n1".to_owned(), "10.0.0.1".to_owned(), Role::Mesh, ConnectMode::Passive);
        assert_eq!(sessions(&view), [n1]);
        assert_eq!(
            others(&view),
            [("n3", Role::Client, Standing::Wanted), ("n6", Role::Client, Standing::Wanted)].map(owned)
        );
        assert_eq!(wanted(&view, &facts()).unwrap().config.cluster_id, cluster_id);
    }

    fn owned((name, role, standing): (&str, Role, Standing)) -> (String, Role, Standing) {
        (name.to_owned(), role, standing)
    }

    /// Nodes that may come and are not looked for.
    fn others(view: &ClusterView) -> Vec<(String, Role, Standing)> {
        let desired = wanted(view, &facts()).unwrap();
        let of = |circle: &podway_bgp::config::Circle| {
            let template = &circle.template;
            let one = |name: &String| (name.clone(), template.role, template.options.standing);
            circle.members.values().map(one).collect::<Vec<_>>()
        };
        let mut all: Vec<_> = desired.config.options.circles.iter().flat_map(of).collect();
        all.sort_by(|a, b| a.0.cmp(&b.0));
        all
    }

    #[test]
    fn a_cluster_above_the_threshold_has_reflectors_and_a_drained_node_is_none() {
        let mut view = view(Topology::Auto);
        view.config.bgp.mesh_up_to = 50;
        assert_eq!(sessions(&view).len(), 3, "a mesh");
        view.config.bgp.mesh_up_to = 3;
        // Four nodes, and three reflect: whoever does not is n2's client, or n2 is theirs.
        let chosen = |view: &ClusterView| {
            let members = topology::members(view, &name("n2"), &facts());
            podway_bgp::topology::ranked(&members).into_iter().take(3).collect::<Vec<_>>()
        };
        let first = chosen(&view);
        let listed: Vec<String> = sessions(&view).into_iter().map(|(node, ..)| node).collect();
        let expected = |chosen: &[NodeName]| {
            let mut names: Vec<String> =
                chosen.iter().filter(|node| **node != name("n2")).map(ToString::to_string).collect();
            names.sort();
            names
        };
        assert_eq!(listed, expected(&first));
        let gone = first.iter().find(|node| **node != name("n2")).unwrap().clone();
        view.drained.insert(gone.clone(), Drained { since_unix_seconds: 1, reason: None });
        let listed: Vec<String> = sessions(&view).into_iter().map(|(node, ..)| node).collect();
        assert_eq!(listed, expected(&chosen(&view)));
        assert!(!chosen(&view).contains(&gone));
        let maintenance = |view: &ClusterView| wanted(view, &facts()).unwrap().config.options.maintenance;
        assert!(!maintenance(&view), "another node is drained");
        view.drained.insert(name("n2"), Drained { since_unix_seconds: 1, reason: None });
        assert!(maintenance(&view));
    }

    #[test]
    fn nodes_of_different_ases_have_a_session_whatever_the_topology() {
        let mut view = view(Topology::Reflectors);
        view.reflectors.insert(name("n1"), Reflector::default());
        let record = view.nodes.get_mut(&name("n3")).unwrap().record.as_mut().unwrap();
        record.asn = Some(podway_model::ids::Asn::try_from(65003).unwrap());
        let roles: Vec<(String, Role)> =
            sessions(&view).into_iter().map(|(node, _, role, _)| (node, role)).collect();
        assert_eq!(roles, [("n1".to_owned(), Role::Reflector), ("n3".to_owned(), Role::External)]);
    }

    #[test]
    fn a_peer_outside_cannot_have_the_address_of_a_node_that_is_not_looked_for() {
        let mut view = view(Topology::Reflectors);
        view.reflectors.insert(name("n1"), Reflector::default());
        view.peers.insert("tor".parse().unwrap(), peer("10.0.0.3", 65000, LabelSelector::default()));
        let desired = wanted(&view, &facts()).unwrap();
        assert!(desired.problems[0].contains("the address of n3"), "{:?}", desired.problems);
    }

    #[test]
    fn only_own_active_blocks_are_originated_and_claims_name_next_hops() {
        let desired = wanted(&view(Topology::Mesh), &facts()).unwrap();
        let originated: Vec<String> =
            desired.config.originated.iter().map(|(prefix, hop)| format!("{prefix} via {hop}")).collect();
        let expected =
            ["10.244.2.0/26 via 10.0.0.2", "10.244.2.192/26 via 10.0.0.2", "fd10::200/122 via fd00::2"];
        assert_eq!(originated, expected);
        let claims: Vec<String> =
            desired.claims.iter().map(|(prefix, hops)| format!("{prefix} {hops:?}")).collect();
        // n3 has no IPv6 address to send its IPv6 block to; n9 has no record.
        let expected = [
            "10.244.1.0/26 {10.0.0.1}",
            "10.244.2.0/26 {10.0.0.2}",
            "10.244.3.0/26 {10.0.0.3}",
            "fd10::100/122 {fd00::1}",
            "fd10::600/122 {fd00::6}",
        ];
        assert_eq!(claims, expected);
        assert_eq!(desired.listen.len(), 2);
    }

    fn peer(address: &str, asn: u32, selector: LabelSelector) -> BgpPeer {
        BgpPeer {
            node_selector: selector,
            address: address.parse().unwrap(),
            port: 1790,
            asn: asn.try_into().unwrap(),
            import: PeerImport::All,
            export: PeerExport::Own,
            source_address: SourceAddress::Node,
            passive: false,
            password_file: Some("/etc/podway/tor.key".into()),
            ttl_security: Some(1),
            dscp: Some(10),
            options: PeerOptions::default(),
        }
    }

    #[test]
    fn peers_are_neighbours_of_the_nodes_that_they_select() {
        let mut view = view(Topology::Mesh);
        let zone = |zone: &str| LabelSelector {
            match_labels: BTreeMap::from([("zone".to_owned(), zone.to_owned())]),
            ..LabelSelector::default()
        };
        let labels = &mut view.nodes.get_mut(&name("n2")).unwrap().record.as_mut().unwrap().labels;
        labels.insert("zone".to_owned(), "a".to_owned());
        let everywhere = LabelSelector::default();
        for (document, peer) in [
            ("tor-a", peer("192.0.2.1", 65000, zone("a"))),
            ("tor-b", peer("192.0.2.2", 65000, zone("b"))),
            (
                "reflector",
                BgpPeer {
                    source_address: SourceAddress::Any,
                    ..peer("2001:db8::1", 64512, everywhere.clone())
                },
            ),
            ("same-as-a-node", peer("10.0.0.1", 65000, everywhere.clone())),
            ("self", peer("10.0.0.2", 65000, everywhere)),
        ] {
            view.peers.insert(document.parse().unwrap(), peer);
        }
        let pool = Pool {
            cidr: "10.244.0.0/16".parse().unwrap(),
            block_size: None,
            node_selector: LabelSelector::default(),
            namespace_selector: None,
            nat: true,
            assignment: Assignment::default(),
            encapsulation: None,
            disabled: false,
        };
        view.pools.insert("default".parse().unwrap(), pool.clone());
        let desired = wanted(&view, &facts()).unwrap();
        assert_eq!(desired.config.mistakes(), []);
        assert_eq!(desired.config.options.claimed_only, BTreeSet::from([pool.cidr]));
        let outside: Vec<&Neighbour> =
            desired.config.neighbours.values().filter(|n| n.import == Import::All).collect();
        let names: Vec<(&str, Role)> = outside.iter().map(|n| (n.name.as_str(), n.role)).collect();
        assert_eq!(names, [("tor-a", Role::External), ("reflector", Role::Mesh)]);
        assert_eq!(outside[0].local_address, Some("10.0.0.2".parse().unwrap()));
        assert_eq!(outside[1].local_address, None);
        let transport = &outside[0].options.transport;
        assert_eq!((transport.ttl_security, transport.dscp), (Some(1), Some(10)));
        assert!(transport.md5_file.is_some() && outside[0].options.export.is_some());
        let problems = [
            "peers/same-as-a-node: spec.address: 10.0.0.1 found, the address of n1",
            "peers/self: spec.address: 10.0.0.2 found, this node's own address",
        ];
        assert_eq!(desired.problems, problems);
    }

    #[test]
    fn a_peer_whose_document_cannot_be_followed_stays_what_it_was() {
        let mut view = view(Topology::Mesh);
        let tor = |options: PeerOptions| BgpPeer {
            options,
            password_file: None,
            ..peer("192.0.2.1", 65000, LabelSelector::default())
        };
        let named = |filter: &str| PeerOptions {
            import_filter: Some(filter.parse().unwrap()),
            ..PeerOptions::default()
        };
        let at = "192.0.2.1".parse::<IpAddr>().unwrap();
        view.config.bgp.communities.insert("blue".to_owned(), vec!["64512:7".parse().unwrap()]);
        let filter = |community: &str| -> BgpFilter {
            let text = format!(
                r#"{{"otherwise":"reject","rules":[{{"match":[{{"community":["{community}"]}}],"verdict":"accept"}}]}}"#
            );
            serde_json::from_str(&text).unwrap()
        };
        view.filters.insert("f".parse().unwrap(), filter("blue"));
        view.peers.insert("tor".parse().unwrap(), tor(named("f")));
        let good = wanted(&view, &facts()).unwrap();
        assert_eq!((good.problems.len(), good.config.neighbours.contains_key(&at)), (0, true));
        let other =
            PeerOptions { as_override: true, internal: Some(InternalRole::Client), ..PeerOptions::default() };
        for (options, community, said) in [
            (
                named("g"),
                "blue",
                "peers/tor: spec.importFilter: g found, a BGPFilter that works (f) expected",
            ),
            (named("f"), "green", "filters/f: spec.rules[0].match[0].community: green found"),
            (other, "blue", "AS 65000 found, which does not go with role client"),
        ] {
            view.filters.insert("f".parse().unwrap(), filter(community));
            view.peers.insert("tor".parse().unwrap(), tor(options));
            let mut bad = wanted(&view, &facts()).unwrap();
            assert!(bad.problems.join("; ").contains(said), "{said}: {:?}", bad.problems);
            assert!(!bad.config.neighbours.contains_key(&at), "one that never worked gets no session");
            bad.keep_unfollowed(&good.config);
            assert_eq!(bad.config, good.config, "{said}");
        }
    }

    #[test]
    fn nodes_get_their_as_number_from_the_first_selector_that_picks_them() {
        let mut view = view(Topology::Mesh);
        let zone = |zone: &str| LabelSelector {
            match_labels: BTreeMap::from([("zone".to_owned(), zone.to_owned())]),
            ..LabelSelector::default()
        };
        let asn = |number: u32| podway_model::ids::Asn::try_from(number).unwrap();
        for (node, of) in [("n1", "a"), ("n2", "b"), ("n3", "a")] {
            let record = view.nodes.get_mut(&name(node)).unwrap().record.as_mut().unwrap();
            record.labels.insert("zone".to_owned(), of.to_owned());
        }
        view.nodes.get_mut(&name("n3")).unwrap().record.as_mut().unwrap().asn = Some(asn(65003));
        view.config.bgp.node_asns = vec![
            NodeAsn { node_selector: zone("a"), asn: asn(65001) },
            NodeAsn { node_selector: LabelSelector::default(), asn: asn(65002) },
        ];
        let desired = wanted(&view, &facts()).unwrap();
        assert_eq!(desired.config.asn, asn(65002));
        let others: Vec<(u32, Role)> =
            desired.config.neighbours.values().map(|other| (other.asn.number(), other.role)).collect();
        assert_eq!(others, [(65001, Role::External), (65003, Role::External), (65002, Role::Mesh)]);
        assert_eq!(desired.config.mistakes(), []);
    }

    #[test]
    fn nodes_are_asked_and_watched_and_peers_outside_are_not() {
        let mut view = view(Topology::Mesh);
        view.peers.insert("tor".parse().unwrap(), peer("192.0.2.1", 65000, LabelSelector::default()));
        let desired = |view: &ClusterView| wanted(view, &facts()).unwrap();
        let nodes: Vec<String> = desired(&view).nodes().iter().map(ToString::to_string).collect();
        assert_eq!(nodes, ["10.0.0.1", "10.0.0.3", "fd00::6"]);
        for bfd in [None, Some(NodeBfd { interval_ms: 100, multiplier: 3 })] {
            view.config.bgp.bfd = bfd;
            let desired = desired(&view);
            assert_eq!(desired.config.mistakes(), []);
            let wanted =
                bfd.map(|_| Bfd { interval: Duration::from_millis(100), multiplier: 3, multihop: true });
            for (address, neighbour) in &desired.config.neighbours {
                let is_node = desired.nodes().contains(address);
                assert_eq!(neighbour.options.bfd, wanted.filter(|_| is_node), "{address}");
                assert_eq!(neighbour.options.notifications_restart, is_node.then_some(true), "{address}");
            }
        }
    }

    #[test]
    fn restart_time_zero_turns_graceful_restart_off_and_clashing_router_ids_are_found() {
        let mut view = view(Topology::Mesh);
        view.config.bgp.restart_time_seconds = 0;
        assert_eq!(wanted(&view, &facts()).unwrap().config.graceful_restart, None);
        assert_eq!(router_id_clashes(&view), Vec::<String>::new());
        view.nodes.get_mut("n3".parse::<NodeName>().as_ref().unwrap()).unwrap().record =
            Some(record(Some("10.0.0.1"), None));
        assert_eq!(router_id_clashes(&view), ["nodes n1, n3 share the BGP identifier 10.0.0.1"]);
    }
}
