//! A node in a namespace: pods as veths of our shape, the real `policy-agent` beside them, and packets.
//!
//! The node is a thread with network and mount namespaces of its own; what it starts lives there too. `/run` is
//! private, so the agent runs with its shipped paths.

use std::fs;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use podway_daemon::client::Client;
use podway_kern::ns::{self, NetNs};
use podway_model::endpoint::{EndpointRecord, PodRef};
use podway_model::ids::Mtu;
use podway_model::names;
use podway_model::socket::{PolicyReply, PolicyRequest, PolicyStatus};

/// Longest wait for anything.
const PATIENCE: Duration = Duration::from_secs(20);
/// Where the node's cluster documents are.
const CLUSTER: &str = "/run/test/cluster";
const CONFIG: &str = "/run/test/podway.yaml";
/// Where the agent writes its log.
const LOG: &str = "/run/test/agent.log";

/// Runs a test on a fresh node.
pub fn on_a_node(test: &str, body: fn(&mut Node)) {
    if !nix::unistd::geteuid().is_root() {
        println!("SKIP {test}: needs root");
        return;
    }
    let thread = std::thread::Builder::new().name(test.to_owned());
    let run = move || {
        ns::unshare(true, true, false).unwrap();
        let mut node = Node::new();
        body(&mut node);
    };
    if let Err(panic) = thread.spawn(run).unwrap().join() {
        std::panic::resume_unwind(panic);
    }
}

pub struct Node {
    agent: Option<Child>,
}

pub struct Pod {
    pub record: EndpointRecord,
    pub netns: NetNs,
}

