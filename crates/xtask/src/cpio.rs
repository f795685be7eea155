//! Writes an archive as the kernel unpacks it at boot: the `newc` form of cpio
//! (`Documentation/driver-api/early-userspace/buffer-format.rst`).

use std::collections::BTreeSet;
use std::io::{self, Write};
use std::path::Path;

/// Bits of `st_mode` that say what an entry is.
const FOLDER: u32 = 0o040_000;
const FILE: u32 = 0o100_000;
const LINK: u32 = 0o120_000;

/// An archive under way.
#[derive(Debug)]
pub(crate) struct Archive<W> {
    out: W,
    entries: u32,
    folders: BTreeSet<String>,
}

impl<W: Write> Archive<W> {
    /// An empty archive.
    pub(crate) fn new(out: W) -> Self {
        Self { out, entries: 0, folders: BTreeSet::new() }
    }

    /// Adds a folder, and those above it.
    pub(crate) fn folder(&mut self, path: &str) -> io::Result<()> {
        let path = path.trim_matches('/');
        let ends = path.match_indices('/').map(|(at, _)| at).chain([path.len()]);
        for above in ends.map(|end| path[..end].to_owned()).collect::<Vec<_>>() {
            if !above.is_empty() && self.folders.insert(above.clone()) {
                self.entry(&above, FOLDER | 0o755, &[])?;
            }
        }
        Ok(())
    }

    /// Adds a file that may be executed.
    pub(crate) fn file(&mut self, path: &str, content: &[u8]) -> io::Result<()> {
        self.place(path)?;
        self.entry(path.trim_matches('/'), FILE | 0o755, content)
    }

    /// Adds a file with the content of one of this machine.
    pub(crate) fn copy(&mut self, path: &str, from: &Path) -> io::Result<()> {
        let content = std::fs::read(from)
            .map_err(|e| io::Error::new(e.kind(), format!("read {}: {e}", from.display())))?;
        self.file(path, &content)
    }

    /// Adds a symbolic link.
    pub(crate) fn link(&mut self, path: &str, target: &str) -> io::Result<()> {
        self.place(path)?;
        self.entry(path.trim_matches('/'), LINK | 0o777, target.as_bytes())
    }

    /// Ends the archive.
    pub(crate) fn finish(mut self) -> io::Result<W> {
        self.entry("TRAILER!!!", 0, &[])?;
        Ok(self.out)
    }

    fn place(&mut self, path: &str) -> io::Result<()> {
        match path.trim_matches('/').rsplit_once('/') {
            Some((folder, _)) => self.folder(folder),
            None => Ok(()),
        }
    }

    fn entry(&mut self, path: &str, mode: u32, content: &[u8]) -> io::Result<()> {
        let too_large =
            || io::Error::new(io::ErrorKind::InvalidInput, format!("{path}: too large for an archive"));
        let size = u32::try_from(content.len()).map_err(|_| too_large())?;
        let name = u32::try_from(path.len() + 1).map_err(|_| too_large())?;
        self.entries += 1;
        let links = if mode & FOLDER == FOLDER && mode & FILE != FILE { 2 } else { 1 };
        // inode, mode, uid, gid, links, mtime, size, device (2), device it is (2), length of the name, checksum
        let fields = [self.entries, mode, 0, 0, links, 0, size, 0, 0, 0, 0, name, 0];
        self.out.write_all(b"070701")?;
        for field in fields {
            write!(self.out, "{field:08x}")?;
        }
        self.out.write_all(path.as_bytes())?;
        self.out.write_all(b"\0")?;
        // The head is 110 octets; name and content are padded to multiples of four.
        self.pad(110 + path.len() + 1)?;
        self.out.write_all(content)?;
        self.pad(content.len())
    }

    fn pad(&mut self, length: usize) -> io::Result<()> {
        self.out.write_all(&[0; 3][..length.next_multiple_of(4) - length])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_follow_each_other_padded_and_folders_come_once() {
        let mut archive = Archive::new(Vec::new());
        archive.file("/a/b/c", b"12345").unwrap();
        archive.link("a/b/d", "c").unwrap();
        let bytes = archive.finish().unwrap();
        assert_eq!(bytes.len() % 4, 0);
        let (mut at, mut found) = (0, vec![]);
        while at < bytes.len() {
            assert_eq!(&bytes[at..at + 6], b"070701");
            let field = |n: usize| {
                let text = std::str::from_utf8(&bytes[at + 6 + 8 * n..at + 14 + 8 * n]).unwrap();
                usize::from_str_radix(text, 16).unwrap()
            };
            let (mode, size, name) = (field(1), field(6), field(11));
            let path = String::from_utf8(bytes[at + 110..at + 110 + name - 1].to_vec()).unwrap();
            let start = (at + 110 + name).next_multiple_of(4);
            found.push((path, mode, bytes[start..start + size].to_vec()));
            at = (start + size).next_multiple_of(4);
        }
        let expected = [
            ("a", 0o040_755, ""),
            ("a/b", 0o040_755, ""),
            ("a/b/c", 0o100_755, "12345"),
            ("a/b/d", 0o120_777, "c"),
            ("TRAILER!!!", 0, ""),
        ];
        assert_eq!(
            found,
            expected.map(|(path, mode, content)| (path.to_owned(), mode, content.as_bytes().to_vec()))
        );
    }
}
