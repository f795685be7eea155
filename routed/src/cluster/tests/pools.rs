//! Pools that change, run full or overlap; claim-ahead; both families.

use podway_model::cluster::Assignment;
use podway_model::node_file::BlockState;

use super::rig::{Rig, Writing, net, pool, seconds};
use crate::view::OwnBlockState::{Active, Draining};

/// With `leased` pods in its first block.
fn with_pods(leased: u64) -> Rig {
    let mut rig = Rig::new().started();
    rig.pods.insert(rig.block(), (leased, 0));
    rig.settle();
    rig
}

#[test]
fn another_block_is_claimed_at_the_low_water_mark() {
    // 64 addresses, one of them the node's: 47 pods leave 16.
    assert_eq!(with_pods(47).own().len(), 1);
    let rig = with_pods(48);
    assert_eq!(rig.own().len(), 2);
    assert!(rig.own().iter().all(|(_, state)| *state == Active));
    assert_eq!(rig.listed().len(), 2);
}

#[test]
fn addresses_in_quarantine_count_as_used() {
    let mut rig = with_pods(40);
    let block = rig.block();
    rig.pods.insert(block, (40, 8));
    rig.settle();
    assert_eq!(rig.own().len(), 2);
}

#[test]
fn small_blocks_have_a_small_low_water_mark() {
    let mut rig = Rig::alone();
    let small = podway_model::cluster::Pool { block_size: Some(30), ..pool("10.0.0.0/24") };
    rig.put_pool("p4", &small);
    let mut rig = rig.started();
    assert_eq!(rig.own().len(), 1, "4 addresses, 3 left");
    rig.pods.insert(rig.block(), (3, 0));
    rig.settle();
    assert_eq!(rig.own().len(), 2, "none left");
}

#[test]
fn one_block_is_claimed_at_a_time() {
    let mut rig = with_pods(10);
    let block = rig.block();
    rig.writing = Writing::Held;
    rig.pods.insert(block, (63, 0));
    rig.settle();
    rig.pass(seconds(30));
    assert_eq!(rig.held.len(), 1, "{:?}", rig.held);
}

#[test]
fn a_full_pool_is_named_and_a_freed_block_is_taken() {
    let mut rig = Rig::new();
    rig.put_pool("p4", &pool("10.0.0.0/25"));
    rig.put_claim(2, net("10.0.0.0/26"), true);
    rig.put_claim(3, net("10.0.0.64/26"), true);
    let mut rig = rig.started();
    assert!(rig.has_problem("no free block left in p4"), "{:?}", rig.view().problems);
    assert_eq!((rig.own(), rig.files), (vec![], 0));
    rig.release(3, false);
    rig.settle();
    assert_eq!(rig.own(), [(net("10.0.0.64/26"), Active)]);
    assert!(!rig.has_problem("no free block"));
}

#[test]
fn a_second_pool_is_used_when_the_first_is_full() {
    let mut rig = Rig::new();
    rig.put_pool("p4", &pool("10.0.0.0/26"));
    rig.put_pool("q4", &pool("10.1.0.0/26"));
    rig.put_claim(2, net("10.0.0.0/26"), true);
    let rig = rig.started();
    assert_eq!(rig.own(), [(net("10.1.0.0/26"), Active)]);
}

#[test]
fn no_more_than_the_limit_is_held() {
    let mut rig = Rig::alone();
    rig.put_pool("p4", &podway_model::cluster::Pool { block_size: Some(32), ..pool("10.0.0.0/16") });
    // Each block is one address; the first is the node's, so every further one is wanted as soon as it is there.
    rig.looks = false;
    let mut rig = rig.started();
    rig.looks = true;
    for _ in 0..300 {
        let own = rig.own();
        for (block, _) in own.iter().skip(1) {
            rig.pods.insert(*block, (1, 0));
        }
        rig.settle();
    }
    assert_eq!(rig.own().len(), 256);
    assert!(rig.has_problem("256 blocks"));
}

#[test]
fn a_disabled_pool_drains_and_another_one_takes_over() {
    let mut rig = with_pods(5);
    let block = rig.block();
    rig.put_pool("p4", &podway_model::cluster::Pool { disabled: true, ..pool("10.0.0.0/16") });
    rig.settle();
    assert_eq!(rig.own(), [(block, Draining)], "pods live in it");
    assert_eq!(rig.listed(), [(block, BlockState::Draining)]);
    assert!(rig.view().nodes[&rig.me.node].blocks.contains(&block), "still routed");
    rig.put_pool("q4", &pool("10.1.0.0/16"));
    rig.settle();
    assert_eq!(rig.own().len(), 2);
    rig.put_pool("p4", &pool("10.0.0.0/16"));
    rig.settle();
    assert!(rig.own().contains(&(block, Active)), "enabled again");
}

