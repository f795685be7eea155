//! NetworkPolicy, from Kubernetes objects to nftables objects.
//!
//! Pure: no clock, no environment, no file, no socket. What is here:
//!
//! | module | what |
//! |---|---|
//! | [`oracle`] | whether a flow is allowed and why: naive, the judge of everything else |
//! | [`validity`] | which parts of a policy can be used at all |
//! | [`Engine`] | objects in, nftables objects out, a change at a time |
//!
//! Inside the engine, from objects to elements: `rules` (policies in tiers) · `objects` (who is concerned by a
//! change) · `sets` (what selects a local pod) · `in_use` (which peers matter) ·
//! `segments` and `classes` (which peers look alike) · `verdicts`
//! (what a set allows a class) · `contents` (elements, and what changed) · `lower` (the table).
//! Beside them `explain` says why.
//!
//! What holds, and the test that shows it:
//!
//! 1. What the elements decide is what the oracle says: `tests/cases.rs`, `tests/properties.rs`.
//! 2. However the objects came to be what they are, the table is the same up to the choice of numbers.
//! 3. A local endpoint without an element is closed; a policy set without elements is closed; a set above a limit
//!    has no elements at all.
//! 4. The number of rules that a packet meets depends on nothing (`policy-agent/tests/golden/table.nft`).

mod classes;
mod contents;
mod engine;
mod explain;
mod in_use;
mod intern;
mod lower;
mod objects;
pub mod oracle;
mod ports;
mod rules;
mod segments;
mod sets;
mod state;
pub mod validity;
mod verdicts;

pub use engine::{Engine, Flush, ListedEndpoint, ListedPolicy};
pub use lower::{DROP_GROUP, table_id};
pub use objects::Endpoint;
pub use state::{Event, Statistics};
pub use verdicts::{EXPANDED_PORTS, Limits};

use podway_model::k8s::{ContainerPort, Pod};

/// The ports of a pod that a policy may name: those of its containers and of its sidecars (init containers that
/// keep running). Ports without a name are left out.
pub fn named_ports(pod: &Pod) -> impl Iterator<Item = &ContainerPort> {
    let sidecars = pod.spec.init_containers.iter().filter(|c| c.restart_policy.as_deref() == Some("Always"));
    pod.spec.containers.iter().chain(sidecars).flat_map(|c| &c.ports).filter(|p| !p.name.is_empty())
}
