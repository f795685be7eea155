//! Flannel's layout of etcd: keys and values as flannel 0.28 reads and writes them. Pure.
//!
//! | key below flannel's prefix | value |
//! |---|---|
//! | `/config` | [`NetworkConfig`]: flannel's network, how long subnets are, the backend. Written by an operator |
//! | `/subnets/10.5.3.0-24`, `/subnets/10.5.3.0-24&fd00:5:3::-64` | [`LeaseAttrs`]: who has the subnet, and how packets get there. Bound to an etcd lease of 24 hours |
//!
//! A node of flannel takes a subnet by creating its key if it is absent, and knows it again by `PublicIP`; it renews by
//! writing whatever stands there. There is no key without an IPv4 subnet. Peers send packets for a subnet to its
//! *network address* on the VXLAN device, whose MAC address is `VtepMAC`.
//!
//! A lease that Podway wrote says so in a field of its own ([`Mark`]), which flannel's readers pass over and its writer
//! leaves out: a lease without it was last written by flannel.
//!
//! Go reads names of fields whatever their case, and so is it here. What flannel does not read is passed over.
//! What is not here: who takes which subnet when (`routed`).

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use self::fields::{Fields, field, object};
use crate::cidr::overlap;
use crate::ids::Vni;
use crate::mistakes::Mistakes;

mod fields;
mod lease;

pub use lease::{LeaseAttrs, Mark, Reach};

/// Prefix where none is given.
pub const DEFAULT_PREFIX: &str = "/coreos.com/network";
/// How long a subnet is its holder's without being renewed, in seconds.
pub const LEASE_SECONDS: u32 = 24 * 3600;
/// UDP port of VXLAN where flannel's configuration names none: the kernel's.
const KERNEL_PORT: u16 = 8472;

/// Flannel's prefix in etcd: begins with a slash and ends without one.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Prefix(String);

impl Default for Prefix {
    fn default() -> Self {
        Self(DEFAULT_PREFIX.to_owned())
    }
}

impl Prefix {
    /// What a prefix is, for people.
    pub const EXPECTED: &'static str =
        "a prefix of etcd that begins with a slash and does not end with one (/coreos.com/network)";

    /// Key of the configuration.
    pub fn config(&self) -> String {
        format!("{}/config", self.0)
    }

    /// What the keys of all subnets begin with.
    pub fn subnets(&self) -> String {
        format!("{}/subnets/", self.0)
    }

    /// Key of a subnet.
    pub fn subnet(&self, subnet: &Subnet) -> String {
        format!("{}/subnets/{subnet}", self.0)
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Prefix {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let part = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_graphic());
        let rest = text.strip_prefix('/').ok_or(())?;
        if text.len() <= 200 && rest.split('/').all(part) { Ok(Self(text.to_owned())) } else { Err(()) }
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for Prefix {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse().map_err(|()| Self::EXPECTED)
    }
}

impl From<Prefix> for String {
    fn from(prefix: Prefix) -> Self {
        prefix.0
    }
}

/// The subnet of one node, as its key says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Subnet {
    /// IPv4.
    pub v4: Ipv4Net,
    /// IPv6, where flannel's network has it.
    pub v6: Option<Ipv6Net>,
}

impl Subnet {
    /// Its prefixes.
    pub fn nets(&self) -> impl Iterator<Item = IpNet> + use<> {
        [Some(IpNet::V4(self.v4)), self.v6.map(IpNet::V6)].into_iter().flatten()
    }

    /// The prefix of a family.
    pub fn net(&self, v6: bool) -> Option<IpNet> {
        if v6 { self.v6.map(IpNet::V6) } else { Some(IpNet::V4(self.v4)) }
    }

    /// Whether it shares an address with `net`.
    pub fn overlaps(&self, net: IpNet) -> bool {
        self.nets().any(|own| overlap(own, net))
    }
}

impl fmt::Display for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.v4.addr(), self.v4.prefix_len())?;
        match self.v6 {
            Some(v6) => write!(f, "&{}-{}", v6.addr(), v6.prefix_len()),
            None => Ok(()),
        }
    }
}

