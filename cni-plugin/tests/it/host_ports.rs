//! Host ports with real packets: from everywhere, for as long as the pod lives, and not a packet longer.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use podway_kern::ns::NetNs;
use podway_testkit::probe::Kind;
use podway_testkit::wait::wait_until_ok;
use serde_json::{Value, json};
use socket2::{Domain, Protocol, Socket, Type};

use crate::node::{Node, Pod, answer, closed, on_a_node};

const PATIENCE: Duration = Duration::from_secs(30);
const LOOPBACK: [IpAddr; 2] = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];

fn ports(list: Value) -> Value {
    json!({ "portMappings": list })
}

fn udp_to_80(port: u16) -> Value {
    ports(json!([{"hostPort": port, "containerPort": 80, "protocol": "udp"}]))
}

fn by(pod: &str, seen: IpAddr) -> Option<(String, IpAddr)> {
    Some((pod.to_owned(), seen))
}

#[test]
fn host_ports_lead_to_the_pod_from_everywhere() {
    on_a_node("host_ports_lead_to_the_pod_from_everywhere", |node| {
        let web = node.pod(
            "web",
            ports(json!([
                {"hostPort": 8080, "containerPort": 80, "protocol": "tcp"},
                {"hostPort": 8080, "containerPort": 80, "protocol": "udp"}
            ])),
        );
        let neighbour = node.pod("neighbour", json!({}));
        for kind in [Kind::Tcp(8080), Kind::Udp(8080)] {
            for family in [0, 1] {
                let to = node.addresses[family];
                let seen = |from| answer(from, to, kind);
                assert_eq!(
                    seen(node.other.net()),
                    by("web", node.others[family]),
                    "another node, {to} {kind}"
                );
                assert_eq!(seen(node.place.net()), by("web", to), "the node, {to} {kind}");
                assert_eq!(seen(web.net()), by("web", to), "the pod itself, {to} {kind}");
                let own = neighbour.addresses[family];
                assert_eq!(seen(neighbour.net()), by("web", own), "another pod, {to} {kind}");
                let loopback = answer(node.place.net(), LOOPBACK[family], kind);
                assert_eq!(loopback, by("web", to), "loopback, {} {kind}", LOOPBACK[family]);
            }
        }
        // What goes through the node to somebody else's port is not touched.
        assert!(closed(neighbour.net(), node.others[0], Kind::Tcp(8080)));
        node.check(&web).unwrap();
        node.check(&neighbour).unwrap();
    });
}

#[test]
fn several_pods_are_reached_by_loopback() {
    on_a_node("several_pods_are_reached_by_loopback", |node| {
        let [a, b, c] = ["a", "b", "c"].map(|name| node.pod(name, udp_to_80(u16::from(name.as_bytes()[0]))));
        let reached = |name: &str| {
            let kind = Kind::Udp(u16::from(name.as_bytes()[0]));
            LOOPBACK.map(|to| answer(node.place.net(), to, kind).map(|(name, _)| name))
        };
        for (pod, name) in [(&a, "a"), (&b, "b"), (&c, "c")] {
            node.check(pod).unwrap();
            assert_eq!(reached(name), [Some(name.to_owned()), Some(name.to_owned())]);
        }
        node.del(&b.sandbox.attachment);
        for (pod, name) in [(&a, "a"), (&c, "c")] {
            node.check(pod).unwrap();
            assert_eq!(reached(name), [Some(name.to_owned()), Some(name.to_owned())]);
        }
        assert!(LOOPBACK.iter().all(|to| closed(node.place.net(), *to, Kind::Udp(u16::from(b'b')))));
    });
}

