//! The pure core: one step per event, then everything is compared with what it should be. Total, deterministic;
//! time comes in as an argument.
//!
//! The parts of a step stand in [`super::own`] (blocks), [`super::register`] (record and sign of life) and
//! [`super::publish`] (view and node file); here is what they share, and their order.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use podway_model::keys::Key;
use podway_model::node_file::NodeFile;
use podway_model::ways::Ways;
use podway_store::{Event as StoreEvent, TAKES_NO_MORE};

use super::claims::ClaimIndex;
use super::event::{Action, Event, Severity, Usage};
use super::flannel::Flannel;
use super::own::{Own, Phase};
use super::pools::Pools;
use super::publish::FileState;
use super::register::LiveState;
use super::table::Table;
use super::writes::Writes;
use super::{Identity, Refusal};
use crate::view::{ClusterView, LocalFacts};

/// How long the contents of a store that was wiped stay in force.
const PAST: Duration = Duration::from_secs(600);
/// How long after a wipe no further blocks are claimed: the other nodes write theirs again first.
const DOUBT: Duration = Duration::from_secs(30);
/// How long nothing is concluded after all pools, nodes or claims went at once: changes are in order within one
/// prefix only, so a wipe may arrive in parts. Short, since a cluster of one node ends like this too.
const SUSPICION: Duration = Duration::from_millis(500);

/// The core.
#[derive(Debug)]
pub(crate) struct Core {
    pub(super) me: Identity,
    /// What the store holds.
    pub(super) table: Table,
    /// What the store held before it was wiped.
    pub(super) past: Option<Table>,
    past_until: Duration,
    /// The store was wiped not long ago: until when no further blocks are claimed.
    pub(super) doubt: Option<Duration>,
    /// Flannel's keys, where its nodes are talked with.
    pub(super) flannel: Flannel,
    /// Contents before the store began to look wiped, and until when they stay in force.
    pub(super) suspicion: Option<(Box<Table>, Duration)>,
    pub(super) has_snapshot: bool,
    /// Why the store cannot be reached.
    pub(super) away: Option<String>,
    pub(super) store_problems: Vec<String>,
    /// Whether it was said that the store takes no more data.
    pub(super) told_full: bool,
    pub(super) facts: Option<LocalFacts>,
    /// By which ways packets go, once the data plane has told.
    pub(super) ways: Option<Ways>,
    pub(super) usage: BTreeMap<IpNet, Usage>,
    /// Generation of the node file that `usage` was looked at with.
    pub(super) usage_generation: u64,
    /// Addresses that pods hold in none of the blocks of that look.
    pub(super) elsewhere: Vec<IpAddr>,
    pub(super) own: BTreeMap<IpNet, Own>,
    /// Blocks of the boot before: asked for first.
    pub(super) hints: Vec<(IpNet, usize)>,
    pub(super) live: LiveState,
    pub(super) writes: Writes,
    pub(super) file: FileState,
    pub(super) view: Arc<ClusterView>,
    /// What follows from `table` alone.
    pub(super) derived: Arc<Derived>,
    /// What follows from the table in force, in the latest view.
    pub(super) in_force: Arc<Pools>,
    /// Whether `table` or `past` changed since `derived` was made.
    is_stale: bool,
    /// Whether they changed since the view was made.
    pub(super) is_view_stale: bool,
    pub(super) problems: BTreeSet<String>,
    /// Collisions so far: moves the place where free blocks are looked for.
    pub(super) attempt: u64,
    pub(super) claim_not_before: Duration,
    /// When the next block may have been idle for long enough to go back.
    pub(super) give_back_at: Option<Duration>,
    /// Seconds since 1970 at time zero of this process.
    pub(super) wall_offset: Option<i64>,
    time: Duration,
    refused: bool,
}

/// What follows from the store's contents: made once per change of them, not once per step.
#[derive(Debug, Default)]
pub(super) struct Derived {
    pub(super) claims: ClaimIndex,
    pub(super) pools: Pools,
}

