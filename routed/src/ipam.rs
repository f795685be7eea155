//! Are leases, endpoint records and interfaces of this node of one mind? And: ends a lease for an operator.
//!
//! What differs is found by comparing what the kernel, the lease file and the records show under the address lock. Mending
//! takes away only what no pod can miss: a lease or a record whose interface is gone. An interface without a lease is a
//! pod whose address may be given to another one, and only its end mends that.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use ipnet::IpNet;
use podway_ipam::store::since_boot;
use podway_ipam::{Attachment, Condition, LeaseKind, LeaseStore, Ledger};
use podway_kern::rtnl::Rtnl;
use podway_model::endpoint::EndpointRecord;
use podway_model::names::{self, attachment_id};
use podway_model::socket::{IpamFinding, IpamRemedy, RoutedReply};

use crate::cluster::Identity;

/// A lease that is younger may be one whose interface is still being made.
const YOUNG: Duration = Duration::from_secs(10);

/// What a node shows.
#[derive(Debug, Default)]
struct Shown {
    /// Attachments whose interface is there.
    present: BTreeSet<Attachment>,
    records: Vec<EndpointRecord>,
    /// Attachments whose addresses another plugin gives.
    delegated: BTreeSet<String>,
    /// Blocks of the node file; none: there is none of this boot.
    blocks: Option<Vec<IpNet>>,
}

/// What mends a finding.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Mend {
    /// End the lease, and remove the record.
    EndLease(Attachment),
    /// Remove the record.
    RemoveRecord(Attachment),
    /// Nothing that can be done here.
    ByHand(&'static str),
}

/// A finding, and what mends it.
type Found = (String, String, Mend);

/// Compares, and mends what can be mended where that is asked for.
pub(crate) fn check(identity: &Identity, mend: bool) -> Result<Vec<IpamFinding>, String> {
    let mut leases =
        LeaseStore::open(&identity.ipam_dir, &identity.boot_id).map_err(|error| error.to_string())?;
    let mut links = Rtnl::open().map_err(|error| error.to_string())?;
    let links = links.links_in_group(names::POD_GROUP).map_err(|error| error.to_string())?;
    let (records, problems) = crate::dataplane::read_records(Path::new(names::ENDPOINTS_DIR));
    let file = podway_ipam::read_node_file(&identity.node_file, &identity.boot_id).ok();
    let shown = Shown {
        present: Attachment::of_aliases(links.iter().filter_map(|link| link.alias.as_deref())),
        records,
        delegated: delegated(),
        blocks: file.map(|file| file.blocks.iter().map(|block| block.cidr).collect()),
    };
    let mut findings: Vec<IpamFinding> = problems
        .into_iter()
        .map(|problem| IpamFinding {
            subject: names::ENDPOINTS_DIR.to_owned(),
            problem,
            remedy: IpamRemedy::ByHand("remove the file if its pod is gone".to_owned()),
        })
        .collect();
    for (subject, problem, how) in compare(leases.ledger(), &shown, since_boot()) {
        let remedy = match (how, mend) {
            (Mend::ByHand(what), _) => IpamRemedy::ByHand(what.to_owned()),
            (_, false) => IpamRemedy::CanBeMended,
            (Mend::EndLease(attachment), true) => {
                let ended = leases.release(&attachment, since_boot(), Condition::Dirty);
                ended.map_err(|error| error.to_string())?;
                remove_record(&attachment)?;
                IpamRemedy::Mended
            }
            (Mend::RemoveRecord(attachment), true) => {
                remove_record(&attachment)?;
                IpamRemedy::Mended
            }
        };
        findings.push(IpamFinding { subject, problem, remedy });
    }
    Ok(findings)
}

