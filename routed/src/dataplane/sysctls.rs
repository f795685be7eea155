//! The sysctls that forwarding needs: set where they differ, reported where they cannot be set.
//!
//! **IPv6 forwarding.** Turning it on makes the kernel ignore router advertisements on interfaces whose
//! `accept_ra` is 1, and a node that got its default route from one would lose it. So `accept_ra` becomes 2
//! first, on every interface that has a route from an advertisement.
//!
//! **Neighbour table.** `gc_thresh1..3` are raised, never lowered, where more peers are on link than the table
//! holds. They exist in the initial network namespace only: elsewhere the files are missing, and nothing can be
//! said.

use std::collections::BTreeSet;

use podway_kern::KernelError;
use podway_kern::fib::Kernel;
use podway_kern::sysctl::{Family, Sysctl};

use super::desired::{Desired, v6_forwarding};

/// Protocol of routes that the kernel learnt from router advertisements (RTPROT_RA).
const PROTOCOL_RA: u8 = 9;
/// Entries in the neighbour table that are left to others.
const SPARE_NEIGHBOURS: usize = 512;

/// Sets them. Returns what could not be set, in words, with the command that would.
pub(crate) fn ensure(kernel: &mut impl Kernel, desired: &Desired) -> Vec<String> {
    let mut problems = Vec::new();
    for (sysctl, value) in &desired.sysctls {
        match kernel.read_sysctl(sysctl) {
            Ok(found) if found == *value => continue,
            Ok(_) => {}
            // A device that is not there yet, or a kernel without IPv6: the device itself is reported.
            Err(e) if e.is_missing() => continue,
            Err(e) => {
                problems.push(e.to_string());
                continue;
            }
        }
        if *sysctl == v6_forwarding() {
            keep_advertised_routes(kernel, &mut problems);
        }
        if let Err(e) = kernel.write_sysctl(sysctl, value) {
            problems.push(refused(sysctl, value, &e));
        }
    }
    raise_neighbour_limits(kernel, desired.neighbours_on_link, &mut problems);
    problems
}

fn refused(sysctl: &Sysctl, value: &str, error: &KernelError) -> String {
    format!("{error}: needed is `sysctl -w {sysctl}={value}`")
}

fn keep_advertised_routes(kernel: &mut impl Kernel, problems: &mut Vec<String>) {
    let found = kernel.routes(PROTOCOL_RA).and_then(|routes| Ok((routes, kernel.links()?)));
    let (routes, links) = match found {
        Ok(found) => found,
        Err(e) => return problems.push(e.to_string()),
    };
    let uplinks: BTreeSet<u32> = routes.iter().filter_map(|route| route.interface).collect();
    for link in links.iter().filter(|link| uplinks.contains(&link.index)) {
        let accept = Sysctl::conf(Family::V6, &link.name, "accept_ra");
        match kernel.read_sysctl(&accept) {
            Ok(value) if value == "1" => {
                if let Err(e) = kernel.write_sysctl(&accept, "2") {
                    problems.push(refused(&accept, "2", &e));
                }
            }
            Ok(_) => {}
            Err(e) => problems.push(e.to_string()),
        }
    }
}

fn raise_neighbour_limits(kernel: &mut impl Kernel, on_link: usize, problems: &mut Vec<String>) {
    let hard = 2 * (on_link + SPARE_NEIGHBOURS);
    // The hard limit first, so that the soft ones never stand above it.
    for (key, least) in [("gc_thresh3", hard), ("gc_thresh2", hard / 2), ("gc_thresh1", hard / 4)] {
        for family in [Family::V4, Family::V6] {
            let sysctl = Sysctl::neigh(family, "default", key);
            let Ok(found) = kernel.read_sysctl(&sysctl) else { continue };
            if found.parse::<usize>().is_ok_and(|found| found >= least) {
                continue;
            }
            let value = least.to_string();
            if let Err(e) = kernel.write_sysctl(&sysctl, &value) {
                problems.push(refused(&sysctl, &value, &e));
            }
        }
    }
}
