//! The field reader: walks a [`Node`] tree, knows the path and the line, and collects every mistake instead of
//! stopping at the first.
//!
//! A reading function returns `None` after it has written down what is wrong; the caller goes on with the other
//! fields, and whoever started looks at the collected mistakes in the end.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use super::node::{Entry, Node, Value};
use crate::mistakes::Mistakes;

/// Where mistakes of one text are collected.
#[derive(Debug)]
pub(super) struct Notes<'a> {
    source: &'a str,
    mistakes: RefCell<Mistakes>,
}

impl<'a> Notes<'a> {
    /// Nothing found yet in `source`.
    pub(super) fn new(source: &'a str) -> Self {
        Self { source, mistakes: RefCell::default() }
    }

    /// Writes one down.
    pub(super) fn add(
        &self,
        line: Option<u64>,
        path: &str,
        found: impl fmt::Display,
        expected: impl Into<String>,
    ) {
        let source = match line {
            Some(line) => format!("{}:{line}", self.source),
            None => self.source.to_owned(),
        };
        self.mistakes.borrow_mut().add(source, path, found, expected);
    }

    /// What was found, in the order in which it was found.
    pub(super) fn finish(self) -> Mistakes {
        self.mistakes.into_inner()
    }
}

/// A value, the way to it, and where to write mistakes.
#[derive(Clone)]
pub(super) struct Field<'a> {
    notes: &'a Notes<'a>,
    node: &'a Node,
    /// `spec.ingress[0].ports`; empty for a whole document.
    path: String,
}

impl<'a> Field<'a> {
    /// A whole document.
    pub(super) fn document(notes: &'a Notes<'a>, node: &'a Node) -> Self {
        Self { notes, node, path: String::new() }
    }

    /// Line on which it stands.
    pub(super) fn line(&self) -> u64 {
        self.node.line
    }

    /// Writes down that something else was expected here.
    pub(super) fn wrong(&self, expected: impl Into<String>) {
        self.notes.add(Some(self.node.line), &self.path, &self.node.value, expected);
    }

    /// Writes down something about this field, in own words.
    pub(super) fn note(&self, found: impl fmt::Display, expected: impl Into<String>) {
        self.notes.add(Some(self.node.line), &self.path, found, expected);
    }

    /// Text. A number or truth value must be quoted to be text, as for Kubernetes.
    pub(super) fn text(&self, expected: &str) -> Option<&'a str> {
        match &self.node.value {
            Value::Text(text) => Some(text),
            Value::Bool(_) | Value::Integer(_) | Value::Float(_) => {
                self.wrong(format!("{expected} (text: put it in quotes)"));
                None
            }
            _ => {
                self.wrong(expected);
                None
            }
        }
    }

    /// Text that parses as `T`.
    pub(super) fn parse<T: FromStr>(&self, expected: &str) -> Option<T> {
        let value = self.text(expected)?.parse().ok();
        if value.is_none() {
            self.wrong(expected);
        }
        value
    }

    /// Text that is one of these words.
    pub(super) fn one_of<T: Copy>(&self, words: &[(&str, T)]) -> Option<T> {
        let names: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
        let expected = or_list(&names);
        let text = self.text(&expected)?;
        let value = words.iter().find(|(word, _)| *word == text).map(|(_, value)| *value);
        if value.is_none() {
            match closest(text, &names) {
                Some(word) => self.wrong(format!("{expected} (did you mean {word:?}?)")),
                None => self.wrong(expected),
            }
        }
        value
    }

    /// `true` or `false`.
    pub(super) fn boolean(&self) -> Option<bool> {
        if let Value::Bool(value) = self.node.value {
            return Some(value);
        }
        self.wrong("true or false");
        None
    }

    /// A whole number for which `T` has room; `expected` says which.
    pub(super) fn integer<T: TryFrom<i128>>(&self, expected: &str) -> Option<T> {
        let value = match self.node.value {
            Value::Integer(value) => T::try_from(value).ok(),
            _ => None,
        };
        if value.is_none() {
            self.wrong(expected);
        }
        value
    }

    /// A whole number in this range.
    pub(super) fn integer_in(&self, range: std::ops::RangeInclusive<i128>, expected: &str) -> Option<i128> {
        let value = match self.node.value {
            Value::Integer(value) if range.contains(&value) => Some(value),
            _ => None,
        };
        if value.is_none() {
            self.wrong(expected);
        }
        value
    }

    /// The whole number, if it is one; nothing is written down otherwise.
    pub(super) fn as_integer(&self) -> Option<i128> {
        match self.node.value {
            Value::Integer(value) => Some(value),
            _ => None,
        }
    }

    /// The text, if it is text; nothing is written down otherwise.
    pub(super) fn as_text(&self) -> Option<&'a str> {
        match &self.node.value {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    /// The items of a list.
    pub(super) fn items(&self, expected: &str) -> Option<Vec<Field<'a>>> {
        let Value::List(nodes) = &self.node.value else {
            self.wrong(expected);
            return None;
        };
        let item = |(i, node)| Field { notes: self.notes, node, path: format!("{}[{i}]", self.path) };
        Some(nodes.iter().enumerate().map(item).collect())
    }

    /// Reads every item of a list. None if an item could not be read.
    pub(super) fn list<T>(&self, expected: &str, read: impl Fn(&Field<'a>) -> Option<T>) -> Option<Vec<T>> {
        let items = self.items(expected)?;
        let read: Vec<Option<T>> = items.iter().map(read).collect();
        read.into_iter().collect()
    }

    /// A mapping with known keys.
    pub(super) fn map(&self, expected: &str) -> Option<Map<'a>> {
        let Value::Map(entries) = &self.node.value else {
            self.wrong(expected);
            return None;
        };
        let mut first: BTreeMap<&str, u64> = BTreeMap::new();
        for entry in entries {
            if let Some(line) = first.get(entry.key.as_str()) {
                let expected = format!("it once (line {line} has it)");
                self.notes.add(Some(entry.line), &self.child(&entry.key), "the same key again", expected);
            } else {
                first.insert(&entry.key, entry.line);
            }
        }
        Some(Map { field: self.clone(), entries, asked: RefCell::default() })
    }

    /// A mapping with keys that the operator chooses, and text as values.
    pub(super) fn text_map(&self, expected: &str) -> Option<Vec<(&'a str, Field<'a>)>> {
        let map = self.map(expected)?;
        Some(map.entries.iter().map(|entry| (entry.key.as_str(), map.value(entry))).collect())
    }

    fn child(&self, key: &str) -> String {
        match (self.path.is_empty(), key.contains(['.', '/', '['])) {
            (true, _) => key.to_owned(),
            (false, false) => format!("{}.{key}", self.path),
            (false, true) => format!("{}[{key:?}]", self.path),
        }
    }
}

