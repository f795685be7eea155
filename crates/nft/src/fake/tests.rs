//! What the fake refuses and keeps, case by case.

use std::net::Ipv4Addr;

use super::*;
use crate::expr::{Field, Verdict};
use crate::name::Name;
use crate::object::{
    Chain, ChainKind, Datum, Element, Hook, MapData, Policy, Priority, Rule, Set, Span, TableFlags,
};
use crate::transaction::{Op, SetId};
use crate::value::DataType;

const TABLE: TableId = TableId::inet(Name::literal("t"));
const LEAF: Name = Name::literal("leaf");
const NETS: Name = Name::literal("nets");
const PORTS: Name = Name::literal("ports");
const PAIRS: Name = Name::literal("pairs");
const VERDICTS: Name = Name::literal("verdicts");

fn v4(last: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, 0, last)
}

fn table() -> TableState {
    let mut table = TableState::new(TABLE);
    table.sets = vec![
        Set::map(NETS, [DataType::Ipv4Addr], MapData::Value(DataType::Mark))
            .with_interval()
            .with_elements([Element::value(Span::range(v4(10), v4(19)), 1_u32)]),
        Set::new(PORTS, [DataType::InetService]).with_elements([Element::key(80_u16)]),
        Set::map(VERDICTS, [DataType::InetService], MapData::Verdict)
            .with_elements([Element::verdict(80_u16, Verdict::Jump(LEAF))]),
        Set::new(PAIRS, [DataType::Ipv4Addr, DataType::InetService]),
    ];
    table.chains = vec![
        Chain::regular(LEAF).rule(Rule::new("").in_set([Field::ThDport], PORTS).accept()),
        Chain::base(
            Name::literal("forward"),
            ChainKind::Filter,
            Hook::Forward,
            Priority::FILTER,
            Policy::Accept,
        )
        .rule(Rule::new("by port").verdict_map([Field::ThDport], VERDICTS)),
    ];
    table
}

fn loaded() -> FakeNft {
    let mut kernel = FakeNft::new();
    Nftables::commit(&mut kernel, &Transaction::create(&table())).unwrap();
    kernel
}

fn id(name: Name) -> SetId {
    SetId::of(&TABLE, table().set(&name).unwrap())
}

