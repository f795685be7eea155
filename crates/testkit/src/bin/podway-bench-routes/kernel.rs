//! The same routes by our batches and by `ip -batch`, each in a fresh namespace, in turn.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use ipnet::{IpNet, Ipv4Net};
use podway_kern::ns;
use podway_kern::rtnl::{Address, LinkChange, NextHop, Request, Route, RouteFilter, Rtnl, VethEnd};
use podway_model::names::{NEXT_HOP_ID_MIN, ROUTE_PROTOCOL};

use crate::report::{Unit, Values};

/// The node's own network: 65,000 neighbours on one link.
const LINK: &str = "172.30.0.1/16";

/// How the routes get into the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// As `routed` does: a next-hop object per gateway, routes that name it, batched.
    Ours,
    /// What a user would do.
    Ip,
    /// The same program with the same objects as ours.
    IpWithObjects,
}

fn destination(i: usize) -> Result<IpNet> {
    let address = u32::from(Ipv4Addr::new(10, 0, 0, 0)) + u32::try_from(i << 6)?;
    Ok(Ipv4Net::new(address.into(), 26)?.into())
}

fn gateway(i: usize) -> Result<IpAddr> {
    let number = u16::try_from(i + 10)?.to_be_bytes();
    Ok(Ipv4Addr::new(172, 30, number[0], number[1]).into())
}

fn id(gateway: usize) -> Result<u32> {
    Ok(NEXT_HOP_ID_MIN + u32::try_from(gateway)?)
}

/// Seconds per way.
pub(crate) fn measure(routes: usize, gateways: usize, runs: usize) -> Result<Vec<Values>> {
    let ways = [
        (Way::Ours, "Podway"),
        (Way::Ip, "`ip -batch`, gateways"),
        (Way::IpWithObjects, "`ip -batch`, next-hop objects"),
    ];
    let mut all: Vec<Values> = ways.iter().map(|(_, name)| Values::new(name, Unit::Seconds)).collect();
    for _ in 0..runs {
        for (values, (way, _)) in all.iter_mut().zip(ways) {
            values.push(ns::in_new_netns(|| once(way, routes, gateways))??);
        }
    }
    Ok(all)
}

fn once(way: Way, routes: usize, gateways: usize) -> Result<f64> {
    let mut rtnl = Rtnl::open()?;
    let end = |name: &str| VethEnd { name: name.to_owned(), ..VethEnd::default() };
    let up =
        |name: &str| Request::SetLink(name.into(), LinkChange { up: Some(true), ..LinkChange::default() });
    let pair = Request::AddVeth { host: end("eth0"), peer: end("wire"), peer_netns: None };
    rtnl.run_all(&[up("lo"), pair, up("eth0"), up("wire")])?;
    let index = rtnl.link("eth0")?.context("eth0 is there")?.index;
    let address = Address { index, address: LINK.parse()?, no_prefix_route: false };
    rtnl.run_all(&[Request::ReplaceAddress(address)])?;
    let seconds = match way {
        Way::Ours => ours(&mut rtnl, index, routes, gateways)?,
        Way::Ip | Way::IpWithObjects => by_ip(way, routes, gateways)?,
    };
    let filter = RouteFilter { protocol: Some(ROUTE_PROTOCOL), ..RouteFilter::default() };
    let there = rtnl.routes(filter)?.len();
    ensure!(there == routes, "{there} routes are there, {routes} expected");
    // Emptied here: left to the kernel, it would be done while the next one is measured.
    rtnl.run(Request::DeleteLink("eth0".into()))?;
    Ok(seconds)
}

fn ours(rtnl: &mut Rtnl, interface: u32, routes: usize, gateways: usize) -> Result<f64> {
    let start = Instant::now();
    let mut requests = Vec::with_capacity(routes + gateways);
    for i in 0..gateways {
        requests.push(Request::ReplaceNextHop(NextHop {
            id: id(i)?,
            protocol: ROUTE_PROTOCOL,
            interface,
            gateway: gateway(i)?,
            onlink: false,
        }));
    }
    for i in 0..routes {
        let route = Route::to(destination(i)?, ROUTE_PROTOCOL);
        requests.push(Request::AddRoute(Route { next_hop: Some(id(i % gateways)?), ..route }));
    }
    rtnl.run_all(&requests)?;
    Ok(start.elapsed().as_secs_f64())
}

fn by_ip(way: Way, routes: usize, gateways: usize) -> Result<f64> {
    let mut lines = String::new();
    if way == Way::IpWithObjects {
        for i in 0..gateways {
            writeln!(lines, "nexthop add id {} via {} dev eth0 proto {ROUTE_PROTOCOL}", id(i)?, gateway(i)?)?;
        }
    }
    for i in 0..routes {
        let (to, i) = (destination(i)?, i % gateways);
        match way {
            Way::IpWithObjects => writeln!(lines, "route add {to} nhid {} proto {ROUTE_PROTOCOL}", id(i)?)?,
            _ => writeln!(lines, "route add {to} via {} dev eth0 proto {ROUTE_PROTOCOL}", gateway(i)?)?,
        }
    }
    let file = std::env::temp_dir().join(format!("podway-bench-routes-{}", std::process::id()));
    std::fs::write(&file, lines).with_context(|| format!("write {}", file.display()))?;
    let start = Instant::now();
    let output = Command::new("ip").arg("-batch").arg(&file).stdout(Stdio::null()).output()?;
    let seconds = start.elapsed().as_secs_f64();
    std::fs::remove_file(&file)?;
    ensure!(output.status.success(), "ip -batch: {}", String::from_utf8_lossy(&output.stderr));
    Ok(seconds)
}
