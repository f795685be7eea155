//! Claims won, lost, released; what becomes of the pods.

use podway_model::cluster::encode;
use podway_model::keys::Key;
use podway_model::node_file::BlockState;
use podway_store::Expect;

use super::rig::{EPOCH, Rig, Writing, net, seconds};
use crate::cluster::event::{Operation, Write};
use crate::view::OwnBlockState::{Active, Pending, Stranded};

fn claim_writes(rig: &Rig) -> Vec<&Write> {
    rig.asked.iter().filter(|write| write.key.starts_with("claims/")).collect()
}

#[test]
fn the_first_start_on_an_empty_store_waits_for_a_pool_and_then_claims() {
    let mut rig = Rig::bare(podway_store::fake::mem::Mem::new()).started();
    assert!(rig.has_problem("no usable pool"));
    assert_eq!((rig.own(), rig.files), (vec![], 0));
    assert!(rig.mem.entry("nodes/n1").is_some() && rig.mem.entry("live/n1").is_some());
    rig.put_pool("p4", &super::rig::pool("10.0.0.0/16"));
    rig.settle();
    let block = rig.block();
    assert_eq!(rig.listed(), [(block, BlockState::Active)]);
    assert!(rig.disk.as_ref().unwrap().confirmed);
    assert!(rig.claim(block).unwrap().confirmed);
    assert!(!rig.has_problem("no usable pool"));
    let order: Vec<&str> = rig.asked.iter().map(|write| write.key.split('/').next().unwrap()).collect();
    assert_eq!(
        order,
        ["live", "nodes", "claims", "claims", "nodes"],
        "life, record, claim, confirmation, tunnel"
    );
}

#[test]
fn nothing_is_written_before_the_store_and_the_own_address_are_known() {
    let mut rig = Rig::new();
    rig.settle();
    assert_eq!(rig.asked, [], "no facts");
    let mut rig = Rig::new();
    rig.disconnect();
    rig.start();
    assert_eq!(rig.asked, [], "no snapshot");
    rig.reconnect();
    assert_eq!(rig.listed().len(), 1);
}

#[test]
fn a_claim_is_confirmed_only_after_the_own_watch_showed_it() {
    let mut rig = Rig::new();
    rig.writing = Writing::Held;
    rig.start();
    for step in ["live", "nodes", "claims"] {
        let place = rig.held.iter().position(|write| write.key.starts_with(step));
        let write = rig.held.remove(place.expect(step));
        if step == "claims" {
            assert_eq!(rig.own(), [(rig.block(), Pending)], "being written");
            rig.answer(&write);
            assert_eq!((rig.held.len(), rig.own()), (0, vec![(rig.block(), Pending)]), "answered, not seen");
        } else {
            rig.answer(&write);
        }
        rig.settle();
    }
    let confirm = rig.held.remove(0);
    let block = rig.block();
    let stands = rig.mem.entry(&confirm.key).unwrap().mod_revision;
    assert!(matches!(&confirm.operation, Operation::PutGuarded(_, Expect::Revision(at), _) if *at == stands));
    assert_eq!((rig.own(), rig.listed()), (vec![(block, Pending)], vec![]), "seen, not confirmed");
    rig.answer(&confirm);
    assert_eq!(rig.own(), [(block, Pending)], "confirmed, not seen");
    rig.settle();
    assert_eq!((rig.own(), rig.listed()), (vec![(block, Active)], vec![(block, BlockState::Active)]));
}

/// Stops when the first claim is about to be written; answers its block.
fn about_to_claim() -> (Rig, Write, ipnet::IpNet) {
    let mut rig = Rig::new();
    rig.writing = Writing::Held;
    rig.start();
    for _ in 0..2 {
        let write = rig.held.remove(0);
        rig.answer(&write);
        rig.settle();
    }
    let write = rig.held.remove(0);
    let block = rig.block();
    rig.writing = Writing::Works;
    (rig, write, block)
}

#[test]
fn a_claim_that_comes_second_is_given_up_and_another_block_is_claimed() {
    for (what, other, confirmed) in
        [("the same", None, true), ("unconfirmed", None, false), ("a larger one", Some(20), true)]
    {
        let (mut rig, write, block) = about_to_claim();
        let other = other.map_or(block, |length| ipnet::IpNet::new(block.addr(), length).unwrap().trunc());
        rig.put_claim(2, other, confirmed);
        rig.answer(&write);
        rig.settle();
        rig.pass(seconds(5));
        assert_ne!(rig.block(), block, "{what}");
        assert_eq!((rig.own()[0].1, rig.claims().len(), rig.claim(block)), (Active, 1, None), "{what}");
        assert!(!rig.listed().iter().any(|(listed, _)| *listed == block), "{what}");
    }
}

