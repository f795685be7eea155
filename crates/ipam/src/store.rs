//! The io shell: one lock, one file, and the order of writes.
//!
//! - `lock` in the folder is held (flock) for the life of a [`LeaseStore`] or an [`AddressLock`]: the kernel
//!   releases it when its holder dies.
//! - `leases` is the journal ([`crate::journal`]). An operation is one `write` at its end. A writer that was
//!   killed leaves a torn last line at most; the next one writes over it. A write that fails is taken back.
//! - `leases.new` exists during compaction only, and becomes `leases` by renaming.
//! - `leases.damaged` is what a damaged journal was before it was rebuilt; `suspects` is what the search for stale
//!   leases saw last.
//!
//! Nothing is synced: the folder is on tmpfs. What must survive is the death of a process, not of the machine.

use std::collections::BTreeSet;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::{DirBuilderExt as _, FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::IpNet;
use nix::time::{ClockId, clock_gettime};
use podway_model::ids::BootId;
use podway_model::node_file::NodeFile;

use crate::journal::{self, Damage, Entry, Writer};
use crate::lease::{Attachment, Condition, Grant, Lease, Request};
use crate::ledger::{Ledger, Plan, Refusal};
use crate::rebuild::{self, Found, Rebuilt};
use crate::stale::Suspects;

const LOCK: &str = "lock";
const JOURNAL: &str = "leases";
const COMPACTED: &str = "leases.new";
const DAMAGED: &str = "leases.damaged";
const SUSPECTS: &str = "suspects";
/// Lines beyond twice what is needed, at which the journal is compacted.
const SLACK: usize = 128;

/// Why the lease store cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The system refused.
    #[error("{}: cannot {attempted}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What was attempted.
        attempted: &'static str,
        /// The system's answer.
        source: io::Error,
    },
    /// The journal is damaged; nothing is handed out, so that no address gets two holders.
    #[error(
        "{}: {damage} (the lease file was changed from outside; no address is handed out until the plugin has \
         rebuilt it from the pods' interfaces and endpoint records, which its next ADD, DEL, GC or STATUS does; if \
         that fails, drain this node and reboot it, which empties /run)",
        path.display()
    )]
    Damaged {
        /// The journal.
        path: PathBuf,
        /// Where and what.
        damage: Damage,
    },
}

/// Why there is no lease.
#[derive(Debug, thiserror::Error)]
pub enum LeaseError {
    /// The node cannot serve the request.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The store cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Time since boot, running on through suspend: the clock of leases and quarantine.
pub fn since_boot() -> Duration {
    // CLOCK_BOOTTIME exists since Linux 2.6.39, and only a bad clock id can fail.
    clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(Duration::ZERO, Duration::from)
}

/// The address lock alone, without the leases: for whoever rewrites the node file.
#[derive(Debug)]
pub struct AddressLock {
    _file: File,
}

impl AddressLock {
    /// Waits for the lock of folder `dir`, which is made if it is missing.
    pub fn acquire(dir: &Path) -> Result<Self, StoreError> {
        let path = dir.join(LOCK);
        let open = || OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(&path);
        let file = open().or_else(|e| match e.kind() {
            io::ErrorKind::NotFound => {
                DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
                open()
            }
            _ => Err(e),
        });
        let file = file.map_err(io_error(&path, "open"))?;
        loop {
            match file.lock() {
                Ok(()) => return Ok(Self { _file: file }),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(io_error(&path, "lock")(e)),
            }
        }
    }
}

/// What a journal held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Loaded {
    /// The leases of this boot.
    Leases,
    /// It is missing, or of another boot.
    Nothing,
}

/// The leases of this node. Holds the address lock until it is dropped: keep it short, and wait for nothing else
/// meanwhile.
#[derive(Debug)]
pub struct LeaseStore {
    dir: PathBuf,
    boot: BootId,
    /// Appended to; `None` until the first write, if there is no journal of this boot.
    file: Option<File>,
    /// Length of what counts in the file; what is behind was torn.
    length: u64,
    seed: u32,
    lines: usize,
    ledger: Ledger,
    _lock: AddressLock,
}

impl LeaseStore {
    /// Waits for the lock of folder `dir` and reads the leases of this boot. Leases of another boot are as good as
    /// none; their file is replaced by the first write.
    pub fn open(dir: &Path, boot: &BootId) -> Result<Self, StoreError> {
        Self::open_locked(AddressLock::acquire(dir)?, dir, boot)
    }

    /// Reads the leases under a lock that is held already.
    pub fn open_locked(lock: AddressLock, dir: &Path, boot: &BootId) -> Result<Self, StoreError> {
        let mut store = Self::empty(lock, dir, boot);
        store.load()?;
        Ok(store)
    }

