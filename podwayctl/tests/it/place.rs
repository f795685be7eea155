//! A place to run the real binary in: a configuration file and a file store of its own.

use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use tempfile::TempDir;

/// A configuration file with an empty file store.
pub(crate) struct Place {
    dir: TempDir,
}

impl Place {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = dir.path().join("cluster");
        fs::create_dir(&store).unwrap();
        let config = format!("store:\n  file:\n    path: {}\n", store.display());
        fs::write(dir.path().join("podway.yaml"), config).unwrap();
        Self { dir }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, text: &str) -> String {
        fs::write(self.path(name), text).unwrap();
        self.path(name).display().to_string()
    }

    /// Runs a command line (no argument with blanks), with text on standard input.
    pub(crate) fn run_with(&self, line: &str, input: &str) -> Ran {
        let mut child = Command::new(env!("CARGO_BIN_EXE_podwayctl"))
            .arg("--config")
            .arg(self.path("podway.yaml"))
            .args(line.split_whitespace())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // Who reads no input may be gone by now.
        let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
        Ran(child.wait_with_output().unwrap())
    }

    pub(crate) fn run(&self, line: &str) -> Ran {
        self.run_with(line, "")
    }
}

pub(crate) struct Ran(Output);

impl Ran {
    pub(crate) fn code(&self) -> i32 {
        self.0.status.code().unwrap()
    }
    pub(crate) fn out(&self) -> String {
        String::from_utf8(self.0.stdout.clone()).unwrap()
    }
    pub(crate) fn err(&self) -> String {
        String::from_utf8(self.0.stderr.clone()).unwrap()
    }
    #[track_caller]
    pub(crate) fn expect(self, code: i32, out: &str, err_has: &str) -> Self {
        assert_eq!(self.code(), code, "{}{}", self.out(), self.err());
        assert_eq!(self.out(), out, "{}", self.err());
        assert!(self.err().contains(err_has), "{}", self.err());
        self
    }

    /// Only the exit code and a part of standard error.
    #[track_caller]
    pub(crate) fn expect_code(&self, code: i32, err_has: &str) {
        assert_eq!(self.code(), code, "{}{}", self.out(), self.err());
        assert!(self.err().contains(err_has), "{}", self.err());
    }
}
