//! BGP with others: BIRD 2, FRR, GoBGP, OpenBGPD and ExaBGP, each in a place of its own on one link with ours, as mesh
//! peer, as our client, as reflector above us and as neighbour outside.
//!
//! The same scenarios first run between two foreigners, so that the judge is judged: what fails there is not ours. Each
//! combination of peer, role and scenario is a cell, printed as `CELL` line; one that is empty has the reason, with its
//! source. Needs root; peers come from Debian's packages, which set-up unpacks.

mod bird;
mod bmp;
mod exabgp;
mod examples;
mod frr;
mod gobgp;
mod openbgpd;
mod ours;
mod page;
mod rig;

use std::net::Ipv4Addr;
use std::rc::Rc;

use anyhow::{Context as _, Result, ensure};
use podway_testkit::root_or_skip;

use rig::{COMMON, Link, MARK, Peer, Role, Route, Side, Speaker, What, until};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Podway,
    Bird,
    Frr,
    Gobgp,
    Openbgpd,
    Exabgp,
}

impl Kind {
    /// None: it is not on this machine.
    fn make(self, link: &Rc<Link>, place: usize, side: Side) -> Result<Option<Box<dyn Speaker>>> {
        fn boxed<T: Speaker + 'static>(speaker: T) -> Box<dyn Speaker> {
            Box::new(speaker)
        }
        Ok(match self {
            Self::Podway => Some(boxed(ours::Ours::new(link, place, side))),
            Self::Bird => bird::Bird::new(link, place, side).map(boxed),
            Self::Frr => frr::Frr::new(link, place, side)?.map(boxed),
            Self::Gobgp => gobgp::Gobgp::new(link, place, side).map(boxed),
            Self::Openbgpd => openbgpd::Openbgpd::new(link, place, side)?.map(boxed),
            Self::Exabgp => exabgp::Exabgp::new(link, place, side).map(boxed),
        })
    }
}

