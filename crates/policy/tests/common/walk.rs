//! Walks the first packet of a flow through a table, as the kernel would: judge of what was lowered.
//!
//! Knows the statements that the policy table uses; anything else is a test failure. The packet belongs to a new,
//! unconfirmed connection, or (`tracked: false`) to none.

use std::net::IpAddr;

use podway_model::k8s::Protocol;
use podway_model::names::POD_GROUP;
use podway_nft::{
    Chain, CmpOp, Datum, Expr, Field, Hook, NFPROTO_IPV4, NFPROTO_IPV6, Policy, Set, SetShape, Source, Span,
    TableState, Target, Value, Verdict, ct_state,
};
use podway_policy::oracle::Traffic;

/// A packet at a hook.
#[derive(Debug, Clone)]
pub struct Packet {
    pub hook: Hook,
    /// Name of the input interface, if it came in by one; pods' begin with `pw`.
    pub iif: Option<String>,
    pub oif: Option<String>,
    pub source: IpAddr,
    pub destination: IpAddr,
    pub traffic: Traffic,
    /// Type of an ICMP message.
    pub icmp_type: u8,
    pub tracked: Tracked,
}

/// What connection tracking says of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tracked {
    New,
    Invalid,
    Untracked,
}

enum End {
    Accept,
    Drop,
    Return,
}

struct Walk<'a> {
    table: &'a TableState,
    packet: &'a Packet,
    priority: u32,
    mark: u32,
}

/// Whether a table lets a packet pass. Scratch must be cleared where it does.
pub fn passes(table: &TableState, packet: &Packet) -> bool {
    let mut walk = Walk { table, packet, priority: 0, mark: 0 };
    let chains = table.chains.iter().filter_map(|chain| Some((chain, chain.base?)));
    for (chain, base) in chains.filter(|(_, base)| base.hook == packet.hook) {
        let drops = match walk.chain(chain) {
            End::Drop => true,
            End::Accept => false,
            End::Return => base.policy == Policy::Drop,
        };
        if drops {
            return false;
        }
    }
    assert_eq!((walk.priority, walk.mark), (0, 0), "scratch is left behind: {packet:?}");
    true
}

