//! What the fake kernel keeps, and one operation on it. Each check has the name of the kernel's function that makes it
//! (`net/netfilter/nf_tables_api.c`), in its order.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;

use super::validate;
use crate::encode::in_network_order;
use crate::encode::number;
use crate::eval::each_part;
use crate::expr::{Expr, Field, Source, Target, Verdict};
use crate::kernel::{ChainDump, Errno, RuleDump, TableDump};
use crate::name::Name;
use crate::object::{
    BaseChain, Chain, Datum, Element, KeyType, MapData, Rule, Set, SetShape, Span, TableFlags, TableId,
    TableState,
};
use crate::transaction::{Op, SetId, definition};

/// Longest key in bytes (`NFT_DATA_VALUE_MAXLEN`).
const KEY_MAX: usize = 64;

/// Tables by id.
#[derive(Debug, Clone, Default)]
pub(super) struct Ruleset {
    tables: BTreeMap<TableId, Table>,
}

#[derive(Debug, Clone)]
pub(super) struct Table {
    flags: TableFlags,
    /// Port of the socket that owns it.
    owner: Option<u32>,
    /// Last number given to a chain, set or rule.
    handle: u64,
    pub(super) sets: Vec<Set>,
    pub(super) chains: Vec<HeldChain>,
}

#[derive(Debug, Clone)]
pub(super) struct HeldChain {
    pub(super) name: Name,
    pub(super) base: Option<BaseChain>,
    pub(super) rules: Vec<HeldRule>,
}

#[derive(Debug, Clone)]
pub(super) struct HeldRule {
    pub(super) rule: Rule,
    handle: u64,
    exprs: Vec<String>,
}

impl Ruleset {
    /// Applies one operation; says whether anything is different.
    pub(super) fn apply(&mut self, port: u32, op: &Op, exprs: &[String]) -> Result<bool, Errno> {
        if let Op::AddTable { table, flags } = op {
            return self.add_table(port, table, *flags);
        }
        // nft_table_lookup
        let table = self.tables.get_mut(op.table()).ok_or(Errno::NOENT)?;
        if table.owner.is_some_and(|owner| owner != port) {
            return Err(Errno::PERM);
        }
        match op {
            Op::AddTable { .. } => Ok(false),
            Op::DeleteTable(id) => {
                self.tables.remove(id);
                Ok(true)
            }
            Op::AddChain { name, base, .. } => table.add_chain(name, *base),
            Op::DeleteChain { name, .. } => table.delete_chain(name),
            Op::FlushChain { name, .. } => {
                let chain = table.chain_mut(name)?;
                let any = !chain.rules.is_empty();
                chain.rules.clear();
                Ok(any)
            }
            Op::AddSet { set, .. } => table.add_set(set),
            Op::DeleteSet { name, .. } => table.delete_set(name),
            Op::FlushSet { name, .. } => {
                let at = table.set_at(name)?;
                table.check_changeable(at)?;
                let any = !table.sets[at].elements.is_empty();
                table.sets[at].elements.clear();
                Ok(any)
            }
            Op::AddElements { set, elements } => table.add_elements(set, elements),
            Op::DeleteElements { set, elements } => table.delete_elements(set, elements),
            Op::DeleteRule { chain, handle, .. } => {
                let rules = &mut table.chain_mut(chain)?.rules;
                let at = rules.iter().position(|held| held.handle == *handle).ok_or(Errno::NOENT)?;
                rules.remove(at);
                Ok(true)
            }
            Op::AddRule { chain, rule, .. } => table.add_rule(chain, rule, exprs),
        }
    }

