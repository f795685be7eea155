//! Every corpus file, every regression and some thousands of reproducible mutations through every target.

use std::collections::BTreeMap;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use podway_bgp::message::update::{DecodeContext, Update};
use podway_fuzz::mutate::{Random, mutated};
use podway_fuzz::{MAX_INPUT, TARGETS, seeds};
use podway_model::cluster;
use podway_model::document::{parse_config, parse_documents};
use podway_model::endpoint::EndpointRecord;
use podway_model::k8s::LabelSelector;
use podway_model::keys::Key;
use podway_model::node_file::NodeFile;

/// Changes to inputs that each target is given.
const MUTATIONS: usize = 2000;
/// Where the numbers of the mutations begin; printed with a failure.
const SEED: u64 = 0x70_6f_64_77_61_79;
/// The largest corpus of all targets together.
const LARGEST: u64 = 1 << 20;

fn folder(kind: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(kind)
}

/// Files of a target, by path; none where it has no folder.
fn files(kind: &str, target: &str) -> BTreeMap<PathBuf, Vec<u8>> {
    let Ok(entries) = fs::read_dir(folder(kind).join(target)) else { return BTreeMap::new() };
    entries
        .map(|entry| entry.expect("a readable folder").path())
        .map(|path| (path.clone(), fs::read(path).expect("a readable file")))
        .collect()
}

/// Gives the input to the target and says what broke.
fn fails(run: fn(&[u8]), input: &[u8]) -> Option<String> {
    let error = catch_unwind(AssertUnwindSafe(|| run(input))).err()?;
    let text = error.downcast_ref::<String>().cloned();
    Some(text.or_else(|| error.downcast_ref::<&str>().map(|t| (*t).to_owned())).unwrap_or_default())
}

