//! The folder of endpoint records, watched with inotify. Overflow, or the folder's own end, mean: read it all again.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use futures::StreamExt as _;
use inotify::{EventMask, EventStream, Inotify, WatchMask};

use crate::core::Event;
use crate::records;

/// Longest record in bytes; a real one has less than 1 kB.
const RECORD_LIMIT: u64 = 64 << 10;

/// A watched folder.
pub(crate) struct Folder {
    path: PathBuf,
    events: EventStream<[u8; 4096]>,
}

impl Folder {
    /// Starts watching; makes the folder if it is missing. Must be called within a tokio runtime.
    pub(crate) fn watch(path: &Path) -> io::Result<Self> {
        let inotify = Inotify::init()?;
        let folder = Self { path: path.to_owned(), events: inotify.into_event_stream([0; 4096])? };
        folder.add()?;
        Ok(folder)
    }

    fn add(&self) -> io::Result<()> {
        DirBuilder::new().recursive(true).mode(0o700).create(&self.path)?;
        let mask = WatchMask::CLOSE_WRITE | WatchMask::MOVED_TO | WatchMask::MOVED_FROM | WatchMask::DELETE;
        self.events.watches().add(&self.path, mask | WatchMask::ONLYDIR)?;
        Ok(())
    }

    /// Every record.
    pub(crate) fn read_all(&self) -> io::Result<Event> {
        let mut files = BTreeMap::new();
        for entry in fs::read_dir(&self.path)? {
            let name = entry?.file_name();
            let Some(id) = name.to_str().and_then(records::id_of) else { continue };
            if let Some(content) = read(&self.path.join(&name))? {
                files.insert(id.to_owned(), content);
            }
        }
        Ok(Event::Folder(files))
    }

    /// The next change. Cancel-safe: a change is read only after it was taken from the queue, in one go.
    pub(crate) async fn next(&mut self) -> io::Result<Event> {
        loop {
            let Some(event) = self.events.next().await else {
                return Err(io::Error::other("inotify ended"));
            };
            let event = event?;
            if event.mask.intersects(EventMask::Q_OVERFLOW | EventMask::IGNORED) {
                if event.mask.contains(EventMask::IGNORED) {
                    self.add()?;
                }
                return self.read_all();
            }
            if let Some(event) = self.read_one(event.name.as_deref())? {
                return Ok(event);
            }
        }
    }

    fn read_one(&self, name: Option<&OsStr>) -> io::Result<Option<Event>> {
        let Some((name, id)) = name.and_then(|name| Some((name, records::id_of(name.to_str()?)?))) else {
            return Ok(None);
        };
        Ok(Some(Event::Record(id.to_owned(), read(&self.path.join(name))?)))
    }
}

/// The content of a record; `None`: it is gone. Of what is too long only the beginning is read, which is no record.
fn read(path: &Path) -> io::Result<Option<Vec<u8>>> {
    use std::io::Read as _;
    let file = match fs::File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut content = Vec::new();
    file.take(RECORD_LIMIT).read_to_end(&mut content)?;
    Ok(Some(content))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(event: Event) -> (String, Option<Vec<u8>>) {
        match event {
            Event::Record(id, content) => (id, content),
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn records_are_told_when_they_are_whole_and_when_they_go() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("endpoints");
        let mut folder = Folder::watch(&path).unwrap();
        fs::write(path.join(".a.json"), "half").unwrap();
        fs::write(path.join("a.tmp"), "whole").unwrap();
        fs::rename(path.join("a.tmp"), path.join("a.json")).unwrap();
        assert_eq!(record(folder.next().await.unwrap()), ("a".into(), Some(b"whole".to_vec())));
        assert!(matches!(folder.read_all().unwrap(), Event::Folder(files) if files.len() == 1));
        fs::remove_file(path.join("a.json")).unwrap();
        assert_eq!(record(folder.next().await.unwrap()), ("a".into(), None));
    }

    #[tokio::test]
    async fn a_folder_that_is_replaced_is_watched_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("endpoints");
        let mut folder = Folder::watch(&path).unwrap();
        fs::remove_dir(&path).unwrap();
        assert!(matches!(folder.next().await.unwrap(), Event::Folder(files) if files.is_empty()));
        fs::write(path.join("b.json"), "x").unwrap();
        assert_eq!(record(folder.next().await.unwrap()).0, "b");
    }
}
