//! CHECK sees each part that is damaged, one at a time, and names it; repaired, it is content again.

use podway_model::names::{IPAM_DIR, host_ifalias};
use podway_testkit::pod::Sandbox;
use serde_json::Value;

use crate::host::{Families, Host, host_name};

struct Bench {
    host: Host,
    pod: Sandbox,
    result: Value,
}

impl Bench {
    fn new() -> Option<Self> {
        let host = Host::new("check_sees_each_damaged_part", Families::Dual)?;
        let pod = host.sandbox("p");
        let result = host.add(&pod);
        Some(Self { host, pod, result })
    }

    /// Damages, expects CHECK to name it, repairs, expects CHECK to be content.
    fn damage(&self, part: &str, damage: impl FnOnce(), repair: impl FnOnce()) {
        self.host.check(&self.pod, &self.result).done();
        damage();
        let said = self.host.check(&self.pod, &self.result).error(101);
        assert!(said.contains(part), "{part:?} is not in: {said}");
        repair();
        let answer = self.host.check(&self.pod, &self.result);
        assert_eq!(answer.code, Some(0), "after repairing {part}: {:?}", answer.text);
    }

    fn on_node(&self, part: &str, damage: &str, repair: &str) {
        self.damage(part, || self.ip(damage), || self.ip(repair));
    }

    fn ip(&self, line: &str) {
        let words: Vec<&str> = line.split(' ').collect();
        self.host.place.run("ip", &words).unwrap();
    }

    fn in_pod(&self, part: &str, damage: &[&str], repair: &[&str]) {
        let run = |lines: &[&str]| lines.iter().for_each(|line| self.host.ip_in(&self.pod.net, line));
        self.damage(part, || run(damage), || run(repair));
    }

    fn sysctl_on_node(&self, key: &str, bad: &str, good: &str) {
        let set = |value: &str| self.host.place.sysctl(key, value).unwrap();
        self.damage(&key.replace('.', "/"), || set(bad), || set(good));
    }

    fn file(&self, path: &str, part: &str, change: impl FnOnce(&str) -> Option<String>) {
        let good = self.host.read(path);
        let damage = || match change(&good) {
            Some(bad) => self.host.write(path, &bad),
            None => self.host.remove(path),
        };
        self.damage(part, damage, || self.host.write(path, &good));
    }
}

#[test]
fn check_sees_each_damaged_part_on_the_node() {
    let Some(bench) = Bench::new() else { return };
    let name = host_name(&bench.pod);
    let n = |text: &str| text.replace("HOST", &name);
    let alias = host_ifalias(&bench.pod.attachment.container_id, "eth0");
    bench.on_node(
        &n("HOST: alias"),
        &n("link set HOST alias stranger"),
        &n(&format!("link set HOST alias {alias}")),
    );
    bench.on_node(
        &n("HOST: group: 7 found, 112 expected"),
        &n("link set HOST group 7"),
        &n("link set HOST group 112"),
    );
    bench.on_node(
        &n("HOST: mtu: 1400 found, 1450 expected"),
        &n("link set HOST mtu 1400"),
        &n("link set HOST mtu 1450"),
    );
    // A new address takes the neighbours along; ADD makes it anew.
    bench.damage(
        &n("HOST: mac Some(02:00:00:00:00:07) found"),
        || bench.host.ip(&n("link set HOST address 02:00:00:00:00:07")),
        || assert_eq!(bench.host.add(&bench.pod), bench.result),
    );
    bench.on_node(
        &n("HOST: neighbour 10.244.1.1 lladdr"),
        &n("neigh del 10.244.1.1 dev HOST"),
        &n(&format!("neigh add 10.244.1.1 lladdr {} dev HOST nud permanent", mac(&bench.result))),
    );
    bench.on_node(
        &n("HOST: neighbour fd00:244::101 lladdr"),
        &n("neigh replace fd00:244::101 lladdr 02:00:00:00:00:07 dev HOST nud permanent"),
        &n(&format!("neigh replace fd00:244::101 lladdr {} dev HOST nud permanent", mac(&bench.result))),
    );
    bench.on_node(
        &n("HOST: route 10.244.1.1/32 is missing"),
        "route del 10.244.1.1/32",
        &n("route add 10.244.1.1/32 dev HOST proto 113 scope link"),
    );
    bench.on_node(
        &n("HOST: route fd00:244::101/128 is missing"),
        &n("-6 route del fd00:244::101/128 dev HOST"),
        &n("-6 route add fd00:244::101/128 dev HOST proto 113"),
    );
    bench.on_node(
        &n("HOST: address fe80::1/64 is missing"),
        &n("addr del fe80::1/64 dev HOST"),
        &n("addr add fe80::1/64 dev HOST nodad"),
    );
    for (key, bad, good) in [
        ("net.ipv4.conf.HOST.proxy_arp", "0", "1"),
        ("net.ipv4.conf.HOST.rp_filter", "1", "0"),
        ("net.ipv4.conf.HOST.accept_redirects", "1", "0"),
        ("net.ipv4.conf.HOST.send_redirects", "1", "0"),
        ("net.ipv6.conf.HOST.accept_ra", "1", "0"),
        ("net.ipv6.conf.HOST.accept_redirects", "1", "0"),
    ] {
        bench.sysctl_on_node(&n(key), bad, good);
    }
    // Down takes the routes along.
    let set_up = || {
        bench.host.ip(&n("link set HOST up"));
        bench.host.ip(&n("route replace 10.244.1.1/32 dev HOST proto 113 scope link"));
        bench.host.ip(&n("addr replace fe80::1/64 dev HOST nodad"));
        bench.ip(&n("-6 route replace fd00:244::101/128 dev HOST proto 113"));
        for address in ["10.244.1.1", "fd00:244::101"] {
            let mac = mac(&bench.result);
            bench.host.ip(&n(&format!("neigh replace {address} lladdr {mac} dev HOST nud permanent")));
        }
    };
    bench.damage(&n("HOST: is down"), || bench.host.ip(&n("link set HOST down")), set_up);
    bench.damage(
        "podway-guard is missing",
        || drop(bench.host.place.run("nft", &["delete", "table", "inet", "podway-guard"]).unwrap()),
        // The next ADD of whichever pod puts it back.
        || drop(bench.host.add(&bench.host.sandbox("another"))),
    );
    // The pair is gone: both ends are named; ADD makes it anew.
    bench.damage(
        &n("HOST: is missing"),
        || bench.host.ip(&n("link del HOST")),
        || {
            assert_eq!(bench.host.add(&bench.pod), bench.result);
        },
    );
}

