//! What an ADD and a DEL cost in system calls and netlink round trips. Not timed: counts do not depend on how busy the
//! machine is. A count that grows needs a reason, and then a new limit here.

use std::os::unix::net::UnixListener;

use podway_model::names;
use podway_model::socket::{PolicyReply, PolicyRequest, read_message, write_message};
use podway_testkit::pod::Sandbox;

use crate::host::{Call, Families, Host};
use crate::trace;

/// Most system calls and most messages sent to the kernel over netlink.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Limit {
    calls: usize,
    sent: usize,
}

/// What a call costs whatever the machine does besides: without the second and further looks of a wait for the kernel, each
/// of which begins by letting others run first, and with one call for a file or an answer that came in several pieces.
fn undisturbed(calls: &[i64]) -> Vec<i64> {
    let pieces = [libc::SYS_read, libc::SYS_recvfrom];
    let mut left: Vec<i64> = Vec::with_capacity(calls.len());
    let mut rest = calls.iter().copied().peekable();
    while let Some(call) = rest.next() {
        if call == libc::SYS_sched_yield {
            if rest.next_if_eq(&libc::SYS_sendto).is_some() {
                while rest.next_if_eq(&libc::SYS_recvfrom).is_some() {}
            }
        } else if !(pieces.contains(&call) && left.last() == Some(&call)) {
            left.push(call);
        }
    }
    left
}

/// The cheapest of a few runs.
fn cheapest(
    host: &Host,
    pod: &Sandbox,
    verb: &str,
    before: impl Fn(),
    after: impl Fn(),
) -> (Limit, Vec<i64>) {
    let call: Call<'_> = host.call(verb, pod);
    (0..5)
        .map(|_| {
            before();
            let run = trace::run(host, &call, None);
            assert_eq!(run.code, Some(0), "{:?}", run.stdout);
            after();
            let calls = undisturbed(&run.calls);
            let sent = calls.iter().filter(|call| **call == libc::SYS_sendto).count();
            (Limit { calls: calls.len(), sent }, calls)
        })
        .min_by_key(|(cost, _)| cost.calls)
        .unwrap()
}

#[test]
fn add_and_del_cost_no_more_than_they_did() {
    // Not both families: a look at whether the kernel has made an IPv6 address the pod's own may need another one.
    let Some(host) = Host::new("add_and_del_cost_no_more_than_they_did", Families::V4) else { return };
    let (other, pod) = (host.sandbox("other"), host.sandbox("p"));
    host.add(&other);
    let nothing = || ();
    let (add, calls) = cheapest(&host, &pod, "ADD", nothing, || host.del(&pod));
    let (del, more) = cheapest(&host, &pod, "DEL", || drop(host.add(&pod)), nothing);
    println!("ADD {add:?}, DEL {del:?}");
    assert!(add.calls <= 132 && add.sent <= 9, "ADD: {add:?}: {calls:?}");
    // One of the three asks for the device of rates: DEL is not told whether there are any.
    assert!(del.calls <= 79 && del.sent <= 3, "DEL: {del:?}: {more:?}");
    // Nothing is synced to a disk, nobody is waited for.
    for (name, call) in
        [("fsync", libc::SYS_fsync), ("fdatasync", libc::SYS_fdatasync), ("sync", libc::SYS_sync)]
    {
        assert!(!calls.contains(&call) && !more.contains(&call), "{name}");
    }
}

#[test]
fn an_add_that_waits_for_an_agent_costs_no_more_than_it_did() {
    let test = "an_add_that_waits_for_an_agent_costs_no_more_than_it_did";
    let Some(host) = Host::new(test, Families::V4) else { return };
    let (other, pod) = (host.sandbox("other"), host.sandbox("p"));
    host.add(&other);
    host.edit_node_file(|file| file["policy"] = "required".into());
    host.place.run("nft", &["add", "table", "inet", names::POLICY_TABLE]).unwrap();
    let agent = host.place.enter(|| UnixListener::bind(names::POLICY_SOCKET)).unwrap().unwrap();
    // An agent that knows every pod at once. It ends with the test's process.
    std::thread::spawn(move || {
        for stream in agent.incoming() {
            let mut stream = stream.unwrap();
            while let Ok(Some(PolicyRequest::Announce { .. })) = read_message(&mut stream) {
                write_message(&mut stream, &PolicyReply::Programmed { pod_known: true }).unwrap();
            }
        }
    });
    let (add, calls) = cheapest(&host, &pod, "ADD", || (), || host.del(&pod));
    println!("ADD {add:?}");
    // One question to the agent, which is sent as a message too, and no message more to the kernel.
    assert!(add.calls <= 140 && add.sent <= 10, "ADD: {add:?}");
    assert_eq!(calls.iter().filter(|call| **call == libc::SYS_connect).count(), 4, "the agent is asked once");
    assert!(!calls.contains(&libc::SYS_clock_nanosleep), "nobody waits without being told");
}

#[test]
fn an_add_needs_at_most_six_mebibytes() {
    let Some(host) = Host::new("an_add_needs_at_most_six_mebibytes", Families::Dual) else { return };
    let pod = host.sandbox("p");
    for verb in ["ADD", "DEL"] {
        let usage = trace::peak_rss(&host, &host.call(verb, &pod));
        println!("{verb}: {usage} KiB");
        assert!(usage <= 6 << 10, "{verb}: {usage} KiB");
    }
}
