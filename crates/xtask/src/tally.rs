//! Counts what test programs print: `test result: …` of Rust's harness, and `SKIP <test>: <reason>`.

use std::collections::BTreeMap;

/// Tests so far.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    /// What test programs and checks reported as passed, early returns included.
    reported: usize,
    /// How many of those returned early, with a SKIP line.
    early: usize,
    /// Ran and did not hold, or did not run to an end.
    pub(crate) failed: usize,
    /// Could not run here: the test and why.
    pub(crate) skipped: BTreeMap<String, String>,
    /// What failed.
    pub(crate) failures: Vec<String>,
}

impl Tally {
    /// Takes one line of a test program's output. True if a person wants to see it.
    pub(crate) fn take(&mut self, line: &str) -> bool {
        if let Some(skip) = line.trim_start().strip_prefix("SKIP ") {
            let (test, reason) = skip.split_once(": ").unwrap_or((skip, "no reason given"));
            if self.skipped.insert(test.to_owned(), reason.to_owned()).is_none() {
                // The harness counts a test that returns early as passed.
                self.early += 1;
                return true;
            }
            return false;
        }
        if let Some(counts) = line.strip_prefix("test result: ") {
            self.reported += count(counts, "passed");
            self.failed += count(counts, "failed");
            // An ignored test is a skip without a reason: it must not hide.
            for n in 0..count(counts, "ignored") {
                self.skipped
                    .insert(format!("ignored-{}-{n}", self.skipped.len()), "marked #[ignore]".to_owned());
            }
            return true;
        }
        if let Some(test) = line.strip_prefix("test ").and_then(|rest| rest.strip_suffix(" ... FAILED")) {
            self.failures.push(test.to_owned());
            return true;
        }
        line.starts_with("error")
    }

    /// Ran and held.
    pub(crate) fn passed(&self) -> usize {
        self.reported.saturating_sub(self.early)
    }

    /// Adds a check that is one program run.
    pub(crate) fn check(&mut self, name: &str, held: bool) {
        if held {
            self.reported += 1;
        } else {
            self.fail(name);
        }
    }

    /// Adds something that could not run at all.
    pub(crate) fn skip(&mut self, name: &str, reason: &str) {
        self.skipped.insert(name.to_owned(), reason.to_owned());
    }

    /// Adds what was counted elsewhere; `place` says where, behind every name.
    pub(crate) fn absorb(&mut self, other: Self, place: &str) {
        self.reported += other.reported;
        self.early += other.early;
        self.failed += other.failed;
        self.failures.extend(other.failures.into_iter().map(|name| format!("{name} {place}")));
        self.skipped
            .extend(other.skipped.into_iter().map(|(name, reason)| (format!("{name} {place}"), reason)));
    }

    /// Adds something that failed as a whole.
    pub(crate) fn fail(&mut self, name: &str) {
        self.failed += 1;
        self.failures.push(name.to_owned());
    }
}

/// The number before `word` in `ok. 3 passed; 0 failed; …`.
fn count(counts: &str, word: &str) -> usize {
    let words: Vec<&str> = counts.split([' ', ';']).filter(|w| !w.is_empty()).collect();
    words.windows(2).find(|pair| pair[1] == word).and_then(|pair| pair[0].parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_results_and_turns_early_returns_into_skips() {
        let mut tally = Tally::default();
        assert!(tally.take("SKIP veth_pair: needs root"));
        assert!(!tally.take("SKIP veth_pair: needs root"), "told once");
        assert!(!tally.take("test veth_pair ... ok"));
        assert!(tally.take("test other ... FAILED"));
        assert!(tally.take("test result: FAILED. 3 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out"));
        assert_eq!((tally.passed(), tally.failed), (2, 1));
        assert_eq!(tally.skipped["veth_pair"], "needs root");
        assert_eq!(tally.failures, ["other"]);
    }

    #[test]
    fn what_was_counted_elsewhere_keeps_its_place() {
        let (mut all, mut inside) = (Tally::default(), Tally::default());
        inside.take("test x ... FAILED");
        inside.take("SKIP y: no reason");
        inside.take("test result: FAILED. 2 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out");
        all.check("z", true);
        all.absorb(inside, "on Linux 6.1");
        assert_eq!((all.passed(), all.failed), (2, 1));
        assert_eq!(all.failures, ["x on Linux 6.1"]);
        assert_eq!(all.skipped["y on Linux 6.1"], "no reason");
    }

    #[test]
    fn a_skip_after_the_result_is_taken_off_what_passed() {
        let mut tally = Tally::default();
        tally.take("test result: ok. 2 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out");
        tally.take("SKIP late: no bird");
        assert_eq!((tally.passed(), tally.skipped.len()), (1, 2));
    }
}
