//! Pods: network namespaces wired by the real plugin, with an echo server inside.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context as _, Result};
use ipnet::IpNet;
use podway_kern::ns::NetNs;
use serde_json::{Map, Value};

use crate::cni::{self, Attachment, Called, CniError, Runtime, TRY_AGAIN_LATER};
use crate::echo::{Echo, EchoRuntime};
use crate::place::Place;
use crate::wait::wait_until;

/// Where runtimes pin the network namespaces of pods.
const NETNS_DIR: &str = "/run/netns";

/// A pod's network namespace on a node, as a runtime prepares it before ADD.
#[derive(Debug)]
pub struct Sandbox {
    /// The namespace.
    pub net: NetNs,
    /// What the plugin is told.
    pub attachment: Attachment,
}

impl Sandbox {
    /// Makes the namespace of pod `namespace/name` on a node.
    pub fn new(node: &Place, namespace: &str, name: &str) -> Result<Self> {
        let container_id = format!("{namespace}-{name}-{}", unique());
        let path = format!("{NETNS_DIR}/{container_id}");
        let net = node
            .enter(|| NetNs::create_pinned(&path))?
            .with_context(|| format!("make the namespace of {namespace}/{name}"))?;
        let attachment = Attachment {
            uid: format!("uid-{container_id}"),
            container_id,
            netns: path,
            ifname: "eth0".to_owned(),
            namespace: namespace.to_owned(),
            pod: name.to_owned(),
            capability_args: Map::new(),
        };
        Ok(Self { net, attachment })
    }

    /// Takes the namespace away, as a runtime does after DEL.
    pub fn remove(self, node: &Place) -> Result<()> {
        node.enter(|| NetNs::unpin(&self.attachment.netns))??;
        Ok(())
    }
}

/// A wired pod.
#[derive(Debug)]
pub struct Pod {
    /// Its namespace.
    pub sandbox: Sandbox,
    /// Node on which it runs.
    pub node: String,
    /// Result of its ADD.
    pub result: Value,
    /// Its addresses, IPv4 first.
    pub addresses: Vec<IpAddr>,
    /// How long its ADD took, the last try alone.
    pub add_took: Duration,
    _echo: Echo,
}

impl Pod {
    /// Wires a pod: makes its namespace, calls ADD (again while the answer is "try again later", as a kubelet
    /// does), starts its echo server.
    pub fn add(node: &Place, echo: &EchoRuntime, namespace: &str, name: &str) -> Result<Self> {
        let sandbox = Sandbox::new(node, namespace, name)?;
        let called = add_patiently(node, &sandbox.attachment, Duration::from_secs(20))?
            .with_context(|| format!("ADD of {namespace}/{name} on {}", node.name()))?;
        let mut addresses: Vec<IpAddr> =
            cni::result_addresses(&called.result)?.iter().map(IpNet::addr).collect();
        addresses.sort();
        let server = echo.serve(&sandbox.net, &format!("{namespace}/{name}"))?;
        Ok(Self {
            sandbox,
            node: node.name().to_owned(),
            result: called.result,
            addresses,
            add_took: called.took,
            _echo: server,
        })
    }

    /// `namespace/name`, which is also the name with which its echo server answers.
    pub fn full_name(&self) -> String {
        format!("{}/{}", self.sandbox.attachment.namespace, self.sandbox.attachment.pod)
    }

    /// Its name without the namespace.
    pub fn name(&self) -> &str {
        &self.sandbox.attachment.pod
    }

    /// Its Kubernetes namespace.
    pub fn namespace(&self) -> &str {
        &self.sandbox.attachment.namespace
    }

    /// Its network namespace.
    pub fn net(&self) -> &NetNs {
        &self.sandbox.net
    }

    /// Its address of this family, if it has one.
    pub fn address(&self, v6: bool) -> Option<IpAddr> {
        self.addresses.iter().copied().find(|address| address.is_ipv6() == v6)
    }

    /// CHECK.
    pub fn check(&self, node: &Place) -> Result<Result<Called, CniError>> {
        Runtime::new(node).check(&self.sandbox.attachment, &self.result)
    }

    /// DEL, and the namespace goes. Returns how long DEL took.
    pub fn delete(self, node: &Place) -> Result<Duration> {
        let called = Runtime::new(node)
            .del(&self.sandbox.attachment, Some(&self.result))?
            .with_context(|| format!("DEL of {} on {}", self.full_name(), node.name()))?;
        self.sandbox.remove(node)?;
        Ok(called.took)
    }
}

/// ADD, repeated while the plugin answers "try again later".
pub fn add_patiently(
    node: &Place,
    attachment: &Attachment,
    patience: Duration,
) -> Result<Result<Called, CniError>> {
    let mut last = None;
    let answered = wait_until("ADD is not told to try again later", patience, || {
        match Runtime::new(node).add(attachment)? {
            Err(e) if e.code == TRY_AGAIN_LATER => {
                last = Some(e);
                Ok(None)
            }
            answer => Ok(Some(answer)),
        }
    });
    match (answered, last) {
        (Err(_), Some(last)) => Ok(Err(last)),
        (other, _) => other,
    }
}

/// A number that no other pod of this process has had.
fn unique() -> u64 {
    use std::sync::atomic::{AtomicU64, Ordering};
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}
