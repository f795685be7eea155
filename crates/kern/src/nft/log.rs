//! Packets that a `log group N` statement passes on (nfnetlink_log), as an async stream.
//!
//! ```text
//!  struct nfgenmsg: family u8 · version u8 · group u16 (big endian)
//!  configuration: NFULA_CFG_CMD { cmd u8 } · NFULA_CFG_MODE { copied bytes u32 (big endian), mode u8, pad }
//!  packet: NFULA_PREFIX text · NFULA_PAYLOAD bytes from the network header on
//! ```
//!
//! The kernel drops packets that nobody reads in time; so do we, in silence: a log is no account.

use std::collections::VecDeque;
use std::io;
use std::net::IpAddr;

use netlink_packet_core::{NLA_TYPE_MASK, NlaBuffer, NlasIterator};
use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{AsyncSocket as _, AsyncSocketExt as _, SocketAddr, TokioSocket};

const NFNL_SUBSYS_ULOG: u16 = 4;
const NFULNL_MSG_PACKET: u16 = NFNL_SUBSYS_ULOG << 8;
const NFULNL_MSG_CONFIG: u16 = NFNL_SUBSYS_ULOG << 8 | 1;
const NFULA_CFG_CMD: u16 = 1;
const NFULA_CFG_MODE: u16 = 2;
const NFULNL_CFG_CMD_BIND: u8 = 1;
const NFULNL_COPY_PACKET: u8 = 2;
const NFULA_PAYLOAD: u16 = 9;
const NFULA_PREFIX: u16 = 10;
const NLM_F_REQUEST: u16 = 1;
/// `nlmsghdr`, and with `nfgenmsg` behind it.
const HEADER: usize = 16;
const NFMSG: usize = HEADER + 4;
/// Bytes of each packet: IPv6 with some extension headers, and ports.
const COPIED: u32 = 128;
/// Packets that may wait to be read; more are dropped.
const WAITING: usize = 256;

/// A packet that a rule logged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Logged {
    /// The statement's prefix.
    pub prefix: String,
    /// Source address.
    pub source: IpAddr,
    /// Destination address.
    pub destination: IpAddr,
    /// Layer 4 protocol.
    pub protocol: u8,
    /// Destination port; none where the protocol has none, or a later fragment does not tell it.
    pub port: Option<u16>,
}

/// Listens to one group in the network namespace in which it was opened.
pub struct NftLog {
    socket: TokioSocket,
    waiting: VecDeque<Logged>,
}

impl NftLog {
    /// Opens it in the calling thread's network namespace, inside a tokio runtime. One listener per group and
    /// namespace: a second one gets nothing.
    pub fn open(group: u16) -> io::Result<Self> {
        let mut socket = TokioSocket::new(NETLINK_NETFILTER)?;
        socket.socket_mut().bind(&SocketAddr::new(0, 0))?;
        let mode = [&COPIED.to_be_bytes()[..], &[NFULNL_COPY_PACKET, 0]].concat();
        for (kind, payload) in [(NFULA_CFG_CMD, &[NFULNL_CFG_CMD_BIND][..]), (NFULA_CFG_MODE, &mode)] {
            socket.socket_ref().send(&configuration(group, kind, payload), 0)?;
        }
        Ok(Self { socket, waiting: VecDeque::new() })
    }

    /// The next packet. Cancel safe.
    pub async fn next(&mut self) -> io::Result<Logged> {
        loop {
            if let Some(logged) = self.waiting.pop_front() {
                return Ok(logged);
            }
            match self.socket.recv_from_full().await {
                Ok((datagram, _)) => self.waiting.extend(packets(&datagram).take(WAITING)),
                Err(e) if e.raw_os_error() == Some(libc::ENOBUFS) => {}
                Err(e) => return Err(e),
            }
        }
    }
}

fn configuration(group: u16, kind: u16, payload: &[u8]) -> Vec<u8> {
    let attribute = 4 + payload.len();
    let length = NFMSG + attribute.next_multiple_of(4);
    let mut message = Vec::with_capacity(length);
    message.extend_from_slice(&u32::try_from(length).unwrap_or(u32::MAX).to_ne_bytes());
    message.extend_from_slice(&NFULNL_MSG_CONFIG.to_ne_bytes());
    message.extend_from_slice(&NLM_F_REQUEST.to_ne_bytes());
    message.extend_from_slice(&[0; 8]);
    message.extend_from_slice(&[0, 0]);
    message.extend_from_slice(&group.to_be_bytes());
    message.extend_from_slice(&u16::try_from(attribute).unwrap_or(u16::MAX).to_ne_bytes());
    message.extend_from_slice(&kind.to_ne_bytes());
    message.extend_from_slice(payload);
    message.resize(length, 0);
    message
}

/// The packets of a datagram that can be read; ends at the first message that does not fit.
fn packets(mut datagram: &[u8]) -> impl Iterator<Item = Logged> + '_ {
    std::iter::from_fn(move || {
        let head = datagram.first_chunk::<HEADER>()?;
        let length = usize::try_from(u32::from_ne_bytes([head[0], head[1], head[2], head[3]])).ok()?;
        let message = datagram.get(..length.max(HEADER))?;
        datagram = datagram.get(length.max(HEADER).next_multiple_of(4)..).unwrap_or_default();
        Some(packet(message))
    })
    .flatten()
}

