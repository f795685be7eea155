//! A watch: snapshot in pages, then every change from there; for ever.
//!
//! One stream per connection carries one etcd watch per prefix, so a role needs to read nothing but what is
//! watched. Position is kept per prefix: after a broken stream each goes on from its own revision. A new
//! snapshot is read when history was compacted, or when the store is not the one that it was: restored from a
//! backup (cluster id, revision gone back, or another value in history where our last change was).

use std::sync::Arc;
use std::time::Duration;

use etcd_client::{Client, EventType, GetOptions, WatchOptions, WatchResponse, WatchStream};
use tokio::time::sleep;

use super::connection::{Connected, Connection, classify, is_compacted};
use crate::coalesce::Outlet;
use crate::{Backoff, Change, Entry, StoreError, is_folder};

/// Keys per page of a snapshot: small enough for any value size to stay below [`MAX_ANSWER`].
const PAGE: i64 = 500;
/// Largest answer accepted, in bytes. A value in etcd has at most 1.5 MB, ours have less than 10 kB.
const MAX_ANSWER: usize = 256 << 20;

/// How often etcd is asked whether it takes writes; one that does not is read and watched like any other.
const LOOK: Duration = Duration::from_secs(30);

/// What a session hears of.
enum Heard {
    Message(Result<Option<WatchResponse>, etcd_client::Error>),
    /// The alarms may be other ones.
    Alarms,
    /// A look at them has ended.
    Looked,
}

/// Why a session with the store ended.
#[derive(Debug)]
pub(super) enum Stop {
    /// To be tried again.
    Failed(StoreError),
    /// To be read anew, and why.
    Relist(String),
}

impl From<StoreError> for Stop {
    fn from(error: StoreError) -> Self {
        if is_compacted(&error) { Self::Relist(error.to_string()) } else { Self::Failed(error) }
    }
}

/// Up to where the consumer knows the store.
#[derive(Debug)]
struct Position {
    cluster: u64,
    /// Per prefix.
    revisions: Vec<i64>,
    /// Key and revision of the last value that came as a change: must be in history still.
    last: Option<(String, i64)>,
}

impl Position {
    fn reached(&self) -> i64 {
        self.revisions.iter().copied().max().unwrap_or(0)
    }
}

/// Runs until the consumer is gone.
pub(super) async fn run(connection: Arc<Connection>, prefixes: Vec<String>, mut outlet: Outlet) {
    let mut position = None;
    let seed = u64::from(std::process::id()).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5), seed);
    loop {
        match session(&connection, &prefixes, &mut position, &mut backoff, &mut outlet).await {
            None => return,
            Some(Stop::Failed(error)) => outlet.pending.unavailable(error.to_string()),
            Some(Stop::Relist(why)) => {
                tracing::info!(store = %connection.endpoints(), %why, "reading the store anew");
                position = None;
            }
        }
        if outlet.during(sleep(backoff.delay())).await.is_none() {
            return;
        }
    }
}

/// One connection's worth of watching. `None`: the consumer is gone.
async fn session(
    connection: &Connection,
    prefixes: &[String],
    position: &mut Option<Position>,
    backoff: &mut Backoff,
    outlet: &mut Outlet,
) -> Option<Stop> {
    let connected = &match outlet.during(connection.connected()).await? {
        Ok(connected) => connected,
        Err(error) => return Some(error.into()),
    };
    if let Some(known) = position.as_ref()
        && let Err(stop) = outlet.during(is_same_store(connection, connected, known)).await?
    {
        return Some(stop);
    }
    let position = match position {
        Some(position) => position,
        None => match outlet.during(read_pages(connection, connected, prefixes)).await? {
            Ok((entries, revision)) => {
                outlet.pending.available();
                outlet.pending.snapshot(entries, revision);
                let revisions = vec![revision; prefixes.len()];
                position.insert(Position { cluster: connected.cluster, revisions, last: None })
            }
            Err(stop) => return Some(stop),
        },
    };
    let stop = match outlet.during(open_stream(connection, connected, prefixes, position)).await? {
        Ok(mut stream) => {
            let mut alarms = connection.alarms();
            alarms.mark_changed();
            let look = move |after| async move {
                sleep(after).await;
                connection.look_for_alarms(connected).await;
            };
            // Beside the stream, so that an answer that does not come holds nothing up.
            let mut looking = std::pin::pin!(look(Duration::ZERO));
            loop {
                outlet.room().await?;
                // Each is cancel-safe: a message that has not come whole stays in the stream.
                let next = async {
                    tokio::select! {
                        message = stream.message() => Heard::Message(message),
                        Ok(()) = alarms.changed() => Heard::Alarms,
                        () = &mut looking => Heard::Looked,
                    }
                };
                let message = match outlet.during(next).await? {
                    Heard::Message(message) => message,
                    Heard::Alarms => {
                        outlet.pending.problems(alarms.borrow_and_update().clone());
                        continue;
                    }
                    Heard::Looked => {
                        looking.set(look(LOOK));
                        continue;
                    }
                };
                let failed = |error| Stop::from(classify(error, &connected.endpoint, "watch", ""));
                match message.map_err(failed) {
                    Ok(Some(response)) => match take(connection, &response, position) {
                        Ok(changes) => {
                            backoff.reset();
                            outlet.pending.available();
                            outlet.pending.changes(changes, position.reached());
                        }
                        Err(cause) => break watch_ended(connected, &response, cause),
                    },
                    Ok(None) => break lost(connected, "the watch ended"),
                    Err(stop) => break stop,
                }
            }
        }
        Err(stop) => stop,
    };
    connection.failed(connected).await;
    Some(stop)
}

