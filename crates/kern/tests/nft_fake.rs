//! The fake kernel of `podway-nft` against the real one: the same random transactions, the same answers, the same
//! dumps. Each seed runs in a network namespace of its own; `PODWAY_SEEDS` sets how many there are. Needs root.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, reason = "tests")]

use std::net::Ipv4Addr;

use podway_kern::nft::NftSocket;
use podway_kern::ns;
use podway_nft::{
    BaseChain, ChainKind, CmpOp, CommitError, DataType, Datum, Element, Errno, Expr, FakeNft, Family, Field,
    Hook, MapData, Name, Nftables as _, Op, Policy, Priority, Reject, Rule, Set, SetId, SetShape, Span,
    TableDump, TableFlags, TableId, Target, Transaction, Value, Verdict,
};

/// Transactions of one seed.
const STEPS: usize = 120;
/// Ports of the two sockets in the fake.
const PORTS: [u32; 2] = [11, 12];

/// SplitMix64: the same numbers for the same seed, everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.next() % limit as u64).unwrap()
    }

    fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    fn pick<T: Clone>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())].clone()
    }
}

const TABLES: [TableId; 2] = [TableId::inet(Name::literal("one")), TableId::inet(Name::literal("two"))];

const CHAINS: [Name; 5] = [
    Name::literal("a"),
    Name::literal("b"),
    Name::literal("c"),
    Name::literal("forward"),
    Name::literal("nat"),
];

/// The sets that may be made. The last two share a name.
fn sets() -> Vec<Set> {
    use DataType::{IfName, InetProto, InetService, Ipv4Addr, Mark};
    let name = Name::literal;
    vec![
        Set::new(name("ports"), [InetService]),
        Set::map(name("marks"), [IfName, Ipv4Addr], MapData::Value(Mark)),
        Set::map(name("verdicts"), [InetService], MapData::Verdict),
        Set::new(name("nets"), [Ipv4Addr]).with_interval(),
        Set::map(name("classes"), [Ipv4Addr], MapData::Value(Mark)).with_interval(),
        Set::new(name("ranges"), [Mark, InetProto, InetService]).with_interval(),
        Set { constant: true, ..Set::new(name("constant"), [InetService]) },
        Set::map(name("targets"), [InetProto, InetService], MapData::Pair(Ipv4Addr, InetService)),
        Set::new(name("ports"), [Ipv4Addr]),
    ]
}

fn flags(random: &mut Random) -> TableFlags {
    let (owner, persist) = random.pick(&[(false, false), (false, false), (true, false), (true, true)]);
    TableFlags { owner, persist }
}

fn base(random: &mut Random, name: &Name) -> Option<BaseChain> {
    let usual = match name.as_str() {
        "forward" => (ChainKind::Filter, Hook::Forward, Priority::FILTER),
        "nat" => (ChainKind::Nat, Hook::Postrouting, Priority::SRCNAT),
        _ => return random.one_in(20).then(|| base(random, &Name::literal("forward"))).flatten(),
    };
    let (kind, hook, priority) = match random.below(12) {
        0 => (ChainKind::Nat, Hook::Forward, Priority::FILTER),
        1 => (ChainKind::Nat, Hook::Postrouting, Priority::RAW),
        2 => (ChainKind::Filter, Hook::Output, Priority(7)),
        3 | 4 if name.as_str() == "nat" => (ChainKind::Nat, Hook::Prerouting, Priority::DSTNAT),
        _ => usual,
    };
    (!random.one_in(12)).then(|| BaseChain {
        kind,
        hook,
        priority,
        policy: random.pick(&[Policy::Accept, Policy::Drop]),
    })
}

fn verdict(random: &mut Random) -> Verdict {
    let to = random.pick(&CHAINS);
    match random.below(8) {
        0 => Verdict::Accept,
        1 => Verdict::Drop,
        2 => Verdict::Return,
        3 | 4 => Verdict::Goto(to),
        _ => Verdict::Jump(to),
    }
}

