//! The reference library of CNI, version 1.1.0 of the specification, against the shipped conflist: every verb, its cache
//! of results, a chain with plugins of others; and `cnitool`, which is that library with a command line.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};
use podway_testkit::cni::BIN_DIR;
use podway_testkit::lab::Node;
use podway_testkit::pod::Sandbox;
use podway_testkit::probe::{Kind, Outcome, probe};
use podway_testkit::wait::wait_until_ok;
use serde_json::{Value, json};

use crate::machine::{Machine, PATIENCE};
use crate::{foreign, run};

/// A runtime that consists of the library.
struct Libcni {
    program: PathBuf,
    machine: Machine,
}

impl Libcni {
    fn new(test: &str, name: &str) -> Result<Option<Self>> {
        let Some(program) = foreign::built(test, "libcni") else { return Ok(None) };
        Ok(Some(Self { program, machine: Machine::new(name, 1, &[])? }))
    }

    fn node(&self) -> Result<&Node> {
        self.machine.node()
    }

    fn sandbox(&self, name: &str) -> Result<Sandbox> {
        Sandbox::new(&self.node()?.place, "demo", name)
    }

    /// Asks the library; `more` is added to the question.
    fn ask(&self, verb: &str, sandbox: Option<&Sandbox>, more: Value) -> Result<Value> {
        let mut question = json!({"verb": verb, "network": "podway"});
        if let Some(Sandbox { attachment, .. }) = sandbox {
            question["containerID"] = json!(attachment.container_id);
            question["netns"] = json!(attachment.netns);
            question["ifname"] = json!(attachment.ifname);
            question["args"] = json!([
                ["IgnoreUnknown", "1"],
                ["K8S_POD_NAMESPACE", attachment.namespace],
                ["K8S_POD_NAME", attachment.pod]
            ]);
        }
        for (key, value) in more.as_object().into_iter().flatten() {
            question[key] = value.clone();
        }
        let output =
            self.node()?.place.output(Command::new(&self.program), question.to_string().as_bytes())?;
        serde_json::from_slice(&output.stdout)
            .with_context(|| format!("{verb}: {}", String::from_utf8_lossy(&output.stderr)))
    }

    /// Asks, and expects no error.
    fn done(&self, verb: &str, sandbox: Option<&Sandbox>, more: Value) -> Result<Value> {
        let answer = self.ask(verb, sandbox, more)?;
        ensure!(answer.get("message").is_none(), "{verb}: {answer}");
        Ok(answer)
    }

    /// Asks, and expects an error with this code.
    fn refused(&self, verb: &str, sandbox: Option<&Sandbox>, more: Value, code: u64) -> Result<String> {
        let answer = self.ask(verb, sandbox, more)?;
        ensure!(answer["code"] == code, "{verb}: code {code} expected: {answer}");
        Ok(answer["message"].as_str().unwrap_or_default().to_owned())
    }
}

fn valid(pods: &[&Sandbox]) -> Value {
    let one =
        |pod: &&Sandbox| json!({"containerID": pod.attachment.container_id, "ifname": pod.attachment.ifname});
    json!({"valid": pods.iter().map(one).collect::<Vec<_>>()})
}

