//! Tables, chains, sets, elements and rules as data: the desired (or read back) content of the kernel.

use std::collections::BTreeMap;
use std::fmt;

use crate::expr::{Expr, Verdict};
use crate::name::Name;
use crate::value::{DataType, Value};

/// Address family of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// IPv4 and IPv6.
    Inet,
    /// IPv4.
    Ip,
    /// IPv6.
    Ip6,
}

/// What names a table.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TableId {
    /// Family.
    pub family: Family,
    /// Name.
    pub name: Name,
}

impl TableId {
    /// A table of family inet.
    pub const fn inet(name: Name) -> Self {
        Self { family: Family::Inet, name }
    }
}

impl fmt::Display for TableId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.family, self.name)
    }
}

/// Flags of a table.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TableFlags {
    /// Only the socket that made it may change it (`NFT_TABLE_F_OWNER`, kernel 5.12).
    pub owner: bool,
    /// It outlives its owner's socket (`NFT_TABLE_F_PERSIST`, kernel 6.9).
    pub persist: bool,
}

/// Where a base chain is hooked in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Hook {
    /// Before routing.
    Prerouting,
    /// To this machine.
    Input,
    /// Through this machine.
    Forward,
    /// From this machine.
    Output,
    /// After routing.
    Postrouting,
}

/// Kind of a base chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ChainKind {
    /// `type filter`.
    Filter,
    /// `type nat`: sees the first packet of each connection only.
    Nat,
}

/// What a base chain does with a packet that no rule decided on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Policy {
    /// `policy accept`.
    Accept,
    /// `policy drop`.
    Drop,
}

/// Place of a base chain among others at its hook: lower is earlier.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Priority(pub i32);

impl Priority {
    /// `raw`: before connections are looked up (conntrack is at -200).
    pub const RAW: Self = Self(-300);
    /// `mangle`.
    pub const MANGLE: Self = Self(-150);
    /// `dstnat`.
    pub const DSTNAT: Self = Self(-100);
    /// `filter`.
    pub const FILTER: Self = Self(0);
    /// `security`.
    pub const SECURITY: Self = Self(50);
    /// `srcnat`.
    pub const SRCNAT: Self = Self(100);

    /// So much later (or earlier, if negative).
    pub const fn plus(self, offset: i32) -> Self {
        Self(self.0 + offset)
    }
}

/// What makes a chain a base chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BaseChain {
    /// Kind.
    pub kind: ChainKind,
    /// Hook; never a device.
    pub hook: Hook,
    /// Place at the hook.
    pub priority: Priority,
    /// What happens at its end.
    pub policy: Policy,
}

/// A chain with its rules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain {
    /// Name, unique in its table.
    pub name: Name,
    /// Base chain; none: reached by jumps only.
    pub base: Option<BaseChain>,
    /// Rules in order.
    pub rules: Vec<Rule>,
}

/// A rule.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rule {
    /// Comment that `nft list` shows: at most [`COMMENT_MAX`] bytes, without quotes. Empty: none.
    pub comment: String,
    /// Statements in order.
    pub exprs: Vec<Expr>,
}

/// Longest comment in bytes (`NFTNL_UDATA_COMMENT_MAXLEN` less the closing zero byte).
pub const COMMENT_MAX: usize = 127;

/// Type of a set's key: one type, or a concatenation.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyType(pub Vec<DataType>);

impl KeyType {
    /// Size of a key in bytes: parts of a concatenation are padded to four bytes.
    pub fn size(&self) -> usize {
        match self.0.as_slice() {
            [one] => one.size(),
            parts => parts.iter().map(|part| part.padded()).sum(),
        }
    }
}

impl<const N: usize> From<[DataType; N]> for KeyType {
    fn from(parts: [DataType; N]) -> Self {
        Self(parts.into())
    }
}

/// What a map's elements hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum MapData {
    /// A value.
    Value(DataType),
    /// Two values, each padded to four bytes: what `dnat` takes from a map, an address and a port.
    Pair(DataType, DataType),
    /// A verdict.
    Verdict,
}

/// How a set stores its elements, and so how they are encoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SetShape {
    /// Single keys (hash table).
    Exact,
    /// Ranges of one field (tree): each is two elements to the kernel.
    Interval,
    /// Ranges in concatenations (pipapo).
    ConcatInterval,
}

