//! `podway-ipam`: this node's addresses for interfaces that other plugins make (bridge, macvlan, ptp, ...).
//!
//! The same leases as the main plugin's, from the same blocks, chosen by the same wishes. What other plugins want
//! besides is a subnet and a gateway:
//!
//! | `ipam.subnet` | prefix length of the answer | gateway |
//! |---|---|---|
//! | `block` | the block's | an address of the block, its second one if it is free; leased for as long as the node runs |
//! | `pool` | the pool's: a network that exists outside, for macvlan and ipvlan | none |
//!
//! `ipam.gateways` comes before both. Lowest and highest address of a subnet are not given to pods.
//!
//! Such a lease has no interface of ours: DEL, GC or a reboot ends it. The gateway's ends with a reboot only: a bridge
//! keeps its address when its last pod goes.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::{IpAdd as _, IpNet};
use podway_ipam::store::since_boot;
use podway_ipam::{Attachment, Condition, Family, Grant, LeaseKind, LeaseStore, Request};
use podway_kern::conntrack::Conntrack;
use podway_kern::ns::NetNs;
use podway_kern::rtnl::Rtnl;
use podway_model::mistakes::Mistakes;
use podway_model::node_file::{BlockState, NodeFile};
use serde_json::{Map, Value, json};

use crate::conf::{Network, SOURCE, kind};
use crate::env::{Call, Target};
use crate::error::{CniError, Code};
use crate::node::Node;
use crate::status;
use crate::version::SpecVersion;
use crate::wish::{self, AddressWish};

/// Keys below `ipam`.
pub const OWN_KEYS: [&str; 7] = ["dns", "gateways", "pools", "reserved", "routes", "subnet", "type"];
/// Container id of a gateway's lease: this, then the block. Interface: the second one.
const GATEWAY_ID: &str = "gateway.";
const GATEWAY_IFNAME: &str = "gateway";
/// Host bits of the smallest block that has room for a gateway beside lowest, highest and one pod.
const LEAST_HOST_BITS: u8 = 2;

/// Serves one call.
pub(crate) fn serve(call: &Call, network: &Network) -> Result<Option<Value>, CniError> {
    match call {
        Call::Add(target) => return add(network, target).map(Some),
        Call::Del { attachment } => del(network, attachment)?,
        Call::Check(target) => check(network, target)?,
        Call::Gc => gc(network)?,
        Call::Status => would_add(network)?,
        Call::Version => {}
    }
    Ok(None)
}

/// What a subnet is, for plugins that want one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Subnet {
    /// The block of the address.
    #[default]
    Block,
    /// The pool of the address.
    Pool,
}

/// What stands under `ipam`.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Conf {
    /// Which addresses are wanted.
    pub addresses: AddressWish,
    /// `ipam.subnet`
    pub subnet: Subnet,
    /// `ipam.gateways`: at most one of each family.
    pub gateways: Vec<IpAddr>,
    /// `ipam.routes`: go into the result as they are.
    pub routes: Vec<Value>,
    /// `ipam.dns`: goes into the result as it is.
    pub dns: Map<String, Value>,
}