    /// nf_tables_newtable, nf_tables_updtable.
    fn add_table(&mut self, port: u32, id: &TableId, flags: TableFlags) -> Result<bool, Errno> {
        let Some(table) = self.tables.get_mut(id) else {
            let owner = flags.owner.then_some(port);
            let (sets, chains) = (Vec::new(), Vec::new());
            self.tables.insert(id.clone(), Table { flags, owner, handle: 0, sets, chains });
            return Ok(true);
        };
        if table.owner.is_some_and(|owner| owner != port) {
            return Err(Errno::PERM);
        }
        if flags == table.flags {
            return Ok(false);
        }
        let is_orphan = table.flags.persist && !table.flags.owner;
        if (table.flags.owner && !flags.owner) || (flags.owner && !table.flags.owner && !is_orphan) {
            return Err(Errno::OPNOTSUPP);
        }
        if flags.persist != table.flags.persist {
            return Err(Errno::OPNOTSUPP);
        }
        table.flags = flags;
        table.owner = flags.owner.then_some(port);
        Ok(true)
    }

    /// nft_rcv_nl_event. True: something is different.
    pub(super) fn close(&mut self, port: u32) -> bool {
        let before = self.tables.len();
        self.tables.retain(|_, table| table.owner != Some(port) || table.flags.persist);
        let mut changed = before != self.tables.len();
        for table in self.tables.values_mut().filter(|table| table.owner == Some(port)) {
            table.owner = None;
            table.flags.owner = false;
            changed = true;
        }
        changed
    }

    /// nft_flush. True: something is different.
    pub(super) fn flush(&mut self, port: u32) -> bool {
        let before = self.tables.len();
        self.tables.retain(|_, table| table.owner.is_some_and(|owner| owner != port));
        before != self.tables.len()
    }

    pub(super) fn ids(&self) -> impl Iterator<Item = &TableId> {
        self.tables.keys()
    }

    pub(super) fn table(&self, id: &TableId) -> Option<TableState> {
        let table = self.tables.get(id)?;
        let chain = |chain: &HeldChain| Chain {
            name: chain.name.clone(),
            base: chain.base,
            rules: chain.rules.iter().map(|held| held.rule.clone()).collect(),
        };
        Some(TableState {
            id: id.clone(),
            flags: table.flags,
            sets: table.sets.clone(),
            chains: table.chains.iter().map(chain).collect(),
        })
    }

    pub(super) fn dump(&self, id: &TableId) -> Option<TableDump> {
        let table = self.tables.get(id)?;
        let rule = |held: &HeldRule| RuleDump {
            handle: held.handle,
            comment: held.rule.comment.clone(),
            exprs: held.exprs.clone(),
            asked: held.rule.exprs.iter().filter_map(asked).collect(),
            networks: held.rule.exprs.iter().filter_map(network).collect(),
            extensions: vec![],
            verdict: held.rule.exprs.iter().find_map(verdict).cloned(),
        };
        let chain = |chain: &HeldChain| ChainDump {
            name: chain.name.clone(),
            base: chain.base,
            rules: chain.rules.iter().map(rule).collect(),
        };
        Some(TableDump {
            id: id.clone(),
            flags: table.flags,
            chains: table.chains.iter().map(chain).collect(),
            sets: table.sets.clone(),
        })
    }

    /// nf_tables_validate: what can only be said of whole tables.
    pub(super) fn validate(&self) -> Result<(), Errno> {
        self.tables.values().try_for_each(validate::table)
    }

    pub(super) fn validate_table(&self, id: &TableId) -> Result<(), Errno> {
        self.tables.get(id).map_or(Ok(()), validate::table)
    }
}

impl Table {
    fn next_handle(&mut self) -> u64 {
        self.handle += 1;
        self.handle
    }

    pub(super) fn chain(&self, name: &Name) -> Option<&HeldChain> {
        self.chains.iter().find(|chain| chain.name == *name)
    }

    fn chain_mut(&mut self, name: &Name) -> Result<&mut HeldChain, Errno> {
        self.chains.iter_mut().find(|chain| chain.name == *name).ok_or(Errno::NOENT)
    }

    pub(super) fn set(&self, name: &Name) -> Option<&Set> {
        self.sets.iter().find(|set| set.name == *name)
    }

    fn set_at(&self, name: &Name) -> Result<usize, Errno> {
        self.sets.iter().position(|set| set.name == *name).ok_or(Errno::NOENT)
    }

    fn rules(&self) -> impl Iterator<Item = &Rule> {
        self.chains.iter().flat_map(|chain| &chain.rules).map(|held| &held.rule)
    }

