//! The kernel edge against the kernel, each test in network namespaces of its own. Needs root.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "tests: a failure is a panic, a skip is a line")]

use std::collections::BTreeSet;
use std::net::{IpAddr, UdpSocket};
use std::os::fd::AsFd as _;
use std::process::Command;
use std::time::Duration;

use ipnet::IpNet;
use podway_kern::conntrack::{Conntrack, Destination};
use podway_kern::monitor::{Change, Event, Monitor};
use podway_kern::ns::{self, NetNs, OnParentDeath};
use podway_kern::rtnl::{
    Address, FdbEntry, Ipv4Setting, Link, LinkChange, LinkRef, Neighbour, NextHop, Request, Route,
    RouteFilter, RouteKind, Rtnl, TABLE_MAIN, VethEnd, VxlanSpec,
};
use podway_kern::sysctl::{Family, Sysctl};
use podway_kern::tc::{Tbf, Tc, TcRequest};
use podway_kern::{Errno, KernelError};
use podway_model::ids::MacAddr;

const PROTOCOL: u8 = 112;

/// Runs a test in a fresh network namespace, or says why not.
fn in_fresh_netns(test: &str, run: impl FnOnce() + Send) {
    if !nix::unistd::geteuid().is_root() {
        println!("SKIP {test}: needs root");
        return;
    }
    ns::in_new_netns(run).unwrap();
}

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}
fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}
fn end(name: &str, mac: [u8; 6]) -> VethEnd {
    VethEnd { name: name.to_owned(), mac: Some(MacAddr(mac)), mtu: Some(1400), ..VethEnd::default() }
}
fn up(link: impl Into<LinkRef>) -> Request<'static> {
    Request::SetLink(link.into(), LinkChange { up: Some(true), ..LinkChange::default() })
}

/// A veth pair within the namespace, both ends up, 192.0.2.1/24 and fd00:2::1/64 on `a`. Returns `a`'s index.
fn uplink(rtnl: &mut Rtnl) -> u32 {
    let pair = Request::AddVeth {
        host: end("a", [2, 0, 0, 0, 0, 1]),
        peer: end("b", [2, 0, 0, 0, 0, 2]),
        peer_netns: None,
    };
    rtnl.run_all(&[up("lo"), pair, up("a"), up("b")]).unwrap();
    let index = rtnl.link("a").unwrap().unwrap().index;
    for address in ["192.0.2.1/24", "fd00:2::1/64"] {
        let address = Address { index, address: net(address), no_prefix_route: false };
        rtnl.run(Request::ReplaceAddress(address)).unwrap();
    }
    index
}

#[test]
fn veth_is_born_in_the_other_namespace_under_its_final_name() {
    in_fresh_netns("veth_is_born_in_the_other_namespace_under_its_final_name", || {
        let pod = NetNs::create().unwrap();
        let mut rtnl = Rtnl::open().unwrap();
        let host = VethEnd { group: 112, ..end("pwtest", [2, 0x70, 0x77, 0, 0, 1]) };
        let peer = end("eth0", [2, 1, 2, 3, 4, 5]);
        let alias = "podway/c1/eth0".to_owned();
        let mark = LinkChange {
            alias: Some(alias),
            no_link_local: Some(true),
            ipv4: vec![(Ipv4Setting::ProxyArp, 1), (Ipv4Setting::RpFilter, 0)],
            ..LinkChange::default()
        };
        let pair = Request::AddVeth { host, peer, peer_netns: Some(pod.as_fd()) };
        rtnl.run_all(&[pair, Request::SetLink("pwtest".into(), mark), up("pwtest")]).unwrap();
        for (setting, value) in [(Ipv4Setting::ProxyArp, "1"), (Ipv4Setting::RpFilter, "0")] {
            let sysctl = Sysctl::conf(Family::V4, "pwtest", setting.sysctl_name());
            assert_eq!(sysctl.read().unwrap(), value, "{sysctl}");
        }

        let mut inside = Rtnl::open_in(&pod).unwrap();
        inside.run(up("eth0")).unwrap();
        let link = rtnl.link("pwtest").unwrap().unwrap();
        assert_eq!(link.alias.as_deref(), Some("podway/c1/eth0"));
        assert_eq!((link.group, link.mtu, link.kind.as_deref()), (112, 1400, Some("veth")));
        assert_eq!(link.mac, Some(MacAddr([2, 0x70, 0x77, 0, 0, 1])));
        assert!(link.up && link.lower_up);
        // The operational state follows the carrier in its own time.
        let steady = |link: &Link| Link { operational: true, ..link.clone() };
        let of_group: Vec<Link> = rtnl.links_in_group(112).unwrap().iter().map(steady).collect();
        assert_eq!(of_group, [steady(&link)]);
        assert!(rtnl.addresses(Some(link.index)).unwrap().is_empty(), "a link-local address appeared");

        let eth0 = inside.link("eth0").unwrap().unwrap();
        assert_eq!((eth0.mac, eth0.mtu, eth0.up), (Some(MacAddr([2, 1, 2, 3, 4, 5])), 1400, true));
        assert_eq!(inside.link("pwtest").unwrap(), None);

        rtnl.run(Request::DeleteLink(link.index.into())).unwrap();
        assert_eq!(inside.link("eth0").unwrap(), None);
        let error = rtnl.run(Request::DeleteLink(link.index.into())).unwrap_err();
        assert!(error.is_missing(), "{error}");
    });
}

