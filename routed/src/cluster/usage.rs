//! `usage/<node>`: how many addresses of each block pods hold, for people (`podwayctl ipam show`). Pure; the shell writes.
//!
//! Nobody watches the key and nothing follows from it, so it is no part of the core. It is written seldom: when it differs
//! from what was told last, at most every ten minutes. What an earlier run told is not known at the start of a run, and may
//! be of a boot whose pods are gone: so the first look is told at once, unless the same stands there. So is the first pod of
//! an empty node.

use std::collections::BTreeMap;
use std::time::Duration;

use ipnet::IpNet;
use podway_model::cluster::{Usage as Told, encode};
use podway_store::{Expect, StoreError, Written};

use super::event::Usage;

/// Shortest time between two writes.
const EVERY: Duration = Duration::from_secs(600);
/// Time after a write that failed.
const RETRY: Duration = Duration::from_secs(10);

/// What the store was told, and is to be told.
#[derive(Debug, Default)]
pub(super) struct Teller {
    /// None: nobody has looked yet.
    used: Option<BTreeMap<IpNet, u32>>,
    /// None: not known.
    told: Option<BTreeMap<IpNet, u32>>,
    writing: Option<BTreeMap<IpNet, u32>>,
    /// The key's revision, as far as it is known.
    revision: Option<i64>,
    not_before: Duration,
}

impl Teller {
    /// How full the blocks are now.
    pub(super) fn look(&mut self, blocks: &BTreeMap<IpNet, Usage>) {
        let number = |leased: u64| u32::try_from(leased).unwrap_or(u32::MAX);
        let used = blocks.iter().filter(|(_, usage)| usage.leased > 0);
        self.used = Some(used.map(|(block, usage)| (*block, number(usage.leased))).collect());
    }

    /// When the next write is due, if there is something to tell.
    pub(super) fn due(&self) -> Option<Duration> {
        let differs = self.used.is_some() && self.used != self.told;
        (self.writing.is_none() && differs).then_some(self.not_before)
    }

    /// What is to be written now; answer with [`Self::on_written`].
    pub(super) fn write(&mut self, now: Duration) -> Option<(Vec<u8>, Expect)> {
        self.due().filter(|due| *due <= now)?;
        let blocks = self.used.clone()?;
        let value = encode(&Told { blocks: blocks.clone() });
        self.writing = Some(blocks);
        Some((value, self.revision.map_or(Expect::Absent, Expect::Revision)))
    }

    /// A write was answered. Where an earlier run's value stands, its revision is known now.
    pub(super) fn on_written(&mut self, now: Duration, result: Result<Written, StoreError>) {
        let Some(blocks) = self.writing.take() else { return };
        match result {
            Ok(Written::Done { revision }) => {
                // The first pod of an empty node is told at once.
                self.not_before = if blocks.is_empty() { now } else { now + EVERY };
                self.told = Some(blocks);
                self.revision = Some(revision);
            }
            Ok(Written::Refused { found }) => {
                if found.as_ref().is_some_and(|entry| entry.value == encode(&Told { blocks: blocks.clone() }))
                {
                    self.told = Some(blocks);
                }
                self.revision = found.map(|entry| entry.mod_revision);
            }
            Err(_) => self.not_before = now + RETRY,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use podway_store::Entry;

    fn seconds(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    fn used(leased: u64) -> BTreeMap<IpNet, Usage> {
        let usage = Usage { available: 64 - leased, leased, quarantined: 0, first_leased: false };
        [("10.0.0.0/26".parse().unwrap(), usage)].into()
    }

    fn text(written: Option<(Vec<u8>, Expect)>) -> Option<(String, Expect)> {
        written.map(|(value, expect)| (String::from_utf8(value).unwrap(), expect))
    }

    #[test]
    fn use_is_told_when_it_changes_and_seldom() {
        let mut teller = Teller::default();
        assert_eq!((teller.due(), teller.write(seconds(0))), (None, None));
        // The first look and the first pod at once, what follows in time and as one.
        teller.look(&used(0));
        let first = text(teller.write(seconds(4)));
        assert_eq!(first, Some((r#"{"schema":1,"blocks":{}}"#.to_owned(), Expect::Absent)));
        teller.on_written(seconds(4), Ok(Written::Done { revision: 6 }));
        assert_eq!(teller.due(), None);
        teller.look(&used(1));
        let first = text(teller.write(seconds(5)));
        assert_eq!(
            first,
            Some((r#"{"schema":1,"blocks":{"10.0.0.0/26":1}}"#.to_owned(), Expect::Revision(6)))
        );
        assert_eq!(teller.due(), None, "one write at a time");
        teller.on_written(seconds(6), Ok(Written::Done { revision: 7 }));
        for leased in 2..5 {
            teller.look(&used(leased));
            assert_eq!(teller.write(seconds(10)), None);
        }
        assert_eq!(teller.due(), Some(seconds(606)));
        let second = text(teller.write(seconds(606))).unwrap();
        assert!(second.0.contains(":4}") && second.1 == Expect::Revision(7), "{second:?}");
        teller.on_written(seconds(606), Ok(Written::Done { revision: 9 }));
        assert_eq!(teller.due(), None, "nothing has changed");
        teller.look(&used(0));
        assert_eq!(text(teller.write(seconds(2000))).unwrap().0, r#"{"schema":1,"blocks":{}}"#);
    }

    #[test]
    fn what_an_earlier_run_told_is_written_over_and_a_failure_is_tried_again() {
        let mut teller = Teller::default();
        teller.look(&used(3));
        teller.write(seconds(1)).unwrap();
        let found = Entry { key: "usage/n1".to_owned(), value: vec![], create_revision: 3, mod_revision: 5 };
        teller.on_written(seconds(1), Ok(Written::Refused { found: Some(found) }));
        assert_eq!(teller.write(seconds(1)).unwrap().1, Expect::Revision(5));
        let error = StoreError::Timeout { endpoint: "mem".into(), after: seconds(5) };
        teller.on_written(seconds(6), Err(error));
        assert_eq!(teller.due(), Some(seconds(16)));
        assert_eq!(teller.write(seconds(16)).unwrap().1, Expect::Revision(5));
    }

    #[test]
    fn what_was_told_before_a_reboot_does_not_outlive_the_pods() {
        let before = encode(&Told { blocks: [("10.0.0.0/26".parse().unwrap(), 3)].into() });
        for (leased, again) in [(0, true), (3, false)] {
            let mut teller = Teller::default();
            teller.look(&used(leased));
            teller.write(seconds(1)).unwrap();
            let value = before.clone();
            let found = Entry { key: "usage/n1".to_owned(), value, create_revision: 3, mod_revision: 5 };
            teller.on_written(seconds(1), Ok(Written::Refused { found: Some(found) }));
            assert_eq!(teller.due().is_some(), again, "{leased} leases");
        }
    }
}
