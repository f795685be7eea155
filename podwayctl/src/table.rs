//! Tables for people: columns as wide as they need to be, two blanks between them, none at the end of a line.

use std::fmt::Write as _;

/// How a cell is shown on a terminal.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Tone {
    /// As it is.
    #[default]
    Plain,
    /// Green.
    Good,
    /// Red.
    Bad,
    /// Yellow.
    Warning,
}

impl Tone {
    /// SGR sequence, empty for plain text.
    fn sequence(self) -> &'static str {
        match self {
            Self::Plain => "",
            Self::Good => "\x1b[32m",
            Self::Bad => "\x1b[31m",
            Self::Warning => "\x1b[33m",
        }
    }
}

/// Text in a tone, if `colour`.
pub(crate) fn paint(text: &str, tone: Tone, colour: bool) -> String {
    match (colour, tone) {
        (false, _) | (_, Tone::Plain) => text.to_owned(),
        _ => format!("{}{text}\x1b[0m", tone.sequence()),
    }
}

/// A cell.
#[derive(Debug, Clone, Default)]
pub(crate) struct Cell {
    text: String,
    tone: Tone,
}

impl Cell {
    /// A cell with a tone.
    pub(crate) fn toned(text: impl Into<String>, tone: Tone) -> Self {
        Self { text: text.into(), tone }
    }
}

impl<T: Into<String>> From<T> for Cell {
    fn from(text: T) -> Self {
        Self { text: text.into(), tone: Tone::Plain }
    }
}

/// A table.
#[derive(Debug)]
pub(crate) struct Table {
    heads: Vec<&'static str>,
    rows: Vec<Vec<Cell>>,
}

impl Table {
    /// An empty table.
    pub(crate) fn new(heads: &[&'static str]) -> Self {
        Self { heads: heads.to_vec(), rows: Vec::new() }
    }

    /// Adds a row: one cell per head. Empty ones show as `-`.
    pub(crate) fn row(&mut self, cells: Vec<Cell>) {
        debug_assert_eq!(cells.len(), self.heads.len());
        self.rows.push(cells);
    }

    /// Whether there is no row.
    pub(crate) fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The table as text, each line behind `indent` blanks.
    pub(crate) fn render(&self, colour: bool, indent: usize) -> String {
        let shown = |cell: &Cell| if cell.text.is_empty() { "-".to_owned() } else { cell.text.clone() };
        let width = |column: usize| {
            let cells =
                self.rows.iter().filter_map(|row| row.get(column)).map(|cell| shown(cell).chars().count());
            cells.chain([self.heads[column].len()]).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..self.heads.len()).map(width).collect();
        let mut text = String::new();
        let mut line = |cells: Vec<Cell>| {
            let mut line = " ".repeat(indent);
            let last = cells.len().saturating_sub(1);
            for (column, (cell, width)) in cells.iter().zip(&widths).enumerate() {
                let plain = shown(cell);
                let pad = if column == last { 0 } else { width.saturating_sub(plain.chars().count()) + 2 };
                let _ = write!(line, "{}{}", paint(&plain, cell.tone, colour), " ".repeat(pad));
            }
            text.push_str(line.trim_end());
            text.push('\n');
        };
        // A head may be empty: the column explains itself.
        line(self.heads.iter().map(|head| Cell::from(if head.is_empty() { " " } else { *head })).collect());
        for row in &self.rows {
            line(row.clone());
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Table {
        let mut table = Table::new(&["NAME", "STATE", "BLOCKS"]);
        table.row(vec!["n1".into(), Cell::toned("live", Tone::Good), "10.0.0.0/26".into()]);
        table.row(vec!["a-longer-name".into(), Cell::toned("down", Tone::Bad), "".into()]);
        table
    }

    #[test]
    fn columns_are_aligned_and_empty_cells_shown() {
        assert_eq!(
            table().render(false, 2),
            "  NAME           STATE  BLOCKS\n  n1             live   10.0.0.0/26\n  a-longer-name  down   -\n"
        );
    }

    #[test]
    fn colours_do_not_shift_columns() {
        let coloured = table().render(true, 0);
        assert!(coloured.contains("\x1b[32mlive\x1b[0m   10.0.0.0/26"), "{coloured:?}");
        let plain = coloured.replace("\x1b[32m", "").replace("\x1b[31m", "").replace("\x1b[0m", "");
        assert_eq!(plain, table().render(false, 0));
    }
}
