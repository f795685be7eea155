//! The network configuration on standard input (CNI SPEC 1.1.0, sections 1 and 3).
//!
//! Runtimes add keys of their own at the top, so unknown ones are overlooked there. Everything below `podway` is
//! ours, and a key that we do not know is a mistake. All mistakes are reported at once.

use podway_ipam::Attachment;
use podway_model::endpoint::HostPort;
use podway_model::ids::{MacAddr, Mtu, NetworkName};
use podway_model::mistakes::Mistakes;
use podway_model::names::IPAM_PLUGIN;
use serde_json::{Map, Value};

use crate::env::Call;
use crate::error::{CniError, Code};
use crate::plugins::bandwidth::{self, Rates};
use crate::plugins::ports;
use crate::settings::{self, Settings};
use crate::version::SpecVersion;
use crate::wish::AddressWish;

/// Most bytes of standard input that are read.
pub const MAX_INPUT: u64 = 4 << 20;

/// Where mistakes are, in messages.
pub(crate) const SOURCE: &str = "network configuration";
/// Keys below `podway`.
pub const OWN_KEYS: [&str; 8] =
    ["mac", "mtu", "pools", "queues", "reserved", "routes", "sysctlAllow", "sysctls"];
/// Capabilities that are served: keys below `runtimeConfig`.
pub const CAPABILITIES: [&str; 7] =
    ["portMappings", "bandwidth", "ips", "ipRanges", "mac", "dns", settings::ANNOTATIONS];
const VALID_ATTACHMENTS: &str = "cni.dev/valid-attachments";

/// What every verb needs of the configuration.
#[derive(Debug, Clone, PartialEq)]
pub struct Network {
    /// Version in which the runtime speaks, and wants to be answered.
    pub version: SpecVersion,
    /// Name of the network.
    pub name: NetworkName,
    object: Map<String, Value>,
}

/// What ADD needs.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct AddConf {
    /// `podway.mtu`: MTU of the pod's interface, instead of the node's.
    pub mtu: Option<Mtu>,
    /// Which addresses are wanted.
    pub addresses: AddressWish,
    /// `runtimeConfig.portMappings`: ports of the node that lead to the pod.
    pub host_ports: Vec<HostPort>,
    /// `runtimeConfig.bandwidth`: what the pod may receive and send.
    pub rates: Rates,
    /// How the interface shall look.
    pub settings: Settings,
    /// Ethernet address asked for: `runtimeConfig.mac`, then `args.cni.mac`.
    pub mac: Option<MacAddr>,
    /// `dns`, with `runtimeConfig.dns` before it: goes into the result as it is.
    pub dns: Map<String, Value>,
    /// Result of the plugin before us in the chain.
    pub previous: Option<Map<String, Value>>,
}

/// The version that standard input asks for, as far as it can be read: for VERSION, and for errors.
pub fn peek_version(input: &[u8]) -> Option<SpecVersion> {
    let value: Value = serde_json::from_slice(input).ok()?;
    SpecVersion::parse(value.get("cniVersion")?.as_str()?).ok()
}

impl Network {
    /// Reads what every verb needs.
    pub fn parse(input: &[u8]) -> Result<Self, CniError> {
        let value: Value = serde_json::from_slice(input)
            .map_err(|e| CniError::new(Code::Decode, format!("{SOURCE}: not JSON: {e}")))?;
        let Value::Object(object) = value else {
            return Err(CniError::new(
                Code::Decode,
                format!("{SOURCE}: {} found, an object expected", kind(&value)),
            ));
        };
        let version = match object.get("cniVersion") {
            Some(Value::String(text)) => SpecVersion::parse(text)?,
            Some(other) => SpecVersion::parse(&other.to_string())?,
            None => {
                // Upstream's skel takes this for 0.1.0, which we do not serve.
                return Err(CniError::new(Code::IncompatibleVersion, "cniVersion: missing"));
            }
        };
        let mut mistakes = Mistakes::default();
        let name = match object.get("name") {
            None => {
                mistakes.add(SOURCE, "name", "nothing", "the network's name");
                None
            }
            Some(value) => text(value, "name", &mut mistakes).and_then(|name| {
                name.parse::<NetworkName>()
                    .map_err(|e| mistakes.add(SOURCE, "name", format!("{name:?}"), e.expected))
                    .ok()
            }),
        };
        match name {
            Some(name) => Ok(Self { version, name, object }),
            None => Err(CniError::config(&mistakes)),
        }
    }