fn mac(result: &Value) -> &str {
    result["interfaces"][1]["mac"].as_str().unwrap()
}

#[test]
fn check_sees_each_damaged_part_in_the_pod() {
    let Some(bench) = Bench::new() else { return };
    let gateways = ["169.254.1.1", "fe80::1"];
    bench.in_pod("pod: eth0: mtu: 1300 found", &["link set eth0 mtu 1300"], &["link set eth0 mtu 1450"]);
    bench.damage(
        "pod: eth0: mac Some(02:00:00:00:00:07) found",
        || bench.host.ip_in(&bench.pod.net, "link set eth0 address 02:00:00:00:00:07"),
        || assert_eq!(bench.host.add(&bench.pod), bench.result),
    );
    // An address takes routes and neighbours along.
    for address in ["10.244.1.1/32", "fd00:244::101/128"] {
        bench.damage(
            &format!("pod: eth0: address {address} is missing"),
            || bench.host.ip_in(&bench.pod.net, &format!("addr del {address} dev eth0")),
            || assert_eq!(bench.host.add(&bench.pod), bench.result),
        );
    }
    for (gateway, family) in gateways.iter().zip(["", "-6 "]) {
        bench.in_pod(
            &format!("pod: eth0: neighbour {gateway} lladdr 02:70:77:00:00:01 is missing"),
            &[&format!("neigh del {gateway} dev eth0")],
            &[&format!("neigh add {gateway} lladdr 02:70:77:00:00:01 dev eth0 nud permanent")],
        );
        bench.in_pod(
            &format!("pod: eth0: route {} is missing", if family.is_empty() { "0.0.0.0/0" } else { "::/0" }),
            &[&format!("{family}route del default")],
            &[&format!(
                "{family}route add default via {gateway} dev eth0{}",
                if family.is_empty() { " onlink" } else { "" }
            )],
        );
    }
    bench.in_pod("pod: lo: is down", &["link set lo down"], &["link set lo up"]);
    let dad = |value: &str| {
        bench
            .pod
            .net
            .run(|| std::fs::write("/proc/sys/net/ipv6/conf/eth0/accept_dad", value))
            .unwrap()
            .unwrap();
    };
    bench.damage("pod: net/ipv6/conf/eth0/accept_dad: 1 found, 0 expected", || dad("1"), || dad("0"));
    // Down flushes routes and neighbours; ADD makes it anew.
    bench.damage(
        "pod: eth0: is down",
        || bench.host.ip_in(&bench.pod.net, "link set eth0 down"),
        || {
            assert_eq!(bench.host.add(&bench.pod), bench.result);
        },
    );
    // Renamed away, and a stranger in its place.
    bench.damage(
        "pod: eth0: is missing",
        || {
            bench.host.ip_in(&bench.pod.net, "link set eth0 down");
            bench.host.ip_in(&bench.pod.net, "link set eth0 name other");
        },
        || assert_eq!(bench.host.add(&bench.pod), bench.result),
    );
    bench.damage(
        "pod: eth0: is not the peer of",
        || {
            bench.host.ip_in(&bench.pod.net, "link set eth0 down");
            bench.host.ip_in(&bench.pod.net, "link set eth0 name other");
            bench.host.ip_in(&bench.pod.net, "link add eth0 type bridge");
        },
        || {
            bench.host.ip_in(&bench.pod.net, "link del eth0");
            assert_eq!(bench.host.add(&bench.pod), bench.result);
        },
    );
}

#[test]
fn check_sees_damaged_state() {
    let Some(bench) = Bench::new() else { return };
    let record = format!("/run/podway/endpoints/{}.json", bench.host.records()[0].id);
    bench.file(&record, "endpoint record is missing", |_| None);
    bench.file(&record, "cannot read the endpoint record", |_| Some("{".to_owned()));
    bench.file(&record, "endpoint record: network: other found, podway expected", |good| {
        Some(good.replace("\"network\":\"podway\"", "\"network\":\"other\""))
    });
    bench.file(&record, "endpoint record: addresses [10.244.1.7", |good| {
        Some(good.replace("10.244.1.1", "10.244.1.7"))
    });
    let boot = bench.host.boot();
    bench.file(&record, "endpoint record: boot id", |good| {
        Some(good.replace(boot.as_str(), "00000000-0000-0000-0000-00000000000f"))
    });
    bench.file(&format!("{IPAM_DIR}/leases"), "address lease is missing", |_| None);
}
