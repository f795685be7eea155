//! What a station has been told, and what it is told next: pure, beside the speaker, which it only reads.
//!
//! The shell asks for octets when the station's connection can take some ([`Station::fill`]); what is not asked for waits as a
//! set of prefixes that have changed. Limits, and what happens there:
//!
//! - More than [`MOST`] prefixes wait: those of the neighbour whose change comes then are dropped, and the station is told
//!   that neighbour anew: Peer Down (5), Peer Up, its table, End-of-RIB. Nothing stale stays at the station.
//! - A session that came and went while the station did not read is not told of; one that it knows ends with the reason of
//!   that session.
//! - What a prefix was in between is not told of.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use ipnet::IpNet;

use super::message::{self, Ended, PeerHeader, PeerType, Statistic};
use crate::event::ConnId;
use crate::message::attribute::PathAttributes;
use crate::message::capability::Capabilities;
use crate::message::open::Open;
use crate::message::{HEADER_LEN, MAX_EXTENDED_LEN, Nlri, update};
use crate::rib::Attributes;
use crate::speaker::Speaker;
use crate::speaker::monitor::{Changes, Noted, Watched};
use crate::types::{Families, Family};

/// Changed prefixes that wait for one station: some 6 MB.
const MOST: usize = 64 << 10;
/// Prefixes that are written at once: they share messages where they share attributes.
const BATCH: usize = 512;

/// What a station wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StationOptions {
    /// Our name, for sysName.
    pub name: String,
    /// What we are, for sysDescr.
    pub description: String,
    /// Adj-RIB-in as it came.
    pub pre_policy: bool,
    /// Adj-RIB-in as it is used.
    pub post_policy: bool,
    /// Loc-RIB (RFC 9069).
    pub loc_rib: bool,
    /// Time between Statistics Reports; none: there are none.
    pub statistics: Option<Duration>,
}

/// What became of a station, for people.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StationStatus {
    /// Messages that were given to its connections.
    pub messages: u64,
    /// Changed prefixes that wait.
    pub waiting: usize,
    /// Changes that were dropped because too many waited.
    pub dropped: u64,
    /// Neighbours that were told anew for that.
    pub told_anew: u64,
}

/// Our end of a connection, and theirs.
pub type Ends = (SocketAddr, SocketAddr);

/// A neighbour, or the loc-RIB, as a station knows it.
#[derive(Debug)]
struct Told<K> {
    /// Which session it was told of.
    session: u64,
    header: PeerHeader,
    families: Families,
    add_path: Families,
    /// How that session ended, once it has.
    ended: Option<(Ended, Duration)>,
    /// Changed, and when last.
    changed: BTreeMap<K, Duration>,
    /// Where its table is told from next; none: it has been told.
    table: Option<usize>,
    owes_end_of_rib: bool,
    /// It has lost changes, and must be told anew.
    lost: bool,
}

impl<K: Ord> Told<K> {
    /// Whether everything that waits has been said.
    fn is_settled(&self) -> bool {
        self.ended.is_none()
            && !self.lost
            && self.changed.is_empty()
            && self.table.is_none()
            && !self.owes_end_of_rib
    }
}

/// A monitoring station.
#[derive(Debug)]
pub struct Station {
    options: StationOptions,
    /// Time since 1970 at the speaker's zero point.
    epoch: Duration,
    /// None: there is no connection, and nothing is kept.
    connection: Option<Connection>,
    status: StationStatus,
}

#[derive(Debug, Default)]
struct Connection {
    greeted: bool,
    peers: BTreeMap<IpAddr, Told<Nlri>>,
    loc_rib: Option<Told<IpNet>>,
    /// Neighbours with something to say.
    waiting: BTreeSet<IpAddr>,
    /// Whose routes are next.
    turn: Option<IpAddr>,
    statistics: Option<Duration>,
    /// Prefixes that have changed, of all neighbours.
    changed: usize,
}

impl Station {
    /// One without a connection. `epoch`: time since 1970 at the speaker's zero point.
    pub fn new(options: StationOptions, epoch: Duration) -> Self {
        Self { options, epoch, connection: None, status: StationStatus::default() }
    }

