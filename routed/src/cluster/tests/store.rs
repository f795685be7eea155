//! What the store does to a node: away, compacted, restored, wiped, with values that cannot be used.

use podway_model::cluster::{Backend, ClusterConfig, encode};
use podway_model::keys::Key;
use podway_model::node_file::BlockState;
use podway_store::{Change, Event as StoreEvent};

use super::rig::{EPOCH, Rig, Writing, net, next_event, seconds};
use crate::cluster::event::Event;
use crate::view::OwnBlockState::{Active, Draining, Stranded};

/// A node with pods, another node, and a configuration that is not the default.
fn cluster() -> Rig {
    let mut rig = Rig::new();
    rig.put(&Key::Config, &encode(&ClusterConfig { backend: Backend::HostGw, ..ClusterConfig::default() }));
    rig.put_node(2);
    rig.put_claim(2, net("10.0.200.0/26"), true);
    let mut rig = rig.started();
    rig.pods.insert(rig.block(), (3, 0));
    rig.settle();
    rig
}

/// What a wiped store must not take away.
fn assert_nothing_torn_down(rig: &Rig, block: ipnet::IpNet, when: &str) {
    let view = rig.view();
    assert_eq!(rig.own(), [(block, Active)], "{when}");
    assert_eq!(rig.listed(), [(block, BlockState::Active)], "{when}");
    assert!(view.nodes[&"n2".parse().unwrap()].blocks.contains(&net("10.0.200.0/26")), "{when}");
    assert!(view.nodes[&"n2".parse().unwrap()].record.is_some(), "{when}");
    assert!(view.nodes[&rig.me.node].blocks.contains(&block), "{when}");
    assert!(view.pools.contains_key(&"p4".parse().unwrap()), "{when}");
    assert_eq!(view.config.backend, Backend::HostGw, "{when}");
}

#[test]
fn a_wiped_store_tears_nothing_down_and_the_node_writes_its_own_again() {
    for snapshot in [false, true] {
        let mut rig = cluster();
        let block = rig.block();
        rig.writing = Writing::Held;
        rig.mem.wipe();
        if snapshot {
            rig.seen = None;
        }
        rig.settle();
        assert_nothing_torn_down(&rig, block, "wiped");
        assert!(rig.has_warned("wiped") && rig.has_problem("apply pools and configuration again"));
        // At every step on the way back.
        while !rig.held.is_empty() {
            let write = rig.held.remove(0);
            rig.answer(&write);
            rig.settle();
            assert_nothing_torn_down(&rig, block, &write.key);
        }
        assert!(rig.claim(block).unwrap().confirmed);
        assert!(rig.mem.entry("nodes/n1").is_some());
        rig.writing = Writing::Works;
        rig.put_pool("p4", &super::rig::pool("10.0.0.0/16"));
        rig.put_node(2);
        rig.put_claim(2, net("10.0.200.0/26"), true);
        rig.settle();
        rig.pass(seconds(700));
        assert_eq!(rig.own(), [(block, Active)]);
        assert!(!rig.has_problem("wiped"));
    }
}

/// Changes are in order within one prefix only, so a wipe may arrive in any parts.
#[test]
fn a_wipe_that_arrives_in_parts_tears_nothing_down() {
    for order in
        [["claims/", "pools/", "nodes/"], ["pools/", "nodes/", "claims/"], ["nodes/", "claims/", "pools/"]]
    {
        let mut rig = cluster();
        let block = rig.block();
        rig.writing = Writing::Held;
        rig.mem.wipe();
        let Some((StoreEvent::Changes { changes, revision }, _)) = next_event(&rig.mem, rig.seen) else {
            panic!("no changes");
        };
        rig.seen = Some(revision);
        let rest: Vec<Change> = changes
            .iter()
            .filter(|change| !order.iter().any(|prefix| change.key().starts_with(prefix)))
            .cloned()
            .collect();
        for prefix in order {
            let part = changes.iter().filter(|change| change.key().starts_with(prefix)).cloned().collect();
            rig.step(Event::Store(StoreEvent::Changes { changes: part, revision }));
            assert_nothing_torn_down(&rig, block, prefix);
        }
        rig.step(Event::Store(StoreEvent::Changes { changes: rest, revision }));
        rig.settle();
        assert_nothing_torn_down(&rig, block, "all");
        assert!(rig.has_warned("wiped"));
    }
}

