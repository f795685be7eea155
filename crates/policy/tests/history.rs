//! However the objects came to be what they are: a change at a time leads to the table that one look would make.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    unreachable_pub,
    reason = "tests, and modules of their own"
)]

mod common;

use common::World;
use common::random::{any_namespace, any_pod, policy, put};
use common::tables::{apply, meaning};
use podway_model::k8s::{Namespace, NetworkPolicy, Pod};
use podway_nft::{FakeNft, Nftables as _, TableFlags, TableState, Transaction};
use podway_policy::{Engine, Event, Flush, Limits};
use proptest::prelude::*;

/// A step of a history.
#[derive(Debug, Clone)]
enum Step {
    PutNamespace(Namespace),
    DeleteNamespace(u8),
    PutPod(Pod),
    DeletePod(u8),
    PutPolicy(NetworkPolicy),
    DeletePolicy(u8),
    /// The attachment of a pod comes or goes, whether its object is known or not.
    Attach(Pod, bool),
    Flush,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        2 => any_namespace().prop_map(Step::PutNamespace),
        1 => any::<u8>().prop_map(Step::DeleteNamespace),
        6 => any_pod().prop_map(Step::PutPod),
        2 => any::<u8>().prop_map(Step::DeletePod),
        6 => policy().prop_map(Step::PutPolicy),
        2 => any::<u8>().prop_map(Step::DeletePolicy),
        4 => (any_pod(), prop::bool::weighted(0.7)).prop_map(|(pod, there)| Step::Attach(pod, there)),
        6 => Just(Step::Flush),
    ]
}

/// The outcome of a history: objects, and attachments by id.
#[derive(Default)]
struct Outcome {
    world: World,
    attached: Vec<(String, podway_policy::Endpoint)>,
}

/// The event of a step, which is also noted in the outcome.
fn event(step: Step, outcome: &mut Outcome) -> Option<Event> {
    let World { namespaces, pods, policies, .. } = &mut outcome.world;
    Some(match step {
        Step::PutNamespace(namespace) => {
            put(namespaces, namespace.clone(), |n| n.metadata.name.clone());
            Event::NamespacePut(namespace)
        }
        Step::DeleteNamespace(at) => {
            let gone = take(namespaces, at)?;
            Event::NamespaceDeleted(gone.metadata.name)
        }
        Step::PutPod(pod) => {
            put(pods, pod.clone(), |p| p.metadata.name.clone());
            Event::PodPut(pod)
        }
        Step::DeletePod(at) => {
            let gone = take(pods, at)?.metadata;
            Event::PodDeleted(gone.namespace, gone.name)
        }
        Step::PutPolicy(policy) => {
            put(policies, policy.clone(), |p| (p.metadata.namespace.clone(), p.metadata.name.clone()));
            Event::PolicyPut(policy)
        }
        Step::DeletePolicy(at) => {
            let gone = take(policies, at)?.metadata;
            Event::PolicyDeleted(gone.namespace, gone.name)
        }
        Step::Attach(pod, there) => {
            let (id, endpoint) = (common::id_of(&pod), common::endpoint_of(&pod));
            outcome.attached.retain(|(other, _)| *other != id);
            if !there {
                return Some(Event::EndpointRemoved(id));
            }
            outcome.attached.push((id.clone(), endpoint.clone()));
            Event::EndpointPut(id, endpoint)
        }
        Step::Flush => return None,
    })
}

fn take<T>(all: &mut Vec<T>, at: u8) -> Option<T> {
    (!all.is_empty()).then(|| all.remove(usize::from(at) % all.len()))
}

/// What the kernel holds after a history; every transaction on the way is checked.
fn run(
    limits: Limits,
    steps: Vec<Step>,
    outcome: &mut Outcome,
    log: &mut Vec<Flush>,
) -> (Engine, TableState) {
    let mut engine = Engine::new(limits, TableFlags::default());
    engine.on_synced();
    let Flush::Replace(kernel) = engine.flush() else { panic!("the first flush is a table") };
    let mut kernel = *kernel;
    let mut fake = FakeNft::new();
    fake.commit(&Transaction::create(&kernel)).unwrap();
    for step in steps.into_iter().chain([Step::Flush]) {
        match event(step, outcome) {
            Some(event) => engine.on_event(event),
            None => {
                let flush = engine.flush();
                match &flush {
                    Flush::Change(transaction) => {
                        apply(&mut kernel, transaction);
                        fake.commit(transaction).unwrap();
                    }
                    Flush::Nothing => {}
                    Flush::Replace(_) => panic!("a second whole table"),
                }
                assert_eq!(engine.flush(), Flush::Nothing);
                log.push(flush);
            }
        }
    }
    assert_eq!(fake.table(&kernel.id).as_ref(), Some(&kernel));
    (engine, kernel)
}

