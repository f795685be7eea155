//! STATUS: would an ADD work now? Asks what ADD asks, and changes nothing.

use podway_ipam::Request;
use podway_ipam::store::since_boot;
use podway_model::cluster::PolicyMode;

use crate::conf::Network;
use crate::error::{CniError, Code};
use crate::node::Node;
use crate::policy;
use crate::tables::Tables;

/// `Ok` if an ADD without wishes would get its addresses and its policy.
pub fn status(network: &Network) -> Result<(), CniError> {
    ready(network).map_err(|error| CniError { code: Code::NotAvailable, ..error })
}

fn ready(network: &Network) -> Result<(), CniError> {
    let node = Node::here()?;
    let leases = node.leases()?;
    let file = node.file()?;
    // Only asked for, never leased: the name does not matter.
    let nobody = podway_ipam::Attachment::new(
        "status-asks-for-nobody".parse().expect("a container id"),
        "status".parse().expect("an interface name"),
    );
    let request = Request::new(nobody, network.name.clone());
    leases.ledger().plan(&file, &request, since_boot())?;
    drop(leases);
    if file.policy == PolicyMode::Required && !Tables::look()?.has_policy() {
        return Err(policy::refused("table inet podway-policy is missing; is it running?"));
    }
    Ok(())
}
