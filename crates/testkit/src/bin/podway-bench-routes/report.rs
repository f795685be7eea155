//! Medians, ratios, budgets.

use std::process::Command;

use anyhow::{Context as _, Result};

/// What a row must keep to.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Budget {
    /// The first column's value at most.
    Seconds(f64),
    /// The first column's value at most.
    Mebibytes(f64),
    /// So many times the second column's at most.
    Peer(f64),
    /// Nothing: only to know.
    None,
}

/// Of a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unit {
    Seconds,
    Milliseconds,
    Mebibytes,
}

/// One way's values, one per run.
#[derive(Debug, Clone)]
pub(crate) struct Values {
    name: String,
    unit: Unit,
    values: Vec<f64>,
}

impl Values {
    pub(crate) fn new(name: &str, unit: Unit) -> Self {
        Self { name: name.to_owned(), unit, values: vec![] }
    }

    pub(crate) fn push(&mut self, value: f64) {
        self.values.push(value);
    }

    fn median(&self) -> f64 {
        let mut sorted = self.values.clone();
        sorted.sort_by(f64::total_cmp);
        sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
    }

    fn text(&self, value: f64) -> String {
        match self.unit {
            Unit::Seconds => format!("{value:.3} s"),
            Unit::Milliseconds => format!("{value:.1} ms"),
            Unit::Mebibytes => format!("{value:.1} MiB"),
        }
    }
}

struct Row {
    title: String,
    budget: Budget,
    values: Vec<Values>,
}

impl Row {
    fn first(&self) -> f64 {
        self.values.first().map_or(f64::NAN, Values::median)
    }

    /// Of the first over the second.
    fn ratio(&self) -> Option<f64> {
        Some(self.first() / self.values.get(1)?.median())
    }

    fn is_met(&self) -> bool {
        match self.budget {
            Budget::Seconds(most) | Budget::Mebibytes(most) => self.first() <= most,
            Budget::Peer(most) => self.ratio().is_some_and(|ratio| ratio <= most),
            Budget::None => true,
        }
    }
}

/// Everything that was measured.
pub(crate) struct Report {
    runs: usize,
    head: String,
    rows: Vec<Row>,
}

fn first_line(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    text.lines().next().unwrap_or("unknown").trim().to_owned()
}

impl Report {
    pub(crate) fn new(runs: usize) -> Result<Self> {
        let cpu = std::fs::read_to_string("/proc/cpuinfo")?;
        let model = cpu.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
        let cores = cpu.lines().filter(|line| line.starts_with("processor")).count();
        let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").context("kernel version")?;
        let load = std::fs::read_to_string("/proc/loadavg")?;
        let head = format!(
            "{}, commit {}. {} x {}, kernel {}, {}, {}. Load of the machine at the start: {}.",
            first_line("date", &["-u", "+%Y-%m-%d"]),
            first_line("git", &["rev-parse", "--short", "HEAD"]),
            cores,
            model.map_or("unknown processor", |(_, name)| name.trim()),
            kernel.trim(),
            first_line("ip", &["-V"]),
            first_line("etcd", &["--version"]),
            load.split(' ').next().unwrap_or_default(),
        );
        Ok(Self { runs, head, rows: vec![] })
    }

    /// The first of the values is ours, the second the one that a budget compares with.
    pub(crate) fn row(&mut self, title: &str, budget: Budget, values: Vec<Values>) {
        let row = Row { title: title.to_owned(), budget, values };
        let each: Vec<String> = row
            .values
            .iter()
            .map(|values| {
                let all: Vec<String> = values.values.iter().map(|value| values.text(*value)).collect();
                format!("{}: {}", values.name, all.join(", "))
            })
            .collect();
        println!("{title}: {}", each.join("; "));
        self.rows.push(row);
    }

    pub(crate) fn is_within_budget(&self) -> bool {
        self.rows.iter().all(Row::is_met)
    }

    /// A page of Markdown.
    pub(crate) fn text(&self) -> String {
        let mut table =
            String::from("| work | Podway | beside it | ratio | budget |\n|---|---|---|---|---|\n");
        for row in &self.rows {
            let (ours, others) = row.values.split_at(row.values.len().min(1));
            let own = ours.first().map(|values| values.text(values.median())).unwrap_or_default();
            let beside: Vec<String> = others
                .iter()
                .map(|values| format!("{} {}", values.name, values.text(values.median())))
                .collect();
            let budget = match row.budget {
                Budget::Seconds(most) => format!("{most} s"),
                Budget::Mebibytes(most) => format!("{most} MiB"),
                Budget::Peer(most) => format!("{most}x"),
                Budget::None => "none".to_owned(),
            };
            let verdict = match row.budget {
                Budget::None => budget,
                _ if row.is_met() => format!("{budget}: met"),
                _ => format!("{budget}: MISSED"),
            };
            let ratio = row.ratio().map(|ratio| format!("{ratio:.2}")).unwrap_or_default();
            table += &format!("| {} | {own} | {} | {ratio} | {verdict} |\n", row.title, beside.join("; "));
        }
        format!("# Routes\n\n`cargo xtask bench routes`, medians of {}. {}\n\n{table}", self.runs, self.head)
    }
}
