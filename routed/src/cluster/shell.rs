//! The shell round the core: the store, the address leases, the node file, time.
//!
//! One loop: wait for an event, step, carry out. Writes to the store and blocking file work run beside the loop,
//! as futures that end in an event; how many there are is bounded by the core (one write per key, one node file)
//! and by this loop (one look at the leases). Everything awaited is cancel-safe: the watch of the store hands out
//! whole events, facts are a `watch`, and a notice of the leases' folder is only a hint to look. There is exactly
//! one sleep: until the core's deadline or the next slow look.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fs;
use std::io::{self, Write as _};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures::stream::FuturesUnordered;
use futures::{Stream, StreamExt as _};
use inotify::{Inotify, WatchMask};
use ipnet::IpNet;
use podway_ipam::store::{AddressLock, since_boot};
use podway_ipam::{Attachment, LeaseStore, stale};
use podway_model::flannel::Prefix;
use podway_model::ids::BootId;
use podway_model::keys::Key;
use podway_model::node_file::NodeFile;
use podway_model::ways::Ways;
use podway_store::{Store, StoreError, Watch, Written};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use super::core::Core;
use super::event::{Action, Event, Operation, Severity, Usage, Write};
use super::table::PREFIXES;
use super::usage::Teller;
use super::{Identity, Refusal};
use crate::ipam;
use crate::view::{ClusterView, LocalFacts};

/// Slow look at the leases (addresses leave quarantine without a notice) and at the wall clock.
const LOOK: Duration = Duration::from_secs(30);
/// Leases change in bursts: how soon a notice is followed by a look.
const SOON: Duration = Duration::from_millis(50);

/// Work beside the loop.
type Work = FuturesUnordered<Pin<Box<dyn Future<Output = Done> + Send>>>;

/// What work ended with.
enum Done {
    /// An event for the core.
    Event(Event),
    /// A look at the leases.
    Look(Result<Looked, String>),
    /// The use of addresses was told, or could not be.
    Told(Result<Written, StoreError>),
}

