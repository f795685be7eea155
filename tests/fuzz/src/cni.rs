//! What a container runtime tells the plugin.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;

use cni_plugin::conf::{Network, peek_version};
use cni_plugin::env::{self, Call};
use cni_plugin::error::{CniError, Code};
use cni_plugin::result;
use cni_plugin::version::SpecVersion;
use cni_plugin::wiring::Wiring;
use podway_ipam::Attachment;
use podway_model::ids::Mtu;

/// The network configuration on standard input, read for every verb, and a result behind an earlier plugin's.
pub fn config(bytes: &[u8]) {
    let network = match Network::parse(bytes) {
        Ok(network) => network,
        Err(error) => return worded(&error),
    };
    assert_eq!(peek_version(bytes), Some(network.version));
    let add = network.for_add();
    add.as_ref().err().into_iter().for_each(worded);
    network.valid_attachments().err().iter().for_each(worded);
    network.require("GC", SpecVersion::V110).err().iter().for_each(worded);
    match network.previous() {
        Ok(previous) => {
            for ifname in ["eth0", "lo", ""] {
                let _ = result::addresses_of(previous, ifname);
            }
        }
        Err(error) => worded(&error),
    }
    let Ok(conf) = add else { return };
    let literal = "the literal is a name";
    let attachment = Attachment::new("c1".parse().expect(literal), "eth0".parse().expect(literal));
    let addresses = vec!["10.0.0.5".parse().expect("an address"), "fd00::5".parse().expect("an address")];
    let wiring =
        Wiring::new(&attachment, conf.mtu.unwrap_or(Mtu::ETHERNET), addresses.clone(), conf.settings.clone());
    let value = result::form(&wiring, "/run/netns/c1", &conf.dns, network.version, conf.previous.as_ref());
    let object = value.as_object().expect("a result is an object");
    assert_eq!(object.get("cniVersion").and_then(|v| v.as_str()), Some(network.version.as_str()));
    if conf.previous.is_none() {
        assert_eq!(result::addresses_of(object, "eth0"), Some(addresses));
    }
}

/// Lines `NAME=value` as environment.
pub fn environment(bytes: &[u8]) {
    let mut variables: BTreeMap<String, OsString> = BTreeMap::new();
    for line in bytes.split(|byte| *byte == b'\n') {
        let at = line.iter().position(|byte| *byte == b'=').unwrap_or(line.len());
        let value = line.get(at + 1..).unwrap_or_default().to_vec();
        variables.insert(String::from_utf8_lossy(&line[..at]).into_owned(), OsString::from_vec(value));
    }
    match env::parse(|name| variables.get(name).cloned()) {
        Ok(None) => assert!(!variables.contains_key("CNI_CONTAINERID"), "somebody called"),
        Ok(Some(Call::Add(target) | Call::Check(target))) => {
            assert!(!target.netns.as_os_str().is_empty());
            let text = target.attachment.to_string();
            assert!(!text.is_empty());
        }
        Ok(Some(Call::Del { .. } | Call::Gc | Call::Status | Call::Version)) => {}
        Err(error) => {
            worded(&error);
            assert_eq!(error.code, Code::Environment);
        }
    }
}

fn worded(error: &CniError) {
    assert!(!error.message.is_empty());
    let json = error.to_json("1.1.0");
    assert!(json.get("code").is_some_and(serde_json::Value::is_u64), "{json}");
}
