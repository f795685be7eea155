//! A small cluster to judge flows in: two nodes, three namespaces, both families.

#![allow(dead_code, unreachable_pub, reason = "each test binary uses its part")]

pub mod cases;
pub mod judges;
pub mod random;
pub mod tables;

use std::collections::BTreeMap;
use std::net::IpAddr;

use podway_model::endpoint::PodRef;
use podway_model::k8s::{Namespace, NetworkPolicy, Pod, Protocol};
use podway_model::names;
use podway_policy::Endpoint;
use podway_policy::oracle::{Cluster, End, Flow, Traffic};

/// The nodes, with their addresses.
pub const NODES: [(&str, [&str; 2]); 2] =
    [("n1", ["172.18.0.1", "fd00:172:18::1"]), ("n2", ["172.18.0.2", "fd00:172:18::2"])];

/// Objects of a cluster, and pods that nobody has heard of (namespace, name, node).
#[derive(Debug, Clone, Default)]
pub struct World {
    pub namespaces: Vec<Namespace>,
    pub pods: Vec<Pod>,
    pub policies: Vec<NetworkPolicy>,
    pub ghosts: Vec<Pod>,
}

impl World {
    pub fn cluster(&self) -> Cluster<'_> {
        Cluster { namespaces: &self.namespaces, pods: &self.pods, policies: &self.policies }
    }

    /// Every pod that has an interface of its own.
    pub fn wired(&self) -> impl Iterator<Item = &Pod> {
        self.pods.iter().chain(&self.ghosts).filter(|p| !p.spec.host_network && !p.addresses().is_empty())
    }

    /// The attachments on a node, by id.
    pub fn endpoints(&self, node: &str) -> BTreeMap<String, Endpoint> {
        self.wired()
            .filter(|pod| pod.spec.node_name == node)
            .map(|pod| (id_of(pod), endpoint_of(pod)))
            .collect()
    }

    /// The node that an end is on or is.
    pub fn node_of(&self, end: &End) -> Option<String> {
        match end {
            End::Pod { node: name, .. } | End::Node { name, .. } => Some(name.clone()),
            End::Outside { .. } => None,
        }
    }

    /// Host side of the veth of a wired pod.
    pub fn interface_of(&self, end: &End) -> Option<String> {
        let End::Pod { namespace, name, .. } = end else { return None };
        let pod = self.wired().find(|p| p.metadata.namespace == *namespace && p.metadata.name == *name)?;
        Some(endpoint_of(pod).ifname.to_string())
    }

    /// Reads an end: `namespace/pod`, `node:n1` or `out:192.0.2.1`, in a family.
    pub fn end(&self, text: &str, v6: bool) -> End {
        if let Some(address) = text.strip_prefix("out:") {
            return End::Outside { address: address.parse().unwrap() };
        }
        if let Some(name) = text.strip_prefix("node:") {
            let (_, addresses) = NODES.iter().find(|(n, _)| *n == name).unwrap();
            return End::Node { name: name.to_owned(), address: addresses[usize::from(v6)].parse().unwrap() };
        }
        let (namespace, name) = text.split_once('/').unwrap();
        let pod = self
            .pods
            .iter()
            .chain(&self.ghosts)
            .find(|p| p.metadata.namespace == namespace && p.metadata.name == name)
            .unwrap_or_else(|| panic!("no pod {text}"));
        let address = pod.addresses().into_iter().find(|a| a.is_ipv6() == v6).unwrap();
        let node = pod.spec.node_name.clone();
        End::Pod { namespace: namespace.to_owned(), name: name.to_owned(), node, address }
    }
}

/// Reads traffic: `tcp:80`, `udp:53`, `sctp:7`, `icmp`, `proto:47`.
pub fn traffic(text: &str, v6: bool) -> Traffic {
    if text == "icmp" {
        return Traffic::Other(if v6 { 58 } else { 1 });
    }
    let (kind, number) = text.split_once(':').unwrap();
    match kind {
        "proto" => Traffic::Other(number.parse().unwrap()),
        protocol => Traffic::Port(protocol.parse::<Protocol>().unwrap(), number.parse().unwrap()),
    }
}

/// Id of a pod's attachment.
pub fn id_of(pod: &Pod) -> String {
    names::attachment_id(&container_of(pod), "eth0")
}

pub fn endpoint_of(pod: &Pod) -> Endpoint {
    let uid = (!pod.metadata.uid.is_empty()).then(|| pod.metadata.uid.clone());
    Endpoint {
        ifname: names::host_ifname(&container_of(pod), "eth0").parse().unwrap(),
        addresses: pod.addresses().into_iter().collect(),
        pod: Some(PodRef { namespace: pod.metadata.namespace.clone(), name: pod.metadata.name.clone(), uid }),
    }
}

fn container_of(pod: &Pod) -> String {
    format!("{}.{}", pod.metadata.namespace, pod.metadata.name)
}

pub fn flow(source: End, destination: End, traffic: Traffic) -> Flow {
    Flow { source, destination, traffic }
}

/// A pod with an IPv4 and an IPv6 address that end in `number`.
pub fn pod(namespace: &str, name: &str, node: &str, number: u8, labels: &[(&str, &str)]) -> Pod {
    let mut pod = Pod::default();
    pod.metadata.namespace = namespace.to_owned();
    pod.metadata.name = name.to_owned();
    pod.metadata.labels = labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    pod.spec.node_name = node.to_owned();
    pod.status.phase = "Running".to_owned();
    let block = if node == "n1" { 1 } else { 2 };
    let ips: [IpAddr; 2] =
        [IpAddr::from([10, 244, block, number]), format!("fd00:10:244:{block}::{number:x}").parse().unwrap()];
    pod.status.pod_ips = ips.iter().map(|ip| podway_model::k8s::PodIp { ip: ip.to_string() }).collect();
    pod
}

pub fn namespace(name: &str, labels: &[(&str, &str)]) -> Namespace {
    let mut namespace = Namespace::default();
    namespace.metadata.name = name.to_owned();
    namespace.metadata.labels = labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    namespace.metadata.labels.insert("kubernetes.io/metadata.name".to_owned(), name.to_owned());
    namespace
}
