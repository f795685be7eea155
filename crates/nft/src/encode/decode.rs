//! Dumped messages back to objects: what [`crate::TableDump`] holds, and what error messages say.

use std::net::IpAddr;

use ipnet::IpNet;

use super::element::{in_network_order, predecessor};
use super::number::{self, Load, chain, data, elem, msg, rule, set, table, xt};
use super::wire::{Attributes, NFMSG_HEADER, NLMSG_HEADER, find, find_be32, find_text};
use crate::expr::{Field, Verdict};
use crate::kernel::{ChainDump, RuleDump};
use crate::name::Name;
use crate::object::{
    BaseChain, ChainKind, Datum, Element, Family, MapData, Policy, Priority, Set, SetShape, Span, TableFlags,
    TableId,
};
use crate::value::Value;

/// `NLMSG_ERROR`.
const NLMSG_ERROR: u16 = 2;
/// `NLMSG_DONE`.
const NLMSG_DONE: u16 = 3;

/// One message of a reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reply<'a> {
    /// Sequence number of the request that it answers.
    pub seq: u32,
    /// Port id of the socket that caused it, in notifications.
    pub port: u32,
    /// What it is.
    pub kind: ReplyKind<'a>,
}

/// What a message of a reply is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReplyKind<'a> {
    /// An acknowledgement (0) or error (errno, positive) for the request of that sequence number.
    Error(i32),
    /// The end of a dump, with an errno where it ended early.
    Done(i32),
    /// An nf_tables object. `interrupted`: the dump saw a change in between (`NLM_F_DUMP_INTR`).
    Object {
        /// Message type within nf_tables ([`number::msg`]).
        msg: u8,
        /// Family.
        family: u8,
        /// Attributes.
        attributes: &'a [u8],
        /// Whether the dump is torn.
        interrupted: bool,
    },
    /// Something else.
    Other,
}

/// Walks the messages of a datagram; ends at the first one that does not fit.
#[derive(Debug, Clone)]
pub struct Replies<'a>(pub &'a [u8]);

impl<'a> Iterator for Replies<'a> {
    type Item = Reply<'a>;

    fn next(&mut self) -> Option<Reply<'a>> {
        let head = self.0.first_chunk::<NLMSG_HEADER>()?;
        let [l0, l1, l2, l3, k0, k1, f0, f1, s0, s1, s2, s3, p0, p1, p2, p3] = *head;
        let len = usize::try_from(u32::from_ne_bytes([l0, l1, l2, l3])).ok()?;
        let kind = u16::from_ne_bytes([k0, k1]);
        let flags = u16::from_ne_bytes([f0, f1]);
        let body = self.0.get(NLMSG_HEADER..len)?;
        self.0 = self.0.get(len.next_multiple_of(4)..).unwrap_or_default();
        let errno = || body.first_chunk::<4>().map_or(0, |bytes| i32::from_ne_bytes(*bytes).saturating_neg());
        let kind = match (kind, kind >> 8) {
            (NLMSG_ERROR, _) => ReplyKind::Error(errno()),
            (NLMSG_DONE, _) => ReplyKind::Done(errno()),
            (_, super::NFNL_SUBSYS_NFTABLES) => ReplyKind::Object {
                msg: kind.to_le_bytes()[0],
                family: body.first().copied().unwrap_or(0),
                attributes: body.get(NFMSG_HEADER - NLMSG_HEADER..).unwrap_or_default(),
                interrupted: flags & 0x10 != 0,
            },
            _ => ReplyKind::Other,
        };
        let (seq, port) = (u32::from_ne_bytes([s0, s1, s2, s3]), u32::from_ne_bytes([p0, p1, p2, p3]));
        Some(Reply { seq, port, kind })
    }
}

/// The table that an object of any kind belongs to (its name is attribute 1 everywhere).
pub fn table_of(family: u8, attributes: &[u8]) -> Option<(Family, &str)> {
    Some((number::family_of(family)?, find_text(attributes, table::NAME)?))
}