#[test]
fn a_host_port_is_open_on_the_address_that_was_asked_for_only() {
    on_a_node("a_host_port_is_open_on_the_address_that_was_asked_for_only", |node| {
        let [v4, v6] = node.addresses;
        let one = |port: u16, ip: String| json!({"hostPort": port, "containerPort": 81, "hostIP": ip});
        let pod = node.pod(
            "one",
            ports(json!([
                one(8001, "127.0.0.1".to_owned()),
                one(8002, "::1".to_owned()),
                one(8003, v4.to_string()),
                one(8004, v6.to_string()),
                one(8005, "0.0.0.0".to_owned()),
                one(8006, "::".to_owned())
            ])),
        );
        let all = [LOOPBACK[0], LOOPBACK[1], v4, v6];
        for (port, open) in [
            (8001, [true, false, false, false]),
            (8002, [false, true, false, false]),
            (8003, [false, false, true, false]),
            (8004, [false, false, false, true]),
            (8005, [true, false, true, false]),
            (8006, [false, true, false, true]),
        ] {
            for (to, open) in all.into_iter().zip(open) {
                let kind = Kind::Tcp(port);
                if open {
                    assert!(answer(node.place.net(), to, kind).is_some(), "{to} {kind}");
                } else {
                    assert!(closed(node.place.net(), to, kind), "{to} {kind}");
                }
            }
        }
        assert!(answer(node.other.net(), v4, Kind::Tcp(8003)).is_some());
        assert!(answer(node.other.net(), v6, Kind::Tcp(8004)).is_some());
        assert!(closed(node.other.net(), v4, Kind::Tcp(8001)));
        node.check(&pod).unwrap();
    });
}

#[test]
fn the_table_of_host_ports_lists_as_it_is_written() {
    on_a_node("the_table_of_host_ports_lists_as_it_is_written", |node| {
        let pod = node.pod(
            "p",
            ports(json!([
                {"hostPort": 1, "containerPort": 2, "protocol": "SCTP"},
                {"hostPort": 3, "containerPort": 4, "hostIP": "172.30.0.10"},
                {"hostPort": 5, "containerPort": 6, "hostIP": "fd00:30::10", "protocol": "UDP"}
            ])),
        );
        let path = format!("/run/podway/endpoints/{}.json", id_of(&pod));
        let record = node.enter(|| std::fs::read(path).unwrap());
        let record = serde_json::from_slice(&record).unwrap();
        let (listed, text) = (node.ports(), podway_nft::tables::ports([&record]).to_string());
        let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(words(&listed), words(&text), "{listed}\n{text}");
        assert!(listed.contains("sctp . 1 : "), "{listed}");
    });
}

/// A listening SCTP socket in a namespace, bound to one address: an association of several addresses does not go through
/// a translation. It answers each association with the address that it sees.
fn sctp_server(net: &NetNs, at: SocketAddr) -> std::io::Result<()> {
    let socket = net.run(|| sctp_socket(at)).unwrap()?;
    socket.listen(8)?;
    std::thread::spawn(move || {
        while let Ok((stream, from)) = socket.accept() {
            let _ = (&stream).write_all(from.as_socket().unwrap().ip().to_string().as_bytes());
        }
    });
    Ok(())
}

fn sctp_socket(at: SocketAddr) -> std::io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(at), Type::STREAM, Some(Protocol::SCTP))?;
    socket.bind(&at.into())?;
    Ok(socket)
}

/// The address that the server saw; none: nobody answers.
fn sctp_answer(from: &NetNs, own: IpAddr, to: SocketAddr) -> Option<IpAddr> {
    let ask = || -> std::io::Result<String> {
        let socket = sctp_socket(SocketAddr::new(own, 0))?;
        socket.set_read_timeout(Some(Duration::from_secs(5)))?;
        socket.connect_timeout(&to.into(), Duration::from_secs(5))?;
        let mut buffer = [0; 64];
        let count = (&socket).read(&mut buffer)?;
        Ok(String::from_utf8_lossy(&buffer[..count]).into_owned())
    };
    from.run(ask).unwrap().ok()?.parse().ok()
}

#[test]
fn sctp_ports_lead_to_the_pod() {
    let test = "sctp_ports_lead_to_the_pod";
    let any = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 0);
    if sctp_socket(any).is_err_and(|e| e.raw_os_error() == Some(libc::EPROTONOSUPPORT)) {
        println!("SKIP {test}: no sctp in this kernel");
        return;
    }
    on_a_node(test, |node| {
        let port = json!([{"hostPort": 9100, "containerPort": 9000, "protocol": "sctp"}]);
        let (pod, neighbour) = (node.pod("p", ports(port)), node.pod("neighbour", json!({})));
        for (family, own) in pod.addresses.iter().enumerate() {
            wait_until_ok("the pod listens", PATIENCE, || {
                Ok(sctp_server(pod.net(), SocketAddr::new(*own, 9000))?)
            })
            .unwrap();
            let to = SocketAddr::new(node.addresses[family], 9100);
            let (other, near) = (node.others[family], neighbour.addresses[family]);
            assert_eq!(sctp_answer(node.other.net(), other, to), Some(other), "from another machine");
            assert_eq!(sctp_answer(neighbour.net(), near, to), Some(near), "from a pod");
            let here = sctp_answer(node.place.net(), node.addresses[family], to);
            assert!(here.is_some(), "from the node");
            let wrong = SocketAddr::new(node.addresses[family], 9101);
            assert_eq!(sctp_answer(node.other.net(), other, wrong), None, "a port that is not open");
        }
        let v4 = node.addresses[0];
        node.del(&pod.sandbox.attachment);
        assert_eq!(
            sctp_answer(node.other.net(), node.others[0], SocketAddr::new(v4, 9100)),
            None,
            "after DEL"
        );
    });
}

