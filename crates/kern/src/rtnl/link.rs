//! Links: veth, vxlan, ipip, wireguard, bridge, ifb; and what is read back.

use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsRawFd as _, BorrowedFd};

use netlink_packet_core::{DefaultNla, NLA_F_NESTED};
use netlink_packet_route::AddressFamily;
use netlink_packet_route::link::{
    AfSpecInet, AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoBridge, InfoData, InfoIpTunnel, InfoKind,
    InfoVeth, InfoVxlan, LinkAttribute, LinkFlags, LinkInfo, LinkMessage, State,
};
use podway_model::ids::MacAddr;

/// A link, by index or by name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum LinkRef {
    /// Interface index.
    Index(u32),
    /// Interface name.
    Name(String),
}

impl From<u32> for LinkRef {
    fn from(index: u32) -> Self {
        Self::Index(index)
    }
}
impl From<&str> for LinkRef {
    fn from(name: &str) -> Self {
        Self::Name(name.to_owned())
    }
}
impl std::fmt::Display for LinkRef {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Index(index) => write!(f, "link {index}"),
            Self::Name(name) => write!(f, "link {name}"),
        }
    }
}

/// A link as the kernel shows it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Link {
    /// Interface index.
    pub index: u32,
    /// Interface name.
    pub name: String,
    /// Kind (`veth`, `vxlan`, `bridge`, ...); none: a physical device or loopback.
    pub kind: Option<String>,
    /// MTU in bytes.
    pub mtu: u32,
    /// Ethernet address, where it has one.
    pub mac: Option<MacAddr>,
    /// Whether it is administratively up (IFF_UP).
    pub up: bool,
    /// Whether it has a carrier (IFF_LOWER_UP).
    pub lower_up: bool,
    /// Whether the kernel has put it into operation since it has a carrier (IF_OPER_UP): until then it drops what
    /// it is to send. (IFF_RUNNING would not tell: it is also set while nobody has looked yet.)
    pub operational: bool,
    /// Whether it is the loopback device.
    pub loopback: bool,
    /// Interface group.
    pub group: u32,
    /// Alias.
    pub alias: Option<String>,
    /// Index of the bridge or bond that it belongs to.
    pub master: Option<u32>,
    /// Index of the peer (veth) or lower device, in its own namespace.
    pub link: Option<u32>,
    /// Tunnel parameters of a `vxlan` device.
    pub vxlan: Option<VxlanParams>,
    /// Tunnel parameters of an `ipip` device.
    pub ipip: Option<IpipParams>,
    /// Transmit queues.
    pub tx_queues: u32,
}

/// Parameters of a VXLAN device that cannot be changed after its creation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VxlanParams {
    /// Network identifier.
    pub vni: u32,
    /// UDP port, source and destination.
    pub port: u16,
    /// Underlay address of this end.
    pub local: Option<IpAddr>,
    /// Whether the device learns from packets. Ours never does.
    pub learning: bool,
}

/// Ends of an IPIP device. Without a remote one it is a link to everybody: a route's gateway is the other end.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct IpipParams {
    /// Underlay address of this end.
    pub local: Option<Ipv4Addr>,
    /// Underlay address of the other end.
    pub remote: Option<Ipv4Addr>,
}

/// One end of a new veth pair. Both are made down: the peer cannot come up before the pair is whole (ENOTCONN).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct VethEnd {
    /// Name.
    pub name: String,
    /// Index; none: the kernel chooses.
    pub index: Option<u32>,
    /// Ethernet address; none: random.
    pub mac: Option<MacAddr>,
    /// MTU in bytes.
    pub mtu: Option<u32>,
    /// Interface group; 0 is the default group.
    pub group: u32,
    /// Transmit and receive queues, each; none: one.
    pub queues: Option<u32>,
}

