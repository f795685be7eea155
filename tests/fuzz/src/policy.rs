//! The policy engine: however the objects came to be what they are, the table is the one that a single look makes, and
//! each transaction on the way fits what the kernel holds.

use std::collections::BTreeMap;

use arbitrary::{Result, Unstructured};
use podway_model::document::{Document, parse_documents};
use podway_model::endpoint::PodRef;
use podway_model::k8s::{
    Container, ContainerPort, EgressRule, IngressRule, IpBlock, LabelRequirement, LabelSelector, Namespace,
    NetworkPolicy, Pod, PodIp, PolicyPeer, PolicyPort, PolicyType, PortRef, Protocol, SelectorOperator,
};
use podway_model::names;
use podway_nft::{TableFlags, TableState};
use podway_policy::{Endpoint, Engine, Event, Flush, Limits};

use tables::{apply, meaning};

#[path = "../../../crates/policy/tests/common/tables.rs"]
#[expect(
    clippy::unwrap_used,
    clippy::panic,
    unreachable_pub,
    dead_code,
    reason = "the crate's own tests judge tables with it; a table that it cannot read is a finding"
)]
mod tables;

/// Objects as they are now, by what names them.
#[derive(Debug, Clone, Default)]
struct World {
    namespaces: BTreeMap<String, Namespace>,
    pods: BTreeMap<(String, String), Pod>,
    policies: BTreeMap<(String, String), NetworkPolicy>,
    endpoints: BTreeMap<String, Endpoint>,
}

impl World {
    fn note(&mut self, event: &Event) {
        match event.clone() {
            Event::NamespacePut(object) => _ = self.namespaces.insert(object.metadata.name.clone(), object),
            Event::NamespaceDeleted(name) => _ = self.namespaces.remove(&name),
            Event::PodPut(object) => {
                let key = (object.metadata.namespace.clone(), object.metadata.name.clone());
                self.pods.insert(key, object);
            }
            Event::PodDeleted(namespace, name) => _ = self.pods.remove(&(namespace, name)),
            Event::PolicyPut(object) => {
                let key = (object.metadata.namespace.clone(), object.metadata.name.clone());
                self.policies.insert(key, object);
            }
            Event::PolicyDeleted(namespace, name) => _ = self.policies.remove(&(namespace, name)),
            Event::EndpointPut(id, endpoint) => _ = self.endpoints.insert(id, endpoint),
            Event::EndpointRemoved(id) => _ = self.endpoints.remove(&id),
        }
    }

    /// An engine that sees only how things are.
    fn looked_at_once(&self, limits: Limits) -> Engine {
        let mut engine = Engine::new(limits, TableFlags::default());
        let World { namespaces, pods, policies, endpoints } = self.clone();
        endpoints.into_iter().for_each(|(id, endpoint)| engine.on_event(Event::EndpointPut(id, endpoint)));
        policies.into_values().for_each(|policy| engine.on_event(Event::PolicyPut(policy)));
        pods.into_values().for_each(|pod| engine.on_event(Event::PodPut(pod)));
        namespaces.into_values().for_each(|namespace| engine.on_event(Event::NamespacePut(namespace)));
        engine.on_synced();
        engine.flush();
        engine
    }
}

/// An engine, the table that the kernel holds by its transactions, and the objects.
struct Run {
    engine: Engine,
    kernel: TableState,
    world: World,
    limits: Limits,
}

impl Run {
    fn new(limits: Limits) -> Self {
        let mut engine = Engine::new(limits, TableFlags::default());
        engine.on_synced();
        engine.flush();
        let kernel = engine.table();
        Self { engine, kernel, world: World::default(), limits }
    }

    fn on_event(&mut self, event: Event) {
        self.world.note(&event);
        self.engine.on_event(event);
    }

    fn flush(&mut self) {
        match self.engine.flush() {
            Flush::Change(transaction) => apply(&mut self.kernel, &transaction),
            Flush::Nothing => {}
            Flush::Replace(_) => assert!(self.kernel.sets.is_empty(), "a second whole table"),
        }
        assert_eq!(self.engine.flush(), Flush::Nothing, "nothing is left to do");
    }

    fn compare(mut self) {
        self.flush();
        assert_eq!(self.kernel, self.engine.table(), "what was sent is not what should be there");
        let fresh = self.world.looked_at_once(self.limits);
        let (changed, made) = (meaning(&self.kernel), meaning(&fresh.table()));
        let missing: Vec<_> = made.difference(&changed).collect();
        let extra: Vec<_> = changed.difference(&made).collect();
        assert!(missing.is_empty() && extra.is_empty(), "missing {missing:#?}\nextra {extra:#?}");
        assert_eq!(self.engine.statistics(), fresh.statistics());
        assert_eq!(sorted(self.engine.problems()), sorted(fresh.problems()));
        assert_eq!(sorted(self.engine.unknown_pods()), sorted(fresh.unknown_pods()));
    }
}

