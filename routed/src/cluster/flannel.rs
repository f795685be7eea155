//! Flannel's nodes beside ours, on flannel's own keys (`compat: flannel`): this node's lease of a subnet, and what the
//! leases of others mean.
//!
//! ```text
//!   lease of flannel ──adopted, if of this node's address──┐
//!   (none) ──created if absent, in a free subnet──────────▶ ours, renewed ──▶ blocks are claimed within it
//! ```
//!
//! **Fencing.** A node of flannel takes a subnet by creating its key, so that key decides, for us too: a block in
//! flannel's network is claimed and confirmed only within this node's subnet, in a transaction that compares the lease's
//! key, and the lease was created before. Of overlapping leases the lowest create revision wins. A lease that expired
//! is made again while its subnet is free; a block in a subnet that somebody else holds is lost like a claim.
//!
//! **Whose is a lease?** One of ours carries our mark ([`Mark`]). One without was last written by flannel: its holder
//! is a node like others to the data path, unless it has this node's address: then it is this node's from before the
//! migration, or flannel runs here still, and it is taken over.
//!
//! The keys, and what follows from them: [`keys`]. What is not here: routes (`dataplane`), the devices that flannel leaves behind (`podwayctl node install`).

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::time::Duration;

use ipnet::IpNet;
use podway_model::cluster::{ClusterConfig, Encapsulation, Pool};
use podway_model::flannel::{Backend, LEASE_SECONDS, LeaseAttrs, Mark, NetworkConfig, Prefix, Reach, Subnet};
use podway_model::ids::{NodeName, ObjectName};
use podway_model::names;
use podway_store::{Event as StoreEvent, Expect, Guard, StoreError, Written};

use self::keys::Me;
use super::core::Core;
use super::event::{Action, Operation, Severity};
use super::own::Phase;
use super::pools::spread;
use super::table::Stored;
use crate::view::NodeView;

mod keys;

pub(super) use keys::Flannel;

/// A lease is written again when half of its time is over: flannel does it an hour before the end, which is late for a
/// store that is away just then.
const RENEW: Duration = Duration::from_secs(LEASE_SECONDS as u64 / 2);
/// Subnets looked at in one search for a free one.
const PROBES: u64 = 1 << 20;

/// Where blocks of a pool may be claimed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Room {
    /// In the whole pool.
    Pool,
    /// Only in this node's subnet of flannel's network.
    Subnet(IpNet),
    /// Not now.
    Nowhere,
}

impl Core {
    /// Flannel's prefix, where flannel's nodes are to be talked with.
    pub(crate) fn flannel_prefix(&self) -> Option<Prefix> {
        self.config_in_force()?.compat.flannel.as_ref().map(|flannel| flannel.prefix.clone())
    }

    fn config_in_force(&self) -> Option<&ClusterConfig> {
        let past = || self.past.as_ref().and_then(|past| past.config.as_ref());
        self.table.config.as_ref().or_else(past).map(|stored| &stored.value)
    }

    /// From the watch of flannel's keys, or why there is none.
    pub(super) fn on_flannel(&mut self, prefix: Prefix, event: Result<StoreEvent, String>) {
        self.flannel.on_event(prefix, event);
        self.derive_flannel();
    }

    /// Makes what follows from flannel's keys anew: they, or this node's address, have changed.
    pub(super) fn derive_flannel(&mut self) {
        let me = Me {
            node: &self.me.node,
            instance_id: &self.me.instance_id,
            address: self.facts.as_ref().and_then(|facts| facts.address_v4),
        };
        self.flannel.derive(&me);
        self.is_view_stale |= self.flannel_prefix().is_some();
    }

    /// Whether flannel's keys are known, or not wanted, or not to be had.
    pub(super) fn is_flannel_synced(&self) -> bool {
        let Some(prefix) = self.flannel_prefix() else { return true };
        self.flannel.prefix.as_ref() == Some(&prefix) && self.flannel.read.is_some()
    }

    /// Flannel's keys, if they are to be looked at.
    fn flannel_in_use(&self) -> Option<&Flannel> {
        let is_read = matches!(self.flannel.read, Some(Ok(())));
        (self.flannel_prefix().is_some() && self.is_flannel_synced() && is_read).then_some(&self.flannel)
    }

    fn address_v4(&self) -> Option<Ipv4Addr> {
        self.facts.as_ref().and_then(|facts| facts.address_v4)
    }

    /// This node's subnet, as its own watch has shown it: with our mark, and nobody was earlier.
    fn my_subnet(&self) -> Option<(Subnet, i64)> {
        let derived = &self.flannel_in_use()?.derived;
        let (subnet, stored) = derived.mine.first()?;
        (stored.value.mark.is_some() && derived.is_first).then_some((*subnet, stored.modified))
    }

