//! What came out, as tables.

use std::fmt::Write as _;

use anyhow::{Context as _, Result};
use podway_testkit::table::Table;
use serde_json::{Value, json};

use crate::measure::{LIMIT, Load, Outcome};
use crate::rows::{NEWS_BUDGET_MS, NEWS_CLIENTS, Row};
use crate::speakers::{Found, Speaker};

/// Everything that was measured.
pub(crate) struct Report {
    speakers: Vec<Found>,
    runs: usize,
    machine: String,
    rows: Vec<(Row, Vec<Vec<Outcome>>)>,
}

/// The median run of a speaker, number by number; none: it did not finish.
#[derive(Debug, Clone, Copy)]
struct Median {
    seconds: f64,
    cpu_seconds: f64,
    mebibytes: f64,
    news_p50: Option<f64>,
    news_p99: Option<f64>,
    close: Option<f64>,
}

fn middle(mut numbers: Vec<f64>) -> Option<f64> {
    numbers.sort_by(f64::total_cmp);
    numbers.get(numbers.len() / 2).copied()
}

impl Median {
    fn of(outcomes: &[Outcome]) -> Option<Self> {
        if outcomes.iter().any(|outcome| !outcome.load.converged) {
            return None;
        }
        let each = |number: fn(&Load) -> Option<f64>| {
            middle(outcomes.iter().filter_map(|outcome| number(&outcome.load)).collect())
        };
        Some(Self {
            seconds: each(|load| Some(load.seconds))?,
            cpu_seconds: each(|load| Some(load.cpu_seconds))?,
            mebibytes: each(|load| Some(load.mebibytes()))?,
            news_p50: each(Load::news_p50),
            news_p99: each(Load::news_p99),
            close: each(|load| load.close_ms),
        })
    }
}

impl Report {
    pub(crate) fn new(speakers: &[Found], runs: usize) -> Result<Self> {
        let processor = std::fs::read_to_string("/proc/cpuinfo")?
            .lines()
            .find_map(|line| {
                line.strip_prefix("model name")?.split_once(": ").map(|(_, name)| name.to_owned())
            })
            .unwrap_or_else(|| std::env::consts::ARCH.to_owned());
        let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease")?;
        let processors = std::thread::available_parallelism()?;
        let machine = format!("{processors} x {processor}, kernel {}", kernel.trim());
        Ok(Self { speakers: speakers.to_vec(), runs, machine, rows: vec![] })
    }

    pub(crate) fn row(&mut self, row: &Row, outcomes: Vec<Vec<Outcome>>) {
        self.rows.push((row.clone(), outcomes));
    }

    fn cells(&self) -> Vec<[String; 6]> {
        let mut cells = vec![];
        for (row, outcomes) in &self.rows {
            let medians: Vec<Option<Median>> = outcomes.iter().map(|outcomes| Median::of(outcomes)).collect();
            for (i, (found, median)) in self.speakers.iter().zip(&medians).enumerate() {
                let ours = found.speaker == Speaker::Podway;
                let name = if i == 0 { row.name() } else { String::new() };
                let foreign =
                    outcomes[i].iter().map(|outcome| outcome.foreign_percent).fold(0.0_f64, f64::max);
                let disturbed =
                    if foreign > 10.0 { format!(" ({foreign:.0} % foreign)") } else { String::new() };
                cells.push(match median {
                    None => [
                        name,
                        found.speaker.to_string(),
                        format!("DNF ({} s){disturbed}", LIMIT.as_secs()),
                        "-".to_owned(),
                        "-".to_owned(),
                        if ours { "missed".to_owned() } else { String::new() },
                    ],
                    Some(median) => [
                        name,
                        found.speaker.to_string(),
                        format!("{:.3} s{disturbed}", median.seconds),
                        format!("{:.2} s", median.cpu_seconds),
                        format!("{:.1} MiB", median.mebibytes),
                        if ours { self.verdict(row, *median, &medians) } else { String::new() },
                    ],
                });
            }
        }
        cells
    }

