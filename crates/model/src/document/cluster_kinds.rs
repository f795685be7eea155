//! Our own kinds: `ClusterConfig`, `Pool`, `BGPPeer`, `BGPFilter`, `Reflector`. Unknown keys are refused everywhere.

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;

use ipnet::IpNet;

use super::reader::{Field, Map};
use super::{CLUSTER_CONFIG_NAME, Document, Kind, bgp_kinds, labels};
use crate::cluster::{
    Assignment, Backend, BgpConfig, BgpPeer, ClusterConfig, Compat, Encapsulation, FlannelCompat, Inventory,
    IpipConfig, IpipMode, MasqueradeConfig, PolicyConfig, PolicyMode, PolicyTimeout, Pool, Reflector,
    SourceAddress, Switch, Topology, VxlanConfig, WireguardConfig,
};
use crate::flannel::Prefix;
use crate::ids::{Asn, Mtu, NodeName, Vni};
use crate::k8s::LabelSelector;

const OBJECT_NAME: &str = "a name (lower-case letters, digits, '-' and '.', at most 253 characters)";
const PORT: &str = "a port from 1 to 65535";
const ASN: &str = "an AS number (1 to 4294967294, not 23456)";

/// Reads an object of one of our kinds, whose `apiVersion` and `kind` were read already.
pub(super) fn read(kind: Kind, map: &Map<'_>) -> Option<Document> {
    let name = map.required("metadata", "a mapping with a name").and_then(|f| {
        let metadata = f.map("a mapping with a name")?;
        let name = metadata.required("name", OBJECT_NAME);
        metadata.refuse_unknown();
        name
    });
    let name = name.as_ref();
    let document = match kind {
        Kind::ClusterConfig => {
            let named = name.and_then(|f| f.one_of(&[(CLUSTER_CONFIG_NAME, ())]));
            let spec = map.or("spec", ClusterConfig::default(), cluster_config);
            named.and(spec).map(Document::ClusterConfig)
        }
        Kind::Pool => {
            let name = name.and_then(|f| f.parse(OBJECT_NAME));
            let spec = map.required("spec", "a mapping with a cidr").and_then(|f| pool(&f));
            name.zip(spec).map(|(name, spec)| Document::Pool { name, spec })
        }
        Kind::BgpPeer => {
            let name = name.and_then(|f| f.parse(OBJECT_NAME));
            let spec = map.required("spec", "a mapping with an address and an asn").and_then(|f| peer(&f));
            name.zip(spec).map(|(name, spec)| Document::BgpPeer { name, spec })
        }
        Kind::Reflector => {
            let node = name.and_then(|f| f.parse("the name of a node"));
            let spec = map.or("spec", Reflector::default(), reflector);
            node.zip(spec).map(|(node, spec)| Document::Reflector { node, spec })
        }
        Kind::BgpFilter => {
            let name = name.and_then(|f| f.parse(OBJECT_NAME));
            let spec =
                map.required("spec", "a filter (rules, otherwise)").and_then(|f| bgp_kinds::filter(&f));
            name.zip(spec).map(|(name, spec)| Document::BgpFilter { name, spec })
        }
        Kind::Namespace | Kind::Pod | Kind::NetworkPolicy => None,
    };
    map.refuse_unknown();
    document
}