#[test]
fn the_reference_library_drives_every_verb() {
    const TEST: &str = "the_reference_library_drives_every_verb";
    run(TEST, || {
        let Some(libcni) = Libcni::new(TEST, "libcni")? else { return Ok(()) };
        let nothing = || json!({});
        let versions = libcni.done("VERSION", None, nothing())?;
        for version in ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
            let has = versions["versions"].as_array().is_some_and(|all| all.contains(&json!(version)));
            ensure!(has, "{version}: {versions}");
        }
        let status = libcni.done("STATUS", None, nothing())?;
        ensure!(status["version"] == "1.1.0", "the newest of cniVersions is spoken: {status}");

        let pods = [libcni.sandbox("a")?, libcni.sandbox("b")?, libcni.sandbox("c")?];
        for pod in &pods {
            let added = libcni.done("ADD", Some(pod), nothing())?;
            ensure!(added["result"]["ips"].as_array().is_some_and(|ips| ips.len() == 2), "{added}");
            ensure!(added["result"]["interfaces"][1]["mtu"].is_u64(), "a result of version 1.1.0: {added}");
            let cached = libcni.done("CACHED", Some(pod), nothing())?;
            ensure!(cached["result"] == added["result"], "{cached}\n{added}");
            libcni.done("CHECK", Some(pod), nothing())?;
        }
        let [a, b, c] = &pods;
        let outcome =
            probe(&a.net, libcni.machine.record(&b.attachment.container_id)?.addresses[0], Kind::Icmp, true)?;
        ensure!(outcome.is_open(), "{outcome}");

        // CHECK through the library's cache sees what changed.
        let record = libcni.machine.record(&b.attachment.container_id)?;
        let (veth, address) = (record.host_ifname.to_string(), record.addresses[0]);
        libcni.node()?.place.ip(&format!("route del {address} dev {veth}\n"))?;
        let said = libcni.refused("CHECK", Some(b), nothing(), 101)?;
        ensure!(said.contains(&address.to_string()), "{said}");

        // GC ends exactly what is not valid: `b` by the library's own DEL, `c`, which its cache has lost, by our GC.
        let cache = format!("/var/lib/cni/results/podway-{}-eth0", c.attachment.container_id);
        libcni.node()?.place.enter(|| std::fs::remove_file(&cache))??;
        libcni.done("GC", None, valid(&[a]))?;
        let left: Vec<String> =
            libcni.machine.records()?.iter().map(|record| record.container_id.to_string()).collect();
        ensure!(left == [a.attachment.container_id.clone()], "{left:?}");
        libcni.done("CHECK", Some(a), nothing())?;
        let cached = libcni.done("CACHED", Some(a), nothing())?["cached"].clone();
        ensure!(cached.as_array().is_some_and(|all| all.len() == 1), "{cached}");

        // An empty list is a list: nothing is valid.
        libcni.done("GC", None, valid(&[]))?;
        // DEL is idempotent, with and without a cache, and for those that never were.
        for pod in &pods {
            libcni.done("DEL", Some(pod), nothing())?;
        }
        libcni.machine.expect_nothing_left()
    });
}

#[test]
fn the_reference_library_is_told_to_wait_until_the_node_is_ready() {
    const TEST: &str = "the_reference_library_is_told_to_wait_until_the_node_is_ready";
    run(TEST, || {
        let Some(mut libcni) = Libcni::new(TEST, "libcni-waits")? else { return Ok(()) };
        let node_file = podway_model::names::NODE_FILE;
        libcni.machine.cluster.lab.nodes[0].kill_routed()?;
        libcni.node()?.place.enter(|| std::fs::remove_file(node_file))??;
        let pod = libcni.sandbox("p")?;
        let said = libcni.refused("STATUS", None, json!({}), 50)?;
        ensure!(said.contains(node_file), "{said}");
        libcni.refused("ADD", Some(&pod), json!({}), 11)?;
        libcni.done("DEL", Some(&pod), json!({}))?;
        libcni.machine.cluster.lab.nodes[0].start_routed()?;
        wait_until_ok("STATUS is well", PATIENCE, || libcni.done("STATUS", None, json!({})))?;
        libcni.done("ADD", Some(&pod), json!({}))?;
        libcni.done("DEL", Some(&pod), json!({}))?;
        libcni.machine.expect_nothing_left()
    });
}

