//! Rules to register operations, in the order and with the registers that `nft` 1.0.6 uses.

use super::number::{self, LIST_ELEM, Load, data};
use super::wire::Writer;
use crate::expr::{CmpOp, Expr, Field, Log, Reject, Source, Target, Verdict};
use crate::name::Name;
use crate::object::Family;
use crate::value::Value;

/// `NFT_REG_VERDICT`.
const REG_VERDICT: u32 = 0;
/// `NFT_REG_1`.
const REG_1: u32 = 1;

/// Number of the register that begins `word` four-byte words after the first one: the old sixteen-byte registers'
/// numbers where one begins there, as nft writes it, else those of `NFT_REG32_00` on.
fn register(word: u32) -> u32 {
    if word.is_multiple_of(4) { REG_1 + word / 4 } else { 8 + word }
}

/// A set that the rule's own transaction makes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Known {
    /// Its number in the transaction.
    pub(super) id: u32,
    /// Whether it has `flags interval`, so that host-order parts of a key must be turned round.
    pub(super) interval: bool,
}

/// Finds such a set by its name.
pub(super) type SetIds<'a> = &'a dyn Fn(&str) -> Option<Known>;

pub(super) fn write(w: &mut Writer, expr: &Expr, ids: SetIds<'_>) {
    match expr {
        Expr::Cmp { field, op, value } => {
            load(w, *field, 0);
            match (field, value.as_bytes()) {
                // One byte, but nft compares the whole register, and lists anything else as a prefix.
                (Field::FibSaddrIif, [present]) => {
                    cmp(w, cmp_number(*op), &u32::from(*present).to_ne_bytes());
                }
                (_, bytes) => cmp(w, cmp_number(*op), bytes),
            }
        }
        Expr::Range { field, op, from, to } => {
            load(w, *field, 0);
            match op {
                CmpOp::Eq => {
                    cmp(w, 5, from.as_bytes());
                    cmp(w, 3, to.as_bytes());
                }
                CmpOp::Ne => one(w, "range", |w| {
                    w.be32(1, REG_1);
                    w.be32(2, 1);
                    value(w, 3, from.as_bytes());
                    value(w, 4, to.as_bytes());
                }),
            }
        }
        Expr::Masked { field, mask, op, value } => masked(w, *field, mask, *op, value),
        Expr::Lookup { key, op, set } => {
            load_key(w, key, set, ids);
            one(w, "lookup", |w| {
                w.be32(2, REG_1);
                set_name(w, set.as_str(), ids);
                if *op == CmpOp::Ne {
                    w.be32(5, 1);
                }
            });
        }
        Expr::VerdictMap { key, map } => {
            load_key(w, key, map, ids);
            map_lookup(w, map.as_str(), REG_VERDICT, ids);
        }
        Expr::Set { target, source } => {
            match source {
                Source::Const(number) => one(w, "immediate", |w| {
                    w.be32(1, REG_1);
                    value(w, 2, &number.to_ne_bytes());
                }),
                Source::Map { key, map } => {
                    load_key(w, key, map, ids);
                    map_lookup(w, map.as_str(), REG_1, ids);
                }
                Source::Bits { field, mask, xor } => {
                    load(w, *field, 0);
                    bitwise(w, &mask.to_ne_bytes(), &xor.to_ne_bytes());
                }
            }
            store(w, *target);
        }
        Expr::Counter => one(w, "counter", |_| {}),
        Expr::Limit { per_second, burst } => one(w, "limit", |w| {
            w.be64(1, u64::from(*per_second));
            w.be64(2, 1);
            w.be32(3, *burst);
            w.be32(4, 0);
            w.be32(5, 0);
        }),
        Expr::Log(log) => write_log(w, log),
        Expr::Verdict(verdict) => one(w, "immediate", |w| {
            w.be32(1, REG_VERDICT);
            w.nest(2, |w| write_verdict(w, verdict));
        }),
        Expr::Reject(how) => one(w, "reject", |w| {
            // Types: 1 TCP reset, 2 ICMP of the packet's family. Codes: 1 port, 3 prohibited.
            let (kind, code) = match how {
                Reject::TcpReset => (1, 0),
                Reject::PortUnreachable => (2, 1),
                Reject::AdminProhibited => (2, 3),
            };
            w.be32(1, kind);
            w.bytes(2, &[code]);
        }),
        Expr::Masquerade { fully_random } => one(w, "masq", |w| {
            if *fully_random {
                w.be32(1, 0x10);
            }
        }),
        Expr::Dnat { family, key, map } => {
            load_key(w, key, map, ids);
            map_lookup(w, map.as_str(), REG_1, ids);
            // The port stands behind the address, which takes one word or four.
            let port = register(if *family == Family::Ip6 { 4 } else { 1 });
            one(w, "nat", |w| {
                w.be32(1, 1);
                w.be32(2, u32::from(number::family(*family)));
                w.be32(3, REG_1);
                w.be32(5, port);
            });
        }
        Expr::DnatTo(to) => {
            let immediate = |w: &mut Writer, register, bytes: &[u8]| {
                one(w, "immediate", |w| {
                    w.be32(1, register);
                    value(w, 2, bytes);
                });
            };
            immediate(w, REG_1, Value::from(to.ip()).as_bytes());
            immediate(w, register(4), &to.port().to_be_bytes());
            let family = if to.is_ipv4() { Family::Ip } else { Family::Ip6 };
            one(w, "nat", |w| {
                w.be32(1, 1);
                w.be32(2, u32::from(number::family(family)));
                w.be32(3, REG_1);
                w.be32(5, register(4));
            });
        }
        Expr::Notrack => w.nest(LIST_ELEM, |w| w.text(1, "notrack")),
    }
}

