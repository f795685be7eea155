//! The demo's command line.

use clap::{Parser, ValueEnum};
use podway_model::cluster::Backend;
use podway_testkit::lab::StoreKind;

/// Shows Podway's main job in a cluster of namespaces on this machine, through the real binaries.
///
/// Exit codes: 0 all as expected; 2 something differs; 1 the demo could not run; 64 bad options.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask demo", bin_name = "cargo xtask demo", max_term_width = 100)]
pub(crate) struct Options {
    /// Number of nodes
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(2..=200))]
    pub(crate) nodes: u16,

    /// Pods on each node
    #[arg(long, value_name = "M", default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=50))]
    pub(crate) pods_per_node: u16,

    /// How packets get from node to node; ipip and wireguard need a kernel that has them
    #[arg(long, value_enum, default_value_t = BackendName::Vxlan)]
    pub(crate) backend: BackendName,

    /// With --backend bgp: the first K nodes are route reflectors; 0: full mesh
    #[arg(long, value_name = "K", default_value_t = 0)]
    pub(crate) reflectors: u16,

    /// Give the pods IPv6 addresses too
    #[arg(long)]
    pub(crate) ipv6: bool,

    /// Where the cluster's state is kept
    #[arg(long, value_enum, default_value_t = StoreName::Etcd)]
    pub(crate) store: StoreName,

    /// Leave the lab running until Ctrl-C, and say how to step into nodes and pods
    #[arg(long)]
    pub(crate) keep: bool,

    /// One JSON document on standard output, progress on standard error
    #[arg(long)]
    pub(crate) json: bool,

    /// Break one thing, so that the demo has to fail: drop a route, or an element of an nft map
    #[arg(long, value_enum)]
    pub(crate) sabotage: Option<Sabotage>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum BackendName {
    HostGw,
    Vxlan,
    Ipip,
    Wireguard,
    Bgp,
}

impl From<BackendName> for Backend {
    fn from(name: BackendName) -> Self {
        match name {
            BackendName::HostGw => Self::HostGw,
            BackendName::Vxlan => Self::Vxlan,
            BackendName::Ipip => Self::Ipip,
            BackendName::Wireguard => Self::Wireguard,
            BackendName::Bgp => Self::Bgp,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum StoreName {
    Etcd,
    File,
}

impl From<StoreName> for StoreKind {
    fn from(name: StoreName) -> Self {
        match name {
            StoreName::Etcd => Self::Etcd,
            StoreName::File => Self::File,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Sabotage {
    Route,
    Nft,
}