/// What to change on a link. `None` leaves things as they are.
///
/// The kernel takes alias and address generation mode only in a change, never at creation, and applies `up`
/// before the mode: where no link-local address must appear, change the mode first and set it up in a second
/// request (both can go in one batch).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LinkChange {
    /// Up or down.
    pub up: Option<bool>,
    /// MTU in bytes.
    pub mtu: Option<u32>,
    /// Ethernet address.
    pub mac: Option<MacAddr>,
    /// Alias.
    pub alias: Option<String>,
    /// Interface group.
    pub group: Option<u32>,
    /// New name (the link must be given by index).
    pub name: Option<String>,
    /// Index of the bridge to join; 0 leaves it.
    pub master: Option<u32>,
    /// `true`: the kernel makes no IPv6 link-local address (addrgenmode none).
    pub no_link_local: Option<bool>,
    /// IPv4 settings: the same as writing the sysctls, without opening a file for each.
    pub ipv4: Vec<(Ipv4Setting, u32)>,
}

/// An IPv4 setting of an interface: `IPV4_DEVCONF_*` of `linux/ip.h`, the sysctl of the same name below
/// `net/ipv4/conf/<interface>/`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ipv4Setting {
    /// `proxy_arp`
    ProxyArp = 3,
    /// `accept_redirects`
    AcceptRedirects = 4,
    /// `send_redirects`
    SendRedirects = 6,
    /// `rp_filter`
    RpFilter = 8,
}

impl Ipv4Setting {
    /// Name of the sysctl.
    pub fn sysctl_name(self) -> &'static str {
        match self {
            Self::ProxyArp => "proxy_arp",
            Self::AcceptRedirects => "accept_redirects",
            Self::SendRedirects => "send_redirects",
            Self::RpFilter => "rp_filter",
        }
    }
}

/// A new VXLAN device. Learning is off; it is made down.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VxlanSpec {
    /// Name.
    pub name: String,
    /// Network identifier.
    pub vni: u32,
    /// UDP port, source and destination.
    pub port: u16,
    /// Underlay address of this end.
    pub local: IpAddr,
    /// Ethernet address.
    pub mac: MacAddr,
    /// MTU in bytes.
    pub mtu: u32,
}

pub(super) fn by_ref(link: &LinkRef) -> LinkMessage {
    let mut message = LinkMessage::default();
    match link {
        LinkRef::Index(index) => message.header.index = *index,
        LinkRef::Name(name) => message.attributes.push(LinkAttribute::IfName(name.clone())),
    }
    message
}

fn veth_end(end: &VethEnd) -> LinkMessage {
    let mut message = by_ref(&LinkRef::Name(end.name.clone()));
    message.header.index = end.index.unwrap_or(0);
    let attributes = &mut message.attributes;
    attributes.extend(end.mac.map(|mac| LinkAttribute::Address(mac.0.to_vec())));
    attributes.extend(end.mtu.map(LinkAttribute::Mtu));
    if end.group != 0 {
        attributes.push(LinkAttribute::Group(end.group));
    }
    // Never left to the kernel (veth_init_queues): it would make one for each processor, then turn off all but the first, and
    // wait for a grace period of RCU (20 ms on a busy machine) with the lock held that every change to a link needs.
    let queues = end.queues.unwrap_or(1);
    attributes.extend([LinkAttribute::NumTxQueues(queues), LinkAttribute::NumRxQueues(queues)]);
    message
}

pub(super) fn veth(host: &VethEnd, peer: &VethEnd, peer_netns: Option<BorrowedFd<'_>>) -> LinkMessage {
    let mut peer = veth_end(peer);
    peer.attributes.extend(peer_netns.map(|fd| LinkAttribute::NetNsFd(fd.as_raw_fd())));
    let mut message = veth_end(host);
    message.attributes.push(LinkAttribute::LinkInfo(vec![
        LinkInfo::Kind(InfoKind::Veth),
        LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
    ]));
    message
}

