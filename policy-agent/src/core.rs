//! What the agent decides: events in, actions out. Pure and total; the shell does the rest ([`crate::app`]).
//!
//! ```text
//!            store: snapshot ──┐                       ┌─ Replace (first load, repair, retry)
//!   folder of endpoint records ┼─▶ engine ─▶ flush ────┼─ Change (a few elements)
//!     announcements (CNI ADD) ─┘      ▲                └─ ForgetFlows (addresses that lost their pod)
//!                                     └── Committed, CommitFailed, TableTouched, Audited
//! ```
//!
//! Invariants (tests in `core/tests.rs`):
//! 1. Nothing is sent to the kernel before the store's snapshot and the folder have been read: what an earlier run
//!    left stays in force until one transaction replaces it.
//! 2. An announcement is answered `Programmed` only when the kernel holds its endpoint.
//! 3. One commit at a time; what came in meanwhile goes into the next.
//! 4. A change that the kernel refuses is followed by a whole replacement, tried again for ever.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use podway_kern::nft::Logged;
use podway_model::endpoint::EndpointRecord;
use podway_model::ids::BootId;
use podway_model::k8s::Protocol;
use podway_model::socket::{PolicyCheck, PolicyReply, PolicyStatus};
use podway_nft::{TableFlags, TableState, Transaction};
use podway_policy::oracle::{Flow, Traffic};
use podway_policy::{Endpoint, Engine, Event as Input, Flush, Limits};
use podway_store::Event as StoreEvent;

use crate::source::Source;
use crate::{records, trace};

/// Names a question that waits for its answer.
pub(crate) type Ticket = u64;

/// What happens.
#[derive(Debug)]
pub(crate) enum Event {
    /// The store says something.
    Store(StoreEvent),
    /// The whole folder was read: contents by id.
    Folder(BTreeMap<String, Vec<u8>>),
    /// One record was read; none: it is gone.
    Record(String, Option<Vec<u8>>),
    /// A CNI ADD wants to know when its endpoint is in force.
    Announced(Ticket, Box<EndpointRecord>),
    /// Somebody wants to know how it goes.
    AskedStatus(Ticket),
    /// Somebody wants to know what becomes of a connection: from, to, traffic.
    AskedTrace(Ticket, [String; 3]),
    /// Somebody wants to know which policies there are.
    AskedList(Ticket),
    /// Somebody wants to know whether all is in order.
    AskedCheck(Ticket),
    /// The comparison that [`Action::Compare`] asked for found this difference, or none.
    Compared(Ticket, Option<String>),
    /// The kernel dropped a packet because of a policy, and tells of it.
    Dropped(Logged),
    /// The last [`Action::Replace`] or [`Action::Change`] is in force.
    Committed,
    /// The kernel refused it, for this reason.
    CommitFailed(String),
    /// Somebody else changed our table.
    TableTouched,
    /// Somebody else may have changed our table.
    TableUnclear,
    /// The comparison that [`Action::Audit`] asked for found this difference, or none.
    Audited(Option<String>),
    /// [`Core::deadline`] has come.
    Tick,
}

/// What is to be done, in order. Each commit is answered by an event before the next.
#[derive(Debug, PartialEq)]
pub(crate) enum Action {
    /// Put this table in the place of whatever is there.
    Replace(Box<TableState>, Why),
    /// Change these elements.
    Change(Transaction),
    /// Compare the kernel's table with this one.
    Audit(Box<TableState>),
    /// Compare the kernel's table with this one, because somebody asked.
    Compare(Ticket, Box<TableState>),
    /// Delete what the kernel remembers of connections of these addresses.
    ForgetFlows(BTreeSet<IpAddr>),
    /// Answer a question.
    Answer(Ticket, PolicyReply),
    /// Tell the operator.
    Warn(String),
    /// Tell the operator of a dropped packet.
    TellDrop {
        /// Who sent it.
        from: String,
        /// Whom it was for.
        to: String,
        /// What it carried.
        traffic: String,
        /// Why it was dropped.
        why: String,
    },
}

/// Why a whole table is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Why {
    /// The sources have synced.
    FirstLoad,
    /// The kernel's table was not what it should be.
    Repair,
    /// The kernel refused the last change or table.
    Retry,
}

