//! The real binary in a cluster that lives: nodes that hold blocks, and daemons that answer.

use std::path::Path;
use std::thread::JoinHandle;

use crate::place::Place;
use podway_daemon::admin::AdminSocket;
use podway_daemon::shutdown::{ShutdownTrigger, shutdown};
use podway_model::cluster::{Claim, Liveness, NodeRecord, encode};
use podway_model::config::{FileConfig, StoreConfig};
use podway_model::ids::InstanceId;
use podway_model::socket::{
    BgpPeerStatus, IpamFinding, IpamRemedy, PolicyReply, PolicyRequest, PolicyStatus, RoutedReply,
    RoutedRequest, RoutedStatus,
};

fn instance() -> InstanceId {
    "00000000-0000-4000-8000-000000000001".parse().expect("a UUID")
}

/// Writes what nodes write: n1 is alive with a block, n2 is down with another.
pub(crate) fn join_two_nodes(place: &Place) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let config = StoreConfig::File(FileConfig { path: place.path("cluster") });
        let store = podway_store::open(&config).expect("a store");
        let record = |address: &str| NodeRecord {
            instance_id: instance(),
            address_v4: Some(address.parse().expect("an address")),
            address_v6: None,
            tunnel_v4: None,
            tunnel_v6: None,
            labels: Default::default(),
            asn: None,
            vtep_mac: None,
            wireguard_key: None,
            version: "0.1.0".to_owned(),
            ways: None,
        };
        let claim = Claim { instance_id: instance(), pool: "v4".parse().expect("a name"), confirmed: true };
        let live = Liveness { instance_id: instance(), addresses: vec![] };
        for (key, value) in [
            ("nodes/n1", encode(&record("10.0.0.1"))),
            ("nodes/n2", encode(&record("10.0.0.2"))),
            ("live/n1", encode(&live)),
            ("claims/n1/10.244.0.0-26", encode(&claim)),
            ("claims/n2/10.244.0.64-26", encode(&claim)),
        ] {
            store.put(key, &value).await.expect("written");
        }
    });
}

fn pool(spec: &str) -> String {
    format!("{{apiVersion: podway.io/v1, kind: Pool, metadata: {{name: v4}}, spec: {spec}}}")
}

#[test]
fn a_pool_in_use_keeps_its_range_and_blocks() {
    let place = Place::new();
    place.run_with("apply -f -", &pool("{cidr: 10.244.0.0/16}")).expect(0, "pool/v4 created\n", "");
    join_two_nodes(&place);
    let refused = place.run_with("apply -f -", &pool("{cidr: 10.244.0.0/17, blockSize: 25}"));
    assert_eq!(refused.code(), 64);
    assert_eq!(
        refused.err(),
        "standard input: pool v4: spec.cidr: 10.244.0.0/17 found, 10.244.0.0/16 while n1, n2 hold blocks of it \
         expected\nstandard input: pool v4: spec.blockSize: 25 found, 26 while n1, n2 hold blocks of it expected\n"
    );
    let may = pool("{cidr: 10.244.0.0/16, nat: false, disabled: true}");
    place.run_with("apply -f -", &may).expect(0, "pool/v4 configured\n", "");
    place.run("delete pool v4").expect(1, "", "pool v4 is in use: n1, n2 hold blocks of it");
    place.run("get pool v4").expect(
        0,
        "NAME  CIDR           BLOCKS  ASSIGNMENT  NAT  NODES  STATE\n\
         v4    10.244.0.0/16  /26     automatic   no   all    disabled\n",
        "",
    );
}

#[test]
fn nodes_are_listed_and_released() {
    let place = Place::new();
    join_two_nodes(&place);
    let table = "NODE  STATE  ADDRESSES  BLOCKS          VERSION\n\
                 n1    live   10.0.0.1   10.244.0.0/26   0.1.0\n\
                 n2    down   10.0.0.2   10.244.0.64/26  0.1.0\n";
    place.run("node list").expect(0, table, "");
    place.run("node release n1").expect(1, "", "node n1 is alive");
    place.run("node release n2").expect(0, "n2 released: 10.244.0.64/26 (free again in 24 hours)\n", "");
    place.run("node release n2").expect(3, "", "node n2 not found");
    place.run("node release n1 --force --now").expect(0, "n1 released: 10.244.0.0/26 (free at once)\n", "");
    place.run("node list").expect(0, "no node has joined yet\n", "");
    let nowhere = place.path("none.sock").display().to_string();
    let status = place.run(&format!("status --routed-socket {nowhere} --policy-socket {nowhere}"));
    assert!(status.out().contains("released blocks: 10.244.0.64/26\n"), "{}", status.out());
}