pub(super) fn vxlan(spec: &VxlanSpec) -> LinkMessage {
    let mut data = vec![
        InfoVxlan::Id(spec.vni),
        InfoVxlan::Port(spec.port),
        InfoVxlan::Learning(false),
        match spec.local {
            IpAddr::V4(local) => InfoVxlan::Local(local),
            IpAddr::V6(local) => InfoVxlan::Local6(local),
        },
    ];
    if spec.local.is_ipv6() {
        // Accepted without a checksum, as earlier versions sent it (RFC 6935); sent with one: others' devices, flannel's
        // among them, accept nothing else.
        data.push(InfoVxlan::UDPZeroCsumRX(true));
    }
    let mut message = by_ref(&LinkRef::Name(spec.name.clone()));
    message.attributes.extend([
        LinkAttribute::Address(spec.mac.0.to_vec()),
        LinkAttribute::Mtu(spec.mtu),
        LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Vxlan), LinkInfo::Data(InfoData::Vxlan(data))]),
    ]);
    message
}

pub(super) fn ipip(name: &str, local: Ipv4Addr, mtu: u32) -> LinkMessage {
    let mut message = by_ref(&LinkRef::Name(name.to_owned()));
    message.attributes.push(LinkAttribute::Mtu(mtu));
    // An outer packet is never larger than what its inner one was told: it may not be fragmented either.
    let data = vec![InfoIpTunnel::Local(local.into()), InfoIpTunnel::PMtuDisc(true)];
    message.attributes.push(LinkAttribute::LinkInfo(vec![
        LinkInfo::Kind(InfoKind::IpIp),
        LinkInfo::Data(InfoData::IpTunnel(data)),
    ]));
    message
}

pub(super) fn wireguard(name: &str, mtu: u32) -> LinkMessage {
    let mut message = by_ref(&LinkRef::Name(name.to_owned()));
    message.attributes.push(LinkAttribute::Mtu(mtu));
    message.attributes.push(LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Wireguard)]));
    message
}

pub(super) fn ifb(name: &str, mtu: u32) -> LinkMessage {
    let mut message = by_ref(&LinkRef::Name(name.to_owned()));
    message.attributes.push(LinkAttribute::Mtu(mtu));
    message.attributes.push(LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Ifb)]));
    message
}

pub(super) fn bridge(name: &str) -> LinkMessage {
    let mut message = by_ref(&LinkRef::Name(name.to_owned()));
    message.attributes.push(LinkAttribute::LinkInfo(vec![
        LinkInfo::Kind(InfoKind::Bridge),
        LinkInfo::Data(InfoData::Bridge(vec![InfoBridge::StpState(
            netlink_packet_route::link::BridgeStpState::Disabled,
        )])),
    ]));
    message
}

pub(super) fn change(link: &LinkRef, change: &LinkChange) -> LinkMessage {
    let mut message = by_ref(link);
    if let Some(up) = change.up {
        message.header.flags = if up { LinkFlags::Up } else { LinkFlags::empty() };
        message.header.change_mask = LinkFlags::Up;
    }
    let attributes = &mut message.attributes;
    attributes.extend(change.mtu.map(LinkAttribute::Mtu));
    attributes.extend(change.mac.map(|mac| LinkAttribute::Address(mac.0.to_vec())));
    attributes.extend(change.alias.clone().map(LinkAttribute::IfAlias));
    attributes.extend(change.group.map(LinkAttribute::Group));
    attributes.extend(change.master.map(LinkAttribute::Controller));
    attributes.extend(change.name.clone().map(LinkAttribute::IfName));
    let mut families = vec![];
    if !change.ipv4.is_empty() {
        families.push(AfSpecUnspec::Inet(vec![AfSpecInet::Other(ipv4_settings(&change.ipv4))]));
    }
    if let Some(none) = change.no_link_local {
        let mode = if none { In6AddrGenMode::None } else { In6AddrGenMode::Eui64 };
        families.push(AfSpecUnspec::Inet6(vec![AfSpecInet6::AddrGenMode(mode)]));
    }
    if !families.is_empty() {
        attributes.push(LinkAttribute::AfSpecUnspec(families));
    }
    message
}

