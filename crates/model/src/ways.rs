//! The ways by which packets get from node to node: what a node says of them in its record, so that a change of
//! backend is made before broken. Pure data.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

/// A way by which packets get from node to node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Way {
    /// Plainly, by the underlay.
    Direct,
    /// VXLAN tunnels.
    Vxlan,
    /// IPIP tunnels.
    Ipip,
    /// WireGuard tunnels.
    Wireguard,
    /// By routes that were learnt by BGP, whichever way they lead: a session that ends takes them along.
    Bgp,
    /// One that a newer version knows.
    #[serde(other)]
    Unknown,
}

impl std::fmt::Display for Way {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Direct => "plain routes",
            Self::Vxlan => "vxlan",
            Self::Ipip => "ipip",
            Self::Wireguard => "wireguard",
            Self::Bgp => "routes of BGP",
            Self::Unknown => "a way of a newer version",
        })
    }
}

/// What a node's kernel does at the moment.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ways {
    /// By which ways it takes packets of other nodes.
    pub receives: BTreeSet<Way>,
    /// By which ways its routes send.
    pub sends: BTreeSet<Way>,
}
