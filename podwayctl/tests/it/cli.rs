//! The real binary against a file store in a folder of its own: what it prints, what it stores, how it exits.

use std::fs;
use std::path::Path;

use crate::place::Place;

fn every_kind() -> String {
    format!("{}/tests/data/every-kind.yaml", env!("CARGO_MANIFEST_DIR"))
}

const NAMESPACE: &str = "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop}\n";

fn pool(name: &str, spec: &str) -> String {
    format!("apiVersion: podway.io/v1\nkind: Pool\nmetadata: {{name: {name}}}\nspec: {spec}\n")
}

#[test]
fn flannels_nodes_are_not_talked_with_by_files() {
    let place = Place::new();
    let text =
        "apiVersion: podway.io/v1\nkind: ClusterConfig\nmetadata: {name: default}\nspec: {compat: flannel}\n";
    let refused = place.run_with("apply -f -", text);
    refused.expect_code(64, "spec.compat.flannel.prefix: /coreos.com/network found");
}

#[test]
fn apply_says_what_it_did_and_get_gives_it_back() {
    let place = Place::new();
    let apply = format!("apply -f {}", every_kind());
    let all = "clusterconfig/default\npool/default-v4\npool/fixed-v6\nreflector/n1\nbgpfilter/no-default\nbgppeer/tor-a\n\
               namespace/shop\nnetworkpolicy/shop/allow-web\npod/shop/web-0\n";
    place.run(&apply).expect(0, &all.replace('\n', " created\n"), "");
    place.run(&apply).expect(0, &all.replace('\n', " unchanged\n"), "");
    let changed = place.write("change.yaml", &pool("fixed-v6", "{cidr: 'fd00:10:244::/64'}"));
    place.run(&format!("apply -f {changed}")).expect(0, "pool/fixed-v6 configured\n", "");

    // What `get -o yaml` and `-o json` print is what `apply` reads.
    for form in ["yaml", "json"] {
        for kind in ["config", "pools", "bgppeers", "bgpfilters", "reflectors", "ns", "pods", "netpol"] {
            let got = place.run(&format!("get {kind} -o {form}"));
            assert_eq!(got.code(), 0, "{}", got.err());
            let again = place.run_with("apply -f -", &got.out());
            let same = again.out().lines().all(|line| line.ends_with(" unchanged"));
            assert!(again.code() == 0 && same && !again.out().is_empty(), "{}{}", again.out(), again.err());
        }
    }
    let one = place.run("get netpol allow-web -n shop -o json");
    let policy: serde_json::Value = serde_json::from_str(&one.out()).unwrap();
    assert_eq!(policy["spec"]["ingress"][0]["ports"][0]["port"], 80);
    place.run("get pools").expect(
        0,
        "NAME        CIDR              BLOCKS  ASSIGNMENT  NAT  NODES  STATE\n\
             default-v4  10.244.0.0/16     /26     automatic   yes  all    active\n\
             fixed-v6    fd00:10:244::/64  /122    automatic   yes  all    active\n",
        "",
    );
    place.run("get pods -n other").expect(0, "", "no Pod found");
}

#[test]
fn nothing_is_written_when_anything_is_wrong() {
    let place = Place::new();
    let good = place.write("a.yaml", NAMESPACE);
    let bad = place.write("b.yaml", &pool("a", "{cidr: 10.0.0.1/8, blokSize: 26}"));
    let ran = place.run(&format!("apply -f {good} -f {bad}"));
    assert_eq!(ran.code(), 64, "{}", ran.err());
    assert_eq!(
        ran.err(),
        format!(
            "{bad}:4: spec.cidr: \"10.0.0.1/8\" found, a prefix whose host bits are zero (10.0.0.0/8) expected\n\
             {bad}:4: spec.blokSize: unknown key found, \"blockSize\" (did you mean this?) expected\n"
        )
    );
    place.run("get ns shop").expect(3, "", "Namespace \"shop\" not found");
}

#[test]
fn files_are_checked_against_each_other_and_the_store() {
    let place = Place::new();
    let a = place.write("a.yaml", &pool("a", "{cidr: 10.0.0.0/16}"));
    let b = place.write("b.yaml", &pool("b", "{cidr: 10.0.0.0/20}"));
    place.run(&format!("apply -f {a} -f {b}")).expect(64, "", "a prefix outside 10.0.0.0/16 of pool a");
    place.run(&format!("apply -f {a}")).expect(0, "pool/a created\n", "");
    place.run(&format!("apply -f {b}")).expect(64, "", "a prefix outside 10.0.0.0/16 of pool a in the store");
    let copy = place.write("copy.yaml", &pool("a", "{cidr: 10.0.0.0/16}"));
    place.run(&format!("apply -f {a} -f {copy}")).expect(64, "", "pool/a again found");
    // A folder is its files.
    fs::create_dir(place.path("folder")).unwrap();
    place.write("folder/ns.yaml", NAMESPACE);
    place.write("folder/README.md", "no document");
    let folder = place.path("folder");
    place.run(&format!("apply -f {}", folder.display())).expect(0, "namespace/shop created\n", "");
}