/// Runs for the life of the process; publishes every change of the view. Ends only with a [`Refusal`].
pub(crate) async fn run(
    identity: Identity,
    store: Arc<dyn Store>,
    mut facts: watch::Receiver<Option<LocalFacts>>,
    mut ways: watch::Receiver<Option<Ways>>,
    view: watch::Sender<Arc<ClusterView>>,
) -> Result<Infallible, Refusal> {
    let start = Instant::now();
    let mut core = Core::new(identity.clone(), read_node_file(&identity.node_file));
    let mut events = store.watch(&PREFIXES);
    let mut flannel: Option<FlannelWatch> = None;
    let mut notices: Option<Notices> = None;
    let mut work = Work::new();
    let mut leases = Leases {
        is_looking: false,
        look_at: start,
        looked_for: Vec::new(),
        collect_at: start,
        problem: None,
    };
    let mut teller = Teller::default();
    let usage_key = Key::Usage(identity.node.clone()).to_string();
    let mut facts_end = false;
    facts.mark_changed();
    work.push(Box::pin(async { Done::Event(Event::Clock(unix_seconds())) }));
    loop {
        if notices.is_none() {
            notices = watch_leases(&identity.ipam_dir).ok();
        }
        let own: Vec<IpNet> = core.view().own_blocks.iter().map(|block| block.cidr).collect();
        if own != leases.looked_for {
            leases.look_at = Instant::now();
        }
        if !leases.is_looking && leases.look_at <= Instant::now() {
            leases.is_looking = true;
            leases.look_at = Instant::now() + LOOK;
            leases.looked_for.clone_from(&own);
            let collect = leases.collect_at <= Instant::now();
            if collect {
                leases.collect_at = Instant::now() + stale::APART;
            }
            work.push(look_at_leases(&identity, own, collect));
            work.push(Box::pin(async { Done::Event(Event::Clock(unix_seconds())) }));
        }
        if let Some((value, expect)) = teller.write(start.elapsed()) {
            let (store, key) = (store.clone(), usage_key.clone());
            work.push(Box::pin(async move { Done::Told(store.put_if(&key, &value, expect).await) }));
        }
        let deadline = core.deadline().map_or(leases.look_at, |at| leases.look_at.min(start + at));
        // While a look is under way, its end wakes the loop.
        let deadline = if leases.is_looking { deadline.max(Instant::now() + SOON) } else { deadline };
        let wanted = core.flannel_prefix();
        if flannel.as_ref().map(|flannel| &flannel.prefix) != wanted.as_ref() {
            flannel = wanted.map(|prefix| FlannelWatch::new(store.as_ref(), prefix));
        }
        let event = tokio::select! {
            event = flannel_event(&mut flannel) => event,
            event = events.next() => match event {
                Some(event) => Event::Store(event),
                None => return std::future::pending().await,
            },
            changed = facts.changed(), if !facts_end => {
                facts_end = changed.is_err();
                match facts.borrow_and_update().clone() {
                    Some(facts) => Event::Facts(facts),
                    None => continue,
                }
            }
            Ok(()) = ways.changed() => match ways.borrow_and_update().clone() {
                Some(ways) => Event::Ways(ways),
                None => continue,
            },
            Some(done) = work.next() => match done {
                Done::Event(event) => event,
                Done::Look(result) => {
                    leases.is_looking = false;
                    match leases.on_look(result) {
                        Some(Looked { blocks, generation, elsewhere }) => {
                            teller.look(&blocks);
                            Event::Usage { blocks, generation, elsewhere }
                        }
                        None => continue,
                    }
                }
                Done::Told(result) => {
                    teller.on_written(start.elapsed(), result);
                    continue;
                }
            },
            () = noticed(&mut notices) => {
                leases.look_at = leases.look_at.min(Instant::now() + SOON);
                continue;
            }
            () = sleep_until(deadline) => Event::Tick,
        };
        if matches!(event, Event::NodeFileWritten { .. }) {
            // What is not offered any more can be judged now.
            leases.look_again();
        }
        let mut out = Vec::new();
        core.step(start.elapsed(), event, &mut out);
        for action in out {
            match action {
                Action::Write(write) => work.push(carry_out(store.clone(), write)),
                Action::WriteNodeFile(file) => work.push(write_node_file(&identity, *file)),
                Action::ForgetLeases(block) => work.push(forget_leases(&identity, block)),
                Action::Publish => drop(view.send_replace(core.view())),
                Action::Report(Severity::Info, text) => tracing::info!("{text}"),
                Action::Report(Severity::Warn, text) => tracing::warn!("{text}"),
                Action::Refuse(refusal) => return Err(refusal),
            }
        }
    }
}

/// The watch of flannel's keys.
struct FlannelWatch {
    prefix: Prefix,
    /// Or why there is none: told once.
    watch: Result<Watch, Option<String>>,
}

impl FlannelWatch {
    fn new(store: &dyn Store, prefix: Prefix) -> Self {
        let watch = || store.watch(&[&prefix.config(), &prefix.subnets()]);
        let watch = store.takes_outside(prefix.as_str()).map(|()| watch()).map_err(Some);
        Self { prefix, watch }
    }
}

/// Cancel-safe: the watch is, and a refusal is told without waiting.
async fn flannel_event(flannel: &mut Option<FlannelWatch>) -> Event {
    let Some(FlannelWatch { prefix, watch }) = flannel else { return std::future::pending().await };
    let event = match watch {
        Ok(watch) => watch.next().await.map(Ok),
        Err(why) => why.take().map(Err),
    };
    match event {
        Some(event) => Event::Flannel(prefix.clone(), event),
        None => std::future::pending().await,
    }
}

/// When to look at the leases, and what was said about them.
struct Leases {
    is_looking: bool,
    look_at: Instant,
    /// Blocks of the last look.
    looked_for: Vec<IpNet>,
    /// When to look for leases whose pods are gone.
    collect_at: Instant,
    /// Told once.
    problem: Option<String>,
}

