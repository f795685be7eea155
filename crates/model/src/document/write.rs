//! Documents as they stand in the cluster store, and as an operator reads them.

use serde::Serialize;
use serde_json::{Value, json};

use super::{Document, Kind};
use crate::cluster::{self, DecodeError};
use crate::keys::Key;

/// Why a stored value is no document.
#[derive(Debug, thiserror::Error)]
pub enum ValueError {
    /// The key belongs to values that nodes write: claims, records, signs of life.
    #[error("{0} is no key of an operator's object")]
    NotADocument(Key),
    /// The value does not decode.
    #[error(transparent)]
    Decode(#[from] DecodeError),
}

impl Document {
    /// The value that stands in the store under [`Document::key`]: JSON with a `schema` for our own kinds,
    /// Kubernetes' own JSON for Kubernetes' objects, fields in a fixed order.
    pub fn to_json(&self) -> Vec<u8> {
        match self {
            Self::ClusterConfig(config) => cluster::encode(config),
            Self::Pool { spec, .. } => cluster::encode(spec),
            Self::BgpPeer { spec, .. } => cluster::encode(spec),
            Self::BgpFilter { spec, .. } => cluster::encode(spec),
            Self::Reflector { spec, .. } => cluster::encode(spec),
            Self::Namespace(_) | Self::Pod(_) | Self::NetworkPolicy(_) => {
                serde_json::to_vec(&self.to_value()).expect("objects have string keys only")
            }
        }
    }

    /// Reads a stored value. The key says which kind it is, and the name of our own kinds.
    ///
    /// # Errors
    /// The key is not one of an operator's object, or the value does not decode.
    pub fn from_store(key: &Key, value: &[u8]) -> Result<Self, ValueError> {
        let object = |error: serde_json::Error| ValueError::Decode(DecodeError::Json(error));
        Ok(match key {
            Key::Config => Self::ClusterConfig(cluster::decode(value)?),
            Key::Pool(name) => Self::Pool { name: name.clone(), spec: cluster::decode(value)? },
            Key::Peer(name) => Self::BgpPeer { name: name.clone(), spec: cluster::decode(value)? },
            Key::Filter(name) => Self::BgpFilter { name: name.clone(), spec: cluster::decode(value)? },
            Key::Reflector(node) => Self::Reflector { node: node.clone(), spec: cluster::decode(value)? },
            Key::Namespace(_) => Self::Namespace(serde_json::from_slice(value).map_err(object)?),
            Key::Pod(..) => Self::Pod(serde_json::from_slice(value).map_err(object)?),
            Key::NetworkPolicy(..) => Self::NetworkPolicy(serde_json::from_slice(value).map_err(object)?),
            Key::Node(_)
            | Key::Live(_)
            | Key::Claim(..)
            | Key::Released(_)
            | Key::Drained(_)
            | Key::Usage(_) => {
                return Err(ValueError::NotADocument(key.clone()));
            }
        })
    }

    /// The whole object, `apiVersion` and `kind` included, as one would write it.
    pub fn to_value(&self) -> Value {
        let kind = self.kind();
        match self {
            Self::ClusterConfig(config) => own(kind, self.name(), config),
            Self::Pool { spec, .. } => own(kind, self.name(), spec),
            Self::BgpPeer { spec, .. } => own(kind, self.name(), spec),
            Self::BgpFilter { spec, .. } => own(kind, self.name(), spec),
            Self::Reflector { spec, .. } => own(kind, self.name(), spec),
            Self::Namespace(namespace) => with_kind(kind, namespace),
            Self::Pod(pod) => with_kind(kind, pod),
            Self::NetworkPolicy(policy) => with_kind(kind, policy),
        }
    }

    /// The whole object as YAML, one document without its `---`. Reading it again gives the same object.
    pub fn to_yaml(&self) -> String {
        serde_saphyr::to_string(&self.to_value()).expect("objects have string keys only")
    }
}

fn own<T: Serialize>(kind: Kind, name: &str, spec: &T) -> Value {
    json!({ "apiVersion": kind.api_version(), "kind": kind.name(), "metadata": { "name": name }, "spec": spec })
}

fn with_kind<T: Serialize>(kind: Kind, object: &T) -> Value {
    let mut value = json!(object);
    value["apiVersion"] = kind.api_version().into();
    value["kind"] = kind.name().into();
    // An empty part says nothing.
    if let Some(map) = value.as_object_mut() {
        map.retain(|key, part| key == "spec" && kind != Kind::Pod || part != &json!({}));
    }
    value
}
