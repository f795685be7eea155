//! Transactions to netlink messages, attribute for attribute what `nft` 1.0.6 makes of the text form
//! (`podway_kern`'s `tests/nft_golden.rs` compares what the kernel then holds), and dumps back to objects.

pub mod decode;
mod element;
mod expr;
pub mod number;
pub mod wire;

pub(crate) use element::in_network_order;

use std::ops::Range;

use number::{chain, elem, msg, rule, set, table};
use wire::{Head, NFNL_SUBSYS_NFTABLES, NLM_F_APPEND, NLM_F_CREATE, NLM_F_REQUEST, Writer};

use crate::object::{BaseChain, Element, KeyType, MapData, Rule, Set, SetShape, TableId};
use crate::transaction::{Op, SetId, Transaction};

/// Bytes of elements in one message: the list is one attribute, whose length has sixteen bits.
const ELEMENTS_MAX: usize = wire::ATTRIBUTE_MAX - element::ELEMENT_MAX * 2;

/// One message of an encoded transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Where it lies in [`Encoded::bytes`].
    pub range: Range<usize>,
    /// Its sequence number.
    pub seq: u32,
    /// The operation in [`Transaction::ops`] that it belongs to; an operation with many elements is several
    /// messages.
    pub op: usize,
}

/// The messages of a transaction, without the batch's begin and end.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Encoded {
    /// All messages, one after another.
    pub bytes: Vec<u8>,
    /// Where each one is.
    pub messages: Vec<Message>,
}

impl Encoded {
    /// Makes the last message ask for an acknowledgement, and says its sequence number. The kernel tells every
    /// failure anyway; the acknowledgement of the last message says that no more will come.
    pub fn ask_for_acknowledgement(&mut self) -> Option<u32> {
        let last = self.messages.last()?;
        // The flags lie behind length and type.
        let flags = self.bytes.get_mut(last.range.start + 6..)?.first_chunk_mut::<2>()?;
        *flags = (u16::from_ne_bytes(*flags) | wire::NLM_F_ACK).to_ne_bytes();
        Some(last.seq)
    }
}

/// Encodes a transaction. Sequence numbers count up from `first_seq`. Total: what makes no sense is encoded all
/// the same and refused by the kernel.
pub fn encode(transaction: &Transaction, first_seq: u32) -> Encoded {
    let mut encoder =
        Encoder { w: Writer::default(), messages: Vec::new(), seq: first_seq, op: 0, sets: Vec::new() };
    for (index, op) in transaction.ops.iter().enumerate() {
        encoder.op = index;
        encoder.op(op);
    }
    Encoded { bytes: encoder.w.into_bytes(), messages: encoder.messages }
}

/// Begin (`kind` [`wire::BATCH_BEGIN`]) or end ([`wire::BATCH_END`]) of a batch.
pub fn batch_mark(kind: u16, flags: u16, seq: u32) -> Vec<u8> {
    let mut w = Writer::default();
    let head = Head { kind, flags: flags | NLM_F_REQUEST, seq, family: 0, res_id: NFNL_SUBSYS_NFTABLES };
    w.message(head, |_| {});
    w.into_bytes()
}

/// A request for what the kernel holds: all objects of a kind in a table, elements of one set, one chain, or the
/// generation.
pub fn request(kind: u8, flags: u16, seq: u32, of: Option<(&TableId, Option<&str>)>) -> Vec<u8> {
    let mut w = Writer::default();
    let family = of.map_or(0, |(id, _)| number::family(id.family));
    w.message(head(kind, flags, seq, family), |w| {
        // The table's name is attribute 1 in every kind of request.
        if let Some((id, object)) = of {
            w.text(table::NAME, id.name.as_str());
            if let Some(object) = object {
                w.text(if kind == msg::GETCHAIN { chain::NAME } else { elem::LIST_SET }, object);
            }
        }
    });
    w.into_bytes()
}

fn head(kind: u8, flags: u16, seq: u32, family: u8) -> Head {
    let kind = (NFNL_SUBSYS_NFTABLES << 8) | u16::from(kind);
    Head { kind, flags: flags | NLM_F_REQUEST, seq, family, res_id: 0 }
}

