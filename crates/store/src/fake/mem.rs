//! A store's state in memory, as a pure state machine: revisions, history, compaction, leases. Time is an argument.
//!
//! It refuses what etcd refuses: a condition that does not hold, a lease that has ended, history that was compacted.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::{Change, Entry, Expect, Guard, Listing, Written, is_watched};

/// A lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct LeaseId(u64);

/// The lease has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LeaseEnded;

/// The history that was asked for is gone: read everything anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Compacted;

#[derive(Debug, Clone)]
struct Stored {
    entry: Entry,
    lease: Option<LeaseId>,
}

#[derive(Debug, Clone)]
struct Lease {
    time: Duration,
    ends: Duration,
}

/// The state. [`Clone`] makes a backup, from which a cluster can be restored to an older revision.
#[derive(Debug, Clone, Default)]
pub struct Mem {
    now: Duration,
    revision: i64,
    entries: BTreeMap<String, Stored>,
    history: Vec<(i64, Change)>,
    compacted: i64,
    leases: BTreeMap<LeaseId, Lease>,
    last_lease: u64,
}

impl Mem {
    /// An empty store.
    pub fn new() -> Self {
        Self { revision: 1, ..Self::default() }
    }

    /// The current revision.
    pub fn revision(&self) -> i64 {
        self.revision
    }

    /// Lets time pass; leases end.
    pub fn advance(&mut self, now: Duration) {
        self.now = self.now.max(now);
        let ended: Vec<LeaseId> =
            self.leases.iter().filter(|(_, l)| l.ends <= self.now).map(|(id, _)| *id).collect();
        for id in ended {
            self.revoke(id);
        }
    }

    /// When the next lease ends if nobody keeps it alive.
    pub fn next_expiry(&self) -> Option<Duration> {
        self.leases.values().map(|lease| lease.ends).min()
    }

    /// One key.
    pub fn entry(&self, key: &str) -> Option<Entry> {
        self.entries.get(key).map(|s| s.entry.clone())
    }

    /// All keys under the prefixes.
    pub fn list(&self, prefixes: &[String]) -> Listing {
        let entries = self.entries.values().filter(|s| is_watched(prefixes, &s.entry.key));
        Listing { entries: entries.map(|s| s.entry.clone()).collect(), revision: self.revision }
    }

    /// What changed under the prefixes after `revision`, and the current revision.
    pub fn since(&self, prefixes: &[String], revision: i64) -> Result<(Vec<Change>, i64), Compacted> {
        if revision < self.compacted {
            return Err(Compacted);
        }
        let start = self.history.partition_point(|(at, _)| *at <= revision);
        let changes = self.history[start..].iter().map(|(_, change)| change);
        Ok((changes.filter(|c| is_watched(prefixes, c.key())).cloned().collect(), self.revision))
    }

    /// Writes whatever stands there.
    pub fn put(&mut self, key: &str, value: &[u8], lease: Option<LeaseId>) -> Result<i64, LeaseEnded> {
        if lease.is_some_and(|id| !self.leases.contains_key(&id)) {
            return Err(LeaseEnded);
        }
        self.revision += 1;
        let create_revision = self.entries.get(key).map_or(self.revision, |s| s.entry.create_revision);
        let entry =
            Entry { key: key.into(), value: value.into(), create_revision, mod_revision: self.revision };
        self.history.push((self.revision, Change::Put(entry.clone())));
        self.entries.insert(key.to_owned(), Stored { entry, lease });
        Ok(self.revision)
    }

    /// Writes if `expect` holds.
    pub fn put_if(
        &mut self,
        key: &str,
        value: &[u8],
        expect: Expect,
        lease: Option<LeaseId>,
    ) -> Result<Written, LeaseEnded> {
        let found = self.entry(key);
        if !expect.holds(found.as_ref()) {
            return Ok(Written::Refused { found });
        }
        Ok(Written::Done { revision: self.put(key, value, lease)? })
    }

