//! The queue between a watcher and its consumer: what has not been taken yet, once per key.
//!
//! The watcher's task owns it and sends from it whenever the channel (depth 1) has room. Its size is bounded by
//! [`FULL`] changed keys: above that the watcher stops reading from its source, which keeps history for it (etcd)
//! or is read as a whole each time (file).

use std::collections::BTreeMap;
use std::future::Future;

use tokio::sync::mpsc;

use crate::{Change, Entry, Event, Watch};

/// Changed keys at which a watcher stops reading until the consumer has taken some. A cluster of 5,000 nodes has
/// about 30,000 keys.
pub(crate) const FULL: usize = 65_536;

/// Events on their way to the consumer.
#[derive(Debug, Default)]
pub(crate) struct Pending {
    /// Reason, if the consumer must learn that the store is away; `Some(None)`: that it is back.
    availability: Option<Option<String>>,
    snapshot: Option<BTreeMap<String, Entry>>,
    changes: BTreeMap<String, Change>,
    revision: i64,
    /// What the consumer was told last about availability.
    told_unavailable: bool,
    /// The list of problems, if it changed.
    problems: Option<Vec<String>>,
    told_problems: Vec<String>,
}

impl Pending {
    /// The store is away. Told once until it is back.
    pub(crate) fn unavailable(&mut self, reason: String) {
        if !self.told_unavailable {
            self.availability = Some(Some(reason));
        }
    }

    /// The store is back.
    pub(crate) fn available(&mut self) {
        self.availability = self.told_unavailable.then_some(None);
    }

    /// A snapshot replaces all that was pending.
    pub(crate) fn snapshot(&mut self, entries: Vec<Entry>, revision: i64) {
        self.changes.clear();
        self.snapshot = Some(entries.into_iter().map(|e| (e.key.clone(), e)).collect());
        self.revision = revision;
    }

    /// What cannot be used. Told when the list changes.
    pub(crate) fn problems(&mut self, problems: Vec<String>) {
        self.problems = (problems != self.told_problems).then_some(problems);
    }

    /// Changes, in the order in which they happened.
    pub(crate) fn changes(&mut self, changes: impl IntoIterator<Item = Change>, revision: i64) {
        for change in changes {
            match (&mut self.snapshot, change) {
                (Some(entries), Change::Put(entry)) => {
                    entries.insert(entry.key.clone(), entry);
                }
                (Some(entries), Change::Delete { key }) => {
                    entries.remove(&key);
                }
                (None, change) => {
                    self.changes.insert(change.key().to_owned(), change);
                }
            }
        }
        self.revision = self.revision.max(revision);
    }

    /// Whether the watcher should stop reading for now.
    pub(crate) fn is_full(&self) -> bool {
        self.changes.len() >= FULL
    }

    /// Whether there is nothing to send.
    pub(crate) fn is_empty(&self) -> bool {
        self.availability.is_none()
            && self.snapshot.is_none()
            && self.changes.is_empty()
            && self.problems.is_none()
    }

    /// The next event for the consumer: "back" before data, "away" after data.
    pub(crate) fn take(&mut self) -> Option<Event> {
        if self.availability == Some(None) {
            self.availability = None;
            self.told_unavailable = false;
            return Some(Event::Available);
        }
        let revision = self.revision;
        if let Some(entries) = self.snapshot.take() {
            return Some(Event::Snapshot { entries: entries.into_values().collect(), revision });
        }
        if !self.changes.is_empty() {
            let changes = std::mem::take(&mut self.changes).into_values().collect();
            return Some(Event::Changes { changes, revision });
        }
        if let Some(problems) = self.problems.take() {
            self.told_problems.clone_from(&problems);
            return Some(Event::Problems { problems });
        }
        self.availability.take().flatten().map(|reason| {
            self.told_unavailable = true;
            Event::Unavailable { reason }
        })
    }
}

/// A watcher's side of a [`Watch`].
#[derive(Debug)]
pub(crate) struct Outlet {
    /// What the consumer has not taken.
    pub(crate) pending: Pending,
    events: mpsc::Sender<Event>,
}