#[test]
fn a_link_deleted_at_once_is_gone_and_the_socket_goes_on() {
    in_fresh_netns("a_link_deleted_at_once_is_gone_and_the_socket_goes_on", || {
        let mut rtnl = Rtnl::open().unwrap();
        for _ in 0..3 {
            let index = uplink(&mut rtnl);
            rtnl.delete_link_at_once(index).unwrap();
            assert_eq!((rtnl.link("a").unwrap(), rtnl.link("b").unwrap()), (None, None));
            let error = rtnl.run(Request::DeleteLink(index.into())).unwrap_err();
            assert!(error.is_missing(), "{error}");
        }
        // None is fine; one that may not be deleted: the kernel's own answer.
        rtnl.delete_link_at_once(4711).unwrap();
        let lo = rtnl.link("lo").unwrap().unwrap().index;
        assert!(matches!(rtnl.delete_link_at_once(lo), Err(KernelError::Refused { .. })));
        assert!(rtnl.link("lo").unwrap().is_some());
    });
}

#[test]
fn only_network_namespaces_are_opened_and_a_visit_comes_back() {
    in_fresh_netns("only_network_namespaces_are_opened_and_a_visit_comes_back", || {
        for (path, part) in [("/proc/self/ns/mnt", "not a network namespace"), ("/proc", "not a namespace")] {
            let error = NetNs::open(path).unwrap_err().to_string();
            assert!(error.contains(part), "{path}: {error}");
        }
        let (home, other) = (NetNs::current().unwrap(), NetNs::create().unwrap());
        let inside = other.visit(&home, || NetNs::current().unwrap().identity().unwrap()).unwrap();
        assert_eq!(inside, other.identity().unwrap());
        assert_eq!(NetNs::current().unwrap().identity().unwrap(), home.identity().unwrap());
    });
}

#[test]
fn a_refusal_names_the_request_and_the_rest_is_tried() {
    in_fresh_netns("a_refusal_names_the_request_and_the_rest_is_tried", || {
        let mut rtnl = Rtnl::open().unwrap();
        let index = uplink(&mut rtnl);
        let good = |i: u32| {
            let destination = net(&format!("10.{}.{}.0/24", i / 256, i % 256));
            Route {
                gateway: Some(ip("192.0.2.2")),
                interface: Some(index),
                ..Route::to(destination, PROTOCOL)
            }
        };
        // More than one datagram, with a failure in the middle of each and one at the very end.
        let mut requests: Vec<_> = (0..1500).map(|i| Request::AddRoute(good(i))).collect();
        let bad = Route { gateway: Some(ip("198.51.100.1")), ..good(5000) };
        requests.insert(100, Request::AddRoute(bad.clone()));
        requests.insert(900, Request::AddRoute(good(1)));
        requests.push(Request::AddRoute(bad));
        let results = rtnl.batch(&requests).unwrap();
        let failed: Vec<usize> = (0..results.len()).filter(|i| results[*i].is_err()).collect();
        assert_eq!(failed, [100, 900, 1502]);
        let error = results[100].as_ref().unwrap_err();
        assert_eq!(error.errno(), Some(Errno::ENETUNREACH));
        let text = error.to_string();
        assert!(text.starts_with("add route 10.19.136.0/24 via 198.51.100.1"), "{text}");
        assert!(text.contains("gateway"), "the kernel's own words are missing: {text}");
        assert!(results[900].as_ref().unwrap_err().is_exists());
        let filter = RouteFilter { table: Some(TABLE_MAIN), protocol: Some(PROTOCOL) };
        assert_eq!(rtnl.routes(filter).unwrap().len(), 1500);
    });
}

