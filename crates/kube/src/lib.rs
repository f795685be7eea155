//! Kubernetes watches and types, where they end.
