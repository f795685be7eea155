//! Log lines on standard error, as text or as one JSON object per line, and the panic hook.
//!
//! Fields have fixed keys across the daemons: `peer`, `node`, `pod`, `prefix`, `error`, `revision`.

use std::panic;

use podway_model::config::{LogConfig, LogFormat};
use podway_model::mistakes::Mistakes;
use tracing_subscriber::EnvFilter;

/// Checks the filter and starts logging for the whole process.
///
/// # Errors
/// `log.level` is no filter. `source` names the configuration file.
pub fn start(source: &str, config: &LogConfig) -> Result<(), Mistakes> {
    let filter = filter(source, &config.level)?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    // A second call (tests) changes nothing.
    let _ = match config.format {
        LogFormat::Text => builder.with_target(false).with_ansi(false).try_init(),
        LogFormat::Json => builder.json().flatten_event(true).with_current_span(false).try_init(),
    };
    Ok(())
}

fn filter(source: &str, level: &str) -> Result<EnvFilter, Mistakes> {
    let words = ["error", "warn", "info", "debug", "trace"];
    // A lone unknown word is a valid filter (a target's name), and surely not what was meant.
    let plausible = words.contains(&level) || level.contains(['=', ',']);
    EnvFilter::try_new(level).ok().filter(|_| plausible).ok_or_else(|| {
        let mut mistakes = Mistakes::default();
        let expected = "error, warn, info, debug, trace, or a filter (info,podway_bgp=debug)";
        mistakes.add(source, "log.level", format!("{level:?}"), expected);
        mistakes
    })
}

/// Makes every panic, of whatever thread, a log line and the end of the process: what a half-dead daemon would
/// do to a node is worse than a restart.
pub fn abort_on_panic() {
    panic::set_hook(Box::new(|info| {
        let payload = info.payload();
        let message = payload
            .downcast_ref::<&str>()
            .copied()
            .or_else(|| payload.downcast_ref::<String>().map(String::as_str))
            .unwrap_or("no message");
        let place = info.location().map(ToString::to_string).unwrap_or_default();
        tracing::error!(place, "panic: {message}");
        std::process::abort();
    }));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_are_checked() {
        for good in ["error", "info", "trace", "info,podway_bgp=debug", "podway_bgp=trace"] {
            assert!(filter("f", good).is_ok(), "{good}");
        }
        for bad in ["", "loud", "podway_bgp=loud", "info,=,"] {
            let mistakes = filter("f", bad).unwrap_err();
            assert_eq!(mistakes.0[0].field, "log.level", "{bad}");
        }
    }
}