#[test]
fn a_claim_that_comes_first_wins_against_later_ones() {
    let (mut rig, write, block) = about_to_claim();
    let held = super::rig::carry_out(&mut rig.mem, &mut rig.lease, &write);
    rig.put_claim(2, block, true);
    rig.put_claim(3, ipnet::IpNet::new(block.addr(), 20).unwrap().trunc(), true);
    rig.step(crate::cluster::event::Event::Written { id: write.id, result: Ok(held) });
    rig.settle();
    assert_eq!(rig.own(), [(block, Active)]);
    let view = rig.view();
    assert!(view.nodes[&rig.me.node].blocks.contains(&block));
    assert!(view.nodes[&"n2".parse().unwrap()].blocks.is_empty(), "the loser's route is ignored");
}

#[test]
fn a_create_that_fails_or_is_refused_is_followed_by_another_one() {
    let (mut rig, write, block) = about_to_claim();
    rig.fail(&write);
    rig.settle();
    assert_eq!(rig.own(), [], "not in use");
    rig.pass(seconds(2));
    assert_eq!(rig.own()[0].1, Active);

    // Our own key stands already: an earlier write that was said to have failed.
    let (mut rig, write, _) = about_to_claim();
    super::rig::carry_out(&mut rig.mem, &mut rig.lease, &write);
    rig.answer(&write);
    rig.settle();
    assert_eq!(rig.block(), block, "taken over");
    assert_eq!(rig.own()[0].1, Active);
}

#[test]
fn a_write_of_which_nobody_knows_is_taken_over_when_the_watch_shows_it() {
    let (mut rig, write, block) = about_to_claim();
    super::rig::carry_out(&mut rig.mem, &mut rig.lease, &write);
    rig.fail(&write);
    rig.settle();
    rig.pass(seconds(5));
    assert_eq!(rig.own(), [(block, Active)]);
    assert_eq!(rig.claims().len(), 1);
}

#[test]
fn an_answer_that_never_comes_stops_only_its_key() {
    let (mut rig, write, block) = about_to_claim();
    rig.pass(seconds(10));
    assert_eq!(rig.own(), [(block, Pending)], "waits");
    rig.put_node(7);
    rig.settle();
    assert!(rig.view().nodes.contains_key(&"n7".parse().unwrap()));
    rig.pass(seconds(120));
    assert_eq!(rig.own()[0].1, Active, "given up, and claimed anew");
    let own = rig.own();
    rig.answer(&write);
    rig.settle();
    rig.pass(seconds(5));
    assert!(rig.own().starts_with(&own), "a late answer takes nothing away");
    assert!(rig.own().iter().all(|(_, state)| *state == Active));
}

#[test]
fn nobody_confirms_while_an_earlier_claim_cannot_be_read() {
    let (mut rig, write, block) = about_to_claim();
    let key = Key::Claim("n2".parse().unwrap(), block);
    rig.put(&key, b"{\"schema\":99}");
    rig.answer(&write);
    rig.settle();
    rig.pass(seconds(5));
    assert_ne!(rig.block(), block);
    assert!(rig.has_problem("claims/n2/"));
    assert_eq!(rig.claim(block), None);
}

#[test]
fn a_released_block_leaves_the_node_file_and_its_pods_are_stranded() {
    let mut rig = Rig::new().started();
    let block = rig.block();
    rig.pods.insert(block, (3, 0));
    rig.settle();
    rig.release(1, true);
    rig.settle();
    assert!(!rig.listed().iter().any(|(listed, _)| *listed == block), "{:?}", rig.listed());
    assert!(rig.own().contains(&(block, Stranded)));
    assert!(rig.has_warned("it was released") && rig.has_warned("keep running"));
    assert!(rig.has_problem("is lost, and pods live in it"));
    assert!(!rig.view().nodes[&rig.me.node].blocks.contains(&block), "withdrawn");
    assert_eq!(rig.claim(block), None, "held for 24 hours");
    let other: Vec<_> = rig.own().into_iter().filter(|(own, _)| *own != block).collect();
    assert!(matches!(other[..], [(_, Active)]), "another block is claimed: {other:?}");
    assert!(rig.mem.entry("nodes/n1").is_some() && rig.mem.entry("live/n1").is_some(), "published again");
    // The node's own address moves with its block.
    let tunnel = rig.view().tunnel_v4.unwrap();
    assert!(!block.contains(&std::net::IpAddr::from(tunnel)));
    assert_eq!(rig.disk.as_ref().unwrap().tunnel_addresses, [std::net::IpAddr::from(tunnel)]);

    rig.pods.clear();
    rig.settle();
    assert!(!rig.own().iter().any(|(own, _)| *own == block), "the last pod is gone");
    assert_eq!(rig.forgotten, [block]);
    assert!(!rig.has_problem("is lost"));
}

