//! What every backend must do, run against all three.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use podway_model::config::{EtcdConfig, FileConfig};
use tokio::time::timeout;

use crate::etcd::testing::{Etcd, eventually, with_etcd};
use crate::fake::FakeServer;
use crate::file::FileStore;
use crate::{Change, Event, Expect, Guard, Store, Watch, Written, open};

/// A store that can be opened more than once, as by several processes.
type Opener = dyn Fn() -> Arc<dyn Store>;

/// What a consumer of a watch knows.
#[derive(Default)]
pub(crate) struct Consumer {
    pub(crate) entries: BTreeMap<String, Vec<u8>>,
    pub(crate) snapshots: usize,
    pub(crate) problems: Vec<String>,
    pub(crate) away: Option<String>,
    pub(crate) was_away: bool,
}

impl Consumer {
    fn on_event(&mut self, event: Event) {
        match event {
            Event::Snapshot { entries, .. } => {
                self.entries = entries.into_iter().map(|e| (e.key, e.value)).collect();
                self.snapshots += 1;
            }
            Event::Changes { changes, .. } => {
                assert!(self.snapshots > 0, "changes before the first snapshot");
                for change in changes {
                    match change {
                        Change::Put(entry) => self.entries.insert(entry.key, entry.value),
                        Change::Delete { key } => self.entries.remove(&key),
                    };
                }
            }
            Event::Unavailable { reason } => {
                assert!(self.away.is_none(), "told twice");
                self.was_away = true;
                self.away = Some(reason);
            }
            Event::Available => assert!(self.away.take().is_some(), "back without having been away"),
            Event::Problems { problems } => self.problems = problems,
        }
    }

    /// Takes events until the condition holds.
    pub(crate) async fn until(&mut self, watch: &mut Watch, what: &str, holds: impl Fn(&Self) -> bool) {
        while !holds(self) {
            let next = timeout(Duration::from_secs(30), watch.next()).await;
            let event = next.unwrap_or_else(|_| panic!("{what}: not within 30 s: {:?}", self.entries.keys()));
            self.on_event(event.unwrap());
        }
    }

    pub(crate) fn has(&self, key: &str, value: &str) -> bool {
        self.entries.get(key).is_some_and(|v| v == value.as_bytes())
    }
}

async fn all(open: &Opener) {
    conditions(open).await;
    guards(open).await;
    snapshot_and_changes(open).await;
    one_of_many_creates(open).await;
    many_keys(open).await;
    leases(open).await;
    times_of_their_own(open).await;
}

/// Somebody else's keys, outside of the store's prefix.
async fn whole_keys(open: &Opener) {
    let store = open();
    let key = "/coreos.com/network/subnets/10.5.3.0-24";
    assert_eq!(store.takes_outside("/coreos.com/network"), Ok(()));
    let mut watch = store.watch(&["/coreos.com/network/config", "/coreos.com/network/subnets/"]);
    let mut own = store.watch(&["nodes/"]);
    let (mut seen, mut seen_own) = (Consumer::default(), Consumer::default());
    let made = store.put_for(key, b"1", Expect::Absent, 3600).await.unwrap();
    let Written::Done { revision } = made else { panic!("{made:?}") };
    seen.until(&mut watch, "a whole key", |c| c.has(key, "1")).await;
    store.put("nodes/a", b"1").await.unwrap();
    seen_own.until(&mut own, "a key of our own", |c| c.has("nodes/a", "1")).await;
    assert!(!seen_own.has(key, "1") && !seen.has("nodes/a", "1"));
    assert_eq!(store.get(key).await.unwrap().unwrap().key, key);
    assert_eq!(store.list("/coreos.com/network/subnets/").await.unwrap().entries.len(), 1);
    let guard = |revision| [Guard { key: key.into(), expect: Expect::Revision(revision) }];
    let refused = store.put_guarded("claims/a", b"1", Expect::Absent, &guard(revision - 1)).await.unwrap();
    assert_eq!(refused, Written::Refused { found: None });
    let done = store.put_guarded("claims/a", b"1", Expect::Absent, &guard(revision)).await.unwrap();
    assert!(matches!(done, Written::Done { .. }));
    assert!(matches!(store.delete_if(key, revision).await.unwrap(), Written::Done { .. }));
    seen.until(&mut watch, "its end", |c| !c.has(key, "1")).await;
    assert!(store.delete("claims/a").await.unwrap() && store.delete("nodes/a").await.unwrap());
}

