//! The pure core. Total and deterministic; time comes in as an argument.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use ipnet::IpNet;
use podway_model::cluster::{ClusterConfig, Inventory, Leader, Released, decode};
use podway_model::ids::NodeName;
use podway_model::keys::{CONTROLLER, Key};

use super::Times;
use crate::{Change, Entry, Event as StoreEvent, Expect, HOLD_SECONDS, ReleaseReport, StoreError, Written};

/// What is watched.
pub(super) const PREFIXES: [&str; 6] = ["config", "controller", "nodes/", "live/", "claims/", "released/"];
/// Looks at which a node must be missing before it is freed.
const LOOKS: u32 = 2;

/// What the core is told.
#[derive(Debug, Clone)]
pub(super) enum Event {
    /// From the watch.
    Store(StoreEvent),
    /// The deadline has come; seconds since 1970.
    Time(u64),
    /// An attempt at the lock has ended.
    Locked(Result<Written, StoreError>),
    /// An attempt to free a node has ended; nothing: it was there after all.
    Freed { node: NodeName, result: Result<Option<ReleaseReport>, StoreError> },
    /// An attempt to end a hold has ended.
    HoldEnded { block: IpNet, result: Result<Written, StoreError> },
}

/// What the core wants done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Action {
    /// Write the lock.
    Lock(Expect),
    /// Free a node; its blocks are held from this time on.
    Free { node: NodeName, at: u64 },
    /// Delete a hold, if it was last changed at this revision.
    EndHold { block: IpNet, revision: i64 },
    /// Tell people.
    Info(String),
    /// Tell people that somebody should look.
    Warn(String),
}

/// How long a node is missing.
#[derive(Debug)]
struct Missing {
    since: Duration,
    looks: u32,
}

/// The core.
#[derive(Debug)]
pub(super) struct Controller {
    holder: String,
    times: Times,
    has_snapshot: bool,
    away: Option<String>,
    entries: BTreeMap<String, Entry>,
    inventory: Option<Inventory>,
    missing: BTreeMap<NodeName, Missing>,
    /// What is being done: node names and blocks, as text.
    busy: BTreeSet<String>,
    is_locking: bool,
    lock_not_before: Duration,
    next_look: Duration,
    was_leader: bool,
    told_alive: BTreeSet<NodeName>,
}

impl Controller {
    /// `holder` tells this process from other replicas.
    pub(super) fn new(holder: String, times: Times) -> Self {
        Self {
            holder,
            times,
            has_snapshot: false,
            away: None,
            entries: BTreeMap::new(),
            inventory: None,
            missing: BTreeMap::new(),
            busy: BTreeSet::new(),
            is_locking: false,
            lock_not_before: Duration::ZERO,
            next_look: Duration::ZERO,
            was_leader: false,
            told_alive: BTreeSet::new(),
        }
    }

    /// When [`Event::Time`] is wanted.
    pub(super) fn deadline(&self) -> Duration {
        let lock = self.lock_not_before;
        if lock < self.next_look && !self.is_locking && self.has_snapshot && self.lock().is_none() {
            return lock;
        }
        self.next_look
    }

    /// At most [`Times::look`]; a short grace period has two looks in it, and two looks are a second apart.
    fn between_looks(&self) -> Duration {
        let grace =
            self.inventory.as_ref().map(|inventory| Duration::from_secs(inventory.grace_seconds.into()));
        let wanted = grace.map_or(self.times.look, |grace| (grace / 2).max(Duration::from_secs(1)));
        self.times.look.min(wanted)
    }

    /// What is missing until this replica can do its part.
    pub(super) fn waiting_for(&self) -> Vec<String> {
        match (&self.away, self.has_snapshot) {
            (Some(reason), _) => vec![format!("the store: {reason}")],
            (None, false) => vec!["the store: connecting".to_owned()],
            (None, true) => vec![],
        }
    }

    /// Whether this replica is the one at work.
    pub(super) fn is_leader(&self) -> bool {
        self.away.is_none() && self.lock().is_some_and(|leader| leader.holder == self.holder)
    }

    fn lock(&self) -> Option<Leader> {
        // A value that cannot be read is a lock all the same; it ends with its lease.
        let entry = self.entries.get(CONTROLLER)?;
        Some(decode(&entry.value).unwrap_or_else(|_| Leader { holder: String::new() }))
    }

    /// One event in, what is to be done out.
    pub(super) fn step(&mut self, now: Duration, event: Event, out: &mut Vec<Action>) {
        match event {
            Event::Store(event) => self.on_store(event),
            Event::Time(unix) => {
                if self.next_look <= now {
                    self.next_look = now + self.between_looks();
                    self.look(now, unix, out);
                }
            }
            Event::Locked(result) => {
                self.is_locking = false;
                self.lock_not_before = now + self.times.retry;
                if let Err(error) = result {
                    out.push(Action::Warn(format!("{CONTROLLER} not written: {error}")));
                }
            }
            Event::Freed { node, result } => self.on_freed(&node, result, out),
            Event::HoldEnded { block, result } => {
                self.busy.remove(&block.to_string());
                match result {
                    Ok(Written::Done { .. }) => {
                        out.push(Action::Info(format!("block {block} can be claimed again")));
                    }
                    Ok(Written::Refused { .. }) => {}
                    Err(error) => out.push(Action::Warn(format!("hold on {block} not ended: {error}"))),
                }
            }
        }
        // A grace period that became shorter is not waited for in the old steps.
        self.next_look = self.next_look.min(now + self.between_looks());
        if self.has_snapshot && self.away.is_none() {
            if self.lock().is_none() && !self.is_locking && self.lock_not_before <= now {
                self.is_locking = true;
                out.push(Action::Lock(Expect::Absent));
            }
            let is_leader = self.is_leader();
            if is_leader != std::mem::replace(&mut self.was_leader, is_leader) {
                let text = if is_leader { "this replica is at work" } else { "another replica is at work" };
                out.push(Action::Info(text.to_owned()));
                // What was seen while somebody else was at work counts for nothing.
                self.missing.clear();
            }
        }
    }

