//! Flannel's nodes beside ours: whose subnet is whose, and what follows.

use std::net::Ipv4Addr;

use ipnet::IpNet;
use podway_model::cluster::{ClusterConfig, Pool, encode};
use podway_model::flannel::{LeaseAttrs, Mark, Prefix, Reach, Subnet};
use podway_model::ids::{MacAddr, Vni};
use podway_model::keys::Key;
use podway_model::names;
use podway_store::{Event as StoreEvent, Expect, Written};

use super::rig::{Rig, Writing, facts, instance, net, pool, seconds};
use crate::cluster::event::{Event, Operation};
use crate::view::NodeView;
use crate::view::OwnBlockState::{Active, Stranded};

const NETWORK: &str = r#"{"Network": "10.5.0.0/16", "Backend": {"Type": "vxlan"}}"#;
const DAY: u64 = 24 * 3600;

fn key(subnet: &str) -> String {
    Prefix::default().subnet(&subnet.parse().unwrap())
}

fn mac(last: u8) -> MacAddr {
    MacAddr([2, 0, 0, 0, 1, last])
}

/// What flannel writes on the node at 192.0.0.`i`.
fn flannels(i: u8) -> LeaseAttrs {
    let reach = Reach::Vxlan { vni: Vni::DEFAULT, v4: Some(mac(i)), v6: None };
    LeaseAttrs { public_v4: Some([192, 0, 0, i].into()), public_v6: None, reach, mark: None }
}

fn configure(rig: &mut Rig, config: serde_json::Value) {
    let config: ClusterConfig = serde_json::from_value(config).unwrap();
    rig.put(&Key::Config, &encode(&config));
}

/// Node `n1` before its first event, in flannel's network.
fn rig(network: &str) -> Rig {
    let mut rig = Rig::bare(podway_store::fake::mem::Mem::new());
    rig.put_pool("p4", &pool("10.5.0.0/16"));
    configure(&mut rig, serde_json::json!({"compat": {"flannel": {}}}));
    rig.mem.put(&Prefix::default().config(), network.as_bytes(), None).unwrap();
    rig
}

/// A node of flannel's takes a subnet.
fn take(rig: &mut Rig, subnet: &str, attrs: &LeaseAttrs) {
    let lease = rig.mem.grant(seconds(DAY));
    let made = rig.mem.put_if(&key(subnet), &attrs.encode(), Expect::Absent, Some(lease)).unwrap();
    assert!(matches!(made, Written::Done { .. }), "{made:?}");
}

/// All subnets that are taken, with who has them.
fn leases(rig: &Rig) -> Vec<(Subnet, LeaseAttrs)> {
    let subnets = Prefix::default().subnets();
    let entries = rig.mem.list(std::slice::from_ref(&subnets)).entries;
    let read = entries.iter().map(|entry| {
        let text = entry.key.strip_prefix(&subnets).unwrap();
        (text.parse().unwrap(), LeaseAttrs::parse(text, &entry.value).unwrap())
    });
    read.collect()
}

/// The one lease with our mark.
fn mine(rig: &Rig) -> (Subnet, LeaseAttrs) {
    let node = &rig.me.node;
    let mut all =
        leases(rig).into_iter().filter(|(_, attrs)| attrs.mark.as_ref().is_some_and(|m| m.node == *node));
    let (first, more) = (all.next().expect("a lease of ours"), all.next());
    assert_eq!(more, None);
    first
}

fn peer(rig: &Rig, name: &str) -> Option<NodeView> {
    rig.view().nodes.get(&name.parse().unwrap()).cloned()
}