fn rule(random: &mut Random) -> Rule {
    let port = [Field::ThDport];
    let mark = [Field::CtMark, Field::L4Proto, Field::ThDport];
    let place = [Field::IifName, Field::IpSaddr];
    let v4 = Rule::new(random.pick(&["", "a comment"])).is(Field::NfProto, podway_nft::NFPROTO_IPV4);
    let named = Name::literal;
    let rule = match random.below(16) {
        0 => v4.in_set(port, named("ports")),
        1 => v4.set_from_map(Target::CtMark, place, named("marks")),
        2 => v4.verdict_map(port, named("verdicts")),
        3 => v4.not_in_set([Field::IpDaddr], named("nets")),
        4 => v4.set_from_map(Target::Priority, [Field::IpDaddr], named("classes")),
        5 => v4.in_set(mark, named("ranges")),
        6 => v4.in_set(port, named("constant")),
        // Keys and maps that do not fit.
        7 => v4.in_set(port, named("ranges")),
        8 => v4.verdict_map([Field::IpSaddr], named("classes")),
        9 => v4.set_from_map(Target::Mark, port, named("verdicts")),
        10 => v4.masquerade(),
        11 => v4.reject(random.pick(&[Reject::PortUnreachable, Reject::AdminProhibited])),
        12 => v4.with(Expr::Cmp { field: Field::FibSaddrIif, op: CmpOp::Eq, value: 0_u8.into() }),
        13 => v4.dnat_from_map(Family::Ip, [Field::L4Proto, Field::ThDport], named("targets")),
        14 => v4.dnat_from_map(Family::Ip, [Field::IpDaddr], named("classes")),
        _ => v4.within(Field::ThDport, 1_u16, 99_u16).limit(5, 9).log("x", Some(3)).counter(),
    };
    if random.one_in(3) { rule } else { rule.verdict(verdict(random)) }
}

/// A key, or a range of keys, of a set.
fn span(random: &mut Random, set: &Set) -> Span {
    let ip = |n: usize| Value::from(Ipv4Addr::new(10, 0, 0, u8::try_from(n).unwrap()));
    match (set.name.as_str(), set.key.0.len()) {
        ("ranges", _) => {
            let (mark, protocol) = (random.pick(&[1_u32, 0x0100]), random.pick(&[6_u8, 17]));
            let from = 80 + 10 * u16::try_from(random.below(4)).unwrap();
            let to = from + random.pick(&[0, 5, 9, 15]);
            let key = |port: u16| Value::concat([mark.into(), protocol.into(), port.into()]);
            Span::range(key(from), key(to))
        }
        ("targets", _) => Value::concat([6_u8.into(), u16::try_from(random.below(4)).unwrap().into()]).into(),
        (_, 2) => Value::concat([Value::ifname(random.pick(&["eth0", "pw1"])), ip(random.below(4))]).into(),
        (_, _) if set.interval => {
            let from = 10 * random.below(6);
            Span::range(ip(from), ip(from + random.pick(&[0, 4, 9, 9, 25])))
        }
        (_, _) if set.key.0[0] == DataType::Ipv4Addr => ip(random.below(4)).into(),
        _ => u16::try_from(random.below(4)).unwrap().into(),
    }
}

fn element(random: &mut Random, set: &Set) -> Element {
    let data = match set.data {
        None => None,
        Some(MapData::Value(_)) => Some(Datum::Value(random.pick(&[1_u32, 2]).into())),
        Some(MapData::Pair(..)) => {
            let port = u16::try_from(random.below(2)).unwrap();
            Some(Datum::Value(Value::concat([Ipv4Addr::new(10, 0, 0, 1).into(), port.into()])))
        }
        Some(MapData::Verdict) => Some(Datum::Verdict(verdict(random))),
    };
    Element { span: span(random, set), data }
}

/// An element to delete: mostly one that is there; else one that touches nothing that is there.
fn victim(random: &mut Random, fake: &FakeNft, table: &TableId, set: &Set) -> Element {
    let state = fake.table(table);
    let held = state.as_ref().and_then(|state| state.set(&set.name)).filter(|held| held.key == set.key);
    let there: Vec<Element> = held
        .into_iter()
        .flat_map(|held| &held.elements)
        .map(|(span, data)| Element { span: span.clone(), data: data.clone() })
        .collect();
    match set.shape() {
        _ if !there.is_empty() && !random.one_in(5) => random.pick(&there),
        SetShape::Exact => element(random, set),
        SetShape::Interval => Element::value(Ipv4Addr::new(192, 0, 2, 1), 1_u32),
        SetShape::ConcatInterval => {
            Element::key(Value::concat([7_u32.into(), 6_u8.into(), 60_000_u16.into()]))
        }
    }
}

