//! BMP messages as octets (RFC 7854 section 4, RFC 9069).
//!
//! ```text
//! common header: | version 3 (1) | length (4) | type (1) |
//! per-peer header: | type (1) | flags (1) | distinguisher (8) | address (16) | AS (4) | BGP id (4) | seconds (4) | µs (4) |
//! information: | type (2) | length (2) | value ... |
//! ```

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};

use crate::message::Notification;
use crate::types::{Family, SAFI_UNICAST};

const VERSION: u8 = 3;
/// Octets of the common header.
pub const HEADER_LEN: usize = 6;

/// Message types (IANA "BMP Message Types").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// Route Monitoring.
    RouteMonitoring = 0,
    /// Statistics Report.
    StatisticsReport = 1,
    /// Peer Down Notification.
    PeerDown = 2,
    /// Peer Up Notification.
    PeerUp = 3,
    /// Initiation.
    Initiation = 4,
    /// Termination.
    Termination = 5,
}

/// Peer types (IANA "BMP Peer Types").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum PeerType {
    /// A neighbour.
    Global = 0,
    /// Our loc-RIB (RFC 9069).
    LocRib = 3,
}

/// V: the address is IPv6 (RFC 7854 4.2).
const FLAG_V6: u8 = 0x80;
/// L: after policy.
const FLAG_POST: u8 = 0x40;

/// A per-peer header, but for its time and which of the peer's tables is meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerHeader {
    /// Whether it is a neighbour.
    pub kind: PeerType,
    /// Its address; none for the loc-RIB.
    pub address: Option<IpAddr>,
    /// Its AS number.
    pub asn: u32,
    /// Its BGP identifier.
    pub router_id: Ipv4Addr,
}

impl PeerHeader {
    /// `at`: since 1970; zero where no time is known.
    fn write(&self, out: &mut BytesMut, post: bool, at: Duration) {
        let v6 = matches!(self.address, Some(IpAddr::V6(_)));
        out.put_u8(self.kind as u8);
        out.put_u8(if v6 { FLAG_V6 } else { 0 } | if post { FLAG_POST } else { 0 });
        out.put_u64(0);
        write_address(out, self.address);
        out.put_u32(self.asn);
        out.put_slice(&self.router_id.octets());
        out.put_u32(u32::try_from(at.as_secs()).unwrap_or(u32::MAX));
        out.put_u32(at.subsec_micros());
    }
}

/// Sixteen octets; an IPv4 address stands in the last four.
fn write_address(out: &mut BytesMut, address: Option<IpAddr>) {
    match address {
        Some(IpAddr::V6(address)) => out.put_slice(&address.octets()),
        Some(IpAddr::V4(address)) => {
            out.put_bytes(0, 12);
            out.put_slice(&address.octets());
        }
        None => out.put_bytes(0, 16),
    }
}

/// Why a session is no longer told of (RFC 7854 4.9).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ended {
    /// We ended it with this NOTIFICATION (1).
    Said(Notification),
    /// We ended it without one, at this event of RFC 4271 8.1 (2).
    Local(u16),
    /// The other side ended it with this NOTIFICATION (3).
    Heard(Notification),
    /// The other side or the connection ended it without one (4).
    Remote,
    /// It goes on, but the station has missed too much and is told it anew (5).
    Anew,
}

/// A counter or gauge of a Statistics Report (RFC 7854 4.8, RFC 9069 section 4).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Statistic {
    /// A counter: type and value.
    Counter(u16, u32),
    /// A gauge.
    Gauge(u16, u64),
    /// A gauge of one family.
    Family(u16, Family, u64),
}

fn message(out: &mut BytesMut, kind: Kind, body: impl FnOnce(&mut BytesMut)) {
    let at = out.len();
    out.put_u8(VERSION);
    out.put_u32(0);
    out.put_u8(kind as u8);
    body(out);
    // What stands in it is bounded by a BGP message.
    let len = u32::try_from(out.len() - at).unwrap_or(u32::MAX);
    out[at + 1..at + 5].copy_from_slice(&len.to_be_bytes());
}

fn information(out: &mut BytesMut, kind: u16, value: &[u8]) {
    let value = &value[..value.len().min(usize::from(u16::MAX))];
    out.put_u16(kind);
    out.put_u16(u16::try_from(value.len()).unwrap_or(u16::MAX));
    out.put_slice(value);
}

/// Initiation: who speaks (RFC 7854 4.3: sysDescr and sysName are required).
pub fn initiation(out: &mut BytesMut, description: &str, name: &str) {
    message(out, Kind::Initiation, |out| {
        information(out, 1, description.as_bytes());
        information(out, 2, name.as_bytes());
    });
}

/// Termination, "session administratively closed" (RFC 7854 4.5).
pub fn termination(out: &mut BytesMut) {
    message(out, Kind::Termination, |out| information(out, 1, &0u16.to_be_bytes()));
}

/// Peer Up (RFC 7854 4.10): our end and theirs, and both OPENs, whole.
pub fn peer_up(
    out: &mut BytesMut,
    peer: &PeerHeader,
    at: Duration,
    local: Option<SocketAddr>,
    remote_port: u16,
    (sent, received): (&Bytes, &Bytes),
    table: Option<&str>,
) {
    message(out, Kind::PeerUp, |out| {
        peer.write(out, false, at);
        write_address(out, local.map(|local| local.ip()));
        out.put_u16(local.map_or(0, |local| local.port()));
        out.put_u16(remote_port);
        out.put_slice(sent);
        out.put_slice(received);
        if let Some(table) = table {
            information(out, 3, table.as_bytes()); // RFC 9069 4.4
        }
    });
}

/// Peer Down.
pub fn peer_down(out: &mut BytesMut, peer: &PeerHeader, at: Duration, ended: &Ended) {
    message(out, Kind::PeerDown, |out| {
        peer.write(out, false, at);
        match ended {
            Ended::Said(notification) => {
                out.put_u8(1);
                out.put_slice(&notification.encode());
            }
            Ended::Local(event) => {
                out.put_u8(2);
                out.put_u16(*event);
            }
            Ended::Heard(notification) => {
                out.put_u8(3);
                out.put_slice(&notification.encode());
            }
            Ended::Remote => out.put_u8(4),
            Ended::Anew => out.put_u8(5),
        }
    });
}

/// Route Monitoring: one UPDATE, whole.
pub fn route_monitoring(out: &mut BytesMut, peer: &PeerHeader, post: bool, at: Duration, update: &[u8]) {
    message(out, Kind::RouteMonitoring, |out| {
        peer.write(out, post, at);
        out.put_slice(update);
    });
}

/// Statistics Report.
pub fn statistics(out: &mut BytesMut, peer: &PeerHeader, at: Duration, all: &[Statistic]) {
    message(out, Kind::StatisticsReport, |out| {
        peer.write(out, false, at);
        out.put_u32(u32::try_from(all.len()).unwrap_or(u32::MAX));
        for one in all {
            match one {
                Statistic::Counter(kind, value) => information(out, *kind, &value.to_be_bytes()),
                Statistic::Gauge(kind, value) => information(out, *kind, &value.to_be_bytes()),
                Statistic::Family(kind, family, value) => {
                    let mut all = [0; 11];
                    all[..2].copy_from_slice(&family.afi().to_be_bytes());
                    all[2] = SAFI_UNICAST;
                    all[3..].copy_from_slice(&value.to_be_bytes());
                    information(out, *kind, &all);
                }
            }
        }
    });
}
