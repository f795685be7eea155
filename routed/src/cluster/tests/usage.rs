//! What the store is told of the use of addresses, and how often.

use std::collections::BTreeMap;

use podway_model::cluster::{Usage, decode};

use super::rig::{Rig, Writing, seconds};
use crate::cluster::usage::EVERY;

fn told(rig: &Rig) -> Option<BTreeMap<String, u32>> {
    let usage: Usage = decode(&rig.mem.entry("usage/n1")?.value).unwrap();
    Some(usage.blocks.into_iter().map(|(block, used)| (block.to_string(), used)).collect())
}

fn writes(rig: &Rig) -> usize {
    rig.asked.iter().filter(|write| write.key == "usage/n1").count()
}

#[test]
fn use_is_told_when_it_changes_and_seldom() {
    let mut rig = Rig::new().started();
    let block = rig.block();
    assert_eq!(told(&rig), Some(BTreeMap::new()));
    // The first pod at once, what follows in time and as one.
    for pods in 1..5 {
        rig.pods.insert(block, (pods, 0));
        rig.pass(seconds(5));
    }
    assert_eq!(told(&rig), Some([(block.to_string(), 1)].into()));
    let before = writes(&rig);
    rig.pass(EVERY);
    assert_eq!(told(&rig), Some([(block.to_string(), 4)].into()));
    assert_eq!(writes(&rig), before + 1);
    rig.pass(EVERY);
    rig.pass(EVERY);
    assert_eq!(writes(&rig), before + 1, "nothing has changed");
    // Another run of the daemon finds what stands there, and puts it right.
    rig.pods.clear();
    rig.restart();
    rig.start();
    rig.pass(seconds(10));
    assert_eq!(told(&rig), Some(BTreeMap::new()));
}

#[test]
fn use_that_cannot_be_told_is_told_later() {
    let mut rig = Rig::new().started();
    let block = rig.block();
    rig.pods.insert(block, (3, 0));
    rig.writing = Writing::Fails;
    rig.pass(seconds(5));
    assert_eq!(told(&rig), Some(BTreeMap::new()));
    rig.writing = Writing::Works;
    rig.pass(seconds(60));
    assert_eq!(told(&rig), Some([(block.to_string(), 3)].into()));
}
