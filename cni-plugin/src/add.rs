//! ADD: gives a pod its interface.
//!
//! ```text
//!  1 look      environment, configuration, namespace, nft tables; under the address lock: node file
//!  2 guard     table `inet podway-guard`, if it is missing
//!  3 lease     the addresses are ours from here on, and clean before the link goes up; or another plugin gives them
//!  4 record    the daemons know the pod before its link exists
//!  5 link      the pair, the pod's end in its namespace; group, alias, addresses, neighbours
//!  6 up        sysctls, rates, then the node's end up, then the pod's; routes, host ports
//!  7 policy    the agent's acknowledgement; up to here the fence keeps the pod closed
//! ```
//!
//! Steps 1 to 4 are cheap to repeat. Who fails later undoes everything in reverse order, the address last. Who is
//! killed is cleaned up by the DEL that the runtime sends, or by an ADD of the same attachment: it has a lease (or a
//! mark, where another plugin gives addresses: [`crate::delegate`]) exactly if anything else of it can be there.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::os::fd::AsFd as _;
use std::time::Duration;

use podway_ipam::LeaseKind;
use podway_kern::KernelError;
use podway_kern::conntrack::Conntrack;
use podway_kern::rtnl::{Link, Request, Rtnl};
use podway_model::SCHEMA;
use podway_model::cluster::{PolicyMode, PolicyTimeout};
use podway_model::endpoint::EndpointRecord;
use podway_model::mistakes::Mistakes;
use podway_model::names::attachment_id;
use podway_model::node_file::NodeFile;
use serde_json::Value;

use crate::conf::{AddConf, Network};
use crate::delegate::{self, Delegate, Mark};
use crate::env::Target;
use crate::error::{CniError, Code};
use crate::netns::PodNetNs;
use crate::node::Node;
use crate::plugins::bandwidth::{self, Rates};
use crate::plugins::ports;
use crate::policy::{self, Acknowledgement};
use crate::tables::Tables;
use crate::teardown::Owner;
use crate::wiring::Wiring;
use crate::{link, netns, result, teardown, wish};

/// Metric of the default routes of an interface that is not the pod's first: behind those of the first one.
const SECOND_METRIC: u32 = 2048;
/// The pod's addresses, whoever gave them.
struct Addressed {
    file: NodeFile,
    addresses: Vec<IpAddr>,
    /// Those that conntrack may know from an earlier holder.
    dirty: Vec<IpAddr>,
    /// Gateways that another plugin names.
    gateways: Vec<IpAddr>,
}

/// Attaches a pod and returns the result.
pub fn add(network: &Network, target: &Target) -> Result<Value, CniError> {
    let mut conf = network.for_add()?;
    conf.addresses.add_asked(&target.ips);
    let mac = conf.mac.or(target.mac).or(conf.addresses.annotations.mac);
    conf.settings.mac = mac.or(conf.settings.mac);
    let netns = netns::open(target)?;
    let node = Node::here()?;
    let delegate = Delegate::of(network)?;
    let mut tables = Tables::look()?;
    let mut rtnl = Rtnl::open()?;
    let addressed = match &delegate {
        None => lease(&node, &mut rtnl, network, &conf, target, &mut tables)?,
        Some(delegate) => {
            let file = ready(&node, &conf, &mut tables)?;
            let given = ask(delegate, &node, &mut rtnl, network, target, &file);
            let given = given.map_err(|error| undo(&node, &mut rtnl, network, target, error))?;
            if conf.settings.routes.is_none() && !given.routes.is_empty() {
                conf.settings.routes = Some(given.routes);
            }
            let said = std::mem::replace(&mut conf.dns, given.dns);
            conf.dns.extend(said);
            Addressed {
                file,
                addresses: given.addresses.clone(),
                dirty: given.addresses,
                gateways: given.gateways,
            }
        }
    };
    let settings = conf.settings.clone();
    let mtu = mtu(&conf, &addressed.file)?;
    let wiring = Wiring::new(&target.attachment, mtu, addressed.addresses.clone(), settings)
        .with_gateways(&addressed.gateways);
    let mut record = record(&node, network, target, &wiring);
    record.host_ports = conf.host_ports;
    record.ipam = delegate.map(|delegate| delegate.name().to_owned());
    wire(&node, &mut rtnl, &record, &conf.rates, target, &netns, &wiring, &addressed)
        .map_err(|error| undo(&node, &mut rtnl, network, target, error))?;
    let netns = target.netns.to_string_lossy();
    Ok(result::form(&wiring, &netns, &conf.dns, network.version, conf.previous.as_ref()))
}