/// Sends one operation behind one that changes something: refused, nothing of both is there.
fn refusal(kernel: &mut FakeNft, op: Op) -> Option<Errno> {
    let before = (kernel.generation, kernel.table(&TABLE));
    let first = Op::AddChain { table: TABLE, name: Name::literal("other"), base: None };
    let error = Nftables::commit(kernel, &Transaction { ops: vec![first, op] }).err()?;
    assert_eq!((kernel.generation, kernel.table(&TABLE)), before, "{error}");
    match error {
        CommitError::Refused { op: 1, errno, .. } => Some(errno),
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_is_committed_is_there_and_dumps_as_itself() {
    let mut kernel = loaded();
    assert_eq!(kernel.table(&TABLE), Some(table()));
    let dump = Nftables::dump(&mut kernel, &TABLE).unwrap().unwrap();
    assert_eq!(dump.difference(&table()), None);
    assert_eq!(dump.chains[1].rules[0].exprs, ["payload", "lookup"]);
    assert_eq!(dump.chains[1].rules[0].comment, "by port");
    let generation = kernel.generation;
    Nftables::commit(&mut kernel, &Transaction::replace(&table())).unwrap();
    assert_eq!(kernel.table(&TABLE), Some(table()));
    assert!(kernel.generation > generation);
    Nftables::commit(&mut kernel, &Transaction::remove(&TABLE)).unwrap();
    assert_eq!(Nftables::dump(&mut kernel, &TABLE).unwrap(), None);
}

#[test]
fn what_the_kernel_refuses_is_refused_whole() {
    let mut kernel = loaded();
    let net = |from, to, value: u32| Element::value(Span::range(v4(from), v4(to)), value);
    let add = |set: Name, element| Op::AddElements { set: id(set), elements: vec![element] };
    let delete = |set: Name, element| Op::DeleteElements { set: id(set), elements: vec![element] };
    let rule = |rule: Rule| Op::AddRule { table: TABLE, chain: LEAF, rule };
    let nowhere = Name::literal("nowhere");
    let mut other_type = table().sets[0].clone();
    other_type.data = None;
    let base = table().chains[1].base;
    let cases = [
        (add(NETS, net(15, 30, 2)), Errno::EXIST, "an overlap"),
        (add(NETS, net(10, 19, 2)), Errno::EXIST, "other data"),
        (delete(NETS, net(10, 12, 1)), Errno::NOENT, "a part of a range"),
        (delete(PORTS, Element::key(81_u16)), Errno::NOENT, "a missing element"),
        (add(PORTS, Element::key(1_u32)), Errno::INVAL, "another size"),
        (add(PORTS, Element::key(Span::range(1_u16, 2_u16))), Errno::INVAL, "a range among single keys"),
        (
            add(VERDICTS, Element::verdict(1_u16, Verdict::Goto(nowhere.clone()))),
            Errno::NOENT,
            "a missing chain",
        ),
        (
            add(VERDICTS, Element::verdict(1_u16, Verdict::Goto(Name::literal("forward")))),
            Errno::OPNOTSUPP,
            "a jump to a base chain",
        ),
        (add(VERDICTS, Element::key(1_u16)), Errno::INVAL, "a map's element without data"),
        (rule(Rule::new("").in_set([Field::ThDport], nowhere.clone())), Errno::NOENT, "a missing set"),
        (rule(Rule::new("").in_set([Field::IpSaddr], PAIRS)), Errno::NODATA, "too short a key"),
        (rule(Rule::new("").verdict_map([Field::IpSaddr], NETS)), Errno::INVAL, "no verdicts"),
        (rule(Rule::new("").jump(LEAF)), Errno::MLINK, "a loop"),
        (rule(Rule::new("").masquerade()), Errno::OPNOTSUPP, "a masquerade in a filter"),
        (Op::DeleteSet { table: TABLE, name: PORTS }, Errno::BUSY, "a set in use"),
        (Op::DeleteChain { table: TABLE, name: LEAF }, Errno::BUSY, "a chain that an element leads to"),
        (Op::AddSet { table: TABLE, set: other_type }, Errno::EXIST, "another type"),
        (
            Op::AddChain { table: TABLE, name: LEAF, base },
            Errno::OPNOTSUPP,
            "a base chain of one that is none",
        ),
        (Op::FlushChain { table: TABLE, name: nowhere.clone() }, Errno::NOENT, "a missing chain"),
        (Op::DeleteTable(TableId::inet(nowhere)), Errno::NOENT, "a missing table"),
    ];
    for (op, errno, what) in cases {
        assert_eq!(refusal(&mut kernel, op), Some(errno), "{what}");
    }
}

#[test]
fn a_transaction_sees_its_own_changes() {
    let mut kernel = loaded();
    let element = |value: u32| vec![Element::value(Span::range(v4(10), v4(19)), value)];
    let mut transaction = Transaction::new();
    transaction.delete_elements(&id(NETS), element(1));
    transaction.add_elements(&id(NETS), element(2));
    transaction.push(Op::FlushSet { table: TABLE, name: VERDICTS });
    transaction.push(Op::FlushChain { table: TABLE, name: LEAF });
    transaction.push(Op::DeleteSet { table: TABLE, name: PORTS });
    transaction.push(Op::DeleteChain { table: TABLE, name: LEAF });
    Nftables::commit(&mut kernel, &transaction).unwrap();
    let table = kernel.table(&TABLE).unwrap();
    assert_eq!((table.sets.len(), table.chains.len()), (3, 1));
    assert_eq!(table.sets[0].elements.values().next().unwrap(), &element(2)[0].data);
}

#[test]
fn constant_sets_do_not_change_once_they_are_used() {
    let mut state = table();
    state.sets[1].constant = true;
    let mut kernel = FakeNft::new();
    Nftables::commit(&mut kernel, &Transaction::create(&state)).unwrap();
    let id = SetId::of(&TABLE, &state.sets[1]);
    let elements = vec![Element::key(81_u16)];
    assert_eq!(refusal(&mut kernel, Op::AddElements { set: id, elements }), Some(Errno::BUSY));
    assert_eq!(refusal(&mut kernel, Op::FlushSet { table: TABLE, name: PORTS }), Some(Errno::BUSY));
}

#[test]
fn an_owned_table_takes_changes_from_its_owner_only_and_outlives_a_foreign_flush() {
    let owned = |persist| TableState { flags: TableFlags { owner: true, persist }, ..table() };
    for persist in [false, true] {
        let mut kernel = FakeNft::new();
        kernel.socket(7).commit(&Transaction::create(&owned(persist))).unwrap();
        let foreign = Nftables::commit(&mut kernel, &Transaction::remove(&TABLE)).unwrap_err();
        assert_eq!(foreign.errno(), Some(Errno::PERM));
        kernel.flush_ruleset(8);
        assert!(kernel.table(&TABLE).is_some());
        kernel.close(7);
        assert_eq!(kernel.table(&TABLE).is_some(), persist);
    }
    let mut kernel = FakeNft::new();
    kernel.socket(7).commit(&Transaction::create(&owned(true))).unwrap();
    kernel.close(7);
    let adopt = Op::AddTable { table: TABLE, flags: TableFlags { owner: true, persist: true } };
    kernel.socket(9).commit(&Transaction { ops: vec![adopt] }).unwrap();
    assert!(Nftables::commit(&mut kernel, &Transaction::remove(&TABLE)).is_err(), "it has an owner again");
}

#[test]
fn a_batch_above_the_send_buffer_is_refused() {
    let size = encode::encode(&Transaction::create(&table()), 1).bytes.len();
    let mut kernel = FakeNft::new().with_largest_batch(size);
    let refused = Nftables::commit(&mut kernel, &Transaction::create(&table())).unwrap_err();
    assert_eq!(refused.errno(), Some(Errno::MSGSIZE));
    let mut kernel = FakeNft::new().with_largest_batch(size + 100);
    Nftables::commit(&mut kernel, &Transaction::create(&table())).unwrap();
}

#[test]
fn elements_that_differ_are_changed_without_the_rest() {
    let mut kernel = loaded();
    let mut wanted = table();
    for set in &mut wanted.sets[..2] {
        set.elements.clear();
    }
    let ranges = [(10, 14, 1_u32), (15, 19, 2), (30, 39, 1)];
    wanted.sets[0].elements.extend(
        ranges.map(|(from, to, mark)| (Span::range(v4(from), v4(to)), Some(Datum::Value(mark.into())))),
    );
    wanted.sets[1].elements.insert(81_u16.into(), None);
    let found = Nftables::dump(&mut kernel, &TABLE).unwrap().unwrap();
    let change = found.elements_to(&wanted).unwrap();
    assert_eq!(change.ops.len(), 4, "two sets, each loses and gains");
    Nftables::commit(&mut kernel, &change).unwrap();
    assert_eq!(kernel.table(&TABLE), Some(wanted.clone()));
    let same = Nftables::dump(&mut kernel, &TABLE).unwrap().unwrap();
    assert_eq!(same.elements_to(&wanted), Some(Transaction::new()));
    wanted.chains[0].rules.clear();
    assert_eq!(same.elements_to(&wanted), None, "rules differ too");
    assert_eq!(same.elements_to(&TableState { sets: vec![], ..wanted }), None, "a set is too many");
}
