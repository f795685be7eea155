//! What upstream's iptables backends left: the chains of a container in table `nat`, and the rules that lead to them.
//! Nothing here makes such rules. A node whose plugins were exchanged has containers that upstream's added, and their DEL
//! has to end what that ADD began: a rule that stays leads to an address that somebody else gets.
//!
//! ```text
//!   CNI-HOSTPORT-DNAT:  ... "dnat name: \"NETWORK\" id: \"CONTAINER\"" jump CNI-DN-HASH      host ports
//!   POSTROUTING:        ... "name: \"NETWORK\" id: \"CONTAINER\"" jump CNI-HASH             masquerade
//! ```
//!
//! HASH is of network and container, so a chain belongs to nobody else by its name. What upstream's plugins share between
//! containers (`CNI-HOSTPORT-*`) stays, as it does after upstream's own DEL.
//!
//! With `iptables-nft` all that stands in tables `ip nat` and `ip6 nat` and is removed over netlink, handle by handle, so
//! that `iptables` still reads its table. Rules of `iptables-legacy` are another part of the kernel, where a table can only
//! be replaced whole: they are looked for and reported, on standard error.

use std::collections::BTreeSet;
use std::io::Write as _;

use podway_ipam::Attachment;
use podway_kern::nft::NftSocket;
use podway_kern::xtables;
use podway_model::names::upstream_chain;
use podway_nft::{
    CommitError, Errno, Family, Name, Nftables as _, Op, RuleDump, TableDump, TableId, Transaction, Verdict,
};

use crate::conf::Network;
use crate::error::{CniError, Code};

const NAT: Name = Name::literal("nat");
const FAMILIES: [Family; 2] = [Family::Ip, Family::Ip6];
/// Times that a table is looked at again because somebody changed it meanwhile.
const ATTEMPTS: usize = 8;

/// What a chain is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// `portmap`.
    HostPorts,
    /// `ipMasq` of a main plugin.
    Masquerade,
}

impl Purpose {
    /// The container's chains. `CNI-SN-` is of versions before 0.7.
    fn chains(self, network: &str, container: &str) -> Vec<Name> {
        let purposes: &[&str] = match self {
            Self::HostPorts => &["DN-", "SN-"],
            Self::Masquerade => &[""],
        };
        let chain = |purpose: &&str| Name::new(upstream_chain(purpose, network, container));
        purposes.iter().map(|purpose| chain(purpose).expect("letters, digits and hyphens")).collect()
    }

    /// What a rule's comment says before the network's name.
    fn prefix(self) -> &'static str {
        match self {
            Self::HostPorts => "dnat name: ",
            Self::Masquerade => "name: ",
        }
    }

    fn plugin(self) -> &'static str {
        match self {
            Self::HostPorts => "portmap",
            Self::Masquerade => "ptp",
        }
    }
}

fn table(family: Family) -> TableId {
    TableId { family, name: NAT }
}

fn failed(error: &CommitError) -> CniError {
    CniError::new(Code::Kernel, format!("rules of iptables: nftables: {error}"))
}

/// Ends the chains of a container. None is fine.
pub(super) fn end(
    socket: &mut NftSocket,
    purpose: Purpose,
    network: &Network,
    attachment: &Attachment,
) -> Result<(), CniError> {
    let chains = purpose.chains(network.name.as_str(), attachment.container_id.as_str());
    for family in FAMILIES {
        // The table may be large, and hardly a container has such chains.
        let mut is_there = false;
        for chain in &chains {
            is_there |= socket.has_chain(&table(family), chain).map_err(|error| failed(&error))?;
        }
        if is_there {
            remove(socket, family, |_| chains.iter().cloned().collect())?;
        }
        let legacy = legacy(purpose, family);
        let left = chains.iter().filter(|chain| contains(&legacy, format!("{chain}\0").as_bytes()));
        left.for_each(|chain| report(purpose, family, format_args!("chain {chain} of {attachment}")));
    }
    Ok(())
}

