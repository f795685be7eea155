//! Rates with real packets: what exceeds them is held back or lost, in the direction that was asked for only.

use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::time::Duration;

use podway_kern::ns::NetNs;
use podway_testkit::probe::Kind;
use podway_testkit::wait::wait_until_ok;
use serde_json::{Value, json};

use crate::node::{Node, Pod, answer, on_a_node};

const PATIENCE: Duration = Duration::from_secs(30);
/// Datagrams of a burst that exceeds any bucket of these tests.
const BURST: usize = 100;

fn rates(rates: Value) -> Value {
    json!({ "bandwidth": rates })
}

/// 80 kbit/s, and 20 kB at once.
fn slow(direction: &str) -> Value {
    json!({ format!("{direction}Rate"): 80_000, format!("{direction}Burst"): 160_000 })
}

fn ifb_of(pod: &Pod) -> String {
    pod.host_ifname().replacen("pw", "pwi", 1)
}

/// Packets that a device's bucket has let pass, and those that it has dropped; none without a bucket.
fn bucket(node: &Node, device: &str) -> Option<(u64, u64)> {
    let listed = node.sh(&format!("tc -s -j qdisc show dev {device} 2>/dev/null || echo '[]'"));
    let listed: Value = serde_json::from_str(&listed).unwrap();
    let root = listed.as_array().unwrap().iter().find(|qdisc| qdisc["kind"] == "tbf")?;
    Some((root["packets"].as_u64()?, root["drops"].as_u64()?))
}

/// Sends a burst of kilobytes to the discard port.
fn burst(from: &NetNs, to: IpAddr) {
    let socket = from.run(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap()).unwrap();
    for _ in 0..BURST {
        // The sender may be told that nobody listens.
        let _ = socket.send_to(&[0; 1000], (to, 9));
    }
}

fn wait_for_drops(node: &Node, device: &str) {
    wait_until_ok("the bucket has run over", PATIENCE, || {
        let (_, dropped) = bucket(node, device).ok_or_else(|| anyhow::anyhow!("no bucket"))?;
        anyhow::ensure!(dropped > 10, "{dropped} were dropped");
        Ok(())
    })
    .unwrap();
}

#[test]
fn what_a_pod_receives_is_held_to_its_rate() {
    on_a_node("what_a_pod_receives_is_held_to_its_rate", |node| {
        let pod = node.pod("p", rates(slow("ingress")));
        let host = pod.host_ifname();
        node.check(&pod).unwrap();
        assert!(answer(node.place.net(), pod.addresses[0], Kind::Tcp(80)).is_some());
        burst(pod.net(), node.addresses[0]);
        assert_eq!(bucket(node, host).unwrap().1, 0, "what it sends is not limited");
        assert_eq!(bucket(node, &ifb_of(&pod)), None);
        burst(node.place.net(), pod.addresses[0]);
        wait_for_drops(node, host);
        node.del(&pod.sandbox.attachment);
        assert!(!node.sh("ip -br link").contains("pw"));
    });
}

#[test]
fn what_a_pod_sends_is_held_to_its_rate() {
    on_a_node("what_a_pod_sends_is_held_to_its_rate", |node| {
        let pod = node.pod("p", rates(slow("egress")));
        let (host, ifb) = (pod.host_ifname(), ifb_of(&pod));
        node.check(&pod).unwrap();
        for (address, to) in pod.addresses.iter().zip(node.addresses) {
            assert!(answer(node.place.net(), *address, Kind::Tcp(80)).is_some());
            let free = node.pod("server", json!({}));
            assert_eq!(
                answer(pod.net(), free.addresses[usize::from(to.is_ipv6())], Kind::Udp(80)).unwrap().1,
                *address
            );
            node.del(&free.sandbox.attachment);
        }
        burst(node.place.net(), pod.addresses[0]);
        assert_eq!(
            (bucket(node, host), bucket(node, &ifb).unwrap().1),
            (None, 0),
            "what it receives is not limited"
        );
        burst(pod.net(), node.addresses[0]);
        wait_for_drops(node, &ifb);
        node.del(&pod.sandbox.attachment);
        node.del(&pod.sandbox.attachment);
        assert!(!node.sh("ip -br link").contains("pw"), "{}", node.sh("ip -br link"));
    });
}

