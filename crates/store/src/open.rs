//! From configuration to a store.

use std::sync::Arc;

use podway_model::config::StoreConfig;
use podway_model::mistakes::Mistakes;

use crate::{Store, etcd::EtcdStore, file::FileStore};

/// Opens the store that the configuration names. Never waits for a server: an absent one is tried again for
/// ever, by the watch and by each call. Must be called within a tokio runtime. The error lists what the
/// configuration names and cannot be used: an unreadable certificate, a URL that is none.
pub fn open(config: &StoreConfig) -> Result<Arc<dyn Store>, Mistakes> {
    Ok(match config {
        StoreConfig::Etcd(etcd) => Arc::new(EtcdStore::open(etcd)?),
        StoreConfig::File(file) => Arc::new(FileStore::open(file)?),
    })
}

/// Refuses at configuration time what the backend cannot do for a node that claims blocks: it must be able to
/// write, with signs of life.
pub fn require(store: &dyn Store) -> Result<(), Mistakes> {
    let can = store.capabilities();
    let mut mistakes = Mistakes::default();
    if !can.writable || !can.leases {
        mistakes.add(
            "store",
            "",
            store.describe(),
            "a store that nodes can write to (etcd, or a folder: `store.file.path` must name a writable one)",
        );
    }
    mistakes.into_result(())
}
