//! STATUS: would an ADD work now? Asks what ADD asks, and changes nothing.

use podway_ipam::LeaseKind;
use podway_ipam::store::since_boot;
use podway_model::cluster::PolicyMode;
use podway_model::node_file::NodeFile;

use crate::conf::Network;
use crate::delegate::Delegate;
use crate::error::{CniError, Code};
use crate::node::Node;
use crate::policy;
use crate::tables::Tables;
use crate::wish::AddressWish;

/// `Ok` if an ADD without wishes of its pod would get its addresses and its policy.
///
/// # Errors
/// Why not: code 50, or what another address plugin says of itself by the codes for it.
pub fn status(network: &Network) -> Result<(), CniError> {
    ready(network).map_err(|error| match error.code {
        Code::Foreign(50 | 51) => error,
        _ => CniError { code: Code::NotAvailable, ..error },
    })
}

fn ready(network: &Network) -> Result<(), CniError> {
    let conf = network.for_add()?;
    let node = Node::here()?;
    let file = match Delegate::of(network)? {
        Some(delegate) => {
            delegate.run("STATUS", network)?;
            node.file()?
        }
        None => room(&node, network, &conf.addresses, LeaseKind::Wired)?,
    };
    if file.policy == PolicyMode::Required && !Tables::look()?.has_policy() {
        return Err(policy::refused("table inet podway-policy is missing; is it running?"));
    }
    Ok(())
}

/// Asks whether there are addresses, and leases none.
pub(crate) fn room(
    node: &Node,
    network: &Network,
    wish: &AddressWish,
    kind: LeaseKind,
) -> Result<NodeFile, CniError> {
    let leases = node.leases()?;
    let file = node.file()?;
    // Only asked for, never leased: the name does not matter.
    let nobody = podway_ipam::Attachment::new(
        "status-asks-for-nobody".parse().expect("a container id"),
        "status".parse().expect("an interface name"),
    );
    let request = wish.request(&nobody, &network.name, None, &file, kind)?;
    leases.ledger().plan(&file, &request, since_boot())?;
    Ok(file)
}
