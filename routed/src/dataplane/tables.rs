//! The nft tables of the data plane: the masquerade, whose only writer is `routed`; the guard, which the CNI plugin
//! may have written first, and the CNI plugin's host ports, both of which `routed` repairs.
//!
//! The ruleset's generation tells whether anybody changed anything since the last look: a look costs one message
//! as long as nobody did.

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
    /// Generation of the ruleset after the last look, and what was wanted then.
    seen: Option<(u32, Option<Masquerade>)>,
    ports: HostPorts,
    problems: Vec<String>,
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
    /// is known of the masquerade yet, and it stays as it is; `Some(None)`: there shall be none.
    pub(crate) fn ensure(&mut self, masquerade: Option<Option<&Masquerade>>) -> usize {
        self.problems.clear();
        match self.look(masquerade) {
            Ok(repaired) => repaired,
            Err(error) => {
                self.seen = None;
                self.problems.push(format!("nftables: {error}"));
                0
            }
        }
    }

    fn look(&mut self, masquerade: Option<Option<&Masquerade>>) -> Result<usize, CommitError> {
        let wanted = masquerade.map(|wanted| wanted.cloned());
        let generation = self.socket.generation()?;
        let before = self.seen.take();
        let is_as_seen = |now: &Option<Masquerade>| {
            before.as_ref().is_some_and(|(seen, last)| *seen == generation && last == now)
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
                    local_pods: Default::default(),
                });
                let unchanged = before.as_ref().is_some_and(|(_, last)| last.as_ref() == Some(wanted));
                repaired += usize::from(self.put(&state)? && unchanged);
            }
        }
        if let Some(wanted) = wanted {
            self.seen = Some((self.socket.generation()?, wanted));
        }
        Ok(repaired)
    }

    /// Replaces a table unless it is what it shall be. True: it was not.
    fn put(&mut self, wanted: &TableState) -> Result<bool, CommitError> {
        let found = self.socket.dump(&wanted.id)?;
        if found.is_some_and(|found| found.difference(wanted).is_none()) {
            return Ok(false);
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
