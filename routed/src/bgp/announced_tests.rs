//! Service ranges and pools towards a real BIRD outside, with a second node that must not be told of them.

use std::sync::Arc;

use podway_model::bgp::{Announced, PeerOptions};
use podway_model::cluster::{Assignment, BgpPeer, PeerExport, PeerImport, Pool, SourceAddress};
use podway_model::k8s::LabelSelector;
use podway_model::socket::{RoutedReply, RoutedRequest};

use super::reply;
use super::tests::{BIRD, Bird, Daemon, LIMIT, blocks, cluster, in_lab, v4};
use crate::view::ClusterView;

const SERVICES: &str = "10.96.0.0/16";
const POOL: &str = "10.244.0.0/16";

fn view(aggregate: bool, announce: &[&str]) -> ClusterView {
    let mut view = cluster(&[1, 2]);
    let pool = |cidr: &str| Pool {
        cidr: cidr.parse().unwrap(),
        block_size: None,
        node_selector: LabelSelector::default(),
        namespace_selector: None,
        nat: true,
        assignment: Assignment::Automatic,
        encapsulation: None,
        disabled: false,
    };
    view.pools.insert("v4".parse().unwrap(), pool(POOL));
    let announced = |prefix: &&str| Announced {
        prefix: prefix.parse().unwrap(),
        node_selector: LabelSelector::default(),
    };
    view.config.bgp.announce = announce.iter().map(announced).collect();
    let peer = BgpPeer {
        // Only node 1 has the session.
        node_selector: serde_json::from_str(r#"{"matchLabels":{"edge":"yes"}}"#).unwrap(),
        address: v4(BIRD).into(),
        port: 1790,
        asn: 65000.try_into().unwrap(),
        import: PeerImport::None,
        export: PeerExport::All,
        source_address: SourceAddress::Node,
        passive: false,
        password_file: None,
        ttl_security: None,
        dscp: None,
        options: PeerOptions { aggregate, ..PeerOptions::default() },
    };
    view.peers.insert("tor".parse().unwrap(), peer);
    let first = view.nodes.get_mut(&"n1".parse().unwrap()).unwrap();
    first.record.as_mut().unwrap().labels.insert("edge".to_owned(), "yes".to_owned());
    view
}

fn sees(daemon: &Daemon, view: &ClusterView) {
    let own_blocks = daemon.view.borrow().own_blocks.clone();
    daemon.view.send_replace(Arc::new(ClusterView { own_blocks, ..view.clone() }));
}

async fn told_by_first(second: &Daemon) -> Vec<String> {
    match reply(&second.queries, RoutedRequest::BgpReceived { peer: v4(1).into() }).await {
        Some(RoutedReply::BgpPaths { paths }) => paths.iter().map(|path| path.prefix.to_string()).collect(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn service_ranges_and_pools_go_to_routers_outside_and_to_no_node() {
    in_lab("service_ranges_and_pools_go_to_routers_outside_and_to_no_node", async || {
        let dir = tempfile::tempdir().unwrap();
        let config = format!(
            "router id {us};\nprotocol device {{}}\n\
             protocol bgp node1 {{\n local {us} port 1790 as 65000;\n neighbor {them} port 1790 as 64512;\n multihop;\n\
             strict bind on;\n connect delay time 1;\n connect retry time 1;\n error wait time 1, 2;\n\
             ipv4 {{ import all; export none; }};\n}}\n",
            us = v4(BIRD),
            them = v4(1),
        );
        let one = Daemon::start(1, &view(false, &[SERVICES]), dir.path());
        let two = Daemon::start(2, &view(false, &[SERVICES]), dir.path());
        let bird = Bird::with_config(dir.path(), &config, false).unwrap();
        let (first, second) = (blocks(1)[0].to_string(), blocks(2)[0].to_string());
        let all =
            [first.clone(), second.clone(), SERVICES.to_owned(), POOL.to_owned(), "10.97.0.0/16".to_owned()];
        let has = |answer: &str, wanted: &[&str]| {
            all.iter()
                .all(|prefix| answer.contains(&format!("{prefix} ")) == wanted.contains(&prefix.as_str()))
        };
        let ask = "show route all protocol node1";
        bird.until("blocks and services", ask, |answer| has(answer, &[&first, &second, SERVICES])).await;
        let own_next_hop = |answer: &str| answer.matches("BGP.next_hop: 10.9.0.1").count() >= 2;
        assert!(own_next_hop(&bird.ask(ask)), "{}", bird.ask(ask));
        let since = one.peers().await;

        // In place of the blocks, also of the other node's, the pool; another range beside the first.
        let ranges = [SERVICES, "10.97.0.0/16"];
        let changed = view(true, &ranges);
        sees(&one, &changed);
        sees(&two, &changed);
        bird.until("the pool", ask, |answer| has(answer, &[POOL, SERVICES, "10.97.0.0/16"])).await;
        // The second node has heard of nothing but blocks, before and after.
        let begin = tokio::time::Instant::now();
        while told_by_first(&two).await.len() < 2 {
            assert!(begin.elapsed() < LIMIT);
            tokio::task::yield_now().await;
        }
        assert_eq!(told_by_first(&two).await, blocks(1).map(|block| block.to_string()));

        // A range in a pool is not announced, and that is said.
        sees(&one, &view(true, &["10.244.128.0/20"]));
        bird.until("no services", ask, |answer| has(answer, &[POOL])).await;
        let (send, receive) = tokio::sync::oneshot::channel();
        assert!(one.queries.send(super::Query::Problems(send)).await.is_ok());
        let problems = receive.await.unwrap();
        let said =
            "bgp.announce[0].prefix: 10.244.128.0/20 found, a prefix beside pool v4 (10.244.0.0/16) expected";
        assert!(problems.iter().any(|problem| problem.contains(said)), "{problems:?}");

        // And back.
        sees(&one, &view(false, &[]));
        bird.until("blocks again", ask, |answer| has(answer, &[&first, &second])).await;
        for (before, after) in since.iter().zip(one.peers().await) {
            assert_eq!((after.state.as_str(), &after.last_error), ("Established", &None), "sessions stay");
            assert!(after.since_seconds >= before.since_seconds);
        }
        two.stop().await;
        one.stop().await;
    });
}
