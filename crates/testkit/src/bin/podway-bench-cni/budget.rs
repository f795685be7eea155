//! The budget: what the figures are held against.

use serde::Serialize;

use crate::contender::{BARE, BRIDGE, PODWAY};
use crate::measure::{AT_ONCE, Figures, LEVELS, median};

/// One line of the budget.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Line {
    /// What is asked.
    pub(crate) what: String,
    /// What was found.
    pub(crate) found: String,
    /// Whether it holds; none where it could not be measured.
    pub(crate) met: Option<bool>,
}

/// Most that an ADD may take, as a part of bridge with host-local.
const OF_BRIDGE: f64 = 0.35;
/// Most that it may take, as a multiple of the bare calls.
const OF_BARE: f64 = 1.3;
/// Least pods per second, 16 at once, as a multiple of bridge with host-local.
const TIMES_BRIDGE: f64 = 3.0;
/// Largest resident set in KiB.
const RESIDENT: u64 = 6 << 10;

/// Holds the figures against the budget.
pub(crate) fn hold(all: &[Figures]) -> Vec<Line> {
    let find = |name: &str| all.iter().find(|one| one.name == name);
    let mut lines = vec![];
    let Some(ours) = find(PODWAY) else { return lines };
    for (level, pods) in LEVELS.into_iter().enumerate() {
        for (peer, most) in [(BRIDGE, OF_BRIDGE), (BARE, OF_BARE)] {
            let ratio = find(peer)
                .and_then(|peer| Some(median(&ours.levels[level].add)? / median(&peer.levels[level].add)?));
            lines.push(Line {
                what: format!("ADD one at a time, {pods} pods there: at most {most} of {peer}"),
                found: ratio.map_or_else(|| "not measured".to_owned(), |ratio| format!("{ratio:.2}")),
                met: ratio.map(|ratio| ratio <= most),
            });
        }
        let ratio = find(BRIDGE).and_then(|peer| {
            let rate = |one: &Figures| median(&one.levels[level].adds_per_second[0]);
            Some(rate(ours)? / rate(peer)?)
        });
        lines.push(Line {
            what: format!(
                "{} at once, {pods} pods there: at least {TIMES_BRIDGE} times the pods/s of {BRIDGE}",
                AT_ONCE[0]
            ),
            found: ratio.map_or_else(|| "not measured".to_owned(), |ratio| format!("{ratio:.1}")),
            met: ratio.map(|ratio| ratio >= TIMES_BRIDGE),
        });
    }
    let resident = ours.costs.resident;
    lines.push(Line {
        what: "largest resident set at most 6 MiB".to_owned(),
        found: resident
            .map_or_else(|| "not measured".to_owned(), |kib| format!("{:.1} MiB", kib as f64 / 1024.0)),
        met: resident.map(|kib| kib <= RESIDENT),
    });
    lines.push(Line {
        what: "no fsync".to_owned(),
        found: ours.costs.syncs.map_or_else(|| "not measured".to_owned(), |syncs| syncs.to_string()),
        met: ours.costs.syncs.map(|syncs| syncs == 0),
    });
    lines
}
