//! The text form: what `nft list table` prints, for golden files and people. Spacing inside sets is ours (one
//! element to a line); everything else is nft's, and nft can read it back.

use std::fmt::{self, Write as _};
use std::net::{Ipv4Addr, Ipv6Addr};

use crate::expr::{
    CmpOp, Expr, Field, NFPROTO_IPV4, NFPROTO_IPV6, Reject, Source, Target, Verdict, ct_state, ct_status,
    fib_type,
};
use crate::object::{
    BaseChain, Chain, ChainKind, Datum, Hook, MapData, Policy, Priority, Rule, Set, Span, TableState,
};
use crate::value::{DataType, Value};

impl fmt::Display for TableState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "table {} {{", self.id)?;
        let flags: Vec<&str> = [(self.flags.owner, "owner"), (self.flags.persist, "persist")]
            .into_iter()
            .filter_map(|(on, name)| on.then_some(name))
            .collect();
        let mut first = flags.is_empty();
        if !first {
            writeln!(f, "\tflags {}", flags.join(","))?;
        }
        for set in &self.sets {
            blank(f, &mut first)?;
            write!(f, "{set}")?;
        }
        for chain in &self.chains {
            blank(f, &mut first)?;
            write!(f, "{chain}")?;
        }
        writeln!(f, "}}")
    }
}

fn blank(f: &mut fmt::Formatter<'_>, first: &mut bool) -> fmt::Result {
    if std::mem::take(first) { Ok(()) } else { f.write_char('\n') }
}

impl fmt::Display for Set {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "\t{} {} {{", if self.data.is_some() { "map" } else { "set" }, self.name)?;
        let key: Vec<&str> = self.key.0.iter().map(|part| type_name(*part)).collect();
        write!(f, "\t\ttype {}", key.join(" . "))?;
        match self.data {
            Some(MapData::Value(kind)) => write!(f, " : {}", type_name(kind))?,
            Some(MapData::Pair(first, second)) => {
                write!(f, " : {} . {}", type_name(first), type_name(second))?;
            }
            Some(MapData::Verdict) => f.write_str(" : verdict")?,
            None => {}
        }
        f.write_char('\n')?;
        match (self.constant, self.interval) {
            (true, true) => writeln!(f, "\t\tflags constant,interval")?,
            (true, false) => writeln!(f, "\t\tflags constant")?,
            (false, true) => writeln!(f, "\t\tflags interval")?,
            (false, false) => {}
        }
        let elements: Vec<String> =
            self.elements.iter().map(|(span, data)| self.element(span, data.as_ref())).collect();
        if !elements.is_empty() {
            writeln!(f, "\t\telements = {{ {} }}", elements.join(",\n\t\t\t     "))?;
        }
        writeln!(f, "\t}}")
    }
}

impl Set {
    /// One element as `nft` writes it.
    fn element(&self, span: &Span, data: Option<&Datum>) -> String {
        let mut text = span_text(&self.key.0, span);
        match (data, self.data) {
            (Some(Datum::Value(value)), Some(MapData::Value(kind))) => {
                text.push_str(" : ");
                text.push_str(&value_text(kind, value.as_bytes()));
            }
            (Some(Datum::Value(value)), Some(MapData::Pair(first, second))) => {
                let span = Span { from: value.clone(), to: None };
                let _ = write!(text, " : {}", span_text(&[first, second], &span));
            }
            (Some(Datum::Value(value)), _) => {
                let _ = write!(text, " : {}", hex(value.as_bytes()));
            }
            (Some(Datum::Verdict(verdict)), _) => {
                let _ = write!(text, " : {verdict}");
            }
            (None, _) => {}
        }
        text
    }
}

impl fmt::Display for Chain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "\tchain {} {{", self.name)?;
        if let Some(base) = &self.base {
            writeln!(f, "\t\t{base}")?;
        }
        for rule in &self.rules {
            writeln!(f, "\t\t{rule}")?;
        }
        writeln!(f, "\t}}")
    }
}

