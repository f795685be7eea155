//! Kubernetes watches and types, where they end: the one crate that will know the Kubernetes client library.
//!
//! Holds nothing yet. Podway's cluster state lives in etcd or in a watched folder today, and Kubernetes objects
//! reach the policy engine through the store's `objects/` keys. The Kubernetes source (namespaces, pods,
//! policies, nodes) is to deliver the same [`podway_model::k8s`] types through the same events as `podway-store`,
//! so that nothing above it changes. Who will own state here: nobody; a watch is a stream.

pub use podway_model::k8s;
