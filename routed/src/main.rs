//! Podway's node daemon: store, block claims, routing backends, BGP.

fn main() {}
