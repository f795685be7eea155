//! `podwayctl ipam show`, `check` and `release`.
//!
//! The store says who claims which block and how full it is; `routed` of this node says what is wrong with this node's
//! leases, and ends one. What is found in the store is pure ([`Addresses::findings`]).

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use podway_daemon::client::ClientError;
use podway_model::cluster::{Claim, Pool, Usage, decode};
use podway_model::document::{Document, Kind};
use podway_model::ids::{NodeName, ObjectName};
use podway_model::keys::Key;
use podway_model::socket::{IpamFinding, IpamRemedy, RoutedReply, RoutedRequest};
use podway_store::{Hold, Store, release_node};
use serde::Serialize;

use crate::args::{IpamCheckArgs, IpamReleaseArgs, StoreArgs};
use crate::bgp::{ask, unexpected};
use crate::node::now;
use crate::objects;
use crate::outcome::Failure;
use crate::output::Output;
use crate::table::{Cell, Table, Tone};

/// What the store says about addresses.
#[derive(Debug, Default)]
struct Addresses {
    pools: BTreeMap<ObjectName, Pool>,
    claims: Vec<Claimed>,
    /// Nodes with a record or a sign of life.
    nodes: BTreeSet<NodeName>,
    usage: BTreeMap<NodeName, BTreeMap<IpNet, u32>>,
    /// Values that cannot be read.
    problems: Vec<String>,
}

/// A claim.
#[derive(Debug, Clone)]
struct Claimed {
    node: NodeName,
    block: IpNet,
    pool: ObjectName,
    confirmed: bool,
    /// Who came first has the lower one.
    created: i64,
}

async fn read(store: &dyn Store) -> Result<Addresses, Failure> {
    let mut all = Addresses::default();
    let (pools, problems) = objects::list(store, Kind::Pool).await?;
    all.problems = problems;
    for (document, _) in pools {
        if let Document::Pool { name, spec } = document {
            all.pools.insert(name, spec);
        }
    }
    for prefix in ["nodes/", "live/", "claims/", "usage/"] {
        for entry in store.list(prefix).await?.entries {
            match entry.key.parse() {
                Ok(Key::Node(node) | Key::Live(node)) => drop(all.nodes.insert(node)),
                Ok(Key::Claim(node, block)) => match decode::<Claim>(&entry.value) {
                    Ok(Claim { pool, confirmed, .. }) => {
                        let created = entry.create_revision;
                        all.claims.push(Claimed { node, block, pool, confirmed, created });
                    }
                    Err(error) => all.problems.push(format!("{}: {error}", entry.key)),
                },
                Ok(Key::Usage(node)) => match decode::<Usage>(&entry.value) {
                    Ok(usage) => drop(all.usage.insert(node, usage.blocks)),
                    Err(error) => all.problems.push(format!("{}: {error}", entry.key)),
                },
                Ok(_) => {}
                Err(error) => all.problems.push(error.to_string()),
            }
        }
    }
    all.claims.sort_by_key(|claim| (claim.block, claim.created));
    Ok(all)
}

/// Addresses of a block; saturates.
fn size(block: IpNet) -> u64 {
    1u64.checked_shl(u32::from(block.max_prefix_len() - block.prefix_len())).unwrap_or(u64::MAX)
}

