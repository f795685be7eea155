//! The agent as operators run it: real packets between namespaces, and what happens to them when the agent, or
//! somebody else, does something rude.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    unreachable_pub,
    reason = "tests, and modules of their own"
)]

mod node;

use std::net::UdpSocket;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use node::{Node, Pod, on_a_node, pod, policy, run, sh, wait_until};
use podway_model::socket::{PolicyReply, PolicyRequest};

const DENY: &str = "{podSelector: {}, policyTypes: [Ingress]}";
const FROM_A: &str = "{podSelector: {matchLabels: {app: b}}, ingress: [{from: [{podSelector: {matchLabels: \
                      {app: a}}}], ports: [{port: 53, protocol: UDP}]}]}";

/// Pods `a`, `b` and `c` in namespace `x`, known to the store.
fn three_pods(node: &Node) -> [Pod; 3] {
    let documents = pod("x", "a", 2) + &pod("x", "b", 3) + &pod("x", "c", 4);
    node.documents("pods.yaml", Some(&documents));
    [node.wire("x", "a", 2), node.wire("x", "b", 3), node.wire("x", "c", 4)]
}

#[test]
fn policies_are_enforced_as_they_come_and_go() {
    on_a_node("policies_are_enforced_as_they_come_and_go", |node| {
        let [a, b, c] = three_pods(node);
        node.start_agent();
        assert!(node.allowed(&a, &b, 53) && node.allowed(&c, &b, 53));
        node.documents("deny.yaml", Some(&policy("x", "deny", DENY)));
        node.wait_for("the policy is in force", |status| status.policies == 1);
        assert!(!node.allowed(&a, &b, 53) && !node.allowed(&c, &b, 53));
        node.documents("allow.yaml", Some(&policy("x", "from-a", FROM_A)));
        node.wait_for("the second policy is in force", |status| status.policies == 2);
        assert!(node.allowed(&a, &b, 53), "allowed by the second policy");
        assert!(!node.allowed(&a, &b, 54), "another port");
        assert!(!node.allowed(&c, &b, 53), "another pod");
        assert!(!node.allowed(&b, &a, 53), "another direction");
        let listed = sh("nft list table inet podway-policy");
        assert!(listed.contains("podway-policy"), "{listed}");
        node.documents("deny.yaml", None);
        node.documents("allow.yaml", None);
        node.wait_for("no policy is in force", |status| status.policies == 0);
        assert!(node.allowed(&c, &b, 53));
    });
}

#[test]
fn a_killed_agent_leaves_its_work_and_the_fence_holds() {
    on_a_node("a_killed_agent_leaves_its_work_and_the_fence_holds", |node| {
        let [a, b, c] = three_pods(node);
        node.documents("policy.yaml", Some(&policy("x", "from-a", FROM_A)));
        node.start_agent();
        assert!(node.allowed(&a, &b, 53) && !node.allowed(&c, &b, 53));
        node.kill_agent();
        assert!(node.allowed(&a, &b, 53) && !node.allowed(&c, &b, 53), "what was in force stays");
        let late = node.wire("y", "late", 9);
        assert!(!node.allowed(&late, &c, 53) && !node.allowed(&c, &late, 53), "not classified: closed");
        node.start_agent();
        assert!(node.allowed(&late, &c, 53) && node.allowed(&c, &late, 53), "no policy in its namespace");
        assert!(node.allowed(&a, &b, 53) && !node.allowed(&c, &b, 53));
    });
}

#[test]
fn an_announced_endpoint_is_in_force_when_the_answer_comes() {
    on_a_node("an_announced_endpoint_is_in_force_when_the_answer_comes", |node| {
        let [a, ..] = three_pods(node);
        node.documents("deny.yaml", Some(&policy("x", "deny", DENY)));
        node.start_agent();
        for number in 20..30 {
            let known = node.wire("y", &format!("p{number}"), number);
            assert_eq!(node.announce(&known), PolicyReply::Programmed { pod_known: false });
            assert!(node.allowed(&a, &known, 53), "open at once: no policy in its namespace");
            let closed = node.wire("x", &format!("p{number}"), number + 100);
            assert_eq!(node.announce(&closed), PolicyReply::Programmed { pod_known: false });
            assert!(
                !node.allowed(&known, &closed, 53),
                "closed at once: unknown, and its namespace has a policy"
            );
            node.unwire(&known);
            node.unwire(&closed);
        }
        node.wait_for("the records are gone", |status| status.endpoints == 3);
    });
}

#[test]
fn a_restart_under_fire_leaks_nothing_and_closes_nothing() {
    on_a_node("a_restart_under_fire_leaks_nothing_and_closes_nothing", |node| {
        let [a, b, c] = three_pods(node);
        node.documents("policy.yaml", Some(&policy("x", "from-a", FROM_A)));
        node.start_agent();
        assert!(node.allowed(&a, &b, 53) && !node.allowed(&c, &b, 53));
        let mut fire = Fire::start(&a, &b, &c);
        for _ in 0..3 {
            node.kill_agent();
            node.start_agent();
            fire.wait_for_more();
        }
        fire.stop();
    });
}

