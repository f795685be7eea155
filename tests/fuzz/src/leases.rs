//! The lease journal: what counts of it can be written and read again, and no entries give one address to two
//! attachments. The ledger under sequences of requests.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use arbitrary::{Result, Unstructured};
use podway_ipam::journal::{self, Entry, Writer};
use podway_ipam::ledger::Plan;
use podway_ipam::{Attachment, Condition, Ledger, Request};
use podway_model::ids::BootId;
use podway_model::node_file::NodeFile;

/// The bytes of a journal; after a first `+` lines without their checksums, which are put in.
pub fn journal(bytes: &[u8]) {
    match bytes.split_first() {
        Some((b'+', lines)) => read(&checked(lines)),
        _ => read(bytes),
    }
}

/// Puts each line's checksum before it.
fn checked(lines: &[u8]) -> Vec<u8> {
    let mut all = Vec::with_capacity(lines.len() * 2);
    let mut seed = 0;
    for line in lines.split_inclusive(|byte| *byte == b'\n') {
        let body = line.strip_suffix(b"\n").unwrap_or(line);
        let mut hasher = crc32fast::Hasher::new_with_initial(seed);
        hasher.update(body);
        seed = hasher.finalize();
        all.extend_from_slice(format!("{seed:08x} ").as_bytes());
        all.extend_from_slice(line);
    }
    all
}

fn read(bytes: &[u8]) {
    let contents = match journal::parse(bytes) {
        Ok(contents) => contents,
        Err(damage) => {
            assert!(damage.line >= 1 && !damage.to_string().is_empty());
            return;
        }
    };
    assert!(contents.length <= bytes.len());
    let written = journal_of(&contents.boot, &contents.entries);
    let again = journal::parse(&written).expect("own journal");
    assert_eq!((&again.boot, &again.entries), (&contents.boot, &contents.entries));
    assert_eq!(again.length, written.len());
    // A torn last line counts as not written.
    if let Some(cut) = written.len().checked_sub(1 + bytes.len() % 8) {
        let torn = journal::parse(&written[..cut]);
        assert!(torn.map_or(true, |torn| contents.entries.starts_with(&torn.entries)));
    }
    match Ledger::replay(&contents.entries) {
        Ok(ledger) => whole(&ledger),
        Err((at, contradiction)) => {
            assert!(at < contents.entries.len() && !contradiction.to_string().is_empty());
        }
    }
}

pub(crate) fn journal_of<'a>(boot: &BootId, entries: impl IntoIterator<Item = &'a Entry>) -> Vec<u8> {
    let mut writer = Writer::new(boot);
    entries.into_iter().for_each(|entry| writer.entry(entry));
    writer.finish().0.into_bytes()
}

/// One holder per address, and the compacted form says the same.
fn whole(ledger: &Ledger) {
    let mut taken = BTreeSet::new();
    for lease in ledger.leases() {
        for ip in lease.ips() {
            assert!(taken.insert(ip), "{ip} has two holders");
            assert_eq!(ledger.holder(ip), Some(lease));
        }
    }
    let compacted: Vec<Entry> = ledger.compacted().collect();
    assert_eq!(compacted.len(), ledger.compacted_len());
    assert_eq!(Ledger::replay(&compacted).as_ref(), Ok(ledger));
}

/// Does what a plan says, and holds it against what the node has.
pub(crate) fn carry_out(ledger: &mut Ledger, file: &NodeFile, plan: Plan, now: Duration) {
    let Plan::Make { lease, dirty, replaces } = plan else { return };
    assert!(!lease.addresses.is_empty() && lease.addresses.len() <= 2);
    for ip in lease.ips() {
        assert!(file.blocks.iter().any(|block| block.cidr.contains(&ip)), "{ip} is in no block");
        assert!(!file.tunnel_addresses.contains(&ip), "{ip} is the node's own");
    }
    assert!(dirty.iter().all(|ip| lease.ips().any(|own| own == *ip)));
    if replaces {
        let attachment = lease.attachment.clone();
        let ended = Entry::Free { attachment, at: now, condition: Condition::Dirty };
        ledger.apply(&ended).expect("the plan says that there is a lease");
    }
    ledger.apply(&Entry::Lease(lease)).expect("a planned lease contradicts nothing");
}

