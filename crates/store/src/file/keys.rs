//! Keys that programs write: one file per key below `state/keys/`, for several processes and nodes that share the
//! folder.
//!
//! ```text
//! state/lock           flock: exclusive for a write, shared for a read
//! state/revision       the store's revision, replaced by each write: what watchers wait for
//! state/keys/<key>     first line: create and mod revision, lease in seconds; then the value
//! ```
//!
//! A write holds the lock, replaces `revision` first and the key's file second, each by a rename. A crash between
//! leaves a revision without a change; the other order could give two keys the same create revision. A leased key
//! is alive as long as its holder renews the file's time stamp.

use std::collections::BTreeMap;
use std::fs::{self, File, TryLockError};
use std::io::{self, ErrorKind, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use crate::{Entry, Expect, Written};

/// The folder of keys.
#[derive(Debug, Clone)]
pub(super) struct KeyFolder {
    root: PathBuf,
}

/// First line of a key's file.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Header {
    create: i64,
    #[serde(rename = "mod")]
    modified: i64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    lease_seconds: Option<u32>,
}

/// A key as it stands in its file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Stored {
    pub(super) entry: Entry,
    /// When it ends unless its holder renews it.
    pub(super) ends: Option<SystemTime>,
}

/// All keys at one revision.
#[derive(Debug, Default)]
pub(super) struct Contents {
    pub(super) revision: i64,
    pub(super) keys: BTreeMap<String, Stored>,
    /// Files that are no keys.
    pub(super) problems: Vec<String>,
}

impl KeyFolder {
    /// Makes the folder where it is missing; fails where it cannot be written to.
    pub(super) fn create(folder: &Path) -> io::Result<Self> {
        let root = folder.join("state");
        fs::create_dir_all(root.join("keys"))?;
        File::options().create(true).append(true).open(root.join("lock"))?;
        Ok(Self { root })
    }

    /// The folder whose changes tell of a new revision.
    pub(super) fn watched(&self) -> &Path {
        &self.root
    }

    /// One attempt to take the lock: none if somebody else holds it.
    pub(super) fn try_lock(&self, exclusive: bool) -> io::Result<Option<Locked<'_>>> {
        let lock = File::options().create(true).append(true).open(self.root.join("lock"))?;
        match if exclusive { lock.try_lock() } else { lock.try_lock_shared() } {
            Ok(()) => Ok(Some(Locked { folder: self, _lock: lock })),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }

    fn path(&self, key: &str) -> io::Result<PathBuf> {
        // Keys become paths, so a key must not lead out of the folder or collide with a folder.
        let fits = |part: &str| {
            !part.is_empty() && !part.starts_with('.') && part.len() <= 255 && !part.contains('\0')
        };
        if !key.split('/').all(fits) {
            return Err(io::Error::new(
                ErrorKind::InvalidInput,
                format!("{key:?} cannot be the name of a file"),
            ));
        }
        Ok(self.root.join("keys").join(key))
    }

    fn read_file(&self, path: &Path, key: &str) -> io::Result<Stored> {
        let bytes = fs::read(path)?;
        let corrupt = |why: String| io::Error::new(ErrorKind::InvalidData, why);
        let line = bytes.iter().position(|b| *b == b'\n').ok_or_else(|| corrupt("no first line".into()))?;
        let header: Header = serde_json::from_slice(&bytes[..line]).map_err(|e| corrupt(e.to_string()))?;
        let ends = match header.lease_seconds {
            Some(seconds) => {
                let renewed = fs::metadata(path)?.modified()?;
                Some(renewed + Duration::from_secs(u64::from(seconds)))
            }
            None => None,
        };
        let entry = Entry {
            key: key.to_owned(),
            value: bytes[line + 1..].to_owned(),
            create_revision: header.create,
            mod_revision: header.modified,
        };
        Ok(Stored { entry, ends })
    }
}

/// The folder while its lock is held.
#[derive(Debug)]
pub(super) struct Locked<'a> {
    folder: &'a KeyFolder,
    _lock: File,
}