#[test]
fn nodes_are_drained_and_the_topology_is_shown() {
    let place = Place::new();
    join_two_nodes(&place);
    place.run("node drain n3").expect(3, "", "node n3 not found");
    place.run("node drain N3").expect(64, "", "NODE: \"N3\" found");
    let drained = place.run("node drain n1 --reason disk");
    drained.expect_code(0, "nothing moves by it: the backend is vxlan");
    assert!(drained.out().starts_with("n1 is drained (disk): neighbours outside"), "{}", drained.out());
    assert!(place.run("node list").out().contains("live, drained"));
    assert!(place.run("topology").out().starts_with("the backend is vxlan: nodes have no BGP sessions\n"));
    let auto = "{apiVersion: podway.io/v1, kind: ClusterConfig, metadata: {name: default}, \
                spec: {backend: bgp, bgp: {topology: auto, meshUpTo: 4}}}";
    place.run_with("apply -f -", auto).expect(0, "clusterconfig/default created\n", "");
    let table = "auto: mesh\n\
                 NODE  STATE          ROLE  AS     ZONE  SESSIONS  PEERS OUTSIDE\n\
                 n1    live, drained  -     64512  -     1         -\n\
                 n2    down           -     64512  -     1         -\n";
    place.run("topology").expect(0, table, "");
    assert!(place.run("topology --draw svg").out().starts_with("<svg "));
    assert!(place.run("topology --draw dot").out().contains("  n0 -- n1 [style=dashed];\n"));
    let json = place.run("topology -o json").out();
    assert!(json.contains("\"kind\": \"mesh\"") && json.contains("\"to\": \"n2\""), "{json}");
    place.run("node undrain n1").expect(0, "n1 is drained no longer\n", "");
    place.run("node undrain n1").expect(3, "", "node n1 is not drained");
    let few = auto.replace("meshUpTo: 4", "meshUpTo: 3");
    let refused = place.run_with("apply -f -", &few);
    assert_eq!(refused.code(), 64);
    assert!(
        refused.err().contains("spec.bgp.meshUpTo: 3 found, 4 to 1000 nodes expected"),
        "{}",
        refused.err()
    );
}

/// A daemon's socket that answers with what it was given, until it is dropped.
pub(crate) struct Daemon {
    trigger: Option<ShutdownTrigger>,
    thread: Option<JoinHandle<()>>,
}

