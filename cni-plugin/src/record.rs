//! Endpoint records: what the daemons learn about the pods of this node (`podway_model::endpoint`).
//!
//! A record is written before the pod's link exists and removed after it is gone, so that no packet of a pod ever
//! comes from an interface that the daemons have not heard of. It appears under its name whole or not at all.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use podway_ipam::Attachment;
use podway_model::accepts_schema;
use podway_model::endpoint::EndpointRecord;
use podway_model::names::attachment_id;

use crate::error::CniError;

/// The folder of records.
#[derive(Debug, Clone)]
pub struct Records {
    dir: PathBuf,
}

impl Records {
    /// The records in `dir`.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into() }
    }

    /// Writes a record. The folder is made if it is missing.
    pub fn write(&self, record: &EndpointRecord) -> Result<(), CniError> {
        let (path, new) = (self.path(&record.id), self.new_path(&record.id));
        let fail = |e: io::Error| CniError::io(&path, "write the endpoint record", &e);
        let text = serde_json::to_vec(record).map_err(|e| fail(e.into()))?;
        replace(&path, &new, &text).map_err(fail)
    }

    /// Reads the record of an attachment. One that cannot be read counts as missing where the caller can do
    /// without: the reason comes with it.
    pub fn read(&self, attachment: &Attachment) -> Result<Option<EndpointRecord>, CniError> {
        read(&self.path(&id_of(attachment)))
    }

    /// Removes the record of an attachment, and what a killed writer left of it. None is fine.
    pub fn remove(&self, attachment: &Attachment) -> Result<(), CniError> {
        let id = id_of(attachment);
        for path in [self.new_path(&id), self.path(&id)] {
            match fs::remove_file(&path) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => {
                    return Err(CniError::io(&path, "remove the endpoint record", &e));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// All records that can be read, and why the others cannot.
    pub fn list(&self) -> Result<(Vec<EndpointRecord>, Vec<CniError>), CniError> {
        let fail = |e: &io::Error| CniError::io(&self.dir, "list the endpoint records", e);
        let entries = match fs::read_dir(&self.dir) {
            Ok(entries) => entries,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Default::default()),
            Err(e) => return Err(fail(&e)),
        };
        let (mut all, mut bad) = (Vec::new(), Vec::new());
        for entry in entries {
            let path = entry.map_err(|e| fail(&e))?.path();
            if path.extension().is_some_and(|extension| extension == "json") {
                match read(&path) {
                    Ok(record) => all.extend(record),
                    Err(error) => bad.push(error),
                }
            }
        }
        Ok((all, bad))
    }

    fn path(&self, id: &str) -> PathBuf {
        self.dir.join(format!("{id}.json"))
    }

    fn new_path(&self, id: &str) -> PathBuf {
        self.dir.join(format!(".{id}.new"))
    }
}

/// Puts a file under its name whole or not at all, by way of `new`. Its folder is made if it is missing.
pub(crate) fn replace(path: &Path, new: &Path, text: &[u8]) -> io::Result<()> {
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

/// The name of an attachment's files.
pub(crate) fn id_of(attachment: &Attachment) -> String {
    attachment_id(attachment.container_id.as_str(), attachment.ifname.as_str())
}

fn read(path: &Path) -> Result<Option<EndpointRecord>, CniError> {
    let fail = |e: &io::Error| CniError::io(path, "read the endpoint record", e);
    let text = match fs::read(path) {
        Ok(text) => text,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(fail(&e)),
    };
    let record: EndpointRecord = serde_json::from_slice(&text).map_err(|e| fail(&e.into()))?;
    if !accepts_schema(record.schema) {
        let found = format!("schema: {} found, {} expected", record.schema, podway_model::SCHEMA);
        return Err(fail(&io::Error::new(io::ErrorKind::InvalidData, found)));
    }
    Ok(Some(record))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Code;

    fn record(container: &str) -> EndpointRecord {
        let id = attachment_id(container, "eth0");
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
        fs::write(records.new_path(&record("c1").id), "{\"sche").unwrap();
        assert_eq!(records.list().unwrap(), Default::default());
        records.remove(&attachment("c1")).unwrap();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_record_that_cannot_be_read_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let records = Records::new(folder.path());
        let path = records.path(&record("c1").id);
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