impl Conf {
    /// Reads the configuration.
    ///
    /// # Errors
    /// Every mistake in it.
    pub fn read(network: &Network) -> Result<Self, CniError> {
        let mut mistakes = Mistakes::default();
        let mut conf = Self::default();
        for (key, value) in network.section("ipam", &mut mistakes).into_iter().flatten() {
            match key.as_str() {
                "type" => {}
                "subnet" => match value.as_str() {
                    Some("block") => conf.subnet = Subnet::Block,
                    Some("pool") => conf.subnet = Subnet::Pool,
                    _ => mistakes.add(SOURCE, "ipam.subnet", value, "block or pool"),
                },
                "gateways" => {
                    conf.gateways = wish::addresses(value, "ipam.gateways", &mut mistakes);
                    let families: BTreeSet<Family> = conf.gateways.iter().map(|ip| Family::of(*ip)).collect();
                    if families.len() < conf.gateways.len() {
                        mistakes.add(SOURCE, "ipam.gateways", value, "at most one of each family");
                    }
                }
                "routes" => conf.routes = routes(value, &mut mistakes),
                "dns" => match value {
                    Value::Object(dns) => conf.dns = dns.clone(),
                    other => mistakes.add(SOURCE, "ipam.dns", kind(other), "an object"),
                },
                other if conf.addresses.read_own("ipam", other, value, &mut mistakes) => {}
                other => {
                    let expected = format!("one of {}", OWN_KEYS.join(", "));
                    mistakes.add(SOURCE, format!("ipam.{other}"), "this key", expected);
                }
            }
        }
        let runtime = network.section("runtimeConfig", &mut mistakes);
        let args = network.section("args", &mut mistakes);
        conf.addresses.read_runtime(runtime, args, &mut mistakes);
        if mistakes.is_empty() { Ok(conf) } else { Err(CniError::config(&mistakes)) }
    }

    /// The wish, with what a subnet keeps to itself set aside.
    fn wish(&self, file: &NodeFile) -> AddressWish {
        let mut wish = self.addresses.clone();
        match self.subnet {
            Subnet::Block => {
                for block in file.blocks.iter().map(|block| block.cidr).filter(has_room) {
                    let own = [block.network(), usual_gateway(block), block.broadcast()];
                    wish.reserved.extend(own.map(IpNet::from));
                }
            }
            Subnet::Pool => {
                for pool in file.pools.iter().map(|pool| pool.cidr).filter(has_room) {
                    wish.reserved.extend([pool.network(), pool.broadcast()].map(IpNet::from));
                }
            }
        }
        wish.reserved.extend(self.gateways.iter().copied().map(IpNet::from));
        wish
    }

    /// The subnet of an address; none where it is too small to be one.
    fn subnet_of(&self, file: &NodeFile, address: IpAddr) -> Option<IpNet> {
        let found = match self.subnet {
            Subnet::Block => file.blocks.iter().map(|block| block.cidr).find(|cidr| cidr.contains(&address)),
            Subnet::Pool => file.pools.iter().map(|pool| pool.cidr).find(|cidr| cidr.contains(&address)),
        };
        found.filter(has_room)
    }

    /// The gateway that the configuration names for an address.
    fn gateway_of(&self, address: IpAddr) -> Option<IpAddr> {
        self.gateways.iter().copied().find(|gateway| Family::of(*gateway) == Family::of(address))
    }

    /// Refuses addresses that a subnet keeps to itself, asked for by value.
    fn refuse_ends(&self, file: &NodeFile) -> Result<(), CniError> {
        let mut mistakes = Mistakes::default();
        for address in &self.addresses.ips {
            let Some(subnet) = self.subnet_of(file, *address) else { continue };
            if *address == subnet.network() || *address == subnet.broadcast() {
                mistakes.add(
                    SOURCE,
                    "requested address",
                    address,
                    format!("one between the ends of {subnet}"),
                );
            }
        }
        if mistakes.is_empty() { Ok(()) } else { Err(CniError::config(&mistakes)) }
    }
}

fn routes(value: &Value, mistakes: &mut Mistakes) -> Vec<Value> {
    let Some(list) = value.as_array() else {
        mistakes.add(SOURCE, "ipam.routes", kind(value), "a list of routes");
        return Vec::new();
    };
    for (i, route) in list.iter().enumerate() {
        let destination = route.get("dst").and_then(Value::as_str).map(str::parse::<IpNet>);
        if !matches!(destination, Some(Ok(_))) {
            let found = route.get("dst").unwrap_or(&Value::Null);
            mistakes.add(SOURCE, format!("ipam.routes[{i}].dst"), found, "a prefix, 10.0.0.0/8");
        }
    }
    list.clone()
}

fn has_room(net: &IpNet) -> bool {
    net.max_prefix_len() - net.prefix_len() >= LEAST_HOST_BITS
}

