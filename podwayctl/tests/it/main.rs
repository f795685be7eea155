//! Integration tests of `podwayctl`: the real binary, and the files in `deploy/`.
#![expect(clippy::unwrap_used, clippy::panic, reason = "preparations of tests, outside the tests themselves")]

mod bgp;
mod cli;
mod cluster;
mod deploy;
mod place;
