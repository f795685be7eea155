//! Signatures, TTL security, class and addresses, over real sockets: two speakers alone in one namespace.

use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;

use podway_bgp::AfterStop;
use podway_model::socket::BgpPeerStatus;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use super::shell::Shell;
use super::standalone::config::parse;
use super::tests::{BIRD, LIMIT, in_lab, v4, v6};
use super::{Query, answer};

/// A speaker alone under way.
struct Speaker {
    queries: mpsc::Sender<Query>,
    configs: mpsc::Sender<String>,
    task: JoinHandle<()>,
}

impl Speaker {
    fn start(config: &str) -> Self {
        let (queries, mut asked) = mpsc::channel(4);
        let (configs, mut configured) = mpsc::channel::<String>(4);
        let desired = parse("test.yaml", config).unwrap().desired;
        let task = tokio::spawn(async move {
            let mut shell = Shell::new(desired, None, None);
            loop {
                tokio::select! {
                    query = asked.recv() => match query {
                        Some(query) => answer(query, Some(&mut shell)),
                        None => break,
                    },
                    Some(config) = configured.recv() => shell.follow(parse("test.yaml", &config).unwrap().desired),
                    wake = shell.wake() => shell.handle(wake),
                }
            }
            shell.stop(AfterStop::Drop).await;
        });
        Self { queries, configs, task }
    }

    async fn peers(&self) -> Vec<BgpPeerStatus> {
        let (send, receive) = oneshot::channel();
        assert!(self.queries.send(Query::Peers(send)).await.is_ok());
        receive.await.unwrap()
    }

    async fn until(&self, what: &str, done: impl Fn(&[BgpPeerStatus]) -> bool) {
        let begin = tokio::time::Instant::now();
        while !done(&self.peers().await) {
            assert!(begin.elapsed() < LIMIT, "{what}: {:?}", self.peers().await);
            tokio::task::yield_now().await;
        }
    }

    async fn up(&self, what: &str) {
        self.until(what, |peers| peers.iter().any(|peer| peer.state == "Established")).await;
    }

    async fn stop(self) {
        drop(self.queries);
        self.task.await.unwrap();
    }
}

/// Speaker `i` on both families, port 1790; `rest` is the body of its file.
fn config(i: u8, rest: &str) -> String {
    let (v4, v6) = (v4(i), v6(i));
    format!("asn: 64512\nrouterId: {v4}\nlisten: ['{v4}:1790', '[{v6}]:1790']\nholdTime: 9\n{rest}\n")
}

fn neighbour(own: &str, other: &str, options: &str) -> String {
    format!("neighbours: [{{address: '{other}', options: {{port: 1790, localAddress: '{own}', {options}}}}}]")
}

fn key(dir: &Path, name: &str, content: &str) -> String {
    let path = dir.join(name);
    std::fs::write(&path, content).unwrap();
    path.display().to_string()
}

#[test]
fn sessions_are_signed_whoever_connects_and_a_new_key_is_taken_up() {
    in_lab("sessions_are_signed_whoever_connects_and_a_new_key_is_taken_up", async || {
        let dir = tempfile::tempdir().unwrap();
        let first = key(dir.path(), "first", "secret\n");
        for (one, two) in [(v4(1).to_string(), v4(2).to_string()), (v6(1).to_string(), v6(2).to_string())] {
            let second = key(dir.path(), "second", "not it");
            // One takes whoever comes and signs from a range; two connects.
            let whole = if one.contains(':') { "fd09::/64" } else { "10.9.0.0/24" };
            let range = format!(
                "ranges: [{{prefix: '{whole}', limit: 9, options: {{passive: true, md5File: {first}}}}}]"
            );
            let listening = Speaker::start(&config(1, &range));
            let connecting = Speaker::start(&config(2, &neighbour(&two, &one, &format!("md5File: {first}"))));
            connecting.up("with the same key").await;
            listening.up("with the same key").await;
            connecting.stop().await;
            listening.until("forgotten", |peers| peers.is_empty()).await;

            // Without a key, or with another one, nothing arrives.
            let wrong = format!("md5File: {second}");
            let strangers = [(3, "sendHold: 9"), (BIRD, wrong.as_str())].map(|(i, options)| {
                let own = if one.contains(':') { v6(i).to_string() } else { v4(i).to_string() };
                Speaker::start(&config(i, &neighbour(&own, &one, options)))
            });
            for stranger in strangers {
                let fails = |peers: &[BgpPeerStatus]| {
                    peers[0].last_error.as_ref().is_some_and(|error| error.contains("no answer"))
                };
                stranger.until("it fails", fails).await;
                stranger.stop().await;
            }
            assert!(listening.peers().await.is_empty());
            if one.contains(':') {
                listening.stop().await;
                continue;
            }

            // The wrong key becomes the right one in its file: taken up without being told.
            let rekeyed = Speaker::start(&config(2, &neighbour(&two, &one, &format!("md5File: {second}"))));
            rekeyed.until("it fails", |peers| peers[0].last_error.is_some()).await;
            std::fs::write(&second, "secret").unwrap();
            rekeyed.up("the new key").await;
            rekeyed.stop().await;
            listening.stop().await;
        }
    });
}

