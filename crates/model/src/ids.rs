//! Checked newtypes. Text from outside becomes one of these at the door, or an error that says why not.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::{Deserialize, Serialize};

/// Text that is not what a field wants: the value and what was expected.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{value:?} is not {expected}")]
pub struct InvalidId {
    /// The text as given.
    pub value: String,
    /// What was expected, to be read after "is not".
    pub expected: &'static str,
}

fn invalid(value: &str, expected: &'static str) -> InvalidId {
    InvalidId { value: value.to_owned(), expected }
}

macro_rules! text_id {
    ($(#[$doc:meta])* $name:ident, $check:expr, $expected:expr) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// The text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }
        impl FromStr for $name {
            type Err = InvalidId;
            fn from_str(text: &str) -> Result<Self, InvalidId> {
                let check: fn(&str) -> bool = $check;
                if check(text) { Ok(Self(text.to_owned())) } else { Err(invalid(text, $expected)) }
            }
        }
        impl TryFrom<String> for $name {
            type Error = InvalidId;
            fn try_from(text: String) -> Result<Self, InvalidId> {
                text.parse()
            }
        }
        impl From<$name> for String {
            fn from(id: $name) -> String {
                id.0
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }
    };
}

/// DNS subdomain of RFC 1123, as Kubernetes names nodes and most objects: at most 253 characters.
fn is_dns_subdomain(text: &str) -> bool {
    text.len() <= 253 && text.split('.').all(is_dns_label)
}

/// DNS label of RFC 1123: at most 63 characters.
fn is_dns_label(text: &str) -> bool {
    let bytes = text.as_bytes();
    let inner = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    matches!((bytes.first(), bytes.last()), (Some(first), Some(last)) if inner(first) && inner(last))
        && bytes.len() <= 63
        && bytes.iter().all(|b| inner(b) || *b == b'-')
}

/// CNI SPEC 1.1.0: container ids and network names.
fn is_cni_name(text: &str) -> bool {
    let bytes = text.as_bytes();
    bytes.first().is_some_and(u8::is_ascii_alphanumeric)
        && bytes.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'))
}

fn is_ifname(text: &str) -> bool {
    (1..=15).contains(&text.len())
        && text != "."
        && text != ".."
        && !text.bytes().any(|b| b == b'/' || b == b':' || b.is_ascii_whitespace() || b == 0)
}

text_id!(
    /// Name of a node: the Kubernetes node name, or the host name.
    NodeName, is_dns_subdomain,
    "a node name (lower-case letters, digits, '-' and '.', at most 253 characters)"
);
text_id!(
    /// Name of an object of ours in the store: a pool, a BGP peer, a filter.
    ObjectName, is_dns_subdomain,
    "an object name (lower-case letters, digits, '-' and '.', at most 253 characters)"
);
text_id!(
    /// Name of a Kubernetes namespace.
    NamespaceName, is_dns_label,
    "a namespace name (lower-case letters, digits and '-', at most 63 characters)"
);
text_id!(
    /// CNI container id (CNI SPEC 1.1.0, `CNI_CONTAINERID`).
    ContainerId, is_cni_name,
    "a container id (a letter or digit, then letters, digits, '_', '.' and '-')"
);
text_id!(
    /// CNI network name (CNI SPEC 1.1.0, `name`).
    NetworkName, is_cni_name,
    "a network name (a letter or digit, then letters, digits, '_', '.' and '-')"
);
text_id!(
    /// Interface name, as the kernel takes it (`dev_valid_name` in `net/core/dev.c`).
    IfName, is_ifname,
    "an interface name (1 to 15 bytes, not '.' or '..', no '/', ':' or white space)"
);
text_id!(
    /// Id of one boot of a machine: `/proc/sys/kernel/random/boot_id`.
    BootId, |text| text.len() == 36 && text.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-'),
    "a boot id (a UUID)"
);
text_id!(
    /// Id of one installation of a node: a UUID made once and kept in [`crate::names::INSTANCE_FILE`].
    InstanceId, |text| text.len() == 36 && text.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-'),
    "an instance id (a UUID)"
);

/// Autonomous system number (RFC 6793), never 0 (RFC 7607).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct Asn(u32);

impl Asn {
    /// Default AS number of a cluster: the first one for private use (RFC 6996).
    pub const DEFAULT: Self = Self(64512);

    /// The number.
    pub fn number(self) -> u32 {
        self.0
    }
}
impl TryFrom<u32> for Asn {
    type Error = InvalidId;
    fn try_from(number: u32) -> Result<Self, InvalidId> {
        match number {
            0 | 23456 | u32::MAX => {
                Err(invalid(&number.to_string(), "an AS number (1 to 4294967294, not 23456)"))
            }
            _ => Ok(Self(number)),
        }
    }
}
impl From<Asn> for u32 {
    fn from(asn: Asn) -> u32 {
        asn.0
    }
}
impl fmt::Display for Asn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Maximum transmission unit in bytes: at least 1280 (RFC 8200 section 5), at most 65535.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct Mtu(u32);

impl Mtu {
    /// Ethernet's.
    pub const ETHERNET: Self = Self(1500);

    /// The number of bytes.
    pub fn bytes(self) -> u32 {
        self.0
    }

    /// What is left under an encapsulation of `overhead` bytes, never below IPv6's minimum.
    pub fn less(self, overhead: u32) -> Self {
        Self(self.0.saturating_sub(overhead).max(1280))
    }
}
impl TryFrom<u32> for Mtu {
    type Error = InvalidId;
    fn try_from(bytes: u32) -> Result<Self, InvalidId> {
        if (1280..=65535).contains(&bytes) {
            Ok(Self(bytes))
        } else {
            Err(invalid(&bytes.to_string(), "an MTU (1280 to 65535 bytes)"))
        }
    }
}
impl From<Mtu> for u32 {
    fn from(mtu: Mtu) -> u32 {
        mtu.0
    }
}
impl fmt::Display for Mtu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// VXLAN network identifier, 24 bits (RFC 7348).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct Vni(u32);

impl Vni {
    /// Flannel's default, and ours.
    pub const DEFAULT: Self = Self(1);

    /// The number.
    pub fn number(self) -> u32 {
        self.0
    }
}
impl TryFrom<u32> for Vni {
    type Error = InvalidId;
    fn try_from(number: u32) -> Result<Self, InvalidId> {
        if (1..1 << 24).contains(&number) {
            Ok(Self(number))
        } else {
            Err(invalid(&number.to_string(), "a VXLAN network identifier (1 to 16777215)"))
        }
    }
}
impl From<Vni> for u32 {
    fn from(vni: Vni) -> u32 {
        vni.0
    }
}

/// Ethernet address.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MacAddr(pub [u8; 6]);

impl fmt::Display for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}
impl fmt::Debug for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
impl FromStr for MacAddr {
    type Err = InvalidId;
    fn from_str(text: &str) -> Result<Self, InvalidId> {
        let wrong = || invalid(text, "a MAC address (six hex pairs, 02:70:77:00:00:01)");
        let mut octets = [0; 6];
        let mut parts = text.split(':');
        for octet in &mut octets {
            let part = parts.next().filter(|p| p.len() == 2).ok_or_else(wrong)?;
            *octet = u8::from_str_radix(part, 16).map_err(|_| wrong())?;
        }
        if parts.next().is_some() { Err(wrong()) } else { Ok(Self(octets)) }
    }
}
impl TryFrom<String> for MacAddr {
    type Error = InvalidId;
    fn try_from(text: String) -> Result<Self, InvalidId> {
        text.parse()
    }
}
impl From<MacAddr> for String {
    fn from(mac: MacAddr) -> String {
        mac.to_string()
    }
}

/// A public key of WireGuard, written as `wg` writes it: base64.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct WireguardKey(pub [u8; 32]);

impl fmt::Display for WireguardKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&BASE64.encode(self.0))
    }
}
impl fmt::Debug for WireguardKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
impl FromStr for WireguardKey {
    type Err = InvalidId;
    fn from_str(text: &str) -> Result<Self, InvalidId> {
        let bytes = BASE64.decode(text).ok().and_then(|bytes| <[u8; 32]>::try_from(bytes).ok());
        bytes
            .map(Self)
            .ok_or_else(|| invalid(text, "a WireGuard key (32 bytes in base64, as `wg` writes it)"))
    }
}
impl TryFrom<String> for WireguardKey {
    type Error = InvalidId;
    fn try_from(text: String) -> Result<Self, InvalidId> {
        text.parse()
    }
}
impl From<WireguardKey> for String {
    fn from(key: WireguardKey) -> String {
        key.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_their_rules() {
        for good in ["n1", "node-1.example.com", "0"] {
            assert!(good.parse::<NodeName>().is_ok(), "{good}");
        }
        for bad in ["", "-a", "a-", "A", "a..b", "a_b", "a/b", &"a".repeat(64)] {
            assert!(bad.parse::<NodeName>().is_err(), "{bad}");
        }
        for bad in ["", ".", "..", "a/b", "a:b", "a b", "0123456789abcdef"] {
            assert!(bad.parse::<IfName>().is_err(), "{bad}");
        }
        for bad in ["", "-a", "_a", "a b", "a/b", "ä"] {
            assert!(bad.parse::<ContainerId>().is_err(), "{bad}");
        }
    }

    #[test]
    fn numbers_have_their_ranges() {
        assert!(
            Asn::try_from(0).is_err() && Asn::try_from(23456).is_err() && Asn::try_from(u32::MAX).is_err()
        );
        assert!(Asn::try_from(4_200_000_000).is_ok());
        assert!(Mtu::try_from(1279).is_err() && Mtu::try_from(65536).is_err() && Mtu::try_from(1280).is_ok());
        assert!(Vni::try_from(0).is_err() && Vni::try_from(1 << 24).is_err());
        assert_eq!(Mtu::ETHERNET.less(50).bytes(), 1450);
        assert_eq!(Mtu::try_from(1300).unwrap().less(50).bytes(), 1280);
    }

    #[test]
    fn wireguard_keys_are_written_as_wg_writes_them() {
        let key = WireguardKey(std::array::from_fn(|i| u8::try_from(i).unwrap()));
        assert_eq!(key.to_string(), "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=");
        assert_eq!(key.to_string().parse::<WireguardKey>().unwrap(), key);
        for bad in ["", "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8", "AAEC", "not a key"] {
            assert!(bad.parse::<WireguardKey>().is_err(), "{bad}");
        }
    }

    #[test]
    fn mac_address_round_trips_and_refuses() {
        let mac: MacAddr = "02:70:77:00:00:01".parse().unwrap();
        assert_eq!(mac.to_string(), "02:70:77:00:00:01");
        for bad in [
            "",
            "02:70:77:00:00",
            "02:70:77:00:00:01:02",
            "2:70:77:0:0:1",
            "02-70-77-00-00-01",
            "0x:70:77:00:00:01",
        ] {
            assert!(bad.parse::<MacAddr>().is_err(), "{bad}");
        }
    }
}
