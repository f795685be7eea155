//! Capabilities (RFC 5492) and those that we speak.
//!
//! ```text
//! | code (1) | length (1) | value ...
//! ```

use bytes::{BufMut, Bytes, BytesMut};

use super::Take;
use crate::types::{Families, Family, SAFI_UNICAST};

/// Capability codes (IANA "Capability Codes").
mod code {
    pub(super) const MULTIPROTOCOL: u8 = 1;
    pub(super) const ROUTE_REFRESH: u8 = 2;
    pub(super) const GRACEFUL_RESTART: u8 = 64;
    pub(super) const FOUR_OCTET_AS: u8 = 65;
}

/// The capabilities of an OPEN, gathered. What we do not know is counted out.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Capabilities {
    /// Multiprotocol extensions (RFC 4760 section 8): families of ours. `None`: the capability is not there.
    pub families: Option<Families>,
    /// Route refresh (RFC 2918).
    pub route_refresh: bool,
    /// Four-octet AS number (RFC 6793).
    pub four_octet_as: Option<u32>,
    /// Graceful restart (RFC 4724).
    pub graceful_restart: Option<GracefulRestart>,
}

/// The graceful restart capability (RFC 4724 section 3).
///
/// ```text
/// | R . . . | restart time (12 bits) | then per family: | AFI (2) | SAFI (1) | F . . . . . . . |
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GracefulRestart {
    /// R: the sender has restarted; do not wait for its End-of-RIB.
    pub restarting: bool,
    /// Seconds that its routes shall be kept, 12 bits.
    pub time: u16,
    /// Families it covers.
    pub families: Families,
    /// F: of these, the ones whose forwarding state was preserved.
    pub preserved: Families,
}

const R_BIT: u16 = 0x8000;
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
            (code::FOUR_OCTET_AS, 4) => self.four_octet_as = value.take_u32(),
            // RFC 4724 section 3: of several instances the last one counts.
            (code::GRACEFUL_RESTART, len) if len >= 2 && (len - 2) % 4 == 0 => {
                self.graceful_restart = read_graceful_restart(value);
            }
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
        if let Some(restart) = &self.graceful_restart {
            let families: Vec<Family> = restart.families.iter().collect();
            out.put_u8(code::GRACEFUL_RESTART);
            out.put_u8(if families.len() > 1 { 10 } else { 2 + 4 * u8::from(!families.is_empty()) });
            out.put_u16((restart.time & 0x0fff) | if restart.restarting { R_BIT } else { 0 });
            for family in families {
                out.put_u16(family.afi());
                out.put_u8(SAFI_UNICAST);
                out.put_u8(if restart.preserved.contains(family) { F_BIT } else { 0 });
            }
        }
        if let Some(asn) = self.four_octet_as {
            out.put_slice(&[code::FOUR_OCTET_AS, 4]);
            out.put_u32(asn);
        }
    }
}

fn read_graceful_restart(mut value: Bytes) -> Option<GracefulRestart> {
    let head = value.take_u16()?;
    let mut restart =
        GracefulRestart { restarting: head & R_BIT != 0, time: head & 0x0fff, ..GracefulRestart::default() };
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
