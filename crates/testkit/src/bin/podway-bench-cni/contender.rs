//! Who is measured: our plugin, with and without the policy agent's acknowledgement; bridge and ptp with host-local; the
//! bare calls.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};
use podway_model::cluster::Backend;
use podway_model::names;
use podway_testkit::cluster::{Cluster, ClusterOptions};
use podway_testkit::lab::StoreKind;
use podway_testkit::mounts::{PRIVATE, make_private};
use podway_testkit::objects;
use podway_testkit::place::Place;
use podway_testkit::pod::Sandbox;
use serde_json::{Value, json};

use crate::options::Options;

/// Ours without an agent: the one that all are compared with.
pub(crate) const PODWAY: &str = "podway";
/// Ours, with policies required and an agent that answers.
pub(crate) const ACKNOWLEDGED: &str = "podway, acknowledged";
/// The C program.
pub(crate) const BARE: &str = "bare netlink";
/// Upstream's.
pub(crate) const PTP: &str = "ptp + host-local";
/// Upstream's.
pub(crate) const BRIDGE: &str = "bridge + host-local";

/// A plugin and how it is called.
pub(crate) struct Contender {
    pub(crate) name: &'static str,
    program: PathBuf,
    kind: Kind,
}

enum Kind {
    /// With the file of its configuration, and the folder of its delegates.
    Cni {
        configuration: PathBuf,
        path: PathBuf,
    },
    Bare,
}

/// A node on which a contender is measured.
pub(crate) enum Node {
    /// Nothing but namespaces.
    Plain(Place),
    /// One of a lab, with our daemons.
    Lab(Box<Cluster>),
}

impl Node {
    pub(crate) fn place(&self) -> Result<&Place> {
        match self {
            Self::Plain(place) => Ok(place),
            Self::Lab(cluster) => Ok(&cluster.node_at(0)?.place),
        }
    }
}

/// A pod to be: a namespace, and the address that the bare calls give it.
pub(crate) struct Pod {
    sandbox: Sandbox,
    address: String,
}

impl Pod {
    /// Number `number` of a node.
    pub(crate) fn new(place: &Place, number: u16) -> Result<Self> {
        let [high, low] = number.to_be_bytes();
        Ok(Self {
            sandbox: Sandbox::new(place, "bench", &format!("p{number}"))?,
            address: format!("10.200.{high}.{low}"),
        })
    }
}

/// Everybody who can be measured here.
pub(crate) fn all(options: &Options, files: &Path) -> Result<Vec<Contender>> {
    let contender = |name, program: &Path, plugin: Value| -> Result<Contender> {
        let mut configuration = json!({"cniVersion": "1.0.0", "name": "bench"});
        for (key, value) in plugin.as_object().into_iter().flatten() {
            configuration[key] = value.clone();
        }
        let path = files.join(format!("{}.json", name_of_file(name)));
        std::fs::write(&path, configuration.to_string())?;
        let folder = program.parent().context("a program lies in a folder")?.to_owned();
        Ok(Contender {
            name,
            program: program.to_owned(),
            kind: Kind::Cni { configuration: path, path: folder },
        })
    };
    let mut all = vec![
        contender(PODWAY, &options.podway, json!({"type": "podway"}))?,
        contender(ACKNOWLEDGED, &options.podway, json!({"type": "podway"}))?,
    ];
    if let Some(bare) = &options.bare {
        all.push(Contender { name: BARE, program: bare.clone(), kind: Kind::Bare });
    }
    if let Some(others) = &options.others {
        let ipam = json!({
            "type": "host-local", "ranges": [[{"subnet": "10.88.0.0/16"}]], "routes": [{"dst": "0.0.0.0/0"}]
        });
        all.push(contender(PTP, &others.join("ptp"), json!({"type": "ptp", "ipam": ipam}))?);
        let bridge = json!({
            "type": "bridge", "bridge": "cni0", "isGateway": true, "hairpinMode": true, "ipam": ipam
        });
        all.push(contender(BRIDGE, &others.join("bridge"), bridge)?);
    }
    Ok(all)
}

/// A name without spaces and commas.
pub(crate) fn name_of_file(name: &str) -> String {
    name.replace([' ', ',', '+'], "-")
}