/// Takes back what was done, and says what could not be.
fn undo(node: &Node, rtnl: &mut Rtnl, network: &Network, target: &Target, error: CniError) -> CniError {
    match teardown::end(node, rtnl, network, &target.attachment) {
        Ok(ended) => match ended.left {
            None => error,
            Some(left) => error.with(left),
        },
        Err(undo) => error.with(format_args!("and undoing it failed: {undo}")),
    }
}

/// The pod's MTU: the configuration's, which must fit the node's.
fn mtu(conf: &AddConf, file: &NodeFile) -> Result<podway_model::ids::Mtu, CniError> {
    match conf.mtu {
        Some(wanted) if wanted > file.mtu => {
            let mut mistakes = Mistakes::default();
            let expected = format!("at most {}, the node's MTU,", file.mtu);
            mistakes.add("network configuration", "podway.mtu", wanted, expected);
            Err(CniError::config(&mistakes))
        }
        Some(wanted) => Ok(wanted),
        None => Ok(file.mtu),
    }
}

/// Leases the addresses, if the node is ready for a pod. What an earlier ADD of this attachment left is cleared first;
/// an attachment of another network under the same interface name is not touched.
fn lease(
    node: &Node,
    rtnl: &mut Rtnl,
    network: &Network,
    conf: &AddConf,
    target: &Target,
    tables: &mut Tables,
) -> Result<Addressed, CniError> {
    let mut leases = node.leases()?;
    if let Some(old) = leases.ledger().lease_of(&target.attachment) {
        if old.network != network.name || old.kind != LeaseKind::Wired {
            return Err(not_ours(target, old.network.as_str()));
        }
        drop(leases);
        teardown::clear(node, rtnl, &target.attachment)?;
        leases = node.leases()?;
    }
    // Under the lock: see `podway_ipam::node`.
    let file = ready(node, conf, tables)?;
    let wish = &conf.addresses;
    let request =
        wish.request(&target.attachment, &network.name, target.pod.as_ref(), &file, LeaseKind::Wired)?;
    let grant = wish::lease(node, rtnl, &mut leases, &file, &request)?;
    let addresses = grant.lease.ips().collect();
    Ok(Addressed { file, addresses, dirty: grant.dirty, gateways: Vec::new() })
}

fn not_ours(target: &Target, network: &str) -> CniError {
    let (ifname, container) = (&target.attachment.ifname, &target.attachment.container_id);
    let message = format!("CNI_IFNAME: {ifname} of container {container} belongs to network {network}");
    CniError::new(Code::Environment, message)
}

/// Is the node ready for a pod? Its file, and the guard in place.
fn ready(node: &Node, conf: &AddConf, tables: &mut Tables) -> Result<NodeFile, CniError> {
    let file = node.file()?;
    conf.rates.fit(mtu(conf, &file)?)?;
    if file.policy == PolicyMode::Required && !tables.has_policy() {
        return Err(policy::refused("table inet podway-policy is missing; is it running?"));
    }
    tables.ensure_guard()?;
    Ok(file)
}

