//! Fields of flannel's JSON objects, read as Go does: names whatever their case, `null` like nothing. Each mistake is named.

use std::fmt;
use std::str::FromStr;

use serde_json::{Map, Value};

use crate::mistakes::Mistakes;

/// A value that is a JSON object.
pub(super) fn object(source: &str, text: &[u8], mistakes: &mut Mistakes) -> Option<Map<String, Value>> {
    match serde_json::from_slice(text) {
        Ok(Value::Object(map)) => return Some(map),
        Ok(other) => mistakes.add(source, "", other, "a JSON object"),
        Err(error) => {
            mistakes.add(source, "", String::from_utf8_lossy(text), format!("a JSON object ({error})"))
        }
    }
    None
}

/// A field by its name, whatever its case; the exact one first. `null` counts as missing, as in Go.
pub(super) fn field<'a>(map: &'a Map<String, Value>, name: &str) -> Option<&'a Value> {
    let exact = map.get(name);
    let value =
        exact.or_else(|| map.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value));
    value.filter(|value| !value.is_null())
}

/// Fields of an object, and the mistakes in them.
pub(super) struct Fields<'a> {
    pub(super) source: &'a str,
    /// What is put before a field's name.
    pub(super) path: &'static str,
    pub(super) map: &'a Map<String, Value>,
    pub(super) mistakes: &'a mut Mistakes,
}

impl Fields<'_> {
    pub(super) fn wrong(&mut self, name: &str, value: impl fmt::Display, expected: impl Into<String>) {
        self.mistakes.add(self.source, format!("{}{name}", self.path), value, expected);
    }

    pub(super) fn boolean(&mut self, name: &str, default: bool) -> bool {
        match field(self.map, name) {
            None => default,
            Some(Value::Bool(value)) => *value,
            Some(other) => {
                self.wrong(name, other, "true or false");
                default
            }
        }
    }

    /// A number; outer none: wrong, and said.
    pub(super) fn number(
        &mut self,
        name: &str,
        expected: &str,
        limits: std::ops::RangeInclusive<u64>,
    ) -> Option<Option<u64>> {
        let Some(value) = field(self.map, name) else { return Some(None) };
        let number = value.as_u64().filter(|number| limits.contains(number));
        if number.is_none() {
            self.wrong(name, value, expected);
            return None;
        }
        Some(number)
    }

    /// Text that is a `T`; outer none: wrong, and said.
    pub(super) fn text<T: FromStr>(&mut self, name: &str, expected: &str) -> Option<Option<T>> {
        let Some(value) = field(self.map, name) else { return Some(None) };
        let read = value.as_str().and_then(|text| text.parse().ok());
        if read.is_none() {
            self.wrong(name, value, expected);
            return None;
        }
        Some(read)
    }
}
