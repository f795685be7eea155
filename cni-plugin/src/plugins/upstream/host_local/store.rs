//! The folder of a network: one file for each leased address, and the lock.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use podway_ipam::Attachment;

use crate::error::CniError;

const LOCK: &str = "lock";
const LAST: &str = "last_reserved_ip.";

/// Whose an address is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Holder {
    container: String,
    /// None: a file of an old version, which does not say.
    pub(super) ifname: Option<String>,
}

impl Holder {
    /// Whether it is that attachment. A file without an interface is any of the container's.
    pub(super) fn is(&self, attachment: &Attachment) -> bool {
        let ifname = self.ifname.as_deref();
        self.container == attachment.container_id.as_str()
            && ifname.is_none_or(|ifname| ifname == attachment.ifname.as_str())
    }

    /// None: the file is empty, of an ADD that was killed.
    fn parse(text: &str) -> Option<Self> {
        let mut lines = text.trim().lines().map(|line| line.trim_end().to_owned());
        Some(Self { container: lines.next().filter(|id| !id.is_empty())?, ifname: lines.next() })
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.ifname {
            Some(ifname) => write!(f, "{}/{ifname}", self.container),
            None => f.write_str(&self.container),
        }
    }
}

/// The folder, locked until the value is dropped.
#[derive(Debug)]
pub(super) struct Store {
    dir: PathBuf,
    _lock: File,
}

impl Store {
    /// Opens the folder, which is made if it is missing, and waits for its lock.
    pub(super) fn open(dir: &Path) -> Result<Self, CniError> {
        let make = DirBuilder::new().recursive(true).mode(0o755).create(dir);
        make.map_err(|e| CniError::io(dir, "make the folder of leases", &e))?;
        let path = dir.join(LOCK);
        let fail = |e: &io::Error| CniError::io(&path, "lock the leases", e);
        let open = OpenOptions::new().create(true).truncate(false).write(true).mode(0o750).open(&path);
        let lock = open.map_err(|e| fail(&e))?;
        loop {
            match lock.lock() {
                Ok(()) => return Ok(Self { dir: dir.to_owned(), _lock: lock }),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(fail(&e)),
            }
        }
    }

    /// The same where the folder is there; none where nobody ever leased.
    pub(super) fn open_if_there(dir: &Path) -> Result<Option<Self>, CniError> {
        if dir.is_dir() { Self::open(dir).map(Some) } else { Ok(None) }
    }

    /// All leased addresses.
    pub(super) fn held(&self) -> Result<BTreeMap<IpAddr, Holder>, CniError> {
        let mut held = BTreeMap::new();
        for ip in self.files()? {
            let path = self.path(ip);
            let text = match fs::read(&path) {
                Ok(text) => text,
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                Err(e) => return Err(CniError::io(&path, "read the lease", &e)),
            };
            held.extend(Holder::parse(&String::from_utf8_lossy(&text)).map(|holder| (ip, holder)));
        }
        Ok(held)
    }

    /// Removes files that are nobody's. Returns what could not be removed.
    pub(super) fn sweep(&self) -> Result<Vec<CniError>, CniError> {
        let held = self.held()?;
        let empty = self.files()?.into_iter().filter(|ip| !held.contains_key(ip));
        Ok(empty.filter_map(|ip| self.free(ip).err()).collect())
    }

    /// Leases an address that nobody holds, from the range set of that number.
    pub(super) fn lease(&self, ip: IpAddr, attachment: &Attachment, set: usize) -> Result<(), CniError> {
        let text = format!("{}\r\n{}", attachment.container_id, attachment.ifname);
        self.write(&self.path(ip), &text)?;
        self.write(&self.dir.join(format!("{LAST}{set}")), &ip.to_string())
    }

    /// Ends a lease. None is fine.
    pub(super) fn free(&self, ip: IpAddr) -> Result<(), CniError> {
        let path = self.path(ip);
        match fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(CniError::io(&path, "remove the lease", &e)),
            _ => Ok(()),
        }
    }

    /// The address that was leased last from the range set of that number. Without it the first one is next.
    pub(super) fn last(&self, set: usize) -> Option<IpAddr> {
        fs::read_to_string(self.dir.join(format!("{LAST}{set}"))).ok()?.trim().parse().ok()
    }

    /// Addresses that have a file.
    fn files(&self) -> Result<Vec<IpAddr>, CniError> {
        let fail = |e: &io::Error| CniError::io(&self.dir, "list the leases", e);
        let mut all = Vec::new();
        for entry in fs::read_dir(&self.dir).map_err(|e| fail(&e))? {
            let name = entry.map_err(|e| fail(&e))?.file_name();
            all.extend(name.to_str().and_then(|name| name.parse::<IpAddr>().ok()));
        }
        Ok(all)
    }

    fn path(&self, ip: IpAddr) -> PathBuf {
        self.dir.join(ip.to_string())
    }

    fn write(&self, path: &Path, text: &str) -> Result<(), CniError> {
        use std::io::Write as _;
        let open = OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(path);
        open.and_then(|mut file| file.write_all(text.as_bytes()))
            .map_err(|e| CniError::io(path, "write the lease", &e))
    }
}
