//! The nft tables that an ADD depends on: the guard, written by whoever comes first, and the policy agent's table,
//! which must be there before a pod may start where policy is required.

use podway_kern::nft::NftSocket;
use podway_model::names::POLICY_TABLE;
use podway_nft::{CommitError, Name, Nftables as _, TableId, Transaction, tables};

use crate::error::{CniError, Code};

const POLICY: Name = Name::literal(POLICY_TABLE);

/// One look at the nft tables of the node.
#[derive(Debug)]
pub struct Tables {
    socket: NftSocket,
    found: Vec<TableId>,
}

impl Tables {
    /// Lists the tables.
    ///
    /// # Errors
    /// The kernel does not tell.
    pub fn look() -> Result<Self, CniError> {
        let mut socket = NftSocket::open().map_err(|error| failed(&CommitError::Io(error)))?;
        let found = socket.tables().map_err(|error| failed(&error))?;
        Ok(Self { socket, found: found.into_iter().map(|(id, _)| id).collect() })
    }

    /// Whether the guard was there.
    pub fn has_guard(&self) -> bool {
        self.found.contains(&tables::guard(&[]).id)
    }

    /// Whether the policy agent has loaded its table since boot.
    pub fn has_policy(&self) -> bool {
        self.found.contains(&TableId::inet(POLICY))
    }

    /// Makes the guard unless it was there. Several ADDs may find it missing at once; each then puts the same
    /// table in the place of the other's, which no packet notices. (Adding would double its rules.)
    ///
    /// # Errors
    /// The kernel refuses it.
    pub fn ensure_guard(&mut self) -> Result<(), CniError> {
        if self.has_guard() {
            return Ok(());
        }
        let replace = Transaction::replace(&tables::guard(&[]));
        self.socket.commit(&replace).map_err(|error| failed(&error))
    }
}

fn failed(error: &CommitError) -> CniError {
    CniError::new(Code::Kernel, format!("nftables: {error}"))
}
