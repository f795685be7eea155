//! What a pod may not do to its neighbours and its node, tried with real packets; and that nothing of a pod's traffic
//! reaches the next pod that has its address.

use std::net::{IpAddr, SocketAddr, SocketAddrV6, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket};
use podway_kern::ns::NetNs;
use podway_kern::rtnl::{RouteFilter, Rtnl};
use podway_testkit::place::Place;
use podway_testkit::pod::Sandbox;
use podway_testkit::wait::wait_until;
use serde_json::json;

use crate::host::{Families, Host, PATIENCE, ips};

fn bind(net: &NetNs, address: IpAddr, port: u16) -> UdpSocket {
    let socket = net.run(|| UdpSocket::bind((address, port))).unwrap().unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

/// Packets that the guard's rule with this comment has dropped.
fn dropped(host: &Host, comment: &str) -> u64 {
    let text = host.place.run("nft", &["list", "table", "inet", "podway-guard"]).unwrap();
    let rules = text.lines().filter(|line| line.contains(comment));
    rules
        .filter_map(|line| line.split("counter packets ").nth(1)?.split(' ').next()?.parse::<u64>().ok())
        .sum()
}

/// A neighbour's address on a pod's own interface: what it sends from there is spoofed.
fn steal(host: &Host, thief: &Sandbox, address: IpAddr) {
    let nodad = if address.is_ipv6() { " nodad" } else { "" };
    host.ip_in(&thief.net, &format!("addr add {address} dev eth0{nodad}"));
    // The kernel hands a new IPv6 address to a worker.
    let mut inside = Rtnl::open_in(&thief.net).unwrap();
    wait_until("the address is the thief's", PATIENCE, || Ok(inside.is_local(address)?.then_some(())))
        .unwrap();
}

const SPOOFED: u64 = 20;

#[test]
fn a_pod_cannot_speak_for_its_neighbour() {
    let Some(host) = Host::new("a_pod_cannot_speak_for_its_neighbour", Families::Dual) else { return };
    host.ip("addr add 192.0.2.1/32 dev lo\naddr add 2001:db8::1/128 dev lo");
    for key in ["net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"] {
        host.place.sysctl(key, "1").unwrap();
    }
    let [a, b, thief] = ["a", "b", "thief"].map(|name| host.sandbox(name));
    let [of_a, of_b, _] = [&a, &b, &thief].map(|pod| ips(&host.add(pod)));
    for (i, node) in ["192.0.2.1", "2001:db8::1"].into_iter().enumerate() {
        let node: IpAddr = node.parse().unwrap();
        // A flow between neighbours, established in both directions.
        let (from, to) = (bind(&a.net, of_a[i], 4000), bind(&b.net, of_b[i], 5000));
        let at_node = bind(host.place.net(), node, 6000);
        let mut buffer = [0; 16];
        from.send_to(b"ask", (of_b[i], 5000)).unwrap();
        let (_, peer) = to.recv_from(&mut buffer).unwrap();
        assert_eq!(peer, SocketAddr::from((of_a[i], 4000)));
        to.send_to(b"answer", peer).unwrap();
        from.recv_from(&mut buffer).unwrap();
        // The thief says what the neighbour could say: into the flow, and to the node.
        steal(&host, &thief, of_a[i]);
        let spoofing = bind(&thief.net, of_a[i], 4000);
        let before = dropped(&host, "not its own address");
        for _ in 0..SPOOFED {
            spoofing.send_to(b"spoofed", (of_b[i], 5000)).unwrap();
            spoofing.send_to(b"spoofed", (node, 6000)).unwrap();
        }
        wait_until("the guard has seen them", PATIENCE, || {
            Ok((dropped(&host, "not its own address") >= before + 2 * SPOOFED).then_some(()))
        })
        .unwrap();
        // What comes next is the neighbour's own word.
        from.send_to(b"own", (of_b[i], 5000)).unwrap();
        from.send_to(b"own", (node, 6000)).unwrap();
        for socket in [&to, &at_node] {
            let (length, _) = socket.recv_from(&mut buffer).unwrap();
            assert_eq!(&buffer[..length], b"own", "a spoofed packet arrived");
        }
    }
}

#[test]
fn a_pod_reaches_no_loopback_address_of_its_node() {
    let Some(host) = Host::new("a_pod_reaches_no_loopback_address", Families::Dual) else { return };
    let pod = host.sandbox("p");
    host.add(&pod);
    // The pod's own loopback is in the way of its own packets; without it they leave.
    host.ip_in(&pod.net, "addr del 127.0.0.1/8 dev lo");
    host.ip_in(&pod.net, "route add 127.0.0.1/32 via 169.254.1.1 dev eth0 onlink");
    pod.net.run(|| std::fs::write("/proc/sys/net/ipv4/conf/eth0/route_localnet", "1")).unwrap().unwrap();
    let name = crate::host::host_name(&pod);
    host.place.sysctl(&format!("net.ipv4.conf.{name}.route_localnet"), "1").unwrap();
    let before = dropped(&host, "loopback of the node");
    let socket = bind(&pod.net, "10.244.1.1".parse().unwrap(), 0);
    socket.send_to(b"x", "127.0.0.1:9").unwrap();
    wait_until("the guard has seen it", PATIENCE, || {
        Ok((dropped(&host, "loopback of the node") > before).then_some(()))
    })
    .unwrap();
}

#[test]
fn a_pod_is_no_router_for_its_node() {
    let Some(host) = Host::new("a_pod_is_no_router_for_its_node", Families::Dual) else { return };
    let pod = host.sandbox("p");
    host.add(&pod);
    let index = Rtnl::open_in(&pod.net).unwrap().link("eth0").unwrap().unwrap().index;
    let raw = || {
        let flags = SockFlag::SOCK_CLOEXEC;
        socket(AddressFamily::Inet6, SockType::Raw, flags, SockProtocol::IcmpV6).map(UdpSocket::from)
    };
    let socket: UdpSocket = pod.net.run(raw).unwrap().unwrap();
    let routes = |host: &Host| host.rtnl().routes(RouteFilter::default()).unwrap();
    let before = (routes(&host), dropped(&host, "a pod is no router"));
    // RFC 4861 4.2: lifetime 1800 s, a prefix to go with it; 4.5: fd00::1 is better reached elsewhere.
    let mut advertisement = vec![134, 0, 0, 0, 64, 0, 0x07, 0x08, 0, 0, 0, 0, 0, 0, 0, 0];
    advertisement.extend([3, 4, 64, 0xc0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0x20, 1, 0xd, 0xb8]);
    advertisement.resize(16 + 32, 0);
    let mut redirect = vec![137, 0, 0, 0, 0, 0, 0, 0];
    redirect.resize(8 + 32, 0xfd);
    let everybody = SocketAddrV6::new("ff02::1".parse().unwrap(), 0, 0, index);
    let gateway = SocketAddrV6::new("fe80::1".parse().unwrap(), 0, 0, index);
    // A link-local source: the kernel makes it in a moment.
    wait_until("the pod has a link-local address", PATIENCE, || {
        Ok(socket.send_to(&advertisement, everybody).ok())
    })
    .unwrap();
    for to in [everybody, gateway] {
        socket.send_to(&advertisement, to).unwrap();
        socket.send_to(&redirect, to).unwrap();
    }
    wait_until("the guard has seen them", PATIENCE, || {
        Ok((dropped(&host, "a pod is no router") >= before.1 + 4).then_some(()))
    })
    .unwrap();
    assert_eq!(routes(&host), before.0);
}

/// A policy that lets pods speak and answers come back, and nothing else: what an established entry is worth.
const POLICY: &str = "table inet test-policy { chain forward { type filter hook forward priority filter; \
                      ct state established,related accept; iifgroup 112 accept; oifgroup 112 counter drop; }; }";

/// How the first pod's DEL leaves its address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Leaves {
    Clean,
    /// Without its record DEL does not know the addresses whose connections it would have to end.
    Dirty,
}

