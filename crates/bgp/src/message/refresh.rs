//! ROUTE-REFRESH (RFC 2918, RFC 7313).
//!
//! ```text
//! | AFI (2) | subtype (1) | SAFI (1) |
//! ```

use bytes::{BufMut, Bytes, BytesMut};

use super::{MessageType, Take, finish, start};
use crate::types::{Family, SAFI_UNICAST};

/// Message subtypes (IANA "BGP Route Refresh Subcodes").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Subtype {
    /// Tell me all of a family again.
    Request = 0,
    /// BoRR: what follows is all of a family.
    Begin = 1,
    /// EoRR: that was all of it.
    End = 2,
}

/// What a ROUTE-REFRESH is about. `None`: a family that is not ours, a subtype that does not exist (RFC 7313
/// section 5: ignored), or a wrong length.
pub fn decode(mut body: Bytes) -> Option<(Subtype, Family)> {
    let (afi, subtype, safi) = (body.take_u16()?, body.take_u8()?, body.take_u8()?);
    let subtype = match subtype {
        0 => Subtype::Request,
        1 => Subtype::Begin,
        2 => Subtype::End,
        _ => return None,
    };
    body.is_empty().then(|| Family::from_wire(afi, safi)).flatten().map(|family| (subtype, family))
}

/// A ROUTE-REFRESH for a family.
pub fn encode(subtype: Subtype, family: Family) -> Bytes {
    let mut out = BytesMut::with_capacity(23);
    let at = start(&mut out, MessageType::RouteRefresh);
    out.put_u16(family.afi());
    out.put_u8(subtype as u8);
    out.put_u8(SAFI_UNICAST);
    finish(&mut out, at);
    out.freeze()
}
