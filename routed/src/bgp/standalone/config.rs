//! The configuration of a speaker that runs alone: a YAML file, read whole, with every mistake in it reported at once
//! where the syntax allows.
//!
//! Options stand in named groups; a neighbour or range names its group, and may say some of the same itself: what it
//! says counts. Filters and sets of communities have names too, and a name that does not exist is a mistake.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use podway_bgp::config::{
    AddPath, AsRange, Bfd, Claims, ConnectMode, Export, GracefulRestart, Import, LocalAs, MaxPrefixes, Med,
    Multipath, Neighbour, NeighbourOptions, NextHop, Range, Relation, Role, SecondRestart, SpeakerConfig,
    SpeakerOptions, Standing, Transport,
};
use podway_bgp::types::{Families, Family};
use podway_model::config::LogConfig;
use podway_model::ids::Asn;
use podway_model::mistakes::Mistakes;
use serde::Deserialize;

use super::filters::{FilterFile, Named};
use super::stations::{self, StationFile};
use crate::bgp::desired::Desired;
use crate::bgp::transport::read_key;

/// What the file says.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct File {
    asn: u32,
    router_id: Ipv4Addr,
    cluster_id: Option<Ipv4Addr>,
    listen: Vec<SocketAddr>,
    socket: Option<PathBuf>,
    log: Option<String>,
    #[serde(default = "hold_time")]
    hold_time: u64,
    graceful_restart: Option<Restart>,
    #[serde(default)]
    maintenance: bool,
    multipath: Option<MultipathFile>,
    #[serde(default)]
    always_compare_med: bool,
    #[serde(default)]
    missing_med_is_worst: bool,
    own_addresses: Option<BTreeSet<IpAddr>>,
    #[serde(default)]
    bmp: Vec<StationFile>,
    #[serde(default)]
    originate: Vec<Originate>,
    #[serde(default)]
    communities: BTreeMap<String, Vec<String>>,
    #[serde(default)]
    filters: BTreeMap<String, FilterFile>,
    #[serde(default)]
    groups: BTreeMap<String, Options>,
    #[serde(default)]
    neighbours: Vec<NeighbourFile>,
    #[serde(default)]
    ranges: Vec<RangeFile>,
}

