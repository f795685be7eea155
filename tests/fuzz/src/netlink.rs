//! What the kernel sends: the readers take any bytes, and what our nftables encoder writes of sets and elements reads
//! back as it was.

use std::collections::BTreeSet;

use arbitrary::{Result, Unstructured};
use podway_kern::{conntrack as kern_conntrack, monitor};
use podway_nft::encode::decode::{self, Replies, ReplyKind};
use podway_nft::encode::{encode, number::msg};
use podway_nft::{
    DataType, Datum, Element, KeyType, MapData, Name, Op, Set, SetId, SetShape, Span, TableDump, TableFlags,
    TableId, Transaction, Value, Verdict,
};

/// A datagram of notifications about links, addresses, routes, neighbours and next hops.
pub fn rtnetlink(bytes: &[u8]) {
    match monitor::notices(bytes) {
        Ok(notices) => assert!(notices.len() <= bytes.len() / 16),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

/// A datagram of answers.
pub fn refusals(bytes: &[u8]) {
    match podway_kern::refusals(bytes) {
        Ok(all) => all.iter().for_each(|(_, refusal)| assert!(!refusal.to_string().is_empty())),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

/// A connection tracking entry; the deletion that is made of it carries the same original tuple.
pub fn conntrack(bytes: &[u8]) {
    let Some(entry) = kern_conntrack::parse_entry(bytes) else { return };
    let (tuples, deletion) = (entry.tuples, entry.deletion);
    for ip in [tuples.original.0, tuples.original.1, tuples.reply.0, tuples.reply.1] {
        assert!(tuples.carry(&BTreeSet::from([ip])));
    }
    assert!(deletion.len().is_multiple_of(4) && deletion.starts_with(&bytes[..4]));
}

fn table() -> TableId {
    TableId::inet(Name::literal("podway-fuzz"))
}

/// Datagrams of a dump, and of notifications.
pub fn nft_dump(bytes: &[u8]) {
    let mut dump = TableDump { id: table(), flags: TableFlags::default(), chains: vec![], sets: vec![] };
    let mut raw = vec![];
    for reply in Replies(bytes) {
        let _ = decode::changed_table(&reply);
        let ReplyKind::Object { msg: kind, family, attributes, .. } = reply.kind else { continue };
        let _ = decode::table_of(family, attributes);
        // Each reader takes each message: the kernel decides what comes, not we.
        dump.flags = decode::table_flags(attributes);
        let _ = decode::generation(attributes);
        dump.chains.extend(decode::chain(attributes));
        dump.sets.extend(decode::set(attributes));
        if let Some((_, rule)) = decode::rule(attributes)
            && let Some(chain) = dump.chains.last_mut()
        {
            chain.rules.push(rule);
        }
        if kind == msg::NEWSETELEM {
            raw.push(decode::elements(attributes));
        }
    }
    let mut lists = raw.into_iter().cycle();
    for set in &mut dump.sets {
        if let Some(list) = lists.next() {
            decode::fill(set, list);
        }
        // A range of the kernel's that is none of ours must not be taken for one.
        assert!(set.elements.keys().all(|span| span.to.as_ref() != Some(&span.from)));
    }
    let wanted = podway_nft::tables::guard(&[]);
    assert!(dump.difference(&wanted).is_some(), "this is no guard table");
}

/// A set with elements, written as a transaction and read as a dump.
pub fn nft_sets(bytes: &[u8]) {
    // Bytes that end too early make no set.
    let _ = set_round_trip(&mut Unstructured::new(bytes));
}

const KEYS: [&[DataType]; 8] = [
    &[DataType::Ipv4Addr],
    &[DataType::Ipv6Addr],
    &[DataType::InetService],
    &[DataType::IfName],
    &[DataType::IfName, DataType::Ipv4Addr],
    &[DataType::Mark, DataType::Mark, DataType::InetProto, DataType::InetService],
    &[DataType::ClassId, DataType::Ipv6Addr],
    &[DataType::Mark],
];

fn set_round_trip(u: &mut Unstructured<'_>) -> Result<()> {
    let key = KeyType(u.choose(&KEYS)?.to_vec());
    let mut set = Set::new(Name::literal("s"), key);
    set.interval = u.arbitrary()?;
    set.constant = u.arbitrary()?;
    set.data = *u.choose(&[None, Some(MapData::Verdict), Some(MapData::Value(DataType::Mark))])?;
    let mut keys = BTreeSet::new();
    for _ in 0..u.int_in_range(0..=40u8)? {
        keys.insert(key_value(u, &set.key)?);
    }
    match set.shape() {
        // Ranges of a tree have an order in the kernel's bytes only where the numbers are big-endian.
        SetShape::Interval if set.key.0.iter().any(|part| part.is_host_order()) => return Ok(()),
        SetShape::Interval => {
            let keys: Vec<Value> = keys.into_iter().collect();
            for pair in keys.chunks(2) {
                let [from, .., to] = pair else { continue };
                let element = element(u, &set, Span { from: from.clone(), to: Some(to.clone()) })?;
                set.elements.insert(element.span, element.data);
            }
        }
        SetShape::Exact | SetShape::ConcatInterval => {
            for key in keys {
                let element = element(u, &set, Span { from: key, to: None })?;
                set.elements.insert(element.span, element.data);
            }
        }
    }
    let (id, table) = (SetId::of(&table(), &set), table());
    let elements =
        set.elements.iter().map(|(span, data)| Element { span: span.clone(), data: data.clone() }).collect();
    let empty = Set { elements: Default::default(), ..set.clone() };
    let mut transaction = Transaction::new();
    transaction.push(Op::AddSet { table: table.clone(), set: empty });
    transaction.add_elements(&id, elements);
    let encoded = encode(&transaction, 7);
    let (mut found, mut raw) = (None, vec![]);
    for reply in Replies(&encoded.bytes) {
        let ReplyKind::Object { msg: kind, family, attributes, .. } = reply.kind else { continue };
        assert_eq!(decode::changed_table(&reply), Some(table.clone()));
        assert_eq!(decode::table_of(family, attributes), Some((table.family, table.name.as_str())));
        match kind {
            msg::NEWSET => found = decode::set(attributes),
            msg::NEWSETELEM => raw.extend(decode::elements(attributes)),
            _ => {}
        }
    }
    let mut found = found.expect("a set that we can write is one that we can read");
    decode::fill(&mut found, raw);
    assert_eq!(found, set);
    Ok(())
}

fn key_value(u: &mut Unstructured<'_>, key: &KeyType) -> Result<Value> {
    let mut part = |kind: &DataType| -> Result<Vec<u8>> {
        // Few values, so that neighbours and ends of the range are met.
        let mut bytes = vec![*u.choose(&[0u8, 0, 0xff])?; kind.size()];
        if let Some(last) = bytes.last_mut() {
            *last = u.arbitrary()?;
        }
        Ok(bytes)
    };
    if let [one] = key.0.as_slice() {
        return Ok(Value::from_bytes(part(one)?));
    }
    let mut all = vec![];
    for kind in &key.0 {
        all.extend(part(kind)?);
        all.resize(all.len().next_multiple_of(4), 0);
    }
    Ok(Value::from_bytes(all))
}

fn element(u: &mut Unstructured<'_>, set: &Set, span: Span) -> Result<Element> {
    let data = match set.data {
        None => None,
        Some(MapData::Value(_)) => Some(Datum::Value(Value::from(u.arbitrary::<u32>()?))),
        Some(MapData::Pair(..)) => Some(Datum::Value(Value::from_bytes(u.arbitrary::<[u8; 8]>()?.to_vec()))),
        Some(MapData::Verdict) => {
            let chain = Name::literal("c");
            let verdicts = [
                Verdict::Accept,
                Verdict::Drop,
                Verdict::Return,
                Verdict::Jump(chain.clone()),
                Verdict::Goto(chain),
            ];
            Some(Datum::Verdict(u.choose(&verdicts)?.clone()))
        }
    };
    Ok(Element { span, data })
}
