//! The speaker with its sockets: carries out actions, brings events.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use podway_bgp::config::{Neighbour, Restarted, Standing};
use podway_bgp::fate::{self, Fate, Kernel};
use podway_bgp::{Action, AfterStop, ConnId, Event, Speaker};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::bfd::{Change, Watch, Watched};
use super::bmp::{self, Stations};
use super::connection::{self, Listeners};
use super::desired::Desired;
use super::echo::{Answer, Echoes};
use super::fallback::Fallback;
use super::peers_file::PeersFile;
use super::transport::{Carriage, Keys};
use super::writer::{self, Writer};
use crate::view::BgpRoutes;

/// Events from all connections that may wait: enough to keep the speaker busy, little enough to bound memory at
/// (this x 16 KiB).
const EVENTS: usize = 256;
/// Accepted connections that may wait; more wait in the kernel.
const ACCEPTED: usize = 64;
/// Events taken in before routes are published.
const TURN: usize = 256;
/// How long connections may take to end when the daemon ends.
const FAREWELL: Duration = Duration::from_secs(1);
/// When a listener that could not be opened, or a key that could not be read, is tried again.
const LISTEN_RETRY: Duration = Duration::from_secs(2);
/// When files of keys are read again.
const KEYS_AGAIN: Duration = Duration::from_secs(10);

/// What woke the shell.
pub(super) enum Wake {
    /// A connection has something to say.
    Event(Event),
    /// Somebody connected.
    Accepted(TcpStream, IpAddr),
    /// The speaker's deadline.
    Deadline,
    /// A monitoring station's task has something to say.
    Station(bmp::Told),
    /// Time to look at listeners and keys again.
    Listen,
    /// BFD has something to say.
    Bfd(Change),
    /// Kernels of other nodes have answered.
    Answered(Vec<Answer>),
    /// The speaker is to be told what was written at once: it may give more.
    Written,
}

/// A connection that a listener took, and who is at its other end.
type Accepted = (TcpStream, IpAddr);

/// A speaker under way.
pub(super) struct Shell {
    speaker: Speaker,
    began: Instant,
    desired: Desired,
    /// Write sides; dropping one closes its connection.
    writers: BTreeMap<ConnId, Writer>,
    /// Octets that were written at once, of which the speaker is not told yet.
    written: Vec<(ConnId, usize)>,
    next_incoming: u64,
    tasks: JoinSet<()>,
    events: (mpsc::Sender<Event>, mpsc::Receiver<Event>),
    accepted: (mpsc::Sender<Accepted>, mpsc::Receiver<Accepted>),
    listeners: Listeners,
    /// TCP MD5 keys as their files say.
    keys: Keys,
    /// None: nobody is to be watched.
    watch: Option<Watch>,
    /// What BFD has last said of whom it watches.
    bfd: BTreeMap<IpAddr, String>,
    /// Who is dead, and whose daemon restarts.
    fate: Fate,
    /// None: there is no other node to ask.
    echoes: Option<Echoes>,
    stations: Stations,
    listen_at: Option<Instant>,
    /// When a flush began whose cost is not known yet: the connections' tasks have not run.
    flushing: Option<Instant>,
    /// Sessions came or went since somebody asked.
    sessions_changed: bool,
    /// None: nobody will be waited for after a restart.
    peers_file: Option<PeersFile>,
    /// What BGP has learnt for the kernel; nothing in a speaker alone.
    learned: Arc<BgpRoutes>,
    /// What the claims add to it.
    fallback: Fallback,
}

