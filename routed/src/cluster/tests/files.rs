//! The node file: boots, restarts, stale files, failures.

use podway_model::keys::Key;
use podway_model::node_file::{BlockState, NodeFile};

use super::rig::{Filing, Rig, boot, instance, net, seconds};
use crate::view::OwnBlockState::{Active, Stranded};

#[test]
fn a_restart_keeps_blocks_and_writes_nothing() {
    let mut rig = Rig::new().started();
    let (block, file, writes) = (rig.block(), rig.disk.clone(), rig.asked.len());
    rig.restart();
    assert_eq!(rig.own(), [], "not handed out before the first event");
    rig.connected = false;
    rig.start();
    rig.disconnect();
    assert_eq!(rig.own(), [(block, Active)], "also without the store");
    assert!(!rig.view().synced);
    rig.reconnect();
    rig.pass(seconds(60));
    assert_eq!((rig.own(), rig.disk.clone()), (vec![(block, Active)], file));
    let written: Vec<&str> = rig.asked[writes..].iter().map(|write| write.key.as_str()).collect();
    assert!(written.iter().all(|key| *key == "live/n1"), "{written:?}");
}

#[test]
fn a_reboot_writes_a_file_of_the_new_boot_with_the_same_blocks() {
    let mut rig = Rig::new().started();
    let (block, old) = (rig.block(), rig.disk.clone().unwrap());
    rig.reboot();
    rig.start();
    let new = rig.disk.clone().unwrap();
    assert_eq!(rig.own(), [(block, Active)]);
    assert_eq!(new.boot_id, rig.me.boot_id);
    assert!(new.confirmed && new.generation > old.generation);
    assert_eq!(new.blocks, old.blocks);
}

#[test]
fn after_a_reboot_without_the_store_the_file_is_unconfirmed_until_it_answers() {
    let mut rig = Rig::new().started();
    let (block, old) = (rig.block(), rig.disk.clone().unwrap());
    rig.reboot();
    rig.connected = false;
    rig.start();
    assert_eq!(rig.disk.as_ref(), Some(&old), "connecting: it may answer in a moment");
    rig.disconnect();
    let file = rig.disk.clone().unwrap();
    assert!(!file.confirmed && file.boot_id == rig.me.boot_id && file.generation > old.generation);
    assert_eq!((file.blocks, rig.own()), (old.blocks, vec![(block, Active)]));
    assert_eq!(rig.view().tunnel_v4.map(Into::into), old.tunnel_addresses.first().copied());
    rig.reconnect();
    assert!(rig.disk.as_ref().unwrap().confirmed);
    assert_eq!(rig.own(), [(block, Active)]);
}

#[test]
fn pods_of_an_unconfirmed_file_whose_block_was_released_are_stranded() {
    let mut rig = Rig::new().started();
    let block = rig.block();
    rig.reboot();
    rig.connected = false;
    rig.start();
    rig.disconnect();
    rig.pods.insert(block, (2, 0));
    rig.release(1, true);
    rig.reconnect();
    assert!(rig.own().contains(&(block, Stranded)), "{:?}", rig.own());
    assert!(rig.has_warned("it was released") && rig.has_problem("pods live in it"));
    assert!(!rig.listed().iter().any(|(listed, _)| *listed == block));
}

#[test]
fn a_node_that_was_released_while_it_was_off_takes_other_blocks() {
    let mut rig = Rig::new().started();
    let block = rig.block();
    rig.release(1, true);
    rig.reboot();
    rig.start();
    assert_ne!(rig.block(), block, "held");
    assert_eq!(rig.listed(), [(rig.block(), BlockState::Active)]);
    assert!(!rig.has_warned("lost"), "no pod can be in it after a reboot");
}

#[test]
fn a_node_that_was_freed_at_once_while_it_was_off_asks_for_its_old_block_first() {
    let mut rig = Rig::new().started();
    let block = rig.block();
    rig.release(1, false);
    rig.reboot();
    rig.start();
    assert_eq!(rig.own(), [(block, Active)]);
}