fn usual_gateway(block: IpNet) -> IpAddr {
    match block.network() {
        IpAddr::V4(lowest) => lowest.saturating_add(1).into(),
        IpAddr::V6(lowest) => lowest.saturating_add(1).into(),
    }
}

/// Who holds the gateway of a block.
fn gateway_holder(block: IpNet) -> Attachment {
    let text = block.to_string().replace([':', '/'], "-");
    let id =
        format!("{GATEWAY_ID}{text}").parse().expect("letters, digits, dots and dashes are a container id");
    Attachment::new(id, GATEWAY_IFNAME.parse().expect("an interface name"))
}

/// Whether a lease is a gateway's.
pub fn is_gateway(attachment: &Attachment) -> bool {
    attachment.ifname.as_str() == GATEWAY_IFNAME && attachment.container_id.as_str().starts_with(GATEWAY_ID)
}

/// Leases addresses and answers with them.
fn add(network: &Network, target: &Target) -> Result<Value, CniError> {
    let mut conf = Conf::read(network)?;
    conf.addresses.add_asked(&target.ips);
    let (node, attachment) = (Node::here()?, &target.attachment);
    let mut leases = node.leases()?;
    if let Some(old) = leases.ledger().lease_of(attachment) {
        refuse_second(target, old, network)?;
    }
    let file = node.file()?;
    conf.refuse_ends(&file)?;
    let wish = conf.wish(&file);
    let request =
        wish.request(attachment, &network.name, target.pod.as_ref(), &file, LeaseKind::AddressOnly)?;
    let grant = wish::lease(&node, &mut Rtnl::open()?, &mut leases, &file, &request)?;
    let made = answer(&conf, &mut leases, &file, network, &grant).and_then(|ips| {
        if !grant.dirty.is_empty() {
            let dirty: BTreeSet<IpAddr> = grant.dirty.iter().copied().collect();
            Conntrack::open()?.delete(&dirty)?;
        }
        Ok(ips)
    });
    match made {
        Ok(ips) => {
            let mut result = json!({"cniVersion": network.version.as_str(), "ips": ips, "dns": conf.dns});
            if !conf.routes.is_empty() {
                result["routes"] = conf.routes.into();
            }
            Ok(result)
        }
        Err(error) => Err(match leases.release(attachment, since_boot(), Condition::Dirty) {
            Ok(_) => error,
            Err(undo) => error.with(format_args!("and undoing it failed: {undo}")),
        }),
    }
}

/// An attachment has one lease. One that a killed ADD left is taken over; but where the interface has the address, the
/// caller would fail and then give back an address that is in use.
fn refuse_second(target: &Target, old: &podway_ipam::Lease, network: &Network) -> Result<(), CniError> {
    let (ifname, container) = (&target.attachment.ifname, &target.attachment.container_id);
    if old.kind != LeaseKind::AddressOnly || old.network != network.name {
        let message =
            format!("CNI_IFNAME: {ifname} of container {container} belongs to network {}", old.network);
        return Err(CniError::new(Code::Environment, message));
    }
    let look = || -> Result<bool, CniError> {
        let (own, pod) = (NetNs::current()?, NetNs::open(&target.netns)?);
        pod.visit(&own, || {
            let mut rtnl = Rtnl::open()?;
            let Some(link) = rtnl.link(ifname.as_str())? else { return Ok(false) };
            let there = rtnl.addresses(Some(link.index))?;
            Ok(old.ips().any(|ip| there.iter().any(|info| info.address.addr() == ip)))
        })?
    };
    // Where the namespace cannot be looked into, nobody has made an interface there.
    if look().unwrap_or(false) {
        let ips: Vec<String> = old.ips().map(|ip| ip.to_string()).collect();
        let message = format!(
            "CNI_IFNAME: {ifname} of container {container} is there and has {}: one ADD, then DEL",
            ips.join(", ")
        );
        return Err(CniError::new(Code::Environment, message));
    }
    Ok(())
}

