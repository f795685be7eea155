//! GC: frees what belongs to attachments that the runtime does not know any more.
//!
//! Where another plugin gives addresses, each of them is given back, and then that plugin is called for its own GC. It
//! touches its own network only, leaves alone what is valid, does as much as it can and then reports what it
//! could not. Records of another boot, whichever network's, mean nothing and go too.

use std::collections::BTreeSet;

use podway_ipam::{Attachment, LeaseKind};
use podway_kern::rtnl::Rtnl;

use crate::conf::Network;
use crate::delegate::Delegate;
use crate::error::{CniError, Code};
use crate::node::Node;
use crate::teardown;

/// Detaches every attachment of the network that is not in the list of valid ones.
pub fn collect(network: &Network) -> Result<(), CniError> {
    let valid: BTreeSet<Attachment> = network.valid_attachments()?.into_iter().collect();
    let node = Node::here()?;
    let (records, mut errors) = node.records().list()?;
    let mut mine = BTreeSet::new();
    for record in records {
        let attachment = Attachment::new(record.container_id, record.ifname);
        if record.boot_id != *node.boot() {
            errors.extend(node.records().remove(&attachment).err());
        } else if record.network == network.name {
            mine.insert(attachment);
        }
    }
    let lock = node.lock()?;
    errors.extend(node.marks().sweep().err());
    drop(lock);
    let (marks, bad) = node.marks().list()?;
    errors.extend(bad);
    let delegated = marks.into_iter().filter(|mark| mark.network == network.name);
    mine.extend(delegated.map(|mark| Attachment::new(mark.container_id, mark.ifname)));
    let leases = node.leases()?;
    let of_network = leases
        .ledger()
        .leases()
        .filter(|lease| lease.network == network.name && lease.kind == LeaseKind::Wired);
    mine.extend(of_network.map(|lease| lease.attachment.clone()));
    drop(leases);
    let mut rtnl = Rtnl::open()?;
    for attachment in mine.difference(&valid) {
        match teardown::end(&node, &mut rtnl, network, attachment) {
            Ok(ended) => errors.extend(ended.left.map(|left| CniError::new(Code::Delegate, left))),
            Err(error) => errors.push(error),
        }
    }
    match Delegate::of(network) {
        Ok(delegate) => errors.extend(delegate.and_then(|delegate| delegate.run("GC", network).err())),
        Err(error) => errors.push(error),
    }
    let mut errors = errors.into_iter();
    match errors.next() {
        None => Ok(()),
        Some(first) => Err(errors.fold(first, CniError::with)),
    }
}
