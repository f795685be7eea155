//! From store events to engine events.
//!
//! A value that cannot be read is reported and skipped: the last good one of its key stays in force. When the store
//! goes away nothing changes at all.

use std::collections::{BTreeMap, BTreeSet};

use podway_model::accepts_schema;
use podway_model::k8s::{Namespace, NetworkPolicy, ObjectMeta, Pod};
use podway_model::keys::Key;
use podway_policy::Event;
use podway_store::{Change, Entry, Event as StoreEvent};
use serde::Deserialize;
use serde::de::DeserializeOwned;

/// Prefix of the keys that matter.
pub(crate) const PREFIX: &str = "objects/";

/// What is known of the store.
#[derive(Debug, Default)]
pub(crate) struct Source {
    synced: bool,
    revision: i64,
    away: Option<String>,
    /// Keys whose value is in force.
    known: BTreeSet<Key>,
    /// Keys whose latest value cannot be used, and why.
    unusable: BTreeMap<Key, String>,
    /// Parts of the store that it cannot read itself.
    broken_parts: Vec<String>,
}

impl Source {
    /// Whether a whole snapshot has been read.
    pub(crate) fn is_synced(&self) -> bool {
        self.synced
    }

    /// Revision of the store that was read.
    pub(crate) fn revision(&self) -> i64 {
        self.revision
    }

    /// State in words.
    pub(crate) fn describe(&self) -> String {
        match (&self.away, self.synced) {
            (None, true) => "in sync".to_owned(),
            (None, false) => "no snapshot yet".to_owned(),
            (Some(reason), true) => format!("away, the last state stays in force: {reason}"),
            (Some(reason), false) => format!("away since the start: {reason}"),
        }
    }

    /// Values that cannot be used, one line each.
    pub(crate) fn problems(&self) -> impl Iterator<Item = String> + '_ {
        let unusable = self.unusable.iter().map(|(key, why)| format!("{key}: {why}"));
        self.broken_parts.iter().cloned().chain(unusable)
    }

    /// Takes a store event in; what follows for the engine goes to `out`, values newly found unusable to `refused`.
    pub(crate) fn on_event(&mut self, event: StoreEvent, out: &mut Vec<Event>, refused: &mut Vec<String>) {
        match event {
            StoreEvent::Snapshot { entries, revision } => {
                let mut gone: BTreeSet<Key> =
                    self.known.iter().chain(self.unusable.keys()).cloned().collect();
                for entry in entries {
                    if let Some(key) = self.put(&entry, out, refused) {
                        gone.remove(&key);
                    }
                }
                gone.into_iter().for_each(|key| self.delete(key, out));
                self.revision = revision;
                self.synced = true;
                self.away = None;
            }
            StoreEvent::Changes { changes, revision } => {
                for change in changes {
                    match change {
                        Change::Put(entry) => {
                            self.put(&entry, out, refused);
                        }
                        Change::Delete { key } => {
                            if let Ok(key) = key.parse() {
                                self.delete(key, out);
                            }
                        }
                    }
                }
                self.revision = revision;
            }
            StoreEvent::Unavailable { reason } => self.away = Some(reason),
            StoreEvent::Available => self.away = None,
            StoreEvent::Problems { problems } => {
                refused.extend(problems.iter().filter(|line| !self.broken_parts.contains(line)).cloned());
                self.broken_parts = problems;
            }
        }
    }

    /// Reads a value. `None`: the key is none of ours.
    fn put(&mut self, entry: &Entry, out: &mut Vec<Event>, refused: &mut Vec<String>) -> Option<Key> {
        let key: Key = entry.key.parse().ok()?;
        let event = match &key {
            Key::Namespace(name) => {
                read(&entry.value, |o: &Namespace| &o.metadata, "", name).map(Event::NamespacePut)
            }
            Key::Pod(namespace, name) => {
                read(&entry.value, |o: &Pod| &o.metadata, namespace, name).map(Event::PodPut)
            }
            Key::NetworkPolicy(namespace, name) => {
                read(&entry.value, |o: &NetworkPolicy| &o.metadata, namespace, name).map(Event::PolicyPut)
            }
            _ => return None,
        };
        match event {
            Ok(event) => {
                self.unusable.remove(&key);
                self.known.insert(key.clone());
                out.push(event);
            }
            Err(why) => {
                if self.unusable.get(&key) != Some(&why) {
                    refused.push(format!("{key}: {why}"));
                    self.unusable.insert(key.clone(), why);
                }
            }
        }
        Some(key)
    }

    fn delete(&mut self, key: Key, out: &mut Vec<Event>) {
        self.unusable.remove(&key);
        if !self.known.remove(&key) {
            return;
        }
        match key {
            Key::Namespace(name) => out.push(Event::NamespaceDeleted(name)),
            Key::Pod(namespace, name) => out.push(Event::PodDeleted(namespace, name)),
            Key::NetworkPolicy(namespace, name) => out.push(Event::PolicyDeleted(namespace, name)),
            _ => {}
        }
    }
}