fn op(random: &mut Random, fake: &FakeNft) -> Op {
    let table = random.pick(&TABLES);
    let name = random.pick(&CHAINS);
    let set = random.pick(&sets());
    let id = SetId::of(&table, &set);
    match random.below(32) {
        0..=3 => Op::AddTable { table, flags: flags(random) },
        4 => Op::DeleteTable(table),
        5..=9 => Op::AddChain { base: base(random, &name), table, name },
        10 => Op::DeleteChain { table, name },
        11 => Op::FlushChain { table, name },
        12..=16 => Op::AddSet { table, set },
        17 => Op::DeleteSet { table, name: set.name },
        18 => Op::FlushSet { table, name: set.name },
        19..=24 => {
            let elements = (0..=random.below(3)).map(|_| element(random, &set)).collect();
            Op::AddElements { set: id, elements }
        }
        25..=27 => Op::DeleteElements { elements: vec![victim(random, fake, &table, &set)], set: id },
        _ => Op::AddRule { table, chain: name, rule: rule(random) },
    }
}

/// Some operations. Most of those that make the transaction refused are left out, so that much is taken.
fn transaction(random: &mut Random, fake: &FakeNft, port: u32) -> Transaction {
    let mut transaction = Transaction::new();
    for _ in 0..=random.below(8) {
        let (mut tried, mut kernel) = (transaction.clone(), fake.clone());
        tried.push(op(random, fake));
        if kernel.socket(port).commit(&tried).is_ok() || random.one_in(10) {
            transaction = tried;
        }
    }
    transaction
}

/// A dump without what only the kernel's counters know.
fn without_handles(dump: Option<TableDump>) -> Option<TableDump> {
    let mut dump = dump?;
    for rule in dump.chains.iter_mut().flat_map(|chain| &mut chain.rules) {
        rule.handle = 0;
    }
    Some(dump)
}

fn answer(result: Result<(), CommitError>) -> Result<(), (usize, Errno)> {
    result.map_err(|error| match error {
        CommitError::Refused { op, errno, .. } => (op, errno),
        CommitError::Batch { errno, .. } => (usize::MAX, errno),
        CommitError::Io(error) => panic!("{error}"),
    })
}

/// How many transactions were taken and refused.
fn compare(seed: u64) -> (usize, usize) {
    let mut random = Random(seed);
    let mut fake = FakeNft::new();
    let mut kernel = [NftSocket::open().unwrap(), NftSocket::open().unwrap()];
    let (mut taken, mut refused) = (0, 0);
    for step in 0..STEPS {
        let who = usize::from(random.one_in(4));
        if random.one_in(40) {
            kernel[who] = NftSocket::open().unwrap();
            fake.close(PORTS[who]);
        }
        let transaction = transaction(&mut random, &fake, PORTS[who]);
        let told = || format!("seed {seed} step {step} socket {who}: {transaction:#?}");
        let before = (kernel[0].generation().unwrap(), fake.generation().unwrap());
        let dumps_before: Vec<_> = TABLES.iter().map(|t| without_handles(fake.dump(t).unwrap())).collect();
        let expected = answer(fake.socket(PORTS[who]).commit(&transaction));
        let found = answer(kernel[who].commit(&transaction));
        assert_eq!(found, expected, "the kernel's answer, the fake's: {}", told());
        let mut dumps = Vec::new();
        for table in &TABLES {
            let expected = without_handles(fake.dump(table).unwrap());
            // The other socket sees what this one made.
            let found = without_handles(kernel[1 - who].dump(table).unwrap());
            assert_eq!(found, expected, "the kernel's dump, the fake's: {}", told());
            dumps.push(expected);
        }
        let after = (kernel[0].generation().unwrap(), fake.generation().unwrap());
        if dumps != dumps_before {
            assert!(after.0 != before.0 && after.1 != before.1, "the generation grows: {}", told());
        }
        if found.is_err() {
            assert_eq!(after, before, "a refusal is no generation: {}", told());
        }
        *if found.is_ok() { &mut taken } else { &mut refused } += 1;
    }
    (taken, refused)
}

fn seeds(fallback: u64) -> u64 {
    std::env::var("PODWAY_SEEDS").ok().and_then(|seeds| seeds.parse().ok()).unwrap_or(fallback)
}

#[test]
fn the_fake_is_the_kernel() {
    if !nix::unistd::geteuid().is_root() {
        println!("SKIP the_fake_is_the_kernel: needs root");
        return;
    }
    let (mut taken, mut refused) = (0, 0);
    for seed in 0..seeds(12) {
        let counts = ns::in_new_netns(|| compare(seed)).unwrap();
        taken += counts.0;
        refused += counts.1;
    }
    println!("{taken} transactions taken, {refused} refused");
    assert!(taken * 3 > refused && refused * 10 > taken, "{taken} taken, {refused} refused: too one-sided");
}
