//! Every event in every state that matters, and random histories.

use proptest::prelude::*;

use podway_store::{Change, Entry};

use super::*;
use crate::records::tests::{BOOT, record};

const MS: Duration = Duration::from_millis(1);

fn core() -> Core {
    Core::new(BOOT.parse().unwrap(), "n1".to_owned(), Limits::default(), TableFlags::default())
}

fn step(core: &mut Core, at: Duration, event: Event) -> Vec<Action> {
    let mut out = Vec::new();
    core.step(at, event, &mut out);
    out
}

fn pod(namespace: &str, name: &str, address: &str) -> Entry {
    let value = format!(
        r#"{{"metadata":{{"namespace":"{namespace}","name":"{name}","labels":{{"app":"{name}"}}}},
            "status":{{"podIPs":[{{"ip":"{address}"}}]}}}}"#
    );
    entry(&format!("objects/pods/{namespace}/{name}"), &value)
}

fn deny(namespace: &str) -> Entry {
    let value = format!(r#"{{"metadata":{{"namespace":"{namespace}","name":"deny"}},"spec":{{}}}}"#);
    entry(&format!("objects/networkpolicies/{namespace}/deny"), &value)
}

fn entry(key: &str, value: &str) -> Entry {
    Entry { key: key.into(), value: value.into(), create_revision: 1, mod_revision: 1 }
}

fn snapshot(entries: Vec<Entry>) -> Event {
    Event::Store(StoreEvent::Snapshot { entries, revision: 5 })
}

fn changes(changes: Vec<Change>) -> Event {
    Event::Store(StoreEvent::Changes { changes, revision: 6 })
}

fn file(record: &EndpointRecord) -> Vec<u8> {
    serde_json::to_vec(record).unwrap()
}

fn announced(ticket: Ticket, record: &EndpointRecord) -> Event {
    Event::Announced(ticket, Box::new(record.clone()))
}

/// A core whose table is in force.
fn loaded(entries: Vec<Entry>, records: &[EndpointRecord]) -> Core {
    let mut core = core();
    assert_eq!(step(&mut core, MS, snapshot(entries)), []);
    let files = records.iter().map(|r| (r.id.clone(), file(r))).collect();
    let out = step(&mut core, MS, Event::Folder(files));
    assert!(matches!(out[..], [Action::Replace(_, Why::FirstLoad)]), "{out:?}");
    assert_eq!(step(&mut core, MS, Event::Committed), []);
    assert!(core.waiting_for().is_empty());
    core
}

fn is_replace(out: &[Action], why: Why) -> bool {
    matches!(out, [Action::Replace(_, found)] if *found == why)
}

#[test]
fn nothing_is_sent_before_store_and_folder_have_been_read() {
    let mut core = core();
    let a = record("x", "a", "10.244.1.2");
    assert_eq!(step(&mut core, MS, Event::Folder([(a.id.clone(), file(&a))].into())), []);
    assert_eq!(step(&mut core, MS, Event::TableTouched), []);
    let away = Event::Store(StoreEvent::Unavailable { reason: "refused".into() });
    assert_eq!(step(&mut core, MS, away), []);
    assert_eq!(core.waiting_for(), ["store: away since the start: refused"]);
    let out = step(&mut core, MS, snapshot(vec![]));
    let [Action::Replace(table, Why::FirstLoad)] = &out[..] else { panic!("{out:?}") };
    let elements: usize = table.sets.iter().map(|set| set.elements.len()).sum();
    assert_eq!(elements, 3, "interface, and one policy set per direction");
}

#[test]
fn an_announcement_is_answered_when_the_kernel_holds_it() {
    let mut core = core();
    let (a, b) = (record("x", "a", "10.244.1.2"), record("x", "b", "10.244.1.3"));
    assert_eq!(step(&mut core, MS, announced(1, &a)), []);
    assert_eq!(step(&mut core, MS, Event::Folder([(a.id.clone(), file(&a))].into())), []);
    let out = step(&mut core, MS, snapshot(vec![pod("x", "a", "10.244.1.2")]));
    assert!(is_replace(&out, Why::FirstLoad));
    // What comes during the commit goes into the next one.
    assert_eq!(step(&mut core, MS, announced(2, &b)), []);
    let out = step(&mut core, MS, Event::Committed);
    assert_eq!(out[0], Action::Answer(1, PolicyReply::Programmed { pod_known: true }));
    assert!(matches!(out[1..], [Action::Change(_)]), "{out:?}");
    let out = step(&mut core, MS, Event::Committed);
    assert_eq!(out, [Action::Answer(2, PolicyReply::Programmed { pod_known: false })]);
    // Nothing new: the answer comes at once.
    let out = step(&mut core, MS, announced(3, &b));
    assert_eq!(out, [Action::Answer(3, PolicyReply::Programmed { pod_known: false })]);
}

#[test]
fn an_announcement_that_is_wrong_is_refused_with_the_field() {
    let mut core = loaded(vec![], &[]);
    let mut a = record("x", "a", "10.244.1.2");
    a.host_ifname = "eth0".parse().unwrap();
    let out = step(&mut core, MS, announced(1, &a));
    assert!(
        matches!(&out[..], [Action::Answer(1, PolicyReply::Failed { reason })] if reason.contains("hostIfname"))
    );
    let mut old = record("x", "a", "10.244.1.2");
    old.boot_id = "00000000-0000-0000-0000-000000000002".parse().unwrap();
    let out = step(&mut core, MS, announced(2, &old));
    assert!(
        matches!(&out[..], [Action::Answer(2, PolicyReply::Failed { reason })] if reason.contains("boot"))
    );
}

#[test]
fn announcements_that_wait_for_the_store_have_a_limit() {
    let mut core = core();
    let a = record("x", "a", "10.244.1.2");
    for ticket in 0..WAITING_LIMIT as u64 {
        assert_eq!(step(&mut core, MS, announced(ticket, &a)), []);
    }
    let out = step(&mut core, MS, announced(9999, &a));
    assert!(matches!(out[..], [Action::Answer(0, PolicyReply::Failed { .. })]), "the oldest goes: {out:?}");
}

#[test]
fn a_refused_change_is_followed_by_the_whole_table_again_and_again() {
    let mut core = loaded(vec![], &[]);
    let a = record("x", "a", "10.244.1.2");
    assert!(matches!(step(&mut core, MS, announced(1, &a))[..], [Action::Change(_)]));
    let out = step(&mut core, MS, Event::CommitFailed("EEXIST".into()));
    assert!(matches!(out[..], [Action::Warn(_), Action::Replace(_, Why::Retry)]), "{out:?}");
    let mut now = MS;
    let mut delays = Vec::new();
    for _ in 0..12 {
        let out = step(&mut core, now, Event::CommitFailed("ENOBUFS".into()));
        assert!(matches!(out[..], [Action::Warn(_)]), "{out:?}");
        assert_eq!(core.waiting_for(), ["kernel: ENOBUFS"]);
        let at = core.deadline().unwrap();
        assert_eq!(step(&mut core, at - MS, Event::Tick), []);
        assert!(is_replace(&step(&mut core, at, Event::Tick), Why::Retry));
        delays.push((at - now).as_millis());
        now = at;
    }
    assert_eq!((delays[0], delays[1], delays[11]), (100, 200, 30_000));
    let out = step(&mut core, now, Event::Committed);
    assert_eq!(out, [Action::Answer(1, PolicyReply::Programmed { pod_known: false })]);
    assert!(core.waiting_for().is_empty());
}

#[test]
fn a_touched_table_is_repaired_but_not_in_a_loop() {
    let mut core = loaded(vec![], &[]);
    assert!(is_replace(&step(&mut core, MS, Event::TableTouched), Why::Repair));
    // Touched during the commit: once more, a little later.
    assert_eq!(step(&mut core, MS, Event::TableTouched), []);
    assert_eq!(step(&mut core, MS, Event::Committed), []);
    let at = core.deadline().unwrap();
    assert_eq!(at, MS + REPAIR_PAUSE);
    assert!(is_replace(&step(&mut core, at, Event::Tick), Why::Repair));
    assert_eq!(step(&mut core, at, Event::Committed), []);
    assert_eq!(core.status().repairs, 2);
}

#[test]
fn a_slow_comparison_finds_what_the_monitor_missed() {
    let mut core = loaded(vec![], &[]);
    let at = core.deadline().unwrap();
    assert_eq!(at, MS + AUDIT_EVERY);
    assert!(matches!(step(&mut core, at, Event::Tick)[..], [Action::Audit(_)]));
    assert_eq!(step(&mut core, at, Event::Audited(None)), []);
    let at = core.deadline().unwrap();
    step(&mut core, at, Event::Tick);
    let out = step(&mut core, at, Event::Audited(Some("set pods lacks 1 element".into())));
    assert!(matches!(out[..], [Action::Warn(_), Action::Replace(_, Why::Repair)]), "{out:?}");
    // Lost notifications: after the commit that is on its way.
    assert_eq!(step(&mut core, at, Event::TableUnclear), []);
    assert!(matches!(step(&mut core, at, Event::Committed)[..], [Action::Audit(_)]));
}

#[test]
fn a_store_that_goes_away_changes_nothing() {
    let a = record("x", "a", "10.244.1.2");
    let mut core = loaded(vec![pod("x", "a", "10.244.1.2"), deny("x")], &[a]);
    let away = Event::Store(StoreEvent::Unavailable { reason: "refused".into() });
    assert_eq!(step(&mut core, MS, away), []);
    let status = core.status();
    assert!(status.ready && status.store.contains("away"), "{status:?}");
    assert_eq!((status.endpoints, status.policies, status.pods), (1, 1, 1));
}

#[test]
fn a_record_that_goes_takes_its_elements_and_its_flows_along() {
    let (a, b) = (record("x", "a", "10.244.1.2"), record("x", "b", "10.244.1.3"));
    let mut core = loaded(vec![], &[a.clone(), b]);
    let out = step(&mut core, MS, Event::Record(a.id, None));
    let [Action::Change(transaction), Action::ForgetFlows(addresses)] = &out[..] else { panic!("{out:?}") };
    assert!(transaction.ops.iter().all(|op| matches!(op, podway_nft::Op::DeleteElements { .. })));
    assert_eq!(*addresses, BTreeSet::from(["10.244.1.2".parse().unwrap()]));
    step(&mut core, MS, Event::Committed);
    // The next one soon after: its look at all connections has to wait.
    let out = step(&mut core, 2 * MS, Event::Folder(BTreeMap::new()));
    assert!(matches!(out[..], [Action::Change(_)]), "{out:?}");
    step(&mut core, 2 * MS, Event::Committed);
    let at = core.deadline().unwrap();
    assert_eq!(at, MS + FORGET_PAUSE);
    assert!(matches!(step(&mut core, at, Event::Tick)[..], [Action::ForgetFlows(_)]));
}

#[test]
fn flows_are_forgotten_when_a_remote_pod_ends_but_not_when_it_is_only_renamed_into_knowledge() {
    let a = record("x", "a", "10.244.1.2");
    let mut core = loaded(vec![pod("x", "a", "10.244.1.2"), pod("x", "far", "10.244.2.2")], &[]);
    // The record of a pod that the store knows already: same pod, same address.
    let out = step(&mut core, MS, Event::Record(a.id.clone(), Some(file(&a))));
    assert!(matches!(out[..], [Action::Change(_)]), "{out:?}");
    step(&mut core, MS, Event::Committed);
    let out = step(&mut core, MS, changes(vec![Change::Delete { key: "objects/pods/x/far".into() }]));
    assert!(matches!(out[..], [Action::ForgetFlows(_)]), "{out:?}");
}

#[test]
fn a_damaged_record_is_reported_once_and_the_last_good_one_stays() {
    let a = record("x", "a", "10.244.1.2");
    let mut core = loaded(vec![], std::slice::from_ref(&a));
    let out = step(&mut core, MS, Event::Record(a.id.clone(), Some(b"{".to_vec())));
    assert!(matches!(&out[..], [Action::Warn(line)] if line.contains(&a.id)), "{out:?}");
    assert_eq!(step(&mut core, MS, Event::Record(a.id, Some(b"{".to_vec()))), []);
    let status = core.status();
    assert_eq!((status.endpoints, status.problems.len()), (1, 1), "{status:?}");
}

fn any_event() -> impl Strategy<Value = u8> {
    0..15u8
}

fn make(kind: u8, ticket: u64) -> Event {
    let (a, b) = (record("x", "a", "10.244.1.2"), record("x", "b", "10.244.1.3"));
    match kind {
        0 => snapshot(vec![pod("x", "a", "10.244.1.2"), deny("x")]),
        1 => snapshot(vec![]),
        2 => changes(vec![Change::Put(deny("x")), Change::Put(pod("x", "b", "10.244.1.3"))]),
        3 => changes(vec![Change::Delete { key: "objects/networkpolicies/x/deny".into() }]),
        4 => Event::Folder([(a.id.clone(), file(&a))].into()),
        5 => Event::Record(b.id.clone(), Some(file(&b))),
        6 => Event::Record(a.id, None),
        7 => announced(ticket, &a),
        8 => announced(ticket, &b),
        9 => Event::TableTouched,
        10 => Event::CommitFailed("refused".into()),
        11 => Event::Audited(Some("differs".into())),
        12 => Event::TableUnclear,
        13 => Event::Store(StoreEvent::Unavailable { reason: "away".into() }),
        _ => Event::Committed,
    }
}

proptest! {
    /// In any history: no panic, never two commits at once, nothing sent before both sources were read, and every
    /// announcement is answered once at the end, when the kernel takes what it is given.
    #[test]
    fn any_history_ends_in_order(kinds in prop::collection::vec(any_event(), 0..40)) {
        let mut core = core();
        let (mut now, mut in_flight, mut asked) = (MS, false, BTreeSet::new());
        let take = |out: Vec<Action>, in_flight: &mut bool, asked: &mut BTreeSet<Ticket>| {
            for action in out {
                match action {
                    Action::Replace(..) | Action::Change(_) => {
                        assert!(!*in_flight, "two commits at once");
                        *in_flight = true;
                    }
                    Action::Answer(ticket, _) => assert!(asked.remove(&ticket), "answered twice"),
                    Action::Audit(_) => assert!(!*in_flight),
                    Action::ForgetFlows(_) | Action::Warn(_) | Action::Compare(..) | Action::TellDrop { .. } => {}
                }
            }
        };
        let (mut snapshots, mut folders) = (0, 0);
        for (ticket, kind) in (0..).zip(kinds) {
            now += MS * 30;
            if matches!(kind, 7 | 8) {
                asked.insert(ticket);
            }
            snapshots += usize::from(kind <= 1);
            folders += usize::from(kind == 4);
            let event = make(kind, ticket);
            if matches!(event, Event::Committed | Event::CommitFailed(_)) {
                in_flight = false;
            }
            let out = step(&mut core, now, event);
            take(out, &mut in_flight, &mut asked);
            prop_assert!(!in_flight || (snapshots > 0 && folders > 0), "sent before the sources were read");
        }
        let out = step(&mut core, now, make(0, 0));
        take(out, &mut in_flight, &mut asked);
        if in_flight {
            in_flight = false;
            take(step(&mut core, now, Event::Committed), &mut in_flight, &mut asked);
        }
        let out = step(&mut core, now, make(4, 0));
        take(out, &mut in_flight, &mut asked);
        for _ in 0..4 {
            now += RETRY_LAST;
            if in_flight {
                in_flight = false;
                take(step(&mut core, now, Event::Committed), &mut in_flight, &mut asked);
            } else {
                take(step(&mut core, now, Event::Tick), &mut in_flight, &mut asked);
            }
        }
        prop_assert!(asked.is_empty(), "not answered: {:?}", asked);
        prop_assert!(core.waiting_for().is_empty());
    }
}

#[test]
fn people_are_told_which_policy_decides() {
    let records = [record("x", "a", "10.244.1.2"), record("x", "b", "10.244.1.3")];
    let pods = vec![pod("x", "a", "10.244.1.2"), pod("x", "b", "10.244.1.3"), pod("y", "far", "10.244.2.9")];
    let mut core = loaded(pods.into_iter().chain([deny("x")]).collect(), &records);
    let mut trace = |from: &str, to: &str, traffic: &str| {
        let question = [from, to, traffic].map(str::to_owned);
        match step(&mut core, MS, Event::AskedTrace(7, question)).pop() {
            Some(Action::Answer(7, reply)) => reply,
            other => panic!("{other:?}"),
        }
    };
    let PolicyReply::Traced { flows } = trace("y/far", "x/b", "80") else { panic!("no trace") };
    assert_eq!(flows.len(), 1, "only one family has both addresses");
    assert_eq!((flows[0].from.as_str(), flows[0].allowed), ("y/far (10.244.2.9)", false));
    assert_eq!(flows[0].ingress.policies, ["x/deny"]);
    assert_eq!(flows[0].ingress.reason, "isolated by x/deny, no rule matched");
    let PolicyReply::Traced { flows } = trace("10.244.1.3", "192.0.2.1", "udp/53") else {
        panic!("no trace")
    };
    assert_eq!((flows[0].from.as_str(), flows[0].to.as_str()), ("x/b (10.244.1.3)", "outside (192.0.2.1)"));
    assert!(flows[0].allowed);
    let PolicyReply::Traced { flows } = trace("node/n1", "x/a", "icmp") else { panic!("no trace") };
    assert!(!flows[0].allowed, "of a pod without a node it is not known that this is its own");
    for (from, to, traffic, field) in [
        ("x/nobody", "x/a", "80", "from"),
        ("x/a", "nonsense", "80", "to"),
        ("x/a", "x/b", "tcp/0", "traffic"),
        ("x/a", "x/b", "gre/1", "traffic"),
        ("x/a", "2001:db8::1", "80", "to"),
    ] {
        match trace(from, to, traffic) {
            PolicyReply::Refused { field: found, .. } => assert_eq!(found, field, "{from} {to} {traffic}"),
            other => panic!("{from} {to} {traffic}: {other:?}"),
        }
    }
    let [Action::Answer(8, PolicyReply::Listed(list))] = &step(&mut core, MS, Event::AskedList(8))[..] else {
        panic!("no list")
    };
    assert_eq!(list.policies[0].pods, ["x/a", "x/b"]);
    assert_eq!((list.pods[0].ingress.as_slice(), list.pods[0].egress_set), (&["x/deny".to_owned()][..], 0));
}

#[test]
fn a_dropped_packet_is_told_with_pods_and_policies() {
    let mut core = loaded(vec![pod("x", "a", "10.244.1.2"), deny("x")], &[record("x", "a", "10.244.1.2")]);
    let logged = Logged {
        prefix: "podway-policy".into(),
        source: "192.0.2.1".parse().unwrap(),
        destination: "10.244.1.2".parse().unwrap(),
        protocol: 6,
        port: Some(80),
    };
    let told = Action::TellDrop {
        from: "outside (192.0.2.1)".into(),
        to: "x/a (10.244.1.2)".into(),
        traffic: "tcp/80".into(),
        why: "ingress isolated by x/deny, no rule matched".into(),
    };
    assert_eq!(step(&mut core, MS, Event::Dropped(logged)), [told]);
}

#[test]
fn a_check_compares_only_what_has_come_in() {
    let mut core = core();
    let out = step(&mut core, MS, Event::AskedCheck(1));
    assert!(matches!(&out[..], [Action::Answer(1, PolicyReply::Failed { .. })]), "{out:?}");
    let mut core = loaded(vec![], &[record("x", "a", "10.244.1.2")]);
    let out = step(&mut core, MS, Event::AskedCheck(2));
    assert!(matches!(&out[..], [Action::Compare(2, _)]), "{out:?}");
    let out = step(&mut core, MS, Event::Compared(2, Some("a set is missing".into())));
    let [Action::Answer(2, PolicyReply::Checked(check))] = &out[..] else { panic!("{out:?}") };
    assert_eq!((check.is_clean(), check.unknown_pods.len()), (false, 1));
}
