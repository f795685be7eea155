//! A node of namespaces with the plugin and a node file, no daemon; another machine beside it; pods with echo
//! servers. Everything ends with the test.

use std::net::IpAddr;
use std::path::Path;
use std::process::Command;

use podway_kern::ns::NetNs;
use podway_testkit::cni::{Attachment, Called, CniError, RawOutcome, Runtime, result_addresses};
use podway_testkit::echo::{Echo, EchoRuntime};
use podway_testkit::lab::Underlay;
use podway_testkit::mounts;
use podway_testkit::place::Place;
use podway_testkit::pod::Sandbox;
use podway_testkit::probe::{Kind, Outcome, probe};
use podway_testkit::root_or_skip;
use serde_json::{Value, json};

/// Name of the network.
pub(crate) const NETWORK: &str = "podway";

/// Where a test puts the firewall programs that the real plugins find on its node.
pub(crate) const FIREWALL_DIR: &str = "/var/lib/cni/firewall";

/// A node, and another machine on its link.
pub(crate) struct Node {
    /// The node.
    pub(crate) place: Place,
    /// The other machine.
    pub(crate) other: Place,
    /// The node's addresses, IPv4 first.
    pub(crate) addresses: [IpAddr; 2],
    /// The other machine's addresses, IPv4 first.
    pub(crate) others: [IpAddr; 2],
    echo: EchoRuntime,
    _underlay: Underlay,
}

/// A wired pod with an echo server that answers with its name.
pub(crate) struct Pod {
    /// Its namespace and attachment.
    pub(crate) sandbox: Sandbox,
    /// What ADD answered.
    pub(crate) result: Value,
    /// Its addresses, IPv4 first.
    pub(crate) addresses: Vec<IpAddr>,
    _echo: Echo,
}

impl Pod {
    /// Its network namespace.
    pub(crate) fn net(&self) -> &NetNs {
        &self.sandbox.net
    }

    /// The node's end of its veth.
    pub(crate) fn host_ifname(&self) -> &str {
        self.result["interfaces"][0]["name"].as_str().unwrap()
    }
}

/// Runs a test on a node of its own, or says why not.
pub(crate) fn on_a_node(test: &str, run: impl FnOnce(&Node)) {
    if root_or_skip(test) {
        run(&Node::new());
    }
}

impl Node {
    fn new() -> Self {
        let underlay = Underlay::new().unwrap();
        let (place, other) = (Place::new("n1").unwrap(), Place::new("n2").unwrap());
        let (a4, a6) = underlay.join(&place, 0).unwrap();
        let (b4, b6) = underlay.join(&other, 1).unwrap();
        mounts::make_private(&place, mounts::PRIVATE).unwrap();
        place.sysctl("net.ipv4.ip_forward", "1").unwrap();
        place.sysctl("net.ipv6.conf.all.forwarding", "1").unwrap();
        let node = Self {
            place,
            other,
            addresses: [a4.into(), a6.into()],
            others: [b4.into(), b6.into()],
            echo: EchoRuntime::start().unwrap(),
            _underlay: underlay,
        };
        node.install("podway");
        node.node_file();
        node.conflist(&json!([{
            "type": "podway",
            "capabilities": {"portMappings": true, "bandwidth": true, "ips": true}
        }]));
        node
    }

    /// Puts the plugin into the folder of plugins under a name.
    pub(crate) fn install(&self, name: &str) {
        self.install_file(name, Path::new(env!("CARGO_BIN_EXE_podway")));
    }

    /// Puts a program into the folder of plugins under a name.
    pub(crate) fn install_file(&self, name: &str, program: &Path) {
        let program = std::fs::read(program).unwrap();
        let path = format!("/opt/cni/bin/{name}");
        self.enter(|| {
            std::fs::write(&path, &program).unwrap();
            use std::os::unix::fs::PermissionsExt as _;
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        });
    }

    /// Makes these plugins the node's network.
    pub(crate) fn conflist(&self, plugins: &Value) {
        let list = json!({"cniVersion": "1.1.0", "name": NETWORK, "plugins": plugins}).to_string();
        self.enter(|| std::fs::write("/etc/cni/net.d/10-podway.conflist", list).unwrap());
    }

    fn node_file(&self) {
        let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
        let blocks = ["10.244.0.0/26", "fd00:244::/122"];
        let pools = ["10.244.0.0/16", "fd00:244::/112"];
        let pool = |i: usize| json!({"name": format!("p{i}"), "cidr": pools[i], "assignment": "automatic"});
        let block = |i: usize| json!({"pool": format!("p{i}"), "cidr": blocks[i], "state": "active"});
        let file = json!({
            "schema": 1, "bootId": boot.trim(), "instanceId": "00000000-0000-0000-0000-000000000001",
            "generation": 1, "node": "n1", "confirmed": true, "mtu": 1500, "policy": "none",
            "policyTimeout": "undo", "masquerade": false, "pools": [pool(0), pool(1)],
            "blocks": [block(0), block(1)], "tunnelAddresses": []
        });
        self.enter(|| std::fs::write("/var/lib/podway/node.json", file.to_string()).unwrap());
    }