impl Node {
    fn new() -> Self {
        // One processor: what is sent first is received first, so a later packet proves that an earlier one was
        // dropped.
        let mut one = nix::sched::CpuSet::new();
        one.set(0).unwrap();
        nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(0), &one).unwrap();
        sh("mount -t tmpfs tmpfs /run");
        sh("ip link set lo up");
        sh("ip address add 172.18.0.1/32 dev lo");
        sh("ip address add fd00:172:18::1/128 dev lo");
        fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap();
        fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "1").unwrap();
        fs::create_dir_all(CLUSTER).unwrap();
        fs::create_dir_all(names::ENDPOINTS_DIR).unwrap();
        fs::write(CONFIG, format!("store: {{file: {{path: {CLUSTER}}}}}\nlog: {{level: debug}}\n")).unwrap();
        Self { agent: None }
    }

    /// Wires a pod the way the CNI plugin does: record first.
    pub fn wire(&self, namespace: &str, name: &str, number: u8) -> Pod {
        let container = format!("{namespace}.{name}");
        let addresses =
            vec![IpAddr::from([10, 244, 1, number]), format!("fd00:10:244:1::{number:x}").parse().unwrap()];
        let record = EndpointRecord {
            schema: podway_model::SCHEMA,
            id: names::attachment_id(&container, "eth0"),
            boot_id: fs::read_to_string(names::BOOT_ID_FILE).unwrap().trim().parse().unwrap(),
            network: "podway".parse().unwrap(),
            container_id: container.parse().unwrap(),
            ifname: "eth0".parse().unwrap(),
            host_ifname: names::host_ifname(&container, "eth0").parse().unwrap(),
            mac: names::pod_mac(&container, "eth0"),
            mtu: Mtu::ETHERNET,
            pod: Some(PodRef { namespace: namespace.to_owned(), name: name.to_owned(), uid: None }),
            addresses,
            host_ports: vec![],
            ipam: None,
            netns: String::new(),
        };
        let path = record_path(&record);
        fs::write(path.with_extension("new"), serde_json::to_vec(&record).unwrap()).unwrap();
        fs::rename(path.with_extension("new"), &path).unwrap();
        let (veth, mac, host_mac) = (&record.host_ifname, record.mac, names::HOST_MAC);
        sh(&format!("ip netns add {container}"));
        sh(&format!(
            "ip link add {veth} address {host_mac} type veth peer name eth0 address {mac} netns {container}"
        ));
        sh(&format!("ip link set {veth} group {} up", names::POD_GROUP));
        let inside = |command: &str| sh(&format!("ip -n {container} {command}"));
        inside("link set lo up");
        inside("link set eth0 up");
        for (address, gateway) in record.addresses.iter().zip(["169.254.1.1", "fe80::1"]) {
            let length = if address.is_ipv4() { 32 } else { 128 };
            let nodad = if address.is_ipv4() { "" } else { "nodad" };
            inside(&format!("address add {address}/{length} dev eth0 {nodad}"));
            inside(&format!("neighbour replace {gateway} lladdr {host_mac} dev eth0 nud permanent"));
            inside(&format!("route add {gateway} dev eth0"));
            inside(&format!("route add default via {gateway} dev eth0"));
            sh(&format!("ip route add {address}/{length} dev {veth}"));
            sh(&format!("ip neighbour replace {address} lladdr {mac} dev {veth} nud permanent"));
        }
        let netns = NetNs::open(format!("/run/netns/{container}")).unwrap();
        Pod { record, netns }
    }

    /// Takes a pod away the way the CNI plugin does: record last.
    pub fn unwire(&self, pod: &Pod) {
        sh(&format!("ip link delete {}", pod.record.host_ifname));
        sh(&format!("ip netns delete {}", pod.record.container_id));
        fs::remove_file(record_path(&pod.record)).unwrap();
    }

    /// Puts a file of documents into the store, or takes it away.
    pub fn documents(&self, file: &str, text: Option<&str>) {
        let path = Path::new(CLUSTER).join(file);
        match text {
            Some(text) => {
                let new = path.with_extension("new");
                fs::write(&new, text).unwrap();
                fs::rename(&new, &path).unwrap();
            }
            None => fs::remove_file(&path).unwrap(),
        }
    }

    /// Starts the agent and waits until it is ready.
    pub fn start_agent(&mut self) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_policy-agent"));
        let log = fs::File::options().create(true).append(true).open(LOG).unwrap();
        command.args(["--config", CONFIG]).stdin(Stdio::null()).stderr(log);
        // The node's namespaces are the thread's, so the agent inherits them; it dies with the thread.
        ns::enter_namespaces(&mut command, ns::Namespaces::default(), ns::OnParentDeath::Kill);
        self.agent = Some(command.spawn().unwrap());
        self.wait_for("the agent is ready", |status| status.ready);
    }

    /// `kill -9`.
    pub fn kill_agent(&mut self) {
        let mut agent = self.agent.take().unwrap();
        agent.kill().unwrap();
        agent.wait().unwrap();
    }

    pub fn status(&self) -> Option<PolicyStatus> {
        let mut client = Client::connect(Path::new(names::POLICY_SOCKET), PATIENCE).ok()?;
        match client.ask(&PolicyRequest::Status).ok()? {
            PolicyReply::Status(status) => Some(status),
            other => panic!("{other:?}"),
        }
    }

    /// Asks the agent.
    pub fn ask(&self, question: &PolicyRequest) -> PolicyReply {
        Client::connect(Path::new(names::POLICY_SOCKET), PATIENCE).unwrap().ask(question).unwrap()
    }

    /// What the agents of this node have logged.
    pub fn log(&self) -> String {
        fs::read_to_string(LOG).unwrap()
    }

    /// Announces a pod as CNI ADD does.
    pub fn announce(&self, pod: &Pod) -> PolicyReply {
        let mut client = Client::connect(Path::new(names::POLICY_SOCKET), PATIENCE).unwrap();
        client.ask(&PolicyRequest::Announce { endpoint: Box::new(pod.record.clone()) }).unwrap()
    }

    /// Waits for a status.
    pub fn wait_for(&self, what: &str, holds: impl Fn(&PolicyStatus) -> bool) -> PolicyStatus {
        let mut last = None;
        wait_until(what, || {
            last = self.status();
            last.clone().filter(&holds)
        })
    }

    /// Whether a first packet to a UDP port arrives. The node then sends one of its own, which nothing may hold up:
    /// it says that the receiver listens. It has one device less to pass, so it may overtake the first on a machine
    /// with several processors; what has not come [`OVERTAKEN`] later was dropped.
    pub fn arrives(&self, from: &Pod, to: &Pod, port: u16, v6: bool) -> bool {
        let address = |pod: &Pod| *pod.record.addresses.iter().find(|a| a.is_ipv6() == v6).unwrap();
        let bind = |at: SocketAddr| move || UdpSocket::bind(at).unwrap();
        let receiver = to.netns.run(bind((address(to), port).into())).unwrap();
        receiver.set_read_timeout(Some(PATIENCE)).unwrap();
        let sender = from.netns.run(bind((address(from), 0).into())).unwrap();
        let token = TOKEN.fetch_add(1, Ordering::Relaxed);
        sender.send_to(&token.to_ne_bytes(), receiver.local_addr().unwrap()).unwrap();
        let own = if v6 { "[fd00:172:18::1]:0" } else { "172.18.0.1:0" };
        let own = UdpSocket::bind(own).unwrap();
        own.send_to(b"last", receiver.local_addr().unwrap()).unwrap();
        let mut buffer = [0; 16];
        loop {
            let (length, _) = receiver.recv_from(&mut buffer).expect("a node reaches its pods");
            match &buffer[..length] {
                b"last" => break,
                got if got == token.to_ne_bytes() => return true,
                _ => {}
            }
        }
        receiver.set_read_timeout(Some(OVERTAKEN)).unwrap();
        while let Ok((length, _)) = receiver.recv_from(&mut buffer) {
            if buffer[..length] == token.to_ne_bytes() {
                return true;
            }
        }
        false
    }

    /// Both families agree, or the test fails.
    pub fn allowed(&self, from: &Pod, to: &Pod, port: u16) -> bool {
        let (v4, v6) = (self.arrives(from, to, port, false), self.arrives(from, to, port, true));
        assert_eq!(v4, v6, "IPv4 and IPv6 from {} to {}", from.record.container_id, to.record.container_id);
        v4
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(mut agent) = self.agent.take() {
            let _ = agent.kill();
            let _ = agent.wait();
        }
    }
}