    /// As [`Self::open_locked`], but where the journal is damaged, or there is none of this boot although pods are there, it is
    /// made anew from what `found` finds (see [`crate::rebuild`]). A damaged one is kept beside it for people.
    ///
    /// `found` is called only then, and under the lock.
    pub fn open_or_rebuild<E: From<StoreError>>(
        lock: AddressLock,
        dir: &Path,
        boot: &BootId,
        node: impl FnOnce() -> Option<NodeFile>,
        found: impl FnOnce() -> Result<Vec<Found>, E>,
    ) -> Result<(Self, Option<Rebuilt>), E> {
        let mut store = Self::empty(lock, dir, boot);
        let (reason, old) = match store.load() {
            Ok(Loaded::Leases) => return Ok((store, None)),
            Ok(Loaded::Nothing) => ("there is no lease file of this boot".to_owned(), Vec::new()),
            Err(error @ StoreError::Damaged { .. }) => {
                let path = dir.join(JOURNAL);
                let old = std::fs::read(&path).map_err(|e| E::from(io_error(&path, "read")(e)))?;
                (error.to_string(), old)
            }
            Err(error) => return Err(error.into()),
        };
        let found = found()?;
        if old.is_empty() && found.is_empty() {
            return Ok((store, None));
        }
        if !old.is_empty() {
            // For people only: where it cannot be kept, the disk is full, and the rest of this is of more use.
            let _ = std::fs::write(dir.join(DAMAGED), &old);
        }
        let (entries, left_out) = rebuild::entries(&old, found, node().as_ref(), since_boot());
        let ledger = Ledger::replay(&entries).expect("rebuilding gives no address twice");
        store.replace(&ledger)?;
        store.ledger = ledger;
        let leases = store.ledger.leases().count();
        Ok((store, Some(Rebuilt { reason, leases, left_out })))
    }

    fn empty(lock: AddressLock, dir: &Path, boot: &BootId) -> Self {
        Self {
            dir: dir.to_path_buf(),
            boot: boot.clone(),
            file: None,
            length: 0,
            seed: 0,
            lines: 0,
            ledger: Ledger::default(),
            _lock: lock,
        }
    }

