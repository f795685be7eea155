//! Prefixes on the wire (RFC 4271 4.3, RFC 4760 section 5).
//!
//! ```text
//! | length in bits (1) | prefix: as many octets as the bits need |
//! ```

use std::net::{Ipv4Addr, Ipv6Addr};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::Take;
use crate::types::Family;

/// Reads prefixes to the end. `None`: a length that the family does not have, or octets missing.
pub(crate) fn read(mut bytes: Bytes, family: Family) -> Option<Vec<IpNet>> {
    let mut prefixes = Vec::new();
    while !bytes.is_empty() {
        let bits = bytes.take_u8()?;
        let len = usize::from(bits).div_ceil(8);
        if bytes.len() < len {
            return None;
        }
        let prefix = match family {
            Family::Ipv4 => {
                let mut octets = [0; 4];
                octets.get_mut(..len)?.copy_from_slice(&bytes[..len]);
                IpNet::V4(Ipv4Net::new(Ipv4Addr::from(octets), bits).ok()?.trunc())
            }
            Family::Ipv6 => {
                let mut octets = [0; 16];
                octets.get_mut(..len)?.copy_from_slice(&bytes[..len]);
                IpNet::V6(Ipv6Net::new(Ipv6Addr::from(octets), bits).ok()?.trunc())
            }
        };
        bytes.advance(len);
        prefixes.push(prefix);
    }
    Some(prefixes)
}

/// Octets that a prefix takes.
pub(crate) fn wire_len(prefix: &IpNet) -> usize {
    1 + usize::from(prefix.prefix_len()).div_ceil(8)
}

/// Writes one prefix.
pub(crate) fn write(out: &mut BytesMut, prefix: &IpNet) {
    out.put_u8(prefix.prefix_len());
    let len = wire_len(prefix) - 1;
    match prefix {
        IpNet::V4(net) => out.put_slice(&net.network().octets()[..len]),
        IpNet::V6(net) => out.put_slice(&net.network().octets()[..len]),
    }
}