#[test]
fn a_block_that_was_freed_at_once_is_claimed_again_for_the_pods_in_it() {
    let mut rig = Rig::new().started();
    let block = rig.block();
    rig.pods.insert(block, (3, 0));
    rig.settle();
    rig.release(1, false);
    rig.settle();
    assert!(rig.has_warned("its claim is gone from the store"));
    rig.pass(seconds(5));
    assert!(rig.own().contains(&(block, Active)), "{:?}", rig.own());
    assert!(rig.listed().contains(&(block, BlockState::Active)));
}

#[test]
fn a_stranded_block_that_somebody_else_has_stays_stranded() {
    let mut rig = Rig::new().started();
    let block = rig.block();
    rig.pods.insert(block, (3, 0));
    rig.settle();
    rig.release(1, false);
    rig.put_claim(2, block, true);
    rig.settle();
    rig.pass(seconds(30));
    assert!(rig.own().contains(&(block, Stranded)));
    assert_eq!(rig.claim(block), None);
}

#[test]
fn a_lost_block_is_known_after_a_restart_and_claimed_again_when_it_is_free() {
    let mut rig = Rig::new().started();
    let block = rig.block();
    rig.pods.insert(block, (3, 0));
    rig.settle();
    rig.release(1, true);
    rig.settle();
    assert!(rig.own().contains(&(block, Stranded)));
    for _ in 0..2 {
        rig.restart();
        rig.start();
        assert!(rig.own().contains(&(block, Stranded)), "{:?}", rig.own());
        assert!(rig.has_problem("is lost, and pods live in it"));
        assert!(!rig.listed().iter().any(|(listed, _)| *listed == block));
    }
    rig.pass(seconds(30));
    assert_eq!(rig.claim(block), None, "it is held back");
    rig.mem.delete(&Key::Released(block).to_string());
    rig.settle();
    rig.pass(seconds(5));
    assert!(rig.own().contains(&(block, Active)), "{:?}", rig.own());
    assert!(rig.listed().contains(&(block, BlockState::Active)));
    assert!(!rig.has_problem("is lost"));

    // Another node took it, and then its pods end: nothing is left of it.
    rig.release(1, false);
    rig.put_claim(2, block, true);
    rig.settle();
    rig.restart();
    rig.start();
    assert!(rig.own().contains(&(block, Stranded)), "{:?}", rig.own());
    rig.pods.remove(&block);
    rig.settle();
    assert!(!rig.own().iter().any(|(own, _)| *own == block), "{:?}", rig.own());
    assert!(rig.claim(block).is_none());
}

#[test]
fn a_pod_that_came_between_the_look_and_the_loss_is_not_forgotten() {
    let mut rig = Rig::new().started();
    let block = rig.block();
    // The last look saw nobody. The pod comes while the file still offers the block.
    rig.looks = false;
    rig.filing = super::rig::Filing::Held;
    rig.release(1, true);
    rig.settle();
    assert!(rig.own().contains(&(block, Stranded)), "nobody knows yet whether it is empty");
    rig.pods.insert(block, (1, 0));
    let file = rig.held_file.take().unwrap();
    assert!(!file.blocks.iter().any(|listed| listed.cidr == block));
    rig.filing = super::rig::Filing::Works;
    rig.file(file);
    rig.settle();
    assert!(rig.own().contains(&(block, Stranded)), "the look is older than the file");
    rig.looks = true;
    rig.settle();
    assert!(rig.own().contains(&(block, Stranded)) && rig.has_problem("pods live in it"));
}

