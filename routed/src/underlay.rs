//! Which address, interface and MTU this node has on the underlay, followed as they change.
//!
//! The choice is the configuration's ([`NodeAddresses`]): given addresses, those of an environment variable (what a DaemonSet
//! knows of its node), of an interface by name or by pattern, those from which the kernel would send to somebody, or
//! else those of the interface of the default route (IPv4's before IPv6's). Owner of [`LocalFacts`].
//!
//! Facts that were found once stay in force while nothing better is found: a link that flaps, or a network
//! daemon that restarts, must not make the whole cluster forget this node. The problem is reported meanwhile.

use std::net::IpAddr;
use std::time::Duration;

use podway_kern::KernelError;
use podway_kern::facts::{self, Facts};
use podway_kern::monitor::{Change, Monitor, Notice};
use podway_kern::rtnl::{Link, Rtnl};
use podway_model::config::{NamePattern, NodeAddresses, NodeSection};
use podway_model::ids::Mtu;
use podway_model::names::POD_GROUP;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use crate::view::LocalFacts;

/// Changes come in bursts; one look a burst.
const SETTLE: Duration = Duration::from_millis(50);
/// A look without a reason, in case the kernel's word was missed.
const SLOW_LOOK: Duration = Duration::from_secs(60);
/// How interfaces begin that container engines and other networks make: a pattern does not mean them.
const OF_OTHERS: [&str; 17] = [
    "docker",
    "br-",
    "cbr",
    "cni",
    "podman",
    "virbr",
    "lxcbr",
    "lxdbr",
    "dummy",
    "veth",
    "cali",
    "tunl",
    "flannel",
    "vxlan.calico",
    "wireguard.cali",
    "kube-",
    "nodelocaldns",
];
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
        Ok(found) => choose(config, &found, &Asked::of(config)),
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

/// What a choice needs besides the interfaces and their addresses.
#[derive(Debug, Default)]
struct Asked {
    /// The environment variable that the configuration names.
    environment: Option<String>,
    /// The addresses from which the kernel would send to those that are to be reached; none: it would not.
    sources: Vec<Option<IpAddr>>,
}

impl Asked {
    fn of(config: &NodeSection) -> Self {
        match &config.addresses {
            NodeAddresses::Environment(name) => {
                Self { environment: std::env::var(name).ok(), ..Self::default() }
            }
            NodeAddresses::CanReach(all) => {
                Self { sources: all.iter().map(|to| source_towards(*to)).collect(), ..Self::default() }
            }
            _ => Self::default(),
        }
    }
}

/// The address from which the kernel would send.
fn source_towards(to: IpAddr) -> Option<IpAddr> {
    Rtnl::open().ok()?.route_to(to).ok()?.source
}

