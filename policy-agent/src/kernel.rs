//! The kernel's side: nftables, word of foreign changes to our table, and connection tracking.

use std::collections::BTreeSet;
use std::net::IpAddr;

use anyhow::{Context as _, Result};
use futures::FutureExt as _;
use podway_kern::KernelError;
use podway_kern::conntrack::Conntrack;
use podway_kern::nft::{NftChange, NftMonitor, NftSocket};
use podway_nft::{CommitError, Nftables as _, Op, TableFlags, TableState, Transaction};
use podway_policy::table_id;

/// Sockets to the kernel, in the network namespace in which they were opened.
pub(crate) struct Kernel {
    nft: NftSocket,
    flags: TableFlags,
    conntrack: Conntrack,
}

impl Kernel {
    /// Opens the sockets and finds out which table flags the kernel has.
    pub(crate) fn open() -> Result<Self> {
        let mut nft = NftSocket::open().context("open an nftables socket")?;
        // A table with an owner goes away, or becomes unchangeable for our successor, with the owner's socket
        // unless it persists: without that flag we take none. A persistent table of an owner that is gone is
        // taken over by whoever asks for the ownership next.
        let found = nft.probe_table_flags().context("ask nftables for its table flags")?;
        let flags = if found.persist { found } else { TableFlags::default() };
        let conntrack = Conntrack::open().context("open a connection tracking socket")?;
        Ok(Self { nft, flags, conntrack })
    }

    /// The same for a kernel that has no table owners, where others can change our table.
    #[cfg(test)]
    pub(crate) fn without_owner(self) -> Self {
        Self { flags: TableFlags::default(), ..self }
    }

    /// Flags that our table gets.
    pub(crate) fn table_flags(&self) -> TableFlags {
        self.flags
    }

    /// Listens to what others do to our table.
    pub(crate) fn monitor(&self) -> Result<Monitor> {
        NftMonitor::open(self.nft.port()).map(Monitor).context("open an nftables monitor")
    }

    /// Puts this table in the place of what is there, in one transaction.
    ///
    /// Not [`Transaction::replace`]: its first `add` must fit the flags of what is there, and no flags fit both a
    /// table without an owner and one whose owner is gone (EOPNOTSUPP). So we look first. Whoever makes or deletes
    /// the table in between makes the transaction fail, not leak.
    pub(crate) fn replace(&mut self, table: &TableState) -> Result<(), CommitError> {
        let mut transaction = self.removal()?;
        transaction.append(Transaction::create(table));
        self.nft.commit(&transaction)
    }

    /// Deletes our table if it is there.
    fn removal(&mut self) -> Result<Transaction, CommitError> {
        let there = self.nft.tables()?.iter().any(|(id, _)| *id == table_id());
        Ok(Transaction { ops: there.then(|| Op::DeleteTable(table_id())).into_iter().collect() })
    }

    /// Applies a change.
    pub(crate) fn commit(&mut self, transaction: &Transaction) -> Result<(), CommitError> {
        self.nft.commit(transaction)
    }

    /// How the kernel's table differs from `wanted`, in words.
    pub(crate) fn difference(&mut self, wanted: &TableState) -> Result<Option<String>, CommitError> {
        Ok(match self.nft.dump(&wanted.id)? {
            Some(found) => found.difference(wanted),
            None => Some("the table is missing".to_owned()),
        })
    }

    /// Deletes connection tracking entries that carry one of these addresses; says how many.
    pub(crate) fn forget_flows(&mut self, addresses: &BTreeSet<IpAddr>) -> Result<usize, KernelError> {
        self.conntrack.delete(addresses)
    }

    /// Removes our table.
    pub(crate) fn remove(&mut self) -> Result<(), CommitError> {
        let transaction = self.removal()?;
        self.nft.commit(&transaction)
    }
}

/// Word of foreign changes.
pub(crate) struct Monitor(NftMonitor);

/// What the monitor tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Touch {
    /// Somebody else changed our table.
    Touched,
    /// Notifications were lost: somebody may have.
    Unclear,
}

impl Monitor {
    /// Returns when our table was touched: once for all notifications that are there already, since one commit of
    /// somebody else is many of them. Cancel-safe.
    pub(crate) async fn touched(&mut self) -> Result<Touch> {
        let mut touch = None;
        loop {
            let change = match touch {
                None => self.0.next().await,
                Some(touch) => match self.0.next().now_or_never() {
                    Some(change) => change,
                    None => return Ok(touch),
                },
            };
            match change.context("read the nftables monitor")? {
                NftChange::Overrun => touch = touch.or(Some(Touch::Unclear)),
                NftChange::Table(table) if table == table_id() => touch = Some(Touch::Touched),
                NftChange::Table(_) => {}
            }
        }
    }
}
