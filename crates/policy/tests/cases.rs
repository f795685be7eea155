//! The table of cases: what the oracle and the tables say must be what the specification says.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    unreachable_pub,
    reason = "tests, and modules of their own"
)]

mod common;

use common::cases::{CASES, Case, world};
use common::judges::{compile, tables_allow};
use common::{World, flow, traffic};
use podway_policy::Limits;
use podway_policy::oracle::Flow;

/// Judges every case's flows; says where the outcome is not the expected one.
fn judge_all(mut judge: impl FnMut(&World, &Case) -> Box<dyn Fn(&World, &Flow) -> (bool, String)>) {
    let mut wrong = Vec::new();
    for case in CASES {
        let world = world(case);
        let judge = judge(&world, case);
        for (families, source, destination, kind, allowed) in case.checks {
            for v6 in families.chars().map(|family| family == '6') {
                let flow = flow(world.end(source, v6), world.end(destination, v6), traffic(kind, v6));
                let (found, why) = judge(&world, &flow);
                if found != *allowed {
                    let family = if v6 { "IPv6" } else { "IPv4" };
                    wrong.push(format!("{}: {source} -> {destination} {kind} {family}: {why}", case.name));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_oracle_agrees_with_the_specification() {
    judge_all(|_, _| {
        Box::new(|world, flow| {
            let decision = world.cluster().judge(flow);
            (decision.allowed(), decision.to_string())
        })
    });
}

#[test]
fn the_tables_agree_with_the_specification() {
    judge_all(|world, _| {
        let tables = compile(world, Limits::default());
        Box::new(move |world, flow| {
            let allowed = tables_allow(&tables, world, flow);
            (allowed, format!("the tables {}", if allowed { "let it pass" } else { "drop it" }))
        })
    });
}
