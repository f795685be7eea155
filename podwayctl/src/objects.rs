//! Objects of the store as documents: reading files, finding kinds, listing.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use podway_daemon::process::load;
use podway_model::config::{EtcdConfig, StoreConfig};
use podway_model::document::{Document, Kind, overlapping_pools, parse_config, parse_documents};
use podway_model::keys::Key;
use podway_model::mistakes::Mistakes;
use podway_store::{Entry, Store};

use crate::args::StoreArgs;
use crate::outcome::Failure;

/// A document and where it came from.
#[derive(Debug)]
pub(crate) struct Given {
    /// File, for messages.
    pub(crate) source: String,
    /// The document.
    pub(crate) document: Document,
}

/// Opens the store that the arguments name.
pub(crate) fn open(args: &StoreArgs) -> Result<Arc<dyn Store>, Failure> {
    let config = if args.etcd.is_empty() {
        load(&args.config)?.store
    } else {
        // The same door as the file, so that the same is accepted.
        let etcd = serde_json::json!({
            "store": { "etcd": { "endpoints": args.etcd, "prefix": args.etcd_prefix } }
        });
        parse_config("--etcd", &etcd.to_string())?.store
    };
    if let StoreConfig::Etcd(EtcdConfig { endpoints, .. }) = &config
        && endpoints.is_empty()
    {
        return Err(Failure::bad_argument("--etcd", "nothing", "a URL"));
    }
    Ok(podway_store::open(&config)?)
}

/// Names of kinds as people type them: full, plural, short; any case.
pub(crate) fn parse_kind(text: &str) -> Result<Kind, String> {
    let names: [(Kind, &[&str]); 8] = [
        (Kind::ClusterConfig, &["clusterconfig", "clusterconfigs", "config"]),
        (Kind::Pool, &["pool", "pools"]),
        (Kind::BgpPeer, &["bgppeer", "bgppeers", "peer", "peers"]),
        (Kind::BgpFilter, &["bgpfilter", "bgpfilters", "filter", "filters"]),
        (Kind::Reflector, &["reflector", "reflectors"]),
        (Kind::Namespace, &["namespace", "namespaces", "ns"]),
        (Kind::Pod, &["pod", "pods", "po"]),
        (Kind::NetworkPolicy, &["networkpolicy", "networkpolicies", "netpol", "netpols"]),
    ];
    let lower = text.to_lowercase();
    let found = names.iter().find(|(_, names)| names.contains(&lower.as_str()));
    found.map(|(kind, _)| *kind).ok_or_else(|| {
        "expected clusterconfig, pools, bgppeers, bgpfilters, reflectors, namespaces, pods or networkpolicies".to_owned()
    })
}

/// Prefix of the keys of a kind.
pub(crate) fn prefix(kind: Kind) -> &'static str {
    match kind {
        Kind::ClusterConfig => "config",
        Kind::Pool => "pools/",
        Kind::BgpPeer => "peers/",
        Kind::BgpFilter => "filters/",
        Kind::Reflector => "reflectors/",
        Kind::Namespace => "objects/namespaces/",
        Kind::Pod => "objects/pods/",
        Kind::NetworkPolicy => "objects/networkpolicies/",
    }
}

/// Key of an object by name.
pub(crate) fn key(kind: Kind, namespace: &str, name: &str) -> Result<Key, Failure> {
    let text = match kind {
        Kind::ClusterConfig => {
            if name != podway_model::document::CLUSTER_CONFIG_NAME {
                return Err(Failure::NotFound(format!(
                    "ClusterConfig {name:?} not found: there is one, named \"default\""
                )));
            }
            "config".to_owned()
        }
        _ if kind.is_namespaced() => format!("{}{namespace}/{name}", prefix(kind)),
        _ => format!("{}{name}", prefix(kind)),
    };
    text.parse().map_err(|_| {
        let expected = "a name (lower-case letters, digits, '-' and '.')";
        Failure::bad_argument("NAME", format!("{name:?}"), expected)
    })
}

/// `networkpolicy/shop/allow`: what an object is called in messages.
pub(crate) fn label(document: &Document) -> String {
    let kind = document.kind().name().to_lowercase();
    match document.namespace() {
        Some(namespace) => format!("{kind}/{namespace}/{}", document.name()),
        None => format!("{kind}/{}", document.name()),
    }
}

