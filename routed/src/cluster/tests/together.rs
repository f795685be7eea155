//! Many nodes start at once on an empty store: the whole of [`run`](crate::cluster::run), each with a client and files
//! of its own, at one real etcd.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use podway_kern::ns;
use podway_kern::rtnl::{LinkChange, Request, Rtnl};
use podway_model::cidr::overlap;
use podway_model::cluster::{Claim, decode, encode};
use podway_model::config::{EtcdConfig, StoreConfig};
use podway_model::keys::Key;
use podway_model::node_file::NodeFile;
use podway_store::Store;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::rig::{facts, identity, pool};
use crate::cluster::{Identity, run};
use crate::view::{ClusterView, OwnBlockState};

const NODES: usize = 50;
/// Far more than it takes.
const PATIENCE: Duration = Duration::from_secs(60);

/// Killed when dropped.
struct Etcd(Child);

impl Drop for Etcd {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn etcd() -> Option<PathBuf> {
    let folders = [std::env::var_os("PODWAY_BIN_PATH"), std::env::var_os("PATH")];
    let folders: Vec<PathBuf> = folders.iter().flatten().flat_map(std::env::split_paths).collect();
    folders.into_iter().map(|folder| folder.join("etcd")).find(|path| path.is_file())
}

fn start_etcd(binary: &Path, folder: &Path) -> Etcd {
    let mut command = Command::new(binary);
    command.arg("--data-dir").arg(folder.join("etcd")).args(["--log-level", "error"]);
    Etcd(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap())
}

fn node(i: usize, folder: &Path) -> Identity {
    let folder = folder.join(format!("n{i}"));
    Identity { node_file: folder.join("node.json"), ipam_dir: folder.join("ipam"), ..identity(i) }
}

async fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(seen) = look() {
            return seen;
        }
        assert!(start.elapsed() < PATIENCE, "{what}: not within {PATIENCE:?}");
        sleep(Duration::from_millis(20)).await;
    }
}

/// The one block of a view that is ours, if everything is settled.
fn block(view: &ClusterView) -> Option<IpNet> {
    match view.own_blocks.as_slice() {
        [own] if own.state == OwnBlockState::Active => Some(own.cidr),
        _ => None,
    }
}

async fn all_start(binary: &Path, folder: &Path) {
    let _etcd = start_etcd(binary, folder);
    let config = StoreConfig::Etcd(EtcdConfig::default());
    let operator = podway_store::open(&config).unwrap();
    let start = Instant::now();
    while operator.get("config").await.is_err() {
        assert!(start.elapsed() < PATIENCE, "etcd does not answer");
        sleep(Duration::from_millis(20)).await;
    }
    // The nodes are there first; the pool has little more blocks than they need, so that claims collide.
    let mut tasks = JoinSet::new();
    let mut views = vec![];
    for i in 0..NODES {
        let (view_out, view) = watch::channel(Arc::new(ClusterView::default()));
        let (facts_out, facts_in) = watch::channel(Some(facts(i)));
        views.push(view);
        let store: Arc<dyn Store> = podway_store::open(&config).unwrap();
        let me = node(i, folder);
        tasks.spawn(async move {
            let _open = facts_out;
            run(me, store, facts_in, watch::channel(None).1, view_out).await
        });
    }
    until("everybody is in sync", || views.iter().all(|view| view.borrow().synced).then_some(())).await;
    let begin = Instant::now();
    operator.put(&Key::Pool("p4".parse().unwrap()).to_string(), &encode(&pool("10.0.0.0/20"))).await.unwrap();
    let blocks: Vec<IpNet> = until("everybody has a block", || {
        assert!(tasks.try_join_next().is_none(), "no task may end");
        views.iter().map(|view| block(&view.borrow())).collect()
    })
    .await;
    println!("{NODES} nodes have a block each after {:?}", begin.elapsed());

    for (i, a) in blocks.iter().enumerate() {
        assert!(!blocks[i + 1..].iter().any(|b| overlap(*a, *b)), "{a} twice: {blocks:?}");
    }
    let claims = operator.list("claims/").await.unwrap().entries;
    let claims: BTreeMap<String, Claim> =
        claims.into_iter().map(|entry| (entry.key, decode(&entry.value).unwrap())).collect();
    let expected =
        blocks.iter().enumerate().map(|(i, block)| Key::Claim(identity(i).node, *block).to_string());
    assert_eq!(claims.keys().cloned().collect::<Vec<_>>(), {
        let mut expected: Vec<String> = expected.collect();
        expected.sort();
        expected
    });
    assert!(claims.values().all(|claim| claim.confirmed));
    for (i, block) in blocks.iter().enumerate() {
        let file = until("the node file offers the block", || {
            let text = std::fs::read(node(i, folder).node_file).ok()?;
            let file: NodeFile = serde_json::from_slice(&text).ok()?;
            (!file.blocks.is_empty()).then_some(file)
        })
        .await;
        assert!(
            file.confirmed && file.blocks.iter().all(|listed| listed.cidr == *block),
            "{:?}",
            file.blocks
        );
    }
    // And everybody sees everybody.
    until("all views agree", || {
        let first = views[0].borrow().nodes.clone();
        let is_whole = first.len() == NODES && first.values().all(|node| node.live && node.blocks.len() == 1);
        (is_whole && views.iter().all(|view| view.borrow().nodes == first)).then_some(())
    })
    .await;
}

#[test]
fn fifty_nodes_that_start_at_once_on_an_empty_etcd_have_disjoint_blocks() {
    const NAME: &str = "fifty_nodes_that_start_at_once_on_an_empty_etcd_have_disjoint_blocks";
    if !nix::unistd::geteuid().is_root() {
        println!("SKIP {NAME}: needs root");
        return;
    }
    let Some(binary) = etcd() else {
        println!("SKIP {NAME}: needs etcd on PATH or PODWAY_BIN_PATH");
        return;
    };
    ns::in_new_netns(|| {
        let up = LinkChange { up: Some(true), ..LinkChange::default() };
        Rtnl::open().unwrap().run_all(&[Request::SetLink("lo".into(), up)]).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(all_start(&binary, folder.path()));
    })
    .unwrap();
}
