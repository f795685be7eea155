//! Random lives of a lease store, on a real file: no address twice, none lost, whatever byte a write stops at.
#![expect(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use podway_ipam::ledger::{Ledger, QUARANTINE};
use podway_ipam::{Attachment, Condition, LeaseError, LeaseStore, Request, StoreError, journal};
use podway_model::ids::BootId;
use podway_model::node_file::NodeFile;
use proptest::prelude::*;

fn boot(n: u8) -> BootId {
    format!("00000000-0000-0000-0000-0000000000{n:02x}").parse().unwrap()
}

/// Seven IPv4 and seven IPv6 addresses to lease, in two blocks each.
fn node() -> NodeFile {
    serde_json::from_value(serde_json::json!({
        "schema": 1, "bootId": boot(1), "instanceId": boot(2), "generation": 1, "node": "n1",
        "confirmed": true, "mtu": 1500, "policy": "none", "policyTimeout": "undo", "masquerade": true,
        "pools": [{"name": "v4", "cidr": "10.0.0.0/16", "assignment": "automatic"},
                  {"name": "v6", "cidr": "fd00::/64", "assignment": "automatic"}],
        "blocks": [{"cidr": "10.0.0.0/30", "pool": "v4", "state": "active"},
                   {"cidr": "10.0.0.8/30", "pool": "v4", "state": "active"},
                   {"cidr": "fd00::/126", "pool": "v6", "state": "active"},
                   {"cidr": "fd00::8/126", "pool": "v6", "state": "active"}],
        "tunnelAddresses": ["10.0.0.0", "fd00::"]
    }))
    .unwrap()
}

fn request(n: u8) -> Request {
    Request::new(attachment(n), "podway".parse().unwrap())
}

fn attachment(n: u8) -> Attachment {
    Attachment::new(format!("c{n}").parse().unwrap(), "eth0".parse().unwrap())
}

