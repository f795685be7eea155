//! Dead node or restarted daemon: the core alone under virtual time, and beside a speaker.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests: a failure is a panic")]

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use podway_bgp::fate::{Action, Event, Fate, Kernel};
use proptest::prelude::*;

const MS: fn(u64) -> Duration = Duration::from_millis;
/// Way there and back.
const TRIP: Duration = Duration::from_millis(1);

fn peer() -> IpAddr {
    "10.0.0.1".parse().unwrap()
}

/// One peer, whose kernel answers while `alive`.
struct World {
    fate: Fate,
    now: Duration,
    alive: bool,
    answers: Vec<(Duration, u16)>,
    /// When it was asked.
    asked: Vec<Duration>,
    verdicts: Vec<(Duration, Action)>,
}

impl World {
    fn new() -> Self {
        let mut world = Self {
            fate: Fate::new(1),
            now: Duration::from_secs(1000),
            alive: true,
            answers: vec![],
            asked: vec![],
            verdicts: vec![],
        };
        world.step(Event::Configured(BTreeSet::from([peer()])));
        world
    }

    fn step(&mut self, event: Event) {
        let mut out = vec![];
        self.fate.step(self.now, event, &mut out);
        for action in out {
            match action {
                Action::Ask { peer: to, number } => {
                    assert_eq!(to, peer());
                    self.asked.push(self.now);
                    if self.alive {
                        self.answers.push((self.now + TRIP, number));
                    }
                }
                Action::Alive(_) | Action::Dead(_) => self.verdicts.push((self.now, action)),
            }
        }
    }

    /// Lets time pass.
    fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        loop {
            let answer = self.answers.first().map(|(at, _)| *at);
            let Some(at) = [answer, self.fate.deadline()].into_iter().flatten().min().filter(|at| *at <= end)
            else {
                break;
            };
            self.now = self.now.max(at);
            if answer == Some(at) {
                let (_, number) = self.answers.remove(0);
                self.step(Event::Answered { peer: peer(), number });
            } else {
                self.step(Event::Timer);
            }
        }
        self.now = end;
    }

    fn kernel(&self) -> Kernel {
        self.fate.kernel(peer()).unwrap()
    }

    /// A session that has been up for a minute.
    fn established() -> Self {
        let mut world = Self::new();
        world.step(Event::Up(peer()));
        world.pass(Duration::from_secs(60));
        assert_eq!(world.kernel(), Kernel::Answers);
        world.asked.clear();
        world
    }

    fn down(&mut self, silent: bool) -> Duration {
        self.asked.clear();
        self.step(Event::Down { peer: peer(), silent });
        self.now
    }

    /// Questions since a moment, in milliseconds.
    fn questions(&self, since: Duration) -> Vec<u128> {
        self.asked.iter().map(|at| (*at - since).as_millis()).collect()
    }
}

#[test]
fn a_node_that_does_not_answer_at_once_is_dead() {
    for silent in [false, true] {
        let mut world = World::established();
        world.alive = false;
        let begin = world.down(silent);
        world.pass(Duration::from_secs(60));
        assert_eq!(world.questions(begin), [0, 50, 100]);
        assert_eq!(world.verdicts, [(begin + MS(250), Action::Dead(peer()))]);
        assert_eq!((world.kernel(), world.fate.deadline()), (Kernel::Dead, None));
    }
}

#[test]
fn a_node_that_answers_keeps_its_routes_as_long_as_it_does() {
    let mut world = World::established();
    let begin = world.down(false);
    world.pass(Duration::from_secs(1));
    assert_eq!(world.questions(begin), [0, 201, 401, 601, 801]);
    assert_eq!(world.verdicts, [(begin + TRIP, Action::Alive(peer()))]);
    assert_eq!(world.fate.asked().collect::<Vec<_>>(), [peer()]);
    // Two missed questions are none; three are the end, well within a second of its last answer.
    world.alive = false;
    world.pass(MS(300));
    world.alive = true;
    world.pass(Duration::from_secs(10));
    assert_eq!(world.kernel(), Kernel::Asked);
    world.alive = false;
    world.verdicts.clear();
    let last = world.now;
    world.pass(Duration::from_secs(60));
    let [(at, Action::Dead(_))] = world.verdicts[..] else { panic!("{:?}", world.verdicts) };
    assert!(at - last <= MS(800), "{:?}", at - last);
    assert_eq!(world.fate.asked().count(), 0);
}

