//! Names and constants that two programs, or a program and the kernel, must agree on.

use std::net::{Ipv4Addr, Ipv6Addr};

use sha2::{Digest, Sha256};

use crate::ids::MacAddr;

/// CNI plugin type, and default network name.
pub const PLUGIN: &str = "podway";
/// Names of other plugins, by which the CNI plugin does their jobs: links to it, where no file of that name stands.
pub const OTHER_PLUGINS: [&str; 5] = ["bandwidth", "host-local", "loopback", "portmap", "ptp"];
/// CNI plugin type by which other plugins get addresses of ours.
pub const IPAM_PLUGIN: &str = "podway-ipam";
/// Default prefix of every key in etcd.
pub const ETCD_PREFIX: &str = "/podway/v1/";

/// Volatile node state: gone at a reboot, like the pods.
pub const RUN_DIR: &str = "/run/podway";
/// Address leases, below [`RUN_DIR`].
pub const IPAM_DIR: &str = "/run/podway/ipam";
/// Endpoint records, below [`RUN_DIR`].
pub const ENDPOINTS_DIR: &str = "/run/podway/endpoints";
/// Attachments whose addresses another plugin gives, below [`RUN_DIR`].
pub const DELEGATED_DIR: &str = "/run/podway/delegated";
/// Admin socket of `routed`.
pub const ROUTED_SOCKET: &str = "/run/podway/routed.sock";
/// Socket of `policy-agent`: endpoint announcements from the CNI plugin, questions from `podwayctl`.
pub const POLICY_SOCKET: &str = "/run/podway/policy.sock";
/// Routings in force on this node: what a change of backend must not forget over a restart.
pub const ROUTING_FILE: &str = "/run/podway/routing.json";
/// Persistent node state.
pub const STATE_DIR: &str = "/var/lib/podway";
/// The node file.
pub const NODE_FILE: &str = "/var/lib/podway/node.json";
/// The instance id: one line, made once per installation of a node.
pub const INSTANCE_FILE: &str = "/var/lib/podway/instance-id";
/// The private key of this node's WireGuard device: one line of base64, made once.
pub const WIREGUARD_KEY_FILE: &str = "/var/lib/podway/wireguard.key";
/// Configuration of both daemons and of `podwayctl`.
pub const CONFIG_FILE: &str = "/etc/podway/podway.yaml";
/// The kernel's boot id.
pub const BOOT_ID_FILE: &str = "/proc/sys/kernel/random/boot_id";

/// Interface group of the host side of every pod's veth.
pub const POD_GROUP: u32 = 112;
/// Route protocol of `routed`'s routes and next-hop objects.
pub const ROUTE_PROTOCOL: u8 = 112;
/// Route protocol of the CNI plugin's pod routes. `routed` repairs these and never sweeps them.
pub const POD_ROUTE_PROTOCOL: u8 = 113;
/// First id of our next-hop objects.
pub const NEXT_HOP_ID_MIN: u32 = 0x7000_0000;
/// Last id of our next-hop objects.
pub const NEXT_HOP_ID_MAX: u32 = 0x7fff_ffff;
/// Metric of a pool's `unreachable` route: the worst one.
pub const UNREACHABLE_METRIC: u32 = u32::MAX;

/// VXLAN device over an IPv4 underlay (IPv6: suffix `6`).
pub const VXLAN_DEVICE: &str = "podway.vxlan";
/// IPIP device.
pub const IPIP_DEVICE: &str = "podway.ipip";
/// WireGuard device.
pub const WIREGUARD_DEVICE: &str = "podway.wg";

/// nft table (family inet) of the guard; fixed text, made by whoever comes first.
pub const GUARD_TABLE: &str = "podway-guard";
/// nft table of the masquerade, owned by `routed`.
pub const MASQ_TABLE: &str = "podway-masq";
/// nft table of host ports, owned by the CNI plugin.
pub const PORTS_TABLE: &str = "podway-ports";
/// nft table of NetworkPolicy, owned by `policy-agent`.
pub const POLICY_TABLE: &str = "podway-policy";

/// MAC address of the host side of every pod's veth.
pub const HOST_MAC: MacAddr = MacAddr([0x02, 0x70, 0x77, 0x00, 0x00, 0x01]);
/// Gateway that pods see, IPv4: link-local, answered by a permanent neighbour entry.
pub const GATEWAY_V4: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);
/// Gateway that pods see, IPv6.
pub const GATEWAY_V6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);

