//! The environment: which verb, for whom (CNI SPEC 1.1.0, section 2, "Parameters").
//!
//! Everything that is wrong is said in one error. `CNI_PATH` is not asked for: nothing is delegated. DEL takes what
//! it needs and overlooks the rest, because what it cannot be told must not keep an address.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::net::IpAddr;
use std::path::PathBuf;

use podway_ipam::Attachment;
use podway_model::endpoint::PodRef;
use podway_model::ids::{ContainerId, IfName, MacAddr};
use podway_model::mistakes::Mistakes;

use crate::error::{CniError, Code};
use crate::settings;

/// What is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Call {
    /// Attach a container.
    Add(Target),
    /// Is the attachment whole?
    Check(Target),
    /// Detach a container. Its namespace may be gone, or not even be named.
    Del {
        /// What to detach.
        attachment: Attachment,
    },
    /// Free what is not attached any more.
    Gc,
    /// Would ADD work?
    Status,
    /// Which versions are served?
    Version,
}

/// What ADD and CHECK are about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// Container and interface.
    pub attachment: Attachment,
    /// Path of the container's network namespace.
    pub netns: PathBuf,
    /// Whether the plugin's own namespace is accepted (`CNI_NETNS_OVERRIDE`).
    pub own_netns_allowed: bool,
    /// The pod, where `CNI_ARGS` names one.
    pub pod: Option<PodRef>,
    /// Addresses asked for in `CNI_ARGS` (`IP=`, one or several with commas).
    pub ips: Vec<IpAddr>,
    /// Ethernet address asked for in `CNI_ARGS` (`MAC=`).
    pub mac: Option<MacAddr>,
}

/// Reads the environment. `Ok(None)`: no CNI variable is set, so a person started the program.
pub fn parse(lookup: impl Fn(&str) -> Option<OsString>) -> Result<Option<Call>, CniError> {
    let mut reader = Reader { lookup: &lookup, wrong: Vec::new() };
    let Some(command) = reader.optional("CNI_COMMAND") else {
        const OTHERS: [&str; 4] = ["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_PATH"];
        if OTHERS.iter().all(|name| lookup(name).is_none()) {
            return Ok(None);
        }
        reader.wrong.push("CNI_COMMAND is missing".to_owned());
        return Err(reader.error());
    };
    let call = match command.as_str() {
        "ADD" => reader.target().map(Call::Add),
        "CHECK" => reader.target().map(Call::Check),
        "DEL" => reader.attachment().map(|attachment| Call::Del { attachment }),
        "GC" => Some(Call::Gc),
        "STATUS" => Some(Call::Status),
        "VERSION" => Some(Call::Version),
        other => {
            reader.wrong.push(format!(
                "CNI_COMMAND: {other:?} found, one of ADD, DEL, CHECK, GC, STATUS, VERSION expected"
            ));
            None
        }
    };
    match call {
        Some(call) if reader.wrong.is_empty() => Ok(Some(call)),
        _ => Err(reader.error()),
    }
}

struct Reader<'a> {
    lookup: &'a dyn Fn(&str) -> Option<OsString>,
    wrong: Vec<String>,
}