fn id_of(pod: &Pod) -> String {
    let attachment = &pod.sandbox.attachment;
    podway_model::names::attachment_id(&attachment.container_id, &attachment.ifname)
}

#[test]
fn loopback_is_open_to_nobody_else() {
    on_a_node("loopback_is_open_to_nobody_else", |node| {
        let localnet = |pod: &Pod| {
            node.sh(&format!("cat /proc/sys/net/ipv4/conf/{}/route_localnet", pod.host_ifname())).trim()
                == "1"
        };
        let loopback = node.pod("loopback", udp_to_80(9000));
        let outer = node.addresses[0].to_string();
        let outside = [json!({"hostPort": 9001, "containerPort": 80, "hostIP": outer})];
        let outside = node.pod("outside", ports(json!(outside)));
        assert!(localnet(&loopback) && !localnet(&outside));

        // A service of the node's loopback, and a pod that routes 127.0.0.1 and ::1 to the node.
        let listener = node.place.net().run(|| UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 7)).unwrap()).unwrap();
        listener.set_read_timeout(Some(PATIENCE)).unwrap();
        let send = || {
            for (sysctl, value) in [("ipv4/conf/all/route_localnet", "1"), ("ipv4/conf/all/rp_filter", "0")] {
                std::fs::write(format!("/proc/sys/net/{sysctl}"), value).unwrap();
            }
            let routes = [
                "ip route del table local local 127.0.0.0/8 dev lo",
                "ip route del table local local 127.0.0.1 dev lo",
                "ip route add 127.0.0.1 via 169.254.1.1 dev eth0 onlink",
                "ip -6 addr del ::1/128 dev lo",
                "ip -6 route add ::1 via fe80::1 dev eth0",
            ];
            for route in routes {
                let done = std::process::Command::new("sh").args(["-c", route]).status().unwrap();
                assert!(done.success(), "{route}");
            }
            for (to, text) in
                [(LOOPBACK[0], "loopback"), (LOOPBACK[1], "loopback"), (node.addresses[0], "end")]
            {
                let from: IpAddr =
                    if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
                UdpSocket::bind((from, 0)).unwrap().send_to(text.as_bytes(), (to, 7)).unwrap();
            }
        };
        loopback.net().run(send).unwrap();
        // One wire, one order: what was sent before the last packet comes before it, or never.
        let mut text = [0; 8];
        let length = listener.recv(&mut text).unwrap();
        assert_eq!(String::from_utf8_lossy(&text[..length]), "end", "a pod reached the node's loopback");
        // The guard drops the IPv4 packet; the kernel takes ::1 from no wire.
        let guard = node.sh("nft list table inet podway-guard");
        assert!(guard.contains("ip daddr 127.0.0.0/8 counter packets 1 "), "{guard}");
    });
}

/// Sends on one socket until `pod` answers.
fn wait_for_answer(socket: &UdpSocket, pod: &str) {
    wait_until_ok(&format!("{pod} answers"), PATIENCE, || {
        socket.send(b"who are you")?;
        let mut text = [0; 64];
        let length = socket.recv(&mut text)?;
        let text = String::from_utf8_lossy(&text[..length]).into_owned();
        anyhow::ensure!(text.starts_with(pod), "{text}");
        Ok(())
    })
    .unwrap();
}

