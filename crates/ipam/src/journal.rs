//! The on-disk form of the leases: a journal of text lines, each with a checksum.
//!
//! ```text
//! 5f3c21aa podway-ipam 1 0b0f1c9e-...               header: schema, boot id
//! 90ab77e1 lease 81234 c1 eth0 podway 10.244.1.1=default,fd00:1::1=default-v6
//! 5d7210fe lease 90017 c9 net1 lan 10.244.1.8=default address-only
//! 1c44d0b2 free 99001 c1 eth0 clean                  ends the lease of c1/eth0
//! 77e0a911 lease 99120 c2 eth0 podway 10.244.1.2=default
//! 2a5be013 clean 10.244.1.9                          conntrack does not know these any more
//! 08cd9d7f freed 81000 dirty 10.244.1.9              after compaction: free since, and in which condition
//! 6b1a2fd0 forget 10.244.1.0/26                      the block went back to its pool
//! ```
//!
//! Times are milliseconds since boot. A line's checksum is CRC-32 over its text, seeded with the checksum of the
//! line before, so that a line that is missing, doubled or moved is seen like one that is damaged.
//!
//! A line is one operation; what an operation changes, it changes in one line. The last line may be cut off: its
//! writer was killed, nobody heard of it, and it counts as not written. Damage anywhere else is [`Damage`], never
//! repaired silently: guessing here could give one address to two pods.

use std::fmt::Write as _;
use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;
use podway_model::ids::BootId;
use podway_model::{SCHEMA, accepts_schema};

use crate::lease::{Attachment, Condition, Family, Lease, LeaseKind, LeasedAddress};

const MAGIC: &str = "podway-ipam";
/// Ends the line of a lease for an interface that somebody else makes.
const ADDRESS_ONLY: &str = "address-only";

/// One line after the header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Entry {
    /// A lease was made.
    Lease(Lease),
    /// The lease of an attachment ended.
    Free {
        /// Its holder.
        attachment: Attachment,
        /// When: time since boot.
        at: Duration,
        /// State of its addresses.
        condition: Condition,
    },
    /// Free addresses became clean.
    Clean(Vec<IpAddr>),
    /// An address is free since then. Compaction writes this in place of a whole history.
    Freed {
        /// The address.
        address: IpAddr,
        /// Since when: time since boot.
        at: Duration,
        /// Its state.
        condition: Condition,
    },
    /// What was remembered about free addresses of a block is void.
    Forget(IpNet),
}

/// A line that nobody killed half-way would leave: the file was changed from outside, or its storage is broken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {what}")]
pub struct Damage {
    /// Line, counted from 1.
    pub line: usize,
    /// What is wrong with it.
    pub what: String,
}

/// What a journal's text says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Contents {
    /// Boot in which it was begun.
    pub boot: BootId,
    /// Its entries, oldest first.
    pub entries: Vec<Entry>,
    /// Length in bytes of what counts: behind it is the torn last line, if any.
    pub length: usize,
    /// Checksum of the last line that counts: seed of the next one.
    pub seed: u32,
}

/// Writes lines.
#[derive(Debug, Clone)]
pub struct Writer {
    seed: u32,
    text: String,
}

impl Writer {
    /// Begins a journal, with its header.
    pub fn new(boot: &BootId) -> Self {
        let mut writer = Self::after(0);
        writer.line(&format!("{MAGIC} {SCHEMA} {boot}"));
        writer
    }

    /// Continues a journal behind the line with checksum `seed`.
    pub fn after(seed: u32) -> Self {
        Self { seed, text: String::new() }
    }

    /// Adds a line.
    pub fn entry(&mut self, entry: &Entry) {
        self.line(&body(entry));
    }

    /// The text, and the checksum of its last line.
    pub fn finish(self) -> (String, u32) {
        (self.text, self.seed)
    }

    fn line(&mut self, body: &str) {
        self.seed = checksum(self.seed, body.as_bytes());
        let _ = writeln!(self.text, "{:08x} {body}", self.seed);
    }
}

/// Reads a journal.
pub fn parse(bytes: &[u8]) -> Result<Contents, Damage> {
    let mut lines = Lines { bytes, at: 0, number: 0, seed: 0 };
    let Some(header) = lines.next_line()? else {
        return Err(Damage { line: 1, what: "no header".to_owned() });
    };
    let boot = parse_header(header).map_err(|what| Damage { line: 1, what })?;
    let mut entries = Vec::new();
    while let Some(body) = lines.next_line()? {
        let entry = parse_entry(body)
            .ok_or_else(|| Damage { line: lines.number, what: format!("{body:?} is not an entry") })?;
        entries.push(entry);
    }
    Ok(Contents { boot, entries, length: lines.at, seed: lines.seed })
}