/// Two automatic pools of two small blocks each, and one whose addresses are asked for.
pub(crate) const NODE: &str = r#"{"schema":1,"bootId":"00000000-0000-0000-0000-000000000001",
    "instanceId":"00000000-0000-0000-0000-000000000002","generation":1,"node":"n1","confirmed":true,"mtu":1500,
    "policy":"none","policyTimeout":"undo","masquerade":true,"tunnelAddresses":["10.0.0.0","fd00::"],
    "pools":[{"name":"v4","cidr":"10.0.0.0/24","assignment":"automatic"},
        {"name":"v6","cidr":"fd00::/64","assignment":"automatic"},
        {"name":"own","cidr":"10.1.0.0/24","assignment":"manual"}],
    "blocks":[{"cidr":"10.0.0.0/30","pool":"v4","state":"active"},
        {"cidr":"10.0.0.8/31","pool":"v4","state":"active"},
        {"cidr":"fd00::/126","pool":"v6","state":"active"},
        {"cidr":"fd00::8/126","pool":"v6","state":"draining"},
        {"cidr":"10.1.0.7/32","pool":"own","state":"active"}]}"#;

/// Requests, releases, cleaning, blocks that come and go.
pub fn ledger(bytes: &[u8]) {
    // The end of the bytes ends the sequence.
    let _ = sequence(&mut Unstructured::new(bytes));
}

fn sequence(u: &mut Unstructured<'_>) -> Result<()> {
    let mut file: NodeFile = serde_json::from_str(NODE).expect("the literal is a node file");
    let mut ledger = Ledger::default();
    let mut now = Duration::from_secs(1000);
    while !u.is_empty() {
        let literal = "made of a number";
        let attachment = |number: u8| {
            let id = format!("c{}", number % 8).parse().expect(literal);
            Attachment::new(id, if number & 8 == 0 { "eth0" } else { "net1" }.parse().expect(literal))
        };
        match u.int_in_range(0..=7u8)? {
            0..=2 => {
                let mut request = Request::new(attachment(u.arbitrary()?), "podway".parse().expect(literal));
                for _ in 0..u.int_in_range(0..=2u8)? {
                    request.addresses.push(address(u)?);
                }
                for _ in 0..u.int_in_range(0..=2u8)? {
                    let pool = *u.choose(&["v4", "v6", "own", "none"])?;
                    request.pools.push(pool.parse().expect(literal));
                }
                match ledger.plan(&file, &request, now) {
                    Ok(plan) => {
                        carry_out(&mut ledger, &file, plan, now);
                        let kept = ledger.plan(&file, &request, now);
                        assert!(matches!(kept, Ok(Plan::Keep(_))), "asked again: {kept:?}");
                    }
                    Err(refusal) => assert!(!refusal.to_string().is_empty()),
                }
            }
            3 => {
                let condition = if u.arbitrary()? { Condition::Clean } else { Condition::Dirty };
                let entry = Entry::Free { attachment: attachment(u.arbitrary()?), at: now, condition };
                let _ = ledger.apply(&entry);
            }
            4 => ledger.apply(&Entry::Clean(vec![address(u)?])).expect("cleaning contradicts nothing"),
            5 => now += Duration::from_secs(u64::from(u.arbitrary::<u8>()?)),
            6 => {
                let at = u.choose_index(file.blocks.len())?;
                let state = &mut file.blocks[at].state;
                *state = match state {
                    podway_model::node_file::BlockState::Active => {
                        podway_model::node_file::BlockState::Draining
                    }
                    podway_model::node_file::BlockState::Draining => {
                        podway_model::node_file::BlockState::Active
                    }
                };
            }
            _ => {
                let at = u.choose_index(file.blocks.len())?;
                let block = file.blocks[at].cidr;
                let usage = ledger.usage(block, &file.tunnel_addresses, now);
                assert!(usage.leased <= usage.capacity && usage.available() <= usage.capacity, "{usage:?}");
                if usage.is_idle() {
                    ledger.apply(&Entry::Forget(block)).expect("forgetting contradicts nothing");
                }
            }
        }
        whole(&ledger);
    }
    Ok(())
}

fn address(u: &mut Unstructured<'_>) -> Result<IpAddr> {
    let last = u.int_in_range(0..=12u8)?;
    Ok(match u.int_in_range(0..=3u8)? {
        0 | 1 => IpAddr::from([10, 0, 0, last]),
        2 => IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, u16::from(last)]),
        _ => IpAddr::from([10, 1, 0, last]),
    })
}