/// The choice, with what is doubtful about it; or why there is none.
fn choose(
    config: &NodeSection,
    found: &Facts,
    asked: &Asked,
) -> Result<(LocalFacts, Vec<String>), Vec<String>> {
    let (v4, v6, link) = match &config.addresses {
        NodeAddresses::These(these) => by_address("node.addresses", these, found)?,
        NodeAddresses::Environment(name) => by_environment(name, asked.environment.as_deref(), found)?,
        NodeAddresses::Interface(name) => {
            let link = found.links.iter().find(|link| link.name == name.as_str()).ok_or_else(|| {
                vec![format!(
                    "node.interface: {name} found, the name of an interface expected: {}",
                    names(found)
                )]
            })?;
            by_interface(link, found)?
        }
        NodeAddresses::Pattern(pattern) => by_pattern(pattern, found)?,
        NodeAddresses::CanReach(all) => by_reach(all, &asked.sources, found)?,
        NodeAddresses::DefaultRoute => by_default_route(found)?,
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

fn by_address<'a>(key: &str, wanted: &[IpAddr], found: &'a Facts) -> Result<Choice<'a>, Vec<String>> {
    let mut problems = Vec::new();
    let mut links = Vec::new();
    for address in wanted {
        match found.interface_of(*address).and_then(|index| found.link(index)) {
            Some(link) => links.push(link),
            None => problems.push(format!(
                "{key}: {address} found, an address of this node expected: {}",
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

/// Addresses that somebody else knows: of each family the first counts, as Kubernetes does.
fn by_environment<'a>(name: &str, value: Option<&str>, found: &'a Facts) -> Result<Choice<'a>, Vec<String>> {
    let key = format!("node.addressesFromEnvironment: {name}");
    let value = value.unwrap_or_default();
    let mut chosen: Vec<IpAddr> = Vec::new();
    for word in value.split(',').map(str::trim).filter(|word| !word.is_empty()) {
        let address: IpAddr = word
            .parse()
            .map_err(|_| vec![format!("{key}: {word:?} found, addresses separated by commas expected")])?;
        if !chosen.iter().any(|other| other.is_ipv4() == address.is_ipv4()) {
            chosen.push(address);
        }
    }
    if chosen.is_empty() {
        return Err(vec![format!("{key}: nothing found, addresses separated by commas expected")]);
    }
    by_address(&key, &chosen, found)
}

/// The first interface whose name matches and that can be the underlay.
fn by_pattern<'a>(pattern: &NamePattern, found: &'a Facts) -> Result<Choice<'a>, Vec<String>> {
    let mut passed_over = Vec::new();
    for link in found.links.iter().filter(|link| !link.loopback && !is_ours(link)) {
        let why = if !pattern.matches(&link.name) {
            "its name does not match"
        } else if OF_OTHERS.iter().any(|beginning| link.name.starts_with(beginning)) {
            "it is a container engine's or another network's (name it in node.interface if it is the one)"
        } else if !link.up {
            "it is down"
        } else {
            match by_interface(link, found) {
                Ok(choice) => return Ok(choice),
                Err(_) => "it has no usable address",
            }
        };
        passed_over.push(format!("{}: {why}", link.name));
    }
    let passed_over =
        if passed_over.is_empty() { "there are none".to_owned() } else { passed_over.join("; ") };
    Err(vec![format!(
        "node.interfacePattern: {pattern} found, the name of an interface expected: {passed_over}"
    )])
}

/// The addresses from which others are reached; for a family without one to reach, that of the same interface.
fn by_reach<'a>(
    wanted: &[IpAddr],
    sources: &[Option<IpAddr>],
    found: &'a Facts,
) -> Result<Choice<'a>, Vec<String>> {
    let no_way: Vec<String> = wanted
        .iter()
        .zip(sources)
        .filter(|(_, source)| source.is_none())
        .map(|(to, _)| {
            format!("node.canReach: {to} found, an address to which this node has a route expected")
        })
        .collect();
    if !no_way.is_empty() {
        return Err(no_way);
    }
    let sources: Vec<IpAddr> = sources.iter().flatten().copied().collect();
    let (v4, v6, link) = by_address("node.canReach", &sources, found)?;
    let beside = |v6| address_on(link.index, v6, found);
    Ok((v4.or_else(|| beside(false)), v6.or_else(|| beside(true)), link))
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
        section(match interface {
            Some(interface) => NodeAddresses::Interface(interface.parse().unwrap()),
            None if addresses.is_empty() => NodeAddresses::DefaultRoute,
            None => NodeAddresses::These(addresses.iter().map(|a| a.parse().unwrap()).collect()),
        })
    }

    fn section(addresses: NodeAddresses) -> NodeSection {
        NodeSection { addresses, ..NodeSection::default() }
    }

    fn choose(config: &NodeSection, found: &Facts) -> Result<(LocalFacts, Vec<String>), Vec<String>> {
        super::choose(config, found, &Asked::default())
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
        let (facts, _) = choose(&config(&["198.51.100.1", "fd00:2::1"], None), &node()).unwrap();
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
    fn a_pattern_picks_the_first_interface_that_can_be_it_and_says_why_not_the_others() {
        let pattern = |text: &str| section(NodeAddresses::Pattern(text.parse().unwrap()));
        let chosen = |text: &str| choose(&pattern(text), &node()).unwrap().0.interface.to_string();
        assert_eq!(["eth", "^eth1$", "1$", "."].map(chosen), ["eth0", "eth1", "eth1", "eth0"]);
        let mut facts = node();
        facts.links[1].up = false;
        facts.addresses.retain(|info| info.index != 3);
        facts.links.extend([link(6, "docker0", true), link(7, "ens5", true)]);
        facts.addresses.push(address(6, "172.17.0.1/16"));
        facts.addresses.push(address(7, "203.0.113.1/24"));
        assert_eq!(
            choose(&pattern("^(eth|docker)"), &facts).unwrap_err().join("\n"),
            "node.interfacePattern: ^(eth|docker) found, the name of an interface expected: eth0: it is down; eth1: it has \
             no usable address; docker0: it is a container engine's or another network's (name it in node.interface if \
             it is the one); ens5: its name does not match"
        );
        assert_eq!(choose(&pattern("^e"), &facts).unwrap().0.interface.as_str(), "ens5");
    }

    #[test]
    fn the_way_to_somebody_tells_and_a_family_without_one_is_taken_from_beside_it() {
        let reach = |all: &[&str], sources: &[Option<&str>]| {
            let config = section(NodeAddresses::CanReach(all.iter().map(|a| a.parse().unwrap()).collect()));
            let sources = sources.iter().map(|s| s.map(|s| s.parse().unwrap())).collect();
            super::choose(&config, &node(), &Asked { sources, ..Asked::default() })
        };
        let (facts, _) = reach(&["198.51.100.99"], &[Some("198.51.100.1")]).unwrap();
        assert_eq!((facts.interface.as_str(), facts.address_v6), ("eth1", None));
        let (facts, _) = reach(&["8.8.8.8"], &[Some("192.0.2.1")]).unwrap();
        assert_eq!(facts.address_v6, Some("fd00:2::1".parse().unwrap()));
        let (facts, _) =
            reach(&["198.51.100.99", "fd00:9::9"], &[Some("198.51.100.1"), Some("fd00:2::1")]).unwrap();
        assert_eq!(facts.address_v4, Some("198.51.100.1".parse().unwrap()));
        assert_eq!(facts.address_v6, Some("fd00:2::1".parse().unwrap()));
        assert_eq!(
            reach(&["203.0.113.9"], &[None]).unwrap_err(),
            ["node.canReach: 203.0.113.9 found, an address to which this node has a route expected"]
        );
        // The kernel of a namespace of its own has no way to anybody.
        let found = podway_kern::ns::in_new_netns(|| source_towards("192.0.2.9".parse().unwrap()));
        assert!(found.is_err() || found.unwrap().is_none());
    }

    #[test]
    fn what_the_environment_says_of_the_node_is_taken_if_it_is_so() {
        let environment = |value: Option<&str>| {
            let config = section(NodeAddresses::Environment("NODE_IPS".to_owned()));
            let asked = Asked { environment: value.map(str::to_owned), ..Asked::default() };
            super::choose(&config, &node(), &asked).map(|(facts, _)| (facts.address_v4, facts.address_v6))
        };
        let (v4, v6) = (Some("192.0.2.1".parse().unwrap()), Some("fd00:2::1".parse().unwrap()));
        assert_eq!(environment(Some("192.0.2.1")), Ok((v4, None)));
        assert_eq!(environment(Some("fd00:2::1, 192.0.2.1,198.51.100.1")), Ok((v4, v6)));
        for (value, part) in [
            (None, "NODE_IPS: nothing found"),
            (Some(" , "), "NODE_IPS: nothing found"),
            (Some("192.0.2.1,x"), "NODE_IPS: \"x\" found, addresses separated by commas expected"),
            (
                Some("203.0.113.7"),
                "NODE_IPS: 203.0.113.7 found, an address of this node expected: it has 192.0.2.1",
            ),
        ] {
            let why = environment(value).unwrap_err().join("\n");
            assert!(why.contains(part), "{value:?}: {why}");
        }
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
