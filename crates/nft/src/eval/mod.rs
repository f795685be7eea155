//! Walks a packet through tables, as the kernel does at one hook.
//!
//! ```text
//! base chains of the hook, by priority ─▶ rules in order ─▶ statements in order
//!    accept: next base chain · drop, reject: the end · no rule decided: the chain's policy
//! ```
//!
//! What is modelled, each as nf_tables does it: a statement that asks for what is not there ends its rule, and what
//! the rule has written by then stays; marks and priority, with `ct mark` on the connection (without one a write
//! is lost in silence); no chain before priority -200 sees a connection; nat chains see first packets only, all of
//! them at the place of the kernel's own nat hook, and the first one that translates is the last one asked.
//! Not modelled: what translation, routing and later packets make of the outcome. A rule that would read bytes of
//! the other address family is an error here, since no table of ours means to.

mod packet;

use std::fmt;
use std::net::IpAddr;

use crate::encode::in_network_order;
use crate::expr::{CmpOp, Expr, Field, Log, NFPROTO_IPV4, NFPROTO_IPV6, Reject, Source, Target, Verdict};
use crate::expr::{ct_state, ct_status};
use crate::name::Name;
use crate::object::{
    Chain, ChainKind, Datum, Family, Hook, Policy, Set, SetShape, Span, TableId, TableState,
};
use crate::value::{DataType, Value};

pub use packet::{Connection, Device, Entry, Nowhere, Packet, Surroundings};

/// Jumps that the kernel allows one inside another (`NFT_JUMP_STACK_SIZE`).
pub(crate) const JUMPS_MAX: usize = 16;
/// Priority of connection tracking (`NF_IP_PRI_CONNTRACK`).
pub(crate) const CONNTRACK: i32 = -200;

/// Where a rule stands.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// Its table.
    pub table: TableId,
    /// Its chain.
    pub chain: Name,
    /// Its number in the chain, from 0 on.
    pub rule: usize,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} rule {}", self.table, self.chain, self.rule)
    }
}

/// What became of a packet at a hook.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It passes.
    Accept,
    /// It ends in silence.
    Drop,
    /// It ends with an answer.
    Reject(Reject),
}

/// How a connection's addresses are translated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Translation {
    /// It gets an address of the output device as its source.
    Masquerade {
        /// Whether its port is chosen by chance.
        fully_random: bool,
    },
    /// Its packets go elsewhere.
    Destination {
        /// Where to.
        address: IpAddr,
        /// To which port.
        port: u16,
    },
}

/// What a walk leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Walked {
    /// What became of it.
    pub fate: Fate,
    /// The packet as it leaves the hook, or as it was when it ended.
    pub packet: Packet,
    /// How its connection is translated from here on.
    pub translation: Option<Translation>,
    /// What was logged.
    pub logged: Vec<Log>,
    /// Rules that matched to their last statement, in order. Where the packet ended by a rule, that is the last.
    pub path: Vec<Place>,
}

/// Why a walk makes no sense.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EvalError {
    /// A rule names what is not there.
    #[error("{place}: there is no {name}")]
    Missing {
        /// The rule.
        place: Place,
        /// Name of the chain, set or map.
        name: Name,
    },
    /// A rule reads a header that the packet does not have, without asking for it first.
    #[error("{place}: {field:?} is read of a packet of the other family")]
    Unasked {
        /// The rule.
        place: Place,
        /// What is read.
        field: Field,
    },
    /// A map holds something else than its reader takes.
    #[error("{place}: an element of {name} holds something else than the statement takes")]
    Data {
        /// The rule.
        place: Place,
        /// The map.
        name: Name,
    },
    /// More jumps than the kernel allows.
    #[error("{place}: more than {JUMPS_MAX} jumps one inside another")]
    TooDeep {
        /// The rule.
        place: Place,
    },
}