#[test]
fn what_is_programmed_reads_back_equal() {
    in_fresh_netns("what_is_programmed_reads_back_equal", || {
        let mut rtnl = Rtnl::open().unwrap();
        let index = uplink(&mut rtnl);
        let spec = VxlanSpec {
            name: "podway.vxlan".to_owned(),
            vni: 7,
            port: 8472,
            local: ip("192.0.2.1"),
            mac: MacAddr([2, 7, 7, 7, 7, 7]),
            mtu: 1350,
        };
        let quiet = LinkChange { no_link_local: Some(true), ..LinkChange::default() };
        rtnl.run_all(&[
            Request::AddVxlan(spec.clone()),
            Request::SetLink("podway.vxlan".into(), quiet),
            up("podway.vxlan"),
        ])
        .unwrap();
        let vxlan = rtnl.link("podway.vxlan").unwrap().unwrap();
        let params = vxlan.vxlan.unwrap();
        assert_eq!(
            (params.vni, params.port, params.local, params.learning),
            (7, 8472, Some(spec.local), false)
        );
        assert_eq!((vxlan.mtu, vxlan.mac), (1350, Some(spec.mac)));

        let tunnel = [ip("10.244.0.0"), ip("fd00:244::")];
        for address in tunnel {
            rtnl.run(Request::ReplaceAddress(Address::host(vxlan.index, address))).unwrap();
        }
        let addresses: BTreeSet<IpNet> =
            rtnl.addresses(Some(vxlan.index)).unwrap().into_iter().map(|info| info.address).collect();
        assert_eq!(addresses, tunnel.map(IpNet::from).into());

        let peer = MacAddr([2, 8, 8, 8, 8, 8]);
        let neighbours = [ip("10.244.1.0"), ip("fd00:244:1::")].map(|address| Neighbour {
            index: vxlan.index,
            address,
            mac: peer,
        });
        let fdb = FdbEntry { index: vxlan.index, mac: peer, remote: ip("192.0.2.2") };
        rtnl.run_all(&neighbours.map(Request::ReplaceNeighbour)).unwrap();
        rtnl.run(Request::ReplaceFdb(fdb)).unwrap();
        assert_eq!(rtnl.neighbours(vxlan.index).unwrap(), neighbours);
        assert_eq!(rtnl.fdb(vxlan.index).unwrap(), [fdb]);
        // A peer that moves to another underlay address: changed in place, not added to.
        let moved = FdbEntry { remote: ip("192.0.2.3"), ..fdb };
        rtnl.run(Request::ReplaceFdb(moved)).unwrap();
        assert_eq!(rtnl.fdb(vxlan.index).unwrap(), [moved]);

        let hop =
            |id, interface, gateway, onlink| NextHop { id, protocol: PROTOCOL, interface, gateway, onlink };
        let hops = [
            hop(0x7000_0001, index, ip("192.0.2.2"), false),
            hop(0x7000_0002, index, ip("fd00:2::2"), false),
            hop(0x7000_0003, vxlan.index, ip("10.244.1.0"), true),
            hop(0x7000_0004, vxlan.index, ip("fd00:244:1::"), true),
        ];
        rtnl.run_all(&hops.map(Request::ReplaceNextHop)).unwrap();
        let found: Vec<NextHop> = rtnl.next_hops().unwrap().into_iter().filter_map(|n| n.next_hop).collect();
        assert_eq!(found, hops);

        let via = |destination: &str, id: u32, source: Option<IpAddr>| Route {
            next_hop: Some(id),
            source,
            mtu: Some(1350),
            ..Route::to(net(destination), PROTOCOL)
        };
        let reject = |destination: &str, metric| Route {
            kind: RouteKind::Unreachable,
            metric,
            ..Route::to(net(destination), PROTOCOL)
        };
        let mut routes = vec![
            via("10.244.1.0/26", 0x7000_0003, Some(tunnel[0])),
            via("10.244.2.0/26", 0x7000_0001, None),
            via("fd00:244:1::/122", 0x7000_0004, Some(tunnel[1])),
            via("fd00:244:2::/122", 0x7000_0002, None),
            reject("10.244.0.0/16", u32::MAX),
            reject("fd00:244::/48", u32::MAX),
            Route { metric: u32::MAX - 1, ..Route::blackhole(net("10.244.0.0/26"), PROTOCOL) },
            Route { metric: u32::MAX - 1, ..Route::blackhole(net("fd00:244::/122"), PROTOCOL) },
            Route { interface: Some(index), scope_link: true, ..Route::to(net("10.244.0.5/32"), PROTOCOL) },
            Route { interface: Some(index), ..Route::to(net("fd00:244::5/128"), PROTOCOL) },
            Route { kind: RouteKind::Local, interface: Some(index), ..Route::to(net("::1/128"), PROTOCOL) },
            Route {
                interface: Some(index),
                gateway: Some(ip("198.51.100.1")),
                onlink: true,
                ..Route::to(net("10.9.0.0/16"), PROTOCOL)
            },
        ];
        rtnl.run_all(&routes.iter().cloned().map(Request::AddRoute).collect::<Vec<_>>()).unwrap();
        let filter = RouteFilter { table: Some(TABLE_MAIN), protocol: Some(PROTOCOL) };
        let mut found = rtnl.routes(filter).unwrap();
        found.sort_unstable();
        routes.sort_unstable();
        assert_eq!(found, routes);

        // A replaced route keeps its place, a deleted one goes, somebody else's stays.
        let repointed = via("10.244.2.0/26", 0x7000_0003, None);
        rtnl.run(Request::ReplaceRoute(repointed.clone())).unwrap();
        assert!(rtnl.routes(filter).unwrap().contains(&repointed));
        let foreign = Route { protocol: 4, ..reject("10.250.0.0/16", 50) };
        rtnl.run(Request::AddRoute(foreign.clone())).unwrap();
        let error = rtnl.run(Request::DeleteRoute(Route { protocol: PROTOCOL, ..foreign })).unwrap_err();
        assert!(error.is_missing(), "{error}");
        rtnl.run_all(&routes.iter().cloned().map(Request::DeleteRoute).collect::<Vec<_>>()).unwrap();
        assert_eq!(rtnl.routes(filter).unwrap(), []);
        let others = RouteFilter { table: Some(TABLE_MAIN), protocol: Some(4) };
        assert_eq!(rtnl.routes(others).unwrap().len(), 1);
    });
}

