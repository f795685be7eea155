//! The table of cases: what the oracle says must be what the specification says.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    unreachable_pub,
    reason = "tests, and modules of their own"
)]

mod common;

use common::cases::{CASES, world};

#[test]
fn the_oracle_agrees_with_the_specification() {
    let mut wrong = Vec::new();
    for case in CASES {
        let world = world(case);
        for (families, source, destination, traffic, allowed) in case.checks {
            for family in families.chars() {
                let v6 = family == '6';
                let flow = common::flow(
                    world.end(source, v6),
                    world.end(destination, v6),
                    common::traffic(traffic, v6),
                );
                let decision = world.cluster().judge(&flow);
                if decision.allowed() != *allowed {
                    wrong.push(format!(
                        "{}: {source} -> {destination} {traffic} IPv{family}: {decision}",
                        case.name
                    ));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