    /// What became of it.
    pub fn status(&self) -> StationStatus {
        let waiting = self.connection.as_ref().map_or(0, |connection| connection.changed);
        StationStatus { waiting, ..self.status }
    }

    /// A connection stands: the station knows nothing yet.
    pub fn connected(&mut self, now: Duration, speaker: &Speaker) {
        let statistics = self.options.statistics.map(|every| now + every);
        let waiting = speaker.watched_peers().collect();
        self.connection = Some(Connection { statistics, waiting, ..Connection::default() });
    }

    /// The connection is gone.
    pub fn disconnected(&mut self) {
        self.connection = None;
    }

    /// When [`Station::fill`] has something to say though nothing happened.
    pub fn deadline(&self) -> Option<Duration> {
        self.connection.as_ref()?.statistics
    }

    /// Takes the changes since the last call out of the speaker and gives them to all stations.
    pub fn note(speaker: &mut Speaker, stations: &mut [&mut Self]) {
        let (now, noted) = (speaker.now(), speaker.take_noted());
        for station in stations {
            if let Some(connection) = &mut station.connection {
                connection.note(&noted, now, &mut station.status);
            }
        }
    }

    /// Octets for the station, about as many as `room`; none: there is nothing to say. `ends` says between whom a
    /// connection of the speaker stands.
    pub fn fill(
        &mut self,
        now: Duration,
        speaker: &Speaker,
        ends: &dyn Fn(ConnId) -> Option<Ends>,
        room: usize,
    ) -> Bytes {
        let mut out = BytesMut::new();
        let Some(connection) = &mut self.connection else { return Bytes::new() };
        let mut cx =
            Cx { options: &self.options, epoch: self.epoch, speaker, ends, messages: 0, out: &mut out };
        connection.fill(now, room, &mut self.status, &mut cx);
        self.status.messages += cx.messages;
        out.freeze()
    }

    /// The last message of a connection that we end.
    pub fn farewell(&self) -> Bytes {
        let mut out = BytesMut::new();
        if self.connection.as_ref().is_some_and(|connection| connection.greeted) {
            message::termination(&mut out);
        }
        out.freeze()
    }
}

/// What the surroundings lend for one call.
struct Cx<'a> {
    options: &'a StationOptions,
    epoch: Duration,
    speaker: &'a Speaker,
    ends: &'a dyn Fn(ConnId) -> Option<Ends>,
    messages: u64,
    out: &'a mut BytesMut,
}

impl Connection {
    fn note(&mut self, noted: &Noted, now: Duration, status: &mut StationStatus) {
        self.waiting.extend(&noted.up);
        for (peer, session, ended, at) in &noted.down {
            if let Some(told) = self.peers.get_mut(peer).filter(|told| told.session == *session) {
                told.ended = Some((ended.clone(), *at));
                self.changed -= told.changed.len();
                told.changed.clear();
                self.waiting.insert(*peer);
            }
        }
        match &noted.paths {
            Changes::Some(paths) => {
                for (peer, nlri) in paths {
                    // Who is not told of yet will be told of with all that is there then.
                    let Some(told) = self.peers.get_mut(peer) else { continue };
                    change(told, *nlri, now, &mut self.changed, status);
                    self.waiting.insert(*peer);
                }
            }
            Changes::Any => {
                for (peer, told) in &mut self.peers {
                    lose(told, &mut self.changed, status);
                    self.waiting.insert(*peer);
                }
            }
        }
        let Some(told) = &mut self.loc_rib else { return };
        match &noted.best {
            Changes::Some(prefixes) => {
                prefixes.iter().for_each(|prefix| change(told, *prefix, now, &mut self.changed, status));
            }
            Changes::Any => lose(told, &mut self.changed, status),
        }
    }

