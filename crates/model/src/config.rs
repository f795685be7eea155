//! The configuration file of a node, [`crate::names::CONFIG_FILE`]: one file for both daemons and `podwayctl`.
//!
//! What holds for the whole cluster is not here but in the store ([`crate::cluster::ClusterConfig`]). Read with
//! [`crate::document::parse_config`]: unknown keys are refused, all mistakes are reported at once.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;

use crate::ids::{Asn, IfName, NodeName};

/// The whole file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NodeConfig {
    /// `node:` who this node is.
    pub node: NodeSection,
    /// `store:` where the cluster's state is kept.
    pub store: StoreConfig,
    /// `log:` what the daemons write to standard error.
    pub log: LogConfig,
    /// `routed:` settings of that daemon.
    pub routed: DaemonSection,
    /// `policyAgent:` settings of that daemon.
    pub policy_agent: DaemonSection,
}

/// `node:`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NodeSection {
    /// `name:`; none: the host name.
    pub name: Option<NodeName>,
    /// By which addresses other nodes reach this one.
    pub addresses: NodeAddresses,
    /// `labels:` for pool and peer selectors.
    pub labels: BTreeMap<String, String>,
    /// `asn:` where it is not the cluster's.
    pub asn: Option<Asn>,
}

/// How a node finds the addresses by which others reach it: at most one of these keys of `node:`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum NodeAddresses {
    /// The addresses of the interface with the default route.
    #[default]
    DefaultRoute,
    /// `addresses:` these, at most one per family.
    These(Vec<IpAddr>),
    /// `addressesFromEnvironment:` those that an environment variable lists, separated by commas.
    Environment(String),
    /// `interface:` those of this interface.
    Interface(IfName),
    /// `interfacePattern:` those of the first interface whose name matches.
    Pattern(NamePattern),
    /// `canReach:` those from which the kernel would send to these, at most one per family.
    CanReach(Vec<IpAddr>),
}

/// A regular expression for names. It may match a part of a name, as flannel's and Calico's do.
#[derive(Debug, Clone)]
pub struct NamePattern(regex_lite::Regex);

impl NamePattern {
    /// Whether a name matches.
    pub fn matches(&self, name: &str) -> bool {
        self.0.is_match(name)
    }
}

impl FromStr for NamePattern {
    type Err = regex_lite::Error;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse().map(Self)
    }
}

impl fmt::Display for NamePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.as_str())
    }
}

impl PartialEq for NamePattern {
    fn eq(&self, other: &Self) -> bool {
        self.0.as_str() == other.0.as_str()
    }
}

impl Eq for NamePattern {}

/// `store:` exactly one of `etcd:` and `file:`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StoreConfig {
    /// `etcd:`.
    Etcd(EtcdConfig),
    /// `file:`.
    File(FileConfig),
}

impl Default for StoreConfig {
    /// A single node needs no server: a folder of documents.
    fn default() -> Self {
        Self::File(FileConfig { path: PathBuf::from("/etc/podway/cluster") })
    }
}

/// `store.etcd:`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EtcdConfig {
    /// `endpoints:` URLs, at least one.
    pub endpoints: Vec<String>,
    /// `prefix:` of every key; ends with a slash.
    pub prefix: String,
    /// `caFile:`, PEM.
    pub ca_file: Option<PathBuf>,
    /// `certFile:`, PEM, with `keyFile`.
    pub cert_file: Option<PathBuf>,
    /// `keyFile:`, PEM, with `certFile`.
    pub key_file: Option<PathBuf>,
    /// `username:`, with `passwordFile`.
    pub username: Option<String>,
    /// `passwordFile:`; trailing newline ignored.
    pub password_file: Option<PathBuf>,
    /// `leaseSeconds:` how long a node counts as alive after its last sign of life.
    pub lease_seconds: u32,
}

impl Default for EtcdConfig {
    fn default() -> Self {
        Self {
            endpoints: vec!["http://127.0.0.1:2379".to_owned()],
            prefix: crate::names::ETCD_PREFIX.to_owned(),
            ca_file: None,
            cert_file: None,
            key_file: None,
            username: None,
            password_file: None,
            lease_seconds: 30,
        }
    }
}

/// `store.file:`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileConfig {
    /// `path:` one document file, or a folder of them.
    pub path: PathBuf,
}

/// `log:`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogConfig {
    /// `level:` `error`, `warn`, `info`, `debug`, `trace`, or a `tracing` filter.
    pub level: String,
    /// `format:` `text` or `json`.
    pub format: LogFormat,
}

impl Default for LogConfig {
    fn default() -> Self {
        Self { level: "info".to_owned(), format: LogFormat::Text }
    }
}

/// Form of log lines.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}

/// `routed:` and `policyAgent:`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DaemonSection {
    /// `healthListen:` address and port of `/healthz`, `/readyz`, `/metrics`; none: no TCP port is opened.
    pub health_listen: Option<SocketAddr>,
}
