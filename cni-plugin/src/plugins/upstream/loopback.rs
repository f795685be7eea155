//! `loopback`: brings `lo` up in the container's namespace, whatever interface is asked for.

use std::path::Path;

use podway_kern::ns::NetNs;
use podway_kern::rtnl::{LinkChange, LinkRef, Request, Rtnl};
use serde_json::{Value, json};

use super::{passed_on, visit};
use crate::conf::Network;
use crate::env::Target;
use crate::error::{CniError, Code};
use crate::version::SpecVersion;

const NAME: &str = "lo";

fn set(up: bool) -> Result<(), CniError> {
    let change = LinkChange { up: Some(up), ..LinkChange::default() };
    Ok(Rtnl::open()?.run(Request::SetLink(LinkRef::from(NAME), change))?)
}

/// Addresses of the loopback device, IPv4 first.
fn addresses() -> Result<Vec<ipnet::IpNet>, CniError> {
    let mut rtnl = Rtnl::open()?;
    let Some(link) = rtnl.link(NAME)? else { return Err(missing()) };
    let found = rtnl.addresses(Some(link.index))?.into_iter().map(|info| info.address);
    let (v4, v6): (Vec<_>, Vec<_>) =
        found.filter(|net| net.addr().is_loopback()).partition(|net| net.addr().is_ipv4());
    Ok(v4.into_iter().take(1).chain(v6.into_iter().take(1)).collect())
}

fn missing() -> CniError {
    CniError::new(Code::Kernel, format!("{NAME}: is missing"))
}

pub(super) fn add(network: &Network, target: &Target) -> Result<Value, CniError> {
    let addresses = visit(target, || {
        set(true)?;
        addresses()
    })?;
    if let Some(previous) = network.previous_if_any()? {
        return Ok(passed_on(network, previous).into());
    }
    let ips: Vec<Value> = addresses
        .iter()
        .map(|net| {
            let mut ip = json!({"address": net.to_string(), "interface": 0});
            if network.version < SpecVersion::V100 {
                ip["version"] = if net.addr().is_ipv4() { "4" } else { "6" }.into();
            }
            ip
        })
        .collect();
    let netns = target.netns.to_string_lossy();
    Ok(json!({
        "cniVersion": network.version.as_str(),
        "interfaces": [{"name": NAME, "mac": "00:00:00:00:00:00", "sandbox": netns}],
        "ips": ips,
        "dns": {}
    }))
}

pub(super) fn check(target: &Target) -> Result<(), CniError> {
    visit(target, || match Rtnl::open()?.link(NAME)? {
        Some(link) if link.up => Ok(()),
        Some(_) => Err(CniError::new(Code::Damaged, format!("{NAME}: is down"))),
        None => Err(missing()),
    })
}

/// The namespace may be gone, or be no namespace any more: then there is nothing to do.
pub(super) fn del(netns: Option<&Path>) -> Result<(), CniError> {
    let Some(netns) = netns.and_then(|path| NetNs::open(path).ok()) else { return Ok(()) };
    let own = NetNs::current()?;
    // The plugin's own loopback is nobody's to take away.
    if own.identity()? == netns.identity()? {
        return Ok(());
    }
    netns.visit(&own, || set(false))?
}