/// `ips` of the result.
fn answer(
    conf: &Conf,
    leases: &mut LeaseStore,
    file: &NodeFile,
    network: &Network,
    grant: &Grant,
) -> Result<Vec<Value>, CniError> {
    let mut all = Vec::new();
    for address in grant.lease.ips() {
        let subnet = conf.subnet_of(file, address);
        let net = subnet.map_or(IpNet::from(address), |subnet| {
            IpNet::new(address, subnet.prefix_len()).expect("the length is the family's")
        });
        let mut ip = json!({ "address": net });
        let gateway = match (conf.gateway_of(address), subnet) {
            (Some(gateway), _) => Some(gateway),
            (None, Some(block)) if conf.subnet == Subnet::Block => {
                Some(lease_gateway(leases, file, network, block)?)
            }
            (None, _) => None,
        };
        if let Some(gateway) = gateway {
            ip["gateway"] = gateway.to_string().into();
        }
        if network.version < SpecVersion::V100 {
            ip["version"] = if Family::of(address) == Family::V4 { "4" } else { "6" }.into();
        }
        all.push(ip);
    }
    Ok(all)
}

/// The gateway of a block: the one that is leased, or one that is leased now.
fn lease_gateway(
    leases: &mut LeaseStore,
    file: &NodeFile,
    network: &Network,
    block: IpNet,
) -> Result<IpAddr, CniError> {
    let holder = gateway_holder(block);
    if let Some(lease) = leases.ledger().lease_of(&holder) {
        return Ok(lease.ips().next().expect("a lease has an address"));
    }
    let usual = usual_gateway(block);
    let pool = file.blocks.iter().find(|other| other.cidr == block && other.state == BlockState::Active);
    let is_free = leases.ledger().holder(usual).is_none() && !file.tunnel_addresses.contains(&usual);
    let request = Request {
        pools: pool.map(|block| block.pool.clone()).into_iter().collect(),
        addresses: is_free.then_some(usual).into_iter().collect(),
        ranges: vec![(block.network(), block.broadcast())],
        reserved: [block.network(), block.broadcast()].map(IpNet::from).to_vec(),
        kind: LeaseKind::AddressOnly,
        ..Request::new(holder, network.name.clone())
    };
    let grant = leases.lease(file, &request, since_boot())?;
    Ok(grant.lease.ips().next().expect("a lease has an address"))
}

/// Ends the lease of an attachment.
fn del(network: &Network, attachment: &Attachment) -> Result<(), CniError> {
    let mut leases = Node::here()?.leases()?;
    let is_ours = leases
        .ledger()
        .lease_of(attachment)
        .is_some_and(|lease| lease.network == network.name && lease.kind == LeaseKind::AddressOnly);
    if is_ours {
        // The interface is somebody else's, and connection tracking may know it.
        leases.release(attachment, since_boot(), Condition::Dirty)?;
    }
    Ok(())
}

/// Compares the lease with the result that ADD gave.
fn check(network: &Network, target: &Target) -> Result<(), CniError> {
    let previous = network.previous()?;
    let leases = Node::here()?.look_at_leases()?;
    let attachment = &target.attachment;
    let damaged = |what: String| CniError::new(Code::Damaged, format!("{attachment}: {what}"));
    let lease = leases.ledger().lease_of(attachment);
    let Some(lease) = lease.filter(|l| l.network == network.name && l.kind == LeaseKind::AddressOnly) else {
        return Err(damaged("address lease is missing".to_owned()));
    };
    let ips = previous.get("ips").and_then(Value::as_array).into_iter().flatten();
    let address = |ip: &Value| Some(ip.get("address")?.as_str()?.parse::<IpNet>().ok()?.addr());
    let found: BTreeSet<IpAddr> = ips.filter_map(address).collect();
    match lease.ips().find(|ip| !found.contains(ip)) {
        Some(missing) => Err(damaged(format!("prevResult: leased address {missing} is missing"))),
        None => Ok(()),
    }
}

