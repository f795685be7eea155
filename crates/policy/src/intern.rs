//! Values with small numbers: equal values share a number for as long as somebody uses it.

use std::collections::BTreeMap;

/// A number that stands for a value. 0 is never given out.
pub(crate) type Id = u32;

/// Numbers for values, with a count of users.
///
/// A number that became free is not given out again until all others had their turn: a packet that is half-way
/// through the rules while a transaction lands must not take an old number for a new meaning.
#[derive(Debug, Clone)]
pub(crate) struct Interner<T> {
    ids: BTreeMap<T, Id>,
    values: BTreeMap<Id, (T, usize)>,
    last: Id,
}

/// Whether a number has just begun or ceased to mean something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Use {
    /// This is its first user, or was its last one.
    Edge,
    /// It has others.
    Shared,
}

impl<T> Default for Interner<T> {
    fn default() -> Self {
        Self { ids: BTreeMap::new(), values: BTreeMap::new(), last: 0 }
    }
}

impl<T: Ord + Clone> Interner<T> {
    /// Adds a user of a value.
    pub(crate) fn acquire(&mut self, value: &T) -> (Id, Use) {
        if let Some((id, (_, users))) =
            self.ids.get(value).and_then(|id| Some((*id, self.values.get_mut(id)?)))
        {
            *users += 1;
            return (id, Use::Shared);
        }
        let mut id = self.last;
        loop {
            id = if id >= LAST_ID { 1 } else { id + 1 };
            if !self.values.contains_key(&id) {
                break;
            }
        }
        self.last = id;
        self.ids.insert(value.clone(), id);
        self.values.insert(id, (value.clone(), 1));
        (id, Use::Edge)
    }

    /// Takes a user away; behind the last one the number means nothing.
    pub(crate) fn release(&mut self, id: Id) -> Use {
        let Some((value, users)) = self.values.get_mut(&id) else { return Use::Shared };
        *users -= 1;
        if *users > 0 {
            return Use::Shared;
        }
        self.ids.remove(value);
        self.values.remove(&id);
        Use::Edge
    }

    /// What a number means.
    pub(crate) fn get(&self, id: Id) -> Option<&T> {
        self.values.get(&id).map(|(value, _)| value)
    }

    /// All values with their numbers, by number.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (Id, &T)> {
        self.values.iter().map(|(id, (value, _))| (*id, value))
    }

    /// How many values there are.
    pub(crate) fn len(&self) -> usize {
        self.values.len()
    }
}

/// Last number: numbers travel in the packet's priority and the connection's mark, 32 bits each, where the last
/// one is special (`TC_H_ROOT`).
const LAST_ID: Id = 0x7fff_ffff;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_values_share_a_number_until_the_last_user_goes() {
        let mut interner = Interner::default();
        let (a, first) = interner.acquire(&"a");
        assert_eq!((a, first), (1, Use::Edge));
        assert_eq!(interner.acquire(&"a"), (1, Use::Shared));
        assert_eq!(interner.release(a), Use::Shared);
        assert_eq!(interner.get(a), Some(&"a"));
        assert_eq!(interner.release(a), Use::Edge);
        assert_eq!((interner.get(a), interner.len()), (None, 0));
        assert_eq!(interner.acquire(&"a").0, 2, "a free number rests");
    }

    #[test]
    fn numbers_wrap_round_those_in_use() {
        let mut interner = Interner::default();
        let (kept, _) = interner.acquire(&"kept");
        interner.last = LAST_ID;
        assert_eq!((kept, interner.acquire(&"next").0), (1, 2));
    }
}