/// Flags of a table.
pub fn table_flags(attributes: &[u8]) -> TableFlags {
    let bits = find_be32(attributes, table::FLAGS).unwrap_or(0);
    TableFlags { owner: bits & table::F_OWNER != 0, persist: bits & table::F_PERSIST != 0 }
}

/// Number of the generation, from the answer to [`msg::GETGEN`].
pub fn generation(attributes: &[u8]) -> Option<u32> {
    find_be32(attributes, 1)
}

/// A chain without its rules.
pub fn chain(attributes: &[u8]) -> Option<ChainDump> {
    let name = Name::new(find_text(attributes, chain::NAME)?).ok()?;
    let base = find(attributes, chain::HOOK).and_then(|hook| {
        let at = usize::try_from(find_be32(hook, chain::HOOK_NUM)?).ok()?;
        Some(BaseChain {
            kind: match find_text(attributes, chain::TYPE)? {
                "nat" => ChainKind::Nat,
                _ => ChainKind::Filter,
            },
            hook: *number::HOOKS.get(at)?,
            priority: Priority(find_be32(hook, chain::HOOK_PRIORITY)?.cast_signed()),
            policy: match find_be32(attributes, chain::POLICY) {
                Some(0) => Policy::Drop,
                _ => Policy::Accept,
            },
        })
    });
    Some(ChainDump { name, base, rules: Vec::new() })
}

/// A rule, and the name of its chain.
pub fn rule(attributes: &[u8]) -> Option<(&str, RuleDump)> {
    let handle = u64::from_be_bytes(find(attributes, rule::HANDLE)?.try_into().ok()?);
    let exprs = expressions(attributes);
    let mut comment = comment(find(attributes, rule::USERDATA).unwrap_or_default());
    if comment.is_empty() {
        comment = statements(attributes)
            .find_map(|(name, body)| comment_of_iptables(name, body))
            .unwrap_or_default();
    }
    let verdict = statements(attributes).find_map(|(name, body)| verdict(name, body));
    let (asked, networks) = (asked(attributes), networks(attributes));
    let of_iptables = statements(attributes).filter(|(name, _)| matches!(*name, "match" | "target"));
    let extensions =
        of_iptables.filter_map(|(_, body)| find_text(body, xt::NAME).map(str::to_owned)).collect();
    let rule = RuleDump { handle, comment, exprs, asked, networks, extensions, verdict };
    Some((find_text(attributes, rule::CHAIN)?, rule))
}

/// A rule's expressions: their names, and what they say.
fn statements(attributes: &[u8]) -> impl Iterator<Item = (&str, &[u8])> {
    let all = Attributes(find(attributes, rule::EXPRESSIONS).unwrap_or_default());
    all.filter_map(|(_, one)| Some((find_text(one, 1)?, find(one, 2).unwrap_or_default())))
}

/// Comments of `iptables-nft` are matches that always match.
fn comment_of_iptables(name: &str, body: &[u8]) -> Option<String> {
    let is_comment = name == "match" && find_text(body, xt::NAME) == Some("comment");
    let text = find(body, xt::INFO).filter(|_| is_comment)?;
    let end = text.iter().position(|b| *b == 0).unwrap_or(text.len());
    Some(String::from_utf8_lossy(&text[..end]).into_owned())
}

fn verdict(name: &str, body: &[u8]) -> Option<Verdict> {
    match datum(find(body, 2).filter(|_| name == "immediate")?)? {
        Datum::Verdict(verdict) => Some(verdict),
        _ => None,
    }
}

