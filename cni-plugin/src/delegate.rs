//! An address plugin of somebody else (`ipam.type`), called as CNI SPEC 1.1.0 section 4 says: found in `CNI_PATH`, same
//! environment, same standard input. It owns its addresses; we own the interface. Our own leases are not touched.
//!
//! ```text
//!   mark ──▶ its ADD ──▶ mark with what it gave ──▶ record, link, ... ──▶ (DEL) ──▶ its DEL ──▶ mark removed
//! ```
//!
//! The mark, a file for each attachment below [`podway_model::names::DELEGATED_DIR`], stands before the plugin is asked
//! and goes after it has taken everything back. It holds the configuration of the ADD. So whoever is killed between,
//! DEL and GC know whom to ask and with which words, whatever the configuration says by then; and GC frees addresses of
//! plugins that have no GC.
//!
//! A pod has no neighbour on its link but the node. So its address is one of a host, whatever prefix the plugin says; the
//! gateway is an address of the node's end; and a route leads to the node: one with another gateway is refused.

use std::io::Write as _;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use ipnet::IpNet;
use podway_ipam::{Attachment, Family};
use podway_model::SCHEMA;
use podway_model::cluster::Assignment;
use podway_model::ids::{ContainerId, IfName, NetworkName};
use podway_model::mistakes::Mistakes;
use podway_model::names::{OTHER_PLUGINS, PLUGIN};
use podway_model::node_file::NodeFile;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::conf::{Network, SOURCE};
use crate::error::{CniError, Code};
use crate::settings::PodRoute;

/// Of the names under which this program is another plugin, the one that gives addresses.
const GIVES_ADDRESSES: &str = "host-local";

/// What an address plugin gave a pod.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Given {
    /// Addresses, IPv4 first, at most one of each family.
    pub addresses: Vec<IpAddr>,
    /// Gateways of their subnets, where the plugin names them.
    pub gateways: Vec<IpAddr>,
    /// Destinations of routes; the gateway is the node.
    pub routes: Vec<PodRoute>,
    /// Name servers and the like.
    pub dns: Map<String, Value>,
}

/// An attachment whose addresses another plugin gives.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Mark {
    /// Version of this form.
    pub schema: u32,
    /// Network in whose name it was asked.
    pub network: NetworkName,
    /// For which container.
    pub container_id: ContainerId,
    /// For which interface.
    pub ifname: IfName,
    /// The plugin: `ipam.type`.
    pub plugin: String,
    /// The configuration that it was given.
    pub conf: Map<String, Value>,
    /// What it gave, once it has answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub given: Option<Given>,
}

impl Mark {
    /// The mark of an attachment that is about to be given addresses by `delegate`.
    pub fn new(network: &Network, attachment: &Attachment, delegate: &Delegate) -> Self {
        Self {
            schema: SCHEMA,
            network: network.name.clone(),
            container_id: attachment.container_id.clone(),
            ifname: attachment.ifname.clone(),
            plugin: delegate.kind.clone(),
            conf: network.object().clone(),
            given: None,
        }
    }
}

/// A foreign address plugin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delegate {
    kind: String,
    program: PathBuf,
}

impl Delegate {
    /// The configuration's address plugin; `None`: ours.
    ///
    /// # Errors
    /// It is named and cannot be found.
    pub fn of(network: &Network) -> Result<Option<Self>, CniError> {
        network.foreign_ipam().map(Self::find).transpose()
    }

    /// Looks for a plugin in `CNI_PATH`.
    pub(crate) fn find(kind: &str) -> Result<Self, CniError> {
        let refuse = |expected: &str| {
            let mut mistakes = Mistakes::default();
            mistakes.add(SOURCE, "ipam.type", format!("{kind:?}"), expected);
            CniError::config(&mistakes)
        };
        // Under these names this program would ask itself, and that one again.
        let is_ours = kind == PLUGIN || (OTHER_PLUGINS.contains(&kind) && kind != GIVES_ADDRESSES);
        if kind.contains('/') || kind.starts_with('.') || is_ours {
            return Err(refuse("the name of an address plugin"));
        }
        let Some(path) = std::env::var_os("CNI_PATH").filter(|path| !path.is_empty()) else {
            let message = format!("CNI_PATH is missing: ipam.type {kind} is looked for there");
            return Err(CniError::new(Code::Environment, message));
        };
        let found = std::env::split_paths(&path).map(|dir| dir.join(kind)).find(|program| program.is_file());
        match found {
            Some(program) => Ok(Self { kind: kind.to_owned(), program }),
            None => {
                Err(refuse("a program in CNI_PATH")
                    .with(format_args!("CNI_PATH is {}", path.to_string_lossy())))
            }
        }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.kind
    }

