//! Transactions: ordered changes that the kernel takes as one, or refuses as one.

use std::fmt;

use crate::name::Name;
use crate::object::{
    BaseChain, Chain, Element, KeyType, Rule, Set, SetShape, TableFlags, TableId, TableState,
};

/// What names a set, and how its elements are encoded.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SetId {
    /// Its table.
    pub table: TableId,
    /// Its name.
    pub name: Name,
    /// Type of its key.
    pub key: KeyType,
    /// How it stores elements.
    pub shape: SetShape,
}

impl SetId {
    /// The id of a set of that table.
    pub fn of(table: &TableId, set: &Set) -> Self {
        Self { table: table.clone(), name: set.name.clone(), key: set.key.clone(), shape: set.shape() }
    }
}

/// One change. `Add` of what exists already is no error where the two are the same (the kernel's `add`, not its
/// `create`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// Make a table, or leave it as it is.
    AddTable {
        /// Which.
        table: TableId,
        /// Its flags.
        flags: TableFlags,
    },
    /// Delete a table with everything in it; it must exist.
    DeleteTable(TableId),
    /// Make an empty chain, or leave it as it is.
    AddChain {
        /// Its table.
        table: TableId,
        /// Its name.
        name: Name,
        /// Where it is hooked in.
        base: Option<BaseChain>,
    },
    /// Delete an empty chain to which nothing jumps.
    DeleteChain {
        /// Its table.
        table: TableId,
        /// Its name.
        name: Name,
    },
    /// Delete all rules of a chain.
    FlushChain {
        /// Its table.
        table: TableId,
        /// Its name.
        name: Name,
    },
    /// Make a set or map without elements, or leave it as it is. `set.elements` is not looked at.
    AddSet {
        /// Its table.
        table: TableId,
        /// The set, without its elements.
        set: Set,
    },
    /// Delete a set that no rule uses.
    DeleteSet {
        /// Its table.
        table: TableId,
        /// Its name.
        name: Name,
    },
    /// Delete all elements of a set.
    FlushSet {
        /// Its table.
        table: TableId,
        /// Its name.
        name: Name,
    },
    /// Add elements. One that exists with other data is an error (EEXIST): delete it before.
    AddElements {
        /// To which set.
        set: SetId,
        /// The elements.
        elements: Vec<Element>,
    },
    /// Delete elements; each must exist.
    DeleteElements {
        /// From which set.
        set: SetId,
        /// The elements; their data is not looked at, except that of verdicts.
        elements: Vec<Element>,
    },
    /// Delete a rule; it must exist.
    DeleteRule {
        /// Its table.
        table: TableId,
        /// Its chain.
        chain: Name,
        /// The kernel's number for it ([`crate::RuleDump::handle`]).
        handle: u64,
    },
    /// Append a rule to a chain.
    AddRule {
        /// Its table.
        table: TableId,
        /// Its chain.
        chain: Name,
        /// The rule.
        rule: Rule,
    },
}

impl Op {
    /// The table that is changed.
    pub fn table(&self) -> &TableId {
        match self {
            Self::DeleteTable(table)
            | Self::AddTable { table, .. }
            | Self::AddChain { table, .. }
            | Self::DeleteChain { table, .. }
            | Self::FlushChain { table, .. }
            | Self::AddSet { table, .. }
            | Self::DeleteSet { table, .. }
            | Self::FlushSet { table, .. }
            | Self::DeleteRule { table, .. }
            | Self::AddRule { table, .. } => table,
            Self::AddElements { set, .. } | Self::DeleteElements { set, .. } => &set.table,
        }
    }
}