impl Shell {
    pub(super) fn new(desired: Desired, restarted: Option<Restarted>, peers_file: Option<PeersFile>) -> Self {
        let mut actions = vec![];
        let config = Arc::new(desired.config.clone());
        let speaker = Speaker::new(config, restarted, jitter_seed(), Duration::ZERO, &mut actions);
        let mut shell = Self {
            speaker,
            began: Instant::now(),
            writers: BTreeMap::new(),
            written: vec![],
            next_incoming: 1,
            tasks: JoinSet::new(),
            events: mpsc::channel(EVENTS),
            accepted: mpsc::channel(ACCEPTED),
            listeners: Listeners::default(),
            keys: Keys::read(&desired.config),
            watch: None,
            bfd: BTreeMap::new(),
            fate: Fate::new(jitter_seed()),
            echoes: None,
            stations: Stations::new(Duration::ZERO),
            listen_at: None,
            flushing: None,
            sessions_changed: false,
            peers_file,
            learned: Arc::default(),
            fallback: Fallback::default(),
            desired,
        };
        shell.stations.follow(&shell.desired.stations, &mut shell.speaker, Duration::ZERO);
        shell.say_keys(&Keys::default());
        let claims = Arc::new(shell.desired.claims.clone());
        shell.perform(actions);
        shell.step(Event::Claimed(claims));
        shell.follow_nodes();
        shell.listen();
        shell.follow_bfd();
        shell.look_for_reflectors();
        shell
    }

