//! OPEN (RFC 4271 4.2, checks of 6.2).
//!
//! ```text
//! | version (1) | my AS (2) | hold time (2) | BGP identifier (4) | parameters' length (1) | parameters ...
//! parameter: | type (1) | length (1) | value ...          type 2: capabilities (RFC 5492)
//! RFC 9072, where the length would be 255 and the first type is 255: | 255 | 255 | length (2) | parameters with two
//! octets of length each. We read it and never need to write it.
//! ```

use std::net::Ipv4Addr;

use bytes::{BufMut, Bytes, BytesMut};

use super::capability::Capabilities;
use super::notification::code;
use super::{MessageType, Notification, Take, finish, start};

/// BGP-4.
const VERSION: u8 = 4;
/// Stands in two octets for an AS number that needs four (RFC 6793 section 9).
pub const AS_TRANS: u16 = 23456;
const PARAMETER_CAPABILITIES: u8 = 2;
const EXTENDED_PARAMETERS: u8 = 255;

/// An OPEN.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Open {
    /// AS number: the four-octet one where that capability is there.
    pub asn: u32,
    /// Hold time in seconds.
    pub hold_time: u16,
    /// BGP identifier.
    pub router_id: Ipv4Addr,
    /// Capabilities.
    pub capabilities: Capabilities,
}

impl Open {
    /// Reads the body of an OPEN and checks what can be checked without knowing the neighbour.
    ///
    /// # Errors
    /// The NOTIFICATION of RFC 4271 6.2.
    pub fn decode(mut body: Bytes) -> Result<Self, Notification> {
        let malformed = || Notification::new(code::OPEN, 0);
        if body.take_u8().ok_or_else(malformed)? != VERSION {
            // The data is the largest version that we support.
            return Err(Notification::with_data(code::OPEN, 1, &[0, VERSION]));
        }
        let two_octet_as = body.take_u16().ok_or_else(malformed)?;
        let hold_time = body.take_u16().ok_or_else(malformed)?;
        let router_id = Ipv4Addr::from(body.take_u32().ok_or_else(malformed)?);
        let len = body.take_u8().ok_or_else(malformed)?;
        // RFC 9072 section 2: a first parameter of type 255 means the extended form, whatever the length before it.
        let extended = len != 0 && body.first() == Some(&EXTENDED_PARAMETERS);
        let len = if extended {
            let _type = body.take_u8();
            body.take_u16().ok_or_else(malformed)?
        } else {
            u16::from(len)
        };
        if usize::from(len) != body.len() {
            return Err(malformed());
        }
        let mut capabilities = Capabilities::default();
        while !body.is_empty() {
            let kind = body.take_u8().ok_or_else(malformed)?;
            let len = if extended { body.take_u16() } else { body.take_u8().map(u16::from) };
            let value = body.take(usize::from(len.ok_or_else(malformed)?)).ok_or_else(malformed)?;
            if kind != PARAMETER_CAPABILITIES {
                return Err(Notification::new(code::OPEN, 4));
            }
            capabilities.read(value).ok_or_else(malformed)?;
        }
        // RFC 7607 section 2: AS 0 is a Bad Peer AS. RFC 6793 section 4.1: the capability's number counts.
        let asn = capabilities.four_octet_as.unwrap_or(u32::from(two_octet_as));
        if asn == 0 || two_octet_as == 0 {
            return Err(Notification::new(code::OPEN, 2));
        }
        // RFC 6286 section 2.1: any non-zero identifier is good.
        if router_id.is_unspecified() {
            return Err(Notification::new(code::OPEN, 3));
        }
        if hold_time == 1 || hold_time == 2 {
            return Err(Notification::new(code::OPEN, 6));
        }
        Ok(Self { asn, hold_time, router_id, capabilities })
    }

    /// The whole message.
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(64);
        let at = start(&mut out, MessageType::Open);
        out.put_u8(VERSION);
        out.put_u16(u16::try_from(self.asn).unwrap_or(AS_TRANS));
        out.put_u16(self.hold_time);
        out.put_slice(&self.router_id.octets());
        let lengths = out.len();
        out.put_slice(&[0, PARAMETER_CAPABILITIES, 0]);
        self.capabilities.write(&mut out);
        let len = u8::try_from(out.len() - lengths - 3).expect("our capabilities take less than 100 octets");
        out[lengths] = len + 2;
        out[lengths + 2] = len;
        finish(&mut out, at);
        out.freeze()
    }
}