async fn conditions(open: &Opener) {
    let store = open();
    assert_eq!(store.get("nodes/a").await.unwrap(), None);
    let Written::Done { revision } = store.put_if("nodes/a", b"1", Expect::Absent).await.unwrap() else {
        panic!("an absent key could not be made");
    };
    let made = store.get("nodes/a").await.unwrap().unwrap();
    assert_eq!((made.create_revision, made.mod_revision), (revision, revision));
    let refused = Written::Refused { found: Some(made) };
    assert_eq!(store.put_if("nodes/a", b"2", Expect::Absent).await.unwrap(), refused);
    assert_eq!(store.put_if("nodes/a", b"2", Expect::Revision(revision + 7)).await.unwrap(), refused);
    let changed = store.put_if("nodes/a", b"2", Expect::Revision(revision)).await.unwrap();
    let Written::Done { revision: second } = changed else { panic!("{changed:?}") };
    assert!(second > revision);
    let now = store.get("nodes/a").await.unwrap().unwrap();
    assert_eq!((now.create_revision, now.mod_revision, now.value), (revision, second, b"2".to_vec()));
    assert!(matches!(store.delete_if("nodes/a", revision).await.unwrap(), Written::Refused { .. }));
    assert!(matches!(store.delete_if("nodes/a", second).await.unwrap(), Written::Done { .. }));
    assert_eq!(store.delete_if("nodes/a", second).await.unwrap(), Written::Refused { found: None });
    assert!(!store.delete("nodes/a").await.unwrap());
    let third = store.put("nodes/a", b"3").await.unwrap();
    let again = store.get("nodes/a").await.unwrap().unwrap();
    assert_eq!((again.create_revision, again.mod_revision), (third, third), "a new life, a new revision");
    store.put("nodes/a-b", b"").await.unwrap();
    store.put("claims/a/10.0.0.0-26", b"").await.unwrap();
    let listing = store.list("nodes/").await.unwrap();
    let keys: Vec<&str> = listing.entries.iter().map(|e| e.key.as_str()).collect();
    assert_eq!(keys, ["nodes/a", "nodes/a-b"]);
    assert!(listing.revision > third);
    assert!(store.delete("nodes/a").await.unwrap() && store.delete("nodes/a-b").await.unwrap());
    assert!(store.delete("claims/a/10.0.0.0-26").await.unwrap());
}