/// Outcome of one cell.
enum Cell {
    Held,
    Empty(&'static str),
    Failed(String),
}

/// One run: two speakers, and a third of ours as a further client where one of the two reflects.
struct Run {
    a: Box<dyn Speaker>,
    b: Box<dyn Speaker>,
    third: Option<Box<dyn Speaker>>,
    sides: [Side; 3],
    /// What b is to a.
    role: Role,
    title: String,
    failures: Vec<String>,
}

/// Why a pair is skipped; stands in `tests/skips.toml`.
const MISSING: &str =
    "no BGP speaker of somebody else (Debian packages bird2, frr, gobgpd, openbgpd, exabgp)";
const INSIDE: u32 = 4_200_000_001;
const OUTSIDE: u32 = 4_200_000_002;

/// Makes the speakers of a run; none: one is not on this machine.
fn prepare(test: &str, [a, b]: [Kind; 2], role: Role, bfd: bool) -> Result<Option<Run>> {
    let reflects = matches!(role, Role::Client | Role::Reflector);
    let link = Rc::new(Link::new(&format!("{test}-{}", role.as_str()), 3)?);
    let asn = |number: usize| if role == Role::External && number == 2 { OUTSIDE } else { INSIDE };
    let address = |number: usize| link.places[number - 1].1;
    let peer = |number: usize, role| Peer { v4: address(number), asn: asn(number), role };
    let reflector = if role == Role::Client { 1 } else { 2 };
    let mut sides = vec![];
    for number in 1..=3 {
        let dir = link.dir.join(format!("s{number}"));
        std::fs::create_dir_all(&dir).with_context(|| format!("create {}", dir.display()))?;
        let mut peers = match number {
            1 => vec![peer(2, role)],
            2 => vec![peer(1, role.mirrored())],
            _ => vec![peer(reflector, Role::Reflector)],
        };
        if reflects && number == reflector {
            peers.push(peer(3, Role::Client));
        }
        sides.push(Side {
            number: u16::try_from(number)?,
            v4: address(number),
            v6: link.places[number - 1].2,
            asn: asn(number),
            peers,
            dir,
            socket: link.sockets.path().join(number.to_string()),
            common: reflects && (number == reflector || number == 3),
            add_path: reflects,
            bfd,
        });
    }
    let sides: [Side; 3] = sides.try_into().map_err(|_| anyhow::anyhow!("three sides"))?;
    let Some(a) = a.make(&link, 0, sides[0].clone())? else { return Ok(None) };
    let Some(b) = b.make(&link, 1, sides[1].clone())? else { return Ok(None) };
    let third = if reflects { Kind::Podway.make(&link, 2, sides[2].clone())? } else { None };
    let title = format!("{} with {} as {}", a.name(), b.name(), role.as_str());
    Ok(Some(Run { a, b, third, sides, role, title, failures: vec![] }))
}

/// How often a restart is tried that somebody else spoils.
const TRIES: usize = 4;

impl Run {
    fn ask(
        &mut self,
        what: What,
        empty: Option<&'static str>,
        check: impl FnOnce(&mut Self) -> Result<()>,
    ) -> bool {
        let cell = match empty {
            Some(reason) => Cell::Empty(reason),
            None => match check(self) {
                Ok(()) => Cell::Held,
                Err(error) => Cell::Failed(format!("{error:#}")),
            },
        };
        // How two foreigners come through a restart is theirs: it tells what may be asked of ours, and is no failure.
        let ours = [&self.a, &self.b].iter().any(|speaker| speaker.name() == "podway");
        let theirs = !ours && matches!(what, What::Restart | What::Helper);
        let result = match &cell {
            Cell::Held => "ok".to_owned(),
            Cell::Empty(reason) => format!("empty: {reason}"),
            Cell::Failed(_) if theirs => "not between these two".to_owned(),
            Cell::Failed(_) => "FAILED".to_owned(),
        };
        say(&format!("CELL | {} | {} | {result} |", self.title, what.as_str()));
        if let Cell::Failed(error) = &cell
            && !theirs
        {
            let failure = format!(
                "{}: {}: {error}\n{}:\n{}\n{}:\n{}",
                self.title,
                what.as_str(),
                self.a.name(),
                short(&self.a.log()),
                self.b.name(),
                short(&self.b.log())
            );
            self.failures.push(failure);
        }
        !matches!(cell, Cell::Failed(_))
    }

    fn without_v6(&self) -> bool {
        self.a.lacks(What::V6).or_else(|| self.b.lacks(What::V6)).is_some()
    }

    fn address(&self, number: usize) -> Ipv4Addr {
        self.sides[number - 1].v4
    }

    /// All cells of one role but BFD.
    fn all(&mut self) -> Result<()> {
        self.a.start(false)?;
        self.b.start(false)?;
        if let Some(third) = &mut self.third {
            third.start(false)?;
        }
        let lack = |run: &Self, what: What| run.a.lacks(what).or_else(|| run.b.lacks(what));
        if !self.ask(What::Md5, lack(self, What::Md5), Self::comes_up) {
            return Ok(());
        }
        self.ask(What::V4, None, |run| run.exchange(|side| (side.prefix4(), side.v4.to_string())));
        self.ask(What::V6, lack(self, What::V6), |run| {
            run.exchange(|side| (side.prefix6(), side.v6.to_string()))
        });
        if self.role == Role::External {
            self.ask(What::As4, None, Self::paths_have_four_octets);
        }
        self.ask(What::Communities, None, Self::marks_arrive);
        let asks = self.a.lacks(What::Ask).or_else(|| self.b.lacks(What::Refresh));
        let asked = self.b.lacks(What::Ask).or_else(|| self.a.lacks(What::Refresh));
        self.ask(What::Ask, asks, |run| run.tell_again(1));
        self.ask(What::Refresh, asked, |run| run.tell_again(2));
        if self.third.is_some() {
            let (reflector, client) =
                if self.role == Role::Client { (&self.a, &self.b) } else { (&self.b, &self.a) };
            let reflect = reflector.lacks(What::Reflect);
            let several = reflector.lacks(What::AddPathSend).or_else(|| client.lacks(What::AddPathReceive));
            self.ask(What::Reflect, reflect, Self::reflects);
            self.ask(What::AddPathSend, several, Self::tells_several);
        }
        let first = self.a.lacks(What::Restart).or_else(|| self.b.lacks(What::Helper));
        let second = self.b.lacks(What::Restart).or_else(|| self.a.lacks(What::Helper));
        self.ask(What::Restart, first, |run| run.restart_unspoilt(1));
        self.ask(What::Helper, second, |run| run.restart_unspoilt(2));
        Ok(())
    }