/// Names the object for error texts: `add chain inet podway-masq postrouting`.
impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AddTable { table, .. } => write!(f, "add table {table}"),
            Self::DeleteTable(table) => write!(f, "delete table {table}"),
            Self::AddChain { table, name, .. } => write!(f, "add chain {table} {name}"),
            Self::DeleteChain { table, name } => write!(f, "delete chain {table} {name}"),
            Self::FlushChain { table, name } => write!(f, "flush chain {table} {name}"),
            Self::AddSet { table, set } => write!(f, "add set {table} {}", set.name),
            Self::DeleteSet { table, name } => write!(f, "delete set {table} {name}"),
            Self::FlushSet { table, name } => write!(f, "flush set {table} {name}"),
            Self::AddElements { set, elements } => {
                write!(f, "add {} element(s) to {} {}", elements.len(), set.table, set.name)
            }
            Self::DeleteElements { set, elements } => {
                write!(f, "delete {} element(s) from {} {}", elements.len(), set.table, set.name)
            }
            Self::DeleteRule { table, chain, handle } => {
                write!(f, "delete rule {table} {chain} handle {handle}")
            }
            Self::AddRule { table, chain, rule } => {
                write!(f, "add rule {table} {chain}")?;
                if rule.comment.is_empty() { Ok(()) } else { write!(f, " ({})", rule.comment) }
            }
        }
    }
}

/// Ordered changes, applied as one: all of them or none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Transaction {
    /// The changes.
    pub ops: Vec<Op>,
}

impl Transaction {
    /// An empty transaction.
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether it changes nothing.
    pub fn is_empty(&self) -> bool {
        self.ops.is_empty()
    }

    /// Adds a change at the end.
    pub fn push(&mut self, op: Op) {
        self.ops.push(op);
    }

    /// Adds all changes of another one at the end.
    pub fn append(&mut self, other: Self) {
        self.ops.extend(other.ops);
    }

    /// Adds elements to a set; nothing for none.
    pub fn add_elements(&mut self, set: &SetId, elements: Vec<Element>) {
        if !elements.is_empty() {
            self.push(Op::AddElements { set: set.clone(), elements });
        }
    }

    /// Deletes elements from a set; nothing for none.
    pub fn delete_elements(&mut self, set: &SetId, elements: Vec<Element>) {
        if !elements.is_empty() {
            self.push(Op::DeleteElements { set: set.clone(), elements });
        }
    }

    /// Makes this table from nothing; it must not exist.
    pub fn create(table: &TableState) -> Self {
        let mut transaction = Self::new();
        transaction.add_whole(table);
        transaction
    }

    /// Puts this table in the place of whatever is there under its name: packets see the old content or the new
    /// one, never neither. Add, delete, add: `destroy` would need kernel 6.3.
    pub fn replace(table: &TableState) -> Self {
        let mut transaction = Self::remove(&table.id);
        // The first add must not change the flags of a table that is there.
        transaction.add_whole(table);
        transaction
    }

    /// Deletes this table if it is there.
    pub fn remove(table: &TableId) -> Self {
        let ops = vec![
            Op::AddTable { table: table.clone(), flags: TableFlags::default() },
            Op::DeleteTable(table.clone()),
        ];
        Self { ops }
    }

    /// Chains and sets come before the rules that name them, elements before rules because a constant set takes
    /// none once it is bound.
    fn add_whole(&mut self, state: &TableState) {
        let table = &state.id;
        self.push(Op::AddTable { table: table.clone(), flags: state.flags });
        for Chain { name, base, .. } in &state.chains {
            self.push(Op::AddChain { table: table.clone(), name: name.clone(), base: *base });
        }
        for set in &state.sets {
            let elements =
                set.elements.iter().map(|(span, data)| Element { span: span.clone(), data: data.clone() });
            let elements = elements.collect();
            let id = SetId::of(table, set);
            self.push(Op::AddSet { table: table.clone(), set: definition(set) });
            self.add_elements(&id, elements);
        }
        for chain in &state.chains {
            for rule in &chain.rules {
                let chain = chain.name.clone();
                self.push(Op::AddRule { table: table.clone(), chain, rule: rule.clone() });
            }
        }
    }
}

/// The set without its elements.
pub(crate) fn definition(set: &Set) -> Set {
    Set { elements: Default::default(), ..set.clone() }
}
