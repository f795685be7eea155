//! Many changes at once: they go out in parts, and everybody is told all of them once.

#![allow(clippy::unwrap_used, reason = "tests: a failure is a panic")]

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;
use podway_bgp::config::Role;
use podway_bgp::message::Nlri;
use podway_bgp::message::update::DecodeContext;

mod rig;
use rig::{ASN, Rig, attributes, internal, ip, open, with};

const INTERNAL: DecodeContext = DecodeContext::INTERNAL;

#[test]
fn what_is_too_much_for_one_flush_reaches_all_and_end_of_rib_comes_behind_it() {
    let clients = ["10.0.0.1", "10.0.0.2", "10.0.0.3"].map(|address| (address, internal(Role::Client)));
    let mut rig = Rig::new(with(clients));
    let told = rig.establish_and_read("10.0.0.1", &open(ASN, "10.0.0.1"));
    let teller = rig.establish_and_read("10.0.0.2", &open(ASN, "10.0.0.2"));
    let prefix = |n: u32| Nlri::from(IpNet::from(IpAddr::from((0x0a00_0000 + n).to_be_bytes())));
    let all: BTreeSet<Nlri> = (0..40_000).map(prefix).collect();
    let list: Vec<Nlri> = all.iter().copied().collect();
    // Right after a flush nothing more goes out: the late one comes when all the rest is pending.
    rig.announce(teller, &attributes("10.0.0.2"), &list[..1]);
    rig.announce(teller, &attributes("10.0.0.2"), &list[1..]);
    let late = rig.establish("10.0.0.3", &open(ASN, "10.0.0.3"));
    rig.pass(Duration::from_secs(1));
    for (conn, joins) in [(told, false), (late, true)] {
        let (mut seen, mut ended) = (BTreeSet::new(), BTreeSet::new());
        for update in rig.updates(conn, &INTERNAL) {
            let theirs = update.announced.iter().filter(|(a, _)| a.next_hop == ip("10.0.0.2"));
            for nlri in theirs.flat_map(|(_, prefixes)| prefixes) {
                assert!(ended.is_empty() && seen.insert(*nlri), "{nlri} comes late or twice");
            }
            ended.extend(update.end_of_rib);
        }
        assert!(seen == all, "{} prefixes", seen.len());
        assert_eq!(ended.len(), if joins { 2 } else { 0 });
    }
    // And away again.
    rig.cut(teller);
    rig.pass(Duration::from_secs(1));
    for conn in [told, late] {
        let withdrawn: BTreeSet<Nlri> =
            rig.updates(conn, &INTERNAL).into_iter().flat_map(|update| update.withdrawn).collect();
        assert!(withdrawn == all, "{} prefixes", withdrawn.len());
    }
    assert_eq!(rig.speaker.routes().len(), 2);
}
