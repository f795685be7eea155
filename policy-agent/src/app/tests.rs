//! The whole loop in a network namespace, with a store in memory, where our table has no owner: what others do to
//! it is noticed and repaired.

use std::process::Command;
use std::time::Duration;

use podway_model::socket::PolicyStatus;
use podway_store::Store as _;
use podway_store::fake::FakeServer;
use prometheus_client::registry::Registry;

use super::*;
use crate::records::tests::{BOOT, record};

/// Longest wait for anything.
const PATIENCE: Duration = Duration::from_secs(20);

/// Runs a test in a thread with a network namespace and a runtime of its own.
fn in_a_namespace(test: &str, body: impl Future<Output = ()> + Send) {
    if !nix::unistd::geteuid().is_root() {
        println!("SKIP {test}: needs root");
        return;
    }
    let run = || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async { tokio::time::timeout(PATIENCE, body).await.expect("not in time") });
    };
    podway_kern::ns::in_new_netns(run).unwrap();
}

async fn status(ask: &mpsc::Sender<Question>) -> PolicyStatus {
    let (answer, answered) = oneshot::channel();
    ask.send((PolicyRequest::Status, answer)).await.unwrap();
    match answered.await.unwrap() {
        PolicyReply::Status(status) => status,
        other => panic!("{other:?}"),
    }
}

async fn wait_for(ask: &mpsc::Sender<Question>, holds: impl Fn(&PolicyStatus) -> bool) -> PolicyStatus {
    loop {
        let status = status(ask).await;
        if holds(&status) {
            return status;
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// Our table as `nft` lists it, if it is there.
fn listed() -> Option<String> {
    let output = Command::new("nft").args(["-s", "list", "table", "inet", "podway-policy"]).output().unwrap();
    output.status.success().then(|| String::from_utf8(output.stdout).unwrap())
}

/// `nft` in the thread's namespace.
fn nft(arguments: &str) -> String {
    let output = Command::new("nft").args(arguments.split(' ')).output().unwrap();
    assert!(output.status.success(), "nft {arguments}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn what_others_do_to_our_table_is_repaired_and_counted() {
    in_a_namespace("what_others_do_to_our_table_is_repaired_and_counted", async {
        let server = FakeServer::new();
        let store = server.client(Duration::from_secs(30));
        let folder = tempfile::tempdir().unwrap();
        let a = record("x", "a", "10.244.1.2");
        fs::write(folder.path().join(format!("{}.json", a.id)), serde_json::to_vec(&a).unwrap()).unwrap();
        let (ask, questions) = mpsc::channel(QUESTIONS);
        let (waiting_for, _shown) = watch::channel(vec![]);
        let kernel = Kernel::open().unwrap().without_owner();
        let agent = Agent {
            started: Instant::now(),
            core: Core::new(BOOT.parse().unwrap(), "n1".to_owned(), Limits::default(), kernel.table_flags()),
            monitor: kernel.monitor().unwrap(),
            drops: None,
            kernel,
            store: store.watch(&[source::PREFIX]),
            folder: Folder::watch(folder.path()).unwrap(),
            questions,
            answers: BTreeMap::new(),
            next_ticket: 0,
            metrics: Metrics::register(&mut Registry::default()),
            waiting_for,
        };
        let (trigger, shutdown) = podway_daemon::shutdown::shutdown();
        let agent = tokio::spawn(agent.run(shutdown));
        wait_for(&ask, |status| status.ready).await;
        let whole = listed().unwrap();
        assert!(whole.contains(a.host_ifname.as_str()), "{whole}");

        let element = format!("{0} . {0}", a.host_ifname);
        let rude = [
            "flush ruleset".to_owned(),
            "delete table inet podway-policy".to_owned(),
            format!("delete element inet podway-policy pods {{ {element} }}"),
            "flush chain inet podway-policy forward".to_owned(),
            "add rule inet podway-policy judge accept".to_owned(),
        ];
        for command in &rude {
            let before = status(&ask).await.repairs;
            nft(command);
            wait_for(&ask, |status| {
                status.repairs > before && status.ready && listed().as_deref() == Some(whole.as_str())
            })
            .await;
        }
        // What concerns others only is none of our business.
        let before = status(&ask).await.repairs;
        nft("add table inet foreign");
        server.with(|mem| mem.put("objects/namespaces/x", br#"{"metadata":{"name":"x"}}"#, None)).unwrap();
        wait_for(&ask, |status| status.revision > 0).await;
        assert_eq!(status(&ask).await.repairs, before);
        trigger.request();
        agent.await.unwrap().unwrap();
        assert_eq!(listed().unwrap(), whole, "it stays when the agent ends");
    });
}
