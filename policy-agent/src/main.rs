//! Podway's node daemon for NetworkPolicy: compiles it into nftables.

fn main() {}