#[test]
fn deleting_a_next_hop_takes_its_routes_along() {
    in_fresh_netns("deleting_a_next_hop_takes_its_routes_along", || {
        let mut rtnl = Rtnl::open().unwrap();
        let interface = uplink(&mut rtnl);
        let hop = NextHop {
            id: 0x7000_0009,
            protocol: PROTOCOL,
            interface,
            gateway: ip("192.0.2.2"),
            onlink: false,
        };
        let route = Route { next_hop: Some(hop.id), ..Route::to(net("10.244.1.0/26"), PROTOCOL) };
        rtnl.run_all(&[Request::ReplaceNextHop(hop), Request::AddRoute(route)]).unwrap();
        rtnl.run(Request::DeleteNextHop(hop.id)).unwrap();
        let filter = RouteFilter { table: None, protocol: Some(PROTOCOL) };
        assert_eq!(rtnl.routes(filter).unwrap(), []);
        assert!(rtnl.run(Request::DeleteNextHop(hop.id)).unwrap_err().is_missing());
    });
}

#[test]
fn the_monitor_tells_what_happens_and_who_did_it() {
    in_fresh_netns("the_monitor_tells_what_happens_and_who_did_it", || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut monitor = Monitor::open().unwrap();
            let mut rtnl = Rtnl::open().unwrap();
            let interface = uplink(&mut rtnl);
            let gateway = ip("192.0.2.2");
            let hop = NextHop { id: 0x7000_0001, protocol: PROTOCOL, interface, gateway, onlink: false };
            let route = Route { next_hop: Some(hop.id), ..Route::to(net("10.244.1.0/26"), PROTOCOL) };
            rtnl.run_all(&[Request::ReplaceNextHop(hop), Request::AddRoute(route.clone())]).unwrap();
            rtnl.run(Request::DeleteNextHop(hop.id)).unwrap();
            let mut seen = Vec::new();
            while !seen.contains(&Change::NextHop(Event::Gone, hop.id, PROTOCOL)) {
                for notice in monitor.next().await.unwrap() {
                    if matches!(notice.change, Change::NextHop(..) | Change::Route(..)) && notice.cause != 0 {
                        assert_eq!(notice.cause, rtnl.port());
                    }
                    seen.push(notice.change);
                }
            }
            assert!(seen.contains(&Change::NextHop(Event::Present, hop.id, PROTOCOL)));
            assert!(seen.contains(&Change::Route(Event::Present, Box::new(route))));
            assert!(seen.contains(&Change::Address(Event::Present, interface, ip("192.0.2.1"))));
            let link_up = |c: &Change| matches!(c, Change::Link(Event::Present, l) if l.name == "a" && l.up);
            assert!(seen.iter().any(link_up));
            let facts = podway_kern::facts::read().await.unwrap();
            assert_eq!(facts.interface_of(ip("192.0.2.1")), Some(interface));
            assert_eq!(facts.default_interface(false), None);
            let default = Route {
                gateway: Some(gateway),
                interface: Some(interface),
                ..Route::to(net("0.0.0.0/0"), 4)
            };
            rtnl.run(Request::AddRoute(default)).unwrap();
            assert_eq!(podway_kern::facts::read().await.unwrap().default_interface(false), Some(interface));
        });
    });
}

