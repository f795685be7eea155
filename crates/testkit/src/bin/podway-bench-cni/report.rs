//! The tables: for people, as a page, as JSON.

use std::fmt;
use std::process::Command;

use serde_json::{Value, json};

use crate::budget;
use crate::measure::{AT_ONCE, Figures, LEVELS, Level, Plan, median};

/// Where and when it was measured.
#[derive(Debug, Clone)]
pub(crate) struct Machine {
    date: String,
    kernel: String,
    processors: usize,
    memory: String,
    load: String,
    note: String,
}

impl Machine {
    /// The machine as it is now.
    pub(crate) fn look(note: &str) -> Self {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let memory = read("/proc/meminfo");
        let kib = memory.lines().find_map(|line| line.strip_prefix("MemTotal:"));
        let kib = kib.and_then(|rest| rest.trim().trim_end_matches(" kB").parse::<u64>().ok()).unwrap_or(0);
        let date = Command::new("date").args(["-u", "+%Y-%m-%d %H:%M UTC"]).output();
        Self {
            date: date.map(|out| String::from_utf8_lossy(&out.stdout).trim().to_owned()).unwrap_or_default(),
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            processors: std::thread::available_parallelism().map_or(1, usize::from),
            memory: format!("{} GiB", kib >> 20),
            load: load(),
            note: note.to_owned(),
        }
    }

    /// Adds the load at the end.
    pub(crate) fn close(self) -> Self {
        Self { load: format!("{} before, {} after", self.load, load()), ..self }
    }
}

/// Processes that wanted to run, over the last minute.
fn load() -> String {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().unwrap_or_default().to_owned()
}

/// Everything that was found.
pub(crate) struct Report {
    pub(crate) machine: Machine,
    pub(crate) rounds: usize,
    pub(crate) plan: Plan,
    pub(crate) ceiling: Option<(f64, f64)>,
    pub(crate) figures: Vec<Figures>,
}

impl Report {
    fn conditions(&self) -> Vec<String> {
        let Machine { date, kernel, processors, memory, load, note } = &self.machine;
        let mut all = vec![
            format!("{date}; Linux {kernel}, {processors} processors, {memory}; load {load}"),
            note.clone(),
            format!(
                "medians of {} rounds; {} calls one at a time, {} for each that runs at once",
                self.rounds, self.plan.singly, self.plan.each
            ),
        ];
        all.extend(self.figures.iter().map(|one| format!("{}: {}", one.name, one.costs.says)));
        all.push(
            "DEL is timed until its process has ended; DEL to its end until the kernel has removed the interface"
                .to_owned(),
        );
        all.extend(self.ceiling.map(|(ms, rate)| {
            format!("the generator's own ceiling, a static program that does nothing: {ms:.2} ms, {rate:.0}/s at {} at once", AT_ONCE[0])
        }));
        all.retain(|line| !line.is_empty());
        all
    }

    /// Heading and rows of the table of figures.
    fn rows(&self) -> (Vec<String>, Vec<Vec<String>>) {
        let heading: Vec<String> = std::iter::once(String::new())
            .chain(self.figures.iter().map(|one| one.name.to_owned()))
            .collect();
        let mut rows: Vec<Vec<String>> = vec![];
        let mut row = |what: String, cell: &dyn Fn(&Figures) -> Option<String>| {
            let cells = self.figures.iter().map(|one| cell(one).unwrap_or_else(|| "-".to_owned()));
            rows.push(std::iter::once(what).chain(cells).collect());
        };
        for (n, pods) in LEVELS.into_iter().enumerate() {
            let mut of = |what: &str, digits: usize, values: &dyn Fn(&Level) -> &[f64]| {
                row(format!("{what}, {pods} pods there"), &|one| {
                    median(values(&one.levels[n])).map(|value| format!("{value:.digits$}"))
                });
            };
            of("ADD, ms", 2, &|level| &level.add);
            of("slowest ADD, ms", 1, &|level| &level.slowest);
            of("DEL, ms", 2, &|level| &level.del);
            for (w, width) in AT_ONCE.into_iter().enumerate() {
                of(&format!("ADD, pods/s, {width} at once"), 0, &|level| &level.adds_per_second[w]);
                of(&format!("DEL to its end, pods/s, {width} at once"), 0, &|level| {
                    &level.dels_per_second[w]
                });
            }
        }
        row("largest resident set, MiB".to_owned(), &|one| {
            one.costs.resident.map(|kib| format!("{:.1}", kib as f64 / 1024.0))
        });
        row("processes of an ADD".to_owned(), &|one| one.costs.processes.map(|n| n.to_string()));
        row("system calls of an ADD".to_owned(), &|one| one.costs.calls.map(|n| n.to_string()));
        row("netlink messages of an ADD".to_owned(), &|one| one.costs.netlink.map(|n| n.to_string()));
        row("waits for a disk".to_owned(), &|one| one.costs.syncs.map(|n| n.to_string()));
        (heading, rows)
    }

    /// As a page of the repository.
    pub(crate) fn page(&self) -> String {
        let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
        let mut page =
            "# ADD and DEL beside others\n\n`cargo xtask bench cni --record` writes this page.\n\n"
                .to_owned();
        for condition in self.conditions() {
            page.push_str(&format!("- {condition}\n"));
        }
        let (heading, rows) = self.rows();
        page.push_str(&format!("\n{}{}\n", line(&heading), "|---".repeat(heading.len()) + "|"));
        page.extend(rows.iter().map(|row| line(row)));
        page.push_str("\n| budget | found | |\n|---|---|---|\n");
        page.extend(
            budget::hold(&self.figures).into_iter().map(|one| line(&[one.what, one.found, word(one.met)])),
        );
        page
    }

    /// As JSON, every round's value.
    pub(crate) fn to_json(&self) -> Value {
        json!({
            "conditions": self.conditions(), "levels": LEVELS, "atOnce": AT_ONCE, "figures": self.figures,
            "budget": budget::hold(&self.figures)
        })
    }
}

fn word(met: Option<bool>) -> String {
    match met {
        Some(true) => "met",
        Some(false) => "missed",
        None => "not measured",
    }
    .to_owned()
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for condition in self.conditions() {
            writeln!(f, "{condition}")?;
        }
        let (heading, rows) = self.rows();
        let mut table = podway_testkit::table::Table::new(heading);
        rows.into_iter().for_each(|row| table.row(row));
        writeln!(f, "\n{table}")?;
        let mut table = podway_testkit::table::Table::new(["budget", "found", ""]);
        for one in budget::hold(&self.figures) {
            table.row([one.what, one.found, word(one.met)]);
        }
        write!(f, "{table}")
    }
}
