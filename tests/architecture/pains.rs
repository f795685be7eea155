//! The tables of ARCHITECTURE.md that name tests: every name must be a test's, every row must have one or say why not.

use super::{root, sources};

const BEGIN: &str = "<!-- tests: begin -->";
const END: &str = "<!-- tests: end -->";

/// The cells of every row between the marks, table heads left out.
fn rows() -> Vec<Vec<String>> {
    let text = std::fs::read_to_string(root().join("ARCHITECTURE.md")).expect("ARCHITECTURE.md");
    let (_, rest) = text.split_once(BEGIN).expect("the begin mark");
    let (tables, _) = rest.split_once(END).expect("the end mark");
    let cells = |line: &str| {
        line.trim_matches('|').split(" | ").map(|cell| cell.trim().to_owned()).collect::<Vec<_>>()
    };
    let lines: Vec<&str> = tables.lines().filter(|line| line.starts_with('|')).collect();
    let is_rule = |line: &str| line.starts_with("|---");
    lines
        .iter()
        .enumerate()
        .filter(|(n, line)| !is_rule(line) && !lines.get(n + 1).is_some_and(|next| is_rule(next)))
        .map(|(_, line)| cells(line))
        .collect()
}

/// Text between backticks that looks like a test's name.
fn names(cell: &str) -> impl Iterator<Item = &str> {
    cell.split('`')
        .skip(1)
        .step_by(2)
        .filter(|name| name.contains('_') && !name.contains(['.', ':', ' ', '/']))
}

#[test]
fn every_named_test_exists() {
    let tests: Vec<String> = sources().into_iter().map(|(_, text)| text).collect();
    let exists = |name: &str| tests.iter().any(|text| text.contains(&format!("fn {name}(")));
    let rows = rows();
    assert!(rows.len() > 40, "the tables were found");
    let missing: Vec<&str> = rows
        .iter()
        .filter_map(|row| row.last())
        .flat_map(|cell| names(cell))
        .filter(|name| !exists(name))
        .collect();
    assert!(missing.is_empty(), "named in ARCHITECTURE.md and not in the sources: {missing:?}");
}

#[test]
fn every_row_has_a_test_or_a_reason() {
    let bare: Vec<String> = rows()
        .into_iter()
        .filter(|row| {
            let tested = row.last().is_some_and(|cell| names(cell).next().is_some());
            let explained =
                row.iter().any(|cell| cell.starts_with("not ours: ") || cell.starts_with("later: "));
            !tested && !explained
        })
        .map(|row| row.join(" | "))
        .collect();
    assert!(bare.is_empty(), "neither a test, nor \"not ours: …\", nor \"later: …\":\n{}", bare.join("\n"));
}