    /// Refuses a verb that the configuration's version does not know.
    pub fn require(&self, verb: &str, since: SpecVersion) -> Result<(), CniError> {
        if self.version >= since {
            return Ok(());
        }
        Err(CniError::new(
            Code::IncompatibleVersion,
            format!(
                "cniVersion: {} found, which does not know {verb}; at least {} expected",
                self.version.as_str(),
                since.as_str()
            ),
        ))
    }

    /// Refuses a call whose verb the configuration's version does not know.
    pub fn require_verb(&self, call: &Call) -> Result<(), CniError> {
        match call {
            Call::Check(_) => self.require("CHECK", SpecVersion::V040),
            Call::Gc => self.require("GC", SpecVersion::V110),
            Call::Status => self.require("STATUS", SpecVersion::V110),
            _ => Ok(()),
        }
    }

    /// Reads what ADD needs.
    pub fn for_add(&self) -> Result<AddConf, CniError> {
        let mut mistakes = Mistakes::default();
        let mut conf = AddConf::default();
        self.check_ipam(&mut mistakes);
        let mut allow = None;
        for (key, value) in self.section("podway", &mut mistakes).into_iter().flatten() {
            match key.as_str() {
                "mtu" => conf.mtu = mtu(value, &mut mistakes),
                other if conf.addresses.read_own("podway", other, value, &mut mistakes) => {}
                other if settings::read_own(other, value, &mut conf.settings, &mut allow, &mut mistakes) => {}
                other => {
                    let expected = format!("one of {}", OWN_KEYS.join(", "));
                    mistakes.add(SOURCE, format!("podway.{other}"), "this key", expected);
                }
            }
        }
        let runtime = self.section("runtimeConfig", &mut mistakes);
        let args = self.section("args", &mut mistakes);
        conf.addresses.read_runtime(runtime, args, &mut mistakes);
        let annotations = &conf.addresses.annotations;
        settings::check_sysctls(&mut conf.settings, annotations, allow.as_deref(), &mut mistakes);
        let in_args = |key: &str| args.and_then(|args| args.get("cni")?.get(key));
        for (field, value) in
            [("runtimeConfig.mac", runtime.and_then(|r| r.get("mac"))), ("args.cni.mac", in_args("mac"))]
        {
            let Some(value) = value.filter(|value| !is_empty(value) && conf.mac.is_none()) else { continue };
            conf.mac = match value.as_str() {
                Some(text) => settings::mac(text, field, &mut mistakes),
                None => {
                    mistakes.add(SOURCE, field, kind(value), "text");
                    None
                }
            };
        }
        conf.host_ports =
            ports::parse(runtime.and_then(|section| section.get("portMappings")), &mut mistakes);
        conf.rates = bandwidth::parse(runtime.and_then(|section| section.get("bandwidth")), &mut mistakes);
        if let Some(dns) = self.section("dns", &mut mistakes) {
            conf.dns.extend(dns.clone());
        }
        // The convention for runtimes says `servers` and `searches` where results say `nameservers` and `search`.
        if let Some(Value::Object(dns)) = runtime.and_then(|section| section.get("dns")) {
            for (from, to) in [("servers", "nameservers"), ("searches", "search"), ("options", "options")] {
                if let Some(value) = dns.get(from) {
                    conf.dns.insert(to.to_owned(), value.clone());
                }
            }
        }
        conf.previous = self.section("prevResult", &mut mistakes).cloned();
        if mistakes.is_empty() { Ok(conf) } else { Err(CniError::config(&mistakes)) }
    }

