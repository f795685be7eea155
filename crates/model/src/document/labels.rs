//! Labels and label selectors, with the syntax that the API server enforces
//! (`k8s.io/apimachinery/pkg/util/validation` and `.../apis/meta/v1/validation`).

use super::reader::Field;
use crate::k8s::{LabelRequirement, LabelSelector, Labels, SelectorOperator};

const KEY: &str = "a label key ([prefix/]name; name: at most 63 letters, digits, '-', '_' and '.', beginning and \
                   ending with a letter or digit; prefix: a DNS name)";
const VALUE: &str = "a label value (empty, or at most 63 letters, digits, '-', '_' and '.', beginning and ending \
                     with a letter or digit)";

/// Name part of a qualified name, and non-empty label values.
fn is_label_word(text: &str) -> bool {
    let bytes = text.as_bytes();
    matches!((bytes.first(), bytes.last()), (Some(a), Some(z)) if a.is_ascii_alphanumeric() && z.is_ascii_alphanumeric())
        && bytes.len() <= 63
        && bytes.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
}

/// Qualified name: `[prefix/]name`.
pub(super) fn is_key(text: &str) -> bool {
    match text.split_once('/') {
        Some((prefix, name)) => prefix.parse::<crate::ids::ObjectName>().is_ok() && is_label_word(name),
        None => is_label_word(text),
    }
}

/// Label value; may be empty.
pub(super) fn is_value(text: &str) -> bool {
    text.is_empty() || is_label_word(text)
}

/// `labels:` and `matchLabels:`.
pub(super) fn read(field: &Field<'_>) -> Option<Labels> {
    let entries = field.text_map("a mapping of label keys to values")?;
    let read = entries.into_iter().map(|(key, value)| {
        let good_key = is_key(key);
        if !good_key {
            value.note(format!("{key:?}"), KEY);
        }
        let text = label_value(&value)?;
        good_key.then(|| (key.to_owned(), text))
    });
    read.collect::<Vec<Option<_>>>().into_iter().collect()
}

/// `annotations:`: any text; keys are checked, values are not.
pub(super) fn annotations(field: &Field<'_>) -> Option<Labels> {
    let entries = field.text_map("a mapping of annotation keys to text")?;
    let read = entries.into_iter().map(|(key, value)| {
        let good_key = is_key(&key.to_lowercase());
        if !good_key {
            value.note(format!("{key:?}"), KEY.replace("label", "annotation"));
        }
        let text = value.text("text")?;
        good_key.then(|| (key.to_owned(), text.to_owned()))
    });
    read.collect::<Vec<Option<_>>>().into_iter().collect()
}

/// A label selector; unknown keys are refused.
pub(super) fn selector(field: &Field<'_>) -> Option<LabelSelector> {
    let map = field.map("a label selector ({} selects everything)")?;
    let match_labels = map.or("matchLabels", Labels::new(), read);
    let match_expressions =
        map.or("matchExpressions", vec![], |f| f.list("a list of requirements", requirement));
    map.refuse_unknown();
    Some(LabelSelector { match_labels: match_labels?, match_expressions: match_expressions? })
}

fn requirement(field: &Field<'_>) -> Option<LabelRequirement> {
    use SelectorOperator::{DoesNotExist, Exists, In, NotIn};
    let map = field.map("a requirement (key, operator, values)")?;
    let key = map.required("key", KEY).and_then(|f| {
        let text = f.text(KEY)?;
        if !is_key(text) {
            f.wrong(KEY);
            return None;
        }
        Some(text.to_owned())
    });
    let words = [("In", In), ("NotIn", NotIn), ("Exists", Exists), ("DoesNotExist", DoesNotExist)];
    let operator =
        map.required("operator", "In, NotIn, Exists or DoesNotExist").and_then(|f| f.one_of(&words));
    let values = map.or("values", vec![], |f| f.list("a list of label values", label_value));
    map.refuse_unknown();
    let (key, operator, values) = (key?, operator?, values?);
    // ValidateLabelSelectorRequirement of apimachinery.
    match operator {
        In | NotIn if values.is_empty() => {
            let expected = format!("values: at least one, for operator {operator:?}");
            field.note("no value", expected);
            None
        }
        Exists | DoesNotExist if !values.is_empty() => {
            field.note("values", format!("no values, for operator {operator:?}"));
            None
        }
        _ => Some(LabelRequirement { key, operator, values }),
    }
}

fn label_value(field: &Field<'_>) -> Option<String> {
    let text = field.text(VALUE)?;
    if !is_value(text) {
        field.wrong(VALUE);
        return None;
    }
    Some(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_and_values_follow_the_api_server() {
        let long = "a".repeat(63);
        for good in ["app", "a", "A.b_c-d", "kubernetes.io/metadata.name", "x/y", long.as_str()] {
            assert!(is_key(good), "{good}");
        }
        for bad in ["", "-a", "a-", "a/", "/a", "a/b/c", "UPPER.io/a", "a b", "ä", &"a".repeat(64)] {
            assert!(!is_key(bad), "{bad}");
        }
        for (value, good) in [("", true), ("Web-1", true), ("a/b", false), ("_a", false), ("a b", false)] {
            assert_eq!(is_value(value), good, "{value}");
        }
        assert!(!is_value(&"a".repeat(64)));
    }
}
