//! The cluster store in files: for a single node, a lab or a static cluster.
//!
//! | path | can |
//! |---|---|
//! | one file of documents (`cluster.yaml`, also as a mounted ConfigMap) | be read; nodes cannot claim blocks with it |
//! | a folder that cannot be written to (a mounted ConfigMap) | the same |
//! | a folder | be read and written: the operator's documents beside the folder `state/`, which holds what programs write; several nodes may share it |
//!
//! A key that stands in a document is the operator's: it cannot be written through the store, and a key that was
//! written earlier is ignored as long as a document has it. Modules: [`documents`], [`keys`], [`watch`].

mod documents;
mod keys;
mod watch;

use std::collections::BTreeMap;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use async_trait::async_trait;
use podway_model::config::FileConfig;
use podway_model::mistakes::Mistakes;
use tokio::time::{Instant, sleep};

use crate::coalesce::Outlet;
use crate::{Capabilities, Entry, Expect, Guard, Listing, Store, StoreError, Watch, Written, is_watched};
use documents::{DocumentValue, Documents, is_document_name};
use keys::{KeyFolder, Locked};

/// How long a leased key lives without a sign of its holder, in seconds.
const LEASE_SECONDS: u32 = 15;
/// How long a call waits for the lock. It is held for milliseconds, unless its holder was stopped.
const LOCK_WAIT: Duration = Duration::from_secs(5);

/// A cluster store in files.
#[derive(Debug)]
pub(crate) struct FileStore {
    place: Place,
    documents: Mutex<Documents>,
    lease_seconds: u32,
    /// Leased keys of this process with the revision of our write; its keeper ends with it.
    leased: Arc<Mutex<BTreeMap<String, i64>>>,
    keeping: std::sync::OnceLock<()>,
}

/// Where the store is.
#[derive(Debug, Clone)]
struct Place {
    path: PathBuf,
    /// `None`: only documents.
    keys: Option<KeyFolder>,
}

/// Everything in the store at one moment.
#[derive(Debug, Default)]
struct All {
    entries: BTreeMap<String, Entry>,
    revision: i64,
    problems: Vec<String>,
    /// Whether there are keys that end without a sign of life.
    has_leases: bool,
}

impl FileStore {
    /// Makes the folder where it is missing. Does not need the documents to be there.
    pub(crate) fn open(config: &FileConfig) -> Result<Self, Mistakes> {
        Self::with_lease(config, LEASE_SECONDS)
    }

    pub(crate) fn with_lease(config: &FileConfig, lease_seconds: u32) -> Result<Self, Mistakes> {
        let path = config.path.clone();
        let is_file = if path.exists() { !path.is_dir() } else { is_document_name(&path) };
        let keys = if is_file {
            None
        } else {
            match KeyFolder::create(&path) {
                Ok(keys) => Some(keys),
                Err(error) if path.is_dir() && cannot_write(&error) => None,
                Err(error) => {
                    let mut mistakes = Mistakes::default();
                    let expected = format!("a file of documents, or a folder ({error})");
                    mistakes.add("store", "store.file.path", path.display(), expected);
                    return Err(mistakes);
                }
            }
        };
        let (leased, keeping) = (Arc::default(), std::sync::OnceLock::new());
        Ok(Self { place: Place { path, keys }, documents: Mutex::default(), lease_seconds, leased, keeping })
    }

    fn all(&self, locked: Option<&Locked<'_>>) -> Result<All, StoreError> {
        let mut documents = self.documents.lock().unwrap_or_else(PoisonError::into_inner);
        self.place.all(&mut documents, locked)
    }