    fn is_bound(&self, set: &Name) -> bool {
        self.rules().flat_map(|rule| &rule.exprs).any(|expr| set_of(expr) == Some(set))
    }

    /// How often rules and elements lead to a chain.
    fn is_led_to(&self, chain: &Name) -> bool {
        let rules = self.rules().flat_map(|rule| &rule.exprs).filter_map(|expr| match expr {
            Expr::Verdict(verdict) => Some(verdict),
            _ => None,
        });
        let elements = self.sets.iter().flat_map(|set| set.elements.values()).filter_map(|data| match data {
            Some(Datum::Verdict(verdict)) => Some(verdict),
            _ => None,
        });
        rules.chain(elements).any(|verdict| verdict.target() == Some(chain))
    }

    /// nf_tables_addchain, nf_tables_updchain.
    fn add_chain(&mut self, name: &Name, base: Option<BaseChain>) -> Result<bool, Errno> {
        if let Some(chain) = self.chains.iter_mut().find(|chain| chain.name == *name) {
            return match (&mut chain.base, base) {
                (_, None) => Ok(false),
                // A policy, which every base chain of ours carries, makes no sense there.
                (None, Some(_)) => Err(Errno::OPNOTSUPP),
                (Some(found), Some(wanted)) => {
                    if (found.hook, found.priority) != (wanted.hook, wanted.priority) {
                        return Err(Errno::OPNOTSUPP);
                    }
                    if found.kind != wanted.kind {
                        return Err(Errno::EXIST);
                    }
                    found.policy = wanted.policy;
                    Ok(true)
                }
            };
        }
        if let Some(base) = base {
            validate::base(&base)?;
        }
        self.next_handle();
        self.chains.push(HeldChain { name: name.clone(), base, rules: Vec::new() });
        Ok(true)
    }

    /// nf_tables_delchain: its rules go with it, unless one of them leads to itself.
    fn delete_chain(&mut self, name: &Name) -> Result<bool, Errno> {
        let at = self.chains.iter().position(|chain| chain.name == *name).ok_or(Errno::NOENT)?;
        if self.is_led_to(name) {
            return Err(Errno::BUSY);
        }
        self.chains.remove(at);
        Ok(true)
    }

    /// nf_tables_newset.
    fn add_set(&mut self, set: &Set) -> Result<bool, Errno> {
        let wanted = definition(set);
        if wanted.key.0.is_empty() || wanted.key.size() > KEY_MAX {
            return Err(Errno::INVAL);
        }
        if let Some(found) = self.set(&set.name) {
            return if definition(found) == wanted { Ok(false) } else { Err(Errno::EXIST) };
        }
        self.next_handle();
        self.sets.push(wanted);
        Ok(true)
    }

    /// nf_tables_delset.
    fn delete_set(&mut self, name: &Name) -> Result<bool, Errno> {
        let at = self.set_at(name)?;
        if self.is_bound(name) {
            return Err(Errno::BUSY);
        }
        self.sets.remove(at);
        Ok(true)
    }

    /// Constant sets do not change while a rule uses them.
    fn check_changeable(&self, at: usize) -> Result<(), Errno> {
        let set = &self.sets[at];
        if set.constant && self.is_bound(&set.name) { Err(Errno::BUSY) } else { Ok(()) }
    }

    /// The set, which must be what the elements are encoded for.
    fn set_for(&self, id: &SetId) -> Result<usize, Errno> {
        let at = self.set_at(&id.name)?;
        self.check_changeable(at)?;
        let set = &self.sets[at];
        if set.key == id.key && set.shape() == id.shape { Ok(at) } else { Err(Errno::INVAL) }
    }

    /// nf_tables_newsetelem, nft_add_set_elem.
    fn add_elements(&mut self, id: &SetId, elements: &[Element]) -> Result<bool, Errno> {
        let at = self.set_for(id)?;
        let mut changed = false;
        for element in elements {
            self.check_data(at, element)?;
            let set = &mut self.sets[at];
            let span = exact(set, &element.span)?;
            match set.elements.get(&span) {
                Some(data) if *data == element.data => {}
                Some(_) => return Err(Errno::EXIST),
                None if clashes(set, &span) => return Err(Errno::EXIST),
                None => {
                    set.elements.insert(span, element.data.clone());
                    changed = true;
                }
            }
        }
        Ok(changed)
    }