    /// ADD. The caller has it take back what it gave, also where this fails.
    ///
    /// # Errors
    /// Its own error, or its answer cannot be used.
    pub fn add(&self, network: &Network) -> Result<Given, CniError> {
        let text = self.call("ADD", network.object(), None)?;
        read(&text).map_err(|reason| self.unusable(&reason))
    }

    /// ADD for somebody who reads the answer in his own way.
    ///
    /// # Errors
    /// Its own error, or its answer is no JSON object.
    pub(crate) fn add_as_it_is(&self, network: &Network) -> Result<Map<String, Value>, CniError> {
        let text = self.call("ADD", network.object(), None)?;
        serde_json::from_slice(&text).map_err(|e| self.unusable(&format!("its result is not JSON: {e}")))
    }

    /// CHECK, GC or STATUS, or a DEL of what the caller was asked about.
    ///
    /// # Errors
    /// Its own error.
    pub fn run(&self, verb: &str, network: &Network) -> Result<(), CniError> {
        self.call(verb, network.object(), None).map(drop)
    }

    /// DEL of an attachment that may be another one than the caller was asked about.
    fn del(&self, conf: &Map<String, Value>, attachment: &Attachment) -> Result<(), CniError> {
        self.call("DEL", conf, Some(attachment)).map(drop)
    }

    fn unusable(&self, reason: &str) -> CniError {
        CniError::new(Code::Delegate, format!("address plugin {}: {reason}", self.kind))
    }

    fn call(
        &self,
        verb: &str,
        conf: &Map<String, Value>,
        attachment: Option<&Attachment>,
    ) -> Result<Vec<u8>, CniError> {
        let fail = |e: std::io::Error| CniError::io(&self.program, "run the address plugin", &e);
        let mut command = Command::new(&self.program);
        command.env("CNI_COMMAND", verb).stdin(Stdio::piped()).stdout(Stdio::piped());
        if let Some(attachment) = attachment {
            let (id, ifname) = (attachment.container_id.as_str(), attachment.ifname.as_str());
            if std::env::var_os("CNI_CONTAINERID").is_none_or(|asked| asked != id) {
                command.env_remove("CNI_NETNS").env_remove("CNI_ARGS");
            }
            command.env("CNI_CONTAINERID", id).env("CNI_IFNAME", ifname);
        }
        let text = serde_json::to_vec(conf).map_err(|e| fail(e.into()))?;
        let mut child = command.spawn().map_err(fail)?;
        if let Some(mut input) = child.stdin.take() {
            // A plugin that ends early says why on its output.
            let _ = input.write_all(&text);
        }
        let output = child.wait_with_output().map_err(fail)?;
        if output.status.success() {
            return Ok(output.stdout);
        }
        let said: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        let text = |key: &str| said.get(key).and_then(Value::as_str).unwrap_or_default();
        let code = said.get("code").and_then(Value::as_u64).and_then(|code| u32::try_from(code).ok());
        let code = code.filter(|code| *code > 0).map_or(Code::Delegate, Code::Foreign);
        let message = match text("msg") {
            "" => format!("address plugin {}: {verb}: {}", self.kind, output.status),
            message => format!("address plugin {}: {message}", self.kind),
        };
        let error = CniError::new(code, message);
        Err(if text("details").is_empty() { error } else { error.with(text("details")) })
    }
}

