//! The underlay: a bridge that joins the nodes, and a router to the outside world.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Context as _, Result};

use super::Addresses;
use crate::echo::{Echo, EchoRuntime};
use crate::mounts;
use crate::place::Place;

/// The router's address on the nodes' link: their default gateway, and where etcd listens.
pub(super) const ROUTER_V4: Ipv4Addr = Ipv4Addr::new(172, 30, 0, 1);
const ROUTER_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x30, 0, 0, 0, 0, 0, 1);
const OUTSIDE: Addresses = Addresses {
    v4: Ipv4Addr::new(198, 51, 100, 10),
    v6: Ipv6Addr::new(0x2001, 0xdb8, 0x64, 0, 0, 0, 0, 0x10),
};
/// Most nodes that the address plan has room for.
const MAX_NODES: usize = 60_000;

/// The bridge and router.
#[derive(Debug)]
pub struct Underlay {
    /// Its namespaces; etcd runs here.
    pub place: Place,
}

impl Underlay {
    /// Makes the bridge.
    pub fn new() -> Result<Self> {
        let place = Place::new("underlay")?;
        place.sysctl("net.ipv4.ip_forward", "1")?;
        place.sysctl("net.ipv6.conf.all.forwarding", "1")?;
        place.ip(&format!(
            "link add br0 type bridge mcast_snooping 0\n\
             link set br0 up\n\
             addr add {ROUTER_V4}/16 dev br0\n\
             addr add {ROUTER_V6}/64 dev br0 nodad\n"
        ))?;
        mounts::make_private(&place, &["/var/lib/etcd"])?;
        Ok(Self { place })
    }

    /// Connects a place as node number `index`; returns its addresses.
    pub fn join(&self, node: &Place, index: usize) -> Result<(Ipv4Addr, Ipv6Addr)> {
        anyhow::ensure!(index < MAX_NODES, "at most {MAX_NODES} nodes");
        let number = u16::try_from(index).context("node number")?;
        // 172.30.0.0/16 without the router's first ten addresses.
        let [high, low] = (number + 10).to_be_bytes();
        let v4 = Ipv4Addr::new(172, 30, high, low);
        let v6 = Ipv6Addr::new(0xfd00, 0x30, 0, 0, 0, 0, 0, number + 0x10);
        let (port, net) = (Self::port(node.name()), node.net_path());
        // A machine keeps its network card, and with it its address, over a reboot.
        self.place.ip(&format!(
            "link add {port} type veth peer name eth0 address 02:00:00:00:{high:02x}:{low:02x} netns {net}\n\
             link set {port} master br0 up\n"
        ))?;
        node.ip(&format!(
            "link set eth0 up\n\
             addr add {v4}/16 dev eth0\n\
             addr add {v6}/64 dev eth0 nodad\n\
             route add default via {ROUTER_V4}\n\
             route add default via {ROUTER_V6}\n"
        ))?;
        Ok((v4, v6))
    }

    /// Pulls a node's cable, or plugs it in again.
    pub fn set_cable(&self, node: &str, plugged: bool) -> Result<()> {
        let state = if plugged { "up" } else { "down" };
        self.place.ip(&format!("link set {} {state}\n", Self::port(node)))
    }

    /// Disconnects a node for good.
    pub fn leave(&self, node: &str) -> Result<()> {
        self.place.ip(&format!("link del {}\n", Self::port(node)))
    }

    fn port(node: &str) -> String {
        format!("to-{node}")
    }
}

/// The outside world: a server that reports the source address that it sees.
#[derive(Debug)]
pub struct Outside {
    /// Its namespaces.
    pub place: Place,
    _echo: Echo,
}

impl Outside {
    /// Name with which its server answers.
    pub const NAME: &str = "outside";

    /// Makes it and connects it behind the underlay's router.
    pub fn new(underlay: &Underlay, echo: &EchoRuntime) -> Result<Self> {
        let place = Place::new(Self::NAME)?;
        let net = place.net_path();
        underlay.place.ip(&format!(
            "link add to-outside type veth peer name eth0 netns {net}\n\
             link set to-outside up\n\
             addr add 198.51.100.1/24 dev to-outside\n\
             addr add 2001:db8:64::1/64 dev to-outside nodad\n"
        ))?;
        place.ip(&format!(
            "link set eth0 up\n\
             addr add {}/24 dev eth0\n\
             addr add {}/64 dev eth0 nodad\n\
             route add default via 198.51.100.1\n\
             route add default via 2001:db8:64::1\n",
            OUTSIDE.v4, OUTSIDE.v6
        ))?;
        let server = echo.serve(place.net(), Self::NAME)?;
        Ok(Self { place, _echo: server })
    }

    /// Its address of the same family as `other`.
    pub fn address_like(&self, other: IpAddr) -> IpAddr {
        OUTSIDE.like(other)
    }
}