/// Ends the leases of this network's attachments that are not valid any more.
fn gc(network: &Network) -> Result<(), CniError> {
    let valid: BTreeSet<Attachment> = network.valid_attachments()?.into_iter().collect();
    let mut leases = Node::here()?.leases()?;
    let is_over = |lease: &&podway_ipam::Lease| {
        lease.kind == LeaseKind::AddressOnly
            && lease.network == network.name
            && !is_gateway(&lease.attachment)
            && !valid.contains(&lease.attachment)
    };
    let over = leases.ledger().leases().filter(is_over);
    let over: Vec<Attachment> = over.map(|lease| lease.attachment.clone()).collect();
    for attachment in over {
        leases.release(&attachment, since_boot(), Condition::Dirty)?;
    }
    Ok(())
}

/// Would an ADD get its addresses?
fn would_add(network: &Network) -> Result<(), CniError> {
    let ask = || {
        let conf = Conf::read(network)?;
        let node = Node::here()?;
        let wish = conf.wish(&node.file()?);
        status::room(&node, network, &wish, LeaseKind::AddressOnly)
    };
    ask().map(drop).map_err(|error| CniError { code: Code::NotAvailable, ..error })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(ipam: Value) -> Result<Conf, CniError> {
        let conf = json!({"cniVersion": "1.1.0", "name": "n", "ipam": ipam});
        Conf::read(&Network::parse(conf.to_string().as_bytes()).unwrap())
    }

    #[test]
    fn what_other_plugins_need_besides_is_read() {
        let conf = read(json!({
            "type": "podway-ipam", "pools": ["lan"], "reserved": ["10.0.0.0/28"], "subnet": "pool",
            "gateways": ["10.0.0.1", "fd00::1"], "routes": [{"dst": "0.0.0.0/0", "gw": "10.0.0.1"}],
            "dns": {"nameservers": ["10.0.0.53"]}
        }))
        .unwrap();
        assert_eq!((conf.subnet, conf.gateways.len(), conf.routes.len()), (Subnet::Pool, 2, 1));
        assert_eq!(conf.addresses.pools.len(), 1);
        assert_eq!(conf.gateway_of("fd00::7".parse().unwrap()), Some("fd00::1".parse().unwrap()));
        assert_eq!(read(json!({"type": "podway-ipam"})).unwrap(), Conf::default());
    }

    #[test]
    fn mistakes_are_named_with_field_and_value() {
        for (ipam, part) in [
            (json!({"subnet": "10.0.0.0/8"}), "ipam.subnet: \"10.0.0.0/8\" found, block or pool expected"),
            (json!({"gateways": ["x"]}), "ipam.gateways[0]: \"x\" found"),
            (json!({"gateways": ["10.0.0.1", "10.0.0.2"]}), "at most one of each family expected"),
            (json!({"routes": [{"dst": "x"}]}), "ipam.routes[0].dst: \"x\" found"),
            (json!({"dns": []}), "ipam.dns: a list found, an object expected"),
            (json!({"ranges": []}), "ipam.ranges: this key found, one of dns, gateways,"),
        ] {
            let error = read(ipam).unwrap_err();
            assert_eq!(error.code, Code::Config);
            assert!(error.message.contains(part), "{part} is not in {error}");
        }
    }

    #[test]
    fn gateways_of_blocks_have_holders_of_their_own() {
        let holders =
            ["10.244.1.0/26", "fd00:244::100/122"].map(|block| gateway_holder(block.parse().unwrap()));
        let texts = holders.each_ref().map(ToString::to_string);
        assert_eq!(texts, ["gateway.10.244.1.0-26/gateway", "gateway.fd00-244--100-122/gateway"]);
        assert!(holders.iter().all(is_gateway));
        assert!(!is_gateway(&Attachment::new("gateway.x".parse().unwrap(), "eth0".parse().unwrap())));
    }
}