    fn comes_up(&mut self) -> Result<()> {
        let (one, two) = (self.address(1), self.address(2));
        until("both say that the session is up", || Ok(self.a.is_up(two)? && self.b.is_up(one)?))
    }

    /// Each has what the other originates, by way of the other.
    fn exchange(&mut self, of: impl Fn(&Side) -> (String, String)) -> Result<()> {
        for (speaker, other) in [(&mut self.a, &self.sides[1]), (&mut self.b, &self.sides[0])] {
            let (prefix, hop) = of(other);
            let mut last = vec![];
            let there = until(&format!("{} has {prefix} by way of {hop}", speaker.name()), || {
                last = speaker.routes()?;
                Ok(last.iter().any(|route| route.prefix == prefix && route.next_hop == hop))
            });
            there.with_context(|| format!("routes: {last:?}"))?;
        }
        Ok(())
    }

    fn route(speaker: &mut dyn Speaker, prefix: &str) -> Result<Route> {
        let routes = speaker.routes()?;
        let found = routes.iter().find(|route| route.prefix == prefix).cloned();
        found.with_context(|| format!("{} has no {prefix}: {routes:?}", speaker.name()))
    }

    fn paths_have_four_octets(&mut self) -> Result<()> {
        let at_a = Self::route(self.a.as_mut(), &self.sides[1].prefix4())?.as_path;
        let at_b = Self::route(self.b.as_mut(), &self.sides[0].prefix4())?.as_path;
        ensure!(at_a == OUTSIDE.to_string() && at_b == INSIDE.to_string(), "paths {at_a:?} and {at_b:?}");
        Ok(())
    }

    fn marks_arrive(&mut self) -> Result<()> {
        let without_v6 = self.without_v6();
        for (speaker, other) in [(&mut self.a, &self.sides[1]), (&mut self.b, &self.sides[0])] {
            let v6 = (!without_v6).then(|| other.prefix6());
            for prefix in std::iter::once(other.prefix4()).chain(v6) {
                let route = Self::route(speaker.as_mut(), &prefix)?;
                for mark in [format!("{MARK}:{}", other.number), format!("{MARK}:0:{}", other.number)] {
                    ensure!(
                        route.communities.contains(&mark),
                        "{}: {mark} is missing: {route:?}",
                        speaker.name()
                    );
                }
            }
        }
        Ok(())
    }

    fn tell_again(&mut self, asker: usize) -> Result<()> {
        let (one, two) = (self.address(1), self.address(2));
        let (asker, peer) = if asker == 1 { (&mut self.a, two) } else { (&mut self.b, one) };
        let before = asker.updates(peer)?;
        asker.refresh(peer)?;
        until(&format!("{} is told again", asker.name()), || Ok(asker.updates(peer)? > before))?;
        ensure!(asker.is_up(peer)?, "the session is gone");
        self.exchange(|side| (side.prefix4(), side.v4.to_string()))
    }

    /// The client has what the third originates, and the third what the client does.
    fn reflects(&mut self) -> Result<()> {
        let client = if self.role == Role::Client { &mut self.b } else { &mut self.a };
        let own = &self.sides[if self.role == Role::Client { 1 } else { 0 }];
        let third = self.third.as_mut().context("there is a third")?;
        for (speaker, other) in [(client, &self.sides[2]), (third, own)] {
            for (prefix, hop) in
                [(other.prefix4(), other.v4.to_string()), (other.prefix6(), other.v6.to_string())]
            {
                let mut last = vec![];
                let there = until(&format!("{} has {prefix} by way of {hop}", speaker.name()), || {
                    last = speaker.routes()?;
                    Ok(last.iter().any(|route| route.prefix == prefix && route.next_hop == hop))
                });
                there.with_context(|| format!("routes: {last:?}"))?;
            }
        }
        Ok(())
    }

