//! `portmap`: leads ports of the node to an interface that the plugin before in the chain made.
//!
//! The rules are those of upstream's nftables backend, in tables `ip cni_hostport` and `ip6 cni_hostport`: one rule for
//! each port, whose comment is the container id. So rules that upstream made are found and removed here, and the
//! reverse. `"backend": "iptables"` is served by the same rules. Of `conditionsV4` and `conditionsV6` what keeps its meaning
//! in such a rule ([`super::conditions`]) holds for the container's own ports; other words are refused, and so is
//! `externalSetMarkChain`, the name of somebody else's iptables chain.
//!
//! What upstream's iptables backend made for a container ends with its DEL or GC, too ([`super::iptables`]).
//!
//! A comment does not say whose network the container is in, so a file for each attachment does, below
//! `/run/podway/portmap`: that is what GC goes by. It names the interfaces behind which the container is. Where such an
//! interface was opened for the node's loopback, another file says so, and the last container with ports behind it
//! closes it again. What somebody else had opened stays open.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use podway_ipam::{AddressLock, Attachment};
use podway_kern::MissingIsFine as _;
use podway_kern::conntrack::Conntrack;
use podway_kern::nft::NftSocket;
use podway_kern::rtnl::{Link, Request, Route, RouteKind, Rtnl, TABLE_LOCAL};
use podway_kern::sysctl::{Family as SysctlFamily, Sysctl};
use podway_model::endpoint::HostPort;
use podway_model::ids::NetworkName;
use podway_model::mistakes::Mistakes;
use podway_model::names::{POD_ROUTE_PROTOCOL, RUN_DIR};
use podway_nft::{
    Chain, ChainKind, CommitError, Family, Field, Hook, Name, Nftables as _, Op, Policy, Priority, Rule,
    RuleDump, TableDump, TableFlags, TableId, Transaction, Value as Bytes, Verdict, ct_status, fib_type,
    tables::describe_port,
};
use serde_json::{Map, Value};

use super::conditions::{self, Condition};
use super::iptables::{self, Purpose};
use super::passed_on;
use crate::conf::Network;
use crate::env::Target;
use crate::error::{CniError, Code};
use crate::plugins::ports;

const TABLE: Name = Name::literal("cni_hostport");
const ALL: Name = Name::literal("hostports_all");
/// Not used for new rules; upstream keeps it for those of earlier versions.
const WITH_ADDRESS: Name = Name::literal("hostip_hostports");
const PORTS: Name = Name::literal("hostports");
const MASQUERADING: Name = Name::literal("masquerading");
const PREROUTING: Name = Name::literal("prerouting");
const OUTPUT: Name = Name::literal("output");
const FAMILIES: [Family; 2] = [Family::Ip, Family::Ip6];

/// What is asked for.
struct Conf {
    ports: Vec<HostPort>,
    /// Whether loopback and the container itself are masqueraded, so that answers come back.
    snat: bool,
    /// Whether everybody is.
    masquerade_all: bool,
    /// What packets to the ports must be besides: IPv4, then IPv6.
    conditions: [Vec<Condition>; 2],
}