/// All stored objects of a kind, in the order of their names, and what cannot be read.
pub(crate) async fn list(
    store: &dyn Store,
    kind: Kind,
) -> Result<(Vec<(Document, Entry)>, Vec<String>), Failure> {
    let entries = if kind == Kind::ClusterConfig {
        store.get("config").await?.into_iter().collect()
    } else {
        store.list(prefix(kind)).await?.entries
    };
    let mut documents = Vec::new();
    let mut problems = Vec::new();
    for entry in entries {
        match read(&entry) {
            Ok(document) => documents.push((document, entry)),
            Err(problem) => problems.push(problem),
        }
    }
    Ok((documents, problems))
}

/// A stored object.
pub(crate) fn read(entry: &Entry) -> Result<Document, String> {
    let key: Key = entry.key.parse().map_err(|error: podway_model::keys::UnknownKey| error.to_string())?;
    Document::from_store(&key, &entry.value).map_err(|error| format!("{}: {error}", entry.key))
}

/// Reads and checks every file, and all of them against each other.
pub(crate) fn read_files(paths: &[PathBuf]) -> Result<Vec<Given>, Failure> {
    let mut mistakes = Mistakes::default();
    let mut documents: Vec<Given> = Vec::new();
    for path in paths {
        for (source, text) in texts(path) {
            let parsed = match text {
                Ok(text) => parse_documents(&source, &text),
                Err(error) => {
                    let mut unreadable = Mistakes::default();
                    unreadable.add(&source, "", error, "a file with documents");
                    Err(unreadable)
                }
            };
            match parsed {
                Ok(parsed) => documents
                    .extend(parsed.into_iter().map(|document| Given { source: source.clone(), document })),
                Err(found) => mistakes.extend(found),
            }
        }
    }
    check_together(&documents, &mut mistakes);
    mistakes.into_result(documents).map_err(Failure::from)
}

/// The same object in two files, and pools of two files that overlap. (Within one, the parser finds it.)
fn check_together(documents: &[Given], mistakes: &mut Mistakes) {
    let mut seen: BTreeMap<Key, &Given> = BTreeMap::new();
    for read in documents {
        if let Some(first) = seen.get(&read.document.key())
            && first.source != read.source
        {
            let found = format!("{} again", label(&read.document));
            mistakes.add(&read.source, "metadata.name", found, format!("it once ({} has it)", first.source));
        }
        seen.entry(read.document.key()).or_insert(read);
    }
    let pools: Vec<_> = documents
        .iter()
        .filter_map(|read| match &read.document {
            Document::Pool { name, spec } => Some((&read.source, name, spec)),
            _ => None,
        })
        .collect();
    for (name, other) in overlapping_pools(pools.iter().map(|(_, name, pool)| (*name, *pool))) {
        let find = |wanted| pools.iter().find(|(_, name, _)| *name == wanted);
        if let (Some((first_source, _, first)), Some((source, _, pool))) = (find(name), find(other))
            && first_source != source
        {
            let expected = format!("a prefix outside {} of pool {name} ({first_source})", first.cidr);
            mistakes.add(*source, "spec.cidr", pool.cidr, expected);
        }
    }
}

/// The texts behind a path: standard input, a file, or the documents of a folder in the order of their names.
fn texts(path: &Path) -> Vec<(String, io::Result<String>)> {
    if path == Path::new("-") {
        let mut text = String::new();
        let read = io::stdin().read_to_string(&mut text).map(|_| text);
        return vec![("standard input".to_owned(), read)];
    }
    if !path.is_dir() {
        return vec![(path.display().to_string(), fs::read_to_string(path))];
    }
    let is_document = |path: &PathBuf| {
        path.is_file() && path.extension().is_some_and(|end| end == "yaml" || end == "yml" || end == "json")
    };
    match fs::read_dir(path) {
        Err(error) => vec![(path.display().to_string(), Err(error))],
        Ok(entries) => {
            let mut paths: Vec<PathBuf> =
                entries.flatten().map(|entry| entry.path()).filter(is_document).collect();
            paths.sort();
            paths.into_iter().map(|path| (path.display().to_string(), fs::read_to_string(&path))).collect()
        }
    }
}
