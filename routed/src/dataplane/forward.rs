//! Firewalls of others that stand in the way of pods. An accept of ours does not override another base chain's drop, so a
//! host whose FORWARD chain drops (Docker, ufw and the like turn its policy to DROP) cuts pods of different nodes off.
//!
//! iptables' own chain (`ip filter`, `ip6 filter`, chain FORWARD, as iptables-nft makes them) gets two rules for each pool,
//! behind all others: what comes from it and what goes to it is accepted. So the policy does not hold for pods, and what the
//! operator, Docker or ufw refuse by a rule stays refused. Table and chain are never made here. The rules have only forms
//! that iptables-nft prints, and a comment by which they are known.
//!
//! What cannot be mended is reported, with the command that would: a chain at the forward hook that drops or refuses what no
//! rule singles out, by its policy or by a rule ([`super::closing`]), iptables' own among them where a rule before ours
//! refuses all; iptables-legacy, which nftables cannot see; iptables where the operator has turned our rules off.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use ipnet::IpNet;
use podway_kern::nft::NftSocket;
use podway_nft::{
    CommitError, Family, Field, Hook, Name, Nftables as _, Op, Rule, RuleDump, TableId, Transaction, Verdict,
};

use super::closing::{self, End};

const FIREWALLD: Name = Name::literal("firewalld");
const FILTER: Name = Name::literal("filter");
const FORWARD: Name = Name::literal("FORWARD");
/// Beginning of the comments of our rules.
const COMMENT: &str = "podway pods";
/// Beginning of the names of our tables.
const OURS: &str = "podway-";
/// Where the kernel lists tables of iptables-legacy, and which programs they are of.
const LEGACY: [(&str, &str, bool); 2] = [
    ("/proc/net/ip_tables_names", "iptables-legacy", true),
    ("/proc/net/ip6_tables_names", "ip6tables-legacy", false),
];

/// What is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Forward {
    /// Where pods live.
    pub(crate) pools: BTreeSet<IpNet>,
    /// Whether iptables' chain gets rules.
    pub(crate) rules: bool,
}

/// Looks at all chains at the forward hook, and puts right what may be. Returns whether our rules were not as they should
/// be, and what is in the way.
pub(super) fn ensure(socket: &mut NftSocket, wanted: &Forward) -> Result<(bool, Vec<String>), CommitError> {
    let (mut changed, mut problems) = (false, legacy(wanted, |path| fs::read_to_string(path).ok()));
    for (table, chain) in socket.base_chains()? {
        let Some(base) = chain.base.filter(|base| base.hook == Hook::Forward) else { continue };
        if table.name.as_str().starts_with(OURS) {
            continue;
        }
        let pools = of_family(&wanted.pools, table.family);
        let is_iptables =
            table.name == FILTER && chain.name == FORWARD && matches!(table.family, Family::Ip | Family::Ip6);
        if is_iptables {
            let pools = if wanted.rules { &pools[..] } else { &[] };
            let transaction = put(&table, &socket.rules(&table, &chain.name)?, pools);
            changed |= !transaction.is_empty();
            socket.commit(&transaction)?;
        }
        let mut read = BTreeMap::new();
        let mut rules = |name: &Name| -> Result<Vec<RuleDump>, CommitError> {
            if !read.contains_key(name) {
                read.insert(name.clone(), socket.rules(&table, name)?);
            }
            Ok(read[name].clone())
        };
        let mut closed = vec![];
        for way in ours(&pools) {
            // A zone of firewalld is one of sources: what comes to pods from elsewhere is its own affair.
            if table.name == FIREWALLD && matches!(way.0, Field::IpDaddr | Field::Ip6Daddr) {
                continue;
            }
            let end = closing::end(&chain.name, base.policy, &way, &mut rules)?;
            if end != End::Passes {
                closed.push((way, end));
            }
        }
        if !closed.is_empty() {
            let is_ufw = read.keys().any(|chain| chain.as_str().starts_with("ufw"));
            problems.push(in_the_way(&table, &chain.name, &closed, Whose::of(&table, is_iptables, is_ufw)));
        }
    }
    Ok((changed, problems))
}

/// Takes our rules out of iptables' chains.
pub(super) fn remove(socket: &mut NftSocket) -> Result<(), CommitError> {
    ensure(socket, &Forward { pools: BTreeSet::new(), rules: false }).map(drop)
}

fn of_family(pools: &BTreeSet<IpNet>, family: Family) -> Vec<IpNet> {
    let fits = |net: &&IpNet| match family {
        Family::Ip => net.addr().is_ipv4(),
        Family::Ip6 => net.addr().is_ipv6(),
        Family::Inet => true,
    };
    pools.iter().filter(fits).copied().collect()
}

/// The rules that iptables' chain shall have from us, in order.
fn ours(pools: &[IpNet]) -> Vec<(Field, IpNet)> {
    let both = |net: &IpNet| [(Field::saddr(net.addr()), *net), (Field::daddr(net.addr()), *net)];
    pools.iter().flat_map(both).collect()
}

fn accepts(rule: &RuleDump) -> bool {
    rule.verdict == Some(Verdict::Accept)
}

fn is_ours(rule: &RuleDump) -> bool {
    rule.comment.starts_with(COMMENT)
}