/// The agent's state.
#[derive(Debug)]
pub(crate) struct Core {
    boot: BootId,
    /// Name of this node.
    node: String,
    engine: Engine,
    source: Source,
    /// Whether the folder has been read.
    folder_read: bool,
    /// Records in force, by id.
    records: BTreeMap<String, EndpointRecord>,
    /// Records that cannot be used, and why.
    unusable: BTreeMap<String, String>,
    kernel: Kernel,
    waiting: Vec<Waiting>,
    next_audit: Option<Duration>,
    /// Addresses that lost their pod, and when their flows are to be forgotten.
    released: BTreeSet<IpAddr>,
    forget_at: Option<Duration>,
    last_forget: Option<Duration>,
    last_repair: Option<Duration>,
    repairs: u64,
    /// Why the kernel refused the last whole table, and how long was waited after that.
    last_failure: Option<String>,
    retry_delay: Duration,
    /// Store revision of which the kernel knows.
    revision: i64,
}

/// What the kernel holds.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Kernel {
    /// What an earlier run left, or nothing.
    Unloaded,
    /// Our table.
    InForce,
    /// A commit is on its way.
    Committing {
        /// How many announcements wait for it.
        waiting: usize,
        /// Store revision that it reflects.
        revision: i64,
        /// Whether our table is in force and only changes.
        change: bool,
        /// Whether somebody touched our table meanwhile.
        touched: bool,
    },
    /// Not what it should be; a whole table is due then.
    Broken {
        /// When.
        retry_at: Duration,
        /// Why.
        why: Why,
    },
}

/// An announcement that has not been answered.
#[derive(Debug)]
struct Waiting {
    ticket: Ticket,
    id: String,
}

impl Core {
    /// The core of a node of that name, which knows nothing; its tables get these flags.
    pub(crate) fn new(boot: BootId, node: String, limits: Limits, flags: TableFlags) -> Self {
        Self {
            boot,
            node,
            engine: Engine::new(limits, flags),
            source: Source::default(),
            folder_read: false,
            records: BTreeMap::new(),
            unusable: BTreeMap::new(),
            kernel: Kernel::Unloaded,
            waiting: Vec::new(),
            next_audit: None,
            released: BTreeSet::new(),
            forget_at: None,
            last_forget: None,
            last_repair: None,
            repairs: 0,
            last_failure: None,
            retry_delay: Duration::ZERO,
            revision: 0,
        }
    }

    /// Takes an event in at `now`, the time since the start.
    pub(crate) fn step(&mut self, now: Duration, event: Event, out: &mut Vec<Action>) {
        match event {
            Event::Store(event) => self.on_store(event, out),
            Event::Folder(files) => self.on_folder(files, out),
            Event::Record(id, content) => self.on_record(&id, content, out),
            Event::Announced(ticket, record) => self.on_announced(ticket, *record, out),
            Event::AskedStatus(ticket) => {
                out.push(Action::Answer(ticket, PolicyReply::Status(self.status())))
            }
            Event::AskedTrace(ticket, [from, to, traffic]) => {
                let answer = match self.is_in_sync() {
                    true => trace::trace(&self.engine, &self.node, &from, &to, &traffic),
                    false => self.not_in_sync(),
                };
                out.push(Action::Answer(ticket, answer));
            }
            Event::AskedList(ticket) => {
                let answer = match self.is_in_sync() {
                    true => PolicyReply::Listed(trace::list(&self.engine)),
                    false => self.not_in_sync(),
                };
                out.push(Action::Answer(ticket, answer));
            }
            Event::AskedCheck(ticket) => out.push(match self.is_in_sync() {
                true => Action::Compare(ticket, Box::new(self.engine.table())),
                false => Action::Answer(ticket, self.not_in_sync()),
            }),
            Event::Compared(ticket, difference) => {
                let status = self.status();
                let (problems, unknown_pods) = (status.problems, status.unknown_pods);
                let check = PolicyCheck { difference, problems, unknown_pods };
                out.push(Action::Answer(ticket, PolicyReply::Checked(check)));
            }
            Event::Dropped(logged) => out.push(self.on_dropped(&logged)),
            Event::Committed => self.on_committed(now, out),
            Event::CommitFailed(reason) => self.on_commit_failed(now, reason, out),
            Event::TableTouched => self.on_table_touched(now),
            // Looked at as soon as nothing is on its way.
            Event::TableUnclear => self.next_audit = self.next_audit.map(|at| at.min(now)),
            Event::Audited(difference) => self.on_audited(now, difference, out),
            Event::Tick => {}
        }
        self.note_released(now);
        self.commit(now, out);
        self.on_time(now, out);
    }

