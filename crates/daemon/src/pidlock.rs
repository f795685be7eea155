//! One process of a kind per node: a pid file with a lock on it.
//!
//! The lock is the truth (the kernel drops it when its holder dies, however it dies); the number in the file is
//! for the message. The file stays where it is: removing it would let two processes lock two files of one name.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};

/// The lock. Dropping it lets another process start.
#[derive(Debug)]
pub struct PidLock {
    _file: Flock<File>,
}

/// Why the lock was not taken.
#[derive(Debug, thiserror::Error)]
pub enum PidLockError {
    /// Another process holds it.
    #[error("{name} runs already{}; only one can run on a node", pid.map_or(String::new(), |pid| format!(" as process {pid}")))]
    Running {
        /// The daemon.
        name: String,
        /// Its process id, where the file names one.
        pid: Option<u32>,
    },
    /// The file cannot be used.
    #[error("pid file {}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What went wrong.
        source: io::Error,
    },
}

impl PidLock {
    /// Takes `<dir>/<name>.pid` for this process and writes its id there. `dir` is made, mode 0700, if missing.
    ///
    /// # Errors
    /// Another process has it, or the file cannot be made.
    pub fn take(dir: &Path, name: &str) -> Result<Self, PidLockError> {
        let path = dir.join(format!("{name}.pid"));
        let failed = |source: io::Error| PidLockError::Io { path: path.clone(), source };
        DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(failed)?;
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(failed)?;
        let mut file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(file) => file,
            Err((_, nix::errno::Errno::EWOULDBLOCK)) => {
                let pid = fs::read_to_string(&path).ok().and_then(|text| text.trim().parse().ok());
                return Err(PidLockError::Running { name: name.to_owned(), pid });
            }
            Err((_, errno)) => return Err(failed(errno.into())),
        };
        write_pid(&mut file).map_err(failed)?;
        Ok(Self { _file: file })
    }
}

fn write_pid(file: &mut File) -> io::Result<()> {
    let text = format!("{}\n", std::process::id());
    file.rewind()?;
    file.write_all(text.as_bytes())?;
    file.set_len(text.len() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_start_is_refused_with_the_firsts_pid() {
        let dir = tempfile::tempdir().unwrap();
        let run = dir.path().join("run");
        let first = PidLock::take(&run, "routed").unwrap();
        let refused = PidLock::take(&run, "routed").unwrap_err();
        let pid = std::process::id();
        assert!(matches!(refused, PidLockError::Running { pid: Some(found), .. } if found == pid));
        assert_eq!(
            refused.to_string(),
            format!("routed runs already as process {pid}; only one can run on a node")
        );
        assert!(PidLock::take(&run, "policy-agent").is_ok(), "another daemon is another lock");
        drop(first);
        assert!(PidLock::take(&run, "routed").is_ok(), "free again");
    }

    #[test]
    fn a_dead_processs_file_is_taken_over_and_rewritten() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("routed.pid");
        fs::write(&path, "4194304000000 and something longer\n").unwrap();
        let _lock = PidLock::take(dir.path(), "routed").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), format!("{}\n", std::process::id()));
    }

    #[test]
    fn a_folder_that_cannot_be_made_is_named() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("file"), "").unwrap();
        let error = PidLock::take(&dir.path().join("file/run"), "routed").unwrap_err();
        assert!(error.to_string().contains("file/run/routed.pid"), "{error}");
    }
}