fn hold_time() -> u64 {
    90
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Restart {
    #[serde(default = "restart_time")]
    restart_time: u64,
    stale_time: Option<u64>,
    #[serde(default = "deferral_time")]
    deferral_time: u64,
    #[serde(default)]
    notifications: bool,
    peers_file: Option<PathBuf>,
}

fn restart_time() -> u64 {
    120
}

fn deferral_time() -> u64 {
    30
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct MultipathFile {
    limit: usize,
    #[serde(default)]
    relax: bool,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Originate {
    prefix: IpNet,
    next_hop: IpAddr,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct NeighbourFile {
    address: IpAddr,
    name: Option<String>,
    group: Option<String>,
    #[serde(default)]
    options: Options,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct RangeFile {
    prefix: IpNet,
    name: Option<String>,
    group: Option<String>,
    first_as: Option<u32>,
    last_as: Option<u32>,
    limit: usize,
    #[serde(default)]
    options: Options,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "camelCase")]
enum RoleFile {
    Internal,
    Client,
    Reflector,
    External,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "camelCase")]
enum FamilyFile {
    Ipv4,
    Ipv6,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "camelCase")]
enum NextHopFile {
    Auto,
    Own,
    Keep,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "camelCase")]
enum RelationFile {
    Provider,
    RouteServer,
    RouteServerClient,
    Customer,
    Peer,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct MaximumFile {
    limit: u32,
    #[serde(default)]
    warn_percent: u8,
    restart_seconds: Option<u64>,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct BfdFile {
    interval_ms: u64,
    multiplier: u8,
    #[serde(default)]
    multihop: bool,
}

/// Declares the options once: the fields of the file, and that a neighbour's own count before its group's.
macro_rules! options {
    ($($field:ident: $kind:ty),* $(,)?) => {
        #[derive(Debug, Clone, Default, Deserialize)]
        #[serde(rename_all = "camelCase", deny_unknown_fields, default)]
        struct Options { $($field: Option<$kind>),* }

        impl Options {
            /// These, and where they say nothing, those of the group.
            fn over(self, group: Self) -> Self {
                Self { $($field: self.$field.or(group.$field)),* }
            }
        }
    };
}

options! {
    asn: u32,
    role: RoleFile,
    passive: bool,
    port: u16,
    local_address: IpAddr,
    families: Vec<FamilyFile>,
    hold_time: u64,
    send_hold: u64,
    extended_messages: bool,
    enhanced_refresh: bool,
    extended_next_hop: bool,
    add_path_receive: bool,
    add_path_send: usize,
    relation: RelationFile,
    relation_strict: bool,
    long_lived: u64,
    max_prefixes_ipv4: MaximumFile,
    max_prefixes_ipv6: MaximumFile,
    next_hop: NextHopFile,
    allow_own_as: usize,
    local_as: u32,
    local_as_alone: bool,
    as_override: bool,
    remove_private: bool,
    enforce_first_as: bool,
    route_server_client: bool,
    default_originate: Vec<FamilyFile>,
    import: String,
    export: String,
    shutdown: String,
    maintenance: bool,
    bfd: BfdFile,
    md5_file: PathBuf,
    ttl_security: u8,
    dscp: u8,
}

/// What a speaker alone runs with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Standalone {
    /// Speaker and listeners.
    pub(crate) desired: Desired,
    /// The API socket.
    pub(crate) socket: Option<PathBuf>,
    /// Who was up, for a graceful restart.
    pub(crate) restart_file: Option<PathBuf>,
    /// Log level.
    pub(crate) log: LogConfig,
}

/// Reads a configuration.
///
/// # Errors
/// Every mistake, with field and value.
pub(crate) fn parse(source: &str, text: &str) -> Result<Standalone, Mistakes> {
    let mut mistakes = Mistakes::default();
    let mut file: File = match serde_saphyr::from_str(text) {
        Ok(file) => file,
        Err(error) => {
            let message = error.without_snippet().to_string();
            let message = message.split_whitespace().collect::<Vec<_>>().join(" ");
            mistakes.add(source, "", message, "the configuration of a speaker");
            return Err(mistakes);
        }
    };
    let mut reader = Reader { source, mistakes, named: Named::default() };
    reader.named =
        Named::read(source, &file.communities, std::mem::take(&mut file.filters), &mut reader.mistakes);
    let listen: BTreeSet<SocketAddr> = file.listen.iter().copied().collect();
    let own = file.own_addresses.clone().unwrap_or_else(|| listen.iter().map(SocketAddr::ip).collect());
    let config = reader.speaker(&file, own);
    reader.peerless(&file, &config);
    for mistake in config.mistakes() {
        reader.mistakes.add(source, "", mistake, "a configuration that can work");
    }
    let mut log = LogConfig::default();
    if let Some(level) = file.log {
        log.level = level;
    }
    let stations = stations::read(source, &file.bmp, &mut reader.mistakes);
    let desired = Desired {
        config,
        claims: Claims::new(),
        listen,
        problems: vec![],
        unfollowed: BTreeSet::new(),
        alone: true,
        stations,
    };
    let restart_file = file.graceful_restart.and_then(|restart| restart.peers_file);
    reader.mistakes.into_result(Standalone { desired, socket: file.socket, restart_file, log })
}

struct Reader<'a> {
    source: &'a str,
    mistakes: Mistakes,
    named: Named,
}

impl Reader<'_> {
    fn asn(&mut self, field: &str, number: u32) -> Asn {
        Asn::try_from(number).unwrap_or_else(|_| {
            self.mistakes.add(self.source, field, number, "an AS number from 1 to 4294967294");
            Asn::try_from(64512).expect("64512 is an AS number")
        })
    }

    /// A speaker without anybody to speak to, and a reflector without anybody to reflect to.
    fn peerless(&mut self, file: &File, config: &SpeakerConfig) {
        if file.neighbours.is_empty() && file.ranges.is_empty() {
            self.mistakes.add(self.source, "neighbours", "nothing", "at least one neighbour or range");
        } else if let Some(id) = file.cluster_id {
            let templates = config.options.ranges.iter().map(|range| &range.template);
            if !config.neighbours.values().chain(templates).any(|neighbour| neighbour.role == Role::Client) {
                self.mistakes.add(
                    self.source,
                    "clusterId",
                    id,
                    "a neighbour or range with role client beside it",
                );
            }
        }
    }

    fn speaker(&mut self, file: &File, own_addresses: BTreeSet<IpAddr>) -> SpeakerConfig {
        let asn = self.asn("asn", file.asn);
        let seconds = Duration::from_secs;
        let mut neighbours = BTreeMap::new();
        for (at, one) in file.neighbours.iter().enumerate() {
            let field = format!("neighbours[{at}]");
            let options = self.merged(&field, one.options.clone(), one.group.as_deref(), &file.groups);
            let name = one.name.clone().unwrap_or_else(|| one.address.to_string());
            let neighbour = self.neighbour(&field, name, asn, options);
            if neighbours.insert(one.address, neighbour).is_some() {
                let field = format!("{field}.address");
                self.mistakes.add(self.source, field, one.address, "an address that stands there once");
            }
        }
        let mut ranges = vec![];
        for (at, one) in file.ranges.iter().enumerate() {
            let field = format!("ranges[{at}]");
            let options = self.merged(&field, one.options.clone(), one.group.as_deref(), &file.groups);
            let name = one.name.clone().unwrap_or_else(|| one.prefix.to_string());
            let template = self.neighbour(&field, name, asn, options);
            let asns = one.first_as.zip(one.last_as).map(|(first, last)| AsRange { first, last });
            if one.first_as.is_some() != one.last_as.is_some() || asns.is_some_and(|r| r.first > r.last) {
                let found = format!("{:?} to {:?}", one.first_as, one.last_as);
                self.mistakes.add(self.source, format!("{field}.firstAs"), found, "firstAs up to lastAs");
            }
            ranges.push(Range { prefix: one.prefix.trunc(), template, asns, limit: one.limit });
        }
        SpeakerConfig {
            asn,
            router_id: file.router_id,
            cluster_id: file.cluster_id,
            hold_time: seconds(file.hold_time),
            graceful_restart: file.graceful_restart.as_ref().map(|restart| GracefulRestart {
                restart_time: seconds(restart.restart_time),
                stale_time: seconds(restart.stale_time.unwrap_or(360)),
                deferral_time: seconds(restart.deferral_time),
                second_restart: SecondRestart::Keep,
                notifications: restart.notifications,
            }),
            neighbours,
            originated: file.originate.iter().map(|one| (one.prefix.trunc(), one.next_hop)).collect(),
            own_addresses,
            options: SpeakerOptions {
                circles: vec![],
                ranges,
                multipath: file
                    .multipath
                    .as_ref()
                    .map_or(Multipath::default(), |m| Multipath { limit: m.limit, relax: m.relax }),
                med: Med { always: file.always_compare_med, missing_is_worst: file.missing_med_is_worst },
                maintenance: file.maintenance,
                claimed_only: BTreeSet::new(),
            },
        }
    }

    fn merged(
        &mut self,
        field: &str,
        own: Options,
        group: Option<&str>,
        groups: &BTreeMap<String, Options>,
    ) -> Options {
        let Some(name) = group else { return own };
        match groups.get(name) {
            Some(group) => own.over(group.clone()),
            None => {
                let known: Vec<&str> = groups.keys().map(String::as_str).collect();
                let expected = format!("one of the groups ({})", known.join(", "));
                self.mistakes.add(self.source, format!("{field}.group"), name, expected);
                own
            }
        }
    }

    fn neighbour(&mut self, field: &str, name: String, own: Asn, options: Options) -> Neighbour {
        let asn = options.asn.map_or(own, |asn| self.asn(&format!("{field}.asn"), asn));
        let role = match options.role {
            Some(RoleFile::Internal) => Role::Mesh,
            Some(RoleFile::Client) => Role::Client,
            Some(RoleFile::Reflector) => Role::Reflector,
            Some(RoleFile::External) => Role::External,
            None if asn == own => Role::Mesh,
            None => Role::External,
        };
        let external = role == Role::External;
        let (import, export) = (options.import.as_deref(), options.export.as_deref());
        let connect = if options.passive.unwrap_or(false) { ConnectMode::Passive } else { ConnectMode::Both };
        let families = options.families.as_deref().map_or(Families::BOTH, families);
        Neighbour {
            name,
            asn,
            role,
            connect,
            port: options.port.unwrap_or(179),
            local_address: options.local_address,
            families,
            // RFC 8212: across the border nothing passes without a filter.
            import: if external && import.is_none() { Import::None } else { Import::All },
            export: if external && export.is_none() { Export::None } else { Export::All },
            options: self.options(field, &options),
        }
    }

    fn options(&mut self, field: &str, options: &Options) -> NeighbourOptions {
        let base = NeighbourOptions::default();
        let seconds = |time: Option<u64>| time.map(Duration::from_secs);
        let maximum = |max: &MaximumFile| MaxPrefixes {
            limit: max.limit,
            warn_percent: max.warn_percent,
            restart: max.restart_seconds.map(Duration::from_secs),
        };
        let max = [(Family::Ipv4, &options.max_prefixes_ipv4), (Family::Ipv6, &options.max_prefixes_ipv6)];
        let max_prefixes = max.into_iter().filter_map(|(f, max)| Some((f, maximum(max.as_ref()?)))).collect();
        let local_as = options.local_as.map(|asn| self.asn(&format!("{field}.localAs"), asn));
        if let Some(Err(error)) = options.md5_file.as_deref().map(read_key) {
            self.mistakes.add(
                self.source,
                format!("{field}.md5File"),
                error,
                "a file with a key of 1 to 80 octets",
            );
        }
        let mut filter = |name: &Option<String>, key: &str| {
            let name = name.as_deref()?;
            self.named.filter(self.source, &format!("{field}.{key}"), name, &mut self.mistakes).map(Arc::new)
        };
        NeighbourOptions {
            standing: Standing::Firm,
            import: filter(&options.import, "import"),
            export: filter(&options.export, "export"),
            hold_time: seconds(options.hold_time),
            send_hold: seconds(options.send_hold),
            extended_messages: options.extended_messages.unwrap_or(base.extended_messages),
            enhanced_refresh: options.enhanced_refresh.unwrap_or(base.enhanced_refresh),
            extended_next_hop: options.extended_next_hop.unwrap_or(base.extended_next_hop),
            add_path: AddPath {
                receive: options.add_path_receive.unwrap_or(false),
                send: options.add_path_send.unwrap_or(0),
            },
            relation: options.relation.map(|relation| match relation {
                RelationFile::Provider => Relation::Provider,
                RelationFile::RouteServer => Relation::RouteServer,
                RelationFile::RouteServerClient => Relation::RouteServerClient,
                RelationFile::Customer => Relation::Customer,
                RelationFile::Peer => Relation::Peer,
            }),
            relation_strict: options.relation_strict.unwrap_or(false),
            long_lived: seconds(options.long_lived),
            max_prefixes,
            next_hop: match options.next_hop {
                None | Some(NextHopFile::Auto) => NextHop::Auto,
                Some(NextHopFile::Own) => NextHop::Own,
                Some(NextHopFile::Keep) => NextHop::Keep,
            },
            allow_own_as: options.allow_own_as.unwrap_or(0),
            local_as: local_as.map(|asn| LocalAs { asn, alone: options.local_as_alone.unwrap_or(false) }),
            as_override: options.as_override.unwrap_or(false),
            remove_private: options.remove_private.unwrap_or(false),
            first_as: options.enforce_first_as.unwrap_or(true),
            route_server_client: options.route_server_client.unwrap_or(false),
            default_originate: options.default_originate.as_deref().map_or(Families::NONE, families),
            shutdown: options.shutdown.clone(),
            maintenance: options.maintenance.unwrap_or(false),
            notifications_restart: None,
            bfd: options.bfd.map(|bfd| Bfd {
                interval: Duration::from_millis(bfd.interval_ms),
                multiplier: bfd.multiplier,
                multihop: bfd.multihop,
            }),
            transport: Transport {
                md5_file: options.md5_file.clone(),
                ttl_security: options.ttl_security,
                dscp: options.dscp,
            },
        }
    }
}

