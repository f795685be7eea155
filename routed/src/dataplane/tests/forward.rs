//! Forward chains of others, made by the real iptables-nft and nft, each test in a network namespace of its own. Needs root.

use std::collections::BTreeSet;
use std::net::{IpAddr, UdpSocket};
use std::process::Command;
use std::time::Duration;

use podway_kern::ns::NetNs;
use podway_kern::sysctl::Sysctl;

use super::super::forward::Forward;
use super::super::tables::Tables;
use super::tables::{in_fresh_netns, wire};
use super::{ip, net};

const POOLS: [&str; 3] = ["10.244.0.0/16", "10.250.4.0/22", "fd00:10:244::/48"];
const PODS: [[&str; 2]; 2] = [["10.244.1.2", "fd00:10:244:1::2"], ["10.244.2.2", "fd00:10:244:2::2"]];

fn wanted(rules: bool) -> Forward {
    Forward { pools: POOLS.map(net).into(), rules }
}

/// Where there is iptables: the test on a node that forwards, with two pods.
fn with_iptables(test: &str, body: impl FnOnce(Tables, [NetNs; 2]) + Send) {
    if Command::new("iptables-nft").arg("--version").output().is_err() {
        println!("SKIP {test}: needs iptables-nft on PATH");
        return;
    }
    in_fresh_netns(test, |tables| {
        for forwarding in ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"] {
            Sysctl::new(forwarding).write("1").unwrap();
        }
        let pods = [("pw1", PODS[0]), ("pw2", PODS[1])].map(|(host, pod)| wire(host, pod.map(ip)));
        body(tables, pods);
    });
}