/// A set or, with data, a map.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Set {
    /// Name, unique in its table.
    pub name: Name,
    /// Type of the key.
    pub key: KeyType,
    /// What elements hold; none: a set.
    pub data: Option<MapData>,
    /// Elements may be ranges (`flags interval`). They never overlap and are never merged.
    pub interval: bool,
    /// Elements never change while a rule uses it (`flags constant`).
    pub constant: bool,
    /// Elements.
    pub elements: BTreeMap<Span, Option<Datum>>,
}

impl Set {
    /// An empty set of single keys.
    pub fn new(name: Name, key: impl Into<KeyType>) -> Self {
        Self {
            name,
            key: key.into(),
            data: None,
            interval: false,
            constant: false,
            elements: BTreeMap::new(),
        }
    }

    /// An empty map of single keys.
    pub fn map(name: Name, key: impl Into<KeyType>, data: MapData) -> Self {
        Self { data: Some(data), ..Self::new(name, key) }
    }

    /// The same with `flags interval`.
    pub fn with_interval(self) -> Self {
        Self { interval: true, ..self }
    }

    /// The same with these elements.
    pub fn with_elements(mut self, elements: impl IntoIterator<Item = Element>) -> Self {
        self.elements.extend(elements.into_iter().map(|element| (element.span, element.data)));
        self
    }

    /// How its elements are stored.
    pub fn shape(&self) -> SetShape {
        match (self.interval, self.key.0.len()) {
            (false, _) => SetShape::Exact,
            (true, 1) => SetShape::Interval,
            (true, _) => SetShape::ConcatInterval,
        }
    }
}

/// The key, or the range of keys, of an element.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Span {
    /// The key, or the first one.
    pub from: Value,
    /// The last one, included; none: the one key. Only in sets with `flags interval`.
    pub to: Option<Value>,
}

impl Span {
    /// The last key inside.
    pub fn last(&self) -> &Value {
        self.to.as_ref().unwrap_or(&self.from)
    }
}

impl<V: Into<Value>> From<V> for Span {
    fn from(key: V) -> Self {
        Self { from: key.into(), to: None }
    }
}

/// What an element of a map holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Datum {
    /// A value.
    Value(Value),
    /// A verdict.
    Verdict(Verdict),
}

/// An element of a set or map.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Element {
    /// Its key or range.
    pub span: Span,
    /// What it holds; none in a set.
    pub data: Option<Datum>,
}

impl Element {
    /// An element of a set.
    pub fn key(span: impl Into<Span>) -> Self {
        Self { span: span.into(), data: None }
    }

    /// An element of a data map.
    pub fn value(span: impl Into<Span>, value: impl Into<Value>) -> Self {
        Self { span: span.into(), data: Some(Datum::Value(value.into())) }
    }

    /// An element of a verdict map.
    pub fn verdict(span: impl Into<Span>, verdict: Verdict) -> Self {
        Self { span: span.into(), data: Some(Datum::Verdict(verdict)) }
    }
}

/// Full desired content of one table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableState {
    /// Which table.
    pub id: TableId,
    /// Flags.
    pub flags: TableFlags,
    /// Sets and maps, in the order in which they are made and listed.
    pub sets: Vec<Set>,
    /// Chains, in the order in which they are made and listed.
    pub chains: Vec<Chain>,
}

impl TableState {
    /// An empty table.
    pub fn new(id: TableId) -> Self {
        Self { id, flags: TableFlags::default(), sets: Vec::new(), chains: Vec::new() }
    }

    /// The set or map of that name.
    pub fn set(&self, name: &Name) -> Option<&Set> {
        self.sets.iter().find(|set| set.name == *name)
    }

    /// The set or map of that name.
    pub fn set_mut(&mut self, name: &Name) -> Option<&mut Set> {
        self.sets.iter_mut().find(|set| set.name == *name)
    }

    /// The chain of that name.
    pub fn chain(&self, name: &Name) -> Option<&Chain> {
        self.chains.iter().find(|chain| chain.name == *name)
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Inet => "inet",
            Self::Ip => "ip",
            Self::Ip6 => "ip6",
        })
    }
}
