//! Operator documents (YAML or JSON) in, typed objects out, or every mistake at once.
//!
//! This is the door for text that a person wrote: what comes out is checked, so nobody behind it checks again.
//! Our own kinds and the `spec` of a NetworkPolicy refuse unknown keys, each with a suggestion; Namespaces and
//! Pods are read leniently, since Kubernetes' own objects have many fields that a network does not need.
//! NetworkPolicies are validated as the API server does (`pkg/apis/networking/validation`).
//!
//! | `apiVersion` | `kind` | [`Document`] |
//! |---|---|---|
//! | `podway.io/v1` | `ClusterConfig`, name `default` | [`Document::ClusterConfig`] |
//! | `podway.io/v1` | `Pool` | [`Document::Pool`] |
//! | `podway.io/v1` | `BGPPeer` | [`Document::BgpPeer`] |
//! | `podway.io/v1` | `BGPFilter` | [`Document::BgpFilter`] |
//! | `podway.io/v1` | `Reflector`, name of the node | [`Document::Reflector`] |
//! | `v1` | `Namespace` | [`Document::Namespace`] |
//! | `v1` | `Pod` | [`Document::Pod`] |
//! | `networking.k8s.io/v1` | `NetworkPolicy` | [`Document::NetworkPolicy`] |
//! | `v1` | `List` | its items |

mod bgp_kinds;
mod bmp_kinds;
mod cluster_kinds;
mod config_file;
mod kubernetes;
mod labels;
mod network_policy;
mod node;
mod reader;
mod together;
mod write;

pub use config_file::parse_config;
pub use together::{Reference, overlapping_pools, references};
pub use write::ValueError;

use crate::bgp::BgpFilter;
use crate::cluster::{BgpPeer, ClusterConfig, Pool, Reflector};
use crate::ids::{NodeName, ObjectName};
use crate::k8s;
use crate::keys::Key;
use crate::mistakes::Mistakes;
use reader::{Field, Notes};

/// `apiVersion` of our own kinds.
pub const API_VERSION: &str = "podway.io/v1";
/// Name of the only [`Document::ClusterConfig`].
pub const CLUSTER_CONFIG_NAME: &str = "default";

/// One checked object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Document {
    /// `kind: ClusterConfig`.
    ClusterConfig(ClusterConfig),
    /// `kind: Pool`.
    Pool {
        /// `metadata.name`.
        name: ObjectName,
        /// `spec`.
        spec: Pool,
    },
    /// `kind: BGPPeer`.
    BgpPeer {
        /// `metadata.name`.
        name: ObjectName,
        /// `spec`.
        spec: BgpPeer,
    },
    /// `kind: BGPFilter`.
    BgpFilter {
        /// `metadata.name`.
        name: ObjectName,
        /// `spec`.
        spec: BgpFilter,
    },
    /// `kind: Reflector`.
    Reflector {
        /// `metadata.name`.
        node: NodeName,
        /// `spec`.
        spec: Reflector,
    },
    /// `kind: Namespace`.
    Namespace(k8s::Namespace),
    /// `kind: Pod`.
    Pod(k8s::Pod),
    /// `kind: NetworkPolicy`.
    NetworkPolicy(k8s::NetworkPolicy),
}

/// A kind of document, and what is said about it outside its own fields.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Settings of the whole cluster.
    ClusterConfig,
    /// An address pool.
    Pool,
    /// A BGP peer outside the cluster.
    BgpPeer,
    /// A filter of BGP routes.
    BgpFilter,
    /// A reflector role given by hand.
    Reflector,
    /// A Kubernetes namespace.
    Namespace,
    /// A Kubernetes pod.
    Pod,
    /// A Kubernetes network policy.
    NetworkPolicy,
}

impl Kind {
    /// All of them, in an order in which they can be written: what others refer to first.
    pub const ALL: [Self; 8] = [
        Self::ClusterConfig,
        Self::Pool,
        Self::Reflector,
        Self::BgpFilter,
        Self::BgpPeer,
        Self::Namespace,
        Self::NetworkPolicy,
        Self::Pod,
    ];

    /// `apiVersion:`.
    pub fn api_version(self) -> &'static str {
        match self {
            Self::ClusterConfig | Self::Pool | Self::BgpPeer | Self::BgpFilter | Self::Reflector => {
                API_VERSION
            }
            Self::Namespace | Self::Pod => "v1",
            Self::NetworkPolicy => "networking.k8s.io/v1",
        }
    }

    /// `kind:`.
    pub fn name(self) -> &'static str {
        match self {
            Self::ClusterConfig => "ClusterConfig",
            Self::Pool => "Pool",
            Self::BgpPeer => "BGPPeer",
            Self::BgpFilter => "BGPFilter",
            Self::Reflector => "Reflector",
            Self::Namespace => "Namespace",
            Self::Pod => "Pod",
            Self::NetworkPolicy => "NetworkPolicy",
        }
    }

    /// Whether objects of this kind live in a namespace.
    pub fn is_namespaced(self) -> bool {
        matches!(self, Self::Pod | Self::NetworkPolicy)
    }
}