fn cluster_config(field: &Field<'_>) -> Option<ClusterConfig> {
    let map = field.map("the cluster's settings")?;
    let backend = map.or("backend", Backend::default(), |f| {
        f.one_of(&[
            ("host-gw", Backend::HostGw),
            ("vxlan", Backend::Vxlan),
            ("ipip", Backend::Ipip),
            ("wireguard", Backend::Wireguard),
            ("bgp", Backend::Bgp),
        ])
    });
    let underlay_mtu = map.maybe("underlayMtu", |f| {
        let expected = "an MTU (1280 to 65535 bytes)";
        number(f, expected, |n: u32| Mtu::try_from(n).ok())
    });
    let vxlan = map.or("vxlan", VxlanConfig::default(), vxlan);
    let ipip = map.or("ipip", IpipConfig::default(), ipip);
    let wireguard = map.or("wireguard", WireguardConfig::default(), wireguard);
    let bgp = map.or("bgp", BgpConfig::default(), bgp);
    let masquerade = map.or("masquerade", MasqueradeConfig::default(), masquerade);
    let forward_rules = map.or("forwardRules", Switch::default(), |f| f.boolean().map(Switch));
    let policy = map.or("policy", PolicyConfig::default(), policy);
    let inventory = map.maybe("inventory", inventory);
    let compat = map.or("compat", Compat::default(), compat);
    if compat.as_ref().is_some_and(|compat| compat.flannel.is_some())
        && backend.is_some_and(|backend| !matches!(backend, Backend::HostGw | Backend::Vxlan))
        && let Some(field) = map.optional("backend")
    {
        field.wrong("vxlan or host-gw, which are the backends that flannel's nodes are talked with (compat)");
    }
    map.refuse_unknown();
    Some(ClusterConfig {
        backend: backend?,
        underlay_mtu: underlay_mtu?,
        vxlan: vxlan?,
        ipip: ipip?,
        wireguard: wireguard?,
        bgp: bgp?,
        masquerade: masquerade?,
        forward_rules: forward_rules?,
        policy: policy?,
        inventory: inventory?,
        compat: compat?,
    })
}

/// A word, or a mapping where the defaults are not what is wanted.
fn compat(field: &Field<'_>) -> Option<Compat> {
    let expected = "flannel, or a mapping with settings of it";
    if field.as_text().is_some() {
        let flannel = Some(FlannelCompat::default());
        return field.one_of(&[("flannel", ())]).map(|()| Compat { flannel });
    }
    let map = field.map(expected)?;
    let flannel = map.maybe("flannel", |f| {
        let map = f.map("settings of the talk with flannel's nodes")?;
        let prefix = map.or("prefix", Prefix::default(), |f| f.parse(Prefix::EXPECTED));
        map.refuse_unknown();
        Some(FlannelCompat { prefix: prefix? })
    });
    map.refuse_unknown();
    Some(Compat { flannel: flannel? })
}

fn inventory(field: &Field<'_>) -> Option<Inventory> {
    let map = field.map("the nodes that there are")?;
    let expected = "a list of at least one node";
    let nodes = map.required("nodes", expected).and_then(|f| {
        let names = f.list(expected, |f| f.parse::<NodeName>("the name of a node"))?;
        if names.is_empty() {
            f.wrong(expected);
        }
        (!names.is_empty()).then(|| names.into_iter().collect())
    });
    let grace_seconds = map.or("graceSeconds", Inventory::GRACE_SECONDS, |f| {
        number(f, "60 seconds or more", |n: u32| (n >= 60).then_some(n))
    });
    map.refuse_unknown();
    Some(Inventory { nodes: nodes?, grace_seconds: grace_seconds? })
}

fn vxlan(field: &Field<'_>) -> Option<VxlanConfig> {
    let default = VxlanConfig::default();
    let map = field.map("VXLAN settings")?;
    let vni = map.or("vni", default.vni, |f| {
        number(f, "a VXLAN network identifier (1 to 16777215)", |n: u32| Vni::try_from(n).ok())
    });
    let port = map.or("port", default.port, port);
    let direct_routing = map.or("directRouting", default.direct_routing, Field::boolean);
    map.refuse_unknown();
    Some(VxlanConfig { vni: vni?, port: port?, direct_routing: direct_routing? })
}

fn ipip(field: &Field<'_>) -> Option<IpipConfig> {
    let map = field.map("IPIP settings")?;
    let mode = map.or("mode", IpipMode::default(), |f| {
        f.one_of(&[("always", IpipMode::Always), ("crossSubnet", IpipMode::CrossSubnet)])
    });
    map.refuse_unknown();
    Some(IpipConfig { mode: mode? })
}