fn sorted(mut lines: Vec<String>) -> Vec<String> {
    lines.sort();
    lines
}

/// Operator documents as they come, each an event: what passes the reader is what the engine must bear.
pub fn objects(bytes: &[u8]) {
    let Ok(documents) = parse_documents("input", &String::from_utf8_lossy(bytes)) else { return };
    let mut run = Run::new(Limits::default());
    for document in documents {
        match document {
            Document::Namespace(namespace) => run.on_event(Event::NamespacePut(namespace)),
            Document::NetworkPolicy(policy) => run.on_event(Event::PolicyPut(policy)),
            Document::Pod(pod) => {
                if !pod.spec.host_network {
                    let (id, endpoint) = attachment(&pod);
                    run.on_event(Event::EndpointPut(id, endpoint));
                }
                run.on_event(Event::PodPut(pod));
            }
            Document::ClusterConfig(_)
            | Document::Pool { .. }
            | Document::BgpPeer { .. }
            | Document::BgpFilter { .. }
            | Document::Reflector { .. } => {}
        }
        run.flush();
    }
    run.compare();
}

/// Pods, policies, namespaces and attachments that come, change and go, within limits that come from the bytes.
pub fn engine(bytes: &[u8]) {
    let mut u = Unstructured::new(bytes);
    let tight = u.int_in_range(0..=24u8).unwrap_or(24);
    let limits = match tight {
        0..=11 => Limits { elements: usize::from(tight), ranges: usize::from(tight % 3) },
        _ => Limits::default(),
    };
    let mut run = Run::new(limits);
    // The end of the bytes ends the sequence.
    while !u.is_empty() {
        match step(&mut u) {
            Ok(Some(event)) => run.on_event(event),
            Ok(None) => run.flush(),
            Err(_) => break,
        }
    }
    run.compare();
}

const NAMESPACES: [&str; 3] = ["x", "y", "z"];
const VALUES: [&str; 3] = ["a", "b", "c"];
const KEYS: [&str; 2] = ["app", "tier"];

fn step(u: &mut Unstructured<'_>) -> Result<Option<Event>> {
    Ok(Some(match u.int_in_range(0..=9u8)? {
        0 => Event::NamespacePut(namespace(u)?),
        1 => Event::NamespaceDeleted((*u.choose(&NAMESPACES)?).to_owned()),
        2 | 3 => Event::PodPut(pod(u)?),
        4 => {
            let pod = pod(u)?.metadata;
            Event::PodDeleted(pod.namespace, pod.name)
        }
        5 | 6 => Event::PolicyPut(policy(u)?),
        7 => Event::PolicyDeleted(
            (*u.choose(&NAMESPACES)?).to_owned(),
            format!("p{}", u.int_in_range(0..=3u8)?),
        ),
        8 => {
            let (id, endpoint) = attachment(&pod(u)?);
            if u.ratio(1, 4)? { Event::EndpointRemoved(id) } else { Event::EndpointPut(id, endpoint) }
        }
        _ => return Ok(None),
    }))
}

fn some<T>(
    u: &mut Unstructured<'_>,
    most: u8,
    one: fn(&mut Unstructured<'_>) -> Result<T>,
) -> Result<Vec<T>> {
    (0..u.int_in_range(0..=most)?).map(|_| one(u)).collect()
}

fn label(u: &mut Unstructured<'_>) -> Result<(String, String)> {
    Ok(((*u.choose(&KEYS)?).to_owned(), (*u.choose(&VALUES)?).to_owned()))
}

fn namespace(u: &mut Unstructured<'_>) -> Result<Namespace> {
    let mut namespace = Namespace::default();
    namespace.metadata.name = (*u.choose(&NAMESPACES)?).to_owned();
    namespace.metadata.labels.extend(some(u, 2, label)?);
    Ok(namespace)
}

/// One of nine pods, three a namespace.
fn pod(u: &mut Unstructured<'_>) -> Result<Pod> {
    let number = u.int_in_range(0..=8u8)?;
    let mut pod = Pod::default();
    pod.metadata.namespace = NAMESPACES[usize::from(number / 3)].to_owned();
    pod.metadata.name = format!("pod{number}");
    pod.metadata.labels.extend(some(u, 2, label)?);
    if u.ratio(1, 8)? {
        pod.metadata.uid = format!("{}", u.int_in_range(1..=2u8)?);
    }
    pod.spec.node_name = if number % 3 == 2 { "n2" } else { "n1" }.to_owned();
    pod.spec.host_network = u.ratio(1, 16)?;
    pod.spec.containers = vec![Container {
        name: "main".to_owned(),
        ports: some(u, 2, |u| {
            Ok(ContainerPort {
                name: (*u.choose(&["http", "dns"])?).to_owned(),
                container_port: *u.choose(&[53, 80, 8080])?,
                protocol: *u.choose(&Protocol::ALL)?,
            })
        })?,
        restart_policy: None,
    }];
    pod.status.phase = if u.ratio(1, 16)? { "Failed" } else { "Running" }.to_owned();
    // Addresses move from pod to pod once in a while.
    let last = if u.ratio(1, 8)? { u.int_in_range(2..=10u8)? } else { 2 + number };
    pod.status.pod_ips =
        [format!("10.244.1.{last}"), format!("fd00:10:244:1::{last:x}")].map(|ip| PodIp { ip }).to_vec();
    Ok(pod)
}

/// The attachment of a pod; its interface is its own, as the plugin sees to.
fn attachment(pod: &Pod) -> (String, Endpoint) {
    let container = format!("{}.{}", pod.metadata.namespace, pod.metadata.name);
    let uid = (!pod.metadata.uid.is_empty()).then(|| pod.metadata.uid.clone());
    let endpoint = Endpoint {
        ifname: names::host_ifname(&container, "eth0").parse().expect("host names are names"),
        addresses: pod.addresses().into_iter().collect(),
        pod: Some(PodRef { namespace: pod.metadata.namespace.clone(), name: pod.metadata.name.clone(), uid }),
    };
    (names::attachment_id(&container, "eth0"), endpoint)
}

fn selector(u: &mut Unstructured<'_>) -> Result<LabelSelector> {
    let requirement = |u: &mut Unstructured<'_>| {
        use SelectorOperator::{DoesNotExist, Exists, In, NotIn};
        let (key, value) = label(u)?;
        let operator = *u.choose(&[In, NotIn, Exists, DoesNotExist])?;
        let values = if matches!(operator, In | NotIn) { vec![value] } else { vec![] };
        Ok(LabelRequirement { key, operator, values })
    };
    Ok(LabelSelector {
        match_labels: some(u, 1, label)?.into_iter().collect(),
        match_expressions: some(u, 1, requirement)?,
    })
}

