//! When pending changes go to all groups.
//!
//! A flush wakes every member's connection, so what it costs is in proportion to the members, however little there is to
//! say. Hence two rules. Flushes are a multiple of their own cost apart, so that a busy reflector spends most of its time
//! on other work. And while peers connect, one after the other, a flush waits until nobody has connected for a moment:
//! each of them brings news, and a thousand peers that come up within a second are told in a few flushes instead of a
//! hundred. Nobody waits longer than [`HOLD`] for either. A flush that could take only a part of what is pending goes on as
//! soon as what it gave out has been written.

use std::time::Duration;

/// Shortest and longest time between two flushes, and how many times the cost of the last one.
const INTERVAL: (Duration, Duration, u32) = (Duration::from_millis(2), Duration::from_millis(50), 4);
/// Nobody has connected for so long: no more are on their way.
const QUIET: Duration = Duration::from_millis(10);
/// Longest that news wait for peers that connect.
const HOLD: Duration = Duration::from_millis(100);

#[derive(Debug)]
pub(super) struct Pace {
    interval: Duration,
    flushed_at: Duration,
    /// The last time that a connection or a session came up.
    greeted_at: Option<Duration>,
    /// Since when changes are pending.
    pending_since: Option<Duration>,
    /// The last flush took only a part of them.
    goes_on: bool,
}

impl Pace {
    pub(super) fn new(now: Duration) -> Self {
        Self { interval: INTERVAL.0, flushed_at: now, greeted_at: None, pending_since: None, goes_on: false }
    }

    /// What the last flush has cost.
    pub(super) fn took(&mut self, cost: Duration) {
        self.interval = (cost * INTERVAL.2).clamp(INTERVAL.0, INTERVAL.1);
    }

    /// Somebody connects.
    pub(super) fn greeted(&mut self, now: Duration) {
        self.greeted_at = Some(now);
    }

    /// Something is pending.
    pub(super) fn pending(&mut self, now: Duration) {
        self.pending_since.get_or_insert(now);
    }

    /// A flush; afterwards something is still pending, or nothing.
    pub(super) fn flushed(&mut self, now: Duration, goes_on: bool) {
        self.flushed_at = now;
        self.pending_since = goes_on.then_some(now);
        self.goes_on = goes_on;
    }

    /// When to flush; none: nothing is pending.
    pub(super) fn due(&self) -> Option<Duration> {
        let since = self.pending_since?;
        if self.goes_on {
            return Some(self.flushed_at);
        }
        let quiet = self.greeted_at.map_or(Duration::ZERO, |at| (at + QUIET).min(since + HOLD));
        Some((self.flushed_at + self.interval).max(quiet))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(count: u64) -> Duration {
        Duration::from_millis(count)
    }

    #[test]
    fn flushes_are_four_times_their_cost_apart() {
        let mut pace = Pace::new(ms(1000));
        assert_eq!(pace.due(), None);
        for (cost, apart) in [(ms(0), ms(2)), (ms(1), ms(4)), (ms(7), ms(28)), (ms(100), ms(50))] {
            pace.flushed(ms(2000), false);
            pace.took(cost);
            assert_eq!(pace.due(), None);
            pace.pending(ms(2001));
            assert_eq!(pace.due(), Some(ms(2000) + apart), "{cost:?}");
        }
    }

    #[test]
    fn while_peers_connect_a_flush_waits_but_not_for_ever() {
        let mut pace = Pace::new(ms(0));
        pace.pending(ms(1000));
        assert_eq!(pace.due(), Some(ms(2)));
        for (greeted, due) in [(1000, 1010), (1005, 1015), (1089, 1099), (1095, 1100), (1500, 1100)] {
            pace.greeted(ms(greeted));
            assert_eq!(pace.due(), Some(ms(due)), "{greeted}");
        }
        // More news do not make the first wait longer.
        pace.pending(ms(1090));
        assert_eq!(pace.due(), Some(ms(1100)));
        pace.flushed(ms(1100), true);
        pace.greeted(ms(1100));
        assert_eq!(pace.due(), Some(ms(1100)));
        pace.flushed(ms(1101), false);
        pace.greeted(ms(1500));
        assert_eq!(pace.due(), None);
        pace.pending(ms(1600));
        assert_eq!(pace.due(), Some(ms(1510)));
    }
}
