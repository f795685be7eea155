//! What we ship in `deploy/` is read with the code that reads it on a node, and names what the binaries use.

use std::collections::BTreeSet;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use podway_model::config::{NodeConfig, StoreConfig};
use podway_model::document::{Document, Kind, parse_config, parse_documents};
use podway_model::names::{CONFIG_FILE, RUN_DIR, STATE_DIR};
use serde_json::Value;

fn deploy() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy")
}

fn read(path: &str) -> String {
    fs::read_to_string(deploy().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn yaml(path: &str) -> Value {
    serde_saphyr::from_str(&read(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn config(path: &str) -> NodeConfig {
    parse_config(path, &read(path)).unwrap_or_else(|mistakes| panic!("{mistakes}"))
}

fn documents(path: &str) -> Vec<Document> {
    parse_documents(path, &read(path)).unwrap_or_else(|mistakes| panic!("{mistakes}"))
}

#[test]
fn every_example_is_accepted() {
    let mut seen = BTreeSet::new();
    for entry in fs::read_dir(deploy().join("examples")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        if name == "policies.yaml" {
            let policies = documents("examples/policies.yaml");
            assert!(policies.iter().any(|document| document.kind() == Kind::NetworkPolicy));
            continue;
        }
        let kinds: BTreeSet<&str> =
            documents(&format!("examples/{name}/cluster.yaml")).iter().map(|d| d.kind().name()).collect();
        assert!(kinds.contains("ClusterConfig") && kinds.contains("Pool"), "{name}: {kinds:?}");
        let store = config(&format!("examples/{name}/podway.yaml")).store;
        assert_eq!(matches!(store, StoreConfig::File(_)), name == "single-node", "{name}");
        seen.insert(name);
    }
    let expected = ["bgp", "bgp-reflector", "host-gw", "ipip", "single-node", "vxlan", "wireguard"];
    assert_eq!(seen.iter().map(String::as_str).collect::<Vec<_>>(), expected);
}

#[test]
fn the_daemonset_mounts_what_the_daemons_use() {
    let daemonset = yaml("kubernetes/daemonset.yaml");
    let pod = &daemonset["spec"]["template"]["spec"];
    assert_eq!(pod["hostNetwork"], true);
    let binaries = ["routed", "policy-agent", "podwayctl"];
    let image = read("image/Dockerfile");
    for list in ["initContainers", "containers"] {
        for container in pod[list].as_array().unwrap() {
            let command = container["command"][0].as_str().unwrap();
            let binary = command.strip_prefix("/bin/").unwrap();
            assert!(binaries.contains(&binary) && image.contains(&format!("{binary} ")), "{command}");
        }
    }
    let config_dir = Path::new(CONFIG_FILE).parent().unwrap().to_str().unwrap();
    for container in pod["containers"].as_array().unwrap() {
        let mounts: Vec<&str> = container["volumeMounts"]
            .as_array()
            .unwrap()
            .iter()
            .map(|mount| mount["mountPath"].as_str().unwrap())
            .collect();
        for needed in [config_dir, RUN_DIR, STATE_DIR] {
            assert!(mounts.contains(&needed), "{}: {mounts:?}", container["name"]);
        }
    }
    // The same path inside and outside, so that the CNI plugin on the host finds the sockets and files.
    for path in [RUN_DIR, STATE_DIR] {
        let volumes = pod["volumes"].as_array().unwrap();
        assert!(volumes.iter().any(|volume| volume["hostPath"]["path"] == path), "{path}");
    }
}

#[test]
fn the_probes_ask_where_the_daemons_answer() {
    let config = config("kubernetes/podway.yaml");
    let daemonset = yaml("kubernetes/daemonset.yaml");
    let listens =
        [("routed", config.routed.health_listen), ("policy-agent", config.policy_agent.health_listen)];
    for (name, listen) in listens {
        let containers = daemonset["spec"]["template"]["spec"]["containers"].as_array().unwrap();
        let container = containers.iter().find(|container| container["name"] == name).unwrap();
        for (probe, path) in [("readinessProbe", "/readyz"), ("livenessProbe", "/healthz")] {
            let get = &container[probe]["httpGet"];
            let asked = format!("{}:{}", get["host"].as_str().unwrap(), get["port"]);
            assert_eq!(Some(asked.parse::<SocketAddr>().unwrap()), listen, "{name} {probe}");
            assert_eq!(get["path"], path);
        }
    }
}

#[test]
fn the_install_container_is_a_command_line_that_works() {
    let daemonset = yaml("kubernetes/daemonset.yaml");
    let install = &daemonset["spec"]["template"]["spec"]["initContainers"][0];
    let dir = tempfile::tempdir().unwrap();
    let host = dir.path().display().to_string();
    fs::write(dir.path().join("podway"), "a binary").unwrap();
    let args = install["command"].as_array().unwrap()[1..]
        .iter()
        .map(|arg| arg.as_str().unwrap().replace("/host/", &format!("{host}/")));
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_podwayctl"))
        .args(args)
        .arg("--plugin")
        .arg(dir.path().join("podway"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(dir.path().join("opt/cni/bin/podway").exists());
    assert!(dir.path().join("etc/cni/net.d/10-podway.conflist").exists());
    for mount in install["volumeMounts"].as_array().unwrap() {
        let path = mount["mountPath"].as_str().unwrap().replace("/host/", &format!("{host}/"));
        assert!(Path::new(&path).is_dir(), "{path}");
    }
}

#[test]
fn kustomize_finds_its_files() {
    let kustomization = yaml("kubernetes/kustomization.yaml");
    let resources = kustomization["resources"].as_array().unwrap().iter();
    let files = kustomization["configMapGenerator"][0]["files"].as_array().unwrap();
    for file in resources.chain(files) {
        let path = format!("kubernetes/{}", file.as_str().unwrap());
        assert!(yaml(&path).is_object(), "{path}");
    }
    assert!(!documents("kubernetes/cluster.yaml").is_empty());
    let volumes = &yaml("kubernetes/daemonset.yaml")["spec"]["template"]["spec"]["volumes"];
    assert_eq!(volumes[0]["configMap"]["name"], kustomization["configMapGenerator"][0]["name"]);
}

#[test]
fn services_start_the_daemons_and_stop_at_bad_input() {
    for daemon in ["routed", "policy-agent"] {
        let unit = read(&format!("systemd/podway-{daemon}.service"));
        assert!(unit.contains(&format!("ExecStart=/usr/local/bin/{daemon}\n")), "{unit}");
        let codes = format!(
            "RestartPreventExitStatus={} {}\n",
            podway_model::mistakes::EXIT_BAD_INPUT,
            podway_daemon::EXIT_ALREADY_RUNNING
        );
        assert!(unit.contains(&codes), "{unit}");
    }
    let unit = read("systemd/podway-controller.service");
    assert!(unit.contains("ExecStart=/usr/local/bin/routed controller\n"), "{unit}");
}

#[test]
fn the_controller_finds_its_files_and_is_asked_where_it_answers() {
    let pod = yaml("kubernetes/controller.yaml")["spec"]["template"]["spec"].take();
    let container = &pod["containers"][0];
    assert_eq!(container["command"], serde_json::json!(["/bin/routed", "controller"]));
    let path = container["args"][1].as_str().unwrap();
    let (folder, file) = path.rsplit_once('/').unwrap();
    let mounts: Vec<&str> = container["volumeMounts"]
        .as_array()
        .unwrap()
        .iter()
        .map(|mount| mount["mountPath"].as_str().unwrap())
        .collect();
    assert!(mounts.contains(&folder) && mounts.contains(&RUN_DIR), "{mounts:?}");
    let files = &yaml("kubernetes/kustomization.yaml")["configMapGenerator"][0]["files"];
    assert!(files.as_array().unwrap().iter().any(|listed| listed == file), "{files}");
    let config = config(&format!("kubernetes/{file}"));
    let nodes = crate::deploy::config("kubernetes/podway.yaml");
    assert_eq!(format!("{:?}", config.store), format!("{:?}", nodes.store), "one etcd for all");
    // In the pod network, so not on loopback.
    let listen = config.routed.health_listen.unwrap();
    assert!(listen.ip().is_unspecified());
    for (probe, path) in [("readinessProbe", "/readyz"), ("livenessProbe", "/healthz")] {
        assert_eq!(container[probe]["httpGet"]["port"], listen.port());
        assert_eq!(container[probe]["httpGet"]["path"], path);
    }
}