    fn load(&mut self) -> Result<Loaded, StoreError> {
        let path = self.dir.join(JOURNAL);
        let mut file = match OpenOptions::new().read(true).write(true).open(&path) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                self.remove_half_written();
                return Ok(Loaded::Nothing);
            }
            Err(e) => return Err(io_error(&path, "open")(e)),
        };
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(io_error(&path, "read"))?;
        let damaged = |damage| StoreError::Damaged { path: path.clone(), damage };
        let contents = journal::parse(&bytes).map_err(damaged)?;
        if contents.boot != self.boot {
            return Ok(Loaded::Nothing);
        }
        self.ledger = Ledger::replay(&contents.entries)
            .map_err(|(i, contradiction)| damaged(Damage { line: i + 2, what: contradiction.to_string() }))?;
        self.lines = contents.entries.len();
        self.length = contents.length as u64;
        self.seed = contents.seed;
        self.file = Some(file);
        if self.lines >= self.longest() {
            self.remove_half_written();
        }
        Ok(Loaded::Leases)
    }

    /// Ends the leases that nobody will ever end (see [`crate::stale`]) and returns them. `present`: attachments whose
    /// interface is on the node. Call it again after [`crate::stale::APART`]: one look never ends a lease.
    pub fn collect_stale(
        &mut self,
        present: &BTreeSet<Attachment>,
        now: Duration,
    ) -> Result<Vec<Lease>, StoreError> {
        let path = self.dir.join(SUSPECTS);
        let text = match std::fs::read(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(e) => return Err(io_error(&path, "read")(e)),
        };
        let before = Suspects::from_text(&String::from_utf8_lossy(&text));
        let mut suspects = before.clone();
        let mut ended = Vec::new();
        for attachment in suspects.look(&self.ledger, present, now) {
            ended.extend(self.release(&attachment, now, Condition::Dirty)?);
        }
        if suspects != before {
            // A torn one loses a minute.
            std::fs::write(&path, suspects.to_text()).map_err(io_error(&path, "write"))?;
        }
        Ok(ended)
    }

    /// Most lines before the journal is compacted.
    fn longest(&self) -> usize {
        2 * self.ledger.compacted_len() + SLACK
    }

    /// What a killed compaction left. The next one would write over it; whether there is a next one, nobody knows.
    fn remove_half_written(&self) {
        let _ = std::fs::remove_file(self.dir.join(COMPACTED));
    }

    /// Who holds what.
    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// Leases addresses, or finds the lease that the attachment already has. It is on record when this returns.
    pub fn lease(&mut self, node: &NodeFile, request: &Request, now: Duration) -> Result<Grant, LeaseError> {
        match self.ledger.plan(node, request, now)? {
            Plan::Keep(lease) => {
                let dirty = lease.ips().collect();
                Ok(Grant { lease, dirty, kept: true })
            }
            Plan::Make { lease, dirty, replaces } => {
                let end = Entry::Free {
                    attachment: lease.attachment.clone(),
                    at: now,
                    condition: Condition::Dirty,
                };
                let entries = [replaces.then_some(end), Some(Entry::Lease(lease.clone()))];
                self.write(entries.into_iter().flatten().collect())?;
                Ok(Grant { lease, dirty, kept: false })
            }
        }
    }

    /// Ends the lease of an attachment and returns it; none is fine.
    pub fn release(
        &mut self,
        attachment: &Attachment,
        now: Duration,
        condition: Condition,
    ) -> Result<Option<Lease>, StoreError> {
        let Some(lease) = self.ledger.lease_of(attachment).cloned() else {
            return Ok(None);
        };
        self.write(vec![Entry::Free { attachment: attachment.clone(), at: now, condition }])?;
        Ok(Some(lease))
    }

    /// Puts on record that conntrack does not know these free addresses any more.
    pub fn mark_clean(&mut self, addresses: Vec<std::net::IpAddr>) -> Result<(), StoreError> {
        if addresses.is_empty() {
            return Ok(());
        }
        self.write(vec![Entry::Clean(addresses)])
    }

    /// Forgets what is remembered about the free addresses of a block: it has gone back to its pool.
    pub fn forget(&mut self, block: IpNet) -> Result<(), StoreError> {
        self.write(vec![Entry::Forget(block)])
    }

    /// Writes entries as one operation, then applies them.
    fn write(&mut self, entries: Vec<Entry>) -> Result<(), StoreError> {
        const FOLLOWS: &str = "only entries that follow from the ledger are written";
        let lines = self.lines + entries.len();
        if self.file.is_some() && lines <= self.longest() {
            self.append(&entries)?;
            self.lines = lines;
            entries.iter().for_each(|entry| self.ledger.apply(entry).expect(FOLLOWS));
        } else {
            let mut ledger = self.ledger.clone();
            entries.iter().for_each(|entry| ledger.apply(entry).expect(FOLLOWS));
            self.replace(&ledger)?;
            self.ledger = ledger;
        }
        Ok(())
    }

    fn append(&mut self, entries: &[Entry]) -> Result<(), StoreError> {
        let path = self.dir.join(JOURNAL);
        let Some(file) = &self.file else { return Ok(()) };
        let mut writer = Writer::after(self.seed);
        entries.iter().for_each(|entry| writer.entry(entry));
        let (text, seed) = writer.finish();
        let torn = file.metadata().map_err(io_error(&path, "look at"))?.len() > self.length;
        if torn {
            file.set_len(self.length).map_err(io_error(&path, "cut off a torn line of"))?;
        }
        if let Err(e) = file.write_all_at(text.as_bytes(), self.length) {
            // If this fails too, what was written of the line counts as torn.
            let _ = file.set_len(self.length);
            return Err(io_error(&path, "append to")(e));
        }
        self.length += text.len() as u64;
        self.seed = seed;
        Ok(())
    }

    /// Writes the whole ledger as a new file: it is there with its last byte or not at all.
    fn replace(&mut self, ledger: &Ledger) -> Result<(), StoreError> {
        let (path, new) = (self.dir.join(JOURNAL), self.dir.join(COMPACTED));
        let mut writer = Writer::new(&self.boot);
        let mut lines = 0;
        for entry in ledger.compacted() {
            writer.entry(&entry);
            lines += 1;
        }
        let (text, seed) = writer.finish();
        let write = || {
            let mut options = OpenOptions::new();
            let file = options.create(true).truncate(true).read(true).write(true).mode(0o600).open(&new)?;
            file.write_all_at(text.as_bytes(), 0)?;
            std::fs::rename(&new, &path)?;
            Ok(file)
        };
        let file = write().map_err(|e| {
            let _ = std::fs::remove_file(&new);
            io_error(&new, "write")(e)
        })?;
        self.file = Some(file);
        self.length = text.len() as u64;
        self.seed = seed;
        self.lines = lines;
        Ok(())
    }
}

fn io_error(path: &Path, attempted: &'static str) -> impl FnOnce(io::Error) -> StoreError {
    let path = path.to_path_buf();
    move |source| StoreError::Io { path, attempted, source }
}
