//! Tables of known cases: order of choice, families, requested addresses, refusals.

use super::*;
use podway_model::ids::NetworkName;

const MINUTE: Duration = Duration::from_secs(60);

fn node(text: &str) -> NodeFile {
    let parts: serde_json::Value = serde_json::from_str(text).unwrap();
    let mut file = serde_json::json!({
        "schema": 1,
        "bootId": "00000000-0000-0000-0000-000000000001",
        "instanceId": "00000000-0000-0000-0000-000000000002",
        "generation": 1, "node": "n1", "confirmed": true, "mtu": 1500, "policy": "none",
        "policyTimeout": "undo", "masquerade": true, "tunnelAddresses": [], "pools": [], "blocks": []
    });
    for (key, value) in parts.as_object().unwrap() {
        file[key] = value.clone();
    }
    serde_json::from_value(file).unwrap()
}

fn small() -> NodeFile {
    node(
        r#"{"pools":[{"name":"default","cidr":"10.0.0.0/16","assignment":"automatic"}],
            "blocks":[{"cidr":"10.0.0.0/30","pool":"default","state":"active"}],
            "tunnelAddresses":["10.0.0.0"]}"#,
    )
}

fn dual() -> NodeFile {
    node(
        r#"{"pools":[{"name":"v4","cidr":"10.0.0.0/16","assignment":"automatic"},
                     {"name":"v6","cidr":"fd00::/64","assignment":"automatic"},
                     {"name":"fixed","cidr":"10.9.0.0/16","assignment":"manual"}],
            "blocks":[{"cidr":"10.0.0.0/26","pool":"v4","state":"active"},
                      {"cidr":"fd00::/127","pool":"v6","state":"active"},
                      {"cidr":"10.9.0.7/32","pool":"fixed","state":"active"}],
            "tunnelAddresses":["10.0.0.0","fd00::"]}"#,
    )
}

fn attachment(name: &str) -> Attachment {
    Attachment::new(name.parse().unwrap(), "eth0".parse().unwrap())
}

