//! The data plane: what the kernel of this node shall hold, and how it gets there.
//!
//! | module | what |
//! |---|---|
//! | [`desired`] | pure: cluster view, local facts and BGP routes in, what the kernel shall hold out |
//! | [`mtu`] | pure: MTU of pods and cluster routes |
//! | [`status`] | what the data plane tells others of itself |
//!
//! Owner of: tunnel devices `podway.*`, routes and next-hop objects of protocol 112, the tables
//! `podway-masq` and `podway-guard`, and the sysctls that forwarding needs. It repairs the CNI plugin's pod
//! routes (protocol 113) and never sweeps them. What does not carry one of these marks is never touched.

pub(crate) mod desired;
pub(crate) mod mtu;
mod run;
pub(crate) mod status;

pub(crate) use run::{cleanup, run};
pub(crate) use status::DataplaneStatus;
