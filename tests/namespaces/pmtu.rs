//! Path MTU discovery (RFC 1191, RFC 8201): pods keep the MTU that they were born with, so what learns of a narrower
//! path is the pod's own kernel, by ICMP errors that must reach it through tunnels, masquerade, guard and policies.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, TcpListener, TcpStream};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use podway_kern::ns::NetNs;
use podway_model::cluster::Backend;
use podway_testkit::cluster::Cluster;
use podway_testkit::pod::Pod;
use podway_testkit::wait::wait_until_ok;
use serde_json::Value;

use crate::{cluster_with_pods, run, two_nodes};

const PATIENCE: Duration = Duration::from_secs(30);
/// Many times any window of a new connection: a path that swallows full segments does not carry it.
const BYTES: usize = 2_000_000;
/// Isolates the pods `a` in both directions. No rule speaks of ICMP: errors belong to their connection.
const ISOLATED: &str = r#"[{"metadata": {"namespace": "demo", "name": "isolated"},
    "spec": {"podSelector": {}, "policyTypes": ["Ingress", "Egress"],
             "ingress": [{"from": [{"podSelector": {}}], "ports": [{"protocol": "TCP", "port": 9000}]}],
             "egress": [{"to": [{"podSelector": {}}, {"ipBlock": {"cidr": "198.51.100.0/24"}},
                                {"ipBlock": {"cidr": "2001:db8:64::/64"}}],
                         "ports": [{"protocol": "TCP", "port": 9000}]}]}}]"#;

/// Sends [`BYTES`] by TCP and waits until the other end has seen them all.
fn transfer(from: &NetNs, into: &NetNs, to: IpAddr) -> Result<()> {
    let listener = into.run(|| TcpListener::bind((to, 9000)))?.context("listen")?;
    let receiver = std::thread::spawn(move || -> std::io::Result<u64> {
        let (stream, _) = listener.accept()?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let seen = std::io::copy(&mut (&stream).take(BYTES as u64), &mut std::io::sink())?;
        (&stream).write_all(b"all")?;
        Ok(seen)
    });
    let mut stream = from
        .run(|| TcpStream::connect_timeout(&(to, 9000).into(), PATIENCE))?
        .with_context(|| format!("connect to {to}"))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(&vec![7; BYTES]).with_context(|| format!("send to {to}"))?;
    stream.read_exact(&mut [0; 3]).with_context(|| format!("the last bytes to {to}"))?;
    let seen = receiver.join().ok().context("the receiver panicked")??;
    ensure!(seen == BYTES as u64, "{seen} of {BYTES} bytes arrived at {to}");
    Ok(())
}

/// The MTU that a pod learnt of its way to an address; none: it believes in that of its interface.
fn learnt(node: &podway_testkit::lab::Node, pod: &Pod, to: IpAddr) -> Result<Option<u64>> {
    let mut command = std::process::Command::new("ip");
    command.args(["-j", "route", "get", &to.to_string()]);
    let out = pod.net().run(|| command.output())?.context("run ip route get")?;
    ensure!(out.status.success(), "{}: {}", node.name(), String::from_utf8_lossy(&out.stderr));
    let found: Value = serde_json::from_slice(&out.stdout)?;
    Ok(found[0]["metrics"][0]["mtu"].as_u64())
}

fn isolated(test: &str, backend: Backend) -> Result<Cluster> {
    let mut options = two_nodes(test, backend);
    options.ipv6 = true;
    let mut cluster = cluster_with_pods(options)?;
    cluster.apply_policies(serde_json::from_str(ISOLATED)?)?;
    Ok(cluster)
}

/// The underlay of running pods becomes narrower by 100 bytes; `expected` is what is left for a pod's packet.
fn follows_the_underlay(test: &str, backend: Backend, expected: u64) {
    run(test, || {
        let cluster = isolated(test, backend)?;
        let (from, to) = (cluster.pod("demo/a-1")?, cluster.pod("demo/a-2")?);
        let born = cluster.node_at(0)?;
        for node in &cluster.lab.nodes {
            node.place.ip("link set eth0 mtu 1400\n")?;
        }
        for v6 in [false, true] {
            let to_address = to.address(v6).context("the pod has both families")?;
            let family = if v6 { "-6" } else { "-4" };
            wait_until_ok("routes have the underlay's new MTU", PATIENCE, || {
                let routes = born.place.ip_json(&[family, "route", "get", &to_address.to_string()])?;
                let mtu = routes.first().map(|route| route["metrics"][0]["mtu"].clone());
                ensure!(mtu == Some(expected.into()), "{routes:?}");
                Ok(())
            })?;
            ensure!(learnt(born, from, to_address)?.is_none(), "nothing was sent yet");
            transfer(from.net(), to.net(), to_address)?;
            let seen = learnt(born, from, to_address)?;
            ensure!(seen == Some(expected), "to {to_address}: {seen:?} learnt, {expected} expected");
        }
        Ok(())
    });
}

#[test]
fn pods_learn_that_the_tunnel_became_narrower() {
    follows_the_underlay("pods_learn_that_the_tunnel_became_narrower", Backend::Vxlan, 1350);
}

#[test]
fn pods_learn_that_the_underlay_became_narrower() {
    follows_the_underlay("pods_learn_that_the_underlay_became_narrower", Backend::HostGw, 1400);
}

#[test]
fn pods_learn_of_a_narrow_hop_behind_the_masquerade() {
    run("pods_learn_of_a_narrow_hop_behind_the_masquerade", || {
        let cluster = isolated("narrow-hop", Backend::HostGw)?;
        let (node, pod) = (cluster.node_at(0)?, cluster.pod("demo/a-1")?);
        // Behind the router that the nodes have for a gateway.
        cluster.lab.underlay.place.ip("link set to-outside mtu 1300\n")?;
        for v6 in [false, true] {
            let own = pod.address(v6).context("the pod has both families")?;
            let to = cluster.lab.outside.address_like(own);
            transfer(pod.net(), cluster.lab.outside.place.net(), to)?;
            let seen = learnt(node, pod, to)?;
            ensure!(seen == Some(1300), "to {to}: {seen:?} learnt");
        }
        Ok(())
    });
}