impl Daemon {
    pub(crate) fn start<Q, A>(path: &Path, answer: impl Fn(Q) -> A + Send + 'static) -> Self
    where
        Q: serde::de::DeserializeOwned + 'static,
        A: serde::Serialize + 'static,
    {
        let (trigger, shutdown) = shutdown();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let socket = runtime.block_on(async { AdminSocket::bind(path) }).expect("bound");
        let thread = std::thread::spawn(move || {
            let serve = socket.serve(shutdown, move |question| std::future::ready(answer(question)));
            runtime.block_on(serve).expect("served");
        });
        Self { trigger: Some(trigger), thread: Some(thread) }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        drop(self.trigger.take());
        if let Some(thread) = self.thread.take() {
            assert!(thread.join().is_ok() || std::thread::panicking());
        }
    }
}

fn routed(ready: bool) -> RoutedStatus {
    RoutedStatus {
        node: "n1".parse().expect("a name"),
        instance_id: instance(),
        pid: 1,
        ready,
        waiting_for: if ready { vec![] } else { vec!["the store is not in sync".to_owned()] },
        store: "in sync".to_owned(),
        revision: 7,
        backend: "bgp".to_owned(),
        topology: None,
        changeover: None,
        addresses: vec![],
        tunnel_addresses: vec![],
        mtu: 1500,
        blocks: vec![],
        devices: vec![],
        nodes: vec![],
        routes: Default::default(),
        problems: vec![],
        counters: Default::default(),
    }
}

#[test]
fn status_asks_both_daemons_and_exits_with_4_until_both_are_ready() {
    let place = Place::new();
    let (routed_path, policy_path) = (place.path("routed.sock"), place.path("policy.sock"));
    let sockets =
        format!("--routed-socket {} --policy-socket {}", routed_path.display(), policy_path.display());
    let answer = |ready| move |_: RoutedRequest| RoutedReply::Status(Box::new(routed(ready)));
    let first = Daemon::start(&routed_path, answer(true));
    let alone = place.run(&format!("status --node {sockets}"));
    assert!(alone.out().contains("Node n1: routed ready"), "{}", alone.out());
    alone.expect_code(4, "policy-agent does not answer");

    let _policy = Daemon::start(&policy_path, |_: PolicyRequest| {
        PolicyReply::Status(PolicyStatus { ready: true, ..PolicyStatus::default() })
    });
    let both = place.run(&format!("status --node {sockets} -o json"));
    let report: serde_json::Value = serde_json::from_str(&both.out()).expect("JSON");
    assert_eq!(report["node"]["routed"]["answer"]["revision"], 7);
    both.expect_code(0, "");

    drop(first);
    let _second = Daemon::start(&routed_path, answer(false));
    let waiting = place.run(&format!("status {sockets}"));
    assert!(waiting.out().contains("waiting for:     the store is not in sync"), "{}", waiting.out());
    waiting.expect_code(4, "routed is not ready");
}

#[test]
fn bgp_sessions_come_from_the_socket() {
    let place = Place::new();
    let path = place.path("routed.sock");
    let _routed = Daemon::start(&path, |question: RoutedRequest| match question {
        RoutedRequest::BgpPeers => RoutedReply::BgpPeers {
            peers: vec![BgpPeerStatus {
                name: "n2".to_owned(),
                address: [10, 0, 0, 2].into(),
                asn: 64512,
                state: "Established".to_owned(),
                role: "mesh".to_owned(),
                since_seconds: 61,
                received: 1,
                advertised: 1,
                stale: 0,
                updates: 0,
                bfd: None,
                kernel: None,
                last_error: None,
                told: None,
                told_seconds: None,
                ignored: 0,
                remark: None,
                leaving: None,
            }],
        },
        _ => RoutedReply::Failed { reason: "the backend is not bgp".to_owned() },
    });
    let socket = format!("--routed-socket {}", path.display());
    place.run(&format!("bgp peers {socket}")).expect(
        0,
        "NAME  ADDRESS   ASN    ROLE  STATE        SINCE  RECEIVED  SENT  STALE  LAST ERROR\n\
         n2    10.0.0.2  64512  mesh  Established  61s    1         1     0      -\n",
        "",
    );
    place.run(&format!("bgp routes {socket}")).expect(1, "", "routed: the backend is not bgp");
}

#[test]
fn addresses_are_shown_and_what_is_wrong_is_found_and_mended_only_when_told_to() {
    let place = Place::new();
    let nowhere = format!("--routed-socket {}", place.path("none.sock").display());
    place.run("ipam show").expect(0, "no pool: pods get no address\n", "");
    place.run_with("apply -f -", &pool("{cidr: 10.244.0.0/16}")).expect(0, "pool/v4 created\n", "");
    join_two_nodes(&place);
    let put = |key: &str, value: &str| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let store = podway_store::open(&StoreConfig::File(FileConfig { path: place.path("cluster") }));
        let store = store.expect("a store");
        runtime.block_on(store.put(key, value.as_bytes())).expect("written");
    };
    put("usage/n1", r#"{"schema":1,"blocks":{"10.244.0.0/26":7}}"#);
    let shown = place.run("ipam show");
    assert_eq!(
        shown.out(),
        "POOL  CIDR           BLOCKS  ADDRESSES  USED  SHARE  STATE\n\
         v4    10.244.0.0/16  2       128        7     5%     -\n\n\
         NODE  BLOCK           POOL  ADDRESSES  USED  SHARE  STATE\n\
         n1    10.244.0.0/26   v4    64         7     10%    -\n\
         n2    10.244.0.64/26  v4    64         0     0%     -\n",
        "{}",
        shown.err()
    );
    let json: serde_json::Value = serde_json::from_str(&place.run("ipam show -o json").out()).expect("JSON");
    assert_eq!((&json["pools"][0]["used"], &json["blocks"][1]["node"]), (&7.into(), &"n2".into()));
    assert!(place.run("ipam show -o yaml").out().contains("node: n1"));
    // Without a daemon: the store alone, and that is said.
    place.run(&format!("ipam check {nowhere}")).expect(
        0,
        "nothing leaks, nothing is double\n",
        "routed does not run here: only the store was looked at",
    );
    put(
        "claims/ghost/10.244.9.0-26",
        r#"{"schema":1,"instanceId":"00000000-0000-4000-8000-000000000009","pool":"v4","confirmed":true}"#,
    );
    put("usage/ghost", r#"{"schema":1,"blocks":{}}"#);
    let local = IpamFinding {
        subject: "c1/eth0".to_owned(),
        problem: "lease of 10.244.0.5, and no interface".to_owned(),
        remedy: IpamRemedy::CanBeMended,
    };
    let socket = place.path("routed.sock");
    let sockets = format!("--routed-socket {}", socket.display());
    let _routed = Daemon::start(&socket, move |question: RoutedRequest| {
        let node = "n1".parse().expect("a name");
        let released = |holder: &str| RoutedReply::IpamReleased {
            holder: holder.to_owned(),
            addresses: vec!["10.244.0.5".parse().expect("an address")],
        };
        match question {
            RoutedRequest::IpamCheck { mend } => {
                let mut finding = local.clone();
                if mend {
                    finding.remedy = IpamRemedy::Mended;
                }
                RoutedReply::IpamFindings { node, findings: vec![finding] }
            }
            RoutedRequest::IpamRelease { address, force } => match (address.to_string().as_str(), force) {
                ("10.244.0.5", _) | ("10.244.0.6", true) => released("c1/eth0"),
                ("10.244.0.6", false) => RoutedReply::Failed { reason: "its pod is there".to_owned() },
                _ => RoutedReply::IpamNotHeld { node },
            },
            other => RoutedReply::Failed { reason: format!("{other:?}") },
        }
    });
    let found = place.run(&format!("ipam check {sockets}"));
    for line in [
        "node ghost              nobody knows it, and it holds 10.244.9.0/26",
        "node ghost              nobody knows it, and its use of addresses is told",
        "c1/eth0 on node n1  lease of 10.244.0.5, and no interface",
    ] {
        let words: Vec<&str> = line.split("  ").map(str::trim).filter(|word| !word.is_empty()).collect();
        assert!(words.iter().all(|word| found.out().contains(word)), "{}", found.out());
    }
    found.expect_code(1, "3 to mend");
    assert!(place.run("node list").out().contains("ghost"), "looking changes nothing");
    let mended = place.run(&format!("ipam check --mend {sockets} -o json"));
    let json: serde_json::Value = serde_json::from_str(&mended.out()).expect("JSON");
    assert!(json.as_array().expect("a list").iter().all(|finding| finding["remedy"] == "mended"), "{json}");
    mended.expect_code(0, "");
    assert!(!place.run("node list").out().contains("ghost"));
    // Freeing one: here, refused, somewhere else, nowhere.
    place.run(&format!("ipam release 10.244.0.5 {sockets}")).expect(
        0,
        "10.244.0.5 released; c1/eth0 held it\n",
        "",
    );
    place.run(&format!("ipam release 10.244.0.6 {sockets}")).expect(1, "", "its pod is there");
    place.run(&format!("ipam release 10.244.0.6 --force {sockets}")).expect_code(0, "");
    place.run(&format!("ipam release 10.244.0.70 {sockets}")).expect(
        3,
        "",
        "nobody on this node (n1) holds 10.244.0.70: it lies in 10.244.0.64/26, a block of node n2; run this there",
    );
    place.run(&format!("ipam release 192.0.2.1 {sockets}")).expect(
        3,
        "",
        "nobody on this node (n1) holds 192.0.2.1\n",
    );
    place.run(&format!("ipam release 10.244.0.5 {nowhere}")).expect(1, "", "nobody answers");
    place.run("ipam release banana").expect_code(64, "banana");
}
