//! What is measured.

/// A load.
#[derive(Debug, Clone)]
pub(crate) struct Row {
    pub(crate) clients: u32,
    pub(crate) prefixes: u32,
    /// Whether all clients connect at once, instead of four at a time.
    pub(crate) storm: bool,
    /// Single routes that follow.
    pub(crate) news: u32,
    /// Whether it is over within seconds for everybody that is any good at it.
    pub(crate) quick: bool,
    /// What ours is asked to stay within, besides being better than the others.
    pub(crate) budget: Option<Budget>,
}

/// Absolute limits.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Budget {
    pub(crate) seconds: f64,
    pub(crate) cpu_seconds: f64,
    pub(crate) mebibytes: f64,
}

/// One new route to the last client of 1,000, milliseconds at the 99th percentile.
pub(crate) const NEWS_BUDGET_MS: f64 = 12.0;
/// The clients for which that holds.
pub(crate) const NEWS_CLIENTS: u32 = 1000;

impl Row {
    /// As people say it.
    pub(crate) fn name(&self) -> String {
        format!("{} x {}{}", self.clients, self.prefixes, if self.storm { " at once" } else { "" })
    }
}

/// All of them.
pub(crate) fn all() -> Vec<Row> {
    let shapes = [
        (100, 100, true, None),
        (500, 4, true, None),
        (1000, 2, false, None),
        (2000, 1, false, None),
        (20, 5000, true, None),
        (1000, 8, true, Some(Budget { seconds: 0.5, cpu_seconds: 0.4, mebibytes: 40.0 })),
        (4000, 8, false, Some(Budget { seconds: 6.0, cpu_seconds: 4.0, mebibytes: 100.0 })),
        (2, 500_000, false, None),
    ];
    let mut rows = vec![];
    for storm in [false, true] {
        for (clients, prefixes, quick, budget) in shapes {
            // Two clients are the same at once and one after the other.
            if storm && clients == 2 {
                continue;
            }
            let news = if clients == NEWS_CLIENTS && !storm { 300 } else { 0 };
            rows.push(Row { clients, prefixes, storm, news, quick: quick && !storm, budget });
        }
    }
    rows
}
