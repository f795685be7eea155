//! Integration suites live in the folders beside this file, one test program per layer:
//!
//! | folder | layer |
//! |---|---|
//! | `architecture` | the structure of the workspace itself |
//! | `namespaces` | real daemons, plugin, etcd and kernel in a cluster of namespaces; needs root |
//! | `runtimes` | container runtimes of others with our plugin in them; needs root |
//!
//! `skips.toml` names what may be skipped, and why.
