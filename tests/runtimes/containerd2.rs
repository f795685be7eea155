//! containerd 2 as a kubelet uses it: by its CRI socket. It asks STATUS whether the node's network is ready, and makes
//! and ends pods with ADD and DEL.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use podway_model::names;
use podway_testkit::pod::Pod;
use podway_testkit::probe::{Kind, probe};
use podway_testkit::process::Process;
use podway_testkit::wait::wait_until_ok;
use serde_json::Value;

use crate::machine::{Machine, PATIENCE};
use crate::{foreign, run};

const SOCKET: &str = "/run/containerd/containerd.sock";

/// A machine on which containerd runs, with the image of sandboxes in its store.
struct Containerd {
    daemon: Process,
    machine: Machine,
    config: PathBuf,
}

impl Containerd {
    fn start(test: &str, name: &str) -> Result<Option<Self>> {
        let Some(containerd) = foreign::built(test, "containerd") else { return Ok(None) };
        let Some(runc) = foreign::packaged(test, "containerd/usr/sbin/runc") else { return Ok(None) };
        let Some(busybox) = foreign::packaged(test, "busybox-static/bin/busybox") else { return Ok(None) };
        let machine = Machine::new(name, 1, &[&containerd, &runc])?;
        let image = machine.files().join("pause.tar").to_string_lossy().into_owned();
        let pause = machine.run("cri", &[&image, "image", &busybox.to_string_lossy()])?;
        // runc may not lower a process's score of being killed without a capability that a machine may lack.
        let text = format!(
            "version = 3\n[plugins.'io.containerd.cri.v1.runtime']\nrestrict_oom_score_adj = true\n\
             [plugins.'io.containerd.cri.v1.images'.pinned_images]\nsandbox = {}\n",
            pause.trim()
        );
        let config = machine.files().join("config.toml");
        std::fs::write(&config, text)?;
        let daemon = machine.start("containerd", &[Path::new("--config"), &config])?;
        let mut containerd = Self { daemon, machine, config };
        containerd.wait()?;
        containerd.machine.run("ctr", &["--namespace", "k8s.io", "images", "import", &image])?;
        Ok(Some(containerd))
    }

    fn wait(&mut self) -> Result<()> {
        wait_until_ok("containerd answers", PATIENCE, || {
            self.daemon.ensure_running()?;
            self.machine.run("ctr", &["version"]).map(drop)?;
            self.cri(&["status"]).map(drop)
        })
    }

    /// kill -9, and another start over what is there.
    fn restart(&mut self) -> Result<()> {
        // The daemon is a child of what entered its namespace: it is found by its socket's owner there.
        self.machine.run("sh", &["-c", "kill -9 $(pidof containerd)"])?;
        self.daemon.wait_exit(PATIENCE)?;
        self.daemon = self.machine.start("containerd", &[Path::new("--config"), &self.config])?;
        self.wait()
    }

    fn cri(&self, words: &[&str]) -> Result<Value> {
        let text = self.machine.run("cri", &[&[SOCKET], words].concat())?;
        serde_json::from_str(&text).with_context(|| format!("answer to {words:?}: {text}"))
    }

    /// Whether the network is ready, and why not.
    fn network(&self) -> Result<(bool, String)> {
        let status = self.cri(&["status"])?;
        let condition = &status["NetworkReady"];
        let ready = condition["status"].as_bool().with_context(|| format!("NetworkReady in {status}"))?;
        Ok((ready, condition["message"].as_str().unwrap_or_default().to_owned()))
    }

    fn pod(&self, name: &str) -> Result<String> {
        let answer =
            self.cri(&["run", "demo", name, &format!("uid-{name}"), &format!("/{}", self.machine.cgroup())])?;
        Ok(answer["pod_sandbox_id"].as_str().with_context(|| answer.to_string())?.to_owned())
    }

    fn addresses(&self, id: &str) -> Result<Vec<IpAddr>> {
        let answer = self.cri(&["pod", id])?;
        let all = answer["addresses"].as_array().with_context(|| answer.to_string())?;
        all.iter().map(|one| Ok(one.as_str().context("an address is text")?.parse()?)).collect()
    }
}

#[test]
fn containerd_2_takes_the_nodes_readiness_from_status() {
    const TEST: &str = "containerd_2_takes_the_nodes_readiness_from_status";
    run(TEST, || {
        let Some(mut containerd) = Containerd::start(TEST, "containerd-2-status")? else { return Ok(()) };
        let ready = |containerd: &Containerd, expected: bool, part: &str| {
            wait_until_ok(&format!("NetworkReady is {expected}"), PATIENCE, || {
                let (ready, message) = containerd.network()?;
                ensure!(ready == expected && message.contains(part), "NetworkReady is {ready}: {message}");
                Ok(())
            })
        };
        ready(&containerd, true, "")?;
        // A node that has just booted: no node file yet.
        containerd.machine.cluster.lab.nodes[0].kill_routed()?;
        containerd.machine.node()?.place.enter(|| std::fs::remove_file(names::NODE_FILE))??;
        ready(&containerd, false, names::NODE_FILE)?;
        if let Ok(id) = containerd.pod("early") {
            bail!("pod {id} was made without a network");
        }
        containerd.machine.cluster.lab.nodes[0].start_routed()?;
        ready(&containerd, true, "")?;
        // Policy is required and its table is gone: new pods would not be protected.
        containerd.machine.cluster.lab.nodes[0].kill_policy_agent()?;
        containerd.machine.node()?.place.run("nft", &["delete", "table", "inet", names::POLICY_TABLE])?;
        ready(&containerd, false, names::POLICY_TABLE)?;
        containerd.machine.cluster.lab.nodes[0].start_policy_agent()?;
        ready(&containerd, true, "")
    });
}

#[test]
fn containerd_2_makes_and_ends_pods_as_a_kubelet_asks() {
    const TEST: &str = "containerd_2_makes_and_ends_pods_as_a_kubelet_asks";
    run(TEST, || {
        let Some(mut containerd) = Containerd::start(TEST, "containerd-2-pods")? else { return Ok(()) };
        let (one, two) = (containerd.pod("one")?, containerd.pod("two")?);
        let (record, addresses) = (containerd.machine.record(&one)?, containerd.addresses(&one)?);
        ensure!(addresses == record.addresses, "{addresses:?} {record:?}");
        let pod = record.pod.context("the runtime names the pod")?;
        ensure!(pod.to_string() == "demo/one" && pod.uid.as_deref() == Some("uid-one"), "{pod:?}");
        let other = {
            let node = containerd.machine.node()?;
            Pod::add(&node.place, &containerd.machine.cluster.lab.echo, "demo", "other")?
        };
        for address in &addresses {
            let outcome = probe(other.net(), *address, Kind::Icmp, true)?;
            ensure!(outcome.is_open(), "{address}: {outcome}");
        }
        // Killed and started anew it finds its pods, and they their network.
        containerd.restart()?;
        ensure!(containerd.addresses(&two)? == containerd.machine.record(&two)?.addresses, "after a restart");
        let outcome = probe(other.net(), addresses[0], Kind::Icmp, true)?;
        ensure!(outcome.is_open(), "{outcome}");
        // A kubelet stops a sandbox more than once.
        for id in [&one, &one, &two] {
            containerd.cri(&["stop", id])?;
        }
        ensure!(containerd.machine.records()?.len() == 1, "{:?}", containerd.machine.records()?);
        for id in [&one, &two] {
            containerd.cri(&["remove", id])?;
        }
        other.delete(&containerd.machine.node()?.place)?;
        containerd.machine.expect_nothing_left()
    });
}