    /// How ours compares with the best of the others in each number, and with the row's own limits.
    fn verdict(&self, row: &Row, ours: Median, medians: &[Option<Median>]) -> String {
        let others: Vec<Median> = self
            .speakers
            .iter()
            .zip(medians)
            .filter(|(found, _)| found.speaker != Speaker::Podway)
            .filter_map(|(_, median)| *median)
            .collect();
        let best = |number: fn(&Median) -> f64| others.iter().map(number).fold(f64::INFINITY, f64::min);
        let mut words = vec![];
        let mut judge = |what: &str, ours: f64, limit: f64, text: String| {
            words.push(format!("{what} {text} {}", if ours <= limit { "met" } else { "MISSED" }));
        };
        if !others.is_empty() {
            let (time, cpu, memory) = (best(|m| m.seconds), best(|m| m.cpu_seconds), best(|m| m.mebibytes));
            judge("time", ours.seconds, time * 0.5, format!("{:.2} of the best (0.5)", ours.seconds / time));
            // The kernel counts processor time in hundredths of a second.
            judge(
                "CPU",
                ours.cpu_seconds,
                cpu + 0.01,
                format!("{:.2} of the best (1)", ours.cpu_seconds / cpu.max(0.01)),
            );
            judge(
                "memory",
                ours.mebibytes,
                memory,
                format!("{:.2} of the best (1)", ours.mebibytes / memory),
            );
        }
        if let Some(budget) = row.budget {
            judge("time", ours.seconds, budget.seconds, format!("<= {} s", budget.seconds));
            judge("CPU", ours.cpu_seconds, budget.cpu_seconds, format!("<= {} s", budget.cpu_seconds));
            judge("memory", ours.mebibytes, budget.mebibytes, format!("<= {} MiB", budget.mebibytes));
        }
        words.join("; ")
    }

    /// A new route's way, and a withdrawal's.
    fn events(&self) -> Vec<[String; 6]> {
        let mut cells = vec![];
        for (row, outcomes) in &self.rows {
            for (found, outcomes) in self.speakers.iter().zip(outcomes) {
                let Some(median) = Median::of(outcomes) else { continue };
                let ms =
                    |number: Option<f64>| number.map_or_else(|| "-".to_owned(), |ms| format!("{ms:.1} ms"));
                let judged = found.speaker == Speaker::Podway && row.clients == NEWS_CLIENTS;
                let verdict = median.news_p99.filter(|_| judged).map_or_else(String::new, |p99| {
                    let word = if p99 <= NEWS_BUDGET_MS { "met" } else { "MISSED" };
                    format!("p99 <= {NEWS_BUDGET_MS} ms {word}")
                });
                cells.push([
                    row.name(),
                    found.speaker.to_string(),
                    ms(median.news_p50),
                    ms(median.news_p99),
                    ms(median.close),
                    verdict,
                ]);
            }
        }
        cells
    }

    const HEAD: [&str; 6] = ["LOAD", "SPEAKER", "TIME", "CPU", "PEAK RSS", "BUDGET"];
    const EVENTS: [&str; 6] = ["LOAD", "SPEAKER", "NEW ROUTE P50", "P99", "CLOSE", "BUDGET"];

    fn about(&self) -> String {
        let versions: Vec<String> =
            self.speakers.iter().map(|found| format!("{} {}", found.speaker, found.version)).collect();
        format!("{}. {}. Medians of {} run(s), interleaved.", self.machine, versions.join(", "), self.runs)
    }

    /// For a terminal.
    pub(crate) fn text(&self) -> String {
        let table = |head: [&str; 6], rows: Vec<[String; 6]>| {
            let mut table = Table::new(head);
            rows.into_iter().for_each(|row| table.row(row));
            table
        };
        format!(
            "{}\n\n{}\n{}",
            self.about(),
            table(Self::HEAD, self.cells()),
            table(Self::EVENTS, self.events())
        )
    }

    /// For the repository.
    pub(crate) fn markdown(&self) -> String {
        let mut text = format!("{}\n", self.about());
        for (head, rows) in [(Self::HEAD, self.cells()), (Self::EVENTS, self.events())] {
            let _ = write!(text, "\n| {} |\n|{}\n", head.join(" | "), "---|".repeat(head.len()));
            for row in rows {
                let _ = writeln!(text, "| {} |", row.join(" | "));
            }
        }
        text
    }

    /// For programs, with every run.
    pub(crate) fn json(&self) -> Result<String> {
        let rows: Vec<Value> = self
            .rows
            .iter()
            .map(|(row, outcomes)| {
                let runs: serde_json::Map<String, Value> = self
                    .speakers
                    .iter()
                    .zip(outcomes)
                    .map(|(found, outcomes)| (found.speaker.to_string(), json!(outcomes)))
                    .collect();
                json!({"load": row.name(), "runs": runs})
            })
            .collect();
        let versions: serde_json::Map<String, Value> =
            self.speakers.iter().map(|f| (f.speaker.to_string(), json!(f.version))).collect();
        serde_json::to_string_pretty(&json!({"machine": self.machine, "versions": versions, "rows": rows}))
            .context("write JSON")
    }
}