/// What `show` shows.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Shown {
    pools: Vec<PoolShown>,
    blocks: Vec<BlockShown>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct PoolShown {
    name: ObjectName,
    cidr: IpNet,
    /// Blocks that nodes hold.
    blocks: usize,
    /// Addresses in them.
    addresses: u64,
    /// Of these, held by pods.
    used: u64,
    disabled: bool,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct BlockShown {
    node: NodeName,
    block: IpNet,
    pool: ObjectName,
    confirmed: bool,
    addresses: u64,
    used: u32,
}

impl Addresses {
    fn used(&self, claim: &Claimed) -> u32 {
        self.usage.get(&claim.node).and_then(|blocks| blocks.get(&claim.block)).copied().unwrap_or(0)
    }

    fn shown(&self) -> Shown {
        let mut blocks: Vec<BlockShown> = self
            .claims
            .iter()
            .map(|claim| BlockShown {
                node: claim.node.clone(),
                block: claim.block,
                pool: claim.pool.clone(),
                confirmed: claim.confirmed,
                addresses: size(claim.block),
                used: self.used(claim),
            })
            .collect();
        blocks.sort_by(|a, b| (&a.node, a.block).cmp(&(&b.node, b.block)));
        let pools = self.pools.iter().map(|(name, pool)| {
            let own = || blocks.iter().filter(|block| block.pool == *name);
            PoolShown {
                name: name.clone(),
                cidr: pool.cidr,
                blocks: own().count(),
                addresses: own().fold(0, |sum, block| sum.saturating_add(block.addresses)),
                used: own().map(|block| u64::from(block.used)).sum(),
                disabled: pool.disabled,
            }
        });
        Shown { pools: pools.collect(), blocks }
    }

    /// What is wrong. Pure: [`check`] mends.
    fn findings(&self) -> Vec<(IpamFinding, Option<Mend>)> {
        let mut found = Vec::new();
        let by_hand = |text: &str| IpamRemedy::ByHand(text.to_owned());
        let mut add = |subject: String, problem: String, remedy, mend| {
            found.push((IpamFinding { subject, problem, remedy }, mend));
        };
        let pools: Vec<_> = self.pools.iter().collect();
        for (i, (name, pool)) in pools.iter().enumerate() {
            for (other, _) in pools[..i].iter().filter(|(_, other)| overlap(other.cidr, pool.cidr)) {
                let problem = format!("{} overlaps pool {other}: no block is claimed from either", pool.cidr);
                add(format!("pool {name}"), problem, by_hand("delete one of the two"), None);
            }
        }
        let mut unknown = BTreeSet::new();
        for (i, claim) in self.claims.iter().enumerate() {
            let Claimed { node, block, .. } = claim;
            let subject = || format!("block {block} of node {node}");
            if !self.nodes.contains(node) && unknown.insert(node) {
                let held: Vec<String> = self
                    .claims
                    .iter()
                    .filter(|claim| claim.node == *node)
                    .map(|claim| claim.block.to_string())
                    .collect();
                let problem = format!("nobody knows it, and it holds {}", held.join(", "));
                let mend = Some(Mend::ReleaseNode(node.clone()));
                add(format!("node {node}"), problem, IpamRemedy::CanBeMended, mend);
            }
            let release = format!("drain the node, then podwayctl node release {node}");
            match self.pools.get(&claim.pool) {
                None => {
                    add(subject(), format!("there is no pool {}", claim.pool), by_hand(&release), None);
                }
                Some(pool) if !pool.cidr.contains(block) => {
                    let problem = format!("lies outside of pool {} ({})", claim.pool, pool.cidr);
                    add(subject(), problem, by_hand(&release), None);
                }
                Some(_) => {}
            }
            for other in self.claims[..i].iter().filter(|other| overlap(other.block, *block)) {
                let (first, second) =
                    if other.created <= claim.created { (other, claim) } else { (claim, other) };
                let problem =
                    format!("overlaps block {} of node {}, which came first", first.block, first.node);
                let remedy = by_hand("routed of the second node gives it back; see that it runs");
                add(format!("block {} of node {}", second.block, second.node), problem, remedy, None);
            }
        }
        for (node, blocks) in &self.usage {
            let claimed =
                |block: &IpNet| self.claims.iter().any(|claim| claim.node == *node && claim.block == *block);
            if !self.nodes.contains(node) {
                let mend = Some(Mend::Delete(Key::Usage(node.clone()).to_string()));
                add(
                    format!("node {node}"),
                    "nobody knows it, and its use of addresses is told".to_owned(),
                    IpamRemedy::CanBeMended,
                    mend,
                );
                continue;
            }
            for (block, used) in blocks {
                let subject = format!("block {block} of node {node}");
                if u64::from(*used) > size(*block) {
                    let problem = format!("{used} addresses used, {} expected at most", size(*block));
                    add(subject, problem, by_hand("podwayctl ipam check on that node"), None);
                } else if *used > 0 && !claimed(block) {
                    let problem = format!("{used} addresses used, and the node does not hold it");
                    add(subject, problem, by_hand("end these pods: nothing leads to them any more"), None);
                }
            }
        }
        found
    }
}

/// What mends a finding of the store.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Mend {
    ReleaseNode(NodeName),
    Delete(String),
}

fn overlap(a: IpNet, b: IpNet) -> bool {
    a.contains(&b) || b.contains(&a)
}

pub(crate) async fn show(store: &StoreArgs, output: &Output) -> Result<(), Failure> {
    let all = read(objects::open(store)?.as_ref()).await?;
    let shown = all.shown();
    output.show(|colour| text(&shown, colour), &shown)?;
    if all.problems.is_empty() { Ok(()) } else { Err(Failure::Failed(all.problems.join("\n"))) }
}