    /// When [`Event::Tick`] is due.
    pub(crate) fn deadline(&self) -> Option<Duration> {
        let retry = match self.kernel {
            Kernel::Broken { retry_at, .. } => Some(retry_at),
            _ => None,
        };
        let audit = self.next_audit.filter(|_| self.kernel == Kernel::InForce);
        [retry, audit, self.forget_at].into_iter().flatten().min()
    }

    /// What is missing until the agent is ready, in words.
    pub(crate) fn waiting_for(&self) -> Vec<String> {
        let mut missing = Vec::new();
        if !self.source.is_synced() {
            missing.push(format!("store: {}", self.source.describe()));
        }
        if !self.folder_read {
            missing.push("endpoint records: not read yet".to_owned());
        }
        if missing.is_empty() && !self.is_in_force() {
            let reason = self.last_failure.as_deref().unwrap_or("not loaded yet");
            missing.push(format!("kernel: {reason}"));
        }
        missing
    }

    /// Whether everything that exists has come in: before that no answer about it would be true.
    fn is_in_sync(&self) -> bool {
        self.source.is_synced() && self.folder_read
    }

    fn not_in_sync(&self) -> PolicyReply {
        PolicyReply::Failed { reason: format!("not in sync yet: {}", self.waiting_for().join("; ")) }
    }

    /// Whether the kernel holds our table (a change of it may be on its way).
    fn is_in_force(&self) -> bool {
        matches!(self.kernel, Kernel::InForce | Kernel::Committing { change: true, .. })
    }

    /// State for people and metrics.
    pub(crate) fn status(&self) -> PolicyStatus {
        let numbers = self.engine.statistics();
        let mut problems = self.waiting_for();
        problems.extend(self.source.problems());
        problems.extend(self.unusable.values().cloned());
        problems.extend(self.engine.problems());
        PolicyStatus {
            ready: self.waiting_for().is_empty(),
            store: self.source.describe(),
            endpoints: numbers.endpoints,
            unknown_pods: self.engine.unknown_pods(),
            policies: numbers.policies,
            pods: numbers.pods,
            classes: numbers.classes,
            policy_sets: numbers.policy_sets,
            elements: numbers.elements,
            revision: self.revision,
            repairs: self.repairs,
            problems,
        }
    }

    fn on_store(&mut self, event: StoreEvent, out: &mut Vec<Action>) {
        let (mut inputs, mut refused) = (Vec::new(), Vec::new());
        self.source.on_event(event, &mut inputs, &mut refused);
        inputs.into_iter().for_each(|input| self.engine.on_event(input));
        out.extend(refused.into_iter().map(|line| Action::Warn(format!("ignoring store value {line}"))));
    }

    fn on_folder(&mut self, files: BTreeMap<String, Vec<u8>>, out: &mut Vec<Action>) {
        let known = self.records.keys().chain(self.unusable.keys());
        let gone: Vec<String> = known.filter(|id| !files.contains_key(*id)).cloned().collect();
        for id in gone {
            self.on_record(&id, None, out);
        }
        for (id, content) in files {
            self.on_record(&id, Some(content), out);
        }
        self.folder_read = true;
    }

    fn on_record(&mut self, id: &str, content: Option<Vec<u8>>, out: &mut Vec<Action>) {
        match content.map(|content| records::read(id, &content, &self.boot)) {
            None | Some(Ok(None)) => {
                self.unusable.remove(id);
                self.records.remove(id);
                self.engine.on_event(Input::EndpointRemoved(id.to_owned()));
            }
            Some(Ok(Some(record))) => self.put_record(record),
            // The last good one stays: a record is replaced as a whole, so this is damage, not progress.
            Some(Err(why)) => {
                if self.unusable.get(id) != Some(&why) {
                    out.push(Action::Warn(format!("ignoring {why}")));
                    self.unusable.insert(id.to_owned(), why);
                }
            }
        }
    }

