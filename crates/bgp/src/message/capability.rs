//! Capabilities (RFC 5492) and those that we speak.
//!
//! ```text
//! | code (1) | length (1) | value ...
//! ```

use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use serde::{Deserialize, Serialize};

use super::Take;
use crate::types::{Families, Family, SAFI_UNICAST};

/// Capability codes (IANA "Capability Codes").
mod code {
    pub(super) const MULTIPROTOCOL: u8 = 1;
    pub(super) const ROUTE_REFRESH: u8 = 2;
    pub(super) const EXTENDED_NEXT_HOP: u8 = 5;
    pub(super) const EXTENDED_MESSAGE: u8 = 6;
    pub(super) const ROLE: u8 = 9;
    pub(super) const GRACEFUL_RESTART: u8 = 64;
    pub(super) const FOUR_OCTET_AS: u8 = 65;
    pub(super) const ADD_PATH: u8 = 69;
    pub(super) const ENHANCED_REFRESH: u8 = 70;
    pub(super) const LONG_LIVED: u8 = 71;
}

/// The capabilities of an OPEN, gathered. What we do not know is counted out.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Capabilities {
    /// Multiprotocol extensions (RFC 4760 section 8): families of ours. `None`: the capability is not there.
    pub families: Option<Families>,
    /// Route refresh (RFC 2918).
    pub route_refresh: bool,
    /// Enhanced route refresh (RFC 7313).
    pub enhanced_refresh: bool,
    /// IPv4 unicast prefixes may have IPv6 next hops (RFC 8950).
    pub extended_next_hop: bool,
    /// Messages of up to 65,535 octets can be received (RFC 8654).
    pub extended_messages: bool,
    /// The sender's role towards us (RFC 9234); the second of two that differ makes it [`RoleSaid::Torn`].
    pub role: Option<RoleSaid>,
    /// Four-octet AS number (RFC 6793).
    pub four_octet_as: Option<u32>,
    /// Graceful restart (RFC 4724).
    pub graceful_restart: Option<GracefulRestart>,
    /// Families of which the sender can receive several paths (RFC 7911).
    pub add_path_receive: Families,
    /// Families of which the sender wants to send several paths (RFC 7911).
    pub add_path_send: Families,
    /// Long-lived graceful restart (RFC 9494): how long stale routes shall be kept, and whether the forwarding state
    /// was preserved, per family.
    pub long_lived: Option<Vec<LongLived>>,
}

/// One family of the long-lived graceful restart capability (RFC 9494 section 3.1).
///
/// ```text
/// | AFI (2) | SAFI (1) | F . . . . . . . | stale time in seconds (3) |
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LongLived {
    /// Which family.
    pub family: Family,
    /// F: its forwarding state was preserved.
    pub preserved: bool,
    /// How long its stale routes shall be kept, below 2^24 seconds.
    pub time: Duration,
}

/// A role in the sense of RFC 9234: what the speaker is to the other side.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[repr(u8)]
pub enum Relation {
    /// The other side is its customer.
    Provider = 0,
    /// A route server.
    RouteServer = 1,
    /// A client of a route server.
    RouteServerClient = 2,
    /// The other side is its provider.
    Customer = 3,
    /// Neither.
    Peer = 4,
}

impl Relation {
    fn from_wire(number: u8) -> Option<Self> {
        Some(match number {
            0 => Self::Provider,
            1 => Self::RouteServer,
            2 => Self::RouteServerClient,
            3 => Self::Customer,
            4 => Self::Peer,
            _ => return None,
        })
    }

    /// What the other side must be (RFC 9234 section 4.2, table 2).
    pub fn counterpart(self) -> Self {
        match self {
            Self::Provider => Self::Customer,
            Self::Customer => Self::Provider,
            Self::RouteServer => Self::RouteServerClient,
            Self::RouteServerClient => Self::RouteServer,
            Self::Peer => Self::Peer,
        }
    }
}

/// What an OPEN says about the sender's role.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RoleSaid {
    /// One of the roles.
    One(Relation),
    /// Different ones, or one that does not exist: that is a mismatch (RFC 9234 section 4.2).
    Torn,
}

