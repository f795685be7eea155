//! Tables as tests see them: changed by transactions, and compared without looking at the choice of numbers.

use std::collections::{BTreeMap, BTreeSet};

use podway_nft::{Datum, Op, Set, Span, TableState, Transaction};

/// Applies a change of elements as the kernel does: what is deleted must be there, what is added must not.
pub fn apply(table: &mut TableState, transaction: &Transaction) {
    for op in &transaction.ops {
        match op {
            Op::DeleteElements { set, elements } => {
                let set = table.set_mut(&set.name).unwrap();
                for element in elements {
                    let gone = set.elements.remove(&element.span);
                    assert!(gone.is_some(), "{}: ENOENT {:?}", set.name, element.span);
                }
            }
            Op::AddElements { set, elements } => {
                let set = table.set_mut(&set.name).unwrap();
                for element in elements {
                    let old = set.elements.insert(element.span.clone(), element.data.clone());
                    assert!(old.is_none(), "{}: EEXIST {:?}", set.name, element.span);
                }
            }
            other => panic!("a change touches elements only: {other}"),
        }
    }
    for set in table.sets.iter().filter(|set| set.interval && set.key.0.len() == 1) {
        for (a, b) in set.elements.keys().zip(set.elements.keys().skip(1)) {
            assert!(a.last() < &b.from, "{}: {a:?} overlaps {b:?}", set.name);
        }
    }
}

/// The elements with every number replaced by what it stands for: a policy set by the places of the local pods that
/// have it, a class by the addresses and segments that have it. Every number in use has such a place.
pub fn meaning(table: &TableState) -> BTreeSet<String> {
    let mut sets: BTreeMap<u32, BTreeSet<String>> = BTreeMap::new();
    let mut classes: BTreeMap<u32, BTreeSet<String>> = BTreeMap::new();
    for set in &table.sets {
        let places = match set.name.as_str() {
            name if name.starts_with("loc_") => &mut sets,
            name if name.starts_with("cls") || name.starts_with("net") => &mut classes,
            _ => continue,
        };
        for (span, data) in &set.elements {
            places.entry(number(data)).or_default().insert(format!("{} {span:?}", set.name));
        }
    }
    let mut lines = BTreeSet::new();
    for set in &table.sets {
        for (span, data) in &set.elements {
            lines.insert(match set.name.as_str() {
                name if name.starts_with("any_") || name.starts_with("ok_") => {
                    let (policy_set, rest) = head(span);
                    let place = &sets[&policy_set];
                    match name.starts_with("ok_") {
                        true => {
                            let (class, rest) = head(&rest);
                            format!("{name} {place:?} {:?} {rest:?}", classes[&class])
                        }
                        false => format!("{name} {place:?} {rest:?}"),
                    }
                }
                // Open is a number with a fixed meaning.
                name if name.starts_with("loc_") => format!("{name} {span:?} {}", number(data) == 0),
                name => format!("{name} {span:?}"),
            });
        }
    }
    lines.extend(sets.values().chain(classes.values()).map(|places| format!("together {places:?}")));
    lines
}

fn number(data: &Option<Datum>) -> u32 {
    match data {
        Some(Datum::Value(value)) => value.to_u32().unwrap(),
        other => panic!("no number: {other:?}"),
    }
}

/// The first number of a key, and the rest of it.
fn head(span: &Span) -> (u32, Span) {
    let cut = |value: &podway_nft::Value| {
        let (number, rest) = value.as_bytes().split_first_chunk::<4>().unwrap();
        (u32::from_ne_bytes(*number), podway_nft::Value::from_bytes(rest))
    };
    let (number, from) = cut(&span.from);
    (number, Span { from, to: span.to.as_ref().map(|to| cut(to).1) })
}

/// Number of elements in a set.
pub fn count(table: &TableState, set: &str) -> usize {
    table.sets.iter().filter(|s| s.name.as_str() == set).map(|s: &Set| s.elements.len()).sum()
}
