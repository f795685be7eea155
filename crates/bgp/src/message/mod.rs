//! Messages of BGP: framing here, bodies in the submodules. Pure: bytes in, values out, and the other way round.
//!
//! ```text
//!  0                   1                   2                   3      RFC 4271 4.1
//! |                        marker: 16 octets of ones                |
//! |        length (19 to 4096)     |   type        |
//! ```
//!
//! Decode errors are data: a [`Notification`] where RFC 4271 or 7606 wants the session reset, faults with their
//! treatment in [`update::Update`] where it does not. Nothing here panics on any input (`tests/codec.rs`).
//!
mod as_path;
pub mod attribute;
pub mod capability;
pub(crate) mod nlri;
pub mod notification;
pub mod open;
pub mod refresh;
pub mod update;
mod walk;

use bytes::{Buf, BufMut, Bytes, BytesMut};

pub use nlri::Nlri;
pub use notification::Notification;
use notification::code;

/// Length of the header.
pub const HEADER_LEN: usize = 19;
/// Longest message (RFC 4271 4.1).
pub const MAX_LEN: usize = 4096;
/// Longest message where extended messages are in use (RFC 8654); OPEN and KEEPALIVE stay below [`MAX_LEN`].
pub const MAX_EXTENDED_LEN: usize = 65535;

/// Message types (IANA "BGP Message Types").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum MessageType {
    /// OPEN.
    Open = 1,
    /// UPDATE.
    Update = 2,
    /// NOTIFICATION.
    Notification = 3,
    /// KEEPALIVE.
    Keepalive = 4,
    /// ROUTE-REFRESH (RFC 2918).
    RouteRefresh = 5,
}

impl MessageType {
    fn from_wire(number: u8) -> Option<Self> {
        Some(match number {
            1 => Self::Open,
            2 => Self::Update,
            3 => Self::Notification,
            4 => Self::Keepalive,
            5 => Self::RouteRefresh,
            _ => return None,
        })
    }

    /// Whether a message of this type may have this length (RFC 4271 6.1, RFC 2918 section 3).
    fn accepts_len(self, len: usize) -> bool {
        match self {
            Self::Open => (29..=MAX_LEN).contains(&len),
            Self::Update => len >= 23,
            Self::Notification => len >= 21,
            Self::Keepalive => len == HEADER_LEN,
            // Longer ones are judged by RFC 7313 section 5, once it is known whether it holds.
            Self::RouteRefresh => len >= 23,
        }
    }
}

/// A message cut out of the stream: its type and its body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// Its type.
    pub kind: MessageType,
    /// What follows the header.
    pub body: Bytes,
}

/// Cuts the next message off `buffer`. `None`: more bytes are needed. `max_len`: [`MAX_LEN`], or
/// [`MAX_EXTENDED_LEN`] where we offered that.
///
/// # Errors
/// The NOTIFICATION of RFC 4271 6.1. The header is judged as soon as it is there, so at most `max_len` octets
/// ever wait in `buffer`.
pub fn next_frame(buffer: &mut BytesMut, max_len: usize) -> Result<Option<Frame>, Notification> {
    let Some(header) = buffer.get(..HEADER_LEN) else { return Ok(None) };
    if header[..16].iter().any(|octet| *octet != 0xff) {
        return Err(Notification::new(code::HEADER, 1));
    }
    let len = usize::from(u16::from_be_bytes([header[16], header[17]]));
    let bad_len = || Notification::with_data(code::HEADER, 2, &header[16..18]);
    if !(HEADER_LEN..=max_len).contains(&len) {
        return Err(bad_len());
    }
    let Some(kind) = MessageType::from_wire(header[18]) else {
        return Err(Notification::with_data(code::HEADER, 3, &header[18..19]));
    };
    if !kind.accepts_len(len) {
        return Err(bad_len());
    }
    if buffer.len() < len {
        return Ok(None);
    }
    let mut body = buffer.split_to(len).freeze();
    body.advance(HEADER_LEN);
    Ok(Some(Frame { kind, body }))
}

/// A whole message with this body, as it stood on the wire.
pub(crate) fn whole(kind: MessageType, body: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(HEADER_LEN + body.len());
    let at = start(&mut out, kind);
    out.put_slice(body);
    finish(&mut out, at);
    out.freeze()
}

/// A KEEPALIVE.
pub fn keepalive() -> Bytes {
    let mut out = BytesMut::with_capacity(HEADER_LEN);
    let at = start(&mut out, MessageType::Keepalive);
    finish(&mut out, at);
    out.freeze()
}

/// Writes a header whose length is filled in by [`finish`]; returns where the message begins.
pub(crate) fn start(out: &mut BytesMut, kind: MessageType) -> usize {
    let at = out.len();
    out.put_bytes(0xff, 16);
    out.put_u16(0);
    out.put_u8(kind as u8);
    at
}

/// Fills in the length of the message that begins at `at`.
pub(crate) fn finish(out: &mut BytesMut, at: usize) {
    patch_len(out, at + 16, out.len() - at);
}

/// Writes `len` into the two octets at `at`.
pub(crate) fn patch_len(out: &mut BytesMut, at: usize, len: usize) {
    let len = u16::try_from(len).expect("encoders stay below the longest message");
    out[at..at + 2].copy_from_slice(&len.to_be_bytes());
}

/// Reading without panics: every method says `None` where the octets end.
pub(crate) trait Take {
    fn take_u8(&mut self) -> Option<u8>;
    fn take_u16(&mut self) -> Option<u16>;
    fn take_u32(&mut self) -> Option<u32>;
    fn take(&mut self, len: usize) -> Option<Bytes>;
}

impl Take for Bytes {
    fn take_u8(&mut self) -> Option<u8> {
        self.has_remaining().then(|| self.get_u8())
    }

    fn take_u16(&mut self) -> Option<u16> {
        (self.len() >= 2).then(|| self.get_u16())
    }

    fn take_u32(&mut self) -> Option<u32> {
        (self.len() >= 4).then(|| self.get_u32())
    }

    fn take(&mut self, len: usize) -> Option<Bytes> {
        (self.len() >= len).then(|| self.split_to(len))
    }
}
