//! Which address, interface and MTU this node has on the underlay, followed as they change.
//!
//! The choice, first that applies: the addresses of the configuration (`node.addresses`), the addresses of the
//! configured interface (`node.interface`), the addresses of the interface of the default route (IPv4's before
//! IPv6's). Owner of [`LocalFacts`].
//!
//! Facts that were found once stay in force while nothing better is found: a link that flaps, or a network
//! daemon that restarts, must not make the whole cluster forget this node. The problem is reported meanwhile.

use std::net::IpAddr;
use std::time::Duration;

use podway_kern::KernelError;
use podway_kern::facts::{self, Facts};
use podway_kern::monitor::{Change, Monitor, Notice};
use podway_kern::rtnl::Link;
use podway_model::config::NodeSection;
use podway_model::ids::Mtu;
use podway_model::names::POD_GROUP;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use crate::view::LocalFacts;

/// Changes come in bursts; one look a burst.
const SETTLE: Duration = Duration::from_millis(50);
/// A look without a reason, in case the kernel's word was missed.
const SLOW_LOOK: Duration = Duration::from_secs(60);
/// Prefix of the names of our own devices.
const OUR_DEVICES: &str = "podway.";

/// What the underlay task tells others.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct UnderlayStatus {
    /// Why there are no facts, or what is doubtful about them.
    pub(crate) problems: Vec<String>,
}

/// Publishes the facts, and follows them, for ever. Stop it by dropping the future.
///
/// # Errors
/// A netlink socket cannot be opened.
pub(crate) async fn run(
    config: NodeSection,
    facts: watch::Sender<Option<LocalFacts>>,
    status: watch::Sender<UnderlayStatus>,
) -> Result<(), KernelError> {
    let mut monitor = Monitor::open()?;
    let mut look_at = Instant::now();
    loop {
        // Cancel-safe: `next` takes a datagram and returns it in one poll.
        tokio::select! {
            notices = monitor.next() => {
                if notices?.iter().any(matters) {
                    look_at = look_at.min(Instant::now() + SETTLE);
                }
            }
            () = sleep_until(look_at) => {
                look(&config, &facts, &status).await;
                look_at = Instant::now() + SLOW_LOOK;
            }
        }
    }
}

async fn look(
    config: &NodeSection,
    published: &watch::Sender<Option<LocalFacts>>,
    status: &watch::Sender<UnderlayStatus>,
) {
    let chosen = match facts::read().await {
        Ok(found) => choose(config, &found),
        Err(e) => Err(vec![e.to_string()]),
    };
    let problems = match chosen {
        Ok((chosen, doubts)) => {
            published.send_if_modified(|current| {
                let changed = current.as_ref() != Some(&chosen);
                if changed {
                    tracing::info!(
                        interface = %chosen.interface, mtu = %chosen.mtu, v4 = ?chosen.address_v4,
                        v6 = ?chosen.address_v6, "underlay found"
                    );
                    *current = Some(chosen);
                }
                changed
            });
            doubts
        }
        Err(mut problems) => {
            if published.borrow().is_some() {
                problems.push("the underlay found before stays in force".to_owned());
            }
            problems
        }
    };
    status.send_if_modified(|current| {
        let changed = current.problems != problems;
        if changed {
            for problem in &problems {
                tracing::warn!("underlay: {problem}");
            }
            current.problems = problems;
        }
        changed
    });
}

/// Whether a change may lead to another choice. Pods' interfaces and routes come and go all day.
fn matters(notice: &Notice) -> bool {
    match &notice.change {
        Change::Link(_, link) => !is_ours(link),
        Change::Address(..) | Change::Overrun => true,
        Change::Route(_, route) => route.destination.prefix_len() == 0,
        Change::Neighbour(..) | Change::NextHop(..) => false,
    }
}

/// Pods' veths and our tunnel devices are never the underlay.
fn is_ours(link: &Link) -> bool {
    link.group == POD_GROUP || link.name.starts_with(OUR_DEVICES)
}