/// An engine that sees only the outcome.
fn fresh(limits: Limits, outcome: &Outcome) -> Engine {
    let mut engine = Engine::new(limits, TableFlags::default());
    let World { namespaces, pods, policies, .. } = outcome.world.clone();
    namespaces.into_iter().map(Event::NamespacePut).for_each(|e| engine.on_event(e));
    policies.into_iter().map(Event::PolicyPut).for_each(|e| engine.on_event(e));
    pods.into_iter().map(Event::PodPut).for_each(|e| engine.on_event(e));
    for (id, endpoint) in &outcome.attached {
        engine.on_event(Event::EndpointPut(id.clone(), endpoint.clone()));
    }
    engine.on_synced();
    engine.flush();
    engine
}

fn compare(limits: Limits, steps: Vec<Step>) {
    let mut outcome = Outcome::default();
    let (engine, kernel) = run(limits, steps, &mut outcome, &mut Vec::new());
    assert_eq!(kernel, engine.table(), "what was sent is not what should be there");
    let fresh = fresh(limits, &outcome);
    let (changed, made) = (meaning(&kernel), meaning(&fresh.table()));
    let missing: Vec<_> = made.difference(&changed).collect();
    let extra: Vec<_> = changed.difference(&made).collect();
    assert!(missing.is_empty() && extra.is_empty(), "missing {missing:#?}\nextra {extra:#?}");
    assert_eq!(engine.statistics(), fresh.statistics());
    let sorted = |engine: &Engine| {
        let mut problems = engine.problems();
        problems.sort();
        problems
    };
    assert_eq!(sorted(&engine), sorted(&fresh));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn incremental_equals_full(steps in prop::collection::vec(step(), 0..60)) {
        compare(Limits::default(), steps);
    }

    /// Sets that go above a limit and come back below it are closed and opened as a whole.
    #[test]
    fn incremental_equals_full_around_the_limits(
        steps in prop::collection::vec(step(), 0..60), elements in 0..12usize, ranges in 0..3usize,
    ) {
        compare(Limits { elements, ranges }, steps);
    }

    #[test]
    fn the_same_history_gives_the_same_transactions(steps in prop::collection::vec(step(), 0..30)) {
        let (mut one, mut other) = (Vec::new(), Vec::new());
        run(Limits::default(), steps.clone(), &mut Outcome::default(), &mut one);
        run(Limits::default(), steps, &mut Outcome::default(), &mut other);
        prop_assert_eq!(one, other);
    }
}

#[test]
fn nothing_is_made_before_the_sources_have_synced() {
    let mut engine = Engine::new(Limits::default(), TableFlags::default());
    let pod = common::pod("x", "a", "n1", 2, &[]);
    engine.on_event(Event::EndpointPut(common::id_of(&pod), common::endpoint_of(&pod)));
    assert_eq!(engine.flush(), Flush::Nothing);
    engine.on_synced();
    assert!(matches!(engine.flush(), Flush::Replace(_)));
    assert_eq!(engine.flush(), Flush::Nothing);
}

/// The engine after these events, and what it sends for them.
fn engine_with(events: Vec<Event>) -> Engine {
    let mut engine = Engine::new(Limits::default(), TableFlags::default());
    events.into_iter().for_each(|event| engine.on_event(event));
    engine.on_synced();
    engine.flush();
    engine
}

fn attach(pod: &Pod) -> Event {
    Event::EndpointPut(common::id_of(pod), common::endpoint_of(pod))
}

