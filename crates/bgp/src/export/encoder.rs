//! From paths to octets: what a group is told of each path, and the chunks that its log is made of.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use ipnet::IpNet;

use super::group::Out;
use super::lint;
use super::log::Segment;
use super::policy::GroupKey;
use crate::config::Role;
use crate::message::attribute::PathAttributes;
use crate::rib::Learned;
use crate::types::Family;

/// Attributes as they go out. Equal `id`: the same attributes.
#[derive(Debug)]
pub(crate) struct Final {
    pub(crate) id: u64,
    pub(crate) attributes: PathAttributes,
}

/// What routes of the adj-RIB-out have in common: what they were made of, and what they became.
#[derive(Debug)]
pub(crate) struct Told {
    learned: Option<Arc<Learned>>,
    from: Option<Role>,
    /// Number of the path's attributes in the interner; none: the default route that we originate for the group.
    made_of: Option<u64>,
    pub(crate) last: Arc<Final>,
}

impl Told {
    fn new(out: &Out, last: Arc<Final>) -> Self {
        let path = &out.path;
        Self { learned: path.learned.clone(), from: out.from, made_of: Some(path.attributes.id), last }
    }

    pub(crate) fn own(last: Arc<Final>) -> Self {
        Self { learned: None, from: None, made_of: None, last }
    }

    pub(crate) fn source(&self) -> Option<IpAddr> {
        self.learned.as_ref().map(|learned| learned.peer)
    }

    /// Whether both were made of the same, and so became the same: a group's rules never change.
    pub(crate) fn same_as(&self, other: &Self) -> bool {
        self.made_of == other.made_of && self.learned == other.learned && self.from == other.from
    }
}

type Known = (Family, Option<IpAddr>, u64);

/// Decides what a group is told, once for all prefixes that share their attributes.
pub(crate) struct Teller {
    pub(crate) next: u64,
    /// Where no filter looks at the prefix.
    known: BTreeMap<Known, Option<Arc<Final>>>,
    by_value: BTreeMap<PathAttributes, Arc<Final>>,
    last: Option<Arc<Told>>,
}

impl Teller {
    pub(crate) fn new(next: u64) -> Self {
        Self { next, known: BTreeMap::new(), by_value: BTreeMap::new(), last: None }
    }

    /// What the group is told of a path; none: nothing.
    pub(crate) fn told(&mut self, key: &GroupKey, prefix: &IpNet, out: &Out) -> Option<Arc<Told>> {
        let told = Told::new(out, self.tell(key, prefix, out)?);
        // Neighbours in the table are mostly of one kind.
        let same = |last: &&Arc<Told>| Arc::ptr_eq(&last.last, &told.last) && last.same_as(&told);
        if let Some(last) = self.last.as_ref().filter(same) {
            return Some(Arc::clone(last));
        }
        let told = Arc::new(told);
        self.last = Some(Arc::clone(&told));
        Some(told)
    }

    fn tell(&mut self, key: &GroupKey, prefix: &IpNet, out: &Out) -> Option<Arc<Final>> {
        let path = &out.path;
        if key.filter.is_some() {
            let attributes = key.tell(prefix, path, out.from)?;
            if let Some(known) = self.by_value.get(&attributes) {
                return Some(Arc::clone(known));
            }
            let last = self.keep(attributes.clone());
            self.by_value.insert(attributes, Arc::clone(&last));
            return Some(last);
        }
        let known = (Family::of(prefix), path.source(), path.attributes.id);
        if let Some(known) = self.known.get(&known) {
            return known.clone();
        }
        let last = key.tell(prefix, path, out.from).map(|attributes| self.keep(attributes));
        self.known.insert(known, last.clone());
        last
    }

    pub(crate) fn keep(&mut self, attributes: PathAttributes) -> Arc<Final> {
        let id = self.next;
        self.next += 1;
        Arc::new(Final { id, attributes })
    }
}

/// Octets after which a new chunk begins: so that the log lets go of memory while some still read.
const CHUNK: usize = 256 << 10;

/// A segment under construction, and the bounds of its octets.
struct Open {
    source: Option<IpAddr>,
    from: usize,
    to: usize,
    for_source: Bytes,
}

/// Segments that lie together.
#[derive(Default)]
pub(crate) struct Chunks {
    pub(crate) bytes: BytesMut,
    open: Vec<Open>,
    done: Vec<Segment>,
}

impl Chunks {
    /// Where the next segment begins.
    pub(crate) fn begin(&mut self) -> usize {
        if self.bytes.len() >= CHUNK {
            self.close();
        }
        self.bytes.len()
    }

    /// A segment ends here.
    pub(crate) fn end(&mut self, key: &GroupKey, source: Option<IpAddr>, from: usize, for_source: Bytes) {
        self.check(key, source, from);
        debug_assert_eq!(lint::check(&for_source, key, None), Ok(()));
        let to = self.bytes.len();
        self.open.push(Open { source, from, to, for_source });
    }

    /// Checks what was written since `from`, in builds with debug assertions.
    pub(crate) fn check(&self, key: &GroupKey, source: Option<IpAddr>, from: usize) {
        debug_assert_eq!(lint::check(&self.bytes[from..], key, source), Ok(()));
    }

    fn close(&mut self) {
        let chunk = std::mem::take(&mut self.bytes).freeze();
        self.done.extend(self.open.drain(..).map(|open| {
            let Open { source, from, to, for_source } = open;
            Segment { source, chunk: chunk.clone(), from, to, for_source }
        }));
    }

    pub(crate) fn finish(mut self) -> Vec<Segment> {
        self.close();
        self.done
    }
}