#[test]
fn input_that_cannot_be_used_exits_with_64() {
    let place = Place::new();
    let empty = place.write("empty.yaml", "# nothing\n");
    for (line, input, says) in [
        ("apply -f -".to_owned(), "", "--filename: no object found, at least one expected"),
        (format!("apply -f {empty}"), "", "no object found"),
        ("apply -f /nowhere/x.yaml".to_owned(), "", "/nowhere/x.yaml: No such file"),
        ("apply -f -".to_owned(), "a: [", "standard input"),
        ("apply -f -".to_owned(), "kind: Pool", "standard input:1: apiVersion: nothing found"),
        ("get secrets".to_owned(), "", "expected clusterconfig, pools"),
        ("get pools a/b".to_owned(), "", "NAME: \"a/b\" found"),
        ("frobnicate".to_owned(), "", "frobnicate"),
        ("get pools --etcd ftp://x".to_owned(), "", "store.etcd.endpoints[0]: \"ftp://x\" found, a URL"),
        ("node release N_1".to_owned(), "", "NODE: \"N_1\" found, a node name"),
    ] {
        let ran = place.run_with(&line, input);
        assert_eq!(ran.code(), 64, "{line}: {}{}", ran.out(), ran.err());
        assert!(ran.err().contains(says), "{line}: {}", ran.err());
    }
    place.write("podway.yaml", "stoer: {}\nlog: {format: xml}\n");
    let ran = place.run("get pools");
    assert_eq!((ran.code(), ran.err().lines().count()), (64, 2), "{}", ran.err());
}

#[test]
fn delete_by_name_and_by_file() {
    let place = Place::new();
    place.run(&format!("apply -f {}", every_kind()));
    place.run("delete netpol allow-web -n shop").expect(0, "networkpolicy/shop/allow-web deleted\n", "");
    place.run("delete netpol allow-web -n shop").expect(3, "", "not found in namespace \"shop\"");
    place.run("delete netpol allow-web -n shop --ignore-not-found").expect(0, "", "");
    let ran = place.run(&format!("delete -f {} --ignore-not-found", every_kind()));
    ran.expect(
        0,
        "pod/shop/web-0 deleted\nnamespace/shop deleted\nbgppeer/tor-a deleted\nbgpfilter/no-default deleted\n\
         reflector/n1 deleted\npool/default-v4 deleted\npool/fixed-v6 deleted\nclusterconfig/default deleted\n",
        "",
    );
    place.run("get pods").expect(0, "", "no Pod found");
}

#[test]
fn nodes_and_status_of_an_empty_cluster() {
    let place = Place::new();
    place.run("node list").expect(0, "no node has joined yet\n", "");
    place.run("node release n9").expect(3, "", "node n9 not found");
    let nowhere = place.path("none.sock");
    let sockets = format!("--routed-socket {0} --policy-socket {0}", nowhere.display());
    let status = place.run(&format!("status {sockets}"));
    assert_eq!(status.code(), 0, "{}", status.err());
    assert!(status.out().contains("Cluster: 0 nodes (0 live), 0 blocks"), "{}", status.out());
    assert!(status.out().contains("no pool: pods get no address"), "{}", status.out());
    place.run(&format!("status --node {sockets}")).expect(4, "", "neither routed nor policy-agent runs");
    place.run(&format!("bgp peers --routed-socket {}", nowhere.display())).expect(1, "", "nobody answers");
}

#[test]
fn install_copies_the_plugin_and_then_the_configuration() {
    let place = Place::new();
    let plugin = place.write("podway", "a binary");
    let (bin, conf) = (place.path("opt/cni/bin"), place.path("etc/cni/net.d"));
    let line =
        format!("node install --plugin {plugin} --bin-dir {} --conf-dir {}", bin.display(), conf.display());
    let file = |path: &Path, what: &str| format!("{} {what}\n", path.display());
    let all = |what| {
        let names = ["podway"].into_iter().chain(podway_model::names::OTHER_PLUGINS).chain(["podway-ipam"]);
        let bin: String = names.map(|name| file(&bin.join(name), what)).collect();
        bin + &file(&conf.join("10-podway.conflist"), what)
    };
    place.run(&line).expect(0, &all("written"), "");
    fs::write(conf.join("05-other.conf"), "").unwrap();
    place.run(&line).expect(0, &all("unchanged"), "05-other.conf sorts before");
    // What somebody put under one of these names is theirs.
    fs::remove_file(bin.join("loopback")).unwrap();
    fs::write(bin.join("loopback"), "another's").unwrap();
    place.run(&line).expect(
        0,
        &all("unchanged").replace(&file(&bin.join("loopback"), "unchanged"), ""),
        "05-",
    );
    assert_eq!(fs::read(bin.join("loopback")).unwrap(), b"another's");
    let missing = line.replace(&plugin, "/nowhere/podway");
    place.run(&missing).expect(1, "", "/nowhere/podway: No such file");
}

#[test]
fn version_in_every_form() {
    let place = Place::new();
    let version = env!("CARGO_PKG_VERSION");
    place.run("version").expect(0, &format!("podwayctl {version}\n"), "");
    place.run("version -o json").expect(0, &format!("{{\n  \"podwayctl\": \"{version}\"\n}}\n"), "");
    place.run("--version").expect(0, &format!("podwayctl {version}\n"), "");
}