impl fmt::Display for BaseChain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            ChainKind::Filter => "filter",
            ChainKind::Nat => "nat",
        };
        let policy = match self.policy {
            Policy::Accept => "accept",
            Policy::Drop => "drop",
        };
        let priority = priority_text(self.hook, self.priority);
        write!(f, "type {kind} hook {} priority {priority}; policy {policy};", self.hook)
    }
}

impl fmt::Display for Hook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Prerouting => "prerouting",
            Self::Input => "input",
            Self::Forward => "forward",
            Self::Output => "output",
            Self::Postrouting => "postrouting",
        })
    }
}

/// nft names a priority by the nearest standard one of the hook, if it is at most 10 away.
fn priority_text(hook: Hook, priority: Priority) -> String {
    let standard = [
        (Priority::RAW, "raw", true),
        (Priority::MANGLE, "mangle", true),
        (Priority::DSTNAT, "dstnat", hook == Hook::Prerouting),
        (Priority::FILTER, "filter", true),
        (Priority::SECURITY, "security", true),
        (Priority::SRCNAT, "srcnat", hook == Hook::Postrouting),
    ];
    for (at, name, applies) in standard {
        let offset = i64::from(priority.0) - i64::from(at.0);
        match offset {
            0 if applies => return name.to_owned(),
            1..=10 if applies => return format!("{name} + {offset}"),
            -10..=-1 if applies => return format!("{name} - {}", -offset),
            _ => {}
        }
    }
    priority.0.to_string()
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut words = Vec::new();
        let implied = implied(&self.exprs);
        for (at, expr) in self.exprs.iter().enumerate() {
            if !implied.contains(&at) {
                words.push(statement(expr, transport(&self.exprs, at)));
            }
        }
        f.write_str(&words.join(" "))?;
        if self.comment.is_empty() { Ok(()) } else { write!(f, " comment \"{}\"", self.comment) }
    }
}

/// Statements that nft does not print because a later field implies them: `meta nfproto ipv4` before `ip saddr`,
/// `meta l4proto tcp` before a port, both before an ICMP type.
fn implied(exprs: &[Expr]) -> Vec<usize> {
    let mut implied = Vec::new();
    /// Place of the statement that asks for a protocol, and the protocol.
    type Asked = Option<(usize, u8)>;
    let (mut network, mut transport): (Asked, Asked) = (None, None);
    for (at, expr) in exprs.iter().enumerate() {
        match asked_protocol(expr) {
            Some((Field::NfProto, protocol)) => network = Some((at, protocol)),
            Some((_, protocol)) => transport = Some((at, protocol)),
            None => {}
        }
        let key = match expr {
            Expr::Cmp { field, .. } | Expr::Range { field, .. } | Expr::Masked { field, .. } => {
                std::slice::from_ref(field)
            }
            Expr::Lookup { key, .. }
            | Expr::VerdictMap { key, .. }
            | Expr::Set { source: Source::Map { key, .. }, .. }
            | Expr::Dnat { key, .. } => key,
            _ => &[],
        };
        for field in key {
            match (*field, network, transport) {
                (Field::IpSaddr | Field::IpDaddr, Some((dependency, NFPROTO_IPV4)), _)
                | (Field::Ip6Saddr | Field::Ip6Daddr, Some((dependency, NFPROTO_IPV6)), _) => {
                    implied.push(dependency);
                }
                (Field::IcmpType, n, Some((dependency, 1))) => {
                    implied.push(dependency);
                    implied.extend(n.filter(|(_, protocol)| *protocol == NFPROTO_IPV4).map(|(at, _)| at));
                }
                (Field::Icmpv6Type, n, Some((dependency, 58))) => {
                    implied.push(dependency);
                    implied.extend(n.filter(|(_, protocol)| *protocol == NFPROTO_IPV6).map(|(at, _)| at));
                }
                (Field::ThSport | Field::ThDport, _, Some((dependency, protocol)))
                    if port_protocol(protocol).is_some() && key.len() == 1 =>
                {
                    implied.push(dependency);
                }
                _ => {}
            }
        }
    }
    implied
}

/// The protocol that a statement asks for, and the field that it asks.
fn asked_protocol(expr: &Expr) -> Option<(Field, u8)> {
    match expr {
        Expr::Cmp { field: field @ (Field::NfProto | Field::L4Proto), op: CmpOp::Eq, value } => {
            Some((*field, *value.as_bytes().first()?))
        }
        _ => None,
    }
}