/// `IFLA_INET_CONF`: one attribute per setting, whose type is its number.
fn ipv4_settings(settings: &[(Ipv4Setting, u32)]) -> DefaultNla {
    const IFLA_INET_CONF: u16 = 1;
    const LENGTH: u16 = 8;
    let attribute = |(setting, value): &(Ipv4Setting, u32)| {
        let mut bytes = [0; LENGTH as usize];
        bytes[..2].copy_from_slice(&LENGTH.to_ne_bytes());
        bytes[2..4].copy_from_slice(&(*setting as u16).to_ne_bytes());
        bytes[4..].copy_from_slice(&value.to_ne_bytes());
        bytes
    };
    DefaultNla::new(IFLA_INET_CONF | NLA_F_NESTED, settings.iter().flat_map(attribute).collect())
}

/// A dump of one interface group only (IFLA_GROUP is no filter of the kernel's: the caller compares), without
/// statistics (RTEXT_FILTER_SKIP_STATS), which make up most of an answer.
pub(super) fn query(link: Option<&LinkRef>) -> LinkMessage {
    const IFLA_EXT_MASK: u16 = 29;
    const RTEXT_FILTER_SKIP_STATS: u32 = 1 << 3;
    let mut message = link.map(by_ref).unwrap_or_default();
    message.header.interface_family = AddressFamily::Unspec;
    message.attributes.push(LinkAttribute::Other(DefaultNla::new(
        IFLA_EXT_MASK,
        RTEXT_FILTER_SKIP_STATS.to_ne_bytes().to_vec(),
    )));
    message
}

pub(crate) fn decode(message: LinkMessage) -> Link {
    let flags = message.header.flags;
    let mut link = Link {
        index: message.header.index,
        up: flags.contains(LinkFlags::Up),
        lower_up: flags.contains(LinkFlags::LowerUp),
        loopback: flags.contains(LinkFlags::Loopback),
        ..Link::default()
    };
    for attribute in message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name = name,
            LinkAttribute::Mtu(mtu) => link.mtu = mtu,
            LinkAttribute::Address(mac) => link.mac = <[u8; 6]>::try_from(mac.as_slice()).ok().map(MacAddr),
            LinkAttribute::Group(group) => link.group = group,
            LinkAttribute::IfAlias(alias) => link.alias = Some(alias),
            LinkAttribute::Controller(master) => link.master = Some(master),
            LinkAttribute::Link(peer) => link.link = Some(peer),
            LinkAttribute::OperState(state) => link.operational = state == State::Up,
            LinkAttribute::NumTxQueues(queues) => link.tx_queues = queues,
            LinkAttribute::LinkInfo(infos) => {
                for info in infos {
                    match info {
                        LinkInfo::Kind(kind) => link.kind = Some(kind.to_string()),
                        LinkInfo::Data(InfoData::Vxlan(data)) => link.vxlan = Some(decode_vxlan(&data)),
                        // The same form serves ipip, sit and ip6tnl; the kind tells them apart.
                        LinkInfo::Data(InfoData::IpTunnel(data)) => link.ipip = Some(decode_ipip(&data)),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    link
}

fn decode_ipip(data: &[InfoIpTunnel]) -> IpipParams {
    let set = |ip: &IpAddr| match ip {
        IpAddr::V4(ip) if !ip.is_unspecified() => Some(*ip),
        _ => None,
    };
    let mut params = IpipParams::default();
    for item in data {
        match item {
            InfoIpTunnel::Local(local) => params.local = set(local),
            InfoIpTunnel::Remote(remote) => params.remote = set(remote),
            _ => {}
        }
    }
    params
}

fn decode_vxlan(data: &[InfoVxlan]) -> VxlanParams {
    let mut params = VxlanParams { vni: 0, port: 0, local: None, learning: false };
    for item in data {
        match item {
            InfoVxlan::Id(vni) => params.vni = *vni,
            InfoVxlan::Port(port) => params.port = *port,
            InfoVxlan::Local(local) => params.local = Some(IpAddr::V4(*local)),
            InfoVxlan::Local6(local) => params.local = Some(IpAddr::V6(*local)),
            InfoVxlan::Learning(on) => params.learning = *on,
            _ => {}
        }
    }
    params
}
