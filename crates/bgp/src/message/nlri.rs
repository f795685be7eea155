//! Prefixes on the wire (RFC 4271 4.3, RFC 4760 section 5, RFC 7911 section 3).
//!
//! ```text
//! | path identifier (4), where negotiated | length in bits (1) | prefix: as many octets as the bits need |
//! ```

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::Take;
use crate::types::Family;

/// A prefix and which of the sender's paths to it is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Nlri {
    /// The destination.
    pub prefix: IpNet,
    /// Path identifier (RFC 7911); 0 where add-path was not negotiated.
    pub id: u32,
}

impl From<IpNet> for Nlri {
    fn from(prefix: IpNet) -> Self {
        Self { prefix, id: 0 }
    }
}

impl fmt::Display for Nlri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.prefix)?;
        if self.id == 0 { Ok(()) } else { write!(f, " path {}", self.id) }
    }
}

/// Reads prefixes to the end. `None`: a length that the family does not have, or octets missing.
pub(crate) fn read(mut bytes: Bytes, family: Family, add_path: bool) -> Option<Vec<Nlri>> {
    let mut prefixes = Vec::new();
    while !bytes.is_empty() {
        let id = if add_path { bytes.take_u32()? } else { 0 };
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
        prefixes.push(Nlri { prefix, id });
    }
    Some(prefixes)
}

/// Octets that a prefix takes.
pub(crate) fn wire_len(nlri: &Nlri, add_path: bool) -> usize {
    let id = if add_path { 4 } else { 0 };
    id + 1 + usize::from(nlri.prefix.prefix_len()).div_ceil(8)
}

/// Writes one prefix.
pub(crate) fn write(out: &mut BytesMut, nlri: &Nlri, add_path: bool) {
    if add_path {
        out.put_u32(nlri.id);
    }
    let bits = nlri.prefix.prefix_len();
    out.put_u8(bits);
    let len = usize::from(bits).div_ceil(8);
    match nlri.prefix {
        IpNet::V4(net) => out.put_slice(&net.network().octets()[..len]),
        IpNet::V6(net) => out.put_slice(&net.network().octets()[..len]),
    }
}
