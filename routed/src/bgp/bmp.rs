//! Monitoring stations (BMP): a task per station connects, writes what it is given, and connects again; what it is given
//! comes from the station's core, which the shell owns beside the speaker.
//!
//! ```text
//!  Shell ── speaker.step ── Stations::note ──▶ [Station] ── fill ──▶ chunk ──▶ task ──▶ TCP
//!                               ▲ Up, Wrote, Down ──────────────────────────────┘
//! ```
//!
//! One chunk is under way per station, so a station that does not read holds [`CHUNK`] octets, its socket, and the core's
//! bounded set of changes; the speaker never waits for it. A connection on which nothing moves for [`STUCK`] is closed.
//! Waits between attempts double from one second to a minute, each jittered.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use podway_bgp::bmp::{Ends, Station, StationOptions};
use podway_bgp::{ConnId, Speaker};
use podway_model::bmp::{BmpStation, BmpView};
use podway_model::socket::BgpStationStatus;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

/// Octets that are given to a station's task at once.
const CHUNK: usize = 64 << 10;
/// Events of all stations that may wait: a task waits with its next one.
const EVENTS: usize = 16;
/// How long a connection attempt may take.
const CONNECT: Duration = Duration::from_secs(5);
/// How long a chunk may take.
const STUCK: Duration = Duration::from_secs(60);
/// First and longest wait between two attempts.
const AGAIN: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// A connection that stood for so long was a good one: the waits begin anew.
const GOOD: Duration = Duration::from_secs(60);
/// How long the last message may take when we end.
const FAREWELL: Duration = Duration::from_millis(500);

/// What a station's task says; the number is the task's.
pub(super) enum Told {
    /// A connection stands; chunks go there.
    Up(u64, mpsc::Sender<Bytes>),
    /// A chunk is written.
    Wrote(u64),
    /// There is no connection, and why.
    Down(u64, String),
}

/// A station: its core, and its task.
struct Watching {
    core: Station,
    /// Of this task: a later one has another number.
    number: u64,
    task: JoinHandle<()>,
    /// None: there is no connection.
    chunks: Option<mpsc::Sender<Bytes>>,
    /// A chunk is under way.
    busy: bool,
    since: Duration,
    last_error: Option<String>,
}

/// All stations.
pub(super) struct Stations {
    watching: BTreeMap<SocketAddr, (BmpStation, Watching)>,
    told: (mpsc::Sender<Told>, mpsc::Receiver<Told>),
    next: u64,
    /// Time since 1970 at the speaker's zero point.
    epoch: Duration,
}

impl Stations {
    /// None yet. `now`: the speaker's time.
    pub(super) fn new(now: Duration) -> Self {
        let wall = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        Self {
            watching: BTreeMap::new(),
            told: mpsc::channel(EVENTS),
            next: 0,
            epoch: wall.saturating_sub(now),
        }
    }

    /// Follows the configuration: what did not change keeps its connection.
    pub(super) fn follow(&mut self, wanted: &[BmpStation], speaker: &mut Speaker, now: Duration) {
        let stays = |known: &BmpStation| wanted.contains(known);
        self.watching.retain(|_, (known, watching)| {
            let keep = stays(known);
            if !keep {
                watching.end();
            }
            keep
        });
        speaker.monitor(!wanted.is_empty());
        for station in wanted {
            if !self.watching.contains_key(&station.address) {
                self.next += 1;
                let task = tokio::spawn(run(station.address, self.next, self.told.0.clone()));
                let core = Station::new(options(station), self.epoch);
                let watching = Watching {
                    core,
                    number: self.next,
                    task,
                    chunks: None,
                    busy: false,
                    since: now,
                    last_error: None,
                };
                self.watching.insert(station.address, (station.clone(), watching));
            }
        }
    }

    /// The next thing that a task says. Cancel-safe.
    pub(super) async fn next(&mut self) -> Option<Told> {
        self.told.1.recv().await
    }

    /// When a station has something to say though nothing happened.
    pub(super) fn deadline(&self) -> Option<Duration> {
        let free = self.watching.values().map(|(_, one)| one).filter(|one| one.chunks.is_some() && !one.busy);
        free.filter_map(|one| one.core.deadline()).min()
    }

    pub(super) fn handle(&mut self, told: Told, speaker: &Speaker, now: Duration) {
        let (Told::Up(number, _) | Told::Wrote(number) | Told::Down(number, _)) = &told;
        let found = self.watching.iter_mut().find(|(_, (_, watching))| watching.number == *number);
        // What an ended task said last is about nobody.
        let Some((address, (station, watching))) = found else { return };
        match told {
            Told::Up(_, chunks) => {
                tracing::info!(station = station.title(), %address, "monitoring station is connected");
                watching.core.connected(now, speaker);
                (watching.chunks, watching.busy, watching.since) = (Some(chunks), false, now);
            }
            Told::Wrote(_) => watching.busy = false,
            Told::Down(_, why) => {
                // Once per reason: it is tried again and again.
                if watching.chunks.is_some() || watching.last_error.as_ref() != Some(&why) {
                    tracing::warn!(station = station.title(), %address, "no monitoring station: {why}");
                }
                watching.core.disconnected();
                if watching.chunks.take().is_some() {
                    watching.since = now;
                }
                watching.last_error = Some(why);
            }
        }
    }