/// How full the blocks are.
struct Looked {
    blocks: BTreeMap<IpNet, Usage>,
    /// Of the node file that stood meanwhile.
    generation: u64,
    /// Addresses that pods hold in none of them.
    elsewhere: Vec<IpAddr>,
}

impl Leases {
    /// Soon, also if a look is under way: it may have begun before.
    fn look_again(&mut self) {
        self.look_at = Instant::now();
    }

    fn on_look(&mut self, result: Result<Looked, String>) -> Option<Looked> {
        match result {
            Ok(usage) => {
                self.problem = None;
                Some(usage)
            }
            Err(error) => {
                if self.problem.as_ref() != Some(&error) {
                    tracing::warn!("address leases cannot be read: {error}");
                    self.problem = Some(error);
                }
                None
            }
        }
    }
}

fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// A stream of notices from the leases' folder.
type Notices = Pin<Box<dyn Stream<Item = io::Result<inotify::EventOwned>> + Send>>;

fn watch_leases(folder: &Path) -> io::Result<Notices> {
    fs::create_dir_all(folder)?;
    let inotify = Inotify::init()?;
    inotify
        .watches()
        .add(folder, WatchMask::MODIFY | WatchMask::MOVED_TO | WatchMask::CREATE | WatchMask::DELETE_SELF)?;
    Ok(Box::pin(inotify.into_event_stream([0; 4096])?))
}

/// Waits for a notice. Without a folder, and after the folder was replaced, the slow look has to do until the
/// folder is watched again.
async fn noticed(notices: &mut Option<Notices>) {
    match notices {
        None => std::future::pending().await,
        Some(stream) => {
            let is_gone = match stream.next().await {
                Some(Ok(event)) => {
                    event.mask.intersects(inotify::EventMask::IGNORED | inotify::EventMask::DELETE_SELF)
                }
                Some(Err(_)) | None => true,
            };
            if is_gone {
                *notices = None;
            }
        }
    }
}

fn look_at_leases(
    identity: &Identity,
    blocks: Vec<IpNet>,
    collect: bool,
) -> Pin<Box<dyn Future<Output = Done> + Send>> {
    let (folder, boot) = (identity.ipam_dir.clone(), identity.boot_id.clone());
    let file = identity.node_file.clone();
    Box::pin(async move {
        let look = tokio::task::spawn_blocking(move || count_leases(&folder, &boot, &file, &blocks, collect));
        Done::Look(look.await.unwrap_or_else(|error| Err(error.to_string())))
    })
}

/// Waits for the address lock, so it runs on a thread of its own.
fn count_leases(
    folder: &Path,
    boot: &BootId,
    file: &Path,
    blocks: &[IpNet],
    collect: bool,
) -> Result<Looked, String> {
    let mut leases = LeaseStore::open(folder, boot).map_err(|error| error.to_string())?;
    if collect && let Err(error) = end_stale_leases(&mut leases) {
        tracing::warn!("leases whose pods are gone cannot be looked for: {error}");
    }
    let file = read_node_file(file).filter(|file| file.boot_id == *boot);
    let generation = file.as_ref().map_or(0, |file| file.generation);
    let reserved = file.map(|file| file.tunnel_addresses).unwrap_or_default();
    let count = |block: &IpNet| {
        let usage = leases.ledger().usage(*block, &reserved, since_boot());
        let first_leased = leases.ledger().holder(block.network()).is_some();
        let (available, leased) = (usage.available(), usage.leased);
        (*block, Usage { available, leased, quarantined: usage.quarantined, first_leased })
    };
    let held = leases.ledger().leases().flat_map(|lease| lease.ips());
    let elsewhere = held.filter(|ip| !blocks.iter().any(|block| block.contains(ip))).collect();
    Ok(Looked { blocks: blocks.iter().map(count).collect(), generation, elsewhere })
}

