//! ROUTE-REFRESH (RFC 2918).
//!
//! ```text
//! | AFI (2) | reserved (1) | SAFI (1) |
//! ```

use bytes::{BufMut, Bytes, BytesMut};

use super::{MessageType, Take, finish, start};
use crate::types::{Family, SAFI_UNICAST};

/// The family that a ROUTE-REFRESH asks for. `None`: one that is not ours, or a message subtype of RFC 7313 that
/// was not negotiated; both are ignored.
pub fn decode(mut body: Bytes) -> Option<Family> {
    let (afi, subtype, safi) = (body.take_u16()?, body.take_u8()?, body.take_u8()?);
    // RFC 2918: the octet is reserved; RFC 7313 made 1 and 2 markers that only negotiating peers send.
    (subtype == 0).then(|| Family::from_wire(afi, safi)).flatten()
}

/// A ROUTE-REFRESH for a family.
pub fn encode(family: Family) -> Bytes {
    let mut out = BytesMut::with_capacity(23);
    let at = start(&mut out, MessageType::RouteRefresh);
    out.put_u16(family.afi());
    out.put_u8(0);
    out.put_u8(SAFI_UNICAST);
    finish(&mut out, at);
    out.freeze()
}