    /// Whether `net` shares addresses with flannel's network; not known: yes.
    fn is_in_flannels_network(&self, net: IpNet) -> bool {
        match &self.flannel.config {
            Some(Ok(config)) => {
                let networks = [false, true].into_iter().filter_map(|v6| config.network(v6));
                networks.into_iter().any(|network| podway_model::cidr::overlap(network, net))
            }
            _ => true,
        }
    }

    /// Where blocks of a pool may be claimed.
    pub(super) fn flannel_room(&self, pool: &Pool) -> Room {
        if self.flannel_prefix().is_none() {
            return Room::Pool;
        }
        if self.flannel_in_use().is_none() {
            return Room::Nowhere;
        }
        if !self.is_in_flannels_network(pool.cidr) {
            return Room::Pool;
        }
        let v6 = pool.cidr.addr().is_ipv6();
        let subnet = self.my_subnet().and_then(|(subnet, _)| subnet.net(v6));
        match subnet {
            Some(net) if pool.cidr.contains(&net) && pool.block_len() >= net.prefix_len() => {
                Room::Subnet(net)
            }
            _ => Room::Nowhere,
        }
    }

    /// Whether flannel's keys let this node have `block`.
    pub(super) fn flannel_allows(&self, block: IpNet) -> bool {
        if self.flannel_prefix().is_none() {
            return true;
        }
        self.flannel_in_use().is_some()
            && (!self.is_in_flannels_network(block)
                || self.my_subnet().is_some_and(|(subnet, _)| subnet.nets().any(|net| net.contains(&block))))
    }

    /// Why a claim of this node's is given up: its subnet is another one by now. Not so a block that is offered: it was
    /// ours before flannel's nodes were talked with.
    pub(super) fn flannel_forbids(&self, block: IpNet, is_offered: bool) -> Option<String> {
        let (subnet, _) = self.my_subnet().filter(|_| !is_offered && !self.flannel_allows(block))?;
        Some(format!("this node's subnet of flannel's network is {subnet}"))
    }

    /// The condition that this node's lease has not changed, for a claim within its subnet.
    pub(super) fn flannel_guard(&self, block: IpNet) -> Option<Guard> {
        let prefix = self.flannel_prefix()?;
        let (subnet, modified) = self.my_subnet()?;
        let is_within = subnet.nets().any(|net| net.contains(&block));
        is_within.then(|| Guard { key: prefix.subnet(&subnet), expect: Expect::Revision(modified) })
    }

    /// Who holds `block` on flannel's keys, if it is not this node.
    pub(super) fn flannel_holder(&self, block: IpNet) -> Option<String> {
        let derived = &self.flannel_in_use()?.derived;
        // By its address flannel's leases of this node are known.
        self.facts.as_ref()?;
        if self.my_subnet().is_some_and(|(subnet, _)| subnet.nets().any(|net| net.contains(&block))) {
            return None;
        }
        let (subnet, _, node) = derived.others.overlapping(block).next()?;
        Some(format!("{node} has flannel's subnet {subnet}"))
    }

    /// Takes, keeps and renews this node's lease, and says what keeps it from that.
    pub(super) fn keep_flannel_lease(&mut self, now: Duration, out: &mut Vec<Action>) {
        let Some(prefix) = self.flannel_prefix() else {
            // Nobody watches any more: what was known says nothing about later.
            self.flannel = Flannel::default();
            return;
        };
        if let Some(Err(why)) = &self.flannel.read {
            let text = format!("compat.flannel cannot be used, and no blocks are claimed: {why}");
            self.problems.insert(text);
        }
        if let (Some(why), None) = (&self.flannel.away, &self.away) {
            self.problems.insert(format!("flannel's keys below {prefix} cannot be read: {why}"));
        }
        if self.flannel_in_use().is_none() {
            return;
        }
        self.problems.extend(self.flannel.derived.problems.iter().cloned());
        let config = match &self.flannel.config {
            Some(Ok(config)) => *config,
            Some(Err(why)) => {
                self.problems.insert(format!("flannel's configuration cannot be used: {why}"));
                return;
            }
            None => {
                let text = format!(
                    "flannel's configuration {} is not there: no blocks are claimed",
                    prefix.config()
                );
                self.problems.insert(text);
                return;
            }
        };
        if let Err(why) = self.agrees_with(&config) {
            self.problems.insert(format!("no subnet of flannel's is taken: {why}"));
            return;
        }
        if !self.can_write() || !self.is_registered() {
            return;
        }
        let mut mine = self.flannel.derived.mine.clone().into_iter();
        match mine.next() {
            Some((subnet, stored)) => self.keep(&prefix, &config, subnet, &stored, now, out),
            None if self.past.is_some() || self.doubt.is_some() => {}
            None => match self.free_subnet(&config) {
                Ok(subnet) => self.write_lease(&prefix, &config, subnet, Expect::Absent, out),
                Err(why) => drop(self.problems.insert(format!("no subnet of flannel's is taken: {why}"))),
            },
        }
        for (subnet, stored) in mine {
            let key = prefix.subnet(&subnet);
            if stored.value.mark.is_some() {
                self.writes.propose(key, Operation::Delete(stored.modified), out);
            } else {
                self.problems.insert(format!(
                    "{key} is flannel's lease of this node's address, besides this node's own: end flannel here and delete it"
                ));
            }
        }
    }

