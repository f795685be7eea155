//! Connection tracking entries, through ctnetlink: listed and deleted by address, original or reply tuple.
//!
//! The kernel can filter a dump by tuple only in newer versions and only by one address, so we filter here: one
//! dump per family and batch, however many addresses. What is read of an entry is its two tuples; they come
//! first, the rest is skipped.
//!
//! ```text
//!  struct nfgenmsg: family u8 · version u8 · resource id u16 (big endian)
//!  CTA_TUPLE_ORIG, CTA_TUPLE_REPLY { CTA_TUPLE_IP { v4/v6 source, destination }, CTA_TUPLE_PROTO }
//!  CTA_ZONE u16 · CTA_ID u32
//! ```

use std::collections::BTreeSet;
use std::net::IpAddr;

use netlink_packet_core::{NLA_F_NESTED, NLA_TYPE_MASK, NlaBuffer, NlasIterator, parse_ip};

use crate::KernelError;
use crate::netlink::{Connection, Message};

const NFNL_SUBSYS_CTNETLINK: u16 = 1;
const IPCTNL_MSG_CT_NEW: u16 = NFNL_SUBSYS_CTNETLINK << 8;
const IPCTNL_MSG_CT_GET: u16 = NFNL_SUBSYS_CTNETLINK << 8 | 1;
const IPCTNL_MSG_CT_DELETE: u16 = NFNL_SUBSYS_CTNETLINK << 8 | 2;
const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_ID: u16 = 12;
const CTA_ZONE: u16 = 18;
const CTA_TUPLE_IP: u16 = 1;
const CTA_TUPLE_PROTO: u16 = 2;
const CTA_PROTO_NUM: u16 = 1;
const CTA_PROTO_DST_PORT: u16 = 3;
const GENMSG: usize = 4;

/// A NETLINK_NETFILTER socket for connection tracking. It belongs to the network namespace in which it was
/// opened.
#[derive(Debug)]
pub struct Conntrack {
    connection: Connection,
}

/// The addresses of one entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Tuples {
    /// Source and destination of packets in the direction of the first one.
    pub original: (IpAddr, IpAddr),
    /// Source and destination of answers; differs from the reverse where addresses are translated.
    pub reply: (IpAddr, IpAddr),
}

impl Tuples {
    /// Whether an address of either tuple is among `addresses`.
    pub fn carry(&self, addresses: &BTreeSet<IpAddr>) -> bool {
        [self.original.0, self.original.1, self.reply.0, self.reply.1].iter().any(|a| addresses.contains(a))
    }
}

/// Where packets of a flow go, as their sender addresses them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Destination {
    /// Address.
    pub address: IpAddr,
    /// Protocol number (IANA).
    pub protocol: u8,
    /// Port.
    pub port: u16,
}

impl Conntrack {
    /// Opens a socket in the calling thread's network namespace.
    pub fn open() -> Result<Self, KernelError> {
        Connection::open(netlink_sys::protocols::NETLINK_NETFILTER).map(|connection| Self { connection })
    }

    /// Entries of both families in which one of `addresses` occurs.
    pub fn list(&mut self, addresses: &BTreeSet<IpAddr>) -> Result<Vec<Tuples>, KernelError> {
        Ok(self.matching(addresses)?.into_iter().map(|(tuples, _)| tuples).collect())
    }

    /// Deletes every entry in which one of `addresses` occurs, in either tuple; says how many. Entries that end
    /// by themselves meanwhile are not counted. Packets that arrive while this runs can make new ones.
    pub fn delete(&mut self, addresses: &BTreeSet<IpAddr>) -> Result<usize, KernelError> {
        let matching = self.matching(addresses)?;
        self.delete_all(matching.into_iter().map(|(_, payload)| payload))
    }

    /// Deletes every entry whose first packet went to such a destination, wherever it was sent on to; says how
    /// many. The next packet of such a flow is looked at anew.
    pub fn delete_to(&mut self, wanted: impl Fn(&Destination) -> bool) -> Result<usize, KernelError> {
        let mut doomed = Vec::new();
        for family in [libc::AF_INET, libc::AF_INET6] {
            let to_wanted = |entry: Entry| entry.destination.is_some_and(|to| wanted(&to)).then_some(entry);
            doomed.extend(self.entries(family, to_wanted)?);
        }
        self.delete_all(doomed.into_iter().map(|entry| entry.deletion))
    }

    fn delete_all(&mut self, payloads: impl Iterator<Item = Vec<u8>>) -> Result<usize, KernelError> {
        let deletions: Vec<Message> =
            payloads.map(|payload| Message { kind: IPCTNL_MSG_CT_DELETE, flags: 0, payload }).collect();
        let mut deleted = 0;
        for result in self.connection.batch(&deletions)? {
            match result {
                Ok(()) => deleted += 1,
                Err(refusal) if refusal.errno == nix::errno::Errno::ENOENT => {}
                Err(refusal) => return Err(refusal.into_error("delete a connection tracking entry")),
            }
        }
        Ok(deleted)
    }