/// nft's word for ports of that protocol.
fn port_protocol(protocol: u8) -> Option<&'static str> {
    match protocol {
        6 => Some("tcp"),
        17 => Some("udp"),
        132 => Some("sctp"),
        _ => None,
    }
}

/// The word before `sport` and `dport` in the statement at that place.
fn transport(exprs: &[Expr], at: usize) -> &'static str {
    let before = exprs.get(..at).unwrap_or_default().iter().rev().find_map(asked_transport);
    before.and_then(port_protocol).unwrap_or("th")
}

fn asked_transport(expr: &Expr) -> Option<u8> {
    asked_protocol(expr).filter(|(field, _)| *field == Field::L4Proto).map(|(_, protocol)| protocol)
}

fn statement(expr: &Expr, transport: &str) -> String {
    let not = |op: &CmpOp| if *op == CmpOp::Ne { "!= " } else { "" };
    let one = |field: &Field| field_text(*field, transport);
    let many = |key: &[Field]| match key {
        [field] => field_text(*field, transport),
        key => key.iter().map(|field| field_text(*field, "th")).collect::<Vec<_>>().join(" . "),
    };
    match expr {
        Expr::Cmp { field: Field::FibSaddrIif, op, value } => {
            let missing = (value.as_bytes() == [0]) == (*op == CmpOp::Eq);
            format!("fib saddr . iif oif {}", if missing { "missing" } else { "exists" })
        }
        Expr::Cmp { field, op, value } => {
            format!("{} {}{}", one(field), not(op), value_text(field.data_type(), value.as_bytes()))
        }
        Expr::Range { field, op, from, to } => {
            let kind = field.data_type();
            // nft has no names for the ends of a range.
            let end = |value: &Value| match (kind, value.as_bytes()) {
                (DataType::IcmpType | DataType::Icmpv6Type | DataType::InetProto, [number]) => {
                    number.to_string()
                }
                (_, bytes) => value_text(kind, bytes),
            };
            format!("{} {}{}-{}", one(field), not(op), end(from), end(to))
        }
        Expr::Masked { field, mask, op, value } => masked(&one(field), *field, mask, *op, value),
        Expr::Lookup { key, op, set } => format!("{} {}@{set}", many(key), not(op)),
        Expr::VerdictMap { key, map } => format!("{} vmap @{map}", many(key)),
        Expr::Set { target, source } => {
            let word = match target {
                Target::Priority => "meta priority",
                Target::Mark => "meta mark",
                Target::CtMark => "ct mark",
            };
            let value = match source {
                Source::Const(number) => value_text(target.field().data_type(), &number.to_ne_bytes()),
                Source::Map { key, map } => format!("{} map @{map}", many(key)),
                Source::Bits { field, mask, xor } => bits(&one(field), *mask, *xor),
            };
            format!("{word} set {value}")
        }
        Expr::Counter => "counter packets 0 bytes 0".to_owned(),
        // nft leaves out its own default.
        Expr::Limit { per_second, burst: 5 } => format!("limit rate {per_second}/second"),
        Expr::Limit { per_second, burst } => format!("limit rate {per_second}/second burst {burst} packets"),
        Expr::Log(log) => {
            let mut text = "log".to_owned();
            if !log.prefix.is_empty() {
                let _ = write!(text, " prefix \"{}\"", log.prefix);
            }
            if let Some(group) = log.group {
                let _ = write!(text, " group {group}");
            }
            text
        }
        Expr::Verdict(verdict) => verdict.to_string(),
        Expr::Reject(Reject::PortUnreachable) => "reject".to_owned(),
        Expr::Reject(Reject::AdminProhibited) => "reject with icmpx admin-prohibited".to_owned(),
        Expr::Reject(Reject::TcpReset) => "reject with tcp reset".to_owned(),
        Expr::Masquerade { fully_random: true } => "masquerade fully-random".to_owned(),
        Expr::Masquerade { fully_random: false } => "masquerade".to_owned(),
        Expr::Dnat { family, key, map } => format!("dnat {family} to {} map @{map}", many(key)),
        Expr::DnatTo(to) => format!("dnat to {to}"),
        Expr::Notrack => "notrack".to_owned(),
    }
}

