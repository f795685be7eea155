//! What a kernel (the real one, or [`crate::FakeNft`]) does for its callers, and how it refuses.

use std::fmt;

use ipnet::IpNet;

use crate::expr::{Field, Verdict};
use crate::name::Name;
use crate::object::{BaseChain, Element, Set, TableFlags, TableId, TableState};
use crate::transaction::{SetId, Transaction, definition};
use crate::value::Value;

/// Error number of the kernel (`errno.h`), as far as nf_tables answers with it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Errno(pub i32);

impl Errno {
    /// Operation not permitted: no privilege, or the table has another owner.
    pub const PERM: Self = Self(1);
    /// No such object.
    pub const NOENT: Self = Self(2);
    /// Interrupted: somebody else committed in between; to be tried again.
    pub const INTR: Self = Self(4);
    /// In use.
    pub const BUSY: Self = Self(16);
    /// Exists, with other content.
    pub const EXIST: Self = Self(17);
    /// Does not make sense: wrong size, wrong type.
    pub const INVAL: Self = Self(22);
    /// Too many.
    pub const MFILE: Self = Self(24);
    /// Jumps form a loop or go too deep.
    pub const MLINK: Self = Self(31);
    /// Jumps form a loop (older kernels).
    pub const LOOP: Self = Self(40);
    /// A statement reads a register that nothing was loaded into.
    pub const NODATA: Self = Self(61);
    /// The batch is larger than the socket's send buffer.
    pub const MSGSIZE: Self = Self(90);
    /// Not supported by this kernel.
    pub const OPNOTSUPP: Self = Self(95);

    fn name(self) -> Option<(&'static str, &'static str)> {
        Some(match self {
            Self::PERM => ("EPERM", "not permitted, or the table has another owner"),
            Self::NOENT => ("ENOENT", "no such object"),
            Self::INTR => ("EINTR", "somebody else changed the tables meanwhile"),
            Self::BUSY => ("EBUSY", "still in use"),
            Self::EXIST => ("EEXIST", "exists with other content"),
            Self::INVAL => ("EINVAL", "invalid: size, type or place do not fit"),
            Self::MFILE => ("EMFILE", "too many jumps"),
            Self::MLINK => ("EMLINK", "jumps form a loop or go too deep"),
            Self::LOOP => ("ELOOP", "jumps form a loop"),
            Self::NODATA => ("ENODATA", "the key has more parts than were loaded"),
            Self::MSGSIZE => ("EMSGSIZE", "larger than the socket's send buffer"),
            Self::OPNOTSUPP => ("EOPNOTSUPP", "not supported by this kernel"),
            _ => return None,
        })
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some((name, meaning)) => write!(f, "{name}, {meaning}"),
            None => write!(f, "errno {}", self.0),
        }
    }
}

impl fmt::Debug for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some((name, _)) => f.write_str(name),
            None => write!(f, "errno {}", self.0),
        }
    }
}

/// Why a commit did not happen. Nothing of the transaction is in force then.
#[derive(Debug, thiserror::Error)]
pub enum CommitError {
    /// The kernel refused an operation.
    #[error("{object}: {errno}")]
    Refused {
        /// Index of the operation in [`Transaction::ops`].
        op: usize,
        /// The operation with the object's name.
        object: String,
        /// Why.
        errno: Errno,
    },
    /// The kernel refused the batch as a whole.
    #[error("nf_tables batch of {ops} operation(s): {errno}")]
    Batch {
        /// How many operations it had.
        ops: usize,
        /// Why.
        errno: Errno,
    },
    /// The conversation with the kernel failed.
    #[error("nf_tables: {0}")]
    Io(#[from] std::io::Error),
}

impl CommitError {
    /// The kernel's reason, if it was the kernel that refused.
    pub fn errno(&self) -> Option<Errno> {
        match self {
            Self::Refused { errno, .. } | Self::Batch { errno, .. } => Some(*errno),
            Self::Io(_) => None,
        }
    }
}

/// What was read back of one table: enough to tell whether it is what was committed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableDump {
    /// Which table.
    pub id: TableId,
    /// Its flags.
    pub flags: TableFlags,
    /// Chains in the kernel's order.
    pub chains: Vec<ChainDump>,
    /// Sets with their elements in the kernel's order. Sets that nft made for one rule (anonymous ones) are left
    /// out.
    pub sets: Vec<Set>,
}

