//! `deploy/etcd/roles.sh`, run as an operator runs it, against a real etcd: what each of its users can do, and what a
//! stolen node credential cannot.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use etcd_client::{
    Certificate, Client, Compare, CompareOp, ConnectOptions, DeleteOptions, Error, Identity, PutOptions,
    TlsOptions, Txn, TxnOp,
};
use podway_model::cluster::{Claim, Liveness, encode};
use podway_model::config::{EtcdConfig, StoreConfig};

use super::testing::{Etcd, eventually, make_certificates, program, tls_arguments, tls_config, with_etcd};
use crate::conformance::Consumer;
use crate::{Expect, Guard, Hold, Store, StoreError, Written, open, release_node};

/// A node whose name begins another one's: a prefix that is granted must end where the name does.
const THIEF: &str = "n1";
const VICTIM: &str = "n11";
const INSTANCE: &str = "00000000-0000-4000-8000-000000000001";

fn claim() -> Vec<u8> {
    encode(&Claim {
        instance_id: INSTANCE.parse().unwrap(),
        pool: "default".parse().unwrap(),
        confirmed: true,
    })
}

fn script() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/etcd/roles.sh")
}

/// How one etcd is talked to.
struct Rig {
    folder: PathBuf,
    is_tls: bool,
}

impl Rig {
    /// `etcdctl`, or the script that calls it, as a user; none: checks are off yet.
    fn run(&self, what: &Path, arguments: &[&str], user: Option<&str>) {
        let mut command = Command::new(what);
        let folder = program("etcdctl").and_then(|path| path.parent().map(Path::to_owned)).unwrap();
        let path = std::env::var_os("PATH").unwrap_or_default();
        let path = std::env::join_paths([folder].into_iter().chain(std::env::split_paths(&path))).unwrap();
        command.env("PODWAY_FLANNEL_PREFIX", "/coreos.com/network");
        command.args(arguments).env("PATH", path).env("PODWAY_PASSWORDS", self.folder.join("passwords"));
        if self.is_tls {
            let file = |name: String| self.folder.join(name);
            command
                .env("ETCDCTL_ENDPOINTS", "https://127.0.0.1:2379")
                .env("ETCDCTL_CACERT", file("ca.pem".into()));
            command.env("ETCDCTL_CERT", file("root.pem".into())).env("ETCDCTL_KEY", file("root.key".into()));
        } else {
            command.env("ETCDCTL_ENDPOINTS", "http://127.0.0.1:2379");
            if let Some(user) = user {
                command.env("ETCDCTL_USER", format!("{user}:{user}"));
            }
        }
        let output = command.output().unwrap();
        assert!(
            output.status.success(),
            "{what:?} {arguments:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }

    /// As an operator does it: roles, root, checks on; one more node afterwards.
    async fn make_roles(&self) {
        if !self.is_tls {
            let passwords = self.folder.join("passwords");
            std::fs::create_dir(&passwords).unwrap();
            for user in ["podway-operator", "podway-controller", THIEF, VICTIM] {
                std::fs::write(passwords.join(user), format!("{user}\n")).unwrap();
            }
        }
        let etcdctl = program("etcdctl").unwrap();
        self.run(&script(), &["operator", "controller", THIEF], None);
        let root = if self.is_tls {
            vec!["user", "add", "--no-password", "root"]
        } else {
            vec!["user", "add", "root:root"]
        };
        self.run(&etcdctl, &root, None);
        self.run(&etcdctl, &["user", "grant-role", "root", "root"], None);
        self.run(&etcdctl, &["auth", "enable"], None);
        // A second time, with one that is known already: nothing breaks.
        self.run(&script(), &[THIEF, VICTIM], Some("root"));
    }

    fn config(&self, user: &str) -> EtcdConfig {
        if self.is_tls {
            return tls_config(&self.folder, user);
        }
        let file = self.folder.join("passwords").join(user);
        EtcdConfig {
            username: Some(user.into()),
            password_file: Some(file),
            lease_seconds: 2,
            ..EtcdConfig::default()
        }
    }

    fn store(&self, user: &str) -> Arc<dyn Store> {
        open(&StoreConfig::Etcd(self.config(user))).unwrap()
    }

    /// The library's own client: a thief does not use ours.
    async fn client(&self, user: &str) -> Client {
        let config = self.config(user);
        let read = |file: &Option<PathBuf>| std::fs::read(file.as_ref().unwrap()).unwrap();
        let options = if self.is_tls {
            let identity = Identity::from_pem(read(&config.cert_file), read(&config.key_file));
            let ca = Certificate::from_pem(read(&config.ca_file));
            ConnectOptions::new().with_tls(TlsOptions::new().ca_certificate(ca).identity(identity))
        } else {
            ConnectOptions::new().with_user(user, user)
        };
        Client::connect(&config.endpoints, Some(options)).await.unwrap()
    }
}

fn is_denied<T: std::fmt::Debug>(what: &str, result: Result<T, Error>) {
    match result {
        Err(Error::GRpcStatus(status)) if status.message().contains("permission denied") => {}
        other => panic!("{what}: {other:?}"),
    }
}

/// What every node does in its life.
async fn a_node_lives(store: &Arc<dyn Store>, node: &str, block: &str) {
    let life = encode(&Liveness { instance_id: INSTANCE.parse().unwrap(), addresses: vec![] });
    let done = |written| matches!(written, Written::Done { .. });
    let live = eventually("the node lives", || async {
        store.put_leased(&format!("live/{node}"), &life, Expect::Absent).await.ok()
    });
    assert!(done(live.await));
    store.put(&format!("nodes/{node}"), b"{}").await.unwrap();
    store.put(&format!("usage/{node}"), b"{}").await.unwrap();
    let guard = Guard { key: format!("released/{block}"), expect: Expect::Absent };
    let key = format!("claims/{node}/{block}");
    assert!(done(store.put_guarded(&key, &claim(), Expect::Absent, &[guard]).await.unwrap()));
    let prefixes = [
        "config",
        "pools/",
        "nodes/",
        "live/",
        "claims/",
        "released/",
        "filters/",
        "peers/",
        "reflectors/",
        "drained/",
    ];
    let mut seen = Consumer::default();
    seen.until(&mut store.watch(&prefixes), "the snapshot", |c| c.entries.contains_key(&key)).await;
}

async fn a_thief_gets_nothing(rig: &Rig) {
    let mut thief = rig.client(THIEF).await;
    let full = |key: &str| format!("/podway/v1/{key}");
    let theirs = [
        "nodes/n11",
        "live/n11",
        "usage/n11",
        "claims/n11/10.0.0.0-26",
        "claims/n11/10.0.9.0-26",
        "claims/n1",
        "claims/n1-x/10.0.9.0-26",
        "config",
        "pools/default",
        "released/10.0.0.0-26",
        "controller",
        "peers/p",
        "filters/f",
        "reflectors/n1",
        "drained/n1",
        "drained/n11",
        "objects/namespaces/x",
        "objects/networkpolicies/x/y",
        "nodes/",
        "nodes/n1/x",
    ];
    for key in theirs {
        is_denied(key, thief.put(full(key), "stolen", None).await);
        is_denied(key, thief.delete(full(key), None).await);
        let put = Txn::new()
            .when([Compare::version(full("nodes/n1"), CompareOp::Greater, -1)])
            .and_then([TxnOp::put(full(key), "stolen", None)]);
        is_denied(key, thief.txn(put).await);
    }
    for prefix in ["", "claims/", "nodes/", "live/", "claims/n1"] {
        let all = DeleteOptions::new().with_prefix();
        is_denied(prefix, thief.delete(full(prefix), Some(all)).await);
    }
    // Not by the back door of the other's lease either: its end takes its keys along, and a key that is written
    // with it ends with it.
    let lease = thief.get(full("live/n11"), None).await.unwrap().kvs()[0].lease();
    assert_ne!(lease, 0);
    is_denied("revoke", thief.lease_revoke(lease).await);
    is_denied("put", thief.put(full("live/n11"), "x", Some(PutOptions::new().with_lease(lease))).await);
    // No rights that it could give itself.
    is_denied("grant", thief.user_grant_role(THIEF, "root").await);
    is_denied("grant", thief.user_grant_role(THIEF, "podway-operator").await);
    is_denied("passwd", thief.user_change_password(VICTIM, "mine").await);
    is_denied("disable", thief.auth_disable().await);

    // A claim on the other's block under its own name is its to write, and comes second for every reader.
    let store = rig.store(THIEF);
    store.put("claims/n1/10.0.0.0-26", &claim()).await.unwrap();
    let (mine, theirs) = (store.get("claims/n1/10.0.0.0-26"), store.get("claims/n11/10.0.0.0-26"));
    let (mine, theirs) = (mine.await.unwrap().unwrap(), theirs.await.unwrap().unwrap());
    assert!(theirs.create_revision < mine.create_revision);
    assert_eq!(theirs.value, claim());
    // During a migration a node takes subnets on flannel's keys, and cannot change flannel's configuration.
    let subnet = "/coreos.com/network/subnets/10.5.3.0-24";
    let taken = store.put_for(subnet, b"{}", Expect::Absent, 3600).await.unwrap();
    assert!(matches!(taken, Written::Done { .. }));
    assert_eq!(store.list("/coreos.com/network/subnets/").await.unwrap().entries.len(), 1);
    assert_eq!(store.get("/coreos.com/network/config").await.unwrap(), None);
    is_denied("config", thief.put("/coreos.com/network/config", "stolen", None).await);
    is_denied("outside", thief.put("/coreos.com/other", "stolen", None).await);
    // Our own client names what was refused.
    let denied = store.put("claims/n11/10.0.0.0-26", b"x").await.unwrap_err();
    assert!(matches!(&denied, StoreError::Denied { what, .. } if what.contains("claims/n11")), "{denied}");
}

async fn the_others_do_their_work(rig: &Rig) {
    let operator = rig.store("podway-operator");
    for key in ["config", "pools/default", "peers/p", "reflectors/n1", "drained/n1", "objects/namespaces/x"] {
        operator.put(key, b"{}").await.unwrap();
    }
    let controller = rig.store("podway-controller");
    let lock = controller.put_leased("controller", b"{}", Expect::Absent).await.unwrap();
    assert!(matches!(lock, Written::Done { .. }));
    let report = release_node(controller.as_ref(), &VICTIM.parse().unwrap(), Hold::Since(1)).await.unwrap();
    assert_eq!((report.blocks.len(), report.had_record), (1, true));
    assert!(controller.get("released/10.0.0.0-26").await.unwrap().is_some());
    assert!(controller.delete("released/10.0.0.0-26").await.unwrap());
    for key in ["config", "pools/default", "peers/p", "objects/namespaces/x"] {
        let denied = controller.put(key, b"x").await.unwrap_err();
        assert!(matches!(denied, StoreError::Denied { .. }), "{key}: {denied}");
    }
}

async fn roles_hold(rig: Rig) {
    rig.make_roles().await;
    // Held: its sign of life ends with it.
    let victim = rig.store(VICTIM);
    a_node_lives(&victim, VICTIM, "10.0.0.0-26").await;
    a_node_lives(&rig.store(THIEF), THIEF, "10.0.1.0-26").await;
    a_thief_gets_nothing(&rig).await;
    the_others_do_their_work(&rig).await;
}

fn has_etcdctl(name: &str) -> bool {
    let is_there = program("etcdctl").is_some();
    if !is_there {
        println!("SKIP {name}: needs etcdctl on PATH");
    }
    is_there
}

#[test]
fn a_stolen_password_of_a_node_takes_no_other_nodes_block_and_writes_no_other_key() {
    const NAME: &str = "a_stolen_password_of_a_node_takes_no_other_nodes_block_and_writes_no_other_key";
    with_etcd(NAME, |folder| async move {
        if !has_etcdctl(NAME) {
            return;
        }
        let _etcd = Etcd::start(&folder.join("data"), 2379, &[]);
        let plain = EtcdConfig { lease_seconds: 2, ..EtcdConfig::default() };
        let store = open(&StoreConfig::Etcd(plain)).unwrap();
        eventually("etcd answers", || async { store.get("config").await.ok() }).await;
        roles_hold(Rig { folder, is_tls: false }).await;
    });
}

#[test]
fn a_stolen_certificate_of_a_node_takes_no_other_nodes_block_and_writes_no_other_key() {
    const NAME: &str = "a_stolen_certificate_of_a_node_takes_no_other_nodes_block_and_writes_no_other_key";
    with_etcd(NAME, |folder| async move {
        let names = ["root", "podway-operator", "podway-controller", THIEF, VICTIM, "stranger"];
        if !has_etcdctl(NAME) {
            return;
        }
        if !make_certificates(&folder, &names) {
            println!("SKIP {NAME}: needs openssl on PATH");
            return;
        }
        let _etcd = Etcd::start(&folder.join("data"), 2379, &tls_arguments(&folder));
        let rig = Rig { folder, is_tls: true };
        let root = rig.store("root");
        eventually("etcd answers", || async { root.get("config").await.ok() }).await;
        let stranger = rig.store("stranger");
        roles_hold(rig).await;
        // Signed by the same authority, but nobody's name.
        let denied = stranger.get("config").await.unwrap_err();
        assert!(matches!(denied, StoreError::Denied { .. }), "{denied}");
    });
}