/// The choice, with what is doubtful about it; or why there is none.
fn choose(config: &NodeSection, found: &Facts) -> Result<(LocalFacts, Vec<String>), Vec<String>> {
    let (v4, v6, link) = if !config.addresses.is_empty() {
        by_address(&config.addresses, found)?
    } else if let Some(name) = &config.interface {
        let link = found.links.iter().find(|link| link.name == name.as_str()).ok_or_else(|| {
            vec![format!("node.interface: {name} found, the name of an interface expected: {}", names(found))]
        })?;
        by_interface(link, found)?
    } else {
        by_default_route(found)?
    };
    if !link.up {
        return Err(vec![format!("interface {} is down", link.name)]);
    }
    let mut doubts = Vec::new();
    let mtu = Mtu::try_from(link.mtu.min(65535)).unwrap_or_else(|_| {
        doubts.push(format!(
            "interface {} has an MTU of {} bytes; pods get 1280, the least that IPv6 allows",
            link.name, link.mtu
        ));
        Mtu::ETHERNET.less(u32::MAX)
    });
    let interface = link.name.parse().map_err(|e| vec![format!("interface name: {e}")])?;
    let on_link = found
        .addresses
        .iter()
        .filter(|info| info.global && info.address.prefix_len() < info.address.max_prefix_len())
        .filter(|info| found.link(info.index).is_some_and(|l| l.up && !l.loopback && !is_ours(l)))
        .map(|info| (info.index, info.address.trunc()))
        .collect();
    let facts = LocalFacts {
        address_v4: v4.and_then(|ip| if let IpAddr::V4(ip) = ip { Some(ip) } else { None }),
        address_v6: v6.and_then(|ip| if let IpAddr::V6(ip) = ip { Some(ip) } else { None }),
        on_link,
        interface,
        ifindex: link.index,
        mtu,
    };
    Ok((facts, doubts))
}

type Choice<'a> = (Option<IpAddr>, Option<IpAddr>, &'a Link);

fn by_address<'a>(wanted: &[IpAddr], found: &'a Facts) -> Result<Choice<'a>, Vec<String>> {
    let mut problems = Vec::new();
    let mut links = Vec::new();
    for address in wanted {
        match found.interface_of(*address).and_then(|index| found.link(index)) {
            Some(link) => links.push(link),
            None => problems.push(format!(
                "node.addresses: {address} found, an address of this node expected: {}",
                addresses(found)
            )),
        }
    }
    match links.first() {
        Some(link) if problems.is_empty() => {
            let of = |v6: bool| wanted.iter().find(|address| address.is_ipv6() == v6).copied();
            Ok((of(false), of(true), link))
        }
        _ => Err(problems),
    }
}

fn by_interface<'a>(link: &'a Link, found: &Facts) -> Result<Choice<'a>, Vec<String>> {
    let (v4, v6) = (address_on(link.index, false, found), address_on(link.index, true, found));
    if v4.is_none() && v6.is_none() {
        return Err(vec![format!("interface {} has no usable address: {}", link.name, addresses(found))]);
    }
    Ok((v4, v6, link))
}

fn by_default_route(found: &Facts) -> Result<Choice<'_>, Vec<String>> {
    let default = |v6| found.default_interface(v6).and_then(|index| found.link(index));
    let Some(link) = default(false).or_else(|| default(true)) else {
        return Err(vec![
            "there is no default route to tell the underlay by: set node.interface or node.addresses"
                .to_owned(),
        ]);
    };
    let (v4, v6, link) = by_interface(link, found)?;
    // IPv6 may go another way.
    let v6 = v6.or_else(|| default(true).and_then(|link| address_on(link.index, true, found)));
    Ok((v4, v6, link))
}

/// The first usable global address of an interface: neither tentative nor secondary nor deprecated.
fn address_on(index: u32, v6: bool, found: &Facts) -> Option<IpAddr> {
    found
        .addresses
        .iter()
        .filter(|info| info.index == index && info.global && !info.tentative && !info.secondary)
        .map(|info| info.address.addr())
        .find(|address| address.is_ipv6() == v6)
}

fn names(found: &Facts) -> String {
    let names: Vec<&str> =
        found.links.iter().filter(|l| !l.loopback && !is_ours(l)).map(|l| l.name.as_str()).collect();
    format!("one of {}", names.join(", "))
}

fn addresses(found: &Facts) -> String {
    let all: Vec<String> = found
        .addresses
        .iter()
        .filter(|info| info.global)
        .filter_map(|info| {
            let link = found.link(info.index).filter(|l| !l.loopback && !is_ours(l))?;
            Some(format!("{} ({})", info.address.addr(), link.name))
        })
        .collect();
    if all.is_empty() { "it has none".to_owned() } else { format!("it has {}", all.join(", ")) }
}

#[cfg(test)]
mod tests {
    use podway_kern::rtnl::{AddressInfo, Route};

    use super::*;

    fn link(index: u32, name: &str, up: bool) -> Link {
        let kind = if name == "lo" { (true, 65536) } else { (false, 1500) };
        Link { index, name: name.to_owned(), up, loopback: kind.0, mtu: kind.1, ..Link::default() }
    }

    fn address(index: u32, text: &str) -> AddressInfo {
        let address = text.parse().unwrap();
        AddressInfo { index, address, global: true, tentative: false, secondary: false }
    }