fn wireguard(field: &Field<'_>) -> Option<WireguardConfig> {
    let default = WireguardConfig::default();
    let map = field.map("WireGuard settings")?;
    let port = map.or("port", default.port, port);
    let keepalive_seconds = map
        .or("keepaliveSeconds", default.keepalive_seconds, |f| number(f, "0 (none) to 65535 seconds", Some));
    map.refuse_unknown();
    Some(WireguardConfig { port: port?, keepalive_seconds: keepalive_seconds? })
}

fn bgp(field: &Field<'_>) -> Option<BgpConfig> {
    let default = BgpConfig::default();
    let map = field.map("BGP settings")?;
    let asn = map.or("asn", default.asn, asn);
    let topology = map.or("topology", default.topology, |f| {
        f.one_of(&[("mesh", Topology::Mesh), ("reflectors", Topology::Reflectors), ("auto", Topology::Auto)])
    });
    let mesh_up_to = map.or("meshUpTo", default.mesh_up_to, |f| {
        // Three reflectors and somebody to reflect to.
        number(f, "4 to 1000 nodes", |n: u32| (4..=1000).contains(&n).then_some(n))
    });
    let port = map.or("port", default.port, port);
    let hold_time_seconds = map.or("holdTimeSeconds", default.hold_time_seconds, |f| {
        // RFC 4271 section 4.2: zero, or at least three seconds.
        number(f, "0 (never), or 3 to 65535 seconds", |n: u16| (n == 0 || n >= 3).then_some(n))
    });
    let restart_time_seconds = map.or("restartTimeSeconds", default.restart_time_seconds, |f| {
        // RFC 4724 section 3: 12 bits.
        number(f, "0 (off) to 4095 seconds", |n: u16| (n <= 4095).then_some(n))
    });
    let password_file = map.maybe("passwordFile", absolute_path);
    let dscp = map.maybe("dscp", dscp);
    let bfd = map.maybe("bfd", bgp_kinds::node_bfd);
    let bmp = map.or("bmp", default.bmp, super::bmp_kinds::stations);
    let announce = map.or("announce", default.announce, bgp_kinds::announced);
    let communities = map.or("communities", default.communities, bgp_kinds::communities);
    let node_asns = map.or("nodeAsns", default.node_asns, bgp_kinds::node_asns);
    map.refuse_unknown();
    Some(BgpConfig {
        asn: asn?,
        topology: topology?,
        mesh_up_to: mesh_up_to?,
        port: port?,
        hold_time_seconds: hold_time_seconds?,
        restart_time_seconds: restart_time_seconds?,
        password_file: password_file?,
        dscp: dscp?,
        bfd: bfd?,
        bmp: bmp?,
        announce: announce?,
        communities: communities?,
        node_asns: node_asns?,
    })
}

fn masquerade(field: &Field<'_>) -> Option<MasqueradeConfig> {
    let default = MasqueradeConfig::default();
    let map = field.map("masquerade settings")?;
    let enabled = map.or("enabled", default.enabled, Field::boolean);
    let exclude = map.or("exclude", default.exclude, |f| f.list("a list of prefixes", prefix));
    map.refuse_unknown();
    Some(MasqueradeConfig { enabled: enabled?, exclude: exclude? })
}

fn policy(field: &Field<'_>) -> Option<PolicyConfig> {
    let default = PolicyConfig::default();
    let map = field.map("NetworkPolicy settings")?;
    let mode = map.or("mode", default.mode, |f| {
        f.one_of(&[("required", PolicyMode::Required), ("none", PolicyMode::None)])
    });
    let on_timeout = map.or("onTimeout", default.on_timeout, |f| {
        f.one_of(&[("undo", PolicyTimeout::Undo), ("closed", PolicyTimeout::Closed)])
    });
    map.refuse_unknown();
    Some(PolicyConfig { mode: mode?, on_timeout: on_timeout? })
}