async fn guards(open: &Opener) {
    let store = open();
    let (key, held) = ("claims/a/10.0.0.0-26", "released/10.0.0.0-26");
    let absent = Guard { key: held.into(), expect: Expect::Absent };
    let hold = store.put(held, b"held").await.unwrap();
    let nothing = Written::Refused { found: None };
    assert_eq!(
        store.put_guarded(key, b"1", Expect::Absent, std::slice::from_ref(&absent)).await.unwrap(),
        nothing
    );
    assert_eq!(store.get(key).await.unwrap(), None);
    let known = |revision| Guard { key: held.into(), expect: Expect::Revision(revision) };
    assert_eq!(store.put_guarded(key, b"1", Expect::Absent, &[known(hold - 1)]).await.unwrap(), nothing);
    let made = store.put_guarded(key, b"1", Expect::Absent, &[known(hold)]).await.unwrap();
    let Written::Done { revision } = made else { panic!("{made:?}") };
    let stands = store.get(key).await.unwrap();
    let refused = Written::Refused { found: stands.clone() };
    let mine = Expect::Revision(revision);
    assert_eq!(store.put_guarded(key, b"2", mine, std::slice::from_ref(&absent)).await.unwrap(), refused);
    assert_eq!(store.get(key).await.unwrap(), stands);
    assert!(store.delete(held).await.unwrap());
    assert_eq!(store.put_guarded(key, b"2", mine, &[known(hold)]).await.unwrap(), refused);
    assert_eq!(
        store.put_guarded(key, b"2", Expect::Absent, std::slice::from_ref(&absent)).await.unwrap(),
        refused
    );
    assert!(matches!(
        store.put_guarded(key, b"2", mine, std::slice::from_ref(&absent)).await.unwrap(),
        Written::Done { .. }
    ));
    assert_eq!(store.get(key).await.unwrap().unwrap().value, b"2");
    // Each of several counts.
    let both = [absent.clone(), Guard { key: "nodes/a".into(), expect: Expect::Absent }];
    let node = store.put("nodes/a", b"").await.unwrap();
    let mine = Expect::Revision(store.get(key).await.unwrap().unwrap().mod_revision);
    assert!(matches!(store.put_guarded(key, b"3", mine, &both).await.unwrap(), Written::Refused { .. }));
    let both = [absent, Guard { key: "nodes/a".into(), expect: Expect::Revision(node) }];
    assert!(matches!(store.put_guarded(key, b"3", mine, &both).await.unwrap(), Written::Done { .. }));
    assert!(store.delete(key).await.unwrap() && store.delete("nodes/a").await.unwrap());
}

/// A key with a time of its own goes when it is over, unless it was written again.
async fn times_of_their_own(open: &Opener) {
    let store = open();
    let mut watch = store.watch(&["nodes/"]);
    let mut seen = Consumer::default();
    let first = store.put_for("nodes/short", b"1", Expect::Absent, 2).await.unwrap();
    let Written::Done { revision } = first else { panic!("{first:?}") };
    assert!(matches!(
        store.put_for("nodes/short", b"2", Expect::Absent, 2).await.unwrap(),
        Written::Refused { .. }
    ));
    let long = store.put_for("nodes/long", b"1", Expect::Absent, 1).await.unwrap();
    let Written::Done { revision: long } = long else { panic!("{long:?}") };
    let again = store.put_for("nodes/long", b"2", Expect::Revision(long), 3600).await.unwrap();
    assert!(matches!(again, Written::Done { .. }) && revision < long);
    seen.until(&mut watch, "both", |c| c.has("nodes/short", "1") && c.has("nodes/long", "2")).await;
    seen.until(&mut watch, "the end of one", |c| !c.has("nodes/short", "1")).await;
    assert!(seen.has("nodes/long", "2"));
    assert!(store.delete("nodes/long").await.unwrap());
}

async fn snapshot_and_changes(open: &Opener) {
    let (writer, reader) = (open(), open());
    writer.put("nodes/a", b"1").await.unwrap();
    writer.put("config", b"c").await.unwrap();
    writer.put("usage/a", b"not watched").await.unwrap();
    let mut watch = reader.watch(&["nodes/", "config", "claims/"]);
    let mut seen = Consumer::default();
    seen.until(&mut watch, "the snapshot", |c| c.snapshots == 1).await;
    assert_eq!(seen.entries.keys().collect::<Vec<_>>(), ["config", "nodes/a"]);
    writer.put("nodes/a", b"2").await.unwrap();
    writer.put("claims/a/fd00::-122", b"x").await.unwrap();
    writer.delete("config").await.unwrap();
    writer.put("usage/a", b"2").await.unwrap();
    seen.until(&mut watch, "the changes", |c| {
        c.has("nodes/a", "2") && c.has("claims/a/fd00::-122", "x") && !c.entries.contains_key("config")
    })
    .await;
    assert_eq!((seen.entries.len(), seen.snapshots), (2, 1));
    for key in ["nodes/a", "claims/a/fd00::-122", "usage/a"] {
        writer.delete(key).await.unwrap();
    }
    seen.until(&mut watch, "the deletions", |c| c.entries.is_empty()).await;
    assert!(!seen.was_away);
}