    fn fill(&mut self, now: Duration, room: usize, status: &mut StationStatus, cx: &mut Cx<'_>) {
        if !std::mem::replace(&mut self.greeted, true) {
            cx.say(|cx| message::initiation(cx.out, &cx.options.description, &cx.options.name));
        }
        // Sessions before routes: they are few, and what they say frees what waits.
        let waiting: Vec<IpAddr> = self.waiting.iter().copied().collect();
        for peer in waiting {
            if cx.out.len() >= room {
                return;
            }
            self.follow_session(peer, status, cx);
        }
        if cx.options.loc_rib {
            self.follow_loc_rib(status, cx);
        }
        if self.statistics.is_some_and(|at| at <= now) {
            self.statistics = cx.options.statistics.map(|every| now + every);
            self.tell_statistics(now, cx);
        }
        if let Some(told) = &mut self.loc_rib {
            while cx.out.len() < room && !told.is_settled() {
                tell_best(told, &mut self.changed, cx);
            }
        }
        // In turns, so that a neighbour with a large table does not keep the others waiting.
        while cx.out.len() < room {
            let after = self.turn.and_then(|turn| {
                self.waiting.range((std::ops::Bound::Excluded(turn), std::ops::Bound::Unbounded)).next()
            });
            let Some(peer) = after.or_else(|| self.waiting.first()).copied() else { return };
            self.turn = Some(peer);
            let Some(told) = self.peers.get_mut(&peer) else {
                self.waiting.remove(&peer);
                continue;
            };
            tell_paths(peer, told, &mut self.changed, cx);
            if told.is_settled() {
                self.waiting.remove(&peer);
            }
        }
    }

    /// Ends what has ended, and begins what has begun.
    fn follow_session(&mut self, peer: IpAddr, status: &mut StationStatus, cx: &mut Cx<'_>) {
        let session = cx.speaker.watched(peer);
        if let Some(told) = self.peers.get(&peer) {
            let same = session.as_ref().is_some_and(|session| session.session == told.session);
            if same && !told.lost {
                return;
            }
            let now = cx.speaker.now();
            let (ended, at) = match &told.ended {
                Some((ended, at)) => (ended.clone(), *at),
                None if same => (Ended::Anew, now),
                None => (Ended::Remote, now),
            };
            if same {
                status.told_anew += 1;
            }
            let at = cx.epoch + at;
            cx.say(|cx| message::peer_down(cx.out, &told.header, at, &ended));
            self.changed -= told.changed.len();
            self.peers.remove(&peer);
        }
        let Some(session) = session else {
            self.waiting.remove(&peer);
            return;
        };
        let told = begin(peer, &session);
        let (none, ends) = ((Bytes::new(), Bytes::new()), (cx.ends)(session.conn));
        let opens = session.opens.unwrap_or(&none);
        let (local, port) = ends.map_or((None, 0), |(local, remote)| (Some(local), remote.port()));
        let at = cx.epoch + session.since;
        cx.say(|cx| {
            message::peer_up(cx.out, &told.header, at, local, port, (&opens.0, &opens.1), None);
        });
        self.peers.insert(peer, told);
    }

    fn follow_loc_rib(&mut self, status: &mut StationStatus, cx: &mut Cx<'_>) {
        if let Some(told) = self.loc_rib.take_if(|told| told.lost) {
            status.told_anew += 1;
            let at = cx.epoch + cx.speaker.now();
            cx.say(|cx| message::peer_down(cx.out, &told.header, at, &Ended::Anew));
            self.changed -= told.changed.len();
        }
        if self.loc_rib.is_some() {
            return;
        }
        let config = cx.speaker.config();
        let (asn, router_id) = (config.asn.number(), config.router_id);
        let header = PeerHeader { kind: PeerType::LocRib, address: None, asn, router_id };
        // RFC 9069 section 5.3: OPENs that were never sent, to say how the UPDATEs are to be read.
        let open = Open {
            asn,
            hold_time: 0,
            router_id,
            capabilities: Capabilities {
                families: Some(Families::BOTH),
                four_octet_as: Some(asn),
                ..Capabilities::default()
            },
        };
        let open = open.encode();
        let at = cx.epoch + cx.speaker.now();
        cx.say(|cx| message::peer_up(cx.out, &header, at, None, 0, (&open, &open), Some("main")));
        self.loc_rib = Some(Told {
            session: 0,
            header,
            families: Families::BOTH,
            add_path: Families::NONE,
            ended: None,
            changed: BTreeMap::new(),
            table: Some(0),
            owes_end_of_rib: true,
            lost: false,
        });
    }

