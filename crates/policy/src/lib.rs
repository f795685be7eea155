//! NetworkPolicy, from Kubernetes objects to nftables objects.
//!
//! Pure: no clock, no environment, no file, no socket. What is here:
//!
//! | module | what |
//! |---|---|
//! | [`oracle`] | whether a flow is allowed and why: naive, the judge of everything else |
//! | [`validity`] | which parts of a policy can be used at all |

mod classes;
mod contents;
mod intern;
mod objects;
pub mod oracle;
mod ports;
mod rules;
mod segments;
mod sets;
mod state;
pub mod validity;
mod verdicts;

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
