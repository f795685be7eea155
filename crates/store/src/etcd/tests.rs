//! etcd's own ways to go wrong, with a real one.

use std::process::Command;
use std::sync::Arc;

use etcd_client::{
    AlarmAction, AlarmOptions, AlarmType, Client, CompactionOptions, Permission, PermissionType,
};
use podway_model::config::{EtcdConfig, StoreConfig};

use super::testing::{Etcd, eventually, make_certificates, tls_arguments, tls_config, with_etcd};
use crate::conformance::Consumer;
use crate::{Store, StoreError, open};

const PORT: u16 = 2379;

fn config() -> EtcdConfig {
    EtcdConfig { lease_seconds: 2, ..EtcdConfig::default() }
}

fn store(config: EtcdConfig) -> Arc<dyn Store> {
    open(&StoreConfig::Etcd(config)).unwrap()
}

fn endpoint(port: u16) -> String {
    format!("http://127.0.0.1:{port}")
}

async fn up(store: &Arc<dyn Store>) {
    eventually("etcd answers", || async { store.get("config").await.ok() }).await;
}

async fn client(port: u16) -> Client {
    eventually("etcd answers", || async move {
        let mut client = Client::connect([endpoint(port)], None).await.ok()?;
        client.get("x", None).await.ok()?;
        Some(client)
    })
    .await
}

#[test]
fn absent_at_start_it_is_told_once_and_works_when_it_comes() {
    with_etcd("absent_at_start_it_is_told_once_and_works_when_it_comes", |folder| async move {
        let store = store(config());
        let error = store.get("config").await.unwrap_err();
        assert!(error.is_unsure() && error.to_string().contains("127.0.0.1:2379"), "{error}");
        let mut watch = store.watch(&["nodes/"]);
        let mut seen = Consumer::default();
        seen.until(&mut watch, "its absence", |c| c.away.is_some()).await;
        let _etcd = Etcd::start(&folder, PORT, &[]);
        seen.until(&mut watch, "the snapshot", |c| c.snapshots == 1 && c.away.is_none()).await;
        store.put("nodes/a", b"1").await.unwrap();
        seen.until(&mut watch, "a change", |c| c.has("nodes/a", "1")).await;
    });
}

#[test]
fn a_restart_is_resumed_from_the_revision_and_a_compaction_is_read_anew() {
    with_etcd("a_restart_is_resumed_from_the_revision_and_a_compaction_is_read_anew", |folder| async move {
        let etcd = Etcd::start(&folder, PORT, &[]);
        let store = store(config());
        up(&store).await;
        store.put("nodes/a", b"1").await.unwrap();
        let mut watch = store.watch(&["nodes/"]);
        let mut seen = Consumer::default();
        seen.until(&mut watch, "the snapshot", |c| c.snapshots == 1).await;
        store.put("nodes/a", b"2").await.unwrap();
        seen.until(&mut watch, "a change", |c| c.has("nodes/a", "2")).await;

        // While nobody watches: on another port.
        etcd.stop();
        seen.until(&mut watch, "its absence", |c| c.away.is_some()).await;
        let etcd = Etcd::start(&folder, 2999, &[]);
        let mut behind = client(2999).await;
        behind.put("/podway/v1/nodes/a", "3", None).await.unwrap();
        behind.put("/podway/v1/nodes/b", "3", None).await.unwrap();
        etcd.stop();
        let etcd = Etcd::start(&folder, PORT, &[]);
        seen.until(&mut watch, "what was missed", |c| c.has("nodes/b", "3") && c.has("nodes/a", "3")).await;
        assert_eq!(seen.snapshots, 1, "resumed, not read anew");

        etcd.stop();
        seen.until(&mut watch, "its absence", |c| c.away.is_some()).await;
        let etcd = Etcd::start(&folder, 2999, &[]);
        let mut behind = client(2999).await;
        behind.delete("/podway/v1/nodes/a", None).await.unwrap();
        let put = behind.put("/podway/v1/nodes/c", "4", None).await.unwrap();
        behind.compact(put.header().unwrap().revision(), None).await.unwrap();
        etcd.stop();
        let _etcd = Etcd::start(&folder, PORT, &[]);
        seen.until(&mut watch, "the new snapshot", |c| c.snapshots == 2).await;
        assert!(seen.has("nodes/c", "4") && !seen.entries.contains_key("nodes/a"));
    });
}

