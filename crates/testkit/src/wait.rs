//! Waiting for a condition. No test and no demo step waits for a time.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// How often a condition is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// Waits until `look` finds something, and returns it. `what` is a sentence that becomes true: `the table is
/// back`.
///
/// # Errors
/// The condition did not hold within `patience`, or `look` itself failed.
pub fn wait_until<T>(
    what: &str,
    patience: Duration,
    mut look: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let deadline = Instant::now() + patience;
    loop {
        if let Some(found) = look()? {
            return Ok(found);
        }
        if Instant::now() >= deadline {
            bail!("waited {:.1} s in vain until {what}", patience.as_secs_f32());
        }
        std::thread::sleep(LOOK_EVERY);
    }
}

/// Like [`wait_until`], where a failed look means "not yet": the last failure is part of the error.
pub fn wait_until_ok<T>(what: &str, patience: Duration, mut look: impl FnMut() -> Result<T>) -> Result<T> {
    let mut last = None;
    let waited = wait_until(what, patience, || match look() {
        Ok(found) => Ok(Some(found)),
        Err(e) => {
            last = Some(e);
            Ok(None)
        }
    });
    match (waited, last) {
        (Err(timeout), Some(last)) => Err(last.context(timeout.to_string())),
        (other, _) => other,
    }
}