struct Encoder<'a> {
    w: Writer,
    messages: Vec<Message>,
    seq: u32,
    op: usize,
    /// Sets made by this transaction; a set's id is its place in here, from 1 on.
    sets: Vec<(&'a TableId, &'a Set)>,
}

impl<'a> Encoder<'a> {
    fn op(&mut self, op: &'a Op) {
        match op {
            Op::AddTable { table, flags } => self.message(table, msg::NEWTABLE, NLM_F_CREATE, |w, _| {
                w.text(table::NAME, table.name.as_str());
                w.be32(table::FLAGS, number::table_flags(*flags));
            }),
            Op::DeleteTable(table) => self.message(table, msg::DELTABLE, 0, |w, _| {
                w.text(table::NAME, table.name.as_str());
            }),
            Op::AddChain { table, name, base } => {
                self.message(table, msg::NEWCHAIN, NLM_F_CREATE, |w, _| {
                    w.text(chain::TABLE, table.name.as_str());
                    w.text(chain::NAME, name.as_str());
                    if let Some(base) = base {
                        write_base(w, base);
                    }
                });
            }
            Op::DeleteChain { table, name } => self.message(table, msg::DELCHAIN, 0, |w, _| {
                w.text(chain::TABLE, table.name.as_str());
                w.text(chain::NAME, name.as_str());
            }),
            Op::FlushChain { table, name } => self.message(table, msg::DELRULE, 0, |w, _| {
                w.text(rule::TABLE, table.name.as_str());
                w.text(rule::CHAIN, name.as_str());
            }),
            Op::AddSet { table, set } => {
                self.sets.push((table, set));
                self.message(table, msg::NEWSET, NLM_F_CREATE, |w, id| {
                    w.text(set::TABLE, table.name.as_str());
                    write_set(w, set, id(set.name.as_str()).map_or(0, |known| known.id));
                });
            }
            Op::DeleteSet { table, name } => self.message(table, msg::DELSET, 0, |w, _| {
                w.text(set::TABLE, table.name.as_str());
                w.text(set::NAME, name.as_str());
            }),
            // A deletion without a list of elements deletes all.
            Op::FlushSet { table, name } => self.message(table, msg::DELSETELEM, 0, |w, _| {
                w.text(elem::LIST_TABLE, table.name.as_str());
                w.text(elem::LIST_SET, name.as_str());
            }),
            Op::AddElements { set, elements } => {
                self.elements(msg::NEWSETELEM, NLM_F_CREATE, set, elements);
            }
            Op::DeleteElements { set, elements } => self.elements(msg::DELSETELEM, 0, set, elements),
            Op::DeleteRule { table, chain, handle } => self.message(table, msg::DELRULE, 0, |w, _| {
                w.text(rule::TABLE, table.name.as_str());
                w.text(rule::CHAIN, chain.as_str());
                w.be64(rule::HANDLE, *handle);
            }),
            Op::AddRule { table, chain, rule } => {
                self.message(table, msg::NEWRULE, NLM_F_CREATE | NLM_F_APPEND, |w, id| {
                    w.text(rule::TABLE, table.name.as_str());
                    w.text(rule::CHAIN, chain.as_str());
                    write_rule(w, rule, id);
                });
            }
        }
    }

