//! An update group: adj-RIB-out, log, and one cursor per member.
//!
//! A member reads in one of three ways, and is told every change exactly once in each:
//!
//! | way | from where | left when |
//! |---|---|---|
//! | snapshot | the group's whole adj-RIB-out, encoded once for all that join at about the same time | read to its end: then the log, from where the snapshot was taken |
//! | log | segment by segment | the log grows too long behind the member |
//! | behind | a set of prefixes whose present state is encoded for this member alone | the set is empty: then the end of the log |
//!
//! So the memory of a member that does not read is bounded by the number of prefixes, and that of the log by
//! [`Limits::log_bytes`] or the size of a snapshot.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use ipnet::IpNet;

use super::lint;
use super::log::{Log, Segment};
use super::policy::GroupKey;
use crate::config::Role;
use crate::message::update;
use crate::rib::Path;
use crate::types::{Families, Family};

/// Limits of a group. Smaller ones are for tests.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Octets that the log may hold for members that do not read.
    pub(crate) log_bytes: usize,
    /// Octets that a member may have unsent in the shell.
    pub(crate) window: usize,
    /// Prefixes that are encoded at once for a member that is behind.
    pub(crate) batch: usize,
}

impl Limits {
    pub(crate) const DEFAULT: Self = Self { log_bytes: 4 << 20, window: 128 << 10, batch: 512 };
}

/// Tail of the log, in octets, that is kept for a snapshot however small that is.
const SNAPSHOT_TAIL: usize = 64 << 10;

/// A route in the adj-RIB-out: the best path, and the role of the neighbour that it came from.
#[derive(Debug, Clone)]
pub(crate) struct Out {
    pub(crate) path: Path,
    pub(crate) from: Option<Role>,
}

impl Out {
    fn same_as(&self, other: &Self) -> bool {
        self.path.same_as(&other.path) && self.path.learned == other.path.learned && self.from == other.from
    }
}

/// Where a member stands.
#[derive(Debug)]
struct Cursor {
    snapshot: Option<(Arc<[Segment]>, usize)>,
    position: u64,
    behind: Option<BTreeSet<IpNet>>,
    /// Octets given to the shell and not written yet.
    unsent: usize,
    /// Families whose End-of-RIB is owed, and the position after which it may go; none: not known yet.
    end_of_rib: BTreeMap<Family, Option<u64>>,
}

#[derive(Debug)]
pub(crate) struct Group {
    key: GroupKey,
    limits: Limits,
    adj_out: BTreeMap<IpNet, Out>,
    log: Log,
    snapshot: Option<(u64, Arc<[Segment]>)>,
    members: BTreeMap<IpAddr, Cursor>,
}

/// Prefixes with the same attributes from the same source, and whom each was from before.
#[derive(Default)]
struct Batch {
    out: Option<Out>,
    prefixes: Vec<(IpNet, Option<Out>)>,
}

type BatchKey = (Family, Option<IpAddr>, u64);

impl Group {
    pub(crate) fn new(key: GroupKey, limits: Limits) -> Self {
        Self {
            key,
            limits,
            adj_out: BTreeMap::new(),
            log: Log::default(),
            snapshot: None,
            members: BTreeMap::new(),
        }
    }