/// Has another plugin give the addresses. What an earlier ADD of this attachment left is ended first, its addresses too:
/// such a plugin gives one attachment no second address.
fn ask(
    delegate: &Delegate,
    node: &Node,
    rtnl: &mut Rtnl,
    network: &Network,
    target: &Target,
    file: &NodeFile,
) -> Result<delegate::Given, CniError> {
    let attachment = &target.attachment;
    let earlier = node.marks().read(attachment).unwrap_or_default();
    if let Some(other) = earlier.as_ref().filter(|mark| mark.network != network.name) {
        return Err(not_ours(target, other.network.as_str()));
    }
    if teardown::detach(node, rtnl, &network.name, attachment)?.owner == Owner::Other {
        return Err(not_ours(target, "another"));
    }
    if earlier.is_some()
        && let Some(left) = delegate::end(node.marks(), network, network.foreign_ipam(), attachment)?
    {
        return Err(CniError::new(Code::Delegate, left));
    }
    let mut mark = Mark::new(network, attachment, delegate);
    write(node, &mark)?;
    let given = delegate.add(network)?;
    delegate::refuse_ours(&given, delegate, file)?;
    mark.given = Some(given.clone());
    write(node, &mark)?;
    Ok(given)
}

fn write(node: &Node, mark: &Mark) -> Result<(), CniError> {
    let _lock = node.lock()?;
    node.marks().write(mark)
}

#[expect(clippy::too_many_arguments, reason = "the steps of one sequence share what the look found out")]
fn wire(
    node: &Node,
    rtnl: &mut Rtnl,
    record: &EndpointRecord,
    rates: &Rates,
    target: &Target,
    netns: &PodNetNs,
    wiring: &Wiring,
    addressed: &Addressed,
) -> Result<(), CniError> {
    let file = &addressed.file;
    if record.host_ports.is_empty() {
        node.records().write(record)?;
    } else {
        ports::reserve(node, record)?;
    }
    let link = make_pair(rtnl, netns, target, wiring)?;
    let peer = link.link.ok_or_else(|| {
        CniError::new(Code::Kernel, format!("{}: the kernel does not name its peer", wiring.host_name))
    })?;
    if !addressed.dirty.is_empty() {
        let dirty: BTreeSet<IpAddr> = addressed.dirty.iter().copied().collect();
        Conntrack::open()?.delete(&dirty)?;
    }
    for (sysctl, value) in wiring.host_v6_sysctls().into_iter().chain(ports::sysctls(record)) {
        netns::write_sysctl(&sysctl, &value)?;
    }
    bandwidth::limit(rtnl, rates, &target.attachment, &link, wiring.mtu)?;
    let mut requests = wiring.host_requests(link.index);
    requests.extend(ports::routes(record, link.index).into_iter().map(Request::ReplaceRoute));
    rtnl.run_all(&requests)?;
    let mut inside = netns.visit(|| bring_pod_up(wiring, peer))?;
    link::wait_for_carrier(rtnl, &link)?;
    wait_for_addresses(&mut inside, wiring, peer)?;
    if !record.host_ports.is_empty() {
        ports::open(node, rtnl, record)?;
    }
    if file.policy == PolicyMode::Required
        && let Acknowledgement::Missing(reason) =
            policy::announce(node.policy_socket(), record, policy::PATIENCE)
        && file.policy_timeout == PolicyTimeout::Undo
    {
        return Err(policy::refused(&reason));
    }
    Ok(())
}

fn record(node: &Node, network: &Network, target: &Target, wiring: &Wiring) -> EndpointRecord {
    let (id, ifname) = (&target.attachment.container_id, &target.attachment.ifname);
    EndpointRecord {
        schema: SCHEMA,
        id: attachment_id(id.as_str(), ifname.as_str()),
        boot_id: node.boot().clone(),
        network: network.name.clone(),
        container_id: id.clone(),
        ifname: ifname.clone(),
        host_ifname: wiring.host_name.parse().expect("`pw` and hex digits are an interface name"),
        mac: wiring.pod_mac,
        mtu: wiring.mtu,
        pod: target.pod.clone(),
        addresses: wiring.addresses.clone(),
        host_ports: Vec::new(),
        ipam: None,
        netns: target.netns.to_string_lossy().into_owned(),
    }
}

