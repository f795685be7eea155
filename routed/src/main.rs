//! Podway's node daemon: store, block claims, routing backends, BGP.
//!
//! | module | what | owns |
//! |---|---|---|
//! | [`app`] | the task diagram; wires the parts | the channels |
//! | [`identity`] | node name, boot id, instance id | the instance id's file |
//! | [`view`] | the vocabulary between the parts | nothing |
//! | [`cluster`] | the cluster as the store shows it; registration, claims | the node file, our store keys |
//! | [`controller`] | `routed controller`: frees nodes that are gone | |
//! | [`underlay`] | which address this node has on the underlay | |
//! | [`bgp`] | the shell round our BGP speaker | its TCP connections |
//! | [`dataplane`] | what the kernel shall hold, and how it gets there | routes, tunnels, masquerade |
//! | [`ipam`] | are leases, records and interfaces of one mind? ends a lease for an operator | nothing |
//! | [`status`] | answers for people | nothing |
//! | [`metrics`] | numbers for machines | the gauges |

mod app;
mod bgp;
mod cluster;
mod controller;
mod dataplane;
mod identity;
mod ipam;
mod metrics;
mod status;
mod underlay;
mod view;

use std::process::ExitCode;

use podway_daemon::{Action, Program, run};

fn main() -> ExitCode {
    let mut args = std::env::args_os();
    match args.nth(1).as_deref().and_then(|first| first.to_str()) {
        Some("controller") => return controller::main(args),
        Some("speaker") => return bgp::standalone::main(),
        _ => {}
    }
    run(
        Program {
            name: "routed",
            about: "Podway's node daemon: claims address blocks, and carries packets between nodes by host-gw, \
                    VXLAN, IPIP, WireGuard or BGP. `routed controller` is a program of its own: see there",
            version: env!("CARGO_PKG_VERSION"),
            section: |config| &config.routed,
            actions: &[Action {
                name: "cleanup",
                help: "Remove from this node's kernel everything that routed made (routes, next hops, tunnel \
                       devices, masquerade), and end. Pods and their own routes stay. The node's claims stay \
                       too: podwayctl node release",
                run: |_config| {
                    dataplane::cleanup(std::path::Path::new(podway_model::names::ROUTING_FILE))
                        .map_err(Into::into)
                },
            }],
        },
        app::start,
    )
}
