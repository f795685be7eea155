//! A node with the plugin on it, and calls to it as a runtime makes them.

use std::net::IpAddr;
use std::process::Command;
use std::time::Duration;

use ipnet::IpNet;
use podway_ipam::{Attachment, LeaseStore};
use podway_kern::ns::NetNs;
use podway_kern::rtnl::{Link, Route, RouteFilter, Rtnl};
use podway_model::endpoint::EndpointRecord;
use podway_model::ids::BootId;
use podway_model::names::{self, POD_GROUP, POD_ROUTE_PROTOCOL, host_ifname};
use podway_testkit::mounts::{PRIVATE, make_private};
use podway_testkit::place::Place;
use podway_testkit::pod::Sandbox;
use podway_testkit::root_or_skip;
use serde_json::{Value, json};

/// The binary under test.
pub(crate) const PLUGIN: &str = env!("CARGO_BIN_EXE_podway");
/// Long enough for a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// Which families the node has blocks of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Families {
    V4,
    V6,
    Dual,
}

/// A node.
pub(crate) struct Host {
    pub(crate) place: Place,
}

impl Host {
    /// A node with a /26 and a /122, as the families say; `None` (and a SKIP line) without root.
    pub(crate) fn new(test: &str, families: Families) -> Option<Self> {
        if !root_or_skip(test) {
            return None;
        }
        let place = Place::new("node").unwrap();
        make_private(&place, PRIVATE).unwrap();
        let host = Self { place };
        host.write_node_file(&node_file(&host.boot(), families));
        Some(host)
    }

    /// The boot id as programs on the node read it.
    pub(crate) fn boot(&self) -> BootId {
        self.read(names::BOOT_ID_FILE).trim().parse().unwrap()
    }

    pub(crate) fn read(&self, path: &str) -> String {
        self.place.enter(|| std::fs::read_to_string(path)).unwrap().unwrap_or_else(|e| panic!("{path}: {e}"))
    }

    pub(crate) fn write(&self, path: &str, text: &str) {
        self.place.enter(|| std::fs::write(path, text)).unwrap().unwrap_or_else(|e| panic!("{path}: {e}"));
    }

    pub(crate) fn remove(&self, path: &str) {
        self.place.enter(|| std::fs::remove_file(path)).unwrap().unwrap_or_else(|e| panic!("{path}: {e}"));
    }

    /// Names in a folder; none if it is missing.
    pub(crate) fn list(&self, path: &str) -> Vec<String> {
        let list = || -> Vec<String> {
            let Ok(entries) = std::fs::read_dir(path) else { return vec![] };
            entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect()
        };
        self.place.enter(list).unwrap()
    }

    pub(crate) fn write_node_file(&self, file: &Value) {
        self.write(names::NODE_FILE, &file.to_string());
    }

    /// Changes the node file.
    pub(crate) fn edit_node_file(&self, edit: impl FnOnce(&mut Value)) {
        let mut file: Value = serde_json::from_str(&self.read(names::NODE_FILE)).unwrap();
        edit(&mut file);
        self.write_node_file(&file);
    }

    /// A network namespace for a pod.
    pub(crate) fn sandbox(&self, name: &str) -> Sandbox {
        Sandbox::new(&self.place, "default", name).unwrap()
    }