fn read(network: &Network) -> Result<Conf, CniError> {
    let refuse = |key: &str, value: &str, why: &str| {
        Err(CniError::new(Code::UnsupportedField, format!("{key}: {value} is not supported ({why})")))
    };
    match network.key("externalSetMarkChain") {
        None | Some(Value::Null) => {}
        Some(chain) => {
            let why = "it names a chain of iptables that marks for a masquerade of its own; there are no such rules here";
            return refuse("externalSetMarkChain", &chain.to_string(), why);
        }
    }
    let mut conditions = [Vec::new(), Vec::new()];
    for (key, v6) in [("conditionsV4", false), ("conditionsV6", true)] {
        let list = match network.key(key) {
            None | Some(Value::Null) => continue,
            Some(Value::Array(list)) => list,
            Some(other) => return refuse(key, &other.to_string(), "a list of words is expected"),
        };
        let Some(words) = list.iter().map(Value::as_str).collect::<Option<Vec<&str>>>() else {
            return refuse(key, &Value::from(list.clone()).to_string(), "a list of words is expected");
        };
        match conditions::parse(&words, v6) {
            Ok(all) => conditions[usize::from(v6)] = all,
            Err(words) => {
                let why =
                    "served are source, destination and incoming interface, in the words of iptables or nft";
                return refuse(key, &format!("{words:?}"), why);
            }
        }
    }
    let mut mistakes = Mistakes::default();
    let mut flag = |key: &str, default: bool| match network.key(key) {
        None | Some(Value::Null) => default,
        Some(Value::Bool(on)) => *on,
        Some(other) => {
            mistakes.add("network configuration", key, other, "true or false");
            default
        }
    };
    let (snat, masquerade_all) = (flag("snat", true), flag("masqAll", false));
    match network.key("backend") {
        None | Some(Value::Null) => {}
        Some(backend) if matches!(backend.as_str(), Some("iptables" | "nftables")) => {}
        Some(other) => mistakes.add("network configuration", "backend", other, "iptables or nftables"),
    }
    let ports = ports::parse(network.runtime("portMappings"), &mut mistakes);
    if mistakes.is_empty() {
        Ok(Conf { ports, snat, masquerade_all, conditions })
    } else {
        Err(CniError::config(&mistakes))
    }
}

/// The container's addresses, at most one of each family: those of its interface, or of no interface at all.
fn addresses(previous: &Map<String, Value>, ifname: &str) -> Vec<IpAddr> {
    let interfaces = previous.get("interfaces").and_then(Value::as_array);
    let is_ours = |ip: &Value| {
        let Some(index) = ip.get("interface").and_then(Value::as_u64) else { return true };
        let interface = interfaces.and_then(|list| list.get(usize::try_from(index).ok()?));
        let text = |key: &str| interface.and_then(|i| i.get(key)).and_then(Value::as_str).unwrap_or_default();
        interface.is_none() || (text("name") == ifname && !text("sandbox").is_empty())
    };
    let mut all: Vec<IpAddr> = Vec::new();
    for ip in previous.get("ips").and_then(Value::as_array).into_iter().flatten().filter(|ip| is_ours(ip)) {
        let address = ip.get("address").and_then(Value::as_str).and_then(|text| text.parse::<IpNet>().ok());
        if let Some(address) = address.map(|net| net.addr())
            && all.iter().all(|other| other.is_ipv4() != address.is_ipv4())
        {
            all.push(address);
        }
    }
    all
}

fn family_of(ip: IpAddr) -> Family {
    if ip.is_ipv4() { Family::Ip } else { Family::Ip6 }
}

fn table(family: Family) -> TableId {
    TableId { family, name: TABLE }
}

/// Ports of which packets of this family can be led to the container.
fn of_family(ports: &[HostPort], ip: IpAddr) -> impl Iterator<Item = &HostPort> {
    ports.iter().filter(move |port| port.host_ip.is_none_or(|host| host.is_ipv4() == ip.is_ipv4()))
}

/// Rules of one container and family, each with its chain.
fn rules(conf: &Conf, ip: IpAddr, container: &str) -> Vec<(Name, Rule)> {
    let (source, destination) = (Field::saddr(ip), Field::daddr(ip));
    let mut all = Vec::new();
    for port in of_family(&conf.ports, ip) {
        let mut rule = Rule::new(container);
        for condition in &conf.conditions[usize::from(ip.is_ipv6())] {
            rule = condition.ask(rule);
        }
        if let Some(host) = port.host_ip.filter(|host| !host.is_unspecified()) {
            rule = rule.is(destination, host);
        }
        let rule = rule.is(Field::L4Proto, port.protocol.number()).is(Field::ThDport, port.host_port);
        all.push((PORTS, rule.dnat_to(SocketAddr::new(ip, port.container_port))));
    }
    if conf.snat {
        let loopback: IpAddr =
            if ip.is_ipv4() { Ipv4Addr::LOCALHOST.into() } else { Ipv6Addr::LOCALHOST.into() };
        for from in [ip, loopback] {
            let rule = Rule::new(container).is(source, from).is(destination, ip);
            all.push((MASQUERADING, rule.with(podway_nft::Expr::Masquerade { fully_random: false })));
        }
    }
    if conf.masquerade_all {
        let rule = Rule::new(container).any_bit(Field::CtStatus, ct_status::DNAT).is(destination, ip);
        all.push((MASQUERADING, rule.with(podway_nft::Expr::Masquerade { fully_random: false })));
    }
    all
}

