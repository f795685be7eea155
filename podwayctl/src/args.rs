//! What can be typed, and the help texts.

use std::path::PathBuf;

use clap::{Args as ClapArgs, Parser, Subcommand, ValueEnum};
use podway_model::names::{CONFIG_FILE, ETCD_PREFIX, POLICY_SOCKET, ROUTED_SOCKET};

/// Heading of what every command takes.
const COMMON: &str = "Common options";
const EXIT_CODES: &str = "\
Exit codes:
   0  done
   1  failed: the message says what, and what to do
   2  denied (policy trace), rejected (bgp filter test)
   3  not found
   4  this node is not ready
  64  bad input: every mistake is listed, nothing was changed";

/// Look at and change a Podway network.
#[derive(Debug, Parser)]
#[command(name = "podwayctl", version, after_help = EXIT_CODES, max_term_width = 100)]
pub(crate) struct Args {
    #[command(flatten)]
    pub(crate) store: StoreArgs,

    /// Form of the output: a table for people, json and yaml for programs
    #[arg(short, long, value_enum, default_value_t, global = true, help_heading = COMMON)]
    pub(crate) output: Format,

    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Form of the output.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    #[default]
    Table,
    Json,
    Yaml,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct StoreArgs {
    /// Configuration file that says where the cluster store is (its `store:` section)
    #[arg(long, value_name = "FILE", default_value = CONFIG_FILE, global = true, help_heading = COMMON)]
    pub(crate) config: PathBuf,

    /// Use this etcd instead of what the configuration file says; may be given several times
    #[arg(long, value_name = "URL", global = true, help_heading = COMMON)]
    pub(crate) etcd: Vec<String>,

    /// Prefix of Podway's keys in etcd, with --etcd
    #[arg(long, value_name = "PREFIX", default_value = ETCD_PREFIX, requires = "etcd", global = true, help_heading = COMMON)]
    pub(crate) etcd_prefix: String,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Create or change objects from YAML or JSON files
    ///
    /// Everything is checked before anything is written: a mistake anywhere means that nothing changes.
    /// Kinds: ClusterConfig, Pool, BGPPeer, BGPFilter, Reflector (apiVersion podway.io/v1), and Kubernetes' Namespace, Pod
    /// and NetworkPolicy for clusters without an API server.
    Apply(ApplyArgs),
    /// Show objects
    Get(GetArgs),
    /// Remove objects, by kind and name or as listed in files
    ///
    /// A pool from which nodes hold blocks is not removed: disable it, and release those nodes first.
    Delete(DeleteArgs),
    /// How this node and the cluster are doing
    ///
    /// Asks this node's routed and policy-agent, and reads the cluster store. Exits with 4 if this node is not
    /// ready.
    Status(StatusArgs),
    /// BGP: sessions and routes of this node, reflectors and filters of the cluster
    #[command(subcommand)]
    Bgp(BgpCommand),
    /// NetworkPolicy on this node: what becomes of a connection, and why
    #[command(subcommand)]
    Policy(PolicyCommand),
    /// Addresses: who has which, what leaks, and freeing one
    #[command(subcommand)]
    Ipam(IpamCommand),
    /// The cluster's nodes
    #[command(subcommand)]
    Node(NodeCommand),
    /// Who has BGP sessions with whom: nodes, reflectors, peers outside, as a table or a drawing
    ///
    /// Shows what is to be, as the cluster store has it; whether a session is up, `podwayctl bgp peers` says on its node.
    Topology(TopologyArgs),
    /// Version of this program
    Version,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct ApplyArgs {
    /// File, folder (its .yaml, .yml and .json files), or - for standard input; may be given several times
    #[arg(short, long, value_name = "FILE", required = true)]
    pub(crate) filename: Vec<PathBuf>,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct GetArgs {
    /// What to show: clusterconfig, pools, bgppeers, bgpfilters, reflectors, namespaces, pods, networkpolicies
    #[arg(value_parser = crate::objects::parse_kind)]
    pub(crate) kind: podway_model::document::Kind,

    /// Only the object of this name
    pub(crate) name: Option<String>,

    /// Only objects of this namespace [default: all namespaces; with NAME: default]
    #[arg(short, long)]
    pub(crate) namespace: Option<String>,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct DeleteArgs {
    /// Kind of the object
    #[arg(value_parser = crate::objects::parse_kind, requires = "name", required_unless_present = "filename")]
    pub(crate) kind: Option<podway_model::document::Kind>,

    /// Name of the object
    pub(crate) name: Option<String>,

    /// Namespace of the object
    #[arg(short, long, default_value = "default", conflicts_with = "filename")]
    pub(crate) namespace: String,

    /// Remove what these files list; - for standard input
    #[arg(short, long, value_name = "FILE", conflicts_with = "kind")]
    pub(crate) filename: Vec<PathBuf>,

    /// An object that is gone already is no failure
    #[arg(long)]
    pub(crate) ignore_not_found: bool,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct StatusArgs {
    /// Only this node; the cluster store is not read
    #[arg(long, conflicts_with = "all")]
    pub(crate) node: bool,

    /// List every node of the cluster, not only those with a problem
    #[arg(long)]
    pub(crate) all: bool,

    #[command(flatten)]
    pub(crate) sockets: SocketArgs,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct SocketArgs {
    /// Socket of routed
    #[arg(long, value_name = "PATH", default_value = ROUTED_SOCKET, hide = true)]
    pub(crate) routed_socket: PathBuf,

    /// Socket of policy-agent
    #[arg(long, value_name = "PATH", default_value = POLICY_SOCKET, hide = true)]
    pub(crate) policy_socket: PathBuf,
}

#[derive(Debug, Subcommand)]
pub(crate) enum BgpCommand {
    /// BGP sessions of this node
    ///
    /// LAST ERROR is why the session is not, or was last not, up; TOLD is the last NOTIFICATION that the peer was sent;
    /// IGNORED counts what it sent that could not be used as it came.
    Peers(SocketArgs),
    /// BGP routes that this node knows, best paths marked with *
    Routes(SocketArgs),
    /// Monitoring stations of this node (BMP)
    ///
    /// WAITING counts changed prefixes that the station has not read yet; DROPPED those that were not told one by one
    /// because too many waited, and ANEW how often a peer was told anew for that.
    Stations(SocketArgs),
    /// What a peer has told this node, as it came, and what became of it
    Received(PeerArgs),
    /// What a peer has been told
    Advertised(PeerArgs),
    /// Ask a peer for its whole table again; its session stays
    Refresh(PeerArgs),
    /// End a peer's session and begin it anew; its routes go until it is up again
    Reset(ResetArgs),
    /// Which nodes are route reflectors
    #[command(subcommand)]
    Reflector(ReflectorCommand),
    /// Filters of routes
    #[command(subcommand)]
    Filter(FilterCommand),
}

#[derive(Debug, ClapArgs)]
pub(crate) struct PeerArgs {
    /// Address or name of the peer, as `podwayctl bgp peers` has it
    pub(crate) peer: String,

    #[command(flatten)]
    pub(crate) sockets: SocketArgs,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct ResetArgs {
    /// Address or name of the peer, as `podwayctl bgp peers` has it
    pub(crate) peer: String,

    /// Words for the operator at the other end
    #[arg(long, value_name = "TEXT", default_value = "reset by the operator")]
    pub(crate) words: String,

    #[command(flatten)]
    pub(crate) sockets: SocketArgs,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ReflectorCommand {
    /// All reflectors, and whether they are used
    List,
    /// Make a node a reflector
    ///
    /// Nodes get sessions with it before any other session is closed.
    Add(AddReflectorArgs),
    /// A node is a reflector no longer
    ///
    /// The last one is not removed while the topology is reflectors: the nodes would have no routes.
    Remove(RemoveReflectorArgs),
}

#[derive(Debug, ClapArgs)]
pub(crate) struct AddReflectorArgs {
    /// Name of the node
    pub(crate) node: String,

    /// Cluster id (RFC 4456 section 7) [default: the node's router id]
    #[arg(long, value_name = "ID")]
    pub(crate) cluster_id: Option<std::net::Ipv4Addr>,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct RemoveReflectorArgs {
    /// Name of the node
    pub(crate) node: String,
}

#[derive(Debug, Subcommand)]
pub(crate) enum FilterCommand {
    /// What a filter makes of a route, and which rule decides
    ///
    /// Uses the code that `routed` uses. Exits with 2 if the route is rejected.
    Test(FilterTestArgs),
}

#[derive(Debug, ClapArgs)]
pub(crate) struct FilterTestArgs {
    /// Name of the BGPFilter
    pub(crate) filter: String,

    /// Destination of the route, a prefix
    pub(crate) route: ipnet::IpNet,

    /// Take the filter, and communities by name, from this file instead of the cluster store; - for standard input
    #[arg(short, long, value_name = "FILE")]
    pub(crate) filename: Option<PathBuf>,

    /// The neighbour that the route comes from [default: none, this node originates it]
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) from: Option<std::net::IpAddr>,

    /// What that neighbour is
    #[arg(long, value_enum, default_value_t, requires = "from")]
    pub(crate) role: PeerRole,

    /// Next hop [default: the neighbour, or 192.0.2.1 or 2001:db8::1]
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) next_hop: Option<std::net::IpAddr>,

    /// AS path, the neighbour's AS first, separated by commas
    #[arg(long, value_name = "ASN,…", value_delimiter = ',')]
    pub(crate) as_path: Vec<u32>,

    /// A community; may be given several times
    #[arg(long, value_name = "COMMUNITY")]
    pub(crate) community: Vec<podway_model::bgp::Community>,

    /// MED
    #[arg(long)]
    pub(crate) med: Option<u32>,

    /// LOCAL_PREF
    #[arg(long)]
    pub(crate) local_pref: Option<u32>,
}

/// What a neighbour is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum PeerRole {
    Internal,
    Client,
    Reflector,
    #[default]
    External,
}

#[derive(Debug, Subcommand)]
pub(crate) enum PolicyCommand {
    /// Whether a new connection is allowed, and which policy and rule allow or deny it
    ///
    /// Asks this node's policy-agent, which knows all policies and all pods of the cluster, with the engine that fills
    /// the kernel. Exits with 2 if the connection is denied in any family.
    Trace(TraceArgs),
    /// Policies of the cluster, and the pods of this node that they isolate
    List(SocketArgs),
    /// Whether the kernel holds what it should, and everything can be enforced as written
    ///
    /// Compares the table in the kernel with what follows from the objects. Exits with 1 if something is wrong.
    Check(SocketArgs),
}

#[derive(Debug, ClapArgs)]
pub(crate) struct TraceArgs {
    /// Who opens the connection: NAMESPACE/POD, an address, or node/NAME
    pub(crate) from: String,

    /// Who is meant: the same. Of a Service name one of its pods: policies see packets after translation
    pub(crate) to: String,

    /// What it carries: PORT (TCP), tcp/PORT, udp/PORT, sctp/PORT or icmp
    #[arg(value_name = "PORT")]
    pub(crate) traffic: String,

    #[command(flatten)]
    pub(crate) sockets: SocketArgs,
}

#[derive(Debug, Subcommand)]
pub(crate) enum IpamCommand {
    /// Pools, the blocks that nodes hold of them, and how full they are
    ///
    /// Reads the cluster store. Nodes tell how full their blocks are when that changes, at most every ten minutes.
    Show,
    /// Leaks and duplicates: in the store for the whole cluster, and on this node
    ///
    /// In the store: claims that overlap, lie in no pool or belong to nobody, and use that does not fit. On this node,
    /// by routed: leases, endpoint records and interfaces that do not fit each other. Run it on each node for all of
    /// them. Exits with 1 if something is wrong that was not mended.
    Check(IpamCheckArgs),
    /// Free an address that nobody uses any more
    ///
    /// Ends the lease that holds it on this node, with both addresses of a dual-stack pod. Refused while the pod's
    /// interface is there. Exits with 3 if nobody on this node holds it; where another node's block has it, that node is
    /// named.
    Release(IpamReleaseArgs),
}

#[derive(Debug, ClapArgs)]
pub(crate) struct IpamCheckArgs {
    /// Mend what no pod can miss: leases and records whose interface is gone, blocks and figures of nodes that nobody
    /// knows. Such blocks stay unused for 24 hours
    #[arg(long)]
    pub(crate) mend: bool,

    #[command(flatten)]
    pub(crate) sockets: SocketArgs,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct IpamReleaseArgs {
    /// The address
    #[arg(value_name = "ADDR")]
    pub(crate) address: std::net::IpAddr,

    /// Even if its pod may be there: another pod may get its address
    #[arg(long)]
    pub(crate) force: bool,

    #[command(flatten)]
    pub(crate) sockets: SocketArgs,
}

#[derive(Debug, Subcommand)]
pub(crate) enum NodeCommand {
    /// All nodes: whether they are alive, their addresses and blocks
    List,
    /// Have traffic leave a node as far as there is another way, before work on it
    ///
    /// Its routes are announced with GRACEFUL_SHUTDOWN (RFC 8326), so that routers outside prefer other nodes where they
    /// can, and `topology: auto` chooses another reflector. Its pods go on, and so does what only it leads to.
    Drain(DrainArgs),
    /// A drained node is as before
    Undrain(UndrainArgs),
    /// Take the address blocks from a node that is gone for good
    ///
    /// The other nodes drop its routes within a second. Its blocks stay unused for 24 hours, in case a pod is
    /// still alive somewhere.
    Release(ReleaseArgs),
    /// Install the CNI plugin on this node
    ///
    /// Copies the plugin to where container runtimes look for it, links the names of other plugins to it where no
    /// file of that name stands (bandwidth, host-local, loopback, podway-ipam, portmap, ptp), then writes the network configuration.
    /// Each file is replaced in one step, the configuration last. What is there already and equal is left alone.
    Install(InstallArgs),
}

#[derive(Debug, ClapArgs)]
pub(crate) struct TopologyArgs {
    /// A drawing instead of a table: `svg` for a browser, `dot` for Graphviz
    #[arg(long, value_name = "FORM")]
    pub(crate) draw: Option<Drawing>,
}

/// Forms of a drawing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Drawing {
    /// A picture.
    Svg,
    /// Graphviz' language.
    Dot,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct DrainArgs {
    /// Name of the node
    pub(crate) node: String,

    /// Why, for those who look later
    #[arg(long, value_name = "TEXT")]
    pub(crate) reason: Option<String>,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct UndrainArgs {
    /// Name of the node
    pub(crate) node: String,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct ReleaseArgs {
    /// Name of the node
    pub(crate) node: String,

    /// Other nodes may use its blocks at once: only if surely no pod of it is alive
    #[arg(long)]
    pub(crate) now: bool,

    /// Even if the node is alive; its running pods lose their network
    #[arg(long)]
    pub(crate) force: bool,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct InstallArgs {
    /// The plugin [default: podway, beside this program]
    #[arg(long, value_name = "FILE")]
    pub(crate) plugin: Option<PathBuf>,

    /// Folder for the plugin
    #[arg(long, value_name = "DIR", default_value = "/opt/cni/bin")]
    pub(crate) bin_dir: PathBuf,

    /// Folder for the network configuration
    #[arg(long, value_name = "DIR", default_value = "/etc/cni/net.d")]
    pub(crate) conf_dir: PathBuf,

    /// Also take away what flannel left on this node: its devices (flannel.1, flannel-v6.1, cni0), its routes to other
    /// nodes, and its network configuration, which is kept under another name. Refused while pods are on cni0: drain the
    /// node and end flannel's daemon first
    #[arg(long)]
    pub(crate) replace_flannel: bool,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    /// Every help text, one after the other.
    fn helps(command: &mut clap::Command, path: &str, text: &mut String) {
        *text += &format!("$ {path} --help\n{}\n", command.render_long_help());
        for sub in command.get_subcommands_mut().filter(|sub| sub.get_name() != "help") {
            let path = format!("{path} {}", sub.get_name());
            helps(sub, &path, text);
        }
    }

    #[test]
    fn help_texts() {
        let mut command = Args::command().version("VERSION").term_width(100);
        command.build();
        let mut text = String::new();
        helps(&mut command, "podwayctl", &mut text);
        insta::assert_snapshot!(text);
    }

    #[test]
    fn what_does_not_fit_together_is_refused() {
        for line in [
            "",
            "apply",
            "get",
            "get pools --output xml",
            "get secrets",
            "delete",
            "delete pod",
            "delete -f x pod a",
            "status --node --all",
            "bgp",
            "policy",
            "ipam",
            "ipam release",
            "ipam release banana",
            "policy trace x/a x/b",
            "node release",
            "version extra",
            "--etcd-prefix /x/ version",
        ] {
            let args = ["podwayctl"].into_iter().chain(line.split_whitespace());
            assert!(Args::try_parse_from(args).is_err(), "{line}");
        }
    }
}
