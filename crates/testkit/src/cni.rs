//! Calls CNI plugins the way a container runtime does (CNI SPEC 1.1.0, sections 2 and 3).
//!
//! The first conflist in `/etc/cni/net.d` names the plugins; each is run with the environment of the
//! specification, gets its own part of the list on standard input with the network's name, the negotiated
//! version, the capabilities it declares and the result of the plugin before it. DEL goes in reverse.

use std::fmt;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use serde_json::{Map, Value, json};

use crate::place::Place;

/// Where runtimes look for network configurations.
pub const CONF_DIR: &str = "/etc/cni/net.d";
/// Where runtimes look for plugins.
pub const BIN_DIR: &str = "/opt/cni/bin";
/// Versions that this caller speaks, the newest last.
const VERSIONS: [&str; 4] = ["0.3.1", "0.4.0", "1.0.0", "1.1.0"];

/// What is to be attached.
#[derive(Debug, Clone)]
pub struct Attachment {
    /// `CNI_CONTAINERID`.
    pub container_id: String,
    /// `CNI_NETNS`: a path on the node.
    pub netns: String,
    /// `CNI_IFNAME`.
    pub ifname: String,
    /// Kubernetes namespace, for `CNI_ARGS`.
    pub namespace: String,
    /// Pod name, for `CNI_ARGS`.
    pub pod: String,
    /// Pod uid, for `CNI_ARGS`.
    pub uid: String,
    /// Values for the capabilities that a plugin declares (`portMappings`, ...).
    pub capability_args: Map<String, Value>,
}

/// What a plugin answered other than success.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CniError {
    /// Code of the specification, section "Error".
    pub code: u64,
    /// Short text.
    pub message: String,
    /// Long text.
    pub details: String,
}

impl fmt::Display for CniError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CNI error {}: {}", self.code, self.message)?;
        if self.details.is_empty() { Ok(()) } else { write!(f, " ({})", self.details) }
    }
}

impl std::error::Error for CniError {}

/// Error code "try again later".
pub const TRY_AGAIN_LATER: u64 = 11;

/// A successful call.
#[derive(Debug, Clone)]
pub struct Called {
    /// The last plugin's result; null where the verb has none.
    pub result: Value,
    /// From the start of the first plugin to the end of the last.
    pub took: Duration,
}

/// Raw outcome of one plugin process.
#[derive(Debug, Clone)]
pub struct RawOutcome {
    /// Exit code.
    pub code: Option<i32>,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

/// Calls plugins on one node.
#[derive(Debug, Clone, Copy)]
pub struct Runtime<'a> {
    place: &'a Place,
}

impl<'a> Runtime<'a> {
    /// A runtime on the node `place`.
    pub fn new(place: &'a Place) -> Self {
        Self { place }
    }

    /// ADD. A failure is `Err` of the outer result only where the call itself could not be made.
    pub fn add(&self, attachment: &Attachment) -> Result<Result<Called, CniError>> {
        self.chain("ADD", Some(attachment), None)
    }

    /// CHECK, with the result of the ADD.
    pub fn check(&self, attachment: &Attachment, previous: &Value) -> Result<Result<Called, CniError>> {
        self.chain("CHECK", Some(attachment), Some(previous))
    }

    /// DEL, with the result of the ADD where it is known.
    pub fn del(&self, attachment: &Attachment, previous: Option<&Value>) -> Result<Result<Called, CniError>> {
        self.chain("DEL", Some(attachment), previous)
    }

    /// STATUS.
    pub fn status(&self) -> Result<Result<Called, CniError>> {
        self.chain("STATUS", None, None)
    }

    /// VERSION of every plugin of the list: the versions that it supports.
    pub fn version(&self) -> Result<Value> {
        let list = self.conflist()?;
        let mut answers = vec![];
        for plugin in plugins(&list)? {
            let program = plugin_type(plugin)?;
            let version = negotiate(&list)?;
            let input = json!({ "cniVersion": version });
            let outcome = self.exec(program, &[("CNI_COMMAND", "VERSION")], input.to_string().as_bytes())?;
            answers.push(serde_json::from_str::<Value>(&outcome.stdout).context("answer to VERSION")?);
        }
        Ok(Value::Array(answers))
    }