/// Chains that all containers share, and the rules that lead to them.
fn skeleton(family: Family) -> Transaction {
    let table = table(family);
    let nat = |name, hook, priority| Chain::base(name, ChainKind::Nat, hook, priority, Policy::Accept);
    let local = || Rule::new("").is(Field::FibDaddrType, fib_type::LOCAL).jump(ALL);
    let jump = |chain| Rule::new("").verdict(Verdict::Jump(chain));
    let chains = [
        Chain::regular(PORTS),
        Chain::regular(WITH_ADDRESS),
        Chain::regular(ALL).rule(jump(WITH_ADDRESS)).rule(jump(PORTS)),
        nat(PREROUTING, Hook::Prerouting, Priority::DSTNAT).rule(local()),
        nat(OUTPUT, Hook::Output, Priority::DSTNAT).rule(local()),
        nat(MASQUERADING, Hook::Postrouting, Priority::SRCNAT),
    ];
    let mut transaction = Transaction::new();
    transaction.push(Op::AddTable { table: table.clone(), flags: TableFlags::default() });
    for chain in chains {
        let (table, name) = (table.clone(), chain.name);
        transaction.push(Op::AddChain { table: table.clone(), name: name.clone(), base: chain.base });
        if !chain.rules.is_empty() {
            transaction.push(Op::FlushChain { table: table.clone(), name: name.clone() });
        }
        for rule in chain.rules {
            transaction.push(Op::AddRule { table: table.clone(), chain: name.clone(), rule });
        }
    }
    transaction
}

/// The host port of a rule that somebody made, and whose it is.
fn held(rule: &RuleDump) -> Option<(HostPort, &str)> {
    let of = |field: Field| {
        rule.asked.iter().find(|(asked, _)| *asked == field).map(|(_, value)| value.as_bytes())
    };
    let number = *of(Field::L4Proto)?.first()?;
    let protocol =
        podway_model::k8s::Protocol::ALL.into_iter().find(|protocol| protocol.number() == number)?;
    let host_port = u16::from_be_bytes(*of(Field::ThDport)?.first_chunk::<2>()?);
    let v4 = of(Field::IpDaddr).and_then(|bytes| Some(IpAddr::from(*bytes.first_chunk::<4>()?)));
    let v6 = of(Field::Ip6Daddr).and_then(|bytes| Some(IpAddr::from(*bytes.first_chunk::<16>()?)));
    Some((HostPort { host_ip: v4.or(v6), host_port, container_port: 0, protocol }, &rule.comment))
}

fn connect() -> Result<NftSocket, CniError> {
    NftSocket::open().map_err(|error| failed(&CommitError::Io(error)))
}

fn failed(error: &CommitError) -> CniError {
    CniError::new(Code::Kernel, format!("host ports: nftables: {error}"))
}

fn dump(socket: &mut NftSocket, family: Family) -> Result<Option<TableDump>, CniError> {
    socket.dump(&table(family)).map_err(|error| failed(&error))
}

/// Rules of a dump with the names of their chains.
fn each(found: &TableDump) -> impl Iterator<Item = (&Name, &RuleDump)> {
    found.chains.iter().flat_map(|chain| chain.rules.iter().map(move |rule| (&chain.name, rule)))
}

