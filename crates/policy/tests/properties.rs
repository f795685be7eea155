//! Random clusters and flows: oracle and tables must agree. And they must not, when something is planted.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    unreachable_pub,
    reason = "tests, and modules of their own"
)]

mod common;

use common::World;
use common::judges::{Tables, compile, disagreement, engine, passes, path, tables_allow};
use common::random::{FlowSeed, flow_seed, seeded_flow, world};
use common::tables::count;
use podway_nft::eval::{Connection, Packet};
use podway_policy::Limits;
use podway_policy::oracle::{Flow, Traffic};
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;

fn flows(world: &World, seeds: &[FlowSeed]) -> Vec<Flow> {
    seeds.iter().filter_map(|seed| seeded_flow(world, seed)).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(768))]

    #[test]
    fn tables_agree_with_the_oracle(world in world(), seeds in prop::collection::vec(flow_seed(), 1..60)) {
        let tables = compile(&world, Limits::default());
        for flow in flows(&world, &seeds) {
            let difference = disagreement(&tables, &world, &flow);
            prop_assert!(difference.is_none(), "{}", difference.unwrap_or_default());
        }
    }

    /// The engine gives the oracle's reasons, to the policy and the rule; the first policy by name counts.
    #[test]
    fn explanations_are_the_oracles(world in world(), seeds in prop::collection::vec(flow_seed(), 1..60)) {
        let mut ordered = world.clone();
        ordered.policies.sort_by_key(|p| (p.metadata.namespace.clone(), p.metadata.name.clone()));
        let engine = engine(&world, "n1", Limits::default());
        for flow in flows(&world, &seeds) {
            prop_assert_eq!(engine.explain(&flow), ordered.cluster().judge(&flow), "{:?}", flow);
        }
    }

    /// With limits that everything exceeds, whatever a policy isolates is closed, and nothing is open that the
    /// oracle denies.
    #[test]
    fn above_the_limits_it_is_closed(world in world(), seeds in prop::collection::vec(flow_seed(), 1..40)) {
        let tables = compile(&world, Limits { elements: 0, ranges: 0 });
        for table in tables.values() {
            for set in ["any_any", "any_proto", "any_port", "any_range", "ok_any", "ok_proto", "ok_port", "ok_range"] {
                prop_assert_eq!(count(table, set), 0, "{}", set);
            }
        }
        for flow in flows(&world, &seeds) {
            let allowed = world.cluster().judge(&flow).allowed();
            prop_assert!(allowed || !tables_allow(&tables, &world, &flow), "open: {:?}", flow);
        }
    }

    /// A packet without a connection passes where both ends are open, and nowhere else; an untracked one never
    /// passes between a pod and somebody who is not its node.
    #[test]
    fn packets_without_a_connection_are_never_let_into_isolation(
        world in world(), seeds in prop::collection::vec(flow_seed(), 1..40),
    ) {
        let tables = compile(&world, Limits::default());
        for flow in flows(&world, &seeds) {
            let allowed = world.cluster().judge(&flow).allowed();
            for (node, hook, packet) in path(&world, &flow) {
                let with = |connection| passes(&tables[node], hook, &Packet { connection, ..packet.clone() });
                let (invalid, untracked) = (with(Connection::Invalid), with(Connection::Untracked));
                if hook == podway_nft::Hook::Forward {
                    prop_assert!(!untracked || packet.input == packet.output, "untracked: {:?}", flow);
                } else {
                    prop_assert!(untracked && invalid, "between a pod and its node: {:?}", flow);
                }
                // A single node may pass what the other one drops.
                prop_assert!(!invalid || allowed || passes(&tables[node], hook, &packet), "invalid: {:?}", flow);
            }
        }
    }
}