#[test]
fn a_chain_with_real_neighbours_runs_in_the_reference_library() {
    const TEST: &str = "a_chain_with_real_neighbours_runs_in_the_reference_library";
    run(TEST, || {
        let names = ["tuning", "portmap", "bandwidth"];
        let plugins: Option<Vec<PathBuf>> = names.iter().map(|name| foreign::plugin(TEST, name)).collect();
        let Some(plugins) = plugins else { return Ok(()) };
        let Some(libcni) = Libcni::new(TEST, "libcni-chain")? else { return Ok(()) };
        // The real ones, in place of our links of these names.
        for (name, plugin) in names.iter().zip(&plugins) {
            let path = format!("{BIN_DIR}/{name}");
            libcni.node()?.place.enter(|| -> std::io::Result<()> {
                let _ = std::fs::remove_file(&path);
                std::fs::copy(plugin, &path).map(drop)
            })??;
        }
        let conflist = json!({"conflist": {
            "cniVersion": "1.1.0", "name": "podway", "plugins": [
                {"type": "podway"},
                {"type": "tuning", "sysctl": {"net.core.somaxconn": "1234"}},
                {"type": "portmap", "backend": "nftables", "capabilities": {"portMappings": true}},
                {"type": "bandwidth", "capabilities": {"bandwidth": true}}
            ]
        }, "capabilityArgs": {
            "portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}],
            "bandwidth": {"ingressRate": 100_000_000, "ingressBurst": 10_000_000}
        }});
        let pod = libcni.sandbox("chained")?;
        libcni.done("STATUS", None, conflist.clone())?;
        let added = libcni.done("ADD", Some(&pod), conflist.clone())?;
        let interfaces = added["result"]["interfaces"].as_array().context("interfaces")?;
        ensure!(interfaces.iter().any(|one| one["name"] == "eth0"), "{added}");
        let read = |path: &str| std::fs::read_to_string(path);
        let somaxconn = pod.net.run(|| read("/proc/sys/net/core/somaxconn"))??;
        ensure!(somaxconn.trim() == "1234", "tuning did its work: {somaxconn}");
        // portmap leads to the pod: from another pod, by the node's address.
        let _echo = libcni.machine.cluster.lab.echo.serve(&pod.net, "chained")?;
        let other = libcni.sandbox("other")?;
        libcni.done("ADD", Some(&other), json!({}))?;
        let to = libcni.node()?.addresses.v4.into();
        let outcome = probe(&other.net, to, Kind::Tcp(8080), true)?;
        let by_the_pod = matches!(&outcome, Outcome::Open { answer: Some((name, _)) } if name == "chained");
        ensure!(by_the_pod, "{outcome}");

        libcni.done("CHECK", Some(&pod), conflist.clone())?;
        libcni.done("GC", None, merged(&conflist, valid(&[&pod, &other])))?;
        for sandbox in [&pod, &other] {
            libcni.done("DEL", Some(sandbox), conflist.clone())?;
        }
        let rules = libcni.node()?.place.run("nft", &["list", "ruleset"])?;
        ensure!(!rules.contains("dport 8080"), "{rules}");
        libcni.machine.expect_nothing_left()
    });
}