    /// `ipam` of another plugin is that plugin's; of ours, it says nothing that `podway` does not say.
    fn check_ipam(&self, mistakes: &mut Mistakes) {
        let Some(ipam) = self.section("ipam", mistakes) else { return };
        match ipam.get("type") {
            None | Some(Value::String(_)) => {}
            Some(other) => mistakes.add(SOURCE, "ipam.type", kind(other), "the name of a plugin"),
        }
        if self.foreign_ipam().is_none() {
            for key in ipam.keys().filter(|key| *key != "type") {
                mistakes.add(SOURCE, format!("ipam.{key}"), "this key", format!("podway.{key}"));
            }
        }
    }

    /// The result of the ADD, which CHECK must be given.
    pub fn previous(&self) -> Result<&Map<String, Value>, CniError> {
        let mut mistakes = Mistakes::default();
        let previous = self.section("prevResult", &mut mistakes);
        if previous.is_none() && mistakes.is_empty() {
            mistakes.add(SOURCE, "prevResult", "nothing", "the result of the ADD");
        }
        previous.ok_or_else(|| CniError::config(&mistakes))
    }

    /// The attachments that GC must leave alone. A list that is missing or malformed frees nothing.
    pub fn valid_attachments(&self) -> Result<Vec<Attachment>, CniError> {
        let mut mistakes = Mistakes::default();
        let list = match self.object.get(VALID_ATTACHMENTS) {
            Some(Value::Array(list)) => list.as_slice(),
            // What the reference library writes for a list of no attachments that was never filled.
            Some(Value::Null) => &[],
            Some(other) => {
                mistakes.add(SOURCE, VALID_ATTACHMENTS, kind(other), "a list");
                &[]
            }
            None => {
                mistakes.add(SOURCE, VALID_ATTACHMENTS, "nothing", "a list of attachments");
                &[]
            }
        };
        let mut valid = Vec::with_capacity(list.len());
        for (i, entry) in list.iter().enumerate() {
            let mut field = |key: &str| {
                let field = format!("{VALID_ATTACHMENTS}[{i}].{key}");
                match entry.get(key) {
                    Some(Value::String(text)) => Some((field, text.clone())),
                    other => {
                        mistakes.add(SOURCE, field, other.map_or("nothing", kind), "text");
                        None
                    }
                }
            };
            let (id, ifname) = (field("containerID"), field("ifname"));
            let (Some((id_field, id)), Some((ifname_field, ifname))) = (id, ifname) else { continue };
            match (id.parse(), ifname.parse()) {
                (Ok(id), Ok(ifname)) => valid.push(Attachment::new(id, ifname)),
                (id, ifname) => {
                    for (field, error) in [(id_field, id.err()), (ifname_field, ifname.err())] {
                        if let Some(e) = error {
                            mistakes.add(SOURCE, field, format!("{:?}", e.value), e.expected);
                        }
                    }
                }
            }
        }
        if mistakes.is_empty() { Ok(valid) } else { Err(CniError::config(&mistakes)) }
    }

    /// `ipam.type`, where it is another plugin than ours.
    pub fn foreign_ipam(&self) -> Option<&str> {
        let kind = self.object.get("ipam")?.get("type")?.as_str()?;
        Some(kind).filter(|kind| !kind.is_empty() && *kind != IPAM_PLUGIN)
    }

    /// The whole configuration, as it came.
    pub fn object(&self) -> &Map<String, Value> {
        &self.object
    }

    /// A value at the top of the configuration.
    pub fn key(&self, key: &str) -> Option<&Value> {
        self.object.get(key)
    }