#[test]
fn a_subnet_of_flannels_is_taken_before_blocks_are_claimed_in_it() {
    let mut rig = rig(NETWORK);
    take(&mut rig, "10.5.3.0-24", &flannels(7));
    rig.start();
    let (subnet, attrs) = mine(&rig);
    let own_mac = names::vtep_mac("n1", names::VXLAN_DEVICE);
    let expected = LeaseAttrs {
        public_v4: facts(1).address_v4,
        reach: Reach::Vxlan { vni: Vni::DEFAULT, v4: Some(own_mac), v6: None },
        mark: Some(Mark { node: rig.me.node.clone(), instance_id: rig.me.instance_id.clone() }),
        ..flannels(1)
    };
    assert_eq!(attrs, expected);
    assert_ne!(subnet.v4.addr(), Ipv4Addr::new(10, 5, 3, 0), "somebody has it");
    // The address to which flannel's nodes send is this node's own.
    assert_eq!(rig.own(), [(IpNet::new(subnet.v4.addr().into(), 26).unwrap(), Active)]);
    assert_eq!(rig.view().tunnel_v4, Some(subnet.v4.addr()));
    let order: Vec<&str> = rig.asked.iter().map(|write| write.key.split('/').next().unwrap()).collect();
    let lease = order.iter().position(|key| key.is_empty()).unwrap();
    assert!(lease < order.iter().position(|key| *key == "claims").unwrap(), "{order:?}");
    // More blocks come from the same subnet, and from nowhere else when it is full.
    let first = rig.block();
    for (at, expected) in [(0, 2), (64, 3), (128, 4), (192, 4)] {
        let block = IpNet::new(Ipv4Addr::from(u32::from(subnet.v4.addr()) + at).into(), 26).unwrap();
        rig.pods.insert(block, (60, 0));
        rig.settle();
        let own = rig.own();
        assert_eq!(own.len(), expected, "{own:?}");
        assert!(own.iter().all(|(block, state)| subnet.overlaps(*block) && *state == Active));
    }
    assert!(rig.has_problem("no free block left in p4"));
    assert_eq!(rig.own()[0].0, first);
    let claims = rig.asked.iter().filter(|write| write.key.starts_with("claims/"));
    for write in claims {
        let Operation::PutGuarded(_, _, guards) = &write.operation else { panic!("{write:?}") };
        assert_eq!(guards[1].key, Prefix::default().subnet(&subnet), "{write:?}");
    }
}

#[test]
fn nodes_of_flannels_are_nodes_for_as_long_as_their_leases_stand() {
    let mut rig = rig(NETWORK).started();
    assert_eq!(peer(&rig, "flannel-192.0.0.7"), None);
    take(&mut rig, "10.5.3.0-24", &flannels(7));
    rig.settle();
    let node = peer(&rig, "flannel-192.0.0.7").unwrap();
    let record = node.record.unwrap();
    assert_eq!(node.blocks, [net("10.5.3.0/24")].into());
    assert_eq!(
        (record.address_v4, record.tunnel_v4),
        (Some([192, 0, 0, 7].into()), Some([10, 5, 3, 0].into()))
    );
    assert_eq!((record.vtep_mac, record.version.as_str()), (Some(mac(7)), "flannel"));
    // Flannel makes a new MAC address each time it starts.
    rig.mem.put(&key("10.5.3.0-24"), &flannels(8).encode(), None).unwrap();
    rig.settle();
    let moved = peer(&rig, "flannel-192.0.0.8").unwrap();
    assert_eq!((moved.record.unwrap().vtep_mac, peer(&rig, "flannel-192.0.0.7")), (Some(mac(8)), None));
    rig.mem.delete(&key("10.5.3.0-24"));
    rig.settle();
    assert_eq!(peer(&rig, "flannel-192.0.0.8"), None);
}

#[test]
fn a_lease_of_flannels_that_cannot_be_read_or_reached_keeps_its_subnet_and_is_named() {
    let mut rig = rig(NETWORK).started();
    rig.mem.put(&key("10.5.3.0-24"), b"{}", None).unwrap();
    take(&mut rig, "10.5.4.0-24", &LeaseAttrs { reach: Reach::HostGw, ..flannels(7) });
    rig.mem.put("/coreos.com/network/subnets/x", b"{}", None).unwrap();
    rig.settle();
    assert!(rig.has_problem("10.5.3.0-24: ignoring it, its subnet stays taken"));
    assert!(rig.has_problem("10.5.4.0-24: HostGw found, Vxlan"));
    assert!(rig.has_problem("subnets/x: ignoring it"));
    assert_eq!(rig.view().nodes.len(), 1);
}