    /// The lock for a write of `key`; refuses what cannot be written here.
    async fn lock_for_write(&self, key: &str) -> Result<Locked<'_>, StoreError> {
        let Some(keys) = &self.place.keys else {
            return Err(StoreError::Unsupported {
                endpoint: self.place.name(),
                what: "write",
                why: "it is one file, or a folder that cannot be written to",
            });
        };
        if let Some(DocumentValue { file, .. }) = self.document(key)? {
            let key = key.to_owned();
            return Err(StoreError::InDocument { endpoint: self.place.name(), key, document: file });
        }
        lock(keys, true).await
    }

    fn document(&self, key: &str) -> Result<Option<DocumentValue>, StoreError> {
        let mut documents = self.documents.lock().unwrap_or_else(PoisonError::into_inner);
        let read = documents.read(&self.place.path);
        Ok(read.map_err(|error| self.place.failed(&error))?.values.remove(key))
    }

    async fn lock_for_read(&self) -> Result<Option<Locked<'_>>, StoreError> {
        match &self.place.keys {
            Some(keys) => Ok(Some(lock(keys, false).await?)),
            None => Ok(None),
        }
    }

    fn wrote<T>(&self, key: &str, result: io::Result<T>) -> Result<T, StoreError> {
        result.map_err(|error| match error.kind() {
            ErrorKind::InvalidInput => StoreError::Refused {
                endpoint: self.place.name(),
                key: key.to_owned(),
                cause: error.to_string(),
            },
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded => StoreError::Full {
                endpoint: self.place.name(),
                key: key.to_owned(),
                cause: error.to_string(),
            },
            _ => self.place.failed(&error),
        })
    }
}

impl Place {
    fn name(&self) -> String {
        self.path.display().to_string()
    }

    fn failed(&self, error: &io::Error) -> StoreError {
        let (endpoint, cause) = (self.name(), error.to_string());
        match error.kind() {
            ErrorKind::InvalidData => StoreError::Corrupt { endpoint, cause },
            ErrorKind::PermissionDenied => StoreError::Denied { endpoint, what: "access".into(), cause },
            _ => StoreError::Unavailable { endpoint, cause },
        }
    }

    fn all(&self, documents: &mut Documents, locked: Option<&Locked<'_>>) -> Result<All, StoreError> {
        let read = documents.read(&self.path).map_err(|error| self.failed(&error))?;
        let mut all = All { revision: 1, problems: read.problems, ..All::default() };
        if let Some(locked) = locked {
            let contents = locked.contents().map_err(|error| self.failed(&error))?;
            all.revision = contents.revision;
            all.problems.extend(contents.problems);
            for (key, stored) in contents.keys {
                all.has_leases |= stored.ends.is_some();
                if stored.has_ended() {
                    continue;
                }
                if let Some(document) = read.values.get(&key) {
                    let file = &document.file;
                    all.problems
                        .push(format!("{file}: overrides {key}, which was also written to the store"));
                } else {
                    all.entries.insert(key, stored.entry);
                }
            }
        }
        for (key, document) in read.values {
            let entry =
                Entry { key: key.clone(), value: document.value, create_revision: 0, mod_revision: 0 };
            all.entries.insert(key, entry);
        }
        Ok(all)
    }
}

/// Waits for the lock without blocking the thread.
async fn lock(keys: &KeyFolder, exclusive: bool) -> Result<Locked<'_>, StoreError> {
    let endpoint = || keys.watched().display().to_string();
    let start = Instant::now();
    loop {
        match keys.try_lock(exclusive) {
            Ok(Some(locked)) => return Ok(locked),
            Ok(None) if start.elapsed() >= LOCK_WAIT => {
                return Err(StoreError::Timeout { endpoint: endpoint(), after: LOCK_WAIT });
            }
            Ok(None) => sleep(Duration::from_millis(2)).await,
            Err(error) => {
                return Err(StoreError::Unavailable { endpoint: endpoint(), cause: error.to_string() });
            }
        }
    }
}

fn cannot_write(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem)
}

/// Renews this process's leased keys. Ends when the store is dropped; the keys then end as after a crash.
async fn keep(keys: KeyFolder, leased: Weak<Mutex<BTreeMap<String, i64>>>, period: Duration) {
    loop {
        sleep(period).await;
        let Ok(locked) = lock(&keys, false).await else { continue };
        let Some(leased) = leased.upgrade() else { return };
        let mut leased = leased.lock().unwrap_or_else(PoisonError::into_inner);
        // One that is gone is told by the watch; an error is tried again in time.
        leased.retain(|key, revision| !matches!(locked.renew(key, *revision), Ok(false)));
    }
}

#[async_trait]
impl Store for FileStore {
    fn describe(&self) -> String {
        format!("files at {}", self.place.name())
    }

    fn capabilities(&self) -> Capabilities {
        let writable = self.place.keys.is_some();
        Capabilities { writable, leases: writable, shared: writable }
    }