#[test]
fn a_hold_ends_after_a_day_and_not_before() {
    let mut rig = Rig::new();
    // All but one block of the pool are taken.
    let small = super::rig::pool("10.0.0.0/25");
    rig.put_pool("p4", &small);
    rig.put_claim(2, net("10.0.0.0/26"), true);
    let released =
        podway_model::cluster::Released { at_unix_seconds: EPOCH, former_owner: "n9".parse().unwrap() };
    rig.put(&Key::Released(net("10.0.0.64/26")), &encode(&released));
    rig.start();
    assert!(rig.has_problem("no free block left"));
    rig.pass(seconds(24 * 3600 - 60));
    assert_eq!(rig.own(), []);
    rig.pass(seconds(120));
    assert_eq!(rig.own(), [(net("10.0.0.64/26"), Active)]);
}

#[test]
fn a_hold_on_part_of_a_block_holds_all_of_it() {
    let mut rig = Rig::new();
    rig.put_pool("p4", &super::rig::pool("10.0.0.0/26"));
    let released =
        podway_model::cluster::Released { at_unix_seconds: EPOCH, former_owner: "n9".parse().unwrap() };
    rig.put(&Key::Released(net("10.0.0.4/30")), &encode(&released));
    rig.start();
    assert_eq!(rig.own(), []);
    rig.mem.delete("released/10.0.0.4-30");
    rig.settle();
    assert_eq!(rig.own(), [(net("10.0.0.0/26"), Active)]);
}

#[test]
fn a_claim_that_arrives_after_its_blocks_release_is_not_confirmed() {
    let (mut rig, write, block) = about_to_claim();
    let released =
        podway_model::cluster::Released { at_unix_seconds: EPOCH, former_owner: "n9".parse().unwrap() };
    rig.put(&Key::Released(block), &encode(&released));
    rig.answer(&write);
    rig.settle();
    rig.pass(seconds(5));
    assert_eq!(rig.claim(block), None);
    assert_ne!(rig.block(), block);
}

#[test]
fn a_hold_that_the_watch_has_not_shown_yet_keeps_claims_from_being_made_and_confirmed() {
    let released =
        podway_model::cluster::Released { at_unix_seconds: EPOCH, former_owner: "n9".parse().unwrap() };
    // Before the claim: it is never made, and another block is taken.
    let (mut rig, write, block) = about_to_claim();
    rig.connected = false;
    rig.put(&Key::Released(block), &encode(&released));
    rig.answer(&write);
    assert_eq!(rig.claim(block), None);
    rig.connected = true;
    rig.settle();
    rig.pass(seconds(5));
    assert_eq!(rig.claim(block), None);
    assert_ne!(rig.block(), block);

    // Between claim and confirmation.
    let (mut rig, write, block) = about_to_claim();
    rig.answer(&write);
    rig.writing = Writing::Held;
    rig.settle();
    let confirm = rig.held.pop().unwrap();
    rig.connected = false;
    rig.put(&Key::Released(block), &encode(&released));
    rig.answer(&confirm);
    assert!(!rig.claim(block).unwrap().confirmed);
    rig.writing = Writing::Works;
    rig.connected = true;
    rig.settle();
    rig.pass(seconds(5));
    assert_eq!(rig.claim(block), None, "given up");
    assert_ne!(rig.block(), block);
}

#[test]
fn an_earlier_claim_that_appears_takes_an_active_block_away() {
    // Only a store that was restored or edited can show it; then every reader decides alike.
    let mut rig = Rig::new().started();
    let block = rig.block();
    rig.pods.insert(block, (1, 0));
    let mut other = podway_store::fake::mem::Mem::new();
    std::mem::swap(&mut rig.mem, &mut other);
    for entry in other.list(&[String::new()]).entries {
        if entry.key == format!("claims/n1/{}-{}", block.addr(), block.prefix_len()) {
            rig.put_claim(2, block, true);
        }
        rig.mem.put(&entry.key, &entry.value, None).unwrap();
    }
    rig.seen = None;
    rig.settle();
    rig.pass(seconds(5));
    assert!(rig.own().contains(&(block, Stranded)), "{:?}", rig.own());
    assert!(rig.has_warned("another node claimed it earlier"));
    assert_eq!(rig.claim(block), None, "the loser deletes its key");
    assert!(!rig.listed().iter().any(|(listed, _)| *listed == block));
    assert!(claim_writes(&rig).iter().any(|write| matches!(write.operation, Operation::Delete(_))));
}
