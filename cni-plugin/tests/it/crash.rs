//! Crash safety: the plugin is killed with -9 at the entry of each of its system calls, one run for each; then comes
//! what a runtime does next, and nothing may be lost, double or left.

use std::net::UdpSocket;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};

use podway_ipam::store::since_boot;
use podway_ipam::{Condition, LeaseStore, Request};
use podway_model::names::IPAM_DIR;
use podway_model::node_file::NodeFile;
use podway_testkit::pod::Sandbox;
use podway_testkit::process::tail;
use serde_json::{Value, json};

use crate::host::{Call, Families, Host, attachment, host_name, ips};
use crate::trace;

/// State of the node before a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Before {
    /// Nothing of ours was ever there: the first pod after a boot.
    Empty,
    /// Another pod is there.
    Ordinary,
    /// The lease journal is so long that the next write compacts it.
    LongJournal,
}

struct Bench {
    host: Host,
    pod: Sandbox,
    other: Sandbox,
    /// Result of the other pod's ADD, which must stay what it is.
    other_result: Option<Value>,
    journal: String,
    before: Before,
}

impl Bench {
    fn new(test: &str, verb: &str, before: Before) -> Option<Self> {
        let host = Host::new(test, Families::Dual)?;
        let (pod, other) = (host.sandbox("p"), host.sandbox("other"));
        let mut bench = Self { host, pod, other, other_result: None, journal: String::new(), before };
        if before != Before::Empty {
            bench.other_result = Some(bench.host.add(&bench.other));
            let shift = AtomicUsize::new(0);
            while before == Before::LongJournal && !bench.next_write_compacts(verb, &shift) {}
            bench.journal = bench.host.read("/run/podway/ipam/leases");
        }
        Some(bench)
    }

    /// Makes the journal longer by one pod that comes and goes, unless the write of the next ADD (or, for DEL, of the
    /// DEL behind it) would compact it: then it says so and leaves it.
    fn next_write_compacts(&self, verb: &str, shift: &AtomicUsize) -> bool {
        let (path, boot) = ("/run/podway/ipam/leases", self.host.boot());
        let file: NodeFile = serde_json::from_str(&self.host.read("/var/lib/podway/node.json")).unwrap();
        let lines = || std::fs::read_to_string(path).unwrap().lines().count();
        let step = || {
            let before = std::fs::read_to_string(path).unwrap();
            let request = Request::new(attachment(&self.pod), "podway".parse().unwrap());
            let mut store = LeaseStore::open(IPAM_DIR.as_ref(), &boot).unwrap();
            let mut grew = vec![lines()];
            store.lease(&file, &request, since_boot()).unwrap();
            grew.push(lines());
            store.release(&request.attachment, since_boot(), Condition::Clean).unwrap();
            grew.push(lines());
            let wanted = if verb == "ADD" { grew[1] < grew[0] } else { grew[2] < grew[1] };
            if wanted {
                std::fs::write(path, before).unwrap();
            } else if grew[1] < grew[0] || grew[2] < grew[1] {
                // The other write of the two did it, and the journal is short again: longer by one line more each
                // time, so that the write that compacts moves on until it is the right one.
                for _ in 0..shift.fetch_add(1, Ordering::Relaxed) {
                    store.mark_clean(vec!["10.244.1.63".parse().unwrap()]).unwrap();
                }
            }
            wanted
        };
        self.host.place.enter(step).unwrap()
    }

    /// Brings the node back to where each run begins.
    fn reset(&self) {
        if self.before == Before::Empty {
            self.host
                .place
                .run(
                    "sh",
                    &["-c", "rm -rf /run/podway/*; nft delete table inet podway-guard 2>/dev/null || true"],
                )
                .unwrap();
        } else {
            self.host.write("/run/podway/ipam/leases", &self.journal);
        }
    }

