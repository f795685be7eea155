//! Jitter without a source of randomness: a seeded generator, so that a run can be repeated.

use std::time::Duration;

/// SplitMix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number generators", 2014).
#[derive(Debug, Clone)]
pub(crate) struct Rng(u64);

impl Rng {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// `time` times a factor from 0.75 to 1 (RFC 4271 section 10).
    pub(crate) fn jitter(&mut self, time: Duration) -> Duration {
        let thousandths = u32::try_from(750 + self.next() % 251).unwrap_or(1000);
        time * thousandths / 1000
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jitter_stays_within_the_rfc_and_repeats_with_its_seed() {
        let (mut one, mut other) = (Rng::new(7), Rng::new(7));
        let all: Vec<Duration> = (0..1000).map(|_| one.jitter(Duration::from_secs(100))).collect();
        assert!(all.iter().all(|t| (75..=100).contains(&t.as_secs())), "{all:?}");
        assert!(all.iter().any(|t| t.as_secs() < 78) && all.iter().any(|t| t.as_secs() > 97));
        assert_eq!(all, (0..1000).map(|_| other.jitter(Duration::from_secs(100))).collect::<Vec<_>>());
    }
}