/// Has the plugin that gave an attachment its addresses take them back: the one of the mark, else `kind`, the
/// configuration's.
/// Returns what stays behind, in words, where there is nobody to ask.
///
/// # Errors
/// The plugin's own error.
pub fn end(
    marks: &Marks,
    network: &Network,
    kind: Option<&str>,
    attachment: &Attachment,
) -> Result<Option<String>, CniError> {
    let (mark, unreadable) = match marks.read(attachment) {
        Ok(mark) => (mark, None),
        Err(error) => (None, Some(error.message)),
    };
    if mark.as_ref().is_some_and(|mark| mark.network != network.name) {
        return Ok(None);
    }
    let (kind, mut conf) = match (&mark, kind) {
        (Some(mark), _) => (mark.plugin.as_str(), mark.conf.clone()),
        (None, Some(kind)) => (kind, network.object().clone()),
        // It says whom to ask, and cannot be read.
        (None, None) => return Ok(unreadable),
    };
    if let Some(previous) = network.key("prevResult") {
        conf.insert("prevResult".to_owned(), previous.clone());
    }
    match Delegate::find(kind) {
        Ok(delegate) => delegate.del(&conf, attachment)?,
        Err(error) => {
            let given = mark.as_ref().map(|mark| mark.given.as_ref().map(|given| &given.addresses));
            return Ok(given.map(|addresses| {
                let what = match addresses {
                    Some(addresses) => {
                        let all: Vec<String> = addresses.iter().map(IpAddr::to_string).collect();
                        format!("addresses {}", all.join(", "))
                    }
                    None => "whatever it gave".to_owned(),
                };
                format!(
                    "{attachment}: {what} of address plugin {kind} are not given back ({}); DEL or GC does it once \
                     the plugin is there, as {} says",
                    error.message,
                    marks.path(attachment).display()
                )
            }));
        }
    }
    marks.remove(attachment)?;
    Ok(None)
}

/// Refuses addresses that our own allocator gives to others: they lie in a pool of it.
///
/// # Errors
/// One does.
pub fn refuse_ours(given: &Given, delegate: &Delegate, file: &NodeFile) -> Result<(), CniError> {
    let of = |address: &IpAddr| {
        let automatic = |pool: &&podway_model::node_file::NodePool| {
            pool.assignment == Assignment::Automatic && pool.cidr.contains(address)
        };
        file.pools.iter().find(automatic).map(|pool| (*address, pool))
    };
    match given.addresses.iter().find_map(of) {
        None => Ok(()),
        Some((address, pool)) => Err(CniError::new(
            Code::Config,
            format!(
                "address plugin {} gave {address}, which lies in pool {} ({}): podway gives addresses of that pool \
                 to other pods",
                delegate.kind, pool.name, pool.cidr
            ),
        )),
    }
}

/// Reads the result of an address plugin.
///
/// # Errors
/// What cannot be used, in words.
pub fn read(text: &[u8]) -> Result<Given, String> {
    let result: Value = serde_json::from_slice(text).map_err(|e| format!("its result is not JSON: {e}"))?;
    let list = |key: &str| result.get(key).and_then(Value::as_array).map_or(&[] as &[Value], Vec::as_slice);
    let net = |item: &Value, key: &str| item.get(key)?.as_str()?.parse::<IpNet>().ok();
    let ip = |item: &Value, key: &str| item.get(key)?.as_str()?.parse::<IpAddr>().ok();
    let mut given = Given::default();
    for item in list("ips") {
        let address =
            net(item, "address").ok_or_else(|| format!("{item} in its result is not an address"))?;
        let address = address.addr();
        let same = given.addresses.iter().find(|other| Family::of(**other) == Family::of(address));
        if let Some(other) = same {
            return Err(format!(
                "its result has {other} and {address}; a pod has one address of each family"
            ));
        }
        given.addresses.push(address);
        given.gateways.extend(ip(item, "gateway"));
    }
    if given.addresses.is_empty() {
        return Err("its result has no address".to_owned());
    }
    given.addresses.sort();
    for item in list("routes") {
        let destination = net(item, "dst").ok_or_else(|| format!("{item} in its result is not a route"))?;
        if let Some(gateway) = item.get("gw").filter(|gw| !matches!(gw.as_str(), Some("")) && !gw.is_null())
            && ip(item, "gw").is_none_or(|gateway| !given.gateways.contains(&gateway))
        {
            return Err(format!(
                "its route to {destination} has gateway {gateway}; the node is the only neighbour of a pod, so only \
                 the gateway of its address, or none, can be served"
            ));
        }
        let number =
            |key: &str| item.get(key)?.as_u64().and_then(|n| u32::try_from(n).ok()).filter(|n| *n > 0);
        given.routes.push(PodRoute {
            mtu: number("mtu"),
            advmss: number("advmss"),
            priority: number("priority"),
            table: number("table"),
            ..PodRoute::to(destination.trunc())
        });
    }
    given.dns = result.get("dns").and_then(Value::as_object).cloned().unwrap_or_default();
    given.dns.retain(|_, value| !value.is_null());
    Ok(given)
}