    /// The result of the plugin before in the chain, if there is one.
    pub fn previous_if_any(&self) -> Result<Option<Map<String, Value>>, CniError> {
        let mut mistakes = Mistakes::default();
        let previous = self.section("prevResult", &mut mistakes).cloned();
        if mistakes.is_empty() { Ok(previous) } else { Err(CniError::config(&mistakes)) }
    }

    /// A value that the runtime gives for a capability.
    pub fn runtime(&self, capability: &str) -> Option<&Value> {
        self.object.get("runtimeConfig")?.get(capability)
    }

    /// A section that must be an object where it is there.
    pub(crate) fn section(&self, key: &str, mistakes: &mut Mistakes) -> Option<&Map<String, Value>> {
        match self.object.get(key) {
            None | Some(Value::Null) => None,
            Some(Value::Object(section)) => Some(section),
            Some(other) => {
                mistakes.add(SOURCE, key, kind(other), "an object");
                None
            }
        }
    }
}

fn mtu(value: &Value, mistakes: &mut Mistakes) -> Option<Mtu> {
    let mtu = value.as_u64().and_then(|n| u32::try_from(n).ok()).and_then(|n| Mtu::try_from(n).ok());
    if mtu.is_none() {
        mistakes.add(SOURCE, "podway.mtu", value, "a number of bytes from 1280 to 65535");
    }
    mtu
}

fn text<'a>(value: &'a Value, field: &str, mistakes: &mut Mistakes) -> Option<&'a str> {
    if value.as_str().is_none() {
        mistakes.add(SOURCE, field, kind(value), "text");
    }
    value.as_str()
}

/// Whether a value asks for nothing.
pub(crate) fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Object(object) => object.values().all(|v| v.as_u64() == Some(0)),
        _ => false,
    }
}

