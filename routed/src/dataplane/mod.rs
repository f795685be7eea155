//! The data plane: what the kernel of this node shall hold, and how it gets there.
//!
//! ```text
//!  ClusterView ─┐
//!  LocalFacts  ─┼─▶ desired ──▶ plan ──▶ reconcile ──▶ kernel
//!  BgpRoutes   ─┘ (changeover)   ▲                       │ monitor
//!                              actual ◀── dropped ◀── notice
//! ```
//!
//! | module | what |
//! |---|---|
//! | [`desired`], `backends`, `encapsulation`, [`mtu`] | pure: what the kernel shall hold |
//! | [`changeover`], `kept` | pure: old and new side by side while the backend changes; what that must not forget |
//! | `shared` | pure: nodes that publish one address |
//! | `actual` | what it holds: read back, then kept by noting what was changed |
//! | `plan` | pure: the requests that lead from one to the other, in the kernel's order |
//! | `reconcile` | reads, plans, applies, until nothing is left to do; for any kernel, fake or real |
//! | `notice` | pure: which changes by others concern us |
//! | `tables` | the nft tables: masquerade and guard |
//! | `forward`, `closing` | forward chains of others: rules in iptables', a report of the rest; where packets end in them |
//! | `sysctls` | what forwarding needs |
//! | `pods` | repair of the CNI plugin's pod routes |
//! | `run` | the task: waits for inputs, kernel changes and time |
//! | `cleanup` | takes everything out again, when asked |
//! | [`status`] | what others are told |
//!
//! Owner of: tunnel devices `podway.*`, routes and next-hop objects of protocol 112, the tables
//! `podway-masq` and `podway-guard`, rules with its comment in iptables' chain FORWARD, and the sysctls that forwarding needs. It repairs the CNI plugin's pod
//! routes (protocol 113) and never sweeps them. What does not carry one of these marks is never touched.

mod actual;
mod backends;
pub(crate) mod changeover;
mod cleanup;
mod closing;
pub(crate) mod desired;
mod encapsulation;
mod forward;
mod kept;
pub(crate) mod mtu;
mod notice;
mod plan;
mod pods;
mod ports;
mod reconcile;
mod run;
mod shared;
pub(crate) mod status;
mod sysctls;
mod tables;
#[cfg(test)]
mod tests;

pub(crate) use cleanup::cleanup;
pub(crate) use kept::Kept;
pub(crate) use pods::read_records;
pub(crate) use run::{Told, run};
pub(crate) use status::DataplaneStatus;