    fn watch(&self, prefixes: &[&str]) -> Watch {
        let (outlet, watch) = Outlet::new();
        let prefixes = prefixes.iter().map(|p| (*p).to_owned()).collect();
        tokio::spawn(watch::run(self.place.clone(), prefixes, outlet));
        watch
    }

    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        if let Some(document) = self.document(key)? {
            let (key, value) = (key.to_owned(), document.value);
            return Ok(Some(Entry { key, value, create_revision: 0, mod_revision: 0 }));
        }
        let Some(locked) = self.lock_for_read().await? else { return Ok(None) };
        Ok(self.wrote(key, locked.get(key))?.map(|stored| stored.entry))
    }

    async fn list(&self, prefix: &str) -> Result<Listing, StoreError> {
        let locked = self.lock_for_read().await?;
        let All { mut entries, revision, .. } = self.all(locked.as_ref())?;
        let prefixes = [prefix.to_owned()];
        entries.retain(|key, _| is_watched(&prefixes, key));
        Ok(Listing { entries: entries.into_values().collect(), revision })
    }

    async fn put(&self, key: &str, value: &[u8]) -> Result<i64, StoreError> {
        let locked = self.lock_for_write(key).await?;
        match self.wrote(key, locked.put(key, value, None, None))? {
            Written::Done { revision } => Ok(revision),
            Written::Refused { .. } => self.wrote(key, locked.revision()),
        }
    }

    async fn put_if(&self, key: &str, value: &[u8], expect: Expect) -> Result<Written, StoreError> {
        let locked = self.lock_for_write(key).await?;
        self.wrote(key, locked.put(key, value, Some(expect), None))
    }

    async fn put_guarded(
        &self,
        key: &str,
        value: &[u8],
        expect: Expect,
        guards: &[Guard],
    ) -> Result<Written, StoreError> {
        // The lock is held from the look to the write.
        let locked = self.lock_for_write(key).await?;
        for guard in guards {
            let other = self.wrote(&guard.key, locked.get(&guard.key))?.map(|stored| stored.entry);
            if !guard.expect.holds(other.as_ref()) {
                let found = self.wrote(key, locked.get(key))?.map(|stored| stored.entry);
                return Ok(Written::Refused { found });
            }
        }
        self.wrote(key, locked.put(key, value, Some(expect), None))
    }

    async fn put_leased(&self, key: &str, value: &[u8], expect: Expect) -> Result<Written, StoreError> {
        let locked = self.lock_for_write(key).await?;
        let written = self.wrote(key, locked.put(key, value, Some(expect), Some(self.lease_seconds)))?;
        if let Written::Done { revision } = written {
            let mut leased = self.leased.lock().unwrap_or_else(PoisonError::into_inner);
            leased.insert(key.to_owned(), revision);
        }
        if let Some(keys) = &self.place.keys {
            let period = Duration::from_secs(u64::from(self.lease_seconds)) / 3;
            self.keeping.get_or_init(|| {
                tokio::spawn(keep(keys.clone(), Arc::downgrade(&self.leased), period));
            });
        }
        Ok(written)
    }

    async fn put_for(
        &self,
        key: &str,
        value: &[u8],
        expect: Expect,
        seconds: u32,
    ) -> Result<Written, StoreError> {
        let locked = self.lock_for_write(key).await?;
        self.wrote(key, locked.put(key, value, Some(expect), Some(seconds)))
    }

    fn takes_outside(&self, prefix: &str) -> Result<(), String> {
        Err(format!("files at {} hold nothing below {prefix}: it is in etcd", self.place.name()))
    }

    async fn delete(&self, key: &str) -> Result<bool, StoreError> {
        let locked = self.lock_for_write(key).await?;
        Ok(matches!(self.wrote(key, locked.delete(key, None))?, Written::Done { .. }))
    }

    async fn delete_if(&self, key: &str, mod_revision: i64) -> Result<Written, StoreError> {
        let locked = self.lock_for_write(key).await?;
        self.wrote(key, locked.delete(key, Some(mod_revision)))
    }
}

/// What tells one state of a path from another without reading it.
fn signature(path: &Path) -> Option<(std::time::SystemTime, u64, u64)> {
    use std::os::unix::fs::MetadataExt as _;
    let meta = std::fs::metadata(path).ok()?;
    Some((meta.modified().ok()?, meta.len(), meta.ino()))
}