/// The graceful restart capability (RFC 4724 section 3).
///
/// ```text
/// | R N . . | restart time (12 bits) | then per family: | AFI (2) | SAFI (1) | F . . . . . . . |
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GracefulRestart {
    /// R: the sender has restarted; do not wait for its End-of-RIB.
    pub restarting: bool,
    /// N: an end by NOTIFICATION or by the hold timer counts as a restart too (RFC 8538 section 2).
    pub notification: bool,
    /// Seconds that its routes shall be kept, 12 bits.
    pub time: u16,
    /// Families it covers.
    pub families: Families,
    /// F: of these, the ones whose forwarding state was preserved.
    pub preserved: Families,
}

const R_BIT: u16 = 0x8000;
const N_BIT: u16 = 0x4000;
const F_BIT: u8 = 0x80;

impl Capabilities {
    /// Reads the capabilities of one optional parameter into `self`. `None`: they do not fit their lengths.
    ///
    /// A capability of a known code but wrong length is as good as absent (RFC 5492 says nothing; a missing
    /// feature harms less than a missing session).
    pub(super) fn read(&mut self, mut bytes: Bytes) -> Option<()> {
        while !bytes.is_empty() {
            let code = bytes.take_u8()?;
            let len = bytes.take_u8()?;
            let value = bytes.take(usize::from(len))?;
            self.read_one(code, value);
        }
        Some(())
    }

    fn read_one(&mut self, code: u8, mut value: Bytes) {
        match (code, value.len()) {
            (code::MULTIPROTOCOL, 4) => {
                let families = self.families.get_or_insert(Families::NONE);
                if let (Some(afi), Some(_), Some(safi)) = (value.take_u16(), value.take_u8(), value.take_u8())
                    && let Some(family) = Family::from_wire(afi, safi)
                {
                    families.insert(family);
                }
            }
            (code::ROUTE_REFRESH, 0) => self.route_refresh = true,
            (code::ENHANCED_REFRESH, 0) => self.enhanced_refresh = true,
            (code::EXTENDED_MESSAGE, 0) => self.extended_messages = true,
            (code::EXTENDED_NEXT_HOP, len) if len % 6 == 0 => {
                while let (Some(afi), Some(safi), Some(by)) =
                    (value.take_u16(), value.take_u16(), value.take_u16())
                {
                    self.extended_next_hop |= (afi, safi, by) == (1, u16::from(SAFI_UNICAST), 2);
                }
            }
            (code::ROLE, 1) => {
                let new = value.take_u8().and_then(Relation::from_wire).map_or(RoleSaid::Torn, RoleSaid::One);
                let same = self.role.is_none_or(|before| before == new);
                self.role = Some(if same { new } else { RoleSaid::Torn });
            }
            (code::FOUR_OCTET_AS, 4) => self.four_octet_as = value.take_u32(),
            // RFC 4724 section 3: of several instances the last one counts.
            (code::GRACEFUL_RESTART, len) if len >= 2 && (len - 2) % 4 == 0 => {
                self.graceful_restart = read_graceful_restart(value);
            }
            (code::ADD_PATH, len) if len % 4 == 0 => {
                while let (Some(afi), Some(safi), Some(how)) =
                    (value.take_u16(), value.take_u8(), value.take_u8())
                {
                    let Some(family) = Family::from_wire(afi, safi) else { continue };
                    // RFC 7911 section 4: any other value is ignored.
                    if matches!(how, 1 | 3) {
                        self.add_path_receive.insert(family);
                    }
                    if matches!(how, 2 | 3) {
                        self.add_path_send.insert(family);
                    }
                }
            }
            (code::LONG_LIVED, len) if len % 7 == 0 => self.long_lived = Some(read_long_lived(value)),
            _ => {}
        }
    }