fn pool(field: &Field<'_>) -> Option<Pool> {
    let map = field.map("a pool")?;
    let cidr_field = map.required("cidr", "an IPv4 or IPv6 prefix (10.244.0.0/16)");
    let cidr = cidr_field.as_ref().and_then(prefix).and_then(|cidr| {
        let reason = unusable(&cidr);
        if let (Some(reason), Some(field)) = (reason, &cidr_field) {
            field.wrong(format!("a prefix for pods ({reason})"));
        }
        reason.is_none().then_some(cidr)
    });
    let block_size = map.maybe("blockSize", |f| match cidr {
        Some(IpNet::V4(_)) => f.integer_in(20..=32, "a prefix length from 20 to 32"),
        Some(IpNet::V6(_)) => f.integer_in(116..=128, "a prefix length from 116 to 128"),
        None => f.integer_in(20..=128, "a prefix length (IPv4: 20 to 32, IPv6: 116 to 128)"),
    });
    let node_selector = map.or("nodeSelector", LabelSelector::default(), labels::selector);
    let namespace_selector = map.maybe("namespaceSelector", labels::selector);
    let nat = map.or("nat", true, Field::boolean);
    let assignment = map.or("assignment", Assignment::default(), |f| {
        f.one_of(&[("automatic", Assignment::Automatic), ("manual", Assignment::Manual)])
    });
    let encapsulation = map.maybe("encapsulation", |f| {
        let chosen = f.one_of(&Encapsulation::ALL)?;
        if let Some(cidr) = cidr.filter(|cidr| !chosen.carries(cidr)) {
            f.wrong(format!(
                "none, vxlan, vxlanCrossSubnet or wireguard for {cidr} (IPIP carries IPv4 only)"
            ));
            return None;
        }
        Some(chosen)
    });
    let disabled = map.or("disabled", false, Field::boolean);
    map.refuse_unknown();
    let pool = Pool {
        cidr: cidr?,
        block_size: block_size?.and_then(|n| u8::try_from(n).ok()),
        node_selector: node_selector?,
        namespace_selector: namespace_selector?,
        nat: nat?,
        assignment: assignment?,
        encapsulation: encapsulation?,
        disabled: disabled?,
    };
    if pool.block_len() < pool.cidr.prefix_len() {
        let expected = format!(
            "{} to {} (a block is no larger than its pool {})",
            pool.cidr.prefix_len(),
            pool.cidr.max_prefix_len(),
            pool.cidr
        );
        let default = if pool.block_size.is_none() { " (the default)" } else { "" };
        map.optional("blockSize")
            .or(cidr_field)?
            .note(format!("blockSize {}{default}", pool.block_len()), expected);
        return None;
    }
    Some(pool)
}

/// Why no pod can have an address of this prefix.
fn unusable(cidr: &IpNet) -> Option<&'static str> {
    let overlaps =
        |text: &str| text.parse::<IpNet>().is_ok_and(|other| other.contains(cidr) || cidr.contains(&other));
    [
        ("127.0.0.0/8", "127.0.0.0/8 is loopback"),
        ("169.254.0.0/16", "169.254.0.0/16 is link-local and holds the pods' gateway"),
        ("224.0.0.0/4", "224.0.0.0/4 is multicast"),
        ("240.0.0.0/4", "240.0.0.0/4 is reserved"),
        ("0.0.0.0/8", "0.0.0.0/8 is no destination"),
        ("::/96", "::/96 holds loopback and the unspecified address"),
        ("::ffff:0.0.0.0/96", "::ffff:0:0/96 is IPv4 in disguise"),
        ("fe80::/10", "fe80::/10 is link-local and holds the pods' gateway"),
        ("ff00::/8", "ff00::/8 is multicast"),
    ]
    .into_iter()
    .find_map(|(prefix, reason)| overlaps(prefix).then_some(reason))
}