    fn on_store(&mut self, event: StoreEvent) {
        match event {
            StoreEvent::Snapshot { entries, .. } => {
                self.entries = entries.into_iter().map(|entry| (entry.key.clone(), entry)).collect();
                self.has_snapshot = true;
                self.away = None;
            }
            StoreEvent::Changes { changes, .. } => {
                for change in changes {
                    match change {
                        Change::Put(entry) => drop(self.entries.insert(entry.key.clone(), entry)),
                        Change::Delete { key } => drop(self.entries.remove(&key)),
                    }
                }
            }
            StoreEvent::Unavailable { reason } => self.away = Some(reason),
            StoreEvent::Available => self.away = None,
            StoreEvent::Problems { .. } => {}
        }
        // A configuration that cannot be read, or that is gone, names nobody as missing.
        let config = self.entries.get(&Key::Config.to_string());
        let config = config.and_then(|entry| decode::<ClusterConfig>(&entry.value).ok());
        self.inventory = config.and_then(|config| config.inventory).filter(|i| !i.nodes.is_empty());
        let inventory = &self.inventory;
        self.missing.retain(|node, _| inventory.as_ref().is_some_and(|i| !i.nodes.contains(node)));
    }

    /// Nodes that have a record or a claim.
    fn nodes(&self) -> BTreeSet<NodeName> {
        let nodes = self.entries.keys().filter_map(|key| match key.parse() {
            Ok(Key::Node(node) | Key::Claim(node, _)) => Some(node),
            _ => None,
        });
        nodes.collect()
    }

    fn look(&mut self, now: Duration, unix: u64, out: &mut Vec<Action>) {
        if !self.has_snapshot || !self.is_leader() {
            return;
        }
        self.end_holds(unix, out);
        let Some(inventory) = self.inventory.clone() else {
            self.missing.clear();
            return;
        };
        let nodes = self.nodes();
        self.missing.retain(|node, _| nodes.contains(node));
        self.told_alive.retain(|node| nodes.contains(node));
        let grace = Duration::from_secs(inventory.grace_seconds.into());
        for node in nodes.into_iter().filter(|node| !inventory.nodes.contains(node)) {
            if self.entries.contains_key(&Key::Live(node.clone()).to_string()) {
                // Its pods run: an operator must look, not a program.
                self.missing.remove(&node);
                if self.told_alive.insert(node.clone()) {
                    out.push(Action::Warn(format!(
                        "node {node} is missing from the inventory and alive: it is not freed; add it, or stop it"
                    )));
                }
                continue;
            }
            self.told_alive.remove(&node);
            let missing = self.missing.entry(node.clone()).or_insert(Missing { since: now, looks: 0 });
            missing.looks = missing.looks.saturating_add(1);
            if missing.looks == 1 {
                let text =
                    format!("node {node} is missing from the inventory; freed in {} s", grace.as_secs());
                out.push(Action::Info(text));
            }
            if missing.looks >= LOOKS
                && now.saturating_sub(missing.since) >= grace
                && self.busy.insert(node.as_str().to_owned())
            {
                out.push(Action::Free { node, at: unix });
            }
        }
    }

    fn end_holds(&mut self, unix: u64, out: &mut Vec<Action>) {
        for (key, entry) in &self.entries {
            let Ok(Key::Released(block)) = key.parse() else { continue };
            // What cannot be read holds for ever, and an operator sees it among the problems.
            let Ok(released) = decode::<Released>(&entry.value) else { continue };
            let end = released.at_unix_seconds.saturating_add(HOLD_SECONDS);
            if end <= unix && self.busy.insert(block.to_string()) {
                out.push(Action::EndHold { block, revision: entry.mod_revision });
            }
        }
    }

    fn on_freed(
        &mut self,
        node: &NodeName,
        result: Result<Option<ReleaseReport>, StoreError>,
        out: &mut Vec<Action>,
    ) {
        self.busy.remove(node.as_str());
        match result {
            Ok(Some(report)) => {
                self.missing.remove(node);
                let blocks: Vec<String> = report.blocks.iter().map(ToString::to_string).collect();
                let text = format!("node {node} freed: {}; held for 24 hours", blocks.join(", "));
                out.push(Action::Warn(text));
            }
            Ok(None) => {
                self.missing.remove(node);
                out.push(Action::Info(format!("node {node} is there after all")));
            }
            Err(error) => out.push(Action::Warn(format!("node {node} not freed: {error}"))),
        }
    }
}
