//! What an operator wrote: one file of documents, or the `*.yaml`, `*.yml` and `*.json` files of a folder, read as
//! `podwayctl apply` would take them.
//!
//! A file that cannot be read as a whole (half-written, invalid) keeps its last good documents and is reported.
//! A folder whose files are links through `..data` (a mounted ConfigMap) is read from one version only.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::{fs, io};

use podway_model::document::parse_documents;

/// The documents as key and value.
#[derive(Debug, Default)]
pub(super) struct Documents {
    files: BTreeMap<PathBuf, DocumentFile>,
}

/// One file as it was when it was last read well.
#[derive(Debug, Default)]
struct DocumentFile {
    text: String,
    values: Vec<(String, Vec<u8>)>,
    /// What is wrong with what stands there now.
    problem: Option<String>,
}

/// A value from a document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct DocumentValue {
    /// The value as it would stand in any store.
    pub(super) value: Vec<u8>,
    /// The file's path, for people.
    pub(super) file: String,
}

/// What the documents say.
#[derive(Debug, Default)]
pub(super) struct Read {
    /// By key.
    pub(super) values: BTreeMap<String, DocumentValue>,
    /// Files that cannot be used, and keys that stand twice.
    pub(super) problems: Vec<String>,
}

/// Largest document file, in bytes.
const MAX_FILE: u64 = 64 << 20;

impl Documents {
    /// Reads what stands there now. An error when the path itself cannot be read.
    pub(super) fn read(&mut self, path: &Path) -> io::Result<Read> {
        let version = || fs::read_link(path.join("..data")).ok();
        loop {
            let before = version();
            let result = self.read_once(path);
            if version() == before {
                return result;
            }
        }
    }

    fn read_once(&mut self, path: &Path) -> io::Result<Read> {
        let paths = document_paths(path)?;
        self.files.retain(|file, _| paths.contains(file));
        let mut read = Read::default();
        for path in paths {
            let file = self.files.entry(path.clone()).or_default();
            file.refresh(&path);
            read.problems.extend(file.problem.clone());
            for (key, value) in &file.values {
                let here = DocumentValue { value: value.clone(), file: path.display().to_string() };
                if let Some(first) = read.values.get(key) {
                    let problem = format!("{}: ignoring {key}, which {} has", here.file, first.file);
                    read.problems.push(problem);
                } else {
                    read.values.insert(key.clone(), here);
                }
            }
        }
        Ok(read)
    }
}

impl DocumentFile {
    fn refresh(&mut self, path: &Path) {
        let name = path.display().to_string();
        let text = match read_text(path) {
            Ok(text) => text,
            Err(error) => {
                self.problem = Some(format!("{name}: {error}; keeping what it said before"));
                return;
            }
        };
        if text == self.text {
            self.problem = None;
            return;
        }
        match parse_documents(&name, &text) {
            Ok(documents) => {
                self.values = documents.iter().map(|d| (d.key().to_string(), d.to_json())).collect();
                self.text = text;
                self.problem = None;
            }
            Err(mistakes) => {
                let text = mistakes.to_string().replace('\n', "; ");
                self.problem = Some(format!("{text} (keeping what the file said before)"));
            }
        }
    }
}

fn read_text(path: &Path) -> io::Result<String> {
    let size = fs::metadata(path)?.len();
    if size > MAX_FILE {
        return Err(io::Error::other(format!("{size} bytes found, at most {MAX_FILE} expected")));
    }
    fs::read_to_string(path)
}

/// Whether a path names one file of documents, not a folder.
pub(super) fn is_document_name(path: &Path) -> bool {
    let extension = path.extension().and_then(|e| e.to_str());
    let hidden = path.file_name().and_then(|n| n.to_str()).is_none_or(|name| name.starts_with('.'));
    matches!(extension, Some("yaml" | "yml" | "json")) && !hidden
}

pub(super) fn document_paths(path: &Path) -> io::Result<Vec<PathBuf>> {
    if !fs::metadata(path)?.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let mut paths = Vec::new();
    for file in fs::read_dir(path)? {
        let file = file?.path();
        if is_document_name(&file) {
            paths.push(file);
        }
    }
    paths.sort();
    Ok(paths)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAMESPACE_A: &str = "apiVersion: v1\nkind: Namespace\nmetadata: {name: a}\n";
    const NAMESPACE_B: &str = "apiVersion: v1\nkind: Namespace\nmetadata: {name: b}\n";

    fn keys(read: &Read) -> Vec<&str> {
        read.values.keys().map(String::as_str).collect()
    }

    #[test]
    fn an_invalid_file_keeps_its_last_good_documents_and_is_reported() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a.yaml");
        let mut documents = Documents::default();
        fs::write(&file, NAMESPACE_A).unwrap();
        assert_eq!(keys(&documents.read(folder.path()).unwrap()), ["objects/namespaces/a"]);
        fs::write(&file, "apiVersion: v1\nkind: Names").unwrap();
        let read = documents.read(folder.path()).unwrap();
        assert_eq!(keys(&read), ["objects/namespaces/a"]);
        assert!(read.problems[0].contains("a.yaml"), "{:?}", read.problems);
        fs::write(&file, NAMESPACE_B).unwrap();
        let read = documents.read(folder.path()).unwrap();
        assert_eq!((keys(&read), read.problems.len()), (vec!["objects/namespaces/b"], 0));
        fs::remove_file(&file).unwrap();
        assert!(documents.read(folder.path()).unwrap().values.is_empty());
    }

    #[test]
    fn a_key_that_stands_twice_is_taken_from_the_first_file() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("a.yaml"), NAMESPACE_A).unwrap();
        fs::write(folder.path().join("b.yml"), NAMESPACE_A).unwrap();
        fs::write(folder.path().join(".b.yaml.swp"), "half").unwrap();
        fs::write(folder.path().join("notes.txt"), "not a document").unwrap();
        let read = Documents::default().read(folder.path()).unwrap();
        assert!(read.values["objects/namespaces/a"].file.ends_with("a.yaml"));
        assert_eq!(read.problems.len(), 1);
    }

    #[test]
    fn a_missing_path_is_an_error_not_an_empty_store() {
        assert!(Documents::default().read(Path::new("/nonexistent/cluster.yaml")).is_err());
    }
}
