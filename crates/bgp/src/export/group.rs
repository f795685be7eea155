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
use smallvec::{SmallVec, smallvec};

use super::adj_out::AdjOut;
use super::encoder::{Chunks, Final, Teller, Told};
use super::log::{Log, Pieces, Segment};
use super::policy::GroupKey;
use crate::config::Role;
use crate::message::attribute::PathAttributes;
use crate::message::refresh::{self, Subtype};
use crate::message::{Nlri, update};
use crate::rib::{DestId, Path, Rib};
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
    pub(crate) const DEFAULT: Self = Self { log_bytes: 4 << 20, window: 256 << 10, batch: 512 };
}

/// Tail of the log, in octets, that is kept for a snapshot however small that is.
const SNAPSHOT_TAIL: usize = 64 << 10;

/// A path that the decision process gives out, and the role of the neighbour that it came from.
#[derive(Debug, Clone)]
pub(crate) struct Out {
    pub(crate) path: Path,
    pub(crate) from: Option<Role>,
}

/// The paths of a destination, nearly always one, the best first.
pub(crate) type Outs = SmallVec<[Out; 1]>;

/// A member's wish to be told a family again (RFC 2918).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Refresh {
    Wanted,
    Running,
}

/// Where a member stands.
#[derive(Debug)]
struct Cursor {
    snapshot: Option<(Arc<[Segment]>, usize)>,
    position: u64,
    behind: Option<BTreeSet<Nlri>>,
    /// Octets given to the shell and not written yet.
    unsent: usize,
    /// There was more to read than the window allowed: go on when there is room, not with the next flush.
    throttled: bool,
    /// Families whose End-of-RIB is owed, and the position after which it may go; none: not known yet.
    end_of_rib: BTreeMap<Family, Option<u64>>,
    refresh: BTreeMap<Family, Refresh>,
    /// Refreshes stand between BoRR and EoRR (RFC 7313).
    enhanced: bool,
}

#[derive(Debug)]
pub(crate) struct Group {
    key: GroupKey,
    limits: Limits,
    adj_out: AdjOut,
    log: Log,
    snapshot: Option<(u64, Arc<[Segment]>)>,
    members: BTreeMap<IpAddr, Cursor>,
    next_final: u64,
}

/// Paths with the same attributes from the same source, and what was told in their place before.
struct Batch {
    told: Arc<Final>,
    paths: Vec<Renewed>,
}

/// A path that is told anew.
struct Renewed {
    destination: DestId,
    nlri: Nlri,
    before: Option<Arc<Told>>,
}

type BatchKey = (Family, Option<IpAddr>, u64);

impl Group {
    pub(crate) fn new(key: GroupKey, limits: Limits) -> Self {
        Self {
            key,
            limits,
            adj_out: AdjOut::default(),
            log: Log::default(),
            snapshot: None,
            members: BTreeMap::new(),
            next_final: 0,
        }
    }

    pub(crate) fn key(&self) -> &GroupKey {
        &self.key
    }