#[test]
fn the_lease_that_flannel_left_on_this_node_is_taken_over() {
    let mut rig = rig(NETWORK);
    take(&mut rig, "10.5.9.0-24", &flannels(1));
    rig.start();
    let (subnet, _) = mine(&rig);
    assert_eq!((leases(&rig).len(), subnet.to_string().as_str()), (1, "10.5.9.0-24"));
    assert_eq!(rig.own(), [(net("10.5.9.0/26"), Active)]);
    // Flannel's daemon starts on this node all the same: it writes whatever stands there.
    rig.mem.put(&key("10.5.9.0-24"), &flannels(1).encode(), None).unwrap();
    rig.settle();
    assert!(rig.has_warned("it runs on this node too, end it"));
    assert!(mine(&rig).1.mark.is_some());
    assert_eq!(rig.own(), [(net("10.5.9.0/26"), Active)]);
    assert_eq!(peer(&rig, "flannel-192.0.0.1"), None);
}

#[test]
fn no_block_is_lost_to_this_nodes_own_lease_before_its_address_is_known() {
    let mut rig = rig(NETWORK).started();
    let own = rig.own();
    rig.mem.put(&key(&mine(&rig).0.to_string()), &flannels(1).encode(), None).unwrap();
    rig.restart();
    rig.settle();
    rig.start();
    assert!(!rig.has_warned("lost"), "{:?}", rig.reports);
    assert_eq!((rig.own(), mine(&rig).1.public_v4), (own, facts(1).address_v4));
}

#[test]
fn a_lease_is_renewed_after_half_of_its_time_and_after_a_restart() {
    let mut rig = rig(NETWORK).started();
    let (subnet, _) = mine(&rig);
    let at = |rig: &Rig| rig.mem.entry(&Prefix::default().subnet(&subnet)).unwrap().mod_revision;
    let first = at(&rig);
    rig.pass(seconds(DAY / 2 - 60));
    assert_eq!(at(&rig), first);
    rig.pass(seconds(120));
    let second = at(&rig);
    assert!(second > first);
    rig.pass(seconds(3 * DAY));
    assert_eq!((mine(&rig).0, rig.own().len()), (subnet, 1));
    let before = at(&rig);
    rig.restart();
    rig.start();
    assert!(at(&rig) > before, "how much is left is not known");
    assert_eq!(rig.own()[0].1, Active);
}

#[test]
fn an_expired_lease_is_made_again_while_its_subnet_is_free() {
    let mut rig = rig(NETWORK).started();
    let (before, own) = (mine(&rig), rig.own());
    rig.disconnect();
    rig.pass(seconds(2 * DAY));
    assert_eq!(leases(&rig), [], "it expired");
    assert_eq!(rig.own(), own, "nothing is torn down");
    rig.reconnect();
    assert_eq!((mine(&rig), rig.own()), (before, own));
}

#[test]
fn a_block_whose_subnet_flannel_took_is_lost_and_its_pods_are_stranded() {
    let mut rig = rig(NETWORK).started();
    let (subnet, _) = mine(&rig);
    let block = rig.block();
    rig.pods.insert(block, (3, 0));
    rig.settle();
    rig.disconnect();
    rig.pass(seconds(2 * DAY));
    take(&mut rig, &subnet.to_string(), &flannels(7));
    rig.reconnect();
    rig.pass(seconds(10));
    let own = rig.own();
    assert!(own.contains(&(block, Stranded)), "{own:?}");
    assert!(rig.has_warned("flannel-192.0.0.7 has flannel's subnet"));
    assert_eq!(rig.claim(block), None);
    let (other, _) = mine(&rig);
    assert_ne!(other, subnet);
    assert!(own.iter().any(|(block, state)| *state == Active && other.overlaps(*block)), "{own:?}");
    assert_eq!(peer(&rig, "flannel-192.0.0.7").unwrap().blocks, [IpNet::from(subnet.v4)].into());
    // Free again: not this node's any more, which has another one.
    rig.mem.delete(&key(&subnet.to_string()));
    rig.settle();
    assert!(rig.own().contains(&(block, Stranded)));
}