    pub(crate) fn members(&self) -> impl Iterator<Item = IpAddr> {
        self.members.keys().copied()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// Takes in best paths that changed: updates the adj-RIB-out and appends to the log.
    pub(crate) fn update(&mut self, changed: impl Iterator<Item = (IpNet, Option<Out>)>) {
        let mut batches: BTreeMap<BatchKey, Batch> = BTreeMap::new();
        let mut withdrawn: BTreeMap<(Family, Option<IpAddr>), Vec<IpNet>> = BTreeMap::new();
        let mut touched = vec![];
        for (prefix, new) in changed {
            let family = Family::of(&prefix);
            let new = new.filter(|out| self.key.tells(family, &out.path, out.from));
            let old = self.adj_out.get(&prefix);
            match (old, new) {
                (None, None) => continue,
                (Some(old), Some(new)) if old.same_as(&new) => continue,
                (Some(old), None) => {
                    withdrawn.entry((family, old.path.source())).or_default().push(prefix);
                    self.adj_out.remove(&prefix);
                }
                (_, Some(new)) => {
                    let key = (family, new.path.source(), new.path.attributes.id);
                    let batch = batches.entry(key).or_default();
                    batch.out = Some(new.clone());
                    let old = self.adj_out.insert(prefix, new);
                    batch.prefixes.push((prefix, old));
                }
            }
            touched.push(prefix);
        }
        for ((family, source, _), batch) in batches {
            self.append_announcement(family, source, batch, &mut withdrawn);
        }
        for ((_, source), prefixes) in withdrawn {
            let bytes = self.encode(|out| update::withdraw(out, &prefixes));
            let segment = Segment { source, bytes, for_source: Bytes::new(), prefixes: prefixes.into() };
            self.log.push(segment);
        }
        let end = self.log.end();
        for cursor in self.members.values_mut() {
            if let Some(behind) = &mut cursor.behind {
                behind.extend(&touched);
                cursor.position = end;
            }
        }
    }

    fn append_announcement(
        &mut self,
        family: Family,
        source: Option<IpAddr>,
        batch: Batch,
        withdrawn: &mut BTreeMap<(Family, Option<IpAddr>), Vec<IpNet>>,
    ) {
        let Some(out) = batch.out else { return };
        let prefixes: Vec<IpNet> = batch.prefixes.iter().map(|(prefix, _)| *prefix).collect();
        if let Some(bytes) = self.encode_announcement(family, &out, &prefixes) {
            // The source was told of the route while it was another's: now it has it itself.
            let told_before = |(prefix, old): &(IpNet, Option<Out>)| {
                old.as_ref().is_some_and(|old| old.path.source() != source).then_some(*prefix)
            };
            let from_source: Vec<IpNet> = batch.prefixes.iter().filter_map(told_before).collect();
            let for_source = match source {
                Some(_) => self.encode(|out| update::withdraw(out, &from_source)),
                None => Bytes::new(),
            };
            self.log.push(Segment { source, bytes, for_source, prefixes: prefixes.into() });
            return;
        }
        // What does not fit on the way out is withdrawn: an older route must not stay in its place.
        for (prefix, old) in batch.prefixes {
            self.adj_out.remove(&prefix);
            if let Some(old) = old {
                withdrawn.entry((family, old.path.source())).or_default().push(prefix);
            }
        }
    }

    /// None: the attributes leave no room for a prefix.
    fn encode_announcement(&self, family: Family, out: &Out, prefixes: &[IpNet]) -> Option<Bytes> {
        let attributes = self.key.attributes(family, &out.path, out.from);
        let mut bytes = BytesMut::new();
        update::announce(&mut bytes, &attributes, prefixes, self.key.four_octet_as).ok()?;
        debug_assert_eq!(lint::check(&bytes, &self.key), Ok(()));
        Some(bytes.freeze())
    }

    fn encode(&self, write: impl FnOnce(&mut BytesMut)) -> Bytes {
        let mut bytes = BytesMut::new();
        write(&mut bytes);
        debug_assert_eq!(lint::check(&bytes, &self.key), Ok(()));
        bytes.freeze()
    }

    /// A new member: the snapshot, then the log. End-of-RIB follows for the families in `settled`, and for the
    /// others when [`Group::settle`] says so.
    pub(crate) fn join(&mut self, member: IpAddr, families: Families, settled: Families) {
        let (position, snapshot) = self.snapshot();
        let end = self.log.end();
        let end_of_rib =
            families.iter().map(|family| (family, settled.contains(family).then_some(end))).collect();
        let cursor = Cursor { snapshot: Some((snapshot, 0)), position, behind: None, unsent: 0, end_of_rib };
        self.members.insert(member, cursor);
    }

    /// A member that comes from another group, in which it was told of `told`.
    pub(crate) fn join_from(&mut self, member: IpAddr, told: BTreeSet<IpNet>, unsent: usize) {
        let mut behind = told;
        behind.extend(self.adj_out.keys());
        let position = self.log.end();
        let cursor =
            Cursor { snapshot: None, position, behind: Some(behind), unsent, end_of_rib: BTreeMap::new() };
        self.members.insert(member, cursor);
    }

    /// Takes a member out; returns the octets that it has not written yet, and the prefixes that it may know.
    pub(crate) fn leave(&mut self, member: IpAddr) -> Option<(usize, BTreeSet<IpNet>)> {
        let cursor = self.members.remove(&member)?;
        let mut told: BTreeSet<IpNet> = self.adj_out.keys().copied().collect();
        told.extend(cursor.behind.into_iter().flatten());
        told.extend(self.log.from(cursor.position).flat_map(|segment| segment.prefixes.iter().copied()));
        Some((cursor.unsent, told))
    }

    /// The whole present state as segments. It is reused while the log still reaches back to it.
    fn snapshot(&mut self) -> (u64, Arc<[Segment]>) {
        if let Some((position, snapshot)) = &self.snapshot
            && self.log.reaches(*position)
        {
            return (*position, Arc::clone(snapshot));
        }
        let snapshot: Arc<[Segment]> = self.segments_of(self.adj_out.iter()).into();
        self.snapshot = Some((self.log.end(), Arc::clone(&snapshot)));
        (self.log.end(), snapshot)
    }

    fn segments_of<'a>(&self, routes: impl Iterator<Item = (&'a IpNet, &'a Out)>) -> Vec<Segment> {
        let mut batches: BTreeMap<BatchKey, (&Out, Vec<IpNet>)> = BTreeMap::new();
        for (prefix, out) in routes {
            let key = (Family::of(prefix), out.path.source(), out.path.attributes.id);
            batches.entry(key).or_insert((out, vec![])).1.push(*prefix);
        }
        let encode = |((family, source, _), (out, prefixes)): (BatchKey, (&Out, Vec<IpNet>))| {
            let bytes = self.encode_announcement(family, out, &prefixes)?;
            Some(Segment { source, bytes, for_source: Bytes::new(), prefixes: prefixes.into() })
        };
        batches.into_iter().filter_map(encode).collect()
    }