    /// A call of the plugin about `sandbox`.
    pub(crate) fn call(&self, verb: &str, sandbox: &Sandbox) -> Call<'_> {
        let attachment = &sandbox.attachment;
        let args = format!(
            "IgnoreUnknown=1;K8S_POD_NAMESPACE={};K8S_POD_NAME={};K8S_POD_UID={}",
            attachment.namespace, attachment.pod, attachment.uid
        );
        self.bare(verb)
            .env("CNI_CONTAINERID", &attachment.container_id)
            .env("CNI_NETNS", &attachment.netns)
            .env("CNI_IFNAME", &attachment.ifname)
            .env("CNI_ARGS", &args)
    }

    /// A call with nothing in its environment but the verb.
    pub(crate) fn bare(&self, verb: &str) -> Call<'_> {
        let conf = json!({"cniVersion": "1.1.0", "name": "podway", "type": "podway"});
        Call {
            host: self,
            program: PLUGIN.to_owned(),
            wrapper: vec![],
            conf,
            input: None,
            environment: vec![("CNI_COMMAND".into(), verb.into())],
        }
    }

    /// ADD that must succeed; its result.
    pub(crate) fn add(&self, sandbox: &Sandbox) -> Value {
        self.call("ADD", sandbox).run().result()
    }

    /// DEL that must succeed.
    pub(crate) fn del(&self, sandbox: &Sandbox) {
        self.call("DEL", sandbox).run().done();
    }

    /// CHECK with the result of the ADD.
    pub(crate) fn check(&self, sandbox: &Sandbox, previous: &Value) -> Answer {
        self.call("CHECK", sandbox).with("prevResult", previous.clone()).run()
    }

    /// The leases of the node.
    pub(crate) fn leases(&self) -> Vec<podway_ipam::Lease> {
        let boot = self.boot();
        self.place
            .enter(|| {
                let store = LeaseStore::open(names::IPAM_DIR.as_ref(), &boot).unwrap();
                store.ledger().leases().cloned().collect()
            })
            .unwrap()
    }

    /// Endpoint records of the node.
    pub(crate) fn records(&self) -> Vec<EndpointRecord> {
        let files = self.list(names::ENDPOINTS_DIR);
        let json = files.iter().filter(|name| name.ends_with(".json"));
        json.map(|name| {
            serde_json::from_str(&self.read(&format!("{}/{name}", names::ENDPOINTS_DIR))).unwrap()
        })
        .collect()
    }

    pub(crate) fn rtnl(&self) -> Rtnl {
        Rtnl::open_in(self.place.net()).unwrap()
    }

    /// The node's ends of pods.
    pub(crate) fn pod_links(&self) -> Vec<Link> {
        self.rtnl().links_in_group(POD_GROUP).unwrap()
    }

    /// The node's routes to pods.
    pub(crate) fn pod_routes(&self) -> Vec<Route> {
        self.rtnl().routes(RouteFilter { table: None, protocol: Some(POD_ROUTE_PROTOCOL) }).unwrap()
    }

    /// What is left of pods on the node, in words. Empty: nothing.
    pub(crate) fn leftovers(&self) -> Vec<String> {
        let mut all: Vec<String> = vec![];
        all.extend(self.leases().iter().map(|lease| format!("lease of {}", lease.attachment)));
        all.extend(self.list(names::ENDPOINTS_DIR).iter().map(|name| format!("record {name}")));
        all.extend(self.pod_links().iter().map(|link| format!("link {}", link.name)));
        all.extend(self.pod_routes().iter().map(|route| format!("route {route}")));
        all
    }

    /// Runs `ip` on the node.
    pub(crate) fn ip(&self, line: &str) {
        self.place.ip(line).unwrap();
    }

    /// Runs `ip` in a pod.
    pub(crate) fn ip_in(&self, pod: &NetNs, line: &str) {
        let output = pod.run(|| Command::new("ip").args(line.split(' ')).output()).unwrap().unwrap();
        assert!(output.status.success(), "ip {line}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

/// Name of the node's end of a sandbox.
pub(crate) fn host_name(sandbox: &Sandbox) -> String {
    host_ifname(&sandbox.attachment.container_id, &sandbox.attachment.ifname)
}

pub(crate) fn attachment(sandbox: &Sandbox) -> Attachment {
    Attachment::new(
        sandbox.attachment.container_id.parse().unwrap(),
        sandbox.attachment.ifname.parse().unwrap(),
    )
}

/// Addresses of a result, without their prefix lengths.
pub(crate) fn ips(result: &Value) -> Vec<IpAddr> {
    let ips = result["ips"].as_array().unwrap();
    ips.iter().map(|ip| ip["address"].as_str().unwrap().parse::<IpNet>().unwrap().addr()).collect()
}

fn node_file(boot: &BootId, families: Families) -> Value {
    let mut file = json!({
        "schema": 1, "bootId": boot, "instanceId": "00000000-0000-0000-0000-000000000002", "generation": 1,
        "node": "node", "confirmed": true, "mtu": 1450, "policy": "none", "policyTimeout": "undo",
        "masquerade": true, "pools": [], "blocks": [], "tunnelAddresses": []
    });
    let mut family = |pool: &str, cidr: &str, block: &str, tunnel: &str| {
        let push = |list: &mut Value, value| list.as_array_mut().unwrap().push(value);
        push(&mut file["pools"], json!({"name": pool, "cidr": cidr, "assignment": "automatic"}));
        push(&mut file["blocks"], json!({"cidr": block, "pool": pool, "state": "active"}));
        push(&mut file["tunnelAddresses"], json!(tunnel));
    };
    if families != Families::V6 {
        family("v4", "10.244.0.0/16", "10.244.1.0/26", "10.244.1.0");
    }
    if families != Families::V4 {
        family("v6", "fd00:244::/64", "fd00:244::100/122", "fd00:244::100");
    }
    file
}

/// A call to be made.
#[derive(Clone)]
pub(crate) struct Call<'a> {
    host: &'a Host,
    program: String,
    wrapper: Vec<String>,
    conf: Value,
    input: Option<String>,
    environment: Vec<(String, String)>,
}

impl Call<'_> {
    /// Sets a key of the configuration.
    pub(crate) fn with(mut self, key: &str, value: Value) -> Self {
        self.conf[key] = value;
        self
    }

    /// Another program than the plugin by its own name.
    pub(crate) fn program(mut self, path: &str) -> Self {
        self.program = path.to_owned();
        self
    }

    /// The plugin is started by another program, whose last argument it is.
    pub(crate) fn under(mut self, wrapper: &[&str]) -> Self {
        self.wrapper = wrapper.iter().map(|word| (*word).to_owned()).collect();
        self
    }

    /// Another standard input than a configuration.
    pub(crate) fn input(mut self, text: &str) -> Self {
        self.input = Some(text.to_owned());
        self
    }

    pub(crate) fn env(mut self, key: &str, value: &str) -> Self {
        self.environment.retain(|(k, _)| k != key);
        self.environment.push((key.to_owned(), value.to_owned()));
        self
    }

    pub(crate) fn without_env(mut self, key: &str) -> Self {
        self.environment.retain(|(k, _)| k != key);
        self
    }

    /// What goes to standard input.
    pub(crate) fn stdin(&self) -> String {
        self.input.clone().unwrap_or_else(|| self.conf.to_string())
    }

    /// The process to start, on the node.
    pub(crate) fn command(&self) -> Command {
        let mut words = self.wrapper.iter().chain([&self.program]);
        let mut command = Command::new(words.next().unwrap());
        command.args(words).env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command.envs(self.environment.iter().map(|(k, v)| (k, v)));
        command
    }

    /// Makes the call, and holds the answer against the protocol: one JSON text or nothing on standard output,
    /// exit code 0 or 1, nothing on standard error.
    pub(crate) fn run(&self) -> Answer {
        let (answer, stderr) = self.run_with_stderr();
        assert_eq!(stderr, "", "{answer:?}");
        answer
    }

    /// Makes the call where the program is somebody else's, and does not keep to all of the protocol.
    pub(crate) fn run_theirs(&self) -> Answer {
        let output = self.host.place.output(self.command(), self.stdin().as_bytes()).unwrap();
        Answer { code: output.status.code(), text: serde_json::from_slice(&output.stdout).ok() }
    }

    /// As [`Self::run`], where something is to be said to people.
    pub(crate) fn run_with_stderr(&self) -> (Answer, String) {
        let output = self.host.place.output(self.command(), self.stdin().as_bytes()).unwrap();
        let stdout = String::from_utf8(output.stdout).unwrap();
        let text = (!stdout.is_empty()).then(|| {
            serde_json::from_str(&stdout).unwrap_or_else(|e| panic!("not one JSON text: {e}: {stdout}"))
        });
        let answer = Answer { code: output.status.code(), text };
        match answer.code {
            Some(0) => {}
            Some(1) => {
                let error = answer.text.as_ref().unwrap();
                assert!(error["code"].is_u64() && error["msg"].is_string(), "{error}");
                assert!(error["cniVersion"].is_string(), "{error}");
            }
            other => panic!("exit code {other:?}: {stdout}"),
        }
        (answer, String::from_utf8_lossy(&output.stderr).into_owned())
    }
}

/// What a call answered.
#[derive(Debug, Clone)]
pub(crate) struct Answer {
    pub(crate) code: Option<i32>,
    pub(crate) text: Option<Value>,
}

impl Answer {
    /// Success, with a result.
    #[track_caller]
    pub(crate) fn result(self) -> Value {
        assert_eq!(self.code, Some(0), "{:?}", self.text);
        self.text.expect("a result")
    }

    /// Success, without a result.
    #[track_caller]
    pub(crate) fn done(self) {
        assert_eq!(self.code, Some(0), "{:?}", self.text);
        assert_eq!(self.text, None);
    }

    /// An error with this code; its message and details.
    #[track_caller]
    pub(crate) fn error(self, code: u64) -> String {
        assert_eq!(self.code, Some(1), "{:?}", self.text);
        let text = self.text.unwrap();
        assert_eq!(text["code"], code, "{text}");
        format!("{}\n{}", text["msg"].as_str().unwrap(), text["details"].as_str().unwrap_or_default())
    }
}