#[test]
fn churn_under_fire_leaks_nothing_and_closes_nothing() {
    on_a_node("churn_under_fire_leaks_nothing_and_closes_nothing", |node| {
        let [a, b, c] = three_pods(node);
        node.documents("policy.yaml", Some(&policy("x", "from-a", FROM_A)));
        node.start_agent();
        assert!(node.allowed(&a, &b, 53) && !node.allowed(&c, &b, 53));
        let mut fire = Fire::start(&a, &b, &c);
        // Each changes the policy set of `b`, the classes of `a` and `c`, or the segments around them; none lets `c` in
        // or keeps `a` out.
        let others = [
            "{podSelector: {}, policyTypes: [Ingress, Egress], egress: [{}]}",
            "{podSelector: {matchLabels: {app: b}}, ingress: [{from: [{podSelector: {matchLabels: {app: c}}}], \
             ports: [{port: 53}, {port: 54, protocol: UDP}]}]}",
            "{podSelector: {matchLabels: {app: b}}, ingress: [{from: [{ipBlock: {cidr: 10.244.1.0/24, except: \
             [10.244.1.4/31]}}], ports: [{port: 53, protocol: UDP}]}]}",
            "{podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {no: such}}}]}]}",
        ];
        for round in 0..24_u8 {
            let file = format!("other{}.yaml", round % 3);
            let spec = others[usize::from(round) % others.len()];
            node.documents(&file, Some(&policy("x", &format!("other{}", round % 3), spec)));
            let passer = node.wire("x", "passer", 100 + round);
            assert_eq!(node.announce(&passer), PolicyReply::Programmed { pod_known: false });
            if round % 4 == 3 {
                node.documents(&file, None);
            }
            node.unwire(&passer);
            fire.wait_for_more();
        }
        fire.stop();
    });
}

/// Two pods that shoot at a third one, each packet the first of its flow: one of them is allowed to, the other not.
struct Fire {
    receiver: UdpSocket,
    denied: std::net::IpAddr,
    stop: Arc<AtomicBool>,
    shooters: Vec<std::thread::JoinHandle<u64>>,
    from_allowed: u64,
    from_denied: u64,
}

impl Fire {
    fn start(allowed: &Pod, target: &Pod, denied: &Pod) -> Self {
        let at = std::net::SocketAddr::new(target.record.addresses[0], 53);
        let receiver = target.netns.run(|| UdpSocket::bind(at).unwrap()).unwrap();
        receiver.set_nonblocking(true).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let shoot = |pod: &Pod| {
            let (stop, netns) = (Arc::clone(&stop), podway_kern::ns::NetNs::open(pod.netns.path()).unwrap());
            std::thread::spawn(move || {
                let shoot = || {
                    let mut sent = 0u64;
                    while !stop.load(Ordering::Relaxed) {
                        // A new socket has a new port.
                        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
                        socket.send_to(b"x", at).unwrap();
                        sent += 1;
                    }
                    sent
                };
                netns.run(shoot).unwrap()
            })
        };
        let shooters = vec![shoot(denied), shoot(allowed)];
        let denied = denied.record.addresses[0];
        Self { receiver, denied, stop, shooters, from_allowed: 0, from_denied: 0 }
    }

    fn drain(&mut self) {
        let mut buffer = [0; 16];
        while let Ok((_, source)) = self.receiver.recv_from(&mut buffer) {
            *if source.ip() == self.denied { &mut self.from_denied } else { &mut self.from_allowed } += 1;
        }
    }

    /// Waits until a hundred more packets of the allowed pod have arrived.
    fn wait_for_more(&mut self) {
        self.drain();
        let before = self.from_allowed;
        wait_until("packets of the allowed pod arrive", || {
            self.drain();
            (self.from_allowed > before + 100).then_some(())
        });
    }

    /// None of the denied pod may have arrived.
    fn stop(mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let shots: Vec<u64> = self.shooters.drain(..).map(|shooter| shooter.join().unwrap()).collect();
        self.drain();
        assert!(shots[0] > 1000, "{} packets of the denied pod were sent", shots[0]);
        assert_eq!(self.from_denied, 0, "of {} packets of the denied pod", shots[0]);
    }
}