fn text(shown: &Shown, colour: bool) -> String {
    if shown.pools.is_empty() && shown.blocks.is_empty() {
        return "no pool: pods get no address\n".to_owned();
    }
    let share = |used: u64, all: u64| {
        let percent = used.saturating_mul(100).checked_div(all).unwrap_or(0);
        let tone = match percent {
            0..80 => Tone::Plain,
            80..95 => Tone::Warning,
            _ => Tone::Bad,
        };
        Cell::toned(format!("{percent}%"), tone)
    };
    let mut pools = Table::new(&["POOL", "CIDR", "BLOCKS", "ADDRESSES", "USED", "SHARE", "STATE"]);
    for pool in &shown.pools {
        pools.row(vec![
            pool.name.as_str().into(),
            pool.cidr.to_string().into(),
            pool.blocks.to_string().into(),
            pool.addresses.to_string().into(),
            pool.used.to_string().into(),
            share(pool.used, pool.addresses),
            if pool.disabled { "disabled".into() } else { "".into() },
        ]);
    }
    let mut blocks = Table::new(&["NODE", "BLOCK", "POOL", "ADDRESSES", "USED", "SHARE", "STATE"]);
    for block in &shown.blocks {
        blocks.row(vec![
            block.node.as_str().into(),
            block.block.to_string().into(),
            block.pool.as_str().into(),
            block.addresses.to_string().into(),
            block.used.to_string().into(),
            share(u64::from(block.used), block.addresses),
            if block.confirmed { "".into() } else { Cell::toned("pending", Tone::Warning) },
        ]);
    }
    let mut text = pools.render(colour, 0);
    if !blocks.is_empty() {
        text += "\n";
        text += &blocks.render(colour, 0);
    }
    text
}

pub(crate) async fn check(store: &StoreArgs, args: &IpamCheckArgs, output: &Output) -> Result<(), Failure> {
    let store = objects::open(store)?;
    let all = read(store.as_ref()).await?;
    let mut findings = Vec::new();
    for (mut finding, mend) in all.findings() {
        if let Some(mend) = mend.filter(|_| args.mend) {
            match mend {
                Mend::ReleaseNode(node) => {
                    drop(release_node(store.as_ref(), &node, Hold::Since(now()?)).await?);
                }
                Mend::Delete(key) => drop(store.delete(&key).await?),
            }
            finding.remedy = IpamRemedy::Mended;
        }
        findings.push(finding);
    }
    for problem in all.problems {
        let remedy = IpamRemedy::ByHand("write it anew, or delete the key".to_owned());
        findings.push(IpamFinding { subject: "store".to_owned(), problem, remedy });
    }
    match ask(&args.sockets.routed_socket, &RoutedRequest::IpamCheck { mend: args.mend }) {
        Ok(RoutedReply::IpamFindings { node, findings: local }) => {
            findings.extend(local.into_iter().map(|finding| IpamFinding {
                subject: format!("{} on node {node}", finding.subject),
                ..finding
            }));
        }
        Ok(other) => return Err(unexpected(&other)),
        Err(ClientError::NotRunning { .. }) => {
            output.warn("routed does not run here: only the store was looked at");
        }
        Err(error) => return Err(error.into()),
    }
    let left = findings.iter().filter(|finding| finding.remedy != IpamRemedy::Mended).count();
    output.show(|colour| findings_text(&findings, colour), &findings)?;
    if left == 0 { Ok(()) } else { Err(Failure::Failed(format!("{left} to mend"))) }
}

fn findings_text(findings: &[IpamFinding], colour: bool) -> String {
    if findings.is_empty() {
        return "nothing leaks, nothing is double\n".to_owned();
    }
    let mut table = Table::new(&["WHAT", "PROBLEM", "REMEDY"]);
    for finding in findings {
        table.row(vec![
            finding.subject.as_str().into(),
            finding.problem.as_str().into(),
            match &finding.remedy {
                IpamRemedy::Mended => Cell::toned("mended", Tone::Good),
                IpamRemedy::CanBeMended => Cell::toned("--mend", Tone::Warning),
                IpamRemedy::ByHand(what) => Cell::toned(what.as_str(), Tone::Bad),
            },
        ]);
    }
    table.render(colour, 0)
}

/// What `release` did.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Released {
    holder: String,
    addresses: Vec<IpAddr>,
}

