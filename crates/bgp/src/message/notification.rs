//! NOTIFICATION (RFC 4271 4.5): codes and subcodes with their registry, and the shutdown communication.
//!
//! ```text
//! +----------------+------------------+---------------------
//! | error code (1) | error subcode (1)| data (variable) ...
//! +----------------+------------------+---------------------
//! ```

use std::fmt;

use bytes::{BufMut, Bytes, BytesMut};

use super::{MAX_LEN, MessageType, finish, start};
use crate::types::{Family, SAFI_UNICAST};

/// A NOTIFICATION. Codes are kept as numbers: an unknown one is only shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notification {
    /// Error code.
    pub code: u8,
    /// Error subcode.
    pub subcode: u8,
    /// Data.
    pub data: Bytes,
}

/// Error codes (IANA "BGP Error (Notification) Codes").
pub mod code {
    /// Message Header Error.
    pub const HEADER: u8 = 1;
    /// OPEN Message Error.
    pub const OPEN: u8 = 2;
    /// UPDATE Message Error.
    pub const UPDATE: u8 = 3;
    /// Hold Timer Expired.
    pub const HOLD: u8 = 4;
    /// Finite State Machine Error.
    pub const FSM: u8 = 5;
    /// Cease.
    pub const CEASE: u8 = 6;
    /// ROUTE-REFRESH Message Error (RFC 7313).
    pub const REFRESH: u8 = 7;
    /// Send Hold Timer Expired (RFC 9687).
    pub const SEND_HOLD: u8 = 8;
}

/// Subcodes of Cease (RFC 4486 section 3, RFC 8538, RFC 9384).
pub mod cease {
    /// Maximum Number of Prefixes Reached; the data names the family and the limit.
    pub const MAX_PREFIXES: u8 = 1;
    /// Administrative Shutdown; may carry a shutdown communication (RFC 9003).
    pub const SHUTDOWN: u8 = 2;
    /// Peer De-configured.
    pub const DECONFIGURED: u8 = 3;
    /// Administrative Reset.
    pub const RESET: u8 = 4;
    /// Connection Rejected.
    pub const REJECTED: u8 = 5;
    /// Other Configuration Change.
    pub const CONFIG_CHANGE: u8 = 6;
    /// Connection Collision Resolution.
    pub const COLLISION: u8 = 7;
    /// Out of Resources.
    pub const RESOURCES: u8 = 8;
    /// Hard Reset (RFC 8538): the routes go, although both sides keep them over other NOTIFICATIONs. The data is the
    /// NOTIFICATION that says why.
    pub const HARD_RESET: u8 = 9;
    /// BFD Down (RFC 9384).
    pub const BFD_DOWN: u8 = 10;
}

/// Longest shutdown communication (RFC 9003 section 2; RFC 8203 allowed 128).
const MAX_COMMUNICATION: usize = 255;

impl Notification {
    /// One without data.
    pub fn new(code: u8, subcode: u8) -> Self {
        Self { code, subcode, data: Bytes::new() }
    }

    /// One with data.
    pub fn with_data(code: u8, subcode: u8, data: &[u8]) -> Self {
        Self { code, subcode, data: Bytes::copy_from_slice(data) }
    }

    /// Cease.
    pub fn cease(subcode: u8) -> Self {
        Self::new(code::CEASE, subcode)
    }

    /// Cease, Administrative Shutdown, with words for the operator at the other end (RFC 9003): cut at a
    /// character boundary where they are too long.
    pub fn shutdown(words: &str) -> Self {
        Self::with_words(cease::SHUTDOWN, words)
    }

    /// Cease, Administrative Reset, with words for the operator at the other end (RFC 9003).
    pub fn reset(words: &str) -> Self {
        Self::with_words(cease::RESET, words)
    }

    fn with_words(subcode: u8, words: &str) -> Self {
        if words.is_empty() {
            return Self::cease(subcode);
        }
        let mut end = words.len().min(MAX_COMMUNICATION);
        while !words.is_char_boundary(end) {
            end -= 1;
        }
        let mut data = BytesMut::with_capacity(end + 1);
        data.put_u8(u8::try_from(end).unwrap_or(u8::MAX));
        data.put_slice(&words.as_bytes()[..end]);
        Self { code: code::CEASE, subcode, data: data.freeze() }
    }

    /// Cease, Maximum Number of Prefixes Reached (RFC 4486 section 4: AFI, SAFI, the limit).
    pub fn max_prefixes(family: Family, limit: u32) -> Self {
        let mut data = BytesMut::with_capacity(7);
        data.put_u16(family.afi());
        data.put_u8(SAFI_UNICAST);
        data.put_u32(limit);
        Self { code: code::CEASE, subcode: cease::MAX_PREFIXES, data: data.freeze() }
    }

