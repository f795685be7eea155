//! Blocks that go back to their pool, with a crash at each step.

use podway_model::cluster::Pool;
use podway_model::node_file::BlockState;

use super::rig::{Filing, Rig, Writing, net, pool, seconds};
use crate::view::OwnBlockState::{Active, Draining, Stranded};

/// Two blocks; the second, which is answered, has been idle since now.
fn idle() -> (Rig, ipnet::IpNet) {
    let mut rig = Rig::new().started();
    let first = rig.block();
    rig.pods.insert(first, (60, 0));
    rig.settle();
    let second = rig.own().into_iter().map(|(block, _)| block).find(|block| *block != first).unwrap();
    rig.pods.insert(second, (5, 0));
    rig.settle();
    rig.pods.insert(first, (3, 0));
    rig.pods.insert(second, (0, 5));
    rig.settle();
    rig.pass(seconds(60));
    rig.pods.insert(second, (0, 0));
    rig.settle();
    (rig, second)
}

const LONG: std::time::Duration = seconds_const(700);

const fn seconds_const(n: u64) -> std::time::Duration {
    std::time::Duration::from_secs(n)
}

#[test]
fn an_idle_block_goes_back_after_a_while_and_not_before() {
    let (mut rig, block) = idle();
    rig.pass(seconds(500));
    assert!(rig.own().contains(&(block, Active)));
    rig.pass(seconds(200));
    assert!(!rig.own().iter().any(|(own, _)| *own == block));
    assert_eq!((rig.claim(block), rig.forgotten.as_slice()), (None, &[block][..]));
    assert!(!rig.listed().iter().any(|(listed, _)| *listed == block));
    assert!(!rig.has_warned("lost"));
    let count = rig.own().len();
    rig.pass(LONG);
    assert_eq!(rig.own().len(), count, "and nothing goes to and fro");
}

#[test]
fn the_steps_are_in_their_order() {
    let (mut rig, block) = idle();
    rig.writing = Writing::Held;
    rig.filing = Filing::Held;
    rig.pass(LONG);
    assert!(rig.own().contains(&(block, Draining)));
    assert_eq!(rig.held, [], "nothing is deleted before the file says draining");
    let file = rig.held_file.take().unwrap();
    let listed = file.blocks.iter().find(|listed| listed.cidr == block).unwrap();
    assert_eq!(listed.state, BlockState::Draining);
    rig.looks = false;
    rig.file(file);
    rig.settle();
    assert_eq!(rig.held, [], "nor before a look that is younger than the file");
    rig.looks = true;
    rig.settle();
    assert_eq!(rig.held.len(), 1);
    assert_eq!(rig.held_file, None, "still listed");
    let delete = rig.held.remove(0);
    rig.answer(&delete);
    rig.settle();
    assert!(!rig.own().iter().any(|(own, _)| *own == block));
    assert!(!rig.held_file.as_ref().unwrap().blocks.iter().any(|listed| listed.cidr == block));
}

#[test]
fn a_lease_that_came_at_the_last_moment_keeps_the_block() {
    let (mut rig, block) = idle();
    rig.filing = Filing::Held;
    rig.pass(LONG);
    // Before the file is replaced, a pod gets an address.
    rig.pods.insert(block, (1, 0));
    let file = rig.held_file.take().unwrap();
    rig.filing = Filing::Works;
    rig.file(file);
    rig.settle();
    assert!(rig.own().contains(&(block, Active)), "{:?}", rig.own());
    assert!(rig.listed().contains(&(block, BlockState::Active)));
    assert!(rig.claim(block).is_some());
}

#[test]
fn a_block_that_is_needed_again_is_kept() {
    let (mut rig, block) = idle();
    rig.filing = Filing::Held;
    rig.pass(LONG);
    assert!(rig.own().contains(&(block, Draining)));
    let first = rig.own()[0].0;
    rig.pods.insert(first, (60, 0));
    rig.settle();
    assert!(rig.own().contains(&(block, Active)));
    assert_eq!(rig.own().len(), 2, "and no third one is claimed");
}

