//! Reads and writes `/proc/sys`.
//!
//! Entries below `net/` are those of the calling thread's network namespace: use [`crate::ns::in_netns`] for
//! another one. (`/proc/sys` is opened through the thread, so a `/proc` of another mount namespace will do.)

use std::fmt;
use std::path::{Path, PathBuf};

use crate::KernelError;

/// A sysctl: the parts of its path below `/proc/sys`. Parts may hold dots, as interface names do.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Sysctl(Vec<String>);

/// Address family of a sysctl below `net/`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// `net/ipv4`.
    V4,
    /// `net/ipv6`.
    V6,
}

impl Family {
    fn folder(self) -> &'static str {
        match self {
            Self::V4 => "ipv4",
            Self::V6 => "ipv6",
        }
    }
}

impl Sysctl {
    /// From a path with slashes: `net/ipv4/ip_forward`. For constants; see [`Sysctl::conf`] for interfaces.
    ///
    /// Empty parts, `.` and `..` are left out, so a path never leaves `/proc/sys`.
    pub fn new(path: &str) -> Self {
        Self(path.split('/').filter(|part| !matches!(*part, "" | "." | "..")).map(str::to_owned).collect())
    }

    /// `net/<family>/conf/<interface>/<key>`.
    pub fn conf(family: Family, interface: &str, key: &str) -> Self {
        Self(["net", family.folder(), "conf", interface, key].map(str::to_owned).to_vec())
    }

    /// `net/<family>/neigh/<interface>/<key>`.
    pub fn neigh(family: Family, interface: &str, key: &str) -> Self {
        Self(["net", family.folder(), "neigh", interface, key].map(str::to_owned).to_vec())
    }

    /// Where it is.
    pub fn path(&self) -> PathBuf {
        let mut path = Path::new("/proc/sys").to_owned();
        path.extend(&self.0);
        path
    }

    /// Its value, without the newline.
    pub fn read(&self) -> Result<String, KernelError> {
        std::fs::read_to_string(self.path())
            .map(|text| text.trim_end().to_owned())
            .map_err(|e| KernelError::io(format!("read {}", self.path().display()), e))
    }

    /// Writes a value. The error names path and value.
    pub fn write(&self, value: &str) -> Result<(), KernelError> {
        std::fs::write(self.path(), value)
            .map_err(|e| KernelError::io(format!("write {value} to {}", self.path().display()), e))
    }

    /// Writes a value where another one stands; says whether it did.
    pub fn ensure(&self, value: &str) -> Result<bool, KernelError> {
        if self.read()? == value {
            return Ok(false);
        }
        self.write(value)?;
        Ok(true)
    }
}

impl fmt::Display for Sysctl {
    /// As `sysctl -w` takes it: slashes, since interface names may hold dots.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("/"))
    }
}