impl Reader<'_> {
    fn error(&self) -> CniError {
        CniError::new(Code::Environment, self.wrong.join(", "))
    }

    /// An empty variable is a missing one.
    fn optional(&self, name: &str) -> Option<String> {
        (self.lookup)(name).map(|value| value.to_string_lossy().into_owned()).filter(|v| !v.is_empty())
    }

    fn required(&mut self, name: &str) -> Option<String> {
        let value = self.optional(name);
        if value.is_none() {
            self.wrong.push(format!("{name} is missing"));
        }
        value
    }

    fn id<T: std::str::FromStr<Err = podway_model::ids::InvalidId>>(&mut self, name: &str) -> Option<T> {
        let value = self.required(name)?;
        value.parse().map_err(|e| self.wrong.push(format!("{name}: {e}"))).ok()
    }

    fn attachment(&mut self) -> Option<Attachment> {
        let container_id: Option<ContainerId> = self.id("CNI_CONTAINERID");
        let ifname: Option<IfName> = self.id("CNI_IFNAME");
        Some(Attachment::new(container_id?, ifname?))
    }

    fn target(&mut self) -> Option<Target> {
        let attachment = self.attachment();
        let netns = self.required("CNI_NETNS").map(PathBuf::from);
        let args = self.args();
        let mut ips = Vec::new();
        for text in args.get("IP").into_iter().flat_map(|list| list.split(',')) {
            match text.split('/').next().unwrap_or_default().parse() {
                Ok(address) => ips.push(address),
                Err(_) => self.wrong.push(format!("CNI_ARGS: IP: {text:?} is not an address")),
            }
        }
        let mac = args.get("MAC").filter(|text| !text.is_empty()).and_then(|text| {
            let mut mistakes = Mistakes::default();
            let mac = settings::mac(text, "MAC", &mut mistakes);
            self.wrong.extend(mistakes.0.iter().map(|mistake| format!("CNI_ARGS: {mistake}")));
            mac
        });
        let name = |key: &str| args.get(key).filter(|value| !value.is_empty()).cloned();
        let pod = match (name("K8S_POD_NAMESPACE"), name("K8S_POD_NAME")) {
            (Some(namespace), Some(name_)) => {
                Some(PodRef { namespace, name: name_, uid: name("K8S_POD_UID") })
            }
            _ => None,
        };
        let own_netns_allowed = self.optional("CNI_NETNS_OVERRIDE").is_some();
        Some(Target { attachment: attachment?, netns: netns?, own_netns_allowed, pod, ips, mac })
    }

    /// `CNI_ARGS`: `key=value;key=value`. An unknown key is an error unless `IgnoreUnknown` is true, as in
    /// upstream's `types.LoadArgs`.
    fn args(&mut self) -> BTreeMap<String, String> {
        const KNOWN: [&str; 7] = [
            "IgnoreUnknown",
            "IP",
            "MAC",
            "K8S_POD_INFRA_CONTAINER_ID",
            "K8S_POD_NAME",
            "K8S_POD_NAMESPACE",
            "K8S_POD_UID",
        ];
        let mut args = BTreeMap::new();
        for pair in self.optional("CNI_ARGS").unwrap_or_default().split(';').filter(|p| !p.is_empty()) {
            match pair.split_once('=') {
                Some((key, value)) => drop(args.insert(key.to_owned(), value.to_owned())),
                None => self.wrong.push(format!("CNI_ARGS: {pair:?} found, key=value expected")),
            }
        }
        let ignore = args.get("IgnoreUnknown").map(String::as_str);
        if !matches!(ignore, Some("1" | "true" | "TRUE" | "True" | "t" | "T")) {
            for key in args.keys().filter(|key| !KNOWN.contains(&key.as_str())) {
                self.wrong.push(format!("CNI_ARGS: {key} is not known (IgnoreUnknown=1 lets it pass)"));
            }
        }
        args
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pairs: &[(&str, &str)]) -> Result<Option<Call>, CniError> {
        parse(|name| pairs.iter().find(|(key, _)| *key == name).map(|(_, value)| OsString::from(value)))
    }

    const WHOLE: [(&str, &str); 4] = [
        ("CNI_COMMAND", "ADD"),
        ("CNI_CONTAINERID", "c1"),
        ("CNI_NETNS", "/run/netns/x"),
        ("CNI_IFNAME", "eth0"),
    ];

    fn with(name: &str, value: &str) -> Result<Option<Call>, CniError> {
        let mut pairs = WHOLE.to_vec();
        pairs.retain(|(key, _)| *key != name);
        pairs.push((
            Box::leak(name.to_owned().into_boxed_str()),
            Box::leak(value.to_owned().into_boxed_str()),
        ));
        read(&pairs)
    }

    #[test]
    fn a_whole_add() {
        let Ok(Some(Call::Add(target))) =
            with("CNI_ARGS", "IgnoreUnknown=1;K8S_POD_NAMESPACE=ns;K8S_POD_NAME=p;K8S_POD_UID=u;X=y")
        else {
            panic!("not an ADD");
        };
        assert_eq!(target.attachment.to_string(), "c1/eth0");
        assert_eq!(target.pod.unwrap().to_string(), "ns/p");
        assert_eq!((target.ips, target.mac), (vec![], None));
    }

    #[test]
    fn no_variable_at_all_is_a_person() {
        assert_eq!(read(&[]), Ok(None));
        let error = read(&[("CNI_IFNAME", "eth0")]).unwrap_err();
        assert_eq!((error.code, error.message.as_str()), (Code::Environment, "CNI_COMMAND is missing"));
    }

    #[test]
    fn what_each_verb_needs() {
        for (verb, missing) in [
            ("ADD", "CNI_CONTAINERID is missing, CNI_IFNAME is missing, CNI_NETNS is missing"),
            ("CHECK", "CNI_CONTAINERID is missing, CNI_IFNAME is missing, CNI_NETNS is missing"),
            ("DEL", "CNI_CONTAINERID is missing, CNI_IFNAME is missing"),
        ] {
            let error = read(&[("CNI_COMMAND", verb)]).unwrap_err();
            assert_eq!((error.code, error.message.as_str()), (Code::Environment, missing), "{verb}");
        }
        for verb in ["GC", "STATUS", "VERSION"] {
            assert!(read(&[("CNI_COMMAND", verb)]).unwrap().is_some(), "{verb}");
        }
        let del = [("CNI_COMMAND", "DEL"), ("CNI_CONTAINERID", "c1"), ("CNI_IFNAME", "eth0")];
        assert!(matches!(read(&del), Ok(Some(Call::Del { .. }))));
    }

    #[test]
    fn values_that_cannot_be_used_are_named() {
        for (name, value, part) in [
            ("CNI_COMMAND", "add", "CNI_COMMAND: \"add\" found"),
            ("CNI_CONTAINERID", "-x", "CNI_CONTAINERID: \"-x\" is not a container id"),
            ("CNI_CONTAINERID", "a/../b", "CNI_CONTAINERID: \"a/../b\" is not"),
            ("CNI_IFNAME", "sixteen-letters!", "CNI_IFNAME: \"sixteen-letters!\" is not"),
            ("CNI_IFNAME", "..", "CNI_IFNAME: \"..\" is not an interface name"),
            ("CNI_IFNAME", "a b", "CNI_IFNAME: \"a b\" is not"),
            ("CNI_NETNS", "", "CNI_NETNS is missing"),
            ("CNI_ARGS", "K8S_POD_NAME", "CNI_ARGS: \"K8S_POD_NAME\" found, key=value expected"),
            ("CNI_ARGS", "COLOUR=red", "CNI_ARGS: COLOUR is not known"),
            ("CNI_ARGS", "MAC=01:00:5e:00:00:01", "MAC: \"01:00:5e:00:00:01\" found, a unicast MAC"),
            ("CNI_ARGS", "IP=10.0.0.1,x", "CNI_ARGS: IP: \"x\" is not an address"),
            ("CNI_ARGS", "IP=banana", "CNI_ARGS: IP: \"banana\" is not an address"),
        ] {
            let error = with(name, value).unwrap_err();
            assert_eq!(error.code, Code::Environment, "{name}={value}");
            assert!(error.message.contains(part), "{name}={value}: {error}");
        }
    }

    #[test]
    fn del_overlooks_arguments_that_it_does_not_need() {
        let del = [
            ("CNI_COMMAND", "DEL"),
            ("CNI_CONTAINERID", "c1"),
            ("CNI_IFNAME", "eth0"),
            ("CNI_ARGS", "banana"),
        ];
        assert!(read(&del).is_ok());
    }
}
