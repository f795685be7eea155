//! The nft tables of the data plane: the masquerade, whose only writer is `routed`; the guard, which the CNI plugin
//! may have written first, and the CNI plugin's host ports, both of which `routed` repairs.
//!
//! Forward chains of others are looked at together with them ([`super::forward`]).
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
use super::forward::{self, Forward};
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
    /// Firewalls of others that are in the way.
    in_the_way: Vec<String>,
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
    /// What was wanted of others then.
    forward: Option<Forward>,
}

impl Tables {
    /// Opens a conversation with nf_tables in the calling thread's network namespace.
    pub(crate) fn open() -> Result<Self, KernelError> {
        let attempted = || "open an nftables socket".to_owned();
        let socket =
            NftSocket::open().map_err(|source| KernelError::Io { attempted: attempted(), source })?;
        Ok(Self { socket, seen: None, ports: HostPorts::default(), problems: vec![], in_the_way: vec![] })
    }

    /// Makes the tables what they shall be, and says how many of them somebody else had changed. `None`: nothing
    /// is known of the masquerade yet, and it stays as it is; `Some(None)`: there shall be none. `pods`: addresses of
    /// this node's pods, which are masqueraded towards themselves.
    pub(crate) fn ensure(
        &mut self,
        masquerade: Option<Option<&Masquerade>>,
        pods: &BTreeSet<IpAddr>,
        forward: Option<&Forward>,
    ) -> usize {
        self.problems.clear();
        match self.look(masquerade, pods, forward) {
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
        forward: Option<&Forward>,
    ) -> Result<usize, CommitError> {
        let wanted = masquerade.map(|wanted| wanted.cloned());
        let generation = self.socket.generation()?;
        let before = self.seen.take();
        let is_as_seen = |now: &Option<Masquerade>| {
            before.as_ref().is_some_and(|seen| {
                let same = seen.masquerade == *now && seen.pods == *pods && seen.forward.as_ref() == forward;
                seen.generation == generation && same
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
        if let Some(forward) = forward {
            let (changed, in_the_way) = forward::ensure(&mut self.socket, forward)?;
            let unchanged = before.as_ref().is_some_and(|seen| seen.forward.as_ref() == Some(forward));
            repaired += usize::from(changed && unchanged);
            self.in_the_way = in_the_way;
        }
        if let Some(masquerade) = wanted {
            let (generation, forward) = (self.socket.generation()?, forward.cloned());
            self.seen = Some(Seen { generation, masquerade, pods: pods.clone(), forward });
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
    pub(crate) fn problems(&self) -> impl Iterator<Item = &String> {
        self.problems.iter().chain(&self.in_the_way)
    }

    /// Firewalls of others that are in the way of pods.
    pub(crate) fn in_the_way(&self) -> &[String] {
        &self.in_the_way
    }

    /// Removes the masquerade, and our rules in chains of others; the guard stays with the pods. Says what could not be
    /// removed.
    pub(crate) fn remove(&mut self) -> Vec<String> {
        let masquerade = self.socket.commit(&Transaction::remove(&TableId::inet(MASQ)));
        let masquerade = masquerade.map_err(|error| format!("nft table {MASQ_TABLE}: {error}"));
        let forward = forward::remove(&mut self.socket).map_err(|error| format!("chain FORWARD: {error}"));
        [masquerade, forward].into_iter().filter_map(Result::err).collect()
    }
}
