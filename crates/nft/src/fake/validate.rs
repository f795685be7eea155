//! What nf_tables checks of places: which chains may stand where (nft_chain_parse_hook), and, of a whole table, how
//! deep its jumps go and whether each statement works at the hooks that lead to it (nft_table_validate).

use crate::eval::{CONNTRACK, JUMPS_MAX};
use crate::expr::{Expr, Field, Verdict};
use crate::kernel::Errno;
use crate::object::{BaseChain, ChainKind, Datum, Hook};
use crate::transaction::Op;

use super::ruleset::{HeldChain, Table};

/// Whether a base chain can be there.
pub(super) fn base(base: &BaseChain) -> Result<(), Errno> {
    let fits = match base.kind {
        ChainKind::Filter => true,
        ChainKind::Nat => base.hook != Hook::Forward && base.priority.0 > CONNTRACK,
    };
    if fits { Ok(()) } else { Err(Errno::OPNOTSUPP) }
}

/// Whether the kernel validates the table after this operation, once it has found something wrong.
pub(super) fn looks_at(op: &Op) -> bool {
    matches!(op, Op::AddRule { .. } | Op::AddElements { .. })
}

/// Whether all that its base chains lead to is in order.
pub(super) fn table(table: &Table) -> Result<(), Errno> {
    table
        .chains
        .iter()
        .filter_map(|chain| Some((chain, chain.base?)))
        .try_for_each(|(chain, base)| walk(table, &base, chain, 0))
}

fn walk(table: &Table, base: &BaseChain, chain: &HeldChain, depth: usize) -> Result<(), Errno> {
    if depth == JUMPS_MAX {
        return Err(Errno::MLINK);
    }
    let lead = |verdict| match Verdict::target(verdict).and_then(|name| table.chain(name)) {
        Some(next) => walk(table, base, next, depth + 1),
        None => Ok(()),
    };
    for expr in chain.rules.iter().flat_map(|held| &held.rule.exprs) {
        works_at(expr, base)?;
        match expr {
            Expr::Verdict(verdict) => lead(verdict)?,
            Expr::VerdictMap { map, .. } => {
                let data = table.set(map).into_iter().flat_map(|set| set.elements.values());
                for datum in data.flatten() {
                    if let Datum::Verdict(verdict) = datum {
                        lead(verdict)?;
                    }
                }
            }
            _ => {}
        }
    }
    Ok(())
}

/// Whether a statement works in a base chain like this.
fn works_at(expr: &Expr, base: &BaseChain) -> Result<(), Errno> {
    let asks_for = |field: Field| match expr {
        Expr::Cmp { field: found, .. }
        | Expr::Range { field: found, .. }
        | Expr::Masked { field: found, .. } => *found == field,
        Expr::Lookup { key, .. } | Expr::VerdictMap { key, .. } => key.contains(&field),
        _ => false,
    };
    let fits = match expr {
        Expr::Masquerade { .. } => base.kind == ChainKind::Nat && base.hook == Hook::Postrouting,
        Expr::Dnat { .. } | Expr::DnatTo(_) => {
            base.kind == ChainKind::Nat && matches!(base.hook, Hook::Prerouting | Hook::Output)
        }
        Expr::Reject(_) => base.hook != Hook::Postrouting,
        _ if asks_for(Field::FibSaddrIif) => !matches!(base.hook, Hook::Output | Hook::Postrouting),
        _ => true,
    };
    if fits { Ok(()) } else { Err(Errno::OPNOTSUPP) }
}
