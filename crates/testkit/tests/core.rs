//! The lab's own parts, without any program of ours: what they claim must hold before a test may lean on them.

use std::net::IpAddr;
use std::process::Command;
use std::time::Duration;

use podway_testkit::echo::EchoRuntime;
use podway_testkit::flow::Flow;
use podway_testkit::lab::{Outside, Underlay};
use podway_testkit::place::Place;
use podway_testkit::probe::{Kind, Outcome, Probe, probe, probe_all};
use podway_testkit::wait::wait_until;
use podway_testkit::{mounts, root_or_skip};

#[test]
fn private_directories_are_private() {
    if !root_or_skip("private_directories_are_private") {
        return;
    }
    let (a, b) = (Place::new("a").unwrap(), Place::new("b").unwrap());
    for place in [&a, &b] {
        mounts::make_private(place, mounts::PRIVATE).unwrap();
    }
    for path in mounts::PRIVATE {
        let file = format!("{path}/from-a");
        a.enter(|| std::fs::write(&file, "x")).unwrap().unwrap();
        assert!(a.enter(|| std::fs::exists(&file)).unwrap().unwrap(), "{file} on a");
        assert!(!b.enter(|| std::fs::exists(&file)).unwrap().unwrap(), "{file} on b");
        assert!(!std::fs::exists(&file).unwrap(), "{file} on the host");
    }
    assert_eq!(a.run("hostname", &[] as &[&str]).unwrap().trim(), "a");
    assert_eq!(b.run("hostname", &[] as &[&str]).unwrap().trim(), "b");
}

#[test]
fn programs_die_with_their_place() {
    if !root_or_skip("programs_die_with_their_place") {
        return;
    }
    let place = Place::new("short").unwrap();
    let mut command = Command::new("sleep");
    command.arg("600");
    let mut child = place.spawn(command).unwrap();
    assert!(child.try_wait().unwrap().is_none());
    drop(place);
    let status =
        wait_until("the program is killed", Duration::from_secs(5), || Ok(child.try_wait()?)).unwrap();
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(9));
}

#[test]
fn probes_tell_open_refused_and_silent() {
    if !root_or_skip("probes_tell_open_refused_and_silent") {
        return;
    }
    let underlay = Underlay::new().unwrap();
    let echo = EchoRuntime::start().unwrap();
    let outside = Outside::new(&underlay, &echo).unwrap();
    let (a, b) = (Place::new("a").unwrap(), Place::new("b").unwrap());
    let (a4, a6) = underlay.join(&a, 0).unwrap();
    let (b4, b6) = underlay.join(&b, 1).unwrap();
    let server = echo.serve(b.net(), "b").unwrap();

    let mut probes = vec![];
    let mut expected = vec![];
    let (any4, any6) = (IpAddr::V4(a4), IpAddr::V6(a6));
    for (to, name, source) in [
        (IpAddr::V4(b4), "b", any4),
        (IpAddr::V6(b6), "b", any6),
        (outside.address_like(any4), "outside", any4),
        (outside.address_like(any6), "outside", any6),
    ] {
        for kind in [Kind::Icmp, Kind::Tcp(80), Kind::Tcp(81), Kind::Udp(80), Kind::Udp(81)] {
            probes.push(Probe { from: a.net(), to, kind, expect_open: true });
            let answer = (kind != Kind::Icmp).then(|| (name.to_owned(), source));
            expected.push(Outcome::Open { answer });
        }
    }
    assert_eq!(probe_all(&probes).unwrap(), expected);

    assert!(matches!(probe(a.net(), b4.into(), Kind::Tcp(9), false).unwrap(), Outcome::Refused(_)));
    underlay.set_cable("b", false).unwrap();
    assert!(!probe(a.net(), b4.into(), Kind::Udp(80), false).unwrap().is_open());
    underlay.set_cable("b", true).unwrap();
    assert!(probe(a.net(), b4.into(), Kind::Udp(80), true).unwrap().is_open());
    drop(server);
    assert!(!probe(a.net(), b4.into(), Kind::Udp(80), false).unwrap().is_open(), "the server has ended");
}

#[test]
fn a_flow_counts_what_is_lost() {
    if !root_or_skip("a_flow_counts_what_is_lost") {
        return;
    }
    let underlay = Underlay::new().unwrap();
    let (a, b) = (Place::new("a").unwrap(), Place::new("b").unwrap());
    underlay.join(&a, 0).unwrap();
    let (b4, _) = underlay.join(&b, 1).unwrap();
    let start = || Flow::start(a.net(), b.net(), b4.into(), Duration::from_millis(1)).unwrap();

    let flow = start();
    flow.wait_for(200).unwrap();
    let report = flow.stop().unwrap();
    assert_eq!(report.lost(), 0, "{report:?}");
    assert!(report.received >= 200, "{report:?}");

    let flow = start();
    flow.wait_for(50).unwrap();
    underlay.set_cable("b", false).unwrap();
    flow.wait_for(100).unwrap();
    underlay.set_cable("b", true).unwrap();
    flow.wait_for(50).unwrap();
    let report = flow.stop().unwrap();
    assert!(report.lost() >= 90, "{report:?}");
    assert!(report.longest_gap >= Duration::from_millis(90), "{report:?}");
}
