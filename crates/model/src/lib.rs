//! The vocabulary that every Podway crate shares, and the contracts between its binaries.
//!
//! Pure: no clock, no environment, no file, no socket. What is here:
//!
//! | module | what |
//! |---|---|
//! | [`names`] | every name and constant that two programs must agree on |
//! | [`ids`] | checked newtypes: node and pool names, AS numbers, MTU, MAC addresses |
//! | [`cidr`] | arithmetic of prefixes |
//! | [`mistakes`] | how bad input is reported: field, value, what was expected; all at once |
//! | [`config`] | the configuration file of a node |
//! | [`document`] | operator documents (YAML or JSON) in, typed objects out |
//! | [`cluster`] | values of the cluster store: configuration, pools, nodes, claims, peers |
//! | [`keys`] | keys of the cluster store |
//! | [`flannel`] | flannel's layout of etcd: its configuration and its leases |
//! | [`k8s`] | the parts of Kubernetes objects that a network needs |
//! | [`node_file`] | `/var/lib/podway/node.json`, from `routed` to the CNI plugin |
//! | [`bgp`] | what operators say of BGP: filters, communities, options of a peer |
//! | [`endpoint`] | `/run/podway/endpoints/<id>.json`, from the CNI plugin to the daemons |
//! | [`socket`] | messages on `/run/podway/*.sock` |
//! | [`ways`] | by which ways packets get from node to node, as nodes tell each other |
//!
//! Every stored value carries [`SCHEMA`]. Readers accept [`accepts_schema`], so binary and daemons can be
//! upgraded apart.

pub mod bgp;
pub mod bmp;
pub mod cidr;
pub mod cluster;
pub mod config;
pub mod document;
pub mod endpoint;
pub mod flannel;
pub mod ids;
pub mod k8s;
pub mod keys;
pub mod mistakes;
pub mod names;
pub mod node_file;
pub mod socket;
pub mod ways;

/// Version of the stored forms that this build writes.
pub const SCHEMA: u32 = 1;

/// Whether a stored form of version `schema` can be read: this one and the one before.
pub fn accepts_schema(schema: u32) -> bool {
    schema == SCHEMA || schema + 1 == SCHEMA
}