/// Longer than any packet waits for a processor.
const OVERTAKEN: Duration = Duration::from_millis(200);

static TOKEN: AtomicU32 = AtomicU32::new(0);

fn record_path(record: &EndpointRecord) -> PathBuf {
    Path::new(names::ENDPOINTS_DIR).join(format!("{}.json", record.id))
}

/// Runs a command line without quoting; it must succeed.
pub fn sh(line: &str) -> String {
    let (ok, output) = run(line);
    assert!(ok, "{line}: {output}");
    output
}

/// Runs a command line without quoting; says whether it succeeded, and what it wrote.
pub fn run(line: &str) -> (bool, String) {
    let mut words = line.split_whitespace();
    let output = Command::new(words.next().unwrap()).args(words).output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&text).into_owned())
}

/// Waits until `look` finds something.
pub fn wait_until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "waited in vain until {what}\n{}", run("nft list ruleset").1);
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A pod's document.
pub fn pod(namespace: &str, name: &str, number: u8) -> String {
    format!(
        "---\napiVersion: v1\nkind: Pod\nmetadata: {{namespace: {namespace}, name: {name}, labels: {{app: {name}}}}}\n\
         status: {{podIPs: [{{ip: 10.244.1.{number}}}, {{ip: 'fd00:10:244:1::{number:x}'}}]}}\n"
    )
}

/// A policy's document with this `spec` in flow style.
pub fn policy(namespace: &str, name: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\n\
         metadata: {{namespace: {namespace}, name: {name}}}\nspec: {spec}\n"
    )
}
