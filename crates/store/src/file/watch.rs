//! A watch of the files: inotify with debounce, everything read anew on each change, the difference told.
//!
//! A look once a second besides: for leases that end, for file systems that tell nothing (a ConfigMap mounted by
//! `subPath`, a network file system), and for a path that is not there yet.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::pin::Pin;
use std::time::Duration;

use futures::StreamExt as _;
use inotify::{Event, EventOwned, EventStream, Inotify, WatchMask};
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::documents::Documents;
use super::{All, Place, lock, signature};
use crate::coalesce::Outlet;
use crate::{Change, Entry, StoreError, is_watched};

/// A change is complete when nothing happened for this long,
const QUIET: Duration = Duration::from_millis(20);
/// or this long after it began.
const AT_MOST: Duration = Duration::from_millis(200);
/// Slow look.
const LOOK: Duration = Duration::from_secs(1);

/// Runs until the consumer is gone.
pub(super) async fn run(place: Place, prefixes: Vec<String>, mut outlet: Outlet) {
    let mut documents = Documents::default();
    let mut known: Option<(BTreeMap<String, Entry>, i64)> = None;
    let mut changes: Option<Changes> = None;
    loop {
        // Before reading, so that nothing falls between reading and waiting.
        if changes.is_none() {
            changes = Changes::begin(&place).ok();
        }
        let seen = Signature::of(&place);
        let has_leases = match outlet.during(read(&place, &mut documents)).await {
            None => return,
            Some(Ok(All { mut entries, revision, problems, has_leases })) => {
                entries.retain(|key, _| is_watched(&prefixes, key));
                outlet.pending.available();
                outlet.pending.problems(problems);
                match &known {
                    Some((before, at)) if *at <= revision => {
                        outlet.pending.changes(difference(before, &entries), revision);
                    }
                    // The first time, or the folder was replaced by an older one.
                    _ => outlet.pending.snapshot(entries.values().cloned().collect(), revision),
                }
                known = Some((entries, revision));
                has_leases
            }
            Some(Err(error)) => {
                outlet.pending.unavailable(error.to_string());
                false
            }
        };
        let wait = async {
            loop {
                match &mut changes {
                    Some(stream) => match timeout(LOOK, stream.next()).await {
                        Ok(Ok(())) => return true,
                        Ok(Err(_)) => return false,
                        Err(_) => {}
                    },
                    None => sleep(LOOK).await,
                }
                if has_leases || changes.is_none() || Signature::of(&place) != seen {
                    return changes.is_some();
                }
            }
        };
        match outlet.during(wait).await {
            None => return,
            Some(true) => {}
            // The watched folder itself was replaced: watch the new one.
            Some(false) => changes = None,
        }
    }
}

async fn read(place: &Place, documents: &mut Documents) -> Result<All, StoreError> {
    let Some(keys) = &place.keys else { return place.all(documents, None) };
    let all = place.all(documents, Some(&lock(keys, false).await?))?;
    if !all.has_leases {
        return Ok(all);
    }
    // Whoever notices the end of a lease first makes it a change that all others see.
    lock(keys, true).await?.expire().map_err(|error| place.failed(&error))?;
    place.all(documents, Some(&lock(keys, false).await?))
}

fn difference(before: &BTreeMap<String, Entry>, after: &BTreeMap<String, Entry>) -> Vec<Change> {
    let gone = before.keys().filter(|key| !after.contains_key(*key));
    let put = after.values().filter(|entry| before.get(&entry.key) != Some(entry));
    gone.map(|key| Change::Delete { key: key.clone() }).chain(put.cloned().map(Change::Put)).collect()
}

/// What the slow look compares.
#[derive(Debug, PartialEq, Eq)]
struct Signature(Vec<Option<(std::time::SystemTime, u64, u64)>>);

impl Signature {
    fn of(place: &Place) -> Self {
        let mut all = vec![signature(&place.path), signature(&place.path.join("..data"))];
        if let Ok(files) = super::documents::document_paths(&place.path) {
            all.extend(files.iter().map(|file| signature(file)));
        }
        all.extend(place.keys.as_ref().map(|keys| signature(&keys.watched().join("revision"))));
        Self(all)
    }
}

/// A stream of "something changed".
struct Changes {
    events: Pin<Box<EventStream<[u8; 4096]>>>,
}

impl Changes {
    fn begin(place: &Place) -> io::Result<Self> {
        let inotify = Inotify::init()?;
        let mask = WatchMask::CLOSE_WRITE
            | WatchMask::MOVED_TO
            | WatchMask::MOVED_FROM
            | WatchMask::CREATE
            | WatchMask::DELETE
            | WatchMask::DELETE_SELF
            | WatchMask::MOVE_SELF
            | WatchMask::ONLYDIR;
        let folder = if place.path.is_dir() {
            place.path.as_path()
        } else {
            place.path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
        };
        inotify.watches().add(folder, mask)?;
        if let Some(keys) = &place.keys {
            inotify.watches().add(keys.watched(), mask)?;
        }
        Ok(Self { events: Box::pin(inotify.into_event_stream([0; 4096])?) })
    }

    /// Waits for a change and for quiet after it. Cancel-safe: what was read is only a hint to read the files.
    async fn next(&mut self) -> io::Result<()> {
        self.relevant().await?;
        let latest = Instant::now() + AT_MOST;
        while let Ok(more) = timeout_at(latest.min(Instant::now() + QUIET), self.relevant()).await {
            more?;
        }
        Ok(())
    }

    async fn relevant(&mut self) -> io::Result<()> {
        loop {
            let Some(event) = self.events.next().await else {
                return Err(io::ErrorKind::UnexpectedEof.into());
            };
            let event: EventOwned = event?;
            let gone = inotify::EventMask::DELETE_SELF
                | inotify::EventMask::MOVE_SELF
                | inotify::EventMask::IGNORED
                | inotify::EventMask::UNMOUNT;
            if event.mask.intersects(gone) {
                return Err(io::ErrorKind::NotFound.into());
            }
            // Our own folder's lock and temporary files say nothing.
            let Event { name: Some(name), .. } = event else { return Ok(()) };
            if !matches!(name.as_encoded_bytes(), b"lock" | b".new") {
                return Ok(());
            }
        }
    }
}
