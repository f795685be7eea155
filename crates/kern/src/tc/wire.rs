//! `struct tcmsg`.
//!
//! ```text
//!  family u8 · padding 3 · interface index u32 · handle u32 · parent u32 · info u32
//! ```

use crate::attributes::Attributes;

const HEAD: usize = 20;

/// What stands before the attributes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) index: u32,
    pub(super) handle: u32,
    pub(super) parent: u32,
    /// Of a filter: priority and protocol.
    pub(super) info: u32,
}

impl Head {
    pub(super) fn read(payload: &[u8]) -> Option<(Self, Attributes<'_>)> {
        let (head, attributes) = payload.split_first_chunk::<HEAD>()?;
        let word = |at: usize| u32::from_ne_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        let head = Self { index: word(4), handle: word(8), parent: word(12), info: word(16) };
        Some((head, Attributes(attributes)))
    }

    pub(super) fn to_bytes(self) -> Vec<u8> {
        let mut bytes = vec![0; 4];
        for word in [self.index, self.handle, self.parent, self.info] {
            bytes.extend(word.to_ne_bytes());
        }
        bytes
    }
}
