//! Kubernetes' own objects, metadata included: Namespace and Pod. Fields that a network does not need are left
//! out; those that it needs are checked.

use std::net::IpAddr;

use super::labels;
use super::reader::{Field, Map};
use crate::ids::{NamespaceName, NodeName, ObjectName};
use crate::k8s::{
    Container, ContainerPort, Labels, Namespace, ObjectMeta, Pod, PodIp, PodSpec, PodStatus, Protocol,
};

/// Label that the API server gives every namespace: its name.
const NAME_LABEL: &str = "kubernetes.io/metadata.name";
/// Namespace of an object that names none, as for `kubectl`.
const DEFAULT_NAMESPACE: &str = "default";
const NAMESPACE: &str = "a namespace name (lower-case letters, digits and '-', at most 63 characters)";
const NAME: &str = "a name (lower-case letters, digits, '-' and '.', at most 253 characters)";

/// `v1.Namespace`.
pub(super) fn namespace(map: &Map<'_>) -> Option<Namespace> {
    let field = map.required("metadata", "a mapping with a name")?;
    let mut metadata = metadata(&field, false)?;
    // pkg/apis/core/v1/defaults.go, SetDefaults_Namespace: set whatever stood there.
    metadata.labels.insert(NAME_LABEL.to_owned(), metadata.name.clone());
    Some(Namespace { metadata })
}

/// `v1.Pod`.
pub(super) fn pod(map: &Map<'_>) -> Option<Pod> {
    let metadata = map.required("metadata", "a mapping with a name").and_then(|f| metadata(&f, true));
    let spec = map.or("spec", PodSpec::default(), pod_spec);
    let status = map.or("status", PodStatus::default(), pod_status);
    Some(Pod { metadata: metadata?, spec: spec?, status: status? })
}

/// `metadata:` of a Kubernetes object. Keys that we do not use are ignored: API servers add many.
pub(super) fn metadata(field: &Field<'_>, namespaced: bool) -> Option<ObjectMeta> {
    let map = field.map("a mapping with a name")?;
    let name = map.required("name", if namespaced { NAME } else { NAMESPACE }).and_then(|f| {
        if namespaced {
            f.parse::<ObjectName>(NAME).map(String::from)
        } else {
            f.parse::<NamespaceName>(NAMESPACE).map(String::from)
        }
    });
    let namespace = match map.optional("namespace") {
        Some(f) if namespaced => f.parse::<NamespaceName>(NAMESPACE).map(String::from),
        Some(f) => {
            f.wrong("no namespace: objects of this kind have none");
            None
        }
        None if namespaced => Some(DEFAULT_NAMESPACE.to_owned()),
        None => Some(String::new()),
    };
    let uid = map.or("uid", String::new(), |f| f.text("text").map(str::to_owned));
    let labels_read = map.or("labels", Labels::new(), labels::read);
    let annotations = map.or("annotations", Labels::new(), labels::annotations);
    Some(ObjectMeta {
        name: name?,
        namespace: namespace?,
        uid: uid?,
        labels: labels_read?,
        annotations: annotations?,
    })
}

fn pod_spec(field: &Field<'_>) -> Option<PodSpec> {
    let map = field.map("a pod's spec")?;
    let node_name = map.or("nodeName", String::new(), |f| {
        if f.as_text() == Some("") {
            return Some(String::new());
        }
        f.parse::<NodeName>("a node name").map(String::from)
    });
    let host_network = map.or("hostNetwork", false, Field::boolean);
    let containers = map.or("containers", vec![], |f| f.list("a list of containers", container));
    let init_containers = map.or("initContainers", vec![], |f| f.list("a list of containers", container));
    Some(PodSpec {
        node_name: node_name?,
        host_network: host_network?,
        containers: containers?,
        init_containers: init_containers?,
    })
}

fn container(field: &Field<'_>) -> Option<Container> {
    let map = field.map("a container")?;
    let name = map.or("name", String::new(), |f| f.text("a container name").map(str::to_owned));
    let ports = map.or("ports", vec![], |f| f.list("a list of container ports", container_port));
    let restart_policy =
        map.maybe("restartPolicy", |f| f.text("a restart policy (Always)").map(str::to_owned));
    Some(Container { name: name?, ports: ports?, restart_policy: restart_policy? })
}

fn container_port(field: &Field<'_>) -> Option<ContainerPort> {
    let map = field.map("a container port")?;
    let name = map.or("name", String::new(), |f| f.text("a port name").map(str::to_owned));
    let container_port = map.required("containerPort", PORT).and_then(|f| port_number(&f));
    let protocol = map.or("protocol", Protocol::Tcp, protocol);
    Some(ContainerPort { name: name?, container_port: container_port?, protocol: protocol? })
}

fn pod_status(field: &Field<'_>) -> Option<PodStatus> {
    let map = field.map("a pod's status")?;
    let phase = map.or("phase", String::new(), |f| {
        let words = ["Pending", "Running", "Succeeded", "Failed", "Unknown"].map(|word| (word, word));
        f.one_of(&words).map(str::to_owned)
    });
    let pod_ip = map.or("podIP", String::new(), address);
    let pod_ips = map.or("podIPs", vec![], |f| {
        f.list("a list of mappings with an ip", |item| {
            let ip = item.map("a mapping with an ip")?;
            let ip = ip.required("ip", "an IPv4 or IPv6 address").and_then(|f| address(&f))?;
            Some(PodIp { ip })
        })
    });
    Some(PodStatus { phase: phase?, pod_ip: pod_ip?, pod_ips: pod_ips? })
}

/// An address in its usual form, or the empty text that an API server writes before there is one.
fn address(field: &Field<'_>) -> Option<String> {
    if field.as_text() == Some("") {
        return Some(String::new());
    }
    field.parse::<IpAddr>("an IPv4 or IPv6 address").map(|address| address.to_string())
}

pub(super) const PORT: &str = "a port from 1 to 65535";

/// A port number from 1 to 65535.
pub(super) fn port_number(field: &Field<'_>) -> Option<u16> {
    u16::try_from(field.integer_in(1..=65535, PORT)?).ok()
}

/// `protocol:`, in capitals as the API server wants it.
pub(super) fn protocol(field: &Field<'_>) -> Option<Protocol> {
    field.one_of(&[("TCP", Protocol::Tcp), ("UDP", Protocol::Udp), ("SCTP", Protocol::Sctp)])
}