    fn default_route(index: u32, net: &str, metric: u32) -> Route {
        Route { interface: Some(index), metric, ..Route::to(net.parse().unwrap(), 4) }
    }

    /// eth0 (2) has the default route, eth1 (3) is another network, pod veth (4), tunnel (5).
    fn node() -> Facts {
        let mut pod = link(4, "pw00000000001", true);
        pod.group = POD_GROUP;
        Facts {
            links: vec![link(1, "lo", true), link(2, "eth0", true), link(3, "eth1", true), pod, {
                let mut tunnel = link(5, "podway.vxlan", true);
                tunnel.mtu = 1450;
                tunnel
            }],
            addresses: vec![
                address(1, "127.0.0.1/8"),
                address(2, "192.0.2.1/24"),
                address(2, "fd00:2::1/64"),
                address(3, "198.51.100.1/25"),
                address(5, "10.244.0.0/32"),
            ],
            default_routes: vec![default_route(2, "0.0.0.0/0", 0)],
        }
    }

    fn config(addresses: &[&str], interface: Option<&str>) -> NodeSection {
        NodeSection {
            addresses: addresses.iter().map(|a| a.parse().unwrap()).collect(),
            interface: interface.map(|i| i.parse().unwrap()),
            ..NodeSection::default()
        }
    }

    #[test]
    fn the_default_route_tells_when_nothing_is_configured() {
        let (facts, doubts) = choose(&config(&[], None), &node()).unwrap();
        assert_eq!(facts.address_v4, Some("192.0.2.1".parse().unwrap()));
        assert_eq!(facts.address_v6, Some("fd00:2::1".parse().unwrap()));
        assert_eq!((facts.interface.as_str(), facts.ifindex, facts.mtu.bytes()), ("eth0", 2, 1500));
        let on_link: Vec<String> = facts.on_link.iter().map(|(i, net)| format!("{i} {net}")).collect();
        assert_eq!(on_link, ["2 192.0.2.0/24", "2 fd00:2::/64", "3 198.51.100.0/25"]);
        assert_eq!(doubts, Vec::<String>::new());
    }

    #[test]
    fn configuration_comes_before_the_default_route() {
        let (facts, _) = choose(&config(&[], Some("eth1")), &node()).unwrap();
        assert_eq!((facts.address_v4, facts.address_v6), (Some("198.51.100.1".parse().unwrap()), None));
        let (facts, _) = choose(&config(&["198.51.100.1", "fd00:2::1"], Some("eth0")), &node()).unwrap();
        assert_eq!(facts.address_v4, Some("198.51.100.1".parse().unwrap()));
        assert_eq!(facts.address_v6, Some("fd00:2::1".parse().unwrap()));
        assert_eq!(facts.interface.as_str(), "eth1");
    }

    #[test]
    fn what_is_not_there_is_named_with_what_is() {
        let why = |config: NodeSection, node: Facts| choose(&config, &node).unwrap_err().join("\n");
        assert_eq!(
            why(config(&["192.0.2.9"], None), node()),
            "node.addresses: 192.0.2.9 found, an address of this node expected: it has 192.0.2.1 (eth0), \
             fd00:2::1 (eth0), 198.51.100.1 (eth1)"
        );
        assert_eq!(
            why(config(&[], Some("eth7")), node()),
            "node.interface: eth7 found, the name of an interface expected: one of eth0, eth1"
        );
        let mut lost = node();
        lost.default_routes.clear();
        assert!(why(config(&[], None), lost).contains("no default route"));
        let mut down = node();
        down.links[1].up = false;
        assert_eq!(why(config(&[], None), down), "interface eth0 is down");
        let mut bare = node();
        bare.addresses.retain(|info| info.index != 3);
        assert!(why(config(&[], Some("eth1")), bare).starts_with("interface eth1 has no usable address"));
    }

    #[test]
    fn tentative_addresses_and_lesser_routes_are_passed_over() {
        let mut facts = node();
        facts.addresses[2].tentative = true;
        facts.addresses.push(address(2, "fd00:2::2/64"));
        facts.default_routes.push(default_route(3, "0.0.0.0/0", 100));
        let (chosen, _) = choose(&config(&[], None), &facts).unwrap();
        assert_eq!(chosen.address_v6, Some("fd00:2::2".parse().unwrap()));
        assert_eq!(chosen.ifindex, 2);
    }

    #[test]
    fn an_mtu_below_the_minimum_is_doubtful() {
        let mut facts = node();
        facts.links[1].mtu = 576;
        let (chosen, doubts) = choose(&config(&[], None), &facts).unwrap();
        assert_eq!(chosen.mtu.bytes(), 1280);
        assert!(doubts[0].contains("576"), "{doubts:?}");
    }
}
