//! Podway's CNI plugin: wires a pod and allocates its addresses.

fn main() {}