pub(crate) async fn release(
    store: &StoreArgs,
    args: &IpamReleaseArgs,
    output: &Output,
) -> Result<(), Failure> {
    let IpamReleaseArgs { address, force, .. } = *args;
    match ask(&args.sockets.routed_socket, &RoutedRequest::IpamRelease { address, force })? {
        RoutedReply::IpamReleased { holder, addresses } => {
            let released = Released { holder, addresses };
            let texts: Vec<String> = released.addresses.iter().map(IpAddr::to_string).collect();
            output
                .show(|_| format!("{} released; {} held it\n", texts.join(", "), released.holder), &released)
        }
        RoutedReply::IpamNotHeld { node } => {
            let owner = match objects::open(store) {
                Ok(store) => read(store.as_ref()).await.ok().and_then(|all| all.owner(address)),
                Err(_) => None,
            };
            Err(Failure::NotFound(match owner {
                Some((owner, block)) if owner != node => format!(
                    "nobody on this node ({node}) holds {address}: it lies in {block}, a block of node {owner}; run \
                     this there"
                ),
                _ => format!("nobody on this node ({node}) holds {address}"),
            }))
        }
        other => Err(unexpected(&other)),
    }
}

impl Addresses {
    fn owner(&self, address: IpAddr) -> Option<(NodeName, IpNet)> {
        let claim = self.claims.iter().find(|claim| claim.block.contains(&address))?;
        Some((claim.node.clone(), claim.block))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(cidr: &str) -> Pool {
        serde_json::from_value(serde_json::json!({ "cidr": cidr })).unwrap()
    }

    fn claim(node: &str, block: &str, pool: &str, created: i64) -> Claimed {
        Claimed {
            node: node.parse().unwrap(),
            block: block.parse().unwrap(),
            pool: pool.parse().unwrap(),
            confirmed: created != 3,
            created,
        }
    }

    fn addresses() -> Addresses {
        let usage = |list: &[(&str, u32)]| -> BTreeMap<IpNet, u32> {
            list.iter().map(|(block, used)| (block.parse().unwrap(), *used)).collect()
        };
        Addresses {
            pools: [("v4", "10.244.0.0/16"), ("v6", "fd00::/64")]
                .map(|(name, cidr)| (name.parse().unwrap(), pool(cidr)))
                .into(),
            claims: vec![
                claim("n1", "10.244.0.0/26", "v4", 1),
                claim("n2", "10.244.0.64/26", "v4", 2),
                claim("n1", "fd00::100/122", "v6", 3),
            ],
            nodes: ["n1", "n2"].map(|node| node.parse().unwrap()).into(),
            usage: [
                ("n1".parse().unwrap(), usage(&[("10.244.0.0/26", 60)])),
                ("n2".parse().unwrap(), usage(&[("10.244.0.64/26", 3)])),
            ]
            .into(),
            problems: Vec::new(),
        }
    }

    #[test]
    fn pools_and_blocks_with_their_use_as_tables() {
        insta::assert_snapshot!(text(&addresses().shown(), false));
        assert_eq!(text(&Addresses::default().shown(), false), "no pool: pods get no address\n");
        assert_eq!(
            addresses().owner("10.244.0.70".parse().unwrap()).unwrap().0.as_str(),
            "n2",
            "whose block it is"
        );
    }

    #[test]
    fn what_is_wrong_in_the_store_is_found_and_what_is_sound_is_not() {
        assert!(addresses().findings().is_empty());
        let mut bad = addresses();
        bad.pools.insert("wide".parse().unwrap(), pool("10.0.0.0/8"));
        bad.claims.extend([
            claim("n2", "10.244.0.0/27", "v4", 9),
            claim("ghost", "10.244.9.0/26", "v4", 4),
            claim("ghost", "10.244.9.64/26", "v4", 5),
            claim("n2", "192.168.0.0/26", "v4", 6),
            claim("n2", "10.245.0.0/26", "old", 7),
        ]);
        let usage = |block: &str, used| BTreeMap::from([(block.parse().unwrap(), used)]);
        bad.usage.insert("n1".parse().unwrap(), usage("10.244.0.0/26", 65));
        bad.usage.insert("n2".parse().unwrap(), usage("10.244.7.0/26", 2));
        bad.usage.insert("ghost".parse().unwrap(), usage("10.244.9.0/26", 2));
        let found = bad.findings();
        let mends: Vec<&Mend> = found.iter().filter_map(|(_, mend)| mend.as_ref()).collect();
        assert_eq!(
            mends,
            [&Mend::ReleaseNode("ghost".parse().unwrap()), &Mend::Delete("usage/ghost".to_owned())]
        );
        let findings: Vec<IpamFinding> = found.into_iter().map(|(finding, _)| finding).collect();
        insta::assert_snapshot!(findings_text(&findings, false));
        assert_eq!(findings_text(&[], false), "nothing leaks, nothing is double\n");
    }
}