/// First bytes of SHA-256 over the parts, each closed by a zero byte so that they cannot run together.
fn digest<const N: usize>(parts: &[&str]) -> [u8; N] {
    let mut hasher = Sha256::new();
    for part in parts {
        hasher.update(part.as_bytes());
        hasher.update([0]);
    }
    let full = hasher.finalize();
    let mut out = [0; N];
    out.copy_from_slice(&full[..N]);
    out
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Id of an attachment, 16 hex digits: the name of its endpoint record and the tail of its interface name.
pub fn attachment_id(container_id: &str, ifname: &str) -> String {
    hex(&digest::<8>(&["attachment", container_id, ifname]))
}

/// Name of the host side of a pod's veth: `pw` and the first 11 hex digits of [`attachment_id`].
pub fn host_ifname(container_id: &str, ifname: &str) -> String {
    format!("pw{}", &attachment_id(container_id, ifname)[..11])
}

/// Name of the device that holds back what a pod sends: `pwi` and the first 11 hex digits of [`attachment_id`].
pub fn ifb_name(container_id: &str, ifname: &str) -> String {
    format!("pwi{}", &attachment_id(container_id, ifname)[..11])
}

/// Alias of the device that holds back what a pod sends. [`parse_ifalias`] does not take it for a pod's.
pub fn ifb_alias(container_id: &str, ifname: &str) -> String {
    format!("podway-ifb/{container_id}/{ifname}")
}

/// Name of the device that holds back what a container sends, where the plugin does the job of upstream's `bandwidth`:
/// `bwp` and the first 12 hex digits of SHA-512 over network and container id.
pub fn bandwidth_ifb_name(network: &str, container_id: &str) -> String {
    format!("bwp{}", &upstream_container_hash(network, container_id)[..12])
}

/// Name of a container's chain of iptables, as upstream's plugins make it: `CNI-`, what the chain is for (`DN-`: host
/// ports; nothing: masquerade), and hex digits of SHA-512 over network and container id, 28 letters in all.
pub fn upstream_chain(purpose: &str, network: &str, container_id: &str) -> String {
    let mut name = format!("CNI-{purpose}{}", upstream_container_hash(network, container_id));
    name.truncate(28);
    name
}

fn upstream_container_hash(network: &str, container_id: &str) -> String {
    let mut hasher = sha2::Sha512::new();
    hasher.update(network.as_bytes());
    hasher.update(container_id.as_bytes());
    hex(&hasher.finalize())
}

/// The first 16 hex digits of SHA-512, by which upstream's plugins mark what is whose.
pub fn upstream_hash(text: &str) -> String {
    hex(&sha2::Sha512::digest(text.as_bytes()))[..16].to_owned()
}

/// Host side of a container's veth, where the plugin does the job of upstream's `ptp`: `veth` and 8 hex digits, as there,
/// but the same for every ADD of the attachment.
pub fn ptp_host_ifname(container_id: &str, ifname: &str) -> String {
    format!("veth{}", &hex(&digest::<4>(&["ptp", container_id, ifname])))
}

/// Alias of the host side of a pod's veth: says whose it is.
pub fn host_ifalias(container_id: &str, ifname: &str) -> String {
    format!("podway/{container_id}/{ifname}")
}

/// The attachment that an interface alias names, as (container id, interface name).
pub fn parse_ifalias(alias: &str) -> Option<(&str, &str)> {
    let (container_id, ifname) = alias.strip_prefix("podway/")?.split_once('/')?;
    (!container_id.is_empty() && !ifname.is_empty()).then_some((container_id, ifname))
}

/// MAC address of a pod's interface: locally administered, unicast, the same for every ADD of the attachment.
pub fn pod_mac(container_id: &str, ifname: &str) -> MacAddr {
    let d = digest::<5>(&["pod-mac", container_id, ifname]);
    MacAddr([0x02, d[0], d[1], d[2], d[3], d[4]])
}

/// MAC address of a node's VTEP: derived from its name, so it survives a restart and a reinstallation.
pub fn vtep_mac(node: &str, device: &str) -> MacAddr {
    let d = digest::<5>(&["vtep-mac", node, device]);
    MacAddr([0x02, d[0], d[1], d[2], d[3], d[4]])
}

/// BGP identifier of a node without an IPv4 address: the first 32 bits of SHA-256 of its name.
pub fn router_id(node: &str) -> Ipv4Addr {
    let mut hasher = Sha256::new();
    hasher.update(node.as_bytes());
    let full = hasher.finalize();
    Ipv4Addr::new(full[0], full[1], full[2], full[3])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_interface_name_fits_the_kernel() {
        let name = host_ifname("c".repeat(64).as_str(), "eth0");
        assert_eq!(name.len(), 13);
        assert!(name.len() < 16, "IFNAMSIZ");
        assert_ne!(name, host_ifname("c".repeat(64).as_str(), "eth1"));
        assert_eq!(ifb_name("c1", "eth0").len(), 14);
    }

    #[test]
    fn parts_cannot_run_together() {
        assert_ne!(attachment_id("ab", "c"), attachment_id("a", "bc"));
    }

    #[test]
    fn alias_round_trips() {
        assert_eq!(parse_ifalias(&host_ifalias("c1", "eth0")), Some(("c1", "eth0")));
        assert_eq!(parse_ifalias("cali/c1/eth0"), None);
        assert_eq!(parse_ifalias(&ifb_alias("c1", "eth0")), None);
        assert_eq!(parse_ifalias("podway/c1/"), None);
    }

    #[test]
    fn derived_mac_addresses_are_local_unicast_and_stable() {
        let mac = pod_mac("c1", "eth0");
        assert_eq!(mac.0[0] & 0x03, 0x02);
        assert_eq!(mac, pod_mac("c1", "eth0"));
        assert_ne!(vtep_mac("n1", VXLAN_DEVICE), vtep_mac("n2", VXLAN_DEVICE));
    }
}
