//! What operators say of peers outside the cluster, beside a real BIRD of another AS.

use std::net::IpAddr;
use std::sync::Arc;

use podway_model::bgp::{BgpFilter, PeerOptions};
use podway_model::cluster::{BgpPeer, PeerExport, PeerImport, SourceAddress};
use podway_model::k8s::LabelSelector;
use podway_model::socket::{BgpPathStatus, RoutedReply, RoutedRequest};
use tokio::sync::oneshot;

use super::tests::{BIRD, Bird, Daemon, LIMIT, blocks, cluster, in_lab, v4};
use super::{Query, reply};
use crate::view::ClusterView;

/// BIRD's routes: one that filters accept in these tests, one that they reject, one with a community.
const GOOD: &str = "192.0.2.0/24";
const BAD: &str = "198.51.100.0/24";
const BLUE: &str = "203.0.113.0/24";

fn filter(json: &str) -> BgpFilter {
    serde_json::from_str(json).unwrap()
}

/// Accepts within `192.0.0.0/8` and what is blue, with a preference.
fn import() -> BgpFilter {
    filter(
        r#"{"otherwise":"reject","rules":[
            {"match":[{"community":["blue"]}],"set":[{"localPref":300}],"verdict":"accept"},
            {"match":[{"prefix":[{"within":"192.0.0.0/8","longest":24}]}],"verdict":"accept"}]}"#,
    )
}

/// Tells only IPv4, with a community and two more of our numbers.
fn export() -> BgpFilter {
    filter(
        r#"{"otherwise":"reject","rules":[
            {"match":[{"prefix":[{"within":"10.244.0.0/16","longest":26}]}],
             "set":[{"addCommunity":"blue"},{"prepend":{"asn":64512,"times":2}}],"verdict":"accept"}]}"#,
    )
}

fn tor(options: PeerOptions) -> BgpPeer {
    BgpPeer {
        node_selector: LabelSelector::default(),
        address: v4(BIRD).into(),
        port: 1790,
        asn: 65000.try_into().unwrap(),
        import: PeerImport::All,
        export: PeerExport::Own,
        source_address: SourceAddress::Node,
        passive: false,
        password_file: None,
        ttl_security: None,
        dscp: None,
        options,
    }
}

fn options() -> PeerOptions {
    PeerOptions {
        import_filter: Some("in".parse().unwrap()),
        export_filter: Some("out".parse().unwrap()),
        ..PeerOptions::default()
    }
}

/// One node, and BIRD outside.
fn view(options: PeerOptions) -> ClusterView {
    let mut view = cluster(&[1]);
    view.config.bgp.communities.insert("blue".to_owned(), vec!["64512:7".parse().unwrap()]);
    view.filters.insert("in".parse().unwrap(), import());
    view.filters.insert("out".parse().unwrap(), export());
    view.peers.insert("tor".parse().unwrap(), tor(options));
    view
}

fn bird(dir: &std::path::Path) -> Bird {
    let config = format!(
        "router id {us};\nprotocol device {{}}\n\
         protocol static {{ ipv4; route {GOOD} blackhole; route {BAD} blackhole;\n\
         route {BLUE} blackhole {{ bgp_community.add((64512,7)); }}; }}\n\
         protocol bgp node1 {{\n local {us} port 1790 as 65000;\n neighbor {them} port 1790 as 64512;\n multihop;\n\
         strict bind on;\n connect delay time 1;\n connect retry time 1;\n error wait time 1, 2;\n\
         ipv4 {{ import all; export where source = RTS_STATIC; }};\n}}\n",
        us = v4(BIRD),
        them = v4(1),
    );
    Bird::with_config(dir, &config, false).unwrap()
}

impl Daemon {
    /// Goes on with another view of the cluster.
    fn sees(&self, view: ClusterView) {
        let own_blocks = self.view.borrow().own_blocks.clone();
        self.view.send_replace(Arc::new(ClusterView { own_blocks, ..view }));
    }

    async fn received(&self) -> Vec<BgpPathStatus> {
        match reply(&self.queries, RoutedRequest::BgpReceived { peer: v4(BIRD).into() }).await {
            Some(RoutedReply::BgpPaths { paths }) => paths,
            other => panic!("{other:?}"),
        }
    }

    async fn problems(&self) -> Vec<String> {
        let (send, receive) = oneshot::channel();
        assert!(self.queries.send(Query::Problems(send)).await.is_ok());
        receive.await.unwrap()
    }
}