    /// The value of the capabilities parameter.
    pub(super) fn write(&self, out: &mut BytesMut) {
        for family in self.families.into_iter().flat_map(Families::iter) {
            out.put_slice(&[code::MULTIPROTOCOL, 4]);
            out.put_u16(family.afi());
            out.put_slice(&[0, SAFI_UNICAST]);
        }
        if self.route_refresh {
            out.put_slice(&[code::ROUTE_REFRESH, 0]);
        }
        if self.extended_next_hop {
            out.put_slice(&[code::EXTENDED_NEXT_HOP, 6, 0, 1, 0, SAFI_UNICAST, 0, 2]);
        }
        if self.extended_messages {
            out.put_slice(&[code::EXTENDED_MESSAGE, 0]);
        }
        if let Some(RoleSaid::One(role)) = self.role {
            out.put_slice(&[code::ROLE, 1, role as u8]);
        }
        if let Some(restart) = &self.graceful_restart {
            out.put_slice(&[code::GRACEFUL_RESTART, 2 + 4 * count(restart.families)]);
            let bits = if restart.restarting { R_BIT } else { 0 };
            let bits = bits | if restart.notification { N_BIT } else { 0 };
            out.put_u16((restart.time & 0x0fff) | bits);
            for family in restart.families.iter() {
                out.put_u16(family.afi());
                out.put_u8(SAFI_UNICAST);
                out.put_u8(if restart.preserved.contains(family) { F_BIT } else { 0 });
            }
        }
        if let Some(asn) = self.four_octet_as {
            out.put_slice(&[code::FOUR_OCTET_AS, 4]);
            out.put_u32(asn);
        }
        let several: Families = self.add_path_receive.iter().chain(self.add_path_send.iter()).collect();
        if !several.is_empty() {
            out.put_slice(&[code::ADD_PATH, 4 * count(several)]);
            for family in several.iter() {
                out.put_u16(family.afi());
                out.put_u8(SAFI_UNICAST);
                let receive = u8::from(self.add_path_receive.contains(family));
                out.put_u8(receive | (u8::from(self.add_path_send.contains(family)) << 1));
            }
        }
        if self.enhanced_refresh {
            out.put_slice(&[code::ENHANCED_REFRESH, 0]);
        }
        if let Some(long_lived) = &self.long_lived {
            out.put_slice(&[code::LONG_LIVED, u8::try_from(7 * long_lived.len()).unwrap_or(0)]);
            for one in long_lived {
                out.put_u16(one.family.afi());
                out.put_slice(&[SAFI_UNICAST, if one.preserved { F_BIT } else { 0 }]);
                let seconds = u32::try_from(one.time.as_secs()).unwrap_or(u32::MAX).min(0x00ff_ffff);
                out.put_slice(&seconds.to_be_bytes()[1..]);
            }
        }
    }
}

fn count(families: Families) -> u8 {
    families.iter().map(|_| 1).sum()
}

fn read_graceful_restart(mut value: Bytes) -> Option<GracefulRestart> {
    let head = value.take_u16()?;
    let mut restart = GracefulRestart {
        restarting: head & R_BIT != 0,
        notification: head & N_BIT != 0,
        time: head & 0x0fff,
        ..GracefulRestart::default()
    };
    while let (Some(afi), Some(safi), Some(flags)) = (value.take_u16(), value.take_u8(), value.take_u8()) {
        if let Some(family) = Family::from_wire(afi, safi) {
            restart.families.insert(family);
            if flags & F_BIT != 0 {
                restart.preserved.insert(family);
            }
        }
    }
    Some(restart)
}

fn read_long_lived(mut value: Bytes) -> Vec<LongLived> {
    let mut all: Vec<LongLived> = vec![];
    while let (Some(afi), Some(head)) = (value.take_u16(), value.take(5)) {
        let seconds = u32::from_be_bytes([0, head[2], head[3], head[4]]);
        let Some(family) = Family::from_wire(afi, head[0]) else { continue };
        // The first instance of a family counts.
        if all.iter().all(|one| one.family != family) {
            let time = Duration::from_secs(u64::from(seconds));
            all.push(LongLived { family, preserved: head[1] & F_BIT != 0, time });
        }
    }
    all
}
