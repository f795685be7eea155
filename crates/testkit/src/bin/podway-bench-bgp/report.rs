//! What came out, as tables.

use anyhow::{Context as _, Result};
use podway_testkit::bench::{self, median};
use podway_testkit::table::Table;
use serde_json::{Value, json};

use crate::measure::{LIMIT, Load, Outcome};
use crate::rows::{NEWS_BUDGET_MS, NEWS_CLIENTS, Row};
use crate::speakers::{Found, Speaker};
use crate::watched::{self, SESSIONS, Watched};

/// Everything that was measured.
pub(crate) struct Report {
    speakers: Vec<Found>,
    runs: usize,
    rows: Vec<(Row, Vec<Vec<Outcome>>)>,
    watched: Vec<Watched>,
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

impl Median {
    fn of(outcomes: &[Outcome]) -> Option<Self> {
        if outcomes.iter().any(|outcome| !outcome.load.converged) {
            return None;
        }
        let each = |number: fn(&Load) -> Option<f64>| {
            let all: Vec<f64> = outcomes.iter().filter_map(|outcome| number(&outcome.load)).collect();
            median(&all)
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
    pub(crate) fn new(speakers: &[Found], runs: usize) -> Self {
        Self { speakers: speakers.to_vec(), runs, rows: vec![], watched: vec![] }
    }

    pub(crate) fn row(&mut self, row: &Row, outcomes: Vec<Vec<Outcome>>) {
        self.rows.push((row.clone(), outcomes));
    }

    pub(crate) fn watched(&mut self, watched: Watched) {
        self.watched.push(watched);
    }

    /// What became of BFD's sessions beside the load, in a sentence.
    fn watched_text(&self) -> String {
        let Some(most) = self.watched.iter().map(|run| run.lost).max() else { return String::new() };
        let seconds: Vec<f64> = self.watched.iter().map(|run| run.load.seconds).collect();
        format!(
            "\n{}: {SESSIONS} sessions at 3 x 100 ms with another speaker of ours while {} clients connect ({:.3} s): at \
             most {most} lost in a run (0) {}.\n",
            watched::name(),
            watched::row().clients,
            median(&seconds).unwrap_or_default(),
            if most == 0 { "met" } else { "MISSED" }
        )
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
        format!(
            "{}. {}. Medians of {} run(s), interleaved.",
            bench::measured(),
            versions.join(", "),
            self.runs
        )
    }

    fn tables(&self) -> [Table; 2] {
        [(Self::HEAD, self.cells()), (Self::EVENTS, self.events())].map(|(head, rows)| {
            let mut table = Table::new(head);
            rows.into_iter().for_each(|row| table.row(row));
            table
        })
    }

    /// For a terminal.
    pub(crate) fn text(&self) -> String {
        let [figures, events] = self.tables();
        format!("{}\n\n{figures}\n{events}{}", self.about(), self.watched_text())
    }

    /// For the repository.
    pub(crate) fn markdown(&self) -> String {
        let [figures, events] = self.tables().map(|table| table.to_markdown());
        format!("{}\n\n{figures}\n{events}{}", self.about(), self.watched_text())
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
        serde_json::to_string_pretty(&json!({
            "measured": bench::measured(),
            "versions": versions,
            "rows": rows,
            "bfdLost": self.watched.iter().map(|run| run.lost).collect::<Vec<_>>(),
        }))
        .context("write JSON")
    }
}