#[test]
fn a_lease_that_goes_unseen_keeps_a_claim_from_being_made() {
    let mut rig = rig(NETWORK);
    rig.writing = Writing::Held;
    rig.start();
    for _ in 0..3 {
        let place = rig.held.iter().position(|write| !write.key.starts_with("claims/")).unwrap();
        let write = rig.held.remove(place);
        rig.answer(&write);
        rig.settle();
    }
    let write = rig.held.iter().find(|write| write.key.starts_with("claims/")).unwrap().clone();
    // The watch has not shown it yet.
    rig.flannel = false;
    let (subnet, _) = mine(&rig);
    rig.mem.delete(&key(&subnet.to_string()));
    take(&mut rig, &subnet.to_string(), &flannels(7));
    rig.answer(&write);
    assert_eq!(rig.mem.entry(&write.key), None);
}

#[test]
fn a_subnet_that_somebody_takes_at_the_same_moment_is_left_to_him() {
    let mut rig = rig(NETWORK);
    rig.writing = Writing::Held;
    rig.start();
    let place = |rig: &Rig| rig.held.iter().position(|write| write.key.starts_with('/'));
    while place(&rig).is_none() {
        let write = rig.held.remove(0);
        rig.answer(&write);
        rig.settle();
    }
    let wanted = rig.held.remove(place(&rig).unwrap());
    let subnet = wanted.key.strip_prefix(&Prefix::default().subnets()).unwrap().to_owned();
    take(&mut rig, &subnet, &flannels(7));
    rig.writing = Writing::Works;
    rig.answer(&wanted);
    rig.settle();
    rig.pass(seconds(5));
    assert_ne!(mine(&rig).0.to_string(), subnet);
    assert_eq!(rig.own().len(), 1);
    assert!(!rig.own()[0].0.contains(&net("10.5.0.0/16")) && mine(&rig).0.overlaps(rig.own()[0].0));
}

#[test]
fn of_overlapping_leases_the_later_one_gives_way() {
    // Flannel takes subnets of other lengths after its configuration has changed.
    let mut rig = rig(NETWORK).started();
    let (first, _) = mine(&rig);
    let block = rig.block();
    let wide = IpNet::new(first.v4.addr().into(), 23).unwrap().trunc();
    let wide = format!("{}-23", wide.addr());
    take(&mut rig, &wide, &flannels(7));
    rig.settle();
    assert_eq!((mine(&rig).0, rig.own()), (first, vec![(block, Active)]), "the first one stays");
    assert!(rig.has_problem("overlaps an earlier lease of Podway's"));
    assert_eq!(peer(&rig, "flannel-192.0.0.7"), None);
    // The same the other way round.
    let mut rig = self::rig(NETWORK);
    rig.writing = Writing::Held;
    rig.start();
    while !rig.held.iter().any(|write| write.key.starts_with('/')) {
        let write = rig.held.remove(0);
        rig.answer(&write);
        rig.settle();
    }
    take(&mut rig, &wide, &flannels(7));
    take(&mut rig, &first.to_string(), &flannels(1));
    rig.settle();
    rig.writing = Writing::Works;
    for write in std::mem::take(&mut rig.held) {
        rig.answer(&write);
    }
    rig.settle();
    rig.pass(seconds(5));
    let (second, _) = mine(&rig);
    assert!(second != first && rig.has_warned("overlaps an earlier lease of flannel's"), "{second}");
    assert!(rig.own().iter().all(|(block, state)| second.overlaps(*block) && *state == Active));
}