/// Whatever lines of a damaged journal are entries, checksums or not: for rebuilding only.
pub(crate) fn readable_entries(bytes: &[u8]) -> Vec<Entry> {
    let text = String::from_utf8_lossy(bytes);
    text.lines().filter_map(|line| parse_entry(line.split_once(' ')?.1)).collect()
}

/// Walks over whole lines whose checksums hold.
struct Lines<'a> {
    bytes: &'a [u8],
    at: usize,
    number: usize,
    seed: u32,
}

impl<'a> Lines<'a> {
    fn next_line(&mut self) -> Result<Option<&'a str>, Damage> {
        let rest = &self.bytes[self.at..];
        let Some(length) = rest.iter().position(|b| *b == b'\n') else {
            return Ok(None); // the end, or a torn last line
        };
        self.number += 1;
        let damage = |what: &str| Damage { line: self.number, what: what.to_owned() };
        let line = std::str::from_utf8(&rest[..length]).map_err(|_| damage("not text"))?;
        let (sum, body) = line.split_once(' ').ok_or_else(|| damage("no checksum"))?;
        let seed = checksum(self.seed, body.as_bytes());
        if sum.len() != 8 || u32::from_str_radix(sum, 16) != Ok(seed) {
            return Err(damage("checksum does not match"));
        }
        self.seed = seed;
        self.at += length + 1;
        Ok(Some(body))
    }
}

fn checksum(seed: u32, bytes: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new_with_initial(seed);
    hasher.update(bytes);
    hasher.finalize()
}

fn parse_header(body: &str) -> Result<BootId, String> {
    let mut words = body.split(' ');
    let (magic, schema, boot) = (words.next(), words.next(), words.next());
    if magic != Some(MAGIC) || words.next().is_some() {
        return Err(format!("{body:?} is not the header of a lease journal"));
    }
    let schema = schema.and_then(|s| s.parse().ok()).ok_or("no schema in the header")?;
    if !accepts_schema(schema) {
        return Err(format!("schema {schema} found, {SCHEMA} expected (written by a newer release)"));
    }
    boot.unwrap_or_default().parse().map_err(|e: podway_model::ids::InvalidId| e.to_string())
}

fn body(entry: &Entry) -> String {
    let mut out = String::with_capacity(160);
    let _ = match entry {
        Entry::Lease(lease) => {
            let Attachment { container_id, ifname } = &lease.attachment;
            let _ =
                write!(out, "lease {} {container_id} {ifname} {} ", lease.since.as_millis(), lease.network);
            for (i, leased) in lease.addresses.iter().enumerate() {
                let comma = if i == 0 { "" } else { "," };
                let _ = write!(out, "{comma}{}={}", leased.address, leased.pool);
            }
            if lease.kind == LeaseKind::AddressOnly {
                out.push(' ');
                out.push_str(ADDRESS_ONLY);
            }
            Ok(())
        }
        Entry::Free { attachment: Attachment { container_id, ifname }, at, condition } => {
            write!(out, "free {} {container_id} {ifname} {}", at.as_millis(), word(*condition))
        }
        Entry::Clean(addresses) => {
            out.push_str("clean ");
            for (i, address) in addresses.iter().enumerate() {
                let comma = if i == 0 { "" } else { "," };
                let _ = write!(out, "{comma}{address}");
            }
            Ok(())
        }
        Entry::Freed { address, at, condition } => {
            write!(out, "freed {} {} {address}", at.as_millis(), word(*condition))
        }
        Entry::Forget(block) => write!(out, "forget {block}"),
    };
    out
}

fn word(condition: Condition) -> &'static str {
    match condition {
        Condition::Clean => "clean",
        Condition::Dirty => "dirty",
    }
}

fn parse_entry(body: &str) -> Option<Entry> {
    let mut words = body.split(' ');
    let entry = match words.next()? {
        "lease" => {
            let since = parse_millis(words.next()?)?;
            let attachment = parse_attachment(&mut words)?;
            let network = words.next()?.parse().ok()?;
            let addresses = words.next()?.split(',').map(parse_leased).collect::<Option<Vec<_>>>()?;
            match addresses.as_slice() {
                [_] => {}
                [one, other] if Family::of(one.address) != Family::of(other.address) => {}
                _ => return None, // one per family, as every lease has
            }
            let kind = match words.next() {
                None => LeaseKind::Wired,
                Some(ADDRESS_ONLY) => LeaseKind::AddressOnly,
                Some(_) => return None,
            };
            Entry::Lease(Lease { attachment, network, addresses, since, kind })
        }
        "free" => {
            let at = parse_millis(words.next()?)?;
            let attachment = parse_attachment(&mut words)?;
            Entry::Free { attachment, at, condition: parse_condition(words.next()?)? }
        }
        "clean" => {
            Entry::Clean(words.next()?.split(',').map(|a| a.parse().ok()).collect::<Option<Vec<_>>>()?)
        }
        "freed" => {
            let at = parse_millis(words.next()?)?;
            let condition = parse_condition(words.next()?)?;
            Entry::Freed { address: words.next()?.parse().ok()?, at, condition }
        }
        "forget" => Entry::Forget(words.next()?.parse().ok()?),
        _ => return None,
    };
    words.next().is_none().then_some(entry)
}

