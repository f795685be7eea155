//! The trait through which a dataplane programs routes, for the kernel and for a stateful fake.
//!
//! The kernel deletes without telling, and so does [`FakeKernel`]:
//!
//! | done | gone with it |
//! |---|---|
//! | a next-hop object deleted | the routes that use it (IPv4 without RTM_DELROUTE) |
//! | a link set down | its next-hop objects and their routes, its routes, neighbours, IPv6 addresses |
//! | a link deleted | all of that, and its addresses and forwarding entries |
//! | an address deleted | routes with it as source; with the last IPv4 address the link's own IPv4 routes |

mod fake;

use ipnet::IpNet;

use crate::KernelError;
use crate::rtnl::{FdbEntry, Link, Neighbour, NextHopInfo, Request, Route, RouteFilter, Rtnl, TABLE_MAIN};
use crate::sysctl::Sysctl;
use crate::wireguard::{Wireguard, WireguardChange, WireguardDevice};

pub use fake::FakeKernel;

/// What a dataplane needs of a kernel. Blocking.
pub trait Kernel {
    /// All links.
    fn links(&mut self) -> Result<Vec<Link>, KernelError>;
    /// Addresses of an interface.
    fn addresses(&mut self, interface: u32) -> Result<Vec<IpNet>, KernelError>;
    /// Permanent neighbour entries of an interface.
    fn neighbours(&mut self, interface: u32) -> Result<Vec<Neighbour>, KernelError>;
    /// Forwarding entries of a VXLAN device.
    fn fdb(&mut self, interface: u32) -> Result<Vec<FdbEntry>, KernelError>;
    /// All next-hop objects, whoever made them.
    fn next_hops(&mut self) -> Result<Vec<NextHopInfo>, KernelError>;
    /// Routes of the main table made by `protocol`.
    fn routes(&mut self, protocol: u8) -> Result<Vec<Route>, KernelError>;
    /// Makes changes, in order; one result per request, and a refusal does not keep the rest from being tried.
    fn apply(&mut self, requests: &[Request<'_>]) -> Result<Vec<Result<(), KernelError>>, KernelError>;
    /// Key, port and peers of a WireGuard device.
    fn wireguard(&mut self, interface: u32) -> Result<WireguardDevice, KernelError>;
    /// Changes key, port and peers of a WireGuard device.
    fn set_wireguard(&mut self, interface: u32, change: &WireguardChange) -> Result<(), KernelError>;
    /// Reads a sysctl.
    fn read_sysctl(&mut self, sysctl: &Sysctl) -> Result<String, KernelError>;
    /// Writes a sysctl.
    fn write_sysctl(&mut self, sysctl: &Sysctl, value: &str) -> Result<(), KernelError>;
}

/// The kernel itself, in one network namespace.
#[derive(Debug)]
pub struct NetlinkKernel {
    rtnl: Rtnl,
    /// Opened when there is a device to talk about: many kernels have none.
    wireguard: Option<Wireguard>,
}

impl NetlinkKernel {
    /// In the calling thread's network namespace. Sysctls and WireGuard devices are those of whichever thread calls
    /// later: call from threads of the same namespace.
    pub fn open() -> Result<Self, KernelError> {
        Rtnl::open().map(|rtnl| Self { rtnl, wireguard: None })
    }

    /// Port id of its socket: notifications of its own changes carry it.
    pub fn port(&self) -> u32 {
        self.rtnl.port()
    }

    fn open_wireguard(&mut self) -> Result<&mut Wireguard, KernelError> {
        match &mut self.wireguard {
            Some(open) => Ok(open),
            none => Ok(none.insert(Wireguard::open()?)),
        }
    }

    /// Its socket.
    pub fn rtnl(&mut self) -> &mut Rtnl {
        &mut self.rtnl
    }
}

impl Kernel for NetlinkKernel {
    fn links(&mut self) -> Result<Vec<Link>, KernelError> {
        self.rtnl.links()
    }

    fn addresses(&mut self, interface: u32) -> Result<Vec<IpNet>, KernelError> {
        Ok(self.rtnl.addresses(Some(interface))?.into_iter().map(|info| info.address).collect())
    }

    fn neighbours(&mut self, interface: u32) -> Result<Vec<Neighbour>, KernelError> {
        self.rtnl.neighbours(interface)
    }

    fn fdb(&mut self, interface: u32) -> Result<Vec<FdbEntry>, KernelError> {
        self.rtnl.fdb(interface)
    }

    fn next_hops(&mut self) -> Result<Vec<NextHopInfo>, KernelError> {
        self.rtnl.next_hops()
    }

    fn routes(&mut self, protocol: u8) -> Result<Vec<Route>, KernelError> {
        self.rtnl.routes(RouteFilter { table: Some(TABLE_MAIN), protocol: Some(protocol) })
    }

    fn apply(&mut self, requests: &[Request<'_>]) -> Result<Vec<Result<(), KernelError>>, KernelError> {
        self.rtnl.batch(requests)
    }

    fn wireguard(&mut self, interface: u32) -> Result<WireguardDevice, KernelError> {
        self.open_wireguard()?.device(interface)
    }

    fn set_wireguard(&mut self, interface: u32, change: &WireguardChange) -> Result<(), KernelError> {
        self.open_wireguard()?.set(interface, change)
    }

    fn read_sysctl(&mut self, sysctl: &Sysctl) -> Result<String, KernelError> {
        sysctl.read()
    }

    fn write_sysctl(&mut self, sysctl: &Sysctl, value: &str) -> Result<(), KernelError> {
        sysctl.write(value)
    }
}
