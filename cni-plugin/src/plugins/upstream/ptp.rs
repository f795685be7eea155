//! `ptp`: a veth pair whose only neighbour is the node, with addresses of another plugin.
//!
//! ```text
//!   node                                   container
//!   vethXXXXXXXX: gateway/32, ───────────  eth0: address/24 (no route of its own), gateway/32 on the link,
//!     route to address/32                    10.1.0.0/24 and the plugin's routes over the gateway
//! ```
//!
//! Keys, results, addresses and routes are upstream's; the masquerade is that of its nftables backend, in table
//! `inet cni_plugins_masquerade`, one rule for each address, whose comment begins with a hash of network and
//! attachment. `"ipMasqBackend": "iptables"` is served by the same rules.
//!
//! Where upstream's leaves things undone: the node's end has an alias that says whose it is, so DEL finds it without
//! the namespace and never takes a stranger's; rules go whatever became of the link; addresses go last, and are given
//! back after a failed ADD only when nothing has them any more; GC frees; a second interface of one container works, its
//! routes behind those of the first one; what `prevResult` says is kept.

use std::net::IpAddr;
use std::os::fd::AsFd as _;
use std::path::Path;
use std::time::Duration;

use ipnet::IpNet;
use podway_ipam::Attachment;
use podway_kern::conntrack::Conntrack;
use podway_kern::ns::NetNs;
use podway_kern::rtnl::{Address, Link, LinkChange, LinkRef, Request, Route, RouteFilter, Rtnl, VethEnd};
use podway_kern::sysctl::{Family as SysctlFamily, Sysctl};
use podway_kern::{KernelError, MissingIsFine as _};
use podway_model::mistakes::Mistakes;
use podway_model::names::ptp_host_ifname;
use serde_json::{Map, Value, json};

use super::masquerade;
use crate::conf::{Network, kind};
use crate::delegate::{self, Delegate, Mark};
use crate::env::Target;
use crate::error::{CniError, Code};
use crate::netns::PodNetNs;
use crate::node::Node;
use crate::version::SpecVersion;
use crate::{link, netns};

const SOURCE: &str = "network configuration";
/// Beginning of the alias of a node's end of ours: then network, container id, interface.
const ALIAS: &str = "podway-ptp/";
/// Protocol of routes: RTPROT_BOOT, as `ip route` makes them.
const PROTOCOL: u8 = 3;
/// Metric of the routes of an interface that is not the container's first: behind those of the first one.
const SECOND_METRIC: u32 = 2048;
/// Smallest MTU that the kernel takes.
const LEAST_MTU: u64 = 68;
const MOST_MTU: u64 = 65_535;

struct Conf {
    mtu: Option<u32>,
    masquerade: bool,
    dns: Map<String, Value>,
}

/// An address of the container, and its gateway.
#[derive(Clone, Copy)]
struct Given {
    net: IpNet,
    gateway: IpAddr,
}

/// What an address plugin answered.
struct Answer {
    result: Map<String, Value>,
    given: Vec<Given>,
    routes: Vec<Route>,
}

fn read(network: &Network) -> Result<Conf, CniError> {
    let mut mistakes = Mistakes::default();
    let mtu = match network.key("mtu") {
        None | Some(Value::Null) => None,
        Some(value) => match value.as_u64() {
            Some(0) => None,
            Some(mtu) if (LEAST_MTU..=MOST_MTU).contains(&mtu) => u32::try_from(mtu).ok(),
            _ => {
                let expected = format!("a number of bytes from {LEAST_MTU} to {MOST_MTU}, or 0");
                mistakes.add(SOURCE, "mtu", value, expected);
                None
            }
        },
    };
    let masquerade = match network.key("ipMasq") {
        None | Some(Value::Null) => false,
        Some(Value::Bool(on)) => *on,
        Some(other) => {
            mistakes.add(SOURCE, "ipMasq", other, "true or false");
            false
        }
    };
    match network.key("ipMasqBackend") {
        None | Some(Value::Null) => {}
        Some(backend) if matches!(backend.as_str(), Some("iptables" | "nftables")) => {}
        Some(other) => mistakes.add(SOURCE, "ipMasqBackend", other, "iptables or nftables"),
    }
    let dns = match network.key("dns") {
        None | Some(Value::Null) => Map::new(),
        Some(Value::Object(dns)) => dns.clone(),
        Some(other) => {
            mistakes.add(SOURCE, "dns", kind(other), "an object");
            Map::new()
        }
    };
    if ipam_type(network).is_none() {
        let found = network.key("ipam").and_then(|ipam| ipam.get("type")).unwrap_or(&Value::Null);
        mistakes.add(SOURCE, "ipam.type", found, "the name of an address plugin");
    }
    if mistakes.is_empty() { Ok(Conf { mtu, masquerade, dns }) } else { Err(CniError::config(&mistakes)) }
}

