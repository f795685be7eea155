//! NetworkPolicy, from Kubernetes objects to nftables objects.
//!
//! Pure: no clock, no environment, no file, no socket. What is here:
//!
//! | module | what |
//! |---|---|
//! | [`oracle`] | whether a flow is allowed and why: naive, the judge of everything else |
//! | [`validity`] | which parts of a policy can be used at all |

pub mod oracle;
pub mod validity;

use podway_model::k8s::{ContainerPort, Pod};

/// The ports of a pod that a policy may name: those of its containers and of its sidecars (init containers that
/// keep running). Ports without a name are left out.
pub fn named_ports(pod: &Pod) -> impl Iterator<Item = &ContainerPort> {
    let sidecars = pod.spec.init_containers.iter().filter(|c| c.restart_policy.as_deref() == Some("Always"));
    pod.spec.containers.iter().chain(sidecars).flat_map(|c| &c.ports).filter(|p| !p.name.is_empty())
}