    /// The client has both ways to the destination that reflector and third originate.
    fn tells_several(&mut self) -> Result<()> {
        let (client, reflector) = if self.role == Role::Client { (&mut self.b, 1) } else { (&mut self.a, 2) };
        let hops = [self.sides[reflector - 1].v4.to_string(), self.sides[2].v4.to_string()];
        let mut last = vec![];
        let there = until(&format!("{} has both paths", client.name()), || {
            last = client.routes()?;
            Ok(hops
                .iter()
                .all(|hop| last.iter().any(|route| route.prefix == COMMON && route.next_hop == *hop)))
        });
        there.with_context(|| format!("routes: {last:?}"))
    }

    /// The same, again where OpenBGPD has spoilt the try: when a connection of its own has just lost against ours, it may
    /// go on upon the one that is left as if that were further. Every peer takes that for an error (RFC 4271 6.6), and its
    /// routes go with the session; between it and BIRD too. Such a try says nothing of a restart.
    fn restart_unspoilt(&mut self, number: usize) -> Result<()> {
        for _ in 1..TRIES {
            let before = self.spoilt()?;
            match self.restart(number) {
                Err(error) if self.spoilt()? > before => {
                    say(&format!("{}: openbgpd spoilt a restart, another is made: {error:#}", self.title));
                    self.comes_up()?;
                    self.exchange(|side| (side.prefix4(), side.v4.to_string()))?;
                    if !self.without_v6() {
                        self.exchange(|side| (side.prefix6(), side.v6.to_string()))?;
                    }
                }
                ended => return ended,
            }
        }
        self.restart(number)
    }

    /// How often OpenBGPD was told that it sent what nobody expected.
    fn spoilt(&self) -> Result<usize> {
        let Some(at) = [&self.a, &self.b].iter().position(|speaker| speaker.name() == "openbgpd") else {
            return Ok(0);
        };
        let log = std::fs::read_to_string(self.sides[at].dir.join("log")).unwrap_or_default();
        Ok(log.matches("received unexpected message in").count())
    }

    /// One is killed and comes back; the other has its routes all the time.
    fn restart(&mut self, number: usize) -> Result<()> {
        let (one, two) = (self.address(1), self.address(2));
        let (goes, stays, gone, other) = if number == 1 {
            (&mut self.a, &mut self.b, one, two)
        } else {
            (&mut self.b, &mut self.a, two, one)
        };
        let side = &self.sides[number - 1];
        let mut wanted = vec![side.prefix4(), side.prefix6()];
        // What a reflector of ours has told of others stays too.
        let reflects = (number == 1) == (self.role == Role::Client);
        if self.third.is_some() && reflects && goes.name() == "podway" {
            wanted.extend([self.sides[2].prefix4(), self.sides[2].prefix6()]);
        }
        let keeps = |stays: &mut Box<dyn Speaker>, when: &str| -> Result<()> {
            let routes = stays.routes()?;
            for prefix in &wanted {
                let there = routes.iter().any(|route| route.prefix == *prefix);
                ensure!(there, "{} lost {prefix} {when}: {routes:?}", stays.name());
            }
            Ok(())
        };
        keeps(stays, "before anything happened")?;
        goes.kill()?;
        until(&format!("{} notices", stays.name()), || Ok(!stays.is_up(gone)?))?;
        keeps(stays, "when the other was killed")?;
        goes.start(true)?;
        let mut lost = None;
        until("the session is up again", || {
            if lost.is_none() {
                lost = keeps(stays, "while the other came back").err();
            }
            Ok(stays.is_up(gone)? && goes.is_up(other)?)
        })?;
        lost.map_or(Ok(()), Err)?;
        self.exchange(|side| (side.prefix4(), side.v4.to_string()))?;
        if self.without_v6() {
            return Ok(());
        }
        self.exchange(|side| (side.prefix6(), side.v6.to_string()))
    }

