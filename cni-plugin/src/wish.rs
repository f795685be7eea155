//! Which addresses an attachment wants, and leasing them: for interfaces that we make ([`crate::add`]) and for those
//! that other plugins make ([`crate::ipam`]). Both are asked in the same words.

use std::net::IpAddr;

use ipnet::IpNet;
use podway_ipam::store::since_boot;
use podway_ipam::{Attachment, Grant, LeaseError, LeaseKind, LeaseStore, Refusal, Request};
use podway_kern::rtnl::Rtnl;
use podway_model::endpoint::PodRef;
use podway_model::ids::{NamespaceName, NetworkName, ObjectName};
use podway_model::mistakes::Mistakes;
use podway_model::node_file::NodeFile;
use serde_json::{Map, Value};

use crate::conf::{SOURCE, is_empty, kind};
use crate::error::CniError;
use crate::node::Node;
use crate::settings::{self, Annotations};

/// What the configuration, the runtime and the pod say about addresses.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct AddressWish {
    /// `pools`: to choose from, where neither the pod nor its namespace says otherwise.
    pub pools: Vec<ObjectName>,
    /// `reserved`: addresses that are given only to those who ask for them.
    pub reserved: Vec<IpNet>,
    /// Addresses asked for: `runtimeConfig.ips`, then `args.cni.ips`, then `IP` in `CNI_ARGS`.
    pub ips: Vec<IpAddr>,
    /// `runtimeConfig.ipRanges`: first and last addresses.
    pub ranges: Vec<(IpAddr, IpAddr)>,
    /// What the pod's annotations wish.
    pub annotations: Annotations,
}

impl AddressWish {
    /// Reads what stands in the configuration's own section. Returns `false` for a key that is not about addresses.
    pub fn read_own(&mut self, section: &str, key: &str, value: &Value, mistakes: &mut Mistakes) -> bool {
        let field = format!("{section}.{key}");
        match key {
            "pools" => self.pools = pools(value, &field, mistakes),
            "reserved" => self.reserved = prefixes(value, &field, mistakes),
            _ => return false,
        }
        true
    }

    /// Reads what the runtime says: capabilities, and `args.cni`.
    pub fn read_runtime(
        &mut self,
        runtime: Option<&Map<String, Value>>,
        args: Option<&Map<String, Value>>,
        mistakes: &mut Mistakes,
    ) {
        if let Some(runtime) = runtime {
            self.annotations = Annotations::read(runtime, mistakes);
            if let Some(value) = runtime.get("ipRanges").filter(|value| !is_empty(value)) {
                self.ranges = settings::ranges(value, mistakes);
            }
        }
        let lists = [
            ("runtimeConfig.ips", runtime.and_then(|section| section.get("ips"))),
            ("args.cni.ips", args.and_then(|args| args.get("cni")?.get("ips"))),
        ];
        for (field, list) in lists {
            self.ips.extend(list.map(|list| addresses(list, field, mistakes)).unwrap_or_default());
        }
    }

    /// Adds the addresses that `CNI_ARGS` asks for. Without any, those of the annotations count.
    pub fn add_asked(&mut self, ips: &[IpAddr]) {
        self.ips.extend(ips);
        if self.ips.is_empty() {
            self.ips.clone_from(&self.annotations.ips);
        }
    }

    /// The lease that is asked for. Pools: the pod's, else its namespace's, else the configuration's, else all.
    ///
    /// # Errors
    /// An annotation names what is no pool of this node.
    pub fn request(
        &self,
        attachment: &Attachment,
        network: &NetworkName,
        pod: Option<&PodRef>,
        file: &NodeFile,
        kind: LeaseKind,
    ) -> Result<Request, CniError> {
        let namespace = pod.and_then(|pod| pod.namespace.parse::<NamespaceName>().ok());
        let of_namespace = namespace.and_then(|namespace| file.namespace_pools.get(&namespace));
        let base = of_namespace.filter(|pools| !pools.is_empty()).unwrap_or(&self.pools);
        Ok(Request {
            pools: self.annotations.pools(base, file).map_err(|text| unknown_pool(&text, file))?,
            addresses: self.ips.clone(),
            ranges: self.ranges.clone(),
            reserved: self.reserved.clone(),
            kind,
            ..Request::new(attachment.clone(), network.clone())
        })
    }
}