    fn tell_statistics(&self, now: Duration, cx: &mut Cx<'_>) {
        let at = cx.epoch + now;
        for (peer, told) in &self.peers {
            let Some(numbers) = cx.speaker.numbers(*peer) else { continue };
            let refused = numbers.refused;
            let mut all = vec![
                Statistic::Counter(4, refused.cluster_loop),
                Statistic::Counter(5, refused.as_loop),
                Statistic::Counter(6, refused.originator_loop),
                Statistic::Gauge(7, numbers.received.iter().map(|(_, count)| count).sum()),
                Statistic::Counter(11, refused.withdrawn),
            ];
            all.extend(numbers.received.iter().map(|(family, count)| Statistic::Family(9, *family, *count)));
            cx.say(|cx| message::statistics(cx.out, &told.header, at, &all));
        }
        if let Some(told) = &self.loc_rib {
            let counts = Family::ALL.map(|family| (family, cx.speaker.best_count(family)));
            let mut all = vec![Statistic::Gauge(8, counts.iter().map(|(_, count)| count).sum())];
            all.extend(counts.map(|(family, count)| Statistic::Family(10, family, count)));
            cx.say(|cx| message::statistics(cx.out, &told.header, at, &all));
        }
    }
}

/// A neighbour of which nothing has been told but its session.
fn begin(peer: IpAddr, session: &Watched<'_>) -> Told<Nlri> {
    let (asn, router_id): (u32, Ipv4Addr) = (session.asn, session.router_id);
    Told {
        session: session.session,
        header: PeerHeader { kind: PeerType::Global, address: Some(peer), asn, router_id },
        families: session.families,
        add_path: session.add_path,
        ended: None,
        changed: BTreeMap::new(),
        table: Some(0),
        owes_end_of_rib: true,
        lost: false,
    }
}

/// Something has changed.
fn change<K: Ord>(told: &mut Told<K>, key: K, now: Duration, all: &mut usize, status: &mut StationStatus) {
    if told.lost || told.ended.is_some() {
        return;
    }
    if told.changed.insert(key, now).is_none() {
        *all += 1;
    }
    if *all > MOST {
        lose(told, all, status);
    }
}

/// Too much has changed: it is told anew.
fn lose<K: Ord>(told: &mut Told<K>, all: &mut usize, status: &mut StationStatus) {
    *all -= told.changed.len();
    status.dropped += u64::try_from(told.changed.len()).unwrap_or(u64::MAX);
    told.changed.clear();
    told.lost = true;
}

/// What is next of a neighbour's paths: what has changed, else more of its table, else its end.
fn tell_paths(peer: IpAddr, told: &mut Told<Nlri>, all: &mut usize, cx: &mut Cx<'_>) {
    if told.ended.is_some() || told.lost {
        return;
    }
    let batch = next(told, all, |from| cx.speaker.some_paths(peer, from, BATCH));
    let options = cx.options;
    let views = [(options.pre_policy, false), (options.post_policy, true)];
    for post in views.into_iter().filter(|(wanted, _)| *wanted).map(|(_, post)| post) {
        let mut groups = Groups::default();
        for (nlri, at) in &batch {
            let path = cx.speaker.monitored(peer, nlri);
            let attributes = path.and_then(|path| if post { path.used } else { Some(path.received) });
            groups.add(*nlri, attributes, *at);
        }
        cx.tell(told, post, groups);
    }
    if batch.is_empty() && told.table.is_none() && std::mem::take(&mut told.owes_end_of_rib) {
        for post in views.into_iter().filter(|(wanted, _)| *wanted).map(|(_, post)| post) {
            cx.end_of_rib(told, post);
        }
    }
}

/// The same of the loc-RIB.
fn tell_best(told: &mut Told<IpNet>, all: &mut usize, cx: &mut Cx<'_>) {
    let batch = next(told, all, |from| cx.speaker.some_best(from, BATCH));
    let mut groups = Groups::default();
    for (prefix, at) in &batch {
        groups.add(Nlri::from(*prefix), cx.speaker.best(prefix), *at);
    }
    cx.tell(told, false, groups);
    if batch.is_empty() && told.table.is_none() && std::mem::take(&mut told.owes_end_of_rib) {
        cx.end_of_rib(told, false);
    }
}