fn packet(message: &[u8]) -> Option<Logged> {
    if u16::from_ne_bytes([*message.get(4)?, *message.get(5)?]) != NFULNL_MSG_PACKET {
        return None;
    }
    let (mut prefix, mut payload) = (String::new(), Vec::new());
    for attribute in NlasIterator::new(message.get(NFMSG..)?) {
        let attribute: NlaBuffer<&[u8]> = attribute.ok()?;
        match attribute.kind() & NLA_TYPE_MASK {
            NFULA_PREFIX => {
                let text = attribute.value();
                let end = text.iter().position(|byte| *byte == 0).unwrap_or(text.len());
                prefix = String::from_utf8_lossy(&text[..end]).into_owned();
            }
            NFULA_PAYLOAD => payload = attribute.value().to_vec(),
            _ => {}
        }
    }
    let (source, destination, protocol, transport) = addresses(&payload)?;
    let has_ports = matches!(protocol, 6 | 17 | 132);
    let port =
        transport.get(2..4).filter(|_| has_ports).map(|bytes| u16::from_be_bytes([bytes[0], bytes[1]]));
    Some(Logged { prefix, source, destination, protocol, port })
}

/// Source, destination, protocol, and the beginning of the layer 4 header: empty in later fragments.
fn addresses(packet: &[u8]) -> Option<(IpAddr, IpAddr, u8, &[u8])> {
    match packet.first()? >> 4 {
        4 => {
            let header = packet.first_chunk::<20>()?;
            let length = usize::from(header[0] & 0xf) * 4;
            let fragment = u16::from_be_bytes([header[6], header[7]]) & 0x1fff;
            let address =
                |at: usize| -> Option<IpAddr> { Some(packet.get(at..)?.first_chunk::<4>().copied()?.into()) };
            let rest = if fragment == 0 { packet.get(length..).unwrap_or_default() } else { &[] };
            Some((address(12)?, address(16)?, header[9], rest))
        }
        6 => {
            let header = packet.first_chunk::<40>()?;
            let address = |at: usize| -> Option<IpAddr> {
                Some(packet.get(at..)?.first_chunk::<16>().copied()?.into())
            };
            let (protocol, rest) = behind_extensions(header[6], &packet[40..]);
            Some((address(8)?, address(24)?, protocol, rest))
        }
        _ => None,
    }
}

/// RFC 8200 4: hop-by-hop options, routing header, destination options; fragments.
fn behind_extensions(mut protocol: u8, mut rest: &[u8]) -> (u8, &[u8]) {
    while let (0 | 43 | 44 | 60, [next, length, high, low, ..]) = (protocol, rest) {
        if protocol == 44 {
            let offset = u16::from_be_bytes([*high, *low]) >> 3;
            return (*next, if offset == 0 { rest.get(8..).unwrap_or_default() } else { &[] });
        }
        (protocol, rest) = (*next, rest.get((usize::from(*length) + 1) * 8..).unwrap_or_default());
    }
    (protocol, rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attribute(kind: u16, payload: &[u8]) -> Vec<u8> {
        let mut bytes = u16::try_from(4 + payload.len()).unwrap().to_ne_bytes().to_vec();
        bytes.extend_from_slice(&kind.to_ne_bytes());
        bytes.extend_from_slice(payload);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    fn message(payload: &[u8]) -> Vec<u8> {
        let body = [attribute(NFULA_PREFIX, b"why\0"), attribute(NFULA_PAYLOAD, payload)].concat();
        let mut bytes = u32::try_from(NFMSG + body.len()).unwrap().to_ne_bytes().to_vec();
        bytes.extend_from_slice(&NFULNL_MSG_PACKET.to_ne_bytes());
        bytes.resize(NFMSG, 0);
        bytes.extend(body);
        bytes
    }

    fn v4(fragment: u16, protocol: u8) -> Vec<u8> {
        let mut packet = vec![0x46, 0, 0, 0, 0, 0];
        packet.extend_from_slice(&fragment.to_be_bytes());
        packet.extend_from_slice(&[64, protocol, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2, 1, 1, 1, 1]);
        packet.extend_from_slice(&[0x10, 0, 0, 53]);
        packet
    }

    fn v6(next: u8, rest: &[u8]) -> Vec<u8> {
        let mut packet = vec![0x60, 0, 0, 0, 0, 0, next, 64];
        packet.extend_from_slice(&[0xfd; 16]);
        packet.extend_from_slice(&[0xfe; 16]);
        packet.extend_from_slice(rest);
        packet
    }

    #[test]
    fn packets_are_read_behind_options_extensions_and_fragments() {
        let ports = [0x10, 0, 0, 53];
        let hops = [&[17, 0, 0, 0, 0, 0, 0, 0][..], &ports].concat();
        let later = [17, 0, 0, 8, 0, 0, 0, 0, 9, 9, 9, 9];
        let cases = [
            (v4(0, 17), 17, Some(53)),
            (v4(100, 17), 17, None),
            (v4(0, 1), 1, None),
            (v6(17, &ports), 17, Some(53)),
            (v6(0, &hops), 17, Some(53)),
            (v6(44, &later), 17, None),
            (v6(58, &ports), 58, None),
        ];
        let datagram: Vec<u8> = cases.iter().flat_map(|(packet, ..)| message(packet)).collect();
        let found: Vec<(u8, Option<u16>)> =
            packets(&datagram).map(|logged| (logged.protocol, logged.port)).collect();
        assert_eq!(found, cases.map(|(_, protocol, port)| (protocol, port)));
        let first = packets(&datagram).next().unwrap();
        assert_eq!((first.prefix.as_str(), first.source.to_string().as_str()), ("why", "10.0.0.1"));
    }

    #[test]
    fn no_bytes_make_it_panic() {
        let datagram = [message(&v4(0, 6)), message(&v6(0, &[43, 200, 0, 0]))].concat();
        for cut in 0..datagram.len() {
            packets(&datagram[..cut]).count();
            let mut broken = datagram.clone();
            broken[cut] ^= 0xff;
            packets(&broken).count();
        }
    }
}