fn run(line: &str) -> String {
    let words: Vec<&str> = line.split(' ').collect();
    let output = Command::new(words[0]).args(&words[1..]).output().unwrap();
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn ensure(tables: &mut Tables, rules: bool) -> usize {
    let repaired = tables.ensure(Some(None), &BTreeSet::new(), Some(&wanted(rules)));
    assert_eq!(tables.problems().filter(|problem| problem.starts_with("nftables")).count(), 0);
    repaired
}

/// Whether a datagram gets from one pod to the other, of each family.
fn passes(pods: &[NetNs; 2]) -> [bool; 2] {
    [0, 1].map(|family| {
        let address = |pod: usize| -> IpAddr { ip(PODS[pod][family]) };
        let server = pods[1].run(|| UdpSocket::bind((address(1), 7)).unwrap()).unwrap();
        let client = pods[0].run(|| UdpSocket::bind((address(0), 0)).unwrap()).unwrap();
        server.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        // Addresses of IPv6 take a moment; what is dropped never comes.
        (0..5).any(|_| {
            let _ = client.send_to(b"x", (address(1), 7));
            server.recv_from(&mut [0; 8]).is_ok()
        })
    })
}

const OURS: &str = "\
-A FORWARD -s 10.244.0.0/16 -m comment --comment \"podway pods\" -j ACCEPT
-A FORWARD -d 10.244.0.0/16 -m comment --comment \"podway pods\" -j ACCEPT
-A FORWARD -s 10.250.4.0/22 -m comment --comment \"podway pods\" -j ACCEPT
-A FORWARD -d 10.250.4.0/22 -m comment --comment \"podway pods\" -j ACCEPT
";
const OURS6: &str = "\
-A FORWARD -s fd00:10:244::/48 -m comment --comment \"podway pods\" -j ACCEPT
-A FORWARD -d fd00:10:244::/48 -m comment --comment \"podway pods\" -j ACCEPT
";
const DOCKER: &str = "\
-A FORWARD -j DOCKER-USER
-A FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A FORWARD -i docker0 ! -o docker0 -j ACCEPT
";

/// What a container engine does at its start.
fn docker() {
    run("iptables-nft -P FORWARD DROP");
    run("ip6tables-nft -P FORWARD DROP");
    run("iptables-nft -N DOCKER-USER");
    for rule in DOCKER.lines() {
        run(&format!("iptables-nft {rule}"));
    }
}

#[test]
fn pods_talk_where_iptables_drops_and_its_programs_go_on_working() {
    let test = "pods_talk_where_iptables_drops_and_its_programs_go_on_working";
    with_iptables(test, |mut tables, pods| {
        // Without a chain none is made.
        assert_eq!(ensure(&mut tables, true), 0);
        assert!(!run("nft list tables").contains("filter"));
        assert_eq!(passes(&pods), [true, true]);
        docker();
        assert_eq!(passes(&pods), [false, false], "the firewall is one");
        assert_eq!(ensure(&mut tables, true), 1);
        assert_eq!(passes(&pods), [true, true]);
        assert_eq!(tables.in_the_way(), Vec::<String>::new());
        let listed = |program: &str| run(&format!("{program} -S FORWARD"));
        assert_eq!(listed("iptables-nft"), format!("-P FORWARD DROP\n{DOCKER}{OURS}"));
        assert_eq!(listed("ip6tables-nft"), format!("-P FORWARD DROP\n{OURS6}"));
        let saved = run("iptables-nft-save");
        assert!(saved.contains(OURS) && !saved.contains("incompatible"), "{saved}");
        assert!(run("ip6tables-nft-save").contains(OURS6));
        assert_eq!(ensure(&mut tables, true), 0, "nothing has changed");
        // What the operator refuses stays refused.
        run("iptables-nft -I DOCKER-USER -s 10.244.1.0/24 -j DROP");
        assert_eq!((ensure(&mut tables, true), passes(&pods)), (0, [false, true]));
        run("iptables-nft -F DOCKER-USER");
        // A reload: the chain is emptied and made again.
        run("iptables-nft -F FORWARD");
        for rule in DOCKER.lines() {
            run(&format!("iptables-nft {rule}"));
        }
        assert_eq!(passes(&pods), [false, true]);
        assert_eq!((ensure(&mut tables, true), passes(&pods)), (1, [true, true]));
        // One of ours is taken.
        let number = 1 + DOCKER.lines().count();
        run(&format!("iptables-nft -D FORWARD {number}"));
        assert_eq!((ensure(&mut tables, true), passes(&pods)), (1, [true, true]));
        assert_eq!(listed("iptables-nft"), format!("-P FORWARD DROP\n{DOCKER}{OURS}"));
    });
}

/// Runs the commands that a problem names, as they stand.
fn mend(problem: &str) {
    for command in problem.split('`').nth(1).unwrap().split("; ") {
        run(&command.replacen("tables", "tables-nft", 1));
    }
}

#[test]
fn a_rule_that_refuses_all_is_found_and_what_mends_it_does() {
    let test = "a_rule_that_refuses_all_is_found_and_what_mends_it_does";
    with_iptables(test, |mut tables, pods| {
        // An operator's own, behind a policy that accepts.
        run("iptables-nft -A FORWARD -o docker0 -j ACCEPT");
        run("iptables-nft -A FORWARD -j REJECT --reject-with icmp-host-prohibited");
        ensure(&mut tables, true);
        assert_eq!(passes(&pods), [false, true], "ours stand behind it");
        let [problem] = tables.in_the_way() else { panic!("{:?}", tables.in_the_way()) };
        assert!(problem.starts_with("chain FORWARD of nft table ip filter refuses by a rule"), "{problem}");
        mend(&problem.clone());
        assert_eq!((ensure(&mut tables, true), passes(&pods)), (0, [true, true]));
        assert_eq!(tables.in_the_way(), Vec::<String>::new());
        assert!(
            run("iptables-nft -S FORWARD").contains("REJECT") && run("iptables-nft-save").contains("REJECT")
        );
        // ufw's, in a chain that all packets are sent to.
        run("iptables-nft -F FORWARD");
        for rule in
            ["-N ufw-reject-forward", "-A FORWARD -j ufw-reject-forward", "-A ufw-reject-forward -j REJECT"]
        {
            run(&format!("iptables-nft {rule}"));
        }
        ensure(&mut tables, true);
        assert_eq!(passes(&pods), [false, true]);
        let [problem] = tables.in_the_way() else { panic!("{:?}", tables.in_the_way()) };
        assert!(
            problem.contains("`ufw route allow from 10.244.0.0/16; ufw route allow to 10.244.0.0/16;"),
            "{problem}"
        );
        run("iptables-nft -F FORWARD");
        // firewalld's, as its own rules are.
        let zones = "table inet firewalld {
            chain filter_FORWARD {
                type filter hook forward priority filter + 10; policy accept;
                ct state { established, related } accept
                iifname lo accept
                jump filter_FORWARD_ZONES
                ct state invalid drop
                reject with icmpx admin-prohibited
            }
            chain filter_FORWARD_ZONES { iifname eth0 goto filter_FWD_public; }
            chain filter_FWD_public { jump filter_FWD_public_allow; }
            chain filter_FWD_public_allow { }
            chain filter_FWD_trusted { accept; }
        }";
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), zones).unwrap();
        run(&format!("nft -f {}", file.path().display()));
        ensure(&mut tables, true);
        assert_eq!(passes(&pods), [false, false]);
        let [problem] = tables.in_the_way() else { panic!("{:?}", tables.in_the_way()) };
        assert!(
            problem.contains("`firewall-cmd --permanent --zone=trusted --add-source=10.244.0.0/16; ")
                && problem.contains("firewall-cmd --reload`"),
            "{problem}"
        );
        // What that command makes of it.
        for pool in POOLS {
            let family = if pool.contains(':') { "ip6" } else { "ip" };
            run(&format!(
                "nft insert rule inet firewalld filter_FORWARD_ZONES {family} saddr {pool} goto filter_FWD_trusted"
            ));
        }
        ensure(&mut tables, true);
        assert_eq!(passes(&pods), [true, true]);
        assert_eq!(tables.in_the_way(), Vec::<String>::new());
        run("nft delete table inet firewalld");
        // A chain of nobody in particular.
        run("nft add table inet site");
        run("nft add chain inet site forward { type filter hook forward priority 10 ; }");
        run("nft add rule inet site forward counter drop");
        ensure(&mut tables, true);
        assert_eq!(passes(&pods), [false, false]);
        mend(&tables.in_the_way()[0].clone());
        assert_eq!((ensure(&mut tables, true), passes(&pods)), (0, [true, true]));
        assert_eq!(tables.in_the_way(), Vec::<String>::new());
    });
}