/// The folder of marks.
#[derive(Debug, Clone)]
pub struct Marks {
    dir: PathBuf,
}

impl Marks {
    /// The marks in `dir`.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into() }
    }

    /// Writes a mark. The caller holds the address lock, so that nobody takes the half of it for a leftover.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn write(&self, mark: &Mark) -> Result<(), CniError> {
        let attachment = Attachment::new(mark.container_id.clone(), mark.ifname.clone());
        let path = self.path(&attachment);
        let text = serde_json::to_vec(mark).map_err(|e| CniError::io(&path, "write", &e.into()))?;
        crate::record::replace(&path, &self.new_path(&attachment), &text)
            .map_err(|e| CniError::io(&path, "write", &e))
    }

    /// The mark of an attachment.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn read(&self, attachment: &Attachment) -> Result<Option<Mark>, CniError> {
        read_mark(&self.path(attachment))
    }

    /// Removes the mark of an attachment, and what a killed writer left of it. None is fine.
    ///
    /// # Errors
    /// It is there and cannot be removed.
    pub fn remove(&self, attachment: &Attachment) -> Result<(), CniError> {
        for path in [self.new_path(attachment), self.path(attachment)] {
            match std::fs::remove_file(&path) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                    return Err(CniError::io(&path, "remove", &e));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Removes what killed writers left. Whoever writes or calls this holds the address lock.
    ///
    /// # Errors
    /// It is there and cannot be removed.
    pub fn sweep(&self) -> Result<(), CniError> {
        for entry in std::fs::read_dir(&self.dir).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.extension().is_some_and(|extension| extension == "new") {
                std::fs::remove_file(&path).map_err(|e| CniError::io(&path, "remove", &e))?;
            }
        }
        Ok(())
    }

    /// All marks that can be read, and why the others cannot.
    ///
    /// # Errors
    /// The folder cannot be listed.
    pub fn list(&self) -> Result<(Vec<Mark>, Vec<CniError>), CniError> {
        let fail = |e: &std::io::Error| CniError::io(&self.dir, "list", e);
        let entries = match std::fs::read_dir(&self.dir) {
            Ok(entries) => entries,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Default::default()),
            Err(e) => return Err(fail(&e)),
        };
        let (mut all, mut bad) = (Vec::new(), Vec::new());
        for entry in entries {
            let path = entry.map_err(|e| fail(&e))?.path();
            if path.extension().is_some_and(|extension| extension == "json") {
                match read_mark(&path) {
                    Ok(mark) => all.extend(mark),
                    Err(error) => bad.push(error),
                }
            }
        }
        Ok((all, bad))
    }

    /// The file of an attachment.
    pub fn path(&self, attachment: &Attachment) -> PathBuf {
        self.dir.join(format!("{}.json", crate::record::id_of(attachment)))
    }

    fn new_path(&self, attachment: &Attachment) -> PathBuf {
        self.dir.join(format!(".{}.new", crate::record::id_of(attachment)))
    }
}