/// Walks a packet through all base chains of these tables at a hook. Chains of equal priority are walked in the
/// order of the tables.
///
/// # Errors
/// The tables are not ones that the kernel would hold, or read what the packet does not have.
pub fn eval<'a>(
    tables: impl IntoIterator<Item = &'a TableState>,
    hook: Hook,
    packet: Packet,
    surroundings: &dyn Surroundings,
) -> Result<Walked, EvalError> {
    let of_packet = if packet.source.is_ipv4() { Family::Ip } else { Family::Ip6 };
    let mut chains: Vec<(i32, i32, &TableState, &Chain, ChainKind, Policy)> = tables
        .into_iter()
        .filter(|table| table.id.family == Family::Inet || table.id.family == of_packet)
        .flat_map(|table| table.chains.iter().map(move |chain| (table, chain)))
        .filter_map(|(table, chain)| {
            let base = chain.base.filter(|base| base.hook == hook)?;
            let at = match base.kind {
                ChainKind::Filter => base.priority.0,
                ChainKind::Nat => nat_priority(hook),
            };
            Some((at, base.priority.0, table, chain, base.kind, base.policy))
        })
        .collect();
    chains.sort_by_key(|(at, own, ..)| (*at, *own));
    let mut walk = Walk {
        surroundings,
        at: 0,
        out: Walked { fate: Fate::Accept, packet, translation: None, logged: vec![], path: vec![] },
    };
    for (at, _, table, chain, kind, policy) in chains {
        walk.at = at;
        if kind == ChainKind::Nat && !walk.is_to_be_translated() {
            continue;
        }
        walk.out.fate = match walk.chain(table, chain, 0)? {
            End::Fate(fate) => fate,
            End::Return => match policy {
                Policy::Accept => Fate::Accept,
                Policy::Drop => Fate::Drop,
            },
        };
        if walk.out.fate != Fate::Accept {
            break;
        }
    }
    Ok(walk.out)
}

/// The data of the element that holds a key; `Some(None)` in a set. Keys are as rules load them: fields in the
/// machine's order stay so.
pub fn lookup<'s>(set: &'s Set, key: &Value) -> Option<Option<&'s Datum>> {
    let found = match set.shape() {
        SetShape::Exact => set.elements.get_key_value(&Span { from: key.clone(), to: None }),
        SetShape::Interval => {
            let order = |value: &Value| in_network_order(&set.key, value);
            let key = order(key);
            set.elements.iter().find(|(span, _)| order(&span.from) <= key && key <= order(span.last()))
        }
        SetShape::ConcatInterval => {
            let key = in_network_order(&set.key, key);
            set.elements.iter().find(|(span, _)| {
                let (from, to) =
                    (in_network_order(&set.key, &span.from), in_network_order(&set.key, span.last()));
                each_part(&set.key.0).all(|part| {
                    let of = |value: &'_ Value| value.as_bytes().get(part.clone()).map(<[u8]>::to_vec);
                    of(&from) <= of(&key) && of(&key) <= of(&to)
                })
            })
        }
    };
    found.map(|(_, data)| data.as_ref())
}

/// Where the parts of a concatenation lie.
pub(crate) fn each_part(key: &[DataType]) -> impl Iterator<Item = std::ops::Range<usize>> + '_ {
    key.iter().scan(0, |at, part| {
        let start = *at;
        *at += part.padded();
        Some(start..*at)
    })
}

/// Where the kernel asks all nat chains of a hook (`NF_IP_PRI_NAT_DST`, `NF_IP_PRI_NAT_SRC`).
fn nat_priority(hook: Hook) -> i32 {
    match hook {
        Hook::Prerouting | Hook::Output | Hook::Forward => -100,
        Hook::Postrouting | Hook::Input => 100,
    }
}

/// How a chain ended.
enum End {
    Fate(Fate),
    Return,
}

/// How a statement ended.
enum Step {
    Next,
    Break,
    Verdict(Verdict),
    Fate(Fate),
}