#[test]
fn nobody_is_asked_any_more_when_nothing_is_stale() {
    for end in [Event::Settled(peer()), Event::Configured(BTreeSet::new()), Event::Up(peer())] {
        let mut world = World::established();
        world.down(false);
        world.pass(Duration::from_secs(1));
        world.step(end.clone());
        world.asked.clear();
        world.alive = false;
        world.pass(Duration::from_secs(20));
        assert_eq!((world.asked.len(), world.verdicts.len()), (0, 1), "{end:?}");
        assert_eq!(world.fate.asked().count(), 0, "{end:?}");
    }
}

#[test]
fn whoever_filters_echoes_gets_plain_graceful_restart() {
    let filtered = || {
        let mut world = World::new();
        world.alive = false;
        world.step(Event::Up(peer()));
        world.pass(Duration::from_secs(60));
        assert_eq!(world.kernel(), Kernel::Filtered);
        world
    };
    let mut world = filtered();
    world.down(false);
    world.pass(Duration::from_secs(600));
    assert_eq!((world.asked.len(), world.verdicts.len()), (0, 0), "a closed connection is a restart");
    let mut world = filtered();
    let begin = world.down(true);
    world.pass(Duration::from_secs(600));
    assert_eq!(world.verdicts, [(begin, Action::Dead(peer()))], "an expired hold timer is none");
    // A session that ended before anything was heard is like one of a filtered peer.
    let mut world = World::new();
    world.alive = false;
    world.step(Event::Up(peer()));
    world.down(false);
    world.pass(Duration::from_secs(600));
    assert_eq!(world.verdicts, []);
}

#[test]
fn one_check_without_an_answer_is_no_filter_two_are() {
    let mut world = World::established();
    // The node dies, and a check falls between its death and the moment when that is noticed.
    world.alive = false;
    world.pass(Duration::from_secs(32));
    assert_eq!(world.kernel(), Kernel::Answers);
    let begin = world.down(false);
    world.pass(Duration::from_secs(1));
    assert_eq!(world.verdicts, [(begin + MS(250), Action::Dead(peer()))]);
    // A firewall is put up during a session.
    let mut world = World::established();
    world.alive = false;
    world.pass(Duration::from_secs(65));
    assert_eq!(world.kernel(), Kernel::Filtered);
    // And taken away again.
    world.alive = true;
    world.pass(Duration::from_secs(35));
    assert_eq!(world.kernel(), Kernel::Answers);
}

#[test]
fn an_answer_from_before_says_nothing() {
    let mut world = World::established();
    world.alive = false;
    world.down(false);
    let number = 4711;
    for stale in [number, 0, u16::MAX] {
        world.step(Event::Answered { peer: peer(), number: stale });
    }
    world.pass(Duration::from_secs(1));
    assert!(matches!(world.verdicts[..], [(_, Action::Dead(_))]), "{:?}", world.verdicts);
    // Long after, and from somebody unknown.
    world.step(Event::Answered { peer: peer(), number: 3 });
    world.step(Event::Answered { peer: "10.9.9.9".parse().unwrap(), number: 3 });
    assert_eq!(world.kernel(), Kernel::Dead);
}

proptest! {
    /// Whatever happens: no busy loop, nobody dies with a session or without having been known to answer, unless the hold
    /// timer says so.
    #[test]
    fn no_verdict_without_a_reason(events in proptest::collection::vec((0..7u8, 0..1500u64), 1..200)) {
        let mut world = World::new();
        let mut up = false;
        let mut answered = false;
        for (event, wait) in events {
            let before = world.verdicts.len();
            match event {
                0 => {
                    (up, answered) = (true, false);
                    world.step(Event::Up(peer()));
                }
                1 | 2 => {
                    up = false;
                    let silent = event == 2;
                    world.step(Event::Down { peer: peer(), silent });
                }
                3 => world.alive = !world.alive,
                4 => world.step(Event::Settled(peer())),
                5 => world.step(Event::Timer),
                _ => world.step(Event::Answered { peer: peer(), number: u16::try_from(wait).unwrap() }),
            }
            let asked = world.asked.len();
            world.pass(MS(wait));
            prop_assert!(world.asked.len() - asked <= 3 + usize::try_from(wait / 50).unwrap());
            answered |= world.kernel() == Kernel::Answers;
            let dead = |(_, verdict): &(Duration, Action)| matches!(verdict, Action::Dead(_));
            if world.verdicts[before..].iter().any(dead) {
                prop_assert!(!up && (answered || event == 2));
            }
        }
    }
}