/// What makes the chain have our rules, and no others of ours.
fn put(table: &TableId, found: &[RuleDump], pools: &[IpNet]) -> Transaction {
    let (mine, wanted) = (found.iter().filter(|rule| is_ours(rule)), ours(pools));
    let mut transaction = Transaction::new();
    let is = |rule: &RuleDump, wanted: &(Field, IpNet)| accepts(rule) && rule.networks == [*wanted];
    if mine.clone().count() == wanted.len()
        && mine.clone().zip(&wanted).all(|(rule, wanted)| is(rule, wanted))
    {
        return transaction;
    }
    for rule in mine {
        let (table, chain) = (table.clone(), FORWARD);
        transaction.push(Op::DeleteRule { table, chain, handle: rule.handle });
    }
    for (field, net) in wanted {
        let rule = Rule::new(COMMENT).in_net(field, net).verdict(Verdict::Accept);
        transaction.push(Op::AddRule { table: table.clone(), chain: FORWARD, rule });
    }
    transaction
}

/// Whose a chain is: by what its operator changes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Whose {
    Iptables,
    Ufw,
    Firewalld,
    Nft,
}

impl Whose {
    fn of(table: &TableId, is_iptables: bool, is_ufw: bool) -> Self {
        match (is_iptables, is_ufw) {
            (true, true) => Self::Ufw,
            (true, false) => Self::Iptables,
            (false, _) if table.name == FIREWALLD => Self::Firewalld,
            (false, _) => Self::Nft,
        }
    }
}

/// A chain that drops, in words, with what mends it.
fn in_the_way(table: &TableId, chain: &Name, closed: &[((Field, IpNet), End)], whose: Whose) -> String {
    // Behind a rule that refuses all there is no place for another one.
    let is_rule = closed.iter().any(|(_, end)| *end == End::Rule);
    let mut commands: Vec<String> = closed
        .iter()
        .map(|((field, net), _)| {
            let (v4, source) = (net.addr().is_ipv4(), *field == Field::saddr(net.addr()));
            match whose {
                Whose::Iptables => {
                    let (program, side) =
                        (if v4 { "iptables" } else { "ip6tables" }, if source { "-s" } else { "-d" });
                    let verb = if is_rule { "-I" } else { "-A" };
                    format!("{program} {verb} FORWARD {side} {net} -j ACCEPT")
                }
                Whose::Ufw => format!("ufw route allow {} {net}", if source { "from" } else { "to" }),
                Whose::Firewalld => format!("firewall-cmd --permanent --zone=trusted --add-source={net}"),
                Whose::Nft => {
                    let (family, side) =
                        (if v4 { "ip" } else { "ip6" }, if source { "saddr" } else { "daddr" });
                    let verb = if is_rule { "insert" } else { "add" };
                    format!("nft {verb} rule {table} {chain} {family} {side} {net} accept")
                }
            }
        })
        .collect();
    if whose == Whose::Firewalld {
        commands.push("firewall-cmd --reload".to_owned());
    }
    let does = if is_rule { "refuses by a rule what comes so far" } else { "drops what it does not accept" };
    let own = if whose == Whose::Iptables && !is_rule { " (or turn forwardRules on)" } else { "" };
    format!(
        "chain {chain} of nft table {table} {does}, packets of pods too: needed is `{}`{own}",
        commands.join("; ")
    )
}

/// Tables of iptables-legacy, which nobody can look into without its own program.
fn legacy(wanted: &Forward, read: impl Fn(&Path) -> Option<String>) -> Vec<String> {
    let mut problems = vec![];
    for (path, program, v4) in LEGACY {
        let tables = read(Path::new(path)).unwrap_or_default();
        let Some(pool) = wanted.pools.iter().find(|net| net.addr().is_ipv4() == v4) else { continue };
        if tables.lines().any(|table| table == "filter") {
            problems.push(format!(
                "{program} has a filter table, which cannot be looked into: if `{program} -S FORWARD` says DROP, needed is \
                 `{program} -A FORWARD -s {pool} -j ACCEPT; {program} -A FORWARD -d {pool} -j ACCEPT`"
            ));
        }
    }
    problems
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(pools: &[&str]) -> Forward {
        Forward { pools: pools.iter().map(|pool| pool.parse().unwrap()).collect(), rules: true }
    }

    #[test]
    fn legacy_tables_are_reported_by_name_where_there_are_pools() {
        let filter = |path: &Path| path.ends_with("ip_tables_names").then(|| "nat\nfilter\n".to_owned());
        let [found] = &legacy(&wanted(&["10.244.0.0/16", "fd00::/48"]), filter)[..] else { panic!("one") };
        assert!(found.contains("iptables-legacy -A FORWARD -s 10.244.0.0/16 -j ACCEPT"), "{found}");
        assert_eq!(legacy(&wanted(&["fd00::/48"]), filter), Vec::<String>::new());
        assert_eq!(legacy(&wanted(&["10.0.0.0/8"]), |_| Some("nat\n".to_owned())), Vec::<String>::new());
        assert_eq!(legacy(&wanted(&["10.0.0.0/8"]), |_| None), Vec::<String>::new());
    }
}