#[test]
fn filters_of_documents_hold_on_a_live_session_and_a_bad_document_leaves_it() {
    in_lab("filters_of_documents_hold_on_a_live_session_and_a_bad_document_leaves_it", async || {
        let dir = tempfile::tempdir().unwrap();
        let mut one = Daemon::start(1, &view(options()), dir.path());
        let bird = bird(dir.path());
        let hop = IpAddr::from(v4(BIRD));
        let uses = |routes: &crate::view::BgpRoutes, prefix: &str| {
            routes.routes.get(&prefix.parse().unwrap()) == Some(&vec![hop])
        };
        one.until("what passes", |routes| uses(routes, GOOD) && uses(routes, BLUE) && !uses(routes, BAD))
            .await;
        let states = |paths: Vec<BgpPathStatus>| -> Vec<(String, String)> {
            paths.into_iter().map(|path| (path.prefix.to_string(), path.state)).collect()
        };
        let expected = [(GOOD, "best"), (BAD, "rejected"), (BLUE, "best")];
        assert_eq!(states(one.received().await), expected.map(|(a, b)| (a.to_owned(), b.to_owned())));

        // Told: our IPv4 block alone, as the filter says.
        let [block4, block6] = blocks(1);
        let told = |answer: &str| {
            answer.contains(&block4.to_string())
                && answer.contains("BGP.as_path: 64512 64512 64512")
                && answer.contains("(64512,7)")
        };
        bird.until("our block", "show route all protocol node1", told).await;
        assert!(!bird.ask("show route all protocol node1").contains(&block6.to_string()));

        // The filter changes: it is applied to what came on this session, which stays.
        let before = one.peers().await[0].clone();
        let mut changed = view(options());
        changed.filters.insert("in".parse().unwrap(), filter(r#"{"otherwise":"accept"}"#));
        one.sees(changed.clone());
        one.until("all pass", |routes| [GOOD, BAD, BLUE].iter().all(|prefix| uses(routes, prefix))).await;

        // Documents that cannot be followed: named, and nothing moves.
        let mut unknown = options();
        unknown.import_filter = Some("nowhere".parse().unwrap());
        let mut odd = options();
        odd.internal = Some(podway_model::bgp::InternalRole::Client);
        for (options, said) in [(unknown, "spec.importFilter: nowhere found"), (odd, "AS 65000 found")] {
            let mut bad = changed.clone();
            bad.peers.insert("tor".parse().unwrap(), tor(options));
            one.sees(bad);
            let begin = tokio::time::Instant::now();
            while !one.problems().await.iter().any(|problem| problem.contains(said)) {
                assert!(begin.elapsed() < LIMIT, "{said}: {:?}", one.problems().await);
                tokio::task::yield_now().await;
            }
            assert!(uses(&one.routes.borrow(), BAD), "{said}");
        }
        let after = one.peers().await[0].clone();
        assert_eq!((after.state.as_str(), after.updates), ("Established", before.updates), "one session");
        assert!(after.told.is_none() && after.since_seconds >= before.since_seconds);

        // A limit that is passed: what it was told stands there.
        let mut limited = options();
        limited.max_prefixes_ipv4 =
            Some(podway_model::bgp::PrefixLimit { limit: 2, warn_percent: 50, restart_seconds: None });
        let mut view = changed.clone();
        view.peers.insert("tor".parse().unwrap(), tor(limited));
        one.sees(view);
        match reply(&one.queries, RoutedRequest::BgpReset { peer: hop, words: "anew".to_owned() }).await {
            Some(RoutedReply::Done) => {}
            other => panic!("{other:?}"),
        }
        let begin = tokio::time::Instant::now();
        while !one.peers().await[0].told.as_ref().is_some_and(|told| told.contains("(6/1)")) {
            assert!(begin.elapsed() < LIMIT, "{:?}", one.peers().await);
            tokio::task::yield_now().await;
        }
        one.until("its routes are gone", |routes| routes.routes.is_empty()).await;
        // The operator lifts the limit, and lets it come again.
        one.sees(changed);
        let _ = reply(&one.queries, RoutedRequest::BgpReset { peer: hop, words: "again".to_owned() }).await;
        one.until("back", |routes| uses(routes, GOOD)).await;
        assert!(one.peers().await[0].told.is_some(), "what it was told stays");
        one.stop().await;
    });
}
