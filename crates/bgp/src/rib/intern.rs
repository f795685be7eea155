//! Attributes are kept once however many prefixes share them, and compared by number.

use std::borrow::Borrow;
use std::cmp::Ordering;
use std::collections::BTreeSet;
use std::sync::Arc;

use crate::message::attribute::{LLGR_STALE, PathAttributes};

/// Attributes that stand in the [`Interner`]. Equal `id`: equal attributes.
#[derive(Debug)]
pub(crate) struct Attributes {
    pub(crate) id: u64,
    /// LLGR_STALE (RFC 9494) is there: the decision process asks at each comparison.
    pub(crate) long_lived_stale: bool,
    pub(crate) path: PathAttributes,
}

/// Ordered by value, so that a set finds it.
#[derive(Debug)]
struct ByValue(Arc<Attributes>);

impl Borrow<PathAttributes> for ByValue {
    fn borrow(&self) -> &PathAttributes {
        &self.0.path
    }
}
impl PartialEq for ByValue {
    fn eq(&self, other: &Self) -> bool {
        self.0.path == other.0.path
    }
}
impl Eq for ByValue {}
impl PartialOrd for ByValue {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for ByValue {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.path.cmp(&other.0.path)
    }
}

/// Size below which looking for unused entries is not worth it.
const SWEEP_FLOOR: usize = 256;

#[derive(Debug, Default)]
pub(crate) struct Interner {
    set: BTreeSet<ByValue>,
    next: u64,
    after_sweep: usize,
}

impl Interner {
    /// The one copy of `path`.
    pub(crate) fn intern(&mut self, path: PathAttributes) -> Arc<Attributes> {
        if let Some(known) = self.set.get(&path) {
            return Arc::clone(&known.0);
        }
        if self.set.len() >= SWEEP_FLOOR + 2 * self.after_sweep {
            // Nobody else holds these. Amortised: the set doubles between two sweeps.
            self.set.retain(|entry| Arc::strong_count(&entry.0) > 1);
            self.after_sweep = self.set.len();
        }
        let long_lived_stale = path.has_community(LLGR_STALE);
        let new = Arc::new(Attributes { id: self.next, long_lived_stale, path });
        self.next += 1;
        self.set.insert(ByValue(Arc::clone(&new)));
        new
    }

    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.set.len()
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use super::*;

    fn attributes(n: u32) -> PathAttributes {
        PathAttributes::originated(IpAddr::V4(Ipv4Addr::from(n)))
    }

    #[test]
    fn equal_attributes_are_one_and_unused_ones_go() {
        let mut interner = Interner::default();
        let (one, same, other) =
            (interner.intern(attributes(1)), interner.intern(attributes(1)), interner.intern(attributes(2)));
        assert!(Arc::ptr_eq(&one, &same) && one.id != other.id);
        for n in 0..100_000 {
            drop(interner.intern(attributes(n)));
        }
        assert!(interner.len() <= 2 * SWEEP_FLOOR, "{}", interner.len());
        assert!(Arc::ptr_eq(&one, &interner.intern(attributes(1))));
    }
}