/// Text that is no subnet of flannel's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} found, a subnet expected (10.5.3.0-24, or 10.5.3.0-24&fd00:5:3::-64)")]
pub struct NoSubnet(pub String);

impl FromStr for Subnet {
    type Err = NoSubnet;

    fn from_str(text: &str) -> Result<Self, NoSubnet> {
        let net = |text: &str| -> Option<IpNet> {
            let (address, length) = text.rsplit_once('-')?;
            let net = IpNet::new(address.parse().ok()?, length.parse().ok()?).ok()?;
            (net.trunc() == net).then_some(net)
        };
        let parse = || -> Option<Self> {
            let (v4, v6) = match text.split_once('&') {
                Some((v4, v6)) => (v4, Some(v6)),
                None => (text, None),
            };
            let IpNet::V4(v4) = net(v4)? else { return None };
            let v6 = match v6.map(net) {
                None => None,
                Some(Some(IpNet::V6(v6))) => Some(v6),
                Some(_) => return None,
            };
            Some(Self { v4, v6 })
        };
        parse().ok_or_else(|| NoSubnet(text.to_owned()))
    }
}

/// How packets get from node to node, as flannel's configuration says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backend {
    /// Routes via the peers' addresses.
    HostGw,
    /// VXLAN.
    Vxlan {
        /// Network identifier.
        vni: Vni,
        /// UDP port.
        port: u16,
        /// Plain routes to peers on the same link.
        direct_routing: bool,
    },
}

/// The range of one family from which nodes take subnets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range<N, A> {
    /// The whole network.
    pub network: N,
    /// Prefix length of a subnet.
    pub subnet_len: u8,
    /// The first subnet.
    pub first: A,
    /// The last subnet.
    pub last: A,
}

/// Flannel's configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NetworkConfig {
    /// IPv4 range.
    pub v4: Range<Ipv4Net, Ipv4Addr>,
    /// IPv6 range, where it is on.
    pub v6: Option<Range<Ipv6Net, Ipv6Addr>>,
    /// How packets get from node to node.
    pub backend: Backend,
}

impl NetworkConfig {
    /// Reads flannel's configuration, with the defaults and the checks that flannel has for etcd. `source` is its key.
    pub fn parse(source: &str, text: &[u8]) -> Result<Self, Mistakes> {
        let mut mistakes = Mistakes::default();
        let Some(map) = object(source, text, &mut mistakes) else { return Err(mistakes) };
        let mut fields = Fields { source, path: "", map: &map, mistakes: &mut mistakes };
        if !fields.boolean("EnableIPv4", true) {
            fields.wrong("EnableIPv4", "false", "true: flannel's layout of etcd has no subnet without IPv4");
        }
        let v4 = fields.range_v4();
        let v6 = fields.boolean("EnableIPv6", false).then(|| fields.range_v6());
        let backend = fields.backend();
        match (v4, v6, backend) {
            (Some(v4), None, Some(backend)) if mistakes.is_empty() => Ok(Self { v4, v6: None, backend }),
            (Some(v4), Some(Some(v6)), Some(backend)) if mistakes.is_empty() => {
                Ok(Self { v4, v6: Some(v6), backend })
            }
            _ => Err(mistakes),
        }
    }

    /// The whole network of a family.
    pub fn network(&self, v6: bool) -> Option<IpNet> {
        if v6 { self.v6.map(|range| range.network.into()) } else { Some(self.v4.network.into()) }
    }

    /// Whether a node may take this subnet; an IPv6 part may be missing.
    pub fn fits(&self, subnet: &Subnet) -> bool {
        let v4 = subnet.v4.prefix_len() == self.v4.subnet_len
            && (self.v4.first..=self.v4.last).contains(&subnet.v4.addr());
        let v6 = match (subnet.v6, self.v6) {
            (None, _) => true,
            (Some(v6), Some(range)) => {
                v6.prefix_len() == range.subnet_len && (range.first..=range.last).contains(&v6.addr())
            }
            (Some(_), None) => false,
        };
        v4 && v6
    }

