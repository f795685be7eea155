//! `usage/<node>`: how many addresses of each block pods hold, for people (`podwayctl ipam show`). Nobody watches it, so it
//! is written seldom: when it differs from what was told, at most every ten minutes. That a node is empty counts for
//! nothing, so that its first pod is told at once.

use std::collections::BTreeMap;
use std::time::Duration;

use ipnet::IpNet;
use podway_model::cluster::{Usage, encode};
use podway_model::keys::Key;
use podway_store::{Expect, StoreError, Written};

use super::core::Core;
use super::event::{Action, Operation};

/// Shortest time between two writes.
pub(super) const EVERY: Duration = Duration::from_secs(600);

/// What the store was told.
#[derive(Debug, Default)]
pub(super) struct Told {
    /// What stands there: our last write. None: an earlier run's, if anything.
    blocks: Option<BTreeMap<IpNet, u32>>,
    /// What is being written.
    writing: BTreeMap<IpNet, u32>,
    /// The key's revision.
    revision: Option<i64>,
    /// Earliest time of the next write.
    not_before: Duration,
}

impl Core {
    fn used(&self) -> BTreeMap<IpNet, u32> {
        let number = |leased: u64| u32::try_from(leased).unwrap_or(u32::MAX);
        let used = self.usage.iter().filter(|(_, usage)| usage.leased > 0);
        used.map(|(block, usage)| (*block, number(usage.leased))).collect()
    }

    /// When the next write is due, if there is something to tell.
    pub(super) fn usage_due(&self) -> Option<Duration> {
        // Before the first look nobody knows.
        let is_known = !self.usage.is_empty();
        (is_known && self.told.blocks.as_ref() != Some(&self.used())).then_some(self.told.not_before)
    }

    /// Tells the store, where it is time.
    pub(super) fn tell_usage(&mut self, now: Duration, out: &mut Vec<Action>) {
        let is_due = self.usage_due().is_some_and(|due| due <= now);
        if !is_due || !self.can_write() || !self.is_registered() {
            return;
        }
        let blocks = self.used();
        let key = Key::Usage(self.me.node.clone()).to_string();
        let value = encode(&Usage { blocks: blocks.clone() });
        let expect = self.told.revision.map_or(Expect::Absent, Expect::Revision);
        if self.writes.propose(key, Operation::Put(value, expect), out) {
            self.told.writing = blocks;
        }
    }

    /// A write was answered. Where somebody else's value stands (an earlier run's), its revision is known now.
    pub(super) fn on_usage_written(
        &mut self,
        now: Duration,
        key: &str,
        result: &Result<Written, StoreError>,
    ) {
        if !matches!(key.parse(), Ok(Key::Usage(_))) {
            return;
        }
        match result {
            Ok(Written::Done { revision }) => {
                let blocks = std::mem::take(&mut self.told.writing);
                if !blocks.is_empty() {
                    self.told.not_before = now + EVERY;
                }
                self.told.blocks = Some(blocks);
                self.told.revision = Some(*revision);
            }
            Ok(Written::Refused { found }) => {
                self.told.revision = found.as_ref().map(|entry| entry.mod_revision);
            }
            Err(_) => {}
        }
    }
}