    /// The same as a Hard Reset (RFC 8538 section 3): code, subcode and data become its data.
    pub fn hard(&self) -> Self {
        let mut data = BytesMut::with_capacity(2 + self.data.len());
        data.put_slice(&[self.code, self.subcode]);
        data.put_slice(&self.data);
        Self { code: code::CEASE, subcode: cease::HARD_RESET, data: data.freeze() }
    }

    /// Whether it is a Hard Reset.
    pub fn is_hard(&self) -> bool {
        (self.code, self.subcode) == (code::CEASE, cease::HARD_RESET)
    }

    /// Whether it only ends a connection that lost against another one.
    pub fn is_collision(&self) -> bool {
        (self.code, self.subcode) == (code::CEASE, cease::COLLISION)
    }

    /// What stands in a Hard Reset.
    pub fn within(&self) -> Option<Self> {
        (self.is_hard() && self.data.len() >= 2).then(|| Self::decode(&self.data))
    }

    /// The shutdown communication, if it carries a well-formed one.
    pub fn communication(&self) -> Option<&str> {
        if self.code != code::CEASE || !matches!(self.subcode, cease::SHUTDOWN | cease::RESET) {
            return None;
        }
        let (len, words) = self.data.split_first()?;
        std::str::from_utf8(words.get(..usize::from(*len))?).ok().filter(|words| !words.is_empty())
    }

    /// Reads the body of a NOTIFICATION; the frame's length check guarantees two octets, none is read as zero.
    pub fn decode(body: &Bytes) -> Self {
        let octet = |at: usize| body.get(at).copied().unwrap_or(0);
        Self { code: octet(0), subcode: octet(1), data: body.slice(body.len().min(2)..) }
    }

    /// The whole message. Data that does not fit is cut.
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(32);
        let at = start(&mut out, MessageType::Notification);
        out.put_u8(self.code);
        out.put_u8(self.subcode);
        let room = MAX_LEN - out.len();
        out.put_slice(&self.data[..self.data.len().min(room)]);
        finish(&mut out, at);
        out.freeze()
    }

    fn words(&self) -> &'static str {
        match (self.code, self.subcode) {
            (1, 1) => "message header error, connection not synchronised",
            (1, 2) => "message header error, bad message length",
            (1, 3) => "message header error, bad message type",
            (1, _) => "message header error",
            (2, 1) => "OPEN error, unsupported version",
            (2, 2) => "OPEN error, bad peer AS",
            (2, 3) => "OPEN error, bad BGP identifier",
            (2, 4) => "OPEN error, unsupported optional parameter",
            (2, 6) => "OPEN error, unacceptable hold time",
            (2, 7) => "OPEN error, unsupported capability",
            (2, 11) => "OPEN error, role mismatch",
            (2, _) => "OPEN error",
            (3, 1) => "UPDATE error, malformed attribute list",
            (3, 9) => "UPDATE error, optional attribute error",
            (3, 10) => "UPDATE error, invalid network field",
            (3, _) => "UPDATE error",
            (4, _) => "hold timer expired",
            (5, 1) => "unexpected message in OpenSent",
            (5, 2) => "unexpected message in OpenConfirm",
            (5, 3) => "unexpected message in Established",
            (5, _) => "state machine error",
            (6, 1) => "cease, maximum number of prefixes reached",
            (6, 2) => "cease, administrative shutdown",
            (6, 3) => "cease, peer de-configured",
            (6, 4) => "cease, administrative reset",
            (6, 5) => "cease, connection rejected",
            (6, 6) => "cease, other configuration change",
            (6, 7) => "cease, connection collision resolution",
            (6, 8) => "cease, out of resources",
            (6, 9) => "cease, hard reset",
            (6, 10) => "cease, BFD down",
            (6, _) => "cease",
            (7, 1) => "ROUTE-REFRESH error, invalid message length",
            (7, _) => "ROUTE-REFRESH error",
            (8, _) => "send hold timer expired",
            _ => "unknown error",
        }
    }
}

impl fmt::Display for Notification {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}/{})", self.words(), self.code, self.subcode)?;
        if let Some(words) = self.communication() {
            write!(f, ": {words:?}")?;
        }
        if let Some(within) = self.within().filter(|within| !within.is_hard()) {
            write!(f, ": {within}")?;
        }
        Ok(())
    }
}
