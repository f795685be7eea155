//! Takes an attachment apart: host ports, link, connection tracking, record, lease (or what another plugin gave). The
//! reverse of ADD.
//!
//! Used by DEL, by GC, by an ADD that fails and by an ADD that finds its own leftovers. Each step is done whatever
//! state the one before left things in, and none needs the pod's namespace, a daemon or a result: interrupt it
//! anywhere, and the next run finishes it. What cannot be done keeps the steps behind it from being done: an address
//! whose link is there stays leased.

use std::collections::BTreeSet;
use std::net::IpAddr;

use podway_ipam::store::since_boot;
use podway_ipam::{Attachment, Condition, LeaseKind};
use podway_kern::conntrack::Conntrack;
use podway_kern::rtnl::{Link, Rtnl};
use podway_kern::sysctl::Sysctl;
use podway_model::ids::NetworkName;
use podway_model::names::{HOST_MAC, POD_GROUP, host_ifalias, host_ifname};

use crate::conf::Network;
use crate::delegate;
use crate::error::CniError;
use crate::node::Node;
use crate::plugins::{bandwidth, ports};

/// Connection tracking tables up to this many entries are searched at once; larger ones are left to the ADD that
/// takes the address next (the lease stays dirty). Reading this many takes about 10 ms.
const QUICK_ENTRIES: u64 = 16_384;

/// Whose attachment it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owner {
    /// Another network's, which is left alone.
    Other,
    /// This network's, or nobody's.
    Ours,
}

/// What became of an attachment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    /// Whose it is.
    pub owner: Owner,
    /// What stays behind because the plugin that gave the addresses is not there, in words.
    pub left: Option<String>,
    /// Whether its addresses may be another plugin's: a record says so, or there is none.
    may_be_delegated: bool,
}

impl Ended {
    fn by(owner: Owner) -> Self {
        Self { owner, left: None, may_be_delegated: false }
    }
}

/// Ends an attachment and everything that belongs to it, what another address plugin gave included.
///
/// # Errors
/// What failed; the next run goes on from there.
pub fn end(
    node: &Node,
    rtnl: &mut Rtnl,
    network: &Network,
    attachment: &Attachment,
) -> Result<Ended, CniError> {
    let mut ended = detach(node, rtnl, &network.name, attachment)?;
    let is_ours = ended.owner == Owner::Ours;
    if is_ours && (ended.may_be_delegated || network.foreign_ipam().is_some()) {
        ended.left = delegate::end(node.marks(), network, network.foreign_ipam(), attachment)?;
    }
    Ok(ended)
}

/// Ends what is ours of an attachment of `network`: all but the addresses that another plugin gave.
///
/// # Errors
/// What failed; the next run goes on from there.
pub fn detach(
    node: &Node,
    rtnl: &mut Rtnl,
    network: &NetworkName,
    attachment: &Attachment,
) -> Result<Ended, CniError> {
    // A record that cannot be read must not keep the address.
    let record = node.records().read(attachment).unwrap_or_default();
    if record.as_ref().is_some_and(|record| record.network != *network) {
        return Ok(Ended::by(Owner::Other));
    }
    let may_be_delegated = record.as_ref().is_none_or(|record| record.ipam.is_some());
    let ours = Ended { may_be_delegated, ..Ended::by(Owner::Ours) };
    let with_ports = record.as_ref().filter(|record| !record.host_ports.is_empty());
    let lock = with_ports.map(|_| node.lock()).transpose()?;
    if let Some(record) = with_ports {
        ports::close(record)?;
    }
    remove_link(rtnl, attachment)?;
    bandwidth::remove(rtnl, attachment)?;
    let addresses: BTreeSet<IpAddr> =
        record.iter().flat_map(|record| record.addresses.iter().copied()).collect();
    let cleaned = forget_connections(&addresses, with_ports.is_some());
    node.records().remove(attachment)?;
    let mut leases = lock.map_or_else(|| node.leases(), |lock| node.leases_under(lock))?;
    let Some(lease) = leases.ledger().lease_of(attachment) else {
        return Ok(ours);
    };
    if lease.network != *network || lease.kind != LeaseKind::Wired {
        return Ok(Ended::by(Owner::Other));
    }
    if record.is_none() {
        ports::close_leading_to(&lease.ips().collect())?;
    }
    let condition =
        if lease.ips().all(|ip| cleaned.contains(&ip)) { Condition::Clean } else { Condition::Dirty };
    leases.release(attachment, since_boot(), condition)?;
    Ok(ours)
}

/// Ends everything of an attachment but its lease, before the attachment is made anew.
pub fn clear(node: &Node, rtnl: &mut Rtnl, attachment: &Attachment) -> Result<(), CniError> {
    let _lock = node.lock()?;
    if let Some(record) = node.records().read(attachment).unwrap_or_default() {
        ports::close(&record)?;
    }
    remove_link(rtnl, attachment)?;
    bandwidth::remove(rtnl, attachment)?;
    node.records().remove(attachment)
}

/// Deletes the node's end of an attachment, and with it the pod's end, routes and neighbours. A link of that name
/// that is not ours stays.
pub fn remove_link(rtnl: &mut Rtnl, attachment: &Attachment) -> Result<(), CniError> {
    let Some(link) = rtnl.link(host_name(attachment).as_str())? else { return Ok(()) };
    if is_of(&link, attachment) {
        rtnl.delete_link_at_once(link.index)?;
    }
    Ok(())
}

/// Whether a link is the node's end of an attachment: its alias says so. One without an alias is of an ADD that was
/// killed between making and naming it, if group and Ethernet address are ours.
pub fn is_of(link: &Link, attachment: &Attachment) -> bool {
    let alias = host_ifalias(attachment.container_id.as_str(), attachment.ifname.as_str());
    match &link.alias {
        Some(found) => *found == alias,
        None => link.group == POD_GROUP && link.mac == Some(HOST_MAC),
    }
}

/// Deletes the connection tracking entries that carry the addresses, if that is quick, or if it must be: a flow to
/// a host port goes on to the address whatever becomes of the port. Says which addresses are clean.
fn forget_connections(addresses: &BTreeSet<IpAddr>, must: bool) -> BTreeSet<IpAddr> {
    // Without the count there is no connection tracking in the kernel yet.
    let count = Sysctl::new("net/netfilter/nf_conntrack_count").read().ok();
    let entries = count.map_or(Some(0), |count| count.parse().ok());
    let clean = match entries {
        Some(0) => true,
        Some(count) if must || count <= QUICK_ENTRIES => {
            Conntrack::open().and_then(|mut conntrack| conntrack.delete(addresses)).is_ok()
        }
        _ => false,
    };
    if clean { addresses.clone() } else { BTreeSet::new() }
}

fn host_name(attachment: &Attachment) -> String {
    host_ifname(attachment.container_id.as_str(), attachment.ifname.as_str())
}