    /// Waits for something to do. Cancel-safe: each branch only takes what it returns.
    pub(super) async fn wake(&mut self) -> Wake {
        if let Some(begin) = self.flushing {
            // All that the flush woke runs before we do again: what it has cost is known then.
            tokio::task::yield_now().await;
            self.flushing = None;
            // Only paces later flushes: it has no actions of its own worth a second look.
            let mut none = vec![];
            self.speaker.step(self.now(), Event::Flushed { took: begin.elapsed() }, &mut none);
            self.perform(none);
        }
        let deadlines = [
            self.speaker.deadline(),
            self.fate.deadline(),
            self.fallback.deadline(),
            self.stations.deadline(),
        ];
        let deadline = deadlines.into_iter().flatten().min().map(|at| self.began + at);
        let listen_at = self.listen_at;
        let sleep = async {
            match [deadline, listen_at].into_iter().flatten().min() {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = std::future::ready(()), if !self.written.is_empty() => Wake::Written,
            Some(event) = self.events.1.recv() => Wake::Event(event),
            Some((stream, remote)) = self.accepted.1.recv() => Wake::Accepted(stream, remote),
            Some(change) = next_change(self.watch.as_mut()) => Wake::Bfd(change),
            Some(told) = self.stations.next() => Wake::Station(told),
            answers = next_answers(self.echoes.as_ref()) => Wake::Answered(answers),
            () = sleep => if listen_at.is_some_and(|at| at <= Instant::now()) { Wake::Listen } else { Wake::Deadline },
        }
    }

    pub(super) fn handle(&mut self, wake: Wake) {
        match wake {
            Wake::Event(event) => {
                self.step(event);
                // What waits already is taken in before routes are published: one copy for many changes.
                for _ in 1..TURN {
                    match self.events.1.try_recv() {
                        Ok(event) => self.step(event),
                        Err(_) => break,
                    }
                }
            }
            Wake::Accepted(stream, remote) => self.on_accepted(stream, remote),
            Wake::Deadline => {
                // What waits at the sockets is heard before anybody is judged: it may be we who were away.
                let waiting = self.echoes.as_ref().map(Echoes::take).unwrap_or_default();
                self.on_answers(waiting);
                self.judge(fate::Event::Timer);
                self.step(Event::Timer);
            }
            Wake::Answered(answers) => self.on_answers(answers),
            Wake::Written => {
                for (conn, bytes) in std::mem::take(&mut self.written) {
                    self.step(Event::Sent { conn, bytes });
                }
            }
            Wake::Listen => self.listen(),
            Wake::Station(told) => {
                let now = self.now();
                self.stations.handle(told, &self.speaker, now);
            }
            Wake::Bfd(Change { peer, lost, what }) => {
                tracing::info!(%peer, "{what}");
                if let Some(said) = self.bfd.get_mut(&peer) {
                    *said = what.trim_start_matches("BFD: ").to_owned();
                }
                if lost {
                    // Whether the node is dead or its daemon restarts is not known yet: graceful restart holds.
                    self.step(Event::Lost { peer, purge: false, reason: what });
                }
            }
        }
        while self.tasks.try_join_next().is_some() {}
        if self.fallback.is_needed() {
            self.look_for_reflectors();
        }
        self.tell_stations();
        let settled: Vec<IpAddr> = self.fate.asked().filter(|peer| !self.speaker.is_stale(*peer)).collect();
        settled.into_iter().for_each(|peer| self.judge(fate::Event::Settled(peer)));
    }

    /// Gives monitoring stations what they can take. After each batch of events, so that what waits shares messages.
    fn tell_stations(&mut self) {
        let (now, writers) = (self.now(), &self.writers);
        let ends = |conn: ConnId| writers.get(&conn).and_then(Writer::ends);
        self.stations.follow_speaker(&mut self.speaker, &ends, now);
    }

    fn on_answers(&mut self, answers: Vec<Answer>) {
        for (peer, number) in answers {
            self.judge(fate::Event::Answered { peer, number });
        }
    }

    /// Runs the core that tells dead nodes from restarted daemons.
    fn judge(&mut self, event: fate::Event) {
        let mut actions = vec![];
        self.fate.step(self.now(), event, &mut actions);
        for action in actions {
            match action {
                fate::Action::Ask { peer, number } => {
                    if let Some(echoes) = &self.echoes {
                        echoes.ask(peer, number);
                    }
                }
                fate::Action::Alive(peer) => {
                    tracing::info!(%peer, "the peer's kernel answers: its daemon restarts, and routes stay");
                }
                fate::Action::Dead(peer) => {
                    let reason = match self.fate.kernel(peer) {
                        Some(Kernel::Dead) => "the node is dead: its kernel does not answer",
                        _ => "the node is silent, and nothing is known of its kernel",
                    };
                    tracing::warn!(%peer, "{reason}; its routes go");
                    self.step(Event::Lost { peer, purge: true, reason: reason.to_owned() });
                }
            }
        }
    }

    /// Asks the kernels of the nodes that there are.
    fn follow_nodes(&mut self) {
        let nodes = self.desired.nodes();
        if nodes.is_empty() {
            self.echoes = None;
        } else {
            self.echoes.get_or_insert_with(|| Echoes::open(jitter_seed()));
        }
        self.judge(fate::Event::Configured(nodes));
    }

    /// Follows the cluster.
    pub(super) fn follow(&mut self, desired: Desired) {
        let before = std::mem::replace(&mut self.desired, desired);
        // Keys before all: a neighbour that is new may sign.
        if before.config != self.desired.config || before.listen != self.desired.listen {
            self.listen();
        }
        // Claims first: a node that is new comes with the right to its routes.
        if before.claims != self.desired.claims {
            self.fallback.forget();
            self.step(Event::Claimed(Arc::new(self.desired.claims.clone())));
        }
        if before.config != self.desired.config {
            self.step(Event::Configured(Arc::new(self.desired.config.clone())));
            // Whom we reflect to may have changed.
            self.remember_peers();
            self.follow_nodes();
        }
        if before.stations != self.desired.stations {
            let now = self.now();
            self.stations.follow(&self.desired.stations, &mut self.speaker, now);
        }
        self.tell_stations();
        self.follow_bfd();
        self.look_for_reflectors();
    }

    /// For the next life.
    fn remember_peers(&mut self) {
        if let Some(file) = &mut self.peers_file {
            file.write(self.speaker.relied_on(), self.speaker.reflected_to());
        }
    }

    /// Whether the claims are needed may have changed.
    fn look_for_reflectors(&mut self) {
        // A speaker alone has no claims.
        if self.desired.alone {
            return;
        }
        let now = self.now();
        let config = &self.desired.config;
        let is_up = |peer| self.speaker.is_established(peer);
        let is_covered = || Fallback::is_covered(&self.learned, &self.desired.claims, &config.own_addresses);
        let changed = self.fallback.look(now, config, is_up, is_covered);
        if changed && self.fallback.is_needed() {
            tracing::warn!("no BGP reflector is up: routes follow the claims in the store");
        } else if changed {
            tracing::info!("BGP reflectors are up: routes are theirs");
        }
    }

    /// What the kernel shall hold; empty for a speaker alone.
    pub(super) fn routes(&mut self) -> Arc<BgpRoutes> {
        self.fallback.routes(&self.learned, &self.desired.claims, &self.desired.config.own_addresses)
    }

    /// Has listed neighbours watched that are to be; the thread runs only while there are any.
    fn follow_bfd(&mut self) {
        let own = |neighbour: &Neighbour, peer: &IpAddr| {
            let mut ours = self.desired.listen.iter().map(std::net::SocketAddr::ip);
            neighbour.local_address.or_else(|| ours.find(|own| own.is_ipv4() == peer.is_ipv4()))
        };
        let neighbours = self.desired.config.neighbours.iter();
        let mut wanted: Watched = neighbours
            .filter_map(|(peer, neighbour)| Some((*peer, (own(neighbour, peer)?, neighbour.options.bfd?))))
            .collect();
        // Nodes that are not looked for are watched while something of them is there.
        for peer in self.speaker.dynamic_peers() {
            let known =
                self.desired.config.neighbour_at(peer).filter(|_| self.desired.config.is_in_circle(peer));
            let watched = known.and_then(|known| Some((own(&known, &peer)?, known.options.bfd?)));
            wanted.extend(watched.map(|watched| (peer, watched)));
        }
        self.bfd.retain(|peer, _| wanted.contains_key(peer));
        for peer in wanted.keys() {
            self.bfd.entry(*peer).or_insert_with(|| "not up yet".to_owned());
        }
        if wanted.is_empty() {
            self.watch = None;
            return;
        }
        if self.watch.is_none() {
            match Watch::start(jitter_seed()) {
                Ok(watch) => self.watch = Some(watch),
                Err(error) => tracing::error!(%error, "no thread for BFD: neighbours are not watched"),
            }
        }
        if let Some(watch) = &self.watch {
            watch.watch(wanted);
        }
    }

    /// Ends all sessions and waits until what must be said is said.
    pub(super) async fn stop(mut self, routes: AfterStop) {
        // RFC 5880 section 6.8.16, before the silence: nobody takes our end for a failure.
        self.watch = None;
        self.step(Event::Stopped { routes });
        self.stations.stop().await;
        self.writers.clear();
        self.events.1.close();
        let all = async { while self.tasks.join_next().await.is_some() {} };
        // Peers that do not close in time are left to the kernel.
        let _ = tokio::time::timeout(FAREWELL, all).await;
    }

    /// Asks a neighbour for its table again; false: there is no session.
    pub(super) fn refresh(&mut self, peer: IpAddr) -> bool {
        let found = self.speaker.is_established(peer);
        if found {
            self.step(Event::Refresh { peer });
        }
        found
    }

    /// Begins a neighbour's session anew; false: there is no such neighbour.
    pub(super) fn reset(&mut self, peer: IpAddr, words: String) -> bool {
        let found = super::answers::is_known(&self.speaker, peer);
        if found {
            tracing::info!(%peer, "BGP session is reset by the operator: {words}");
            self.step(Event::Reset { peer, words });
        }
        found
    }

    /// Keys that cannot be used, and why.
    pub(super) fn problems(&self) -> Vec<String> {
        self.keys.problems().map(|problem| format!("TCP MD5 key {problem}")).collect()
    }

    /// What the speaker was last told to do.
    pub(super) fn config(&self) -> &podway_bgp::config::SpeakerConfig {
        &self.desired.config
    }

    /// Whether sessions came or went since this was asked last.
    pub(super) fn take_sessions_changed(&mut self) -> bool {
        std::mem::take(&mut self.sessions_changed)
    }

    /// Monitoring stations.
    pub(super) fn stations(&self) -> Vec<podway_model::socket::BgpStationStatus> {
        self.stations.status(self.now())
    }

    /// What BFD says of neighbours.
    pub(super) fn bfd(&self) -> &BTreeMap<IpAddr, String> {
        &self.bfd
    }

    /// What is known of other nodes' kernels.
    pub(super) fn fate(&self) -> &Fate {
        &self.fate
    }

    pub(super) fn speaker(&self) -> &Speaker {
        &self.speaker
    }

    /// Time since the speaker began, as the speaker counts it.
    pub(super) fn now(&self) -> Duration {
        self.began.elapsed()
    }

    fn listen(&mut self) {
        let before = std::mem::replace(&mut self.keys, Keys::read(&self.desired.config));
        self.say_keys(&before);
        let open = self.listeners.set(&self.desired.listen, &self.keys, &self.accepted.0);
        let complete = open && self.keys.problems().next().is_none();
        let again = match (complete, self.keys.is_empty()) {
            (false, _) => Some(LISTEN_RETRY),
            (true, false) => Some(KEYS_AGAIN),
            (true, true) => None,
        };
        self.listen_at = again.map(|again| Instant::now() + again);
    }

    /// Says once what is wrong with keys.
    fn say_keys(&self, before: &Keys) {
        let known: Vec<&str> = before.problems().collect();
        for problem in self.keys.problems().filter(|problem| !known.contains(problem)) {
            tracing::error!("TCP MD5 key {problem}: neighbours with it get no connection");
        }
    }

    /// How connections with an address are carried.
    fn carriage(&self, remote: IpAddr) -> Result<Carriage, String> {
        let neighbour = self.desired.config.neighbour_at(remote);
        let transport = neighbour.map(|neighbour| neighbour.options.transport.clone());
        self.keys.carriage(&transport.unwrap_or_default())
    }

    fn on_accepted(&mut self, stream: TcpStream, remote: IpAddr) {
        let carried = self.carriage(remote).and_then(|carriage| {
            carriage.accepted(&stream, remote.is_ipv4()).map_err(|error| error.to_string())
        });
        if let Err(error) = carried {
            tracing::warn!(peer = %remote, "a BGP connection is refused: {error}");
            return;
        }
        let conn = ConnId::Incoming(self.next_incoming);
        self.next_incoming += 1;
        let (writer, rest) = writer::pair();
        let read = connection::begin(stream, &rest);
        self.writers.insert(conn, writer);
        self.tasks.spawn(connection::run(conn, read, rest, self.events.0.clone()));
        self.step(Event::Accepted { conn, remote });
    }

    fn step(&mut self, event: Event) {
        let mut actions = vec![];
        let begin = Instant::now();
        if let Event::Closed { conn, .. } = &event {
            self.writers.remove(conn);
        }
        self.speaker.step(self.now(), event, &mut actions);
        let sends = actions.iter().filter(|action| matches!(action, Action::Send { .. })).count();
        self.perform(actions);
        if sends > 1 {
            self.flushing.get_or_insert(begin);
        }
    }

    fn perform(&mut self, actions: Vec<Action>) {
        let (mut overflown, mut changed) = (vec![], vec![]);
        let mut actions = actions.into_iter().peekable();
        while let Some(action) = actions.next() {
            match action {
                Action::Connect { conn, remote, local } => {
                    let (writer, rest) = writer::pair();
                    self.writers.insert(conn, writer);
                    let events = self.events.0.clone();
                    let carriage = self.carriage(remote.ip());
                    self.tasks.spawn(connection::outgoing(conn, remote, local, carriage, rest, events));
                }
                Action::Send { conn, bytes } => {
                    let mut pieces = vec![bytes];
                    let same = |action: &Action| matches!(action, Action::Send { conn: other, .. } if *other == conn);
                    while let Some(Action::Send { bytes, .. }) = actions.next_if(same) {
                        pieces.push(bytes);
                    }
                    match self.writers.get(&conn).map(|writer| writer.send(&mut pieces)) {
                        Some(Some(0)) | None => {}
                        Some(Some(count)) => self.written.push((conn, count)),
                        Some(None) => overflown.push(conn),
                    }
                }
                Action::Close { conn } => drop(self.writers.remove(&conn)),
                // A speaker alone has no kernel to tell.
                Action::RouteChanged { .. } if self.desired.alone => {}
                Action::RouteChanged { prefix, next_hops } => {
                    let routes = &mut Arc::make_mut(&mut self.learned).routes;
                    if next_hops.is_empty() {
                        routes.remove(&prefix);
                    } else {
                        routes.insert(prefix, next_hops);
                    }
                }
                Action::PeerChanged { peer, up, silent, reason } => {
                    self.on_peer_changed(peer, up, &reason);
                    changed.push(if up { fate::Event::Up(peer) } else { fate::Event::Down { peer, silent } });
                }
                Action::Ignoring { peer, what } => tracing::warn!(%peer, "ignoring from BGP peer: {what}"),
                Action::Warned { peer, what } => tracing::warn!(%peer, "{what}"),
                Action::Refused { mistakes } => {
                    tracing::error!(
                        "ignoring the BGP configuration, the one before stays: {}",
                        mistakes.join("; ")
                    );
                }
                Action::Synced => {
                    tracing::info!("BGP has heard all peers that were up");
                    Arc::make_mut(&mut self.learned).synced = true;
                }
            }
        }
        self.sessions_changed |= !changed.is_empty();
        if !changed.is_empty()
            && self.desired.config.options.circles.iter().any(|c| c.template.options.bfd.is_some())
        {
            self.follow_bfd();
        }
        if !changed.is_empty() {
            self.look_for_reflectors();
        }
        // After all actions: what follows from it comes after what is in them.
        changed.into_iter().for_each(|event| self.judge(event));
        for conn in overflown {
            if self.writers.remove(&conn).is_some() {
                self.step(Event::Closed { conn, reason: "the peer does not read".to_owned() });
            }
        }
    }

    fn on_peer_changed(&mut self, peer: IpAddr, up: bool, reason: &str) {
        let known = self.desired.config.neighbour_at(peer);
        let name = known.as_ref().map_or("?", |neighbour| neighbour.name.as_str());
        let leaves = known.as_ref().is_some_and(|known| known.options.standing == Standing::Leaving);
        match (up, leaves) {
            (true, _) => tracing::info!(%peer, node = name, "BGP session is up"),
            (false, true) => tracing::info!(%peer, node = name, "BGP session has ended: {reason}"),
            (false, false) => tracing::warn!(%peer, node = name, "BGP session is down: {reason}"),
        }
        self.remember_peers();
    }
}

/// The next thing that BFD says; without it, nothing.
async fn next_change(watch: Option<&mut Watch>) -> Option<Change> {
    match watch {
        Some(watch) => watch.next().await,
        None => std::future::pending().await,
    }
}

/// Answers of other nodes' kernels; if nobody is asked, nothing.
async fn next_answers(echoes: Option<&Echoes>) -> Vec<Answer> {
    match echoes {
        Some(echoes) => echoes.next().await,
        None => std::future::pending().await,
    }
}

/// Nodes that start together must not stay in step.
fn jitter_seed() -> u64 {
    let time = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    u64::from(time.subsec_nanos()) ^ (u64::from(std::process::id()) << 32)
}
