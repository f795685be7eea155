//! Files that each stand for an attachment: endpoint records, from which the daemons learn about the pods of this node
//! (`podway_model::endpoint`), and marks of addresses that another plugin gives ([`crate::delegate`]).
//!
//! A record is written before the pod's link exists and removed after it is gone, so that no packet of a pod ever
//! comes from an interface that the daemons have not heard of. A file appears under its name whole or not at all.

use std::fs::{self, DirBuilder};
use std::io;
use std::marker::PhantomData;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use podway_ipam::Attachment;
use podway_model::accepts_schema;
use podway_model::endpoint::EndpointRecord;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::CniError;

/// The form of such a file: JSON that carries a schema.
pub trait Filed: Serialize + DeserializeOwned {
    /// What it is, for people.
    const WHAT: &'static str;

    /// Version of its form.
    fn schema(&self) -> u32;

    /// [`Attachment::id`] of its attachment.
    fn id(&self) -> String;
}

impl Filed for EndpointRecord {
    const WHAT: &'static str = "the endpoint record";

    fn schema(&self) -> u32 {
        self.schema
    }

    fn id(&self) -> String {
        self.id.clone()
    }
}

/// A folder of them.
#[derive(Debug, Clone)]
pub struct Folder<T> {
    dir: PathBuf,
    form: PhantomData<fn() -> T>,
}

/// The folder of endpoint records.
pub type Records = Folder<EndpointRecord>;