/// Reads an object and checks that it is the one that its key names.
fn read<T: DeserializeOwned>(
    value: &[u8],
    metadata: fn(&T) -> &ObjectMeta,
    namespace: &str,
    name: &str,
) -> Result<T, String> {
    #[derive(Deserialize)]
    struct Versioned {
        schema: Option<u32>,
    }
    let unreadable = |e: serde_json::Error| format!("cannot be read: {e}");
    let Versioned { schema } = serde_json::from_slice(value).map_err(unreadable)?;
    if let Some(schema) = schema.filter(|schema| !accepts_schema(*schema)) {
        return Err(format!("schema: {schema} found, written by another version of Podway"));
    }
    let object: T = serde_json::from_slice(value).map_err(unreadable)?;
    let found = metadata(&object);
    if (found.namespace.as_str(), found.name.as_str()) != (namespace, name) {
        return Err(format!("metadata: {:?} in {:?} found, the key expected", found.name, found.namespace));
    }
    Ok(object)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(key: &str, value: &str) -> Entry {
        Entry { key: key.into(), value: value.into(), create_revision: 1, mod_revision: 1 }
    }

    fn step(source: &mut Source, event: StoreEvent) -> (Vec<Event>, Vec<String>) {
        let (mut out, mut refused) = (vec![], vec![]);
        source.on_event(event, &mut out, &mut refused);
        (out, refused)
    }

    fn snapshot(entries: Vec<Entry>) -> StoreEvent {
        StoreEvent::Snapshot { entries, revision: 7 }
    }

    const POD: &str = r#"{"metadata":{"namespace":"x","name":"a","labels":{"app":"a"}}}"#;

    #[test]
    fn what_a_later_snapshot_lacks_is_gone() {
        let mut source = Source::default();
        let namespace = entry("objects/namespaces/x", r#"{"metadata":{"name":"x"}}"#);
        let (out, _) = step(
            &mut source,
            snapshot(vec![namespace.clone(), entry("objects/pods/x/a", POD), entry("other", "")]),
        );
        assert_eq!(out.len(), 2);
        assert!(source.is_synced());
        let (out, _) = step(&mut source, snapshot(vec![namespace]));
        assert_eq!(out[1..], [Event::PodDeleted("x".into(), "a".into())]);
    }

    #[test]
    fn a_bad_value_is_reported_once_and_the_last_good_one_stays() {
        let mut source = Source::default();
        step(&mut source, snapshot(vec![entry("objects/pods/x/a", POD)]));
        for bad in ["{", r#"{"metadata":{"namespace":"x","name":"b"}}"#, r#"{"schema":9,"metadata":{}}"#] {
            let change = || StoreEvent::Changes {
                changes: vec![Change::Put(entry("objects/pods/x/a", bad))],
                revision: 8,
            };
            let (out, refused) = step(&mut source, change());
            assert_eq!((out.len(), refused.len()), (0, 1), "{bad}");
            assert_eq!(step(&mut source, change()).1.len(), 0, "said once");
        }
        assert_eq!(source.problems().count(), 1);
        // A snapshot with the bad value does not take the good one away.
        let (out, _) = step(&mut source, snapshot(vec![entry("objects/pods/x/a", "{")]));
        assert_eq!(out, []);
        let (out, _) = step(&mut source, snapshot(vec![]));
        assert_eq!(out, [Event::PodDeleted("x".into(), "a".into())]);
        assert_eq!(source.problems().count(), 0);
    }

    #[test]
    fn a_store_that_goes_away_changes_nothing() {
        let mut source = Source::default();
        step(&mut source, snapshot(vec![entry("objects/pods/x/a", POD)]));
        let (out, _) = step(&mut source, StoreEvent::Unavailable { reason: "refused".into() });
        assert_eq!(out, []);
        assert!(source.is_synced());
        assert_eq!(source.describe(), "away, the last state stays in force: refused");
        step(&mut source, StoreEvent::Available);
        assert_eq!(source.describe(), "in sync");
    }
}
