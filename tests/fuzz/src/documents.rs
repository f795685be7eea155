//! What operators write: documents, the node configuration, label selectors.

use podway_model::document::{Document, overlapping_pools, parse_config, parse_documents};
use podway_model::k8s::{LabelSelector, Labels};
use podway_model::mistakes::Mistakes;
use podway_policy::validity;

/// Documents that can be read can be written, in both forms, and read again. Mistakes have words.
pub fn documents(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let documents = match parse_documents("input", &text) {
        Ok(documents) => documents,
        Err(mistakes) => return worded(&mistakes),
    };
    for document in &documents {
        let key = document.key();
        assert_eq!(key.to_string().parse().as_ref(), Ok(&key));
        let stored = Document::from_store(&key, &document.to_json()).expect("own value");
        assert_eq!(stored, *document, "through the store");
        let yaml = document.to_yaml();
        match parse_documents("again", &yaml) {
            Ok(again) => assert_eq!(again, std::slice::from_ref(document), "through YAML:\n{yaml}"),
            Err(mistakes) => assert!(mistakes.is_empty(), "{mistakes}\n{yaml}"),
        }
        if let Document::NetworkPolicy(policy) = document {
            let _ = validity::problems(policy);
        }
    }
    let pools = documents.iter().filter_map(|document| match document {
        Document::Pool { name, spec } => Some((name, spec)),
        _ => None,
    });
    let overlaps = overlapping_pools(pools);
    assert!(overlaps.is_empty(), "documents that overlap are refused: {overlaps:?}");
}

fn worded(mistakes: &Mistakes) {
    assert!(!mistakes.is_empty(), "refused without a reason");
    assert!(mistakes.0.iter().all(|mistake| !mistake.to_string().is_empty()));
}

/// The configuration file of a node.
pub fn node_config(bytes: &[u8]) {
    match parse_config("input", &String::from_utf8_lossy(bytes)) {
        Ok(config) => assert_eq!(config, config.clone()),
        Err(mistakes) => worded(&mistakes),
    }
}

/// A selector and labels, a line each: what is valid matches as its parts do.
pub fn selectors(bytes: &[u8]) {
    let mut lines = bytes.splitn(2, |byte| *byte == b'\n');
    let selector = lines.next().and_then(crate::contracts::json_round_trip::<LabelSelector>);
    let labels =
        lines.next().and_then(|line| serde_json::from_slice::<Labels>(line).ok()).unwrap_or_default();
    let Some(selector) = selector else { return };
    let _ = validity::selector_is_valid(&selector);
    let whole = selector.matches(&labels);
    let pairs = selector.match_labels.iter().all(|(key, value)| labels.get(key) == Some(value));
    let parts = selector.match_expressions.iter().all(|requirement| requirement.matches(&labels));
    assert_eq!(whole, pairs && parts);
    if selector == LabelSelector::default() {
        assert!(whole, "an empty selector selects all");
    }
}
