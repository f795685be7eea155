//! A kernel that is not one: keeps tables, takes transactions whole or not at all, and refuses what nf_tables
//! refuses, with the same errno for the same operation.
//!
//! `podway_kern`'s test `the_fake_is_the_kernel` sends the same random transactions to both and compares answers
//! and dumps. Stricter than the kernel, so that a mistake of ours cannot hide: ranges that end before they begin, or
//! that stand where a set takes single keys (the encoder would send the first key), and deletions that do not name
//! exactly the element that is there (trees would be torn, and concatenations lose the whole range) are refused.
//! Not modelled: limits of memory, kernel versions, what others see while a transaction is on its way.
//!
//! Each socket has a port, as in the kernel: a table with an owner takes changes from its owner's port only.
//! [`FakeNft`] itself speaks as port [`FakeNft::PORT`].

mod ruleset;
mod validate;

use crate::encode::wire::NFMSG_HEADER;
use crate::encode::{self, decode};
use crate::kernel::{CommitError, Errno, Nftables, TableDump};
use crate::object::{TableId, TableState};
use crate::transaction::Transaction;

use ruleset::Ruleset;

/// A fake kernel.
#[derive(Debug, Clone)]
pub struct FakeNft {
    ruleset: Ruleset,
    generation: u32,
    largest_batch: usize,
}

/// A conversation with a [`FakeNft`] under a port of its own.
#[derive(Debug)]
pub struct FakeSocket<'k> {
    kernel: &'k mut FakeNft,
    port: u32,
}

impl Default for FakeNft {
    fn default() -> Self {
        Self::new()
    }
}

impl FakeNft {
    /// Port under which the fake itself speaks.
    pub const PORT: u32 = 1;

    /// A kernel without tables that takes batches of any size.
    pub fn new() -> Self {
        Self { ruleset: Ruleset::default(), generation: 1, largest_batch: usize::MAX }
    }

    /// The same with a send buffer of so many bytes: larger batches are refused ([`Errno::MSGSIZE`]).
    pub fn with_largest_batch(self, bytes: usize) -> Self {
        Self { largest_batch: bytes, ..self }
    }

    /// A socket with this port.
    pub fn socket(&mut self, port: u32) -> FakeSocket<'_> {
        FakeSocket { kernel: self, port }
    }

    /// The socket of that port is closed: tables that it owns go, unless they persist; those are nobody's then.
    pub fn close(&mut self, port: u32) {
        if self.ruleset.close(port) {
            self.generation = self.generation.wrapping_add(1);
        }
    }

    /// What `nft flush ruleset` does from that port: every table goes that no other port owns.
    pub fn flush_ruleset(&mut self, port: u32) {
        if self.ruleset.flush(port) {
            self.generation = self.generation.wrapping_add(1);
        }
    }

    /// A table as it stands, for [`crate::eval::eval`].
    pub fn table(&self, id: &TableId) -> Option<TableState> {
        self.ruleset.table(id)
    }

    /// All tables, by id.
    pub fn tables(&self) -> Vec<TableState> {
        self.ruleset.ids().filter_map(|id| self.ruleset.table(id)).collect()
    }

    fn commit(&mut self, port: u32, transaction: &Transaction) -> Result<(), CommitError> {
        if transaction.is_empty() {
            return Ok(());
        }
        let ops = transaction.ops.len();
        let encoded = encode::encode(transaction, 1);
        if encoded.bytes.len() + NFMSG_HEADER * 2 > self.largest_batch {
            return Err(CommitError::Batch { ops, errno: Errno::MSGSIZE });
        }
        // Names of the kernel's expressions, as they were really sent.
        let mut sent = vec![Vec::new(); ops];
        for message in &encoded.messages {
            let attributes = encoded.bytes.get(message.range.clone()).and_then(|m| m.get(NFMSG_HEADER..));
            if let (Some(attributes), Some(names)) = (attributes, sent.get_mut(message.op)) {
                *names = decode::expressions(attributes);
            }
        }
        let refused = |op: usize, errno| {
            let object = transaction.ops.get(op).map(ToString::to_string).unwrap_or_default();
            Err(CommitError::Refused { op, object, errno })
        };
        let mut next = self.ruleset.clone();
        let mut changed = false;
        for (index, (op, exprs)) in transaction.ops.iter().zip(&sent).enumerate() {
            match next.apply(port, op, exprs) {
                Ok(change) => changed |= change,
                Err(errno) => return refused(index, errno),
            }
        }
        if next.validate().is_err() {
            // The kernel starts again and looks at the whole table after each operation.
            let mut next = self.ruleset.clone();
            for (index, (op, exprs)) in transaction.ops.iter().zip(&sent).enumerate() {
                let checked = next.apply(port, op, exprs).and_then(|_| match validate::looks_at(op) {
                    true => next.validate_table(op.table()),
                    false => Ok(()),
                });
                if let Err(errno) = checked {
                    return refused(index, errno);
                }
            }
            // What only ever was wrong before this transaction, in a table that it does not touch.
            return Err(CommitError::Batch { ops, errno: Errno::MLINK });
        }
        self.ruleset = next;
        if changed {
            self.generation = self.generation.wrapping_add(1);
        }
        Ok(())
    }
}

impl Nftables for FakeNft {
    fn commit(&mut self, transaction: &Transaction) -> Result<(), CommitError> {
        self.commit(Self::PORT, transaction)
    }

    fn dump(&mut self, table: &TableId) -> Result<Option<TableDump>, CommitError> {
        Ok(self.ruleset.dump(table))
    }

    fn generation(&mut self) -> Result<u32, CommitError> {
        Ok(self.generation)
    }
}

impl Nftables for FakeSocket<'_> {
    fn commit(&mut self, transaction: &Transaction) -> Result<(), CommitError> {
        self.kernel.commit(self.port, transaction)
    }

    fn dump(&mut self, table: &TableId) -> Result<Option<TableDump>, CommitError> {
        Nftables::dump(self.kernel, table)
    }

    fn generation(&mut self) -> Result<u32, CommitError> {
        Nftables::generation(self.kernel)
    }
}

#[cfg(test)]
mod tests;
