//! Capped, jittered backoff: for ever, and never in step with the other nodes.

use std::time::Duration;

/// Delays between attempts: doubling from `first` to `cap`, each shortened by up to a half at random, so that
/// nodes that lost the same server do not come back in one wave.
#[derive(Debug, Clone)]
pub struct Backoff {
    first: Duration,
    cap: Duration,
    next: Duration,
    random: u64,
}

impl Backoff {
    /// `seed` tells this node or task from the others.
    pub fn new(first: Duration, cap: Duration, seed: u64) -> Self {
        Self { first, cap, next: first, random: seed | 1 }
    }

    /// How long to wait before the next attempt.
    pub fn delay(&mut self) -> Duration {
        let full = self.next;
        self.next = (full * 2).min(self.cap);
        // xorshift64: spreads, no more is needed.
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        full / 2 + (full / 2).mul_f64((self.random >> 11) as f64 / (1u64 << 53) as f64)
    }

    /// An attempt succeeded: begin again with the first delay.
    pub fn reset(&mut self) {
        self.next = self.first;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_grow_to_the_cap_and_differ_between_seeds() {
        let (first, cap) = (Duration::from_millis(100), Duration::from_secs(5));
        let run = |seed| {
            let mut backoff = Backoff::new(first, cap, seed);
            (0..12).map(|_| backoff.delay()).collect::<Vec<_>>()
        };
        let delays = run(7);
        assert!(delays[0] >= first / 2 && delays[0] <= first);
        assert!(delays.iter().all(|d| *d <= cap));
        assert!(delays[11] >= cap / 2);
        assert_ne!(delays, run(8));
    }

    #[test]
    fn success_begins_again() {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5), 1);
        for _ in 0..10 {
            backoff.delay();
        }
        backoff.reset();
        assert!(backoff.delay() <= Duration::from_millis(100));
    }
}
