//! Flannel's keys as the watch shows them, and what follows from them for one node. Pure; made anew when a key or the
//! node's address has changed, not once per step.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::Duration;

use ipnet::IpNet;
use podway_model::cluster::NodeRecord;
use podway_model::flannel::{Backend, LeaseAttrs, NetworkConfig, Prefix, Reach, Subnet};
use podway_model::ids::{InstanceId, NodeName};
use podway_store::{Change, Entry, Event as StoreEvent};

use super::super::claims::ClaimIndex;
use super::super::table::{Bad, Stored};
use super::RENEW;
use crate::view::NodeView;

/// Installation of nodes that have none: flannel's.
const NOBODY: &str = "00000000-0000-0000-0000-000000000000";

/// Flannel's keys, and this node's lease.
#[derive(Debug, Default)]
pub(in crate::cluster) struct Flannel {
    /// Whose keys these are.
    pub(super) prefix: Option<Prefix>,
    /// Why they cannot be had, or that they were read.
    pub(super) read: Option<Result<(), String>>,
    /// Why they cannot be read now.
    pub(super) away: Option<String>,
    pub(super) config: Option<Result<NetworkConfig, String>>,
    config_modified: Option<i64>,
    /// `None`: it cannot be read, and is somebody's all the same.
    leases: BTreeMap<Subnet, Stored<Option<LeaseAttrs>>>,
    bad: BTreeMap<String, Bad>,
    pub(super) derived: Derived,
    /// Key of our lease, and when this process wrote it last.
    pub(super) renewed: Option<(String, Duration)>,
    /// Collisions so far.
    pub(super) attempt: u64,
}

/// Who asks.
#[derive(Debug)]
pub(super) struct Me<'a> {
    pub(super) node: &'a NodeName,
    pub(super) instance_id: &'a InstanceId,
    /// By which flannel knows nodes.
    pub(super) address: Option<Ipv4Addr>,
}

impl Me<'_> {
    fn has(&self, attrs: &LeaseAttrs) -> bool {
        match &attrs.mark {
            Some(mark) => mark.node == *self.node && mark.instance_id == *self.instance_id,
            None => attrs.public_v4.is_some() && attrs.public_v4 == self.address,
        }
    }
}

/// What follows from flannel's keys.
#[derive(Debug, Default)]
pub(super) struct Derived {
    /// Leases of this node, the one that counts first: one with our mark, then the oldest.
    pub(super) mine: Vec<(Subnet, Stored<LeaseAttrs>)>,
    /// Whether no lease that overlaps the first of them came before it.
    pub(super) is_first: bool,
    /// Leases of others, whoever they are.
    pub(super) others: ClaimIndex,
    /// Flannel's nodes as the data path sees nodes.
    pub(super) peers: BTreeMap<NodeName, NodeView>,
    /// Their subnets.
    pub(super) reached: ClaimIndex,
    pub(super) problems: Vec<String>,
}

impl Flannel {
    /// Revision of a whole key as the watch shows it.
    pub(in crate::cluster) fn modified(&self, key: &str) -> Option<i64> {
        let prefix = self.prefix.as_ref()?;
        if key == prefix.config() {
            return self.config_modified;
        }
        if let Some(bad) = self.bad.get(key) {
            return Some(bad.modified);
        }
        let subnet = key.strip_prefix(&prefix.subnets())?.parse().ok()?;
        self.leases.get(&subnet).map(|stored| stored.modified)
    }

    /// When the lease is to be written again.
    pub(in crate::cluster) fn renew_at(&self) -> Option<Duration> {
        self.renewed.as_ref().map(|(_, at)| *at + RENEW)
    }