fn ipam_type(network: &Network) -> Option<&str> {
    network.key("ipam")?.get("type")?.as_str().filter(|kind| !kind.is_empty())
}

fn ipam(network: &Network) -> Result<Delegate, CniError> {
    Delegate::find(ipam_type(network).unwrap_or_default())
}

fn alias(network: &Network, attachment: &Attachment) -> String {
    format!("{ALIAS}{}/{attachment}", network.name)
}

/// The attachment of a network that an alias names.
fn of_alias(network: &Network, alias: &str) -> Option<Attachment> {
    let (container, ifname) =
        alias.strip_prefix(ALIAS)?.strip_prefix(network.name.as_str())?.strip_prefix('/')?.split_once('/')?;
    Some(Attachment::new(container.parse().ok()?, ifname.parse().ok()?))
}

fn host_name(attachment: &Attachment) -> String {
    ptp_host_ifname(attachment.container_id.as_str(), attachment.ifname.as_str())
}

pub(super) fn add(network: &Network, target: &Target) -> Result<Value, CniError> {
    let conf = read(network)?;
    let previous = network.previous_if_any()?;
    let namespace = netns::open(target)?;
    let ipam = ipam(network)?;
    let (node, mut rtnl) = (Node::here()?, Rtnl::open()?);
    let attachment = &target.attachment;
    if namespace.visit(|| Ok(Rtnl::open()?.link(attachment.ifname.as_str())?.is_some()))? {
        // Before anything of an earlier ADD is taken apart: it may be alive.
        let message = format!("CNI_IFNAME: {} exists in {}", attachment.ifname, target.netns.display());
        return Err(CniError::new(Code::Environment, message));
    }
    // What an ADD left that was killed. Such a plugin gives one attachment no second address.
    if let Some(mark) = node.marks().read(attachment)? {
        if mark.network != network.name {
            let message = format!("CNI_IFNAME: {attachment} belongs to network {}", mark.network);
            return Err(CniError::new(Code::Environment, message));
        }
        undo(&node, &mut rtnl, network, attachment)?;
    }
    let made = (|| {
        {
            let _lock = node.lock()?;
            node.marks().write(&Mark::new(network, attachment, &ipam))?;
        }
        let answer = parse(&ipam, ipam.add_as_it_is(network)?)?;
        let dirty = answer.given.iter().map(|given| given.net.addr()).collect();
        Conntrack::open()?.delete(&dirty)?;
        let (host, inside) = wire(&mut rtnl, network, target, &namespace, &conf, &answer)?;
        if conf.masquerade {
            let nets: Vec<IpNet> = answer.given.iter().map(|given| given.net).collect();
            masquerade::open(network, attachment, &nets)?;
        }
        Ok((answer, host, inside))
    })();
    let (answer, host, inside) =
        made.map_err(|error: CniError| match undo(&node, &mut rtnl, network, attachment) {
            Ok(None) => error,
            Ok(Some(left)) => error.with(left),
            Err(undo) => error.with(format_args!("and undoing it failed: {undo}")),
        })?;
    Ok(form(network, target, &conf, answer, previous, &host, &inside))
}

