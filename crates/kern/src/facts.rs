//! One look at a node's interfaces, addresses and default routes (async, through `rtnetlink`).
//!
//! For choosing and following the node's underlay address: small tables, looked at whole after each change.

use std::net::IpAddr;

use futures::{Stream, TryStreamExt as _};
use netlink_packet_route::AddressFamily;
use netlink_packet_route::route::RouteMessage;
use rtnetlink::RouteMessageBuilder;

use crate::KernelError;
use crate::rtnl::{self, AddressInfo, Link, Route, TABLE_MAIN};

/// A node's interfaces, addresses, and default routes of the main table, best first.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Facts {
    /// Interfaces.
    pub links: Vec<Link>,
    /// Addresses of interfaces.
    pub addresses: Vec<AddressInfo>,
    /// Default routes of both families, lowest metric first.
    pub default_routes: Vec<Route>,
}

impl Facts {
    /// The link with this index.
    pub fn link(&self, index: u32) -> Option<&Link> {
        self.links.iter().find(|link| link.index == index)
    }

    /// The interface of the best default route of a family.
    pub fn default_interface(&self, v6: bool) -> Option<u32> {
        self.default_routes.iter().find(|r| r.destination.addr().is_ipv6() == v6).and_then(|r| r.interface)
    }

    /// The interface that has `address`.
    pub fn interface_of(&self, address: IpAddr) -> Option<u32> {
        self.addresses.iter().find(|info| info.address.addr() == address).map(|info| info.index)
    }
}

/// Looks, in the network namespace of the thread that polls first (tokio's current-thread runtime: the caller's).
pub async fn read() -> Result<Facts, KernelError> {
    let (connection, handle, _) =
        rtnetlink::new_connection().map_err(|e| KernelError::io("open a netlink socket", e))?;
    let connection = tokio::spawn(connection);
    let facts = read_with(&handle).await;
    connection.abort();
    facts
}

async fn read_with(handle: &rtnetlink::Handle) -> Result<Facts, KernelError> {
    let links = all(handle.link().get().execute(), "list links").await?;
    let addresses = all(handle.address().get().execute(), "list addresses").await?;
    let mut default_routes = Vec::new();
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let mut query = RouteMessageBuilder::<IpAddr>::new().build();
        query.header.address_family = family;
        query.header.destination_prefix_length = 0;
        let found: Vec<RouteMessage> = all(handle.route().get(query).execute(), "list routes").await?;
        default_routes.extend(
            found
                .into_iter()
                .filter(|route| route.header.destination_prefix_length == 0)
                .filter_map(rtnl::decode_route)
                .filter(|route| route.table == TABLE_MAIN && route.interface.is_some()),
        );
    }
    default_routes.sort_by_key(|route| route.metric);
    Ok(Facts {
        links: links.into_iter().map(rtnl::decode_link_message).collect(),
        addresses: addresses.into_iter().filter_map(rtnl::decode_address).collect(),
        default_routes,
    })
}

async fn all<T>(
    stream: impl Stream<Item = Result<T, rtnetlink::Error>>,
    attempted: &str,
) -> Result<Vec<T>, KernelError> {
    stream.try_collect().await.map_err(|e| match e {
        rtnetlink::Error::NetlinkError(message) => KernelError::io(attempted, message.to_io()),
        other => KernelError::malformed(attempted, other),
    })
}
