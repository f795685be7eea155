//! What the kernel answers when it refuses.

use std::io;

pub use nix::errno::Errno;

/// A request to the kernel that did not succeed. The text names what was attempted.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// The kernel understood and refused.
    #[error("{attempted}: {}{}", .errno.desc(), .message.as_deref().map(|m| format!(" ({m})")).unwrap_or_default())]
    Refused {
        /// The request, in words.
        attempted: String,
        /// The kernel's error number.
        errno: Errno,
        /// The kernel's own words (NLMSGERR_ATTR_MSG), where it gave any.
        message: Option<String>,
    },
    /// The socket or file failed.
    #[error("{attempted}: {source}")]
    Io {
        /// What was being done.
        attempted: String,
        /// Why it failed.
        source: io::Error,
    },
    /// The kernel's answer cannot be understood.
    #[error("{attempted}: the kernel's answer is not understood: {reason}")]
    Malformed {
        /// What was being done.
        attempted: String,
        /// What is wrong with the answer.
        reason: String,
    },
}

impl KernelError {
    pub(crate) fn io(attempted: impl Into<String>, source: io::Error) -> Self {
        Self::Io { attempted: attempted.into(), source }
    }

    pub(crate) fn refused(attempted: impl Into<String>, errno: Errno) -> Self {
        Self::Refused { attempted: attempted.into(), errno, message: None }
    }

    pub(crate) fn malformed(attempted: impl Into<String>, reason: impl ToString) -> Self {
        Self::Malformed { attempted: attempted.into(), reason: reason.to_string() }
    }

    /// The error number, whether from an answer or from a system call.
    pub fn errno(&self) -> Option<Errno> {
        match self {
            Self::Refused { errno, .. } => Some(*errno),
            Self::Io { source, .. } => source.raw_os_error().map(Errno::from_raw),
            Self::Malformed { .. } => None,
        }
    }

    /// Whether the object is there already (EEXIST).
    pub fn is_exists(&self) -> bool {
        self.errno() == Some(Errno::EEXIST)
    }

    /// Whether the object is not there: ENOENT, ESRCH (routes), ENODEV (links), EADDRNOTAVAIL (addresses).
    pub fn is_missing(&self) -> bool {
        matches!(
            self.errno(),
            Some(Errno::ENOENT | Errno::ESRCH | Errno::ENODEV | Errno::ENXIO | Errno::EADDRNOTAVAIL)
        )
    }

    /// Whether we are not allowed to (EPERM, EACCES, EROFS).
    pub fn is_forbidden(&self) -> bool {
        matches!(self.errno(), Some(Errno::EPERM | Errno::EACCES | Errno::EROFS))
    }
}

/// Treats an object that is gone already as deleted.
pub trait MissingIsFine {
    /// `Ok` also where the object was not there.
    fn missing_is_fine(self) -> Result<(), KernelError>;
}

impl MissingIsFine for Result<(), KernelError> {
    fn missing_is_fine(self) -> Result<(), KernelError> {
        match self {
            Err(e) if e.is_missing() => Ok(()),
            other => other,
        }
    }
}
