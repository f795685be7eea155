//! The nft tables of the data plane: the masquerade, whose only writer is `routed`; the guard, which the CNI plugin
//! may have written first, and the CNI plugin's host ports, both of which `routed` repairs.
//!
//! Pods that come and go change elements of the masquerade: its rules, and connections that are being translated by
//! them, are not touched.
//!
//! The ruleset's generation tells whether anybody changed anything since the last look: a look costs one message
//! as long as nobody did.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use podway_kern::KernelError;
use podway_kern::nft::NftSocket;
use podway_model::names::MASQ_TABLE;
use podway_nft::{CommitError, Name, Nftables as _, TableId, TableState, Transaction, tables};

use super::desired::Masquerade;
use super::ports::HostPorts;

/// How often the tables are looked at.
pub(crate) const LOOK_EVERY: Duration = Duration::from_millis(500);

const MASQ: Name = Name::literal(MASQ_TABLE);

/// The tables.
#[derive(Debug)]
pub(crate) struct Tables {
    socket: NftSocket,
    seen: Option<Seen>,
    pub(super) ports: HostPorts,
    problems: Vec<String>,
}

/// The last look.
#[derive(Debug)]
struct Seen {
    /// Generation of the ruleset after it.
    generation: u32,
    /// What was wanted then.
    masquerade: Option<Masquerade>,
    /// Addresses of local pods then.
    pods: BTreeSet<IpAddr>,
}

impl Tables {
    /// Opens a conversation with nf_tables in the calling thread's network namespace.
    pub(crate) fn open() -> Result<Self, KernelError> {
        let attempted = || "open an nftables socket".to_owned();
        let socket =
            NftSocket::open().map_err(|source| KernelError::Io { attempted: attempted(), source })?;
        Ok(Self { socket, seen: None, ports: HostPorts::default(), problems: vec![] })
    }

    /// Makes the tables what they shall be, and says how many of them somebody else had changed. `None`: nothing
    /// is known of the masquerade yet, and it stays as it is; `Some(None)`: there shall be none. `pods`: addresses of
    /// this node's pods, which are masqueraded towards themselves.
    pub(crate) fn ensure(
        &mut self,
        masquerade: Option<Option<&Masquerade>>,
        pods: &BTreeSet<IpAddr>,
    ) -> usize {
        self.problems.clear();
        match self.look(masquerade, pods) {
            Ok(repaired) => repaired,
            Err(error) => {
                self.seen = None;
                self.problems.push(format!("nftables: {error}"));
                0
            }
        }
    }

    fn look(
        &mut self,
        masquerade: Option<Option<&Masquerade>>,
        pods: &BTreeSet<IpAddr>,
    ) -> Result<usize, CommitError> {
        let wanted = masquerade.map(|wanted| wanted.cloned());
        let generation = self.socket.generation()?;
        let before = self.seen.take();
        let is_as_seen = |now: &Option<Masquerade>| {
            before.as_ref().is_some_and(|seen| {
                seen.generation == generation && seen.masquerade == *now && seen.pods == *pods
            })
        };
        if wanted.as_ref().is_some_and(is_as_seen) {
            self.seen = before;
            return Ok(0);
        }
        let mut repaired = usize::from(self.put(&tables::guard(&[]))? && before.is_some());
        repaired += usize::from(self.ports.ensure(&mut self.socket)? && before.is_some());
        match &wanted {
            None => {}
            Some(None) => self.socket.commit(&Transaction::remove(&TableId::inet(MASQ)))?,
            Some(Some(wanted)) => {
                let state = tables::masquerade(&tables::Masquerade {
                    sources: wanted.sources.clone(),
                    exclude: wanted.exclude.clone(),
                    local_pods: pods.clone(),
                });
                let unchanged = before
                    .as_ref()
                    .is_some_and(|seen| seen.masquerade.as_ref() == Some(wanted) && seen.pods == *pods);
                repaired += usize::from(self.put(&state)? && unchanged);
            }
        }
        if let Some(masquerade) = wanted {
            self.seen = Some(Seen { generation: self.socket.generation()?, masquerade, pods: pods.clone() });
        }
        Ok(repaired)
    }

    /// Makes a table what it shall be: by its elements where nothing else differs, else as a whole. True: it was not.
    fn put(&mut self, wanted: &TableState) -> Result<bool, CommitError> {
        let found = self.socket.dump(&wanted.id)?;
        match found.and_then(|found| found.elements_to(wanted)) {
            Some(elements) if elements.is_empty() => return Ok(false),
            // Somebody may change the table between the two: then it is replaced.
            Some(elements) if self.socket.commit(&elements).is_ok() => return Ok(true),
            Some(_) | None => {}
        }
        self.socket.commit(&Transaction::replace(wanted))?;
        Ok(true)
    }

    /// What could not be done in the last look.
    pub(crate) fn problems(&self) -> &[String] {
        &self.problems
    }

    /// Removes the masquerade; the guard stays with the pods. Says what could not be removed.
    pub(crate) fn remove(&mut self) -> Vec<String> {
        let removed = self.socket.commit(&Transaction::remove(&TableId::inet(MASQ)));
        removed.err().map(|error| format!("nft table {MASQ_TABLE}: {error}")).into_iter().collect()
    }
}