/// A hint is lost at most where this fails, so it is only said.
fn forget_leases(identity: &Identity, block: IpNet) -> Pin<Box<dyn Future<Output = Done> + Send>> {
    let (folder, boot) = (identity.ipam_dir.clone(), identity.boot_id.clone());
    Box::pin(async move {
        let forget = tokio::task::spawn_blocking(move || {
            let mut leases = LeaseStore::open(&folder, &boot).map_err(|error| error.to_string())?;
            leases.forget(block).map_err(|error| error.to_string())
        });
        if let Err(error) = forget.await.unwrap_or_else(|error| Err(error.to_string())) {
            tracing::warn!("leases of block {block} not forgotten: {error}");
        }
        Done::Event(Event::Tick)
    })
}

/// Ends the leases whose pods are gone without a DEL: see `podway_ipam::stale`.
fn end_stale_leases(leases: &mut LeaseStore) -> Result<(), String> {
    let present = ipam::present()?;
    for lease in leases.collect_stale(&present, since_boot()).map_err(|error| error.to_string())? {
        let Attachment { container_id, ifname } = &lease.attachment;
        tracing::info!(container = %container_id, interface = %ifname, "lease ended: its pod is gone");
        ipam::remove_record(&lease.attachment)?;
    }
    Ok(())
}

fn carry_out(store: Arc<dyn Store>, write: Write) -> Pin<Box<dyn Future<Output = Done> + Send>> {
    Box::pin(async move {
        let Write { id, key, operation } = write;
        let result = match operation {
            Operation::Put(value, expect) => store.put_if(&key, &value, expect).await,
            Operation::PutGuarded(value, expect, guards) => {
                store.put_guarded(&key, &value, expect, &guards).await
            }
            Operation::PutFor(value, expect, seconds) => store.put_for(&key, &value, expect, seconds).await,
            Operation::PutLeased(value, expect) => store.put_leased(&key, &value, expect).await,
            Operation::Delete(revision) => store.delete_if(&key, revision).await,
        };
        Done::Event(Event::Written { id, result })
    })
}

/// The node file as it stands on the disk. One that cannot be read is replaced in time, so it only costs the
/// memory of which blocks were ours before.
fn read_node_file(path: &Path) -> Option<NodeFile> {
    let text = match fs::read(path) {
        Ok(text) => text,
        Err(error) => {
            if error.kind() != io::ErrorKind::NotFound {
                tracing::warn!("ignoring {}: {error}", path.display());
            }
            return None;
        }
    };
    let file: Result<NodeFile, _> = serde_json::from_slice(&text);
    let file = file.inspect_err(|error| tracing::warn!("ignoring {}: {error}", path.display())).ok()?;
    podway_model::accepts_schema(file.schema).then_some(file)
}

fn write_node_file(identity: &Identity, file: NodeFile) -> Pin<Box<dyn Future<Output = Done> + Send>> {
    let (path, folder) = (identity.node_file.clone(), identity.ipam_dir.clone());
    Box::pin(async move {
        let generation = file.generation;
        let write = tokio::task::spawn_blocking(move || replace_node_file(&path, &folder, &file));
        let error = match write.await {
            Ok(result) => result.err(),
            Err(error) => Some(error.to_string()),
        };
        Done::Event(Event::NodeFileWritten { generation, error })
    })
}

/// Replaces the node file under the address lock: once this returns, nobody allocates from a block that is not
/// in it any more.
fn replace_node_file(path: &Path, ipam: &Path, file: &NodeFile) -> Result<(), String> {
    let named = |path: &Path| {
        let path = path.display().to_string();
        move |error: io::Error| format!("{path}: {error}")
    };
    let text = serde_json::to_vec_pretty(file).map_err(|error| error.to_string())?;
    let temporary: PathBuf = path.with_extension("json.new");
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(named(folder))?;
    }
    let _lock = AddressLock::acquire(ipam).map_err(|error| error.to_string())?;
    let mut new = fs::File::create(&temporary).map_err(named(&temporary))?;
    // It outlives a power cut: after a boot without the store it says which blocks are ours.
    new.write_all(&text).and_then(|()| new.sync_all()).map_err(named(&temporary))?;
    fs::rename(&temporary, path).map_err(named(path))
}