/// Takes out what is told next, each with the time of its change; none: it stood there before.
fn next<K: Ord + Copy>(
    told: &mut Told<K>,
    all: &mut usize,
    table: impl Fn(usize) -> (Vec<K>, Option<usize>),
) -> Vec<(K, Option<Duration>)> {
    let mut batch = vec![];
    while batch.len() < BATCH
        && let Some((key, at)) = told.changed.pop_first()
    {
        batch.push((key, Some(at)));
    }
    *all -= batch.len();
    if batch.is_empty()
        && let Some(from) = told.table
    {
        let (keys, next) = table(from);
        told.table = next;
        batch.extend(keys.into_iter().map(|key| (key, None)));
    }
    batch
}

/// Prefixes that go into the same messages.
#[derive(Default)]
struct Groups {
    withdrawn: BTreeMap<(Family, Option<Duration>), Vec<Nlri>>,
    announced: BTreeMap<(u64, Family, Option<Duration>), Group>,
}

type Group = (Arc<Attributes>, Vec<Nlri>);

impl Groups {
    fn add(&mut self, nlri: Nlri, attributes: Option<Arc<Attributes>>, at: Option<Duration>) {
        let family = Family::of(&nlri.prefix);
        match attributes {
            Some(attributes) => {
                let group = self.announced.entry((attributes.id, family, at));
                group.or_insert_with(|| (attributes, vec![])).1.push(nlri);
            }
            // What was never told of needs no withdrawal, and a first table has none.
            None if at.is_none() => {}
            None => self.withdrawn.entry((family, at)).or_default().push(nlri),
        }
    }
}

impl Cx<'_> {
    fn say(&mut self, write: impl FnOnce(&mut Self)) {
        write(self);
        self.messages += 1;
    }

    fn tell<K>(&mut self, told: &Told<K>, post: bool, groups: Groups) {
        for ((_, at), prefixes) in groups.withdrawn {
            self.withdraw(told, post, at, &prefixes);
        }
        for ((_, _, at), (attributes, prefixes)) in groups.announced {
            self.announce(told, post, at, &attributes.path, &prefixes);
        }
    }

    fn encoding<K>(told: &Told<K>) -> update::Encoding {
        update::Encoding { add_path: told.add_path, ..update::Encoding::PLAIN }
    }

    fn announce<K>(
        &mut self,
        told: &Told<K>,
        post: bool,
        at: Option<Duration>,
        attributes: &PathAttributes,
        prefixes: &[Nlri],
    ) {
        let mut updates = BytesMut::new();
        let encoding = Self::encoding(told);
        let long = update::Encoding { max_len: MAX_EXTENDED_LEN, ..encoding };
        // Attributes from an extended message need one again (RFC 8654).
        let written = update::announce(&mut updates, attributes, prefixes, &encoding)
            .or_else(|_| update::announce(&mut updates, attributes, prefixes, &long));
        if written.is_err() {
            return self.withdraw(told, post, at, prefixes);
        }
        self.wrap(told, post, at, &updates);
    }

    fn withdraw<K>(&mut self, told: &Told<K>, post: bool, at: Option<Duration>, prefixes: &[Nlri]) {
        let mut updates = BytesMut::new();
        update::withdraw(&mut updates, prefixes, &Self::encoding(told));
        self.wrap(told, post, at, &updates);
    }

    fn end_of_rib<K>(&mut self, told: &Told<K>, post: bool) {
        for family in told.families.iter() {
            let mut end = BytesMut::new();
            update::end_of_rib(&mut end, family);
            self.wrap(told, post, None, &end);
        }
    }

    /// Each UPDATE in a message of its own (RFC 7854 4.6).
    fn wrap<K>(&mut self, told: &Told<K>, post: bool, at: Option<Duration>, updates: &[u8]) {
        let at = at.map_or(Duration::ZERO, |at| self.epoch + at);
        let mut rest = updates;
        while let Some(header) = rest.get(..HEADER_LEN) {
            let len = usize::from(u16::from_be_bytes([header[16], header[17]]));
            let (one, later) = rest.split_at(len.clamp(HEADER_LEN, rest.len()));
            rest = later;
            self.say(|cx| message::route_monitoring(cx.out, &told.header, post, at, one));
        }
    }
}
