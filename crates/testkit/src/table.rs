//! Tables for people.

use std::fmt;

/// Rows of cells under a heading; columns are as wide as their widest cell.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Table {
    heading: Vec<String>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// An empty table.
    pub fn new<S: Into<String>>(heading: impl IntoIterator<Item = S>) -> Self {
        Self { heading: heading.into_iter().map(Into::into).collect(), rows: vec![] }
    }

    /// Adds a row.
    pub fn row<S: Into<String>>(&mut self, cells: impl IntoIterator<Item = S>) {
        self.rows.push(cells.into_iter().map(Into::into).collect());
    }

    /// The same for a page of the repository.
    pub fn to_markdown(&self) -> String {
        let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
        let rule = format!("|{}\n", "---|".repeat(self.heading.len()));
        [line(&self.heading), rule].into_iter().chain(self.rows.iter().map(|row| line(row))).collect()
    }

    /// The same as JSON: an object for each row, keyed by the heading.
    pub fn to_json(&self) -> serde_json::Value {
        let object = |row: &Vec<String>| -> serde_json::Value {
            let pairs = self.heading.iter().zip(row).map(|(key, cell)| (key.clone(), cell.clone().into()));
            serde_json::Value::Object(pairs.collect())
        };
        self.rows.iter().map(object).collect()
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut widths: Vec<usize> = vec![];
        for row in std::iter::once(&self.heading).chain(&self.rows) {
            widths.resize(widths.len().max(row.len()), 0);
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(cell.chars().count());
            }
        }
        for row in std::iter::once(&self.heading).chain(&self.rows) {
            let mut line = String::from("  ");
            for (width, cell) in widths.iter().zip(row) {
                line.push_str(cell);
                line.push_str(&" ".repeat(width + 2 - cell.chars().count()));
            }
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let mut table = Table::new(["NODE", "BLOCK"]);
        table.row(["n1", "10.244.0.0/26"]);
        table.row(["node-2", "-"]);
        assert_eq!(
            table.to_markdown(),
            "| NODE | BLOCK |\n|---|---|\n| n1 | 10.244.0.0/26 |\n| node-2 | - |\n"
        );
        assert_eq!(table.to_string(), "  NODE    BLOCK\n  n1      10.244.0.0/26\n  node-2  -\n");
    }
}