    fn check_data(&self, at: usize, element: &Element) -> Result<(), Errno> {
        match (&element.data, self.sets[at].data) {
            (None, None) => Ok(()),
            (Some(Datum::Value(value)), Some(MapData::Value(kind)))
                if value.as_bytes().len() == kind.size() =>
            {
                Ok(())
            }
            (Some(Datum::Value(value)), Some(MapData::Pair(first, second)))
                if value.as_bytes().len() == first.padded() + second.padded() =>
            {
                Ok(())
            }
            (Some(Datum::Verdict(verdict)), Some(MapData::Verdict)) => self.check_verdict(verdict),
            _ => Err(Errno::INVAL),
        }
    }

    /// nft_verdict_init.
    fn check_verdict(&self, verdict: &Verdict) -> Result<(), Errno> {
        let Some(name) = verdict.target() else { return Ok(()) };
        let chain = self.chain(name).ok_or(Errno::NOENT)?;
        if chain.base.is_some() { Err(Errno::OPNOTSUPP) } else { Ok(()) }
    }

    /// nf_tables_delsetelem.
    fn delete_elements(&mut self, id: &SetId, elements: &[Element]) -> Result<bool, Errno> {
        let at = self.set_for(id)?;
        let set = &mut self.sets[at];
        for element in elements {
            let span = exact(set, &element.span)?;
            set.elements.remove(&span).ok_or(Errno::NOENT)?;
        }
        Ok(!elements.is_empty())
    }

    /// nf_tables_newrule.
    fn add_rule(&mut self, chain: &Name, rule: &Rule, exprs: &[String]) -> Result<bool, Errno> {
        self.chain_mut(chain)?;
        rule.exprs.iter().try_for_each(|expr| self.check_expr(expr))?;
        let handle = self.next_handle();
        let held = HeldRule { rule: rule.clone(), handle, exprs: exprs.to_vec() };
        self.chain_mut(chain)?.rules.push(held);
        Ok(true)
    }

    fn check_expr(&self, expr: &Expr) -> Result<(), Errno> {
        match expr {
            Expr::Lookup { key, set, .. } => self.check_key(key, set).map(|_| ()),
            Expr::VerdictMap { key, map } => match self.check_key(key, map)? {
                Some(MapData::Verdict) => Ok(()),
                Some(MapData::Value(_) | MapData::Pair(..)) | None => Err(Errno::INVAL),
            },
            Expr::Set { target, source: Source::Map { key, map } } => match self.check_key(key, map)? {
                Some(MapData::Value(kind)) if kind.padded() >= size_of(*target) => Ok(()),
                Some(MapData::Pair(..)) => Ok(()),
                Some(MapData::Value(_)) => Err(Errno::NODATA),
                Some(MapData::Verdict) | None => Err(Errno::INVAL),
            },
            Expr::Dnat { key, map, .. } => match self.check_key(key, map)? {
                Some(MapData::Pair(..)) => Ok(()),
                Some(MapData::Value(_)) => Err(Errno::NODATA),
                Some(MapData::Verdict) | None => Err(Errno::INVAL),
            },
            Expr::Verdict(verdict) => self.check_verdict(verdict),
            _ => Ok(()),
        }
    }

    /// nft_lookup_init: the set is there, and the key fills the registers that it reads.
    fn check_key(&self, key: &[Field], set: &Name) -> Result<Option<MapData>, Errno> {
        let set = self.set(set).ok_or(Errno::NOENT)?;
        let loaded: usize = key.iter().map(|field| field.data_type().padded()).sum();
        if loaded >= set.key.size() { Ok(set.data) } else { Err(Errno::NODATA) }
    }
}