/// What a value is, in words.
pub(crate) fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn network(extra: Value) -> Network {
        let mut value = json!({"cniVersion": "1.1.0", "name": "podway", "type": "podway"});
        value.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        Network::parse(value.to_string().as_bytes()).unwrap()
    }

    #[test]
    fn heads_that_cannot_be_used() {
        for (input, code, part) in [
            ("", Code::Decode, "not JSON"),
            ("{", Code::Decode, "not JSON"),
            ("[]", Code::Decode, "a list found, an object expected"),
            ("{}", Code::IncompatibleVersion, "cniVersion: missing"),
            (
                r#"{"cniVersion":"0.2.0","name":"x"}"#,
                Code::IncompatibleVersion,
                "\"0.2.0\" found, one of 0.3.0",
            ),
            (r#"{"cniVersion":"9.9.9","name":"x"}"#, Code::IncompatibleVersion, "\"9.9.9\" found"),
            (r#"{"cniVersion":1,"name":"x"}"#, Code::IncompatibleVersion, "\"1\" found"),
            (r#"{"cniVersion":"1.0.0"}"#, Code::Config, "name: nothing found"),
            (r#"{"cniVersion":"1.0.0","name":""}"#, Code::Config, "name: \"\" found"),
            (r#"{"cniVersion":"1.0.0","name":"a/b"}"#, Code::Config, "name: \"a/b\" found"),
            (r#"{"cniVersion":"1.0.0","name":3}"#, Code::Config, "name: a number found, text expected"),
        ] {
            let error = Network::parse(input.as_bytes()).unwrap_err();
            assert_eq!(error.code, code, "{input}: {error}");
            assert!(error.message.contains(part), "{input}: {error}");
        }
    }

    #[test]
    fn keys_that_runtimes_add_are_overlooked_and_ours_are_checked() {
        assert!(network(json!({"anything": 1, "capabilities": {"ips": true}})).for_add().is_ok());
        let error = network(json!({"podway": {"mtu": -1, "colour": "red", "pools": ["A", 1]}})).for_add();
        let error = error.unwrap_err();
        assert_eq!(error.code, Code::Config);
        for part in [
            "podway.mtu: -1 found",
            "podway.colour: this key found, one of mac, mtu, pools,",
            "podway.pools[0]: \"A\" found",
            "podway.pools[1]: 1 found",
        ] {
            assert!(error.details.contains(part), "{part} is not in {}", error.details);
        }
    }

    #[test]
    fn addresses_asked_for() {
        let conf = network(json!({
            "runtimeConfig": {"ips": ["10.0.0.5/24", "fd00::5"]}, "args": {"cni": {"ips": ["10.0.0.6"]}}
        }));
        let ips: Vec<String> =
            conf.for_add().unwrap().addresses.ips.iter().map(ToString::to_string).collect();
        assert_eq!(ips, ["10.0.0.5", "fd00::5", "10.0.0.6"]);
        let error = network(json!({"runtimeConfig": {"ips": ["banana"]}})).for_add().unwrap_err();
        assert!(error.message.contains("runtimeConfig.ips[0]: \"banana\" found"), "{error}");
    }

    #[test]
    fn address_plugins_are_named() {
        for (ipam, part) in [
            (json!({"type": 1}), "ipam.type: a number found, the name of a plugin expected"),
            (json!("host-local"), "ipam: text found, an object expected"),
            (json!({"pools": ["a"]}), "ipam.pools: this key found, podway.pools expected"),
            (json!({"type": "podway-ipam", "x": 1}), "ipam.x: this key found"),
        ] {
            let error = network(json!({"ipam": ipam})).for_add().unwrap_err();
            assert_eq!(error.code, Code::Config);
            assert!(error.message.contains(part), "{error}");
        }
        let foreign = network(json!({"ipam": {"type": "host-local", "subnet": "10.0.0.0/24"}}));
        assert!(foreign.for_add().is_ok());
        assert_eq!(foreign.foreign_ipam(), Some("host-local"));
        let empty =
            json!({"ipam": {}, "runtimeConfig": {"portMappings": [], "bandwidth": {"ingressRate": 0}}});
        assert!(network(empty).for_add().is_ok());
    }

    #[test]
    fn dns_goes_into_the_result() {
        let conf = network(json!({
            "dns": {"nameservers": ["1.1.1.1"], "domain": "d"}, "runtimeConfig": {"dns": {"servers": ["2.2.2.2"]}}
        }));
        assert_eq!(
            Value::Object(conf.for_add().unwrap().dns),
            json!({"nameservers": ["2.2.2.2"], "domain": "d"})
        );
    }

    #[test]
    fn verbs_have_a_first_version() {
        let mut conf = network(json!({}));
        conf.version = SpecVersion::V031;
        let error = conf.require("CHECK", SpecVersion::V040).unwrap_err();
        assert_eq!(error.code, Code::IncompatibleVersion);
        assert!(error.message.contains("0.3.1 found"), "{error}");
    }

    #[test]
    fn check_needs_the_result_of_the_add() {
        assert_eq!(network(json!({})).previous().unwrap_err().code, Code::Config);
        let error = network(json!({"prevResult": "x"})).previous().unwrap_err();
        assert!(error.message.contains("prevResult: text found, an object expected"), "{error}");
    }

    #[test]
    fn a_malformed_list_of_valid_attachments_frees_nothing() {
        let parse = |list: Value| network(json!({ "cni.dev/valid-attachments": list })).valid_attachments();
        assert_eq!(parse(json!([])).unwrap(), []);
        assert_eq!(parse(Value::Null).unwrap(), []);
        assert_eq!(
            parse(json!([{"containerID": "c1", "ifname": "eth0"}])).unwrap()[0].to_string(),
            "c1/eth0"
        );
        for bad in [
            json!("x"),
            json!([1]),
            json!([{"containerID": "c1"}]),
            json!([{"containerID": "/", "ifname": "e"}]),
        ] {
            assert_eq!(parse(bad.clone()).unwrap_err().code, Code::Config, "{bad}");
        }
        assert_eq!(network(json!({})).valid_attachments().unwrap_err().code, Code::Config);
    }
}