#[test]
fn a_cluster_restored_to_an_older_revision_is_read_anew() {
    with_etcd("a_cluster_restored_to_an_older_revision_is_read_anew", |folder| async move {
        let (now, backup) = (folder.join("now"), folder.join("backup"));
        let etcd = Etcd::start(&now, PORT, &[]);
        let store = store(config());
        up(&store).await;
        store.put("nodes/old", b"1").await.unwrap();
        etcd.stop();
        let copied = Command::new("cp").arg("-a").args([&now, &backup]).status().unwrap();
        assert!(copied.success());
        let etcd = Etcd::start(&now, PORT, &[]);
        up(&store).await;
        let mut watch = store.watch(&["nodes/"]);
        let mut seen = Consumer::default();
        seen.until(&mut watch, "the snapshot", |c| c.snapshots == 1).await;
        store.put("nodes/new", b"2").await.unwrap();
        seen.until(&mut watch, "the change", |c| c.has("nodes/new", "2")).await;
        etcd.stop();
        seen.until(&mut watch, "its absence", |c| c.away.is_some()).await;

        // The backup comes back, and by the time that we look it has reached the very revision we knew.
        let etcd = Etcd::start(&backup, 2999, &[]);
        client(2999).await.put("/podway/v1/nodes/other", "3", None).await.unwrap();
        etcd.stop();
        let _etcd = Etcd::start(&backup, PORT, &[]);
        seen.until(&mut watch, "the new snapshot", |c| c.snapshots == 2).await;
        assert!(seen.has("nodes/other", "3") && !seen.entries.contains_key("nodes/new"));
    });
}

#[test]
fn endpoints_that_are_down_are_passed_over() {
    with_etcd("endpoints_that_are_down_are_passed_over", |folder| async move {
        let _etcd = Etcd::start(&folder, PORT, &[]);
        let endpoints = vec![endpoint(1), endpoint(2), endpoint(PORT)];
        let store = store(EtcdConfig { endpoints, ..config() });
        up(&store).await;
        for i in 0..20 {
            store.put("nodes/a", i.to_string().as_bytes()).await.unwrap();
        }
        let mut seen = Consumer::default();
        seen.until(&mut store.watch(&["nodes/"]), "the snapshot", |c| c.has("nodes/a", "19")).await;
    });
}

#[test]
fn users_log_in_and_may_write_only_what_their_role_says() {
    with_etcd("users_log_in_and_may_write_only_what_their_role_says", |folder| async move {
        // Tokens that end after 2 s: the store must log in again by itself.
        let more = ["--auth-token-ttl=2".to_owned()];
        let _etcd = Etcd::start(&folder, PORT, &more);
        let mut admin = client(PORT).await;
        admin.role_add("node-a").await.unwrap();
        let all = Permission::new(PermissionType::Read, "/podway/v1/").with_prefix();
        let own = Permission::new(PermissionType::Write, "/podway/v1/claims/a/").with_prefix();
        admin.role_grant_permission("node-a", all).await.unwrap();
        admin.role_grant_permission("node-a", own).await.unwrap();
        admin.user_add("a", "secret", None).await.unwrap();
        admin.user_grant_role("a", "node-a").await.unwrap();
        admin.user_add("root", "root", None).await.unwrap();
        admin.user_grant_role("root", "root").await.unwrap();
        admin.auth_enable().await.unwrap();

        let password_file = folder.join("password");
        std::fs::write(&password_file, "secret\n").unwrap();
        let user =
            EtcdConfig { username: Some("a".into()), password_file: Some(password_file.clone()), ..config() };
        let logged_in = store(user.clone());
        up(&logged_in).await;
        logged_in.put("claims/a/10.0.0.0-26", b"mine").await.unwrap();
        let denied = logged_in.put("claims/b/10.0.0.64-26", b"not mine").await.unwrap_err();
        assert!(matches!(&denied, StoreError::Denied { what, .. } if what.contains("claims/b")), "{denied}");
        let mut seen = Consumer::default();
        seen.until(&mut logged_in.watch(&["claims/"]), "the snapshot", |c| c.entries.len() == 1).await;

        let start = std::time::Instant::now();
        eventually("the token has ended", || async {
            logged_in.get("config").await.unwrap();
            (start.elapsed() > std::time::Duration::from_secs(4)).then_some(())
        })
        .await;
        logged_in.put("claims/a/10.0.0.0-26", b"still mine").await.unwrap();

        std::fs::write(&password_file, "wrong").unwrap();
        let refused = store(user).get("config").await.unwrap_err();
        assert!(matches!(refused, StoreError::Denied { .. }), "{refused}");
    });
}