#[test]
fn every_corpus_and_every_regression_passes() {
    let mut wrong = vec![];
    for (name, run) in TARGETS {
        let corpus = files("corpus", name);
        if corpus.is_empty() {
            wrong.push(format!("{name}: no file in tests/fuzz/corpus/{name}"));
        }
        for (path, input) in corpus.into_iter().chain(files("regressions", name)) {
            wrong.extend(fails(*run, &input).map(|error| format!("{name}: {}: {error}", path.display())));
        }
        for (number, input) in seeds::seeds(name).iter().enumerate() {
            wrong.extend(fails(*run, input).map(|error| format!("{name}: seed {number}: {error}")));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn mutations_of_the_corpora_pass() {
    let mut wrong = vec![];
    for (name, run) in TARGETS {
        let mut inputs: Vec<Vec<u8>> = files("corpus", name).into_values().collect();
        inputs.extend(seeds::seeds(name));
        let mut random = Random::new(SEED);
        for number in 0..MUTATIONS {
            let input = mutated(&inputs, &mut random);
            if let Some(error) = fails(*run, &input) {
                let path = std::env::temp_dir().join(format!("podway-{name}-{number}"));
                fs::write(&path, &input).expect("the folder for temporary files can be written to");
                wrong.push(format!(
                    "{name}: mutation {number} of seed {SEED:#x}, kept as {}: {error}",
                    path.display()
                ));
                break;
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn corpora_are_small_and_of_known_targets() {
    let mut total = 0;
    for kind in ["corpus", "regressions"] {
        let Ok(entries) = fs::read_dir(folder(kind)) else { continue };
        for entry in entries {
            let name = entry.expect("a readable folder").file_name().to_string_lossy().into_owned();
            assert!(
                TARGETS.iter().any(|(known, _)| *known == name),
                "tests/fuzz/{kind}/{name} is of no target"
            );
            for (path, input) in files(kind, &name) {
                assert!(input.len() <= MAX_INPUT, "{}: longer than {MAX_INPUT}", path.display());
                total += input.len() as u64;
            }
        }
    }
    assert!(total <= LARGEST, "{total} bytes: cargo xtask fuzz --minimise");
}

#[test]
fn every_target_has_a_name_of_its_own_and_seeds() {
    for pair in TARGETS.windows(2) {
        assert!(pair[0].0 < pair[1].0, "in the order of names");
    }
    for (name, _) in TARGETS {
        assert!(!seeds::seeds(name).is_empty(), "{name}");
    }
}

/// Seeds that are refused at the door would leave everything behind it untried.
#[test]
fn seeds_are_what_the_readers_take() {
    let texts = |target: &str| -> Vec<String> {
        seeds::seeds(target).iter().map(|seed| String::from_utf8_lossy(seed).into_owned()).collect()
    };
    for text in texts("documents").into_iter().filter(|text| text.contains("kind:")) {
        let documents = parse_documents("seed", &text).map_err(|mistakes| mistakes.to_string());
        assert!(
            documents.is_ok_and(|documents| documents.len() >= 2 || text.contains("NetworkPolicy")),
            "{text}"
        );
    }
    for text in texts("node_config") {
        assert_eq!(parse_config("seed", &text).map(|_| ()).map_err(|mistakes| mistakes.to_string()), Ok(()));
    }
    texts("store_keys").iter().for_each(|text| assert!(text.parse::<Key>().is_ok(), "{text}"));
    for text in texts("store_values") {
        let value = text.split_once('\n').expect("a key and a value").1.as_bytes();
        let read = cluster::decode::<cluster::ClusterConfig>(value).is_ok() || !text.contains("schema");
        assert!(read, "{text}");
    }
    let values = texts("store_values").join("\n");
    let has = |read: fn(&[u8]) -> bool| values.lines().any(|line| read(line.as_bytes()));
    assert!(has(|v| cluster::decode::<cluster::NodeRecord>(v).is_ok()));
    assert!(has(|v| cluster::decode::<cluster::Liveness>(v).is_ok()));
    assert!(has(|v| cluster::decode::<cluster::Claim>(v).is_ok()));
    assert!(has(|v| cluster::decode::<cluster::Released>(v).is_ok()));
    assert!(has(|v| cluster::decode::<cluster::BgpPeer>(v).is_ok()));
    texts("node_file")
        .iter()
        .for_each(|text| assert!(serde_json::from_str::<NodeFile>(text).is_ok(), "{text}"));
    for text in texts("endpoint_record") {
        assert!(serde_json::from_str::<EndpointRecord>(&text).is_ok(), "{text}");
    }
    for text in texts("selectors") {
        let line = text.lines().next().unwrap_or_default();
        assert!(serde_json::from_str::<LabelSelector>(line).is_ok(), "{text}");
    }
    for text in texts("cni_config") {
        let network = cni_plugin::conf::Network::parse(text.as_bytes()).expect("a configuration");
        assert!(network.for_add().is_ok(), "{text}");
    }
    let journals = seeds::seeds("lease_journal");
    let entries =
        journals.last().map(|bytes| podway_ipam::journal::parse(bytes).map(|read| read.entries.len()));
    assert_eq!(entries, Some(Ok(6)));
    let notices = seeds::seeds("kern_rtnetlink")
        .last()
        .map(|bytes| podway_kern::monitor::notices(bytes).map(|n| n.len()));
    assert!(matches!(notices, Some(Ok(5))), "{notices:?}");
    assert!(
        seeds::seeds("kern_conntrack")
            .iter()
            .all(|bytes| podway_kern::conntrack::parse_entry(bytes).is_some())
    );
    let refused = seeds::seeds("kern_refusals")
        .iter()
        .filter(|b| podway_kern::refusals(b).is_ok_and(|r| r.len() == 1))
        .count();
    assert_eq!(refused, 2);
    let context = DecodeContext::INTERNAL;
    let update = |seed: &Vec<u8>| Update::decode(bytes::Bytes::copy_from_slice(&seed[1..]), &context);
    let good = |seed: &&Vec<u8>| update(seed).is_ok_and(|update| update.faults.is_empty());
    assert_eq!(
        seeds::seeds("bgp_update").iter().filter(good).count(),
        8,
        "those of sessions with four-octet numbers"
    );
}