#[test]
fn a_chain_of_our_other_names_runs_in_the_reference_library() {
    const TEST: &str = "a_chain_of_our_other_names_runs_in_the_reference_library";
    run(TEST, || {
        let Some(libcni) = Libcni::new(TEST, "libcni-names")? else { return Ok(()) };
        let conflist = json!({"conflist": {
            "cniVersion": "1.1.0", "name": "podway", "plugins": [
                {"type": "ptp", "ipMasq": true, "ipam": {
                    "type": "host-local",
                    "ranges": [[{"subnet": "10.77.0.0/24"}], [{"subnet": "fd77::/120"}]],
                    "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]
                }},
                {"type": "portmap", "capabilities": {"portMappings": true}},
                {"type": "bandwidth", "capabilities": {"bandwidth": true}}
            ]
        }, "capabilityArgs": {
            "portMappings": [{"hostPort": 8081, "containerPort": 80, "protocol": "tcp"}],
            "bandwidth": {"ingressRate": 100_000_000, "ingressBurst": 10_000_000,
                          "egressRate": 100_000_000, "egressBurst": 10_000_000}
        }});
        let (pod, other) = (libcni.sandbox("named")?, libcni.sandbox("other")?);
        libcni.done("STATUS", None, conflist.clone())?;
        let added = libcni.done("ADD", Some(&pod), conflist.clone())?;
        ensure!(added["result"]["ips"][0]["address"] == "10.77.0.2/24", "{added}");
        ensure!(libcni.machine.records()?.is_empty(), "it is no pod of the main plugin's");
        let _echo = libcni.machine.cluster.lab.echo.serve(&pod.net, "named")?;
        libcni.done("ADD", Some(&other), json!({}))?;
        let to = libcni.node()?.addresses.v4.into();
        let outcome = probe(&other.net, to, Kind::Tcp(8081), true)?;
        let by_the_pod = matches!(&outcome, Outcome::Open { answer: Some((name, _)) } if name == "named");
        ensure!(by_the_pod, "{outcome}");
        libcni.done("CHECK", Some(&pod), conflist.clone())?;
        libcni.done("GC", None, merged(&conflist, valid(&[&pod, &other])))?;
        libcni.done("CHECK", Some(&pod), conflist.clone())?;
        // What the library has forgotten is found by each plugin's own GC.
        let cache = format!("/var/lib/cni/results/podway-{}-eth0", pod.attachment.container_id);
        libcni.node()?.place.enter(|| std::fs::remove_file(&cache))??;
        libcni.done("GC", None, merged(&conflist, valid(&[&other])))?;
        let rest = "nft list ruleset | grep -e 'dport 8081' -e 10.77.; ip -br link | grep -e ^veth -e ^bwp; \
                    ls /var/lib/cni/networks/podway | grep -e ^10 -e ^fd; true";
        let left = libcni.node()?.place.run("sh", &["-c", rest])?;
        ensure!(left.is_empty(), "{left}");
        libcni.done("DEL", Some(&pod), conflist)?;
        libcni.done("DEL", Some(&other), json!({}))?;
        libcni.machine.expect_nothing_left()
    });
}

fn merged(one: &Value, more: Value) -> Value {
    let mut all = one.clone();
    for (key, value) in more.as_object().into_iter().flatten() {
        all[key] = value.clone();
    }
    all
}

#[test]
fn cnitool_attaches_checks_and_detaches() {
    const TEST: &str = "cnitool_attaches_checks_and_detaches";
    run(TEST, || {
        let Some(cnitool) = foreign::built(TEST, "cnitool") else { return Ok(()) };
        let machine = Machine::new("cnitool", 1, &[])?;
        let node = machine.node()?;
        let pod = Sandbox::new(&node.place, "demo", "p")?;
        let call = |verb: &str| -> Result<String> {
            let mut command = Command::new(&cnitool);
            command.args([verb, "podway", &pod.attachment.netns]).env("CNI_PATH", BIN_DIR);
            command.env("NETCONFPATH", "/etc/cni/net.d").env("CNI_IFNAME", "eth0");
            command.env(
                "CAP_ARGS",
                r#"{"portMappings":[{"hostPort":9090,"containerPort":80,"protocol":"tcp"}]}"#,
            );
            let output = node.place.output(command, b"")?;
            let out = String::from_utf8_lossy(&output.stdout).into_owned();
            if !output.status.success() {
                bail!("cnitool {verb}: {out}{}", String::from_utf8_lossy(&output.stderr));
            }
            Ok(out)
        };
        call("status")?;
        let result: Value = serde_json::from_str(&call("add")?).context("result of cnitool add")?;
        ensure!(result["cniVersion"] == "1.1.0", "{result}");
        call("check")?;
        let record = machine.records()?.pop().context("a record")?;
        ensure!(record.pod.is_none() && record.host_ports.len() == 1, "{record:?}");
        let outcome = probe(node.place.net(), record.addresses[0], Kind::Icmp, true)?;
        ensure!(outcome.is_open(), "{outcome}");
        // It gives no list of what is valid, which is not the same as an empty one: that frees nothing by itself. What
        // it knows it ends by DEL first.
        let said = call("gc").err().context("a GC without a list is refused")?.to_string();
        ensure!(said.contains("cni.dev/valid-attachments"), "{said}");
        ensure!(machine.records()?.is_empty(), "the library's own DEL came before");
        call("del")?;
        call("del")?;
        machine.expect_nothing_left()
    });
}
