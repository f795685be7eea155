//! What benchmarks have in common: the middle of several runs, and what stands above their figures.

/// The middle one of several; of an even number, the lower of the two in the middle. None: there is none.
pub fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len().checked_sub(1)? / 2).copied()
}

/// When, what and where is measured, as `cargo xtask bench` says it in `PODWAY_MEASURED`.
pub fn measured() -> String {
    std::env::var("PODWAY_MEASURED").unwrap_or_else(|_| {
        "not by cargo xtask bench: date, commit, machine and profile are not said".to_owned()
    })
}

/// Processes that wanted to run, over the last minute (`/proc/loadavg`, proc(5)).
pub fn load() -> String {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_middle_of_an_odd_and_of_an_even_number() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4.0, 3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[]), None);
    }
}