impl Locked<'_> {
    /// The store's revision.
    pub(super) fn revision(&self) -> io::Result<i64> {
        match fs::read_to_string(self.folder.root.join("revision")) {
            Ok(text) => text.trim().parse().map_err(|_| {
                io::Error::new(ErrorKind::InvalidData, format!("state/revision: {text:?} is no number"))
            }),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(1),
            Err(error) => Err(error),
        }
    }

    /// One key. One whose lease has ended is gone.
    pub(super) fn get(&self, key: &str) -> io::Result<Option<Stored>> {
        match self.folder.read_file(&self.folder.path(key)?, key) {
            Ok(stored) => Ok(Some(stored).filter(|s| !s.has_ended())),
            Err(error)
                if matches!(
                    error.kind(),
                    ErrorKind::NotFound | ErrorKind::NotADirectory | ErrorKind::IsADirectory
                ) =>
            {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// All keys, those whose lease has ended included.
    pub(super) fn contents(&self) -> io::Result<Contents> {
        let mut contents = Contents { revision: self.revision()?, ..Contents::default() };
        let root = self.folder.root.join("keys");
        let mut folders = vec![root.clone()];
        while let Some(folder) = folders.pop() {
            for file in fs::read_dir(&folder)? {
                let file = file?;
                let path = file.path();
                if file.file_type()?.is_dir() {
                    folders.push(path);
                    continue;
                }
                let Some(key) = path.strip_prefix(&root).ok().and_then(Path::to_str) else { continue };
                // A writer that was killed half-way leaves its temporary file.
                if file.file_name().as_encoded_bytes().starts_with(b".") {
                    continue;
                }
                match self.folder.read_file(&path, key) {
                    Ok(stored) => {
                        contents.keys.insert(key.to_owned(), stored);
                    }
                    Err(error) => contents.problems.push(format!("{}: {error}", path.display())),
                }
            }
        }
        Ok(contents)
    }

    /// Writes a key if `expect` holds (none: whatever stands there).
    pub(super) fn put(
        &self,
        key: &str,
        value: &[u8],
        expect: Option<Expect>,
        lease_seconds: Option<u32>,
    ) -> io::Result<Written> {
        let path = self.folder.path(key)?;
        let found = self.get(key)?.map(|stored| stored.entry);
        if expect.is_some_and(|expect| !expect.holds(found.as_ref())) {
            return Ok(Written::Refused { found });
        }
        let revision = self.next_revision()?;
        let create = found.map_or(revision, |entry| entry.create_revision);
        let header = Header { create, modified: revision, lease_seconds };
        let mut bytes = serde_json::to_vec(&header)?;
        bytes.push(b'\n');
        bytes.extend_from_slice(value);
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        replace(&path, &bytes)?;
        Ok(Written::Done { revision })
    }

    /// Removes a key if it was last changed at `expect` (none: in any case).
    pub(super) fn delete(&self, key: &str, expect: Option<i64>) -> io::Result<Written> {
        let path = self.folder.path(key)?;
        let found = self.get(key)?.map(|stored| stored.entry);
        let matches =
            found.as_ref().is_some_and(|e| expect.is_none_or(|expected| e.mod_revision == expected));
        if !matches {
            return Ok(Written::Refused { found });
        }
        let revision = self.next_revision()?;
        fs::remove_file(path)?;
        Ok(Written::Done { revision })
    }

    /// Renews a leased key of ours. Answers whether it is still there, as we wrote it.
    pub(super) fn renew(&self, key: &str, mod_revision: i64) -> io::Result<bool> {
        if self.get(key)?.is_none_or(|stored| stored.entry.mod_revision != mod_revision) {
            return Ok(false);
        }
        File::options().append(true).open(self.folder.path(key)?)?.set_modified(SystemTime::now())?;
        Ok(true)
    }

    /// Removes every key whose lease has ended.
    pub(super) fn expire(&self) -> io::Result<()> {
        let ended = self.contents()?.keys.into_iter().filter(|(_, stored)| stored.has_ended());
        for (key, _) in ended {
            self.next_revision()?;
            fs::remove_file(self.folder.path(&key)?)?;
        }
        Ok(())
    }

    fn next_revision(&self) -> io::Result<i64> {
        let revision = self.revision()? + 1;
        replace(&self.folder.root.join("revision"), format!("{revision}\n").as_bytes())?;
        Ok(revision)
    }
}

impl Stored {
    /// Whether its holder has not renewed it in time.
    pub(super) fn has_ended(&self) -> bool {
        self.ends.is_some_and(|ends| ends <= SystemTime::now())
    }
}

/// Replaces a file as a whole. The lock is held, so one temporary name per folder is enough.
fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let temporary = path.with_file_name(".new");
    let mut file = File::create(&temporary)?;
    file.write_all(bytes)?;
    fs::rename(&temporary, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder() -> (tempfile::TempDir, KeyFolder) {
        let dir = tempfile::tempdir().unwrap();
        let keys = KeyFolder::create(dir.path()).unwrap();
        (dir, keys)
    }

    #[test]
    fn writers_exclude_each_other_and_readers_share() {
        let (_dir, keys) = folder();
        let read = keys.try_lock(false).unwrap().unwrap();
        assert!(keys.try_lock(false).unwrap().is_some());
        assert!(keys.try_lock(true).unwrap().is_none());
        drop(read);
        assert!(keys.try_lock(true).unwrap().is_some());
    }

    #[test]
    fn a_revision_is_never_used_twice_even_after_a_crash_between_the_two_renames() {
        let (_dir, keys) = folder();
        let locked = keys.try_lock(true).unwrap().unwrap();
        locked.next_revision().unwrap(); // and then the power went
        assert_eq!(locked.put("a", b"", None, None).unwrap(), Written::Done { revision: 3 });
        assert_eq!(locked.contents().unwrap().keys["a"].entry.create_revision, 3);
    }

    #[test]
    fn keys_cannot_leave_the_folder() {
        let (_dir, keys) = folder();
        let locked = keys.try_lock(true).unwrap().unwrap();
        for key in ["../a", "/a", "a//b", "a/.", "", "a/", "a/.hidden", &"a".repeat(300)] {
            assert!(locked.put(key, b"", None, None).is_err(), "{key:?}");
        }
    }

    #[test]
    fn a_broken_file_is_a_problem_and_stops_nobody() {
        let (dir, keys) = folder();
        let locked = keys.try_lock(true).unwrap().unwrap();
        locked.put("nodes/a", b"x", None, None).unwrap();
        fs::write(dir.path().join("state/keys/nodes/b"), "half").unwrap();
        let contents = locked.contents().unwrap();
        assert_eq!(contents.keys.keys().collect::<Vec<_>>(), ["nodes/a"]);
        assert_eq!(contents.problems.len(), 1);
    }
}