#[test]
fn a_udp_flow_follows_its_host_port_to_the_next_pod() {
    on_a_node("a_udp_flow_follows_its_host_port_to_the_next_pod", |node| {
        // The first pod turns connection tracking on.
        let _first = node.pod("first", json!({}));
        for (from, to) in [
            (node.other.net(), node.addresses[0]),
            (node.other.net(), node.addresses[1]),
            (node.place.net(), LOOPBACK[0]),
            (node.place.net(), LOOPBACK[1]),
        ] {
            let any: IpAddr =
                if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
            let socket = from.run(|| UdpSocket::bind((any, 0)).unwrap()).unwrap();
            socket.connect((to, 5300)).unwrap();
            socket.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
            // Nobody serves the port yet, and the flow is known to lead nowhere.
            let _ = socket.send(b"early");
            let a = node.pod("pod-a", udp_to_80(5300));
            wait_for_answer(&socket, "pod-a");
            node.del(&a.sandbox.attachment);
            let _ = socket.send(b"nobody is there");
            let b = node.pod("pod-b", udp_to_80(5300));
            wait_for_answer(&socket, "pod-b");
            node.del(&b.sandbox.attachment);
            let left = node.sh("cat /proc/net/nf_conntrack 2>/dev/null || true");
            assert!(!left.contains(&a.addresses[0].to_string()), "{left}");
        }
    });
}

fn open_ports(node: &Node) -> usize {
    node.ports().matches(" . 80").count()
}

#[test]
fn an_occupied_host_port_names_its_holder_and_undoes_the_add() {
    on_a_node("an_occupied_host_port_names_its_holder_and_undoes_the_add", |node| {
        let holder = node.pod("holder", udp_to_80(53));
        let late = node.sandbox(
            "late",
            ports(json!([
                {"hostPort": 54, "containerPort": 80, "protocol": "udp"},
                {"hostPort": 53, "containerPort": 80, "protocol": "udp", "hostIP": "127.0.0.1"}
            ])),
        );
        let before = (node.ports(), node.sh("ls /run/podway/endpoints; ip -br link | wc -l"));
        let error = node.try_add(&late).unwrap_err();
        let part = "host port udp 127.0.0.1:53 is held by pod default/holder, container default-holder-";
        assert!(error.message.contains(part), "{error}");
        assert_eq!(before, (node.ports(), node.sh("ls /run/podway/endpoints; ip -br link | wc -l")));
        assert_eq!(answer(node.place.net(), LOOPBACK[0], Kind::Udp(53)).unwrap().0, "holder");
        // Another protocol is another port.
        let tcp = node.pod("tcp", ports(json!([{"hostPort": 53, "containerPort": 80}])));
        node.del(&holder.sandbox.attachment);
        node.try_add(&late).unwrap();
        node.del(&tcp.sandbox.attachment);
        node.del(&late.attachment);
        assert_eq!(open_ports(node), 0, "{}", node.ports());
    });
}