    fn put_record(&mut self, record: EndpointRecord) {
        self.unusable.remove(&record.id);
        self.engine.on_event(Input::EndpointPut(record.id.clone(), Endpoint::from(&record)));
        self.records.insert(record.id.clone(), record);
    }

    fn on_announced(&mut self, ticket: Ticket, record: EndpointRecord, out: &mut Vec<Action>) {
        let id = record.id.clone();
        let failed = match records::check(&id, record, &self.boot) {
            Ok(Some(record)) => {
                self.put_record(record);
                self.waiting.push(Waiting { ticket, id });
                if self.waiting.len() > WAITING_LIMIT {
                    let Waiting { ticket, .. } = self.waiting.remove(0);
                    let reason = "too many announcements wait for the first load".to_owned();
                    out.push(Action::Answer(ticket, PolicyReply::Failed { reason }));
                }
                return;
            }
            Ok(None) => format!("endpoint record {id} is of another boot"),
            Err(why) => why,
        };
        out.push(Action::Answer(ticket, PolicyReply::Failed { reason: failed }));
    }

    /// Finds out why: the kernel knows only that no rule of a set matched.
    fn on_dropped(&self, logged: &Logged) -> Action {
        let with_ports = Protocol::ALL.into_iter().find(|protocol| protocol.number() == logged.protocol);
        let traffic = match (with_ports, logged.port) {
            (Some(protocol), Some(port)) => Traffic::Port(protocol, port),
            _ => Traffic::Other(logged.protocol),
        };
        let source = self.engine.end_at(logged.source, &self.node);
        let destination = self.engine.end_at(logged.destination, &self.node);
        let flow = Flow { source, destination, traffic };
        let decision = self.engine.explain(&flow);
        let why = match (decision.egress.allows(), decision.ingress.allows()) {
            (false, _) => format!("egress {}", decision.egress),
            (true, false) => format!("ingress {}", decision.ingress),
            (true, true) => "allowed by now".to_owned(),
        };
        Action::TellDrop {
            from: trace::end_text(&flow.source),
            to: trace::end_text(&flow.destination),
            traffic: trace::traffic_text(traffic),
            why,
        }
    }

    fn on_committed(&mut self, now: Duration, out: &mut Vec<Action>) {
        let Kernel::Committing { waiting, revision, touched, .. } = self.kernel else { return };
        self.kernel = Kernel::InForce;
        self.revision = revision;
        self.last_failure = None;
        self.retry_delay = Duration::ZERO;
        self.next_audit.get_or_insert(now + AUDIT_EVERY);
        self.answer_waiting(waiting, out);
        if touched {
            self.on_table_touched(now);
        }
    }

    fn on_commit_failed(&mut self, now: Duration, reason: String, out: &mut Vec<Action>) {
        let Kernel::Committing { change, .. } = self.kernel else { return };
        let what = if change {
            // The kernel holds something else than we think: the whole is due at once.
            "change"
        } else {
            self.retry_delay = (self.retry_delay * 2).clamp(RETRY_FIRST, RETRY_LAST);
            self.last_failure = Some(reason.clone());
            "table"
        };
        let delay = self.retry_delay;
        out.push(Action::Warn(format!(
            "the kernel refused our nftables {what}: {reason}; sending the whole table in {} ms",
            delay.as_millis()
        )));
        self.kernel = Kernel::Broken { retry_at: now + delay, why: Why::Retry };
    }

    fn on_table_touched(&mut self, now: Duration) {
        match &mut self.kernel {
            Kernel::Committing { touched, .. } => *touched = true,
            Kernel::InForce => {
                // Somebody who flushes in a loop must not make us load in a loop.
                let retry_at = self.last_repair.map_or(now, |last| now.max(last + REPAIR_PAUSE));
                self.kernel = Kernel::Broken { retry_at, why: Why::Repair };
            }
            Kernel::Unloaded | Kernel::Broken { .. } => {}
        }
    }

