//! WireGuard devices over generic netlink (`include/uapi/linux/wireguard.h`): key, port, peers. The device itself is
//! a link ([`crate::rtnl::Request::AddWireguard`]), and all cryptography is the kernel's.

mod wire;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::SocketAddr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use ipnet::IpNet;
use podway_model::ids::WireguardKey;

use crate::netlink::{Connection, Message};
use crate::rtnl::{Request, Rtnl};
use crate::{KernelError, ns};

/// Name of the device that [`public_key`] makes, in a namespace of its own.
const PROBE: &str = "probe";

/// A private key. Its text never shows in messages.
#[derive(Clone, PartialEq, Eq)]
pub struct PrivateKey([u8; 32]);

impl PrivateKey {
    /// A key of 32 random bytes. Three bits are fixed, as the kernel does it: so what is read back is equal.
    pub fn from_random(mut bytes: [u8; 32]) -> Self {
        bytes[0] &= 0xf8;
        bytes[31] = bytes[31] & 0x7f | 0x40;
        Self(bytes)
    }

    /// Reads what [`PrivateKey::to_base64`] or `wg genkey` wrote.
    pub fn from_base64(text: &str) -> Option<Self> {
        let bytes = BASE64.decode(text.trim()).ok()?;
        <[u8; 32]>::try_from(bytes).ok().map(Self::from_random)
    }

    /// As `wg genkey` writes it.
    pub fn to_base64(&self) -> String {
        BASE64.encode(self.0)
    }

    /// Its bytes.
    pub fn bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PrivateKey(…)")
    }
}

/// A WireGuard device as the kernel shows it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WireguardDevice {
    /// Its key; none: it is mute.
    pub private_key: Option<PrivateKey>,
    /// The public part.
    pub public_key: Option<WireguardKey>,
    /// UDP port.
    pub port: u16,
    /// Its peers.
    pub peers: BTreeMap<WireguardKey, WireguardPeer>,
}

/// A peer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WireguardPeer {
    /// Where packets to it are sent. The kernel changes it when an authentic packet comes from elsewhere.
    pub endpoint: Option<SocketAddr>,
    /// Seconds between signs of life; 0: none.
    pub keepalive_seconds: u16,
    /// What is sent to it, and the only sources that it may send from. A prefix belongs to one peer of a device.
    pub allowed: BTreeSet<IpNet>,
}

/// What to change on a device. `None` leaves things as they are.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WireguardChange {
    /// Its key.
    pub private_key: Option<PrivateKey>,
    /// UDP port.
    pub port: Option<u16>,
    /// Peers, in order.
    pub peers: Vec<(WireguardKey, PeerChange)>,
}

/// What to do with a peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PeerChange {
    /// Makes or changes it. Prefixes move here from the peer that has them.
    Set {
        /// All of it.
        peer: WireguardPeer,
        /// Whether prefixes that are not listed are taken from it.
        exactly: bool,
    },
    /// Removes it with its prefixes.
    Remove,
}

impl WireguardChange {
    /// Whether nothing is to be changed.
    pub fn is_empty(&self) -> bool {
        self.private_key.is_none() && self.port.is_none() && self.peers.is_empty()
    }
}

impl WireguardDevice {
    /// A device with many peers is told in several pieces.
    fn take_piece(&mut self, piece: Self) {
        self.private_key = piece.private_key.or(self.private_key.take());
        self.public_key = piece.public_key.or(self.public_key);
        self.port = self.port.max(piece.port);
        for (key, peer) in piece.peers {
            self.take_peer(key, peer);
        }
    }

    /// A peer with many prefixes goes on in another entry.
    fn take_peer(&mut self, key: WireguardKey, peer: WireguardPeer) {
        match self.peers.get_mut(&key) {
            Some(there) => there.allowed.extend(peer.allowed),
            None => drop(self.peers.insert(key, peer)),
        }
    }

