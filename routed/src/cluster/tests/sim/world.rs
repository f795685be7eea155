//! Time, the store, and what reaches whom and when.

use std::collections::{BTreeMap, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use podway_model::cluster::{Pool, encode};
use podway_model::keys::Key;
use podway_model::node_file::NodeFile;
use podway_store::fake::mem::Mem;
use podway_store::{Change, Entry, Event as StoreEvent, StoreError, Written};

use super::super::rig::{EPOCH, boot, carry_out, facts, pool, prefixes, seconds};
use super::node::{Node, Place};
use crate::cluster::core::Core;
use crate::cluster::event::{Action, Event, Operation, Usage, Write};
use crate::cluster::table::PREFIXES;

/// How long things go wrong.
const CHAOS: Duration = Duration::from_secs(240);
/// Place of `claims/` in [`PREFIXES`].
pub(super) const CLAIMS: usize = 4;

/// Mistakes that the simulation must find. They are made here, between core and world, not in the core.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Bug {
    /// A node believes of each claim of its own that it was first.
    CompareSkipped,
    /// The store writes and deletes without looking at the condition.
    ConditionSkipped,
    /// The store looks at the condition of the key that is written, and not at the hold on the block.
    HoldSkipped,
    /// After a reconnect a node takes half of the store for all of it.
    DeleteBeforeSync,
    /// Several keys get one create revision.
    RevisionReused,
}

/// What will happen.
#[derive(Debug)]
pub(super) enum Happening {
    /// The watch delivers.
    Deliver(usize),
    /// A write reaches the store; `answer`: it is known how it ended.
    Arrive {
        node: usize,
        life: u64,
        write: Write,
        answer: bool,
    },
    Answer {
        node: usize,
        life: u64,
        id: u64,
        result: Result<Written, StoreError>,
    },
    File {
        node: usize,
        life: u64,
        file: NodeFile,
    },
    Filed {
        node: usize,
        life: u64,
        generation: u64,
        error: Option<String>,
    },
    Look {
        node: usize,
        life: u64,
    },
    Looked {
        node: usize,
        life: u64,
        blocks: BTreeMap<IpNet, Usage>,
        generation: u64,
        elsewhere: Vec<IpAddr>,
    },
    Wake {
        node: usize,
        life: u64,
    },
    KeepAlive {
        node: usize,
        life: u64,
    },
    Start(usize),
    Reconnect(usize),
    /// A cut-off node is told so.
    NoticeCut(usize),
    Pods(usize),
    /// Something goes wrong.
    Chaos,
    /// An operator writes (or deletes) a key.
    Operator(String, Option<Vec<u8>>),
}

pub(super) struct World {
    pub(super) seed: u64,
    random: u64,
    pub(super) bug: Option<Bug>,
    pub(super) now: Duration,
    pub(super) mem: Mem,
    /// How often the store was restored.
    pub(super) restores: u32,
    pub(super) backup: Option<Mem>,
    pub(super) was_wiped: bool,
    pub(super) nodes: Vec<Node>,
    pub(super) is_dual: bool,
    pub(super) is_quiet: bool,
    /// Claims that somebody else took away from a node, and where in history.
    pub(super) taken: BTreeMap<(usize, IpNet), Place>,
    /// Where in history a key was deleted last.
    pub(super) deleted: BTreeMap<String, Place>,
    /// Blocks that two node files offer at once.
    pub(super) conflicts: Vec<(usize, IpNet, usize, IpNet)>,
    pub(super) are_files_new: bool,
    checked_revision: i64,
    queue: BTreeMap<(Duration, u64), Happening>,
    sequence: u64,
    story: VecDeque<String>,
    pub(super) steps: u64,
    pub(super) returned: u64,
    pub(super) failure: Option<String>,
}