fn peer(field: &Field<'_>) -> Option<BgpPeer> {
    let map = field.map("a BGP peer")?;
    let node_selector = map.or("nodeSelector", LabelSelector::default(), labels::selector);
    let address = map.required("address", "an IPv4 or IPv6 address").and_then(|f| {
        let address: IpAddr = f.parse("an IPv4 or IPv6 address")?;
        let usable = !(address.is_unspecified() || address.is_multicast());
        if !usable {
            f.wrong("the unicast address of a router");
        }
        usable.then_some(address)
    });
    let port = map.or("port", 179, port);
    let asn = map.required("asn", ASN).and_then(|f| asn(&f));
    let (import, export) = bgp_kinds::directions(&map);
    let source_address = map.or("sourceAddress", SourceAddress::default(), |f| {
        f.one_of(&[("node", SourceAddress::Node), ("any", SourceAddress::Any)])
    });
    let passive = map.or("passive", false, Field::boolean);
    let password_file = map.maybe("passwordFile", absolute_path);
    let ttl_security = map.maybe("ttlSecurity", |f| number(f, "1 to 255 hops", |n: u8| (n > 0).then_some(n)));
    let dscp = map.maybe("dscp", dscp);
    let options = bgp_kinds::peer_options(&map);
    map.refuse_unknown();
    Some(BgpPeer {
        node_selector: node_selector?,
        address: address?,
        port: port?,
        asn: asn?,
        import: import?,
        export: export?,
        source_address: source_address?,
        passive: passive?,
        password_file: password_file?,
        ttl_security: ttl_security?,
        dscp: dscp?,
        options: options?,
    })
}

fn dscp(field: &Field<'_>) -> Option<u8> {
    number(field, "a code point from 0 to 63", |n: u8| (n <= 63).then_some(n))
}

/// A path that means the same whatever folder a daemon runs in.
fn absolute_path(field: &Field<'_>) -> Option<PathBuf> {
    let expected = "an absolute path (/etc/podway/bgp.key)";
    let path: PathBuf = field.parse(expected)?;
    if !path.is_absolute() {
        field.wrong(expected);
    }
    path.is_absolute().then_some(path)
}

fn reflector(field: &Field<'_>) -> Option<Reflector> {
    let map = field.map("a reflector role")?;
    let cluster_id = map.maybe("clusterId", |f| {
        let expected = "a cluster id, written as an IPv4 address other than 0.0.0.0";
        let id: Ipv4Addr = f.parse(expected)?;
        if id.is_unspecified() {
            f.wrong(expected);
        }
        (!id.is_unspecified()).then_some(id)
    });
    map.refuse_unknown();
    Some(Reflector { cluster_id: cluster_id? })
}

/// A prefix whose host bits are zero.
pub(super) fn prefix(field: &Field<'_>) -> Option<IpNet> {
    let net: IpNet = field.parse("an IPv4 or IPv6 prefix (10.244.0.0/16)")?;
    if net.trunc() != net {
        field.wrong(format!("a prefix whose host bits are zero ({})", net.trunc()));
        return None;
    }
    Some(net)
}

/// An AS number.
pub(super) fn asn(field: &Field<'_>) -> Option<Asn> {
    number(field, ASN, |n: u32| Asn::try_from(n).ok())
}

fn port(field: &Field<'_>) -> Option<u16> {
    number(field, PORT, |n: u16| (n != 0).then_some(n))
}

/// A whole number that `check` accepts.
pub(super) fn number<N: TryFrom<i128>, T>(
    field: &Field<'_>,
    expected: &str,
    check: impl FnOnce(N) -> Option<T>,
) -> Option<T> {
    let value = check(field.integer(expected)?);
    if value.is_none() {
        field.wrong(expected);
    }
    value
}