    /// Runs code on the node.
    pub(crate) fn enter<T: Send>(&self, f: impl FnOnce() -> T + Send) -> T {
        self.place.enter(f).unwrap()
    }

    /// Runs a shell command on the node and returns what it wrote.
    pub(crate) fn sh(&self, line: &str) -> String {
        self.place.run("sh", &["-c", line]).unwrap()
    }

    /// The host ports as `nft` lists them; empty without the table.
    pub(crate) fn ports(&self) -> String {
        self.sh("nft list table inet podway-ports 2>/dev/null || true")
    }

    /// A pod's namespace, with values for capabilities.
    pub(crate) fn sandbox(&self, name: &str, capabilities: Value) -> Sandbox {
        let mut sandbox = Sandbox::new(&self.place, "default", name).unwrap();
        sandbox.attachment.capability_args = capabilities.as_object().unwrap().clone();
        sandbox
    }

    /// ADD.
    pub(crate) fn try_add(&self, sandbox: &Sandbox) -> Result<Called, CniError> {
        Runtime::new(&self.place).add(&sandbox.attachment).unwrap()
    }

    /// A wired pod.
    pub(crate) fn pod(&self, name: &str, capabilities: Value) -> Pod {
        let sandbox = self.sandbox(name, capabilities);
        let result = self.try_add(&sandbox).unwrap().result;
        let mut addresses: Vec<IpAddr> =
            result_addresses(&result).unwrap().iter().map(ipnet::IpNet::addr).collect();
        addresses.sort();
        let echo = self.echo.serve(&sandbox.net, name).unwrap();
        Pod { sandbox, result, addresses, _echo: echo }
    }

    /// CHECK.
    pub(crate) fn check(&self, pod: &Pod) -> Result<Called, CniError> {
        Runtime::new(&self.place).check(&pod.sandbox.attachment, &pod.result).unwrap()
    }

    /// DEL by a runtime that knows nothing but the container's id.
    pub(crate) fn del(&self, attachment: &Attachment) {
        let bare = Attachment { capability_args: Default::default(), ..attachment.clone() };
        Runtime::new(&self.place).del(&bare, None).unwrap().unwrap();
    }

    /// Runs a plugin with this verb, for this attachment, with exactly this input.
    pub(crate) fn call(
        &self,
        plugin: &str,
        verb: &str,
        attachment: &Attachment,
        input: &Value,
    ) -> RawOutcome {
        self.call_with_args(plugin, verb, attachment, "", input)
    }

    /// The same with `CNI_ARGS`.
    pub(crate) fn call_with_args(
        &self,
        plugin: &str,
        verb: &str,
        attachment: &Attachment,
        args: &str,
        input: &Value,
    ) -> RawOutcome {
        // The real plugins run `nft` and `iptables`, which may be unpacked ones.
        let of = |name: &str| std::env::var(name).unwrap_or_default();
        let (libraries, path) = (of("LD_LIBRARY_PATH"), format!("{FIREWALL_DIR}:{}", of("PATH")));
        let extensions = of("XTABLES_LIBDIR");
        let mut environment = vec![
            ("LD_LIBRARY_PATH", libraries.as_str()),
            ("PATH", &path),
            ("CNI_ARGS", args),
            ("CNI_COMMAND", verb),
            ("CNI_CONTAINERID", attachment.container_id.as_str()),
            ("CNI_NETNS", attachment.netns.as_str()),
            ("CNI_IFNAME", attachment.ifname.as_str()),
            ("CNI_PATH", "/opt/cni/bin"),
        ];
        if !extensions.is_empty() {
            environment.push(("XTABLES_LIBDIR", &extensions));
        }
        Runtime::new(&self.place).exec(plugin, &environment, input.to_string().as_bytes()).unwrap()
    }

    /// GC with these valid attachments.
    pub(crate) fn gc(&self, valid: &[&Attachment]) {
        let valid: Vec<Value> = valid
            .iter()
            .map(|attachment| json!({"containerID": attachment.container_id, "ifname": attachment.ifname}))
            .collect();
        let input = json!({
            "cniVersion": "1.1.0", "name": NETWORK, "type": "podway", "cni.dev/valid-attachments": valid
        });
        let mut command = Command::new(Path::new("/opt/cni/bin/podway"));
        command.env_clear().env("CNI_COMMAND", "GC").env("CNI_PATH", "/opt/cni/bin");
        let output = self.place.output(command, input.to_string().as_bytes()).unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    }
}

/// Who answered, and the address that it saw; `None` if nobody did.
pub(crate) fn answer(from: &NetNs, to: IpAddr, kind: Kind) -> Option<(String, IpAddr)> {
    match probe(from, to, kind, true).unwrap() {
        Outcome::Open { answer } => answer,
        _ => None,
    }
}

/// Whether nobody answers.
pub(crate) fn closed(from: &NetNs, to: IpAddr, kind: Kind) -> bool {
    !probe(from, to, kind, false).unwrap().is_open()
}