/// Prefixes in which addresses must lie: loaded, masked where the prefix ends within what was loaded, and compared. What
/// ends with an octet may be loaded as far as it goes, and not be masked.
fn networks(attributes: &[u8]) -> Vec<(Field, IpNet)> {
    const NETWORK_HEADER: u32 = 1;
    let mut networks = Vec::new();
    let (mut loaded, mut mask) = (None, None);
    for (name, body) in statements(attributes) {
        match name {
            "payload" => {
                let field = match (find_be32(body, 2), find_be32(body, 3)) {
                    (Some(NETWORK_HEADER), Some(12)) => Some(Field::IpSaddr),
                    (Some(NETWORK_HEADER), Some(16)) => Some(Field::IpDaddr),
                    (Some(NETWORK_HEADER), Some(8)) => Some(Field::Ip6Saddr),
                    (Some(NETWORK_HEADER), Some(24)) => Some(Field::Ip6Daddr),
                    _ => None,
                };
                (loaded, mask) = (field, None);
            }
            "bitwise" => mask = find(body, 4).and_then(|data| find(data, data::VALUE)),
            "cmp" if find_be32(body, 2) == Some(0) => {
                let value = find(body, 3).and_then(|data| find(data, data::VALUE));
                networks.extend(loaded.take().zip(value).and_then(|(field, value)| {
                    Some((field, network(matches!(field, Field::IpSaddr | Field::IpDaddr), value, mask)?))
                }));
            }
            // A counter loads nothing.
            "counter" => {}
            _ => loaded = None,
        }
    }
    networks
}

/// The prefix of a value as far as it was loaded; none: it is not one.
fn network(v4: bool, value: &[u8], mask: Option<&[u8]>) -> Option<IpNet> {
    let size = if v4 { 4 } else { 16 };
    let len = match mask {
        None => 8 * value.len(),
        Some(mask) => {
            let ones = mask.iter().take_while(|octet| **octet == 0xff).count();
            let part = mask.get(ones).map_or(0, |octet| octet.leading_ones() as usize);
            let whole: u32 = mask.iter().map(|octet| octet.count_ones()).sum();
            (whole as usize == 8 * ones + part).then_some(8 * ones + part)?
        }
    };
    let mut octets = [0; 16];
    octets.get_mut(..value.len())?.copy_from_slice(value);
    let address = if v4 {
        IpAddr::from(*octets.first_chunk::<4>().filter(|_| value.len() <= size)?)
    } else {
        IpAddr::from(octets)
    };
    IpNet::new(address, u8::try_from(len).ok()?).ok()
}

/// Fields that are loaded whole and then compared for being equal.
fn asked(attributes: &[u8]) -> Vec<(Field, Value)> {
    let mut asked = Vec::new();
    let mut loaded = None;
    for (name, body) in statements(attributes) {
        match name {
            "meta" => loaded = find_be32(body, 2).and_then(|key| number::field_of(Load::Meta(key))),
            "payload" => {
                let parts = (find_be32(body, 2), find_be32(body, 3), find_be32(body, 4));
                loaded = match parts {
                    (Some(base), Some(offset), Some(len)) => {
                        number::field_of(Load::Payload(base, offset, len))
                    }
                    _ => None,
                };
            }
            "cmp" if find_be32(body, 2) == Some(0) => {
                asked.extend(loaded.take().zip(find(body, 3).and_then(value)));
            }
            _ => loaded = None,
        }
    }
    asked
}

/// Names of a rule's expressions.
pub(crate) fn expressions(attributes: &[u8]) -> Vec<String> {
    statements(attributes).map(|(name, _)| name.to_owned()).collect()
}

/// The comment in a rule's user data: (type, length, bytes) records.
fn comment(mut user: &[u8]) -> String {
    while let Some(([kind, len], rest)) = user.split_first_chunk::<2>() {
        let Some((bytes, after)) = rest.split_at_checked(usize::from(*len)) else { break };
        if *kind == rule::UDATA_COMMENT {
            let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
            return String::from_utf8_lossy(&bytes[..end]).into_owned();
        }
        user = after;
    }
    String::new()
}

/// A set without its elements; none for the anonymous ones of other people's rules and for types that we do not
/// know.
pub fn set(attributes: &[u8]) -> Option<Set> {
    let flags = find_be32(attributes, set::FLAGS).unwrap_or(0);
    if flags & set::F_ANONYMOUS != 0 {
        return None;
    }
    let name = Name::new(find_text(attributes, set::NAME)?).ok()?;
    let key = number::key_type_of(find_be32(attributes, set::KEY_TYPE)?)?;
    let data = if flags & set::F_MAP == 0 {
        None
    } else {
        match find_be32(attributes, set::DATA_TYPE)? {
            set::DATA_VERDICT => Some(MapData::Verdict),
            kind => Some(match number::key_type_of(kind)?.0.as_slice() {
                [one] => MapData::Value(*one),
                [first, second] => MapData::Pair(*first, *second),
                _ => return None,
            }),
        }
    };
    Some(Set {
        data,
        interval: flags & set::F_INTERVAL != 0,
        constant: flags & set::F_CONSTANT != 0,
        ..Set::new(name, key)
    })
}