    /// Writes if `expect` holds, and each of `guards` for its key.
    pub fn put_guarded(
        &mut self,
        key: &str,
        value: &[u8],
        expect: Expect,
        guards: &[Guard],
    ) -> Result<Written, LeaseEnded> {
        if guards.iter().any(|guard| !guard.expect.holds(self.entry(&guard.key).as_ref())) {
            return Ok(Written::Refused { found: self.entry(key) });
        }
        self.put_if(key, value, expect, None)
    }

    /// Removes a key; whether it was there.
    pub fn delete(&mut self, key: &str) -> bool {
        self.delete_all(&[key.to_owned()]) > 0
    }

    /// Removes a key if it was last changed at `mod_revision`.
    pub fn delete_if(&mut self, key: &str, mod_revision: i64) -> Written {
        let found = self.entry(key);
        if found.as_ref().is_none_or(|e| e.mod_revision != mod_revision) {
            return Written::Refused { found };
        }
        self.delete(key);
        Written::Done { revision: self.revision }
    }

    /// Removes keys in one revision; how many there were.
    pub fn delete_all(&mut self, keys: &[String]) -> usize {
        let gone: Vec<&String> = keys.iter().filter(|key| self.entries.remove(*key).is_some()).collect();
        if !gone.is_empty() {
            self.revision += 1;
            let revision = self.revision;
            self.history.extend(gone.iter().map(|key| (revision, Change::Delete { key: (*key).clone() })));
        }
        gone.len()
    }

    /// Removes every key in one revision, as `etcdctl del --prefix` does.
    pub fn wipe(&mut self) -> usize {
        let keys: Vec<String> = self.entries.keys().cloned().collect();
        self.delete_all(&keys)
    }

    /// Forgets history up to now.
    pub fn compact(&mut self) {
        self.compacted = self.revision;
        self.history.clear();
    }

    /// Makes a lease.
    pub fn grant(&mut self, time: Duration) -> LeaseId {
        self.last_lease += 1;
        let id = LeaseId(self.last_lease);
        self.leases.insert(id, Lease { time, ends: self.now + time });
        id
    }

    /// Keeps a lease alive.
    pub fn keep_alive(&mut self, id: LeaseId) -> Result<(), LeaseEnded> {
        let lease = self.leases.get_mut(&id).ok_or(LeaseEnded)?;
        lease.ends = self.now + lease.time;
        Ok(())
    }

    /// Ends a lease; its keys go.
    pub fn revoke(&mut self, id: LeaseId) {
        self.leases.remove(&id);
        let keys: Vec<String> =
            self.entries.iter().filter(|(_, s)| s.lease == Some(id)).map(|(key, _)| key.clone()).collect();
        self.delete_all(&keys);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_takes_its_keys_along_and_cannot_be_used_afterwards() {
        let mut mem = Mem::new();
        let lease = mem.grant(Duration::from_secs(10));
        mem.put("live/a", b"1", Some(lease)).unwrap();
        mem.advance(Duration::from_secs(9));
        mem.keep_alive(lease).unwrap();
        mem.advance(Duration::from_secs(18));
        assert!(mem.entry("live/a").is_some());
        mem.advance(Duration::from_secs(19));
        assert_eq!(mem.entry("live/a"), None);
        assert_eq!(mem.put("live/a", b"1", Some(lease)), Err(LeaseEnded));
        assert_eq!(mem.keep_alive(lease), Err(LeaseEnded));
    }

    #[test]
    fn history_ends_where_it_was_compacted() {
        let mut mem = Mem::new();
        let watched = ["a/".to_owned()];
        mem.put("a/1", b"", None).unwrap();
        let seen = mem.revision();
        mem.put("a/2", b"", None).unwrap();
        mem.put("b/1", b"", None).unwrap();
        assert_eq!(mem.since(&watched, seen).unwrap().0.len(), 1);
        mem.compact();
        assert_eq!(mem.since(&watched, seen), Err(Compacted));
        assert_eq!(mem.since(&watched, mem.revision()).unwrap().0, vec![]);
    }
}