    /// What the device is after a change that the kernel took, its public key aside.
    pub fn apply(&mut self, change: &WireguardChange) {
        if let Some(key) = &change.private_key {
            self.private_key = Some(key.clone());
        }
        self.port = change.port.unwrap_or(self.port);
        for (key, what) in &change.peers {
            let PeerChange::Set { peer, exactly } = what else {
                self.peers.remove(key);
                continue;
            };
            for (_, other) in self.peers.iter_mut().filter(|(other, _)| *other != key) {
                other.allowed.retain(|net| !peer.allowed.contains(net));
            }
            let entry = self.peers.entry(*key).or_default();
            let mut allowed = std::mem::replace(entry, peer.clone()).allowed;
            if !exactly {
                entry.allowed.append(&mut allowed);
            }
        }
    }
}

/// A conversation with WireGuard in the network namespace in which it was opened.
#[derive(Debug)]
pub struct Wireguard {
    connection: Connection,
    family: u16,
}

impl Wireguard {
    /// Opens one in the calling thread's network namespace.
    ///
    /// # Errors
    /// The kernel has no WireGuard, or its module is not loaded: making a device loads it.
    pub fn open() -> Result<Self, KernelError> {
        let mut connection = Connection::open(netlink_sys::protocols::NETLINK_GENERIC)?;
        let attempted = "look for WireGuard in the kernel";
        let found =
            connection.query(wire::family_query(), attempted, |_, payload| Ok(wire::read_family(payload)))?;
        match found.first() {
            Some(family) => Ok(Self { connection, family: *family }),
            None => Err(KernelError::malformed(attempted, "no family number")),
        }
    }

    /// Reads a device.
    pub fn device(&mut self, interface: u32) -> Result<WireguardDevice, KernelError> {
        let attempted = format!("read wireguard device {interface}");
        let mut device = WireguardDevice::default();
        let query = wire::device_query(interface);
        let pieces = self.connection.dump(self.family, &query, &attempted, |_, payload| {
            wire::read_device(payload)
                .map(Some)
                .ok_or_else(|| KernelError::malformed(&*attempted, "an attribute is cut off"))
        })?;
        for piece in pieces {
            device.take_piece(piece);
        }
        Ok(device)
    }

    /// Changes a device, in as many messages as it takes.
    ///
    /// # Errors
    /// The first refusal; what came before has happened, the rest was tried all the same.
    pub fn set(&mut self, interface: u32, change: &WireguardChange) -> Result<(), KernelError> {
        let attempted = format!("set wireguard device {interface}");
        let messages: Vec<Message> = wire::changes(interface, change)
            .into_iter()
            .map(|payload| Message { kind: self.family, flags: 0, payload })
            .collect();
        let results = self.connection.batch(&messages)?;
        results.into_iter().find_map(Result::err).map_or(Ok(()), |refusal| Err(refusal.into_error(attempted)))
    }
}

/// The public part of a key, as the kernel computes it: on a device in a namespace that ends with the call. So it also
/// tells whether this kernel has WireGuard, and loads the module.
///
/// # Errors
/// No namespace or device can be made.
pub fn public_key(private_key: &PrivateKey) -> Result<WireguardKey, KernelError> {
    let compute = || {
        let mut rtnl = Rtnl::open()?;
        rtnl.run(Request::AddWireguard { name: PROBE.to_owned(), mtu: 1420 })?;
        let index = rtnl.link(PROBE)?.map_or(0, |link| link.index);
        let mut wireguard = Wireguard::open()?;
        let private_key = Some(private_key.clone());
        wireguard.set(index, &WireguardChange { private_key, ..WireguardChange::default() })?;
        let public_key = wireguard.device(index)?.public_key;
        public_key.ok_or_else(|| KernelError::malformed("read a public key of WireGuard", "there is none"))
    };
    ns::in_new_netns(compute).map_err(|e| KernelError::io("make a network namespace", e))?
}