/// Reads what the address plugin answered. Routes of a family that the container does not have are left out.
fn parse(ipam: &Delegate, mut result: Map<String, Value>) -> Result<Answer, CniError> {
    let fail =
        |what: String| CniError::new(Code::Delegate, format!("address plugin {}: {what}", ipam.name()));
    let text = |value: &Value, key: &str| value.get(key).and_then(Value::as_str).unwrap_or("").to_owned();
    let list = |result: &Map<String, Value>, key: &str| {
        result.get(key).and_then(Value::as_array).cloned().unwrap_or_default()
    };
    let mut given = Vec::new();
    for ip in list(&result, "ips") {
        match (text(&ip, "address").parse(), text(&ip, "gateway").parse()) {
            (Ok(net), Ok(gateway)) => given.push(Given { net, gateway }),
            _ => return Err(fail(format!("{ip} in its result is no address with a gateway"))),
        }
    }
    if given.is_empty() {
        return Err(fail("its result has no address".to_owned()));
    }
    let (mut routes, mut kept) = (Vec::new(), Vec::new());
    for item in list(&result, "routes") {
        let Ok(destination) = text(&item, "dst").parse::<IpNet>() else {
            return Err(fail(format!("{item} in its result is not a route")));
        };
        let same = |given: &&Given| given.net.addr().is_ipv4() == destination.addr().is_ipv4();
        let Some(own) = given.iter().find(same) else { continue };
        let gateway = match text(&item, "gw") {
            gw if gw.is_empty() => own.gateway,
            gw => gw.parse().map_err(|_| fail(format!("{item} in its result is not a route")))?,
        };
        let number = |key: &str| item.get(key).and_then(Value::as_u64).and_then(|n| u32::try_from(n).ok());
        let route = Route::to(destination, PROTOCOL);
        // A scope that is not the link's is the one that a route with a gateway has.
        let scope_link = number("scope") == Some(253);
        routes.push(Route {
            gateway: (!scope_link).then_some(gateway),
            scope_link,
            metric: number("priority").filter(|n| *n > 0).unwrap_or(route.metric),
            table: number("table").filter(|n| *n > 0).unwrap_or(route.table),
            mtu: number("mtu").filter(|n| *n > 0),
            advmss: number("advmss").filter(|n| *n > 0),
            ..route
        });
        kept.push(item);
    }
    if result.contains_key("routes") {
        result.insert("routes".to_owned(), kept.into());
    }
    Ok(Answer { result, given, routes })
}

/// The container's routes: the gateway on the link, the subnet behind it, then the address plugin's.
fn routes_in(answer: &Answer, index: u32) -> Vec<Route> {
    let mut all = Vec::new();
    for Given { net, gateway } in &answer.given {
        let own = |destination: IpNet| Route {
            interface: Some(index),
            source: Some(net.addr()),
            ..Route::to(destination, PROTOCOL)
        };
        all.push(Route { scope_link: true, ..own(IpNet::from(*gateway)) });
        all.push(Route { gateway: Some(*gateway), ..own(net.trunc()) });
    }
    all.extend(answer.routes.iter().map(|route| Route { interface: Some(index), ..route.clone() }));
    all
}

fn forwarding(given: &[Given]) -> Vec<Sysctl> {
    let any = |v4: bool| given.iter().any(|given| given.net.addr().is_ipv4() == v4);
    let v4 = any(true).then(|| Sysctl::new("net/ipv4/ip_forward"));
    let v6 = any(false).then(|| Sysctl::conf(SysctlFamily::V6, "all", "forwarding"));
    v4.into_iter().chain(v6).collect()
}

fn host_addresses(given: &[Given], index: u32) -> Vec<Address> {
    given.iter().map(|given| Address::host(index, given.gateway)).collect()
}

fn host_routes(given: &[Given], index: u32) -> Vec<Route> {
    let route = |given: &Given| Route {
        interface: Some(index),
        scope_link: true,
        ..Route::to(IpNet::from(given.net.addr()), PROTOCOL)
    };
    given.iter().map(route).collect()
}