    fn on_audited(&mut self, now: Duration, difference: Option<String>, out: &mut Vec<Action>) {
        if let (Some(difference), Kernel::InForce) = (difference, &self.kernel) {
            out.push(Action::Warn(format!("our nftables table is not what it should be: {difference}")));
            self.on_table_touched(now);
        }
    }

    /// Sends what the kernel does not have yet, one commit at a time.
    fn commit(&mut self, now: Duration, out: &mut Vec<Action>) {
        if !self.is_in_sync() {
            return;
        }
        self.engine.on_synced();
        match self.kernel {
            Kernel::Committing { .. } => {}
            Kernel::Broken { retry_at, .. } if now < retry_at => {}
            Kernel::Unloaded => self.replace(Why::FirstLoad, out),
            Kernel::Broken { why, .. } => {
                if why == Why::Repair {
                    self.repairs += 1;
                    self.last_repair = Some(now);
                }
                self.replace(why, out);
            }
            Kernel::InForce => match self.engine.flush() {
                Flush::Change(transaction) => {
                    self.kernel = self.committing(true);
                    out.push(Action::Change(transaction));
                }
                Flush::Nothing => {
                    self.revision = self.source.revision();
                    self.answer_waiting(self.waiting.len(), out);
                }
                Flush::Replace(table) => {
                    self.kernel = self.committing(false);
                    out.push(Action::Replace(table, Why::FirstLoad));
                }
            },
        }
    }

    /// Sends the whole table; everything that came in is in it.
    fn replace(&mut self, why: Why, out: &mut Vec<Action>) {
        self.engine.flush();
        self.kernel = self.committing(false);
        out.push(Action::Replace(Box::new(self.engine.table()), why));
    }

    fn committing(&self, change: bool) -> Kernel {
        Kernel::Committing {
            waiting: self.waiting.len(),
            revision: self.source.revision(),
            change,
            touched: false,
        }
    }

    /// Answers the announcements that came first, this many of them.
    fn answer_waiting(&mut self, count: usize, out: &mut Vec<Action>) {
        for Waiting { ticket, id } in self.waiting.drain(..count.min(self.waiting.len())) {
            let reply = match self.records.contains_key(&id) {
                true => PolicyReply::Programmed { pod_known: self.engine.is_pod_known(&id) },
                false => {
                    PolicyReply::Failed { reason: format!("endpoint record {id} was removed meanwhile") }
                }
            };
            out.push(Action::Answer(ticket, reply));
        }
    }

    /// An address that lost its pod is forgotten at once, unless that was just done for others: each time costs a
    /// look at all connections.
    fn note_released(&mut self, now: Duration) {
        let released = self.engine.take_released();
        if !released.is_empty() {
            self.released.extend(released);
            let earliest = self.last_forget.map_or(now, |last| now.max(last + FORGET_PAUSE));
            self.forget_at.get_or_insert(earliest);
        }
    }

    fn on_time(&mut self, now: Duration, out: &mut Vec<Action>) {
        if self.forget_at.is_some_and(|at| at <= now) {
            self.forget_at = None;
            self.last_forget = Some(now);
            out.push(Action::ForgetFlows(std::mem::take(&mut self.released)));
        }
        if self.kernel == Kernel::InForce && self.next_audit.is_some_and(|at| at <= now) {
            self.next_audit = Some(now + AUDIT_EVERY);
            out.push(Action::Audit(Box::new(self.engine.table())));
        }
    }
}

/// Announcements that may wait. Their clients give up after 2 s, so most of what waits longer waits for nobody: the
/// oldest is refused.
const WAITING_LIMIT: usize = 1024;
/// Pause before a table that the kernel refused is sent again: at first, and at most.
const RETRY_FIRST: Duration = Duration::from_millis(100);
const RETRY_LAST: Duration = Duration::from_secs(30);
/// Shortest time between two repairs.
const REPAIR_PAUSE: Duration = Duration::from_millis(100);
/// Shortest time between two looks at all connections.
const FORGET_PAUSE: Duration = Duration::from_secs(1);
/// Time between two comparisons of the kernel's table with ours.
const AUDIT_EVERY: Duration = Duration::from_secs(300);

#[cfg(test)]
mod tests;