/// Removes the rules of a container.
fn remove(socket: &mut NftSocket, container: &str) -> Result<(), CniError> {
    for family in FAMILIES {
        let Some(found) = dump(socket, family)? else { continue };
        let mut transaction = Transaction::new();
        for (chain, rule) in each(&found).filter(|(_, rule)| rule.comment == container) {
            transaction.push(Op::DeleteRule {
                table: table(family),
                chain: chain.clone(),
                handle: rule.handle,
            });
        }
        socket.commit(&transaction).map_err(|error| failed(&error))?;
    }
    Ok(())
}

/// The files that say which containers of which network have host ports, locked until the value is dropped.
struct Marks {
    dir: PathBuf,
    _lock: AddressLock,
}

impl Marks {
    fn open() -> Result<Self, CniError> {
        let dir = PathBuf::from(RUN_DIR).join("portmap");
        Ok(Self { _lock: AddressLock::acquire(&dir)?, dir })
    }

    fn path(&self, network: &NetworkName, attachment: &Attachment) -> PathBuf {
        self.dir.join(format!("{network}@{}@{}", attachment.container_id, attachment.ifname))
    }

    fn set(
        &self,
        network: &NetworkName,
        attachment: &Attachment,
        interfaces: &BTreeSet<String>,
    ) -> Result<(), CniError> {
        let path = self.path(network, attachment);
        let text = interfaces.iter().fold(String::new(), |text, name| text + name + "\n");
        fs::write(&path, text).map_err(|e| CniError::io(&path, "write", &e))
    }

    /// The interfaces that a file names; none without it.
    fn interfaces(path: &Path) -> Result<BTreeSet<String>, CniError> {
        match fs::read_to_string(path) {
            Ok(text) => Ok(text.lines().map(str::to_owned).collect()),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(BTreeSet::new()),
            Err(e) => Err(CniError::io(path, "read", &e)),
        }
    }

    /// The file that says that an interface was opened here for the node's loopback.
    fn opened(&self, interface: &str) -> PathBuf {
        // No name of an attachment's file has no `@`.
        self.dir.join(format!("loopback.{interface}"))
    }

