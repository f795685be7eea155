//! Builders that let a table read like the rules it holds.
//!
//! ```
//! use podway_nft::{ChainKind, Chain, Field, Hook, Name, Policy, Priority, Rule, Verdict};
//! const POLICY: Name = Name::literal("policy");
//! let forward = Chain::base(Name::literal("forward"), ChainKind::Filter, Hook::Forward, Priority::FILTER, Policy::Accept)
//!     .rule(Rule::new("replies").any_bit(Field::CtState, 0x6).verdict(Verdict::Accept))
//!     .rule(Rule::new("to a pod").is(Field::OifGroup, 112u32).counter().verdict(Verdict::Jump(POLICY)));
//! assert_eq!(forward.rules.len(), 2);
//! ```

use ipnet::IpNet;

use crate::expr::{CmpOp, Expr, Field, Log, Reject, Source, Target, Verdict};
use crate::name::Name;
use crate::object::{BaseChain, COMMENT_MAX, Chain, ChainKind, Family, Hook, Policy, Priority, Rule, Span};
use crate::value::Value;

impl Chain {
    /// A chain that is reached by jumps.
    pub fn regular(name: Name) -> Self {
        Self { name, base: None, rules: Vec::new() }
    }

    /// A chain at a hook.
    pub fn base(name: Name, kind: ChainKind, hook: Hook, priority: Priority, policy: Policy) -> Self {
        Self { name, base: Some(BaseChain { kind, hook, priority, policy }), rules: Vec::new() }
    }

    /// The same with one more rule at its end.
    pub fn rule(mut self, rule: Rule) -> Self {
        self.rules.push(rule);
        self
    }
}

impl Rule {
    /// An empty rule. Of the comment, what `nft` could not show is left out: quotes, control characters, and
    /// everything beyond [`COMMENT_MAX`] bytes.
    pub fn new(comment: &str) -> Self {
        Self { comment: printable(comment, COMMENT_MAX), exprs: Vec::new() }
    }

    /// The same with one more statement.
    pub fn with(mut self, expr: Expr) -> Self {
        self.exprs.push(expr);
        self
    }

    /// `FIELD VALUE`.
    pub fn is(self, field: Field, value: impl Into<Value>) -> Self {
        self.with(Expr::Cmp { field, op: CmpOp::Eq, value: value.into() })
    }

    /// `FIELD != VALUE`.
    pub fn is_not(self, field: Field, value: impl Into<Value>) -> Self {
        self.with(Expr::Cmp { field, op: CmpOp::Ne, value: value.into() })
    }

    /// `FIELD FROM-TO`, both included.
    pub fn within(self, field: Field, from: impl Into<Value>, to: impl Into<Value>) -> Self {
        self.with(Expr::Range { field, op: CmpOp::Eq, from: from.into(), to: to.into() })
    }

    /// An address field inside a prefix.
    pub fn in_net(self, field: Field, net: IpNet) -> Self {
        self.with(masked_net(field, net, CmpOp::Eq))
    }

    /// An address field outside of a prefix.
    pub fn not_in_net(self, field: Field, net: IpNet) -> Self {
        self.with(masked_net(field, net, CmpOp::Ne))
    }

    /// `FIELD BIT,BIT`: at least one of these bits, for `ct state` and `ct status`.
    pub fn any_bit(self, field: Field, bits: u32) -> Self {
        self.with(Expr::Masked { field, mask: bits.into(), op: CmpOp::Ne, value: 0u32.into() })
    }

    /// `FIELD . FIELD @SET`.
    pub fn in_set(self, key: impl Into<Vec<Field>>, set: Name) -> Self {
        self.with(Expr::Lookup { key: key.into(), op: CmpOp::Eq, set })
    }

    /// `FIELD . FIELD != @SET`.
    pub fn not_in_set(self, key: impl Into<Vec<Field>>, set: Name) -> Self {
        self.with(Expr::Lookup { key: key.into(), op: CmpOp::Ne, set })
    }