fn masked(word: &str, field: Field, mask: &Value, op: CmpOp, value: &Value) -> String {
    let kind = field.data_type();
    let zero = value.as_bytes().iter().all(|byte| *byte == 0);
    if let (Some(bits), CmpOp::Ne, true) = (mask.to_u32().filter(|_| kind.is_host_order()), op, zero) {
        return format!("{word} {}", value_text(kind, &bits.to_ne_bytes()));
    }
    let not = if op == CmpOp::Ne { "!= " } else { "" };
    match prefix_len(mask.as_bytes()).filter(|_| !kind.is_host_order()) {
        Some(len) => format!("{word} {not}{}/{len}", value_text(kind, value.as_bytes())),
        None => format!(
            "{word} & {} {}{}",
            value_text(kind, mask.as_bytes()),
            if op == CmpOp::Ne { "!= " } else { "== " },
            value_text(kind, value.as_bytes())
        ),
    }
}

/// `FIELD & mask ^ xor` as nft takes it apart: bits that are kept, flipped and set.
fn bits(word: &str, mask: u32, xor: u32) -> String {
    let (flipped, set) = (xor & mask, xor & !mask);
    let kept = mask | set;
    let mut text = word.to_owned();
    if kept != u32::MAX || xor == 0 {
        let _ = write!(text, " & 0x{kept:08x}");
    }
    if flipped != 0 {
        let _ = write!(text, " ^ 0x{flipped:08x}");
    }
    if set != 0 {
        let _ = write!(text, " | 0x{set:08x}");
    }
    text
}

fn field_text(field: Field, transport: &str) -> String {
    match field {
        Field::Iif => "iif".to_owned(),
        Field::IifName => "iifname".to_owned(),
        Field::Oif => "oif".to_owned(),
        Field::OifName => "oifname".to_owned(),
        Field::IifGroup => "iifgroup".to_owned(),
        Field::OifGroup => "oifgroup".to_owned(),
        Field::NfProto => "meta nfproto".to_owned(),
        Field::L4Proto => "meta l4proto".to_owned(),
        Field::Priority => "meta priority".to_owned(),
        Field::Mark => "meta mark".to_owned(),
        Field::IpSaddr => "ip saddr".to_owned(),
        Field::IpDaddr => "ip daddr".to_owned(),
        Field::Ip6Saddr => "ip6 saddr".to_owned(),
        Field::Ip6Daddr => "ip6 daddr".to_owned(),
        Field::IcmpType => "icmp type".to_owned(),
        Field::Icmpv6Type => "icmpv6 type".to_owned(),
        Field::ThSport => format!("{transport} sport"),
        Field::ThDport => format!("{transport} dport"),
        Field::CtState => "ct state".to_owned(),
        Field::CtStatus => "ct status".to_owned(),
        Field::CtMark => "ct mark".to_owned(),
        Field::FibSaddrIif => "fib saddr . iif oif".to_owned(),
        Field::FibSaddrType => "fib saddr type".to_owned(),
        Field::FibDaddrType => "fib daddr type".to_owned(),
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Accept => f.write_str("accept"),
            Self::Drop => f.write_str("drop"),
            Self::Continue => f.write_str("continue"),
            Self::Return => f.write_str("return"),
            Self::Jump(chain) => write!(f, "jump {chain}"),
            Self::Goto(chain) => write!(f, "goto {chain}"),
        }
    }
}

fn type_name(kind: DataType) -> &'static str {
    match kind {
        DataType::Ipv4Addr => "ipv4_addr",
        DataType::Ipv6Addr => "ipv6_addr",
        DataType::InetProto => "inet_proto",
        DataType::InetService => "inet_service",
        DataType::Mark => "mark",
        DataType::IfName => "ifname",
        DataType::IfIndex => "iface_index",
        DataType::ClassId => "classid",
        DataType::DevGroup => "devgroup",
        DataType::NfProto => "nf_proto",
        DataType::IcmpType => "icmp_type",
        DataType::Icmpv6Type => "icmpv6_type",
        DataType::CtState => "ct_state",
        DataType::CtStatus => "ct_status",
        DataType::FibAddrType => "fib_addrtype",
        DataType::Boolean => "boolean",
    }
}

