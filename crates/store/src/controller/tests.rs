//! The core's cases; two replicas on a real etcd.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use podway_model::cluster::{Claim, ClusterConfig, Inventory, Leader, Liveness, Released, decode, encode};
use podway_model::config::{EtcdConfig, StoreConfig};
use podway_model::keys::{CONTROLLER, Key};

use super::core::{Action, Controller, Event};
use super::{Times, run};
use crate::etcd::testing::{Etcd, eventually, with_etcd};
use crate::fake::mem::Mem;
use crate::{Event as StoreEvent, HOLD_SECONDS, Hold, Store, StoreError, Written, open, release_node};

const NOW: u64 = 1_800_000_000;
const LOOK: Duration = Duration::from_secs(60);

fn name(i: usize) -> podway_model::ids::NodeName {
    format!("n{i}").parse().unwrap()
}

fn claim() -> Vec<u8> {
    encode(&Claim {
        instance_id: "00000000-0000-4000-8000-000000000001".parse().unwrap(),
        pool: "p".parse().unwrap(),
        confirmed: true,
    })
}

fn config(nodes: &[usize], grace_seconds: u32) -> Vec<u8> {
    let nodes = nodes.iter().map(|i| name(*i)).collect();
    encode(&ClusterConfig { inventory: Some(Inventory { nodes, grace_seconds }), ..ClusterConfig::default() })
}

fn life() -> Vec<u8> {
    let instance_id = "00000000-0000-4000-8000-000000000001".parse().unwrap();
    encode(&Liveness { instance_id, addresses: vec![] })
}

/// A core at a store in memory.
struct Rig {
    core: Controller,
    mem: Mem,
    now: Duration,
}

impl Rig {
    /// Nodes 1 to 3 have claims; the inventory has the first two. This replica leads, and has not looked yet.
    fn new() -> Self {
        let mut mem = Mem::new();
        mem.put("config", &config(&[1, 2], 600), None).unwrap();
        for i in 1..=3 {
            mem.put(&format!("claims/n{i}/10.0.{i}.0-26"), &claim(), None).unwrap();
        }
        let mut rig = Self { core: Controller::new("me".into(), Times::default()), mem, now: Duration::ZERO };
        assert_eq!(rig.relist(), [Action::Lock(crate::Expect::Absent)]);
        rig.put(CONTROLLER, &encode(&Leader { holder: "me".into() }));
        let out = rig.step(Event::Locked(Ok(Written::Done { revision: 0 })));
        assert_eq!(out, []);
        rig
    }

    fn step(&mut self, event: Event) -> Vec<Action> {
        let mut out = vec![];
        self.core.step(self.now, event, &mut out);
        out.retain(|action| !matches!(action, Action::Info(_)));
        out
    }

    fn relist(&mut self) -> Vec<Action> {
        let listing = self.mem.list(&[String::new()]);
        let event = StoreEvent::Snapshot { entries: listing.entries, revision: listing.revision };
        self.step(Event::Store(event))
    }

    fn put(&mut self, key: &str, value: &[u8]) {
        self.mem.put(key, value, None).unwrap();
        self.relist();
    }

    fn delete(&mut self, key: &str) {
        self.mem.delete(key);
        self.relist();
    }

    /// Looks for so many seconds; what was freed, and when.
    fn pass(&mut self, seconds: u64) -> Vec<(u64, Action)> {
        let (start, mut seen) = (self.now, vec![]);
        while self.now < start + Duration::from_secs(seconds) {
            self.now = self.core.deadline().max(self.now);
            let unix = NOW + self.now.as_secs();
            let at = (self.now - start).as_secs();
            seen.extend(self.step(Event::Time(unix)).into_iter().map(|action| (at, action)));
            self.now += Duration::from_secs(1);
        }
        seen
    }
}

#[test]
fn a_node_that_is_missing_for_longer_than_the_grace_period_is_freed() {
    let mut rig = Rig::new();
    let seen = rig.pass(3000);
    let [(at, Action::Free { node, at: unix })] = &seen[..] else { panic!("{seen:?}") };
    assert_eq!((node, *unix >= NOW + 600), (&name(3), true));
    assert!((600..=600 + 2 * LOOK.as_secs()).contains(at), "after {at} s");
    // It failed: once more. Then it is gone.
    let error = StoreError::Timeout { endpoint: "e".into(), after: LOOK };
    rig.step(Event::Freed { node: name(3), result: Err(error) });
    assert!(matches!(&rig.pass(200)[..], [(_, Action::Free { .. })]));
    rig.step(Event::Freed { node: name(3), result: Ok(Some(Default::default())) });
    rig.delete("claims/n3/10.0.3.0-26");
    assert_eq!(rig.pass(3000), []);
}