struct Walk<'w> {
    surroundings: &'w dyn Surroundings,
    /// Priority of the base chain.
    at: i32,
    out: Walked,
}

/// Where a statement stands.
#[derive(Clone, Copy)]
struct Here<'t> {
    table: &'t TableState,
    chain: &'t Chain,
    rule: usize,
}

impl Here<'_> {
    fn place(&self) -> Place {
        Place { table: self.table.id.clone(), chain: self.chain.name.clone(), rule: self.rule }
    }

    fn missing(&self, name: &Name) -> EvalError {
        EvalError::Missing { place: self.place(), name: name.clone() }
    }
}

impl Walk<'_> {
    /// Whether nat chains are asked: a first packet whose translation is not decided yet.
    fn is_to_be_translated(&self) -> bool {
        let first = |entry: &Entry| {
            entry.status & ct_status::CONFIRMED == 0 && entry.state & (ct_state::NEW | ct_state::RELATED) != 0
        };
        self.out.translation.is_none() && self.out.packet.connection.entry().is_some_and(first)
    }

    fn chain(&mut self, table: &TableState, chain: &Chain, depth: usize) -> Result<End, EvalError> {
        'rules: for (number, rule) in chain.rules.iter().enumerate() {
            let here = Here { table, chain, rule: number };
            let mut verdict = Verdict::Continue;
            for expr in &rule.exprs {
                match self.step(here, expr)? {
                    Step::Next => {}
                    Step::Break => continue 'rules,
                    Step::Verdict(found) => {
                        verdict = found;
                        break;
                    }
                    Step::Fate(fate) => {
                        self.out.path.push(here.place());
                        return Ok(End::Fate(fate));
                    }
                }
            }
            self.out.path.push(here.place());
            match verdict {
                Verdict::Continue => {}
                Verdict::Accept => return Ok(End::Fate(Fate::Accept)),
                Verdict::Drop => return Ok(End::Fate(Fate::Drop)),
                Verdict::Return => return Ok(End::Return),
                Verdict::Jump(to) => {
                    if let End::Fate(fate) = self.enter(here, &to, depth)? {
                        return Ok(End::Fate(fate));
                    }
                }
                Verdict::Goto(to) => return self.enter(here, &to, depth),
            }
        }
        Ok(End::Return)
    }

    fn enter(&mut self, here: Here<'_>, to: &Name, depth: usize) -> Result<End, EvalError> {
        if depth + 1 >= JUMPS_MAX {
            return Err(EvalError::TooDeep { place: here.place() });
        }
        let chain = here.table.chain(to).ok_or_else(|| here.missing(to))?;
        self.chain(here.table, chain, depth + 1)
    }

    fn step(&mut self, here: Here<'_>, expr: &Expr) -> Result<Step, EvalError> {
        Ok(match expr {
            Expr::Cmp { field, op, value } => {
                let Some(found) = self.load(here, *field)? else { return Ok(Step::Break) };
                // A name's beginning is compared as far as it goes.
                let len = value.as_bytes().len();
                matched(found.as_bytes().get(..len) == Some(value.as_bytes()), *op)
            }
            Expr::Range { field, op, from, to } => {
                let Some(found) = self.load(here, *field)? else { return Ok(Step::Break) };
                matched(*from <= found && found <= *to, *op)
            }
            Expr::Masked { field, mask, op, value } => {
                let Some(found) = self.load(here, *field)? else { return Ok(Step::Break) };
                let masked = found.as_bytes().iter().zip(mask.as_bytes()).map(|(a, b)| a & b);
                matched(masked.eq(value.as_bytes().iter().copied()), *op)
            }
            Expr::Lookup { key, op, set } => {
                let Some(key) = self.key(here, key)? else { return Ok(Step::Break) };
                let set = here.table.set(set).ok_or_else(|| here.missing(set))?;
                matched(lookup(set, &key).is_some(), *op)
            }
            Expr::VerdictMap { key, map } => {
                let Some(key) = self.key(here, key)? else { return Ok(Step::Break) };
                let set = here.table.set(map).ok_or_else(|| here.missing(map))?;
                match lookup(set, &key) {
                    None => Step::Break,
                    Some(Some(Datum::Verdict(verdict))) => Step::Verdict(verdict.clone()),
                    Some(_) => return Err(EvalError::Data { place: here.place(), name: map.clone() }),
                }
            }
            Expr::Set { target, source } => {
                let Some(number) = self.source(here, source)? else { return Ok(Step::Break) };
                self.write(*target, number);
                Step::Next
            }
            Expr::Counter => Step::Next,
            Expr::Limit { .. } if self.surroundings.is_under_limit() => Step::Next,
            Expr::Limit { .. } => Step::Break,
            Expr::Log(log) => {
                self.out.logged.push(log.clone());
                Step::Next
            }
            Expr::Verdict(verdict) => Step::Verdict(verdict.clone()),
            Expr::Reject(how) => Step::Fate(Fate::Reject(*how)),
            Expr::Masquerade { fully_random } => {
                self.out.translation = Some(Translation::Masquerade { fully_random: *fully_random });
                Step::Fate(Fate::Accept)
            }
            Expr::Dnat { key, map, .. } => {
                let Some(key) = self.key(here, key)? else { return Ok(Step::Break) };
                let set = here.table.set(map).ok_or_else(|| here.missing(map))?;
                let Some(data) = lookup(set, &key) else { return Ok(Step::Break) };
                let wrong = || EvalError::Data { place: here.place(), name: map.clone() };
                self.out.translation = Some(destination(data).ok_or_else(wrong)?);
                Step::Fate(Fate::Accept)
            }
            Expr::DnatTo(to) => {
                self.out.translation = Some(Translation::Destination { address: to.ip(), port: to.port() });
                Step::Fate(Fate::Accept)
            }
            Expr::Notrack => {
                // Nothing but a packet whose connection was not looked up yet can be taken out.
                if self.at <= CONNTRACK {
                    self.out.packet.connection = Connection::Untracked;
                }
                Step::Next
            }
        })
    }

    /// The number that a `set` statement writes; none: the rule ends.
    fn source(&self, here: Here<'_>, source: &Source) -> Result<Option<u32>, EvalError> {
        Ok(match source {
            Source::Const(number) => Some(*number),
            Source::Map { key, map } => {
                let Some(key) = self.key(here, key)? else { return Ok(None) };
                let set = here.table.set(map).ok_or_else(|| here.missing(map))?;
                match lookup(set, &key) {
                    None => None,
                    Some(data) => {
                        let number = match data {
                            Some(Datum::Value(value)) => value.to_u32(),
                            Some(Datum::Verdict(_)) | None => None,
                        };
                        let wrong = || EvalError::Data { place: here.place(), name: map.clone() };
                        Some(number.ok_or_else(wrong)?)
                    }
                }
            }
            Source::Bits { field, mask, xor } => {
                self.load(here, *field)?.and_then(|value| value.to_u32()).map(|found| (found & mask) ^ xor)
            }
        })
    }

    fn write(&mut self, target: Target, number: u32) {
        let tracked = self.at > CONNTRACK;
        let packet = &mut self.out.packet;
        match (target, &mut packet.connection) {
            (Target::Priority, _) => packet.priority = number,
            (Target::Mark, _) => packet.mark = number,
            (Target::CtMark, Connection::Tracked(entry)) if tracked => entry.mark = number,
            (Target::CtMark, _) => {}
        }
    }

    fn key(&self, here: Here<'_>, fields: &[Field]) -> Result<Option<Value>, EvalError> {
        let mut parts = Vec::with_capacity(fields.len());
        for field in fields {
            let Some(part) = self.load(here, *field)? else { return Ok(None) };
            parts.push(part);
        }
        Ok(Some(match <[Value; 1]>::try_from(parts) {
            Ok([one]) => one,
            Err(parts) => Value::concat(parts),
        }))
    }

    /// What connection tracking has said by now.
    fn connection(&self) -> Connection {
        match self.out.packet.connection {
            Connection::Tracked(_) if self.at <= CONNTRACK => Connection::Invalid,
            found => found,
        }
    }

    /// What a field yields; none: the rule ends.
    fn load(&self, here: Here<'_>, field: Field) -> Result<Option<Value>, EvalError> {
        let packet = &self.out.packet;
        let v6 = packet.source.is_ipv6();
        let name = |device: &Option<Device>| Value::ifname(device.as_ref().map_or("", |d| &d.name));
        let index = |device: &Option<Device>| Value::from(device.as_ref().map_or(0, |d| d.index));
        let group = |device: &Option<Device>| device.as_ref().map(|d| Value::from(d.group));
        let bytes = |range: std::ops::Range<usize>| packet.transport.get(range).map(Value::from_bytes);
        Ok(match field {
            Field::Iif => Some(index(&packet.input)),
            Field::Oif => Some(index(&packet.output)),
            Field::IifName => Some(name(&packet.input)),
            Field::OifName => Some(name(&packet.output)),
            Field::IifGroup => group(&packet.input),
            Field::OifGroup => group(&packet.output),
            Field::NfProto => Some(if v6 { NFPROTO_IPV6 } else { NFPROTO_IPV4 }.into()),
            Field::L4Proto => Some(packet.protocol.into()),
            Field::Priority => Some(packet.priority.into()),
            Field::Mark => Some(packet.mark.into()),
            Field::IpSaddr if !v6 => Some(packet.source.into()),
            Field::IpDaddr if !v6 => Some(packet.destination.into()),
            Field::Ip6Saddr if v6 => Some(packet.source.into()),
            Field::Ip6Daddr if v6 => Some(packet.destination.into()),
            Field::IpSaddr | Field::IpDaddr | Field::Ip6Saddr | Field::Ip6Daddr => {
                return Err(EvalError::Unasked { place: here.place(), field });
            }
            Field::IcmpType | Field::Icmpv6Type => bytes(0..1),
            Field::ThSport => bytes(0..2),
            Field::ThDport => bytes(2..4),
            Field::CtState => Some(self.connection().state().into()),
            Field::CtStatus => self.connection().entry().map(|entry| entry.status.into()),
            Field::CtMark => self.connection().entry().map(|entry| entry.mark.into()),
            Field::FibSaddrIif => packet
                .input
                .as_ref()
                .map(|input| u8::from(self.surroundings.comes_back(packet.source, input)).into()),
            Field::FibSaddrType => Some(self.surroundings.address_type(packet.source).into()),
            Field::FibDaddrType => Some(self.surroundings.address_type(packet.destination).into()),
        })
    }
}

/// The address and port that an element holds.
fn destination(data: Option<&Datum>) -> Option<Translation> {
    let Some(Datum::Value(value)) = data else { return None };
    let bytes = value.as_bytes();
    // Parts are padded to four bytes.
    let (address, rest): (IpAddr, &[u8]) = match bytes.len() {
        8 => (bytes.first_chunk::<4>().map(|b| (*b).into())?, bytes.get(4..)?),
        20 => (bytes.first_chunk::<16>().map(|b| (*b).into())?, bytes.get(16..)?),
        _ => return None,
    };
    Some(Translation::Destination { address, port: rest.first_chunk::<2>().map(|b| u16::from_be_bytes(*b))? })
}

fn matched(yes: bool, op: CmpOp) -> Step {
    if yes == (op == CmpOp::Eq) { Step::Next } else { Step::Break }
}

#[cfg(test)]
mod tests;