/// Whether the store is the one that `known` was read from.
async fn is_same_store(connection: &Connection, connected: &Connected, known: &Position) -> Result<(), Stop> {
    if connected.cluster != known.cluster {
        return Err(Stop::Relist("its cluster id changed: restored from a backup".into()));
    }
    // A member may lag behind the one that we read from, but the probe's read had a quorum.
    if connected.revision < known.reached() {
        return Err(Stop::Relist("its revision went back: restored from a backup".into()));
    }
    let Some((key, revision)) = &known.last else { return Ok(()) };
    let (full, options) = (connection.full_key(key), GetOptions::new().with_revision(*revision));
    let call = async move |mut client: Client| client.get(full, Some(options)).await;
    let answer = connection.call(connected, "read", key, call).await?;
    if answer.kvs().first().is_some_and(|kv| kv.mod_revision() == *revision) {
        return Ok(());
    }
    Err(Stop::Relist("its history is another one: restored from a backup".into()))
}

/// Everything under the prefixes, at one revision.
pub(super) async fn read_pages(
    connection: &Connection,
    connected: &Connected,
    prefixes: &[String],
) -> Result<(Vec<Entry>, i64), Stop> {
    let mut entries = Vec::new();
    let mut revision = 0;
    for prefix in prefixes {
        let mut from = connection.full_key(prefix);
        let end = is_folder(prefix).then(|| after_prefix(&from));
        loop {
            let mut options = GetOptions::new().with_limit(PAGE).with_revision(revision);
            if let Some(end) = &end {
                options = options.with_range(end.clone());
            }
            let key = from.clone();
            let call = async move |client: Client| {
                client.kv_client().max_decoding_message_size(MAX_ANSWER).get(key, Some(options)).await
            };
            let answer = connection.call(connected, "read", prefix, call).await?;
            if revision == 0 {
                revision = answer.header().map_or(0, |header| header.revision());
            }
            entries.extend(answer.kvs().iter().filter_map(|kv| connection.entry(kv)));
            match answer.kvs().last() {
                Some(last) if answer.more() => {
                    from = String::from_utf8_lossy(last.key()).into_owned();
                    from.push('\0');
                }
                _ => break,
            }
        }
    }
    entries.sort_by(|a, b| a.key.cmp(&b.key));
    Ok((entries, revision))
}

/// The first key after all that begin with `prefix` (etcd's range end). Prefixes are ASCII and end with `/`.
fn after_prefix(prefix: &str) -> String {
    let mut end = prefix.to_owned();
    end.pop();
    end.push('0');
    end
}

/// One stream with one watch per prefix; the watch's id is the prefix's place, from 1.
async fn open_stream(
    connection: &Connection,
    connected: &Connected,
    prefixes: &[String],
    position: &Position,
) -> Result<WatchStream, Stop> {
    let call = async |client: Client| {
        let mut client = client.watch_client().max_decoding_message_size(MAX_ANSWER);
        let mut stream: Option<WatchStream> = None;
        for ((prefix, revision), id) in prefixes.iter().zip(&position.revisions).zip(1..) {
            let mut options = WatchOptions::new()
                .with_start_revision(revision + 1)
                .with_watch_id(id)
                .with_progress_notify();
            let key = connection.full_key(prefix);
            if is_folder(prefix) {
                options = options.with_range(after_prefix(&key));
            }
            match &mut stream {
                Some(stream) => stream.watch(key, Some(options)).await?,
                None => stream = Some(client.watch(key, Some(options)).await?),
            }
        }
        Ok(stream)
    };
    let stream = connection.call(connected, "watch", "", call).await?;
    stream.ok_or_else(|| lost(connected, "nothing to watch"))
}

/// What a message of the stream says, and the position after it. `Err`: the watch was cancelled, and why.
fn take(
    connection: &Connection,
    response: &WatchResponse,
    position: &mut Position,
) -> Result<Vec<Change>, String> {
    if response.canceled() || response.compact_revision() > 0 {
        return Err(response.cancel_reason().to_owned());
    }
    let place = usize::try_from(response.watch_id() - 1).unwrap_or(usize::MAX);
    let Some(reached) = position.revisions.get_mut(place) else { return Ok(vec![]) };
    let mut changes = Vec::with_capacity(response.events().len());
    for event in response.events() {
        let Some(kv) = event.kv() else { continue };
        // The header may be ahead of the events while a watch catches up, so the events decide.
        *reached = (*reached).max(kv.mod_revision());
        match event.event_type() {
            EventType::Put => {
                if let Some(entry) = connection.entry(kv) {
                    position.last = Some((entry.key.clone(), entry.mod_revision));
                    changes.push(Change::Put(entry));
                }
            }
            EventType::Delete => {
                changes.extend(connection.relative(kv).map(|key| Change::Delete { key }));
            }
        }
    }
    // Neither events nor the watch's creation: a progress notice, complete up to its header.
    if response.events().is_empty()
        && !response.created()
        && let Some(header) = response.header()
    {
        *reached = (*reached).max(header.revision());
    }
    Ok(changes)
}

fn watch_ended(connected: &Connected, response: &WatchResponse, cause: String) -> Stop {
    if response.compact_revision() > 0 {
        return Stop::Relist(format!(
            "history before revision {} was compacted",
            response.compact_revision()
        ));
    }
    lost(connected, if cause.is_empty() { "the watch was cancelled" } else { &cause })
}

fn lost(connected: &Connected, cause: &str) -> Stop {
    Stop::Failed(StoreError::Unavailable { endpoint: connected.endpoint.clone(), cause: cause.to_owned() })
}