#[test]
fn the_guard_sees_what_was_held_back() {
    on_a_node("the_guard_sees_what_was_held_back", |node| {
        let pod = node.pod("p", rates(slow("egress")));
        let foreign = "10.99.0.1";
        pod.net()
            .run(|| {
                let add = format!("ip addr add {foreign}/32 dev eth0");
                assert!(std::process::Command::new("sh").args(["-c", &add]).status().unwrap().success());
                let socket = UdpSocket::bind((foreign, 0)).unwrap();
                socket.send_to(b"x", (node.addresses[0], 9)).unwrap();
            })
            .unwrap();
        wait_until_ok("the packet is dropped as one of the pod", PATIENCE, || {
            let guard = node.sh("nft list table inet podway-guard | grep 'not its own address'");
            anyhow::ensure!(!guard.contains("packets 0 "), "{guard}");
            Ok(())
        })
        .unwrap();
    });
}

#[test]
fn gc_and_a_second_add_leave_no_device_of_rates_behind() {
    on_a_node("gc_and_a_second_add_leave_no_device_of_rates_behind", |node| {
        let devices = || node.sh("ip -br link | grep -c ^pwi || true").trim().to_owned();
        let pod = node.pod("p", rates(slow("egress")));
        assert_eq!(devices(), "1");
        node.try_add(&pod.sandbox).unwrap();
        assert_eq!(devices(), "1");
        let free = json!({}).as_object().unwrap().clone();
        let mut sandbox = pod.sandbox;
        sandbox.attachment.capability_args = free;
        node.try_add(&sandbox).unwrap();
        assert_eq!(devices(), "0", "an ADD without rates ends those of the ADD before");
        sandbox.attachment.capability_args = rates(slow("egress")).as_object().unwrap().clone();
        node.try_add(&sandbox).unwrap();
        // The namespace went with its veth; the record is all that is left.
        node.sh(&format!("ip link del {}", pod.result["interfaces"][0]["name"].as_str().unwrap()));
        node.gc(&[]);
        assert_eq!((devices().as_str(), node.sh("ls /run/podway/endpoints").as_str()), ("0", ""));
    });
}

#[test]
fn check_compares_rates() {
    on_a_node("check_compares_rates", |node| {
        let mut both = slow("ingress");
        both.as_object_mut().unwrap().extend(slow("egress").as_object().unwrap().clone());
        let pod = node.pod("p", rates(both));
        let (host, ifb) = (pod.host_ifname().to_owned(), ifb_of(&pod));
        node.check(&pod).unwrap();
        let tbf = "root handle 1: tbf rate 90kbit burst 20000b latency 25ms";
        for (damage, part) in [
            (format!("tc qdisc replace dev {host} {tbf}"), format!("{host}: tbf rate 11250")),
            (format!("tc qdisc del dev {host} root"), format!("{host}: no rate found")),
            (format!("tc qdisc replace dev {ifb} {tbf}"), format!("{ifb}: tbf rate 11250")),
            (format!("tc filter del dev {host} ingress"), format!("what comes in is not sent on to {ifb}")),
            (format!("tc qdisc del dev {host} ingress"), format!("what comes in is not sent on to {ifb}")),
            (format!("ip link set {ifb} down"), format!("{ifb}: is down")),
            (format!("ip link del {ifb}"), format!("{ifb}: is missing")),
        ] {
            node.sh(&damage);
            let error = node.check(&pod).unwrap_err().to_string();
            assert!(error.contains(&part), "{damage}: {error}");
        }
    });
}

#[test]
fn bad_rates_are_refused_and_leave_nothing() {
    on_a_node("bad_rates_are_refused_and_leave_nothing", |node| {
        for (asked, part) in [
            (json!({"ingressRate": 1000}), "ingressRate: 1000 found, ingressBurst beside it"),
            (
                json!({"egressRate": 8000, "egressBurst": 8000}),
                "egressBurst: 8000 found, at least 12112 bits",
            ),
        ] {
            let error = node.try_add(&node.sandbox("bad", rates(asked))).unwrap_err();
            assert_eq!(error.code, 7);
            assert!(error.message.contains(part), "{error}");
        }
        assert!(!node.sh("ip -br link").contains("pw"));
    });
}