impl<T: Filed> Folder<T> {
    /// The files in `dir`.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into(), form: PhantomData }
    }

    /// Writes one. The folder is made if it is missing.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn write(&self, one: &T) -> Result<(), CniError> {
        let (path, new) = (self.path_of(&one.id()), self.new_path_of(&one.id()));
        let fail = |e: io::Error| failed("write", T::WHAT, &path, &e);
        let text = serde_json::to_vec(one).map_err(|e| fail(e.into()))?;
        replace(&path, &new, &text).map_err(fail)
    }

    /// Reads that of an attachment; `None`: there is none.
    ///
    /// # Errors
    /// It is there and cannot be read.
    pub fn read(&self, attachment: &Attachment) -> Result<Option<T>, CniError> {
        read(&self.path(attachment))
    }

    /// Removes that of an attachment, and what a killed writer left of it. None is fine.
    ///
    /// # Errors
    /// It is there and cannot be removed.
    pub fn remove(&self, attachment: &Attachment) -> Result<(), CniError> {
        let id = attachment.id();
        for path in [self.new_path_of(&id), self.path_of(&id)] {
            match fs::remove_file(&path) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => {
                    return Err(failed("remove", T::WHAT, &path, &e));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Removes what killed writers left. Whoever writes or calls this holds the address lock.
    ///
    /// # Errors
    /// It is there and cannot be removed.
    pub fn sweep(&self) -> Result<(), CniError> {
        for entry in fs::read_dir(&self.dir).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.extension().is_some_and(|extension| extension == "new") {
                fs::remove_file(&path).map_err(|e| failed("remove", T::WHAT, &path, &e))?;
            }
        }
        Ok(())
    }

    /// All that can be read, and why the others cannot.
    ///
    /// # Errors
    /// The folder cannot be listed.
    pub fn list(&self) -> Result<(Vec<T>, Vec<CniError>), CniError> {
        let fail = |e: &io::Error| failed("list", T::WHAT, &self.dir, e);
        let entries = match fs::read_dir(&self.dir) {
            Ok(entries) => entries,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok((Vec::new(), Vec::new())),
            Err(e) => return Err(fail(&e)),
        };
        let (mut all, mut bad) = (Vec::new(), Vec::new());
        for entry in entries {
            let path = entry.map_err(|e| fail(&e))?.path();
            if path.extension().is_some_and(|extension| extension == "json") {
                match read(&path) {
                    Ok(one) => all.extend(one),
                    Err(error) => bad.push(error),
                }
            }
        }
        Ok((all, bad))
    }

    /// The file of an attachment.
    pub fn path(&self, attachment: &Attachment) -> PathBuf {
        self.path_of(&attachment.id())
    }

    fn path_of(&self, id: &str) -> PathBuf {
        self.dir.join(format!("{id}.json"))
    }

    fn new_path_of(&self, id: &str) -> PathBuf {
        self.dir.join(format!(".{id}.new"))
    }
}

fn failed(verb: &str, what: &str, path: &Path, error: &io::Error) -> CniError {
    CniError::io(path, &format!("{verb} {what}"), error)
}

/// Puts a file under its name whole or not at all, by way of `new`. Its folder is made if it is missing.
fn replace(path: &Path, new: &Path, text: &[u8]) -> io::Result<()> {
    let written = fs::write(new, text).or_else(|e| match (e.kind(), new.parent()) {
        (io::ErrorKind::NotFound, Some(dir)) => {
            DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
            fs::write(new, text)
        }
        _ => Err(e),
    });
    written.and_then(|()| fs::rename(new, path)).inspect_err(|_| {
        let _ = fs::remove_file(new);
    })
}

fn read<T: Filed>(path: &Path) -> Result<Option<T>, CniError> {
    let fail = |e: &io::Error| failed("read", T::WHAT, path, e);
    let text = match fs::read(path) {
        Ok(text) => text,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(fail(&e)),
    };
    let one: T = serde_json::from_slice(&text).map_err(|e| fail(&e.into()))?;
    if !accepts_schema(one.schema()) {
        let found = format!("schema: {} found, {} expected", one.schema(), podway_model::SCHEMA);
        return Err(fail(&io::Error::new(io::ErrorKind::InvalidData, found)));
    }
    Ok(Some(one))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Code;

    fn record(container: &str) -> EndpointRecord {
        let id = podway_model::names::attachment_id(container, "eth0");
        serde_json::from_value(serde_json::json!({
            "schema": 1, "id": id, "bootId": "00000000-0000-0000-0000-000000000001", "network": "podway",
            "containerId": container, "ifname": "eth0", "hostIfname": "pw1", "mac": "02:00:00:00:00:01",
            "mtu": 1500, "pod": null, "addresses": ["10.0.0.1"], "netns": "/run/netns/x"
        }))
        .unwrap()
    }

    fn attachment(container: &str) -> Attachment {
        Attachment::new(container.parse().unwrap(), "eth0".parse().unwrap())
    }

    #[test]
    fn a_record_is_written_read_listed_and_removed() {
        let folder = tempfile::tempdir().unwrap();
        let records = Records::new(folder.path().join("deep/endpoints"));
        assert_eq!(records.list().unwrap().0, []);
        records.write(&record("c1")).unwrap();
        assert_eq!(records.read(&attachment("c1")).unwrap(), Some(record("c1")));
        assert_eq!(records.list().unwrap().0, [record("c1")]);
        records.remove(&attachment("c1")).unwrap();
        records.remove(&attachment("c1")).unwrap();
        assert_eq!(records.read(&attachment("c1")).unwrap(), None);
    }

    #[test]
    fn what_a_killed_writer_left_is_no_record_and_is_removed() {
        let folder = tempfile::tempdir().unwrap();
        let records = Records::new(folder.path());
        fs::write(records.new_path_of(&record("c1").id), "{\"sche").unwrap();
        assert_eq!(records.list().unwrap(), Default::default());
        records.remove(&attachment("c1")).unwrap();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_record_that_cannot_be_read_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let records = Records::new(folder.path());
        let path = records.path_of(&record("c1").id);
        for (text, part) in [("{", "EOF"), (r#"{"schema":1}"#, "missing field")] {
            fs::write(&path, text).unwrap();
            let error = records.read(&attachment("c1")).unwrap_err();
            assert_eq!(error.code, Code::Io);
            assert!(error.message.contains(part) && error.message.contains(".json"), "{error}");
        }
        let mut other = record("c1");
        other.schema = 99;
        records.write(&other).unwrap();
        assert!(records.read(&attachment("c1")).unwrap_err().message.contains("schema: 99 found"));
        assert_eq!(records.list().unwrap().1.len(), 1);
    }
}