#[derive(Debug, Clone)]
enum Step {
    Add(u8),
    Del(u8, Condition),
    Clean(u8),
    Wait(u64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let condition = prop_oneof![Just(Condition::Clean), Just(Condition::Dirty)];
    let step = prop_oneof![
        4 => (0..10u8).prop_map(Step::Add),
        3 => (0..10u8, condition).prop_map(|(n, c)| Step::Del(n, c)),
        1 => (0..8u8).prop_map(Step::Clean),
        1 => (1..90u64).prop_map(Step::Wait),
    ];
    prop::collection::vec(step, 1..60)
}

fn take(store: &mut LeaseStore, node: &NodeFile, step: &Step, now: &mut Duration) -> Result<(), LeaseError> {
    match step {
        Step::Add(n) => match store.lease(node, &request(*n), *now) {
            Ok(_) | Err(LeaseError::Refused(_)) => Ok(()),
            Err(e) => Err(e),
        },
        Step::Del(n, condition) => {
            store.release(&attachment(*n), *now, *condition)?;
            Ok(())
        }
        Step::Clean(n) => Ok(store.mark_clean(vec![IpAddr::from([10, 0, 0, *n])])?),
        Step::Wait(seconds) => {
            *now += Duration::from_secs(*seconds);
            Ok(())
        }
    }
}

fn audit(ledger: &Ledger, node: &NodeFile) {
    let mut seen = BTreeSet::new();
    for lease in ledger.leases() {
        assert_eq!(lease.addresses.len(), 2, "dual stack is all or nothing");
        for ip in lease.ips() {
            assert!(seen.insert(ip), "{ip} has two holders");
            assert!(node.blocks.iter().any(|b| b.cidr.contains(&ip)), "{ip} is in no block");
            assert!(!node.tunnel_addresses.contains(&ip), "{ip} is the node's");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    /// Every step in a process of its own, as the plugin runs, against a model that knows only who holds a lease.
    #[test]
    fn never_two_leases_of_one_address(steps in steps()) {
        let (dir, node) = (tempfile::tempdir().unwrap(), node());
        let mut now = Duration::from_secs(1000);
        let mut held: BTreeMap<u8, Vec<IpAddr>> = BTreeMap::new();
        let mut last_used: BTreeMap<IpAddr, Duration> = BTreeMap::new();
        for step in &steps {
            let mut store = LeaseStore::open(dir.path(), &boot(1)).unwrap();
            match step {
                Step::Add(n) => match store.lease(&node, &request(*n), now) {
                    Ok(grant) => {
                        let ips: Vec<IpAddr> = grant.lease.ips().collect();
                        match held.get(n) {
                            Some(old) => prop_assert!(grant.kept && *old == ips),
                            None => for ip in &ips {
                                // Quarantine is broken only where nothing else was left.
                                let young = last_used.get(ip).is_some_and(|at| now - *at < QUARANTINE);
                                if young {
                                    let free = |b: &u8| {
                                        let other = IpAddr::from([10, 0, 0, *b]);
                                        !held.values().flatten().any(|h| *h == other)
                                            && last_used.get(&other).is_none_or(|at| now - *at >= QUARANTINE)
                                    };
                                    prop_assert!(ip.is_ipv6() || ![1, 2, 3, 8, 9, 10, 11].iter().any(free));
                                }
                            },
                        }
                        held.insert(*n, ips);
                    }
                    Err(LeaseError::Refused(_)) => prop_assert!(held.len() == 7 && !held.contains_key(n)),
                    Err(e) => panic!("{e}"),
                },
                Step::Del(n, condition) => {
                    let lease = store.release(&attachment(*n), now, *condition).unwrap();
                    prop_assert_eq!(lease.is_some(), held.contains_key(n));
                    for ip in held.remove(n).unwrap_or_default() {
                        last_used.insert(ip, now);
                    }
                }
                other => take(&mut store, &node, other, &mut now).unwrap(),
            }
            audit(store.ledger(), &node);
            prop_assert_eq!(store.ledger().leases().count(), held.len());
        }
    }

    /// A kill at any byte of the last write: the file reads as before it or as after it, and goes on working.
    #[test]
    fn every_prefix_of_a_write_is_before_or_after(steps in steps(), last in 0..10u8, add: bool) {
        let (dir, node) = (tempfile::tempdir().unwrap(), node());
        let path = dir.path().join("leases");
        let mut now = Duration::from_secs(1000);
        let mut store = LeaseStore::open(dir.path(), &boot(1)).unwrap();
        store.lease(&node, &request(200), now).unwrap();
        for step in &steps {
            take(&mut store, &node, step, &mut now).unwrap();
        }
        let before = store.ledger().clone();
        drop(store);
        let old = fs::read(&path).unwrap();
        let step = if add { Step::Add(last) } else { Step::Del(last, Condition::Dirty) };
        let mut store = LeaseStore::open(dir.path(), &boot(1)).unwrap();
        take(&mut store, &node, &step, &mut now).unwrap();
        let after = store.ledger().clone();
        drop(store);
        let new = fs::read(&path).unwrap();
        let start = if new.starts_with(&old) { old.len() } else { new.len() };
        for cut in start..=new.len() {
            fs::write(&path, &new[..cut]).unwrap();
            let mut store = LeaseStore::open(dir.path(), &boot(1)).unwrap();
            prop_assert!(*store.ledger() == before || *store.ledger() == after, "cut at {cut}");
            // What the runtime does next: DEL, which must leave no trace, over whatever was torn.
            store.release(&attachment(last), now, Condition::Clean).unwrap();
            drop(store);
            let store = LeaseStore::open(dir.path(), &boot(1)).unwrap();
            prop_assert!(store.ledger().lease_of(&attachment(last)).is_none());
            audit(store.ledger(), &node);
        }
    }

    /// No bytes make the reader panic, and damage names a line.
    #[test]
    fn the_reader_is_total(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        if let Err(damage) = journal::parse(&bytes) {
            prop_assert!(damage.line >= 1);
        }
    }
}

fn lines(dir: &Path) -> usize {
    fs::read_to_string(dir.join("leases")).unwrap().lines().count()
}

#[test]
fn the_journal_stays_short_and_compaction_changes_nothing() {
    let (dir, node) = (tempfile::tempdir().unwrap(), node());
    let mut shrunk = false;
    for round in 0..400u64 {
        let now = Duration::from_secs(round);
        let mut store = LeaseStore::open(dir.path(), &boot(1)).unwrap();
        let n = u8::try_from(round % 7).unwrap();
        let before = store.ledger().clone();
        let length = if round == 0 { 0 } else { lines(dir.path()) };
        store.release(&attachment(n), now, Condition::Clean).unwrap();
        store.lease(&node, &request(n), now).unwrap();
        let live = store.ledger().clone();
        drop(store);
        shrunk |= lines(dir.path()) < length;
        assert!(lines(dir.path()) < 200, "{} lines", lines(dir.path()));
        assert_eq!(*LeaseStore::open(dir.path(), &boot(1)).unwrap().ledger(), live);
        assert!(before.leases().count() <= live.leases().count());
    }
    assert!(shrunk, "never compacted");
    assert!(!dir.path().join("leases.new").exists());
}

#[test]
fn a_lease_of_another_boot_means_nothing() {
    let (dir, node) = (tempfile::tempdir().unwrap(), node());
    let now = Duration::from_secs(5);
    LeaseStore::open(dir.path(), &boot(1)).unwrap().lease(&node, &request(1), now).unwrap();
    let mut store = LeaseStore::open(dir.path(), &boot(9)).unwrap();
    assert_eq!(store.ledger().leases().count(), 0);
    let grant = store.lease(&node, &request(2), now).unwrap();
    assert_eq!(grant.lease.addresses[0].address, IpAddr::from([10, 0, 0, 1]));
    drop(store);
    assert_eq!(LeaseStore::open(dir.path(), &boot(9)).unwrap().ledger().leases().count(), 1);
}

#[test]
fn damage_names_the_file_the_line_and_the_way_out() {
    let (dir, node) = (tempfile::tempdir().unwrap(), node());
    let path = dir.path().join("leases");
    let mut store = LeaseStore::open(dir.path(), &boot(1)).unwrap();
    store.lease(&node, &request(1), Duration::ZERO).unwrap();
    store.lease(&node, &request(2), Duration::ZERO).unwrap();
    drop(store);
    let text = fs::read_to_string(&path).unwrap().replacen("10.0.0.1", "10.0.0.3", 1);
    fs::write(&path, text).unwrap();
    let error = LeaseStore::open(dir.path(), &boot(1)).unwrap_err();
    assert!(matches!(error, StoreError::Damaged { .. }));
    let text = error.to_string();
    assert!(text.contains("leases: line 2: checksum does not match") && text.contains("reboot"), "{text}");
}

#[test]
fn a_write_that_fails_leaves_everything_as_it_was() {
    let (dir, node) = (tempfile::tempdir().unwrap(), node());
    let mut store = LeaseStore::open(dir.path(), &boot(1)).unwrap();
    store.lease(&node, &request(1), Duration::ZERO).unwrap();
    let before = store.ledger().clone();
    // Compaction of another boot's file, into a folder that is gone: the write cannot succeed.
    drop(store);
    let mut store = LeaseStore::open(dir.path(), &boot(3)).unwrap();
    let away = dir.path().with_extension("away");
    fs::rename(dir.path(), &away).unwrap();
    assert!(matches!(
        store.lease(&node, &request(2), Duration::ZERO),
        Err(LeaseError::Store(StoreError::Io { .. }))
    ));
    assert_eq!(store.ledger().leases().count(), 0);
    fs::rename(&away, dir.path()).unwrap();
    drop(store);
    assert_eq!(*LeaseStore::open(dir.path(), &boot(1)).unwrap().ledger(), before);
}

#[test]
fn one_at_a_time() {
    let dir = tempfile::tempdir().unwrap();
    let (node, dir) = (node(), dir.path());
    std::thread::scope(|scope| {
        for n in 0..7u8 {
            let node = &node;
            scope.spawn(move || {
                let mut store = LeaseStore::open(dir, &boot(1)).unwrap();
                store.lease(node, &request(n), Duration::ZERO).unwrap();
            });
        }
    });
    let store = LeaseStore::open(dir, &boot(1)).unwrap();
    audit(store.ledger(), &node);
    assert_eq!(store.ledger().leases().count(), 7);
}