    /// The first conflist of the node, as text order decides.
    pub fn conflist(&self) -> Result<Value> {
        let found = self.place.enter(|| -> Result<String> {
            let mut names: Vec<_> = std::fs::read_dir(CONF_DIR)?
                .filter_map(|entry| Some(entry.ok()?.path()))
                .filter(|path| path.extension().is_some_and(|e| e == "conflist"))
                .collect();
            names.sort();
            let first = names.first().with_context(|| format!("no conflist in {CONF_DIR}"))?;
            Ok(std::fs::read_to_string(first)?)
        })??;
        serde_json::from_str(&found).context("conflist")
    }

    /// Runs one plugin with exactly this environment and standard input.
    pub fn exec(&self, program: &str, environment: &[(&str, &str)], stdin: &[u8]) -> Result<RawOutcome> {
        let mut command = Command::new(format!("{BIN_DIR}/{program}"));
        command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command.envs(environment.iter().copied());
        let output = self.place.output(command, stdin)?;
        Ok(RawOutcome {
            code: output.status.code(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }

    fn chain(
        &self,
        verb: &str,
        attachment: Option<&Attachment>,
        previous: Option<&Value>,
    ) -> Result<Result<Called, CniError>> {
        let list = self.conflist()?;
        let version = negotiate(&list)?;
        let mut order = plugins(&list)?;
        if verb == "DEL" {
            order.reverse();
        }
        let environment = attachment.map(|a| environment(verb, a)).unwrap_or_else(|| {
            vec![("CNI_COMMAND".to_owned(), verb.to_owned()), ("CNI_PATH".to_owned(), BIN_DIR.to_owned())]
        });
        let environment: Vec<_> = environment.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        let mut result = previous.cloned();
        let started = Instant::now();
        for plugin in order {
            let input = plugin_input(&list, plugin, version, attachment, result.as_ref())?;
            let outcome = self.exec(plugin_type(plugin)?, &environment, input.to_string().as_bytes())?;
            if outcome.code != Some(0) {
                return Ok(Err(read_error(&outcome)?));
            }
            if verb == "ADD" {
                result = Some(serde_json::from_str(&outcome.stdout).context("result of ADD")?);
            }
        }
        let result = if verb == "ADD" { result.unwrap_or_default() } else { Value::Null };
        Ok(Ok(Called { result, took: started.elapsed() }))
    }
}

/// The addresses in a result (CNI SPEC section "ADD Success": `ips[].address`).
pub fn result_addresses(result: &Value) -> Result<Vec<ipnet::IpNet>> {
    let ips = result["ips"].as_array().context("ips of the result")?;
    ips.iter().map(|ip| Ok(ip["address"].as_str().context("address of the result")?.parse()?)).collect()
}

fn plugins(list: &Value) -> Result<Vec<&Value>> {
    Ok(list["plugins"].as_array().context("plugins of the conflist")?.iter().collect())
}

fn plugin_type(plugin: &Value) -> Result<&str> {
    plugin["type"].as_str().context("type of a plugin of the conflist")
}

/// The newest version that both sides speak: of `cniVersions`, else `cniVersion`.
fn negotiate(list: &Value) -> Result<&'static str> {
    let offered: Vec<&str> = match list["cniVersions"].as_array() {
        Some(several) => several.iter().filter_map(Value::as_str).collect(),
        None => list["cniVersion"].as_str().into_iter().collect(),
    };
    VERSIONS
        .into_iter()
        .rev()
        .find(|version| offered.contains(version))
        .with_context(|| format!("no common CNI version: {offered:?} offered"))
}

fn environment(verb: &str, attachment: &Attachment) -> Vec<(String, String)> {
    let args = format!(
        "IgnoreUnknown=1;K8S_POD_NAMESPACE={};K8S_POD_NAME={};K8S_POD_INFRA_CONTAINER_ID={};K8S_POD_UID={}",
        attachment.namespace, attachment.pod, attachment.container_id, attachment.uid
    );
    [
        ("CNI_COMMAND", verb),
        ("CNI_CONTAINERID", &attachment.container_id),
        ("CNI_NETNS", &attachment.netns),
        ("CNI_IFNAME", &attachment.ifname),
        ("CNI_ARGS", &args),
        ("CNI_PATH", BIN_DIR),
    ]
    .map(|(key, value)| (key.to_owned(), value.to_owned()))
    .to_vec()
}

/// Section 3, "Deriving request configuration from plugin configuration".
fn plugin_input(
    list: &Value,
    plugin: &Value,
    version: &str,
    attachment: Option<&Attachment>,
    previous: Option<&Value>,
) -> Result<Value> {
    let mut input = plugin.as_object().context("a plugin of the conflist is an object")?.clone();
    input.insert("cniVersion".into(), version.into());
    input.insert("name".into(), list["name"].clone());
    let declared = input.remove("capabilities");
    if let (Some(declared), Some(attachment)) = (declared.as_ref().and_then(Value::as_object), attachment) {
        let wanted: Map<String, Value> = attachment
            .capability_args
            .iter()
            .filter(|(name, _)| declared.get(*name) == Some(&Value::Bool(true)))
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect();
        if !wanted.is_empty() {
            input.insert("runtimeConfig".into(), wanted.into());
        }
    }
    if let Some(previous) = previous {
        input.insert("prevResult".into(), previous.clone());
    }
    Ok(Value::Object(input))
}

/// Reads a plugin's error answer.
pub fn read_error(outcome: &RawOutcome) -> Result<CniError> {
    let Ok(answer) = serde_json::from_str::<Value>(&outcome.stdout) else {
        bail!(
            "plugin failed (exit code {:?}) without a CNI error: stdout {:?}, stderr {:?}",
            outcome.code,
            outcome.stdout,
            outcome.stderr
        );
    };
    Ok(CniError {
        code: answer["code"].as_u64().with_context(|| format!("code in error answer {answer}"))?,
        message: answer["msg"].as_str().with_context(|| format!("msg in error answer {answer}"))?.to_owned(),
        details: answer["details"].as_str().unwrap_or_default().to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_common_version_is_chosen() {
        let list = json!({"cniVersion": "1.0.0", "cniVersions": ["0.4.0", "1.0.0", "1.1.0", "9.0.0"]});
        assert_eq!(negotiate(&list).unwrap(), "1.1.0");
        assert_eq!(negotiate(&json!({"cniVersion": "0.4.0"})).unwrap(), "0.4.0");
        assert!(negotiate(&json!({"cniVersion": "9.0.0"})).is_err());
    }

    #[test]
    fn a_plugin_gets_only_the_capabilities_that_it_declares() {
        let list = json!({"name": "podway"});
        let plugin = json!({"type": "podway", "capabilities": {"portMappings": true, "mac": false}});
        let mut attachment = Attachment {
            container_id: "c1".into(),
            netns: "/run/netns/c1".into(),
            ifname: "eth0".into(),
            namespace: "default".into(),
            pod: "p".into(),
            uid: "u".into(),
            capability_args: Map::new(),
        };
        attachment.capability_args.insert("portMappings".into(), json!([]));
        attachment.capability_args.insert("mac".into(), json!("02:00:00:00:00:01"));
        attachment.capability_args.insert("dns".into(), json!({}));
        let input =
            plugin_input(&list, &plugin, "1.1.0", Some(&attachment), Some(&json!({"ips": []}))).unwrap();
        assert_eq!(
            input,
            json!({"type": "podway", "name": "podway", "cniVersion": "1.1.0",
                   "runtimeConfig": {"portMappings": []}, "prevResult": {"ips": []}})
        );
    }
}