    /// From the watch of the keys below `prefix`, or why there is none.
    pub(super) fn on_event(&mut self, prefix: Prefix, event: Result<StoreEvent, String>) {
        if self.prefix.as_ref() != Some(&prefix) {
            *self = Self { prefix: Some(prefix.clone()), ..Self::default() };
        }
        match event {
            Err(why) => self.read = Some(Err(why)),
            Ok(StoreEvent::Snapshot { entries, .. }) => {
                let (renewed, attempt) = (self.renewed.take(), self.attempt);
                *self = Self { prefix: Some(prefix.clone()), renewed, attempt, ..Self::default() };
                self.read = Some(Ok(()));
                entries.iter().for_each(|entry| self.put(&prefix, entry));
            }
            Ok(StoreEvent::Changes { changes, .. }) => {
                for change in &changes {
                    match change {
                        Change::Put(entry) => self.put(&prefix, entry),
                        Change::Delete { key } => self.remove(&prefix, key),
                    }
                }
            }
            Ok(StoreEvent::Unavailable { reason }) => self.away = Some(reason),
            Ok(StoreEvent::Available) => self.away = None,
            // The watch of our own keys tells the same of the same store.
            Ok(StoreEvent::Problems { .. }) => {}
        }
    }

    fn put(&mut self, prefix: &Prefix, entry: &Entry) {
        let key = entry.key.as_str();
        self.bad.remove(key);
        let mut bad = |reason: String| {
            let bad = Bad { reason, create: entry.create_revision, modified: entry.mod_revision };
            self.bad.insert(key.to_owned(), bad);
        };
        if key == prefix.config() {
            let config = NetworkConfig::parse(key, &entry.value);
            self.config_modified = Some(entry.mod_revision);
            // No earlier one stays in force: flannel itself starts with none but this.
            self.config = Some(config.map_err(|mistakes| mistakes.to_string().replace('\n', "; ")));
            return;
        }
        let Some(text) = key.strip_prefix(&prefix.subnets()) else { return };
        let subnet: Subnet = match text.parse() {
            Ok(subnet) => subnet,
            Err(error) => return bad(error.to_string()),
        };
        let value = match LeaseAttrs::parse(text, &entry.value) {
            Ok(attrs) => Some(attrs),
            Err(mistakes) => {
                bad(mistakes.to_string().replace('\n', "; "));
                None
            }
        };
        let stored = Stored { value, create: entry.create_revision, modified: entry.mod_revision };
        self.leases.insert(subnet, stored);
    }

    fn remove(&mut self, prefix: &Prefix, key: &str) {
        self.bad.remove(key);
        if key == prefix.config() {
            (self.config, self.config_modified) = (None, None);
        } else if let Some(Ok(subnet)) = key.strip_prefix(&prefix.subnets()).map(str::parse) {
            self.leases.remove(&subnet);
        }
    }

    /// Makes anew what follows from the keys.
    pub(super) fn derive(&mut self, me: &Me<'_>) {
        let Some(prefix) = &self.prefix else { return };
        let mut out = Derived::default();
        let ignored = |(key, bad): (&String, &Bad)| {
            format!("{key}: ignoring it, its subnet stays taken: {}", bad.reason)
        };
        out.problems.extend(self.bad.iter().map(ignored));
        let mut marked = ClaimIndex::default();
        for (subnet, stored) in &self.leases {
            let (create, modified) = (stored.create, stored.modified);
            let Some(attrs) = &stored.value else {
                add(&mut out.others, named(None).ok(), subnet, create);
                continue;
            };
            if me.has(attrs) {
                out.mine.push((*subnet, Stored { value: attrs.clone(), create, modified }));
                continue;
            }
            match &attrs.mark {
                Some(mark) => {
                    if mark.node == *me.node {
                        out.problems.push(format!(
                            "{} is held by installation {} of this node; `podwayctl node release {} --now` frees it",
                            prefix.subnet(subnet),
                            mark.instance_id,
                            me.node
                        ));
                    }
                    add(&mut marked, Some(mark.node.clone()), subnet, create);
                    add(&mut out.others, Some(mark.node.clone()), subnet, create);
                }
                None => add(&mut out.others, named(attrs.public_v4).ok(), subnet, create),
            }
        }
        out.mine.sort_by_key(|(_, stored)| (stored.value.mark.is_none(), stored.create));
        for (subnet, stored) in out.mine.iter().filter(|(_, stored)| stored.value.mark.is_some()) {
            add(&mut marked, Some(me.node.clone()), subnet, stored.create);
        }
        out.is_first = out.mine.first().is_some_and(|(subnet, stored)| {
            let earlier = |net| out.others.overlapping(net).any(|(_, create, _)| create < stored.create);
            !subnet.nets().any(earlier)
        });
        for (subnet, stored) in &self.leases {
            let Some(attrs) = &stored.value else { continue };
            if attrs.mark.is_some() || me.has(attrs) {
                continue;
            }
            match self.foreign(subnet, attrs, stored.create, &marked) {
                Ok(peers) => {
                    add(&mut out.reached, named(attrs.public_v4).ok(), subnet, stored.create);
                    out.peers.extend(peers);
                }
                Err(why) => out.problems.push(format!("{}: {why}", prefix.subnet(subnet))),
            }
        }
        self.derived = out;
    }