#[test]
fn connection_tracking_entries_go_by_address() {
    in_fresh_netns("connection_tracking_entries_go_by_address", || {
        // Tracking starts in a namespace with the first rule that needs it.
        let rules = "add table inet t; add chain inet t c { type filter hook output priority 0; }; \
                     add rule inet t c ct state new counter";
        assert!(Command::new("nft").arg(rules).status().unwrap().success());
        Rtnl::open().unwrap().run(up("lo")).unwrap();
        let send = |from: &str, to: &str| {
            let socket = UdpSocket::bind((from, 0)).unwrap();
            socket.send_to(b"x", (to, 9)).unwrap();
        };
        send("127.0.0.1", "127.0.0.2");
        send("127.0.0.3", "127.0.0.4");
        send("::1", "::1");
        let mut conntrack = Conntrack::open().unwrap();
        let one = BTreeSet::from([ip("127.0.0.2")]);
        assert_eq!(conntrack.list(&one).unwrap().len(), 1);
        assert_eq!(conntrack.delete(&one).unwrap(), 1);
        assert_eq!(conntrack.list(&one).unwrap(), []);
        let others = BTreeSet::from([ip("127.0.0.3"), ip("::1")]);
        assert_eq!(conntrack.list(&others).unwrap().len(), 2);
        assert_eq!(conntrack.delete(&others).unwrap(), 2);
        assert_eq!(conntrack.delete(&others).unwrap(), 0);
        // By where the first packet went.
        send("127.0.0.1", "127.0.0.2");
        send("::1", "::1");
        let to = |address: &str, port| Destination { address: ip(address), protocol: 17, port };
        assert_eq!(conntrack.delete_to(|found| *found == to("127.0.0.2", 10)).unwrap(), 0);
        assert_eq!(conntrack.delete_to(|found| *found == to("127.0.0.2", 9)).unwrap(), 1);
        assert_eq!(conntrack.delete_to(|found| *found == to("::1", 9)).unwrap(), 1);
        assert_eq!(conntrack.delete_to(|_| true).unwrap(), 0);
    });
}