    fn keep(
        &mut self,
        prefix: &Prefix,
        config: &NetworkConfig,
        subnet: Subnet,
        stored: &Stored<LeaseAttrs>,
        now: Duration,
        out: &mut Vec<Action>,
    ) {
        let key = prefix.subnet(&subnet);
        let is_used = self.own.keys().any(|block| subnet.overlaps(*block));
        if !config.fits(&subnet) {
            self.problems
                .insert(format!("{key} does not fit flannel's network: drain this node and delete the key"));
            return;
        }
        if !self.flannel.derived.is_first {
            let text = format!("{key} overlaps an earlier lease of flannel's: another subnet is taken");
            if self.writes.propose(key, Operation::Delete(stored.modified), out) {
                self.flannel.attempt += 1;
                out.push(Action::Report(Severity::Warn, text));
            }
            return;
        }
        if stored.value.mark.is_none() && is_used && !self.writes.is_busy(&key) {
            let text =
                format!("flannel's daemon wrote this node's lease {key}: it runs on this node too, end it");
            out.push(Action::Report(Severity::Warn, text));
        }
        let is_fresh =
            matches!(&self.flannel.renewed, Some((renewed, at)) if *renewed == key && now < *at + RENEW);
        if !is_fresh || Some(&stored.value) != self.lease(config, &subnet).as_ref() {
            self.write_lease(prefix, config, subnet, Expect::Revision(stored.modified), out);
        }
    }

    fn write_lease(
        &mut self,
        prefix: &Prefix,
        config: &NetworkConfig,
        subnet: Subnet,
        expect: Expect,
        out: &mut Vec<Action>,
    ) {
        let Some(attrs) = self.lease(config, &subnet) else { return };
        let operation = Operation::PutFor(attrs.encode(), expect, LEASE_SECONDS);
        self.writes.propose(prefix.subnet(&subnet), operation, out);
    }

    /// A write of a whole key was answered.
    pub(super) fn on_flannel_written(
        &mut self,
        now: Duration,
        key: &str,
        result: &Result<Written, StoreError>,
    ) {
        match result {
            Ok(Written::Done { .. }) => self.flannel.renewed = Some((key.to_owned(), now)),
            Ok(Written::Refused { .. }) => self.flannel.attempt += 1,
            Err(_) => {}
        }
    }

    /// What this node's lease says.
    fn lease(&self, config: &NetworkConfig, subnet: &Subnet) -> Option<LeaseAttrs> {
        let facts = self.facts.as_ref()?;
        let mac = names::vtep_mac(self.me.node.as_str(), names::VXLAN_DEVICE);
        let reach = match config.backend {
            Backend::HostGw => Reach::HostGw,
            Backend::Vxlan { vni, .. } => Reach::Vxlan { vni, v4: Some(mac), v6: subnet.v6.map(|_| mac) },
        };
        Some(LeaseAttrs {
            public_v4: Some(facts.address_v4?),
            public_v6: facts.address_v6.filter(|_| subnet.v6.is_some()),
            reach,
            mark: Some(Mark { node: self.me.node.clone(), instance_id: self.me.instance_id.clone() }),
        })
    }

    /// Whether our configuration and flannel's say the same, or where they do not.
    fn agrees_with(&self, config: &NetworkConfig) -> Result<(), String> {
        let ours = self.config_in_force().cloned().unwrap_or_default();
        if self.address_v4().is_none() {
            return Err("this node has no IPv4 underlay address, by which flannel knows nodes".to_owned());
        }
        let wanted = match config.backend {
            Backend::HostGw => Encapsulation::None,
            Backend::Vxlan { direct_routing: false, .. } => Encapsulation::Vxlan,
            Backend::Vxlan { direct_routing: true, .. } => Encapsulation::VxlanCrossSubnet,
        };
        if let Backend::Vxlan { vni, port, .. } = config.backend {
            for (field, found, expected) in [
                ("vxlan.vni", ours.vxlan.vni.number(), vni.number()),
                ("vxlan.port", ours.vxlan.port.into(), port.into()),
            ] {
                if found != expected {
                    return Err(format!("{field} {found} found, flannel's {expected} expected"));
                }
            }
        }
        for v6 in [false, true] {
            let Some(network) = config.network(v6) else { continue };
            let Some((name, pool)) = self.flannel_pool(network) else {
                if v6 {
                    continue;
                }
                return Err(format!(
                    "no pool of this node holds flannel's network {network}: apply one with that cidr"
                ));
            };
            let found = pool.encapsulation.unwrap_or_else(|| ours.encapsulation());
            if found != wanted {
                return Err(format!(
                    "pool {name} has the encapsulation {found}, flannel's configuration means {wanted}: change \
                     backend and vxlan.directRouting, or the pool's encapsulation"
                ));
            }
            let length =
                if v6 { config.v6.map_or(0, |range| range.subnet_len) } else { config.v4.subnet_len };
            if pool.block_len() < length {
                let size = pool.block_len();
                return Err(format!(
                    "pool {name} has blocks of /{size}, larger than flannel's subnets of /{length}"
                ));
            }
        }
        Ok(())
    }