/// Leases addresses. Where the node's blocks are nearly full, leases that nobody will ever end are ended first.
///
/// # Errors
/// There are none, or the lease file cannot be written.
pub fn lease(
    node: &Node,
    rtnl: &mut Rtnl,
    leases: &mut LeaseStore,
    file: &NodeFile,
    request: &Request,
) -> Result<Grant, CniError> {
    let mut granted = leases.lease(file, request, since_boot());
    let is_full = matches!(&granted, Err(LeaseError::Refused(Refusal::Exhausted { .. })));
    if is_full || leases.ledger().is_nearly_full(file, request, since_boot()) {
        let ended = collect_stale(node, rtnl, leases)?;
        if is_full && ended > 0 {
            granted = leases.lease(file, request, since_boot());
        }
    }
    granted.map_err(CniError::from)
}

/// Ends leases whose pods are gone without a DEL, and says how many: see `podway_ipam::stale`.
fn collect_stale(node: &Node, rtnl: &mut Rtnl, leases: &mut LeaseStore) -> Result<usize, CniError> {
    let present = node.present(rtnl)?;
    let ended = leases.collect_stale(&present, since_boot())?;
    for lease in &ended {
        node.records().remove(&lease.attachment)?;
    }
    Ok(ended.len())
}

fn unknown_pool(text: &str, file: &NodeFile) -> CniError {
    let known: Vec<String> = file.pools.iter().map(|pool| format!("{} ({})", pool.name, pool.cidr)).collect();
    let mut mistakes = Mistakes::default();
    let expected = format!("a pool of this node, one of {},", known.join(", "));
    mistakes.add(SOURCE, "annotation ipv4pools or ipv6pools", format!("{text:?}"), expected);
    CniError::config(&mistakes)
}

fn pools(value: &Value, field: &str, mistakes: &mut Mistakes) -> Vec<ObjectName> {
    let Value::Array(list) = value else {
        mistakes.add(SOURCE, field, kind(value), "a list of pool names");
        return Vec::new();
    };
    let mut pools = Vec::with_capacity(list.len());
    for (i, item) in list.iter().enumerate() {
        match item.as_str().map(str::parse) {
            Some(Ok(name)) => pools.push(name),
            _ => mistakes.add(SOURCE, format!("{field}[{i}]"), item, "a pool name"),
        }
    }
    pools
}

fn prefixes(value: &Value, field: &str, mistakes: &mut Mistakes) -> Vec<IpNet> {
    let Value::Array(list) = value else {
        mistakes.add(SOURCE, field, kind(value), "a list of prefixes");
        return Vec::new();
    };
    let mut all = Vec::with_capacity(list.len());
    for (i, item) in list.iter().enumerate() {
        let text = item.as_str();
        let prefix = text
            .and_then(|text| text.parse::<IpNet>().or_else(|_| text.parse::<IpAddr>().map(IpNet::from)).ok());
        match prefix {
            Some(prefix) => all.push(prefix.trunc()),
            None => mistakes.add(SOURCE, format!("{field}[{i}]"), item, "a prefix or an address"),
        }
    }
    all
}

/// Reads a list of addresses, each with or without a prefix length.
pub(crate) fn addresses(value: &Value, field: &str, mistakes: &mut Mistakes) -> Vec<IpAddr> {
    let Value::Array(list) = value else {
        mistakes.add(SOURCE, field, kind(value), "a list of addresses");
        return Vec::new();
    };
    let parse =
        |text: &str| text.parse::<IpAddr>().or_else(|_| text.parse::<IpNet>().map(|net| net.addr())).ok();
    let mut all = Vec::with_capacity(list.len());
    for (i, item) in list.iter().enumerate() {
        match item.as_str().and_then(parse) {
            Some(address) => all.push(address),
            None => {
                mistakes.add(SOURCE, format!("{field}[{i}]"), item, "an address, 10.0.0.5 or 10.0.0.5/24")
            }
        }
    }
    all
}
