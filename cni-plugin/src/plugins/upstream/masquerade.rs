//! The masquerade of `ptp`: table `inet cni_plugins_masquerade` as upstream's nftables backend makes it. A rule's
//! comment begins with hashes of network and attachment, so rules that upstream made are found here, and the reverse.

use ipnet::IpNet;
use podway_ipam::Attachment;
use podway_kern::nft::NftSocket;
use podway_model::names::upstream_hash;
use podway_nft::{
    Chain, ChainKind, CommitError, Expr, Field, Hook, Name, Nftables as _, Op, Policy, Priority, Rule,
    RuleDump, TableFlags, TableId, Transaction, Verdict,
};

use super::iptables::{self, Purpose};
use crate::conf::Network;
use crate::error::{CniError, Code};

const TABLE: Name = Name::literal("cni_plugins_masquerade");
const CHECKS: Name = Name::literal("masq_checks");
const POSTROUTING: Name = Name::literal("postrouting");
/// Values of `meta nfproto`.
const IPV4: u8 = 2;
const IPV6: u8 = 10;

fn table() -> TableId {
    TableId::inet(TABLE)
}

fn failed(error: &CommitError) -> CniError {
    CniError::new(Code::Kernel, format!("masquerade: nftables: {error}"))
}

fn connect() -> Result<NftSocket, CniError> {
    NftSocket::open().map_err(|error| failed(&CommitError::Io(error)))
}

fn of_network(network: &Network) -> String {
    upstream_hash(network.name.as_str())
}

fn of_attachment(network: &Network, attachment: &Attachment) -> String {
    let own = upstream_hash(&format!("{}:{}", attachment.ifname, attachment.container_id));
    format!("{}-{own}", of_network(network))
}

fn comment(network: &Network, attachment: &Attachment) -> String {
    let hash = of_attachment(network, attachment);
    let (name, ifname, id) = (&network.name, &attachment.ifname, &attachment.container_id);
    format!("{hash}, net: {name}, if: {ifname}, id: {id}")
}

/// Rules of the chain of masquerades; none without the table.
fn rules(socket: &mut NftSocket) -> Result<Vec<RuleDump>, CniError> {
    let found = socket.dump(&table()).map_err(|error| failed(&error))?;
    let chains = found.into_iter().flat_map(|found| found.chains);
    Ok(chains.filter(|chain| chain.name == CHECKS).flat_map(|chain| chain.rules).collect())
}

fn delete(transaction: &mut Transaction, rule: &RuleDump) {
    transaction.push(Op::DeleteRule { table: table(), chain: CHECKS, handle: rule.handle });
}

fn is_of(rule: &RuleDump, hash: &str) -> bool {
    rule.comment.starts_with(hash)
}

/// Masquerades what these addresses send beyond their own subnets. Older rules of the attachment go.
pub(super) fn open(network: &Network, attachment: &Attachment, nets: &[IpNet]) -> Result<(), CniError> {
    let mut socket = connect()?;
    let hash = of_attachment(network, attachment);
    let old = rules(&mut socket)?;
    let mut transaction = Transaction::new();
    transaction.push(Op::AddTable { table: table(), flags: TableFlags::default() });
    let jump = Rule::new("").verdict(Verdict::Goto(CHECKS));
    let multicast = |protocol: u8, field, net: &str| {
        let net = net.parse().expect("a prefix");
        Rule::new("").is(Field::NfProto, protocol).in_net(field, net).verdict(Verdict::Return)
    };
    let base = Chain::base(POSTROUTING, ChainKind::Nat, Hook::Postrouting, Priority::SRCNAT, Policy::Accept)
        .rule(multicast(IPV4, Field::IpDaddr, "224.0.0.0/4"))
        .rule(multicast(IPV6, Field::Ip6Daddr, "ff00::/8"))
        .rule(jump);
    transaction.push(Op::AddChain { table: table(), name: CHECKS, base: None });
    transaction.push(Op::AddChain { table: table(), name: POSTROUTING, base: base.base });
    transaction.push(Op::FlushChain { table: table(), name: POSTROUTING });
    for rule in base.rules {
        transaction.push(Op::AddRule { table: table(), chain: POSTROUTING, rule });
    }
    old.iter().filter(|rule| is_of(rule, &hash)).for_each(|rule| delete(&mut transaction, rule));
    for net in nets {
        let protocol = if net.addr().is_ipv4() { IPV4 } else { IPV6 };
        let rule = Rule::new(&comment(network, attachment))
            .is(Field::NfProto, protocol)
            .is(Field::saddr(net.addr()), net.addr())
            .not_in_net(Field::daddr(net.addr()), net.trunc())
            .with(Expr::Masquerade { fully_random: false });
        transaction.push(Op::AddRule { table: table(), chain: CHECKS, rule });
    }
    socket.commit(&transaction).map_err(|error| failed(&error))
}

/// Ends the masquerade of an attachment, whichever backend made it. None is fine.
pub(super) fn close(network: &Network, attachment: &Attachment) -> Result<(), CniError> {
    let hash = of_attachment(network, attachment);
    let mut socket = connect()?;
    remove(&mut socket, |rule| is_of(rule, &hash))?;
    iptables::end(&mut socket, Purpose::Masquerade, network, attachment)
}

/// Ends the masquerade of the network's attachments that are not valid any more.
pub(super) fn collect(network: &Network, valid: &[Attachment]) -> Result<(), CniError> {
    let network_hash = of_network(network);
    let hashes: Vec<String> = valid.iter().map(|attachment| of_attachment(network, attachment)).collect();
    let mut socket = connect()?;
    remove(&mut socket, |rule| is_of(rule, &network_hash) && !hashes.iter().any(|hash| is_of(rule, hash)))?;
    iptables::collect(&mut socket, Purpose::Masquerade, network, valid)
}

fn remove(socket: &mut NftSocket, which: impl Fn(&RuleDump) -> bool) -> Result<(), CniError> {
    let found = rules(socket)?;
    let mut transaction = Transaction::new();
    found.iter().filter(|rule| which(rule)).for_each(|rule| delete(&mut transaction, rule));
    if transaction.is_empty() {
        return Ok(());
    }
    socket.commit(&transaction).map_err(|error| failed(&error))
}

/// Which of these addresses are not masqueraded, in words.
pub(super) fn missing(
    network: &Network,
    attachment: &Attachment,
    nets: &[IpNet],
) -> Result<Vec<String>, CniError> {
    let hash = of_attachment(network, attachment);
    let found = rules(&mut connect()?)?;
    let is_there = |net: &IpNet| {
        let field = Field::saddr(net.addr());
        let wanted = podway_nft::Value::from(net.addr());
        found.iter().any(|rule| is_of(rule, &hash) && rule.asked.contains(&(field, wanted.clone())))
    };
    let lost = nets.iter().filter(|net| !is_there(net));
    Ok(lost.map(|net| format!("masquerade of {} is missing", net.addr())).collect())
}