    fn call(&self, verb: &str) -> Call<'_> {
        self.host.call(verb, &self.pod)
    }

    /// Nothing of the pod is left, and the other pod is what it was.
    fn audit(&self, when: &str) {
        let others = usize::from(self.other_result.is_some());
        assert_eq!(self.host.leases().len(), others, "{when}: leases");
        assert_eq!(self.host.pod_links().len(), others, "{when}: links");
        assert_eq!(self.host.pod_routes().len(), 2 * others, "{when}: routes");
        let files = self.host.list("/run/podway/endpoints");
        assert_eq!(files.len(), others, "{when}: records {files:?}");
        assert!(!self.host.list("/run/podway/ipam").contains(&"leases.new".to_owned()), "{when}");
        assert_eq!(self.host.rtnl().link(host_name(&self.pod).as_str()).unwrap(), None, "{when}");
        if let Some(result) = &self.other_result {
            let answer = self.host.check(&self.other, result);
            assert_eq!(answer.code, Some(0), "{when}: the other pod: {:?}", answer.text);
        }
    }

    /// Runs `verb` again and again, killed at its 1st, 2nd, ... system call until one run gets through; `prepare`
    /// comes before and `after` behind each. Returns the number of kill points.
    fn kill_at_each(&self, what: &str, verb: &str, prepare: impl Fn(), after: impl Fn(&str)) -> usize {
        for n in 1.. {
            self.reset();
            prepare();
            let run = trace::run(&self.host, &self.call(verb), Some(n));
            let when = format!("{what}, killed at system call {n}");
            if run.code.is_some() {
                assert_eq!(run.code, Some(0), "{:?}", run.stdout);
                after(&format!("{what}, not killed"));
                let points = run.calls.len();
                // Runs before it may have been longer: see `compare`.
                assert!(points < n);
                println!("{what}: {points} kill points");
                return points;
            }
            assert_eq!(run.calls.len(), n);
            after(&when);
        }
        unreachable!("a run ends");
    }

    /// The number of kill points is what a run counts that nobody disturbs, and what strace counts.
    fn compare(&self, what: &str, verb: &str, prepare: impl Fn(), points: usize) {
        // A wait for the kernel that needs a second look makes a run a few calls longer, so there are several.
        const TRIES: usize = 40;
        let matches = |who: &str, count: &dyn Fn() -> usize| {
            let mut counts = vec![];
            while counts.len() < TRIES && !counts.contains(&points) {
                self.reset();
                prepare();
                counts.push(count());
                self.host.del(&self.pod);
            }
            println!("{what}: {points} kill points, {who} counts {counts:?}");
            assert!(counts.contains(&points), "{what}: {points} kill points, {who} counts {counts:?}");
        };
        matches("a run", &|| {
            let run = trace::run(&self.host, &self.call(verb), None);
            assert_eq!(run.code, Some(0), "{:?}", run.stdout);
            run.calls.len()
        });
        if std::path::Path::new("/usr/bin/strace").exists() {
            matches("strace", &|| self.strace(&self.call(verb)));
        }
    }

    /// System calls that strace counts, execve of the plugin itself aside.
    fn strace(&self, call: &Call<'_>) -> usize {
        let log = tempfile::NamedTempFile::new().unwrap();
        let plugin = call.command();
        let mut strace = Command::new("/usr/bin/strace");
        strace.arg("-o").arg(log.path()).arg(plugin.get_program()).env_clear();
        strace.envs(plugin.get_envs().filter_map(|(key, value)| Some((key, value?))));
        let output = self.host.place.output(strace, call.stdin().as_bytes()).unwrap();
        assert!(output.status.success(), "{}", tail(log.path(), 5));
        let text = std::fs::read_to_string(log.path()).unwrap();
        text.lines().filter(|line| !line.starts_with("+++") && !line.starts_with("---")).count() - 1
    }

    fn gc_all(&self) {
        let other = json!([{"containerID": self.other.attachment.container_id, "ifname": "eth0"}]);
        self.host.bare("GC").with("cni.dev/valid-attachments", other).run().done();
    }
}

fn killed_add(before: Before, test: &str) {
    let Some(bench) = Bench::new(test, "ADD", before) else { return };
    let what = format!("ADD ({before:?})");
    // What a runtime does: DEL. Or ADD again, and the pod works. Or nothing, and GC comes one day.
    let points = bench.kill_at_each(
        &format!("{what}, DEL"),
        "ADD",
        || (),
        |when| {
            bench.call("DEL").run().done();
            bench.audit(when);
        },
    );
    bench.kill_at_each(
        &format!("{what}, ADD again"),
        "ADD",
        || (),
        |when| {
            let result = bench.call("ADD").run();
            assert_eq!(result.code, Some(0), "{when}: {:?}", result.text);
            let result = result.result();
            let checked = bench.host.check(&bench.pod, &result);
            assert_eq!(checked.code, Some(0), "{when}: {:?}", checked.text);
            bench.call("DEL").run().done();
            bench.audit(when);
        },
    );
    bench.kill_at_each(
        &format!("{what}, GC"),
        "ADD",
        || (),
        |when| {
            bench.gc_all();
            bench.audit(when);
        },
    );
    bench.compare(&what, "ADD", || (), points);
}

fn killed_del(before: Before, test: &str) {
    let Some(bench) = Bench::new(test, "DEL", before) else { return };
    bench.host.ip("addr add 192.0.2.1/32 dev lo\naddr add 2001:db8::1/128 dev lo");
    let what = format!("DEL ({before:?})");
    let add = || {
        let result = bench.host.add(&bench.pod);
        // An entry of connection tracking, so that there is one to delete.
        for address in ips(&result) {
            let any = if address.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
            let socket = bench.host.place.net().run(|| UdpSocket::bind(any)).unwrap().unwrap();
            socket.send_to(b"x", (address, 9)).unwrap();
        }
    };
    let points = bench.kill_at_each(&format!("{what}, DEL"), "DEL", add, |when| {
        bench.call("DEL").run().done();
        bench.audit(when);
    });
    bench.kill_at_each(&format!("{what}, ADD again"), "DEL", add, |when| {
        let result = bench.host.add(&bench.pod);
        let checked = bench.host.check(&bench.pod, &result);
        assert_eq!(checked.code, Some(0), "{when}: {:?}", checked.text);
        bench.call("DEL").run().done();
        bench.audit(when);
    });
    bench.kill_at_each(&format!("{what}, GC"), "DEL", add, |when| {
        bench.gc_all();
        bench.audit(when);
    });
    bench.compare(&what, "DEL", add, points);
}

#[test]
fn an_add_killed_anywhere_loses_and_leaves_nothing() {
    killed_add(Before::Ordinary, "an_add_killed_anywhere_loses_and_leaves_nothing");
}

#[test]
fn the_first_add_of_a_boot_killed_anywhere_loses_and_leaves_nothing() {
    killed_add(Before::Empty, "the_first_add_of_a_boot_killed_anywhere_loses_and_leaves_nothing");
}

#[test]
fn an_add_killed_while_it_compacts_the_journal_loses_and_leaves_nothing() {
    killed_add(Before::LongJournal, "an_add_killed_while_it_compacts_the_journal_loses_and_leaves_nothing");
}

#[test]
fn a_del_killed_anywhere_loses_and_leaves_nothing() {
    killed_del(Before::Ordinary, "a_del_killed_anywhere_loses_and_leaves_nothing");
}

#[test]
fn a_del_killed_while_it_compacts_the_journal_loses_and_leaves_nothing() {
    killed_del(Before::LongJournal, "a_del_killed_while_it_compacts_the_journal_loses_and_leaves_nothing");
}