impl World {
    pub(super) fn new(seed: u64, nodes: usize, bug: Option<Bug>) -> Self {
        let mut world = Self {
            seed,
            random: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0xd1b5_4a32_d192_ed03,
            bug,
            now: Duration::ZERO,
            mem: Mem::new(),
            restores: 0,
            backup: None,
            was_wiped: false,
            nodes: (0..nodes).map(Node::new).collect(),
            is_dual: seed.is_multiple_of(3),
            is_quiet: false,
            taken: BTreeMap::new(),
            deleted: BTreeMap::new(),
            conflicts: vec![],
            are_files_new: false,
            checked_revision: 0,
            queue: BTreeMap::new(),
            sequence: 0,
            story: VecDeque::new(),
            steps: 0,
            returned: 0,
            failure: None,
        };
        world.put_pools(false);
        for node in 0..nodes {
            let at = world.up_to(2000);
            world.at(at, Happening::Start(node));
            let at = world.up_to(20_000);
            world.at(at, Happening::Pods(node));
        }
        world.at(seconds(1), Happening::Chaos);
        world
    }

    /// Small pools in every other seed: many claims collide. Without holds there is always room for everybody.
    pub(super) fn pools(&self, disabled: bool) -> Vec<(String, Vec<u8>)> {
        let small = self.seed.is_multiple_of(2);
        // 128 or 512 blocks for up to 50 nodes, four times as many for up to 200.
        let is_large = self.nodes.len() > 50;
        let (four, six) = match (small, is_large) {
            (true, false) => ("10.0.0.0/19", "fd00::/115"),
            (false, false) | (true, true) => ("10.0.0.0/17", "fd00::/113"),
            (false, true) => ("10.0.0.0/15", "fd00::/111"),
        };
        let pools =
            [("pools/p4", four), ("pools/p6", six)].into_iter().take(if self.is_dual { 2 } else { 1 });
        pools.map(|(key, cidr)| (key.to_owned(), encode(&Pool { disabled, ..pool(cidr) }))).collect()
    }

    pub(super) fn put_pools(&mut self, disabled: bool) {
        for (key, value) in self.pools(disabled) {
            self.mem.put(&key, &value, None).unwrap();
        }
    }

    /// Chaos, then peace; then everybody must agree.
    pub(super) fn run(&mut self) -> Result<(), String> {
        self.run_until(CHAOS)?;
        self.make_peace();
        // What a wiped store held stays in force for ten minutes.
        let rest = if self.was_wiped { 700 } else { 90 };
        self.run_until(self.now + seconds(rest))?;
        self.check_end()
    }

    fn run_until(&mut self, end: Duration) -> Result<(), String> {
        while let Some(entry) = self.queue.first_entry() {
            if entry.key().0 > end {
                break;
            }
            let ((at, _), happening) = entry.remove_entry();
            self.now = self.now.max(at);
            self.mem.advance(self.now);
            self.happen(happening);
            self.after();
            if let Some(failure) = self.failure.take() {
                return Err(format!("after {:.3} s: {failure}", self.now.as_secs_f64()));
            }
        }
        self.now = end;
        Ok(())
    }

    /// What every step ends with.
    fn after(&mut self) {
        if self.mem.revision() != self.checked_revision {
            self.checked_revision = self.mem.revision();
            self.check_store();
            for node in 0..self.nodes.len() {
                self.deliver_soon(node);
            }
        }
        self.check_files();
    }

    // Chance and time.