#[test]
fn a_key_that_cannot_be_read_means_no_connection() {
    in_lab("a_key_that_cannot_be_read_means_no_connection", async || {
        let dir = tempfile::tempdir().unwrap();
        let file = key(dir.path(), "key", "secret");
        let (one, two) = (v4(1).to_string(), v4(2).to_string());
        let text = config(2, &neighbour(&two, &one, &format!("md5File: {file}")));
        let desired = parse("test.yaml", &text).unwrap().desired;
        std::fs::remove_file(&file).unwrap();
        let refused = parse("test.yaml", &text).unwrap_err().to_string();
        assert!(refused.contains("neighbours[0].md5File") && refused.contains(&file), "{refused}");
        // It goes after the configuration was read.
        let open = Speaker::start(&config(1, &neighbour(&one, &two, "passive: true")));
        let mut shell = Shell::new(desired, None, None);
        let failed = |shell: &Shell| {
            let peers = super::answers::peers(shell.speaker(), shell.now(), shell.bfd(), shell.fate());
            peers[0].last_error.as_ref().is_some_and(|error| error.contains("TCP MD5 key"))
        };
        let begin = tokio::time::Instant::now();
        while !failed(&shell) {
            assert!(begin.elapsed() < LIMIT);
            let wake = shell.wake().await;
            shell.handle(wake);
        }
        assert!(open.peers().await[0].last_error.is_none(), "nobody came");
        open.stop().await;
    });
}

#[test]
fn ttl_security_keeps_out_who_is_too_far() {
    in_lab("ttl_security_keeps_out_who_is_too_far", async || {
        for (one, two) in [(v4(1).to_string(), v4(2).to_string()), (v6(1).to_string(), v6(2).to_string())] {
            let near = Speaker::start(&config(1, &neighbour(&one, &two, "passive: true, ttlSecurity: 1")));
            // TTL 64: as if 191 routers lay between. It hears us, and we do not hear it.
            let far = Speaker::start(&config(2, &neighbour(&two, &one, "holdTime: 3")));
            far.until("it has no answer", |peers| {
                peers[0].last_error.as_ref().is_some_and(|error| error.contains("hold timer"))
            })
            .await;
            assert!(near.peers().await[0].state != "Established");
            far.configs.send(config(2, &neighbour(&two, &one, "holdTime: 3, ttlSecurity: 1"))).await.unwrap();
            near.up("both send with 255").await;
            far.stop().await;
            // And so many hops are near enough.
            near.configs
                .send(config(1, &neighbour(&one, &two, "passive: true, ttlSecurity: 192")))
                .await
                .unwrap();
            let far = Speaker::start(&config(2, &neighbour(&two, &one, "holdTime: 3")));
            near.up("192 hops").await;
            far.stop().await;
            near.stop().await;
        }
    });
}

#[test]
fn packets_carry_the_class_that_was_asked_for() {
    in_lab("packets_carry_the_class_that_was_asked_for", async || {
        let mut rules = "table inet look { chain out { type filter hook output priority 0;\n".to_owned();
        for port in ["sport", "dport"] {
            for (family, class) in [("ip", "dscp"), ("ip6", "dscp")] {
                for code in ["cs6", "10"] {
                    let _ = writeln!(
                        rules,
                        "tcp {port} 1790 {family} {class} {code} counter comment \"{port} {family} {code}\""
                    );
                }
            }
        }
        rules.push_str("}\n}\n");
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("rules");
        std::fs::write(&path, rules).unwrap();
        assert!(Command::new("nft").arg("-f").arg(&path).status().unwrap().success());
        for (one, two) in [(v4(1).to_string(), v4(2).to_string()), (v6(1).to_string(), v6(2).to_string())] {
            let listening = Speaker::start(&config(1, &neighbour(&one, &two, "passive: true")));
            let connecting = Speaker::start(&config(2, &neighbour(&two, &one, "dscp: 10")));
            connecting.up("up").await;
            listening.up("up").await;
            connecting.stop().await;
            listening.stop().await;
        }
        let listed = Command::new("nft").args(["list", "ruleset"]).output().unwrap();
        let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
        let count = |comment: &str| -> u64 {
            let line = listed.lines().find(|line| line.contains(&format!("\"{comment}\""))).unwrap();
            line.split("packets ").nth(1).unwrap().split(' ').next().unwrap().parse().unwrap()
        };
        for family in ["ip", "ip6"] {
            assert!(count(&format!("sport {family} cs6")) > 3, "{listed}");
            assert!(count(&format!("dport {family} 10")) > 3, "{listed}");
            assert_eq!(
                count(&format!("dport {family} cs6")) + count(&format!("sport {family} 10")),
                0,
                "{listed}"
            );
        }
    });
}