/// A mapping with known keys: those that were asked for.
pub(super) struct Map<'a> {
    field: Field<'a>,
    entries: &'a [Entry],
    asked: RefCell<Vec<&'static str>>,
}

impl<'a> Map<'a> {
    /// The value of a key, if it is there and not null.
    pub(super) fn optional(&self, key: &'static str) -> Option<Field<'a>> {
        self.asked.borrow_mut().push(key);
        let entry = self.entries.iter().find(|entry| entry.key == key)?;
        (entry.value.value != Value::Null).then(|| self.value(entry))
    }

    /// The value of a key that must be there.
    pub(super) fn required(&self, key: &'static str, expected: &str) -> Option<Field<'a>> {
        let field = self.optional(key);
        if field.is_none() {
            self.field.notes.add(Some(self.field.node.line), &self.field.child(key), "nothing", expected);
        }
        field
    }

    /// Reads a key if it is there, else takes the default. None only after a mistake.
    pub(super) fn or<T>(
        &self,
        key: &'static str,
        default: T,
        read: impl FnOnce(&Field<'a>) -> Option<T>,
    ) -> Option<T> {
        match self.optional(key) {
            Some(field) => read(&field),
            None => Some(default),
        }
    }

    /// Reads a key if it is there. None only after a mistake.
    pub(super) fn maybe<T>(
        &self,
        key: &'static str,
        read: impl FnOnce(&Field<'a>) -> Option<T>,
    ) -> Option<Option<T>> {
        match self.optional(key) {
            Some(field) => read(&field).map(Some),
            None => Some(None),
        }
    }

    /// Whether a key is there and not null.
    pub(super) fn has(&self, key: &'static str) -> bool {
        self.optional(key).is_some()
    }

    /// The mapping itself, for mistakes about several keys at once.
    pub(super) fn field(&self) -> &Field<'a> {
        &self.field
    }

    /// Writes down every key that nobody asked for, and says whether there was none. To be called last.
    pub(super) fn refuse_unknown(&self) -> bool {
        let mut known = self.asked.borrow().clone();
        known.sort_unstable();
        known.dedup();
        for entry in self.entries.iter().filter(|entry| !known.contains(&entry.key.as_str())) {
            let expected = match closest(&entry.key, &known) {
                Some(key) => format!("{key:?} (did you mean this?)"),
                None => or_list(&known),
            };
            self.field.notes.add(Some(entry.line), &self.field.child(&entry.key), "unknown key", expected);
        }
        self.entries.iter().all(|entry| known.contains(&entry.key.as_str()))
    }

    fn value(&self, entry: &'a Entry) -> Field<'a> {
        Field { notes: self.field.notes, node: &entry.value, path: self.field.child(&entry.key) }
    }
}

/// `"a", "b" or "c"`.
fn or_list(words: &[&str]) -> String {
    let quoted: Vec<String> = words.iter().map(|word| format!("{word:?}")).collect();
    match quoted.split_last() {
        None => "nothing".to_owned(),
        Some((last, [])) => last.clone(),
        Some((last, rest)) => format!("{} or {last}", rest.join(", ")),
    }
}

/// The word that was probably meant: equal but for case, `-` and `_`, or at most two changes away.
fn closest<'w>(text: &str, words: &[&'w str]) -> Option<&'w str> {
    let plain = |word: &str| word.to_lowercase().replace(['-', '_'], "");
    let text = plain(text);
    let limit = if text.chars().count() <= 4 { 1 } else { 2 };
    let nearest = words.iter().map(|word| (distance(&text, &plain(word)), *word)).min()?;
    (nearest.0 <= limit).then_some(nearest.1)
}

/// Edit distance: insertions, deletions, changes, and swaps of neighbours (optimal string alignment).
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().take(64).collect(), b.chars().take(64).collect());
    let mut rows = vec![vec![0; b.len() + 1]; a.len() + 1];
    for (i, row) in rows.iter_mut().enumerate() {
        row[0] = i;
    }
    rows[0] = (0..=b.len()).collect();
    for i in 1..=a.len() {
        for j in 1..=b.len() {
            let change = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut best = change.min(rows[i - 1][j] + 1).min(rows[i][j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(rows[i - 2][j - 2] + 1);
            }
            rows[i][j] = best;
        }
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::super::node::parse_text;
    use super::*;

    /// Reads `text` with `read` and returns what was found wrong, one line each.
    fn mistakes(text: &str, read: impl Fn(Field<'_>)) -> Vec<String> {
        let nodes = parse_text(text).unwrap();
        let notes = Notes::new("f");
        read(Field::document(&notes, &nodes[0]));
        notes.finish().0.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn all_mistakes_are_reported_with_line_and_path() {
        let seen = mistakes("spec:\n  size: x\n  flag: 1\n  name: 7\n  list:\n  - 1\n  - y\n", |document| {
            let map = document.map("a mapping").unwrap();
            let spec = map.required("spec", "a mapping").unwrap().map("a mapping").unwrap();
            spec.required("cidr", "a prefix");
            spec.or("size", 0, |f| f.integer::<u8>("a number from 0 to 255"));
            spec.or("flag", false, |f| f.boolean());
            spec.maybe("name", |f| f.text("a name"));
            spec.maybe("list", |f| f.list("a list", |f| f.integer::<u8>("a number from 0 to 255")));
            spec.refuse_unknown();
        });
        assert_eq!(
            seen,
            [
                "f:2: spec.cidr: nothing found, a prefix expected",
                "f:2: spec.size: \"x\" found, a number from 0 to 255 expected",
                "f:3: spec.flag: 1 found, true or false expected",
                "f:4: spec.name: 7 found, a name (text: put it in quotes) expected",
                "f:7: spec.list[1]: \"y\" found, a number from 0 to 255 expected",
            ]
        );
    }

    #[test]
    fn unknown_and_repeated_keys_are_named() {
        let seen = mistakes("a:\n  cidr: x\n  cdir: y\n  quite.different: z\n  cidr: w\n", |document| {
            let map = document.map("a mapping").unwrap();
            let a = map.required("a", "a mapping").unwrap().map("a mapping").unwrap();
            a.optional("cidr");
            a.optional("nat");
            a.refuse_unknown();
        });
        assert_eq!(
            seen,
            [
                "f:5: a.cidr: the same key again found, it once (line 2 has it) expected",
                "f:3: a.cdir: unknown key found, \"cidr\" (did you mean this?) expected",
                "f:4: a[\"quite.different\"]: unknown key found, \"cidr\" or \"nat\" expected",
            ]
        );
    }

    #[test]
    fn suggestions_are_near_or_absent() {
        let words = ["cidr", "blockSize", "nodeSelector", "nat"];
        for (typed, meant) in [
            ("cdir", Some("cidr")),
            ("CIDR", Some("cidr")),
            ("block-size", Some("blockSize")),
            ("block_sizes", Some("blockSize")),
            ("nodeSelectors", Some("nodeSelector")),
            ("net", Some("nat")),
            ("prefix", None),
            ("", None),
        ] {
            assert_eq!(closest(typed, &words), meant, "{typed}");
        }
    }

    #[test]
    fn words_are_checked_with_a_suggestion() {
        let words = [("host-gw", 1), ("vxlan", 2)];
        let seen = mistakes("vxlna", |field| assert_eq!(field.one_of(&words), None));
        assert_eq!(
            seen,
            ["f:1: \"vxlna\" found, \"host-gw\" or \"vxlan\" (did you mean \"vxlan\"?) expected"]
        );
    }
}
