//! A hundred cores in one thread, in virtual time, seeded: partitions, crashes at any action, reboots, clock jumps,
//! compactions, relists, prefixes that fall behind each other, writes that come late, twice thought about or never,
//! releases, wipes and restores of the store.
//!
//! | file | what |
//! |---|---|
//! | [`world`] | time, the store, what reaches whom and when |
//! | [`node`] | one node: core, disk, pods |
//! | [`chaos`] | what goes wrong, and what operators do |
//! | [`checks`] | the invariants |
//!
//! `PODWAY_SEEDS=1000 cargo test -p routed --profile ci cluster::tests::sim` runs more seeds, `PODWAY_SEED=7` one,
//! `PODWAY_NODES=200` with so many nodes.

mod chaos;
mod checks;
mod node;
mod world;

use world::{Bug, World};

/// Seeds that run with every test: one in which the store is wiped, one in which it is restored; half a minute each.
const SEEDS: u64 = 2;
/// Nodes, unless `PODWAY_NODES` says otherwise.
const NODES: u64 = 100;
/// Nodes among which planted bugs are looked for: few, since they show soon.
const FEW: usize = 50;
/// Seeds within which a planted bug must be found.
const ENOUGH: u64 = 16;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

#[test]
fn the_invariants_hold_whatever_happens() {
    let seeds = match number("PODWAY_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("PODWAY_SEEDS").unwrap_or(SEEDS),
    };
    for seed in seeds {
        println!("seed {seed}");
        let nodes = number("PODWAY_NODES").unwrap_or(NODES);
        let mut world = World::new(seed, usize::try_from(nodes).unwrap(), None);
        if let Err(failure) = world.run() {
            panic!("PODWAY_SEED={seed}: {failure}\n{}", world.story());
        }
        println!("  {}", world.summary());
    }
}

/// The simulation must find `bug`, and by the invariant that is there for it.
fn is_found(bug: Bug, by: &[&str]) {
    for seed in 0..ENOUGH {
        let Err(failure) = World::new(seed, FEW, Some(bug)).run() else { continue };
        println!("{bug:?}, seed {seed}: {failure}");
        // What it leads to may break another invariant first.
        if by.iter().any(|by| failure.contains(by)) {
            return;
        }
    }
    panic!("{bug:?} not found by {by:?} in {ENOUGH} seeds");
}

#[test]
fn a_skipped_comparison_of_claims_is_found() {
    is_found(Bug::CompareSkipped, &["in two node files", "both confirmed"]);
}

#[test]
fn a_store_that_skips_conditions_is_found() {
    is_found(
        Bug::ConditionSkipped,
        &["in two node files", "both confirmed", "has no block", "not what the store"],
    );
}

#[test]
fn a_claim_that_does_not_look_at_the_hold_is_found() {
    is_found(Bug::HoldSkipped, &["is held back"]);
}

#[test]
fn a_delete_before_sync_is_found() {
    is_found(Bug::DeleteBeforeSync, &["left the view"]);
}

#[test]
fn a_reused_revision_is_found() {
    is_found(Bug::RevisionReused, &["in two node files", "both confirmed", "was never deleted", "views of"]);
}
