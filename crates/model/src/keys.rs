//! Keys of the cluster store, relative to its prefix.
//!
//! | key | value | written by |
//! |---|---|---|
//! | `config` | [`crate::cluster::ClusterConfig`] | operator |
//! | `pools/<name>` | [`crate::cluster::Pool`] | operator |
//! | `nodes/<node>` | [`crate::cluster::NodeRecord`] | that node |
//! | `live/<node>` | [`crate::cluster::Liveness`], bound to the node's lease | that node |
//! | `claims/<node>/<addr>-<len>` | [`crate::cluster::Claim`] | that node |
//! | `released/<addr>-<len>` | [`crate::cluster::Released`]; compared in the transaction that makes or confirms a claim | operator, controller |
//! | `drained/<node>` | [`crate::cluster::Drained`] | operator |
//! | `controller` | [`crate::cluster::Leader`], bound to the holder's lease; [`CONTROLLER`] | controller |
//! | `usage/<node>` | [`crate::cluster::Usage`] | that node |
//! | `peers/<name>` | [`crate::cluster::BgpPeer`] | operator |
//! | `filters/<name>` | [`crate::bgp::BgpFilter`] | operator |
//! | `reflectors/<node>` | [`crate::cluster::Reflector`] | operator |
//! | `objects/namespaces/<name>` | [`crate::k8s::Namespace`] | operator |
//! | `objects/pods/<namespace>/<name>` | [`crate::k8s::Pod`] | operator |
//! | `objects/networkpolicies/<namespace>/<name>` | [`crate::k8s::NetworkPolicy`] | operator |

use std::fmt;
use std::str::FromStr;

use ipnet::IpNet;

use crate::ids::{NodeName, ObjectName};

/// Key of the lock of `routed controller`: nobody else reads it.
pub const CONTROLLER: &str = "controller";

/// A key below the store's prefix.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Key {
    /// The cluster's configuration.
    Config,
    /// An address pool.
    Pool(ObjectName),
    /// What a node says of itself.
    Node(NodeName),
    /// Sign of life of a node.
    Live(NodeName),
    /// A block that a node claims.
    Claim(NodeName, IpNet),
    /// A block taken from a node that is gone.
    Released(IpNet),
    /// A node that traffic shall leave.
    Drained(NodeName),
    /// Address use of a node, for people.
    Usage(NodeName),
    /// A BGP peer.
    Peer(ObjectName),
    /// A BGP route filter.
    Filter(ObjectName),
    /// A reflector role given by hand.
    Reflector(NodeName),
    /// A Kubernetes namespace.
    Namespace(String),
    /// A Kubernetes pod: namespace and name.
    Pod(String, String),
    /// A Kubernetes network policy: namespace and name.
    NetworkPolicy(String, String),
}

/// Text that is not a key of ours.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a key of the cluster store")]
pub struct UnknownKey(pub String);

/// `<addr>-<len>`: a prefix without a slash.
fn block_text(block: &IpNet) -> String {
    format!("{}-{}", block.addr(), block.prefix_len())
}

fn parse_block(text: &str) -> Option<IpNet> {
    let (addr, len) = text.rsplit_once('-')?;
    let net = IpNet::new(addr.parse().ok()?, len.parse().ok()?).ok()?;
    (net.trunc() == net && block_text(&net) == text).then_some(net)
}

/// Names of Kubernetes objects in a key: not empty, no slash.
fn object_name(text: &str) -> Option<String> {
    (!text.is_empty() && !text.contains('/')).then(|| text.to_owned())
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Config => f.write_str("config"),
            Self::Pool(name) => write!(f, "pools/{name}"),
            Self::Node(node) => write!(f, "nodes/{node}"),
            Self::Live(node) => write!(f, "live/{node}"),
            Self::Claim(node, block) => write!(f, "claims/{node}/{}", block_text(block)),
            Self::Released(block) => write!(f, "released/{}", block_text(block)),
            Self::Drained(node) => write!(f, "drained/{node}"),
            Self::Usage(node) => write!(f, "usage/{node}"),
            Self::Peer(name) => write!(f, "peers/{name}"),
            Self::Filter(name) => write!(f, "filters/{name}"),
            Self::Reflector(node) => write!(f, "reflectors/{node}"),
            Self::Namespace(name) => write!(f, "objects/namespaces/{name}"),
            Self::Pod(namespace, name) => write!(f, "objects/pods/{namespace}/{name}"),
            Self::NetworkPolicy(namespace, name) => write!(f, "objects/networkpolicies/{namespace}/{name}"),
        }
    }
}

impl FromStr for Key {
    type Err = UnknownKey;

    fn from_str(text: &str) -> Result<Self, UnknownKey> {
        let parse = || -> Option<Self> {
            let Some((kind, rest)) = text.split_once('/') else {
                return (text == "config").then_some(Self::Config);
            };
            Some(match kind {
                "pools" => Self::Pool(rest.parse().ok()?),
                "nodes" => Self::Node(rest.parse().ok()?),
                "live" => Self::Live(rest.parse().ok()?),
                "claims" => {
                    let (node, block) = rest.split_once('/')?;
                    Self::Claim(node.parse().ok()?, parse_block(block)?)
                }
                "released" => Self::Released(parse_block(rest)?),
                "drained" => Self::Drained(rest.parse().ok()?),
                "usage" => Self::Usage(rest.parse().ok()?),
                "peers" => Self::Peer(rest.parse().ok()?),
                "filters" => Self::Filter(rest.parse().ok()?),
                "reflectors" => Self::Reflector(rest.parse().ok()?),
                "objects" => {
                    let (plural, rest) = rest.split_once('/')?;
                    match plural {
                        "namespaces" => Self::Namespace(object_name(rest)?),
                        "pods" | "networkpolicies" => {
                            let (namespace, name) = rest.split_once('/')?;
                            let (namespace, name) = (object_name(namespace)?, object_name(name)?);
                            if plural == "pods" {
                                Self::Pod(namespace, name)
                            } else {
                                Self::NetworkPolicy(namespace, name)
                            }
                        }
                        _ => return None,
                    }
                }
                _ => return None,
            })
        };
        parse().ok_or_else(|| UnknownKey(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_round_trips() {
        for text in [
            "config",
            "pools/default-v4",
            "nodes/n1.example.com",
            "live/n1",
            "claims/n1/10.244.0.64-26",
            "claims/n1/fd00:10:244::40-122",
            "released/10.244.0.64-26",
            "usage/n1",
            "peers/tor-a",
            "filters/no-default",
            "reflectors/n1",
            "drained/n1",
            "objects/namespaces/default",
            "objects/pods/default/web-0",
            "objects/networkpolicies/default/deny",
        ] {
            let key: Key = text.parse().unwrap_or_else(|e| panic!("{e}"));
            assert_eq!(key.to_string(), text);
        }
    }

    #[test]
    fn what_is_not_a_key_is_refused() {
        for text in [
            "",
            "/",
            "config/",
            "pools/",
            "nodes/A",
            "claims/n1",
            "claims/n1/10.244.0.65-26",
            "claims/n1/10.244.0.64-33",
            "claims/n1/10.244.0.64-026",
            "objects/pods/default",
            "objects/pods/default/a/b",
            "objects/secrets/a/b",
            "other",
        ] {
            assert!(text.parse::<Key>().is_err(), "{text}");
        }
    }
}
