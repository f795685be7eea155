//! Restarts of a neighbour as its helper sees them: RFC 4724, 8538 and 9494; and what BFD or the kernel say about it.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests: a failure is a panic")]

use std::time::Duration;

use podway_bgp::config::{Neighbour, NeighbourOptions, Role, SpeakerConfig};
use podway_bgp::message::attribute::{LLGR_STALE, NO_LLGR, PathAttributes, kind};
use podway_bgp::message::capability::{GracefulRestart, LongLived};
use podway_bgp::message::open::Open;
use podway_bgp::message::update::DecodeContext;
use podway_bgp::message::{Notification, keepalive};
use podway_bgp::types::{Families, Family};
use podway_bgp::{AfterStop, Event};

mod rig;
use rig::{ASN, Rig, Table, attributes, internal, ip, nlri, open, with};

const INTERNAL: DecodeContext = DecodeContext::INTERNAL;
const ROUTE: &str = "10.1.0.0/16";

fn restartable(id: &str) -> Open {
    let mut open = open(ASN, id);
    open.capabilities.graceful_restart = Some(GracefulRestart {
        time: 60,
        families: Families::BOTH,
        preserved: Families::BOTH,
        ..Default::default()
    });
    open
}

/// The same with the N bit.
fn notifying(id: &str) -> Open {
    let mut open = restartable(id);
    open.capabilities.graceful_restart.as_mut().unwrap().notification = true;
    open
}

/// We have the N bit too.
fn notify(mut config: SpeakerConfig) -> SpeakerConfig {
    config.graceful_restart.as_mut().unwrap().notifications = true;
    config
}

/// Whether the route is there after the session ended that way.
fn survives(n_bit: bool, end: impl Fn(&mut Rig, podway_bgp::ConnId)) -> bool {
    let config = with([("10.0.0.1", internal(Role::Mesh))]);
    let mut rig = Rig::new(if n_bit { notify(config) } else { config });
    let theirs = if n_bit { notifying("10.0.0.1") } else { restartable("10.0.0.1") };
    let conn = rig.establish_and_read("10.0.0.1", &theirs);
    rig.announce(conn, &attributes("10.0.0.1"), &nlri(ROUTE));
    end(&mut rig, conn);
    assert!(rig.closed.contains(&conn));
    rig.next_hop(ROUTE).is_some()
}

#[test]
fn what_ends_a_session_decides_what_becomes_of_its_routes() {
    type End<'a> = (&'a str, &'a dyn Fn(&mut Rig, podway_bgp::ConnId), bool, bool);
    let cases: [End<'_>; 6] = [
        ("the connection is gone", &|rig, conn| rig.cut(conn), true, true),
        ("it says Cease", &|rig, conn| rig.send(conn, Notification::cease(4).encode()), false, true),
        (
            "it says Hard Reset",
            &|rig, conn| rig.send(conn, Notification::cease(2).hard().encode()),
            false,
            false,
        ),
        ("it is silent", &|rig, _| rig.pass(Duration::from_secs(91)), false, true),
        ("it sends garbage", &|rig, conn| rig.send(conn, vec![0; 19]), false, true),
        (
            "the operator shuts it down",
            &|rig, _| {
                let options = NeighbourOptions { shutdown: Some(String::new()), ..Default::default() };
                let config = with([("10.0.0.1", Neighbour { options, ..internal(Role::Mesh) })]);
                let n_bit = rig.speaker.config().graceful_restart.as_ref().unwrap().notifications;
                rig.configure(if n_bit { notify(config) } else { config });
            },
            false,
            false,
        ),
    ];
    for (what, end, plain, with_n_bit) in cases {
        assert_eq!(survives(false, end), plain, "{what}");
        assert_eq!(survives(true, end), with_n_bit, "{what}, RFC 8538 on both sides");
    }
}

#[test]
fn what_we_mean_for_good_is_a_hard_reset_to_those_who_know_it() {
    let said = |n_bit: bool, end: &dyn Fn(&mut Rig)| {
        let config = with([("10.0.0.1", internal(Role::Mesh))]);
        let mut rig = Rig::new(if n_bit { notify(config) } else { config });
        let theirs = if n_bit { notifying("10.0.0.1") } else { restartable("10.0.0.1") };
        let conn = rig.establish_and_read("10.0.0.1", &theirs);
        end(&mut rig);
        rig.notification(conn)
    };
    let stop = |rig: &mut Rig| rig.step(Event::Stopped { routes: AfterStop::Drop });
    assert_eq!(said(false, &stop), Notification::cease(2));
    assert_eq!(said(true, &stop), Notification::cease(2).hard());
    let reset = |rig: &mut Rig| rig.step(Event::Reset { peer: ip("10.0.0.1"), words: "so".to_owned() });
    assert_eq!(said(true, &reset), Notification::reset("so").hard());
    assert_eq!(said(true, &reset).within(), Some(Notification::reset("so")));
    assert_eq!(
        said(true, &reset).to_string(),
        "cease, hard reset (6/9): cease, administrative reset (6/4): \"so\""
    );
    // The hold timer means no ill: the other side keeps our routes.
    let silence = |rig: &mut Rig| rig.pass(Duration::from_secs(91));
    assert_eq!(said(true, &silence), Notification::new(4, 0));
}