impl Core {
    /// `found`: the node file as it stands on the disk, of whatever boot.
    pub(crate) fn new(me: Identity, found: Option<NodeFile>) -> Self {
        let generation = found.as_ref().map_or(0, |file| file.generation);
        let found = found.filter(|file| file.instance_id == me.instance_id && file.node == me.node);
        let this_boot = found.as_ref().filter(|file| file.boot_id == me.boot_id);
        let own = this_boot.iter().flat_map(|file| &file.blocks).enumerate();
        let own = own.map(|(place, block)| (block.cidr, Own::from_file(block, place))).collect();
        let file = FileState::new(found, generation, &me.boot_id);
        let hints =
            file.earlier_blocks().iter().enumerate().map(|(place, block)| (block.cidr, place)).collect();
        Self {
            me,
            table: Table::default(),
            past: None,
            past_until: Duration::ZERO,
            doubt: None,
            flannel: Flannel::default(),
            suspicion: None,
            has_snapshot: false,
            away: None,
            store_problems: Vec::new(),
            told_full: false,
            facts: None,
            ways: None,
            usage: BTreeMap::new(),
            usage_generation: 0,
            elsewhere: Vec::new(),
            own,
            hints,
            live: LiveState::default(),
            writes: Writes::default(),
            file,
            view: Arc::default(),
            derived: Arc::default(),
            in_force: Arc::default(),
            is_stale: false,
            is_view_stale: true,
            problems: BTreeSet::new(),
            attempt: 0,
            claim_not_before: Duration::ZERO,
            give_back_at: None,
            wall_offset: None,
            time: Duration::ZERO,
            refused: false,
        }
    }

    /// The latest view.
    pub(crate) fn view(&self) -> Arc<ClusterView> {
        Arc::clone(&self.view)
    }

    /// When [`Event::Tick`] is wanted at the latest.
    pub(crate) fn deadline(&self) -> Option<Duration> {
        let past = self.past.as_ref().map(|_| self.past_until);
        let suspicion = self.suspicion.as_ref().map(|(_, until)| *until);
        let renewal = self.flannel.renew_at();
        let all =
            [self.writes.deadline(), self.file.retry_at(), past, self.doubt, suspicion, self.give_back_at];
        let all = all.into_iter().chain([renewal]);
        let later = [self.live.not_before, self.claim_not_before];
        // What was due and has led to nothing waits for an event, not for a time.
        all.flatten().chain(later).filter(|at| *at > self.time).min()
    }

    /// One event in, what is to be done out.
    pub(crate) fn step(&mut self, now: Duration, event: Event, out: &mut Vec<Action>) {
        if self.refused {
            return;
        }
        self.time = now;
        match event {
            Event::Store(event) => self.on_store(event, out),
            Event::Flannel(prefix, event) => self.on_flannel(prefix, event),
            Event::Facts(facts) => {
                self.facts = Some(facts);
                // Which of flannel's leases is this node's follows from its address.
                self.derive_flannel();
            }
            Event::Ways(ways) => self.ways = Some(ways),
            Event::Usage { blocks, generation, elsewhere } => {
                self.usage = blocks;
                self.elsewhere = elsewhere;
                self.usage_generation = generation;
            }
            Event::Written { id, result } => {
                let (table, flannel) = (&self.table, &self.flannel);
                let shown = |key: &str| modified(table, flannel, key);
                if let Some(key) = self.writes.on_answer(now, id, &result, shown) {
                    self.on_written(now, &key, &result, out);
                }
            }
            Event::NodeFileWritten { generation, error } => self.file.on_written(now, generation, error, out),
            Event::Clock(unix) => {
                let elapsed = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
                self.wall_offset = i64::try_from(unix).ok().map(|unix| unix.saturating_sub(elapsed));
            }
            Event::Tick => {}
        }
        if self.past_until <= now && self.past.take().is_some() {
            self.is_view_stale = true;
        }
        self.doubt = self.doubt.filter(|until| *until > now);
        let (table, flannel) = (&self.table, &self.flannel);
        self.writes.wake(now, |key| modified(table, flannel, key));
        if self.is_suspicious(out) {
            return;
        }
        if std::mem::take(&mut self.is_stale) {
            let (claims, pools) = (ClaimIndex::new(&self.table), Pools::new(&self.table));
            self.derived = Arc::new(Derived { claims, pools });
            self.is_view_stale = true;
        }
        self.problems.clear();
        if self.has_snapshot {
            if let Some(text) = self.find_conflict() {
                self.refused = true;
                out.push(Action::Refuse(Refusal(text)));
                return;
            }
            self.follow_claims(out);
            self.find_stranded(out);
        }
        self.adopt_unconfirmed();
        self.register(now, out);
        self.keep_flannel_lease(now, out);
        // First what is on its way back: it may be needed.
        self.give_back(now, out);
        self.claim_ahead(now, out);
        self.publish(now, out);
    }

    /// Whether the store has been read, and its configuration can be used.
    pub(super) fn is_synced(&self) -> bool {
        let config = Key::Config.to_string();
        self.has_snapshot && (self.table.config.is_some() || !self.table.bad.contains_key(&config))
    }