#[test]
fn an_address_that_two_pods_claim_gains_neithers_labels() {
    let policy: NetworkPolicy = serde_saphyr::from_str(
        "{metadata: {name: p, namespace: x}, spec: {podSelector: {matchLabels: {app: t}}, ingress: [\
          {from: [{podSelector: {matchLabels: {app: a}}}]}, {from: [{podSelector: {matchLabels: {both: yes}}}], ports: [{port: 80}]}]}}",
    )
    .unwrap();
    let target = common::pod("x", "t", "n1", 2, &[("app", "t")]);
    let one = common::pod("x", "one", "n2", 9, &[("app", "a"), ("both", "yes")]);
    let other = common::pod("x", "other", "n2", 9, &[("app", "b"), ("both", "yes")]);
    let mut events = vec![Event::PolicyPut(policy), Event::PodPut(target.clone()), attach(&target)];
    events.push(Event::PodPut(one));
    let mut engine = engine_with(events);
    assert_eq!(common::tables::count(&engine.table(), "ok_any"), 1, "by the label of the only owner");
    engine.on_event(Event::PodPut(other));
    engine.flush();
    let table = engine.table();
    assert_eq!(common::tables::count(&table, "ok_any"), 0, "only one of the two has app=a");
    assert_eq!(common::tables::count(&table, "ok_port"), 1, "both have both=yes");
    engine.on_event(Event::PodDeleted("x".into(), "one".into()));
    engine.flush();
    assert_eq!(common::tables::count(&engine.table(), "ok_port"), 1);
}

#[test]
fn a_record_outranks_what_a_pods_status_says_of_its_address() {
    let policy: NetworkPolicy = serde_saphyr::from_str(
        "{metadata: {name: p, namespace: x}, spec: {podSelector: {matchLabels: {app: t}}, ingress: [\
          {from: [{podSelector: {matchLabels: {app: a}}}]}]}}",
    )
    .unwrap();
    let target = common::pod("x", "t", "n1", 2, &[("app", "t")]);
    let old = common::pod("x", "old", "n1", 9, &[("app", "a")]);
    let new = common::pod("x", "new", "n1", 9, &[]);
    let mut engine = engine_with(vec![
        Event::PolicyPut(policy),
        Event::PodPut(target.clone()),
        attach(&target),
        Event::PodPut(old),
    ]);
    assert_eq!(common::tables::count(&engine.table(), "cls4"), 1);
    assert!(engine.take_released().is_empty());
    engine.on_event(attach(&new));
    engine.flush();
    assert_eq!(common::tables::count(&engine.table(), "cls4"), 0, "the address is the new pod's");
    assert_eq!(engine.take_released().len(), 2, "the flows of the old pod are to be forgotten");
}

#[test]
fn a_pod_of_another_incarnation_is_unknown() {
    let mut old = common::pod("x", "web-0", "n1", 2, &[]);
    old.metadata.uid = "1".into();
    let mut new = old.clone();
    new.metadata.uid = "2".into();
    let mut engine = engine_with(vec![Event::PodPut(old), attach(&new)]);
    assert_eq!(engine.unknown_pods(), ["x/web-0"]);
    engine.on_event(Event::PodPut(new));
    engine.flush();
    assert!(engine.unknown_pods().is_empty());
}

#[test]
fn a_change_of_one_pod_is_a_few_elements() {
    let policy: NetworkPolicy = serde_saphyr::from_str(
        "{metadata: {name: p, namespace: x}, spec: {ingress: [{from: [{podSelector: {matchLabels: {app: a}}}]}]}}",
    )
    .unwrap();
    let mut events = vec![Event::PolicyPut(policy)];
    for number in 2..200 {
        let pod = common::pod("x", &format!("p{number}"), "n1", number, &[("app", "a")]);
        events.extend([attach(&pod), Event::PodPut(pod)]);
    }
    let mut engine = engine_with(events);
    let elements = |flush: Flush| match flush {
        Flush::Change(transaction) => transaction
            .ops
            .iter()
            .map(|op| match op {
                podway_nft::Op::AddElements { elements, .. }
                | podway_nft::Op::DeleteElements { elements, .. } => elements.len(),
                other => panic!("{other}"),
            })
            .sum::<usize>(),
        other => panic!("{other:?}"),
    };
    let mut remote = common::pod("x", "far", "n2", 7, &[("app", "a")]);
    engine.on_event(Event::PodPut(remote.clone()));
    assert_eq!(elements(engine.flush()), 2, "a remote pod: its class, per family");
    remote.metadata.labels.clear();
    engine.on_event(Event::PodPut(remote));
    assert_eq!(elements(engine.flush()), 2, "no selector in use sees it any more");
    let local = common::pod("x", "near", "n1", 210, &[("app", "a")]);
    engine.on_event(Event::PodPut(local.clone()));
    engine.on_event(attach(&local));
    assert_eq!(elements(engine.flush()), 7, "interface, and per family two policy sets and a class");
}