#[test]
fn nodes_of_ours_and_flannels_never_show_one_block() {
    let mut rig = rig(NETWORK);
    rig.put_node(5);
    rig.put_claim(5, net("10.5.3.64/26"), true);
    rig.put_claim(5, net("10.5.8.0/26"), true);
    rig.start();
    let blocks = |rig: &Rig| peer(rig, "n5").unwrap().blocks;
    assert_eq!(blocks(&rig).len(), 2);
    take(&mut rig, "10.5.3.0-24", &flannels(7));
    rig.settle();
    assert_eq!(blocks(&rig), [net("10.5.8.0/26")].into());
    assert_eq!(peer(&rig, "flannel-192.0.0.7").unwrap().blocks, [net("10.5.3.0/24")].into());
    // A lease of n5 itself is no node of flannel's.
    let mark = Mark { node: "n5".parse().unwrap(), instance_id: instance(5).parse().unwrap() };
    take(&mut rig, "10.5.8.0-24", &LeaseAttrs { mark: Some(mark), ..flannels(5) });
    rig.settle();
    assert_eq!((blocks(&rig).len(), peer(&rig, "flannel-192.0.0.5")), (1, None));
}

#[test]
fn what_disagrees_with_flannels_configuration_is_named_and_nothing_is_claimed() {
    let vxlan = |rest: &str| format!(r#"{{"Network": "10.5.0.0/16", "Backend": {{"Type": "vxlan"{rest}}}}}"#);
    let cases = [
        (vxlan(r#", "VNI": 2"#), pool("10.5.0.0/16"), "vxlan.vni 1 found, flannel's 2 expected"),
        (vxlan(r#", "Port": 4789"#), pool("10.5.0.0/16"), "vxlan.port 8472 found, flannel's 4789 expected"),
        (
            vxlan(r#", "DirectRouting": true"#),
            pool("10.5.0.0/16"),
            "encapsulation vxlan, flannel's configuration means vxlanCrossSubnet",
        ),
        (NETWORK.replace("vxlan", "host-gw"), pool("10.5.0.0/16"), "flannel's configuration means none"),
        (NETWORK.replace("vxlan", "udp"), pool("10.5.0.0/16"), "Backend.Type: udp found"),
        (vxlan(""), pool("10.5.0.0/17"), "no pool of this node holds flannel's network 10.5.0.0/16"),
        (
            vxlan(""),
            Pool { block_size: Some(23), ..pool("10.5.0.0/16") },
            "blocks of /23, larger than flannel's subnets of /24",
        ),
    ];
    for (network, pool, expected) in cases {
        let mut rig = rig(&network);
        rig.put_pool("p4", &pool);
        rig.start();
        assert!(rig.has_problem(expected), "{expected}: {:?}", rig.view().problems);
        assert_eq!((rig.own(), leases(&rig)), (vec![], vec![]), "{expected}");
    }
    let mut rig = rig(NETWORK);
    rig.mem.delete(&Prefix::default().config());
    rig.start();
    assert!(rig.has_problem("/coreos.com/network/config is not there"));
    assert_eq!(rig.own(), []);
    rig.mem.put(&Prefix::default().config(), NETWORK.as_bytes(), None).unwrap();
    rig.settle();
    assert_eq!(rig.own().len(), 1);
}

#[test]
fn a_store_that_holds_no_keys_of_flannels_is_named() {
    let mut rig = rig(NETWORK);
    rig.flannel = false;
    rig.start();
    rig.step(Event::Flannel(Prefix::default(), Err("files hold nothing of flannel's".into())));
    rig.settle();
    assert!(rig.has_problem("files hold nothing of flannel's") && rig.view().synced);
    assert_eq!(rig.own(), []);
}

#[test]
fn keys_of_flannels_that_may_not_be_read_are_named() {
    let mut rig = rig(NETWORK);
    rig.flannel = false;
    rig.start();
    let reason = "permission denied".to_owned();
    rig.step(Event::Flannel(Prefix::default(), Ok(StoreEvent::Unavailable { reason })));
    rig.settle();
    assert!(rig.has_problem("flannel's keys below /coreos.com/network cannot be read: permission denied"));
    assert_eq!((rig.view().synced, rig.view().store.as_str()), (false, "in sync, but for flannel's keys"));
    rig.step(Event::Flannel(Prefix::default(), Ok(StoreEvent::Available)));
    rig.flannel = true;
    rig.settle();
    assert!(!rig.has_problem("flannel") && rig.view().synced);
}

#[test]
fn without_compat_flannels_nodes_go_and_blocks_stay() {
    let mut rig = rig(NETWORK);
    take(&mut rig, "10.5.3.0-24", &flannels(7));
    rig.start();
    let (own, subnet) = (rig.own(), mine(&rig).0);
    assert!(peer(&rig, "flannel-192.0.0.7").is_some());
    configure(&mut rig, serde_json::json!({}));
    rig.settle();
    assert_eq!((rig.own(), peer(&rig, "flannel-192.0.0.7")), (own.clone(), None));
    assert!(rig.view().synced);
    rig.pass(seconds(2 * DAY));
    assert_eq!((leases(&rig), rig.own()), (vec![], own.clone()), "leases end by themselves");
    // On again: what was known is not believed.
    rig.seen_flannel = None;
    configure(&mut rig, serde_json::json!({"compat": {"flannel": {}}}));
    rig.settle();
    assert_eq!((mine(&rig).0, rig.own()), (subnet, own));
}

#[test]
fn nothing_is_in_sync_before_flannels_keys_were_read() {
    let mut rig = rig(NETWORK);
    rig.flannel = false;
    rig.start();
    assert!(!rig.view().synced);
    assert_eq!(rig.own(), []);
    rig.flannel = true;
    rig.settle();
    assert!(rig.view().synced);
    assert_eq!(rig.own().len(), 1);
}

#[test]
fn blocks_of_before_stay_and_their_subnet_is_taken_if_it_is_free() {
    let mut rig = rig(NETWORK);
    configure(&mut rig, serde_json::json!({}));
    rig.start();
    let block = rig.block();
    configure(&mut rig, serde_json::json!({"compat": {"flannel": {}}}));
    rig.settle();
    let (subnet, _) = mine(&rig);
    assert!(subnet.overlaps(block), "{subnet} {block}");
    assert!(rig.own().contains(&(block, Active)));
}

#[test]
fn both_families_are_one_lease_and_two_peers() {
    const DUAL: &str = r#"{"Network": "10.5.0.0/16", "EnableIPv6": true, "IPv6Network": "fd00:5::/112",
        "IPv6SubnetLen": 120, "Backend": {"Type": "vxlan"}}"#;
    let mut rig = rig(DUAL);
    rig.put_pool("p6", &pool("fd00:5::/112"));
    let reach = Reach::Vxlan { vni: Vni::DEFAULT, v4: Some(mac(7)), v6: Some(mac(8)) };
    let theirs = LeaseAttrs { public_v6: "fd01::7".parse().ok(), reach, ..flannels(7) };
    take(&mut rig, "10.5.3.0-24&fd00:5::300-120", &theirs);
    let mut both = facts(1);
    both.address_v6 = "fd01::1".parse().ok();
    rig.start();
    rig.step(Event::Facts(both));
    rig.settle();
    let v6 = peer(&rig, "flannel-192.0.0.7-v6").unwrap();
    let record = v6.record.unwrap();
    assert_eq!(
        (record.address_v4, record.address_v6, record.vtep_mac),
        (None, theirs.public_v6, Some(mac(8)))
    );
    assert_eq!(v6.blocks, [net("fd00:5::300/120")].into());
    assert_eq!(peer(&rig, "flannel-192.0.0.7").unwrap().blocks, [net("10.5.3.0/24")].into());
}