    /// Whether this node may write: it knows what stands there, and who it is itself, and nobody else has its name.
    pub(super) fn can_write(&self) -> bool {
        self.has_snapshot && self.away.is_none() && self.facts.is_some() && !self.live.in_conflict
    }

    /// Time of the current step.
    pub(super) fn now(&self) -> Duration {
        self.time
    }

    /// What the store holds, with what it held before it was wiped.
    pub(super) fn table_in_force(&self) -> Cow<'_, Table> {
        match &self.past {
            Some(past) => Cow::Owned(self.table.with_past(past)),
            None => Cow::Borrowed(&self.table),
        }
    }

    fn on_store(&mut self, event: StoreEvent, out: &mut Vec<Action>) {
        self.is_stale |= matches!(event, StoreEvent::Snapshot { .. } | StoreEvent::Changes { .. });
        match event {
            StoreEvent::Snapshot { entries, revision } => {
                let table = Table::from_snapshot(&entries, revision, &self.table);
                let before = std::mem::replace(&mut self.table, table);
                self.has_snapshot = true;
                self.away = None;
                // A snapshot is of one moment, so what it shows has happened.
                let before = self.suspicion.take().map_or(before, |(before, _)| *before);
                self.compare_with(before, out);
            }
            StoreEvent::Changes { changes, revision } => {
                let empties = self.suspicion.is_none() && self.table.may_be_emptied_by(&changes);
                let before = empties.then(|| Box::new(self.table.clone()));
                self.table.change(&changes, revision);
                if let Some(past) = &mut self.past {
                    past.forget(&changes);
                }
                if let Some(before) = before.filter(|before| self.table.is_emptied_since(before)) {
                    self.suspicion = Some((before, self.time + SUSPICION));
                }
            }
            StoreEvent::Unavailable { reason } => self.away = Some(reason),
            StoreEvent::Available => self.away = None,
            StoreEvent::Problems { problems } => {
                let new = problems.iter().filter(|problem| !self.store_problems.contains(problem));
                for problem in new.cloned().collect::<Vec<_>>() {
                    if !(problem.contains(TAKES_NO_MORE) && self.told_full) {
                        out.push(Action::Report(Severity::Warn, problem.clone()));
                    }
                    self.told_full |= problem.contains(TAKES_NO_MORE);
                }
                if problems.is_empty() && !self.store_problems.is_empty() {
                    self.told_full = false;
                    out.push(Action::Report(Severity::Info, "the store is well again".to_owned()));
                }
                self.store_problems = problems;
            }
        }
    }

    /// Whether the store looks as if it was being wiped: then nothing is concluded for a moment.
    fn is_suspicious(&mut self, out: &mut Vec<Action>) -> bool {
        let Some((before, until)) = self.suspicion.take() else { return false };
        if self.table.is_empty() {
            self.compare_with(*before, out);
            return false;
        }
        if self.time < until && self.table.is_emptied_since(&before) {
            self.suspicion = Some((before, until));
            return true;
        }
        false
    }

    /// A store that held a cluster and holds none now was wiped; one whose revision went back was restored from a
    /// backup. Nothing is torn down: what it held stays in force for a while, and every node writes its own again.
    fn compare_with(&mut self, before: Table, out: &mut Vec<Action>) {
        let is_wiped = self.table.is_empty() && !before.pools.is_empty() && !before.claims.is_empty();
        // Others may have written so much since that the revision says nothing any more.
        let is_back = self.table.revision < before.revision || self.table.goes_back_behind(&before);
        let is_restored = is_back && !before.claims.is_empty();
        if !is_wiped && !is_restored {
            return;
        }
        let what = if is_wiped { "wiped" } else { "restored to an older state" };
        let text = format!(
            "the store was {what}: nothing is torn down, this node writes its own keys again; apply pools and \
             configuration again"
        );
        out.push(Action::Report(Severity::Warn, text));
        for own in self.own.values_mut().filter(|own| own.phase == Phase::Active) {
            own.republish = true;
        }
        self.past = Some(before);
        self.is_stale = true;
        self.past_until = self.time + PAST;
        self.doubt = Some(self.time + DOUBT);
    }
}

/// Revision of a key as its watch shows it.
fn modified(table: &Table, flannel: &Flannel, key: &str) -> Option<i64> {
    if key.starts_with('/') {
        return flannel.modified(key);
    }
    key.parse::<Key>().ok().and_then(|key| table.modified(&key))
}