fn families(all: &[FamilyFile]) -> Families {
    let family = |family: &FamilyFile| match family {
        FamilyFile::Ipv4 => Family::Ipv4,
        FamilyFile::Ipv6 => Family::Ipv6,
    };
    all.iter().map(family).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "
asn: 64512
routerId: 10.0.0.100
listen: ['10.0.0.100:1790', '[fd00::100]:1790']
socket: /run/podway/speaker.sock
gracefulRestart: {restartTime: 60, notifications: true}
multipath: {limit: 4}
originate:
  - {prefix: 10.244.0.0/24, nextHop: 10.0.0.100}
communities:
  blue: ['64512:7', '64512:0:9', no-export]
filters:
  accept-all: {otherwise: accept}
  pods:
    rules:
      - match:
          - prefix: [{within: 10.244.0.0/16, longest: 26}]
          - not: {community: [blue]}
        set:
          - localPref: 200
          - addCommunity: '64512:1'
        verdict: accept
    otherwise: reject
groups:
  nodes: {role: client, passive: true, families: [ipv4], holdTime: 30}
  tor: {asn: 65000, import: pods, export: accept-all, maxPrefixesIpv4: {limit: 100, warnPercent: 80}}
neighbours:
  - {address: 10.0.0.1, name: tor-a, group: tor}
  - {address: 10.0.0.2, group: tor, options: {asn: 65001, addPathSend: 2}}
ranges:
  - {prefix: 10.0.8.0/21, group: nodes, limit: 2000}
";

    #[test]
    fn a_file_becomes_a_configuration_that_works() {
        let read = parse("test.yaml", GOOD).unwrap();
        let config = &read.desired.config;
        assert_eq!(read.desired.listen.len(), 2);
        assert_eq!(config.own_addresses.len(), 2);
        let tor = &config.neighbours[&"10.0.0.1".parse::<IpAddr>().unwrap()];
        assert_eq!((tor.role, tor.asn.number(), tor.import), (Role::External, 65000, Import::All));
        assert_eq!(tor.options.max_prefixes[&Family::Ipv4].warn_percent, 80);
        assert_eq!(tor.options.import.as_ref().unwrap().rules[0].matches.len(), 2);
        let other = &config.neighbours[&"10.0.0.2".parse::<IpAddr>().unwrap()];
        assert_eq!((other.asn.number(), other.options.add_path.send), (65001, 2), "its own count first");
        let range = &config.options.ranges[0];
        assert_eq!((range.template.role, range.template.families), (Role::Client, Families::IPV4));
        assert_eq!(range.template.options.hold_time, Some(Duration::from_secs(30)));
        assert_eq!(config.mistakes(), []);
    }

    #[test]
    fn across_the_border_nothing_passes_without_a_filter() {
        let text = "{asn: 64512, routerId: 10.0.0.1, listen: [], neighbours: [{address: 10.0.0.2, options: {asn: 1}}]}";
        let read = parse("test.yaml", text).unwrap();
        let neighbour = read.desired.config.neighbours.values().next().unwrap();
        assert_eq!((neighbour.import, neighbour.export), (Import::None, Export::None));
    }

    #[test]
    fn mistakes_are_named_with_field_and_value_all_at_once() {
        let bad = GOOD
            .replace("asn: 64512", "asn: 0")
            .replace("group: nodes", "group: node")
            .replace("import: pods", "import: pod")
            .replace("community: [blue]", "community: [green]")
            .replace("holdTime: 30", "holdTime: 2")
            .replace("address: 10.0.0.2", "address: 10.0.0.1");
        let said = parse("test.yaml", &bad).unwrap_err().to_string();
        for part in [
            "asn",
            "ranges[0].group",
            "node",
            "neighbours[0].import",
            "pod",
            "filters.pods.rules[0].match",
            "green",
            "neighbours[1].address",
        ] {
            assert!(said.contains(part), "{part}: {said}");
        }
        let said =
            parse("test.yaml", &GOOD.replace("passive: true", "pasive: true")).unwrap_err().to_string();
        assert!(said.contains("pasive"), "unknown keys are mistakes: {said}");
        let lonely = "{asn: 64512, routerId: 10.0.0.1, listen: []}";
        let said = parse("test.yaml", lonely).unwrap_err().to_string();
        assert!(said.contains("neighbours: nothing found"), "{said}");
        let peerless = GOOD.replace("role: client, ", "").replace("socket:", "clusterId: 10.0.0.9\nsocket:");
        let said = parse("test.yaml", &peerless).unwrap_err().to_string();
        assert!(said.contains("clusterId: 10.0.0.9 found, a neighbour or range with role client"), "{said}");
        let said = parse("test.yaml", &GOOD.replace("holdTime: 30", "holdTime: 2")).unwrap_err().to_string();
        assert!(said.contains("hold time 2s"), "{said}");
    }
}
