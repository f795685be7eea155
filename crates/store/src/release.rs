//! Taking blocks from a node that is gone: what `podwayctl node release NODE` does.
//!
//! The order makes it safe to be cut off at any point and to be called again: first the hold on each block is
//! written, then its claim goes, last the node's record and sign of life.

use podway_model::cluster::{ClusterConfig, Liveness, Released, decode, encode};
use podway_model::flannel::LeaseAttrs;
use podway_model::ids::NodeName;
use podway_model::keys::Key;

use ipnet::IpNet;

use crate::{Store, StoreError, Written};

/// How long a block stays unclaimable after its release, in seconds.
pub const HOLD_SECONDS: u64 = 24 * 3600;

/// How long a released block stays unclaimable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hold {
    /// As usual (24 h): `released/<block>` is written, with this time in seconds since 1970.
    Since(u64),
    /// Not at all (`--now`): the operator knows that no pod of the node is alive.
    None,
}

/// What [`release_node`] did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ReleaseReport {
    /// Blocks that were taken from the node.
    pub blocks: Vec<IpNet>,
    /// Keys under the node's claims that name no block; removed too.
    pub malformed: Vec<String>,
    /// Keys of flannel's subnets that the node held, given up too; only with [`Hold::None`]: without it they end by
    /// themselves in the same 24 hours.
    pub subnets: Vec<String>,
    /// Whether the node had a record.
    pub had_record: bool,
    /// Sign of life that was there when it was released: the node may be up, and will claim anew.
    pub live: Option<Liveness>,
}

/// Takes all blocks from `node` and forgets its record. Others drop its routes as soon as their watch tells them.
///
/// A node that is alive re-publishes itself and claims other blocks; its living pods are stranded. The caller
/// asks the operator before when [`ReleaseReport::live`] would be set (look at `live/<node>` first).
pub async fn release_node(
    store: &dyn Store,
    node: &NodeName,
    hold: Hold,
) -> Result<ReleaseReport, StoreError> {
    let mut report = ReleaseReport::default();
    if let Some(entry) = store.get(&Key::Live(node.clone()).to_string()).await? {
        report.live = decode(&entry.value).ok();
    }
    for entry in store.list(&format!("claims/{node}/")).await?.entries {
        match entry.key.parse() {
            Ok(Key::Claim(_, block)) => {
                release_block(store, node, block, hold).await?;
                report.blocks.push(block);
            }
            _ => {
                store.delete(&entry.key).await?;
                report.malformed.push(entry.key);
            }
        }
    }
    if hold == Hold::None {
        report.subnets = release_subnets(store, node).await?;
    }
    report.had_record = store.delete(&Key::Node(node.clone()).to_string()).await?;
    store.delete(&Key::Live(node.clone()).to_string()).await?;
    store.delete(&Key::Usage(node.clone()).to_string()).await?;
    // A node that is set up anew under the name is another one.
    store.delete(&Key::Drained(node.clone()).to_string()).await?;
    Ok(report)
}

/// Gives up the node's leases among flannel's, where flannel's nodes are talked with.
async fn release_subnets(store: &dyn Store, node: &NodeName) -> Result<Vec<String>, StoreError> {
    let Some(entry) = store.get(&Key::Config.to_string()).await? else { return Ok(vec![]) };
    let config: Option<ClusterConfig> = decode(&entry.value).ok();
    let Some(flannel) = config.and_then(|config| config.compat.flannel) else { return Ok(vec![]) };
    if store.takes_outside(flannel.prefix.as_str()).is_err() {
        return Ok(vec![]);
    }
    let mut given_up = vec![];
    for entry in store.list(&flannel.prefix.subnets()).await?.entries {
        let attrs = LeaseAttrs::parse(&entry.key, &entry.value).ok();
        let is_its = attrs.and_then(|attrs| attrs.mark).is_some_and(|mark| mark.node == *node);
        // Flannel may have written it since.
        if is_its && matches!(store.delete_if(&entry.key, entry.mod_revision).await?, Written::Done { .. }) {
            given_up.push(entry.key);
        }
    }
    Ok(given_up)
}

/// Takes one block from `node`. Answers whether the claim was there.
pub async fn release_block(
    store: &dyn Store,
    node: &NodeName,
    block: IpNet,
    hold: Hold,
) -> Result<bool, StoreError> {
    if let Hold::Since(at_unix_seconds) = hold {
        let released = Released { at_unix_seconds, former_owner: node.clone() };
        store.put(&Key::Released(block).to_string(), &encode(&released)).await?;
    }
    let was_there = store.delete(&Key::Claim(node.clone(), block).to_string()).await?;
    if hold == Hold::None {
        store.delete(&Key::Released(block).to_string()).await?;
    }
    Ok(was_there)
}