/// One mutation of the tables: where a compiler's mistake would show.
type Mutation = (&'static str, fn(&mut Tables));

/// Takes away the first element of the first such set that has one.
fn skip(tables: &mut Tables, prefix: &str) {
    let sets = tables.values_mut().flat_map(|table| &mut table.sets);
    if let Some(set) =
        sets.filter(|set| set.name.as_str().starts_with(prefix)).find(|set| !set.elements.is_empty())
    {
        set.elements.pop_first();
    }
}

const MUTATIONS: [Mutation; 9] = [
    ("a local pod is skipped", |t| skip(t, "loc_")),
    ("a class is skipped", |t| skip(t, "cls")),
    ("a segment is skipped", |t| skip(t, "net")),
    ("a verdict for everybody is skipped", |t| skip(t, "any_p")),
    ("a verdict for a class is skipped", |t| skip(t, "ok_any")),
    ("a port for a class is skipped", |t| skip(t, "ok_port")),
    ("a range for a class is skipped", |t| skip(t, "ok_range")),
    ("isolation is forgotten", |t| {
        for set in
            t.values_mut().flat_map(|t| &mut t.sets).filter(|set| set.name.as_str().starts_with("loc_in"))
        {
            for data in set.elements.values_mut() {
                *data = Some(podway_nft::Datum::Value(0_u32.into()));
            }
        }
    }),
    ("the class of the packet before is kept", |t| {
        for chain in
            t.values_mut().flat_map(|t| &mut t.chains).filter(|c| c.name.as_str().starts_with("ingress"))
        {
            chain.rules.retain(|rule| {
                !matches!(
                    rule.exprs[..],
                    [podway_nft::Expr::Set {
                        target: podway_nft::Target::CtMark,
                        source: podway_nft::Source::Const(0)
                    }]
                )
            });
        }
    }),
];

#[test]
fn planted_mistakes_are_found() {
    for (what, mutate) in MUTATIONS {
        let mut runner = TestRunner::deterministic();
        let strategy = (world(), prop::collection::vec(flow_seed(), 60));
        let found = (0..20_000).position(|_| {
            let (world, seeds) = strategy.new_tree(&mut runner).unwrap().current();
            let mut tables = compile(&world, Limits::default());
            mutate(&mut tables);
            flows(&world, &seeds).iter().any(|flow| disagreement(&tables, &world, flow).is_some())
        });
        let found = found.unwrap_or_else(|| panic!("not found: {what}"));
        println!("{what}: found in cluster {found}");
    }
}

#[test]
fn flows_of_all_kinds_come_up() {
    let mut runner = TestRunner::deterministic();
    let strategy = (world(), prop::collection::vec(flow_seed(), 60));
    let (mut allowed, mut denied, mut icmp) = (0, 0, 0);
    for _ in 0..100 {
        let (world, seeds) = strategy.new_tree(&mut runner).unwrap().current();
        for flow in flows(&world, &seeds) {
            let decision = world.cluster().judge(&flow);
            match decision.allowed() {
                true => allowed += 1,
                false => denied += 1,
            }
            icmp += u32::from(matches!(flow.traffic, Traffic::Other(_)));
        }
    }
    assert!(
        allowed > 500 && denied > 500 && icmp > 100,
        "{allowed} allowed, {denied} denied, {icmp} without ports"
    );
}

/// What a table lets through whatever the policies say, and what it never does, as packets of the protocol itself.
#[test]
fn errors_and_neighbour_discovery_pass_isolation_and_echo_does_not() {
    let case = common::cases::Case {
        name: "deny everything",
        policies: "[{metadata: {name: p, namespace: x}, spec: {policyTypes: [Ingress, Egress]}}]",
        checks: &[],
    };
    let world = common::cases::world(&case);
    let tables = compile(&world, Limits::default());
    for (v6, protocol, passing, dropped) in [
        (false, 1, &[3_u8, 11, 12][..], &[0_u8, 8, 5, 13][..]),
        (true, 58, &[1, 2, 3, 4, 133, 134, 135, 136, 137], &[128, 129, 130]),
    ] {
        let ends = || (world.end("x/a", v6), world.end("y/a", v6));
        let flow = common::flow(ends().0, ends().1, Traffic::Other(protocol));
        for (node, hook, packet) in path(&world, &flow) {
            let with = |kind: u8| Packet { transport: Packet::icmp(kind, 0), ..packet.clone() };
            for kind in passing {
                assert!(passes(&tables[node], hook, &with(*kind)), "{protocol} type {kind}");
            }
            for kind in dropped {
                assert!(!passes(&tables[node], hook, &with(*kind)), "{protocol} type {kind}");
            }
            // Answers and later packets follow their connection.
            for connection in [Connection::ESTABLISHED, Connection::UNREPLIED] {
                assert!(passes(&tables[node], hook, &Packet { connection, ..packet.clone() }));
            }
        }
    }
}