/// Ends the chains of the network's containers that are not valid any more.
pub(super) fn collect(
    socket: &mut NftSocket,
    purpose: Purpose,
    network: &Network,
    valid: &[Attachment],
) -> Result<(), CniError> {
    let valid: BTreeSet<&str> = valid.iter().map(|attachment| attachment.container_id.as_str()).collect();
    for family in FAMILIES {
        remove(socket, family, |found| stale(found, purpose, network.name.as_str(), &valid))?;
        let legacy = legacy(purpose, family);
        for container in named_in(&legacy, purpose, network.name.as_str()) {
            if !valid.contains(container) {
                report(purpose, family, format_args!("rules of container {container}"));
            }
        }
    }
    Ok(())
}

/// Removes the chains that `which` finds in a table, and what leads to them.
fn remove(
    socket: &mut NftSocket,
    family: Family,
    which: impl Fn(&TableDump) -> BTreeSet<Name>,
) -> Result<(), CniError> {
    let mut attempts = 0;
    loop {
        let Some(found) = socket.dump(&table(family)).map_err(|error| failed(&error))? else { return Ok(()) };
        attempts += 1;
        match socket.commit(&removal(&found, &which(&found))) {
            // Whoever changes a table between look and removal: what was found is not what is there.
            Err(error)
                if attempts < ATTEMPTS && matches!(error.errno(), Some(Errno::NOENT | Errno::BUSY)) => {}
            other => return other.map_err(|error| failed(&error)),
        }
    }
}

/// The chain where a packet goes on that a rule fits.
fn goes_to(rule: &RuleDump) -> Option<&Name> {
    rule.verdict.as_ref().and_then(Verdict::target)
}

fn removal(found: &TableDump, chains: &BTreeSet<Name>) -> Transaction {
    let mut transaction = Transaction::new();
    let (own, others): (Vec<_>, Vec<_>) = found.chains.iter().partition(|chain| chains.contains(&chain.name));
    for chain in others {
        for rule in chain.rules.iter().filter(|rule| goes_to(rule).is_some_and(|to| chains.contains(to))) {
            let (table, chain) = (found.id.clone(), chain.name.clone());
            transaction.push(Op::DeleteRule { table, chain, handle: rule.handle });
        }
    }
    for chain in &own {
        transaction.push(Op::FlushChain { table: found.id.clone(), name: chain.name.clone() });
    }
    for chain in &own {
        transaction.push(Op::DeleteChain { table: found.id.clone(), name: chain.name.clone() });
    }
    transaction
}

/// Chains of a network's containers that are not among the valid ones: those to which a rule with such a container in its
/// comment leads, and that have the container's name for it.
fn stale(found: &TableDump, purpose: Purpose, network: &str, valid: &BTreeSet<&str>) -> BTreeSet<Name> {
    let mut all = BTreeSet::new();
    for rule in found.chains.iter().flat_map(|chain| &chain.rules) {
        let Some(container) = container_of(&rule.comment, purpose, network) else { continue };
        let chains = purpose.chains(network, container);
        if !valid.contains(container) && goes_to(rule).is_some_and(|to| chains.contains(to)) {
            all.extend(chains);
        }
    }
    all
}

/// The container that a comment names, where the network is this one.
fn container_of<'a>(comment: &'a str, purpose: Purpose, network: &str) -> Option<&'a str> {
    let rest = comment.strip_prefix(purpose.prefix())?.strip_prefix(&format!("{network:?} id: \""))?;
    rest.strip_suffix('"').filter(|id| !id.is_empty() && !id.contains('"'))
}

/// The containers that comments in the rules of `iptables-legacy` name.
fn named_in<'a>(rules: &'a [u8], purpose: Purpose, network: &str) -> BTreeSet<&'a str> {
    let comments = rules.split(|octet| *octet == 0).filter_map(|text| std::str::from_utf8(text).ok());
    comments.filter_map(|text| container_of(text, purpose, network)).collect()
}

/// The rules of `iptables-legacy`. Where they cannot be read, that is said: no container is kept for what is only reported.
fn legacy(purpose: Purpose, family: Family) -> Vec<u8> {
    match xtables::legacy_nat(family == Family::Ip6) {
        Ok(rules) => rules.unwrap_or_default(),
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "{}: {error}", purpose.plugin());
            Vec::new()
        }
    }
}

fn contains(all: &[u8], part: &[u8]) -> bool {
    all.windows(part.len()).any(|window| window == part)
}

