//! Where the plugin finds the node's state, and what it knows about the node.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::path::PathBuf;

use podway_ipam::rebuild::Found;
use podway_ipam::{AddressLock, Attachment, LeaseStore, NodeFileError, read_boot_id, read_node_file};
use podway_kern::rtnl::{RouteFilter, Rtnl};
use podway_model::ids::BootId;
use podway_model::names::{self, PLUGIN, POD_GROUP, POD_ROUTE_PROTOCOL};
use podway_model::node_file::NodeFile;

use crate::delegate::Marks;
use crate::error::{CniError, Code};
use crate::record::Records;

/// Paths of the node's state, and the boot in which we are.
#[derive(Debug, Clone)]
pub struct Node {
    boot: BootId,
    node_file: PathBuf,
    ipam: PathBuf,
    policy_socket: PathBuf,
    records: Records,
    marks: Marks,
}

impl Node {
    /// The node on which the program runs.
    pub fn here() -> Result<Self, CniError> {
        let boot = read_boot_id(names::BOOT_ID_FILE.as_ref())
            .map_err(|e| CniError::new(Code::Io, format!("cannot read the boot id: {e}")))?;
        Ok(Self {
            boot,
            node_file: names::NODE_FILE.into(),
            ipam: names::IPAM_DIR.into(),
            policy_socket: names::POLICY_SOCKET.into(),
            records: Records::new(names::ENDPOINTS_DIR),
            marks: Marks::new(names::DELEGATED_DIR),
        })
    }

    /// This boot.
    pub fn boot(&self) -> &BootId {
        &self.boot
    }

    /// Endpoint records.
    pub fn records(&self) -> &Records {
        &self.records
    }

    /// Attachments whose addresses another plugin gives.
    pub fn marks(&self) -> &Marks {
        &self.marks
    }

    /// Socket of the policy agent.
    pub fn policy_socket(&self) -> &std::path::Path {
        &self.policy_socket
    }

    /// The lock of the leases alone: records with host ports are written and removed under it.
    pub fn lock(&self) -> Result<AddressLock, CniError> {
        Ok(AddressLock::acquire(&self.ipam)?)
    }

    /// The leases, locked until the value is dropped: see [`Self::leases_under`].
    pub fn leases(&self) -> Result<LeaseStore, CniError> {
        self.leases_under(self.lock()?)
    }

    /// The leases, under a lock that is held already. A lease file that is damaged or lost is made anew first, from
    /// the pods that are there; what was done goes to standard error, where runtimes log it.
    pub fn leases_under(&self, lock: AddressLock) -> Result<LeaseStore, CniError> {
        let file = || self.file().ok();
        let (store, rebuilt) =
            LeaseStore::open_or_rebuild(lock, &self.ipam, &self.boot, file, || self.find_attachments())?;
        if let Some(rebuilt) = rebuilt {
            let left_out: Vec<String> = rebuilt.left_out.iter().map(ToString::to_string).collect();
            // Whoever does not read it loses nothing.
            let _ = writeln!(
                std::io::stderr(),
                "podway: {}: rebuilt with {} leases{}{}",
                rebuilt.reason,
                rebuilt.leases,
                if left_out.is_empty() { "" } else { "; left out, because an address has another holder: " },
                left_out.join(", ")
            );
        }
        Ok(store)
    }

    /// The leases as they stand in the file, which is left as it is: for who only looks.
    pub fn look_at_leases(&self) -> Result<LeaseStore, CniError> {
        Ok(LeaseStore::open(&self.ipam, &self.boot)?)
    }

    /// Attachments whose interface is on the node: by group and alias.
    pub fn present(&self, rtnl: &mut Rtnl) -> Result<BTreeSet<Attachment>, CniError> {
        let links = rtnl.links_in_group(POD_GROUP)?;
        Ok(Attachment::of_aliases(links.iter().filter_map(|link| link.alias.as_deref())))
    }

    /// Every attachment with a lease of ours that its interface or its record witnesses.
    fn find_attachments(&self) -> Result<Vec<Found>, CniError> {
        let mut rtnl = Rtnl::open()?;
        let mut links: BTreeMap<Attachment, u32> = BTreeMap::new();
        for link in rtnl.links_in_group(POD_GROUP)? {
            let attachment = link.alias.as_deref().and_then(Attachment::from_alias);
            links.extend(attachment.map(|attachment| (attachment, link.index)));
        }
        let (records, _) = self.records.list()?;
        for mark in self.marks.list()?.0 {
            links.remove(&Attachment::new(mark.container_id, mark.ifname));
        }
        let mut found = Vec::new();
        let leased = records.into_iter().filter(|record| record.ipam.is_none());
        for record in leased.filter(|record| record.boot_id == self.boot) {
            let attachment = Attachment::new(record.container_id, record.ifname);
            let is_wired = links.remove(&attachment).is_some();
            let (network, addresses) = (record.network, record.addresses);
            found.push(Found { attachment, network, addresses, is_wired });
        }
        if links.is_empty() {
            return Ok(found);
        }
        // Without a record: the addresses that are routed through the interface, on the default network.
        let routes = rtnl.routes(RouteFilter { table: None, protocol: Some(POD_ROUTE_PROTOCOL) })?;
        for (attachment, index) in links {
            let through = routes.iter().filter(|route| route.interface == Some(index));
            let addresses = through.map(|route| route.destination.addr()).collect();
            let network = PLUGIN.parse().expect("a network name");
            found.push(Found { attachment, network, addresses, is_wired: true });
        }
        Ok(found)
    }

    /// The node file of this boot. Who allocates reads it under the lock of [`Self::leases`].
    pub fn file(&self) -> Result<NodeFile, NodeFileError> {
        read_node_file(&self.node_file, &self.boot)
    }
}