#[test]
fn the_last_pool_or_claim_that_an_operator_deletes_is_believed_within_a_second() {
    let mut rig = Rig::alone().started();
    let block = rig.block();
    rig.mem.delete("pools/p4");
    rig.settle();
    assert_eq!(rig.own(), [(block, Active)], "it might be a wipe");
    rig.pass(seconds(1));
    assert_eq!(rig.own(), [(block, Draining)]);
    assert!(rig.has_problem("not usable any more") && !rig.has_warned("wiped"));

    let mut rig = Rig::alone().started();
    let block = rig.block();
    rig.pods.insert(block, (1, 0));
    rig.settle();
    let released =
        podway_model::cluster::Released { at_unix_seconds: EPOCH, former_owner: rig.me.node.clone() };
    rig.put(&Key::Released(block), &encode(&released));
    rig.mem.delete(&rig.claims()[0]);
    rig.settle();
    rig.pass(seconds(1));
    assert!(rig.own().contains(&(block, Stranded)));
}

#[test]
fn after_a_wipe_no_further_block_is_claimed_for_a_while() {
    let mut rig = cluster();
    let block = rig.block();
    rig.mem.wipe();
    rig.settle();
    rig.put_pool("p4", &super::rig::pool("10.0.0.0/16"));
    rig.pods.insert(block, (63, 0));
    rig.settle();
    assert_eq!(rig.own(), [(block, Active)], "others write theirs again first");
    rig.pass(seconds(60));
    assert_eq!(rig.own().len(), 2);
    assert!(!rig.own().iter().any(|(own, _)| *own == net("10.0.200.0/26")), "what was n2's is not free yet");
}

#[test]
fn what_an_operator_releases_after_a_wipe_is_gone_at_once() {
    let mut rig = cluster();
    rig.mem.wipe();
    rig.settle();
    rig.put_node(2);
    rig.put_claim(2, net("10.0.200.0/26"), true);
    rig.settle();
    rig.release(2, true);
    rig.settle();
    assert!(!rig.view().nodes.contains_key(&"n2".parse().unwrap()));
}

#[test]
fn a_store_restored_to_before_the_claim_gets_it_again_and_nothing_is_torn_down() {
    let mut rig = Rig::new();
    rig.put(&Key::Config, &encode(&ClusterConfig { backend: Backend::HostGw, ..ClusterConfig::default() }));
    let backup = rig.mem.clone();
    rig.start();
    rig.put_node(2);
    rig.put_claim(2, net("10.0.200.0/26"), true);
    rig.settle();
    let block = rig.block();
    rig.pods.insert(block, (3, 0));
    rig.settle();
    rig.writing = Writing::Held;
    rig.mem = backup;
    rig.settle();
    assert_nothing_torn_down(&rig, block, "restored");
    assert!(rig.has_warned("restored to an older state"));
    while !rig.held.is_empty() {
        let write = rig.held.remove(0);
        rig.answer(&write);
        rig.settle();
        assert_nothing_torn_down(&rig, block, &write.key);
    }
    assert!(rig.claim(block).unwrap().confirmed);
}

#[test]
fn a_restored_store_that_went_on_beyond_what_this_node_knew_is_noticed_all_the_same() {
    let mut rig = Rig::new().started();
    let theirs = net("10.0.200.0/26");
    rig.put_node(2);
    rig.put_claim(2, theirs, false);
    let backup = rig.mem.clone();
    rig.put_claim(2, theirs, true);
    rig.settle();
    let shown = |rig: &Rig| rig.view().nodes[&"n2".parse().unwrap()].blocks.contains(&theirs);
    assert!(shown(&rig));
    let known = rig.mem.revision();
    rig.mem = backup;
    while rig.mem.revision() <= known {
        rig.put_node(7);
    }
    // The backend knows that it is another store, and reads it anew.
    rig.seen = None;
    rig.settle();
    assert!(rig.has_warned("restored to an older state"));
    assert!(shown(&rig), "the other node has not confirmed its claim again yet");
}

