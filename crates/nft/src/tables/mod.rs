//! The tables whose rules never change: the guard in front of pods, the masquerade behind them, and host ports.

mod guard;
mod masquerade;
mod ports;

pub use guard::{ALLOWED4, ALLOWED6, guard};
pub use masquerade::{HAIRPIN4, HAIRPIN6, Masquerade, masquerade};
pub use ports::{
    close_found, close_ports, describe_port, missing_ports, open_ports, pods_behind, ports, ports_id,
    serves_loopback,
};

use ipnet::IpNet;

use crate::object::{Element, Span};

/// Elements for prefixes of one family: merged where they overlap or touch, because an interval set takes no
/// overlaps.
fn prefixes<'a>(nets: impl IntoIterator<Item = &'a IpNet>, v4: bool) -> Vec<Element> {
    let nets: Vec<IpNet> = nets.into_iter().filter(|net| net.addr().is_ipv4() == v4).copied().collect();
    let mut merged = IpNet::aggregate(&nets);
    merged.sort_unstable();
    merged.into_iter().map(|net| Element::key(Span::net(net))).collect()
}
