//! Fuzz targets: one function for each reader that bytes from outside reach, and one for each core that takes events.
//!
//! | module | what |
//! |---|---|
//! | [`bgp`] | BGP messages: framing, OPEN, UPDATE, NOTIFICATION, ROUTE-REFRESH |
//! | [`speaker`] | sequences of events for a BGP speaker |
//! | [`contracts`] | store keys and values, node file, endpoint records, socket messages, names |
//! | [`documents`] | operator documents, node configuration, label selectors |
//! | [`cni`] | the plugin's standard input and environment |
//! | [`flannel`] | flannel's keys and values in etcd |
//! | [`leases`] | the lease journal, and sequences of leases |
//! | [`netlink`] | what the kernel sends: nftables, routes and links, connection tracking |
//! | [`policy`] | sequences of objects for the policy engine |
//! | [`seeds`] | inputs to begin with, made by our own encoders |
//! | [`mutate`] | reproducible changes to inputs, for runs without coverage |
//!
//! A target takes any bytes and panics only where it found a mistake: in the reader, or in a property that must hold,
//! such as that what was read can be written and read again. Not here: who chooses the bytes. `tests/corpora.rs` does
//! (corpus, regressions, reproducible mutations, in every run of the tests), and `cargo xtask fuzz` (libFuzzer).

pub mod bgp;
pub mod cni;
pub mod contracts;
pub mod documents;
pub mod flannel;
pub mod leases;
pub mod mutate;
pub mod netlink;
pub mod policy;
pub mod seeds;
pub mod speaker;

/// A target: its name, which is also that of its corpus, and what takes the bytes.
pub type Target = (&'static str, fn(&[u8]));

/// All targets.
pub const TARGETS: &[Target] = &[
    ("bgp_framing", bgp::framing),
    ("bgp_notification", bgp::notification),
    ("bgp_open", bgp::open),
    ("bgp_refresh", bgp::refresh),
    ("bgp_speaker", speaker::speaker),
    ("bgp_station", speaker::station),
    ("bgp_update", bgp::update),
    ("cni_config", cni::config),
    ("cni_environment", cni::environment),
    ("documents", documents::documents),
    ("endpoint_record", contracts::endpoint_record),
    ("flannel", flannel::flannel),
    ("kern_conntrack", netlink::conntrack),
    ("kern_refusals", netlink::refusals),
    ("kern_rtnetlink", netlink::rtnetlink),
    ("lease_journal", leases::journal),
    ("lease_ledger", leases::ledger),
    ("names", contracts::names),
    ("nft_dump", netlink::nft_dump),
    ("nft_sets", netlink::nft_sets),
    ("node_config", documents::node_config),
    ("node_file", contracts::node_file),
    ("policy_engine", policy::engine),
    ("policy_objects", policy::objects),
    ("selectors", documents::selectors),
    ("socket_framing", contracts::socket_framing),
    ("socket_messages", contracts::socket_messages),
    ("store_keys", contracts::store_keys),
    ("store_values", contracts::store_values),
];

/// The longest input that is tried; a BGP message is as long.
pub const MAX_INPUT: usize = 4096;

/// The target of a name.
pub fn target(name: &str) -> Option<fn(&[u8])> {
    TARGETS.iter().find(|(known, _)| *known == name).map(|(_, run)| *run)
}