#[test]
fn whoever_is_known_to_be_dead_is_forgotten_at_once() {
    let lost = |purge| {
        move |rig: &mut Rig, _: podway_bgp::ConnId| {
            rig.step(Event::Lost {
                peer: ip("10.0.0.1"),
                purge,
                reason: "BFD: no packet for 300 ms".to_owned(),
            });
        }
    };
    assert!(survives(false, lost(false)) && survives(true, lost(false)));
    assert!(!survives(false, lost(true)) && !survives(true, lost(true)));
    // Also when the session is gone already and its routes are kept.
    assert!(!survives(false, |rig, conn| {
        rig.cut(conn);
        assert!(rig.next_hop(ROUTE).is_some());
        lost(true)(rig, conn);
    }));
}

#[test]
fn what_a_dead_reflector_told_of_others_stays_while_no_other_is_up() {
    let (own, reflected) = (ROUTE, "10.2.0.0/16");
    let dead = |rig: &mut Rig, peer: &str| {
        for purge in [false, true] {
            rig.step(Event::Lost { peer: ip(peer), purge, reason: "test".to_owned() });
        }
    };
    for others in [false, true] {
        let reflector = || internal(Role::Reflector);
        let mut rig = Rig::new(with([("10.0.0.1", reflector()), ("10.0.0.2", reflector())]));
        let conn = rig.establish_and_read("10.0.0.1", &restartable("10.0.0.1"));
        rig.announce(conn, &attributes("10.0.0.1"), &nlri(own));
        let of_another = PathAttributes {
            originator_id: Some("10.0.0.9".parse().unwrap()),
            cluster_list: vec!["10.0.0.1".parse().unwrap()],
            ..attributes("10.0.0.9")
        };
        rig.announce(conn, &of_another, &nlri(reflected));
        if others {
            rig.establish_and_read("10.0.0.2", &restartable("10.0.0.2"));
        }
        dead(&mut rig, "10.0.0.1");
        assert_eq!(rig.next_hop(own), None, "nobody forwards any more");
        assert_eq!(rig.next_hop(reflected).is_some(), !others, "another reflector speaks for it, or nobody");
        rig.pass(Duration::from_secs(61));
        assert_eq!(rig.next_hop(reflected), None, "not beyond the restart time");
    }
}

fn long_lived(id: &str, seconds: u64) -> Open {
    let mut open = restartable(id);
    let time = Duration::from_secs(seconds);
    open.capabilities.long_lived = Some(vec![LongLived { family: Family::Ipv4, preserved: true, time }]);
    open
}

fn long_lived_config() -> SpeakerConfig {
    let options = || NeighbourOptions { long_lived: Some(Duration::from_secs(3600)), ..Default::default() };
    with([
        ("10.0.0.1", Neighbour { options: options(), ..internal(Role::Client) }),
        ("10.0.0.2", Neighbour { options: options(), ..internal(Role::Client) }),
        ("10.0.0.3", internal(Role::Client)),
    ])
}