/// A chain that was read back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChainDump {
    /// Name.
    pub name: Name,
    /// Where it is hooked in.
    pub base: Option<BaseChain>,
    /// Its rules in order.
    pub rules: Vec<RuleDump>,
}

/// A rule that was read back. Its statements are compared by kind, not by content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuleDump {
    /// The kernel's number for it.
    pub handle: u64,
    /// Comment: nft's, or the one of a rule that iptables made.
    pub comment: String,
    /// Names of the kernel's expressions (`meta`, `cmp`, `lookup`, ...) in order.
    pub exprs: Vec<String>,
    /// Fields that must have a value, as far as we know them (`FIELD VALUE`), in order.
    pub asked: Vec<(Field, Value)>,
    /// Source and destination addresses that must lie in a prefix, in order. One that is met in another way, by a set or
    /// an extension of iptables, is not there.
    pub networks: Vec<(Field, IpNet)>,
    /// Names of the extensions of iptables in it, matches and targets, in order.
    pub extensions: Vec<String>,
    /// What becomes of a packet that it fits, where that is in the rule itself.
    pub verdict: Option<Verdict>,
}

/// A kernel that keeps tables.
pub trait Nftables {
    /// Applies all changes as one, or none of them.
    fn commit(&mut self, transaction: &Transaction) -> Result<(), CommitError>;

    /// Reads a table back; none if it is not there.
    fn dump(&mut self, table: &TableId) -> Result<Option<TableDump>, CommitError>;

    /// Number of the ruleset's generation in this network namespace: grows with every commit, whoever made it.
    fn generation(&mut self) -> Result<u32, CommitError>;
}

impl TableDump {
    /// What differs from `wanted`, in words; none if nothing does. Rules are compared by number and comment, sets
    /// by type and elements.
    pub fn difference(&self, wanted: &TableState) -> Option<String> {
        if self.sets.len() != wanted.sets.len() {
            return Some(format!("{} sets found, {} expected", self.sets.len(), wanted.sets.len()));
        }
        for set in &wanted.sets {
            let Some(found) = self.sets.iter().find(|found| found.name == set.name) else {
                return Some(format!("set {} is missing", set.name));
            };
            if found.elements != set.elements {
                let (found, wanted) = (found.elements.len(), set.elements.len());
                return Some(format!(
                    "set {} has other elements ({found} found, {wanted} expected)",
                    set.name
                ));
            }
        }
        if self.chains.len() != wanted.chains.len() {
            return Some(format!("{} chains found, {} expected", self.chains.len(), wanted.chains.len()));
        }
        for chain in &wanted.chains {
            let Some(found) = self.chains.iter().find(|found| found.name == chain.name) else {
                return Some(format!("chain {} is missing", chain.name));
            };
            let same = found.rules.len() == chain.rules.len()
                && found
                    .rules
                    .iter()
                    .zip(&chain.rules)
                    .all(|(found, wanted)| found.comment == wanted.comment);
            if !same {
                return Some(format!("chain {} has other rules", chain.name));
            }
        }
        None
    }

    /// The changes of elements that lead from what was found to `wanted`: deletions first. `None` where something
    /// else differs too, so that the table has to be replaced.
    pub fn elements_to(&self, wanted: &TableState) -> Option<Transaction> {
        let mut rest = self.clone();
        let (mut delete, mut add) = (Transaction::new(), Transaction::new());
        for found in &mut rest.sets {
            let set = wanted.set(&found.name).filter(|set| definition(set) == definition(found))?;
            if set.constant {
                continue;
            }
            let lacks = |from: &Set, other: &Set| -> Vec<Element> {
                let lacking =
                    from.elements.iter().filter(|(span, data)| other.elements.get(span) != Some(data));
                lacking.map(|(span, data)| Element { span: span.clone(), data: data.clone() }).collect()
            };
            let id = SetId::of(&wanted.id, set);
            delete.delete_elements(&id, lacks(found, set));
            add.add_elements(&id, lacks(set, found));
            found.elements.clone_from(&set.elements);
        }
        if rest.difference(wanted).is_some() {
            return None;
        }
        delete.append(add);
        Some(delete)
    }
}