    pub(crate) fn members(&self) -> impl Iterator<Item = IpAddr> {
        self.members.keys().copied()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// Takes in destinations that changed, with their paths, the best first: updates the adj-RIB-out and appends to
    /// the log. A new group is told all, the default routes among them.
    pub(crate) fn update(&mut self, changed: impl Iterator<Item = (DestId, IpNet, Outs)>) {
        let mut batches: BTreeMap<BatchKey, Batch> = BTreeMap::new();
        let mut withdrawn: BTreeMap<(Family, Option<IpAddr>), Vec<Nlri>> = BTreeMap::new();
        let mut touched = vec![];
        let somebody_is_behind = self.members.values().any(|cursor| cursor.behind.is_some());
        let mut teller = Teller::new(self.next_final);
        for (destination, prefix, outs) in changed {
            let family = Family::of(&prefix);
            let new = self.told(&mut teller, &prefix, &outs);
            let is_new = |id: &u32| new.iter().any(|(other, _)| other == id);
            for id in self.adj_out.ids(destination).into_iter().filter(|id| !is_new(id)) {
                if let Some(old) = self.adj_out.remove(destination, id) {
                    let nlri = Nlri { prefix, id };
                    withdrawn.entry((family, old.source())).or_default().push(nlri);
                    if somebody_is_behind {
                        touched.push(nlri);
                    }
                }
            }
            for (id, told) in new {
                if self.adj_out.get(destination, id).is_some_and(|old| old.same_as(&told)) {
                    continue;
                }
                let nlri = Nlri { prefix, id };
                let (key, last) = ((family, told.source(), told.last.id), Arc::clone(&told.last));
                let before = self.adj_out.insert(destination, id, told);
                let batch = batches.entry(key).or_insert_with(|| Batch { told: last, paths: vec![] });
                batch.paths.push(Renewed { destination, nlri, before });
                if somebody_is_behind {
                    touched.push(nlri);
                }
            }
        }
        self.next_final = teller.next;
        let mut chunks = Chunks::default();
        for ((family, source, _), batch) in batches {
            self.append_announcement(&mut chunks, (family, source), batch, &mut withdrawn);
        }
        for ((_, source), prefixes) in withdrawn {
            let from = chunks.begin();
            update::withdraw(&mut chunks.bytes, &prefixes, &self.key.encoding);
            chunks.end(&self.key, source, from, Bytes::new());
        }
        chunks.finish().into_iter().for_each(|segment| self.log.push(segment));
        let end = self.log.end();
        for cursor in self.members.values_mut() {
            if let Some(behind) = &mut cursor.behind {
                behind.extend(&touched);
                cursor.position = end;
            }
        }
    }

    /// What the group is told of a destination, by path identifier.
    fn told(&self, teller: &mut Teller, prefix: &IpNet, outs: &[Out]) -> SmallVec<[(u32, Arc<Told>); 1]> {
        let family = Family::of(prefix);
        let several = self.key.encoding.add_path.contains(family);
        if *prefix == family.default_prefix()
            && let Some(attributes) = self.key.default_route(family)
        {
            return smallvec![(u32::from(several), Arc::new(Told::own(teller.keep(attributes))))];
        }
        // Without add-path, what cannot be told of the best path is told of none: the others are not in use here.
        let considered = if several { outs } else { &outs[..outs.len().min(1)] };
        let mut all = SmallVec::new();
        for out in considered {
            if all.len() == self.key.paths_of(family) {
                break;
            }
            if let Some(told) = teller.told(&self.key, prefix, out) {
                let id = if several { out.path.our_id } else { 0 };
                all.push((id, told));
            }
        }
        all
    }

    fn append_announcement(
        &mut self,
        chunks: &mut Chunks,
        (family, source): (Family, Option<IpAddr>),
        batch: Batch,
        withdrawn: &mut BTreeMap<(Family, Option<IpAddr>), Vec<Nlri>>,
    ) {
        let prefixes: Vec<Nlri> = batch.paths.iter().map(|path| path.nlri).collect();
        let encoding = &self.key.encoding;
        let from = chunks.begin();
        if update::announce(&mut chunks.bytes, &batch.told.attributes, &prefixes, encoding).is_ok() {
            // The source was told of the route while it was another's: now it has it itself.
            let told_before = |path: &Renewed| {
                path.before.as_ref().is_some_and(|before| before.source() != source).then_some(path.nlri)
            };
            let mut for_source = BytesMut::new();
            if source.is_some() {
                let told: Vec<Nlri> = batch.paths.iter().filter_map(told_before).collect();
                update::withdraw(&mut for_source, &told, encoding);
            }
            chunks.end(&self.key, source, from, for_source.freeze());
            return;
        }
        // What does not fit on the way out is withdrawn: an older route must not stay in its place.
        for Renewed { destination, nlri, before } in batch.paths {
            self.adj_out.remove(destination, nlri.id);
            if let Some(before) = before {
                withdrawn.entry((family, before.source())).or_default().push(nlri);
            }
        }
    }

    /// A new member: the snapshot, then the log. End-of-RIB follows for the families in `settled`, and for the
    /// others when [`Group::settle`] says so.
    pub(crate) fn join(
        &mut self,
        rib: &Rib,
        member: IpAddr,
        families: Families,
        settled: Families,
        enhanced: bool,
    ) {
        let (position, snapshot) = self.snapshot(rib);
        let end = self.log.end();
        let end_of_rib =
            families.iter().map(|family| (family, settled.contains(family).then_some(end))).collect();
        let refresh = BTreeMap::new();
        let snapshot = Some((snapshot, 0));
        let (behind, unsent, throttled) = (None, 0, false);
        let cursor = Cursor { snapshot, position, behind, unsent, throttled, end_of_rib, refresh, enhanced };
        self.members.insert(member, cursor);
    }

    /// A member that comes from another group, in which it was told of `told`.
    pub(crate) fn join_from(&mut self, rib: &Rib, member: IpAddr, moved: Moved) {
        let mut behind = moved.told;
        behind.extend(self.told_paths(rib).map(|(nlri, _)| nlri));
        let position = self.log.end();
        let later = |position: Option<u64>| position.map(|_| self.log.end());
        let end_of_rib = moved.end_of_rib.into_iter().map(|(family, at)| (family, later(at))).collect();
        let (unsent, enhanced) = (moved.unsent, moved.enhanced);
        let (snapshot, behind, refresh) = (None, Some(behind), BTreeMap::new());
        let throttled = false;
        let cursor = Cursor { snapshot, position, behind, unsent, throttled, end_of_rib, refresh, enhanced };
        self.members.insert(member, cursor);
    }

    /// Takes a member out for good.
    pub(crate) fn leave(&mut self, member: IpAddr) {
        self.members.remove(&member);
    }

    /// Takes a member out that goes to another group.
    pub(crate) fn move_out(&mut self, rib: &Rib, member: IpAddr) -> Option<Moved> {
        let cursor = self.members.remove(&member)?;
        let mut told: BTreeSet<Nlri> = self.told_paths(rib).map(|(nlri, _)| nlri).collect();
        told.extend(cursor.behind.into_iter().flatten());
        told.extend(self.log.from(cursor.position).flat_map(|segment| segment.prefixes(&self.key)));
        let (unsent, enhanced) = (cursor.unsent, cursor.enhanced);
        Some(Moved { unsent, told, end_of_rib: cursor.end_of_rib, enhanced })
    }

    /// The whole present state as segments. It is reused while the log still reaches back to it.
    fn snapshot(&mut self, rib: &Rib) -> (u64, Arc<[Segment]>) {
        if let Some((position, snapshot)) = &self.snapshot
            && self.log.reaches(*position)
        {
            return (*position, Arc::clone(snapshot));
        }
        let snapshot: Arc<[Segment]> = self.segments_of(self.told_paths(rib)).into();
        self.snapshot = Some((self.log.end(), Arc::clone(&snapshot)));
        (self.log.end(), snapshot)
    }

    fn segments_of<'a>(&self, routes: impl Iterator<Item = (Nlri, &'a Arc<Told>)>) -> Vec<Segment> {
        let mut batches: BTreeMap<BatchKey, (&PathAttributes, Vec<Nlri>)> = BTreeMap::new();
        for (nlri, told) in routes {
            let key = (Family::of(&nlri.prefix), told.source(), told.last.id);
            batches.entry(key).or_insert((&told.last.attributes, vec![])).1.push(nlri);
        }
        let mut chunks = Chunks::default();
        for ((_, source, _), (attributes, prefixes)) in batches {
            let from = chunks.begin();
            // What stands in the adj-RIB-out has been encoded before, so it fits.
            if update::announce(&mut chunks.bytes, attributes, &prefixes, &self.key.encoding).is_ok() {
                chunks.end(&self.key, source, from, Bytes::new());
            }
        }
        chunks.finish()
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
        if let Some(cursor) = self.members.get_mut(&member) {
            cursor.refresh.insert(family, Refresh::Wanted);
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
        cursor.behind = Some(unread.flat_map(|segment| segment.prefixes(&self.key)).collect());
        cursor.position = self.log.end();
    }

    /// The shell has written that much for a member. True: it waits for that, and there is room for a good deal more.
    pub(crate) fn wrote(&mut self, member: IpAddr, bytes: usize) -> bool {
        let Some(cursor) = self.members.get_mut(&member) else { return false };
        // Keepalives are written too but never counted as given: they make the window a little wider.
        cursor.unsent = cursor.unsent.saturating_sub(bytes);
        cursor.throttled && cursor.unsent <= self.limits.window / 2
    }

    /// What a member can be sent now.
    pub(crate) fn pull(&mut self, rib: &Rib, member: IpAddr) -> Vec<Bytes> {
        let Self { key, limits, adj_out, log, members, .. } = self;
        let Some(cursor) = members.get_mut(&member) else { return vec![] };
        let view = View { key, limits, adj_out, log, rib };
        let mut pieces = Pieces::default();
        cursor.throttled = loop {
            if cursor.unsent + pieces.len() >= limits.window {
                break true;
            }
            if !view.next_for(member, cursor, &mut pieces) {
                break false;
            }
        };
        cursor.unsent += pieces.len();
        pieces.finish()
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
                let size: usize = snapshot.iter().map(|segment| segment.to - segment.from).sum();
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

    /// Paths that a member has been told, when it has read all.
    pub(crate) fn advertised(&self, member: IpAddr) -> usize {
        self.adj_out.iter().filter(|(_, _, told)| told.source() != Some(member)).count()
    }

    /// What a member has been told, when it has read all.
    pub(crate) fn told_to<'a>(
        &'a self,
        rib: &'a Rib,
        member: IpAddr,
    ) -> impl Iterator<Item = (Nlri, &'a PathAttributes)> {
        let theirs = move |(_, told): &(Nlri, &Arc<Told>)| told.source() != Some(member);
        self.told_paths(rib).filter(theirs).map(|(nlri, told)| (nlri, &told.last.attributes))
    }

    fn told_paths<'a>(&'a self, rib: &'a Rib) -> impl Iterator<Item = (Nlri, &'a Arc<Told>)> {
        self.adj_out.iter().map(|(at, id, told)| (Nlri { prefix: rib.at(at).prefix, id }, told))
    }
}