fn reuse(leaves: Leaves, test: &str) {
    let Some(host) = Host::new(test, Families::Dual) else { return };
    let outside = Place::new("outside").unwrap();
    host.ip(&format!("link add uplink type veth peer name eth9 netns {}", outside.tid()));
    host.ip(
        "addr add 198.51.100.1/24 dev uplink\naddr add 2001:db8:1::1/64 dev uplink nodad\nlink set uplink up",
    );
    outside
        .ip("addr add 198.51.100.2/24 dev eth9\naddr add 2001:db8:1::2/64 dev eth9 nodad\nlink set eth9 up")
        .unwrap();
    outside.ip("route add default via 198.51.100.1").unwrap();
    outside.run("ip", &["-6", "route", "add", "default", "via", "2001:db8:1::1"]).unwrap();
    for key in ["net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"] {
        host.place.sysctl(key, "1").unwrap();
    }
    host.place.run("nft", &[POLICY]).unwrap();
    for (i, server) in ["198.51.100.2", "2001:db8:1::2"].into_iter().enumerate() {
        let server: IpAddr = server.parse().unwrap();
        let first = host.sandbox("first");
        let address = ips(&host.add(&first))[i];
        // The pod asks; the server answers and never stops.
        let (asks, answers) = (bind(&first.net, address, 4000), bind(outside.net(), server, 5000));
        let mut buffer = [0; 16];
        wait_until("the question arrives", PATIENCE, || {
            asks.send_to(b"ask", (server, 5000)).unwrap();
            answers.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
            Ok(answers.recv_from(&mut buffer).ok())
        })
        .unwrap();
        let (stop, sent) = (AtomicBool::new(false), AtomicU64::new(0));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    // Unreachable while nobody has the address.
                    let _ = answers.send_to(b"old", (address, 4000));
                    sent.fetch_add(1, Ordering::Relaxed);
                    std::thread::sleep(Duration::from_micros(200));
                }
            });
            let _stop = StopOnDrop(&stop);
            let more = |count: u64| {
                let goal = sent.load(Ordering::Relaxed) + count;
                wait_until("the sender goes on", PATIENCE, || {
                    Ok((sent.load(Ordering::Relaxed) >= goal).then_some(()))
                })
                .unwrap();
            };
            asks.recv_from(&mut buffer).unwrap();
            more(100);
            if leaves == Leaves::Dirty {
                host.remove(&format!("/run/podway/endpoints/{}.json", host.records()[0].id));
            }
            host.del(&first);
            more(100);
            // The next pod gets the very address, and listens where the first one did, before its link is there.
            let next = host.sandbox("next");
            let listens = next.net.run(|| UdpSocket::bind("[::]:4000")).unwrap().unwrap();
            listens.set_nonblocking(true).unwrap();
            let wish = json!({"ips": [address.to_string()]});
            host.call("ADD", &next).with("runtimeConfig", wish).run().result();
            more(300);
            let got = listens.recv_from(&mut buffer);
            assert!(got.is_err(), "{leaves:?}: the next pod with {address} received {got:?}");
            host.del(&next);
        });
    }
}

struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn nothing_of_a_sender_that_never_stops_reaches_the_next_pod() {
    reuse(Leaves::Clean, "nothing_of_a_sender_that_never_stops_reaches_the_next_pod");
}

#[test]
fn a_dirty_address_is_cleaned_before_the_next_pod_has_it() {
    reuse(Leaves::Dirty, "a_dirty_address_is_cleaned_before_the_next_pod_has_it");
}
