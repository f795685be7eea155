//! `tests/skips.toml`: the reasons for which a test may be skipped. A reason that does not stand there is news, and
//! news must not hide in a long list.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::{Context as _, Result};

/// Skipped tests whose reason is not named.
pub(crate) fn unknown(skipped: &BTreeMap<String, String>, workspace: &Path) -> Result<Vec<String>> {
    let path = workspace.join("tests/skips.toml");
    let text = std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    let known = reasons(&text);
    Ok(skipped
        .iter()
        .filter(|(_, reason)| !known.contains(reason.as_str()))
        .map(|(test, reason)| format!("{test} ({reason})"))
        .collect())
}

/// The quoted keys below `[reasons]`: all that is needed of TOML here.
fn reasons(text: &str) -> BTreeSet<&str> {
    text.lines()
        .skip_while(|line| line.trim() != "[reasons]")
        .skip(1)
        .take_while(|line| !line.starts_with('['))
        .filter_map(|line| line.trim().strip_prefix('"')?.split_once('"'))
        .map(|(reason, _)| reason)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_are_the_keys_of_their_table() {
        let text = "# \"a comment\" = 1\n[reasons]\n\"needs root\" = \"why\"\n\n\"no overlay\" = \"x\"\n[other]\n\"b\" = 1\n";
        assert_eq!(reasons(text).into_iter().collect::<Vec<_>>(), ["needs root", "no overlay"]);
    }

    #[test]
    fn the_file_of_the_workspace_names_reasons() {
        let skipped = BTreeMap::from([
            ("a".to_owned(), "needs root".to_owned()),
            ("b".to_owned(), "the moon is full".to_owned()),
        ]);
        assert_eq!(unknown(&skipped, &crate::build::workspace()).unwrap(), ["b (the moon is full)"]);
    }
}