#[test]
fn two_looks_are_needed_however_short_the_grace_period_is() {
    let mut rig = Rig::new();
    rig.put("config", &config(&[1, 2], 0));
    let seen = rig.pass(200);
    let [(at, Action::Free { .. })] = &seen[..] else { panic!("{seen:?}") };
    assert!((1..10).contains(at), "two looks, which are close to each other then: {at} s");
}

#[test]
fn a_node_that_comes_back_starts_anew() {
    for back in ["inventory", "life", "claims"] {
        let mut rig = Rig::new();
        rig.pass(500);
        match back {
            "inventory" => rig.put("config", &config(&[1, 2, 3], 600)),
            "life" => rig.put("live/n3", &life()),
            _ => rig.delete("claims/n3/10.0.3.0-26"),
        }
        let frees =
            |seen: &[(u64, Action)]| seen.iter().filter(|s| matches!(s.1, Action::Free { .. })).count();
        assert_eq!(frees(&rig.pass(300)), 0, "{back}");
        rig.put("config", &config(&[1, 2], 600));
        rig.delete("live/n3");
        rig.put("claims/n3/10.0.3.0-26", &claim());
        assert_eq!(frees(&rig.pass(550)), 0, "{back}: the time counts anew");
        assert_eq!(frees(&rig.pass(300)), 1, "{back}");
    }
}

#[test]
fn a_live_node_is_reported_and_never_freed() {
    let mut rig = Rig::new();
    rig.put("live/n3", &life());
    let seen = rig.pass(5000);
    assert!(
        matches!(&seen[..], [(_, Action::Warn(text))] if text.contains("n3") && text.contains("alive")),
        "{seen:?}"
    );
}

#[test]
fn without_a_usable_inventory_nobody_is_freed() {
    for config in [&b"{"[..], br#"{"schema":1}"#, br#"{"schema":1,"inventory":{"nodes":[]}}"#] {
        let mut rig = Rig::new();
        rig.put("config", config);
        assert_eq!(rig.pass(5000), []);
    }
    let mut rig = Rig::new();
    rig.delete("config");
    assert_eq!(rig.pass(5000), []);
}

#[test]
fn only_the_holder_of_the_lock_works_and_a_free_lock_is_taken() {
    let mut rig = Rig::new();
    rig.put(CONTROLLER, &encode(&Leader { holder: "other".into() }));
    assert!(!rig.core.is_leader());
    assert_eq!(rig.pass(5000), []);
    rig.mem.delete(CONTROLLER);
    assert_eq!(rig.relist(), [Action::Lock(crate::Expect::Absent)]);
    rig.step(Event::Locked(Err(StoreError::Timeout { endpoint: "e".into(), after: LOOK })));
    let seen = rig.pass(20);
    assert!(matches!(&seen[..], [(_, Action::Lock(_))]), "tried again: {seen:?}");
    rig.put(CONTROLLER, &encode(&Leader { holder: "me".into() }));
    assert!(rig.core.is_leader());
    rig.step(Event::Store(StoreEvent::Unavailable { reason: "away".into() }));
    assert!(!rig.core.is_leader(), "it cannot know");
    assert_eq!(rig.core.waiting_for(), ["the store: away"]);
    assert_eq!(rig.pass(5000), []);
}

#[test]
fn a_hold_is_ended_after_a_day() {
    let mut rig = Rig::new();
    rig.delete("claims/n3/10.0.3.0-26");
    let at_unix_seconds = NOW + 600 - HOLD_SECONDS;
    let key = Key::Released("10.0.9.0/26".parse().unwrap()).to_string();
    rig.put(&key, &encode(&Released { at_unix_seconds, former_owner: name(9) }));
    rig.put("released/10.0.10.0-26", b"{");
    let revision = rig.mem.entry(&key).unwrap().mod_revision;
    let seen = rig.pass(3000);
    let [(at, action)] = &seen[..] else { panic!("{seen:?}") };
    assert_eq!(*action, Action::EndHold { block: "10.0.9.0/26".parse().unwrap(), revision });
    assert!((600..=660).contains(at), "after {at} s");
}

/// What runs until it is dropped.
fn replica(config: &StoreConfig, holder: &str) -> tokio::task::JoinHandle<()> {
    let store = open(config).unwrap();
    let times = Times { look: Duration::from_millis(100), retry: Duration::from_millis(100) };
    let holder = holder.to_owned();
    tokio::spawn(async move { match run(store, holder, times, |_| {}).await {} })
}

async fn leader(store: &Arc<dyn Store>) -> Option<String> {
    let entry = store.get(CONTROLLER).await.ok()??;
    Some(decode::<Leader>(&entry.value).ok()?.holder)
}