#[test]
fn rules_that_are_not_wanted_go_and_what_is_in_the_way_is_named_with_its_mend() {
    let test = "rules_that_are_not_wanted_go_and_what_is_in_the_way_is_named_with_its_mend";
    with_iptables(test, |mut tables, pods| {
        docker();
        ensure(&mut tables, true);
        assert_eq!(passes(&pods), [true, true]);
        ensure(&mut tables, false);
        assert_eq!(passes(&pods), [false, false]);
        assert_eq!(run("iptables-nft -S FORWARD"), format!("-P FORWARD DROP\n{DOCKER}"));
        assert_eq!(tables.in_the_way().len(), 2, "{:?}", tables.in_the_way());
        // The command is good as it stands.
        for problem in tables.in_the_way().to_vec() {
            assert!(problem.contains("(or turn forwardRules on)"), "{problem}");
            for command in problem.split('`').nth(1).unwrap().split("; ") {
                run(&command.replacen("tables", "tables-nft", 1));
            }
        }
        assert_eq!((ensure(&mut tables, false), passes(&pods)), (0, [true, true]));
        assert_eq!(tables.in_the_way(), Vec::<String>::new());
        // A chain of nobody in particular.
        for line in [
            "nft add table inet site",
            "nft add chain inet site forward { type filter hook forward priority 10 ; policy drop ; }",
        ] {
            run(line);
        }
        let before = run("nft list table inet site");
        for rules in [true, false] {
            ensure(&mut tables, rules);
            assert_eq!(run("nft list table inet site"), before, "it is not ours");
            let [problem] = tables.in_the_way() else { panic!("{:?}", tables.in_the_way()) };
            assert!(problem.starts_with("chain forward of nft table inet site drops"), "{problem}");
        }
        assert_eq!(passes(&pods), [false, false]);
        let problem = tables.in_the_way()[0].clone();
        for command in problem.split('`').nth(1).unwrap().split("; ") {
            run(command);
        }
        assert_eq!((ensure(&mut tables, false), passes(&pods)), (0, [true, true]));
        assert_eq!(tables.in_the_way(), Vec::<String>::new());
        // At the end nothing of ours is left.
        ensure(&mut tables, true);
        assert!(run("iptables-nft -S FORWARD").contains("podway"));
        assert_eq!(tables.remove(), Vec::<String>::new());
        assert!(!run("iptables-nft -S FORWARD").contains("podway"));
        assert!(!run("ip6tables-nft -S FORWARD").contains("podway"));
    });
}
