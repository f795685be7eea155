//! Runs a program under watch: everything it prints goes to a log, what matters to the terminal, and it is ended
//! when it takes too long.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::PathBuf;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use crate::{build, say};

/// A program that runs longer hangs.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20 * 60);
/// Lines of the end of a log that are shown when a program did not end as expected.
const TAIL: usize = 150;

/// How a program ended.
#[derive(Debug)]
pub(crate) struct Ended {
    /// Its exit status.
    pub(crate) status: ExitStatus,
    /// Whether it was killed because it took too long.
    pub(crate) hung: bool,
    /// How long it ran.
    pub(crate) took: Duration,
    /// What it wrote.
    pub(crate) log: PathBuf,
}

impl Ended {
    /// The end in words.
    pub(crate) fn words(&self) -> String {
        if self.hung {
            format!("did not end within {} minutes, killed", PATIENCE.as_secs() / 60)
        } else {
            self.status.to_string()
        }
    }
}

/// Folder of the logs.
pub(crate) fn log_dir() -> PathBuf {
    build::target_dir().join("xtask")
}

/// Runs a command; its output goes to `<name>.log`, and the lines that `wanted` picks to the terminal. If it
/// ends otherwise than with `expected`, the end of the log follows.
pub(crate) fn watched(
    name: &str,
    mut command: Command,
    expected: i32,
    mut wanted: impl FnMut(&str) -> bool,
) -> Result<Ended> {
    std::fs::create_dir_all(log_dir()).with_context(|| format!("create {}", log_dir().display()))?;
    let path = log_dir().join(format!("{name}.log"));
    let mut log = File::create(&path).with_context(|| format!("create {}", path.display()))?;
    let (reader, writer) = std::io::pipe()?;
    command.stdin(Stdio::null()).stdout(writer.try_clone()?).stderr(writer);
    let began = Instant::now();
    let mut child = command.spawn().with_context(|| format!("run {command:?}"))?;
    // The writing ends in `command` would keep the pipe open.
    drop(command);
    // The reader ends when the last holder of the pipe does; a few lines of room, so that a slow terminal waits.
    let (sender, lines) = mpsc::sync_channel(64);
    let reading = std::thread::spawn(move || {
        for line in BufReader::new(reader).split(b'\n') {
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    let (mut tail, mut hung) = (VecDeque::new(), false);
    loop {
        let left = PATIENCE.saturating_sub(began.elapsed());
        let line = match lines.recv_timeout(if hung { PATIENCE } else { left }) {
            Ok(line) => String::from_utf8_lossy(&line.context("read its output")?).into_owned(),
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) if hung => break,
            Err(RecvTimeoutError::Timeout) => {
                hung = true;
                child.kill().with_context(|| format!("kill {name}"))?;
                continue;
            }
        };
        writeln!(log, "{line}")?;
        if wanted(&line) {
            say(&format!("    {line}\n"));
        }
        if tail.len() == TAIL {
            tail.pop_front();
        }
        tail.push_back(line);
    }
    let status = child.wait()?;
    drop(lines);
    let _ = reading.join();
    let ended = Ended { status, hung, took: began.elapsed(), log: path };
    if hung || status.code() != Some(expected) {
        say(&format!("    --- {name}: {}; the end of {}\n", ended.words(), ended.log.display()));
        for line in tail {
            say(&format!("    | {line}\n"));
        }
    }
    Ok(ended)
}