#[test]
fn a_long_restart_leaves_routes_as_a_last_resort() {
    let mut rig = Rig::new(long_lived_config());
    let sender = rig.establish_and_read("10.0.0.1", &long_lived("10.0.0.1", 1800));
    let knows = rig.establish_and_read("10.0.0.2", &long_lived("10.0.0.2", 1800));
    let plain = rig.establish_and_read("10.0.0.3", &open(ASN, "10.0.0.3"));
    rig.announce(sender, &attributes("10.0.0.1"), &nlri("10.1.0.0/16 10.2.0.0/16 10.3.0.0/16"));
    let mut never = attributes("10.0.0.1");
    never.add_member(kind::COMMUNITIES, NO_LLGR.to_be_bytes());
    rig.announce(sender, &never, &nlri("10.9.0.0/16"));
    rig.announce(sender, &attributes("fd00::1"), &nlri("fd20::/64"));
    rig.announce(
        plain,
        &PathAttributes { local_pref: Some(50), ..attributes("10.0.0.3") },
        &nlri("10.2.0.0/16"),
    );
    let alive = |rig: &mut Rig, conns: &[podway_bgp::ConnId], seconds: u64| {
        for _ in 0..seconds / 30 {
            conns.iter().for_each(|conn| rig.send(*conn, keepalive()));
            rig.pass(Duration::from_secs(30));
        }
    };
    alive(&mut rig, &[knows, plain], 30);
    let (mut at_knows, mut at_plain) = (Table::default(), Table::default());
    at_knows.take(rig.updates(knows, &INTERNAL));
    at_plain.take(rig.updates(plain, &INTERNAL));
    rig.cut(sender);
    alive(&mut rig, &[knows, plain], 30);
    assert!(rig.updates(knows, &INTERNAL).is_empty(), "within the restart time nothing changes");

    alive(&mut rig, &[knows, plain], 60);
    assert_eq!(rig.next_hop("10.1.0.0/16"), Some(ip("10.0.0.1")), "nobody else has it");
    assert_eq!(
        rig.next_hop("10.2.0.0/16"),
        Some(ip("10.0.0.3")),
        "anything else is better, whatever LOCAL_PREF says"
    );
    assert_eq!(rig.next_hop("10.9.0.0/16"), None, "NO_LLGR");
    assert_eq!(rig.next_hop("fd20::/64"), None, "a family that is not in the capability");
    at_knows.take(rig.updates(knows, &INTERNAL));
    at_plain.take(rig.updates(plain, &INTERNAL));
    assert!(at_knows.get("10.1.0.0/16").unwrap().has_community(LLGR_STALE));
    assert_eq!(at_plain.get("10.1.0.0/16"), None, "whoever would take it for fresh is not told");

    // It comes back, and what it tells again is fresh.
    let back = rig.establish("10.0.0.1", &long_lived("10.0.0.1", 1800));
    assert_eq!(rig.next_hop("10.1.0.0/16"), Some(ip("10.0.0.1")));
    rig.announce(back, &attributes("10.0.0.1"), &nlri("10.1.0.0/16"));
    rig.end_of_rib(back, Families::BOTH);
    rig.settle();
    at_knows.take(rig.updates(knows, &INTERNAL));
    assert!(!at_knows.get("10.1.0.0/16").unwrap().has_community(LLGR_STALE));
    assert_eq!(at_knows.get("10.3.0.0/16"), None, "not told again");
    // Gone for longer than its own time: forgotten.
    rig.cut(back);
    alive(&mut rig, &[knows, plain], 60 + 1800 - 60);
    assert!(rig.next_hop("10.1.0.0/16").is_some());
    alive(&mut rig, &[knows, plain], 120);
    assert_eq!(rig.next_hop("10.1.0.0/16"), None);
}

#[test]
fn our_own_limit_holds_for_long_lived_routes() {
    let options = NeighbourOptions { long_lived: Some(Duration::from_secs(100)), ..Default::default() };
    let mut rig = Rig::new(with([("10.0.0.1", Neighbour { options, ..internal(Role::Mesh) })]));
    let sender = rig.establish_and_read("10.0.0.1", &long_lived("10.0.0.1", 100_000));
    rig.announce(sender, &attributes("10.0.0.1"), &nlri(ROUTE));
    rig.cut(sender);
    rig.pass(Duration::from_secs(155));
    assert!(rig.next_hop(ROUTE).is_some());
    rig.pass(Duration::from_secs(10));
    assert!(rig.next_hop(ROUTE).is_none());
}

#[test]
fn a_cleared_forwarding_bit_sweeps_at_once() {
    let mut rig = Rig::new(with([("10.0.0.1", internal(Role::Mesh))]));
    let conn = rig.establish_and_read("10.0.0.1", &restartable("10.0.0.1"));
    rig.announce(conn, &attributes("10.0.0.1"), &nlri(ROUTE));
    rig.announce(conn, &attributes("fd00::1"), &nlri("fd20::/64"));
    rig.cut(conn);
    let mut back = restartable("10.0.0.1");
    back.capabilities.graceful_restart.as_mut().unwrap().preserved = [Family::Ipv6].into_iter().collect();
    rig.establish("10.0.0.1", &back);
    assert!(rig.next_hop(ROUTE).is_none() && rig.next_hop("fd20::/64").is_some());
    // A family that is no longer in the capability at all is swept too.
    let conn = rig.establish_again("10.0.0.1", &restartable("10.0.0.1"));
    rig.announce(conn, &attributes("10.0.0.1"), &nlri(ROUTE));
    rig.cut(conn);
    rig.establish("10.0.0.1", &open(ASN, "10.0.0.1"));
    assert!(rig.next_hop(ROUTE).is_none());
}