/// Makes the pair, whole and carrying packets; returns both ends.
fn wire(
    rtnl: &mut Rtnl,
    network: &Network,
    target: &Target,
    namespace: &PodNetNs,
    conf: &Conf,
    answer: &Answer,
) -> Result<(Link, Link), CniError> {
    for sysctl in forwarding(&answer.given) {
        sysctl.ensure("1")?;
    }
    let (name, ifname) = (host_name(&target.attachment), target.attachment.ifname.as_str());
    let create = |rtnl: &mut Rtnl, indexes: Option<(u32, u32)>| {
        let end =
            |name: &str, index| VethEnd { name: name.to_owned(), mtu: conf.mtu, index, ..VethEnd::default() };
        let (host, peer) = (end(&name, indexes.map(|i| i.0)), end(ifname, indexes.map(|i| i.1)));
        rtnl.run(Request::AddVeth { host, peer, peer_netns: Some(namespace.as_fd()) })?;
        let alias = Some(alias(network, &target.attachment));
        let mark = LinkChange { alias, no_link_local: Some(true), ..LinkChange::default() };
        rtnl.run(Request::SetLink(LinkRef::Name(name.clone()), mark))?;
        rtnl.link(name.as_str())?.ok_or_else(|| vanished(&name))
    };
    let host = create(rtnl, None)?;
    let host = link::with_other_index(rtnl, host, create)?;
    let Some(peer) = host.link else { return Err(vanished(ifname).into()) };
    netns::write_sysctl(&Sysctl::conf(SysctlFamily::V6, &name, "accept_ra"), "0")?;
    let up = |index: u32| {
        let change = LinkChange { up: Some(true), ..LinkChange::default() };
        Request::SetLink(LinkRef::Index(index), change)
    };
    let mut requests: Vec<_> =
        host_addresses(&answer.given, host.index).into_iter().map(Request::ReplaceAddress).collect();
    requests.push(up(host.index));
    requests.extend(host_routes(&answer.given, host.index).into_iter().map(Request::ReplaceRoute));
    rtnl.run_all(&requests)?;
    let inside = namespace.visit(|| wire_inside(ifname, peer, answer, up(peer)))?;
    link::wait_for_carrier(rtnl, &host)?;
    Ok((host, inside))
}

fn wire_inside(ifname: &str, index: u32, answer: &Answer, up: Request<'_>) -> Result<Link, CniError> {
    if answer.given.iter().any(|given| given.net.addr().is_ipv6()) {
        for (interface, key, value) in [
            ("lo", "disable_ipv6", "0"),
            (ifname, "disable_ipv6", "0"),
            (ifname, "keep_addr_on_down", "1"),
            (ifname, "accept_dad", "0"),
        ] {
            netns::write_sysctl(&Sysctl::conf(SysctlFamily::V6, interface, key), value)?;
        }
    }
    let mut rtnl = Rtnl::open()?;
    let address =
        |given: &Given| Request::ReplaceAddress(Address { index, address: given.net, no_prefix_route: true });
    let mut requests: Vec<_> = answer.given.iter().map(address).collect();
    requests.push(up);
    rtnl.run_all(&requests)?;
    let mut is_second = false;
    for route in routes_in(answer, index) {
        let behind = |route: &Route| Route { metric: route.metric + SECOND_METRIC, ..route.clone() };
        let first = if is_second { behind(&route) } else { route.clone() };
        match rtnl.run(Request::AddRoute(first)) {
            // Another interface of the container has it.
            Err(e) if e.is_exists() && !is_second => {
                is_second = true;
                rtnl.run(Request::AddRoute(behind(&route)))?;
            }
            other => other?,
        }
    }
    for given in answer.given.iter().filter(|given| given.net.addr().is_ipv6()) {
        let ip = given.net.addr();
        if !link::wait_for(Duration::from_secs(5), || rtnl.is_local(ip))? {
            return Err(CniError::new(
                Code::Kernel,
                format!("{ifname}: {ip} does not become the container's"),
            ));
        }
    }
    Ok(rtnl.link(index)?.ok_or_else(|| vanished(ifname))?)
}