    /// Notes what the speaker did, and gives stations what they can take.
    pub(super) fn follow_speaker(
        &mut self,
        speaker: &mut Speaker,
        ends: &dyn Fn(ConnId) -> Option<Ends>,
        now: Duration,
    ) {
        if self.watching.is_empty() {
            return;
        }
        let mut cores: Vec<&mut Station> = self.watching.values_mut().map(|(_, one)| &mut one.core).collect();
        Station::note(speaker, &mut cores);
        for (_, watching) in self.watching.values_mut() {
            let Some(chunks) = watching.chunks.as_ref().filter(|_| !watching.busy) else { continue };
            let chunk = watching.core.fill(now, speaker, ends, CHUNK);
            // A task that has ended says so itself.
            if !chunk.is_empty() && chunks.try_send(chunk).is_ok() {
                watching.busy = true;
            }
        }
    }

    /// In the words of the admin socket.
    pub(super) fn status(&self, now: Duration) -> Vec<BgpStationStatus> {
        let one = |(address, (station, watching)): (&SocketAddr, &(BmpStation, Watching))| {
            let status = watching.core.status();
            BgpStationStatus {
                name: station.title(),
                address: *address,
                connected: watching.chunks.is_some(),
                since_seconds: now.saturating_sub(watching.since).as_secs(),
                messages: status.messages,
                waiting: status.waiting,
                dropped: status.dropped,
                told_anew: status.told_anew,
                last_error: watching.last_error.clone(),
            }
        };
        self.watching.iter().map(one).collect()
    }

    /// Says farewell to all that can take it.
    pub(super) async fn stop(mut self) {
        let tasks: Vec<JoinHandle<()>> = std::mem::take(&mut self.watching)
            .into_values()
            .map(|(_, mut watching)| {
                watching.say_farewell();
                watching.task
            })
            .collect();
        drop(self.told);
        for mut task in tasks {
            if tokio::time::timeout(FAREWELL, &mut task).await.is_err() {
                task.abort();
            }
        }
    }
}

impl Watching {
    /// A task whose chunks end closes its connection when it has written them.
    fn say_farewell(&mut self) {
        match self.chunks.take() {
            // One that is still busy has no room for it, and is not waited for.
            Some(chunks) => drop(chunks.try_send(self.core.farewell())),
            None => self.task.abort(),
        }
    }

    fn end(&mut self) {
        self.say_farewell();
        self.core.disconnected();
    }
}

fn options(station: &BmpStation) -> StationOptions {
    let wants = |view: BmpView| station.views.contains(&view);
    let name = nix::sys::utsname::uname()
        .map_or_else(|_| "?".to_owned(), |names| names.nodename().to_string_lossy().into_owned());
    StationOptions {
        name,
        description: format!("podway routed {}", env!("CARGO_PKG_VERSION")),
        pre_policy: wants(BmpView::PrePolicy),
        post_policy: wants(BmpView::PostPolicy),
        loc_rib: wants(BmpView::LocRib),
        statistics: match station.statistics_seconds {
            0 => None,
            seconds => Some(Duration::from_secs(seconds.into())),
        },
    }
}

/// Connects, again and again, until the shell lets go.
async fn run(address: SocketAddr, number: u64, told: mpsc::Sender<Told>) {
    let mut wait = AGAIN.0;
    loop {
        let began = tokio::time::Instant::now();
        let why = match tokio::time::timeout(CONNECT, TcpStream::connect(address)).await {
            Err(_) => "connect: no answer".to_owned(),
            Ok(Err(error)) => format!("connect: {error}"),
            Ok(Ok(stream)) => {
                let (chunks, given) = mpsc::channel(1);
                if told.send(Told::Up(number, chunks)).await.is_err() {
                    return;
                }
                match serve(stream, number, given, &told).await {
                    Some(why) => why,
                    None => return,
                }
            }
        };
        if told.send(Told::Down(number, why)).await.is_err() {
            return;
        }
        if began.elapsed() >= GOOD {
            wait = AGAIN.0;
        }
        tokio::time::sleep(jittered(wait)).await;
        wait = (wait * 2).min(AGAIN.1);
    }
}

/// Three quarters to all of it.
fn jittered(wait: Duration) -> Duration {
    let nanos = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    wait.mul_f64(0.75 + f64::from(nanos.subsec_nanos() % 1000) / 4000.0)
}

/// Writes what is given until the connection ends, with the reason; none: the shell has let go.
async fn serve(
    stream: TcpStream,
    number: u64,
    mut given: mpsc::Receiver<Bytes>,
    told: &mpsc::Sender<Told>,
) -> Option<String> {
    let (mut read, mut write) = stream.into_split();
    let mut scrap = [0; 512];
    loop {
        // RFC 7854 3.2: a station says nothing; what it says all the same is read and dropped.
        let chunk = tokio::select! {
            chunk = given.recv() => chunk,
            count = read.read(&mut scrap) => match count {
                Ok(0) => return Some("closed by the station".to_owned()),
                Ok(_) => continue,
                Err(error) => return Some(format!("connection lost: {error}")),
            },
        };
        let Some(chunk) = chunk else {
            let _ = write.shutdown().await;
            return None;
        };
        match tokio::time::timeout(STUCK, write.write_all(&chunk)).await {
            Err(_) => return Some(format!("it did not read for {} s", STUCK.as_secs())),
            Ok(Err(error)) => return Some(format!("connection lost: {error}")),
            Ok(Ok(())) => {}
        }
        // The shell may have let go meanwhile, with a last chunk in the queue.
        let _ = told.send(Told::Wrote(number)).await;
    }
}
