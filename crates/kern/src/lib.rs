//! The only crate that touches the kernel: netlink, namespaces, sysctl.
//!
//! | module | what |
//! |---|---|
//! | [`ns`] | network, mount and UTS namespaces: make, pin, open, run code or a process in them |
//! | [`rtnl`] | NETLINK_ROUTE, blocking, batched and pipelined: links, addresses, routes, neighbours, next hops |
//! | [`monitor`] | what others change: links, addresses, routes, neighbours, next hops (async) |
//! | [`facts`] | one look at a node's interfaces, addresses and default routes (async) |
//! | [`fib`] | the trait through which a dataplane programs routes, for the kernel and for a stateful fake |
//! | [`conntrack`] | deletes connection tracking entries by address |
//! | [`icmp`] | asks another node's kernel for a sign of life |
//! | [`sysctl`] | reads and writes `/proc/sys` |
//! | [`nft`] | nftables transport |
//! | [`tc`] | traffic control: token buckets, redirection |
//! | [`tcp`] | socket options of BGP connections: signatures, TTL, class |
//! | [`wireguard`] | key, port and peers of WireGuard devices |
//! | [`xtables`] | reads the rules of `iptables-legacy` |
//!
//! Nothing here logs, and nothing here decides: callers say what they want and get a typed error that names
//! what was attempted. All `unsafe` of the workspace is in this crate, each block with its reason.
//!
//! A netlink socket belongs to the network namespace in which it was opened, for ever: open it with
//! [`ns::in_netns`] and use it from anywhere.

mod attributes;
pub mod conntrack;
mod error;
pub mod facts;
pub mod fib;
pub mod icmp;
pub mod monitor;
mod netlink;
pub mod nft;
pub mod ns;
pub mod rtnl;
mod sockaddr;
pub mod sysctl;
pub mod tc;
pub mod tcp;
pub mod wireguard;
pub mod xtables;

pub use error::{Errno, KernelError, MissingIsFine};
pub use netlink::refusals;
