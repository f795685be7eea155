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
use podway_nft::{TableFlags, TableState};
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
fn run(steps: Vec<Step>, outcome: &mut Outcome, log: &mut Vec<Flush>) -> (Engine, TableState) {
    let mut engine = Engine::new(Limits::default(), TableFlags::default());
    engine.on_synced();
    let Flush::Replace(kernel) = engine.flush() else { panic!("the first flush is a table") };
    let mut kernel = *kernel;
    for step in steps.into_iter().chain([Step::Flush]) {
        match event(step, outcome) {
            Some(event) => engine.on_event(event),
            None => {
                let flush = engine.flush();
                match &flush {
                    Flush::Change(transaction) => apply(&mut kernel, transaction),
                    Flush::Nothing => {}
                    Flush::Replace(_) => panic!("a second whole table"),
                }
                assert_eq!(engine.flush(), Flush::Nothing);
                log.push(flush);
            }
        }
    }
    (engine, kernel)
}

/// An engine that sees only the outcome.
fn fresh(outcome: &Outcome) -> Engine {
    let mut engine = Engine::new(Limits::default(), TableFlags::default());
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

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn incremental_equals_full(steps in prop::collection::vec(step(), 0..60)) {
        let mut outcome = Outcome::default();
        let (engine, kernel) = run(steps, &mut outcome, &mut Vec::new());
        prop_assert_eq!(&kernel, &engine.table(), "what was sent is not what should be there");
        let (changed, made) = (meaning(&kernel), meaning(&fresh(&outcome).table()));
        let missing: Vec<_> = made.difference(&changed).collect();
        let extra: Vec<_> = changed.difference(&made).collect();
        prop_assert!(missing.is_empty() && extra.is_empty(), "missing {missing:#?}\nextra {extra:#?}");
        prop_assert_eq!(engine.statistics(), fresh(&outcome).statistics());
        prop_assert_eq!(engine.problems(), fresh(&outcome).problems());
    }

    #[test]
    fn the_same_history_gives_the_same_transactions(steps in prop::collection::vec(step(), 0..30)) {
        let (mut one, mut other) = (Vec::new(), Vec::new());
        run(steps.clone(), &mut Outcome::default(), &mut one);
        run(steps, &mut Outcome::default(), &mut other);
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