    /// The subnet of IPv4 with this number, counted from the first.
    pub fn nth_v4(&self, number: u64) -> Option<Ipv4Net> {
        let offset = u32::try_from(number).ok()?.checked_shl(u32::from(32 - self.v4.subnet_len))?;
        let address = u32::from(self.v4.first).checked_add(offset).map(Ipv4Addr::from)?;
        (address <= self.v4.last).then(|| Ipv4Net::new(address, self.v4.subnet_len).ok()).flatten()
    }

    /// How many subnets of IPv4 there are.
    pub fn count_v4(&self) -> u64 {
        let span = u32::from(self.v4.last).saturating_sub(u32::from(self.v4.first));
        u64::from(span >> (32 - self.v4.subnet_len)) + 1
    }

    /// The subnet of IPv6 with this number, counted from the first.
    pub fn nth_v6(&self, number: u64) -> Option<Ipv6Net> {
        let range = self.v6?;
        let shift = u32::from(128 - range.subnet_len);
        let offset =
            u128::from(number).checked_shl(shift).filter(|offset| offset >> shift == u128::from(number))?;
        let address = u128::from(range.first).checked_add(offset).map(Ipv6Addr::from)?;
        (address <= range.last).then(|| Ipv6Net::new(address, range.subnet_len).ok()).flatten()
    }

    /// How many subnets of IPv6 there are; saturates.
    pub fn count_v6(&self) -> u64 {
        let Some(range) = self.v6 else { return 0 };
        let span = u128::from(range.last).saturating_sub(u128::from(range.first));
        u64::try_from(span >> (128 - range.subnet_len)).unwrap_or(u64::MAX).saturating_add(1)
    }
}

