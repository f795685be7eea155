//! What the operator types.

fn main() {}