fn parse_millis(word: &str) -> Option<Duration> {
    word.parse().ok().map(Duration::from_millis)
}

fn parse_condition(text: &str) -> Option<Condition> {
    [Condition::Clean, Condition::Dirty].into_iter().find(|c| word(*c) == text)
}

fn parse_attachment<'a>(words: &mut impl Iterator<Item = &'a str>) -> Option<Attachment> {
    Some(Attachment { container_id: words.next()?.parse().ok()?, ifname: words.next()?.parse().ok()? })
}

fn parse_leased(text: &str) -> Option<LeasedAddress> {
    let (address, pool) = text.split_once('=')?;
    Some(LeasedAddress { address: address.parse().ok()?, pool: pool.parse().ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn boot() -> BootId {
        "00000000-0000-0000-0000-000000000001".parse().unwrap()
    }

    fn sample() -> Vec<Entry> {
        let attachment = Attachment::new("c1".parse().unwrap(), "eth0".parse().unwrap());
        vec![
            Entry::Lease(Lease {
                attachment: attachment.clone(),
                network: "podway".parse().unwrap(),
                addresses: vec![
                    LeasedAddress { address: "10.0.0.1".parse().unwrap(), pool: "default".parse().unwrap() },
                    LeasedAddress { address: "fd00::1".parse().unwrap(), pool: "v6".parse().unwrap() },
                ],
                since: Duration::from_millis(17),
                kind: LeaseKind::Wired,
            }),
            Entry::Lease(Lease {
                attachment: Attachment::new("c2".parse().unwrap(), "net1".parse().unwrap()),
                network: "lan".parse().unwrap(),
                addresses: vec![LeasedAddress {
                    address: "10.0.0.9".parse().unwrap(),
                    pool: "default".parse().unwrap(),
                }],
                since: Duration::from_millis(18),
                kind: LeaseKind::AddressOnly,
            }),
            Entry::Free { attachment, at: Duration::from_millis(99), condition: Condition::Dirty },
            Entry::Clean(vec!["10.0.0.1".parse().unwrap(), "fd00::1".parse().unwrap()]),
            Entry::Freed {
                address: "fd00::2".parse().unwrap(),
                at: Duration::ZERO,
                condition: Condition::Clean,
            },
            Entry::Forget("10.0.0.0/26".parse().unwrap()),
        ]
    }

    fn text(entries: &[Entry]) -> String {
        let mut writer = Writer::new(&boot());
        entries.iter().for_each(|e| writer.entry(e));
        writer.finish().0
    }

    #[test]
    fn every_entry_reads_as_it_was_written() {
        let contents = parse(text(&sample()).as_bytes()).unwrap();
        assert_eq!(contents.boot, boot());
        assert_eq!(contents.entries, sample());
        assert_eq!(contents.length, text(&sample()).len());
    }

    #[test]
    fn a_cut_off_last_line_counts_as_not_written() {
        let (before, whole) = (text(&sample()[..5]), text(&sample()));
        for cut in before.len()..whole.len() {
            let contents = parse(&whole.as_bytes()[..cut]).unwrap();
            assert_eq!(contents.entries, sample()[..5], "cut at byte {cut}");
            assert_eq!(contents.length, before.len());
        }
    }

    #[test]
    fn any_changed_byte_before_the_last_newline_is_seen() {
        let whole = text(&sample());
        for at in 0..whole.len() - 1 {
            let mut bytes = whole.clone().into_bytes();
            bytes[at] ^= 0x01;
            assert!(parse(&bytes).is_err(), "byte {at}");
        }
    }

    #[test]
    fn a_missing_doubled_or_moved_line_is_seen() {
        let whole = text(&sample());
        let lines: Vec<&str> = whole.split_inclusive('\n').collect();
        for i in 1..lines.len() - 1 {
            let mut missing = lines.clone();
            missing.remove(i);
            let mut doubled = lines.clone();
            doubled.insert(i, lines[i]);
            let mut moved = lines.clone();
            moved.swap(i, i + 1);
            for bad in [missing, doubled, moved] {
                let damage = parse(bad.concat().as_bytes()).unwrap_err();
                assert!(damage.line > 1, "{damage}");
            }
        }
    }

    #[test]
    fn another_schema_is_named() {
        let mut writer = Writer::after(0);
        writer.line("podway-ipam 7 00000000-0000-0000-0000-000000000001");
        let damage = parse(writer.finish().0.as_bytes()).unwrap_err();
        assert!(damage.what.contains("schema 7 found"), "{damage}");
    }

    #[test]
    fn an_empty_file_is_damage() {
        assert_eq!(parse(b"").unwrap_err().line, 1);
    }
}