fn request(name: &str) -> Request {
    let network: NetworkName = "podway".parse().unwrap();
    Request::new(attachment(name), network)
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// Leases as the shell does, and says which addresses came out and which of them are dirty.
fn lease(
    ledger: &mut Ledger,
    node: &NodeFile,
    request: &Request,
    now: Duration,
) -> (Vec<IpAddr>, Vec<IpAddr>) {
    let plan = ledger.plan(node, request, now).unwrap();
    let Plan::Make { lease, dirty, replaces } = plan else { panic!("{plan:?}") };
    if replaces {
        free(ledger, request.attachment.container_id.as_str(), now, Condition::Dirty);
    }
    ledger.apply(&Entry::Lease(lease.clone())).unwrap();
    (lease.ips().collect(), dirty)
}

fn free(ledger: &mut Ledger, name: &str, at: Duration, condition: Condition) {
    ledger.apply(&Entry::Free { attachment: attachment(name), at, condition }).unwrap();
}

#[test]
fn all_addresses_of_a_block_but_the_tunnel_address_are_leased() {
    let (mut ledger, node) = (Ledger::default(), small());
    for (name, expected) in [("a", "10.0.0.1"), ("b", "10.0.0.2"), ("c", "10.0.0.3")] {
        assert_eq!(lease(&mut ledger, &node, &request(name), MINUTE).0, [ip(expected)]);
    }
    let refusal = ledger.plan(&node, &request("d"), MINUTE).unwrap_err();
    assert_eq!(
        refusal.to_string(),
        "no free IPv4 address on this node: pool default has 3 of 3 addresses leased in 1 blocks"
    );
}

#[test]
fn order_of_choice() {
    // Freed in this order: 1 (clean), 2 (dirty), 3 (clean).
    let (mut ledger, node) = (Ledger::default(), small());
    for name in ["a", "b", "c"] {
        lease(&mut ledger, &node, &request(name), Duration::ZERO);
    }
    let at = |seconds| Duration::from_secs(seconds);
    free(&mut ledger, "a", at(100), Condition::Clean);
    free(&mut ledger, "b", at(101), Condition::Dirty);
    free(&mut ledger, "c", at(150), Condition::Clean);
    let next = |now| match ledger.plan(&node, &request("x"), now).unwrap() {
        Plan::Make { lease, dirty, .. } => (lease.addresses[0].address, !dirty.is_empty()),
        keep => panic!("{keep:?}"),
    };
    assert_eq!(next(at(150)), (ip("10.0.0.1"), false), "all in quarantine: the oldest clean one");
    assert_eq!(next(at(160)), (ip("10.0.0.1"), false), "only 1 is out of quarantine");
    let mut without = ledger.clone();
    lease(&mut without, &node, &request("y"), at(160));
    let then = |now| match without.plan(&node, &request("x"), now).unwrap() {
        Plan::Make { lease, dirty, .. } => (lease.addresses[0].address, !dirty.is_empty()),
        keep => panic!("{keep:?}"),
    };
    assert_eq!(then(at(160)), (ip("10.0.0.3"), false), "2 and 3 in quarantine: clean before dirty");
    assert_eq!(then(at(161)), (ip("10.0.0.2"), true), "out of quarantine before clean in quarantine");
    assert_eq!(then(at(210)), (ip("10.0.0.3"), false), "both out of quarantine: clean before dirty");
}

#[test]
fn another_block_comes_before_quarantine_and_never_used_before_used() {
    let mut node = small();
    let mut ledger = Ledger::default();
    for name in ["a", "b", "c"] {
        lease(&mut ledger, &node, &request(name), Duration::ZERO);
    }
    free(&mut ledger, "a", Duration::ZERO, Condition::Clean);
    let mut second = node.blocks[0].clone();
    second.cidr = "10.0.0.4/30".parse().unwrap();
    node.blocks.push(second);
    assert_eq!(lease(&mut ledger, &node, &request("d"), MINUTE / 2).0, [ip("10.0.0.4")]);
    assert_eq!(lease(&mut ledger, &node, &request("e"), MINUTE * 2).0, [ip("10.0.0.5")]);
}

#[test]
fn a_draining_block_gives_nothing() {
    let mut node = small();
    node.blocks[0].state = BlockState::Draining;
    let refusal = Ledger::default().plan(&node, &request("a"), MINUTE).unwrap_err();
    assert!(matches!(refusal, Refusal::Exhausted { family: Family::V4, .. }), "{refusal}");
    let mut asks = request("a");
    asks.addresses = vec![ip("10.0.0.1")];
    assert!(matches!(Ledger::default().plan(&node, &asks, MINUTE), Err(Refusal::Outside { .. })));
}

#[test]
fn dual_stack_is_all_or_nothing() {
    let (mut ledger, node) = (Ledger::default(), dual());
    assert_eq!(lease(&mut ledger, &node, &request("a"), MINUTE).0, [ip("10.0.0.1"), ip("fd00::1")]);
    let refusal = ledger.plan(&node, &request("b"), MINUTE).unwrap_err();
    assert!(matches!(&refusal, Refusal::Exhausted { family: Family::V6, .. }), "{refusal}");
    assert!(refusal.to_string().contains("pool v6 has 1 of 1"), "{refusal}");
}

#[test]
fn a_family_without_a_block_on_this_node_is_left_out() {
    let mut node = dual();
    node.blocks.retain(|block| block.cidr.addr().is_ipv4());
    assert_eq!(lease(&mut Ledger::default(), &node, &request("a"), MINUTE).0, [ip("10.0.0.1")]);
    node.blocks.clear();
    let refusal = Ledger::default().plan(&node, &request("a"), MINUTE).unwrap_err();
    assert!(refusal.to_string().contains("pool v4 has no block on this node yet"), "{refusal}");
    node.pools.clear();
    assert_eq!(Ledger::default().plan(&node, &request("a"), MINUTE), Err(Refusal::NoPool));
}

#[test]
fn requested_addresses() {
    let (mut ledger, node) = (Ledger::default(), dual());
    let ask = |addresses: &[&str]| {
        let mut request = request("a");
        request.addresses = addresses.iter().map(|a| ip(a)).collect();
        request
    };
    let refuse = |ledger: &Ledger, addresses: &[&str]| {
        ledger.plan(&node, &ask(addresses), MINUTE).unwrap_err().to_string()
    };
    assert!(refuse(&ledger, &["10.0.0.0"]).contains("reserved for this node's tunnels"));
    assert_eq!(
        refuse(&ledger, &["10.0.1.1"]),
        "requested address 10.0.1.1: in no block of this node (it has 10.0.0.0/26, 10.9.0.7/32)"
    );
    assert!(refuse(&ledger, &["10.0.0.5", "10.0.0.6"]).contains("at most one per family"));
    assert_eq!(lease(&mut ledger, &node, &ask(&["10.0.0.9"]), MINUTE).0, [ip("10.0.0.9"), ip("fd00::1")]);
    let mut other = request("b");
    other.addresses = vec![ip("10.0.0.9")];
    assert_eq!(
        ledger.plan(&node, &other, MINUTE).unwrap_err().to_string(),
        "requested address 10.0.0.9: leased to a/eth0"
    );
}

#[test]
fn a_manual_pool_serves_only_who_asks_by_address() {
    let node = dual();
    let mut asks = request("a");
    asks.addresses = vec![ip("10.9.0.7")];
    assert_eq!(lease(&mut Ledger::default(), &node, &asks, MINUTE).0, [ip("10.9.0.7"), ip("fd00::1")]);
}

#[test]
fn wanted_pools_limit_the_choice() {
    let node = dual();
    let mut asks = request("a");
    asks.pools = vec!["v4".parse().unwrap()];
    assert_eq!(lease(&mut Ledger::default(), &node, &asks, MINUTE).0, [ip("10.0.0.1")]);
    asks.pools = vec!["nowhere".parse().unwrap()];
    let refusal = Ledger::default().plan(&node, &asks, MINUTE).unwrap_err().to_string();
    assert_eq!(refusal, "pool nowhere: not a pool of this node (it has v4, v6, fixed)");
}

#[test]
fn a_lease_that_fits_is_kept_and_one_that_does_not_is_replaced() {
    let (mut ledger, mut node) = (Ledger::default(), dual());
    lease(&mut ledger, &node, &request("a"), MINUTE);
    assert!(matches!(ledger.plan(&node, &request("a"), MINUTE), Ok(Plan::Keep(_))));
    let mut asks = request("a");
    asks.addresses = vec![ip("10.0.0.9")];
    // The only IPv6 address is its own: it is taken over, and conntrack knows it.
    let (addresses, dirty) = lease(&mut ledger, &node, &asks, MINUTE);
    assert_eq!((addresses, dirty), (vec![ip("10.0.0.9"), ip("fd00::1")], vec![ip("fd00::1")]));
    node.blocks[0].state = BlockState::Draining;
    assert!(ledger.plan(&node, &request("a"), MINUTE).is_err(), "its block is draining");
}

#[test]
fn reserved_addresses_are_given_only_to_who_asks() {
    let (mut ledger, node) = (Ledger::default(), dual());
    let reserved = || vec!["10.0.0.0/28".parse().unwrap(), "10.0.0.20/30".parse().unwrap()];
    let ask =
        |name: &str| Request { reserved: reserved(), pools: vec!["v4".parse().unwrap()], ..request(name) };
    let mut given: Vec<IpAddr> = vec![];
    for i in 0..44 {
        given.extend(lease(&mut ledger, &node, &ask(&format!("p{i}")), MINUTE).0);
    }
    assert_eq!((given[0], given[4], given[43]), (ip("10.0.0.16"), ip("10.0.0.24"), ip("10.0.0.63")));
    assert!(matches!(ledger.plan(&node, &ask("more"), MINUTE), Err(Refusal::Exhausted { .. })));
    // Freed ones count too: they were leased before the range was reserved.
    ledger.apply(&Entry::Freed { address: ip("10.0.0.5"), at: MINUTE, condition: Condition::Clean }).unwrap();
    assert!(matches!(ledger.plan(&node, &ask("more"), MINUTE * 9), Err(Refusal::Exhausted { .. })));
    let asks = Request { addresses: vec![ip("10.0.0.5")], ..ask("more") };
    assert_eq!(lease(&mut ledger, &node, &asks, MINUTE).0, [ip("10.0.0.5")]);
    // A reserved network as large as an IPv6 one costs nothing.
    let mut wide = dual();
    wide.blocks[1].cidr = "fd00::/64".parse().unwrap();
    let all = Request { reserved: vec!["fd00::/65".parse().unwrap()], ..request("w") };
    assert_eq!(lease(&mut Ledger::default(), &wide, &all, MINUTE).0[1], ip("fd00::8000:0:0:0"));
}

#[test]
fn ranges_limit_the_choice() {
    let (mut ledger, node) = (Ledger::default(), dual());
    let ranges = vec![(ip("10.0.0.9"), ip("10.0.0.10")), (ip("10.1.0.0"), ip("10.1.0.9"))];
    let ask =
        |name: &str| Request { ranges: ranges.clone(), pools: vec!["v4".parse().unwrap()], ..request(name) };
    assert_eq!(lease(&mut ledger, &node, &ask("a"), MINUTE).0, [ip("10.0.0.9")]);
    assert_eq!(lease(&mut ledger, &node, &ask("b"), MINUTE).0, [ip("10.0.0.10")]);
    assert!(matches!(ledger.plan(&node, &ask("c"), MINUTE), Err(Refusal::Exhausted { .. })));
    let asks = Request { addresses: vec![ip("10.0.0.11")], ..ask("c") };
    assert!(matches!(ledger.plan(&node, &asks, MINUTE), Err(Refusal::Outside { .. })));
    // A lease outside of the ranges does not fit any more.
    lease(&mut ledger, &node, &Request { pools: vec!["v4".parse().unwrap()], ..request("d") }, MINUTE);
    free(&mut ledger, "a", MINUTE, Condition::Clean);
    assert_eq!(lease(&mut ledger, &node, &ask("d"), MINUTE * 3).0, [ip("10.0.0.9")]);
}

#[test]
fn a_pool_with_less_than_a_tenth_left_is_nearly_full() {
    let (mut ledger, node) = (Ledger::default(), dual());
    let ask = |name: &str| Request { pools: vec!["v4".parse().unwrap()], ..request(name) };
    for i in 0..57 {
        assert!(!ledger.is_nearly_full(&node, &ask("x"), MINUTE), "{i}");
        lease(&mut ledger, &node, &ask(&format!("p{i}")), MINUTE);
    }
    assert!(ledger.is_nearly_full(&node, &ask("x"), MINUTE));
}

#[test]
fn usage_of_a_block() {
    let (mut ledger, node) = (Ledger::default(), small());
    let block = node.blocks[0].cidr;
    let usage = |ledger: &Ledger, now| ledger.usage(block, &node.tunnel_addresses, now);
    assert_eq!(usage(&ledger, MINUTE), BlockUsage { capacity: 3, ..BlockUsage::default() });
    lease(&mut ledger, &node, &request("a"), MINUTE);
    assert!(!usage(&ledger, MINUTE).is_idle());
    free(&mut ledger, "a", MINUTE, Condition::Dirty);
    let inside = usage(&ledger, MINUTE);
    assert_eq!((inside.leased, inside.quarantined, inside.dirty, inside.available()), (0, 1, 1, 2));
    assert!(!inside.is_idle());
    assert!(usage(&ledger, MINUTE * 2).is_idle());
    ledger.apply(&Entry::Forget(block)).unwrap();
    assert_eq!(usage(&ledger, MINUTE).dirty, 0);
}

#[test]
fn a_large_block_costs_no_more_than_its_leases() {
    let mut node = dual();
    node.blocks[1].cidr = "fd00::/64".parse().unwrap();
    assert_eq!(lease(&mut Ledger::default(), &node, &request("a"), MINUTE).0[1], ip("fd00::1"));
    assert_eq!(Ledger::default().usage(node.blocks[1].cidr, &[], MINUTE).capacity, u64::MAX);
}

#[test]
fn entries_that_contradict_are_refused() {
    let (mut ledger, node) = (Ledger::default(), small());
    lease(&mut ledger, &node, &request("a"), MINUTE);
    let mut again = ledger.lease_of(&attachment("a")).unwrap().clone();
    assert!(matches!(ledger.apply(&Entry::Lease(again.clone())), Err(Contradiction::SecondLease(_))));
    again.attachment = attachment("b");
    assert!(matches!(ledger.apply(&Entry::Lease(again)), Err(Contradiction::Taken { .. })));
    let end = Entry::Free { attachment: attachment("b"), at: MINUTE, condition: Condition::Clean };
    assert!(matches!(ledger.apply(&end), Err(Contradiction::NoLease(_))));
}
