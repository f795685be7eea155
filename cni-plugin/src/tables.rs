//! The nft tables that an ADD depends on: the guard, written by whoever comes first, and the policy agent's table,
//! which must be there before a pod may start where policy is required.

use podway_kern::nft::NftSocket;
use podway_model::names::POLICY_TABLE;
use podway_nft::{CommitError, Errno, Name, Nftables as _, TableId, Transaction, tables};

use crate::error::{CniError, Code};

const POLICY: Name = Name::literal(POLICY_TABLE);

fn failed(error: &CommitError) -> CniError {
    CniError::new(Code::Kernel, format!("nftables: {error}"))
}

fn open() -> Result<NftSocket, CniError> {
    NftSocket::open().map_err(|error| failed(&CommitError::Io(error)))
}

fn exists(id: &TableId) -> Result<bool, CniError> {
    let tables = open()?.tables().map_err(|error| failed(&error))?;
    Ok(tables.iter().any(|(found, _)| found == id))
}

/// Makes the guard unless it is there.
///
/// # Errors
/// The kernel refuses it.
pub fn ensure_guard() -> Result<(), CniError> {
    let guard = tables::guard(&[]);
    if exists(&guard.id)? {
        return Ok(());
    }
    match open()?.commit(&Transaction::create(&guard)) {
        // Another ADD was faster.
        Err(error) if error.errno() == Some(Errno::EXIST) => Ok(()),
        other => other.map_err(|error| failed(&error)),
    }
}

/// Whether the guard is there.
///
/// # Errors
/// The kernel does not tell.
pub fn guard_exists() -> Result<bool, CniError> {
    exists(&tables::guard(&[]).id)
}

/// Whether the policy agent has loaded its table since boot.
///
/// # Errors
/// The kernel does not tell.
pub fn policy_exists() -> Result<bool, CniError> {
    exists(&TableId::inet(POLICY))
}