fn vanished(name: &str) -> KernelError {
    KernelError::Malformed { attempted: format!("look up link {name}"), reason: "it vanished".to_owned() }
}

fn form(
    network: &Network,
    target: &Target,
    conf: &Conf,
    answer: Answer,
    previous: Option<Map<String, Value>>,
    host: &Link,
    inside: &Link,
) -> Value {
    let mut result = previous.unwrap_or_default();
    let first = result.get("interfaces").and_then(Value::as_array).map_or(0, Vec::len);
    let interface = |link: &Link, sandbox: Option<String>| {
        let mut interface =
            json!({"name": link.name, "mac": link.mac.map(|mac| mac.to_string()).unwrap_or_default()});
        if network.version >= SpecVersion::V110 {
            interface["mtu"] = link.mtu.into();
        }
        if let Some(sandbox) = sandbox {
            interface["sandbox"] = sandbox.into();
        }
        interface
    };
    let netns = target.netns.to_string_lossy().into_owned();
    let ours = vec![interface(host, None), interface(inside, Some(netns))];
    let Answer { result: mut theirs, .. } = answer;
    for ip in theirs.get_mut("ips").and_then(Value::as_array_mut).into_iter().flatten() {
        ip["interface"] = (first + 1).into();
    }
    let mut extend = |key: &str, list: Vec<Value>| match result.get_mut(key).and_then(Value::as_array_mut) {
        Some(all) => all.extend(list),
        None => drop(result.insert(key.to_owned(), list.into())),
    };
    extend("interfaces", ours);
    for key in ["ips", "routes"] {
        if let Some(Value::Array(list)) = theirs.remove(key) {
            extend(key, list);
        }
    }
    // Name servers of the configuration take the place of the address plugin's, all of them.
    let dns = if conf.dns.is_empty() { theirs.remove("dns") } else { Some(conf.dns.clone().into()) };
    result.insert("dns".to_owned(), dns.unwrap_or_else(|| json!({})));
    result.insert("cniVersion".to_owned(), network.version.as_str().into());
    result.into()
}

/// Takes an attachment apart, its addresses last. Returns what stays behind because the address plugin is not there.
fn undo(
    node: &Node,
    rtnl: &mut Rtnl,
    network: &Network,
    attachment: &Attachment,
) -> Result<Option<String>, CniError> {
    let name = host_name(attachment);
    if let Some(found) = rtnl.link(name.as_str())?
        && found.alias.is_none_or(|found| found == alias(network, attachment))
    {
        rtnl.delete_link_at_once(found.index)?;
    }
    masquerade::close(network, attachment)?;
    delegate::end(node.marks(), network, ipam_type(network), attachment)
}

pub(super) fn del(network: &Network, attachment: &Attachment, path: Option<&Path>) -> Result<(), CniError> {
    let (node, mut rtnl) = (Node::here()?, Rtnl::open()?);
    if let Some(path) = path {
        remove_theirs(&mut rtnl, network, attachment, path)?;
    }
    if let Some(left) = undo(&node, &mut rtnl, network, attachment)? {
        use std::io::Write as _;
        let _ = writeln!(std::io::stderr(), "ptp: {left}");
    }
    Ok(())
}

