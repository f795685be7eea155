//! Record, sign of life, and other installations under this node's name.

use podway_model::cluster::{Liveness, NodeRecord, decode};

use super::rig::{LEASE, Rig, Writing, facts, instance, seconds};
use crate::cluster::event::Event;
use crate::view::OwnBlockState::{Active, Stranded};

fn live(rig: &Rig) -> Option<Liveness> {
    rig.mem.entry("live/n1").map(|entry| decode(&entry.value).unwrap())
}

#[test]
fn a_clone_refuses_to_start_and_names_both_addresses() {
    for facts_first in [true, false] {
        let mut rig = Rig::new();
        rig.put_live(1, 9);
        if facts_first {
            rig.start();
        } else {
            rig.settle();
            assert_eq!(rig.refused, None, "its own address is not known yet");
            rig.start();
        }
        let text = rig.refused.clone().unwrap();
        for part in ["n1", "192.0.0.9", "192.0.0.1", &instance(9), &instance(1)] {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert_eq!((rig.asked.len(), rig.files), (0, 0));
    }
}

#[test]
fn a_clone_whose_original_is_gone_starts_and_leaves_its_claims_alone() {
    let mut rig = Rig::new().started();
    let block = rig.block();
    let mut other = Rig::bare(std::mem::take(&mut rig.mem));
    other.me.instance_id = instance(9).parse().unwrap();
    other.restart();
    other.mem.delete("live/n1");
    other.start();
    assert_eq!(other.refused, None);
    assert_ne!(other.block(), block);
    assert!(other.has_problem("held by installation"));
    assert_eq!(other.claim(block).unwrap().instance_id.as_str(), instance(1));
}

#[test]
fn a_node_that_runs_stays_when_another_installation_takes_its_name_and_stops_writing() {
    let mut rig = Rig::new().started();
    let block = rig.block();
    rig.mem.delete("live/n1");
    rig.put_live(1, 9);
    rig.settle();
    assert_eq!(rig.refused, None);
    assert!(rig.has_problem("is taken"));
    assert_eq!(rig.own(), [(block, Active)]);
    let writes = rig.asked.len();
    rig.step(Event::Facts(facts(77)));
    rig.settle();
    assert_eq!(rig.asked.len(), writes, "not even its new address");
    rig.pass(LEASE + seconds(1));
    assert_eq!(live(&rig).unwrap().instance_id.as_str(), instance(1), "the other one is gone");
    assert!(!rig.has_problem("is taken"));
}

#[test]
fn a_sign_of_life_that_ends_is_renewed_and_removes_nothing() {
    let mut rig = Rig::new().started();
    rig.put_node(2);
    rig.put_claim(2, super::rig::net("10.0.200.0/26"), true);
    rig.put_live(2, 2);
    rig.settle();
    let before = rig.view();
    assert!(before.nodes[&"n2".parse().unwrap()].live);
    rig.disconnect();
    rig.pass(LEASE * 2);
    assert_eq!(live(&rig), None, "its lease ended");
    rig.reconnect();
    let after = rig.view();
    assert!(!after.nodes[&"n2".parse().unwrap()].live);
    assert_eq!(after.own_blocks, before.own_blocks);
    for (node, view) in &before.nodes {
        assert_eq!((&after.nodes[node].record, &after.nodes[node].blocks), (&view.record, &view.blocks));
    }
    assert_eq!(live(&rig).unwrap().instance_id.as_str(), instance(1));
}

#[test]
fn a_new_process_takes_the_sign_of_life_over() {
    let mut rig = Rig::new().started();
    rig.restart();
    rig.start();
    rig.pass(LEASE * 3);
    assert!(live(&rig).is_some(), "bound to the new process's lease");
    let writes = rig.asked.len();
    rig.pass(LEASE * 3);
    assert_eq!(rig.asked.len(), writes, "and then it rests");
}

#[test]
fn an_address_that_changes_is_published() {
    let mut rig = Rig::new().started();
    rig.step(Event::Facts(facts(77)));
    rig.settle();
    let record: NodeRecord = decode(&rig.mem.entry("nodes/n1").unwrap().value).unwrap();
    assert_eq!(record.address_v4, facts(77).address_v4);
    assert_eq!(live(&rig).unwrap().addresses, [std::net::IpAddr::from(facts(77).address_v4.unwrap())]);
}

#[test]
fn a_record_that_was_deleted_or_spoilt_is_written_again() {
    let mut rig = Rig::new().started();
    let good = rig.mem.entry("nodes/n1").unwrap().value;
    rig.mem.delete("nodes/n1");
    rig.put_node(2);
    rig.settle();
    assert_eq!(rig.mem.entry("nodes/n1").unwrap().value, good);
    rig.mem.put("nodes/n1", b"rubbish", None).unwrap();
    rig.settle();
    assert_eq!(rig.mem.entry("nodes/n1").unwrap().value, good);
}

#[test]
fn blocks_are_not_claimed_without_a_sign_of_life() {
    let mut rig = Rig::new();
    rig.writing = Writing::Fails;
    rig.start();
    rig.pass(seconds(30));
    assert!(rig.asked.iter().all(|write| write.key == "live/n1"), "{:?}", rig.asked);
    assert!(rig.asked.len() < 15, "with backoff");
    rig.writing = Writing::Works;
    rig.pass(seconds(30));
    assert_eq!(rig.own()[0].1, Active);
}

#[test]
fn writes_of_which_nobody_knows_settle() {
    let mut rig = Rig::new();
    rig.writing = Writing::Unsure;
    rig.start();
    rig.pass(seconds(120));
    assert_eq!(rig.own().len(), 1);
    assert_eq!(rig.own()[0].1, Active);
    assert!(!rig.own().iter().any(|(_, state)| *state == Stranded));
}