impl Walk<'_> {
    fn chain(&mut self, chain: &Chain) -> End {
        'rules: for rule in &chain.rules {
            for expr in &rule.exprs {
                match self.expr(expr) {
                    Step::Next => {}
                    Step::Break => continue 'rules,
                    Step::Verdict(Verdict::Accept) => return End::Accept,
                    Step::Verdict(Verdict::Drop) => return End::Drop,
                    Step::Verdict(Verdict::Return) => return End::Return,
                    Step::Verdict(Verdict::Continue) => continue 'rules,
                    Step::Verdict(Verdict::Goto(to)) => return self.chain(self.table.chain(&to).unwrap()),
                    Step::Verdict(Verdict::Jump(to)) => match self.chain(self.table.chain(&to).unwrap()) {
                        End::Return => continue 'rules,
                        end => return end,
                    },
                }
            }
        }
        End::Return
    }

    fn expr(&mut self, expr: &Expr) -> Step {
        match expr {
            Expr::Cmp { field, op, value } => {
                let Some(found) = self.load(*field) else { return Step::Break };
                matched((found == *value) == (*op == CmpOp::Eq))
            }
            Expr::Range { field, op, from, to } => {
                let Some(found) = self.load(*field) else { return Step::Break };
                matched((*from <= found && found <= *to) == (*op == CmpOp::Eq))
            }
            Expr::Masked { field, mask, op, value } => {
                let Some(found) = self.load(*field) else { return Step::Break };
                let masked: Vec<u8> =
                    found.as_bytes().iter().zip(mask.as_bytes()).map(|(a, b)| a & b).collect();
                matched((masked == value.as_bytes()) == (*op == CmpOp::Eq))
            }
            Expr::Lookup { key, op, set } => {
                let Some(key) = self.key(key) else { return Step::Break };
                let there = find(self.table.set(set).unwrap(), &key).is_some();
                matched(there == (*op == CmpOp::Eq))
            }
            Expr::Set { target, source } => {
                let value = match source {
                    Source::Const(value) => *value,
                    Source::Map { key, map } => {
                        let Some(key) = self.key(key) else { return Step::Break };
                        match find(self.table.set(map).unwrap(), &key) {
                            Some(Some(Datum::Value(value))) => value.to_u32().unwrap(),
                            None => return Step::Break,
                            Some(other) => panic!("no number: {other:?}"),
                        }
                    }
                    other => panic!("not used: {other:?}"),
                };
                match target {
                    Target::Priority => self.priority = value,
                    // Without a connection there is nothing to write to, and nothing is said about it.
                    Target::CtMark if self.packet.tracked == Tracked::New => self.mark = value,
                    Target::CtMark => {}
                    Target::Mark => panic!("the packet mark is kube-proxy's"),
                }
                Step::Next
            }
            Expr::Counter => Step::Next,
            Expr::Verdict(verdict) => Step::Verdict(verdict.clone()),
            other => panic!("not used: {other:?}"),
        }
    }

    fn key(&self, fields: &[Field]) -> Option<Value> {
        let parts: Vec<Value> = fields.iter().map(|field| self.load(*field)).collect::<Option<_>>()?;
        match <[Value; 1]>::try_from(parts) {
            Ok([one]) => Some(one),
            Err(parts) => Some(Value::concat(parts)),
        }
    }

    /// What a field yields; none: the rule ends.
    fn load(&self, field: Field) -> Option<Value> {
        let packet = self.packet;
        let v6 = packet.source.is_ipv6();
        let group = |name: &Option<String>| {
            Some(Value::from(if name.as_ref()?.starts_with("pw") { POD_GROUP } else { 0 }))
        };
        let name = |name: &Option<String>| Some(Value::ifname(name.as_ref()?));
        Some(match field {
            Field::IifName => name(&packet.iif)?,
            Field::OifName => name(&packet.oif)?,
            Field::IifGroup => group(&packet.iif)?,
            Field::OifGroup => group(&packet.oif)?,
            Field::NfProto => if v6 { NFPROTO_IPV6 } else { NFPROTO_IPV4 }.into(),
            Field::L4Proto => match packet.traffic {
                Traffic::Port(protocol, _) => protocol.number(),
                Traffic::Other(number) => number,
            }
            .into(),
            Field::ThDport => match packet.traffic {
                Traffic::Port(_, port) => port,
                // Two bytes of whatever stands there.
                Traffic::Other(_) => 80,
            }
            .into(),
            Field::Priority => self.priority.into(),
            Field::CtMark => (packet.tracked == Tracked::New).then_some(self.mark)?.into(),
            Field::CtState => match packet.tracked {
                Tracked::New => ct_state::NEW,
                Tracked::Invalid => ct_state::INVALID,
                Tracked::Untracked => ct_state::UNTRACKED,
            }
            .into(),
            Field::CtStatus => (packet.tracked == Tracked::New).then_some(0_u32)?.into(),
            // nft asks for the protocol first, so bytes of the other family are never compared.
            Field::IpSaddr if !v6 => packet.source.into(),
            Field::IpDaddr if !v6 => packet.destination.into(),
            Field::Ip6Saddr if v6 => packet.source.into(),
            Field::Ip6Daddr if v6 => packet.destination.into(),
            Field::IcmpType | Field::Icmpv6Type => packet.icmp_type.into(),
            other => panic!("{other:?} without asking for the protocol, or not used"),
        })
    }
}

enum Step {
    Next,
    Break,
    Verdict(Verdict),
}

fn matched(yes: bool) -> Step {
    if yes { Step::Next } else { Step::Break }
}

/// The data of the element that holds a key.
fn find(set: &Set, key: &Value) -> Option<Option<Datum>> {
    let holds = |span: &Span| match set.shape() {
        SetShape::Exact => {
            assert!(span.to.is_none(), "{}: a range in a set of single keys", set.name);
            span.from == *key
        }
        SetShape::Interval => span.from <= *key && key <= span.last(),
        // Each field for itself; numbers in the machine's order are exact, so bytes can be compared.
        SetShape::ConcatInterval => {
            let mut at = 0;
            set.key.0.iter().all(|part| {
                let field = at..at + part.padded();
                at = field.end;
                let of = |value: &Value| value.as_bytes()[field.clone()].to_vec();
                of(&span.from) <= of(key) && of(key) <= of(span.last())
            })
        }
    };
    set.elements.iter().find(|(span, _)| holds(span)).map(|(_, data)| data.clone())
}

/// An ordinary packet of this traffic.
pub fn echo_type(traffic: Traffic) -> u8 {
    match traffic {
        Traffic::Other(58) => 128,
        Traffic::Other(_) => 8,
        Traffic::Port(Protocol::Tcp | Protocol::Udp | Protocol::Sctp, _) => 0,
    }
}
