//! The tables: for people, as a page, as JSON.

use std::fmt;

use podway_testkit::bench::{self, median};
use podway_testkit::table::Table;
use serde_json::{Value, json};

use crate::budget;
use crate::measure::{AT_ONCE, Figures, LEVELS, Level, Plan};

/// Everything that was found.
pub(crate) struct Report {
    pub(crate) note: String,
    /// Of the machine, when it began.
    pub(crate) load: String,
    pub(crate) rounds: usize,
    pub(crate) plan: Plan,
    pub(crate) ceiling: Option<(f64, f64)>,
    pub(crate) figures: Vec<Figures>,
}

impl Report {
    fn conditions(&self) -> Vec<String> {
        let mut all = vec![
            format!("{}; load {} before, {} after", bench::measured(), self.load, bench::load()),
            self.note.clone(),
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

    fn table(&self) -> Table {
        let heading: Vec<String> = std::iter::once(String::new())
            .chain(self.figures.iter().map(|one| one.name.to_owned()))
            .collect();
        let mut table = Table::new(heading);
        let mut row = |what: String, cell: &dyn Fn(&Figures) -> Option<String>| {
            let cells = self.figures.iter().map(|one| cell(one).unwrap_or_else(|| "-".to_owned()));
            table.row(std::iter::once(what).chain(cells));
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
        table
    }

    fn verdicts(&self) -> Table {
        let mut table = Table::new(["budget", "found", ""]);
        for one in budget::hold(&self.figures) {
            table.row([one.what, one.found, word(one.met)]);
        }
        table
    }

    /// As a page of the repository.
    pub(crate) fn page(&self) -> String {
        let conditions: String =
            self.conditions().iter().map(|condition| format!("- {condition}\n")).collect();
        format!(
            "# ADD and DEL beside others\n\n`cargo xtask bench cni --record` writes this page.\n\n{conditions}\n{}\n{}",
            self.table().to_markdown(),
            self.verdicts().to_markdown()
        )
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
        write!(f, "\n{}\n{}", self.table(), self.verdicts())
    }
}
