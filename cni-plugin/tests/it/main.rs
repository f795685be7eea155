//! The plugin as container runtimes see it: the real binary, each test on a node of its own (network and mount
//! namespaces), so that `/run/podway` and `/var/lib/podway` are private. Needs root.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests: a failure is a panic")]

mod chain;
mod check;
mod host;
mod vectors;
mod verbs;