/// A key or range. Ranges of addresses that are a prefix are written as one.
fn span_text(key: &[DataType], span: &Span) -> String {
    let (mut parts, mut at) = (Vec::new(), 0);
    for kind in key {
        let size = kind.size();
        let from = span.from.as_bytes().get(at..at + size).unwrap_or_default();
        let to = span.last().as_bytes().get(at..at + size).unwrap_or_default();
        let text = value_text(*kind, from);
        let prefix = matches!(kind, DataType::Ipv4Addr | DataType::Ipv6Addr).then(|| range_prefix(from, to));
        parts.push(match prefix.flatten() {
            _ if from == to => text,
            Some(len) => format!("{text}/{len}"),
            None => format!("{text}-{}", value_text(*kind, to)),
        });
        at += if key.len() == 1 { size } else { kind.padded() };
    }
    parts.join(" . ")
}

/// Length of the prefix that is exactly this range.
fn range_prefix(from: &[u8], to: &[u8]) -> Option<usize> {
    let differ: Vec<u8> = from.iter().zip(to).map(|(a, b)| !(a ^ b)).collect();
    let len = prefix_len(&differ)?;
    let host_bits = |bytes: &[u8], wanted: u8| {
        bytes.iter().zip(&differ).all(|(byte, mask)| byte & !mask == wanted & !mask)
    };
    (host_bits(from, 0) && host_bits(to, 0xff)).then_some(len)
}

/// Length of a mask whose ones all come first.
fn prefix_len(mask: &[u8]) -> Option<usize> {
    let ones: usize = mask.iter().map(|byte| byte.count_ones() as usize).sum();
    let leading = mask
        .iter()
        .position(|byte| *byte != 0xff)
        .map_or(mask.len() * 8, |at| at * 8 + mask.get(at).map_or(0, |byte| byte.leading_ones() as usize));
    (ones == leading).then_some(leading)
}

