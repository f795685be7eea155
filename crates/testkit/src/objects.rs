//! Kubernetes objects and Podway documents, typed for the oracle and as text for `podwayctl apply`.

use podway_model::cluster::Backend;
use podway_model::k8s::{Namespace, NetworkPolicy, ObjectMeta, Pod, PodIp, PodSpec, PodStatus};
use serde_json::{Value, json};

use crate::pod;

/// Documents as one text: JSON is YAML too.
pub fn documents(all: impl IntoIterator<Item = Value>) -> String {
    all.into_iter().map(|document| format!("---\n{document}\n")).collect()
}

/// A namespace with the label that the API server sets.
pub fn namespace(name: &str) -> Namespace {
    let mut metadata = ObjectMeta { name: name.to_owned(), ..ObjectMeta::default() };
    metadata.labels.insert("kubernetes.io/metadata.name".to_owned(), name.to_owned());
    Namespace { metadata }
}

/// A pod bound to a node, before its ADD.
pub fn pod(namespace: &str, name: &str, node: &str, labels: &[(&str, &str)]) -> Pod {
    Pod {
        metadata: ObjectMeta {
            name: name.to_owned(),
            namespace: namespace.to_owned(),
            labels: labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
            ..ObjectMeta::default()
        },
        spec: PodSpec { node_name: node.to_owned(), ..PodSpec::default() },
        status: PodStatus { phase: "Pending".to_owned(), ..PodStatus::default() },
    }
}

/// Sets what a kubelet reports after ADD.
pub fn set_running(object: &mut Pod, pod: &pod::Pod) {
    let ips: Vec<String> = pod.addresses.iter().map(ToString::to_string).collect();
    object.status = PodStatus {
        phase: "Running".to_owned(),
        pod_ip: ips.first().cloned().unwrap_or_default(),
        pod_ips: ips.into_iter().map(|ip| PodIp { ip }).collect(),
    };
}

/// A namespace as a document.
pub fn namespace_document(namespace: &Namespace) -> Value {
    kubernetes("v1", "Namespace", namespace)
}

/// A pod as a document.
pub fn pod_document(pod: &Pod) -> Value {
    kubernetes("v1", "Pod", pod)
}

/// A policy as a document.
pub fn policy_document(policy: &NetworkPolicy) -> Value {
    kubernetes("networking.k8s.io/v1", "NetworkPolicy", policy)
}

fn kubernetes(api_version: &str, kind: &str, object: &impl serde::Serialize) -> Value {
    // The types are plain records with text keys: they always have a JSON form.
    let mut document = serde_json::to_value(object).unwrap_or_default();
    document["apiVersion"] = api_version.into();
    document["kind"] = kind.into();
    document
}

/// A document of ours.
pub fn podway_document(kind: &str, name: &str, spec: Value) -> Value {
    json!({"apiVersion": "podway.io/v1", "kind": kind, "metadata": {"name": name}, "spec": spec})
}

/// The cluster's configuration; BGP sessions with the hold time of a lab, 3 s.
pub fn cluster_config(backend: Backend, reflectors: bool) -> Value {
    let topology = if reflectors { "reflectors" } else { "mesh" };
    podway_document(
        "ClusterConfig",
        "default",
        json!({
            "backend": backend.to_string(),
            "bgp": {"topology": topology, "holdTimeSeconds": HOLD_TIME_SECONDS},
        }),
    )
}

/// Hold time of BGP sessions in a lab, in seconds: the shortest that RFC 4271 section 4.2 allows.
pub const HOLD_TIME_SECONDS: u16 = 3;
/// Range of the IPv4 pool of a lab.
pub const POOL_V4: &str = "10.244.0.0/16";
/// Range of the IPv6 pool of a lab.
pub const POOL_V6: &str = "fd00:10:244::/56";

/// The pools of a lab.
pub fn pools(ipv6: bool) -> Vec<Value> {
    let mut pools = vec![podway_document("Pool", "default-v4", json!({"cidr": POOL_V4}))];
    if ipv6 {
        pools.push(podway_document("Pool", "default-v6", json!({"cidr": POOL_V6})));
    }
    pools
}