/// Removes the pair that upstream's made: its node's end has no alias. Where the namespace is a stranger's by now, its
/// interface has another Ethernet address than the previous result says, or a node's end with a name in its alias.
fn remove_theirs(
    rtnl: &mut Rtnl,
    network: &Network,
    attachment: &Attachment,
    path: &Path,
) -> Result<(), CniError> {
    let Ok(namespace) = NetNs::open(path) else { return Ok(()) };
    let own = NetNs::current()?;
    if own.identity()? == namespace.identity()? {
        return Ok(());
    }
    let ifname = attachment.ifname.as_str();
    let look = || Rtnl::open()?.link(ifname);
    let Some(inside) = namespace.visit(&own, look)?? else { return Ok(()) };
    let Some(host) = inside.link.map(|index| rtnl.link(index)).transpose()?.flatten() else { return Ok(()) };
    if host.kind.as_deref() != Some("veth") || host.alias.is_some() || host.link != Some(inside.index) {
        return Ok(());
    }
    let interfaces = network.key("prevResult").and_then(|previous| previous.get("interfaces"));
    let known = interfaces.and_then(Value::as_array).into_iter().flatten().find(|interface| {
        let text = |key: &str| interface.get(key).and_then(Value::as_str).unwrap_or_default();
        text("name") == ifname && !text("sandbox").is_empty()
    });
    let mac = known.and_then(|interface| interface.get("mac")).and_then(Value::as_str);
    let is_ours = mac.is_none_or(|mac| inside.mac.is_some_and(|found| found.to_string() == mac));
    if is_ours {
        rtnl.run(Request::DeleteLink(LinkRef::Index(host.index))).missing_is_fine()?;
    }
    Ok(())
}

pub(super) fn gc(network: &Network) -> Result<(), CniError> {
    let valid = network.valid_attachments()?;
    let (node, mut rtnl) = (Node::here()?, Rtnl::open()?);
    let mut errors = Vec::new();
    let lock = node.lock()?;
    errors.extend(node.marks().sweep().err());
    drop(lock);
    let (marks, bad) = node.marks().list()?;
    errors.extend(bad);
    let marked = marks.into_iter().filter(|mark| mark.network == network.name);
    let mut all: Vec<Attachment> = marked.map(|m| Attachment::new(m.container_id, m.ifname)).collect();
    let links = rtnl.links()?;
    all.extend(links.iter().filter_map(|link| of_alias(network, link.alias.as_deref()?)));
    all.sort();
    all.dedup();
    for attachment in all.iter().filter(|attachment| !valid.contains(attachment)) {
        match undo(&node, &mut rtnl, network, attachment) {
            Ok(left) => errors.extend(left.map(|left| CniError::new(Code::Delegate, left))),
            Err(error) => errors.push(error),
        }
    }
    errors.extend(masquerade::collect(network, &valid).err());
    errors.extend(ipam(network).and_then(|ipam| ipam.run("GC", network)).err());
    let mut errors = errors.into_iter();
    match errors.next() {
        None => Ok(()),
        Some(first) => Err(errors.fold(first, CniError::with)),
    }
}

pub(super) fn status(network: &Network) -> Result<(), CniError> {
    let ask = || {
        read(network)?;
        ipam(network)?.run("STATUS", network)
    };
    ask().map_err(|error| match error.code {
        Code::Foreign(50 | 51) => error,
        _ => CniError { code: Code::NotAvailable, ..error },
    })
}

pub(super) fn check(network: &Network, target: &Target) -> Result<(), CniError> {
    let conf = read(network)?;
    let previous = network.previous()?;
    let ipam = ipam(network)?;
    ipam.run("CHECK", network)?;
    let namespace = netns::open(target)?;
    let ifname = target.attachment.ifname.as_str();
    let damaged = |wrong: &[String]| {
        let message = format!("{}: {}", target.attachment, wrong.first().cloned().unwrap_or_default());
        CniError::new(Code::Damaged, message).with(wrong.join("\n"))
    };
    let interfaces = previous.get("interfaces").and_then(Value::as_array).cloned().unwrap_or_default();
    let text = |value: &Value, key: &str| value.get(key).and_then(Value::as_str).unwrap_or("").to_owned();
    let netns = target.netns.to_string_lossy();
    let ours = |i: &Value| text(i, "name") == ifname && text(i, "sandbox") == netns;
    let Some(at) = interfaces.iter().position(ours) else {
        return Err(damaged(&[format!("prevResult: interface {ifname} in {netns} is missing")]));
    };
    let mut of_interface = previous.clone();
    if let Some(ips) = of_interface.get_mut("ips").and_then(Value::as_array_mut) {
        ips.retain(|ip| ip.get("interface").and_then(Value::as_u64) == u64::try_from(at).ok());
    }
    let answer = parse(&ipam, of_interface)?;
    let mut wrong = Vec::new();
    let inside = namespace.visit(|| check_inside(ifname, &answer, &interfaces[at], &mut wrong))?;
    let mut rtnl = Rtnl::open()?;
    let host = inside.as_ref().and_then(|inside| inside.link).map(|index| rtnl.link(index)).transpose()?;
    match host.flatten() {
        Some(host) => check_host(&mut rtnl, &conf, &answer, &host, &mut wrong)?,
        None => wrong.push(format!("{ifname}: has no peer on the node")),
    }
    for sysctl in forwarding(&answer.given) {
        if sysctl.read()? != "1" {
            wrong.push(format!("{sysctl}: is off"));
        }
    }
    if conf.masquerade {
        let nets: Vec<IpNet> = answer.given.iter().map(|given| given.net).collect();
        wrong.extend(masquerade::missing(network, &target.attachment, &nets)?);
    }
    if wrong.is_empty() { Ok(()) } else { Err(damaged(&wrong)) }
}