impl Document {
    /// Its kind.
    pub fn kind(&self) -> Kind {
        match self {
            Self::ClusterConfig(_) => Kind::ClusterConfig,
            Self::Pool { .. } => Kind::Pool,
            Self::BgpPeer { .. } => Kind::BgpPeer,
            Self::BgpFilter { .. } => Kind::BgpFilter,
            Self::Reflector { .. } => Kind::Reflector,
            Self::Namespace(_) => Kind::Namespace,
            Self::Pod(_) => Kind::Pod,
            Self::NetworkPolicy(_) => Kind::NetworkPolicy,
        }
    }

    /// `metadata.name`.
    pub fn name(&self) -> &str {
        match self {
            Self::ClusterConfig(_) => CLUSTER_CONFIG_NAME,
            Self::Pool { name, .. } | Self::BgpPeer { name, .. } | Self::BgpFilter { name, .. } => {
                name.as_str()
            }
            Self::Reflector { node, .. } => node.as_str(),
            Self::Namespace(namespace) => &namespace.metadata.name,
            Self::Pod(pod) => &pod.metadata.name,
            Self::NetworkPolicy(policy) => &policy.metadata.name,
        }
    }

    /// `metadata.namespace`, where the kind has one.
    pub fn namespace(&self) -> Option<&str> {
        match self {
            Self::Pod(pod) => Some(&pod.metadata.namespace),
            Self::NetworkPolicy(policy) => Some(&policy.metadata.namespace),
            _ => None,
        }
    }

    /// Where it stands in the cluster store.
    pub fn key(&self) -> Key {
        match self {
            Self::ClusterConfig(_) => Key::Config,
            Self::Pool { name, .. } => Key::Pool(name.clone()),
            Self::BgpPeer { name, .. } => Key::Peer(name.clone()),
            Self::BgpFilter { name, .. } => Key::Filter(name.clone()),
            Self::Reflector { node, .. } => Key::Reflector(node.clone()),
            Self::Namespace(namespace) => Key::Namespace(namespace.metadata.name.clone()),
            Self::Pod(pod) => Key::Pod(pod.metadata.namespace.clone(), pod.metadata.name.clone()),
            Self::NetworkPolicy(policy) => {
                Key::NetworkPolicy(policy.metadata.namespace.clone(), policy.metadata.name.clone())
            }
        }
    }
}

/// Reads every document of `text`, YAML (several, between `---`) or JSON. `source` names the text in messages.
///
/// An empty text has no documents, which is no mistake. The same object twice and pools that overlap are.
///
/// # Errors
/// Every mistake of every document, with its line. A text that is no YAML has one mistake.
pub fn parse_documents(source: &str, text: &str) -> Result<Vec<Document>, Mistakes> {
    let notes = Notes::new(source);
    let mut documents = Vec::new();
    match node::parse_text(text) {
        Err(error) => notes.add(error.line, "", "", format!("YAML or JSON expected: {}", error.message)),
        Ok(nodes) => {
            for node in &nodes {
                read_document(&Field::document(&notes, node), &mut documents);
            }
        }
    }
    together::check(&notes, &documents);
    let documents = documents.into_iter().map(|(_, document)| document).collect();
    notes.finish().into_result(documents)
}

/// Reads one document, or the items of a `List`, with the line on which each begins.
fn read_document(field: &Field<'_>, documents: &mut Vec<(u64, Document)>) {
    let Some(map) = field.map("a mapping with apiVersion, kind and metadata") else { return };
    let api_version = map.required("apiVersion", "the version of the kind").and_then(|f| f.text("text"));
    let Some(kind_field) = map.required("kind", "the kind of the object") else { return };
    if let (Some("v1"), Some("List")) = (api_version, kind_field.as_text()) {
        if let Some(items) = map.required("items", "a list of objects").and_then(|f| f.items("a list")) {
            items.iter().for_each(|item| read_document(item, documents));
        }
        return;
    }
    let kinds: Vec<(&str, Kind)> = Kind::ALL.iter().map(|kind| (kind.name(), *kind)).collect();
    let Some(kind) = kind_field.one_of(&kinds) else { return };
    if let Some(field) =
        map.optional("apiVersion").filter(|_| api_version.is_some_and(|v| v != kind.api_version()))
    {
        field.wrong(format!("{:?} for a {}", kind.api_version(), kind.name()));
    }
    let document = match kind {
        Kind::ClusterConfig | Kind::Pool | Kind::BgpPeer | Kind::BgpFilter | Kind::Reflector => {
            cluster_kinds::read(kind, &map)
        }
        Kind::Namespace => kubernetes::namespace(&map).map(Document::Namespace),
        Kind::Pod => kubernetes::pod(&map).map(Document::Pod),
        Kind::NetworkPolicy => network_policy::read(&map).map(Document::NetworkPolicy),
    };
    documents.extend(document.map(|document| (field.line(), document)));
}

#[cfg(test)]
mod tests;