    /// The initial tables of `family` are complete: its End-of-RIB may go after what stands in the log now.
    pub(crate) fn settle(&mut self, family: Family) {
        let end = self.log.end();
        for cursor in self.members.values_mut() {
            if let Some(position) = cursor.end_of_rib.get_mut(&family) {
                position.get_or_insert(end);
            }
        }
    }

    /// A member wants to be told all of `family` again (RFC 2918).
    pub(crate) fn refresh(&mut self, member: IpAddr, family: Family) {
        let again: Vec<IpNet> =
            self.adj_out.keys().filter(|prefix| Family::of(prefix) == family).copied().collect();
        self.fall_behind(member);
        if let Some(behind) = self.members.get_mut(&member).and_then(|cursor| cursor.behind.as_mut()) {
            behind.extend(again);
        }
    }

    /// Turns a member's unread snapshot and log into the set of prefixes that they are about.
    fn fall_behind(&mut self, member: IpAddr) {
        let Some(cursor) = self.members.get_mut(&member) else { return };
        if cursor.behind.is_some() {
            return;
        }
        let unread = cursor.snapshot.take();
        let unread = unread.iter().flat_map(|(segments, at)| &segments[(*at).min(segments.len())..]);
        let unread = unread.chain(self.log.from(cursor.position));
        cursor.behind = Some(unread.flat_map(|segment| segment.prefixes.iter().copied()).collect());
        cursor.position = self.log.end();
    }

    /// The shell has written that much for a member. True: there is room for a good deal more.
    pub(crate) fn wrote(&mut self, member: IpAddr, bytes: usize) -> bool {
        let Some(cursor) = self.members.get_mut(&member) else { return false };
        // Keepalives are written too but never counted as given: they make the window a little wider.
        cursor.unsent = cursor.unsent.saturating_sub(bytes);
        cursor.unsent <= self.limits.window / 2
    }