    /// `FIELD . FIELD vmap @MAP`.
    pub fn verdict_map(self, key: impl Into<Vec<Field>>, map: Name) -> Self {
        self.with(Expr::VerdictMap { key: key.into(), map })
    }

    /// `TARGET set FIELD . FIELD map @MAP`: without an element the rule ends here.
    pub fn set_from_map(self, target: Target, key: impl Into<Vec<Field>>, map: Name) -> Self {
        self.with(Expr::Set { target, source: Source::Map { key: key.into(), map } })
    }

    /// `TARGET set NUMBER`.
    pub fn set(self, target: Target, number: u32) -> Self {
        self.with(Expr::Set { target, source: Source::Const(number) })
    }

    /// `TARGET set TARGET | bits`.
    pub fn set_bits(self, target: Target, bits: u32) -> Self {
        let source = Source::Bits { field: target.field(), mask: !bits, xor: bits };
        self.with(Expr::Set { target, source })
    }

    /// `counter`.
    pub fn counter(self) -> Self {
        self.with(Expr::Counter)
    }

    /// `limit rate N/second burst M packets`.
    pub fn limit(self, per_second: u32, burst: u32) -> Self {
        self.with(Expr::Limit { per_second, burst })
    }

    /// `log prefix "..." group N`.
    pub fn log(self, prefix: &str, group: Option<u16>) -> Self {
        self.with(Expr::Log(Log { prefix: printable(prefix, COMMENT_MAX), group }))
    }

    /// A verdict.
    pub fn verdict(self, verdict: Verdict) -> Self {
        self.with(Expr::Verdict(verdict))
    }

    /// `accept`.
    pub fn accept(self) -> Self {
        self.verdict(Verdict::Accept)
    }

    /// `drop`.
    pub fn drop(self) -> Self {
        self.verdict(Verdict::Drop)
    }

    /// `jump CHAIN`.
    pub fn jump(self, chain: Name) -> Self {
        self.verdict(Verdict::Jump(chain))
    }

    /// `reject`.
    pub fn reject(self, how: Reject) -> Self {
        self.with(Expr::Reject(how))
    }

    /// `masquerade fully-random`.
    pub fn masquerade(self) -> Self {
        self.with(Expr::Masquerade { fully_random: true })
    }

    /// `dnat FAMILY to FIELD . FIELD map @MAP`.
    pub fn dnat_from_map(self, family: Family, key: impl Into<Vec<Field>>, map: Name) -> Self {
        self.with(Expr::Dnat { family, key: key.into(), map })
    }

    /// `dnat to ADDRESS:PORT`.
    pub fn dnat_to(self, to: std::net::SocketAddr) -> Self {
        self.with(Expr::DnatTo(to))
    }

    /// `notrack`.
    pub fn notrack(self) -> Self {
        self.with(Expr::Notrack)
    }
}

impl Span {
    /// A range of keys, both ends included.
    pub fn range(from: impl Into<Value>, to: impl Into<Value>) -> Self {
        let from = from.into();
        let to = Some(to.into()).filter(|to| *to != from);
        Self { from, to }
    }

    /// All addresses of a prefix, for sets of shape [`crate::SetShape::Interval`].
    pub fn net(net: IpNet) -> Self {
        Self::range(net.network(), net.broadcast())
    }
}

fn masked_net(field: Field, net: IpNet, op: CmpOp) -> Expr {
    Expr::Masked { field, mask: net.netmask().into(), op, value: net.network().into() }
}

/// The text without what cannot stand inside quotes in nft's language, cut at a character's end.
fn printable(text: &str, max: usize) -> String {
    let mut out = String::new();
    for c in text.chars().filter(|c| *c != '"' && !c.is_control()) {
        if out.len() + c.len_utf8() > max {
            break;
        }
        out.push(c);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_are_cut_to_what_nft_can_show() {
        assert_eq!(Rule::new("say \"hi\"\n").comment, "say hi");
        assert_eq!(Rule::new(&"ä".repeat(100)).comment.len(), COMMENT_MAX - 1);
    }
}
