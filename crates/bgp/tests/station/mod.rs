//! A monitoring station as RFC 7854 describes it: reads the octets of one connection and builds each neighbour's tables.
//! It panics where a message is malformed or comes when it must not.

#![allow(
    dead_code,
    unreachable_pub,
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "each user takes its part"
)]

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use bytes::Bytes;
use podway_bgp::message::attribute::PathAttributes;
use podway_bgp::message::open::Open;
use podway_bgp::message::update::{DecodeContext, Update};
use podway_bgp::message::{Nlri, Notification};
use podway_bgp::types::Families;

/// Peer type and address.
pub type Key = (u8, IpAddr);

/// A neighbour whose session is up, or the loc-RIB.
#[derive(Debug, Clone)]
pub struct Peer {
    pub asn: u32,
    pub router_id: Ipv4Addr,
    pub local: (IpAddr, u16),
    pub remote_port: u16,
    pub sent: Open,
    pub received: Open,
    pub pre: BTreeMap<Nlri, PathAttributes>,
    pub post: BTreeMap<Nlri, PathAttributes>,
    /// Families whose table was told, before and after policy.
    pub ends: [Families; 2],
    pub statistics: BTreeMap<u16, u64>,
    add_path: Families,
}

/// How a session ended: the reason's number, and the NOTIFICATION.
pub type Down = (u8, Option<Notification>, u16);

#[derive(Debug, Default)]
pub struct Station {
    pub name: Option<String>,
    pub peers: BTreeMap<Key, Peer>,
    pub downs: Vec<(Key, Down)>,
    pub ups: usize,
    pub monitored: usize,
    /// Of Route Monitoring: times since 1970 in seconds, 0 for none.
    pub times: Vec<u32>,
    pub terminated: Option<u16>,
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, len: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(len);
        self.0 = rest;
        taken
    }
    fn u8(&mut self) -> u8 {
        self.take(1)[0]
    }
    fn u16(&mut self) -> u16 {
        u16::from_be_bytes(self.take(2).try_into().unwrap())
    }
    fn u32(&mut self) -> u32 {
        u32::from_be_bytes(self.take(4).try_into().unwrap())
    }
    fn number(&mut self, len: usize) -> u64 {
        self.take(len).iter().fold(0, |sum, octet| sum << 8 | u64::from(*octet))
    }
    fn address(&mut self, v6: bool) -> IpAddr {
        let all: [u8; 16] = self.take(16).try_into().unwrap();
        if v6 {
            return Ipv6Addr::from(all).into();
        }
        assert_eq!(all[..12], [0; 12]);
        Ipv4Addr::new(all[12], all[13], all[14], all[15]).into()
    }
    fn bgp(&mut self) -> (u8, Bytes) {
        assert_eq!(self.0[..16], [0xff; 16]);
        let len = usize::from(u16::from_be_bytes([self.0[16], self.0[17]]));
        let whole = self.take(len);
        (whole[18], Bytes::copy_from_slice(&whole[19..]))
    }
    fn information(&mut self) -> BTreeMap<u16, Vec<u8>> {
        let mut all = BTreeMap::new();
        while !self.0.is_empty() {
            let (kind, len) = (self.u16(), usize::from(self.u16()));
            all.insert(kind, self.take(len).to_vec());
        }
        all
    }
}

impl Station {
    /// Whole messages, as one connection brings them.
    pub fn read(&mut self, octets: &[u8]) {
        let mut stream = Reader(octets);
        while !stream.0.is_empty() {
            assert!(self.terminated.is_none(), "nothing comes after Termination");
            assert_eq!(stream.u8(), 3, "version");
            let (len, kind) = (stream.u32() as usize, stream.u8());
            let mut body = Reader(stream.take(len - 6));
            assert_eq!(self.name.is_none(), kind == 4, "Initiation comes first and once");
            self.message(kind, &mut body);
            assert!(body.0.is_empty(), "message {kind} is longer than what stands in it");
        }
    }

    fn message(&mut self, kind: u8, body: &mut Reader<'_>) {
        match kind {
            4 => {
                let mut said = body.information();
                assert!(!said.remove(&1).unwrap().is_empty(), "sysDescr");
                self.name = Some(String::from_utf8(said.remove(&2).unwrap()).unwrap());
            }
            5 => {
                let said = body.information();
                self.terminated = Some(u16::from_be_bytes(said[&1][..].try_into().unwrap()));
            }
            _ => self.of_peer(kind, body),
        }
    }

    fn of_peer(&mut self, kind: u8, body: &mut Reader<'_>) {
        let (peer_type, flags, distinguisher) = (body.u8(), body.u8(), body.number(8));
        assert_eq!(distinguisher, 0);
        let (v6, post) = (flags & 0x80 != 0, flags & 0x40 != 0);
        let address = body.address(v6);
        let (asn, router_id) = (body.u32(), Ipv4Addr::from(body.u32()));
        let (seconds, _micros) = (body.u32(), body.u32());
        let key = (peer_type, address);
        if kind == 3 {
            let local = (body.address(v6), body.u16());
            let remote_port = body.u16();
            let mut open = || {
                let (kind, open) = body.bgp();
                assert_eq!(kind, 1);
                Open::decode(open).unwrap()
            };
            let (sent, received) = (open(), open());
            let _ = body.information();
            let add_path = sent.capabilities.add_path_receive.and(received.capabilities.add_path_send);
            let (pre, post) = (BTreeMap::new(), BTreeMap::new());
            let (ends, statistics) = ([Families::NONE; 2], BTreeMap::new());
            let peer = Peer {
                asn,
                router_id,
                local,
                remote_port,
                sent,
                received,
                pre,
                post,
                ends,
                statistics,
                add_path,
            };
            self.ups += 1;
            assert!(self.peers.insert(key, peer).is_none(), "{key:?} is up already");
            return;
        }
        let peer = self.peers.get_mut(&key).expect("it was told to be up");
        assert_eq!((peer.asn, peer.router_id), (asn, router_id));
        match kind {
            0 => {
                let (kind, update) = body.bgp();
                assert_eq!(kind, 2);
                let context =
                    DecodeContext { add_path: peer.add_path, first_as: false, ..DecodeContext::INTERNAL };
                let update = Update::decode(update, &context).expect("an UPDATE that is sound");
                assert!(update.faults.is_empty(), "{:?}", update.faults);
                let table = if post { &mut peer.post } else { &mut peer.pre };
                for nlri in update.withdrawn {
                    table.remove(&nlri);
                }
                for (attributes, prefixes) in update.announced {
                    table.extend(prefixes.into_iter().map(|nlri| (nlri, attributes.clone())));
                }
                update.end_of_rib.into_iter().for_each(|family| peer.ends[usize::from(post)].insert(family));
                self.monitored += 1;
                self.times.push(seconds);
            }
            1 => {
                peer.statistics.clear();
                for _ in 0..body.u32() {
                    let (kind, len) = (body.u16(), usize::from(body.u16()));
                    let key =
                        if len == 11 { kind * 100 + body.u16() * 10 + u16::from(body.u8()) } else { kind };
                    peer.statistics.insert(key, body.number(len.min(8)));
                }
            }
            2 => {
                let reason = body.u8();
                let notification = matches!(reason, 1 | 3).then(|| {
                    let (kind, notification) = body.bgp();
                    assert_eq!(kind, 3);
                    Notification::decode(&notification)
                });
                let event = if reason == 2 { body.u16() } else { 0 };
                assert!((1..=5).contains(&reason));
                self.peers.remove(&key);
                self.downs.push((key, (reason, notification, event)));
            }
            other => panic!("message type {other}"),
        }
    }
}