/// What a member takes along to another group.
#[derive(Debug)]
pub(crate) struct Moved {
    unsent: usize,
    /// What it may have been told of.
    told: BTreeSet<Nlri>,
    end_of_rib: BTreeMap<Family, Option<u64>>,
    enhanced: bool,
}

/// What a group's members read from.
struct View<'a> {
    key: &'a GroupKey,
    limits: &'a Limits,
    adj_out: &'a AdjOut,
    log: &'a Log,
    rib: &'a Rib,
}

impl View<'_> {
    /// The next octets for a member; false: it knows everything.
    fn next_for(&self, member: IpAddr, cursor: &mut Cursor, pieces: &mut Pieces) -> bool {
        if let Some((segments, at)) = &mut cursor.snapshot {
            if let Some(segment) = segments.get(*at) {
                *at += 1;
                pieces.push_segment(segment, member);
                return true;
            }
            cursor.snapshot = None;
        }
        if let Some(behind) = &mut cursor.behind {
            if !behind.is_empty() {
                pieces.push(self.catch_up(member, behind));
                return true;
            }
            cursor.behind = None;
        }
        let running = |(_, state): &(&Family, &Refresh)| **state == Refresh::Running;
        if let Some(family) = cursor.refresh.iter().find(running).map(|(family, _)| *family) {
            cursor.refresh.remove(&family);
            if cursor.enhanced {
                pieces.push(refresh::encode(Subtype::End, family));
            }
            return true;
        }
        let due = |(_, position): &(&Family, &Option<u64>)| position.is_some_and(|p| cursor.position >= p);
        if let Some(family) = cursor.end_of_rib.iter().find(due).map(|(family, _)| *family) {
            cursor.end_of_rib.remove(&family);
            let mut out = BytesMut::new();
            update::end_of_rib(&mut out, family);
            pieces.push(out.freeze());
            return true;
        }
        if let Some(segment) = self.log.segment(cursor.position) {
            cursor.position += 1;
            pieces.push_segment(segment, member);
            return true;
        }
        self.begin_refresh(cursor, pieces)
    }

    /// The member has read all: a refresh that it wants begins. RFC 7313 section 4: no BoRR before the End-of-RIB.
    fn begin_refresh(&self, cursor: &mut Cursor, pieces: &mut Pieces) -> bool {
        let Cursor { refresh, end_of_rib, enhanced, .. } = cursor;
        let may = |(family, _): &(&Family, &mut Refresh)| !*enhanced || !end_of_rib.contains_key(family);
        let Some((family, state)) = refresh.iter_mut().find(may) else { return false };
        *state = Refresh::Running;
        if *enhanced {
            pieces.push(refresh::encode(Subtype::Begin, *family));
        }
        let all = self.adj_out.iter().map(|(at, id, _)| Nlri { prefix: self.rib.at(at).prefix, id });
        cursor.behind = Some(all.filter(|nlri| Family::of(&nlri.prefix) == *family).collect());
        true
    }

    /// Encodes the present state of some of the prefixes in `behind`, and takes them out.
    fn catch_up(&self, member: IpAddr, behind: &mut BTreeSet<Nlri>) -> Bytes {
        let mut routes: BTreeMap<BatchKey, (&PathAttributes, Vec<Nlri>)> = BTreeMap::new();
        let mut gone: BTreeMap<Family, Vec<Nlri>> = BTreeMap::new();
        for _ in 0..self.limits.batch {
            let Some(nlri) = behind.pop_first() else { break };
            let family = Family::of(&nlri.prefix);
            match self.rib.find(&nlri.prefix).and_then(|at| self.adj_out.get(at, nlri.id)) {
                Some(told) if told.source() != Some(member) => {
                    let key = (family, told.source(), told.last.id);
                    routes.entry(key).or_insert((&told.last.attributes, vec![])).1.push(nlri);
                }
                _ => gone.entry(family).or_default().push(nlri),
            }
        }
        let mut chunks = Chunks::default();
        for (_, prefixes) in gone.into_iter().filter(|(family, _)| self.key.families.contains(*family)) {
            let from = chunks.begin();
            update::withdraw(&mut chunks.bytes, &prefixes, &self.key.encoding);
            chunks.check(self.key, None, from);
        }
        for ((_, source, _), (attributes, prefixes)) in routes {
            let from = chunks.begin();
            // What stands in the adj-RIB-out has been encoded before, so it fits.
            let _ = update::announce(&mut chunks.bytes, attributes, &prefixes, &self.key.encoding);
            chunks.check(self.key, source, from);
        }
        chunks.bytes.freeze()
    }
}
