//! Reproducible changes to inputs: the same seed gives the same inputs on every machine.

use crate::MAX_INPUT;

/// Numbers from a seed (SplitMix64).
#[derive(Debug, Clone)]
pub struct Random(u64);

/// Bytes that readers treat specially more often than others.
const TELLING: [u8; 24] = *b"\0\x01\x02\x04\x10\x7f\x80\xff\n \"{}[]:,-/.=0a9";

impl Random {
    /// The numbers of a seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number.
    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `end`; 0 where that is 0.
    pub fn below(&mut self, end: usize) -> usize {
        let end = u64::try_from(end.max(1)).unwrap_or(u64::MAX);
        usize::try_from(self.number() % end).unwrap_or(0)
    }

    fn byte(&mut self) -> u8 {
        self.number().to_le_bytes()[0]
    }
}

/// One of the inputs, changed in one to eight places.
pub fn mutated(inputs: &[Vec<u8>], random: &mut Random) -> Vec<u8> {
    let at = random.below(inputs.len());
    let mut bytes = inputs.get(at).cloned().unwrap_or_default();
    for _ in 0..=random.below(8) {
        change(&mut bytes, inputs, random);
    }
    bytes.truncate(MAX_INPUT);
    bytes
}

fn change(bytes: &mut Vec<u8>, inputs: &[Vec<u8>], random: &mut Random) {
    let at = random.below(bytes.len());
    match random.below(8) {
        0 => bytes.insert(at, random.byte()),
        1 => {
            let end = (at + 1 + random.below(8)).min(bytes.len());
            bytes.drain(at.min(end)..end);
        }
        2 => bytes.truncate(at),
        3 => {
            // A run of it once more.
            let run: Vec<u8> = bytes.iter().skip(at).take(1 + random.below(32)).copied().collect();
            bytes.splice(at..at, run);
        }
        4 => {
            // A part of another one.
            let from = random.below(inputs.len());
            let other = inputs.get(from).map_or(&[][..], Vec::as_slice);
            let part: Vec<u8> =
                other.iter().skip(random.below(other.len())).take(1 + random.below(64)).copied().collect();
            bytes.splice(at..at, part);
        }
        kind => {
            let new = match kind {
                5 => TELLING[random.below(TELLING.len())],
                6 => bytes.get(at).map_or(0, |old| old ^ (1 << random.below(8))),
                _ => random.byte(),
            };
            match bytes.get_mut(at) {
                Some(byte) => *byte = new,
                None => bytes.push(new),
            }
        }
    }
}