fn read_mark(path: &Path) -> Result<Option<Mark>, CniError> {
    let fail = |e: &std::io::Error| CniError::io(path, "read", e);
    match std::fs::read(path) {
        Ok(text) => serde_json::from_slice(&text).map(Some).map_err(|e| fail(&e.into())),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(fail(&e)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn given(result: &Value) -> Result<Given, String> {
        read(result.to_string().as_bytes())
    }

    #[test]
    fn results_of_address_plugins_are_read() {
        let given = given(&json!({
            "cniVersion": "1.1.0",
            "ips": [
                {"address": "fd00:1::9/64", "gateway": "fd00:1::1"},
                {"address": "10.1.0.9/24", "gateway": "10.1.0.1", "version": "4"}
            ],
            "routes": [{"dst": "0.0.0.0/0"}, {"dst": "10.9.0.7/16", "gw": "10.1.0.1", "mtu": 1300, "table": 7}],
            "dns": {"nameservers": ["10.0.0.53"], "search": null}
        }))
        .unwrap();
        let texts: Vec<String> = given.addresses.iter().map(IpAddr::to_string).collect();
        assert_eq!(texts, ["10.1.0.9", "fd00:1::9"]);
        assert_eq!(given.gateways.len(), 2);
        let second = given.routes[1];
        assert_eq!(second.destination.to_string(), "10.9.0.0/16");
        assert_eq!((second.mtu, second.table, second.priority), (Some(1300), Some(7), None));
        assert_eq!(Value::Object(given.dns.clone()), json!({"nameservers": ["10.0.0.53"]}));
        let text = serde_json::to_string(&given).unwrap();
        assert_eq!(serde_json::from_str::<Given>(&text).unwrap(), given);
    }

    #[test]
    fn results_that_cannot_be_used_say_why() {
        let ip = json!({"address": "10.1.0.9/24", "gateway": "10.1.0.1"});
        for (result, part) in [
            (json!("x"), "no address"),
            (json!({"ips": []}), "no address"),
            (json!({"ips": [{"address": "10.1.0.9"}]}), "is not an address"),
            (json!({"ips": [ip, {"address": "10.2.0.9/24"}]}), "has 10.1.0.9 and 10.2.0.9"),
            (json!({"ips": [ip], "routes": [{"dst": "x"}]}), "is not a route"),
            (
                json!({"ips": [ip], "routes": [{"dst": "10.9.0.0/16", "gw": "10.1.0.254"}]}),
                "10.9.0.0/16 has gateway \"10.1.0.254\"",
            ),
        ] {
            let error = given(&result).unwrap_err();
            assert!(error.contains(part), "{result}: {error}");
        }
        assert!(read(b"{").unwrap_err().contains("not JSON"));
    }

    #[test]
    fn marks_are_written_read_listed_and_removed() {
        let folder = tempfile::tempdir().unwrap();
        let marks = Marks::new(folder.path().join("deep/delegated"));
        let attachment = Attachment::new("c1".parse().unwrap(), "eth0".parse().unwrap());
        let conf = json!({"cniVersion": "1.1.0", "name": "n", "ipam": {"type": "static"}});
        let network = Network::parse(conf.to_string().as_bytes()).unwrap();
        let delegate = Delegate { kind: "static".to_owned(), program: "/static".into() };
        let mark = Mark::new(&network, &attachment, &delegate);
        assert_eq!(marks.list().unwrap(), Default::default());
        marks.write(&mark).unwrap();
        assert_eq!(marks.read(&attachment).unwrap().as_ref(), Some(&mark));
        assert_eq!(Value::Object(mark.conf.clone()), conf);
        assert_eq!(marks.list().unwrap().0, [mark]);
        std::fs::write(marks.path(&attachment), "{").unwrap();
        assert!(marks.read(&attachment).unwrap_err().message.contains("cannot read"));
        assert_eq!(marks.list().unwrap().1.len(), 1);
        marks.remove(&attachment).unwrap();
        marks.remove(&attachment).unwrap();
        assert_eq!(marks.read(&attachment).unwrap(), None);
    }

    #[test]
    fn names_that_cannot_be_address_plugins_are_refused() {
        for kind in ["../x", "/bin/sh", ".", "podway", "portmap", "loopback"] {
            let error = Delegate::find(kind).unwrap_err();
            assert_eq!(error.code, Code::Config);
            assert!(error.message.contains("the name of an address plugin expected"), "{error}");
        }
    }
}
