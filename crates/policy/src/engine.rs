//! The engine as its user sees it: events in, and out what the kernel has to do.

use std::collections::BTreeMap;

use podway_nft::{Element, SetId, TableFlags, TableState, Transaction};

use crate::contents::Difference;
use crate::lower;
use crate::state::{Event, State, Statistics};
use crate::verdicts::Limits;

/// NetworkPolicy of one node, from objects to elements.
///
/// Until [`Engine::on_synced`] it only collects. The first [`Engine::flush`] after that is a whole table, every
/// further one a transaction of the few elements that differ; [`Engine::table`] is the whole at any time.
#[derive(Debug, Clone, Default)]
pub struct Engine {
    state: State,
    flags: TableFlags,
    synced: bool,
    loaded: bool,
}

/// What the kernel has to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Flush {
    /// Nothing: nothing differs, or the sources have not synced yet.
    Nothing,
    /// Put this table in the place of what an earlier run left.
    Replace(Box<TableState>),
    /// Change these elements.
    Change(Transaction),
}

impl Engine {
    /// An empty engine; the table that it makes gets these flags.
    pub fn new(limits: Limits, flags: TableFlags) -> Self {
        Self { state: State::new(limits), flags, synced: false, loaded: false }
    }

    /// Takes an event in. Cheap: the work is done by [`Engine::flush`].
    pub fn on_event(&mut self, event: Event) {
        self.state.on_event(event);
    }

    /// Everything that exists has come in: from now on what is not known does not exist.
    pub fn on_synced(&mut self) {
        self.synced = true;
    }

    /// Whether [`Engine::on_synced`] was called.
    pub fn is_synced(&self) -> bool {
        self.synced
    }

    /// Works out what follows from the events since the last time.
    pub fn flush(&mut self) -> Flush {
        if !self.synced {
            return Flush::Nothing;
        }
        let differences = self.state.settle();
        if !self.loaded {
            self.loaded = true;
            return Flush::Replace(Box::new(self.table()));
        }
        if differences.is_empty() { Flush::Nothing } else { Flush::Change(transaction(&differences)) }
    }

    /// The whole table as of the last [`Engine::flush`].
    pub fn table(&self) -> TableState {
        TableState { flags: self.flags, ..lower::table(self.state.contents()) }
    }

    /// The engine in numbers.
    pub fn statistics(&self) -> Statistics {
        self.state.statistics()
    }

    /// Local pods whose object is not known, as `namespace/name`.
    pub fn unknown_pods(&self) -> Vec<String> {
        self.state.unknown_pods()
    }

    /// Whether the object of this attachment's pod is known.
    pub fn is_pod_known(&self, endpoint: &str) -> bool {
        self.state.is_pod_known(endpoint)
    }

    /// What cannot be used or enforced as written, in words.
    pub fn problems(&self) -> Vec<String> {
        self.state.problems()
    }

    /// Addresses that belonged to a pod and do not belong to it any more, since this was last asked: whatever the
    /// kernel remembers of their connections is somebody else's now.
    pub fn take_released(&mut self) -> std::collections::BTreeSet<std::net::IpAddr> {
        self.state.take_released()
    }
}

/// Deletions first: an element with new data must go before it comes, and so must a segment that another overlaps.
fn transaction(differences: &[Difference]) -> Transaction {
    let table = lower::table_id();
    let sets: BTreeMap<_, _> =
        lower::sets().iter().map(|set| (set.name.clone(), SetId::of(&table, set))).collect();
    let gather = |value: fn(&Difference) -> Option<u32>| {
        let mut elements: BTreeMap<_, Vec<Element>> = BTreeMap::new();
        for difference in differences {
            if let Some(value) = value(difference) {
                let (set, element) = lower::element(&difference.key, value);
                elements.entry(set).or_default().push(element);
            }
        }
        elements
    };
    let mut transaction = Transaction::new();
    for (name, elements) in gather(|difference| difference.old) {
        if let Some(set) = sets.get(&name) {
            transaction.delete_elements(set, elements);
        }
    }
    for (name, elements) in gather(|difference| difference.new) {
        if let Some(set) = sets.get(&name) {
            transaction.add_elements(set, elements);
        }
    }
    transaction
}