/// Ends the lease that holds an address.
pub(crate) fn release(identity: &Identity, address: IpAddr, force: bool) -> Result<RoutedReply, String> {
    let mut leases =
        LeaseStore::open(&identity.ipam_dir, &identity.boot_id).map_err(|error| error.to_string())?;
    let Some(lease) = leases.ledger().holder(address).cloned() else {
        return Ok(RoutedReply::IpamNotHeld { node: identity.node.clone() });
    };
    let mut links = Rtnl::open().map_err(|error| error.to_string())?;
    let links = links.links_in_group(names::POD_GROUP).map_err(|error| error.to_string())?;
    let present = Attachment::of_aliases(links.iter().filter_map(|link| link.alias.as_deref()));
    let attachment = lease.attachment.clone();
    if !force {
        let why = if present.contains(&attachment) {
            Some("is there: its address would be given to another pod while it lives")
        } else if lease.kind == LeaseKind::AddressOnly {
            Some("is another plugin's, so nobody here can see whether it is there")
        } else {
            None
        };
        if let Some(why) = why {
            return Err(format!("{address} is held by {attachment}, whose interface {why}; --force insists"));
        }
    }
    leases.release(&attachment, since_boot(), Condition::Dirty).map_err(|error| error.to_string())?;
    if !present.contains(&attachment) {
        remove_record(&attachment)?;
    }
    Ok(RoutedReply::IpamReleased { holder: attachment.to_string(), addresses: lease.ips().collect() })
}

/// Names of the marks of attachments whose addresses another plugin gives.
fn delegated() -> BTreeSet<String> {
    let entries = fs::read_dir(names::DELEGATED_DIR).into_iter().flatten().flatten();
    let name = |entry: fs::DirEntry| entry.file_name().to_str()?.strip_suffix(".json").map(str::to_owned);
    entries.filter_map(name).collect()
}

fn id_of(attachment: &Attachment) -> String {
    attachment_id(attachment.container_id.as_str(), attachment.ifname.as_str())
}

fn remove_record(attachment: &Attachment) -> Result<(), String> {
    let path = Path::new(names::ENDPOINTS_DIR).join(format!("{}.json", id_of(attachment)));
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(format!("{}: {error}", path.display())),
        _ => Ok(()),
    }
}

fn list(addresses: impl IntoIterator<Item = IpAddr>) -> String {
    let texts: Vec<String> = addresses.into_iter().map(|address| address.to_string()).collect();
    texts.join(", ")
}