    /// A node of flannel's as the data path sees nodes, or why it is not reached. With VXLAN one for each family: flannel
    /// has a device for each, with a MAC address of its own, over an underlay of that family.
    fn foreign(
        &self,
        subnet: &Subnet,
        attrs: &LeaseAttrs,
        create: i64,
        marked: &ClaimIndex,
    ) -> Result<Vec<(NodeName, NodeView)>, String> {
        let is_later = |net| marked.overlapping(net).any(|(_, earlier, _)| earlier < create);
        if subnet.nets().any(is_later) {
            return Err("it overlaps an earlier lease of Podway's and is not reached: restart flannel there"
                .to_owned());
        }
        let config = match &self.config {
            Some(Ok(config)) => config,
            _ => return Err("flannel's configuration is not known: not reached".to_owned()),
        };
        let address = attrs.public_v4.ok_or("it has no PublicIP: not reached")?;
        let mut record = NodeRecord {
            instance_id: NOBODY.parse().map_err(|_| "no instance id".to_owned())?,
            address_v4: Some(address),
            address_v6: None,
            tunnel_v4: Some(subnet.v4.addr()),
            tunnel_v6: None,
            labels: BTreeMap::new(),
            asn: None,
            vtep_mac: None,
            wireguard_key: None,
            version: "flannel".to_owned(),
            ways: None,
        };
        let view =
            |record, block: IpNet| NodeView { record: Some(record), live: true, blocks: [block].into() };
        let name = named(Some(address))?;
        match (config.backend, attrs.reach) {
            (Backend::HostGw, Reach::HostGw) => {
                let mut all = view(record, subnet.v4.into());
                if let (Some(v6), Some(record)) = (subnet.v6, &mut all.record) {
                    record.address_v6 = attrs.public_v6;
                    record.tunnel_v6 = Some(v6.addr());
                    all.blocks.insert(v6.into());
                }
                Ok(vec![(name, all)])
            }
            (Backend::Vxlan { vni, .. }, Reach::Vxlan { vni: theirs, v4, v6 }) if vni == theirs => {
                record.vtep_mac = Some(v4.ok_or("it has no BackendData: not reached")?);
                let mut all = vec![(name.clone(), view(record.clone(), subnet.v4.into()))];
                if let (Some(net), Some(mac), Some(address)) = (subnet.v6, v6, attrs.public_v6) {
                    record.vtep_mac = Some(mac);
                    (record.address_v4, record.address_v6) = (None, Some(address));
                    (record.tunnel_v4, record.tunnel_v6) = (None, Some(net.addr()));
                    let name = format!("{name}-v6").parse().map_err(|_| "no name".to_owned())?;
                    all.push((name, view(record, net.into())));
                }
                Ok(all)
            }
            (_, reach) => {
                let expected = config.backend;
                Err(format!(
                    "{reach:?} found, {expected:?} expected as in flannel's configuration: not reached"
                ))
            }
        }
    }
}

/// Name under which a node of flannel's is shown.
fn named(address: Option<Ipv4Addr>) -> Result<NodeName, String> {
    let name = address.map_or_else(|| "flannel".to_owned(), |address| format!("flannel-{address}"));
    name.parse().map_err(|error: podway_model::ids::InvalidId| error.to_string())
}

fn add(index: &mut ClaimIndex, node: Option<NodeName>, subnet: &Subnet, create: i64) {
    for net in subnet.nets() {
        if let Some(node) = &node {
            index.add(node.clone(), net, create);
        }
    }
}