    /// BFD comes up, and says so in time when the cable is cut.
    fn watched(&mut self) -> Result<()> {
        self.a.start(false)?;
        self.b.start(false)?;
        let lack = self.a.lacks(What::Bfd).or_else(|| self.b.lacks(What::Bfd));
        self.ask(What::Bfd, lack, |run| {
            run.comes_up()?;
            let (one, two) = (run.address(1), run.address(2));
            until("BFD is up on both sides", || Ok(run.a.bfd_is_up(two)? && run.b.bfd_is_up(one)?))
        });
        Ok(())
    }
}

#[expect(clippy::print_stdout, reason = "the matrix is this program's output")]
fn say(text: &str) {
    println!("{text}");
}

/// Lines that a person can read.
fn short(log: &str) -> String {
    log.lines().map(|line| line.chars().take(300).collect::<String>() + "\n").collect()
}

/// Runs one role of a pair, or BFD where there is none.
#[expect(clippy::panic, reason = "a test's way to fail")]
fn cells(pair: &str, a: Kind, b: Kind, role: Option<Role>) {
    let test = format!("{pair}::{}", role.map_or("bfd", Role::as_str));
    if !root_or_skip(&test) {
        return;
    }
    // One that passes nothing on is nobody's reflector.
    let reflector = match role {
        Some(Role::Client) => Some(a),
        Some(Role::Reflector) => Some(b),
        _ => None,
    };
    if reflector == Some(Kind::Exabgp) {
        say(&format!(
            "CELL | {pair} as reflector | all | empty: passes no route on (its README: it keeps no table) |"
        ));
        return;
    }
    let roles = role.map_or(vec![Role::Mesh, Role::External], |role| vec![role]);
    let mut failures = vec![];
    for one in roles {
        match prepare(&test.replace("::", "-"), [a, b], one, role.is_none()) {
            Ok(Some(mut run)) => {
                let ran = if role.is_some() { run.all() } else { run.watched() };
                failures.extend(ran.err().map(|error| format!("{}: {error:?}", run.title)));
                failures.append(&mut run.failures);
            }
            Ok(None) => {
                say(&format!("SKIP {test}: {MISSING}"));
                return;
            }
            Err(error) => failures.push(format!("{error:?}")),
        }
    }
    if !failures.is_empty() {
        panic!("{}", failures.join("\n\n"));
    }
}

/// Every role of a pair is a test.
macro_rules! pairs {
    ($($(#[doc = $doc:literal])* $pair:ident: $a:ident, $b:ident;)*) => {$(
        $(#[doc = $doc])*
        mod $pair {
            use super::{Kind, Role, cells};

            #[test]
            fn as_mesh_peer() {
                cells(stringify!($pair), Kind::$a, Kind::$b, Some(Role::Mesh));
            }

            #[test]
            fn as_our_client() {
                cells(stringify!($pair), Kind::$a, Kind::$b, Some(Role::Client));
            }

            #[test]
            fn as_reflector_above_us() {
                cells(stringify!($pair), Kind::$a, Kind::$b, Some(Role::Reflector));
            }

            #[test]
            fn as_neighbour_outside() {
                cells(stringify!($pair), Kind::$a, Kind::$b, Some(Role::External));
            }

            #[test]
            fn watched_by_bfd() {
                cells(stringify!($pair), Kind::$a, Kind::$b, None);
            }
        }
    )*};
}

pairs! {
    two_of_ours: Podway, Podway;
    we_and_bird: Podway, Bird;
    we_and_frr: Podway, Frr;
    we_and_gobgp: Podway, Gobgp;
    we_and_openbgpd: Podway, Openbgpd;
    we_and_exabgp: Podway, Exabgp;
    /// The judges: no side is ours.
    bird_and_frr: Bird, Frr;
    bird_and_openbgpd: Bird, Openbgpd;
    bird_and_exabgp: Bird, Exabgp;
    openbgpd_and_gobgp: Openbgpd, Gobgp;
}
