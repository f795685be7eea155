//! What the demo tells: progress and tables for people, or one JSON document.

use std::io::Write as _;
use std::time::Instant;

use podway_testkit::table::Table;
use serde_json::{Map, Value, json};

/// Collects and prints.
#[derive(Debug)]
pub(crate) struct Report {
    json: bool,
    started: Instant,
    sections: Vec<(String, Map<String, Value>)>,
    differences: Vec<String>,
}

impl Report {
    pub(crate) fn new(json: bool) -> Self {
        Self { json, started: Instant::now(), sections: vec![], differences: vec![] }
    }

    /// A line for people: standard output, or standard error where that belongs to JSON.
    pub(crate) fn say(&self, line: &str) {
        // A closed pipe is nobody's problem.
        let _ = if self.json {
            writeln!(std::io::stderr(), "{line}")
        } else {
            writeln!(std::io::stdout(), "{line}")
        };
    }

    /// Starts a section.
    pub(crate) fn section(&mut self, title: &str) {
        self.say(&format!("\n== {title}  [{:.1} s]", self.started.elapsed().as_secs_f32()));
        self.sections.push((title.to_owned(), Map::new()));
    }

    /// Prints a table under a caption.
    pub(crate) fn table(&mut self, caption: &str, table: &Table) {
        self.say(&format!("\n{caption}"));
        self.say(table.to_string().trim_end());
        self.fact(caption, table.to_json());
    }

    /// A line with a figure: printed, and kept under `key`.
    pub(crate) fn figure(&mut self, key: &str, value: impl Into<Value>, line: &str) {
        self.say(line);
        self.fact(key, value.into());
    }

    fn fact(&mut self, key: &str, value: Value) {
        if let Some((_, facts)) = self.sections.last_mut() {
            facts.insert(key.to_owned(), value);
        }
    }

    /// Something that must hold: a difference if not.
    pub(crate) fn expect(&mut self, holds: bool, otherwise: impl FnOnce() -> String) {
        if !holds {
            self.differ(otherwise());
        }
    }

    /// Something differs from what is expected.
    pub(crate) fn differ(&mut self, what: String) {
        self.say(&format!("  DIFFERS: {what}"));
        self.differences.push(what);
    }

    pub(crate) fn differences(&self) -> &[String] {
        &self.differences
    }

    /// The end of a demo that ran.
    pub(crate) fn finish(&self) {
        let seconds = self.started.elapsed().as_secs_f32();
        if self.differences.is_empty() {
            self.say(&format!("\nAll as expected, in {seconds:.1} s."));
        } else {
            self.say(&format!("\n{} differences from what is expected:", self.differences.len()));
            for difference in &self.differences {
                self.say(&format!("  {difference}"));
            }
        }
        self.print_json(None);
    }

    /// The end of a demo that could not run.
    pub(crate) fn failed(&self, error: &anyhow::Error) {
        self.say(&format!("\nThe demo could not run: {error:#}"));
        self.print_json(Some(error));
    }

    fn print_json(&self, error: Option<&anyhow::Error>) {
        if !self.json {
            return;
        }
        let sections: Vec<Value> =
            self.sections.iter().map(|(title, facts)| json!({"title": title, "facts": facts})).collect();
        let document = json!({
            "asExpected": error.is_none() && self.differences.is_empty(),
            "error": error.map(|e| format!("{e:#}")),
            "differences": self.differences,
            "seconds": self.started.elapsed().as_secs_f64(),
            "sections": sections,
        });
        let _ = writeln!(std::io::stdout(), "{document:#}");
    }
}