#[test]
fn others_neither_flush_nor_delete_our_table_for_long_and_keep_theirs() {
    on_a_node("others_neither_flush_nor_delete_our_table_for_long_and_keep_theirs", |node| {
        let [a, b, c] = three_pods(node);
        node.documents("policy.yaml", Some(&policy("x", "from-a", FROM_A)));
        sh("nft add table inet foreign");
        sh("nft add chain inet foreign mine");
        node.start_agent();
        for rude in ["nft flush ruleset", "nft delete table inet podway-policy"] {
            // Where the table has an owner the kernel refuses or passes over it; elsewhere it is repaired.
            run(rude);
            wait_until("our table is there", || {
                run("nft list table inet podway-policy")
                    .0
                    .then_some(())
                    .filter(|()| !node.allowed(&c, &b, 53))
            });
            assert!(node.allowed(&a, &b, 53), "after {rude}");
            if rude.contains("delete") {
                sh("nft list table inet foreign");
            } else {
                sh("nft add table inet foreign");
            }
        }
        node.kill_agent();
        let (done, output) = run(&format!("{} --cleanup", env!("CARGO_BIN_EXE_policy-agent")));
        assert!(done, "{output}");
        assert!(!run("nft list table inet podway-policy").0, "cleanup removes our table");
        sh("nft list table inet foreign");
        assert!(node.allowed(&c, &b, 53), "nothing is restricted any more");
    });
}

#[test]
fn what_is_dropped_is_told_and_traced() {
    on_a_node("what_is_dropped_is_told_and_traced", |node| {
        let [a, b, c] = three_pods(node);
        node.documents("policy.yaml", Some(&policy("x", "from-a", FROM_A)));
        node.start_agent();
        for (from, allowed, why) in
            [(&a, true, "allowed by x/from-a rule 0"), (&c, false, "isolated by x/from-a, no rule matched")]
        {
            let name = &from.record.pod.as_ref().unwrap().name;
            let question = PolicyRequest::Trace {
                from: format!("x/{name}"),
                to: "x/b".to_owned(),
                traffic: "udp/53".to_owned(),
            };
            let PolicyReply::Traced { flows } = node.ask(&question) else { panic!("no trace") };
            assert_eq!(flows.len(), 2, "IPv4 and IPv6");
            assert!(
                flows.iter().all(|flow| flow.allowed == allowed && flow.ingress.reason == why),
                "{flows:?}"
            );
            assert_eq!(node.allowed(from, &b, 53), allowed);
        }
        for address in ["x/c (10.244.1.4)", "x/c (fd00:10:244:1::4)"] {
            let line = wait_until("the drop is in the log", || {
                let log = node.log();
                log.lines()
                    .find(|line| line.contains("dropped: ") && line.contains(address))
                    .map(str::to_owned)
            });
            assert!(line.contains("isolated by x/from-a") && line.contains("udp/53"), "{line}");
        }
        let PolicyReply::Checked(check) = node.ask(&PolicyRequest::Check) else { panic!("no check") };
        assert!(check.is_clean(), "{check:?}");
        let PolicyReply::Listed(list) = node.ask(&PolicyRequest::List) else { panic!("no list") };
        assert_eq!((list.policies[0].pods.as_slice(), list.pods.len()), (&["x/b".to_owned()][..], 3));
    });
}

#[test]
fn the_table_reads_as_written() {
    on_a_node("the_table_reads_as_written", |node| {
        let _pods = three_pods(node);
        let spec = "{podSelector: {matchLabels: {app: b}}, policyTypes: [Ingress, Egress], ingress: [\
                    {from: [{podSelector: {matchLabels: {app: a}}}], ports: [{port: 80}, {port: 1000, endPort: 2000}]}, \
                    {from: [{ipBlock: {cidr: 192.0.2.0/24, except: [192.0.2.128/25]}}]}, \
                    {ports: [{port: 53, protocol: UDP}]}], egress: [{ports: [{protocol: TCP}]}]}";
        node.documents("policy.yaml", Some(&policy("x", "golden", spec)));
        node.start_agent();
        let listed = sh("nft --stateless list table inet podway-policy");
        sh("nft --json list table inet podway-policy");
        let found = in_order(&listed);
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            std::fs::write(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/table.nft"), &found).unwrap();
        }
        assert_eq!(found, include_str!("golden/table.nft"), "UPDATE_GOLDEN=1 rewrites it");
    });
}

/// A listing without the owner, which differs with each kernel, and with the elements of hash sets in order.
fn in_order(listed: &str) -> String {
    let mut lines: Vec<String> = Vec::new();
    for line in listed.replace(",\n\t\t\t     ", ", ").lines() {
        let line = line.split(" # progname").next().unwrap_or_default();
        let elements = line.trim().strip_prefix("elements = { ").and_then(|rest| rest.strip_suffix(" }"));
        match elements {
            Some(elements) => {
                let mut elements: Vec<&str> = elements.split(", ").collect();
                elements.sort_unstable();
                lines.push(format!("\t\telements = {{ {} }}", elements.join(",\n\t\t\t     ")));
            }
            None if line.trim_start().starts_with("flags owner") => {}
            None => lines.push(line.to_owned()),
        }
    }
    lines.join("\n") + "\n"
}
