//! What a lease says of its holder.

use std::net::{Ipv4Addr, Ipv6Addr};

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::fields::{Fields, field, object};
use crate::ids::{InstanceId, MacAddr, NodeName, Vni};
use crate::mistakes::Mistakes;

/// How packets get to the holder of a lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// Straight to its address.
    HostGw,
    /// To its VTEPs: one device for each family.
    Vxlan {
        /// Network identifier.
        vni: Vni,
        /// MAC address of the device that carries IPv4 over IPv4.
        v4: Option<MacAddr>,
        /// MAC address of the device that carries IPv6 over IPv6.
        v6: Option<MacAddr>,
    },
}

/// Who of Podway's nodes wrote a lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mark {
    /// The node.
    pub node: NodeName,
    /// Its installation.
    pub instance_id: InstanceId,
}

/// What a lease says of its holder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaseAttrs {
    /// Its IPv4 address on the underlay.
    pub public_v4: Option<Ipv4Addr>,
    /// Its IPv6 address on the underlay.
    pub public_v6: Option<Ipv6Addr>,
    /// How packets get to it.
    pub reach: Reach,
    /// Set if Podway wrote it last.
    pub mark: Option<Mark>,
}

impl LeaseAttrs {
    /// Reads a lease. `source` is its key.
    pub fn parse(source: &str, text: &[u8]) -> Result<Self, Mistakes> {
        let mut mistakes = Mistakes::default();
        let Some(map) = object(source, text, &mut mistakes) else { return Err(mistakes) };
        let mut fields = Fields { source, path: "", map: &map, mistakes: &mut mistakes };
        let public_v4 = fields.text::<Ipv4Addr>("PublicIP", "an IPv4 address");
        let public_v6 = fields.text::<Ipv6Addr>("PublicIPv6", "an IPv6 address");
        let mark = fields.mark();
        let kind = field(&map, "BackendType").and_then(Value::as_str);
        let reach = match kind {
            Some("host-gw") => Some(Reach::HostGw),
            Some("vxlan") => {
                let v4 = fields.vtep("BackendData");
                let v6 = fields.vtep("BackendV6Data");
                let vnis: Vec<Vni> = [v4, v6].into_iter().flatten().flatten().map(|(vni, _)| vni).collect();
                let vni = vnis.first().copied();
                if vni.is_none() && v4.is_some() && v6.is_some() {
                    fields.wrong("BackendData", "nothing", "VNI and VtepMAC");
                }
                if vnis.into_iter().any(|other| Some(other) != vni) {
                    fields.wrong("BackendV6Data.VNI", "another one", "that of BackendData");
                }
                let mac = |vtep: Option<Option<(Vni, MacAddr)>>| vtep.flatten().map(|(_, mac)| mac);
                vni.map(|vni| Reach::Vxlan { vni, v4: mac(v4), v6: mac(v6) })
            }
            other => {
                fields.wrong("BackendType", other.unwrap_or("nothing"), "vxlan or host-gw");
                None
            }
        };
        let unspecified = |address: &Ipv4Addr| !address.is_unspecified();
        match (public_v4, public_v6, mark, reach) {
            (Some(public_v4), Some(public_v6), Some(mark), Some(reach)) if mistakes.is_empty() => {
                Ok(Self { public_v4: public_v4.filter(unspecified), public_v6, reach, mark })
            }
            _ => Err(mistakes),
        }
    }

    /// Writes a lease as flannel does, and who wrote it.
    pub fn encode(&self) -> Vec<u8> {
        let mut map = Map::new();
        map.insert("PublicIP".to_owned(), self.public_v4.unwrap_or(Ipv4Addr::UNSPECIFIED).to_string().into());
        map.insert("PublicIPv6".to_owned(), self.public_v6.map(|address| address.to_string()).into());
        match self.reach {
            Reach::HostGw => drop(map.insert("BackendType".to_owned(), "host-gw".into())),
            Reach::Vxlan { vni, v4, v6 } => {
                map.insert("BackendType".to_owned(), "vxlan".into());
                for (name, mac) in [("BackendData", v4), ("BackendV6Data", v6)] {
                    if let Some(mac) = mac {
                        let data = json!({"VNI": vni.number(), "VtepMAC": mac.to_string()});
                        map.insert(name.to_owned(), data);
                    }
                }
            }
        }
        if let Some(mark) = &self.mark {
            let value = json!({"Node": mark.node.as_str(), "InstanceID": mark.instance_id.as_str()});
            map.insert("Podway".to_owned(), value);
        }
        Value::Object(map).to_string().into_bytes()
    }
}

impl Fields<'_> {
    /// VNI and MAC address of a device; outer none: wrong, and said.
    fn vtep(&mut self, name: &'static str) -> Option<Option<(Vni, MacAddr)>> {
        #[derive(Deserialize)]
        struct Vtep {
            #[serde(rename = "VNI")]
            vni: Vni,
            #[serde(rename = "VtepMAC")]
            mac: MacAddr,
        }
        let Some(value) = field(self.map, name) else { return Some(None) };
        let Ok(Vtep { vni, mac }) = Vtep::deserialize(value) else {
            self.wrong(name, value, "VNI (1 to 16777215) and VtepMAC (a MAC address)");
            return None;
        };
        Some(Some((vni, mac)))
    }

    /// Outer none: wrong, and said.
    fn mark(&mut self) -> Option<Option<Mark>> {
        let Some(value) = field(self.map, "Podway") else { return Some(None) };
        let part = |name: &str| value.get(name).and_then(Value::as_str);
        let read = || {
            let node = part("Node")?.parse().ok()?;
            Some(Mark { node, instance_id: part("InstanceID")?.parse().ok()? })
        };
        let mark = read();
        if mark.is_none() {
            self.wrong("Podway", value, "Node and InstanceID of a node of Podway");
            return None;
        }
        Some(mark)
    }
}