#[test]
fn a_block_size_that_changes_once_claims_exist_is_refused() {
    let mut rig = with_pods(5);
    let block = rig.block();
    rig.put_pool("p4", &podway_model::cluster::Pool { block_size: Some(28), ..pool("10.0.0.0/16") });
    rig.settle();
    assert_eq!(rig.own(), [(block, Active)], "what is there stays");
    assert!(rig.has_problem("block size /28 found, but claims exist"));
    rig.pods.insert(block, (63, 0));
    rig.settle();
    assert_eq!(rig.own().len(), 1, "but nothing new is claimed");
    rig.put_pool("p4", &pool("10.0.0.0/16"));
    rig.settle();
    assert_eq!(rig.own().len(), 2, "set back");
}

#[test]
fn of_pools_that_overlap_the_older_one_stays() {
    let mut rig = with_pods(5);
    let block = rig.block();
    rig.put_pool("a-newer", &pool("10.0.0.0/8"));
    rig.settle();
    assert!(rig.has_problem("pools/a-newer: 10.0.0.0/8 overlaps 10.0.0.0/16 of pool p4"));
    assert_eq!(rig.own(), [(block, Active)]);
    assert_eq!(rig.view().pools.len(), 1);
}

#[test]
fn pools_that_nobody_can_use_are_named() {
    for (pool, problem) in [
        (podway_model::cluster::Pool { block_size: Some(15), ..pool("10.9.0.0/16") }, "block size /15"),
        (podway_model::cluster::Pool { block_size: Some(24), ..pool("10.9.0.0/25") }, "at most the pool"),
        (podway_model::cluster::Pool { block_size: Some(33), ..pool("10.9.0.0/16") }, "block size /33"),
        (pool("10.9.0.1/16"), "cidr 10.9.0.1/16 found, 10.9.0.0/16 expected"),
        (podway_model::cluster::Pool { block_size: Some(64), ..pool("fd01::/48") }, "block size /64"),
    ] {
        let mut rig = Rig::new();
        rig.put_pool("bad", &pool);
        let rig = rig.started();
        assert!(rig.has_problem(problem), "{problem}: {:?}", rig.view().problems);
        assert_eq!(rig.own().len(), 1, "the good one is used");
    }
}

#[test]
fn pools_for_others_and_for_requests_by_hand_are_left_alone() {
    let mut rig = Rig::bare(podway_store::fake::mem::Mem::new());
    let for_others =
        serde_json::json!({ "cidr": "10.1.0.0/16", "nodeSelector": { "matchLabels": { "zone": "z7" } } });
    rig.put_pool("others", &serde_json::from_value(for_others).unwrap());
    let by_hand = podway_model::cluster::Pool { assignment: Assignment::Manual, ..pool("10.2.0.0/16") };
    rig.put_pool("by-hand", &by_hand);
    let mut rig = rig.started();
    assert_eq!(rig.own(), []);
    let for_us =
        serde_json::json!({ "cidr": "10.1.0.0/16", "nodeSelector": { "matchLabels": { "zone": "z1" } } });
    rig.put_pool("others", &serde_json::from_value(for_us).unwrap());
    rig.settle();
    assert!(net("10.1.0.0/16").contains(&rig.block()));
}

#[test]
fn both_families_have_a_block_each_and_an_address_of_the_node() {
    let mut rig = Rig::dual().started();
    let own = rig.own();
    assert_eq!(own.len(), 2);
    assert!(own.iter().all(|(_, state)| *state == Active));
    let (v4, v6) = (rig.view().tunnel_v4.unwrap(), rig.view().tunnel_v6.unwrap());
    assert_eq!(own.iter().filter(|(block, _)| block.network() == v4 || block.network() == v6).count(), 2);
    assert_eq!(rig.disk.as_ref().unwrap().tunnel_addresses.len(), 2);
    // One family runs low: only that one grows.
    let six = own.iter().find(|(block, _)| block.addr().is_ipv6()).unwrap().0;
    rig.pods.insert(six, (60, 0));
    rig.settle();
    assert_eq!(rig.own().iter().filter(|(block, _)| block.addr().is_ipv6()).count(), 2);
    assert_eq!(rig.own().len(), 3);
    assert_eq!((rig.view().tunnel_v4, rig.view().tunnel_v6), (Some(v4), Some(v6)), "the addresses stay");
}

#[test]
fn the_node_takes_no_address_that_a_pod_may_hold() {
    // A block that was in the file before, so pods can be in it, and no look at the leases yet.
    let mut rig = Rig::new().started();
    let block = rig.block();
    rig.disk.as_mut().unwrap().tunnel_addresses.clear();
    rig.restart();
    rig.looks = false;
    rig.start();
    assert_eq!(rig.own(), [(block, Active)]);
    assert_eq!(rig.view().tunnel_v4, None);
    rig.looks = true;
    rig.settle();
    assert_eq!(rig.view().tunnel_v4.map(std::net::IpAddr::from), Some(block.network()));
}
