//! A lab with pods in it, and the objects that describe them: what is real, and what the oracle is told.
//!
//! Objects reach the daemons through `podwayctl apply`, in the order of real life: a pod's object with its labels
//! exists before its ADD, its addresses stand in `status.podIPs` after it.

use anyhow::{Context as _, Result};
use podway_model::cluster::Backend;
use podway_model::k8s::{Namespace, NetworkPolicy, Pod as PodObject};
use serde_json::Value;

use crate::lab::{Lab, LabOptions, Node};
use crate::objects;
use crate::pod::Pod;

/// What a cluster is made of.
#[derive(Debug, Clone)]
pub struct ClusterOptions {
    /// Nodes and store.
    pub lab: LabOptions,
    /// How packets get from node to node.
    pub backend: Backend,
    /// The first so many nodes are BGP route reflectors; 0: full mesh.
    pub reflectors: usize,
    /// Whether pods get an IPv6 address too.
    pub ipv6: bool,
}

impl ClusterOptions {
    /// Three nodes, etcd, IPv4.
    pub fn new(name: &str, backend: Backend) -> Self {
        Self { lab: LabOptions::new(name), backend, reflectors: 0, ipv6: false }
    }

    /// The documents that make the cluster what it is.
    pub fn documents(&self) -> Vec<Value> {
        let mut all = vec![objects::cluster_config(self.backend, self.reflectors > 0)];
        let mut pools = objects::pools(self.ipv6);
        if self.backend == Backend::Ipip
            && let Some(v6) = pools.get_mut(1)
        {
            // IPIP carries no IPv6.
            v6["spec"]["encapsulation"] = "vxlan".into();
        }
        all.extend(pools);
        for index in 0..self.reflectors {
            all.push(objects::podway_document(
                "Reflector",
                &format!("n{}", index + 1),
                serde_json::json!({}),
            ));
        }
        all
    }
}

/// A pod that is to be made.
#[derive(Debug, Clone)]
pub struct PodPlan {
    /// Kubernetes namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Index of its node.
    pub node: usize,
    /// Labels.
    pub labels: Vec<(String, String)>,
}

/// The objects that are in the store.
#[derive(Debug, Clone, Default)]
pub struct Objects {
    /// Namespaces.
    pub namespaces: Vec<Namespace>,
    /// Pods.
    pub pods: Vec<PodObject>,
    /// Policies.
    pub policies: Vec<NetworkPolicy>,
}

/// A lab with pods. Field order is drop order: pods end before their nodes.
#[derive(Debug)]
pub struct Cluster {
    /// Wired pods.
    pub pods: Vec<Pod>,
    /// The objects that are in the store.
    pub objects: Objects,
    /// Nodes, underlay, outside world.
    pub lab: Lab,
    /// What it is made of.
    pub options: ClusterOptions,
}

impl Cluster {
    /// Brings the lab up, applies the configuration and the pools, starts the daemons and waits until they are
    /// ready.
    pub fn up(options: ClusterOptions) -> Result<Self> {
        let mut cluster = Self::without_daemons(options)?;
        cluster.lab.apply(&objects::documents(cluster.options.documents()))?;
        cluster.lab.start_daemons()?;
        Ok(cluster)
    }

    /// Brings only the lab up.
    pub fn without_daemons(options: ClusterOptions) -> Result<Self> {
        let lab = Lab::up(options.lab.clone())?;
        Ok(Self { pods: vec![], objects: Objects::default(), lab, options })
    }

    /// Makes namespaces with these labels.
    pub fn add_namespaces(&mut self, all: &[(&str, &[(&str, &str)])]) -> Result<()> {
        for (name, labels) in all {
            let mut namespace = objects::namespace(name);
            for (key, value) in *labels {
                namespace.metadata.labels.insert((*key).to_owned(), (*value).to_owned());
            }
            self.objects.namespaces.push(namespace);
        }
        self.lab.apply(&objects::documents(self.objects.namespaces.iter().map(objects::namespace_document)))
    }

    /// Makes pods: objects, ADD, addresses in the objects.
    pub fn add_pods(&mut self, plans: &[PodPlan]) -> Result<()> {
        let mut made: Vec<PodObject> = vec![];
        for plan in plans {
            let labels: Vec<(&str, &str)> =
                plan.labels.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
            made.push(objects::pod(&plan.namespace, &plan.name, self.node_at(plan.node)?.name(), &labels));
        }
        self.lab.apply(&objects::documents(made.iter().map(objects::pod_document)))?;
        for (plan, object) in plans.iter().zip(&mut made) {
            let node = self.node_at(plan.node)?;
            let pod = Pod::add(&node.place, &self.lab.echo, &plan.namespace, &plan.name)?;
            objects::set_running(object, &pod);
            self.pods.push(pod);
        }
        self.lab.apply(&objects::documents(made.iter().map(objects::pod_document)))?;
        self.objects.pods.extend(made);
        Ok(())
    }

    /// Takes away all pods of a node as if it had crashed: no DEL, and their objects go.
    pub fn forget_pods_of(&mut self, node: &str) -> Result<()> {
        self.pods.retain(|pod| pod.node != node);
        let (gone, stay): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.objects.pods).into_iter().partition(|p| p.spec.node_name == node);
        self.objects.pods = stay;
        if gone.is_empty() {
            return Ok(());
        }
        let first = self.node_at(0)?;
        first.delete(&objects::documents(gone.iter().map(objects::pod_document)))
    }

    /// Applies policies and remembers them for the oracle.
    pub fn apply_policies(&mut self, policies: Vec<NetworkPolicy>) -> Result<()> {
        self.lab.apply(&objects::documents(policies.iter().map(objects::policy_document)))?;
        self.objects.policies.extend(policies);
        Ok(())
    }

    /// Deletes all policies.
    pub fn delete_policies(&mut self) -> Result<()> {
        let policies = std::mem::take(&mut self.objects.policies);
        self.node_at(0)?.delete(&objects::documents(policies.iter().map(objects::policy_document)))
    }

    /// A node by index.
    pub fn node_at(&self, index: usize) -> Result<&Node> {
        self.lab.nodes.get(index).with_context(|| format!("no node number {index}"))
    }

    /// A pod by `namespace/name`.
    pub fn pod(&self, full_name: &str) -> Result<&Pod> {
        self.pods.iter().find(|p| p.full_name() == full_name).with_context(|| format!("no pod {full_name}"))
    }

    /// A pod on node `node` (by index), the first one there.
    pub fn pod_on(&self, node: usize) -> Result<&Pod> {
        let name = self.node_at(node)?.name();
        self.pods.iter().find(|p| p.node == name).with_context(|| format!("no pod on {name}"))
    }

    /// Address families of its pods: whether IPv6, one entry each.
    pub fn families(&self) -> &'static [bool] {
        if self.options.ipv6 { &[false, true] } else { &[false] }
    }
}