impl Fields<'_> {
    fn range_v4(&mut self) -> Option<Range<Ipv4Net, Ipv4Addr>> {
        let expected = "an IPv4 prefix (10.5.0.0/16)";
        let network: Ipv4Net = match self.text("Network", expected)? {
            Some(network) => Ipv4Net::trunc(&network),
            None => {
                self.wrong("Network", "nothing", expected);
                return None;
            }
        };
        let length = network.prefix_len();
        let subnet_len = self.subnet_len("SubnetLen", length, 28, 22, 24, 30)?;
        let step = 1u32 << (32 - subnet_len);
        let default_first = u32::from(network.network()).checked_add(step);
        let default_last = u32::from(network.broadcast()) - (step - 1);
        let mut bound = |name: &str, default: u32| -> Option<Ipv4Addr> {
            let given: Option<Ipv4Addr> = self.text(name, "an IPv4 address")?;
            let Some(given) = given.filter(|given| !given.is_unspecified()) else {
                return Some(default.into());
            };
            if !network.contains(&given) || u32::from(given) % step != 0 {
                self.wrong(name, given, format!("the first address of a /{subnet_len} in {network}"));
                return None;
            }
            Some(given)
        };
        let (first, last) = (bound("SubnetMin", default_first?), bound("SubnetMax", default_last));
        let (first, last) = self.in_order("SubnetMax", first?, last?)?;
        Some(Range { network, subnet_len, first, last })
    }

    fn range_v6(&mut self) -> Option<Range<Ipv6Net, Ipv6Addr>> {
        let expected = "an IPv6 prefix (fd00:5::/48)";
        let network: Ipv6Net = match self.text("IPv6Network", expected)? {
            Some(network) => Ipv6Net::trunc(&network),
            None => {
                self.wrong("IPv6Network", "nothing", expected);
                return None;
            }
        };
        let length = network.prefix_len();
        let subnet_len = self.subnet_len("IPv6SubnetLen", length, 124, 62, 64, 126)?;
        let step = 1u128 << (128 - subnet_len);
        let default_first = u128::from(network.network()).checked_add(step);
        let default_last = u128::from(network.broadcast()) - (step - 1);
        let mut bound = |name: &str, default: u128| -> Option<Ipv6Addr> {
            let given: Option<Ipv6Addr> = self.text(name, "an IPv6 address")?;
            let Some(given) = given.filter(|given| !given.is_unspecified()) else {
                return Some(default.into());
            };
            if !network.contains(&given) || u128::from(given) % step != 0 {
                self.wrong(name, given, format!("the first address of a /{subnet_len} in {network}"));
                return None;
            }
            Some(given)
        };
        let (first, last) = (bound("IPv6SubnetMin", default_first?), bound("IPv6SubnetMax", default_last));
        let (first, last) = self.in_order("IPv6SubnetMax", first?, last?)?;
        Some(Range { network, subnet_len, first, last })
    }

    fn in_order<A: Ord + fmt::Display>(&mut self, name: &str, first: A, last: A) -> Option<(A, A)> {
        if last < first {
            self.wrong(name, last, format!("an address not before the first subnet, {first}"));
            return None;
        }
        Some((first, last))
    }

    /// Prefix length of the subnets of a network: as given, or flannel's default.
    fn subnet_len(
        &mut self,
        name: &str,
        network: u8,
        smallest: u8,
        usual_up_to: u8,
        usual: u8,
        longest: u8,
    ) -> Option<u8> {
        let shortest = u64::from(network.max(6)) + 2;
        if network > smallest {
            let field = name.replace("SubnetLen", "Network");
            self.wrong(
                &field,
                format!("/{network}"),
                format!("a prefix of at most {smallest} bits: it holds four subnets"),
            );
            return None;
        }
        let expected =
            format!("a prefix length from {shortest} to {longest}: the network holds four subnets");
        match self.number(name, &expected, 0..=u64::from(longest))? {
            Some(length @ 1..) if length < shortest => {
                self.wrong(name, length, expected);
                None
            }
            Some(length @ 1..) => u8::try_from(length).ok(),
            // 0 is Go's "not given".
            _ if network <= usual_up_to => Some(usual),
            _ => Some(network + 2),
        }
    }

    fn backend(&mut self) -> Option<Backend> {
        let map = match field(self.map, "Backend") {
            None => {
                self.wrong("Backend", "nothing, which is udp", "a Backend of type vxlan or host-gw");
                return None;
            }
            Some(Value::Object(map)) => map,
            Some(other) => {
                self.wrong("Backend", other, "an object with a Type");
                return None;
            }
        };
        let mut fields = Fields { source: self.source, path: "Backend.", map, mistakes: self.mistakes };
        let expected = "vxlan or host-gw: Podway speaks no other backend of flannel's";
        match field(map, "Type").and_then(Value::as_str).map(str::to_ascii_lowercase).as_deref() {
            Some("host-gw") => Some(Backend::HostGw),
            Some("vxlan") => fields.vxlan(),
            other => {
                fields.wrong("Type", other.unwrap_or("nothing"), expected);
                None
            }
        }
    }

    fn vxlan(&mut self) -> Option<Backend> {
        let vni = self.number("VNI", "a VXLAN network identifier (1 to 16777215)", 0..=0x00ff_ffff);
        let port = self.number("Port", "a port from 0 (the kernel's, 8472) to 65535", 0..=0xffff);
        for (name, why) in [
            ("GBP", "false: Podway's VXLAN has no group policy"),
            ("Learning", "false: every address is told, none is learnt"),
        ] {
            if self.boolean(name, false) {
                self.wrong(name, "true", why);
            }
        }
        let direct_routing = self.boolean("DirectRouting", false);
        let vni = match vni?.map(u32::try_from) {
            None => Vni::DEFAULT,
            Some(number) => match number.ok().and_then(|number| Vni::try_from(number).ok()) {
                Some(vni) => vni,
                None => {
                    self.wrong("VNI", 0, "a VXLAN network identifier (1 to 16777215)");
                    return None;
                }
            },
        };
        let port = port?.and_then(|port| u16::try_from(port).ok()).filter(|port| *port != 0);
        Some(Backend::Vxlan { vni, port: port.unwrap_or(KERNEL_PORT), direct_routing })
    }
}

#[cfg(test)]
mod tests;
