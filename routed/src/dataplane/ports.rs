//! The table of host ports, whose writer is the CNI plugin: made anew from the endpoint records after somebody
//! flushed or changed it. Nothing is done where no pod has a host port and there is no table.
//!
//! An ADD writes its record before it opens its ports, a DEL closes them before it removes the record, both under
//! the address lock. So what differs is looked at again under that lock before it counts: then no call is
//! between the two. (An ADD that has not opened its ports yet finds them open.)

use std::io;
use std::path::PathBuf;

use podway_ipam::AddressLock;
use podway_kern::nft::NftSocket;
use podway_model::names::{ENDPOINTS_DIR, IPAM_DIR};
use podway_nft::{CommitError, Nftables as _, TableState, Transaction, tables};

use super::pods;

/// Where the records and the lock are.
#[derive(Debug)]
pub(crate) struct HostPorts {
    pub(crate) endpoints: PathBuf,
    pub(crate) ipam: PathBuf,
}

impl Default for HostPorts {
    fn default() -> Self {
        Self { endpoints: ENDPOINTS_DIR.into(), ipam: IPAM_DIR.into() }
    }
}

impl HostPorts {
    /// Makes the table what the records say. True: it was not.
    ///
    /// # Errors
    /// The kernel refuses, the lock cannot be had, or a record cannot be read: a table without that record's ports
    /// would close them.
    pub(crate) fn ensure(&self, socket: &mut NftSocket) -> Result<bool, CommitError> {
        if self.differing(socket)?.is_none() {
            return Ok(false);
        }
        let _lock = AddressLock::acquire(&self.ipam).map_err(|e| failed(&e.to_string()))?;
        let Some(wanted) = self.differing(socket)? else { return Ok(false) };
        socket.commit(&Transaction::replace(&wanted))?;
        Ok(true)
    }

    /// The table that should be there, if another one is.
    fn differing(&self, socket: &mut NftSocket) -> Result<Option<TableState>, CommitError> {
        let (records, problems) = pods::read_records(&self.endpoints);
        if let Some(problem) = problems.first() {
            return Err(failed(problem));
        }
        let wanted = tables::ports(&records);
        let same = match socket.dump(&wanted.id)? {
            None => records.iter().all(|record| record.host_ports.is_empty()),
            Some(found) => found.difference(&wanted).is_none(),
        };
        Ok((!same).then_some(wanted))
    }
}

fn failed(reason: &str) -> CommitError {
    CommitError::Io(io::Error::other(format!("host ports: {reason}")))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use podway_kern::ns;
    use podway_model::endpoint::EndpointRecord;
    use podway_nft::Op;
    use serde_json::json;

    use super::*;

    fn write(folder: &Path, id: &str, address: &str, port: u16) -> EndpointRecord {
        let boot = std::fs::read_to_string(podway_model::names::BOOT_ID_FILE).unwrap();
        let record = json!({
            "schema": 1, "id": id, "bootId": boot.trim(), "network": "podway", "containerId": id,
            "ifname": "eth0", "hostIfname": "pw1", "mac": "02:00:00:00:00:01", "mtu": 1500, "pod": null,
            "addresses": [address], "netns": "/run/netns/x",
            "hostPorts": [{"hostPort": port, "containerPort": 80, "protocol": "TCP"}]
        });
        std::fs::write(folder.join(format!("{id}.json")), record.to_string()).unwrap();
        serde_json::from_value(record).unwrap()
    }

    /// Runs a test in a network namespace of its own, or says why not.
    fn on_a_node(test: &str, body: impl FnOnce(&HostPorts, &mut NftSocket) + Send) {
        if !nix::unistd::geteuid().is_root() {
            println!("SKIP {test}: needs root");
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let ports =
            HostPorts { endpoints: folder.path().join("endpoints"), ipam: folder.path().join("ipam") };
        std::fs::create_dir(&ports.endpoints).unwrap();
        ns::in_new_netns(|| body(&ports, &mut NftSocket::open().unwrap())).unwrap();
    }

    #[test]
    fn host_ports_come_back_after_a_foreign_flush() {
        on_a_node("host_ports_come_back_after_a_foreign_flush", |ports, socket| {
            assert!(!ports.ensure(socket).unwrap(), "no pod, no table");
            assert_eq!(socket.dump(&tables::ports_id()).unwrap(), None);
            let records =
                [write(&ports.endpoints, "a", "10.0.0.1", 80), write(&ports.endpoints, "b", "fd00::1", 443)];
            assert!(ports.ensure(socket).unwrap());
            assert!(!ports.ensure(socket).unwrap());
            socket.commit(&Transaction::remove(&tables::ports_id())).unwrap();
            assert!(ports.ensure(socket).unwrap());
            let found = socket.dump(&tables::ports_id()).unwrap().unwrap();
            assert_eq!(found.difference(&tables::ports(&records)), None);
            // One element, or one rule.
            socket.commit(&tables::close_ports(&records[0])).unwrap();
            assert!(ports.ensure(socket).unwrap());
            let (table, name) = (tables::ports_id(), found.chains[0].name.clone());
            let mut flush = Transaction::new();
            flush.push(Op::FlushChain { table, name });
            socket.commit(&flush).unwrap();
            assert!(ports.ensure(socket).unwrap());
            // What belongs to nobody goes.
            std::fs::remove_file(ports.endpoints.join("b.json")).unwrap();
            assert!(ports.ensure(socket).unwrap());
            let found = socket.dump(&tables::ports_id()).unwrap().unwrap();
            assert_eq!(found.difference(&tables::ports(&records[..1])), None);
        });
    }

    #[test]
    fn a_record_that_cannot_be_read_closes_no_host_port() {
        on_a_node("a_record_that_cannot_be_read_closes_no_host_port", |ports, socket| {
            let record = write(&ports.endpoints, "a", "10.0.0.1", 80);
            ports.ensure(socket).unwrap();
            std::fs::write(ports.endpoints.join("a.json"), "{").unwrap();
            assert!(ports.ensure(socket).unwrap_err().to_string().contains("a.json"));
            let found = socket.dump(&tables::ports_id()).unwrap().unwrap();
            assert_eq!(found.difference(&tables::ports([&record])), None);
        });
    }

    #[test]
    fn a_table_between_record_and_element_is_left_to_whom_holds_the_lock() {
        on_a_node("a_table_between_record_and_element_is_left_to_whom_holds_the_lock", |ports, socket| {
            let record = write(&ports.endpoints, "a", "10.0.0.1", 80);
            ports.ensure(socket).unwrap();
            // A DEL at work: elements are closed, the record goes, then the lock.
            let lock = AddressLock::acquire(&ports.ipam).unwrap();
            socket.commit(&tables::close_ports(&record)).unwrap();
            std::thread::scope(|scope| {
                let netns = ns::NetNs::current().unwrap();
                let looking =
                    scope.spawn(move || netns.run(|| ports.ensure(&mut NftSocket::open().unwrap())));
                std::fs::remove_file(ports.endpoints.join("a.json")).unwrap();
                drop(lock);
                assert!(!looking.join().unwrap().unwrap().unwrap(), "nothing was opened again");
            });
        });
    }
}
