//! Where results go: standard output, in the form that was asked for.

use std::io::{self, IsTerminal, Write};

use serde::Serialize;

use crate::args::Format;
use crate::outcome::Failure;

/// Form of the output, and whether people watch it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Output {
    /// Form.
    pub(crate) format: Format,
    /// Whether colours are welcome: a terminal, and no `NO_COLOR` (no-color.org).
    pub(crate) colour: bool,
    /// Whether progress may be shown on standard error.
    progress: bool,
}

impl Output {
    /// For this process.
    pub(crate) fn new(format: Format) -> Self {
        let no_colour = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Self {
            format,
            colour: io::stdout().is_terminal() && !no_colour,
            progress: io::stderr().is_terminal(),
        }
    }

    /// Prints `text`, or `value` where json or yaml was asked for.
    pub(crate) fn show(
        &self,
        text: impl FnOnce(bool) -> String,
        value: &impl Serialize,
    ) -> Result<(), Failure> {
        let text = match self.format {
            Format::Table => text(self.colour),
            Format::Json => json(value)?,
            Format::Yaml => yaml(value)?,
        };
        self.print(&text)
    }

    /// Prints text as it is.
    pub(crate) fn print(&self, text: &str) -> Result<(), Failure> {
        let mut stdout = io::stdout().lock();
        stdout.write_all(text.as_bytes())?;
        Ok(stdout.flush()?)
    }

    /// Says how far long work has come, where somebody watches. Overwrites what it said before.
    pub(crate) fn progress(&self, what: &str, done: usize, all: usize) {
        // Short work needs no progress, and a terminal no more than a hundred updates.
        if self.progress && all >= 200 && (done == all || done.is_multiple_of((all / 100).max(1))) {
            let end = if done == all { "\r\x1b[K" } else { "" };
            let _ = write!(io::stderr(), "\r{what} {done}/{all}{end}");
        }
    }

    /// A remark that is not the result.
    pub(crate) fn warn(&self, text: &str) {
        let _ = writeln!(io::stderr(), "{text}");
    }

    /// `podwayctl version`.
    pub(crate) fn version(&self) -> Result<(), Failure> {
        #[derive(Serialize)]
        struct Version {
            podwayctl: &'static str,
        }
        let version = Version { podwayctl: env!("CARGO_PKG_VERSION") };
        self.show(|_| format!("podwayctl {}\n", version.podwayctl), &version)
    }
}

/// Indented JSON with a line break at the end.
pub(crate) fn json(value: &impl Serialize) -> Result<String, Failure> {
    let text = serde_json::to_string_pretty(value).map_err(|error| Failure::Failed(error.to_string()))?;
    Ok(text + "\n")
}

fn yaml(value: &impl Serialize) -> Result<String, Failure> {
    serde_saphyr::to_string(value).map_err(|error| Failure::Failed(error.to_string()))
}