#[test]
fn a_restored_store_in_which_somebody_else_holds_the_block_wins() {
    let mut rig = Rig::new().started();
    let block = rig.block();
    rig.pods.insert(block, (3, 0));
    rig.settle();
    let mut backup = podway_store::fake::mem::Mem::new();
    std::mem::swap(&mut rig.mem, &mut backup);
    rig.put_pool("p4", &super::rig::pool("10.0.0.0/16"));
    rig.put_claim(2, block, true);
    rig.settle();
    rig.pass(seconds(2));
    assert!(rig.own().contains(&(block, Stranded)), "{:?}", rig.own());
    assert!(!rig.listed().iter().any(|(listed, _)| *listed == block));
    assert!(rig.view().nodes[&"n2".parse().unwrap()].blocks.contains(&block));
}

#[test]
fn a_store_that_is_away_for_hours_changes_nothing_and_is_followed_when_it_is_back() {
    let mut rig = cluster();
    let (before, file, files) = (rig.view(), rig.disk.clone(), rig.files);
    rig.disconnect();
    assert_eq!(rig.view().store, "away: mem: away");
    let writes = rig.asked.len();
    rig.pass(seconds(6 * 3600));
    let away = rig.view();
    assert_eq!(
        (&away.nodes, &away.own_blocks, &away.pools),
        (&before.nodes, &before.own_blocks, &before.pools)
    );
    assert_eq!((rig.disk.clone(), rig.files, rig.asked.len()), (file, files, writes));
    rig.put_node(3);
    rig.put_claim(3, net("10.0.201.0/26"), true);
    rig.reconnect();
    let view = rig.view();
    assert!(view.nodes[&"n3".parse().unwrap()].blocks.contains(&net("10.0.201.0/26")));
    assert_eq!((view.own_blocks, view.store.as_str()), (before.own_blocks, "in sync"));
}

#[test]
fn a_snapshot_after_a_compaction_removes_what_is_gone_and_keeps_the_rest() {
    let mut rig = cluster();
    let block = rig.block();
    rig.disconnect();
    rig.release(2, true);
    rig.put_node(3);
    rig.mem.compact();
    rig.reconnect();
    let view = rig.view();
    assert!(!view.nodes.contains_key(&"n2".parse().unwrap()));
    assert!(view.nodes.contains_key(&"n3".parse().unwrap()));
    assert_eq!(rig.own(), [(block, Active)]);
}

#[test]
fn values_that_cannot_be_used_are_named_and_stop_nobody() {
    let bad = [
        ("nodes/n3", "{"),
        ("pools/broken", "{\"schema\":1}"),
        ("live/n3", "[]"),
        ("released/10.0.1.0-26", "x"),
        ("peers/tor", "{\"schema\":1}"),
        ("reflectors/n3", "{\"schema\":99}"),
        ("claims/n3/10.0.9.0-26", "{}"),
        ("claims/n3/nonsense", "{}"),
        ("config/extra", "{}"),
    ];
    let mut rig = Rig::new();
    for (key, value) in bad {
        rig.mem.put(key, value.as_bytes(), None).unwrap();
    }
    let mut rig = rig.started();
    assert_eq!(rig.own()[0].1, Active);
    for (key, _) in bad {
        let watched = key != "config/extra";
        assert_eq!(rig.has_problem(key), watched, "{key}: {:?}", rig.view().problems);
    }
    for (key, _) in bad {
        rig.mem.delete(key);
    }
    rig.settle();
    assert_eq!(rig.view().problems, [] as [String; 0]);
}

#[test]
fn a_good_value_stays_in_force_when_a_bad_one_follows() {
    let mut rig = cluster();
    let block = rig.block();
    for relist in [false, true] {
        rig.put(&Key::Config, b"{");
        rig.put(&Key::Node("n2".parse().unwrap()), b"{");
        rig.put(&Key::Claim("n2".parse().unwrap(), net("10.0.200.0/26")), b"{");
        rig.put(&Key::Pool("p4".parse().unwrap()), b"{");
        if relist {
            rig.seen = None;
        }
        rig.settle();
        assert_nothing_torn_down(&rig, block, "bad");
        assert!(rig.has_problem("nodes/n2") && rig.has_problem("config"));
    }
}

