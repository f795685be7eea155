//! Messages of the generic netlink family `wireguard`.
//!
//! ```text
//!  struct genlmsghdr: command u8 · version u8 · reserved u16, then attributes
//!
//!  device: IFINDEX u32 · PRIVATE_KEY · PUBLIC_KEY · FLAGS · LISTEN_PORT u16 · PEERS ─┐
//!  peer:   PUBLIC_KEY · FLAGS u32 · ENDPOINT sockaddr · KEEPALIVE u16 · ALLOWEDIPS ─┐ ◀┘
//!  prefix: FAMILY u16 · IPADDR · CIDR_MASK u8                                    ◀──┘
//! ```

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use ipnet::IpNet;
use podway_model::ids::WireguardKey;

use super::{PeerChange, PrivateKey, WireguardChange, WireguardDevice, WireguardPeer};
use crate::attributes::{Attributes, Writer};
use crate::netlink::Message;

/// `GENL_ID_CTRL`, the family that knows the numbers of the others.
const CONTROL: u16 = 0x10;
const CTRL_CMD_GETFAMILY: u8 = 3;
const CTRL_ATTR_FAMILY_ID: u16 = 1;
const CTRL_ATTR_FAMILY_NAME: u16 = 2;
const VERSION: u8 = 1;
const HEAD: usize = 4;

const WG_CMD_GET_DEVICE: u8 = 0;
const WG_CMD_SET_DEVICE: u8 = 1;
const WGDEVICE_A_IFINDEX: u16 = 1;
const WGDEVICE_A_PRIVATE_KEY: u16 = 3;
const WGDEVICE_A_PUBLIC_KEY: u16 = 4;
const WGDEVICE_A_LISTEN_PORT: u16 = 6;
const WGDEVICE_A_PEERS: u16 = 8;
const WGPEER_A_PUBLIC_KEY: u16 = 1;
const WGPEER_A_FLAGS: u16 = 3;
const WGPEER_A_ENDPOINT: u16 = 4;
const WGPEER_A_KEEPALIVE: u16 = 5;
const WGPEER_A_ALLOWEDIPS: u16 = 9;
const WGALLOWEDIP_A_FAMILY: u16 = 1;
const WGALLOWEDIP_A_IPADDR: u16 = 2;
const WGALLOWEDIP_A_CIDR_MASK: u16 = 3;
const WGPEER_F_REMOVE_ME: u32 = 1;
const WGPEER_F_REPLACE_ALLOWEDIPS: u32 = 2;
const AF_INET: u16 = 2;
const AF_INET6: u16 = 10;

/// Bytes of peers in one message: with one more peer it stays below the 64 KiB of an attribute.
const PEERS_BYTES: usize = 24 << 10;
/// Prefixes of a peer in one entry; more follow in another one of the same key. 32 bytes each at most.
const PREFIXES: usize = 512;

fn head(command: u8) -> Vec<u8> {
    vec![command, VERSION, 0, 0]
}

/// Asks for the number of the family.
pub(super) fn family_query() -> Message {
    let mut w = Writer::new(head(CTRL_CMD_GETFAMILY));
    w.text(CTRL_ATTR_FAMILY_NAME, "wireguard");
    Message { kind: CONTROL, flags: 0, payload: w.into_bytes() }
}

pub(super) fn read_family(payload: &[u8]) -> Option<u16> {
    let id = Attributes(payload.get(HEAD..)?).get(CTRL_ATTR_FAMILY_ID)?;
    Some(u16::from_ne_bytes(*id.first_chunk::<2>()?))
}

pub(super) fn device_query(interface: u32) -> Vec<u8> {
    let mut w = Writer::new(head(WG_CMD_GET_DEVICE));
    w.bytes(WGDEVICE_A_IFINDEX, &interface.to_ne_bytes());
    w.into_bytes()
}