fn policy(u: &mut Unstructured<'_>) -> Result<NetworkPolicy> {
    let mut policy = NetworkPolicy::default();
    policy.metadata.namespace = (*u.choose(&NAMESPACES)?).to_owned();
    policy.metadata.name = format!("p{}", u.int_in_range(0..=3u8)?);
    policy.spec.pod_selector = selector(u)?;
    policy.spec.policy_types = some(u, 2, |u| Ok(*u.choose(&[PolicyType::Ingress, PolicyType::Egress])?))?;
    if u.arbitrary()? {
        let rule =
            |u: &mut Unstructured<'_>| Ok(IngressRule { ports: some(u, 2, port)?, from: some(u, 2, peer)? });
        policy.spec.ingress = Some(some(u, 2, rule)?);
    }
    if u.arbitrary()? {
        let rule =
            |u: &mut Unstructured<'_>| Ok(EgressRule { ports: some(u, 2, port)?, to: some(u, 2, peer)? });
        policy.spec.egress = Some(some(u, 2, rule)?);
    }
    Ok(policy)
}

fn peer(u: &mut Unstructured<'_>) -> Result<PolicyPeer> {
    const BLOCKS: [(&str, &str); 6] = [
        ("0.0.0.0/0", "10.244.0.0/16"),
        ("10.244.0.0/16", "10.244.1.0/24"),
        ("10.244.1.0/28", "10.244.1.2/31"),
        ("192.0.2.0/24", "192.0.2.128/25"),
        ("::/0", "fd00:10:244::/48"),
        ("fd00:10:244:1::/64", "fd00:10:244:1::2/128"),
    ];
    let literal = "the literal is a prefix";
    Ok(match u.int_in_range(0..=2u8)? {
        0 => PolicyPeer { pod_selector: Some(selector(u)?), ..PolicyPeer::default() },
        1 => {
            let pod_selector = if u.arbitrary()? { Some(selector(u)?) } else { None };
            PolicyPeer { namespace_selector: Some(selector(u)?), pod_selector, ip_block: None }
        }
        _ => {
            let (cidr, hole) = u.choose(&BLOCKS)?;
            let except = if u.arbitrary()? { vec![hole.parse().expect(literal)] } else { vec![] };
            PolicyPeer {
                ip_block: Some(IpBlock { cidr: cidr.parse().expect(literal), except }),
                ..PolicyPeer::default()
            }
        }
    })
}

fn port(u: &mut Unstructured<'_>) -> Result<PolicyPort> {
    let protocol = if u.arbitrary()? { Some(*u.choose(&Protocol::ALL)?) } else { None };
    let (port, end_port) = match u.int_in_range(0..=3u8)? {
        0 => (None, None),
        1 => (Some(PortRef::Number(*u.choose(&[53, 80, 81, 8080])?)), None),
        2 => {
            let (first, last) =
                *u.choose(&[(80, 81), (53, 90), (1000, 2000), (1, 65535), (0, 65535), (90, 80)])?;
            (Some(PortRef::Number(first)), Some(last))
        }
        _ => (Some(PortRef::Name((*u.choose(&["http", "dns"])?).to_owned())), None),
    };
    Ok(PolicyPort { protocol, port, end_port })
}