#[test]
fn a_crash_at_any_step_is_resumed() {
    // How far it came: nothing written; file draining; delete asked for; delete done and not seen; seen and the
    // last file not written.
    for step in 0..5 {
        for again in ["restart", "reboot"] {
            let (mut rig, block) = idle();
            match step {
                0 => {
                    rig.filing = Filing::Held;
                    rig.pass(LONG);
                }
                1 => {
                    rig.looks = true;
                    rig.filing = Filing::Held;
                    rig.pass(LONG);
                    let file = rig.held_file.take().unwrap();
                    rig.disk = Some(file);
                }
                2 | 3 => {
                    rig.writing = Writing::Held;
                    rig.pass(LONG);
                    let delete = rig.held.remove(0);
                    if step == 3 {
                        super::rig::carry_out(&mut rig.mem, &mut rig.lease, &delete);
                    }
                }
                _ => {
                    rig.writing = Writing::Held;
                    rig.pass(LONG);
                    rig.filing = Filing::Held;
                    let delete = rig.held.remove(0);
                    rig.answer(&delete);
                    rig.settle();
                    assert!(rig.held_file.is_some());
                }
            }
            rig.writing = Writing::Works;
            rig.filing = Filing::Works;
            if again == "restart" {
                rig.restart()
            } else {
                rig.reboot()
            }
            rig.start();
            rig.pass(LONG * 2);
            let at = format!("step {step}, {again}");
            assert!(!rig.own().iter().any(|(own, _)| *own == block), "{at}: {:?}", rig.own());
            assert_eq!((rig.claim(block), rig.listed().len()), (None, 1), "{at}");
            assert!(!rig.has_warned("lost"), "{at}: {:?}", rig.reports);
        }
    }
}

#[test]
fn a_returned_block_that_another_node_took_at_once_is_never_shown_as_ours_after_a_crash() {
    let (mut rig, block) = idle();
    rig.writing = Writing::Held;
    rig.pass(LONG);
    let delete = rig.held.remove(0);
    super::rig::carry_out(&mut rig.mem, &mut rig.lease, &delete);
    rig.put_claim(2, block, true);
    rig.writing = Writing::Works;
    rig.restart();
    rig.looks = false;
    rig.start();
    assert!(!rig.own().iter().any(|(own, state)| *own == block && *state != Stranded), "{:?}", rig.own());
    rig.looks = true;
    rig.settle();
    assert!(!rig.own().iter().any(|(own, _)| *own == block));
}

#[test]
fn a_delete_that_fails_or_is_unsure_is_tried_again() {
    for writing in [Writing::Fails, Writing::Unsure] {
        let (mut rig, block) = idle();
        rig.writing = writing;
        rig.pass(LONG);
        rig.writing = Writing::Works;
        rig.pass(seconds(30));
        assert!(!rig.own().iter().any(|(own, _)| *own == block), "{writing:?}: {:?}", rig.own());
        assert_eq!(rig.claim(block), None, "{writing:?}");
    }
}

#[test]
fn the_block_with_the_nodes_own_address_stays() {
    let mut rig = Rig::new().started();
    let block = rig.block();
    rig.pass(LONG * 2);
    assert_eq!(rig.own(), [(block, Active)]);
    // Also when its pool is closed, and over a restart.
    rig.put_pool("p4", &Pool { disabled: true, ..pool("10.0.0.0/16") });
    rig.put_pool("q4", &pool("10.1.0.0/16"));
    rig.settle();
    rig.restart();
    rig.start();
    rig.pass(LONG * 2);
    assert!(rig.own().contains(&(block, Draining)), "{:?}", rig.own());
}

#[test]
fn blocks_of_a_pool_that_serves_no_more_go_back_as_soon_as_they_are_idle() {
    let (mut rig, block) = idle();
    rig.put_pool("q4", &pool("10.1.0.0/16"));
    rig.pods.insert(block, (1, 0));
    rig.settle();
    rig.put_pool("p4", &Pool { disabled: true, ..pool("10.0.0.0/16") });
    rig.settle();
    rig.pass(seconds(10));
    assert!(rig.own().contains(&(block, Draining)), "a pod lives in it");
    rig.pods.insert(block, (0, 1));
    rig.settle();
    assert!(rig.own().contains(&(block, Draining)), "in quarantine");
    rig.pods.insert(block, (0, 0));
    rig.settle();
    assert!(!rig.own().iter().any(|(own, _)| *own == block));
    assert_eq!(rig.claim(block), None);
}

#[test]
fn too_few_addresses_left_keep_an_idle_block() {
    let (mut rig, block) = idle();
    let first = rig.own()[0].0;
    // 63 - 32 = 31 left: less than two low-water marks.
    rig.pods.insert(first, (32, 0));
    rig.settle();
    rig.pass(LONG * 2);
    assert!(rig.own().contains(&(block, Active)));
}

#[test]
fn nothing_goes_back_while_the_store_is_away_or_just_wiped() {
    let (mut rig, block) = idle();
    rig.disconnect();
    rig.pass(LONG * 2);
    assert!(rig.own().contains(&(block, Active)));

    let (mut rig, block) = idle();
    rig.mem.wipe();
    rig.settle();
    rig.pass(seconds(590));
    assert!(rig.own().contains(&(block, Active)), "{:?}", rig.own());
    assert!(net("10.0.0.0/16").contains(&block));
}