#[test]
fn rates_and_redirections_read_back_equal() {
    in_fresh_netns("rates_and_redirections_read_back_equal", || {
        let mut rtnl = Rtnl::open().unwrap();
        let index = uplink(&mut rtnl);
        rtnl.run_all(&[Request::AddIfb { name: "block".to_owned(), mtu: 1400 }, up("block")]).unwrap();
        let block = rtnl.link("block").unwrap().unwrap();
        assert_eq!((block.kind.as_deref(), block.mtu, block.up), (Some("ifb"), 1400, true));
        let mut tc = Tc::open().unwrap();
        assert_eq!((tc.root(index).unwrap(), tc.redirect(index).unwrap()), (None, None));
        let slow = Tbf::new(125_000, 20_000, Duration::from_millis(25));
        let fast = Tbf::new(10_000_000_000, 2_000_000_000, Duration::from_millis(25));
        tc.run_all(&[
            TcRequest::ReplaceRoot(index, slow),
            TcRequest::AddIngress(index),
            TcRequest::AddRedirect(index, block.index),
            TcRequest::ReplaceRoot(block.index, fast),
        ])
        .unwrap();
        assert_eq!((tc.root(index).unwrap(), tc.redirect(index).unwrap()), (Some(slow), Some(block.index)));
        assert_eq!(tc.root(block.index).unwrap(), Some(fast));
        let error = tc.run_all(&[TcRequest::AddIngress(index)]).unwrap_err();
        assert!(error.is_exists() && error.to_string().contains("add ingress qdisc to link"), "{error}");
        tc.run_all(&[TcRequest::ReplaceRoot(index, fast)]).unwrap();
        assert_eq!(tc.root(index).unwrap(), Some(fast));
        tc.run_all(&[TcRequest::DeleteRoot(index), TcRequest::DeleteIngress(index)]).unwrap();
        assert_eq!((tc.root(index).unwrap(), tc.redirect(index).unwrap()), (None, None));
    });
}

#[test]
fn sysctls_are_those_of_the_namespace_and_errors_name_the_path() {
    in_fresh_netns("sysctls_are_those_of_the_namespace_and_errors_name_the_path", || {
        let forward = Sysctl::new("net/ipv4/ip_forward");
        forward.write("1").unwrap();
        let other = NetNs::create().unwrap();
        other.run(|| forward.write("0").unwrap()).unwrap();
        assert_eq!(forward.read().unwrap(), "1");
        assert!(!forward.ensure("1").unwrap());
        let error = Sysctl::conf(Family::V4, "no.such", "rp_filter").read().unwrap_err();
        assert!(error.to_string().contains("/proc/sys/net/ipv4/conf/no.such/rp_filter"), "{error}");
        assert!(error.is_missing());
    });
}

#[test]
fn a_pinned_namespace_lives_until_unpinned_and_runs_processes() {
    in_fresh_netns("a_pinned_namespace_lives_until_unpinned_and_runs_processes", || {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pod");
        let made = NetNs::create_pinned(&path).unwrap().identity().unwrap();
        let again = NetNs::open(&path).unwrap();
        assert_eq!(again.identity().unwrap(), made);
        assert_ne!(NetNs::current().unwrap().identity().unwrap(), made);
        assert_eq!(again.run(|| NetNs::current().unwrap().identity().unwrap()).unwrap(), made);

        let namespaces =
            ns::Namespaces { net: Some(again.as_fd().try_clone_to_owned().unwrap()), ..Default::default() };
        let mut command = ns::command_in("readlink", namespaces, OnParentDeath::Kill);
        let output = command.arg("/proc/self/ns/net").output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert_eq!(text.trim(), format!("net:[{}]", made.1));

        drop(again);
        NetNs::unpin(&path).unwrap();
        NetNs::unpin(&path).unwrap();
        std::fs::write(&path, "").unwrap();
        assert!(matches!(NetNs::open(&path), Err(KernelError::Malformed { .. })));
    });
}