    /// Whether a container with ports is behind an interface.
    fn is_used(&self, interface: &str) -> Result<bool, CniError> {
        let fail = |e: &io::Error| CniError::io(&self.dir, "list", e);
        for entry in fs::read_dir(&self.dir).map_err(|e| fail(&e))? {
            let path = entry.map_err(|e| fail(&e))?.path();
            let of_attachment = path.file_name().is_some_and(|name| name.to_string_lossy().contains('@'));
            if of_attachment && Self::interfaces(&path)?.contains(interface) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Ends what stands for an attachment, and closes the interfaces that were opened for it alone.
    fn end(&self, network: &NetworkName, attachment: &Attachment) -> Result<(), CniError> {
        let interfaces = Self::interfaces(&self.path(network, attachment))?;
        self.remove(network, attachment)?;
        for interface in interfaces {
            if !self.is_used(&interface)? {
                close_loopback(self, &interface)?;
            }
        }
        Ok(())
    }

    fn remove(&self, network: &NetworkName, attachment: &Attachment) -> Result<(), CniError> {
        let path = self.path(network, attachment);
        match fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(CniError::io(&path, "remove", &e)),
            _ => Ok(()),
        }
    }

    /// Attachments of a network.
    fn of(&self, network: &NetworkName) -> Result<Vec<Attachment>, CniError> {
        let fail = |e: &io::Error| CniError::io(&self.dir, "list", e);
        let mut all = Vec::new();
        for entry in fs::read_dir(&self.dir).map_err(|e| fail(&e))? {
            let name = entry.map_err(|e| fail(&e))?.file_name();
            let parts: Vec<&str> = name.to_str().unwrap_or_default().split('@').collect();
            let [of, container, ifname] = parts[..] else { continue };
            if let (true, Ok(container), Ok(ifname)) =
                (of == network.as_str(), container.parse(), ifname.parse())
            {
                all.push(Attachment::new(container, ifname));
            }
        }
        Ok(all)
    }
}

pub(super) fn add(network: &Network, target: &Target) -> Result<Value, CniError> {
    let conf = read(network)?;
    let Some(previous) = network.previous_if_any()? else {
        let message = "prevResult: nothing found, the result of the plugin before in the chain expected";
        return Err(CniError::new(Code::Config, message));
    };
    let ips = addresses(&previous, target.attachment.ifname.as_str());
    if !conf.ports.is_empty() {
        let mut rtnl = Rtnl::open()?;
        let made = open(&mut rtnl, network, target, &conf, &ips);
        if let Err(error) = made {
            return Err(match del(network, &target.attachment) {
                Ok(()) => error,
                Err(undo) => error.with(format_args!("and undoing it failed: {undo}")),
            });
        }
    }
    Ok(passed_on(network, previous).into())
}

fn open(
    rtnl: &mut Rtnl,
    network: &Network,
    target: &Target,
    conf: &Conf,
    ips: &[IpAddr],
) -> Result<(), CniError> {
    let container = target.attachment.container_id.as_str();
    let mut socket = connect()?;
    {
        let marks = Marks::open()?;
        // What an ADD left that was killed.
        remove(&mut socket, container)?;
        for ip in ips {
            let found = dump(&mut socket, family_of(*ip))?;
            refuse_held(found.as_ref(), conf, *ip)?;
        }
        let mut interfaces = BTreeSet::new();
        for ip in ips.iter().filter(|_| conf.snat) {
            interfaces.extend(interface_to(rtnl, *ip)?.map(|link| link.name));
        }
        marks.set(&network.name, &target.attachment, &interfaces)?;
        for ip in ips {
            let family = family_of(*ip);
            let mut transaction = skeleton(family);
            for (chain, rule) in rules(conf, *ip, container) {
                transaction.push(Op::AddRule { table: table(family), chain, rule });
            }
            socket.commit(&transaction).map_err(|error| failed(&error))?;
        }
        for ip in ips.iter().filter(|_| conf.snat) {
            open_loopback(rtnl, &marks, *ip)?;
        }
    }
    ports::forget_flows(rtnl, &conf.ports)
}

fn refuse_held(found: Option<&TableDump>, conf: &Conf, ip: IpAddr) -> Result<(), CniError> {
    let all: Vec<_> = found.iter().flat_map(|found| each(found)).filter_map(|(_, rule)| held(rule)).collect();
    for port in of_family(&conf.ports, ip) {
        if let Some((_, holder)) = all.iter().find(|(other, _)| ports::overlap(other, port)) {
            let port = describe_port(port);
            let message =
                format!("runtimeConfig.portMappings: host port {port} is held by container {holder}");
            return Err(CniError::new(Code::TryAgain, message));
        }
    }
    Ok(())
}

/// The interface behind which an address is.
fn interface_to(rtnl: &mut Rtnl, ip: IpAddr) -> Result<Option<Link>, CniError> {
    let index = rtnl.route_to(ip)?.interface;
    Ok(index.map(|index| rtnl.link(index)).transpose()?.flatten())
}

fn localnet(interface: &str) -> Sysctl {
    Sysctl::conf(SysctlFamily::V4, interface, "route_localnet")
}

/// What makes ::1 reach across an interface.
fn loopback_route(index: u32) -> Route {
    Route {
        kind: RouteKind::Local,
        table: TABLE_LOCAL,
        interface: Some(index),
        metric: index,
        ..Route::to(IpNet::from(IpAddr::from(Ipv6Addr::LOCALHOST)), POD_ROUTE_PROTOCOL)
    }
}

/// Lets the node's loopback reach the container: its addresses may cross the interface behind which it is.
fn open_loopback(rtnl: &mut Rtnl, marks: &Marks, ip: IpAddr) -> Result<(), CniError> {
    let Some(link) = interface_to(rtnl, ip)? else { return Ok(()) };
    if !ip.is_ipv4() {
        return Ok(rtnl.run(Request::ReplaceRoute(loopback_route(link.index)))?);
    }
    let sysctl = localnet(&link.name);
    if sysctl.read()? != "1" {
        // Said before it is done: what was not done is closed in vain.
        let path = marks.opened(&link.name);
        fs::write(&path, "").map_err(|e| CniError::io(&path, "write", &e))?;
        sysctl.ensure("1")?;
    }
    Ok(())
}

/// Closes an interface for the node's loopback, as far as it was opened here.
fn close_loopback(marks: &Marks, interface: &str) -> Result<(), CniError> {
    let path = marks.opened(interface);
    let mut rtnl = Rtnl::open()?;
    if let Some(link) = rtnl.link(interface)? {
        rtnl.run(Request::DeleteRoute(loopback_route(link.index))).missing_is_fine()?;
        if path.exists() {
            localnet(interface).ensure("0")?;
        }
    }
    match fs::remove_file(&path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(CniError::io(&path, "remove", &e)),
        _ => Ok(()),
    }
}

pub(super) fn del(network: &Network, attachment: &Attachment) -> Result<(), CniError> {
    let marks = Marks::open()?;
    let mut socket = connect()?;
    remove(&mut socket, attachment.container_id.as_str())?;
    iptables::end(&mut socket, Purpose::HostPorts, network, attachment)?;
    // What cannot be read must not keep the ports open: flows end with the address then.
    if let Ok(Some(previous)) = network.previous_if_any() {
        let ips: BTreeSet<IpAddr> = addresses(&previous, attachment.ifname.as_str()).into_iter().collect();
        Conntrack::open()?.delete(&ips)?;
    }
    marks.end(&network.name, attachment)
}

pub(super) fn gc(network: &Network) -> Result<(), CniError> {
    let valid = network.valid_attachments()?;
    let marks = Marks::open()?;
    let mut socket = connect()?;
    let mut errors = Vec::new();
    for attachment in marks.of(&network.name)?.iter().filter(|attachment| !valid.contains(attachment)) {
        let removed = remove(&mut socket, attachment.container_id.as_str());
        errors.extend(removed.and_then(|()| marks.end(&network.name, attachment)).err());
    }
    errors.extend(iptables::collect(&mut socket, Purpose::HostPorts, network, &valid).err());
    let mut errors = errors.into_iter();
    errors.next().map_or(Ok(()), |first| Err(errors.fold(first, CniError::with)))
}

pub(super) fn check(network: &Network, target: &Target) -> Result<(), CniError> {
    let conf = read(network)?;
    let ips = addresses(network.previous()?, target.attachment.ifname.as_str());
    if conf.ports.is_empty() {
        return Ok(());
    }
    let container = target.attachment.container_id.as_str();
    let mut socket = connect()?;
    let mut wrong = Vec::new();
    for ip in ips {
        let id = table(family_of(ip));
        let Some(found) = dump(&mut socket, id.family)? else {
            wrong.push(format!("nft table {id} is missing"));
            continue;
        };
        let own: Vec<_> = each(&found).filter(|(_, rule)| rule.comment == container).collect();
        for port in of_family(&conf.ports, ip) {
            let host = port.host_ip.filter(|host| !host.is_unspecified());
            let is_it = |rule: &RuleDump| {
                held(rule).is_some_and(|(found, _)| {
                    (found.host_ip, found.host_port, found.protocol) == (host, port.host_port, port.protocol)
                })
            };
            if !own.iter().any(|(_, rule)| is_it(rule)) {
                wrong.push(format!("nft table {id}: host port {} is not open", describe_port(port)));
            }
        }
        let destination = Field::daddr(ip);
        let masqueraded = own.iter().any(|(chain, rule)| {
            **chain == MASQUERADING && rule.asked.contains(&(destination, Bytes::from(ip)))
        });
        if conf.snat && !masqueraded {
            wrong.push(format!("nft table {id}: {ip} is not masqueraded for itself"));
        }
        for chain in [PREROUTING, OUTPUT, ALL] {
            let there = found.chains.iter().any(|found| found.name == chain && !found.rules.is_empty());
            if !there {
                wrong.push(format!("nft table {id}: chain {chain} is missing or empty"));
            }
        }
    }
    match wrong.first() {
        None => Ok(()),
        Some(first) => Err(CniError::new(Code::Damaged, first.clone()).with(wrong.join("\n"))),
    }
}
