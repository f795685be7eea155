//! `struct sockaddr_in` (family, port, address, padding) and `struct sockaddr_in6` (family, port, flow, address, scope).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

const AF_INET: u16 = 2;
const AF_INET6: u16 = 10;

/// 16 octets for IPv4, 28 for IPv6.
pub(crate) fn to_bytes(address: SocketAddr) -> Vec<u8> {
    let port = address.port().to_be_bytes();
    let mut bytes = Vec::with_capacity(28);
    match address.ip() {
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

/// None: too short, or of another family.
pub(crate) fn read(bytes: &[u8]) -> Option<SocketAddr> {
    let family = u16::from_ne_bytes(*bytes.first_chunk::<2>()?);
    let port = u16::from_be_bytes(*bytes.get(2..)?.first_chunk::<2>()?);
    let ip: IpAddr = match family {
        AF_INET => Ipv4Addr::from(*bytes.get(4..)?.first_chunk::<4>()?).into(),
        AF_INET6 => Ipv6Addr::from(*bytes.get(8..)?.first_chunk::<16>()?).into(),
        _ => return None,
    };
    Some(SocketAddr::new(ip, port))
}