fn value_text(kind: DataType, bytes: &[u8]) -> String {
    let number = || bytes.try_into().ok().map(u32::from_ne_bytes);
    let byte = bytes.first().copied().unwrap_or(0);
    let text = match kind {
        DataType::Ipv4Addr => <[u8; 4]>::try_from(bytes).ok().map(|b| Ipv4Addr::from(b).to_string()),
        DataType::Ipv6Addr => <[u8; 16]>::try_from(bytes).ok().map(|b| Ipv6Addr::from(b).to_string()),
        DataType::InetService => bytes.try_into().ok().map(|b| u16::from_be_bytes(b).to_string()),
        DataType::IfName => {
            let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
            let star = if bytes.len() < crate::value::IFNAMSIZ { "*" } else { "" };
            let name = bytes.get(..end).unwrap_or_default();
            Some(format!("\"{}{star}\"", String::from_utf8_lossy(name)))
        }
        DataType::Mark => number().map(|n| format!("0x{n:08x}")),
        DataType::ClassId => number().map(|n| match n {
            0 => "none".to_owned(),
            u32::MAX => "root".to_owned(),
            n => format!("{:x}:{:x}", n >> 16, n & 0xffff),
        }),
        DataType::IfIndex | DataType::DevGroup => number().map(|n| n.to_string()),
        DataType::CtState => number().map(|n| flags(n, &CT_STATES)),
        DataType::CtStatus => number().map(|n| flags(n, &CT_STATUSES)),
        DataType::FibAddrType => number().map(|n| named(n, &FIB_TYPES)),
        DataType::InetProto => Some(named(u32::from(byte), &PROTOCOLS)),
        DataType::NfProto => Some(named(u32::from(byte), &NFPROTOS)),
        DataType::IcmpType => Some(named(u32::from(byte), &ICMP_TYPES)),
        DataType::Icmpv6Type => Some(named(u32::from(byte), &ICMPV6_TYPES)),
        DataType::Boolean => Some(if byte == 0 { "missing" } else { "exists" }.to_owned()),
    };
    text.unwrap_or_else(|| hex(bytes))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold("0x".to_owned(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

type Names = [(u32, &'static str)];

fn named(number: u32, names: &Names) -> String {
    let name = names.iter().find(|(n, _)| *n == number);
    name.map_or_else(|| number.to_string(), |(_, name)| (*name).to_owned())
}

fn flags(bits: u32, names: &Names) -> String {
    let set: Vec<&str> = names.iter().filter(|(bit, _)| bits & bit != 0).map(|(_, name)| *name).collect();
    if set.is_empty() { format!("0x{bits:x}") } else { set.join(",") }
}

const CT_STATES: [(u32, &str); 5] = [
    (ct_state::INVALID, "invalid"),
    (ct_state::ESTABLISHED, "established"),
    (ct_state::RELATED, "related"),
    (ct_state::NEW, "new"),
    (ct_state::UNTRACKED, "untracked"),
];
const CT_STATUSES: [(u32, &str); 6] = [
    (ct_status::EXPECTED, "expected"),
    (ct_status::SEEN_REPLY, "seen-reply"),
    (ct_status::ASSURED, "assured"),
    (ct_status::CONFIRMED, "confirmed"),
    (ct_status::SNAT, "snat"),
    (ct_status::DNAT, "dnat"),
];
const FIB_TYPES: [(u32, &str); 6] = [
    (fib_type::UNICAST, "unicast"),
    (fib_type::LOCAL, "local"),
    (fib_type::BROADCAST, "broadcast"),
    (fib_type::MULTICAST, "multicast"),
    (fib_type::BLACKHOLE, "blackhole"),
    (fib_type::UNREACHABLE, "unreachable"),
];
const PROTOCOLS: [(u32, &str); 5] = [(1, "icmp"), (6, "tcp"), (17, "udp"), (58, "ipv6-icmp"), (132, "sctp")];
const NFPROTOS: [(u32, &str); 2] = [(2, "ipv4"), (10, "ipv6")];
const ICMP_TYPES: [(u32, &str); 7] = [
    (0, "echo-reply"),
    (3, "destination-unreachable"),
    (5, "redirect"),
    (8, "echo-request"),
    (11, "time-exceeded"),
    (12, "parameter-problem"),
    (13, "timestamp-request"),
];
const ICMPV6_TYPES: [(u32, &str); 11] = [
    (1, "destination-unreachable"),
    (2, "packet-too-big"),
    (3, "time-exceeded"),
    (4, "parameter-problem"),
    (128, "echo-request"),
    (129, "echo-reply"),
    (133, "nd-router-solicit"),
    (134, "nd-router-advert"),
    (135, "nd-neighbor-solicit"),
    (136, "nd-neighbor-advert"),
    (137, "nd-redirect"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_that_are_prefixes_are_written_so() {
        let text = |from: [u8; 4], to: [u8; 4]| {
            span_text(&[DataType::Ipv4Addr], &Span::range(Ipv4Addr::from(from), Ipv4Addr::from(to)))
        };
        assert_eq!(text([10, 0, 0, 0], [10, 255, 255, 255]), "10.0.0.0/8");
        assert_eq!(text([0; 4], [255; 4]), "0.0.0.0/0");
        assert_eq!(text([10, 0, 0, 1], [10, 0, 0, 2]), "10.0.0.1-10.0.0.2");
        assert_eq!(text([10, 0, 0, 1], [10, 0, 0, 1]), "10.0.0.1");
        assert_eq!(text([10, 0, 0, 1], [10, 0, 0, 255]), "10.0.0.1-10.0.0.255");
    }

    #[test]
    fn priorities_are_named_by_their_neighbour() {
        assert_eq!(priority_text(Hook::Postrouting, Priority::SRCNAT.plus(5)), "srcnat + 5");
        assert_eq!(priority_text(Hook::Prerouting, Priority::DSTNAT.plus(-10)), "dstnat - 10");
        assert_eq!(priority_text(Hook::Forward, Priority::DSTNAT), "-100");
        assert_eq!(priority_text(Hook::Forward, Priority(11)), "11");
    }
}