/// The messages of a change.
pub(super) fn changes(interface: u32, change: &WireguardChange) -> Vec<Vec<u8>> {
    let mut peers: Vec<Vec<u8>> = Vec::new();
    for (key, what) in &change.peers {
        match what {
            PeerChange::Remove => peers.push(peer(key, WGPEER_F_REMOVE_ME, None, &[])),
            PeerChange::Set { peer: wanted, exactly } => {
                let mut flags = if *exactly { WGPEER_F_REPLACE_ALLOWEDIPS } else { 0 };
                let prefixes: Vec<IpNet> = wanted.allowed.iter().copied().collect();
                let mut rest = prefixes.as_slice();
                loop {
                    let (now, later) = rest.split_at(rest.len().min(PREFIXES));
                    peers.push(peer(key, flags, Some(wanted), now));
                    rest = later;
                    flags = 0;
                    if rest.is_empty() {
                        break;
                    }
                }
            }
        }
    }
    let mut messages = Vec::new();
    let mut rest = peers.as_slice();
    let mut first = true;
    while first || !rest.is_empty() {
        let mut w = Writer::new(head(WG_CMD_SET_DEVICE));
        w.bytes(WGDEVICE_A_IFINDEX, &interface.to_ne_bytes());
        if first {
            if let Some(key) = &change.private_key {
                w.bytes(WGDEVICE_A_PRIVATE_KEY, key.bytes());
            }
            if let Some(port) = change.port {
                w.bytes(WGDEVICE_A_LISTEN_PORT, &port.to_ne_bytes());
            }
        }
        if !rest.is_empty() {
            w.nest_flagged(WGDEVICE_A_PEERS, |w| {
                let start = w.len();
                while let Some((one, later)) = rest.split_first()
                    && w.len() - start < PEERS_BYTES
                {
                    w.nest_flagged(0, |w| w.append(one));
                    rest = later;
                }
            });
        }
        first = false;
        messages.push(w.into_bytes());
    }
    messages
}

/// The attributes of a peer.
fn peer(key: &WireguardKey, flags: u32, wanted: Option<&WireguardPeer>, prefixes: &[IpNet]) -> Vec<u8> {
    let mut w = Writer::new(Vec::new());
    w.bytes(WGPEER_A_PUBLIC_KEY, &key.0);
    if flags != 0 {
        w.bytes(WGPEER_A_FLAGS, &flags.to_ne_bytes());
    }
    let Some(wanted) = wanted else { return w.into_bytes() };
    if let Some(endpoint) = wanted.endpoint {
        w.bytes(WGPEER_A_ENDPOINT, &socket_address(endpoint));
    }
    w.bytes(WGPEER_A_KEEPALIVE, &wanted.keepalive_seconds.to_ne_bytes());
    w.nest_flagged(WGPEER_A_ALLOWEDIPS, |w| {
        for prefix in prefixes {
            w.nest_flagged(0, |w| {
                let (family, address) = match prefix.addr() {
                    IpAddr::V4(ip) => (AF_INET, ip.octets().to_vec()),
                    IpAddr::V6(ip) => (AF_INET6, ip.octets().to_vec()),
                };
                w.bytes(WGALLOWEDIP_A_FAMILY, &family.to_ne_bytes());
                w.bytes(WGALLOWEDIP_A_IPADDR, &address);
                w.bytes(WGALLOWEDIP_A_CIDR_MASK, &[prefix.prefix_len()]);
            });
        }
    });
    w.into_bytes()
}

/// `struct sockaddr_in`, `struct sockaddr_in6`.
fn socket_address(endpoint: SocketAddr) -> Vec<u8> {
    let port = endpoint.port().to_be_bytes();
    let mut bytes = Vec::with_capacity(28);
    match endpoint.ip() {
        IpAddr::V4(ip) => {
            bytes.extend(AF_INET.to_ne_bytes());
            bytes.extend(port);
            bytes.extend(ip.octets());
            bytes.resize(16, 0);
        }
        IpAddr::V6(ip) => {
            bytes.extend(AF_INET6.to_ne_bytes());
            bytes.extend(port);
            bytes.extend([0; 4]);
            bytes.extend(ip.octets());
            bytes.resize(28, 0);
        }
    }
    bytes
}

fn read_socket_address(bytes: &[u8]) -> Option<SocketAddr> {
    let family = u16::from_ne_bytes(*bytes.first_chunk::<2>()?);
    let port = u16::from_be_bytes(*bytes.get(2..)?.first_chunk::<2>()?);
    let ip: IpAddr = match family {
        AF_INET => Ipv4Addr::from(*bytes.get(4..)?.first_chunk::<4>()?).into(),
        AF_INET6 => Ipv6Addr::from(*bytes.get(8..)?.first_chunk::<16>()?).into(),
        _ => return None,
    };
    Some(SocketAddr::new(ip, port))
}

/// A device, or a piece of one.
pub(super) fn read_device(payload: &[u8]) -> Option<WireguardDevice> {
    let mut device = WireguardDevice::default();
    for (kind, value) in Attributes(payload.get(HEAD..)?).all() {
        match kind {
            WGDEVICE_A_PRIVATE_KEY => {
                device.private_key = Some(PrivateKey::from_random(*value.first_chunk()?));
            }
            WGDEVICE_A_PUBLIC_KEY => device.public_key = Some(WireguardKey(*value.first_chunk()?)),
            WGDEVICE_A_LISTEN_PORT => device.port = u16::from_ne_bytes(*value.first_chunk()?),
            WGDEVICE_A_PEERS => {
                for (_, peer) in Attributes(value).all() {
                    let (key, peer) = read_peer(peer)?;
                    device.take_peer(key, peer);
                }
            }
            _ => {}
        }
    }
    Some(device)
}