#[test]
fn tls_with_client_certificates() {
    with_etcd("tls_with_client_certificates", |folder| async move {
        if !make_certificates(&folder, &["client"]) {
            println!("SKIP tls_with_client_certificates: needs openssl on PATH");
            return;
        }
        let _etcd = Etcd::start(&folder.join("data"), PORT, &tls_arguments(&folder));
        let with_certificate = tls_config(&folder, "client");
        let without = EtcdConfig { cert_file: None, key_file: None, ..with_certificate.clone() };
        let store_with = store(with_certificate);
        up(&store_with).await;
        store_with.put("nodes/a", b"1").await.unwrap();
        assert!(store(without).get("nodes/a").await.is_err());
    });
}

/// Compaction, defragmentation, disarming: what the documentation says.
async fn make_room(client: &mut Client) {
    let revision = client.get("x", None).await.unwrap().header().unwrap().revision();
    client.compact(revision, Some(CompactionOptions::new().with_physical())).await.unwrap();
    client.defragment().await.unwrap();
    let raised = client.alarm(AlarmAction::Get, AlarmType::None, None).await.unwrap();
    for alarm in raised.alarms() {
        let mut of = AlarmOptions::new();
        of.with_member(alarm.member_id());
        client.alarm(AlarmAction::Deactivate, AlarmType::Nospace, Some(of)).await.unwrap();
    }
}

#[test]
fn a_quota_that_is_used_up_is_told_by_the_watch_and_stops_no_reader() {
    with_etcd("a_quota_that_is_used_up_is_told_by_the_watch_and_stops_no_reader", |folder| async move {
        let _etcd = Etcd::start(&folder, PORT, &["--quota-backend-bytes=2000000".to_owned()]);
        let (writer, idle) = (store(config()), store(config()));
        up(&writer).await;
        let mut watch = writer.watch(&["nodes/"]);
        let mut seen = Consumer::default();
        seen.until(&mut watch, "the snapshot", |c| c.snapshots == 1).await;
        writer.put_leased("live/a", b"1", crate::Expect::Absent).await.unwrap();
        let value = vec![b'x'; 100_000];
        let full = eventually("the quota is used up", || async { writer.put("nodes/a", &value).await.err() });
        let full = full.await;
        assert!(matches!(full, StoreError::Full { .. }), "{full}");
        let told = |c: &Consumer| c.problems.iter().any(|problem| problem.contains("disarm"));
        seen.until(&mut watch, "the alarm", told).await;
        // Who writes nothing is told when its watch begins; reads, watches and deletions go on, the lease too.
        let (mut quiet, mut watched) = (Consumer::default(), idle.watch(&["nodes/", "live/"]));
        quiet.until(&mut watched, "the alarm", |c| told(c) && c.snapshots == 1).await;
        assert!(matches!(writer.put("nodes/b", b"1").await, Err(StoreError::Full { .. })));
        assert!(writer.delete("nodes/a").await.unwrap());
        quiet.until(&mut watched, "the deletion", |c| !c.entries.contains_key("nodes/a")).await;

        make_room(&mut client(PORT).await).await;
        writer.put("nodes/b", b"1").await.unwrap();
        seen.until(&mut watch, "the end of the alarm", |c| c.problems.is_empty() && c.has("nodes/b", "1"))
            .await;
        assert!(quiet.entries.contains_key("live/a"), "the lease was kept alive");
        assert!(!seen.was_away && !quiet.was_away);
    });
}

#[test]
fn what_the_configuration_gets_wrong_is_told_at_once() {
    let wrong = EtcdConfig {
        endpoints: vec!["etcd:2379".into(), "https://a:2379".into()],
        key_file: Some("/nonexistent/key.pem".into()),
        ..config()
    };
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let mistakes = runtime.block_on(async { open(&StoreConfig::Etcd(wrong)).unwrap_err() });
    let text = mistakes.to_string();
    assert_eq!(mistakes.0.len(), 3, "{text}");
    for part in ["etcd:2379", "caFile", "/nonexistent/key.pem"] {
        assert!(text.contains(part), "{part}: {text}");
    }
}
