//! YAML or JSON text as a tree whose every value knows its line.

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::{DuplicateKeyPolicy, Spanned};

/// Deepest nesting that is read. A Kubernetes object has about ten levels.
const MAX_DEPTH: usize = 48;
/// Documents in one text: more than the pods of a large cluster.
const MAX_DOCUMENTS: usize = 200_000;
/// Scalars, lists and mappings in one text.
const MAX_NODES: usize = 10_000_000;
/// Values that aliases may repeat.
const MAX_ALIASED: usize = 50_000;

/// A value and the line on which it begins.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Node {
    /// Line, from 1.
    pub(super) line: u64,
    /// What stands there.
    pub(super) value: Value,
}

/// A value as written. Text is text only where YAML's core schema finds nothing else, or where it is quoted.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value {
    Null,
    Bool(bool),
    Integer(i128),
    Float(f64),
    Text(String),
    List(Vec<Node>),
    Map(Vec<Entry>),
}

/// One line of a mapping. A key may stand there twice: the reader reports it.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Entry {
    pub(super) key: String,
    /// Line of the key, from 1.
    pub(super) line: u64,
    pub(super) value: Node,
}

/// Why a text is no YAML at all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct SyntaxError {
    /// Line, from 1; none where the parser does not know.
    pub(super) line: Option<u64>,
    /// What is wrong, for people.
    pub(super) message: String,
}

/// Reads every document of a text. Empty ones are left out.
pub(super) fn parse_text(text: &str) -> Result<Vec<Node>, SyntaxError> {
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_depth: MAX_DEPTH,
            max_documents: MAX_DOCUMENTS,
            max_nodes: MAX_NODES,
            max_events: 3 * MAX_NODES,
        },
        alias_limits: serde_saphyr::alias_limits! { max_total_replayed_events: MAX_ALIASED },
        // Both places are named, and reading goes on, so that all mistakes are reported at once.
        duplicate_keys: DuplicateKeyPolicy::PassThrough,
        // `yes`, `on` and `no` are text, as in YAML 1.2 and in JSON.
        strict_booleans: true,
        with_snippet: false,
    };
    let documents: Vec<Spanned<Value>> =
        serde_saphyr::from_multiple_with_options(text, options).map_err(|error| SyntaxError {
            line: error.location().map(|at| at.line()).filter(|line| *line > 0),
            message: one_line(&error.without_snippet().to_string()),
        })?;
    Ok(documents.into_iter().map(Node::from).collect())
}

/// The parser's message without its line breaks.
fn one_line(message: &str) -> String {
    message.split_whitespace().collect::<Vec<_>>().join(" ")
}

impl From<Spanned<Value>> for Node {
    fn from(spanned: Spanned<Value>) -> Self {
        Self { line: spanned.referenced.line(), value: spanned.value }
    }
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ValueVisitor)
    }
}

struct ValueVisitor;

impl<'de> Visitor<'de> for ValueVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }
    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }
    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }
    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }
    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Integer(value.into()))
    }
    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Integer(value.into()))
    }
    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Value::Float(value))
    }
    fn visit_str<E>(self, text: &str) -> Result<Value, E> {
        Ok(Value::Text(text.to_owned()))
    }
    fn visit_string<E>(self, text: String) -> Result<Value, E> {
        Ok(Value::Text(text))
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Value, A::Error> {
        let mut nodes = Vec::new();
        while let Some(item) = list.next_element::<Spanned<Value>>()? {
            nodes.push(item.into());
        }
        Ok(Value::List(nodes))
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut entries = Vec::new();
        while let Some((key, value)) = map.next_entry::<Spanned<String>, Spanned<Value>>()? {
            entries.push(Entry { line: key.referenced.line(), key: key.value, value: value.into() });
        }
        Ok(Value::Map(entries))
    }
}

impl fmt::Display for Value {
    /// What an operator recognises in a message: scalars as written, the rest by its kind.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Null => f.write_str("null"),
            Self::Bool(value) => value.fmt(f),
            Self::Integer(value) => value.fmt(f),
            Self::Float(value) => value.fmt(f),
            Self::Text(text) => write!(f, "{text:?}"),
            Self::List(_) => f.write_str("a list"),
            Self::Map(_) => f.write_str("a mapping"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(node: &Node) -> &[Entry] {
        match &node.value {
            Value::Map(entries) => entries,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn every_value_knows_its_line() {
        let nodes = parse_text("# comment\na: 1\nb:\n  - x\n  - {c: true}\n---\nd: \"2\"\n").unwrap();
        assert_eq!(nodes.len(), 2);
        let first = map(&nodes[0]);
        assert_eq!(
            (first[0].key.as_str(), first[0].line, &first[0].value.value),
            ("a", 2, &Value::Integer(1))
        );
        let Value::List(items) = &first[1].value.value else { panic!("{first:?}") };
        assert_eq!((items[0].line, items[1].line), (4, 5));
        assert_eq!(map(&nodes[1])[0].value, Node { line: 7, value: Value::Text("2".into()) });
    }

    #[test]
    fn empty_documents_are_left_out_and_json_is_read() {
        assert_eq!(parse_text("").unwrap(), vec![]);
        assert_eq!(parse_text("---\n---\n# nothing\n").unwrap(), vec![]);
        let nodes = parse_text("{\n\t\"a\": [1, null, -2.5]\n}\n").unwrap();
        let Value::List(items) = &map(&nodes[0])[0].value.value else { panic!("{nodes:?}") };
        let values: Vec<_> = items.iter().map(|node| node.value.clone()).collect();
        assert_eq!(values, [Value::Integer(1), Value::Null, Value::Float(-2.5)]);
    }

    #[test]
    fn duplicate_keys_are_kept_for_the_reader_to_report() {
        assert_eq!(map(&parse_text("a: 1\na: 2\n").unwrap()[0]).len(), 2);
    }

    #[test]
    fn yes_and_on_are_text() {
        let nodes = parse_text("a: yes\nb: on\nc: true\n").unwrap();
        let values: Vec<_> = map(&nodes[0]).iter().map(|entry| entry.value.value.clone()).collect();
        assert_eq!(values, [Value::Text("yes".into()), Value::Text("on".into()), Value::Bool(true)]);
    }

    #[test]
    fn what_is_no_yaml_names_its_line() {
        let error = parse_text("a: 1\nb: [1, 2\nc: 3\n").unwrap_err();
        assert!(error.line.is_some_and(|line| line >= 2), "{error:?}");
        assert!(!error.message.is_empty() && !error.message.contains('\n'), "{error:?}");
    }

    #[test]
    fn bottomless_nesting_and_alias_bombs_are_refused() {
        assert!(parse_text(&"[".repeat(100_000)).is_err());
        assert!(parse_text(&"- ".repeat(100_000)).is_err());
        let mut bomb = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
        for i in 1..12 {
            let previous = format!("*a{}, ", i - 1).repeat(10);
            bomb += &format!("a{i}: &a{i} [{previous}]\n");
        }
        assert!(parse_text(&bomb).is_err());
    }
}