fn read_peer(attributes: &[u8]) -> Option<(WireguardKey, WireguardPeer)> {
    let mut key = None;
    let mut peer = WireguardPeer::default();
    for (kind, value) in Attributes(attributes).all() {
        match kind {
            WGPEER_A_PUBLIC_KEY => key = Some(WireguardKey(*value.first_chunk()?)),
            WGPEER_A_ENDPOINT => peer.endpoint = read_socket_address(value),
            WGPEER_A_KEEPALIVE => peer.keepalive_seconds = u16::from_ne_bytes(*value.first_chunk()?),
            WGPEER_A_ALLOWEDIPS => {
                for (_, prefix) in Attributes(value).all() {
                    peer.allowed.extend(read_prefix(prefix));
                }
            }
            _ => {}
        }
    }
    Some((key?, peer))
}

fn read_prefix(attributes: &[u8]) -> Option<IpNet> {
    let attributes = Attributes(attributes);
    let family = u16::from_ne_bytes(*attributes.get(WGALLOWEDIP_A_FAMILY)?.first_chunk()?);
    let address = attributes.get(WGALLOWEDIP_A_IPADDR)?;
    let ip: IpAddr = match family {
        AF_INET => Ipv4Addr::from(*address.first_chunk::<4>()?).into(),
        AF_INET6 => Ipv6Addr::from(*address.first_chunk::<16>()?).into(),
        _ => return None,
    };
    IpNet::new(ip, *attributes.get(WGALLOWEDIP_A_CIDR_MASK)?.first()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(byte: u8) -> WireguardKey {
        WireguardKey([byte; 32])
    }

    fn with_prefixes(count: u16) -> WireguardPeer {
        let net = |i: u16| IpNet::new(Ipv4Addr::from(0x0a00_0000 | u32::from(i) << 8).into(), 26).unwrap();
        WireguardPeer {
            endpoint: Some("192.0.2.1:51820".parse().unwrap()),
            keepalive_seconds: 25,
            allowed: (0..count).map(net).chain(["fd00:244:1::/122".parse().unwrap()]).collect(),
        }
    }

    /// What the kernel would make of the messages.
    fn read_back(messages: &[Vec<u8>]) -> WireguardDevice {
        let mut device = WireguardDevice::default();
        for message in messages {
            device.take_piece(read_device(message).unwrap());
        }
        device
    }

    #[test]
    fn what_is_written_is_read_however_much_it_is() {
        let set = |peer| PeerChange::Set { peer, exactly: true };
        let v6 = WireguardPeer { endpoint: Some("[fd00::1]:51821".parse().unwrap()), ..Default::default() };
        for many in [1, 300, 1600] {
            let mut peers: Vec<(WireguardKey, PeerChange)> =
                (0..200).map(|i| (key(i), set(with_prefixes(3)))).collect();
            peers.push((key(200), set(with_prefixes(many))));
            peers.push((key(201), set(v6.clone())));
            let private_key = Some(PrivateKey::from_random([7; 32]));
            let change = WireguardChange { private_key: private_key.clone(), port: Some(51820), peers };
            let messages = changes(9, &change);
            assert!(messages.len() > 1 && messages.iter().all(|message| message.len() < 64 << 10));
            let device = read_back(&messages);
            assert_eq!((&device.private_key, device.port, device.peers.len()), (&private_key, 51820, 202));
            assert_eq!(device.peers[&key(7)], with_prefixes(3));
            assert!(device.peers[&key(200)].allowed == with_prefixes(many).allowed);
            assert_eq!(device.peers[&key(201)], v6);
        }
        let nothing = changes(9, &WireguardChange::default());
        assert_eq!(read_back(&nothing), WireguardDevice::default());
    }

    #[test]
    fn no_bytes_make_the_readers_panic() {
        let peers = vec![(key(1), PeerChange::Set { peer: with_prefixes(2), exactly: false })];
        let message = &changes(9, &WireguardChange { peers, ..Default::default() })[0];
        for cut in 0..message.len() {
            let _ = read_device(&message[..cut]);
            let _ = read_family(&message[..cut]);
            let mut torn = message.clone();
            torn[cut] ^= 0xff;
            let _ = read_device(&torn);
        }
    }
}