/// Elements of one message of a dump, as the kernel holds them.
pub fn elements(attributes: &[u8]) -> Vec<RawElement> {
    let list = Attributes(find(attributes, elem::LIST_ELEMENTS).unwrap_or_default());
    list.filter_map(|(_, one)| {
        Some(RawElement {
            key: value(find(one, elem::KEY)?)?,
            key_end: find(one, elem::KEY_END).and_then(value),
            end_mark: find_be32(one, elem::FLAGS).unwrap_or(0) & elem::F_INTERVAL_END != 0,
            data: find(one, elem::DATA).and_then(datum),
        })
    })
    .collect()
}

/// An element as the kernel holds it: in trees, a range is two of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RawElement {
    key: Value,
    key_end: Option<Value>,
    end_mark: bool,
    data: Option<Datum>,
}

/// Puts all elements of a set together again and into it.
pub fn fill(set: &mut Set, mut raw: Vec<RawElement>) {
    match set.shape() {
        SetShape::Exact => {
            set.elements.extend(raw.into_iter().map(|e| (Span { from: e.key, to: None }, e.data)));
        }
        SetShape::ConcatInterval => {
            let key = set.key.clone();
            set.elements.extend(raw.into_iter().map(|e| {
                let from = in_network_order(&key, &e.key);
                let to = e.key_end.map(|end| in_network_order(&key, &end)).filter(|to| *to != from);
                (Span { from, to }, e.data)
            }));
        }
        SetShape::Interval => {
            // An end sorts before a beginning at the same key.
            raw.sort_by(|a, b| (&a.key, !a.end_mark).cmp(&(&b.key, !b.end_mark)));
            let mut open: Option<RawElement> = None;
            for e in raw {
                if let Some(begin) = open.take() {
                    let last = predecessor(&e.key).unwrap_or_else(|| e.key.clone());
                    insert_range(set, begin, last);
                }
                if !e.end_mark {
                    open = Some(e);
                }
            }
            if let Some(begin) = open {
                let last = Value::from_bytes(vec![0xff; begin.key.as_bytes().len()]);
                insert_range(set, begin, last);
            }
        }
    }
}

fn insert_range(set: &mut Set, begin: RawElement, last: Value) {
    let from = in_network_order(&set.key, &begin.key);
    let to = Some(in_network_order(&set.key, &last)).filter(|to| *to != from);
    let Element { span, data } = Element { span: Span { from, to }, data: begin.data };
    set.elements.insert(span, data);
}

fn value(attributes: &[u8]) -> Option<Value> {
    Some(Value::from_bytes(find(attributes, data::VALUE)?))
}

fn datum(attributes: &[u8]) -> Option<Datum> {
    let Some(verdict) = find(attributes, data::VERDICT) else {
        return Some(Datum::Value(value(attributes)?));
    };
    let chain = || Name::new(find_text(verdict, data::VERDICT_CHAIN)?).ok();
    Some(Datum::Verdict(match find_be32(verdict, data::VERDICT_CODE)?.cast_signed() {
        0 => Verdict::Drop,
        1 => Verdict::Accept,
        -1 => Verdict::Continue,
        -3 => Verdict::Jump(chain()?),
        -4 => Verdict::Goto(chain()?),
        -5 => Verdict::Return,
        _ => return None,
    }))
}

/// Whether a notification tells of a change to a table's content, and of which one.
pub fn changed_table(reply: &Reply<'_>) -> Option<TableId> {
    let ReplyKind::Object { msg, family, attributes, .. } = reply.kind else { return None };
    if msg == msg::NEWGEN {
        return None;
    }
    let (family, name) = table_of(family, attributes)?;
    Some(TableId { family, name: Name::new(name).ok()? })
}