    /// The pool of this node that holds flannel's network.
    fn flannel_pool(&self, network: IpNet) -> Option<(ObjectName, Pool)> {
        let pools = self.derived.pools.for_node(network.addr().is_ipv6(), &self.me.labels);
        let found = pools.into_iter().find(|(_, pool)| pool.cidr.contains(&network))?;
        Some((found.0.clone(), found.1.clone()))
    }

    /// A subnet that nobody has: one in which this node has blocks before any other.
    fn free_subnet(&self, config: &NetworkConfig) -> Result<Subnet, String> {
        let held: BTreeSet<IpNet> = self.holds().collect();
        let is_free = |net: IpNet| {
            let claimed = |node: &NodeName| *node != self.me.node;
            self.flannel.derived.others.overlapping(net).next().is_none()
                && !self.derived.claims.overlapping(net).any(|(_, _, node)| claimed(node))
                && !held.iter().any(|held| podway_model::cidr::overlap(*held, net))
        };
        // What is offered to pods comes before what was lost.
        let mine = || {
            let of = |active| self.own.iter().filter(move |(_, own)| (own.phase == Phase::Active) == active);
            let own = of(true).chain(of(false)).filter(|(_, own)| own.phase != Phase::Claiming);
            own.map(|(block, _)| *block).chain(self.hints.iter().map(|(block, _)| *block))
        };
        let start = |count: u64| {
            spread(&[self.me.node.as_str(), "flannel", &self.flannel.attempt.to_string()]) % count
        };
        let numbers = |count: u64| {
            let start = start(count);
            (0..count.min(PROBES)).map(move |i| start.wrapping_add(i) % count)
        };
        let fits = |subnet: &Subnet| config.fits(subnet);

        let earlier = mine().find_map(|block| {
            let net = IpNet::new(block.addr(), config.v4.subnet_len).ok()?.trunc();
            let IpNet::V4(v4) = net else { return None };
            (fits(&Subnet { v4, v6: None }) && is_free(net)).then_some(v4)
        });
        let free_v4 =
            || numbers(config.count_v4()).filter_map(|n| config.nth_v4(n)).find(|v4| is_free((*v4).into()));
        let v4 = earlier.or_else(free_v4).ok_or_else(|| {
            let network = config.v4.network;
            format!("flannel's network {network} has no free subnet of /{} left", config.v4.subnet_len)
        })?;
        let has_v6 = self.facts.as_ref().is_some_and(|facts| facts.address_v6.is_some())
            && config.network(true).is_some_and(|network| self.flannel_pool(network).is_some());
        let Some(range) = config.v6.filter(|_| has_v6) else { return Ok(Subnet { v4, v6: None }) };
        let earlier = mine().find_map(|block| {
            let net = IpNet::new(block.addr(), range.subnet_len).ok()?.trunc();
            let IpNet::V6(v6) = net else { return None };
            (fits(&Subnet { v4, v6: Some(v6) }) && is_free(net)).then_some(v6)
        });
        let free_v6 =
            || numbers(config.count_v6()).filter_map(|n| config.nth_v6(n)).find(|v6| is_free((*v6).into()));
        let v6 = earlier.or_else(free_v6).ok_or_else(|| {
            format!("flannel's network {} has no free subnet of /{} left", range.network, range.subnet_len)
        })?;
        Ok(Subnet { v4, v6: Some(v6) })
    }

    /// Puts flannel's nodes beside ours; where both show a block, flannel's key decides.
    pub(super) fn add_flannels_nodes(&self, nodes: &mut BTreeMap<NodeName, NodeView>) {
        let Some(flannel) = self.flannel_in_use() else { return };
        let derived = &flannel.derived;
        for node in nodes.values_mut() {
            node.blocks.retain(|block| derived.reached.overlapping(*block).next().is_none());
        }
        for (name, view) in &derived.peers {
            nodes.entry(name.clone()).or_insert_with(|| view.clone());
        }
    }
}
