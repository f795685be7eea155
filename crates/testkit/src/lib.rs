//! Namespaces, clusters of namespaces (the lab), probes, golden files.
