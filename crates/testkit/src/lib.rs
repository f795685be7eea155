//! A cluster of namespaces on one machine: the lab of the demo and of the integration tests.
//!
//! | module | what |
//! |---|---|
//! | [`place`] | network, mount and UTS namespaces held by a thread: code and programs run inside |
//! | [`mounts`] | private directories over the paths that Podway and others use |
//! | [`process`] | a program with its log file, killed when the lab ends, however it ends |
//! | [`lab`] | underlay, outside world, etcd, nodes, daemons |
//! | [`cni`] | calls CNI plugins the way a container runtime does |
//! | [`pod`] | network namespaces of pods, wired by the real plugin, with echo servers inside |
//! | [`probe`] | ICMP, TCP and UDP connections from inside a namespace, many at once |
//! | [`flow`] | a steady UDP flow with sequence numbers: what is lost, and for how long |
//! | [`cluster`] | a lab with pods, and the objects that describe them |
//! | [`matrix`] | who reaches whom: the oracle's answer beside what probes see |
//! | [`objects`] | Kubernetes objects and Podway documents as text for `podwayctl apply` |
//! | [`wait`] | waits for a condition, never for a time |
//! | [`table`] | tables for people |
//! | [`bench`] | what benchmarks have in common |
//!
//! Nothing of the host is touched: no link, route, rule, mount or file outside `target/lab` (logs). All that a
//! lab makes hangs on its process: namespaces live as long as its threads, programs get SIGKILL when the thread
//! that started them ends, files live in a tmpfs of a private mount namespace. So a lab that was killed with -9
//! leaves nothing behind.
//!
//! Needs root. A test asks [`root_or_skip`] first.

pub mod bench;
pub mod cluster;
pub mod cni;
pub mod echo;
pub mod flow;
pub mod lab;
pub mod matrix;
pub mod mounts;
pub mod objects;
pub mod place;
pub mod pod;
pub mod probe;
pub mod process;
pub mod table;
pub mod wait;

/// Whether the caller may make namespaces. If not, prints the line that `cargo xtask test` counts as a skip.
#[expect(clippy::print_stdout, reason = "the line is what the test runner reads")]
pub fn root_or_skip(test: &str) -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        println!("SKIP {test}: needs root");
    }
    root
}
