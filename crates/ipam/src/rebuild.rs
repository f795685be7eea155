//! Makes leases anew from what is there, after the journal was damaged or lost while pods live. Pure.
//!
//! Three witnesses, in this order: interfaces that are there (each has the address that is routed through it), endpoint
//! records, and what can still be read of the journal. The first two name every pod that we wired. Leases for
//! interfaces that somebody else makes stand in the journal only: each that any readable line begins and no readable
//! line ends is kept, so that none is given out twice; GC or DEL ends it.
//!
//! What was free may be known to connection tracking, so every other address of the node's blocks comes back dirty.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use podway_model::ids::{NetworkName, ObjectName};
use podway_model::node_file::NodeFile;

use crate::journal::{self, Entry};
use crate::lease::{Attachment, Condition, Lease, LeaseKind, LeasedAddress};

/// Blocks with more addresses than this come back without their free addresses: only those that the journal names.
const LARGEST_BLOCK: u64 = 4096;

/// An attachment that is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Which one.
    pub attachment: Attachment,
    /// Its network.
    pub network: NetworkName,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Whether its interface is there; else only its record is.
    pub is_wired: bool,
}

/// What was made of the witnesses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rebuilt {
    /// Why.
    pub reason: String,
    /// Leases.
    pub leases: usize,
    /// Attachments that were left out, because an address of theirs has another holder.
    pub left_out: Vec<Attachment>,
}

/// Entries of a new journal. `old` is the damaged one's text, empty if it is lost.
pub(crate) fn entries(
    old: &[u8],
    mut found: Vec<Found>,
    node: Option<&NodeFile>,
    now: Duration,
) -> (Vec<Entry>, Vec<Attachment>) {
    let now = Duration::from_millis(u64::try_from(now.as_millis()).unwrap_or(u64::MAX));
    let readable = journal::readable_entries(old);
    let (mut leases, mut taken, mut left_out) = (BTreeMap::new(), BTreeSet::new(), Vec::new());
    found.sort_by_key(|found| !found.is_wired);
    for Found { attachment, network, addresses, .. } in found {
        if leases.contains_key(&attachment) || addresses.is_empty() {
            continue;
        }
        if addresses.iter().any(|address| taken.contains(address)) {
            left_out.push(attachment);
            continue;
        }
        taken.extend(addresses.iter().copied());
        let pool = |address: &IpAddr| pool_of(node, &readable, *address);
        let addresses = addresses.iter().map(|a| LeasedAddress { address: *a, pool: pool(a) }).collect();
        let kind = LeaseKind::Wired;
        leases.insert(attachment.clone(), Lease { attachment, network, addresses, since: now, kind });
    }
    let mut others: BTreeMap<Attachment, Lease> = BTreeMap::new();
    let mut named = BTreeSet::new();
    for entry in &readable {
        match entry {
            Entry::Lease(lease) => {
                named.extend(lease.ips());
                if lease.kind == LeaseKind::AddressOnly {
                    others.insert(lease.attachment.clone(), lease.clone());
                }
            }
            Entry::Free { attachment, .. } => drop(others.remove(attachment)),
            Entry::Clean(addresses) => named.extend(addresses),
            Entry::Freed { address, .. } => drop(named.insert(*address)),
            Entry::Forget(_) => {}
        }
    }
    for (attachment, lease) in others {
        if leases.contains_key(&attachment) || lease.ips().any(|ip| taken.contains(&ip)) {
            left_out.push(attachment);
            continue;
        }
        taken.extend(lease.ips());
        leases.insert(attachment, lease);
    }
    for block in node.iter().flat_map(|node| &node.blocks) {
        let bits = u32::from(block.cidr.max_prefix_len() - block.cidr.prefix_len());
        if 1u64.checked_shl(bits).is_some_and(|size| size <= LARGEST_BLOCK) {
            named.extend(block.cidr.hosts());
            named.extend([block.cidr.network(), block.cidr.broadcast()]);
        }
    }
    let dirty = |address| Entry::Freed { address, at: now, condition: Condition::Dirty };
    let free = named.into_iter().filter(|address| !taken.contains(address)).map(dirty);
    let all = free.chain(leases.into_values().map(Entry::Lease)).collect();
    (all, left_out)
}

fn pool_of(node: Option<&NodeFile>, readable: &[Entry], address: IpAddr) -> ObjectName {
    let of_block = node.and_then(|n| n.blocks.iter().find(|b| b.cidr.contains(&address)).map(|b| &b.pool));
    let of_pool = || node.and_then(|n| n.pools.iter().find(|p| p.cidr.contains(&address)).map(|p| &p.name));
    let of_journal = || {
        readable.iter().rev().find_map(|entry| match entry {
            Entry::Lease(lease) => lease.addresses.iter().find(|l| l.address == address).map(|l| &l.pool),
            _ => None,
        })
    };
    let known = of_block.or_else(of_pool).or_else(of_journal).cloned();
    known.unwrap_or_else(|| "unknown".parse().expect("it is an object name"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::Ledger;

    fn attachment(name: &str) -> Attachment {
        Attachment::new(name.parse().unwrap(), "eth0".parse().unwrap())
    }

    fn found(name: &str, addresses: &[&str], is_wired: bool) -> Found {
        Found {
            attachment: attachment(name),
            network: "podway".parse().unwrap(),
            addresses: addresses.iter().map(|a| a.parse().unwrap()).collect(),
            is_wired,
        }
    }

    fn lease(name: &str, address: &str, kind: LeaseKind) -> Entry {
        Entry::Lease(Lease {
            attachment: attachment(name),
            network: "podway".parse().unwrap(),
            addresses: vec![LeasedAddress {
                address: address.parse().unwrap(),
                pool: "old".parse().unwrap(),
            }],
            since: Duration::from_millis(5),
            kind,
        })
    }

    #[test]
    fn interfaces_come_before_records_and_address_only_leases_survive() {
        let boot = "00000000-0000-0000-0000-000000000001".parse().unwrap();
        let mut writer = journal::Writer::new(&boot);
        for entry in [
            lease("lan", "10.0.0.9", LeaseKind::AddressOnly),
            lease("ended", "10.0.0.8", LeaseKind::AddressOnly),
            Entry::Free { attachment: attachment("ended"), at: Duration::ZERO, condition: Condition::Dirty },
            lease("pod", "10.0.0.1", LeaseKind::Wired),
            lease("clash", "10.0.0.2", LeaseKind::AddressOnly),
        ] {
            writer.entry(&entry);
        }
        // A damaged line in the middle: what is readable around it still counts.
        let text = writer.finish().0.replacen("lease 5 pod", "lease x pod", 1);
        let all = vec![
            found("dead", &["10.0.0.1"], false),
            found("alive", &["10.0.0.1", "fd00::1"], true),
            found("booting", &["10.0.0.2"], false),
            found("half", &[], true),
        ];
        let (entries, left_out) = entries(text.as_bytes(), all, None, Duration::from_secs(7));
        let ledger = Ledger::replay(&entries).unwrap();
        assert_eq!(left_out, [attachment("dead"), attachment("clash")]);
        let names: Vec<String> = ledger.leases().map(|l| l.attachment.to_string()).collect();
        assert_eq!(names, ["alive/eth0", "booting/eth0", "lan/eth0"]);
        let usage = ledger.usage("10.0.0.0/28".parse().unwrap(), &[], Duration::from_secs(7));
        assert_eq!((usage.leased, usage.dirty), (3, 1), "what was free comes back dirty");
    }
}