    pub(super) fn random(&mut self) -> u64 {
        // splitmix64
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(super) fn below(&mut self, n: u64) -> u64 {
        self.random() % n.max(1)
    }

    pub(super) fn any_node(&mut self) -> usize {
        usize::try_from(self.below(self.nodes.len() as u64)).unwrap()
    }

    /// Once in `n`, while things go wrong.
    pub(super) fn once_in(&mut self, n: u64) -> bool {
        !self.is_quiet && self.below(n) == 0
    }

    pub(super) fn up_to(&mut self, milliseconds: u64) -> Duration {
        Duration::from_millis(1 + self.below(milliseconds))
    }

    pub(super) fn at(&mut self, after: Duration, happening: Happening) {
        self.sequence += 1;
        self.queue.insert((self.now + after, self.sequence), happening);
    }

    /// The current place in history.
    pub(super) fn place(&self) -> Place {
        (self.restores, self.mem.revision())
    }

    pub(super) fn tell(&mut self, line: String) {
        if self.story.len() >= 60 {
            self.story.pop_front();
        }
        self.story.push_back(format!("{:10.3} {line}", self.now.as_secs_f64()));
    }

    /// The last of what happened.
    pub(super) fn story(&self) -> String {
        self.story.iter().map(|line| format!("{line}\n")).collect()
    }

    pub(super) fn summary(&self) -> String {
        format!(
            "{} steps, revision {}, {} blocks returned{}",
            self.steps,
            self.mem.revision(),
            self.returned,
            if self.was_wiped { ", wiped or restored" } else { "" }
        )
    }

    pub(super) fn fail(&mut self, what: String) {
        self.failure.get_or_insert(what);
    }

    // Happenings.

    fn happen(&mut self, happening: Happening) {
        match happening {
            Happening::Deliver(node) => self.deliver(node),
            Happening::Arrive { node, life, write, answer } => self.arrive(node, life, &write, answer),
            Happening::Answer { node, life, id, result } if self.is_current(node, life) => {
                self.step(node, Event::Written { id, result });
            }
            Happening::File { node, life, file } if self.is_current(node, life) => self.file(node, file),
            Happening::Filed { node, life, generation, error } if self.is_current(node, life) => {
                self.nodes[node].is_filing = error.is_some();
                self.step(node, Event::NodeFileWritten { generation, error });
                self.look_soon(node);
            }
            Happening::Look { node, life } if self.is_current(node, life) => {
                self.nodes[node].is_look_due = false;
                let (blocks, generation, elsewhere) = self.nodes[node].look();
                let after = self.up_to(100);
                self.at(after, Happening::Looked { node, life, blocks, generation, elsewhere });
            }
            Happening::Looked { node, life, blocks, generation, elsewhere }
                if self.is_current(node, life) =>
            {
                self.step(node, Event::Usage { blocks, generation, elsewhere });
            }
            Happening::Wake { node, life } if self.is_current(node, life) => {
                self.nodes[node].wake_at = None;
                self.step(node, Event::Tick);
            }
            Happening::KeepAlive { node, life } if self.is_current(node, life) => {
                let Node { lease, is_cut, .. } = &self.nodes[node];
                if let (Some(lease), false) = (*lease, *is_cut) {
                    let _ = self.mem.keep_alive(lease);
                }
                self.at(seconds(3), Happening::KeepAlive { node, life });
                // Addresses leave quarantine without a notice, and clocks are set.
                if self.below(10) == 0 {
                    self.look_soon(node);
                    self.tell_time(node);
                }
            }
            Happening::Start(node) => self.start(node),
            Happening::Reconnect(node) => self.reconnect(node),
            Happening::NoticeCut(node) => {
                let it = &mut self.nodes[node];
                if it.is_cut && !it.is_away && it.core.is_some() {
                    it.is_away = true;
                    self.step(node, Event::Store(StoreEvent::Unavailable { reason: "cut".into() }));
                }
            }
            Happening::Pods(node) => {
                let step = self.below(20);
                // In peace nobody comes or goes, so that no claim is on its way at the end.
                if !self.is_quiet {
                    self.nodes[node].move_pods(step);
                }
                self.look_soon(node);
                let after = self.up_to(40_000);
                self.at(after, Happening::Pods(node));
            }
            Happening::Chaos => {
                if !self.is_quiet {
                    self.chaos();
                    let after = self.up_to(2000);
                    self.at(after, Happening::Chaos);
                }
            }
            Happening::Operator(key, value) => self.operate(&key, value),
            // Meant for a process that is gone.
            Happening::Answer { .. }
            | Happening::File { .. }
            | Happening::Filed { .. }
            | Happening::Look { .. }
            | Happening::Looked { .. }
            | Happening::Wake { .. }
            | Happening::KeepAlive { .. } => {}
        }
    }

    fn is_current(&self, node: usize, life: u64) -> bool {
        self.nodes[node].life == life && self.nodes[node].core.is_some()
    }

    fn operate(&mut self, key: &str, value: Option<Vec<u8>>) {
        match value {
            Some(value) => drop(self.mem.put(key, &value, None).unwrap()),
            None => {
                if self.mem.delete(key) {
                    self.note_deleted(key, true);
                }
            }
        }
    }

    /// `taken`: by somebody else than the node whose key it is.
    pub(super) fn note_deleted(&mut self, key: &str, taken: bool) {
        let place = self.place();
        self.deleted.insert(key.to_owned(), place);
        if taken
            && let Ok(Key::Claim(node, block)) = key.parse()
            && let Some(node) = self.nodes.iter().position(|it| it.me.node == node)
        {
            self.taken.insert((node, block), place);
        }
    }

    pub(super) fn crash(&mut self, node: usize) {
        let it = &mut self.nodes[node];
        it.core = None;
        it.life += 1;
        it.lease = None;
        it.is_filing = false;
    }

    pub(super) fn reboot(&mut self, node: usize) {
        self.crash(node);
        let number = 1000 + self.below(1_000_000);
        let it = &mut self.nodes[node];
        it.me.boot_id = boot(usize::try_from(number).unwrap()).parse().unwrap();
        it.pods.clear();
        self.are_files_new = true;
    }

    fn start(&mut self, node: usize) {
        let now = self.now;
        let it = &mut self.nodes[node];
        if it.core.is_some() {
            return;
        }
        it.core = Some(Core::new(it.me.clone(), it.disk.clone()));
        it.life += 1;
        it.started = now;
        it.seen = None;
        (it.is_away, it.is_synced) = (false, false);
        (it.is_look_due, it.wake_at) = (false, None);
        it.view = Arc::default();
        let life = it.life;
        self.tell(format!("{} starts", self.nodes[node].name()));
        self.tell_time(node);
        self.step(node, Event::Facts(facts(node)));
        self.at(seconds(3), Happening::KeepAlive { node, life });
        self.at(seconds(2), Happening::NoticeCut(node));
        self.deliver_soon(node);
    }

    pub(super) fn tell_time(&mut self, node: usize) {
        let time = EPOCH + self.now.as_secs();
        let shown = time.saturating_add_signed(self.nodes[node].skew);
        self.step(node, Event::Clock(shown));
    }

    pub(super) fn reconnect(&mut self, node: usize) {
        let it = &mut self.nodes[node];
        it.is_cut = false;
        if it.core.is_none() {
            return;
        }
        if it.is_away {
            it.is_away = false;
            self.step(node, Event::Store(StoreEvent::Available));
            if self.bug == Some(Bug::DeleteBeforeSync) && self.nodes[node].core.is_some() {
                let listing = self.mem.list(&prefixes());
                let entries = listing.entries.into_iter().step_by(2).collect();
                let revision = listing.revision;
                self.step(node, Event::Store(StoreEvent::Snapshot { entries, revision }));
                self.nodes[node].seen = None;
            }
        }
        self.deliver_soon(node);
    }

    pub(super) fn deliver_soon(&mut self, node: usize) {
        let it = &mut self.nodes[node];
        if it.is_delivery_due || it.is_cut || it.core.is_none() {
            return;
        }
        it.is_delivery_due = true;
        let mut after = self.up_to(300);
        if self.once_in(50) {
            after += self.up_to(3000);
        }
        self.at(after, Happening::Deliver(node));
    }

    fn look_soon(&mut self, node: usize) {
        let it = &mut self.nodes[node];
        if it.core.is_some() && !it.is_look_due {
            it.is_look_due = true;
            let life = it.life;
            let after = self.up_to(50);
            self.at(after, Happening::Look { node, life });
        }
    }

    /// Hands out a snapshot, or what changed under some of the prefixes.
    fn deliver(&mut self, node: usize) {
        self.nodes[node].is_delivery_due = false;
        if self.nodes[node].is_cut || self.nodes[node].core.is_none() {
            return;
        }
        let position = self.nodes[node].seen.clone();
        let is_known = |seen: &Vec<i64>| {
            seen.iter().all(|at| *at <= self.mem.revision() && self.mem.since(&[], *at).is_ok())
        };
        let Some(mut seen) = position.filter(is_known) else {
            let listing = self.mem.list(&prefixes());
            let entries = self.distort(node, listing.entries);
            self.nodes[node].seen = Some(vec![listing.revision; PREFIXES.len()]);
            let event = StoreEvent::Snapshot { entries, revision: listing.revision };
            return self.hand_out(node, event);
        };
        let mut last: BTreeMap<String, Change> = BTreeMap::new();
        let mut is_behind = false;
        for (place, prefix) in PREFIXES.iter().enumerate() {
            // Prefixes are independent of each other: some fall behind.
            if self.once_in(5) {
                is_behind = true;
                continue;
            }
            let (changes, revision) = self.mem.since(&[(*prefix).to_owned()], seen[place]).unwrap();
            seen[place] = revision;
            last.extend(changes.into_iter().map(|change| (change.key().to_owned(), change)));
        }
        let revision = seen.iter().copied().max().unwrap_or(0);
        self.nodes[node].seen = Some(seen);
        if !last.is_empty() {
            let puts = |change| match change {
                Change::Put(entry) => Change::Put(self.distort(node, vec![entry]).remove(0)),
                delete @ Change::Delete { .. } => delete,
            };
            let changes = last.into_values().map(puts).collect();
            self.hand_out(node, StoreEvent::Changes { changes, revision });
        } else if let Some(seen) = &self.nodes[node].seen {
            self.nodes[node].seen_claims = (self.restores, seen[CLAIMS]);
        }
        if is_behind {
            self.deliver_soon(node);
        }
    }

    fn hand_out(&mut self, node: usize, event: StoreEvent) {
        if let Some(seen) = &self.nodes[node].seen {
            self.nodes[node].seen_claims = (self.restores, seen[CLAIMS]);
        }
        self.nodes[node].is_synced = true;
        self.nodes[node].is_away = false;
        self.step(node, Event::Store(event));
    }

    /// What a planted bug makes of the entries.
    fn distort(&self, node: usize, mut entries: Vec<Entry>) -> Vec<Entry> {
        let own = format!("claims/{}/", self.nodes[node].name());
        for entry in &mut entries {
            match self.bug {
                Some(Bug::CompareSkipped) if entry.key.starts_with(&own) => entry.create_revision = 1,
                Some(Bug::RevisionReused) => entry.create_revision &= !0xfff,
                _ => {}
            }
        }
        entries
    }

    /// One event for a core, and its actions carried out; a crash may come before each of them.
    pub(super) fn step(&mut self, node: usize, event: Event) {
        let it = &mut self.nodes[node];
        let Some(core) = &mut it.core else { return };
        let (mut out, now) = (Vec::new(), self.now - it.started);
        let before = Arc::clone(&it.view);
        core.step(now, event.clone(), &mut out);
        let deadline = core.deadline();
        it.view = core.view();
        self.steps += 1;
        if deadline.is_some_and(|at| at <= now) {
            self.fail(format!("n{node}: the deadline {deadline:?} is not after {now:?}: a busy loop"));
        }
        self.check_view(node, &before, &event);
        if before.own_blocks != self.nodes[node].view.own_blocks {
            self.look_soon(node);
        }
        for action in out {
            if self.once_in(3000) {
                self.tell(format!("n{node} crashes before {action:?}"));
                self.crash(node);
                let after = self.up_to(20_000);
                self.at(after, Happening::Start(node));
                return;
            }
            self.act(node, action);
        }
        let it = &mut self.nodes[node];
        if let Some(at) = deadline.map(|at| at + it.started)
            && it.wake_at.is_none_or(|wake| at < wake)
        {
            it.wake_at = Some(at);
            let life = it.life;
            let after = at.saturating_sub(self.now);
            self.at(after, Happening::Wake { node, life });
        }
    }

    fn act(&mut self, node: usize, action: Action) {
        let life = self.nodes[node].life;
        match action {
            Action::Write(write) => self.send(node, life, write),
            Action::WriteNodeFile(file) => {
                self.nodes[node].is_filing = true;
                let after = self.up_to(50);
                if self.once_in(20) {
                    let (generation, error) = (file.generation, Some("no space left".to_owned()));
                    self.at(after, Happening::Filed { node, life, generation, error });
                } else {
                    self.at(after, Happening::File { node, life, file: *file });
                }
            }
            Action::ForgetLeases(_) => self.returned += 1,
            Action::Refuse(refusal) => self.fail(format!("n{node} refused: {}", refusal.0)),
            Action::Report(_, text) => self.tell(format!("n{node}: {text}")),
            Action::Publish => {}
        }
    }

    fn file(&mut self, node: usize, file: NodeFile) {
        let (life, generation) = (self.nodes[node].life, file.generation);
        self.nodes[node].disk = Some(file);
        self.are_files_new = true;
        let after = self.up_to(20);
        self.at(after, Happening::Filed { node, life, generation, error: None });
    }

    /// A write leaves the node. Most arrive and are answered; some arrive long after they were given up.
    fn send(&mut self, node: usize, life: u64, write: Write) {
        let timeout = seconds(5);
        let id = write.id;
        let unsure = || Err(StoreError::Timeout { endpoint: "sim".into(), after: timeout });
        let after = self.up_to(30);
        if self.nodes[node].is_cut || self.once_in(40) {
            // Never arrives.
            self.at(timeout, Happening::Answer { node, life, id, result: unsure() });
        } else if self.once_in(if self.bug == Some(Bug::ConditionSkipped) { 3 } else { 20 }) {
            // More often where late writes do harm, so that it is found soon.
            self.at(timeout, Happening::Answer { node, life, id, result: unsure() });
            let late = self.up_to(20_000);
            self.at(late, Happening::Arrive { node, life, write, answer: false });
        } else if self.once_in(500) {
            // Arrives, and nobody ever says so.
            self.at(after, Happening::Arrive { node, life, write, answer: false });
        } else {
            self.at(after, Happening::Arrive { node, life, write, answer: true });
        }
    }

    fn arrive(&mut self, node: usize, life: u64, write: &Write, answer: bool) {
        let before = self.mem.entry(&write.key);
        let result = if self.bug == Some(Bug::ConditionSkipped) {
            self.write_blindly(node, write)
        } else if self.bug == Some(Bug::HoldSkipped)
            && let Operation::PutGuarded(value, expect, _) = &write.operation
        {
            self.mem.put_if(&write.key, value, *expect, None).unwrap()
        } else {
            let mut lease = self.nodes[node].lease;
            let result = carry_out(&mut self.mem, &mut lease, write);
            if life == self.nodes[node].life {
                self.nodes[node].lease = lease;
            }
            result
        };
        match (&write.operation, &result) {
            (Operation::Delete(_), Written::Done { .. }) => self.note_deleted(&write.key, false),
            (_, Written::Done { .. }) => self.check_hold(node, &write.key, before),
            _ => {}
        }
        if answer {
            let after = self.up_to(30);
            self.at(after, Happening::Answer { node, life, id: write.id, result: Ok(result) });
        }
    }

    fn write_blindly(&mut self, node: usize, write: &Write) -> Written {
        match &write.operation {
            Operation::Put(value, _) | Operation::PutGuarded(value, ..) => {
                Written::Done { revision: self.mem.put(&write.key, value, None).unwrap() }
            }
            Operation::PutLeased(..) | Operation::PutFor(..) => {
                carry_out(&mut self.mem, &mut self.nodes[node].lease, write)
            }
            Operation::Delete(_) => {
                self.mem.delete(&write.key);
                Written::Done { revision: self.mem.revision() }
            }
        }
    }
}