impl Outlet {
    /// Both ends. Depth 1: what waits longer is coalesced here.
    pub(crate) fn new() -> (Self, Watch) {
        let (tx, rx) = mpsc::channel(1);
        (Self { pending: Pending::default(), events: tx }, Watch { events: rx })
    }

    /// Does `work` while handing events to the consumer. `None` once the consumer is gone: `work` is dropped.
    pub(crate) async fn during<T>(&mut self, work: impl Future<Output = T>) -> Option<T> {
        tokio::pin!(work);
        loop {
            tokio::select! {
                biased;
                permit = self.events.reserve(), if !self.pending.is_empty() => {
                    let permit = permit.ok()?;
                    if let Some(event) = self.pending.take() {
                        permit.send(event);
                    }
                }
                () = self.events.closed(), if self.pending.is_empty() => return None,
                done = &mut work => return Some(done),
            }
        }
    }

    /// Waits until the queue has room again. `None` once the consumer is gone.
    pub(crate) async fn room(&mut self) -> Option<()> {
        while self.pending.is_full() {
            let permit = self.events.reserve().await.ok()?;
            if let Some(event) = self.pending.take() {
                permit.send(event);
            }
        }
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(key: &str, revision: i64) -> Entry {
        Entry { key: key.into(), value: vec![], create_revision: 1, mod_revision: revision }
    }

    fn put(key: &str, revision: i64) -> Change {
        Change::Put(entry(key, revision))
    }

    #[test]
    fn changes_of_one_key_become_one() {
        let mut pending = Pending::default();
        pending.changes([put("a", 2), put("b", 3)], 3);
        pending.changes([put("a", 4), Change::Delete { key: "b".into() }], 5);
        let expected = vec![put("a", 4), Change::Delete { key: "b".into() }];
        assert_eq!(pending.take(), Some(Event::Changes { changes: expected, revision: 5 }));
        assert_eq!(pending.take(), None);
    }

    #[test]
    fn changes_after_a_pending_snapshot_go_into_it() {
        let mut pending = Pending::default();
        pending.changes([put("old", 2)], 2);
        pending.snapshot(vec![entry("a", 3), entry("b", 3)], 3);
        pending.changes([Change::Delete { key: "a".into() }, put("c", 5)], 5);
        let entries = vec![entry("b", 3), entry("c", 5)];
        assert_eq!(pending.take(), Some(Event::Snapshot { entries, revision: 5 }));
        assert!(pending.is_empty());
    }

    #[test]
    fn a_snapshot_may_lead_back_to_an_older_revision() {
        let mut pending = Pending::default();
        pending.changes([put("a", 9)], 9);
        pending.snapshot(vec![], 4);
        assert_eq!(pending.take(), Some(Event::Snapshot { entries: vec![], revision: 4 }));
    }

    #[test]
    fn absence_is_told_once_and_a_short_one_not_at_all() {
        let mut pending = Pending::default();
        pending.unavailable("a".into());
        pending.available();
        assert!(pending.is_empty(), "the consumer never saw it go");
        pending.changes([put("a", 2)], 2);
        pending.unavailable("b".into());
        assert!(matches!(pending.take(), Some(Event::Changes { .. })), "data first");
        assert_eq!(pending.take(), Some(Event::Unavailable { reason: "b".into() }));
        pending.unavailable("c".into());
        assert!(pending.is_empty(), "told once");
        pending.changes([put("a", 3)], 3);
        pending.available();
        assert_eq!(pending.take(), Some(Event::Available));
        assert!(matches!(pending.take(), Some(Event::Changes { .. })));
    }

    #[test]
    fn problems_are_told_when_they_change() {
        let mut pending = Pending::default();
        pending.problems(vec![]);
        assert!(pending.is_empty());
        for problems in [vec!["a.yaml: broken".to_owned()], vec![]] {
            pending.problems(problems.clone());
            assert_eq!(pending.take(), Some(Event::Problems { problems: problems.clone() }));
            pending.problems(problems);
            assert!(pending.is_empty());
        }
    }

    #[test]
    fn a_full_queue_says_so_until_it_is_taken() {
        let mut pending = Pending::default();
        pending.changes((0..FULL).map(|i| put(&i.to_string(), 2)), 2);
        assert!(pending.is_full());
        pending.take();
        assert!(!pending.is_full());
    }
}