async fn one_of_many_creates(open: &Opener) {
    let stores: Vec<_> = (0..8).map(|_| open()).collect();
    let attempts = stores.iter().enumerate().map(|(i, store)| async move {
        let value = i.to_string();
        store.put_if("claims/x", value.as_bytes(), Expect::Absent).await.unwrap()
    });
    let results = futures::future::join_all(attempts).await;
    let winner = results.iter().position(|r| matches!(r, Written::Done { .. })).expect("one of them");
    assert_eq!(results.iter().filter(|r| matches!(r, Written::Done { .. })).count(), 1);
    let stands = stores[0].get("claims/x").await.unwrap().unwrap();
    assert_eq!(stands.value, winner.to_string().into_bytes());
    stores[0].delete("claims/x").await.unwrap();
}

async fn many_keys(open: &Opener) {
    let store = open();
    for i in 0..1201 {
        store.put(&format!("pools/p{i:04}"), b"p").await.unwrap();
    }
    let listing = store.list("pools/").await.unwrap();
    assert_eq!(listing.entries.len(), 1201);
    assert!(listing.entries.is_sorted_by(|a, b| a.key < b.key));
    let mut seen = Consumer::default();
    seen.until(&mut store.watch(&["pools/"]), "the snapshot", |c| c.snapshots == 1).await;
    assert_eq!(seen.entries.len(), 1201);
    for i in 0..1201 {
        store.delete(&format!("pools/p{i:04}")).await.unwrap();
    }
}

/// The end of one process's lease takes time in which another one's would have ended, had it not been kept alive.
async fn leases(open: &Opener) {
    let (stays, goes) = (open(), open());
    assert!(matches!(stays.put_leased("live/a", b"a", Expect::Absent).await.unwrap(), Written::Done { .. }));
    assert!(matches!(goes.put_leased("live/b", b"b", Expect::Absent).await.unwrap(), Written::Done { .. }));
    assert!(matches!(
        stays.put_leased("live/b", b"a", Expect::Absent).await.unwrap(),
        Written::Refused { .. }
    ));
    let mut watch = stays.watch(&["live/"]);
    let mut seen = Consumer::default();
    seen.until(&mut watch, "both", |c| c.entries.len() == 2).await;
    drop(goes);
    seen.until(&mut watch, "the end of b", |c| c.entries.len() == 1).await;
    assert!(seen.has("live/a", "a"));
    assert!(matches!(stays.put_leased("live/b", b"a", Expect::Absent).await.unwrap(), Written::Done { .. }));
    seen.until(&mut watch, "b anew", |c| c.has("live/b", "a")).await;
    stays.delete("live/a").await.unwrap();
    stays.delete("live/b").await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn fake_conforms() {
    let server = FakeServer::new();
    let open = move || server.client(Duration::from_secs(10)) as Arc<dyn Store>;
    all(&open).await;
    whole_keys(&open).await;
}

#[tokio::test]
async fn file_conforms() {
    let folder = tempfile::tempdir().unwrap();
    let config = FileConfig { path: folder.path().join("cluster") };
    let open = move || Arc::new(FileStore::with_lease(&config, 1).unwrap()) as Arc<dyn Store>;
    all(&open).await;
    assert!(open().takes_outside("/coreos.com/network").unwrap_err().contains("it is in etcd"));
}

#[test]
fn etcd_conforms() {
    with_etcd("etcd_conforms", |folder| async move {
        let _etcd = Etcd::start(&folder, 2379, &[]);
        let config =
            podway_model::config::StoreConfig::Etcd(EtcdConfig { lease_seconds: 2, ..EtcdConfig::default() });
        let store = open(&config).unwrap();
        eventually("etcd answers", || async { store.get("config").await.ok() }).await;
        let open = move || open(&config).unwrap();
        all(&open).await;
        whole_keys(&open).await;
        for prefix in ["/podway", "/podway/v1/x"] {
            assert!(open().takes_outside(prefix).unwrap_err().contains("are not apart"), "{prefix}");
        }
    });
}
