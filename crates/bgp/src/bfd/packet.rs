//! The BFD control packet (RFC 5880 section 4.1).
//!
//! ```text
//! | version (3) diagnostic (5) | state (2) P F C A D M | detect mult (8) | length (8) |
//! |                          my discriminator (32)                                   |
//! |                         your discriminator (32)                                  |
//! |                    desired min TX interval (32), in microseconds                 |
//! |                    required min RX interval (32)                                 |
//! |                  required min echo RX interval (32)                              |
//! ```

use std::fmt;
use std::time::Duration;

/// Length of a packet without authentication.
pub const LEN: usize = 24;

const LEN_OCTET: u8 = 24;

/// Session states (RFC 5880 section 4.1), by their numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum State {
    /// Held down by the operator.
    AdminDown = 0,
    /// Nothing is heard, or the other side does not hear us.
    Down = 1,
    /// The other side is heard.
    Init = 2,
    /// Both hear each other.
    Up = 3,
}

/// Why a session went down (RFC 5880 section 4.1), by its number.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Diagnostic(pub u8);

impl Diagnostic {
    /// No Diagnostic.
    pub const NONE: Self = Self(0);
    /// Control Detection Time Expired.
    pub const EXPIRED: Self = Self(1);
    /// Neighbor Signaled Session Down.
    pub const SIGNALED: Self = Self(3);
    /// Administratively Down.
    pub const ADMINISTRATIVE: Self = Self(7);
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            0 => "no diagnostic",
            1 => "detection time expired",
            2 => "echo function failed",
            3 => "the neighbour says down",
            4 => "forwarding plane reset",
            5 => "path down",
            6 => "concatenated path down",
            7 => "administratively down",
            8 => "reverse concatenated path down",
            _ => "unknown diagnostic",
        })
    }
}

/// A control packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packet {
    /// Why the sender's session last went down.
    pub diagnostic: Diagnostic,
    /// The sender's state.
    pub state: State,
    /// P: an answer with F is wanted.
    pub poll: bool,
    /// F: the answer.
    pub last: bool,
    /// C: the sender's BFD lives apart from its control plane (RFC 5882 section 4.3.2).
    pub independent: bool,
    /// Packets that may be missing in a row.
    pub multiplier: u8,
    /// The sender's number for the session, not zero.
    pub my: u32,
    /// Our number, as far as the sender knows it.
    pub your: u32,
    /// How often the sender would like to send.
    pub desired_tx: Duration,
    /// How often it can receive; zero: not at all.
    pub required_rx: Duration,
}

impl Packet {
    /// Reads a packet and makes the checks of RFC 5880 section 6.8.6 that need no session; the error says why it is
    /// discarded.
    ///
    /// # Errors
    /// It is to be discarded.
    pub fn decode(bytes: &[u8]) -> Result<Self, &'static str> {
        let Some(head) = bytes.get(..LEN) else { return Err("too short") };
        let word = |at: usize| u32::from_be_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        let interval = |at: usize| Duration::from_micros(u64::from(word(at)));
        let (flags, length) = (head[1], usize::from(head[3]));
        if head[0] >> 5 != 1 {
            return Err("not version 1");
        }
        if flags & 0b0100 != 0 {
            return Err("authenticated, which was not agreed");
        }
        if length < LEN || length > bytes.len() {
            return Err("the length does not fit");
        }
        if flags & 0b0001 != 0 {
            return Err("multipoint");
        }
        if head[2] == 0 {
            return Err("detection multiplier 0");
        }
        let state = match flags >> 6 {
            0 => State::AdminDown,
            1 => State::Down,
            2 => State::Init,
            _ => State::Up,
        };
        let (my, your) = (word(4), word(8));
        if my == 0 {
            return Err("my discriminator 0");
        }
        if your == 0 && state > State::Down {
            return Err("your discriminator 0 although the session is coming up");
        }
        Ok(Self {
            diagnostic: Diagnostic(head[0] & 0x1f),
            state,
            poll: flags & 0b10_0000 != 0,
            last: flags & 0b01_0000 != 0,
            independent: flags & 0b1000 != 0,
            multiplier: head[2],
            my,
            your,
            desired_tx: interval(12),
            required_rx: interval(16),
        })
    }

    /// The packet's octets.
    pub fn encode(&self) -> [u8; LEN] {
        let micros = |time: Duration| u32::try_from(time.as_micros()).unwrap_or(u32::MAX).to_be_bytes();
        let bit = |set: bool, bit: u8| if set { bit } else { 0 };
        let mut out = [0; LEN];
        out[0] = (1 << 5) | (self.diagnostic.0 & 0x1f);
        out[1] = ((self.state as u8) << 6)
            | bit(self.poll, 0b10_0000)
            | bit(self.last, 0b01_0000)
            | bit(self.independent, 0b1000);
        out[2] = self.multiplier;
        out[3] = LEN_OCTET;
        out[4..8].copy_from_slice(&self.my.to_be_bytes());
        out[8..12].copy_from_slice(&self.your.to_be_bytes());
        out[12..16].copy_from_slice(&micros(self.desired_tx));
        out[16..20].copy_from_slice(&micros(self.required_rx));
        out
    }
}
