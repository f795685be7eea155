//! The cluster store: etcd, a watched file, an in-memory fake; one trait.
