//! nftables as data: tables, chains, sets and rules, transactions that change them, their text form, their
//! netlink encoding, the difference between two of them, a fake kernel that keeps them and an evaluator that
//! walks a packet through them.
//!
//! Pure: nothing here talks to the kernel (`podway_kern::nft` does), and no `nft` process is ever run, save by
//! tests that compare. It knows the statements that Podway's tables use and no others; what it can say is
//! limited to what the distribution's `nft` can list. Not here: what the tables are for. The fixed ones are
//! in [`tables`], those of NetworkPolicy in `podway_policy`.

mod build;
pub mod encode;
pub mod eval;
mod expr;
mod fake;
mod kernel;
mod name;
mod object;
pub mod tables;
mod text;
mod transaction;
mod value;

pub use expr::{
    CmpOp, Expr, Field, Log, NFPROTO_IPV4, NFPROTO_IPV6, Reject, Source, Target, Verdict, ct_state,
    ct_status, fib_type,
};
pub use fake::{FakeNft, FakeSocket};
pub use kernel::{ChainDump, CommitError, Errno, Nftables, RuleDump, TableDump};
pub use name::{InvalidName, NAME_MAX, Name};
pub use object::{
    BaseChain, COMMENT_MAX, Chain, ChainKind, Datum, Element, Family, Hook, KeyType, MapData, Policy,
    Priority, Rule, Set, SetShape, Span, TableFlags, TableId, TableState,
};
pub use transaction::{Op, SetId, Transaction};
pub use value::{DataType, Value};
