//! Elements on the wire. Trees know single keys only: a range is its first key and, flagged as an end, the key
//! after its last one. Concatenations carry both ends in one element, host-order parts turned round so that they
//! have an order.

use super::expr::write_verdict;
use super::number::{data, elem};
use super::wire::Writer;
use crate::object::{Datum, Element, KeyType, SetShape};
use crate::transaction::SetId;
use crate::value::Value;

/// Largest encoded element: key, key end and data of 64 bytes each, a verdict's chain name, headers.
pub(super) const ELEMENT_MAX: usize = 640;

pub(super) fn write(w: &mut Writer, set: &SetId, element: &Element) {
    match set.shape {
        SetShape::Exact => one(w, element, &element.span.from, None, 0),
        SetShape::ConcatInterval => {
            let from = in_network_order(&set.key, &element.span.from);
            let to = in_network_order(&set.key, element.span.last());
            one(w, element, &from, Some(&to), 0);
        }
        SetShape::Interval => {
            let from = in_network_order(&set.key, &element.span.from);
            let end = successor(&in_network_order(&set.key, element.span.last()));
            one(w, element, &from, None, if end.is_none() { elem::UDATA_F_OPEN } else { 0 });
            if let Some(end) = end {
                w.nest(1, |w| {
                    w.be32(elem::FLAGS, elem::F_INTERVAL_END);
                    w.nest(elem::KEY, |w| w.bytes(data::VALUE, end.as_bytes()));
                });
            }
        }
    }
}

fn one(w: &mut Writer, element: &Element, key: &Value, end: Option<&Value>, user_flags: u32) {
    w.nest(1, |w| {
        w.nest(elem::KEY, |w| w.bytes(data::VALUE, key.as_bytes()));
        if let Some(end) = end {
            w.nest(elem::KEY_END, |w| w.bytes(data::VALUE, end.as_bytes()));
        }
        match &element.data {
            Some(Datum::Value(value)) => w.nest(elem::DATA, |w| w.bytes(data::VALUE, value.as_bytes())),
            Some(Datum::Verdict(verdict)) => w.nest(elem::DATA, |w| write_verdict(w, verdict)),
            None => {}
        }
        if user_flags != 0 {
            let mut bytes = vec![elem::UDATA_FLAGS, 4];
            bytes.extend_from_slice(&user_flags.to_ne_bytes());
            w.bytes(elem::USERDATA, &bytes);
        }
    });
}

/// A key with its host-order parts as big-endian numbers (on a big-endian machine that changes nothing). It is
/// its own inverse. What does not have the key type's size is left as it is, for the kernel to refuse.
pub(crate) fn in_network_order(key: &KeyType, value: &Value) -> Value {
    if value.as_bytes().len() != key.size() {
        return value.clone();
    }
    let mut bytes = value.as_bytes().to_vec();
    let mut at = 0;
    for part in &key.0 {
        if part.is_host_order() && cfg!(target_endian = "little") {
            bytes[at..at + part.size()].reverse();
        }
        at += part.padded();
    }
    Value::from_bytes(bytes)
}

/// The next key as a big-endian number, if there is one.
pub(crate) fn successor(value: &Value) -> Option<Value> {
    let mut bytes = value.as_bytes().to_vec();
    for byte in bytes.iter_mut().rev() {
        let (next, carry) = byte.overflowing_add(1);
        *byte = next;
        if !carry {
            return Some(Value::from_bytes(bytes));
        }
    }
    None
}

/// The key before, if there is one: what a range's end element stands for.
pub(crate) fn predecessor(value: &Value) -> Option<Value> {
    let mut bytes = value.as_bytes().to_vec();
    for byte in bytes.iter_mut().rev() {
        let (next, borrow) = byte.overflowing_sub(1);
        *byte = next;
        if !borrow {
            return Some(Value::from_bytes(bytes));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::value::DataType;

    #[test]
    fn successor_carries_and_ends() {
        assert_eq!(successor(&Value::from(0x00ffu16)), Some(Value::from(0x0100u16)));
        assert_eq!(successor(&Value::from(0xffffu16)), None);
        assert_eq!(predecessor(&Value::from(0x0100u16)), Some(Value::from(0x00ffu16)));
        assert_eq!(predecessor(&Value::from(0u16)), None);
    }

    #[test]
    fn only_host_order_parts_are_turned() {
        let key = KeyType(vec![DataType::Mark, DataType::InetService]);
        let value = Value::concat([5u32.into(), 80u16.into()]);
        let turned = in_network_order(&key, &value);
        assert_eq!(turned.as_bytes(), [0, 0, 0, 5, 0, 80, 0, 0]);
        assert_eq!(in_network_order(&key, &turned), value);
    }
}