/// Makes the pair and returns the node's end.
fn make_pair(rtnl: &mut Rtnl, netns: &PodNetNs, target: &Target, wiring: &Wiring) -> Result<Link, CniError> {
    let link = match create(rtnl, netns, wiring, None) {
        Err(e) if e.is_exists() => {
            // A pair of ours whose lease is gone (somebody emptied /run), or a stranger's interface.
            teardown::remove_link(rtnl, &target.attachment)?;
            create(rtnl, netns, wiring, None).map_err(|e| occupied(rtnl, e, target, wiring))?
        }
        other => other?,
    };
    link::with_other_index(rtnl, link, |rtnl, indexes| create(rtnl, netns, wiring, indexes))
}

fn create(
    rtnl: &mut Rtnl,
    netns: &PodNetNs,
    wiring: &Wiring,
    indexes: Option<(u32, u32)>,
) -> Result<Link, KernelError> {
    // By name, so only once it is known that the name is ours.
    rtnl.run(wiring.create(netns.as_fd(), indexes))?;
    rtnl.run(wiring.mark())?;
    match rtnl.link(wiring.host_name.as_str())? {
        Some(link) => Ok(link),
        None => Err(KernelError::Malformed {
            attempted: format!("look up link {}", wiring.host_name),
            reason: "it vanished".to_owned(),
        }),
    }
}

/// Which of the two names was taken.
fn occupied(rtnl: &mut Rtnl, error: KernelError, target: &Target, wiring: &Wiring) -> CniError {
    if !error.is_exists() {
        return error.into();
    }
    match rtnl.link(wiring.host_name.as_str()) {
        Ok(Some(link)) => CniError::new(
            Code::Kernel,
            format!(
                "{}: there is an interface of this name on the node that is not ours (alias {:?})",
                link.name,
                link.alias.unwrap_or_default()
            ),
        ),
        _ => CniError::new(
            Code::Environment,
            format!(
                "CNI_IFNAME: {} exists in {} and is not ours",
                target.attachment.ifname,
                target.netns.display()
            ),
        ),
    }
}

/// Runs in the pod's namespace, and returns its socket there.
fn bring_pod_up(wiring: &Wiring, index: u32) -> Result<Rtnl, CniError> {
    for (sysctl, value) in wiring.pod_sysctls() {
        netns::write_sysctl(&sysctl, &value)?;
    }
    let mut rtnl = Rtnl::open()?;
    let first = wiring.pod_routes(index, None).into_iter().map(Request::AddRoute);
    let requests: Vec<_> = wiring.pod_requests(index).into_iter().chain(first).collect();
    let routes = requests.len() - wiring.addresses.len();
    let mut occupied = false;
    for (i, result) in rtnl.batch(&requests)?.into_iter().enumerate() {
        match result {
            // Another interface has the pod's default route: ours come behind it.
            Err(e) if i >= routes && e.is_exists() => occupied = true,
            other => other?,
        }
    }
    if occupied {
        let second = wiring.pod_routes(index, Some(SECOND_METRIC)).into_iter().map(Request::ReplaceRoute);
        rtnl.run_all(&second.collect::<Vec<_>>())?;
    }
    Ok(rtnl)
}

/// The kernel hands a new IPv6 address to a worker, which makes the route by which packets to it are the pod's; until
/// then they are dropped. The worker waits for the same lock as every ADD and DEL on the machine, so where it is not
/// quick, its route is made here, behind the one that it will make.
fn wait_for_addresses(inside: &mut Rtnl, wiring: &Wiring, index: u32) -> Result<(), CniError> {
    const PATIENCE: Duration = Duration::from_millis(20);
    for address in wiring.addresses.iter().filter(|address| address.is_ipv6()) {
        if !link::wait_for(PATIENCE, || inside.is_local(*address))? {
            inside
                .run(Request::AddRoute(wiring.local_route(*address, index)))
                .or_else(|e| if e.is_exists() { Ok(()) } else { Err(e) })?;
        }
    }
    Ok(())
}