#[test]
fn two_replicas_on_etcd_free_what_is_gone_and_one_takes_over_from_the_other() {
    with_etcd(
        "two_replicas_on_etcd_free_what_is_gone_and_one_takes_over_from_the_other",
        |folder| async move {
            let _etcd = Etcd::start(&folder, 2379, &[]);
            let etcd = StoreConfig::Etcd(EtcdConfig { lease_seconds: 2, ..EtcdConfig::default() });
            let store = open(&etcd).unwrap();
            eventually("etcd answers", || async { store.get("config").await.ok() }).await;
            store.put("config", &config(&[1], 0)).await.unwrap();
            let old = Released { at_unix_seconds: 1000, former_owner: name(7) };
            store.put("released/10.0.7.0-26", &encode(&old)).await.unwrap();
            for i in 1..=2 {
                store.put(&format!("claims/n{i}/10.0.{i}.0-26"), &claim()).await.unwrap();
            }
            let replicas = Mutex::new(vec![replica(&etcd, "a"), replica(&etcd, "b")]);
            eventually("the missing node is freed", || async {
                let claims = store.list("claims/").await.unwrap().entries;
                (claims.len() == 1).then_some(())
            })
            .await;
            let held = store.get("released/10.0.2.0-26").await.unwrap().unwrap();
            assert_eq!(decode::<Released>(&held.value).unwrap().former_owner, name(2));
            assert!(store.get("claims/n1/10.0.1.0-26").await.unwrap().is_some());
            eventually("the old hold is ended", || async {
                store.get("released/10.0.7.0-26").await.unwrap().is_none().then_some(())
            })
            .await;

            let first = leader(&store).await.unwrap();
            let second = if first == "a" { "b" } else { "a" };
            let gone = replicas.lock().unwrap().remove(usize::from(first == "b"));
            gone.abort();
            eventually("the other one takes over", || async {
                (leader(&store).await.as_deref() == Some(second)).then_some(())
            })
            .await;
            store.put("claims/n3/10.0.3.0-26", &claim()).await.unwrap();
            eventually("and works", || async {
                store.get("claims/n3/10.0.3.0-26").await.unwrap().is_none().then_some(())
            })
            .await;
        },
    );
}

#[test]
fn a_release_is_complete_from_any_point_at_which_it_was_cut_off() {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    runtime.block_on(async {
        let server = crate::fake::FakeServer::new();
        let store = server.client(Duration::from_secs(10));
        for hold in [Hold::Since(NOW), Hold::None] {
            for key in
                ["claims/n1/10.0.1.0-26", "claims/n1/10.0.2.0-26", "claims/n1/rubbish", "nodes/n1", "live/n1"]
            {
                store.put(key, &claim()).await.unwrap();
            }
            store.delete("claims/n1/10.0.1.0-26").await.unwrap();
            let report = release_node(store.as_ref(), &name(1), hold).await.unwrap();
            assert_eq!((report.blocks.len(), report.malformed.len(), report.had_record), (1, 1, true));
            let again = release_node(store.as_ref(), &name(1), hold).await.unwrap();
            assert_eq!((again.blocks.len(), again.had_record), (0, false));
            let left = store.list("").await.unwrap().entries;
            let keys: Vec<&str> = left.iter().map(|entry| entry.key.as_str()).collect();
            match hold {
                Hold::Since(_) => assert_eq!(keys, ["released/10.0.2.0-26"]),
                Hold::None => assert_eq!(keys, [] as [&str; 0], "also the hold of before"),
            }
        }
    });
}

#[test]
fn a_node_that_is_released_at_once_gives_up_its_subnet_of_flannels_and_no_other_one() {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    runtime.block_on(async {
        let store = crate::fake::FakeServer::new().client(Duration::from_secs(10));
        let config = serde_json::from_str(r#"{"compat": {"flannel": {}}}"#).unwrap();
        store.put("config", &encode::<ClusterConfig>(&config)).await.unwrap();
        let lease = |mark: &str| format!(r#"{{"PublicIP": "192.0.2.1", "BackendType": "host-gw"{mark}}}"#);
        let mark = |node: &str| {
            format!(
                r#", "Podway": {{"Node": "{node}", "InstanceID": "00000000-0000-4000-8000-000000000001"}}"#
            )
        };
        let key = |third: u8| format!("/coreos.com/network/subnets/10.5.{third}.0-24");
        for (third, mark) in [(1, mark("n1")), (2, mark("n2")), (3, String::new())] {
            store.put(&key(third), lease(&mark).as_bytes()).await.unwrap();
        }
        let held = release_node(store.as_ref(), &name(1), Hold::Since(NOW)).await.unwrap();
        assert_eq!(held.subnets, Vec::<String>::new(), "it ends by itself, when the hold does");
        let report = release_node(store.as_ref(), &name(1), Hold::None).await.unwrap();
        assert_eq!(report.subnets, [key(1)]);
        let left = store.list("/coreos.com/network/subnets/").await.unwrap().entries;
        assert_eq!(left.iter().map(|entry| entry.key.clone()).collect::<Vec<_>>(), [key(2), key(3)]);
    });
}