#[test]
fn a_stale_file_of_this_boot_loses_what_the_store_gave_to_others() {
    let mut rig = Rig::new().started();
    let block = rig.block();
    rig.pods.insert(block, (1, 0));
    // The daemon was stopped; meanwhile the node was freed and another one took the block.
    rig.restart();
    rig.release(1, false);
    rig.put_claim(2, block, true);
    rig.start();
    assert!(rig.own().contains(&(block, Stranded)));
    assert!(!rig.listed().iter().any(|(listed, _)| *listed == block));
    assert!(rig.view().nodes[&"n2".parse().unwrap()].blocks.contains(&block));
}

#[test]
fn a_file_of_another_installation_or_node_is_no_hint_and_its_generation_goes_on() {
    let foreign: [fn(&mut NodeFile); 2] =
        [|file| file.instance_id = instance(9).parse().unwrap(), |file| file.node = "other".parse().unwrap()];
    for change in foreign {
        let mut rig = Rig::new().started();
        let file = rig.disk.as_mut().unwrap();
        change(file);
        file.blocks[0].cidr = net("10.0.77.0/26");
        let generation = file.generation;
        rig.restart();
        rig.start();
        assert!(!rig.own().iter().any(|(own, _)| *own == net("10.0.77.0/26")));
        assert!(rig.disk.as_ref().unwrap().generation > generation);
    }
}

#[test]
fn a_file_that_cannot_be_written_is_tried_again_and_does_not_spin() {
    let mut rig = Rig::new();
    rig.filing = Filing::Fails;
    rig.start();
    assert_eq!((rig.files, rig.disk.is_some()), (1, false));
    assert!(rig.has_warned("no space left"));
    rig.pass(seconds(10));
    assert!((5..=11).contains(&rig.files), "{} attempts in 10 s", rig.files);
    rig.filing = Filing::Works;
    rig.pass(seconds(2));
    assert_eq!(rig.listed(), [(rig.block(), BlockState::Active)]);
    let files = rig.files;
    rig.pass(seconds(60));
    assert_eq!(rig.files, files, "written once");
}

#[test]
fn one_file_is_written_at_a_time_and_the_last_state_follows() {
    let mut rig = Rig::new();
    rig.filing = Filing::Held;
    rig.start();
    let first = rig.held_file.take().unwrap();
    let config = podway_model::cluster::ClusterConfig {
        policy: podway_model::cluster::PolicyConfig {
            mode: podway_model::cluster::PolicyMode::None,
            ..Default::default()
        },
        ..Default::default()
    };
    rig.put(&Key::Config, &podway_model::cluster::encode(&config));
    rig.settle();
    assert_eq!(rig.held_file, None, "waits for the one under way");
    rig.file(first.clone());
    rig.settle();
    let second = rig.held_file.take().unwrap();
    assert!(second.generation > first.generation && second.policy != first.policy);
}

#[test]
fn a_loss_reaches_the_file_while_the_configuration_cannot_be_used() {
    let mut rig = Rig::new().started();
    let block = rig.block();
    rig.restart();
    rig.put(&Key::Config, b"{");
    rig.release(1, true);
    rig.start();
    assert!(!rig.view().synced, "no good configuration is known");
    assert_eq!(rig.listed(), [], "but the lost block is not offered any more");
    assert!(rig.own().contains(&(block, Stranded)) || rig.own().is_empty());
    rig.put(&Key::Config, br#"{"schema":1}"#);
    rig.settle();
    assert_eq!(rig.listed().len(), 1);
}

#[test]
fn a_first_file_waits_for_a_block() {
    let mut rig = Rig::new();
    rig.put_pool("p4", &super::rig::pool("10.0.0.0/26"));
    rig.put_claim(2, net("10.0.0.0/26"), true);
    rig.start();
    assert_eq!(rig.files, 0);
    assert!(boot(1) == rig.me.boot_id.as_str());
}