    fn message(
        &mut self,
        table: &TableId,
        kind: u8,
        flags: u16,
        body: impl FnOnce(&mut Writer, expr::SetIds<'_>),
    ) {
        let sets = &self.sets;
        // The last one of that name: a transaction may delete a set and make it again.
        let id = |name: &str| {
            let place = sets.iter().rposition(|(of, set)| *of == table && set.name.as_str() == name)?;
            let id = u32::try_from(place + 1).ok()?;
            Some(expr::Known { id, interval: sets.get(place)?.1.interval })
        };
        let start = self.w.len();
        let head = head(kind, flags, self.seq, number::family(table.family));
        self.w.message(head, |w| body(w, &id));
        self.messages.push(Message { range: start..self.w.len(), seq: self.seq, op: self.op });
        self.seq = self.seq.wrapping_add(1);
    }

    /// Elements, in as many messages as they need.
    fn elements(&mut self, kind: u8, flags: u16, set: &SetId, elements: &[Element]) {
        let mut rest = elements;
        while !rest.is_empty() {
            let mut taken = 0;
            self.message(&set.table, kind, flags, |w, _| {
                w.text(elem::LIST_TABLE, set.table.name.as_str());
                w.text(elem::LIST_SET, set.name.as_str());
                w.nest(elem::LIST_ELEMENTS, |w| {
                    let start = w.len();
                    for element in rest {
                        if taken > 0 && w.len() - start > ELEMENTS_MAX {
                            break;
                        }
                        element::write(w, set, element);
                        taken += 1;
                    }
                });
            });
            rest = &rest[taken..];
        }
    }
}

fn write_base(w: &mut Writer, base: &BaseChain) {
    w.nest(chain::HOOK, |w| {
        w.be32(chain::HOOK_NUM, number::hook(base.hook));
        w.be32(chain::HOOK_PRIORITY, base.priority.0.cast_unsigned());
    });
    w.be32(chain::POLICY, number::policy(base.policy));
    w.text(chain::TYPE, number::chain_kind(base.kind));
}

fn write_set(w: &mut Writer, set: &Set, id: u32) {
    let shape = set.shape();
    let flag = |on: bool, flag: u32| if on { flag } else { 0 };
    w.text(set::NAME, set.name.as_str());
    w.be32(
        set::FLAGS,
        flag(set.constant, set::F_CONSTANT)
            | flag(set.interval, set::F_INTERVAL)
            | flag(set.data.is_some(), set::F_MAP)
            | flag(shape == SetShape::ConcatInterval, set::F_CONCAT),
    );
    w.be32(set::KEY_TYPE, number::key_type(&set.key));
    w.be32(set::KEY_LEN, length(set.key.size()));
    let mut user = udata(set::UDATA_KEY_ORDER, number::byte_order(&set.key.0));
    if let Some(data) = set.data {
        let (kind, len, order) = match data {
            MapData::Value(kind) => (number::data_type(kind), kind.size(), number::byte_order(&[kind])),
            MapData::Pair(first, second) => {
                let pair = KeyType::from([first, second]);
                (number::key_type(&pair), pair.size(), number::byte_order(&pair.0))
            }
            MapData::Verdict => (set::DATA_VERDICT, 0, 0),
        };
        w.be32(set::DATA_TYPE, kind);
        w.be32(set::DATA_LEN, length(len));
        user.extend(udata(set::UDATA_DATA_ORDER, order));
        user.extend(udata(set::UDATA_DATA_INTERVAL, 0));
    }
    w.be32(set::ID, id);
    if shape == SetShape::ConcatInterval {
        w.nest(set::DESC, |w| {
            w.nest(set::DESC_CONCAT, |w| {
                for part in &set.key.0 {
                    w.nest(number::LIST_ELEM, |w| w.be32(set::FIELD_LEN, length(part.size())));
                }
            });
        });
    }
    w.bytes(set::USERDATA, &user);
}

fn write_rule(w: &mut Writer, rule: &Rule, ids: expr::SetIds<'_>) {
    w.nest(rule::EXPRESSIONS, |w| rule.exprs.iter().for_each(|e| expr::write(w, e, ids)));
    if !rule.comment.is_empty() {
        let mut comment = rule.comment.clone().into_bytes();
        comment.truncate(crate::object::COMMENT_MAX);
        comment.push(0);
        let mut user = vec![rule::UDATA_COMMENT, u8::try_from(comment.len()).unwrap_or(u8::MAX)];
        user.extend(comment);
        w.bytes(rule::USERDATA, &user);
    }
}

/// One number of nft's user data, in host order.
fn udata(kind: u8, number: u32) -> Vec<u8> {
    let mut bytes = vec![kind, 4];
    bytes.extend_from_slice(&number.to_ne_bytes());
    bytes
}

/// Sizes here are those of keys and values: some tens of bytes.
fn length(size: usize) -> u32 {
    u32::try_from(size).unwrap_or(u32::MAX)
}