impl Contender {
    /// A node for it.
    pub(crate) fn node(&self) -> Result<Node> {
        if self.name == ACKNOWLEDGED {
            return lab().map(|cluster| Node::Lab(Box::new(cluster)));
        }
        let place = Place::new("bench")?;
        make_private(&place, PRIVATE)?;
        let boot = std::fs::read_to_string(names::BOOT_ID_FILE)?;
        let file = json!({
            "schema": 1, "bootId": boot.trim(), "instanceId": "00000000-0000-0000-0000-000000000002",
            "generation": 1, "node": "bench", "confirmed": true, "mtu": 1450, "policy": "none",
            "policyTimeout": "undo", "masquerade": true,
            "pools": [{"name": "v4", "cidr": "10.244.0.0/16", "assignment": "automatic"}],
            "blocks": [{"cidr": "10.244.0.0/20", "pool": "v4", "state": "active"}],
            "tunnelAddresses": ["10.244.0.0"]
        });
        place.enter(|| std::fs::write(names::NODE_FILE, file.to_string()))??;
        Ok(Node::Plain(place))
    }

    /// The process that adds or deletes a pod, and nothing on its standard input that is not read.
    pub(crate) fn command(&self, verb: Verb, pod: &Pod, wrapper: &[String]) -> Result<Command> {
        let attachment = &pod.sandbox.attachment;
        let (first, rest) = match wrapper.split_first() {
            Some((first, rest)) => (PathBuf::from(first), rest),
            None => (self.program.clone(), wrapper),
        };
        let mut command = Command::new(first);
        command.args(rest).env_clear();
        if !wrapper.is_empty() {
            command.arg(&self.program);
        }
        match &self.kind {
            Kind::Cni { configuration, path } => {
                let args = format!(
                    "IgnoreUnknown=1;K8S_POD_NAMESPACE={};K8S_POD_NAME={};K8S_POD_INFRA_CONTAINER_ID={}",
                    attachment.namespace, attachment.pod, attachment.container_id
                );
                command.env("CNI_COMMAND", verb.text()).env("CNI_CONTAINERID", &attachment.container_id);
                command.env("CNI_NETNS", &attachment.netns).env("CNI_IFNAME", &attachment.ifname);
                command.env("CNI_PATH", path).env("CNI_ARGS", args);
                // Plugins of others call iptables and the like.
                command.env("PATH", std::env::var_os("PATH").unwrap_or_default());
                command.stdin(File::open(configuration)?);
            }
            Kind::Bare => {
                let name = names::host_ifname(&attachment.container_id, &attachment.ifname);
                match verb {
                    Verb::Add => command.args(["add", &name, &attachment.netns, &pod.address]),
                    Verb::Del => command.args(["del", &name]),
                };
            }
        }
        Ok(command)
    }

    /// What the program says of itself: its version.
    pub(crate) fn says(&self) -> String {
        let mut command = Command::new(&self.program);
        let output = command.env_remove("CNI_COMMAND").output();
        let text = output.map(|output| String::from_utf8_lossy(&output.stderr).into_owned());
        match &self.kind {
            Kind::Bare => "the same objects by a static C program".to_owned(),
            Kind::Cni { .. } => {
                let text = text.unwrap_or_default();
                let line = text.lines().next().unwrap_or_default();
                line.split(". ").next().unwrap_or(line).replace(" version unknown", "")
            }
        }
    }
}

/// What is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verb {
    Add,
    Del,
}

impl Verb {
    fn text(self) -> &'static str {
        match self {
            Self::Add => "ADD",
            Self::Del => "DEL",
        }
    }
}

/// One node with our daemons, policies required, and a block that is large enough for everybody.
fn lab() -> Result<Cluster> {
    let mut options = ClusterOptions::new("cni-bench", Backend::HostGw);
    options.lab.nodes = 1;
    options.lab.store = StoreKind::File;
    let pool = json!({"cidr": objects::POOL_V4, "blockSize": 20});
    let documents = [
        objects::cluster_config(Backend::HostGw, false),
        objects::podway_document("Pool", "default-v4", pool),
    ];
    let mut cluster = Cluster::without_daemons(options)?;
    cluster.lab.apply(&objects::documents(documents))?;
    cluster.lab.start_daemons()?;
    Ok(cluster)
}
