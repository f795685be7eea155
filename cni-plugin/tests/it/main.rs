//! The plugin as container runtimes see it: the real binary, each test on a node of its own (network and mount
//! namespaces), so that `/run/podway` and `/var/lib/podway` are private. Needs root.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "tests: a failure is a panic, what was counted is printed"
)]

mod bandwidth;
mod chain;
mod check;
mod cost;
mod crash;
mod delegation;
mod faults;
mod guard;
mod host;
mod host_ports;
mod ipam;
mod iptables;
mod node;
mod ptp;
mod settings;
mod shipped;
mod spec;
mod stale;
mod storm;
mod trace;
mod upstream;
mod vectors;
mod verbs;