    /// What a member can be sent now.
    pub(crate) fn pull(&mut self, member: IpAddr, out: &mut Vec<Bytes>) {
        let Some(mut cursor) = self.members.remove(&member) else { return };
        while cursor.unsent < self.limits.window {
            let Some(bytes) = self.next_for(member, &mut cursor) else { break };
            cursor.unsent += bytes.len();
            if !bytes.is_empty() {
                out.push(bytes);
            }
        }
        self.members.insert(member, cursor);
    }

    /// The next octets for a member (none at all for a segment of its own), or `None` if it knows everything.
    fn next_for(&self, member: IpAddr, cursor: &mut Cursor) -> Option<Bytes> {
        if let Some((segments, at)) = &mut cursor.snapshot {
            if let Some(segment) = segments.get(*at) {
                *at += 1;
                return Some(segment.for_reader(member).clone());
            }
            cursor.snapshot = None;
        }
        if let Some(behind) = &mut cursor.behind {
            if !behind.is_empty() {
                return Some(self.catch_up(member, behind));
            }
            cursor.behind = None;
        }
        let due = |(_, position): &(&Family, &Option<u64>)| position.is_some_and(|p| cursor.position >= p);
        if let Some(family) = cursor.end_of_rib.iter().find(due).map(|(family, _)| *family) {
            cursor.end_of_rib.remove(&family);
            return Some(self.encode(|out| update::end_of_rib(out, family)));
        }
        let segment = self.log.segment(cursor.position)?;
        cursor.position += 1;
        Some(segment.for_reader(member).clone())
    }

    /// Encodes the present state of some of the prefixes in `behind`, and takes them out.
    fn catch_up(&self, member: IpAddr, behind: &mut BTreeSet<IpNet>) -> Bytes {
        let mut routes = vec![];
        let mut gone: BTreeMap<Family, Vec<IpNet>> = BTreeMap::new();
        for _ in 0..self.limits.batch {
            let Some(prefix) = behind.pop_first() else { break };
            match self.adj_out.get_key_value(&prefix) {
                Some((prefix, out)) if out.path.source() != Some(member) => routes.push((prefix, out)),
                _ => gone.entry(Family::of(&prefix)).or_default().push(prefix),
            }
        }
        let families = self.key.families;
        let mut bytes = BytesMut::new();
        for (_, prefixes) in gone.iter().filter(|(family, _)| families.contains(**family)) {
            update::withdraw(&mut bytes, prefixes);
        }
        for segment in self.segments_of(routes.into_iter()) {
            bytes.extend_from_slice(&segment.bytes);
        }
        bytes.freeze()
    }

    /// Forgets what everybody has read, and makes members that read too slowly fall behind.
    pub(crate) fn trim(&mut self) {
        loop {
            let end = self.log.end();
            let slowest = self.members.values().map(|cursor| cursor.position).min().unwrap_or(end);
            let kept = self.snapshot.as_ref().map_or(end, |(position, _)| *position).min(slowest);
            self.log.trim(kept);
            if let Some((_, snapshot)) = &self.snapshot {
                // The tail behind a snapshot may grow as long as the snapshot: so it is made anew only when the
                // state has doubled, however many join meanwhile.
                let size: usize = snapshot.iter().map(|segment| segment.bytes.len()).sum();
                if self.log.bytes() > size.max(SNAPSHOT_TAIL) {
                    self.snapshot = None;
                    continue;
                }
            }
            if self.log.bytes() <= self.limits.log_bytes {
                return;
            }
            let slow: Vec<IpAddr> = self
                .members
                .iter()
                .filter(|(_, cursor)| cursor.position == slowest && slowest < end)
                .map(|(member, _)| *member)
                .collect();
            if slow.is_empty() {
                return;
            }
            slow.into_iter().for_each(|member| self.fall_behind(member));
        }
    }

    /// Prefixes that a member has been told, when it has read all.
    pub(crate) fn advertised(&self, member: IpAddr) -> usize {
        self.adj_out.values().filter(|out| out.path.source() != Some(member)).count()
    }
}
