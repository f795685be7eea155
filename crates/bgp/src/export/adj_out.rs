//! Adj-RIB-out (RFC 4271 section 3.2): what a group was told of each destination, by number.

use std::collections::BTreeMap;
use std::sync::Arc;

use smallvec::SmallVec;

use super::encoder::Told;
use crate::rib::DestId;

#[derive(Debug, Default)]
pub(crate) struct AdjOut {
    /// Without a path identifier (0).
    plain: Vec<Option<Arc<Told>>>,
    /// With one (RFC 7911).
    numbered: BTreeMap<(DestId, u32), Arc<Told>>,
}

impl AdjOut {
    pub(crate) fn get(&self, destination: DestId, id: u32) -> Option<&Arc<Told>> {
        match id {
            0 => self.plain.get(destination.at())?.as_ref(),
            id => self.numbered.get(&(destination, id)),
        }
    }

    pub(crate) fn insert(&mut self, destination: DestId, id: u32, told: Arc<Told>) -> Option<Arc<Told>> {
        if id != 0 {
            return self.numbered.insert((destination, id), told);
        }
        if self.plain.len() <= destination.at() {
            self.plain.resize(destination.at() + 1, None);
        }
        self.plain[destination.at()].replace(told)
    }

    pub(crate) fn remove(&mut self, destination: DestId, id: u32) -> Option<Arc<Told>> {
        match id {
            0 => self.plain.get_mut(destination.at())?.take(),
            id => self.numbered.remove(&(destination, id)),
        }
    }

    /// The path identifiers of a destination.
    pub(crate) fn ids(&self, destination: DestId) -> SmallVec<[u32; 1]> {
        let plain = self.get(destination, 0).map(|_| 0);
        let all = (destination, 1)..=(destination, u32::MAX);
        plain.into_iter().chain(self.numbered.range(all).map(|((_, id), _)| *id)).collect()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (DestId, u32, &Arc<Told>)> {
        let plain = self.plain.iter().enumerate();
        let plain = plain.filter_map(|(at, told)| Some((DestId::from_index(at), 0, told.as_ref()?)));
        plain.chain(self.numbered.iter().map(|((destination, id), told)| (*destination, *id, told)))
    }
}