#[test]
fn of_several_at_once_one_gets_the_host_port() {
    on_a_node("of_several_at_once_one_gets_the_host_port", |node| {
        let all: Vec<_> = (0..8).map(|i| node.sandbox(&format!("p{i}"), udp_to_80(99))).collect();
        let won: usize = std::thread::scope(|scope| {
            let started: Vec<_> = all
                .iter()
                .map(|sandbox| scope.spawn(|| usize::from(node.try_add(sandbox).is_ok())))
                .collect();
            started.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        assert_eq!((won, open_ports(node)), (1, 2), "{}", node.ports());
    });
}

#[test]
fn bad_port_mappings_are_refused_with_field_and_value() {
    on_a_node("bad_port_mappings_are_refused_with_field_and_value", |node| {
        for (mapping, part) in [
            (json!({"hostPort": 1, "containerPort": 1, "hostIP": "banana"}), "hostIP: \"banana\" found"),
            (json!({"hostPort": 70000, "containerPort": 1}), "portMappings[0].hostPort: 70000 found"),
        ] {
            let error = node.try_add(&node.sandbox("bad", ports(json!([mapping])))).unwrap_err();
            assert_eq!(error.code, 7);
            assert!(error.message.contains(part), "{error}");
        }
        assert_eq!(node.sh("ls /run/podway/endpoints 2>/dev/null | wc -l").trim(), "0");
    });
}

#[test]
fn del_and_gc_close_host_ports_without_being_told_which() {
    on_a_node("del_and_gc_close_host_ports_without_being_told_which", |node| {
        let make = |i: u16| node.pod(&format!("p{i}"), udp_to_80(4000 + i));
        let [deleted, collected, kept, broken] = [1, 2, 3, 4].map(make);
        assert_eq!(open_ports(node), 8, "{}", node.ports());
        node.del(&deleted.sandbox.attachment);
        node.del(&deleted.sandbox.attachment);
        // The record is lost: what leads to the lease's addresses is closed.
        node.sh(&format!("echo '{{' > /run/podway/endpoints/{}.json", id_of(&broken)));
        node.del(&broken.sandbox.attachment);
        assert_eq!(open_ports(node), 4, "{}", node.ports());
        node.gc(&[&kept.sandbox.attachment]);
        let listed = node.ports();
        assert!(listed.contains("udp . 4003") && !listed.contains("udp . 4002"), "{listed}");
        assert_eq!(open_ports(node), 2, "{listed}");
        drop(collected);
        assert_eq!(answer(node.other.net(), node.addresses[0], Kind::Udp(4003)).unwrap().0, "p3");
        // A flush by somebody else does not keep DEL from its work.
        node.sh("nft flush ruleset");
        node.del(&kept.sandbox.attachment);
        assert_eq!(node.sh("ls /run/podway/endpoints | wc -l").trim(), "0");
    });
}

#[test]
fn an_add_after_a_foreign_flush_opens_the_ports_of_all() {
    on_a_node("an_add_after_a_foreign_flush_opens_the_ports_of_all", |node| {
        let _a = node.pod("a", udp_to_80(4001));
        node.sh("nft flush ruleset");
        let _b = node.pod("b", udp_to_80(4002));
        for (port, name) in [(4001, "a"), (4002, "b")] {
            assert_eq!(answer(node.other.net(), node.addresses[0], Kind::Udp(port)).unwrap().0, name);
        }
    });
}

#[test]
fn an_add_again_opens_what_it_is_asked_for_now() {
    on_a_node("an_add_again_opens_what_it_is_asked_for_now", |node| {
        let pod = node.pod("again", udp_to_80(4001));
        let mut sandbox = pod.sandbox;
        sandbox.attachment.capability_args = udp_to_80(4002).as_object().unwrap().clone();
        node.try_add(&sandbox).unwrap();
        let listed = node.ports();
        assert!(listed.contains("udp . 4002") && !listed.contains("udp . 4001"), "{listed}");
    });
}

#[test]
fn check_sees_host_ports_that_are_gone() {
    on_a_node("check_sees_host_ports_that_are_gone", |node| {
        let pod = node.pod("p", udp_to_80(4001));
        let (host, v4) = (pod.host_ifname().to_owned(), pod.addresses[0]);
        node.check(&pod).unwrap();
        for (damage, repair, part) in [
            (
                "nft delete element inet podway-ports any4 '{ udp . 4001 }'".to_owned(),
                format!("nft add element inet podway-ports any4 '{{ udp . 4001 : {v4} . 80 }}'"),
                "host port udp 4001, IPv4, is not open".to_owned(),
            ),
            (
                format!("nft delete element inet podway-ports hairpin4 '{{ {v4} . {v4} }}'"),
                format!("nft add element inet podway-ports hairpin4 '{{ {v4} . {v4} }}'"),
                format!("{v4} is not known to reach itself"),
            ),
            (
                format!("echo 0 > /proc/sys/net/ipv4/conf/{host}/route_localnet"),
                format!("echo 1 > /proc/sys/net/ipv4/conf/{host}/route_localnet"),
                "route_localnet: 0 found, 1 expected".to_owned(),
            ),
            (
                format!("ip -6 route del local ::1 dev {host} table local"),
                format!(
                    "ip -6 route add local ::1 dev {host} table local proto 113 metric $(ip -o link show {host} | cut -d: -f1)"
                ),
                "route local ::1/128".to_owned(),
            ),
            ("nft flush chain inet podway-ports output".to_owned(), String::new(), "chain output".to_owned()),
            ("nft delete table inet podway-ports".to_owned(), String::new(), "is missing".to_owned()),
        ] {
            node.sh(&damage);
            let error = node.check(&pod).unwrap_err();
            assert!(error.to_string().contains(&part), "{damage}: {error}");
            if !repair.is_empty() {
                node.sh(&repair);
                node.check(&pod).unwrap();
            }
        }
    });
}