fn report(purpose: Purpose, family: Family, what: std::fmt::Arguments<'_>) {
    let program = if family == Family::Ip6 { "ip6tables-legacy" } else { "iptables-legacy" };
    // Whoever does not read it finds the rule by the name of its chain.
    let _ = writeln!(
        std::io::stderr(),
        "{}: {what} stays in table nat of {program}: made by another plugin, to be removed by hand",
        purpose.plugin()
    );
}

#[cfg(test)]
mod tests {
    use podway_nft::{ChainDump, TableFlags};

    use super::*;

    fn name(text: &str) -> Name {
        Name::new(text).unwrap()
    }

    fn rule(handle: u64, comment: &str, goes_to: Option<&Name>) -> RuleDump {
        let comment = comment.to_owned();
        RuleDump {
            handle,
            comment,
            exprs: Vec::new(),
            asked: Vec::new(),
            networks: Vec::new(),
            extensions: Vec::new(),
            verdict: goes_to.cloned().map(Verdict::Jump),
        }
    }

    fn chain(name: &Name, rules: Vec<RuleDump>) -> ChainDump {
        ChainDump { name: name.clone(), base: None, rules }
    }

    #[test]
    fn chains_have_the_names_that_upstream_gives() {
        let names = |purpose: Purpose| {
            purpose.chains("podway", "abc").iter().map(Name::to_string).collect::<Vec<_>>()
        };
        assert_eq!(names(Purpose::Masquerade), ["CNI-5b0629a44875b999bedde319"]);
        assert_eq!(
            names(Purpose::HostPorts),
            ["CNI-DN-5b0629a44875b999bedde", "CNI-SN-5b0629a44875b999bedde"]
        );
    }

    #[test]
    fn a_comment_names_a_container_of_one_network() {
        let of = |comment| container_of(comment, Purpose::HostPorts, "podway");
        assert_eq!(of("dnat name: \"podway\" id: \"abc\""), Some("abc"));
        for other in [
            "name: \"podway\" id: \"abc\"",
            "dnat name: \"podway2\" id: \"abc\"",
            "dnat name: \"podway\" id: \"\"",
            "dnat name: \"podway\" id: \"abc",
            "dnat name: \"podway\" id: \"a\" id: \"b\"",
            "",
        ] {
            assert_eq!(of(other), None, "{other}");
        }
        let rules = b"\x01\0comment\0\0name: \"podway\" id: \"abc\"\0\xff\0name: \"other\" id: \"x\"\0";
        assert_eq!(named_in(rules, Purpose::Masquerade, "podway"), BTreeSet::from(["abc"]));
    }

    #[test]
    fn only_what_leads_to_the_containers_chain_goes() {
        let (gone, lives) = ("gone", "lives");
        let own = |container| Purpose::Masquerade.chains("podway", container).remove(0);
        let comment = |container| format!("name: \"podway\" id: \"{container}\"");
        let other = name("CNI-HOSTPORT-MASQ");
        let (a, b) = (own(gone), own(lives));
        let found = TableDump {
            id: table(Family::Ip),
            flags: TableFlags::default(),
            chains: vec![
                chain(
                    &name("POSTROUTING"),
                    vec![
                        rule(1, "", Some(&other)),
                        rule(2, &comment(gone), Some(&a)),
                        rule(3, &comment(lives), Some(&b)),
                        // A comment that lies about where the rule leads.
                        rule(4, &comment("liar"), Some(&other)),
                    ],
                ),
                chain(&a, vec![rule(5, &comment(gone), None)]),
                chain(&b, vec![rule(6, &comment(lives), None)]),
                chain(&other, Vec::new()),
            ],
            sets: Vec::new(),
        };
        let which = stale(&found, Purpose::Masquerade, "podway", &BTreeSet::from([lives]));
        assert_eq!(which, BTreeSet::from([a.clone()]));
        assert_eq!(stale(&found, Purpose::Masquerade, "elsewhere", &BTreeSet::new()), BTreeSet::new());
        assert_eq!(stale(&found, Purpose::HostPorts, "podway", &BTreeSet::new()), BTreeSet::new());
        let ops: Vec<String> = removal(&found, &which).ops.iter().map(ToString::to_string).collect();
        let expected = [
            "delete rule ip nat POSTROUTING handle 2".to_owned(),
            format!("flush chain ip nat {a}"),
            format!("delete chain ip nat {a}"),
        ];
        assert_eq!(ops, expected);
        assert!(removal(&found, &BTreeSet::new()).is_empty());
    }
}