/// What differs.
fn compare(ledger: &Ledger, shown: &Shown, now: Duration) -> Vec<Found> {
    const AN_END: &str = "end the pod: its address may be given to another one";
    let mut found = Vec::new();
    let records: BTreeMap<Attachment, &EndpointRecord> = shown
        .records
        .iter()
        .map(|record| (Attachment::new(record.container_id.clone(), record.ifname.clone()), record))
        .collect();
    for lease in ledger.leases() {
        let attachment = &lease.attachment;
        let mut add = |problem: String, mend| found.push((attachment.to_string(), problem, mend));
        let addresses = list(lease.ips());
        let outside: Vec<IpAddr> = match &shown.blocks {
            Some(blocks) => lease.ips().filter(|ip| !blocks.iter().any(|block| block.contains(ip))).collect(),
            None => Vec::new(),
        };
        if !outside.is_empty() {
            let problem = format!("leased {} lies in no block of this node", list(outside));
            add(problem, Mend::ByHand("end the pod: nothing leads to its address any more"));
        }
        if lease.kind != LeaseKind::Wired || now.saturating_sub(lease.since) < YOUNG {
            continue;
        }
        if !shown.present.contains(attachment) {
            let problem = format!("lease of {addresses}, and no interface");
            add(problem, Mend::EndLease(attachment.clone()));
            continue;
        }
        match records.get(attachment) {
            None => add(format!("lease of {addresses}, and no endpoint record"), Mend::ByHand(AN_END)),
            Some(record) if !lease.ips().eq(record.addresses.iter().copied()) => {
                let problem = format!(
                    "lease of {addresses}, and an endpoint record with {}",
                    list(record.addresses.iter().copied())
                );
                add(problem, Mend::ByHand(AN_END));
            }
            Some(_) => {}
        }
    }
    let mut holders: BTreeMap<IpAddr, &Attachment> = BTreeMap::new();
    for (attachment, record) in &records {
        for address in &record.addresses {
            if let Some(other) = holders.insert(*address, attachment) {
                let problem = format!("{address} is in the endpoint record of {other}, too");
                found.push((attachment.to_string(), problem, Mend::ByHand("end one of the two pods")));
            }
        }
        let is_ours = record.ipam.is_none() && !shown.delegated.contains(&record.id);
        if is_ours && ledger.lease_of(attachment).is_none() {
            let problem =
                format!("endpoint record with {}, and no lease", list(record.addresses.iter().copied()));
            let is_there = shown.present.contains(attachment);
            let mend = if is_there { Mend::ByHand(AN_END) } else { Mend::RemoveRecord(attachment.clone()) };
            found.push((attachment.to_string(), problem, mend));
        }
    }
    for attachment in &shown.present {
        let is_known = ledger.lease_of(attachment).is_some()
            || records.contains_key(attachment)
            || shown.delegated.contains(&id_of(attachment));
        if !is_known {
            let problem = "interface, and neither lease nor endpoint record".to_owned();
            found.push((attachment.to_string(), problem, Mend::ByHand(AN_END)));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use podway_ipam::journal::Entry;
    use podway_ipam::{Lease, LeasedAddress};

    fn attachment(name: &str) -> Attachment {
        Attachment::new(name.parse().unwrap(), "eth0".parse().unwrap())
    }

    fn ledger(leases: &[(&str, &str, u64, LeaseKind)]) -> Ledger {
        let mut ledger = Ledger::default();
        for (name, address, since, kind) in leases {
            let lease = Lease {
                attachment: attachment(name),
                network: "podway".parse().unwrap(),
                addresses: vec![LeasedAddress {
                    address: address.parse().unwrap(),
                    pool: "p".parse().unwrap(),
                }],
                since: Duration::from_secs(*since),
                kind: *kind,
            };
            ledger.apply(&Entry::Lease(lease)).unwrap();
        }
        ledger
    }

    fn record(name: &str, address: &str, ipam: Option<&str>) -> EndpointRecord {
        let id = attachment_id(name, "eth0");
        serde_json::from_value(serde_json::json!({
            "schema": 1, "id": id, "bootId": "00000000-0000-0000-0000-000000000001", "network": "podway",
            "containerId": name, "ifname": "eth0", "hostIfname": "pw1", "mac": "02:00:00:00:00:01",
            "mtu": 1500, "pod": null, "addresses": [address], "netns": "/run/netns/x", "ipam": ipam
        }))
        .unwrap()
    }

    #[test]
    fn leaks_and_contradictions_are_found_and_what_is_sound_is_not() {
        use LeaseKind::{AddressOnly, Wired};
        let ledger = ledger(&[
            ("sound", "10.0.0.1", 0, Wired),
            ("gone", "10.0.0.2", 0, Wired),
            ("young", "10.0.0.3", 95, Wired),
            ("lan", "10.0.0.4", 0, AddressOnly),
            ("unrecorded", "10.0.0.5", 0, Wired),
            ("other", "10.0.0.6", 0, Wired),
            ("stranded", "10.9.0.1", 0, AddressOnly),
        ]);
        let mut marked = record("marked", "10.5.0.2", None);
        marked.ipam = None;
        let shown = Shown {
            present: ["sound", "unrecorded", "other", "bare", "foreign", "marked", "unleased"]
                .map(attachment)
                .into(),
            records: vec![
                record("sound", "10.0.0.1", None),
                record("other", "10.0.0.7", None),
                record("left", "10.0.0.8", None),
                record("unleased", "10.0.0.7", None),
                record("foreign", "10.5.0.1", Some("host-local")),
                marked,
            ],
            delegated: [attachment_id("marked", "eth0")].into(),
            blocks: Some(vec!["10.0.0.0/26".parse().unwrap()]),
        };
        let found = compare(&ledger, &shown, Duration::from_secs(100));
        let texts: Vec<String> = found
            .iter()
            .map(|(subject, problem, mend)| {
                let mark = if matches!(mend, Mend::ByHand(_)) { "" } else { " (mended)" };
                format!("{subject}: {problem}{mark}")
            })
            .collect();
        assert_eq!(
            texts,
            [
                "gone/eth0: lease of 10.0.0.2, and no interface (mended)",
                "other/eth0: lease of 10.0.0.6, and an endpoint record with 10.0.0.7",
                "stranded/eth0: leased 10.9.0.1 lies in no block of this node",
                "unrecorded/eth0: lease of 10.0.0.5, and no endpoint record",
                "left/eth0: endpoint record with 10.0.0.8, and no lease (mended)",
                "unleased/eth0: 10.0.0.7 is in the endpoint record of other/eth0, too",
                "unleased/eth0: endpoint record with 10.0.0.7, and no lease",
                "bare/eth0: interface, and neither lease nor endpoint record",
            ]
        );
        assert_eq!(compare(&Ledger::default(), &Shown::default(), Duration::ZERO), []);
    }
}