    /// Entries that carry one of the addresses, each with the payload of the message that deletes it.
    fn matching(&mut self, addresses: &BTreeSet<IpAddr>) -> Result<Vec<(Tuples, Vec<u8>)>, KernelError> {
        let mut all = Vec::new();
        for (family, wanted) in [
            (libc::AF_INET, addresses.iter().any(IpAddr::is_ipv4)),
            (libc::AF_INET6, addresses.iter().any(IpAddr::is_ipv6)),
        ] {
            if !wanted {
                continue;
            }
            let carrying = |entry: Entry| entry.tuples.carry(addresses).then_some(entry);
            let entries = self.entries(family, carrying)?;
            all.extend(entries.into_iter().map(|entry| (entry.tuples, entry.deletion)));
        }
        Ok(all)
    }

    /// The entries of a family that `keep` keeps.
    fn entries(
        &mut self,
        family: i32,
        mut keep: impl FnMut(Entry) -> Option<Entry>,
    ) -> Result<Vec<Entry>, KernelError> {
        let family = u8::try_from(family).expect("address families fit a byte on the wire");
        let attempted = "list connection tracking entries";
        self.connection.dump(IPCTNL_MSG_CT_GET, &[family, 0, 0, 0], attempted, |kind, payload| {
            if kind != IPCTNL_MSG_CT_NEW {
                return Ok(None);
            }
            Ok(parse_entry(payload).and_then(&mut keep))
        })
    }
}

/// What is read of an entry.
#[derive(Debug, Clone)]
pub struct Entry {
    /// Its addresses.
    pub tuples: Tuples,
    /// Where its first packet went; none for protocols without ports.
    pub destination: Option<Destination>,
    /// Payload of the message that deletes it: the header, original tuple, zone and id as they came.
    pub deletion: Vec<u8>,
}

/// An entry as the kernel tells it (what follows `struct nlmsghdr`). `None` for what has no two IP tuples.
pub fn parse_entry(payload: &[u8]) -> Option<Entry> {
    let (header, rest) = payload.split_first_chunk::<GENMSG>()?;
    let mut deletion = header.to_vec();
    let (mut original, mut reply, mut port) = (None, None, None);
    for attribute in NlasIterator::new(rest) {
        let attribute: NlaBuffer<&[u8]> = attribute.ok()?;
        let kind = attribute.kind() & NLA_TYPE_MASK;
        match kind {
            CTA_TUPLE_ORIG => {
                original = addresses_of(attribute.value());
                port = port_of(attribute.value());
            }
            CTA_TUPLE_REPLY => reply = addresses_of(attribute.value()),
            _ => {}
        }
        if matches!(kind, CTA_TUPLE_ORIG | CTA_ID | CTA_ZONE) {
            let nested = if kind == CTA_TUPLE_ORIG { NLA_F_NESTED } else { 0 };
            let length = u16::try_from(4 + attribute.value().len()).ok()?;
            deletion.extend_from_slice(&length.to_ne_bytes());
            deletion.extend_from_slice(&(kind | nested).to_ne_bytes());
            deletion.extend_from_slice(attribute.value());
            deletion.resize(deletion.len().next_multiple_of(4), 0);
        }
    }
    let tuples = Tuples { original: original?, reply: reply? };
    let address = tuples.original.1;
    let destination = port.map(|(protocol, port)| Destination { address, protocol, port });
    Some(Entry { tuples, destination, deletion })
}

/// The value of the first attribute of one of these types.
fn nested(attributes: &[u8], wanted: &[u16]) -> Option<Vec<u8>> {
    NlasIterator::new(attributes)
        .map_while(|attribute: Result<NlaBuffer<&[u8]>, _>| attribute.ok())
        .find(|attribute| wanted.contains(&(attribute.kind() & NLA_TYPE_MASK)))
        .map(|attribute| attribute.value().to_vec())
}

/// Protocol and destination port of a tuple, where it has ports.
fn port_of(tuple: &[u8]) -> Option<(u8, u16)> {
    let protocol = nested(tuple, &[CTA_TUPLE_PROTO])?;
    let number = *nested(&protocol, &[CTA_PROTO_NUM])?.first()?;
    let port = nested(&protocol, &[CTA_PROTO_DST_PORT])?;
    Some((number, u16::from_be_bytes(*port.first_chunk::<2>()?)))
}

/// Source and destination: types 1 and 2 for IPv4, 3 and 4 for IPv6.
fn addresses_of(tuple: &[u8]) -> Option<(IpAddr, IpAddr)> {
    let ip = nested(tuple, &[CTA_TUPLE_IP])?;
    Some((parse_ip(&nested(&ip, &[1, 3])?).ok()?, parse_ip(&nested(&ip, &[2, 4])?).ok()?))
}