/// The verdict's nested attribute, also used by elements.
pub(super) fn write_verdict(w: &mut Writer, verdict: &Verdict) {
    w.nest(data::VERDICT, |w| {
        w.be32(data::VERDICT_CODE, number::verdict(verdict));
        if let Verdict::Jump(chain) | Verdict::Goto(chain) = verdict {
            w.text(data::VERDICT_CHAIN, chain.as_str());
        }
    });
}

/// One expression of the kernel: its name and its attributes.
fn one(w: &mut Writer, name: &str, body: impl FnOnce(&mut Writer)) {
    w.nest(LIST_ELEM, |w| {
        w.text(1, name);
        w.nest(2, body);
    });
}

fn value(w: &mut Writer, kind: u16, bytes: &[u8]) {
    w.nest(kind, |w| w.bytes(data::VALUE, bytes));
}

fn cmp_number(op: CmpOp) -> u32 {
    match op {
        CmpOp::Eq => 0,
        CmpOp::Ne => 1,
    }
}

fn cmp(w: &mut Writer, op: u32, bytes: &[u8]) {
    one(w, "cmp", |w| {
        w.be32(1, REG_1);
        w.be32(2, op);
        value(w, 3, bytes);
    });
}

fn bitwise(w: &mut Writer, mask: &[u8], xor: &[u8]) {
    one(w, "bitwise", |w| {
        w.be32(1, REG_1);
        w.be32(2, REG_1);
        w.be32(3, u32::try_from(mask.len()).unwrap_or(0));
        w.be32(6, 0);
        value(w, 4, mask);
        value(w, 5, xor);
    });
}

/// An address prefix on a byte's end needs no mask: the kernel loads that many bytes.
fn masked(w: &mut Writer, field: Field, mask: &Value, op: CmpOp, wanted: &Value) {
    if let (Load::Payload(base, offset, _), Some(len)) = (number::load(field), whole_bytes(mask.as_bytes())) {
        payload(w, base, offset, u32::try_from(len).unwrap_or(0), 0);
        cmp(w, cmp_number(op), wanted.as_bytes().get(..len).unwrap_or_default());
    } else {
        load(w, field, 0);
        bitwise(w, mask.as_bytes(), &vec![0; mask.as_bytes().len()]);
        cmp(w, cmp_number(op), wanted.as_bytes());
    }
}

/// How many bytes a mask keeps, if it keeps whole bytes from the first on, and at least one.
fn whole_bytes(mask: &[u8]) -> Option<usize> {
    let kept = mask.iter().take_while(|byte| **byte == 0xff).count();
    (kept > 0 && mask[kept..].iter().all(|byte| *byte == 0)).then_some(kept)
}

fn payload(w: &mut Writer, base: u32, offset: u32, len: u32, word: u32) {
    one(w, "payload", |w| {
        w.be32(1, register(word));
        w.be32(2, base);
        w.be32(3, offset);
        w.be32(4, len);
    });
}

fn load(w: &mut Writer, field: Field, word: u32) {
    let to = register(word);
    match number::load(field) {
        Load::Meta(key) => one(w, "meta", |w| {
            w.be32(2, key);
            w.be32(1, to);
        }),
        Load::Ct(key) => one(w, "ct", |w| {
            w.be32(2, key);
            w.be32(1, to);
        }),
        Load::Payload(base, offset, len) => payload(w, base, offset, len, word),
        Load::Fib(result, flags) => one(w, "fib", |w| {
            w.be32(3, flags);
            w.be32(2, result);
            w.be32(1, to);
        }),
    }
}

fn load_key(w: &mut Writer, key: &[Field], set: &Name, ids: SetIds<'_>) {
    let network_order = ids(set.as_str()).is_some_and(|known| known.interval);
    let mut word = 0;
    for field in key {
        load(w, *field, word);
        if network_order && field.data_type().is_host_order() {
            one(w, "byteorder", |w| {
                w.be32(1, register(word));
                w.be32(2, register(word));
                w.be32(3, 1);
                w.be32(4, 4);
                w.be32(5, 4);
            });
        }
        word += u32::try_from(field.data_type().padded() / 4).unwrap_or(0);
    }
}

fn set_name(w: &mut Writer, name: &str, ids: SetIds<'_>) {
    w.text(1, name);
    if let Some(known) = ids(name) {
        w.be32(4, known.id);
    }
}

fn map_lookup(w: &mut Writer, name: &str, to: u32, ids: SetIds<'_>) {
    one(w, "lookup", |w| {
        w.be32(2, REG_1);
        w.be32(3, to);
        set_name(w, name, ids);
    });
}

fn store(w: &mut Writer, target: Target) {
    match number::load(target.field()) {
        Load::Meta(key) => one(w, "meta", |w| {
            w.be32(2, key);
            w.be32(3, REG_1);
        }),
        Load::Ct(key) => one(w, "ct", |w| {
            w.be32(2, key);
            w.be32(4, REG_1);
        }),
        // A target is a mark or a priority: never loaded from elsewhere.
        Load::Payload(..) | Load::Fib(..) => {}
    }
}

fn write_log(w: &mut Writer, log: &Log) {
    one(w, "log", |w| {
        if !log.prefix.is_empty() {
            w.text(2, &log.prefix);
        }
        if let Some(group) = log.group {
            w.be16(1, group);
        }
    });
}