fn check_inside(
    ifname: &str,
    answer: &Answer,
    known: &Value,
    wrong: &mut Vec<String>,
) -> Result<Option<Link>, CniError> {
    let mut rtnl = Rtnl::open()?;
    let Some(link) = rtnl.link(ifname)? else {
        wrong.push(format!("{ifname}: is missing"));
        return Ok(None);
    };
    let mac = known.get("mac").and_then(Value::as_str).unwrap_or_default();
    let found = link.mac.map(|mac| mac.to_string()).unwrap_or_default();
    if !mac.is_empty() && found != mac {
        wrong.push(format!("{ifname}: mac {found} found, {mac} expected"));
    }
    if let Some(mtu) = known.get("mtu").and_then(Value::as_u64).filter(|mtu| *mtu != u64::from(link.mtu)) {
        wrong.push(format!("{ifname}: mtu {} found, {mtu} expected", link.mtu));
    }
    if !link.up {
        wrong.push(format!("{ifname}: is down"));
    }
    let there = rtnl.addresses(Some(link.index))?;
    for given in answer.given.iter().filter(|given| !there.iter().any(|info| info.address == given.net)) {
        wrong.push(format!("{ifname}: address {} is missing", given.net));
    }
    let there = rtnl.routes(RouteFilter { table: None, protocol: None })?;
    for route in routes_in(answer, link.index) {
        // The metric may be a second interface's.
        let same = |found: &Route| {
            found.destination == route.destination
                && found.table == route.table
                && found.interface == route.interface
                && found.gateway == route.gateway
        };
        if !there.iter().any(same) {
            wrong.push(format!("{ifname}: route {} is missing", route.destination));
        }
    }
    Ok(Some(link))
}

fn check_host(
    rtnl: &mut Rtnl,
    conf: &Conf,
    answer: &Answer,
    host: &Link,
    wrong: &mut Vec<String>,
) -> Result<(), CniError> {
    if !host.up {
        wrong.push(format!("{}: is down", host.name));
    }
    if let Some(mtu) = conf.mtu.filter(|mtu| *mtu != host.mtu) {
        wrong.push(format!("{}: mtu {} found, {mtu} expected", host.name, host.mtu));
    }
    let there = rtnl.addresses(Some(host.index))?;
    for address in host_addresses(&answer.given, host.index) {
        if !there.iter().any(|info| info.address == address.address) {
            wrong.push(format!("{}: address {} is missing", host.name, address.address));
        }
    }
    let there = rtnl.routes(RouteFilter { table: None, protocol: None })?;
    for route in host_routes(&answer.given, host.index) {
        let same =
            |found: &Route| found.destination == route.destination && found.interface == Some(host.index);
        if !there.iter().any(same) {
            wrong.push(format!("{}: route {} is missing", host.name, route.destination));
        }
    }
    Ok(())
}