/// What a statement asks for, of the fields that can be told from what the kernel keeps.
fn asked(expr: &Expr) -> Option<(Field, crate::value::Value)> {
    match expr {
        Expr::Cmp { field, op: crate::expr::CmpOp::Eq, value } => {
            number::field_of(number::load(*field)).map(|field| (field, value.clone()))
        }
        _ => None,
    }
}

fn verdict(expr: &Expr) -> Option<&Verdict> {
    match expr {
        Expr::Verdict(verdict) => Some(verdict),
        _ => None,
    }
}

/// The prefix in which a statement wants an address.
fn network(expr: &Expr) -> Option<(Field, IpNet)> {
    let address = |value: &crate::value::Value| match value.as_bytes().len() {
        4 => Some(IpAddr::from(*value.as_bytes().first_chunk::<4>()?)),
        _ => Some(IpAddr::from(*value.as_bytes().first_chunk::<16>()?)),
    };
    let (field, value, mask) = match expr {
        Expr::Cmp { field, op: crate::expr::CmpOp::Eq, value } => (*field, value, None),
        Expr::Masked { field, mask, op: crate::expr::CmpOp::Eq, value } => (*field, value, Some(mask)),
        _ => return None,
    };
    if !matches!(field, Field::IpSaddr | Field::IpDaddr | Field::Ip6Saddr | Field::Ip6Daddr) {
        return None;
    }
    let whole = IpNet::from(address(value)?);
    let net = match mask {
        None => whole,
        Some(mask) => IpNet::with_netmask(whole.addr(), address(mask)?).ok()?,
    };
    Some((field, net))
}

/// The set that a statement looks into.
fn set_of(expr: &Expr) -> Option<&Name> {
    match expr {
        Expr::Lookup { set, .. } => Some(set),
        Expr::VerdictMap { map, .. }
        | Expr::Dnat { map, .. }
        | Expr::Set { source: Source::Map { map, .. }, .. } => Some(map),
        _ => None,
    }
}

fn size_of(target: Target) -> usize {
    target.field().data_type().size()
}

/// The span as it is kept, if it fits the set at all.
fn exact(set: &Set, span: &Span) -> Result<Span, Errno> {
    let sized = |value: &crate::value::Value| value.as_bytes().len() == set.key.size();
    if !sized(&span.from) || span.to.as_ref().is_some_and(|to| !sized(to)) {
        return Err(Errno::INVAL);
    }
    let to = span.to.clone().filter(|to| *to != span.from);
    if let Some(to) = &to {
        let (from, to) = (in_network_order(&set.key, &span.from), in_network_order(&set.key, to));
        let in_order = match set.shape() {
            SetShape::Exact => false,
            SetShape::Interval => from < to,
            SetShape::ConcatInterval => parts(&set.key).all(|part| {
                from.as_bytes().get(part.clone()).unwrap_or_default()
                    <= to.as_bytes().get(part).unwrap_or_default()
            }),
        };
        if !in_order {
            return Err(Errno::INVAL);
        }
    }
    Ok(Span { from: span.from.clone(), to })
}

/// Whether the set cannot take this besides what it holds. Trees take no overlap at all; pipapo looks up the first and
/// the last key only, so that a range that surrounds another one passes.
fn clashes(set: &Set, span: &Span) -> bool {
    let order = |value| in_network_order(&set.key, value);
    let (from, to) = (order(&span.from), order(span.last()));
    set.elements.keys().any(|other| {
        let (first, last) = (order(&other.from), order(other.last()));
        match set.shape() {
            SetShape::Exact => false,
            SetShape::Interval => from <= last && first <= to,
            SetShape::ConcatInterval => {
                let holds = |key: &crate::value::Value| {
                    parts(&set.key).all(|part| {
                        let of = |value: &crate::value::Value| {
                            value.as_bytes().get(part.clone()).map(<[u8]>::to_vec)
                        };
                        of(&first) <= of(key) && of(key) <= of(&last)
                    })
                };
                holds(&from) || holds(&to)
            }
        }
    })
}

fn parts(key: &KeyType) -> impl Iterator<Item = std::ops::Range<usize>> + '_ {
    each_part(&key.0)
}