#[test]
fn a_bad_value_in_a_new_life_of_a_claim_is_not_the_old_one() {
    let mut rig = cluster();
    let key = Key::Claim("n2".parse().unwrap(), net("10.0.200.0/26"));
    for relist in [false, true] {
        rig.mem.delete(&key.to_string());
        rig.put(&key, b"{");
        if relist {
            rig.seen = None;
        }
        rig.settle();
        assert!(!rig.view().nodes[&"n2".parse().unwrap()].blocks.contains(&net("10.0.200.0/26")));
        rig.put_claim(2, net("10.0.200.0/26"), true);
        rig.settle();
        assert!(rig.view().nodes[&"n2".parse().unwrap()].blocks.contains(&net("10.0.200.0/26")));
    }
}

#[test]
fn an_own_claim_that_was_spoilt_is_written_again_while_it_is_in_use() {
    let mut rig = Rig::new().started();
    let block = rig.block();
    let key = rig.claims().remove(0);
    let good = rig.mem.entry(&key).unwrap();
    rig.mem.put(&key, b"{\"schema\":99}", None).unwrap();
    rig.settle();
    assert_eq!(rig.mem.entry(&key).unwrap().value, good.value);
    // The same over a restart, when no good value is remembered.
    rig.mem.put(&key, b"{\"schema\":99}", None).unwrap();
    rig.restart();
    rig.start();
    assert_eq!(rig.mem.entry(&key).unwrap().value, good.value);
    assert_eq!(rig.mem.entry(&key).unwrap().create_revision, good.create_revision);
    assert_eq!((rig.own(), rig.listed()), (vec![(block, Active)], vec![(block, BlockState::Active)]));
}

#[test]
fn problems_of_the_store_are_shown() {
    let mut rig = Rig::new().started();
    rig.step(Event::Store(StoreEvent::Problems { problems: vec!["a.yaml: broken".into()] }));
    assert!(rig.has_problem("a.yaml: broken"));
    rig.step(Event::Store(StoreEvent::Problems { problems: vec![] }));
    assert!(!rig.has_problem("a.yaml: broken"));
}

#[test]
fn a_full_store_is_said_once_changes_nothing_and_is_written_to_again_afterwards() {
    use podway_store::{StoreError, TAKES_NO_MORE};

    let mut rig = Rig::new().started();
    let (own, listed, view) = (rig.own(), rig.listed(), rig.view());
    rig.writing = Writing::Held;
    // A change that this node has to publish.
    let mut facts = super::rig::facts(1);
    facts.address_v4 = Some([192, 0, 9, 9].into());
    rig.step(Event::Facts(facts));
    for _ in 0..20 {
        rig.settle();
        while let Some(write) = rig.held.pop() {
            let full = StoreError::Full { endpoint: "e".into(), key: write.key, cause: "no space".into() };
            rig.step(Event::Written { id: write.id, result: Err(full) });
        }
        rig.pass(seconds(5));
    }
    let alarm = format!("e: etcd {TAKES_NO_MORE}");
    rig.step(Event::Store(StoreEvent::Problems { problems: vec![alarm] }));
    let said = rig.reports.iter().filter(|(_, text)| text.contains(TAKES_NO_MORE)).count();
    assert_eq!(said, 1, "{:?}", rig.reports);
    assert!(rig.has_problem(TAKES_NO_MORE));
    assert_eq!((rig.own(), rig.listed(), rig.view().nodes), (own, listed, view.nodes));

    rig.writing = Writing::Works;
    for write in std::mem::take(&mut rig.held) {
        rig.answer(&write);
    }
    rig.step(Event::Store(StoreEvent::Problems { problems: vec![] }));
    rig.settle();
    rig.pass(seconds(30));
    assert!(!rig.has_problem(TAKES_NO_MORE));
    let record = rig.view().nodes[&rig.me.node].record.clone().unwrap();
    assert_eq!(record.address_v4, Some([192, 0, 9, 9].into()));
}
